//! The configuration file, checked as a whole before anything is opened.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pmu_auth::UnitAddress;
use pmu_client::{OpenOptions, ProviderChoice, Timeouts};
use pmu_format::{PrincipalName, RegionName};
use serde::Deserialize;

use crate::decide::Settings;
use crate::error::{AgentError, Result};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory of the agent's identity, a client's.
    pub identity: PathBuf,
    /// The units' control addresses, `host:port`. Of a region over several units any of them will do.
    pub units: Vec<String>,
    /// Which way the data goes.
    #[serde(default = "automatic")]
    pub transport: String,
    /// Where programs and commands find this agent.
    pub socket: PathBuf,
    /// Where the other agent finds it, `address:port`.
    pub listen: Option<SocketAddr>,
    /// The other agent.
    pub peer: Option<Peer>,
    /// What the program keeps.
    pub regions: Regions,
    /// The program.
    pub program: Program,
    /// When a primary counts as dead.
    #[serde(default)]
    pub watch: Watch,
    /// How the standby follows.
    #[serde(default)]
    pub follow: Follow,
    /// Snapshots that the agent causes.
    pub snapshot: Option<Snapshot>,
    /// Who may lead.
    pub election: Option<Election>,
    /// Where metrics are shown.
    pub metrics: Option<SocketAddr>,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
}

/// The other agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its principal's name.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

/// Names of regions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regions {
    /// A region in append mode.
    pub log: Option<String>,
    /// A region in overwrite mode.
    pub sets: Option<String>,
    /// In which one the program beats.
    #[serde(default)]
    pub beat: BeatIn,
}

/// Where the program beats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BeatIn {
    /// In the log if there is one, else in the sets.
    #[default]
    Auto,
    /// In the log.
    Log,
    /// In the sets.
    Sets,
    /// It doesn't.
    None,
}

/// The program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its path and arguments.
    pub command: Vec<String>,
    /// Its working directory.
    pub directory: Option<PathBuf>,
    /// False for one that doesn't use `pmu_client::agent`: it counts as ready when it runs and its health command succeeds.
    #[serde(default = "yes")]
    pub speaks: bool,
    /// A command that succeeds while the program is well.
    pub health: Option<Vec<String>>,
    /// Between two of them, in milliseconds.
    #[serde(default = "second")]
    pub health_every_ms: u64,
    /// So many failures in a row count as a hang.
    #[serde(default = "three")]
    pub health_failures: u32,
    /// How long it may take until it is ready.
    #[serde(default = "half_minute")]
    pub start_timeout_ms: u64,
    /// How often it is started before the agent gives up.
    #[serde(default = "three")]
    pub start_attempts: u32,
    /// Between two attempts.
    #[serde(default = "second")]
    pub start_pause_ms: u64,
    /// How long it may take to end.
    #[serde(default = "half_minute")]
    pub stop_timeout_ms: u64,
}

/// When a primary counts as dead.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// The interval of beats, and of the agents' words.
    pub interval_ms: u64,
    /// So many without a beat are a silence.
    pub intervals: u32,
    /// Whether an agent kills its program when that hangs.
    pub kill_hung: bool,
    /// How long an agent whose program ended leaves it to others to take over.
    pub grace_ms: u64,
    /// The agent takes over by itself. False under a cluster manager, which promotes.
    pub automatic: bool,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            interval_ms: 100,
            intervals: 10,
            kill_hung: true,
            grace_ms: 5000,
            automatic: true,
        }
    }
}

/// How the standby follows.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Follow {
    /// It follows continuously. Else everything is read at the takeover.
    pub warm: bool,
    /// Between two looks where nothing new was found.
    pub every_ms: u64,
    /// Between two looks at the sets.
    pub sets_every_ms: u64,
    /// What the agents clear of the log.
    pub clear: Clear,
}

impl Default for Follow {
    fn default() -> Self {
        Self {
            warm: true,
            every_ms: 5,
            sets_every_ms: 100,
            clear: Clear::default(),
        }
    }
}

/// What the agents clear of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clear {
    /// Records that the newest set holds, where its label ends with `@POSITION`.
    #[default]
    BehindSets,
    /// Nothing: the program does it.
    Nothing,
}

/// Snapshots that the agent causes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Between two of them.
    pub every_ms: u64,
    /// For a program that doesn't speak: what makes one.
    pub command: Option<Vec<String>>,
}

/// Who may lead.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Election {
    /// Endpoints of an etcd cluster, all of them `http://host:port` or all `https://host:port`.
    pub etcd: Vec<String>,
    /// The key that the leader holds.
    pub key: String,
    /// How long a lease lives that is not renewed, in seconds.
    #[serde(default = "ten")]
    pub ttl_s: u32,
    /// For endpoints over TLS.
    pub tls: Option<ElectionTls>,
    /// A user of etcd's, where it has access control.
    pub user: Option<String>,
    /// The file with the user's password, for its owner alone.
    pub password_file: Option<PathBuf>,
}

/// How etcd is known, and how it knows the agent. All files are PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElectionTls {
    /// The certificates of the authorities that may have signed the endpoints'.
    pub ca: PathBuf,
    /// The certificate to show, for clusters that ask for one.
    pub cert: Option<PathBuf>,
    /// Its key, for its owner alone.
    pub key: Option<PathBuf>,
}

/// What is logged.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter, as `info` or `pmu_agent=debug`.
    pub filter: String,
    /// JSON instead of text.
    pub json: bool,
}

impl Log {
    /// The filter that holds: what carries requests to etcd never tells more than in the large, whatever is asked for. It writes down
    /// headers and bodies, and with them passwords and tokens.
    #[must_use]
    pub fn directives(&self) -> String {
        let others = self.filter.split(',');
        let mut kept: Vec<&str> = others
            .filter(|directive| !directive.trim_start().starts_with("ureq"))
            .collect();
        kept.extend(["ureq=info", "ureq_proto=info"]);
        kept.join(",")
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".into(),
            json: false,
        }
    }
}

fn automatic() -> String {
    "auto".into()
}
/// A unit that says nothing for so long is lost: nobody is to wait long behind it while the agent follows.
const STALL: Duration = Duration::from_secs(5);
/// Beats are looked at with half a silence of patience, and no less than this.
const WATCH_STALL_MIN: Duration = Duration::from_millis(500);

const fn yes() -> bool {
    true
}
const fn second() -> u64 {
    1000
}
const fn half_minute() -> u64 {
    30_000
}
const fn three() -> u32 {
    3
}
const fn ten() -> u32 {
    10
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`AgentError::Config`], naming what is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong = |problem: String| AgentError::Config {
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let config: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// Checks what belongs together.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.units.is_empty() {
            return Err("units: name at least one".into());
        }
        let _: ProviderChoice = self
            .transport
            .parse()
            .map_err(|e| format!("transport: {e}"))?;
        self.check_regions()?;
        self.check_program()?;
        if let Some(peer) = &self.peer {
            let _: PrincipalName = peer.name.parse().map_err(|e| format!("peer.name: {e}"))?;
            if self.listen.is_none() {
                return Err("listen: the peer must find this agent".into());
            }
        }
        if self.watch.interval_ms == 0 || self.watch.intervals < 2 {
            return Err("watch: interval_ms is at least 1, intervals at least 2".into());
        }
        if self.follow.every_ms == 0 || self.follow.sets_every_ms == 0 {
            return Err("follow: every_ms and sets_every_ms are at least 1".into());
        }
        self.check_election()
    }

    /// Checks that the peer is another principal than the agent's own, which is in its identity. Two agents of one name would fence each other as if each
    /// were the other's earlier life, and each would take etcd's key for its own.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub fn check_peer_of(&self, own: &str) -> Result<(), String> {
        match &self.peer {
            Some(peer) if peer.name == own => Err(format!(
                "peer.name: {own} is this agent's own name (of its certificate in {}): each agent has one of its own",
                self.identity.display()
            )),
            _ => Ok(()),
        }
    }

    fn check_regions(&self) -> Result<(), String> {
        let regions = &self.regions;
        for (field, name) in [("log", &regions.log), ("sets", &regions.sets)] {
            if let Some(name) = name {
                let _: RegionName = name.parse().map_err(|e| format!("regions.{field}: {e}"))?;
            }
        }
        match (&regions.log, &regions.sets, regions.beat) {
            (None, None, _) => Err("regions: name log, sets or both".into()),
            (None, _, BeatIn::Log) => Err("regions.beat: there is no log".into()),
            (_, None, BeatIn::Sets) => Err("regions.beat: there are no sets".into()),
            _ => Ok(()),
        }
    }

    fn check_program(&self) -> Result<(), String> {
        let program = &self.program;
        if program.command.is_empty() {
            return Err("program.command: name a program".into());
        }
        if program.health.as_ref().is_some_and(Vec::is_empty) {
            return Err("program.health: name a command".into());
        }
        if program.start_attempts == 0
            || program.health_failures == 0
            || program.health_every_ms == 0
        {
            let names = "start_attempts, health_failures and health_every_ms";
            return Err(format!("program: {names} are at least 1"));
        }
        if !program.speaks && self.regions.beat != BeatIn::None {
            return Err(
                "regions.beat: a program that doesn't speak doesn't beat; say \"none\"".into(),
            );
        }
        if let Some(snapshot) = &self.snapshot {
            if snapshot.every_ms == 0 {
                return Err("snapshot.every_ms: at least 1".into());
            }
            if !program.speaks && snapshot.command.as_ref().is_none_or(Vec::is_empty) {
                return Err("snapshot.command: a program that doesn't speak needs one".into());
            }
        }
        Ok(())
    }

    fn check_election(&self) -> Result<(), String> {
        let Some(election) = &self.election else {
            return Ok(());
        };
        if !cfg!(feature = "etcd") {
            return Err("election: this agent was built without the feature etcd".into());
        }
        if election.etcd.is_empty() || election.key.is_empty() || election.ttl_s < 2 {
            return Err("election: name endpoints and a key; ttl_s is at least 2".into());
        }
        election.check_tls()?;
        match (&election.user, &election.password_file) {
            (Some(_), None) => Err("election.password_file: election.user needs one".into()),
            (None, Some(_)) => {
                Err("election.user: whose password is in election.password_file?".into())
            }
            (Some(user), _) if user.is_empty() => {
                Err("election.user: name one, or leave it out".into())
            }
            (Some(_), _) if election.tls.is_none() => Err(
                "election.user: a password goes over https alone; write https:// in election.etcd"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    /// The bounds by which the agent decides.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            silence_ms: self.watch.interval_ms * u64::from(self.watch.intervals),
            beats: self.regions.beat != BeatIn::None,
            kills_hung: self.watch.kill_hung,
            start_timeout_ms: self.program.start_timeout_ms,
            start_attempts: self.program.start_attempts,
            start_pause_ms: self.program.start_pause_ms,
            stop_timeout_ms: self.program.stop_timeout_ms,
            snapshot_every_ms: self.snapshot.as_ref().map(|snapshot| snapshot.every_ms),
            health_failures_max: self.program.health_failures,
            grace_ms: self.watch.grace_ms,
            needs_lease: self.election.is_some(),
            automatic: self.watch.automatic,
        }
    }

    /// How regions are opened.
    #[must_use]
    pub fn open_options(&self) -> OpenOptions {
        self.options(STALL)
    }

    /// How the region of the beat is opened: a unit that says nothing must not look like a program that does nothing.
    #[must_use]
    pub fn watch_options(&self) -> OpenOptions {
        let silence_ms = self.watch.interval_ms * u64::from(self.watch.intervals);
        self.options(Duration::from_millis(silence_ms / 2).max(WATCH_STALL_MIN))
    }

    fn options(&self, stall: Duration) -> OpenOptions {
        let mut timeouts = Timeouts::default();
        timeouts.stall = stall;
        let options = OpenOptions::new().timeouts(timeouts);
        options.provider(self.transport.parse().unwrap_or_default())
    }

    /// The region whose beat counts, and whether that is the log.
    #[must_use]
    pub fn beat_region(&self) -> Option<(&str, bool)> {
        let log = self.regions.log.as_deref().map(|name| (name, true));
        let sets = self.regions.sets.as_deref().map(|name| (name, false));
        match self.regions.beat {
            BeatIn::None => None,
            BeatIn::Log => log,
            BeatIn::Sets => sets,
            BeatIn::Auto => log.or(sets),
        }
    }

    /// All regions, that of the beat first.
    #[must_use]
    pub fn region_names(&self) -> Vec<&str> {
        let both = [self.regions.log.as_deref(), self.regions.sets.as_deref()];
        both.into_iter().flatten().collect()
    }
}

impl Election {
    /// Endpoints, and whether TLS is spoken with them: with all or with none.
    fn check_tls(&self) -> Result<(), String> {
        let mut over_tls = None;
        for end in &self.etcd {
            let (is_tls, host) = match (end.strip_prefix("https://"), end.strip_prefix("http://")) {
                (Some(host), _) => (true, host),
                (_, Some(host)) => (false, host),
                _ => return Err(endpoint_needed(end, "no such address")),
            };
            let host = host.strip_suffix('/').unwrap_or(host);
            let _: UnitAddress = host.parse().map_err(|e| endpoint_needed(end, e))?;
            if *over_tls.get_or_insert(is_tls) != is_tls {
                return Err("election.etcd: some endpoints are https:// and some are not".into());
            }
        }
        match (over_tls, &self.tls) {
            (Some(true), None) => {
                Err("election.tls.ca: https:// needs the authority of etcd's certificates".into())
            }
            (Some(false), Some(_)) => {
                Err("election.tls: the endpoints in election.etcd are http://".into())
            }
            (_, Some(tls)) => match (&tls.cert, &tls.key) {
                (Some(_), None) => Err("election.tls.key: election.tls.cert needs its key".into()),
                (None, Some(_)) => {
                    Err("election.tls.cert: election.tls.key needs its certificate".into())
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

fn endpoint_needed(end: &str, why: impl std::fmt::Display) -> String {
    let end = end.escape_debug();
    format!("election.etcd: \"{end}\": {why}; write http://host:port or https://host:port")
}
