//! What a program holds to have its arena stored again and again.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use pmu_arena::{Arena, Cpus, Report};
use pmu_format::LogPosition;

use crate::error::ClientError;
use crate::options::OpenOptions;
use crate::snapshot::error::{SnapshotError, SnapshotResult};
use crate::snapshot::place::SnapshotRegion;
use crate::snapshot::report::SnapshotReport;
use crate::snapshot::store::Store;
use crate::snapshot::worker::{Job, Worker};

/// How snapshots are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// How the region is opened.
    pub open: OpenOptions,
    /// Every so manieth snapshot is a full one: 1 makes all full. Never more than the region keeps sets, which is what keeps a chain
    /// whole. None: half as many (at least 2, where two are kept), so that an earlier whole chain is there too.
    pub full_every: Option<NonZeroU32>,
    /// Processors of the thread that freezes and sends. Keep it off those that the program uses.
    pub cpus: Cpus,
}

impl SnapshotOptions {
    /// The defaults: any processor.
    #[must_use]
    pub fn new() -> Self {
        Self {
            open: OpenOptions::new(),
            full_every: None,
            cpus: Cpus::Inherited,
        }
    }

    /// Sets how the region is opened.
    #[must_use]
    pub fn open(mut self, open: OpenOptions) -> Self {
        self.open = open;
        self
    }

    /// Sets how often a snapshot is a full one.
    #[must_use]
    pub const fn full_every(mut self, snapshots: NonZeroU32) -> Self {
        self.full_every = Some(snapshots);
        self
    }

    /// Sets the processors of the thread that freezes and sends.
    #[must_use]
    pub fn cpus(mut self, cpus: Cpus) -> Self {
        self.cpus = cpus;
        self
    }
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// What the handle and its thread share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// A snapshot is under way.
    pub(super) busy: AtomicBool,
    /// The thread is to give up what it is at, and end.
    pub(super) stop: AtomicBool,
    pub(super) last: std::sync::Mutex<Option<SnapshotReport>>,
}

impl Shared {
    pub(super) fn last(&self) -> std::sync::MutexGuard<'_, Option<SnapshotReport>> {
        // Plain data: nothing about it is half done.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes snapshots of an arena into a region, one at a time, while the program runs.
///
/// A thread of its own freezes the arena and sends the pages; it is the region's only primary. The program may write to the arena at any
/// time; changes that have to be whole are made under [`Arena::writing`].
///
/// After an error the program runs on, and the next snapshot holds what this one would have held. A primary that lost its unit opens the
/// region again with the next snapshot, unless an epoch was given out meanwhile: then it counts as fenced, and every later snapshot fails
/// with [`ClientError::Fenced`].
///
/// May be used from any thread. Dropping it gives up what is under way, and blocks until that is done (at most
/// [`crate::Timeouts::stall`] where the unit doesn't answer).
#[derive(Debug)]
pub struct Snapshots {
    arena: Arc<Arena>,
    region: SnapshotRegion,
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    full_every: u32,
}

/// A snapshot that is frozen and on its way. Dropping it doesn't end the snapshot.
#[derive(Debug)]
pub struct PendingSnapshot {
    frozen: Report,
    done: Receiver<SnapshotResult<SnapshotReport>>,
}

impl Snapshots {
    /// Opens the region as its primary. Nothing is frozen or sent yet.
    ///
    /// # Errors
    /// [`SnapshotError::TooLarge`], with both figures, for an arena that doesn't fit; [`SnapshotError::Client`]: as
    /// [`crate::Unit::open_sets_primary`] and [`crate::Spread::open_primary`]; [`SnapshotError::Arena`] where the thread can't have its
    /// processors.
    pub fn open(
        arena: Arc<Arena>,
        region: SnapshotRegion,
        options: &SnapshotOptions,
    ) -> SnapshotResult<Self> {
        let store = region.open_primary(&options.open)?;
        Self::over(arena, region, store, options)
    }

    pub(super) fn over(
        arena: Arc<Arena>,
        region: SnapshotRegion,
        store: Store,
        options: &SnapshotOptions,
    ) -> SnapshotResult<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(
            Arc::clone(&arena),
            region.clone(),
            store,
            options,
            Arc::clone(&shared),
        )?;
        let full_every = worker.full_every();
        let (jobs, heard) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let cpus = options.cpus.clone();
        let thread = std::thread::Builder::new()
            .name("snapshots".to_owned())
            .spawn(move || {
                let pinned = cpus.pin_this_thread();
                let go_on = pinned.is_ok();
                let _ = ready.send(pinned);
                if go_on {
                    worker.run(&heard);
                }
            })
            .map_err(ClientError::io("start a thread"))?;
        let snapshots = Self {
            arena,
            region,
            shared,
            jobs: Some(jobs),
            thread: Some(thread),
            full_every,
        };
        started.recv().map_err(|_| thread_is_gone())??;
        Ok(snapshots)
    }

    /// The arena.
    #[must_use]
    pub const fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The region.
    #[must_use]
    pub const fn region(&self) -> &SnapshotRegion {
        &self.region
    }

    /// Every so manieth snapshot is a full one.
    #[must_use]
    pub const fn full_every(&self) -> u32 {
        self.full_every
    }

    /// Takes a snapshot and returns when it is durable (by the region's persistence method, as the receipt says). The calling thread must
    /// hold no [`pmu_arena::Writing`] guard; other threads go on but for the pause.
    ///
    /// # Errors
    /// [`SnapshotError::UnderWay`]; [`SnapshotError::Arena`]; [`SnapshotError::Client`]: as [`crate::SetPrimary::commit`] and
    /// [`crate::Unit::open_sets_primary`]; [`SnapshotError::Ended`].
    pub fn snapshot(&self) -> SnapshotResult<SnapshotReport> {
        self.begin()?.wait()
    }

    /// Freezes the arena, and returns while its pages are sent: what the calling thread wrote before is in the snapshot, and what it
    /// writes from now on isn't.
    ///
    /// # Errors
    /// As [`Self::snapshot`], as far as freezing goes.
    pub fn begin(&self) -> SnapshotResult<PendingSnapshot> {
        self.begin_with(None)
    }

    /// As [`Self::begin`], of a program that keeps a log too: the arena holds everything that the log has before `position`
    /// ([`crate::LogPrimary::submitted`], once those records are durable: no snapshot is to be ahead of the log). The set's label ends with
    /// it (` @POSITION`): an agent clears the log up to there, and hands the records behind it to the next instance.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_covering(&self, position: LogPosition) -> SnapshotResult<PendingSnapshot> {
        self.begin_with(Some(position))
    }

    fn begin_with(&self, covered: Option<LogPosition>) -> SnapshotResult<PendingSnapshot> {
        if self.shared.busy.swap(true, Ordering::AcqRel) {
            return Err(SnapshotError::UnderWay);
        }
        let (frozen, was_frozen) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let sent = match &self.jobs {
            Some(jobs) => jobs
                .send(Job {
                    covered,
                    frozen,
                    done,
                })
                .is_ok(),
            None => false,
        };
        let heard = sent.then(|| was_frozen.recv().ok()).flatten();
        let Some(frozen) = heard else {
            self.shared.busy.store(false, Ordering::Release);
            return Err(thread_is_gone());
        };
        let frozen = frozen?;
        Ok(PendingSnapshot {
            frozen,
            done: is_done,
        })
    }

    /// Whether a snapshot is under way.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.shared.busy.load(Ordering::Acquire)
    }

    /// The last snapshot that was stored by this value.
    #[must_use]
    pub fn last(&self) -> Option<SnapshotReport> {
        self.shared.last().clone()
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl PendingSnapshot {
    /// How it was frozen; what is copied aside later is in the [`SnapshotReport`].
    #[must_use]
    pub const fn frozen(&self) -> &Report {
        &self.frozen
    }

    /// Blocks until the snapshot is durable.
    ///
    /// # Errors
    /// As [`Snapshots::snapshot`]: why it is not stored.
    pub fn wait(self) -> SnapshotResult<SnapshotReport> {
        self.done.recv().unwrap_or_else(|_| Err(thread_is_gone()))
    }

    /// What became of it, if that is known yet; to be asked until it is, and then no more.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn poll(&self) -> Option<SnapshotResult<SnapshotReport>> {
        match self.done.try_recv() {
            Ok(done) => Some(done),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(thread_is_gone())),
        }
    }
}

fn thread_is_gone() -> SnapshotError {
    SnapshotError::Ended {
        reason: "the thread that sends them has ended".to_owned(),
    }
}
