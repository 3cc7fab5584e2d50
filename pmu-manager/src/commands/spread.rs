//! Regions that are spread over several units: found by what their members keep, created on all units or none, changed
//! on each unit that answers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pmu_auth::{Identity, PrincipalName};
use pmu_client::Quorum;
use pmu_format::{
    ATTRIBUTES_BYTES_MAX, LogGeometry, Member, Membership, Mode, RegionName, RegionState, SpreadId,
};
use pmu_proto::v1;
use pmu_proto::v1::Reason;
use pmu_proto::v1::create_region_request::Room;
use pmu_stripe::{Layout, Placement};

use super::{Context, region};
use crate::cli::RegionCreateArguments;
use crate::config::Unit;
use crate::connect::Connection;
use crate::error::{ManagerError, exit};
use crate::report::{
    Changed, MemberChange, MemberReport, PlacementReport, RegionReport, SpreadChange, SpreadReport,
};
use crate::{spread, words};

const MISSING: &str = "missing";
const OLDER: &str = "older generation";
const NEWER: &str = "newer generation";

/// Does `work` on all units at once; the results are in the order of the units.
pub(super) async fn on_each<T, W>(
    units: Vec<Unit>,
    work: impl Fn(Unit) -> W,
) -> Vec<Result<T, ManagerError>>
where
    T: Send + 'static,
    W: Future<Output = Result<T, ManagerError>> + Send + 'static,
{
    let started: Vec<_> = units
        .into_iter()
        .map(|unit| tokio::spawn(work(unit)))
        .collect();
    let mut results = Vec::with_capacity(started.len());
    for task in started {
        // Nobody cancels them: one that did not end has panicked.
        let result = task.await;
        results.push(result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
    results
}

async fn connect_each(
    units: &[Unit],
    identity: &Arc<Identity>,
    timeout: Duration,
) -> Vec<Result<Connection, ManagerError>> {
    on_each(units.to_vec(), |unit| {
        let identity = identity.clone();
        async move { Connection::open(&unit, &identity, timeout).await }
    })
    .await
}

/// `region create --layout`: on all units or on none.
///
/// Units are reached first, so that one that is dead costs nothing; if one refuses then, what this call has created is
/// deleted again.
///
/// # Errors
/// [`ManagerError::NoSuchUnit`], [`ManagerError::Usage`]; [`ManagerError::NotCreated`] names the unit that failed.
pub async fn create(
    context: &Context,
    create: &RegionCreateArguments,
    layout: Layout,
) -> Result<SpreadReport, ManagerError> {
    let units = context.chosen(&create.units)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|source| ManagerError::Random { source })?;
    let membership = new_membership(create, layout, &units, SpreadId(id));
    let capacity = create.capacity.map_or(0, |size| size.0);
    let room = member_room(create, layout, capacity)?;
    let mut requests = Vec::with_capacity(units.len());
    for index in 0..units.len() {
        let attributes = attributes_of(&membership, index)?;
        let room = Some(room);
        requests.push(region::create_request(create, room, attributes));
    }

    let identity = context.identity()?;
    let name = create.name.as_str();
    let mut connections = Vec::with_capacity(units.len());
    let opened = connect_each(&units, &identity, context.timeout()).await;
    for (unit, opened) in units.iter().zip(opened) {
        connections.push(opened.map_err(|error| not_created(name, unit, error, Vec::new()))?);
    }
    let timeout = context.timeout_long();
    let tasks = connections.iter().cloned().zip(requests);
    let tasks: Vec<_> = tasks
        .map(|(connection, request)| {
            tokio::spawn(async move { region::create_on(&connection, timeout, request).await })
        })
        .collect();
    let mut created = Vec::with_capacity(units.len());
    let mut failed = None;
    for (unit, task) in units.iter().zip(tasks) {
        let result = task.await;
        match result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
            Ok(report) => created.push(report),
            Err(error) => failed = failed.or(Some((unit, error))),
        }
    }
    if let Some((unit, error)) = failed {
        let left_on = take_back(&connections, name, membership.id, timeout).await;
        return Err(not_created(name, unit, error, left_on));
    }
    Ok(created_report(name, layout, &membership, capacity, created))
}

/// What each member has room for: its shares of a set, or a log of its own.
fn member_room(
    create: &RegionCreateArguments,
    layout: Layout,
    capacity_bytes: u64,
) -> Result<Room, ManagerError> {
    if create.mode == Mode::Append {
        return Ok(Room::SizeBytes(create.size.map_or(0, |size| size.0)));
    }
    spread::member_capacity_bytes(layout, capacity_bytes, create.subsegment().0)
        .map(Room::CapacityBytes)
        .map_err(|error| usage(error.to_string()))
}

fn new_membership(
    create: &RegionCreateArguments,
    layout: Layout,
    units: &[Unit],
    id: SpreadId,
) -> Membership {
    let members = units.iter().map(|unit| Member {
        unit: unit.name.clone(),
        address: unit.address.to_string(),
    });
    Membership {
        id,
        generation: 1,
        layout: layout.to_bytes(),
        units_min: create
            .min_units
            .unwrap_or_else(|| spread::units_min_default(layout)),
        own_index: 0,
        subsegment_bytes: create.subsegment().0,
        members: members.collect(),
    }
}

fn attributes_of(membership: &Membership, index: usize) -> Result<Vec<u8>, ManagerError> {
    let own = Membership {
        own_index: u8::try_from(index).unwrap_or(u8::MAX),
        ..membership.clone()
    };
    let attributes = own
        .encode()
        .map_err(|error| usage(format!("--units: {error}")))?;
    if attributes.len() > ATTRIBUTES_BYTES_MAX {
        let detail = format!(
            "--units: names and addresses take {} bytes; a region keeps {ATTRIBUTES_BYTES_MAX}",
            attributes.len()
        );
        return Err(usage(detail));
    }
    Ok(attributes)
}

fn usage(detail: String) -> ManagerError {
    ManagerError::Usage { detail }
}

fn not_created(
    region: &str,
    unit: &Unit,
    error: ManagerError,
    left_on: Vec<String>,
) -> ManagerError {
    ManagerError::NotCreated {
        region: region.to_owned(),
        unit: unit.name.to_string(),
        left_on,
        source: Box::new(error),
    }
}

fn created_report(
    name: &str,
    layout: Layout,
    membership: &Membership,
    capacity_bytes: u64,
    created: Vec<RegionReport>,
) -> SpreadReport {
    let ring_bytes = created.iter().filter_map(|region| region.ring_bytes).min();
    let members = created.into_iter().zip(&membership.members);
    let members = members
        .enumerate()
        .map(|(index, (region, member))| MemberReport {
            unit: region.unit,
            index,
            address: member.address.clone(),
            state: region.state,
            epoch: Some(region.epoch),
            writer: None,
            error: None,
        });
    let members: Vec<_> = members.collect();
    let (active, too_few_to) = strength(&members, membership.units_min, layout);
    SpreadReport {
        active,
        too_few_to,
        region: name.to_owned(),
        spread_id: words::hex(&membership.id.0),
        layout: layout.to_string(),
        units_min: membership.units_min,
        generation: membership.generation,
        ring_bytes,
        capacity_bytes,
        subsegment_bytes: membership.subsegment_bytes,
        members,
    }
}

/// How many members are active, and what can't be done with so few.
fn strength(members: &[MemberReport], units_min: u8, layout: Layout) -> (usize, Vec<String>) {
    let quorum = Quorum::new(members.len(), units_min.into(), layout.data_shards());
    let states = members.iter().map(|member| member.state);
    let active = states
        .filter(|state| *state == RegionState::Active.as_str())
        .count();
    let checks = [
        quorum.check_commit(active),
        quorum.check_decide(active),
        quorum.check_read(active),
    ];
    let short = checks.into_iter().filter_map(Result::err);
    let texts = short.map(|few| format!("{} ({} are needed)", few.purpose, few.needed));
    (active, texts.collect())
}

/// Deletes what carries this id, also where a unit has created it without saying so. Returns where it may be left.
async fn take_back(
    connections: &[Connection],
    name: &str,
    id: SpreadId,
    timeout: Duration,
) -> Vec<String> {
    let mut tasks = Vec::with_capacity(connections.len());
    for connection in connections {
        let (connection, name) = (connection.clone(), name.to_owned());
        tasks.push(tokio::spawn(async move {
            let shown = match region::ask_show(&connection, timeout, &name).await {
                Err(error) if error.reason() == Some(Reason::NoSuchRegion) => return Ok(()),
                shown => shown?,
            };
            if membership_of(&shown).is_some_and(|found| found.id == id) {
                region::delete_on(&connection, timeout, name, true).await?;
            }
            Ok::<_, ManagerError>(())
        }));
    }
    let mut left_on = Vec::new();
    for (connection, task) in connections.iter().zip(tasks) {
        if !matches!(task.await, Ok(Ok(()))) {
            left_on.push(connection.unit().to_owned());
        }
    }
    left_on
}

fn membership_of(shown: &v1::ShowRegionResponse) -> Option<Membership> {
    let attributes = &shown.region.as_ref()?.attributes;
    Membership::decode(attributes).ok()
}

/// What stands behind a region's name.
#[derive(Debug)]
pub enum Sought {
    /// A region of one unit.
    One {
        /// The unit.
        unit: Unit,
        /// What it says of the region.
        shown: Box<v1::ShowRegionResponse>,
    },
    /// A region of several units.
    Spread(Spread),
}

/// A spread region as its members know it now.
#[derive(Debug)]
pub struct Spread {
    name: String,
    layout: Layout,
    membership: Membership,
    seats: Vec<Seat>,
}

/// A member, and what it says.
#[derive(Debug)]
struct Seat {
    unit: Unit,
    shown: Result<v1::ShowRegionResponse, ManagerError>,
}

type Answers = Vec<(Unit, Result<v1::ShowRegionResponse, ManagerError>)>;

/// Asks the chosen unit, or all that are known, what the region is; then the members that were not asked yet. Units that
/// don't answer keep nobody from being asked.
///
/// # Errors
/// Those of [`crate::config::Units::choose`] and [`Context::identity`]; what the only unit that was asked said; and
/// [`ManagerError::Usage`] if two spread regions have this name.
pub async fn seek(
    context: &Context,
    name: &RegionName,
    unit: Option<&PrincipalName>,
) -> Result<Sought, ManagerError> {
    let mut units = match unit {
        Some(unit) => vec![context.units.choose(Some(unit))?.clone()],
        None => context.chosen(&[])?,
    };
    if units.is_empty() {
        units.push(context.units.choose(None)?.clone());
    }
    let identity = context.identity()?;
    let mut answers = ask_each(units, &identity, context.timeout(), name).await;
    if let Some(membership) = newest(name, &answers)? {
        let asked: Vec<_> = answers.iter().map(|(unit, _)| unit.name.clone()).collect();
        let others = membership
            .members
            .iter()
            .filter(|member| !asked.contains(&member.unit))
            .map(|member| unit_of(context, member))
            .collect::<Result<Vec<_>, _>>()?;
        answers.extend(ask_each(others, &identity, context.timeout(), name).await);
        return Ok(Sought::Spread(Spread::new(name, membership, answers)?));
    }
    match <[_; 1]>::try_from(answers) {
        Ok([(unit, shown)]) => {
            let shown = Box::new(shown?);
            Ok(Sought::One { unit, shown })
        }
        Err(answers) => Err(not_one(name, answers)),
    }
}

/// Several units are known, and which one is meant nobody said.
fn not_one(name: &RegionName, answers: Answers) -> ManagerError {
    let mut holders = Vec::new();
    let mut silent = None;
    for (unit, shown) in answers {
        match shown {
            Ok(_) => holders.push(unit.name.to_string()),
            Err(error) if error.reason() == Some(Reason::NoSuchRegion) => {}
            Err(error) => silent = silent.or(Some(error)),
        }
    }
    match (holders.is_empty(), silent) {
        (false, _) => usage(format!(
            "which unit? --unit names it; a region {name} is on {}",
            holders.join(", ")
        )),
        // It may be there.
        (true, Some(error)) => error,
        (true, None) => ManagerError::NoSuchRegion {
            region: name.to_string(),
        },
    }
}

async fn ask_each(
    units: Vec<Unit>,
    identity: &Arc<Identity>,
    timeout: Duration,
    name: &RegionName,
) -> Answers {
    let results = on_each(units.clone(), |unit| {
        let (identity, name) = (identity.clone(), name.to_string());
        async move {
            let connection = Connection::open(&unit, &identity, timeout).await?;
            region::ask_show(&connection, timeout, &name).await
        }
    })
    .await;
    units.into_iter().zip(results).collect()
}

/// The list's address of a member; that of the membership for a unit that is not in the list.
fn unit_of(context: &Context, member: &Member) -> Result<Unit, ManagerError> {
    if let Ok(known) = context.units.choose(Some(&member.unit)) {
        return Ok(known.clone());
    }
    let name = member.unit.clone();
    Ok(Unit {
        address: member.address.parse()?,
        name,
    })
}

/// The membership of the highest generation among the answers.
fn newest(name: &RegionName, answers: &Answers) -> Result<Option<Membership>, ManagerError> {
    let found: Vec<_> = answers
        .iter()
        .filter_map(|(_, shown)| membership_of(shown.as_ref().ok()?))
        .collect();
    if let [first, others @ ..] = &*found
        && others.iter().any(|other| other.id != first.id)
    {
        return Err(usage(format!(
            "two spread regions are called {name}: --unit names a unit of the one that is meant"
        )));
    }
    Ok(found.into_iter().max_by_key(|found| found.generation))
}

impl Spread {
    fn new(
        name: &RegionName,
        membership: Membership,
        mut answers: Answers,
    ) -> Result<Self, ManagerError> {
        let layout = Layout::from_bytes(membership.layout).ok();
        let layout = layout.filter(|layout| layout.units() == membership.members.len());
        let layout = layout.ok_or_else(|| ManagerError::Answer {
            unit: membership.members[usize::from(membership.own_index)]
                .unit
                .to_string(),
            detail: "a membership with a layout that this version does not know",
        })?;
        let mut seats = Vec::with_capacity(membership.members.len());
        for member in &membership.members {
            let place = answers
                .iter()
                .position(|(unit, _)| unit.name == member.unit);
            seats.extend(place.map(|place| {
                let (unit, shown) = answers.swap_remove(place);
                Seat { unit, shown }
            }));
        }
        Ok(Self {
            name: name.to_string(),
            layout,
            membership,
            seats,
        })
    }

    fn state(&self, index: usize, seat: &Seat) -> &'static str {
        let shown = match &seat.shown {
            Ok(shown) => shown,
            Err(error) => return failure_state(error),
        };
        match membership_of(shown) {
            Some(own) if own.id == self.membership.id && usize::from(own.own_index) == index => {
                match own.generation.cmp(&self.membership.generation) {
                    std::cmp::Ordering::Less => OLDER,
                    std::cmp::Ordering::Greater => NEWER,
                    std::cmp::Ordering::Equal => {
                        words::state(shown.region.as_ref().map_or(0, |region| region.state))
                    }
                }
            }
            _ => "other region",
        }
    }

    /// What the unit that was named says, else the first member that has its part.
    ///
    /// # Errors
    /// [`ManagerError::Answer`] if none has.
    pub fn first_shown(
        &self,
        unit: Option<&PrincipalName>,
    ) -> Result<(&str, &v1::ShowRegionResponse), ManagerError> {
        let named = self
            .parts()
            .find(|(name, _)| unit.is_some_and(|unit| unit.as_str() == *name));
        named
            .or_else(|| self.parts().next())
            .ok_or_else(|| ManagerError::Answer {
                unit: self.seats[0].unit.name.to_string(),
                detail: "a membership in which nobody has its place",
            })
    }

    /// What the members know of scrubs by units themselves: that of the one which scrubs now, or did it last.
    pub fn newest_scrub(&self) -> Option<v1::RegionScrub> {
        let known = self.parts().filter_map(|(_, shown)| shown.scrub.as_ref());
        known
            // Where another one did it, that one has the details.
            .max_by_key(|scrub| (scrub.running, scrub.finished_s, scrub.bytes))
            .cloned()
    }

    /// The members' units.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.seats.iter().map(|seat| &seat.unit)
    }

    /// The members that have their part.
    fn parts(&self) -> impl Iterator<Item = (&str, &v1::ShowRegionResponse)> {
        let seats = self.seats.iter().enumerate();
        seats.filter_map(|(index, seat)| {
            let shown = seat.shown.as_ref().ok()?;
            let part = self.state(index, seat) != "other region";
            part.then_some((seat.unit.name.as_str(), shown))
        })
    }

    /// The region, member by member.
    pub fn report(&self) -> SpreadReport {
        let rings = self.parts().filter_map(|(_, shown)| {
            let region = shown.region.as_ref()?;
            let log = region.mode == i32::from(v1::Mode::Append);
            let geometry = LogGeometry::new(region.length_bytes).ok();
            geometry.filter(|_| log).map(|log| log.ring_bytes())
        });
        let ring_bytes = rings.min();
        let capacities = self.parts().filter_map(|(_, shown)| {
            let region = shown.region.as_ref()?;
            let bytes = self.membership.subsegment_bytes;
            spread::capacity_bytes(self.layout, region.capacity_bytes, bytes).ok()
        });
        let members: Vec<_> = self
            .seats
            .iter()
            .enumerate()
            .map(|(index, seat)| self.member_report(index, seat))
            .collect();
        let (active, too_few_to) = strength(&members, self.membership.units_min, self.layout);
        SpreadReport {
            active,
            too_few_to,
            region: self.name.clone(),
            spread_id: words::hex(&self.membership.id.0),
            layout: self.layout.to_string(),
            units_min: self.membership.units_min,
            generation: self.membership.generation,
            ring_bytes,
            capacity_bytes: capacities
                .min()
                .filter(|_| ring_bytes.is_none())
                .unwrap_or(0),
            subsegment_bytes: self.membership.subsegment_bytes,
            members,
        }
    }

    fn member_report(&self, index: usize, seat: &Seat) -> MemberReport {
        let state = self.state(index, seat);
        let shown = seat.shown.as_ref().ok();
        let part = shown.filter(|_| state != "other region");
        MemberReport {
            unit: seat.unit.name.to_string(),
            index,
            address: seat.unit.address.to_string(),
            state,
            epoch: part.and_then(|part| Some(part.region.as_ref()?.epoch)),
            writer: part
                .map(|part| part.writer.clone())
                .filter(|writer| !writer.is_empty()),
            error: seat.shown.as_ref().err().map(ManagerError::text),
        }
    }

    /// Which unit holds what of a set of `capacity_bytes`.
    ///
    /// # Errors
    /// [`ManagerError::Answer`] if the membership makes no sense.
    pub fn placement(
        &self,
        capacity_bytes: u64,
        groups_max: u64,
    ) -> Result<Vec<PlacementReport>, ManagerError> {
        let subsegment_bytes = self.membership.subsegment_bytes;
        let placement = Placement::new(self.layout, capacity_bytes, subsegment_bytes);
        let placement = placement.map_err(|_| ManagerError::Answer {
            unit: self.seats[0].unit.name.to_string(),
            detail: "a membership with subsegments that can't be",
        })?;
        let units = self.seats.iter().map(|seat| seat.unit.name.to_string());
        let units: Vec<_> = units.collect();
        Ok(spread::placement_report(&placement, &units, groups_max))
    }
}

fn failure_state(error: &ManagerError) -> &'static str {
    match (error.reason(), error.exit_code()) {
        (Some(Reason::NoSuchRegion), _) => MISSING,
        (_, exit::UNAVAILABLE) => "unreachable",
        _ => "failed",
    }
}

/// What is to be changed.
#[derive(Debug)]
pub enum Target {
    /// A region of one unit.
    One(Unit),
    /// All members.
    Spread(Spread),
}

/// What is done to members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Takes the right to write.
    Fence,
    /// Deletes; done where there is nothing.
    Delete,
    /// Gives or takes rights.
    Grant,
}

/// The unit that is named; else what [`seek`] finds.
///
/// # Errors
/// Those of [`seek`].
pub async fn target(
    context: &Context,
    name: &RegionName,
    unit: Option<&PrincipalName>,
) -> Result<Target, ManagerError> {
    if unit.is_some() {
        return Ok(Target::One(context.units.choose(unit)?.clone()));
    }
    Ok(match seek(context, name, None).await? {
        Sought::One { unit, .. } => Target::One(unit),
        Sought::Spread(spread) => Target::Spread(spread),
    })
}

impl Target {
    /// Whose region it is, for a question.
    pub fn units_text(&self) -> String {
        match self {
            Self::One(unit) => format!("unit {}", unit.name),
            Self::Spread(spread) => {
                let units = spread.seats.iter().map(|seat| seat.unit.name.as_str());
                format!("units {}", units.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Does `work` on the unit, or at once on all members that have their part.
    ///
    /// # Errors
    /// What fails on one unit. What fails at a member stands in the report.
    pub async fn change<T, W>(
        self,
        context: &Context,
        act: Act,
        work: impl Fn(Connection) -> W,
    ) -> Result<Changed<T>, ManagerError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, ManagerError>> + Send + 'static,
    {
        let spread = match self {
            Self::One(unit) => {
                let connection =
                    Connection::open(&unit, &*context.identity()?, context.timeout()).await?;
                return Ok(Changed::One(work(connection).await?));
            }
            Self::Spread(spread) => spread,
        };
        let (identity, timeout) = (context.identity()?, context.timeout());
        let mut parts = Vec::new();
        for (index, seat) in spread.seats.iter().enumerate() {
            if seat.shown.is_ok() && spread.state(index, seat) != "other region" {
                parts.push(seat.unit.clone());
            }
        }
        let opened = connect_each(&parts, &identity, timeout).await;
        let started: Vec<_> = opened
            .into_iter()
            .map(|opened| opened.map(|connection| tokio::spawn(work(connection))))
            .collect();
        let mut results = Vec::with_capacity(started.len());
        for task in started {
            results.push(match task {
                Ok(task) => task
                    .await
                    .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())),
                Err(error) => Err(error),
            });
        }
        Ok(Changed::Spread(spread.changed(act, &parts, results)))
    }
}

impl Spread {
    fn changed<T>(
        self,
        act: Act,
        parts: &[Unit],
        results: Vec<Result<T, ManagerError>>,
    ) -> SpreadChange<T> {
        let mut results = parts.iter().zip(results).peekable();
        let mut members = Vec::with_capacity(self.seats.len());
        for (index, seat) in self.seats.iter().enumerate() {
            let result = results.next_if(|(unit, _)| **unit == seat.unit);
            members.push(match result {
                Some((_, result)) => member_change(index, seat, act, result),
                None => self.untouched(index, seat, act),
            });
        }
        let done = members.iter().filter(|member| member.report.is_some());
        let done = done.count();
        let fence = (act == Act::Fence)
            .then(|| spread::fences_needed(self.layout, self.membership.units_min));
        let effective = fence.map(|needed| done >= needed);
        let exit_code = match effective {
            Some(true) => exit::DONE,
            _ => worst(&members),
        };
        SpreadChange {
            region: self.name.clone(),
            layout: self.layout.to_string(),
            units_min: self.membership.units_min,
            done,
            effective,
            needed: fence,
            members,
            exit_code,
        }
    }

    fn untouched<T>(&self, index: usize, seat: &Seat, act: Act) -> MemberChange<T> {
        match &seat.shown {
            Err(error) => failed_change(index, seat, act, error),
            Ok(_) => MemberChange {
                unit: seat.unit.name.to_string(),
                index,
                state: self.state(index, seat),
                report: None,
                error: Some("its region of this name is no part of this one".to_owned()),
                exit_code: exit::FAILED,
            },
        }
    }
}

fn member_change<T>(
    index: usize,
    seat: &Seat,
    act: Act,
    result: Result<T, ManagerError>,
) -> MemberChange<T> {
    match result {
        Ok(report) => MemberChange {
            unit: seat.unit.name.to_string(),
            index,
            state: "done",
            report: Some(report),
            error: None,
            exit_code: exit::DONE,
        },
        Err(error) => failed_change(index, seat, act, &error),
    }
}

fn failed_change<T>(index: usize, seat: &Seat, act: Act, error: &ManagerError) -> MemberChange<T> {
    let state = failure_state(error);
    let as_good_as_done = act == Act::Delete && state == MISSING;
    MemberChange {
        unit: seat.unit.name.to_string(),
        index,
        state,
        report: None,
        error: (!as_good_as_done).then(|| error.text()),
        exit_code: if as_good_as_done {
            exit::DONE
        } else {
            error.exit_code()
        },
    }
}

/// A refusal before a unit that can't be reached.
fn worst<T>(members: &[MemberChange<T>]) -> u8 {
    let codes = || members.iter().map(|member| member.exit_code);
    codes()
        .find(|code| *code != exit::DONE && *code != exit::UNAVAILABLE)
        .unwrap_or_else(|| codes().max().unwrap_or(exit::DONE))
}
