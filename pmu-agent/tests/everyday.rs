//! What agents do beside failovers, and with programs that know nothing of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use support::agents::{A, Agents, B, example, free_port, wait_until};

fn number(agents: &Agents, file: &str) -> Option<u64> {
    let text = std::fs::read_to_string(agents.path(file)).ok()?;
    text.parse().ok()
}

/// Counts in a file, of which a command makes snapshots. It has neither a log nor a beat.
fn unmodified() -> Agents {
    let mut agents = Agents::new(4096);
    let directory = agents.path("").display().to_string();
    agents.regions = "sets = \"state\"\nbeat = \"none\"".into();
    agents.command = Some(vec![example("plain"), "work".into(), directory.clone()]);
    agents.program = format!(
        "speaks = false\nhealth = [\"/usr/bin/test\", \"-e\", {:?}]\nhealth_every_ms = 50",
        agents.path("count")
    );
    // Either agent's snapshots, with the first one's identity: as an operator's script would have it.
    let store = [
        example("plain"),
        "store".into(),
        agents.site.address(),
        agents.path("app").display().to_string(),
        directory,
    ];
    agents.more = format!("[snapshot]\nevery_ms = 100\ncommand = {store:?}\n");
    agents
}

#[test]
fn s05_a_program_without_the_library_is_kept_by_commands_alone() {
    let mut agents = unmodified();
    agents.start(A, "primary", &[]);
    let before = agents.wait_for(A, "primary");
    agents.start(B, "standby", &[]);
    wait_until("the standby holds a snapshot", || {
        let status = agents.status(B);
        status.is_some_and(|status| {
            status.newest_set > 1 && status.lag_sets == 0 && status.peer.is_some()
        })
    });
    let report = agents.status(A).unwrap().snapshot.unwrap();
    assert!(report.error.is_none() && report.took_us > 0, "{report:?}");
    let stored = number(&agents, "stored").unwrap();
    assert!(stored > 0);
    std::fs::remove_file(agents.path("began")).unwrap();
    agents.signal(before.pid.unwrap(), Signal::KILL);
    let after = agents.wait_for(B, "primary");
    assert_ne!(after.pid, before.pid);
    let began = number(&agents, "began").unwrap();
    assert!(began >= stored, "began with {began}, {stored} were stored");
    agents.wait_for(A, "standby");
    // Nobody says stop to it: it is ended with SIGTERM.
    assert!(agents.ask(B, &["stop"]).status.success());
    assert_eq!(agents.exit_code(B), Some(0));
    let gone = format!("/proc/{}", after.pid.unwrap());
    assert!(!std::path::Path::new(&gone).exists());
}

#[test]
fn s10_what_a_wrapper_has_started_ends_with_it() {
    let mut agents = unmodified();
    let command = format!(
        "{} work {}; exit 3",
        example("plain"),
        agents.path("").display()
    );
    agents.command = Some(vec!["/bin/sh".into(), "-c".into(), command]);
    agents.start(A, "primary", &[]);
    agents.wait_for(A, "primary");
    let goes_on = || {
        let before = number(&agents, "count").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        number(&agents, "count").unwrap() > before
    };
    assert!(goes_on());
    assert!(agents.ask(A, &["demote"]).status.success());
    assert!(!goes_on(), "it was demoted");
    assert!(agents.ask(A, &["promote"]).status.success());
    assert!(goes_on());
    // The wrapper alone is killed.
    agents.signal(agents.pid(A), Signal::KILL);
    wait_until("its end is seen", || {
        agents.log(A).contains("ERROR the program has ended")
    });
    assert!(!goes_on(), "its wrapper is gone");
}

#[test]
fn s04_a_snapshot_command_that_fails_is_said_and_tried_again() {
    let mut agents = unmodified();
    agents.start(A, "primary", &[]);
    agents.wait_for(A, "primary");
    let failed = || {
        let last = agents.status(A).and_then(|status| status.snapshot);
        last.is_some_and(|last| last.error.is_some())
    };
    wait_until("a snapshot is made", || number(&agents, "stored").is_some());
    std::fs::rename(agents.path("app"), agents.path("away")).unwrap();
    wait_until("a snapshot fails", failed);
    assert!(agents.log(A).contains("the snapshot command failed"));
    std::fs::rename(agents.path("away"), agents.path("app")).unwrap();
    wait_until("the next ones are made", || !failed());
    assert_eq!(agents.status(A).unwrap().role.to_string(), "primary");
}

#[test]
fn s05_a_program_whose_health_command_fails_is_relieved() {
    let mut agents = Agents::new(4096);
    agents.program = format!(
        "health = [\"/usr/bin/test\", \"!\", \"-e\", {:?}]\nhealth_every_ms = 50",
        agents.path("sick")
    );
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    // It works and beats all the time.
    std::fs::write(agents.path("sick"), "").unwrap();
    wait_until("its agent says so", || {
        let log = agents.log(A);
        log.contains("the program hangs: its health command fails")
    });
    std::fs::remove_file(agents.path("sick")).unwrap();
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    agents.wait_for(A, "standby");
    agents.check();
}

/// The value of a metric without labels, as a scraper reads it.
fn scrape(port: u16, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut lines = answer.lines();
    let line = lines.find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}

#[test]
fn s05_metrics_say_what_status_says() {
    let mut agents = Agents::new(4096);
    let ports = [free_port(), free_port()];
    agents.metrics = Some(ports);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    let is = |which: usize, name: &str, value: f64| scrape(ports[which], name) == Some(value);
    wait_until("each says its role", || {
        is(A, "pmu_agent_primary", 1.0) && is(B, "pmu_agent_primary", 0.0)
    });
    assert!(is(A, "pmu_agent_epoch", before.epoch as f64));
    wait_until("a pause is shown", || {
        scrape(ports[A], "pmu_agent_snapshot_pause_seconds").is_some_and(|pause| pause > 0.0)
    });
    assert!(is(A, "pmu_agent_snapshot_failed", 0.0));
    assert!(scrape(ports[B], "pmu_agent_since_beat_seconds").is_some_and(|since| since < 10.0));
    assert!(scrape(ports[B], "pmu_agent_lag_sets").is_some());
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    let after = agents.wait_for(B, "primary");
    wait_until("the takeover is shown", || {
        is(B, "pmu_agent_primary", 1.0)
            && is(A, "pmu_agent_primary", 0.0)
            && is(B, "pmu_agent_takeovers", 1.0)
            && is(B, "pmu_agent_epoch", after.epoch as f64)
    });
    let fence_s = after.fence_us.unwrap() as f64 / 1e6;
    assert!(is(B, "pmu_agent_fence_seconds", fence_s));
    agents.check();
}
