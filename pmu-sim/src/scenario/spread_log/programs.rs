//! What the programs of a log over several units do.

use std::collections::VecDeque;

use pmu_client::{Attempt, ClientError, LogRecord, SpreadLogBackup};

use super::Site;
use super::writer::Writer;
use crate::context::Context;
use crate::scenario::log::model::{Ending, Handed, ID_BYTES, payload};
use crate::scenario::spread::programs::may_happen;
use crate::scenario::spread::{UNIT_NAMES, options};
use crate::scenario::turns::{as_heir, as_primary, nap};

/// How often a program tries to open, to fence or to read before it gives up.
const TRIES_MAX: u32 = 3;

/// A batch that is not acknowledged.
struct Batch {
    ids: Vec<u64>,
    from: u64,
    to: u64,
}

type Outstanding = VecDeque<Batch>;

/// Opens and appends, and opens again after an error that isn't a fence.
pub(super) fn primary(context: &Context, site: &Site) {
    let work = |opened: &mut _| append_some(context, site, opened);
    as_primary(context, TRIES_MAX, || open_primary(context, site), work);
}

/// Takes over and appends.
pub(super) fn heir(context: &Context, site: &Site) {
    let work = |opened: &mut _| append_some(context, site, opened);
    as_heir(context, TRIES_MAX, || take_over(context, site), work);
}

fn judge<T>(
    context: &Context,
    what: &str,
    result: Result<T, ClientError>,
) -> Result<T, ClientError> {
    result.inspect_err(|error| {
        context.note(|| format!("{what}: {error}"));
        if !may_happen(error) && !context.is_killed() {
            context.violate(format!("{what}: {error}"));
        }
    })
}

fn open_primary(context: &Context, site: &Site) -> Result<Writer, ClientError> {
    context.doing("open");
    let floor = site.model.lock().floor();
    let opened = Writer::open(context, site);
    let log = judge(context, "a log can't be opened", opened)?;
    let (term, end) = (log.term(), log.newest());
    context.note(|| format!("is primary in term {term}, behind {end}"));
    if end < floor {
        context.violate(format!(
            "the primary of term {term} goes on from {end}, and records stood up to {floor}"
        ));
    }
    site.check(context, |model| model.opened(term, end));
    Ok(log)
}

fn take_over(context: &Context, site: &Site) -> Result<Writer, ClientError> {
    context.doing("take over");
    let (floor, cleared, older) = {
        let model = site.model.lock();
        (model.floor(), model.cursors().0, model.newest_epoch())
    };
    let spread = site.find(context)?;
    if context.draw(|random| random.chance(1, 2)) {
        let fence = judge(context, "a log can't be fenced", spread.fence())?;
        context.note(|| format!("has fenced {} units", fence.fenced.len()));
        site.model.lock().fenced(older);
        return open_primary(context, site);
    }
    let mut handed = Vec::new();
    let taken = spread.take_over_log(&options(context), |record| {
        handed.extend(take(context, site, record));
        Ok(())
    });
    let taken = judge(context, "a log can't be taken over", taken)?;
    site.model.lock().fenced(older);
    let (term, found) = (taken.primary.term(), &taken.recovered);
    context.note(|| {
        format!(
            "is primary in term {term}, with {} records up to {}",
            handed.len(),
            found.end
        )
    });
    context.count(|totals| totals.checked_reads += 1);
    if let Some(damage) = &found.damage {
        context.violate(format!("a recovery found damage: {damage}"));
    }
    site.check(context, |model| {
        model.recovered(
            &handed,
            found.cursor.get(),
            found.end.get(),
            (floor, cleared),
        )?;
        model.settle_all(&handed)?;
        model.opened(term, found.end.get())
    });
    Ok(Writer::Direct(Box::new(taken.primary)))
}

/// Checks a record that was handed out.
fn take(context: &Context, site: &Site, record: LogRecord<'_>) -> Option<Handed> {
    site.check(context, |model| model.read(&record.record, record.payload))
}

/// Appends some records; false if this program is to end.
fn append_some(context: &Context, site: &Site, log: &mut Writer) -> bool {
    let mut outstanding = Outstanding::new();
    for _ in 0..context.draw(|random| random.between(1, 8)) {
        if !context.goes_on() {
            return false;
        }
        if !log.missing().is_empty() && context.draw(|random| random.chance(1, 3)) {
            context.doing("rejoin");
            let back = log.rejoin();
            context.note(|| format!("has {back:?} units back"));
            // Nothing else will say what became of the records.
            if let Err(error) = back
                && log.is_distributed()
                && log.is_ended()
            {
                acknowledge(context, site, log, &mut outstanding);
                fail(context, site, log, &error, &mut outstanding);
                return !error.is_fenced() && context.draw(|random| random.chance(2, 3));
            }
        }
        context.doing("append");
        let waits = context.draw(|random| random.below(4));
        let done = submit(context, site, log, &mut outstanding).and_then(|()| match waits {
            0 | 1 => log.flush(),
            2 => log.poll_completions(),
            _ => Ok(()),
        });
        acknowledge(context, site, log, &mut outstanding);
        if let Err(error) = done {
            fail(context, site, log, &error, &mut outstanding);
            if error.is_fenced() || log.is_ended() {
                return !error.is_fenced() && context.draw(|random| random.chance(2, 3));
            }
            nap(context);
        }
    }
    let flushed = log.flush();
    acknowledge(context, site, log, &mut outstanding);
    match flushed {
        Ok(()) if outstanding.is_empty() => context.draw(|random| random.chance(1, 3)),
        Ok(()) => {
            context.violate("records are not acknowledged after a flush".into());
            false
        }
        Err(error) => {
            fail(context, site, log, &error, &mut outstanding);
            !error.is_fenced()
        }
    }
}

fn submit(
    context: &Context,
    site: &Site,
    log: &mut Writer,
    outstanding: &mut Outstanding,
) -> Result<(), ClientError> {
    let longest = u64::from(log.record_bytes_max());
    let batch = context.draw(|random| random.pick(&[1, 1, 1, 2, 3]));
    let (mut ids, mut records) = (Vec::new(), Vec::new());
    for index in 0..batch {
        let length = context.draw(|random| {
            let most = random.pick(&[8, 30, 100, 500, longest / 8, longest / 2]);
            random.between(ID_BYTES as u64, most.max(ID_BYTES as u64))
        });
        let id = site
            .model
            .lock()
            .begin(log.term(), length, index + 1 < batch);
        ids.push(id);
        records.push(payload(id, length));
    }
    let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    context.note(|| format!("submits {batch} records as attempts {}..", ids[0]));
    match log.submit_batch(&slices) {
        Ok(ticket) => {
            let (from, to) = (ticket.position().get(), ticket.end().get());
            site.model.lock().placed_at(ids[0], from);
            outstanding.push_back(Batch { ids, from, to });
            Ok(())
        }
        Err(error) => {
            let full = matches!(
                error,
                ClientError::Full { .. } | ClientError::TooLarge { .. }
            );
            let certain = full || !(error.outcome_is_unknown() || context.is_killed());
            let ending = if certain {
                Ending::Refused
            } else {
                Ending::Unknown
            };
            for id in ids {
                site.check(context, |model| model.end(id, ending));
            }
            if full { Ok(()) } else { Err(error) }
        }
    }
}

fn acknowledge(context: &Context, site: &Site, log: &Writer, outstanding: &mut Outstanding) {
    let to = log.acknowledged();
    while outstanding.front().is_some_and(|first| first.to <= to) {
        let Some(batch) = outstanding.pop_front() else {
            return;
        };
        context.note(|| {
            format!(
                "has the receipt of records {:?} at {}",
                batch.ids, batch.from
            )
        });
        context.count(|totals| totals.acknowledged += batch.ids.len() as u64);
        let term = log.term();
        site.check(context, |model| {
            model.moved(&batch.ids, term);
            model.acknowledged_batch(&batch.ids, batch.from, batch.to)
        });
    }
}

/// Tells the model what an error means for the records that are not acknowledged.
fn fail(
    context: &Context,
    site: &Site,
    log: &Writer,
    error: &ClientError,
    outstanding: &mut Outstanding,
) {
    context.note(|| {
        format!(
            "has {} batches without a receipt: {error}",
            outstanding.len()
        )
    });
    if !may_happen(error) && !context.is_killed() {
        context.violate(format!("an append failed: {error}"));
    }
    for batch in outstanding.drain(..) {
        let ending = match error {
            _ if context.is_killed() => Ending::Unknown,
            ClientError::UnknownOutcome {
                attempt: Attempt::Records(_, to),
                ..
            } if batch.from >= to.get() => Ending::Refused,
            ClientError::UnknownOutcome { .. } => Ending::Unknown,
            // Whoever has records distributed is told what became of them; who appends himself, by the error that ends the log.
            _ if log.is_distributed() => Ending::Refused,
            ClientError::Ended { .. } => Ending::Unknown,
            _ if log.is_ended() => Ending::Refused,
            _ => Ending::Unknown,
        };
        let unknown = ending == Ending::Unknown;
        context.count(|totals| {
            totals.unknown += u64::from(unknown);
            totals.refused += u64::from(!unknown);
        });
        for id in batch.ids {
            site.check(context, |model| model.end(id, ending));
        }
    }
}

/// Reads beside the primary, and clears.
pub(super) fn backup(context: &Context, site: &Site) {
    for _ in 0..TRIES_MAX {
        nap(context);
        if !context.goes_on() {
            return;
        }
        context.doing("read");
        let clears = context.draw(|random| random.chance(3, 4));
        let cleared = site.model.lock().cursors().0;
        let opened = site
            .find(context)
            .and_then(|spread| spread.open_log_backup(clears, &options(context)));
        let Ok(mut backup) = opened else { continue };
        let mut follower = Follower { at: None, cleared };
        for _ in 0..context.draw(|random| random.between(1, 6)) {
            if !follower.read(context, site, &mut backup, clears) {
                break;
            }
            nap(context);
        }
    }
}

/// One handle of a backup: what it hands out has no gaps.
struct Follower {
    at: Option<u64>,
    cleared: u64,
}

impl Follower {
    /// Reads once; false after an error.
    fn read(
        &mut self,
        context: &Context,
        site: &Site,
        backup: &mut SpreadLogBackup,
        clears: bool,
    ) -> bool {
        let acknowledged = site.model.lock().acknowledged();
        let most = context.draw(|random| random.pick(&[1, 500, 100_000]));
        let (mut handed, mut count) = (Vec::new(), 0);
        match backup.read_unread(most as usize) {
            Ok(records) => {
                for record in records {
                    count += 1;
                    handed.extend(take(context, site, record));
                }
            }
            Err(error) => {
                context.note(|| format!("can't read: {error}"));
                // Somebody else may clear, and the primary use the room: one who doesn't need the right to clear on the same units.
                let cleared = site.model.lock().cursors().1;
                let lapped = error.is_damage() && cleared > self.at.unwrap_or(self.cleared);
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
        let clearing = site.model.lock().cursors().1;
        if let (None, Some(first)) = (self.at, handed.first())
            && (first.position < self.cleared || first.position > clearing)
        {
            context.violate(format!(
                "a backup began at {}, and {} was cleared",
                first.position, self.cleared
            ));
        }
        for one in &handed {
            let from = self.at.replace(one.end).unwrap_or(one.position);
            // One whose sessions a change of members ended goes on behind what another has cleared meanwhile.
            let skips = site.step.is_some() && (from..=clearing).contains(&one.position);
            if from != one.position && !skips {
                context.violate(format!("a backup went from {from} to {}", one.position));
            }
        }
        let whole = backup.missing().next().is_none();
        // What too few units tell is known, and not handed out yet.
        if count == 0 && whole && backup.published().get() < acknowledged {
            context.violate(format!(
                "a backup knows of records up to {}, and they were acknowledged up to {acknowledged}",
                backup.published()
            ));
        }
        site.check(context, |model| model.settle_all(&handed));
        !clears || self.clear(context, site, backup)
    }

    fn clear(&self, context: &Context, site: &Site, backup: &mut SpreadLogBackup) -> bool {
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
        match judge(context, "a log can't be cleared", result) {
            Ok(_) => {
                site.model.lock().cleared(to);
                true
            }
            Err(_) => false,
        }
    }
}

/// Takes over, appends, reads and clears: all of it must work.
pub(super) fn last_round(context: &Context, site: &Site) -> Result<(), String> {
    let log = take_over(context, site);
    let mut log = log.map_err(|error| format!("the last take-over failed: {error}"))?;
    let opened = site
        .find(context)
        .and_then(|spread| spread.open_log_backup(true, &options(context)));
    let mut backup = opened.map_err(|error| format!("the last backup failed: {error}"))?;
    let cleared = site.model.lock().cursors().0;
    let mut follower = Follower { at: None, cleared };
    for _ in 0..3 {
        if !follower.read(context, site, &mut backup, true) {
            return Err("the last read failed".into());
        }
        let mut outstanding = Outstanding::new();
        let done = submit(context, site, &mut log, &mut outstanding);
        let done = done.and_then(|()| log.flush());
        acknowledge(context, site, &log, &mut outstanding);
        done.map_err(|error| format!("the last append failed: {error}"))?;
    }
    let missing = log.missing();
    let members = site.members(context).into_iter();
    let whole = members.filter(|unit| !missing.contains(&UNIT_NAMES[*unit]));
    *site.whole.lock() = whole.fold(0, |all, unit| all | 1 << unit);
    Ok(())
}

/// Hands out everything that is not cleared, with nothing going on beside: what is handed out is checked. Says how many records that were, or
/// what is lacking.
pub(super) fn recover(context: &Context, site: &Site) -> Result<usize, String> {
    let (floor, cleared) = {
        let model = site.model.lock();
        (model.floor(), model.cursors().0)
    };
    let opened = site
        .find(context)
        .and_then(|spread| spread.open_log_backup(false, &options(context)));
    let mut backup = opened.map_err(|error| format!("it can't be opened: {error}"))?;
    let mut handed = Vec::new();
    let found = backup.recover(|record| {
        handed.extend(take(context, site, record));
        Ok(())
    });
    let found = found.map_err(|error| format!("it can't be recovered: {error}"))?;
    context.count(|totals| totals.checked_reads += 1);
    if let Some(damage) = &found.damage {
        return Err(format!("it has damage: {damage}"));
    }
    let least = (floor, cleared);
    let (cursor, end) = (found.cursor.get(), found.end.get());
    site.check(context, |model| {
        model.recovered(&handed, cursor, end, least)
    });
    Ok(handed.len())
}
