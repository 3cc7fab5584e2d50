//! What a primary does when the members of its region are changed: it looks again, and goes on with the new ones if nobody took over.

use std::sync::Arc;
use std::time::Duration;

use pmu_core::spread::Tenure;
use pmu_format::Epoch;

use crate::error::{ClientError, Result};
use crate::sets::SetPrimary;
use crate::spread::{Spread, SpreadPrimary, generation};

/// The members are changed one after the other: how often a primary looks until enough of them know of the change, and how long it
/// waits in between.
const LOOKS_MAX: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

impl Spread {
    /// What the members that answer now say of a generation later than this one; none if there is none.
    pub(super) fn look_for_later(&self) -> Option<Self> {
        let described = self.on_each(|member, _| self.describe(member));
        let later = described.into_iter().flatten().map(|(_, info)| info);
        let later = later
            .filter(|info| self.is_earlier_than(info))
            .max_by_key(generation)?;
        let later = Self::over(&later, Arc::clone(&self.reach)).ok()?;
        Some(Self {
            epochs: Arc::clone(&self.epochs),
            ..later
        })
    }

    /// [`ClientError::Fenced`] if as many members were fenced, or opened by somebody else, as a take-over fences. `epochs` are the own ones on
    /// members that work: those that have not told yet are asked.
    pub(super) fn taken_over(
        &self,
        tenure: &Tenure,
        epochs: &[Option<Epoch>],
    ) -> Option<ClientError> {
        let asked = self.on_each(|member, index| {
            let own = epochs[index]?;
            let now = self.describe(member).ok()?.1.epoch;
            (now > own).then_some((now, own))
        });
        let told = tenure.lost().map(|(_, epoch, own)| (epoch, own));
        let fenced: Vec<_> = told.chain(asked.into_iter().flatten()).collect();
        self.quorum.check_fence(fenced.len()).ok()?;
        let (epoch, own_epoch) = *fenced.first()?;
        Some(ClientError::Fenced {
            region: self.name.as_ref().into(),
            epoch,
            own_epoch,
        })
    }
}

/// What came of following a change of members.
pub(super) enum Followed<T> {
    /// There was none.
    No,
    /// The region was opened over the new ones.
    Opened(T),
}

impl Spread {
    /// Calls `open` with the new members if they were changed, and again while too few of them can be used. They are told of the change one
    /// after the other: it is waited a moment for the last of them.
    ///
    /// # Errors
    /// That of `open`, where it still is too few units after `patience`.
    pub(super) fn follow_change<T>(
        &self,
        patience: Duration,
        mut open: impl FnMut(Self) -> Result<T>,
    ) -> Result<Followed<T>> {
        let looks = patience.as_millis() / PAUSE.as_millis();
        let mut last = None;
        for look in 0..=looks + u128::from(LOOKS_MAX) {
            if look > 0 {
                self.reach.pause(PAUSE);
            }
            let Some(later) = self.look_for_later() else {
                // It is this generation's end that is looked for: without a later one there is nothing to follow.
                return last.map_or(Ok(Followed::No), Err);
            };
            if later.has_untold() && look < LOOKS_MAX.into() {
                continue;
            }
            match open(later) {
                Ok(opened) => return Ok(Followed::Opened(opened)),
                Err(error) if may_be_a_change(&error) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(Followed::No), Err)
    }
}

/// Whether an error may come of a change of the members.
pub(super) fn may_be_a_change(error: &ClientError) -> bool {
    match error {
        ClientError::UnknownOutcome { cause, .. } => may_be_a_change(cause),
        ClientError::TooFewUnits { .. } => true,
        error => error.is_fenced(),
    }
}

impl SpreadPrimary {
    /// What became of an error: if the members were changed and no other primary is there, this one goes on with the new ones, and the
    /// set that was under way is to be written again.
    pub(super) fn or_changed(&mut self, error: ClientError) -> ClientError {
        let may_be_a_change = error.is_fenced() || matches!(error, ClientError::TooFewUnits { .. });
        if !may_be_a_change {
            return error;
        }
        match self.follow_change() {
            Ok(true) => ClientError::MembersChanged {
                region: self.spread.name.as_ref().into(),
            },
            Ok(false) => self.or_taken_over(error),
            Err(other) => {
                tracing::warn!(region = %self.spread.name, error = %other, "the members were changed, and the region can't be opened anew");
                match other {
                    ClientError::TooFewUnits { .. } => other,
                    _ => error,
                }
            }
        }
    }

    /// A fence on fewer members than a take-over fences has only taken them away from this primary, to be worked on.
    fn or_taken_over(&self, error: ClientError) -> ClientError {
        let epochs = self
            .members
            .iter()
            .map(|member| member.as_ref().ok().map(SetPrimary::epoch));
        let taken_over = self
            .spread
            .taken_over(&self.tenure, &epochs.collect::<Vec<_>>());
        match (taken_over, error.is_fenced()) {
            (Some(fenced), false) => fenced,
            (None, true) => self.check_commit().err().unwrap_or(error),
            _ => error,
        }
    }

    /// Opens the region anew if its members were changed; false if they were not, or another primary has taken over.
    pub(super) fn follow_change(&mut self) -> Result<bool> {
        let mut last = None;
        for look in 0..LOOKS_MAX {
            if look > 0 {
                self.spread.reach.pause(PAUSE);
            }
            let Some(later) = self.spread.look_for_later() else {
                // It is this generation's end that is looked for: without a later one there is nothing to follow.
                return last.map_or(Ok(false), Err);
            };
            // The members hold sessions of this primary, which are in its own way.
            let reason = "its members were changed";
            for (member, slot) in self.spread.membership.members.iter().zip(&mut self.members) {
                if slot.is_ok() {
                    *slot = Err(super::MissingUnit {
                        unit: member.unit.as_str().into(),
                        reason: reason.to_owned(),
                    });
                }
            }
            match later.open_again(&self.options, self.newest.term()) {
                Ok(Some(primary)) => {
                    tracing::info!(region = %primary.spread.name, generation = primary.spread.membership.generation, "went on with other members");
                    *self = primary;
                    return Ok(true);
                }
                Ok(None) => return Ok(false),
                Err(error @ ClientError::TooFewUnits { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(false), Err)
    }
}
