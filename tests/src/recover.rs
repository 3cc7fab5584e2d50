//! Reads both regions as a backup does after a failure, and tells what is there.

use pmu_client::{
    ClientError, LogBackup, LogRecord, RecoveredLog, SetChoice, SetNumber, SetReader,
};
use pmu_format::crc64_nvme;
use serde::Serialize;

use crate::audit::{self, FoundLog, FoundRecord, FoundSet, FoundSets};
use crate::content;
use crate::failure::{Failure, Result};
use crate::receipts::Line;
use crate::site::Site;
use crate::write::is_genuine;

/// What a check came to.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Summary {
    /// Receipts that were checked.
    pub receipts: usize,
    /// Records that were recovered.
    pub records: usize,
    /// Their payload bytes.
    pub record_bytes: u64,
    /// Where the log is cleared to.
    pub cursor: u64,
    /// Where the log ends.
    pub end: u64,
    /// Records that were durable, and whose receipt was lost.
    pub unacknowledged_records: u64,
    /// The newest whole set.
    pub newest_set: u64,
    /// Sets that were read and compared.
    pub sets: usize,
    /// True if the newest set was whole, and its receipt was lost.
    pub unacknowledged_set: bool,
}

/// Recovers both regions without changing them, and checks them against receipts.
///
/// # Errors
/// [`Failure::Broken`] names every broken promise.
pub fn check(site: &Site, lines: &[Line]) -> Result<Summary> {
    let unit = site.connect()?;
    let options = site.options();
    let mut backup = unit
        .open_log_backup(&site.log, false, &options)
        .map_err(Failure::client("open the log"))?;
    let (log, facts) = recover_log(&mut backup, site.seed)?;
    drop(backup);
    let mut reader = unit
        .open_sets_backup(&site.sets, &options)
        .map_err(Failure::client("open the sets"))?;
    let sets = recover_sets(&mut reader, site.seed)?;
    judge(lines, &log, &facts, &sets)
}

/// Compares, and sums up.
pub(crate) fn judge(
    lines: &[Line],
    log: &FoundLog,
    facts: &RecoveredLog,
    sets: &FoundSets,
) -> Result<Summary> {
    let mut broken = audit::log(lines, log);
    broken.extend(audit::sets(lines, sets));
    if !broken.is_empty() {
        return Err(Failure::Broken(broken));
    }
    let acknowledged = lines.iter().filter_map(|line| match line {
        Line::Set { number, .. } => Some(*number),
        _ => None,
    });
    Ok(Summary {
        receipts: lines.iter().filter(|line| line.is_receipt()).count(),
        records: log.records.len(),
        record_bytes: log.records.iter().map(|record| record.bytes).sum(),
        cursor: log.cursor,
        end: log.end,
        unacknowledged_records: facts.unacknowledged_records,
        newest_set: sets.newest,
        sets: sets.sets.len(),
        unacknowledged_set: sets.newest > acknowledged.max().unwrap_or(0),
    })
}

/// What the audit wants to know of a record.
pub(crate) fn found_record(seed: u64, found: &LogRecord<'_>) -> FoundRecord {
    FoundRecord {
        from: found.record.position.get(),
        to: found.record.mark.position().get(),
        epoch: found.record.epoch.get(),
        sequence: found.record.sequence,
        bytes: found.payload.len() as u64,
        crc: crc64_nvme(found.payload),
        genuine: is_genuine(seed, found),
    }
}

fn recover_log(backup: &mut LogBackup, seed: u64) -> Result<(FoundLog, RecoveredLog)> {
    let mut records = Vec::new();
    let facts = backup
        .recover(|found| {
            records.push(found_record(seed, &found));
            Ok(())
        })
        .map_err(Failure::client("recover the log"))?;
    let log = FoundLog {
        cursor: facts.cursor.get(),
        end: facts.end.get(),
        records,
        damage: facts.damage.clone(),
    };
    Ok((log, facts))
}

/// Takes the newest whole set and all that are kept beside it.
pub(crate) fn recover_sets(reader: &mut SetReader, seed: u64) -> Result<FoundSets> {
    let mut found = FoundSets {
        kept: u64::from(reader.region().sets_kept),
        ..FoundSets::default()
    };
    let capacity = reader.region().capacity_bytes;
    let mut bytes = Vec::new();
    let newest = match reader.recover(&mut bytes) {
        Ok(read) => read,
        Err(ClientError::NoSuchSet { .. }) => return Ok(found),
        Err(error) => return Err(Failure::Client("recover the sets", error)),
    };
    if newest.fell_back() {
        found.damage.push(format!(
            "an older set had to be taken: {:?}",
            newest.findings
        ));
    }
    found.newest = newest.set.number.get();
    let catalog = reader.sets().map_err(Failure::client("list the sets"))?;
    if catalog.published.get() > found.newest {
        found.damage.push(format!(
            "set {} is published, and {} is the newest",
            catalog.published, found.newest
        ));
    }
    let oldest = (found.newest + 1).saturating_sub(found.kept).max(1);
    let mut expected = Vec::new();
    for number in oldest..=found.newest {
        let read = if number == found.newest {
            // Perhaps not published yet: only a recovery takes it.
            reader.recover(&mut bytes)
        } else {
            reader.read(SetChoice::Number(SetNumber(number)), &mut bytes)
        };
        match read {
            Ok(read) => {
                content::set(
                    seed,
                    read.set.epoch,
                    read.set.number,
                    capacity,
                    &mut expected,
                );
                found.sets.push(FoundSet {
                    number,
                    epoch: read.set.epoch.get(),
                    bytes: read.set.bytes,
                    crc: crc64_nvme(&bytes),
                    genuine: bytes == expected,
                });
            }
            Err(ClientError::Damaged { what, .. }) => {
                found.damage.push(format!("set {number}: {what}"));
            }
            Err(ClientError::NoSuchSet { .. }) => {}
            Err(error) => return Err(Failure::Client("read a set", error)),
        }
    }
    Ok(found)
}
