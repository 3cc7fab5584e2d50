//! What a snapshot's set begins with: made from a frozen image, and read back from bytes that nobody has checked.

use pmu_arena::{Arena, Report, Run};
use pmu_format::{
    SNAPSHOT_HEADER_BYTES, SNAPSHOT_PAGES_MAX, SeriesId, SnapshotHeader, SnapshotKind, SnapshotRun,
    encode_snapshot_table,
};

use crate::error::{ClientError, Result};

/// Refuses arenas that the format can't describe.
pub(super) fn check_arena(arena: &Arena) -> Result<()> {
    let pages = (arena.len() / arena.page_bytes()) as u64;
    if pages > SNAPSHOT_PAGES_MAX {
        return Err(ClientError::Invalid(format!(
            "an arena of {pages} pages; snapshots have at most {SNAPSHOT_PAGES_MAX}"
        )));
    }
    Ok(())
}

/// Header, table and zeros: everything that stands before the pages. `head` is overwritten.
pub(super) fn encode(
    arena: &Arena,
    image: &Report,
    runs: &[Run],
    series: SeriesId,
    kind: SnapshotKind,
    frozen_ns: u64,
    head: &mut Vec<u8>,
) -> SnapshotHeader {
    head.clear();
    head.resize(SNAPSHOT_HEADER_BYTES, 0);
    // An arena's pages were counted when it was opened for snapshots.
    let entries = runs.iter().map(|run| SnapshotRun {
        first_page: run.first_page as u32,
        pages: run.pages as u32,
    });
    let table_checksum = encode_snapshot_table(entries, head);
    let header = SnapshotHeader {
        series,
        generation: image.generation,
        base_generation: image.base.unwrap_or(0),
        kind,
        arena_address: arena.address() as u64,
        arena_bytes: arena.len() as u64,
        page_bytes: arena.page_bytes() as u32,
        has_heap: arena.has_heap(),
        runs: runs.len() as u64,
        pages: runs.iter().map(|run| run.pages as u64).sum(),
        table_checksum,
        frozen_ns,
    };
    head[..SNAPSHOT_HEADER_BYTES].copy_from_slice(&header.encode());
    head.resize(header.pages_offset() as usize, 0);
    header
}

/// Header and table of a set, collected as its bytes come.
#[derive(Debug, Default)]
pub(super) struct Collected {
    bytes: Vec<u8>,
    payload_bytes: u64,
    header: Option<SnapshotHeader>,
    /// The runs with the place in the payload where each begins.
    runs: Option<Vec<(u64, SnapshotRun)>>,
}

impl Collected {
    /// Begins anew, for a payload of so many bytes.
    pub(super) fn begin(&mut self, payload_bytes: u64) {
        self.bytes.clear();
        self.payload_bytes = payload_bytes;
        self.header = None;
        self.runs = None;
    }

    pub(super) const fn header(&self) -> Option<&SnapshotHeader> {
        self.header.as_ref()
    }

    /// Where the pages begin, once that is known and everything before has come.
    pub(super) fn pages_offset(&self) -> Option<u64> {
        self.runs.as_ref()?;
        self.header.as_ref().map(SnapshotHeader::pages_offset)
    }

    /// Takes bytes from `offset` on, as many as belong before the pages; how many that were.
    ///
    /// # Errors
    /// What is wrong with header or table.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
    ) -> std::result::Result<usize, pmu_format::FormatError> {
        let mut taken = 0;
        if self.header.is_none() {
            taken = self.take_up_to(SNAPSHOT_HEADER_BYTES, bytes);
            if self.bytes.len() < SNAPSHOT_HEADER_BYTES
                && (self.bytes.len() as u64) < self.payload_bytes
            {
                return Ok(taken);
            }
            self.header = Some(SnapshotHeader::decode(&self.bytes, self.payload_bytes)?);
        }
        let Some(header) = self.header else {
            return Ok(taken);
        };
        // No longer than the payload, which the region's capacity bounds.
        let end = usize::try_from(header.pages_offset()).unwrap_or(usize::MAX);
        taken += self.take_up_to(end, &bytes[taken..]);
        if self.bytes.len() == end && self.runs.is_none() {
            let runs = header.decode_table(&self.bytes[SNAPSHOT_HEADER_BYTES..])?;
            let mut at = header.pages_offset();
            let placed = runs.into_iter().map(|run| {
                let begin = at;
                at += u64::from(run.pages) * u64::from(header.page_bytes);
                (begin, run)
            });
            self.runs = Some(placed.collect());
        }
        Ok(taken)
    }

    fn take_up_to(&mut self, end: usize, bytes: &[u8]) -> usize {
        let count = end.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..count]);
        count
    }

    /// Where in the arena the payload's byte `offset` lies, and how many bytes from there on stand together.
    pub(super) fn place(&self, offset: u64) -> Option<(u64, u64)> {
        let (header, runs) = (self.header.as_ref()?, self.runs.as_ref()?);
        let index = runs
            .partition_point(|(begin, _)| *begin <= offset)
            .checked_sub(1)?;
        let (begin, run) = runs[index];
        let page_bytes = u64::from(header.page_bytes);
        let within = offset - begin;
        let left = (u64::from(run.pages) * page_bytes).checked_sub(within)?;
        (left > 0).then_some((u64::from(run.first_page) * page_bytes + within, left))
    }
}
