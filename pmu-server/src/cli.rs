//! The command line: every argument is checked before anything is opened.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use pmu_format::Medium;

use crate::config::ByteSize;

/// Exit codes, as `--help` documents them.
pub mod exit {
    /// Done; with `verify`: nothing is wrong.
    pub const DONE: u8 = 0;
    /// Failed; the message says why.
    pub const FAILED: u8 = 1;
    /// Arguments that can't be used.
    pub const USAGE: u8 = 2;
    /// `verify` found damage.
    pub const DAMAGED: u8 = 3;
}

/// A persistent memory unit: keeps checkpoints of programs in its pools, and gives remote programs windows on them.
#[derive(Debug, Parser)]
#[command(
    name = "pmu-server",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 verify found damage."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new, empty pool. What the path held is lost.
    Init(InitArguments),
    /// Run the unit until SIGTERM or SIGINT.
    Run(ConfigArguments),
    /// Distribute sets and records of programs over units, in a process of its own, until SIGTERM or SIGINT. The configuration's section distributor
    /// names units, and there is no pool.
    Distribute(ConfigArguments),
    /// Check a configuration file, a unit's or a distributor's, and open nothing.
    CheckConfig(ConfigArguments),
    /// Check a pool that no unit is using; changes no byte.
    Verify(VerifyArguments),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man,
}

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
pub struct InitArguments {
    /// The file or device.
    #[arg(long, value_name = "PATH")]
    pub pool: PathBuf,
    /// What it lies on. A path that lies on something else is refused.
    #[arg(long, value_name = "MEDIUM", value_parser = medium, help = "devdax, fsdax, hugetlbfs, memory (a file on tmpfs) or file")]
    pub medium: Medium,
    /// Length of the pool, for example 64MiB or 2GiB. May be left out for devdax: the whole device.
    #[arg(long, value_name = "SIZE", required_if_eq_any = [("medium", "fsdax"), ("medium", "hugetlbfs"), ("medium", "memory"), ("medium", "file")])]
    pub size: Option<ByteSize>,
    /// Length of one copy of the region table: 64KiB to 16MiB, a multiple of 4KiB.
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    pub table_size: ByteSize,
    /// Replace what is there, even a pool with regions.
    #[arg(long)]
    pub force: bool,
}

/// The arguments of commands that read a configuration file.
#[derive(Debug, clap::Args)]
pub struct ConfigArguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/pmu/pmu-server.toml")]
    pub config: PathBuf,
}

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArguments {
    /// The file or device.
    #[arg(long, value_name = "PATH")]
    pub pool: PathBuf,
    /// What it lies on.
    #[arg(long, value_name = "MEDIUM", value_parser = medium, help = "devdax, fsdax, hugetlbfs, memory or file")]
    pub medium: Medium,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn medium(text: &str) -> Result<Medium, String> {
    text.parse()
        .map_err(|_| "one of devdax, fsdax, hugetlbfs, memory, file".to_owned())
}

/// Writes the completion script for `shell`.
pub fn completions(shell: Shell, out: &mut dyn std::io::Write) {
    clap_complete::generate(shell, &mut Arguments::command(), "pmu-server", &mut { out });
}

/// Writes the manual page.
///
/// # Errors
/// `out` can't be written.
pub fn man(out: &mut dyn std::io::Write) -> std::io::Result<()> {
    clap_mangen::Man::new(Arguments::command()).render(&mut { out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn init_needs_a_size_but_for_a_device() {
        let parse = |medium: &str, size: &[&str]| {
            let arguments = ["pmu-server", "init", "--pool", "p", "--medium", medium];
            Arguments::try_parse_from(arguments.iter().chain(size))
        };
        assert!(parse("devdax", &[]).is_ok());
        assert!(parse("file", &["--size", "64MiB"]).is_ok());
        for medium in ["file", "fsdax", "hugetlbfs", "memory"] {
            assert!(parse(medium, &[]).is_err(), "{medium}");
        }
        assert!(parse("disk", &["--size", "64MiB"]).is_err());
        assert!(parse("file", &["--size", "64 mega"]).is_err());
    }

    #[test]
    fn completions_and_manual_are_written() {
        let mut out = Vec::new();
        completions(Shell::Bash, &mut out);
        assert!(String::from_utf8_lossy(&out).contains("check-config"));
        out.clear();
        man(&mut out).unwrap();
        assert!(String::from_utf8_lossy(&out).contains("persistent memory unit"));
    }
}
