//! Decides what to write, read and flush, in which order, and what may be believed afterwards:
//! commit, log, recovery and fence. It never touches the world: no clock, thread, socket, file or
//! unsafe; time and events come in, actions go out.
//!
//! * [`commit`]: sets in overwrite mode: [`commit::SetWriter`] and [`commit::SetRecovery`].
//! * [`log`]: records in append mode: [`log::LogWriter`] and [`log::LogReader`].
//! * [`fence`]: who may write: [`fence::WriterTable`].
//!
//! The same values are driven by the client over a fabric and by tests over a model of memory, so
//! that what was tested is what runs. The layout is that of `docs/format.md`.
//!
//! # Words
//! *Written* means posted, *visible* means that a read returns it, *durable* means that it outlives
//! the power. A *chain* is a list of operations that a fabric carries out in order and completes
//! once. Everything here that is called a plan is one chain, in the order of the plan's fields.

#![forbid(unsafe_code)]

pub mod commit;
pub mod fence;
mod io;
pub mod log;
pub mod spread;

pub use io::{FeedError, ReadRequest, WordWrite};
