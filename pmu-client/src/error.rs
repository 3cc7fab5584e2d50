//! One error type for everything that the library does, with what to do about each.

use std::fmt;
use std::io;

use pmu_fabric::{CompletionStatus, FabricError};
use pmu_format::{Epoch, LogPosition, Mode, SetNumber};

/// Result of this crate's fallible functions.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// What was being stored when an operation failed: the thing to look for in recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attempt {
    /// The set of this number.
    Set(SetNumber),
    /// Records from the first position to (not including) the second.
    Records(LogPosition, LogPosition),
    /// A log's cursor was being moved to this position.
    Clear(LogPosition),
    /// A log was being opened: its tail and its writer's epoch were being published.
    OpenLog,
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(number) => write!(formatter, "set {number}"),
            Self::Records(from, to) => write!(formatter, "the records from {from} to {to}"),
            Self::Clear(to) => write!(formatter, "the cursor at {to}"),
            Self::OpenLog => formatter.write_str("the opening of the log"),
        }
    }
}

/// What can go wrong, for a program to act on.
///
/// [`Self::advice`] says in a sentence what to do. Four questions have a method of their own, as programs ask them most:
/// [`Self::is_fenced`], [`Self::outcome_is_unknown`], [`Self::is_damage`] and [`Self::is_unreachable`].
///
/// Whatever the error, the sets and records that were committed before are untouched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection to the unit, or it was lost before anything was under way.
    #[error("unit {unit} can't be reached: {reason}")]
    Unreachable {
        /// Its address.
        unit: String,
        /// What the network said.
        reason: String,
    },
    /// The unit serves nobody until a manager has initialised its tables.
    #[error("unit {unit} is locked")]
    Locked {
        /// Its address.
        unit: String,
    },
    /// The unit doesn't accept our certificate, or we don't accept its.
    #[error("unit {unit}: authentication failed: {reason}")]
    NotAuthenticated {
        /// Its address.
        unit: String,
        /// Which side refused, and why.
        reason: String,
    },
    /// The principal lacks a right on the region, or its certificate has the wrong role.
    #[error("region {region}: not allowed: {reason}")]
    NoGrant {
        /// The region.
        region: String,
        /// What the unit said.
        reason: String,
    },
    /// The unit has no region of this name.
    #[error("unit {unit} has no region {region}")]
    NoSuchRegion {
        /// The unit's address.
        unit: String,
        /// The region.
        region: String,
    },
    /// The region is of the other mode.
    #[error("region {region} is in {found} mode, not in {expected} mode")]
    WrongMode {
        /// The region.
        region: String,
        /// What the call needs.
        expected: Mode,
        /// What the region is.
        found: Mode,
    },
    /// Another primary holds the region.
    #[error("{reason}")]
    WriterExists {
        /// The region.
        region: String,
        /// What the unit said: which principal, since when.
        reason: String,
    },
    /// Another backup clears the log: one does at a time.
    #[error("{reason}")]
    ClearingExists {
        /// The region.
        region: String,
        /// What the unit said: which principal, since when.
        reason: String,
    },
    /// No method gives the durability that the region (or the caller) asks for. It is never served with less.
    #[error("region {region}: {reason}")]
    UnfitPersistence {
        /// The region.
        region: String,
        /// What was asked and what there is.
        reason: String,
    },
    /// None of the providers that were asked for works between here and the unit.
    #[error("no data connection to unit {unit}: {reason}")]
    NoProvider {
        /// The unit's address.
        unit: String,
        /// What was tried, and how each failed.
        reason: String,
    },
    /// The unit refused for another reason.
    #[error("unit {unit} refused: {message} ({reason})")]
    Refused {
        /// The unit's address.
        unit: String,
        /// The reason's name in the control protocol.
        reason: &'static str,
        /// What the unit said.
        message: String,
    },
    /// The data connection ended, and what was under way has certainly not been stored.
    #[error("the data connection to region {region} was lost: {reason}")]
    ConnectionLost {
        /// The region.
        region: String,
        /// How it ended.
        reason: String,
    },
    /// The region has a newer writer: the unit's fence stopped this one. Nothing that this primary does lands any more.
    #[error("fenced: region {region} is at epoch {epoch} now, this primary was {own_epoch}")]
    Fenced {
        /// The region.
        region: String,
        /// The region's epoch now.
        epoch: Epoch,
        /// The epoch of the primary that was fenced.
        own_epoch: Epoch,
    },
    /// The last chain was posted, and no answer came. What was being stored may be durable or not; recovery tells.
    #[error("outcome unknown: {attempt} in region {region} may have been stored or not: {cause}")]
    UnknownOutcome {
        /// The region.
        region: String,
        /// What was being stored.
        attempt: Attempt,
        /// Why no answer came.
        #[source]
        cause: Box<ClientError>,
    },
    /// The unit's medium failed while bytes were to be made durable. Nothing may be believed of what was being stored.
    #[error("region {region}: the unit could not make bytes durable: its medium failed")]
    MediumFailed {
        /// The region.
        region: String,
    },
    /// An earlier error ended this handle; open a new one.
    #[error("region {region}: this handle ended with an earlier error")]
    Ended {
        /// The region.
        region: String,
    },
    /// The log has no room until its backup clears what it has read.
    #[error("region {region}: the log is full: {needed_bytes} bytes needed, {free_bytes} free")]
    Full {
        /// The region.
        region: String,
        /// Bytes that the records take in the ring.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// Too few of the units answer over which the region is spread.
    #[error("region {region}: {what}; missing: {missing}")]
    TooFewUnits {
        /// The region.
        region: String,
        /// How many are needed, and for what.
        what: pmu_core::spread::TooFewUnits,
        /// Which are missing, and why each.
        missing: String,
    },
    /// The members of the spread region were changed while a set was under way. Nobody else took over: the primary goes on with the new
    /// ones, and the set is to be written again (it may have been stored, too). The primary of a log writes its records again by itself.
    #[error("region {region}: its members were changed")]
    MembersChanged {
        /// The region.
        region: String,
    },
    /// The caller ended it. What was done stays, and it can be gone on with.
    #[error("interrupted")]
    Interrupted,
    /// More bytes than the region can hold at all.
    #[error("region {region}: {bytes} bytes are more than the {limit_bytes} that fit")]
    TooLarge {
        /// The region.
        region: String,
        /// Bytes given (at least).
        bytes: u64,
        /// Bytes that fit.
        limit_bytes: u64,
    },
    /// Bytes on the medium are not what was stored.
    #[error("region {region}: damage: {what}")]
    Damaged {
        /// The region.
        region: String,
        /// Which set, chunk or record, and what is wrong with it.
        what: String,
    },
    /// The region holds no such set.
    #[error("region {region} holds no {what}")]
    NoSuchSet {
        /// The region.
        region: String,
        /// `set 17`, or `committed set`.
        what: String,
    },
    /// Nothing happened in the time given.
    #[error("timed out after {waited_ms} ms: {what}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited_ms: u64,
    },
    /// The caller's own mistake.
    #[error("{0}")]
    Invalid(String),
    /// The caller's reader or writer failed.
    #[error("{action}")]
    Io {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The identity can't be used.
    #[error("identity: {reason}")]
    Identity {
        /// Why not.
        reason: String,
    },
    /// The unit or the fabric broke a rule of its own protocol.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The fabric failed for a reason of this machine (memory, device).
    #[error("fabric")]
    Fabric(#[source] FabricError),
}

impl ClientError {
    /// True if another writer took over: stop writing, for good.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        match self {
            Self::Fenced { .. } => true,
            Self::UnknownOutcome { cause, .. } => cause.is_fenced(),
            _ => false,
        }
    }

    /// The region's epoch and the own one, of a primary that was fenced.
    pub(crate) fn fence(&self) -> Option<(Epoch, Epoch)> {
        match self {
            Self::Fenced {
                epoch, own_epoch, ..
            } => Some((*epoch, *own_epoch)),
            Self::UnknownOutcome { cause, .. } => cause.fence(),
            _ => None,
        }
    }

    /// True if what was being stored may nevertheless be durable.
    #[must_use]
    pub const fn outcome_is_unknown(&self) -> bool {
        matches!(
            self,
            Self::UnknownOutcome { .. } | Self::MembersChanged { .. }
        )
    }

    /// True if bytes on the medium are damaged.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::MediumFailed { .. })
    }

    /// True if trying again later may help: the unit is away, locked, or was lost.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Locked { .. }
                | Self::ConnectionLost { .. }
                | Self::NoProvider { .. }
                | Self::TooFewUnits { .. }
        )
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "check the address and that the unit runs; then try again",
            Self::Locked { .. } => {
                "a manager must unlock the unit (pmm unit unlock); then try again"
            }
            Self::NotAuthenticated { .. } | Self::Identity { .. } => {
                "use an identity issued by the authority that this unit trusts"
            }
            Self::NoGrant { .. } => "a manager must grant the right (pmm region grant)",
            Self::NoSuchRegion { .. } => {
                "check the name; a manager creates regions (pmm region create)"
            }
            Self::WrongMode { .. } => "use the calls for the region's mode",
            Self::WriterExists { .. } => {
                "if that primary is dead, fence the region (or wait until the unit notices), then open again"
            }
            Self::ClearingExists { .. } => {
                "end the backup that clears, or open the log without clearing"
            }
            Self::UnfitPersistence { .. } => {
                "use another provider or method, or a region whose need this unit's medium meets"
            }
            Self::NoProvider { .. } => "choose a provider that both sides have",
            Self::Refused { .. } => "the unit's log says more",
            Self::ConnectionLost { .. } => {
                "open the region again; what was under way was not stored"
            }
            Self::Fenced { .. } => "stop writing: another primary has taken over",
            Self::UnknownOutcome { .. } => "open the region again and look whether it is there",
            Self::MediumFailed { .. } => {
                "verify the region (pmm region verify) before you write again"
            }
            Self::Ended { .. } => "open the region again",
            Self::Full { .. } => "let the backup clear what it has read, then try again",
            Self::TooFewUnits { .. } => "bring one of the missing units back, then try again",
            Self::MembersChanged { .. } => "write the set again",
            Self::Interrupted => "call it again: it goes on where it was",
            Self::TooLarge { .. } => "store less, or have a larger region made",
            Self::Damaged { .. } => {
                "recover an older set, and verify the region (pmm region verify)"
            }
            Self::NoSuchSet { .. } => "list the sets that are kept",
            Self::TimedOut { .. } => "check the unit and the network, or allow more time",
            Self::Invalid(_) => "correct the call",
            Self::Io { .. } => "see the cause",
            Self::Protocol(_) => "check that both sides are of versions that go together",
            Self::Fabric(_) => "see the cause",
        }
    }

    /// For a lost connection that no unit could explain any further.
    pub(crate) fn from_status(region: &str, status: CompletionStatus) -> Self {
        let region = region.to_owned();
        let reason = match status {
            CompletionStatus::PersistFailed => return Self::MediumFailed { region },
            CompletionStatus::RemoteAccess => "the unit withdrew this connection's access",
            CompletionStatus::Flushed => "an earlier operation failed",
            CompletionStatus::ConnectionLost => "the unit is gone, or closed the connection",
            _ => "unknown status",
        };
        Self::ConnectionLost {
            region,
            reason: reason.into(),
        }
    }

    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Io { source, .. } => source,
            ClientError::TooLarge { .. } => Self::new(io::ErrorKind::StorageFull, error),
            ClientError::TimedOut { .. } => Self::new(io::ErrorKind::TimedOut, error),
            other => Self::other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d07_a_set_that_a_change_of_members_cut_short_may_be_stored() {
        let region = "r".to_owned();
        let changed = ClientError::MembersChanged { region };
        assert!(changed.outcome_is_unknown() && !changed.is_fenced());
    }
}
