//! What the programs of every scenario do alike: wait, open and work, and tell a model what they saw.

use std::time::Duration;

use parking_lot::Mutex;
use pmu_client::{ClientError, Spread};

use crate::context::Context;
use crate::reach::SimReach;

/// Waits for a while.
pub(super) fn nap(context: &Context) {
    let how_long = context.draw(|random| Duration::from_micros(random.pick(&[1, 50, 400, 2000])));
    context.sleep(how_long);
}

/// Opens and works, and opens again after an error that isn't a fence, so often at most. `work` is false if the program is to end.
pub(super) fn as_primary<T>(
    context: &Context,
    tries_max: u32,
    open: impl Fn() -> Result<T, ClientError>,
    work: impl Fn(&mut T) -> bool,
) {
    for _ in 0..tries_max {
        if !context.goes_on() {
            return;
        }
        match open() {
            Ok(mut opened) => {
                if !work(&mut opened) {
                    return;
                }
            }
            Err(error) if error.is_fenced() => return,
            Err(_) => nap(context),
        }
    }
}

/// Waits, takes over and works: what a backup does when the primary has failed, or seems to have. Unlike a primary it tries again whatever
/// the error.
pub(super) fn as_heir<T>(
    context: &Context,
    tries_max: u32,
    take_over: impl Fn() -> Result<T, ClientError>,
    work: impl Fn(&mut T) -> bool,
) {
    wait_for_failure(context);
    for _ in 0..tries_max {
        if !context.goes_on() {
            return;
        }
        match take_over() {
            Ok(mut opened) => {
                if !work(&mut opened) {
                    return;
                }
            }
            Err(_) => nap(context),
        }
    }
}

/// Works some times, with pauses, beside primaries.
pub(super) fn as_manager(context: &Context, work: impl Fn()) {
    wait_for_failure(context);
    for _ in 0..context.draw(|random| random.between(1, 3)) {
        if !context.goes_on() {
            return;
        }
        work();
        nap(context);
    }
}

/// How long an heir leaves the primary alone.
pub(super) fn wait_for_failure(context: &Context) {
    for _ in 0..context.draw(|random| random.below(4)) {
        nap(context);
    }
}

/// Finds a spread region through any of its units that answers.
pub(super) fn find(context: &Context, units: usize) -> Result<Spread, ClientError> {
    let first = context.draw(|random| random.below(units as u64)) as usize;
    let described = (0..units).map(|index| context.describe((first + index) % units));
    Spread::through(described, SimReach::of(context))
}

/// Tells a model, and reports what it finds wrong.
pub(super) fn check<M, T>(
    context: &Context,
    model: &Mutex<M>,
    work: impl FnOnce(&mut M) -> Result<T, String>,
) -> Option<T> {
    match work(&mut model.lock()) {
        Ok(done) => Some(done),
        Err(what) => {
            // What a killed program learns is what its error path made up.
            if !context.is_killed() {
                context.violate(what);
            }
            None
        }
    }
}
