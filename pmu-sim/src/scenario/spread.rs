//! Several units in overwrite mode: every layout, units that die and return, fences on a part of them.

pub(super) mod model;
pub(super) mod programs;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pmu_client::{ClientError, Layout, OpenOptions, RegionInfo, SetChoice, Spread};
use pmu_core::spread::Stand;
use pmu_format::{
    Member, Membership, Mode, PAGE_BYTES, PrincipalName, RegionId, SHARE_TRAILER_BYTES,
    SetGeometry, SetNumber, SpreadId, VirtualAddress,
};

use self::model::SpreadModel;
use crate::context::{Context, timeouts};
use crate::distributor;
use crate::random::Random;
use crate::scenario::sets::{persist, sorted};
use crate::scenario::turns::{check, find};
use crate::state::State;
use crate::unit::Unit;

const ADDRESS: VirtualAddress = VirtualAddress(0x7000_0000_0000);
const SPREAD_ID: SpreadId = SpreadId([3; 16]);
const STAGING_BYTES: usize = 32 << 10;
pub(super) const UNIT_NAMES: [&str; 6] =
    ["unit-a", "unit-b", "unit-c", "unit-d", "unit-e", "unit-f"];

/// What the programs share.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) model: Arc<Mutex<SpreadModel>>,
    /// Members.
    pub(super) units: usize,
    pub(super) data_shards: usize,
    pub(super) units_min: usize,
    /// So many are needed to decide what is the newest.
    pub(super) to_decide: usize,
    pub(super) sets_kept: u64,
    /// Most primaries have their sets distributed.
    pub(super) distributed: bool,
}

/// See the module.
pub(crate) fn run(context: &Context) {
    if let Some(site) = lay_out(context, 0) {
        run_on(context, &site);
    }
}

/// The same by way of distributors.
pub(crate) fn run_distributed(context: &Context) {
    if context.draw(|random| random.chance(1, 3)) {
        return super::rebuild::run_distributed(context);
    }
    if let Some(site) = lay_out_distributed(context, 0) {
        run_on(context, &site);
        distributor::join_all(context);
    }
}

fn run_on(context: &Context, site: &Site) {
    let (heirs, readers) = context.draw(|random| (random.below(3), random.below(3)));
    let mut started = start_programs(context, site, heirs, readers);
    started.drain(..).for_each(|program| context.join(program));
    if context.is_violated() {
        return;
    }
    context.with(|state| {
        state.faults.stop();
        (0..state.units.len()).for_each(|unit| state.start_unit(unit));
    });
    lose_and_read(context, site);
}

/// Draws a region and its units, and so many without a region.
pub(super) fn lay_out(context: &Context, spares: usize) -> Option<Site> {
    let site = context.with(|state| {
        let (infos, site) = draw_region(&mut state.random)?;
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
        for name in UNIT_NAMES.iter().skip(site.units).take(spares) {
            state.units.push(Unit::blank(name, blank.clone(), 1));
        }
        Some(site)
    });
    if site.is_none() {
        context.violate("the scenario can't lay its region out".into());
    }
    site
}

/// A primary, and those who take over and read.
pub(super) fn start_programs(
    context: &Context,
    site: &Site,
    heirs: u64,
    readers: u64,
) -> Vec<usize> {
    let mut started = Vec::new();
    let first = site.clone();
    started.push(context.spawn("primary", move |context| programs::primary(context, &first)));
    for _ in 0..heirs {
        let site = site.clone();
        started.push(context.spawn("heir", move |context| programs::heir(context, &site)));
    }
    for _ in 0..readers {
        let site = site.clone();
        started.push(context.spawn("reader", move |context| programs::reader(context, &site)));
    }
    started
}

/// The same, where most primaries have their sets distributed.
pub(super) fn lay_out_distributed(context: &Context, spares: usize) -> Option<Site> {
    let site = lay_out(context, spares)?;
    distributor::add_staging(context);
    Some(Site {
        distributed: true,
        ..site
    })
}

pub(super) fn draw_layout(random: &mut Random) -> Option<Layout> {
    match random.below(7) {
        0 => Layout::mirror(2),
        1 => Layout::mirror(3),
        2 | 3 => Layout::parity(2),
        4 => Layout::parity(3),
        5 => Layout::erasure(2, 2),
        _ => Layout::stripe(2),
    }
    .ok()
}

/// The regions of the members.
fn draw_region(random: &mut Random) -> Option<(Vec<RegionInfo>, Site)> {
    let layout = draw_layout(random)?;
    let (units, data_shards) = (layout.units(), layout.data_shards());
    let units_min = random.between(data_shards as u64, units as u64) as usize;
    let subsegment_bytes = random.pick(&[1, 64, 500, 4096]);
    // Few subsegments, so that groups that are not complete are ordinary.
    let share_bytes = subsegment_bytes * random.between(1, 3);
    let capacity_bytes = share_bytes + SHARE_TRAILER_BYTES as u64;
    let sets_kept = random.pick(&[1, 1, 2, 3]);
    let length = SetGeometry::region_bytes_for(capacity_bytes, sets_kept).ok()?;
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
        id: SPREAD_ID,
        generation: 1,
        layout: layout.to_bytes(),
        units_min: units_min as u8,
        own_index: 0,
        subsegment_bytes,
        members: members?,
    };
    let infos = (0..units).map(|index| {
        let id = RegionId([index as u8 + 1; 16]);
        let length = length.next_multiple_of(4096);
        let mut info = RegionInfo::new("sim", id, Mode::Overwrite, ADDRESS, length);
        info.sets_kept = sets_kept;
        info.capacity_bytes = capacity_bytes;
        info.membership = Some(Arc::new(Membership {
            own_index: index as u8,
            ..membership.clone()
        }));
        info
    });
    let site = Site {
        model: Arc::default(),
        units,
        data_shards,
        units_min,
        to_decide: units - units_min + 1,
        sets_kept: u64::from(sets_kept),
        distributed: false,
    };
    Some((infos.collect(), site))
}

/// Primaries call units that are missing by themselves, or leave it to the program.
pub(crate) fn options(context: &Context) -> OpenOptions {
    let rejoin = context.draw(|random| random.pick(&[None, Some(10), Some(1000)]));
    OpenOptions::new()
        .staging_bytes(STAGING_BYTES)
        .timeouts(timeouts())
        .rejoin(rejoin.map(Duration::from_micros))
}

impl Site {
    /// Finds the region through any unit that answers.
    fn find(&self, context: &Context) -> Result<Spread, ClientError> {
        let all = context.with(|state| state.units_proper());
        find(context, all)
    }

    /// The members of the latest generation that any unit knows, as indices of units.
    pub(super) fn members(&self, context: &Context) -> Vec<usize> {
        context.with(|state| {
            let latest = state.units.iter().max_by_key(|unit| unit.generation());
            let membership = latest.and_then(|unit| unit.info.membership.clone());
            let members = membership.iter().flat_map(|found| &found.members);
            members
                .filter_map(|member| {
                    UNIT_NAMES
                        .iter()
                        .position(|name| *name == member.unit.as_str())
                })
                .collect()
        })
    }

    /// How many members that are not lost have a vote: all that know of the latest members, or those that know of a term if any does.
    pub(super) fn votes(&self, context: &Context, lost: u64) -> usize {
        let members = self.members(context);
        let latest = context.with(|state| state.units.iter().filter_map(Unit::generation).max());
        let votes = context.with(|state| {
            let known = members.into_iter();
            votes(
                state,
                known.filter(|unit| state.units[*unit].generation() == latest),
            )
        });
        (votes & !lost).count_ones() as usize
    }

    /// Tells the model, and reports what it finds wrong.
    fn check<T>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut SpreadModel) -> Result<T, String>,
    ) -> Option<T> {
        check(context, &self.model, work)
    }
}

/// Everything works again but for units that are lost: what was acknowledged is read as long as there are enough, and the region goes on.
pub(super) fn lose_and_read(context: &Context, site: &Site) {
    let members = site.members(context);
    for _ in 0..3 {
        let lost = context.draw(|random| {
            let chosen = random.below(1 << members.len());
            let lost = members.iter().enumerate();
            let lost = lost.filter(|(bit, _)| chosen & (1 << bit) != 0);
            lost.fold(0, |all, (_, unit)| all | 1 << unit)
        });
        lose(context, &members, lost);
        read_without(context, site, lost);
        context.with(|state| (0..state.units.len()).for_each(|unit| state.start_unit(unit)));
        let done = persist(context, || programs::last_round(context, site));
        if let Err(what) = done {
            context.violate(what);
        }
        if context.is_violated() {
            return;
        }
    }
}

/// Some units are gone; the others lose their power for a moment.
fn lose(context: &Context, members: &[usize], lost: u64) {
    context.with(|state| {
        for unit in members.iter().copied() {
            let is_lost = lost & (1 << unit) != 0;
            if is_lost || state.random.chance(1, 2) {
                state.cut_power(unit, None);
            }
            if !is_lost {
                state.start_unit(unit);
            }
        }
    });
}

/// Within the tolerance everything acknowledged is there; outside it there is an error, and never wrong bytes.
fn read_without(context: &Context, site: &Site, lost: u64) {
    let alive = site.votes(context, lost);
    let members = site.members(context).into_iter();
    let members = members.fold(0, |all: u64, unit| all | 1 << unit);
    let kept = site.model.lock().kept(site.sets_kept);
    context.note(|| format!("reads without units {lost:#06b}"));
    match programs::read(context, site, SetChoice::Newest) {
        // A distributor whose program is gone may still have been at work on them.
        Ok(()) if alive.max(site.votes(context, lost)) < site.to_decide => {
            context.violate(format!(
                "a set was read with {alive} votes, which are too few to decide"
            ));
        }
        Ok(()) => return,
        Err(ClientError::NoSuchSet { .. }) if kept.is_none() => return,
        Err(_) if alive < site.to_decide => {
            return context.count(|totals| totals.refused_reads += 1);
        }
        // A newer set, never acknowledged, may have shares on too few of them.
        Err(error) => {
            context.note(|| format!("can't read the newest set: {error}"));
            context.count(|totals| totals.refused_reads += 1);
        }
    }
    let Some((number, units)) = kept else { return };
    let holding = (units & members & !lost).count_ones() as usize;
    if holding < site.data_shards || alive < site.to_decide {
        return;
    }
    if let Err(error) = programs::read(context, site, SetChoice::Number(SetNumber(number))) {
        context.violate(format!(
            "set {number} was acknowledged, {holding} units with it are there, and it can't be read: {error}"
        ));
    }
}

/// Of some units those that have a vote, one bit each: before the first term all of them.
pub(super) fn votes(state: &State, units: impl Iterator<Item = usize>) -> u64 {
    match voters(state, units) {
        (all, 0) => all,
        (_, know) => know,
    }
}

/// Of some units those that are not destroyed, and those that know of a term, one bit each.
pub(super) fn voters(state: &State, units: impl Iterator<Item = usize>) -> (u64, u64) {
    let mut page = [0; PAGE_BYTES as usize];
    let (mut all, mut know) = (0_u64, 0_u64);
    for index in units {
        let unit = &state.units[index];
        if unit.is_destroyed {
            continue;
        }
        all |= 1 << index;
        unit.medium.read(0, &mut page, |_| true);
        if Stand::read(&page, SPREAD_ID, unit.info.mode).is_ok_and(|stand| stand.votes()) {
            know |= 1 << index;
        }
    }
    (all, know)
}
