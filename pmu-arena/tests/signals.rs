//! Arenas whose writers serve themselves, in a handler of SIGBUS, beside everything else that a
//! program does with signals, locks and memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use allocator_api2::boxed::Box as ArenaBox;
use allocator_api2::vec::Vec;
use common::{PAGE, Random, again, role, seed, take_all, wait_until, word};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use parking_lot::{Condvar, Mutex};
use pmu_arena::{Arena, ArenaError, ArenaOptions, Frozen, Method, Scope, ServedBy};

const LEN: usize = 2 << 20;
const PAGES: usize = LEN / PAGE;

fn options(aside_pages: usize) -> ArenaOptions {
    let mut options = ArenaOptions::plain(LEN);
    options.method = Method::Protect;
    options.huge_pages = false;
    options.served_by = ServedBy::Signal;
    options.aside_bytes_max = aside_pages * PAGE;
    options
}

/// Runs `work` in a program of its own, which may be killed; at most a minute.
fn alone(test: &str, work: impl FnOnce()) {
    if role().is_some() {
        work();
        println!("came to the end");
        return;
    }
    let output = ended(test, "alone");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("came to the end"),
        "{output:?}"
    );
}

/// What a program of its own said and how it ended; one that hangs is killed.
fn ended(test: &str, role: &str) -> Output {
    let mut program = again(test, role).spawn().unwrap();
    let begun = Instant::now();
    while program.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = program.kill();
    program.wait_with_output().unwrap()
}

fn take_slowly(mut image: Frozen) {
    let mut buffer = vec![0; 16 * PAGE];
    while image.take(&mut buffer).unwrap().is_some() {
        std::thread::yield_now();
    }
    image.finish().unwrap();
}

/// Stops the threads of a scope when the test ends, however it does.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn map() -> NonNull<u8> {
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let len = LEN.try_into().unwrap();
    // SAFETY: the kernel chooses the place.
    let mapped = unsafe { mmap_anonymous(None, len, rights, MapFlags::MAP_PRIVATE) };
    mapped.unwrap().cast()
}

#[test]
fn s06_a_mapping_is_written_while_its_arena_comes_and_goes() {
    const NAME: &str = "s06_a_mapping_is_written_while_its_arena_comes_and_goes";
    alone(NAME, || {
        let start = map();
        let address = start.as_ptr().expose_provenance();
        let stop = AtomicBool::new(false);
        let written = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            for thread in 0..3 {
                let (stop, written) = (&stop, &written);
                scope.spawn(move || {
                    let mut random = Random::new(7, thread);
                    while !stop.load(Ordering::Relaxed) {
                        let at = address + random.below(PAGES) * PAGE + thread as usize * 8;
                        let word = std::ptr::with_exposed_provenance_mut(at);
                        // SAFETY: mapped until the threads are joined, and atomic.
                        unsafe { AtomicU64::from_ptr(word) }.fetch_add(1, Ordering::Relaxed);
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for round in 0..1500 {
                // SAFETY: mapped, private and anonymous until the threads are joined.
                let arena = unsafe { Arena::register(start, LEN, &options(8)) }.unwrap();
                let image = arena.freeze(Scope::Full).unwrap();
                if round % 4 == 0 {
                    take_slowly(image);
                } else if round % 4 == 1 {
                    // The image is the last to hold it.
                    drop(arena);
                    drop(image);
                }
            }
        });
        assert!(written.into_inner() > 10_000);
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start.cast(), LEN) }.unwrap();
    });
}

/// Forks; the new process does `work` and ends.
fn forked(work: impl FnOnce()) -> nix::unistd::Pid {
    // SAFETY: the threads of this program hold no lock that `work` takes.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            work();
            // SAFETY: it ends the process.
            unsafe { libc::_exit(0) }
        }
    }
}

#[test]
fn s06_a_forked_process_keeps_no_arena_protected() {
    const NAME: &str = "s06_a_forked_process_keeps_no_arena_protected";
    alone(NAME, || {
        for served_by in [ServedBy::Thread, ServedBy::Signal] {
            let start = map();
            let mut options = options(8);
            options.served_by = served_by;
            // SAFETY: mapped, private and anonymous until the arena is dropped.
            let arena = unsafe { Arena::register(start, LEN, &options) }.unwrap();
            // SAFETY: mapped, and this thread's alone.
            let write = |value| unsafe { start.cast::<u64>().write_volatile(value) };
            write(1);
            drop(arena.freeze(Scope::Full).unwrap());
            // It has the descriptor as long as it lives.
            let child = forked(|| std::thread::sleep(Duration::from_secs(20)));
            drop(arena);
            let begun = Instant::now();
            write(2);
            assert!(begun.elapsed() < Duration::from_secs(10), "{served_by:?}");
            nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
            nix::sys::wait::waitpid(child, None).unwrap();
            // SAFETY: nobody uses it any more.
            unsafe { munmap(start.cast(), LEN) }.unwrap();
        }
    });
}

#[test]
fn s06_a_forked_process_that_drops_an_arena_leaves_its_parents() {
    const NAME: &str = "s06_a_forked_process_that_drops_an_arena_leaves_its_parents";
    alone(NAME, || {
        let arena = Arena::create(&options(8)).unwrap();
        arena.store_u64(0, 1).unwrap();
        let image = arena.freeze(Scope::Full).unwrap();
        let mut both = Some((arena, image));
        let child = forked(|| drop(both.take()));
        nix::sys::wait::waitpid(child, None).unwrap();
        let (arena, image) = both.unwrap();
        arena.store_u64(0, 2).unwrap();
        let (bytes, report) = take_all(image, LEN);
        assert_eq!((word(&bytes, 0), report.copied_aside), (1, 1));
    });
}

/// Locks of the program's own, in the arena.
#[repr(C)]
struct Shared {
    lock: Mutex<u64>,
    other: [u64; 64],
    ready: Condvar,
}

#[test]
fn s06_locks_of_the_program_may_lie_in_the_arena() {
    const NAME: &str = "s06_locks_of_the_program_may_lie_in_the_arena";
    alone(NAME, || {
        // Every first write waits for the reader.
        let arena = Arena::create(&options(0)).unwrap();
        let shared: NonNull<Shared> = NonNull::new(arena.as_ptr()).unwrap().cast();
        // SAFETY: nobody else uses the bytes, which are long enough and aligned to a page.
        let shared = unsafe {
            shared.write(Shared {
                lock: Mutex::new(0),
                other: [0; 64],
                ready: Condvar::new(),
            });
            shared.as_ref()
        };
        assert_eq!(shared.other[0], 0);
        const TURNS: u64 = 900;
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            // Each in turn, so that each waits on the condition.
            for mine in 0..3 {
                let done = &done;
                scope.spawn(move || {
                    let mut random = Random::new(5, mine);
                    for _ in 0..TURNS / 3 {
                        let mut turn = shared.lock.lock();
                        // Frozen just now, and so written next within a call of the lock's.
                        std::thread::sleep(Duration::from_micros(random.below(300) as u64));
                        while *turn % 3 != mine {
                            shared.ready.wait(&mut turn);
                        }
                        *turn += 1;
                        shared.ready.notify_all();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            while done.load(Ordering::Relaxed) < 3 {
                let image = arena.freeze(Scope::Changed).unwrap();
                std::thread::sleep(Duration::from_micros(200));
                take_slowly(image);
            }
        });
        assert_eq!(*shared.lock.lock(), TURNS);
    });
}

extern "C" fn say(_: libc::c_int) {
    println!("the earlier handler");
}

/// Has SIGBUS handled so.
fn before(handler: SigHandler, flags: SaFlags) {
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: a handler of the right type, that runs while no lock is held.
    unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
}

/// A bus error: the first page of a file with nothing in it.
fn fail() {
    let file = tempfile::tempfile().unwrap();
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let len = PAGE.try_into().unwrap();
    // SAFETY: a new mapping, of which nobody knows.
    let mapped = unsafe { nix::sys::mman::mmap(None, len, rights, MapFlags::MAP_SHARED, &file, 0) };
    // SAFETY: the bus error is what is asked for.
    unsafe { mapped.unwrap().cast::<u8>().write_volatile(1) };
}

fn write_to_an_image(arena: &Arena) {
    arena.store_u64(0, 1).unwrap();
    let image = arena.freeze(Scope::Full).unwrap();
    arena.store_u64(0, 2).unwrap();
    assert_eq!(image.report().copied_aside, 1);
    drop(image);
}

#[test]
fn s06_what_was_done_about_bus_errors_before_is_done_still() {
    const NAME: &str = "s06_what_was_done_about_bus_errors_before_is_done_still";
    const SURVIVED: &str = "the arena is served still";
    let Some(role) = role() else {
        for (role, survives, dies, times) in [
            ("default-sent", false, true, 0),
            ("default-real", false, true, 0),
            ("ignored-sent", true, false, 0),
            ("ignored-real", false, true, 0),
            ("handled-sent", true, false, 1),
            ("once-sent", false, true, 1),
            ("once-real", false, true, 1),
        ] {
            let output = ended(NAME, role);
            let said = String::from_utf8_lossy(&output.stdout);
            let dead = output.status.signal() == Some(libc::SIGBUS);
            assert_eq!(dead, dies, "{role}: {output:?}");
            assert_eq!(said.contains(SURVIVED), survives, "{role}: {output:?}");
            let said = said.matches("the earlier handler").count();
            assert_eq!(said, times, "{role}: {output:?}");
        }
        return;
    };
    let (action, kind) = role.split_once('-').unwrap();
    match action {
        "default" => before(SigHandler::SigDfl, SaFlags::empty()),
        "ignored" => before(SigHandler::SigIgn, SaFlags::empty()),
        "handled" => before(SigHandler::Handler(say), SaFlags::empty()),
        _ => before(SigHandler::Handler(say), SaFlags::SA_RESETHAND),
    }
    let arena = Arena::create(&options(8)).unwrap();
    write_to_an_image(&arena);
    match kind {
        "real" => fail(),
        _ => raise(Signal::SIGBUS).unwrap(),
    }
    if action == "once" {
        raise(Signal::SIGBUS).unwrap();
    }
    write_to_an_image(&arena);
    println!("{SURVIVED}");
}

/// What the handler below writes to.
static WORDS: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());
static CAME: AtomicU64 = AtomicU64::new(0);

extern "C" fn write_somewhere(_: libc::c_int) {
    let came = CAME.fetch_add(1, Ordering::Relaxed) as usize;
    let words = WORDS.load(Ordering::Acquire);
    // SAFETY: the arena is there while the signal is sent, and its words are atomics.
    let word = unsafe { AtomicU64::from_ptr(words.byte_add(came * 7919 % PAGES * PAGE + 8)) };
    word.fetch_add(1, Ordering::Relaxed);
}

fn on_user_signal() {
    let handler = SigHandler::Handler(write_somewhere);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: a handler of the right type, that uses atomics alone.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
}

#[test]
fn s06_other_handlers_write_to_the_arena_as_well() {
    const NAME: &str = "s06_other_handlers_write_to_the_arena_as_well";
    alone(NAME, || {
        on_user_signal();
        let arena = Arena::create(&options(40)).unwrap();
        WORDS.store(arena.as_ptr().cast(), Ordering::Release);
        let (stop, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        let (tell, threads) = mpsc::channel();
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            for thread in 0..2 {
                let (arena, stopped, tell) = (&arena, &stopped, tell.clone());
                scope.spawn(move || {
                    tell.send(this_thread()).unwrap();
                    let mut random = Random::new(11, thread);
                    while !stopped.load(Ordering::Relaxed) {
                        arena.store_u64(random.below(PAGES) * PAGE, 1).unwrap();
                    }
                });
            }
            let (stop, stopped) = (&stop, &stopped);
            scope.spawn(move || {
                // They end when no signal is sent any more.
                let _stopped = Stop(stopped);
                let writers = [threads.recv().unwrap(), threads.recv().unwrap()];
                while !stop.load(Ordering::Relaxed) {
                    writers.iter().for_each(|&writer| send(writer));
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(4) {
                take_slowly(arena.freeze(Scope::Full).unwrap());
            }
        });
        assert!(CAME.load(Ordering::Relaxed) > 100);
    });
}

fn this_thread() -> libc::pthread_t {
    // SAFETY: it is always possible.
    unsafe { libc::pthread_self() }
}

fn send(thread: libc::pthread_t) {
    // SAFETY: the thread runs still.
    assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
}

extern "C" fn count(_: libc::c_int) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn s06_signals_reach_a_writer_that_waits_for_room() {
    const NAME: &str = "s06_signals_reach_a_writer_that_waits_for_room";
    alone(NAME, || {
        let action = SigAction::new(
            SigHandler::Handler(count),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: a handler of the right type, that counts.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let arena = Arena::create(&options(0)).unwrap();
        arena.store_u64(0, 1).unwrap();
        let image = arena.freeze(Scope::Full).unwrap();
        std::thread::scope(|scope| {
            let (tell, thread) = mpsc::channel();
            let arena = &arena;
            scope.spawn(move || {
                tell.send(this_thread()).unwrap();
                arena.store_u64(0, 2).unwrap();
            });
            wait_until("the writer waits", || image.report().waits == 1);
            send(thread.recv().unwrap());
            wait_until("the signal came", || CAME.load(Ordering::Relaxed) == 1);
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(image.report().waits, 1, "it is one write that waits");
            let (bytes, _) = take_all(image, LEN);
            assert_eq!(word(&bytes, 0), 1);
        });
        assert_eq!(arena.load_u64(0).unwrap(), 2);
    });
}

#[test]
fn s06_a_thread_with_the_smallest_stack_serves_itself() {
    const NAME: &str = "s06_a_thread_with_the_smallest_stack_serves_itself";
    alone(NAME, || {
        let arena = Arena::create(&options(8)).unwrap();
        arena.store_u64(0, 1).unwrap();
        let image = arena.freeze(Scope::Full).unwrap();
        std::thread::scope(|scope| {
            let writer = std::thread::Builder::new()
                .stack_size(libc::PTHREAD_STACK_MIN)
                .spawn_scoped(scope, || arena.store_u64(0, 2).unwrap());
            writer.unwrap().join().unwrap();
        });
        assert_eq!(image.report().copied_aside, 1);
    });
}

/// Freezes an arena again and again while two threads write, and looks at what each image has.
fn live(seed: u64, arenas: usize) {
    let mut random = Random::new(seed, 1000);
    for _ in 0..arenas {
        let mut options = options(random.below(64));
        options.grain_pages = 1 << random.below(4);
        options.huge_pages = random.below(2) == 0;
        options.prefault = random.below(2) == 0;
        let arena = Arena::create(&options).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            for thread in 0..2 {
                let (arena, stop) = (&arena, &stop);
                scope.spawn(move || {
                    let mut random = Random::new(seed, thread);
                    let mut number = 0;
                    while !stop.load(Ordering::Relaxed) {
                        number += 1;
                        let page = random.below(PAGES) * PAGE;
                        let _guard = arena.writing();
                        // Whole under the guard: both or none, in every image.
                        arena
                            .store_u64(page + thread as usize * 16, number)
                            .unwrap();
                        let twin = page + thread as usize * 16 + 8;
                        arena.store_u64(twin, number).unwrap();
                    }
                });
            }
            let mut chain = vec![0; LEN];
            for _ in 0..1 + random.below(6) {
                let mut image = arena.freeze(Scope::Changed).unwrap();
                common::take_into(&mut image, &mut chain, 1 + random.below(40), || ());
                for at in (0..PAGES).flat_map(|page| [page * PAGE, page * PAGE + 16]) {
                    assert_eq!(word(&chain, at), word(&chain, at + 8), "seed {seed}");
                }
                match random.below(4) {
                    0 => return,
                    _ => image.finish().unwrap(),
                };
            }
        });
    }
}

#[test]
fn s06_arenas_come_and_go_beside_others_that_are_written() {
    const NAME: &str = "s06_arenas_come_and_go_beside_others_that_are_written";
    let seed = seed();
    let arenas = std::env::var("PMU_ARENAS").map_or(15, |arenas| arenas.parse().unwrap());
    alone(NAME, || {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || live(seed ^ (thread << 32), arenas));
            }
        });
    });
}

#[test]
fn s06_threads_that_allocate_serve_themselves_while_others_freeze() {
    const NAME: &str = "s06_threads_that_allocate_serve_themselves_while_others_freeze";
    alone(NAME, || {
        for aside_pages in [0, 6, 512] {
            let mut options = options(aside_pages);
            options.heap = true;
            let arena = Arena::create(&options).unwrap();
            let heap = arena.heap().unwrap();
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _stop = Stop(&stop);
                for thread in 0..3 {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut random = Random::new(13, thread);
                        let mut held = Vec::new_in(heap);
                        while !stop.load(Ordering::Relaxed) {
                            // The faults of the allocator itself come while it holds its lock.
                            held.push(ArenaBox::new_in([thread; 90], heap));
                            if held.len() > 300 {
                                held.swap_remove(random.below(300));
                            }
                            let found = &held[random.below(held.len())];
                            assert!(found.iter().all(|&word| word == thread));
                        }
                    });
                }
                for _ in 0..150 {
                    take_slowly(arena.freeze(Scope::Changed).unwrap());
                }
            });
        }
    });
}

#[test]
fn s06_an_arena_that_is_lost_may_be_written() {
    const NAME: &str = "s06_an_arena_that_is_lost_may_be_written";
    alone(NAME, || {
        let seed = seed();
        for _ in 0..100 {
            let start = map();
            let address = start.as_ptr().expose_provenance();
            let write = move |page: usize| {
                let word = std::ptr::with_exposed_provenance_mut(address + page * PAGE);
                // SAFETY: mapped until the threads are joined, and atomic.
                unsafe { AtomicU64::from_ptr(word) }.fetch_add(1, Ordering::Relaxed);
            };
            // SAFETY: what is promised is broken below, and found.
            let arena = unsafe { Arena::register(start, LEN, &options(8)) }.unwrap();
            drop(arena.freeze(Scope::Full).unwrap());
            (PAGES / 2..PAGES).for_each(write);
            // SAFETY: nobody writes to that half from now on, nor near it.
            unsafe { munmap(start.add(LEN / 2).cast(), LEN / 2) }.unwrap();
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _stop = Stop(&stop);
                for thread in 0..2 {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut random = Random::new(seed, thread);
                        while !stop.load(Ordering::Relaxed) {
                            write(random.below(PAGES / 4));
                        }
                    });
                }
                assert!(arena.freeze(Scope::Changed).is_err());
                let lost = arena.freeze(Scope::Changed).unwrap_err();
                assert!(matches!(lost, ArenaError::Lost), "{lost}");
                (0..PAGES / 4).for_each(write);
            });
            drop(arena);
            // SAFETY: nobody uses it any more.
            unsafe { munmap(start.cast(), LEN / 2) }.unwrap();
        }
    });
}
