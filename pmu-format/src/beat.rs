//! The heartbeat of a region's writer: one word in the publish page, the same in both modes.

use crate::{Epoch, RegionOffset};

/// Where the beat stands, in the publish page. It changes only by ATOMIC WRITE, and is never flushed: it says who lives, not what is kept.
pub const BEAT_OFFSET: RegionOffset = RegionOffset(192);
/// How many bytes it has.
pub const BEAT_BYTES: usize = 8;

/// A beat: whose it is, and the how manieth.
///
/// ```text
/// bits 32-63  the lower 32 bits of the writer's epoch
/// bits  0-31  the count of beats in that epoch, from 1; behind 2^32 - 1 comes 1
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beat {
    /// The lower 32 bits of the writer's epoch.
    pub epoch_low: u32,
    /// The count, from 1.
    pub count: u32,
}

impl Beat {
    /// The beat behind `count` beats of an epoch.
    #[must_use]
    pub const fn after(epoch: Epoch, count: u32) -> Self {
        let next = match count.checked_add(1) {
            Some(next) => next,
            None => 1,
        };
        Self {
            epoch_low: epoch.get() as u32,
            count: next,
        }
    }

    /// The word.
    #[must_use]
    pub const fn encode(self) -> u64 {
        ((self.epoch_low as u64) << 32) | self.count as u64
    }

    /// Reads the word; `None` where nobody has ever beaten. Any other word is a beat: there is nothing in it to be trusted but that it changes.
    #[must_use]
    pub const fn decode(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self {
            epoch_low: (word >> 32) as u32,
            count: word as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s05_golden_beat() {
        let beat = Beat::after(Epoch(0x1_0000_0007), 0x0102_0303);
        assert_eq!(beat.encode().to_le_bytes(), [4, 3, 2, 1, 7, 0, 0, 0]);
        assert_eq!(Beat::decode(beat.encode()), Some(beat));
        assert_eq!(Beat::decode(0), None);
    }

    #[test]
    fn s05_counts_never_come_to_nothing() {
        assert_eq!(Beat::after(Epoch(3), u32::MAX).count, 1);
        assert_ne!(Beat::after(Epoch(0), u32::MAX).encode(), 0);
    }
}
