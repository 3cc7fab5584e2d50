//! Scrubs the unit's regions by itself, one after the other, at a limited rate: reads what lies in them, holds it against its checksums, and
//! has spread regions repaired from their redundancy. It decides nothing about formats and layouts: `pmu-client` reads and repairs.

mod book;
pub mod clock;
pub mod config;
mod local;
mod spread;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use pmu_auth::Identity;
use pmu_client::verify::{self, Checked, Opened, Severity};
use pmu_client::{ClientError, LogBackup, SetReader};
use pmu_format::{Membership, Mode, RegionEntry, RegionId, RegionState};
use pmu_proto::v1;

use crate::metrics;
use crate::opening::exposed_extents;
use crate::state::UnitState;
use crate::unit::{StartError, client_identity};
use book::{Book, Outcome, seconds};
use clock::{Clock, Pace, Stop};
use config::ScrubSection;
use local::{Reading, Source};

/// How often it is looked what is due, at least: a unit may be unlocked, and regions may be made meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long a stopping unit waits for the thread. Reads of its own end at once; a connection to another unit may take longer, and ends with
/// the process.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// What the unit knows of its scrubs, as the control service and the metrics see it.
pub(crate) struct Scrubs {
    book: Arc<Book>,
    clock: Arc<dyn Clock>,
    identity: Option<Identity>,
}

/// The thread that scrubs.
pub(crate) struct Scrubber {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// How the scrub of one region ended.
enum End {
    Finished(Outcome),
    /// Another unit has done it.
    FinishedBy {
        finished_s: u64,
        unit: String,
    },
    /// The unit stops, or the region is gone.
    GivenUp,
    /// It is tried again in a while.
    Failed {
        why: String,
        is_expected: bool,
    },
}

impl Scrubs {
    /// Reads the identity and what is remembered. Blocks.
    ///
    /// # Errors
    /// [`StartError::Scrub`].
    pub(crate) fn open(
        section: &ScrubSection,
        unit: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let identity = section.identity.as_deref().map(client_identity);
        Ok(Self {
            book: Arc::new(Book::open(section, unit, seconds(clock.date()))),
            identity: identity.transpose().map_err(StartError::Scrub)?,
            clock,
        })
    }

    fn now_s(&self) -> u64 {
        seconds(self.clock.date())
    }

    /// The place of this unit among those that could scrub a region.
    fn turn(&self, entry: &RegionEntry) -> u64 {
        match (&self.identity, Membership::decode(&entry.attributes)) {
            (Some(_), Ok(membership)) => membership.own_index.into(),
            _ => 0,
        }
    }

    /// What managers are told of one region.
    pub(crate) fn show(&self, entry: &RegionEntry) -> Option<v1::RegionScrub> {
        self.book.show(&entry.id, self.turn(entry), self.now_s())
    }

    /// What managers are told of all.
    pub(crate) fn show_all(&self, entries: &[RegionEntry]) -> v1::Scrubbing {
        let mut regions: Vec<_> = entries
            .iter()
            .filter_map(|entry| self.show(entry))
            .collect();
        regions.sort_by(|one, other| one.region.cmp(&other.region));
        v1::Scrubbing {
            regions,
            ..self.book.settings()
        }
    }

    /// When the last scrub of a region ended, in seconds since 1970, and whether one is under way.
    pub(crate) fn times(&self, id: &RegionId) -> (u64, bool) {
        (self.book.finished_s(id), self.book.is_running(id))
    }

    pub(crate) fn set_metrics(&self) {
        let (is_running, oldest_s) = self.book.summary(self.now_s());
        metrics::set_scrubs(is_running, oldest_s);
    }
}

impl Scrubber {
    /// Starts the thread; none where the unit does not scrub.
    pub(crate) fn start(state: &Arc<UnitState>) -> Result<Option<Self>, StartError> {
        let (Some(scrubs), Some(section)) = (&state.scrubs, &state.config.scrub) else {
            return Ok(None);
        };
        let stop = Arc::new(Stop::default());
        let worker = Worker {
            state: Arc::downgrade(state),
            unit: state.unit_name().into(),
            book: Arc::clone(&scrubs.book),
            clock: Arc::clone(&scrubs.clock),
            identity: scrubs.identity.clone(),
            section: section.clone(),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name("scrub".into());
        let thread = thread
            .spawn(move || worker.run())
            .map_err(|error| StartError::CutShort(error.to_string()))?;
        Ok(Some(Self { stop, thread }))
    }

    /// Ends what is under way, and waits a moment for it.
    pub(crate) async fn stop(self) {
        self.stop.give();
        let until = tokio::time::Instant::now() + STOP_WITHIN;
        while !self.thread.is_finished() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

struct Worker {
    /// Not held while another unit is waited for: the pools must be closed then.
    state: Weak<UnitState>,
    unit: Arc<str>,
    book: Arc<Book>,
    clock: Arc<dyn Clock>,
    identity: Option<Identity>,
    section: ScrubSection,
    stop: Arc<Stop>,
}

impl Worker {
    fn run(&self) {
        while !self.stop.is_given() {
            let wait = self.step();
            self.clock.idle(wait, &self.stop);
        }
    }

    /// Scrubs the region that is due, if one is; how long nothing is due then.
    fn step(&self) -> Duration {
        let Some(state) = self.state.upgrade() else {
            return LOOK_EVERY;
        };
        let Some(scrubs) = state.scrubs.as_ref() else {
            return LOOK_EVERY;
        };
        if state.check_serving().is_err() {
            return LOOK_EVERY;
        }
        let entries = active(&state);
        let plain: Vec<_> = entries.iter().map(|(_, entry)| entry.clone()).collect();
        let now = scrubs.now_s();
        self.book.take_in(&plain, now);
        let due = |entry: &RegionEntry| self.book.due_s(&entry.id, scrubs.turn(entry), now);
        let next = entries
            .into_iter()
            .map(|(pool, entry)| (due(&entry), pool, entry));
        let next = next.min_by_key(|(due, _, entry)| (*due, entry.id));
        let Some((due, pool, entry)) = next else {
            return LOOK_EVERY;
        };
        if due > now {
            return LOOK_EVERY.min(Duration::from_secs(due - now));
        }
        let source = Source {
            memory: state.pools[pool].memory(),
            extents: exposed_extents(&entry),
            unit: Arc::clone(&self.unit),
            entry,
        };
        drop(state);
        self.scrub(source);
        Duration::ZERO
    }

    fn scrub(&self, source: Source) {
        let (id, name) = (source.entry.id, source.entry.name.clone());
        let end = match source.entry.attributes.is_empty() {
            true => {
                self.book.begin(&id, self.now_s());
                self.scrub_own(source)
            }
            false => {
                let entry = source.entry;
                drop(source.memory);
                self.scrub_spread(&entry)
            }
        };
        let now = self.now_s();
        match end {
            End::Finished(outcome) => {
                report(name.as_str(), &outcome);
                self.book.finish(&id, now, outcome);
            }
            End::FinishedBy { finished_s, unit } => {
                tracing::info!(region = %name, unit, "another unit has scrubbed it");
                self.book.finished_by(&id, finished_s, &unit);
            }
            End::GivenUp => self.book.give_up(&id),
            End::Failed { why, is_expected } => {
                metrics::count_scrub("failed");
                if is_expected {
                    tracing::info!(region = %name, why, "not scrubbed; it is tried again later");
                } else {
                    tracing::warn!(region = %name, why, "a scrub came to nothing; it is tried again later");
                }
                self.book.fail(&id, now, &why);
            }
        }
    }

    fn now_s(&self) -> u64 {
        seconds(self.clock.date())
    }

    /// Reads a region that lies in this unit alone.
    fn scrub_own(&self, source: Source) -> End {
        let bytes = Arc::new(AtomicU64::new(0));
        let (counted, book) = (Arc::clone(&bytes), Arc::clone(&self.book));
        let reading = Arc::new(Reading {
            clock: Arc::clone(&self.clock),
            stop: Arc::clone(&self.stop),
            pace: Mutex::new(Pace::new(self.section.rate.0.0)),
            on_read: Box::new(move |more| {
                counted.fetch_add(more, Ordering::Relaxed);
                book.advance(more);
                metrics::count_scrubbed(more);
            }),
        });
        let checked = verify::check(&mut || {
            let parts = source.parts(&reading).map_err(ClientError::Fabric)?;
            Ok(match source.entry.mode {
                Mode::Overwrite => Opened::Sets(Box::new(SetReader::over(parts)?)),
                Mode::Append => Opened::Log(Box::new(LogBackup::over(parts)?)),
            })
        });
        // What was erased meanwhile is not damaged.
        if self.stop.is_given() || !self.is_there(&source.entry) {
            return End::GivenUp;
        }
        let bytes = bytes.load(Ordering::Relaxed);
        match checked {
            Ok(checked) => End::Finished(outcome_of(&checked, bytes)),
            Err(ClientError::Damaged { what, .. }) => End::Finished(Outcome {
                bytes,
                damaged: 1,
                findings: vec![what],
                ..Outcome::default()
            }),
            Err(error) => End::Failed {
                why: error.to_string(),
                is_expected: matches!(error, ClientError::Invalid(_)),
            },
        }
    }

    fn is_there(&self, entry: &RegionEntry) -> bool {
        let Some(state) = self.state.upgrade() else {
            return false;
        };
        state
            .region(&entry.name)
            .is_ok_and(|region| region.id == entry.id)
    }
}

/// The regions in use, each with the index of its pool. Those of a pool that has failed are left alone.
fn active(state: &UnitState) -> Vec<(usize, RegionEntry)> {
    let pools = state.pools.iter().enumerate();
    let regions = pools
        .filter(|(_, pool)| !pool.has_failed())
        .flat_map(|(index, pool)| pool.entries().into_iter().map(move |entry| (index, entry)));
    regions
        .filter(|(_, entry)| entry.state == RegionState::Active)
        .collect()
}

fn outcome_of(checked: &Checked, bytes: u64) -> Outcome {
    let wrong = checked.findings.iter();
    let wrong = wrong.filter(|found| found.severity > Severity::Note);
    let findings: Vec<_> = wrong
        .map(|found| format!("{}: {}", found.part, found.detail))
        .collect();
    Outcome {
        bytes,
        damaged: findings.len() as u64,
        findings,
        ..Outcome::default()
    }
}

/// Tells the log and the metrics.
fn report(region: &str, outcome: &Outcome) {
    let Outcome {
        bytes,
        damaged,
        repaired,
        unreadable,
        findings,
    } = outcome;
    for finding in findings {
        tracing::warn!(region, finding, "found by a scrub");
    }
    let result = match damaged {
        0 => "sound",
        damaged if damaged > repaired => "damaged",
        _ => "repaired",
    };
    metrics::count_scrub(result);
    metrics::count_damage(*damaged, *repaired, *unreadable);
    if damaged > repaired {
        tracing::warn!(
            region,
            bytes,
            damaged,
            repaired,
            unreadable,
            "scrubbed: damaged"
        );
    } else {
        tracing::info!(region, bytes, damaged, repaired, unreadable, "scrubbed");
    }
}
