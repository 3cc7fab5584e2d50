//! The demonstration: an inverted index over real sources that survives the death of the process that makes it.
//! It never tells the unit or the client library anything that any other program could not.
#![deny(unsafe_code)]

pub mod agented;
pub mod arena;
pub mod backup;
pub mod child;
pub mod cli;
pub mod clock;
pub mod corpus;
mod error;
pub mod event;
pub mod failover;
pub mod failure;
pub mod history;
pub mod index;
pub mod leaders;
pub mod orchestrate;
pub mod primary;
pub mod record;
pub mod reference;
pub mod report;
pub mod run;
pub mod seed;
pub mod site;
pub mod store;
pub mod tools;
mod varint;
pub mod watch;
pub mod words;
pub mod work;

pub use error::{DemoError, Result};
