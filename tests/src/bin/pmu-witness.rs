//! The witness of power cuts: writes with receipts, and compares with what is recovered.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pmu_tests::failure::{Failure, Result};
use pmu_tests::site::Site;
use pmu_tests::write::Limits;
use pmu_tests::{one_sided, receipts, recover, takeover, write};
use serde::Serialize;

/// Writes what it can recognise again, and compares receipts with what is recovered.
#[derive(Debug, Parser)]
#[command(
    name = "pmu-witness",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 a promise was broken, 4 fenced."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the primary of both regions: append and commit without end; one JSON line for each receipt.
    Write(WriteArguments),
    /// Recover both regions, and compare with receipts; one JSON object.
    Check(CheckArguments),
    /// Be the backup: fence, take over, compare with receipts, and go on as the primary.
    TakeOver(TakeOverArguments),
    /// Count work requests, and work while the unit's process is stopped; one JSON object.
    ProveOneSided(ProveArguments),
}

#[derive(Debug, Args)]
struct WriteArguments {
    #[command(flatten)]
    site: Site,
    #[command(flatten)]
    amount: Amount,
}

#[derive(Debug, Args)]
struct Amount {
    /// End after so many steps of the log's writer: each is a record, a batch or a pipeline.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// End after so many sets.
    #[arg(long, value_name = "N")]
    commits: Option<u64>,
    /// Let nobody clear the log.
    #[arg(long)]
    no_clear: bool,
}

#[derive(Debug, Args)]
struct CheckArguments {
    #[command(flatten)]
    site: Site,
    /// What writers printed, in the order in which they ran.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    receipts: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct TakeOverArguments {
    #[command(flatten)]
    site: Site,
    /// What the failed primary printed.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    receipts: Vec<PathBuf>,
    /// Follow the log, and clear it, until this file is there.
    #[arg(long, value_name = "FILE")]
    follow_until: Option<PathBuf>,
    #[command(flatten)]
    amount: Amount,
}

#[derive(Debug, Args)]
struct ProveArguments {
    #[command(flatten)]
    site: Site,
    /// The unit's process, on this machine.
    #[arg(long, value_name = "PID")]
    unit_pid: i32,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "pmu-witness: {error}"));
            match error {
                Failure::Broken(_) => ExitCode::from(3),
                Failure::Client(_, error) if error.is_fenced() => ExitCode::from(4),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Write(arguments) => write::run(&arguments.site, arguments.amount.limits()),
        Command::Check(arguments) => {
            let lines = receipts::read(&arguments.receipts)?;
            print(&recover::check(&arguments.site, &lines)?)
        }
        Command::TakeOver(arguments) => {
            let plan = takeover::Plan {
                follow_until: arguments.follow_until,
                receipts: arguments.receipts,
                limits: arguments.amount.limits(),
            };
            takeover::run(&arguments.site, &plan)
        }
        Command::ProveOneSided(arguments) => {
            print(&one_sided::prove(&arguments.site, arguments.unit_pid)?)
        }
    }
}

impl Amount {
    fn limits(&self) -> Limits {
        Limits {
            steps: self.steps,
            sets: self.commits,
            clear: !self.no_clear,
        }
    }
}

fn print(answer: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(answer).map_err(|error| Failure::Given(error.to_string()))?;
    writeln!(std::io::stdout(), "{text}").map_err(Failure::io("print"))
}
