//! What goes between a program and its agent over a Unix socket: one JSON object a line, in both directions.

use serde::{Deserialize, Serialize};

/// The longest line, its end included. A longer one ends the connection.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// What an agent orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Order {
    /// Commit a set as soon as may be, and report with the same id.
    Snapshot {
        /// Counts the orders.
        id: u64,
    },
    /// Commit what is to be kept, and end with exit code 0.
    Stop,
}

/// What a program says of a snapshot that was ordered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// Of the order; 0 for one that the program made by itself.
    pub id: u64,
    /// Number of the committed set, from its receipt; 0 where there is none.
    pub set: u64,
    /// Its payload in bytes.
    pub bytes: u64,
    /// How long the program did nothing else, in microseconds.
    pub pause_us: u64,
    /// From the order to the receipt, in microseconds.
    pub took_us: u64,
    /// The receipt proves durability beyond a loss of power.
    pub durable: bool,
    /// Why there is no set, in the library's words.
    pub error: Option<String>,
}

/// What a program says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FromProgram {
    /// Its regions are open and it does its work. The first line of each connection.
    Ready {
        /// Its process id.
        pid: u32,
        /// The epoch in which it writes.
        epoch: u64,
        /// The units have held it to the epochs that it was to go on from. False of libraries that don't know of that.
        #[serde(default)]
        held: bool,
    },
    /// A snapshot is done, or failed.
    Snapshot(SnapshotReport),
    /// Another primary has taken over: it has stopped writing, and ends.
    Fenced {
        /// In the library's words.
        message: String,
    },
}
