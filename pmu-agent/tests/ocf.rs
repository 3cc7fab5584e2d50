//! The OCF resource agent under Debian's ocf-tester, and the unit of systemd under its verifier. They must be installed (Debian: resource-agents, systemd),
//! and libxml2-utils with them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use std::path::Path;
use std::process::Command;

use support::agents::{A, Agents};

#[test]
fn s05_the_resource_agent_passes_ocf_tester() {
    let mut agents = Agents::new(4096);
    agents.watch.push_str("\nautomatic = false");
    let config = agents.config(A);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("ocf-tester")
        .args(["-v", "-n", "pmu-agent"])
        .args(["-o", &format!("config={}", config.display())])
        .args(["-o", &format!("binary={}", env!("CARGO_BIN_EXE_pmu-agent"))])
        .args([
            "-o",
            &format!("socket={}", agents.path("app.socket").display()),
        ])
        .args(["-o", &format!("log={}", agents.path("ocf.log").display())])
        .arg(root.join("packaging/ocf/pmu-agent"))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("OCF_ROOT", "/usr/lib/ocf")
        .output()
        .expect("ocf-tester is not installed: apt-get install resource-agents");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let log = std::fs::read_to_string(agents.path("ocf.log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{log}");
    assert!(said.contains("passed all tests"), "{said}\n{log}");
    // It was promoted on the way, so that the program has worked.
    assert!(agents.acknowledged() > 0, "{said}\n{log}");
    assert!(agents.status(A).is_none(), "it was stopped at the end");
}

const SUCCESS: i32 = 0;
const GENERIC: i32 = 1;
const INSTALLED: i32 = 5;
const NOT_RUNNING: i32 = 7;
const RUNNING_PROMOTED: i32 = 8;

/// One action of the resource agent; its exit code.
fn ocf(agents: &Agents, binary: &str, action: &str) -> i32 {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(root.join("packaging/ocf/pmu-agent"))
        .arg(action)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("OCF_ROOT", "/usr/lib/ocf")
        .env("OCF_RESOURCE_INSTANCE", "pmu-agent")
        .env("OCF_RESKEY_config", agents.path("app.toml"))
        .env("OCF_RESKEY_socket", agents.path("app.socket"))
        .env("OCF_RESKEY_log", agents.path("ocf.log"))
        .env("OCF_RESKEY_binary", binary)
        .output()
        .unwrap();
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

#[test]
fn s05_whatever_becomes_of_its_configuration_a_running_agent_is_seen_and_stopped() {
    let mut agents = Agents::new(4096);
    agents.watch.push_str("\nautomatic = false");
    let config = agents.config(A);
    let good = std::fs::read_to_string(&config).unwrap();
    let built = env!("CARGO_BIN_EXE_pmu-agent");
    assert_eq!(ocf(&agents, built, "monitor"), NOT_RUNNING);
    assert_eq!(ocf(&agents, built, "start"), SUCCESS);
    assert_eq!(ocf(&agents, built, "promote"), SUCCESS);
    let pid = agents.pid(A);
    let lives = || Path::new(&format!("/proc/{pid}")).exists();
    std::fs::write(&config, format!("{good}\nunits = oops")).unwrap();
    assert_eq!(ocf(&agents, built, "monitor"), RUNNING_PROMOTED);
    // What can't be asked is not said to be stopped.
    assert_eq!(ocf(&agents, "/nowhere/pmu-agent", "stop"), GENERIC);
    assert_eq!(ocf(&agents, "/nowhere/pmu-agent", "monitor"), GENERIC);
    assert!(lives(), "it leads");
    assert_eq!(ocf(&agents, built, "stop"), SUCCESS);
    assert!(!lives(), "its program was left behind");
    assert_eq!(ocf(&agents, built, "monitor"), NOT_RUNNING);
    // It is no error for the whole cluster.
    assert_eq!(ocf(&agents, built, "start"), INSTALLED);
    std::fs::write(&config, good.replace("app.socket", "other.socket")).unwrap();
    assert_eq!(ocf(&agents, built, "start"), INSTALLED);
    // Where there is nothing, nothing runs.
    assert_eq!(ocf(&agents, "/nowhere/pmu-agent", "stop"), SUCCESS);
}

/// Has an agent lead, and its program work; gives the program's process id after the agent was sent a signal.
fn lead_and_signal(agents: &Agents, signal: &str) -> u32 {
    let built = env!("CARGO_BIN_EXE_pmu-agent");
    assert_eq!(ocf(agents, built, "start"), SUCCESS);
    assert_eq!(ocf(agents, built, "promote"), SUCCESS);
    let program = agents.pid(A);
    let stat = std::fs::read_to_string(format!("/proc/{program}/stat")).unwrap();
    let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1);
    let sent = Command::new("kill")
        .args([signal, parent.unwrap()])
        .status();
    assert!(sent.unwrap().success());
    program
}

/// Whether a process runs. Nobody may be there who reaps it.
fn runs(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| !all.is_empty())
}

#[test]
fn s05_a_program_that_an_agent_left_behind_is_seen_and_ended() {
    let mut agents = Agents::new(4096);
    agents.watch.push_str("\nautomatic = false");
    drop(agents.config(A));
    let built = env!("CARGO_BIN_EXE_pmu-agent");
    for stopped_by in [built, "/nowhere/pmu-agent"] {
        let program = lead_and_signal(&agents, "-KILL");
        // It runs on, and may still lead: that is no stopped resource.
        assert_eq!(ocf(&agents, built, "monitor"), GENERIC);
        assert!(runs(program));
        assert_eq!(ocf(&agents, built, "start"), GENERIC);
        assert_eq!(ocf(&agents, stopped_by, "stop"), SUCCESS);
        assert!(!runs(program), "its program was left behind");
        assert_eq!(ocf(&agents, built, "monitor"), NOT_RUNNING);
    }
}

#[test]
fn s05_an_agent_that_hangs_is_seen_and_ended_with_its_program() {
    let mut agents = Agents::new(4096);
    agents.watch.push_str("\nautomatic = false");
    drop(agents.config(A));
    let built = env!("CARGO_BIN_EXE_pmu-agent");
    let program = lead_and_signal(&agents, "-STOP");
    // Neither waits for it for good.
    assert_eq!(ocf(&agents, built, "monitor"), GENERIC);
    assert!(runs(program));
    assert_eq!(ocf(&agents, built, "stop"), SUCCESS);
    assert!(!runs(program));
    assert_eq!(ocf(&agents, built, "monitor"), NOT_RUNNING);
}

#[test]
fn s05_the_unit_of_systemd_is_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("packaging/pmu-agent.service")).unwrap();
    // The commands must be there, and are as they were built.
    let built = text.replace("/usr/bin/pmu-agent", env!("CARGO_BIN_EXE_pmu-agent"));
    assert_ne!(text, built);
    let folder = tempfile::tempdir().unwrap();
    let verify = |text: &str| {
        let unit = folder.path().join("pmu-agent.service");
        std::fs::write(&unit, text).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(unit)
            .output()
            .expect("systemd-analyze is not installed: apt-get install systemd");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let (good, said) = verify(&built);
    assert!(good && !said.contains("pmu-agent.service"), "{said}");
    // A kill for want of memory is a failure of the program, and not a wish to stop.
    assert!(text.contains("\nOOMPolicy=continue\n"), "{text}");
    // The verifier finds what is wrong.
    let (_, said) = verify(&built.replace("KillMode=mixed", "KillMode=sometimes"));
    assert!(said.contains("pmu-agent.service"), "{said}");
}
