//! Reading and writing the two copies of superblock and region table.

use std::ops::Range;

use pmu_format::{
    Chosen, CopiesError, CopyName, FORMAT_VERSION, FormatError, OtherCopy, PAGE_BYTES, RegionTable,
    SUPERBLOCK_COPY_A_OFFSET, SUPERBLOCK_COPY_B_OFFSET, SUPERBLOCK_MAGIC, Superblock,
    choose_superblock, choose_table,
};
use pmu_pmem::PmemError;

use super::error::PoolError;
use super::medium::PoolMedium;

/// Where a copy of the superblock stands.
pub(super) const fn superblock_offset(copy: CopyName) -> u64 {
    match copy {
        CopyName::A => SUPERBLOCK_COPY_A_OFFSET.get(),
        CopyName::B => SUPERBLOCK_COPY_B_OFFSET.get(),
    }
}

/// Where a copy of the region table stands.
pub(super) const fn table_offset(superblock: &Superblock, copy: CopyName) -> u64 {
    match copy {
        CopyName::A => superblock.table_a_offset().get(),
        CopyName::B => superblock.table_b_offset().get(),
    }
}

pub(super) const fn other(copy: CopyName) -> CopyName {
    match copy {
        CopyName::A => CopyName::B,
        CopyName::B => CopyName::A,
    }
}

/// Bytes of the memory; of what lies behind its end, as many zeros.
fn read<M: PoolMedium>(medium: &M, offset: u64, length_bytes: u64) -> Result<Vec<u8>, PmemError> {
    let mut bytes = vec![0; length_bytes as usize];
    let there = medium
        .length_bytes()
        .saturating_sub(offset)
        .min(length_bytes) as usize;
    medium.read_at(offset.min(medium.length_bytes()), &mut bytes[..there])?;
    Ok(bytes)
}

/// Reads both copies of the superblock, and chooses.
pub(super) fn read_superblock<M: PoolMedium>(
    medium: &M,
) -> Result<Result<Chosen<Superblock>, CopiesError>, PmemError> {
    let a = read(medium, superblock_offset(CopyName::A), PAGE_BYTES)?;
    let b = read(medium, superblock_offset(CopyName::B), PAGE_BYTES)?;
    Ok(choose_superblock(&a, &b))
}

/// Reads both copies of the region table, and chooses.
pub(super) fn read_table<M: PoolMedium>(
    medium: &M,
    superblock: &Superblock,
) -> Result<Result<Chosen<RegionTable>, CopiesError>, PmemError> {
    let length_bytes = superblock.table_length_bytes();
    let a = read(medium, table_offset(superblock, CopyName::A), length_bytes)?;
    let b = read(medium, table_offset(superblock, CopyName::B), length_bytes)?;
    Ok(choose_table(superblock, &a, &b))
}

/// Whether either copy of the superblock begins like one, sound or not.
pub(super) fn looks_like_a_pool<M: PoolMedium>(medium: &M) -> Result<bool, PmemError> {
    for copy in [CopyName::A, CopyName::B] {
        if read(medium, superblock_offset(copy), 8)? == SUPERBLOCK_MAGIC.to_le_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is to be said where no copy can be relied on.
pub(super) fn refusal<M: PoolMedium>(
    medium: &M,
    source: CopiesError,
) -> Result<PoolError, PmemError> {
    let place = medium.place();
    Ok(match source {
        CopiesError::Version { found, .. } => PoolError::Version {
            place,
            found,
            known: FORMAT_VERSION,
        },
        _ if looks_like_a_pool(medium)? => PoolError::Damaged { place, source },
        _ => PoolError::NotAPool { place, source },
    })
}

/// Writes one copy of the superblock; durable on return.
pub(super) fn write_superblock<M: PoolMedium>(
    medium: &M,
    superblock: &Superblock,
    copy: CopyName,
) -> Result<(), PmemError> {
    write_durably(medium, superblock_offset(copy), &superblock.encode())
}

/// The bytes of a table, as they stand at the start of a copy, and zeros up to the end of a page. Whole pages of a file are written by a write
/// call; a few bytes go through the mapping, whose pages are write-protected after each sync: that fault costs more than the sync itself.
pub(super) fn table_image(
    superblock: &Superblock,
    table: &RegionTable,
) -> Result<Vec<u8>, FormatError> {
    let page = PAGE_BYTES as usize;
    let mut image = vec![0; table.encoded_length_bytes().next_multiple_of(page)];
    table.encode(superblock, &mut image)?;
    Ok(image)
}

/// Writes one copy of the region table; durable on return.
pub(super) fn write_table<M: PoolMedium>(
    medium: &M,
    superblock: &Superblock,
    image: &[u8],
    copy: CopyName,
) -> Result<(), PmemError> {
    write_durably(medium, table_offset(superblock, copy), image)
}

/// Writes a copy of the superblock where it isn't this; whether it was not.
pub(super) fn rewrite_superblock<M: PoolMedium>(
    medium: &M,
    superblock: &Superblock,
    copy: CopyName,
) -> Result<bool, PmemError> {
    rewrite(medium, superblock_offset(copy), &superblock.encode())
}

/// Writes a copy of the region table where it isn't this; whether it was not.
pub(super) fn rewrite_table<M: PoolMedium>(
    medium: &M,
    superblock: &Superblock,
    image: &[u8],
    copy: CopyName,
) -> Result<bool, PmemError> {
    rewrite(medium, table_offset(superblock, copy), image)
}

fn rewrite<M: PoolMedium>(medium: &M, offset: u64, bytes: &[u8]) -> Result<bool, PmemError> {
    if read(medium, offset, bytes.len() as u64)? == bytes {
        return Ok(false);
    }
    write_durably(medium, offset, bytes)?;
    Ok(true)
}

fn write_durably<M: PoolMedium>(medium: &M, offset: u64, bytes: &[u8]) -> Result<(), PmemError> {
    medium.write_at(offset, bytes)?;
    persist_one(medium, offset..offset + bytes.len() as u64)
}

pub(super) fn persist_one<M: PoolMedium>(medium: &M, range: Range<u64>) -> Result<(), PmemError> {
    medium.persist(std::slice::from_ref(&range))
}

/// What is to be said of the copy that was not chosen; none where it is the same.
pub(super) fn fault_of(other: &OtherCopy) -> Option<String> {
    match other {
        OtherCopy::Same => None,
        OtherCopy::Older { generation } => Some(format!(
            "is of generation {generation}: a change was cut short"
        )),
        OtherCopy::Faulty(fault) => Some(format!("is {fault}")),
    }
}
