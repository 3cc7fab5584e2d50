//! A log on one unit or on several, by way of a distributor or not, as the commands use it.

use pmu_fabric::Provider;
use pmu_format::LogPosition;

use crate::cli::Way;
use crate::distributed::DistributedLog;
use crate::error::Result;
use crate::log::{LogBackup, LogPrimary, LogRecord, RecordMark, Records, RecoveredLog, Ticket};
use crate::options::OpenOptions;
use crate::receipt::Receipt;
use crate::spread::{MissingUnit, SpreadLogBackup, SpreadLogPrimary};

/// The writer.
pub(super) enum Writer {
    One(Box<LogPrimary>),
    Spread(Box<SpreadLogPrimary>),
    Distributed(Box<DistributedLog>),
}

/// The reader.
pub(super) enum Reader {
    One(Box<LogBackup>),
    Spread(Box<SpreadLogBackup>),
}

impl Writer {
    pub(super) fn open(way: Way, region: &str, options: &OpenOptions) -> Result<Self> {
        Ok(match way {
            Way::One(unit) => Self::One(Box::new(unit.open_log_primary(region, options)?)),
            Way::Spread(spread) => Self::Spread(Box::new(spread.open_log_primary(options)?)),
        })
    }

    pub(super) fn submit(&mut self, record: &[u8]) -> Result<Ticket> {
        match self {
            Self::One(log) => log.submit(record),
            Self::Spread(log) => log.submit(record),
            Self::Distributed(log) => log.submit(record),
        }
    }

    pub(super) fn poll_completions(&mut self) -> Result<LogPosition> {
        match self {
            Self::One(log) => log.poll_completions(),
            Self::Spread(log) => log.poll_completions(),
            Self::Distributed(log) => log.poll_completions(),
        }
    }

    pub(super) fn flush(&mut self) -> Result<Receipt> {
        match self {
            Self::One(log) => log.flush(),
            Self::Spread(log) => log.flush(),
            Self::Distributed(log) => log.flush(),
        }
    }

    pub(super) fn acknowledged(&self) -> LogPosition {
        match self {
            Self::One(log) => log.acknowledged(),
            Self::Spread(log) => log.acknowledged(),
            Self::Distributed(log) => log.acknowledged(),
        }
    }

    pub(super) fn record_bytes_max(&self) -> u32 {
        match self {
            Self::One(log) => log.record_bytes_max(),
            Self::Spread(log) => log.record_bytes_max(),
            Self::Distributed(log) => log.record_bytes_max(),
        }
    }

    pub(super) fn provider(&self) -> Option<Provider> {
        match self {
            Self::One(log) => Some(log.provider()),
            Self::Spread(log) => log.provider(),
            Self::Distributed(log) => Some(log.provider()),
        }
    }

    /// Who distributes.
    pub(super) fn distributor(&self) -> Option<&str> {
        match self {
            Self::Distributed(log) => Some(log.distributor()),
            Self::One(_) | Self::Spread(_) => None,
        }
    }

    /// How many units a receipt could name; `None` for a log on one.
    pub(super) fn units_of(&self) -> Option<usize> {
        match self {
            Self::One(_) => None,
            Self::Spread(log) => Some(log.spread().layout().units()),
            Self::Distributed(log) => Some(log.layout().units()),
        }
    }

    pub(super) fn missing(&self) -> Vec<MissingUnit> {
        match self {
            Self::One(_) => Vec::new(),
            Self::Spread(log) => log.missing().cloned().collect(),
            Self::Distributed(log) => log.missing().cloned().collect(),
        }
    }
}

impl Reader {
    pub(super) fn open(
        way: &Way,
        region: &str,
        clear: bool,
        options: &OpenOptions,
    ) -> Result<Self> {
        Ok(match way {
            Way::One(unit) => Self::One(Box::new(unit.open_log_backup(region, clear, options)?)),
            Way::Spread(spread) => Self::Spread(Box::new(spread.open_log_backup(clear, options)?)),
        })
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

    /// What somebody has begun to clear is cleared on all units; up to where the log is cleared, or read where that is one unit's affair.
    pub(super) fn end_begun_clear(&mut self) -> Result<LogPosition> {
        match self {
            Self::One(log) => Ok(log.position()),
            Self::Spread(log) => log.end_begun_clear(),
        }
    }

    pub(super) fn clear_handed_out(&mut self) -> Result<LogPosition> {
        match self {
            Self::One(log) => log.clear_handed_out(),
            Self::Spread(log) => log.clear_handed_out(),
        }
    }

    pub(super) fn recover(
        &mut self,
        visit: impl FnMut(LogRecord<'_>) -> Result<()>,
    ) -> Result<RecoveredLog> {
        match self {
            Self::One(log) => log.recover(visit),
            Self::Spread(log) => log.recover(visit),
        }
    }

    pub(super) fn position(&self) -> LogPosition {
        match self {
            Self::One(log) => log.position(),
            Self::Spread(log) => log.position(),
        }
    }

    pub(super) fn tail(&self) -> LogPosition {
        match self {
            Self::One(log) => log.tail(),
            Self::Spread(log) => log.tail(),
        }
    }

    pub(super) fn provider(&self) -> Option<Provider> {
        match self {
            Self::One(log) => Some(log.provider()),
            Self::Spread(log) => log.provider(),
        }
    }

    pub(super) fn missing(&self) -> Vec<MissingUnit> {
        match self {
            Self::One(_) => Vec::new(),
            Self::Spread(log) => log.missing().cloned().collect(),
        }
    }

    /// Looks for units that are missing. How long that takes depends on what keeps them away.
    pub(super) fn rejoin(&mut self) -> Result<()> {
        match self {
            Self::Spread(log) if log.missing().next().is_some() => log.rejoin().map(drop),
            _ => Ok(()),
        }
    }

    /// Up to where there is more than too few units answer for; `None` if all is certain.
    pub(super) fn uncertain_to(&self) -> Option<LogPosition> {
        match self {
            Self::One(_) => None,
            Self::Spread(log) => Some(log.published()).filter(|end| *end > log.position()),
        }
    }
}
