//! Sets by way of a distributor.

use std::io::IoSlice;
use std::sync::Arc;

use pmu_auth::Identity;
use pmu_fabric::{Counters, Provider};
use pmu_format::{Epoch, Label, Mode, SetNumber};
use pmu_proto::v1;
use pmu_stripe::Layout;

use super::feed::{Feed, Purpose, Told};
use super::put::DistributedPut;
use super::ring::Piece;
use super::way::{Answer, Request, Way};
use super::{open, wire};
use crate::agent::Epochs;
use crate::error::{Attempt, ClientError, Result};
use crate::options::{ConnectOptions, OpenOptions};
use crate::receipt::Receipt;
use crate::spread::MissingUnit;

/// Stores checkpoints on the units of a spread region by way of a distributor.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block. What a receipt says is what the distributor
/// learned from the units: it is trusted with that, and with the bytes. Dropping it ends the session; waits two seconds at most until
/// the region is free.
pub struct Distributed {
    capacity_bytes: u64,
    feed: Feed<Sets>,
}

/// The set that is under way, and what became of it.
struct Sets {
    /// Counts the sets.
    put: u64,
    /// The one in progress was given up.
    is_given_up: bool,
    /// The one in progress was to be published.
    is_finished: bool,
    /// Bytes of the set in progress.
    written: u64,
    stored: Option<Receipt>,
    newest: SetNumber,
}

impl Sets {
    /// The set that is to be published.
    const fn attempt(&self) -> Attempt {
        Attempt::Set(SetNumber(self.newest.get().saturating_add(1)))
    }
}

impl Purpose for Sets {
    fn ready(&mut self, piece: Piece) -> Request {
        Request::Ready(v1::DistributeReady {
            put: self.put,
            position: piece.position,
            length_bytes: piece.length,
            checksum: piece.checksum,
        })
    }

    fn take(&mut self, answer: Answer, region: &Arc<str>) -> Result<Told> {
        let Answer::Stored(stored) = answer else {
            return Err(not_asked());
        };
        if stored.put != self.put {
            return Err(not_asked());
        }
        let receipt = stored.receipt.unwrap_or_default();
        let receipt = wire::receipt_from_wire(&receipt, region, self.written, self.newest)?;
        self.newest = receipt.set().unwrap_or(self.newest);
        self.stored = Some(receipt);
        Ok(Told {
            missing: Some(stored.missing),
            term: stored.term,
        })
    }

    fn rejoined(&mut self, rejoined: &v1::DistributeRejoined) {
        self.newest = self.newest.max(SetNumber(rejoined.newest));
    }

    fn failed(
        &mut self,
        failed: &v1::DistributeFailed,
        error: ClientError,
        region: &Arc<str>,
    ) -> Result<Option<(ClientError, bool)>> {
        // With other members it may have gone on behind another set.
        self.newest = self.newest.max(SetNumber(failed.newest));
        let is_over = failed.put < self.put || self.is_given_up;
        if failed.put != 0 && is_over {
            // Of a set that was given up here too.
            return Ok(None);
        }
        if failed.failure.as_ref().is_some_and(wire::says_more) {
            if !self.is_finished {
                return Ok(Some((error, true)));
            }
            let unknown = ClientError::UnknownOutcome {
                region: region.as_ref().into(),
                attempt: self.attempt(),
                cause: Box::new(error),
            };
            return Ok(Some((unknown, true)));
        }
        let ends = error.is_fenced() || matches!(error, ClientError::UnknownOutcome { .. });
        Ok(Some((error, ends)))
    }
}

pub(super) fn not_asked() -> ClientError {
    ClientError::Protocol("the distributor answered what was not asked".into())
}

impl std::fmt::Debug for Distributed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Distributed")
            .field("region", &self.feed.region)
            .field("distributor", &self.feed.distributor)
            .field("layout", &self.feed.layout)
            .finish_non_exhaustive()
    }
}

impl Distributed {
    /// Opens a spread region as its primary by way of the distributor at `address` (`host:port`): a unit that is configured to distribute,
    /// or a process of its own. `connect.unit_name` is the name that its certificate must bear.
    ///
    /// `options.persistence` is for the way from there to the units; `options.provider` and `options.staging_bytes` for the way to the distributor.
    /// Blocks, for a few times `options.timeouts.open` at most.
    ///
    /// # Errors
    /// As [`crate::Spread::open_primary`]; [`ClientError::Unreachable`], [`ClientError::NotAuthenticated`]; [`ClientError::NoGrant`] where
    /// either this program or the distributor may not write to the region; [`ClientError::Refused`] with `NO_DISTRIBUTOR` where
    /// nobody distributes, or with `TOO_MANY_SESSIONS`; [`ClientError::NoProvider`].
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
        let begun = open::begin(way, region, options, Mode::Overwrite, epochs)?;
        let purpose = Sets {
            put: 0,
            is_given_up: false,
            is_finished: false,
            written: 0,
            stored: None,
            newest: SetNumber(begun.opened.newest),
        };
        Ok(Self {
            capacity_bytes: begun.opened.capacity_bytes,
            feed: Feed::start(begun, region, options, purpose)?,
        })
    }

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
        self.feed.check_open()?;
        let most = bytes.unwrap_or(self.capacity_bytes);
        if most > self.capacity_bytes {
            return Err(self.feed.too_large(most, self.capacity_bytes));
        }
        let sets = &mut self.feed.purpose;
        sets.put += 1;
        sets.is_given_up = false;
        sets.is_finished = false;
        sets.written = 0;
        sets.stored = None;
        let begin = v1::DistributeBegin {
            put: sets.put,
            label: label.as_bytes().to_vec(),
            length_bytes: bytes,
        };
        self.feed.failure = None;
        self.feed.say(Request::Begin(begin))?;
        Ok(DistributedPut::new(self, bytes, most))
    }

    /// Has the distributor connect again to units that were missing or given up; gives how many came back.
    ///
    /// # Errors
    /// As [`crate::SpreadPrimary::rejoin`]; [`ClientError::Ended`], [`ClientError::ConnectionLost`].
    pub fn rejoin(&mut self) -> Result<usize> {
        self.feed.rejoin()
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

    /// How bytes are spread.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.feed.layout
    }

    /// The longest payload of a set.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The number of the last set that was committed, by this primary or before it; 0 for none.
    #[must_use]
    pub const fn newest(&self) -> SetNumber {
        self.feed.purpose.newest
    }

    /// The term of the distributor's primary when it last said so, as [`crate::SpreadPrimary::term`].
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

    /// Bytes of the set in progress.
    pub(super) const fn written(&self) -> u64 {
        self.feed.purpose.written
    }

    pub(super) fn too_large(&self, bytes: u64, limit_bytes: u64) -> ClientError {
        self.feed.too_large(bytes, limit_bytes)
    }

    /// Copies bytes into the ring. Blocks while it is full.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.feed.write(bytes)?;
        self.feed.purpose.written += bytes.len() as u64;
        Ok(())
    }

    /// Publishes what was announced, and waits for the receipt.
    pub(super) fn finish_put(&mut self) -> Result<Receipt> {
        self.feed.announce_all()?;
        self.feed.check_failure()?;
        let sets = &mut self.feed.purpose;
        sets.is_finished = true;
        let request = Request::Finish(v1::DistributeFinish {
            put: sets.put,
            length_bytes: sets.written,
        });
        let attempt = sets.attempt();
        self.feed.say(request)?;
        loop {
            if let Some(receipt) = self.feed.purpose.stored.take() {
                return Ok(receipt);
            }
            self.feed.check_failure()?;
            if let Err(cause) = self.feed.listen(self.feed.patience) {
                return Err(ClientError::UnknownOutcome {
                    region: self.feed.region.as_ref().into(),
                    attempt,
                    cause: Box::new(cause),
                });
            }
        }
    }

    /// Gives the set in progress up. What was not announced is forgotten; its place is written again.
    pub(super) fn abandon_put(&mut self) {
        self.feed.forget();
        self.feed.purpose.is_given_up = true;
        let put = self.feed.purpose.put;
        let abandon = Request::Abandon(v1::DistributeAbandon { put });
        if !self.feed.ended && self.feed.say(abandon).is_err() {
            self.feed.ended = true;
        }
    }
}
