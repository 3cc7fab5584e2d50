//! Faults in the middle of what spread regions do, put between a program and its real units: a unit that goes silent, a primary that is
//! overtaken between two steps, units out of reach of a fence.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pmu_client::rebuild::{Administer, NewMember, RebuildOptions};
use pmu_client::scrub::scrub;
use pmu_client::{
    ClientError, ConnectOptions, Counters, FenceReport, Label, LocalMemory, Mode, Network,
    OpenOptions, Parts, Provider, Reach, ReachedUnit, RegionInfo, SessionRole, SetChoice, Spread,
    SpreadPrimary, SpreadRead, Unit,
};
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, Connection, FabricError,
    Limits, Op, PersistenceMethod,
};
use pmu_format::{Member, Membership};
use support::{PATIENCE, pattern};
use units::{Units, unit};

type Hook = Box<dyn FnOnce() + Send>;

/// What happens to one program's connections.
#[derive(Default)]
struct Faults {
    /// Units that can't be reached.
    cut: Mutex<Vec<String>>,
    /// The unit from which nothing comes any more.
    silent: Mutex<Option<String>>,
    is_silent: AtomicBool,
    /// Done before the next atomic write is posted: between the two steps of a commit.
    before_publish: Mutex<Option<Hook>>,
    /// What was posted to which unit.
    posted: Mutex<Vec<(String, Posted)>>,
}

/// What a chain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Posted {
    /// Reads the whole publish page.
    LooksAtThePage,
    FlushesThePage,
    Reads,
    Changes,
}

/// What a chain does to a region that begins at `base`.
fn posted(chain: &Chain, base: u64) -> Posted {
    match chain.ops() {
        [Op::Read { remote, local }] if (*remote, local.length) == (base, 4096) => {
            Posted::LooksAtThePage
        }
        [Op::Flush { remote, length }] if (*remote, *length) == (base, 4096) => {
            Posted::FlushesThePage
        }
        ops if ops.iter().all(|op| matches!(op, Op::Read { .. })) => Posted::Reads,
        _ => Posted::Changes,
    }
}

struct Faulty {
    network: Network,
    faults: Arc<Faults>,
}

impl Reach for Faulty {
    fn unit(&self, member: &Member) -> pmu_client::Result<Box<dyn ReachedUnit>> {
        let cut = self.faults.cut.lock().unwrap();
        if cut.iter().any(|unit| *unit == member.unit.as_str()) {
            return Err(ClientError::Invalid("the link is cut".into()));
        }
        Ok(Box::new(FaultyUnit {
            unit: self.network.unit(member)?,
            faults: self.faults.clone(),
        }))
    }

    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        self.network.at_once(count, work);
    }

    fn random(&self) -> pmu_client::Result<[u8; 16]> {
        self.network.random()
    }
}

struct FaultyUnit {
    unit: Box<dyn ReachedUnit>,
    faults: Arc<Faults>,
}

impl ReachedUnit for FaultyUnit {
    fn name(&self) -> &str {
        self.unit.name()
    }

    fn describe(&self, region: &str) -> pmu_client::Result<RegionInfo> {
        self.unit.describe(region)
    }

    fn fence(&self, region: &str) -> pmu_client::Result<FenceReport> {
        self.unit.fence(region)
    }

    fn open(
        &self,
        region: &str,
        role: SessionRole,
        mode: Mode,
        options: &OpenOptions,
    ) -> pmu_client::Result<Parts> {
        let parts = self.unit.open(region, role, mode, options)?;
        Ok(self.faulty(parts))
    }

    fn open_log_backup(
        &self,
        region: &str,
        clear: bool,
        options: &OpenOptions,
    ) -> pmu_client::Result<Parts> {
        let parts = self.unit.open_log_backup(region, clear, options)?;
        Ok(self.faulty(parts))
    }
}

impl FaultyUnit {
    fn faulty(&self, parts: Parts) -> Parts {
        Parts {
            connection: Box::new(FaultyConnection {
                inner: parts.connection,
                unit: self.unit.name().to_owned(),
                base: parts.info.address.get(),
                faults: self.faults.clone(),
            }),
            ..parts
        }
    }
}

struct FaultyConnection {
    inner: Box<dyn Connection>,
    unit: String,
    /// Where the region begins.
    base: u64,
    faults: Arc<Faults>,
}

impl FaultyConnection {
    fn is_silent(&self) -> bool {
        self.faults.is_silent.load(Ordering::SeqCst)
            && self.faults.silent.lock().unwrap().as_ref() == Some(&self.unit)
    }
}

impl Connection for FaultyConnection {
    fn provider(&self) -> Provider {
        self.inner.provider()
    }
    fn persistence(&self) -> PersistenceMethod {
        self.inner.persistence()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn set_windows(&mut self, windows: &[AccessWindow]) -> Result<(), FabricError> {
        self.inner.set_windows(windows)
    }
    fn attach(&mut self, memory: Arc<LocalMemory>) -> Result<AttachedMemory, FabricError> {
        self.inner.attach(memory)
    }
    fn post(&mut self, tag: u64, chain: &Chain) -> Result<(), FabricError> {
        let done = (self.unit.clone(), posted(chain, self.base));
        self.faults.posted.lock().unwrap().push(done);
        if chain
            .ops()
            .iter()
            .any(|op| matches!(op, Op::AtomicWrite { .. }))
        {
            let hook = self.faults.before_publish.lock().unwrap().take();
            if let Some(hook) = hook {
                hook();
            }
        }
        self.inner.post(tag, chain)
    }
    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError> {
        if self.is_silent() {
            return Ok(0);
        }
        self.inner.poll(completions)
    }
    fn wait(&mut self, timeout: Duration) -> Result<(), FabricError> {
        if self.is_silent() {
            std::thread::sleep(timeout);
            return Ok(());
        }
        self.inner.wait(timeout)
    }
    fn arm(&mut self) -> Result<bool, FabricError> {
        self.inner.arm()
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.inner.event_fd()
    }
    fn dead(&self) -> Option<CompletionStatus> {
        self.inner.dead()
    }
    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// The region as one program reaches it.
fn find(units: &Units, who: &str, region: &str, faults: &Arc<Faults>) -> Spread {
    let identity = units.identity(who, pmu_auth::Role::Client);
    let options = ConnectOptions::with_timeout(PATIENCE);
    let info = Unit::connect(&units.addresses[0], &identity, &options)
        .and_then(|unit| unit.describe(region))
        .unwrap();
    let reach = Faulty {
        network: Network::new(&identity, &options),
        faults: faults.clone(),
    };
    Spread::over(&info, Arc::new(reach)).unwrap()
}

fn commit(primary: &mut SpreadPrimary, bytes: &[u8]) -> pmu_client::Result<pmu_client::Receipt> {
    primary.commit(&[IoSlice::new(bytes)], Label::default())
}

fn read(spread: &Spread, options: &OpenOptions) -> (SpreadRead, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut reader = spread.open_reader(options).unwrap();
    let read = reader.read(SetChoice::Newest, &mut bytes).unwrap();
    (read, bytes)
}

#[test]
fn d06_what_a_primary_publishes_beside_its_fence_is_never_read() {
    let units = Arc::new(Units::new(4, 16 << 20));
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let options = OpenOptions::new();
    let old_faults = Arc::new(Faults::default());
    let mut old = find(&units, "app", "state", &old_faults)
        .open_primary(&options)
        .unwrap();
    let acknowledged = pattern(700_000, 1);
    commit(&mut old, &acknowledged).unwrap();

    // The successor can't reach unit 4, and takes over while the old primary is about to publish its next set.
    let taken = Arc::new(Mutex::new(None));
    *old_faults.before_publish.lock().unwrap() = Some(Box::new({
        let (units, taken) = (units.clone(), taken.clone());
        move || {
            let faults = Arc::new(Faults::default());
            faults.cut.lock().unwrap().push(unit(3));
            let mut found = Vec::new();
            let takeover = find(&units, "backup", "state", &faults)
                .take_over(&OpenOptions::new(), &mut found)
                .unwrap();
            *taken.lock().unwrap() = Some((takeover, found));
        }
    }));
    let never = pattern(700_000, 2);
    let error = commit(&mut old, &never).unwrap_err();
    assert!(
        error.is_fenced() || error.to_string().contains("fenced"),
        "{error}"
    );
    let (takeover, found) = taken.lock().unwrap().take().unwrap();
    assert!(found == acknowledged);

    // Unit 4 has published the old primary's set 2. Whoever asks it together with one other unit is told of set 1 all the same.
    for other in 0..3 {
        let faults = Arc::new(Faults::default());
        let cut = (0..3).filter(|index| *index != other).map(unit);
        faults.cut.lock().unwrap().extend(cut);
        let spread = find(&units, "backup", "state", &faults);
        let error = spread
            .open_reader(&options)
            .unwrap()
            .read(SetChoice::Newest, &mut Vec::new())
            .unwrap_err();
        // Two units can say what the newest is, and hold too little of it.
        assert!(matches!(error, ClientError::TooFewUnits { .. }), "{error}");
    }
    let everybody = find(&units, "backup", "state", &Arc::default());
    assert_eq!(read(&everybody, &options).1, acknowledged);
    let listed = everybody.open_reader(&options).unwrap().sets().unwrap();
    let committed: Vec<_> = listed.iter().filter(|set| set.committed).collect();
    assert_eq!(committed.len(), 1, "{listed:?}");

    // The successor's set 2 is another one, and unit 4's share of the old one is not taken for a part of it.
    let mut new = takeover.primary;
    let next = pattern(650_000, 3);
    commit(&mut new, &next).unwrap();
    let (set, bytes) = read(&everybody, &options);
    assert!(bytes == next && set.set.number.get() == 2);
    let reason = &set.missing[0].reason;
    assert!(reason.contains("another set"), "{reason}");
}

#[test]
fn d07_a_unit_that_goes_silent_does_not_hold_a_reader_back() {
    // More than what is on its way already when the unit goes silent.
    let units = Units::new(4, 64 << 20);
    units.spread("state", "parity:3+1", 3, 24 << 20);
    let options = OpenOptions::new().staging_bytes(2 << 20);
    let bytes = pattern(24_000_001, 5);
    let mut primary = units.find("app", "state").open_primary(&options).unwrap();
    commit(&mut primary, &bytes).unwrap();
    for index in 0..4 {
        let faults = Arc::new(Faults::default());
        *faults.silent.lock().unwrap() = Some(unit(index));
        let spread = find(&units, "backup", "state", &faults);
        let mut sink = SilentAfter {
            bytes: Vec::new(),
            faults: faults.clone(),
        };
        let begun = Instant::now();
        let mut reader = spread.open_reader(&options).unwrap();
        let read = reader.read(SetChoice::Newest, &mut sink).unwrap();
        let waited = begun.elapsed();
        assert!(sink.bytes == bytes && read.reconstructed);
        let reason = &read.missing[0].reason;
        assert!(reason.contains("nothing for 500 ms"), "{reason}");
        assert!(waited < Duration::from_secs(10), "{waited:?}");
    }
}

/// A sink in whose middle a unit goes silent.
struct SilentAfter {
    bytes: Vec<u8>,
    faults: Arc<Faults>,
}

impl pmu_client::SetSink for SilentAfter {
    fn begin(&mut self, _: &pmu_client::SetInfo) -> std::io::Result<()> {
        self.bytes.clear();
        Ok(())
    }

    fn chunk(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        assert_eq!(
            offset,
            self.bytes.len() as u64,
            "in order and each byte once"
        );
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 1_000_000 {
            self.faults.is_silent.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
}

#[test]
fn d07_a_unit_that_goes_silent_is_given_up_by_the_primary_in_its_time() {
    let units = Units::new(4, 16 << 20);
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let mut timeouts = pmu_client::Timeouts::default();
    timeouts.stall = Duration::from_millis(700);
    let options = OpenOptions::new().timeouts(timeouts);
    let faults = Arc::new(Faults::default());
    *faults.silent.lock().unwrap() = Some(unit(1));
    let mut primary = find(&units, "app", "state", &faults)
        .open_primary(&options)
        .unwrap();
    commit(&mut primary, b"before").unwrap();
    faults.is_silent.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let receipt = commit(&mut primary, &pattern(600_000, 9)).unwrap();
    assert_eq!(receipt.units.len(), 3, "{receipt}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let begun = Instant::now();
    commit(&mut primary, b"without it").unwrap();
    assert!(begun.elapsed() < Duration::from_millis(600));
}

#[test]
fn d01_a_set_of_unknown_length_is_spread_as_it_comes() {
    let units = Units::new(4, 32 << 20);
    units.spread("state", "parity:3+1", 3, 4 << 20);
    let options = OpenOptions::new();
    let mut primary = units.find("app", "state").open_primary(&options).unwrap();
    let spread = units.find("backup", "state");
    for length in [0, 1, 196_608, 196_609, 3_999_999] {
        let bytes = pattern(length, 77);
        let mut put = primary.begin(None, Label::default()).unwrap();
        for piece in bytes.chunks(50_001) {
            put.write_bytes(piece).unwrap();
        }
        let receipt = put.finish().unwrap();
        assert_eq!(receipt.bytes, length as u64);
        assert!(read(&spread, &options).1 == bytes, "{length}");
    }
    let mut put = primary.begin(None, Label::default()).unwrap();
    let error = put
        .write_bytes(&pattern(4 << 20, 1))
        .and_then(|()| put.write_bytes(&pattern(1 << 20, 1)));
    assert!(
        matches!(error, Err(ClientError::TooLarge { .. })),
        "{error:?}"
    );
    drop(put);
    assert_eq!(read(&spread, &options).1.len(), 3_999_999);
}

/// Nobody is to be changed.
struct Nobody;

impl Administer for Nobody {
    fn create_member(&self, _: &Member, _: &NewMember<'_>) -> pmu_client::Result<()> {
        panic!("a member is created")
    }

    fn set_membership(
        &self,
        _: &Member,
        _: &str,
        _: u64,
        _: &Membership,
    ) -> pmu_client::Result<()> {
        panic!("members are changed")
    }
}

#[test]
fn d06_a_term_is_durable_before_the_next_one_takes_the_place_of_a_record() {
    let units = Arc::new(Units::new(3, 16 << 20));
    units.spread("state", "mirror:3", 2, 1 << 20);
    for _ in 0..3 {
        let faults = Arc::new(Faults::default());
        let mut primary = find(&units, "app", "state", &faults)
            .open_primary(&OpenOptions::new())
            .unwrap();
        // A primary that dies between its term word and the flush leaves a term that is only visible.
        let posted = std::mem::take(&mut *faults.posted.lock().unwrap());
        for index in 0..3 {
            let own = posted.iter().filter(|(name, _)| *name == unit(index));
            let own: Vec<Posted> = own.map(|(_, posted)| *posted).collect();
            let first = |wanted| own.iter().position(|posted| *posted == wanted).unwrap();
            let flush = first(Posted::FlushesThePage);
            assert!(
                own[..flush].contains(&Posted::LooksAtThePage) && flush < first(Posted::Changes),
                "{own:?}"
            );
        }
        commit(&mut primary, &pattern(1000, 1)).unwrap();
    }
}

#[test]
fn b07_a_scrub_flushes_what_is_published_before_it_goes_by_it() {
    let units = Arc::new(Units::new(4, 16 << 20));
    units.spread("state", "parity:3+1", 3, 1 << 20);
    let nothing = Arc::new(Faults::default());
    let mut primary = find(&units, "app", "state", &nothing)
        .open_primary(&OpenOptions::new())
        .unwrap();
    commit(&mut primary, &pattern(300_000, 1)).unwrap();
    let identity = units.identity("backup", pmu_auth::Role::Client);
    let options = ConnectOptions::with_timeout(PATIENCE);
    let info = Unit::connect(&units.addresses[0], &identity, &options)
        .and_then(|unit| unit.describe("state"))
        .unwrap();
    let faults = Arc::new(Faults::default());
    let reach = Faulty {
        network: Network::new(&identity, &options),
        faults: faults.clone(),
    };
    let mut on_progress = |_: &_| std::ops::ControlFlow::Continue(());
    let options = RebuildOptions {
        open: OpenOptions::new(),
        rate_bytes_per_s: None,
        on_progress: &mut on_progress,
    };
    let found = scrub(&info, Arc::new(reach), &Nobody, false, options).unwrap();
    assert!(
        !found.is_damaged() && found.missing.is_empty() && found.sets == 1,
        "{found:?}"
    );
    let posted = faults.posted.lock().unwrap().clone();
    for index in 0..4 {
        let own = posted.iter().filter(|(name, _)| *name == unit(index));
        let own: Vec<Posted> = own.map(|(_, posted)| *posted).collect();
        assert!(!own.contains(&Posted::Changes), "{own:?}");
        // The set's header and chunks are read behind that.
        let flush = own
            .iter()
            .position(|posted| *posted == Posted::FlushesThePage)
            .unwrap();
        let chunks = own
            .iter()
            .position(|posted| *posted == Posted::Reads)
            .unwrap();
        assert!(
            own[..flush].contains(&Posted::LooksAtThePage) && flush < chunks,
            "{own:?}"
        );
    }
}
