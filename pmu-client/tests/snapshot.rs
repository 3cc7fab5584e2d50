//! Snapshots of an arena against real units in this process: series, chains, damage, lost units, fences.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pmu_auth::Role;
use pmu_client::snapshot::{
    Arena, ArenaOptions, ArenaShape, Cpus, Method, RestoreOptions, SnapshotError, SnapshotImage,
    SnapshotKind, SnapshotOptions, SnapshotRegion, SnapshotReport, Snapshots, capacity_bytes_for,
};
use pmu_client::{ClientError, ConnectOptions, LogPosition, OpenOptions, SetNumber, Timeouts};
use support::{PATIENCE, Pool, Site};
use units::Units;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const ARENA: usize = 4 * MIB;

/// Ends the program's threads when the test ends, however it does.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

fn plain(len: usize) -> Arc<Arena> {
    Arc::new(Arena::create(&ArenaOptions::plain(len)).unwrap())
}

fn one(site: &Site, who: &str, region: &str) -> SnapshotRegion {
    SnapshotRegion::One {
        unit: site.client(who),
        region: region.to_owned(),
    }
}

fn every(snapshots: u32) -> SnapshotOptions {
    SnapshotOptions::new().full_every(NonZeroU32::new(snapshots).unwrap())
}

fn anywhere() -> RestoreOptions {
    RestoreOptions::new(ArenaOptions::plain(2 * MIB)).anywhere()
}

/// What stands at the words that were written.
type Model = BTreeMap<usize, u64>;

/// Writes a word of each of `pages` random pages.
fn write(arena: &Arena, model: &mut Model, random: &mut Random, pages: usize) {
    for _ in 0..pages {
        let offset = random.below(arena.len() / PAGE) * PAGE + random.below(PAGE / 8) * 8;
        let value = random.0;
        arena.store_u64(offset, value).unwrap();
        model.insert(offset, value);
    }
}

fn check(arena: &Arena, model: &Model) {
    for offset in (0..arena.len()).step_by(8) {
        let expected = model.get(&offset).copied().unwrap_or(0);
        assert_eq!(arena.load_u64(offset).unwrap(), expected, "at {offset}");
    }
}

fn recovered(region: &SnapshotRegion, restore: &RestoreOptions) -> (Arena, Vec<u64>, usize) {
    let recovered = region.recover(restore, &OpenOptions::new()).unwrap();
    let chain = recovered.chain.iter().map(|set| set.get()).collect();
    let skipped = recovered.skipped.len();
    (recovered.restoring.seal_plain().unwrap(), chain, skipped)
}

fn site(region: &str, kept: u32, arena_bytes: usize) -> Site {
    let capacity = capacity_bytes_for(arena_bytes as u64);
    let pool = (capacity + (1 << 20)) * u64::from(kept + 2) + (16 << 20);
    let mut site = Site::new(Pool::File, pool);
    site.sets(region, kept, capacity);
    site
}

#[test]
fn s08_a_series_of_states_comes_back_each_as_it_was() {
    let site = site("r", 5, ARENA);
    let region = one(&site, "app", "r");
    let arena = plain(ARENA);
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &every(3)).unwrap();
    assert_eq!(snapshots.full_every(), 3);
    let (mut model, mut random) = (Model::new(), Random(7));
    let mut states = BTreeMap::new();
    for number in 1..=11_u64 {
        write(&arena, &mut model, &mut random, 40);
        let report = snapshots.snapshot().unwrap();
        assert_eq!(report.receipt.set(), Some(SetNumber(number)));
        assert!(report.receipt.is_durable());
        assert_eq!(report.is_full(), (number - 1) % 3 == 0, "{report}");
        if !report.is_full() {
            assert!(report.image.pages <= 40, "{report}");
            assert!(report.bytes as f64 <= 1.1 * (40 * PAGE) as f64 + 4096.0);
        }
        assert_eq!(snapshots.last().unwrap(), report);
        states.insert(number, model.clone());
        let (again, chain, skipped) = recovered(&region, &anywhere());
        assert_eq!((chain.last(), skipped), (Some(&number), 0));
        check(&again, &model);
    }
    // 7 to 11 are kept; of these 7 begins a chain, and so does 10.
    let listed = region.snapshots(&OpenOptions::new()).unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|info| {
            (
                info.set.get(),
                info.kind == SnapshotKind::Full,
                info.is_whole,
            )
        })
        .collect();
    let expected = [(11, false), (10, true), (9, false), (8, false), (7, true)];
    assert_eq!(listed, expected.map(|(set, full)| (set, full, true)));
    for (number, chain) in [(7, vec![7]), (9, vec![7, 8, 9]), (10, vec![10])] {
        let (again, found, _) = recovered(&region, &anywhere().set(SetNumber(number)));
        assert_eq!(found, chain);
        check(&again, &states[&number]);
    }
    let gone = region.recover(&anywhere().set(SetNumber(2)), &OpenOptions::new());
    assert!(
        matches!(gone, Err(SnapshotError::NoSuchSnapshot { .. })),
        "{gone:?}"
    );
}

#[test]
fn s08_no_chain_is_longer_than_what_the_region_keeps() {
    for (kept, asked, expected) in [(1, None, 1), (2, None, 2), (8, None, 4), (3, Some(9), 3)] {
        let site = site("r", kept, 2 * MIB);
        let region = one(&site, "app", "r");
        let options = asked.map_or_else(SnapshotOptions::new, every);
        let arena = plain(2 * MIB);
        let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &options).unwrap();
        assert_eq!(snapshots.full_every(), expected);
        let (mut model, mut random) = (Model::new(), Random(u64::from(kept)));
        for number in 0..2 * kept + 3 {
            write(&arena, &mut model, &mut random, 3);
            let report = snapshots.snapshot().unwrap();
            assert_eq!(report.is_full(), number % expected == 0);
            let (again, chain, _) = recovered(&region, &anywhere());
            assert_eq!(chain.len() as u32, number % expected + 1);
            check(&again, &model);
        }
    }
}

#[test]
fn s09_a_second_instance_takes_over_at_the_same_address() {
    let site = site("r", 2, ARENA);
    let mut options = ArenaOptions::plain(ARENA);
    options.address = Some(0x2b00_0000_0000);
    let (mut model, mut random) = (Model::new(), Random(3));
    let first = one(&site, "app", "r");
    // A region that never held anything is no failure.
    let nothing = first.take_over(&anywhere(), &OpenOptions::new()).unwrap();
    assert!(nothing.recovered.is_none());
    let arena = Arc::new(Arena::create(&options).unwrap());
    let old = nothing
        .go_on(Arc::clone(&arena), &SnapshotOptions::new())
        .unwrap();
    for _ in 0..2 {
        write(&arena, &mut model, &mut random, 20);
        old.snapshot().unwrap();
    }
    let second = one(&site, "backup", "r");
    // While the first one's memory is there, a second arena can't lie in its place; it can elsewhere, for a rehearsal.
    let restore = RestoreOptions::new(ArenaOptions::plain(2 * MIB));
    let taken = second.recover(&restore, &OpenOptions::new());
    assert!(matches!(taken, Err(SnapshotError::Arena(_))), "{taken:?}");
    check(&recovered(&second, &anywhere()).0, &model);
    let taken = second.take_over(&anywhere(), &OpenOptions::new()).unwrap();
    drop(taken);
    // The old one is fenced, for good, and its program runs on.
    for _ in 0..2 {
        write(&arena, &mut Model::new(), &mut random, 1);
        let error = old.snapshot().unwrap_err();
        assert!(error.is_fenced() && !error.may_pass(), "{error}");
    }
    drop((old, arena));
    let mut taken = second.take_over(&restore, &OpenOptions::new()).unwrap();
    let found = taken.recovered.take().unwrap();
    assert_eq!((found.chain.len(), found.skipped.len()), (2, 0));
    let arena = Arc::new(found.restoring.seal_plain().unwrap());
    assert_eq!(Some(arena.address()), options.address);
    check(&arena, &model);
    let new = taken
        .go_on(Arc::clone(&arena), &SnapshotOptions::new())
        .unwrap();
    for full in [true, false] {
        write(&arena, &mut model, &mut random, 20);
        assert_eq!(new.snapshot().unwrap().is_full(), full);
        check(&recovered(&second, &anywhere()).0, &model);
    }
}

#[test]
fn s02_the_program_runs_while_a_snapshot_is_sent() {
    const LEN: usize = 64 * MIB;
    let site = site("r", 2, LEN);
    let region = one(&site, "app", "r");
    let arena = plain(LEN);
    for page in 0..LEN / PAGE {
        arena.store_u64(page * PAGE, 1).unwrap();
    }
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &every(1)).unwrap();
    let (mut refused, mut aside) = (0, 0);
    // Until both were seen: how long a transfer takes is the machine's affair.
    for round in 1..=20 {
        let pending = snapshots.begin().unwrap();
        let second = snapshots.begin();
        refused += usize::from(matches!(second, Err(SnapshotError::UnderWay)));
        // From behind, so that pages are written that were not taken yet.
        for page in (0..LEN / PAGE).rev().take(200) {
            arena.store_u64(page * PAGE, round + 1).unwrap();
        }
        let report = pending.wait().unwrap();
        drop(second.map(|second| second.wait().unwrap()));
        assert!(!snapshots.is_under_way());
        assert_eq!(report.image.pages, LEN / PAGE);
        aside += report.image.copied_aside;
        if refused == round as usize {
            let (again, ..) = recovered(&region, &anywhere());
            for page in 0..LEN / PAGE {
                let changed = page >= LEN / PAGE - 200;
                let expected = if changed { round } else { 1 };
                assert_eq!(
                    again.load_u64(page * PAGE).unwrap(),
                    expected,
                    "page {page}"
                );
            }
        }
        if refused > 0 && aside > 0 {
            break;
        }
    }
    assert!(
        refused > 0 && aside > 0,
        "{refused} refused, {aside} pages aside"
    );
    arena.store_u64(LEN - PAGE, 7).unwrap();
    // One that nobody waits for is stored all the same; one whose writer goes away is given up.
    drop(snapshots.begin().unwrap());
    drop(snapshots.begin());
    drop(snapshots);
    let (again, ..) = recovered(&region, &anywhere());
    assert!(again.load_u64(LEN - PAGE).unwrap() > 0);
}

#[test]
fn s03_the_thread_that_sends_stays_on_its_processors() {
    let site = site("r", 1, 2 * MIB);
    let options = SnapshotOptions::new().cpus(Cpus::Only(vec![0]));
    let snapshots = Snapshots::open(plain(2 * MIB), one(&site, "app", "r"), &options).unwrap();
    let mut allowed = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let status =
            std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        if status.starts_with("Name:\tsnapshots\n") {
            let line = status
                .lines()
                .find(|line| line.starts_with("Cpus_allowed_list:"));
            allowed.push(line.unwrap().to_owned());
        }
    }
    // Other tests of this program have such threads too.
    assert!(
        allowed.contains(&"Cpus_allowed_list:\t0".to_owned()),
        "{allowed:?}"
    );
    snapshots.snapshot().unwrap();
    let none = SnapshotOptions::new().cpus(Cpus::Only(Vec::new()));
    drop(snapshots);
    let refused = Snapshots::open(plain(2 * MIB), one(&site, "app", "r"), &none);
    assert!(
        matches!(refused, Err(SnapshotError::Arena(_))),
        "{refused:?}"
    );
}

#[test]
fn s06_images_are_cuts_while_threads_write() {
    const THREADS: usize = 2;
    let site = site("r", 4, ARENA);
    let region = one(&site, "app", "r");
    let arena = plain(ARENA);
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &every(4)).unwrap();
    let stop = AtomicBool::new(false);
    let done: [AtomicU64; THREADS] = Default::default();
    // Each change of a thread adds one to three words on three pages: they are equal in every image.
    let words = |thread: usize| [0, 1, 2].map(|at| (thread * 300 + at * 100) * PAGE);
    std::thread::scope(|scope| {
        let _ending = Ending(&stop);
        for thread in 0..THREADS {
            let (arena, stop, done) = (&arena, &stop, &done[thread]);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let next = done.load(Ordering::Relaxed) + 1;
                    let guard = arena.writing();
                    for word in words(thread) {
                        arena.store_u64(word, next).unwrap();
                    }
                    drop(guard);
                    done.store(next, Ordering::Release);
                }
            });
        }
        for _ in 0..12 {
            let before: Vec<_> = done
                .iter()
                .map(|done| done.load(Ordering::Acquire))
                .collect();
            let report = snapshots.snapshot();
            let after: Vec<_> = done
                .iter()
                .map(|done| done.load(Ordering::Acquire))
                .collect();
            let report = report.unwrap();
            let (again, ..) = recovered(&region, &anywhere());
            for thread in 0..THREADS {
                let found = words(thread).map(|word| again.load_u64(word).unwrap());
                assert!(
                    found[0] == found[1] && found[1] == found[2],
                    "{found:?} {report}"
                );
                assert!((before[thread]..=after[thread] + 1).contains(&found[0]));
            }
        }
    });
}

#[test]
fn s08_an_arena_that_does_not_fit_is_refused_with_both_figures() {
    let mut site = Site::new(Pool::Memory, 64 << 20);
    site.sets("r", 1, ARENA as u64);
    let refused = Snapshots::open(
        plain(ARENA),
        one(&site, "app", "r"),
        &SnapshotOptions::new(),
    );
    let Err(SnapshotError::TooLarge {
        arena_bytes,
        needed_bytes,
        capacity_bytes,
        ..
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!((arena_bytes, capacity_bytes), (ARENA as u64, ARENA as u64));
    assert_eq!(needed_bytes, ARENA as u64 + 4096);
    // Nobody holds the region now.
    Snapshots::open(
        plain(2 * MIB),
        one(&site, "app", "r"),
        &SnapshotOptions::new(),
    )
    .unwrap();
    let nothing = one(&site, "app", "r").recover(&anywhere(), &OpenOptions::new());
    assert!(
        matches!(nothing, Err(SnapshotError::NoSuchSnapshot { .. })),
        "{nothing:?}"
    );
}

#[test]
fn s08_where_pages_cannot_be_protected_a_fork_keeps_them() {
    let site = site("r", 4, 2 * MIB);
    let region = one(&site, "app", "r");
    let mut options = ArenaOptions::plain(2 * MIB);
    options.method = Method::Fork;
    let arena = Arc::new(Arena::create(&options).unwrap());
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &every(4)).unwrap();
    let (mut model, mut random) = (Model::new(), Random(9));
    for _ in 0..3 {
        write(&arena, &mut model, &mut random, 9);
        let report = snapshots.snapshot().unwrap();
        assert!(report.is_full() && report.image.method == Method::Fork);
        assert!(report.to_string().contains(" by fork"), "{report}");
        check(&recovered(&region, &anywhere()).0, &model);
    }
}

/// Inverts a byte of the pool wherever `word` stands in it.
fn damage(pool: &std::path::Path, word: u64) {
    let bytes = std::fs::read(pool).unwrap();
    let places: Vec<_> = bytes
        .windows(8)
        .enumerate()
        .filter(|(_, found)| *found == word.to_le_bytes())
        .map(|(at, _)| at as u64)
        .collect();
    assert!(!places.is_empty(), "{word:#x} is not there");
    let file = std::fs::File::options().write(true).open(pool).unwrap();
    for at in places {
        file.write_all_at(&[bytes[at as usize] ^ 1], at).unwrap();
    }
}

#[test]
fn s08_a_broken_link_falls_back_to_the_last_whole_one() {
    let site = site("r", 6, 2 * MIB);
    let region = one(&site, "app", "r");
    let arena = plain(2 * MIB);
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &every(3)).unwrap();
    let marks: Vec<u64> = (1..=6)
        .map(|number| 0x0dd0_0000_1111_0000 + number)
        .collect();
    let mut states = Vec::new();
    for (index, mark) in marks.iter().enumerate() {
        arena.store_u64(index * 2 * PAGE, *mark).unwrap();
        // The same page in each, so that a partly read one would be seen.
        arena.store_u64(100 * PAGE, index as u64).unwrap();
        snapshots.snapshot().unwrap();
        states.push(
            (0..512)
                .map(|page| arena.load_u64(page * PAGE).unwrap())
                .collect::<Vec<_>>(),
        );
    }
    let pool = site.path("pool");
    // 1 and 4 are full ones. The set that is named is the first that can't be read, as all later ones build on it.
    for (mark, chain, skipped) in [(5, vec![4, 5], 1), (4, vec![4], 1)] {
        damage(&pool, marks[mark]);
        let (again, found, missed) = recovered(&region, &anywhere());
        assert_eq!((found, missed), (chain.clone(), skipped));
        let expected = &states[*chain.last().unwrap() as usize - 1];
        for (page, word) in expected.iter().enumerate() {
            assert_eq!(again.load_u64(page * PAGE).unwrap(), *word, "page {page}");
        }
    }
    damage(&pool, marks[3]);
    let (_, found, missed) = recovered(&region, &anywhere());
    assert_eq!((found, missed), (vec![1, 2, 3], 1));
    let six = region.recover(&anywhere().set(SetNumber(6)), &OpenOptions::new());
    assert!(
        matches!(six, Err(SnapshotError::NotWhole { .. })),
        "{six:?}"
    );
    damage(&pool, marks[1]);
    assert_eq!(recovered(&region, &anywhere()).1, [1]);
}

#[test]
fn s08_sets_that_only_call_themselves_snapshots_are_none() {
    let mut site = Site::new(Pool::Memory, 64 << 20);
    site.sets("r", 3, MIB as u64);
    let unit = site.client("app");
    let mut primary = unit.open_sets_primary("r", &OpenOptions::new()).unwrap();
    let region = one(&site, "app", "r");
    for (label, payload) in [
        ("snap full", vec![7; 9000]),
        ("snap full", Vec::new()),
        ("snap on 2 of 1", vec![1; 300]),
    ] {
        let label = pmu_client::Label::new(label).unwrap();
        primary
            .commit(&[std::io::IoSlice::new(&payload)], label)
            .unwrap();
        let error = region
            .recover(&anywhere(), &OpenOptions::new())
            .unwrap_err();
        assert!(matches!(error, SnapshotError::NotWhole { .. }), "{error}");
        assert!(
            error.to_string().contains("snapshot header") || error.to_string().contains("no bytes"),
            "{error}"
        );
    }
}

fn quick() -> SnapshotOptions {
    let mut timeouts = Timeouts::default();
    timeouts.stall = std::time::Duration::from_secs(5);
    SnapshotOptions::new().open(OpenOptions::new().timeouts(timeouts))
}

/// One unit that keeps its address when it is stopped and started.
fn lasting(kept: &str) -> (Units, SnapshotRegion) {
    let units = Units::new(1, 256 << 20);
    let capacity = capacity_bytes_for(16 * MIB as u64);
    let request = pmu_proto::v1::CreateRegionRequest {
        name: "r".into(),
        mode: pmu_proto::v1::Mode::Overwrite.into(),
        need: pmu_proto::v1::Need::Durable.into(),
        sets_kept: kept.parse().unwrap(),
        room: Some(pmu_proto::v1::create_region_request::Room::CapacityBytes(
            capacity,
        )),
        grants: ["app", "backup"]
            .map(|principal| pmu_proto::v1::Grant {
                principal: principal.into(),
                rights: support::READ | support::WRITE,
            })
            .to_vec(),
        ..Default::default()
    };
    units.admin(0, |mut admin| async move {
        admin.create_region(request).await.unwrap();
    });
    let identity = units.identity("app", Role::Client);
    let address = units.addresses[0].clone();
    let options = ConnectOptions::with_timeout(PATIENCE);
    let region = SnapshotRegion::find(&[&address], "r", identity, &options).unwrap();
    (units, region)
}

#[test]
fn s02_a_unit_that_is_lost_costs_nothing_but_that_snapshot() {
    let (mut units, region) = lasting("4");
    let arena = plain(16 * MIB);
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &quick()).unwrap();
    let (mut model, mut random) = (Model::new(), Random(5));
    let kinds = |report: SnapshotReport| report.is_full();
    write(&arena, &mut model, &mut random, 2000);
    assert!(kinds(snapshots.snapshot().unwrap()));
    write(&arena, &mut model, &mut random, 50);
    units.stop(0);
    for _ in 0..2 {
        let error = snapshots.snapshot().unwrap_err();
        assert!(error.may_pass(), "{error:?}");
        write(&arena, &mut model, &mut random, 5);
    }
    units.start(0);
    // What the lost ones had is in this one, and it builds on the last that was stored.
    let report = snapshots.snapshot().unwrap();
    assert!(!report.is_full() && report.image.pages >= 50, "{report}");
    check(&recovered(&region, &anywhere()).0, &model);
    // In the middle of the transfer, at any moment of it.
    for round in 0..6 {
        write(&arena, &mut model, &mut random, 3000);
        let pending = snapshots.begin().unwrap();
        let frozen = model.clone();
        write(&arena, &mut model, &mut random, 30);
        std::thread::sleep(std::time::Duration::from_millis(round * 3));
        units.stop(0);
        let outcome = pending.wait();
        units.start(0);
        let (again, ..) = recovered(&region, &anywhere());
        if outcome.is_ok() {
            check(&again, &frozen);
        }
        // Where it was stored before its unit went, nobody has noticed yet.
        let again = snapshots.snapshot();
        again.or_else(|_| snapshots.snapshot()).unwrap();
        check(&recovered(&region, &anywhere()).0, &model);
    }
}

#[test]
fn s05_a_primary_that_lost_its_unit_does_not_come_back_behind_another() {
    let (mut units, region) = lasting("4");
    let arena = plain(2 * MIB);
    let snapshots = Snapshots::open(Arc::clone(&arena), region, &quick()).unwrap();
    snapshots.snapshot().unwrap();
    units.stop(0);
    assert!(snapshots.snapshot().unwrap_err().may_pass());
    units.start(0);
    // Another one was the primary for a moment. It has stored nothing.
    let identity = units.identity("backup", Role::Client);
    let options = ConnectOptions::with_timeout(PATIENCE);
    let other = SnapshotRegion::find(&[&units.addresses[0]], "r", identity, &options).unwrap();
    drop(other.take_over(&anywhere(), &OpenOptions::new()).unwrap());
    for _ in 0..2 {
        let error = snapshots.snapshot().unwrap_err();
        assert!(error.is_fenced(), "{error}");
        assert!(matches!(
            error,
            SnapshotError::Client(ClientError::Fenced { .. })
        ));
    }
}

#[test]
fn s08_snapshots_over_several_units_outlive_one_of_them() {
    let mut units = Units::new(3, 128 << 20);
    units.spread("r", "parity:2+1", 2, capacity_bytes_for(ARENA as u64));
    let seeds: Vec<_> = units.addresses.clone();
    let seeds: Vec<_> = seeds.iter().map(String::as_str).collect();
    let find = |units: &Units, who: &str| {
        let options = ConnectOptions::with_timeout(PATIENCE);
        let identity = units.identity(who, Role::Client);
        SnapshotRegion::find(&seeds, "r", identity, &options).unwrap()
    };
    let region = find(&units, "app");
    assert!(matches!(region, SnapshotRegion::Spread(_)));
    let arena = plain(ARENA);
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &quick()).unwrap();
    assert_eq!(snapshots.full_every(), 2);
    let (mut model, mut random) = (Model::new(), Random(11));
    for round in 0..5 {
        write(&arena, &mut model, &mut random, 100);
        if round == 3 {
            units.stop(1);
        }
        let report = snapshots.snapshot().unwrap();
        assert_eq!(report.is_full(), round % 2 == 0, "{report}");
        check(&recovered(&region, &anywhere()).0, &model);
    }
    let second = find(&units, "backup");
    let mut taken = second.take_over(&anywhere(), &OpenOptions::new()).unwrap();
    let found = taken.recovered.take().unwrap();
    let restored = Arc::new(found.restoring.seal_plain().unwrap());
    check(&restored, &model);
    let error = snapshots.snapshot().unwrap_err();
    assert!(error.is_fenced(), "{error}");
    let new = taken.go_on(Arc::clone(&restored), &quick()).unwrap();
    write(&restored, &mut model, &mut random, 100);
    new.snapshot().unwrap();
    check(&recovered(&second, &anywhere()).0, &model);
}

#[test]
fn s08_a_snapshot_is_exported_as_one_flat_image() {
    let site = site("r", 4, ARENA);
    let region = one(&site, "app", "r");
    let arena = plain(ARENA);
    let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &every(4)).unwrap();
    let (mut model, mut random) = (Model::new(), Random(2));
    for _ in 0..3 {
        write(&arena, &mut model, &mut random, 30);
        snapshots.snapshot().unwrap();
    }
    let path = site.path("image");
    let file = std::fs::File::create(&path).unwrap();
    let exported = region
        .export(None, &file, &OpenOptions::new(), &mut |_| Ok(()))
        .unwrap();
    assert_eq!(exported.chain.len(), 3);
    assert_eq!(exported.arena_address, arena.address() as u64);
    let image = std::fs::read(&path).unwrap();
    assert_eq!(image.len(), ARENA);
    for (offset, word) in image.chunks_exact(8).enumerate() {
        let expected = model.get(&(offset * 8)).copied().unwrap_or(0);
        assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), expected);
    }
    let stopped = region.export(None, &file, &OpenOptions::new(), &mut |_| {
        Err(std::io::Error::other("enough"))
    });
    assert!(
        matches!(stopped, Err(SnapshotError::Client(ClientError::Io { .. }))),
        "{stopped:?}"
    );
}

/// What a standby holds, as an arena elsewhere.
fn held(image: &SnapshotImage) -> Arena {
    let (file, shape) = image.file().unwrap();
    assert_eq!(file.metadata().unwrap().len(), shape.bytes);
    // Tests run side by side: each time another place.
    static PLACES: AtomicU64 = AtomicU64::new(0x2c00_0000_0000);
    let elsewhere = ArenaShape {
        address: PLACES.fetch_add(2 * shape.bytes, Ordering::Relaxed),
        ..shape
    };
    let options = ArenaOptions::plain(2 * MIB);
    let restoring = elsewhere.restore(&file, &options).unwrap();
    restoring.seal_plain().unwrap()
}

#[test]
fn s05_a_standby_follows_with_just_the_sets_it_lacks() {
    let site = site("r", 5, ARENA);
    let region = one(&site, "app", "r");
    let arena = plain(ARENA);
    let mut reader = site
        .client("backup")
        .open_sets_backup("r", &OpenOptions::new())
        .unwrap();
    let mut image = SnapshotImage::new();
    let nothing = image.catch_up("r", &mut reader);
    assert!(matches!(nothing, Err(SnapshotError::NoSuchSnapshot { .. })));
    let (mut model, mut random) = (Model::new(), Random(11));
    let mut first = None;
    // Twice: the second instance's series begins where the first one's set numbers end.
    for instance in 0..2_u64 {
        let snapshots = Snapshots::open(Arc::clone(&arena), region.clone(), &every(3)).unwrap();
        for number in 0..7_u64 {
            write(&arena, &mut model, &mut random, 25);
            let position = LogPosition(1000 * instance + number);
            let pending = snapshots.begin_covering(position).unwrap();
            let set = pending.wait().unwrap().receipt.set();
            // Not each: chains are gone along, and left out.
            if random.below(3) > 0 {
                assert!(image.catch_up("r", &mut reader).unwrap());
                assert!(!image.catch_up("r", &mut reader).unwrap());
                assert_eq!((image.set(), image.covered()), (set, Some(position)));
                check(&held(&image), &model);
            }
            first = first.or_else(|| image.file());
        }
    }
    image.catch_up("r", &mut reader).unwrap();
    check(&held(&image), &model);
    // A chain that began anew has a file of its own.
    let (early, late) = (first.unwrap().0, image.file().unwrap().0);
    assert!(!Arc::ptr_eq(&early, &late));
    let listed = region.snapshots(&OpenOptions::new()).unwrap();
    assert_eq!(listed[0].covered, Some(LogPosition(1006)));
}

#[test]
fn s05_a_standby_holds_the_newest_whole_one_and_never_a_mixture() {
    let site = site("r", 6, 2 * MIB);
    let region = one(&site, "app", "r");
    let arena = plain(2 * MIB);
    let snapshots = Snapshots::open(Arc::clone(&arena), region, &every(4)).unwrap();
    let mut reader = site
        .client("backup")
        .open_sets_backup("r", &OpenOptions::new())
        .unwrap();
    let mut image = SnapshotImage::new();
    let mut states = Vec::new();
    let marks: Vec<u64> = (1..=4).map(|set| 0x0dd0_0000_2222_0000 + set).collect();
    for (index, mark) in marks.iter().enumerate() {
        arena.store_u64(index * 2 * PAGE, *mark).unwrap();
        arena.store_u64(100 * PAGE, index as u64).unwrap();
        snapshots.snapshot().unwrap();
        let words = (0..512).map(|page| arena.load_u64(page * PAGE).unwrap());
        states.push(words.collect::<Vec<_>>());
        if index == 1 {
            image.catch_up("r", &mut reader).unwrap();
        }
    }
    let check = |image: &SnapshotImage, set: usize| {
        assert_eq!(image.set(), Some(SetNumber(set as u64)));
        let arena = held(image);
        for (page, word) in states[set - 1].iter().enumerate() {
            assert_eq!(arena.load_u64(page * PAGE).unwrap(), *word, "page {page}");
        }
    };
    check(&image, 2);
    // The third can't be read: neither it nor what builds on it gets in.
    damage(&site.path("pool"), marks[2]);
    assert!(!image.catch_up("r", &mut reader).unwrap());
    check(&image, 2);
    // Who begins only now finds the same.
    let mut late = SnapshotImage::new();
    assert!(late.catch_up("r", &mut reader).unwrap());
    check(&late, 2);
    // Nothing is whole any more: what is held stays.
    damage(&site.path("pool"), marks[0]);
    let error = SnapshotImage::new().catch_up("r", &mut reader).unwrap_err();
    assert!(matches!(error, SnapshotError::NotWhole { .. }), "{error}");
    assert!(!image.catch_up("r", &mut reader).unwrap());
    check(&image, 2);
}

#[test]
fn s05_an_image_of_another_length_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * MIB as u64 - 1).unwrap();
    let shape = ArenaShape {
        address: 0x2d00_0000_0000,
        bytes: 2 * MIB as u64,
        has_heap: false,
    };
    let refused = shape.restore(&file, &ArenaOptions::plain(2 * MIB));
    assert!(matches!(
        refused,
        Err(SnapshotError::Client(ClientError::Invalid(_)))
    ));
}
