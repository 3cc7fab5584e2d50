//! What the payload of a set begins with that holds a snapshot of a program's memory, and the label of such a set.

use core::ops::Range;

use crate::bytes::{array_at, check_frame, check_zero, put, round_up, u32_at, u64_at};
use crate::checksum::{crc32c_around, crc64_nvme};
use crate::{FORMAT_VERSION, FormatError, Label, LogPosition, PAGE_BYTES, SetNumber, Structure};

/// The first eight bytes of a snapshot: `PMUSNAP1`.
pub const SNAPSHOT_MAGIC: u64 = u64::from_le_bytes(*b"PMUSNAP1");
/// How many bytes a snapshot's header has. Its table of runs follows.
pub const SNAPSHOT_HEADER_BYTES: usize = 128;
/// How many bytes a run takes in the table.
pub const SNAPSHOT_RUN_BYTES: usize = 8;
/// The most pages that an arena may have: what 32 bits count.
pub const SNAPSHOT_PAGES_MAX: u64 = u32::MAX as u64;

const CHECKSUM: usize = 12;
const FLAG_HEAP: u32 = 1;
const LABEL_FULL: &str = "snap full";
const LABEL_ON: &str = "snap on ";
const LABEL_OF: &str = " of ";
const LABEL_COVERED: &str = " @";

/// Which instance of a program took a series of snapshots: random. Snapshots of two series never make one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeriesId(pub [u8; 16]);

/// The snapshot on which an incremental one builds, and the full one at the beginning of its chain: numbers of sets of the same region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotBase {
    /// The set that holds the snapshot on which this one builds.
    pub set: SetNumber,
    /// The set that holds the full snapshot; the same as `set` where just that comes before.
    pub root: SetNumber,
}

/// What a set's label says of a snapshot in it, so that a list of sets shows the chains.
///
/// `snap full`, or `snap on 41 of 38`: it builds on set 41, and the chain begins with set 38. Behind that may stand ` @4096`: what a log holds
/// before that position is in the snapshot. A label proves nothing: the payload's header says the same of the chain, under its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// It needs no other one.
    Full,
    /// It holds what changed since another one.
    Incremental(SnapshotBase),
}

impl SnapshotKind {
    /// The label, with the position of a log before which the snapshot holds everything, if there is one; `None` where the numbers are too
    /// long for one (32 bytes: 20 digits together, 18 with a position). That of a full one always fits.
    #[must_use]
    pub fn label(&self, covered: Option<LogPosition>) -> Option<Label> {
        let mut text = match self {
            Self::Full => LABEL_FULL.to_owned(),
            Self::Incremental(base) => format!("{LABEL_ON}{}{LABEL_OF}{}", base.set, base.root),
        };
        if let Some(position) = covered {
            text = format!("{text}{LABEL_COVERED}{position}");
        }
        Label::new(&text).ok()
    }

    /// What a label says, in its text form, and the position that it names; `None` for one that isn't of a snapshot.
    #[must_use]
    pub fn of_label(text: &str) -> Option<(Self, Option<LogPosition>)> {
        let (text, covered) = match text.split_once(LABEL_COVERED) {
            Some((text, position)) => (text, Some(LogPosition(canonical(position)?))),
            None => (text, None),
        };
        if text == LABEL_FULL {
            return Some((Self::Full, covered));
        }
        let (set, root) = text.strip_prefix(LABEL_ON)?.split_once(LABEL_OF)?;
        let base = SnapshotBase {
            set: number(set)?,
            root: number(root)?,
        };
        (base.root <= base.set).then_some((Self::Incremental(base), covered))
    }

    /// What it builds on.
    #[must_use]
    pub const fn base(&self) -> Option<SnapshotBase> {
        match self {
            Self::Full => None,
            Self::Incremental(base) => Some(*base),
        }
    }
}

/// A number from 1 on as it is written: no sign, no zeros in front.
fn number(text: &str) -> Option<SetNumber> {
    canonical(text).filter(|number| *number > 0).map(SetNumber)
}

fn canonical(text: &str) -> Option<u64> {
    let number = text.parse::<u64>().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Adjacent pages of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRun {
    /// Number of the first page.
    pub first_page: u32,
    /// How many pages, from 1.
    pub pages: u32,
}

/// The beginning of a set's payload that holds a snapshot of an arena. Behind it stands the table of runs, behind that zeros to the next
/// multiple of 4096, and behind those the pages of all runs, one after the other.
///
/// ```text
///   0  magic `PMUSNAP1`     8  version              12  CRC-32C of all 128
///  16  series id           32  number in the series, from 1
///  40  number on which it builds, 0: full           48  set of that, 0: full     56  set of the full one, 0: full
///  64  address of the arena 72  its length in bytes 80  bytes of a page          84  flags: 1 it has a heap
///  88  runs                96  pages of all runs   104  CRC-64/NVME of the table 112  time, ns since 1970    120  zeros
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Who took it.
    pub series: SeriesId,
    /// Its number in the series, from 1.
    pub generation: u64,
    /// The number in the series on which it builds; 0 for a full one.
    pub base_generation: u64,
    /// What it builds on.
    pub kind: SnapshotKind,
    /// Where the arena was.
    pub arena_address: u64,
    /// How long the arena is, in bytes: a multiple of `page_bytes`.
    pub arena_bytes: u64,
    /// Bytes of a page: a power of two, from 4096 on.
    pub page_bytes: u32,
    /// Whether an allocator lives in the arena.
    pub has_heap: bool,
    /// How many runs the table has.
    pub runs: u64,
    /// How many pages the runs have together.
    pub pages: u64,
    /// CRC-64/NVME of the table.
    pub table_checksum: u64,
    /// When it was frozen by its writer's clock, in nanoseconds since 1970.
    pub frozen_ns: u64,
}

impl SnapshotHeader {
    /// How many bytes the table of runs has.
    #[must_use]
    pub const fn table_bytes(&self) -> u64 {
        self.runs.saturating_mul(SNAPSHOT_RUN_BYTES as u64)
    }

    /// Where in the payload the first page stands.
    #[must_use]
    pub fn pages_offset(&self) -> u64 {
        let end = self
            .table_bytes()
            .saturating_add(SNAPSHOT_HEADER_BYTES as u64);
        round_up(end, PAGE_BYTES).unwrap_or(u64::MAX)
    }

    /// How long the whole payload is.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        let pages = self.pages.saturating_mul(u64::from(self.page_bytes));
        self.pages_offset().saturating_add(pages)
    }

    /// The bytes. Does not allocate.
    #[must_use]
    pub fn encode(&self) -> [u8; SNAPSHOT_HEADER_BYTES] {
        let mut bytes = [0; SNAPSHOT_HEADER_BYTES];
        let (set, root) = match self.kind.base() {
            Some(base) => (base.set.get(), base.root.get()),
            None => (0, 0),
        };
        put(&mut bytes, 0, &SNAPSHOT_MAGIC.to_le_bytes());
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.series.0);
        put(&mut bytes, 32, &self.generation.to_le_bytes());
        put(&mut bytes, 40, &self.base_generation.to_le_bytes());
        put(&mut bytes, 48, &set.to_le_bytes());
        put(&mut bytes, 56, &root.to_le_bytes());
        put(&mut bytes, 64, &self.arena_address.to_le_bytes());
        put(&mut bytes, 72, &self.arena_bytes.to_le_bytes());
        put(&mut bytes, 80, &self.page_bytes.to_le_bytes());
        let flags = if self.has_heap { FLAG_HEAP } else { 0 };
        put(&mut bytes, 84, &flags.to_le_bytes());
        put(&mut bytes, 88, &self.runs.to_le_bytes());
        put(&mut bytes, 96, &self.pages.to_le_bytes());
        put(&mut bytes, 104, &self.table_checksum.to_le_bytes());
        put(&mut bytes, 112, &self.frozen_ns.to_le_bytes());
        let checksum = crc32c_around(&bytes, CHECKSUM).unwrap_or_default();
        put(&mut bytes, CHECKSUM, &checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote, from the beginning of a payload of `payload_bytes`, which may be anything. What it accepts has a
    /// table and pages that fill the payload.
    ///
    /// # Errors
    /// [`FormatError`]: no snapshot, damaged, of another version, or of another length than the payload.
    pub fn decode(bytes: &[u8], payload_bytes: u64) -> Result<Self, FormatError> {
        let structure = Structure::SnapshotHeader;
        let Some(bytes) = bytes.get(..SNAPSHOT_HEADER_BYTES) else {
            return Err(FormatError::TooShort {
                structure,
                found_bytes: bytes.len() as u64,
                needed_bytes: SNAPSHOT_HEADER_BYTES as u64,
            });
        };
        check_frame(bytes, structure, SNAPSHOT_MAGIC)?;
        check_zero(&bytes[120..], structure, "bytes at the end")?;
        let flags = u32_at(bytes, 84);
        let found = Self {
            series: SeriesId(array_at(bytes, 16)),
            generation: u64_at(bytes, 32),
            base_generation: u64_at(bytes, 40),
            kind: kind_of(u64_at(bytes, 48), u64_at(bytes, 56))?,
            arena_address: u64_at(bytes, 64),
            arena_bytes: u64_at(bytes, 72),
            page_bytes: u32_at(bytes, 80),
            has_heap: flags & FLAG_HEAP != 0,
            runs: u64_at(bytes, 88),
            pages: u64_at(bytes, 96),
            table_checksum: u64_at(bytes, 104),
            frozen_ns: u64_at(bytes, 112),
        };
        check(flags & !FLAG_HEAP == 0, "flags", flags.into(), "0 or 1")?;
        found.check_numbers()?;
        if found.payload_bytes() != payload_bytes {
            return Err(FormatError::Mismatch {
                structure,
                field: "bytes of the payload",
                found: payload_bytes,
                expected: found.payload_bytes(),
            });
        }
        Ok(found)
    }

    fn check_numbers(&self) -> Result<(), FormatError> {
        let page_bytes = u64::from(self.page_bytes);
        check(
            page_bytes >= PAGE_BYTES && page_bytes.is_power_of_two(),
            "bytes of a page",
            page_bytes,
            "a power of two from 4096 on",
        )?;
        let arena_pages = self.arena_bytes / page_bytes;
        check(
            self.arena_bytes.is_multiple_of(page_bytes)
                && (1..=SNAPSHOT_PAGES_MAX).contains(&arena_pages)
                && self.arena_address.checked_add(self.arena_bytes).is_some(),
            "length of the arena",
            self.arena_bytes,
            "whole pages, from 1 to 2^32 - 1 of them",
        )?;
        check(
            self.pages <= arena_pages,
            "pages",
            self.pages,
            "no more than the arena has",
        )?;
        check(
            self.runs <= self.pages && (self.runs == 0) == (self.pages == 0),
            "runs",
            self.runs,
            "one or more pages in each",
        )?;
        let is_full = self.kind == SnapshotKind::Full;
        check(
            self.generation > 0
                && self.base_generation < self.generation
                && is_full == (self.base_generation == 0),
            "number in the series",
            self.generation,
            "more than that on which it builds",
        )
    }

    /// Whether this one holds what changed since `base`, which lies in set `set`.
    #[must_use]
    pub fn builds_on(&self, base: &Self, set: SetNumber) -> bool {
        let same_arena = (self.series, self.arena_address, self.arena_bytes)
            == (base.series, base.arena_address, base.arena_bytes)
            && (self.page_bytes, self.has_heap) == (base.page_bytes, base.has_heap);
        same_arena
            && self.base_generation == base.generation
            && self.kind.base().is_some_and(|on| on.set == set)
    }

    /// The runs of the table behind the header, checked: ascending, apart from each other, inside the arena, and as many pages as the
    /// header says.
    ///
    /// # Errors
    /// [`FormatError`]: too short, damaged, or not such a table.
    pub fn decode_table(&self, table: &[u8]) -> Result<Vec<SnapshotRun>, FormatError> {
        let structure = Structure::SnapshotTable;
        let needed = usize::try_from(self.table_bytes()).unwrap_or(usize::MAX);
        let Some(table) = table.get(..needed) else {
            return Err(FormatError::TooShort {
                structure,
                found_bytes: table.len() as u64,
                needed_bytes: self.table_bytes(),
            });
        };
        let computed = crc64_nvme(table);
        if computed != self.table_checksum {
            return Err(FormatError::Checksum {
                structure,
                what: "table",
                computed,
                stored: self.table_checksum,
            });
        }
        let entries = table.chunks_exact(SNAPSHOT_RUN_BYTES);
        let runs: Vec<_> = entries
            .map(|entry| SnapshotRun {
                first_page: u32_at(entry, 0),
                pages: u32_at(entry, 4),
            })
            .collect();
        self.check_runs(&runs)?;
        Ok(runs)
    }

    fn check_runs(&self, runs: &[SnapshotRun]) -> Result<(), FormatError> {
        let arena_pages = self.arena_bytes / u64::from(self.page_bytes).max(1);
        let (mut end, mut pages) = (0, 0);
        for run in runs {
            let Range { start, end: behind } = run.range();
            if run.pages == 0 || start < end || behind > arena_pages {
                return Err(FormatError::Field {
                    structure: Structure::SnapshotTable,
                    field: "run",
                    found: start,
                    expected: "pages behind those of the run before, and inside the arena",
                });
            }
            end = behind;
            pages += u64::from(run.pages);
        }
        if pages != self.pages {
            return Err(FormatError::Mismatch {
                structure: Structure::SnapshotTable,
                field: "pages of all runs",
                found: pages,
                expected: self.pages,
            });
        }
        Ok(())
    }
}

impl SnapshotRun {
    /// The numbers of its pages.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let first = u64::from(self.first_page);
        first..first + u64::from(self.pages)
    }
}

/// Appends a table of runs to `table`, and gives its checksum.
pub fn encode_snapshot_table(
    runs: impl IntoIterator<Item = SnapshotRun>,
    table: &mut Vec<u8>,
) -> u64 {
    let begin = table.len();
    for run in runs {
        table.extend_from_slice(&run.first_page.to_le_bytes());
        table.extend_from_slice(&run.pages.to_le_bytes());
    }
    crc64_nvme(&table[begin..])
}

fn kind_of(set: u64, root: u64) -> Result<SnapshotKind, FormatError> {
    match (set, root) {
        (0, 0) => Ok(SnapshotKind::Full),
        (set, root) if root > 0 && root <= set => Ok(SnapshotKind::Incremental(SnapshotBase {
            set: SetNumber(set),
            root: SetNumber(root),
        })),
        _ => Err(FormatError::Field {
            structure: Structure::SnapshotHeader,
            field: "set of the full snapshot",
            found: root,
            expected: "one before that on which it builds",
        }),
    }
}

fn check(
    holds: bool,
    field: &'static str,
    found: u64,
    expected: &'static str,
) -> Result<(), FormatError> {
    if holds {
        return Ok(());
    }
    Err(FormatError::Field {
        structure: Structure::SnapshotHeader,
        field,
        found,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s08_a_label_says_what_a_snapshot_builds_on() {
        let on = |set, root| {
            SnapshotKind::Incremental(SnapshotBase {
                set: SetNumber(set),
                root: SetNumber(root),
            })
        };
        for kind in [
            SnapshotKind::Full,
            on(1, 1),
            on(41, 38),
            on(9_999_999_999, 9_999_999_998),
        ] {
            for covered in [None, Some(LogPosition(0)), Some(LogPosition(4096))] {
                let Some(label) = kind.label(covered) else {
                    assert!(kind == on(9_999_999_999, 9_999_999_998) && covered.is_some());
                    continue;
                };
                let found = SnapshotKind::of_label(&label.to_string());
                assert_eq!(found, Some((kind, covered)));
            }
        }
        let text = |kind: SnapshotKind, covered| kind.label(covered).unwrap().to_string();
        assert_eq!(text(on(41, 38), None), "snap on 41 of 38");
        let covered = Some(LogPosition(4096));
        assert_eq!(text(on(41, 38), covered), "snap on 41 of 38 @4096");
        assert!(
            SnapshotKind::Full
                .label(Some(LogPosition(u64::MAX)))
                .is_some()
        );
        assert_eq!(on(u64::MAX, u64::MAX).label(None), None);
        for other in [
            "",
            "snap",
            "snap full ",
            "snap on 1",
            "snap on 1 of",
            "snap on 0 of 0",
            "snap on 1 of 2",
            "snap on 01 of 1",
            "snap on +1 of 1",
            "snap on -1 of 1",
            "snap on 1 of 1 of 1",
            "snap full @",
            "snap full @07",
            "snap full @7 @7",
            "snap full@7",
            "snap @7",
            "step 7",
        ] {
            assert_eq!(SnapshotKind::of_label(other), None, "{other:?}");
        }
    }
}
