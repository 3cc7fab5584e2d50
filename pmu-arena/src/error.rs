//! Errors of this crate: typed values, with their source kept.

use std::io;

/// What can go wrong with an arena.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// A length, address or option that can't be served. Nothing was mapped.
    #[error("arena: {reason}")]
    BadOptions {
        /// Why it is refused.
        reason: &'static str,
    },
    /// Memory could not be mapped.
    #[error("map {len_bytes} bytes{}", address.map(|at| format!(" at {at:#x}")).unwrap_or_default())]
    NoMemory {
        /// Bytes asked for.
        len_bytes: usize,
        /// Where they were to lie, if that was asked for.
        address: Option<usize>,
        /// What the kernel said.
        source: io::Error,
    },
    /// This kernel or its settings don't let this program protect pages with userfaultfd.
    #[error("userfaultfd is not possible: {action}")]
    NotPossible {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The mapping can't be watched: it is shared, of a file, or not mapped at all.
    #[error("the mapping can't be watched: it has to be private and anonymous")]
    NotWatchable {
        /// What the kernel said.
        source: io::Error,
    },
    /// A frozen image of this arena exists already.
    #[error("an image is being taken already")]
    Frozen,
    /// An earlier call of the kernel failed and the arena isn't watched any more. The program goes
    /// on; nothing can be frozen.
    #[error("the arena is not watched any more since an earlier failure")]
    Lost,
    /// The range doesn't lie inside the arena, or not on the boundaries it has to.
    #[error(
        "{len} bytes at {offset} do not lie inside the arena's {arena_len} bytes, or not aligned"
    )]
    OutOfBounds {
        /// First byte of the range.
        offset: usize,
        /// Length of the range in bytes.
        len: usize,
        /// Length of the arena in bytes.
        arena_len: usize,
    },
    /// The arena has a heap, whose bytes belong to those that allocated them.
    #[error("the arena's bytes belong to its heap")]
    HasHeap,
    /// What was restored is no heap of this program at this address.
    #[error("the image holds no heap of this program at this place: {reason}")]
    BadImage {
        /// What doesn't agree.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ArenaError {
    pub(crate) fn io(action: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self::Io { action, source }
    }
}

/// Result of this crate's fallible functions.
pub type Result<T, E = ArenaError> = std::result::Result<T, E>;
