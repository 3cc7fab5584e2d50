//! The command `pmu` as a process, against several real units in this one.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests, each of which uses a part"
)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pmu_auth::Role;
use serde_json::Value;

use crate::units::Units;

/// How long something may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Cluster {
    pub units: Units,
}

impl Cluster {
    /// Units with the regions of the prefix `seg` on the first two.
    pub fn new(count: usize, index_bytes: u64, body_bytes: u64) -> Self {
        let cluster = Self::bare(count);
        cluster
            .units
            .spread_log("seg.index", "mirror:2", 2, index_bytes);
        cluster
            .units
            .spread_log("seg.body", "mirror:2", 2, body_bytes);
        cluster
    }

    pub fn bare(count: usize) -> Self {
        let units = Units::new(count, 96 << 20);
        for who in ["app", "backup"] {
            let identity = units.identity(who, Role::Client);
            identity.save(&units.path(who)).unwrap();
        }
        Self { units }
    }

    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.units.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pmu"));
        self.environment(&mut command);
        command.args(arguments);
        command
    }

    pub fn environment(&self, command: &mut Command) {
        command
            .env("PMU_UNIT", self.units.addresses.join(","))
            .env("PMU_IDENTITY", self.units.path("app"))
            .env("PMU_REGION_PREFIX", "seg")
            .env_remove("PMU_LOG")
            .env_remove("PMU_STORE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    pub fn run(&self, line: &str) -> Output {
        self.command(line.split(' ')).output().unwrap()
    }

    pub fn code(&self, line: &str) -> (i32, String) {
        let output = self.run(line);
        (output.status.code().unwrap_or(-1), text(&output.stderr))
    }

    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(
            output.status.success(),
            "pmu {line}: {} {}",
            output.status,
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    /// Names of all segments.
    pub fn names(&self) -> Vec<String> {
        let listed = self.json("segments list");
        let segments = listed["segments"].as_array().unwrap();
        let names = segments.iter();
        names
            .map(|segment| segment["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Starts to watch, and waits until it does.
    pub fn watch(&self, directory: &Path, more: &str) -> Watcher {
        let mut arguments = vec!["segments", "watch", directory.to_str().unwrap(), "--json"];
        arguments.extend(more.split(' ').filter(|word| !word.is_empty()));
        let mut command = self.command(arguments);
        let watcher = Watcher::start(&mut command);
        watcher.wait_for(|event| event["event"] == "watching");
        watcher
    }
}

/// A watcher, and what it tells.
pub struct Watcher {
    pub child: Child,
    events: Receiver<Value>,
}

impl Watcher {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::inherit()).spawn().unwrap();
        let (sender, events) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, events }
    }

    /// The next event of which something is true.
    pub fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("no such event");
            if wanted(&event) {
                return event;
            }
        }
    }

    pub fn replicated(&self, name: &str) -> Value {
        self.wait_for(|event| event["event"] == "replicated" && event["name"] == name)
    }

    /// What was told up to now.
    pub fn told(&self) -> Vec<Value> {
        self.events.try_iter().collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Ends it as a service manager does. Its exit code.
    pub fn end(mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program that knows nothing of any of this.
pub fn shell(directory: &Path, script: &str) {
    let status = Command::new("sh")
        .args(["-ec", script])
        .current_dir(directory)
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
}

/// Waits until something is true.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
