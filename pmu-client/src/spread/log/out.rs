//! What goes out to one member of a log over several units: its records, and how far it has them.

use std::collections::VecDeque;

use pmu_core::WordWrite;
use pmu_fabric::Chain;
use pmu_format::{
    Epoch, LOG_TAIL_OFFSET, LogPosition, Pieces, RECORD_HEADER_BYTES, RECORD_SHARE_BYTES,
    RecordHeader, RecordShare, RegionPiece, record_payload_digest,
};

use super::seat::LogSeat;
use crate::error::{ClientError, Result};
use crate::outbox::Outbox;
use crate::staging::Registered;

/// Zeros behind a shard: what the last data shards lack, a piece at a time, and the padding of a record.
const ZEROS: [u8; 4096] = [0; 4096];

/// A chain that is under way, and what the member has when it has completed.
#[derive(Debug, Clone, Copy)]
struct Sent {
    serial: u64,
    prepared: u64,
    published: u64,
}

/// One record's place, the same on all members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) position: LogPosition,
    pub(super) continues: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Out {
    outbox: Outbox,
    epoch: Epoch,
    /// Of the last record in this epoch.
    sequence: u64,
    sent: VecDeque<Sent>,
    /// Up to here its records are durable.
    pub(super) prepared: u64,
    /// Up to here they are published, durably.
    pub(super) published: u64,
    /// The last tail that was sent.
    pub(super) tail_sent: u64,
}

impl Out {
    pub(super) fn new(seat: &mut LogSeat, end: u64) -> Result<Self> {
        let bytes = seat.region.staging_bytes;
        let staging = Registered::allocate(&mut seat.region.link, bytes)?;
        Ok(Self {
            outbox: Outbox::new(staging, bytes, &seat.region.link),
            epoch: seat.region.epoch,
            sequence: 0,
            sent: VecDeque::with_capacity(crate::log::primary::PUBLISHES_IN_FLIGHT_MAX * 2),
            prepared: end,
            published: end,
            tail_sent: end,
        })
    }

    /// The member has everything up to `end`, published.
    pub(super) fn stands_at(&mut self, end: u64) {
        (self.prepared, self.published, self.tail_sent) = (end, end, end);
    }

    /// Bytes gathered and not yet sent.
    pub(super) fn bytes(&self) -> u64 {
        self.outbox.bytes()
    }

    /// Copies a member's record into staging memory. `shard` may be shorter than the share says: zeros follow.
    pub(super) fn place(
        &mut self,
        seat: &mut LogSeat,
        place: Place,
        share: &RecordShare,
        shard: &[u8],
    ) -> Result<()> {
        let share_head = share.encode();
        let zeros = share.shard_bytes() as usize - shard.len();
        let mut digest = record_payload_digest(&seat.region.info.id);
        digest.update(&share_head);
        digest.update(shard);
        for part in zeros_of(zeros) {
            digest.update(part);
        }
        let payload_bytes = RECORD_SHARE_BYTES as u64 + share.shard_bytes();
        let payload_bytes = u32::try_from(payload_bytes)
            .map_err(|_| ClientError::Invalid("a share of more than 4 GiB".into()))?;
        self.sequence += 1;
        let header = RecordHeader {
            continues: place.continues,
            position: place.position,
            sequence: self.sequence,
            epoch: self.epoch,
            payload_bytes,
            payload_checksum: digest.finish(),
        };
        let used = RECORD_HEADER_BYTES as u64 + u64::from(payload_bytes);
        let padding = (header.record_bytes() - used) as usize;
        let mut at = place.position;
        for part in [&header.encode()[..], &share_head, shard] {
            at = self.stage(seat, at, part)?;
        }
        for part in zeros_of(zeros + padding) {
            at = self.stage(seat, at, part)?;
        }
        Ok(())
    }

    fn stage(&mut self, seat: &mut LogSeat, at: LogPosition, bytes: &[u8]) -> Result<LogPosition> {
        let mut done = 0_usize;
        while done < bytes.len() {
            let here = LogPosition(at.get() + done as u64);
            // Cut where the ring ends.
            let piece = seat
                .geometry
                .pieces(here, (bytes.len() - done) as u64)
                .first;
            let remote = seat.region.address(piece.offset.get());
            let part = &bytes[done..done + piece.length_bytes as usize];
            let count = self.outbox.stage(&seat.region.link, remote, part)?;
            done += count;
            if count < part.len() {
                self.write_ahead(seat)?;
            }
        }
        Ok(LogPosition(at.get() + bytes.len() as u64))
    }

    /// Sends what is staged without any flush, and waits for room: a record that is longer than the staging memory passes through it so.
    fn write_ahead(&mut self, seat: &mut LogSeat) -> Result<()> {
        let link = &mut seat.region.link;
        let sent = match self.outbox.bytes() {
            0 => Ok(()),
            _ => self.outbox.post(link, |_| {}).map(drop),
        };
        let room = sent.and_then(|()| self.outbox.wait_for_room(link));
        room.map_err(|error| seat.region.error(error))
    }

    /// Sends what was gathered with its flush, and the tail of what enough members have.
    pub(super) fn send(
        &mut self,
        seat: &mut LogSeat,
        flush: Option<(Pieces, u64)>,
        tail: Option<LogPosition>,
    ) -> Result<()> {
        let base = seat.region.info.address.get();
        let posted = self.outbox.post(&mut seat.region.link, |chain| {
            if let Some((pieces, _)) = flush {
                pieces
                    .iter()
                    .for_each(|piece| add_flush(chain, base, piece));
            }
            if let Some(tail) = tail {
                let word = WordWrite {
                    offset: LOG_TAIL_OFFSET,
                    value: tail.tail_word(),
                };
                add_word(chain, base, word);
            }
        });
        let posted = posted.map_err(|error| seat.region.error(error))?;
        let last = self.sent.back().copied();
        let prepared = last.map_or(self.prepared, |sent| sent.prepared);
        let published = last.map_or(self.published, |sent| sent.published);
        if let Some(tail) = tail {
            self.tail_sent = tail.get();
        }
        self.sent.push_back(Sent {
            serial: posted.last,
            prepared: flush.map_or(prepared, |(_, end)| end),
            published: tail.map_or(published, LogPosition::get),
        });
        Ok(())
    }

    /// Looks for completions, without blocking.
    pub(super) fn poll(&mut self, seat: &mut LogSeat) -> Result<()> {
        let link = &mut seat.region.link;
        let looked = link.poll().and_then(|()| link.check());
        // Completions that came before a failure still count.
        self.reap(seat);
        // Also one that ended while nothing was under way.
        let looked = looked.and_then(|()| seat.region.link.check_idle());
        looked.map_err(|error| seat.region.error(error))
    }

    fn reap(&mut self, seat: &LogSeat) {
        let succeeded = seat.region.link.succeeded();
        while let Some(sent) = self.sent.front().filter(|sent| sent.serial <= succeeded) {
            (self.prepared, self.published) = (sent.prepared, sent.published);
            self.sent.pop_front();
        }
    }

    /// How many chains are under way.
    pub(super) fn in_flight(&self) -> usize {
        self.sent.len()
    }

    /// Whether a chain is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Waits for the oldest chain that is under way.
    pub(super) fn wait_oldest(&mut self, seat: &mut LogSeat) -> Result<()> {
        let Some(sent) = self.sent.front() else {
            return Ok(());
        };
        let done = seat.region.link.wait_for(sent.serial);
        self.reap(seat);
        done.map_err(|error| seat.region.error(error))
    }
}

fn zeros_of(mut count: usize) -> impl Iterator<Item = &'static [u8]> {
    std::iter::from_fn(move || {
        let part = &ZEROS[..count.min(ZEROS.len())];
        count -= part.len();
        (!part.is_empty()).then_some(part)
    })
}

pub(super) fn add_flush(chain: &mut Chain, base: u64, piece: RegionPiece) {
    chain.flush(base + piece.offset.get(), piece.length_bytes);
}

/// An atomic write, and its flush.
pub(super) fn add_word(chain: &mut Chain, base: u64, word: WordWrite) {
    chain.atomic_write(base + word.offset.get(), word.value);
    add_flush(chain, base, word.flush_range());
}
