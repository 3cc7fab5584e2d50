//! After the first one, storing allocates nothing. Alone in its process, as the allocator counts for all threads: ours is told apart by a mark.
#![allow(unsafe_code, reason = "a global allocator that counts")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};

use pmu_client::{Label, OpenOptions};
use support::{Pool, Site, pattern};

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
}
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    if COUNTING.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread during the work.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    COUNTING.set(true);
    work();
    COUNTING.set(false);
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn p11_no_allocation_per_checkpoint_after_the_first() {
    let mut site = Site::new(Pool::Memory, 128 << 20);
    site.sets("r", 2, 16 << 20);
    site.log("l", 1 << 20);
    let unit = site.client("app");
    let mut sets = unit.open_sets_primary("r", &OpenOptions::new()).unwrap();
    let payload = pattern(13_000_000, 1);
    let buffer = sets.allocate_registered(payload.len()).unwrap();
    buffer.write_at(0, &payload).unwrap();
    let slices = [IoSlice::new(&payload[..9]), IoSlice::new(&payload[9..])];
    sets.commit(&slices, Label::default()).unwrap();
    sets.commit_registered(&[buffer.whole()], Label::default())
        .unwrap();
    let commits = allocations(|| {
        for _ in 0..5 {
            sets.commit(&slices, Label::default()).unwrap();
            sets.commit(&[], Label::default()).unwrap();
            sets.commit_registered(&[buffer.whole()], Label::default())
                .unwrap();
            let mut put = sets.begin(None, Label::default()).unwrap();
            put.write_bytes(&payload).unwrap();
            put.finish().unwrap();
        }
    });
    assert_eq!(commits, 0, "allocations in 20 commits");

    let mut log = unit.open_log_primary("l", &OpenOptions::new()).unwrap();
    let mut backup = unit
        .open_log_backup("l", true, &OpenOptions::new())
        .unwrap();
    let mut round = |count: usize| {
        for index in 0..count {
            log.append(&payload[..1 + index]).unwrap();
            log.submit(&payload[..100]).unwrap();
        }
        log.flush().unwrap();
        while backup.read_unread(64 << 10).unwrap().len() > 0 {}
        backup.clear_handed_out().unwrap();
        log.refresh_free().unwrap();
    };
    round(500);
    let appends = allocations(|| round(500));
    assert_eq!(
        appends, 0,
        "allocations in 1000 appends, their reading and clearing"
    );
}

#[test]
fn p12_no_allocation_per_record_of_a_log_on_several_units() {
    let units = units::Units::new(4, 16 << 20);
    units.spread_log("l", "parity:3+1", 3, 12 << 20);
    let options = OpenOptions::new();
    let find = || units.find("app", "l");
    let mut log = find().open_log_primary(&options).unwrap();
    let mut backup = find().open_log_backup(false, &options).unwrap();
    let payload = pattern(10_000, 1);
    let mut append = |count: usize| {
        for index in 0..count {
            log.append(&payload[..1 + index]).unwrap();
            log.submit(&payload).unwrap();
            log.submit_batch(&[&payload[..100], &payload[..7]]).unwrap();
        }
        log.flush().unwrap();
    };
    append(500);
    let appends = allocations(|| append(500));
    assert_eq!(appends, 0, "allocations in 2000 appends");
    while backup.read_unread(1 << 20).unwrap().len() > 0 {}
    append(500);
    let reads = allocations(|| while backup.read_unread(1 << 20).unwrap().len() > 0 {});
    assert!(reads < 100, "{reads} allocations in reading 2000 records");
}
