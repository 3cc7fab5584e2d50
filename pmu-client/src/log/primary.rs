//! Appending records: one chain for one durable record, and as few chains as possible for many.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use pmu_core::ReadRequest;
use pmu_core::log::{
    AppendError, Batch, CursorSeen, LogMode, LogOpening, LogReader, LogWriter, Payload,
    PublishError, PublishId, PublishPlan,
};
use pmu_fabric::{Chain, Counters};
use pmu_format::{
    CursorPair, Epoch, LOG_CURSOR_OFFSET, LogGeometry, LogPosition, Mode, PAGE_PAIR_BYTES,
    RegionPiece, record_length_bytes,
};
use pmu_proto::v1::SessionRole;

use crate::error::{Attempt, ClientError, Result};
use crate::link::{LinkError, Posted};
use crate::log::drive::{LogDriver, LogRecord, Pause, RecoveredLog, Stop, stopped};
use crate::log::geometry_of;
use crate::options::OpenOptions;
use crate::outbox::Outbox;
use crate::receipt::{Receipt, Stored, UnitProof};
use crate::region::{Parts, Region, RegionInfo};
use crate::staging::Registered;
use crate::unit::{FenceReport, Purpose, Unit};

/// Chains in flight at most.
pub(crate) const PUBLISHES_IN_FLIGHT_MAX: usize = 16;
/// With fewer in flight a submitted record goes out at once; with more it waits for company.
pub(crate) const PUBLISHES_IN_FLIGHT_EAGER: usize = 2;
/// So many bytes of company are enough, and go out together.
pub(crate) const GATHER_BYTES: u64 = 64 << 10;
/// So many records are taken between two looks for completions, while enough is in flight.
pub(crate) const SUBMITS_PER_LOOK: u32 = 16;
/// Pauses between looks at the cursor while the log is full: the first, and the longest.
pub(crate) const FULL_PAUSE_MIN: Duration = Duration::from_micros(50);
pub(crate) const FULL_PAUSE_MAX: Duration = Duration::from_millis(5);

/// Names a submitted record until it is acknowledged. Plain numbers: it may be kept, copied or dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    from: LogPosition,
    to: LogPosition,
    bytes: u64,
}

impl Ticket {
    pub(crate) const fn new(from: LogPosition, to: LogPosition, bytes: u64) -> Self {
        Self { from, to, bytes }
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the record stands.
    #[must_use]
    pub const fn position(&self) -> LogPosition {
        self.from
    }

    /// The position behind it: acknowledged once [`LogPrimary::acknowledged`] has come so far.
    #[must_use]
    pub const fn end(&self) -> LogPosition {
        self.to
    }
}

/// The one writer of a region in append mode.
///
/// [`Self::append`] stores one record and returns when it is durable: one chain, one round trip. [`Self::submit`] returns at once, and
/// while chains are in flight the records that follow gather and go out together; [`Self::wait`] and [`Self::flush`] give the receipts.
/// Records are acknowledged in the order in which they were given. Nothing is allocated for a record.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block, without any progress at most for
/// [`crate::Timeouts::stall`], and while the log is full at most for [`crate::Timeouts::back_pressure`]. After an error of the connection the
/// handle is at its end: open the region again.
pub struct LogPrimary {
    region: Region,
    writer: LogWriter,
    outbox: Outbox,
    driver: LogDriver,
    /// Published and not yet completed: (number of the last chain, id, end of its records).
    publishes: VecDeque<(u64, PublishId, LogPosition)>,
    /// End of everything that was submitted.
    submitted: LogPosition,
    /// For the receipt of the next flush.
    flushed: LogPosition,
    bytes_since_flush: u64,
    /// Where the records of the chain in the making begin.
    gathering_from: LogPosition,
    /// Records before this may lie in the ring, sent ahead of their publishing: a recovery would take them for durable.
    sent_ahead: LogPosition,
    /// Records submitted since completions were last looked for.
    submitted_unseen: u32,
}

impl std::fmt::Debug for LogPrimary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LogPrimary")
            .field("region", &self.region)
            .field("submitted", &self.submitted)
            .field("acknowledged", &self.writer.acknowledged())
            .finish_non_exhaustive()
    }
}

/// What taking over a log came to.
#[derive(Debug)]
#[non_exhaustive]
pub struct LogTakeover {
    /// The new primary.
    pub primary: LogPrimary,
    /// What was recovered.
    pub recovered: RecoveredLog,
    /// What the fence did.
    pub fence: FenceReport,
    /// From the beginning of the fence until all unread records were handed out.
    pub recovered_after: Duration,
    /// From the beginning of the fence until the new primary could append.
    pub took: Duration,
}

impl Unit {
    /// Opens a region in append mode as its primary: takes the right to append, and an epoch of its own. The log is recovered and made ready
    /// first, so that what an earlier primary left is safe.
    ///
    /// # Errors
    /// [`ClientError::WriterExists`] (fence it first, or use [`Self::take_over_log`]), [`ClientError::Damaged`] where acknowledged records
    /// can't be read, [`ClientError::NoSuchRegion`], [`ClientError::NoGrant`], [`ClientError::WrongMode`],
    /// [`ClientError::UnfitPersistence`], [`ClientError::NoProvider`], and what every request may meet.
    pub fn open_log_primary(&self, region: &str, options: &OpenOptions) -> Result<LogPrimary> {
        let region = self.open(region, PURPOSE, options)?;
        Ok(LogPrimary::recovering(region, Loss::Refused, |_| Ok(()), |_| {})?.0)
    }

    /// As [`Self::open_log_primary`], for a log with damage: it goes on where the damage begins, and **the records behind it are given up**.
    /// The answer says what was lost.
    ///
    /// # Errors
    /// As there, but for the damage.
    pub fn open_log_primary_with_loss(
        &self,
        region: &str,
        options: &OpenOptions,
    ) -> Result<(LogPrimary, RecoveredLog)> {
        let region = self.open(region, PURPOSE, options)?;
        LogPrimary::recovering(region, Loss::Accepted, |_| Ok(()), |_| {})
    }

    /// Takes a log over from a primary that has failed, in the right order: fences it, hands every unread record to the visitor (whole batches
    /// behind the tail too), and becomes the primary. What the visitor got counts when this has returned.
    ///
    /// # Errors
    /// As [`Self::fence`] and [`Self::open_log_primary`]; what the visitor returns.
    pub fn take_over_log(
        &self,
        region: &str,
        options: &OpenOptions,
        visit: impl FnMut(LogRecord<'_>) -> Result<()>,
    ) -> Result<LogTakeover> {
        let begun = Instant::now();
        let fence = self.fence(region)?;
        let region = self.open(region, PURPOSE, &options.going_on_from_nothing())?;
        let mut recovered_after = Duration::ZERO;
        let (primary, recovered) = LogPrimary::recovering(region, Loss::Refused, visit, |_| {
            recovered_after = begun.elapsed();
        })?;
        Ok(LogTakeover {
            primary,
            recovered,
            fence,
            recovered_after,
            took: begun.elapsed(),
        })
    }
}

const PURPOSE: Purpose = Purpose {
    role: SessionRole::Primary,
    clear: false,
    mode: Mode::Append,
    member: false,
};

/// Whether acknowledged records that can't be read may be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Refused,
    Accepted,
}

impl LogPrimary {
    /// Over a connection that is there already: for simulators and tests. Unread records go to the visitor.
    ///
    /// # Errors
    /// As [`Unit::open_log_primary`], but for what the unit would say.
    pub fn over(
        parts: Parts,
        visit: impl FnMut(LogRecord<'_>) -> Result<()>,
    ) -> Result<(Self, RecoveredLog)> {
        Self::recovering(Region::new(parts)?, Loss::Refused, visit, |_| {})
    }

    fn recovering(
        mut region: Region,
        loss: Loss,
        mut visit: impl FnMut(LogRecord<'_>) -> Result<()>,
        recovered: impl FnOnce(&RecoveredLog),
    ) -> Result<(Self, RecoveredLog)> {
        let geometry = geometry_of(&region.info)?;
        let mut driver = LogDriver::new(&mut region)?;
        let window = driver.window_bytes();
        let mut reader = LogReader::new(geometry, region.info.id, LogMode::Recovery, window);
        let result = driver.run(&mut region, &mut reader, |found| {
            visit(found).map(|()| true)
        });
        let found = match (result, reader.recovered()) {
            (Ok(Pause::End) | Err(Stop::Log(_)), Some(found)) => found,
            (Err(stop), _) => return Err(stopped(&region, stop)),
            (Ok(_), _) => {
                return Err(ClientError::Protocol(
                    "the recovery of the log has no end".into(),
                ));
            }
        };
        let opening = match loss {
            Loss::Accepted => found.opening_with_loss(region.epoch),
            Loss::Refused => found
                .opening(region.epoch)
                .map_err(|error| stopped(&region, Stop::Log(error)))?,
        };
        let facts = RecoveredLog::of(&found);
        recovered(&facts);
        Ok((Self::start(region, geometry, driver, &opening)?, facts))
    }

    /// Publishes what was recovered and the new epoch, and gets ready for the first record.
    fn start(
        mut region: Region,
        geometry: LogGeometry,
        driver: LogDriver,
        opening: &LogOpening,
    ) -> Result<Self> {
        let staging_bytes = region.staging_bytes;
        let staging = Registered::allocate(&mut region.link, staging_bytes)?;
        let mut outbox = Outbox::new(staging, staging_bytes, &region.link);
        let base = region.info.address.get();
        let posted = outbox
            .post(&mut region.link, |chain| {
                opening
                    .flush_records
                    .iter()
                    .for_each(|piece| flush(chain, base, piece));
                flush(chain, base, opening.flush_cursor);
                chain.atomic_write(base + opening.tail.offset.get(), opening.tail.value);
                flush(chain, base, opening.flush_tail);
                chain.atomic_write(base + opening.epoch.offset.get(), opening.epoch.value);
                flush(chain, base, opening.flush_epoch);
            })
            .map_err(|error| region.error(error))?;
        if let Err(error) = region.link.wait_for(posted.last) {
            return Err(region.error_of(error, Attempt::OpenLog));
        }
        let start = opening.start;
        Ok(Self {
            writer: LogWriter::new(geometry, region.epoch, start, PUBLISHES_IN_FLIGHT_MAX),
            region,
            outbox,
            driver,
            publishes: VecDeque::with_capacity(PUBLISHES_IN_FLIGHT_MAX),
            submitted: start.tail,
            flushed: start.tail,
            bytes_since_flush: 0,
            gathering_from: start.tail,
            sent_ahead: start.tail,
            submitted_unseen: 0,
        })
    }

    /// Appends one record, and returns when it is durable by the connection's persistence method. Waits while the log is full.
    ///
    /// # Errors
    /// [`ClientError::Full`] if the backup made no room in time, [`ClientError::TooLarge`], [`ClientError::Invalid`] for an empty record:
    /// nothing was appended. [`ClientError::ConnectionLost`], [`ClientError::Fenced`]: neither.
    /// [`ClientError::UnknownOutcome`]: it may have been. [`ClientError::MediumFailed`].
    pub fn append(&mut self, record: &[u8]) -> Result<Receipt> {
        let ticket = self.submit(record)?;
        self.wait(ticket)
    }

    /// As [`Self::append`], without waiting for room: looks at the cursor once.
    ///
    /// # Errors
    /// As there; [`ClientError::Full`] at once.
    pub fn try_append(&mut self, record: &[u8]) -> Result<Receipt> {
        let ticket = self.submit_within(&[record], Duration::ZERO)?;
        self.wait(ticket)
    }

    /// Appends several records as one: after a crash either all of them are there or none. One chain, however many there are (as long as they
    /// fit the staging memory).
    ///
    /// # Errors
    /// As [`Self::append`]; [`ClientError::Invalid`] for no records at all.
    pub fn append_batch(&mut self, records: &[&[u8]]) -> Result<Receipt> {
        let ticket = self.submit_batch(records)?;
        self.wait(ticket)
    }

    /// Takes a record, and returns as soon as it is on its way or gathered with others: **not durable yet**.
    ///
    /// It blocks only while the log is full, or while all staging memory is on its way.
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
        self.submit_within(records, self.region.timeouts.back_pressure)
    }

    fn submit_within(&mut self, records: &[&[u8]], patience: Duration) -> Result<Ticket> {
        self.look_for_completions()?;
        let bytes = records.iter().map(|record| record.len() as u64).sum();
        self.make_room_in_log(records, patience)?;
        let from = self.submitted;
        let last = records.len() - 1;
        for (index, record) in records.iter().enumerate() {
            let batch = if index == last {
                Batch::Ends
            } else {
                Batch::Continues
            };
            if let Err(error) = self.place(record, batch) {
                // What was written behind the tail can't be told from what was meant: this handle is at its end.
                self.writer.fail();
                return Err(error);
            }
        }
        self.bytes_since_flush += bytes;
        let eager = self.publishes.len() < PUBLISHES_IN_FLIGHT_EAGER;
        let enough = self.outbox.bytes() >= GATHER_BYTES;
        if eager || (enough && self.publishes.len() < PUBLISHES_IN_FLIGHT_MAX) {
            self.publish()?;
        }
        Ok(Ticket {
            from,
            to: self.submitted,
            bytes,
        })
    }

    /// Looks for completions, unless that was done a few records ago and nothing hangs on it: a look is a system call on some providers.
    fn look_for_completions(&mut self) -> Result<()> {
        self.submitted_unseen += 1;
        if self.submitted_unseen < SUBMITS_PER_LOOK
            && self.publishes.len() >= PUBLISHES_IN_FLIGHT_EAGER
        {
            return Ok(());
        }
        self.submitted_unseen = 0;
        self.poll_completions().map(drop)
    }

    /// Blocks until the record is durable.
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`], [`ClientError::Fenced`]: it was not stored. [`ClientError::UnknownOutcome`]: it may have been.
    /// [`ClientError::MediumFailed`].
    pub fn wait(&mut self, ticket: Ticket) -> Result<Receipt> {
        self.wait_until(ticket.to)?;
        let stored = Stored::Log {
            from: ticket.from,
            to: ticket.to,
        };
        Ok(self.region.receipt(stored, ticket.bytes))
    }

    /// Blocks until everything submitted is durable. The receipt is for all records since the last flush.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn flush(&mut self) -> Result<Receipt> {
        if let Err(error) = self.region.link.check() {
            // Of all records, those on their way too, and not just of the last.
            return Err(self.failed(error));
        }
        self.wait_until(self.submitted)?;
        let stored = Stored::Log {
            from: self.flushed,
            to: self.submitted,
        };
        let bytes = std::mem::take(&mut self.bytes_since_flush);
        self.flushed = self.submitted;
        Ok(self.region.receipt(stored, bytes))
    }

    /// True if the record is durable, as far as completions were seen: [`Self::poll_completions`] looks.
    #[must_use]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.writer.acknowledged() >= ticket.to
    }

    /// Looks for completions without blocking, and sends what has gathered where that is due. The position up to which everything is durable.
    ///
    /// # Errors
    /// As [`Self::wait`], for the oldest record that failed.
    pub fn poll_completions(&mut self) -> Result<LogPosition> {
        if let Err(error) = self
            .region
            .link
            .poll()
            .and_then(|()| self.region.link.check())
        {
            return Err(self.failed(error));
        }
        self.reap()?;
        if self.publishes.is_empty() {
            self.publish()?;
        }
        Ok(self.writer.acknowledged())
    }

    /// Says to whoever watches that this program lives: an ATOMIC WRITE of the region's beat, at most one at a time on its way. To be called
    /// from where the program does its work, a few times in each interval that the watcher knows: not from a thread that would go on beating
    /// while the program hangs. Doesn't wait, allocates nothing, and makes nothing durable.
    ///
    /// # Errors
    /// [`ClientError::Fenced`], [`ClientError::ConnectionLost`].
    pub fn beat(&mut self) -> Result<()> {
        self.region.beat()?;
        self.reap()
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

    /// Becomes readable when [`Self::poll_completions`] may find something, for a reactor. Call [`Self::arm`] before each sleep.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.region.link.event_fd()
    }

    /// Prepares for sleeping on [`Self::event_fd`]; true if [`Self::poll_completions`] must be called first.
    ///
    /// # Errors
    /// [`ClientError::Fabric`]: a broken device.
    pub fn arm(&mut self) -> Result<bool> {
        self.region
            .link
            .arm()
            .map_err(|error| self.region.error(error))
    }

    /// Bytes of the ring that are free, as far as the cursor was looked at.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.writer.free_bytes()
    }

    /// The longest record that the ring can take.
    #[must_use]
    pub fn record_bytes_max(&self) -> u32 {
        self.writer.geometry().payload_max_bytes()
    }

    /// The epoch in which this primary writes.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.region.epoch
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &RegionInfo {
        &self.region.info
    }

    /// The unit, and how its connection makes bytes durable.
    #[must_use]
    pub fn unit(&self) -> &UnitProof {
        &self.region.proof()[0]
    }

    /// Which way the bytes go.
    #[must_use]
    pub fn provider(&self) -> pmu_fabric::Provider {
        self.region.provider()
    }

    /// What this connection has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.region.link.counters()
    }

    /// Looks at the backup's cursor, with one read: the bytes of the ring that are free.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn refresh_free(&mut self) -> Result<u64> {
        let request = ReadRequest {
            offset: LOG_CURSOR_OFFSET,
            length_bytes: PAGE_PAIR_BYTES,
        };
        let read = self.driver.read(&mut self.region, request)?;
        let pair =
            CursorPair::decode(read).map_err(|error| ClientError::Protocol(error.to_string()))?;
        match self.writer.cursor_observed(pair) {
            Ok(CursorSeen::Free { free_bytes }) => Ok(free_bytes),
            Ok(CursorSeen::Unsettled) => Ok(self.writer.free_bytes()),
            Err(error) => Err(ClientError::Damaged {
                region: self.region.name(),
                what: error.to_string(),
            }),
        }
    }

    /// Sees to it that all records fit, before the first of them is placed.
    fn make_room_in_log(&mut self, records: &[&[u8]], patience: Duration) -> Result<()> {
        let limit_bytes = self.writer.geometry().ring_bytes();
        let longest = u64::from(self.writer.geometry().payload_max_bytes());
        let mut needed_bytes = 0_u64;
        for record in records {
            let length = record.len() as u64;
            if length == 0 {
                return Err(ClientError::Invalid(
                    "a record has at least one byte".into(),
                ));
            }
            if length > longest {
                let region = self.region.name();
                return Err(ClientError::TooLarge {
                    region,
                    bytes: length,
                    limit_bytes: longest,
                });
            }
            needed_bytes += record_length_bytes(length as u32);
        }
        if needed_bytes == 0 {
            return Err(ClientError::Invalid(
                "a batch has at least one record".into(),
            ));
        }
        if needed_bytes > limit_bytes {
            let region = self.region.name();
            return Err(ClientError::TooLarge {
                region,
                bytes: needed_bytes,
                limit_bytes,
            });
        }
        if needed_bytes <= self.writer.free_bytes() {
            return Ok(());
        }
        self.wait_for_clear(needed_bytes, patience)
    }

    /// Back-pressure: looks at the cursor with one-sided reads until the backup has cleared enough.
    fn wait_for_clear(&mut self, needed_bytes: u64, patience: Duration) -> Result<()> {
        let deadline = self.region.link.now() + patience;
        let mut pause = FULL_PAUSE_MIN;
        loop {
            // The backup can clear only what it can see.
            self.publish()?;
            let free_bytes = self.refresh_free()?;
            self.reap()?;
            if free_bytes >= needed_bytes {
                return Ok(());
            }
            if !self.region.pause(deadline, pause) {
                return Err(ClientError::Full {
                    region: self.region.name(),
                    needed_bytes,
                    free_bytes,
                });
            }
            pause = (pause * 2).min(FULL_PAUSE_MAX);
        }
    }

    /// Places a record and copies it into staging memory.
    fn place(&mut self, record: &[u8], batch: Batch) -> Result<()> {
        let payload = Payload::of(&self.region.info.id, record);
        let placement = match self.writer.reserve(payload, batch) {
            Ok(placement) => placement,
            Err(AppendError::InDoubt) => return Err(self.region.ended()),
            Err(error) => return Err(ClientError::Invalid(error.to_string())),
        };
        let padding = placement.padding.length_bytes as usize;
        let geometry = *self.writer.geometry();
        let mut at = placement.position;
        for part in [&placement.header[..], record, &[0; 8][..padding]] {
            at = self.stage(&geometry, at, part)?;
        }
        self.submitted = placement.end;
        Ok(())
    }

    /// Copies bytes that belong at a position of the log; the position behind them.
    fn stage(
        &mut self,
        geometry: &LogGeometry,
        at: LogPosition,
        bytes: &[u8],
    ) -> Result<LogPosition> {
        let mut done = 0_usize;
        while done < bytes.len() {
            let here = LogPosition(at.get() + done as u64);
            // Cut where the ring ends.
            let piece = geometry.pieces(here, (bytes.len() - done) as u64).first;
            let remote = self.region.address(piece.offset.get());
            let part = &bytes[done..done + piece.length_bytes as usize];
            let count = self.outbox.stage(&self.region.link, remote, part)?;
            done += count;
            if count < part.len() {
                self.write_ahead()?;
            }
        }
        Ok(LogPosition(at.get() + bytes.len() as u64))
    }

    /// Sends what is staged without publishing it, and waits for room: a record that is longer than the staging memory passes through it so.
    fn write_ahead(&mut self) -> Result<()> {
        let sent = match self.outbox.bytes() {
            0 => Ok(()),
            _ => {
                self.sent_ahead = self.submitted;
                self.outbox.post(&mut self.region.link, |_| {}).map(drop)
            }
        };
        let room = sent.and_then(|()| self.outbox.wait_for_room(&mut self.region.link));
        if let Err(error) = room {
            return Err(self.failed(error));
        }
        self.reap()
    }

    /// Sends what has gathered, with its publishing, as one chain.
    fn publish(&mut self) -> Result<()> {
        let plan = match self.writer.publish() {
            Ok(Some(plan)) => plan,
            Ok(None) | Err(PublishError::TooManyInFlight { .. }) => return Ok(()),
            Err(PublishError::InDoubt) => return Err(self.region.ended()),
            Err(error) => return Err(ClientError::Invalid(error.to_string())),
        };
        let from = std::mem::replace(&mut self.gathering_from, self.submitted);
        let before = self.region.link.posted();
        match self.post(&plan) {
            Ok(posted) => {
                self.publishes
                    .push_back((posted.last, plan.id, self.submitted));
                Ok(())
            }
            Err(error) => {
                // What of the chain was posted lies where it would lie had it been sent ahead.
                if self.region.link.posted() > before {
                    self.sent_ahead = self.submitted;
                }
                self.gathering_from = from;
                Err(self.failed(error))
            }
        }
    }

    fn post(&mut self, plan: &PublishPlan) -> Result<Posted, LinkError> {
        let base = self.region.info.address.get();
        self.outbox.post(&mut self.region.link, |chain| {
            plan.flush
                .iter()
                .for_each(|piece| flush(chain, base, piece));
            chain.atomic_write(base + plan.tail.offset.get(), plan.tail.value);
            flush(chain, base, plan.flush_tail);
        })
    }

    /// Reports publishes whose chains have completed.
    fn reap(&mut self) -> Result<()> {
        let succeeded = self.region.link.succeeded();
        while let Some(&(serial, id, _)) = self.publishes.front() {
            if serial > succeeded {
                break;
            }
            self.publishes.pop_front();
            self.writer
                .completed(id)
                .map_err(|error| ClientError::Invalid(error.to_string()))?;
        }
        Ok(())
    }

    fn wait_until(&mut self, position: LogPosition) -> Result<()> {
        while self.writer.acknowledged() < position {
            if let Err(error) = self.region.link.check() {
                if position > self.gathering_from.max(self.sent_ahead) {
                    // Never sent.
                    return Err(self.region.error(error));
                }
                return Err(self.failed(error));
            }
            if self.publishes.is_empty() || position > self.gathering_from {
                self.publish()?;
            }
            let Some(&(serial, ..)) = self.publishes.front() else {
                return Err(self.region.ended());
            };
            if let Err(error) = self.region.link.wait_for(serial) {
                return Err(self.failed(error));
            }
            self.reap()?;
        }
        Ok(())
    }

    /// What the failure of the connection means for the records that are not acknowledged.
    fn failed(&mut self, error: LinkError) -> ClientError {
        // Completions that came before the failure still count.
        drop(self.reap());
        self.writer.fail();
        let sent = self.gathering_from.max(self.sent_ahead);
        let acknowledged = self.writer.acknowledged();
        if sent <= acknowledged {
            return self.region.error(error);
        }
        self.region
            .error_of(error, Attempt::Records(acknowledged, sent))
    }
}

fn flush(chain: &mut Chain, base: u64, piece: RegionPiece) {
    chain.flush(base + piece.offset.get(), piece.length_bytes);
}
