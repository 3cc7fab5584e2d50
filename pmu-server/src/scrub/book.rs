//! What is known of the scrubs of each region, when the next is due, and the file that remembers it.
//!
//! Losing the file costs no more than a scrub that comes sooner or later than it should: all a unit *must* remember is in its pools.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use pmu_format::{RegionEntry, RegionId, crc64_nvme};
use pmu_proto::v1;
use serde::{Deserialize, Serialize};

use super::config::ScrubSection;

/// Findings of a region that are kept, at most; the log has all.
pub(crate) const FINDINGS_MAX: usize = 8;
/// The longest time until a scrub that came to nothing is tried again, in seconds.
const RETRY_S_MAX: u64 = 3600;
/// The longest file, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
const VERSION: u32 = 1;

/// What a scrub of one region came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// What was damaged: chunks, sets or records.
    pub(crate) damaged: u64,
    /// How much of it is right now.
    pub(crate) repaired: u64,
    /// Members that could not be read.
    pub(crate) unreadable: u64,
    /// Everything that was found, for people.
    pub(crate) findings: Vec<String>,
}

/// What is remembered of one region. Times are seconds since 1970, 0 is never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    region: String,
    known_since_s: u64,
    /// A scrub began then and has not ended. In the file: the unit's process ended in the middle of it.
    begun_s: u64,
    finished_s: u64,
    by: String,
    bytes: u64,
    damaged: u64,
    repaired: u64,
    unreadable: u64,
    findings: Vec<String>,
    failure: String,
    retry_s: u64,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    version: u32,
    regions: HashMap<String, Record>,
}

#[derive(Debug, Default)]
struct Inner {
    records: HashMap<String, Record>,
    /// Which region is scrubbed now, and how many bytes of it were read.
    running: Option<(String, u64)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Book {
    unit: String,
    every_s: u64,
    rate_bytes_per_s: u64,
    repairs: bool,
    path: PathBuf,
    inner: Mutex<Inner>,
}

pub(crate) fn seconds(date: SystemTime) -> u64 {
    let since = date.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

impl Book {
    /// Reads what is remembered. A file that can't be read is begun anew, with a warning. Blocks.
    pub(crate) fn open(section: &ScrubSection, unit: &str, now_s: u64) -> Self {
        let mut records = match read(&section.state) {
            Ok(records) => records,
            Err(error) => {
                let file = section.state.display();
                tracing::warn!(%error, %file, "when regions were last scrubbed can't be read: it is begun anew");
                HashMap::new()
            }
        };
        let every_s = section.every.0;
        for record in records.values_mut().filter(|record| record.begun_s > 0) {
            tracing::warn!(
                region = record.region,
                "the unit ended in the middle of a scrub"
            );
            record.failure = "the unit ended in the middle of a scrub".into();
            record.retry_s = now_s + retry_s(every_s);
            record.begun_s = 0;
        }
        Self {
            unit: unit.to_owned(),
            every_s,
            rate_bytes_per_s: section.rate.0.0,
            repairs: section.repair,
            path: section.state.clone(),
            inner: Mutex::new(Inner {
                records,
                running: None,
            }),
        }
    }

    /// Takes in regions that are new, and forgets those that are gone.
    pub(crate) fn take_in(&self, regions: &[RegionEntry], now_s: u64) {
        let mut inner = self.inner.lock();
        let before = inner.records.len();
        let is_there = |id: &String| regions.iter().any(|entry| entry.id.to_string() == *id);
        inner.records.retain(|id, _| is_there(id));
        let mut changed = inner.records.len() != before;
        for entry in regions {
            inner
                .records
                .entry(entry.id.to_string())
                .or_insert_with(|| {
                    changed = true;
                    Record {
                        region: entry.name.to_string(),
                        known_since_s: now_s,
                        ..Record::default()
                    }
                });
        }
        drop(inner);
        if changed {
            self.save();
        }
    }

    /// When a region is to be scrubbed. `turn` is the place of this unit among those that could do it: each gives the ones before it time.
    pub(crate) fn due_s(&self, id: &RegionId, turn: u64, now_s: u64) -> u64 {
        let inner = self.inner.lock();
        let record = inner.records.get(&id.to_string());
        record.map_or(u64::MAX, |record| self.due_of(record, id, turn, now_s))
    }

    fn due_of(&self, record: &Record, id: &RegionId, turn: u64, now_s: u64) -> u64 {
        // A clock that was set back must not put anything off for longer than it would be otherwise.
        let known = record.known_since_s.min(now_s);
        let regular = match record.finished_s {
            0 => known + self.first_wait_s(id),
            finished => finished.min(now_s) + self.every_s + turn * self.turn_s(),
        };
        regular.max(record.retry_s.min(now_s + retry_s(self.every_s)))
    }

    /// The first scrub comes at a moment between now and the interval that is another one for every unit and region, and always the same.
    fn first_wait_s(&self, id: &RegionId) -> u64 {
        let mut seed = self.unit.clone().into_bytes();
        seed.extend_from_slice(id.as_bytes());
        crc64_nvme(&seed) % self.every_s.max(1)
    }

    fn turn_s(&self) -> u64 {
        (self.every_s / 50).max(60)
    }

    /// A scrub begins. It is remembered before the first byte is read.
    pub(crate) fn begin(&self, id: &RegionId, now_s: u64) {
        let key = id.to_string();
        self.change(id, |record| record.begun_s = now_s.max(1));
        self.inner.lock().running = Some((key, 0));
    }

    /// So many bytes more were read.
    pub(crate) fn advance(&self, bytes: u64) {
        if let Some((_, done)) = &mut self.inner.lock().running {
            *done += bytes;
        }
    }

    /// It ended.
    pub(crate) fn finish(&self, id: &RegionId, now_s: u64, mut outcome: Outcome) {
        outcome.findings.truncate(FINDINGS_MAX);
        self.inner.lock().running = None;
        self.change(id, |record| {
            *record = Record {
                region: std::mem::take(&mut record.region),
                known_since_s: record.known_since_s,
                begun_s: 0,
                finished_s: now_s,
                by: self.unit.clone(),
                bytes: outcome.bytes,
                damaged: outcome.damaged,
                repaired: outcome.repaired,
                unreadable: outcome.unreadable,
                findings: outcome.findings,
                failure: String::new(),
                retry_s: 0,
            };
        });
    }

    /// Another unit has ended one of the same spread region.
    pub(crate) fn finished_by(&self, id: &RegionId, finished_s: u64, by: &str) {
        self.change(id, |record| {
            *record = Record {
                region: std::mem::take(&mut record.region),
                known_since_s: record.known_since_s,
                finished_s,
                by: by.to_owned(),
                ..Record::default()
            };
        });
    }

    /// It came to nothing, and is tried again in a while.
    pub(crate) fn fail(&self, id: &RegionId, now_s: u64, why: &str) {
        self.inner.lock().running = None;
        self.change(id, |record| {
            record.begun_s = 0;
            record.failure = why.to_owned();
            record.retry_s = now_s + retry_s(self.every_s);
        });
    }

    /// It was cut short because the unit stops: the next start begins it again.
    pub(crate) fn give_up(&self, id: &RegionId) {
        self.inner.lock().running = None;
        self.change(id, |record| record.begun_s = 0);
    }

    /// When the last one ended.
    pub(crate) fn finished_s(&self, id: &RegionId) -> u64 {
        let inner = self.inner.lock();
        let record = inner.records.get(&id.to_string());
        record.map_or(0, |record| record.finished_s)
    }

    /// Whether the region is scrubbed now.
    pub(crate) fn is_running(&self, id: &RegionId) -> bool {
        let inner = self.inner.lock();
        let running = inner.running.as_ref();
        running.is_some_and(|(running, _)| *running == id.to_string())
    }

    /// Whether any region is scrubbed now, and how long ago the region was scrubbed that has waited longest, in seconds.
    pub(crate) fn summary(&self, now_s: u64) -> (bool, u64) {
        let inner = self.inner.lock();
        let ages = inner.records.values().map(|record| {
            let last = record.finished_s.max(record.known_since_s);
            now_s.saturating_sub(last)
        });
        (inner.running.is_some(), ages.max().unwrap_or(0))
    }

    /// What managers are told of one region.
    pub(crate) fn show(&self, id: &RegionId, turn: u64, now_s: u64) -> Option<v1::RegionScrub> {
        let inner = self.inner.lock();
        let key = id.to_string();
        let record = inner.records.get(&key)?;
        let running = inner
            .running
            .as_ref()
            .filter(|(running, _)| *running == key);
        Some(v1::RegionScrub {
            region: record.region.clone(),
            finished_s: record.finished_s,
            by: record.by.clone(),
            bytes: record.bytes,
            damaged: record.damaged,
            repaired: record.repaired,
            unreadable: record.unreadable,
            findings: record.findings.clone(),
            due_s: self.due_of(record, id, turn, now_s),
            failure: record.failure.clone(),
            running: running.is_some(),
            bytes_done: running.map_or(0, |(_, bytes)| *bytes),
        })
    }

    /// How the unit scrubs; the regions are to be added.
    pub(crate) fn settings(&self) -> v1::Scrubbing {
        v1::Scrubbing {
            every_s: self.every_s,
            rate_bytes_per_s: self.rate_bytes_per_s,
            repairs: self.repairs,
            regions: Vec::new(),
        }
    }

    fn change(&self, id: &RegionId, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.inner.lock().records.get_mut(&id.to_string()) {
            change(record);
        }
        self.save();
    }

    /// Replaces the file as a whole: it is the old one or the new one, wherever this is cut short. The worker alone calls it.
    fn save(&self) {
        let regions = self.inner.lock().records.clone();
        let remembered = Remembered {
            version: VERSION,
            regions,
        };
        if let Err(error) = write(&self.path, &remembered) {
            let file = self.path.display();
            tracing::warn!(%error, %file, "when regions were scrubbed can't be remembered");
        }
    }
}

fn retry_s(every_s: u64) -> u64 {
    (every_s / 8).clamp(1, RETRY_S_MAX)
}

fn read(path: &Path) -> io::Result<HashMap<String, Record>> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(error),
    };
    if length > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too long"));
    }
    let remembered: Remembered = serde_json::from_slice(&fs::read(path)?)?;
    if remembered.version != VERSION {
        let version = remembered.version;
        return Err(io::Error::other(format!("version {version} is not known")));
    }
    Ok(remembered.regions)
}

fn write(path: &Path, remembered: &Remembered) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(remembered)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrub::config::{ByteRate, Span};

    const DAY: u64 = 86_400;
    const NOW: u64 = 1_800_000_000;

    fn section(directory: &Path) -> ScrubSection {
        ScrubSection {
            every: Span(7 * DAY),
            rate: ByteRate(crate::config::ByteSize(50 << 20)),
            repair: true,
            state: directory.join("scrub.json"),
            identity: None,
        }
    }

    fn entry(number: u8) -> RegionEntry {
        RegionEntry {
            id: RegionId([number; 16]),
            name: pmu_format::RegionName::new(&format!("r{number}")).unwrap(),
            mode: pmu_format::Mode::Overwrite,
            state: pmu_format::RegionState::Active,
            need: pmu_format::Need::Durable,
            sets_kept: 1,
            base: pmu_format::VirtualAddress(0),
            length_bytes: 0,
            capacity_bytes: 0,
            epoch: pmu_format::Epoch(0),
            created_seconds: 0,
            extents: Vec::new(),
            grants: Vec::new(),
            attributes: Vec::new(),
        }
    }

    #[test]
    fn b07_first_scrubs_are_spread_over_the_interval() {
        let directory = tempfile::tempdir().unwrap();
        let section = section(directory.path());
        let (mut soonest, mut latest) = (u64::MAX, 0);
        for number in 0..64 {
            let unit = format!("unit-{number}");
            let book = Book::open(&section, &unit, NOW);
            book.take_in(&[entry(1)], NOW);
            let due = book.due_s(&entry(1).id, 0, NOW);
            assert!((NOW..NOW + 7 * DAY).contains(&due));
            // The same after a restart, a day later.
            let again = Book::open(&section, &unit, NOW + DAY);
            assert_eq!(again.due_s(&entry(1).id, 0, NOW + DAY), due);
            (soonest, latest) = (soonest.min(due), latest.max(due));
            fs::remove_file(&section.state).unwrap();
        }
        assert!(soonest < NOW + DAY && latest > NOW + 6 * DAY);
    }

    #[test]
    fn b07_what_was_scrubbed_is_remembered_and_others_wait_for_their_turn() {
        let directory = tempfile::tempdir().unwrap();
        let section = section(directory.path());
        let book = Book::open(&section, "u", NOW);
        book.take_in(&[entry(1), entry(2)], NOW);
        let id = entry(1).id;
        book.begin(&id, NOW);
        book.advance(7);
        let shown = book.show(&id, 0, NOW).unwrap();
        assert!(shown.running && shown.bytes_done == 7 && book.is_running(&id));
        let outcome = Outcome {
            bytes: 9,
            damaged: 20,
            findings: vec!["x".into(); 20],
            ..Outcome::default()
        };
        book.finish(&id, NOW + 5, outcome);
        let book = Book::open(&section, "u", NOW + DAY);
        let shown = book.show(&id, 0, NOW + DAY).unwrap();
        assert_eq!(
            (shown.finished_s, shown.bytes, shown.damaged),
            (NOW + 5, 9, 20)
        );
        assert_eq!(
            (shown.findings.len(), shown.by.as_str()),
            (FINDINGS_MAX, "u")
        );
        assert_eq!(shown.due_s, NOW + 5 + 7 * DAY);
        let later = book.due_s(&id, 2, NOW + DAY);
        assert_eq!(later, shown.due_s + 2 * (7 * DAY / 50));
        // The clock was set back by a year: it doesn't take a year.
        let early = NOW - 365 * DAY;
        assert!(book.due_s(&id, 0, early) <= early + 7 * DAY);
        // The other region has waited since it is known.
        assert_eq!(book.summary(NOW + DAY), (false, DAY));
        // A region that is gone is forgotten.
        book.take_in(&[entry(2)], NOW);
        assert!(Book::open(&section, "u", NOW).show(&id, 0, NOW).is_none());
    }

    #[test]
    fn b07_a_scrub_that_came_to_nothing_is_tried_again_and_not_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let section = section(directory.path());
        let (id, late) = (entry(1).id, NOW + 8 * DAY);
        let book = Book::open(&section, "u", NOW);
        book.take_in(&[entry(1)], NOW);
        assert!(book.due_s(&id, 0, late) <= late);
        book.fail(&id, late, "nobody answers");
        assert_eq!(book.due_s(&id, 0, late), late + RETRY_S_MAX);
        assert_eq!(book.show(&id, 0, late).unwrap().failure, "nobody answers");
        // A process that died in the middle, perhaps of what it read.
        book.begin(&id, late + DAY);
        let book = Book::open(&section, "u", late + DAY);
        assert_eq!(book.due_s(&id, 0, late + DAY), late + DAY + RETRY_S_MAX);
        // One that was stopped.
        book.begin(&id, late + 2 * DAY);
        book.give_up(&id);
        let book = Book::open(&section, "u", late + 2 * DAY);
        assert!(book.due_s(&id, 0, late + 2 * DAY) <= late + 2 * DAY);
    }

    #[test]
    fn b07_a_file_that_is_none_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let section = section(directory.path());
        for bytes in ["", "{", "[1]", "{\"version\": 2, \"regions\": {}}"] {
            fs::write(&section.state, bytes).unwrap();
            let book = Book::open(&section, "u", NOW);
            book.take_in(&[entry(1)], NOW);
            assert!(book.show(&entry(1).id, 0, NOW).is_some());
            let again = Book::open(&section, "u", NOW);
            assert!(again.show(&entry(1).id, 0, NOW).is_some(), "{bytes}");
        }
    }
}
