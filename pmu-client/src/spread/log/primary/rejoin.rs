//! How units that were missing or given up take part again.

use pmu_format::Mode;
use pmu_proto::v1::SessionRole;

use super::SpreadLogPrimary;
use crate::error::{ClientError, Result};
use crate::spread::log::catch_up::{Goal, bring_up};
use crate::spread::log::out::Out;
use crate::spread::log::seat::{LogSeat, Seat};
use crate::spread::{MissingUnit, missing};

impl SpreadLogPrimary {
    /// Connects again to units that were missing or given up, and gives each the records that it missed. They take part from the next record
    /// on. Waits until everything submitted is durable first. Gives how many came back.
    ///
    /// # Errors
    /// As [`Self::flush`]; [`ClientError::Ended`]. What keeps a unit from coming back is no error, but its reason in [`Self::missing`].
    pub fn rejoin(&mut self) -> Result<usize> {
        match self.poll_completions() {
            // Too few are left, and nothing is under way: that is what this call is for.
            Err(_) if !self.ended => {}
            looked => drop(looked?),
        }
        self.wait_until(self.submitted)?;
        if self.check_commit().is_ok() {
            // What is cleared meanwhile need not be caught up with.
            self.refresh_free()?;
        }
        self.newest.cleared = self.newest.cleared.max(self.writer.cursor().get());
        let mut back = 0;
        let mut wanting = self.join_missing(&(0..self.seats.len()).collect::<Vec<_>>(), &mut back);
        // Those that came back may hold what others still lack.
        while back > 0 && !wanting.is_empty() {
            let before = back;
            wanting = self.join_missing(&wanting, &mut back);
            if before == back {
                break;
            }
        }
        if self.seats.iter().all(Seat::is_ok) {
            self.fenced = None;
        }
        // A member that was read from may have failed meanwhile.
        for (out, seat) in self.outs.iter_mut().zip(&self.seats) {
            out.take_if(|_| seat.is_err());
        }
        self.collect_proofs();
        Ok(back)
    }

    /// Takes back those of these members that are missing. Which of them answered, and could not be brought up to date.
    fn join_missing(&mut self, indices: &[usize], back: &mut usize) -> Vec<usize> {
        let mut wanting = Vec::new();
        for &index in indices {
            if self.seats[index].is_ok() {
                continue;
            }
            match self.join(index) {
                Ok(out) => {
                    self.outs[index] = Some(out);
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
        wanting
    }

    fn join(&mut self, index: usize) -> std::result::Result<Out, MissingUnit> {
        let member = &self.spread.membership.members[index];
        let unit = self.spread.connect(member)?;
        let (name, id) = (&self.spread.name, self.spread.membership.id);
        let opened = unit
            .open(name, SessionRole::Primary, Mode::Append, &self.options)
            .and_then(|parts| LogSeat::open(parts, id))
            .and_then(|mut seat| {
                if seat.stand.highest > self.newest.term() {
                    let text = "it knows of a later primary than this one";
                    return Err(ClientError::Protocol(text.into()));
                }
                let opening = self.spread.log_opening(&seat, &self.newest);
                seat.propose(&opening)?;
                seat.judge(&self.newest);
                Ok((seat, opening))
            });
        let (seat, opening) = opened.map_err(|error| missing(member, &error))?;
        self.seats[index] = Ok(seat);
        let end = self.newest.committed;
        for (out, seat) in self.outs.iter().zip(&mut self.seats) {
            if let (Some(_), Ok(seat)) = (out, seat) {
                seat.is_up(end);
            }
        }
        let goal = Goal {
            newest: &self.newest,
            cursor: self.writer.cursor(),
            opening: &opening,
        };
        let names = self.spread.names();
        let (reader, shards) = (&mut self.reader, &mut self.shards);
        bring_up(&mut self.seats, index, &names, reader, shards, &goal)
            .map_err(|error| missing(&self.spread.membership.members[index], &error))
    }
}
