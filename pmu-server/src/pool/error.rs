//! Why a pool refuses.

use pmu_format::{CopiesError, Epoch, FormatError, Medium, RegionId, RegionName, VirtualAddress};
use pmu_pmem::PmemError;

/// Why a pool, or a change of one, is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The memory could not be opened, created, reached or made durable.
    #[error(transparent)]
    Memory(#[from] PmemError),
    /// There is no pool: `init` never ran here, or was cut short.
    #[error("{place}: not a pool")]
    NotAPool {
        /// The file or device.
        place: String,
        /// What stands where the superblock should.
        source: CopiesError,
    },
    /// A pool of a version that this program doesn't know.
    #[error("{place}: a pool of version {found}, and this program knows version {known} only")]
    Version {
        /// The file or device.
        place: String,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It is a pool, and nothing is left of it that could be relied on.
    #[error("{place}: the pool is damaged")]
    Damaged {
        /// The file or device.
        place: String,
        /// What is wrong with the copies.
        source: CopiesError,
    },
    /// The memory is shorter than the pool that it held.
    #[error("{place}: pool cut short: {found_bytes} bytes of {expected_bytes}")]
    CutShort {
        /// The file or device.
        place: String,
        /// Bytes that the superblock says.
        expected_bytes: u64,
        /// Bytes that there are.
        found_bytes: u64,
    },
    /// The pool was made on another medium: what it promised its regions may not hold here.
    #[error("{place}: the pool was made on {recorded}, and lies on {found} now")]
    MediumChanged {
        /// The file or device.
        place: String,
        /// The medium in the superblock.
        recorded: Medium,
        /// The medium it is opened on.
        found: Medium,
    },
    /// `init` would destroy a pool, and was not told to.
    #[error("{place}: holds a pool already; it would be lost")]
    HoldsPool {
        /// The file or device.
        place: String,
    },
    /// No pool can be laid out in this length, or with tables of this length.
    #[error("{place}: no pool can be laid out")]
    BadLayout {
        /// The file or device.
        place: String,
        /// Why not.
        source: FormatError,
    },
    /// A region's size, sets, grants or attributes are not possible.
    #[error("region {name}")]
    BadRegion {
        /// The region's name.
        name: RegionName,
        /// Why not.
        source: FormatError,
    },
    /// Another region has this name, or is being made with it.
    #[error("region {name}: the name is taken")]
    NameTaken {
        /// The name.
        name: RegionName,
    },
    /// No region has this id.
    #[error("no region {id}")]
    NoSuchRegion {
        /// The id.
        id: RegionId,
    },
    /// The region is being erased: it can't be used any more.
    #[error("region {id}: it is being erased")]
    BeingErased {
        /// The region.
        id: RegionId,
    },
    /// The region needs a durable medium, and the pool is volatile.
    #[error("region {name}: needs to be durable, and the pool lies on {medium}, which is volatile")]
    NeedsDurable {
        /// The region's name.
        name: RegionName,
        /// The pool's medium.
        medium: Medium,
    },
    /// Not enough free bytes.
    #[error("region {name}: needs {needed_bytes} bytes, {free_bytes} are free")]
    NoRoom {
        /// The region's name.
        name: RegionName,
        /// Bytes that it needs.
        needed_bytes: u64,
        /// Free bytes of the pool.
        free_bytes: u64,
    },
    /// The change does not fit the region table.
    #[error("the region table needs {needed_bytes} bytes, and has room for {room_bytes}")]
    TableFull {
        /// Bytes of the new table.
        needed_bytes: u64,
        /// Bytes of one copy.
        room_bytes: u64,
    },
    /// Virtual addresses are never used twice, and there are none left.
    #[error("the pool's virtual addresses are used up")]
    AddressesUsedUp,
    /// An epoch never goes back.
    #[error("region {id}: epoch {asked} is older than {present}")]
    EpochTooOld {
        /// The region.
        id: RegionId,
        /// Its epoch.
        present: Epoch,
        /// The one that was to be set.
        asked: Epoch,
    },
    /// The addresses don't lie in the region.
    #[error("region {id}: {length_bytes} bytes at address {address} are not its own")]
    OutsideRegion {
        /// The region.
        id: RegionId,
        /// First address.
        address: VirtualAddress,
        /// Length in bytes.
        length_bytes: u64,
    },
    /// An earlier change met an error while it was being made durable. Opening the pool anew finds
    /// out what of it there is.
    #[error("{place}: an earlier change failed; the pool has to be opened anew")]
    Failed {
        /// The file or device.
        place: String,
    },
    /// The system gave no random bytes.
    #[error("get random bytes")]
    Random(#[source] getrandom::Error),
}
