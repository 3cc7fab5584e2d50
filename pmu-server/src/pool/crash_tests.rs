//! Power cuts at every persist of every operation, and damage of every byte of superblock and
//! table.

use std::sync::Arc;

use pmu_format::{
    CopyName, Epoch, GRANULE_BYTES, Medium, PAGE_BYTES, RegionEntry, RegionTable,
    TABLE_LENGTH_MIN_BYTES,
};

use super::simulated::{SimulatedMedium, Survivors};
use super::tests::{append, grant, name, overwrite};
use super::*;

type SimulatedPool = Pool<SimulatedMedium>;

/// Superblocks, two tables of the least length, and this many granules.
const GRANULES: u64 = 12;

pub(super) fn empty_image() -> Vec<u8> {
    let tables = 2 * PAGE_BYTES + 2 * TABLE_LENGTH_MIN_BYTES;
    let length = tables.next_multiple_of(GRANULE_BYTES) + GRANULES * GRANULE_BYTES;
    // Not zero: whatever a device held before.
    (0..length).map(|byte| (byte % 251) as u8).collect()
}

pub(super) fn format(image: Vec<u8>) -> Arc<SimulatedMedium> {
    let medium = SimulatedMedium::new(Medium::Devdax, image);
    Pool::format(Arc::clone(&medium), TABLE_LENGTH_MIN_BYTES, false).unwrap();
    medium
}

/// A pool with two regions, the first one written to.
fn furnished() -> Vec<u8> {
    let medium = format(empty_image());
    let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
    for new in [append("log", 2), overwrite("sets", 1 << 16, 1)] {
        let region = pool.create(&new).unwrap();
        for extent in &region.extents {
            let secret = vec![0xee; extent.length_bytes as usize];
            medium.write_at(extent.offset.get(), &secret).unwrap();
            copies::persist_one(
                &*medium,
                extent.offset.get()..extent.offset.get() + extent.length_bytes,
            )
            .unwrap();
        }
    }
    medium.durable_image(Survivors::None)
}

fn open(image: Vec<u8>) -> Result<SimulatedPool, PoolError> {
    Pool::from_memory(SimulatedMedium::new(Medium::Devdax, image))
}

/// What a change may leave: everything but generation and addresses.
fn regions(table: &RegionTable) -> Vec<RegionEntry> {
    table.regions.clone()
}

fn survivors() -> impl Iterator<Item = Survivors> {
    [Survivors::None, Survivors::All]
        .into_iter()
        .chain((1..12).map(Survivors::Some))
}

/// Runs a change with the power cut at each of its persists, and looks at what the next opening
/// finds.
fn crash_everywhere(
    image: &[u8],
    change: impl Fn(&SimulatedPool) -> Result<(), PoolError>,
    check: impl Fn(&SimulatedPool),
) {
    let medium = SimulatedMedium::new(Medium::Devdax, image.to_vec());
    let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
    let before = regions(&pool.table());
    let persists_before = medium.persists();
    change(&pool).unwrap();
    let steps = medium.persists() - persists_before;
    let finished = open(medium.durable_image(Survivors::None)).unwrap();
    assert_eq!(
        finished.table(),
        pool.table(),
        "what was answered is durable"
    );
    let after = regions(&pool.table());
    assert!(steps >= 2 && before != after);
    let (mut went_back, mut went_on) = (0, 0);
    for step in 0..steps {
        for survivors in survivors() {
            let medium = SimulatedMedium::new(Medium::Devdax, image.to_vec());
            let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
            medium.cut_at(step, survivors);
            let error = change(&pool).unwrap_err();
            assert!(matches!(error, PoolError::Memory(_)), "{error}");
            assert!(medium.is_off());
            let shown = comparable(&regions(&pool.table()), &after);
            assert_ne!(
                shown,
                comparable(&after, &after),
                "nothing is visible before it is durable"
            );
            let reopened = open(medium.durable_image(survivors))
                .unwrap_or_else(|error| panic!("step {step}, {survivors:?}: {error}"));
            let found = comparable(&regions(&reopened.table()), &after);
            if found == comparable(&before, &after) {
                went_back += 1;
            } else {
                assert_eq!(
                    found,
                    comparable(&after, &after),
                    "step {step}, {survivors:?}"
                );
                went_on += 1;
            }
            assert_eq!(
                reopened.verify().unwrap().findings,
                [],
                "both copies are whole again"
            );
            assert_no_leak(&reopened);
            check(&reopened);
        }
    }
    assert!(
        went_back > 0 && went_on > 0,
        "{went_back} back, {went_on} on"
    );
}

/// Ids and times of regions made in different runs differ; nothing else may.
fn comparable(regions: &[RegionEntry], after: &[RegionEntry]) -> Vec<RegionEntry> {
    let mut regions = regions.to_vec();
    for region in &mut regions {
        if let Some(model) = after.iter().find(|model| model.name == region.name) {
            region.id = model.id;
            region.created_seconds = model.created_seconds;
        }
    }
    regions
}

fn assert_no_leak(pool: &SimulatedPool) {
    let held: u64 = pool
        .table()
        .regions
        .iter()
        .map(|region| region.length_bytes)
        .sum();
    let space = pool.space();
    assert_eq!(space.free_bytes + held, space.total_bytes);
}

#[test]
fn p10_a_cut_while_a_region_is_made_leaves_all_of_it_or_nothing() {
    let create = |pool: &SimulatedPool| pool.create(&append("new", 3)).map(drop);
    crash_everywhere(&furnished(), create, |pool| {
        if let Some(region) = pool.region_named(&name("new")) {
            assert_zero(pool.memory(), &region.extents);
        } else {
            pool.create(&append("new", 3)).unwrap();
        }
    });
}

#[test]
fn p10_a_cut_while_a_region_is_erased_never_frees_its_bytes_unerased() {
    let delete = |pool: &SimulatedPool| {
        let region = pool.region_named(&name("log")).unwrap();
        pool.delete(region.id, || ())
    };
    let image = furnished();
    let extents = open(image.clone())
        .unwrap()
        .region_named(&name("log"))
        .unwrap()
        .extents;
    crash_everywhere(&image, delete, |pool| {
        match pool.region_named(&name("log")) {
            // The mark was not durable yet: the region is whole.
            Some(region) => {
                assert_eq!(region.state, RegionState::Active);
                let bytes = pool
                    .memory()
                    .bytes(extents[0].offset.get()..extents[0].offset.get() + 8);
                assert_eq!(bytes, [0xee; 8]);
            }
            None => assert_zero(pool.memory(), &extents),
        }
    });
}

#[test]
fn p10_a_cut_in_an_erasure_is_finished_by_the_next_opening_however_often_that_is_cut() {
    let medium = SimulatedMedium::new(Medium::Devdax, furnished());
    let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
    let region = pool.region_named(&name("log")).unwrap();
    medium.cut_at(2, Survivors::Some(3));
    pool.delete(region.id, || ()).unwrap_err();
    let image = medium.durable_image(Survivors::None);
    let medium = SimulatedMedium::new(Medium::Devdax, image.clone());
    let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
    assert!(pool.region_named(&name("log")).is_none());
    assert!(
        pool.findings()
            .iter()
            .any(|finding| finding.text.contains("erasure of region log"))
    );
    for step in 0..medium.persists() {
        for survivors in survivors() {
            let medium = SimulatedMedium::new(Medium::Devdax, image.clone());
            medium.cut_at(step, survivors);
            Pool::from_memory(Arc::clone(&medium)).unwrap_err();
            let pool = open(medium.durable_image(survivors)).unwrap();
            assert!(pool.region_named(&name("log")).is_none());
            assert_zero(pool.memory(), &region.extents);
            assert_no_leak(&pool);
        }
    }
}

#[test]
fn p10_a_cut_while_epoch_grants_or_attributes_change_leaves_old_or_new() {
    let image = furnished();
    let of = |pool: &SimulatedPool| pool.region_named(&name("log")).unwrap().id;
    crash_everywhere(&image, |pool| pool.set_epoch(of(pool), Epoch(7)), |_| ());
    crash_everywhere(&image, |pool| pool.raise_epoch(of(pool)).map(drop), |_| ());
    crash_everywhere(
        &image,
        |pool| pool.set_grants(of(pool), vec![grant("other")]),
        |_| (),
    );
    crash_everywhere(
        &image,
        |pool| pool.set_attributes(of(pool), vec![9; 100]),
        |_| (),
    );
}

#[test]
fn p18_a_cut_while_a_pool_is_made_leaves_a_pool_or_none() {
    let steps = {
        let medium = SimulatedMedium::new(Medium::Devdax, empty_image());
        Pool::format(Arc::clone(&medium), TABLE_LENGTH_MIN_BYTES, false).unwrap();
        medium.persists()
    };
    assert_eq!(steps, 5, "the pages zeroed, two tables, two superblocks");
    for step in 0..steps {
        for survivors in survivors() {
            let medium = SimulatedMedium::new(Medium::Devdax, empty_image());
            medium.cut_at(step, survivors);
            Pool::format(Arc::clone(&medium), TABLE_LENGTH_MIN_BYTES, false).unwrap_err();
            match open(medium.durable_image(survivors)) {
                Ok(pool) => {
                    assert!(step >= 3, "no superblock is durable before the tables are");
                    assert!(pool.table().regions.is_empty());
                }
                Err(PoolError::NotAPool { .. } | PoolError::Damaged { .. }) => {
                    assert!(step < 4, "one superblock is enough");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn p18_a_cut_while_a_pool_is_replaced_leaves_the_old_the_new_or_none() {
    let image = furnished();
    let old = open(image.clone()).unwrap().id();
    for step in 0..5 {
        for survivors in survivors() {
            let medium = SimulatedMedium::new(Medium::Devdax, image.clone());
            medium.cut_at(step, survivors);
            Pool::format(Arc::clone(&medium), TABLE_LENGTH_MIN_BYTES, true).unwrap_err();
            match open(medium.durable_image(survivors)) {
                Ok(pool) if pool.id() == old => {
                    assert_eq!(
                        (step, pool.table().regions.len()),
                        (0, 2),
                        "the old one, whole"
                    );
                }
                Ok(pool) => assert!(step >= 3 && pool.table().regions.is_empty()),
                Err(PoolError::NotAPool { .. } | PoolError::Damaged { .. }) => assert!(step < 4),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn p10_after_a_failed_change_the_pool_refuses_changes_and_still_shows_the_old() {
    let medium = SimulatedMedium::new(Medium::Devdax, furnished());
    let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
    let region = pool.region_named(&name("log")).unwrap();
    medium.cut_at(1, Survivors::All);
    pool.set_epoch(region.id, Epoch(5)).unwrap_err();
    assert!(pool.has_failed());
    assert_eq!(pool.region(region.id).unwrap().epoch, Epoch(0));
    let error = pool.set_epoch(region.id, Epoch(6)).unwrap_err();
    assert!(matches!(error, PoolError::Failed { .. }), "{error}");
    assert!(matches!(
        pool.create(&append("x", 1)),
        Err(PoolError::Failed { .. })
    ));
    assert!(matches!(
        pool.delete(region.id, || panic!()),
        Err(PoolError::Failed { .. })
    ));
    assert!(matches!(pool.repair(), Err(PoolError::Failed { .. })));
    let reopened = open(medium.durable_image(Survivors::None)).unwrap();
    assert_eq!(
        reopened.region(region.id).unwrap().epoch,
        Epoch(5),
        "copy B was durable"
    );
}

/// A bit of every byte of one copy of superblock and table: the other copy serves, and the damage
/// is found and repaired.
#[test]
fn p10_a_flipped_bit_anywhere_in_one_copy_is_found_and_repaired() {
    let image = furnished();
    let pool = open(image.clone()).unwrap();
    let table = pool.table();
    let superblock = pool.superblock();
    let copies = [
        (Part::Superblock(Some(CopyName::A)), 0, PAGE_BYTES),
        (Part::Superblock(Some(CopyName::B)), PAGE_BYTES, PAGE_BYTES),
        (
            Part::Table(Some(CopyName::A)),
            superblock.table_a_offset().get(),
            table.encoded_length_bytes() as u64,
        ),
        (
            Part::Table(Some(CopyName::B)),
            superblock.table_b_offset().get(),
            table.encoded_length_bytes() as u64,
        ),
    ];
    for (part, begin, length) in copies {
        // Of the zeros behind a superblock, some.
        let is_tested =
            |&offset: &u64| length < PAGE_BYTES || offset - begin < 200 || offset % 61 == 0;
        for offset in (begin..begin + length).filter(is_tested) {
            let mut damaged = image.clone();
            damaged[offset as usize] ^= 1 << (offset % 8);
            let medium = SimulatedMedium::new(Medium::Devdax, damaged);
            let report = verify(&*medium).unwrap();
            assert_eq!(
                report.worst(),
                Some(Severity::Degraded),
                "{part} byte {}",
                offset - begin
            );
            assert_eq!(report.findings[0].part, part);
            let pool = Pool::from_memory(Arc::clone(&medium))
                .unwrap_or_else(|error| panic!("{part} byte {}: {error}", offset - begin));
            assert_eq!(pool.table(), table);
            assert_eq!(pool.findings().len(), 1);
            assert!(pool.findings()[0].repaired && pool.findings()[0].part == part);
            assert_eq!(medium.durable_image(Survivors::None)[..], image[..]);
        }
    }
}

#[test]
fn p10_damage_of_both_copies_is_refused_and_never_guessed_over() {
    let image = furnished();
    let superblock = open(image.clone()).unwrap().superblock().clone();
    let mut damaged = image.clone();
    damaged[50] ^= 1;
    damaged[PAGE_BYTES as usize + 50] ^= 1;
    let error = open(damaged.clone()).unwrap_err();
    assert!(matches!(error, PoolError::Damaged { .. }), "{error}");
    let report = verify(&*SimulatedMedium::new(Medium::Devdax, damaged)).unwrap();
    assert_eq!(report.worst(), Some(Severity::Damaged));
    let mut damaged = image;
    damaged[superblock.table_a_offset().get() as usize + 70] ^= 1;
    damaged[superblock.table_b_offset().get() as usize + 90] ^= 1;
    let error = open(damaged.clone()).unwrap_err();
    assert!(matches!(error, PoolError::Damaged { .. }), "{error}");
    let report = verify(&*SimulatedMedium::new(Medium::Devdax, damaged)).unwrap();
    assert_eq!(
        (report.worst(), report.pool_id),
        (Some(Severity::Damaged), Some(superblock.pool_id()))
    );
}

/// A copy that went bad while the pool was open must not be the only one left while the other is
/// written.
#[test]
fn p10_a_copy_that_went_bad_unseen_is_repaired_before_the_other_is_written() {
    let image = furnished();
    for copy in [CopyName::A, CopyName::B] {
        for step in 0..3 {
            let medium = SimulatedMedium::new(Medium::Devdax, image.clone());
            let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
            let region = pool.region_named(&name("log")).unwrap();
            medium.damage(copies::table_offset(pool.superblock(), copy) + 100, 1);
            assert_eq!(pool.verify().unwrap().worst(), Some(Severity::Degraded));
            medium.cut_at(step, Survivors::Some(1));
            let changed = pool.set_epoch(region.id, Epoch(5));
            assert_eq!(changed.is_ok(), copy == CopyName::B && step == 2);
            let reopened = open(medium.durable_image(Survivors::None)).unwrap();
            let epoch = reopened.region(region.id).unwrap().epoch;
            assert!(epoch == Epoch(0) || epoch == Epoch(5));
        }
    }
}

#[test]
fn p10_repair_writes_damaged_copies_anew_while_the_pool_is_open() {
    let medium = SimulatedMedium::new(Medium::Devdax, furnished());
    let pool = Pool::from_memory(Arc::clone(&medium)).unwrap();
    assert_eq!(pool.repair().unwrap(), []);
    medium.damage(20, 4);
    medium.damage(copies::table_offset(pool.superblock(), CopyName::B) + 80, 4);
    assert_eq!(pool.verify().unwrap().findings.len(), 2);
    assert_eq!(pool.repair().unwrap().len(), 2);
    assert_eq!(pool.verify().unwrap().findings, []);
}

pub(super) fn assert_zero(medium: &SimulatedMedium, extents: &[Extent]) {
    for extent in extents {
        let bytes = medium.bytes(extent.offset.get()..extent.offset.get() + extent.length_bytes);
        assert!(bytes.iter().all(|&byte| byte == 0));
    }
}
