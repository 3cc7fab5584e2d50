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

use pmu_auth::Role;
use pmu_client::{
    ClientError, ConnectOptions, Distributed, Label, OpenOptions, SetChoice, SetNumber,
};
use support::{PATIENCE, pattern};
use units::{Units, unit};

fn options() -> OpenOptions {
    OpenOptions::new()
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
