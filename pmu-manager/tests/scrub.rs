//! Scrubs of spread regions by the units themselves, and by `pmm`: the rate, Ctrl-C, and what is left of a `pmm` that is killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod site;

use std::io::IoSlice;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use pmu_client::{ConnectOptions, Identity, Label, OpenOptions, SetChoice, Spread, SpreadPrimary};
use pmu_server::scrub::clock::{Clock, Stop};
use serde_json::{Value, json};
use site::Site;

const PATIENCE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const CREATE: &str = "region create job --mode overwrite --layout parity:3+1 \
     --units unit-1,unit-2,unit-3,unit-4 --capacity 4MiB --sets 2 --grant trainer:read,write";

/// Time that passes when the test lets it, or when a scrub pauses to keep its rate.
#[derive(Default)]
struct TestClock {
    elapsed: Mutex<Duration>,
    changed: Condvar,
}

impl TestClock {
    fn advance(&self, time: Duration) {
        *self.elapsed.lock().unwrap() += time;
        self.changed.notify_all();
    }
}

impl Clock for TestClock {
    fn date(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap()
    }

    fn pause(&self, time: Duration, _: &Stop) {
        self.advance(time);
    }

    fn idle(&self, time: Duration, stop: &Stop) {
        let mut elapsed = self.elapsed.lock().unwrap();
        let until = *elapsed + time;
        while *elapsed < until && !stop.is_given() {
            let look = Duration::from_millis(2);
            elapsed = self.changed.wait_timeout(elapsed, look).unwrap().0;
        }
    }
}

fn find(site: &Site, seeds: &[usize]) -> Spread {
    let identity = Identity::load(&site.path("trainer")).unwrap();
    let seeds: Vec<_> = seeds.iter().map(|number| site.address(*number)).collect();
    let options = ConnectOptions::with_timeout(Duration::from_secs(20));
    Spread::find(&seeds, "job", &identity, &options).unwrap()
}

fn primary(site: &Site) -> SpreadPrimary {
    let spread = find(site, &[1, 2, 3, 4]);
    spread.open_primary(&OpenOptions::new()).unwrap()
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    let index = (0..length).map(|index| (index / 7 * 31 + index) as u8 ^ seed);
    index.collect()
}

fn commit(primary: &mut SpreadPrimary, bytes: &[u8]) -> usize {
    let receipt = primary.commit(&[IoSlice::new(bytes)], Label::default());
    receipt.unwrap().units.len()
}

fn newest(site: &Site, seeds: &[usize]) -> Vec<u8> {
    let spread = find(site, seeds);
    let mut reader = spread.open_reader(&OpenOptions::new()).unwrap();
    let mut found = Vec::new();
    reader.read(SetChoice::Newest, &mut found).unwrap();
    found
}

/// Turns one bit in the pool of a running unit, where `needle` is found.
fn damage(site: &Site, unit: usize, needle: &[u8]) {
    let path = site.pool(unit);
    let pool = std::fs::read(&path).unwrap();
    let mut places = pool.windows(needle.len());
    let at = places.position(|window| window == needle).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[needle[0] ^ 1], at as u64).unwrap();
}

/// Only the trainer's and the scrubber's, on all units.
fn nobody_else_has_rights(site: &Site) {
    for unit in 1..=4 {
        let (_, shown) = site.json(&format!("region show job --unit unit-{unit}"));
        let grants = shown["grants"].as_array().unwrap();
        let others = grants
            .iter()
            .map(|grant| grant["principal"].as_str().unwrap());
        let others: Vec<_> = others
            .filter(|name| !["trainer", "scrubber"].contains(name))
            .collect();
        assert_eq!(others, [""; 0], "unit {unit}");
    }
}

fn scrub_of(site: &Site) -> Value {
    site.json("region show job").1["scrub"].clone()
}

/// Lets a week pass, and then as much as it takes until a scrub has ended after it.
fn next_scrub(site: &Site, clock: &TestClock) -> Value {
    clock.advance(7 * DAY);
    let since_s = clock.date().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let begun = Instant::now();
    loop {
        let scrub = scrub_of(site);
        let finished_s = scrub["finished_at_s"].as_u64().unwrap_or(0);
        if finished_s >= since_s.as_secs() && scrub["running_bytes"].is_null() {
            return scrub;
        }
        assert!(begun.elapsed() < PATIENCE, "{scrub}");
        clock.advance(DAY / 24);
        std::thread::sleep(Duration::from_millis(150));
    }
}

#[test]
fn b07_one_member_scrubs_and_repairs_for_all() {
    let clock = Arc::new(TestClock::default());
    let scrub = (Arc::clone(&clock) as _, "rate = \"50MiB/s\"");
    let mut site = Site::with_scrub(4, 16 << 20, Some(scrub));
    site.ok("ca issue trainer --role client --out HOME/trainer");
    site.ok(&format!("{CREATE} --grant scrubber:read,write"));
    let mut trainer = primary(&site);
    let stored = bytes(4_000_000, 7);
    commit(&mut trainer, &stored);
    // All are new, and begin at different times.
    clock.advance(DAY / 24);
    let first = next_scrub(&site, &clock);
    assert_eq!(
        (&first["damaged"], &first["failure"]),
        (&json!(0), &Value::Null),
        "{first}"
    );

    // The primary is alive. Its first member is damaged, and found by whoever comes first.
    damage(&site, 2, &stored[64 << 10..(64 << 10) + 64]);
    let second = next_scrub(&site, &clock);
    assert_eq!(
        (&second["damaged"], &second["repaired"]),
        (&json!(1), &json!(1)),
        "{second}"
    );
    assert_eq!(second["by"], "unit-1", "{second}");
    let finding = second["findings"][0].as_str().unwrap();
    assert!(finding.starts_with("unit-2: "), "{finding}");
    let page = site.ok("unit show unit-1");
    assert!(
        page.contains("every 7 d 0 h, at most 50 MiB in a second, repairs"),
        "{page}"
    );
    assert!(page.contains(&format!("job: {finding}")), "{page}");
    assert_eq!(site.json("region scrub job --no-repair").0, 0);
    let last = bytes(4_000_000, 8);
    assert!(commit(&mut trainer, &last) >= 3);

    // The others have heard of it, and wait for the next time.
    let third = next_scrub(&site, &clock);
    assert_eq!(
        (&third["by"], &third["damaged"]),
        (&json!("unit-1"), &json!(0)),
        "{third}"
    );
    // The one that does it dies: the next one does.
    site.kill(1);
    let fourth = next_scrub(&site, &clock);
    assert_eq!(fourth["unreadable"], 1, "{fourth}");
    assert_ne!(fourth["by"], "unit-1", "{fourth}");
    nobody_else_has_rights_but_on(&site, &[2, 3, 4]);
    assert_eq!(newest(&site, &[2]), last);
}

fn nobody_else_has_rights_but_on(site: &Site, units: &[usize]) {
    for unit in units {
        let (_, shown) = site.json(&format!("region show job --unit unit-{unit}"));
        assert_eq!(shown["grants"].as_array().unwrap().len(), 2, "{shown}");
    }
}

#[test]
fn b07_one_member_scrubs_and_repairs_a_log_for_all() {
    let clock = Arc::new(TestClock::default());
    let scrub = (Arc::clone(&clock) as _, "");
    let mut site = Site::with_scrub(4, 16 << 20, Some(scrub));
    site.ok("ca issue trainer --role client --out HOME/trainer");
    site.ok(
        "region create job --mode append --layout parity:3+1 --units unit-1,unit-2,unit-3,unit-4 \
         --size 2MiB --grant trainer:read,append --grant scrubber:read,append",
    );
    let records: Vec<_> = (0..20).map(|seed| bytes(9000, seed)).collect();
    let spread = find(&site, &[1, 2, 3, 4]);
    let mut primary = spread.open_log_primary(&OpenOptions::new()).unwrap();
    for record in &records {
        primary.append(record).unwrap();
    }
    drop(primary);
    clock.advance(DAY / 24);
    let first = next_scrub(&site, &clock);
    assert_eq!(
        (&first["damaged"], &first["failure"]),
        (&json!(0), &Value::Null),
        "{first}"
    );
    // The second of three equal parts.
    damage(&site, 2, &records[7][4000..4064]);
    let second = next_scrub(&site, &clock);
    assert_eq!(
        (&second["damaged"], &second["repaired"]),
        (&json!(1), &json!(1)),
        "{second}"
    );
    assert_eq!(site.json("region scrub job --no-repair").0, 0);
    site.kill(1);
    let mut backup = find(&site, &[2, 3, 4])
        .open_log_backup(false, &OpenOptions::new())
        .unwrap();
    let mut found = Vec::new();
    let recovered = backup.recover(|record| {
        found.push(record.payload.to_vec());
        Ok(())
    });
    assert_eq!(recovered.unwrap().damage, None);
    assert_eq!(found, records);
}

#[test]
fn b07_a_scrub_that_cannot_work_says_why() {
    let clock = Arc::new(TestClock::default());
    let scrub = (Arc::clone(&clock) as _, "");
    let site = Site::with_scrub(4, 16 << 20, Some(scrub));
    site.ok("ca issue trainer --role client --out HOME/trainer");
    site.ok(CREATE);
    clock.advance(DAY / 24);
    std::thread::sleep(Duration::from_millis(100));
    clock.advance(8 * DAY);
    let begun = Instant::now();
    let failure = loop {
        if let Some(failure) = scrub_of(&site)["failure"].as_str() {
            break failure.to_owned();
        }
        assert!(begun.elapsed() < PATIENCE);
        clock.advance(DAY / 24);
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(
        failure.contains("not allowed") && failure.contains("scrubber"),
        "{failure}"
    );
    // It is tried again once it may.
    site.ok("region grant job scrubber:read,write");
    let done = next_scrub(&site, &clock);
    assert_eq!(done["failure"], Value::Null, "{done}");
}

/// Waits until a command of alice's reads the region.
fn reads(site: &Site, child: &mut Child) {
    let begun = Instant::now();
    loop {
        let (_, shown) = site.json("region show job --unit unit-1");
        let sessions = shown["open_sessions"].as_array().unwrap();
        if sessions.iter().any(|one| one["principal"] == "alice") {
            return;
        }
        assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
    }
}

fn small_site() -> (Site, Vec<u8>) {
    let site = Site::with(4, 16 << 20);
    site.ok("ca issue trainer --role client --out HOME/trainer");
    site.ok(CREATE);
    let stored = bytes(4_000_000, 7);
    let mut trainer = primary(&site);
    commit(&mut trainer, &bytes(4_000_000, 6));
    commit(&mut trainer, &stored);
    (site, stored)
}

#[test]
fn b07_pmm_that_is_killed_leaves_no_rights() {
    let (site, stored) = small_site();
    let mut child = site.begin("region scrub job --rate 100KiB");
    reads(&site, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    nobody_else_has_rights(&site);
    assert_eq!(site.json("region scrub job").0, 0);
    let mut child = site.begin("region rebuild job --unit unit-2 --rate 100KiB");
    let _ = child.kill();
    child.wait().unwrap();
    nobody_else_has_rights(&site);
    assert_eq!(newest(&site, &[1]), stored);
}

#[test]
fn b07_ctrl_c_ends_a_scrub_and_says_how_far_it_was() {
    let (site, stored) = small_site();
    damage(&site, 2, &stored[64 << 10..(64 << 10) + 64]);
    // Once while it reads, once while it may already repair.
    for (rate, wait_ms) in [("100KiB", 500), ("6MiB", 1900)] {
        let mut child = site.begin(&format!("region scrub job --rate {rate}"));
        reads(&site, &mut child);
        std::thread::sleep(Duration::from_millis(wait_ms));
        let pid = child.id().to_string();
        assert!(child.try_wait().unwrap().is_none(), "{rate}");
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        let begun = Instant::now();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{rate}: {errors}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{rate}: {:?}",
            begun.elapsed()
        );
        assert!(errors.contains("region job: interrupted after"), "{errors}");
        nobody_else_has_rights(&site);
        assert_eq!(newest(&site, &[1]), stored, "{rate}");
    }
    let done = site.ok("region scrub job");
    assert!(
        done.contains("found and repaired") || done.contains("no damage found"),
        "{done}"
    );
    assert_eq!(site.json("region scrub job --no-repair").0, 0);
}

#[test]
fn b07_pmm_keeps_its_rate() {
    let (site, _) = small_site();
    let begun = Instant::now();
    let (exit, found) = site.json("region scrub job --rate 4MiB");
    let took = begun.elapsed().as_secs_f64();
    let units = found["units"].as_array().unwrap();
    let read: u64 = units
        .iter()
        .map(|unit| unit["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(exit, 0);
    // Two sets of 4 MB and a third more.
    assert!(read > 10_600_000, "{found}");
    assert!(
        took >= read as f64 / f64::from(4 << 20),
        "{read} bytes in {took} s"
    );
}
