//! A region in append mode: tail, cursor, ring and records.

use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::checksum::{Digest, crc32c};
use crate::{
    Epoch, FORMAT_VERSION, FormatError, LogPosition, PAGE_BYTES, RegionId, RegionOffset, Structure,
};

/// Where the tail stands: the position behind the last published record.
pub const LOG_TAIL_OFFSET: RegionOffset = RegionOffset(0);
/// Where the epoch of the publishing writer stands.
pub const LOG_EPOCH_OFFSET: RegionOffset = RegionOffset(64);
/// Where the cursor stands: the position up to which the backup has cleared.
pub const LOG_CURSOR_OFFSET: RegionOffset = RegionOffset(PAGE_BYTES);
/// Where the inverse of the cursor stands.
pub const LOG_CURSOR_INVERSE_OFFSET: RegionOffset = RegionOffset(PAGE_BYTES + 64);
/// Where the ring begins.
pub const LOG_RING_OFFSET: RegionOffset = RegionOffset(2 * PAGE_BYTES);
/// How many bytes of a page hold its two words, which are read together.
pub const PAGE_PAIR_BYTES: u64 = 72;
/// Records begin and end on multiples of this.
pub const RECORD_ALIGNMENT_BYTES: u64 = 8;
/// How many bytes a record header has.
pub const RECORD_HEADER_BYTES: usize = 48;
/// The magic number of a record.
pub const RECORD_MAGIC: u16 = 0x4c50;

const FLAG_CONTINUES: u16 = 1;

mod field {
    pub(super) const CHECKSUM: usize = 0;
    pub(super) const MAGIC: usize = 4;
    pub(super) const FLAGS: usize = 6;
    pub(super) const POSITION: usize = 8;
    pub(super) const SEQUENCE: usize = 16;
    pub(super) const EPOCH: usize = 24;
    pub(super) const PAYLOAD_LENGTH: usize = 32;
    pub(super) const VERSION: usize = 36;
    pub(super) const PAYLOAD_CHECKSUM: usize = 40;
}

const _: () = assert!(field::PAYLOAD_CHECKSUM + 8 == RECORD_HEADER_BYTES);
const _: () = assert!((RECORD_HEADER_BYTES as u64).is_multiple_of(RECORD_ALIGNMENT_BYTES));
const _: () = assert!(field::VERSION + 4 == field::PAYLOAD_CHECKSUM);

/// How many bytes of the ring a record with this payload takes: header, payload, padding.
#[must_use]
pub const fn record_length_bytes(payload_bytes: u32) -> u64 {
    RECORD_HEADER_BYTES as u64 + (payload_bytes as u64).next_multiple_of(RECORD_ALIGNMENT_BYTES)
}

/// A digest that has taken in the region's id already, as the checksum of a record's payload
/// begins: a record of another region is never believed.
#[must_use]
pub fn record_payload_digest(region: &RegionId) -> Digest {
    let mut digest = Digest::new();
    digest.update(region.as_bytes());
    digest
}

/// The checksum of a whole payload of a record in `region`.
#[must_use]
pub fn record_payload_checksum(region: &RegionId, payload: &[u8]) -> u64 {
    let mut digest = record_payload_digest(region);
    digest.update(payload);
    digest.finish()
}

/// A range of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegionPiece {
    /// Where it begins in the region.
    pub offset: RegionOffset,
    /// How long it is; 0 where there is none.
    pub length_bytes: u64,
}

/// A range of a log, as one or two ranges of the region: it is cut where the ring ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pieces {
    /// The first part.
    pub first: RegionPiece,
    /// What goes on at the ring's beginning; of length 0 where nothing does.
    pub second: RegionPiece,
}

impl Pieces {
    /// The parts that are not empty, in order.
    pub fn iter(&self) -> impl Iterator<Item = RegionPiece> + use<> {
        [self.first, self.second]
            .into_iter()
            .filter(|piece| piece.length_bytes > 0)
    }

    /// The length of both parts.
    #[must_use]
    pub const fn length_bytes(&self) -> u64 {
        self.first.length_bytes + self.second.length_bytes
    }
}

/// Where what stands in a region in append mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogGeometry {
    ring_bytes: u64,
}

impl LogGeometry {
    /// Divides a region of `region_bytes`: two pages, and the ring takes the rest.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] for a ring of less than a page, [`FormatError::Field`] for a
    /// length that is no multiple of 8.
    pub fn new(region_bytes: u64) -> Result<Self, FormatError> {
        let structure = Structure::LogGeometry;
        let needed_bytes = 3 * PAGE_BYTES;
        if region_bytes < needed_bytes {
            let found_bytes = region_bytes;
            return Err(FormatError::TooShort {
                structure,
                found_bytes,
                needed_bytes,
            });
        }
        if !region_bytes.is_multiple_of(RECORD_ALIGNMENT_BYTES) {
            let (field, expected) = ("length of the region", "a multiple of 8");
            return Err(FormatError::Field {
                structure,
                field,
                found: region_bytes,
                expected,
            });
        }
        Ok(Self {
            ring_bytes: region_bytes - 2 * PAGE_BYTES,
        })
    }

    /// How long the ring is in bytes.
    #[must_use]
    pub const fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// The longest payload of a record that an empty ring can take.
    #[must_use]
    pub const fn payload_max_bytes(&self) -> u32 {
        let room = self.ring_bytes - RECORD_HEADER_BYTES as u64;
        // The last value that padding leaves within 32 bits.
        let limit = u32::MAX as u64;
        (if room < limit { room } else { limit }) as u32
    }

    /// Where a range of the log lies in the region. A range longer than the ring is cut to it.
    #[must_use]
    pub const fn pieces(&self, position: LogPosition, length_bytes: u64) -> Pieces {
        let length = if length_bytes < self.ring_bytes {
            length_bytes
        } else {
            self.ring_bytes
        };
        let inside = position.get() % self.ring_bytes;
        let room = self.ring_bytes - inside;
        let first = if length < room { length } else { room };
        Pieces {
            first: RegionPiece {
                offset: RegionOffset(LOG_RING_OFFSET.get() + inside),
                length_bytes: first,
            },
            second: RegionPiece {
                offset: LOG_RING_OFFSET,
                length_bytes: length - first,
            },
        }
    }
}

/// The two words of a log's publish page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPublishWords {
    /// The position behind the last published record.
    pub tail: LogPosition,
    /// The epoch of the writer that publishes; records behind the tail must be of this one.
    pub epoch: Epoch,
}

impl LogPublishWords {
    /// Reads the words from the beginning of the publish page ([`PAGE_PAIR_BYTES`] or more).
    ///
    /// # Errors
    /// [`FormatError::TooShort`], or [`FormatError::Checksum`] for a tail that is damaged.
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        check_page(page)?;
        let tail = u64_at(page, LOG_TAIL_OFFSET.get() as usize);
        Ok(Self {
            tail: LogPosition::of_tail_word(tail)?,
            epoch: Epoch(u64_at(page, LOG_EPOCH_OFFSET.get() as usize)),
        })
    }
}

/// The two words of a log's cursor page, as read. An empty (zeroed) page is a cursor of 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorPair {
    /// The cursor as it stands in the first word.
    pub cursor: u64,
    /// The second word: the cursor with every bit inverted.
    pub inverse: u64,
}

impl CursorPair {
    /// The pair that says `cursor`.
    #[must_use]
    pub const fn new(cursor: LogPosition) -> Self {
        Self {
            cursor: cursor.get(),
            inverse: !cursor.get(),
        }
    }

    /// Reads the pair from the beginning of the cursor page ([`PAGE_PAIR_BYTES`] or more).
    ///
    /// # Errors
    /// [`FormatError::TooShort`].
    pub fn decode(page: &[u8]) -> Result<Self, FormatError> {
        check_page(page)?;
        let inverse = (LOG_CURSOR_INVERSE_OFFSET.get() - LOG_CURSOR_OFFSET.get()) as usize;
        Ok(Self {
            cursor: u64_at(page, 0),
            inverse: u64_at(page, inverse),
        })
    }

    /// The cursor that both words say. `None` where they differ: a clear is under way or was cut
    /// short, or one of them is damaged. Two words of zero are a log that was never cleared.
    #[must_use]
    pub const fn agreed(&self) -> Option<LogPosition> {
        let cursor = self.cursor_word();
        match (cursor, self.inverse_word()) {
            (Some(cursor), Some(inverse)) if cursor.get() == inverse.get() => Some(cursor),
            _ => None,
        }
    }

    /// What the first word says; `None` for no multiple of 8.
    #[must_use]
    pub const fn cursor_word(&self) -> Option<LogPosition> {
        aligned(self.cursor)
    }

    /// What the second word says; `None` for no multiple of 8. Zero, which no clear ever writes,
    /// stands for a log that was never cleared.
    #[must_use]
    pub const fn inverse_word(&self) -> Option<LogPosition> {
        if self.inverse == 0 {
            Some(LogPosition(0))
        } else {
            aligned(!self.inverse)
        }
    }
}

const fn aligned(word: u64) -> Option<LogPosition> {
    if word.is_multiple_of(RECORD_ALIGNMENT_BYTES) {
        Some(LogPosition(word))
    } else {
        None
    }
}

fn check_page(page: &[u8]) -> Result<(), FormatError> {
    if (page.len() as u64) < PAGE_PAIR_BYTES {
        return Err(FormatError::TooShort {
            structure: Structure::LogWords,
            found_bytes: page.len() as u64,
            needed_bytes: PAGE_PAIR_BYTES,
        });
    }
    Ok(())
}

/// The header of a log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Whether the batch goes on with the next record.
    pub continues: bool,
    /// Where the record stands in the log.
    pub position: LogPosition,
    /// Its number within its epoch, from 1.
    pub sequence: u64,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The length of the payload in bytes, from 1.
    pub payload_bytes: u32,
    /// CRC-64/NVME of region id and payload: see [`record_payload_digest`].
    pub payload_checksum: u64,
}

impl RecordHeader {
    /// How many bytes of the ring the whole record takes.
    #[must_use]
    pub const fn record_bytes(&self) -> u64 {
        record_length_bytes(self.payload_bytes)
    }

    /// The position behind the record, `None` where 64 bits can't hold it.
    #[must_use]
    pub const fn end(&self) -> Option<LogPosition> {
        self.position.checked_add(self.record_bytes())
    }

    /// The bytes to write at the record's position. Does not allocate.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut header = [0_u8; RECORD_HEADER_BYTES];
        let flags = if self.continues { FLAG_CONTINUES } else { 0 };
        put(&mut header, field::MAGIC, &RECORD_MAGIC.to_le_bytes());
        put(&mut header, field::FLAGS, &flags.to_le_bytes());
        put(
            &mut header,
            field::POSITION,
            &self.position.get().to_le_bytes(),
        );
        put(&mut header, field::SEQUENCE, &self.sequence.to_le_bytes());
        put(&mut header, field::EPOCH, &self.epoch.get().to_le_bytes());
        put(
            &mut header,
            field::PAYLOAD_LENGTH,
            &self.payload_bytes.to_le_bytes(),
        );
        put(&mut header, field::VERSION, &FORMAT_VERSION.to_le_bytes());
        put(
            &mut header,
            field::PAYLOAD_CHECKSUM,
            &self.payload_checksum.to_le_bytes(),
        );
        let checksum = crc32c(&header[field::MAGIC..]);
        put(&mut header, field::CHECKSUM, &checksum.to_le_bytes());
        header
    }

    /// Reads and checks the header at `position` of a log. Bytes behind the header are ignored;
    /// the payload is not looked at. Does not allocate.
    ///
    /// # Errors
    /// [`FormatError`], in this order: too short, wrong magic, wrong checksum, unknown version or
    /// flag, another position, sequence number 0, a payload of no bytes or longer than the ring.
    pub fn decode(
        bytes: &[u8],
        position: LogPosition,
        geometry: &LogGeometry,
    ) -> Result<Self, FormatError> {
        let structure = Structure::RecordHeader;
        let Some(bytes) = bytes.get(..RECORD_HEADER_BYTES) else {
            return Err(FormatError::TooShort {
                structure,
                found_bytes: bytes.len() as u64,
                needed_bytes: RECORD_HEADER_BYTES as u64,
            });
        };
        let flags = check_record_frame(bytes)?;
        let header = Self {
            continues: flags == FLAG_CONTINUES,
            position: LogPosition(u64_at(bytes, field::POSITION)),
            sequence: u64_at(bytes, field::SEQUENCE),
            epoch: Epoch(u64_at(bytes, field::EPOCH)),
            payload_bytes: u32_at(bytes, field::PAYLOAD_LENGTH),
            payload_checksum: u64_at(bytes, field::PAYLOAD_CHECKSUM),
        };
        if header.position != position {
            return Err(FormatError::Mismatch {
                structure,
                field: "position",
                found: header.position.get(),
                expected: position.get(),
            });
        }
        for (field, found) in [
            ("sequence number", header.sequence),
            ("payload length", header.payload_bytes.into()),
        ] {
            if found == 0 {
                let expected = "1 or more";
                return Err(FormatError::Field {
                    structure,
                    field,
                    found,
                    expected,
                });
            }
        }
        if header.record_bytes() > geometry.ring_bytes() || header.end().is_none() {
            return Err(FormatError::OutOfBounds {
                structure,
                what: "record",
                offset: header.position.get(),
                length_bytes: header.record_bytes(),
                limit: geometry.ring_bytes(),
            });
        }
        Ok(header)
    }

    /// Checks a payload's checksum, as computed with [`record_payload_digest`].
    ///
    /// # Errors
    /// [`FormatError::Checksum`].
    pub fn verify_payload_checksum(&self, computed: u64) -> Result<(), FormatError> {
        let stored = self.payload_checksum;
        if computed == stored {
            return Ok(());
        }
        let structure = Structure::RecordPayload;
        Err(FormatError::Checksum {
            structure,
            what: "payload",
            computed,
            stored,
        })
    }

    /// Whether this record may follow `predecessor` in a log: the same epoch and the next sequence
    /// number, or a higher epoch and sequence number 1. Positions are not compared.
    #[must_use]
    pub fn follows(&self, predecessor: &Self) -> bool {
        if self.epoch == predecessor.epoch {
            return predecessor.sequence.checked_add(1) == Some(self.sequence);
        }
        self.epoch > predecessor.epoch && self.sequence == 1
    }
}

/// Magic, checksum, version and flags of a record; returns the flags.
fn check_record_frame(bytes: &[u8]) -> Result<u16, FormatError> {
    let structure = Structure::RecordHeader;
    let magic = u16_at(bytes, field::MAGIC);
    if magic != RECORD_MAGIC {
        let (found, expected) = (magic.into(), RECORD_MAGIC.into());
        return Err(FormatError::Magic {
            structure,
            found,
            expected,
        });
    }
    let stored = u32_at(bytes, field::CHECKSUM);
    let computed = crc32c(&bytes[field::MAGIC..]);
    if stored != computed {
        return Err(FormatError::Checksum {
            structure,
            what: "header",
            computed: computed.into(),
            stored: stored.into(),
        });
    }
    let version = u32_at(bytes, field::VERSION);
    if version != FORMAT_VERSION {
        return Err(FormatError::Version {
            structure,
            found: version,
            expected: FORMAT_VERSION,
        });
    }
    let flags = u16_at(bytes, field::FLAGS);
    if flags & !FLAG_CONTINUES != 0 {
        let (field, expected) = ("flags", "0 or 1");
        return Err(FormatError::Field {
            structure,
            field,
            found: flags.into(),
            expected,
        });
    }
    Ok(flags)
}
