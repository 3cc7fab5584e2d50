//! One error type for every provider.

use crate::persistence::{PersistenceMethod, Provider};

/// How a chain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompletionStatus {
    /// Every operation took effect; what was flushed is durable.
    Success,
    /// The unit refused an operation: outside a window, wrong key, missing right, or the window was invalidated (a fence).
    RemoteAccess,
    /// The unit could not make the bytes durable (its medium failed). Nothing may be believed of the chain.
    PersistFailed,
    /// Not executed, or not known to be: the connection died before.
    Flushed,
    /// The peer is gone: connection closed, retries exceeded.
    ConnectionLost,
}

/// What can go wrong in the fabric.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// As many chains or operations are in flight as the connection allows; poll for completions first.
    #[error("the send queue is full")]
    QueueFull,
    /// A chain that breaks the grammar of [`crate::Chain`], or is too long.
    #[error("invalid chain: {reason}")]
    InvalidChain {
        /// Which rule.
        reason: &'static str,
    },
    /// The caller's own check: the range lies in none of the windows that the unit gave out.
    #[error("virtual address {address:#x}+{length} lies outside the windows of this connection")]
    OutsideWindows {
        /// First byte.
        address: u64,
        /// Number of bytes.
        length: u64,
    },
    /// A range that lies outside the local memory.
    #[error("range {offset}+{length} lies outside local memory of {capacity} bytes")]
    OutsideMemory {
        /// First byte.
        offset: usize,
        /// Number of bytes.
        length: usize,
        /// Size of the memory.
        capacity: usize,
    },
    /// The connection ended with this status; open a new one.
    #[error("the connection is dead: {0:?}")]
    Dead(CompletionStatus),
    /// The other side speaks another version, or not this protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The unit refused the connection.
    #[error("the unit refused the connection: {reason}")]
    Refused {
        /// What the unit said.
        reason: String,
    },
    /// The provider can't run on this machine.
    #[error("provider {provider} is not available: {reason}")]
    Unavailable {
        /// Which provider.
        provider: Provider,
        /// Why not.
        reason: String,
    },
    /// A persistence method that this device, pool or provider can't honour.
    #[error("persistence method {method} is not possible: {reason}")]
    UnfitPersistence {
        /// The method asked for.
        method: PersistenceMethod,
        /// Why not.
        reason: String,
    },
    /// No such connection (it has ended).
    #[error("no such connection")]
    NoSuchConnection,
    /// Nothing happened in the time given.
    #[error("timed out after {waited_ms} ms: {what}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        waited_ms: u64,
    },
    /// A system call failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// A verbs call failed.
    #[error(transparent)]
    Verbs(#[from] pmu_verbs::VerbsError),
    /// The pool's memory failed.
    #[error(transparent)]
    Memory(#[from] pmu_pmem::PmemError),
}

impl FabricError {
    pub(crate) fn io(context: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { context, source }
    }
}
