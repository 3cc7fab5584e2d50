//! Two agents over one unit, with the counter as their program, and what it acknowledged.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pmu_agent::status::Status;
use pmu_auth::Role;
use pmu_client::{ClientError, LogBackup, OpenOptions};

use super::leaders::{Commit, Found, Instance, Log, Verdict, What, check};
use super::{PATIENCE, Pool, Site};

pub struct Agents {
    pub site: Site,
    pub ballast: usize,
    ports: [u16; 2],
    /// By which each agent reaches the other.
    ways: [u16; 2],
    cut: Arc<AtomicBool>,
    running: [Option<Child>; 2],
    /// More lines of both configurations, by their sections.
    pub watch: String,
    pub program: String,
    pub top: String,
    pub more: String,
    /// The section of regions, and the program, where they aren't the counter's.
    pub regions: String,
    pub command: Option<Vec<String>>,
    /// Where each agent shows metrics.
    pub metrics: Option<[u16; 2]>,
}

const NAMES: [&str; 2] = ["app", "backup"];
pub const A: usize = 0;
pub const B: usize = 1;

/// One line of what the counter wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Start {
        epoch: u64,
        count: u64,
        process: u64,
        opened_ns: u64,
        fenced_ns: u64,
    },
    Acknowledged {
        epoch: u64,
        number: u64,
        commit: Commit,
    },
    Set {
        /// Of the log: the sets have one of their own.
        epoch: u64,
        commit: Commit,
    },
    Fenced {
        epoch: u64,
    },
}

/// Reads the log while others write, take over and clear it.
pub struct Onlooker {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Log>,
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// An example of this crate, built with its tests.
pub fn example(name: &str) -> String {
    let agent = Path::new(env!("CARGO_BIN_EXE_pmu-agent"));
    let path = agent.parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path.display().to_string()
}

/// Passes bytes on between whoever connects and a port; while it is cut, nothing passes, and nobody is told.
fn relay(to: u16, cut: &Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let cut = Arc::clone(cut);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(other) = TcpStream::connect(("127.0.0.1", to)) else {
                continue;
            };
            for (mut from, mut to) in [
                (stream.try_clone().unwrap(), other.try_clone().unwrap()),
                (other, stream),
            ] {
                let cut = Arc::clone(&cut);
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        while cut.load(Ordering::SeqCst) {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        if to.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    port
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

impl Agents {
    pub fn new(ballast: usize) -> Self {
        Self::with_log(ballast, 8 << 20)
    }

    pub fn with_log(ballast: usize, log_bytes: u64) -> Self {
        let capacity = (ballast as u64).max(4096).next_multiple_of(4096);
        let mut site = Site::new(Pool::File, 4 * capacity + (64 << 20));
        site.log("log", log_bytes);
        site.sets("state", 2, capacity);
        for name in NAMES {
            let identity = site.identity(name, Role::Client);
            identity.save(&site.path(name)).unwrap();
        }
        let ports = [free_port(), free_port()];
        Self {
            site,
            ballast,
            ports,
            ways: ports,
            cut: Arc::default(),
            running: [None, None],
            watch: "interval_ms = 20\nintervals = 25\ngrace_ms = 2000".into(),
            program: String::new(),
            top: String::new(),
            more: "[snapshot]\nevery_ms = 100\n".into(),
            regions: "log = \"log\"\nsets = \"state\"".into(),
            command: None,
            metrics: None,
        }
    }

    /// The agents reach each other through relays that can be cut.
    pub fn with_relays(ballast: usize) -> Self {
        let mut agents = Self::new(ballast);
        agents.ways = agents.ports.map(|to| relay(to, &agents.cut));
        agents
    }

    pub fn cut(&self, is: bool) {
        self.cut.store(is, Ordering::SeqCst);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.site.path(name)
    }

    pub fn config(&self, which: usize) -> PathBuf {
        let (me, other) = (NAMES[which], NAMES[1 - which]);
        let counter = || {
            vec![
                example("counter"),
                self.site.address(),
                self.path(me).display().to_string(),
                self.path("").display().to_string(),
                self.ballast.to_string(),
            ]
        };
        let command = self.command.clone().unwrap_or_else(counter);
        let metrics = self.metrics.map_or_else(String::new, |ports| {
            format!("metrics = \"127.0.0.1:{}\"", ports[which])
        });
        let mut text = String::new();
        writeln!(
            text,
            "identity = {:?}\nunits = [{:?}]\nsocket = {:?}\nlisten = \"127.0.0.1:{}\"\n{metrics}\n{}\n\
             [peer]\nname = {other:?}\naddress = \"127.0.0.1:{}\"\n\
             [regions]\n{}\n\
             [watch]\n{}\n\
             [program]\ncommand = {command:?}\n{}\n{}",
            self.path(me),
            self.site.address(),
            self.path(&format!("{me}.socket")),
            self.ports[which],
            self.top,
            self.ways[1 - which],
            self.regions,
            self.watch,
            self.program,
            self.more,
        )
        .unwrap();
        let path = self.path(&format!("{me}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn start(&mut self, which: usize, role: &str, more: &[&str]) {
        let config = self.config(which);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path(which))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_pmu-agent"))
            .args(["run", "--role", role, "--config"])
            .arg(config)
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running[which] = Some(child);
    }

    fn log_path(&self, which: usize) -> PathBuf {
        self.path(&format!("{}.log", NAMES[which]))
    }

    pub fn log(&self, which: usize) -> String {
        std::fs::read_to_string(self.log_path(which)).unwrap_or_default()
    }

    pub fn ask(&self, which: usize, command: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pmu-agent"))
            .args(command)
            .arg("--socket")
            .arg(self.path(&format!("{}.socket", NAMES[which])))
            .output()
            .unwrap()
    }

    pub fn status(&self, which: usize) -> Option<Status> {
        let output = self.ask(which, &["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn wait_for(&self, which: usize, role: &str) -> Status {
        let mut found = None;
        wait_until(&format!("{} is {role}", NAMES[which]), || {
            found = self.status(which);
            found
                .as_ref()
                .is_some_and(|status| status.role.to_string() == role)
        });
        found.unwrap()
    }

    /// A leads, and B has caught up with a set.
    pub fn both_at_work(&mut self) {
        self.start(A, "primary", &[]);
        self.wait_for(A, "primary");
        self.start(B, "standby", &[]);
        wait_until("the standby follows", || {
            let status = self.status(B);
            status.is_some_and(|status| {
                status.newest_set > 0
                    && status.lag_sets == 0
                    && status.peer.is_some()
                    && status.since_beat_ms.is_some()
            })
        });
    }

    pub fn pid(&self, which: usize) -> u32 {
        self.status(which).unwrap().pid.unwrap()
    }

    pub fn signal(&self, pid: u32, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills the agent alone: its program goes on.
    pub fn kill_agent(&mut self, which: usize) {
        let mut agent = self.running[which].take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn agent_pid(&self, which: usize) -> u32 {
        self.running[which].as_ref().unwrap().id()
    }

    pub fn exit_code(&mut self, which: usize) -> Option<i32> {
        let mut agent = self.running[which].take().unwrap();
        agent.wait().unwrap().code()
    }

    pub fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(self.path("acknowledged")).unwrap_or_default();
        let number = |text: &&str| text.parse().unwrap();
        text.lines()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let (kind, numbers) = words.split_first().unwrap();
                let numbers: Vec<u64> = numbers.iter().map(number).collect();
                parse_line(kind, &numbers).unwrap_or_else(|| panic!("{line}"))
            })
            .collect()
    }

    /// As if a program had written it.
    pub fn append_line(&self, line: &str) {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(self.path("acknowledged"))
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }

    pub fn acknowledged(&self) -> u64 {
        let lines = self.lines();
        let numbers = lines.iter().filter_map(|line| match line {
            Line::Acknowledged { number, .. } => Some(*number),
            _ => None,
        });
        numbers.max().unwrap_or(0)
    }

    /// Waits for a start in a later epoch, and for records behind it.
    pub fn wait_for_leader_after(&self, epoch: u64) -> Duration {
        wait_until("another instance commits", || {
            self.lines().iter().any(
                |line| matches!(line, Line::Acknowledged { epoch: found, .. } if *found > epoch),
            )
        })
    }

    /// Reads the log from now on.
    pub fn look_on(&self) -> Onlooker {
        let (unit, over) = (self.site.client("backup"), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut log = Log::default();
            let begun = Instant::now();
            loop {
                let looked = unit
                    .open_log_backup("log", false, &OpenOptions::new())
                    .and_then(|mut reader| look_until(&mut reader, &mut log, &told));
                match looked {
                    Ok(()) => return log,
                    // Others clear what they need no longer: what is left is read from its begin.
                    Err(error) => assert!(begun.elapsed() < 3 * PATIENCE, "{error}"),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Onlooker { over, thread }
    }

    /// Nobody was ever told of a commit who had a successor: see [`super::leaders`].
    pub fn check_leaders(&self, log: &Log) -> Verdict {
        let mut instances: Vec<Instance> = Vec::new();
        for line in self.lines() {
            match line {
                Line::Start {
                    epoch,
                    process,
                    opened_ns,
                    fenced_ns,
                    count,
                } => instances.push(Instance {
                    name: format!("process {process}"),
                    epoch,
                    // All of them were started by agents.
                    fenced_ns: Some(fenced_ns),
                    opened_ns,
                    began_with: count,
                    commits: Vec::new(),
                }),
                Line::Acknowledged { epoch, commit, .. } | Line::Set { epoch, commit } => {
                    let mut all = instances.iter_mut();
                    let instance = all.find(|instance| instance.epoch == epoch).unwrap();
                    instance.commits.push(commit);
                }
                Line::Fenced { .. } => {}
            }
        }
        check(&instances, log).unwrap_or_else(|violation| panic!("{violation}"))
    }

    /// Every instance began with all that was acknowledged before it, and none was acknowledged anything that a later one doesn't know; and
    /// no two of them led at one time.
    pub fn check(&self) {
        self.check_leaders(&Log::default());
        let lines = self.lines();
        let mut leader = (0, 0);
        let mut starts = std::collections::BTreeMap::new();
        let mut most = 0;
        for line in &lines {
            match *line {
                Line::Start { epoch, count, .. } => {
                    assert!(epoch > leader.0, "epoch {epoch} behind {}", leader.0);
                    assert!(
                        count >= most,
                        "lost: begins with {count}, {most} were acknowledged"
                    );
                    starts.insert(epoch, count);
                    leader = (epoch, count);
                }
                Line::Acknowledged { epoch, number, .. } if epoch == leader.0 => {
                    most = most.max(number);
                }
                // A receipt from before the fence, written down after it.
                Line::Acknowledged { epoch, number, .. } => {
                    let next = starts.range(epoch + 1..).next().unwrap();
                    assert!(
                        number <= *next.1,
                        "two leaders: {number} acknowledged in {epoch}, and epoch {} began with {}",
                        next.0,
                        next.1
                    );
                }
                Line::Set { .. } | Line::Fenced { .. } => {}
            }
        }
        assert!(!starts.is_empty(), "nothing has begun");
    }
}

impl Onlooker {
    /// Reads to the end of the log as it is now: all that was found.
    pub fn finish(self) -> Log {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn look_until(reader: &mut LogBackup, log: &mut Log, over: &AtomicBool) -> Result<(), ClientError> {
    loop {
        let last = over.load(Ordering::SeqCst);
        let records = reader.read_unread(64 << 10)?;
        let some = records.len() > 0;
        for found in records {
            log.saw(Found {
                from: found.record.position.get(),
                to: found.record.mark.position().get(),
                epoch: found.record.epoch.get(),
            });
        }
        // A leader that goes on leaves no end to be found: what there was by then is enough.
        if last {
            return Ok(());
        }
        if !some {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn parse_line(kind: &str, numbers: &[u64]) -> Option<Line> {
    Some(match (kind, numbers) {
        ("start", &[epoch, count, process, opened_ns, fenced_ns]) => Line::Start {
            epoch,
            count,
            process,
            opened_ns,
            fenced_ns,
        },
        ("record", &[epoch, told, number, from, to, begun_ns, told_ns]) => Line::Acknowledged {
            epoch,
            number,
            commit: Commit {
                what: What::Record,
                epoch: Some(told),
                from,
                to,
                begun_ns,
                told_ns,
            },
        },
        ("set", &[epoch, sets_epoch, number, begun_ns, told_ns]) => Line::Set {
            epoch,
            commit: Commit {
                what: What::Set,
                epoch: Some(sets_epoch),
                from: number,
                to: number + 1,
                begun_ns,
                told_ns,
            },
        },
        ("fenced", &[epoch, _]) => Line::Fenced { epoch },
        _ => return None,
    })
}

impl Drop for Agents {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for which in [A, B] {
                eprintln!("--- {}\n{}", NAMES[which], self.log(which));
            }
        }
        for which in [A, B] {
            if let Some(status) = self.running[which].as_ref().and(self.status(which))
                && let Some(pid) = status.pid
                && let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed())
            {
                // One that is at its end may be gone by now.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            if let Some(mut agent) = self.running[which].take() {
                let _ = agent.kill();
                let _ = agent.wait();
            }
        }
    }
}
