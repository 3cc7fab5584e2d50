//! Units that scrub their regions by themselves: damage in the pool of a running unit, the rate, writers, restarts, the end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{IoSlice, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use pmu_auth::Role;
use pmu_client::{ConnectOptions, Label, LogPrimary, OpenOptions, SetPrimary};
use pmu_proto::v1::{self, create_region_request::Room};
use pmu_server::config::Config;
use pmu_server::metrics;
use pmu_server::scrub::clock::{Clock, Stop};
use pmu_server::unit::{Unit, UnitHandle};
use support::{APPEND, CLEAR, PATIENCE, READ, Site, WRITE, grant, init_pool};
use tokio::runtime::Runtime;

const DAY: Duration = Duration::from_secs(86_400);
const RATE: u64 = 1 << 20;

/// Time that passes when the test lets it, or when the scrub pauses to keep its rate.
#[derive(Default)]
struct TestClock {
    elapsed: Mutex<Duration>,
    changed: Condvar,
    /// Pauses last until the test lets them go, or the unit stops.
    stands: AtomicBool,
}

impl TestClock {
    fn let_go(&self) {
        self.stands.store(false, Ordering::Relaxed);
    }

    fn advance(&self, time: Duration) {
        *self.elapsed.lock() += time;
        self.changed.notify_all();
    }
}

impl Clock for TestClock {
    fn date(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY + *self.elapsed.lock()
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock()
    }

    fn pause(&self, time: Duration, stop: &Stop) {
        while self.stands.load(Ordering::Relaxed) && !stop.is_given() {
            stop.wait(Duration::from_millis(2));
        }
        self.advance(time);
    }

    fn idle(&self, time: Duration, stop: &Stop) {
        let mut elapsed = self.elapsed.lock();
        let until = *elapsed + time;
        while *elapsed < until && !stop.is_given() {
            let _ = self
                .changed
                .wait_for(&mut elapsed, Duration::from_millis(2));
        }
    }
}

struct Scrubbed {
    site: Site,
    runtime: Runtime,
    unit: Option<UnitHandle>,
    manager: support::Peer,
    clock: Arc<TestClock>,
}

fn config(site: &Site, keys: &str) -> Config {
    let pool = format!("medium = \"file\"\npath = {:?}", site.path("pool"));
    let state = site.path("scrub.json");
    let scrub = format!("[scrub]\nevery = \"7d\"\nstate = {state:?}\n{keys}\n");
    Config::parse(&(site.config_text(&pool) + &scrub)).unwrap()
}

async fn start(
    site: &Site,
    keys: &str,
    recorder: Option<metrics_exporter_prometheus::PrometheusHandle>,
    clock: Arc<dyn Clock>,
) -> (UnitHandle, support::Peer) {
    let unit = Unit::start_with_clock(config(site, keys), recorder, clock);
    let unit = unit.await.unwrap();
    let mut manager = site.peer(&unit, "boss", Role::Manager).await;
    let unlock = v1::InitializeRequest {};
    manager.admin.initialize(unlock).await.unwrap();
    (unit, manager)
}

impl Scrubbed {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(recorder: Option<metrics_exporter_prometheus::PrometheusHandle>) -> Self {
        let site = Site::new();
        init_pool(&site.path("pool"), "32MiB", false).unwrap();
        let (runtime, clock) = (Runtime::new().unwrap(), Arc::new(TestClock::default()));
        let keys = "rate = \"1MiB/s\"";
        let started = start(&site, keys, recorder, Arc::clone(&clock) as _);
        let (unit, manager) = runtime.block_on(started);
        Self {
            site,
            runtime,
            unit: Some(unit),
            manager,
            clock,
        }
    }

    fn stop(&mut self) {
        let unit = self.unit.take().unwrap();
        self.runtime.block_on(unit.stop());
    }

    fn again(&mut self) {
        let started = start(
            &self.site,
            "rate = \"1MiB/s\"",
            None,
            Arc::clone(&self.clock) as _,
        );
        let (unit, manager) = self.runtime.block_on(started);
        (self.unit, self.manager) = (Some(unit), manager);
    }

    fn create(&mut self, name: &str, mode: v1::Mode, room: Room) {
        let sets_kept = 2 * u32::from(mode == v1::Mode::Overwrite);
        let request = v1::CreateRegionRequest {
            name: name.into(),
            mode: mode.into(),
            sets_kept,
            room: Some(room),
            need: v1::Need::Durable.into(),
            grants: vec![grant("app", READ | WRITE | APPEND | CLEAR)],
            ..Default::default()
        };
        let created = self.manager.admin.create_region(request);
        self.runtime.block_on(created).unwrap();
    }

    fn connect(&self) -> pmu_client::Unit {
        let address = self.unit.as_ref().unwrap().control_address().to_string();
        let identity = self.site.identity("app", Role::Client);
        let options = ConnectOptions::with_timeout(PATIENCE);
        pmu_client::Unit::connect(&address, &identity, &options).unwrap()
    }

    fn sets(&self, name: &str) -> SetPrimary {
        let unit = self.connect();
        unit.open_sets_primary(name, &OpenOptions::new()).unwrap()
    }

    fn log(&self, name: &str) -> LogPrimary {
        let unit = self.connect();
        unit.open_log_primary(name, &OpenOptions::new()).unwrap()
    }

    fn scrub_of(&mut self, region: &str) -> v1::RegionScrub {
        let request = v1::ShowRegionRequest {
            region: region.into(),
        };
        let shown = self.manager.admin.show_region(request);
        let shown = self.runtime.block_on(shown).unwrap().into_inner();
        // Nothing is known of a region before the first look.
        shown.scrub.unwrap_or_default()
    }

    /// Lets so much time pass that a region is scrubbed once more, and waits for the end of it.
    fn scrub(&mut self, region: &str) -> v1::RegionScrub {
        let before = self.scrub_of(region).finished_s;
        self.clock.advance(8 * DAY);
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.scrub_of(region);
            if now.finished_s > before && !now.running {
                return now;
            }
            assert!(Instant::now() < until, "not scrubbed: {now:?}");
            // A region that was not known yet is taken in by the first look, and due later.
            self.clock.advance(DAY / 24);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Turns one bit of the pool's file behind the first place where `needle` is found.
    fn damage(&self, needle: &[u8]) {
        let path = self.site.path("pool");
        let pool = std::fs::read(&path).unwrap();
        let at = pool
            .windows(needle.len())
            .position(|window| window == needle)
            .unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[needle[0] ^ 1], at as u64).unwrap();
    }

    fn metrics(&self) -> String {
        let address = self.unit.as_ref().unwrap().metrics_address().unwrap();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: u\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Scrubbed {
    fn drop(&mut self) {
        if let Some(unit) = self.unit.take() {
            self.runtime.block_on(unit.stop());
        }
    }
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    let index = (0..length).map(|index| (index / 7 * 31 + index) as u8 ^ seed);
    index.collect()
}

fn commit(primary: &mut SetPrimary, bytes: &[u8]) {
    let receipt = primary.commit(&[IoSlice::new(bytes)], Label::default());
    receipt.unwrap();
}

#[test]
fn b07_a_unit_finds_damage_in_its_own_pool_and_says_so() {
    let recorder = metrics::set_up().unwrap();
    let mut unit = Scrubbed::with(Some(recorder));
    unit.create("sets", v1::Mode::Overwrite, Room::CapacityBytes(2 << 20));
    unit.create("log", v1::Mode::Append, Room::SizeBytes(1 << 20));
    let mut primary = unit.sets("sets");
    commit(&mut primary, &bytes(1_500_000, 1));
    commit(&mut primary, &bytes(1_500_000, 2));
    let mut log = unit.log("log");
    for seed in 0..10 {
        log.append(&bytes(3000, 10 + seed)).unwrap();
    }
    let sound = unit.scrub("sets");
    assert_eq!((sound.damaged, sound.findings.len()), (0, 0), "{sound:?}");
    assert!(sound.bytes > 3_000_000 && sound.by == "unit-1", "{sound:?}");
    let sound = unit.scrub("log");
    assert!(sound.damaged == 0 && sound.bytes > 30_000, "{sound:?}");

    unit.damage(&bytes(1_500_000, 2)[600_000..600_064]);
    unit.damage(&bytes(3000, 14)[100..164]);
    let found = unit.scrub("sets");
    assert_eq!((found.damaged, found.repaired), (1, 0), "{found:?}");
    assert!(found.findings[0].starts_with("set 2: "), "{found:?}");
    let found = unit.scrub("log");
    assert_eq!(found.damaged, 1, "{found:?}");
    let status = unit.manager.admin.status(v1::StatusRequest {});
    let status = unit.runtime.block_on(status).unwrap().into_inner();
    let scrubbing = status.scrubbing.unwrap();
    assert_eq!(
        (scrubbing.every_s, scrubbing.rate_bytes_per_s),
        (604_800, RATE)
    );
    let names: Vec<_> = scrubbing
        .regions
        .iter()
        .map(|one| one.region.as_str())
        .collect();
    assert_eq!(names, ["log", "sets"]);
    let metrics = unit.metrics();
    for line in [
        "pmu_scrubs_total{result=\"damaged\"} ",
        "pmu_scrubs_total{result=\"sound\"} ",
        "pmu_scrub_findings_total{state=\"damaged\"} ",
        "pmu_scrubbed_bytes_total ",
        "pmu_scrub_running ",
        "pmu_scrub_oldest_seconds ",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    // What a set on top of the damage covers is right again.
    commit(&mut primary, &bytes(1_500_000, 3));
    commit(&mut primary, &bytes(1_500_000, 4));
    commit(&mut primary, &bytes(1_500_000, 5));
    let sound = unit.scrub("sets");
    assert_eq!(sound.damaged, 0, "{sound:?}");
}

#[test]
fn b07_the_rate_is_held_and_restarts_forget_nothing() {
    let mut unit = Scrubbed::new();
    unit.create("sets", v1::Mode::Overwrite, Room::CapacityBytes(8 << 20));
    let mut primary = unit.sets("sets");
    for seed in 0..2 {
        commit(&mut primary, &bytes(8 << 20, seed));
    }
    drop(primary);
    unit.scrub("sets");
    // Nothing passes but what the scrub pauses for.
    unit.clock.advance(7 * DAY);
    let begun = unit.clock.elapsed();
    let due = unit.scrub_of("sets").due_s;
    unit.clock.advance(Duration::from_secs(60));
    let until = Instant::now() + PATIENCE;
    let done = loop {
        let now = unit.scrub_of("sets");
        if now.finished_s >= due {
            break now;
        }
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = (unit.clock.elapsed() - begun).as_secs();
    let fair = done.bytes / RATE;
    assert!(
        done.bytes >= 16 << 20 && (fair - 1..fair + 62).contains(&took),
        "{took} s for {done:?}"
    );

    unit.stop();
    unit.again();
    unit.clock.advance(DAY);
    let known = unit.scrub_of("sets");
    assert_eq!(
        (known.finished_s, known.bytes),
        (done.finished_s, done.bytes)
    );
    assert_eq!(known.due_s, done.finished_s + 604_800);
    let next = unit.scrub("sets");
    assert!(
        next.finished_s >= known.due_s && next.damaged == 0,
        "{next:?}"
    );
}

/// Ends the program's threads when the test ends, however it does.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn b07_programs_write_on_while_they_are_scrubbed() {
    let mut unit = Scrubbed::new();
    unit.create("sets", v1::Mode::Overwrite, Room::CapacityBytes(1 << 20));
    unit.create("log", v1::Mode::Append, Room::SizeBytes(1 << 20));
    let (mut sets, mut log) = (unit.sets("sets"), unit.log("log"));
    let mut backup = unit
        .connect()
        .open_log_backup("log", true, &OpenOptions::new())
        .unwrap();
    let over = AtomicBool::new(false);
    let (written, appended) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let count = written.fetch_add(1, Ordering::Relaxed);
                commit(&mut sets, &bytes(1 << 20, count as u8));
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for seed in 0..50 {
                    log.append(&bytes(4000, seed)).unwrap();
                    appended.fetch_add(1, Ordering::Relaxed);
                }
                while backup.read_unread(1 << 20).unwrap().len() > 0 {}
                backup.clear_handed_out().unwrap();
            }
        });
        let _ending = Ending(&over);
        // However slow the disk is: a dozen scrubs, and as many sets meanwhile.
        let few = |count: &AtomicU64| count.load(Ordering::Relaxed) <= 12;
        let begun = Instant::now();
        let mut scrubs = 0;
        while scrubs < 12 || few(&written) || few(&appended) {
            assert!(begun.elapsed() < PATIENCE, "the programs don't write");
            scrubs += 1;
            let found = unit.scrub("sets");
            assert_eq!(found.damaged, 0, "{found:?}");
            let found = unit.scrub_of("log");
            assert_eq!(found.damaged, 0, "{found:?}");
        }
    });
}

#[test]
fn b07_a_scrub_ends_at_once_with_its_unit_and_is_begun_again() {
    let mut unit = Scrubbed::new();
    unit.create("sets", v1::Mode::Overwrite, Room::CapacityBytes(8 << 20));
    let mut primary = unit.sets("sets");
    commit(&mut primary, &bytes(8 << 20, 1));
    drop(primary);
    unit.scrub("sets");
    unit.clock.stands.store(true, Ordering::Relaxed);
    unit.clock.advance(8 * DAY);
    let until = Instant::now() + PATIENCE;
    while unit.scrub_of("sets").bytes_done == 0 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(unit.scrub_of("sets").running);
    let begun = Instant::now();
    unit.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    // It was told to stop: that says nothing against the region, and it is begun at the next start.
    unit.clock.stands.store(false, Ordering::Relaxed);
    unit.again();
    let until = Instant::now() + PATIENCE;
    let before = unit.clock.elapsed();
    loop {
        let shown = unit.scrub_of("sets");
        assert_eq!(shown.failure, "");
        if shown.finished_s > 20_008 * 86_400 {
            break;
        }
        assert!(Instant::now() < until, "{shown:?}");
        unit.clock.advance(Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(unit.clock.elapsed() < before + DAY);
}

#[test]
fn b07_a_region_that_is_deleted_meanwhile_is_not_damaged() {
    let mut unit = Scrubbed::new();
    unit.create("sets", v1::Mode::Overwrite, Room::CapacityBytes(8 << 20));
    unit.create("other", v1::Mode::Append, Room::SizeBytes(1 << 20));
    let mut primary = unit.sets("sets");
    commit(&mut primary, &bytes(8 << 20, 1));
    drop(primary);
    unit.scrub("sets");
    unit.clock.stands.store(true, Ordering::Relaxed);
    unit.clock.advance(8 * DAY);
    let until = Instant::now() + PATIENCE;
    while unit.scrub_of("sets").bytes_done == 0 {
        assert!(Instant::now() < until);
        if unit.scrub_of("other").running {
            unit.clock.let_go();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let deletion = v1::DeleteRegionRequest {
        region: "sets".into(),
        force: true,
    };
    let deleted = unit.manager.admin.delete_region(deletion);
    unit.runtime.block_on(deleted).unwrap();
    unit.clock.let_go();
    // Other regions go on being scrubbed, and nobody asks for this one any more.
    let next = unit.scrub("other");
    assert_eq!(next.damaged, 0, "{next:?}");
    let remembered = std::fs::read_to_string(unit.site.path("scrub.json")).unwrap();
    assert!(!remembered.contains("\"sets\"") && remembered.contains("\"other\""));
}
