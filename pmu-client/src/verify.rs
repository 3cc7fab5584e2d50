//! Checks what lies in a region of one unit: every set or record is read and held against its checksums.
//!
//! It writes nothing, and takes only the right to read. A primary may go on writing meanwhile: what a live primary overwrote while it was
//! read is not damage, and so nothing counts as damage that a second look does not find again.

use pmu_core::commit::{Finding, SetState};

use crate::error::{ClientError, Result};
use crate::log::LogBackup;
use crate::sets::{SetChoice, SetInfo, SetReader};

/// A region that was opened to be checked.
#[derive(Debug)]
pub enum Opened {
    /// One in overwrite mode.
    Sets(Box<SetReader>),
    /// One in append mode.
    Log(Box<LogBackup>),
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Not as it should be, and every byte may be good all the same.
    Degraded,
    /// Not what was written.
    Damaged,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Which set, or what else.
    pub part: String,
    /// How bad it is.
    pub severity: Severity,
    /// For people.
    pub detail: String,
}

/// What was read, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// Overwrite mode: sets every chunk of which is right.
    pub sets_good: Option<u64>,
    /// Overwrite mode: the newest committed set, if there is one.
    pub newest_set: Option<u64>,
    /// Append mode: records that are right.
    pub records_good: Option<u64>,
    /// Payload bytes that were held against their checksums, and are right.
    pub bytes_checked: u64,
    /// What was found.
    pub findings: Vec<Found>,
}

impl Checked {
    /// How many of the findings are more than notes.
    #[must_use]
    pub fn wrong(&self) -> usize {
        let is_wrong = |found: &&Found| found.severity > Severity::Note;
        self.findings.iter().filter(is_wrong).count()
    }
}

/// Looks at a region once; where something is wrong, once more, and counts what both looks found. `open` opens it. Blocks as long as reading
/// takes.
///
/// # Errors
/// What `open` says; [`ClientError::Damaged`] where not even a beginning can be found; [`ClientError::ConnectionLost`],
/// [`ClientError::TimedOut`]. Damage of sets and records is no error.
pub fn check(open: &mut dyn FnMut() -> Result<Opened>) -> Result<Checked> {
    let first = look(open()?)?;
    if first.wrong() == 0 {
        return Ok(first);
    }
    let mut second = look(open()?)?;
    second
        .findings
        .retain(|found| found.severity == Severity::Note || first.findings.contains(found));
    Ok(second)
}

fn look(opened: Opened) -> Result<Checked> {
    match opened {
        Opened::Sets(reader) => look_at_sets(*reader),
        Opened::Log(backup) => look_at_log(*backup),
    }
}

fn look_at_sets(mut reader: SetReader) -> Result<Checked> {
    let catalog = reader.sets()?;
    let mut good = 0;
    let mut checked = Checked {
        newest_set: Some(catalog.published.get()).filter(|number| *number != 0),
        findings: catalog.findings.iter().map(of_finding).collect(),
        ..Checked::default()
    };
    for set in catalog.sets.iter().filter(|set| is_whole(set)) {
        let part = format!("set {}", set.number.get());
        match reader.read(SetChoice::Number(set.number), &mut ()) {
            Ok(_) => {
                good += 1;
                checked.bytes_checked = checked.bytes_checked.saturating_add(set.bytes);
            }
            Err(ClientError::Damaged { what, .. }) => checked.findings.push(damage(part, what)),
            // A live primary has reused its slot since the sets were listed.
            Err(error @ ClientError::NoSuchSet { .. }) => {
                checked.findings.push(note(part, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    checked.sets_good = Some(good);
    Ok(checked)
}

/// A set that should read well: not one that a primary is at.
fn is_whole(set: &SetInfo) -> bool {
    !matches!(
        set.state,
        SetState::BeingWritten | SetState::BeingOverwritten
    )
}

fn look_at_log(mut backup: LogBackup) -> Result<Checked> {
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
    Ok(Checked {
        records_good: Some(recovered.records),
        bytes_checked,
        findings,
        ..Checked::default()
    })
}

fn of_finding(finding: &Finding) -> Found {
    let severity = match finding {
        Finding::Overtaken { .. } => Severity::Note,
        // Every byte of every set may be good all the same.
        Finding::PublishBehind { .. } => Severity::Degraded,
        _ => Severity::Damaged,
    };
    Found {
        part: "sets".to_owned(),
        severity,
        detail: finding.to_string(),
    }
}

fn damage(part: String, detail: String) -> Found {
    Found {
        part,
        severity: Severity::Damaged,
        detail,
    }
}

fn note(part: String, detail: String) -> Found {
    Found {
        part,
        severity: Severity::Note,
        detail,
    }
}
