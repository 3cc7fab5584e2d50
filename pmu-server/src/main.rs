//! `pmu-server`: the command.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use pmu_server::cli::{self, Arguments, Command, InitArguments, VerifyArguments, exit};
use pmu_server::config::{Config, Place};
use pmu_server::control::reasons::with_causes;
use pmu_server::distributor::process::Process;
use pmu_server::unit::Unit;
use pmu_server::{logging, metrics, notify, pools};
use tokio::signal::unix::{SignalKind, signal};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Init(arguments) => init(&arguments),
        Command::Run(arguments) => Config::load(&arguments.config)
            .map_err(Failure::from)
            .and_then(run),
        Command::Distribute(arguments) => Config::load(&arguments.config)
            .map_err(Failure::from)
            .and_then(distribute),
        Command::CheckConfig(arguments) => Config::load(&arguments.config)
            .map_err(Failure::from)
            .and_then(|config| {
                writeln!(
                    io::stdout(),
                    "{}: {} {}, good",
                    arguments.config.display(),
                    match config.place() {
                        Place::Unit => "unit",
                        Place::Process => "distributor",
                    },
                    config.unit.name
                )?;
                Ok(exit::DONE)
            }),
        Command::Verify(arguments) => verify(&arguments),
        Command::Completions { shell } => {
            cli::completions(shell, &mut io::stdout());
            Ok(exit::DONE)
        }
        Command::Man => cli::man(&mut io::stdout())
            .map(|()| exit::DONE)
            .map_err(Failure::from),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(io::stderr(), "pmu-server: {}", with_causes(error.as_ref()));
            ExitCode::from(exit::FAILED)
        }
    }
}

fn init(arguments: &InitArguments) -> Result<u8, Failure> {
    let bar = io::stderr().is_terminal().then(|| {
        let style = indicatif::ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}");
        indicatif::ProgressBar::new(0)
            .with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
    });
    let mut progress = |done, all| {
        if let Some(bar) = &bar {
            bar.set_length(all);
            bar.set_position(done);
        }
    };
    let made = pools::init(arguments, &mut progress);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    writeln!(io::stdout(), "{}", made?)?;
    Ok(exit::DONE)
}

fn verify(arguments: &VerifyArguments) -> Result<u8, Failure> {
    let report = pools::verify_offline(arguments)?;
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", report.json())?;
    } else {
        write!(out, "{}", report.text())?;
    }
    Ok(if report.is_damaged() {
        exit::DAMAGED
    } else {
        exit::DONE
    })
}

fn run(config: Config) -> Result<u8, Failure> {
    logging::set_up(&config.log)?;
    let recorder = match config.metrics {
        Some(_) => Some(metrics::set_up()?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        // Before the start, so that a signal during it is not lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut unit = Unit::start_with_metrics(config, recorder).await?;
        tell(notify::READY);
        let failure = loop {
            tokio::select! {
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                // Logs go to standard error and the configuration is read once: there is nothing to do again.
                _ = hang_up.recv() => tracing::info!("SIGHUP does nothing; restart the unit to change its configuration"),
                failure = unit.failed() => break Some(failure),
            }
        };
        tell(notify::STOPPING);
        tracing::info!("stopping; a second signal ends the process at once");
        tokio::select! {
            () = unit.stop() => {}
            _ = terminate.recv() => return Err("stopped at once by a second signal".into()),
            _ = interrupt.recv() => return Err("stopped at once by a second signal".into()),
        }
        failure.map_or(Ok(exit::DONE), |failure| Err(Failure::from(failure)))
    });
    // Whatever still runs is ours and idle, or was told to end at once.
    runtime.shutdown_background();
    done
}

fn distribute(config: Config) -> Result<u8, Failure> {
    logging::set_up(&config.log)?;
    let recorder = match config.metrics {
        Some(_) => Some(metrics::set_up()?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut process = Process::start(config, recorder).await?;
        tell(notify::READY);
        let failure = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            failure = process.failed() => Some(failure),
        };
        tell(notify::STOPPING);
        tokio::select! {
            () = process.stop() => {}
            _ = terminate.recv() => return Err("stopped at once by a second signal".into()),
            _ = interrupt.recv() => return Err("stopped at once by a second signal".into()),
        }
        failure.map_or(Ok(exit::DONE), |failure| Err(Failure::from(failure)))
    });
    runtime.shutdown_background();
    done
}

fn tell(state: &str) {
    if let Err(error) = notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told {state}");
    }
}
