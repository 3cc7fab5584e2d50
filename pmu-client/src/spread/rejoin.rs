//! How a primary of sets takes units back that were missing or given up.

use pmu_core::spread::Tenure;
use pmu_format::{Epoch, Mode, RegionId};
use pmu_proto::v1::SessionRole;

use crate::error::{ClientError, Result};
use crate::options::OpenOptions;
use crate::region::Parts;
use crate::sets::SetPrimary;
use crate::sets::primary::member::OpenedMember;
use crate::spread::returns::{Attempting, Next};
use crate::spread::{MissingUnit, Spread, SpreadPrimary, missing};

/// A member that was called again: the grant that it gave, and what was opened or why not.
pub(super) struct Called<T> {
    pub(super) grant: Option<(RegionId, Epoch)>,
    pub(super) opened: std::result::Result<T, MissingUnit>,
}

impl<T> Called<T> {
    pub(super) fn failed(missing: MissingUnit) -> Self {
        Self {
            grant: None,
            opened: Err(missing),
        }
    }
}

/// What a primary says of a unit that it may not count.
pub(super) fn may_be_fenced() -> ClientError {
    let text =
        "somebody may have fenced it while it was away, and too few others are there to be sure";
    ClientError::Protocol(text.into())
}

impl Spread {
    /// Connects to a member and opens it for writing.
    pub(super) fn call<T>(
        &self,
        index: usize,
        mode: Mode,
        options: &OpenOptions,
        is_given_up: impl Fn() -> bool,
        look: impl FnOnce(Parts) -> Result<T>,
    ) -> Called<T> {
        let member = &self.membership.members[index];
        let unit = match self.connect(member) {
            Ok(unit) => unit,
            Err(missing) => return Called::failed(missing),
        };
        if is_given_up() {
            return Called::failed(missing(member, &ClientError::Interrupted));
        }
        // Whether anybody came between is decided by what its grant is, below.
        let options = options.going_on_from_nothing();
        let parts = unit.open(&self.name, SessionRole::Primary, mode, &options);
        let grant = parts
            .as_ref()
            .ok()
            .map(|parts| (parts.info.id, parts.epoch));
        let opened = parts.and_then(|parts| {
            self.check_opened(&parts)?;
            look(parts)
        });
        Called {
            grant,
            opened: opened.map_err(|error| missing(member, &error)),
        }
    }

    /// Does the same beside the caller.
    pub(super) fn call_beside<T: Send + 'static>(
        &self,
        index: usize,
        mode: Mode,
        options: OpenOptions,
        attempting: Attempting<Called<T>>,
        look: impl FnOnce(Parts) -> Result<T> + Send + 'static,
    ) {
        let spread = self.apart();
        self.reach.beside(Box::new(move || {
            let is_given_up = || attempting.is_given_up();
            let called = spread.call(index, mode, &options, is_given_up, look);
            attempting.done(called);
        }));
    }
}

/// Takes note of the grant that a called member gave. Whether nobody can have fenced it since the last one.
pub(super) fn is_unbroken<T>(tenure: &mut Tenure, index: usize, called: &Called<T>) -> bool {
    let Some((region, epoch)) = called.grant else {
        return false;
    };
    let unbroken = tenure.is_unbroken(index, region, epoch);
    if unbroken {
        tenure.hold(index, region, epoch);
    }
    unbroken
}

impl SpreadPrimary {
    /// Connects again to units that were missing or given up, now. Each takes part in the next commit: from then on it holds the newest set.
    /// Gives how many came back. Units are taken back without it, too ([`OpenOptions::rejoin`]); this call waits for them.
    ///
    /// A unit that may have been fenced while it was away is taken back only if enough others to commit are there and not fenced.
    ///
    /// # Errors
    /// [`ClientError::Ended`]. What keeps a unit from coming back is no error, but its reason in [`Self::missing`].
    pub fn rejoin(&mut self) -> Result<usize> {
        if self.ended {
            let region = self.spread.name.as_ref().into();
            return Err(ClientError::Ended { region });
        }
        if self.check_commit().is_err() {
            self.follow_change()?;
        }
        let mut called = Vec::new();
        for index in 0..self.members.len() {
            if self.members[index].is_ok() {
                continue;
            }
            let early = self
                .returns
                .wait(index)
                .filter(|early| early.opened.is_ok());
            let id = self.spread.membership.id;
            called.push((
                index,
                early.unwrap_or_else(|| {
                    let look = |parts| OpenedMember::look(parts, id);
                    self.spread
                        .call(index, Mode::Overwrite, &self.options, || false, look)
                }),
            ));
        }
        Ok(self.take_in(called))
    }

    /// Takes in who has come back, and calls others, without waiting for them.
    pub(super) fn look_for_returns(&mut self) {
        let mut called = Vec::new();
        for index in 0..self.members.len() {
            if self.members[index].is_ok() {
                continue;
            }
            let now = self.spread.reach.now();
            let mut next = self.returns.next(index, now);
            if let Next::Attempt(attempting) = next {
                let id = self.spread.membership.id;
                let look = move |parts| OpenedMember::look(parts, id);
                self.spread
                    .call_beside(index, Mode::Overwrite, self.options, attempting, look);
                next = self.returns.next(index, now);
            }
            if let Next::Ended(ended) = next {
                called.push((index, ended));
            }
        }
        if !called.is_empty() {
            self.take_in(called);
        }
    }

    /// Makes those that were reached members again; how many.
    fn take_in(&mut self, called: Vec<(usize, Called<OpenedMember>)>) -> usize {
        let mut doubtful = Vec::new();
        let mut back = 0;
        for (index, called) in called {
            let unbroken = is_unbroken(&mut self.tenure, index, &called);
            if let (true, Some((_, epoch))) = (unbroken, called.grant) {
                self.spread.goes_on_with_member(index, epoch);
            }
            match called.opened {
                Ok(opened) if unbroken => back += usize::from(self.start_member(index, opened)),
                Ok(opened) => doubtful.push((index, opened)),
                Err(missing) => self.members[index] = Err(missing),
            }
        }
        if !doubtful.is_empty() {
            // They are granted already: no fence can have held before, if enough others are held now.
            let sure = self.are_enough_held();
            for (index, opened) in doubtful {
                let (region, epoch) = opened.grant();
                if sure {
                    self.tenure.hold(index, region, epoch);
                    self.spread.goes_on_with_member(index, epoch);
                    back += usize::from(self.start_member(index, opened));
                } else {
                    self.tenure.raised(index, epoch);
                    let member = &self.spread.membership.members[index];
                    self.members[index] = Err(missing(member, &may_be_fenced()));
                }
            }
        }
        self.collect_proofs();
        back
    }

    /// Asks all members that work whether they are held still; one that is not is given up.
    fn are_enough_held(&mut self) -> bool {
        let mut asked = Vec::with_capacity(self.members.len());
        for index in 0..self.members.len() {
            asked.push(self.with_published(index, SetPrimary::ask_held));
        }
        for (index, asked) in asked.into_iter().enumerate() {
            if let Some(asked) = asked {
                self.with_published(index, |member| member.wait_held(asked));
            }
        }
        self.check_commit().is_ok()
    }

    /// Makes a member take this primary's term.
    fn start_member(&mut self, index: usize, mut opened: OpenedMember) -> bool {
        let started = self.check_term(&opened).and_then(|()| {
            let opening = self.spread.propose(&mut opened, &self.newest)?;
            opened.start(&opening, self.newest.set())
        });
        let member = &self.spread.membership.members[index];
        self.members[index] = started.map_err(|error| missing(member, &error));
        let is_back = self.members[index].is_ok();
        if is_back {
            tracing::info!(unit = %member.unit, region = %self.spread.name, "a unit is back");
            self.returns.is_back(index);
        }
        is_back
    }

    fn check_term(&self, opened: &OpenedMember) -> Result<()> {
        if opened.stand.highest > self.newest.term() {
            let text = "it knows of a later primary than this one";
            return Err(ClientError::Protocol(text.into()));
        }
        Ok(())
    }
}
