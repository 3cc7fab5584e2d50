//! Refusals: a reason for programs, a sentence for people, and what the errors of the other rooms become.

use std::fmt;

use pmu_fabric::FabricError;
use pmu_format::NameError;
use pmu_pmem::PmemError;
use pmu_proto::v1::Reason;
use tonic::Status;

use crate::metrics;

/// Why a request was refused. The message says what was refused and what to do about it; it never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal for `reason`.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            pmu_proto::reason::name(self.reason),
            self.message
        )
    }
}

impl std::error::Error for Refusal {}

/// Counts and logs the refusal: this is where it leaves the unit.
impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        metrics::count_refusal(refusal.reason);
        let reason = pmu_proto::reason::name(refusal.reason);
        match refusal.reason {
            Reason::Medium | Reason::Fabric => {
                tracing::error!(reason, message = %refusal.message, "request failed");
            }
            _ => tracing::info!(reason, message = %refusal.message, "request refused"),
        }
        pmu_proto::reason::status(refusal.reason, refusal.message)
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::new(Reason::BadName, error.to_string())
    }
}

impl From<PmemError> for Refusal {
    fn from(error: PmemError) -> Self {
        Self::new(
            Reason::Medium,
            format!(
                "{}; look at the unit's log and run `pmu-server verify` on the pool",
                with_causes(&error)
            ),
        )
    }
}

impl From<FabricError> for Refusal {
    fn from(error: FabricError) -> Self {
        match error {
            FabricError::UnfitPersistence { .. } => {
                Self::new(Reason::UnfitPersistence, error.to_string())
            }
            FabricError::TimedOut { .. } => Self::new(
                Reason::NotConnected,
                format!(
                    "{error}; connect with the token to an address of the answer to OpenRegion, then activate"
                ),
            ),
            FabricError::NoSuchConnection => Self::new(
                Reason::NotConnected,
                "the data connection has ended, or its token was not used in time; open the region again",
            ),
            error => Self::new(Reason::Fabric, with_causes(&error)),
        }
    }
}

/// An error and what caused it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat their source in their own text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_carry_their_reason_and_say_what_to_do() {
        let status = Status::from(Refusal::from(FabricError::NoSuchConnection));
        assert_eq!(pmu_proto::reason::of(&status), Some(Reason::NotConnected));
        assert!(status.message().contains("open the region again"));
        let io = FabricError::Io {
            context: "bind a window",
            source: std::io::Error::other("no room"),
        };
        let refusal = Refusal::from(io);
        assert_eq!(
            (refusal.reason, refusal.message.as_str()),
            (Reason::Fabric, "bind a window: no room")
        );
    }
}
