//! Checking what lies in a region: every set or record, read over a data connection and held against its checksums.
//!
//! [`pmu_client::verify`] does it, with a manager's rights.

use std::time::Duration;

use pmu_auth::Identity;
use pmu_client::verify::{self, Opened, Severity};
use pmu_client::{ClientError, ConnectOptions, Mode, OpenOptions};

use crate::config::Unit;
use crate::error::exit;
use crate::report::{ContentsReport, FindingReport};

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
    match verify::check(&mut || open(task)) {
        Ok(checked) => Contents {
            checked: Ok(ContentsReport {
                sets_good: checked.sets_good,
                newest_set: checked.newest_set,
                records_good: checked.records_good,
                bytes_checked: checked.bytes_checked,
            }),
            findings: checked.findings.into_iter().map(finding).collect(),
        },
        Err(error) => unchecked(&error, &task.unit.name),
    }
}

fn open(task: &Task) -> Result<Opened, ClientError> {
    let mut options = ConnectOptions::with_timeout(task.timeout);
    options.unit_name = Some(task.unit.name.to_string());
    let address = task.unit.address.to_string();
    let unit = pmu_client::Unit::connect(&address, &task.identity, &options)?;
    let options = OpenOptions::new();
    Ok(match task.mode {
        Mode::Overwrite => Opened::Sets(Box::new(unit.open_sets_reader(&task.region, &options)?)),
        Mode::Append => Opened::Log(Box::new(unit.open_log_backup(
            &task.region,
            false,
            &options,
        )?)),
    })
}

fn finding(found: verify::Found) -> FindingReport {
    FindingReport {
        part: found.part,
        severity: match found.severity {
            Severity::Note => "note",
            Severity::Degraded => "degraded",
            Severity::Damaged => "damaged",
        },
        detail: found.detail,
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
            findings: vec![FindingReport {
                part: "region".to_owned(),
                severity: "damaged",
                detail: what.clone(),
            }],
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
