//! For programs that `pmu-agent` runs: what they are handed when they start, and the words that go between them and their agent.
//!
//! A program finds everything in its environment, so that it runs without an agent too:
//!
//! ```no_run
//! use pmu_client::agent::{Handover, Order, Program, SnapshotReport};
//! use pmu_client::{OpenOptions, Unit};
//! # fn main() -> pmu_client::Result<()> {
//! if let Some(handover) = Handover::from_environment()? {
//!     let state = handover.read_state()?; // the newest set, if there is one
//!     handover.visit_records(|_position, record| { /* those behind the set */ Ok(()) })?;
//!     handover.release()?; // it lies in memory
//! }
//! let unit = Unit::from_environment(&Default::default())?;
//! let mut log = unit.open_log_primary("work", &OpenOptions::new())?;
//! let mut agent = Program::from_environment();
//! if let Some(agent) = &mut agent { agent.ready(log.epoch()); }
//! loop {
//!     // … a piece of work …
//!     let Some(agent) = &mut agent else { continue };
//!     if agent.beat_is_due() { log.beat()?; }
//!     match agent.order() {
//!         Some(Order::Snapshot { id }) => { /* commit a set */ agent.done(&SnapshotReport { id, ..SnapshotReport::default() }); }
//!         Some(Order::Stop) => break,
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here says that anything is durable: only receipts do.
//!
//! **Opening.** What was handed over was recovered behind a fence of the agent's. Another agent may have fenced again since, and its program may
//! have stored more, and be gone by the time this one opens its regions: then what was handed over is too old, and whoever wrote on from it would
//! lose acknowledged records. The agent therefore names the epochs of its fence ([`names::EPOCHS`]), and whatever opens a region as primary here
//! ([`crate::Unit`], [`crate::Spread`], snapshots) has the unit check, in one step with granting, that the region's epoch is still that one. If it
//! isn't, opening fails with [`crate::ClientError::Fenced`]: end then, the agent recovers anew. Opening again goes on from the own grant,
//! and a fence of one's own from that fence: who fences by himself must read the regions behind it. The epochs are good for the process that the agent
//! started: of several that open a region one after the other, only the first finds it as it was named; take the variable out of the others'
//! environment. Regions that are opened through a distributor are not checked.

mod epochs;
mod handover;
mod program;
mod wire;

pub(crate) use epochs::{Epochs, Expected};
pub use epochs::{UnitEpoch, encode_epochs};
pub use handover::{Handover, TailWriter, encode_arena, fenced_ns, memory_file, names};
pub use program::Program;
pub use wire::{FromProgram, LINE_BYTES_MAX, Order, SnapshotReport};
