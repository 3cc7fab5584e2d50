//! The persistent memory unit: pools, region tables, sessions, and the control service in front of them.
//! It never looks at what programs write into their regions, and moves none of those bytes itself, unless it is asked to distribute or to scrub them.
//!
//! * [`unit::Unit::start`] runs a unit in-process; the binary `pmu-server` is a thin shell around it.
//! * [`config`] is its configuration; `example.toml` documents every key.
//! * [`session`] and [`control`] are how programs and managers reach it.

#![forbid(unsafe_code)]

mod administration;
pub mod cli;
pub mod config;
pub mod control;
pub mod distributor;
mod fencing;
mod loans;
pub mod logging;
mod members;
pub mod metrics;
pub mod notify;
mod opening;
pub mod pool;
pub mod pools;
pub mod scrub;
pub mod session;
mod state;
pub mod unit;
mod writers;
