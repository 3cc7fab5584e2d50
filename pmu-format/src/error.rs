//! What can be wrong with bytes from media.

use core::fmt;

use crate::names::NameError;

/// A structure on media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The superblock of a pool.
    Superblock,
    /// The region table of a pool.
    RegionTable,
    /// One region's entry in the table.
    RegionEntry,
    /// The publish page of a region in overwrite mode.
    PublishPage,
    /// The division of a region into slots.
    SetGeometry,
    /// The header of a set.
    SetHeader,
    /// The chunk table of a set.
    ChunkTable,
    /// One chunk of a set's payload.
    Chunk,
    /// The division of a region into publish page, cursor page and ring.
    LogGeometry,
    /// The publish and cursor pages of a log.
    LogWords,
    /// The header of a log record.
    RecordHeader,
    /// The payload of a log record.
    RecordPayload,
    /// What a member of a spread region knows of the others.
    Membership,
    /// What a member of a spread region knows of its terms.
    TermRecord,
    /// The header of a member's share of a set.
    ShareTrailer,
    /// What stands before a member's shard of a log record.
    RecordShare,
    /// What a set begins with that holds a snapshot of a program's memory.
    SnapshotHeader,
    /// Which pages a snapshot holds.
    SnapshotTable,
}

impl fmt::Display for Structure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Superblock => "superblock",
            Self::RegionTable => "region table",
            Self::RegionEntry => "region entry",
            Self::PublishPage => "publish page",
            Self::SetGeometry => "set geometry",
            Self::SetHeader => "set header",
            Self::ChunkTable => "chunk table",
            Self::Chunk => "chunk",
            Self::LogGeometry => "log geometry",
            Self::LogWords => "log words",
            Self::RecordHeader => "record header",
            Self::RecordPayload => "record payload",
            Self::Membership => "membership",
            Self::TermRecord => "term record",
            Self::ShareTrailer => "share trailer",
            Self::RecordShare => "record share",
            Self::SnapshotHeader => "snapshot header",
            Self::SnapshotTable => "snapshot table",
        })
    }
}

/// Why bytes are not the structure that they should be, or why values can't become one.
///
/// Creating one allocates only in the variants that only tables can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    #[error("{structure}: {found_bytes} bytes, needs {needed_bytes}")]
    TooShort {
        /// Which structure.
        structure: Structure,
        /// How many bytes there are.
        found_bytes: u64,
        /// How many it takes.
        needed_bytes: u64,
    },
    /// The magic number is another one: never written, overwritten, or not this structure.
    #[error("{structure}: magic {found:#018x}, expected {expected:#018x}")]
    Magic {
        /// Which structure.
        structure: Structure,
        /// The magic number in the bytes.
        found: u64,
        /// The magic number of the structure.
        expected: u64,
    },
    /// The checksum holds, but the version is none that this code knows.
    #[error("{structure}: version {found}, this program knows version {expected} only")]
    Version {
        /// Which structure.
        structure: Structure,
        /// The version in the bytes.
        found: u32,
        /// The version known.
        expected: u32,
    },
    /// A checksum does not match: damaged, torn, or being written right now.
    #[error("{structure}: checksum of {what} is {computed:#x}, stored is {stored:#x}")]
    Checksum {
        /// Which structure.
        structure: Structure,
        /// Which part of it.
        what: &'static str,
        /// The checksum of the bytes found.
        computed: u64,
        /// The checksum stored with them.
        stored: u64,
    },
    /// A field holds a value that it must not.
    #[error("{structure}: {field} is {found}, expected {expected}")]
    Field {
        /// Which structure.
        structure: Structure,
        /// Which field.
        field: &'static str,
        /// The value found.
        found: u64,
        /// What would have been right.
        expected: &'static str,
    },
    /// A field must have one certain value, and has another.
    #[error("{structure}: {field} is {found}, expected {expected}")]
    Mismatch {
        /// Which structure.
        structure: Structure,
        /// Which field.
        field: &'static str,
        /// The value found.
        found: u64,
        /// The one value that would have been right.
        expected: u64,
    },
    /// A range leaves what contains it.
    #[error("{structure}: {what} {offset}+{length_bytes} leaves the limit {limit}")]
    OutOfBounds {
        /// Which structure.
        structure: Structure,
        /// Which range.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        length_bytes: u64,
        /// Where it must end at the latest.
        limit: u64,
    },
    /// Two ranges that must be apart overlap.
    #[error("{structure}: {what} at {first_offset} and at {second_offset} overlap")]
    Overlap {
        /// Which structure.
        structure: Structure,
        /// Which kind of range.
        what: &'static str,
        /// Where the first begins.
        first_offset: u64,
        /// Where the second begins.
        second_offset: u64,
    },
    /// A value that must be unique is there twice.
    #[error("{structure}: {what} {value} is there twice")]
    Duplicate {
        /// Which structure.
        structure: Structure,
        /// What kind of value.
        what: &'static str,
        /// The value, as people read it.
        value: String,
    },
    /// A name is none.
    #[error("{structure}: {what}")]
    Name {
        /// Which structure.
        structure: Structure,
        /// Whose name.
        what: &'static str,
        /// What is wrong with it.
        source: NameError,
    },
}
