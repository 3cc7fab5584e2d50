//! Contents that can be recognised: lengths and bytes that follow from a seed and the number of the thing.

use pmu_client::{Epoch, SetNumber};

/// The longest record.
pub const RECORD_BYTES_MAX: usize = 64 << 10;

/// Numbers that look random and follow from their seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from all the given ones.
    #[must_use]
    pub fn new(seeds: &[u64]) -> Self {
        let mut random = Self(0);
        for seed in seeds {
            random.0 = random.next().wrapping_add(*seed);
        }
        random
    }

    /// The next number.
    #[allow(
        clippy::should_implement_trait,
        reason = "not an iterator: it has no end"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Fills `bytes` anew with `length` bytes.
    fn fill(&mut self, length: usize, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.reserve(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
    }
}

/// Lengths of all orders of magnitude up to `max`: as many short ones as long ones.
fn length_up_to(random: &mut Random, max: u64) -> u64 {
    let bits = random.below(u64::from(u64::BITS - max.leading_zeros()) + 1);
    random.below(1_u64 << bits).min(max)
}

/// Makes the record `sequence` (from 1) of an epoch: 1 byte to [`RECORD_BYTES_MAX`].
pub fn record(seed: u64, epoch: Epoch, sequence: u64, bytes: &mut Vec<u8>) {
    let mut random = Random::new(&[seed, 1, epoch.get(), sequence]);
    let length = length_up_to(&mut random, RECORD_BYTES_MAX as u64).max(1);
    random.fill(length as usize, bytes);
}

/// Makes a set: from nothing to `capacity` bytes, both ends more often than by chance.
pub fn set(seed: u64, epoch: Epoch, number: SetNumber, capacity: u64, bytes: &mut Vec<u8>) {
    let mut random = Random::new(&[seed, 2, epoch.get(), number.get()]);
    let length = match random.below(16) {
        0 => 0,
        1 => capacity,
        2..9 => random.below(capacity + 1),
        _ => length_up_to(&mut random, capacity),
    };
    random.fill(length as usize, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_follow_from_seed_epoch_and_number() {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        record(7, Epoch(3), 5, &mut one);
        record(7, Epoch(3), 5, &mut other);
        assert_eq!(one, other);
        for (seed, epoch, sequence) in [(8, 3, 5), (7, 4, 5), (7, 3, 6)] {
            record(seed, Epoch(epoch), sequence, &mut other);
            assert_ne!(one, other);
        }
    }

    #[test]
    fn lengths_come_from_both_ends() {
        let mut bytes = Vec::new();
        let (mut shortest, mut longest) = (usize::MAX, 0);
        for sequence in 1..2000 {
            record(1, Epoch(1), sequence, &mut bytes);
            assert!((1..=RECORD_BYTES_MAX).contains(&bytes.len()));
            shortest = shortest.min(bytes.len());
            longest = longest.max(bytes.len());
        }
        assert!(
            shortest == 1 && longest > RECORD_BYTES_MAX / 2,
            "{shortest} {longest}"
        );
        let mut seen = [false; 2];
        for number in 1..100 {
            set(1, Epoch(1), SetNumber(number), 10_000, &mut bytes);
            assert!(bytes.len() <= 10_000);
            seen[0] |= bytes.is_empty();
            seen[1] |= bytes.len() == 10_000;
        }
        assert_eq!(seen, [true; 2]);
    }
}
