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
