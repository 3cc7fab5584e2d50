//! What can go wrong with snapshots.

use pmu_arena::ArenaError;

use crate::error::ClientError;

/// Result of this module's fallible functions.
pub type SnapshotResult<T> = std::result::Result<T, SnapshotError>;

/// What can go wrong with snapshots. Whatever it is, the program's memory and the earlier snapshots are untouched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// An earlier snapshot is not durable yet: wait for it.
    #[error("a snapshot is under way")]
    UnderWay,
    /// The arena doesn't fit the region's sets.
    #[error(
        "region {region}: an arena of {arena_bytes} bytes needs sets of {needed_bytes} bytes, and its sets have at most {capacity_bytes}"
    )]
    TooLarge {
        /// The region.
        region: String,
        /// Length of the arena.
        arena_bytes: u64,
        /// The longest set that it may come to.
        needed_bytes: u64,
        /// The region's longest set.
        capacity_bytes: u64,
    },
    /// The writer has ended: it was dropped meanwhile, or an earlier error ended it for good.
    #[error("no snapshots are taken any more: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
    /// The region holds sets that are snapshots, and none with a whole chain; or not the one that was asked for.
    #[error("region {region} holds no whole snapshot: {what}")]
    NotWhole {
        /// The region.
        region: String,
        /// Which sets were looked at, and what is wrong with each.
        what: String,
    },
    /// The region holds no snapshot at all, or not the one that was asked for.
    #[error("region {region} holds no {what}")]
    NoSuchSnapshot {
        /// The region.
        region: String,
        /// Which one was asked for.
        what: String,
    },
    /// The arena can't be frozen, or not mapped.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The region, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl SnapshotError {
    /// True if another instance took over: stop, for good.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_fenced())
    }

    /// True if the next snapshot may succeed without anybody doing anything: the unit is away, or one is under way.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::UnderWay => true,
            Self::Client(error) => {
                error.is_unreachable()
                    || (error.outcome_is_unknown() && !error.is_fenced())
                    || matches!(
                        error,
                        ClientError::WriterExists { .. } | ClientError::TimedOut { .. }
                    )
            }
            _ => false,
        }
    }
}
