//! How units that were missing or given up take part again.

use pmu_format::Mode;

use super::SpreadLogPrimary;
use crate::error::{ClientError, Result};
use crate::spread::log::catch_up::{Climb, Goal, Helpers, bring_up};
use crate::spread::log::out::Out;
use crate::spread::log::seat::{LogSeat, Seat};
use crate::spread::rejoin::{Called, is_unbroken, may_be_fenced};
use crate::spread::returns::Next;
use crate::spread::{MissingUnit, missing};

/// Bytes of the log that one append gives to a unit that is on its way back; beside them, twice what was appended since the last time.
const STEP_BYTES: u64 = 4 << 20;

/// A member on its way back: what it missed is copied a piece at a time, as appends go on.
pub(super) struct Recruit {
    index: usize,
    seat: LogSeat,
    climb: Climb,
    /// The end of what was submitted when it was given its last piece.
    seen: u64,
}

impl SpreadLogPrimary {
    /// Connects again to units that were missing or given up, and gives each the records that it missed. They take part from the next record
    /// on. Waits until everything submitted is durable first. Gives how many came back. Units are taken back without it, too
    /// ([`crate::OpenOptions::rejoin`]), a piece with each append; this call waits until they have everything.
    ///
    /// A unit that may have been fenced while it was away is taken back only if enough others to commit are there and not fenced.
    ///
    /// # Errors
    /// As [`Self::flush`]; [`ClientError::Ended`]. What keeps a unit from coming back is no error, but its reason in [`Self::missing`].
    pub fn rejoin(&mut self) -> Result<usize> {
        if let Err(error) = self.look_once().and_then(|()| self.check_commit()) {
            match self.go_on_after(error, self.submitted) {
                // Too few are left, and nothing is under way: that is what this call is for.
                Err(_) if !self.ended => {}
                gone_on => gone_on?,
            }
        }
        self.wait_through(self.submitted)?;
        if self.check_commit().is_ok() {
            // What is cleared meanwhile need not be caught up with.
            self.refresh_free()?;
        }
        self.newest.cleared = self.newest.cleared.max(self.writer.cursor().get());
        let mut back = 0;
        if let Some(recruit) = self.recruit.take() {
            back += usize::from(self.lead(recruit, u64::MAX)?);
        }
        let mut wanting =
            self.join_missing(&(0..self.seats.len()).collect::<Vec<_>>(), &mut back)?;
        // Those that came back may hold what others still lack.
        while back > 0 && !wanting.is_empty() {
            let before = back;
            wanting = self.join_missing(&wanting, &mut back)?;
            if before == back {
                break;
            }
        }
        self.drop_outs();
        self.collect_proofs();
        Ok(back)
    }

    /// Takes back those of these members that are missing. Which of them answered, and could not be brought up to date.
    fn join_missing(&mut self, indices: &[usize], back: &mut usize) -> Result<Vec<usize>> {
        let mut called = Vec::new();
        for &index in indices.iter().filter(|index| self.seats[**index].is_err()) {
            let early = self
                .returns
                .wait(index)
                .filter(|early| early.opened.is_ok());
            let one = early.unwrap_or_else(|| self.call(index));
            called.push((!is_unbroken(&mut self.tenure, index, &one), index, one));
        }
        // With those that are certain there may be enough for the others.
        called.sort_by_key(|(doubtful, ..)| *doubtful);
        let mut wanting = Vec::new();
        for (doubtful, index, one) in called {
            let Some(seat) = self.admit(index, one, doubtful)? else {
                continue;
            };
            match self.join(index, seat) {
                Ok(out) => {
                    self.outs[index] = Some(out);
                    self.is_back(index);
                    *back += 1;
                }
                Err(missing) => {
                    if self.seats[index].is_ok() {
                        wanting.push(index);
                    }
                    self.seats[index] = Err(missing);
                }
            }
        }
        Ok(wanting)
    }

    fn call(&self, index: usize) -> Called<LogSeat> {
        let id = self.spread.membership.id;
        let look = |parts| LogSeat::open(parts, id);
        let never = || false;
        self.spread
            .call(index, Mode::Append, &self.options, never, look)
    }

    /// Whether a member that was called may take part again; if not, its place says why.
    fn admit(
        &mut self,
        index: usize,
        called: Called<LogSeat>,
        doubtful: bool,
    ) -> Result<Option<LogSeat>> {
        let refused = match called.opened {
            Err(missing) => missing,
            Ok(mut seat) => {
                let (region, epoch) = seat.grant();
                // It is granted already: no fence can have held before, if enough others are held now.
                let sure = !doubtful || self.are_enough_held()?;
                if sure && seat.stand.highest <= self.newest.term() {
                    self.tenure.hold(index, region, epoch);
                    self.spread.goes_on_with_member(index, epoch);
                    seat.judge(&self.newest);
                    return Ok(Some(seat));
                }
                let why = if sure {
                    let text = "it knows of a later primary than this one";
                    ClientError::Protocol(text.into())
                } else {
                    self.tenure.raised(index, epoch);
                    may_be_fenced()
                };
                missing(&self.spread.membership.members[index], &why)
            }
        };
        self.seats[index] = Err(refused);
        Ok(None)
    }

    /// Whether enough members to commit are held still; one that is not is given up.
    fn are_enough_held(&mut self) -> Result<bool> {
        if self.check_commit().is_err() {
            return Ok(false);
        }
        // A read through the windows of each.
        self.refresh_free()?;
        Ok(self.check_commit().is_ok())
    }

    fn join(&mut self, index: usize, mut seat: LogSeat) -> std::result::Result<Out, MissingUnit> {
        let opening = self.spread.log_opening(&seat, &self.newest);
        let proposed = seat.propose(&opening);
        proposed.map_err(|error| missing(&self.spread.membership.members[index], &error))?;
        self.seats[index] = Ok(seat);
        self.others_stand();
        let member = &self.spread.membership.members[index];
        let goal = Goal {
            newest: &self.newest,
            cursor: self.writer.cursor(),
        };
        let mut helpers = Helpers {
            names: &self.spread.names(),
            reader: &mut self.reader,
            shards: &mut self.shards,
        };
        bring_up(&mut self.seats, index, &mut helpers, &goal, &opening)
            .map_err(|error| missing(member, &error))
    }

    /// All members that work have everything that is committed.
    fn others_stand(&mut self) {
        let end = self.newest.committed;
        for (out, seat) in self.outs.iter().zip(&mut self.seats) {
            if let (Some(_), Ok(seat)) = (out, seat) {
                seat.is_up(end);
            }
        }
    }

    /// A member that was read from may have failed meanwhile.
    fn drop_outs(&mut self) {
        for (out, seat) in self.outs.iter_mut().zip(&self.seats) {
            out.take_if(|_| seat.is_err());
        }
    }

    fn is_back(&mut self, index: usize) {
        let unit = &self.spread.membership.members[index].unit;
        tracing::info!(%unit, region = %self.spread.name, "a unit is back");
        self.returns.is_back(index);
    }

    /// Calls members that are missing, without waiting for them, and gives one that was reached a piece of what it missed.
    pub(super) fn look_for_returns(&mut self) -> Result<()> {
        if self.seats.iter().all(Seat::is_ok) {
            return Ok(());
        }
        for index in 0..self.seats.len() {
            if self.seats[index].is_ok() || self.recruit.is_some() {
                continue;
            }
            let now = self.spread.reach.now();
            let mut next = self.returns.next(index, now);
            if let Next::Attempt(attempting) = next {
                let id = self.spread.membership.id;
                let look = move |parts| LogSeat::open(parts, id);
                self.spread
                    .call_beside(index, Mode::Append, self.options, attempting, look);
                next = self.returns.next(index, now);
            }
            if let Next::Ended(called) = next {
                self.recruit(index, called)?;
            }
        }
        match self.recruit.take() {
            Some(recruit) => {
                let since = self.submitted.get() - recruit.seen;
                self.lead(recruit, STEP_BYTES + 2 * since).map(drop)
            }
            None => Ok(()),
        }
    }

    /// A member that was reached is on its way back.
    fn recruit(&mut self, index: usize, called: Called<LogSeat>) -> Result<()> {
        let doubtful = !is_unbroken(&mut self.tenure, index, &called);
        let Some(mut seat) = self.admit(index, called, doubtful)? else {
            return Ok(());
        };
        let goal = Goal {
            newest: &self.newest,
            cursor: self.writer.cursor(),
        };
        let member = &self.spread.membership.members[index];
        let seen = self.submitted.get();
        self.seats[index] = Err(on_its_way(member.unit.as_str()));
        match Climb::begin(&mut seat, &goal) {
            Ok(climb) => {
                self.recruit = Some(Recruit {
                    index,
                    seat,
                    climb,
                    seen,
                });
            }
            Err(error) => self.seats[index] = Err(missing(member, &error)),
        }
        Ok(())
    }

    /// Copies a piece, and takes the member in if that was the last one. Whether it takes part now.
    fn lead(&mut self, recruit: Recruit, bytes_max: u64) -> Result<bool> {
        let index = recruit.index;
        let Some(mut recruit) = self.climb(recruit, bytes_max)? else {
            return Ok(false);
        };
        if recruit.climb.lacks_bytes(self.submitted.get()) > STEP_BYTES {
            recruit.seen = self.submitted.get();
            self.recruit = Some(recruit);
            return Ok(false);
        }
        // The rest is little enough for all to wait for it.
        self.wait_until(self.submitted)?;
        let Some(recruit) = self.climb(recruit, u64::MAX)? else {
            return Ok(false);
        };
        if let Err(error) = self.take_in(recruit) {
            let member = &self.spread.membership.members[index];
            self.seats[index] = Err(missing(member, &error));
            return Ok(false);
        }
        self.is_back(index);
        self.collect_proofs();
        Ok(true)
    }

    /// Gives a member on its way back some of what it missed. None if it failed: its place says why.
    fn climb(&mut self, recruit: Recruit, bytes_max: u64) -> Result<Option<Recruit>> {
        let Recruit {
            index,
            seat,
            mut climb,
            seen,
        } = recruit;
        self.others_stand();
        self.seats[index] = Ok(seat);
        let goal = Goal {
            newest: &self.newest,
            cursor: self.writer.cursor(),
        };
        let mut helpers = Helpers {
            names: &self.spread.names(),
            reader: &mut self.reader,
            shards: &mut self.shards,
        };
        let climbed = climb.climb(&mut self.seats, index, &mut helpers, &goal, bytes_max);
        let member = &self.spread.membership.members[index];
        let why = match &climbed {
            Ok(()) => on_its_way(member.unit.as_str()),
            Err(error) => missing(member, error),
        };
        let seat = std::mem::replace(&mut self.seats[index], Err(why));
        self.drop_outs();
        if let Err(few) = self.check_commit() {
            return Err(self.failed(few));
        }
        Ok(match (seat, climbed) {
            (Ok(seat), Ok(())) => Some(Recruit {
                index,
                seat,
                climb,
                seen,
            }),
            _ => None,
        })
    }

    /// Everything submitted is durable, and the member has it: it takes the term, and takes part from the next record on.
    fn take_in(&mut self, recruit: Recruit) -> Result<()> {
        let Recruit {
            index,
            mut seat,
            climb,
            ..
        } = recruit;
        self.newest.cleared = self.newest.cleared.max(self.writer.cursor().get());
        let opening = self.spread.log_opening(&seat, &self.newest);
        seat.propose(&opening)?;
        let goal = Goal {
            newest: &self.newest,
            cursor: self.writer.cursor(),
        };
        let out = climb.finish(&mut seat, &goal, &opening)?;
        self.outs[index] = Some(out);
        self.seats[index] = Ok(seat);
        Ok(())
    }
}

fn on_its_way(unit: &str) -> MissingUnit {
    MissingUnit {
        unit: unit.into(),
        reason: "it is on its way back, and gets what it missed".to_owned(),
    }
}
