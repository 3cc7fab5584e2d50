//! The primary of sets that snapshots go through: of one unit or of several.

use pmu_format::{Epoch, Label, SetNumber};

use crate::error::{ClientError, Result};
use crate::options::{OpenOptions, PersistenceChoice, ProviderChoice};
use crate::receipt::Receipt;
use crate::sets::{Put, SetPrimary};
use crate::snapshot::place::SnapshotRegion;
use crate::spread::{SpreadPrimary, SpreadPut};

/// See the module.
pub(super) enum Store {
    One(Box<SetPrimary>),
    Spread(Box<SpreadPrimary>),
}

/// A set in progress.
pub(super) enum Sending<'a> {
    One(Put<'a>),
    Spread(Box<SpreadPut<'a>>),
}

impl Store {
    /// The longest payload of a set.
    pub(super) fn capacity_bytes(&self) -> u64 {
        match self {
            Self::One(primary) => primary.capacity_bytes(),
            Self::Spread(primary) => primary.spread().capacity_bytes(),
        }
    }

    /// Committed sets that are never overwritten.
    pub(super) fn sets_kept(&self) -> u32 {
        match self {
            Self::One(primary) => primary.region().sets_kept,
            Self::Spread(primary) => primary.spread().sets_kept(),
        }
    }

    /// The number of the next set.
    pub(super) fn next(&self) -> SetNumber {
        let newest = match self {
            Self::One(primary) => primary.newest(),
            Self::Spread(primary) => primary.newest(),
        };
        SetNumber(newest.get().saturating_add(1))
    }

    pub(super) fn begin(&mut self, bytes: u64, label: Label) -> Result<Sending<'_>> {
        match self {
            Self::One(primary) => Ok(Sending::One(primary.begin(Some(bytes), label)?)),
            Self::Spread(primary) => {
                let put = primary.begin(Some(bytes), label)?;
                Ok(Sending::Spread(Box::new(put)))
            }
        }
    }

    /// How the same primary may open its region again after an error; none where it needs not to, as it takes units back by itself.
    pub(super) fn way_back(&self, options: &OpenOptions) -> Option<WayBack> {
        match self {
            Self::One(primary) => {
                let provider = ProviderChoice::Only(primary.provider());
                let persistence = PersistenceChoice::Forced(primary.unit().persistence);
                Some(WayBack {
                    epoch: primary.epoch(),
                    // One try raises the epoch once.
                    options: options.provider(provider).persistence(persistence),
                })
            }
            Self::Spread(_) => None,
        }
    }
}

impl Sending<'_> {
    pub(super) fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::One(put) => put.write_bytes(bytes),
            Self::Spread(put) => put.write_bytes(bytes),
        }
    }

    pub(super) fn finish(self) -> Result<Receipt> {
        match self {
            Self::One(put) => put.finish(),
            Self::Spread(put) => put.finish(),
        }
    }
}

/// What a primary that lost its unit needs to come back, and to see that nobody took its place meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct WayBack {
    /// The epoch that it had.
    epoch: Epoch,
    options: OpenOptions,
}

impl WayBack {
    /// Opens the region again, if no epoch was given out since: a fence or another primary raises it. In doubt it counts as fenced.
    pub(super) fn open(&self, place: &SnapshotRegion) -> Result<Store> {
        let SnapshotRegion::One { unit, region } = place else {
            let region = place.name().to_owned();
            return Err(ClientError::Ended { region });
        };
        let fenced = |epoch| ClientError::Fenced {
            region: region.clone(),
            epoch,
            own_epoch: self.epoch,
        };
        let info = unit.describe(region)?;
        if info.epoch > self.epoch {
            return Err(fenced(info.epoch));
        }
        // A unit that knows of it looks again when it grants, and so does the library.
        let options = self.options.going_on_from(self.epoch);
        let primary = unit.open_sets_primary(region, &options)?;
        Ok(Store::One(Box::new(primary)))
    }
}
