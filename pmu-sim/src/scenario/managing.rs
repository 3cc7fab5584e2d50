//! What managers of sets and of logs have in common: how they find the members, report their progress, and scrub.

use std::ops::ControlFlow;

use pmu_client::rebuild::RebuildOptions;
use pmu_client::scrub::scrub;
use pmu_client::{ClientError, RebuildProgress, RegionInfo};
use pmu_format::{Member, PrincipalName};

use crate::context::Context;
use crate::reach::SimReach;
use crate::scenario::spread::options;

/// What the unit says that knows of the latest members, of all from the `first` one on; with `any`, what the first says that answers.
pub(super) fn describe(
    context: &Context,
    first: usize,
    any: bool,
) -> Result<RegionInfo, ClientError> {
    let units = context.with(|state| state.units_proper());
    let mut last = ClientError::Invalid("no unit has the region".into());
    let mut found: Option<RegionInfo> = None;
    let generation =
        |info: &RegionInfo| info.membership.as_ref().map_or(0, |found| found.generation);
    for index in 0..units {
        match context.describe((first + index) % units) {
            Ok(info) => {
                let known = found.as_ref().map(generation);
                if known.is_none_or(|known| known < generation(&info)) {
                    found = Some(info);
                }
                if any {
                    break;
                }
            }
            Err(error) => last = error,
        }
    }
    found.ok_or(last)
}

/// A unit as a membership names it.
pub(super) fn member(name: &str) -> Result<Member, ClientError> {
    let unit = PrincipalName::new(name).map_err(|error| ClientError::Invalid(error.to_string()))?;
    Ok(Member {
        unit,
        address: format!("{name}:7710"),
    })
}

/// Does something that reports its progress; with `ends_one_in` it is ended at one in so many reports.
pub(super) fn with_options<T>(
    context: &Context,
    rate_bytes_per_s: Option<u64>,
    ends_one_in: Option<u64>,
    work: impl FnOnce(RebuildOptions<'_>) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut on_progress = |_: &RebuildProgress| {
        let ends = ends_one_in.is_some_and(|many| context.draw(|random| random.chance(1, many)));
        match ends {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let done = work(RebuildOptions {
        open: options(context),
        rate_bytes_per_s,
        on_progress: &mut on_progress,
    });
    context.count(|totals| match done {
        Ok(_) => totals.rebuilds += 1,
        Err(_) => totals.rebuilds_cut += 1,
    });
    done
}

/// Scrubs the region that a unit has described. Nothing is damaged here, whatever goes on beside.
pub(super) fn scrub_all(
    context: &Context,
    info: &RegionInfo,
    options: RebuildOptions<'_>,
) -> Result<(), ClientError> {
    let reach = SimReach::of(context);
    let found = scrub(info, reach.clone(), reach.as_ref(), true, options)?;
    if found.is_damaged() && !context.is_killed() {
        context.violate(format!("a scrub found damage where none is: {found:?}"));
    }
    Ok(())
}
