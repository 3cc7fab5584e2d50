//! One unit in overwrite mode: primaries commit sets, others take over, readers read at any time.

mod model;

use std::io::IoSlice;
use std::sync::Arc;

use parking_lot::Mutex;
use pmu_client::{ClientError, RegionInfo, SetChoice, SetPrimary, SetRead, SetReader};
use pmu_format::{Mode, RegionId, SetGeometry, SetNumber, VirtualAddress};
use pmu_proto::v1::SessionRole;

use self::model::{Ending, SetsModel};
use crate::context::{Context, Wish};
use crate::random::Random;
use crate::scenario::content::{content, label};
use crate::scenario::turns::{as_primary, check, nap, wait_for_failure};
use crate::unit::Unit;

const ADDRESS: VirtualAddress = VirtualAddress(0x5000_0000_0000);
/// How often a program tries to open, to fence or to read before it gives up.
const TRIES_MAX: u32 = 4;

/// What the programs share.
#[derive(Clone)]
struct Site {
    model: Arc<Mutex<SetsModel>>,
    capacity_bytes: u64,
    staging_bytes: usize,
}

/// See the module.
pub(crate) fn run(context: &Context) {
    let site = context.with(|state| {
        let (info, site) = draw_region(&mut state.random);
        let extents = (0..state.random.below(3))
            .map(|_| state.random.below(info.length_bytes / 4096) * 4096)
            .collect();
        state
            .units
            .push(Unit::new("unit-a", info, sorted(extents), 1));
        site
    });
    let (heirs, readers) = context.draw(|random| (random.below(3), random.below(3)));
    let mut programs = Vec::new();
    let first = site.clone();
    programs.push(context.spawn("primary", move |context| primary(context, &first)));
    for _ in 0..heirs {
        let site = site.clone();
        programs.push(context.spawn("heir", move |context| heir(context, &site)));
    }
    for _ in 0..readers {
        let site = site.clone();
        programs.push(context.spawn("reader", move |context| reader(context, &site)));
    }
    for program in programs {
        context.join(program);
    }
    if !context.is_violated() {
        finish(context, &site);
    }
}

pub(crate) fn sorted(mut extents: Vec<u64>) -> Vec<u64> {
    extents.sort_unstable();
    extents.dedup();
    extents
}

fn draw_region(random: &mut Random) -> (RegionInfo, Site) {
    let sets_kept = random.pick(&[1, 1, 2, 3]);
    // A set of more than one chunk is rare: it takes long.
    let capacity_bytes: u64 = match random.below(40) {
        0 => 300_000,
        _ => random.pick(&[1, 100, 4096, 5000, 20_000]),
    };
    let length = SetGeometry::region_bytes_for(capacity_bytes, sets_kept).unwrap_or(1 << 20);
    let id = RegionId([7; 16]);
    let mut info = RegionInfo::new(
        "sim",
        id,
        Mode::Overwrite,
        ADDRESS,
        length.next_multiple_of(4096),
    );
    info.sets_kept = sets_kept;
    info.capacity_bytes = capacity_bytes;
    let staging_bytes = (capacity_bytes.max(4096) as usize)
        .next_multiple_of(4096)
        .min(256 << 10);
    let site = Site {
        model: Arc::new(Mutex::new(SetsModel::new())),
        capacity_bytes,
        staging_bytes,
    };
    (info, site)
}

impl Site {
    const fn wish(&self, role: SessionRole) -> Wish {
        Wish {
            role,
            clears: false,
            staging_bytes: self.staging_bytes,
            goes_on_from: None,
        }
    }

    /// Tells the model, and reports what it finds wrong.
    fn check<T>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut SetsModel) -> Result<T, String>,
    ) -> Option<T> {
        check(context, &self.model, work)
    }
}

/// Opens and commits, and opens again after an error that isn't a fence.
fn primary(context: &Context, site: &Site) {
    let open = || {
        context.doing("open");
        open_primary(context, site)
    };
    let work = |opened: &mut _| commit_some(context, site, opened);
    as_primary(context, TRIES_MAX, open, work);
}

/// Fences, recovers, opens and commits: what a backup does when the primary has failed, or seems to have.
fn heir(context: &Context, site: &Site) {
    wait_for_failure(context);
    for _ in 0..TRIES_MAX {
        if !context.goes_on() {
            return;
        }
        context.doing("fence");
        if context.fence(0).is_err() {
            nap(context);
            continue;
        }
        context.doing("recover");
        if context.draw(|random| random.chance(1, 2)) && recover(context, site).is_none() {
            continue;
        }
        context.doing("open");
        match open_primary(context, site) {
            Ok(mut primary) => {
                if !commit_some(context, site, &mut primary) {
                    return;
                }
            }
            Err(_) => nap(context),
        }
    }
}

fn open_primary(context: &Context, site: &Site) -> Result<SetPrimary, ClientError> {
    let floor = site.model.lock().recovery_floor();
    let parts = context.open(0, site.wish(SessionRole::Primary))?;
    let primary = SetPrimary::over(parts)?;
    let (epoch, newest) = (primary.epoch(), primary.newest().get());
    context.note(|| format!("is primary in epoch {epoch}, behind set {newest}"));
    site.check(context, |model| model.opened(epoch.get(), newest, floor));
    Ok(primary)
}

/// Reads the newest set that is whole, as who takes over does; none if that failed.
fn recover(context: &Context, site: &Site) -> Option<()> {
    let parts = context.open(0, site.wish(SessionRole::Backup)).ok()?;
    let mut reader = SetReader::over(parts).ok()?;
    let floor = site.model.lock().recovery_floor();
    let mut bytes = Vec::new();
    let result = reader.recover(&mut bytes);
    judge(context, site, floor, result, &bytes, "recovered")
}

/// Checks what was read; none if it was an error that may be.
fn judge(
    context: &Context,
    site: &Site,
    floor: u64,
    result: Result<SetRead, ClientError>,
    bytes: &[u8],
    verb: &str,
) -> Option<()> {
    match result {
        Ok(read) => {
            context.note(|| format!("{verb} set {} of epoch {}", read.set.number, read.set.epoch));
            context.count(|totals| totals.checked_reads += 1);
            if read.fell_back() {
                context.violate(format!(
                    "fell back to set {}: {:?}",
                    read.set.number, read.findings
                ));
            }
            site.check(context, |model| model.read(&read.set, bytes, floor))
        }
        Err(ClientError::NoSuchSet { .. }) if floor == 0 => Some(()),
        Err(error) => {
            if !may_happen(&error) && !context.is_killed() {
                context.violate(format!(
                    "could not read, with set {floor} committed: {error}"
                ));
            }
            None
        }
    }
}

/// Errors of the network, of units that are away, and of fences.
pub(crate) fn may_happen(error: &ClientError) -> bool {
    match error {
        ClientError::UnknownOutcome { cause, .. } => may_happen(cause),
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::ConnectionLost { .. }
        | ClientError::Fenced { .. }
        | ClientError::Refused { .. }
        | ClientError::Ended { .. }
        | ClientError::WriterExists { .. } => true,
        _ => false,
    }
}

/// Commits some sets; false if this program is to end.
fn commit_some(context: &Context, site: &Site, primary: &mut SetPrimary) -> bool {
    for _ in 0..context.draw(|random| random.between(1, 6)) {
        if !context.goes_on() {
            return false;
        }
        match commit_one(context, site, primary) {
            Ok(()) => {}
            Err(error) => {
                if !may_happen(&error) && !context.is_killed() {
                    context.violate(format!("a commit failed: {error}"));
                }
                return !error.is_fenced() && context.draw(|random| random.chance(2, 3));
            }
        }
        if context.draw(|random| random.chance(1, 4)) {
            nap(context);
        }
    }
    context.draw(|random| random.chance(1, 3))
}

fn commit_one(context: &Context, site: &Site, primary: &mut SetPrimary) -> Result<(), ClientError> {
    let length = context.draw(|random| {
        let capacity = site.capacity_bytes;
        let most = random.pick(&[0, 1, 9, 100, 3000, capacity, capacity]);
        random.below(most.min(capacity) + 1)
    });
    let (number, epoch) = (primary.newest().get() + 1, primary.epoch().get());
    let id = site.model.lock().begin(number, epoch, length);
    let bytes = content(id, length as usize);
    context.note(|| format!("commits set {number}, {length} bytes, as attempt {id}"));
    context.doing("commit");
    let result = store(context, primary, &bytes, id);
    let Some(result) = result.transpose() else {
        site.check(context, |model| model.end(id, Ending::Refused));
        return Ok(());
    };
    match &result {
        Ok(receipt) => {
            context.note(|| format!("has the receipt of set {number}"));
            let fits = receipt.set() == Some(SetNumber(number)) && receipt.bytes == length;
            if !fits || receipt.epoch.get() != epoch {
                context.violate(format!("the receipt of set {number} says: {receipt}"));
            }
            context.count(|totals| totals.acknowledged += 1);
            site.check(context, |model| model.end(id, Ending::Acknowledged));
        }
        Err(error) => {
            context.note(|| format!("does not have set {number}: {error}"));
            let unknown = error.outcome_is_unknown();
            context.count(|totals| {
                totals.unknown += u64::from(unknown);
                totals.refused += u64::from(!unknown);
            });
            // What a killed program is told is told to nobody.
            let ending = if unknown || context.is_killed() {
                Ending::Unknown
            } else {
                Ending::Refused
            };
            site.check(context, |model| model.end(id, ending));
        }
    }
    result.map(drop)
}

/// Stores a set in one of the ways there are; none if it was given up on purpose.
fn store(
    context: &Context,
    primary: &mut SetPrimary,
    bytes: &[u8],
    id: u64,
) -> Result<Option<pmu_client::Receipt>, ClientError> {
    let (way, cut) = context.draw(|random| (random.below(8), random.below(bytes.len() as u64 + 1)));
    let (first, second) = bytes.split_at(cut as usize);
    match way {
        0..4 => primary
            .commit(&[IoSlice::new(first), IoSlice::new(second)], label(id))
            .map(Some),
        4 if !bytes.is_empty() => {
            let buffer = primary.allocate_registered(bytes.len())?;
            buffer.write_at(0, bytes)?;
            primary
                .commit_registered(&[buffer.whole()], label(id))
                .map(Some)
        }
        _ => {
            let length = (way != 6).then_some(bytes.len() as u64);
            let mut put = primary.begin(length, label(id))?;
            put.write_bytes(first)?;
            if way == 7 {
                return Ok(None);
            }
            put.write_bytes(second)?;
            put.finish().map(Some)
        }
    }
}

/// Reads at any time.
fn reader(context: &Context, site: &Site) {
    for _ in 0..TRIES_MAX {
        nap(context);
        if !context.goes_on() {
            return;
        }
        context.doing("read");
        let opened = context.open(0, site.wish(SessionRole::Reader));
        let Ok(mut reader) = opened.and_then(SetReader::over) else {
            continue;
        };
        for _ in 0..context.draw(|random| random.between(1, 5)) {
            let floor = site.model.lock().floor();
            let mut bytes = Vec::new();
            let result = reader.read(SetChoice::Newest, &mut bytes);
            if let Ok(read) = &result {
                let (number, label) = (read.set.number, read.set.label);
                site.check(context, |model| model.saw(number.get(), &label));
            }
            if judge(context, site, floor, result, &bytes, "read").is_none() {
                break;
            }
            nap(context);
        }
    }
}

/// Everything works again: nothing acknowledged is lost, and the region can be written.
fn finish(context: &Context, site: &Site) {
    context.with(|state| {
        state.faults.stop();
        state.start_unit(0);
    });
    for round in 0..2 {
        let done = persist(context, || last_round(context, site));
        if let Err(what) = done {
            context.violate(what);
        }
        if context.is_violated() || round == 1 {
            return;
        }
        context.with(|state| {
            state.cut_power(0, None);
            state.start_unit(0);
        });
    }
}

/// Requests of programs that have ended may still arrive and be in the way: there are not many.
pub(crate) fn persist(
    context: &Context,
    attempt: impl Fn() -> Result<(), String>,
) -> Result<(), String> {
    let mut last = attempt();
    for _ in 0..10 {
        if last.is_ok() || context.is_violated() {
            break;
        }
        last = attempt();
    }
    last
}

fn last_round(context: &Context, site: &Site) -> Result<(), String> {
    context
        .fence(0)
        .map_err(|error| format!("the last fence failed: {error}"))?;
    recover(context, site).ok_or_else(|| "the last recovery failed".to_owned())?;
    last_commit(context, site)
}

fn last_commit(context: &Context, site: &Site) -> Result<(), String> {
    let mut primary =
        open_primary(context, site).map_err(|error| format!("the last opening failed: {error}"))?;
    commit_one(context, site, &mut primary)
        .map_err(|error| format!("the last commit failed: {error}"))?;
    let floor = site.model.lock().floor();
    let opened = context.open(0, site.wish(SessionRole::Reader));
    let mut reader = opened
        .and_then(SetReader::over)
        .map_err(|error| format!("the last reader: {error}"))?;
    let mut bytes = Vec::new();
    let result = reader.read(SetChoice::Newest, &mut bytes);
    judge(context, site, floor, result, &bytes, "read")
        .ok_or_else(|| "the last read failed".to_owned())
}
