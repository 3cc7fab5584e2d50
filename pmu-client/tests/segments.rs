//! Segments: the command `pmu segments` on real units, beside programs that know nothing of it.
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

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use command::{Cluster, Watcher, shell, text, until};
use nix::sys::signal::Signal;
use pmu_client::OpenOptions;
use support::pattern;

const MIB: u64 = 1 << 20;

/// Fetches everything into another directory, which then is the same.
fn fetch_all(cluster: &Cluster, from: &Path, name: &str) {
    let into = cluster.directory(name);
    cluster.ok(&format!("segments get --all --into {}", into.display()));
    shell(from, &format!("diff -r . {}", into.display()));
}

#[test]
fn r01_what_a_program_stores_is_on_two_units_and_a_second_node_loads_it() {
    let cluster = Cluster::new(2, MIB, 40 * MIB);
    let (data, copy) = (cluster.directory("data"), cluster.directory("copy"));
    shell(&data, "printf before > there-before");
    let watcher = cluster.watch(&data, "");
    let event = watcher.replicated("there-before");
    assert_eq!(
        (&event["durable"], &event["receipt"]["durable"]),
        (&true.into(), &true.into())
    );
    let units = event["receipt"]["units"].as_array().unwrap();
    let units: Vec<_> = units
        .iter()
        .map(|unit| unit["name"].as_str().unwrap())
        .collect();
    assert_eq!(units, ["unit-1", "unit-2"]);

    let payload = pattern(20_000_001, 3);
    fs::write(data.join("huge"), &payload).unwrap();
    watcher.replicated("huge");
    shell(
        &data,
        "printf x > t.tmp; sleep 0.3; mv t.tmp renamed; mkdir -p a/b; printf deep > a/b/c",
    );
    watcher.replicated("renamed");
    watcher.replicated("a/b/c");
    let out = cluster.ok(&format!("segments get huge --into {}", copy.display()));
    assert!(out.contains("from region seg.body"), "{out}");
    assert!(fs::read(copy.join("huge")).unwrap() == payload);
    let again = cluster.json(&format!("segments get huge --into {}", copy.display()));
    assert_eq!(again["source"], "here");
    fetch_all(&cluster, &data, "all");
    assert!(!cluster.names().iter().any(|name| name.ends_with("tmp")));
    assert_eq!(watcher.end(), 130);
}

#[test]
fn r01_files_that_are_written_in_odd_ways_are_taken_whole_or_not_at_all() {
    let cluster = Cluster::new(2, MIB, 40 * MIB);
    let data = cluster.directory("data");
    let watcher = cluster.watch(&data, "--settle 50ms --rescan 300ms");
    // Slowly: it is found by looking at all files again and again, and left alone all the same.
    shell(
        &data,
        "exec 3>slow; for i in 1 2 3 4 5 6 7 8 9; do printf $i >&3; sleep 0.15; done; exec 3>&-",
    );
    assert_eq!(watcher.replicated("slow")["bytes"], 9);
    // Closed in between, and changed before it had settled.
    shell(
        &data,
        "for i in 1 2 3 4 5; do printf $i >> bursts; sleep 0.01; done",
    );
    // On a busy machine it settles in between, too.
    while watcher.replicated("bursts")["bytes"] != 5 {}
    shell(
        &data,
        ": > empty; ln slow linked; ln -s slow symlink; mkfifo pipe; mkdir -p d; mv d e",
    );
    assert_eq!(watcher.replicated("empty")["bytes"], 0);
    let linked = watcher.replicated("linked");
    assert!(
        linked["receipt"].is_null(),
        "the same contents go once: {linked}"
    );
    // The writer has renamed it and writes on.
    shell(
        &data,
        "exec 3>w; printf one >&3; mv w moved; sleep 0.6; printf two >&3; exec 3>&-",
    );
    assert_eq!(watcher.replicated("moved")["bytes"], 6);
    for name in [
        &b"with space"[..],
        b"line\nend",
        b"\xff\xfe",
        "größe".as_bytes(),
        b"100%",
        b"-rf",
    ] {
        fs::write(data.join(OsStr::from_bytes(name)), name).unwrap();
    }
    until("odd names", || cluster.names().len() == 11);
    let names = cluster.names();
    for name in ["line%0Aend", "%FF%FE", "größe", "100%25", "-rf"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
    drop(watcher);
    shell(&data, "rm symlink pipe; rmdir e");
    fetch_all(&cluster, &data, "all");
    // A name that was typed as the file is called.
    let into = cluster.directory("typed");
    let typed: [&OsStr; 5] = [
        "segments".as_ref(),
        "get".as_ref(),
        OsStr::from_bytes(b"\xff\xfe"),
        "--into".as_ref(),
        into.as_os_str(),
    ];
    assert!(cluster.command(typed).output().unwrap().status.success());
}

#[test]
fn r01_a_database_that_is_open_is_left_alone_until_it_is_closed() {
    let cluster = Cluster::new(2, MIB, 16 * MIB);
    let data = cluster.directory("data");
    let watcher = cluster.watch(&data, "--rescan 200ms --settle 20ms");
    shell(
        &data,
        "/usr/bin/python3 -c \"
import sqlite3, time
base = sqlite3.connect('base.db')
base.execute('create table t (n integer)')
for n in range(20):
    base.execute('insert into t values (?)', (n,)); base.commit(); time.sleep(0.05)
base.close()\"",
    );
    watcher.replicated("base.db");
    // Nothing was taken in between: the name would be taken by other contents.
    assert!(
        watcher
            .told()
            .iter()
            .all(|event| event["event"] != "refused")
    );
    fetch_all(&cluster, &data, "copy");
    let copy = cluster.directory("copy");
    shell(
        &copy,
        "test \"$(/usr/bin/python3 -c \"import sqlite3; print(sqlite3.connect('base.db').execute('select count(*) from t').fetchone()[0])\")\" = 20",
    );
}

#[test]
fn r01_a_watcher_that_is_killed_goes_on_with_what_is_missing() {
    let cluster = Cluster::new(2, MIB, 48 * MIB);
    let data = cluster.directory("data");
    for index in 0..300 {
        fs::write(data.join(format!("s{index:03}")), pattern(40_000, index)).unwrap();
    }
    let mut watcher = cluster.watch(&data, "--settle 10ms");
    watcher.wait_for(|event| event["event"] == "replicated");
    watcher.signal(Signal::SIGKILL);
    watcher.child.wait().unwrap();
    drop(watcher);
    let before: HashSet<_> = cluster.names().into_iter().collect();
    assert!(!before.is_empty() && before.len() < 300, "{}", before.len());
    let watcher = cluster.watch(&data, "--settle 10ms");
    let mut after = HashSet::new();
    while before.len() + after.len() < 300 {
        let event = watcher.wait_for(|event| event["event"] == "replicated");
        let name = event["name"].as_str().unwrap().to_owned();
        assert!(!before.contains(&name) && after.insert(name), "{event}");
    }
    drop(watcher);
    fetch_all(&cluster, &data, "copy");
    // All is there: nothing is sent, and it says so by ending.
    let told = cluster.ok(&format!("segments watch {} --once --json", data.display()));
    assert!(!told.contains("replicated"), "{told}");
}

#[test]
fn r01_a_file_that_cant_be_read_is_told_and_stops_nothing() {
    let cluster = Cluster::new(2, MIB, 16 * MIB);
    let data = cluster.directory("data");
    shell(
        &data,
        "printf secret > locked; chmod 000 locked; printf open > open",
    );
    // Even root obeys without these.
    let mut command = std::process::Command::new("setpriv");
    command.args([
        "--bounding-set",
        "-dac_override,-dac_read_search",
        "--inh-caps",
        "-all",
    ]);
    command.arg(env!("CARGO_BIN_EXE_pmu"));
    command.args([
        "segments",
        "watch",
        data.to_str().unwrap(),
        "--once",
        "--json",
    ]);
    cluster.environment(&mut command);
    let output = command.output().unwrap();
    let told = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{told} {}",
        text(&output.stderr)
    );
    assert!(
        told.contains("\"unreadable\"") && told.contains("Permission denied"),
        "{told}"
    );
    assert_eq!(cluster.names(), ["open"]);
}

#[test]
fn r02_a_file_appears_whole_or_not_at_all() {
    let cluster = Cluster::new(2, MIB, 24 * MIB);
    let (data, copy) = (cluster.directory("data"), cluster.directory("copy"));
    fs::write(data.join("big"), pattern(6_000_000, 1)).unwrap();
    cluster.ok(&format!("segments watch {} --once", data.display()));
    // The disk is full.
    let mut command = std::process::Command::new("unshare");
    let script = format!(
        "mount -t tmpfs -o size=2m none {copy} && {pmu} segments get big --into {copy}; code=$?; ls -A {copy}; exit $code",
        copy = copy.display(),
        pmu = env!("CARGO_BIN_EXE_pmu"),
    );
    command.args(["-rm", "sh", "-c", &script]);
    cluster.environment(&mut command);
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(text(&output.stdout), "", "something incomplete stays");
    // A file of that name with other contents is not lost.
    fs::write(copy.join("big"), "mine").unwrap();
    let (code, said) = cluster.code(&format!("segments get big --into {}", copy.display()));
    assert_eq!(code, 9, "{said}");
    assert_eq!(fs::read(copy.join("big")).unwrap(), b"mine");
    cluster.ok(&format!(
        "segments get big --replace --into {}",
        copy.display()
    ));
    assert!(fs::read(copy.join("big")).unwrap() == pattern(6_000_000, 1));
    assert_eq!(fs::read_dir(&copy).unwrap().count(), 1);
    // R6: what a cluster manager's agent sees.
    for (line, expected) in [
        (format!("segments get nothing --into {}", copy.display()), 4),
        ("segments get big --into /no/such/directory".to_owned(), 1),
        (format!("segments get ../big --into {}", copy.display()), 2),
        (
            format!(
                "segments get big --region-prefix other --into {}",
                copy.display()
            ),
            4,
        ),
    ] {
        let (code, said) = cluster.code(&line);
        assert_eq!(code, expected, "{line}: {said}");
    }
}

#[test]
fn r03_a_name_is_unique_in_the_cluster() {
    let cluster = Cluster::new(2, MIB, 16 * MIB);
    cluster
        .units
        .spread_log("seg.other", "mirror:2", 2, 16 * MIB);
    let (one, two) = (cluster.directory("one"), cluster.directory("two"));
    shell(&one, "printf first > f; printf same > g");
    shell(&two, "printf other > f; printf same > g; printf new > h");
    let watch = |directory: &Path, more: &str| {
        let line = format!("segments watch {} --once {more}", directory.display());
        let output = cluster.run(&line);
        (
            output.status.code().unwrap(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    assert_eq!(watch(&one, "--node one").0, 0);
    let (code, said) = watch(&two, "--node two --body seg.other");
    assert_eq!(code, 9, "{said}");
    assert!(
        said.contains("segment f is there already with other contents"),
        "{said}"
    );
    assert_eq!(cluster.names(), ["f", "g", "h"]);
    let copy = cluster.directory("copy");
    cluster.ok(&format!("segments get f g --into {}", copy.display()));
    assert_eq!(fs::read(copy.join("f")).unwrap(), b"first");
    // Rewritten in place: refused, and told once for each state of the file.
    let watcher = cluster.watch(&one, "--rescan 100ms --settle 10ms");
    shell(&one, "printf second > f");
    watcher.wait_for(|event| event["event"] == "refused" && event["name"] == "f");
    std::thread::sleep(Duration::from_millis(600));
    assert!(watcher.told().is_empty());
    // Dropped, the name is free.
    let (code, _) = cluster.code("segments drop f");
    assert_eq!(code, 2, "it asks");
    cluster.ok("segments drop f --yes");
    watcher.replicated("f");
    cluster.ok(&format!(
        "segments get f --replace --into {}",
        copy.display()
    ));
    assert_eq!(fs::read(copy.join("f")).unwrap(), b"second");
}

#[test]
fn r03_of_two_that_claim_a_name_at_once_one_gets_it() {
    let cluster = Cluster::new(2, MIB, 16 * MIB);
    cluster
        .units
        .spread_log("seg.other", "mirror:2", 2, 16 * MIB);
    let (one, two) = (cluster.directory("one"), cluster.directory("two"));
    let first = cluster.watch(&one, "--settle 20ms");
    let second = cluster.watch(&two, "--settle 20ms --body seg.other");
    for index in 0..12 {
        fs::write(one.join(format!("f{index}")), format!("one {index}")).unwrap();
        fs::write(two.join(format!("f{index}")), format!("two {index}")).unwrap();
    }
    let outcomes = |watcher: &Watcher| {
        let mut won = vec![None; 12];
        while won.contains(&None) {
            let event = watcher.wait_for(|event| !event["name"].is_null());
            let index: usize = event["name"].as_str().unwrap()[1..].parse().unwrap();
            won[index] = Some(event["event"] == "replicated");
        }
        won.into_iter().flatten().collect::<Vec<_>>()
    };
    let (won, lost) = (outcomes(&first), outcomes(&second));
    assert!(
        won.iter().zip(&lost).all(|(one, two)| one != two),
        "{won:?} {lost:?}"
    );
    let copy = cluster.directory("copy");
    cluster.ok(&format!("segments get --all --into {}", copy.display()));
    for (index, won) in won.iter().enumerate() {
        let who = if *won { "one" } else { "two" };
        let read = fs::read_to_string(copy.join(format!("f{index}"))).unwrap();
        assert_eq!(read, format!("{who} {index}"));
    }
}

#[test]
fn r04_less_than_two_replicas_are_refused() {
    let cluster = Cluster::bare(2);
    cluster.units.spread_log("seg.index", "mirror:2", 2, MIB);
    cluster.units.log_on(0, "seg.body", 3 * MIB);
    let data = cluster.directory("data");
    shell(&data, "printf x > f");
    let (code, said) = cluster.code(&format!("segments watch {} --once", data.display()));
    assert_eq!(code, 6, "{said}");
    assert!(
        said.contains("1 of the 2 units") && said.contains("--replicas 1"),
        "{said}"
    );
    assert!(cluster.names().is_empty());
    let once = format!("segments watch {} --once --replicas 1", data.display());
    cluster.ok(&once);
    assert_eq!(cluster.names(), ["f"]);
    // Several times round the log of one unit.
    for round in 0..6 {
        fs::write(data.join("g"), pattern(1_200_000, round)).unwrap();
        cluster.ok(&once);
        fetch_all(&cluster, &data, &format!("copy-{round}"));
        cluster.ok("segments drop g --yes");
    }
}

#[test]
fn r07_the_copy_comes_from_any_unit_that_holds_it() {
    let mut cluster = Cluster::new(2, MIB, 24 * MIB);
    let data = cluster.directory("data");
    for index in 0..5 {
        fs::write(data.join(format!("s{index}")), pattern(700_000, index)).unwrap();
    }
    cluster.ok(&format!("segments watch {} --once", data.display()));
    for lost in 0..2 {
        cluster.units.stop(lost);
        fetch_all(&cluster, &data, &format!("without-{lost}"));
        cluster.units.start(lost);
    }
    cluster.units.stop(0);
    cluster.units.stop(1);
    let copy = cluster.directory("copy");
    let (code, said) = cluster.code(&format!("segments get s0 --into {}", copy.display()));
    assert_eq!(code, 6, "{said}");
}

#[test]
fn r07_a_watcher_waits_for_a_unit_that_was_lost() {
    let mut cluster = Cluster::new(2, MIB, 24 * MIB);
    let data = cluster.directory("data");
    let watcher = cluster.watch(&data, "--settle 20ms --timeout 2s");
    shell(&data, "printf one > one");
    watcher.replicated("one");
    cluster.units.stop(1);
    shell(&data, "printf two > two");
    let waiting = watcher.wait_for(|event| event["event"] == "waiting");
    assert!(!waiting["error"].as_str().unwrap().is_empty());
    // With fewer than two replicas it is no segment.
    assert_eq!(cluster.names(), ["one"]);
    cluster.units.start(1);
    watcher.wait_for(|event| event["event"] == "resumed");
    let event = watcher.replicated("two");
    assert_eq!(event["receipt"]["units"].as_array().unwrap().len(), 2);
    drop(watcher);
    cluster.units.stop(0);
    fetch_all(&cluster, &data, "copy");
}

#[test]
fn r09_units_only_store() {
    let cluster = Cluster::new(2, MIB, 16 * MIB);
    let data = cluster.directory("data");
    shell(&data, "printf kept > f");
    cluster.ok(&format!("segments watch {} --once", data.display()));
    // The node that ran the program is gone, with all that it had.
    fs::remove_dir_all(&data).unwrap();
    let into = cluster.directory("second");
    let mut command = cluster.command(["segments", "get", "f", "--into", into.to_str().unwrap()]);
    command.env("PMU_IDENTITY", cluster.units.path("backup"));
    assert!(command.output().unwrap().status.success());
    assert_eq!(fs::read(into.join("f")).unwrap(), b"kept");
}

#[test]
fn r03_room_of_dropped_segments_is_used_again_and_the_index_is_kept_short() {
    let cluster = Cluster::new(2, 256 << 10, 4 * MIB);
    let data = cluster.directory("data");
    let keep = pattern(500_000, 99);
    fs::write(data.join("keep"), &keep).unwrap();
    let once = format!("segments watch {} --once --settle 5ms", data.display());
    cluster.ok(&once);
    // Several times round the body, past the one that stays; and round the index, by names of one length.
    for round in 0..12 {
        let name = format!("round-{round:02}");
        fs::write(data.join(&name), pattern(900_000, round)).unwrap();
        for small in 0..40 {
            let text = format!("{round} {small}");
            fs::write(
                data.join(format!("small-{small}-{}", "x".repeat(150))),
                text,
            )
            .unwrap();
        }
        cluster.ok(&once);
        assert_eq!(cluster.names().len(), 42);
        let mut names = cluster.names();
        names.retain(|name| name != "keep");
        cluster.ok(&format!("segments drop {} --yes", names.join(" ")));
        for name in names {
            fs::remove_file(data.join(name)).unwrap();
        }
    }
    fetch_all(&cluster, &data, "copy");
    // What doesn't fit is told, and what is there stays.
    fs::write(data.join("too-big"), pattern(5_000_000, 1)).unwrap();
    let (code, said) = cluster.code(&once);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no room"), "{said}");
    assert_eq!(cluster.names(), ["keep"]);
}

#[test]
fn r03_an_index_that_is_full_says_so_and_can_be_emptied() {
    let cluster = Cluster::new(2, 64 << 10, 4 * MIB);
    let data = cluster.directory("data");
    let name = |number: usize| format!("{number:04}-{}", "x".repeat(150));
    for number in 0..400 {
        fs::write(data.join(name(number)), format!("{number}")).unwrap();
    }
    let once = format!("segments watch {} --once --settle 5ms", data.display());
    let (code, said) = cluster.code(&once);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("has no room for more than its"), "{said}");
    let names = cluster.names();
    assert!(!names.is_empty() && names.len() < 400, "{}", names.len());
    // Those that there are can be read, and dropped: then there is room for the others.
    let copy = cluster.directory("copy");
    cluster.ok(&format!("segments get --all --into {}", copy.display()));
    assert_eq!(fs::read_dir(&copy).unwrap().count(), names.len());
    cluster.ok(&format!("segments drop {} --yes", names.join(" ")));
    for name in &names {
        fs::remove_file(data.join(name)).unwrap();
    }
    let (_, said) = cluster.code(&once);
    let more = cluster.names();
    assert!(!more.is_empty(), "{said}");
    assert!(more.iter().all(|name| !names.contains(name)), "{more:?}");
}

/// Where the index ends.
fn end_of_index(cluster: &Cluster) -> u64 {
    let spread = cluster.units.find("backup", "seg.index");
    let mut log = spread.open_log_backup(false, &OpenOptions::new()).unwrap();
    while log.read_unread(1 << 20).unwrap().len() > 0 {}
    log.position().get()
}

#[test]
fn r03_an_index_that_is_full_is_not_written_anew_for_who_is_refused_again() {
    let index_bytes = 64 << 10;
    let cluster = Cluster::new(2, index_bytes, 4 * MIB);
    let data = cluster.directory("data");
    for number in 0..200 {
        let name = format!("{number:04}-{}", "x".repeat(150));
        fs::write(data.join(name), format!("{number}")).unwrap();
    }
    let once = format!("segments watch {} --once --settle 5ms", data.display());
    let (code, said) = cluster.code(&once);
    assert_eq!(code, 1, "{said}");
    let names = cluster.names();
    let before = end_of_index(&cluster);
    for _ in 0..3 {
        let (code, said) = cluster.code(&once);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("has no room for more than its"), "{said}");
    }
    assert_eq!(cluster.names(), names);
    let written = end_of_index(&cluster) - before;
    assert!(written <= 2 * index_bytes, "{written} bytes");
    // Nor for each drop: there is room for those.
    let before = end_of_index(&cluster);
    for name in &names[..5] {
        cluster.ok(&format!("segments drop {name} --yes"));
    }
    let written = end_of_index(&cluster) - before;
    assert!(written <= index_bytes, "{written} bytes");
    assert_eq!(cluster.names(), names[5..]);
}
