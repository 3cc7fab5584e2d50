//! Runs the real client, recovery and fence over units that fail, from a seed: the same seed gives the same schedule, step by step.
//! It decides nothing that the product decides, and nothing of it runs in production.
//!
//! A *schedule* is one run of a [`Scenario`]: programs (threads, of which one has the turn at a time) drive `pmu-client` over simulated
//! connections to simulated units. The seed chooses what happens next: which program goes on, which operation of which connection a unit
//! carries out (or which words of it), which completion arrives, and what fails. What is checked stands with each scenario, and in
//! `docs/simulation.md`.
//!
//! ```
//! use pmu_sim::{Recording, run_one};
//! let first = run_one(7, None, Recording::Kept)?;
//! let again = run_one(7, None, Recording::Kept)?;
//! assert_eq!(first.violation, None);
//! assert_eq!(first.lines, again.lines);
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

#[macro_use]
mod state;
mod connection;
mod context;
mod damage;
mod distributor;
mod execute;
mod faults;
mod medium;
mod place;
mod random;
mod reach;
mod runner;
pub mod scenario;
mod staging;
mod stream;
mod threads;
mod trace;
mod unit;
mod wire;
mod world;

#[cfg(feature = "planted-bugs")]
pub use pmu_format::planted;
pub use random::Random;
pub use runner::{Failed, Outcome, Plan, Summary, run_many, run_one};
pub use scenario::Scenario;
pub use state::Totals;
pub use trace::Recording;
