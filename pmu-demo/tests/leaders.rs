//! The check that there are never two leaders: histories of two instances that it takes, and each kind that it must refuse.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by a panic")]

use pmu_demo::leaders::{Commit, Found, Instance, Log, Verdict, What, check};

fn commit(
    what: What,
    epoch: u64,
    (from, to): (u64, u64),
    (begun_ns, told_ns): (u64, u64),
) -> Commit {
    Commit {
        what,
        epoch: Some(epoch),
        from,
        to,
        begun_ns,
        told_ns,
    }
}

fn record(epoch: u64, from: u64, times: (u64, u64)) -> Commit {
    commit(What::Record, epoch, (from, from + 64), times)
}

fn set(epoch: u64, number: u64, times: (u64, u64)) -> Commit {
    commit(What::Set, epoch, (number, number + 1), times)
}

/// The old one is told late of its last record: it had begun it in time. The new one comes at 1000.
fn good() -> [Instance; 2] {
    let old = Instance {
        name: "old (pid 11)".into(),
        epoch: 3,
        fenced_ns: None,
        opened_ns: 100,
        began_with: 0,
        commits: vec![
            record(3, 0, (110, 120)),
            set(7, 1, (130, 140)),
            record(3, 64, (900, 1500)),
        ],
    };
    let new = Instance {
        name: "new (pid 22)".into(),
        epoch: 5,
        fenced_ns: Some(950),
        opened_ns: 1000,
        began_with: 2,
        commits: vec![record(5, 128, (1010, 1020)), set(8, 2, (1030, 1040))],
    };
    [old, new]
}

fn log(records: &[(u64, u64)]) -> Log {
    let mut log = Log::default();
    for &(from, epoch) in records {
        let to = from + 64;
        log.saw(Found { from, to, epoch });
    }
    log
}

fn good_log() -> Log {
    log(&[(0, 3), (64, 3), (128, 5)])
}

/// What is said names both, and the rest.
fn refused(instances: &[Instance], log: &Log, words: &[&str]) {
    let said = check(instances, log).unwrap_err();
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
}

const BOTH: [&str; 2] = ["old (pid 11) (epoch 3)", "new (pid 22) (epoch 5)"];

#[test]
fn p14_one_leader_after_the_other_is_well_in_any_order() {
    let [old, new] = good();
    let verdict = Verdict {
        led: 2,
        commits: 5,
        records: 3,
        apart_ns: Some(100),
    };
    assert_eq!(check(&[old.clone(), new.clone()], &good_log()), Ok(verdict));
    assert_eq!(check(&[new, old], &good_log()), Ok(verdict));
    // The same, read twice.
    let mut twice = good_log();
    twice.saw(Found {
        from: 64,
        to: 128,
        epoch: 3,
    });
    assert_eq!(check(&good(), &twice), Ok(verdict));
}

#[test]
fn p14_a_commit_that_an_old_leader_began_too_late_is_two_leaders() {
    let [mut old, new] = good();
    old.commits[2].begun_ns = 950;
    let instances = [old.clone(), new];
    refused(&instances, &good_log(), &BOTH);
    let told = [
        "64..128",
        "begun at 0.000000950 s, told at 0.000001500 s",
        "fenced the regions at 0.000000950 s",
        "128..192, begun at 0.000001010 s",
    ];
    refused(&instances, &good_log(), &told);
    // Where nobody says when the fence stood, the opening counts.
    let [mut old, mut new] = good();
    new.fenced_ns = None;
    old.commits[2].begun_ns = 999;
    assert!(check(&[old.clone(), new.clone()], &good_log()).is_ok());
    old.commits[2].begun_ns = 1000;
    refused(
        &[old, new.clone()],
        &good_log(),
        &["opened the regions at 0.000001000 s"],
    );
    // None opens before its own fence.
    let [old, mut late] = good();
    late.fenced_ns = Some(1001);
    refused(
        &[old, late],
        &good_log(),
        &[BOTH[1], "before its fence stood"],
    );
    // Even if it is no record, and if the new one has not come to commit anything.
    let [mut old, _] = good();
    old.commits.push(set(7, 2, (1001, 1002)));
    let idle = Instance {
        commits: Vec::new(),
        ..new
    };
    refused(&[old, idle], &Log::default(), &["set 2", BOTH[0], BOTH[1]]);
}

#[test]
fn p14_who_begins_without_what_was_acknowledged_has_lost_it() {
    let [old, mut new] = good();
    new.began_with = 1;
    let instances = [old, new];
    refused(&instances, &good_log(), &BOTH);
    refused(
        &instances,
        &good_log(),
        &["are lost", "told of 2", "began with 1"],
    );
    // What an earlier one knew counts, and more than was acknowledged is well.
    let [mut old, mut new] = good();
    (old.began_with, new.began_with) = (10, 11);
    refused(&[old.clone(), new.clone()], &good_log(), &["so knew 12"]);
    new.began_with = 13;
    assert!(check(&[old, new], &good_log()).is_ok());
}

#[test]
fn p14_an_old_leaders_record_or_set_behind_a_new_ones_first_is_two_leaders() {
    let [mut old, new] = good();
    old.commits[2] = record(3, 192, (900, 950));
    refused(
        &[old, new],
        &Log::default(),
        &[BOTH[0], BOTH[1], "192..256", "128..192"],
    );
    let [mut old, new] = good();
    old.commits[1] = set(7, 2, (130, 140));
    refused(&[old, new], &Log::default(), &[BOTH[0], BOTH[1], "set 2"]);
    let [old, mut new] = good();
    new.commits[1] = set(7, 2, (1030, 1040));
    refused(
        &[old, new],
        &Log::default(),
        &[BOTH[0], BOTH[1], "epoch Some(7)"],
    );
}

#[test]
fn p14_two_instances_of_one_epoch_are_two_leaders() {
    let [old, mut new] = good();
    new.epoch = 3;
    new.commits[0] = record(3, 128, (1010, 1020));
    refused(
        &[old, new],
        &Log::default(),
        &["share an epoch", "old (pid 11)", "new (pid 22)"],
    );
}

#[test]
fn p14_an_instance_told_of_another_epoch_or_out_of_order_is_refused() {
    let [mut old, new] = good();
    old.commits[2] = record(4, 64, (900, 950));
    refused(&[old, new], &Log::default(), &[BOTH[0], "epoch Some(4)"]);
    let [mut old, new] = good();
    old.commits[2] = record(3, 32, (900, 950));
    refused(&[old, new], &Log::default(), &[BOTH[0], "32..96", "0..64"]);
}

#[test]
fn p14_a_log_whose_epochs_decrease_or_that_nobody_wrote_is_refused() {
    let instances = good();
    let later = log(&[(128, 5), (192, 3)]);
    refused(
        &instances,
        &later,
        &[BOTH[0], BOTH[1], "128..192", "192..256"],
    );
    let third = log(&[(128, 5), (192, 6)]);
    refused(&instances, &third, &["nobody known (epoch 6)", "192..256"]);
    let mut overlapping = good_log();
    overlapping.saw(Found {
        from: 160,
        to: 224,
        epoch: 5,
    });
    refused(&instances, &overlapping, &["128..192", "160..224"]);
}

#[test]
fn p14_a_record_in_the_place_of_anothers_is_two_leaders() {
    // The old one was told of it, and the new one's lies there.
    refused(
        &good(),
        &log(&[(64, 5)]),
        &[BOTH[0], BOTH[1], "64..128", "told at 0.000001500 s"],
    );
    let mut halfway = Log::default();
    halfway.saw(Found {
        from: 32,
        to: 96,
        epoch: 3,
    });
    refused(&good(), &halfway, &[BOTH[0], "32..96"]);
    let mut changed = good_log();
    changed.saw(Found {
        from: 64,
        to: 128,
        epoch: 5,
    });
    refused(&good(), &changed, &[BOTH[0], BOTH[1], "later"]);
}
