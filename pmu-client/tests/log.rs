//! Append mode against a real unit in this process, over TLS and both soft providers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pmu_client::{
    ClientError, Flow, LogBackup, LogPosition, LogPrimary, OpenOptions, Provider, Stored, Timeouts,
    Unit,
};
use support::{Pool, Site, over, pattern};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn primary(unit: &Unit, region: &str) -> LogPrimary {
    unit.open_log_primary(region, &OpenOptions::new()).unwrap()
}

fn backup(unit: &Unit, region: &str) -> LogBackup {
    unit.open_log_backup(region, true, &OpenOptions::new())
        .unwrap()
}

fn read_all(backup: &mut LogBackup) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let records = backup.read_unread(64 << 10).unwrap();
        if records.len() == 0 {
            return all;
        }
        all.extend(records.map(|record| record.payload.to_vec()));
    }
}

#[test]
fn p12_updates_are_appended_to_earlier_ones() {
    for pool in [Pool::Memory, Pool::File] {
        let mut site = Site::new(pool, 16 * MIB);
        site.log("l", MIB);
        let unit = site.client("app");
        for provider in [Provider::SoftTcp, Provider::SoftUnix] {
            let mut log = unit.open_log_primary("l", &over(provider)).unwrap();
            let before = log.acknowledged();
            let receipt = log.append(b"one").unwrap();
            assert_eq!(
                receipt.stored,
                Stored::Log {
                    from: before,
                    to: log.acknowledged()
                }
            );
            assert_eq!(receipt.is_durable(), pool == Pool::File);
            log.append_batch(&[b"two", b"three", b"four"]).unwrap();
        }
        let mut backup = backup(&site.client("backup"), "l");
        let once: [&[u8]; 4] = [b"one", b"two", b"three", b"four"];
        assert_eq!(read_all(&mut backup), [once, once].concat());
    }
}

#[test]
fn p12_one_durable_append_is_one_chain_and_one_completion() {
    let mut site = Site::new(Pool::File, 16 * MIB);
    site.log("l", MIB);
    let mut log = primary(&site.client("app"), "l");
    log.append(b"warm").unwrap();
    let before = log.counters();
    for _ in 0..50 {
        log.append(&[7; 200]).unwrap();
    }
    let after = log.counters();
    assert_eq!(after.chains - before.chains, 50);
    assert_eq!(after.completions - before.completions, 50);
    // Write, flush, atomic write, flush.
    assert_eq!(after.work_requests - before.work_requests, 200);
    assert_eq!(after.doorbells - before.doorbells, 50);
    let before = log.counters();
    let batch = [&[1_u8; 100][..]; 40];
    log.append_batch(&batch).unwrap();
    assert_eq!(log.counters().chains - before.chains, 1);
    assert_eq!(log.counters().work_requests - before.work_requests, 4);
}

#[test]
fn p12_pipelined_records_share_chains() {
    let mut site = Site::new(Pool::Memory, 32 * MIB);
    site.log("l", 8 * MIB);
    let unit = site.client("app");
    let mut log = primary(&unit, "l");
    let before = log.counters();
    let tickets: Vec<_> = (0..10_000_u32)
        .map(|index| log.submit(&index.to_le_bytes()).unwrap())
        .collect();
    let receipt = log.flush().unwrap();
    assert_eq!(receipt.bytes, 40_000);
    assert_eq!(receipt.position(), Some(log.submitted()));
    assert!(tickets.iter().all(|ticket| log.is_durable(*ticket)));
    let chains = log.counters().chains - before.chains;
    assert!(chains < 5_000, "{chains} chains for 10000 records");
    let single = log.wait(tickets[17]).unwrap();
    assert_eq!(single.bytes, 4);
    let mut backup = backup(&unit, "l");
    let all = read_all(&mut backup);
    assert_eq!(all.len(), 10_000);
    assert!(
        all.iter()
            .enumerate()
            .all(|(index, record)| *record == (index as u32).to_le_bytes())
    );
}

#[test]
fn p12_polling_and_the_event_descriptor() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", MIB);
    let mut log = primary(&site.client("app"), "l");
    let ticket = log.submit(b"polled").unwrap();
    let deadline = Instant::now() + support::PATIENCE;
    while log.poll_completions().unwrap() < ticket.end() {
        assert!(Instant::now() < deadline);
        if !log.arm().unwrap() {
            let mut poll = [nix::poll::PollFd::new(
                log.event_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            nix::poll::poll(&mut poll, 1000_u16).unwrap();
        }
    }
    assert!(log.is_durable(ticket));
}

#[test]
fn p13_backup_reads_and_clears() {
    let mut site = Site::new(Pool::File, 16 * MIB);
    site.log("l", 128 * KIB);
    let unit = site.client("app");
    let mut log = primary(&unit, "l");
    let mut backup = backup(&site.client("backup"), "l");
    assert!(read_all(&mut backup).is_empty());
    let mut expected = LogPosition(0);
    // Many times round the ring.
    for round in 0..40_u64 {
        for index in 0..10 {
            expected = log
                .append(&pattern(1000 + index, round))
                .unwrap()
                .position()
                .unwrap();
        }
        let records = read_all(&mut backup);
        assert_eq!(records.len(), 10);
        assert!(
            records
                .iter()
                .enumerate()
                .all(|(at, record)| *record == pattern(1000 + at, round))
        );
        assert_eq!(backup.clear_handed_out().unwrap(), expected);
    }
    // The next reader begins where was cleared.
    log.append(b"more").unwrap();
    let mut other = unit
        .open_log_backup("l", false, &OpenOptions::new())
        .unwrap();
    assert_eq!(read_all(&mut other), [b"more"]);
    let mark = other.last_mark().unwrap();
    // Without the right to clear, the unit ends the connection.
    assert!(other.clear(mark).is_err());
    drop(backup);
    let mut third = unit
        .open_log_backup("l", true, &OpenOptions::new())
        .unwrap();
    assert_eq!(read_all(&mut third), [b"more"]);
}

#[test]
fn p13_following_hands_out_and_clears_as_records_come() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    let unit = site.client("app");
    let mut log = primary(&unit, "l");
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, other) = (Arc::clone(&stop), site.client("backup"));
    let follower = std::thread::spawn(move || {
        let mut backup = backup(&other, "l");
        let mut sum = 0_u64;
        backup
            .follow(Duration::from_millis(1), 16 << 10, &stopped, |records| {
                for record in records {
                    sum += u64::from_le_bytes(record.payload[..8].try_into().unwrap());
                    if record.payload[..8] == 1999_u64.to_le_bytes() {
                        return Flow::Stop;
                    }
                }
                Flow::Clear
            })
            .unwrap();
        sum
    });
    // 2000 records of 200 bytes through a ring of 56 KiB: appending waits for the clearing.
    for index in 0..2000_u64 {
        let mut record = [0; 200];
        record[..8].copy_from_slice(&index.to_le_bytes());
        log.submit(&record).unwrap();
    }
    log.flush().unwrap();
    assert_eq!(follower.join().unwrap(), 1999 * 2000 / 2);
    stop.store(true, Ordering::Release);
}

#[test]
fn p13_a_full_ring_refuses_or_waits() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    let unit = site.client("app");
    let mut timeouts = Timeouts::default();
    timeouts.back_pressure = Duration::from_millis(200);
    let mut log = unit
        .open_log_primary("l", &OpenOptions::new().timeouts(timeouts))
        .unwrap();
    let record = [1; 952];
    let full = loop {
        if let Err(error) = log.try_append(&record) {
            break error;
        }
    };
    assert!(
        matches!(full, ClientError::Full { needed_bytes: 1000, free_bytes, .. } if free_bytes < 1000),
        "{full}"
    );
    let begun = Instant::now();
    assert!(matches!(log.append(&record), Err(ClientError::Full { .. })));
    assert!(begun.elapsed() >= Duration::from_millis(200));
    // Small ones still fit, and clearing makes room.
    log.append(b"x").unwrap();
    let mut backup = backup(&unit, "l");
    assert_eq!(read_all(&mut backup).len(), 58);
    backup.clear_handed_out().unwrap();
    log.append(&record).unwrap();
    assert_eq!(read_all(&mut backup).len(), 1);
}

#[test]
fn p12_records_from_one_byte_to_the_whole_ring() {
    let mut site = Site::new(Pool::Memory, 32 * MIB);
    // More than the staging memory, and than a reader's window.
    site.log("l", 6 * MIB);
    let unit = site.client("app");
    let options = OpenOptions::new().staging_bytes(1);
    let mut log = unit.open_log_primary("l", &options).unwrap();
    let mut backup = unit.open_log_backup("l", true, &options).unwrap();
    let longest = log.record_bytes_max() as usize;
    assert_eq!(longest, 6 * MIB as usize - 8192 - 48);
    for (seed, length) in [1, longest, 7, longest - 1, 3_000_001, 1, longest]
        .into_iter()
        .enumerate()
    {
        let record = pattern(length, seed as u64);
        log.append(&record).unwrap();
        let records = backup.read_unread(1).unwrap();
        let payloads: Vec<_> = records.map(|record| record.payload.to_vec()).collect();
        assert!(payloads == [record], "{length}");
        backup.clear_handed_out().unwrap();
    }
    let too_large = log.append(&vec![0; longest + 1]).unwrap_err();
    assert!(
        matches!(too_large, ClientError::TooLarge { .. }),
        "{too_large}"
    );
    let half = vec![0; longest / 2 + 64];
    let too_large = log.append_batch(&[&half, &half]).unwrap_err();
    assert!(
        matches!(too_large, ClientError::TooLarge { .. }),
        "{too_large}"
    );
    assert!(matches!(log.append(b""), Err(ClientError::Invalid(_))));
    assert!(matches!(
        log.append_batch(&[]),
        Err(ClientError::Invalid(_))
    ));
    log.append(b"still good").unwrap();
}

#[test]
fn p14_backup_gets_only_the_unread_tail() {
    let mut site = Site::new(Pool::File, 16 * MIB);
    site.log("l", 256 * KIB);
    let mut log = primary(&site.client("app"), "l");
    let other = site.client("backup");
    let mut backup = backup(&other, "l");
    for index in 0..20_u64 {
        log.append(&index.to_le_bytes()).unwrap();
    }
    assert_eq!(read_all(&mut backup).len(), 20);
    backup.clear_handed_out().unwrap();
    for index in 20..30_u64 {
        log.append(&index.to_le_bytes()).unwrap();
    }
    let before = backup.counters();
    let mut unread = Vec::new();
    let takeover = other
        .take_over_log("l", &OpenOptions::new(), |record| {
            unread.push(u64::from_le_bytes(record.payload.try_into().unwrap()));
            Ok(())
        })
        .unwrap();
    assert_eq!(unread, (20..30).collect::<Vec<_>>());
    assert_eq!(takeover.recovered.records, 10);
    assert!(takeover.fence.epoch > log.epoch() && takeover.primary.epoch() > takeover.fence.epoch);
    assert!(takeover.recovered_after <= takeover.took);
    assert_eq!(backup.counters(), before);

    // The old primary can do nothing any more; the new one goes on, and what was read can be cleared.
    let late = log.append(b"late").unwrap_err();
    assert!(late.is_fenced(), "{late}");
    assert!(log.submit(b"later").unwrap_err().is_fenced());
    let mut new = takeover.primary;
    new.append(b"new").unwrap();
    assert_eq!(read_all(&mut backup).len(), 11);
    backup.clear_handed_out().unwrap();
    assert_eq!(new.refresh_free().unwrap(), 256 * KIB - 8192);
}

#[test]
fn p14_the_backup_itself_recovers_what_it_has_not_read() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    let mut log = primary(&site.client("app"), "l");
    let other = site.client("backup");
    let mut backup = backup(&other, "l");
    for index in 0..10_u8 {
        log.append(&[index]).unwrap();
    }
    assert_eq!(read_all(&mut backup).len(), 10);
    // Read, but not cleared.
    for index in 10..15_u8 {
        log.append(&[index]).unwrap();
    }
    other.fence("l").unwrap();
    let mut unread = Vec::new();
    let recovered = backup
        .recover(|record| {
            unread.push(record.payload[0]);
            Ok(())
        })
        .unwrap();
    assert_eq!(unread, [10, 11, 12, 13, 14]);
    assert_eq!((recovered.records, recovered.damage), (15, None));
    assert!(read_all(&mut backup).is_empty(), "handed out once");
    backup.clear_handed_out().unwrap();
}

#[test]
fn b02_a_live_backup_uses_one_sided_operations_alone() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    let unit = site.client("app");
    let mut log = primary(&unit, "l");
    let mut backup = backup(&unit, "l");
    log.append(b"one").unwrap();
    let before = backup.counters();
    assert_eq!(read_all(&mut backup), [b"one"]);
    let reads = backup.counters();
    assert!(reads.bytes_read > before.bytes_read);
    assert_eq!(reads.bytes_written, before.bytes_written);
    backup.clear_handed_out().unwrap();
    // One chain of four: cursor, flush, inverse, flush.
    assert_eq!(backup.counters().chains - reads.chains, 1);
    assert_eq!(backup.counters().work_requests - reads.work_requests, 4);
    // And the control channel isn't needed by either.
    drop(unit);
    log.append(b"two").unwrap();
    assert_eq!(read_all(&mut backup), [b"two"]);
}

#[test]
fn s05_who_goes_on_from_a_fence_is_told_that_it_was_fenced_once_somebody_else_has_led() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    let (unit, other) = (site.client("app"), site.client("backup"));
    let from = |epoch| OpenOptions::new().going_on_from(epoch);
    let recovered = unit.fence("l").unwrap().epoch;
    let mut between = primary(&other, "l");
    between.append(b"acknowledged").unwrap();
    // While it leads, and when it is gone.
    let error = unit.open_log_primary("l", &from(recovered)).unwrap_err();
    assert!(error.is_fenced(), "{error}");
    let last = between.epoch();
    drop(between);
    let error = unit.open_log_primary("l", &from(recovered)).unwrap_err();
    let said = error.to_string();
    let both = [recovered, last].map(|epoch| epoch.to_string());
    assert!(
        error.is_fenced() && both.iter().all(|epoch| said.contains(epoch)),
        "{said}"
    );
    assert_eq!(unit.describe("l").unwrap().epoch, last);
    let recovered = unit.fence("l").unwrap().epoch;
    let log = unit.open_log_primary("l", &from(recovered)).unwrap();
    assert_eq!(log.epoch().get(), recovered.get() + 1);
    drop(log);
    // Who only reads goes on from nothing, and a take-over from its own fence.
    let reader = unit.open_log_backup("l", false, &from(recovered));
    drop(reader.unwrap());
    let taken = unit
        .take_over_log("l", &from(recovered), |_| Ok(()))
        .unwrap();
    drop(taken);
    // The region of another mode, too.
    site.sets("s", 2, MIB);
    let error = unit.open_sets_primary("s", &from(recovered)).unwrap_err();
    assert!(error.is_fenced(), "{error}");
}

#[test]
fn b03_a_second_primary_is_refused_until_the_first_is_fenced() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    let (unit, other) = (site.client("app"), site.client("backup"));
    let mut first = primary(&unit, "l");
    first.append(b"one").unwrap();
    let refused = other
        .open_log_primary("l", &OpenOptions::new())
        .unwrap_err();
    assert!(
        matches!(refused, ClientError::WriterExists { .. }),
        "{refused}"
    );
    let report = other.fence("l").unwrap();
    assert_eq!(report.sessions_closed, 1);
    assert!(report.took <= report.round_trip);
    let ticket = first.submit(b"into the void");
    assert!(
        ticket
            .and_then(|ticket| first.wait(ticket))
            .unwrap_err()
            .is_fenced()
    );
    let mut second = primary(&other, "l");
    second.append(b"two").unwrap();
    assert_eq!(read_all(&mut backup(&unit, "l")), [b"one", b"two"]);
}

#[test]
fn p12_wrapping_at_every_alignment() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    let unit = site.client("app");
    let mut log = primary(&unit, "l");
    let mut backup = backup(&unit, "l");
    let ring = 64 * KIB - 8192;
    // Records of 13 words in a ring of 7168: each word of a record meets the ring's end in its turn.
    let mut ends_met = std::collections::BTreeSet::new();
    for round in 0..8_000_u64 {
        let record = pattern(49 + (round % 8) as usize, round);
        let receipt = log.append(&record).unwrap();
        let to = receipt.position().unwrap().get();
        if to / ring != (to - 104) / ring {
            ends_met.insert(to % ring);
        }
        if round % 100 == 99 {
            let records = read_all(&mut backup);
            assert_eq!(records.len(), 100);
            for (index, record) in records.iter().enumerate() {
                let number = round - 99 + index as u64;
                assert!(*record == pattern(49 + (number % 8) as usize, number));
            }
            backup.clear_handed_out().unwrap();
        }
    }
    assert_eq!(ends_met.len(), 13, "{ends_met:?}");
}

#[test]
fn futures_of_no_runtime() {
    let mut site = Site::new(Pool::Memory, 16 * MIB);
    site.log("l", 64 * KIB);
    site.sets("r", 1, MIB);
    let unit = site.client("app");
    let log = pmu_client::asynchronous::Log::new(primary(&unit, "l")).unwrap();
    let sets = unit.open_sets_primary("r", &OpenOptions::new()).unwrap();
    let sets = pmu_client::asynchronous::Sets::new(sets).unwrap();
    let many: Vec<_> = (0..100_u8).map(|index| log.append([index])).collect();
    let receipts: Vec<_> = many
        .into_iter()
        .map(|pending| pending.wait().unwrap())
        .collect();
    assert!(
        receipts
            .windows(2)
            .all(|pair| pair[0].position() < pair[1].position())
    );
    site.runtime.block_on(async {
        let batch = log.append_batch(vec![b"a".to_vec(), b"b".to_vec()]);
        let (receipt, payload) = sets
            .commit(b"state".to_vec(), Default::default())
            .await
            .unwrap();
        assert_eq!((receipt.bytes, payload.as_slice()), (5, &b"state"[..]));
        batch.await.unwrap();
        log.flush().await.unwrap();
    });
    drop(log);
    assert_eq!(read_all(&mut backup(&unit, "l")).len(), 102);
}
