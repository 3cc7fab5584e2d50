//! Records that a unit or a process of its own spreads over real units: the same receipts and guarantees as from the program itself.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::time::Duration;

use pmu_auth::Role;
use pmu_client::{
    Attempt, ClientError, ConnectOptions, DistributedLog, OpenOptions, Provider, ProviderChoice,
    Receipt, Timeouts,
};
use support::{PATIENCE, pattern};
use units::{Units, unit};

fn options() -> OpenOptions {
    OpenOptions::new()
}

fn open_at(
    units: &Units,
    who: &str,
    (address, name): (&str, &str),
    options: &OpenOptions,
) -> Result<DistributedLog, ClientError> {
    let mut connect = ConnectOptions::with_timeout(PATIENCE);
    connect.unit_name = Some(name.into());
    let identity = units.identity(who, Role::Client);
    DistributedLog::connect(address, "log", &identity, &connect, options)
}

fn open(units: &Units, who: &str, index: usize) -> Result<DistributedLog, ClientError> {
    let place = (&*units.addresses[index], &*unit(index));
    open_at(units, who, place, &options())
}

/// What a normal reader finds, beside the primary.
fn read(units: &Units) -> Vec<Vec<u8>> {
    let spread = units.find("backup", "log");
    let mut backup = spread.open_log_backup(false, &options()).unwrap();
    let mut found = Vec::new();
    loop {
        let records = backup.read_unread(1 << 20).unwrap();
        if records.len() == 0 {
            return found;
        }
        found.extend(records.map(|record| record.payload.to_vec()));
    }
}

fn four(keys: &str) -> Units {
    let mut units = Units::new(4, 24 << 20);
    units.distribute(keys);
    units.spread_log("log", "parity:3+1", 3, 1 << 20);
    units
}

/// Records of many lengths, and what they should be read back as.
fn records(count: usize, longest: usize) -> Vec<Vec<u8>> {
    let record = |turn: usize| pattern(1 + turn * 7919 % longest, turn as u64);
    (0..count).map(record).collect()
}

fn same_but_for_place(one: &Receipt, other: &Receipt) {
    assert_eq!(
        (&one.region, one.bytes, &one.units, one.provider),
        (&other.region, other.bytes, &other.units, other.provider)
    );
}

#[test]
fn d08_a_unit_distributes_records_and_the_receipts_are_those_of_a_direct_append() {
    let units = four("staging = \"1MiB\"");
    let spread = units.find("app", "log");
    let mut direct = spread.open_log_primary(&options()).unwrap();
    let expected = direct.append(b"the first record").unwrap();
    drop(direct);
    let mut log = open(&units, "app", 1).unwrap();
    assert_eq!((log.distributor(), log.region()), (&*unit(1), "log"));
    assert_eq!(Some(log.submitted()), expected.position());
    let nothing = log.flush().unwrap();
    assert_eq!((nothing.bytes, &nothing.units), (0, &expected.units));
    let receipt = log.append(b"another record, ").unwrap();
    assert!(receipt.is_durable());
    same_but_for_place(&receipt, &expected);
    let ticket = log.submit(b"one that is under way").unwrap();
    assert_eq!(Some(ticket.position()), receipt.position());
    assert!(!log.is_durable(ticket));
    let batch = log.append_batch(&[b"three", b"in one", b"batch"]).unwrap();
    assert!(log.is_durable(ticket) && batch.bytes == 16);
    // Each byte went once over this connection.
    assert_eq!(log.counters().bytes_written, 16 + 21 + 16);
    let found = read(&units);
    let wanted: [&[u8]; 6] = [
        b"the first record",
        b"another record, ",
        b"one that is under way",
        b"three",
        b"in one",
        b"batch",
    ];
    assert_eq!(found, wanted);
    drop(log);
    // Positions that the program computed are those that the units have.
    let spread = units.find("app", "log");
    let mut direct = spread.open_log_primary(&options()).unwrap();
    assert_eq!(Some(direct.submitted()), batch.position());
    direct.append(b"direct again").unwrap();
}

#[test]
fn d08_records_of_every_length_pass_a_ring_while_many_are_under_way() {
    let units = four("staging = \"1MiB\"");
    let mut log = open(&units, "app", 0).unwrap();
    // Pieces with many records, and records over many pieces.
    let mut wanted = records(3000, 300);
    let most = log.record_bytes_max() as usize;
    assert_eq!(most, 1 << 20);
    wanted.push(pattern(700_001, 1));
    wanted.extend(records(700, 10));
    for record in &wanted[..3001] {
        log.submit(record).unwrap();
    }
    let parts: Vec<_> = wanted[3001..].iter().map(Vec::as_slice).collect();
    let ticket = log.submit_batch(&parts).unwrap();
    let receipt = log.flush().unwrap();
    let bytes: usize = wanted.iter().map(Vec::len).sum();
    assert_eq!(receipt.bytes, bytes as u64);
    assert_eq!(log.counters().bytes_written, bytes as u64);
    assert!(log.is_durable(ticket) && log.acknowledged() == log.submitted());
    assert!(read(&units) == wanted);
    for wrong in [pattern(most + 1, 1), Vec::new()] {
        let error = log.submit(&wrong).unwrap_err();
        assert!(
            matches!(
                error,
                ClientError::TooLarge { .. } | ClientError::Invalid(_)
            ),
            "{error}"
        );
    }
    assert!(!log.is_ended());
    log.append(b"goes on").unwrap();
}

/// A program that only polls: what has gathered goes out by itself, also where a long record's beginning went out before.
#[test]
fn d08_who_polls_gets_every_record_through() {
    let units = four("staging = \"1MiB\"");
    let mut log = open(&units, "app", 0).unwrap();
    let mut sent = Vec::new();
    for turn in 0..40_usize {
        for length in [1, 200, 100_000 + turn] {
            sent.push(pattern(length, turn as u64));
            let record = sent.last().unwrap();
            let ticket = log.submit(record).unwrap();
            if turn % 3 == 0 {
                continue;
            }
            let until = std::time::Instant::now() + PATIENCE;
            while !log.is_durable(ticket) {
                assert!(std::time::Instant::now() < until, "record of {length}");
                log.poll_completions().unwrap();
                std::thread::yield_now();
            }
        }
        if turn == 19 {
            assert!(read(&units) == sent);
            let spread = units.find("backup", "log");
            let mut backup = spread.open_log_backup(true, &options()).unwrap();
            while backup.read_unread(1 << 20).unwrap().len() > 0 {
                backup.clear_handed_out().unwrap();
            }
            sent.clear();
        }
    }
    log.flush().unwrap();
    assert!(read(&units) == sent);
}

#[test]
fn d08_both_soft_providers_carry_records() {
    let units = four("");
    let (runtime, process) =
        units.process("[[distributor.region]]\nname = \"log\"\nprincipals = [\"guest\"]\n");
    let address = process.control_address().to_string();
    // To the process over TCP, to a unit over a local socket.
    let tcp = options().provider(ProviderChoice::Only(Provider::SoftTcp));
    let mut log = open_at(&units, "guest", (&address, "spreader"), &tcp).unwrap();
    assert_eq!(log.provider(), Provider::SoftTcp);
    let first = records(500, 2000);
    for record in &first {
        log.submit(record).unwrap();
    }
    let receipt = log.flush().unwrap();
    assert_eq!(receipt.units.len(), 4, "{receipt}");
    let error = open(&units, "app", 0).unwrap_err();
    assert!(matches!(error, ClientError::WriterExists { .. }), "{error}");
    drop(log);
    let unix = options().provider(ProviderChoice::Only(Provider::SoftUnix));
    let place = (&*units.addresses[2], &*unit(2));
    let mut log = open_at(&units, "app", place, &unix).unwrap();
    assert_eq!(log.provider(), Provider::SoftUnix);
    log.append(b"over a local socket").unwrap();
    let found = read(&units);
    assert!(found[..500] == first && found[500] == b"over a local socket");
    drop(log);
    let error = open_at(&units, "app", (&address, "spreader"), &tcp).unwrap_err();
    assert!(matches!(error, ClientError::NoGrant { .. }), "{error}");
    runtime.block_on(process.stop());
}

#[test]
fn d08_a_log_that_is_full_makes_a_distributed_program_wait() {
    let units = four("staging = \"1MiB\"");
    let mut log = open(&units, "app", 0).unwrap();
    let record = pattern(30_000, 5);
    let error = loop {
        match log.try_append(&record) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ClientError::Full { .. }), "{error}");
    // Nothing of it has left the program.
    assert!(!log.is_ended() && log.acknowledged() == log.submitted());
    let count = read(&units).len();
    assert!(count > 50, "{count}");
    let spread = units.find("backup", "log");
    let mut backup = spread.open_log_backup(true, &options()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            assert!(backup.read_unread(1 << 20).unwrap().len() > 0);
            backup.clear_handed_out().unwrap();
        });
        log.append(&record).unwrap();
    });
    assert!(log.refresh_free().unwrap() > 100_000);
    // Several times round the rings.
    for turn in 0..200_u64 {
        log.submit(&pattern(30_000, turn)).unwrap();
        if turn % 20 == 19 {
            log.flush().unwrap();
            while backup.read_unread(1 << 20).unwrap().len() > 0 {
                backup.clear_handed_out().unwrap();
            }
        }
    }
}

#[test]
fn d08_units_fail_while_records_are_distributed() {
    let mut units = four("");
    let mut log = open(&units, "app", 0).unwrap();
    log.append(b"all four").unwrap();
    units.stop(2);
    let receipt = log.append(b"three of four").unwrap();
    assert_eq!(receipt.units.len(), 3, "{receipt}");
    assert!(log.missing().any(|missing| *missing.unit == *unit(2)));
    units.start(2);
    assert_eq!(log.rejoin().unwrap(), 1);
    let receipt = log.append(b"all four again").unwrap();
    assert_eq!(receipt.units.len(), 4, "{receipt}");
    units.stop(1);
    units.stop(2);
    let error = log.append(b"too few").unwrap_err();
    let few = |error: &ClientError| matches!(error, ClientError::TooFewUnits { what, .. } if what.needed == 3);
    assert!(few(&error), "{error}");
    assert!(log.is_ended());
    assert!(matches!(log.append(b"x"), Err(ClientError::Ended { .. })));
    units.start(1);
    units.start(2);
    let mut log = open(&units, "app", 0).unwrap();
    log.append(b"the end").unwrap();
    let wanted: [&[u8]; 4] = [b"all four", b"three of four", b"all four again", b"the end"];
    assert_eq!(read(&units), wanted);
}

#[test]
fn d08_a_fence_ends_what_a_distributor_appends_for_the_fenced() {
    let units = four("");
    let mut old = open(&units, "app", 0).unwrap();
    old.append(b"before").unwrap();
    units.find("backup", "log").fence().unwrap();
    let mut new = open(&units, "backup", 0).unwrap();
    let error = old.append(b"zombie").unwrap_err();
    assert!(matches!(error, ClientError::Fenced { .. }), "{error}");
    assert!(matches!(
        old.append(b"zombie"),
        Err(ClientError::Ended { .. })
    ));
    new.append(b"after").unwrap();
    let wanted: [&[u8]; 2] = [b"before", b"after"];
    assert_eq!(read(&units), wanted);
}

#[test]
fn d08_what_is_taken_away_holds_for_the_next_record() {
    let mut units = four("");
    units.spread("state", "mirror:2", 2, 1 << 20);
    let mut log = open(&units, "app", 0).unwrap();
    for turn in 0..100 {
        log.submit(&pattern(1000, turn)).unwrap();
    }
    log.flush().unwrap();
    units.revoke(0, "log", "app");
    let error = log.append(b"no longer").unwrap_err();
    assert!(matches!(error, ClientError::NoGrant { .. }), "{error}");
    assert_eq!(read(&units).len(), 100);
    drop(log);
    // A region of sets is no log, and the other way round.
    let identity = units.identity("app", Role::Client);
    let connect = ConnectOptions::with_timeout(PATIENCE);
    let address = &units.addresses[1];
    let error = DistributedLog::connect(address, "state", &identity, &connect, &options());
    let error = error.unwrap_err();
    assert!(matches!(error, ClientError::WrongMode { .. }), "{error}");
    let error = pmu_client::Distributed::connect(address, "log", &identity, &connect, &options());
    let error = error.unwrap_err();
    assert!(matches!(error, ClientError::WrongMode { .. }), "{error}");
    units.distributor = None;
    units.stop(3);
    units.start(3);
    let error = open(&units, "app", 3).unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { reason, .. } if *reason == "NO_DISTRIBUTOR"),
        "{error}"
    );
}

/// The distributor ends while records are under way, at many points: what was acknowledged is there once, what was not is there or not, in order, and
/// what the error says holds.
#[test]
fn d08_a_distributor_that_stops_in_flight_neither_loses_nor_doubles_a_record() {
    let units = four("");
    let mut expected: Vec<Vec<u8>> = Vec::new();
    let mut unknown = 0;
    for round in 0..8_u64 {
        let (runtime, process) =
            units.process("[[distributor.region]]\nname = \"log\"\nprincipals = [\"app\"]\n");
        let address = process.control_address().to_string();
        let mut timeouts = Timeouts::default();
        timeouts.stall = Duration::from_secs(5);
        let options = options().timeouts(timeouts);
        let mut log = open_at(&units, "app", (&address, "spreader"), &options).unwrap();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(3 + 5 * round));
            // Its tasks end where they are; nothing is said any more.
            runtime.shutdown_background();
            drop(process);
        });
        let mut sent = Vec::new();
        let error = loop {
            let record = format!("round {round}, record {}", sent.len()).into_bytes();
            match log.submit(&record) {
                Ok(ticket) => sent.push((ticket.end(), record)),
                Err(error) => break error,
            }
            if sent.len() % 50 == 49
                && let Err(error) = log.flush()
            {
                break error;
            }
        };
        stopper.join().unwrap();
        let acknowledged = log.acknowledged();
        let may_reach = match &error {
            ClientError::UnknownOutcome {
                attempt: Attempt::Records(from, to),
                ..
            } => {
                unknown += 1;
                assert_eq!(*from, acknowledged);
                *to
            }
            ClientError::ConnectionLost { .. } => acknowledged,
            other => panic!("{other}"),
        };
        drop(log);
        let seen = read_after(&units);
        let sure = sent.iter().filter(|(end, _)| *end <= acknowledged).count();
        let most = sent.iter().filter(|(end, _)| *end <= may_reach).count();
        let new = seen.len() - expected.len();
        assert!(seen[..expected.len()] == expected);
        assert!((sure..=most).contains(&new), "{sure} {new} {most}");
        assert!(
            seen[expected.len()..]
                .iter()
                .eq(sent[..new].iter().map(|(_, record)| record))
        );
        expected = seen;
    }
    assert!(unknown > 0, "no stop came while records were under way");
}

/// As after a crash of the primary: fence, and everything that was published.
fn read_after(units: &Units) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let spread = units.find("backup", "log");
    let taken = spread.take_over_log(&options(), |record| {
        found.push(record.payload.to_vec());
        Ok(())
    });
    drop(taken.unwrap());
    found
}
