//! A primary of a log: one that spreads records itself, or has them distributed.

use pmu_client::{ClientError, DistributedLog, SpreadLogPrimary, Ticket};

use super::Site;
use crate::context::Context;
use crate::distributor;
use crate::scenario::spread::options;

/// See the module.
pub(super) enum Writer {
    Direct(Box<SpreadLogPrimary>),
    /// With where the log ended when it was opened.
    Distributed(Box<DistributedLog>, u64),
}

impl Writer {
    /// Opens the log in one of the ways that the site has.
    pub(super) fn open(context: &Context, site: &Site) -> Result<Self, ClientError> {
        if site.distributed && context.draw(|random| random.chance(3, 4)) {
            let its_site = site.clone();
            let way = distributor::reach(context, move |context| its_site.find(context))?;
            let log = DistributedLog::over(way, "sim", &options(context))?;
            let end = log.submitted().get();
            return Ok(Self::Distributed(Box::new(log), end));
        }
        let log = site.find(context)?.open_log_primary(&options(context))?;
        Ok(Self::Direct(Box::new(log)))
    }

    pub(super) const fn is_distributed(&self) -> bool {
        matches!(self, Self::Distributed(..))
    }

    pub(super) fn term(&self) -> u64 {
        match self {
            Self::Direct(log) => log.term(),
            Self::Distributed(log, _) => log.term(),
        }
    }

    /// Where the log ended when it was opened.
    pub(super) fn newest(&self) -> u64 {
        match self {
            Self::Direct(log) => log.newest().get(),
            Self::Distributed(_, end) => *end,
        }
    }

    pub(super) fn record_bytes_max(&self) -> u32 {
        match self {
            Self::Direct(log) => log.record_bytes_max(),
            Self::Distributed(log, _) => log.record_bytes_max(),
        }
    }

    pub(super) fn acknowledged(&self) -> u64 {
        match self {
            Self::Direct(log) => log.acknowledged().get(),
            Self::Distributed(log, _) => log.acknowledged().get(),
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        match self {
            Self::Direct(log) => log.is_ended(),
            Self::Distributed(log, _) => log.is_ended(),
        }
    }

    /// The units that take no part.
    pub(super) fn missing(&self) -> Vec<&str> {
        match self {
            Self::Direct(log) => log.missing().map(|missing| &*missing.unit).collect(),
            Self::Distributed(log, _) => log.missing().map(|missing| &*missing.unit).collect(),
        }
    }

    pub(super) fn rejoin(&mut self) -> Result<usize, ClientError> {
        match self {
            Self::Direct(log) => log.rejoin(),
            Self::Distributed(log, _) => log.rejoin(),
        }
    }

    pub(super) fn submit_batch(&mut self, records: &[&[u8]]) -> Result<Ticket, ClientError> {
        match self {
            Self::Direct(log) => log.submit_batch(records),
            Self::Distributed(log, _) => log.submit_batch(records),
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), ClientError> {
        match self {
            Self::Direct(log) => log.flush().map(drop),
            Self::Distributed(log, _) => log.flush().map(drop),
        }
    }

    pub(super) fn poll_completions(&mut self) -> Result<(), ClientError> {
        match self {
            Self::Direct(log) => log.poll_completions().map(drop),
            Self::Distributed(log, _) => log.poll_completions().map(drop),
        }
    }
}
