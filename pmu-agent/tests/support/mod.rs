//! The client's site for tests, and agents over it.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    reason = "shared by tests, each of which uses a part"
)]

#[path = "../../../pmu-client/tests/support/mod.rs"]
mod site;

pub mod agents;
/// The rules of the demonstration: they are the same here.
#[path = "../../../pmu-demo/src/leaders.rs"]
pub mod leaders;

pub use site::*;
