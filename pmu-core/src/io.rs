//! What goes out of the deciders: reads and words to write.

use pmu_format::{RegionOffset, RegionPiece};

/// A range of the region that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadRequest {
    /// Where it begins in the region.
    pub offset: RegionOffset,
    /// How many bytes.
    pub length_bytes: u64,
}

/// Eight bytes, little-endian, to be written with one ATOMIC WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WordWrite {
    /// Where the word stands in the region: a multiple of 8.
    pub offset: RegionOffset,
    /// Its new value.
    pub value: u64,
}

impl WordWrite {
    /// The range to FLUSH so that the word is durable.
    #[must_use]
    pub const fn flush_range(&self) -> RegionPiece {
        RegionPiece {
            offset: self.offset,
            length_bytes: 8,
        }
    }
}

/// Why bytes were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// Nobody asked for them, or what asked for them is over: drop them.
    #[error("bytes that nobody waits for")]
    Unexpected,
    /// Another number of bytes was asked for.
    #[error("{found_bytes} bytes, {needed_bytes} were asked for")]
    Length {
        /// How many came.
        found_bytes: u64,
        /// How many were asked for.
        needed_bytes: u64,
    },
}
