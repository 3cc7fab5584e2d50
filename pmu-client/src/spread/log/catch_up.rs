//! How a member takes part in a term: it gets the records that it missed, and no others, and then takes the term.

use pmu_core::WordWrite;
use pmu_core::spread::{Newest, TermOpening};
use pmu_format::{
    LOG_CURSOR_OFFSET, LOG_EPOCH_OFFSET, LOG_TAIL_OFFSET, LogPosition, PAGE_PAIR_BYTES,
    RecordShare, RegionPiece, TermRecord,
};
use pmu_stripe::Code;

use super::out::{Out, Place, add_flush, add_word};
use super::seat::{LogSeat, Seat};
use super::shards::{Names, ShardReader};
use crate::error::{ClientError, Result};

/// The shards of one record. Redundancy is computed into memory that is kept.
#[derive(Debug)]
pub(super) struct Shards {
    code: Code,
    parity: Vec<Vec<u8>>,
}

impl Shards {
    pub(super) fn new(code: Code) -> Self {
        Self {
            parity: vec![Vec::new(); code.layout().redundant_shards()],
            code,
        }
    }

    /// Takes the memory out, to be put back.
    pub(super) fn take(&mut self) -> Self {
        Self {
            code: self.code,
            parity: std::mem::take(&mut self.parity),
        }
    }

    /// Computes the redundancy of a record.
    pub(super) fn encode(&mut self, record: &[u8], shard_bytes: usize) -> Result<()> {
        let count = self.code.layout().data_shards();
        let mut data: [&[u8]; pmu_stripe::UNITS_MAX] = [&[]; pmu_stripe::UNITS_MAX];
        for (index, shard) in data.iter_mut().enumerate().take(count) {
            *shard = data_shard(record, index, shard_bytes);
        }
        let mut parity: [&mut [u8]; pmu_stripe::UNITS_MAX] =
            std::array::from_fn(|_| Default::default());
        let redundant = self.parity.len();
        for (slice, shard) in parity.iter_mut().zip(&mut self.parity) {
            if shard.len() < shard_bytes {
                shard.resize(shard_bytes, 0);
            }
            *slice = &mut shard[..shard_bytes];
        }
        self.code
            .encode(&data[..count], &mut parity[..redundant])
            .map_err(|error| ClientError::Invalid(error.to_string()))
    }

    /// The shard of one member, of the record that was encoded last. Data may be shorter than the shard.
    pub(super) fn of<'a>(
        &'a self,
        record: &'a [u8],
        member: usize,
        shard_bytes: usize,
    ) -> &'a [u8] {
        match member.checked_sub(self.code.layout().data_shards()) {
            Some(redundant) => &self.parity[redundant][..shard_bytes],
            None => data_shard(record, member, shard_bytes),
        }
    }
}

fn data_shard(record: &[u8], index: usize, shard_bytes: usize) -> &[u8] {
    let begin = (index * shard_bytes).min(record.len());
    let end = (begin + shard_bytes).min(record.len());
    &record[begin..end]
}

/// Who helps to bring a member up: the names of all, and what reads and computes their records.
pub(super) struct Helpers<'a> {
    pub(super) names: &'a Names<'a>,
    pub(super) reader: &'a mut ShardReader,
    pub(super) shards: &'a mut Shards,
}

/// What a member needs to be brought up to.
pub(super) struct Goal<'a> {
    pub(super) newest: &'a Newest,
    pub(super) cursor: LogPosition,
}

/// How far a member has been brought up, which doesn't take part yet. What it has been given is durable, and nothing of it counts.
#[derive(Debug)]
pub(super) struct Climb {
    out: Out,
    position: u64,
    /// What it has prepared is as it should be up to where it broke off, and stays: others may depend on it.
    prepared: bool,
}

/// Brings a member that has the proposal up to the end of the committed log, and makes it take the term.
///
/// # Errors
/// The member's own, or too few others hold what it misses.
pub(super) fn bring_up(
    seats: &mut [Seat],
    index: usize,
    helpers: &mut Helpers<'_>,
    goal: &Goal<'_>,
    opening: &TermOpening,
) -> Result<Out> {
    let mut climb = Climb::begin(own(seats, index)?, goal)?;
    climb.climb(seats, index, helpers, goal, u64::MAX)?;
    climb.finish(own(seats, index)?, goal, opening)
}

impl Climb {
    /// The member was judged by `goal.newest`.
    pub(super) fn begin(seat: &mut LogSeat, goal: &Goal<'_>) -> Result<Self> {
        let end = goal.newest.committed;
        let position = seat.own_to.max(goal.cursor.get()).min(end);
        Ok(Self {
            out: Out::new(seat, position)?,
            position,
            prepared: seat.valid_to > position,
        })
    }

    /// Bytes of the log that it still lacks.
    pub(super) fn lacks_bytes(&self, end: u64) -> u64 {
        end.saturating_sub(self.position)
    }

    /// Gives the member what it misses, up to the end of the committed log, or until that were `bytes_max` of the log and a record more. It is
    /// durable when this returns.
    ///
    /// # Errors
    /// As [`bring_up`].
    pub(super) fn climb(
        &mut self,
        seats: &mut [Seat],
        index: usize,
        helpers: &mut Helpers<'_>,
        goal: &Goal<'_>,
        bytes_max: u64,
    ) -> Result<()> {
        let end = goal.newest.committed;
        // What was cleared meanwhile, nobody reads any more.
        self.position = self.position.max(goal.cursor.get()).min(end);
        let from = self.position;
        while self.position < end && self.position - from < bytes_max {
            self.copy_record(seats, index, helpers, goal)?;
        }
        if self.position == from {
            return Ok(());
        }
        let seat = own(seats, index)?;
        let missed = seat
            .geometry
            .pieces(LogPosition(from), self.position - from);
        self.out.send(seat, Some((missed, self.position)), None)?;
        while self.out.is_busy() {
            self.out.wait_oldest(seat)?;
        }
        Ok(())
    }

    fn copy_record(
        &mut self,
        seats: &mut [Seat],
        index: usize,
        helpers: &mut Helpers<'_>,
        goal: &Goal<'_>,
    ) -> Result<()> {
        let (names, end) = (helpers.names, goal.newest.committed);
        let found = helpers
            .reader
            .read(seats, names, goal.newest, self.position, end)?;
        self.prepared = self.prepared && helpers.reader.holds(seats, names, index, &found);
        if !self.prepared {
            let place = Place {
                position: LogPosition(self.position),
                continues: found.continues,
            };
            let share = RecordShare {
                own_index: index as u8,
                ..found.share
            };
            let shard_bytes = share.shard_bytes() as usize;
            let record = &helpers.reader.record;
            helpers.shards.encode(record, shard_bytes)?;
            let shard = helpers.shards.of(record, index, shard_bytes);
            self.out.place(own(seats, index)?, place, &share, shard)?;
        }
        self.position = found.end;
        Ok(())
    }

    /// The member has everything: it takes the term.
    pub(super) fn finish(
        mut self,
        seat: &mut LogSeat,
        goal: &Goal<'_>,
        opening: &TermOpening,
    ) -> Result<Out> {
        let end = goal.newest.committed;
        take_part(seat, end, opening)?;
        seat.stand.record = TermRecord::decode(&opening.record).ok();
        seat.stand.published = end;
        seat.is_up(end);
        self.out.stands_at(end);
        Ok(self.out)
    }
}

fn own(seats: &mut [Seat], index: usize) -> Result<&mut LogSeat> {
    seats[index]
        .as_mut()
        .map_err(|missing| ClientError::Protocol(missing.reason.clone()))
}

/// The records are durable. What the member has published and doesn't count is taken back; then it takes the term, and then its tail says what
/// it has. A member that dies in between has as much as it says, and its vote.
fn take_part(seat: &mut LogSeat, end: u64, opening: &TermOpening) -> Result<()> {
    let epoch = seat.region.epoch;
    let own_to = seat.own_to.min(end);
    let lowered = (seat.stand.published > own_to)
        .then_some((LOG_TAIL_OFFSET, LogPosition(own_to).tail_word()));
    let posted = seat.post_chain(|chain, base| {
        let cursor = RegionPiece {
            offset: LOG_CURSOR_OFFSET,
            length_bytes: PAGE_PAIR_BYTES,
        };
        // Its last change may be visible without being durable.
        add_flush(chain, base, cursor);
        if let Some((offset, value)) = lowered {
            add_word(chain, base, WordWrite { offset, value });
        }
        add_word(chain, base, opening.term);
        for (offset, value) in [
            (LOG_TAIL_OFFSET, LogPosition(end).tail_word()),
            (LOG_EPOCH_OFFSET, epoch.get()),
        ] {
            add_word(chain, base, WordWrite { offset, value });
        }
    })?;
    seat.wait(posted)
}
