//! Ranges of bytes in a memory, and the merging of ranges that touch.

use crate::error::AccessError;

/// `len` bytes from `offset` on. Ends past 2^64 are possible here and refused by every use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct ByteRange {
    /// First byte.
    pub(crate) offset: u64,
    /// Length in bytes; zero is an empty range.
    pub(crate) len: u64,
}

impl ByteRange {
    /// `len` bytes from `offset` on.
    pub(crate) const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// The offset behind the last byte, or none where that is past 2^64.
    pub(crate) const fn end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }

    /// The range as indices into a memory of `memory_len` bytes.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`] where any byte of it lies outside.
    pub(crate) fn check(self, memory_len: usize) -> Result<(usize, usize), AccessError> {
        let refused = AccessError::OutOfBounds {
            offset: self.offset,
            len: self.len,
            memory_len: memory_len as u64,
        };
        let end = self.end().ok_or(refused)?;
        if end > memory_len as u64 {
            return Err(refused);
        }
        // Both are at most `memory_len`, which is a usize.
        Ok((self.offset as usize, self.len as usize))
    }

    /// The smallest range of whole grains that holds this one, cut at `memory_len`.
    fn widened(self, grain: u64, memory_len: u64) -> Self {
        let start = self.offset / grain * grain;
        let end = (self.offset + self.len)
            .div_ceil(grain)
            .saturating_mul(grain)
            .min(memory_len);
        Self {
            offset: start,
            len: end - start,
        }
    }
}

/// Widens ranges to whole grains, sorts them and merges those that overlap or touch.
///
/// Works in place and allocates nothing; the merged ranges are the first ones of `ranges`, their
/// number is returned. Each range lies inside `memory_len` (checked by the caller). Empty ranges
/// vanish.
pub(crate) fn coalesce(ranges: &mut [ByteRange], grain: u64, memory_len: u64) -> usize {
    for range in ranges.iter_mut().filter(|range| range.len > 0) {
        *range = range.widened(grain, memory_len);
    }
    ranges.sort_unstable_by_key(|range| range.offset);
    let mut count = 0;
    for index in 0..ranges.len() {
        let range = ranges[index];
        if range.len == 0 {
            continue;
        }
        if count > 0 {
            let last = &mut ranges[count - 1];
            let last_end = last.offset + last.len;
            if range.offset <= last_end {
                last.len = last_end.max(range.offset + range.len) - last.offset;
                continue;
            }
        }
        ranges[count] = range;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merged(mut ranges: Vec<ByteRange>, grain: u64, memory_len: u64) -> Vec<ByteRange> {
        let count = coalesce(&mut ranges, grain, memory_len);
        ranges.truncate(count);
        ranges
    }

    #[test]
    fn neighbours_and_overlaps_become_one() {
        let ranges = vec![
            ByteRange::new(5000, 10),
            ByteRange::new(0, 1),
            ByteRange::new(4095, 2),
            ByteRange::new(20000, 0),
            ByteRange::new(16384, 4096),
        ];
        assert_eq!(
            merged(ranges, 4096, 1 << 20),
            [ByteRange::new(0, 8192), ByteRange::new(16384, 4096)]
        );
    }

    #[test]
    fn the_last_grain_is_cut_at_the_end_of_the_memory() {
        assert_eq!(
            merged(vec![ByteRange::new(4097, 1)], 4096, 5000),
            [ByteRange::new(4096, 904)]
        );
    }

    #[test]
    fn ranges_past_the_end_are_refused() {
        for (offset, len) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(
                ByteRange::new(offset, len).check(10).is_err(),
                "{offset}+{len}"
            );
        }
        assert_eq!(ByteRange::new(10, 0).check(10), Ok((10, 0)));
        assert_eq!(ByteRange::new(0, 10).check(10), Ok((0, 10)));
    }

    proptest! {
        #[test]
        fn coalescing_covers_what_was_asked_and_is_disjoint(
            asked in prop::collection::vec((0u64..5000, 0u64..300), 0..40),
            grain in prop::sample::select(vec![1u64, 64, 4096]),
        ) {
            let memory_len = 5300;
            let asked: Vec<_> = asked.into_iter().map(|(o, l)| ByteRange::new(o, l)).collect();
            let out = merged(asked.clone(), grain, memory_len);
            for pair in out.windows(2) {
                prop_assert!(pair[0].end().unwrap() < pair[1].offset);
            }
            for byte in 0..memory_len {
                let holds = |ranges: &[ByteRange], start: u64, end: u64| ranges
                    .iter()
                    .any(|r| r.len > 0 && r.offset < end && r.offset + r.len > start);
                let grain_start = byte / grain * grain;
                let wanted = holds(&asked, grain_start, grain_start + grain);
                prop_assert_eq!(holds(&out, byte, byte + 1), wanted, "byte {}", byte);
            }
        }
    }
}
