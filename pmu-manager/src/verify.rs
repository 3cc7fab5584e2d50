//! Checking what lies in a region: every set or record, read over a data connection and held against its checksums.
//!
//! It writes nothing, and takes only the right to read. A primary may go on writing meanwhile: what a live primary
//! overwrote while it was read is not damage, and so nothing counts as damage that a second look does not find again.

use std::time::Duration;

use pmu_auth::Identity;
use pmu_client::{
    ClientError, ConnectOptions, Finding, Mode, OpenOptions, SetChoice, SetInfo, SetReader,
    SetState,
};

use crate::config::Unit;
use crate::error::exit;
use crate::report::{ContentsReport, FindingReport};

/// How often a region is looked at, at most: what is damaged in both of two looks counts.
const LOOKS_MAX: usize = 2;

/// What was found in a region itself.
#[derive(Clone, Debug)]
pub struct Contents {
    /// What was read.
    pub checked: Result<ContentsReport, Unchecked>,
    /// What is wrong with it.
    pub findings: Vec<FindingReport>,
}

/// Why a region's sets or records could not be checked.
#[derive(Clone, Debug)]
pub struct Unchecked {
    /// For people.
    pub why: String,
    /// What the command exits with, unless it found damage.
    pub exit_code: u8,
}

/// Which region is checked, and how.
#[derive(Debug)]
pub struct Task {
    /// The unit.
    pub unit: Unit,
    /// Who reads: a principal with the right to.
    pub identity: Identity,
    /// The region.
    pub region: String,
    /// Its mode.
    pub mode: Mode,
    /// How long to wait for the connection.
    pub timeout: Duration,
}

/// Checks a region's sets or records. Blocks for as long as it takes to read them, on a thread of its own.
pub async fn contents(task: Task) -> Contents {
    match tokio::task::spawn_blocking(move || look_twice(&task)).await {
        Ok(contents) => contents,
        Err(error) => unchecked(&ClientError::Protocol(error.to_string()), &""),
    }
}

fn look_twice(task: &Task) -> Contents {
    let mut earlier: Option<Vec<FindingReport>> = None;
    for _ in 0..LOOKS_MAX {
        let (report, mut findings) = match look(task) {
            Ok(looked) => looked,
            Err(error) => return unchecked(&error, &task.unit.name),
        };
        if let Some(earlier) = &earlier {
            findings.retain(|finding| finding.severity == NOTE || earlier.contains(finding));
        }
        let sound = findings.iter().all(|finding| finding.severity == NOTE);
        if sound || earlier.is_some() {
            return Contents {
                checked: Ok(report),
                findings,
            };
        }
        earlier = Some(findings);
    }
    // Not reached: the second look always returns.
    unchecked(
        &ClientError::Protocol("no look at the region ended".to_owned()),
        &task.unit.name,
    )
}

type Looked = (ContentsReport, Vec<FindingReport>);

fn look(task: &Task) -> Result<Looked, ClientError> {
    let mut options = ConnectOptions::with_timeout(task.timeout);
    options.unit_name = Some(task.unit.name.to_string());
    let address = task.unit.address.to_string();
    let unit = pmu_client::Unit::connect(&address, &task.identity, &options)?;
    match task.mode {
        Mode::Overwrite => look_at_sets(unit.open_sets_reader(&task.region, &OpenOptions::new())?),
        Mode::Append => look_at_log(&unit, &task.region),
    }
}

fn look_at_sets(mut reader: SetReader) -> Result<Looked, ClientError> {
    let catalog = reader.sets()?;
    let mut findings: Vec<_> = catalog.findings.iter().map(set_finding).collect();
    let mut report = ContentsReport {
        sets_good: Some(0),
        newest_set: Some(catalog.published.get()).filter(|number| *number != 0),
        records_good: None,
        bytes_checked: 0,
    };
    for set in catalog.sets.iter().filter(|set| is_whole(set)) {
        let part = format!("set {}", set.number.get());
        match reader.read(SetChoice::Number(set.number), &mut ()) {
            Ok(_) => {
                report.sets_good = report.sets_good.map(|good| good + 1);
                report.bytes_checked = report.bytes_checked.saturating_add(set.bytes);
            }
            Err(ClientError::Damaged { what, .. }) => findings.push(damage(part, what)),
            // A live primary has reused its slot since the sets were listed.
            Err(error @ ClientError::NoSuchSet { .. }) => {
                findings.push(note(part, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((report, findings))
}

/// A set that should read well: not one that a primary is at.
fn is_whole(set: &SetInfo) -> bool {
    !matches!(
        set.state,
        SetState::BeingWritten | SetState::BeingOverwritten
    )
}

fn look_at_log(unit: &pmu_client::Unit, region: &str) -> Result<Looked, ClientError> {
    let mut backup = unit.open_log_backup(region, false, &OpenOptions::new())?;
    // More than the ring holds is more than there was at the beginning: a live primary fills it faster than it is read.
    let enough_bytes = backup.region().length_bytes;
    let mut bytes_checked = 0_u64;
    let recovered = backup.recover(|record| {
        bytes_checked = bytes_checked.saturating_add(record.payload.len() as u64);
        if bytes_checked > enough_bytes {
            return Err(ClientError::Invalid(
                "records come faster than they can be checked; try again when the primary rests"
                    .to_owned(),
            ));
        }
        Ok(())
    })?;
    let mut findings = Vec::new();
    if let Some(what) = recovered.damage {
        findings.push(damage("log".to_owned(), what));
    }
    if recovered.cursor_disagreed {
        let what = "a clear was cut short: the lower of both cursors counts";
        findings.push(note("cursor".to_owned(), what.to_owned()));
    }
    let report = ContentsReport {
        sets_good: None,
        newest_set: None,
        records_good: Some(recovered.records),
        bytes_checked,
    };
    Ok((report, findings))
}

const NOTE: &str = "note";

fn set_finding(finding: &Finding) -> FindingReport {
    let (part, text) = ("sets".to_owned(), finding.to_string());
    match finding {
        Finding::Overtaken { .. } => note(part, text),
        // Every byte of every set may be good all the same.
        Finding::PublishBehind { .. } => FindingReport {
            part,
            severity: "degraded",
            detail: text,
        },
        _ => damage(part, text),
    }
}

fn damage(part: String, detail: String) -> FindingReport {
    FindingReport {
        part,
        severity: "damaged",
        detail,
    }
}

fn note(part: String, detail: String) -> FindingReport {
    FindingReport {
        part,
        severity: NOTE,
        detail,
    }
}

fn unchecked(error: &ClientError, unit: &dyn std::fmt::Display) -> Contents {
    // Where not even a beginning can be found there is nothing to report but the damage.
    if let ClientError::Damaged { what, .. } = error {
        let why = "it is damaged at its beginning".to_owned();
        let checked = Err(Unchecked {
            why,
            exit_code: exit::DAMAGED,
        });
        return Contents {
            checked,
            findings: vec![damage("region".to_owned(), what.clone())],
        };
    }
    let (why, exit_code) = match error {
        ClientError::NoGrant { region, reason } => (
            format!(
                "{reason}; `pmm region grant {region} PRINCIPAL:read` lets a principal check it"
            ),
            exit::NOT_AUTHORISED,
        ),
        ClientError::NotAuthenticated { .. } | ClientError::Identity { .. } => {
            (error.to_string(), exit::NOT_AUTHORISED)
        }
        ClientError::NoSuchRegion { .. } => (error.to_string(), exit::NOT_FOUND),
        error if error.is_unreachable() => (error.to_string(), exit::UNAVAILABLE),
        error => (format!("unit {unit}: {error}"), exit::FAILED),
    };
    Contents {
        checked: Err(Unchecked { why, exit_code }),
        findings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_checked_says_why() {
        let denied = ClientError::NoGrant {
            region: "r".to_owned(),
            reason: "no".to_owned(),
        };
        let contents = unchecked(&denied, &"u");
        let unchecked_because = contents.checked.unwrap_err();
        assert_eq!(unchecked_because.exit_code, 3);
        assert!(unchecked_because.why.contains("pmm region grant r"));

        let broken = ClientError::Damaged {
            region: "r".to_owned(),
            what: "all".to_owned(),
        };
        let contents = unchecked(&broken, &"u");
        assert_eq!(contents.checked.unwrap_err().exit_code, 5);
        assert_eq!(contents.findings[0].severity, "damaged");
    }
}
