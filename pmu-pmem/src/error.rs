//! Errors of this crate: typed values, with their source kept.

use std::io;
use std::path::PathBuf;

use crate::spec::Medium;

/// An access that the bounds or the alignment forbid. Nothing was read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The range does not lie inside the memory.
    #[error("{len} bytes at {offset} do not lie inside {memory_len} bytes")]
    OutOfBounds {
        /// First byte of the range.
        offset: u64,
        /// Length of the range in bytes.
        len: u64,
        /// Length of the memory in bytes.
        memory_len: u64,
    },
    /// The offset of an 8-byte word is not at a multiple of 8.
    #[error("the word at {offset} is not aligned to 8 bytes")]
    Misaligned {
        /// Offset of the word in bytes.
        offset: u64,
    },
    /// The caller gave no scratch space to copy through.
    #[error("the scratch buffer is empty")]
    NoScratch,
}

impl From<AccessError> for io::Error {
    fn from(error: AccessError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// What can go wrong with the memory of a pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PmemError {
    /// An access outside of the memory, or not aligned.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Another process (or this one) has the pool open.
    #[error("{path}: in use by another unit")]
    InUse {
        /// The file or device.
        path: PathBuf,
    },
    /// The pool lies on something else than its specification says.
    #[error("{path}: not {medium}: {found}")]
    WrongMedium {
        /// The file or device.
        path: PathBuf,
        /// What the specification names.
        medium: Medium,
        /// What was found, as a phrase.
        found: String,
    },
    /// The specification is not one of those that [`crate::PoolSpec`] lists.
    #[error("{text:?} is not a pool: {reason}")]
    BadSpec {
        /// What was given.
        text: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The file was there already, and the caller did not ask to replace it.
    #[error("{path}: exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The length is unusable on this medium.
    #[error("{path}: a length of {len_bytes} bytes: {reason}")]
    BadLength {
        /// The file or device.
        path: PathBuf,
        /// The length asked for, or found.
        len_bytes: u64,
        /// Why it is refused.
        reason: String,
    },
    /// The file is shorter than it was.
    #[error("{path}: pool file cut short: {found_bytes} bytes of {expected_bytes}")]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Bytes there were.
        expected_bytes: u64,
        /// Bytes there are.
        found_bytes: u64,
    },
    /// The file system, or the memory, has no room for the pool.
    #[error("{path}: no room for {needed_bytes} bytes on {medium}")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The medium.
        medium: Medium,
        /// Bytes that the pool needs.
        needed_bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// This processor has no instruction that writes back cache lines.
    #[error("this processor has no cache-line write-back that this program knows")]
    NoWriteBack,
    /// A system call failed.
    #[error("{path}: {action}")]
    Io {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// The file or device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel could not make bytes durable. It may have dropped them, so the pool has failed.
    #[error("{path}: make durable")]
    Persist {
        /// The file or device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// An earlier persist failed. Nothing is made durable any more until the pool is opened anew.
    #[error("{path}: the pool has failed: an earlier write-back met error {errno}")]
    PoolFailed {
        /// The file or device.
        path: PathBuf,
        /// The error number of the first failure.
        errno: i32,
    },
    /// Memory could not be had.
    #[error("allocate {len_bytes} bytes of memory")]
    NoMemory {
        /// Bytes asked for.
        len_bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Result of this crate's fallible functions.
pub type Result<T, E = PmemError> = std::result::Result<T, E>;
