//! The connection is cut at every operation in turn: nothing that was committed is ever lost, and nothing half is ever believed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pmu_client::{
    ClientError, Label, LogBackup, LogPrimary, SetChoice, SetNumber, SetPrimary, SetReader, Stored,
};
use support::pattern;
use support::raw::{Fault, Faulty, RawRegion};

const FAULTS: [Fault; 2] = [Fault::CutBefore, Fault::LoseAnswer];

fn payload(number: u64) -> Vec<u8> {
    // More than one chain, more than one chunk, and lengths that differ.
    pattern(1_500_000 + 1000 * number as usize, number)
}

/// Opens, and commits three sets more; what is known to be committed, and the error that ended it.
fn write_sets(
    raw: &RawRegion,
    fault: Fault,
    at: u64,
    count: &Arc<AtomicU64>,
) -> (u64, Option<ClientError>) {
    let parts = raw.parts(|inner| Box::new(Faulty::new(inner, fault, at, Arc::clone(count))));
    let mut primary = match SetPrimary::over(parts) {
        Ok(primary) => primary,
        Err(error) => return (2, Some(error)),
    };
    for number in 3..=5 {
        let bytes = payload(number);
        match primary.commit(&[IoSlice::new(&bytes)], Label::default()) {
            Ok(receipt) => assert_eq!(receipt.set(), Some(SetNumber(number))),
            Err(error) => {
                let again = primary
                    .commit(&[IoSlice::new(b"x")], Label::default())
                    .unwrap_err();
                assert!(!again.outcome_is_unknown(), "{again}");
                return (number - 1, Some(error));
            }
        }
    }
    (5, None)
}

fn prepared_sets() -> RawRegion {
    let raw = RawRegion::sets(2, 2 << 20);
    let mut primary = SetPrimary::over(raw.plain()).unwrap();
    for number in 1..=2 {
        primary
            .commit(&[IoSlice::new(&payload(number))], Label::default())
            .unwrap();
    }
    raw
}

#[test]
fn p11_crash_between_keeps_the_last() {
    let count = Arc::new(AtomicU64::new(0));
    let (last, error) = write_sets(&prepared_sets(), Fault::CutBefore, u64::MAX, &count);
    assert!(last == 5 && error.is_none());
    let points = count.load(Ordering::SeqCst);
    assert!(points > 20, "{points} fault points");
    eprintln!("{points} fault points, each met in {} ways", FAULTS.len());
    for fault in FAULTS {
        for at in 0..points {
            let raw = prepared_sets();
            let (known, error) = write_sets(&raw, fault, at, &count);
            let error = error.expect("a fault was injected");
            let unknown = error.outcome_is_unknown();

            // A reader beside, and one that takes over: each finds the last one, or one more if nobody could know.
            let mut reader = SetReader::over(raw.plain()).unwrap();
            let (read, bytes) = reader.read_to_vec(SetChoice::Newest).unwrap();
            let newest = read.set.number.get();
            let context =
                format!("{fault:?} at {at} of {points}: {known} known, {newest} found, {error}");
            assert!(
                newest == known || (newest == known + 1 && unknown),
                "{context}"
            );
            assert!(bytes == payload(newest), "{context}");
            assert!(read.findings.is_empty(), "{context}: {:?}", read.findings);
            let mut recovered = Vec::new();
            let set = reader.recover(&mut recovered).unwrap().set.number.get();
            assert!(
                set >= newest && set <= known + 1,
                "{context}: recovered {set}"
            );
            assert!(
                set == known || unknown || fault == Fault::CutBefore,
                "{context}"
            );
            assert!(recovered == payload(set), "{context}");

            // The next primary goes on from there, and the kept ones stay.
            let mut primary = SetPrimary::over(raw.plain()).unwrap();
            assert_eq!(primary.newest().get(), set, "{context}");
            primary
                .commit(&[IoSlice::new(b"next")], Label::default())
                .unwrap();
            let mut before = Vec::new();
            reader
                .read(SetChoice::Number(SetNumber(set)), &mut before)
                .unwrap();
            assert!(before == payload(set), "{context}");
        }
    }
}

/// Opens the log and appends until the connection is cut: (acknowledged, submitted) records, and the error.
fn write_log(
    raw: &RawRegion,
    fault: Fault,
    at: u64,
    count: &Arc<AtomicU64>,
) -> (usize, usize, Option<ClientError>) {
    let parts = raw.parts(|inner| Box::new(Faulty::new(inner, fault, at, Arc::clone(count))));
    let mut log = match LogPrimary::over(parts, |_| Ok(())) {
        Ok((log, _)) => log,
        Err(error) => return (5, 5, Some(error)),
    };
    for index in 5..10_usize {
        let batch = [&record(index)[..], &record(index + 100)];
        match log.append_batch(&batch) {
            Ok(receipt) => assert!(matches!(receipt.stored, Stored::Log { .. })),
            Err(error) => {
                let again = log.append(b"x").unwrap_err();
                assert!(!matches!(again, ClientError::Full { .. }));
                return (index, index + 1, Some(error));
            }
        }
    }
    (10, 10, None)
}

fn record(index: usize) -> Vec<u8> {
    pattern(1 + 1700 * (index % 7), index as u64)
}

fn prepared_log() -> RawRegion {
    // So small that the records written under fault wrap around the ring's end.
    let raw = RawRegion::log(128 << 10);
    let (mut log, _) = LogPrimary::over(raw.plain(), |_| Ok(())).unwrap();
    let mut backup = LogBackup::over(raw.plain()).unwrap();
    for _ in 0..11 {
        log.append(&vec![7; 10_000]).unwrap();
    }
    backup.read_unread(usize::MAX).unwrap();
    backup.clear_handed_out().unwrap();
    for index in 0..5 {
        log.append_batch(&[&record(index), &record(index + 100)])
            .unwrap();
    }
    raw
}

#[test]
fn p12_a_crash_at_any_operation_keeps_every_acknowledged_record() {
    let count = Arc::new(AtomicU64::new(0));
    let (acknowledged, _, error) = write_log(&prepared_log(), Fault::CutBefore, u64::MAX, &count);
    assert!(acknowledged == 10 && error.is_none());
    let points = count.load(Ordering::SeqCst);
    assert!(points > 20, "{points} fault points");
    eprintln!("{points} fault points, each met in {} ways", FAULTS.len());
    for fault in FAULTS {
        for at in 0..points {
            let raw = prepared_log();
            let (acknowledged, submitted, error) = write_log(&raw, fault, at, &count);
            let error = error.expect("a fault was injected");
            let context =
                format!("{fault:?} at {at} of {points}: {acknowledged} acknowledged, {error}");
            let mut found = Vec::new();
            let (mut log, recovered) = LogPrimary::over(raw.plain(), |record| {
                found.push(record.payload.to_vec());
                Ok(())
            })
            .unwrap();
            assert_eq!(recovered.damage, None, "{context}");
            let batches = found.len() / 2;
            assert!(found.len() % 2 == 0, "{context}: half a batch");
            assert!(
                (acknowledged..=submitted).contains(&batches),
                "{context}: {batches} batches"
            );
            assert!(
                batches == acknowledged || error.outcome_is_unknown(),
                "{context}"
            );
            for (index, pair) in found.chunks(2).enumerate() {
                assert!(
                    pair[0] == record(index) && pair[1] == record(index + 100),
                    "{context}"
                );
            }
            log.append(b"next").unwrap();
            let mut backup = LogBackup::over(raw.plain()).unwrap();
            let last = backup
                .read_unread(usize::MAX)
                .unwrap()
                .last()
                .unwrap()
                .payload
                .to_vec();
            assert_eq!(last, b"next", "{context}");
        }
    }
}

#[test]
fn p13_a_clear_that_is_cut_short_never_loses_a_record() {
    for at in 0..12 {
        let raw = prepared_log();
        let count = Arc::new(AtomicU64::new(0));
        let parts = raw
            .parts(|inner| Box::new(Faulty::new(inner, Fault::CutBefore, at, Arc::clone(&count))));
        let mut backup = LogBackup::over(parts).unwrap();
        let mut read = 0;
        let cleared = backup
            .read_unread(1)
            .map(|records| read = records.len())
            .and_then(|()| backup.clear_handed_out().map(drop));
        let mut other = LogBackup::over(raw.plain()).unwrap();
        let records: Vec<_> = other
            .read_unread(usize::MAX)
            .unwrap()
            .map(|record| record.payload.to_vec())
            .collect();
        let gone = 10 - records.len();
        assert!(gone <= read, "at {at}: {gone} of {read} gone, {cleared:?}");
        assert!(cleared.is_err() || gone == read, "at {at}");
        let whole: Vec<_> = (0..5)
            .flat_map(|index| [record(index), record(index + 100)])
            .collect();
        assert!(records == whole[gone..], "at {at}");
    }
}

#[test]
fn b07_damage_is_named_and_an_older_set_is_taken_only_with_a_word() {
    let raw = prepared_sets();
    // A byte of the second chunk of the newest set.
    let geometry =
        pmu_format::SetGeometry::new(raw.info.length_bytes, raw.info.capacity_bytes, 2).unwrap();
    let payload_offset = geometry
        .payload_offset(geometry.slot_of(SetNumber(2)))
        .get();
    let mut byte = [0];
    raw.pool
        .read_at(payload_offset + 300_000, &mut byte)
        .unwrap();
    raw.pool
        .write_at(payload_offset + 300_000, &[!byte[0]])
        .unwrap();
    let mut reader = SetReader::over(raw.plain()).unwrap();
    let (read, bytes) = reader.read_to_vec(SetChoice::Newest).unwrap();
    assert_eq!(read.set.number, SetNumber(1));
    assert!(read.fell_back() && bytes == payload(1));
    let error = reader
        .read_to_vec(SetChoice::Number(SetNumber(2)))
        .unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains("chunk 1"),
        "{error}"
    );
    // A pipe can't take back what was damaged.
    let mut pipe = Vec::new();
    assert!(reader.read_to_writer(SetChoice::Newest, &mut pipe).is_err());

    let raw = prepared_log();
    let mut backup = LogBackup::over(raw.plain()).unwrap();
    let good = backup.read_unread(usize::MAX).unwrap().len();
    let third = backup.read_unread(1).unwrap().len();
    assert_eq!((good, third), (10, 0));
    let mut positions = Vec::new();
    let mut again = LogBackup::over(raw.plain()).unwrap();
    positions.extend(
        again
            .read_unread(usize::MAX)
            .unwrap()
            .map(|record| record.record.position.get()),
    );
    let ring = raw.info.length_bytes - 8192;
    let at = 8192 + (positions[6] + 48) % ring;
    raw.pool.read_at(at, &mut byte).unwrap();
    raw.pool.write_at(at, &[!byte[0]]).unwrap();
    let mut backup = LogBackup::over(raw.plain()).unwrap();
    assert_eq!(
        backup.read_unread(usize::MAX).unwrap().len(),
        6,
        "the good ones first"
    );
    let error = backup
        .read_unread(usize::MAX)
        .map(|records| records.len())
        .unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains(&positions[6].to_string()),
        "{error}"
    );
    let mut seen = 0;
    let recovered = backup
        .recover(|_| {
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert!(recovered.damage.is_some() && recovered.records == 6 && seen == 0);
    let refused = LogPrimary::over(raw.plain(), |_| Ok(())).unwrap_err();
    assert!(refused.is_damage(), "{refused}");
}

#[test]
fn p10_scattered_extents_carry_whole_sets_and_records() {
    let raw = {
        let mut raw = RawRegion::new(pmu_client::Mode::Overwrite, 24 << 20, 384);
        raw.info.sets_kept = 1;
        raw.info.capacity_bytes = 11 << 20;
        raw
    };
    let mut primary = SetPrimary::over(raw.plain()).unwrap();
    let bytes = pattern(11 << 20, 4);
    primary
        .commit(&[IoSlice::new(&bytes)], Label::default())
        .unwrap();
    let buffer = primary.allocate_registered(11 << 20).unwrap();
    buffer.write_at(0, &bytes).unwrap();
    primary
        .commit_registered(&[buffer.whole()], Label::default())
        .unwrap();
    let mut reader = SetReader::over(raw.plain()).unwrap();
    for number in [1, 2] {
        let (_, read) = reader
            .read_to_vec(SetChoice::Number(SetNumber(number)))
            .unwrap();
        assert!(read == bytes, "set {number}");
    }
    let raw = RawRegion::new(pmu_client::Mode::Append, 12 << 20, 192);
    let (mut log, _) = LogPrimary::over(raw.plain(), |_| Ok(())).unwrap();
    let mut backup = LogBackup::over(raw.plain()).unwrap();
    let longest = log.record_bytes_max() as usize;
    for length in [longest, 5, longest] {
        log.append(&pattern(length, 1)).unwrap();
        let read: Vec<_> = backup
            .read_unread(1)
            .unwrap()
            .map(|found| found.payload.to_vec())
            .collect();
        assert!(read == [pattern(length, 1)], "{length}");
        backup.clear_handed_out().unwrap();
    }
}
