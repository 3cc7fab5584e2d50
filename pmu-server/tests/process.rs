//! The binary `pmu-server` itself: commands, signals, and what is left when it is killed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pmu_auth::Role;
use pmu_fabric::CompletionStatus;
use pmu_proto::v1;
use pmu_server::config::Config;
use pmu_server::unit::Unit;
use support::*;

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pmu-server"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A unit in a process of its own.
struct Process {
    child: Child,
    control: String,
    metrics: String,
}

impl Process {
    fn run(config: &std::path::Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pmu-server"))
            .args(["run", "--config", config.to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        let started = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("it did not start: {seen}"))
                .unwrap();
            seen.push_str(&line);
            let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if line["control_address"].is_string() {
                break line;
            }
        };
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        let address = |key: &str| started[key].as_str().unwrap().to_owned();
        Self {
            child,
            control: address("control_address"),
            metrics: address("metrics_address"),
        }
    }

    fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }

    fn exit_code(mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(site: &Site) -> std::path::PathBuf {
    let path = site.path("unit.toml");
    let config =
        site.config_text("medium = \"file\"\npath = \"pool\"") + "[log]\nformat = \"json\"\n";
    std::fs::write(&path, config).unwrap();
    path
}

fn http(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: unit\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_regions_come_back_after_sigterm_and_after_sigkill() {
    let site = Site::new();
    let pool = site.path("pool");
    let made = command(&[
        "init",
        "--pool",
        pool.to_str().unwrap(),
        "--medium",
        "file",
        "--size",
        "16MiB",
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(
        text(&made.stdout).contains("durable") && made.stderr.is_empty(),
        "no progress bar in a pipe"
    );
    let config = write_config(&site);
    let mut epoch = 0;
    let mut region = None;
    for (round, signal) in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT]
        .into_iter()
        .enumerate()
    {
        let process = Process::run(&config);
        let mut manager = site.peer_at(&process.control, "boss", Role::Manager).await;
        assert!(http(&process.metrics, "/healthz").1.contains("locked"));
        manager
            .admin
            .initialize(v1::InitializeRequest {})
            .await
            .unwrap();
        if region.is_none() {
            region = Some(
                manager
                    .append_region("log", vec![grant("alice", APPEND | READ)])
                    .await,
            );
        }
        let mut alice = site.peer_at(&process.control, "alice", Role::Client).await;
        let mut writer = alice.attach(primary("log")).await.unwrap();
        assert!(
            writer.epoch > epoch,
            "every primary has an epoch of its own"
        );
        epoch = writer.epoch;
        let before = region.as_ref().unwrap();
        let now = writer.opened.region.as_ref().unwrap();
        assert_eq!(
            (&now.region_id, now.virtual_address),
            (&before.region_id, before.virtual_address)
        );
        for earlier in 0..round {
            assert_eq!(
                writer.read(8192 + 16 * earlier as u64, 8).unwrap(),
                [earlier as u8 + 1; 8]
            );
        }
        let bytes = [round as u8 + 1; 8];
        assert_eq!(
            writer.write(8192 + 16 * round as u64, &bytes).unwrap(),
            CompletionStatus::Success
        );
        process.signal(signal);
        let expected = if signal == Signal::SIGKILL {
            None
        } else {
            Some(0)
        };
        assert_eq!(process.exit_code(), expected, "{signal}");
        assert!(writer.ends());
        let verified = command(&[
            "verify",
            "--pool",
            pool.to_str().unwrap(),
            "--medium",
            "file",
            "--json",
        ]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        let report: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
        assert_eq!(
            (report["damaged"].as_bool(), report["regions"].as_u64()),
            (Some(false), Some(1))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_are_served() {
    let site = Site::with_file_pool();
    let config = write_config(&site);
    let process = Process::run(&config);
    let (status, body) = http(&process.metrics, "/healthz");
    assert_eq!(
        (status.as_str(), body.trim()),
        ("HTTP/1.1 200 OK", "locked")
    );
    let mut manager = site.peer_at(&process.control, "boss", Role::Manager).await;
    let mut alice = site.peer_at(&process.control, "alice", Role::Client).await;
    alice.open(primary("log")).await.unwrap_err();
    manager
        .admin
        .initialize(v1::InitializeRequest {})
        .await
        .unwrap();
    manager
        .append_region("log", vec![grant("alice", APPEND)])
        .await;
    let _writer = alice.attach(primary("log")).await.unwrap();
    let (_, before) = http(&process.metrics, "/metrics");
    alice.fence("log").await.unwrap();
    assert_eq!(http(&process.metrics, "/healthz").1.trim(), "unlocked");
    let (status, after) = http(&process.metrics, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        "pmu_sessions{role=\"primary\"} 1",
        "pmu_data_connections{provider=\"soft-tcp\"} 1",
        "pmu_locked 0",
        "pmu_regions 1",
        "pmu_refused_requests_total{reason=\"LOCKED\"} 1",
        "pmu_pool_failed{pool=\"main\"} 0",
    ] {
        assert!(
            before.lines().any(|found| found == line),
            "{line} is missing:\n{before}"
        );
    }
    for line in [
        "pmu_sessions{role=\"primary\"} 0",
        "pmu_fences_total 1",
        "pmu_fence_duration_seconds_count 1",
    ] {
        assert!(
            after.lines().any(|found| found == line),
            "{line} is missing:\n{after}"
        );
    }
    for name in [
        "pmu_pool_free_bytes{pool=\"main\"}",
        "pmu_pool_length_bytes{pool=\"main\"} 16777216",
        "pmu_cpu_seconds ",
    ] {
        assert!(after.contains(name), "{name} is missing:\n{after}");
    }
    assert_eq!(http(&process.metrics, "/").0, "HTTP/1.1 404 Not Found");
    process.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(
        http(&process.metrics, "/healthz").1.trim(),
        "unlocked",
        "SIGHUP ends nothing"
    );
    process.signal(Signal::SIGTERM);
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn configuration_errors_are_found_before_anything_is_opened() {
    let site = Site::with_file_pool();
    let path = write_config(&site);
    let good = std::fs::read_to_string(&path).unwrap();
    let file = path.to_str().unwrap();
    let checked = command(&["check-config", "--config", file]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    for (from, to, expected) in [
        ("[control]", "[control]\nlisten_to = 1", "listen_to"),
        ("path = \"pool\"", "path = \"nowhere\"", "pool[0].path"),
        ("name = \"main\"", "name = \"a b\"", "pool[0].name"),
        ("[control]", "[control", "line"),
    ] {
        std::fs::write(&path, good.replace(from, to)).unwrap();
        for verb in ["check-config", "run"] {
            let failed = command(&[verb, "--config", file]);
            assert_eq!(failed.status.code(), Some(1));
            let error = text(&failed.stderr);
            assert!(
                error.contains(expected) && error.contains("unit.toml"),
                "{verb}: {error}"
            );
        }
    }
    assert!(!site.path("data.socket").exists(), "nothing was opened");
    // Relative to the file, wherever the process runs; and absolute in what clients are told.
    let moved = good.replace(site.path("data.socket").to_str().unwrap(), "data.socket");
    std::fs::write(&path, moved).unwrap();
    let relative = Command::new(env!("CARGO_BIN_EXE_pmu-server"))
        .args(["check-config", "--config", "unit.toml"])
        .current_dir(site.directory.path())
        .output()
        .unwrap();
    assert!(relative.status.success(), "{}", text(&relative.stderr));
    let config = Config::load(&path).unwrap();
    assert_eq!(config.data[1].path, Some(site.path("data.socket")));
    assert_eq!(command(&["run", "--nothing"]).status.code(), Some(2));
}

#[test]
fn a_pool_is_not_overwritten_by_mistake() {
    let site = Site::with_file_pool();
    let pool = site.path("pool");
    let arguments = [
        "init",
        "--pool",
        pool.to_str().unwrap(),
        "--medium",
        "file",
        "--size",
        "16MiB",
    ];
    let refused = command(&arguments);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("holds a pool already"),
        "{}",
        text(&refused.stderr)
    );
    assert!(
        command(&[&arguments[..], &["--force"]].concat())
            .status
            .success()
    );
    // Damage of one copy is found, and exits with a code of its own.
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(&pool).unwrap();
    file.write_all_at(&[0xff; 8], 4096).unwrap();
    let verified = command(&[
        "verify",
        "--pool",
        pool.to_str().unwrap(),
        "--medium",
        "file",
    ]);
    assert_eq!(
        verified.status.code(),
        Some(3),
        "{}",
        text(&verified.stdout)
    );
    assert!(
        text(&verified.stdout).contains("superblock"),
        "{}",
        text(&verified.stdout)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_is_named_with_its_key() {
    let site = Site::with_file_pool();
    let unit = Unit::start(site.config()).await.unwrap();
    let start = async |change: &dyn Fn(&mut Config)| {
        let mut config = site.memory_config();
        config.data[1].path = Some(site.path("other.socket"));
        change(&mut config);
        Unit::start(config).await.unwrap_err().to_string()
    };
    let taken = unit.control_address();
    let error = start(&|config| config.control.listen = taken).await;
    assert!(
        error.contains("control.listen") && error.contains(&taken.to_string()),
        "{error}"
    );
    let metrics = unit.metrics_address().unwrap();
    let error = start(&|config| config.metrics.as_mut().unwrap().listen = metrics).await;
    assert!(
        error.contains("metrics.listen") && error.contains("in use"),
        "{error}"
    );
    let data = unit.data_addresses()[0].1.clone();
    let error = start(&|config| config.data[0].listen = Some(data.parse().unwrap())).await;
    assert!(
        error.contains("data[0].listen") && error.contains(&data),
        "{error}"
    );
    let socket = site.path("data.socket");
    let error = start(&|config| config.data[1].path = Some(socket.clone())).await;
    assert!(
        error.contains("data[1].path") && error.contains("data.socket"),
        "{error}"
    );
    let pool = site.path("pool");
    let error = start(&|config| {
        config.pool[0].medium = pmu_format::Medium::File;
        config.pool[0].size = None;
        config.pool[0].path = Some(pool.clone());
    })
    .await;
    assert!(
        error.contains("pool[0]") && error.contains("in use"),
        "{error}"
    );
    let error = start(&|config| config.unit.identity = site.path("ca")).await;
    assert!(error.contains("unit.identity"), "{error}");
    unit.stop().await;
    // After a clean stop everything can be had again.
    Unit::start(site.config()).await.unwrap().stop().await;
}

#[test]
fn the_service_manager_is_told() {
    let site = Site::with_file_pool();
    let config = write_config(&site);
    let socket = site.path("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pmu-server"))
        .args(["run", "--config", config.to_str().unwrap()])
        .env("NOTIFY_SOCKET", &socket)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = || {
        let mut bytes = [0; 64];
        let length = manager.recv(&mut bytes).unwrap();
        text(&bytes[..length])
    };
    assert_eq!(told(), "READY=1");
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let site = Site::with_file_pool();
    let process = Process::run(&write_config(&site));
    // Both are there when the process looks again, so that the clean stop can't be over before the second.
    for signal in [
        Signal::SIGSTOP,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGCONT,
    ] {
        process.signal(signal);
    }
    assert_eq!(process.exit_code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_does_not_wait_for_those_who_wait() {
    let site = Site::with_file_pool();
    let process = Process::run(&write_config(&site));
    let mut manager = site.peer_at(&process.control, "boss", Role::Manager).await;
    manager
        .admin
        .initialize(v1::InitializeRequest {})
        .await
        .unwrap();
    manager
        .append_region("log", vec![grant("alice", APPEND)])
        .await;
    let mut alice = site.peer_at(&process.control, "alice", Role::Client).await;
    let opened = alice.open(primary("log")).await.unwrap();
    let waiting = tokio::spawn(async move { alice.activate(opened.session_id, 0).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    process.signal(Signal::SIGTERM);
    refused(waiting.await.unwrap(), v1::Reason::Stopping);
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn d08_a_distributor_is_a_process_of_its_own() {
    let site = Site::new();
    site.identity("distributor", Role::Client)
        .save(&site.path("acts-as"))
        .unwrap();
    let path = site.path("distributor.toml");
    let text = format!(
        "[unit]\nname = \"unit-1\"\nidentity = {:?}\n[control]\nlisten = \"127.0.0.1:0\"\n\
         [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:0\"\n\
         [metrics]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n\
         [distributor]\nidentity = \"acts-as\"\nunits = [\"127.0.0.1:9\"]\n\
         [[distributor.region]]\nname = \"state\"\nprincipals = [\"app\"]\n",
        site.path("unit"),
    );
    std::fs::write(&path, &text).unwrap();
    let file = path.to_str().unwrap();
    let checked = command(&["check-config", "--config", file]);
    assert!(checked.status.success(), "{}", text_of(&checked));
    assert!(text_of(&checked).contains("distributor unit-1, good"));
    let refused = command(&["run", "--config", file]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text_of(&refused).contains("pmu-server distribute"));

    let mut child = Command::new(env!("CARGO_BIN_EXE_pmu-server"))
        .args(["distribute", "--config", file])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = lines.find(|line| line.as_ref().unwrap().contains("distributor started"));
    assert!(started.is_some());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    // A certificate that may not act as a client is found at the start.
    std::fs::write(&path, text.replace("\"acts-as\"", "\"unit\"")).unwrap();
    let refused = command(&["distribute", "--config", file]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text_of(&refused).contains("issue one of the role client"),
        "{}",
        text_of(&refused)
    );
    std::fs::write(&path, text.replace("\"acts-as\"", "\"nowhere\"")).unwrap();
    let checked = command(&["check-config", "--config", file]);
    assert!(text_of(&checked).contains("distributor.identity"));
}

fn text_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
