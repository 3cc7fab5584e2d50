//! How a member takes part in a term: it gets the records that it missed, and no others, and then takes the term.

use pmu_core::WordWrite;
use pmu_core::spread::{Newest, TermOpening};
use pmu_format::{
    LOG_CURSOR_OFFSET, LOG_EPOCH_OFFSET, LOG_TAIL_OFFSET, LogPosition, PAGE_PAIR_BYTES,
    RecordShare, RegionPiece,
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

/// What a member needs to be brought up to.
pub(super) struct Goal<'a> {
    pub(super) newest: &'a Newest,
    pub(super) cursor: LogPosition,
    pub(super) opening: &'a TermOpening,
}

/// Brings a member that has the proposal up to the end of the committed log, and makes it take the term.
///
/// # Errors
/// The member's own, or too few others hold what it misses.
pub(super) fn bring_up(
    seats: &mut [Seat],
    index: usize,
    names: &Names<'_>,
    reader: &mut ShardReader,
    shards: &mut Shards,
    goal: &Goal<'_>,
) -> Result<Out> {
    let end = goal.newest.committed;
    let seat = own(seats, index)?;
    let from = seat.own_to.max(goal.cursor.get()).min(end);
    // What it has prepared is as it should be up to where it broke off, and stays: others may depend on it.
    let mut prepared = seat.valid_to > from;
    let mut out = Out::new(seat, end)?;
    let mut position = from;
    while position < end {
        let found = reader.read(seats, names, goal.newest, position, end)?;
        prepared = prepared && reader.holds(seats, names, index, &found);
        if prepared {
            position = found.end;
            continue;
        }
        let place = Place {
            position: LogPosition(position),
            continues: found.continues,
        };
        let share = RecordShare {
            own_index: index as u8,
            ..found.share
        };
        let shard_bytes = share.shard_bytes() as usize;
        shards.encode(&reader.record, shard_bytes)?;
        let shard = shards.of(&reader.record, index, shard_bytes);
        out.place(own(seats, index)?, place, &share, shard)?;
        position = found.end;
    }
    let seat = own(seats, index)?;
    take_part(seat, &mut out, from, end, goal.opening)?;
    seat.is_up(end);
    Ok(out)
}

fn own(seats: &mut [Seat], index: usize) -> Result<&mut LogSeat> {
    seats[index]
        .as_mut()
        .map_err(|missing| ClientError::Protocol(missing.reason.clone()))
}

/// The records durable, then the tail, then the epoch, then the term. A member that dies in between has as much as it says.
fn take_part(
    seat: &mut LogSeat,
    out: &mut Out,
    from: u64,
    end: u64,
    opening: &TermOpening,
) -> Result<()> {
    if end > from {
        let missed = seat.geometry.pieces(LogPosition(from), end - from);
        out.send(seat, Some((missed, end)), None)?;
    }
    while out.is_busy() {
        out.wait_oldest(seat)?;
    }
    let epoch = seat.region.epoch;
    let posted = seat.post_chain(|chain, base| {
        let cursor = RegionPiece {
            offset: LOG_CURSOR_OFFSET,
            length_bytes: PAGE_PAIR_BYTES,
        };
        // Its last change may be visible without being durable.
        add_flush(chain, base, cursor);
        let words = [(LOG_TAIL_OFFSET, end), (LOG_EPOCH_OFFSET, epoch.get())];
        for (offset, value) in words {
            add_word(chain, base, WordWrite { offset, value });
        }
        add_word(chain, base, opening.term);
    })?;
    seat.wait(posted)
}
