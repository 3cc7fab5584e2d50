//! What can go wrong in the demonstration.

use std::io;
use std::path::{Path, PathBuf};

use pmu_client::ClientError;
use pmu_client::snapshot::SnapshotError;

/// Result of this crate's fallible functions.
pub type Result<T, E = DemoError> = std::result::Result<T, E>;

/// Why a part of the demonstration ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A file or a stream of this machine.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another request to the system.
    #[error("{action}: {source}")]
    System {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Arguments or surroundings that can't work, with what to do about it.
    #[error("{0}")]
    Unusable(String),
    /// A document is no longer what it was when the list was made: the runs could not be compared.
    #[error("document {} was {listed_bytes} bytes and is {found_bytes}", path.display())]
    Changed {
        /// The document.
        path: PathBuf,
        /// Its length in the list.
        listed_bytes: u64,
        /// Its length now.
        found_bytes: u64,
    },
    /// Bytes that came back from a unit are no record or state of ours.
    #[error("{what}: {problem}")]
    Malformed {
        /// A record, or a state.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A unit, or the way to it.
    #[error("{action}: {source}; {}", source.advice())]
    Client {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What the library said.
        source: ClientError,
    },
    /// A process that belongs to the demonstration.
    #[error("{name}: {problem}{}", said(log))]
    Process {
        /// Which one.
        name: String,
        /// How it failed.
        problem: String,
        /// The end of what it wrote to standard error.
        log: String,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = log.lines().map(|line| format!("\n    | {line}")).collect();
    format!("; its last words:{}", lines.concat())
}

impl DemoError {
    /// What was being done, and what the library said, if another primary has taken over.
    #[must_use]
    pub fn fenced(&self) -> Option<String> {
        match self {
            Self::Client { action, source } if source.is_fenced() => {
                let cause = match source {
                    ClientError::UnknownOutcome { cause, .. } => cause,
                    other => other,
                };
                Some(format!("{action}: {cause}"))
            }
            _ => None,
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }

    pub(crate) fn snapshot(action: &'static str) -> impl FnOnce(SnapshotError) -> Self {
        move |error| match error {
            SnapshotError::Client(source) => Self::Client { action, source },
            other => Self::Unusable(format!("{action}: {other}")),
        }
    }

    pub(crate) fn client(action: &'static str) -> impl FnOnce(ClientError) -> Self {
        move |source| Self::Client { action, source }
    }
}
