//! The kernel for every processor: eight field elements in a 64-bit word. A product is a sum of
//! doublings of the source, which all outputs share; no table and no branch. Written so that a
//! compiler makes vectors of it where it can.

use crate::field::POLYNOMIAL;

/// Words that a compiler can keep in vector registers.
type Vector = [u64; 2];

/// The coefficient itself.
type Table = u8;

const CHUNK_LEN: usize = 2 * size_of::<Vector>();

const EACH_LOWEST_BIT: u64 = 0x0101_0101_0101_0101;

fn table(coefficient: u8) -> Table {
    coefficient
}

fn zero() -> Vector {
    [0; 2]
}

fn xor(left: Vector, right: Vector) -> Vector {
    [left[0] ^ right[0], left[1] ^ right[1]]
}

fn load(bytes: &[u8; CHUNK_LEN]) -> [Vector; 2] {
    let words = bytes.as_chunks().0;
    let word = |index: usize| u64::from_ne_bytes(words[index]);
    [[word(0), word(1)], [word(2), word(3)]]
}

fn store(vectors: [Vector; 2], bytes: &mut [u8; CHUNK_LEN]) {
    for (word, value) in bytes
        .as_chunks_mut()
        .0
        .iter_mut()
        .zip(vectors.as_flattened())
    {
        *word = value.to_ne_bytes();
    }
}

fn add_products<const P: usize>(
    sums: &mut [[Vector; 2]; P],
    factors: [Vector; 2],
    tables: &[Table; P],
) {
    let mut powers = factors;
    for bit in 0..8 {
        for (sums, coefficient) in sums.iter_mut().zip(tables) {
            let mask = u64::from((coefficient >> bit) & 1).wrapping_neg();
            for (sum, power) in sums.iter_mut().zip(powers) {
                *sum = xor(*sum, power.map(|word| word & mask));
            }
        }
        powers = powers.map(|power| power.map(double));
    }
}

/// Each byte times x.
fn double(word: u64) -> u64 {
    let carries = (word >> 7) & EACH_LOWEST_BIT;
    ((word & !(EACH_LOWEST_BIT << 7)) << 1) ^ (carries * u64::from(POLYNOMIAL))
}

kernel_loops!();
