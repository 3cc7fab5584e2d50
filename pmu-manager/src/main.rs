//! The command `pmm`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use pmu_manager::cli::Arguments;
use pmu_manager::confirm::Terminal;
use pmu_manager::output::Output;
use pmu_manager::{ManagerError, commands};
use tracing_subscriber::EnvFilter;

/// What goes to the log, as in `info` or `pmu_auth=debug`.
const LOG_VARIABLE: &str = "PMU_LOG";

fn main() -> ExitCode {
    let arguments = match Arguments::parse_checked(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    let output = Output::standard(arguments.common.json);
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|source| ManagerError::Start { source })
        .and_then(|runtime| runtime.block_on(commands::run(&arguments, &output, &Terminal)));
    match result {
        Ok(exit) => ExitCode::from(exit),
        Err(error) => {
            output.failure(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
