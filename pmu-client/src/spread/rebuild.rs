//! Rebuilds members of a spread region: puts a new unit in the place of another while checkpoints or records go on, or brings one up to date
//! that was away. It can be ended at any point and begun again: what is done is found done.
//!
//! **Replacing** is safe in this order. The new member is *being filled* (generation 0): nobody counts it. Then the new members are made
//! known to so many of the old ones that, of those which don't know, too few are left to commit and too few to decide: from then on what the
//! old members have committed is frozen. Only then is it read once more what that is, copied, and written into the new member's term
//! record; and only then does the new member get the generation of the others, and a vote.

use std::sync::Arc;

use pmu_core::spread::TooFewUnits;
use pmu_format::{LogPosition, Member, Membership, Mode, Need, SetNumber};
use pmu_proto::v1::SessionRole;

use crate::error::{ClientError, Result};
use crate::options::OpenOptions;
use crate::region::{Parts, RegionInfo};
use crate::spread::copy::{Course, OnProgress, RebuildProgress};
use crate::spread::filling::{Filling, Reading};
use crate::spread::log::Extent;
use crate::spread::{BEING_FILLED, MissingUnit, Reach, ReachedUnit, Spread, missing, too_few};

/// What only a manager may do, at a unit.
pub trait Administer: Send + Sync {
    /// Creates a member's region, which holds nothing. Durable when it returns.
    ///
    /// # Errors
    /// What the unit says: no room, no such durability, a region of this name.
    fn create_member(&self, member: &Member, new: &NewMember<'_>) -> Result<()>;

    /// Has the unit replace the membership that it keeps, if it is of the generation `expected`; ends all sessions on its region.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the reason `WRONG_GENERATION`: somebody else has changed it. Any other: it may have happened.
    fn set_membership(
        &self,
        member: &Member,
        region: &str,
        expected: u64,
        membership: &Membership,
    ) -> Result<()>;
}

/// A member's region to be made.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct NewMember<'a> {
    /// The region's name.
    pub region: &'a str,
    /// What the member keeps.
    pub membership: &'a Membership,
    /// How it keeps what is written.
    pub mode: Mode,
    /// What it demands of the medium.
    pub need: Need,
    /// Sets that are kept.
    pub sets_kept: u32,
    /// The largest payload of a member's set; 0 in a log.
    pub capacity_bytes: u64,
    /// The length of a member.
    pub length_bytes: u64,
}

/// Which member is replaced, and by whom.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// The one that goes: its unit's name.
    pub old: String,
    /// Where it listens, if that is known: it is told of the change too, if it answers, also where an earlier call was cut short.
    pub old_address: Option<String>,
    /// The one that comes.
    pub new: Member,
    /// The old unit is destroyed, and never answers anybody again. Needed only where so many members are away that they might take it for
    /// one of them.
    pub old_is_lost: bool,
}

impl Replacement {
    fn old_member(&self) -> Result<Option<Member>> {
        let Some(address) = &self.old_address else {
            return Ok(None);
        };
        let unit = pmu_format::PrincipalName::new(&self.old)
            .map_err(|error| ClientError::Invalid(error.to_string()))?;
        Ok(Some(Member {
            unit,
            address: address.clone(),
        }))
    }
}

/// How a rebuild works.
pub struct RebuildOptions<'a> {
    /// How members are opened.
    pub open: OpenOptions,
    /// Bytes written in a second, at most.
    pub rate_bytes_per_s: Option<u64>,
    /// Who is told of progress.
    pub on_progress: &'a mut OnProgress<'a>,
}

impl std::fmt::Debug for RebuildOptions<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RebuildOptions")
            .field("open", &self.open)
            .field("rate_bytes_per_s", &self.rate_bytes_per_s)
            .finish_non_exhaustive()
    }
}

/// What a rebuild did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rebuilt {
    /// The generation of the members now.
    pub generation: u64,
    /// The units that were given something, and how much.
    pub units: Vec<RebuiltUnit>,
    /// Members that did not answer, or could not be brought up to date.
    pub missing: Vec<MissingUnit>,
    /// Bytes that were read of the members, over their data connections: of shares, and what tells where they are. Those of units that were given
    /// up meanwhile are not counted.
    pub bytes_read: u64,
}

/// What one unit was given.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct RebuiltUnit {
    /// The unit.
    pub unit: String,
    /// Sets of which it was given its share.
    pub sets: u32,
    /// Bytes of them.
    pub bytes: u64,
    /// The newest set that it holds.
    pub newest_set: u64,
    /// Of a log: the records of which it was given its shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
    /// Of a log: up to where it has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_end: Option<u64>,
}

/// A rebuild of one region.
pub(super) struct Work<'a, 'b> {
    name: Arc<str>,
    info: &'a RegionInfo,
    reach: Arc<dyn Reach>,
    admin: &'a dyn Administer,
    options: RebuildOptions<'b>,
    progress: RebuildProgress,
}

/// Puts a unit in the place of another. `info` is what any member says of the region. Blocks as long as it takes.
///
/// # Errors
/// [`ClientError::Invalid`]: not possible, and why. [`ClientError::TooFewUnits`]: names the units that would help.
/// [`ClientError::Refused`] with `WRONG_GENERATION`: another manager changes the members. [`ClientError::WriterExists`]: another one fills
/// the new unit. [`ClientError::Interrupted`]. After any of them it can be called again, and goes on where it was.
pub fn replace(
    info: &RegionInfo,
    reach: Arc<dyn Reach>,
    admin: &dyn Administer,
    replacement: &Replacement,
    options: RebuildOptions<'_>,
) -> Result<Rebuilt> {
    let mut work = Work::new(info, reach, admin, options);
    let mut spread = work.look()?;
    let mut plan = Plan::of(&spread, replacement)?;
    if !plan.begun {
        // One that was begun tells the unit that leaves before the others.
        spread = work.with_news(spread)?;
        plan = Plan::of(&spread, replacement)?;
    }
    match work.carry_out(&spread, &plan) {
        // Another manager's change ends all sessions: that is the reason then.
        Err(error) if !matches!(error, ClientError::Interrupted | ClientError::Invalid(_)) => {
            let changed = work.conflict(&spread, &plan);
            Err(changed.unwrap_or(error))
        }
        done => done,
    }
}

/// Brings members up to date that were away, or that don't know who the others are now: with what they lack, and no more. All, or only the
/// one that is named.
///
/// A live primary goes on meanwhile without the unit that is worked on, if it has enough others, and takes it back with
/// [`crate::SpreadPrimary::rejoin`].
///
/// # Errors
/// As [`replace`].
pub fn rebuild(
    info: &RegionInfo,
    reach: Arc<dyn Reach>,
    admin: &dyn Administer,
    unit: Option<&str>,
    options: RebuildOptions<'_>,
) -> Result<Rebuilt> {
    let mut work = Work::new(info, reach, admin, options);
    work.bring_up_to_date(unit)
}

/// What is to be done.
struct Plan {
    /// The place that changes hands.
    index: usize,
    /// Who leaves it, if that is known.
    old: Option<Member>,
    /// Whether some units know of it already.
    begun: bool,
    /// The members as they will be.
    next: Membership,
    old_is_lost: bool,
}

impl Plan {
    fn of(spread: &Spread, replacement: &Replacement) -> Result<Self> {
        let members = &spread.membership.members;
        let place = |unit: &str| {
            members
                .iter()
                .position(|member| member.unit.as_str() == unit)
        };
        let new = replacement.new.unit.as_str();
        let mut next = spread.membership.as_ref().clone();
        let invalid = |what: String| Err(ClientError::Invalid(what));
        match (place(&replacement.old), place(new)) {
            (Some(_), Some(_)) => invalid(format!("unit {new} is a member already")),
            (Some(index), None) => {
                next.generation += 1;
                let old = Some(std::mem::replace(
                    &mut next.members[index],
                    replacement.new.clone(),
                ));
                Ok(Self {
                    index,
                    old,
                    begun: false,
                    next,
                    old_is_lost: replacement.old_is_lost,
                })
            }
            // It was begun before.
            (None, Some(index)) => Ok(Self {
                index,
                old: replacement.old_member()?,
                begun: true,
                next,
                old_is_lost: replacement.old_is_lost,
            }),
            (None, None) => {
                let names: Vec<_> = members.iter().map(|member| member.unit.as_str()).collect();
                invalid(format!(
                    "unit {} is not a member of region {}; its members are {}",
                    replacement.old,
                    spread.name,
                    names.join(", ")
                ))
            }
        }
    }

    fn member(&self) -> &Member {
        &self.next.members[self.index]
    }

    /// What the member of a place keeps.
    fn membership_of(&self, index: usize) -> Membership {
        Membership {
            own_index: u8::try_from(index).unwrap_or(u8::MAX),
            ..self.next.clone()
        }
    }
}

/// What a unit says of its region.
enum Known {
    /// It knows the members as they will be.
    Changed,
    /// It knows those of an earlier generation.
    Earlier(u64),
    /// It can't be asked, or can't be counted.
    Missing(MissingUnit),
}

impl<'a, 'b> Work<'a, 'b> {
    pub(super) fn new(
        info: &'a RegionInfo,
        reach: Arc<dyn Reach>,
        admin: &'a dyn Administer,
        options: RebuildOptions<'b>,
    ) -> Self {
        Self {
            name: Arc::clone(&info.name),
            info,
            reach,
            admin,
            options,
            progress: RebuildProgress {
                set: SetNumber(0),
                position: LogPosition(0),
                bytes_done: 0,
                bytes_total: 0,
            },
        }
    }

    pub(super) fn look(&self) -> Result<Spread> {
        Spread::over(self.info, Arc::clone(&self.reach))
    }

    pub(super) fn course(&mut self) -> Course<'_, 'b> {
        Course {
            spread_reach: self.reach.as_ref(),
            rate_bytes_per_s: self.options.rate_bytes_per_s,
            report: self.options.on_progress,
            progress: self.progress,
        }
    }

    fn fill(
        &mut self,
        (filling, reading): (&mut Filling, &mut Reading<'_>),
        extent: Extent,
        given: &mut RebuiltUnit,
    ) -> Result<()> {
        let mut course = self.course();
        let filled = filling.fill(reading, extent, &mut course, given);
        self.progress = course.progress;
        filled
    }

    fn carry_out(&mut self, spread: &Spread, plan: &Plan) -> Result<Rebuilt> {
        let mut done = Rebuilt {
            generation: plan.next.generation,
            ..Rebuilt::default()
        };
        if self.prepare(spread, plan)? {
            done.missing = self.switch(spread, plan)?;
            return Ok(done);
        }
        // Nothing is begun that can't be ended: before anything is copied.
        self.check_reachable(spread, plan)?;
        let mut filling = self.open_filling(plan.member(), plan.index, &plan.next)?;
        let mut given = given(plan.member());
        let open = self.options.open;
        let mut is_filled = false;
        if !plan.begun {
            let mut reading = Reading::open(spread, &open)?;
            self.fill((&mut filling, &mut reading), Extent::New, &mut given)?;
            done.bytes_read += reading.bytes_read();
            is_filled = true;
        }
        done.missing = self.switch(spread, plan)?;
        let changed = self.look()?;
        let mut reading = Reading::open(&changed, &open)?;
        let old = self.open_old(plan);
        let quorum = changed.quorum;
        let mut needed = quorum.units_min().max(quorum.units_to_decide());
        match old {
            Some(old) => reading.put_in_place(plan.index, old),
            None if plan.old_is_lost => needed = needed.min(quorum.members() - 1),
            None => {}
        }
        reading.demand(needed)?;
        if !(is_filled && is_stale_planted(self.info.mode)) {
            self.fill((&mut filling, &mut reading), Extent::New, &mut given)?;
        }
        filling.take_part(plan.next.generation, &reading)?;
        done.bytes_read += reading.bytes_read();
        // Its sessions end with its being filled.
        drop(filling);
        let own = plan.membership_of(plan.index);
        self.admin
            .set_membership(plan.member(), &self.name, BEING_FILLED, &own)?;
        done.units.push(given);
        Ok(done)
    }

    /// Makes the new member's region, or finds the one that was begun; true if it is filled already.
    fn prepare(&self, spread: &Spread, plan: &Plan) -> Result<bool> {
        let member = plan.member();
        let unit = self.reach.unit(member)?;
        let found = match unit.describe(&self.name) {
            Ok(found) => found,
            Err(ClientError::NoSuchRegion { .. }) => {
                let membership = Membership {
                    generation: BEING_FILLED,
                    ..plan.membership_of(plan.index)
                };
                let new = NewMember {
                    region: &self.name,
                    membership: &membership,
                    mode: self.info.mode,
                    need: self.info.need,
                    sets_kept: self.info.sets_kept,
                    capacity_bytes: self.info.capacity_bytes,
                    length_bytes: self.info.length_bytes,
                };
                self.admin.create_member(member, &new)?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.check_found(spread, plan, &found)
    }

    /// Whether a region of this name on the new unit is the one that was begun.
    fn check_found(&self, spread: &Spread, plan: &Plan, found: &RegionInfo) -> Result<bool> {
        let (name, unit) = (&self.name, &plan.member().unit);
        let no = |what: &str| {
            Err(ClientError::Invalid(format!(
                "unit {unit} holds a region {name} that {what}: delete it there (pmm region delete {name} --unit {unit}), or take another unit"
            )))
        };
        let Some(membership) = &found.membership else {
            return no("is not spread over several units");
        };
        if membership.id != spread.membership.id {
            return no("belongs to another spread region");
        }
        if usize::from(membership.own_index) != plan.index
            || membership.members.get(plan.index) != Some(plan.member())
        {
            return no("had another place in this one");
        }
        if membership.generation != BEING_FILLED
            && (!plan.begun || membership.generation != plan.next.generation)
        {
            return no("was a part of this one at an earlier time");
        }
        let (new, old) = (found, self.info);
        if new.mode != old.mode {
            return no("is of the other mode");
        }
        let size = |info: &RegionInfo| match info.mode {
            Mode::Overwrite => (info.capacity_bytes, info.sets_kept),
            Mode::Append => (info.length_bytes, 0),
        };
        if size(new) != size(old) {
            return no("is of another size");
        }
        Ok(membership.generation == plan.next.generation)
    }

    /// Opens a member for writing what it lacks. Nobody else writes it as long as that lasts.
    fn open_filling(&self, member: &Member, index: usize, next: &Membership) -> Result<Filling> {
        let unit = self.reach.unit(member)?;
        let (mode, options) = (self.info.mode, &self.options.open);
        let open = |role| unit.open(&self.name, role, mode, options);
        match mode {
            Mode::Overwrite => {
                let checked = open(SessionRole::Primary)?;
                Filling::of_sets(checked, open(SessionRole::Backup)?, index, next)
            }
            Mode::Append => Filling::of_log(open(SessionRole::Primary)?, index, next),
        }
    }

    /// The member that leaves, if it answers: what was committed last may lie on so few units that it is needed.
    fn open_old(&self, plan: &Plan) -> Option<Parts> {
        let unit = self.reach.unit(plan.old.as_ref()?).ok()?;
        let info = unit.describe(&self.name).ok()?;
        info.membership
            .filter(|found| found.id == plan.next.id && found.generation > BEING_FILLED)?;
        let (name, options) = (&self.name, &self.options.open);
        let parts = match self.info.mode {
            Mode::Overwrite => unit.open(name, SessionRole::Backup, Mode::Overwrite, options),
            Mode::Append => unit.open_log_backup(name, false, options),
        };
        parts.ok()
    }

    /// Who, beside the new one, has a place: the one that leaves, and the other members. In this order they are told: what is committed
    /// before all of them know lies on members that stay.
    fn others<'c>(&self, plan: &'c Plan) -> Vec<(bool, usize, &'c Member)> {
        let old = plan.old.iter().map(|old| (false, plan.index, old));
        let members = plan.next.members.iter().enumerate();
        let staying = members
            .filter(|(index, _)| *index != plan.index)
            .map(|(index, member)| (true, index, member));
        old.chain(staying).collect()
    }

    fn known(&self, spread: &Spread, plan: &Plan, member: &Member) -> Result<Known> {
        let asked = self
            .reach
            .unit(member)
            .and_then(|unit| unit.describe(&self.name));
        let info = match asked {
            Ok(info) => info,
            Err(error @ ClientError::NoGrant { .. }) => return Err(error),
            Err(error) => return Ok(Known::Missing(missing(member, &error))),
        };
        let found = info
            .membership
            .filter(|found| found.id == spread.membership.id);
        let Some(found) = found else {
            let error = ClientError::Protocol("its region of this name is another one".into());
            return Ok(Known::Missing(missing(member, &error)));
        };
        if found.generation == BEING_FILLED {
            let error = ClientError::Protocol("it is being filled, and is no member yet".into());
            return Ok(Known::Missing(missing(member, &error)));
        }
        if found.generation < plan.next.generation {
            return Ok(Known::Earlier(found.generation));
        }
        if found.generation == plan.next.generation && found.members == plan.next.members {
            return Ok(Known::Changed);
        }
        let names: Vec<_> = found
            .members
            .iter()
            .map(|member| member.unit.as_str())
            .collect();
        Err(ClientError::Invalid(format!(
            "another manager changes the members of region {}: on unit {} they are {} (generation {}); end one of both, and begin again",
            self.name,
            member.unit,
            names.join(", "),
            found.generation
        )))
    }

    /// Whether enough units answer that the members can be changed for good.
    fn check_reachable(&self, spread: &Spread, plan: &Plan) -> Result<()> {
        let mut count = Count::default();
        for (stays, _, member) in self.others(plan) {
            let known = self.known(spread, plan, member)?;
            count.add(stays, known);
        }
        count.check(spread, plan)
    }

    /// What tells that somebody else changes the members.
    fn conflict(&self, spread: &Spread, plan: &Plan) -> Option<ClientError> {
        let others = self.others(plan).into_iter();
        let mut known = others.map(|(_, _, member)| self.known(spread, plan, member));
        known.find_map(|known| match known {
            Err(error @ ClientError::Invalid(_)) => Some(error),
            _ => None,
        })
    }

    /// Makes the new members known to all others that answer. Ends every writer of the old ones there.
    fn switch(&self, spread: &Spread, plan: &Plan) -> Result<Vec<MissingUnit>> {
        self.check_reachable(spread, plan)?;
        let mut count = Count::default();
        for (stays, index, member) in self.others(plan) {
            let mut known = self.known(spread, plan, member)?;
            if let Known::Earlier(expected) = known {
                let own = plan.membership_of(index);
                let set = self
                    .admin
                    .set_membership(member, &self.name, expected, &own);
                known = match set {
                    Ok(()) => Known::Changed,
                    Err(error @ ClientError::Refused { .. }) => return Err(error),
                    Err(error) => Known::Missing(missing(member, &error)),
                };
            }
            count.add(stays, known);
        }
        count.check(spread, plan)?;
        Ok(count.missing)
    }

    fn bring_up_to_date(&mut self, unit: Option<&str>) -> Result<Rebuilt> {
        let spread = self.with_news(self.look()?)?;
        let members = &spread.membership.members;
        if let Some(unit) = unit
            && !members.iter().any(|member| member.unit.as_str() == unit)
        {
            let what = format!("unit {unit} is not a member of region {}", self.name);
            return Err(ClientError::Invalid(what));
        }
        let mut done = Rebuilt {
            generation: spread.membership.generation,
            ..Rebuilt::default()
        };
        for (index, member) in spread.membership.members.iter().enumerate() {
            if unit.is_some_and(|unit| unit != member.unit.as_str()) {
                continue;
            }
            match &spread.units[index] {
                Err(missing) => done.missing.push(missing.clone()),
                Ok(reached) => match self.repair(&spread, index, reached.as_ref(), false) {
                    Ok(given) => done.units.extend(given),
                    Err(
                        error @ (ClientError::WriterExists { .. }
                        | ClientError::ConnectionLost { .. }
                        | ClientError::Damaged { .. }),
                    ) => done.missing.push(missing(member, &error)),
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(done)
    }

    /// Members of an earlier generation learn who the others are now: what they hold may be needed.
    fn with_news(&self, spread: Spread) -> Result<Spread> {
        if !spread.has_untold() {
            return Ok(spread);
        }
        self.spread_news(&spread)?;
        self.look()
    }

    fn spread_news(&self, spread: &Spread) -> Result<()> {
        let plan = Plan {
            index: usize::MAX,
            old: None,
            begun: true,
            next: spread.membership.as_ref().clone(),
            old_is_lost: false,
        };
        for (index, member) in plan.next.members.iter().enumerate() {
            if let Known::Earlier(expected) = self.known(spread, &plan, member)? {
                let own = plan.membership_of(index);
                self.admin
                    .set_membership(member, &self.name, expected, &own)?;
            }
        }
        Ok(())
    }

    /// Gives a member what it lacks; none if it lacks nothing. Whether its chunks are right is looked at only if one is known to be torn, or
    /// something else is lacking.
    pub(super) fn repair(
        &mut self,
        spread: &Spread,
        index: usize,
        unit: &dyn ReachedUnit,
        is_torn: bool,
    ) -> Result<Option<RebuiltUnit>> {
        let member = &spread.membership.members[index];
        let mut reading = Reading::open(spread, &self.options.open)?;
        if !is_torn && !reading.lags(index)? {
            return Ok(None);
        }
        self.take_away(spread, index, unit)?;
        reading.spare(index);
        let mut filling = self.open_filling(member, index, &spread.membership)?;
        let mut given = given(member);
        let extent = if is_torn {
            Extent::Whole
        } else {
            Extent::Missed
        };
        self.fill((&mut filling, &mut reading), extent, &mut given)?;
        filling.take_part(spread.membership.generation, &reading)?;
        Ok(Some(given))
    }

    /// Takes one member away from a live primary, which goes on with the others if it has enough of them.
    fn take_away(&self, spread: &Spread, index: usize, unit: &dyn ReachedUnit) -> Result<()> {
        let writer = unit.describe(&self.name)?.writer;
        let Some(writer) = writer else {
            return Ok(());
        };
        let others = spread.units.iter().enumerate().filter(|(other, unit)| {
            let written = |unit: &dyn ReachedUnit| {
                let info = unit.describe(&self.name);
                info.is_ok_and(|info| info.writer.as_ref() == Some(&writer))
            };
            *other != index && unit.as_ref().is_ok_and(|unit| written(unit.as_ref()))
        });
        if spread.quorum.check_commit(others.count()).is_err() {
            return Err(ClientError::WriterExists {
                region: self.name.as_ref().into(),
                reason: format!(
                    "{writer} writes it, and has too few other units to go on without it: end that program first, or bring the others back"
                ),
            });
        }
        unit.fence(&self.name).map(drop)
    }
}

#[cfg(feature = "planted-bugs")]
fn is_stale_planted(mode: Mode) -> bool {
    use pmu_format::planted::{Bug, is_planted};
    is_planted(match mode {
        Mode::Overwrite => Bug::StaleRebuild,
        Mode::Append => Bug::StaleLogRebuild,
    })
}

#[cfg(not(feature = "planted-bugs"))]
const fn is_stale_planted(_: Mode) -> bool {
    false
}

fn given(member: &Member) -> RebuiltUnit {
    RebuiltUnit {
        unit: member.unit.to_string(),
        sets: 0,
        bytes: 0,
        newest_set: 0,
        records: None,
        log_end: None,
    }
}

/// How many units know of a change, or could be told.
#[derive(Default)]
struct Count {
    /// Of the members that stay.
    staying: usize,
    /// The one that leaves, too.
    all: usize,
    missing: Vec<MissingUnit>,
}

impl Count {
    fn add(&mut self, stays: bool, known: Known) {
        match known {
            Known::Missing(missing) => self.missing.push(missing),
            Known::Changed | Known::Earlier(_) => {
                self.all += 1;
                self.staying += usize::from(stays);
            }
        }
    }

    /// Of the units that don't know, too few must be left to commit, and too few to decide; and of those that stay, enough to decide.
    fn check(&self, spread: &Spread, plan: &Plan) -> Result<()> {
        let quorum = spread.quorum;
        let lost = usize::from(plan.old_is_lost && self.all == self.staying);
        let (decide, commit) = (quorum.units_to_decide(), quorum.units_min());
        let members = plan.next.members.len();
        let short = |reached, needed| TooFewUnits {
            reached,
            members,
            needed,
            purpose: "change the members",
        };
        let error = if self.staying < decide {
            short(self.staying, decide)
        } else if self.all + lost < commit.max(decide) {
            short(self.all + lost, commit.max(decide))
        } else {
            return Ok(());
        };
        Err(too_few(&spread.name, error, &self.missing))
    }
}
