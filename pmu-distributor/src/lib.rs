//! The session of a distributor: takes pieces out of staging memory, which a program fills with one-sided writes, gives the sets and records
//! in them to the units of a spread region, and answers what became of them.
//!
//! It decides nothing about layouts: that are [`pmu_client::SpreadPrimary`] and [`pmu_client::SpreadLogPrimary`], which each session drives. It
//! knows no network either: messages, staging memory, clock and the right to go on are those of a [`Program`], which `pmu-server` gives it over gRPC
//! and a fabric, and the simulator over simulated ones.
#![forbid(unsafe_code)]

mod program;
mod records;
mod session;
mod sets;

pub use program::{Heard, Over, Program};
pub use session::{Session, Work, open};
