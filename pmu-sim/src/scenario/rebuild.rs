//! Several units in overwrite mode whose members change: managers replace units and bring others up to date while primaries commit.

mod manager;

use std::sync::Arc;

use parking_lot::Mutex;

use self::manager::Step;
use crate::context::Context;
use crate::distributor;
use crate::scenario::sets::persist;
use crate::scenario::spread::{
    Site, UNIT_NAMES, lay_out, lay_out_distributed, lose_and_read, programs, start_programs,
};
use crate::scenario::turns::nap;
use crate::unit::Unit;

/// What the programs share.
#[derive(Clone)]
struct Yard {
    site: Site,
    /// The replacements that were begun; managers go on with the last one.
    steps: Arc<Mutex<Vec<Step>>>,
    /// Managers may know nothing of each other.
    rivals: bool,
}

/// See the module.
pub(crate) fn run(context: &Context) {
    if let Some(site) = lay_out(context, draw_spares(context)) {
        run_on(context, site);
    }
}

/// The same by way of distributors.
pub(crate) fn run_distributed(context: &Context) {
    if let Some(site) = lay_out_distributed(context, draw_spares(context)) {
        run_on(context, site);
        distributor::join_all(context);
    }
}

/// Units without a region.
fn draw_spares(context: &Context) -> usize {
    context.draw(|random| random.between(1, 2)) as usize
}

fn run_on(context: &Context, site: Site) {
    let (heirs, readers, managers, rivals) = context.draw(|random| {
        (
            random.below(3),
            random.below(2),
            random.between(1, 2),
            random.chance(1, 6),
        )
    });
    let yard = Yard {
        site,
        steps: Arc::default(),
        rivals,
    };
    let mut started = start_programs(context, &yard.site, heirs, readers);
    for _ in 0..managers {
        let yard = yard.clone();
        started.push(context.spawn("manager", move |context| manager::manager(context, &yard)));
    }
    let yard_of_fate = yard.clone();
    if context.draw(|random| random.chance(1, 3)) {
        started.push(context.spawn("fate", move |context| destroy_one(context, &yard_of_fate)));
    }
    started.drain(..).for_each(|program| context.join(program));
    if !context.is_violated() {
        finish(context, &yard);
    }
}

/// At some time one unit is gone for good, if the layout can do without it.
fn destroy_one(context: &Context, yard: &Yard) {
    for _ in 0..context.draw(|random| random.below(5)) {
        nap(context);
    }
    if yard.site.units == yard.site.data_shards || !context.goes_on() {
        return;
    }
    let members = yard.site.members(context);
    context.with(|state| {
        let unit = state.random.pick(&members);
        state.destroy(unit);
    });
}

/// Everything works again but for a unit that is destroyed: the region goes on whatever the managers left behind, a later call ends what they
/// began, and then units may be lost again.
fn finish(context: &Context, yard: &Yard) {
    context.with(|state| {
        state.faults.stop();
        (0..state.units.len()).for_each(|unit| state.start_unit(unit));
    });
    if is_divided(context) {
        // Two managers each told a part of the units: neither change holds, and nobody is believed wrongly.
        for _ in 0..3 {
            let _ = programs::read(context, &yard.site, pmu_client::SetChoice::Newest);
        }
        return;
    }
    if !goes_on(context, yard) {
        return;
    }
    let done = persist(context, || manager::end_what_was_begun(context, yard));
    if let Err(what) = done {
        return context.violate(what);
    }
    // A unit that is destroyed may be the one too many to change the members (also where others that are left never took part), or there is
    // none to take its place.
    let (_, destroyed) = knowing(context, &yard.site);
    if !context.is_violated() && destroyed == 0 && yard.is_writable(context) {
        lose_and_read(context, &yard.site);
    }
}

/// The region can be taken over, written and read with the members as the managers left them; false if not. Where a manager died before enough
/// units knew of a change, that waits for a later call.
fn goes_on(context: &Context, yard: &Yard) -> bool {
    let site = &yard.site;
    if !yard.is_writable(context) {
        context.count(|totals| totals.changes_half_done += 1);
        return true;
    }
    let (_, destroyed) = knowing(context, site);
    let done = persist(context, || {
        let done = if destroyed == 0 {
            programs::last_round(context, site)
        } else {
            // A set with shares on too few other units is lost with the one that is gone, until newer ones take its place.
            programs::overwrite_all(context, site)
        };
        // The last request of a manager that died may have come meanwhile.
        done.or_else(|what| {
            if yard.is_writable(context) {
                Err(what)
            } else {
                Ok(())
            }
        })
    });
    if let Err(what) = done {
        context.violate(format!("with what the managers left behind {what}"));
    }
    !context.is_violated()
}

/// How many members know who the latest ones are, and how many are destroyed.
fn knowing(context: &Context, site: &Site) -> (usize, usize) {
    let members = site.members(context);
    context.with(|state| {
        let latest = state.units.iter().filter_map(Unit::generation).max();
        let members = members.iter().map(|unit| &state.units[*unit]);
        let alive = members.clone().filter(|unit| !unit.is_destroyed);
        let knowing = alive.filter(|unit| unit.generation() == latest).count();
        (knowing, members.filter(|unit| unit.is_destroyed).count())
    })
}

/// Whether units know of two changes of the same generation.
fn is_divided(context: &Context) -> bool {
    context.with(|state| {
        let latest = state.units.iter().filter_map(Unit::generation).max();
        let known = state
            .units
            .iter()
            .filter(|unit| unit.generation() == latest);
        let mut lists = known
            .filter_map(|unit| unit.info.membership.as_ref())
            .map(|membership| &membership.members);
        let first = lists.next();
        lists.any(|list| Some(list) != first)
    })
}

impl Yard {
    /// Whether so many members know of each other that the region can be written.
    fn is_writable(&self, context: &Context) -> bool {
        let site = &self.site;
        let (knowing, _) = knowing(context, site);
        knowing >= site.units_min.max(site.to_decide) && site.votes(context, 0) >= site.to_decide
    }

    fn unit_name(unit: usize) -> &'static str {
        UNIT_NAMES[unit]
    }
}
