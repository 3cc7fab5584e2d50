//! The region table: every region of a pool, with its extents and grants.

use crate::bytes::{Cursor, array_at, check_frame, put, round_up, u64_at};
use crate::checksum::{crc32c_around, crc64_nvme};
use crate::{
    Epoch, FORMAT_VERSION, FormatError, Mode, Need, PoolId, PoolOffset, PrincipalName, RegionId,
    RegionName, RegionState, Rights, Structure, Superblock, VirtualAddress,
};

/// How many bytes stand before the body of a table.
pub const TABLE_HEADER_BYTES: usize = 64;
/// The first eight bytes of a table: `PMUTABL1`.
pub const TABLE_MAGIC: u64 = u64::from_le_bytes(*b"PMUTABL1");
/// The most attribute bytes a region can carry.
pub const ATTRIBUTES_BYTES_MAX: usize = 4096;

const BODY_PREFIX_BYTES: usize = 8;
const ENTRY_FIXED_BYTES: usize = 88;
const EXTENT_BYTES: usize = 16;
const GRANT_FIXED_BYTES: usize = 8;

mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const CHECKSUM: usize = 12;
    pub(super) const GENERATION: usize = 16;
    pub(super) const BODY_LENGTH: usize = 24;
    pub(super) const BODY_CHECKSUM: usize = 32;
    pub(super) const POOL_ID: usize = 40;
    pub(super) const NEXT_ADDRESS: usize = 56;
}

const _: () = assert!(field::NEXT_ADDRESS + 8 == TABLE_HEADER_BYTES);
const _: () = assert!(ENTRY_FIXED_BYTES == 8 + 16 + 8 + 5 * 8 + 8 + 8);
const _: () = assert!(ATTRIBUTES_BYTES_MAX.is_multiple_of(8));

/// A range of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where it begins: a multiple of the granule.
    pub offset: PoolOffset,
    /// How long it is: a multiple of the granule, never zero.
    pub length_bytes: u64,
}

/// What one principal may do with a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub principal: PrincipalName,
    /// What: never empty.
    pub rights: Rights,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionEntry {
    /// Random, never reused.
    pub id: RegionId,
    /// Unique in the pool.
    pub name: RegionName,
    /// How it takes data.
    pub mode: Mode,
    /// In use, or being erased.
    pub state: RegionState,
    /// What it demands of medium and path.
    pub need: Need,
    /// How many committed sets are kept: 1 to [`SETS_KEPT_MAX`](crate::SETS_KEPT_MAX) in overwrite
    /// mode, 0 in append mode.
    pub sets_kept: u32,
    /// Where it lies in the pool's virtual space: a multiple of the granule, never reused.
    pub base: VirtualAddress,
    /// How long it is: a multiple of the granule, and the sum of its extents.
    pub length_bytes: u64,
    /// The longest payload of a set in overwrite mode, 0 in append mode.
    pub capacity_bytes: u64,
    /// The epoch that was given out last, 0 before the first.
    pub epoch: Epoch,
    /// When it was made, in seconds since 1970.
    pub created_seconds: u64,
    /// Where its bytes are, in order of virtual address, dense.
    pub extents: Vec<Extent>,
    /// Who may do what with it; each principal once.
    pub grants: Vec<Grant>,
    /// At most [`ATTRIBUTES_BYTES_MAX`] bytes that mean nothing to the unit.
    pub attributes: Vec<u8>,
}

impl RegionEntry {
    /// What `principal` may do with the region: nothing unless granted.
    #[must_use]
    pub fn rights_of(&self, principal: &PrincipalName) -> Rights {
        self.grants
            .iter()
            .find(|grant| grant.principal == *principal)
            .map_or(Rights::empty(), |grant| grant.rights)
    }

    /// The address behind the region's last byte, `None` where 64 bits can't hold it.
    #[must_use]
    pub fn end(&self) -> Option<VirtualAddress> {
        self.base.checked_add(self.length_bytes)
    }

    /// Translates a range of the region into ranges of the pool, in order. Nothing for a range
    /// that leaves the region.
    pub fn translate(
        &self,
        offset: crate::RegionOffset,
        length_bytes: u64,
    ) -> impl Iterator<Item = Extent> + '_ {
        let end = offset
            .get()
            .checked_add(length_bytes)
            .filter(|end| *end <= self.length_bytes);
        let (begin, end) = end.map_or((0, 0), |end| (offset.get(), end));
        let mut extent_begin = 0_u64;
        self.extents.iter().filter_map(move |extent| {
            let extent_end = extent_begin.saturating_add(extent.length_bytes);
            let (piece_begin, piece_end) = (begin.max(extent_begin), end.min(extent_end));
            let inside = piece_begin.checked_sub(extent_begin);
            extent_begin = extent_end;
            let length_bytes = piece_end
                .checked_sub(piece_begin)
                .filter(|length| *length > 0)?;
            Some(Extent {
                offset: extent.offset.checked_add(inside?)?,
                length_bytes,
            })
        })
    }

    /// How many bytes the entry takes in a table.
    fn encoded_length_bytes(&self) -> usize {
        let grants = self
            .grants
            .iter()
            .map(|grant| GRANT_FIXED_BYTES + grant.principal.as_str().len().next_multiple_of(8));
        ENTRY_FIXED_BYTES
            + self.name.as_str().len().next_multiple_of(8)
            + self.extents.len() * EXTENT_BYTES
            + grants.sum::<usize>()
            + self.attributes.len().next_multiple_of(8)
    }
}

/// All regions of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionTable {
    /// Raised by one with each change, from 1.
    pub generation: u64,
    /// The pool that the table belongs to.
    pub pool_id: PoolId,
    /// The lowest virtual address that was never handed out: a multiple of the granule.
    pub next_address: VirtualAddress,
    /// The regions, in no certain order.
    pub regions: Vec<RegionEntry>,
}

impl RegionTable {
    /// The first table of a pool: generation 1, no regions. Virtual addresses begin at
    /// `next_address`, a multiple of the granule.
    #[must_use]
    pub const fn empty(pool_id: PoolId, next_address: VirtualAddress) -> Self {
        Self {
            generation: 1,
            pool_id,
            next_address,
            regions: Vec::new(),
        }
    }

    /// The region with this id.
    #[must_use]
    pub fn region(&self, id: RegionId) -> Option<&RegionEntry> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// The region with this name.
    #[must_use]
    pub fn region_named(&self, name: &RegionName) -> Option<&RegionEntry> {
        self.regions.iter().find(|region| region.name == *name)
    }

    /// How many bytes the encoded table has.
    #[must_use]
    pub fn encoded_length_bytes(&self) -> usize {
        let entries = self.regions.iter().map(RegionEntry::encoded_length_bytes);
        TABLE_HEADER_BYTES + BODY_PREFIX_BYTES + entries.sum::<usize>()
    }

    /// Writes the table to the beginning of `image` and returns how many bytes it took. The table
    /// is validated first, exactly as a reader would, so that nothing is written that nobody could
    /// read back.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate), and [`FormatError::TooShort`] where `image` (or one
    /// table copy of the pool) can't hold the table. `image` is unchanged then.
    pub fn encode(&self, superblock: &Superblock, image: &mut [u8]) -> Result<usize, FormatError> {
        self.validate(superblock)?;
        let length_bytes = self.encoded_length_bytes();
        let room_bytes = (image.len() as u64).min(superblock.table_length_bytes());
        if length_bytes as u64 > room_bytes {
            return Err(FormatError::TooShort {
                structure: Structure::RegionTable,
                found_bytes: room_bytes,
                needed_bytes: length_bytes as u64,
            });
        }
        let mut body = Vec::with_capacity(length_bytes - TABLE_HEADER_BYTES);
        // The validation bounds every count far below 32 bits.
        body.extend_from_slice(&(self.regions.len() as u32).to_le_bytes());
        body.extend_from_slice(&0_u32.to_le_bytes());
        for region in &self.regions {
            encode_entry(region, &mut body);
        }
        let (header, rest) = image.split_at_mut(TABLE_HEADER_BYTES);
        put(header, field::MAGIC, &TABLE_MAGIC.to_le_bytes());
        put(header, field::VERSION, &FORMAT_VERSION.to_le_bytes());
        put(header, field::GENERATION, &self.generation.to_le_bytes());
        put(
            header,
            field::BODY_LENGTH,
            &(body.len() as u64).to_le_bytes(),
        );
        put(
            header,
            field::BODY_CHECKSUM,
            &crc64_nvme(&body).to_le_bytes(),
        );
        put(header, field::POOL_ID, self.pool_id.as_bytes());
        put(
            header,
            field::NEXT_ADDRESS,
            &self.next_address.get().to_le_bytes(),
        );
        let checksum = crc32c_around(header, field::CHECKSUM).unwrap_or(0);
        put(header, field::CHECKSUM, &checksum.to_le_bytes());
        put(rest, 0, &body);
        Ok(length_bytes)
    }

    /// Reads and checks one copy of the table of the pool that `superblock` describes. `image` is
    /// the whole copy; what stands behind the table is not looked at.
    ///
    /// # Errors
    /// [`FormatError`]: damaged, of another pool, or saying something that can't be.
    pub fn decode(superblock: &Superblock, image: &[u8]) -> Result<Self, FormatError> {
        let structure = Structure::RegionTable;
        let too_short = |needed_bytes: u64| FormatError::TooShort {
            structure,
            found_bytes: image.len() as u64,
            needed_bytes,
        };
        let (header, rest) = image
            .split_at_checked(TABLE_HEADER_BYTES)
            .ok_or_else(|| too_short(TABLE_HEADER_BYTES as u64))?;
        check_frame(header, structure, TABLE_MAGIC)?;
        let body_bytes = u64_at(header, field::BODY_LENGTH);
        let body = usize::try_from(body_bytes)
            .ok()
            .and_then(|length| rest.get(..length))
            .ok_or_else(|| too_short(body_bytes.saturating_add(TABLE_HEADER_BYTES as u64)))?;
        let stored = u64_at(header, field::BODY_CHECKSUM);
        let computed = crc64_nvme(body);
        if computed != stored {
            return Err(FormatError::Checksum {
                structure,
                what: "body",
                computed,
                stored,
            });
        }
        let table = Self {
            generation: u64_at(header, field::GENERATION),
            pool_id: PoolId(array_at(header, field::POOL_ID)),
            next_address: VirtualAddress(u64_at(header, field::NEXT_ADDRESS)),
            regions: decode_body(body)?,
        };
        table.validate(superblock)?;
        Ok(table)
    }
}

fn encode_entry(region: &RegionEntry, body: &mut Vec<u8>) {
    let name = region.name.as_str().as_bytes();
    let number = |body: &mut Vec<u8>, value: u64| body.extend_from_slice(&value.to_le_bytes());
    let small = |body: &mut Vec<u8>, value: u32| body.extend_from_slice(&value.to_le_bytes());
    small(body, region.encoded_length_bytes() as u32);
    small(body, 0);
    body.extend_from_slice(region.id.as_bytes());
    body.extend_from_slice(&[
        region.mode.to_number(),
        region.state.to_number(),
        region.need.to_number(),
        name.len() as u8,
    ]);
    small(body, region.sets_kept);
    number(body, region.base.get());
    number(body, region.length_bytes);
    number(body, region.capacity_bytes);
    number(body, region.epoch.get());
    number(body, region.created_seconds);
    small(body, region.extents.len() as u32);
    small(body, region.grants.len() as u32);
    small(body, region.attributes.len() as u32);
    small(body, 0);
    padded(body, name);
    for extent in &region.extents {
        number(body, extent.offset.get());
        number(body, extent.length_bytes);
    }
    for grant in &region.grants {
        let principal = grant.principal.as_str().as_bytes();
        small(body, grant.rights.bits());
        small(body, principal.len() as u32);
        padded(body, principal);
    }
    padded(body, &region.attributes);
}

fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(8), 0);
}

fn decode_body(body: &[u8]) -> Result<Vec<RegionEntry>, FormatError> {
    let structure = Structure::RegionTable;
    let ended = |needed_bytes: usize| FormatError::TooShort {
        structure,
        found_bytes: body.len() as u64,
        needed_bytes: needed_bytes as u64,
    };
    let mut cursor = Cursor::new(body);
    let count = cursor.u32().ok_or_else(|| ended(BODY_PREFIX_BYTES))?;
    let reserved = cursor.u32().ok_or_else(|| ended(BODY_PREFIX_BYTES))?;
    zero(reserved, structure, "word behind the count of regions")?;
    // An entry has at least its fixed part: more can't be there, whatever the count says.
    let room = cursor.left_bytes() / ENTRY_FIXED_BYTES;
    if count as usize > room {
        return Err(FormatError::Field {
            structure,
            field: "count of regions",
            found: count.into(),
            expected: "no more than the body holds",
        });
    }
    let mut regions = Vec::with_capacity(count as usize);
    for _ in 0..count {
        regions.push(decode_entry(&mut cursor)?);
    }
    if cursor.left_bytes() > 0 {
        return Err(FormatError::Field {
            structure,
            field: "bytes behind the last region",
            found: cursor.left_bytes() as u64,
            expected: "none",
        });
    }
    Ok(regions)
}

fn zero(found: u32, structure: Structure, field: &'static str) -> Result<(), FormatError> {
    if found == 0 {
        return Ok(());
    }
    Err(FormatError::Field {
        structure,
        field,
        found: found.into(),
        expected: "0",
    })
}

/// The lengths in an entry's fixed part, which say how the rest is cut.
struct EntryCounts {
    name_bytes: usize,
    extents: usize,
    grants: usize,
    attributes_bytes: usize,
}

fn decode_entry(body: &mut Cursor<'_>) -> Result<RegionEntry, FormatError> {
    let structure = Structure::RegionEntry;
    let left_bytes = body.left_bytes() as u64;
    let cut = |needed_bytes: u64| FormatError::TooShort {
        structure,
        found_bytes: left_bytes,
        needed_bytes,
    };
    let length_bytes = body.u32().ok_or_else(|| cut(ENTRY_FIXED_BYTES as u64))?;
    // The length word has been taken, and counts itself.
    let rest_bytes = (length_bytes as usize).checked_sub(4);
    let entry = rest_bytes
        .and_then(|rest_bytes| body.take(rest_bytes))
        .ok_or_else(|| cut(length_bytes.into()))?;
    let mut cursor = Cursor::new(entry);
    let (mut region, counts) =
        decode_fixed(&mut cursor)?.ok_or_else(|| cut(ENTRY_FIXED_BYTES as u64))?;
    let inner = FormatError::TooShort {
        structure,
        found_bytes: length_bytes.into(),
        needed_bytes: u64::from(length_bytes) + 1,
    };
    decode_lists(&mut cursor, &counts, &mut region)?.ok_or(inner)?;
    if cursor.left_bytes() > 0 {
        return Err(FormatError::Field {
            structure,
            field: "bytes behind the attributes",
            found: cursor.left_bytes() as u64,
            expected: "none",
        });
    }
    Ok(region)
}

/// The fixed part of an entry; `None` where the entry is shorter than that. The name is still a
/// placeholder afterwards.
fn decode_fixed(
    cursor: &mut Cursor<'_>,
) -> Result<Option<(RegionEntry, EntryCounts)>, FormatError> {
    let structure = Structure::RegionEntry;
    if cursor.left_bytes() < ENTRY_FIXED_BYTES - 4 {
        return Ok(None);
    }
    // The length is checked, so that none of these zeros is ever used.
    let word = |cursor: &mut Cursor<'_>| cursor.u32().unwrap_or(0);
    let number = |cursor: &mut Cursor<'_>| cursor.u64().unwrap_or(0);
    let unknown = |field: &'static str, found: u8| FormatError::Field {
        structure,
        field,
        found: found.into(),
        expected: "1 or 2",
    };
    zero(word(cursor), structure, "word behind the length")?;
    let id = RegionId(array_at(cursor.take(16).unwrap_or(&[]), 0));
    let [mode, state, need, name_bytes] = array_at(cursor.take(4).unwrap_or(&[]), 0);
    let region = RegionEntry {
        id,
        // Replaced by the name behind the fixed part.
        name: RegionName::placeholder(),
        mode: Mode::from_number(mode).ok_or_else(|| unknown("mode", mode))?,
        state: RegionState::from_number(state).ok_or_else(|| unknown("state", state))?,
        need: Need::from_number(need).ok_or_else(|| unknown("need", need))?,
        sets_kept: word(cursor),
        base: VirtualAddress(number(cursor)),
        length_bytes: number(cursor),
        capacity_bytes: number(cursor),
        epoch: Epoch(number(cursor)),
        created_seconds: number(cursor),
        extents: Vec::new(),
        grants: Vec::new(),
        attributes: Vec::new(),
    };
    let counts = EntryCounts {
        name_bytes: name_bytes.into(),
        extents: word(cursor) as usize,
        grants: word(cursor) as usize,
        attributes_bytes: word(cursor) as usize,
    };
    zero(
        word(cursor),
        structure,
        "word behind the length of the attributes",
    )?;
    Ok(Some((region, counts)))
}

/// Name, extents, grants and attributes; `None` where the entry ends before them.
fn decode_lists(
    cursor: &mut Cursor<'_>,
    counts: &EntryCounts,
    region: &mut RegionEntry,
) -> Result<Option<()>, FormatError> {
    let structure = Structure::RegionEntry;
    let name_error = |what: &'static str| {
        move |source| FormatError::Name {
            structure,
            what,
            source,
        }
    };
    let Some(name) = take_padded(cursor, counts.name_bytes)? else {
        return Ok(None);
    };
    region.name = RegionName::from_bytes(name).map_err(name_error("name of the region"))?;
    // Each element takes room, so that a count beyond the room is refused before any allocation.
    if counts.extents > cursor.left_bytes() / EXTENT_BYTES {
        return Ok(None);
    }
    region.extents.reserve_exact(counts.extents);
    for _ in 0..counts.extents {
        let (Some(offset), Some(length_bytes)) = (cursor.u64(), cursor.u64()) else {
            return Ok(None);
        };
        region.extents.push(Extent {
            offset: PoolOffset(offset),
            length_bytes,
        });
    }
    if counts.grants > cursor.left_bytes() / (GRANT_FIXED_BYTES + 8) {
        return Ok(None);
    }
    region.grants.reserve_exact(counts.grants);
    for _ in 0..counts.grants {
        let (Some(bits), Some(length)) = (cursor.u32(), cursor.u32()) else {
            return Ok(None);
        };
        let rights = Rights::from_bits(bits).ok_or(FormatError::Field {
            structure,
            field: "rights",
            found: bits.into(),
            expected: "a sum of 1, 2, 4, 8, 16",
        })?;
        let Some(name) = take_padded(cursor, length as usize)? else {
            return Ok(None);
        };
        let principal =
            PrincipalName::from_bytes(name).map_err(name_error("name of a principal"))?;
        region.grants.push(Grant { principal, rights });
    }
    let Some(attributes) = take_padded(cursor, counts.attributes_bytes)? else {
        return Ok(None);
    };
    region.attributes.extend_from_slice(attributes);
    Ok(Some(()))
}

/// `length_bytes` bytes, and the zeros that pad them to a multiple of 8.
fn take_padded<'a>(
    cursor: &mut Cursor<'a>,
    length_bytes: usize,
) -> Result<Option<&'a [u8]>, FormatError> {
    let padded = round_up(length_bytes as u64, 8).and_then(|padded| usize::try_from(padded).ok());
    let Some(found) = padded.and_then(|padded| cursor.take(padded)) else {
        return Ok(None);
    };
    let (bytes, padding) = found.split_at(length_bytes);
    crate::bytes::check_zero(padding, Structure::RegionEntry, "padding")?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Medium, RegionOffset, choose_table};

    #[test]
    fn p10_a_table_survives_and_translates() {
        let superblock =
            Superblock::new(PoolId([7; 16]), 1 << 26, 1 << 18, 1, Medium::Memory).unwrap();
        let data = superblock.data_offset().get();
        let mut table = RegionTable::empty(superblock.pool_id(), VirtualAddress(1 << 20));
        table.regions.push(RegionEntry {
            id: RegionId([1; 16]),
            name: RegionName::new("job-1").unwrap(),
            mode: Mode::Append,
            state: RegionState::Active,
            need: Need::Durable,
            sets_kept: 0,
            base: VirtualAddress(1 << 16),
            length_bytes: 3 << 16,
            capacity_bytes: 0,
            epoch: Epoch(4),
            created_seconds: 9,
            extents: vec![
                Extent {
                    offset: PoolOffset(data + (4 << 16)),
                    length_bytes: 2 << 16,
                },
                Extent {
                    offset: PoolOffset(data),
                    length_bytes: 1 << 16,
                },
            ],
            grants: vec![Grant {
                principal: PrincipalName::new("primary").unwrap(),
                rights: Rights::READ | Rights::APPEND,
            }],
            attributes: b"anything".to_vec(),
        });
        let mut image = vec![0; 1 << 18];
        table.encode(&superblock, &mut image).unwrap();
        assert_eq!(
            choose_table(&superblock, &image, &image).unwrap().value,
            table
        );
        let pieces: Vec<_> = table.regions[0]
            .translate(RegionOffset((2 << 16) - 8), 16)
            .collect();
        assert_eq!(
            pieces,
            [
                Extent {
                    offset: PoolOffset(data + (6 << 16) - 8),
                    length_bytes: 8
                },
                Extent {
                    offset: PoolOffset(data),
                    length_bytes: 8
                },
            ]
        );
        assert_eq!(
            table.regions[0].translate(RegionOffset(3 << 16), 1).count(),
            0
        );
    }
}
