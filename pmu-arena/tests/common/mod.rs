//! A program whose every state is known: threads that write by a seed, and a model that follows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    dead_code,
    reason = "tests fail by panicking; not every test uses all of this"
)]

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use pmu_arena::{Arena, Frozen, Report};

pub(crate) const PAGE: usize = 4096;
/// Pages that one change of a thread writes.
pub(crate) const PAGES_OF_A_CHANGE: usize = 6;

/// The seed: `PMU_SEED`, or the time. Printed, so that a failure can be replayed.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("PMU_SEED").ok().map_or_else(
        || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.unwrap().as_nanos() as u64
        },
        |seed| seed.parse().unwrap(),
    );
    println!("PMU_SEED={seed}");
    seed
}

/// xorshift64*.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self((seed ^ (stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The pages that a thread's next change writes; page 0 has the threads' counters.
fn change(random: &mut Random, pages: usize) -> [usize; PAGES_OF_A_CHANGE] {
    std::array::from_fn(|_| 1 + random.below(pages - 1))
}

/// One thread of the program: in each page of a change its own word gets the change's number.
pub(crate) fn write_until(orders: &Orders, arena: &Arena, seed: u64, thread: usize) {
    let mut random = Random::new(seed, thread as u64);
    let pages = arena.len() / PAGE;
    let mut number = 0;
    while orders.go_on() {
        number += 1;
        let _guard = arena.writing();
        for page in change(&mut random, pages) {
            arena.store_u64(page * PAGE + thread * 8, number).unwrap();
        }
        arena.store_u64(thread * 8, number).unwrap();
    }
}

/// What the program's threads are told. They rest while the model follows, which is slower.
#[derive(Default)]
pub(crate) struct Orders {
    stop: AtomicBool,
    rest: AtomicBool,
}

impl Orders {
    /// Whether to write once more; returns when there is no rest.
    pub(crate) fn go_on(&self) -> bool {
        while self.rest.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(50));
        }
        !self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn rest(&self, rest: bool) {
        self.rest.store(rest, Ordering::Relaxed);
    }
}

/// Ends the threads when the test ends, however it does.
pub(crate) struct Ending<'a>(pub(crate) &'a Orders);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// What the memory has to be after a number of changes of each thread.
pub(crate) struct Model {
    pub(crate) bytes: Vec<u8>,
    threads: Vec<(Random, u64)>,
}

impl Model {
    pub(crate) fn new(len: usize, seed: u64, threads: usize) -> Self {
        Self {
            bytes: vec![0; len],
            threads: (0..threads)
                .map(|thread| (Random::new(seed, thread as u64), 0))
                .collect(),
        }
    }

    fn put(&mut self, offset: usize, value: u64) {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
    }

    /// Goes on to the change that the image's counters name; returns the pages written since.
    pub(crate) fn follow(&mut self, image: &[u8]) -> BTreeSet<usize> {
        let mut written = vec![false; self.bytes.len() / PAGE];
        for thread in 0..self.threads.len() {
            let target = word(image, thread * 8);
            let pages = self.bytes.len() / PAGE;
            while self.threads[thread].1 < target {
                self.threads[thread].1 += 1;
                let number = self.threads[thread].1;
                let touched = change(&mut self.threads[thread].0, pages);
                for page in touched {
                    self.put(page * PAGE + thread * 8, number);
                }
                self.put(thread * 8, number);
                touched.iter().for_each(|&page| written[page] = true);
                written[0] = true;
            }
            assert_eq!(self.threads[thread].1, target, "an image goes back");
        }
        (0..written.len()).filter(|&page| written[page]).collect()
    }
}

pub(crate) fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Puts an image into `bytes`; returns its pages. `pace` is called after each piece.
pub(crate) fn take_into(
    image: &mut Frozen,
    bytes: &mut [u8],
    buffer_pages: usize,
    mut pace: impl FnMut(),
) -> BTreeSet<usize> {
    let mut buffer = vec![0; buffer_pages * PAGE];
    let mut pages = BTreeSet::new();
    while let Some(run) = image.take(&mut buffer).unwrap() {
        let (start, len) = (run.first_page * PAGE, run.pages * PAGE);
        bytes[start..start + len].copy_from_slice(&buffer[..len]);
        for page in run.first_page..run.first_page + run.pages {
            assert!(pages.last().is_none_or(|&last| last < page), "in order");
            pages.insert(page);
        }
        pace();
    }
    assert_eq!(pages.len(), image.report().pages);
    pages
}

/// All of an image, onto zeroes.
pub(crate) fn take_all(mut image: Frozen, len: usize) -> (Vec<u8>, Report) {
    let mut bytes = vec![0; len];
    take_into(&mut image, &mut bytes, 64, || ());
    (bytes, image.finish().unwrap())
}

/// Waits until `done`, at most ten seconds.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within ten seconds: {what}");
}

pub(crate) fn assert_same(image: &[u8], model: &[u8], what: &str) {
    if let Some(at) = image
        .iter()
        .zip(model)
        .position(|(one, other)| one != other)
    {
        let at = at / 8 * 8;
        panic!(
            "{what}: page {} word {}: {} in the image, {} in the model",
            at / PAGE,
            at % PAGE / 8,
            word(image, at),
            word(model, at)
        );
    }
}

/// What a test program that was started again is to do.
pub(crate) const ROLE: &str = "PMU_ARENA_TEST_ROLE";

/// Starts this test program again for one test, in a role.
pub(crate) fn again(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).stdout(Stdio::piped());
    command
}

pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}
