//! What managers do: replace units, bring members up to date, scrub.

use pmu_client::rebuild::{RebuildOptions, Rebuilt, Replacement, rebuild, replace};
use pmu_client::{ClientError, RegionInfo};

use super::Yard;
use crate::context::Context;
use crate::reach::SimReach;
use crate::scenario::managing::{self, member};
use crate::scenario::spread::{programs, voters, votes};
use crate::scenario::turns::{nap, wait_for_failure};

/// How many things a manager does.
const TASKS_MAX: u32 = 4;

/// A replacement: indices of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    old: usize,
    new: usize,
}

/// Errors of a manager that others, or faults, can cause.
fn may_happen(error: &ClientError) -> bool {
    match error {
        ClientError::Interrupted | ClientError::Invalid(_) | ClientError::NoSuchRegion { .. } => {
            true
        }
        other => programs::may_happen(other),
    }
}

/// Replaces, brings up to date and scrubs.
pub(super) fn manager(context: &Context, yard: &Yard) {
    wait_for_failure(context);
    for _ in 0..TASKS_MAX {
        if !context.goes_on() {
            return;
        }
        let done = match context.draw(|random| random.below(8)) {
            0..=4 => match choose(context, yard) {
                Some(step) => replace_one(context, yard, step, true),
                None => Ok(()),
            },
            5 | 6 => bring_up_to_date(context, yard, true),
            _ => scrub_all(context),
        };
        if let Err(error) = done
            && !may_happen(&error)
            && !context.is_killed()
        {
            context.violate(format!("a manager failed: {error}"));
        }
        nap(context);
    }
}

/// What another manager has begun, or something new; none where no unit is left for it.
fn choose(context: &Context, yard: &Yard) -> Option<Step> {
    let begun = yard.steps.lock().last().copied();
    let anew = yard.rivals && context.draw(|random| random.chance(1, 2));
    if let Some(begun) = begun.filter(|_| !anew) {
        return Some(begun);
    }
    let step = draw(context, yard)?;
    yard.steps.lock().push(step);
    Some(step)
}

/// A member, one that is destroyed before the others, and a unit without a region.
fn draw(context: &Context, yard: &Yard) -> Option<Step> {
    let members = yard.site.members(context);
    context.with(|state| {
        let free =
            |unit: &usize| !state.units[*unit].has_region && !state.units[*unit].is_destroyed;
        let spares: Vec<usize> = (0..state.units_proper()).filter(free).collect();
        if spares.is_empty() || members.is_empty() {
            return None;
        }
        let gone = |unit: &&usize| state.units[**unit].is_destroyed;
        let destroyed = members.iter().find(gone).copied();
        let old = destroyed.unwrap_or_else(|| state.random.pick(&members));
        let new = state.random.pick(&spares);
        Some(Step { old, new })
    })
}

/// What the unit says that knows of the latest members, or any unit.
fn describe(context: &Context) -> Result<RegionInfo, ClientError> {
    let units = context.with(|state| state.units_proper()) as u64;
    let (first, any) = context.draw(|random| (random.below(units), random.chance(1, 4)));
    managing::describe(context, first as usize, any)
}

/// Does something that reports its progress; it may be ended there.
fn with_options<T>(
    context: &Context,
    may_end: bool,
    work: impl FnOnce(RebuildOptions<'_>) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let rate = context.draw(|random| random.pick(&[None, None, Some(50_000_000)]));
    managing::with_options(context, rate, may_end.then_some(60), work)
}

/// Puts one unit in the place of another; one that was replaced may get the next place that becomes free.
fn replace_one(
    context: &Context,
    yard: &Yard,
    step: Step,
    may_end: bool,
) -> Result<(), ClientError> {
    context.doing("replace");
    let floor = yard.site.model.lock().since().floor;
    let info = describe(context)?;
    let (old, new) = (
        member(Yard::unit_name(step.old))?,
        member(Yard::unit_name(step.new))?,
    );
    context.note(|| format!("replaces {} by {}", old.unit, new.unit));
    let is_lost = context.with(|state| state.units[step.old].is_destroyed);
    let replacement = Replacement {
        old: old.unit.to_string(),
        old_address: context
            .draw(|random| !may_end || random.chance(3, 4))
            .then_some(old.address),
        new,
        old_is_lost: is_lost,
    };
    let reach = SimReach::of(context);
    let done = with_options(context, may_end, |options| {
        replace(&info, reach.clone(), reach.as_ref(), &replacement, options)
    });
    context.note(|| format!("has replaced: {done:?}"));
    let done = done?;
    if context.is_killed() {
        return Ok(());
    }
    if !done.units.is_empty() {
        yard.site.model.lock().rebuilt(1 << step.new, floor);
    }
    yard.steps.lock().retain(|begun| *begun != step);
    let reuse = context.draw(|random| random.chance(1, 2));
    let is_member = yard.site.members(context).contains(&step.old);
    if reuse && !is_lost && !is_member {
        context.with(|state| state.erase(step.old));
        yard.site.model.lock().gone(step.old);
    }
    Ok(())
}

/// Gives members what they lack: all, or one.
fn bring_up_to_date(context: &Context, yard: &Yard, may_end: bool) -> Result<(), ClientError> {
    let members = yard.site.members(context);
    let one = context.draw(|random| {
        let unit = random.pick(&members);
        (may_end && random.chance(1, 2)).then_some(unit)
    });
    let name = one.map(Yard::unit_name);
    let done = rebuild_in_place(context, yard, name, may_end)?;
    context.note(|| format!("has brought up to date: {done:?}"));
    Ok(())
}

fn rebuild_in_place(
    context: &Context,
    yard: &Yard,
    unit: Option<&str>,
    may_end: bool,
) -> Result<Rebuilt, ClientError> {
    context.doing("rebuild");
    let floor = yard.site.model.lock().since().floor;
    let info = describe(context)?;
    let reach = SimReach::of(context);
    let done = with_options(context, may_end, |options| {
        rebuild(&info, reach.clone(), reach.as_ref(), unit, options)
    })?;
    if unit.is_none() && !context.is_killed() {
        let members = yard.site.members(context).into_iter();
        let whole = members.filter(|unit| {
            let name = Yard::unit_name(*unit);
            !done.missing.iter().any(|missing| &*missing.unit == name)
        });
        let given = whole.fold(0, |all, unit| all | 1 << unit);
        yard.site.model.lock().rebuilt(given, floor);
    }
    Ok(done)
}

fn scrub_all(context: &Context) -> Result<(), ClientError> {
    context.doing("scrub");
    let info = describe(context)?;
    with_options(context, true, |options| {
        managing::scrub_all(context, &info, options)
    })
}

/// What managers have begun and not ended is ended, and all members are brought up to date, perhaps.
pub(super) fn end_what_was_begun(context: &Context, yard: &Yard) -> Result<(), String> {
    let members = yard.site.members(context);
    let mut steps = yard.steps.lock().clone();
    steps.retain(|step| !context.with(|state| state.units[step.new].is_destroyed));
    let is_begun = |step: &&Step| members.contains(&step.new) && !members.contains(&step.old);
    let is_next = |step: &&Step| members.contains(&step.old) && fits(context, **step, &members);
    let begun = steps.iter().rev().find(is_begun);
    let begun = begun.or_else(|| steps.iter().rev().find(is_next)).copied();
    let destroyed = context.with(|state| {
        let gone = |unit: &usize| state.units[*unit].is_destroyed;
        members.iter().copied().find(gone)
    });
    let step = begun.or_else(|| destroyed.and_then(|_| draw(context, yard)));
    if let Some(step) = step {
        if !can_replace(context, yard, step, &members) {
            return Ok(());
        }
        let was_writable = yard.is_writable(context);
        let mut done = replace_one(context, yard, step, false);
        if matches!(done, Err(ClientError::TooFewUnits { .. }))
            && destroyed.is_some()
            && !was_writable
            && yard.is_writable(context)
        {
            // With what it has told the others the region can be written: newer sets take the place of those that are lost with the one
            // that is destroyed.
            programs::overwrite_all(context, &yard.site)?;
            done = replace_one(context, yard, step, false);
        }
        match done {
            Ok(()) => {}
            // One died in the middle of a change, and with the one that is destroyed too few hold the sets.
            Err(ClientError::TooFewUnits { .. })
                if destroyed.is_some() && !yard.is_writable(context) =>
            {
                context.count(|totals| totals.refused_reads += 1);
            }
            Err(error) => return Err(format!("the last replacement failed: {error}")),
        }
    }
    if destroyed.is_none() && context.draw(|random| random.chance(1, 2)) {
        let done = rebuild_in_place(context, yard, None, false)
            .map_err(|error| format!("the last rebuild failed: {error}"))?;
        if let Some(missing) = done.missing.first() {
            return Err(format!(
                "the last rebuild could not bring {} up to date: {}",
                missing.unit, missing.reason
            ));
        }
    }
    Ok(())
}

/// Whether so many units answer and vote that the members can be changed: the one that leaves has its vote as long as it answers.
fn can_replace(context: &Context, yard: &Yard, step: Step, members: &[usize]) -> bool {
    let site = &yard.site;
    let stays = |unit: &usize| *unit != step.old && *unit != step.new;
    let staying: Vec<usize> = members.iter().copied().filter(stays).collect();
    let (alive, votes, leaves) = context.with(|state| {
        let old = &state.units[step.old];
        let answers = old.generation() > Some(0) && !old.is_destroyed;
        let (alive, _) = voters(state, staying.iter().copied());
        let asked = staying.into_iter().chain(answers.then_some(step.old));
        (alive, votes(state, asked), answers || old.is_destroyed)
    });
    let (alive, votes) = (alive.count_ones() as usize, votes.count_ones() as usize);
    let enough = site.units_min.max(site.to_decide);
    alive.min(votes) >= site.to_decide && alive + usize::from(leaves) >= enough
}

/// Whether what lies on the new unit, if anything, is what this replacement begins with.
fn fits(context: &Context, step: Step, members: &[usize]) -> bool {
    let place = members.iter().position(|unit| *unit == step.old);
    context.with(|state| {
        let unit = &state.units[step.new];
        if unit.is_destroyed {
            return false;
        }
        if !unit.has_region {
            return true;
        }
        let membership = unit.info.membership.as_ref();
        membership.is_some_and(|found| {
            found.generation == 0 && Some(usize::from(found.own_index)) == place
        })
    })
}
