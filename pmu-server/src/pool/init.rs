//! Making a pool.

use std::sync::Arc;
use std::time::SystemTime;

use pmu_format::{
    CopyName, PAGE_BYTES, PoolId, RegionTable, Superblock, TABLE_LENGTH_DEFAULT_BYTES,
    VirtualAddress,
};
use pmu_pmem::{CreateOptions, PmemError, PoolMemory, PoolSpec};

use super::copies::{self, superblock_offset};
use super::error::PoolError;
use super::medium::PoolMedium;
use super::{Pool, from_pmem};

/// Virtual addresses begin above 32 bits, so that an offset that is taken for an address is never
/// one; and 16 TiB apart for pools whose ids differ in their first 16 bits, so that one unit can
/// serve several pools.
fn first_address(pool_id: PoolId) -> VirtualAddress {
    let [low, high, ..] = *pool_id.as_bytes();
    VirtualAddress((u64::from(u16::from_le_bytes([low, high])) + 1) << 44)
}

/// How a pool is made.
pub struct InitOptions<'a> {
    /// Length in bytes; none is the whole device, and refused for all but devdax.
    pub length_bytes: Option<u64>,
    /// Length of one copy of the region table: a multiple of 4096 from 64 KiB to 16 MiB.
    pub table_length_bytes: u64,
    /// Replace what is there, even a pool.
    pub force: bool,
    /// Called with the bytes done and the bytes in all while a file's zeros are written.
    pub progress: Option<&'a mut dyn FnMut(u64, u64)>,
}

impl Default for InitOptions<'_> {
    fn default() -> Self {
        Self {
            length_bytes: None,
            table_length_bytes: TABLE_LENGTH_DEFAULT_BYTES,
            force: false,
            progress: None,
        }
    }
}

impl std::fmt::Debug for InitOptions<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("InitOptions")
            .field("length_bytes", &self.length_bytes)
            .field("table_length_bytes", &self.table_length_bytes)
            .field("force", &self.force)
            .finish_non_exhaustive()
    }
}

/// See [`Pool::init`].
pub(super) fn init(
    spec: &PoolSpec,
    options: InitOptions<'_>,
) -> Result<Pool<PoolMemory>, PoolError> {
    if let Some(length_bytes) = options.length_bytes {
        // Before a file is made, and an old one lost.
        let medium = from_pmem(spec.medium());
        Superblock::new(
            PoolId([0; 16]),
            length_bytes,
            options.table_length_bytes,
            0,
            medium,
        )
        .map_err(|source| PoolError::BadLayout {
            place: spec.to_string(),
            source,
        })?;
    }
    let create = CreateOptions {
        len: options.length_bytes,
        replace: options.force,
        progress: options.progress,
    };
    let memory = PoolMemory::create(spec, create).map_err(|error| holds_pool(spec, error))?;
    let pool = Pool::format(Arc::new(memory), options.table_length_bytes, options.force)?;
    // Memory without a path was made by the call above, of zeros, and nobody else has it.
    if spec.path().is_none() {
        pool.control.lock().begins_zeroed();
    }
    Ok(pool)
}

/// Says of a file that exists whether a pool would be lost.
fn holds_pool(spec: &PoolSpec, error: PmemError) -> PoolError {
    if !matches!(error, PmemError::Exists { .. }) {
        return error.into();
    }
    match PoolMemory::open(spec) {
        Ok(memory) if copies::looks_like_a_pool(&memory).unwrap_or(false) => PoolError::HoldsPool {
            place: memory.place(),
        },
        _ => error.into(),
    }
}

impl<M: PoolMedium> Pool<M> {
    /// Lays an empty pool out over all of a memory, and opens it.
    ///
    /// The order: both superblock pages durably zero (an older pool is gone), both tables durable,
    /// superblock B durable, superblock A durable. Cut short before B is, it is not a pool; after
    /// that it is whole.
    ///
    /// # Errors
    /// As [`Pool::init`].
    pub fn format(memory: Arc<M>, table_length_bytes: u64, force: bool) -> Result<Self, PoolError> {
        let bad_layout = |source| PoolError::BadLayout {
            place: memory.place(),
            source,
        };
        let superblock = Superblock::new(
            PoolId(random_id()?),
            memory.length_bytes(),
            table_length_bytes,
            seconds_since_1970(),
            memory.medium(),
        )
        .map_err(bad_layout)?;
        if !force && copies::looks_like_a_pool(&*memory)? {
            return Err(PoolError::HoldsPool {
                place: memory.place(),
            });
        }
        let table = RegionTable::empty(superblock.pool_id(), first_address(superblock.pool_id()));
        let image = copies::table_image(&superblock, &table).map_err(bad_layout)?;
        let superblocks =
            superblock_offset(CopyName::A)..superblock_offset(CopyName::B) + PAGE_BYTES;
        memory.zero(superblocks.start, superblocks.end - superblocks.start)?;
        copies::persist_one(&*memory, superblocks)?;
        for copy in [CopyName::B, CopyName::A] {
            copies::write_table(&*memory, &superblock, &image, copy)?;
        }
        for copy in [CopyName::B, CopyName::A] {
            copies::write_superblock(&*memory, &superblock, copy)?;
        }
        Ok(Self::assemble(memory, superblock, table))
    }
}

pub(super) fn random_id() -> Result<[u8; 16], PoolError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(PoolError::Random)?;
    Ok(id)
}

pub(super) fn seconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
