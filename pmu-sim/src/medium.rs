//! Memory of a unit: what reads see, what a power cut leaves, and the 8-byte words that may differ between the two.

use std::ops::Range;

use crate::random::{Random, mix};

/// The grain in which a power cut tears what was not flushed.
pub(crate) const WORD_BYTES: u64 = 8;
/// Bytes that a processor's cache writes back together.
const LINE_WORDS: u64 = 8;

/// Which 8-byte words of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Words {
    /// Those before this index.
    Before(u64),
    /// Each with even chances, by this seed.
    Some(u64),
    /// Whole cache lines with even chances, by this seed.
    Lines(u64),
}

impl Words {
    pub(crate) fn draw(random: &mut Random, range: &Range<u64>) -> Self {
        let (first, last) = (range.start / WORD_BYTES, range.end.div_ceil(WORD_BYTES));
        match random.below(3) {
            0 => Self::Some(random.bits()),
            1 => Self::Lines(random.bits()),
            _ => Self::Before(random.between(first, last)),
        }
    }

    pub(crate) const fn contains(self, word: u64) -> bool {
        match self {
            Self::Before(end) => word < end,
            Self::Some(seed) => mix(seed ^ word) & 1 == 0,
            Self::Lines(seed) => mix(seed ^ (word / LINE_WORDS)) & 1 == 0,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Medium {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// One bit a word: set where the two may differ.
    unflushed: Vec<u64>,
}

impl Medium {
    pub(crate) fn new(length_bytes: u64) -> Self {
        let words = length_bytes.div_ceil(WORD_BYTES);
        Self {
            visible: vec![0; length_bytes as usize],
            durable: vec![0; length_bytes as usize],
            unflushed: vec![0; words.div_ceil(64) as usize],
        }
    }

    /// Copies bytes in, but for words that `without` contains or that `only` doesn't.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        takes: impl Fn(u64) -> bool,
        random: &mut Random,
    ) {
        let range = offset..offset + bytes.len() as u64;
        // What lay there unflushed may have been written back meanwhile.
        if random.chance(1, 8) {
            self.write_back(&range, Words::draw(random, &range));
        }
        for_each_word(&range, |word, piece| {
            if takes(word) {
                let from = (piece.start - offset) as usize..(piece.end - offset) as usize;
                self.visible[piece.start as usize..piece.end as usize]
                    .copy_from_slice(&bytes[from]);
                self.unflushed[(word / 64) as usize] |= 1 << (word % 64);
            }
        });
    }

    /// Copies bytes out, as [`Self::write`].
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8], takes: impl Fn(u64) -> bool) {
        let range = offset..offset + bytes.len() as u64;
        for_each_word(&range, |word, piece| {
            if takes(word) {
                let to = (piece.start - offset) as usize..(piece.end - offset) as usize;
                bytes[to].copy_from_slice(&self.visible[piece.start as usize..piece.end as usize]);
            }
        });
    }

    /// Makes a range durable. Gives how many words were not.
    pub(crate) fn flush(&mut self, range: &Range<u64>) -> u64 {
        self.settle(range, |_| Some(true))
    }

    /// Cuts the power: of the words that were not flushed each survives or not. Gives how many survived, and how many were lost.
    pub(crate) fn cut(&mut self, random: &mut Random) -> (u64, u64) {
        let all = 0..self.visible.len() as u64;
        let unflushed: u64 = self
            .unflushed
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        let survived = match random.below(5) {
            0 => 0,
            1 => self.flush(&all),
            _ => {
                let survivors = Words::draw(random, &all);
                self.write_back(&all, survivors)
            }
        };
        self.settle(&all, |_| Some(false));
        (survived, unflushed - survived)
    }

    /// The medium fails: words of a range are not what they were. What the processor's cache still holds is not touched.
    pub(crate) fn damage(&mut self, range: &Range<u64>, mut failed: impl FnMut(u64) -> u64) {
        for word in range.start / WORD_BYTES..range.end.div_ceil(WORD_BYTES) {
            let begin = (word * WORD_BYTES) as usize;
            let end = begin + WORD_BYTES as usize;
            let Some(bytes) = self.durable.get_mut(begin..end) else {
                return;
            };
            let mut value = [0; WORD_BYTES as usize];
            value.copy_from_slice(bytes);
            let value = failed(u64::from_le_bytes(value)).to_le_bytes();
            bytes.copy_from_slice(&value);
            let in_cache = self.unflushed[(word / 64) as usize] & (1 << (word % 64)) != 0;
            if !in_cache {
                self.visible[begin..end].copy_from_slice(&value);
            }
        }
    }

    fn write_back(&mut self, range: &Range<u64>, words: Words) -> u64 {
        self.settle(range, |word| words.contains(word).then_some(true))
    }

    /// For each unflushed word of a range: takes it to the medium (`true`), takes it back from there (`false`), or leaves it.
    fn settle(&mut self, range: &Range<u64>, decide: impl Fn(u64) -> Option<bool>) -> u64 {
        let (first, last) = (range.start / WORD_BYTES, range.end.div_ceil(WORD_BYTES));
        let mut settled = 0;
        for index in first / 64..last.div_ceil(64) {
            let mut left = self.unflushed[index as usize];
            while left != 0 {
                let bit = u64::from(left.trailing_zeros());
                left &= left - 1;
                let word = index * 64 + bit;
                if word < first || word >= last {
                    continue;
                }
                let Some(to_medium) = decide(word) else {
                    continue;
                };
                let begin = (word * WORD_BYTES) as usize;
                let end = (begin + WORD_BYTES as usize).min(self.visible.len());
                if to_medium {
                    self.durable[begin..end].copy_from_slice(&self.visible[begin..end]);
                } else {
                    self.visible[begin..end].copy_from_slice(&self.durable[begin..end]);
                }
                self.unflushed[index as usize] &= !(1 << bit);
                settled += 1;
            }
        }
        settled
    }
}

/// Cuts a range at the borders of words.
fn for_each_word(range: &Range<u64>, mut each: impl FnMut(u64, Range<u64>)) {
    let mut at = range.start;
    while at < range.end {
        let word = at / WORD_BYTES;
        let end = ((word + 1) * WORD_BYTES).min(range.end);
        each(word, at..end);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b07_a_failed_word_is_wrong_for_good_and_one_in_the_cache_is_not_lost() {
        let mut random = Random::new(1);
        let mut medium = Medium::new(64);
        medium.write(0, &[7; 64], |_| true, &mut random);
        medium.flush(&(0..64));
        medium.write(8, &[9; 8], |_| true, &mut random);
        medium.damage(&(0..16), |word| word ^ 1);
        let mut bytes = [0; 24];
        medium.read(0, &mut bytes, |_| true);
        assert_eq!(bytes[..8], [6, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!(bytes[16..], [7; 8]);
        medium.flush(&(0..64));
        medium.read(0, &mut bytes, |_| true);
        assert_eq!(bytes[8], if bytes[9] == 9 { 9 } else { 6 });
    }

    #[test]
    fn b05_a_flushed_word_outlives_the_power_and_an_unflushed_one_may_not() {
        let (mut lost_any, mut survived_any) = (false, false);
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let mut medium = Medium::new(4096);
            medium.write(3, &[7; 500], |_| true, &mut random);
            assert_eq!(medium.flush(&(3..100)), 13);
            let (survived, lost) = medium.cut(&mut random);
            assert_eq!(survived + lost, 63 - 13);
            let mut bytes = [0; 500];
            medium.read(3, &mut bytes, |_| true);
            assert_eq!(bytes[..97], [7; 97]);
            // A word survives whole or not at all.
            for word in bytes[101..].chunks_exact(8) {
                assert!(word == [7; 8] || word == [0; 8], "{word:?}");
            }
            lost_any |= lost > 0;
            survived_any |= survived > 0;
        }
        assert!(lost_any && survived_any);
    }
}
