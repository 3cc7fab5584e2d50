//! Checkpoints spread over several units: mirrored, striped, parity- or erasure-coded.
//!
//! A spread region is a region of the same name on each of its units; each knows the others. A set is cut into subsegments and redundancy
//! groups (`pmu-stripe`), and each unit gets its share of every group. A set counts when enough units have made their shares durable *and*
//! have published it, in two steps (`pmu_core::spread`): a writer that dies between two units leaves the last set as it was, and no mixture.
//!
//! [`SpreadPrimary`] goes on while units fail, down to the region's minimum; receipts name the units that hold the set. [`SpreadReader`]
//! reconstructs what missing units held. A unit that returns is taken back by itself ([`crate::OpenOptions::rejoin`]): it gets whole sets
//! again from the next commit on, and is never believed for what it missed.

mod assembly;
mod change;
mod copies;
mod copy;
mod fence;
mod filling;
mod lane;
mod log;
mod primary;
mod put;
mod reach;
mod reader;
pub mod rebuild;
mod rejoin;
mod returns;
pub mod scrub;
mod share;
mod source;
mod stretch;
mod term;
mod window;

use std::sync::Arc;

use parking_lot::Mutex;
use pmu_auth::Identity;
use pmu_core::spread::{Quorum, Stand, TooFewUnits};
use pmu_format::{Epoch, LogGeometry, Member, Membership, Mode, SHARE_TRAILER_BYTES, Term};
use pmu_proto::v1::SessionRole;
use pmu_stripe::{Layout, Placement};

pub use copy::{OnProgress, RebuildProgress};
pub use log::{SpreadLogBackup, SpreadLogPrimary, SpreadLogTakeover};
pub use primary::{SpreadPrimary, SpreadTakeover};
pub use put::SpreadPut;
pub use reach::{Network, Reach, ReachedUnit};
pub use reader::{SpreadRead, SpreadReader, SpreadSet};
pub(crate) use term::TermDesk;

use crate::agent::{Epochs, Expected};
use crate::error::{ClientError, Result};
use crate::options::{ConnectOptions, OpenOptions};
use crate::region::{Parts, Region, RegionInfo};
use crate::unit::{FenceReport, Unit};

/// The length of what stands behind a share.
pub(crate) const TRAILER_BYTES: u64 = SHARE_TRAILER_BYTES as u64;

/// How often a change of members is followed, at most.
const GENERATIONS_MAX: u32 = 16;

/// The generation of a member that is being filled: nobody counts it before it is given that of the others.
pub(crate) const BEING_FILLED: u64 = 0;

fn generation(info: &RegionInfo) -> u64 {
    let membership = info.membership.as_ref();
    membership.map_or(BEING_FILLED, |membership| membership.generation)
}

/// A unit that can't be used now, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingUnit {
    /// The unit's name.
    pub unit: Arc<str>,
    /// In a sentence.
    pub reason: String,
}

/// What a fence over several units did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpreadFence {
    /// The units that fenced their members, and what each said.
    pub fenced: Vec<(Arc<str>, FenceReport)>,
    /// The others.
    pub missing: Vec<MissingUnit>,
}

/// What a primary goes on from, as its units grant it their members again.
#[doc(hidden)]
#[derive(Debug)]
pub struct GoingOn {
    region: Arc<str>,
    epochs: Arc<Epochs>,
    told: u64,
}

impl GoingOn {
    /// All of it, if it was raised since this was called last.
    pub fn news(&mut self) -> Option<Vec<(Arc<str>, Epoch)>> {
        let raised = self.epochs.raised();
        (std::mem::replace(&mut self.told, raised) != raised).then(|| self.all())
    }

    /// All of it.
    #[must_use]
    pub fn all(&self) -> Vec<(Arc<str>, Epoch)> {
        self.epochs.of_region(&self.region).unwrap_or_default()
    }
}

/// A spread region and the way to its units. Any thread.
pub struct Spread {
    name: Arc<str>,
    membership: Arc<Membership>,
    layout: Layout,
    quorum: Quorum,
    mode: Mode,
    /// Overwrite mode: the longest payload of a member's set. Append mode: the length of a member.
    share_capacity_bytes: u64,
    /// Sets that each member keeps.
    sets_kept: u32,
    reach: Arc<dyn Reach>,
    units: Vec<std::result::Result<Box<dyn ReachedUnit>, MissingUnit>>,
    /// Members that answer, and were not told yet who the others are now: nobody counts them, but what they hold may be read.
    untold: Vec<Option<Box<dyn ReachedUnit>>>,
    /// What this process goes on from.
    epochs: Arc<Epochs>,
}

impl std::fmt::Debug for Spread {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Spread")
            .field("name", &self.name)
            .field("layout", &self.layout)
            .field("members", &self.membership.members)
            .finish_non_exhaustive()
    }
}

impl Spread {
    /// Finds a spread region through any of its units (`host:port`), and connects to all that answer. `options.unit_name` is not used:
    /// each unit must be the one that the membership names.
    ///
    /// Blocks for one connection after the other to `seeds` until one knows the region, then for all members at once.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRegion`] or what the last seed said; [`ClientError::Invalid`] for a region that isn't spread, or no seed.
    pub fn find(
        seeds: &[&str],
        region: &str,
        identity: &Identity,
        options: &ConnectOptions,
    ) -> Result<Self> {
        let described = seeds.iter().map(|seed| {
            Unit::connect(seed, identity, options).and_then(|unit| unit.describe(region))
        });
        Self::through(described, Arc::new(Network::new(identity, options)))
    }

    /// The same from what units say of the region, one after the other until so many of its members answer that they can decide. A unit that
    /// was replaced long ago, or is being filled, may know too few who are left.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn through(
        described: impl IntoIterator<Item = Result<RegionInfo>>,
        reach: Arc<dyn Reach>,
    ) -> Result<Self> {
        let mut found = Err(ClientError::Invalid("no unit was named".into()));
        for info in described {
            let spread = match info.and_then(|info| Self::over_or_other(&info, &reach)) {
                Ok(spread) => spread?,
                Err(error) => {
                    // One that holds the region says more than one that doesn't.
                    found = found.map_err(|before| match (&before, &error) {
                        (ClientError::Invalid(_), _) => error,
                        (_, ClientError::NoSuchRegion { .. }) => before,
                        _ => error,
                    });
                    continue;
                }
            };
            let answering = spread.units.iter().flatten().count();
            if spread.quorum.check_decide(answering).is_ok() {
                return Ok(spread);
            }
            found = found.or(Ok(spread));
        }
        found
    }

    /// The inner error: this is another kind of region, whoever else is asked.
    fn over_or_other(info: &RegionInfo, reach: &Arc<dyn Reach>) -> Result<Result<Self>> {
        match Self::over(info, Arc::clone(reach)) {
            Err(error @ ClientError::Invalid(_)) => Ok(Err(error)),
            found => found.map(Ok),
        }
    }

    /// The same from a member that was described before.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if it is no member; [`ClientError::Protocol`] for a layout that this version doesn't know.
    pub fn of(info: &RegionInfo, identity: &Identity, options: &ConnectOptions) -> Result<Self> {
        Self::over(info, Arc::new(Network::new(identity, options)))
    }

    /// The same on any way to the units. The members are those of the highest generation that any of them knows; one of an older
    /// generation is missing until it learns of the change.
    ///
    /// # Errors
    /// As [`Self::of`]; [`ClientError::TooFewUnits`] if only a unit answers that is being filled and no member yet.
    pub fn over(info: &RegionInfo, reach: Arc<dyn Reach>) -> Result<Self> {
        let mut info = info.clone();
        for _ in 0..GENERATIONS_MAX {
            let mut spread = Self::unconnected(&info, Arc::clone(&reach))?;
            match spread.connect_all() {
                Some(later) => info = later,
                None if spread.membership.generation == BEING_FILLED => {
                    let enough = spread.quorum.check_decide(0);
                    return Err(enough.map_or_else(
                        |what| spread.too_few(what, spread.missing()),
                        |()| ClientError::Protocol("a region without members".into()),
                    ));
                }
                None => return Ok(spread),
            }
        }
        let what = format!("region {}: its members change all the time", info.name);
        Err(ClientError::Protocol(what))
    }

    fn unconnected(info: &RegionInfo, reach: Arc<dyn Reach>) -> Result<Self> {
        let wrong =
            |what: &str| ClientError::Protocol(format!("spread region {}: {what}", info.name));
        let membership = info.membership.clone().ok_or_else(|| {
            ClientError::Invalid(format!(
                "region {} is not spread over several units",
                info.name
            ))
        })?;
        let layout =
            Layout::from_bytes(membership.layout).map_err(|error| wrong(&error.to_string()))?;
        if layout.units() != membership.members.len() {
            return Err(wrong("its layout is for another number of units"));
        }
        let share_capacity_bytes =
            member_room(info).ok_or_else(|| wrong("its members are too small"))?;
        Placement::new(layout, 0, membership.subsegment_bytes)
            .map_err(|error| wrong(&error.to_string()))?;
        let quorum = Quorum::new(
            layout.units(),
            membership.units_min.into(),
            layout.data_shards(),
        );
        Ok(Self {
            name: Arc::clone(&info.name),
            layout,
            quorum,
            mode: info.mode,
            share_capacity_bytes,
            sets_kept: info.sets_kept,
            reach,
            units: Vec::new(),
            untold: Vec::new(),
            epochs: Epochs::of_process(),
            membership,
        })
    }

    /// Connects to all members. Gives what one says that knows of a later generation.
    fn connect_all(&mut self) -> Option<RegionInfo> {
        let described = self.on_each(|member, _| self.describe(member));
        let later = described.iter().flatten().map(|(_, info)| info);
        let later = later
            .filter(|info| self.is_earlier_than(info))
            .max_by_key(|info| generation(info));
        if let Some(later) = later {
            return Some(later.clone());
        }
        let membership = Arc::clone(&self.membership);
        for (member, described) in membership.members.iter().zip(described) {
            let (unit, untold) = match described {
                Err(error) => (Err(missing(member, &error)), None),
                Ok((unit, info)) => match self.check_member(member, &info) {
                    Ok(()) => (Ok(unit), None),
                    Err(error) => (
                        Err(missing(member, &error)),
                        self.is_untold(member, &info).then_some(unit),
                    ),
                },
            };
            self.units.push(unit);
            self.untold.push(untold);
        }
        None
    }

    /// Whether a unit has the place of a member, and knows who the others were before.
    fn is_untold(&self, member: &Member, info: &RegionInfo) -> bool {
        let Some(found) = &info.membership else {
            return false;
        };
        let place = usize::from(found.own_index);
        let has_place = |members: &[Member]| members.get(place) == Some(member);
        found.id == self.membership.id
            && (BEING_FILLED + 1..self.membership.generation).contains(&found.generation)
            && has_place(&found.members)
            && has_place(&self.membership.members)
            && info.mode == self.mode
            && member_room(info) == Some(self.share_capacity_bytes)
    }

    /// Whether members answer that were not told yet who the others are now.
    fn has_untold(&self) -> bool {
        self.untold.iter().any(Option::is_some)
    }

    fn is_earlier_than(&self, info: &RegionInfo) -> bool {
        info.membership.as_ref().is_some_and(|found| {
            found.id == self.membership.id && found.generation > self.membership.generation
        })
    }

    fn describe(&self, member: &Member) -> Result<(Box<dyn ReachedUnit>, RegionInfo)> {
        let unit = self.reach.unit(member)?;
        let info = unit.describe(&self.name)?;
        Ok((unit, info))
    }

    fn connect(&self, member: &Member) -> std::result::Result<Box<dyn ReachedUnit>, MissingUnit> {
        let known = self.describe(member).and_then(|(unit, info)| {
            self.check_member(member, &info)?;
            Ok(unit)
        });
        known.map_err(|error| missing(member, &error))
    }

    /// Whether a unit's region is the member that it should be.
    fn check_member(&self, member: &Member, info: &RegionInfo) -> Result<()> {
        let wrong = |what: &str| Err(ClientError::Protocol(what.to_owned()));
        let Some(found) = &info.membership else {
            return wrong("its region of this name is not spread");
        };
        let own = &self.membership.members;
        if found.id != self.membership.id {
            return wrong("its region of this name is a part of another spread region");
        }
        if found.generation == BEING_FILLED {
            return wrong("it is being filled, and is no member yet");
        }
        if found.generation != self.membership.generation {
            return Err(ClientError::Protocol(format!(
                "it knows the members of generation {}, not of {}",
                found.generation, self.membership.generation
            )));
        }
        if own.get(usize::from(found.own_index)) != Some(member) || found.members != *own {
            return wrong("it knows other members");
        }
        if info.mode != self.mode {
            return wrong("its region is of the other mode");
        }
        if member_room(info) != Some(self.share_capacity_bytes) {
            return wrong("its region is of another size");
        }
        Ok(())
    }

    /// Whether what was opened is still a member of this generation: the members may have changed since it was described.
    fn check_opened(&self, parts: &Parts) -> Result<()> {
        self.check_member(self.member_of(parts)?, &parts.info)
    }

    fn member_of(&self, parts: &Parts) -> Result<&Member> {
        let mut members = self.membership.members.iter();
        let member = members.find(|member| member.unit.as_str() == &*parts.unit);
        member.ok_or_else(|| ClientError::Protocol(format!("unit {} is not a member", parts.unit)))
    }

    /// Does something with every member, at the same time where that helps.
    fn on_each<T: Send>(&self, work: impl Fn(&Member, usize) -> T + Sync) -> Vec<T> {
        let members = &self.membership.members;
        let results: Vec<Mutex<Option<T>>> = members.iter().map(|_| Mutex::new(None)).collect();
        self.reach.at_once(members.len(), &|index| {
            *results[index].lock() = Some(work(&members[index], index));
        });
        // A missing one has panicked, and that was passed on.
        results.into_iter().filter_map(Mutex::into_inner).collect()
    }

    /// Does something with every unit that was reached.
    fn on_each_unit<T: Send>(
        &self,
        work: impl Fn(&dyn ReachedUnit) -> Result<T> + Sync,
    ) -> Vec<std::result::Result<T, Failed>> {
        self.on_each(|member, index| match &self.units[index] {
            Ok(unit) => work(unit.as_ref()).map_err(|error| Failed {
                missing: missing(member, &error),
                error: Some(Box::new(error)),
            }),
            Err(missing) => Err(Failed {
                missing: missing.clone(),
                error: None,
            }),
        })
    }

    /// Opens every member that answers, in a role that writes nothing.
    pub(crate) fn open_each<T: Send>(
        &self,
        role: SessionRole,
        options: &OpenOptions,
        then: impl Fn(Region, &str) -> Result<T> + Sync,
    ) -> Result<Vec<std::result::Result<T, MissingUnit>>> {
        let opened = self.on_each_unit(|unit| {
            let parts = unit.open(&self.name, role, self.mode, options)?;
            self.check_opened(&parts)?;
            then(Region::new(parts)?, unit.name())
        });
        let each = opened.into_iter();
        each.map(|opened| match opened {
            Ok(opened) => Ok(Ok(opened)),
            Err(failed) => Ok(Err(failed.or_grant()?)),
        })
        .collect()
    }

    /// What whoever opens the region as primary goes on from: the epochs of the units that were fenced before its state was recovered
    /// ([`SpreadFence::fenced`]). A unit whose epoch is another one by now, or that is not named here, is not opened: with fewer left than a
    /// commit takes, opening fails with [`ClientError::Fenced`]. Units that are left out come back as any that were missing. In place of
    /// what the environment says ([`crate::agent`]).
    ///
    /// That many units, held at one moment and untouched since the fence, are enough: whoever fenced later and could commit has fenced one of them.
    #[must_use]
    pub fn going_on_from(mut self, fenced: impl IntoIterator<Item = (Arc<str>, Epoch)>) -> Self {
        self.epochs = Epochs::behind(&self.name, fenced);
        self
    }

    /// For a distributor: what becomes of what the region is opened behind ([`Self::going_on_from`]).
    #[doc(hidden)]
    #[must_use]
    pub fn going_on(&self) -> GoingOn {
        GoingOn {
            region: Arc::clone(&self.name),
            epochs: Arc::clone(&self.epochs),
            told: 0,
        }
    }

    /// How a member is opened for writing. Who has a term of his own goes on from that.
    fn opening(&self, unit: &str, options: &OpenOptions, own: Option<Term>) -> Result<OpenOptions> {
        let mut options = options.going_on_from_nothing();
        if own.is_some() {
            return Ok(options);
        }
        options.goes_on_from = match self.epochs.expected(&self.name, unit)? {
            Expected::Any => None,
            Expected::Epoch(epoch) => Some(epoch),
            Expected::NotTakenOver => {
                let text = "it was not fenced when the region was taken over";
                return Err(ClientError::Protocol(text.into()));
            }
        };
        Ok(options)
    }

    /// Whether it is to be opened behind a fence that somebody has named.
    fn goes_on(&self, own: Option<Term>) -> bool {
        own.is_none() && self.epochs.know(&self.name)
    }

    /// A member was granted to this process, or fenced by it, and nobody else has had it between.
    fn goes_on_with(&self, unit: &str, epoch: Epoch) {
        self.epochs.granted(&self.name, unit, epoch);
    }

    fn goes_on_with_member(&self, index: usize, epoch: Epoch) {
        self.goes_on_with(self.membership.members[index].unit.as_str(), epoch);
    }

    /// The region's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How bytes are spread.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Who the members are.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Whether sets or records are kept in it.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Overwrite mode: how many committed sets are never overwritten. 0 in append mode.
    #[must_use]
    pub const fn sets_kept(&self) -> u32 {
        self.sets_kept
    }

    fn check_mode(&self, expected: Mode) -> Result<()> {
        if self.mode == expected {
            return Ok(());
        }
        Err(ClientError::WrongMode {
            region: self.name.as_ref().into(),
            expected,
            found: self.mode,
        })
    }

    /// Overwrite mode: the longest payload of a set. 0 in append mode.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        if self.mode == Mode::Append {
            return 0;
        }
        let subsegment_bytes = self.membership.subsegment_bytes;
        Placement::segment_len_max(self.layout, self.share_capacity_bytes, subsegment_bytes)
            .unwrap_or(0)
    }

    /// Append mode: the ring of each member's log. 0 in overwrite mode.
    fn member_ring_bytes(&self) -> u64 {
        match self.mode {
            Mode::Overwrite => 0,
            Mode::Append => LogGeometry::new(self.share_capacity_bytes)
                .map_or(0, |geometry| geometry.ring_bytes()),
        }
    }

    /// The units that did not answer when the region was found.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.units.iter().filter_map(|unit| unit.as_ref().err())
    }

    /// As [`Self::too_few`] of members that were looked at: those that answer and have no vote are named, too.
    fn too_few_votes<'a>(
        &self,
        what: TooFewUnits,
        looks: impl Iterator<Item = std::result::Result<&'a Stand, &'a MissingUnit>> + Clone,
    ) -> ClientError {
        // Where nobody has a term, all have a vote.
        let have_votes = looks.clone().flatten().any(|stand| stand.term() > Term(0));
        let looks = self.membership.members.iter().zip(looks);
        let absent: Vec<_> = looks
            .filter_map(|(member, look)| match look {
                Err(missing) => Some(missing.clone()),
                Ok(stand) if have_votes && !stand.votes() => Some(MissingUnit {
                    unit: member.unit.as_str().into(),
                    reason: "it has never taken part, and can't say what is committed".into(),
                }),
                Ok(_) => None,
            })
            .collect();
        self.too_few(what, &absent)
    }

    fn too_few<'a>(
        &self,
        what: TooFewUnits,
        missing: impl IntoIterator<Item = &'a MissingUnit>,
    ) -> ClientError {
        too_few(&self.name, what, missing)
    }
}

/// What a member's region has room for, as [`Spread::share_capacity_bytes`] says it; `None` if for nothing.
fn member_room(info: &RegionInfo) -> Option<u64> {
    match info.mode {
        Mode::Overwrite => info.capacity_bytes.checked_sub(TRAILER_BYTES),
        Mode::Append => LogGeometry::new(info.length_bytes)
            .ok()
            .map(|_| info.length_bytes),
    }
}

/// Why a member can't be used.
struct Failed {
    missing: MissingUnit,
    error: Option<Box<ClientError>>,
}

impl Failed {
    /// The same, but that somebody else writes this member is kept in `held`: whoever has enough of the others goes on without it, as who
    /// writes here has too few then. For one who goes on from a fence it is the same with who has fenced since; for others a fence
    /// that comes while they open, as that of a change of members, is a reason to open again.
    fn or_held(mut self, held: &mut Option<ClientError>, goes_on: bool) -> Result<MissingUnit> {
        match self.error.as_deref() {
            Some(ClientError::Fenced { .. }) if goes_on => {
                *held = self.error.take().map(|error| *error);
            }
            Some(ClientError::WriterExists { .. }) => {
                let error = self.error.take().map(|error| *error);
                // Where both is so the fence says more.
                *held = held.take().filter(ClientError::is_fenced).or(error);
            }
            _ => {}
        }
        self.or_grant()
    }

    /// What no other unit can make good is an error for all.
    fn or_grant(self) -> Result<MissingUnit> {
        match self.error {
            Some(error)
                if matches!(
                    *error,
                    ClientError::NoGrant { .. }
                        | ClientError::WriterExists { .. }
                        | ClientError::UnfitPersistence { .. }
                        | ClientError::NotAuthenticated { .. }
                ) =>
            {
                Err(*error)
            }
            _ => Ok(self.missing),
        }
    }
}

fn missing(member: &Member, error: &ClientError) -> MissingUnit {
    MissingUnit {
        unit: member.unit.as_str().into(),
        reason: error.to_string(),
    }
}

fn too_few<'a>(
    region: &str,
    what: TooFewUnits,
    missing: impl IntoIterator<Item = &'a MissingUnit>,
) -> ClientError {
    let missing: Vec<_> = missing
        .into_iter()
        .map(|missing| format!("{} ({})", missing.unit, missing.reason))
        .collect();
    ClientError::TooFewUnits {
        region: region.to_owned(),
        what,
        missing: if missing.is_empty() {
            "none that is known".to_owned()
        } else {
            missing.join(", ")
        },
    }
}
