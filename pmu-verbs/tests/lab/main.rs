//! What this crate does on a real kernel with soft-RoCE and emulated persistent memory: each line
//! of what the project knows of that device, as a test.
//!
//! Every test fails at once outside of the lab. Build on the host with
//! `cargo test -p pmu-verbs --test lab --no-run`, run the program in a guest of `scripts/lab`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod completions;
mod connections;
mod lifetimes;
mod regions;
mod support;
mod windows;
