//! A primary of sets: one that spreads them itself, or has them distributed.

use std::io::IoSlice;

use pmu_client::{ClientError, Distributed, Label, Receipt, SpreadPrimary};

use super::{Site, options};
use crate::context::Context;
use crate::distributor;

/// See the module.
pub(super) enum Writer {
    Direct(Box<SpreadPrimary>),
    Distributed(Box<Distributed>),
}

impl Writer {
    /// Opens the region in one of the ways that the site has.
    pub(super) fn open(context: &Context, site: &Site) -> Result<Self, ClientError> {
        if site.distributed && context.draw(|random| random.chance(3, 4)) {
            let its_site = site.clone();
            let way = distributor::reach(context, move |context| its_site.find(context))?;
            let distributed = Distributed::over(way, "sim", &options(context))?;
            return Ok(Self::Distributed(Box::new(distributed)));
        }
        let primary = site.find(context)?.open_primary(&options(context))?;
        Ok(Self::Direct(Box::new(primary)))
    }

    pub(super) fn term(&self) -> u64 {
        match self {
            Self::Direct(primary) => primary.term().0,
            Self::Distributed(distributed) => distributed.term(),
        }
    }

    pub(super) fn newest(&self) -> u64 {
        match self {
            Self::Direct(primary) => primary.newest().get(),
            Self::Distributed(distributed) => distributed.newest().get(),
        }
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        match self {
            Self::Direct(primary) => primary.spread().capacity_bytes(),
            Self::Distributed(distributed) => distributed.capacity_bytes(),
        }
    }

    /// The generation of the members, where it is known.
    pub(super) fn generation(&self) -> Option<u64> {
        match self {
            Self::Direct(primary) => Some(primary.spread().membership().generation),
            Self::Distributed(_) => None,
        }
    }

    pub(super) fn lacks_units(&self) -> bool {
        match self {
            Self::Direct(primary) => primary.missing().next().is_some(),
            Self::Distributed(distributed) => distributed.missing().next().is_some(),
        }
    }

    pub(super) fn rejoin(&mut self) -> Result<usize, ClientError> {
        match self {
            Self::Direct(primary) => primary.rejoin(),
            Self::Distributed(distributed) => distributed.rejoin(),
        }
    }

    pub(super) fn commit(
        &mut self,
        payload: &[IoSlice<'_>],
        label: Label,
    ) -> Result<Receipt, ClientError> {
        match self {
            Self::Direct(primary) => primary.commit(payload, label),
            Self::Distributed(distributed) => distributed.commit(payload, label),
        }
    }

    /// Writes a set piece by piece; without a second piece it is given up.
    pub(super) fn put(
        &mut self,
        length: Option<u64>,
        label: Label,
        first: &[u8],
        second: Option<&[u8]>,
    ) -> Result<Option<Receipt>, ClientError> {
        match self {
            Self::Direct(primary) => {
                let mut put = primary.begin(length, label)?;
                put.write_bytes(first)?;
                let Some(second) = second else {
                    return Ok(None);
                };
                put.write_bytes(second)?;
                put.finish().map(Some)
            }
            Self::Distributed(distributed) => {
                let mut put = distributed.begin(length, label)?;
                put.write_bytes(first)?;
                let Some(second) = second else {
                    return Ok(None);
                };
                put.write_bytes(second)?;
                put.finish().map(Some)
            }
        }
    }
}
