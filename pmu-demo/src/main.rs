//! The command `pmu-demo`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use pmu_demo::cli::{Arguments, Command};
use pmu_demo::{Result, agented, backup, child, orchestrate, primary, reference};

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(arguments) => orchestrate::run(&arguments),
        Command::Primary(arguments) => done(primary::run(&arguments)),
        Command::Backup(arguments) => done(backup::run(&arguments)),
        Command::Program(arguments) => done(agented::run(&arguments)),
        Command::Reference(arguments) => done(reference::run(&arguments)),
        Command::Tied { parent, command } => Err(child::tie_and_become(parent, &command)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("pmu-demo: {error}");
        ExitCode::FAILURE
    })
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}
