//! `pmu put --distributor` as a process, against real units and a distributor in this one.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pmu_auth::Role;
use serde_json::Value;
use support::pattern;
use units::Units;

fn command(units: &Units, who: &str, line: &str) -> Command {
    let directory = units.path(&format!("identity-{who}"));
    if !directory.exists() {
        units.identity(who, Role::Client).save(&directory).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_pmu"));
    command
        .args(line.split(' '))
        .env("PMU_UNIT", units.addresses.join(","))
        .env("PMU_IDENTITY", &directory)
        .env_remove("PMU_LOG")
        .env_remove("PMU_DISTRIBUTOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(units: &Units, who: &str, line: &str) -> Output {
    command(units, who, line).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(output: &Output, code: i32, text: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(text), "{said}");
}

#[test]
fn d08_put_by_way_of_a_unit_or_a_process_and_get_it_back() {
    let mut units = Units::new(4, 24 << 20);
    units.distribute("");
    units.spread("state", "parity:3+1", 3, 3 << 20);
    let bytes = pattern(2_345_678, 1);
    let file = units.path("in");
    std::fs::write(&file, &bytes).unwrap();
    let file = file.display();
    let direct = json(&run(&units, "app", &format!("put state {file} --json")));
    let line = format!("put state {file} --label x --distributor unit:unit-3 --json");
    let through = json(&run(&units, "app", &line));
    for same in [
        "region", "bytes", "durable", "units", "units_of", "layout", "missing", "provider",
    ] {
        assert_eq!(direct[same], through[same], "{same}");
    }
    assert_eq!(through["distributor"], "unit-3");
    assert_eq!(
        (&through["set"], &through["label"]),
        (&2.into(), &"x".into())
    );
    let got = run(&units, "app", "get state");
    assert!(got.status.success() && got.stdout == bytes);

    let (runtime, process) =
        units.process("[[distributor.region]]\nname = \"state\"\nprincipals = [\"guest\"]\n");
    let place = format!("process:{}", process.control_address());
    let other = pattern(1_234_567, 2);
    std::fs::write(units.path("in"), &other).unwrap();
    let mut guest = command(&units, "guest", &format!("put state {file} --json"));
    // It needs no unit at all.
    guest.env_remove("PMU_UNIT").env("PMU_DISTRIBUTOR", &place);
    assert_eq!(json(&guest.output().unwrap())["set"], 3);
    let got = run(&units, "app", "get state");
    assert!(got.status.success() && got.stdout == other);
    let line = format!("put state {file} --distributor {place}");
    refused(&run(&units, "app", &line), 3, "is not among those");
    runtime.block_on(process.stop());
    refused(&run(&units, "app", &line), 6, "can't be reached");
    let line = format!("put state {file} --distributor unit:unit-9");
    refused(&run(&units, "app", &line), 2, "members: unit-1, unit-2");
}

#[test]
fn d08_a_program_that_is_killed_in_the_middle_leaves_the_last_set() {
    let mut units = Units::new(3, 24 << 20);
    units.distribute("staging = \"1MiB\"");
    units.spread("state", "parity:2+1", 2, 3 << 20);
    let bytes = pattern(500_000, 1);
    let put = |bytes: &[u8], wait: bool| {
        let mut child = command(&units, "app", "put state - --distributor unit:unit-1")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(bytes).unwrap();
        if wait {
            drop(input);
            let output = child.wait_with_output().unwrap();
            return output.status.success();
        }
        // Until the distributor has some of it: the region is held.
        let until = Instant::now() + Duration::from_secs(20);
        let held = "put state /dev/null --distributor unit:unit-1";
        while run(&units, "app", held).status.success() {
            assert!(Instant::now() < until, "the set never began");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        true
    };
    assert!(put(&bytes, true));
    assert!(put(&pattern(2_000_000, 2), false));
    // The distributor notices, gives the set up and lets the region go.
    let until = Instant::now() + Duration::from_secs(20);
    let third = pattern(700_000, 3);
    let newest = run(&units, "app", "get state");
    assert!(newest.status.success());
    assert!(newest.stdout == bytes || newest.stdout.is_empty());
    while !put(&third, true) {
        assert!(Instant::now() < until, "the region stays held");
    }
    assert!(run(&units, "app", "get state").stdout == third);
}

fn four_with_a_log() -> Units {
    let mut units = Units::new(4, 24 << 20);
    units.distribute("");
    units.spread_log("log", "parity:3+1", 3, 1 << 20);
    units
}

fn give(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn d08_append_by_way_of_a_unit_or_a_process_and_read_it_with_a_unit_down() {
    let mut units = four_with_a_log();
    let lines = |from: usize| -> String {
        (from..from + 500)
            .map(|line| format!("line {line} {}\n", "x".repeat(line % 97)))
            .collect()
    };
    let direct = give(
        command(&units, "app", "append log --json"),
        lines(0).as_bytes(),
    );
    let direct = json(&direct);
    let line = "append log --distributor unit:unit-3 --json";
    let through = json(&give(command(&units, "app", line), lines(500).as_bytes()));
    for same in [
        "region", "records", "durable", "units", "units_of", "missing", "provider",
    ] {
        assert_eq!(direct[same], through[same], "{same}");
    }
    assert_eq!(direct["log_to"], through["log_from"]);
    assert_eq!(
        (&direct["distributor"], &through["distributor"]),
        (&Value::Null, &"unit-3".into())
    );
    let (runtime, process) =
        units.process("[[distributor.region]]\nname = \"log\"\nprincipals = [\"guest\"]\n");
    let place = format!("process:{}", process.control_address());
    let mut guest = command(&units, "guest", "append log --provider soft-tcp -v");
    // It needs no unit at all.
    guest.env_remove("PMU_UNIT").env("PMU_DISTRIBUTOR", &place);
    let output = give(guest, lines(1000).as_bytes());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success()
            && said.contains("500 records in")
            && said.contains("distributed by spreader; 4 of 4 units"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("log over soft-tcp"));
    let nothing = format!("append log /dev/null --distributor {place}");
    let nothing = run(&units, "guest", &nothing);
    assert!(
        nothing.status.success() && String::from_utf8_lossy(&nothing.stdout).contains("0 records")
    );
    units.stop(1);
    let tail = run(&units, "app", "tail log");
    assert!(tail.status.success());
    let expected = lines(0) + &lines(500) + &lines(1000);
    assert!(String::from_utf8_lossy(&tail.stdout) == expected);
    runtime.block_on(process.stop());
}

#[test]
fn d08_what_a_newcomer_gets_wrong_is_said_with_its_exit_code() {
    let mut units = Units::new(4, 24 << 20);
    units.spread_log("log", "parity:3+1", 3, 1 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let file = units.path("in");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let file = file.display().to_string();
    let each = |units: &Units, who: &str, place: &str, code: i32, text: &str| {
        for line in [
            format!("put state {file} --distributor {place}"),
            format!("append log {file} --distributor {place}"),
        ] {
            refused(&run(units, who, &line), code, text);
        }
    };
    for place in [
        "unit-1",
        "unit:",
        "127.0.0.1:7400",
        "process:7400",
        "process:host:0",
    ] {
        each(&units, "app", place, 2, "--distributor <PLACE>");
    }
    each(&units, "app", "unit-1", 2, "expected unit:NAME");
    each(
        &units,
        "app",
        "unit:unit-9",
        2,
        "members: unit-1, unit-2, unit-3, unit-4",
    );
    each(&units, "app", "process:127.0.0.1:9", 6, "can't be reached");
    each(
        &units,
        "app",
        "unit:unit-1",
        1,
        "not configured to distribute",
    );
    // A unit is no process: it does not distribute either.
    let unit = format!("process:{}", units.addresses[0]);
    each(&units, "app", &unit, 1, "NO_DISTRIBUTOR");
    units.distribute("");
    each(&units, "stranger", "unit:unit-1", 3, "pmm region grant");
    let wrong = format!("append state {file} --distributor unit:unit-1");
    refused(
        &run(&units, "app", &wrong),
        1,
        "in overwrite mode, not in append mode",
    );
    let wrong = format!("put log {file} --distributor unit:unit-1");
    refused(
        &run(&units, "app", &wrong),
        1,
        "in append mode, not in overwrite mode",
    );
    for index in 0..4 {
        units.revoke(index, "log", "distributor");
        units.revoke(index, "state", "distributor");
    }
    each(&units, "app", "unit:unit-1", 3, "distributor");
    // Nothing of all that was stored.
    assert!(run(&units, "app", "tail log").stdout.is_empty());
    refused(&run(&units, "app", "get state"), 4, "holds no");
}

/// An `append` that is under way: what it was given so far is with the distributor.
fn begin_append(units: &Units, place: &str) -> std::process::Child {
    let line = format!("append log --distributor {place}");
    let mut child = command(units, "app", &line)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"first\nsecond\n")
        .unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while run(units, "app", "tail log").stdout != b"first\nsecond\n" {
        assert!(Instant::now() < until, "the records never came");
    }
    child
}

#[test]
fn d08_ctrl_c_and_a_distributor_that_is_lost_are_told_apart() {
    let units = four_with_a_log();
    let mut child = begin_append(&units, "unit:unit-2");
    // Its input goes on.
    let input = child.stdin.take();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    refused(&output, 130, "2 records were acknowledged before");
    assert_eq!(run(&units, "app", "tail log").stdout, b"first\nsecond\n");
    assert!(run(&units, "app", "clear log --all --yes").status.success());

    let (runtime, process) =
        units.process("[[distributor.region]]\nname = \"log\"\nprincipals = [\"app\"]\n");
    let place = format!("process:{}", process.control_address());
    let mut child = begin_append(&units, &place);
    let input = child.stdin.take();
    runtime.shutdown_background();
    drop(process);
    // All that it had is acknowledged: nothing is in doubt.
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(input);
    refused(&output, 6, "2 records were acknowledged before");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("distributor spreader"), "{said}");
    assert_eq!(run(&units, "app", "tail log").stdout, b"first\nsecond\n");
}
