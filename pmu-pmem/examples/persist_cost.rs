//! What making bytes of a file durable costs: the measurements behind the choice in `persist.rs`.
//!
//! `cargo run --release -p pmu-pmem --example persist_cost -- DIRECTORY`

#![allow(clippy::print_stdout, reason = "a program that prints figures")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use pmu_pmem::{CreateOptions, LocalMemory, LocalOptions, Medium, PmemError, PoolMemory, PoolSpec};

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 256 * MIB;
const PAGE_BYTES: u64 = 4096;
const ROUNDS: usize = 41;

type Ranges = Vec<(u64, u64)>;

fn main() -> Result<(), PmemError> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let path = Path::new(&directory).join(format!("persist-cost-{}", std::process::id()));
    let spec = PoolSpec::new(Medium::File, &path);
    let begun = Instant::now();
    let pool = PoolMemory::create(
        &spec,
        CreateOptions {
            len: Some(POOL_BYTES),
            ..CreateOptions::default()
        },
    )?;
    println!("create with written zeros: {:?}", begun.elapsed());
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let result = file.map(|file| measure_all(&pool, &file));
    drop(pool);
    let _ = std::fs::remove_file(&path);
    if let Err(error) = result {
        println!("{error}");
    }
    Ok(())
}

fn measure_all(pool: &PoolMemory, file: &File) {
    let one: Ranges = vec![(8 * MIB, PAGE_BYTES)];
    let scattered: Ranges = (0..16).map(|i| (i * 15 * MIB, PAGE_BYTES)).collect();
    let near: Ranges = (0..16)
        .map(|i| (32 * MIB + i * 3 * PAGE_BYTES, PAGE_BYTES))
        .collect();
    let large: Ranges = vec![(64 * MIB, 64 * MIB)];
    for (what, ranges) in [
        ("1 page", &one),
        ("16 far pages", &scattered),
        ("16 near pages", &near),
        ("64 MiB", &large),
    ] {
        let rounds = if what == "64 MiB" { 7 } else { ROUNDS };
        println!("{what}:");
        report("msync each range", pool, ranges, rounds, || {
            each_msync(pool, ranges);
        });
        report("msync over the hull", pool, ranges, rounds, || {
            hull_msync(pool, ranges);
        });
        report("fdatasync", pool, ranges, rounds, || fdatasync(file));
        report(
            "sync_file_range each, then msync last",
            pool,
            ranges,
            rounds,
            || started_then_msync(pool, file, ranges),
        );
        report("PoolMemory::persist", pool, ranges, rounds, || {
            let all: Vec<_> = ranges.iter().map(|&(at, len)| at..at + len).collect();
            let _ = pool.persist(&all);
        });
    }
    println!("1 page, while another thread writes without end:");
    beside_a_stream(pool, file, &one);
    println!("64 MiB in steps of 4 MiB:");
    report_whole("through the mapping, then persist", || {
        stream(pool, Way::Stores, false);
    });
    report_whole("populated before", || {
        stream(pool, Way::PopulatedStores, false);
    });
    report_whole("through the mapping, with start_write_back", || {
        stream(pool, Way::Stores, true);
    });
    report_whole("PoolMemory::write_at, then persist", || {
        stream(pool, Way::WriteAt, false);
    });
    report_whole("the same with start_write_back", || {
        stream(pool, Way::WriteAt, true);
    });
    report_whole("pwrite, then fdatasync", || write_calls(file));
    copies();
}

fn dirty(pool: &PoolMemory, ranges: &Ranges, value: u8) {
    let page = [value; PAGE_BYTES as usize];
    for &(at, len) in ranges {
        for offset in (at..at + len).step_by(PAGE_BYTES as usize) {
            let _ = pool.write_at(offset, &page);
        }
    }
}

fn report(what: &str, pool: &PoolMemory, ranges: &Ranges, rounds: usize, sync: impl Fn()) {
    let mut times = Vec::new();
    for round in 0..rounds {
        dirty(pool, ranges, round as u8);
        let begun = Instant::now();
        sync();
        times.push(begun.elapsed());
    }
    print_median(what, &mut times);
}

fn print_median(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    println!(
        "  {what:45} median {:>10.1?}  p90 {:>10.1?}",
        times[times.len() / 2],
        times[times.len() * 9 / 10]
    );
}

fn report_whole(what: &str, work: impl Fn()) {
    let mut times: Vec<_> = (0..7)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    print_median(what, &mut times);
}

fn msync(pool: &PoolMemory, at: u64, len: u64) {
    // SAFETY: the range lies inside the pool; msync changes no bytes.
    unsafe {
        libc::msync(
            pool.as_ptr().add(at as usize).cast(),
            len as usize,
            libc::MS_SYNC,
        );
    }
}

fn each_msync(pool: &PoolMemory, ranges: &Ranges) {
    for &(at, len) in ranges {
        msync(pool, at, len);
    }
}

fn hull_msync(pool: &PoolMemory, ranges: &Ranges) {
    let start = ranges.iter().map(|range| range.0).min().unwrap_or(0);
    let end = ranges
        .iter()
        .map(|range| range.0 + range.1)
        .max()
        .unwrap_or(0);
    msync(pool, start, end - start);
}

fn fdatasync(file: &File) {
    let _ = file.sync_data();
}

fn started_then_msync(pool: &PoolMemory, file: &File, ranges: &Ranges) {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    for flags in [libc::SYNC_FILE_RANGE_WRITE, all] {
        for &(at, len) in &ranges[..ranges.len() - 1] {
            // SAFETY: touches no memory of ours.
            unsafe { libc::sync_file_range(file.as_raw_fd(), at as i64, len as i64, flags) };
        }
    }
    let last = ranges[ranges.len() - 1];
    msync(pool, last.0, last.1);
}

fn beside_a_stream(pool: &PoolMemory, file: &File, one: &Ranges) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let step = vec![7; MIB as usize];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for at in (128 * MIB..POOL_BYTES).step_by(MIB as usize) {
                    let _ = pool.write_at(at, &step);
                }
            }
        });
        report("msync", pool, one, ROUNDS, || each_msync(pool, one));
        report("fdatasync", pool, one, 11, || fdatasync(file));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Stores,
    PopulatedStores,
    WriteAt,
}

fn stream(pool: &PoolMemory, way: Way, hint: bool) {
    let step = vec![3; (4 * MIB) as usize];
    for at in (64 * MIB..128 * MIB).step_by(step.len()) {
        if way == Way::PopulatedStores {
            let _ = pool.populate(at, 4 * MIB);
        }
        if way == Way::WriteAt {
            let _ = pool.write_at(at, &step);
        } else {
            // SAFETY: the range lies inside the pool, and nobody else uses it.
            unsafe {
                let target = pool.as_ptr().add(at as usize);
                target.copy_from_nonoverlapping(step.as_ptr(), step.len());
            }
        }
        if hint {
            pool.start_write_back(at..at + 4 * MIB);
        }
    }
    let range = 64 * MIB..128 * MIB;
    let _ = pool.persist(std::slice::from_ref(&range));
}

fn write_calls(file: &File) {
    let step = vec![3; (4 * MIB) as usize];
    for at in (64 * MIB..128 * MIB).step_by(step.len()) {
        let _ = file.write_all_at(&step, at);
    }
    fdatasync(file);
}

/// The copy of this crate against that of the standard library.
fn copies() {
    let options = LocalOptions {
        prefault: true,
        ..LocalOptions::default()
    };
    let Ok(memory) = LocalMemory::allocate_with((64 * MIB) as usize, options) else {
        return;
    };
    for len in [8, 64, 256, 4096, 65536, MIB as usize, 64 * MIB as usize] {
        let source = vec![1; len];
        let mut target = vec![2; len];
        let rounds = (256 * MIB as usize / len).clamp(4, 1_000_000);
        let time = |work: &mut dyn FnMut()| {
            let begun = Instant::now();
            (0..rounds).for_each(|_| work());
            begun.elapsed().as_secs_f64() / rounds as f64
        };
        let ours = time(&mut || {
            let _ = memory.write_at(0, std::hint::black_box(&source));
        });
        let theirs = time(&mut || target.copy_from_slice(std::hint::black_box(&source)));
        println!(
            "copy of {len:>8} bytes: {:>12.1} ns ({:.2} GB/s), memcpy {:>12.1} ns",
            ours * 1e9,
            len as f64 / ours / 1e9,
            theirs * 1e9
        );
    }
}
