//! A region in overwrite mode: publish page, slots, set headers and chunk tables.

use core::fmt;
use core::ops::Range;

use crate::bytes::{array_at, check_frame, check_zero, put, round_up, u32_at, u64_at};
use crate::checksum::{Digest, crc32c_around, crc64_nvme};
use crate::{
    Epoch, FORMAT_VERSION, FormatError, PAGE_BYTES, RegionId, RegionOffset, SetNumber, Structure,
};

/// A payload is checked in chunks of this many bytes; only the last one may be shorter.
pub const CHUNK_BYTES: u64 = 256 * 1024;
/// How many bytes a chunk takes in the chunk table: one CRC-64/NVME.
pub const CHUNK_CHECKSUM_BYTES: u64 = 8;
/// The most sets that a region can keep.
pub const SETS_KEPT_MAX: u32 = 1024;
/// How many bytes a set header has.
pub const SET_HEADER_BYTES: usize = 128;
/// How many bytes a label has.
pub const LABEL_BYTES: usize = 32;
/// The first eight bytes of a set header: `PMUSET01`.
pub const SET_MAGIC: u64 = u64::from_le_bytes(*b"PMUSET01");

mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const CHECKSUM: usize = 12;
    pub(super) const NUMBER: usize = 16;
    pub(super) const EPOCH: usize = 24;
    pub(super) const PAYLOAD_LENGTH: usize = 32;
    pub(super) const CHUNK_LENGTH: usize = 40;
    pub(super) const CHUNK_COUNT: usize = 44;
    pub(super) const TABLE_CHECKSUM: usize = 48;
    pub(super) const BINDING: usize = 56;
    pub(super) const COMMITTED: usize = 64;
    pub(super) const LABEL: usize = 72;
    pub(super) const RESERVED: usize = 104;
}

const _: () = assert!(field::LABEL + LABEL_BYTES == field::RESERVED);
const _: () = assert!(field::RESERVED + 24 == SET_HEADER_BYTES);
const _: () = assert!(SET_HEADER_BYTES as u64 <= PAGE_BYTES);
const _: () = assert!(CHUNK_BYTES.is_multiple_of(PAGE_BYTES) && CHUNK_BYTES == 262_144);

/// Which slot of a region, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(pub u32);

impl fmt::Display for SlotIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// How many chunks a payload of `payload_bytes` has; `None` for more than 32 bits count.
#[must_use]
pub fn chunk_count(payload_bytes: u64) -> Option<u32> {
    u32::try_from(payload_bytes.div_ceil(CHUNK_BYTES)).ok()
}

/// Where what stands in a region in overwrite mode. A value of this type always fits its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetGeometry {
    capacity_bytes: u64,
    sets_kept: u32,
    chunk_table_area_bytes: u64,
    slot_bytes: u64,
}

/// The length of the chunk table's area and of the whole slot.
fn slot_lengths(capacity_bytes: u64) -> Option<(u64, u64)> {
    let chunks = u64::from(chunk_count(capacity_bytes)?);
    let table_area = round_up(chunks * CHUNK_CHECKSUM_BYTES, PAGE_BYTES)?;
    let payload_area = round_up(capacity_bytes, PAGE_BYTES)?;
    let slot = PAGE_BYTES
        .checked_add(table_area)?
        .checked_add(payload_area)?;
    Some((table_area, slot))
}

/// The length of publish page and slots.
fn used_bytes(slot_bytes: u64, sets_kept: u32) -> Option<u64> {
    slot_bytes
        .checked_mul(u64::from(sets_kept) + 1)?
        .checked_add(PAGE_BYTES)
}

fn check_sets_kept(sets_kept: u32) -> Result<(), FormatError> {
    if (1..=SETS_KEPT_MAX).contains(&sets_kept) {
        return Ok(());
    }
    Err(FormatError::Field {
        structure: Structure::SetGeometry,
        field: "sets kept",
        found: sets_kept.into(),
        expected: "1 to 1024",
    })
}

impl SetGeometry {
    /// Divides a region of `region_bytes` into slots for `sets_kept` sets (1 to
    /// [`SETS_KEPT_MAX`]) of at most `capacity_bytes` (from 1), and one more slot to write.
    ///
    /// # Errors
    /// [`FormatError::Field`] for a capacity of 0 or too many sets; [`FormatError::TooShort`]
    /// where they don't fit the region.
    pub fn new(
        region_bytes: u64,
        capacity_bytes: u64,
        sets_kept: u32,
    ) -> Result<Self, FormatError> {
        let needed_bytes = Self::region_bytes_for(capacity_bytes, sets_kept)?;
        let (chunk_table_area_bytes, slot_bytes) =
            slot_lengths(capacity_bytes).unwrap_or((0, u64::MAX));
        if needed_bytes > region_bytes {
            return Err(FormatError::TooShort {
                structure: Structure::SetGeometry,
                found_bytes: region_bytes,
                needed_bytes,
            });
        }
        Ok(Self {
            capacity_bytes,
            sets_kept,
            chunk_table_area_bytes,
            slot_bytes,
        })
    }

    /// How long a region must be for `sets_kept` sets of `capacity_bytes`. Not rounded to
    /// granules.
    ///
    /// # Errors
    /// [`FormatError::Field`] for a capacity of 0, a capacity that no region could hold, or too
    /// many sets.
    pub fn region_bytes_for(capacity_bytes: u64, sets_kept: u32) -> Result<u64, FormatError> {
        check_sets_kept(sets_kept)?;
        let needed = slot_lengths(capacity_bytes).and_then(|(_, slot)| used_bytes(slot, sets_kept));
        match needed {
            Some(needed_bytes) if capacity_bytes > 0 => Ok(needed_bytes),
            _ => Err(FormatError::Field {
                structure: Structure::SetGeometry,
                field: "capacity of a set",
                found: capacity_bytes,
                expected: "1 byte or more, and no more than 64 bits can place",
            }),
        }
    }

    /// The largest capacity with which `sets_kept` sets fit a region of `region_bytes`: a multiple
    /// of 4096.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] where not even one page fits; [`FormatError::Field`] for too many
    /// sets.
    pub fn capacity_max_bytes(region_bytes: u64, sets_kept: u32) -> Result<u64, FormatError> {
        let smallest = Self::region_bytes_for(PAGE_BYTES, sets_kept)?;
        if smallest > region_bytes {
            return Err(FormatError::TooShort {
                structure: Structure::SetGeometry,
                found_bytes: region_bytes,
                needed_bytes: smallest,
            });
        }
        let fits = |pages: u64| {
            let capacity_bytes = pages.checked_mul(PAGE_BYTES);
            capacity_bytes
                .and_then(|capacity| Self::region_bytes_for(capacity, sets_kept).ok())
                .is_some_and(|needed| needed <= region_bytes)
        };
        // One page fits, and more than the region never does: search between them.
        let (mut fitting, mut excessive) = (1, region_bytes / PAGE_BYTES + 1);
        while excessive - fitting > 1 {
            let middle = fitting + (excessive - fitting) / 2;
            if fits(middle) {
                fitting = middle;
            } else {
                excessive = middle;
            }
        }
        Ok(fitting * PAGE_BYTES)
    }

    /// The longest payload in bytes.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// How many committed sets are never overwritten.
    #[must_use]
    pub const fn sets_kept(&self) -> u32 {
        self.sets_kept
    }

    /// How many slots there are: one more than sets kept.
    #[must_use]
    pub const fn slot_count(&self) -> u32 {
        self.sets_kept + 1
    }

    /// How long a slot is, in bytes.
    #[must_use]
    pub const fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// How many bytes the chunk table of a full payload takes, rounded up to pages.
    #[must_use]
    pub const fn chunk_table_area_bytes(&self) -> u64 {
        self.chunk_table_area_bytes
    }

    /// The publish word: eight bytes that hold the number of the newest committed set.
    #[must_use]
    pub const fn publish_offset(&self) -> RegionOffset {
        RegionOffset(0)
    }

    /// The slot of a set.
    #[must_use]
    pub fn slot_of(&self, number: SetNumber) -> SlotIndex {
        #[cfg(feature = "planted-bugs")]
        if crate::planted::is_planted(crate::planted::Bug::ReuseSlot) {
            return SlotIndex((number.get() % u64::from(self.sets_kept)) as u32);
        }
        // The remainder is smaller than the count of slots, which has 32 bits.
        SlotIndex((number.get() % self.slot_count() as u64) as u32)
    }

    /// Where a slot begins, and with it its header. For a slot of this region.
    #[must_use]
    pub const fn header_offset(&self, slot: SlotIndex) -> RegionOffset {
        RegionOffset(PAGE_BYTES + slot.0 as u64 * self.slot_bytes)
    }

    /// Where a slot's chunk table begins.
    #[must_use]
    pub const fn chunk_table_offset(&self, slot: SlotIndex) -> RegionOffset {
        RegionOffset(self.header_offset(slot).get() + PAGE_BYTES)
    }

    /// Where a slot's payload begins.
    #[must_use]
    pub const fn payload_offset(&self, slot: SlotIndex) -> RegionOffset {
        RegionOffset(self.chunk_table_offset(slot).get() + self.chunk_table_area_bytes)
    }

    /// Which bytes of a payload of `payload_bytes` make the chunk `index`; `None` for a chunk that
    /// it doesn't have.
    #[must_use]
    pub fn chunk_range(payload_bytes: u64, index: u32) -> Option<Range<u64>> {
        let begin = u64::from(index) * CHUNK_BYTES;
        (begin < payload_bytes).then(|| begin..begin.saturating_add(CHUNK_BYTES).min(payload_bytes))
    }
}

/// Puts the checksum of chunk `index` into a chunk table. Returns whether the table has room.
#[must_use]
pub fn put_chunk_checksum(table: &mut [u8], index: u32, checksum: u64) -> bool {
    let begin = index as usize * CHUNK_CHECKSUM_BYTES as usize;
    match table.get_mut(begin..begin + CHUNK_CHECKSUM_BYTES as usize) {
        Some(entry) => {
            entry.copy_from_slice(&checksum.to_le_bytes());
            true
        }
        None => false,
    }
}

/// The checksum of chunk `index` in a chunk table, `None` behind its end.
#[must_use]
pub fn chunk_checksum_at(table: &[u8], index: u32) -> Option<u64> {
    let begin = (index as usize).checked_mul(CHUNK_CHECKSUM_BYTES as usize)?;
    let entry = table.get(begin..begin.checked_add(CHUNK_CHECKSUM_BYTES as usize)?)?;
    Some(u64_at(entry, 0))
}

/// Why something is not a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a label has at most 32 bytes and no zero byte, not {found_bytes} bytes")]
pub struct LabelError {
    /// How many bytes were given.
    pub found_bytes: usize,
}

/// What a program wants to find again beside a set, such as a step number: at most 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Label([u8; LABEL_BYTES]);

impl Label {
    /// A label of text, at most 32 bytes without zero bytes.
    ///
    /// # Errors
    /// [`LabelError`] for more, or for a zero byte.
    pub fn new(text: &str) -> Result<Self, LabelError> {
        let mut label = [0_u8; LABEL_BYTES];
        let (Some(room), false) = (label.get_mut(..text.len()), text.contains('\0')) else {
            return Err(LabelError {
                found_bytes: text.len(),
            });
        };
        room.copy_from_slice(text.as_bytes());
        Ok(Self(label))
    }

    /// A label of any 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; LABEL_BYTES]) -> Self {
        Self(bytes)
    }

    /// All 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; LABEL_BYTES] {
        &self.0
    }
}

impl fmt::Display for Label {
    /// The bytes before the padding, anything but printable ASCII escaped.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self
            .0
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        fmt::Display::fmt(&self.0[..end].escape_ascii(), formatter)
    }
}

/// The header of a set, which stands at the beginning of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetHeader {
    /// The set's number, from 1.
    pub number: SetNumber,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The length of the payload in bytes; 0 is a payload too.
    pub payload_bytes: u64,
    /// CRC-64/NVME of the chunk table: 8 bytes for each chunk, without the padding.
    pub chunk_table_checksum: u64,
    /// When the set was committed, in nanoseconds since 1970, by the writer's clock.
    pub committed_nanoseconds: u64,
    /// What the program wants to find again.
    pub label: Label,
}

/// Ties a header to its region and number, so that a header of another region is never believed.
fn binding(region: &RegionId, number: SetNumber) -> u64 {
    let mut digest = Digest::new();
    digest.update(region.as_bytes());
    digest.update(&number.get().to_le_bytes());
    digest.finish()
}

impl SetHeader {
    /// How many chunks the payload has. A decoded header's payload never has more than 32 bits
    /// count.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        chunk_count(self.payload_bytes).unwrap_or(u32::MAX)
    }

    /// How many bytes the chunk table has, without its padding.
    #[must_use]
    pub fn chunk_table_bytes(&self) -> u64 {
        u64::from(self.chunk_count()) * CHUNK_CHECKSUM_BYTES
    }

    /// The bytes to write at the beginning of the set's slot in `region`. Does not allocate.
    #[must_use]
    pub fn encode(&self, region: &RegionId) -> [u8; SET_HEADER_BYTES] {
        let mut header = [0_u8; SET_HEADER_BYTES];
        put(&mut header, field::MAGIC, &SET_MAGIC.to_le_bytes());
        put(&mut header, field::VERSION, &FORMAT_VERSION.to_le_bytes());
        put(&mut header, field::NUMBER, &self.number.get().to_le_bytes());
        put(&mut header, field::EPOCH, &self.epoch.get().to_le_bytes());
        put(
            &mut header,
            field::PAYLOAD_LENGTH,
            &self.payload_bytes.to_le_bytes(),
        );
        put(
            &mut header,
            field::CHUNK_LENGTH,
            &(CHUNK_BYTES as u32).to_le_bytes(),
        );
        put(
            &mut header,
            field::CHUNK_COUNT,
            &self.chunk_count().to_le_bytes(),
        );
        put(
            &mut header,
            field::TABLE_CHECKSUM,
            &self.chunk_table_checksum.to_le_bytes(),
        );
        put(
            &mut header,
            field::BINDING,
            &binding(region, self.number).to_le_bytes(),
        );
        put(
            &mut header,
            field::COMMITTED,
            &self.committed_nanoseconds.to_le_bytes(),
        );
        put(&mut header, field::LABEL, self.label.as_bytes());
        let checksum = crc32c_around(&header, field::CHECKSUM).unwrap_or(0);
        put(&mut header, field::CHECKSUM, &checksum.to_le_bytes());
        header
    }

    /// Reads and checks the header in slot `slot` of `region`. Bytes behind the header are ignored.
    /// Does not allocate.
    ///
    /// # Errors
    /// [`FormatError`], in this order: too short, wrong magic, wrong checksum, unknown version, of
    /// another region, number 0 or of another slot, payload beyond the capacity, chunks that don't
    /// fit the payload.
    pub fn decode(
        bytes: &[u8],
        region: &RegionId,
        geometry: &SetGeometry,
        slot: SlotIndex,
    ) -> Result<Self, FormatError> {
        let structure = Structure::SetHeader;
        let Some(bytes) = bytes.get(..SET_HEADER_BYTES) else {
            return Err(FormatError::TooShort {
                structure,
                found_bytes: bytes.len() as u64,
                needed_bytes: SET_HEADER_BYTES as u64,
            });
        };
        check_frame(bytes, structure, SET_MAGIC)?;
        check_zero(&bytes[field::RESERVED..], structure, "reserved bytes")?;
        let header = Self {
            number: SetNumber(u64_at(bytes, field::NUMBER)),
            epoch: Epoch(u64_at(bytes, field::EPOCH)),
            payload_bytes: u64_at(bytes, field::PAYLOAD_LENGTH),
            chunk_table_checksum: u64_at(bytes, field::TABLE_CHECKSUM),
            committed_nanoseconds: u64_at(bytes, field::COMMITTED),
            label: Label(array_at(bytes, field::LABEL)),
        };
        header.check(bytes, region, geometry, slot)?;
        Ok(header)
    }

    /// Whether a header with a sound checksum belongs here and can be.
    fn check(
        &self,
        bytes: &[u8],
        region: &RegionId,
        geometry: &SetGeometry,
        slot: SlotIndex,
    ) -> Result<(), FormatError> {
        let structure = Structure::SetHeader;
        let same = |field, found: u64, expected: u64| match found == expected {
            true => Ok(()),
            false => Err(FormatError::Mismatch {
                structure,
                field,
                found,
                expected,
            }),
        };
        let bound = u64_at(bytes, field::BINDING);
        same("binding to the region", bound, binding(region, self.number))?;
        if self.number.get() == 0 {
            let (field, expected) = ("set number", "1 or more");
            return Err(FormatError::Field {
                structure,
                field,
                found: 0,
                expected,
            });
        }
        same(
            "slot of the set number",
            geometry.slot_of(self.number).0.into(),
            slot.0.into(),
        )?;
        if self.payload_bytes > geometry.capacity_bytes() {
            return Err(FormatError::OutOfBounds {
                structure,
                what: "payload",
                offset: 0,
                length_bytes: self.payload_bytes,
                limit: geometry.capacity_bytes(),
            });
        }
        same(
            "chunk length",
            u32_at(bytes, field::CHUNK_LENGTH).into(),
            CHUNK_BYTES,
        )?;
        let chunks = u32_at(bytes, field::CHUNK_COUNT);
        same("number of chunks", chunks.into(), self.chunk_count().into())
    }

    /// Checks the chunk table that was read for this header. Bytes behind the table are ignored.
    /// Does not allocate.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] or [`FormatError::Checksum`].
    pub fn verify_chunk_table<'a>(&self, table: &'a [u8]) -> Result<&'a [u8], FormatError> {
        let structure = Structure::ChunkTable;
        let needed_bytes = self.chunk_table_bytes();
        let found = usize::try_from(needed_bytes)
            .ok()
            .and_then(|needed| table.get(..needed));
        let Some(found) = found else {
            let found_bytes = table.len() as u64;
            return Err(FormatError::TooShort {
                structure,
                found_bytes,
                needed_bytes,
            });
        };
        let (computed, stored) = (crc64_nvme(found), self.chunk_table_checksum);
        if computed != stored {
            return Err(FormatError::Checksum {
                structure,
                what: "table",
                computed,
                stored,
            });
        }
        Ok(found)
    }
}
