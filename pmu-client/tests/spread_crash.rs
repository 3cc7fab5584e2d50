//! The primary of a log over several units dies at every one of its operations in turn, and any unit may be away when the next one takes over:
//! no acknowledged record is ever lost, no batch is half there, and the order holds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

#[path = "support/mortal.rs"]
mod mortal;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mortal::{Life, RawUnits};
use pmu_client::{ClientError, OpenOptions, Result, SpreadLogBackup, SpreadLogPrimary, Timeouts};
use support::pattern;

const FOREVER: u64 = u64::MAX;

/// Units come back when the test says so.
fn options() -> OpenOptions {
    OpenOptions::new().rejoin(None)
}

fn record(index: usize) -> Vec<u8> {
    pattern(1 + 1700 * (index % 7), index as u64)
}

fn open(units: &Arc<RawUnits>, life: &Life) -> Result<SpreadLogPrimary> {
    units.find(life).open_log_primary(&options())
}

fn backup(units: &Arc<RawUnits>) -> SpreadLogBackup {
    let spread = units.find(&Life::of(FOREVER));
    spread.open_log_backup(true, &options()).unwrap()
}

fn read_all(backup: &mut SpreadLogBackup) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let records = backup.read_unread(1 << 20).unwrap();
        if records.len() == 0 {
            return all;
        }
        all.extend(records.map(|found| found.payload.to_vec()));
    }
}

fn append_batch(log: &mut SpreadLogPrimary, index: usize) -> Result<pmu_client::Ticket> {
    log.submit_batch(&[&record(index), &record(index + 100)])
}

/// Three batches of an earlier primary, in a ring that the next ones wrap around.
fn prepared() -> Arc<RawUnits> {
    let units = RawUnits::logs("parity:3+1", 3, 64 << 10);
    let mut log = open(&units, &Life::of(FOREVER)).unwrap();
    for _ in 0..5 {
        log.append(&vec![7; 30_000]).unwrap();
    }
    let mut reader = backup(&units);
    assert_eq!(read_all(&mut reader).len(), 5);
    reader.clear_handed_out().unwrap();
    for index in 0..3 {
        append_batch(&mut log, index).unwrap();
        log.flush().unwrap();
    }
    units
}

/// Opens, and appends five batches more, some of them while others are under way: how many are acknowledged, how many were given, and what
/// ended it.
fn write(units: &Arc<RawUnits>, life: &Life) -> (usize, usize, Option<ClientError>) {
    let mut log = match open(units, life) {
        Ok(log) => log,
        Err(error) => return (3, 3, Some(error)),
    };
    let (mut acknowledged, mut submitted) = (3, 3);
    for group in [&[3][..], &[4, 5, 6], &[7]] {
        let mut tickets = Vec::new();
        for index in group {
            submitted = index + 1;
            match append_batch(&mut log, *index) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    return (acknowledged + count(&log, &tickets), submitted, Some(error));
                }
            }
        }
        for ticket in &tickets {
            if let Err(error) = log.wait(*ticket) {
                return (acknowledged + count(&log, &tickets), submitted, Some(error));
            }
        }
        acknowledged += tickets.len();
    }
    (acknowledged, submitted, None)
}

fn count(log: &SpreadLogPrimary, tickets: &[pmu_client::Ticket]) -> usize {
    tickets
        .iter()
        .filter(|ticket| log.is_durable(**ticket))
        .count()
}

fn check(found: &[Vec<u8>], acknowledged: usize, submitted: usize, context: &str) -> usize {
    let batches = found.len() / 2;
    assert!(found.len().is_multiple_of(2), "{context}: half a batch");
    assert!(
        (acknowledged..=submitted).contains(&batches),
        "{context}: {batches} batches"
    );
    for (index, pair) in found.chunks(2).enumerate() {
        let whole = pair[0] == record(index) && pair[1] == record(index + 100);
        assert!(whole, "{context}: batch {index}");
    }
    batches
}

#[test]
fn p12_a_crash_at_any_operation_keeps_every_acknowledged_record_whatever_unit_is_away() {
    let life = Life::of(FOREVER);
    let (acknowledged, _, error) = write(&prepared(), &life);
    assert!(acknowledged == 8 && error.is_none(), "{error:?}");
    let points = life.used();
    assert!(points > 100, "{points} fault points");
    let (mut lost, mut kept, mut died, mut handed_out) = (0, 0, 0, 0);
    // All units in turn, and none; and always the first one, which is the first to publish.
    let cases = (0..points).flat_map(|at| [(at, (at % 4 + 1) as u32), (at, 0)]);
    for (at, away) in cases {
        let units = prepared();
        let (acknowledged, submitted, error) = write(&units, &Life::of(at));
        // How many operations it takes depends on what goes out together.
        died += u64::from(error.is_some());
        let context = format!(
            "at {at} of {points}, without {away}: {acknowledged} of {submitted} acknowledged, {error:?}"
        );
        // What is handed out beside a primary is never undone, whoever was asked, and whoever takes over.
        units.away.store(1 << (at / 2 % 5) & 15, Ordering::SeqCst);
        let mut seen = read_all(&mut backup(&units));
        units.away.store(0, Ordering::SeqCst);
        // The first who takes over dies too.
        drop(open(&units, &Life::of(at * 7 % 80)));
        units.away.store(1 << (at / 3 % 5) & 15, Ordering::SeqCst);
        let later = read_all(&mut backup(&units));
        assert!(later.starts_with(&seen) || seen.starts_with(&later));
        if later.len() > seen.len() {
            seen = later;
        }
        units.away.store(1 << away & 15, Ordering::SeqCst);
        let mut log = open(&units, &Life::of(FOREVER)).expect(&context);
        let mut found = read_all(&mut backup(&units));
        let batches = check(&found, acknowledged, submitted, &context);
        assert!(found.starts_with(&seen), "{context}: {} seen", seen.len());
        handed_out += seen.len();
        kept += batches - acknowledged;
        lost += submitted - batches;
        // The log goes on, also for the unit that comes back, on which anything may stand.
        log.append(b"next").expect(&context);
        found.push(b"next".to_vec());
        if away < 4 {
            units.away.store(0, Ordering::SeqCst);
            assert_eq!(log.rejoin().unwrap(), 1, "{context}");
            log.append(b"all").expect(&context);
            found.push(b"all".to_vec());
        }
        drop(log);
        for other in 0..4_u32 {
            units.away.store(1 << other, Ordering::SeqCst);
            let read = read_all(&mut backup(&units));
            assert!(read == found, "{context}: then without {other}");
        }
    }
    eprintln!("{points} fault points; {kept} batches kept and {lost} dropped without a receipt");
    assert!(kept > 0 && lost > 0 && died > points && handed_out > 0);
}

#[test]
fn p12_a_crash_while_a_stale_unit_is_caught_up_changes_nothing() {
    let stale = || {
        let units = prepared();
        units.away.store(2, Ordering::SeqCst);
        let mut log = open(&units, &Life::of(FOREVER)).unwrap();
        for index in 3..6 {
            append_batch(&mut log, index).unwrap();
            log.flush().unwrap();
        }
        units.away.store(0, Ordering::SeqCst);
        units
    };
    let life = Life::of(FOREVER);
    drop(open(&stale(), &life).unwrap());
    let points = life.used();
    for at in 0..points {
        let units = stale();
        // It may even succeed, where it dies with the last unit's last operations.
        drop(open(&units, &Life::of(at)));
        // Before it has everything, only the others do; then any of them may go.
        for (turn, away) in [1, 4, 0, 1, 2, 3].into_iter().enumerate() {
            units.away.store(1 << away & 15, Ordering::SeqCst);
            let context = format!("at {at} of {points}, without {away}");
            let mut log = open(&units, &Life::of(FOREVER)).expect(&context);
            if away == 4 {
                assert_eq!(log.missing().count(), 0, "{context}");
            }
            log.append(b"x").expect(&context);
            let found = read_all(&mut backup(&units));
            check(&found[..12], 6, 6, &context);
            assert_eq!(found.len(), 13 + turn, "{context}");
            units.away.store(0, Ordering::SeqCst);
            log.rejoin().unwrap();
        }
    }
}

#[test]
fn d07_a_unit_that_dies_while_it_is_caught_up_for_the_first_time_keeps_its_vote() {
    let fresh = || RawUnits::logs("mirror:3", 2, 64 << 10);
    let life = Life::of(FOREVER);
    drop(open(&fresh(), &life).unwrap());
    let all = life.used();
    let mut cut = 0;
    // The first primary dies before the last unit has taken its term, or while it does.
    for first in all - 12..all {
        for at in 0.. {
            let units = fresh();
            // It may even succeed, where only the last unit is lost.
            drop(open(&units, &Life::of(first)));
            units.away.store(4, Ordering::SeqCst);
            let life = Life::of(FOREVER);
            let mut log = open(&units, &life).unwrap();
            let records: Vec<_> = (0..4).map(record).collect();
            for record in &records {
                log.append(record).unwrap();
            }
            units.away.store(0, Ordering::SeqCst);
            let before = life.used();
            life.ends_in(at);
            let back = log.rejoin();
            let done = life.used() - before <= at;
            drop(log);
            // It has a vote still, and what it says is right: without it too few would answer.
            units.away.store(1 << (at % 2), Ordering::SeqCst);
            let context = format!("first at {first} of {all}, then at {at}: {back:?}");
            let mut log = open(&units, &Life::of(FOREVER)).expect(&context);
            log.append(b"next").expect(&context);
            let mut found = read_all(&mut backup(&units));
            assert_eq!(found.pop().unwrap(), b"next", "{context}");
            assert!(found == records, "{context}");
            if done {
                break;
            }
            cut += 1;
        }
    }
    assert!(cut > 12 * 10, "{cut} fault points");
}

#[test]
fn p13_a_clear_that_is_cut_short_on_any_unit_never_loses_a_record() {
    for at in 0..90 {
        let units = prepared();
        let spread = units.find(&Life::of(at));
        let mut read = 0;
        let cleared = spread
            .open_log_backup(true, &options())
            .and_then(|mut reader| {
                read = reader.read_unread(8000)?.len();
                reader.clear_handed_out().map(drop)
            });
        for away in 0..5_u32 {
            units.away.store(1 << away & 15, Ordering::SeqCst);
            let records = read_all(&mut backup(&units));
            let gone = 6 - records.len();
            assert!(gone <= read, "at {at}: {gone} of {read} gone, {cleared:?}");
            assert!(cleared.is_err() || gone == read, "at {at}");
            let whole: Vec<_> = (0..3)
                .flat_map(|index| [record(index), record(index + 100)])
                .collect();
            assert!(records == whole[gone..], "at {at}");
        }
        if at == 89 {
            assert!(cleared.is_ok(), "more points are needed");
        }
        // Whatever of it a new primary goes by, and uses the room, all later readers go by too.
        units.away.store(1 << (at % 5) & 15, Ordering::SeqCst);
        let mut log = open(&units, &Life::of(FOREVER)).unwrap();
        let mut filled = 0;
        while log.try_append(&pattern(1000, filled)).is_ok() {
            filled += 1;
        }
        units.away.store(0, Ordering::SeqCst);
        log.rejoin().unwrap();
        for away in 0..5_u32 {
            units.away.store(1 << away & 15, Ordering::SeqCst);
            let records = read_all(&mut backup(&units));
            let kept = records.len() - filled as usize;
            assert!(kept >= 6 - read, "at {at}");
            let whole = (0..3).flat_map(|index| [record(index), record(index + 100)]);
            assert!(
                whole.skip(6 - kept).eq(records[..kept].iter().cloned()),
                "at {at}"
            );
        }
    }
}

fn short_timeouts() -> OpenOptions {
    let mut timeouts = Timeouts::default();
    timeouts.stall = Duration::from_millis(300);
    timeouts.hedge = Duration::from_millis(60);
    options().timeouts(timeouts)
}

#[test]
fn d07_a_unit_that_answers_nothing_is_read_without_and_given_up() {
    let units = RawUnits::logs("parity:3+1", 3, 64 << 10);
    let life = Life::of(FOREVER);
    let mut log = units
        .find(&life)
        .open_log_primary(&short_timeouts())
        .unwrap();
    let spread = units.find(&life);
    let mut first = spread.open_log_backup(true, &short_timeouts()).unwrap();
    let mut second = spread.open_log_backup(true, &short_timeouts()).unwrap();
    for index in 0..3 {
        append_batch(&mut log, index).unwrap();
    }
    assert_eq!(log.flush().unwrap().units.len(), 4);
    // The first handle knows how far the log goes, and has not read all of it.
    assert_eq!(first.read_unread(1).unwrap().len(), 1);
    units.frozen.store(2, Ordering::SeqCst);
    let begun = Instant::now();
    let rest = read_all(&mut first);
    assert_eq!(rest.len(), 5);
    // One that has to ask first waits for its answer for the whole time limit.
    assert_eq!(read_all(&mut second).len(), 6);
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(
        second
            .missing()
            .next()
            .unwrap()
            .reason
            .contains("timed out")
    );

    let begun = Instant::now();
    let receipt = log.append(b"without it").unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(250), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(receipt.units.len(), 3, "{receipt}");
    let begun = Instant::now();
    log.append(b"at once").unwrap();
    assert!(begun.elapsed() < Duration::from_millis(250));
    // It comes back, with whatever it had.
    units.frozen.store(0, Ordering::SeqCst);
    assert_eq!(log.rejoin().unwrap(), 1);
    assert_eq!(log.append(b"again").unwrap().units.len(), 4);
    for away in 0..4_u32 {
        units.away.store(1 << away, Ordering::SeqCst);
        let found = read_all(&mut backup(&units));
        check(&found[..6], 3, 3, "");
        let rest = [
            b"without it".to_vec(),
            b"at once".to_vec(),
            b"again".to_vec(),
        ];
        assert!(found[6..] == rest, "without {away}");
    }
}
