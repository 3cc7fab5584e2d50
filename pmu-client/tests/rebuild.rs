//! Units of spread regions are replaced and brought up to date while checkpoints go on; whoever does it may die at any point.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

#[path = "support/boss.rs"]
mod boss;
mod support;
#[path = "support/units.rs"]
mod units;
#[path = "support/watched.rs"]
mod watched;

use std::io::IoSlice;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use boss::Boss;
use pmu_client::rebuild::{RebuildOptions, Rebuilt, Replacement, replace};
use pmu_client::{
    ClientError, ConnectOptions, Distributed, Label, Layout, Network, OpenOptions, Reach,
    ReachedUnit, SetChoice, SetNumber, Spread, SpreadPrimary,
};
use pmu_format::{CHUNK_BYTES, Member, SET_MAGIC, SetGeometry, SlotIndex};
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::{self};
use support::{PATIENCE, READ, pattern};
use units::{Units, unit};
use watched::WatchedUnit;

/// Units come back when the test says so.
fn options() -> OpenOptions {
    OpenOptions::new().rejoin(None)
}

fn commit(primary: &mut SpreadPrimary, bytes: &[u8]) -> pmu_client::Receipt {
    primary
        .commit(&[IoSlice::new(bytes)], Label::new("turn").unwrap())
        .unwrap()
}

/// The newest set as a backup reads it, and whether bytes had to be computed.
fn newest(units: &Units) -> (u64, Vec<u8>, bool) {
    let spread = units.find("backup", "state");
    let mut bytes = Vec::new();
    let read = spread
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut bytes)
        .unwrap();
    (read.set.number.get(), bytes, read.reconstructed)
}

/// Ends a thread when it is dropped.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Every unit but one is needed, so that each has its part: the newest set is read without any one of them.
fn every_member_counts(units: &mut Units, members: &[usize], bytes: &[u8]) {
    for lost in members {
        units.stop(*lost);
        let (_, found, _) = newest(units);
        assert!(found == bytes, "without {lost}");
        units.start(*lost);
    }
}

#[test]
fn d07_a_dead_unit_is_replaced_and_the_next_loss_is_survived() {
    let mut units = Units::new(5, 24 << 20);
    units.spread("state", "parity:3+1", 3, 2 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let mut bytes = Vec::new();
    for turn in 0..4 {
        bytes = pattern(900_000 + turn, turn as u64);
        commit(&mut primary, &bytes);
    }
    units.stop(1);
    let mut last = (0, 0);
    let boss = Boss::new(&units, "state");
    let done = boss
        .replace_as(&boss.replacement(1, 4), &mut |progress| {
            assert!(progress.bytes_done >= last.0 && progress.bytes_total >= progress.bytes_done);
            last = (progress.bytes_done, progress.bytes_total);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((done.generation, done.units.len()), (2, 1));
    let given = &done.units[0];
    // Both kept sets, and not one byte more than their shares.
    let share = 900_003_u64.div_ceil(3) + (64 << 10) + 128;
    assert!(
        given.sets == 2 && given.bytes <= 2 * share && given.newest_set == 4,
        "{given:?}"
    );
    assert!(last.0 == last.1 && last.0 > 0, "{last:?}");

    // The primary was not asked: it goes on with the members that it finds now, and takes the new one in.
    let next = pattern(700_000, 9);
    let receipt = commit(&mut primary, &next);
    assert!(receipt.units.len() >= 3, "{receipt}");
    primary.rejoin().unwrap();
    bytes.clone_from(&pattern(800_000, 10));
    let receipt = commit(&mut primary, &bytes);
    assert!(
        receipt.units.iter().any(|proof| *proof.name == *unit(4)) && receipt.units.len() == 4,
        "{receipt}"
    );
    drop(primary);
    every_member_counts(&mut units, &[0, 4, 2, 3], &bytes);

    // It returns with what it held: nobody takes it for a member, not even who asks it first.
    units.start(1);
    let identity = units.identity("backup", pmu_auth::Role::Client);
    let seeds = [&*units.addresses[1], &*units.addresses[0]];
    let spread = Spread::find(
        &seeds,
        "state",
        &identity,
        &ConnectOptions::with_timeout(PATIENCE),
    )
    .unwrap();
    let members = &spread.membership().members;
    assert!(members.iter().all(|member| member.unit.as_str() != unit(1)));
    assert_eq!(spread.membership().generation, 2);
    for lost in [0, 2, 3] {
        units.stop(lost);
    }
    let spread = Spread::find(
        &[&units.addresses[1]],
        "state",
        &identity,
        &ConnectOptions::default(),
    );
    let error = spread
        .unwrap()
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut Vec::new())
        .unwrap_err();
    assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
}

#[test]
fn d08_a_unit_that_was_replaced_distributes_no_more() {
    for is_dead in [false, true] {
        let mut units = Units::new(4, 24 << 20);
        units.distribute("");
        units.spread("state", "mirror:3", 2, 1 << 20);
        if is_dead {
            units.stop(1);
        }
        Boss::new(&units, "state").replace(1, 3).unwrap();
        if is_dead {
            units.start(1);
        }
        let identity = units.identity("app", pmu_auth::Role::Client);
        let through = |index: usize| {
            let connect = ConnectOptions::with_timeout(PATIENCE);
            let address = &units.addresses[index];
            Distributed::connect(address, "state", &identity, &connect, &options())
        };
        // Its grants are those of the time when it was a member.
        let error = through(1).unwrap_err();
        assert!(
            matches!(&error, ClientError::NoGrant { reason, .. } if reason.contains("no member")),
            "dead meanwhile: {is_dead}: {error}"
        );
        let receipt = through(3)
            .unwrap()
            .commit(&[IoSlice::new(b"state")], Label::default());
        assert!(receipt.unwrap().units.len() >= 2);
    }
}

/// Replaces unit 2 by unit 5, dies at the given call, and checks that all sets are there; then goes on.
fn dies_and_goes_on(dies_at: usize, after: bool, old_is_dead: bool) -> bool {
    let mut units = Units::new(5, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let bytes = pattern(600_000, 1);
    commit(&mut primary, &bytes);
    if old_is_dead {
        units.stop(1);
    }
    let mut boss = Boss::new(&units, "state");
    boss.dies_at = Some((dies_at, after));
    let died = boss.replace(1, 4);
    let died = match died {
        Err(ClientError::Interrupted | ClientError::TooFewUnits { .. }) => true,
        Ok(_) => false,
        Err(error) => panic!("at {dies_at}: {error}"),
    };
    // As far as units agree, what is read is right; and whoever has too few says so.
    let reader = units.find("backup", "state");
    let mut found = Vec::new();
    match reader
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut found)
    {
        Ok(_) => assert!(found == bytes, "at {dies_at}"),
        Err(ClientError::TooFewUnits { .. }) => {}
        Err(error) => panic!("at {dies_at}: {error}"),
    }
    drop(reader);
    let boss = Boss::new(&units, "state");
    boss.replace(1, 4).unwrap();
    let bytes = pattern(650_000, 2);
    commit(&mut primary, &bytes);
    primary.rejoin().unwrap();
    let bytes = pattern(660_000, 3);
    assert_eq!(commit(&mut primary, &bytes).units.len(), 4);
    drop(primary);
    every_member_counts(&mut units, &[0, 2, 3, 4], &bytes);
    died
}

#[test]
fn d07_whoever_rebuilds_may_die_at_any_step() {
    for old_is_dead in [false, true] {
        let mut steps = 0;
        for dies_at in 0.. {
            let mut died = false;
            for after in [false, true] {
                died |= dies_and_goes_on(dies_at, after, old_is_dead);
            }
            if !died {
                break;
            }
            steps += 1;
        }
        // The new region, the members that stay, the one that goes if it answers, and the vote.
        assert_eq!(steps, if old_is_dead { 5 } else { 6 });
    }
}

#[test]
fn d07_an_interrupted_copy_is_gone_on_with() {
    let mut units = Units::new(5, 24 << 20);
    units.spread("state", "parity:3+1", 3, 3 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(2_900_000, 1));
    commit(&mut primary, &pattern(2_900_001, 2));
    units.stop(1);
    let boss = Boss::new(&units, "state");
    let mut first = 0;
    let share = 2_900_000 / 3;
    let error = boss.replace_as(&boss.replacement(1, 4), &mut |progress| {
        first = progress.bytes_done;
        if first > share + share / 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(error, Err(ClientError::Interrupted)));
    // Nobody has noticed.
    assert_eq!(newest(&units).0, 2);
    let done = boss.replace(1, 4).unwrap();
    // The set that was whole is not copied again.
    assert_eq!(done.units[0].sets, 1, "{done:?}");
    assert_eq!(newest(&units).0, 2);
}

#[test]
fn d07_checkpoints_go_on_while_a_unit_is_replaced() {
    let units = Units::new(5, 48 << 20);
    units.spread("state", "parity:3+1", 3, 4 << 20);
    let stop = AtomicBool::new(false);
    let boss = Boss::new(&units, "state");
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let (committed, last) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut turn, mut last) = (0_u64, Vec::new());
            while !stop.load(Ordering::SeqCst) || turn < 3 {
                let bytes = pattern(1_000_000 + turn as usize, turn);
                let receipt = commit(&mut primary, &bytes);
                assert!(
                    receipt.is_durable() && receipt.units.len() >= 3,
                    "{receipt}"
                );
                (turn, last) = (turn + 1, bytes);
            }
            // The new unit is taken in without anybody's help but this.
            primary.rejoin().unwrap();
            last.push(1);
            let receipt = commit(&mut primary, &last);
            assert_eq!(receipt.units.len(), 4, "{receipt}");
            (turn, last)
        });
        let _stopper = Stopper(&stop);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let done = boss.replace(1, 4);
        stop.store(true, Ordering::SeqCst);
        done.unwrap();
        writer.join().unwrap()
    });
    assert!(committed >= 3);
    let (_, found, reconstructed) = newest(&units);
    assert!(found == last && !reconstructed);
}

#[test]
fn d07_a_unit_that_was_away_gets_only_what_it_missed() {
    let mut units = Units::new(5, 24 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(600_000, 1));
    let backup = units.pool(2).with_extension("backup");
    units.stop(2);
    std::fs::copy(units.pool(2), &backup).unwrap();
    let bytes = pattern(610_000, 2);
    commit(&mut primary, &bytes);
    units.start(2);
    // The primary lives, and has taken it back before: it can spare it for the time of the work.
    assert_eq!(primary.rejoin().unwrap(), 1);
    let boss = Boss::new(&units, "state");
    let done = boss.rebuild(None).unwrap();
    assert_eq!(done.units.len(), 1, "{done:?}");
    let given = &done.units[0];
    assert_eq!(
        (&*given.unit, given.sets, given.newest_set),
        (&*unit(2), 1, 2)
    );
    assert!(boss.rebuild(None).unwrap().units.is_empty());
    units.stop(0);
    assert!(newest(&units).1 == bytes);
    units.start(0);

    // A unit restored from an old backup is as stale as one that was away, and no more believed.
    let error = primary.commit(
        &[IoSlice::new(b"one was stopped, one taken away")],
        Label::default(),
    );
    assert!(matches!(error, Err(ClientError::TooFewUnits { .. })));
    assert_eq!(primary.rejoin().unwrap(), 2);
    let bytes = pattern(620_000, 3);
    assert_eq!(commit(&mut primary, &bytes).units.len(), 4);
    drop(primary);
    units.stop(2);
    std::fs::copy(&backup, units.pool(2)).unwrap();
    units.start(2);
    let (number, found, reconstructed) = newest(&units);
    assert!(number == 3 && found == bytes && reconstructed);
    for away in [0, 1] {
        units.stop(away);
    }
    let error = units
        .find("backup", "state")
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut Vec::new())
        .unwrap_err();
    assert!(
        matches!(error, ClientError::TooFewUnits { .. }) && error.to_string().contains(&unit(0)),
        "{error}"
    );
    for away in [0, 1] {
        units.start(away);
    }
    let boss = Boss::new(&units, "state");
    let done = boss.rebuild(Some(&unit(2))).unwrap();
    assert_eq!((done.units[0].sets, done.units[0].newest_set), (2, 3));
    every_member_counts(&mut units, &[0, 1, 2, 3], &bytes);
}

#[test]
fn d07_a_unit_in_use_that_can_not_be_spared_is_left_alone() {
    let mut units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(600_000, 1));
    units.stop(2);
    commit(&mut primary, &pattern(600_000, 2));
    units.start(2);
    primary.rejoin().unwrap();
    units.stop(3);
    let boss = Boss::new(&units, "state");
    let done = boss.rebuild(Some(&unit(2))).unwrap();
    assert!(
        done.units.is_empty() && done.missing[0].reason.contains("too few other units"),
        "{done:?}"
    );
    commit(&mut primary, &pattern(600_000, 3));
}

#[test]
fn d07_two_managers_at_once_and_strangers_are_told_apart() {
    let mut units = Units::new(5, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let bytes = pattern(600_000, 1);
    commit(&mut primary, &bytes);
    let boss = Boss::new(&units, "state");
    let invalid = |result: Result<Rebuilt, ClientError>, expected: &str| {
        let error = result.unwrap_err();
        assert!(
            matches!(error, ClientError::Invalid(_)) && error.to_string().contains(expected),
            "{error}"
        );
    };
    invalid(boss.replace(0, 1), "is a member already");
    let nobody = Replacement {
        old: "unit-77".into(),
        ..boss.replacement(0, 4)
    };
    invalid(
        boss.replace_as(&nobody, &mut |_| ControlFlow::Continue(())),
        "its members are unit-1, unit-2, unit-3, unit-4",
    );

    // The second one comes while the first copies.
    let mut second = None;
    let first = boss.replace_as(&boss.replacement(1, 4), &mut |_| {
        second.get_or_insert_with(|| Boss::new(&units, "state").replace(1, 4));
        ControlFlow::Continue(())
    });
    let error = second.unwrap().unwrap_err();
    assert!(
        matches!(error, ClientError::WriterExists { .. }) && error.to_string().contains("boss"),
        "{error}"
    );
    first.unwrap();
    // Done is done.
    assert!(boss.replace(1, 4).unwrap().units.is_empty());
    // The one that went holds its part of an earlier time.
    invalid(boss.replace(0, 1), "pmm region delete state --unit unit-2");

    // A region of the same name that is another one.
    boss.units.admin(1, |mut admin| async move {
        let request = v1::DeleteRegionRequest {
            region: "state".into(),
            force: true,
        };
        admin.delete_region(request).await.unwrap();
        let request = v1::CreateRegionRequest {
            name: "state".into(),
            mode: v1::Mode::Append.into(),
            need: v1::Need::Durable.into(),
            room: Some(Room::SizeBytes(1 << 20)),
            grants: vec![v1::Grant {
                principal: "boss".into(),
                rights: READ,
            }],
            ..Default::default()
        };
        admin.create_region(request).await.unwrap();
    });
    invalid(boss.replace(0, 1), "is not spread over several units");

    // Too many are away: nothing is begun, and who would help is named.
    commit(&mut primary, &bytes);
    units.admin(1, |mut admin| async move {
        let request = v1::DeleteRegionRequest {
            region: "state".into(),
            force: true,
        };
        admin.delete_region(request).await.unwrap();
    });
    units.stop(2);
    units.stop(3);
    let error = Boss::new(&units, "state").replace(0, 1).unwrap_err();
    assert!(
        matches!(error, ClientError::TooFewUnits { .. })
            && error.to_string().contains("unit-3")
            && error.to_string().contains("change the members"),
        "{error}"
    );
    units.start(2);
    units.start(3);
    assert_eq!(units.find("app", "state").membership().generation, 2);
}

#[test]
fn d07_two_changes_of_one_member_never_both_hold() {
    let units = Units::new(6, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(600_000, 1));
    let boss = Boss::new(&units, "state");
    let mut second = None;
    let first = boss.replace_as(&boss.replacement(1, 4), &mut |_| {
        second.get_or_insert_with(|| Boss::new(&units, "state").replace(1, 5));
        ControlFlow::Continue(())
    });
    second.unwrap().unwrap();
    let error = first.unwrap_err();
    assert!(
        error.to_string().contains("another manager") && error.to_string().contains("unit-6"),
        "{error}"
    );
    commit(&mut primary, &pattern(610_000, 2));
    primary.rejoin().unwrap();
    assert_eq!(commit(&mut primary, &pattern(620_000, 3)).units.len(), 4);
    assert_eq!(newest(&units).0, 3);
}

#[test]
fn d07_a_put_in_progress_is_to_be_written_again() {
    let units = Units::new(5, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let bytes = pattern(600_000, 1);
    let mut put = primary.begin(None, Label::default()).unwrap();
    put.write_bytes(&bytes[..300_000]).unwrap();
    Boss::new(&units, "state").replace(1, 4).unwrap();
    let error = put
        .write_bytes(&bytes[300_000..])
        .and_then(|()| put.finish().map(drop))
        .unwrap_err();
    assert!(
        matches!(error, ClientError::MembersChanged { .. }),
        "{error}"
    );
    let mut put = primary.begin(None, Label::default()).unwrap();
    put.write_bytes(&bytes).unwrap();
    assert_eq!(put.finish().unwrap().set(), Some(SetNumber(1)));
    assert!(newest(&units).1 == bytes);
}

/// Turns over a bit of a unit's pool, where these bytes stand.
fn damage(units: &mut Units, index: usize, needle: &[u8]) {
    units.stop(index);
    let mut pool = std::fs::read(units.pool(index)).unwrap();
    let at = pool
        .windows(64)
        .position(|window| window == &needle[..64])
        .unwrap();
    pool[at + 9] ^= 4;
    std::fs::write(units.pool(index), pool).unwrap();
    units.start(index);
}

fn scrub(units: &Units, repair: bool) -> pmu_client::scrub::Scrubbed {
    Boss::new(units, "state").scrub(repair)
}

#[test]
fn b07_a_set_that_a_unit_missed_is_no_damage() {
    let mut units = Units::new(4, 24 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    units.stop(2);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(100_000, 1));
    units.start(2);
    assert_eq!(primary.rejoin().unwrap(), 1);
    commit(&mut primary, &pattern(90_000, 2));
    drop(primary);
    // Its slot for the first set was never written.
    let found = scrub(&units, false);
    assert!(!found.is_damaged(), "{found:?}");
    assert_eq!(found.units[2].lacking, [1]);
    assert!(scrub(&units, true).is_repaired());
    assert!(scrub(&units, false).units[2].lacking.is_empty());
}

/// Leaves a header in the slot of set 1 that doesn't belong to its bytes: its unit was cut off there.
fn cut_short(units: &mut Units, index: usize) {
    let info = Boss::new(units, "state").info(&[index]);
    let geometry =
        SetGeometry::new(info.length_bytes, info.capacity_bytes, info.sets_kept).unwrap();
    let header = |slot| geometry.header_offset(SlotIndex(slot)).get() as usize;
    units.stop(index);
    let mut pool = std::fs::read(units.pool(index)).unwrap();
    let magic = SET_MAGIC.to_le_bytes();
    let whole = pool.windows(8).rposition(|window| window == magic).unwrap();
    assert!(header(2) > header(1));
    let torn = whole - (header(2) - header(1));
    pool.copy_within(whole..whole + 96, torn);
    pool[torn + 40] ^= 1;
    std::fs::write(units.pool(index), pool).unwrap();
    units.start(index);
}

#[test]
fn b07_a_share_that_was_cut_short_is_no_damage() {
    let mut units = Units::new(4, 24 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    units.stop(2);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let first = pattern(100_000, 1);
    commit(&mut primary, &first);
    units.start(2);
    assert_eq!(primary.rejoin().unwrap(), 1);
    commit(&mut primary, &pattern(90_000, 2));
    drop(primary);
    cut_short(&mut units, 2);
    let found = scrub(&units, false);
    assert!(
        !found.is_damaged() && found.units[2].lacking == [1],
        "{found:?}"
    );
    let repaired = scrub(&units, true);
    assert!(
        repaired.is_repaired() && repaired.repaired.len() == 1,
        "{repaired:?}"
    );
    assert!(scrub(&units, false).units[2].lacking.is_empty());
    // From now on it has all of them: what is wrong there is its medium.
    cut_short(&mut units, 2);
    let found = scrub(&units, false);
    assert!(found.units[2].damage[0].contains("set 1"), "{found:?}");
}

#[test]
fn d07_what_a_member_holds_is_read_before_it_is_told_of_a_change() {
    let mut units = Units::new(6, 24 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    let bytes = pattern(300_000, 1);
    commit(&mut primary, &bytes);
    drop(primary);
    units.stop(3);
    let boss = Boss::new(&units, "state");
    assert_eq!(&*boss.replace(1, 4).unwrap().missing[0].unit, unit(3));
    units.start(3);
    units.stop(0);
    // Three of four hold it, as many as it takes; one of them counts for nothing else.
    let mut found = Vec::new();
    let read = units
        .find("backup", "state")
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut found)
        .unwrap();
    assert!(found == bytes && read.reconstructed);
    assert_eq!(read.units, [unit(4), unit(2)]);
    let reasons: Vec<_> = read
        .missing
        .iter()
        .map(|missing| &*missing.reason)
        .collect();
    assert!(reasons[1].contains("generation 1, not of 2"), "{reasons:?}");
    // With it another member is replaced whose unit is dead.
    let boss = Boss::new(&units, "state");
    let done = boss.replace(0, 5).unwrap();
    assert_eq!((done.generation, done.units[0].sets), (3, 1), "{done:?}");
    drop(done);
    let members = [5, 4, 2, 3];
    for lost in members {
        units.stop(lost);
        let mut found = Vec::new();
        let spread = units.find("backup", "state");
        let mut reader = spread.open_reader(&options()).unwrap();
        reader.read(SetChoice::Newest, &mut found).unwrap();
        assert!(found == bytes, "without {lost}");
        drop(reader);
        units.start(lost);
    }
}

#[test]
fn d07_a_unit_that_never_took_part_is_named() {
    let mut units = Units::new(3, 16 << 20);
    units.spread("state", "mirror:3", 2, 1 << 20);
    units.stop(1);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(1000, 1));
    drop(primary);
    units.start(1);
    units.stop(2);
    let spread = units.find("backup", "state");
    let mut reader = spread.open_reader(&options()).unwrap();
    let error = reader.read(SetChoice::Newest, &mut Vec::new()).unwrap_err();
    let text = error.to_string();
    let named = format!("{} (it has never taken part", unit(1));
    assert!(text.contains(&named) && text.contains(&unit(2)), "{text}");
    drop(reader);
    let error = spread.open_primary(&options()).unwrap_err();
    assert!(error.to_string().contains(&named), "{error}");
}

#[test]
fn b07_scrub_finds_every_damaged_chunk_and_repairs_from_redundancy() {
    let mut units = Units::new(4, 24 << 20);
    units.spread("state", "parity:3+1", 3, 4 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(3_000_000, 1));
    let bytes = pattern(3_000_000, 2);
    commit(&mut primary, &bytes);
    let clean = scrub(&units, true);
    assert!(!clean.is_damaged() && clean.repaired.is_empty() && clean.missing.is_empty());
    // 46 subsegments, so 16 groups of each set; every byte of every share was read.
    assert_eq!(
        (clean.sets, clean.groups, clean.groups_incomplete),
        (2, 32, 0)
    );
    let read: u64 = clean.units.iter().map(|unit| unit.bytes).sum();
    assert!(read >= 2 * 3_000_000 * 4 / 3, "{read}");
    drop(primary);

    // Two units, each in another chunk (of four groups): that is no more than the redundancy can bear.
    let at = |subsegment: usize| &bytes[subsegment << 16..];
    damage(&mut units, 1, at(1));
    damage(&mut units, 2, at(14));
    let found = scrub(&units, false);
    let damaged: Vec<_> = found.units.iter().map(|unit| unit.damage.len()).collect();
    assert_eq!(damaged, [0, 1, 1, 0], "{found:?}");
    assert!(found.units[1].damage[0].contains("set 2, chunk"));
    assert!(found.is_damaged() && !found.is_repaired(), "{found:?}");
    assert_eq!(found.groups_incomplete, 8);
    assert!(scrub(&units, false).is_damaged(), "nothing was touched");
    let repaired = scrub(&units, true);
    assert!(repaired.is_repaired(), "{repaired:?}");
    let given: Vec<_> = repaired.repaired.iter().map(|unit| unit.sets).collect();
    assert_eq!(given, [1, 1]);
    assert!(!scrub(&units, false).is_damaged());
    every_member_counts(&mut units, &[0, 1, 2, 3], &bytes);

    // Two in the same group are more than that: nobody makes anything up.
    damage(&mut units, 0, at(0));
    damage(&mut units, 1, at(1));
    let found = scrub(&units, true);
    assert!(found.is_damaged() && !found.is_repaired(), "{found:?}");
    let told: Vec<_> = found.missing.iter().map(|unit| &*unit.unit).collect();
    assert_eq!(told, [&*unit(0), &*unit(1)]);
    assert!(found.missing[0].reason.contains(&unit(1)), "{found:?}");
    let error = units
        .find("backup", "state")
        .open_reader(&options())
        .unwrap()
        .read(SetChoice::Newest, &mut Vec::new())
        .unwrap_err();
    assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
}

#[test]
fn b07_scrub_while_a_primary_writes_finds_no_damage() {
    let units = Units::new(4, 48 << 20);
    units.spread("state", "parity:3+1", 3, 2 << 20);
    let stop = AtomicBool::new(false);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut turn = 0;
            while !stop.load(Ordering::SeqCst) || turn < 5 {
                turn += 1;
                commit(&mut primary, &pattern(1_500_000, turn));
            }
        });
        // Also when what follows fails.
        let _stopper = Stopper(&stop);
        for _ in 0..8 {
            let found = scrub(&units, true);
            assert!(
                !found.is_damaged() && found.repaired.is_empty(),
                "{found:?}"
            );
        }
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
    });
}

/// The network, on which a share is copied group by group; counts the bytes of whole chunks that are asked for.
struct Narrow {
    network: Arc<Network>,
    asked: Arc<AtomicU64>,
}

impl Reach for Narrow {
    fn unit(&self, member: &Member) -> Result<Box<dyn ReachedUnit>, ClientError> {
        Ok(Box::new(WatchedUnit {
            unit: self.network.unit(member)?,
            asked: Arc::clone(&self.asked),
            bytes_min: CHUNK_BYTES,
        }))
    }

    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        self.network.at_once(count, work);
    }

    fn threads(&self) -> usize {
        1
    }

    fn window_bytes(&self) -> u64 {
        0
    }

    fn random(&self) -> Result<[u8; 16], ClientError> {
        self.network.random()
    }
}

#[test]
fn b04_the_next_stretch_is_asked_for_before_the_last_one_is_written() {
    for layout in ["parity:3+1", "mirror:3", "erasure:2+2"] {
        let kind = Layout::from_str(layout).unwrap();
        let members = kind.units();
        let mut units = Units::new(5, 24 << 20);
        let units_min = u8::try_from(members - 1).unwrap();
        units.spread("state", layout, units_min, 2 << 20);
        let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
        let bytes = pattern(1_900_001, 1);
        commit(&mut primary, &bytes);
        drop(primary);
        units.stop(1);
        let boss = Boss::new(&units, "state");
        let reach = Arc::new(Narrow {
            network: boss.network(),
            asked: Arc::default(),
        });
        let (mut told, mut asked) = (Vec::new(), Vec::new());
        let mut on_progress = |progress: &pmu_client::RebuildProgress| {
            told.push(progress.bytes_done);
            asked.push(reach.asked.load(Ordering::SeqCst));
            ControlFlow::Continue(())
        };
        let options = RebuildOptions {
            open: OpenOptions::new(),
            rate_bytes_per_s: None,
            on_progress: &mut on_progress,
        };
        let info = boss.info(&[0, 2, 3, 4]);
        let done = replace(
            &info,
            Arc::clone(&reach) as Arc<dyn Reach>,
            &boss,
            &boss.replacement(1, 4),
            options,
        );
        let given = done.unwrap().units[0].bytes;
        // Each stretch is told of, and at the end everything was.
        assert!(told.len() > 8 && told.is_sorted(), "{layout}: {told:?}");
        assert_eq!(told.last(), Some(&given), "{layout}");
        // When what takes whole chunks of the others is written, their next chunks are on their way already.
        let share = bytes.len().div_ceil(kind.units_to_read()) as u64;
        let ahead = told.iter().zip(&asked).filter(|(done, _)| {
            done.is_multiple_of(CHUNK_BYTES) && **done > 0 && **done + CHUNK_BYTES <= share
        });
        let ahead: Vec<_> = ahead.collect();
        assert!(!ahead.is_empty(), "{layout}: {told:?}");
        for (done, asked) in ahead {
            let least = kind.units_to_read() as u64 * (done + CHUNK_BYTES);
            assert!(*asked >= least, "{layout}: {done} done, {asked} asked for");
        }
        let left: Vec<usize> = (0..members).filter(|index| *index != 1).collect();
        units.stop(left[0]);
        assert!(newest(&units).1 == bytes, "{layout}");
    }
}

#[test]
fn b04_a_copy_has_the_label_of_its_set_and_not_of_what_stood_there() {
    let mut units = Units::new(4, 24 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(100_000, 1));
    let stale = Label::new("stale").unwrap();
    let mut put = primary.begin(Some(50_000), stale).unwrap();
    put.write_bytes(&pattern(50_000, 2)).unwrap();
    (1..4).for_each(|index| units.stop(index));
    put.finish().unwrap_err();
    drop(primary);
    // The first unit holds another set 2, which nobody published.
    units.stop(0);
    (1..4).for_each(|index| units.start(index));
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    commit(&mut primary, &pattern(70_000, 3));
    drop(primary);
    units.start(0);
    Boss::new(&units, "state").rebuild(Some(&unit(0))).unwrap();
    let spread = units.find("backup", "state");
    let mut bytes = Vec::new();
    let mut reader = spread.open_reader(&options()).unwrap();
    let read = reader.read(SetChoice::Newest, &mut bytes).unwrap();
    assert_eq!(
        (read.set.number.get(), read.set.label.to_string()),
        (2, "turn".to_owned())
    );
    assert!(bytes == pattern(70_000, 3));
}
