//! Words that change by ATOMIC WRITE and carry check bits of their own: publish word, tail and term word.
//!
//! Eight bytes are written at one time, so that there is no room for a checksum beside the value. But no value needs all 64 bits. Numbers of
//! sets and terms have 48 bits, and a CRC-16 above them; positions are multiples of 8, of which the upper 56 bits are kept, and a CRC-8 above them.
//! Zero is zero, with its check bits: a blank region was never published.

use crate::{FormatError, LogPosition, SetNumber, Structure, Term};

/// The highest number of a set, or term, that a word can hold: a million a second for nine years.
pub const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
/// The highest log position that a word can hold: 512 PiB.
pub const POSITION_MAX: LogPosition = LogPosition(((1 << POSITION_BITS) - 1) << ALIGNMENT_BITS);

const COUNT_BITS: u32 = 48;
const POSITION_BITS: u32 = 56;
const ALIGNMENT_BITS: u32 = 3;

/// CRC-16 with the polynomial of DNP: finds any five flipped bits of a word.
const COUNT_CODE: u64 = 0x3d65;
/// CRC-8 with the polynomial of AUTOSAR: finds any three.
const POSITION_CODE: u64 = 0x2f;

/// The remainder of `value` by a polynomial of degree `64 - bits`; bit by bit, as a word is rare.
const fn check(value: u64, bits: u32, polynomial: u64) -> u64 {
    let width = 64 - bits;
    let mut rest = 0_u64;
    let mut left = bits;
    while left > 0 {
        left -= 1;
        let top = (rest >> (width - 1)) ^ (value >> left);
        rest = (rest << 1) & ((1 << width) - 1);
        if top & 1 == 1 {
            rest ^= polynomial;
        }
    }
    rest
}

const fn seal(value: u64, bits: u32, polynomial: u64) -> u64 {
    (check(value, bits, polynomial) << bits) | value
}

fn open(
    word: u64,
    bits: u32,
    polynomial: u64,
    structure: Structure,
    what: &'static str,
) -> Result<u64, FormatError> {
    let value = word & ((1 << bits) - 1);
    #[cfg(feature = "planted-bugs")]
    if crate::planted::is_planted(crate::planted::Bug::TrustWords) {
        return Ok(value);
    }
    let (stored, computed) = (word >> bits, check(value, bits, polynomial));
    if stored == computed {
        return Ok(value);
    }
    Err(FormatError::Checksum {
        structure,
        what,
        computed,
        stored,
    })
}

impl SetNumber {
    /// The publish word that says this number. One above [`COUNT_MAX`] becomes a word that nobody believes.
    #[must_use]
    pub const fn publish_word(self) -> u64 {
        count_word(self.0)
    }

    /// What a publish word says.
    ///
    /// # Errors
    /// [`FormatError::Checksum`]: it is damaged.
    pub fn of_publish_word(word: u64) -> Result<Self, FormatError> {
        count_of(word, Structure::PublishPage, "publish word").map(Self)
    }
}

impl Term {
    /// The term word that says this term. One above [`COUNT_MAX`] becomes a word that nobody believes.
    #[must_use]
    pub const fn term_word(self) -> u64 {
        count_word(self.0)
    }

    /// What a term word says.
    ///
    /// # Errors
    /// [`FormatError::Checksum`]: it is damaged.
    pub fn of_term_word(word: u64) -> Result<Self, FormatError> {
        count_of(word, Structure::PublishPage, "term word").map(Self)
    }
}

impl LogPosition {
    /// The tail word that says this position, a multiple of 8. One above [`POSITION_MAX`], or between multiples, becomes a word that nobody
    /// believes.
    #[must_use]
    pub const fn tail_word(self) -> u64 {
        position_word(self)
    }

    /// What a tail word says.
    ///
    /// # Errors
    /// [`FormatError::Checksum`]: it is damaged.
    pub fn of_tail_word(word: u64) -> Result<Self, FormatError> {
        position_of(word, Structure::LogWords, "tail")
    }
}

const fn count_word(count: u64) -> u64 {
    let word = seal(count & COUNT_MAX, COUNT_BITS, COUNT_CODE);
    if count > COUNT_MAX { !word } else { word }
}

fn count_of(word: u64, structure: Structure, what: &'static str) -> Result<u64, FormatError> {
    open(word, COUNT_BITS, COUNT_CODE, structure, what)
}

const fn position_word(position: LogPosition) -> u64 {
    let LogPosition(bytes) = position;
    let kept = (bytes & POSITION_MAX.0) >> ALIGNMENT_BITS;
    let word = seal(kept, POSITION_BITS, POSITION_CODE);
    if kept << ALIGNMENT_BITS == bytes {
        word
    } else {
        !word
    }
}

fn position_of(
    word: u64,
    structure: Structure,
    what: &'static str,
) -> Result<LogPosition, FormatError> {
    let kept = open(word, POSITION_BITS, POSITION_CODE, structure, what)?;
    Ok(LogPosition(kept << ALIGNMENT_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn count(word: u64) -> Option<u64> {
        count_of(word, Structure::PublishPage, "publish word").ok()
    }

    fn position(word: u64) -> Option<u64> {
        let found = position_of(word, Structure::LogWords, "tail").ok()?;
        Some(found.get())
    }

    #[test]
    fn b07_words_give_what_was_put_in() {
        assert_eq!((count_word(0), position_word(LogPosition(0))), (0, 0));
        for value in [0, 1, 2, 7, 8, 1 << 20, COUNT_MAX - 1, COUNT_MAX] {
            assert_eq!(count(count_word(value)), Some(value));
        }
        for value in [
            0,
            8,
            4096,
            1 << 40,
            POSITION_MAX.get() - 8,
            POSITION_MAX.get(),
        ] {
            assert_eq!(position(position_word(LogPosition(value))), Some(value));
        }
    }

    #[test]
    fn b07_what_a_word_cannot_hold_is_not_believed() {
        for value in [COUNT_MAX + 1, u64::MAX, COUNT_MAX + 2] {
            assert_eq!(count(count_word(value)), None, "{value}");
        }
        for value in [1, 7, 9, POSITION_MAX.get() + 8, u64::MAX, u64::MAX - 7] {
            assert_eq!(position(position_word(LogPosition(value))), None, "{value}");
        }
    }

    /// The remainders of single flipped bits: a pattern of flips is overlooked if theirs cancel each other out.
    fn remainders(bits: u32, polynomial: u64) -> Vec<u64> {
        let of = |bit: u32| match bit.checked_sub(bits) {
            Some(checked) => 1 << checked,
            None => check(1 << bit, bits, polynomial),
        };
        (0..64).map(of).collect()
    }

    #[test]
    fn b07_any_five_flipped_bits_of_a_count_are_found() {
        let one = remainders(COUNT_BITS, COUNT_CODE);
        let mut two = HashSet::new();
        for (index, first) in one.iter().enumerate() {
            assert_ne!(*first, 0);
            for second in &one[..index] {
                // No two pairs cancel each other out, nor does a pair and one.
                assert!(two.insert(first ^ second));
            }
        }
        for bit in &one {
            assert!(!two.contains(bit));
            for pair in &two {
                assert!(!two.contains(&(pair ^ bit)));
            }
        }
        assert!(!two.contains(&0));
    }

    #[test]
    fn b07_any_three_flipped_bits_of_a_position_are_found() {
        let one = remainders(POSITION_BITS, POSITION_CODE);
        for (index, first) in one.iter().enumerate() {
            assert_ne!(*first, 0);
            for second in &one[..index] {
                assert!(first != second && !one.contains(&(first ^ second)));
            }
        }
    }

    #[test]
    fn b07_a_flipped_bit_is_named_as_damage() {
        let word = count_word(41) ^ (1 << 63);
        let error = count_of(word, Structure::PublishPage, "publish word").unwrap_err();
        assert!(matches!(error, FormatError::Checksum { .. }), "{error}");
    }
}
