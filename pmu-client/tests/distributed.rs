//! Sets that a unit or a process of its own spreads over real units: the same receipts and guarantees as from the program itself.
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
use std::sync::Arc;

use pmu_auth::Role;
use pmu_client::{
    ClientError, ConnectOptions, Distributed, DistributedLog, Epoch, Label, OpenOptions, SetChoice,
    SetNumber,
};
use support::{PATIENCE, pattern};
use units::{Units, unit};

/// Units come back when the test says so.
fn options() -> OpenOptions {
    OpenOptions::new().rejoin(None)
}

fn open_at(
    units: &Units,
    who: &str,
    address: &str,
    name: &str,
    region: &str,
) -> Result<Distributed, ClientError> {
    let mut connect = ConnectOptions::with_timeout(PATIENCE);
    connect.unit_name = Some(name.into());
    let identity = units.identity(who, Role::Client);
    Distributed::connect(address, region, &identity, &connect, &options())
}

fn open_through(
    units: &Units,
    who: &str,
    index: usize,
    region: &str,
) -> Result<Distributed, ClientError> {
    open_at(units, who, &units.addresses[index], &unit(index), region)
}

fn newest(units: &Units, region: &str) -> (SetNumber, Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let read = units
        .find("backup", region)
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut bytes)
        .unwrap();
    (read.set.number, bytes, read.reconstructed)
}

fn four(keys: &str) -> Units {
    let mut units = Units::new(4, 24 << 20);
    units.distribute(keys);
    units.spread("state", "parity:3+1", 3, 3 << 20);
    units
}

/// Fences the region; the epochs that this comes to.
fn fence(units: &Units, region: &str) -> Vec<(Arc<str>, Epoch)> {
    let fence = units.find("backup", region).fence().unwrap();
    let fenced = fence.fenced.into_iter();
    fenced.map(|(unit, report)| (unit, report.epoch)).collect()
}

#[test]
fn s05_who_goes_on_from_a_fence_is_held_to_it_by_the_distributor_too() {
    let mut units = four("");
    units.spread_log("log", "mirror:3", 2, 1 << 20);
    let identity = units.identity("app", Role::Client);
    let connect = ConnectOptions::with_timeout(PATIENCE);
    let bytes = pattern(300_000, 3);
    {
        let address = &units.addresses[1];
        let behind = |fenced: &[(Arc<str>, Epoch)]| {
            let fenced = fenced.iter().cloned();
            Distributed::connect_behind(address, "state", &identity, &connect, &options(), fenced)
        };
        let first = fence(&units, "state");
        let later = fence(&units, "state");
        assert!(behind(&first).unwrap_err().is_fenced());
        let mut primary = behind(&later).unwrap();
        assert_eq!(
            primary
                .commit(&[IoSlice::new(&bytes)], Label::default())
                .unwrap()
                .units
                .len(),
            4
        );
        let own = primary.goes_on_from();
        assert!(own.len() == 4 && own.iter().zip(&later).all(|(own, fenced)| own.1 > fenced.1));
        drop(primary);
        // Behind itself it opens again; behind what was before it, nobody does.
        assert!(behind(&later).unwrap_err().is_fenced());
        drop(behind(&own).unwrap());
        assert!(behind(&own).unwrap_err().is_fenced());
        // Nothing is said of units that the fence has not reached.
        let third = fence(&units, "state");
        let primary = behind(&third[1..]).unwrap();
        assert_eq!(primary.missing().count(), 1);
    }
    // A log, and units that come back to it in a new epoch: the program hears of that.
    let fenced = fence(&units, "log");
    let address = units.addresses[1].clone();
    let behind = |fenced: &[(Arc<str>, Epoch)]| {
        let fenced = fenced.iter().cloned();
        DistributedLog::connect_behind(&address, "log", &identity, &connect, &options(), fenced)
    };
    let mut log = behind(&fenced).unwrap();
    log.append(b"one").unwrap();
    let before = log.goes_on_from();
    units.stop(2);
    log.append(b"two").unwrap();
    units.start(2);
    assert_eq!(log.rejoin().unwrap(), 1);
    assert_eq!(log.append(b"three").unwrap().units.len(), 3);
    let after = log.goes_on_from();
    assert!(
        after[2].1 > before[2].1 && after[..2] == before[..2],
        "{before:?} {after:?}"
    );
    drop(log);
    let mut log = behind(&after).unwrap();
    assert_eq!(log.append(b"four").unwrap().units.len(), 3);
}

#[test]
fn d08_a_unit_distributes_and_the_receipt_is_that_of_a_direct_commit() {
    let units = four("staging = \"1MiB\"");
    let bytes = pattern(1_000_001, 1);
    let mut direct = units.find("app", "state").open_primary(&options()).unwrap();
    let expected = direct
        .commit(&[IoSlice::new(&bytes)], Label::default())
        .unwrap();
    drop(direct);
    let mut primary = open_through(&units, "app", 1, "state").unwrap();
    assert_eq!(primary.distributor(), unit(1));
    assert_eq!(primary.newest(), expected.set().unwrap());
    assert_eq!(primary.layout().to_string(), "parity:3+1");
    let (first, second) = bytes.split_at(400_000);
    let receipt = primary
        .commit(
            &[IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)],
            Label::new("second").unwrap(),
        )
        .unwrap();
    assert!(receipt.is_durable());
    assert_eq!(
        (
            &receipt.region,
            receipt.bytes,
            &receipt.units,
            receipt.provider
        ),
        (
            &expected.region,
            expected.bytes,
            &expected.units,
            expected.provider
        )
    );
    assert!(receipt.epoch > expected.epoch);
    assert_eq!(receipt.set(), Some(SetNumber(2)));
    // The bytes went once over this connection, and not once more.
    assert_eq!(primary.counters().bytes_written, bytes.len() as u64);
    let (number, found, reconstructed) = newest(&units, "state");
    assert!(number == SetNumber(2) && found == bytes && !reconstructed);
}

#[test]
fn d08_sets_of_every_length_pass_a_ring_that_is_shorter_than_they_are() {
    let mut units = Units::new(4, 48 << 20);
    // A redundancy group of 1.5 MiB is longer than the staging memory.
    units.subsegment_bytes = 512 << 10;
    units.distribute("staging = \"1MiB\"");
    units.spread("state", "parity:3+1", 3, 5 << 20);
    let mut primary = open_through(&units, "app", 0, "state").unwrap();
    let ring = 1 << 20;
    let special = [0, 1, 4095, ring - 1, ring, ring + 1, 5 << 20];
    for (turn, length) in special.into_iter().enumerate() {
        let bytes = pattern(length, turn as u64);
        let named = (turn % 2 == 0).then_some(length as u64);
        let mut put = primary.begin(named, Label::default()).unwrap();
        for piece in bytes.chunks(77_777) {
            put.write_bytes(piece).unwrap();
        }
        let receipt = put.finish().unwrap();
        let (number, found, _) = newest(&units, "state");
        assert!(
            Some(number) == receipt.set() && found == bytes,
            "length {length}"
        );
    }
}

#[test]
fn d08_a_process_distributes_for_whom_no_unit_knows() {
    let units = four("");
    let (runtime, process) = units
        .process("[[distributor.region]]\nname = \"state\"\nprincipals = [\"guest\", \"other\"]\n");
    let address = process.control_address().to_string();
    let open = |who: &str, region: &str| open_at(&units, who, &address, "spreader", region);
    let mut primary = open("guest", "state").unwrap();
    let bytes = pattern(2_222_222, 7);
    let receipt = primary
        .commit(&[IoSlice::new(&bytes)], Label::default())
        .unwrap();
    assert_eq!(receipt.units.len(), 4);
    assert!(newest(&units, "state").1 == bytes);
    // Who is not named, which region is not, and who comes second.
    let error = open("app", "state").unwrap_err();
    assert!(matches!(error, ClientError::NoGrant { .. }), "{error}");
    let error = open("guest", "elsewhere").unwrap_err();
    assert!(matches!(error, ClientError::NoSuchRegion { .. }), "{error}");
    let error = open("other", "state").unwrap_err();
    assert!(
        matches!(error, ClientError::WriterExists { .. })
            && error
                .to_string()
                .contains("spreader distributes it for guest"),
        "{error}"
    );
    // It is stopped in the middle of a set: that is given up, and the region is free.
    let mut put = primary.begin(None, Label::default()).unwrap();
    put.write_bytes(&bytes[..1_500_000]).unwrap();
    runtime.block_on(process.stop());
    let error = put
        .write_bytes(&bytes[..1_500_000])
        .and_then(|()| put.finish().map(drop))
        .unwrap_err();
    assert!(
        matches!(error, ClientError::ConnectionLost { .. }),
        "{error}"
    );
    assert!(newest(&units, "state").1 == bytes);
    units.find("app", "state").open_primary(&options()).unwrap();
}

#[test]
fn d08_units_fail_behind_a_distributor_as_before_a_program() {
    let mut units = four("");
    let mut primary = open_through(&units, "app", 0, "state").unwrap();
    let first = pattern(700_000, 1);
    primary
        .commit(&[IoSlice::new(&first)], Label::default())
        .unwrap();
    units.stop(2);
    let second = pattern(800_000, 2);
    let receipt = primary
        .commit(&[IoSlice::new(&second)], Label::default())
        .unwrap();
    assert_eq!(receipt.units.len(), 3, "{receipt}");
    assert!(primary.missing().any(|missing| *missing.unit == *unit(2)));
    assert!(newest(&units, "state").1 == second);
    units.stop(1);
    let error = primary
        .commit(&[IoSlice::new(b"too few")], Label::default())
        .unwrap_err();
    assert!(
        matches!(error, ClientError::TooFewUnits { what, .. } if what.needed == 3),
        "{error}"
    );
    units.start(1);
    units.start(2);
    assert_eq!(primary.rejoin().unwrap(), 2);
    assert!(newest(&units, "state").1 == second);
    let third = pattern(900_000, 3);
    let receipt = primary
        .commit(&[IoSlice::new(&third)], Label::default())
        .unwrap();
    assert_eq!(receipt.units.len(), 4, "{receipt}");
    assert!(newest(&units, "state").1 == third);
}

#[test]
fn d08_a_set_that_is_given_up_leaves_the_last_one() {
    let units = four("staging = \"1MiB\"");
    let mut primary = open_through(&units, "app", 3, "state").unwrap();
    let bytes = pattern(1_700_000, 1);
    let commit = |primary: &mut Distributed, bytes: &[u8]| {
        primary
            .commit(&[IoSlice::new(bytes)], Label::default())
            .unwrap()
    };
    commit(&mut primary, &bytes);
    let other = pattern(2_900_000, 2);
    for given_up_at in [0, 1, 300_000, 1_048_576, 2_000_000] {
        let mut put = primary.begin(Some(2_900_000), Label::default()).unwrap();
        put.write_bytes(&other[..given_up_at]).unwrap();
        drop(put);
    }
    for _ in 0..1000 {
        drop(primary.begin(None, Label::default()).unwrap());
    }
    let mut put = primary.begin(Some(2_900_000), Label::default()).unwrap();
    put.write_bytes(&other[..2_000_000]).unwrap();
    assert!(matches!(put.finish(), Err(ClientError::Invalid(_))));
    let mut put = primary.begin(Some(10), Label::default()).unwrap();
    assert!(matches!(
        put.write_bytes(&other[..11]),
        Err(ClientError::TooLarge { .. })
    ));
    drop(put);
    let capacity = primary.capacity_bytes();
    assert!(matches!(
        primary.begin(Some(capacity + 1), Label::default()),
        Err(ClientError::TooLarge { .. })
    ));
    let (number, found, _) = newest(&units, "state");
    assert!(number == SetNumber(1) && found == bytes);
    commit(&mut primary, &other);
    assert!(newest(&units, "state").1 == other);
    // The program goes away in the middle: the set is given up, and the region is free.
    let mut put = primary.begin(None, Label::default()).unwrap();
    put.write_bytes(&bytes).unwrap();
    drop(put);
    drop(primary);
    assert!(newest(&units, "state").1 == other);
    let mut primary = open_through(&units, "backup", 2, "state").unwrap();
    assert_eq!(commit(&mut primary, &bytes).set(), Some(SetNumber(3)));
}

#[test]
fn d08_a_fence_ends_what_a_distributor_does_for_the_fenced() {
    let units = four("");
    let mut old = open_through(&units, "app", 0, "state").unwrap();
    let bytes = pattern(1_000_000, 1);
    old.commit(&[IoSlice::new(&bytes)], Label::default())
        .unwrap();
    let mut put = old.begin(None, Label::default()).unwrap();
    put.write_bytes(&bytes[..900_000]).unwrap();
    units.find("backup", "state").fence().unwrap();
    // The next one through the same distributor is let in at once.
    let mut new = open_through(&units, "backup", 0, "state").unwrap();
    let error = put.finish().unwrap_err();
    assert!(matches!(error, ClientError::Fenced { .. }), "{error}");
    assert!(matches!(
        old.commit(&[IoSlice::new(b"zombie")], Label::default()),
        Err(ClientError::Ended { .. })
    ));
    let (number, found, _) = newest(&units, "state");
    assert!(number == SetNumber(1) && found == bytes);
    let next = pattern(10, 8);
    let receipt = new
        .commit(&[IoSlice::new(&next)], Label::default())
        .unwrap();
    assert_eq!(receipt.set(), Some(SetNumber(2)));
    assert!(newest(&units, "state").1 == next);
}

#[test]
fn d08_who_may_have_sets_distributed() {
    let mut units = Units::new(4, 24 << 20);
    units.spread("state", "mirror:3", 2, 1 << 20);
    let error = open_through(&units, "app", 0, "state").unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { reason, .. } if *reason == "NO_DISTRIBUTOR"),
        "{error}"
    );
    units.distribute("sessions_max = 1");
    let error = open_through(&units, "stranger", 0, "state").unwrap_err();
    assert!(matches!(error, ClientError::NoGrant { .. }), "{error}");
    // A unit that is no member doesn't know the region.
    let error = open_through(&units, "app", 3, "state").unwrap_err();
    assert!(matches!(error, ClientError::NoSuchRegion { .. }), "{error}");
    let error = open_through(&units, "app", 0, "a/b").unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
    let mut primary = open_through(&units, "app", 0, "state").unwrap();
    let error = open_through(&units, "backup", 0, "state").unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { reason, .. } if *reason == "TOO_MANY_SESSIONS"),
        "{error}"
    );
    // Through another unit: the region has a writer.
    let error = open_through(&units, "backup", 1, "state").unwrap_err();
    assert!(matches!(error, ClientError::WriterExists { .. }), "{error}");
    // What is taken away holds for the next set.
    primary
        .commit(&[IoSlice::new(b"first")], Label::default())
        .unwrap();
    let mut put = primary.begin(None, Label::default()).unwrap();
    put.write_bytes(b"second").unwrap();
    units.revoke(0, "state", "app");
    let error = put.finish().unwrap_err();
    assert!(matches!(error, ClientError::NoGrant { .. }), "{error}");
    assert!(newest(&units, "state").1 == b"first");
    drop(primary);
    // A distributor that the units let write nothing.
    for index in 0..3 {
        units.revoke(index, "state", "distributor");
    }
    let error = open_through(&units, "backup", 1, "state").unwrap_err();
    assert!(
        matches!(error, ClientError::NoGrant { .. }) && error.to_string().contains("distributor"),
        "{error}"
    );
}

#[test]
fn d08_two_programs_have_two_regions_distributed_at_once() {
    let units = four("");
    units.spread("other", "mirror:2", 2, 3 << 20);
    std::thread::scope(|scope| {
        for (region, who, seed) in [("state", "app", 10), ("other", "backup", 20)] {
            let units = &units;
            scope.spawn(move || {
                let mut primary = open_through(units, who, 0, region).unwrap();
                for turn in 1..=5 {
                    let bytes = pattern(2_000_000, seed + turn);
                    let receipt = primary
                        .commit(&[IoSlice::new(&bytes)], Label::default())
                        .unwrap();
                    assert_eq!(receipt.set(), Some(SetNumber(turn)));
                }
            });
        }
    });
    assert!(newest(&units, "state").1 == pattern(2_000_000, 15));
    assert!(newest(&units, "other").1 == pattern(2_000_000, 25));
}

#[test]
fn d08_a_unit_that_stops_while_it_distributes_leaves_the_last_set() {
    let mut units = four("staging = \"1MiB\"");
    let mut primary = open_through(&units, "app", 0, "state").unwrap();
    let bytes = pattern(1_000_000, 1);
    primary
        .commit(&[IoSlice::new(&bytes)], Label::default())
        .unwrap();
    let mut put = primary.begin(None, Label::default()).unwrap();
    put.write_bytes(&pattern(1_400_000, 2)).unwrap();
    let begun = std::time::Instant::now();
    units.stop(0);
    assert!(begun.elapsed() < std::time::Duration::from_secs(8));
    let error = put
        .write_bytes(&bytes)
        .and_then(|()| put.finish().map(drop))
        .unwrap_err();
    assert!(
        matches!(error, ClientError::ConnectionLost { .. }),
        "{error}"
    );
    assert!(matches!(
        primary.begin(None, Label::default()),
        Err(ClientError::Ended { .. })
    ));
    let (number, found, reconstructed) = newest(&units, "state");
    assert!(number == SetNumber(1) && found == bytes && reconstructed);
    // The others let go of the region, and one of them distributes it.
    let mut next = open_through(&units, "app", 1, "state").unwrap();
    let other = pattern(1_234_567, 3);
    let receipt = next
        .commit(&[IoSlice::new(&other)], Label::default())
        .unwrap();
    assert_eq!(receipt.units.len(), 3);
    assert!(newest(&units, "state").1 == other);
}
