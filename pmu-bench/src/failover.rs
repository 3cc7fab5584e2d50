//! Two agents, a program with a large state, SIGKILL: how long until the second instance has committed.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use pmu_client::agent::{Handover, Order, Program, SnapshotReport};
use pmu_client::{ConnectOptions, Identity, Label, LogPrimary, SetPrimary, Unit};
use serde_json::Value;

use crate::disk;
use crate::measure::{Failure, Row, median};
use crate::peers::free_port;
use crate::process::{CLIENT, programs, run};
use crate::site::Site;

/// The program's state.
const STATE_BYTES: u64 = 256 << 20;
const LOG_BYTES: u64 = 16 << 20;
/// What a takeover may take beside the program's own start, and a fence alone.
const TAKEOVER_GOAL_MS: f64 = 50.0;
const FENCE_GOAL_MS: f64 = 1.0;
const FENCES_A_RUN: usize = 10;
const NAMES: [&str; 2] = ["agent-a", "agent-b"];
const PATIENCE: Duration = Duration::from_secs(120);

/// The program that the agents run.
#[derive(Debug, Args)]
pub(crate) struct Counter {
    /// The unit's control address.
    unit: String,
    /// Directory of the identity.
    identity: PathBuf,
    /// Where to write when what happened.
    times: PathBuf,
}

fn now_ns() -> Result<u64, Failure> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// Restores its state, opens its regions, and appends until it is killed. It connects while it reads its state, and opens both regions at the same
/// time.
pub(crate) fn counter(arguments: &Counter) -> Result<(), Failure> {
    let begun = now_ns()?;
    let (address, directory) = (arguments.unit.clone(), arguments.identity.clone());
    let connecting = std::thread::spawn(move || -> Result<Unit, String> {
        let identity = Identity::load(&directory).map_err(|error| error.to_string())?;
        let unit = Unit::connect(&address, &identity, &ConnectOptions::default());
        unit.map_err(|error| error.to_string())
    });
    let state = restore()?;
    let restored = now_ns()?;
    let mut agent = Program::from_environment().ok_or("there is no agent")?;
    let unit = connecting
        .join()
        .map_err(|_| "the connecting thread has panicked")??;
    let connected = now_ns()?;
    let (mut log, sets) = open(&unit)?;
    let opened = now_ns()?;
    log.append(&[7; 64])?;
    let committed = now_ns()?;
    let pid = std::process::id();
    let line = format!("{pid} {begun} {restored} {connected} {opened} {committed}\n");
    let mut times = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&arguments.times)?;
    times.write_all(line.as_bytes())?;
    agent.ready(log.epoch());
    work(&state, log, sets, agent)
}

fn restore() -> Result<Vec<u8>, Failure> {
    let handed = Handover::from_environment()?;
    let mut state = match &handed {
        Some(handed) => handed.read_state()?.unwrap_or_default(),
        None => Vec::new(),
    };
    if let Some(handed) = &handed {
        handed.visit_records(|_, _| Ok(()))?;
    }
    state.resize(STATE_BYTES as usize, 1);
    Ok(state)
}

fn open(unit: &Unit) -> Result<(LogPrimary, SetPrimary), Failure> {
    let options = Site::options();
    let (log, sets) = std::thread::scope(|scope| {
        let sets = scope.spawn(|| unit.open_sets_primary("state", &options));
        let log = unit.open_log_primary("log", &options);
        (log, sets.join())
    });
    Ok((log?, sets.map_err(|_| "the opening thread has panicked")??))
}

fn work(
    state: &[u8],
    mut log: LogPrimary,
    mut sets: SetPrimary,
    mut agent: Program,
) -> Result<(), Failure> {
    loop {
        log.append(&[7; 64])?;
        std::thread::sleep(Duration::from_millis(1));
        if agent.beat_is_due() {
            log.beat()?;
        }
        match agent.order() {
            Some(Order::Snapshot { id }) => {
                let label = Label::new(&format!("@{}", log.submitted()))?;
                let receipt = sets.commit(&[IoSlice::new(state)], label)?;
                agent.done(&SnapshotReport {
                    id,
                    set: receipt.set().map_or(0, |set| set.get()),
                    bytes: receipt.bytes,
                    durable: receipt.is_durable(),
                    ..SnapshotReport::default()
                });
            }
            Some(Order::Stop) => return Ok(()),
            _ => {}
        }
    }
}

struct Pair {
    folder: PathBuf,
    agents: Vec<Child>,
    pids: Vec<i32>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        for pid in &self.pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
}

/// What one takeover took, in milliseconds.
struct Times {
    all: f64,
    /// Beside the program's own start: its exec, and reading its state.
    takeover: f64,
    /// From the kill to the second instance's first instruction.
    until_exec: f64,
    /// From its state restored until it has a connection.
    connecting: f64,
    /// From there until its regions are open.
    opening: f64,
    /// From there to its first commit.
    committing: f64,
    /// Both regions, at the same time.
    fences: f64,
    recovery: f64,
}

impl Pair {
    fn start(folder: &Path, unit: &str) -> Result<Self, Failure> {
        let ports = [free_port()?, free_port()?];
        let mut pair = Self {
            folder: folder.to_owned(),
            agents: Vec::new(),
            pids: Vec::new(),
        };
        for which in 0..2 {
            let config = pair.config(which, ports, unit)?;
            let log = fs::File::create(folder.join(format!("{}.log", NAMES[which])))?;
            let agent = Command::new(programs()?.join("pmu-agent"))
                .args(["run", "--role", ["primary", "standby"][which], "--config"])
                .arg(config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()?;
            pair.agents.push(agent);
            pair.wait(which, |status| match which {
                0 => status["role"] == "primary",
                _ => status["lag_sets"] == 0 && status["newest_set"].as_u64() > Some(0),
            })?;
        }
        Ok(pair)
    }

    fn config(&self, which: usize, ports: [u16; 2], unit: &str) -> Result<PathBuf, Failure> {
        let path = |name: &str| self.folder.join(name);
        let itself = std::env::current_exe()?;
        let mut text = String::new();
        write!(
            text,
            "identity = {:?}\nunits = [{unit:?}]\nsocket = {:?}\nlisten = \"127.0.0.1:{}\"\n\
             [peer]\nname = {:?}\naddress = \"127.0.0.1:{}\"\n[regions]\nlog = \"log\"\nsets = \"state\"\n\
             [program]\ncommand = [{itself:?}, \"failover-program\", {unit:?}, {:?}, {:?}]\n\
             [watch]\ninterval_ms = 200\nintervals = 50\n[snapshot]\nevery_ms = 5000\n",
            path(NAMES[which]),
            path(&format!("{}.socket", NAMES[which])),
            ports[which],
            NAMES[1 - which],
            ports[1 - which],
            path(NAMES[which]),
            path("times"),
        )?;
        let config = path(&format!("{}.toml", NAMES[which]));
        fs::write(&config, text)?;
        Ok(config)
    }

    fn status(&self, which: usize) -> Result<Value, Failure> {
        let mut stream = UnixStream::connect(self.folder.join(format!("{}.socket", NAMES[which])))?;
        stream.write_all(b"{\"command\":\"status\"}\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line)?;
        Ok(answer["status"].take())
    }

    fn wait(&mut self, which: usize, done: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(status) = self.status(which)
                && done(&status)
            {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let log = self.folder.join(format!("{}.log", NAMES[which]));
                let log = fs::read_to_string(log).unwrap_or_default();
                return Err(format!("{} does not come so far:\n{log}", NAMES[which]).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the program of one agent, and measures until that of the other has committed.
    fn fail(&mut self, leader: usize) -> Result<Times, Failure> {
        let other = 1 - leader;
        let status = self.wait(leader, |status| status["role"] == "primary")?;
        self.wait(other, |status| {
            status["lag_sets"] == 0
                && status["caught_up"] == true
                && status["peer"] == "primary"
                && status["role"] == "standby"
        })?;
        let pid = status["pid"].as_i64().ok_or("the leader has no program")?;
        let pid = i32::try_from(pid)?;
        let lines = fs::read_to_string(self.folder.join("times"))?
            .lines()
            .count();
        let killed = now_ns()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let status = self.wait(other, |status| status["role"] == "primary")?;
        self.pids = vec![i32::try_from(status["pid"].as_i64().unwrap_or(0))?];
        let text = fs::read_to_string(self.folder.join("times"))?;
        let line = text
            .lines()
            .nth(lines)
            .ok_or("the second instance said nothing")?;
        let words: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [_, begun, restored, connected, opened, committed] = words[..] else {
            return Err(format!("not understood: {line}").into());
        };
        let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        let part = |name: &str| status[name].as_u64().unwrap_or(0) as f64 / 1e3;
        Ok(Times {
            all: ms(killed, committed),
            takeover: ms(killed, committed) - ms(begun, restored),
            until_exec: ms(killed, begun),
            connecting: ms(restored, connected),
            opening: ms(connected, opened),
            committing: ms(opened, committed),
            fences: part("fence_us"),
            recovery: part("recovery_us"),
        })
    }
}

/// Warm takeovers to and fro, with a unit on a file and with one in memory.
pub(crate) fn warm(dir: &Path, runs: usize) -> Result<Vec<Row>, Failure> {
    let media = ["file", "memory"];
    media
        .map(|medium| warm_on(medium, dir, runs))
        .into_iter()
        .collect()
}

fn site_on(medium: &str, folder: &Path, pool_bytes: u64) -> Result<Site, Failure> {
    match medium {
        "file" => Site::start(folder, pool_bytes),
        _ => Site::start_in_memory(folder, pool_bytes),
    }
}

/// What a region of this medium must say that it takes.
fn need(medium: &str) -> [&str; 2] {
    [
        "--need",
        if medium == "file" {
            "durable"
        } else {
            "volatile"
        },
    ]
}

fn warm_on(medium: &str, dir: &Path, runs: usize) -> Result<Row, Failure> {
    let folder = tempfile::tempdir_in(dir)?;
    let folder = folder.path().canonicalize()?;
    let site = site_on(medium, &folder, 4 * STATE_BYTES + (64 << 20))?;
    let [need, which] = need(medium);
    for name in NAMES {
        let out = folder.join(name).to_string_lossy().into_owned();
        run(
            "pmm",
            &folder,
            &["ca", "issue", name, "--role", "client", "--out", &out],
        )?;
    }
    site.create_for(
        &NAMES,
        "log",
        &["append", "--size", &LOG_BYTES.to_string(), need, which],
        "read,append,clear",
    )?;
    let capacity = STATE_BYTES.to_string();
    let sets = [
        "overwrite",
        "--sets",
        "1",
        "--capacity",
        &capacity,
        need,
        which,
    ];
    site.create_for(&NAMES, "state", &sets, "read,write")?;
    let mut pair = Pair::start(&folder, site.control())?;
    let mut times = Vec::new();
    for run in 0..=runs {
        let found = pair.fail(run % 2)?;
        // The first is a warm-up.
        if run > 0 {
            times.push(found);
        }
    }
    let of = |part: fn(&Times) -> f64| median(&times.iter().map(part).collect::<Vec<_>>());
    let note = format!(
        "from the kill to the second instance's exec {:.1} ms (fences {:.1}, recovery {:.1}); from its state restored to a connection {:.1}, to open regions {:.1}, to its first commit {:.1} ms; all of it with its start {:.1} ms",
        of(|times| times.until_exec),
        of(|times| times.fences),
        of(|times| times.recovery),
        of(|times| times.connecting),
        of(|times| times.opening),
        of(|times| times.committing),
        of(|times| times.all)
    );
    let takeover = of(|times| times.takeover);
    let name = format!("failover.warm.{medium}");
    Ok(row(
        &name,
        STATE_BYTES,
        takeover,
        TAKEOVER_GOAL_MS,
        runs,
        note,
    ))
}

fn row(name: &str, size_bytes: u64, value: f64, goal: f64, runs: usize, note: String) -> Row {
    Row {
        name: name.to_owned(),
        size_bytes,
        value,
        unit: "ms",
        limit_name: "asked for".to_owned(),
        limit_value: goal,
        ratio: goal / value,
        runs,
        note: Some(note),
    }
}

/// Fences of a region with a working primary, by another client of the same principal; beside each, a page of a file is written and synced.
pub(crate) fn fences(dir: &Path, runs: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for medium in ["file", "memory"] {
        let folder = tempfile::tempdir_in(dir)?;
        let folder = folder.path().canonicalize()?;
        let site = site_on(medium, &folder, 4 * LOG_BYTES)?;
        let size = LOG_BYTES.to_string();
        let [need, which] = need(medium);
        let mode = ["append", "--size", &size, need, which];
        site.create_for(&[CLIENT], "log", &mode, "read,append,clear")?;
        let identity = Identity::load(&folder.join(CLIENT))?;
        let other = Unit::connect(site.control(), &identity, &ConnectOptions::default())?;
        let (mut fences, mut in_unit, mut pages) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs * FENCES_A_RUN {
            let mut log = site.unit.open_log_primary("log", &Site::options())?;
            log.append(&[7; 64])?;
            pages.push(disk::page_ms(&folder)?);
            let report = other.fence("log")?;
            if log.append(&[7; 64]).is_ok() {
                return Err("a fenced primary has committed".into());
            }
            fences.push(report.round_trip.as_secs_f64() * 1e3);
            in_unit.push(report.took.as_secs_f64() * 1e3);
        }
        let note = format!(
            "in the unit {:.2} ms, of which two copies of its table are synced one after the other where it is a file; a page of a file written and synced, here and now: {:.2} ms",
            median(&in_unit),
            median(&pages)
        );
        let name = format!("failover.fence.{medium}");
        let fence = median(&fences);
        rows.push(row(&name, 0, fence, FENCE_GOAL_MS, fences.len(), note));
    }
    Ok(rows)
}
