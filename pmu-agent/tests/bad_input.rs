//! Configurations that can't work are refused as a whole, before anything is opened.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

use std::process::{Command, Output};

const GOOD: &str = "identity = \"/i\"\nunits = [\"u:1\"]\nsocket = \"/s\"\nlisten = \"127.0.0.1:1\"\n\
                    [peer]\nname = \"b\"\naddress = \"b:1\"\n[regions]\nlog = \"l\"\nsets = \"s\"\n[program]\ncommand = [\"/p\"]\n";

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pmu-agent"))
        .args(arguments)
        .output()
        .unwrap()
}

fn check(text: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    let output = agent(&["check-config", "--config", path.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

#[test]
fn s05_a_good_configuration_is_good() {
    assert_eq!(check(GOOD), (Some(0), String::new()));
}

#[test]
fn s05_configurations_that_cannot_work_are_refused_by_name() {
    for (from, to, word) in [
        ("[\"u:1\"]", "[]", "units"),
        ("socket", "sockets", "sockets"),
        ("log = \"l\"", "log = \"a b\"", "regions.log"),
        ("log = \"l\"\nsets = \"s\"", "", "regions"),
        ("log = \"l\"", "beat = \"log\"", "regions.beat"),
        ("[\"/p\"]", "[]", "program.command"),
        ("[\"/p\"]", "[\"/p\"]\nstart_attempts = 0", "start_attempts"),
        ("[\"/p\"]", "[\"/p\"]\nspeaks = false", "regions.beat"),
        ("[\"/p\"]", "[\"/p\"]\n[watch]\nintervals = 1", "intervals"),
        (
            "[\"/p\"]",
            "[\"/p\"]\n[snapshot]\nevery_ms = 0",
            "snapshot.every_ms",
        ),
        ("[\"/p\"]", "[\"/p\"]\n[follow]\nevery_ms = 0", "follow"),
        ("listen = \"127.0.0.1:1\"\n", "", "listen"),
        ("name = \"b\"", "name = \"-\"", "peer.name"),
        ("socket", "transport = \"smoke\"\nsocket", "transport"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let (code, said) = check(&text);
        assert_eq!(code, Some(1), "{to}: {said}");
        assert!(said.contains(word), "{to}: {said}");
    }
}

#[test]
fn s05_arguments_that_cannot_work_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    std::fs::write(&path, GOOD).unwrap();
    let config = path.to_str().unwrap();
    let output = agent(&[
        "run", "--role", "standby", "--adopt", "77", "--config", config,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("--role primary")
    );
    assert_eq!(
        agent(&["run", "--role", "king", "--config", config])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(agent(&["status"]).status.code(), Some(2));
    let nobody = agent(&["status", "--socket", "/nowhere"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8(nobody.stderr)
            .unwrap()
            .contains("/nowhere")
    );
}
