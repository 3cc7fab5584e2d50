//! What lies on media, as types: superblock, region table, set headers, log records, names, ids
//! and checksums; bytes in, values out. This crate never maps memory, never knows a transport and
//! never decides what is written when.
//!
//! The layout itself is described in `docs/format.md`; this crate is that document in code. Sizes
//! and offsets are asserted at compile time, and golden images in `tests/` pin every structure.
//!
//! Everything that decodes takes bytes that nobody has checked: no length, count or offset is
//! believed before it was compared with the bounds that the caller knows, and whatever is wrong
//! comes back as a [`FormatError`] that says which structure, what was found and what was
//! expected. Nothing here panics on bytes from media.
//!
//! Where to start:
//!
//! * [`Superblock`] and [`RegionTable`] describe a pool; [`choose_superblock`] and
//!   [`choose_table`] pick the newest valid of two copies.
//! * [`SetGeometry`] and [`SetHeader`] describe a region in overwrite mode.
//! * [`LogGeometry`] and [`RecordHeader`] describe a region in append mode.
//! * [`Digest`] computes a CRC-64/NVME chunk by chunk, beside a copy.

#![forbid(unsafe_code)]

mod beat;
mod bytes;
pub mod checksum;
mod copies;
mod error;
#[doc(hidden)]
pub mod fuzz_entry;
mod log;
mod names;
#[cfg(feature = "planted-bugs")]
pub mod planted;
mod set;
mod share;
mod snapshot;
mod spread;
mod superblock;
mod table;
mod table_check;
mod term;
mod units;
mod word;

pub use beat::{BEAT_BYTES, BEAT_OFFSET, Beat};
pub use checksum::{Digest, crc32c, crc64_nvme};
pub use copies::{
    Chosen, CopiesError, CopyFault, CopyName, OtherCopy, choose_superblock, choose_table,
};
pub use error::{FormatError, Structure};
pub use log::{
    CursorPair, LOG_CURSOR_INVERSE_OFFSET, LOG_CURSOR_OFFSET, LOG_EPOCH_OFFSET, LOG_RING_OFFSET,
    LOG_TAIL_OFFSET, LogGeometry, LogPublishWords, PAGE_PAIR_BYTES, Pieces, RECORD_ALIGNMENT_BYTES,
    RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, RegionPiece, record_length_bytes,
    record_payload_checksum, record_payload_digest,
};
pub use names::{NAME_BYTES_MAX, NameError, PrincipalName, RegionName};
pub use set::{
    CHUNK_BYTES, CHUNK_CHECKSUM_BYTES, LABEL_BYTES, Label, LabelError, SET_HEADER_BYTES, SET_MAGIC,
    SETS_KEPT_MAX, SetGeometry, SetHeader, SlotIndex, chunk_checksum_at, chunk_count,
    put_chunk_checksum,
};
pub use share::{RECORD_SHARE_BYTES, RECORD_SHARE_MAGIC, RecordShare, spread_record_checksum};
pub use snapshot::{
    SNAPSHOT_HEADER_BYTES, SNAPSHOT_MAGIC, SNAPSHOT_PAGES_MAX, SNAPSHOT_RUN_BYTES, SeriesId,
    SnapshotBase, SnapshotHeader, SnapshotKind, SnapshotRun, encode_snapshot_table,
};
pub use spread::{
    ADDRESS_BYTES_MAX, MEMBERS_MAX, MEMBERSHIP_MAGIC, Member, Membership, SHARE_MAGIC,
    SHARE_TRAILER_BYTES, ShareTrailer, SpreadId,
};
pub use superblock::{
    GRANULE_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_COPY_A_OFFSET, SUPERBLOCK_COPY_B_OFFSET,
    SUPERBLOCK_MAGIC, Superblock, TABLE_LENGTH_DEFAULT_BYTES, TABLE_LENGTH_MAX_BYTES,
    TABLE_LENGTH_MIN_BYTES,
};
pub use table::{
    ATTRIBUTES_BYTES_MAX, Extent, Grant, RegionEntry, RegionTable, TABLE_HEADER_BYTES, TABLE_MAGIC,
};
pub use term::{
    TERM_MAGIC, TERM_RECORD_BYTES, TERM_RECORD_OFFSETS, TERM_WORD_OFFSET, TERMS_KEPT_MAX, Term,
    TermRecord, TermStart,
};
pub use units::{
    Epoch, IdError, LogPosition, Medium, Mode, Need, PoolId, PoolOffset, RegionId, RegionOffset,
    RegionState, Rights, SetNumber, UnknownWord, VirtualAddress,
};
pub use word::{COUNT_MAX, POSITION_MAX};

/// The version of every structure that this crate writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 2;

/// Structures on media that are written or replaced apart from each other stand in pages of their
/// own, of this many bytes.
pub const PAGE_BYTES: u64 = 4096;
