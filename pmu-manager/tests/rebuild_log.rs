//! `pmm region rebuild`, `scrub` and `verify` of logs that are spread over real units.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod site;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pmu_client::{ConnectOptions, Identity, OpenOptions, Spread, SpreadLogPrimary};
use serde_json::json;
use site::Site;

const CREATE: &str = "region create log --mode append --layout parity:3+1 \
     --units unit-1,unit-2,unit-3,unit-4 --size 8MiB --grant trainer:read,append,clear";

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
    Spread::find(&seeds, "log", &identity, &options).unwrap()
}

fn primary(site: &Site) -> SpreadLogPrimary {
    let spread = find(site, &[1, 2, 3, 4]);
    spread.open_log_primary(&OpenOptions::new()).unwrap()
}

fn record(number: u64) -> Vec<u8> {
    let length = 40_000 + number as usize;
    (0..length)
        .map(|index| (index / 7 * 31 + index) as u8 ^ number as u8)
        .collect()
}

fn append(log: &mut SpreadLogPrimary, numbers: std::ops::Range<u64>) -> usize {
    let receipts = numbers.map(|number| log.append(&record(number)).unwrap().units.len());
    receipts.last().unwrap()
}

/// The records that are there are those with these numbers.
fn holds(site: &Site, seeds: &[usize], numbers: std::ops::Range<u64>) {
    let mut next = numbers.start;
    let mut backup = find(site, seeds)
        .open_log_backup(false, &OpenOptions::new())
        .unwrap();
    let found = backup.recover(|found| {
        assert!(found.payload == record(next), "record {next}");
        next += 1;
        Ok(())
    });
    assert_eq!((found.unwrap().damage, next), (None, numbers.end));
}

/// Only the trainer's: what the manager gave itself is taken back.
fn nobody_else_has_rights(site: &Site, units: &[usize]) {
    for unit in units {
        let (_, shown) = site.json(&format!("region show log --unit unit-{unit}"));
        let grants = shown["grants"].as_array().unwrap();
        let names: Vec<_> = grants.iter().map(|grant| &grant["principal"]).collect();
        assert_eq!(names, ["trainer"], "unit {unit}");
    }
}

#[test]
fn d07_pmm_replaces_a_dead_unit_of_a_log_while_the_program_goes_on() {
    let mut site = site();
    let mut log = primary(&site);
    append(&mut log, 0..20);
    site.kill(2);
    assert_eq!(append(&mut log, 20..30), 3);
    let (exit, done) = site.json("region rebuild log --replace unit-2=unit-5");
    assert_eq!((exit, &done["generation"]), (0, &json!(2)), "{done}");
    assert_eq!(done["units"][0]["unit"], "unit-5");
    assert_eq!(done["units"][0]["records"], 30);
    assert_eq!(done["missing"][0]["unit"], "unit-2");
    nobody_else_has_rights(&site, &[1, 3, 4, 5]);
    let (_, shown) = site.json("region show log");
    assert_eq!(Site::states(&shown["spread"]), ["active"; 4]);
    append(&mut log, 30..31);
    log.rejoin().unwrap();
    assert_eq!(append(&mut log, 31..33), 4);

    // It comes back, and nobody believes it, whoever is asked first.
    site.back(2);
    holds(&site, &[2, 1], 0..33);
    let refused = site.fails("region rebuild log --replace unit-1=unit-2", 1);
    assert!(
        refused.contains("unit-2 holds a region log that") && refused.contains("--unit unit-2"),
        "{refused}"
    );
    let again = site.ok("region rebuild log --replace unit-2=unit-5 --delete-old");
    assert!(again.contains("nothing was lacking"), "{again}");
    assert!(!site.holders("log").contains(&"unit-2".to_owned()));
    // And now it can take another one's place, who lives.
    let said = site.ok("region rebuild log --replace unit-1=unit-2 --delete-old");
    assert!(said.contains("unit-2: given 33 records"), "{said}");
    append(&mut log, 33..34);
    log.rejoin().unwrap();
    assert_eq!(append(&mut log, 34..35), 4);
    nobody_else_has_rights(&site, &[2, 3, 4, 5]);
    site.kill(3);
    holds(&site, &[4], 0..35);
}

#[test]
fn d07_pmm_that_is_killed_while_it_copies_a_log_goes_on_where_it_was() {
    let mut site = site();
    let mut log = primary(&site);
    // 500 records of 13 KiB and more on each unit: more than one step of 4 MiB.
    append(&mut log, 0..500);
    site.kill(2);
    let line = "region rebuild log --replace unit-2=unit-5 --rate 2MiB";
    let mut slow = Command::new(env!("CARGO_BIN_EXE_pmm"))
        .args(line.split_whitespace())
        .env("PMU_HOME", site.path(""))
        .env_remove("PMM_IDENTITY")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Long enough for the first step, and too short for the rest.
    let begun = Instant::now();
    while !site.run("region show log --unit unit-5").status.success() {
        assert!(begun.elapsed() < Duration::from_secs(60) && slow.try_wait().unwrap().is_none());
    }
    std::thread::sleep(Duration::from_millis(1500));
    slow.kill().unwrap();
    slow.wait().unwrap();
    // As if nothing were.
    holds(&site, &[1, 3, 4], 0..500);
    let (exit, done) = site.json("region rebuild log --replace unit-2=unit-5");
    let given = done["units"][0]["records"].as_u64().unwrap();
    // Some were there.
    assert!(exit == 0 && (1..350).contains(&given), "{done}");
    site.kill(1);
    holds(&site, &[5], 0..500);
}

#[test]
fn d07_pmm_brings_a_unit_of_a_log_up_to_date_that_was_away() {
    let mut site = site();
    let mut log = primary(&site);
    append(&mut log, 0..5);
    site.kill(3);
    append(&mut log, 5..9);
    drop(log);
    let (exit, done) = site.json("region rebuild log");
    assert_eq!((exit, &done["missing"][0]["unit"]), (6, &json!("unit-3")));
    site.back(3);
    let said = site.ok("region rebuild log --unit unit-3");
    assert!(said.contains("unit-3: given 4 records"), "{said}");
    let said = site.ok("region rebuild log");
    assert!(said.contains("nothing was lacking"), "{said}");
    nobody_else_has_rights(&site, &[1, 2, 3, 4]);
    site.kill(1);
    holds(&site, &[2], 0..9);
}

#[test]
fn b07_pmm_scrubs_and_verifies_all_that_the_units_hold_of_a_log() {
    let mut site = site();
    let mut log = primary(&site);
    append(&mut log, 0..6);
    drop(log);
    let clean = site.ok("region scrub log");
    assert!(
        clean.contains("no damage found") && clean.contains("6 records"),
        "{clean}"
    );
    // The redundancy, which no reader reads in a healthy log.
    site.kill(4);
    let mut pool = std::fs::read(site.pool(4)).unwrap();
    let magic = pmu_format::RECORD_SHARE_MAGIC.to_le_bytes();
    let begins = (0..pool.len() - 8).step_by(8);
    let third = begins.filter(|at| pool[*at..*at + 8] == magic);
    let at = third.take(3).last().unwrap();
    pool[at + 100] ^= 1;
    std::fs::write(site.pool(4), pool).unwrap();
    site.back(4);
    let (exit, found) = site.json("region scrub log --no-repair");
    assert_eq!((exit, &found["damaged"]), (5, &json!(true)), "{found}");
    assert_eq!(found["units"][3]["damage"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&found["records"], &found["groups"]),
        (&json!(6), &json!(5))
    );
    let (exit, verified) = site.json("region verify log");
    assert_eq!(
        (exit, &verified["damaged"]),
        (5, &json!(true)),
        "{verified}"
    );
    assert_eq!(verified["contents"]["units"][3]["unit"], "unit-4");
    let repaired = site.ok("region scrub log");
    assert!(
        repaired.contains("unit-4: given 1 record,") && repaired.contains("found and repaired"),
        "{repaired}"
    );
    assert_eq!(site.json("region scrub log").0, 0);
    let verified = site.ok("region verify log");
    assert!(verified.contains("no damage found"), "{verified}");
    nobody_else_has_rights(&site, &[1, 2, 3, 4]);
    site.kill(1);
    holds(&site, &[2], 0..6);
}
