//! The memory under a pool, as the engine sees it: so that tests can lose unpersisted bytes at
//! every step.

use std::ops::Range;

use pmu_format::Medium;
use pmu_pmem::{PmemError, PoolMemory};

/// The memory of one pool. [`PoolMemory`] is the real one.
///
/// Offsets and lengths are in bytes from the start of the memory. All methods may be called from
/// any thread.
pub trait PoolMedium: Send + Sync {
    /// The file or device, for messages.
    fn place(&self) -> String;
    /// Length in bytes.
    fn length_bytes(&self) -> u64;
    /// What the memory lies on.
    fn medium(&self) -> Medium;
    /// Copies bytes out.
    ///
    /// # Errors
    /// A range outside of the memory.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PmemError>;
    /// Copies bytes in. Not durable.
    ///
    /// # Errors
    /// A range outside of the memory.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), PmemError>;
    /// Zeroes bytes. Not durable.
    ///
    /// # Errors
    /// A range outside of the memory.
    fn zero(&self, offset: u64, length_bytes: u64) -> Result<(), PmemError>;
    /// Hints that a range will be persisted soon.
    fn start_write_back(&self, range: Range<u64>);
    /// Makes ranges durable; blocks.
    ///
    /// # Errors
    /// The medium failed, now or earlier.
    fn persist(&self, ranges: &[Range<u64>]) -> Result<(), PmemError>;
    /// Looks whether the memory still has its length.
    ///
    /// # Errors
    /// It was cut short.
    fn check_length(&self) -> Result<(), PmemError>;
}

impl PoolMedium for PoolMemory {
    fn place(&self) -> String {
        self.path().display().to_string()
    }

    fn length_bytes(&self) -> u64 {
        self.len()
    }

    fn medium(&self) -> Medium {
        from_pmem(Self::medium(self))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PmemError> {
        Ok((**self).read_at(offset, bytes)?)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), PmemError> {
        Ok((**self).write_at(offset, bytes)?)
    }

    fn zero(&self, offset: u64, length_bytes: u64) -> Result<(), PmemError> {
        Ok((**self).zero(offset, length_bytes)?)
    }

    fn start_write_back(&self, range: Range<u64>) {
        Self::start_write_back(self, range);
    }

    fn persist(&self, ranges: &[Range<u64>]) -> Result<(), PmemError> {
        Self::persist(self, ranges)
    }

    fn check_length(&self) -> Result<(), PmemError> {
        Self::check_length(self)
    }
}

/// The format's word for a medium.
#[must_use]
pub const fn from_pmem(medium: pmu_pmem::Medium) -> Medium {
    match medium {
        pmu_pmem::Medium::Devdax => Medium::Devdax,
        pmu_pmem::Medium::Fsdax => Medium::Fsdax,
        pmu_pmem::Medium::Hugetlbfs => Medium::Hugetlbfs,
        pmu_pmem::Medium::Memory => Medium::Memory,
        pmu_pmem::Medium::File => Medium::File,
    }
}

/// The mapping's word for a medium.
#[must_use]
pub const fn to_pmem(medium: Medium) -> pmu_pmem::Medium {
    match medium {
        Medium::Devdax => pmu_pmem::Medium::Devdax,
        Medium::Fsdax => pmu_pmem::Medium::Fsdax,
        Medium::Hugetlbfs => pmu_pmem::Medium::Hugetlbfs,
        Medium::Memory => pmu_pmem::Medium::Memory,
        Medium::File => pmu_pmem::Medium::File,
    }
}
