//! Some hundred schedules of every scenario, and that a seed says it all. `scripts/test simulation` runs many more.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use pmu_sim::{Plan, Recording, Scenario, run_many, run_one};

#[test]
fn b05_the_same_seed_gives_the_same_schedule_step_by_step() {
    for scenario in Scenario::all() {
        let mut fingerprints = Vec::new();
        for seed in 1..=12 {
            let first = run_one(seed, Some(scenario), Recording::Kept).unwrap();
            let again = run_one(seed, Some(scenario), Recording::Kept).unwrap();
            assert_eq!(first.lines, again.lines, "{} seed {seed}", scenario.name);
            assert_eq!(first.fingerprint, again.fingerprint);
            // Without a trace the same happens.
            let silent = run_one(seed, Some(scenario), Recording::Off).unwrap();
            assert!(silent.lines.is_empty());
            assert_eq!(first.fingerprint, silent.fingerprint);
            fingerprints.push(first.fingerprint);
        }
        fingerprints.sort_unstable();
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), 12, "every seed is another schedule");
    }
}

fn run(name: &str) {
    let plan = Plan {
        first_seed: 1,
        seeds: 400,
        scenario: Scenario::named(name),
        lanes: 2,
        failures_max: 1,
    };
    let summary = run_many(&plan, |_| {}).unwrap();
    if let Some(failed) = summary.failed.first() {
        panic!(
            "{}; replay: cargo run --release -p pmu-sim -- --replay {} --scenario {name}",
            failed.violation.as_deref().unwrap_or_default(),
            failed.seed
        );
    }
    // A schedule in which nothing happens proves nothing.
    let totals = summary.totals;
    let happened = [
        ("acknowledged", totals.acknowledged),
        ("unknown", totals.unknown),
        ("fences", totals.fences),
        ("checked reads", totals.checked_reads),
        ("power cuts", totals.power_cuts),
        ("words lost", totals.words_lost),
        ("torn", totals.torn),
        ("kills", totals.kills),
        ("hangs", totals.hangs),
        ("links cut", totals.links_cut),
        ("messages lost", totals.messages_lost),
        ("clock jumps", totals.clock_jumps),
        (
            "operations of fenced primaries refused",
            totals.refused_operations,
        ),
        ("crash points", summary.crash_points),
    ];
    for (what, count) in happened {
        assert!(count > 20, "{name}: {what}: {count}");
    }
}

#[test]
fn b05_b03_sets_are_never_lost_mixed_or_those_of_a_fenced_primary() {
    run("sets");
}

#[test]
fn b05_p12_records_are_never_lost_doubled_or_those_of_a_fenced_primary() {
    run("log");
}

#[test]
fn d07_p12_records_over_several_units_are_never_lost_doubled_or_undone() {
    run("spread-log");
}

#[test]
fn d07_b04_sets_over_several_units_are_read_within_the_tolerance_and_never_wrong() {
    run("spread");
}
