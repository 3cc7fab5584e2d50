//! What the primary of a log does when the members of its region are changed: it looks again, goes on with the new ones if nobody took over,
//! and writes again what is not in the log.

use pmu_core::log::{LogStart, LogWriter};
use pmu_format::{Epoch, LogPosition, Term};

use super::SpreadLogPrimary;
use crate::error::{Attempt, ClientError, Result};
use crate::log::primary::PUBLISHES_IN_FLIGHT_MAX;
use crate::spread::Spread;
use crate::spread::change::{Followed, may_be_a_change};
use crate::spread::log::kept::Kept;

impl SpreadLogPrimary {
    /// Goes on after an error if that came of a change of the members: then all records up to `keep_to` that were submitted are acknowledged
    /// or on their way again, and those behind it are gone.
    ///
    /// # Errors
    /// The error, where it did not.
    pub(super) fn go_on_after(&mut self, error: ClientError, keep_to: LogPosition) -> Result<()> {
        if !may_be_a_change(&error) {
            return Err(error);
        }
        let mut kept = std::mem::replace(&mut self.kept, Kept::new(self.submitted));
        kept.cut_to(keep_to);
        let mut reached = match &error {
            ClientError::UnknownOutcome {
                attempt: Attempt::Records(_, to),
                ..
            } => *to,
            _ => LogPosition(0),
        };
        let other = match self.follow_change(&mut kept, &mut reached) {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(other) => Some(other),
        };
        self.kept = kept;
        let Some(other) = other else {
            return Err(self.may_be_appended(error, reached));
        };
        tracing::warn!(region = %self.spread.name, error = %other, "the members were changed, and the log can't be opened anew");
        if self.kept.is_empty() && matches!(other, ClientError::TooFewUnits { .. }) {
            self.stay_open();
        }
        Err(self.may_be_appended(in_place_of(error, other), reached))
    }

    /// What an error means if records up to `reached` were published by some member, while the members were those before or others.
    fn may_be_appended(&self, error: ClientError, reached: LogPosition) -> ClientError {
        let from = self.acknowledged();
        if reached <= from {
            return error;
        }
        let cause = match error {
            ClientError::UnknownOutcome { cause, .. } => cause,
            error => Box::new(error),
        };
        ClientError::UnknownOutcome {
            region: self.spread.name.as_ref().into(),
            attempt: Attempt::Records(from, reached),
            cause,
        }
    }

    /// Opens the log anew if its members were changed; false if they were not, or another primary has taken over. `reached` rises to where
    /// members may have published records meanwhile.
    fn follow_change(&mut self, kept: &mut Kept, reached: &mut LogPosition) -> Result<bool> {
        let mut own = self.newest.term();
        let patience = self.options.timeouts.stall;
        let spread = self.spread.apart();
        let followed = spread.follow_change(patience, |later| {
            self.leave_members();
            let opened = self.write_again(later, &mut own, kept, reached)?;
            Ok(opened)
        })?;
        match followed {
            Followed::No => Ok(false),
            Followed::Opened(None) => Ok(false),
            Followed::Opened(Some(next)) => {
                let flushed = self.flushed;
                let bytes_since_flush = self.bytes_since_flush;
                *self = *next;
                (self.flushed, self.bytes_since_flush) = (flushed, bytes_since_flush);
                let generation = self.spread.membership.generation;
                tracing::info!(region = %self.spread.name, generation, "went on with other members");
                Ok(true)
            }
        }
    }

    /// Nothing is in doubt: the next call looks again.
    fn stay_open(&mut self) {
        self.ended = false;
        let start = LogStart {
            tail: self.submitted,
            cursor: self.writer.cursor(),
        };
        let term = Epoch(self.newest.term().0);
        let geometry = *self.writer.geometry();
        self.writer = LogWriter::new(geometry, term, start, PUBLISHES_IN_FLIGHT_MAX);
    }

    /// The members hold sessions of this primary, which are in its own way.
    fn leave_members(&mut self) {
        self.returns.stop();
        self.recruit = None;
        self.outs.iter_mut().for_each(|out| *out = None);
        let error = ClientError::MembersChanged {
            region: self.spread.name.as_ref().into(),
        };
        for index in 0..self.seats.len() {
            if self.seats[index].is_ok() {
                let member = &self.spread.membership.members[index];
                self.seats[index] = Err(crate::spread::missing(member, &error));
            }
        }
    }

    /// Opens the log over its new members, and appends what is not in it. `own` is the last term of this primary.
    fn write_again(
        &self,
        later: Spread,
        own: &mut Term,
        kept: &mut Kept,
        reached: &mut LogPosition,
    ) -> Result<Option<Box<Self>>> {
        let Some((mut next, _)) = Self::open_behind(later, &self.options, Some(*own))? else {
            return Ok(None);
        };
        *own = next.newest.term();
        // What any member has published counts, and had to be whole.
        *reached = next.submitted.max(*reached);
        kept.drop_to(next.submitted);
        if kept.begin() != next.submitted {
            return Err(ClientError::Protocol(format!(
                "the log ends at {}, and its records at {}",
                next.submitted,
                kept.begin()
            )));
        }
        let patience = self.options.timeouts.back_pressure;
        let written = kept.each_batch(|records| next.submit_once(records, patience).map(drop));
        *reached = LogPosition(next.tail_sent).max(*reached);
        written.map(|()| Some(Box::new(next)))
    }
}

/// Which units are missing now is of more use than which were.
fn in_place_of(error: ClientError, other: ClientError) -> ClientError {
    match other {
        ClientError::TooFewUnits { .. } => other,
        ClientError::UnknownOutcome { cause, .. } => in_place_of(error, *cause),
        _ => error,
    }
}
