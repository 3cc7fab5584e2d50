//! Logs over several real units: whatever of them is lost, within the layout's tolerance, every acknowledged record is read, whole, once
//! and in order; beyond it there is an error, and never wrong bytes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use pmu_client::{ClientError, OpenOptions, SpreadLogBackup, SpreadLogPrimary};
use support::pattern;
use units::{Units, unit};

const SIZE: u64 = 1 << 20;

fn options() -> OpenOptions {
    OpenOptions::new()
}

fn primary(units: &Units, who: &str) -> SpreadLogPrimary {
    units.find(who, "log").open_log_primary(&options()).unwrap()
}

fn backup(units: &Units, clear: bool) -> SpreadLogBackup {
    let spread = units.find("backup", "log");
    spread.open_log_backup(clear, &options()).unwrap()
}

/// Everything that a handle has not handed out yet.
fn read_all(backup: &mut SpreadLogBackup) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let records = backup.read_unread(1 << 16).unwrap();
        if records.len() == 0 {
            return all;
        }
        all.extend(records.map(|found| found.payload.to_vec()));
    }
}

fn records(count: u64, from: u64) -> Vec<Vec<u8>> {
    let length = |index: u64| 1 + (index * 977 % 5000) as usize;
    (from..from + count)
        .map(|index| pattern(length(index), index))
        .collect()
}

fn append_all(primary: &mut SpreadLogPrimary, records: &[Vec<u8>]) {
    for record in records {
        primary.append(record).unwrap();
    }
}

/// What a take-over hands out, and the new primary.
fn take_over(units: &Units) -> (SpreadLogPrimary, Vec<Vec<u8>>) {
    let mut all = Vec::new();
    let taken = units
        .find("backup", "log")
        .take_over_log(&options(), |found| {
            all.push(found.payload.to_vec());
            Ok(())
        })
        .unwrap();
    assert_eq!(taken.recovered.records, all.len() as u64);
    (taken.primary, all)
}

/// Every set of units that may be lost.
fn survives_every_loss(layout: &str, count: usize, units_min: u8, losses: usize) {
    let mut units = Units::new(count, 4 << 20);
    units.spread_log("log", layout, units_min, SIZE);
    let mut log = primary(&units, "app");
    let all = records(40, 0);
    for record in &all {
        let receipt = log.append(record).unwrap();
        assert!(
            receipt.is_durable() && receipt.units.len() == count,
            "{receipt}"
        );
    }
    let mut reader = backup(&units, false);
    assert!(read_all(&mut reader) == all);
    assert_eq!(reader.reconstructed(), 0);
    drop((log, reader));
    for lost in 0..1_u32 << count {
        if lost == 0 || lost.count_ones() as usize > losses {
            continue;
        }
        let indices: Vec<_> = (0..count).filter(|index| lost >> index & 1 == 1).collect();
        indices.iter().for_each(|index| units.stop(*index));
        let mut reader = backup(&units, false);
        assert!(read_all(&mut reader) == all, "{layout} without {indices:?}");
        indices.iter().for_each(|index| units.start(*index));
    }
}

#[test]
fn d04_a_log_with_parity_survives_the_loss_of_any_unit() {
    survives_every_loss("parity:3+1", 4, 3, 1);
}

#[test]
fn d06_a_mirrored_log_survives_the_loss_of_all_but_one() {
    survives_every_loss("mirror:3", 3, 3, 2);
}

#[test]
fn d07_an_erasure_coded_log_survives_the_loss_of_any_two() {
    survives_every_loss("erasure:4+2", 6, 4, 2);
}

#[test]
fn d10_a_backup_takes_the_log_over_without_a_unit_and_the_old_primary_is_fenced() {
    let mut units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, SIZE);
    let mut old = primary(&units, "app");
    let first = records(30, 0);
    append_all(&mut old, &first);
    let held = units.find("backup", "log").open_log_primary(&options());
    assert!(matches!(held, Err(ClientError::WriterExists { .. })));
    units.stop(1);
    let (mut new, found) = take_over(&units);
    assert!(found == first);
    let error = old.append(b"zombie").unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert!(matches!(
        old.append(b"zombie"),
        Err(ClientError::Ended { .. })
    ));
    let receipt = new.append(b"next").unwrap();
    assert_eq!(receipt.units.len(), 3, "{receipt}");
    assert!(receipt.units.iter().all(|proof| *proof.name != *unit(1)));
    let all = read_all(&mut backup(&units, false));
    assert!(all[..30] == first && all[30..] == [b"next".to_vec()]);
}
