//! The command `pmu` as a process, against a real unit in this one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pmu_auth::Role;
use pmu_client::{Label, OpenOptions};
use serde_json::Value;
use support::{Pool, Site, pattern};

const MIB: u64 = 1 << 20;

struct Bench {
    site: Site,
    identity: PathBuf,
}

impl Bench {
    fn new(pool: Pool) -> Self {
        let site = Site::new(pool, 64 * MIB);
        let identity = site.path("app");
        site.identity("app", Role::Client).save(&identity).unwrap();
        Self { site, identity }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pmu"));
        command
            .args(line.split(' '))
            .env("PMU_UNIT", self.site.address())
            .env("PMU_IDENTITY", &self.identity)
            .env_remove("PMU_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str, input: &[u8]) -> Output {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A command that refuses doesn't read.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    fn ok(&self, line: &str, input: &[u8]) -> Vec<u8> {
        let output = self.run(line, input);
        assert!(
            output.status.success(),
            "pmu {line}: {} {}",
            output.status,
            text(&output.stderr)
        );
        output.stdout
    }

    fn json(&self, line: &str, input: &[u8]) -> Value {
        serde_json::from_slice(&self.ok(&format!("{line} --json"), input)).unwrap()
    }

    fn code(&self, line: &str) -> (i32, String) {
        let output = self.run(line, b"");
        (output.status.code().unwrap(), text(&output.stderr))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
}

#[test]
fn p05_put_get_and_sets() {
    let mut bench = Bench::new(Pool::File);
    bench.site.sets("r", 2, 9 * MIB);
    let payload = pattern(8_765_432, 1);
    let file = bench.site.path("in");
    std::fs::write(&file, &payload).unwrap();
    let receipt = bench.json(&format!("put r {} --label first", file.display()), b"");
    assert_eq!(
        (&receipt["set"], &receipt["durable"]),
        (&1.into(), &true.into())
    );
    assert_eq!(receipt["units"][0]["persistence"], "server-persist");
    let receipt = bench.ok("put r --provider tcp", &payload[..3]);
    assert!(text(&receipt).starts_with(
        "r: set 2, 3 bytes, epoch 2, durable on unit-1 by server-persist over soft-tcp in "
    ));
    bench.ok("put r -", b"");

    assert_eq!(bench.ok("get r", b""), b"");
    assert_eq!(bench.ok("get r --set 2", b""), payload[..3]);
    bench.ok(&format!("put r {} --label again", file.display()), b"");
    assert_eq!(bench.code("get r --set 1").0, 4);
    let out = bench.site.path("out");
    let shown = bench.ok(&format!("get r -o {}", out.display()), b"");
    assert!(
        text(&shown).contains("set 4, 8765432 bytes"),
        "{}",
        text(&shown)
    );
    assert!(std::fs::read(&out).unwrap() == payload);
    assert!(bench.ok("get r --newest --provider unix", b"") == payload);
    let list = bench.json("sets r", b"");
    assert_eq!(list["published"], 4);
    assert_eq!(list["sets"][0]["label"], "again");
    assert_eq!(list["sets"][1]["state"], "committed");
    let table = text(&bench.ok("sets r", b""));
    assert!(
        table.contains("8.4 MiB") && table.contains("again"),
        "{table}"
    );
    // Nothing incomplete lies about.
    let strays: Vec<_> = std::fs::read_dir(bench.site.directory.path())
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("partial")
        })
        .collect();
    assert!(strays.is_empty());
}

#[test]
fn p11_ctrl_c_abandons_the_set_in_progress() {
    let mut bench = Bench::new(Pool::Memory);
    bench.site.sets("r", 1, 9 * MIB);
    bench.ok("put r", b"kept");
    let mut child = bench
        .command("put r -")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&pattern(5 * MIB as usize, 1)).unwrap();
    // It has read all but what fits a pipe, and waits for more.
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    drop(stdin);
    assert_eq!(bench.ok("get r", b""), b"kept");
    let receipt = bench.json("put r", b"next");
    assert_eq!(receipt["set"], 2);
}

#[test]
fn p13_append_tail_and_clear() {
    let mut bench = Bench::new(Pool::File);
    bench.site.log("l", MIB);
    let receipt = bench.json("append l", b"one\ntwo\n\nthree");
    assert_eq!(
        (&receipt["records"], &receipt["empty_lines_left_out"]),
        (&3.into(), &1.into())
    );
    assert_eq!(receipt["durable"], true);
    bench.ok("append l --record-size 4", b"\xff\xfe\0\0rest!");
    assert_eq!(
        bench.ok("tail l", b""),
        b"one\ntwo\nthree\n\xff\xfe\0\0\nrest\n!\n"
    );
    let lines = text(&bench.ok("tail l --json", b""));
    let records: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records[1]["text"], "two");
    assert_eq!(records[3]["hex"], "fffe0000");

    let second = records[1]["end"].as_u64().unwrap();
    assert_eq!(
        bench.code(&format!("clear l --to {}", second + 8)).0,
        2,
        "asked, and nobody there"
    );
    assert_eq!(
        bench.code(&format!("clear l --yes --to {}", second + 8)).0,
        2
    );
    let cleared = bench.json(&format!("clear l --yes --to {second}"), b"");
    assert_eq!(
        (&cleared["cleared_to"], &cleared["records"]),
        (&second.into(), &2.into())
    );
    assert_eq!(
        bench.json(&format!("clear l --yes --to {second}"), b"")["records"],
        0
    );
    let prefixed = bench.ok("tail l --length-prefixed --clear", b"");
    assert!(prefixed.starts_with(b"\x05\0\0\0three\x04\0\0\0\xff\xfe"));
    assert_eq!(bench.ok("tail l", b""), b"");
    bench.ok("append l --length-prefixed", &prefixed);
    assert_eq!(bench.ok("tail l --length-prefixed", b""), prefixed);
    assert_eq!(bench.json("clear l --all --yes", b"")["records"], 4);
    assert_eq!(bench.ok("tail l", b""), b"");
}

#[test]
fn p13_tail_follows_until_interrupted() {
    let mut bench = Bench::new(Pool::Memory);
    bench.site.log("l", MIB);
    let mut follower = bench
        .command("tail l --follow --clear --interval 5ms")
        .spawn()
        .unwrap();
    let mut appender = bench
        .command("append l")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = appender.stdin.take().unwrap();
    let mut stdout = follower.stdout.take().unwrap();
    for line in ["first\n", "second\n"] {
        // What is typed comes out at the other end while the input stays open.
        stdin.write_all(line.as_bytes()).unwrap();
        let mut seen = vec![0; line.len()];
        stdout.read_exact(&mut seen).unwrap();
        assert_eq!(text(&seen), line);
    }
    stdin.write_all(b"unfinished").unwrap();
    interrupt(&appender);
    let output = appender.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        text(&output.stderr).contains("2 records were acknowledged"),
        "{}",
        text(&output.stderr)
    );
    drop(stdin);
    interrupt(&follower);
    assert!(follower.wait().unwrap().success());
    assert_eq!(bench.ok("tail l", b""), b"");
}

#[test]
fn p14_fence_and_recover() {
    let mut bench = Bench::new(Pool::Memory);
    bench.site.log("l", MIB);
    bench.site.sets("r", 1, MIB);
    let unit = bench.site.client("backup");
    let mut log = unit.open_log_primary("l", &OpenOptions::new()).unwrap();
    let mut sets = unit.open_sets_primary("r", &OpenOptions::new()).unwrap();
    log.append_batch(&[b"a", b"b"]).unwrap();
    sets.commit(&[std::io::IoSlice::new(b"state")], Label::default())
        .unwrap();
    assert_eq!(bench.code("append l").0, 1, "a primary is there");
    assert_eq!(bench.code("fence l").0, 2);
    let fence = bench.json("fence l --yes", b"");
    assert_eq!(fence["sessions_closed"], 1);
    assert!(log.append(b"late").unwrap_err().is_fenced());
    let output = bench.run("recover l --json", b"");
    let facts: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(facts["records"], 2);
    assert_eq!(
        output.stdout.iter().filter(|byte| **byte == b'\n').count(),
        2
    );
    let out = bench.site.path("state");
    let set = bench.json(
        &format!("recover r --fence --yes -o {}", out.display()),
        b"",
    );
    assert_eq!(set["set"], 1);
    assert_eq!(std::fs::read(&out).unwrap(), b"state");
    assert!(sets.commit(&[], Label::default()).unwrap_err().is_fenced());
}

#[test]
fn exit_codes_say_what_is_wrong() {
    let mut bench = Bench::new(Pool::Memory);
    bench.site.sets("r", 1, MIB);
    bench.site.log("l", MIB);
    assert_eq!(bench.code("get nowhere").0, 4);
    assert_eq!(bench.code("get r").0, 4);
    assert_eq!(bench.code("put l").0, 1);
    assert_eq!(bench.code("put r /does/not/exist").0, 1);
    assert_eq!(bench.code("put r --persistence native-flush").0, 1);
    assert_eq!(bench.code("frobnicate").0, 2);
    assert_eq!(bench.code("get r --identity /nowhere").0, 3);
    let (code, said) = bench.code("get r --unit 127.0.0.1:1 --json");
    assert_eq!(code, 6);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["exit_code"], 6);
    let big = bench.run("put r", &pattern(2 * MIB as usize, 1));
    assert_eq!(big.status.code(), Some(1));
    assert!(
        text(&big.stderr).contains("1048576 that fit"),
        "{}",
        text(&big.stderr)
    );
    let mut stranger = bench.command("get r");
    let identity = bench.site.path("stranger");
    bench
        .site
        .identity("stranger", Role::Client)
        .save(&identity)
        .unwrap();
    let output = stranger.env("PMU_IDENTITY", identity).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    bench.site.stop();
    bench.site.start(64 * MIB);
    let (code, said) = bench.code("sets r");
    assert_eq!(code, 6);
    assert!(said.contains("locked") && said.contains("unlock"), "{said}");
}

#[test]
fn bench_measures_and_the_tool_commands_write() {
    let mut bench = Bench::new(Pool::Memory);
    bench.site.sets("r", 1, MIB);
    bench.site.log("l", MIB);
    for region in ["r", "l"] {
        let measured = bench.json(&format!("bench {region} --yes --count 20 --size 1KiB"), b"");
        assert_eq!(measured["rows"].as_array().unwrap().len(), 2);
        assert!(measured["rows"][0]["p50_us"].as_f64().unwrap() > 0.0);
        assert_eq!(measured["durable"], false);
    }
    assert!(
        text(&bench.ok("bench r --yes --count 3", b"")).contains("commit from registered memory")
    );
    assert!(!bench.ok("completions bash", b"").is_empty());
    let man = bench.site.path("man");
    bench.ok(&format!("man {}", man.display()), b"");
    assert!(man.join("pmu-append.1").exists());
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    let mut bench = Bench::new(Pool::Memory);
    bench.site.log("l", 8 * MIB);
    bench.ok("append l", &b"0123456789\n".repeat(100_000));
    let mut child = bench.command("tail l").spawn().unwrap();
    let mut start = [0; 11];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut start)
        .unwrap();
    drop(child.stdout.take());
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty() && begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn p04_output_goes_where_its_name_leads_and_replaces_no_special_file() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let mut bench = Bench::new(Pool::Memory);
    bench.site.sets("r", 2, MIB);
    bench.ok("put r -", b"payload");
    let at = |name: &str| bench.site.path(name);
    let get = |name: &str| bench.ok(&format!("get r -o {}", at(name).display()), b"");

    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let pipe = at("pipe");
    let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
    get("pipe");
    assert_eq!(reader.join().unwrap(), b"payload");

    std::fs::write(at("real"), "old").unwrap();
    symlink(at("real"), at("link")).unwrap();
    symlink("not-there-yet", at("dangling")).unwrap();
    get("link");
    get("dangling");
    assert!(at("link").is_symlink() && at("dangling").is_symlink());
    for name in ["real", "not-there-yet"] {
        assert_eq!(std::fs::read(at(name)).unwrap(), b"payload", "{name}");
    }

    std::fs::write(at("secret"), "old").unwrap();
    std::fs::set_permissions(at("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    get("secret");
    let mode = std::fs::metadata(at("secret"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn p13_nothing_is_cleared_or_stored_through_a_closed_descriptor() {
    let mut bench = Bench::new(Pool::Memory);
    bench.site.sets("r", 1, MIB);
    bench.site.log("l", MIB);
    bench.ok("put r -", b"the only good one");
    bench.ok("append l", b"1\n2\n3\n");
    let shell = |line: &str| {
        let pmu = env!("CARGO_BIN_EXE_pmu");
        let output = Command::new("sh")
            .args(["-c", &format!("{pmu} {line}")])
            .env("PMU_UNIT", bench.site.address())
            .env("PMU_IDENTITY", &bench.identity)
            .output()
            .unwrap();
        (output.status.code().unwrap(), text(&output.stderr))
    };
    for line in [
        "tail l --clear >&-",
        "get r >&-",
        "recover r >&-",
        "put r - <&-",
        "append l <&-",
    ] {
        let (code, error) = shell(line);
        assert!(
            code == 2 && error.contains("is closed"),
            "{line}: {code} {error}"
        );
    }
    assert_eq!(bench.ok("get r", b""), b"the only good one");
    assert_eq!(bench.ok("tail l", b""), b"1\n2\n3\n");
    // Meant so.
    assert_eq!(shell("tail l --clear >/dev/null").0, 0);
    assert_eq!(bench.ok("tail l", b""), b"");
}

#[test]
fn s08_snapshots_are_listed_and_exported() {
    use pmu_client::snapshot::{Arena, ArenaOptions, SnapshotOptions, SnapshotRegion, Snapshots};
    let mut bench = Bench::new(Pool::File);
    bench.site.sets("r", 4, 2 * MIB + 4096);
    bench.site.log("l", MIB);
    let listed = text(&bench.ok("snapshot list --region r", b""));
    assert_eq!(listed, "r: no snapshots\n");
    let out = bench.site.path("image");
    let export = format!("snapshot export --region r --out {}", out.display());
    assert_eq!(bench.code(&export).0, 4);
    let arena = std::sync::Arc::new(Arena::create(&ArenaOptions::plain(2 << 20)).unwrap());
    let region = SnapshotRegion::One {
        unit: bench.site.client("app"),
        region: "r".to_owned(),
    };
    let snapshots = Snapshots::open(arena.clone(), region, &SnapshotOptions::new()).unwrap();
    for value in 1..=2 {
        arena.store_u64(8192, value).unwrap();
        snapshots.snapshot().unwrap();
    }
    let listed = bench.json("snapshot list --region r", b"");
    assert_eq!(listed["snapshots"][0]["builds_on"], 1);
    assert_eq!(listed["snapshots"][0]["whole"], true);
    assert_eq!(listed["snapshots"][1]["full"], true);
    let listed = text(&bench.ok("snapshot list --region r", b""));
    assert!(
        listed.contains("on 1 of 1") && listed.contains("full"),
        "{listed}"
    );
    let sets = text(&bench.ok("sets r", b""));
    assert!(
        sets.contains("snap on 1 of 1") && sets.contains("snap full"),
        "{sets}"
    );
    for (set, value) in [("", 2_u64), (" --set 1", 1)] {
        let said = bench.json(&format!("{export}{set}"), b"");
        assert_eq!(said["set"], value);
        assert_eq!(said["arena_bytes"], 2 << 20);
        let image = std::fs::read(&out).unwrap();
        assert_eq!(image.len(), 2 << 20);
        assert_eq!(image[8192..8200], value.to_le_bytes());
    }
    assert_eq!(bench.code(&format!("{export} --set 9")).0, 4);
    assert_eq!(bench.code("snapshot list --region l").0, 1);
    assert_eq!(bench.code("snapshot list --region nothing").0, 4);
    assert_eq!(
        bench.code("snapshot export --region r --out /dev/null").0,
        2
    );
}
