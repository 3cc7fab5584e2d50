//! Which region snapshots lie in, and the way to it.

use std::sync::Arc;

use pmu_auth::Identity;
use pmu_core::commit::SetState;
use pmu_format::{Mode, SetNumber};

use crate::error::{ClientError, Result};
use crate::options::{ConnectOptions, OpenOptions};
use crate::sets::{SetChoice, SetReader, SetSink};
use crate::snapshot::chain::{Listed, SnapshotInfo};
use crate::snapshot::error::{SnapshotError, SnapshotResult};
use crate::snapshot::store::Store;
use crate::spread::{Spread, SpreadReader};
use crate::unit::Unit;

/// A region in overwrite mode that holds snapshots: of one unit, or spread over several.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SnapshotRegion {
    /// A region of one unit.
    One {
        /// The unit.
        unit: Unit,
        /// The region's name.
        region: String,
    },
    /// A region that is spread over several units.
    Spread(SpreadWay),
}

/// How a spread region is found.
#[derive(Debug, Clone)]
pub struct SpreadWay {
    pub(super) seeds: Arc<[String]>,
    pub(super) region: String,
    pub(super) identity: Arc<Identity>,
    pub(super) options: ConnectOptions,
}

impl SpreadWay {
    pub(super) fn find(&self) -> Result<Spread> {
        let seeds: Vec<&str> = self.seeds.iter().map(String::as_str).collect();
        Spread::find(&seeds, &self.region, &self.identity, &self.options)
    }
}

impl SnapshotRegion {
    /// Finds a region through any of its units (`host:port`), and whether it is spread. Blocks for one connection after the other until a
    /// unit answers.
    ///
    /// # Errors
    /// What the last unit said; [`ClientError::WrongMode`] for a log; [`ClientError::Invalid`] where no unit was named.
    pub fn find(
        units: &[&str],
        region: &str,
        identity: Identity,
        options: &ConnectOptions,
    ) -> Result<Self> {
        let mut last = ClientError::Invalid("no unit was named".into());
        for address in units {
            let found = Unit::connect(address, &identity, options)
                .and_then(|unit| Ok((unit.describe(region)?, unit)));
            let (info, unit) = match found {
                Ok(found) => found,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            if info.mode != Mode::Overwrite {
                return Err(ClientError::WrongMode {
                    region: region.to_owned(),
                    expected: Mode::Overwrite,
                    found: info.mode,
                });
            }
            if info.membership.is_none() {
                let region = region.to_owned();
                return Ok(Self::One { unit, region });
            }
            return Ok(Self::spread(units, region, identity, options));
        }
        Err(last)
    }

    /// A region that is known to be spread, through any of its units. Connects to nobody.
    #[must_use]
    pub fn spread(
        units: &[&str],
        region: &str,
        identity: Identity,
        options: &ConnectOptions,
    ) -> Self {
        Self::Spread(SpreadWay {
            seeds: units.iter().map(|&unit| unit.to_owned()).collect(),
            region: region.to_owned(),
            identity: Arc::new(identity),
            options: options.clone(),
        })
    }

    /// The region's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::One { region, .. } => region,
            Self::Spread(way) => &way.region,
        }
    }

    /// Takes the right to write from whoever has it: see [`Unit::fence`] and [`Spread::fence`].
    ///
    /// # Errors
    /// As there.
    pub fn fence(&self) -> Result<()> {
        match self {
            Self::One { unit, region } => unit.fence(region).map(drop),
            Self::Spread(way) => way.find()?.fence().map(drop),
        }
    }

    pub(super) fn open_primary(&self, options: &OpenOptions) -> Result<Store> {
        match self {
            Self::One { unit, region } => {
                let primary = unit.open_sets_primary(region, options)?;
                Ok(Store::One(Box::new(primary)))
            }
            Self::Spread(way) => {
                let primary = way.find()?.open_primary(options)?;
                Ok(Store::Spread(Box::new(primary)))
            }
        }
    }

    /// Lists the snapshots, the newest first. Nothing of them is read. The primary, if there is one, doesn't notice.
    ///
    /// # Errors
    /// [`SnapshotError::Client`]: as [`Unit::open_sets_reader`] and [`SetReader::sets`].
    pub fn snapshots(&self, options: &OpenOptions) -> SnapshotResult<Vec<SnapshotInfo>> {
        self.with_sets(options, |sets| Ok::<_, SnapshotError>(list(sets)?.infos()))
    }

    /// Opens the region for reading and does something with its sets.
    pub(super) fn with_sets<R, E: From<ClientError>>(
        &self,
        options: &OpenOptions,
        work: impl FnOnce(&mut Sets<'_>) -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        match self {
            Self::One { unit, region } => {
                let reader = unit.open_sets_backup(region, options)?;
                work(&mut Sets::One(Box::new(reader)))
            }
            Self::Spread(way) => {
                let spread = way.find()?;
                let reader = spread.open_reader(options)?;
                work(&mut Sets::Spread(Box::new(reader)))
            }
        }
    }
}

/// The sets of a region, open for reading.
pub(super) enum Sets<'a> {
    One(Box<SetReader>),
    Spread(Box<SpreadReader<'a>>),
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::sets::SetReader {}
    impl Sealed for crate::spread::SpreadReader<'_> {}
    impl Sealed for super::Sets<'_> {}
}

/// Sets, open for reading, that snapshots are put together from: [`SetReader`] and [`SpreadReader`].
pub trait SnapshotSource: sealed::Sealed {
    /// Hands number, bytes, time of commit and label of each committed set to a visitor.
    ///
    /// # Errors
    /// As [`SetReader::sets`] and [`SpreadReader::sets`].
    fn visit_sets(&mut self, visit: &mut dyn FnMut(SetNumber, u64, u64, &str)) -> Result<()>;

    /// Reads one set.
    ///
    /// # Errors
    /// As [`SetReader::read`] and [`SpreadReader::read`].
    fn read_set(&mut self, set: SetNumber, sink: &mut impl SetSink) -> Result<()>;
}

impl SnapshotSource for SetReader {
    fn visit_sets(&mut self, visit: &mut dyn FnMut(SetNumber, u64, u64, &str)) -> Result<()> {
        for set in self.sets()?.sets {
            if set.state == SetState::Committed {
                let label = set.label.to_string();
                visit(set.number, set.bytes, set.committed_ns, &label);
            }
        }
        Ok(())
    }

    fn read_set(&mut self, set: SetNumber, sink: &mut impl SetSink) -> Result<()> {
        self.read(SetChoice::Number(set), sink).map(drop)
    }
}

impl SnapshotSource for SpreadReader<'_> {
    fn visit_sets(&mut self, visit: &mut dyn FnMut(SetNumber, u64, u64, &str)) -> Result<()> {
        for set in self.sets()? {
            if set.committed {
                visit(set.number, set.bytes, set.committed_ns, &set.label);
            }
        }
        Ok(())
    }

    fn read_set(&mut self, set: SetNumber, sink: &mut impl SetSink) -> Result<()> {
        self.read(SetChoice::Number(set), sink).map(drop)
    }
}

impl SnapshotSource for Sets<'_> {
    fn visit_sets(&mut self, visit: &mut dyn FnMut(SetNumber, u64, u64, &str)) -> Result<()> {
        match self {
            Self::One(reader) => reader.visit_sets(visit),
            Self::Spread(reader) => reader.visit_sets(visit),
        }
    }

    fn read_set(&mut self, set: SetNumber, sink: &mut impl SetSink) -> Result<()> {
        match self {
            Self::One(reader) => reader.read_set(set, sink),
            Self::Spread(reader) => reader.read_set(set, sink),
        }
    }
}

/// The committed snapshots.
pub(super) fn list(sets: &mut impl SnapshotSource) -> Result<Listed> {
    let mut listed = Listed::default();
    sets.visit_sets(&mut |set, bytes, committed_ns, label| {
        listed.add(set, bytes, committed_ns, label);
    })?;
    Ok(listed)
}
