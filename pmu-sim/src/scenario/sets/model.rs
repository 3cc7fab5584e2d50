//! What is known of the sets of a region, and what must hold of every one that is read.

use std::collections::BTreeMap;

use pmu_client::{Label, SetInfo};

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
    epoch: u64,
    length: u64,
    ending: Ending,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SetsModel {
    attempts: Vec<Attempt>,
    /// Which attempt a number stands for, once it is acknowledged or was read as committed: from then on it is no other's.
    settled: BTreeMap<u64, u64>,
    /// The newest acknowledged set.
    floor: u64,
    /// The newest that a reader has seen as committed: its bytes are durable, though its number may not be.
    seen: u64,
    /// Epoch of each primary that was opened, and the set that it went on behind.
    opened: Vec<(u64, u64)>,
}

impl SetsModel {
    pub(crate) const fn new() -> Self {
        Self {
            attempts: Vec::new(),
            settled: BTreeMap::new(),
            floor: 0,
            seen: 0,
            opened: Vec::new(),
        }
    }

    /// What a reader must find at least: the newest acknowledged set.
    pub(crate) const fn floor(&self) -> u64 {
        self.floor
    }

    /// What a recovery must find at least.
    pub(crate) fn recovery_floor(&self) -> u64 {
        self.floor.max(self.seen)
    }

    pub(crate) fn begin(&mut self, number: u64, epoch: u64, length: u64) -> u64 {
        self.attempts.push(Attempt {
            number,
            epoch,
            length,
            ending: Ending::None,
        });
        self.attempts.len() as u64
    }

    fn attempt(&self, id: u64) -> Option<Attempt> {
        self.attempts
            .get(usize::try_from(id).ok()?.checked_sub(1)?)
            .copied()
    }

    pub(crate) fn end(&mut self, id: u64, ending: Ending) -> Result<(), String> {
        let Some(attempt) = self.attempt(id) else {
            return Err(format!("there is no attempt {id}"));
        };
        self.attempts[id as usize - 1].ending = ending;
        match ending {
            Ending::Acknowledged => {
                self.floor = self.floor.max(attempt.number);
                self.settle(attempt.number, id)?;
                self.check_epoch(&attempt)
            }
            Ending::Refused if self.settled.get(&attempt.number) == Some(&id) => Err(format!(
                "set {} was read, and its writer is told that it was not stored",
                attempt.number
            )),
            _ => Ok(()),
        }
    }

    /// A primary was opened: nothing may lie behind it that was committed when the opening began.
    pub(crate) fn opened(&mut self, epoch: u64, newest: u64, floor: u64) -> Result<(), String> {
        if newest < floor {
            return Err(format!(
                "the primary of epoch {epoch} goes on behind set {newest}, and set {floor} was committed"
            ));
        }
        self.opened.push((epoch, newest));
        let settled: Vec<_> = self.settled.values().copied().collect();
        settled
            .iter()
            .filter_map(|id| self.attempt(*id))
            .try_for_each(|old| self.check_epoch(&old))
    }

    /// A reader has found this set committed.
    pub(crate) fn saw(&mut self, number: u64, label: &Label) -> Result<(), String> {
        self.seen = self.seen.max(number);
        match id_of(label) {
            Some(id) => self.settle(number, id),
            None => Err(format!(
                "set {number} bears a label that nobody wrote: {label}"
            )),
        }
    }

    /// What was read must be one that was written, whole, and not older than `floor`.
    pub(crate) fn read(&mut self, set: &SetInfo, bytes: &[u8], floor: u64) -> Result<(), String> {
        let number = set.number.get();
        if number < floor {
            return Err(format!(
                "set {number} was read, and set {floor} had been committed"
            ));
        }
        let id = id_of(&set.label);
        let Some((id, attempt)) = id.and_then(|id| Some((id, self.attempt(id)?))) else {
            return Err(format!(
                "set {number} bears a label that nobody wrote: {}",
                set.label
            ));
        };
        if (attempt.number, attempt.epoch, attempt.length) != (number, set.epoch.get(), set.bytes) {
            return Err(format!(
                "set {number} of epoch {} with {} bytes was read, and attempt {id} is set {} of epoch {} with {} bytes",
                set.epoch, set.bytes, attempt.number, attempt.epoch, attempt.length
            ));
        }
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
        if let Some(other) = self.settled.get(&number).filter(|other| **other != id) {
            return Err(format!(
                "set {number} is attempt {id} now and was attempt {other}"
            ));
        }
        self.check_epoch(&attempt)
    }

    fn settle(&mut self, number: u64, id: u64) -> Result<(), String> {
        match self.settled.insert(number, id) {
            Some(other) if other != id => Err(format!(
                "set {number} is attempt {id} now and was attempt {other}"
            )),
            _ => Ok(()),
        }
    }

    /// Nothing of an old primary counts behind what a newer one went on from.
    fn check_epoch(&self, attempt: &Attempt) -> Result<(), String> {
        let overtaken =
            |(epoch, newest): &&(u64, u64)| *epoch > attempt.epoch && attempt.number > *newest;
        match self.opened.iter().find(overtaken) {
            Some((epoch, newest)) => Err(format!(
                "set {} of epoch {} counts, and the primary of epoch {epoch} went on behind set {newest}",
                attempt.number, attempt.epoch
            )),
            None => Ok(()),
        }
    }
}
