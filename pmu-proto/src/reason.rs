//! Why a request was refused, in a form that programs can act on.
//!
//! A refusal is a gRPC status with the code that [`code`] names, a message for people, and the reason's name
//! (`NO_GRANT`) in the metadata key [`KEY`]. A status without that key comes from the transport or from a bug, not
//! from a unit's decision.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::v1::Reason;

/// The metadata key of the reason's name.
pub const KEY: &str = "pmu-reason";

const PREFIX: &str = "REASON_";

/// A status that carries `reason`; `message` is for people and says what was refused.
pub fn status(reason: Reason, message: impl Into<String>) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(KEY, MetadataValue::from_static(name(reason)));
    Status::with_metadata(code(reason), message, metadata)
}

/// The reason that a status carries. `None` when it carries none, or one that this version does not know.
pub fn of(status: &Status) -> Option<Reason> {
    let name = status.metadata().get(KEY)?.to_str().ok()?;
    match Reason::from_str_name(&format!("{PREFIX}{name}"))? {
        Reason::Unspecified => None,
        reason => Some(reason),
    }
}

/// The reason's name as it travels: without the prefix of the enum.
pub fn name(reason: Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The gRPC code that goes with a reason.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::Unspecified => Code::Unknown,
        Reason::Locked
        | Reason::WriterExists
        | Reason::ClearingExists
        | Reason::InUse
        | Reason::UnfitPersistence
        | Reason::VolatilePool
        | Reason::BeingErased => Code::FailedPrecondition,
        Reason::NoGrant | Reason::WrongRole => Code::PermissionDenied,
        Reason::NoSuchRegion | Reason::NoSuchSession | Reason::NoSuchPool | Reason::NoSuchGrant => {
            Code::NotFound
        }
        Reason::TooSmall | Reason::BadName | Reason::BadRequest => Code::InvalidArgument,
        Reason::PoolFull | Reason::TableFull | Reason::TooManySessions => Code::ResourceExhausted,
        Reason::NameTaken => Code::AlreadyExists,
        Reason::StaleEpoch | Reason::WrongGeneration => Code::Aborted,
        Reason::NoPrincipal => Code::Unauthenticated,
        Reason::NotConnected => Code::DeadlineExceeded,
        Reason::NoProvider | Reason::Stopping => Code::Unavailable,
        Reason::Medium | Reason::Fabric => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_comes_back() {
        let mut known = 0;
        for number in 1..100 {
            let Ok(reason) = Reason::try_from(number) else {
                continue;
            };
            let status = status(reason, "refused");
            assert_eq!(of(&status), Some(reason));
            assert_eq!(status.code(), code(reason));
            assert_eq!(status.message(), "refused");
            known += 1;
        }
        assert_eq!(known, 28);
    }

    #[test]
    fn unknown_and_absent_reasons_are_none() {
        assert_eq!(of(&Status::internal("no reason")), None);
        let mut status = Status::internal("a later version's reason");
        status
            .metadata_mut()
            .insert(KEY, MetadataValue::from_static("WHATEVER"));
        assert_eq!(of(&status), None);
        status
            .metadata_mut()
            .insert(KEY, MetadataValue::from_static("UNSPECIFIED"));
        assert_eq!(of(&status), None);
    }
}
