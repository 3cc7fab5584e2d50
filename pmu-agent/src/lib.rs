//! Watches a program on each of two computers, and starts it on the other one when it fails: fence, recover, start, with no hand in it.
//! It never moves a checkpoint's bytes but by way of the client library, and never takes over without a fence that stands.
//!
//! [`decide`] is what an agent decides, with no clock, thread or socket in it; [`run`] carries it out.
#![forbid(unsafe_code)]

pub mod beats;
pub mod cli;
pub mod config;
pub mod copy;
pub mod decide;
pub mod door;
mod error;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod follow;
pub mod input;
pub mod link;
pub mod place;
pub mod program;
pub mod run;
pub mod status;

pub use error::{AgentError, Result};
