//! Several units in append mode: records are committed in two steps, and read back from what is left of the units.

mod manager;
mod programs;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pmu_client::{ClientError, Layout, RegionInfo, Spread};
use pmu_format::{
    Member, Membership, Mode, PAGE_BYTES, PrincipalName, RegionId, SpreadId, VirtualAddress,
};

use self::manager::Step;
use crate::context::Context;
use crate::distributor;
use crate::random::Random;
use crate::scenario::log::model::LogModel;
use crate::scenario::sets::{persist, sorted};
use crate::scenario::spread::{UNIT_NAMES, draw_layout};
use crate::scenario::turns::{check, find};
use crate::unit::Unit;

const ADDRESS: VirtualAddress = VirtualAddress(0x7800_0000_0000);

/// What the programs share.
#[derive(Clone)]
struct Site {
    model: Arc<Mutex<LogModel>>,
    units: usize,
    data_shards: usize,
    /// So many are needed to decide what is committed.
    to_decide: usize,
    /// The units that have all of it after the last round, one bit each.
    whole: Arc<Mutex<u64>>,
    /// What managers do, if there are any.
    step: Option<Step>,
    /// Most primaries have their records distributed.
    distributed: bool,
}

/// See the module.
pub(crate) fn run(context: &Context) {
    run_with(context, false, false);
}

/// The same by way of distributors.
pub(crate) fn run_distributed(context: &Context) {
    let is_managed = context.draw(|random| random.chance(1, 3));
    run_with(context, is_managed, true);
    distributor::join_all(context);
}

/// The same while a manager replaces a member by another unit, brings members up to date and scrubs, and dies at it.
pub(crate) fn run_rebuild(context: &Context) {
    run_with(context, true, false);
}

fn run_with(context: &Context, is_managed: bool, distributed: bool) {
    let Some(site) = context.with(|state| {
        let (layout, units_min, infos) = draw_region(&mut state.random)?;
        let units = infos.len();
        let to_decide = units - units_min + 1;
        let blank = infos.first()?.clone();
        for (info, name) in infos.into_iter().zip(UNIT_NAMES) {
            let extents = (0..state.random.below(2))
                .map(|_| state.random.below(info.length_bytes / 4096) * 4096)
                .collect();
            let weight = state.random.pick(&[1, 1, 1, 8]);
            state
                .units
                .push(Unit::new(name, info, sorted(extents), weight));
        }
        // Where it takes all members to decide, none can be replaced.
        let step = (is_managed && to_decide < units).then(|| Step {
            old: state.random.below(units as u64) as usize,
            new: units,
        });
        if step.is_some() {
            let name = UNIT_NAMES[units];
            state.units.push(Unit::blank(name, blank, 1));
        }
        Some(Site {
            model: Arc::default(),
            units,
            data_shards: layout.data_shards(),
            to_decide,
            whole: Arc::default(),
            step,
            distributed,
        })
    }) else {
        return context.violate("the scenario can't lay its region out".into());
    };
    if distributed {
        distributor::add_staging(context);
    }
    let (heirs, backups) = context.draw(|random| (random.below(3), random.below(3)));
    let mut started = Vec::new();
    let first = site.clone();
    started.push(context.spawn("primary", move |context| programs::primary(context, &first)));
    for _ in 0..heirs {
        let site = site.clone();
        started.push(context.spawn("heir", move |context| programs::heir(context, &site)));
    }
    for _ in 0..backups {
        let site = site.clone();
        started.push(context.spawn("backup", move |context| programs::backup(context, &site)));
    }
    if site.step.is_some() {
        let site = site.clone();
        site.model.lock().let_epochs_move();
        started.push(context.spawn("manager", move |context| manager::manager(context, &site)));
    }
    for program in started {
        context.join(program);
    }
    if !context.is_violated() {
        finish(context, &site);
    }
}

/// The regions of the members.
fn draw_region(random: &mut Random) -> Option<(Layout, usize, Vec<RegionInfo>)> {
    let layout = draw_layout(random)?;
    let (units, data_shards) = (layout.units(), layout.data_shards());
    let units_min = random.between(data_shards as u64, units as u64) as usize;
    let ring_bytes = random.pick(&[4096, 8192, 20_480]);
    let members: Option<Vec<Member>> = UNIT_NAMES[..units]
        .iter()
        .map(|name| {
            let unit = PrincipalName::new(name).ok()?;
            Some(Member {
                unit,
                address: format!("{name}:7710"),
            })
        })
        .collect();
    let membership = Membership {
        id: SpreadId([4; 16]),
        generation: 1,
        layout: layout.to_bytes(),
        units_min: units_min as u8,
        own_index: 0,
        subsegment_bytes: 4096,
        members: members?,
    };
    let infos = (0..units).map(|index| {
        let id = RegionId([index as u8 + 21; 16]);
        let mut info = RegionInfo::new(
            "sim",
            id,
            Mode::Append,
            ADDRESS,
            2 * PAGE_BYTES + ring_bytes,
        );
        let own_index = index as u8;
        info.membership = Some(Arc::new(Membership {
            own_index,
            ..membership.clone()
        }));
        info
    });
    Some((layout, units_min, infos.collect()))
}

impl Site {
    /// Finds the log through any unit that answers.
    fn find(&self, context: &Context) -> Result<Spread, ClientError> {
        let all = context.with(|state| state.units_proper());
        find(context, all)
    }

    /// The members of the latest generation that any unit knows, as indices of units.
    fn members(&self, context: &Context) -> Vec<usize> {
        context.with(|state| {
            let latest = state.units.iter().max_by_key(|unit| unit.generation());
            let membership = latest.and_then(|unit| unit.info.membership.clone());
            let members = membership.iter().flat_map(|found| &found.members);
            let place = |member: &Member| {
                let name = member.unit.as_str();
                UNIT_NAMES.iter().position(|known| *known == name)
            };
            members.filter_map(place).collect()
        })
    }

    /// Tells the model, and reports what it finds wrong.
    fn check<T>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut LogModel) -> Result<T, String>,
    ) -> Option<T> {
        check(context, &self.model, work)
    }
}

/// After so long every request that was under way has come to its unit.
const REQUESTS_ARRIVE: Duration = Duration::from_secs(1);

/// Everything works again: nothing acknowledged is lost, and the log goes on, also after all units lost their power. Then some are gone.
fn finish(context: &Context, site: &Site) {
    context.with(|state| {
        state.faults.stop();
        (0..state.units.len()).for_each(|unit| state.start_unit(unit));
    });
    // What managers have asked for that are gone still comes to the units.
    context.sleep(REQUESTS_ARRIVE);
    let ended = manager::end_what_was_begun(context, site, || programs::last_round(context, site));
    match ended {
        Ok(true) => {}
        Ok(false) => return,
        Err(what) => return context.violate(what),
    }
    for _ in 0..2 {
        let done = persist(context, || programs::last_round(context, site));
        if let Err(what) = done {
            context.violate(what);
        }
        if context.is_violated() {
            return;
        }
        context.with(|state| {
            for unit in 0..state.units.len() {
                state.cut_power(unit, None);
                state.start_unit(unit);
            }
        });
    }
    for _ in 0..3 {
        let members = site.members(context);
        let chosen = context.draw(|random| random.below(1 << members.len()));
        let lost = members.iter().enumerate();
        let lost = lost.filter(|(bit, _)| chosen & (1 << bit) != 0);
        let lost = lost.fold(0, |all, (_, unit)| all | 1 << unit);
        lose(context, lost);
        read_without(context, site, lost);
        if context.is_violated() {
            return;
        }
    }
}

/// Some units are gone.
fn lose(context: &Context, lost: u64) {
    context.with(|state| {
        for unit in 0..state.units.len() {
            if lost & (1 << unit) == 0 {
                state.start_unit(unit);
            } else if state.units[unit].is_on {
                state.cut_power(unit, None);
            }
        }
    });
}

/// Within the tolerance every record is there; outside it there is an error, and never a wrong record.
fn read_without(context: &Context, site: &Site, lost: u64) {
    let left = (*site.whole.lock() & !lost).count_ones() as usize;
    context.note(|| format!("recovers without units {lost:#06b}"));
    let done = programs::recover(context, site);
    if left >= site.to_decide.max(site.data_shards) {
        if let Err(what) = done {
            context.violate(format!("{left} units with all records are there: {what}"));
        }
        return;
    }
    let alive = site.units - lost.count_ones() as usize;
    match done {
        // That nothing is left takes no more than those who decide.
        Ok(records) if alive < site.to_decide || (records > 0 && alive < site.data_shards) => {
            context.violate(format!(
                "a log was recovered from {alive} units, which are too few"
            ));
        }
        Ok(_) => {}
        Err(what) => {
            context.note(|| what);
            context.count(|totals| totals.refused_reads += 1);
        }
    }
}
