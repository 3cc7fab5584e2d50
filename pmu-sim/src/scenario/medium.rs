//! Several units in overwrite mode whose media fail: what is read is right or refused, a scrub finds what is damaged and gives it anew, and then
//! another unit may be lost.

use pmu_client::rebuild::RebuildOptions;
use pmu_client::scrub::{Scrubbed, scrub};
use pmu_client::{ClientError, RebuildProgress, SetChoice};
use pmu_format::SetNumber;

use crate::context::Context;
use crate::reach::SimReach;
use crate::scenario::sets::persist;
use crate::scenario::spread::{
    Site, UNIT_NAMES, lay_out, lose_and_read, options, programs, start_programs,
};
use crate::scenario::turns::{as_manager, nap};

/// What the programs share.
#[derive(Clone)]
struct Ward {
    site: Site,
    /// The units whose media fail, one bit each: as many as the layout can do without, and one where it can do without none.
    frail: u64,
}

/// See the module.
pub(crate) fn run(context: &Context) {
    let Some(site) = lay_out(context, 0) else {
        return;
    };
    let ward = Ward {
        frail: draw_frail(context, &site),
        site,
    };
    let (heirs, readers) = context.draw(|random| (random.below(3), random.below(3)));
    let mut started = start_programs(context, &ward.site, heirs, readers);
    let decaying = ward.clone();
    started.push(context.spawn("decay", move |context| decay(context, &decaying)));
    if context.draw(|random| random.chance(1, 2)) {
        started.push(context.spawn("manager", scrub_beside));
    }
    started.drain(..).for_each(|program| context.join(program));
    if context.is_violated() {
        return;
    }
    context.with(|state| {
        state.faults.stop();
        (0..state.units.len()).for_each(|unit| state.start_unit(unit));
    });
    heal(context, &ward);
    if !context.is_violated() {
        ruin(context, &ward);
    }
}

fn draw_frail(context: &Context, site: &Site) -> u64 {
    let spare = (site.units - site.data_shards).max(1) as u64;
    context.draw(|random| {
        let count = random.between(1, spare);
        let mut frail = 0_u64;
        while u64::from(frail.count_ones()) < count {
            frail |= 1 << random.below(site.units as u64);
        }
        frail
    })
}

/// Media fail while programs commit and read.
fn decay(context: &Context, ward: &Ward) {
    for _ in 0..context.draw(|random| random.below(8)) {
        nap(context);
        if !context.goes_on() {
            return;
        }
        damage(context, ward.frail, 1);
    }
}

fn damage(context: &Context, units: u64, times: u64) {
    context.with(|state| {
        for unit in (0..state.units.len()).filter(|unit| units & (1 << unit) != 0) {
            for _ in 0..state.random.between(1, times) {
                state.damage(unit);
            }
        }
    });
}

/// A scrub beside a live primary.
fn scrub_beside(context: &Context) {
    as_manager(context, || {
        let found = scrub_once(context);
        if let Err(error) = found
            && !programs::may_happen(&error)
            && !context.is_killed()
        {
            context.violate(format!("a scrub failed: {error}"));
        }
    });
}

fn scrub_once(context: &Context) -> Result<Scrubbed, ClientError> {
    context.doing("scrub");
    let units = context.with(|state| state.units.len());
    let first = context.draw(|random| random.below(units as u64)) as usize;
    let described = (0..units).map(|index| context.describe((first + index) % units));
    let info =
        described
            .into_iter()
            .find_map(Result::ok)
            .ok_or_else(|| ClientError::Unreachable {
                unit: UNIT_NAMES[first].to_owned(),
                reason: "no unit answers".to_owned(),
            })?;
    let reach = SimReach::of(context);
    let mut on_progress = |_: &RebuildProgress| std::ops::ControlFlow::Continue(());
    let options = RebuildOptions {
        open: options(context),
        rate_bytes_per_s: None,
        on_progress: &mut on_progress,
    };
    let found = scrub(&info, reach.clone(), reach.as_ref(), true, options);
    context.note(|| format!("has scrubbed: {found:?}"));
    found
}

/// More fails, with everything else at rest: within the tolerance all is read, a scrub repairs it, and then others may be lost.
fn heal(context: &Context, ward: &Ward) {
    let site = &ward.site;
    damage(context, ward.frail, 3);
    let healthy = site.units - ward.frail.count_ones() as usize;
    let within = site.votes(context, ward.frail) >= site.to_decide && healthy >= site.to_decide;
    read_damaged(context, ward, within);
    if !within || context.is_violated() {
        return;
    }
    let done = persist(context, || {
        // Of a set that was stored on too few units what is damaged can't be computed: newer ones take its place.
        if !is_whole(context, ward)? {
            if healthy < site.units_min {
                return Ok(());
            }
            programs::overwrite_all(context, site)?;
            if !is_whole(context, ward)? {
                return Err("a scrub can't repair what was written on all units but those".into());
            }
        }
        Ok(())
    });
    if let Err(what) = done {
        return context.violate(what);
    }
    if healthy >= site.units_min || context.draw(|random| random.chance(1, 2)) {
        let whole = scrub_once(context);
        if whole.is_ok_and(|found| found.is_repaired() && found.missing.is_empty()) {
            lose_and_read(context, site);
        }
    }
}

/// Scrubs: what is found is repaired, and a second time nothing is found. False if something can't be repaired.
fn is_whole(context: &Context, ward: &Ward) -> Result<bool, String> {
    let floor = ward.site.model.lock().since().floor;
    let failed = |error: ClientError| format!("the last scrub failed: {error}");
    let found = match scrub_once(context) {
        Err(ClientError::TooFewUnits { .. }) => return Ok(false),
        found => found.map_err(failed)?,
    };
    let harmless = found
        .units
        .iter()
        .enumerate()
        .find(|(unit, found)| ward.frail & (1 << unit) == 0 && !found.damage.is_empty());
    if let Some((_, unit)) = harmless {
        return Err(format!("a scrub found damage where none is: {unit:?}"));
    }
    if let Some(mismatch) = found.mismatches.first() {
        return Err(format!("a scrub found parity of other data: {mismatch:?}"));
    }
    if !found.is_repaired() || !found.missing.is_empty() {
        return Ok(false);
    }
    context.count(|totals| totals.repairs += u64::from(found.is_damaged()));
    let again = scrub_once(context).map_err(failed)?;
    let lacks = again.units.iter().any(|unit| !unit.lacking.is_empty());
    if again.is_damaged() || lacks || !again.missing.is_empty() {
        return Err(format!(
            "a scrub repaired everything, and the next one found {again:?}"
        ));
    }
    let all = (1 << ward.site.units) - 1;
    ward.site.model.lock().rebuilt(all, floor);
    Ok(true)
}

/// What was acknowledged is read as long as enough units whose media are good hold it.
fn read_damaged(context: &Context, ward: &Ward, within: bool) {
    let site = &ward.site;
    let kept = site.model.lock().kept(site.sets_kept);
    context.note(|| format!("reads with damage on units {:#06b}", ward.frail));
    match programs::read(context, site, SetChoice::Newest) {
        Ok(()) => return,
        Err(ClientError::NoSuchSet { .. }) if kept.is_none() => return,
        Err(error) => {
            context.note(|| format!("can't read the newest set: {error}"));
            context.count(|totals| totals.refused_reads += 1);
        }
    }
    let Some((number, units)) = kept.filter(|_| within) else {
        return;
    };
    let holding = (units & !ward.frail).count_ones() as usize;
    if holding < site.data_shards {
        return;
    }
    if let Err(error) = programs::read(context, site, SetChoice::Number(SetNumber(number))) {
        context.violate(format!(
            "set {number} was acknowledged, {holding} good units with it are there, and it can't be read: {error}"
        ));
    }
}

/// Everything fails everywhere: what is read is right all the same, or refused.
fn ruin(context: &Context, ward: &Ward) {
    let site = &ward.site;
    for _ in 0..3 {
        damage(context, (1 << site.units) - 1, 4);
        let newest = site.model.lock().since().floor;
        for choice in [SetChoice::Newest, SetChoice::Number(SetNumber(newest))] {
            if programs::read(context, site, choice).is_err() {
                context.count(|totals| totals.refused_reads += 1);
            }
        }
    }
}
