//! One spread region with its primary, and a checkpoint that is written and read.

use std::io::IoSlice;
use std::path::Path;
use std::time::Instant;

use pmu_client::{Counters, Label, Layout, SetChoice, Spread, SpreadPrimary};
use tempfile::TempDir;

use crate::measure::Failure;
use crate::process::ended_cpu_s;
use crate::site::Site;
use crate::spread::units::Units;
use crate::spread::used::Used;

/// Commits after which every slot was written once: mapping fresh memory is slow.
const WARM_UP_COMMITS: usize = 3;
/// Bytes of a page: one byte of each is changed before a set is read back.
const PAGE_BYTES: usize = 4096;

/// Units, a primary, and a payload that is there already.
pub(crate) struct Bed {
    primary: SpreadPrimary,
    reading: Spread,
    /// Written from, and read back into.
    pub(crate) payload: Vec<u8>,
    units: Units,
    used: Used,
    rebuilding: Used,
    _folder: TempDir,
}

impl Bed {
    /// Units for the layout in a folder below `parent`, and a payload of `bytes`.
    pub(crate) fn start(parent: &Path, layout: Layout, bytes: usize) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in(parent)?;
        let units = Units::start(folder.path(), layout, bytes as u64)?;
        let mut payload = vec![0; bytes];
        for (index, word) in payload.as_chunks_mut().0.iter_mut().enumerate() {
            *word = pattern(index);
        }
        Ok(Self {
            primary: units.find()?.open_primary(&Site::options())?,
            reading: units.find()?,
            payload,
            units,
            used: Used::default(),
            rebuilding: Used::default(),
            _folder: folder,
        })
    }

    /// Writes every slot once.
    pub(crate) fn warm_up(&mut self) -> Result<(), Failure> {
        (0..WARM_UP_COMMITS).try_for_each(|_| self.commit_ms().map(drop))
    }

    /// Commits the payload on all units; milliseconds.
    pub(crate) fn commit_ms(&mut self) -> Result<f64, Failure> {
        let expected = self.primary.spread().layout().units();
        let Self {
            primary,
            payload,
            units,
            used,
            ..
        } = self;
        let (receipt, ms) = used.during(
            payload.len(),
            || units.cpu_s(),
            || {
                let begun = Instant::now();
                let receipt = primary.commit(&[IoSlice::new(payload)], Label::default())?;
                Ok((receipt, begun.elapsed().as_secs_f64() * 1e3))
            },
        )?;
        match receipt.units.len() {
            count if count == expected => Ok(ms),
            count => Err(format!("committed on {count} of {expected} units").into()),
        }
    }

    /// Reads the newest set over the payload, and checks every byte; milliseconds for the reading alone. The reader is opened before.
    pub(crate) fn read_ms(&mut self, degraded: bool) -> Result<f64, Failure> {
        let Self {
            reading,
            payload,
            units,
            used,
            ..
        } = self;
        let pages = payload.iter_mut().step_by(PAGE_BYTES);
        pages.for_each(|byte| *byte = !*byte);
        let mut reader = reading.open_reader(&Site::options())?;
        let (read, ms) = used.during(
            payload.len(),
            || units.cpu_s(),
            || {
                let begun = Instant::now();
                let read = reader.read(SetChoice::Newest, payload)?;
                Ok((read, begun.elapsed().as_secs_f64() * 1e3))
            },
        )?;
        if read.reconstructed != degraded {
            let missing = read.missing;
            return Err(format!("reconstructed: {}, missing: {missing:?}", !degraded).into());
        }
        let mut words = payload.as_chunks().0.iter().enumerate();
        if words.any(|(index, word)| *word != pattern(index)) {
            return Err("read other bytes than were committed".into());
        }
        Ok(ms)
    }

    /// Loses the first unit for good.
    pub(crate) fn lose_a_unit(&mut self) -> Result<(), Failure> {
        self.units.kill(0);
        self.reading = self.units.find()?;
        Ok(())
    }

    /// Loses a unit for good and puts another in its place; milliseconds, and the bytes that were read of the others.
    pub(crate) fn rebuild_ms(&mut self) -> Result<(f64, u64), Failure> {
        let replacement = self.units.begin_replacing()?;
        let Self {
            payload,
            units,
            rebuilding,
            ..
        } = self;
        let (bytes_read, ms) = rebuilding.during_of(
            payload.len(),
            ended_cpu_s,
            || units.cpu_s(),
            || {
                let begun = Instant::now();
                let bytes_read = units.replace(&replacement)?;
                Ok((bytes_read, begun.elapsed().as_secs_f64() * 1e3))
            },
        )?;
        Ok((ms, bytes_read))
    }

    /// Processor time of rebuilds since the last note.
    pub(crate) fn rebuild_note(&mut self) -> String {
        let used = self.rebuilding.take("pmm", "units");
        format!("CPU for each GiB of a checkpoint: {used}")
    }

    /// What the primary's connections have done.
    pub(crate) fn counters(&self) -> Counters {
        self.primary.counters()
    }

    /// Milliseconds for the payload as MiB/s.
    pub(crate) fn rate(&self, ms: f64) -> f64 {
        self.payload.len() as f64 / f64::from(1 << 20) / ms * 1e3
    }

    /// The medium, and processor time since the last note.
    pub(crate) fn note(&mut self) -> String {
        let used = self.used.take("client", "units");
        format!("memory, not durable; CPU for each GiB: {used}")
    }
}

/// Eight bytes of the payload, of which no two are alike.
fn pattern(index: usize) -> [u8; 8] {
    (index as u64 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_le_bytes()
}
