//! Global storage: `pmu store`, a directory and a real S3 service (OpenStack Swift, as `scripts/lib/s3-server` starts it).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

#[path = "support/command.rs"]
mod command;
mod support;
#[path = "support/units.rs"]
mod units;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use command::{Cluster, shell, text};
use serde_json::Value;
use support::pattern;

const MIB: u64 = 1 << 20;

/// Writes a configuration; where it is.
fn configure(cluster: &Cluster, name: &str, store: &str, policies: &str) -> PathBuf {
    let path = cluster.units.path(name);
    fs::write(
        &path,
        format!("interval = \"1s\"\n[store]\n{store}\n{policies}\n"),
    )
    .unwrap();
    path
}

/// One round of the mover; its report.
fn round(cluster: &Cluster, config: &Path) -> Value {
    let told = cluster.ok(&format!(
        "store move --once --json --config {}",
        config.display()
    ));
    serde_json::from_str(told.lines().last().unwrap()).unwrap()
}

fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// Segments of several sizes, replicated.
fn with_segments() -> (Cluster, PathBuf) {
    let cluster = Cluster::new(2, MIB, 40 * MIB);
    let data = cluster.directory("data");
    shell(
        &data,
        ": > empty; printf small > small; ln small linked; mkdir -p a; printf x > 'a/b c%'",
    );
    fs::write(data.join("large"), pattern(18_000_000, 5)).unwrap();
    cluster.ok(&format!("segments watch {} --once", data.display()));
    (cluster, data)
}

const UNLOAD: &str = "[[segments]]\nprefix = \"seg\"\nunload = true\n";

#[test]
fn r08_segments_are_loaded_into_a_directory_and_served_from_there() {
    let (mut cluster, data) = with_segments();
    let (storage, copy) = (cluster.directory("storage"), cluster.directory("copy"));
    let store = format!("url = {:?}", storage);
    // Not yet: too young, or among the newest.
    for policy in ["older_than = \"1d\"", "keep_newest = 5"] {
        let policy = format!("[[segments]]\nprefix = \"seg\"\n{policy}\n");
        let config = configure(&cluster, "young", &store, &policy);
        assert_eq!(round(&cluster, &config)["stored"], 0);
    }
    let config = configure(&cluster, "store.toml", &store, UNLOAD);
    let report = round(&cluster, &config);
    assert_eq!(
        (&report["stored"], &report["failed"]),
        (&5.into(), &0.into())
    );
    assert_eq!(round(&cluster, &config)["stored"], 0);
    let listed = cluster.json("segments list");
    for segment in listed["segments"].as_array().unwrap() {
        assert!(
            segment["place"].is_null() && !segment["store"].is_null(),
            "{segment}"
        );
    }
    // No unit has it: without a storage it can't be had, with it it is the same.
    let get = format!("segments get --all --into {}", copy.display());
    assert_eq!(cluster.code(&get).0, 6);
    let told = cluster.ok(&format!("{get} --store {}", config.display()));
    assert!(told.contains("from /"), "{told}");
    shell(&data, &format!("diff -r . {}", copy.display()));
    // The units are all gone, and with them the index.
    cluster.units.stop(0);
    cluster.units.stop(1);
    let last = cluster.directory("last");
    let line = format!(
        "segments get large --into {} --store {}",
        last.display(),
        config.display()
    );
    cluster.ok(&line);
    assert!(fs::read(last.join("large")).unwrap() == pattern(18_000_000, 5));
    let listed = cluster.json(&format!("store list --config {}", config.display()));
    assert_eq!(listed["objects"].as_array().unwrap().len(), 5);
}

#[test]
fn r08_what_is_damaged_or_torn_is_never_served() {
    let (cluster, _) = with_segments();
    let (storage, copy) = (cluster.directory("storage"), cluster.directory("copy"));
    let config = configure(
        &cluster,
        "store.toml",
        &format!("url = {:?}", storage),
        UNLOAD,
    );
    round(&cluster, &config);
    let (get, verify) = (
        format!(
            "segments get large --into {} --store {}",
            copy.display(),
            config.display()
        ),
        format!("store verify --config {}", config.display()),
    );
    cluster.ok(&verify);
    let all = files(&storage);
    let data = all
        .iter()
        .find(|path| fs::metadata(path).unwrap().len() == 18_000_000)
        .unwrap();
    let manifest = data.with_file_name("manifest");
    // One bit, in a part in the middle.
    let whole = fs::read(data).unwrap();
    let mut bytes = whole.clone();
    bytes[9_000_000] ^= 1;
    fs::write(data, &bytes).unwrap();
    let (code, said) = cluster.code(&get);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("not what was stored"), "{said}");
    let (code, _) = cluster.code(&verify);
    assert_eq!(code, 5);
    // Cut off.
    fs::write(data, &whole[..17_000_000]).unwrap();
    assert_ne!(cluster.code(&get).0, 0);
    // Its data is gone.
    fs::remove_file(data).unwrap();
    assert_eq!(cluster.code(&get).0, 5);
    fs::write(data, &whole).unwrap();
    cluster.ok(&get);
    fs::remove_file(copy.join("large")).unwrap();
    // The manifest.
    let text = fs::read(&manifest).unwrap();
    let mut bytes = text.clone();
    bytes[text.len() / 2] ^= 1;
    fs::write(&manifest, &bytes).unwrap();
    assert_ne!(cluster.code(&get).0, 0);
    assert_eq!(cluster.code(&verify).0, 5);
    // Data without a manifest is what a torn upload leaves.
    fs::remove_file(&manifest).unwrap();
    let (code, said) = cluster.code(&get);
    assert_eq!(code, 6, "{said}");
    let listed = cluster.json(&format!("store list --config {}", config.display()));
    assert_eq!(listed["objects"].as_array().unwrap().len(), 4);
    assert!(files(&copy).is_empty(), "something incomplete stays");
}

#[test]
fn r08_sets_are_loaded_by_policy_and_served_when_no_unit_has_them() {
    let mut cluster = Cluster::bare(2);
    cluster.units.spread("train", "mirror:2", 2, 10 * MIB);
    let (storage, input) = (cluster.directory("storage"), cluster.units.path("input"));
    let policy = "[[sets]]\nregion = \"train\"\nevery = 2\nkeep_stored = 3\n";
    let config = configure(
        &cluster,
        "store.toml",
        &format!("url = {:?}", storage),
        policy,
    );
    let payload = |number: u64| pattern(9_000_000 + number as usize, number);
    for number in 1..=9 {
        fs::write(&input, payload(number)).unwrap();
        cluster.ok(&format!(
            "put train {} --label step-{number}",
            input.display()
        ));
        round(&cluster, &config);
    }
    let listed = cluster.json(&format!("store list --config {}", config.display()));
    let names: Vec<_> = listed["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            object["name"]
                .as_str()
                .unwrap()
                .trim_start_matches('0')
                .to_owned()
        })
        .collect();
    assert_eq!(names, ["4", "6", "8"]);
    // The units have it: it comes from there, also with a storage.
    let out = cluster.units.path("out");
    let get = |what: &str| {
        format!(
            "get train {what} -o {} --from-store {} --json",
            out.display(),
            config.display()
        )
    };
    let told: Value = serde_json::from_str(&cluster.ok(&get("--set 8"))).unwrap();
    assert!(told["store"].is_null(), "{told}");
    // The units have it no more.
    let told: Value = serde_json::from_str(&cluster.ok(&get("--set 4"))).unwrap();
    assert!(
        told["units_said"].as_str().unwrap().contains("set 4"),
        "{told}"
    );
    assert_eq!(told["label"], "step-4");
    assert!(fs::read(&out).unwrap() == payload(4));
    assert_eq!(cluster.code(&get("--set 5")).0, 4);
    cluster.units.stop(0);
    cluster.units.stop(1);
    let told: Value = serde_json::from_str(&cluster.ok(&get("--newest"))).unwrap();
    assert_eq!(told["number"], 8);
    assert!(fs::read(&out).unwrap() == payload(8));
}

#[test]
fn r08_what_cant_be_configured_is_refused_before_anything_is_done() {
    let cluster = Cluster::bare(1);
    let storage = cluster.directory("storage");
    for (store, code) in [
        ("url = \"/no/such/directory\"".to_owned(), 2),
        (
            "url = \"s3://bucket\"\nendpoint = \"http://127.0.0.1:1\"".to_owned(),
            2,
        ),
        (format!("url = {storage:?}\nretires = 3"), 2),
    ] {
        let config = configure(&cluster, "wrong", &store, "");
        let mut command = cluster.command(["store", "move", "--once", "--config"]);
        command.arg(&config).env_remove("AWS_ACCESS_KEY_ID");
        let output = command.output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{store}: {}",
            text(&output.stderr)
        );
    }
    // One region that is not there doesn't keep the rest from being moved, and is told.
    let policy = "[[sets]]\nregion = \"none\"\n";
    let config = configure(&cluster, "none", &format!("url = {storage:?}"), policy);
    let output = cluster.run(&format!("store move --once --config {}", config.display()));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("region none: failed"),
        "{}",
        text(&output.stdout)
    );
}

/// The S3 service.
struct Swift {
    server: Child,
    endpoint: String,
    _directory: tempfile::TempDir,
}

impl Swift {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/s3-server");
        let mut server = Command::new(script)
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let endpoint = line.strip_prefix("ready ").expect(
            "the S3 service doesn't start: it needs the package python3-swift, which scripts/test installs",
        );
        Self {
            server,
            endpoint: endpoint.trim().to_owned(),
            _directory: directory,
        }
    }

    /// Section `[store]` with these keys.
    fn store(&self, cluster: &Cluster, bucket: &str, user: &str, secret: &str) -> String {
        let keys = cluster.units.path(&format!("keys-{user}-{secret}"));
        let text = format!("access_key_id = \"test:{user}\"\nsecret_access_key = {secret:?}\n");
        fs::write(&keys, text).unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
        format!(
            "url = \"s3://{bucket}/pmu/tests\"\nendpoint = {:?}\nregion = \"us-east-1\"\ncredentials = {keys:?}\n\
             timeout = \"20s\"\nretries = 1\npart_size = \"5MiB\"",
            self.endpoint
        )
    }
}

impl Drop for Swift {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

#[test]
fn r08_an_s3_service_keeps_segments_and_its_refusals_are_told() {
    let swift = Swift::start();
    let (cluster, data) = with_segments();
    let store = swift.store(&cluster, "bucket", "tester", "testing");
    let config = configure(&cluster, "s3.toml", &store, UNLOAD);
    let report = round(&cluster, &config);
    assert_eq!(
        (&report["stored"], &report["unloaded"]),
        (&5.into(), &4.into()),
        "{report}"
    );
    cluster.ok(&format!("store verify --config {}", config.display()));
    let copy = cluster.directory("copy");
    cluster.ok(&format!(
        "segments get --all --into {} --store {}",
        copy.display(),
        config.display()
    ));
    shell(&data, &format!("diff -r . {}", copy.display()));
    for (what, store, code, says) in [
        (
            "a wrong secret",
            swift.store(&cluster, "bucket", "tester", "guessed"),
            3,
            "credentials",
        ),
        (
            "an unknown key",
            swift.store(&cluster, "bucket", "nobody", "x"),
            3,
            "credentials",
        ),
        (
            "no right",
            swift.store(&cluster, "bucket", "reader", "reading"),
            3,
            "refuses",
        ),
        (
            "no bucket",
            swift.store(&cluster, "other", "tester", "testing"),
            4,
            "no such bucket",
        ),
    ] {
        let config = configure(&cluster, "wrong.toml", &store, "");
        let begun = Instant::now();
        let (found, said) = cluster.code(&format!("store verify --config {}", config.display()));
        assert_eq!(found, code, "{what}: {said}");
        assert!(said.contains(says), "{what}: {said}");
        assert!(
            !said.contains("guessed") && !said.contains("testing\""),
            "{said}"
        );
        assert!(begun.elapsed() < Duration::from_secs(80), "{what}");
    }
}

#[test]
fn r08_a_store_that_is_away_or_silent_is_waited_for_no_longer_than_was_said() {
    let (cluster, _) = with_segments();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (what, address) in [("silent", silent.local_addr().unwrap()), ("gone", gone)] {
        let store = format!(
            "url = \"s3://bucket\"\nendpoint = \"http://{address}\"\nregion = \"us-east-1\"\ntimeout = \"1s\"\nretries = 1"
        );
        let config = configure(&cluster, "away.toml", &store, UNLOAD);
        let mut command = cluster.command(["store", "move", "--once", "--config"]);
        command
            .arg(&config)
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b");
        let begun = Instant::now();
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{what}: {said}");
        assert!(said.contains("can't be used now"), "{what}: {said}");
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{what}: {:?}",
            begun.elapsed()
        );
    }
    // Nothing was given up on the units.
    let listed = cluster.json("segments list");
    assert!(
        listed["segments"]
            .as_array()
            .unwrap()
            .iter()
            .all(|segment| !segment["place"].is_null())
    );
}
