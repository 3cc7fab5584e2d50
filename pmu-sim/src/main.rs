//! Runs schedules by their seeds, or replays one and prints what happened.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports"
)]

/// Prints a line; whoever reads may have gone, as `head` does.
macro_rules! out {
    ($($format:tt)*) => {
        let _ = writeln!(std::io::stdout(), $($format)*);
    };
}

mod lanes;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use pmu_sim::{Failed, Plan, Recording, Scenario, Summary, run_one};

/// Simulates programs, units and the network between them, and checks what is promised.
///
/// Exit codes: 0 nothing was wrong, 1 a schedule failed, 2 the arguments are wrong.
#[derive(Debug, Parser)]
#[command(name = "pmu-sim", version)]
struct Options {
    /// How many schedules to run, one for each seed.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Run this seed alone, and print what happens step by step.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "first_seed"])]
    replay: Option<u64>,
    /// Only this scenario; without it the seed chooses.
    #[arg(long, value_name = "NAME", value_parser = scenario)]
    scenario: Option<&'static Scenario>,
    /// List the scenarios and end.
    #[arg(long)]
    list: bool,
    /// Only each seed of this distance.
    #[arg(long, hide = true, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Run as the lane of this number, for the program that started it.
    #[arg(long, hide = true)]
    lane: Option<usize>,
    /// Worlds side by side, each a process; as many as the machine has processors without it.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    lanes: Option<u16>,
    /// End after so many failed schedules.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    failures: usize,
    /// Plant this bug first: the test of the test.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_name = "BUG", value_parser = bug)]
    plant: Option<pmu_sim::planted::Bug>,
    /// Print the summary as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Options {
    /// What each lane must know beside its seeds.
    fn for_lanes(&self) -> Vec<String> {
        let mut arguments = vec![format!("--failures={}", self.failures)];
        if let Some(scenario) = self.scenario {
            arguments.push(format!("--scenario={}", scenario.name));
        }
        #[cfg(feature = "planted-bugs")]
        if let Some(bug) = self.plant
            && let Some((name, _)) = pmu_sim::planted::Bug::ALL
                .iter()
                .find(|(_, known)| *known == bug)
        {
            arguments.push(format!("--plant={name}"));
        }
        arguments
    }
}

fn scenario(name: &str) -> Result<&'static Scenario, String> {
    Scenario::named(name).ok_or_else(|| {
        let names: Vec<_> = Scenario::all()
            .iter()
            .map(|scenario| scenario.name)
            .collect();
        format!("one of: {}", names.join(", "))
    })
}

#[cfg(feature = "planted-bugs")]
fn bug(name: &str) -> Result<pmu_sim::planted::Bug, String> {
    let all = pmu_sim::planted::Bug::ALL;
    let found = all.iter().find(|(known, _)| *known == name);
    found.map(|(_, bug)| *bug).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        format!("one of: {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let options = Options::parse();
    #[cfg(feature = "planted-bugs")]
    pmu_sim::planted::plant(options.plant);
    if options.list {
        for scenario in Scenario::all() {
            out!("{:10} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    let result = match options.replay {
        Some(seed) => replay(seed, &options),
        None => many(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("pmu-sim: {error}");
        ExitCode::FAILURE
    })
}

fn replay(seed: u64, options: &Options) -> std::io::Result<ExitCode> {
    let recording = if options.json {
        Recording::Kept
    } else {
        Recording::Printed
    };
    let outcome = run_one(seed, options.scenario, recording)?;
    if options.json {
        let lines = serde_json::json!({
            "seed": seed,
            "scenario": outcome.scenario,
            "violation": outcome.violation,
            "fingerprint": format!("{:016x}", outcome.fingerprint),
            "totals": outcome.totals,
            "lines": outcome.lines,
        });
        out!("{lines}");
    } else {
        out!(
            "seed {seed}, scenario {}, fingerprint {:016x}: {}",
            outcome.scenario,
            outcome.fingerprint,
            outcome.violation.as_deref().unwrap_or("nothing was wrong")
        );
    }
    Ok(code(outcome.violation.is_none()))
}

fn many(options: &Options) -> std::io::Result<ExitCode> {
    let lanes = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        first_seed: options.first_seed,
        seeds: options.seeds,
        every: options.every,
        scenario: options.scenario,
        lanes: options.lanes.map_or(lanes, usize::from),
        failures_max: options.failures.max(1),
    };
    if let Some(lane) = options.lane {
        lanes::work(&Plan { lanes: 1, ..plan }, lane)?;
        return Ok(ExitCode::SUCCESS);
    }
    let begun = Instant::now();
    let shows = std::io::stderr().is_terminal() && !options.json;
    let summary = lanes::run(&plan, &options.for_lanes(), |done| {
        if shows {
            let rate = done as f64 / begun.elapsed().as_secs_f64();
            eprint!("\r{done} of {} schedules, {rate:.0} a second ", plan.seeds);
        }
    })?;
    if shows {
        eprintln!();
    }
    for failed in &summary.failed {
        eprintln!("{}", failure(failed));
    }
    if options.json {
        out!("{}", json(&summary));
    } else {
        print(&summary);
    }
    Ok(code(summary.failed.is_empty()))
}

fn failure(failed: &Failed) -> String {
    format!(
        "seed {} (scenario {}): {}\n  replay: cargo run --release -p pmu-sim -- --replay {} --scenario {}",
        failed.seed, failed.scenario, failed.violation, failed.seed, failed.scenario,
    )
}

fn json(summary: &Summary) -> serde_json::Value {
    serde_json::json!({
        "schedules": summary.schedules,
        "failed": summary.failed,
        "crash_points": summary.crash_points.len(),
        "seconds": summary.took.as_secs_f64(),
        "schedules_per_second": summary.rate(),
        "totals": summary.totals,
    })
}

fn print(summary: &Summary) {
    let totals = &summary.totals;
    out!(
        "{} schedules in {:.1} s ({:.0} a second), {} failed, {} distinct crash points",
        summary.schedules,
        summary.took.as_secs_f64(),
        summary.rate(),
        summary.failed.len(),
        summary.crash_points.len()
    );
    out!(
        "  {} steps; {} power cuts lost {} words; {} programs killed, {} hung; {} connections cut; {} messages lost; {} clock jumps",
        totals.steps,
        totals.power_cuts,
        totals.words_lost,
        totals.kills,
        totals.hangs,
        totals.links_cut,
        totals.messages_lost,
        totals.clock_jumps
    );
    out!(
        "  {} stores acknowledged, {} of unknown outcome, {} refused; {} fences; {} reads checked, {} refused beyond the tolerance; {} operations refused by units",
        totals.acknowledged,
        totals.unknown,
        totals.refused,
        totals.fences,
        totals.checked_reads,
        totals.refused_reads,
        totals.refused_operations
    );
    out!(
        "  {} changes of members at units, {} cut short for a while; {} rebuilds and scrubs ended, {} cut short; {} units destroyed; {} failures of media, {} scrubs that repaired; {} publish pages that a scrub or rebuild made durable",
        totals.changes,
        totals.changes_half_done,
        totals.rebuilds,
        totals.rebuilds_cut,
        totals.destroyed,
        totals.damages,
        totals.repairs,
        totals.settled
    );
    out!(
        "  {} sessions with distributors: {} sets stored, {} records on their way",
        totals.distributed,
        totals.distributed_sets,
        totals.distributed_records
    );
}

const fn code(is_good: bool) -> ExitCode {
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
