//! A log on one unit or spread over several: the two kinds that segments lie in.

use pmu_auth::Identity;
use pmu_format::{LogPosition, Mode};

use crate::error::{ClientError, Result};
use crate::log::{LogBackup, LogPrimary, RecordMark, Records, Ticket};
use crate::options::{ConnectOptions, OpenOptions};
use crate::receipt::Receipt;
use crate::spread::{MissingUnit, Spread, SpreadLogBackup, SpreadLogPrimary};
use crate::unit::Unit;

/// How to reach the units, and as whom.
#[derive(Debug, Clone)]
pub struct Way {
    /// Addresses of units (`host:port`): the first that answers tells of the others.
    pub units: Vec<String>,
    /// Who asks.
    pub identity: Identity,
    /// How control channels are made.
    pub connect: ConnectOptions,
    /// How regions are opened.
    pub open: OpenOptions,
}

/// A region that was found.
pub(crate) enum Found {
    One(Unit),
    Spread(Box<Spread>),
}

impl Way {
    /// Finds a region by the first unit that answers and knows it.
    pub(crate) fn find(&self, region: &str) -> Result<Found> {
        let mut last = ClientError::Invalid("no unit was named".into());
        for address in &self.units {
            let unit = match Unit::connect(address, &self.identity, &self.connect) {
                Ok(unit) => unit,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            match unit.describe(region) {
                Ok(info) if info.membership.is_none() => return Ok(Found::One(unit)),
                Ok(info) => {
                    let spread = Spread::of(&info, &self.identity, &self.connect)?;
                    return Ok(Found::Spread(Box::new(spread)));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Found {
    /// Sets or records.
    pub(crate) fn mode(&self, region: &str) -> Result<Mode> {
        match self {
            Self::One(unit) => Ok(unit.describe(region)?.mode),
            Self::Spread(spread) => Ok(spread.mode()),
        }
    }
}

/// The writer of a log.
pub(super) enum Writer {
    One(Box<LogPrimary>),
    Spread(Box<SpreadLogPrimary>),
}

impl Writer {
    pub(super) fn open(way: &Way, region: &str) -> Result<Self> {
        Ok(match way.find(region)? {
            Found::One(unit) => Self::One(Box::new(unit.open_log_primary(region, &way.open)?)),
            Found::Spread(spread) => Self::Spread(Box::new(spread.open_log_primary(&way.open)?)),
        })
    }

    pub(super) fn submit(&mut self, record: &[u8]) -> Result<Ticket> {
        match self {
            Self::One(log) => log.submit(record),
            Self::Spread(log) => log.submit(record),
        }
    }

    pub(super) fn append_batch(&mut self, records: &[&[u8]]) -> Result<Receipt> {
        match self {
            Self::One(log) => log.append_batch(records),
            Self::Spread(log) => log.append_batch(records),
        }
    }

    pub(super) fn flush(&mut self) -> Result<Receipt> {
        match self {
            Self::One(log) => log.flush(),
            Self::Spread(log) => log.flush(),
        }
    }

    /// Behind the last record that was submitted.
    pub(super) fn end(&self) -> LogPosition {
        match self {
            Self::One(log) => log.submitted(),
            Self::Spread(log) => log.submitted(),
        }
    }

    /// Bytes of the ring of each unit that are free now.
    pub(super) fn refresh_free(&mut self) -> Result<u64> {
        match self {
            Self::One(log) => log.refresh_free(),
            Self::Spread(log) => log.refresh_free(),
        }
    }

    /// On how many parts of its own length a unit's ring takes a record.
    pub(super) fn data_shards(&self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Spread(log) => log.spread().layout().data_shards() as u64,
        }
    }

    /// How many units hold each record.
    pub(super) fn units(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Spread(log) => log.spread().layout().units(),
        }
    }

    pub(super) fn record_bytes_max(&self) -> usize {
        let most = match self {
            Self::One(log) => log.record_bytes_max(),
            Self::Spread(log) => log.record_bytes_max(),
        };
        most as usize
    }

    pub(super) fn missing(&self) -> Vec<MissingUnit> {
        match self {
            Self::One(_) => Vec::new(),
            Self::Spread(log) => log.missing().cloned().collect(),
        }
    }
}

/// The reader of a log.
pub(super) enum Reader {
    One(Box<LogBackup>),
    Spread(Box<SpreadLogBackup>),
}

impl Reader {
    pub(super) fn open(way: &Way, region: &str, clear: bool) -> Result<Self> {
        Ok(match way.find(region)? {
            Found::One(unit) => {
                Self::One(Box::new(unit.open_log_backup(region, clear, &way.open)?))
            }
            Found::Spread(spread) => {
                Self::Spread(Box::new(spread.open_log_backup(clear, &way.open)?))
            }
        })
    }

    pub(super) fn seek(&mut self, position: u64) -> Result<()> {
        match self {
            Self::One(log) => log.seek(LogPosition(position)),
            Self::Spread(log) => log.seek(LogPosition(position)),
        }
    }

    pub(super) fn read_unread(&mut self, max_bytes: usize) -> Result<Records<'_>> {
        match self {
            Self::One(log) => log.read_unread(max_bytes),
            Self::Spread(log) => log.read_unread(max_bytes),
        }
    }

    pub(super) fn clear(&mut self, mark: RecordMark) -> Result<()> {
        match self {
            Self::One(log) => log.clear(mark),
            Self::Spread(log) => log.clear(mark),
        }
    }

    /// The ring of each unit.
    pub(super) fn ring_bytes(&self) -> u64 {
        match self {
            Self::One(log) => log.ring_bytes(),
            Self::Spread(log) => log.ring_bytes(),
        }
    }

    /// How many units hold each record.
    pub(super) fn units(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Spread(log) => log.spread().layout().units(),
        }
    }

    /// Where the log begins now, of a reader that has read nothing yet.
    pub(super) fn begin(&mut self) -> Result<u64> {
        if let Self::One(log) = self {
            // It looks at the cursor with its first record.
            return log.begin().map(LogPosition::get);
        }
        Ok(self.position().get())
    }

    pub(super) fn position(&self) -> LogPosition {
        match self {
            Self::One(log) => log.position(),
            Self::Spread(log) => log.position(),
        }
    }

    /// An error if there may be records that too few units answer for.
    pub(super) fn check_certain(&self, region: &str) -> Result<()> {
        match self {
            Self::Spread(log) if log.published() > log.position() => {
                let missing: Vec<_> = log.missing().map(|unit| &*unit.unit).collect();
                Err(ClientError::Unreachable {
                    unit: missing.join(", "),
                    reason: format!(
                        "region {region} has records that too few of its units answer for"
                    ),
                })
            }
            _ => Ok(()),
        }
    }
}
