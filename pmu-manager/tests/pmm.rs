//! The command `pmm` as people and scripts run it, against a unit that only answers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[allow(unreachable_pub, reason = "a module of this test alone")]
mod unit;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pmu_auth::Identity;
use pmu_proto::v1;
use pmu_proto::v1::verify_pool_response::Step;
use serde_json::Value;
use tempfile::TempDir;
use unit::FakeUnit;

/// A site with an authority, a manager (alice), a client (trainer-7) and one unit.
struct Site {
    directory: TempDir,
    unit: FakeUnit,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let site = Self {
            directory,
            unit: FakeUnit::default(),
        };
        site.ok("ca init");
        site.ok("ca issue alice --role manager --out HOME/identity");
        site.ok("ca issue trainer-7 --role client --out HOME/trainer-7");
        site.ok("ca issue unit-1 --role unit --host 127.0.0.1 --out HOME/unit-1");
        let address = site
            .unit
            .serve(&Identity::load(&site.path("unit-1")).unwrap());
        site.ok(&format!("unit add unit-1 {address}"));
        site
    }

    fn unlocked() -> Self {
        let site = Self::new();
        site.ok("unit unlock unit-1");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs pmm; HOME in the line stands for the site's directory.
    fn run(&self, line: &str) -> Output {
        pmm(self.directory.path(), line)
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{line}: {errors}");
        assert_eq!(errors, "", "{line}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("--json {line}"))).unwrap()
    }

    /// The message of a command that must fail with this exit code.
    fn fails(&self, line: &str, exit: i32) -> String {
        let output = self.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{line}: {errors}");
        errors
    }
}

fn pmm(home: &Path, line: &str) -> Output {
    let line = line.replace("HOME", home.to_str().unwrap());
    Command::new(env!("CARGO_BIN_EXE_pmm"))
        .args(line.split_whitespace())
        .env("PMU_HOME", home)
        .env_remove("PMM_IDENTITY")
        .env_remove("PMU_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn p18_certificates_are_issued_once_and_revoked() {
    let site = Site::new();
    let error = site.fails("ca init", 1);
    assert!(error.contains("exists, and is not overwritten"), "{error}");
    let error = site.fails("ca issue alice --role manager --out HOME/identity", 1);
    assert!(error.contains("exists, and is not overwritten"), "{error}");
    let issued = site.json("ca issue bob --role client --days 3 --out HOME/bob");
    assert_eq!(issued["role"], "client");
    assert_eq!(issued["name"], "bob");
    assert!(issued["expires_at_s"].is_i64());

    let error = site.fails("ca revoke bob", 2);
    assert!(error.contains("--yes"), "{error}");
    let revoked = site.json("ca revoke bob --yes");
    assert_eq!(revoked["revoked"], 1);
    assert!(Path::new(revoked["list"].as_str().unwrap()).exists());
    site.fails("ca revoke nobody --yes", 1);
}

#[test]
fn p18_a_unit_is_locked_until_a_manager_unlocks_it() {
    let site = Site::new();
    let output = site.run("status");
    assert_eq!(output.status.code(), Some(6));
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.contains("locked"), "{page}");
    let error = site.fails("region list", 6);
    assert!(error.contains("pmm unit unlock"), "{error}");
    let error = site.fails("--identity HOME/trainer-7 unit unlock unit-1", 3);
    assert!(
        error.contains("trainer-7 (client) is no manager (WRONG_ROLE)"),
        "{error}"
    );

    assert_eq!(
        site.json("unit unlock unit-1")["units"][0]["was_unlocked"],
        false
    );
    assert_eq!(
        site.json("unit unlock unit-1")["units"][0]["was_unlocked"],
        true
    );
    let status = site.json("status");
    assert_eq!(status["units"][0]["state"], "ready");
    assert_eq!(status["units"][0]["free_bytes"], 1 << 29);
    assert_eq!(status["units"][0]["regions"], 1);
    let shown = site.json("unit show unit-1");
    assert_eq!(shown["pools"][0]["medium"], "fsdax");
    assert_eq!(
        shown["providers"][0]["persistence_methods"][0],
        "native-flush"
    );
    let page = site.ok("unit show unit-1");
    assert!(
        page.contains("1 min 1 s") && page.contains("Providers"),
        "{page}"
    );
}

#[test]
fn p18_without_an_identity_nothing_is_asked() {
    let site = Site::new();
    let error = site.fails("--identity HOME/nowhere status", 3);
    assert!(
        error.contains("pmm ca issue") && error.contains("nowhere"),
        "{error}"
    );
    std::fs::set_permissions(
        site.path("identity/key.pem"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let error = site.fails("status", 3);
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn p18_a_foreign_manager_is_refused() {
    let (site, other) = (Site::new(), Site::new());
    let foreign = other.path("identity");
    let error = site.fails(
        &format!("--identity {} unit show unit-1", foreign.display()),
        3,
    );
    assert!(error.contains("signed by another authority"), "{error}");
    let line = format!("--identity {} --json status", foreign.display());
    let output = site.run(&line);
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["units"][0]["state"], "failed");
}

#[test]
fn units_that_are_not_there() {
    let site = Site::new();
    let error = site.fails("unit show unit-9", 4);
    assert!(error.contains("known: unit-1"), "{error}");
    site.ok("unit add unit-9 127.0.0.1:1");
    let error = site.fails("unit show unit-9", 6);
    assert!(
        error.contains("127.0.0.1:1 can't be reached: Connection refused"),
        "{error}"
    );
    assert!(!error.contains("refused: Connection refused"), "{error}");
    let error = site.fails("region list --unit unit-9", 6);
    assert!(error.contains("can't be reached"), "{error}");
    // It may be on either of them.
    let error = site.fails("region show r", 6);
    assert!(error.contains("unit unit-1: locked"), "{error}");
    let output = site.run("status --json");
    assert_eq!(output.status.code(), Some(6));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["units"][1]["state"], "unavailable");
    assert_eq!(report["units"][0]["state"], "locked");
    site.ok("unit remove unit-9");
    assert_eq!(site.json("unit list")["units"].as_array().unwrap().len(), 1);
    // The unit of another name answers at the address.
    let address = site.json("unit list")["units"][0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    site.ok(&format!("unit add unit-2 {address}"));
    let error = site.fails("unit show unit-2", 3);
    assert!(
        error.contains("belongs to unit-1, not to unit-2"),
        "{error}"
    );
}

#[test]
fn a_region_from_creation_to_deletion() {
    let site = Site::unlocked();
    let created = site.json(
        "region create job-1 --mode overwrite --capacity 4KiB --sets 3 \
         --grant trainer-7:read,write --grant spare:read",
    );
    assert_eq!(created["region"], "job-1");
    assert_eq!(created["sets_kept"], 3);
    assert_eq!(created["virtual_address"], "0x100000000");
    let asked = site.unit.0.lock().unwrap().regions["job-1"].clone();
    assert_eq!(
        asked.room,
        Some(v1::create_region_request::Room::CapacityBytes(4096))
    );
    assert_eq!(asked.need(), v1::Need::Durable);
    assert_eq!(
        asked.grants[0],
        v1::Grant {
            principal: "trainer-7".to_owned(),
            rights: 3
        }
    );

    let error = site.fails("region create job-1 --mode append --size 1MiB", 1);
    assert!(error.contains("job-1 exists (NAME_TAKEN)"), "{error}");
    assert!(site.ok("region list").contains("job-1   unit-1  overwrite"));
    let page = site.ok("region show job-1");
    assert!(page.contains("trainer-7  read,write"), "{page}");
    let changed = site.json("region grant job-1 spare:read,manage");
    assert_eq!(changed["grants"][0]["rights"][1], "manage");
    assert_eq!(changed["windows_invalidated"], 1);
    assert_eq!(
        site.json("region show job-1")["grants"][1]["rights"][1],
        "manage"
    );
    assert_eq!(
        site.json("region revoke job-1 spare")["windows_invalidated"],
        2
    );
    let error = site.fails("region revoke job-1 spare", 4);
    assert!(error.contains("NO_SUCH_GRANT"), "{error}");

    let output = site.run("--json region show job-2");
    assert_eq!(output.status.code(), Some(4));
    let failure: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(failure["reason"], "NO_SUCH_REGION");
    assert_eq!(failure["exit_code"], 4);
    assert!(output.stdout.is_empty());

    for line in ["region fence job-1", "region delete job-1"] {
        let error = site.fails(line, 2);
        assert!(
            error.contains("job-1 of unit unit-1") && error.contains("--yes"),
            "{error}"
        );
    }
    assert_eq!(site.unit.0.lock().unwrap().regions.len(), 1);
    assert_eq!(site.json("region fence job-1 --yes")["took_us"], 77);
    assert_eq!(site.json("region delete job-1 -y")["freed_bytes"], 1 << 20);
    assert_eq!(
        site.json("region list")["regions"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

fn finding(severity: v1::Severity) -> v1::VerifyPoolResponse {
    let finding = v1::Finding {
        pool: "main".to_owned(),
        part: v1::PoolPart::TableB.into(),
        severity: severity.into(),
        detail: "checksum\u{1b}[2J".to_owned(),
    };
    v1::VerifyPoolResponse {
        step: Some(Step::Finding(finding)),
    }
}

fn summary() -> v1::VerifyPoolResponse {
    let summary = v1::VerifyPoolSummary {
        pools: 1,
        structures_checked: 4,
        regions: 1,
    };
    v1::VerifyPoolResponse {
        step: Some(Step::Summary(summary)),
    }
}

#[test]
fn verify_reports_damage_of_the_pool() {
    let site = Site::unlocked();
    site.ok("region create log --mode append --size 1MiB");
    let next = |findings| site.unit.0.lock().unwrap().findings = findings;

    // This unit has tables to check, but serves no data: nothing wrong was found, and not everything checked.
    next(vec![finding(v1::Severity::Note), summary()]);
    let output = site.run("--json region verify log");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["damaged"], false);
    assert_eq!(report["structures_checked"], 4);
    assert!(report["contents"].is_null() && report["contents_note"].is_string());
    for severity in [
        v1::Severity::Degraded,
        v1::Severity::Damaged,
        v1::Severity::Unspecified,
    ] {
        next(vec![finding(severity), summary()]);
        let output = site.run("region verify log");
        assert_eq!(output.status.code(), Some(5));
        let page = String::from_utf8(output.stdout).unwrap();
        assert!(
            page.contains("DAMAGE FOUND") && page.contains("region table B"),
            "{page}"
        );
        assert!(!page.contains('\u{1b}'), "{page:?}");
    }
    // Cut short: nothing found is not nothing wrong.
    next(vec![finding(v1::Severity::Note)]);
    let error = site.fails("region verify log", 1);
    assert!(error.contains("without its summary"), "{error}");
    site.fails("region verify nothing", 4);
}

#[test]
fn the_environment_is_what_a_shell_makes_it() {
    let site = Site::new();
    let run = |identity: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pmm"));
        command
            .args(["unit", "unlock", "unit-1"])
            .env("PMU_HOME", site.directory.path());
        command.env("PMM_IDENTITY", identity).output().unwrap()
    };
    // Empty is as good as not set.
    assert!(run("").status.success());
    let client = run(site.path("trainer-7").to_str().unwrap());
    assert_eq!(client.status.code(), Some(3));
    assert_eq!(run("nowhere").status.code(), Some(3));
}

#[test]
fn wrong_arguments_open_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    for line in [
        "region create r --mode append --capacity 1MiB",
        "region delete a/b --yes",
        "unit add unit-1 nowhere",
        "ca issue alice --role client --host a.example",
        "status --timeout never",
        "frobnicate",
    ] {
        let output = pmm(&home, line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{line}"
        );
        assert!(!home.exists(), "{line}");
    }
}

#[test]
fn completions_and_manual() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = pmm(directory.path(), &format!("completions {shell}"));
        assert!(output.status.success());
        assert!(
            String::from_utf8(output.stdout).unwrap().contains("unlock"),
            "{shell}"
        );
    }
    let output = pmm(directory.path(), "--json man HOME/man");
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pages: Vec<_> = std::fs::read_dir(directory.path().join("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(report["pages"], pages.len());
    for page in [
        "pmm.1",
        "pmm-region.1",
        "pmm-region-create.1",
        "pmm-ca-issue.1",
    ] {
        assert!(pages.iter().any(|name| name == page), "{page} in {pages:?}");
    }
    let text = std::fs::read_to_string(directory.path().join("man/pmm.1")).unwrap();
    assert!(text.contains("Exit codes"), "{text}");
}

#[test]
fn nobody_reading_is_no_failure() {
    let site = Site::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pmm"))
        .args(["completions", "zsh"])
        .env("PMU_HOME", site.directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
