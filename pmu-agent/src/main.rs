//! `pmu-agent`: the command.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use metrics_exporter_prometheus::PrometheusBuilder;
use pmu_agent::cli::{self, AgentArguments, Arguments, Command, Role, RunArguments, exit};
use pmu_agent::config::{Config, Log};
use pmu_agent::door::ask;
use pmu_agent::input::{self, Reply};
use pmu_agent::run::{Beginning, run};
use pmu_agent::{AgentError, Result};
use pmu_client::Identity;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(io::stderr(), "pmu-agent: {error}");
            ExitCode::from(exit::FAILED)
        }
    }
}

fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Run(arguments) => start(&arguments),
        Command::CheckConfig { config } => {
            let checked = Config::load(&config)?;
            let name = config.display();
            // Whoever may not read the identity still learns whether the rest is right.
            match Identity::load(&checked.identity) {
                Ok(identity) => {
                    let own = identity.principal().name.to_string();
                    let peer = checked.check_peer_of(&own);
                    peer.map_err(|problem| AgentError::Config {
                        path: config.clone(),
                        problem,
                    })?;
                    print(&format!("{name}: good"))?;
                }
                Err(error) => print(&format!(
                    "{name}: good; the own name was not compared with peer.name, as the identity can't be read: {error}"
                ))?,
            }
            Ok(exit::DONE)
        }
        Command::Status { agent, json } => status(&agent, json),
        Command::Promote { agent, force } => simple(&agent, input::Command::Promote { force }),
        Command::Demote { agent } => simple(&agent, input::Command::Demote),
        Command::Rehearse { agent } => simple(&agent, input::Command::Rehearse),
        Command::Stop { agent } => simple(&agent, input::Command::Stop),
        Command::Completions { shell } => {
            cli::completions(shell, &mut io::stdout());
            Ok(exit::DONE)
        }
        Command::Man => {
            cli::man(&mut io::stdout()).map_err(AgentError::system("print"))?;
            Ok(exit::DONE)
        }
    }
}

fn print(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").map_err(AgentError::system("print"))
}

fn start(arguments: &RunArguments) -> Result<u8> {
    let config = Config::load(&arguments.config)?;
    let beginning = match (arguments.role, arguments.adopt) {
        (Role::Primary, Some(pid)) => Beginning::Adopting(pid),
        (Role::Primary, None) => Beginning::Primary,
        (Role::Standby, None) => Beginning::Standby,
        (Role::Standby, Some(_)) => {
            let what = "--adopt takes the primary's program: say --role primary";
            return Err(AgentError::Refused(what.into()));
        }
    };
    log(&config.log)?;
    if let Some(address) = config.metrics {
        let installed = PrometheusBuilder::new()
            .with_http_listener(address)
            .install();
        installed.map_err(|error| AgentError::Refused(format!("metrics at {address}: {error}")))?;
    }
    run(config, beginning)
}

fn log(settings: &Log) -> Result<()> {
    let filter = EnvFilter::try_new(&settings.filter)
        .and_then(|_| EnvFilter::try_new(settings.directives()))
        .map_err(|error| AgentError::Refused(format!("log.filter: {error}")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    let done = if settings.json {
        lines.json().flatten_event(true).try_init()
    } else {
        lines.with_ansi(io::stderr().is_terminal()).try_init()
    };
    done.map_err(|error| AgentError::Refused(format!("logs: {error}")))
}

fn ask_agent(agent: &AgentArguments, command: input::Command) -> Result<Reply> {
    let ask = |socket: &Path| ask(socket, command);
    match (&agent.socket, &agent.config) {
        (Some(socket), _) => ask(socket),
        (None, Some(config)) => ask(&Config::load(config)?.socket),
        (None, None) => Err(AgentError::Refused(
            "name a configuration or a socket".into(),
        )),
    }
}

fn simple(agent: &AgentArguments, command: input::Command) -> Result<u8> {
    let reply = ask_agent(agent, command)?;
    if !reply.ok {
        return Err(AgentError::Refused(reply.message));
    }
    print(&reply.message)?;
    Ok(exit::DONE)
}

fn status(agent: &AgentArguments, json: bool) -> Result<u8> {
    let reply = ask_agent(agent, input::Command::Status)?;
    let Some(status) = reply.status else {
        return Err(AgentError::Refused(reply.message));
    };
    if json {
        let text = serde_json::to_string(&status);
        print(&text.map_err(|error| AgentError::Refused(error.to_string()))?)?;
    } else {
        print(&status.text())?;
    }
    Ok(if status.role.leads() {
        exit::DONE
    } else {
        exit::STANDBY
    })
}
