//! What the instances of a run say of themselves, and what an onlooker finds in the log meanwhile: from both [`leaders`](crate::leaders) judges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{DemoError, Result};
use crate::event::Event;
use crate::leaders::{Commit, Found, Instance, Log, check};
use crate::store::{Follower, Place};

/// How much of the log is read at a time.
const READ_BYTES: usize = 256 << 10;
/// Between two looks where nothing new was found.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Between two attempts to reach the log, as when the others have cleared what was to be read next.
const RETRY: Duration = Duration::from_millis(20);
/// So long the log is tried to be read to its end when the run is over.
const LAST_READING: Duration = Duration::from_secs(5);

/// The instances that led, as they told it.
#[derive(Debug)]
pub struct History {
    /// What the sources of events are called.
    names: [&'static str; 2],
    instances: Vec<Instance>,
    /// Which instance each source speaks of.
    current: [Option<usize>; 2],
}

impl History {
    /// Of two sources of events. Each may have more than one instance, one after the other.
    #[must_use]
    pub fn new(names: [&'static str; 2]) -> Self {
        Self {
            names,
            instances: Vec::new(),
            current: [None; 2],
        }
    }

    /// Takes in what an event says of leading; others say nothing of it.
    ///
    /// # Errors
    /// [`DemoError::Unusable`] for a commit before the regions were open.
    pub fn heard(&mut self, which: usize, event: &Event) -> Result<()> {
        match event {
            Event::Opened {
                at_ns,
                pid,
                epoch,
                fenced_ns,
                documents,
            } => {
                self.current[which] = Some(self.instances.len());
                self.instances.push(Instance {
                    name: format!("{} (process {pid})", self.names[which]),
                    epoch: *epoch,
                    fenced_ns: *fenced_ns,
                    opened_ns: *at_ns,
                    began_with: (*documents).into(),
                    commits: Vec::new(),
                });
                Ok(())
            }
            Event::Acknowledged { commits, .. } => self.committed(which, commits),
            Event::Committed { commit, .. } => self.committed(which, &[*commit]),
            _ => Ok(()),
        }
    }

    fn committed(&mut self, which: usize, commits: &[Commit]) -> Result<()> {
        let Some(current) = self.current[which] else {
            let name = self.names[which];
            return Err(DemoError::Unusable(format!(
                "{name} committed before it had opened the regions"
            )));
        };
        self.instances[current].commits.extend(commits);
        Ok(())
    }

    /// Why a run has failed. Where two led, that is why, whatever else came of it: programs that wait in vain, or a log that can't be read.
    #[must_use]
    pub fn explain(&self, error: DemoError, onlooker: Option<Onlooker>) -> DemoError {
        let found = onlooker.map(|onlooker| onlooker.found().0);
        match self.judge(&found.unwrap_or_default()).violation {
            Some(violation) => DemoError::Unusable(format!("{violation}; then: {error}")),
            None => error,
        }
    }

    /// What comes of both. A violation is a text.
    #[must_use]
    pub fn judge(&self, log: &Log) -> Leading {
        match check(&self.instances, log) {
            Ok(verdict) => Leading {
                instances: verdict.led,
                commits: verdict.commits,
                log_records: verdict.records,
                apart_ms: verdict.apart_ns.map(|ns| ns as f64 / 1e6),
                violation: None,
            },
            Err(violation) => Leading {
                violation: Some(violation),
                ..Leading::default()
            },
        }
    }
}

/// Who led, and whether that was never more than one at a time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Leading {
    /// Instances that were told of a commit; 0 where there is a violation.
    pub instances: usize,
    /// Commits of records and sets that they were told of, each of which was checked.
    pub commits: u64,
    /// Records that were found in the log, each of which was checked.
    pub log_records: u64,
    /// The shortest time from the begin of a leader's last commit to the opening of the regions by the next one, in milliseconds.
    pub apart_ms: Option<f64>,
    /// Two instances led at one time, or something else that must not be.
    pub violation: Option<String>,
}

impl Leading {
    /// One led after the other, and that was seen: in what they were told, and in the log.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violation.is_none() && self.instances >= 2 && self.log_records > 0
    }

    /// In a few words.
    #[must_use]
    pub fn text(&self) -> String {
        match (&self.violation, self.apart_ms) {
            (Some(violation), _) => violation.clone(),
            (None, Some(apart)) if self.is_good() => {
                format!("{} led in turn, {apart:.1} ms apart", self.instances)
            }
            _ => format!(
                "NOT CHECKED: {} were seen to lead, and {} records in the log",
                self.instances, self.log_records
            ),
        }
    }
}

/// What was found, and why no more, if it wasn't all.
type Looked = (Log, Result<()>);

/// Reads the log while others write, take over and clear it, from a thread of its own. It changes nothing, and has no right to.
pub struct Onlooker {
    thread: Option<JoinHandle<Looked>>,
    over: Arc<AtomicBool>,
}

impl Onlooker {
    /// Begins to read.
    #[must_use]
    pub fn start(place: Place) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || look_on(&place, &told));
        Self {
            thread: Some(thread),
            over,
        }
    }

    /// Reads to the end of the log as it is now, and gives all that was found. Blocks for at most some seconds.
    ///
    /// # Errors
    /// [`DemoError::Client`] if the log can't be read.
    pub fn finish(self) -> Result<Log> {
        let (log, looked) = self.found();
        looked.map(|()| log)
    }

    /// The same of a run that has failed already: what was found, and why no more.
    pub fn found(mut self) -> Looked {
        self.over.store(true, Ordering::Release);
        let joined = self.thread.take().map(JoinHandle::join);
        let lost = || DemoError::Unusable("the log's onlooker has panicked".into());
        match joined {
            Some(Ok(looked)) => looked,
            _ => (Log::default(), Err(lost())),
        }
    }
}

impl Drop for Onlooker {
    /// A run that failed has no use for it.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

fn look_on(place: &Place, over: &AtomicBool) -> Looked {
    let mut log = Log::default();
    let mut over_since: Option<Instant> = None;
    loop {
        let looked = place
            .open_onlooker()
            .and_then(|mut reader| look_until(&mut reader, &mut log, over));
        let Err(error) = looked else {
            return (log, Ok(()));
        };
        // Others clear what they need no longer, and units are killed: what is left is read from its begin.
        if over.load(Ordering::Acquire)
            && over_since.get_or_insert_with(Instant::now).elapsed() > LAST_READING
        {
            return (log, Err(DemoError::client("look on at the log")(error)));
        }
        std::thread::sleep(RETRY);
    }
}

/// Until the run is over and the log was read to its end.
fn look_until(
    reader: &mut Follower,
    log: &mut Log,
    over: &AtomicBool,
) -> std::result::Result<(), pmu_client::ClientError> {
    loop {
        let last = over.load(Ordering::Acquire);
        let records = reader.read_unread(READ_BYTES)?;
        let some = records.len() > 0;
        for found in records {
            log.saw(Found {
                from: found.record.position.get(),
                to: found.record.mark.position().get(),
                epoch: found.record.epoch.get(),
            });
        }
        match (some, last) {
            (true, _) => {}
            (false, true) => return Ok(()),
            (false, false) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}
