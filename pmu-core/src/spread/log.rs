//! Logs over several units: what may be read, and what may be overwritten.
//!
//! All members' records stand at the same positions, and the end of the committed log is what [`Quorum::newest`] says. Two questions are a
//! log's own. A reader beside a live primary hands out only what no take-over can undo: [`Quorum::stable`]. And a primary takes room back
//! only where every later reader sees that it was cleared: [`Quorum::freed`] against [`Quorum::cursor`].

use pmu_format::{CursorPair, LogPosition};

use crate::spread::{Quorum, Stand, TooFewUnits};

/// What a member's cursor page says for certain: where a clear was cut short, the lower of its words, up to which was cleared before.
/// `None` where no word is a position.
#[must_use]
pub fn cursor_of(pair: &CursorPair) -> Option<LogPosition> {
    match (pair.cursor_word(), pair.inverse_word()) {
        (Some(cursor), Some(inverse)) => Some(cursor.min(inverse)),
        (one, other) => one.or(other),
    }
}

/// The highest value that at least `count` of them reach; 0 if there are fewer.
fn reached_by(values: impl Iterator<Item = u64> + Clone, count: usize) -> u64 {
    let enough = |value: &u64| values.clone().filter(|other| other >= value).count() >= count;
    values.clone().filter(enough).max().unwrap_or(0)
}

impl Quorum {
    /// Up to where the log can be handed out beside a live primary: a take-over works with `units_min` members or more, and one of them
    /// is among those that say so. 0 where too few of those that answer are in the term in force.
    #[must_use]
    pub fn stable<'a>(&self, stands: impl Iterator<Item = &'a Stand> + Clone) -> LogPosition {
        let term = stands.clone().map(Stand::term).max();
        let in_force = stands.filter(|stand| Some(stand.term()) == term);
        let said = in_force.map(Stand::committed);
        LogPosition(reached_by(said, self.units_to_decide()))
    }

    /// Up to where the log was cleared, from the cursor pages of the members that answer.
    ///
    /// # Errors
    /// [`TooFewUnits`]: all that answer may have missed it.
    pub fn cursor<'a>(
        &self,
        pairs: impl Iterator<Item = &'a CursorPair>,
    ) -> Result<LogPosition, TooFewUnits> {
        let (mut answering, mut highest) = (0, LogPosition(0));
        for cursor in pairs.filter_map(cursor_of) {
            answering += 1;
            highest = highest.max(cursor);
        }
        self.check_decide(answering)?;
        Ok(highest)
    }

    /// Up to where a primary may overwrite: cleared, durably, on `units_min` members or more, one of which is among any that
    /// [`Self::cursor`] asks.
    #[must_use]
    pub fn freed<'a>(&self, pairs: impl Iterator<Item = &'a CursorPair> + Clone) -> LogPosition {
        let agreed = pairs.filter_map(CursorPair::agreed);
        LogPosition(reached_by(agreed.map(LogPosition::get), self.units_min()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(cursor: u64, inverse: u64) -> CursorPair {
        CursorPair {
            cursor,
            inverse: !inverse,
        }
    }

    #[test]
    fn p13_room_is_taken_back_only_where_every_reader_sees_that_it_was_cleared() {
        for members in 1..=6_usize {
            for units_min in 1..=members {
                let quorum = Quorum::new(members, units_min, 1);
                for cleared in 0..1_u32 << members {
                    let pairs: Vec<_> = (0..members)
                        .map(|index| match cleared >> index & 1 {
                            1 => pair(800, 800),
                            _ => pair(80, 80),
                        })
                        .collect();
                    let freed = quorum.freed(pairs.iter());
                    for asked in 0..1_u32 << members {
                        let seen = (0..members).filter(|index| asked >> index & 1 == 1);
                        let seen = quorum.cursor(seen.map(|index| &pairs[index]));
                        assert!(seen.is_err() || seen.unwrap() >= freed);
                    }
                }
            }
        }
    }

    #[test]
    fn p13_a_clear_that_was_cut_short_counts_from_its_second_word_on() {
        assert_eq!(cursor_of(&pair(16, 16)), Some(LogPosition(16)));
        assert_eq!(cursor_of(&pair(64, 16)), Some(LogPosition(16)));
        assert_eq!(cursor_of(&pair(3, 16)), Some(LogPosition(16)));
        assert_eq!(cursor_of(&pair(3, 5)), None);
        let quorum = Quorum::new(3, 2, 1);
        let pairs = [pair(64, 16), pair(64, 64), pair(64, 16)];
        assert_eq!(quorum.freed(pairs.iter()), LogPosition(0));
        assert_eq!(quorum.cursor(pairs.iter()), Ok(LogPosition(64)));
        assert!(quorum.cursor(pairs[..1].iter()).is_err());
    }

    #[test]
    fn d06_what_enough_members_say_is_never_undone_by_a_take_over() {
        for members in 1..=6_usize {
            for units_min in 1..=members {
                let quorum = Quorum::new(members, units_min, 1);
                for said in 0..1_u32 << members {
                    let values = (0..members).map(|index| u64::from(said >> index & 1) * 8);
                    if reached_by(values, quorum.units_to_decide()) == 0 {
                        continue;
                    }
                    for taking in 0..1_u32 << members {
                        let enough = taking.count_ones() as usize >= units_min;
                        assert!(!enough || taking & said != 0);
                    }
                }
            }
        }
    }
}
