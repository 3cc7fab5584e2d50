//! What the programs of a log do.

use std::collections::VecDeque;

use pmu_client::{Attempt, ClientError, LogBackup, LogPrimary, LogRecord, Ticket};
use pmu_proto::v1::SessionRole;

use super::Site;
use super::model::{Ending, Handed, ID_BYTES, payload};
use crate::context::Context;
use crate::scenario::sets::may_happen;
use crate::scenario::turns::{as_heir, as_primary, nap};

/// How often a program tries to open, to fence or to read before it gives up.
const TRIES_MAX: u32 = 4;

/// Records that were submitted and are not acknowledged, as (attempt, position).
type Outstanding = VecDeque<(u64, u64)>;

/// Opens and appends, and opens again after an error that isn't a fence.
pub(super) fn primary(context: &Context, site: &Site) {
    let work = |opened: &mut _| append_some(context, site, opened);
    as_primary(context, TRIES_MAX, || open_primary(context, site), work);
}

/// Fences, recovers, opens and appends: what a backup does when the primary has failed, or seems to have.
pub(super) fn heir(context: &Context, site: &Site) {
    let take_over = || {
        context.doing("fence");
        context.fence(0)?;
        open_primary(context, site)
    };
    let work = |opened: &mut _| append_some(context, site, opened);
    as_heir(context, TRIES_MAX, take_over, work);
}

fn open_primary(context: &Context, site: &Site) -> Result<LogPrimary, ClientError> {
    context.doing("open");
    let (floor, cleared) = {
        let model = site.model.lock();
        (model.floor(), model.cursors().0)
    };
    let parts = context.open(0, site.wish(SessionRole::Primary, false))?;
    let mut handed = Vec::new();
    let opened = LogPrimary::over(parts, |record| {
        handed.extend(take(context, site, record));
        Ok(())
    });
    if let Err(error) = &opened
        && !may_happen(error)
        && !context.is_killed()
    {
        context.violate(format!("a log can't be opened: {error}"));
    }
    let (log, found) = opened?;
    let (epoch, end) = (log.epoch().get(), found.end.get());
    context.note(|| {
        format!(
            "is primary in epoch {epoch}, behind {} records up to {end}",
            handed.len()
        )
    });
    context.count(|totals| totals.checked_reads += 1);
    if let Some(damage) = &found.damage {
        context.violate(format!("a recovery found damage: {damage}"));
    }
    site.check(context, |model| {
        model.recovered(&handed, found.cursor.get(), end, (floor, cleared))?;
        model.settle_all(&handed)?;
        model.opened(epoch, end)
    });
    Ok(log)
}

/// Checks a record that was handed out.
fn take(context: &Context, site: &Site, record: LogRecord<'_>) -> Option<Handed> {
    site.check(context, |model| model.read(&record.record, record.payload))
}

/// Appends some records; false if this program is to end.
fn append_some(context: &Context, site: &Site, log: &mut LogPrimary) -> bool {
    let mut outstanding = Outstanding::new();
    for _ in 0..context.draw(|random| random.between(1, 10)) {
        if !context.goes_on() {
            return false;
        }
        context.doing("append");
        // Records from here on are those that an error of a wait speaks of.
        let mut concerns = u64::MAX;
        let (batch, waits) =
            context.draw(|random| (random.pick(&[1, 1, 1, 2, 4]), random.below(4)));
        let result =
            submit(context, site, log, batch, &mut outstanding).and_then(|ticket| {
                match (waits, ticket) {
                    (0, Some(ticket)) => {
                        concerns = ticket.position().get();
                        log.wait(ticket).map(drop)
                    }
                    (1, _) => {
                        concerns = 0;
                        log.flush().map(drop)
                    }
                    (2, _) => log.poll_completions().map(drop),
                    _ => Ok(()),
                }
            });
        acknowledge(context, site, log, &mut outstanding);
        if let Err(error) = result {
            return fail(context, site, &error, &mut outstanding, concerns);
        }
        if context.draw(|random| random.chance(1, 6)) {
            nap(context);
        }
    }
    let flushed = log.flush();
    acknowledge(context, site, log, &mut outstanding);
    match flushed {
        Ok(_) if outstanding.is_empty() => context.draw(|random| random.chance(1, 3)),
        Ok(_) => {
            context.violate(format!(
                "{} records are not acknowledged after a flush",
                outstanding.len()
            ));
            false
        }
        Err(error) => fail(context, site, &error, &mut outstanding, 0),
    }
}

/// Submits a batch; none if the log is full.
fn submit(
    context: &Context,
    site: &Site,
    log: &mut LogPrimary,
    batch: u64,
    outstanding: &mut Outstanding,
) -> Result<Option<Ticket>, ClientError> {
    let epoch = log.epoch().get();
    let longest = site.record_bytes_max;
    let mut ids = Vec::new();
    let mut records = Vec::new();
    for index in 0..batch {
        let length = context.draw(|random| {
            let most = random.pick(&[8, 30, 100, 500, longest / 8, longest / 2, longest]);
            random.between(ID_BYTES as u64, most.max(ID_BYTES as u64))
        });
        let id = site.model.lock().begin(epoch, length, index + 1 < batch);
        ids.push(id);
        records.push(payload(id, length));
    }
    let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    context.note(|| format!("submits {batch} records as attempts {}..", ids[0]));
    match log.submit_batch(&slices) {
        Ok(ticket) => {
            let mut at = ticket.position().get();
            for id in ids {
                outstanding.push_back((id, at));
                at = site.model.lock().placed(id, at);
            }
            if at != ticket.end().get() {
                context.violate(format!(
                    "a batch ends at {}, and should at {at}",
                    ticket.end()
                ));
            }
            Ok(Some(ticket))
        }
        Err(ClientError::Full { .. } | ClientError::TooLarge { .. }) => {
            for id in ids {
                site.check(context, |model| model.end(id, Ending::Refused));
            }
            Ok(None)
        }
        Err(error) => {
            // The batch may have been posted in part or as a whole: nobody knows where it would stand.
            for id in ids {
                let ending = certainty(context, &error);
                site.check(context, |model| model.end(id, ending));
            }
            Err(error)
        }
    }
}

fn certainty(context: &Context, error: &ClientError) -> Ending {
    // What a killed program is told is told to nobody.
    if error.outcome_is_unknown() || context.is_killed() {
        Ending::Unknown
    } else {
        Ending::Refused
    }
}

/// Tells the model which records are acknowledged now.
fn acknowledge(context: &Context, site: &Site, log: &LogPrimary, outstanding: &mut Outstanding) {
    let to = log.acknowledged().get();
    while let Some((id, position)) = outstanding.front().copied().filter(|first| first.1 < to) {
        outstanding.pop_front();
        context.note(|| format!("has the receipt of record {id} at {position}"));
        context.count(|totals| totals.acknowledged += 1);
        site.check(context, |model| model.end(id, Ending::Acknowledged));
    }
}

/// Tells the model what an error means for the records that are not acknowledged; false if this program is to end.
fn fail(
    context: &Context,
    site: &Site,
    error: &ClientError,
    outstanding: &mut Outstanding,
    concerns: u64,
) -> bool {
    context.note(|| {
        format!(
            "has {} records without a receipt: {error}",
            outstanding.len()
        )
    });
    if !may_happen(error) && !context.is_killed() {
        context.violate(format!("an append failed: {error}"));
    }
    for (id, position) in outstanding.drain(..) {
        let ending = match error {
            _ if context.is_killed() => Ending::Unknown,
            ClientError::UnknownOutcome {
                attempt: Attempt::Records(_, to),
                ..
            } => {
                if position < to.get() {
                    Ending::Unknown
                } else {
                    Ending::Refused
                }
            }
            _ if position >= concerns => Ending::Refused,
            // Said of another record: this one may have been on its way.
            _ => Ending::Unknown,
        };
        let unknown = ending == Ending::Unknown;
        context.count(|totals| {
            totals.unknown += u64::from(unknown);
            totals.refused += u64::from(!unknown);
        });
        site.check(context, |model| model.end(id, ending));
    }
    !error.is_fenced() && context.draw(|random| random.chance(2, 3))
}

/// Reads beside the primary, and clears; may take over at the end.
pub(super) fn backup(context: &Context, site: &Site) {
    for _ in 0..TRIES_MAX {
        nap(context);
        if !context.goes_on() {
            return;
        }
        context.doing("read");
        let clears = context.draw(|random| random.chance(3, 4));
        let cleared = site.model.lock().cursors().0;
        let opened = context.open(0, site.wish(SessionRole::Backup, clears));
        let Ok(mut backup) = opened.and_then(LogBackup::over) else {
            continue;
        };
        let mut follower = Follower { at: None, cleared };
        for _ in 0..context.draw(|random| random.between(1, 12)) {
            if !follower.read(context, site, &mut backup, clears) {
                break;
            }
            nap(context);
        }
    }
}

/// One handle of a backup: what it hands out has no gaps.
struct Follower {
    /// Where the next record must stand, once there was one.
    at: Option<u64>,
    /// What was cleared when the handle was opened.
    cleared: u64,
}

impl Follower {
    /// Reads once; false after an error.
    fn read(
        &mut self,
        context: &Context,
        site: &Site,
        backup: &mut LogBackup,
        clears: bool,
    ) -> bool {
        let acknowledged = site.model.lock().acknowledged();
        let most = context.draw(|random| random.pick(&[1, 500, 100_000]));
        let mut handed = Vec::new();
        let mut count = 0;
        match backup.read_unread(most as usize) {
            Ok(records) => {
                for record in records {
                    count += 1;
                    handed.extend(take(context, site, record));
                }
            }
            Err(error) => {
                // Somebody else may clear, and the primary use the room, before a backup that doesn't has read.
                let lapped = !clears && error.is_damage();
                if !may_happen(&error) && !lapped && !context.is_killed() {
                    context.violate(format!("a log can't be read: {error}"));
                }
                return false;
            }
        }
        if handed.len() < count {
            return false;
        }
        context.count(|totals| totals.checked_reads += 1);
        context.note(|| format!("read {count} records, up to {}", backup.position()));
        let gap = handed.iter().find_map(|one| {
            let from = self.at.unwrap_or(one.position);
            self.at = Some(one.end);
            (from != one.position).then_some((from, one.position))
        });
        if let Some((from, to)) = gap {
            context.violate(format!("a backup went from {from} to {to}"));
        }
        let first = handed.first().map_or(self.cleared, |one| one.position);
        let clearing = site.model.lock().cursors().1;
        if self.at.is_none() && (first < self.cleared || first > clearing) {
            context.violate(format!(
                "a backup began at {first}, and {} was cleared",
                self.cleared
            ));
        }
        if count == 0 && backup.position().get() < acknowledged {
            context.violate(format!(
                "a backup has read all up to {}, and records were acknowledged up to {acknowledged}",
                backup.position()
            ));
        }
        site.check(context, |model| model.settle_all(&handed));
        !clears || self.clear(context, site, backup)
    }

    fn clear(&self, context: &Context, site: &Site, backup: &mut LogBackup) -> bool {
        let Some(to) = self
            .at
            .filter(|_| context.draw(|random| random.chance(1, 2)))
        else {
            return true;
        };
        context.doing("clear");
        site.model.lock().clears(to);
        let result = backup.clear_handed_out();
        context.doing("read");
        match result {
            Ok(_) => {
                context.note(|| format!("has cleared up to {to}"));
                site.model.lock().cleared(to);
                true
            }
            Err(error) => {
                if !may_happen(&error) && !context.is_killed() {
                    context.violate(format!("a log can't be cleared: {error}"));
                }
                false
            }
        }
    }
}

/// Takes over, appends, reads and clears: all of it must work.
pub(super) fn last_round(context: &Context, site: &Site) -> Result<(), String> {
    context
        .fence(0)
        .map_err(|error| format!("the last fence failed: {error}"))?;
    let log = open_primary(context, site);
    let mut log = log.map_err(|error| format!("the last opening failed: {error}"))?;
    let opened = context.open(0, site.wish(SessionRole::Backup, true));
    let backup = opened.and_then(LogBackup::over);
    let mut backup = backup.map_err(|error| format!("the last backup failed: {error}"))?;
    let cleared = site.model.lock().cursors().0;
    let mut follower = Follower { at: None, cleared };
    for _ in 0..4 {
        if !follower.read(context, site, &mut backup, true) {
            return Err("the last read failed".into());
        }
        let mut outstanding = Outstanding::new();
        let done = submit(context, site, &mut log, 1, &mut outstanding);
        let done = done.and_then(|_| log.flush().map(drop));
        acknowledge(context, site, &log, &mut outstanding);
        if let Err(error) = done {
            return Err(format!("the last append failed: {error}"));
        }
    }
    Ok(())
}
