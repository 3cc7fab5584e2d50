//! Regions that are spread over several real units: whatever of them is lost, within the layout's tolerance, the newest set is read whole;
//! beyond it there is an error, and never wrong bytes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::io::IoSlice;

use pmu_client::{ClientError, Label, OpenOptions, SetChoice, SetNumber, SpreadPrimary, Unit};
use support::pattern;
use units::{Units, unit};

/// Units come back when the test says so.
fn options() -> OpenOptions {
    OpenOptions::new().rejoin(None)
}

fn commit(primary: &mut SpreadPrimary, bytes: &[u8]) -> pmu_client::Receipt {
    let (first, second) = bytes.split_at(bytes.len() / 3);
    primary
        .commit(
            &[IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)],
            Label::default(),
        )
        .unwrap()
}

fn newest(units: &Units, region: &str) -> (u64, Vec<u8>, bool) {
    let spread = units.find("backup", region);
    let mut bytes = Vec::new();
    let read = spread
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut bytes)
        .unwrap();
    (read.set.number.get(), bytes, read.reconstructed)
}

/// Every set of units that may be lost, at every length that is special.
fn survives_every_loss(layout: &str, count: usize, units_min: u8, losses: usize) {
    let mut units = Units::new(count, 24 << 20);
    units.spread("state", layout, units_min, 2 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let group = 64 << 10;
    for (turn, length) in [0, 1, group, group * 3 + 1, 1_000_001]
        .into_iter()
        .enumerate()
    {
        let bytes = pattern(length, turn as u64);
        let receipt = commit(&mut primary, &bytes);
        assert!(
            receipt.is_durable() && receipt.units.len() == count,
            "{receipt}"
        );
        let (number, found, reconstructed) = newest(&units, "state");
        assert_eq!(Some(SetNumber(number)), receipt.set());
        assert!(found == bytes && !reconstructed, "length {length}");
    }
    drop(primary);
    let bytes = pattern(1_000_001, 4);
    for lost in 0..1_u32 << count {
        if lost == 0 || lost.count_ones() as usize > losses {
            continue;
        }
        let indices: Vec<_> = (0..count).filter(|index| lost >> index & 1 == 1).collect();
        for index in &indices {
            units.stop(*index);
        }
        let (_, found, reconstructed) = newest(&units, "state");
        assert!(found == bytes, "{layout} without {indices:?}");
        assert!(reconstructed || layout.starts_with("mirror"));
        for index in &indices {
            units.start(*index);
        }
    }
}

#[test]
fn d04_parity_survives_the_loss_of_any_unit() {
    survives_every_loss("parity:3+1", 4, 3, 1);
}

#[test]
fn d06_a_mirror_survives_the_loss_of_all_but_one() {
    // Commits take all three: so each of them has the newest set.
    survives_every_loss("mirror:3", 3, 3, 2);
}

#[test]
fn d07_an_erasure_code_survives_the_loss_of_any_two() {
    survives_every_loss("erasure:4+2", 6, 4, 2);
}

/// Longer than what is read at one time, and than the memory that passes it on; with all units, and without one from the middle on.
fn a_long_set_is_kept(layout: &str, count: usize, length: usize, subsegment_bytes: u64) {
    let shares = layout.parse::<pmu_client::Layout>().unwrap().data_shards();
    let pool_bytes = (4 * length / shares).next_multiple_of(1 << 20);
    let mut units = Units::new(count, pool_bytes as u64);
    units.subsegment_bytes = subsegment_bytes;
    units.spread("state", layout, count as u8 - 1, length as u64);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    for turn in 0..3 {
        let bytes = pattern(length - turn, turn as u64);
        let receipt = commit(&mut primary, &bytes);
        assert_eq!(receipt.units.len(), count, "{receipt}");
        let (_, found, reconstructed) = newest(&units, "state");
        assert!(found == bytes && !reconstructed, "{layout}: set {turn}");
    }
    let bytes = pattern(length, 7);
    let mut put = primary
        .begin(Some(length as u64), Label::default())
        .unwrap();
    let (first, second) = bytes.split_at(length / 2);
    put.write_bytes(first).unwrap();
    units.stop(0);
    put.write_bytes(second).unwrap();
    assert_eq!(put.finish().unwrap().units.len(), count - 1);
    assert!(
        newest(&units, "state").1 == bytes,
        "{layout} without a unit"
    );
    let bytes = pattern(length, 8);
    assert_eq!(commit(&mut primary, &bytes).units.len(), count - 1);
    let (_, found, _) = newest(&units, "state");
    assert!(found == bytes, "{layout} written without a unit");
}

#[test]
fn d04_a_set_longer_than_what_is_read_at_one_time() {
    a_long_set_is_kept("parity:3+1", 4, 40_000_001, 256 << 10);
}

#[test]
fn d06_a_mirror_is_written_once_for_all_its_units() {
    // Chunks of subsegments that are as long, longer, and no multiple of them.
    for subsegment_bytes in [256 << 10, 1 << 20, 300 << 10] {
        a_long_set_is_kept("mirror:3", 3, 11_000_001, subsegment_bytes);
    }
}

#[test]
fn d01_a_set_that_is_written_piece_by_piece_or_given_up() {
    let units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let bytes = pattern(777_777, 5);
    for step in [1 << 20, 200_000, 65_536, 777] {
        let mut put = primary.begin(Some(777_777), Label::default()).unwrap();
        for piece in bytes.chunks(step) {
            put.write_bytes(piece).unwrap();
        }
        let receipt = put.finish().unwrap();
        let (number, found, _) = newest(&units, "state");
        assert!(
            found == bytes && Some(SetNumber(number)) == receipt.set(),
            "{step}"
        );
    }
    let other = pattern(777_777, 6);
    let mut put = primary.begin(Some(777_777), Label::default()).unwrap();
    put.write_bytes(&other[..500_000]).unwrap();
    drop(put);
    let mut put = primary.begin(Some(777_777), Label::default()).unwrap();
    put.write_bytes(&other[..600_000]).unwrap();
    assert!(matches!(put.finish(), Err(ClientError::Invalid(_))));
    let mut put = primary.begin(Some(10), Label::default()).unwrap();
    assert!(matches!(
        put.write_bytes(&other[..11]),
        Err(ClientError::TooLarge { .. })
    ));
    drop(put);
    assert!(newest(&units, "state").1 == bytes);
    commit(&mut primary, &other);
    assert!(newest(&units, "state").1 == other);
}

#[test]
fn d03_a_stripe_needs_all_its_units() {
    let mut units = Units::new(2, 16 << 20);
    units.spread("state", "stripe:2", 2, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let bytes = pattern(300_000, 1);
    commit(&mut primary, &bytes);
    assert!(newest(&units, "state").1 == bytes);
    units.stop(1);
    let spread = units.find("backup", "state");
    let error = spread
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut Vec::new())
        .unwrap_err();
    assert!(
        matches!(error, ClientError::TooFewUnits { .. }) && error.to_string().contains(&unit(1)),
        "{error}"
    );
}

#[test]
fn d07_a_primary_goes_on_without_a_unit_and_takes_it_back() {
    let mut units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(700_000, 1));
    units.stop(2);
    let second = pattern(500_000, 2);
    let receipt = commit(&mut primary, &second);
    assert_eq!(receipt.units.len(), 3, "{receipt}");
    assert!(receipt.units.iter().all(|proof| *proof.name != *unit(2)));
    assert!(newest(&units, "state").1 == second);

    // One more than the layout tolerates: refused, and the last set is there.
    units.stop(0);
    let error = primary
        .commit(&[IoSlice::new(b"too few")], Label::default())
        .unwrap_err();
    assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
    units.start(0);
    assert_eq!(primary.rejoin().unwrap(), 1);
    assert!(newest(&units, "state").1 == second);

    // The unit that was away holds an older set, and is not believed; with the next commit it holds the newest.
    units.start(2);
    let (_, found, reconstructed) = newest(&units, "state");
    assert!(found == second && reconstructed);
    assert_eq!(primary.rejoin().unwrap(), 1);
    let third = pattern(900_000, 3);
    assert_eq!(commit(&mut primary, &third).units.len(), 4);
    units.stop(1);
    assert!(newest(&units, "state").1 == third);
}

#[test]
fn d01_a_stale_unit_alone_is_an_error_and_not_an_older_set() {
    let mut units = Units::new(3, 16 << 20);
    units.spread("state", "mirror:3", 2, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, b"old");
    units.stop(0);
    commit(&mut primary, b"new");
    units.start(0);
    units.stop(1);
    assert!(newest(&units, "state").1 == b"new");
    units.stop(2);
    let spread = units.find("backup", "state");
    let error = spread
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut Vec::new())
        .unwrap_err();
    assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
}

#[test]
fn d10_a_backup_takes_over_fences_and_goes_on_without_a_unit() {
    let mut units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut old = units.find("app", "state").open_primary(&options()).unwrap();
    let last = pattern(800_000, 7);
    commit(&mut old, &last);
    // Held by a primary: nobody else opens it.
    let error = units
        .find("backup", "state")
        .open_primary(&options())
        .unwrap_err();
    assert!(matches!(error, ClientError::WriterExists { .. }), "{error}");
    units.stop(3);
    let mut found = Vec::new();
    let taken = units
        .find("backup", "state")
        .take_over(&options(), &mut found)
        .unwrap();
    assert!(found == last && taken.fence.fenced.len() == 3);
    let mut new = taken.primary;
    let error = old
        .commit(&[IoSlice::new(b"zombie")], Label::default())
        .unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert!(matches!(
        old.commit(&[IoSlice::new(b"zombie")], Label::default()),
        Err(ClientError::Ended { .. })
    ));
    let next = pattern(10, 8);
    commit(&mut new, &next);
    assert!(newest(&units, "state").1 == next);
}

/// What a fence came to on each unit.
fn fence(units: &Units) -> Vec<(std::sync::Arc<str>, pmu_client::Epoch)> {
    let done = units.find("backup", "state").fence().unwrap();
    let fenced = done.fenced.into_iter();
    fenced.map(|(unit, report)| (unit, report.epoch)).collect()
}

#[test]
fn s05_who_goes_on_from_a_fence_opens_only_what_nobody_has_touched_since() {
    let units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let going_on_from = |epochs: &[(std::sync::Arc<str>, pmu_client::Epoch)]| {
        let spread = units.find("app", "state");
        let spread = spread.going_on_from(epochs.iter().cloned());
        spread.open_primary(&options())
    };
    let first = fence(&units);
    let later = fence(&units);
    let error = going_on_from(&first).unwrap_err();
    assert!(error.is_fenced(), "{error}");
    // It was refused before it had an epoch: who fenced later opens.
    let mut primary = going_on_from(&later).unwrap();
    let bytes = pattern(300_000, 3);
    assert_eq!(commit(&mut primary, &bytes).units.len(), 4);
    // Neither beside it nor behind it.
    assert!(going_on_from(&later).unwrap_err().is_fenced());
    drop(primary);
    assert!(going_on_from(&later).unwrap_err().is_fenced());
    // One unit that was not fenced is done without, and one that somebody has fenced since; not two.
    let third = fence(&units);
    let mut primary = going_on_from(&third[1..]).unwrap();
    assert_eq!(commit(&mut primary, &bytes).units.len(), 3);
    // It comes back as any that was missing.
    assert_eq!(primary.rejoin().unwrap(), 1);
    assert_eq!(commit(&mut primary, &bytes).units.len(), 4);
    drop(primary);
    let mut fourth = fence(&units);
    let identity = units.identity("backup", pmu_auth::Role::Client);
    let one = Unit::connect(&units.addresses[0], &identity, &Default::default()).unwrap();
    one.fence("state").unwrap();
    let mut primary = going_on_from(&fourth).unwrap();
    assert_eq!(commit(&mut primary, &bytes).units.len(), 3);
    drop(primary);
    fourth = fence(&units);
    one.fence("state").unwrap();
    assert!(going_on_from(&fourth[..3]).unwrap_err().is_fenced());
    assert!(newest(&units, "state").1 == bytes);
}

#[test]
fn d01_a_member_is_not_opened_as_a_region_of_its_own() {
    let units = Units::new(2, 16 << 20);
    units.spread("state", "mirror:2", 2, 1 << 20);
    let identity = units.identity("app", pmu_auth::Role::Client);
    let one = Unit::connect(&units.addresses[0], &identity, &Default::default()).unwrap();
    let error = one.open_sets_primary("state", &options()).unwrap_err();
    assert!(
        error.to_string().contains("spread over several units"),
        "{error}"
    );
}

#[test]
fn d07_a_damaged_share_is_found_and_computed_anew() {
    let mut units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let bytes = pattern(900_000, 3);
    commit(&mut primary, &bytes);
    drop(primary);
    units.stop(1);
    // Somewhere in the share: its bytes are found by what they are.
    let mut pool = std::fs::read(units.pool(1)).unwrap();
    let needle = &bytes[64 << 10..(64 << 10) + 64];
    let at = pool
        .windows(64)
        .position(|window| window == needle)
        .unwrap();
    pool[at + 9] ^= 4;
    std::fs::write(units.pool(1), pool).unwrap();
    units.start(1);
    let (_, found, reconstructed) = newest(&units, "state");
    assert!(found == bytes && reconstructed);
}
