//! The field GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d), and its matrices.
//! Addition is exclusive or. Everything here runs once for a code or a plan, or at compile time;
//! products of whole shards are the kernels' work.

/// The polynomial without its leading term.
pub(crate) const POLYNOMIAL: u8 = 0x1d;

/// `value` times x.
const fn double(value: u8) -> u8 {
    (value << 1) ^ (POLYNOMIAL * (value >> 7))
}

/// The product, in constant time.
pub(crate) const fn multiply(left: u8, right: u8) -> u8 {
    let (mut product, mut power, mut bit) = (0, left, 0);
    while bit < 8 {
        product ^= power * ((right >> bit) & 1);
        power = double(power);
        bit += 1;
    }
    product
}

/// The inverse of each value but 0, for which it is 0.
static INVERSES: [u8; 256] = {
    // With a generator g, the inverse of g^i is g^(255-i). x is one.
    let (mut powers, mut power, mut exponent) = ([0; 256], 1, 0);
    while exponent < 256 {
        powers[exponent] = power;
        power = double(power);
        exponent += 1;
    }
    let (mut inverses, mut exponent) = ([0; 256], 0);
    while exponent < 255 {
        inverses[powers[exponent] as usize] = powers[255 - exponent];
        exponent += 1;
    }
    inverses
};

/// The inverse; 0 for 0, which has none.
pub(crate) fn inverse(value: u8) -> u8 {
    INVERSES[usize::from(value)]
}

/// For each coefficient the products of the 16 lower and of the 16 upper halves of a byte: the
/// product of a byte is the exclusive or of two entries. Plank, Greenan, Miller: "Screaming Fast
/// Galois Field Arithmetic Using Intel SIMD Instructions", FAST 2013.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) static NIBBLE_PRODUCTS: [[[u8; 16]; 2]; 256] = {
    let (mut tables, mut coefficient) = ([[[0; 16]; 2]; 256], 0);
    while coefficient < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            let factor = coefficient as u8;
            tables[coefficient][0][nibble] = multiply(factor, nibble as u8);
            tables[coefficient][1][nibble] = multiply(factor, (nibble as u8) << 4);
            nibble += 1;
        }
        coefficient += 1;
    }
    tables
};

/// For each coefficient the multiplication by it as a matrix of 8 × 8 bits, as GF2P8AFFINEQB takes
/// it: bit `i` of a product is the parity of byte `7 - i` of the matrix and the factor. Bit `j` of
/// that byte is bit `i` of coefficient × x^j.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) static BIT_MATRICES: [u64; 256] = {
    let (mut matrices, mut coefficient) = ([0; 256], 0);
    while coefficient < 256 {
        let (mut column, mut j) = (coefficient as u8, 0);
        while j < 8 {
            let mut i = 0;
            while i < 8 {
                matrices[coefficient] |= ((column as u64 >> i) & 1) << (8 * (7 - i) + j);
                i += 1;
            }
            column = double(column);
            j += 1;
        }
        coefficient += 1;
    }
    matrices
};

/// The most rows and columns of a square matrix.
pub(crate) const ORDER_MAX: usize = crate::layout::UNITS_MAX;

/// A row of a [`Square`].
pub(crate) type Row = [u8; ORDER_MAX];

/// A square matrix of up to [`ORDER_MAX`] rows; the rest is unused.
pub(crate) type Square = [Row; ORDER_MAX];

/// A row times a matrix.
pub(crate) fn multiply_row(row: &Row, matrix: &Square) -> Row {
    let mut product = [0; ORDER_MAX];
    for (factor, values) in row.iter().zip(matrix) {
        for (sum, value) in product.iter_mut().zip(values) {
            *sum ^= multiply(*factor, *value);
        }
    }
    product
}

/// The inverse of the upper left `order` rows and columns, by Gauss and Jordan's elimination, or
/// none if there is none.
pub(crate) fn invert(matrix: &Square, order: usize) -> Option<Square> {
    let mut left = *matrix;
    let mut right: Square =
        core::array::from_fn(|row| core::array::from_fn(|column| u8::from(row == column)));
    for column in 0..order {
        let pivot = (column..order).find(|row| left[*row][column] != 0)?;
        left.swap(column, pivot);
        right.swap(column, pivot);
        let scale = inverse(left[column][column]);
        for value in left[column].iter_mut().chain(&mut right[column]) {
            *value = multiply(*value, scale);
        }
        let (left_pivot, right_pivot) = (left[column], right[column]);
        for row in (0..order).filter(|row| *row != column) {
            let factor = left[row][column];
            let values = left[row].iter_mut().chain(&mut right[row]);
            for (value, pivot) in values.zip(left_pivot.iter().chain(&right_pivot)) {
                *value ^= multiply(factor, *pivot);
            }
        }
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b04_each_value_times_its_inverse_is_one() {
        assert_eq!(inverse(0), 0);
        for value in 1..=u8::MAX {
            assert_eq!(multiply(value, inverse(value)), 1);
        }
    }

    #[test]
    fn b04_the_field_is_that_of_the_oracle() {
        for left in 0..=u8::MAX {
            for right in 0..=u8::MAX {
                let expected = reed_solomon_erasure::galois_8::mul(left, right);
                assert_eq!(multiply(left, right), expected);
            }
        }
    }

    #[test]
    fn b04_nibble_tables_multiply() {
        for coefficient in 0..=u8::MAX {
            let [lower, upper] = &NIBBLE_PRODUCTS[usize::from(coefficient)];
            for value in 0..=u8::MAX {
                let product = lower[usize::from(value & 15)] ^ upper[usize::from(value >> 4)];
                assert_eq!(product, multiply(coefficient, value));
            }
        }
    }

    /// The instruction as Intel's manual defines it, for one byte.
    fn gf2p8affineqb(matrix: u64, value: u8) -> u8 {
        (0..8).fold(0, |product, bit| {
            let row = matrix.to_le_bytes()[7 - bit];
            product | (((row & value).count_ones() & 1) as u8) << bit
        })
    }

    #[test]
    fn b04_bit_matrices_multiply_as_the_instruction_is_defined() {
        for coefficient in 0..=u8::MAX {
            for value in 0..=u8::MAX {
                let product = gf2p8affineqb(BIT_MATRICES[usize::from(coefficient)], value);
                assert_eq!(product, multiply(coefficient, value));
            }
        }
    }

    #[test]
    fn b04_a_matrix_times_its_inverse_is_the_identity_and_a_singular_one_has_none() {
        let order = 7;
        let mut matrix: Square = [[0; ORDER_MAX]; ORDER_MAX];
        for (row, values) in matrix.iter_mut().enumerate().take(order) {
            for (column, value) in values.iter_mut().enumerate().take(order) {
                *value = inverse((row + order) as u8 ^ column as u8);
            }
        }
        let inverted = invert(&matrix, order).unwrap();
        let product = |row: usize, column: usize| {
            (0..order).fold(0, |sum, i| {
                sum ^ multiply(matrix[row][i], inverted[i][column])
            })
        };
        for (row, column) in (0..order).flat_map(|row| (0..order).map(move |column| (row, column)))
        {
            assert_eq!(product(row, column), u8::from(row == column));
        }
        matrix[3] = matrix[5];
        assert_eq!(invert(&matrix, order), None);
    }
}
