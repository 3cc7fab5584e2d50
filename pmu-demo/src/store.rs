//! Where the work is kept: on one unit, or spread over several. Everything else in the program is the same for both.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use pmu_client::snapshot::{Arena, SnapshotOptions, SnapshotRegion, SnapshotResult, Snapshots};
use pmu_client::{
    ClientError, ConnectOptions, Identity, LogBackup, LogPrimary, LogRecord, OpenOptions, Receipt,
    RecordMark, Records, Spread, SpreadLogBackup, SpreadLogPrimary, SpreadPrimary, Ticket, Unit,
};
use pmu_client::{Epoch, Label, LogPosition, SetPrimary};

use crate::cli::Transport;
use crate::error::{DemoError, Result};
use crate::site::{FULL_EVERY, LOG_REGION, STATE_REGION};

/// The way to both regions.
#[derive(Clone)]
pub struct Place {
    addresses: Vec<String>,
    identity: Identity,
    options: OpenOptions,
}

type Client<T> = std::result::Result<T, ClientError>;

impl Place {
    /// Units by their control addresses, with the identity in a directory. More than one: the regions are spread over them.
    ///
    /// # Errors
    /// [`DemoError::Unusable`] for a bad identity.
    pub fn new(addresses: &[String], identity: &Path, transport: Transport) -> Result<Self> {
        let identity = Identity::load(identity).map_err(|error| {
            DemoError::Unusable(format!("identity {}: {error}", identity.display()))
        })?;
        let provider = transport.name().parse().map_err(DemoError::Unusable)?;
        Ok(Self {
            addresses: addresses.to_vec(),
            identity,
            options: OpenOptions::new().provider(provider),
        })
    }

    fn is_spread(&self) -> bool {
        self.addresses.len() > 1
    }

    fn unit(&self) -> Client<Unit> {
        Unit::connect(
            &self.addresses[0],
            &self.identity,
            &ConnectOptions::default(),
        )
    }

    fn spread(&self, region: &str) -> Client<Spread> {
        let seeds: Vec<&str> = self.addresses.iter().map(String::as_str).collect();
        Spread::find(&seeds, region, &self.identity, &ConnectOptions::default())
    }

    /// Opens the log for appending.
    ///
    /// # Errors
    /// As [`Unit::open_log_primary`].
    pub fn open_log(&self) -> Client<Log> {
        if self.is_spread() {
            let spread = self.spread(LOG_REGION)?;
            return Ok(Log::Spread(Box::new(
                spread.open_log_primary(&self.options)?,
            )));
        }
        let log = self.unit()?.open_log_primary(LOG_REGION, &self.options)?;
        Ok(Log::One(Box::new(log)))
    }

    /// Opens the sets for writing.
    ///
    /// # Errors
    /// As [`Unit::open_sets_primary`].
    pub fn open_sets(&self) -> Client<Sets> {
        if self.is_spread() {
            let spread = self.spread(STATE_REGION)?;
            return Ok(Sets::Spread(Box::new(spread.open_primary(&self.options)?)));
        }
        let sets = self.unit()?;
        let sets = sets.open_sets_primary(STATE_REGION, &self.options)?;
        Ok(Sets::One(Box::new(sets)))
    }

    /// Has snapshots of an arena go to the sets.
    ///
    /// # Errors
    /// As [`Snapshots::open`].
    pub fn open_snapshots(&self, arena: Arc<Arena>) -> SnapshotResult<Snapshots> {
        let seeds: Vec<&str> = self.addresses.iter().map(String::as_str).collect();
        let (identity, connect) = (self.identity.clone(), ConnectOptions::default());
        let region = SnapshotRegion::find(&seeds, STATE_REGION, identity, &connect)?;
        let options = SnapshotOptions::new()
            .open(self.options)
            .full_every(FULL_EVERY);
        Snapshots::open(arena, region, &options)
    }

    /// Opens the log for reading and clearing.
    ///
    /// # Errors
    /// As [`Unit::open_log_backup`].
    pub fn open_follower(&self) -> Client<Follower> {
        if self.is_spread() {
            let spread = self.spread(LOG_REGION)?;
            let backup = spread.open_log_backup(true, &self.options)?;
            return Ok(Follower::Spread(Box::new(backup)));
        }
        let backup = self
            .unit()?
            .open_log_backup(LOG_REGION, true, &self.options)?;
        Ok(Follower::One(Box::new(backup)))
    }

    /// Opens the log for reading alone.
    ///
    /// # Errors
    /// As [`Unit::open_log_backup`].
    pub fn open_onlooker(&self) -> Client<Follower> {
        if self.is_spread() {
            let spread = self.spread(LOG_REGION)?;
            let backup = spread.open_log_backup(false, &self.options)?;
            return Ok(Follower::Spread(Box::new(backup)));
        }
        let unit = self.unit()?;
        let backup = unit.open_log_backup(LOG_REGION, false, &self.options)?;
        Ok(Follower::One(Box::new(backup)))
    }

    /// Fences both regions; the units' own time for it, in microseconds. Of several units the slowest counts.
    ///
    /// # Errors
    /// As [`Unit::fence`] and [`Spread::fence`].
    pub fn fence(&self) -> Client<u64> {
        let mut took_us = 0;
        for region in [LOG_REGION, STATE_REGION] {
            let took = if self.is_spread() {
                let fence = self.spread(region)?.fence()?;
                let took = fence.fenced.iter().map(|(_, report)| report.took);
                took.max().unwrap_or_default()
            } else {
                self.unit()?.fence(region)?.took
            };
            took_us += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        }
        Ok(took_us)
    }

    /// Takes the sets over; what the newest holds, if there is one.
    ///
    /// # Errors
    /// As [`Unit::take_over_sets`].
    pub fn take_over_sets(&self) -> Client<(Sets, Option<Vec<u8>>)> {
        let mut state = Vec::new();
        if self.is_spread() {
            let spread = self.spread(STATE_REGION)?;
            let taken = spread.take_over(&self.options, &mut state)?;
            let found = taken.recovered.map(|_| state);
            return Ok((Sets::Spread(Box::new(taken.primary)), found));
        }
        let unit = self.unit()?;
        let taken = unit.take_over_sets(STATE_REGION, &self.options, &mut state)?;
        let found = taken.recovered.map(|_| state);
        Ok((Sets::One(Box::new(taken.primary)), found))
    }

    /// Takes the log over; unread records go to the visitor. Gives up to where it was cleared, too.
    ///
    /// # Errors
    /// As [`Unit::take_over_log`].
    pub fn take_over_log(
        &self,
        visit: impl FnMut(LogRecord<'_>) -> Client<()>,
    ) -> Client<(Log, LogPosition)> {
        if self.is_spread() {
            let spread = self.spread(LOG_REGION)?;
            let taken = spread.take_over_log(&self.options, visit)?;
            let cleared = taken.recovered.cursor;
            return Ok((Log::Spread(Box::new(taken.primary)), cleared));
        }
        let unit = self.unit()?;
        let taken = unit.take_over_log(LOG_REGION, &self.options, visit)?;
        let cleared = taken.recovered.cursor;
        Ok((Log::One(Box::new(taken.primary)), cleared))
    }
}

/// The log, open for appending.
pub enum Log {
    /// Of one unit.
    One(Box<LogPrimary>),
    /// Of several.
    Spread(Box<SpreadLogPrimary>),
}

/// Calls the same method of whatever is there.
macro_rules! either {
    ($which:expr, $inner:ident => $call:expr) => {
        match $which {
            Self::One($inner) => $call,
            Self::Spread($inner) => $call,
        }
    };
}

impl Log {
    /// See [`LogPrimary::submit`].
    ///
    /// # Errors
    /// As there.
    pub fn submit(&mut self, record: &[u8]) -> Client<Ticket> {
        either!(self, log => log.submit(record))
    }

    /// See [`LogPrimary::poll_completions`].
    ///
    /// # Errors
    /// As there.
    pub fn poll_completions(&mut self) -> Client<()> {
        either!(self, log => log.poll_completions().map(drop))
    }

    /// See [`LogPrimary::is_durable`].
    #[must_use]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        either!(self, log => log.is_durable(ticket))
    }

    /// See [`LogPrimary::wait`].
    ///
    /// # Errors
    /// As there.
    pub fn wait(&mut self, ticket: Ticket) -> Client<Receipt> {
        either!(self, log => log.wait(ticket))
    }

    /// See [`LogPrimary::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&mut self) -> Client<()> {
        either!(self, log => log.flush().map(drop))
    }

    /// See [`LogPrimary::beat`].
    ///
    /// # Errors
    /// As there.
    pub fn beat(&mut self) -> Client<()> {
        either!(self, log => log.beat())
    }

    /// The epoch in which it writes; over several units the term.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::One(log) => log.epoch(),
            Self::Spread(log) => Epoch(log.term()),
        }
    }

    /// See [`LogPrimary::submitted`].
    #[must_use]
    pub fn submitted(&self) -> LogPosition {
        either!(self, log => log.submitted())
    }
}

/// The sets, open for writing.
pub enum Sets {
    /// Of one unit.
    One(Box<SetPrimary>),
    /// Of several.
    Spread(Box<SpreadPrimary>),
}

impl Sets {
    /// See [`SetPrimary::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(&mut self, payload: &[IoSlice<'_>], label: Label) -> Client<Receipt> {
        either!(self, sets => sets.commit(payload, label))
    }

    /// The epoch in which it writes; over several units the term.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::One(sets) => sets.epoch(),
            Self::Spread(sets) => Epoch(sets.term().0),
        }
    }
}

/// The log, open for reading, and for clearing where that was asked for.
pub enum Follower {
    /// Of one unit.
    One(Box<LogBackup>),
    /// Of several.
    Spread(Box<SpreadLogBackup>),
}

impl Follower {
    /// See [`LogBackup::read_unread`].
    ///
    /// # Errors
    /// As there.
    pub fn read_unread(&mut self, max_bytes: usize) -> Client<Records<'_>> {
        either!(self, log => log.read_unread(max_bytes))
    }

    /// See [`LogBackup::position`].
    #[must_use]
    pub fn position(&self) -> LogPosition {
        either!(self, log => log.position())
    }

    /// See [`LogBackup::clear`].
    ///
    /// # Errors
    /// As there.
    pub fn clear(&mut self, mark: RecordMark) -> Client<()> {
        either!(self, log => log.clear(mark))
    }

    /// See [`LogBackup::clear_handed_out`].
    ///
    /// # Errors
    /// As there.
    pub fn clear_handed_out(&mut self) -> Client<()> {
        either!(self, log => log.clear_handed_out().map(drop))
    }
}
