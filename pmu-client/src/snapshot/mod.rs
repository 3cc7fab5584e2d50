//! Snapshots of a running program: its memory is frozen in an arena, streamed into a region while the program runs on, and comes back in
//! another instance of the program.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use pmu_client::snapshot::{Arena, ArenaOptions, RestoreOptions, SnapshotOptions, SnapshotRegion, Snapshots};
//! use pmu_client::{OpenOptions, Unit};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let unit = Unit::from_environment(&Default::default())?;
//! let region = SnapshotRegion::One { unit, region: "train".into() };
//!
//! // The first instance: its state lies in the arena.
//! let arena = Arc::new(Arena::create(&ArenaOptions::plain(64 << 20))?);
//! let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &SnapshotOptions::new())?;
//! arena.store_u64(0, 41)?;
//! let report = snapshots.snapshot()?; // Durable when it returns.
//! println!("{report}");
//!
//! // The second one, on another machine, when the first has failed.
//! let restore = RestoreOptions::new(ArenaOptions::plain(64 << 20));
//! let mut taken = region.take_over(&restore, &OpenOptions::new())?;
//! if let Some(recovered) = taken.recovered.take() {
//!     let arena = Arc::new(recovered.restoring.seal_plain()?);
//!     assert_eq!(arena.load_u64(0)?, 41);
//!     let snapshots = taken.go_on(arena, &SnapshotOptions::new())?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Chains
//! A snapshot is one set. The first is a full one; the next ones hold just the pages that changed, and each says on which set it builds.
//! A region keeps its newest N sets, so a chain has at most N: before the set of the full one would be overwritten, a new full one is
//! written, and until that is committed the old chain stays whole. By default chains are half as long, so that a whole earlier chain is
//! there too for most of the time, should the newest be damaged. See [`SnapshotOptions::full_every`].
//!
//! # What may be relied on
//! A [`SnapshotReport`] is given only with the receipt of its set. Whatever fails, the program runs on, the earlier snapshots are there,
//! and the next one holds what the failed one would have held.

mod chain;
mod error;
mod head;
mod image;
mod place;
mod recover;
mod report;
mod sink;
mod store;
mod worker;
mod writer;

pub use chain::SnapshotInfo;
pub use error::{SnapshotError, SnapshotResult};
pub use image::{ArenaShape, SnapshotImage};
pub use place::{SnapshotRegion, SnapshotSource, SpreadWay};
pub use pmu_arena::{Arena, ArenaError, ArenaOptions, Cpus, Heap, Method, Restoring, ServedBy};
pub use pmu_format::{SnapshotBase, SnapshotKind};
pub use recover::{Exported, Recovered, RestoreOptions, SkippedSet, SnapshotTakeover};
pub use report::SnapshotReport;
pub use writer::{PendingSnapshot, SnapshotOptions, Snapshots};

/// How large a region's sets have to be for snapshots of an arena of `arena_bytes`: `--capacity` of `pmm region create`.
#[must_use]
pub const fn capacity_bytes_for(arena_bytes: u64) -> u64 {
    arena_bytes.saturating_add(pmu_format::PAGE_BYTES)
}
