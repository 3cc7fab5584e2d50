//! Terms: whose numbers count.
//!
//! A new primary takes a term in two steps, as it commits. It **proposes** the term, in a record on at least `units_min`
//! members, which its fence has closed to all others; then it **establishes** it there, by the term word. So of any members that
//! decide, one knows every established term, and no two primaries establish the same one: a later primary reaches a member with
//! the proposal. (The argument is that of single-decree consensus with unique ballots; see docs/spread.md.)
//!
//! What a member has published counts if its term is the highest established one that is known. The record says what was
//! committed when the member took the term, so that a member that missed sets votes for them all the same.

use pmu_format::{
    COUNT_MAX, FormatError, LogPosition, Mode, PAGE_BYTES, RegionOffset, RegionPiece, SetNumber,
    SpreadId, TERM_RECORD_BYTES, TERM_RECORD_OFFSETS, TERM_WORD_OFFSET, Term, TermRecord,
    TermStart,
};

use crate::spread::{Quorum, TooFewUnits};
use crate::{ReadRequest, WordWrite};

/// What one member knows: of its term, and of what is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    /// The publish word: the number of the newest set that it has published, or the end of its log.
    pub published: u64,
    /// The established term with what belongs to it; none on a member that never took part.
    pub record: Option<TermRecord>,
    /// The highest term that it has seen proposed or established.
    pub highest: Term,
    /// It has no term, and has seen the proposal of the first one.
    witness: bool,
    /// Which of the two records a new proposal may overwrite.
    free: usize,
    /// What the publish word is: of sets, or of a log.
    mode: Mode,
    /// The publish word says nothing, and `published` is 0.
    is_publish_damaged: bool,
}

/// Why a member can't say what it knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StandError {
    /// It is of another spread region, or its record was not written by one.
    #[error("its term record belongs to another region")]
    Foreign,
    /// The record of its established term can't be read.
    #[error("the record of its term {term} can't be read: {source}")]
    Damaged {
        /// The term.
        term: Term,
        /// What is wrong.
        source: FormatError,
    },
    /// Its publish word or its term word is not what was written.
    #[error("{0}")]
    Word(FormatError),
    /// It has published something, and knows of no term.
    #[error("it has published {published}, and knows of no term")]
    NoTerm {
        /// What it has published.
        published: u64,
    },
}

fn published_in(page: &[u8], mode: Mode) -> Result<u64, FormatError> {
    let word = word(page, RegionOffset(0));
    match mode {
        Mode::Overwrite => SetNumber::of_publish_word(word).map(SetNumber::get),
        Mode::Append => LogPosition::of_tail_word(word).map(LogPosition::get),
    }
}

fn word(page: &[u8], offset: RegionOffset) -> u64 {
    let begin = offset.get() as usize;
    let bytes = page.get(begin..begin + 8);
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

impl Stand {
    /// The page that says it all. Read it twice: what the second one says counts if the term word of both is the same.
    #[must_use]
    pub const fn request() -> ReadRequest {
        ReadRequest {
            offset: RegionOffset(0),
            length_bytes: PAGE_BYTES,
        }
    }

    /// The term word in a page, as it stands there.
    #[must_use]
    pub fn term_word(page: &[u8]) -> u64 {
        word(page, TERM_WORD_OFFSET)
    }

    /// What a page of a region of this mode says.
    ///
    /// # Errors
    /// [`StandError`]: the member has no vote.
    pub fn read(page: &[u8], id: SpreadId, mode: Mode) -> Result<Self, StandError> {
        let established = Term::of_term_word(Self::term_word(page)).map_err(StandError::Word)?;
        let published = published_in(page, mode).map_err(StandError::Word)?;
        let found = TERM_RECORD_OFFSETS.map(|offset| {
            TermRecord::decode(page.get(offset.get() as usize..).unwrap_or_default())
        });
        if found.iter().flatten().any(|record| record.id != id) {
            return Err(StandError::Foreign);
        }
        let highest = found.iter().flatten().map(TermRecord::term).max();
        let highest = highest.unwrap_or_default().max(established);
        if established == Term(0) {
            if published != 0 {
                return Err(StandError::NoTerm { published });
            }
            // Later proposals leave the first one where it is: it is what this member's vote rests on.
            let first = |found: &Result<TermRecord, FormatError>| {
                found.as_ref().is_ok_and(|proposal| proposal.committed == 0)
            };
            let first = found.iter().position(first);
            return Ok(Self {
                published,
                record: None,
                highest,
                witness: first.is_some(),
                free: first.map_or(0, |at| 1 - at),
                mode,
                is_publish_damaged: false,
            });
        }
        let of_term = |index: &usize| {
            let record = found[*index].as_ref();
            record.is_ok_and(|record| record.term() == established)
        };
        // A member that came back in the same term, or was given what it lacked, has two: the later one knows more, or lacks less.
        let at = (0..found.len()).filter(of_term).max_by_key(|index| {
            let record = found[*index].as_ref();
            record.map_or((0, 0), |record| (record.committed, record.mark))
        });
        let Some(at) = at else {
            let source = found.into_iter().find_map(Result::err);
            return Err(StandError::Damaged {
                term: established,
                source: source.unwrap_or(FormatError::Field {
                    structure: pmu_format::Structure::TermRecord,
                    field: "term",
                    found: highest.0,
                    expected: "the established one",
                }),
            });
        };
        let [first, second] = found;
        let record = if at == 0 { first } else { second };
        Ok(Self {
            published,
            record: record.ok(),
            highest,
            witness: false,
            free: 1 - at,
            mode,
            is_publish_damaged: false,
        })
    }

    /// What a page says of a member that is to be given what it lacks: one whose record or words are damaged says what is left, and has no
    /// vote.
    ///
    /// # Errors
    /// [`StandError`]: it is no member of this region.
    pub fn read_to_fill(page: &[u8], id: SpreadId, mode: Mode) -> Result<Self, StandError> {
        match Self::read(page, id, mode) {
            Err(StandError::Damaged { .. } | StandError::Word(_) | StandError::NoTerm { .. }) => {}
            other => return other,
        }
        let term = Term::of_term_word(Self::term_word(page)).unwrap_or_default();
        let published = published_in(page, mode);
        let record_at = |offset: RegionOffset| {
            TermRecord::decode(page.get(offset.get() as usize..).unwrap_or_default())
        };
        let found = TERM_RECORD_OFFSETS.map(record_at);
        if found.iter().flatten().any(|record| record.id != id) {
            return Err(StandError::Foreign);
        }
        let highest = found.iter().flatten().map(TermRecord::term).max();
        Ok(Self {
            is_publish_damaged: published.is_err(),
            published: published.unwrap_or_default(),
            record: None,
            highest: highest.unwrap_or_default().max(term),
            witness: false,
            free: found.iter().position(Result::is_err).unwrap_or(0),
            mode,
        })
    }

    /// Whether it can say what is committed where others have a term. Without one of its own it can if it saw the first proposal: whoever
    /// proposed knew that nothing was committed, and this member can't have published since. A member that saw a later proposal only
    /// may be new in the place of another that knew more.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.record.is_some() || self.witness
    }

    /// The established term; 0 for none.
    #[must_use]
    pub fn term(&self) -> Term {
        self.record.as_ref().map_or(Term(0), TermRecord::term)
    }

    /// What it says is committed, in its own term.
    #[must_use]
    pub fn committed(&self) -> u64 {
        let recorded = self.record.as_ref().map_or(0, |record| record.committed);
        self.published.max(recorded)
    }

    /// The publish word that says so much: the number of a set, or the end of a log.
    #[must_use]
    pub const fn publish_word(&self, published: u64) -> WordWrite {
        WordWrite {
            offset: RegionOffset(0),
            value: match self.mode {
                Mode::Overwrite => SetNumber(published).publish_word(),
                Mode::Append => LogPosition(published).tail_word(),
            },
        }
    }

    /// Where the publish word is damaged: one that says that nothing was published.
    #[must_use]
    pub fn mended(&self) -> Option<WordWrite> {
        self.is_publish_damaged.then(|| self.publish_word(0))
    }

    /// Of sets: whether this member was away, or was cut off, when a set was written in which others have taken part: it may have no share
    /// of it, or a part of one, though its medium is good.
    #[must_use]
    pub fn may_lack(&self, number: u64) -> bool {
        let record = self.record.as_ref();
        self.mode == Mode::Overwrite && record.is_some_and(|record| missed(record).contains(number))
    }

    /// Of sets: what this member may lack if it takes part behind `committed` now, and so many are kept.
    fn missed(&self, committed: u64, sets_kept: u32) -> Missed {
        let Some(record) = &self.record else {
            return Missed::between(0, committed);
        };
        // It has taken part in what it published since.
        let now = Missed::between(self.published.max(record.committed), committed);
        let before = missed(record);
        let kept = (committed + 1).saturating_sub(u64::from(sets_kept) + 1);
        // What it missed before it lacks still, as long as it is of use to anybody.
        if before.is_empty() || before.end.min(committed) < kept {
            return now;
        }
        let end = if now.is_empty() {
            before.end.min(committed)
        } else {
            now.end
        };
        Missed::between(before.behind, end)
    }

    /// How this member takes part from now on in the term of `newest`, behind what `newest` says is committed. So many sets are kept: 0 in a log.
    #[must_use]
    pub fn opening(
        &self,
        id: SpreadId,
        generation: u64,
        newest: &Newest,
        sets_kept: u32,
    ) -> TermOpening {
        match self.mode {
            Mode::Overwrite => {
                let missed = self.missed(newest.committed, sets_kept);
                self.opening_with(id, generation, newest, (missed.behind, missed.count()))
            }
            Mode::Append => self.opening_with(id, generation, newest, (newest.cleared, 0)),
        }
    }

    /// The same of a member of sets that was given everything that it lacked up to the set `held`.
    #[must_use]
    pub fn opening_filled(
        &self,
        id: SpreadId,
        generation: u64,
        newest: &Newest,
        held: SetNumber,
    ) -> TermOpening {
        let missed = Missed::between(held.get(), newest.committed);
        self.opening_with(id, generation, newest, (missed.behind, missed.count()))
    }

    fn opening_with(
        &self,
        id: SpreadId,
        generation: u64,
        newest: &Newest,
        (mark, missed): (u64, u32),
    ) -> TermOpening {
        let record = TermRecord {
            id,
            generation,
            committed: newest.committed,
            mark,
            missed,
            starts: newest.starts.clone(),
        };
        let offset = TERM_RECORD_OFFSETS[self.free];
        let lowered = if self.is_publish_damaged {
            self.mended()
        } else {
            let published = self.publish_word(newest.committed);
            (self.published > newest.committed).then_some(published)
        };
        TermOpening {
            record: record.encode(),
            record_offset: offset,
            flush_record: RegionPiece {
                offset,
                length_bytes: TERM_RECORD_BYTES as u64,
            },
            lowered,
            term: WordWrite {
                offset: TERM_WORD_OFFSET,
                value: newest.term().term_word(),
            },
        }
    }
}

/// Sets that a member may lack: those above `behind`, up to `end`.
#[derive(Clone, Copy, Debug)]
struct Missed {
    behind: u64,
    end: u64,
}

impl Missed {
    fn between(behind: u64, end: u64) -> Self {
        // Far more than are ever kept.
        let least = end.saturating_sub(u32::MAX.into());
        Self {
            behind: behind.clamp(least, end),
            end,
        }
    }

    const fn is_empty(self) -> bool {
        self.behind == self.end
    }

    fn contains(self, number: u64) -> bool {
        (self.behind + 1..=self.end).contains(&number)
    }

    fn count(self) -> u32 {
        u32::try_from(self.end - self.behind).unwrap_or(u32::MAX)
    }
}

fn missed(record: &TermRecord) -> Missed {
    Missed {
        behind: record.mark,
        end: record.mark + u64::from(record.missed),
    }
}

/// How a member takes a term. Two chains: the record and its flush; and, when enough members have the record durable, the lowered
/// publish word if there is one, with its flush, and the term word with its flush.
#[derive(Clone, Debug)]
pub struct TermOpening {
    /// The proposal.
    pub record: [u8; TERM_RECORD_BYTES],
    /// Where it goes.
    pub record_offset: RegionOffset,
    /// FLUSH of it.
    pub flush_record: RegionPiece,
    /// What the member had published beyond what is committed is taken back: nobody acknowledged it.
    pub lowered: Option<WordWrite>,
    /// The term word.
    pub term: WordWrite,
}

/// What is committed, and whose numbers count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// The number of the newest committed set, or the end of the log; 0 for none.
    pub committed: u64,
    /// Of a log: up to where it is cleared, for the records of the members that take part; see [`Quorum::cursor`].
    pub cleared: u64,
    /// The terms that are known, ascending; the last one is in force. None in a region that nobody has written.
    pub starts: Vec<TermStart>,
    /// The highest term that was proposed or established.
    highest: Term,
    /// Whether so many members have published it that its primary may have gone on to the next.
    settled: Settled,
}

/// Whether as many members have published the newest set as a commit takes. If not, its primary still keeps the set before it, and that one
/// counts again if those that published the newest lose their power before it was flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Settled {
    #[default]
    Yes,
    /// If those that can't be asked have published it too.
    Perhaps,
    No,
}

impl Newest {
    /// Whether the set before the kept ones may count again, and is still there: too few members have published the newest one.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.settled == Settled::No
    }

    /// As [`Self::is_unsettled`], or so many members can't be asked that nobody knows.
    #[must_use]
    pub fn may_be_unsettled(&self) -> bool {
        self.settled != Settled::Yes
    }

    /// The newest committed set; 0 for none.
    #[must_use]
    pub const fn set(&self) -> SetNumber {
        SetNumber(self.committed)
    }

    /// The end of the committed log.
    #[must_use]
    pub const fn position(&self) -> LogPosition {
        LogPosition(self.committed)
    }

    /// The term in force.
    #[must_use]
    pub fn term(&self) -> Term {
        self.starts.last().map_or(Term(0), |start| start.term)
    }

    /// In which term a set (or what begins at a position of the log, plus one) was written, if it is committed; `None` where that is
    /// forgotten or it isn't committed.
    #[must_use]
    pub fn term_of(&self, number: u64) -> Option<Term> {
        if number == 0 || number > self.committed {
            return None;
        }
        let start = self.starts.iter().rev().find(|start| start.behind < number);
        start.map(|start| start.term)
    }

    /// Up to where a member's own log counts, which has published `published` in the term `term`: behind that stands, if anything, what a
    /// fenced primary left.
    #[must_use]
    pub fn valid_to(&self, term: Term, published: u64) -> u64 {
        let later = self.starts.iter().find(|start| start.term > term);
        let known = self.starts.first().is_some_and(|start| start.term <= term);
        match later {
            None => published.min(self.committed),
            Some(later) if known || later.behind == 0 => published.min(later.behind),
            // So many take-overs ago that nobody knows where its term ended.
            Some(_) => 0,
        }
    }

    /// The term of a new primary, behind everything that is committed. `None` if no term is left.
    #[must_use]
    pub fn next_term(&self) -> Option<Self> {
        let next = self.highest.0.checked_add(1);
        let term = Term(next.filter(|term| *term <= COUNT_MAX)?);
        let mut starts = self.starts.clone();
        // A term in which nothing was committed is of no use to anybody.
        starts.retain(|start| start.behind < self.committed);
        starts.push(TermStart {
            term,
            behind: self.committed,
        });
        let excess = starts.len().saturating_sub(pmu_format::TERMS_KEPT_MAX);
        starts.drain(..excess);
        Some(Self {
            committed: self.committed,
            cleared: self.cleared,
            starts,
            highest: term,
            settled: self.settled,
        })
    }

    /// A proposal of the highest term that anybody has seen, if none but proposals know of it: a member that takes the place of another
    /// keeps it, so that nobody draws it again.
    #[must_use]
    pub fn reservation(&self) -> Option<Self> {
        if self.highest == self.term() {
            return None;
        }
        let mut reserved = self.clone();
        reserved.starts.push(TermStart {
            term: self.highest,
            behind: self.committed,
        });
        let excess = reserved
            .starts
            .len()
            .saturating_sub(pmu_format::TERMS_KEPT_MAX);
        reserved.starts.drain(..excess);
        Some(reserved)
    }

    /// The same when more was committed.
    pub fn advance(&mut self, committed: u64) {
        self.committed = self.committed.max(committed);
    }
}

impl Quorum {
    /// What is committed, from what each member that answers says. A member that never took part has no vote where others did.
    ///
    /// # Errors
    /// [`TooFewUnits`]: all that answer may have missed it.
    pub fn newest<'a>(
        &self,
        stands: impl Iterator<Item = &'a Stand> + Clone,
    ) -> Result<Newest, TooFewUnits> {
        let highest = stands.clone().map(|stand| stand.highest).max();
        let Some(term) = stands.clone().map(Stand::term).max() else {
            self.check_decide(0)?;
            return Ok(Newest::default());
        };
        let voters = stands
            .clone()
            .filter(|stand| term == Term(0) || stand.votes());
        self.check_decide(voters.count())?;
        #[cfg(feature = "planted-bugs")]
        let any = pmu_format::planted::is_planted(pmu_format::planted::Bug::SkipEpochCheck);
        #[cfg(not(feature = "planted-bugs"))]
        let any = false;
        let in_force = stands.clone().filter(|stand| any || stand.term() == term);
        let committed = in_force.clone().map(Stand::committed).max().unwrap_or(0);
        let settled = self.settled(stands, committed);
        let record = in_force.into_iter().find_map(|stand| stand.record.as_ref());
        Ok(Newest {
            committed,
            cleared: 0,
            starts: record.map_or_else(Vec::new, |record| record.starts.clone()),
            highest: highest.unwrap_or_default(),
            settled,
        })
    }

    /// A member that has no vote, or an older term, may yet have published what is committed, or what came after it.
    fn settled<'a>(
        &self,
        stands: impl Iterator<Item = &'a Stand> + Clone,
        committed: u64,
    ) -> Settled {
        let voters = stands.filter(|stand| stand.votes());
        let holding = voters
            .clone()
            .filter(|stand| stand.committed() >= committed);
        let (voters, holding) = (voters.count(), holding.count());
        if holding >= self.units_min() {
            Settled::Yes
        } else if holding + self.members().saturating_sub(voters) >= self.units_min() {
            Settled::Perhaps
        } else {
            Settled::No
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SpreadId = SpreadId([9; 16]);

    /// A member's page, and what a primary does to it.
    #[derive(Clone)]
    struct Member(Vec<u8>);

    impl Member {
        fn new() -> Self {
            Self(vec![0; PAGE_BYTES as usize])
        }

        fn stand(&self) -> Stand {
            Stand::read(&self.0, ID, Mode::Overwrite).unwrap()
        }

        fn set(&mut self, write: WordWrite) {
            let at = write.offset.get() as usize;
            self.0[at..at + 8].copy_from_slice(&write.value.to_le_bytes());
        }

        fn publish(&mut self, number: u64) {
            self.set(WordWrite {
                offset: RegionOffset(0),
                value: SetNumber(number).publish_word(),
            });
        }

        fn damage(&mut self, offset: RegionOffset) {
            self.0[offset.get() as usize + 9] ^= 4;
        }

        fn propose(&mut self, newest: &Newest) -> TermOpening {
            let opening = self.stand().opening(ID, 1, newest, 2);
            let at = opening.record_offset.get() as usize;
            self.0[at..at + TERM_RECORD_BYTES].copy_from_slice(&opening.record);
            opening
        }

        fn establish(&mut self, opening: &TermOpening) {
            if let Some(word) = opening.lowered {
                self.set(word);
            }
            self.set(opening.term);
        }

        fn take(&mut self, newest: &Newest) {
            let opening = self.propose(newest);
            self.establish(&opening);
        }
    }

    fn newest(quorum: Quorum, members: &[&Member]) -> Result<Newest, TooFewUnits> {
        let stands: Vec<_> = members.iter().map(|member| member.stand()).collect();
        quorum.newest(stands.iter())
    }

    /// Four units, three of which commit; term 1 has committed set 5 on a, b and d, and c missed it.
    fn begun() -> (Quorum, [Member; 4]) {
        let quorum = Quorum::new(4, 3, 3);
        let mut members = [(); 4].map(|()| Member::new());
        let [a, b, c, d] = &members;
        let first = newest(quorum, &[a, b, c, d]).unwrap().next_term().unwrap();
        assert_eq!((first.term(), first.committed), (Term(1), 0));
        members.iter_mut().for_each(|member| member.take(&first));
        for (index, number) in [(0, 5), (1, 5), (2, 4), (3, 5)] {
            members[index].publish(number);
        }
        (quorum, members)
    }

    #[test]
    fn d01_a_stale_member_alone_is_never_believed() {
        let (quorum, [a, b, c, d]) = begun();
        assert!(newest(quorum, &[&c]).is_err() && newest(quorum, &[]).is_err());
        for other in [&a, &b, &d] {
            assert_eq!(newest(quorum, &[&c, other]).unwrap().committed, 5);
        }
    }

    #[test]
    fn d03_a_set_that_too_few_have_published_leaves_the_one_before_it_in_use() {
        let (quorum, [mut a, mut b, c, d]) = begun();
        let is_open = |members: &[&Member]| {
            let found = newest(quorum, members).unwrap();
            (found.is_unsettled(), found.may_be_unsettled())
        };
        assert_eq!(is_open(&[&a, &b, &c, &d]), (false, false));
        // Set 6 on one of four: three commit it.
        a.publish(6);
        assert_eq!(is_open(&[&a, &b, &c, &d]), (true, true));
        assert_eq!(is_open(&[&a, &b, &c]), (true, true));
        assert_eq!(is_open(&[&a, &b]), (false, true));
        b.publish(6);
        assert_eq!(is_open(&[&a, &b, &c, &d]), (true, true));
        // The third may be the one that can't be asked.
        assert_eq!(is_open(&[&a, &b, &c]), (false, true));
        // A take-over that is half done says the same of set 6 as the term before.
        let next = newest(quorum, &[&a, &b, &c]).unwrap().next_term().unwrap();
        let mut d = d;
        d.take(&next);
        assert_eq!(is_open(&[&a, &b, &d]), (false, false));
    }

    #[test]
    fn d06_what_a_zombie_publishes_out_of_reach_of_the_fence_never_counts() {
        let (quorum, [mut a, mut b, mut c, mut d]) = begun();
        // Fenced on a, b and c; the old primary publishes 6 on d, which was out of reach.
        let next = newest(quorum, &[&a, &b, &c]).unwrap().next_term().unwrap();
        d.publish(6);
        for member in [&mut a, &mut b, &mut c] {
            member.take(&next);
        }
        for other in [&a, &b, &c] {
            let found = newest(quorum, &[other, &d]).unwrap();
            assert_eq!((found.committed, found.term()), (5, Term(2)));
            assert_eq!(found.term_of(5), Some(Term(1)));
            assert_eq!(found.term_of(6), None);
        }
        // The new primary's set 6 is of term 2, and the zombie's of term 1 is taken back when d comes home.
        for member in [&mut a, &mut b, &mut c] {
            member.publish(6);
        }
        assert_eq!(newest(quorum, &[&a, &d]).unwrap().term_of(6), Some(Term(2)));
        d.publish(9);
        let now = newest(quorum, &[&a, &b]).unwrap();
        d.take(&now);
        assert_eq!(d.stand().published, 6);
        assert_eq!(newest(quorum, &[&c, &d]).unwrap().committed, 6);
    }

    #[test]
    fn d06_a_member_that_missed_sets_votes_for_them_from_its_opening_on() {
        let (quorum, [a, b, mut c, _]) = begun();
        let next = newest(quorum, &[&a, &b, &c]).unwrap().next_term().unwrap();
        c.take(&next);
        let found = newest(quorum, &[&c, &a]).unwrap();
        assert_eq!((found.committed, found.term()), (5, Term(2)));
    }

    #[test]
    fn d06_a_proposal_alone_changes_nothing_and_its_number_is_not_used_again() {
        let (quorum, [mut a, b, c, d]) = begun();
        let next = newest(quorum, &[&a, &b]).unwrap().next_term().unwrap();
        a.propose(&next);
        let found = newest(quorum, &[&a, &c]).unwrap();
        assert_eq!((found.committed, found.term()), (5, Term(1)));
        assert_eq!(found.next_term().unwrap().term(), Term(3));
        assert_eq!(
            newest(quorum, &[&b, &d])
                .unwrap()
                .next_term()
                .unwrap()
                .term(),
            Term(2)
        );
    }

    #[test]
    fn d06_the_first_primary_may_die_before_it_has_its_term_everywhere() {
        let quorum = Quorum::new(2, 1, 1);
        let [mut a, mut b, blank] = [(); 3].map(|()| Member::new());
        let first = newest(quorum, &[&a, &b]).unwrap().next_term().unwrap();
        b.propose(&first);
        a.take(&first);
        a.publish(1);
        assert!(newest(quorum, &[&a, &blank]).is_err());
        let found = newest(quorum, &[&a, &b]).unwrap();
        assert_eq!((found.committed, found.term()), (1, Term(1)));
        // The proposal alone doesn't decide.
        assert!(newest(quorum, &[&b]).is_err());
        // It comes back, and goes again before it has the term: it still was there from the beginning.
        let mut now = found;
        for number in 1..=3 {
            now.advance(number);
            b.propose(&now);
            assert_eq!(newest(quorum, &[&a, &b]).unwrap().committed, 1);
        }
        let opening = b.propose(&now);
        b.establish(&opening);
        assert_eq!(b.stand().committed(), 3);
    }

    #[test]
    fn b04_a_new_member_has_no_vote_before_it_knows_what_the_old_one_knew() {
        let (quorum, [a, _, c, _]) = begun();
        // A proposal is no knowledge, only the term is.
        let mut new = Member::new();
        let now = newest(quorum, &[&a, &c]).unwrap();
        let opening = new.propose(&now);
        assert!(newest(quorum, &[&new, &c]).is_err());
        new.establish(&opening);
        assert_eq!(newest(quorum, &[&new, &c]).unwrap().committed, 5);
    }

    #[test]
    fn b04_a_blank_or_damaged_member_has_no_vote() {
        let (quorum, [a, mut b, ..]) = begun();
        let blank = Member::new();
        assert!(newest(quorum, &[&a, &blank]).is_err());
        assert_eq!(newest(quorum, &[&blank, &blank]).unwrap().committed, 0);
        b.0[TERM_RECORD_OFFSETS[0].get() as usize + 44] ^= 1;
        assert!(matches!(
            Stand::read(&b.0, ID, Mode::Overwrite),
            Err(StandError::Damaged { term: Term(1), .. })
        ));
        assert_eq!(
            Stand::read(&a.0, SpreadId([1; 16]), Mode::Overwrite),
            Err(StandError::Foreign)
        );
        let mut lost = Member::new();
        lost.publish(3);
        assert!(matches!(
            Stand::read(&lost.0, ID, Mode::Overwrite),
            Err(StandError::NoTerm { published: 3 })
        ));
    }

    #[test]
    fn d06_a_log_of_an_earlier_term_counts_up_to_where_the_next_one_began() {
        let mut now = Newest::default().next_term().unwrap();
        now.advance(100);
        let mut now = now.next_term().unwrap();
        now.advance(300);
        assert_eq!(now.starts.len(), 2);
        assert_eq!(now.valid_to(Term(1), 180), 100);
        assert_eq!(now.valid_to(Term(1), 60), 60);
        assert_eq!(now.valid_to(Term(2), 250), 250);
        assert_eq!(now.valid_to(Term(2), 999), 300);
        now.starts.remove(0);
        assert_eq!(now.valid_to(Term(1), 180), 0);
    }

    #[test]
    fn d06_terms_without_a_set_are_forgotten_and_the_others_kept_up_to_a_bound() {
        let mut now = Newest::default();
        for term in 1..=100 {
            now = now.next_term().unwrap();
            assert_eq!(now.term(), Term(term));
            if term % 2 == 0 {
                now.advance(term);
            }
        }
        assert_eq!(now.starts.len(), pmu_format::TERMS_KEPT_MAX);
        assert_eq!(now.term_of(100), Some(Term(100)));
        assert_eq!(now.term_of(97), Some(Term(98)));
        assert_eq!(now.term_of(2), None);
    }

    #[test]
    fn b07_a_member_says_which_sets_it_may_lack() {
        let quorum = Quorum::new(3, 2, 1);
        let [mut a, mut b] = [(); 2].map(|()| Member::new());
        let lacks = |member: &Member, numbers: std::ops::RangeInclusive<u64>| {
            let stand = member.stand();
            numbers
                .filter(|number| stand.may_lack(*number))
                .collect::<Vec<_>>()
        };
        let first = newest(quorum, &[&a, &b]).unwrap().next_term().unwrap();
        a.take(&first);
        for number in 1..=3 {
            a.publish(number);
        }
        // It comes for the first time when three sets are there.
        let mut now = newest(quorum, &[&a, &a]).unwrap();
        b.take(&now);
        assert_eq!(
            (lacks(&a, 0..=9), lacks(&b, 0..=9)),
            (vec![], vec![1, 2, 3])
        );
        // It takes part in set 4, is cut off in set 5, and comes back: what it lacked before it lacks still.
        for number in 4..=5 {
            a.publish(number);
        }
        b.publish(4);
        now.advance(5);
        b.take(&now);
        assert_eq!(lacks(&b, 0..=9), [1, 2, 3, 4, 5]);
        b.publish(6);
        now.advance(6);
        b.take(&now);
        assert_eq!(lacks(&b, 0..=9), [1, 2, 3, 4, 5]);
        b.publish(7);
        now.advance(7);
        b.take(&now);
        assert_eq!(lacks(&b, 0..=9), [1, 2, 3, 4, 5]);
        // Two sets are kept, and the one before them may count again: that is long ago.
        b.publish(8);
        now.advance(8);
        b.take(&now);
        assert_eq!(lacks(&b, 0..=12), [] as [u64; 0]);
        // One that was given what it lacked lacks nothing.
        now.advance(12);
        b.take(&now);
        assert_eq!(lacks(&b, 0..=12), [9, 10, 11, 12]);
        let opening = b.stand().opening_filled(ID, 1, &now, SetNumber(12));
        let at = opening.record_offset.get() as usize;
        b.0[at..at + TERM_RECORD_BYTES].copy_from_slice(&opening.record);
        b.establish(&opening);
        b.publish(12);
        assert_eq!(lacks(&b, 0..=12), [] as [u64; 0]);
        // What it publishes that doesn't count is taken back, and says nothing of what it holds.
        b.publish(20);
        b.take(&now);
        assert_eq!((b.stand().published, lacks(&b, 0..=20)), (12, vec![]));
    }

    #[test]
    fn b07_a_member_with_a_damaged_record_has_no_vote_and_takes_a_term_again() {
        let quorum = Quorum::new(2, 2, 1);
        let mut members = [Member::new(), Member::new()];
        let stands: Vec<_> = members.iter().map(Member::stand).collect();
        let first = quorum.newest(stands.iter()).unwrap().next_term().unwrap();
        members.iter_mut().for_each(|member| member.take(&first));
        members[0].publish(7);
        for offset in TERM_RECORD_OFFSETS {
            members[0].damage(offset);
        }
        let page = &members[0].0;
        assert!(matches!(
            Stand::read(page, ID, Mode::Overwrite),
            Err(StandError::Damaged { .. })
        ));
        let stand = Stand::read_to_fill(page, ID, Mode::Overwrite).unwrap();
        assert!(!stand.votes() && stand.published == 7 && stand.highest == first.term());
        assert_eq!(
            Stand::read_to_fill(page, SpreadId([1; 16]), Mode::Overwrite)
                .unwrap()
                .term(),
            Term(0)
        );
        // Others say that set 5 is the newest: what it had published beyond is taken back.
        let mut newest = first.clone();
        newest.advance(5);
        let opening = stand.opening(ID, 1, &newest, 2);
        let at = opening.record_offset.get() as usize;
        members[0].0[at..at + TERM_RECORD_BYTES].copy_from_slice(&opening.record);
        members[0].establish(&opening);
        let again = members[0].stand();
        assert_eq!((again.term(), again.committed()), (first.term(), 5));
    }

    #[test]
    fn b07_a_member_with_a_damaged_word_has_no_vote_and_is_given_it_anew() {
        let quorum = Quorum::new(2, 2, 1);
        let mut whole = Member::new();
        let stand = whole.stand();
        let first = quorum.newest([stand].iter()).unwrap();
        let first = first.next_term().unwrap();
        whole.take(&first);
        whole.publish(7);
        for (offset, bits) in [(RegionOffset(0), 64), (TERM_WORD_OFFSET, 64)] {
            for bit in 0..bits {
                let mut member = whole.clone();
                member.0[offset.get() as usize + bit / 8] ^= 1 << (bit % 8);
                assert!(matches!(
                    Stand::read(&member.0, ID, Mode::Overwrite),
                    Err(StandError::Word(_))
                ));
                let stand = Stand::read_to_fill(&member.0, ID, Mode::Overwrite).unwrap();
                assert!(!stand.votes() && stand.highest == first.term());
                let mut newest = first.clone();
                newest.advance(7);
                let opening = stand.opening(ID, 1, &newest, 2);
                let at = opening.record_offset.get() as usize;
                member.0[at..at + TERM_RECORD_BYTES].copy_from_slice(&opening.record);
                member.establish(&opening);
                let again = member.stand();
                assert_eq!((again.term(), again.committed()), (first.term(), 7));
            }
        }
        // Where nobody has a term, a word that says that nothing was published takes its place.
        let mut blank = Member::new();
        blank.0[3] ^= 1;
        let stand = Stand::read_to_fill(&blank.0, ID, Mode::Overwrite).unwrap();
        blank.set(stand.mended().unwrap());
        assert_eq!(blank.stand().published, 0);
    }
}
