//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pmu_stripe::Layout;

/// An inverted index over real sources that survives the death of the process that makes it.
#[derive(Debug, Parser)]
#[command(name = "pmu-demo", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set everything up, kill the primary, let the backup take over, compare (the default of scripts/demo).
    Run(Box<RunArguments>),
    /// Make the index without any unit and without interruption: what the answer must be.
    Reference(ReferenceArguments),
    /// Make the index as the primary: append to the log, commit sets.
    Primary(PrimaryArguments),
    /// Wait for the primary's death, take over, finish the index.
    Backup(BackupArguments),
    /// Make the index as a program that pmu-agent runs: begin with what is handed over.
    Program(ProgramArguments),
    /// Run a program that dies with the process that started it.
    #[command(name = crate::child::TIED, hide = true)]
    Tied {
        /// The process that started it.
        parent: u32,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Which way the data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// A Unix socket.
    SoftUnix,
    /// TCP over loopback.
    SoftTcp,
    /// RDMA.
    Verbs,
}

impl Transport {
    /// Its name in the unit's configuration and in receipts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftUnix => "soft-unix",
            Self::SoftTcp => "soft-tcp",
            Self::Verbs => "verbs",
        }
    }
}

/// What the backup does before the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackupMode {
    /// It follows the log, keeps the state up to date, and clears what it has read.
    Warm,
    /// It is started after the failure, and recovers from the newest set and the log behind it.
    Cold,
    /// One run warm, the next cold.
    Alternate,
}

/// Arguments of `run`. What they mean for people stands in `scripts/lib/demo-help.txt`.
#[derive(Debug, Clone, Args)]
#[command(override_help = include_str!("../../scripts/lib/demo-help.txt"))]
pub struct RunArguments {
    /// How many failures.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub runs: u32,
    /// Write one JSON object a run to this file, one a line.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// How many documents.
    #[arg(long, value_parser = clap::value_parser!(u32).range(20..=10_000_000))]
    pub documents: Option<u32>,
    /// Where documents are.
    #[arg(long)]
    pub sources: Option<PathBuf>,
    /// Replay the moments of failure of an earlier invocation.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How the work is spread over units.
    #[arg(long, default_value = "single", value_parser = layout)]
    pub layout: Layout,
    /// What fails at one time: the primary, and with it units.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "primary")]
    pub kill: Vec<Victim>,
    /// What the backup does before the failure.
    #[arg(long, value_enum, default_value_t = BackupMode::Alternate)]
    pub backup: BackupMode,
    /// Stop the primary instead of killing it, and let it go on after the takeover.
    #[arg(long)]
    pub zombie: bool,
    /// Leave everything to two agents (pmu-agent): nobody else detects the failure or starts the second instance.
    #[arg(long, conflicts_with_all = ["kill", "backup"])]
    pub failover: bool,
    /// Which way the data goes.
    #[arg(long, value_enum, default_value_t = Transport::SoftUnix)]
    pub transport: Transport,
    /// MEDIUM:PATH, or memory.
    #[arg(long)]
    pub pool: Option<PoolChoice>,
    /// Where everything is kept.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the temporary folder.
    #[arg(long)]
    pub keep: bool,
    /// Show the commands that set the unit up.
    #[arg(long, short)]
    pub verbose: bool,
    /// Wait at most so many seconds for any step.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Victim {
    /// The primary.
    Primary,
    /// A unit, drawn from the seed.
    Unit,
}

fn layout(text: &str) -> Result<Layout, String> {
    text.parse()
        .map_err(|error: pmu_stripe::LayoutError| error.to_string())
}

impl RunArguments {
    /// How many units fail together with the primary.
    ///
    /// # Errors
    /// What can't be shown: more losses than the layout tolerates, or a primary that lives.
    pub fn units_to_kill(&self) -> Result<usize, String> {
        let primaries = self
            .kill
            .iter()
            .filter(|victim| **victim == Victim::Primary);
        if primaries.count() != 1 {
            return Err("--kill: name the primary once, and units beside it".into());
        }
        let units = self.kill.len() - 1;
        let tolerated = self.layout.tolerated_losses();
        if units > tolerated {
            return Err(format!(
                "--kill: {} tolerates the loss of {tolerated} units, not of {units}",
                self.layout
            ));
        }
        Ok(units)
    }
}

/// What the units' pools are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolChoice {
    /// The medium's name in the unit's configuration.
    pub medium: String,
    /// The file or device; none for memory that is made anew.
    pub path: Option<PathBuf>,
}

impl std::str::FromStr for PoolChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (medium, path) = match text.split_once(':') {
            Some((medium, path)) if !path.is_empty() => (medium, Some(path.into())),
            Some((medium, _)) => (medium, None),
            None => (text, None),
        };
        let wanted = ["devdax", "fsdax", "hugetlbfs", "file", "memory"];
        if !wanted.contains(&medium) || (path.is_none() && medium != "memory") {
            return Err(
                "write file:PATH, devdax:PATH, fsdax:PATH, hugetlbfs:PATH or memory".into(),
            );
        }
        Ok(Self {
            medium: medium.to_owned(),
            path,
        })
    }
}

/// Arguments of `reference`.
#[derive(Debug, Clone, Args)]
pub struct ReferenceArguments {
    /// The list of documents.
    #[arg(long)]
    pub list: PathBuf,
    /// Where the index goes.
    #[arg(long)]
    pub result: PathBuf,
}

/// What primary and backup need alike.
#[derive(Debug, Clone, Args)]
pub struct WorkArguments {
    /// The units' control addresses. With more than one the regions are spread over them.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    pub units: Vec<String>,
    /// Directory of the own identity.
    #[arg(long)]
    pub identity: PathBuf,
    /// Which way the data goes.
    #[arg(long, value_enum)]
    pub transport: Transport,
    /// The list of documents.
    #[arg(long)]
    pub list: PathBuf,
    /// Commit a set whenever the log has grown by so many bytes.
    #[arg(long)]
    pub set_every_bytes: u64,
    /// Where the index goes when it is complete.
    #[arg(long)]
    pub result: PathBuf,
    /// Keep the last document back until there is a file of this name: nobody is done before it was made to fail.
    #[arg(long)]
    pub last_after: Option<PathBuf>,
}

/// Arguments of `program`.
#[derive(Debug, Clone, Args)]
pub struct ProgramArguments {
    /// What all need.
    #[command(flatten)]
    pub work: WorkArguments,
    /// Memory for the index.
    #[arg(long)]
    pub arena_bytes: u64,
}

/// Arguments of `primary`.
#[derive(Debug, Clone, Args)]
pub struct PrimaryArguments {
    /// What the backup needs too.
    #[command(flatten)]
    pub work: WorkArguments,
    /// Clear the log behind every set: there is no backup that reads it.
    #[arg(long)]
    pub clear_behind_sets: bool,
}

/// Arguments of `backup`.
#[derive(Debug, Clone, Args)]
pub struct BackupArguments {
    /// What the primary needs too.
    #[command(flatten)]
    pub work: WorkArguments,
    /// Follow the log until the primary is gone. Else it is gone already.
    #[arg(long)]
    pub warm: bool,
    /// Take over when this process has ended. Else on a line on standard input.
    #[arg(long, requires = "warm")]
    pub watch_pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_stands_in_the_help() {
        let help = include_str!("../../scripts/lib/demo-help.txt");
        let command = Arguments::command();
        let run = command.find_subcommand("run").unwrap();
        for argument in run.get_arguments() {
            let Some(flag) = argument.get_long() else {
                continue;
            };
            assert!(
                help.contains(&format!("--{flag}")),
                "--{flag} is missing from demo-help.txt"
            );
        }
    }

    #[test]
    fn pools_are_read() {
        let pool: PoolChoice = "devdax:/dev/dax0.0".parse().unwrap();
        assert_eq!(
            (pool.medium.as_str(), pool.path),
            ("devdax", Some("/dev/dax0.0".into()))
        );
        assert_eq!("memory".parse::<PoolChoice>().unwrap().path, None);
        for text in ["file", "file:", "disk:/x", ""] {
            assert!(text.parse::<PoolChoice>().is_err(), "{text}");
        }
    }
}
