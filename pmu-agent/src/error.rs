//! What can go wrong in an agent.

use std::path::PathBuf;

use pmu_client::ClientError;
use pmu_client::snapshot::SnapshotError;

/// Result of this crate's fallible functions.
pub type Result<T, E = AgentError> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration can't be used.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        problem: String,
    },
    /// A unit, or the way to it.
    #[error("{action}: {source}")]
    Client {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What the library said.
        #[source]
        source: ClientError,
    },
    /// Snapshots of an arena can't be put together.
    #[error("{action}: {source}")]
    Snapshot {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What the library said.
        #[source]
        source: SnapshotError,
    },
    /// The system.
    #[error("{action}: {source}")]
    System {
        /// What was being done, as a bare phrase.
        action: String,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// Certificates and TLS.
    #[error("{0}")]
    Auth(#[from] pmu_auth::AuthError),
    /// Somebody else holds the region.
    #[error("region {region} is held by {by}")]
    Held {
        /// The region.
        region: String,
        /// The principal of its primary.
        by: String,
    },
    /// Something that was recovered can't be believed to be all of it.
    #[error("region {region}: {what}")]
    Incomplete {
        /// The region.
        region: String,
        /// What is missing.
        what: String,
    },
    /// A running agent, or what it refused.
    #[error("{0}")]
    Refused(String),
}

impl AgentError {
    /// For `map_err` on results of the client library.
    pub fn client(action: &'static str) -> impl FnOnce(ClientError) -> Self {
        move |source| Self::Client { action, source }
    }

    /// For `map_err` on results of the client library's snapshots.
    pub fn snapshot(action: &'static str) -> impl FnOnce(SnapshotError) -> Self {
        move |source| Self::Snapshot { action, source }
    }

    /// For `map_err` on results of the system.
    pub fn system<E: Into<std::io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action: action.into(),
            source: source.into(),
        }
    }
}
