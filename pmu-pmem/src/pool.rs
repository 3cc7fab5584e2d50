//! The memory of one pool.

use std::fs::File;
use std::ops::{Deref, Range};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use crate::error::{PmemError, Result};
use crate::mapping::Mapping;
use crate::open::{self, CreateOptions};
use crate::persist::{Failure, Persistence, Persister};
use crate::spec::{Medium, PoolSpec};

/// The memory of one pool: mapped, locked against other units, and made durable by
/// [`Self::persist`].
///
/// It dereferences to [`Mapping`] for the accessors. Every method may be called from any thread at
/// any time. Dropping it unmaps the memory and gives the lock back; it makes nothing durable.
///
/// **Two things kill the process** (SIGBUS), as they would any program that maps its data:
/// truncating the file of a pool in use, and an uncorrectable error of the medium under a load. The
/// first is refused at `open` and [`Self::check_length`]; the second ends the unit, which is a
/// failure of the unit that its clients see and survive.
#[derive(Debug)]
pub struct PoolMemory {
    // The order matters: unmapped first, unlocked last.
    mapping: Mapping,
    file: Flock<File>,
    /// Holds an abstract socket name for a device, whose nodes may be several.
    _device_lock: Option<UnixDatagram>,
    path: PathBuf,
    persistence: Persistence,
    failure: Failure,
}

/// What `open` found and locked; see the module `open`.
pub(crate) struct Parts {
    pub(crate) mapping: Mapping,
    pub(crate) file: Flock<File>,
    pub(crate) device_lock: Option<UnixDatagram>,
    pub(crate) path: PathBuf,
    pub(crate) persistence: Persistence,
}

impl PoolMemory {
    /// Opens and maps a pool that exists, all of it, and locks it against other units.
    ///
    /// Blocks while the file system answers. Changes no byte.
    ///
    /// # Errors
    /// [`PmemError::InUse`]; [`PmemError::WrongMedium`] where the path lies on something else than
    /// `spec` says, so a volatile one is never taken for a durable one; [`PmemError::BadLength`];
    /// [`PmemError::BadSpec`] for a memfd, which can only be created; [`PmemError::NoSpace`] where
    /// the file has holes that can't be filled; [`PmemError::NoWriteBack`]; [`PmemError::Io`].
    pub fn open(spec: &PoolSpec) -> Result<Self> {
        open::open(spec).map(Self::from)
    }

    /// Creates the memory of a new pool, maps it and locks it against other units.
    ///
    /// A file is allocated wholly, and on a durable medium its zeros are written and durable on
    /// return (a later persist then needs no change of metadata), as is its entry in the directory.
    /// This takes time: `options.progress` tells how far it is. A device keeps the bytes it has.
    /// Where it fails, a file that it made is removed again.
    ///
    /// # Errors
    /// As [`Self::open`], and [`PmemError::Exists`], [`PmemError::NoSpace`].
    pub fn create(spec: &PoolSpec, options: CreateOptions<'_>) -> Result<Self> {
        open::create(spec, options).map(Self::from)
    }

    /// What the pool lies on.
    #[must_use]
    pub const fn medium(&self) -> Medium {
        self.persistence.medium
    }

    /// What can be said of its durability.
    #[must_use]
    pub const fn persistence(&self) -> Persistence {
        self.persistence
    }

    /// The file or device; `memory` for a memfd.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes every byte of the ranges durable that was written and visible before the call, whoever
    /// wrote it: this thread, another one that handed over, or a NIC whose completion was seen.
    ///
    /// Blocks until the medium has them. Ranges that overlap or touch are merged. Whole cache lines
    /// (DAX) or pages (files) are written back, so neighbours may become durable too, and any byte
    /// may become durable at any earlier time. Nothing is promised of the order within one call. On
    /// a volatile medium (`!self.medium().is_durable()`) it only orders stores.
    ///
    /// Allocates nothing. Any thread; calls run side by side.
    ///
    /// # Errors
    /// [`PmemError::Access`] for a range outside: nothing was done. [`PmemError::Persist`] where
    /// the kernel could not write: some of the bytes may be lost for good, and from then on every
    /// call fails with [`PmemError::PoolFailed`].
    pub fn persist(&self, ranges: &[Range<u64>]) -> Result<()> {
        self.persister().persist(ranges)
    }

    /// Hints that a range is complete and will be persisted soon: its write-back starts now, beside
    /// whatever comes next.
    ///
    /// Nothing is durable by it. A range outside is ignored. May block a little where the device's
    /// queue is full.
    pub fn start_write_back(&self, range: Range<u64>) {
        self.persister().start(&range);
    }

    /// The error number of the first failed persist; none while the pool is sound.
    #[must_use]
    pub fn failure(&self) -> Option<i32> {
        self.failure.errno()
    }

    /// Looks whether the file still has the length that was mapped.
    ///
    /// # Errors
    /// [`PmemError::CutShort`]: touching what was cut off kills the process. [`PmemError::Io`].
    pub fn check_length(&self) -> Result<()> {
        if self.medium() == Medium::Devdax {
            return Ok(());
        }
        let metadata = self.file.metadata().map_err(|source| PmemError::Io {
            action: "look at the length",
            path: self.path.clone(),
            source,
        })?;
        if metadata.len() < self.len() {
            return Err(PmemError::CutShort {
                path: self.path.clone(),
                expected_bytes: self.len(),
                found_bytes: metadata.len(),
            });
        }
        Ok(())
    }

    fn persister(&self) -> Persister<'_> {
        Persister {
            mapping: &self.mapping,
            file: &self.file,
            path: &self.path,
            method: self.persistence.method,
            failure: &self.failure,
        }
    }
}

impl From<Parts> for PoolMemory {
    fn from(parts: Parts) -> Self {
        Self {
            mapping: parts.mapping,
            file: parts.file,
            _device_lock: parts.device_lock,
            path: parts.path,
            persistence: parts.persistence,
            failure: Failure::default(),
        }
    }
}

impl Deref for PoolMemory {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}
