//! The primary of a log over several units.

mod change;
mod open;
mod rejoin;

pub use open::SpreadLogTakeover;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_core::log::{
    AppendError, Batch, CursorSeen, LogWriter, Payload, PublishError, PublishId, Record, RecordMark,
};
use pmu_core::spread::{Newest, Tenure, TooFewUnits};
use pmu_fabric::Counters;
use pmu_format::{
    CursorPair, Epoch, LogPosition, Pieces, RECORD_SHARE_BYTES, RecordShare, record_length_bytes,
    spread_record_checksum,
};

use super::catch_up::Shards;
use super::kept::Kept;
use super::out::{Out, Place};
use super::seat::{LogSeat, Seat};
use super::shards::{FoundRecord, ShardReader};
use crate::beat::beat_each;
use crate::error::{Attempt, ClientError, Result};
use crate::log::Ticket;
use crate::log::primary::{
    FULL_PAUSE_MAX, FULL_PAUSE_MIN, GATHER_BYTES, PUBLISHES_IN_FLIGHT_EAGER, SUBMITS_PER_LOOK,
};
use crate::options::OpenOptions;
use crate::receipt::{Receipt, Stored, UnitProof};
use crate::spread::rejoin::Called;
use crate::spread::returns::Returns;
use crate::spread::{MissingUnit, Spread};
use rejoin::Recruit;

const SHARE: u64 = RECORD_SHARE_BYTES as u64;

/// The one writer of a log over several units. It goes on while units fail, down to the region's minimum.
///
/// A record is acknowledged when every unit that works has it, durably, and has published it, durably: two round trips. While several are
/// under way, the publishing of one travels with the bytes of the next. A unit that fails, or makes no progress for
/// [`crate::Timeouts::stall`], is given up. Records are acknowledged in the order in which they were given.
///
/// If the members of the region are changed and no other primary takes over, it goes on with the new ones by itself: what was not acknowledged
/// and is not in the log is written again, at the same positions. It waits for [`crate::Timeouts::stall`] until enough of them can be used.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block as those of [`crate::LogPrimary`]. Memory: the staging memory
/// of each unit, the redundancy of the longest record, and the records that are not acknowledged. Nothing is allocated for a record where as
/// much was under way before.
pub struct SpreadLogPrimary {
    spread: Spread,
    options: OpenOptions,
    seats: Vec<Seat>,
    /// One for each member that works.
    outs: Vec<Option<Out>>,
    reader: ShardReader,
    shards: Shards,
    /// Decides positions and room, which are the same on all members.
    writer: LogWriter,
    /// What is not acknowledged.
    kept: Kept,
    newest: Newest,
    /// Sent and not acknowledged yet, with the end of each.
    groups: VecDeque<(PublishId, LogPosition)>,
    submitted: LogPosition,
    flushed: LogPosition,
    bytes_since_flush: u64,
    gathering_from: LogPosition,
    submitted_unseen: u32,
    /// Up to here all members that work have the records, durably.
    prepared: u64,
    /// The highest tail that any member was sent.
    tail_sent: u64,
    proofs: Arc<[UnitProof]>,
    /// What was granted on each member.
    tenure: Tenure,
    returns: Returns<Called<LogSeat>>,
    /// A member that was reached again and gets what it missed.
    recruit: Option<Recruit>,
    ended: bool,
}

impl std::fmt::Debug for SpreadLogPrimary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SpreadLogPrimary")
            .field("spread", &self.spread)
            .field("submitted", &self.submitted)
            .field("acknowledged", &self.acknowledged())
            .finish_non_exhaustive()
    }
}

/// The record of a spread log as a reader gets it. Its epoch is the writer's term: the epochs of the members differ.
pub(super) fn record_of(spread: &Spread, found: &FoundRecord, published: bool) -> Record {
    Record {
        position: LogPosition(found.position),
        epoch: Epoch(found.share.term.0),
        sequence: found.share.sequence,
        payload_bytes: u32::try_from(found.share.record_bytes).unwrap_or(u32::MAX),
        continues: found.continues,
        published,
        mark: RecordMark::of_spread(spread.membership.id, LogPosition(found.end)),
    }
}

impl SpreadLogPrimary {
    /// Appends one record, and returns when it is durable on each unit that the receipt names. Waits while the log is full.
    ///
    /// # Errors
    /// [`ClientError::Full`] if the backup made no room in time, [`ClientError::TooLarge`], [`ClientError::Invalid`] for an empty record:
    /// nothing was appended. [`ClientError::TooFewUnits`]: nothing was appended; if units failed meanwhile, this handle is at its end
    /// ([`Self::is_ended`]), else [`Self::rejoin`] may help. [`ClientError::Fenced`]: another primary took over.
    /// [`ClientError::UnknownOutcome`]: it may have been appended.
    pub fn append(&mut self, record: &[u8]) -> Result<Receipt> {
        let ticket = self.submit(record)?;
        self.wait(ticket)
    }

    /// As [`Self::append`], without waiting for room: looks at the cursors once.
    ///
    /// # Errors
    /// As there; [`ClientError::Full`] at once.
    pub fn try_append(&mut self, record: &[u8]) -> Result<Receipt> {
        let ticket = self.submit_within(&[record], Duration::ZERO)?;
        self.wait(ticket)
    }

    /// Appends several records as one: after a crash either all of them are there or none.
    ///
    /// # Errors
    /// As [`Self::append`]; [`ClientError::Invalid`] for no records at all.
    pub fn append_batch(&mut self, records: &[&[u8]]) -> Result<Receipt> {
        let ticket = self.submit_batch(records)?;
        self.wait(ticket)
    }

    /// Takes a record, and returns as soon as it is on its way or gathered with others: **not durable yet**.
    ///
    /// # Errors
    /// As [`Self::append`], also for the failure of an earlier record.
    pub fn submit(&mut self, record: &[u8]) -> Result<Ticket> {
        self.submit_batch(&[record])
    }

    /// As [`Self::submit`], for several records as one.
    ///
    /// # Errors
    /// As [`Self::append_batch`].
    pub fn submit_batch(&mut self, records: &[&[u8]]) -> Result<Ticket> {
        self.submit_within(records, self.options.timeouts.back_pressure)
    }

    fn submit_within(&mut self, records: &[&[u8]], patience: Duration) -> Result<Ticket> {
        let from = self.submitted;
        match self.submit_once(records, patience) {
            Err(error) => {
                // What of these was on its way is published nowhere: the tail of records goes out behind them.
                self.go_on_after(error, from)?;
                self.submit_once(records, patience)
            }
            ticket => ticket,
        }
    }

    fn submit_once(&mut self, records: &[&[u8]], patience: Duration) -> Result<Ticket> {
        self.check_open()?;
        self.look_for_completions()?;
        self.look_for_returns()?;
        if let Err(few) = self.check_commit() {
            return Err(self.failed(few));
        }
        self.make_room(records, patience)?;
        let from = self.submitted;
        let last = records.len() - 1;
        for (index, record) in records.iter().enumerate() {
            let batch = if index == last {
                Batch::Ends
            } else {
                Batch::Continues
            };
            self.place(record, batch)?;
        }
        let eager = self.groups.len() < PUBLISHES_IN_FLIGHT_EAGER;
        if eager || self.gathered_bytes() >= GATHER_BYTES {
            self.send_gathered()?;
        }
        let bytes = records.iter().map(|record| record.len() as u64).sum();
        self.bytes_since_flush += bytes;
        Ok(Ticket::new(from, self.submitted, bytes))
    }

    fn gathered_bytes(&self) -> u64 {
        let outs = self.outs.iter().flatten().map(Out::bytes);
        outs.max().unwrap_or(0)
    }

    /// Looks for completions, unless that was done a few records ago and nothing hangs on it.
    fn look_for_completions(&mut self) -> Result<()> {
        self.submitted_unseen += 1;
        let busy = self.groups.len() >= PUBLISHES_IN_FLIGHT_EAGER;
        if busy && self.submitted_unseen < SUBMITS_PER_LOOK {
            return Ok(());
        }
        self.submitted_unseen = 0;
        self.look_once()
    }

    /// Blocks until the record is durable.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn wait(&mut self, ticket: Ticket) -> Result<Receipt> {
        self.wait_through(ticket.end())?;
        let stored = Stored::Log {
            from: ticket.position(),
            to: ticket.end(),
        };
        self.receipt(stored, ticket.bytes())
    }

    /// Blocks until everything submitted is durable. The receipt is for all records since the last flush.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn flush(&mut self) -> Result<Receipt> {
        self.wait_through(self.submitted)?;
        let stored = Stored::Log {
            from: self.flushed,
            to: self.submitted,
        };
        let bytes = std::mem::take(&mut self.bytes_since_flush);
        self.flushed = self.submitted;
        self.receipt(stored, bytes)
    }

    fn receipt(&mut self, stored: Stored, bytes: u64) -> Result<Receipt> {
        self.collect_proofs();
        let Some(first) = self.seats.iter().flatten().next() else {
            self.check_commit()?;
            return Err(ClientError::Protocol("no unit is left".into()));
        };
        Ok(Receipt {
            region: Arc::clone(&self.spread.name),
            stored,
            epoch: first.region.epoch,
            bytes,
            units: Arc::clone(&self.proofs),
            provider: first.region.provider(),
        })
    }

    /// True if the record is durable, as far as completions were seen: [`Self::poll_completions`] looks.
    #[must_use]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.acknowledged() >= ticket.end()
    }

    /// True once this handle can't go on: open the region again.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// As [`crate::LogPrimary::beat`], on each unit that works.
    ///
    /// # Errors
    /// As there, where no unit is left to beat on. A unit that fails is left to the next commit.
    pub fn beat(&mut self) -> Result<()> {
        beat_each(self.seats.iter_mut().flatten().map(|seat| &mut seat.region))
    }

    /// The position up to which everything is durable, as far as completions were seen.
    #[must_use]
    pub fn acknowledged(&self) -> LogPosition {
        self.writer.acknowledged()
    }

    /// The position behind the last submitted record.
    #[must_use]
    pub const fn submitted(&self) -> LogPosition {
        self.submitted
    }

    /// The end of the committed log: by this primary or before it.
    #[must_use]
    pub const fn newest(&self) -> LogPosition {
        self.newest.position()
    }

    /// The term of this primary, which stands as epoch in the records that readers get.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.newest.term().0
    }

    /// The epoch that each unit has granted which works: what the next one goes on from if this is the last to write
    /// ([`Spread::going_on_from`]).
    pub fn epochs(&self) -> impl Iterator<Item = (Arc<str>, Epoch)> {
        let members = self.spread.membership.members.iter();
        let seats = members.zip(&self.seats);
        seats.filter_map(|(member, seat)| {
            let (_, epoch) = seat.as_ref().ok()?.grant();
            Some((Arc::from(member.unit.as_str()), epoch))
        })
    }

    /// Bytes of the ring of each unit that are free, as far as the cursors were looked at.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.writer.free_bytes()
    }

    /// Length of the ring of each unit.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        self.writer.geometry().ring_bytes()
    }

    /// The longest record that the ring can take.
    #[must_use]
    pub fn record_bytes_max(&self) -> u32 {
        let shard = u64::from(self.writer.geometry().payload_max_bytes()).saturating_sub(SHARE);
        let most = shard.saturating_mul(self.spread.layout.data_shards() as u64);
        u32::try_from(most).unwrap_or(u32::MAX)
    }

    /// The region.
    #[must_use]
    pub const fn spread(&self) -> &Spread {
        &self.spread
    }

    /// Which way the bytes go, to the first unit that works.
    #[must_use]
    pub fn provider(&self) -> Option<pmu_fabric::Provider> {
        let first = self.seats.iter().flatten().next();
        first.map(|seat| seat.region.provider())
    }

    /// The units that don't take part, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.seats.iter().filter_map(|seat| seat.as_ref().err())
    }

    /// What the connections to the units have done so far, all together. Those of units that were given up are not counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        sum_counters(&self.seats)
    }

    /// Looks for completions without blocking, and sends what is due. The position up to which everything is durable.
    ///
    /// # Errors
    /// As [`Self::append`], for the oldest record that failed.
    pub fn poll_completions(&mut self) -> Result<LogPosition> {
        if let Err(error) = self.look_once() {
            self.go_on_after(error, self.submitted)?;
        }
        Ok(self.acknowledged())
    }

    fn look_once(&mut self) -> Result<()> {
        self.check_open()?;
        for index in 0..self.seats.len() {
            self.with(index, |out, seat| out.poll(seat))?;
        }
        self.reap()?;
        if self.groups.is_empty() {
            self.send_gathered()?;
        }
        self.send_tails()
    }

    /// Looks at the cursors of all units: the bytes of the ring that are free.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn refresh_free(&mut self) -> Result<u64> {
        match self.look_at_cursors() {
            Err(error) => {
                self.go_on_after(error, self.submitted)?;
                Ok(self.writer.free_bytes())
            }
            free_bytes => free_bytes,
        }
    }

    fn look_at_cursors(&mut self) -> Result<u64> {
        let mut posted = Vec::with_capacity(self.seats.len());
        for index in 0..self.seats.len() {
            posted.push(self.with(index, |_, seat| seat.post_cursor())?);
        }
        for (index, posted) in posted.into_iter().enumerate() {
            if let Some(posted) = posted {
                self.with(index, |_, seat| {
                    seat.wait(posted)?;
                    seat.take_cursor()
                })?;
            }
        }
        let freed = self.spread.quorum.freed(super::said(&self.seats));
        match self.writer.cursor_observed(CursorPair::new(freed)) {
            Ok(CursorSeen::Free { free_bytes }) => Ok(free_bytes),
            // A unit that knew better has been given up, or one that came back doesn't know yet.
            _ => Ok(self.writer.free_bytes()),
        }
    }

    fn stored_bytes(&self, record: usize) -> u64 {
        SHARE + (record as u64).div_ceil(self.spread.layout.data_shards() as u64)
    }

    /// Sees to it that all records fit, before the first of them is placed.
    fn make_room(&mut self, records: &[&[u8]], patience: Duration) -> Result<()> {
        let too_large = |bytes: u64, limit_bytes: u64| ClientError::TooLarge {
            region: self.spread.name.as_ref().into(),
            bytes,
            limit_bytes,
        };
        let mut needed_bytes = 0_u64;
        for record in records {
            if record.is_empty() {
                let text = "a record has at least one byte";
                return Err(ClientError::Invalid(text.into()));
            }
            if record.len() as u64 > self.record_bytes_max().into() {
                return Err(too_large(
                    record.len() as u64,
                    self.record_bytes_max().into(),
                ));
            }
            needed_bytes += record_length_bytes(self.stored_bytes(record.len()) as u32);
        }
        if needed_bytes == 0 {
            let text = "a batch has at least one record";
            return Err(ClientError::Invalid(text.into()));
        }
        let limit_bytes = self.writer.geometry().ring_bytes();
        if needed_bytes > limit_bytes {
            return Err(too_large(needed_bytes, limit_bytes));
        }
        if needed_bytes <= self.writer.free_bytes() {
            return Ok(());
        }
        self.wait_for_clear(needed_bytes, patience)
    }

    /// Back-pressure: looks at the cursors with one-sided reads until enough is cleared.
    fn wait_for_clear(&mut self, needed_bytes: u64, patience: Duration) -> Result<()> {
        let Some(begun) = self.now() else {
            return self.check_commit();
        };
        let deadline = begun + patience;
        let mut pause = FULL_PAUSE_MIN;
        loop {
            // The backup can clear only what it can see.
            self.send_gathered()?;
            self.look_once()?;
            let free_bytes = self.look_at_cursors()?;
            if free_bytes >= needed_bytes {
                return Ok(());
            }
            let first = self.seats.iter().flatten().next();
            if !first.is_some_and(|seat| seat.region.pause(deadline, pause)) {
                return Err(ClientError::Full {
                    region: self.spread.name.as_ref().into(),
                    needed_bytes,
                    free_bytes,
                });
            }
            pause = (pause * 2).min(FULL_PAUSE_MAX);
        }
    }

    fn now(&self) -> Option<Instant> {
        let first = self.seats.iter().flatten().next();
        first.map(|seat| seat.region.link.now())
    }

    /// Places a record on all members.
    fn place(&mut self, record: &[u8], batch: Batch) -> Result<()> {
        let payload = Payload {
            length_bytes: self.stored_bytes(record.len()),
            checksum: 0,
        };
        let placement = match self.writer.reserve(payload, batch) {
            Ok(placement) => placement,
            Err(AppendError::InDoubt) => return Err(self.is_over()),
            Err(error) => return Err(ClientError::Invalid(error.to_string())),
        };
        let membership = &self.spread.membership;
        let place = Place {
            position: placement.position,
            continues: batch == Batch::Continues,
        };
        let mut share = RecordShare {
            term: self.newest.term(),
            sequence: placement.sequence,
            record_bytes: record.len() as u64,
            record_checksum: spread_record_checksum(&membership.id, record),
            layout: membership.layout,
            own_index: 0,
        };
        let shard_bytes = share.shard_bytes() as usize;
        self.submitted = placement.end;
        self.kept.push(record, place.continues, placement.end);
        let mut shards = self.shards.take();
        let mut placed = shards.encode(record, shard_bytes);
        for index in 0..self.seats.len() {
            share.own_index = index as u8;
            let shard = shards.of(record, index, shard_bytes);
            placed = placed.and_then(|()| {
                self.with(index, |out, seat| out.place(seat, place, &share, shard))
                    .map(drop)
            });
        }
        self.shards = shards;
        placed
    }

    /// Sends what was gathered, and with it the tail of what all members have.
    fn send_gathered(&mut self) -> Result<()> {
        let plan = match self.writer.publish() {
            Ok(Some(plan)) => plan,
            Ok(None) | Err(PublishError::TooManyInFlight { .. }) => return Ok(()),
            Err(PublishError::InDoubt) => return Err(self.is_over()),
            Err(error) => return Err(ClientError::Invalid(error.to_string())),
        };
        self.gathering_from = self.submitted;
        self.groups.push_back((plan.id, self.submitted));
        let group = (plan.flush, plan.end.get());
        for index in 0..self.seats.len() {
            self.send(index, Some(group))?;
        }
        Ok(())
    }

    /// Sends the tail of what all members have to those that were not sent it yet.
    fn send_tails(&mut self) -> Result<()> {
        for index in 0..self.seats.len() {
            let due = self.outs[index].as_ref();
            if due.is_some_and(|out| out.tail_sent < self.prepared) {
                self.send(index, None)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize, group: Option<(Pieces, u64)>) -> Result<()> {
        let value = self.prepared;
        let due = self.outs[index].as_ref();
        let tail =
            Some(LogPosition(value)).filter(|_| due.is_some_and(|out| out.tail_sent < value));
        if tail.is_some() {
            self.tail_sent = self.tail_sent.max(value);
        }
        self.with(index, |out, seat| out.send(seat, group, tail))
            .map(drop)
    }

    /// Takes note of what has completed on all members that work.
    fn reap(&mut self) -> Result<()> {
        let outs = self.outs.iter().flatten();
        let prepared = outs.clone().map(|out| out.prepared).min();
        let published = outs.map(|out| out.published).min();
        self.prepared = prepared.unwrap_or(0).max(self.prepared);
        let published = published.unwrap_or(0);
        while let Some((id, _)) = self
            .groups
            .front()
            .filter(|(_, end)| end.get() <= published)
        {
            let done = self.writer.completed(*id);
            done.map_err(|error| ClientError::Invalid(error.to_string()))?;
            self.groups.pop_front();
        }
        self.newest.advance(self.writer.acknowledged().get());
        self.kept.drop_to(self.writer.acknowledged());
        Ok(())
    }

    fn wait_through(&mut self, position: LogPosition) -> Result<()> {
        while let Err(error) = self.wait_until(position) {
            self.go_on_after(error, self.submitted)?;
        }
        Ok(())
    }

    fn wait_until(&mut self, position: LogPosition) -> Result<()> {
        while self.acknowledged() < position {
            self.check_open()?;
            if position > self.gathering_from {
                self.send_gathered()?;
            }
            self.send_tails()?;
            if !self.outs.iter().flatten().any(Out::is_busy) {
                // Whoever the others waited for was given up just now.
                let before = (self.prepared, self.acknowledged());
                self.reap()?;
                if before == (self.prepared, self.acknowledged()) {
                    return Err(self.is_over());
                }
                continue;
            }
            for index in 0..self.seats.len() {
                self.with(index, Out::wait_oldest)?;
            }
            self.reap()?;
        }
        Ok(())
    }

    /// Does something with a member that works. If it fails, the member is given up; if too few are left, so is what is under way.
    fn with<T>(
        &mut self,
        index: usize,
        work: impl FnOnce(&mut Out, &mut LogSeat) -> Result<T>,
    ) -> Result<Option<T>> {
        let (Some(out), Ok(seat)) = (&mut self.outs[index], &mut self.seats[index]) else {
            return Ok(None);
        };
        match work(out, seat) {
            Ok(done) => Ok(Some(done)),
            Err(error) => {
                self.outs[index] = None;
                if let Some((epoch, _)) = error.fence() {
                    self.tenure.raised(index, epoch);
                }
                self.spread.names().give_up(&mut self.seats, index, &error);
                match self.check_commit() {
                    Ok(()) => Ok(None),
                    Err(few) => Err(self.failed(few)),
                }
            }
        }
    }

    /// Too few members are left: what that means for records that are not acknowledged.
    fn failed(&mut self, few: ClientError) -> ClientError {
        let seats = self.seats.iter();
        let epochs = seats.map(|seat| seat.as_ref().ok().map(|seat| seat.region.epoch));
        let epochs: Vec<_> = epochs.collect();
        let cause = self.spread.taken_over(&self.tenure, &epochs).unwrap_or(few);
        self.ended |= cause.is_fenced() || self.submitted > self.acknowledged();
        if !self.ended {
            return cause;
        }
        self.writer.fail();
        // Its heir shall not find it in its way.
        self.returns.stop();
        self.recruit = None;
        let from = self.acknowledged();
        if self.tail_sent <= from.get() {
            // No member has published any of them.
            return cause;
        }
        ClientError::UnknownOutcome {
            region: self.spread.name.as_ref().into(),
            attempt: Attempt::Records(from, LogPosition(self.tail_sent)),
            cause: Box::new(cause),
        }
    }

    fn is_over(&self) -> ClientError {
        ClientError::Ended {
            region: self.spread.name.as_ref().into(),
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.ended {
            return Err(self.is_over());
        }
        Ok(())
    }

    fn check_commit(&self) -> Result<()> {
        check_alive(&self.spread, &self.seats)
    }

    fn collect_proofs(&mut self) {
        let alive = self.seats.iter().flatten();
        let proofs = alive.map(|seat| &seat.region.proof()[0]);
        if !proofs.clone().eq(self.proofs.iter()) {
            self.proofs = proofs.cloned().collect();
        }
    }
}

/// Whether enough members are left to commit.
fn check_alive(spread: &Spread, seats: &[Seat]) -> Result<()> {
    let enough = spread.quorum.check_commit(seats.iter().flatten().count());
    let absent = seats.iter().filter_map(|seat| seat.as_ref().err());
    enough.map_err(|what: TooFewUnits| spread.too_few(what, absent))
}

pub(super) fn sum_counters(seats: &[Seat]) -> Counters {
    let mut sum = Counters::default();
    for one in seats
        .iter()
        .flatten()
        .map(|seat| seat.region.link.counters())
    {
        sum.chains += one.chains;
        sum.work_requests += one.work_requests;
        sum.completions += one.completions;
        sum.doorbells += one.doorbells;
        sum.bytes_written += one.bytes_written;
        sum.bytes_read += one.bytes_read;
    }
    sum
}
