//! The test of the test: each planted bug is found, and without one nothing is. Feature `planted-bugs`.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pmu_sim::planted::{Bug, plant};
use pmu_sim::{Plan, Summary, run_many};

/// Within so many schedules each bug must be found.
const SEEDS_MAX: u64 = 20_000;

/// What is planted is planted in the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(seeds: u64) -> Summary {
    let plan = Plan {
        first_seed: 1,
        seeds,
        every: 1,
        scenario: None,
        lanes: 2,
        failures_max: 1,
    };
    run_many(&plan, |_| ControlFlow::Continue(())).unwrap()
}

fn is_found(bug: Bug) {
    let _alone = alone();
    plant(Some(bug));
    let summary = run(SEEDS_MAX);
    plant(None);
    let found = summary.failed.first();
    let found = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS_MAX} schedules"));
    assert!(!found.violation.is_empty());
}

#[test]
fn b05_a_dropped_flush_is_found() {
    is_found(Bug::DropFlush);
}

#[test]
fn b05_a_commit_before_its_data_is_found() {
    is_found(Bug::CommitBeforeData);
}

#[test]
fn b05_a_slot_that_is_used_too_early_is_found() {
    is_found(Bug::ReuseSlot);
}

#[test]
fn b03_a_skipped_epoch_check_is_found() {
    is_found(Bug::SkipEpochCheck);
}

#[test]
fn b04_parity_of_a_stale_shard_is_found() {
    is_found(Bug::StaleParity);
}

#[test]
fn d07_what_a_rebuild_read_too_early_is_found() {
    is_found(Bug::StaleRebuild);
}

#[test]
fn b07_words_whose_check_bits_are_not_looked_at_are_found() {
    is_found(Bug::TrustWords);
}

#[test]
fn d07_what_a_logs_rebuild_left_out_is_found() {
    is_found(Bug::StaleLogRebuild);
}

#[test]
fn d08_records_that_a_distributor_acknowledges_early_are_found() {
    is_found(Bug::AcknowledgeEarly);
}

#[test]
fn d08_a_set_that_was_given_up_and_a_distributor_publishes_is_found() {
    is_found(Bug::PublishAbandoned);
}

#[test]
fn b05_without_a_bug_nothing_is_found() {
    let _alone = alone();
    plant(None);
    let summary = run(600);
    assert!(
        summary.failed.is_empty(),
        "{:?}",
        summary.failed[0].violation
    );
}
