//! Receipts and errors as they travel between a distributor and its program. Both sides use this, so that a program gets what it would have
//! got from the units themselves.

use std::sync::Arc;

use pmu_core::spread::TooFewUnits;
use pmu_fabric::Provider;
use pmu_format::{Epoch, LogPosition, Mode, SetNumber};
use pmu_proto::reason;
use pmu_proto::v1::failure::Kind;
use pmu_proto::v1::{self, Failure, Reason};

use crate::agent::Epochs;
use crate::control::chain;
use crate::error::{Attempt, ClientError, Result};
use crate::options::PersistenceChoice;
use crate::provider::{method_from_wire, method_to_wire, to_wire};
use crate::receipt::{Receipt, Stored, UnitProof};
use crate::spread::MissingUnit;

/// The reason's name of a piece whose bytes are not those that were announced.
pub const DAMAGED_PIECE: &str = "DAMAGED_PIECE";
/// The reason's name for who does not distribute.
pub const NO_DISTRIBUTOR: &str = "NO_DISTRIBUTOR";
/// How deep causes are nested at most.
const CAUSES_MAX: u32 = 3;
/// What it takes a number of units for, in the words of `pmu_core::spread`.
const PURPOSES: [&str; 4] = [
    "commit",
    "fence",
    "read the set",
    "know which set is the newest",
];

/// The persistence method that a program asks for; unspecified: the best of each unit.
///
/// # Errors
/// [`ClientError::Invalid`]: not one that is known.
pub fn persistence_from_wire(number: i32) -> Result<PersistenceChoice> {
    if number == i32::from(v1::PersistenceMethod::Unspecified) {
        return Ok(PersistenceChoice::Auto);
    }
    let method = method_from_wire(number);
    method
        .map(PersistenceChoice::Forced)
        .ok_or_else(|| ClientError::Invalid(format!("persistence method {number} is not known")))
}

/// A failure of `kind` with a text, for the distributor's own refusals.
#[must_use]
pub fn failure(kind: Kind, region: &str, text: impl Into<String>) -> Failure {
    Failure {
        kind: kind.into(),
        region: region.to_owned(),
        text: text.into(),
        ..Failure::default()
    }
}

/// An error of the units, for the program that has its sets distributed.
#[must_use]
pub fn failure_to_wire(error: &ClientError) -> Failure {
    let of = |kind, region: &str, text: &str| failure(kind, region, text);
    let unit = |kind, unit: &str, text: &str| Failure {
        unit: unit.to_owned(),
        ..failure(kind, "", text)
    };
    match error {
        ClientError::Unreachable { unit: u, reason } => unit(Kind::Unreachable, u, reason),
        ClientError::Locked { unit: u } => unit(Kind::Locked, u, ""),
        ClientError::NotAuthenticated { unit: u, reason } => {
            unit(Kind::NotAuthenticated, u, reason)
        }
        ClientError::NoGrant { region, reason } => of(Kind::NoGrant, region, reason),
        ClientError::NoSuchRegion { unit: u, region } => Failure {
            region: region.clone(),
            ..unit(Kind::NoSuchRegion, u, "")
        },
        ClientError::WriterExists { region, reason } => of(Kind::WriterExists, region, reason),
        ClientError::UnfitPersistence { region, reason } => {
            of(Kind::UnfitPersistence, region, reason)
        }
        ClientError::NoProvider { unit: u, reason } => unit(Kind::NoProvider, u, reason),
        ClientError::Refused {
            unit: u,
            reason,
            message,
        } => Failure {
            reason: (*reason).to_owned(),
            ..unit(Kind::Refused, u, message)
        },
        ClientError::ConnectionLost { region, reason } => of(Kind::ConnectionLost, region, reason),
        ClientError::MediumFailed { region } => of(Kind::MediumFailed, region, ""),
        ClientError::Ended { region } => of(Kind::Ended, region, ""),
        ClientError::Damaged { region, what } => of(Kind::Damaged, region, what),
        ClientError::Invalid(text) => of(Kind::Invalid, "", text),
        ClientError::Protocol(text) => of(Kind::Protocol, "", text),
        ClientError::TimedOut { what, waited_ms } => Failure {
            waited_ms: *waited_ms,
            ..of(Kind::TimedOut, "", what)
        },
        numbers => numbers_to_wire(numbers),
    }
}

/// The errors that carry numbers, and those that a program can't act on.
fn numbers_to_wire(error: &ClientError) -> Failure {
    match error {
        ClientError::Fenced {
            region,
            epoch,
            own_epoch,
        } => Failure {
            epoch: epoch.get(),
            own_epoch: own_epoch.get(),
            ..failure(Kind::Fenced, region, "")
        },
        ClientError::UnknownOutcome {
            region,
            attempt,
            cause,
        } => Failure {
            cause: Some(Box::new(failure_to_wire(cause))),
            ..attempt_to_wire(*attempt, region)
        },
        ClientError::TooFewUnits {
            region,
            what,
            missing,
        } => Failure {
            reached: count(what.reached),
            members: count(what.members),
            needed: count(what.needed),
            purpose: what.purpose.to_owned(),
            ..failure(Kind::TooFewUnits, region, missing.as_str())
        },
        ClientError::TooLarge {
            region,
            bytes,
            limit_bytes,
        } => Failure {
            bytes: *bytes,
            limit_bytes: *limit_bytes,
            ..failure(Kind::TooLarge, region, "")
        },
        ClientError::Full {
            region,
            needed_bytes,
            free_bytes,
        } => Failure {
            bytes: *needed_bytes,
            limit_bytes: *free_bytes,
            ..failure(Kind::Full, region, "")
        },
        ClientError::WrongMode {
            region,
            expected,
            found,
        } => Failure {
            expected: mode_to_wire(*expected).into(),
            found: mode_to_wire(*found).into(),
            ..failure(Kind::WrongMode, region, "")
        },
        ClientError::MembersChanged { region } => failure(Kind::MembersChanged, region, ""),
        other => Failure {
            reason: reason::name(Reason::Fabric).to_owned(),
            ..failure(Kind::Refused, "", chain(other))
        },
    }
}

fn attempt_to_wire(attempt: Attempt, region: &str) -> Failure {
    let unknown = failure(Kind::UnknownOutcome, region, "");
    match attempt {
        Attempt::Set(number) => Failure {
            set: number.get(),
            ..unknown
        },
        Attempt::Records(from, to) => Failure {
            records_from: from.get(),
            records_to: to.get(),
            ..unknown
        },
        _ => unknown,
    }
}

const fn attempt_from_wire(wire: &Failure) -> Attempt {
    if wire.records_to > 0 {
        Attempt::Records(LogPosition(wire.records_from), LogPosition(wire.records_to))
    } else {
        Attempt::Set(SetNumber(wire.set))
    }
}

pub(super) const fn mode_to_wire(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Overwrite => v1::Mode::Overwrite,
        Mode::Append => v1::Mode::Append,
    }
}

const fn mode_from_wire(mode: v1::Mode) -> Mode {
    match mode {
        v1::Mode::Append => Mode::Append,
        _ => Mode::Overwrite,
    }
}

/// Whether a distributor says of what failed more than this version can read: it may be that the outcome is unknown.
pub(super) fn says_more(wire: &Failure) -> bool {
    wire.kind() == Kind::Unspecified
}

/// The error that a distributor's failure stands for. `distributor` is its address.
pub(super) fn failure_from_wire(wire: &Failure, distributor: &str) -> ClientError {
    from_wire(wire, distributor, CAUSES_MAX)
}

fn from_wire(wire: &Failure, distributor: &str, causes: u32) -> ClientError {
    let region = wire.region.clone();
    let reason = wire.text.clone();
    let unit = if wire.unit.is_empty() {
        distributor.to_owned()
    } else {
        wire.unit.clone()
    };
    match wire.kind() {
        Kind::Unreachable => ClientError::Unreachable { unit, reason },
        Kind::Locked => ClientError::Locked { unit },
        Kind::NotAuthenticated => ClientError::NotAuthenticated { unit, reason },
        Kind::NoGrant => ClientError::NoGrant { region, reason },
        Kind::NoSuchRegion => ClientError::NoSuchRegion { unit, region },
        Kind::WriterExists => ClientError::WriterExists { region, reason },
        Kind::UnfitPersistence => ClientError::UnfitPersistence { region, reason },
        Kind::NoProvider => ClientError::NoProvider { unit, reason },
        Kind::Refused => refused(unit, &wire.reason, reason),
        Kind::DamagedPiece => refused(unit, DAMAGED_PIECE, reason),
        Kind::ConnectionLost => ClientError::ConnectionLost { region, reason },
        Kind::Fenced => ClientError::Fenced {
            region,
            epoch: Epoch(wire.epoch),
            own_epoch: Epoch(wire.own_epoch),
        },
        Kind::UnknownOutcome => ClientError::UnknownOutcome {
            region,
            attempt: attempt_from_wire(wire),
            cause: Box::new(match &wire.cause {
                Some(cause) if causes > 0 => from_wire(cause, distributor, causes - 1),
                _ => ClientError::Protocol("the distributor gave no cause".into()),
            }),
        },
        Kind::MediumFailed => ClientError::MediumFailed { region },
        Kind::Ended => ClientError::Ended { region },
        Kind::TooFewUnits => ClientError::TooFewUnits {
            region,
            what: TooFewUnits {
                reached: wire.reached as usize,
                members: wire.members as usize,
                needed: wire.needed as usize,
                purpose: known(&PURPOSES, &wire.purpose).unwrap_or("go on"),
            },
            missing: reason,
        },
        Kind::TooLarge => ClientError::TooLarge {
            region,
            bytes: wire.bytes,
            limit_bytes: wire.limit_bytes,
        },
        Kind::Full => ClientError::Full {
            region,
            needed_bytes: wire.bytes,
            free_bytes: wire.limit_bytes,
        },
        Kind::WrongMode => ClientError::WrongMode {
            region,
            expected: mode_from_wire(wire.expected()),
            found: mode_from_wire(wire.found()),
        },
        Kind::MembersChanged => ClientError::MembersChanged { region },
        Kind::Damaged => ClientError::Damaged {
            region,
            what: reason,
        },
        Kind::TimedOut => ClientError::TimedOut {
            what: "the distributor waited for a unit",
            waited_ms: wire.waited_ms,
        },
        Kind::Invalid => ClientError::Invalid(reason),
        Kind::Protocol => ClientError::Protocol(reason),
        Kind::Unspecified => ClientError::Protocol(format!(
            "a failure that this version doesn't know: {reason}"
        )),
    }
}

fn refused(unit: String, name: &str, message: String) -> ClientError {
    // Reasons are few; one that this version doesn't know is still told in the message.
    let reasons = (1..=i32::from(u8::MAX)).filter_map(|number| Reason::try_from(number).ok());
    let mut names = reasons.map(reason::name).chain([DAMAGED_PIECE]);
    ClientError::Refused {
        unit,
        reason: names.find(|known| *known == name).unwrap_or("UNKNOWN"),
        message,
    }
}

fn known(all: &[&'static str], text: &str) -> Option<&'static str> {
    all.iter().copied().find(|known| *known == text)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A receipt as it travels. None for a receipt of records.
#[must_use]
pub fn receipt_to_wire(receipt: &Receipt) -> Option<v1::DistributeReceipt> {
    let proof = proof_to_wire(receipt);
    Some(v1::DistributeReceipt {
        region: receipt.region.as_ref().to_owned(),
        set: receipt.set()?.get(),
        epoch: proof.epoch,
        length_bytes: receipt.bytes,
        units: proof.units,
        provider: proof.provider,
    })
}

/// What of a receipt is the same for all records, as it travels.
#[must_use]
pub fn proof_to_wire(receipt: &Receipt) -> v1::DistributeProof {
    let units = receipt.units.iter().map(|proof| v1::UnitProof {
        unit: proof.name.as_ref().to_owned(),
        persistence: method_to_wire(proof.persistence).into(),
    });
    v1::DistributeProof {
        epoch: receipt.epoch.get(),
        units: units.collect(),
        provider: to_wire(receipt.provider).into(),
    }
}

/// Who has records, in which epoch, and which way they went.
#[derive(Debug, Clone)]
pub(super) struct Proof {
    pub(super) epoch: Epoch,
    pub(super) units: Arc<[UnitProof]>,
    pub(super) provider: Provider,
}

pub(super) fn proof_from_wire(wire: &v1::DistributeProof) -> Result<Proof> {
    let wrong = |what: &str| ClientError::Protocol(format!("the distributor's receipt: {what}"));
    let units: Option<Vec<_>> = wire.units.iter().map(unit_from_wire).collect();
    let units = units.ok_or_else(|| wrong("an unknown persistence method"))?;
    if units.is_empty() {
        return Err(wrong("it names no unit"));
    }
    Ok(Proof {
        epoch: Epoch(wire.epoch),
        units: units.into(),
        provider: provider_from_wire(wire.provider).ok_or_else(|| wrong("an unknown provider"))?,
    })
}

/// Checks and takes a receipt for `bytes` of `region`, whose number must be above `newest`.
pub(super) fn receipt_from_wire(
    wire: &v1::DistributeReceipt,
    region: &Arc<str>,
    bytes: u64,
    newest: SetNumber,
) -> Result<Receipt> {
    let wrong = |what: &str| ClientError::Protocol(format!("the distributor's receipt: {what}"));
    if wire.region != **region || wire.length_bytes != bytes {
        return Err(wrong("it is for something else"));
    }
    if wire.set <= newest.get() {
        return Err(wrong("its set is not a new one"));
    }
    let proof = proof_from_wire(&v1::DistributeProof {
        epoch: wire.epoch,
        units: wire.units.clone(),
        provider: wire.provider,
    })?;
    Ok(Receipt {
        region: Arc::clone(region),
        stored: Stored::Set(SetNumber(wire.set)),
        epoch: proof.epoch,
        bytes,
        units: proof.units,
        provider: proof.provider,
    })
}

fn unit_from_wire(wire: &v1::UnitProof) -> Option<UnitProof> {
    Some(UnitProof {
        name: wire.unit.as_str().into(),
        persistence: method_from_wire(wire.persistence)?,
    })
}

fn provider_from_wire(number: i32) -> Option<Provider> {
    let all = [Provider::SoftTcp, Provider::SoftUnix, Provider::Verbs];
    all.into_iter()
        .find(|provider| to_wire(*provider) as i32 == number)
}

/// The units that don't take part, as they travel.
pub fn missing_to_wire<'a>(
    missing: impl IntoIterator<Item = &'a MissingUnit>,
) -> Vec<v1::MissingUnit> {
    let missing = missing.into_iter().map(|missing| v1::MissingUnit {
        unit: missing.unit.as_ref().to_owned(),
        reason: missing.reason.clone(),
    });
    missing.collect()
}

pub(super) fn missing_from_wire(wire: &[v1::MissingUnit]) -> Vec<MissingUnit> {
    let missing = wire.iter().map(|missing| MissingUnit {
        unit: missing.unit.as_str().into(),
        reason: missing.reason.clone(),
    });
    missing.collect()
}

/// Epochs of a region's members, as they travel.
#[must_use]
pub fn epochs_to_wire(epochs: &[(Arc<str>, Epoch)]) -> Vec<v1::UnitEpoch> {
    let epochs = epochs.iter().map(|(unit, epoch)| v1::UnitEpoch {
        unit: unit.as_ref().to_owned(),
        epoch: epoch.get(),
    });
    epochs.collect()
}

/// The other way.
#[must_use]
pub fn epochs_from_wire(wire: &[v1::UnitEpoch]) -> Vec<(Arc<str>, Epoch)> {
    let epochs = wire.iter();
    epochs
        .map(|one| (one.unit.as_str().into(), Epoch(one.epoch)))
        .collect()
}

/// A program takes note of what units have granted to its distributor.
pub(super) fn take_granted(epochs: &Epochs, region: &str, granted: &[v1::UnitEpoch]) {
    for (unit, epoch) in epochs_from_wire(granted) {
        epochs.granted(region, &unit, epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d08_what_went_wrong_is_the_same_behind_a_distributor() {
        let region = || "state".to_owned();
        let text = || "text".to_owned();
        let few = TooFewUnits {
            reached: 2,
            members: 4,
            needed: 3,
            purpose: "commit",
        };
        let fenced = || ClientError::Fenced {
            region: region(),
            epoch: Epoch(9),
            own_epoch: Epoch(7),
        };
        let errors = [
            ClientError::Unreachable {
                unit: text(),
                reason: text(),
            },
            ClientError::Locked { unit: text() },
            ClientError::NoGrant {
                region: region(),
                reason: text(),
            },
            ClientError::NoSuchRegion {
                unit: text(),
                region: region(),
            },
            ClientError::WriterExists {
                region: region(),
                reason: text(),
            },
            ClientError::UnfitPersistence {
                region: region(),
                reason: text(),
            },
            ClientError::Refused {
                unit: text(),
                reason: "STALE_EPOCH",
                message: text(),
            },
            ClientError::ConnectionLost {
                region: region(),
                reason: text(),
            },
            fenced(),
            ClientError::UnknownOutcome {
                region: region(),
                attempt: Attempt::Set(SetNumber(3)),
                cause: Box::new(fenced()),
            },
            ClientError::UnknownOutcome {
                region: region(),
                attempt: Attempt::Records(LogPosition(0), LogPosition(64)),
                cause: Box::new(fenced()),
            },
            ClientError::Full {
                region: region(),
                needed_bytes: 5,
                free_bytes: 4,
            },
            ClientError::WrongMode {
                region: region(),
                expected: Mode::Append,
                found: Mode::Overwrite,
            },
            ClientError::MembersChanged { region: region() },
            ClientError::MediumFailed { region: region() },
            ClientError::TooFewUnits {
                region: region(),
                what: few,
                missing: text(),
            },
            ClientError::TooLarge {
                region: region(),
                bytes: 5,
                limit_bytes: 4,
            },
            ClientError::Ended { region: region() },
            ClientError::Invalid(text()),
        ];
        for error in errors {
            let back = failure_from_wire(&failure_to_wire(&error), "there:1");
            assert_eq!(format!("{back:?}"), format!("{error:?}"));
        }
    }

    #[test]
    fn d08_causes_are_not_nested_without_end() {
        let mut wire = failure(Kind::UnknownOutcome, "r", "");
        for _ in 0..50 {
            wire = Failure {
                cause: Some(Box::new(wire)),
                ..failure(Kind::UnknownOutcome, "r", "")
            };
        }
        let mut error = &failure_from_wire(&wire, "there:1");
        let mut depth = 0;
        while let ClientError::UnknownOutcome { cause, .. } = error {
            error = cause;
            depth += 1;
        }
        assert_eq!(depth, CAUSES_MAX + 1);
    }
}
