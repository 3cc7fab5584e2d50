//! A program that keeps a hash table in an arena is killed with SIGKILL at random moments, over and over. Each time another instance takes
//! over and goes on: nothing that a report called stored is lost, and every state that comes back is one that the program had.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by a panic, and its program speaks on standard output"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, SystemTime};

use pmu_auth::{Identity, Role};
use pmu_client::snapshot::{
    Arena, ArenaOptions, Cpus, RestoreOptions, SnapshotOptions, SnapshotRegion, Snapshots,
    capacity_bytes_for,
};
use pmu_client::{ConnectOptions, OpenOptions};
use support::{PATIENCE, Pool, Site};

const LEN: usize = 8 << 20;
/// The table begins behind the first page, which holds the counter.
const TABLE: usize = 4096;
const SLOTS: usize = (LEN - TABLE) / 16;
/// Where each instance has its memory.
const ADDRESS: usize = 0x2c00_0000_0000;
const KEYS: u64 = 20_000;
const VARIABLE: &str = "PMU_TEST_PROGRAM";

/// Operation `number` adds to this key.
fn key_of(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    1 + (mixed ^ (mixed >> 29)) % KEYS
}

/// Counters by key, with open addressing: what lies in the arena is all there is.
struct Table(Arc<Arena>);

impl Table {
    fn done(&self) -> u64 {
        self.0.load_u64(0).unwrap()
    }

    /// One operation: two words, which belong together.
    fn step(&self) {
        let number = self.done() + 1;
        let key = key_of(number);
        let guard = self.0.writing();
        let mut slot = key as usize * 7919 % SLOTS;
        loop {
            let at = TABLE + slot * 16;
            let found = self.0.load_u64(at).unwrap();
            if found == 0 || found == key {
                let count = self.0.load_u64(at + 8).unwrap();
                self.0.store_u64(at, key).unwrap();
                self.0.store_u64(at + 8, count + number).unwrap();
                break;
            }
            slot = (slot + 1) % SLOTS;
        }
        self.0.store_u64(0, number).unwrap();
        drop(guard);
    }

    /// Compares with what so many operations come to.
    fn check(&self) {
        let mut expected = vec![0; KEYS as usize + 1];
        for number in 1..=self.done() {
            expected[key_of(number) as usize] += number;
        }
        let mut found = vec![0; KEYS as usize + 1];
        for slot in 0..SLOTS {
            let key = self.0.load_u64(TABLE + slot * 16).unwrap() as usize;
            let count = self.0.load_u64(TABLE + slot * 16 + 8).unwrap();
            assert!(
                key <= KEYS as usize && (key > 0 || count == 0),
                "slot {slot}"
            );
            if key > 0 {
                assert_eq!(found[key], 0, "key {key} twice");
                found[key] = count;
            }
        }
        assert!(
            found == expected,
            "not what {} operations come to",
            self.done()
        );
    }
}

/// Takes over whatever is there, checks it, says how far it is, and goes on until it is killed.
#[test]
#[ignore = "the program that is killed: started by the tests below"]
fn the_program() {
    let Ok(place) = std::env::var(VARIABLE) else {
        panic!("{VARIABLE} says where to go");
    };
    let (address, identity) = place.split_once(' ').unwrap();
    let identity = Identity::load(std::path::Path::new(identity)).unwrap();
    let options = ConnectOptions::with_timeout(PATIENCE);
    let region = SnapshotRegion::find(&[address], "r", identity, &options).unwrap();
    let mut arena_options = ArenaOptions::plain(LEN);
    arena_options.address = Some(ADDRESS);
    let restore = RestoreOptions::new(arena_options.clone());
    let mut taken = region.take_over(&restore, &OpenOptions::new()).unwrap();
    let arena = match taken.recovered.take() {
        Some(found) => {
            assert!(found.skipped.is_empty(), "{:?}", found.skipped);
            found.restoring.seal_plain().unwrap()
        }
        None => Arena::create(&arena_options).unwrap(),
    };
    let table = Table(Arc::new(arena));
    table.check();
    println!("recovered {}", table.done());
    let options = SnapshotOptions::new().cpus(Cpus::Inherited);
    let snapshots = taken.go_on(Arc::clone(&table.0), &options).unwrap();
    go_on(&table, &snapshots);
}

fn go_on(table: &Table, snapshots: &Snapshots) {
    loop {
        let done = table.done();
        let pending = snapshots.begin().unwrap();
        while pending.poll().map(Result::unwrap).is_none() {
            for _ in 0..50 {
                table.step();
            }
        }
        // Whoever hears this may rely on it.
        println!("stored {done}");
        for _ in 0..50 {
            table.step();
        }
    }
}

/// A running program, and what it says.
struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    fn start(site: &Site, identity: &std::path::Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "the_program",
                "--exact",
                "--ignored",
                "--nocapture",
                "--quiet",
            ])
            .env(
                VARIABLE,
                format!("{} {}", site.address(), identity.display()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (say, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The number of the first line that begins so.
    fn wait_for(&self, word: &str) -> u64 {
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .expect("the program has ended");
            if let Some(number) = number(&line, word) {
                return number;
            }
        }
    }

    /// Kills it, and says what it said last that was stored.
    fn kill(mut self) -> Option<u64> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let stored = self.lines.iter().filter_map(|line| number(&line, "stored"));
        stored.last()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(line: &str, word: &str) -> Option<u64> {
    // The test's own words may stand before it.
    let (_, rest) = line.split_once(&format!("{word} "))?;
    rest.trim().parse().ok()
}

fn variable(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn b06_a_program_that_is_killed_over_and_over_goes_on_each_time() {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let seed = variable("PMU_SEED", now.as_nanos() as u64);
    let kills = variable("PMU_KILLS", 12);
    println!("PMU_SEED={seed} PMU_KILLS={kills}");
    let mut site = Site::new(Pool::File, 96 << 20);
    site.sets("r", 4, capacity_bytes_for(LEN as u64));
    let identity: PathBuf = site.path("app");
    site.identity("app", Role::Client).save(&identity).unwrap();
    let (mut random, mut relied_on, mut went_on) = (seed | 1, 0, 0);
    for kill in 0..kills {
        let program = Program::start(&site, &identity);
        let recovered = program.wait_for("recovered");
        assert!(
            recovered >= relied_on,
            "kill {kill}: {relied_on} were stored, {recovered} came back"
        );
        went_on += u64::from(recovered > 0);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Before the first snapshot, in the middle of one, or after some.
        std::thread::sleep(Duration::from_micros(random % 120_000));
        relied_on = program.kill().unwrap_or(recovered.max(relied_on));
    }
    let last = Program::start(&site, &identity);
    assert!(last.wait_for("recovered") >= relied_on);
    let stored = last.wait_for("stored");
    assert!(stored >= relied_on);
    assert!(
        went_on >= kills / 2,
        "only {went_on} of {kills} had anything to recover"
    );
}
