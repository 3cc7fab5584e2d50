//! The way to the regions: on one unit, or spread over several.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_client::agent::UnitEpoch;
use pmu_client::{
    BeatWatch, ClientError, ConnectOptions, Epoch, Identity, LogBackup, LogPosition, LogRecord,
    Mode, OpenOptions, RecordMark, Records, RecoveredLog, RegionInfo, SetChoice, SetInfo,
    SetReader, SetSink, Spread, SpreadLogBackup, SpreadReader, Unit,
};

use pmu_client::snapshot::{SnapshotImage, SnapshotKind, SnapshotResult};

use crate::config::Config;
use crate::error::Result;

/// The longest time for a connection and for each request to a unit.
const UNIT_TIMEOUT: Duration = Duration::from_secs(2);

type Client<T> = std::result::Result<T, ClientError>;

/// What is needed to find regions.
#[derive(Clone)]
pub struct Place {
    addresses: Vec<String>,
    identity: Identity,
    options: OpenOptions,
}

impl Place {
    /// From the configuration. Nothing is connected.
    ///
    /// # Errors
    /// [`crate::AgentError::Auth`] for a bad identity.
    pub fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            addresses: config.units.clone(),
            identity: Identity::load(&config.identity)?,
            options: config.open_options(),
        })
    }

    /// The own principal's name.
    #[must_use]
    pub fn principal(&self) -> String {
        self.identity.principal().name.to_string()
    }

    /// Connects to the units of a region.
    ///
    /// # Errors
    /// What the last unit said.
    pub fn find(&self, region: &str) -> Client<Way> {
        let options = ConnectOptions::with_timeout(UNIT_TIMEOUT);
        let mut failed = None;
        for address in &self.addresses {
            let described = Unit::connect(address, &self.identity, &options)
                .and_then(|unit| unit.describe(region).map(|info| (unit, info)));
            match described {
                Ok((_, info)) if info.membership.is_some() => {
                    let seeds: Vec<&str> = self.addresses.iter().map(String::as_str).collect();
                    let spread = Spread::find(&seeds, region, &self.identity, &options)?;
                    return Ok(Way::Spread(Box::new(spread), Box::new(self.clone())));
                }
                Ok((unit, info)) => return Ok(Way::One(unit, info.name.as_ref().to_owned())),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| ClientError::Invalid("no unit was named".into())))
    }
}

/// What the units say of who holds a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its epoch; 0 for a region over several units, whose members have epochs of their own.
    pub epoch: u64,
    /// The principal of its primary, if there is one.
    pub writer: Option<String>,
}

/// A fence that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// As in [`Holder`].
    pub epoch: u64,
    /// The units' own time; of several the longest.
    pub took: Duration,
    /// As this side saw it.
    pub round_trip: Duration,
    /// Of each unit that was fenced.
    pub epochs: Vec<UnitEpoch>,
}

/// A region that was found.
pub enum Way {
    /// On one unit.
    One(Unit, String),
    /// Over several.
    Spread(Box<Spread>, Box<Place>),
}

impl Way {
    /// Who holds it. Of several units the first that answers is asked.
    ///
    /// # Errors
    /// As [`Unit::describe`].
    pub fn holder(&self) -> Client<Holder> {
        let of = |info: RegionInfo, epoch| Holder {
            epoch,
            writer: info.writer,
        };
        match self {
            Self::One(unit, name) => {
                let info = unit.describe(name)?;
                let epoch = info.epoch.get();
                Ok(of(info, epoch))
            }
            Self::Spread(spread, place) => {
                let options = ConnectOptions::with_timeout(UNIT_TIMEOUT);
                let mut failed = None;
                for address in &place.addresses {
                    let described = Unit::connect(address, &place.identity, &options)
                        .and_then(|unit| unit.describe(spread.name()));
                    match described {
                        Ok(info) => return Ok(of(info, 0)),
                        Err(error) => failed = Some(error),
                    }
                }
                Err(failed.unwrap_or_else(|| ClientError::Invalid("no unit was named".into())))
            }
        }
    }

    /// What no other region ever has, whatever its name.
    ///
    /// # Errors
    /// As [`Unit::describe`].
    pub fn identity(&self) -> Client<[u8; 16]> {
        match self {
            Self::One(unit, name) => Ok(unit.describe(name)?.id.0),
            Self::Spread(spread, _) => Ok(spread.membership().id.0),
        }
    }

    /// The region's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::One(_, name) => name,
            Self::Spread(spread, _) => spread.name(),
        }
    }

    /// Takes the right to write from whoever has it.
    ///
    /// # Errors
    /// As [`Unit::fence`] and [`Spread::fence`].
    pub fn fence(&self) -> Client<Fenced> {
        let begun = Instant::now();
        match self {
            Self::One(unit, name) => unit.fence(name).map(|report| Fenced {
                epochs: vec![UnitEpoch::new(name, unit.name(), report.epoch)],
                epoch: report.epoch.get(),
                took: report.took,
                round_trip: report.round_trip,
            }),
            Self::Spread(spread, _) => spread.fence().map(|fence| Fenced {
                epochs: {
                    let epochs = fence.fenced.iter();
                    of_units(spread, epochs.map(|(unit, report)| (unit, report.epoch)))
                },
                epoch: 0,
                took: fence
                    .fenced
                    .iter()
                    .map(|(_, report)| report.took)
                    .max()
                    .unwrap_or_default(),
                round_trip: begun.elapsed(),
            }),
        }
    }

    /// Opens the region to look at its beats.
    ///
    /// # Errors
    /// As [`Unit::watch_beats`].
    pub fn watch_beats(&self, mode: Mode, options: &OpenOptions) -> Client<BeatWatch> {
        match self {
            Self::One(unit, name) => unit.watch_beats(name, mode, options),
            Self::Spread(spread, _) => spread.watch_beats(options),
        }
    }

    /// Opens a log to follow it.
    ///
    /// # Errors
    /// As [`Unit::open_log_backup`].
    pub fn follow_log(&self, clear: bool, options: &OpenOptions) -> Client<Follower> {
        Ok(match self {
            Self::One(unit, name) => {
                Follower::One(Box::new(unit.open_log_backup(name, clear, options)?))
            }
            Self::Spread(spread, _) => {
                Follower::Spread(Box::new(spread.open_log_backup(clear, options)?))
            }
        })
    }

    /// Opens sets to read them.
    ///
    /// # Errors
    /// As [`Unit::open_sets_backup`].
    pub fn read_sets(&self, options: &OpenOptions) -> Client<Sets<'_>> {
        Ok(match self {
            Self::One(unit, name) => Sets::One(Box::new(unit.open_sets_backup(name, options)?)),
            Self::Spread(spread, _) => Sets::Spread(Box::new(spread.open_reader(options)?)),
        })
    }

    /// Over several units what a log ends with is settled by whoever opens it: does so, before anybody is told of records that might not count.
    /// Gives the units' epochs behind that; none where nothing was to be settled.
    ///
    /// # Errors
    /// As [`Spread::open_log_primary`].
    pub fn settle_log(&self, options: &OpenOptions) -> Client<Option<Vec<UnitEpoch>>> {
        match self {
            Self::One(..) => Ok(None),
            Self::Spread(spread, place) => place.find(spread.name()).and_then(|way| match way {
                Self::Spread(spread, _) => {
                    let log = spread.open_log_primary(options)?;
                    let epochs: Vec<_> = log.epochs().collect();
                    let epochs = epochs.iter().map(|(unit, epoch)| (unit, *epoch));
                    Ok(Some(of_units(log.spread(), epochs)))
                }
                Self::One(..) => Ok(None),
            }),
        }
    }
}

fn of_units<'a>(
    spread: &Spread,
    epochs: impl Iterator<Item = (&'a Arc<str>, Epoch)>,
) -> Vec<UnitEpoch> {
    let name = spread.name();
    epochs
        .map(|(unit, epoch)| UnitEpoch::new(name, unit, epoch))
        .collect()
}

impl Place {
    /// How regions are opened.
    #[must_use]
    pub const fn options(&self) -> &OpenOptions {
        &self.options
    }
}

/// The log, open for reading.
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
        match self {
            Self::One(log) => log.read_unread(max_bytes),
            Self::Spread(log) => log.read_unread(max_bytes),
        }
    }

    /// See [`LogBackup::clear`].
    ///
    /// # Errors
    /// As there.
    pub fn clear(&mut self, mark: RecordMark) -> Client<()> {
        match self {
            Self::One(log) => log.clear(mark),
            Self::Spread(log) => log.clear(mark),
        }
    }

    /// See [`LogBackup::recover`].
    ///
    /// # Errors
    /// As there.
    pub fn recover(
        &mut self,
        visit: impl FnMut(LogRecord<'_>) -> Client<()>,
    ) -> Client<RecoveredLog> {
        match self {
            Self::One(log) => log.recover(visit),
            Self::Spread(log) => log.recover(visit),
        }
    }

    /// The end of the log as far as it was seen; over several units none is known.
    #[must_use]
    pub fn end(&self) -> LogPosition {
        match self {
            Self::One(log) => log.tail(),
            Self::Spread(_) => LogPosition(u64::MAX),
        }
    }

    /// Every unit can be read.
    #[must_use]
    pub fn has_all_units(&self) -> bool {
        match self {
            Self::One(_) => true,
            Self::Spread(log) => log.missing().next().is_none(),
        }
    }

    /// Bytes of the log that were not read, as far as its end was seen. Over several units that isn't known: 0.
    #[must_use]
    pub fn lag_bytes(&self) -> u64 {
        match self {
            Self::One(log) => log.tail().get().saturating_sub(log.position().get()),
            Self::Spread(_) => 0,
        }
    }

    /// Everything before this was cleared, whoever did it: the log has no room for more.
    #[must_use]
    pub fn cleared_at_least(&self) -> LogPosition {
        let ring_bytes = match self {
            Self::One(log) => log.ring_bytes(),
            Self::Spread(log) => log.ring_bytes(),
        };
        LogPosition(self.position().get().saturating_sub(ring_bytes))
    }

    /// The position of the next record.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        match self {
            Self::One(log) => log.position(),
            Self::Spread(log) => log.position(),
        }
    }
}

/// What is known of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub number: u64,
    /// Its payload.
    pub bytes: u64,
    /// Its label.
    pub label: String,
}

impl Found {
    /// Whether its label says that it is a snapshot of an arena.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        SnapshotKind::of_label(&self.label).is_some()
    }
}

/// The newest sets of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// That was published; none where none was.
    pub published: Option<Found>,
    /// That is whole, published or not; of several units only what its list says, before it is read.
    pub whole: Option<Found>,
}

impl Newest {
    /// Which one to recover. Of snapshots what was published counts; of other sets one that is whole is worth more, acknowledged or not.
    #[must_use]
    pub fn to_recover(self) -> Option<Found> {
        self.published.filter(Found::is_snapshot).or(self.whole)
    }
}

fn newest_of<'a>(sets: impl Iterator<Item = &'a SetInfo>) -> Option<Found> {
    let newest = sets.max_by_key(|set| set.number)?;
    Some(Found {
        number: newest.number.get(),
        bytes: newest.bytes,
        label: newest.label.to_string(),
    })
}

/// Sets, open for reading.
pub enum Sets<'a> {
    /// Of one unit.
    One(Box<SetReader>),
    /// Of several.
    Spread(Box<SpreadReader<'a>>),
}

impl Sets<'_> {
    /// The newest sets, from one list.
    ///
    /// # Errors
    /// As [`SetReader::sets`] and [`SpreadReader::sets`]; [`ClientError::Damaged`] where there should be sets, and none that counts is sound.
    pub fn newest(&mut self, region: &str) -> Client<Newest> {
        match self {
            Self::One(sets) => {
                let catalog = sets.sets()?;
                let published = |set: &&SetInfo| set.number <= catalog.published;
                let found = Newest {
                    published: newest_of(catalog.sets.iter().filter(published)),
                    whole: newest_of(catalog.sets.iter()),
                };
                // None that is sound is not the same as none.
                match (&found.published, catalog.findings.first()) {
                    (None, Some(finding)) => Err(ClientError::Damaged {
                        region: region.to_owned(),
                        what: format!("no set is sound: {finding}"),
                    }),
                    _ => Ok(found),
                }
            }
            Self::Spread(sets) => {
                let found = sets.sets()?;
                let newest_of = |recovering: bool| {
                    let counting = found.iter().filter(|set| recovering || set.committed);
                    let newest = counting.max_by_key(|set| set.number);
                    newest.map(|set| Found {
                        number: set.number.get(),
                        bytes: 0,
                        label: set.label.clone(),
                    })
                };
                Ok(Newest {
                    published: newest_of(false),
                    whole: newest_of(true),
                })
            }
        }
    }

    /// See [`SnapshotImage::catch_up`].
    ///
    /// # Errors
    /// As there.
    pub fn catch_up(&mut self, region: &str, image: &mut SnapshotImage) -> SnapshotResult<bool> {
        match self {
            Self::One(sets) => image.catch_up(region, sets.as_mut()),
            Self::Spread(sets) => image.catch_up(region, sets.as_mut()),
        }
    }

    /// Reads the newest set; none where none was ever committed.
    ///
    /// # Errors
    /// As [`SetReader::read`], [`SetReader::recover`] and [`SpreadReader::read`].
    pub fn read(&mut self, recovering: bool, sink: &mut impl SetSink) -> Client<Option<Found>> {
        let read = match self {
            Self::One(sets) if recovering => sets.recover(sink).map(|read| read.set),
            Self::One(sets) => sets.read(SetChoice::Newest, sink).map(|read| read.set),
            Self::Spread(sets) => sets.read(SetChoice::Newest, sink).map(|read| read.set),
        };
        match read {
            Ok(set) => Ok(Some(Found {
                number: set.number.get(),
                bytes: set.bytes,
                label: set.label.to_string(),
            })),
            Err(ClientError::NoSuchSet { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
