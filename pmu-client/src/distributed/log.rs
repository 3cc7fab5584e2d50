//! Records by way of a distributor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pmu_auth::Identity;
use pmu_fabric::{Counters, Provider};
use pmu_format::{Epoch, LogPosition, Mode, RECORD_SHARE_BYTES, record_length_bytes};
use pmu_proto::v1;
use pmu_stripe::Layout;

use super::feed::{Feed, Purpose, Told};
use super::ring::Piece;
use super::sets::not_asked;
use super::way::{Answer, Request, Way};
use super::wire::Proof;
use super::{open, wire};
use crate::agent::Epochs;
use crate::error::{Attempt, ClientError, Result};
use crate::log::Ticket;
use crate::log::primary::{FULL_PAUSE_MAX, FULL_PAUSE_MIN, GATHER_BYTES, SUBMITS_PER_LOOK};
use crate::options::{ConnectOptions, OpenOptions};
use crate::receipt::{Receipt, Stored};
use crate::spread::MissingUnit;

/// Records that begin in one piece at most.
const RECORDS_PER_PIECE_MAX: usize = 512;
/// With fewer pieces under way a record goes out at once; with more it waits for company.
const PIECES_IN_FLIGHT_EAGER: usize = 2;

/// Appends records to a log on several units by way of a distributor.
///
/// Calls, receipts and guarantees are those of [`crate::SpreadLogPrimary`]: a record is acknowledged when every unit that works has it, durably,
/// and has published it, durably. The position of a record is known when it is submitted; one that has no room does not leave the program. Two things
/// differ. The first failure ends the handle ([`Self::is_ended`]): open it again. And neither a record nor a batch is longer than the
/// distributor's staging memory ([`Self::record_bytes_max`]), as the distributor holds each as a whole.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block; memory is the staging memory
/// ([`OpenOptions::staging_bytes`]). Dropping it ends the session; waits two seconds at most until the region is free.
pub struct DistributedLog {
    feed: Feed<Records>,
    ring_bytes: u64,
    record_bytes_max: u32,
    batch_bytes_max: u64,
    back_pressure: Duration,
    flushed: LogPosition,
    bytes_since_flush: u64,
    submitted_unseen: u32,
}

/// The records that are under way.
struct Records {
    /// Of the piece that is gathered: for each record that begins in it its length, as the protocol has it.
    lengths: Vec<u64>,
    /// Pieces that have ended and were not announced.
    pieces: VecDeque<Ended>,
    /// Up to where the pieces that are announced have whole records, of those that are not acknowledged.
    in_flight: VecDeque<LogPosition>,
    /// The end of the record or batch that is being written.
    begun: LogPosition,
    submitted: LogPosition,
    announced: LogPosition,
    acknowledged: LogPosition,
    /// Up to here there is room, as far as the cursors were looked at.
    free_to: LogPosition,
    ring_bytes: u64,
    /// Whether the distributor has answered how much is free.
    looked: bool,
    proof: Proof,
    /// The distributor has said itself what became of the records.
    told: bool,
}

/// What is announced with a piece, and what it leads to.
#[derive(Default)]
struct Ended {
    records: Vec<u64>,
    /// With it everything before this position has come as a whole.
    whole: LogPosition,
    /// Nothing behind this position can be appended with it.
    reaches: LogPosition,
}

impl Records {
    fn new(log: &v1::DistributedLog, proof: Proof) -> Self {
        let tail = LogPosition(log.tail);
        Self {
            lengths: Vec::with_capacity(RECORDS_PER_PIECE_MAX),
            pieces: VecDeque::new(),
            in_flight: VecDeque::new(),
            begun: tail,
            submitted: tail,
            announced: tail,
            acknowledged: tail,
            free_to: LogPosition(log.free_to),
            ring_bytes: log.ring_bytes,
            looked: false,
            proof,
            told: false,
        }
    }

    fn acknowledge(&mut self, to: u64) -> Result<()> {
        let to = LogPosition(to);
        if to < self.acknowledged || to > self.announced {
            return Err(ClientError::Protocol(
                "the distributor appended what was not announced".into(),
            ));
        }
        self.acknowledged = to;
        while self.in_flight.front().is_some_and(|end| *end <= to) {
            self.in_flight.pop_front();
        }
        Ok(())
    }

    fn take_free(&mut self, free_to: u64) -> Result<()> {
        let most = self.submitted.get().saturating_add(self.ring_bytes);
        if free_to < self.free_to.get() || free_to > most {
            return Err(ClientError::Protocol(
                "the distributor has more or less room than there can be".into(),
            ));
        }
        self.free_to = LogPosition(free_to);
        self.looked = true;
        Ok(())
    }

    const fn free_bytes(&self) -> u64 {
        self.free_to.get().saturating_sub(self.submitted.get())
    }
}

impl Purpose for Records {
    fn ready(&mut self, piece: Piece) -> Request {
        let Ended {
            records,
            whole,
            reaches,
        } = self.pieces.pop_front().unwrap_or_default();
        self.announced = self.announced.max(reaches);
        if whole > self.acknowledged {
            self.in_flight.push_back(whole);
        }
        Request::Records(v1::DistributeRecords {
            position: piece.position,
            length_bytes: piece.length,
            checksum: piece.checksum,
            records,
        })
    }

    fn piece_ended(&mut self) {
        let empty = Vec::with_capacity(RECORDS_PER_PIECE_MAX);
        self.pieces.push_back(Ended {
            records: std::mem::replace(&mut self.lengths, empty),
            whole: self.submitted,
            reaches: self.begun,
        });
    }

    fn take(&mut self, answer: Answer, _region: &Arc<str>) -> Result<Told> {
        match answer {
            Answer::Appended(appended) => {
                self.acknowledge(appended.to)?;
                let mut told = Told {
                    term: appended.term,
                    missing: None,
                };
                if let Some(proof) = appended.proof {
                    self.proof = wire::proof_from_wire(&proof)?;
                    told.missing = Some(appended.missing);
                }
                Ok(told)
            }
            Answer::Free(free) => {
                self.take_free(free.free_to)?;
                Ok(Told::default())
            }
            _ => Err(not_asked()),
        }
    }

    fn failed(
        &mut self,
        failed: &v1::DistributeFailed,
        error: ClientError,
        _region: &Arc<str>,
    ) -> Result<Option<(ClientError, bool)>> {
        if let Some(to) = failed.appended_to {
            let before = self.acknowledged;
            self.acknowledge(to)?;
            self.told = !failed.failure.as_ref().is_some_and(wire::says_more);
            if self.acknowledged > before {
                // Acknowledged by those that were left, which was not told by itself.
                let lost = |name: &str| failed.missing.iter().any(|missing| missing.unit == name);
                let units = self.proof.units.iter();
                let left = units.filter(|unit| !lost(&unit.name)).cloned();
                self.proof.units = left.collect();
            }
        }
        Ok(Some((error, true)))
    }
}

impl std::fmt::Debug for DistributedLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DistributedLog")
            .field("region", &self.feed.region)
            .field("distributor", &self.feed.distributor)
            .field("submitted", &self.submitted())
            .field("acknowledged", &self.acknowledged())
            .finish_non_exhaustive()
    }
}

impl DistributedLog {
    /// Opens a spread region in append mode as its primary by way of the distributor at `address`, as [`crate::Distributed::connect`] does for sets.
    ///
    /// # Errors
    /// As there.
    pub fn connect(
        address: &str,
        region: &str,
        identity: &Identity,
        connect: &ConnectOptions,
        options: &OpenOptions,
    ) -> Result<Self> {
        let way = open::way(address, region, identity, connect)?;
        Self::over(way, region, options)
    }

    /// As [`Self::connect`], behind a fence: only units that are named, and that nobody has fenced or opened since, are opened, as
    /// [`crate::Spread::going_on_from`] says; with none named nothing is looked at. `connect` goes by what the environment says ([`crate::agent`]).
    ///
    /// # Errors
    /// As [`Self::connect`]; [`ClientError::Fenced`]; [`ClientError::Protocol`]: the distributor is of a version that doesn't look at it.
    pub fn connect_behind(
        address: &str,
        region: &str,
        identity: &Identity,
        connect: &ConnectOptions,
        options: &OpenOptions,
        fenced: impl IntoIterator<Item = (Arc<str>, Epoch)>,
    ) -> Result<Self> {
        let way = open::way(address, region, identity, connect)?;
        Self::open(way, region, options, Epochs::behind(region, fenced))
    }

    /// Behind a fence: what this program goes on from when it opens the region again, with [`Self::connect_behind`] or by itself
    /// ([`crate::Spread::going_on_from`]), as far as the distributor has told. Empty for one that was opened behind none.
    #[must_use]
    pub fn goes_on_from(&self) -> Vec<(Arc<str>, Epoch)> {
        self.feed.goes_on_from()
    }

    /// The same on any way to a distributor: for simulators and tests.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn over(way: Box<dyn Way>, region: &str, options: &OpenOptions) -> Result<Self> {
        Self::open(way, region, options, Epochs::of_process())
    }

    fn open(
        way: Box<dyn Way>,
        region: &str,
        options: &OpenOptions,
        epochs: Arc<Epochs>,
    ) -> Result<Self> {
        let begun = open::begin(way, region, options, Mode::Append, epochs)?;
        let log = begun.opened.log.clone().unwrap_or_default();
        let most = log.tail.checked_add(log.ring_bytes);
        if log.record_bytes_max == 0
            || log.free_to < log.tail
            || most.is_none_or(|most| log.free_to > most)
        {
            let text = "distributor: a log that can't be";
            return Err(ClientError::Protocol(text.into()));
        }
        let proof = wire::proof_from_wire(&log.proof.clone().unwrap_or_default())?;
        Ok(Self {
            ring_bytes: log.ring_bytes,
            record_bytes_max: log.record_bytes_max,
            batch_bytes_max: log.batch_bytes_max,
            back_pressure: options.timeouts.back_pressure,
            flushed: LogPosition(log.tail),
            bytes_since_flush: 0,
            submitted_unseen: 0,
            feed: Feed::start(begun, region, options, Records::new(&log, proof))?,
        })
    }

    /// Appends one record, and returns when it is durable on each unit that the receipt names. Waits while the log is full.
    ///
    /// # Errors
    /// [`ClientError::Full`] if the backup made no room in time, [`ClientError::TooLarge`], [`ClientError::Invalid`] for an empty record:
    /// nothing was appended, and the handle goes on. All others end it. [`ClientError::UnknownOutcome`]: what was not acknowledged may
    /// have been appended, as far as it says; with any other error it was not.
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

    /// Takes a record, and returns as soon as it is on its way to the distributor or gathered with others: **not durable yet**. What is under way
    /// is carried on by every call; [`Self::poll_completions`] does nothing else.
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
        self.submit_within(records, self.back_pressure)
    }

    fn submit_within(&mut self, records: &[&[u8]], patience: Duration) -> Result<Ticket> {
        self.feed.check_open()?;
        let (needed_bytes, bytes) = self.measure(records)?;
        self.look_for_completions()?;
        if needed_bytes > self.free_bytes() {
            self.wait_for_clear(needed_bytes, patience)?;
        }
        let from = self.submitted();
        let to = from.checked_add(needed_bytes).ok_or_else(not_asked)?;
        self.feed.purpose.begun = to;
        let placed = self.place(records);
        // Half a record can't be taken back.
        self.feed.ended |= placed.is_err();
        self.judge(placed)?;
        self.feed.purpose.submitted = to;
        self.bytes_since_flush += bytes;
        let eager = self.feed.purpose.in_flight.len() < PIECES_IN_FLIGHT_EAGER;
        if eager || self.feed.gathered_bytes() >= GATHER_BYTES {
            let posted = self.feed.post_piece();
            self.judge(posted)?;
        }
        Ok(Ticket::new(from, to, bytes))
    }

    fn place(&mut self, records: &[&[u8]]) -> Result<()> {
        let last = records.len() - 1;
        for (index, record) in records.iter().enumerate() {
            if self.feed.purpose.lengths.len() >= RECORDS_PER_PIECE_MAX {
                self.feed.post_piece()?;
            }
            let continues = u64::from(index != last);
            let code = (record.len() as u64) << 1 | continues;
            self.feed.purpose.lengths.push(code);
            self.feed.write(record)?;
        }
        Ok(())
    }

    /// Bytes that the records take in the ring of each unit, and their own.
    fn measure(&self, records: &[&[u8]]) -> Result<(u64, u64)> {
        let mut needed_bytes = 0_u64;
        let mut bytes = 0_u64;
        for record in records {
            if record.is_empty() {
                let text = "a record has at least one byte";
                return Err(ClientError::Invalid(text.into()));
            }
            let length = record.len() as u64;
            if length > self.record_bytes_max.into() {
                return Err(self.feed.too_large(length, self.record_bytes_max.into()));
            }
            let shard = length.div_ceil(self.feed.layout.data_shards() as u64);
            let stored = u32::try_from(RECORD_SHARE_BYTES as u64 + shard).unwrap_or(u32::MAX);
            needed_bytes += record_length_bytes(stored);
            bytes += length;
        }
        if records.is_empty() {
            let text = "a batch has at least one record";
            return Err(ClientError::Invalid(text.into()));
        }
        if bytes > self.batch_bytes_max {
            return Err(self.feed.too_large(bytes, self.batch_bytes_max));
        }
        if needed_bytes > self.ring_bytes {
            return Err(self.feed.too_large(needed_bytes, self.ring_bytes));
        }
        Ok((needed_bytes, bytes))
    }

    /// Back-pressure: has the distributor look at the cursors until enough is cleared.
    fn wait_for_clear(&mut self, needed_bytes: u64, patience: Duration) -> Result<()> {
        let deadline = self.feed.now() + patience;
        let mut pause = FULL_PAUSE_MIN;
        loop {
            let free_bytes = self.refresh_free()?;
            if free_bytes >= needed_bytes {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(self.feed.now());
            if left.is_zero() {
                return Err(ClientError::Full {
                    region: self.feed.region.as_ref().into(),
                    needed_bytes,
                    free_bytes,
                });
            }
            self.feed.pause(pause.min(left));
            pause = (pause * 2).min(FULL_PAUSE_MAX);
        }
    }

    /// Looks for completions, unless that was done a few records ago and nothing hangs on it.
    fn look_for_completions(&mut self) -> Result<()> {
        self.submitted_unseen += 1;
        let busy = self.feed.purpose.in_flight.len() >= PIECES_IN_FLIGHT_EAGER;
        if busy && self.submitted_unseen < SUBMITS_PER_LOOK {
            return Ok(());
        }
        self.submitted_unseen = 0;
        self.poll_completions().map(drop)
    }

    /// Blocks until the record is durable.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn wait(&mut self, ticket: Ticket) -> Result<Receipt> {
        self.wait_until(ticket.end())?;
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
        self.wait_until(self.submitted())?;
        let stored = Stored::Log {
            from: self.flushed,
            to: self.submitted(),
        };
        let bytes = std::mem::take(&mut self.bytes_since_flush);
        self.flushed = self.submitted();
        self.receipt(stored, bytes)
    }

    fn receipt(&self, stored: Stored, bytes: u64) -> Result<Receipt> {
        let region = &self.feed.region;
        let proof = &self.feed.purpose.proof;
        if let Stored::Log { from, to } = stored
            && proof.units.is_empty()
        {
            // Whoever had it failed at the same time as the others.
            return Err(ClientError::UnknownOutcome {
                region: region.as_ref().into(),
                attempt: Attempt::Records(from, to),
                cause: Box::new(ClientError::Ended {
                    region: region.as_ref().into(),
                }),
            });
        }
        Ok(Receipt {
            region: Arc::clone(region),
            stored,
            epoch: proof.epoch,
            bytes,
            units: Arc::clone(&proof.units),
            provider: proof.provider,
        })
    }

    fn wait_until(&mut self, position: LogPosition) -> Result<()> {
        while self.acknowledged() < position {
            self.feed.check_open()?;
            let carried = self.carry_on(position);
            self.judge(carried)?;
        }
        Ok(())
    }

    fn carry_on(&mut self, position: LogPosition) -> Result<()> {
        self.feed.announce_all()?;
        if self.acknowledged() < position {
            self.feed.listen(self.feed.patience)?;
        }
        self.feed.check_failure()
    }

    /// Where the distributor was lost, what it was told of may have been appended.
    fn judge<T>(&mut self, done: Result<T>) -> Result<T> {
        let error = match done {
            Err(error) if self.feed.ended => error,
            done => return done,
        };
        let records = &mut self.feed.purpose;
        if std::mem::replace(&mut records.told, true) || records.announced == records.acknowledged {
            return Err(error);
        }
        Err(ClientError::UnknownOutcome {
            region: self.feed.region.as_ref().into(),
            attempt: Attempt::Records(records.acknowledged, records.announced),
            cause: Box::new(error),
        })
    }

    /// Looks for completions without blocking, and sends what is due. The position up to which everything is durable.
    ///
    /// # Errors
    /// As [`Self::append`], for the oldest record that failed.
    pub fn poll_completions(&mut self) -> Result<LogPosition> {
        self.feed.check_open()?;
        let looked = self.look();
        self.judge(looked)?;
        Ok(self.acknowledged())
    }

    fn look(&mut self) -> Result<()> {
        self.feed.look()?;
        if self.feed.purpose.in_flight.is_empty() {
            self.feed.post_piece()?;
        }
        Ok(())
    }

    /// Has the distributor look at the cursors of all units: the bytes of the ring that are free. Blocks until everything submitted is with the
    /// distributor, as the backup can clear only what it can see.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn refresh_free(&mut self) -> Result<u64> {
        self.feed.check_open()?;
        let answered = self.ask_for_room();
        self.judge(answered)?;
        Ok(self.free_bytes())
    }

    fn ask_for_room(&mut self) -> Result<()> {
        self.feed.announce_all()?;
        self.feed.purpose.looked = false;
        self.feed.say(Request::Room(v1::DistributeRoom {}))?;
        while !self.feed.purpose.looked {
            self.feed.listen(self.feed.patience)?;
            self.feed.check_failure()?;
        }
        Ok(())
    }

    /// Has the distributor connect again to units that were missing or given up, and give each the records that it missed. Waits until everything
    /// submitted is durable first. Gives how many came back.
    ///
    /// # Errors
    /// As [`Self::flush`]; [`ClientError::Ended`].
    pub fn rejoin(&mut self) -> Result<usize> {
        self.wait_until(self.submitted())?;
        let back = self.feed.rejoin();
        self.judge(back)
    }

    /// True if the record is durable, as far as completions were seen: [`Self::poll_completions`] looks.
    #[must_use]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.acknowledged() >= ticket.end()
    }

    /// True once this handle can't go on: open the region again.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.feed.ended
    }

    /// The position up to which everything is durable, as far as the distributor has told.
    #[must_use]
    pub const fn acknowledged(&self) -> LogPosition {
        self.feed.purpose.acknowledged
    }

    /// The position behind the last submitted record.
    #[must_use]
    pub const fn submitted(&self) -> LogPosition {
        self.feed.purpose.submitted
    }

    /// Bytes of the ring of each unit that are free, as far as the cursors were looked at.
    #[must_use]
    pub const fn free_bytes(&self) -> u64 {
        self.feed.purpose.free_bytes()
    }

    /// The longest record that the ring and the distributor can take.
    #[must_use]
    pub const fn record_bytes_max(&self) -> u32 {
        self.record_bytes_max
    }

    /// The region's name.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.feed.region
    }

    /// The name of the unit or process that distributes, as it calls itself.
    #[must_use]
    pub fn distributor(&self) -> &str {
        &self.feed.distributor
    }

    /// How records are spread.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.feed.layout
    }

    /// The term of the distributor's primary when it last said so, as [`crate::SpreadLogPrimary::term`].
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.feed.term
    }

    /// The units that did not take part when the distributor last said so, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.feed.missing.iter()
    }

    /// Which way the bytes go to the distributor. Receipts name the way from there to the units.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.feed.provider()
    }

    /// What the connection to the distributor has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.feed.counters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pmu_format::Epoch;

    fn proof(names: &[&str]) -> Proof {
        let units = names.iter().map(|name| crate::receipt::UnitProof {
            name: (*name).into(),
            persistence: pmu_fabric::PersistenceMethod::ServerPersist,
        });
        Proof {
            epoch: Epoch(1),
            units: units.collect(),
            provider: Provider::SoftUnix,
        }
    }

    fn records() -> Records {
        let log = v1::DistributedLog {
            ring_bytes: 1 << 20,
            free_to: 1 << 20,
            ..v1::DistributedLog::default()
        };
        let mut records = Records::new(&log, proof(&["a", "b", "c"]));
        records.announced = LogPosition(192);
        records
    }

    fn failed(appended_to: u64, missing: &[&str], failure: v1::Failure) -> v1::DistributeFailed {
        let missing = missing.iter().map(|unit| v1::MissingUnit {
            unit: (*unit).to_owned(),
            reason: "gone".to_owned(),
        });
        v1::DistributeFailed {
            failure: Some(failure),
            missing: missing.collect(),
            appended_to: Some(appended_to),
            ..v1::DistributeFailed::default()
        }
    }

    fn take(records: &mut Records, failed: &v1::DistributeFailed) {
        let error = wire::failure_from_wire(&failed.failure.clone().unwrap(), "d:1");
        let told = records.failed(failed, error, &"log".into()).unwrap();
        assert!(told.is_some_and(|(_, ends)| ends));
    }

    fn names(records: &Records) -> Vec<&str> {
        let units = records.proof.units.iter();
        units.map(|unit| unit.name.as_ref()).collect()
    }

    #[test]
    fn d08_a_receipt_names_no_unit_that_was_lost_before_it() {
        let fenced = || v1::Failure {
            kind: v1::failure::Kind::Fenced.into(),
            ..v1::Failure::default()
        };
        // Acknowledged with the failure itself: not by those that were lost.
        let mut one = records();
        take(&mut one, &failed(64, &["b"], fenced()));
        assert_eq!(
            (one.acknowledged, names(&one)),
            (LogPosition(64), vec!["a", "c"])
        );
        // Acknowledged before they were.
        let mut one = records();
        one.acknowledge(64).unwrap();
        take(&mut one, &failed(64, &["b"], fenced()));
        assert_eq!(names(&one), ["a", "b", "c"]);
        assert!(one.told);
    }

    #[test]
    fn d08_a_failure_of_a_later_version_may_mean_anything() {
        let mut one = records();
        let later = v1::Failure {
            kind: 4711,
            ..v1::Failure::default()
        };
        take(&mut one, &failed(64, &[], later));
        assert!(!one.told, "the rest is told to be unknown");
    }
}
