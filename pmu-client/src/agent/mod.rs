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

mod handover;
mod program;
mod wire;

pub use handover::{Handover, TailWriter, encode_arena, memory_file, names};
pub use program::Program;
pub use wire::{FromProgram, LINE_BYTES_MAX, Order, SnapshotReport};
