//! Sets in overwrite mode: writing the next one, and finding the one to recover.
//!
//! A commit is one chain: payload, chunk table and header are written; FLUSH; ATOMIC WRITE of the
//! set's number to the publish word; FLUSH. The set is committed when the chain has completed. A
//! set is written to the one slot that holds none of the sets kept, so that whatever happens in
//! between, the last committed one stays.

mod catalog;
mod recovery;
mod writer;

pub use catalog::{Finding, FoundSet, SetState};
pub use recovery::{ChunkOutcome, ChunkRead, Goal, RESTARTS_MAX, SetOpening, SetRecovery, SetView};
pub use writer::{
    Abandoned, BeginError, ChunkError, ChunkPlace, CommitPlan, CommittedSet, FinishError,
    NotFinished, SetPlan, SetWriter,
};

use pmu_format::{RegionPiece, SetGeometry, SlotIndex};

/// Metadata and payload are flushed as one range unless more than this lies between them.
const FLUSH_GAP_MAX_BYTES: u64 = 64 * 1024;

/// The ranges of a slot that hold a set: one range where the gap behind the chunk table is small,
/// otherwise two. An unused range has length 0.
fn flush_ranges(
    geometry: &SetGeometry,
    slot: SlotIndex,
    table_bytes: u64,
    payload_bytes: u64,
) -> [RegionPiece; 2] {
    #[cfg(feature = "planted-bugs")]
    if pmu_format::planted::is_planted(pmu_format::planted::Bug::DropFlush) {
        return [RegionPiece::default(); 2];
    }
    let header = geometry.header_offset(slot);
    let payload = geometry.payload_offset(slot);
    let metadata_bytes = geometry.chunk_table_offset(slot).get() - header.get() + table_bytes;
    let gap_bytes = payload.get() - header.get() - metadata_bytes;
    if payload_bytes == 0 || gap_bytes > FLUSH_GAP_MAX_BYTES {
        return [
            RegionPiece {
                offset: header,
                length_bytes: metadata_bytes,
            },
            RegionPiece {
                offset: payload,
                length_bytes: payload_bytes,
            },
        ];
    }
    let length_bytes = payload.get() - header.get() + payload_bytes;
    [
        RegionPiece {
            offset: header,
            length_bytes,
        },
        RegionPiece::default(),
    ]
}
