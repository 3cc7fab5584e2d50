//! The thread that freezes an arena and sends its pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pmu_arena::{Arena, Frozen, Report, Scope};
use pmu_format::{
    Label, LogPosition, SeriesId, SetNumber, SnapshotBase, SnapshotHeader, SnapshotKind,
};

use crate::error::ClientError;
use crate::options::OpenOptions;
use crate::receipt::Receipt;
use crate::snapshot::error::{SnapshotError, SnapshotResult};
use crate::snapshot::head;
use crate::snapshot::place::SnapshotRegion;
use crate::snapshot::report::SnapshotReport;
use crate::snapshot::store::{Store, WayBack};
use crate::snapshot::writer::{Shared, SnapshotOptions};

/// Pages are taken in pieces of so many bytes, which stay in the processor's cache on their way to the staging memory.
const PIECE_BYTES: usize = 128 << 10;

/// A snapshot that is asked for, and whom to tell.
pub(super) struct Job {
    /// What of a log the snapshot will hold.
    pub(super) covered: Option<LogPosition>,
    pub(super) frozen: Sender<SnapshotResult<Report>>,
    pub(super) done: Sender<SnapshotResult<SnapshotReport>>,
}

/// The chain that the next incremental snapshot would go on with.
#[derive(Debug, Clone, Copy)]
struct Chain {
    root: SetNumber,
    last: SetNumber,
    last_generation: u64,
}

/// See the module.
pub(super) struct Worker {
    arena: Arc<Arena>,
    region: SnapshotRegion,
    /// None after an error, until it is opened again.
    store: Option<Store>,
    way_back: Option<WayBack>,
    open: OpenOptions,
    full_every: u32,
    series: SeriesId,
    chain: Option<Chain>,
    /// Whether somebody took the region over, for all later calls.
    fenced: Option<(pmu_format::Epoch, pmu_format::Epoch)>,
    head: Vec<u8>,
    piece: Vec<u8>,
    shared: Arc<Shared>,
}

/// A frozen image, and what its set begins with.
struct Frame {
    image: Frozen,
    header: SnapshotHeader,
    label: Label,
    begun: Instant,
    frozen_after: Duration,
}

impl Worker {
    pub(super) fn new(
        arena: Arc<Arena>,
        region: SnapshotRegion,
        store: Store,
        options: &SnapshotOptions,
        shared: Arc<Shared>,
    ) -> SnapshotResult<Self> {
        head::check_arena(&arena)?;
        check_room(&arena, &region, &store)?;
        let mut series = SeriesId([0; 16]);
        getrandom::fill(&mut series.0)
            .map_err(|error| ClientError::Invalid(format!("draw a random number: {error}")))?;
        let kept = store.sets_kept().max(1);
        let by_default = (kept / 2).max(2);
        let asked = options.full_every.map_or(by_default, |every| every.get());
        Ok(Self {
            arena,
            region,
            way_back: store.way_back(&options.open),
            store: Some(store),
            open: options.open,
            full_every: asked.min(kept),
            series,
            chain: None,
            fenced: None,
            head: Vec::new(),
            piece: vec![0; PIECE_BYTES],
            shared,
        })
    }

    pub(super) const fn full_every(&self) -> u32 {
        self.full_every
    }

    /// Takes snapshots until nobody can ask for one any more.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let Job {
                covered,
                frozen,
                done,
            } = job;
            let frame = match self.freeze(covered) {
                Ok(frame) => frame,
                Err(error) => {
                    self.shared.busy.store(false, Ordering::Release);
                    let _ = frozen.send(Err(error));
                    continue;
                }
            };
            let _ = frozen.send(Ok(frame.image.report()));
            let outcome = self.send(frame);
            match &outcome {
                Ok(report) => *self.shared.last() = Some(report.clone()),
                Err(error) => {
                    tracing::warn!(region = self.region.name(), %error, "a snapshot is not stored");
                }
            }
            self.shared.busy.store(false, Ordering::Release);
            let _ = done.send(outcome);
        }
    }

    /// Makes sure that there is somewhere to send to, and freezes.
    fn freeze(&mut self, covered: Option<LogPosition>) -> SnapshotResult<Frame> {
        let begun = Instant::now();
        let next = self.ready()?;
        let chain = self
            .chain
            .filter(|chain| self.may_go_on(chain, next, covered));
        let scope = match chain {
            Some(_) => Scope::Changed,
            None => Scope::Full,
        };
        let mut image = self.arena.freeze(scope)?;
        let base = image.report().base;
        // Somebody else froze the arena in between: what changed since our last one isn't known.
        if base.is_some() && base != chain.map(|chain| chain.last_generation) {
            drop(image);
            image = self.arena.freeze(Scope::Full)?;
        }
        let kind = match (image.report().base, chain.as_ref()) {
            (Some(_), Some(chain)) => chain.kind(),
            _ => SnapshotKind::Full,
        };
        let header = head::encode(
            &self.arena,
            &image.report(),
            &image.runs(),
            self.series,
            kind,
            now_ns(),
            &mut self.head,
        );
        Ok(Frame {
            image,
            header,
            label: kind.label(covered).unwrap_or_default(),
            begun,
            frozen_after: begun.elapsed(),
        })
    }

    /// Whether an incremental snapshot in set `next` leaves its chain whole, also while the set behind it is written.
    fn may_go_on(&self, chain: &Chain, next: SetNumber, covered: Option<LogPosition>) -> bool {
        next.get().saturating_sub(chain.root.get()) < u64::from(self.full_every)
            && chain.kind().label(covered).is_some()
    }

    /// The number of the next set, of a primary that works as far as is known.
    fn ready(&mut self) -> SnapshotResult<SetNumber> {
        if let Some((epoch, own_epoch)) = self.fenced {
            return Err(SnapshotError::Client(ClientError::Fenced {
                region: self.region.name().to_owned(),
                epoch,
                own_epoch,
            }));
        }
        if let Some(store) = &self.store {
            return Ok(store.next());
        }
        let opened = match &self.way_back {
            Some(way_back) => way_back.open(&self.region),
            None => Err(ClientError::Ended {
                region: self.region.name().to_owned(),
            }),
        };
        let store = opened.map_err(|error| self.failed(error))?;
        check_room(&self.arena, &self.region, &store)?;
        self.way_back = store.way_back(&self.open);
        Ok(self.store.insert(store).next())
    }

    /// Remembers what an error of the region means for the next snapshot.
    fn failed(&mut self, error: ClientError) -> SnapshotError {
        if let Some(fence) = error.fence() {
            self.fenced = Some(fence);
        }
        // A primary of several units goes on by itself; one of a single unit is opened again.
        if self.way_back.is_some() {
            self.store = None;
        }
        SnapshotError::Client(error)
    }

    fn send(&mut self, frame: Frame) -> SnapshotResult<SnapshotReport> {
        let Frame {
            mut image,
            header,
            label,
            begun,
            frozen_after,
        } = frame;
        let receipt = match self.transfer(&mut image, &header, label) {
            Ok(receipt) => receipt,
            // The image is dropped: what it held counts as changed for the next one.
            Err(SnapshotError::Client(error)) => return Err(self.failed(error)),
            // The set was given up; the primary is what it was.
            Err(error) => return Err(error),
        };
        let durable_after = begun.elapsed();
        self.chain = None;
        let image = image.finish()?;
        if let Some(set) = receipt.set() {
            self.chain = Some(Chain {
                root: header.kind.base().map_or(set, |base| base.root),
                last: set,
                last_generation: header.generation,
            });
        }
        Ok(SnapshotReport {
            kind: header.kind,
            image,
            page_bytes: header.pages * u64::from(header.page_bytes),
            bytes: receipt.bytes,
            frozen_after,
            durable_after,
            receipt,
        })
    }

    /// Streams the image into one set.
    fn transfer(
        &mut self,
        image: &mut Frozen,
        header: &SnapshotHeader,
        label: Label,
    ) -> SnapshotResult<Receipt> {
        let Some(store) = &mut self.store else {
            let region = self.region.name().to_owned();
            return Err(ClientError::Ended { region }.into());
        };
        let mut sending = store.begin(header.payload_bytes(), label)?;
        sending.write_bytes(&self.head)?;
        while let Some(run) = image.take(&mut self.piece)? {
            if self.shared.stop.load(Ordering::Acquire) {
                return Err(SnapshotError::Ended {
                    reason: "the program dropped its handle".to_owned(),
                });
            }
            let bytes = run.pages * self.arena.page_bytes();
            sending.write_bytes(&self.piece[..bytes])?;
        }
        Ok(sending.finish()?)
    }
}

impl Chain {
    const fn kind(&self) -> SnapshotKind {
        SnapshotKind::Incremental(SnapshotBase {
            set: self.last,
            root: self.root,
        })
    }
}

/// Refuses an arena that may come to longer sets than the region takes.
fn check_room(arena: &Arena, region: &SnapshotRegion, store: &Store) -> SnapshotResult<()> {
    let arena_bytes = arena.len() as u64;
    let needed_bytes = super::capacity_bytes_for(arena_bytes);
    let capacity_bytes = store.capacity_bytes();
    if needed_bytes <= capacity_bytes {
        return Ok(());
    }
    Err(SnapshotError::TooLarge {
        region: region.name().to_owned(),
        arena_bytes,
        needed_bytes,
        capacity_bytes,
    })
}

fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
