//! Everything that comes to the agent's one loop.

use std::sync::mpsc::Sender;

use pmu_client::agent::{FromProgram, SnapshotReport};
use serde::{Deserialize, Serialize};

use crate::copy::Handed;
use crate::decide::Event;
use crate::status::Status;

/// What comes.
pub enum Input {
    /// For the machine, as it is.
    Event(Event),
    /// What a takeover has recovered; its event follows.
    Recovered(Handed),
    /// A program has said something.
    Program {
        /// The process that the kernel names as the sender.
        pid: u32,
        /// What.
        said: FromProgram,
    },
    /// A snapshot command has ended.
    Snapshot(SnapshotReport),
    /// A program is being killed, or fails: nothing of it runs any more, and its memory is being freed. Its end follows.
    Dying {
        /// Which one of ours.
        serial: u64,
        /// In words.
        how: String,
    },
    /// A program has ended.
    Exited {
        /// Which one of ours.
        serial: u64,
        /// With exit code 0.
        clean: bool,
        /// In words.
        how: String,
    },
    /// A thread of the agent's own has panicked.
    Lost {
        /// Its name.
        thread: &'static str,
    },
    /// A person asks, and waits for an answer.
    Command(Command, Sender<Reply>),
}

/// What a person asks of a running agent: one JSON object a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// How it is.
    Status,
    /// Lead.
    Promote {
        /// Without asking the one that leads now.
        force: bool,
    },
    /// Stop the program, and stand by.
    Demote,
    /// Run the program from a copy.
    Rehearse,
    /// End the program, and the agent.
    Stop,
}

/// The answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// It was done.
    pub ok: bool,
    /// In a sentence.
    pub message: String,
    /// How the agent is, where that was asked.
    pub status: Option<Box<Status>>,
}

impl Reply {
    /// Done, or not.
    #[must_use]
    pub fn new(ok: bool, message: impl Into<String>) -> Self {
        Self {
            ok,
            message: message.into(),
            status: None,
        }
    }
}
