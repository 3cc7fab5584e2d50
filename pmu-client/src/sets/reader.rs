//! Reading sets: beside a live primary, or after its end.

use std::io::Write;

use pmu_core::commit::{Finding, Goal, SetRecovery};
use pmu_fabric::Counters;
use pmu_format::{Mode, SetGeometry, SetNumber};
use pmu_proto::v1::SessionRole;

use crate::error::{ClientError, Result};
use crate::options::OpenOptions;
use crate::receipt::UnitProof;
use crate::region::{Parts, Region, RegionInfo};
use crate::sets::fetch::Fetcher;
use crate::sets::{SetInfo, SetSink, StreamSink, geometry_of, no_such_set};
use crate::unit::{Purpose, Unit};

/// Which set is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetChoice {
    /// The newest committed one; an older one that is kept where that is damaged, and then a finding says so.
    Newest,
    /// This one and no other.
    Number(SetNumber),
}

/// The sets of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetCatalog {
    /// The number in the publish word, 0 for none.
    pub published: SetNumber,
    /// All sets with a sound header, the newest first.
    pub sets: Vec<SetInfo>,
    /// What is wrong with the others.
    pub findings: Vec<Finding>,
}

/// A set that was read, every chunk of it verified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetRead {
    /// The set.
    pub set: SetInfo,
    /// What was found on the way. [`Finding::FellBack`] says that a newer set was damaged and this is an older one.
    pub findings: Vec<Finding>,
}

impl SetRead {
    /// True if a newer committed set should have been read, and was damaged.
    #[must_use]
    pub fn fell_back(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| matches!(finding, Finding::FellBack { .. }))
    }
}

/// Reads the sets of one region, as a backup or for inspection. It takes no part in writing and the primary doesn't know of it.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block until the bytes are there, a call without any progress at
/// most for [`crate::Timeouts::stall`].
#[derive(Debug)]
pub struct SetReader {
    region: Region,
    geometry: SetGeometry,
    fetcher: Fetcher,
}

impl Unit {
    /// Opens a region in overwrite mode as its backup: takes the right to read.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRegion`], [`ClientError::NoGrant`], [`ClientError::WrongMode`], [`ClientError::NoProvider`], and what every
    /// request may meet.
    pub fn open_sets_backup(&self, region: &str, options: &OpenOptions) -> Result<SetReader> {
        let purpose = Purpose {
            role: SessionRole::Backup,
            clear: false,
            mode: Mode::Overwrite,
            member: false,
        };
        SetReader::open(self.open(region, purpose, options)?)
    }

    /// The same for inspection.
    ///
    /// # Errors
    /// As [`Self::open_sets_backup`].
    pub fn open_sets_reader(&self, region: &str, options: &OpenOptions) -> Result<SetReader> {
        let purpose = Purpose {
            role: SessionRole::Reader,
            clear: false,
            mode: Mode::Overwrite,
            member: false,
        };
        SetReader::open(self.open(region, purpose, options)?)
    }
}

impl SetReader {
    /// Over a connection that is there already: for simulators and tests.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] for a region that can't be one; the device refuses memory.
    pub fn over(parts: Parts) -> Result<Self> {
        Self::open(Region::new(parts)?)
    }

    pub(crate) fn open(mut region: Region) -> Result<Self> {
        let geometry = geometry_of(&region.info)?;
        let fetcher = Fetcher::new(&mut region)?;
        Ok(Self {
            region,
            geometry,
            fetcher,
        })
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &RegionInfo {
        &self.region.info
    }

    /// The unit, and how its connection makes bytes durable.
    #[must_use]
    pub fn unit(&self) -> &UnitProof {
        &self.region.proof()[0]
    }

    /// Which way the bytes come.
    #[must_use]
    pub fn provider(&self) -> pmu_fabric::Provider {
        self.region.provider()
    }

    /// What this connection has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.region.link.counters()
    }

    /// Lists the sets: headers are read, payloads are not.
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`], [`ClientError::TimedOut`].
    pub fn sets(&mut self) -> Result<SetCatalog> {
        let mut recovery = [self.recovery(Goal::List)];
        self.fetcher
            .run(&mut self.region, &mut recovery, &mut [()])?;
        let [recovery] = recovery;
        Ok(SetCatalog {
            published: recovery.published(),
            sets: recovery.sets().iter().map(SetInfo::of).collect(),
            findings: recovery.findings().to_vec(),
        })
    }

    /// Reads a set into a sink: a `Vec<u8>`, a [`crate::FileSink`], a [`crate::StreamSink`] or one of your own. `&mut ()` verifies only.
    ///
    /// # Errors
    /// [`ClientError::NoSuchSet`]; [`ClientError::Damaged`], naming the chunk; [`ClientError::Io`] when the sink fails;
    /// [`ClientError::ConnectionLost`], [`ClientError::TimedOut`].
    pub fn read(&mut self, choice: SetChoice, sink: &mut impl SetSink) -> Result<SetRead> {
        let goal = match choice {
            SetChoice::Newest => Goal::Committed,
            SetChoice::Number(number) => Goal::Number(number),
        };
        self.read_goal(goal, sink)
    }

    /// Reads a set into a vector of its length.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_to_vec(&mut self, choice: SetChoice) -> Result<(SetRead, Vec<u8>)> {
        let mut bytes = Vec::new();
        let read = self.read(choice, &mut bytes)?;
        Ok((read, bytes))
    }

    /// Reads a set into a writer that can't go back.
    ///
    /// # Errors
    /// As [`Self::read`]. If a chunk in the middle is damaged, what was written before it is of no use.
    pub fn read_to_writer(
        &mut self,
        choice: SetChoice,
        writer: &mut impl Write,
    ) -> Result<SetRead> {
        self.read(choice, &mut StreamSink::new(writer))
    }

    /// Reads several sets at one time: their chunks are in flight together. Each goes to the sink of the same index.
    ///
    /// # Errors
    /// For all: [`ClientError::Invalid`] if there are not as many sinks as sets; [`ClientError::ConnectionLost`],
    /// [`ClientError::TimedOut`]; [`ClientError::Io`] when a sink fails. For one: [`ClientError::NoSuchSet`], [`ClientError::Damaged`].
    pub fn read_sets<S: SetSink>(
        &mut self,
        numbers: &[SetNumber],
        sinks: &mut [S],
    ) -> Result<Vec<Result<SetRead>>> {
        if numbers.len() != sinks.len() {
            return Err(ClientError::Invalid(
                "as many sinks as sets are needed".into(),
            ));
        }
        let mut recoveries: Vec<_> = numbers
            .iter()
            .map(|number| self.recovery(Goal::Number(*number)))
            .collect();
        self.fetcher.run(&mut self.region, &mut recoveries, sinks)?;
        Ok(numbers
            .iter()
            .zip(&recoveries)
            .map(|(number, recovery)| self.outcome(Goal::Number(*number), recovery))
            .collect())
    }

    /// Reads the newest set that is whole, published or not, for a program that takes over. Fence the region first: only then is a set
    /// that stands behind the published one known to be finished. An older kept set is taken only where the newer ones are damaged, and a
    /// finding says so.
    ///
    /// # Errors
    /// As [`Self::read`]; [`ClientError::NoSuchSet`] if the region never held a set.
    pub fn recover(&mut self, sink: &mut impl SetSink) -> Result<SetRead> {
        self.read_goal(Goal::Newest, sink)
    }

    fn recovery(&self, goal: Goal) -> SetRecovery {
        SetRecovery::new(self.geometry, self.region.info.id, goal)
    }

    fn read_goal(&mut self, goal: Goal, sink: &mut impl SetSink) -> Result<SetRead> {
        let mut recovery = [self.recovery(goal)];
        self.fetcher
            .run(&mut self.region, &mut recovery, std::slice::from_mut(sink))?;
        self.outcome(goal, &recovery[0])
    }

    fn outcome(&self, goal: Goal, recovery: &SetRecovery) -> Result<SetRead> {
        outcome(&self.region, goal, recovery)
    }
}

/// What a recovery that has come to its end means for the caller.
pub(super) fn outcome(region: &Region, goal: Goal, recovery: &SetRecovery) -> Result<SetRead> {
    let findings = recovery.findings().to_vec();
    if let Some(set) = recovery.recovered() {
        return Ok(SetRead {
            set: SetInfo::of(set),
            findings,
        });
    }
    let text = |findings: &[Finding]| {
        findings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    };
    let Goal::Number(number) = goal else {
        if findings.is_empty() {
            return Err(no_such_set(&region.info.name, "committed set".into()));
        }
        return Err(ClientError::Damaged {
            region: region.name(),
            what: text(&findings),
        });
    };
    let about: Vec<_> = findings
        .into_iter()
        .filter(|finding| finding.is_of(number))
        .collect();
    if about.is_empty() {
        return Err(no_such_set(&region.info.name, format!("set {number}")));
    }
    Err(ClientError::Damaged {
        region: region.name(),
        what: text(&about),
    })
}
