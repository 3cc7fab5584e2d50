//! The command `pmu`: arguments in, library calls, reports and an exit code out.

mod arguments;
mod bench;
mod distributed;
mod framing;
mod log;
mod logs;
mod output;
mod process;
#[cfg(feature = "segments")]
mod segments;
mod sets;
mod snapshot;
mod source;
mod spread;
#[cfg(feature = "segments")]
mod store;
mod target;
mod values;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use arguments::Arguments;
use arguments::{Command, Common, Fence};
use clap::{CommandFactory, Parser};
use framing::FramingError;
use output::{Output, confirm};
use pmu_format::Mode;
use serde::Serialize;
use source::Interrupt;
use tracing_subscriber::EnvFilter;
use values::{duration_text, plain};

use crate::control::chain;
use crate::error::ClientError;
use crate::options::{ConnectOptions, OpenOptions, Timeouts};
use crate::process::ProcessError;
use crate::snapshot::SnapshotError;
use crate::spread::Spread;
use crate::unit::{Unit, identity_directory, load_identity};
use pmu_auth::Identity;

/// What goes to the log, as in `info` or `pmu_client=debug`.
const LOG_VARIABLE: &str = "PMU_LOG";

/// The exit codes, as the help documents them; those that `pmm` has too are the same there.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed; the message says why.
    pub const FAILED: u8 = 1;
    /// Wrong arguments, or not confirmed.
    pub const USAGE: u8 = 2;
    /// Not authenticated, or not authorised.
    pub const NOT_AUTHORISED: u8 = 3;
    /// No such region or set.
    pub const NOT_FOUND: u8 = 4;
    /// Damage was found. What could be fetched was fetched.
    pub const DAMAGED: u8 = 5;
    /// The unit is locked or can't be reached.
    pub const UNAVAILABLE: u8 = 6;
    /// What was being stored may have been stored or not.
    pub const UNKNOWN: u8 = 7;
    /// Another primary has taken over.
    pub const FENCED: u8 = 8;
    /// A segment or file of this name is there with other contents.
    pub const TAKEN: u8 = 9;
    /// CRIU is missing, or refused. A program that was to be checkpointed goes on.
    pub const REFUSED: u8 = 10;
    /// Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Snapshot(SnapshotError),
    #[cfg(feature = "segments")]
    #[error(transparent)]
    Segments(#[from] crate::segments::SegmentError),
    #[cfg(feature = "segments")]
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("the input: {0}")]
    Framing(#[from] FramingError),
    #[error("{0}")]
    Usage(String),
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("write the output")]
    Output { source: io::Error },
    #[error("interrupted")]
    Interrupted,
    #[error("{cause}; {count} records were acknowledged before")]
    AfterRecords { count: u64, cause: Box<CliError> },
}

impl CliError {
    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }

    fn output(source: io::Error) -> Self {
        Self::Output { source }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => client_exit_code(error),
            Self::Snapshot(error) => snapshot_exit_code(error),
            #[cfg(feature = "segments")]
            Self::Segments(error) => segment_exit_code(error),
            #[cfg(feature = "segments")]
            Self::Store(error) => store_exit_code(error),
            Self::Process(error) => process::exit_code(error),
            Self::Usage(_) => exit::USAGE,
            Self::Interrupted => exit::INTERRUPTED,
            // Nobody reads any more: that is no failure.
            Self::Output { source } if source.kind() == io::ErrorKind::BrokenPipe => exit::DONE,
            Self::AfterRecords { cause, .. } => cause.exit_code(),
            Self::Framing(_) | Self::File { .. } | Self::Output { .. } => exit::FAILED,
        }
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Client(ClientError::Io { .. } | ClientError::Fabric(_)) => None,
            Self::Client(error) => Some(error.advice()),
            #[cfg(feature = "segments")]
            Self::Segments(error) => error.advice(),
            #[cfg(feature = "segments")]
            Self::Store(error) => error.advice(),
            Self::Process(error) => error.advice(),
            Self::AfterRecords { cause, .. } => cause.advice(),
            _ => None,
        }
    }
}

impl From<SnapshotError> for CliError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Client(error) => Self::Client(error),
            error => Self::Snapshot(error),
        }
    }
}

fn snapshot_exit_code(error: &SnapshotError) -> u8 {
    match error {
        SnapshotError::NoSuchSnapshot { .. } => exit::NOT_FOUND,
        SnapshotError::NotWhole { .. } => exit::DAMAGED,
        _ => exit::FAILED,
    }
}

fn client_exit_code(error: &ClientError) -> u8 {
    if error.is_fenced() {
        return exit::FENCED;
    }
    match error {
        ClientError::Unreachable { .. }
        | ClientError::Locked { .. }
        | ClientError::ConnectionLost { .. }
        | ClientError::TimedOut { .. }
        | ClientError::NoProvider { .. }
        | ClientError::TooFewUnits { .. } => exit::UNAVAILABLE,
        ClientError::NotAuthenticated { .. }
        | ClientError::NoGrant { .. }
        | ClientError::Identity { .. } => exit::NOT_AUTHORISED,
        ClientError::NoSuchRegion { .. } | ClientError::NoSuchSet { .. } => exit::NOT_FOUND,
        ClientError::Damaged { .. } | ClientError::MediumFailed { .. } => exit::DAMAGED,
        ClientError::UnknownOutcome { .. } => exit::UNKNOWN,
        ClientError::Invalid(_) => exit::USAGE,
        _ => exit::FAILED,
    }
}

#[cfg(feature = "segments")]
fn segment_exit_code(error: &crate::segments::SegmentError) -> u8 {
    use crate::segments::SegmentError;
    match error {
        SegmentError::Client(error) => client_exit_code(error),
        SegmentError::Store(error) => store_exit_code(error),
        SegmentError::Name(_) | SegmentError::Invalid(_) => exit::USAGE,
        SegmentError::NameTaken { .. } | SegmentError::Exists { .. } => exit::TAKEN,
        SegmentError::NoSuchSegment { .. } => exit::NOT_FOUND,
        SegmentError::Damaged { .. } | SegmentError::Index { .. } => exit::DAMAGED,
        SegmentError::NowhereHeld { .. } | SegmentError::TooFewReplicas { .. } => exit::UNAVAILABLE,
        SegmentError::Interrupted => exit::INTERRUPTED,
        SegmentError::NoRoom { .. }
        | SegmentError::IndexFull { .. }
        | SegmentError::File { .. } => exit::FAILED,
    }
}

#[cfg(feature = "segments")]
fn store_exit_code(error: &crate::store::StoreError) -> u8 {
    use crate::store::StoreError;
    match error {
        StoreError::Config(_) => exit::USAGE,
        StoreError::NotAuthenticated { .. } | StoreError::Refused { .. } => exit::NOT_AUTHORISED,
        StoreError::NoBucket { .. } | StoreError::NotFound { .. } => exit::NOT_FOUND,
        StoreError::Unavailable { .. } => exit::UNAVAILABLE,
        StoreError::Damaged { .. } => exit::DAMAGED,
        StoreError::Client(error) => client_exit_code(error),
        StoreError::Interrupted => exit::INTERRUPTED,
    }
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    advice: Option<&'a str>,
    exit_code: u8,
}

/// Runs the command line to its end.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    let output = Output {
        json: arguments.common.json,
        verbose: arguments.common.verbose,
    };
    match run(&arguments, output) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.exit_code();
            if code != exit::DONE {
                say(output, &error, code);
            }
            ExitCode::from(code)
        }
    }
}

fn say(output: Output, error: &CliError, exit_code: u8) {
    let text = chain(error);
    let failure = Failure {
        error: &text,
        advice: error.advice(),
        exit_code,
    };
    match serde_json::to_string(&failure) {
        Ok(json) if output.json => eprintln!("{json}"),
        _ => {
            eprintln!("pmu: {}", plain(&text));
            if let Some(advice) = failure.advice {
                eprintln!("pmu: {advice}");
            }
        }
    }
}

fn run(arguments: &Arguments, output: Output) -> Result<u8, CliError> {
    let context = Context {
        common: &arguments.common,
        output,
        interrupt: Interrupt::install()?,
    };
    match &arguments.command {
        Command::Put(put) => match &put.place.distributor {
            Some(distributor) => distributed::put(&context, distributor, put),
            None => match context.find(&put.region)? {
                Way::One(unit) => sets::put(&context, &unit, put),
                Way::Spread(spread) => spread::put(&context, *spread, put),
            },
        },
        Command::Get(arguments) => get(&context, arguments),
        Command::Sets(region) => match context.find(&region.region)? {
            Way::One(unit) => sets::list(&context, &unit, &region.region),
            Way::Spread(spread) => spread::list(&context, &spread),
        },
        Command::Snapshot(command) => snapshot::run(&context, command),
        Command::Append(append) => log::append(&context, append),
        Command::Tail(tail) => log::tail(&context, tail),
        Command::Clear(clear) => log::clear(&context, clear),
        Command::Recover(recover) => {
            let way = context.find(&recover.region)?;
            if recover.fence {
                match &way {
                    Way::One(unit) => drop(unit.fence(&recover.region)?),
                    Way::Spread(spread) => drop(spread.fence()?),
                }
            }
            match &way {
                Way::One(unit) if unit.describe(&recover.region)?.mode == Mode::Overwrite => {
                    sets::recover(&context, unit, recover)
                }
                Way::Spread(spread) if spread.mode() == Mode::Overwrite => {
                    spread::recover(&context, spread, recover)
                }
                _ => log::recover(&context, &way, recover),
            }
        }
        Command::Checkpoint(arguments) => process::checkpoint_command(&context, arguments),
        Command::Restart(arguments) => process::restart_command(&context, arguments),
        Command::Fence(arguments) => fence(&context, arguments),
        #[cfg(feature = "segments")]
        Command::Segments(command) => segments::run(&context, command),
        #[cfg(feature = "segments")]
        Command::Store(command) => store::run(&context, command),
        Command::Bench(arguments) => bench::run(&context, arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "pmu", &mut script);
            io::Write::write_all(&mut io::stdout().lock(), &script).map_err(CliError::output)?;
            Ok(exit::DONE)
        }
        Command::Man { directory } => {
            let failed = |source| CliError::file("write", directory, source);
            std::fs::create_dir_all(directory).map_err(failed)?;
            let mut command = Arguments::command();
            command.build();
            clap_mangen::generate_to(command, directory).map_err(failed)?;
            Ok(exit::DONE)
        }
    }
}

fn get(context: &Context<'_>, arguments: &arguments::Get) -> Result<u8, CliError> {
    let from_units = || match context.find(&arguments.region)? {
        Way::One(unit) => sets::get(context, &unit, arguments),
        Way::Spread(spread) => spread::get(context, &spread, arguments),
    };
    #[cfg(feature = "segments")]
    if let Some(store) = segments::open_store(arguments.from_store.as_ref())? {
        return match from_units() {
            Err(said @ CliError::Client(_)) if store::may_have(&said) => {
                store::get(context, &store, arguments, &said)
            }
            done => done,
        };
    }
    from_units()
}

/// What every command works with.
struct Context<'a> {
    common: &'a Common,
    output: Output,
    interrupt: Interrupt,
}

/// Where a region is.
enum Way {
    One(Unit),
    Spread(Box<Spread>),
}

impl Context<'_> {
    /// Of several units the first one that answers.
    fn connect(&self) -> Result<Unit, CliError> {
        let identity = self.identity()?;
        let mut last = CliError::Usage(
            "which unit? --unit HOST:PORT[,HOST:PORT]..., or the variable PMU_UNIT".into(),
        );
        for address in self.addresses() {
            match Unit::connect(address, &identity, &self.connect_options()) {
                Ok(unit) => {
                    self.output.remark(&format!(
                        "unit {} ({}) at {address}",
                        unit.name(),
                        unit.version()
                    ));
                    return Ok(unit);
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Finds out whether the region is spread over several units, by the first one that answers.
    fn find(&self, region: &str) -> Result<Way, CliError> {
        let unit = self.connect()?;
        let info = unit.describe(region)?;
        if info.membership.is_none() {
            return Ok(Way::One(unit));
        }
        let spread = Spread::of(&info, &self.identity()?, &self.connect_options())?;
        Ok(Way::Spread(Box::new(spread)))
    }

    fn addresses(&self) -> impl Iterator<Item = &str> {
        let addresses = self.common.unit.as_deref().unwrap_or_default().split(',');
        addresses
            .map(str::trim)
            .filter(|address| !address.is_empty())
    }

    fn identity(&self) -> Result<Identity, CliError> {
        Ok(load_identity(&identity_directory(
            self.common.identity.as_deref(),
        ))?)
    }

    fn connect_options(&self) -> ConnectOptions {
        ConnectOptions::with_timeout(self.common.timeout)
    }

    fn options(&self) -> OpenOptions {
        let timeouts = Timeouts {
            open: self.common.timeout,
            stall: self.common.timeout,
            ..Timeouts::default()
        };
        OpenOptions::new()
            .provider(self.common.provider)
            .persistence(self.common.persistence)
            .timeouts(timeouts)
    }
}

#[derive(Serialize)]
struct FenceOutput<'a> {
    region: &'a str,
    epoch: u64,
    sessions_closed: u32,
    windows_invalidated: u32,
    took_us: u128,
    round_trip_us: u128,
}

fn fence(context: &Context<'_>, arguments: &Fence) -> Result<u8, CliError> {
    let region = arguments.region.as_str();
    confirm(
        arguments.yes,
        &format!("Stop the primary of region {region}?"),
    )?;
    let report = match context.find(region)? {
        Way::One(unit) => unit.fence(region)?,
        Way::Spread(spread) => return spread::fence(context, &spread),
    };
    let out = FenceOutput {
        region,
        epoch: report.epoch.get(),
        sessions_closed: report.sessions_closed,
        windows_invalidated: report.windows_invalidated,
        took_us: report.took.as_micros(),
        round_trip_us: report.round_trip.as_micros(),
    };
    let text = format!(
        "{region}: fenced, epoch {}, {} sessions closed, {} windows invalidated in {} ({} there and back)",
        report.epoch,
        report.sessions_closed,
        report.windows_invalidated,
        duration_text(report.took),
        duration_text(report.round_trip),
    );
    context.output.report(false, &out, &text)?;
    Ok(exit::DONE)
}

#[cfg(test)]
mod tests {
    use pmu_format::{Epoch, SetNumber};

    use super::*;
    use crate::error::Attempt;

    #[test]
    fn errors_have_exit_codes() {
        let region = || "r".to_owned();
        let fenced = || ClientError::Fenced {
            region: region(),
            epoch: Epoch(2),
            own_epoch: Epoch(1),
        };
        let unknown = |cause| ClientError::UnknownOutcome {
            region: region(),
            attempt: Attempt::Set(SetNumber(1)),
            cause: Box::new(cause),
        };
        let lost = || ClientError::ConnectionLost {
            region: region(),
            reason: "gone".into(),
        };
        assert_eq!(client_exit_code(&unknown(fenced())), 8);
        assert_eq!(client_exit_code(&fenced()), 8);
        assert_eq!(client_exit_code(&unknown(lost())), 7);
        assert_eq!(client_exit_code(&lost()), 6);
        let after = CliError::AfterRecords {
            count: 3,
            cause: Box::new(unknown(lost()).into()),
        };
        assert_eq!(after.exit_code(), 7);
        assert!(chain(&after).contains("3 records were acknowledged"));
        assert_eq!(CliError::Interrupted.exit_code(), 130);
        let pipe = CliError::output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(pipe.exit_code(), 0);
    }
}
