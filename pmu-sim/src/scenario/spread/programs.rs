//! What the programs of a spread region do.

use std::io::IoSlice;

use pmu_client::{ClientError, Receipt, SetChoice, SpreadRead};

use super::model::{Ending, Since};
use super::writer::Writer;
use super::{Site, UNIT_NAMES, options};
use crate::context::Context;
use crate::scenario::content::{content, label};
use crate::scenario::turns::{as_heir, as_primary, nap};

/// How often a program tries to open, to fence or to read before it gives up.
const TRIES_MAX: u32 = 3;

/// Errors of the network, of units that are away, and of fences.
pub(in crate::scenario) fn may_happen(error: &ClientError) -> bool {
    match error {
        ClientError::UnknownOutcome { cause, .. } => may_happen(cause),
        ClientError::TooFewUnits { .. } | ClientError::MembersChanged { .. } => true,
        // A distributor that dies while it is being attached to.
        ClientError::NoProvider { unit, .. } => unit == crate::distributor::ADDRESS,
        other => crate::scenario::sets::may_happen(other),
    }
}

/// Opens and commits, and opens again after an error that isn't a fence.
pub(super) fn primary(context: &Context, site: &Site) {
    let work = |opened: &mut _| commit_some(context, site, opened);
    as_primary(context, TRIES_MAX, || open_primary(context, site), work);
}

/// Takes over and commits: what a backup does when the primary has failed, or seems to have.
pub(super) fn heir(context: &Context, site: &Site) {
    let work = |opened: &mut _| commit_some(context, site, opened);
    as_heir(context, TRIES_MAX, || take_over(context, site), work);
}

fn open_primary(context: &Context, site: &Site) -> Result<Writer, ClientError> {
    context.doing("open");
    let since = site.model.lock().since();
    let opened = Writer::open(context, site);
    let primary = judge_opening(context, opened)?;
    is_primary(context, site, &primary, since);
    Ok(primary)
}

fn judge_opening<T>(context: &Context, opened: Result<T, ClientError>) -> Result<T, ClientError> {
    opened.inspect_err(|error| {
        context.note(|| format!("is not primary: {error}"));
        if !may_happen(error) && !context.is_killed() {
            context.violate(format!("a region can't be opened: {error}"));
        }
    })
}

fn is_primary(context: &Context, site: &Site, primary: &Writer, since: Since) {
    let (term, newest) = (primary.term(), primary.newest());
    context.note(|| format!("is primary in term {term}, behind set {newest}"));
    site.check(context, |model| model.opened(term, newest, since));
}

/// Fences and opens, or leaves both and the reading to the library.
fn take_over(context: &Context, site: &Site) -> Result<Writer, ClientError> {
    context.doing("take over");
    let (since, older) = {
        let model = site.model.lock();
        (model.since(), model.newest_term())
    };
    let spread = site.find(context)?;
    if context.draw(|random| random.chance(1, 2)) {
        let fence = judge_opening(context, spread.fence())?;
        context.note(|| format!("has fenced {} units", fence.fenced.len()));
        site.model.lock().fenced(older);
        return open_primary(context, site);
    }
    let mut bytes = Vec::new();
    let taken = judge_opening(context, spread.take_over(&options(context), &mut bytes))?;
    site.model.lock().fenced(older);
    let primary = Writer::Direct(Box::new(taken.primary));
    is_primary(context, site, &primary, since);
    let now = site.model.lock().since();
    match &taken.recovered {
        Some(read) => check_read(context, site, read, &bytes, now, since.floor),
        None if since.floor > 0 => {
            context.violate(format!(
                "nothing was recovered, and set {} was committed",
                since.floor
            ));
        }
        None => {}
    }
    Ok(primary)
}

fn check_read(
    context: &Context,
    site: &Site,
    read: &SpreadRead,
    bytes: &[u8],
    since: Since,
    at_least: u64,
) {
    context.note(|| {
        let how = if read.reconstructed {
            ", reconstructed"
        } else {
            ""
        };
        format!(
            "read set {} of {} bytes from {} units{how}",
            read.set.number,
            bytes.len(),
            read.units.len()
        )
    });
    context.count(|totals| totals.checked_reads += 1);
    site.check(context, |model| {
        model.read(&read.set, bytes, since, at_least)
    });
}

/// Commits some sets; false if this program is to end.
fn commit_some(context: &Context, site: &Site, primary: &mut Writer) -> bool {
    for _ in 0..context.draw(|random| random.between(1, 5)) {
        if !context.goes_on() {
            return false;
        }
        if primary.lacks_units() && context.draw(|random| random.chance(1, 2)) {
            context.doing("rejoin");
            let (term, since) = (primary.term(), site.model.lock().since());
            let back = primary.rejoin();
            follow(context, site, primary, term, None, since);
            context.note(|| format!("has {back:?} units back"));
        }
        if let Err(error) = commit_one(context, site, primary) {
            if !may_happen(&error) && !context.is_killed() {
                context.violate(format!("a commit failed: {error}"));
            }
            if error.is_fenced() || context.draw(|random| random.chance(1, 4)) {
                return false;
            }
            nap(context);
            if matches!(
                error,
                ClientError::Ended { .. } | ClientError::UnknownOutcome { .. }
            ) {
                return true;
            }
        }
    }
    context.draw(|random| random.chance(1, 3))
}

fn commit_one(context: &Context, site: &Site, primary: &mut Writer) -> Result<(), ClientError> {
    let capacity = primary.capacity_bytes();
    let length = context.draw(|random| {
        let most = random.pick(&[0, 1, 70, capacity / 2, capacity, capacity]);
        random.below(most.min(capacity) + 1)
    });
    let (mut number, term) = (primary.newest() + 1, primary.term());
    let (id, since) = {
        let mut model = site.model.lock();
        (model.begin(number, term, length), model.since())
    };
    let bytes = content(id, length as usize);
    context.note(|| format!("commits set {number}, {length} bytes, as attempt {id}"));
    context.doing("commit");
    let result = store(context, primary, &bytes, id);
    let stored = match &result {
        Ok(Some(receipt)) => receipt.set().map(|set| set.get()),
        _ => None,
    };
    if follow(context, site, primary, term, Some((id, stored)), since) {
        number = stored.unwrap_or(number);
    }
    let Some(result) = result.transpose() else {
        site.check(context, |model| model.end(id, Ending::Refused, 0));
        return Ok(());
    };
    match &result {
        Ok(receipt) => {
            context.note(|| {
                format!(
                    "has the receipt of set {number} from {} units",
                    receipt.units.len()
                )
            });
            if receipt.set().map(|set| set.get()) != Some(number) || receipt.bytes != length {
                context.violate(format!("the receipt of set {number} says: {receipt}"));
            }
            context.count(|totals| totals.acknowledged += 1);
            let units = units_of(receipt);
            site.check(context, |model| model.end(id, Ending::Acknowledged, units));
        }
        Err(error) => {
            context.note(|| format!("does not have set {number}: {error}"));
            let unknown = error.outcome_is_unknown();
            context.count(|totals| {
                totals.unknown += u64::from(unknown);
                totals.refused += u64::from(!unknown);
            });
            // What a killed program is told is told to nobody.
            let certain = !unknown && !context.is_killed();
            let ending = if certain {
                Ending::Refused
            } else {
                Ending::Unknown
            };
            site.check(context, |model| model.end(id, ending, 0));
        }
    }
    result.map(drop)
}

/// Tells the model if the members were changed and the primary has gone on with the new ones; true then.
fn follow(
    context: &Context,
    site: &Site,
    primary: &Writer,
    term: u64,
    attempt: Option<(u64, Option<u64>)>,
    since: Since,
) -> bool {
    let now = primary.term();
    if now == term {
        return false;
    }
    let (id, stored) = attempt.unwrap_or_default();
    let newest = stored.map_or(primary.newest(), |number| number - 1);
    let generation = primary.generation();
    context.note(|| {
        format!(
            "goes on in term {now} with the members of generation {generation:?}, behind set {newest}"
        )
    });
    context.count(|totals| totals.followed += 1);
    site.check(context, |model| match attempt {
        Some(_) => model.followed(id, now, newest, since),
        None => model.opened(now, newest, since),
    });
    true
}

/// The units that a receipt names, one bit each.
fn units_of(receipt: &Receipt) -> u64 {
    let index = |name: &str| UNIT_NAMES.iter().position(|unit| *unit == name);
    let bits = receipt.units.iter().filter_map(|unit| index(&unit.name));
    bits.fold(0, |all, bit| all | 1 << bit)
}

/// Stores a set in one of the ways there are; none if it was given up on purpose.
fn store(
    context: &Context,
    primary: &mut Writer,
    bytes: &[u8],
    id: u64,
) -> Result<Option<Receipt>, ClientError> {
    let (way, cut) = context.draw(|random| (random.below(6), random.below(bytes.len() as u64 + 1)));
    let (first, second) = bytes.split_at(cut as usize);
    if way < 3 {
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        return primary.commit(&slices, label(id)).map(Some);
    }
    let length = (way != 4).then_some(bytes.len() as u64);
    let second = (way != 5).then_some(second);
    primary.put(length, label(id), first, second)
}

/// Reads at any time.
pub(super) fn reader(context: &Context, site: &Site) {
    for _ in 0..TRIES_MAX {
        nap(context);
        if !context.goes_on() {
            return;
        }
        context.doing("read");
        let Ok(spread) = site.find(context) else {
            continue;
        };
        let Ok(mut reader) = spread.open_reader(&options(context)) else {
            continue;
        };
        for _ in 0..context.draw(|random| random.between(1, 3)) {
            let since = site.model.lock().since();
            let mut bytes = Vec::new();
            match reader.read(SetChoice::Newest, &mut bytes) {
                Ok(read) => check_read(context, site, &read, &bytes, since, since.floor),
                Err(error) => {
                    judge_refusal(context, &error, since);
                    break;
                }
            }
            nap(context);
        }
    }
}

/// Checks an error of a reader.
fn judge_refusal(context: &Context, error: &ClientError, since: Since) {
    context.note(|| format!("can't read: {error}"));
    match error {
        ClientError::TooFewUnits { .. } => context.count(|totals| totals.refused_reads += 1),
        ClientError::NoSuchSet { .. } if since.floor == 0 => {}
        error if may_happen(error) || context.is_killed() => {}
        error => context.violate(format!(
            "can't read, with set {} committed: {error}",
            since.floor
        )),
    }
}

/// Reads once, with nothing going on beside; what is read is checked.
pub(in crate::scenario) fn read(
    context: &Context,
    site: &Site,
    choice: SetChoice,
) -> Result<(), ClientError> {
    let since = site.model.lock().since();
    let spread = site.find(context)?;
    let mut reader = spread.open_reader(&options(context))?;
    let mut bytes = Vec::new();
    let read = reader.read(choice, &mut bytes)?;
    let at_least = if choice == SetChoice::Newest {
        since.floor
    } else {
        0
    };
    check_read(context, site, &read, &bytes, since, at_least);
    Ok(())
}

/// Takes over, commits and reads: all of it must work.
pub(in crate::scenario) fn last_round(context: &Context, site: &Site) -> Result<(), String> {
    let primary = take_over(context, site);
    let mut primary = primary.map_err(|error| format!("the last take-over failed: {error}"))?;
    commit_one(context, site, &mut primary)
        .map_err(|error| format!("the last commit failed: {error}"))?;
    match read(context, site, SetChoice::Newest) {
        // Its put may have been given up on purpose.
        Err(ClientError::NoSuchSet { .. }) if site.model.lock().since().floor == 0 => Ok(()),
        result => result.map_err(|error| format!("the last read failed: {error}")),
    }
}

/// Fences, opens, and commits until no set is kept that was there before.
pub(in crate::scenario) fn overwrite_all(context: &Context, site: &Site) -> Result<(), String> {
    let failed = |what: &str, error: ClientError| format!("the last {what} failed: {error}");
    let older = site.model.lock().newest_term();
    let spread = site.find(context).map_err(|error| failed("look", error))?;
    spread.fence().map_err(|error| failed("fence", error))?;
    site.model.lock().fenced(older);
    let primary = open_primary(context, site);
    let mut primary = primary.map_err(|error| failed("opening", error))?;
    let before = primary.newest();
    while primary.newest() <= before + site.sets_kept {
        commit_one(context, site, &mut primary).map_err(|error| failed("commit", error))?;
    }
    read(context, site, SetChoice::Newest).map_err(|error| failed("read", error))
}
