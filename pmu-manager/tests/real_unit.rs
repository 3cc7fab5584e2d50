//! `pmm` against a real unit, whose pool is then damaged behind its back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::OpenOptions as FileOptions;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use pmu_client::{ConnectOptions, Identity, Label, OpenOptions, Unit};
use pmu_format::{CHUNK_BYTES, LOG_RING_OFFSET, SetGeometry, SetNumber, record_length_bytes};
use pmu_server::cli::InitArguments;
use pmu_server::config::{ByteSize, Config};
use pmu_server::unit::UnitHandle;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A site with an unlocked unit, a manager (alice) and a client (trainer).
struct Site {
    directory: TempDir,
    address: String,
    runtime: Runtime,
    server: Option<UnitHandle>,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let mut site = Self {
            directory,
            address: String::new(),
            runtime,
            server: None,
        };
        site.ok("ca init");
        site.ok("ca issue alice --role manager --out HOME/identity");
        site.ok("ca issue trainer --role client --out HOME/trainer");
        site.ok("ca issue unit-1 --role unit --host 127.0.0.1 --out HOME/unit-1");
        let arguments = InitArguments {
            pool: site.path("pool"),
            medium: pmu_format::Medium::File,
            size: Some(ByteSize(16 << 20)),
            table_size: ByteSize(64 << 10),
            force: false,
        };
        pmu_server::pools::init(&arguments, &mut |_, _| {}).unwrap();
        let config = format!(
            "[unit]\nname = \"unit-1\"\nidentity = {:?}\n[control]\nlisten = \"127.0.0.1:0\"\n\
             [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:0\"\n\
             [[pool]]\nname = \"main\"\nmedium = \"file\"\npath = {:?}\n",
            site.path("unit-1"),
            site.path("pool"),
        );
        let start = pmu_server::unit::Unit::start(Config::parse(&config).unwrap());
        let server = site.runtime.block_on(start).unwrap();
        site.address = server.control_address().to_string();
        site.server = Some(server);
        site.ok(&format!("unit add unit-1 {}", site.address));
        site.ok("unit unlock unit-1");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        let line = line.replace("HOME", self.directory.path().to_str().unwrap());
        Command::new(env!("CARGO_BIN_EXE_pmm"))
            .args(line.split_whitespace())
            .env("PMU_HOME", self.directory.path())
            .env_remove("PMM_IDENTITY")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code and the report of a check.
    fn verify(&self, region: &str) -> (i32, Value) {
        let output = self.run(&format!("--json region verify {region}"));
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), report)
    }

    fn trainer(&self) -> Unit {
        let identity = Identity::load(&self.path("trainer")).unwrap();
        Unit::connect(&self.address, &identity, &ConnectOptions::default()).unwrap()
    }

    /// Turns over one bit of a region's byte, in the pool's file.
    fn damage(&self, region: &str, region_offset: u64) {
        let shown: Value =
            serde_json::from_str(&self.ok(&format!("--json region show {region}"))).unwrap();
        let extents = shown["extents"].as_array().unwrap();
        assert_eq!(extents.len(), 1);
        let place = extents[0]["pool_offset_bytes"].as_u64().unwrap() + region_offset;
        let pool = FileOptions::new()
            .read(true)
            .write(true)
            .open(self.path("pool"))
            .unwrap();
        let mut byte = [0];
        pool.read_exact_at(&mut byte, place).unwrap();
        pool.write_all_at(&[byte[0] ^ 1], place).unwrap();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}

#[test]
fn verify_reads_every_set_and_finds_a_damaged_chunk() {
    let site = Site::new();
    site.ok(
        "region create job --mode overwrite --capacity 600KiB --sets 2 --grant trainer:read,write",
    );
    let (exit, report) = site.verify("job");
    assert_eq!(exit, 3, "{report}");
    assert!(
        report["contents_note"]
            .as_str()
            .unwrap()
            .contains("pmm region grant job"),
        "{report}"
    );
    site.ok("region grant job alice:read");
    let (exit, report) = site.verify("job");
    assert_eq!(
        (exit, &report["contents"]["sets_good"]),
        (0, &Value::from(0)),
        "{report}"
    );

    let unit = site.trainer();
    let mut primary = unit.open_sets_primary("job", &OpenOptions::new()).unwrap();
    let payload = vec![7_u8; 600 << 10];
    for _ in 0..4 {
        primary
            .commit(&[IoSlice::new(&payload)], Label::new("step").unwrap())
            .unwrap();
    }
    // A live primary is no reason against a check.
    let (exit, report) = site.verify("job");
    assert_eq!(exit, 0, "{report}");
    assert_eq!(report["contents"]["newest_set"], 4);
    assert!(
        report["contents"]["sets_good"].as_u64().unwrap() >= 2,
        "{report}"
    );
    assert!(site.ok("region verify job").contains("no damage found\n"));
    assert!(site.ok("region show job").contains("trainer"));

    let geometry = SetGeometry::new(u64::MAX >> 1, 600 << 10, 2).unwrap();
    let slot = geometry.slot_of(SetNumber(3));
    site.damage(
        "job",
        geometry.payload_offset(slot).get() + CHUNK_BYTES + 17,
    );
    let (exit, report) = site.verify("job");
    assert_eq!(exit, 5, "{report}");
    assert_eq!(report["damaged"], true);
    let finding = &report["findings"][0];
    assert_eq!(
        (&finding["part"], &finding["severity"]),
        (&"set 3".into(), &"damaged".into())
    );
    assert!(
        finding["detail"].as_str().unwrap().contains("chunk 1"),
        "{finding}"
    );
    // The others are good, and counted.
    assert_eq!(report["contents"]["newest_set"], 4);
    assert!(
        report["contents"]["sets_good"].as_u64().unwrap() >= 1,
        "{report}"
    );
}

#[test]
fn verify_reads_every_record_and_finds_a_damaged_one() {
    let site = Site::new();
    site.ok("region create log --mode append --size 1MiB --grant trainer:read,append --grant alice:read");
    let unit = site.trainer();
    let mut primary = unit.open_log_primary("log", &OpenOptions::new()).unwrap();
    for _ in 0..5 {
        primary.append(&[9; 1000]).unwrap();
    }
    let (exit, report) = site.verify("log");
    assert_eq!(exit, 0, "{report}");
    assert_eq!(report["contents"]["records_good"], 5);
    assert_eq!(report["contents"]["bytes_checked"], 5000);
    assert!(site.ok("region verify log").contains("5 records good"));

    site.damage(
        "log",
        LOG_RING_OFFSET.get() + 2 * record_length_bytes(1000) + 100,
    );
    let (exit, report) = site.verify("log");
    assert_eq!(exit, 5, "{report}");
    assert_eq!(report["contents"]["records_good"], 2, "{report}");
    assert_eq!(report["findings"][0]["severity"], "damaged");
}

#[test]
fn a_fence_stops_a_live_primary() {
    let site = Site::new();
    site.ok("region create log --mode append --size 1MiB --grant trainer:read,append");
    let unit = site.trainer();
    let mut primary = unit.open_log_primary("log", &OpenOptions::new()).unwrap();
    primary.append(b"before").unwrap();
    let shown: Value = serde_json::from_str(&site.ok("--json region show log")).unwrap();
    assert_eq!(shown["writer"], "trainer");
    assert_eq!(shown["open_sessions"][0]["role"], "primary");
    let fenced: Value = serde_json::from_str(&site.ok("--json region fence log --yes")).unwrap();
    assert!(
        fenced["windows_invalidated"].as_u64().unwrap() >= 1,
        "{fenced}"
    );
    let error = primary.append(b"after").unwrap_err();
    assert!(error.is_fenced(), "{error:?}");
    let shown: Value = serde_json::from_str(&site.ok("--json region show log")).unwrap();
    assert!(shown["writer"].is_null(), "{shown}");
}
