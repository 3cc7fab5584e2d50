//! Units that come back are taken in by the primary itself, beside its commits; and none that may have been fenced meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::collections::HashSet;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pmu_auth::Role;
use pmu_client::{
    ClientError, ConnectOptions, Label, Network, OpenOptions, Reach, ReachedUnit, Receipt,
    SetChoice, Spread, SpreadLogPrimary, SpreadPrimary, Unit,
};
use pmu_format::Member;
use support::pattern;
use units::{Units, unit};

/// Soon enough for a test.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How long a unit may take to come back on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> OpenOptions {
    OpenOptions::new().rejoin(Some(FIRST_PAUSE))
}

/// The network, with a look at who connects to one of the units, and a hand on it.
struct Watched {
    network: Network,
    unit: String,
    calls: Mutex<Vec<ThreadId>>,
    /// It can't be reached.
    is_away: AtomicBool,
    /// Whoever connects to it gets no answer.
    hangs: AtomicBool,
}

impl Watched {
    fn over(units: &Units, who: &str, watched: usize) -> Arc<Self> {
        let identity = units.identity(who, Role::Client);
        Arc::new(Self {
            network: Network::new(&identity, &ConnectOptions::default()),
            unit: unit(watched),
            calls: Mutex::default(),
            is_away: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
        })
    }

    fn find(self: &Arc<Self>, units: &Units, region: &str) -> Spread {
        let identity = units.identity("app", Role::Client);
        let first = Unit::connect(&units.addresses[0], &identity, &ConnectOptions::default());
        let info = first.unwrap().describe(region).unwrap();
        Spread::over(&info, Arc::clone(self) as Arc<dyn Reach>).unwrap()
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

impl Reach for Watched {
    fn unit(&self, member: &Member) -> pmu_client::Result<Box<dyn ReachedUnit>> {
        if member.unit.as_str() == self.unit {
            self.calls.lock().unwrap().push(std::thread::current().id());
            while self.hangs.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if self.is_away.load(Ordering::SeqCst) {
                return Err(ClientError::Unreachable {
                    unit: self.unit.clone(),
                    reason: "it is away".into(),
                });
            }
        }
        self.network.unit(member)
    }

    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        self.network.at_once(count, work);
    }

    fn random(&self) -> pmu_client::Result<[u8; 16]> {
        self.network.random()
    }
}

fn commit(primary: &mut SpreadPrimary, bytes: &[u8]) -> Receipt {
    let slices = [IoSlice::new(bytes)];
    primary.commit(&slices, Label::default()).unwrap()
}

fn newest(units: &Units) -> Vec<u8> {
    let spread = units.find("backup", "state");
    let mut bytes = Vec::new();
    let mut reader = spread.open_reader(&options()).unwrap();
    reader.read(SetChoice::Newest, &mut bytes).unwrap();
    bytes
}

/// Stores until so many units are in the receipt; how often.
fn until(units: usize, mut store: impl FnMut(u64) -> Receipt) -> u64 {
    let begun = Instant::now();
    for turn in 1.. {
        if store(turn).units.len() == units {
            return turn;
        }
        assert!(begun.elapsed() < PATIENCE, "{units} units are not back");
        std::thread::sleep(Duration::from_millis(5));
    }
    unreachable!()
}

#[test]
fn d07_a_unit_that_was_stopped_and_started_is_in_the_receipts_again_without_any_call() {
    let mut units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut primary = units.find("app", "state").open_primary(&options()).unwrap();
    assert_eq!(commit(&mut primary, &pattern(300_000, 0)).units.len(), 4);
    units.stop(2);
    assert_eq!(commit(&mut primary, &pattern(300_000, 1)).units.len(), 3);
    units.start(2);
    let turns = until(4, |turn| commit(&mut primary, &pattern(200_000, turn)));
    assert_eq!(primary.missing().count(), 0);
    units.stop(1);
    assert!(newest(&units) == pattern(200_000, turns));

    // Under the minimum commits fail; with the unit back they go on, with the same handle.
    units.stop(3);
    let label = Label::default();
    let error = primary.commit(&[IoSlice::new(b"two are too few")], label);
    assert!(
        matches!(error, Err(ClientError::TooFewUnits { .. })),
        "{error:?}"
    );
    units.start(3);
    let begun = Instant::now();
    loop {
        match primary.commit(&[IoSlice::new(b"three")], label) {
            Ok(receipt) => break assert_eq!(receipt.units.len(), 3),
            Err(ClientError::TooFewUnits { .. }) => assert!(begun.elapsed() < PATIENCE),
            Err(error) => panic!("{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    units.start(1);
    until(4, |turn| commit(&mut primary, &pattern(1000, turn)));
}

#[test]
fn d07_a_unit_that_stays_away_costs_commits_nothing_and_is_called_ever_more_rarely() {
    let mut units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let watched = Watched::over(&units, "app", 2);
    let spread = watched.find(&units, "state");
    let mut primary = spread.open_primary(&options()).unwrap();
    units.stop(2);
    watched.is_away.store(true, Ordering::SeqCst);
    commit(&mut primary, b"without it");
    let before = watched.calls();
    let begun = Instant::now();
    let mut commits = 0;
    while begun.elapsed() < 60 * FIRST_PAUSE {
        commit(&mut primary, &pattern(1000, commits));
        commits += 1;
    }
    let took = begun.elapsed();
    // After 1, 3, 7, 15 .. pauses.
    let most = (took.as_secs_f64() / FIRST_PAUSE.as_secs_f64() + 1.0).log2();
    let calls = watched.calls() - before;
    assert!(
        (1..=most as usize + 1).contains(&calls),
        "{calls} calls in {took:?}"
    );
    assert!(commits as usize > calls, "{commits} commits");

    // One that takes the connection and answers nothing is waited for by nobody, and called once.
    watched.hangs.store(true, Ordering::SeqCst);
    let before = watched.calls();
    while watched.calls() == before {
        commit(&mut primary, b"until it is called");
        std::thread::sleep(Duration::from_millis(5));
    }
    for turn in 0..200 {
        commit(&mut primary, &pattern(1000, turn));
    }
    assert_eq!(watched.calls(), before + 1);
    // Nor has the program's thread ever called it, but to open the region.
    let own = std::thread::current().id();
    let callers: HashSet<_> = watched.calls.lock().unwrap()[before..]
        .iter()
        .copied()
        .collect();
    assert!(!callers.contains(&own));

    watched.is_away.store(false, Ordering::SeqCst);
    units.start(2);
    watched.hangs.store(false, Ordering::SeqCst);
    until(4, |turn| commit(&mut primary, &pattern(1000, turn)));
}

#[test]
fn b03_an_old_primary_takes_no_unit_back_that_was_fenced_meanwhile() {
    let units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    units.spread_log("log", "parity:3+1", 3, 4 << 20);
    let mut sets = units.find("app", "state").open_primary(&options()).unwrap();
    let mut log = units
        .find("app", "log")
        .open_log_primary(&options())
        .unwrap();
    commit(&mut sets, b"acknowledged");
    log.append(b"acknowledged").unwrap();
    let identity = units.identity("backup", Role::Client);
    let fence = |region: &str, index: usize| {
        let unit = Unit::connect(&units.addresses[index], &identity, &Default::default());
        unit.unwrap().fence(region).unwrap();
    };
    // Taken away to be worked on: enough others vouch for it when it returns.
    for region in ["state", "log"] {
        fence(region, 3);
    }
    assert_eq!(commit(&mut sets, b"three").units.len(), 3);
    assert_eq!(log.append(b"three").unwrap().units.len(), 3);
    assert_eq!((sets.rejoin().unwrap(), log.rejoin().unwrap()), (1, 1));
    assert_eq!(commit(&mut sets, b"four").units.len(), 4);
    assert_eq!(log.append(b"four").unwrap().units.len(), 4);

    // As many as a take-over fences. Nobody has opened them since, and all four answer the old primary.
    for region in ["state", "log"] {
        fence(region, 2);
        fence(region, 3);
    }
    for again in 0..3 {
        let error = sets.commit(&[IoSlice::new(b"zombie")], Label::default());
        let error = error.unwrap_err();
        assert!(error.is_fenced() || again > 0, "{error}");
        assert!(matches!(sets.rejoin(), Err(ClientError::Ended { .. })));
        let error = log.append(b"zombie").unwrap_err();
        assert!(error.is_fenced() || again > 0, "{error}");
        assert!(matches!(log.rejoin(), Err(ClientError::Ended { .. })));
    }
    assert!(newest(&units) == b"four");
}

#[test]
fn b03_a_unit_that_was_away_during_the_fence_of_others_vouches_for_none() {
    let mut units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let quiet = OpenOptions::new().rejoin(None);
    let mut old = units.find("app", "state").open_primary(&quiet).unwrap();
    commit(&mut old, b"acknowledged");
    // Two restart, so that the primary has lost them; in between the heir fences those two and can't reach the others.
    for index in [2, 3] {
        units.stop(index);
    }
    let label = Label::default();
    assert!(old.commit(&[IoSlice::new(b"two")], label).is_err());
    for index in [2, 3] {
        units.start(index);
        let identity = units.identity("backup", Role::Client);
        let unit = Unit::connect(&units.addresses[index], &identity, &Default::default());
        unit.unwrap().fence("state").unwrap();
    }
    assert_eq!(old.rejoin().unwrap(), 0);
    for missing in old.missing() {
        assert!(missing.reason.contains("fenced"), "{}", missing.reason);
    }
    let error = old.commit(&[IoSlice::new(b"zombie")], label).unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert!(newest(&units) == b"acknowledged");
    drop(old);
    let mut new = units.find("app", "state").open_primary(&quiet).unwrap();
    assert_eq!(commit(&mut new, b"of the next one").units.len(), 4);
}

fn append(log: &mut SpreadLogPrimary, bytes: usize, seed: u64) -> Receipt {
    log.append(&pattern(bytes, seed)).unwrap()
}

#[test]
fn d07_a_unit_far_behind_gets_the_log_piece_by_piece_while_appends_go_on() {
    const RECORD: usize = 500_000;
    const ROOM: u64 = 4 << 20;
    let mut units = Units::new(3, 48 << 20);
    units.spread_log("log", "mirror:3", 2, 32 << 20);
    let mut log = units
        .find("app", "log")
        .open_log_primary(&options())
        .unwrap();
    let mut lengths = Vec::new();
    let mut next = |log: &mut SpreadLogPrimary| {
        // The unit may be long in coming back, and nobody clears.
        let length = match log.free_bytes() {
            0..ROOM => 1000,
            _ => RECORD,
        };
        lengths.push(length);
        append(log, length, lengths.len() as u64)
    };
    assert_eq!(next(&mut log).units.len(), 3);
    units.stop(1);
    for _ in 0..40 {
        assert_eq!(next(&mut log).units.len(), 2);
    }
    units.start(1);
    let (mut pieces, mut most) = (0, 0);
    until(3, |_| {
        let before = log.counters().bytes_read;
        let receipt = next(&mut log);
        let read = log.counters().bytes_read.saturating_sub(before);
        pieces += u64::from(read > RECORD as u64);
        most = most.max(read);
        receipt
    });
    // 20 MB were missed; a piece is 4 MiB and twice what was appended, and the last may be as long again.
    assert!(pieces >= 2, "{pieces} pieces");
    assert!(most < 14 << 20, "{most} bytes with one record");
    // It has everything: the others may go.
    let mut left = 0;
    for other in [0, 2] {
        units.stop(other);
        let spread = units.find("backup", "log");
        let mut reader = spread.open_log_backup(false, &options()).unwrap();
        let mut seen = 0;
        loop {
            let records = reader.read_unread(8 << 20).unwrap();
            if records.len() == 0 {
                break;
            }
            for record in records {
                let length = lengths[seen];
                seen += 1;
                assert!(
                    record.payload == pattern(length, seen as u64),
                    "record {seen}"
                );
            }
        }
        left = seen;
        units.start(other);
    }
    assert_eq!(left, lengths.len());
}

#[test]
fn d04_a_log_takes_a_returned_unit_in_without_any_call_and_any_other_may_go() {
    let mut units = Units::new(4, 16 << 20);
    units.spread_log("log", "parity:3+1", 3, 4 << 20);
    let mut log = units
        .find("app", "log")
        .open_log_primary(&options())
        .unwrap();
    append(&mut log, 1000, 1);
    units.stop(0);
    assert_eq!(append(&mut log, 1000, 2).units.len(), 3);
    units.start(0);
    // Also while records are under way.
    let mut last = 2;
    let begun = Instant::now();
    while log.missing().next().is_some() {
        for _ in 0..50 {
            last += 1;
            log.submit(&pattern(1000, last)).unwrap();
        }
        log.flush().unwrap();
        // The backup is behind by as much as the ring holds.
        if last % 500 == 2 {
            let spread = units.find("backup", "log");
            let mut reader = spread.open_log_backup(true, &options()).unwrap();
            while reader.read_unread(1 << 20).unwrap().len() > 0 {}
            reader.clear_handed_out().unwrap();
        }
        assert!(begun.elapsed() < PATIENCE);
    }
    last += 1;
    assert_eq!(append(&mut log, 1000, last).units.len(), 4);
    units.stop(3);
    let spread = units.find("backup", "log");
    let mut reader = spread.open_log_backup(false, &options()).unwrap();
    let mut newest = Vec::new();
    loop {
        let records = reader.read_unread(1 << 20).unwrap();
        if records.len() == 0 {
            break;
        }
        for record in records {
            newest = record.payload.to_vec();
        }
    }
    assert!(newest == pattern(1000, last));
}
