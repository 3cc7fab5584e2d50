//! Sets that somebody else spreads over the units: one of them, or a process of its own.
//!
//! The program writes its bytes once, with one-sided writes, into staging memory of the distributor; a stream of small messages says which are
//! there, and what became of the set. Receipts and errors are those of the units, as a [`crate::SpreadPrimary`] would give them.

mod open;
mod put;
mod ring;
mod stream;
#[doc(hidden)]
pub mod wire;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_fabric::{Counters, Provider};
use pmu_format::{Label, SetNumber};
use pmu_proto::v1;
use pmu_stripe::Layout;

pub use put::DistributedPut;

use crate::error::{Attempt, ClientError, Result};
use crate::link::{Link, LinkError};
use crate::outbox::Outbox;
use crate::receipt::Receipt;
use crate::spread::MissingUnit;
use ring::{Piece, Ring};
use stream::{Answer, Heard, Request, Stream};

/// Pieces that are announced and not yet taken, at most.
const READY_MAX: usize = 256;
/// How long a distributor that cut the data connection has to say why.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Stores checkpoints on the units of a spread region by way of a distributor.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block. What a receipt says is what the distributor
/// learned from the units: it is trusted with that, and with the bytes. Dropping it ends the session; waits two seconds at most until
/// the region is free.
pub struct Distributed {
    region: Arc<str>,
    distributor: Arc<str>,
    layout: Layout,
    capacity_bytes: u64,
    newest: SetNumber,
    missing: Vec<MissingUnit>,
    stream: Stream,
    link: Link,
    outbox: Outbox,
    ring: Ring,
    /// Written, and not yet known to have landed.
    posted: VecDeque<Piece>,
    /// Ends of pieces that were announced and not yet taken.
    announced: VecDeque<u64>,
    /// Counts the sets.
    put: u64,
    /// What the distributor said of the set in progress.
    outcome: Option<Result<Receipt>>,
    /// Bytes of the set in progress.
    written: u64,
    back: Option<u32>,
    /// The longest time without a word from a distributor that waits for its units.
    patience: Duration,
    ended: bool,
}

impl std::fmt::Debug for Distributed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Distributed")
            .field("region", &self.region)
            .field("distributor", &self.distributor)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Distributed {
    /// Stores one set, and returns when it is durable on each unit that the receipt names.
    ///
    /// # Errors
    /// As [`crate::SpreadPrimary::commit`]. [`ClientError::ConnectionLost`]: the distributor was lost before it was to publish anything;
    /// the set was not stored.
    pub fn commit(&mut self, payload: &[IoSlice<'_>], label: Label) -> Result<Receipt> {
        let bytes = payload.iter().map(|slice| slice.len() as u64).sum();
        let mut put = self.begin(Some(bytes), label)?;
        for slice in payload {
            put.write_bytes(slice)?;
        }
        put.finish()
    }

    /// Begins a set that is written piece by piece. Without a length it may become as long as the region's capacity. Does not wait for the
    /// distributor: what is wrong is told by a later call.
    ///
    /// # Errors
    /// [`ClientError::TooLarge`]; [`ClientError::Ended`].
    pub fn begin(&mut self, bytes: Option<u64>, label: Label) -> Result<DistributedPut<'_>> {
        if self.ended {
            return Err(self.over());
        }
        let most = bytes.unwrap_or(self.capacity_bytes);
        if most > self.capacity_bytes {
            return Err(self.too_large(most, self.capacity_bytes));
        }
        self.put += 1;
        self.outcome = None;
        self.written = 0;
        self.say(Request::Begin(v1::DistributeBegin {
            put: self.put,
            label: label.as_bytes().to_vec(),
            length_bytes: bytes,
        }))?;
        Ok(DistributedPut::new(self, bytes, most))
    }

    /// Has the distributor connect again to units that were missing or given up; gives how many came back.
    ///
    /// # Errors
    /// As [`crate::SpreadPrimary::rejoin`]; [`ClientError::Ended`], [`ClientError::ConnectionLost`].
    pub fn rejoin(&mut self) -> Result<usize> {
        if self.ended {
            return Err(self.over());
        }
        self.back = None;
        self.outcome = None;
        self.say(Request::Rejoin(v1::DistributeRejoin {}))?;
        loop {
            if let Some(back) = self.back.take() {
                return Ok(back as usize);
            }
            if let Some(Err(error)) = self.outcome.take() {
                return Err(error);
            }
            self.listen(self.patience)?;
        }
    }

    /// The region's name.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The name of the unit or process that distributes, as it calls itself.
    #[must_use]
    pub fn distributor(&self) -> &str {
        &self.distributor
    }

    /// How bytes are spread.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The longest payload of a set.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The number of the last set that was committed, by this primary or before it; 0 for none.
    #[must_use]
    pub const fn newest(&self) -> SetNumber {
        self.newest
    }

    /// The units that did not take part when the distributor last said so, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.missing.iter()
    }

    /// Which way the bytes go to the distributor. Receipts name the way from there to the units.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.link.connection().provider()
    }

    /// What the connection to the distributor has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.link.counters()
    }

    fn too_large(&self, bytes: u64, limit_bytes: u64) -> ClientError {
        ClientError::TooLarge {
            region: self.region.as_ref().into(),
            bytes,
            limit_bytes,
        }
    }

    fn over(&self) -> ClientError {
        ClientError::Ended {
            region: self.region.as_ref().into(),
        }
    }

    fn say(&mut self, request: Request) -> Result<()> {
        if self.stream.say(request).is_ok() {
            return Ok(());
        }
        // Over: the reason is among what was not yet heard.
        loop {
            self.listen(EXPLAIN_TIMEOUT)?;
        }
    }

    /// Copies bytes into the ring. Blocks while it is full.
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            self.look()?;
            if self.ring.room() == 0 {
                self.post_piece()?;
                self.wait_for_room()?;
                continue;
            }
            let most = bytes.len().min(self.ring.room() as usize);
            let staged = self
                .outbox
                .stage(&self.link, self.ring.address(), &bytes[..most])?;
            if staged == 0 {
                self.post_piece()?;
                self.outbox
                    .wait_for_room(&mut self.link)
                    .or_else(|error| self.lost(&error))?;
                continue;
            }
            let (now, later) = bytes.split_at(staged);
            self.ring.add(now);
            self.written += staged as u64;
            bytes = later;
            if self.ring.piece_is_full() {
                self.post_piece()?;
            }
        }
        Ok(())
    }

    /// Posts the piece that was gathered, whatever its length.
    fn post_piece(&mut self) -> Result<()> {
        let Some(mut piece) = self.ring.end_piece() else {
            return Ok(());
        };
        match self.outbox.post(&mut self.link, |_| {}) {
            Ok(posted) => {
                piece.serial = posted.last;
                self.posted.push_back(piece);
                Ok(())
            }
            Err(error) => self.lost(&error),
        }
    }

    /// Announces what has landed, and takes what was said. Doesn't block.
    fn look(&mut self) -> Result<()> {
        self.link
            .poll()
            .and_then(|()| self.link.check())
            .or_else(|error| self.lost(&error))?;
        self.announce()?;
        loop {
            match self.stream.hear_now() {
                Heard::Answer(answer) => self.take(*answer)?,
                Heard::Nothing => return self.check_outcome(),
                Heard::End(status) => return Err(self.end(status.as_ref())),
            }
        }
    }

    fn announce(&mut self) -> Result<()> {
        while let Some(piece) = self.posted.front().copied() {
            if piece.serial > self.link.succeeded() || self.announced.len() >= READY_MAX {
                break;
            }
            self.posted.pop_front();
            self.announced.push_back(piece.end());
            self.say(Request::Ready(v1::DistributeReady {
                put: self.put,
                position: piece.position,
                length_bytes: piece.length,
                checksum: piece.checksum,
            }))?;
        }
        Ok(())
    }

    /// Blocks until something was taken, or at least something has landed.
    fn wait_for_room(&mut self) -> Result<()> {
        match self.posted.front().copied() {
            Some(piece) if self.announced.len() < READY_MAX => {
                self.link
                    .wait_for(piece.serial)
                    .or_else(|error| self.lost(&error))?;
                self.announce()
            }
            _ => {
                self.listen(self.patience)?;
                self.check_outcome()
            }
        }
    }

    /// Blocks until all that was written is announced.
    fn announce_all(&mut self) -> Result<()> {
        self.post_piece()?;
        while !self.posted.is_empty() {
            self.look()?;
            if !self.posted.is_empty() {
                self.wait_for_room()?;
            }
        }
        Ok(())
    }

    /// An error that the distributor has told of the set in progress.
    fn check_outcome(&mut self) -> Result<()> {
        match self.outcome.take() {
            Some(Err(error)) => Err(error),
            other => {
                self.outcome = other;
                Ok(())
            }
        }
    }

    /// Waits for one answer and takes it.
    fn listen(&mut self, patience: Duration) -> Result<()> {
        match self.stream.hear(patience) {
            Heard::Answer(answer) => self.take(*answer),
            Heard::End(status) => Err(self.end(status.as_ref())),
            Heard::Nothing => {
                self.ended = true;
                Err(ClientError::TimedOut {
                    what: "a word from the distributor",
                    waited_ms: patience.as_millis() as u64,
                })
            }
        }
    }

    fn take(&mut self, answer: Answer) -> Result<()> {
        match answer {
            Answer::Taken(taken) => self.taken(taken.position),
            Answer::Stored(stored) if stored.put == self.put => {
                self.missing = wire::missing_from_wire(&stored.missing);
                let receipt = stored.receipt.unwrap_or_default();
                let receipt =
                    wire::receipt_from_wire(&receipt, &self.region, self.written, self.newest)
                        .inspect_err(|_| self.ended = true)?;
                self.newest = receipt.set().unwrap_or(self.newest);
                self.outcome = Some(Ok(receipt));
                Ok(())
            }
            Answer::Failed(failed) => {
                self.failed(&failed);
                Ok(())
            }
            Answer::Rejoined(rejoined) => {
                self.missing = wire::missing_from_wire(&rejoined.missing);
                self.back = Some(rejoined.back);
                Ok(())
            }
            Answer::Stored(_) | Answer::Opened(_) | Answer::Staging(_) | Answer::Window(_) => {
                self.ended = true;
                Err(ClientError::Protocol(
                    "the distributor answered what was not asked".into(),
                ))
            }
        }
    }

    fn taken(&mut self, position: u64) -> Result<()> {
        let before = self.announced.len();
        while self.announced.front().is_some_and(|end| *end <= position) {
            self.announced.pop_front();
        }
        if before == self.announced.len() || !self.ring.free(position) {
            self.ended = true;
            return Err(ClientError::Protocol(
                "the distributor took what was not announced".into(),
            ));
        }
        Ok(())
    }

    fn failed(&mut self, failed: &v1::DistributeFailed) {
        self.missing = wire::missing_from_wire(&failed.missing);
        if failed.put != 0 && failed.put < self.put {
            // Of a set that was given up here too.
            return;
        }
        let failure = failed.failure.clone().unwrap_or_default();
        let error = wire::failure_from_wire(&failure, self.stream.control().address());
        self.ended |= error.is_fenced() || matches!(error, ClientError::UnknownOutcome { .. });
        self.outcome = Some(Err(error));
    }

    /// The stream is over: nothing more will be published, unless it was asked for before.
    fn end(&mut self, status: Option<&tonic::Status>) -> ClientError {
        self.ended = true;
        if let Some(Err(error)) = self.outcome.take() {
            return error;
        }
        let reason = match status {
            Some(status) => status.message().to_owned(),
            None => "it ended the session".to_owned(),
        };
        ClientError::ConnectionLost {
            region: self.region.as_ref().into(),
            reason: format!("distributor {}: {reason}", self.distributor),
        }
    }

    /// The data connection failed: the distributor may say why.
    fn lost(&mut self, error: &LinkError) -> Result<()> {
        let until = Instant::now() + EXPLAIN_TIMEOUT;
        let mut told = self.check_outcome();
        while told.is_ok() && Instant::now() < until {
            let heard = match self
                .stream
                .hear(until.saturating_duration_since(Instant::now()))
            {
                Heard::Answer(answer) => self.take(*answer),
                Heard::End(status) => Err(self.end(status.as_ref())),
                Heard::Nothing => break,
            };
            told = heard.and_then(|()| self.check_outcome());
        }
        self.ended = true;
        told?;
        Err(ClientError::ConnectionLost {
            region: self.region.as_ref().into(),
            reason: format!(
                "the data connection to distributor {} failed: {error:?}",
                self.distributor
            ),
        })
    }

    /// Publishes what was announced, and waits for the receipt.
    fn finish_put(&mut self) -> Result<Receipt> {
        self.announce_all()?;
        self.check_outcome()?;
        let request = Request::Finish(v1::DistributeFinish {
            put: self.put,
            length_bytes: self.written,
        });
        self.say(request)?;
        loop {
            if let Some(outcome) = self.outcome.take() {
                return outcome;
            }
            if let Err(cause) = self.listen(self.patience) {
                return Err(ClientError::UnknownOutcome {
                    region: self.region.as_ref().into(),
                    attempt: Attempt::Set(SetNumber(self.newest.get().saturating_add(1))),
                    cause: Box::new(cause),
                });
            }
        }
    }

    /// Gives the set in progress up. What was not announced is forgotten; its place is written again.
    fn abandon_put(&mut self) {
        self.posted.clear();
        self.outbox.abandon(&self.link);
        self.ring.forget_from(self.announced.back().copied());
        let put = self.put;
        if !self.ended
            && self
                .say(Request::Abandon(v1::DistributeAbandon { put }))
                .is_err()
        {
            self.ended = true;
        }
    }
}

impl Drop for Distributed {
    fn drop(&mut self) {
        self.stream.close();
    }
}
