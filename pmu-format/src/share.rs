//! What stands before a member's shard of a record, in a log that is spread over several units.

use crate::bytes::{array_at, check_frame, check_zero, put, u64_at};
use crate::checksum::{Digest, crc32c_around};
use crate::{FORMAT_VERSION, FormatError, SpreadId, Structure, Term};

/// The first eight bytes of a record share: `PMURSHA1`.
pub const RECORD_SHARE_MAGIC: u64 = u64::from_le_bytes(*b"PMURSHA1");
/// How many bytes of a member's record stand before its shard.
pub const RECORD_SHARE_BYTES: usize = 56;

const CHECKSUM: usize = 12;

/// The checksum of a whole record of a spread log: CRC-64/NVME of the spread id and the record's bytes.
#[must_use]
pub fn spread_record_checksum(id: &SpreadId, record: &[u8]) -> u64 {
    let mut digest = Digest::new();
    digest.update(&id.0);
    digest.update(record);
    digest.finish()
}

/// The beginning of the payload of a member's record; the shard follows. The same on all members but for the index.
///
/// A record of L bytes has K data shards of ⌈L/K⌉ bytes each, the last ones filled up with zeros, and redundant shards of the same length.
/// Data shard *s* lies on member *s*, and the redundant ones lie behind.
///
/// ```text
///  0  magic `PMURSHA1`     8  version    12  CRC-32C of all 56
/// 16  term                24  sequence within the term, from 1
/// 32  bytes of the record 40  CRC-64/NVME of spread id and record
/// 48  layout: kind, K, M  51  own index  52  zeros
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordShare {
    /// The writer's term.
    pub term: Term,
    /// The number of the record within the term, from 1.
    pub sequence: u64,
    /// How many bytes the whole record has, from 1.
    pub record_bytes: u64,
    /// The whole record's checksum: see [`spread_record_checksum`].
    pub record_checksum: u64,
    /// Kind, data shards and redundant shards. Not interpreted here, but for the data shards in [`Self::shard_bytes`].
    pub layout: [u8; 3],
    /// Which member this is.
    pub own_index: u8,
}

impl RecordShare {
    /// The bytes. Does not allocate.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_SHARE_BYTES] {
        let mut bytes = [0; RECORD_SHARE_BYTES];
        put(&mut bytes, 0, &RECORD_SHARE_MAGIC.to_le_bytes());
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.term.0.to_le_bytes());
        put(&mut bytes, 24, &self.sequence.to_le_bytes());
        put(&mut bytes, 32, &self.record_bytes.to_le_bytes());
        put(&mut bytes, 40, &self.record_checksum.to_le_bytes());
        put(&mut bytes, 48, &self.layout);
        put(&mut bytes, 51, &[self.own_index]);
        let checksum = crc32c_around(&bytes, CHECKSUM).unwrap_or_default();
        put(&mut bytes, CHECKSUM, &checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote, from the beginning of a record's payload of `payload_bytes`, which may be anything.
    ///
    /// # Errors
    /// [`FormatError`]: no record share, damaged, of another version, or with a shard of another length than its record makes.
    pub fn decode(bytes: &[u8], payload_bytes: u64) -> Result<Self, FormatError> {
        let structure = Structure::RecordShare;
        let Some(bytes) = bytes.get(..RECORD_SHARE_BYTES) else {
            return Err(FormatError::TooShort {
                structure,
                found_bytes: bytes.len() as u64,
                needed_bytes: RECORD_SHARE_BYTES as u64,
            });
        };
        check_frame(bytes, structure, RECORD_SHARE_MAGIC)?;
        check_zero(&bytes[52..], structure, "bytes at the end")?;
        let found = Self {
            term: Term(u64_at(bytes, 16)),
            sequence: u64_at(bytes, 24),
            record_bytes: u64_at(bytes, 32),
            record_checksum: u64_at(bytes, 40),
            layout: array_at(bytes, 48),
            own_index: bytes[51],
        };
        for (field, found) in [
            ("term", found.term.0),
            ("sequence number", found.sequence),
            ("bytes of the record", found.record_bytes),
            ("data shards", found.layout[1].into()),
        ] {
            if found == 0 {
                return Err(FormatError::Field {
                    structure,
                    field,
                    found,
                    expected: "1 or more",
                });
            }
        }
        let shard_bytes = payload_bytes.checked_sub(RECORD_SHARE_BYTES as u64);
        if shard_bytes != Some(found.shard_bytes()) {
            return Err(FormatError::Mismatch {
                structure,
                field: "bytes of the shard",
                found: shard_bytes.unwrap_or_default(),
                expected: found.shard_bytes(),
            });
        }
        Ok(found)
    }

    /// How long each shard of the record is.
    #[must_use]
    pub fn shard_bytes(&self) -> u64 {
        self.record_bytes.div_ceil(u64::from(self.layout[1]).max(1))
    }

    /// Whether both are shares of one record.
    #[must_use]
    pub fn goes_with(&self, other: &Self) -> bool {
        *self
            == Self {
                own_index: self.own_index,
                ..*other
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> RecordShare {
        RecordShare {
            term: Term(7),
            sequence: 9,
            record_bytes: 100,
            record_checksum: spread_record_checksum(&SpreadId([1; 16]), &[5; 100]),
            layout: [3, 3, 1],
            own_index: 2,
        }
    }

    #[test]
    fn p12_a_record_share_reads_back_and_any_changed_bit_is_seen() {
        let bytes = share().encode();
        let payload_bytes = RECORD_SHARE_BYTES as u64 + 34;
        assert_eq!(RecordShare::decode(&bytes, payload_bytes), Ok(share()));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(
                RecordShare::decode(&changed, payload_bytes).is_err(),
                "{bit}"
            );
        }
        for length in 0..RECORD_SHARE_BYTES {
            assert!(RecordShare::decode(&bytes[..length], payload_bytes).is_err());
        }
    }

    #[test]
    fn p12_a_shard_is_as_long_as_its_record_makes_it() {
        let bytes = share().encode();
        for payload_bytes in [0, 55, 56, 89, 91, u64::MAX] {
            assert!(RecordShare::decode(&bytes, payload_bytes).is_err());
        }
        for empty in [
            RecordShare {
                term: Term(0),
                ..share()
            },
            RecordShare {
                sequence: 0,
                ..share()
            },
            RecordShare {
                record_bytes: 0,
                ..share()
            },
            RecordShare {
                layout: [1, 0, 0],
                ..share()
            },
        ] {
            let payload_bytes = RECORD_SHARE_BYTES as u64 + empty.shard_bytes();
            assert!(RecordShare::decode(&empty.encode(), payload_bytes).is_err());
        }
    }

    #[test]
    fn b04_shares_of_two_records_never_go_together() {
        let other = RecordShare {
            own_index: 0,
            ..share()
        };
        assert!(share().goes_with(&other));
        for other in [
            RecordShare {
                term: Term(8),
                ..share()
            },
            RecordShare {
                sequence: 10,
                ..share()
            },
            RecordShare {
                record_bytes: 99,
                ..share()
            },
            RecordShare {
                record_checksum: 0,
                ..share()
            },
        ] {
            assert!(!share().goes_with(&other));
        }
        let record = [5; 100];
        let of = |id| spread_record_checksum(&SpreadId([id; 16]), &record);
        assert_ne!(of(1), of(2));
    }
}
