//! The command line.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Exit codes.
pub mod exit {
    /// It was done.
    pub const DONE: u8 = 0;
    /// It was not.
    pub const FAILED: u8 = 1;
    /// `status`: the agent doesn't lead.
    pub const STANDBY: u8 = 3;
}

/// Watches a program, and starts it elsewhere when it fails.
#[derive(Debug, Parser)]
#[command(
    name = "pmu-agent",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 (status) the agent does not lead."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch the program, or stand by for another agent's.
    Run(RunArguments),
    /// Check a configuration, and open nothing.
    CheckConfig {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Show role, epoch, lag, the last snapshot's pause and the heartbeat of a running agent.
    Status {
        /// Which agent.
        #[command(flatten)]
        agent: AgentArguments,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let a standby lead, with no failure: the other agent stops its program first.
    Promote {
        /// Which agent.
        #[command(flatten)]
        agent: AgentArguments,
        /// Fence whoever leads, without asking its agent.
        #[arg(long)]
        force: bool,
    },
    /// Stop an agent's program, and let it stand by. Nobody leads then until an agent is promoted.
    Demote {
        /// Which agent.
        #[command(flatten)]
        agent: AgentArguments,
    },
    /// Run the program from a copy of the newest state, and leave the primary alone.
    Rehearse {
        /// Which agent.
        #[command(flatten)]
        agent: AgentArguments,
    },
    /// End an agent and its program. The other agent does not take over.
    Stop {
        /// Which agent.
        #[command(flatten)]
        agent: AgentArguments,
    },
    /// Print a completion script.
    #[command(hide = true)]
    Completions {
        /// For this shell.
        shell: Shell,
    },
    /// Print the man page.
    #[command(hide = true)]
    Man,
}

/// What the agent begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Lead, if nobody else does; else stand by.
    Primary,
    /// Stand by.
    Standby,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// What to begin as.
    #[arg(long, value_enum)]
    pub role: Role,
    /// The configuration.
    #[arg(long)]
    pub config: PathBuf,
    /// Take a process that runs already, as the primary's program. How it ends can't be told, so any end of it counts as a failure.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(2..))]
    pub adopt: Option<u32>,
}

/// Which agent is meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct AgentArguments {
    /// Its configuration.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Its socket.
    #[arg(long)]
    pub socket: Option<PathBuf>,
}

/// Writes the completion script of a shell.
pub fn completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut Arguments::command(), "pmu-agent", &mut { out });
}

/// Writes the man page.
///
/// # Errors
/// What the output says.
pub fn man(out: &mut dyn Write) -> io::Result<()> {
    clap_mangen::Man::new(Arguments::command()).render(&mut { out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
