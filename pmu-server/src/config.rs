//! The configuration file: read, checked as a whole, and only then used.
//!
//! `example.toml` beside this crate documents every key; a test compares its values with the defaults here.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use pmu_fabric::Provider;
use pmu_format::{Medium, PrincipalName};
use serde::{Deserialize, Deserializer};

use crate::distributor::config::DistributorSection;
use crate::scrub::config::ScrubSection;

/// The longest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("read configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind; the text names line and key.
    #[error("configuration {}: {text}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line, column and key.
        text: String,
    },
    /// Every key is known, but what they say can't work.
    #[error("configuration {}: {}", path.display(), problems.join("; "))]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Everything that is wrong, each with its key.
        problems: Vec<String>,
    },
}

/// A number of bytes, written as `65536`, `"64KiB"`, `"1.5GiB"`... Only whole bytes, only powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{:?} is no size: write for example 4096, 64KiB, 512MiB or 2GiB",
                text.escape_debug().to_string()
            )
        };
        let text_end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(text_end);
        let number: u64 = number.parse().map_err(|_| refuse())?;
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "KiB" | "K" => 10,
            "MiB" | "M" => 20,
            "GiB" | "G" => 30,
            "TiB" | "T" => 40,
            _ => return Err(refuse()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes, or a text like \"64MiB\"")]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(Self(bytes)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

fn yes() -> bool {
    true
}

fn word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}

/// Everything that a unit is told at its start.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the unit is.
    pub unit: UnitSection,
    /// The control service.
    pub control: ControlSection,
    /// Where data connections come in; at least one.
    pub data: Vec<DataSection>,
    /// The pools; at least one, and none in a distributor's process of its own.
    #[serde(default)]
    pub pool: Vec<PoolSection>,
    /// Spreads sets of programs over the units of their regions; absent: does not.
    pub distributor: Option<DistributorSection>,
    /// Scrubs the regions; absent: does not.
    pub scrub: Option<ScrubSection>,
    /// Metrics and health over HTTP; absent: none.
    pub metrics: Option<MetricsSection>,
    /// Logging.
    #[serde(default)]
    pub log: LogSection,
    /// Upper bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// What a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A unit.
    Unit,
    /// A distributor in a process of its own: the section `[distributor]` names units.
    Process,
}

/// Who the unit is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitSection {
    /// The unit's name in answers and logs.
    pub name: String,
    /// Directory with the unit's certificate, its key and the site's authority.
    pub identity: PathBuf,
}

/// The control service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSection {
    /// Where gRPC over mutual TLS is served. Port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Where data connections of one provider come in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Which provider.
    #[serde(deserialize_with = "word")]
    pub provider: Provider,
    /// For `soft-tcp` and `verbs`: the address to listen on.
    pub listen: Option<SocketAddr>,
    /// For `soft-unix`: the socket's path.
    pub path: Option<PathBuf>,
    /// For `soft-tcp` and `verbs`: the host that clients are told to connect to; absent: the address of `listen`.
    pub advertise: Option<String>,
    /// For `verbs`: offer native FLUSH where the device has it.
    #[serde(default = "yes")]
    pub native_flush: bool,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSection {
    /// The pool's name in requests and answers.
    pub name: String,
    /// What it lies on.
    #[serde(deserialize_with = "word")]
    pub medium: Medium,
    /// The file or device. Absent only for `memory`: a pool made anew at each start.
    pub path: Option<PathBuf>,
    /// For `memory` without a path: its length.
    pub size: Option<ByteSize>,
    /// The site attests that inbound RDMA writes reach the medium and don't stay in a volatile cache (DDIO off, or a
    /// platform that flushes its caches on a power cut). Allows read-after-write.
    #[serde(default)]
    pub inbound_writes_reach_medium: bool,
}

/// Metrics and health over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSection {
    /// Where `/metrics` and `/healthz` are served, without authentication.
    pub listen: SocketAddr,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging, to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// The form of the lines.
    pub format: LogFormat,
    /// What is logged: a level, or directives like `info,pmu_server=debug`.
    pub filter: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".into(),
        }
    }
}

/// Upper bounds of what others can make the unit do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions at one time.
    pub sessions_max: u32,
    /// Sessions of one principal at one time.
    pub sessions_per_principal_max: u32,
    /// Windows bound at one time, over all sessions. A session takes one for each extent of its region, up to two more.
    pub windows_max: u32,
    /// How long a connect token is valid.
    pub connect_within_ms: u32,
    /// How long after its opening a session must be active, or it ends.
    pub activate_within_ms: u32,
    /// Control connections at one time.
    pub control_connections_max: u32,
    /// Requests at work at one time on one control connection.
    pub control_requests_max: u32,
    /// How long a clean stop may take before connections are cut.
    pub stop_within_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 256,
            sessions_per_principal_max: 64,
            windows_max: 65_536,
            connect_within_ms: 10_000,
            activate_within_ms: 30_000,
            control_connections_max: 256,
            control_requests_max: 32,
            stop_within_ms: 5_000,
        }
    }
}

impl Limits {
    /// How long a connect token is valid.
    #[must_use]
    pub fn connect_within(&self) -> Duration {
        Duration::from_millis(self.connect_within_ms.into())
    }

    /// How long after its opening a session must be active.
    #[must_use]
    pub fn activate_within(&self) -> Duration {
        Duration::from_millis(self.activate_within_ms.into())
    }

    /// How long a clean stop may take.
    #[must_use]
    pub fn stop_within(&self) -> Duration {
        Duration::from_millis(self.stop_within_ms.into())
    }
}

impl Config {
    /// Reads and checks a configuration file. Opens nothing that it names, but looks whether it is there.
    /// Relative paths in it are relative to the file's directory. Blocks.
    ///
    /// # Errors
    /// Any [`ConfigError`]; everything that is wrong is named at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let length = fs::metadata(path).map_err(read)?.len();
        if length > CONFIG_BYTES_MAX {
            let problem = format!("the file has {length} bytes, more than {CONFIG_BYTES_MAX}");
            return Err(ConfigError::Invalid {
                path: path.to_owned(),
                problems: vec![problem],
            });
        }
        let text = fs::read_to_string(path).map_err(read)?;
        let syntax = |text| ConfigError::Syntax {
            path: path.to_owned(),
            text,
        };
        let mut config = Self::parse(&text).map_err(syntax)?;
        // Absolute, because clients are told the paths of sockets.
        let absolute = std::path::absolute(path).map_err(read)?;
        config.resolve_paths(absolute.parent().unwrap_or(Path::new("/")));
        let mut problems = config.problems();
        problems.extend(config.missing_paths());
        if problems.is_empty() {
            return Ok(config);
        }
        Err(ConfigError::Invalid {
            path: path.to_owned(),
            problems,
        })
    }

    /// Parses the text of a configuration file; checks no more than that every key is known and has a value of its kind.
    ///
    /// # Errors
    /// A text that names line and key.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }

    fn resolve_paths(&mut self, directory: &Path) {
        let resolve = |path: &mut PathBuf| *path = directory.join(&*path);
        resolve(&mut self.unit.identity);
        self.distributor
            .iter_mut()
            .for_each(|distributor| resolve(&mut distributor.identity));
        if let Some(scrub) = &mut self.scrub {
            resolve(&mut scrub.state);
            scrub.identity.iter_mut().for_each(resolve);
        }
        self.data
            .iter_mut()
            .filter_map(|data| data.path.as_mut())
            .for_each(resolve);
        self.pool
            .iter_mut()
            .filter_map(|pool| pool.path.as_mut())
            .for_each(resolve);
    }

    /// What it is for.
    #[must_use]
    pub fn place(&self) -> Place {
        match &self.distributor {
            Some(distributor) if !distributor.units.is_empty() => Place::Process,
            _ => Place::Unit,
        }
    }

    /// Everything in the values themselves that can't work, each with its key. Empty: nothing.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = PrincipalName::new(&self.unit.name) {
            problems.push(format!("unit.name: {error}"));
        }
        self.data_problems(&mut problems);
        match (self.place(), &self.distributor) {
            (Place::Process, Some(distributor)) => {
                distributor.problems_in_process(&mut problems);
                if !self.pool.is_empty() {
                    problems.push("pool: a distributor that names units has none".into());
                }
                if self.scrub.is_some() {
                    problems.push("scrub: a distributor that names units has no regions".into());
                }
            }
            (_, distributor) => {
                self.pool_problems(&mut problems);
                if let Some(distributor) = distributor {
                    distributor.problems_in_unit(&mut problems);
                }
                if let Some(scrub) = &self.scrub {
                    scrub.problems(&mut problems);
                }
            }
        }
        self.limit_problems(&mut problems);
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            problems.push(format!("log.filter: {error}"));
        }
        problems
    }

    fn data_problems(&self, problems: &mut Vec<String>) {
        if self.data.is_empty() {
            problems.push("data: at least one [[data]] section is needed".into());
        }
        let mut addresses: HashSet<SocketAddr> = [self.control.listen].into();
        addresses.extend(self.metrics.as_ref().map(|metrics| metrics.listen));
        if self
            .metrics
            .as_ref()
            .is_some_and(|metrics| same_port(metrics.listen, self.control.listen))
        {
            problems.push(format!(
                "metrics.listen: {} is control.listen too",
                self.control.listen
            ));
        }
        let mut paths = HashSet::new();
        for (index, data) in self.data.iter().enumerate() {
            let key = format!("data[{index}]");
            problems.extend(data.problem().map(|problem| format!("{key}.{problem}")));
            let Some(address) = data.listen else {
                if data.path.as_ref().is_some_and(|path| !paths.insert(path)) {
                    problems.push(format!("{key}.path: another [[data]] section has the same"));
                }
                continue;
            };
            // RDMA has ports of its own.
            if data.provider != Provider::Verbs
                && addresses.iter().any(|other| same_port(*other, address))
            {
                problems.push(format!(
                    "{key}.listen: {address} is taken by another key of this file"
                ));
            }
            addresses.insert(address);
        }
    }

    fn pool_problems(&self, problems: &mut Vec<String>) {
        if self.pool.is_empty() {
            problems.push("pool: at least one [[pool]] section is needed".into());
        }
        let (mut names, mut paths) = (HashSet::new(), HashSet::new());
        for (index, pool) in self.pool.iter().enumerate() {
            let key = format!("pool[{index}]");
            if let Err(error) = PrincipalName::new(&pool.name) {
                problems.push(format!("{key}.name: {error}"));
            }
            if !names.insert(&pool.name) {
                problems.push(format!(
                    "{key}.name: another [[pool]] section has the name {}",
                    pool.name
                ));
            }
            if pool.path.as_ref().is_some_and(|path| !paths.insert(path)) {
                problems.push(format!("{key}.path: another [[pool]] section has the same"));
            }
            problems.extend(pool.problem().map(|problem| format!("{key}.{problem}")));
        }
    }

    fn limit_problems(&self, problems: &mut Vec<String>) {
        let limits = &self.limits;
        for (key, value, most) in [
            ("sessions_max", limits.sessions_max, 65_536),
            (
                "sessions_per_principal_max",
                limits.sessions_per_principal_max,
                65_536,
            ),
            ("windows_max", limits.windows_max, 1 << 24),
            ("connect_within_ms", limits.connect_within_ms, 600_000),
            ("activate_within_ms", limits.activate_within_ms, 600_000),
            (
                "control_connections_max",
                limits.control_connections_max,
                65_536,
            ),
            ("control_requests_max", limits.control_requests_max, 4096),
            ("stop_within_ms", limits.stop_within_ms, 600_000),
        ] {
            if value == 0 || value > most {
                problems.push(format!("limits.{key}: {value} is not between 1 and {most}"));
            }
        }
        if limits.activate_within_ms < limits.connect_within_ms {
            problems.push("limits.activate_within_ms: less than connect_within_ms".into());
        }
    }

    /// What the configuration names and isn't there.
    fn missing_paths(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.unit.identity.is_dir() {
            let path = self.unit.identity.display();
            problems.push(format!("unit.identity: {path} is not a directory"));
        }
        problems.extend(
            self.distributor
                .iter()
                .filter_map(DistributorSection::missing_paths),
        );
        problems.extend(self.scrub.iter().flat_map(ScrubSection::missing_paths));
        for (index, pool) in self.pool.iter().enumerate() {
            if let Some(path) = pool.path.as_ref().filter(|path| !path.exists()) {
                let path = path.display();
                problems.push(format!(
                    "pool[{index}].path: {path} is not there; make it with `pmu-server init`"
                ));
            }
        }
        for (index, path) in self
            .data
            .iter()
            .enumerate()
            .filter_map(|(index, data)| Some((index, data.path.as_ref()?)))
        {
            if !path
                .parent()
                .is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir())
            {
                problems.push(format!(
                    "data[{index}].path: the directory of {} is not there",
                    path.display()
                ));
            }
        }
        problems
    }
}

/// Whether listening on both can't work, or would serve one in place of the other.
fn same_port(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

impl DataSection {
    fn problem(&self) -> Option<String> {
        let provider = self.provider;
        if provider == Provider::SoftUnix {
            return match (&self.path, self.listen, &self.advertise) {
                (None, ..) => Some("path: soft-unix needs the path of its socket".into()),
                (_, Some(_), _) => Some("listen: soft-unix has a path instead".into()),
                (.., Some(_)) => Some("advertise: soft-unix has a path instead".into()),
                _ => None,
            };
        }
        let Some(listen) = self.listen else {
            return Some(format!("listen: {provider} needs an address to listen on"));
        };
        if self.path.is_some() {
            return Some(format!(
                "path: only soft-unix has one, {provider} has listen"
            ));
        }
        if provider == Provider::Verbs && listen.ip().is_unspecified() {
            return Some("listen: verbs needs the address of one RDMA device's interface".into());
        }
        match &self.advertise {
            None if listen.ip().is_unspecified() => Some(format!(
                "advertise: clients can't connect to {}; name the host that they shall connect to",
                listen.ip()
            )),
            Some(host)
                if host.is_empty() || host.len() > 253 || host.contains(char::is_whitespace) =>
            {
                Some("advertise: is no host name or address".into())
            }
            _ => None,
        }
    }
}

impl PoolSection {
    fn problem(&self) -> Option<String> {
        match (self.medium, &self.path, self.size) {
            (Medium::Memory, None, None) => {
                Some("size: a memory pool without a path needs one".into())
            }
            (Medium::Memory, None, Some(_)) | (_, Some(_), None) => None,
            (_, Some(_), Some(_)) => {
                Some("size: the pool at path has its own; it was given to `init`".into())
            }
            (medium, None, _) => Some(format!("path: a {medium} pool needs one")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../example.toml");
    const SMALLEST: &str = r#"
        [unit]
        name = "unit-1"
        identity = "identity"
        [control]
        listen = "127.0.0.1:7400"
        [[data]]
        provider = "soft-tcp"
        listen = "127.0.0.1:7401"
        [[pool]]
        name = "main"
        medium = "memory"
        size = "64MiB"
    "#;

    #[test]
    fn the_example_holds_the_defaults() {
        let example = Config::parse(EXAMPLE).unwrap();
        assert_eq!(example.problems(), Vec::<String>::new());
        assert_eq!(example.limits, Limits::default());
        assert_eq!(example.log, LogSection::default());
        assert!(!example.pool[0].inbound_writes_reach_medium);
        // Every key of every section stands in the example, if only in a comment.
        for key in [
            "name",
            "identity",
            "listen",
            "provider",
            "path",
            "advertise",
            "medium",
            "size",
            "native_flush",
            "inbound_writes_reach_medium",
            "format",
            "filter",
            "staging",
            "sessions_max",
            "sessions_per_principal_max",
            "windows_max",
            "connect_within_ms",
            "activate_within_ms",
            "control_connections_max",
            "control_requests_max",
            "stop_within_ms",
        ] {
            let stands = |line: &str| {
                line.trim_start_matches("# ")
                    .starts_with(&format!("{key} = "))
            };
            assert!(
                EXAMPLE.lines().any(stands),
                "{key} is missing from example.toml"
            );
        }
        // And what is only in a comment is right too.
        let commented: String = EXAMPLE
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = ") || rest.starts_with('['))
                    .unwrap_or(line)
            })
            .fold(String::new(), |text, line| text + line + "\n");
        let commented = Config::parse(&commented).unwrap();
        assert_eq!(commented.limits, Limits::default());
        assert_eq!(commented.problems(), Vec::<String>::new());
    }

    #[test]
    fn absent_sections_take_their_defaults() {
        let config = Config::parse(SMALLEST).unwrap();
        assert_eq!(
            (&config.limits, &config.log, &config.metrics),
            (&Limits::default(), &LogSection::default(), &None)
        );
        assert_eq!(config.problems(), Vec::<String>::new());
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        for (section, line) in [("[unit]", 3), ("[control]", 6), ("[[pool]]", 11)] {
            let text = SMALLEST.replace(section, &format!("{section}\n        colour = \"blue\""));
            let error = Config::parse(&text).unwrap_err();
            assert!(
                error.contains("colour") && error.contains(&format!("line {line}")),
                "{error}"
            );
        }
    }

    #[test]
    fn values_that_cannot_work_are_named_with_their_key() {
        for (from, to, key) in [
            ("name = \"unit-1\"", "name = \"-\"", "unit.name"),
            ("127.0.0.1:7401", "127.0.0.1:7400", "data[0].listen"),
            (
                "listen = \"127.0.0.1:7401\"",
                "path = \"x\"",
                "data[0].listen",
            ),
            ("127.0.0.1:7401", "0.0.0.0:7401", "data[0].advertise"),
            ("size = \"64MiB\"", "", "pool[0].size"),
            ("medium = \"memory\"", "medium = \"file\"", "pool[0].path"),
            (
                "[unit]",
                "[limits]\nsessions_max = 0\n[unit]",
                "limits.sessions_max",
            ),
            (
                "[unit]",
                "[limits]\nactivate_within_ms = 1\n[unit]",
                "limits.activate_within_ms",
            ),
            ("[unit]", "[log]\nfilter = \"a=b=c\"\n[unit]", "log.filter"),
            (
                "[unit]",
                "[metrics]\nlisten = \"127.0.0.1:7400\"\n[unit]",
                "metrics.listen",
            ),
        ] {
            let config = Config::parse(&SMALLEST.replace(from, to)).unwrap();
            let problems = config.problems();
            assert!(
                problems.iter().any(|problem| problem.starts_with(key)),
                "{key}: {problems:?}"
            );
        }
        assert!(
            Config::parse(&SMALLEST.replace("soft-tcp", "tcp"))
                .unwrap_err()
                .contains("soft-unix")
        );
        assert!(Config::parse(&SMALLEST.replace("64MiB", "64 mega")).is_err());
    }

    #[test]
    fn paths_are_relative_to_the_file_and_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("unit.toml");
        let text = SMALLEST
            .replace("medium = \"memory\"", "medium = \"file\"")
            .replace("size = \"64MiB\"", "path = \"pool\"");
        fs::write(&path, text).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("unit.identity") && error.contains("pool[0].path"),
            "{error}"
        );
        fs::create_dir(directory.path().join("identity")).unwrap();
        fs::write(directory.path().join("pool"), b"").unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(
            config.pool[0].path.as_deref(),
            Some(directory.path().join("pool").as_path())
        );
        assert!(matches!(
            Config::load(&directory.path().join("none")),
            Err(ConfigError::Read { .. })
        ));
    }

    #[test]
    fn sizes_read_back() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65_536),
            ("3 MiB", 3 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        for text in [
            "",
            "KiB",
            "-1",
            "1.5GiB",
            "99999999999999999999",
            "16777216TiB",
            "1kb",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
