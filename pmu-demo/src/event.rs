//! What primary and backup tell the orchestrator: one JSON object a line on their standard output.
//!
//! A line is in the pipe before its writer goes on, and stays there when the writer is killed: so what was acknowledged is known
//! outside of the process that learned it.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::error::{DemoError, Result};
use crate::leaders::Commit;

/// Sums since the start of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Records acknowledged.
    pub records: u64,
    /// Their payload bytes.
    pub record_bytes: u64,
    /// Sets committed.
    pub sets: u64,
    /// Their payload bytes.
    pub set_bytes: u64,
    /// Time inside calls of the client library.
    pub client_ns: u64,
    /// Time since the work began.
    pub run_ns: u64,
}

/// How bytes are made durable, in the words of a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The persistence method.
    pub persistence: String,
    /// Which way the bytes went.
    pub provider: String,
    /// Whether the method outlives a loss of power.
    pub durable: bool,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A program under an agent has begun; its regions are not open yet.
    Begun {
        /// When.
        at_ns: u64,
        /// Its process id.
        pid: u32,
    },
    /// The backup is at the end of the log, and follows.
    Following,
    /// The first receipt of a log or of a set, as it was given.
    Proved {
        /// What it says.
        proof: Proof,
    },
    /// Both regions are open for writing: nothing that an earlier instance begins from now on may succeed.
    Opened {
        /// When.
        at_ns: u64,
        /// The process that has opened them.
        pid: u32,
        /// The log's epoch.
        epoch: u64,
        /// When the fence stood behind which its state was recovered.
        fenced_ns: Option<u64>,
        /// How many documents it knows: each is a record.
        documents: u32,
    },
    /// Receipts were seen for the records of the first `documents` documents.
    Acknowledged {
        /// How many, from the first of the list.
        documents: u32,
        /// The sums by now.
        totals: Totals,
        /// The records whose receipts are new.
        commits: Vec<Commit>,
    },
    /// All documents but the last are acknowledged, and the word for that one is awaited.
    Waiting,
    /// A set was committed: its receipt was seen.
    Committed {
        /// How many documents it holds.
        documents: u32,
        /// The sums by now.
        totals: Totals,
        /// The set.
        commit: Commit,
    },
    /// The agent wanted a set, and it is committed.
    Snapshot {
        /// How long the program did nothing else, in microseconds.
        pause_us: u64,
        /// The set's payload.
        bytes: u64,
    },
    /// The backup knows that the primary is gone.
    Detected {
        /// When.
        at_ns: u64,
    },
    /// Nothing that the old primary sends lands any more.
    Fenced {
        /// When the answer was there.
        at_ns: u64,
        /// The unit's own time for both regions.
        took_us: u64,
    },
    /// The state is whole, and the regions are open for writing.
    Recovered {
        /// When.
        at_ns: u64,
        /// How many documents the state holds.
        documents: u32,
        /// How many of them came out of a set; 0 where none was needed.
        set_documents: u32,
        /// Records fetched after the fence.
        tail_records: u64,
        /// Their payload bytes.
        tail_bytes: u64,
    },
    /// The first new document has its receipt.
    Resumed {
        /// When.
        at_ns: u64,
    },
    /// The library says that another primary has taken over. The process stops writing.
    StoppedByFence {
        /// In the library's words.
        message: String,
    },
    /// All documents are in the index, and what had to be stored is stored.
    Finished {
        /// The sums.
        totals: Totals,
        /// Length of the index in its one form.
        state_bytes: u64,
        /// How many different words it holds.
        words: u64,
    },
}

impl Event {
    /// Writes the line, and returns when it has left the process.
    ///
    /// # Errors
    /// [`DemoError::System`] if nobody listens any more.
    pub fn send(&self) -> Result<()> {
        let mut line =
            serde_json::to_vec(self).map_err(|e| DemoError::system("report an event")(e))?;
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&line)
            .and_then(|()| out.flush())
            .map_err(DemoError::system("report an event"))
    }

    /// Reads the next line; `None` at the end. What a killed process left half written is no event.
    ///
    /// # Errors
    /// [`DemoError::System`] for a stream that can't be read, or another line than ours.
    pub fn receive(from: &mut dyn BufRead) -> Result<Option<Self>> {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line)
            .map_err(DemoError::system("read an event"))?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|e| DemoError::system("read an event")(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_back_and_half_a_line_is_none() {
        let event = Event::Acknowledged {
            documents: 7,
            totals: Totals::default(),
            commits: vec![Commit {
                what: crate::leaders::What::Record,
                epoch: Some(2),
                from: 64,
                to: 128,
                begun_ns: 5,
                told_ns: 6,
            }],
        };
        let mut bytes = serde_json::to_vec(&event).unwrap();
        bytes.push(b'\n');
        bytes.extend_from_slice(b"{\"event\":\"ackn");
        let mut stream: &[u8] = &bytes;
        assert_eq!(Event::receive(&mut stream).unwrap(), Some(event));
        assert_eq!(Event::receive(&mut stream).unwrap(), None);
        let mut other: &[u8] = b"hello\n";
        assert!(Event::receive(&mut other).is_err());
    }
}
