//! `pmm region rebuild`, `scrub` and `verify` of regions that are spread over real units.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod site;

use std::io::IoSlice;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pmu_client::{ConnectOptions, Identity, Label, OpenOptions, SetChoice, Spread, SpreadPrimary};
use serde_json::json;
use site::Site;

const CREATE: &str = "region create job --mode overwrite --layout parity:3+1 \
     --units unit-1,unit-2,unit-3,unit-4 --capacity 4MiB --sets 2 --grant trainer:read,write";

fn site() -> Site {
    let site = Site::with(5, 16 << 20);
    site.ok("ca issue trainer --role client --out HOME/trainer");
    site.ok(CREATE);
    site
}

fn find(site: &Site, seeds: &[usize]) -> Spread {
    let identity = Identity::load(&site.path("trainer")).unwrap();
    let seeds: Vec<_> = seeds.iter().map(|number| site.address(*number)).collect();
    let options = ConnectOptions::with_timeout(Duration::from_secs(20));
    Spread::find(&seeds, "job", &identity, &options).unwrap()
}

fn primary(site: &Site) -> SpreadPrimary {
    find(site, &[1, 2, 3, 4])
        .open_primary(&OpenOptions::new())
        .unwrap()
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|index| (index / 7 * 31 + index) as u8 ^ seed)
        .collect()
}

fn commit(primary: &mut SpreadPrimary, bytes: &[u8]) -> usize {
    let receipt = primary.commit(&[IoSlice::new(bytes)], Label::default());
    receipt.unwrap().units.len()
}

fn newest(site: &Site, seeds: &[usize]) -> Vec<u8> {
    let spread = find(site, seeds);
    let mut found = Vec::new();
    spread
        .open_reader(&OpenOptions::new())
        .unwrap()
        .read(SetChoice::Newest, &mut found)
        .unwrap();
    found
}

/// Only the trainer's: what the manager gave itself is taken back.
fn nobody_else_has_rights(site: &Site, units: &[usize]) {
    for unit in units {
        let (_, shown) = site.json(&format!("region show job --unit unit-{unit}"));
        let grants = shown["grants"].as_array().unwrap();
        let names: Vec<_> = grants.iter().map(|grant| &grant["principal"]).collect();
        assert_eq!(names, ["trainer"], "unit {unit}");
    }
}

#[test]
fn d07_pmm_replaces_a_dead_unit_while_the_program_goes_on() {
    let mut site = site();
    let mut trainer = primary(&site);
    commit(&mut trainer, &bytes(4_000_000, 1));
    site.kill(2);
    let last = bytes(4_000_000, 2);
    assert_eq!(commit(&mut trainer, &last), 3);
    let (exit, done) = site.json("region rebuild job --replace unit-2=unit-5");
    assert_eq!((exit, &done["generation"]), (0, &json!(2)), "{done}");
    assert_eq!(done["units"][0]["unit"], "unit-5");
    assert_eq!(done["units"][0]["sets"], 2);
    assert_eq!(done["missing"][0]["unit"], "unit-2");
    nobody_else_has_rights(&site, &[1, 3, 4, 5]);
    let (_, shown) = site.json("region show job");
    assert_eq!(Site::states(&shown["spread"]), ["active"; 4]);
    assert_eq!(shown["spread"]["members"][1]["unit"], "unit-5");
    assert_eq!(newest(&site, &[1, 3, 4]), last);
    let next = bytes(3_000_000, 3);
    commit(&mut trainer, &next);
    trainer.rejoin().unwrap();
    assert_eq!(commit(&mut trainer, &next), 4);

    // It comes back, and is told nothing by itself; nobody believes it, whoever is asked first.
    site.back(2);
    assert_eq!(newest(&site, &[2, 1]), next);
    let refused = site.fails("region rebuild job --replace unit-1=unit-2", 1);
    assert!(
        refused.contains("unit-2 holds a region job that") && refused.contains("--unit unit-2"),
        "{refused}"
    );
    let again = site.ok("region rebuild job --replace unit-2=unit-5 --delete-old");
    assert!(again.contains("nothing was lacking"), "{again}");
    assert!(!site.holders("job").contains(&"unit-2".to_owned()));
    nobody_else_has_rights(&site, &[1, 3, 4, 5]);
    // And now it can take another one's place.
    site.ok("region rebuild job --replace unit-1=unit-2 --delete-old");
    commit(&mut trainer, &next);
    trainer.rejoin().unwrap();
    assert_eq!(commit(&mut trainer, &last), 4);
    site.kill(3);
    assert_eq!(newest(&site, &[4]), last);
}

#[test]
fn d07_pmm_that_is_killed_goes_on_where_it_was() {
    let mut site = site();
    let mut trainer = primary(&site);
    commit(&mut trainer, &bytes(4_000_000, 1));
    let last = bytes(4_000_000, 2);
    commit(&mut trainer, &last);
    site.kill(2);
    let line = "region rebuild job --replace unit-2=unit-5 --rate 800KiB";
    let mut slow = Command::new(env!("CARGO_BIN_EXE_pmm"))
        .args(line.split_whitespace())
        .env("PMU_HOME", site.path(""))
        .env_remove("PMM_IDENTITY")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Long enough for the first of both sets, of 1.3 MiB each, and too short for the second.
    let begun = Instant::now();
    while !site.run("region show job --unit unit-5").status.success() {
        assert!(begun.elapsed() < Duration::from_secs(60) && slow.try_wait().unwrap().is_none());
    }
    std::thread::sleep(Duration::from_millis(2400));
    slow.kill().unwrap();
    slow.wait().unwrap();
    // As if nothing were.
    assert_eq!(newest(&site, &[1, 3, 4]), last);
    let (exit, done) = site.json("region rebuild job --replace unit-2=unit-5");
    assert_eq!(
        (exit, &done["units"][0]["sets"]),
        (0, &json!(1)),
        "the other one was there: {done}"
    );
    assert_eq!(newest(&site, &[1, 3, 4]), last);
    site.kill(1);
    assert_eq!(newest(&site, &[5]), last);
}

#[test]
fn d07_pmm_brings_a_unit_up_to_date_that_was_away() {
    let mut site = site();
    let mut trainer = primary(&site);
    commit(&mut trainer, &bytes(3_000_000, 1));
    site.kill(3);
    let last = bytes(3_000_000, 2);
    commit(&mut trainer, &last);
    drop(trainer);
    let (exit, done) = site.json("region rebuild job");
    assert_eq!((exit, &done["missing"][0]["unit"]), (6, &json!("unit-3")));
    site.back(3);
    let (exit, done) = site.json("region rebuild job --unit unit-3");
    assert_eq!(
        (exit, &done["units"]),
        (
            0,
            &json!([{"unit": "unit-3", "sets": 1, "bytes": done["units"][0]["bytes"], "newest_set": 2}])
        )
    );
    nobody_else_has_rights(&site, &[1, 2, 3, 4]);
    site.kill(1);
    assert_eq!(newest(&site, &[2]), last);
}

#[test]
fn b07_pmm_scrubs_and_verifies_all_members() {
    let mut site = site();
    let mut trainer = primary(&site);
    let stored = bytes(4_000_000, 7);
    commit(&mut trainer, &stored);
    drop(trainer);
    let clean = site.ok("region scrub job");
    assert!(clean.contains("no damage found"), "{clean}");
    site.kill(2);
    let mut pool = std::fs::read(site.pool(2)).unwrap();
    let needle = &stored[64 << 10..(64 << 10) + 64];
    let at = pool
        .windows(64)
        .position(|window| window == needle)
        .unwrap();
    pool[at + 1] ^= 1;
    std::fs::write(site.pool(2), pool).unwrap();
    site.back(2);
    let (exit, found) = site.json("region scrub job --no-repair");
    assert_eq!((exit, &found["damaged"]), (5, &json!(true)), "{found}");
    assert_eq!(found["units"][1]["damage"].as_array().unwrap().len(), 1);
    let (exit, verified) = site.json("region verify job");
    assert_eq!(
        (exit, &verified["damaged"]),
        (5, &json!(true)),
        "{verified}"
    );
    assert_eq!(verified["units"].as_array().unwrap().len(), 4);
    assert_eq!(verified["contents"]["units"][1]["unit"], "unit-2");
    let repaired = site.ok("region scrub job");
    assert!(
        repaired.contains("unit-2: given 1 set") && repaired.contains("found and repaired"),
        "{repaired}"
    );
    assert_eq!(site.json("region scrub job").0, 0);
    let verified = site.ok("region verify job");
    assert!(
        verified.contains("unit-4: 4 structures checked") && verified.contains("no damage found")
    );
    nobody_else_has_rights(&site, &[1, 2, 3, 4]);
    site.kill(1);
    assert_eq!(newest(&site, &[2]), stored);
}

#[test]
fn d07_replacements_that_make_no_sense() {
    let mut site = site();
    let say = |line: &str, exit: i32, expected: &str| {
        let error = site.fails(&format!("region rebuild {line}"), exit);
        assert!(error.contains(expected), "{line}: {error}");
    };
    say("job --replace unit-1", 2, "OLD=NEW");
    say("job --replace unit-1=unit-1", 2, "can't take its own place");
    say("job --replace unit-1=unit-9", 4, "no unit is called unit-9");
    say(
        "job --replace unit-9=unit-5",
        1,
        "unit unit-9 is not a member",
    );
    say(
        "job --replace unit-1=unit-2",
        1,
        "unit unit-2 is a member already",
    );
    say("job --unit unit-5", 1, "unit unit-5 is not a member");
    say("job --lost", 2, "--replace");
    site.ok("region create job --unit unit-5 --mode append --size 64KiB");
    say(
        "job --replace unit-1=unit-5",
        1,
        "not spread over several units",
    );
    site.ok("region delete job --yes --unit unit-5");
    site.ok("region create alone --unit unit-5 --mode append --size 64KiB");
    say("alone", 2, "which unit?");
    site.ok("region create full --unit unit-5 --mode append --size 15MiB");
    say("job --replace unit-1=unit-5", 1, "POOL_FULL");
    // Whatever it was, nothing was begun.
    let (_, shown) = site.json("region show job");
    assert_eq!(shown["spread"]["generation"], 1);
    nobody_else_has_rights(&site, &[1, 2, 3, 4]);
    site.kill(3);
    site.kill(4);
    site.ok("region delete full --yes --unit unit-5");
    let error = site.fails("region rebuild job --replace unit-1=unit-5", 6);
    assert!(
        error.contains("unit-3")
            && error.contains("unit-4")
            && error.contains("change the members"),
        "{error}"
    );
}
