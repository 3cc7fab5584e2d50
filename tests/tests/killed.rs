//! Programs that die in the middle, as processes: whatever was receipted is there for the one who takes over.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

// The client library's own site: an authority and a real unit in this process, reached through real TLS.
#[path = "../../pmu-client/tests/support/mod.rs"]
mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pmu_auth::Role;
use support::{Pool, Site};

const LOG_BYTES: u64 = 2 << 20;

fn site() -> Site {
    let mut site = Site::new(Pool::File, 32 << 20);
    site.log("log", LOG_BYTES);
    site.sets("sets", 3, 1 << 20);
    for who in ["app", "backup"] {
        let identity = site.identity(who, Role::Client);
        identity.save(&site.path(who)).unwrap();
    }
    site
}

fn witness(site: &Site, who: &str, command: &str) -> Command {
    let mut witness = Command::new(env!("CARGO_BIN_EXE_pmu-witness"));
    witness
        .args([command, "--unit", &site.address(), "--identity"])
        .arg(site.path(who))
        .args([
            "--log",
            "log",
            "--sets",
            "sets",
            "--seed",
            "5",
            "--provider",
            "soft-tcp",
        ]);
    witness
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn receipts_in(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).unwrap();
    text.matches(r#""kind":"log""#)
        .count()
        .min(10 * text.matches(r#""kind":"set""#).count())
}

/// Writes until some receipts are there, and dies by SIGKILL.
fn write_and_die(site: &Site, who: &str, life: u32) -> PathBuf {
    let receipts = site.path(&format!("receipts-{life}"));
    let output = File::create(&receipts).unwrap();
    let mut writer = witness(site, who, "write")
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while receipts_in(&receipts) < 20 + 7 * life as usize {
        assert!(Instant::now() < deadline, "no receipts");
        assert!(
            writer.try_wait().unwrap().is_none(),
            "the writer ended by itself"
        );
        std::thread::sleep(Duration::from_millis(3));
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    receipts
}

#[test]
fn p04_p14_a_primary_killed_in_the_middle_leaves_every_receipt_to_its_backup() {
    let site = site();
    let mut receipts = Vec::new();
    for life in 0..4 {
        receipts.push(write_and_die(&site, "app", life));
        let heir = site.path(&format!("heir-{life}"));
        let output = run(witness(&site, "backup", "take-over")
            .args(["--steps", "5", "--commits", "2", "--receipts"])
            .args(&receipts));
        std::fs::write(&heir, output.stdout).unwrap();
        receipts.push(heir);
        run(witness(&site, "backup", "check")
            .arg("--receipts")
            .args(&receipts));
    }
}

#[test]
fn p10_a_unit_that_starts_again_has_every_receipt_of_a_primary_that_was_killed() {
    let mut site = site();
    let mut receipts = Vec::new();
    for life in 0..2 {
        receipts.push(write_and_die(&site, "app", life));
        site.stop();
        site.start(0);
        site.unlock();
        run(witness(&site, "backup", "check")
            .arg("--receipts")
            .args(&receipts));
    }
}

#[test]
fn b01_a_broken_promise_is_an_exit_status() {
    let site = site();
    let receipts = write_and_die(&site, "app", 0);
    let text = std::fs::read_to_string(&receipts).unwrap();
    let invented = site.path("invented");
    std::fs::write(
        &invented,
        text.replace(r#""kind":"set","number":"#, r#""kind":"set","number":9"#),
    )
    .unwrap();
    let output = witness(&site, "backup", "check")
        .arg("--receipts")
        .arg(&invented)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn p11_a_checkpoint_of_no_bytes_is_a_set_like_any_other() {
    let mut site = site();
    let options = support::over(pmu_client::Provider::SoftTcp);
    let mut primary = site
        .client("app")
        .open_sets_primary("sets", &options)
        .unwrap();
    let receipt = primary.commit(&[], pmu_client::Label::default()).unwrap();
    assert!(receipt.is_durable() && receipt.bytes == 0, "{receipt}");
    drop(primary);
    site.stop();
    site.start(0);
    site.unlock();
    let mut reader = site
        .client("backup")
        .open_sets_backup("sets", &options)
        .unwrap();
    let (read, bytes) = reader.read_to_vec(pmu_client::SetChoice::Newest).unwrap();
    assert_eq!((read.set.number.get(), bytes.len()), (1, 0));
}
