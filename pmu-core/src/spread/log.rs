//! Logs over several units: what may be read, and what may be overwritten.
//!
//! All members' records stand at the same positions, and the end of the committed log is what [`Quorum::newest`] says. Two questions are a
//! log's own. A reader beside a live primary hands out only what no take-over can undo: [`Quorum::stable`]. And a primary takes room back
//! only where every later reader sees that it was cleared: [`Quorum::freed`] against [`Quorum::cursor`].

use pmu_format::{CursorPair, LogPosition, Term};

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

    /// Up to where the log was cleared, from the cursor pages of the members that answer, and from their term records: a member that is new
    /// or was away has there what it missed. One without a vote says nothing.
    ///
    /// # Errors
    /// [`TooFewUnits`]: all that answer may have missed it.
    pub fn cursor<'a>(
        &self,
        members: impl Iterator<Item = (&'a Stand, &'a CursorPair)> + Clone,
    ) -> Result<LogPosition, TooFewUnits> {
        let blank = members.clone().all(|(stand, _)| stand.term() == Term(0));
        let voters = members.filter(|(stand, _)| stand.votes() || blank);
        let said = voters.filter_map(|(stand, pair)| Some(cursor_of(pair)?.max(cleared(stand))));
        self.check_decide(said.clone().count())?;
        Ok(said.max().unwrap_or_default())
    }

    /// Up to where a primary may overwrite: cleared, durably, as `units_min` members or more say, one of which is among any that
    /// [`Self::cursor`] asks.
    #[must_use]
    pub fn freed<'a>(
        &self,
        members: impl Iterator<Item = (&'a Stand, &'a CursorPair)> + Clone,
    ) -> LogPosition {
        let said = members.map(|(stand, pair)| {
            let agreed = pair.agreed().unwrap_or_default();
            agreed.max(cleared(stand)).get()
        });
        LogPosition(reached_by(said, self.units_min()))
    }
}

/// What a member's term record says was cleared.
fn cleared(stand: &Stand) -> LogPosition {
    LogPosition(stand.record.as_ref().map_or(0, |record| record.mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    use pmu_format::{Mode, PAGE_BYTES, SpreadId, TERM_WORD_OFFSET, TermRecord, TermStart};

    fn member(cleared: Option<u64>) -> Stand {
        let mut page = vec![0; PAGE_BYTES as usize];
        if let Some(cleared) = cleared {
            let record = TermRecord {
                id: SpreadId([1; 16]),
                generation: 1,
                committed: 8000,
                mark: cleared,
                missed: 0,
                starts: vec![TermStart {
                    term: Term(3),
                    behind: 0,
                }],
            };
            page[1024..1024 + 576].copy_from_slice(&record.encode());
            let at = TERM_WORD_OFFSET.get() as usize;
            page[at..at + 8].copy_from_slice(&Term(3).term_word().to_le_bytes());
        }
        Stand::read(&page, SpreadId([1; 16]), Mode::Append).unwrap()
    }

    #[test]
    fn b04_a_member_that_is_new_or_was_away_says_of_the_cursor_what_its_term_record_does() {
        let quorum = Quorum::new(4, 3, 3);
        let (never, old, new) = (member(None), member(Some(0)), member(Some(640)));
        let (low, high) = (pair(80, 80), pair(640, 640));
        let cursor = |said: &[(&Stand, &CursorPair)]| quorum.cursor(said.iter().copied());
        assert_eq!(cursor(&[(&old, &low), (&old, &high)]), Ok(LogPosition(640)));
        assert!(cursor(&[(&never, &pair(0, 0)), (&old, &low)]).is_err());
        let replaced = (&new, &pair(0, 0));
        assert_eq!(cursor(&[replaced, (&old, &low)]), Ok(LogPosition(640)));
        let freed = |said: &[(&Stand, &CursorPair)]| quorum.freed(said.iter().copied());
        assert_eq!(
            freed(&[replaced, (&old, &high), (&old, &low)]),
            LogPosition(80)
        );
        assert_eq!(
            freed(&[replaced, (&old, &high), (&new, &low)]),
            LogPosition(640)
        );
    }

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
                    let stand = member(Some(0));
                    let freed = quorum.freed(pairs.iter().map(|pair| (&stand, pair)));
                    for asked in 0..1_u32 << members {
                        let seen = (0..members).filter(|index| asked >> index & 1 == 1);
                        let seen = quorum.cursor(seen.map(|index| (&stand, &pairs[index])));
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
        let stand = member(Some(0));
        let said = pairs.iter().map(|pair| (&stand, pair));
        assert_eq!(quorum.freed(said.clone()), LogPosition(0));
        assert_eq!(quorum.cursor(said.clone()), Ok(LogPosition(64)));
        assert!(quorum.cursor(said.take(1)).is_err());
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
