//! Administer persistent memory units: certificates, units, regions, grants, status, verify. The command `pmm` is this
//! library and nothing more.
//! It never keeps a copy of what a unit knows: its only file is the list of units and their addresses.
//!
//! * [`cli`]: every argument, checked before anything is opened.
//! * [`commands`]: one function for each command, from arguments to a report.
//! * [`report`]: what `--json` prints, field by field; [`output`] puts it on a page for people.

#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod confirm;
pub mod connect;
pub mod error;
pub mod loans;
pub mod output;
pub mod report;
pub mod spread;
pub mod values;
pub mod verify;
pub mod words;

pub use error::ManagerError;
