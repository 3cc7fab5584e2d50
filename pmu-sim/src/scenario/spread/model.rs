//! What is known of the sets of a spread region, and what must hold of every one that is read.

use std::collections::BTreeMap;

use pmu_client::SetInfo;

use crate::scenario::content::{content, id_of};

/// What its writer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing yet.
    None,
    Acknowledged,
    Unknown,
    /// It was not stored, for certain.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    number: u64,
    term: u64,
    length: u64,
    ending: Ending,
    /// Begun after its primary had been fenced.
    too_late: bool,
    /// Before the members were changed it was this set.
    before: Option<u64>,
}

impl Attempt {
    /// The term in which it may have become a set of this number; none if it may not.
    fn term_of(&self, number: u64) -> Option<u64> {
        // With other members it may have been tried more than once.
        let first = self.before.unwrap_or(self.number);
        (first..=self.number).contains(&number).then_some(self.term)
    }
}

/// What a reader knows when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Since {
    /// The newest set that was acknowledged.
    pub(crate) floor: u64,
    /// How many primaries had been opened.
    opened: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SpreadModel {
    attempts: Vec<Attempt>,
    /// Which attempt an acknowledged number stands for, and the units that its receipt names, one bit each.
    settled: BTreeMap<u64, (u64, u64)>,
    floor: u64,
    /// Term of each primary that was opened, and the set that it went on behind.
    opened: Vec<(u64, u64)>,
    /// Primaries of this term or a lower one are fenced.
    fenced: u64,
}

impl SpreadModel {
    pub(crate) fn since(&self) -> Since {
        Since {
            floor: self.floor,
            opened: self.opened.len(),
        }
    }

    /// The newest acknowledged set with the units that hold it, if no attempt since can have taken its place.
    pub(crate) fn kept(&self, sets_kept: u64) -> Option<(u64, u64)> {
        let newest = self.attempts.iter().map(|attempt| attempt.number).max()?;
        let (number, (_, units)) = self.settled.last_key_value()?;
        (number + sets_kept >= newest).then_some((*number, *units))
    }

    pub(crate) fn begin(&mut self, number: u64, term: u64, length: u64) -> u64 {
        self.attempts.push(Attempt {
            number,
            term,
            length,
            ending: Ending::None,
            too_late: term <= self.fenced,
            before: None,
        });
        self.attempts.len() as u64
    }

    fn attempt(&self, id: u64) -> Option<Attempt> {
        self.attempts
            .get(usize::try_from(id).ok()?.checked_sub(1)?)
            .copied()
    }

    /// A primary was opened: nothing may lie behind it that was committed when the opening began.
    pub(crate) fn opened(&mut self, term: u64, newest: u64, since: Since) -> Result<(), String> {
        if newest < since.floor {
            return Err(format!(
                "the primary of term {term} goes on behind set {newest}, and set {} was committed",
                since.floor
            ));
        }
        if self.opened.iter().any(|(other, _)| *other == term) {
            return Err(format!("two primaries have established term {term}"));
        }
        self.opened.push((term, newest));
        let all = self.opened.len();
        let acknowledged: Vec<_> = self.settled.values().copied().collect();
        acknowledged
            .iter()
            .filter_map(|(id, _)| self.attempt(*id))
            .try_for_each(|old| self.check_term(&old, all))
    }

    /// The members were changed, and the primary went on under a new term behind `newest`; the attempt in progress became the next set, perhaps.
    pub(crate) fn followed(
        &mut self,
        id: u64,
        term: u64,
        newest: u64,
        since: Since,
    ) -> Result<(), String> {
        self.opened(term, newest, since)?;
        let Some(attempt) = self.attempts.get_mut((id as usize).wrapping_sub(1)) else {
            return Err(format!("there is no attempt {id}"));
        };
        attempt.before = Some(attempt.before.unwrap_or(attempt.number));
        attempt.number = newest + 1;
        attempt.term = term;
        attempt.too_late = term <= self.fenced;
        Ok(())
    }

    /// These units were given all sets that are kept, up to this one.
    pub(crate) fn rebuilt(&mut self, given: u64, up_to: u64) {
        for (_, units) in self.settled.range_mut(..=up_to).map(|(_, settled)| settled) {
            *units |= given;
        }
    }

    /// A unit's region was deleted, or it was replaced.
    pub(crate) fn gone(&mut self, unit: usize) {
        for (_, units) in self.settled.values_mut() {
            *units &= !(1 << unit);
        }
    }

    /// The highest term of a primary that was opened: what a fence that begins now ends.
    pub(crate) fn newest_term(&self) -> u64 {
        self.opened.iter().map(|(term, _)| *term).max().unwrap_or(0)
    }

    pub(crate) fn fenced(&mut self, term: u64) {
        self.fenced = self.fenced.max(term);
    }

    pub(crate) fn end(&mut self, id: u64, ending: Ending, units: u64) -> Result<(), String> {
        let Some(attempt) = self.attempt(id) else {
            return Err(format!("there is no attempt {id}"));
        };
        self.attempts[id as usize - 1].ending = ending;
        if ending != Ending::Acknowledged {
            return Ok(());
        }
        if attempt.too_late {
            return Err(format!(
                "set {} of term {} is acknowledged, and was begun after a fence",
                attempt.number, attempt.term
            ));
        }
        self.floor = self.floor.max(attempt.number);
        match self.settled.insert(attempt.number, (id, units)) {
            Some((other, _)) if other != id => Err(format!(
                "set {} is attempt {id} and attempt {other}",
                attempt.number
            )),
            _ => self.check_term(&attempt, self.opened.len()),
        }
    }

    /// What was read must be one that was written, whole, not older than what was acknowledged, and of no primary that was overtaken.
    pub(crate) fn read(
        &self,
        set: &SetInfo,
        bytes: &[u8],
        since: Since,
        at_least: u64,
    ) -> Result<(), String> {
        let number = set.number.get();
        if number < at_least {
            return Err(format!(
                "set {number} was read, and set {at_least} had been committed"
            ));
        }
        let id = id_of(&set.label);
        let Some((id, attempt)) = id.and_then(|id| Some((id, self.attempt(id)?))) else {
            return Err(format!(
                "set {number} bears a label that nobody wrote: {}",
                set.label
            ));
        };
        let term = match attempt.ending {
            // Its primary may be at it for the second time, with other members.
            Ending::None if number > attempt.number => Some(u64::MAX),
            _ => attempt.term_of(number),
        };
        let Some(term) = term.filter(|_| attempt.length == set.bytes) else {
            return Err(format!(
                "set {number} with {} bytes was read, and attempt {id} is set {} with {} bytes",
                set.bytes, attempt.number, attempt.length
            ));
        };
        if bytes != content(id, attempt.length as usize) {
            return Err(format!(
                "set {number} (attempt {id}) was read with wrong bytes"
            ));
        }
        if attempt.ending == Ending::Refused {
            return Err(format!(
                "set {number} was read, and its writer was told that it was not stored"
            ));
        }
        // A read that began before may still find what an earlier primary left under this number; never another try of the same one.
        let known = |other: u64| {
            let same_term = self.attempt(other).is_some_and(|other| other.term == term);
            number <= since.floor || same_term
        };
        if let Some((other, _)) = self
            .settled
            .get(&number)
            .filter(|(other, _)| *other != id && known(*other))
        {
            return Err(format!(
                "set {number} was read as attempt {id}, and attempt {other} was acknowledged"
            ));
        }
        let read = Attempt {
            number,
            term,
            ..attempt
        };
        self.check_term(&read, since.opened)
    }

    /// Nothing of an old primary counts behind what a newer one, among the first `opened`, went on from.
    fn check_term(&self, attempt: &Attempt, opened: usize) -> Result<(), String> {
        let overtaken =
            |(term, newest): &&(u64, u64)| *term > attempt.term && attempt.number > *newest;
        match self.opened.iter().take(opened).find(overtaken) {
            Some((term, newest)) => Err(format!(
                "set {} of term {} counts, and the primary of term {term} went on behind set {newest}",
                attempt.number, attempt.term
            )),
            None => Ok(()),
        }
    }
}
