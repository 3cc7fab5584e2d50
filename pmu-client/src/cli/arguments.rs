//! The command line. Every argument is checked here, before anything is opened.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use pmu_auth::{PrincipalName, UnitAddress};
use pmu_format::{Label, LogPosition, RegionName, SetNumber};

use crate::cli::snapshot::Snapshot;
use crate::cli::values::{duration, size};
#[cfg(feature = "segments")]
use crate::cli::{segments::SegmentsCommand, store::StoreCommand};
use crate::options::{PersistenceChoice, ProviderChoice};

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong arguments or not confirmed, 3 not authenticated or not authorised, 4 not found, \
5 damage found, 6 the unit is locked or can't be reached, 7 outcome unknown (look whether it is there), 8 fenced: another \
primary has taken over, 9 a segment or file of this name is there with other contents, 10 CRIU is missing or refuses, 130 interrupted.

Address and identity come from PMU_UNIT and PMU_IDENTITY unless told otherwise. PMU_LOG sets what goes to the log, as in \
pmu_client=debug.";

/// Store and recover checkpoints in persistent memory units.
#[derive(Debug, Parser)]
#[command(
    name = "pmu",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
pub struct Arguments {
    /// What goes with every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What goes with every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// The unit's control service; several separated by commas: the first that answers, for regions that are spread over them.
    #[arg(long, global = true, value_name = "HOST:PORT[,...]", env = "PMU_UNIT")]
    pub unit: Option<String>,
    /// The identity: a directory with ca.pem, cert.pem, key.pem [default: the variable PMU_IDENTITY, else identity in PMU_HOME,
    /// else ~/.config/pmu/identity].
    #[arg(long, global = true, value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// Which way the data goes: auto, verbs, soft-unix (unix), soft-tcp (tcp).
    #[arg(long, global = true, value_name = "PROVIDER", default_value = "auto")]
    pub provider: ProviderChoice,
    /// How bytes are made durable: auto, native-flush, read-after-write, server-persist, volatile. Never less than the region
    /// needs.
    #[arg(long, global = true, value_name = "METHOD", default_value = "auto")]
    pub persistence: PersistenceChoice,
    /// How long to wait for a unit that does nothing, as in 500ms, 10s, 2m.
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// Print JSON with stable field names: one object, or one for each record.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error: what was opened, by which provider.
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Command {
    /// Store a set (overwrite mode).
    Put(Put),
    /// Fetch a set (overwrite mode). Every chunk is verified.
    Get(Get),
    /// List the sets that a region holds (overwrite mode).
    Sets(Region),
    /// Snapshots of running programs (overwrite mode).
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Append records (append mode).
    Append(Append),
    /// Print the records that no backup has cleared (append mode).
    Tail(Tail),
    /// Clear records: the primary may use their room again (append mode).
    Clear(Clear),
    /// Fetch what a failed primary left: the newest whole set, or all unread records. Fence the region first, or with --fence.
    Recover(Recover),
    /// Store an unmodified program, as it is in this moment, with CRIU (overwrite mode). It ends once its set is durable, or runs on with
    /// --leave-running; whatever fails, it goes on.
    Checkpoint(Checkpoint),
    /// Restart a program where a checkpoint of it was taken, with CRIU. Other sets than the newest: --set, as listed by sets.
    Restart(Restart),
    /// Take the right to write from the primary: not one byte of it lands after this.
    Fence(Fence),
    /// Replicate files that a program stores in a directory, and fetch them elsewhere.
    #[cfg(feature = "segments")]
    #[command(subcommand)]
    Segments(SegmentsCommand),
    /// Load segments and sets into a global storage: an S3-compatible store, or a directory.
    #[cfg(feature = "segments")]
    #[command(subcommand)]
    Store(StoreCommand),
    /// Measure latency and bandwidth of this connection, by writing into the region.
    Bench(Bench),
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write the manual pages, one for each command.
    Man {
        /// Where to; created if need be.
        directory: PathBuf,
    },
}

/// A region.
#[derive(Debug, Args)]
pub struct Region {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
}

/// Arguments of `put`.
#[derive(Debug, Args)]
pub struct Put {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// What to store; - for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// What to find the set again by: at most 32 bytes.
    #[arg(long, value_name = "TEXT", value_parser = label, default_value = "")]
    pub label: Label,
    /// Where it is distributed.
    #[command(flatten)]
    pub place: Place,
}

/// Where what is stored is distributed.
#[derive(Debug, Args)]
pub struct Place {
    /// Who spreads it over the units of its region, if not this program: unit:NAME, one of them, or process:HOST:PORT. The bytes go there once.
    #[arg(long, value_name = "PLACE", env = "PMU_DISTRIBUTOR")]
    pub distributor: Option<Distributor>,
}

/// Who spreads sets or records over the units of their region, if not the program itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Distributor {
    /// The unit of this name.
    Unit(String),
    /// A process of its own at this address.
    Process(String),
}

impl FromStr for Distributor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unit", name)) => match name.parse::<PrincipalName>() {
                Ok(_) => Ok(Self::Unit(name.to_owned())),
                Err(error) => Err(error.to_string()),
            },
            Some(("process", address)) => match address.parse::<UnitAddress>() {
                Ok(_) => Ok(Self::Process(address.to_owned())),
                Err(error) => Err(error.to_string()),
            },
            _ => Err("expected unit:NAME, a unit of the region, or process:HOST:PORT".to_owned()),
        }
    }
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct Get {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// The set of this number.
    #[arg(long, value_name = "N", conflicts_with = "newest")]
    pub set: Option<SetNumber>,
    /// The newest committed set; an older kept one where that is damaged, and then it says so. This is the default.
    #[arg(long)]
    pub newest: bool,
    /// Where to; - for standard output. A file appears when it is complete and verified.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Where to look when no unit has the set: the configuration of pmu store.
    #[cfg(feature = "segments")]
    #[arg(long, value_name = "FILE")]
    pub from_store: Option<PathBuf>,
}

/// How records are told apart in a stream of bytes.
#[derive(Debug, Clone, Copy, Args)]
#[group(multiple = false)]
pub struct Framing {
    /// Each line is a record, without its line end; empty lines are left out. This is the default.
    #[arg(long)]
    pub lines: bool,
    /// Every N bytes are a record, and what is left at the end.
    #[arg(long, value_name = "N", value_parser = record_size)]
    pub record_size: Option<u32>,
    /// Each record comes behind its length in four bytes, little-endian.
    #[arg(long)]
    pub length_prefixed: bool,
}

/// Arguments of `append`.
#[derive(Debug, Args)]
pub struct Append {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Where the records come from; - for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// How they are told apart.
    #[command(flatten)]
    pub framing: Framing,
    /// How long to wait for room while the log is full.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub full_timeout: Duration,
    /// Where they are distributed.
    #[command(flatten)]
    pub place: Place,
}

/// Arguments of `tail`.
#[derive(Debug, Args)]
pub struct Tail {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Go on as records come, until interrupted.
    #[arg(short, long)]
    pub follow: bool,
    /// How often to look for more with --follow.
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub interval: Duration,
    /// Clear what was printed.
    #[arg(long)]
    pub clear: bool,
    /// Print each record as a line (default).
    #[arg(long, conflicts_with = "length_prefixed")]
    pub lines: bool,
    /// Print each record behind its length in four bytes, little-endian.
    #[arg(long)]
    pub length_prefixed: bool,
}

/// Arguments of `clear`.
#[derive(Debug, Args)]
pub struct Clear {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Up to this position, which must be the end of a record.
    #[arg(
        long,
        value_name = "POSITION",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub to: Option<LogPosition>,
    /// Everything that is published now.
    #[arg(long)]
    pub all: bool,
    /// Don't ask.
    #[arg(short, long)]
    pub yes: bool,
}

/// Arguments of `recover`.
#[derive(Debug, Args)]
pub struct Recover {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Where to; - for standard output. A file appears when it is complete.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Fence the region first: the primary can write no more.
    #[arg(long, requires = "yes")]
    pub fence: bool,
    /// Don't ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Append mode: write each record behind its length in four bytes, little-endian, and not as a line.
    #[arg(long)]
    pub length_prefixed: bool,
}

/// Arguments of `checkpoint`.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// The process; its children come along.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(2..))]
    pub pid: u32,
    /// The region.
    #[arg(long, value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Let it run on.
    #[arg(short = 'R', long)]
    pub leave_running: bool,
    /// Let the kernel track what it writes, and store only that where the last set is of this process and was tracked. Only with
    /// --leave-running.
    #[arg(long, requires = "leave_running")]
    pub track_mem: bool,
    /// Take its memory N times while it runs on, so that it is stopped only for what changed since. Needs a kernel that tracks.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=16))]
    pub pre_dump: u32,
    /// What to find the set again by, at most 32 bytes [default: process: and its name].
    #[arg(long, value_name = "TEXT", value_parser = label)]
    pub label: Option<Label>,
    /// It belongs to a terminal's session, and may be restarted in another.
    #[arg(long)]
    pub shell_job: bool,
    /// Take its TCP connections along.
    #[arg(long)]
    pub tcp_established: bool,
    /// Take its locks of files along.
    #[arg(long)]
    pub file_locks: bool,
    /// Take Unix sockets along whose other end is outside.
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// One more option for CRIU, for the checkpoint and the restart; may be repeated.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub criu_option: Vec<String>,
    /// The program CRIU [default: criu in PATH].
    #[arg(long, value_name = "FILE", env = "PMU_CRIU")]
    pub criu: Option<PathBuf>,
}

/// Arguments of `restart`.
#[derive(Debug, Args)]
pub struct Restart {
    /// The region.
    #[arg(long, value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// The set of this number [default: the newest committed one].
    #[arg(long, value_name = "N")]
    pub set: Option<SetNumber>,
    /// The program CRIU [default: criu in PATH].
    #[arg(long, value_name = "FILE", env = "PMU_CRIU")]
    pub criu: Option<PathBuf>,
}

/// Arguments of `fence`.
#[derive(Debug, Args)]
pub struct Fence {
    /// The region.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Don't ask.
    #[arg(short, long)]
    pub yes: bool,
}

/// What `bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchMode {
    /// One after the other, each durable before the next.
    Latency,
    /// As many in flight as there is room for.
    Bandwidth,
    /// Both.
    Both,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// The region. In overwrite mode its kept sets are replaced; in append mode it must have room, and what is appended is not cleared.
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Bytes of a set or record [default: 1MiB, or the capacity, for sets; 256 for records].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub count: u32,
    /// What to measure.
    #[arg(long, value_enum, default_value_t = BenchMode::Both)]
    pub mode: BenchMode,
    /// Don't ask before writing into the region.
    #[arg(short, long)]
    pub yes: bool,
}

pub(super) fn region_name(text: &str) -> Result<String, String> {
    text.parse::<RegionName>()
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn label(text: &str) -> Result<Label, String> {
    Label::new(text).map_err(|error| error.to_string())
}

fn record_size(text: &str) -> Result<u32, String> {
    u32::try_from(size(text)?).map_err(|_| "a record has at most 4 GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments_are_checked_before_anything_is_opened() {
        for wrong in [
            "pmu",
            "pmu put",
            "pmu put -bad-",
            "pmu put r --label 123456789012345678901234567890123",
            "pmu put r --distributor a",
            "pmu put r --distributor unit:",
            "pmu put r --distributor unit:-",
            "pmu put r --distributor process:host",
            "pmu put r --distributor process:host:0",
            "pmu append r --distributor",
            "pmu append r --distributor a",
            "pmu append r --distributor host:7400",
            "pmu append r --distributor process:7400",
            "pmu get r --set x",
            "pmu get r --set 1 --newest",
            "pmu append r --lines --record-size 5",
            "pmu append r --record-size 0",
            "pmu append r --record-size 5GiB",
            "pmu clear r",
            "pmu clear r --to 8 --all",
            "pmu tail r --provider smoke",
            "pmu tail r --interval 1h",
            "pmu sets r --persistence hope",
            "pmu bench r --count 0",
            "pmu recover r --fence",
            "pmu snapshot",
            "pmu snapshot list",
            "pmu snapshot export --region r",
            "pmu snapshot export --region r --out f --set x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for (text, expected) in [
            ("unit:a", Distributor::Unit("a".into())),
            ("process:[::1]:7", Distributor::Process("[::1]:7".into())),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        let arguments = parse("pmu append r --record-size 4KiB --timeout 2s --json").unwrap();
        assert!(arguments.common.json);
        let Command::Append(append) = arguments.command else {
            panic!("append")
        };
        assert_eq!(append.framing.record_size, Some(4096));
    }
}
