//! Images of a program that writes at full speed are exactly what it was at the freeze.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{
    Ending, Model, Orders, PAGE, Random, assert_same, seed, take_into, wait_until, word,
    write_until,
};
use pmu_arena::{Arena, ArenaOptions, Method, Scope, ServedBy};

const THREADS: usize = 2;

fn options(method: Method, huge_pages: bool) -> ArenaOptions {
    let mut options = ArenaOptions::plain(8 << 20);
    options.method = method;
    options.huge_pages = huge_pages;
    options.prefault = huge_pages;
    options
}

/// Freezes `rounds` times while threads write; every image, put onto the earlier ones where it
/// builds on them, has to be the model's state byte for byte.
fn images_are_exact(options: &ArenaOptions, rounds: usize, full_every: usize) {
    let seed = seed();
    let arena = Arena::create(options).unwrap();
    assert_eq!(arena.method(), options.method);
    let orders = Orders::default();
    let mut random = Random::new(seed, 99);
    std::thread::scope(|scope| {
        let _ending = Ending(&orders);
        for thread in 0..THREADS {
            let (arena, orders) = (&arena, &orders);
            scope.spawn(move || write_until(orders, arena, seed, thread));
        }
        let mut model = Model::new(arena.len(), seed, THREADS);
        let mut chain = vec![0; arena.len()];
        let (mut aside, mut met) = (0, 0);
        for round in 0..rounds {
            orders.rest(false);
            std::thread::sleep(Duration::from_micros(random.below(10_000) as u64));
            let full = round % full_every == 0;
            let wanted = if full { Scope::Full } else { Scope::Changed };
            let mut image = arena.freeze(wanted).unwrap();
            let report = image.report();
            assert_eq!(report.generation, round as u64 + 1);
            assert_eq!(report.is_full(), full || options.method == Method::Fork);
            if !report.is_full() {
                assert_eq!(report.base, Some(round as u64));
            }
            let slow = Duration::from_micros(random.below(300) as u64);
            if report.is_full() {
                chain.fill(0);
            }
            let taken = take_into(&mut image, &mut chain, 1 + random.below(100), || {
                std::thread::sleep(slow);
            });
            orders.rest(true);
            let written = model.follow(&chain);
            assert_same(&chain, &model.bytes, &format!("seed {seed} image {round}"));
            if !report.is_full() {
                assert!(written.is_subset(&taken), "seed {seed} image {round}");
                let more = taken.len() - written.len();
                // One page beside what was written makes its whole grain changed.
                let more_max = 2 * THREADS + written.len() * (options.grain_pages - 1);
                assert!(
                    more <= more_max * options.grain_pages,
                    "{more} pages that nobody had written"
                );
            }
            let report = image.finish().unwrap();
            aside += report.copied_aside;
            met += report.met_reader;
        }
        println!("{aside} pages copied aside, {met} writes met the reader");
        assert!(aside > 0 || options.method == Method::Fork);
    });
}

#[test]
fn s06_images_under_the_guard_are_exact() {
    images_are_exact(&options(Method::Protect, false), 25, 9);
}

#[test]
fn s06_images_of_huge_pages_that_are_split_are_exact() {
    images_are_exact(&options(Method::Protect, true), 25, 9);
}

#[test]
fn s06_images_are_exact_where_few_pages_fit_aside() {
    let mut options = options(Method::Protect, false);
    options.aside_bytes_max = 5 * PAGE;
    images_are_exact(&options, 10, 4);
}

#[test]
fn s06_images_with_a_grain_are_exact() {
    for (grain_pages, huge_pages, aside) in [(2, false, 64), (16, false, 40), (512, true, 600)] {
        let mut options = options(Method::Protect, huge_pages);
        options.grain_pages = grain_pages;
        options.aside_bytes_max = aside * PAGE;
        images_are_exact(&options, 12, 5);
    }
}

#[test]
fn s06_images_served_by_signals_are_exact() {
    for (grain_pages, huge_pages, aside) in [(1, false, 512), (1, true, 5), (16, false, 40)] {
        let mut options = options(Method::Protect, huge_pages);
        options.served_by = ServedBy::Signal;
        options.grain_pages = grain_pages;
        options.aside_bytes_max = aside * PAGE;
        images_are_exact(&options, 15, 5);
    }
}

#[test]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges is meant")]
fn s06_a_grain_is_changed_together_and_none_other() {
    let mut options = options(Method::Protect, false);
    for refused in [0, 3, 1024] {
        options.grain_pages = refused;
        assert!(Arena::create(&options).is_err());
    }
    options.grain_pages = 16;
    let arena = Arena::create(&options).unwrap();
    let mut bytes = vec![0; arena.len()];
    for expected in [vec![], vec![16..32], vec![0..16, 2032..2048]] {
        for range in &expected {
            arena.store_u64((range.start + 3) * PAGE, 1).unwrap();
        }
        let mut image = arena.freeze(Scope::Changed).unwrap();
        let taken = take_into(&mut image, &mut bytes, 7, || ());
        assert_eq!(taken, expected.into_iter().flatten().collect());
        image.finish().unwrap();
    }
}

#[test]
fn s06_images_by_fork_are_exact() {
    images_are_exact(&options(Method::Fork, true), 10, 1);
}

#[test]
fn s06_images_by_fork_hold_everything_when_changes_are_asked_for() {
    images_are_exact(&options(Method::Fork, false), 8, 4);
}

#[test]
fn s06_without_a_guard_images_are_consistent_cuts() {
    cuts_are_consistent(ServedBy::Thread);
}

#[test]
fn s06_without_a_guard_images_served_by_signals_are_consistent_cuts() {
    cuts_are_consistent(ServedBy::Signal);
}

/// Without a guard each thread is cut between two of its writes, and no effect is without its
/// cause: the second thread notes what it saw of the first one.
fn cuts_are_consistent(served_by: ServedBy) {
    let seed = seed();
    let mut options = options(Method::Protect, false);
    options.served_by = served_by;
    let arena = Arena::create(&options).unwrap();
    let pages = arena.len() / PAGE;
    let (orders, count) = (Orders::default(), AtomicU64::new(0));
    // The first thread writes 1, 2, 3 ... to random pages; each page's word 0.
    let writes = |number: u64, random: &mut Random| (random.below(pages) * PAGE, number);
    std::thread::scope(|scope| {
        let _ending = Ending(&orders);
        scope.spawn(|| {
            let mut random = Random::new(seed, 0);
            while orders.go_on() {
                let number = count.load(Ordering::Relaxed) + 1;
                let (offset, number) = writes(number, &mut random);
                arena.store_u64(offset, number).unwrap();
                count.store(number, Ordering::Release);
            }
        });
        scope.spawn(|| {
            let mut random = Random::new(seed, 1);
            while orders.go_on() {
                let seen = count.load(Ordering::Acquire);
                let offset = random.below(pages) * PAGE + 8;
                arena.store_u64(offset, seen).unwrap();
            }
        });
        let mut random = Random::new(seed, 0);
        let (mut chain, mut model) = (vec![0; arena.len()], vec![0_u64; pages]);
        let mut done = 0;
        for round in 0..25 {
            orders.rest(false);
            std::thread::sleep(Duration::from_millis(3));
            let mut image = arena.freeze(Scope::Changed).unwrap();
            take_into(&mut image, &mut chain, 64, || ());
            image.finish().unwrap();
            orders.rest(true);
            let words = |at: usize| (0..pages).map(move |page| page * PAGE + at);
            let last = words(0).map(|offset| word(&chain, offset)).max().unwrap();
            while done < last {
                done += 1;
                let (offset, number) = writes(done, &mut random);
                model[offset / PAGE] = number;
            }
            for (page, offset) in words(0).enumerate() {
                let found = word(&chain, offset);
                assert_eq!(found, model[page], "seed {seed} image {round} page {page}");
            }
            let seen = words(8).map(|offset| word(&chain, offset)).max().unwrap();
            assert!(
                seen <= last,
                "seed {seed} image {round}: {seen} seen before {last}"
            );
        }
        assert!(done > 0);
    });
}

#[test]
fn s06_writers_wait_at_the_bound_and_lose_nothing() {
    let mut options = options(Method::Protect, false);
    options.aside_bytes_max = 4 * PAGE;
    let arena = Arena::create(&options).unwrap();
    for page in 0..200 {
        arena.store_u64(page * PAGE, 1).unwrap();
    }
    let mut image = arena.freeze(Scope::Full).unwrap();
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for page in (0..200).rev() {
                arena.store_u64(page * PAGE, 2).unwrap();
                written.fetch_add(1, Ordering::SeqCst);
            }
        });
        wait_until("the writer waits", || image.report().waits == 1);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(written.load(Ordering::SeqCst), 4, "as many as fit aside");
        // A page that isn't in the image is written all the same.
        arena.store_u64(1000 * PAGE, 2).unwrap();
        let mut bytes = vec![0; arena.len()];
        take_into(&mut image, &mut bytes, 8, || ());
        for page in 0..200 {
            assert_eq!(word(&bytes, page * PAGE), 1, "page {page}");
        }
    });
    let report = image.finish().unwrap();
    assert!(report.waits >= 1 && report.copied_aside >= 4, "{report:?}");
    assert_eq!(written.load(Ordering::SeqCst), 200);
    let next = arena.freeze(Scope::Changed).unwrap();
    assert_eq!(next.report().pages, 201);
}

#[test]
fn s06_nothing_may_be_held_aside_at_all() {
    let mut options = options(Method::Protect, false);
    options.aside_bytes_max = 0;
    let arena = Arena::create(&options).unwrap();
    arena.store_u64(0, 1).unwrap();
    let mut image = arena.freeze(Scope::Full).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| arena.store_u64(0, 2).unwrap());
        wait_until("the writer waits", || image.report().waits == 1);
        let mut bytes = vec![0; arena.len()];
        take_into(&mut image, &mut bytes, 1, || ());
        assert_eq!(word(&bytes, 0), 1);
    });
    assert_eq!(arena.load_u64(0).unwrap(), 2);
}

#[test]
fn s06_an_image_that_is_dropped_counts_as_changed() {
    let arena = Arena::create(&options(Method::Protect, false)).unwrap();
    let write = |page: usize, value| arena.store_u64(page * PAGE, value).unwrap();
    (0..100).for_each(|page| write(page, 1));
    let mut bytes = vec![0; arena.len()];
    let mut image = arena.freeze(Scope::Changed).unwrap();
    assert!(image.report().is_full(), "there is nothing to build on");
    take_into(&mut image, &mut bytes, 7, || ());
    assert_eq!(image.finish().unwrap().generation, 1);
    (0..10).for_each(|page| write(page, 2));
    let mut buffer = vec![0; 3 * PAGE];
    let mut dropped = arena.freeze(Scope::Changed).unwrap();
    dropped.take(&mut buffer).unwrap().unwrap();
    // Taken, aside, and neither.
    for page in [0, 5] {
        write(page, 3);
    }
    assert_eq!(dropped.report().copied_aside, 1);
    drop(dropped);
    write(20, 3);
    let mut dropped = arena.freeze(Scope::Full).unwrap();
    dropped.take(&mut buffer).unwrap().unwrap();
    let refused = dropped.finish().unwrap_err().to_string();
    assert!(refused.contains("not all pages"), "{refused}");
    let mut image = arena.freeze(Scope::Changed).unwrap();
    assert_eq!(image.report().base, Some(1), "the last that was finished");
    let taken = take_into(&mut image, &mut bytes, 7, || ());
    assert_eq!(taken, (0..10).chain([20]).collect());
    for page in 0..100 {
        assert_eq!(
            word(&bytes, page * PAGE),
            arena.load_u64(page * PAGE).unwrap()
        );
    }
    image.finish().unwrap();
    assert_eq!(arena.freeze(Scope::Changed).unwrap().report().pages, 0);
}
