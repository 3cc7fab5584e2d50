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

use std::io::Write;
use std::process::{Command, Stdio};

use pmu_client::{ClientError, OpenOptions, SpreadLogBackup, SpreadLogPrimary, Unit};
use support::pattern;
use units::{Units, unit};

const SIZE: u64 = 1 << 20;

/// Units come back when the test says so.
fn options() -> OpenOptions {
    OpenOptions::new().rejoin(None)
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

#[test]
fn d03_a_striped_log_needs_all_its_units() {
    let mut units = Units::new(2, 4 << 20);
    units.spread_log("log", "stripe:2", 2, SIZE);
    let mut log = primary(&units, "app");
    let all = records(20, 0);
    append_all(&mut log, &all);
    let mut reader = backup(&units, true);
    assert!(read_all(&mut reader) == all);
    units.stop(1);
    let error = log.append(b"half").unwrap_err();
    assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
    let error = units
        .find("backup", "log")
        .open_log_backup(false, &options())
        .unwrap()
        .read_unread(1)
        .map(|records| records.len())
        .unwrap_err();
    assert!(
        matches!(error, ClientError::TooFewUnits { .. }) && error.to_string().contains(&unit(1)),
        "{error}"
    );
    let error = reader.clear_handed_out().unwrap_err();
    assert!(
        matches!(error, ClientError::UnknownOutcome { .. }),
        "{error}"
    );
}

#[test]
fn d07_a_log_goes_on_without_a_unit_and_gives_it_what_it_missed_and_no_more() {
    let mut units = Units::new(4, 8 << 20);
    units.spread_log("log", "parity:3+1", 3, 4 << 20);
    let mut log = primary(&units, "app");
    let mut all = records(200, 0);
    append_all(&mut log, &all);
    units.stop(2);
    let missed = records(20, 1000);
    let missed_bytes: usize = missed.iter().map(Vec::len).sum();
    for record in &missed {
        let receipt = log.append(record).unwrap();
        assert_eq!(receipt.units.len(), 3, "{receipt}");
        assert!(receipt.units.iter().all(|proof| *proof.name != *unit(2)));
    }
    all.extend(missed);
    assert_eq!(log.missing().count(), 1);
    assert!(read_all(&mut backup(&units, false)) == all);

    units.start(2);
    assert!(read_all(&mut backup(&units, false)) == all);
    let before = log.counters();
    assert_eq!(log.rejoin().unwrap(), 1);
    let after = log.counters();
    // A third of each record, two headers and padding; and the term's record and words.
    let least = missed_bytes as u64 / 3 + 20 * 104;
    let written = after.bytes_written - before.bytes_written;
    assert!(
        (least..least + 20 * 16 + 1024).contains(&written),
        "{written} bytes, {least} were missed"
    );
    // Each of the three others gave its share once, a megabyte at a time at most, and pages beside.
    let read = after.bytes_read - before.bytes_read;
    assert!(read < 4 * least + (256 << 10), "{read}");

    // From the next record on it takes part; with it, any other unit may go.
    let receipt = log.append(b"together").unwrap();
    assert_eq!(receipt.units.len(), 4, "{receipt}");
    all.push(b"together".to_vec());
    for other in [0, 1, 3] {
        units.stop(other);
        assert!(read_all(&mut backup(&units, false)) == all, "{other}");
        units.start(other);
    }
}

#[test]
fn d07_a_stale_unit_is_caught_up_when_the_log_is_opened_and_never_believed_before() {
    let mut units = Units::new(3, 4 << 20);
    units.spread_log("log", "mirror:3", 2, SIZE);
    let mut log = primary(&units, "app");
    append_all(&mut log, &records(3, 0));
    units.stop(0);
    append_all(&mut log, &records(3, 3));
    units.start(0);
    units.stop(1);
    // Only one of those that answer knows of the last three: beside a live primary they might still be undone.
    let mut reader = backup(&units, false);
    assert!(read_all(&mut reader) == records(3, 0));
    assert!(reader.tail() < reader.published());
    let mut rest = Vec::new();
    let recovered = reader.recover(|record| {
        rest.push(record.payload.to_vec());
        Ok(())
    });
    assert!(recovered.unwrap().records == 3 && rest == records(3, 3));
    units.stop(2);
    // The stale one alone.
    let error = units
        .find("backup", "log")
        .open_log_backup(false, &options())
        .unwrap_err();
    assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
    drop(log);
    units.start(1);
    units.start(2);
    let (log, found) = take_over(&units);
    assert!(found == records(6, 0) && log.missing().count() == 0);
    drop(log);
    units.stop(1);
    units.stop(2);
    let error = units
        .find("backup", "log")
        .open_log_backup(false, &options());
    assert!(matches!(error, Err(ClientError::TooFewUnits { .. })));
    units.start(2);
    assert!(read_all(&mut backup(&units, false)) == records(6, 0));
}

#[test]
fn d06_under_the_minimum_nothing_is_appended_and_nothing_is_lost() {
    let mut units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, SIZE);
    let mut log = primary(&units, "app");
    let mut all = records(10, 0);
    append_all(&mut log, &all);
    units.stop(3);
    log.append(b"three").unwrap();
    all.push(b"three".to_vec());
    units.stop(0);
    let error = log.append(b"two").unwrap_err();
    assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
    assert!(error.to_string().contains(&unit(0)) && error.to_string().contains(&unit(3)));
    // Nothing of it was under way when the unit was found missing: the handle goes on when one is back.
    assert!(!log.is_ended());
    assert!(matches!(
        log.append(b"two"),
        Err(ClientError::TooFewUnits { .. })
    ));
    units.start(0);
    assert_eq!(log.rejoin().unwrap(), 1);
    log.append(b"again three").unwrap();
    all.push(b"again three".to_vec());
    drop(log);
    units.start(3);
    let (log, found) = take_over(&units);
    assert!(found == all && log.missing().count() == 0);
}

#[test]
fn b03_a_fence_on_a_part_of_the_units_is_a_missing_unit_and_on_enough_the_end() {
    let units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, SIZE);
    let mut old = primary(&units, "app");
    old.append(b"first").unwrap();
    let identity = units.identity("backup", pmu_auth::Role::Client);
    let fence = |index: usize| {
        let unit = Unit::connect(&units.addresses[index], &identity, &Default::default());
        unit.unwrap().fence("log").unwrap();
    };
    fence(0);
    let receipt = old.append(b"second").unwrap();
    assert_eq!(receipt.units.len(), 3, "{receipt}");
    assert!(old.missing().next().unwrap().reason.contains("fenced"));
    fence(1);
    let error = old.append(b"third").unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert!(matches!(old.rejoin(), Err(ClientError::Ended { .. })));
    // What it left on the two units that were out of reach of the fence is nobody's.
    let (mut new, found) = take_over(&units);
    assert!(found == [b"first".to_vec(), b"second".to_vec()]);
    new.append(b"of the new one").unwrap();
    assert!(old.append(b"zombie").is_err());
    let all = read_all(&mut backup(&units, false));
    assert!(all[2..] == [b"of the new one".to_vec()]);
}

#[test]
fn p13_the_backup_reads_clears_and_the_ring_wraps_around_many_times() {
    let units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, 64 << 10);
    let mut log = primary(&units, "app");
    let mut reader = backup(&units, true);
    let mut last = 0;
    for turn in 0..60 {
        let some = records(8, turn * 8);
        append_all(&mut log, &some);
        assert!(read_all(&mut reader) == some, "turn {turn}");
        let cleared = reader.clear_handed_out().unwrap();
        assert!(cleared > pmu_client::LogPosition(last));
        last = cleared.get();
        assert_eq!(reader.last_mark().unwrap().position(), cleared);
    }
    assert!(last > 5 * (64 << 10), "{last}");
    // What was cleared is not handed out again, nor recovered.
    append_all(&mut log, &records(3, 7));
    assert!(read_all(&mut backup(&units, false)) == records(3, 7));
    let (_, found) = take_over(&units);
    assert!(found == records(3, 7));
    assert!(matches!(
        backup(&units, false).clear_handed_out(),
        Ok(cleared) if cleared.get() == last
    ));
    // The right to clear is one backup's at a time, and nobody's who did not ask for it.
    let second = units
        .find("app", "log")
        .open_log_backup(true, &options())
        .unwrap_err();
    assert!(
        matches!(second, ClientError::TooFewUnits { .. }),
        "{second}"
    );
    let mut other = backup(&units, false);
    assert_eq!(read_all(&mut other).len(), 3);
    assert!(matches!(
        other.clear_handed_out(),
        Err(ClientError::Invalid(_))
    ));
}

#[test]
fn p13_a_reader_whose_records_another_one_cleared_is_told_so() {
    let units = Units::new(3, 4 << 20);
    units.spread_log("log", "mirror:3", 2, 64 << 10);
    let mut log = primary(&units, "app");
    append_all(&mut log, &records(10, 0));
    let mut slow = backup(&units, false);
    assert_eq!(slow.read_unread(1).unwrap().len(), 1);
    let mut reader = backup(&units, true);
    for turn in 1..20 {
        read_all(&mut reader);
        reader.clear_handed_out().unwrap();
        append_all(&mut log, &records(10, turn * 10));
    }
    // What its window holds it may still hand out; then it has to ask.
    let error = loop {
        match slow.read_unread(1) {
            Ok(records) => assert!(records.len() > 0),
            Err(error) => break error,
        }
    };
    assert!(
        error.is_damage() && error.to_string().contains("by somebody else"),
        "{error}"
    );
}

#[test]
fn d07_two_units_come_back_at_once_and_one_needs_the_other() {
    let mut units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, SIZE);
    let mut log = primary(&units, "app");
    units.stop(0);
    append_all(&mut log, &records(10, 0));
    units.stop(1);
    assert!(log.append(b"too few").is_err() && !log.is_ended());
    assert_eq!(log.rejoin().unwrap(), 0);
    // The first one lacks records that only the second one and two others hold.
    units.start(0);
    assert_eq!(log.rejoin().unwrap(), 0);
    let missing: Vec<_> = log.missing().collect();
    assert!(missing[0].reason.contains("needed to read"), "{missing:?}");
    units.start(1);
    assert_eq!(log.rejoin().unwrap(), 2);
    assert_eq!(log.append(b"all").unwrap().units.len(), 4);
    units.stop(3);
    let found = read_all(&mut backup(&units, false));
    assert!(found[..10] == records(10, 0) && found[10..] == [b"all".to_vec()]);
}

#[test]
fn p13_a_clear_that_too_few_units_have_is_made_again_by_the_next_backup() {
    let mut units = Units::new(2, 16 << 20);
    units.spread_log("log", "mirror:2", 2, SIZE);
    append_all(&mut primary(&units, "app"), &records(3, 0));
    let mut first_backup = backup(&units, true);
    assert_eq!(first_backup.read_unread(1).unwrap().len(), 1);
    let first = first_backup.last_mark().unwrap();
    assert_eq!(first_backup.read_unread(usize::MAX).unwrap().len(), 2);
    let last = first_backup.last_mark().unwrap();
    units.stop(1);
    let error = first_backup.clear(last).unwrap_err();
    assert!(
        matches!(error, ClientError::UnknownOutcome { .. }),
        "{error}"
    );
    drop(first_backup);
    units.start(1);
    // The next one finds it cleared on one unit, which is too few to say that it is: it clears the other, too, and moves nothing back.
    let mut next = backup(&units, true);
    assert_eq!(next.position(), last.position());
    next.clear(first).unwrap();
    drop(next);
    for lost in 0..2 {
        units.stop(lost);
        assert_eq!(
            backup(&units, true).position(),
            last.position(),
            "without {lost}"
        );
        units.start(lost);
    }
}

#[test]
fn p13_no_clear_moves_a_cursor_back() {
    let mut units = Units::new(3, 16 << 20);
    units.spread_log("log", "mirror:3", 2, SIZE);
    append_all(&mut primary(&units, "app"), &records(4, 0));
    let mut first = backup(&units, true);
    let mut marks = Vec::new();
    for _ in 0..4 {
        assert_eq!(first.read_unread(1).unwrap().len(), 1);
        marks.push(first.last_mark().unwrap());
    }
    // Cleared to the end on one unit alone, which is gone then.
    units.stop(1);
    units.stop(2);
    assert!(first.clear(marks[3]).is_err());
    // What it has tried may have been done: a clear of less doesn't undo it.
    assert!(first.clear(marks[0]).is_err());
    drop(first);
    units.stop(0);
    (1..3).for_each(|index| units.start(index));
    let mut next = backup(&units, true);
    assert_eq!(next.position().get(), 0);
    assert_eq!(next.read_unread(1).unwrap().len(), 1);
    units.start(0);
    assert_eq!(next.rejoin().unwrap(), 1);
    next.clear(marks[1]).unwrap();
    drop(next);
    for lost in 0..3 {
        units.stop(lost);
        let position = backup(&units, false).position();
        assert_eq!(position, marks[3].position(), "without {lost}");
        units.start(lost);
    }
}

#[test]
fn p13_a_begun_clear_is_ended_though_nothing_is_left_to_read() {
    let mut units = Units::new(2, 16 << 20);
    units.spread_log("log", "mirror:2", 2, SIZE);
    append_all(&mut primary(&units, "app"), &records(3, 0));
    let mut first = backup(&units, true);
    assert!(read_all(&mut first) == records(3, 0));
    let end = first.position();
    units.stop(1);
    assert!(first.clear_handed_out().is_err());
    drop(first);
    units.start(1);
    let mut next = backup(&units, true);
    assert_eq!(next.read_unread(1).unwrap().len(), 0);
    assert_eq!(next.clear_handed_out().unwrap(), end);
    drop(next);
    units.stop(0);
    assert_eq!(backup(&units, false).position(), end);
}

#[test]
fn p13_a_clear_without_a_unit_is_seen_by_everybody_and_the_unit_learns_of_it() {
    let mut units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, 64 << 10);
    let mut log = primary(&units, "app");
    append_all(&mut log, &records(6, 0));
    units.stop(3);
    let mut reader = backup(&units, true);
    assert!(read_all(&mut reader) == records(6, 0));
    let cleared = reader.clear_handed_out().unwrap();
    log.append(b"degraded").unwrap();
    units.start(3);
    assert_eq!(log.rejoin().unwrap(), 1);
    // Its own cursor lags behind; nobody believes it, and the primary uses the room all the same.
    for away in 0..4 {
        units.stop(away);
        let mut other = backup(&units, false);
        assert_eq!(other.position(), cleared);
        assert!(read_all(&mut other) == [b"degraded".to_vec()]);
        units.start(away);
        assert_eq!(log.rejoin().unwrap(), 1);
    }
    drop(reader);
    let mut reader = backup(&units, true);
    for turn in 0..30 {
        append_all(&mut log, &records(8, turn));
        read_all(&mut reader);
        reader.clear_handed_out().unwrap();
    }
    assert!(reader.missing().count() == 0 && log.missing().count() == 0);
}

#[test]
fn p12_a_full_log_waits_for_the_backup_and_then_refuses() {
    let units = Units::new(3, 4 << 20);
    units.spread_log("log", "parity:2+1", 2, 64 << 10);
    let mut log = primary(&units, "app");
    let record = pattern(10_000, 1);
    let mut count = 0;
    let error = loop {
        match log.try_append(&record) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    // Half of the record, two headers.
    assert_eq!(count, (64 - 8) * 1024 / (5000 + 104), "{error}");
    assert!(matches!(error, ClientError::Full { .. }), "{error}");
    let mut reader = backup(&units, true);
    let clearing = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(read_all(&mut reader).len(), count);
        reader.clear_handed_out().unwrap();
        reader
    });
    log.append(&record).unwrap();
    let mut reader = clearing.join().unwrap();
    assert!(read_all(&mut reader) == [record]);
    let longest = log.record_bytes_max() as usize;
    assert!(matches!(
        log.append(&vec![0; longest + 1]),
        Err(ClientError::TooLarge { .. })
    ));
    assert!(matches!(log.append(b""), Err(ClientError::Invalid(_))));
    assert!(matches!(
        log.append_batch(&[]),
        Err(ClientError::Invalid(_))
    ));
    assert!(matches!(
        log.append_batch(&[&vec![1; longest], b"x"]),
        Err(ClientError::TooLarge { .. })
    ));
    reader.clear_handed_out().unwrap();
    let whole = pattern(longest, 5);
    log.append(&whole).unwrap();
    assert!(read_all(&mut reader) == [whole]);
}

#[test]
fn p12_records_of_every_length_also_longer_than_the_staging_memory() {
    for layout in ["parity:3+1", "mirror:2", "erasure:2+2", "stripe:3"] {
        let units = Units::new(4, 24 << 20);
        units.spread_log("log", layout, 2, 20 << 20);
        let mut log = primary(&units, "app");
        let lengths = [1, 2, 3, 4, 7, 8, 9, 4095, 65_537, 1 << 20, 9_000_001];
        let all: Vec<_> = lengths.map(|length| pattern(length, length as u64)).into();
        append_all(&mut log, &all);
        assert!(read_all(&mut backup(&units, false)) == all, "{layout}");
        assert!(take_over(&units).1 == all, "{layout}");
    }
}

#[test]
fn p12_many_records_under_way_keep_their_order_and_share_chains() {
    let units = Units::new(4, 16 << 20);
    units.spread_log("log", "parity:3+1", 3, 12 << 20);
    let mut log = primary(&units, "app");
    let all = records(3000, 0);
    let before = log.counters();
    let mut last = None;
    for (index, record) in all.iter().enumerate() {
        last = Some(match index % 100 {
            99 => log.submit_batch(&[record, b"and another"]).unwrap(),
            _ => log.submit(record).unwrap(),
        });
    }
    let last = last.unwrap();
    let receipt = log.flush().unwrap();
    assert_eq!(receipt.position(), Some(log.acknowledged()));
    assert!(log.is_durable(last) && log.submitted() == log.acknowledged());
    assert_eq!(receipt.units.len(), 4);
    assert_eq!(log.wait(last).unwrap().position(), Some(last.end()));
    let chains = log.counters().chains - before.chains;
    eprintln!("{chains} chains for 3030 records on 4 units");
    assert!(chains < 4 * 3000 / 4, "{chains} chains");
    let expected = all.iter().enumerate().flat_map(|(index, record)| {
        let another = (index % 100 == 99).then(|| b"and another".to_vec());
        [Some(record.clone()), another]
    });
    let expected: Vec<_> = expected.flatten().collect();
    let mut reader = backup(&units, false);
    let mut before = (0, 0);
    let mut found = Vec::new();
    loop {
        let records = reader.read_unread(1 << 20).unwrap();
        if records.len() == 0 {
            break;
        }
        for record in records {
            let now = (record.record.epoch.get(), record.record.sequence);
            assert!(now > before && record.record.published);
            before = now;
            found.push(record.payload.to_vec());
        }
    }
    assert!(found == expected && before == (1, 3030));
}

#[test]
fn p14_a_backup_follows_a_live_primary_and_fetches_just_the_unread_rest() {
    let units = Units::new(4, 8 << 20);
    units.spread_log("log", "parity:3+1", 3, 256 << 10);
    let mut log = primary(&units, "app");
    let mut reader = backup(&units, true);
    let all = records(600, 0);
    let written = all.clone();
    let writing = std::thread::spawn(move || {
        for record in &written {
            log.submit(record).unwrap();
        }
        log.flush().unwrap();
        log
    });
    let (mut found, mut turns) = (Vec::new(), 0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let interval = std::time::Duration::from_millis(1);
    reader
        .follow(interval, 1 << 14, &stop, |records| {
            found.extend(records.map(|record| record.payload.to_vec()));
            turns += 1;
            match (found.len(), turns % 3) {
                (500.., _) => pmu_client::Flow::Stop,
                (_, 0) => pmu_client::Flow::Clear,
                _ => pmu_client::Flow::Continue,
            }
        })
        .unwrap();
    let old = writing.join().unwrap();
    let spread = units.find("backup", "log");
    spread.fence().unwrap();
    let recovered = reader
        .recover(|record| {
            found.push(record.payload.to_vec());
            Ok(())
        })
        .unwrap();
    assert!(recovered.damage.is_none() && recovered.end == old.acknowledged());
    assert!(found == all);
    let mut new = spread.open_log_primary(&options()).unwrap();
    new.append(b"after").unwrap();
    assert!(read_all(&mut reader) == [b"after".to_vec()]);
}

#[test]
fn b07_a_damaged_share_of_a_record_is_found_and_computed_anew_and_two_are_an_error() {
    let mut units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, SIZE);
    let mut log = primary(&units, "app");
    let all: Vec<_> = (0..6).map(|index| pattern(30_000, index)).collect();
    append_all(&mut log, &all);
    drop(log);
    let damage = |units: &mut Units, index: usize, shard: std::ops::Range<usize>| {
        units.stop(index);
        // Its bytes are found by what they are.
        let mut pool = std::fs::read(units.pool(index)).unwrap();
        let needle = &all[3][shard.start..shard.start + 64];
        let at = pool
            .windows(64)
            .position(|window| window == needle)
            .unwrap();
        pool[at + 9] ^= 4;
        std::fs::write(units.pool(index), pool).unwrap();
        units.start(index);
    };
    damage(&mut units, 1, 10_000..20_000);
    let mut reader = backup(&units, false);
    assert!(read_all(&mut reader) == all);
    assert_eq!((reader.reconstructed(), reader.missing().count()), (1, 0));
    damage(&mut units, 0, 0..10_000);
    let mut reader = backup(&units, false);
    let good: Vec<_> = reader
        .read_unread(usize::MAX)
        .unwrap()
        .map(|found| found.payload.to_vec())
        .collect();
    assert!(good == all[..3], "the good ones first");
    let error = reader
        .read_unread(1)
        .map(|records| records.len())
        .unwrap_err();
    let position = reader.position();
    assert!(
        error.is_damage() && error.to_string().contains(&position.to_string()),
        "{error}"
    );
    let recovered = reader.recover(|_| Ok(())).unwrap();
    assert!(recovered.damage.is_some() && recovered.end == position);
    let error = units
        .find("backup", "log")
        .take_over_log(&options(), |_| Ok(()))
        .unwrap_err();
    assert!(error.is_damage(), "{error}");
}

#[test]
fn p12_sets_and_records_are_not_mixed_up() {
    let units = Units::new(2, 16 << 20);
    units.spread("sets", "mirror:2", 2, 1 << 20);
    units.spread_log("log", "mirror:2", 2, SIZE);
    let wrong = |error: ClientError| matches!(error, ClientError::WrongMode { .. });
    let sets = || units.find("app", "sets");
    let log = || units.find("app", "log");
    assert!(wrong(log().open_primary(&options()).unwrap_err()));
    assert!(wrong(log().open_reader(&options()).map(drop).unwrap_err()));
    assert!(wrong(sets().open_log_primary(&options()).unwrap_err()));
    assert!(wrong(sets().open_log_backup(true, &options()).unwrap_err()));
    let identity = units.identity("app", pmu_auth::Role::Client);
    let one = Unit::connect(&units.addresses[0], &identity, &Default::default()).unwrap();
    let error = one.open_log_primary("log", &options()).unwrap_err();
    assert!(
        error.to_string().contains("spread over several units"),
        "{error}"
    );
}

/// The command as a process: its exit code, output and errors.
fn pmu(units: &Units, line: &str, input: &[u8]) -> (i32, String, String) {
    let identity = units.directory.path().join("app");
    if !identity.exists() {
        let app = units.identity("app", pmu_auth::Role::Client);
        app.save(&identity).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_pmu"))
        .args(line.split(' '))
        .env("PMU_UNIT", units.addresses.join(","))
        .env("PMU_IDENTITY", &identity)
        .env_remove("PMU_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses doesn't read.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn d07_the_commands_for_logs_work_on_several_units_and_without_one() {
    let mut units = Units::new(4, 4 << 20);
    units.spread_log("log", "parity:3+1", 3, SIZE);
    let (code, said, errors) = pmu(&units, "append log --json", b"one\ntwo\n\nthree\n");
    assert_eq!(code, 0, "{errors}");
    let receipt: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&receipt["records"], &receipt["units_of"]),
        (&3.into(), &4.into())
    );
    assert_eq!(receipt["units"].as_array().unwrap().len(), 4);
    assert_eq!(receipt["durable"], true);
    let (code, said, _) = pmu(&units, "tail log", b"");
    assert_eq!((code, &*said), (0, "one\ntwo\nthree\n"));

    units.stop(0);
    let (code, said, errors) = pmu(&units, "append log", b"four\n");
    assert_eq!(code, 0, "{errors}");
    assert!(
        said.contains("3 of 4 units") && said.contains("without unit-1"),
        "{said}"
    );
    let (code, said, errors) = pmu(&units, "tail log --json --clear", b"");
    assert_eq!((code, said.lines().count()), (0, 4), "{errors}");
    assert!(said.lines().last().unwrap().contains(r#""text":"four""#));
    assert!(errors.contains("unit-1"), "{errors}");
    pmu(&units, "append log", b"five\nsix\n");
    let (code, said, errors) = pmu(&units, "recover log --fence --yes", b"");
    assert_eq!((code, &*said), (0, "five\nsix\n"), "{errors}");
    assert!(
        errors.contains("2 records") && errors.contains("without unit-1"),
        "{errors}"
    );
    let (code, said, errors) = pmu(&units, "clear log --all --yes", b"");
    assert!(
        code == 0 && said.contains("2 records cleared"),
        "{said}{errors}"
    );
    units.start(0);
    let (code, said, errors) = pmu(&units, "append log --json", b"seven\n");
    assert_eq!(code, 0, "{errors}");
    assert!(said.contains(r#""missing":[]"#), "{said}");
    let (code, said, errors) = pmu(&units, "tail log", b"");
    assert_eq!((code, &*said, &*errors), (0, "seven\n", ""));
    // Sets and records are told apart, and too few units are too few.
    let (code, _, errors) = pmu(&units, "get log", b"");
    assert!(code != 0 && errors.contains("append mode"), "{errors}");
    units.stop(1);
    units.stop(2);
    let (code, _, errors) = pmu(&units, "append log", b"eight\n");
    assert!(code == 6 && errors.contains("needed to commit"), "{errors}");
}
