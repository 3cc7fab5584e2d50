//! What managers of a log do: replace one unit by another, bring members up to date, scrub.

use std::cell::Cell;

use pmu_client::rebuild::{RebuildOptions, Replacement, rebuild, replace};
use pmu_client::{ClientError, RegionInfo};

use super::Site;
use crate::context::Context;
use crate::reach::SimReach;
use crate::scenario::managing::{self, member};
use crate::scenario::sets::persist;
use crate::scenario::spread::UNIT_NAMES;
use crate::scenario::spread::programs::may_happen;
use crate::scenario::turns::{nap, wait_for_failure};

/// How many things a manager does.
const TASKS_MAX: u32 = 3;

/// A replacement: indices of units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) old: usize,
    pub(super) new: usize,
}

/// Replaces, brings up to date and scrubs.
pub(super) fn manager(context: &Context, site: &Site) {
    wait_for_failure(context);
    for _ in 0..TASKS_MAX {
        if !context.goes_on() {
            return;
        }
        let done = match context.draw(|random| random.below(6)) {
            0..=3 => replace_one(context, site, true),
            4 => bring_up_to_date(context),
            _ => scrub_all(context),
        };
        if let Err(error) = done {
            context.note(|| format!("a manager's work ended: {error}"));
            let expected = matches!(
                error,
                ClientError::Interrupted
                    | ClientError::Invalid(_)
                    | ClientError::NoSuchRegion { .. }
            );
            if !expected && !may_happen(&error) && !context.is_killed() {
                context.violate(format!("a manager of a log failed: {error}"));
            }
        }
        nap(context);
    }
}

/// What managers have begun is ended. Before, all members take a term, so that each has its vote. False if a change was cut short
/// where too few have one.
pub(super) fn end_what_was_begun(
    context: &Context,
    site: &Site,
    last_round: impl Fn() -> Result<(), String>,
) -> Result<bool, String> {
    let Some(step) = site.step else {
        return Ok(true);
    };
    let begun = site.members(context).contains(&step.new);
    if !begun {
        if context.draw(|random| random.chance(1, 4)) {
            return Ok(true);
        }
        persist(context, last_round)?;
    }
    let cut_short = Cell::new(false);
    persist(context, || {
        match replace_one(context, site, false) {
            Ok(()) => Ok(()),
            // Too few of those that stay had taken a term when the change began.
            Err(ClientError::TooFewUnits { .. }) if begun => {
                cut_short.set(true);
                Ok(())
            }
            Err(error) => Err(format!("the last replacement failed: {error}")),
        }
    })?;
    if cut_short.get() {
        context.count(|totals| totals.changes_half_done += 1);
    }
    Ok(!cut_short.get())
}

fn replace_one(context: &Context, site: &Site, may_end: bool) -> Result<(), ClientError> {
    let Some(step) = site.step else {
        return Ok(());
    };
    context.doing("replace");
    let info = describe(context)?;
    let (old, new) = (member(UNIT_NAMES[step.old])?, member(UNIT_NAMES[step.new])?);
    context.note(|| format!("replaces {} by {}", old.unit, new.unit));
    let replacement = Replacement {
        old: old.unit.to_string(),
        old_address: Some(old.address),
        new,
        old_is_lost: false,
    };
    let reach = SimReach::of(context);
    let done = with_options(context, may_end, |options| {
        replace(&info, reach.clone(), reach.as_ref(), &replacement, options)
    });
    context.note(|| format!("has replaced: {done:?}"));
    done.map(drop)
}

fn bring_up_to_date(context: &Context) -> Result<(), ClientError> {
    context.doing("rebuild");
    let info = describe(context)?;
    let reach = SimReach::of(context);
    let done = with_options(context, true, |options| {
        rebuild(&info, reach.clone(), reach.as_ref(), None, options)
    });
    context.note(|| format!("has brought up to date: {done:?}"));
    done.map(drop)
}

fn scrub_all(context: &Context) -> Result<(), ClientError> {
    context.doing("scrub");
    let info = describe(context)?;
    with_options(context, true, |options| {
        managing::scrub_all(context, &info, options)
    })
}

fn describe(context: &Context) -> Result<RegionInfo, ClientError> {
    managing::describe(context, 0, false)
}

/// Does something that reports its progress; it may be ended there.
fn with_options<T>(
    context: &Context,
    may_end: bool,
    work: impl FnOnce(RebuildOptions<'_>) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    managing::with_options(context, None, may_end.then_some(20), work)
}
