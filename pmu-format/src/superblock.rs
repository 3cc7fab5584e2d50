//! The superblock: what a pool is and where its tables stand.

use crate::bytes::{array_at, put, round_up, u32_at, u64_at};
use crate::checksum::crc32c_around;
use crate::{FORMAT_VERSION, FormatError, Medium, PAGE_BYTES, PoolId, PoolOffset, Structure};

/// Extents begin and end on multiples of this.
pub const GRANULE_BYTES: u64 = 64 * 1024;
/// The shortest table copy.
pub const TABLE_LENGTH_MIN_BYTES: u64 = 64 * 1024;
/// The longest table copy.
pub const TABLE_LENGTH_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// The length of a table copy unless somebody says otherwise.
pub const TABLE_LENGTH_DEFAULT_BYTES: u64 = 256 * 1024;
/// Where copy A of the superblock stands.
pub const SUPERBLOCK_COPY_A_OFFSET: PoolOffset = PoolOffset(0);
/// Where copy B of the superblock stands.
pub const SUPERBLOCK_COPY_B_OFFSET: PoolOffset = PoolOffset(PAGE_BYTES);
/// How many bytes of its page the superblock takes; the rest of the page is zero.
pub const SUPERBLOCK_BYTES: usize = 128;
/// The first eight bytes of a superblock: `PMUPOOL1`.
pub const SUPERBLOCK_MAGIC: u64 = u64::from_le_bytes(*b"PMUPOOL1");

const TABLE_A_OFFSET: u64 = 2 * PAGE_BYTES;

mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const CHECKSUM: usize = 12;
    pub(super) const POOL_ID: usize = 16;
    pub(super) const LENGTH: usize = 32;
    pub(super) const GRANULE: usize = 40;
    pub(super) const TABLE_A: usize = 48;
    pub(super) const TABLE_B: usize = 56;
    pub(super) const TABLE_LENGTH: usize = 64;
    pub(super) const DATA: usize = 72;
    pub(super) const CREATED: usize = 80;
    pub(super) const MEDIUM: usize = 88;
    pub(super) const RESERVED: usize = 92;
    pub(super) const RESERVED_BYTES: usize = 36;
}

const _: () = assert!(field::RESERVED + field::RESERVED_BYTES == SUPERBLOCK_BYTES);
const _: () = assert!(field::MEDIUM + 4 == field::RESERVED);
const _: () = assert!(TABLE_LENGTH_MIN_BYTES.is_multiple_of(PAGE_BYTES));
const _: () = assert!(TABLE_LENGTH_MAX_BYTES.is_multiple_of(PAGE_BYTES));
const _: () = assert!(GRANULE_BYTES.is_multiple_of(PAGE_BYTES));

/// What a pool is. A value of this type always describes a pool that can exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pool_id: PoolId,
    length_bytes: u64,
    table_length_bytes: u64,
    created_seconds: u64,
    medium: Medium,
}

impl Superblock {
    /// Describes a new pool of `length_bytes`, with two tables of `table_length_bytes` each (a
    /// multiple of 4096 from 64 KiB to 16 MiB), created `created_seconds` after 1970.
    ///
    /// # Errors
    /// [`FormatError::Field`] for a table length out of range; [`FormatError::OutOfBounds`] for a
    /// pool too short for its tables and one granule.
    pub fn new(
        pool_id: PoolId,
        length_bytes: u64,
        table_length_bytes: u64,
        created_seconds: u64,
        medium: Medium,
    ) -> Result<Self, FormatError> {
        let superblock = Self {
            pool_id,
            length_bytes,
            table_length_bytes,
            created_seconds,
            medium,
        };
        superblock.check()?;
        Ok(superblock)
    }

    /// The pool's id.
    #[must_use]
    pub const fn pool_id(&self) -> PoolId {
        self.pool_id
    }

    /// The pool's length in bytes.
    #[must_use]
    pub const fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// The length of one copy of the region table in bytes.
    #[must_use]
    pub const fn table_length_bytes(&self) -> u64 {
        self.table_length_bytes
    }

    /// When the pool was made, in seconds since 1970.
    #[must_use]
    pub const fn created_seconds(&self) -> u64 {
        self.created_seconds
    }

    /// What the pool lies on.
    #[must_use]
    pub const fn medium(&self) -> Medium {
        self.medium
    }

    /// Where copy A of the region table stands.
    #[must_use]
    pub const fn table_a_offset(&self) -> PoolOffset {
        PoolOffset(TABLE_A_OFFSET)
    }

    /// Where copy B of the region table stands.
    #[must_use]
    pub const fn table_b_offset(&self) -> PoolOffset {
        PoolOffset(TABLE_A_OFFSET + self.table_length_bytes)
    }

    /// Where the first extent may begin: a multiple of the granule.
    #[must_use]
    pub const fn data_offset(&self) -> PoolOffset {
        // The check bounds the table's length, so that none of this can overflow.
        let tables_end = TABLE_A_OFFSET + 2 * self.table_length_bytes;
        PoolOffset(tables_end.next_multiple_of(GRANULE_BYTES))
    }

    /// Where the last extent must end: the end of the last whole granule.
    #[must_use]
    pub const fn data_end(&self) -> PoolOffset {
        PoolOffset(self.length_bytes - self.length_bytes % GRANULE_BYTES)
    }

    /// The page to write, the same for both copies.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE_BYTES as usize] {
        let mut page = [0_u8; PAGE_BYTES as usize];
        put(&mut page, field::MAGIC, &SUPERBLOCK_MAGIC.to_le_bytes());
        put(&mut page, field::VERSION, &FORMAT_VERSION.to_le_bytes());
        put(&mut page, field::POOL_ID, self.pool_id.as_bytes());
        put(&mut page, field::LENGTH, &self.length_bytes.to_le_bytes());
        put(&mut page, field::GRANULE, &GRANULE_BYTES.to_le_bytes());
        put(
            &mut page,
            field::TABLE_A,
            &self.table_a_offset().get().to_le_bytes(),
        );
        put(
            &mut page,
            field::TABLE_B,
            &self.table_b_offset().get().to_le_bytes(),
        );
        put(
            &mut page,
            field::TABLE_LENGTH,
            &self.table_length_bytes.to_le_bytes(),
        );
        put(
            &mut page,
            field::DATA,
            &self.data_offset().get().to_le_bytes(),
        );
        put(
            &mut page,
            field::CREATED,
            &self.created_seconds.to_le_bytes(),
        );
        put(
            &mut page,
            field::MEDIUM,
            &self.medium.to_number().to_le_bytes(),
        );
        let checksum = crc32c_around(&page[..SUPERBLOCK_BYTES], field::CHECKSUM).unwrap_or(0);
        put(&mut page, field::CHECKSUM, &checksum.to_le_bytes());
        page
    }

    /// Reads and checks one copy. `page` is the whole page; more bytes are ignored.
    ///
    /// # Errors
    /// [`FormatError`], in this order: too short, wrong magic, wrong checksum, unknown version, a
    /// field out of range, bytes behind the superblock that are not zero.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        let structure = Structure::Superblock;
        let Some(page) = page.get(..PAGE_BYTES as usize) else {
            return Err(FormatError::TooShort {
                structure,
                found_bytes: page.len() as u64,
                needed_bytes: PAGE_BYTES,
            });
        };
        let (block, rest) = page.split_at(SUPERBLOCK_BYTES);
        crate::bytes::check_frame(block, structure, SUPERBLOCK_MAGIC)?;
        crate::bytes::check_zero(&block[field::RESERVED..], structure, "reserved bytes")?;
        crate::bytes::check_zero(rest, structure, "rest of the page")?;
        let number = u32_at(block, field::MEDIUM);
        let medium = Medium::from_number(number).ok_or(FormatError::Field {
            structure,
            field: "medium",
            found: number.into(),
            expected: "1 to 5",
        })?;
        let superblock = Self {
            pool_id: PoolId(array_at(block, field::POOL_ID)),
            length_bytes: u64_at(block, field::LENGTH),
            table_length_bytes: u64_at(block, field::TABLE_LENGTH),
            created_seconds: u64_at(block, field::CREATED),
            medium,
        };
        superblock.check()?;
        for (name, offset, expected) in [
            ("granule", field::GRANULE, GRANULE_BYTES),
            (
                "offset of table A",
                field::TABLE_A,
                superblock.table_a_offset().get(),
            ),
            (
                "offset of table B",
                field::TABLE_B,
                superblock.table_b_offset().get(),
            ),
            (
                "offset of the first extent",
                field::DATA,
                superblock.data_offset().get(),
            ),
        ] {
            let found = u64_at(block, offset);
            if found != expected {
                return Err(FormatError::Mismatch {
                    structure,
                    field: name,
                    found,
                    expected,
                });
            }
        }
        Ok(superblock)
    }

    fn check(&self) -> Result<(), FormatError> {
        let structure = Structure::Superblock;
        let allowed = TABLE_LENGTH_MIN_BYTES..=TABLE_LENGTH_MAX_BYTES;
        if !allowed.contains(&self.table_length_bytes)
            || !self.table_length_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(FormatError::Field {
                structure,
                field: "length of a table copy",
                found: self.table_length_bytes,
                expected: "a multiple of 4096 from 65536 to 16777216",
            });
        }
        let tables_end = TABLE_A_OFFSET + 2 * self.table_length_bytes;
        let data = round_up(tables_end, GRANULE_BYTES).unwrap_or(u64::MAX);
        if self.length_bytes < data.saturating_add(GRANULE_BYTES) {
            return Err(FormatError::OutOfBounds {
                structure,
                what: "first granule",
                offset: data,
                length_bytes: GRANULE_BYTES,
                limit: self.length_bytes,
            });
        }
        Ok(())
    }
}
