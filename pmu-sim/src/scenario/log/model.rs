//! What is known of the records of a log, and what must hold of every one that is read.

use std::collections::BTreeMap;

use pmu_client::Record;
use pmu_format::record_length_bytes;

use crate::scenario::content::content;

/// Bytes of a payload that name its attempt.
pub(crate) const ID_BYTES: usize = 8;

/// What its writer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    None,
    Acknowledged,
    Unknown,
    /// It was not appended, for certain.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    epoch: u64,
    /// Where the record stands, once its writer knows.
    position: Option<u64>,
    length: u64,
    /// Its batch goes on with the next record.
    continues: bool,
    ending: Ending,
    /// Submitted after its primary had been fenced.
    too_late: bool,
}

/// A record as it was handed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handed {
    pub(crate) id: u64,
    pub(crate) position: u64,
    pub(crate) end: u64,
    pub(crate) continues: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LogModel {
    attempts: Vec<Attempt>,
    /// Which record stands at a position for good, and where it ends: acknowledged, or read as published.
    settled: BTreeMap<u64, (u64, u64)>,
    /// The end of the settled records.
    floor: u64,
    /// The end of the acknowledged records.
    acknowledged: u64,
    /// Up to here is cleared, and up to here it may be.
    cleared: u64,
    clearing: u64,
    /// Epoch of each primary that was opened, and the position that it went on from.
    opened: Vec<(u64, u64)>,
    /// Primaries of this epoch or a lower one are fenced.
    fenced: u64,
    /// A primary takes a later epoch by itself when the members change, and writes again what is not acknowledged.
    epochs_move: bool,
}

/// The payload of attempt `id`.
pub(crate) fn payload(id: u64, length: u64) -> Vec<u8> {
    let mut bytes = content(id, length as usize);
    bytes[..ID_BYTES].copy_from_slice(&id.to_le_bytes());
    bytes
}

impl LogModel {
    /// What a recovery must reach at least.
    pub(crate) const fn floor(&self) -> u64 {
        self.floor
    }

    /// What a reader must reach at least.
    pub(crate) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Between which positions the cursor may stand.
    pub(crate) const fn cursors(&self) -> (u64, u64) {
        (self.cleared, self.clearing)
    }

    /// A record is going to be submitted.
    pub(crate) fn begin(&mut self, epoch: u64, length: u64, continues: bool) -> u64 {
        self.attempts.push(Attempt {
            epoch,
            position: None,
            length,
            continues,
            ending: Ending::None,
            too_late: epoch <= self.fenced,
        });
        self.attempts.len() as u64
    }

    fn attempt(&self, id: u64) -> Option<Attempt> {
        self.attempts
            .get(usize::try_from(id).ok()?.checked_sub(1)?)
            .copied()
    }

    /// Its writer knows where it stands; gives where it ends.
    pub(crate) fn placed(&mut self, id: u64, position: u64) -> u64 {
        let attempt = &mut self.attempts[id as usize - 1];
        attempt.position = Some(position);
        position + record_length_bytes(attempt.length as u32)
    }

    /// Its writer knows where it stands, and nothing of where it ends.
    pub(crate) fn placed_at(&mut self, id: u64, position: u64) {
        self.attempts[id as usize - 1].position = Some(position);
    }

    /// A batch is acknowledged, which stands from a position to another.
    pub(crate) fn acknowledged_batch(
        &mut self,
        ids: &[u64],
        from: u64,
        to: u64,
    ) -> Result<(), String> {
        for id in ids {
            let attempt = &mut self.attempts[*id as usize - 1];
            attempt.ending = Ending::Acknowledged;
            if attempt.too_late {
                return Err(format!(
                    "record {id} of epoch {} is acknowledged, and was submitted after a fence",
                    attempt.epoch
                ));
            }
        }
        self.acknowledged = self.acknowledged.max(to);
        self.floor = self.floor.max(to);
        let Some(first) = ids.first().copied() else {
            return Ok(());
        };
        self.settle(from, first, 0)?;
        match self.attempt(first) {
            Some(attempt) => self.check_epoch(&attempt, from),
            None => Ok(()),
        }
    }

    pub(crate) fn end(&mut self, id: u64, ending: Ending) -> Result<(), String> {
        let Some(attempt) = self.attempt(id) else {
            return Err(format!("there is no attempt {id}"));
        };
        self.attempts[id as usize - 1].ending = ending;
        match (ending, attempt.position) {
            (Ending::Acknowledged, Some(position)) => {
                let end = position + record_length_bytes(attempt.length as u32);
                self.acknowledged = self.acknowledged.max(end);
                self.settle(position, id, end)?;
                self.check_epoch(&attempt, position)
            }
            (Ending::Refused, _) if self.settled.values().any(|settled| settled.0 == id) => Err(
                format!("record {id} was read, and its writer is told that it was not appended"),
            ),
            _ => Ok(()),
        }
    }

    /// What was handed out must be a record that was written, whole, where it was written.
    pub(crate) fn read(&self, record: &Record, bytes: &[u8]) -> Result<Handed, String> {
        let position = record.position.get();
        let id = bytes
            .first_chunk::<ID_BYTES>()
            .map(|id| u64::from_le_bytes(*id));
        let Some((id, attempt)) = id.and_then(|id| Some((id, self.attempt(id)?))) else {
            return Err(format!("the record at {position} was written by nobody"));
        };
        if bytes != payload(id, attempt.length) {
            return Err(format!("record {id} at {position} has wrong bytes"));
        }
        let elsewhere = attempt.position.is_some_and(|at| at != position);
        let is_its_epoch = self.is_epoch_of(&attempt, record.epoch.get());
        if elsewhere || !is_its_epoch || attempt.continues != record.continues {
            return Err(format!(
                "record {id} was read as {record:?}, and written as {attempt:?}"
            ));
        }
        if attempt.ending == Ending::Refused {
            return Err(format!(
                "record {id} at {position} was read, and its writer was told that it was not appended"
            ));
        }
        if let Some((other, _)) = self
            .settled
            .get(&position)
            .filter(|settled| settled.0 != id)
        {
            return Err(format!(
                "record {id} stands at {position} now, and record {other} did"
            ));
        }
        self.check_epoch(&attempt, position)?;
        let end = record.mark.position().get();
        Ok(Handed {
            id,
            position,
            end,
            continues: record.continues,
        })
    }

    /// Whether a record of this attempt may have this epoch.
    fn is_epoch_of(&self, attempt: &Attempt, epoch: u64) -> bool {
        let of_another = || self.opened.iter().any(|(opened, _)| *opened == epoch);
        let moved = self.epochs_move && epoch > attempt.epoch;
        epoch == attempt.epoch || (moved && !of_another())
    }

    /// What is not acknowledged was written again in a later epoch, which its primary took when the members were changed: what fenced the
    /// earlier one did not fence this one.
    pub(crate) fn moved(&mut self, ids: &[u64], epoch: u64) {
        for id in ids {
            let attempt = &mut self.attempts[*id as usize - 1];
            let is_later = self.epochs_move && epoch > attempt.epoch;
            attempt.too_late &= !is_later || epoch <= self.fenced;
        }
    }

    /// Members will change.
    pub(crate) const fn let_epochs_move(&mut self) {
        self.epochs_move = true;
    }

    /// What was handed out counts for good: it was published, or a new primary has made it so.
    pub(crate) fn settle_all(&mut self, handed: &[Handed]) -> Result<(), String> {
        handed
            .iter()
            .try_for_each(|one| self.settle(one.position, one.id, one.end))
    }

    fn settle(&mut self, position: u64, id: u64, end: u64) -> Result<(), String> {
        self.floor = self.floor.max(end);
        match self.settled.insert(position, (id, end)) {
            Some((other, _)) if other != id => Err(format!(
                "record {id} stands at {position} now, and record {other} did"
            )),
            _ => Ok(()),
        }
    }

    /// What a recovery handed out: from a cursor that may be, without gaps, up to `floor` at least, and no half batch.
    pub(crate) fn recovered(
        &self,
        handed: &[Handed],
        cursor: u64,
        end: u64,
        least: (u64, u64),
    ) -> Result<(), String> {
        let (floor, cleared) = least;
        if cursor < cleared || cursor > self.clearing {
            return Err(format!(
                "a recovery began at {cursor}, and {cleared} was cleared (or {})",
                self.clearing
            ));
        }
        let mut at = cursor;
        for one in handed {
            if one.position != at {
                return Err(format!("a recovery went from {at} to {}", one.position));
            }
            at = one.end;
        }
        if at != end || end < floor {
            return Err(format!(
                "a recovery ended at {at} (it says {end}), and records stood up to {floor}"
            ));
        }
        let torn = handed
            .windows(2)
            .find(|two| two[0].continues && two[1].id != two[0].id + 1);
        if let Some(two) = torn {
            return Err(format!(
                "a recovery went on from record {} with record {}",
                two[0].id, two[1].id
            ));
        }
        if handed.last().is_some_and(|last| last.continues) {
            return Err(format!(
                "a recovery ended at {end} in the middle of a batch"
            ));
        }
        Ok(())
    }

    /// A primary was opened, and goes on from `end`.
    pub(crate) fn opened(&mut self, epoch: u64, end: u64) -> Result<(), String> {
        self.opened.push((epoch, end));
        self.settled
            .iter()
            .try_for_each(|(position, (id, _))| match self.attempt(*id) {
                Some(attempt) => self.check_epoch(&attempt, *position),
                None => Ok(()),
            })
    }

    /// The highest epoch of a primary that was opened: what a fence that begins now ends.
    pub(crate) fn newest_epoch(&self) -> u64 {
        self.opened
            .iter()
            .map(|(epoch, _)| *epoch)
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn fenced(&mut self, epoch: u64) {
        self.fenced = self.fenced.max(epoch);
    }

    pub(crate) fn clears(&mut self, to: u64) {
        self.clearing = self.clearing.max(to);
    }

    pub(crate) fn cleared(&mut self, to: u64) {
        self.cleared = self.cleared.max(to);
    }

    /// Nothing of an old primary counts behind where a newer one went on.
    fn check_epoch(&self, attempt: &Attempt, position: u64) -> Result<(), String> {
        let overtaken = |(epoch, end): &&(u64, u64)| *epoch > attempt.epoch && position >= *end;
        match self.opened.iter().find(overtaken) {
            Some((epoch, end)) => Err(format!(
                "the record at {position} of epoch {} counts, and the primary of epoch {epoch} went on from {end}",
                attempt.epoch
            )),
            None => Ok(()),
        }
    }
}
