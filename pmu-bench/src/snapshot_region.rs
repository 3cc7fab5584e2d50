//! Snapshots that go to a region: how long until they are durable, what they cost in bytes, and how fast they come back.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pmu_client::snapshot::{
    Arena, ArenaOptions, Cpus, RestoreOptions, ServedBy, SnapshotOptions, SnapshotRegion,
    SnapshotReport, Snapshots, capacity_bytes_for,
};
use pmu_client::{SetChoice, SetNumber};

use crate::durable::Sets;
use crate::measure::{Failure, Kind, Label, Row, alternate};
use crate::site::Site;

const PAGE_BYTES: usize = 4096;
const FULL_BYTES: usize = 1 << 30;
const QUICK_BYTES: usize = 128 << 20;
/// How long updates are counted in one run, and how often a snapshot is taken meanwhile.
const BUSY: Duration = Duration::from_secs(4);
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);
/// Work between two updates: as programs have that do something with what they store. The names say how many a second that comes to.
const WORKS: [(Duration, [&str; 2]); 3] = [
    (
        Duration::from_micros(200),
        ["snapshot.busy.5000.thread", "snapshot.busy.5000.signal"],
    ),
    (
        Duration::from_micros(50),
        ["snapshot.busy.20000.thread", "snapshot.busy.20000.signal"],
    ),
    (
        Duration::from_micros(25),
        ["snapshot.busy.40000.thread", "snapshot.busy.40000.signal"],
    ),
];
/// The program's processor, which the thread that serves its arena shares; all else uses others.
const PROGRAM_CPU: usize = 0;
/// One snapshot in as many is a full one.
const BUSY_FULL_EVERY: u32 = 4;

/// A unit, and a program whose arena goes to a region of it.
struct Bed {
    arena: Arc<Arena>,
    snapshots: Snapshots,
    region: SnapshotRegion,
    random: u64,
    site: Site,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new(dir: &std::path::Path, len: usize, full_every: u32) -> Result<Self, Failure> {
        let mut options = ArenaOptions::plain(len);
        options.prefault = true;
        Self::of(dir, &options, full_every, Cpus::Inherited)
    }

    /// With an arena as it is wanted, and the snapshots' thread on these processors.
    fn of(
        dir: &std::path::Path,
        options: &ArenaOptions,
        full_every: u32,
        cpus: Cpus,
    ) -> Result<Self, Failure> {
        let len = options.len_bytes;
        let folder = tempfile::tempdir_in(dir)?;
        let capacity = capacity_bytes_for(len as u64);
        let sets = u64::from(full_every) + 2;
        let pool_bytes = sets * capacity + (64 << 20);
        // The unit is another computer's affair: it has no part of the program's processor.
        let site = on_these(&cpus, || Site::start(folder.path(), pool_bytes))?;
        site.create_kept("series", capacity, full_every)?;
        let arena = Arc::new(Arena::create(options)?);
        for page in 0..len / PAGE_BYTES {
            arena.store_u64(page * PAGE_BYTES, page as u64)?;
        }
        let region = SnapshotRegion::One {
            unit: site.unit.clone(),
            region: "series".to_owned(),
        };
        let every = NonZeroU32::new(full_every).ok_or("no snapshot is ever full")?;
        let options = SnapshotOptions::new()
            .open(Site::options())
            .cpus(cpus)
            .full_every(every);
        let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &options)?;
        Ok(Self {
            arena,
            snapshots,
            region,
            random: 88_172_645_463_325_252,
            site,
            _folder: folder,
        })
    }

    fn random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) as usize
    }

    /// Changes one page of a hundred; how many different ones that were is in the report of the next snapshot.
    fn change(&mut self) -> Result<(), Failure> {
        let pages = self.arena.len() / PAGE_BYTES;
        for _ in 0..pages / 100 {
            let page = self.random() % pages;
            self.arena.store_u64(page * PAGE_BYTES, self.random)?;
        }
        Ok(())
    }

    /// A full snapshot, and then the incremental one that is measured.
    fn second(&mut self) -> Result<SnapshotReport, Failure> {
        while !self.snapshots.snapshot()?.is_full() {}
        self.change()?;
        let report = self.snapshots.snapshot()?;
        if report.is_full() || !report.receipt.is_durable() {
            return Err(format!("not an incremental durable snapshot: {report}").into());
        }
        Ok(report)
    }
}

fn len_of(quick: bool) -> usize {
    if quick { QUICK_BYTES } else { FULL_BYTES }
}

/// The second snapshot, of one page in a hundred, beside a plain commit of as many bytes; and its bytes beside those of the pages.
///
/// # Errors
/// Too little memory; what the unit says.
pub(crate) fn second(dir: &std::path::Path, runs: usize, quick: bool) -> Result<Vec<Row>, Failure> {
    let len = len_of(quick);
    let mut bed = Bed::new(dir, len, 2)?;
    let changed = bed.second()?.bytes as usize;
    let plain_folder = tempfile::tempdir_in(dir)?;
    let plain_site = Site::start(plain_folder.path(), 4 * changed as u64 + (64 << 20))?;
    let mut plain = Sets::create(&plain_site, "plain", changed)?;
    let label = Label {
        name: "snapshot.second.1%",
        size_bytes: len as u64,
        unit: "ms",
        limit_name: "plain commit of as many bytes",
        kind: Kind::Time,
    };
    let mut last = None;
    let mut row = alternate(
        label,
        runs,
        || {
            let report = bed.second()?;
            let ms = report.durable_after.as_secs_f64() * 1e3;
            last = Some(report);
            Ok(ms)
        },
        || plain.commit_ms(),
    )?;
    let Some(report) = last else {
        return Err("no run".into());
    };
    row.note = Some(format!(
        "last run: {} pages, frozen after {:.2} ms, pause {:.3} ms",
        report.image.pages,
        report.frozen_after.as_secs_f64() * 1e3,
        report.pause().as_secs_f64() * 1e3
    ));
    let bytes = Row {
        name: "snapshot.bytes.1%".to_owned(),
        size_bytes: len as u64,
        value: report.bytes as f64 / 1048576.0,
        unit: "MiB",
        limit_name: "the changed pages".to_owned(),
        limit_value: report.page_bytes as f64 / 1048576.0,
        ratio: report.page_bytes as f64 / report.bytes as f64,
        runs: 1,
        note: None,
    };
    Ok(vec![row, bytes])
}

/// A full snapshot comes back, beside a plain read of its set.
///
/// # Errors
/// As [`second`].
pub(crate) fn cold(dir: &std::path::Path, runs: usize, quick: bool) -> Result<Vec<Row>, Failure> {
    let len = len_of(quick);
    let bed = Bed::new(dir, len, 1)?;
    let set = bed.snapshots.snapshot()?.receipt.set();
    let set = set.unwrap_or(SetNumber(1));
    let mut options = ArenaOptions::plain(len);
    // No copies are made of what is dropped at once.
    options.aside_bytes_max = 0;
    let restore = RestoreOptions::new(options).anywhere();
    let label = Label {
        name: "snapshot.cold",
        size_bytes: len as u64,
        unit: "ms",
        limit_name: "plain read of the set into new memory",
        kind: Kind::Time,
    };
    let row = alternate(
        label,
        runs,
        || {
            let recovered = bed.region.recover(&restore, &Site::options())?;
            let ms = recovered.took.as_secs_f64() * 1e3;
            let arena = recovered.restoring.seal_plain()?;
            if arena.load_u64(PAGE_BYTES)? != 1 {
                return Err("other bytes came back".into());
            }
            Ok(ms)
        },
        || {
            let begun = Instant::now();
            let mut reader = bed.site.unit.open_sets_reader("series", &Site::options())?;
            let (_, bytes) = reader.read_to_vec(SetChoice::Number(set))?;
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            black_box(bytes);
            Ok(ms)
        },
    )?;
    Ok(vec![row])
}

/// Updates with work between them, for [`BUSY`]; updates a second.
fn updates(bed: &Arena, work: Duration, random: &mut u64) -> Result<f64, Failure> {
    let pages = bed.len() / PAGE_BYTES;
    let begun = Instant::now();
    let mut done = 0_u64;
    while begun.elapsed() < BUSY {
        let until = Instant::now() + work;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        bed.store_u64((*random >> 20) as usize % pages * PAGE_BYTES, done)?;
        done += 1;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Programs that work for a while between two updates of random pages, while a snapshot goes to a region each second, beside the same
/// with none; on a processor of their own, with first writes served by a thread on the same one, or by signals.
///
/// # Errors
/// As [`second`].
pub(crate) fn busy(dir: &std::path::Path, runs: usize, quick: bool) -> Result<Vec<Row>, Failure> {
    let len = len_of(quick);
    let plain = Arena::create(&ArenaOptions::plain(len))?;
    for page in 0..len / PAGE_BYTES {
        plain.store_u64(page * PAGE_BYTES, 1)?;
    }
    let mut rows = Vec::new();
    for (served_by, which) in [(ServedBy::Thread, 0), (ServedBy::Signal, 1)] {
        let mut options = ArenaOptions::plain(len);
        options.prefault = true;
        options.served_by = served_by;
        options.cpus = Cpus::Only(vec![PROGRAM_CPU]);
        let others = Cpus::Except(vec![PROGRAM_CPU]);
        let bed = Bed::of(dir, &options, BUSY_FULL_EVERY, others)?;
        // The first one has everything; what follows is how it goes on.
        bed.snapshots.snapshot()?;
        for (work, names) in WORKS {
            rows.push(busy_row(&bed, &plain, names[which], work, runs)?);
        }
    }
    Ok(rows)
}

/// Has something done on these processors, and by what it starts.
fn on_these<T: Send>(
    cpus: &Cpus,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            cpus.pin_this_thread()?;
            work()
        });
        thread.join().map_err(|_| "a thread panicked")?
    })
}

/// Has `program` run on the processor that is its own.
fn apart<T: Send>(program: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    on_these(&Cpus::Only(vec![PROGRAM_CPU]), program)
}

fn busy_row(
    bed: &Bed,
    plain: &Arena,
    name: &'static str,
    work: Duration,
    runs: usize,
) -> Result<Row, Failure> {
    let (mut one, mut other) = (7, 7);
    let mut last = None;
    let label = Label {
        name,
        size_bytes: plain.len() as u64,
        unit: "1/s",
        limit_name: "the same with no snapshots",
        kind: Kind::Rate,
    };
    let mut row = alternate(
        label,
        runs,
        || {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let taker = scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let next = Instant::now() + SNAPSHOT_EVERY;
                        last = Some(bed.snapshots.snapshot()?);
                        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                    Ok::<(), Failure>(())
                });
                let rate = apart(|| updates(&bed.arena, work, &mut one));
                stop.store(true, Ordering::Relaxed);
                taker.join().map_err(|_| "the snapshots panicked")??;
                rate
            })
        },
        || apart(|| updates(plain, work, &mut other)),
    )?;
    row.note = last.map(|report| format!("last: {report}"));
    Ok(row)
}
