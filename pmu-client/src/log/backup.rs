//! Reading a log beside its live primary, clearing what was read, and fetching the unread rest after the primary's end.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pmu_core::log::{ClearError, ClearPlan, LogMode, LogReader, Record, RecordMark};
use pmu_fabric::{Chain, Counters};
use pmu_format::{LogGeometry, LogPosition, Mode};
use pmu_proto::v1::SessionRole;

use crate::error::{Attempt, ClientError, Result};
use crate::log::drive::{LogDriver, LogRecord, Pause, RecoveredLog, Stop, stopped};
use crate::log::geometry_of;
use crate::options::OpenOptions;
use crate::receipt::UnitProof;
use crate::region::{Parts, Region, RegionInfo};
use crate::unit::{Purpose, Unit};

/// What to do after a batch of records in [`LogBackup::follow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Read on.
    Continue,
    /// Clear what was handed out so far, durably, and read on.
    Clear,
    /// Return.
    Stop,
}

/// Records that were read together, in the order of the log.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    entries: std::slice::Iter<'a, Entry>,
    payloads: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = LogRecord<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next()?;
        let payload = self.payloads.get(entry.payload.clone())?;
        Some(LogRecord {
            record: entry.record,
            payload,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for Records<'_> {}

/// One record of [`Records`], and where its payload lies among the bytes.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) payload: Range<usize>,
}

impl<'a> Records<'a> {
    pub(crate) fn new(entries: &'a [Entry], payloads: &'a [u8]) -> Self {
        Self {
            entries: entries.iter(),
            payloads,
        }
    }
}

/// The reader of a log, and the one who clears it.
///
/// It reads with one-sided operations alone; the primary neither waits for it nor knows of it, but for the room that it clears. Each record is
/// handed out once by a handle; what was not cleared is handed out again by the next one.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block until the bytes are there, without any progress at most
/// for [`crate::Timeouts::stall`]. Memory for payloads is kept from call to call: nothing is allocated for a record.
pub struct LogBackup {
    region: Region,
    geometry: LogGeometry,
    driver: LogDriver,
    reader: LogReader,
    /// Of the last record that was handed out.
    handed_out: Option<RecordMark>,
    cleared: LogPosition,
    /// The reader has come to the tail as it knows it.
    caught_up: bool,
    entries: Vec<Entry>,
    payloads: Vec<u8>,
    chain: Chain,
}

impl std::fmt::Debug for LogBackup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LogBackup")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl Unit {
    /// Opens a region in append mode as its backup: takes the right to read, and with `clear` that to clear.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRegion`], [`ClientError::NoGrant`], [`ClientError::WrongMode`], [`ClientError::NoProvider`], and what every
    /// request may meet.
    pub fn open_log_backup(
        &self,
        region: &str,
        clear: bool,
        options: &OpenOptions,
    ) -> Result<LogBackup> {
        let purpose = Purpose {
            role: SessionRole::Backup,
            clear,
            mode: Mode::Append,
            member: false,
        };
        LogBackup::open(self.open(region, purpose, options)?)
    }
}

impl LogBackup {
    /// Over a connection that is there already: for simulators and tests.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] for a region that can't be one; the device refuses memory.
    pub fn over(parts: Parts) -> Result<Self> {
        Self::open(Region::new(parts)?)
    }

    fn open(mut region: Region) -> Result<Self> {
        let geometry = geometry_of(&region.info)?;
        let driver = LogDriver::new(&mut region)?;
        let reader = LogReader::new(
            geometry,
            region.info.id,
            LogMode::Live,
            driver.window_bytes(),
        );
        Ok(Self {
            region,
            geometry,
            driver,
            reader,
            handed_out: None,
            cleared: LogPosition(0),
            caught_up: false,
            entries: Vec::new(),
            payloads: Vec::new(),
            chain: Chain::with_capacity(4),
        })
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

    /// Which way the bytes come.
    #[must_use]
    pub fn provider(&self) -> pmu_fabric::Provider {
        self.region.provider()
    }

    /// What this connection has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.region.link.counters()
    }

    /// The position of the next record to be handed out.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.reader.position()
    }

    /// The most that can be uncleared: a record so far before the end was cleared, whoever did it.
    #[must_use]
    pub const fn ring_bytes(&self) -> u64 {
        self.geometry.ring_bytes()
    }

    /// The end of the log when it was last looked at.
    #[must_use]
    pub fn tail(&self) -> LogPosition {
        self.reader.tail()
    }

    /// The mark of the last record that was handed out.
    #[must_use]
    pub fn last_mark(&self) -> Option<RecordMark> {
        self.handed_out
    }

    /// Reads records that this handle has not handed out yet: as many as there are, or until their payloads reach `max_bytes` (one at least).
    /// None left means that all published records were read for now.
    ///
    /// # Errors
    /// [`ClientError::Damaged`], naming the record (what was handed out before is good, and so are records before it in this
    /// batch, which come first); [`ClientError::ConnectionLost`], [`ClientError::TimedOut`].
    pub fn read_unread(&mut self, max_bytes: usize) -> Result<Records<'_>> {
        self.entries.clear();
        self.payloads.clear();
        let mut result = if self.caught_up {
            Ok(Pause::CaughtUp)
        } else {
            self.gather(max_bytes)
        };
        if matches!(result, Ok(Pause::CaughtUp)) && self.entries.is_empty() {
            // Everything up to the tail as it was: look at it again.
            self.reader.refresh();
            result = self.gather(max_bytes);
        }
        self.caught_up = matches!(result, Ok(Pause::CaughtUp));
        if let Err(stop) = result {
            // A damaged record is reported again by the next call, after the good ones before it were handed out.
            let good_ones_first = matches!(stop, Stop::Log(_)) && !self.entries.is_empty();
            if !good_ones_first {
                return Err(stopped(&self.region, stop));
            }
        }
        if let Some(last) = self.entries.last() {
            self.handed_out = Some(last.record.mark);
        }
        Ok(Records {
            entries: self.entries.iter(),
            payloads: &self.payloads,
        })
    }

    /// Hands records on into our own memory.
    fn gather(&mut self, max_bytes: usize) -> std::result::Result<Pause, Stop> {
        let (entries, payloads) = (&mut self.entries, &mut self.payloads);
        // A recovery may have handed out records that this reader has yet to pass.
        let unread_from = self.handed_out.map(|mark| mark.position());
        self.driver
            .run(&mut self.region, &mut self.reader, |found| {
                if unread_from.is_some_and(|from| found.record.position < from) {
                    return Ok(true);
                }
                let begin = payloads.len();
                payloads.extend_from_slice(found.payload);
                entries.push(Entry {
                    record: found.record,
                    payload: begin..payloads.len(),
                });
                Ok(payloads.len() < max_bytes)
            })
    }

    /// Where the log begins, as this handle found it first: the cursor.
    ///
    /// # Errors
    /// As [`Self::read_unread`].
    pub(crate) fn begin(&mut self) -> Result<LogPosition> {
        if !self.reader.is_started() {
            self.driver
                .run(&mut self.region, &mut self.reader, |_| Ok(false))
                .map_err(|stop| stopped(&self.region, stop))?;
            let begin = self.reader.began_at();
            self.reader.seek(begin);
        }
        Ok(self.reader.began_at())
    }

    /// Goes to a record whose position the caller has kept ([`crate::Ticket::position`]): it is handed out next, whether it was before or not.
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`], [`ClientError::TimedOut`]. Where no record begins, or where it was cleared since, the next
    /// [`Self::read_unread`] fails with [`ClientError::Damaged`].
    pub fn seek(&mut self, position: LogPosition) -> Result<()> {
        self.begin()?;
        self.reader.seek(position);
        self.handed_out = None;
        self.caught_up = false;
        Ok(())
    }

    /// Clears everything up to and with a record that was handed out: the primary may use its room again. Durable when this returns.
    /// What is cleared already stays so.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a mark of another region, or a record that is not published yet; [`ClientError::UnknownOutcome`],
    /// [`ClientError::ConnectionLost`] (also without the right to clear), [`ClientError::TimedOut`].
    pub fn clear(&mut self, mark: RecordMark) -> Result<()> {
        let planned = match self.reader.clear(mark) {
            Err(ClearError::NotPublished { .. }) => self.clear_afresh(mark)?,
            planned => planned,
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(ClearError::Already { .. }) => return Ok(()),
            Err(error) => return Err(ClientError::Invalid(error.to_string())),
        };
        let attempt = Attempt::Clear(mark.position());
        let base = self.region.info.address.get();
        self.chain.clear();
        for (word, flush) in [
            (plan.cursor, plan.flush_cursor),
            (plan.inverse, plan.flush_inverse),
        ] {
            self.chain
                .atomic_write(base + word.offset.get(), word.value);
            self.chain
                .flush(base + flush.offset.get(), flush.length_bytes);
        }
        let posted = self
            .region
            .link
            .post(&self.chain)
            .map_err(|error| self.region.error(error))?;
        match self.region.link.wait_for(posted.last) {
            Ok(()) => {
                self.cleared = mark.position();
                Ok(())
            }
            Err(error) => Err(self.region.error_of(error, attempt)),
        }
    }

    /// The same by a reader that has just looked at the tail: a new primary may have published since what a recovery had found.
    fn clear_afresh(
        &mut self,
        mark: RecordMark,
    ) -> Result<std::result::Result<ClearPlan, ClearError>> {
        let window = self.driver.window_bytes();
        let mut reader = LogReader::new(self.geometry, self.region.info.id, LogMode::Live, window);
        self.driver
            .run(&mut self.region, &mut reader, |_| Ok(false))
            .map_err(|stop| stopped(&self.region, stop))?;
        Ok(reader.clear(mark))
    }

    /// Clears everything that this handle has handed out; the position up to which the log is cleared.
    ///
    /// # Errors
    /// As [`Self::clear`].
    pub fn clear_handed_out(&mut self) -> Result<LogPosition> {
        if let Some(mark) = self.handed_out {
            self.clear(mark)?;
        }
        Ok(self.cleared)
    }

    /// Hands out records as they come, looking again every `interval`, until `stop` is set or the visitor says so.
    ///
    /// # Errors
    /// As [`Self::read_unread`] and, where the visitor asks for it, [`Self::clear`].
    pub fn follow(
        &mut self,
        interval: Duration,
        max_bytes: usize,
        stop: &AtomicBool,
        mut visit: impl FnMut(Records<'_>) -> Flow,
    ) -> Result<()> {
        while !stop.load(Ordering::Acquire) {
            let records = self.read_unread(max_bytes)?;
            if records.len() == 0 {
                sleep_unless(&self.region, stop, interval);
                continue;
            }
            match visit(records) {
                Flow::Continue => {}
                Flow::Clear => drop(self.clear_handed_out()?),
                Flow::Stop => return Ok(()),
            }
        }
        Ok(())
    }

    /// After the primary was fenced: hands out every record that this handle has not handed out yet, to the end of what can be believed. That
    /// includes whole batches behind the tail, which were durable although their receipts were lost; they count once a new primary has
    /// opened the log (see [`Unit::take_over_log`], which does both).
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`], [`ClientError::TimedOut`]; what the visitor returns. Damage is no error here but part of the
    /// answer, as everything before it is good; [`ClientError::Damaged`] only where not even a beginning can be found.
    pub fn recover(
        &mut self,
        mut visit: impl FnMut(LogRecord<'_>) -> Result<()>,
    ) -> Result<RecoveredLog> {
        let unread_from = self.handed_out.map(|mark| mark.position());
        let window = self.driver.window_bytes();
        let mut reader = LogReader::new(
            self.geometry,
            self.region.info.id,
            LogMode::Recovery,
            window,
        );
        let result = self.driver.run(&mut self.region, &mut reader, |found| {
            if unread_from.is_none_or(|from| found.record.position >= from) {
                visit(found)?;
                self.handed_out = Some(found.record.mark);
            }
            Ok(true)
        });
        match (result, reader.recovered()) {
            (Ok(Pause::End) | Err(Stop::Log(_)), Some(found)) => Ok(RecoveredLog::of(&found)),
            (Err(stop), _) => Err(stopped(&self.region, stop)),
            (Ok(_), _) => Err(ClientError::Protocol(
                "the recovery of the log has no end".into(),
            )),
        }
    }
}

fn sleep_unless(region: &Region, stop: &AtomicBool, interval: Duration) {
    let until = region.link.now() + interval;
    // Short naps, so that a long interval doesn't delay the end.
    while !stop.load(Ordering::Acquire) && region.pause(until, Duration::from_millis(20)) {}
}
