//! The command `pmu`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    pmu_client::cli::main(std::env::args_os())
}
