//! Arenas: how they are made, registered, restored; who may freeze them; what writes to them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::ptr::NonNull;
use std::time::Duration;

use allocator_api2::alloc::Allocator as _;
use allocator_api2::boxed::Box as ArenaBox;
use common::{PAGE, ROLE, Random, again, role, seed, take_all, take_into, wait_until, word};
use hashbrown::{DefaultHashBuilder, HashMap};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use pmu_arena::{Arena, ArenaError, ArenaOptions, Cpus, Heap, Method, Scope, ServedBy};

const LEN: usize = 8 << 20;
/// Where the kernel puts nothing by itself.
const ADDRESS: usize = 0x1000_0000_0000;

fn plain(method: Method) -> ArenaOptions {
    let mut options = ArenaOptions::plain(LEN);
    options.method = method;
    options
}

#[test]
fn s01_a_full_image_holds_what_was_touched() {
    let arena = Arena::create(&plain(Method::Protect)).unwrap();
    let mut options = plain(Method::Protect);
    options.huge_pages = false;
    let small = Arena::create(&options).unwrap();
    arena.store_u64(5 * PAGE, 1).unwrap();
    small.store_u64(5 * PAGE, 1).unwrap();
    assert_eq!(small.load_u64(7 * PAGE).unwrap(), 0, "read, not written");
    let pages = arena.freeze(Scope::Full).unwrap().report().pages;
    assert!((1..=512).contains(&pages), "a huge page at most: {pages}");
    let image = small.freeze(Scope::Full).unwrap();
    assert_eq!(image.report().pages, 1);
    // Touched for the first time while an image exists, and after.
    small.store_u64(9 * PAGE, 1).unwrap();
    drop(image);
    let mut image = small.freeze(Scope::Full).unwrap();
    let mut bytes = vec![0; LEN];
    let taken = take_into(&mut image, &mut bytes, 4, || ());
    assert_eq!(taken, [5, 9].into());
}

#[test]
fn s01_one_image_at_a_time() {
    for method in [Method::Protect, Method::Fork] {
        let arena = Arena::create(&plain(method)).unwrap();
        let image = arena.freeze(Scope::Full).unwrap();
        let refused = arena.freeze(Scope::Full).unwrap_err();
        assert!(matches!(refused, ArenaError::Frozen), "{refused}");
        drop(image);
        let (_, report) = take_all(arena.freeze(Scope::Full).unwrap(), LEN);
        assert_eq!((report.method, report.generation), (method, 2));
    }
}

#[test]
fn s01_an_image_outlives_the_arena() {
    for method in [Method::Protect, Method::Fork] {
        let arena = Arena::create(&plain(method)).unwrap();
        arena.store_u64(3 * PAGE, 7).unwrap();
        let image = arena.freeze(Scope::Full).unwrap();
        drop(arena);
        let (bytes, _) = take_all(image, LEN);
        assert_eq!(word(&bytes, 3 * PAGE), 7);
    }
}

#[test]
fn s01_bad_options_are_refused() {
    for len in [0, 4096, (2 << 20) + 4096] {
        let refused = Arena::create(&ArenaOptions::new(len)).unwrap_err();
        assert!(
            matches!(refused, ArenaError::BadOptions { .. }),
            "{refused}"
        );
    }
    let refused = Arena::create(&ArenaOptions::new(1 << 60)).unwrap_err();
    assert!(matches!(refused, ArenaError::NoMemory { .. }), "{refused}");
    let arena = Arena::create(&plain(Method::Auto)).unwrap();
    let mut taken = plain(Method::Auto);
    taken.address = Some(arena.address());
    let refused = Arena::create(&taken).unwrap_err();
    assert!(matches!(refused, ArenaError::NoMemory { .. }), "{refused}");
    for offset in [4, LEN, LEN - 4, usize::MAX - 7] {
        let refused = arena.store_u64(offset, 1).unwrap_err();
        assert!(
            matches!(refused, ArenaError::OutOfBounds { .. }),
            "{refused}"
        );
    }
    let mut image = arena.freeze(Scope::Full).unwrap();
    assert!(image.take(&mut [0; PAGE - 1]).is_err());
    let heap = Arena::create(&ArenaOptions::new(LEN)).unwrap();
    assert!(matches!(heap.load_u64(0), Err(ArenaError::HasHeap)));
}

fn map(flags: MapFlags) -> NonNull<u8> {
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the place.
    unsafe { mmap_anonymous(None, LEN.try_into().unwrap(), rights, flags) }
        .unwrap()
        .cast()
}

#[test]
fn s01_a_mapping_of_the_program_is_watched() {
    let start = map(MapFlags::MAP_PRIVATE);
    // SAFETY: mapped, ours, and written by this thread alone until it is unmapped below.
    let write = |offset: usize, value: u64| unsafe {
        start.add(offset).cast::<u64>().write_volatile(value);
    };
    write(PAGE, 1);
    let len = LEN - PAGE;
    // SAFETY: mapped, private and anonymous until the arena is dropped.
    let arena = unsafe { Arena::register(start, len, &plain(Method::Protect)) }.unwrap();
    let image = arena.freeze(Scope::Full).unwrap();
    write(PAGE, 2);
    write(LEN - 8, 3);
    let (bytes, report) = take_all(image, len);
    assert_eq!((word(&bytes, PAGE), report.copied_aside), (1, 1));
    let again = arena.freeze(Scope::Changed).unwrap();
    assert_eq!(
        again.report().pages,
        1,
        "what follows the range is no page of it"
    );
    drop(again);
    drop(arena);
    write(2 * PAGE, 4);
    // SAFETY: nobody uses it any more.
    unsafe { munmap(start.cast(), LEN) }.unwrap();
}

#[test]
fn s01_mappings_that_cannot_be_watched_are_refused() {
    let shared = map(MapFlags::MAP_SHARED);
    let options = plain(Method::Auto);
    // SAFETY: for this test of a refusal, nothing is promised of the mapping's kind: it is mapped.
    let misaligned = unsafe { Arena::register(shared.add(8), LEN - PAGE, &options) };
    assert!(matches!(misaligned, Err(ArenaError::BadOptions { .. })));
    // SAFETY: nobody uses it any more.
    unsafe { munmap(shared.cast(), LEN) }.unwrap();
    // SAFETY: nothing is mapped there now; no byte of it is touched before that is found.
    let gone = unsafe { Arena::register(shared, LEN, &options) };
    assert!(
        matches!(gone, Err(ArenaError::NotWatchable { .. })),
        "{gone:?}"
    );
}

#[test]
fn s06_the_kernel_may_write_to_frozen_pages() {
    let arena = Arena::create(&plain(Method::Protect)).unwrap();
    let (mut out, mut into) = UnixStream::pair().unwrap();
    for page in 0..64 {
        arena.store_u64(page * PAGE, 1).unwrap();
    }
    let image = arena.freeze(Scope::Full).unwrap();
    let writer = std::thread::spawn(move || out.write_all(&[9; 64 * PAGE]).unwrap());
    // SAFETY: nobody else uses these bytes while the slice lives, but the arena's threads, which
    // read pages that are protected.
    let bytes = unsafe { std::slice::from_raw_parts_mut(arena.as_ptr(), 64 * PAGE) };
    into.read_exact(bytes).unwrap();
    writer.join().unwrap();
    assert!(bytes.iter().all(|&byte| byte == 9));
    let (bytes, report) = take_all(image, LEN);
    assert!((0..64).all(|page| word(&bytes, page * PAGE) == 1));
    assert_eq!((report.copied_aside, report.waits), (64, 0));
}

#[test]
fn s06_where_signals_serve_system_calls_fail_on_frozen_pages_and_harm_nothing() {
    let mut options = plain(Method::Protect);
    options.served_by = ServedBy::Signal;
    let arena = Arena::create(&options).unwrap();
    arena.store_u64(0, 1).unwrap();
    let image = arena.freeze(Scope::Full).unwrap();
    let zeroes = std::fs::File::open("/dev/zero").unwrap();
    // SAFETY: nobody else uses these bytes while the slice lives.
    let bytes = unsafe { std::slice::from_raw_parts_mut(arena.as_ptr(), PAGE) };
    assert_eq!(
        nix::unistd::read(&zeroes, bytes),
        Err(nix::errno::Errno::EFAULT)
    );
    arena.store_u64(8, 2).unwrap();
    // Now it may be written, by everybody.
    assert_eq!(nix::unistd::read(&zeroes, bytes), Ok(PAGE));
    let (bytes, report) = take_all(image, LEN);
    assert_eq!((word(&bytes, 0), word(&bytes, 8)), (1, 0));
    assert_eq!(report.copied_aside, 1);
}

extern "C" fn say_and_end(_: libc::c_int) {
    println!("the earlier handler");
    std::process::exit(0);
}

#[test]
fn s06_a_bus_error_of_somebody_elses_memory_goes_its_way() {
    const NAME: &str = "s06_a_bus_error_of_somebody_elses_memory_goes_its_way";
    let Some(role) = role() else {
        let output = again(NAME, "default").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
        let output = again(NAME, "handler").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("the earlier handler"),
            "{said}"
        );
        return;
    };
    if role == "handler" {
        let handler: extern "C" fn(libc::c_int) = say_and_end;
        // SAFETY: a handler of the right type; what it does is not interrupted elsewhere.
        unsafe { libc::signal(libc::SIGBUS, handler as usize) };
    }
    let mut options = plain(Method::Protect);
    options.served_by = ServedBy::Signal;
    let arena = Arena::create(&options).unwrap();
    arena.freeze(Scope::Full).unwrap();
    arena.store_u64(0, 1).unwrap();
    // A file with nothing in it: its first page is not there.
    let file = tempfile::tempfile().unwrap();
    // SAFETY: a new mapping, of which nobody knows.
    let mapped = unsafe {
        let (rights, flags) = (
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
        );
        nix::sys::mman::mmap(None, PAGE.try_into().unwrap(), rights, flags, &file, 0).unwrap()
    };
    // SAFETY: the bus error is what is asked for.
    unsafe { mapped.cast::<u8>().write_volatile(1) };
    panic!("no bus error");
}

type Table<'a> = HashMap<u64, ArenaBox<[u64; 8], Heap<'a>>, DefaultHashBuilder, Heap<'a>>;

fn fill(table: &mut Table<'_>, random: &mut Random, count: usize) {
    for _ in 0..count {
        let key = random.below(5000) as u64;
        if random.below(3) == 0 {
            table.remove(&key);
        } else {
            let value = ArenaBox::new_in([key; 8], *table.allocator());
            table.insert(key, value);
        }
    }
}

#[test]
fn s01_a_second_arena_goes_on_where_the_image_was() {
    let seed = seed();
    let mut random = Random::new(seed, 0);
    let mut bytes = vec![0; LEN];
    let mut options = ArenaOptions::new(LEN);
    options.address = Some(ADDRESS);
    let expected = {
        let arena = Arena::create(&options).unwrap();
        assert_eq!(arena.address(), ADDRESS);
        let heap = arena.heap().unwrap();
        let table: Table<'_> = HashMap::with_hasher_in(DefaultHashBuilder::default(), heap);
        let root = ArenaBox::leak(ArenaBox::new_in(table, heap));
        heap.set_root(NonNull::from(&mut *root)).unwrap();
        for _ in 0..20 {
            fill(root, &mut random, 500);
            let mut image = arena.freeze(Scope::Changed).unwrap();
            take_into(&mut image, &mut bytes, 16, || ());
            image.finish().unwrap();
        }
        let expected: Vec<(u64, u64)> = root.iter().map(|(&key, value)| (key, value[7])).collect();
        // What comes after the last image is lost.
        fill(root, &mut random, 500);
        expected
    };
    let mut restoring = Arena::restore(&options).unwrap();
    restoring.write(0, &bytes).unwrap();
    assert!(restoring.write(1, &bytes).is_err());
    assert!(restoring.write(0, &[0; 100]).is_err());
    // SAFETY: the image was made above, by this very program.
    let arena = unsafe { restoring.seal() }.unwrap();
    let heap = arena.heap().unwrap();
    assert!(heap.root::<u64>().is_none(), "of another size");
    // SAFETY: the type that was stored, and nobody else uses it.
    let table = unsafe { heap.root::<Table<'_>>().unwrap().as_mut() };
    let found: Vec<(u64, u64)> = table.iter().map(|(&key, value)| (key, value[7])).collect();
    assert_eq!(found, expected, "seed {seed}");
    fill(table, &mut random, 5000);
    assert!(
        table
            .iter()
            .all(|(key, value)| value.iter().all(|word| word == key))
    );
    let (_, report) = take_all(arena.freeze(Scope::Changed).unwrap(), LEN);
    assert!(report.is_full());
}

#[test]
fn s01_images_that_hold_no_heap_of_this_place_are_refused() {
    let mut bytes = vec![0; LEN];
    let mut there = ArenaOptions::new(LEN);
    there.address = Some(ADDRESS + (1 << 32));
    {
        let arena = Arena::create(&there).unwrap();
        let mut image = arena.freeze(Scope::Full).unwrap();
        take_into(&mut image, &mut bytes, 16, || ());
    }
    let seal = |options: &ArenaOptions, bytes: &[u8]| {
        let mut restoring = Arena::restore(options).unwrap();
        restoring.write(0, bytes).unwrap();
        // SAFETY: what it refuses it doesn't use.
        unsafe { restoring.seal() }.unwrap_err().to_string()
    };
    let mut elsewhere = there.clone();
    elsewhere.address = Some(ADDRESS + (2 << 32));
    assert!(seal(&elsewhere, &bytes).contains("another address"));
    assert!(seal(&there, &vec![0; LEN]).contains("no heap"));
    let mut longer = there.clone();
    longer.len_bytes = 2 * LEN;
    assert!(seal(&longer, &bytes).contains("another length"));
    bytes[8] ^= 1;
    assert!(seal(&there, &bytes).contains("another version"));
}

#[test]
fn s01_a_full_heap_refuses_and_goes_on() {
    let arena = Arena::create(&ArenaOptions::new(LEN)).unwrap();
    let heap = arena.heap().unwrap();
    let layout = std::alloc::Layout::from_size_align(64 << 10, 64).unwrap();
    let mut blocks = Vec::new();
    while let Ok(block) = heap.allocate(layout) {
        blocks.push(block.cast::<u8>());
    }
    assert!(blocks.len() > 100, "{}", blocks.len());
    assert!(heap.set_root(NonNull::<u64>::dangling()).is_err());
    for block in blocks.drain(..) {
        assert!(block.as_ptr().addr().is_multiple_of(64));
        // SAFETY: each came from `allocate` with this layout.
        unsafe { heap.deallocate(block, layout) };
    }
    let all = std::alloc::Layout::from_size_align(LEN - LEN / 16, 64).unwrap();
    assert!(heap.allocate(all).is_ok(), "the parts came together again");
}

#[test]
fn s03_the_thread_uses_the_processors_it_may() {
    let mut options = plain(Method::Protect);
    options.cpus = Cpus::Only(vec![0]);
    let arena = Arena::create(&options).unwrap();
    let allowed: Vec<String> = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| task.unwrap().path())
        .filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "arena\n"))
        .map(|task| fs::read_to_string(task.join("status")).unwrap())
        .collect();
    let line = "Cpus_allowed_list:\t0\n";
    assert!(allowed.iter().any(|status| status.contains(line)));
    drop(arena);
    options.cpus = Cpus::Only(vec![]);
    assert!(matches!(
        Arena::create(&options),
        Err(ArenaError::BadOptions { .. })
    ));
    options.cpus = Cpus::Only(vec![1 << 20]);
    assert!(matches!(
        Arena::create(&options),
        Err(ArenaError::Io { .. })
    ));
}

#[test]
fn s01_where_userfaultfd_is_not_allowed_it_forks() {
    const NOBODY: u32 = 65534;
    const NAME: &str = "s01_where_userfaultfd_is_not_allowed_it_forks";
    if role().is_none() {
        let mut command = again(NAME, "nobody");
        if nix::unistd::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("forked"), "{said}");
        return;
    }
    let refused = Arena::create(&plain(Method::Protect)).unwrap_err();
    assert!(
        matches!(refused, ArenaError::NotPossible { .. }),
        "{refused}"
    );
    let arena = Arena::create(&plain(Method::Auto)).unwrap();
    assert_eq!(arena.method(), Method::Fork);
    let reason = arena.fallback_reason().unwrap();
    assert!(reason.contains("userfaultfd is not possible"), "{reason}");
    arena.store_u64(PAGE, 1).unwrap();
    let image = arena.freeze(Scope::Changed).unwrap();
    arena.store_u64(PAGE, 2).unwrap();
    let (bytes, report) = take_all(image, LEN);
    assert_eq!((word(&bytes, PAGE), report.method), (1, Method::Fork));
    println!("forked");
}

/// Processes whose environment has the role.
fn processes(role: &str) -> usize {
    let wanted = format!("{ROLE}={role}");
    fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().parse::<u32>().is_ok())
        .filter_map(|entry| fs::read(entry.path().join("environ")).ok())
        .filter(|environ| {
            environ
                .split(|&byte| byte == 0)
                .any(|var| var == wanted.as_bytes())
        })
        .count()
}

#[test]
fn s01_a_forked_process_ends_with_its_image_and_with_the_program() {
    const NAME: &str = "s01_a_forked_process_ends_with_its_image_and_with_the_program";
    if let Some(role) = role() {
        let arena = Arena::create(&plain(Method::Fork)).unwrap();
        // A thread that ends doesn't take the image along.
        let freeze = || arena.freeze(Scope::Full).unwrap();
        let image = std::thread::scope(|scope| scope.spawn(freeze).join().unwrap());
        assert_eq!(processes(&role), 2, "this one and the forked one");
        drop(image);
        assert_eq!(processes(&role), 1, "neither running nor left behind");
        let _image = arena.freeze(Scope::Full).unwrap();
        println!("frozen");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let role = format!("killed-{}", std::process::id());
    let mut program = again(NAME, &role).spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("frozen")));
    assert_eq!(processes(&role), 2);
    program.kill().unwrap();
    program.wait().unwrap();
    wait_until("the forked process ends", || processes(&role) == 0);
}
