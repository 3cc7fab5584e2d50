//! Sets and records that somebody else spreads over the units: one of them, or a process of its own.
//!
//! The program writes its bytes once, with one-sided writes, into staging memory of the distributor; a stream of small messages says which are
//! there, and what became of them. Receipts and errors are those of the units, as a [`crate::SpreadPrimary`] or
//! [`crate::SpreadLogPrimary`] would give them.

mod feed;
mod log;
mod open;
mod put;
mod ring;
mod sets;
mod stream;
mod way;
#[doc(hidden)]
pub mod wire;

pub use log::DistributedLog;
pub use put::DistributedPut;
pub use sets::Distributed;
pub use way::{Answer, Heard, Over, Request, Way};

/// Pieces that are announced and not yet taken, at most.
const READY_MAX: usize = 256;
