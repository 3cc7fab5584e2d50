//! The program's side of a session: one ring, one stream, and what is under way between them. What the bytes are is told by its [`Purpose`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_fabric::{Counters, Provider};
use pmu_format::Epoch;
use pmu_proto::v1;
use pmu_stripe::Layout;

use super::open::{Begun, Staging};
use super::ring::{Piece, Ring};
use super::way::{Answer, Heard, Request, Way};
use super::{READY_MAX, wire};
use crate::agent::Epochs;
use crate::error::{ClientError, Result};
use crate::link::{Link, LinkError};
use crate::options::OpenOptions;
use crate::outbox::Outbox;
use crate::spread::MissingUnit;
use crate::staging::Registered;

/// How long a distributor that cut the data connection has to say why.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// A piece is this part of the own staging memory at most, so that several are under way.
const PIECES_IN_STAGING: usize = 4;

/// What an answer says of the units beside what it is about.
#[derive(Default)]
pub(super) struct Told {
    /// Those that are missing; none: as before.
    pub(super) missing: Option<Vec<v1::MissingUnit>>,
    /// 0: as before.
    pub(super) term: u64,
}

/// What the bytes of a session are.
pub(super) trait Purpose {
    /// What announces a piece. Pieces are announced in the order in which they ended.
    fn ready(&mut self, piece: Piece) -> Request;

    /// A piece has ended, and will be announced.
    fn piece_ended(&mut self) {}

    /// Takes an answer that is not about the ring. Gives what it says of the units, if it does.
    ///
    /// # Errors
    /// [`ClientError::Protocol`]; the session is over then.
    fn take(&mut self, answer: Answer, region: &Arc<str>) -> Result<Told>;

    /// The distributor has connected to units again.
    fn rejoined(&mut self, _rejoined: &v1::DistributeRejoined) {}

    /// What a failure means: the error, and whether it ends the session; none if it is about something that was given up here too.
    ///
    /// # Errors
    /// As [`Self::take`].
    fn failed(
        &mut self,
        failed: &v1::DistributeFailed,
        error: ClientError,
        region: &Arc<str>,
    ) -> Result<Option<(ClientError, bool)>>;
}

/// See the module.
pub(super) struct Feed<P> {
    pub(super) region: Arc<str>,
    pub(super) distributor: Arc<str>,
    pub(super) layout: Layout,
    pub(super) missing: Vec<MissingUnit>,
    /// Of the distributor as primary.
    pub(super) term: u64,
    way: Box<dyn Way>,
    link: Link,
    outbox: Outbox,
    ring: Ring,
    /// Written, and not yet known to have landed.
    posted: VecDeque<Piece>,
    /// Ends of pieces that were announced and not yet taken.
    announced: VecDeque<u64>,
    /// What the distributor said went wrong.
    pub(super) failure: Option<ClientError>,
    back: Option<u32>,
    /// What this program goes on from.
    epochs: Arc<Epochs>,
    /// The longest time without a word from a distributor that waits for its units.
    pub(super) patience: Duration,
    pub(super) ended: bool,
    pub(super) purpose: P,
}

impl<P: Purpose> Feed<P> {
    pub(super) fn start(
        begun: Begun,
        region: &str,
        options: &OpenOptions,
        purpose: P,
    ) -> Result<Self> {
        let Begun {
            way,
            opened,
            layout,
            staging:
                Staging {
                    connection,
                    window,
                    piece_bytes_max,
                },
            epochs,
        } = begun;
        let mut link =
            Link::new(connection, &[window], &options.timeouts).map_err(ClientError::Fabric)?;
        let staging_bytes = options.staging_bytes_bounded();
        let registered = Registered::allocate(&mut link, staging_bytes)?;
        let outbox = Outbox::new(registered, staging_bytes, &link);
        let own_piece = u32::try_from(staging_bytes / PIECES_IN_STAGING).unwrap_or(u32::MAX);
        let units = u32::try_from(layout.units()).unwrap_or(u32::MAX);
        Ok(Self {
            region: region.into(),
            distributor: opened.distributor.as_str().into(),
            layout,
            missing: wire::missing_from_wire(&opened.missing),
            term: opened.term,
            way,
            link,
            outbox,
            ring: Ring::new(
                window.address,
                window.length,
                piece_bytes_max.min(own_piece),
            ),
            posted: VecDeque::with_capacity(READY_MAX),
            announced: VecDeque::with_capacity(READY_MAX),
            failure: None,
            back: None,
            epochs,
            // Each unit may stall once while its share is prepared, and once while it is published.
            patience: options.timeouts.stall.saturating_mul(2 * units + 2),
            ended: false,
            purpose,
        })
    }

    pub(super) fn goes_on_from(&self) -> Vec<(Arc<str>, Epoch)> {
        self.epochs.of_region(&self.region).unwrap_or_default()
    }

    pub(super) fn provider(&self) -> Provider {
        self.link.connection().provider()
    }

    pub(super) fn counters(&self) -> Counters {
        self.link.counters()
    }

    /// The clock that bounds waits.
    pub(super) fn now(&self) -> Instant {
        self.link.now()
    }

    /// Sleeps on that clock.
    pub(super) fn pause(&self, how_long: Duration) {
        self.link.pause(how_long);
    }

    /// Bytes that were written and not posted yet.
    pub(super) fn gathered_bytes(&self) -> u64 {
        self.outbox.bytes()
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.ended {
            return Err(ClientError::Ended {
                region: self.region.as_ref().into(),
            });
        }
        Ok(())
    }

    pub(super) fn too_large(&self, bytes: u64, limit_bytes: u64) -> ClientError {
        ClientError::TooLarge {
            region: self.region.as_ref().into(),
            bytes,
            limit_bytes,
        }
    }

    /// Has the distributor connect again to units that are missing.
    pub(super) fn rejoin(&mut self) -> Result<usize> {
        self.check_open()?;
        self.back = None;
        self.failure = None;
        self.say(Request::Rejoin(v1::DistributeRejoin {}))?;
        loop {
            if let Some(back) = self.back.take() {
                return Ok(back as usize);
            }
            self.check_failure()?;
            self.listen(self.patience)?;
        }
    }

    /// Forgets what was not announced; its place is written again.
    pub(super) fn forget(&mut self) {
        self.posted.clear();
        self.outbox.abandon(&self.link);
        self.ring.forget_from(self.announced.back().copied());
    }

    pub(super) fn say(&mut self, request: Request) -> Result<()> {
        if self.way.say(request).is_ok() {
            return Ok(());
        }
        // Over: the reason is among what was not yet heard.
        loop {
            self.listen(EXPLAIN_TIMEOUT)?;
        }
    }

    /// Copies bytes into the ring. Blocks while it is full.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
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
            bytes = later;
            if self.ring.piece_is_full() {
                self.post_piece()?;
            }
        }
        Ok(())
    }

    /// Posts the piece that was gathered, whatever its length.
    pub(super) fn post_piece(&mut self) -> Result<()> {
        let Some(mut piece) = self.ring.end_piece() else {
            return Ok(());
        };
        self.purpose.piece_ended();
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
    pub(super) fn look(&mut self) -> Result<()> {
        self.link
            .poll()
            .and_then(|()| self.link.check())
            .or_else(|error| self.lost(&error))?;
        self.announce()?;
        loop {
            match self.way.hear_now() {
                Heard::Answer(answer) => self.take(*answer)?,
                Heard::Nothing => return self.check_failure(),
                Heard::End(status) => return Err(self.end(status.as_ref())),
            }
        }
    }

    pub(super) fn announce(&mut self) -> Result<()> {
        while let Some(piece) = self.posted.front().copied() {
            if piece.serial > self.link.succeeded() || self.announced.len() >= READY_MAX {
                break;
            }
            self.posted.pop_front();
            self.announced.push_back(piece.end());
            let ready = self.purpose.ready(piece);
            self.say(ready)?;
        }
        Ok(())
    }

    /// Blocks until something was taken, or at least something has landed.
    pub(super) fn wait_for_room(&mut self) -> Result<()> {
        match self.posted.front().copied() {
            Some(piece) if self.announced.len() < READY_MAX => {
                self.link
                    .wait_for(piece.serial)
                    .or_else(|error| self.lost(&error))?;
                self.announce()
            }
            _ => {
                self.listen(self.patience)?;
                self.check_failure()
            }
        }
    }

    /// Blocks until all that was written is announced.
    pub(super) fn announce_all(&mut self) -> Result<()> {
        self.post_piece()?;
        while !self.posted.is_empty() {
            self.look()?;
            if !self.posted.is_empty() {
                self.wait_for_room()?;
            }
        }
        Ok(())
    }

    /// What the distributor has told.
    pub(super) fn check_failure(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Waits for one answer and takes it.
    pub(super) fn listen(&mut self, patience: Duration) -> Result<()> {
        match self.way.hear(patience) {
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
            Answer::Failed(failed) => {
                self.missing = wire::missing_from_wire(&failed.missing);
                self.follow(failed.term);
                let failure = failed.failure.clone().unwrap_or_default();
                let error = wire::failure_from_wire(&failure, self.way.address());
                let told = self.purpose.failed(&failed, error, &self.region);
                let told = told.inspect_err(|_| self.ended = true)?;
                if let Some((error, ends)) = told {
                    self.ended |= ends;
                    self.failure = Some(error);
                }
                Ok(())
            }
            Answer::Rejoined(rejoined) => {
                self.missing = wire::missing_from_wire(&rejoined.missing);
                self.follow(rejoined.term);
                self.purpose.rejoined(&rejoined);
                self.back = Some(rejoined.back);
                Ok(())
            }
            Answer::Granted(granted) => {
                wire::take_granted(&self.epochs, &self.region, &granted.granted);
                Ok(())
            }
            answer => {
                let taken = self.purpose.take(answer, &self.region);
                let told = taken.inspect_err(|_| self.ended = true)?;
                self.follow(told.term);
                if let Some(missing) = told.missing {
                    self.missing = wire::missing_from_wire(&missing);
                }
                Ok(())
            }
        }
    }

    /// The distributor's primary goes on in a new term when the members are changed.
    fn follow(&mut self, term: u64) {
        self.term = self.term.max(term);
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

    /// The stream is over: nothing more will be published, unless it was asked for before.
    fn end(&mut self, status: Option<&tonic::Status>) -> ClientError {
        self.ended = true;
        if let Some(error) = self.failure.take() {
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
        let until = self.way.now() + EXPLAIN_TIMEOUT;
        let mut told = self.check_failure();
        while told.is_ok() && self.way.now() < until {
            let heard = match self
                .way
                .hear(until.saturating_duration_since(self.way.now()))
            {
                Heard::Answer(answer) => self.take(*answer),
                Heard::End(status) => Err(self.end(status.as_ref())),
                Heard::Nothing => break,
            };
            told = heard.and_then(|()| self.check_failure());
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
}

impl<P> Drop for Feed<P> {
    fn drop(&mut self) {
        self.way.close();
    }
}
