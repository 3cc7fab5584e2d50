//! What the pool engine promises, on simulated memory and on what this machine has.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pmu_format::{
    Epoch, GRANULE_BYTES, Grant, Medium, Mode, Need, PAGE_BYTES, PrincipalName, RegionId,
    RegionName, Rights, TABLE_LENGTH_MIN_BYTES, VirtualAddress,
};
use pmu_pmem::{PmemError, PoolSpec};

use super::crash_tests::{assert_zero, empty_image, format};
use super::simulated::{SimulatedMedium, Survivors};
use super::*;

pub(super) fn name(text: &str) -> RegionName {
    RegionName::new(text).unwrap()
}

pub(super) fn grant(principal: &str) -> Grant {
    Grant {
        principal: PrincipalName::new(principal).unwrap(),
        rights: Rights::READ,
    }
}

pub(super) fn append(text: &str, granules: u64) -> NewRegion {
    NewRegion {
        name: name(text),
        mode: Mode::Append,
        need: Need::Durable,
        sets_kept: 0,
        size: RegionSize::Region(granules * GRANULE_BYTES),
        grants: vec![grant("backup")],
        attributes: b"layout".to_vec(),
    }
}

pub(super) fn overwrite(text: &str, capacity_bytes: u64, sets_kept: u32) -> NewRegion {
    let (mode, size) = (Mode::Overwrite, RegionSize::SetCapacity(capacity_bytes));
    NewRegion {
        mode,
        sets_kept,
        size,
        ..append(text, 0)
    }
}

fn pool() -> Pool<SimulatedMedium> {
    Pool::from_memory(format(empty_image())).unwrap()
}

fn reopen(pool: &Pool<SimulatedMedium>) -> Pool<SimulatedMedium> {
    let image = pool.memory().durable_image(Survivors::None);
    Pool::from_memory(SimulatedMedium::new(Medium::Devdax, image)).unwrap()
}

#[test]
fn p10_regions_keep_everything_over_a_restart() {
    let pool = pool();
    let log = pool.create(&append("log", 2)).unwrap();
    let sets = pool.create(&overwrite("sets", 100_000, 2)).unwrap();
    assert!(sets.length_bytes.is_multiple_of(GRANULE_BYTES) && sets.capacity_bytes == 100_000);
    assert!(sets.base >= log.end().unwrap());
    let epoch = pool.raise_epoch(log.id).unwrap();
    pool.set_grants(log.id, vec![grant("a"), grant("b")])
        .unwrap();
    pool.set_attributes(log.id, vec![1, 2, 3]).unwrap();
    let again = reopen(&pool);
    assert_eq!(again.findings(), []);
    assert_eq!((again.id(), again.table()), (pool.id(), pool.table()));
    let found = again.region(log.id).unwrap();
    assert_eq!(
        (found.base, found.extents.clone(), found.epoch),
        (log.base, log.extents, epoch)
    );
    assert_eq!(found.grants, [grant("a"), grant("b")]);
    assert_eq!(found.attributes, [1, 2, 3]);
    assert_eq!(again.region_named(&name("sets")), Some(sets));
}

#[test]
fn p10_virtual_addresses_are_never_used_twice() {
    let mut pool = pool();
    let mut last = VirtualAddress(1 << 32);
    for round in 0..6 {
        let region = pool.create(&append("again", 3)).unwrap();
        assert!(region.base >= last, "round {round}");
        last = region.end().unwrap();
        pool.delete(region.id, || ()).unwrap();
        pool = reopen(&pool);
    }
    assert_eq!(pool.space().free_bytes, pool.space().total_bytes);
}

#[test]
fn p10_a_region_is_scattered_where_no_range_is_long_enough() {
    let pool = pool();
    let names = ["a", "b", "c", "d", "e", "f"];
    let regions: Vec<_> = names
        .iter()
        .map(|name| pool.create(&append(name, 2)).unwrap())
        .collect();
    assert_eq!(pool.space().free_bytes, 0);
    for index in [1, 3, 5] {
        pool.delete(regions[index].id, || ()).unwrap();
    }
    let space = pool.space();
    assert_eq!(
        (space.free_bytes, space.largest_free_bytes),
        (6 * GRANULE_BYTES, 2 * GRANULE_BYTES)
    );
    let scattered = pool.create(&append("scattered", 5)).unwrap();
    assert_eq!(scattered.extents.len(), 3);
    assert_eq!(pool.space().free_bytes, GRANULE_BYTES);
    for pool in [&pool, &reopen(&pool)] {
        let whole = pool
            .translate(scattered.id, scattered.base, scattered.length_bytes)
            .unwrap();
        assert_eq!(whole, scattered.extents);
        let over_the_edge = VirtualAddress(scattered.base.get() + 2 * GRANULE_BYTES - 10);
        let pieces = pool.translate(scattered.id, over_the_edge, 25).unwrap();
        let (first, second) = (scattered.extents[0], scattered.extents[1]);
        assert_eq!(
            pieces[0].offset.get(),
            first.offset.get() + first.length_bytes - 10
        );
        assert_eq!((pieces[0].length_bytes, pieces[1].length_bytes), (10, 15));
        assert_eq!(pieces[1].offset, second.offset);
    }
}

#[test]
fn p10_addresses_outside_of_a_region_are_refused() {
    let pool = pool();
    let region = pool.create(&append("log", 2)).unwrap();
    let base = region.base.get();
    for (address, length) in [
        (base - 1, 1),
        (base, region.length_bytes + 1),
        (base + region.length_bytes, 1),
        (u64::MAX, 1),
        (base, u64::MAX),
        (0, 0),
    ] {
        let error = pool
            .translate(region.id, VirtualAddress(address), length)
            .unwrap_err();
        assert!(
            matches!(error, PoolError::OutsideRegion { .. }),
            "{address}+{length}: {error}"
        );
    }
    assert_eq!(
        pool.translate(region.id, VirtualAddress(base), 0).unwrap(),
        []
    );
    let error = pool
        .translate(RegionId([9; 16]), region.base, 1)
        .unwrap_err();
    assert!(matches!(error, PoolError::NoSuchRegion { .. }), "{error}");
}

#[test]
fn p10_a_new_region_is_zero_whatever_the_bytes_were() {
    let pool = pool();
    let region = pool.create(&overwrite("sets", 1, 1)).unwrap();
    assert_zero(pool.memory(), &region.extents);
    let again = reopen(&pool);
    assert_zero(again.memory(), &region.extents);
}

#[test]
fn p10_a_deleted_regions_bytes_are_erased_after_its_windows_are_gone() {
    let pool = pool();
    let region = pool.create(&append("secret", 2)).unwrap();
    let begin = region.extents[0].offset.get();
    let revoked = AtomicBool::new(false);
    pool.delete(region.id, || {
        assert_eq!(pool.region(region.id).unwrap().state, RegionState::Erasing);
        assert!(matches!(
            pool.translate(region.id, region.base, 1),
            Err(PoolError::BeingErased { .. })
        ));
        assert!(matches!(
            pool.raise_epoch(region.id),
            Err(PoolError::BeingErased { .. })
        ));
        assert!(matches!(
            pool.delete(region.id, || ()),
            Err(PoolError::BeingErased { .. })
        ));
        assert_eq!(
            pool.space().free_bytes,
            pool.space().total_bytes - region.length_bytes
        );
        // The last write that lands before the window is gone.
        pool.memory().write_at(begin, &[0xee; 100]).unwrap();
        revoked.store(true, Ordering::Relaxed);
    })
    .unwrap();
    assert!(revoked.load(Ordering::Relaxed));
    assert_zero(pool.memory(), &region.extents);
    assert!(matches!(
        pool.region(region.id),
        Err(PoolError::NoSuchRegion { .. })
    ));
    assert!(matches!(
        pool.delete(region.id, || panic!()),
        Err(PoolError::NoSuchRegion { .. })
    ));
    let image = pool.memory().durable_image(Survivors::None);
    assert!(
        image[begin as usize..][..100].iter().all(|&byte| byte == 0),
        "durably"
    );
}

#[test]
fn p10_what_does_not_fit_is_refused_and_changes_nothing() {
    let pool = pool();
    let before = pool.table();
    let error = pool.create(&append("large", 13)).unwrap_err();
    let free = 12 * GRANULE_BYTES;
    assert!(
        matches!(error, PoolError::NoRoom { free_bytes, .. } if free_bytes == free),
        "{error}"
    );
    for new in [
        append("none", 0),
        append("beyond", u64::MAX / GRANULE_BYTES),
        overwrite("none", 0, 1),
        overwrite("beyond", u64::MAX, 1),
        overwrite("nothing-kept", 1, 0),
        overwrite("too-many-kept", 1, 1025),
        NewRegion {
            size: RegionSize::Region(u64::MAX),
            ..append("beyond", 0)
        },
        NewRegion {
            size: RegionSize::SetCapacity(1),
            ..append("capacity", 0)
        },
        NewRegion {
            sets_kept: 1,
            ..append("sets", 1)
        },
        NewRegion {
            attributes: vec![0; 4097],
            ..append("attributes", 1)
        },
        NewRegion {
            grants: vec![grant("a"), grant("a")],
            ..append("twice", 1)
        },
    ] {
        let error = pool.create(&new).unwrap_err();
        assert!(
            matches!(
                error,
                PoolError::BadRegion { .. } | PoolError::NoRoom { .. }
            ),
            "{new:?}: {error}"
        );
    }
    assert_eq!(pool.table(), before);
    assert_eq!(pool.space().free_bytes, free);
    pool.create(&append("whole", 12)).unwrap();
    assert!(matches!(
        pool.create(&append("more", 1)),
        Err(PoolError::NoRoom { .. })
    ));
}

#[test]
fn p10_a_region_of_a_given_length_has_sets_as_long_as_fit() {
    let pool = pool();
    let size = RegionSize::Region(4 * GRANULE_BYTES - 1);
    let region = pool
        .create(&NewRegion {
            size,
            ..overwrite("sets", 0, 2)
        })
        .unwrap();
    assert_eq!(region.length_bytes, 4 * GRANULE_BYTES);
    assert!(region.capacity_bytes > 64 << 10 && region.capacity_bytes < 86 << 10);
}

#[test]
fn p10_names_are_unique_and_never_odd() {
    let pool = pool();
    let region = pool.create(&append("name", 1)).unwrap();
    let error = pool.create(&append("name", 1)).unwrap_err();
    assert!(matches!(error, PoolError::NameTaken { .. }), "{error}");
    pool.delete(region.id, || ()).unwrap();
    pool.create(&append("name", 1)).unwrap();
    pool.create(&append(&"n".repeat(63), 1)).unwrap();
    for odd in ["", ".hidden", "a/b", "a b", "a\0", "ä", &"n".repeat(64)] {
        assert!(RegionName::new(odd).is_err(), "{odd:?}");
    }
}

#[test]
fn p10_a_full_table_is_refused_before_anything_is_zeroed() {
    let mut image = empty_image();
    image.resize(image.len() + 200 * GRANULE_BYTES as usize, 1);
    let pool = Pool::from_memory(format(image)).unwrap();
    let large = |index: usize| NewRegion {
        attributes: vec![7; 4096],
        ..append(&format!("region-{index}"), 1)
    };
    let mut made = 0;
    let error = loop {
        match pool.create(&large(made)) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PoolError::TableFull { .. }), "{error}");
    assert!((14..16).contains(&made), "{made}");
    let space = pool.space();
    assert!(space.table_used_bytes <= space.table_bytes && space.free_bytes > 0);
    let first = pool.region_named(&name("region-0")).unwrap();
    pool.delete(first.id, || ()).unwrap();
    pool.create(&large(made)).unwrap();
    assert_eq!(reopen(&pool).table(), pool.table());
}

#[test]
fn p10_an_epoch_never_goes_back() {
    let pool = pool();
    let region = pool.create(&append("log", 1)).unwrap();
    assert_eq!(pool.raise_epoch(region.id).unwrap(), Epoch(1));
    pool.set_epoch(region.id, Epoch(9)).unwrap();
    let generation = pool.table().generation;
    pool.set_epoch(region.id, Epoch(9)).unwrap();
    assert_eq!(
        pool.table().generation,
        generation,
        "nothing to change is not written"
    );
    let error = pool.set_epoch(region.id, Epoch(8)).unwrap_err();
    assert!(matches!(error, PoolError::EpochTooOld { .. }), "{error}");
    assert_eq!(pool.raise_epoch(region.id).unwrap(), Epoch(10));
    assert_eq!(reopen(&pool).region(region.id).unwrap().epoch, Epoch(10));
}

#[test]
fn p10_changes_of_many_threads_are_all_kept() {
    let pool = pool();
    let shared = pool.create(&append("shared", 1)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let pool = &pool;
            let shared = shared.id;
            scope.spawn(move || {
                for round in 0..5 {
                    let made = pool
                        .create(&append(&format!("t{thread}-{round}"), 2))
                        .unwrap();
                    pool.raise_epoch(shared).unwrap();
                    pool.translate(made.id, made.base, made.length_bytes)
                        .unwrap();
                    pool.delete(made.id, || ()).unwrap();
                }
            });
        }
    });
    assert_eq!(pool.region(shared.id).unwrap().epoch, Epoch(20));
    assert_eq!(pool.table().regions.len(), 1);
    assert_eq!(pool.space().free_bytes, 11 * GRANULE_BYTES);
    assert_eq!(reopen(&pool).table(), pool.table());
}

#[test]
fn p10_verify_finds_a_table_that_is_not_the_one_in_use() {
    let pool = pool();
    pool.create(&append("log", 1)).unwrap();
    let report = pool.verify().unwrap();
    assert_eq!(
        (report.worst(), report.regions, report.extents),
        (None, 1, 1)
    );
    assert_eq!(report.generation, Some(2));
    let other = format(empty_image());
    for offset in 0..PAGE_BYTES * 2 {
        let theirs = other.bytes(offset..offset + 1)[0];
        let ours = pool.memory().bytes(offset..offset + 1)[0];
        pool.memory().damage(offset, ours ^ theirs);
    }
    assert_eq!(pool.verify().unwrap().worst(), Some(Severity::Damaged));
}

#[test]
fn p18_a_pool_is_not_initialised_over_another_one() {
    let medium = format(empty_image());
    let error = Pool::format(Arc::clone(&medium), TABLE_LENGTH_MIN_BYTES, false).unwrap_err();
    assert!(matches!(error, PoolError::HoldsPool { .. }), "{error}");
    medium.damage(40, 1);
    medium.damage(PAGE_BYTES + 40, 1);
    let error = Pool::format(Arc::clone(&medium), TABLE_LENGTH_MIN_BYTES, false).unwrap_err();
    assert!(
        matches!(error, PoolError::HoldsPool { .. }),
        "a damaged one neither: {error}"
    );
    let pool = Pool::format(medium, TABLE_LENGTH_MIN_BYTES, true).unwrap();
    assert!(pool.table().regions.is_empty());
}

#[test]
fn p18_what_was_never_initialised_is_no_pool() {
    for image in [
        empty_image(),
        vec![0; 1 << 20],
        vec![0xff; 4096],
        vec![0; 1],
    ] {
        let error = Pool::from_memory(SimulatedMedium::new(Medium::Devdax, image)).unwrap_err();
        assert!(matches!(error, PoolError::NotAPool { .. }), "{error}");
    }
}

#[test]
fn p18_another_version_is_refused_by_its_number() {
    let mut image = format(empty_image()).durable_image(Survivors::None);
    image[8] = 3;
    let mut covered = image[..12].to_vec();
    covered.extend_from_slice(&image[16..128]);
    image[12..16].copy_from_slice(&pmu_format::crc32c(&covered).to_le_bytes());
    let medium = SimulatedMedium::new(Medium::Devdax, image.clone());
    let error = Pool::from_memory(Arc::clone(&medium)).unwrap_err();
    assert!(
        matches!(
            error,
            PoolError::Version {
                found: 3,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("version 3"), "{error}");
    assert_eq!(
        medium.durable_image(Survivors::All),
        image,
        "a refused pool is not touched"
    );
}

#[test]
fn p18_a_pool_that_was_cut_short_is_refused() {
    let image = format(empty_image()).durable_image(Survivors::None);
    for length in [image.len() - 1, image.len() / 2, 8192, 5000, 128] {
        let medium = SimulatedMedium::new(Medium::Devdax, image[..length].to_vec());
        let report = verify(&*medium).unwrap();
        assert_eq!(report.worst(), Some(Severity::Damaged), "{length}");
        let error = Pool::from_memory(medium).unwrap_err();
        let is_clear = matches!(
            error,
            PoolError::CutShort { .. } | PoolError::Damaged { .. }
        );
        assert!(is_clear, "{length}: {error}");
    }
}

#[test]
fn p18_too_small_and_odd_layouts_are_refused() {
    for (length, table) in [
        (4096, 65536),
        (3 * 65536, 65536),
        (1 << 20, 4096),
        (1 << 20, 65537),
        (1 << 30, 32 << 20),
    ] {
        let medium = SimulatedMedium::new(Medium::Devdax, vec![0; length.min(1 << 20)]);
        let error = Pool::format(medium, table, false).unwrap_err();
        assert!(
            matches!(error, PoolError::BadLayout { .. }),
            "{length}, {table}: {error}"
        );
    }
}

#[test]
fn b01_a_region_that_needs_durability_is_refused_on_a_volatile_pool() {
    let medium = SimulatedMedium::new(Medium::Memory, empty_image());
    let pool = Pool::format(medium, TABLE_LENGTH_MIN_BYTES, false).unwrap();
    assert!(!pool.is_durable());
    let error = pool.create(&append("log", 1)).unwrap_err();
    assert!(matches!(error, PoolError::NeedsDurable { .. }), "{error}");
    assert!(error.to_string().contains("volatile"), "{error}");
    let allowed = NewRegion {
        need: Need::VolatileAllowed,
        ..append("log", 1)
    };
    pool.create(&allowed).unwrap();
    let durable = self::pool();
    assert!(durable.is_durable());
    durable
        .create(&NewRegion {
            name: name("both"),
            ..allowed
        })
        .unwrap();
}

#[test]
fn b01_a_durable_pool_is_not_opened_as_a_copy_in_memory() {
    let pool = pool();
    pool.create(&append("log", 1)).unwrap();
    let image = pool.memory().durable_image(Survivors::None);
    for medium in [Medium::Memory, Medium::File] {
        let copy = SimulatedMedium::new(medium, image.clone());
        assert_eq!(verify(&*copy).unwrap().worst(), Some(Severity::Damaged));
        let error = Pool::from_memory(copy).unwrap_err();
        assert!(matches!(error, PoolError::MediumChanged { .. }), "{error}");
    }
}

#[test]
fn b01_media_have_the_same_words_on_both_sides() {
    for &medium in Medium::ALL {
        assert_eq!(from_pmem(to_pmem(medium)), medium);
        assert_eq!(to_pmem(medium).name(), medium.as_str());
    }
}

fn options(length_bytes: u64) -> InitOptions<'static> {
    let table_length_bytes = TABLE_LENGTH_MIN_BYTES;
    InitOptions {
        length_bytes: Some(length_bytes),
        table_length_bytes,
        ..InitOptions::default()
    }
}

fn in_memory() -> (tempfile::TempDir, PoolSpec) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let spec = PoolSpec::new(pmu_pmem::Medium::Memory, directory.path().join("pool"));
    (directory, spec)
}

fn volatile(text: &str) -> NewRegion {
    NewRegion {
        need: Need::VolatileAllowed,
        ..append(text, 2)
    }
}

#[test]
fn p10_a_pool_in_a_file_keeps_its_regions() {
    let directory = tempfile::tempdir_in(PathBuf::from(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let spec = PoolSpec::new(pmu_pmem::Medium::File, directory.path().join("pool"));
    let mut done = Vec::new();
    let mut progress = |now, all| done.push((now, all));
    let init = InitOptions {
        progress: Some(&mut progress),
        ..options(4 << 20)
    };
    let pool = match Pool::init(&spec, init) {
        Err(PoolError::Memory(error @ PmemError::WrongMedium { .. })) => {
            println!("\n==== SKIPPED LOUDLY: no durable file system here: {error} ====\n");
            return;
        }
        other => other.unwrap(),
    };
    assert_eq!(done.last(), Some(&(4 << 20, 4 << 20)));
    let region = pool.create(&append("log", 2)).unwrap();
    let begin = region.extents[0].offset.get();
    pool.memory().write_at(begin, b"checkpoint").unwrap();
    pool.memory().persist(&[begin..begin + 10, 0..0]).unwrap();
    let table = pool.table();
    let error = Pool::open(&spec).unwrap_err();
    assert!(
        matches!(error, PoolError::Memory(PmemError::InUse { .. })),
        "{error}"
    );
    drop(pool);
    let pool = Pool::open(&spec).unwrap();
    assert_eq!(pool.table(), table);
    let mut bytes = [0; 10];
    pool.memory().read_at(begin, &mut bytes).unwrap();
    assert_eq!(&bytes, b"checkpoint");
    pool.delete(region.id, || ()).unwrap();
    assert_eq!(pool.verify().unwrap().worst(), None);
}

#[test]
fn p18_init_refuses_what_is_there_unless_forced() {
    let (_directory, spec) = in_memory();
    std::fs::write(spec.path().unwrap(), b"somebody's").unwrap();
    let error = Pool::init(&spec, options(4 << 20)).unwrap_err();
    assert!(
        matches!(error, PoolError::Memory(PmemError::Exists { .. })),
        "{error}"
    );
    let force = || InitOptions {
        force: true,
        ..options(4 << 20)
    };
    let first = Pool::init(&spec, force()).unwrap();
    first.create(&volatile("kept")).unwrap();
    let error = Pool::init(&spec, force()).unwrap_err();
    assert!(
        matches!(error, PoolError::Memory(PmemError::InUse { .. })),
        "in use: {error}"
    );
    let id = first.id();
    drop(first);
    let error = Pool::init(&spec, options(4 << 20)).unwrap_err();
    assert!(matches!(error, PoolError::HoldsPool { .. }), "{error}");
    assert!(
        Pool::open(&spec)
            .unwrap()
            .region_named(&name("kept"))
            .is_some()
    );
    let error = Pool::init(
        &spec,
        InitOptions {
            force: true,
            ..options(65536)
        },
    )
    .unwrap_err();
    assert!(matches!(error, PoolError::BadLayout { .. }), "{error}");
    assert_eq!(
        Pool::open(&spec).unwrap().id(),
        id,
        "refused before anything was lost"
    );
    assert_ne!(Pool::init(&spec, force()).unwrap().id(), id);
}

#[test]
fn p18_a_disk_that_is_full_leaves_no_pool() {
    let (_directory, spec) = in_memory();
    let error = Pool::init(&spec, options(1 << 50)).unwrap_err();
    assert!(
        matches!(error, PoolError::Memory(PmemError::NoSpace { .. })),
        "{error}"
    );
    assert!(Pool::open(&spec).is_err() && !spec.path().unwrap().exists());
}

#[test]
fn p18_a_file_that_was_cut_short_is_refused_and_longer_ones_serve() {
    let (_directory, spec) = in_memory();
    drop(Pool::init(&spec, options(4 << 20)).unwrap());
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(spec.path().unwrap())
        .unwrap();
    for length in [(4 << 20) - 1, 1 << 20, 140_000, 9000, 5000, 4097] {
        file.set_len(length).unwrap();
        let error = Pool::open(&spec).unwrap_err();
        assert!(
            matches!(error, PoolError::CutShort { .. }),
            "{length}: {error}"
        );
        assert!(error.to_string().contains("pool cut short"), "{error}");
    }
    file.set_len(0).unwrap();
    assert!(Pool::open(&spec).is_err());
    let (_directory, spec) = in_memory();
    drop(Pool::init(&spec, options(4 << 20)).unwrap());
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(spec.path().unwrap())
        .unwrap();
    file.set_len(5 << 20).unwrap();
    Pool::open(&spec).unwrap();
}

#[test]
fn p18_a_pool_in_a_memfd_serves_at_once() {
    let pool = Pool::init(&PoolSpec::memory(), options(4 << 20)).unwrap();
    pool.create(&volatile("log")).unwrap();
    assert_eq!(pool.verify().unwrap().worst(), None);
    assert!(Pool::open(&PoolSpec::memory()).is_err());
}

#[test]
fn p10_memory_that_began_as_zeros_is_zeroed_only_where_a_region_has_lain() {
    let pool = Pool::init(&PoolSpec::memory(), options(6 << 20)).unwrap();
    let memory = pool.memory();
    let first = pool.create(&volatile("first")).unwrap();
    let [used] = first.extents[..] else {
        panic!("{:?}", first.extents);
    };
    let (begin, behind) = (used.offset.get(), used.offset.get() + used.length_bytes);
    let found = |at| {
        let mut bytes = [0; 4];
        memory.read_at(at, &mut bytes).unwrap();
        bytes
    };
    pool.delete(first.id, || {}).unwrap();
    // A mark where a region has lain, and one where none ever has: what is not zeroed keeps it.
    memory.write_at(begin, b"used").unwrap();
    memory.write_at(behind, b"mark").unwrap();
    let longer = NewRegion {
        size: RegionSize::Region(2 * used.length_bytes),
        ..volatile("longer")
    };
    let second = pool.create(&longer).unwrap();
    assert_eq!(second.extents[0].offset, used.offset);
    assert_eq!((found(begin), &found(behind)), ([0; 4], b"mark"));
    // Now one has lain there too.
    pool.delete(second.id, || {}).unwrap();
    memory.write_at(behind, b"mark").unwrap();
    let third = pool.create(&longer).unwrap();
    assert_eq!(third.extents, second.extents);
    assert_eq!((found(begin), found(behind)), ([0; 4], [0; 4]));
}
