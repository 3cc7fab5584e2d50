//! Unmodified programs, checkpointed and restarted by a real CRIU through the command `pmu`, with a real unit in this process. Needs root, CRIU
//! and redis-server: scripts/test installs them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use pmu_auth::Role;
use serde_json::Value;
use support::{Pool, Site};
use units::Units;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The CRIU of `PMU_CRIU`, else the one that scripts/test has fetched, else that in `PATH`.
fn criu() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let fetched = cache
        .unwrap_or_else(|| home().join(".cache"))
        .join("pmu/criu-4.2/criu");
    let named = std::env::var_os("PMU_CRIU").map(PathBuf::from);
    let criu = named.unwrap_or(if fetched.exists() {
        fetched
    } else {
        "criu".into()
    });
    let found = Command::new(&criu).arg("--version").output();
    assert!(
        found.is_ok_and(|found| found.status.success()),
        "there is no CRIU: scripts/test unit fetches one"
    );
    criu
}

struct Bench {
    site: Site,
    identity: PathBuf,
}

impl Bench {
    fn new(sets_kept: u32, capacity_bytes: u64) -> Self {
        let mut site = Site::new(
            Pool::File,
            (u64::from(sets_kept) + 1) * (capacity_bytes + MIB) + 32 * MIB,
        );
        let identity = site.path("app");
        site.identity("app", Role::Client).save(&identity).unwrap();
        site.sets("r", sets_kept, capacity_bytes);
        Self { site, identity }
    }

    /// In a session of its own, as from a login: the tests' may have begun outside of what a container sees.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("setsid");
        command
            .arg(env!("CARGO_BIN_EXE_pmu"))
            .args(line.split(' '))
            .env("PMU_UNIT", self.site.address())
            .env("PMU_IDENTITY", &self.identity)
            .env("PMU_CRIU", criu())
            .env_remove("PMU_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn json(&self, line: &str) -> Value {
        let output = settled(|| self.run(&format!("{line} --json")));
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "pmu {line}: {} {words}",
            output.status
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Exit code and words of a command that must fail.
    fn refused(&self, line: &str) -> (i32, String) {
        let output = self.run(line);
        assert!(!output.status.success(), "pmu {line} did not fail");
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    fn sets(&self) -> usize {
        self.json("sets r")["sets"].as_array().unwrap().len()
    }
}

/// Runs a command again as long as a number that it needs is in use: children that were killed may wait for the first process to take note.
fn settled(mut run: impl FnMut() -> Output) -> Output {
    let begun = Instant::now();
    loop {
        let output = run();
        let words = String::from_utf8_lossy(&output.stderr);
        if !words.contains("number is in use") || begun.elapsed() > PATIENCE {
            return output;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A program of ours that must not outlive its test.
struct Program {
    child: Child,
    ended: bool,
}

impl Program {
    /// In a session of its own, as a service is.
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new("setsid");
        command.args(words).current_dir("/");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        Self {
            child,
            ended: false,
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// With all that it has started.
    fn kill(&mut self) {
        killpg(Pid::from_raw(self.pid() as i32), Signal::SIGKILL).unwrap();
        self.child.wait().unwrap();
        self.ended = true;
    }

    /// CRIU has ended it.
    fn has_ended(&mut self) {
        wait_until("the program has ended", || {
            self.child.try_wait().unwrap().is_some()
        });
        self.ended = true;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
        }
    }
}

/// A program that was restarted: no child of ours.
struct Restarted(i32);

impl Drop for Restarted {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
        wait_until("the number is free again", || {
            std::fs::read_to_string(format!("/proc/{}/stat", self.0)).is_err()
        });
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A shell that counts, in memory and then into a file.
fn counter(path: &Path) -> Program {
    let script = format!(
        "i=0; while :; do i=$((i+1)); echo $i >{}; sleep 0.01; done",
        path.display()
    );
    let program = Program::start(&["sh", "-c", &script]);
    wait_until("it counts", || count(path) > 5);
    program
}

/// The file is empty for moments.
fn count(path: &Path) -> u64 {
    for _ in 0..1000 {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if let Some(count) = text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
            return count;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    0
}

fn goes_on(path: &Path) {
    let now = count(path);
    wait_until("it counts on", || count(path) > now + 5);
}

#[test]
fn s07_a_counting_shell_goes_on_where_it_was() {
    let bench = Bench::new(2, 32 * MIB);
    let file = bench.site.path("count");
    let mut program = counter(&file);
    let pid = program.pid();
    let stored = bench.json(&format!("checkpoint --pid {pid} --region r"));
    assert_eq!(stored["set"], 1);
    assert_eq!(stored["durable"], true);
    assert_eq!(stored["command"], "sh");
    assert_eq!(stored["left_running"], false);
    program.has_ended();
    let last = count(&file);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(count(&file), last, "nobody counts");
    let restarted = bench.json("restart --region r");
    let _restarted = Restarted(restarted["pid"].as_i64().unwrap() as i32);
    assert_eq!(restarted["pid"], pid);
    wait_until("it counts on", || count(&file) > last + 5);
    assert!(count(&file) < last + 5000, "it didn't begin anew");
    // The label says what the set is.
    assert_eq!(bench.json("sets r")["sets"][0]["label"], "process:sh");
}

/// What redis says to one line.
fn redis(port: u16, line: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
    let mut reader = BufReader::new(stream);
    let mut answer = String::new();
    reader.read_line(&mut answer).ok()?;
    if answer.starts_with('$') {
        answer.clear();
        reader.read_line(&mut answer).ok()?;
    }
    Some(answer.trim_end().to_owned())
}

fn fill_redis(port: u16, from: u32, to: u32) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let answers = BufReader::new(stream.try_clone().unwrap());
    let count = (to - from) as usize;
    let reader = std::thread::spawn(move || {
        answers
            .lines()
            .take(count)
            .filter(|line| line.as_ref().unwrap() == "+OK")
            .count()
    });
    let lines: String = (from..to)
        .map(|key| format!("SET key:{key} value-of-{key}\r\n"))
        .collect();
    stream.write_all(lines.as_bytes()).unwrap();
    assert_eq!(reader.join().unwrap(), count);
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// `redis-server` with so many keys.
fn redis_with(port: u16, keys: u32) -> Program {
    let text = port.to_string();
    let program = Program::start(&[
        "redis-server",
        "--port",
        &text,
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        "/",
    ]);
    wait_until("redis answers (is redis-server installed?)", || {
        redis(port, "PING").is_some()
    });
    fill_redis(port, 0, keys);
    program
}

#[test]
fn s07_redis_killed_goes_on_with_its_100000_keys() {
    let bench = Bench::new(2, 128 * MIB);
    let port = free_port();
    let mut program = redis_with(port, 100_000);
    let begun = Instant::now();
    let stored = bench.json(&format!(
        "checkpoint --pid {} --region r --leave-running",
        program.pid()
    ));
    eprintln!("checkpoint: {:?}, {stored}", begun.elapsed());
    assert_eq!(stored["left_running"], true);
    assert!(stored["stopped_us"].as_u64().unwrap() > 0);
    assert!(stored["pages_written"].as_u64().unwrap() > 1000);
    // What comes after the checkpoint is lost with the process.
    fill_redis(port, 100_000, 100_010);
    assert_eq!(redis(port, "DBSIZE").unwrap(), ":100010");
    program.kill();
    assert_eq!(redis(port, "PING"), None);
    let begun = Instant::now();
    let restarted = bench.json("restart --region r");
    eprintln!("restart: {:?}, {restarted}", begun.elapsed());
    let _restarted = Restarted(restarted["pid"].as_i64().unwrap() as i32);
    assert_eq!(redis(port, "DBSIZE").unwrap(), ":100000");
    for key in [0, 1, 77_777, 99_999] {
        assert_eq!(
            redis(port, &format!("GET key:{key}")).unwrap(),
            format!("value-of-{key}")
        );
    }
    assert_eq!(redis(port, "SET more 1").unwrap(), "+OK");
}

#[test]
fn s08_an_older_state_of_the_series_can_be_restarted() {
    let bench = Bench::new(3, 128 * MIB);
    let port = free_port();
    let mut program = redis_with(port, 10);
    for round in 1..=3_u32 {
        assert_eq!(redis(port, &format!("SET round {round}")).unwrap(), "+OK");
        let stored = bench.json(&format!(
            "checkpoint --pid {} --region r -R --label round-{round}",
            program.pid()
        ));
        assert_eq!(stored["set"], round);
    }
    let list = bench.json("sets r");
    assert_eq!(list["sets"].as_array().unwrap().len(), 3);
    assert_eq!(list["sets"][0]["label"], "round-3");
    program.kill();
    for round in [1, 3, 2] {
        let restarted = bench.json(&format!("restart --region r --set {round}"));
        let _restarted = Restarted(restarted["pid"].as_i64().unwrap() as i32);
        assert_eq!(redis(port, "GET round").unwrap(), round.to_string());
    }
    assert_eq!(bench.refused("restart --region r --set 9").0, 4);
}

#[test]
fn s07_whoever_is_refused_goes_on() {
    let bench = Bench::new(2, 64 << 10);
    let file = bench.site.path("count");
    let program = counter(&file);
    let pid = program.pid();
    // No CRIU.
    let (code, words) = bench.refused(&format!(
        "checkpoint --pid {pid} --region r --criu /nowhere/criu"
    ));
    assert_eq!(code, 10, "{words}");
    assert!(
        words.contains("/nowhere/criu") && words.contains("install CRIU"),
        "{words}"
    );
    goes_on(&file);
    // What isn't CRIU.
    let (code, words) = bench.refused(&format!(
        "checkpoint --pid {pid} --region r --criu /bin/true"
    ));
    assert_eq!(code, 10, "{words}");
    // A region that is too small.
    let (code, words) = bench.refused(&format!("checkpoint --pid {pid} --region r"));
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("65536"), "{words}");
    goes_on(&file);
    // Nobody, no region.
    assert_eq!(bench.refused("checkpoint --pid 4194303 --region r").0, 4);
    assert_eq!(
        bench
            .refused(&format!("checkpoint --pid {pid} --region other"))
            .0,
        4
    );
    assert_eq!(
        bench
            .refused(&format!("checkpoint --pid {pid} --region r --pre-dump 17"))
            .0,
        2
    );
    assert_eq!(bench.refused("checkpoint --pid 1 --region r").0, 2);
    goes_on(&file);
    assert_eq!(bench.sets(), 0);
}

#[test]
fn s07_criu_says_in_its_own_words_why_it_refuses() {
    let bench = Bench::new(2, 32 * MIB);
    let file = bench.site.path("count");
    // Not the leader of its session, but one of its jobs: CRIU wants to be told.
    let job = bench.site.path("job");
    let script = format!(
        "sh -c 'i=0; while :; do i=$((i+1)); echo $i >{}; sleep 0.01; done' & echo $! >{}; wait",
        file.display(),
        job.display()
    );
    let mut session = Program::start(&["sh", "-c", &script]);
    wait_until("it counts", || count(&file) > 5);
    let pid = std::fs::read_to_string(&job).unwrap();
    let pid = pid.trim();
    let (code, words) = bench.refused(&format!("checkpoint --pid {pid} --region r"));
    assert_eq!(code, 10, "{words}");
    assert!(
        words.contains("Error (criu/") && words.contains("--shell-job"),
        "{words}"
    );
    goes_on(&file);
    assert_eq!(bench.sets(), 0);
    let stored = bench.json(&format!("checkpoint --pid {pid} --region r --shell-job"));
    assert_eq!(stored["set"], 1);
    session.has_ended();
    // Its number is in use: nothing of it is started. (The options of the checkpoint are those of the restart.)
    let restarted = bench.json("restart --region r");
    let _restarted = Restarted(restarted["pid"].as_i64().unwrap() as i32);
    goes_on(&file);
    let (code, words) = bench.refused("restart --region r");
    assert_eq!(code, 10, "{words}");
    assert!(
        words.contains("Error (criu/") && words.contains("number is in use"),
        "{words}"
    );
    goes_on(&file);
}

#[test]
fn s07_what_is_no_process_is_not_restarted() {
    let bench = Bench::new(2, 4 * MIB);
    assert_eq!(bench.refused("restart --region r").0, 4);
    let file = bench.site.path("file");
    std::fs::write(&file, "no process").unwrap();
    bench.json(&format!("put r {}", file.display()));
    let (code, words) = bench.refused("restart --region r");
    assert_eq!(code, 5, "{words}");
    assert!(words.contains("holds no process"), "{words}");
    std::fs::write(&file, "PMUCRIU1 and then not").unwrap();
    bench.json(&format!("put r {}", file.display()));
    let (code, words) = bench.refused("restart --region r");
    assert_eq!(code, 5, "{words}");
}

/// A program with memory to take for a while.
fn large(path: &Path) -> Program {
    let script = format!(
        "i=0; x=$(head -c 60000000 /dev/zero | tr '\\0' x); while :; do i=$((i+1)); echo $i >{}; sleep 0.01; done",
        path.display()
    );
    let program = Program::start(&["sh", "-c", &script]);
    wait_until("it counts", || count(path) > 5);
    program
}

#[test]
fn s07_a_checkpoint_that_is_killed_leaves_the_program_running() {
    let bench = Bench::new(2, 128 * MIB);
    let file = bench.site.path("count");
    let mut program = large(&file);
    let line = format!("checkpoint --pid {} --region r", program.pid());
    let mut killed = 0;
    for milliseconds in [20, 60, 100, 140, 180, 220, 260, 300] {
        let mut pmu = bench.command(&line).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        pmu.kill().unwrap();
        let status = pmu.wait().unwrap();
        if status.success() || program.child.try_wait().unwrap().is_some() {
            // It was faster.
            break;
        }
        killed += 1;
        goes_on(&file);
    }
    assert!(killed > 0);
    if program.child.try_wait().unwrap().is_none() {
        // CRIU may be letting go of it still.
        wait_until("it can be checkpointed", || {
            bench.run(&line).status.success()
        });
        program.has_ended();
    }
    program.ended = true;
    let last = count(&file);
    let restarted = bench.json("restart --region r");
    let _restarted = Restarted(restarted["pid"].as_i64().unwrap() as i32);
    wait_until("it counts on", || count(&file) > last + 5);
}

#[test]
fn s07_ctrl_c_and_a_lost_unit_leave_the_program_running() {
    let mut bench = Bench::new(2, 128 * MIB);
    let file = bench.site.path("count");
    let program = large(&file);
    let line = format!("checkpoint --pid {} --region r --timeout 3s", program.pid());
    let pmu = bench.command(&line).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(120));
    kill(Pid::from_raw(pmu.id() as i32), Signal::SIGINT).unwrap();
    let output = pmu.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    goes_on(&file);
    assert_eq!(bench.sets(), 0);
    let pmu = bench.command(&line).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(120));
    bench.site.stop();
    let output = pmu.wait_with_output().unwrap();
    assert!(!output.status.success());
    goes_on(&file);
}

#[test]
fn s08_only_what_changed_is_stored_where_the_kernel_tracks() {
    let bench = Bench::new(4, 128 * MIB);
    let port = free_port();
    let mut program = redis_with(port, 100_000);
    let line = format!(
        "checkpoint --pid {} --region r -R --track-mem",
        program.pid()
    );
    let tracks = Command::new(criu())
        .args(["check", "--feature", "mem_dirty_track"])
        .output()
        .unwrap();
    if !tracks.status.success() {
        // Refused, in CRIU's own words, and never a whole one in its place.
        let (code, words) = bench.refused(&line);
        assert_eq!(code, 10, "{words}");
        assert!(
            words.contains("racking") && words.contains("without --track-mem"),
            "{words}"
        );
        assert_eq!(redis(port, "DBSIZE").unwrap(), ":100000");
        assert_eq!(bench.sets(), 0);
        return;
    }
    let whole = bench.json(&line);
    assert_eq!(whole["parent"], Value::Null);
    assert_eq!(redis(port, "SET key:5 new").unwrap(), "+OK");
    let second = bench.json(&line);
    assert_eq!(second["parent"], 1);
    assert!(second["image_bytes"].as_u64().unwrap() * 2 < whole["image_bytes"].as_u64().unwrap());
    program.kill();
    let restarted = bench.json("restart --region r");
    assert_eq!(restarted["sets_read"], 2);
    let _restarted = Restarted(restarted["pid"].as_i64().unwrap() as i32);
    assert_eq!(redis(port, "DBSIZE").unwrap(), ":100000");
    assert_eq!(redis(port, "GET key:5").unwrap(), "new");
}

#[test]
fn s09_a_process_comes_back_from_several_units_without_one_of_them() {
    let mut units = Units::new(3, 96 * MIB);
    units.spread("r", "parity:2+1", 2, 16 * MIB);
    let identity = units.path("identity-app");
    units.identity("app", Role::Client).save(&identity).unwrap();
    let run = |units: &Units, line: &str| -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pmu"));
        command
            .args(line.split(' '))
            .env("PMU_UNIT", units.addresses.join(","))
            .env("PMU_IDENTITY", &identity)
            .env("PMU_CRIU", criu())
            .stdin(Stdio::null());
        let output = settled(|| command.output().unwrap());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pmu {line}: {words}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let file = units.path("count");
    let mut program = counter(&file);
    let line = format!("checkpoint --pid {} --region r --json", program.pid());
    let stored = run(&units, &line);
    assert_eq!(stored["units"].as_array().unwrap().len(), 3);
    program.has_ended();
    units.stop(1);
    let last = count(&file);
    let restarted = run(&units, "restart --region r --json");
    let _restarted = Restarted(restarted["pid"].as_i64().unwrap() as i32);
    wait_until("it counts on", || count(&file) > last + 5);
}
