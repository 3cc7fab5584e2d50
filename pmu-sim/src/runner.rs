//! Runs schedules: one, or many side by side.

use std::collections::HashSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::context::Context;
use crate::scenario::Scenario;
use crate::state::{State, Totals};
use crate::threads::Threads;
use crate::trace::Recording;
use crate::world::World;

/// What a schedule came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The name of its scenario.
    pub scenario: &'static str,
    /// What was not as it must be, if anything.
    pub violation: Option<String>,
    /// The same for the same seed: it tells every choice.
    pub fingerprint: u64,
    /// What happened, in numbers.
    pub totals: Totals,
    /// Where programs and units were struck.
    pub crash_points: Vec<u64>,
    /// The trace, where it was asked for.
    pub lines: Vec<String>,
}

/// A schedule that failed.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Failed {
    /// Its seed.
    pub seed: u64,
    /// The name of its scenario.
    pub scenario: String,
    /// What was not as it must be.
    pub violation: String,
}

/// What many schedules came to.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Schedules run.
    pub schedules: u64,
    /// The failed ones, in the order of their seeds.
    pub failed: Vec<Failed>,
    /// Sums.
    pub totals: Totals,
    /// Places at which something was struck.
    pub crash_points: HashSet<u64>,
    /// How long it took.
    pub took: Duration,
}

impl Summary {
    /// Schedules in a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.schedules as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Which schedules to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first seed.
    pub first_seed: u64,
    /// How many.
    pub seeds: u64,
    /// The distance between two seeds; 1: one after the other.
    pub every: u64,
    /// Only this scenario.
    pub scenario: Option<&'static Scenario>,
    /// Worlds side by side.
    pub lanes: usize,
    /// Ends after so many failed ones.
    pub failures_max: usize,
}

/// What a run of schedules needs of the machine. Not shared by lanes.
struct Lane {
    threads: Threads,
    nothing: Arc<File>,
}

impl Lane {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            threads: Threads::default(),
            nothing: Arc::new(File::open("/dev/null")?),
        })
    }

    fn run(&self, seed: u64, scenario: Option<&'static Scenario>, recording: Recording) -> Outcome {
        let scenario = scenario.unwrap_or_else(|| Scenario::of_seed(seed));
        let mut state = State::new(seed, scenario.name, recording);
        let me = state.add_process("checker", true);
        let world = World::new(state, Arc::clone(&self.nothing));
        (scenario.run)(&Context::new(Arc::clone(&world), me, self.threads.clone()));
        let mut state = world.state();
        Outcome {
            seed,
            scenario: scenario.name,
            violation: state.violation.take(),
            fingerprint: state.trace.fingerprint(),
            totals: state.totals,
            crash_points: std::mem::take(&mut state.crash_points)
                .into_iter()
                .collect(),
            lines: state.trace.take_lines(),
        }
    }
}

/// Runs one schedule.
///
/// # Errors
/// The machine refuses a file descriptor.
pub fn run_one(
    seed: u64,
    scenario: Option<&'static Scenario>,
    recording: Recording,
) -> std::io::Result<Outcome> {
    Ok(Lane::new()?.run(seed, scenario, recording))
}

#[derive(Default)]
struct Gathered {
    failed: Vec<Failed>,
    totals: Totals,
    crash_points: HashSet<u64>,
}

/// Runs many schedules; `progress` hears after each how many are done, and says whether to go on.
///
/// # Errors
/// The machine refuses a file descriptor.
pub fn run_many(
    plan: &Plan,
    progress: impl Fn(u64) -> ControlFlow<()> + Sync,
) -> std::io::Result<Summary> {
    let begun = Instant::now();
    let (next, done, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let gathered = Mutex::new(Gathered::default());
    std::thread::scope(|scope| {
        let work = || -> std::io::Result<()> {
            let lane = Lane::new()?;
            while !over.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= plan.seeds {
                    break;
                }
                let seed = plan.first_seed.wrapping_add(index.wrapping_mul(plan.every));
                let outcome = lane.run(seed, plan.scenario, Recording::Off);
                let mut gathered = gathered.lock();
                gathered.totals.add(&outcome.totals);
                gathered.crash_points.extend(&outcome.crash_points);
                if let Some(violation) = outcome.violation {
                    gathered.failed.push(Failed {
                        seed,
                        scenario: outcome.scenario.to_owned(),
                        violation,
                    });
                    over.fetch_or(
                        gathered.failed.len() >= plan.failures_max,
                        Ordering::Relaxed,
                    );
                }
                drop(gathered);
                if progress(done.fetch_add(1, Ordering::Relaxed) + 1).is_break() {
                    over.store(true, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        let lanes: Vec<_> = (0..plan.lanes.max(1)).map(|_| scope.spawn(work)).collect();
        lanes.into_iter().try_for_each(|lane| match lane.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let mut gathered = gathered.into_inner();
    gathered.failed.sort_by_key(|outcome| outcome.seed);
    Ok(Summary {
        schedules: done.into_inner(),
        failed: gathered.failed,
        totals: gathered.totals,
        crash_points: gathered.crash_points,
        took: begun.elapsed(),
    })
}
