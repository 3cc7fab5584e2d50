//! Images of a running program: how long it stands still, and how much slower it runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pmu_arena::{Arena, ArenaOptions, Frozen, Method, Scope};

use crate::measure::{Failure, Kind, Label, Row, alternate};

const PAGE_BYTES: usize = 4096;
/// Memory of the program whose pause is measured.
const PROGRAMS: [usize; 2] = [1 << 30, 4 << 30];
/// Memory of the program whose updates are counted.
const TOUCHED_BYTES: usize = 1 << 30;
/// How fast a reader takes an image.
const READER_BYTES_PER_S: f64 = (2_u64 << 30) as f64;
const BUFFER_BYTES: usize = 256 << 10;
/// How long updates are counted in one run, and how often an image is frozen meanwhile.
const TOUCH: Duration = Duration::from_secs(3);
const FREEZE_EVERY: Duration = Duration::from_secs(1);

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) as usize
    }
}

/// A program's memory, all of it written.
fn program(method: Method, len: usize) -> Result<Arena, Failure> {
    program_with_grain(method, len, 1)
}

/// With a grain of several pages all that the image needs may be held aside.
fn program_with_grain(method: Method, len: usize, grain_pages: usize) -> Result<Arena, Failure> {
    let mut options = ArenaOptions::plain(len);
    options.grain_pages = grain_pages;
    if grain_pages > 1 {
        options.aside_bytes_max = len;
    }
    options.method = method;
    options.prefault = true;
    let arena = Arena::create(&options)?;
    write(&arena, 0..len / PAGE_BYTES)?;
    Ok(arena)
}

fn write(arena: &Arena, pages: impl Iterator<Item = usize>) -> Result<(), Failure> {
    for page in pages {
        arena.store_u64(page * PAGE_BYTES, 1)?;
    }
    Ok(())
}

/// The pause of the first image, or of the second after `changed` of a hundred pages were written.
fn pause_ms(method: Method, len: usize, changed: Option<usize>) -> Result<f64, Failure> {
    let arena = program(method, len)?;
    let mut image = freeze_running(&arena, Scope::Full)?;
    if let Some(changed) = changed {
        let mut buffer = vec![0; BUFFER_BYTES];
        // A fork's second pause doesn't depend on whether the first image was taken.
        while method == Method::Protect && image.take(&mut buffer)?.is_some() {}
        match method {
            Method::Protect => drop(image.finish()?),
            _ => drop(image),
        }
        let pages = len / PAGE_BYTES;
        let mut random = Random(88_172_645_463_325_252);
        write(
            &arena,
            (0..pages * changed / 100).map(|_| random.next() % pages),
        )?;
        image = freeze_running(&arena, Scope::Changed)?;
    }
    Ok(image.report().pause.as_secs_f64() * 1e3)
}

/// Freezes while another thread writes random pages as fast as it goes.
fn freeze_running(arena: &Arena, scope: Scope) -> Result<Frozen, Failure> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let program = threads.spawn(|| {
            let mut random = Random(0x9e37_79b9);
            while !stop.load(Ordering::Relaxed) {
                let _guard = arena.writing();
                write(
                    arena,
                    std::iter::once(random.next() % (arena.len() / PAGE_BYTES)),
                )?;
            }
            Ok::<(), Failure>(())
        });
        std::thread::sleep(Duration::from_millis(2));
        let image = arena.freeze(scope);
        stop.store(true, Ordering::Relaxed);
        program.join().map_err(|_| "the program panicked")??;
        Ok(image?)
    })
}

/// Pauses, beside those of `fork()` of the same program.
///
/// # Errors
/// Too little memory; userfaultfd isn't allowed.
pub(crate) fn pause(runs: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for len in PROGRAMS {
        for (name, changed) in [
            ("snapshot.pause.first", None),
            ("snapshot.pause.1%", Some(1)),
            ("snapshot.pause.10%", Some(10)),
            ("snapshot.pause.50%", Some(50)),
        ] {
            let label = Label {
                name,
                size_bytes: len as u64,
                unit: "ms",
                limit_name: "fork of the same program",
                kind: Kind::Time,
            };
            rows.push(alternate(
                label,
                runs,
                || pause_ms(Method::Protect, len, changed),
                || pause_ms(Method::Fork, len, changed),
            )?);
        }
    }
    Ok(rows)
}

/// What the images of one run came to.
#[derive(Default)]
struct Images {
    images: usize,
    pages: usize,
    copied_aside: usize,
    waits: usize,
    pause_max: Duration,
}

/// Freezes once a second and takes the image at [`READER_BYTES_PER_S`], until told to stop.
fn freeze_until(stop: &AtomicBool, arena: &Arena) -> Result<Images, Failure> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut frozen = Images::default();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() < next {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        next += FREEZE_EVERY;
        let mut image = arena.freeze(Scope::Changed)?;
        let (begun, mut bytes) = (Instant::now(), 0);
        while let Some(run) = image.take(&mut buffer)? {
            bytes += run.pages * PAGE_BYTES;
            let due = begun + Duration::from_secs_f64(bytes as f64 / READER_BYTES_PER_S);
            let early = due.saturating_duration_since(Instant::now());
            if early > Duration::from_millis(1) {
                std::thread::sleep(early);
            }
        }
        let report = image.finish()?;
        frozen.images += 1;
        frozen.pages += report.pages;
        frozen.copied_aside += report.copied_aside;
        frozen.waits += report.waits;
        frozen.pause_max = frozen.pause_max.max(report.pause);
    }
    Ok(frozen)
}

/// Updates random pages, `rate` a second (none: as fast as it goes), for [`TOUCH`]; updates a
/// second.
fn updates(arena: &Arena, rate: Option<u32>, random: &mut Random) -> Result<f64, Failure> {
    let pages = arena.len() / PAGE_BYTES;
    let begun = Instant::now();
    let mut done = 0_u64;
    loop {
        let elapsed = begun.elapsed();
        if elapsed >= TOUCH {
            return Ok(done as f64 / elapsed.as_secs_f64());
        }
        let due = rate.map_or(done + 1000, |rate| {
            (elapsed.as_secs_f64() * f64::from(rate)) as u64 + 1
        });
        while done < due {
            arena.store_u64(random.next() % pages * PAGE_BYTES, done)?;
            done += 1;
        }
        if rate.is_some() {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Updates a second while images are frozen.
fn updates_with_images(
    arena: &Arena,
    rate: Option<u32>,
    random: &mut Random,
) -> Result<(f64, Images), Failure> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| freeze_until(&stop, arena));
        let rate = updates(arena, rate, random);
        stop.store(true, Ordering::Relaxed);
        let frozen = reader.join().map_err(|_| "the reader panicked")??;
        Ok((rate?, frozen))
    })
}

/// Updates of random pages while an image is frozen each second, beside as many without.
///
/// # Errors
/// Too little memory; userfaultfd isn't allowed.
pub(crate) fn touch(runs: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (name, rate, grain_pages) in [
        ("snapshot.touch.5000", Some(5_000), 1),
        ("snapshot.touch.20000", Some(20_000), 1),
        ("snapshot.touch.full", None, 1),
        ("snapshot.touch.full.grain", None, 512),
    ] {
        let label = Label {
            name,
            size_bytes: TOUCHED_BYTES as u64,
            unit: "1/s",
            limit_name: "the same with no images",
            kind: Kind::Rate,
        };
        // One that is frozen, and one that never was.
        let watched = program_with_grain(Method::Protect, TOUCHED_BYTES, grain_pages)?;
        let plain = program(Method::Fork, TOUCHED_BYTES)?;
        let (mut one, mut other) = (Random(0x9e37_79b9), Random(0x9e37_79b9));
        let mut last = Images::default();
        let mut row = alternate(
            label,
            runs,
            || {
                let (rate, frozen) = updates_with_images(&watched, rate, &mut one)?;
                last = frozen;
                Ok(rate)
            },
            || updates(&plain, rate, &mut other),
        )?;
        row.note = Some(format!(
            "last run: {} images of {} pages, {} copied aside, {} waits, longest pause {:.2} ms",
            last.images,
            last.pages / last.images.max(1),
            last.copied_aside,
            last.waits,
            last.pause_max.as_secs_f64() * 1e3
        ));
        rows.push(row);
    }
    Ok(rows)
}
