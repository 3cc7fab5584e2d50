//! The backup: follows the log and clears it while the primary lives, takes both regions over when that has failed, and goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pmu_client::{LogBackup, LogPrimary, RecoveredLog, SetPrimary, Unit};

use crate::audit::{FoundLog, FoundRecord};
use crate::failure::{Failure, Result};
use crate::receipts::{self, Line, Printer, Speaker};
use crate::recover::{found_record, judge, recover_sets};
use crate::site::Site;
use crate::write::{Limits, with_clearer, write_log, write_sets};

/// What the backup is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Follow the log until this file is there: the sign that the primary has failed.
    pub follow_until: Option<PathBuf>,
    /// The failed primary's receipts.
    pub receipts: Vec<PathBuf>,
    /// What to write as the new primary.
    pub limits: Limits,
}

/// Takes over, compares with the receipts, and goes on as the primary.
///
/// # Errors
/// [`Failure::Broken`] names every broken promise.
pub fn run(site: &Site, plan: &Plan) -> Result<()> {
    let unit = site.connect()?;
    let (printer, speaker) = Printer::start(std::io::stdout());
    let ended = take_over(&unit, site, plan, &speaker);
    drop(speaker);
    printer.finish()?;
    ended
}

fn take_over(unit: &Unit, site: &Site, plan: &Plan, speaker: &Speaker) -> Result<()> {
    let followed = match &plan.follow_until {
        Some(sign) => Some(follow(unit, site, sign, speaker)?),
        None => None,
    };
    let begun = Instant::now();
    let taken = match followed {
        Some(followed) => after_following(unit, site, followed)?,
        None => at_once(unit, site)?,
    };
    let unread_after = taken.unread_after;
    unit.fence(&site.sets)
        .map_err(Failure::client("fence the sets"))?;
    let mut reader = unit
        .open_sets_backup(&site.sets, &site.options())
        .map_err(Failure::client("open the sets"))?;
    let found_sets = recover_sets(&mut reader, site.seed)?;
    drop(reader);
    let sets = unit
        .open_sets_primary(&site.sets, &site.options())
        .map_err(Failure::client("open the sets"))?;
    let took = begun.elapsed();
    let mut lines = receipts::read(&plan.receipts)?;
    if taken.followed > 0 {
        // Whatever was cleared since we began has gone through our hands.
        lines.retain(|line| !matches!(line, Line::Clearing { .. } | Line::Cleared { .. }));
        lines.push(Line::Cleared {
            to: taken.log.cursor,
        });
    }
    judge(&lines, &taken.log, &taken.facts, &found_sets)?;
    speaker.say(Line::TookOver {
        epoch: taken.primary.epoch().get(),
        unread_after_us: unread_after.as_micros() as u64,
        took_us: took.as_micros() as u64,
        followed: taken.followed,
        unread: taken.log.records.len() - taken.followed,
        newest_set: found_sets.newest,
    });
    go_on(unit, site, taken.primary, sets, plan.limits, speaker)
}

/// Writes as the new primary. The failed one may have left a full ring: somebody must clear it.
fn go_on(
    unit: &Unit,
    site: &Site,
    log: LogPrimary,
    sets: SetPrimary,
    limits: Limits,
    speaker: &Speaker,
) -> Result<()> {
    with_clearer(unit, site, limits, speaker, || {
        write_log(log, site.seed, limits, speaker)?;
        write_sets(sets, site.seed, limits, speaker)
    })
}

/// What a follower has in its hands.
struct Followed {
    backup: LogBackup,
    records: Vec<FoundRecord>,
}

/// Reads until the sign is there; clears whenever half of the ring was read since the last time.
fn follow(unit: &Unit, site: &Site, sign: &Path, speaker: &Speaker) -> Result<Followed> {
    let mut backup = unit
        .open_log_backup(&site.log, true, &site.options())
        .map_err(Failure::client("open the log as backup"))?;
    let half = backup.region().length_bytes / 2;
    let mut records: Vec<FoundRecord> = Vec::new();
    let mut cleared = 0;
    while !sign.exists() {
        let unread = backup
            .read_unread(1 << 20)
            .map_err(Failure::client("follow the log"))?;
        let before = records.len();
        records.extend(unread.map(|found| found_record(site.seed, &found)));
        let end = records.last().map_or(0, |record| record.to);
        if end - cleared > half {
            speaker.say(Line::Clearing { to: end });
            let to = backup
                .clear_handed_out()
                .map_err(Failure::client("clear"))?
                .get();
            speaker.say(Line::Cleared { to });
            cleared = to;
        } else if records.len() == before {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(Followed { backup, records })
}

/// The log after the takeover.
struct Taken {
    primary: LogPrimary,
    /// Everything that was in our hands, before and after the failure.
    log: FoundLog,
    facts: RecoveredLog,
    followed: usize,
    unread_after: Duration,
}

/// Fetches just what this backup has not read.
fn after_following(unit: &Unit, site: &Site, followed: Followed) -> Result<Taken> {
    let Followed {
        mut backup,
        mut records,
    } = followed;
    let begun = Instant::now();
    let count = records.len();
    unit.fence(&site.log)
        .map_err(Failure::client("fence the log"))?;
    let facts = backup
        .recover(|found| {
            records.push(found_record(site.seed, &found));
            Ok(())
        })
        .map_err(Failure::client("recover the log"))?;
    let unread_after = begun.elapsed();
    drop(backup);
    let primary = unit
        .open_log_primary(&site.log, &site.options())
        .map_err(Failure::client("open the log"))?;
    let log = FoundLog {
        cursor: records
            .first()
            .map_or(facts.cursor.get(), |record| record.from),
        end: facts.end.get(),
        records,
        damage: facts.damage.clone(),
    };
    Ok(Taken {
        primary,
        log,
        facts,
        followed: count,
        unread_after,
    })
}

/// For a backup that did not follow: everything that is not cleared is unread.
fn at_once(unit: &Unit, site: &Site) -> Result<Taken> {
    let mut records = Vec::new();
    let taken = unit
        .take_over_log(&site.log, &site.options(), |found| {
            records.push(found_record(site.seed, &found));
            Ok(())
        })
        .map_err(Failure::client("take over the log"))?;
    let facts = taken.recovered;
    let log = FoundLog {
        cursor: facts.cursor.get(),
        end: facts.end.get(),
        records,
        damage: facts.damage.clone(),
    };
    Ok(Taken {
        primary: taken.primary,
        log,
        facts,
        followed: 0,
        unread_after: taken.recovered_after,
    })
}
