//! How many members it takes.

/// How many members there are, and how many it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    members: usize,
    units_min: usize,
    data_shards: usize,
}

/// Too few members answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reached} of {members} units answer, {needed} are needed to {purpose}")]
pub struct TooFewUnits {
    /// How many answer.
    pub reached: usize,
    /// How many there are.
    pub members: usize,
    /// How many are needed.
    pub needed: usize,
    /// For what.
    pub purpose: &'static str,
}

impl Quorum {
    /// `units_min` is at least `data_shards` and at most `members`; what is outside is moved in.
    #[must_use]
    pub const fn new(members: usize, units_min: usize, data_shards: usize) -> Self {
        let least = if units_min < data_shards {
            data_shards
        } else {
            units_min
        };
        let units_min = if least > members { members } else { least };
        Self {
            members,
            units_min,
            data_shards,
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn members(&self) -> usize {
        self.members
    }

    /// With fewer nothing is committed.
    #[must_use]
    pub const fn units_min(&self) -> usize {
        self.units_min
    }

    /// With fewer it can't be told which set is the newest, and no fence holds.
    #[must_use]
    pub const fn units_to_decide(&self) -> usize {
        self.members - self.units_min + 1
    }

    /// Whether `alive` members are enough to commit.
    ///
    /// # Errors
    /// [`TooFewUnits`].
    pub const fn check_commit(&self, alive: usize) -> Result<(), TooFewUnits> {
        self.check(alive, self.units_min, "commit")
    }

    /// Whether a fence that reached `fenced` members holds.
    ///
    /// # Errors
    /// [`TooFewUnits`].
    pub const fn check_fence(&self, fenced: usize) -> Result<(), TooFewUnits> {
        self.check(fenced, self.units_to_decide(), "fence")
    }

    /// Whether `holding` members are enough to read a set.
    ///
    /// # Errors
    /// [`TooFewUnits`].
    pub const fn check_read(&self, holding: usize) -> Result<(), TooFewUnits> {
        self.check(holding, self.data_shards, "read the set")
    }

    /// Whether `answering` members are enough to know what is committed.
    ///
    /// # Errors
    /// [`TooFewUnits`]: all that answer may have missed it.
    pub const fn check_decide(&self, answering: usize) -> Result<(), TooFewUnits> {
        let purpose = "know which set is the newest";
        self.check(answering, self.units_to_decide(), purpose)
    }

    const fn check(
        &self,
        reached: usize,
        needed: usize,
        purpose: &'static str,
    ) -> Result<(), TooFewUnits> {
        if reached >= needed {
            return Ok(());
        }
        Err(TooFewUnits {
            reached,
            members: self.members,
            needed,
            purpose,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d01_who_commits_and_who_decides_always_meet() {
        for members in 1..=32 {
            for units_min in 1..=members {
                let quorum = Quorum::new(members, units_min, 1);
                assert_eq!(quorum.units_min() + quorum.units_to_decide(), members + 1);
                // Fenced: the old writer has what is left, which is too few.
                let left = members - quorum.units_to_decide();
                assert!(quorum.check_commit(left).is_err());
            }
        }
    }

    #[test]
    fn d01_too_few_are_named() {
        let error = Quorum::new(3, 2, 1)
            .check_decide(0)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "0 of 3 units answer, 2 are needed to know which set is the newest"
        );
    }

    #[test]
    fn d01_the_minimum_is_never_less_than_what_reading_takes() {
        let parity = Quorum::new(4, 1, 3);
        assert_eq!((parity.units_min(), parity.units_to_decide()), (3, 2));
        assert!(parity.check_read(2).is_err() && parity.check_read(3).is_ok());
        assert_eq!(Quorum::new(2, 9, 1).units_min(), 2);
    }
}
