//! Terms of a spread region: which writer's numbers count, and since where.
//!
//! Each primary has a term, higher than all before it. A member knows the term that is established in the term word of its
//! publish page, and keeps what belongs to it in one of two term records there; the other one is of an earlier term, or proposed for
//! a later one.

use crate::bytes::{array_at, check_frame, check_zero, put, u32_at, u64_at};
use crate::checksum::crc32c_around;
use crate::{FORMAT_VERSION, FormatError, RegionOffset, SpreadId, Structure};

/// The first eight bytes of a term record: `PMUTERM1`.
pub const TERM_MAGIC: u64 = u64::from_le_bytes(*b"PMUTERM1");
/// Where the term word stands: the established term, 0 for none. It changes only by ATOMIC WRITE.
pub const TERM_WORD_OFFSET: RegionOffset = RegionOffset(512);
/// Where the two term records stand.
pub const TERM_RECORD_OFFSETS: [RegionOffset; 2] = [RegionOffset(1024), RegionOffset(2048)];
/// How many bytes a term record has.
pub const TERM_RECORD_BYTES: usize = 576;
/// How many terms a record remembers, its own included.
pub const TERMS_KEPT_MAX: usize = 32;

const STARTS: usize = 64;

const _: () = assert!(STARTS + TERMS_KEPT_MAX * 16 == TERM_RECORD_BYTES);

/// Number of a term, from 1; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

impl core::fmt::Display for Term {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.0, formatter)
    }
}

/// Where a term began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermStart {
    /// The term.
    pub term: Term,
    /// What was committed when it began: the number of the newest set, or the end of the log.
    pub behind: u64,
}

/// What a member keeps about its term.
///
/// ```text
///  0  magic `PMUTERM1`     8  version    12  CRC-32C of all
/// 16  spread id           32  generation
/// 40  committed           48  count of starts, u32   52  missed, u32      56  mark
/// 64  for each of 32: term and what it began behind; zeros where there are fewer
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermRecord {
    /// The spread region.
    pub id: SpreadId,
    /// The generation of the members that the primary saw.
    pub generation: u64,
    /// What was committed when the record was made: at least what the term began behind.
    pub committed: u64,
    /// At most `committed`. Of a log: up to where it was cleared when the record was made. Of sets: see [`Self::missed`].
    pub mark: u64,
    /// Of sets: of so many above `mark` this member may have no share, or a part of one: it was away, or was cut off while they were written.
    pub missed: u32,
    /// The last terms, 1 to [`TERMS_KEPT_MAX`], ascending; the last one is the record's own.
    pub starts: Vec<TermStart>,
}

impl TermRecord {
    /// The record's own term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.starts.last().map_or(Term(0), |start| start.term)
    }

    /// The bytes. More than [`TERMS_KEPT_MAX`] starts: the oldest are left out.
    #[must_use]
    pub fn encode(&self) -> [u8; TERM_RECORD_BYTES] {
        let mut bytes = [0; TERM_RECORD_BYTES];
        let starts = &self.starts[self.starts.len().saturating_sub(TERMS_KEPT_MAX)..];
        put(&mut bytes, 0, &TERM_MAGIC.to_le_bytes());
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.id.0);
        put(&mut bytes, 32, &self.generation.to_le_bytes());
        put(&mut bytes, 40, &self.committed.to_le_bytes());
        put(&mut bytes, 48, &(starts.len() as u32).to_le_bytes());
        put(&mut bytes, 52, &self.missed.to_le_bytes());
        put(&mut bytes, 56, &self.mark.to_le_bytes());
        for (index, start) in starts.iter().enumerate() {
            let at = STARTS + index * 16;
            put(&mut bytes, at, &start.term.0.to_le_bytes());
            put(&mut bytes, at + 8, &start.behind.to_le_bytes());
        }
        let checksum = crc32c_around(&bytes, 12).unwrap_or_default();
        put(&mut bytes, 12, &checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote, from the beginning of `bytes`, which may be anything.
    ///
    /// # Errors
    /// [`FormatError`]: no term record, damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let structure = Structure::TermRecord;
        let Some(bytes) = bytes.get(..TERM_RECORD_BYTES) else {
            return Err(FormatError::TooShort {
                structure,
                found_bytes: bytes.len() as u64,
                needed_bytes: TERM_RECORD_BYTES as u64,
            });
        };
        check_frame(bytes, structure, TERM_MAGIC)?;
        let count = u32_at(bytes, 48);
        if !(1..=TERMS_KEPT_MAX as u32).contains(&count) {
            return Err(wrong("count of terms", count.into(), "1 to 32"));
        }
        let end = STARTS + count as usize * 16;
        check_zero(&bytes[end..], structure, "bytes behind the terms")?;
        let starts: Vec<_> = bytes[STARTS..end]
            .chunks_exact(16)
            .map(|start| TermStart {
                term: Term(u64_at(start, 0)),
                behind: u64_at(start, 8),
            })
            .collect();
        let record = Self {
            id: SpreadId(array_at(bytes, 16)),
            generation: u64_at(bytes, 32),
            committed: u64_at(bytes, 40),
            mark: u64_at(bytes, 56),
            missed: u32_at(bytes, 52),
            starts,
        };
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), FormatError> {
        let mut before = TermStart {
            term: Term(0),
            behind: 0,
        };
        for start in &self.starts {
            if start.term <= before.term || start.behind < before.behind {
                return Err(wrong("term", start.term.0, "ascending terms"));
            }
            before = *start;
        }
        if self.mark.saturating_add(self.missed.into()) > self.committed {
            return Err(wrong("mark", self.mark, "what is committed, or less"));
        }
        if self.committed < before.behind {
            return Err(wrong(
                "committed",
                self.committed,
                "what the term began behind, or more",
            ));
        }
        Ok(())
    }
}

fn wrong(field: &'static str, found: u64, expected: &'static str) -> FormatError {
    FormatError::Field {
        structure: Structure::TermRecord,
        field,
        found,
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(terms: &[(u64, u64)], committed: u64) -> TermRecord {
        TermRecord {
            id: SpreadId([7; 16]),
            generation: 3,
            committed,
            mark: committed / 2,
            missed: (committed / 3) as u32,
            starts: terms
                .iter()
                .map(|(term, behind)| TermStart {
                    term: Term(*term),
                    behind: *behind,
                })
                .collect(),
        }
    }

    #[test]
    fn d06_a_term_record_reads_back_and_any_changed_bit_is_seen() {
        let record = record(&[(1, 0), (4, 9)], 12);
        let bytes = record.encode();
        assert_eq!(TermRecord::decode(&bytes).as_ref(), Ok(&record));
        assert_eq!(record.term(), Term(4));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(TermRecord::decode(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn d06_terms_ascend_and_the_oldest_are_left_out() {
        for bad in [
            record(&[], 0),
            record(&[(2, 0), (2, 1)], 1),
            record(&[(1, 5), (2, 4)], 9),
            record(&[(1, 5)], 4),
            TermRecord {
                mark: 10,
                ..record(&[(1, 5)], 9)
            },
        ] {
            assert!(TermRecord::decode(&bad.encode()).is_err(), "{bad:?}");
        }
        let terms: Vec<_> = (1..=40).map(|term| (term, term)).collect();
        let kept = TermRecord::decode(&record(&terms, 40).encode()).unwrap();
        assert_eq!(kept.starts.len(), TERMS_KEPT_MAX);
        assert_eq!((kept.starts[0].term, kept.term()), (Term(9), Term(40)));
    }
}
