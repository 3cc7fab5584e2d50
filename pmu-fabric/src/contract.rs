//! The contract of the fabric as a test suite that every provider passes. Feature `contract`; for tests only, so it panics where a rule is broken.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test suite")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_pmem::{LocalMemory, PoolMemory};

use crate::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, ConnectToken, Connection,
    ConnectionId, ExposedExtent, ExposedRegion, FabricError, FabricEvent, LocalSlice,
    PersistenceMethod, Provider, UnitFabric, WindowAccess,
};

/// Virtual base address of the region that the suite exposes.
pub const REGION_ADDRESS: u64 = 0x7000_0000_0000;
/// Length of the first extent; the second lies before it in the pool.
const FIRST_BYTES: u64 = 1 << 20;
const SECOND_BYTES: u64 = 3 << 20;
/// Bytes of the pool that the suite needs.
pub const POOL_BYTES: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const BOTH: WindowAccess = WindowAccess {
    read: true,
    write: true,
};
const READ: WindowAccess = WindowAccess {
    read: true,
    write: false,
};

/// What a provider brings to be tested. A fresh one for each case.
pub trait Harness: Sync {
    /// The unit's half.
    fn unit(&self) -> &dyn UnitFabric;
    /// A pool of at least [`POOL_BYTES`].
    fn pool(&self) -> &Arc<PoolMemory>;
    /// The persistence method to test with.
    fn method(&self) -> PersistenceMethod;
    /// Connects an initiator to the unit.
    ///
    /// # Errors
    /// What the provider says.
    fn connect(&self, token: ConnectToken) -> Result<Box<dyn Connection>, FabricError>;
    /// How much slower than on a plain machine things may be (emulation): 1 or more. Sizes shrink with it.
    fn slowness(&self) -> usize {
        1
    }
}

/// A case of the suite: its name and what it does.
pub type Case = (&'static str, fn(&dyn Harness));

/// Every case.
pub const CASES: &[Case] = &[
    (
        "p01_what_is_written_is_read_back_at_any_size",
        written_is_read_back,
    ),
    (
        "p01_a_durable_commit_is_one_chain_and_one_completion",
        commit_is_one_chain,
    ),
    ("p01_chains_complete_in_order", chains_complete_in_order),
    (
        "p01_a_chain_out_of_grammar_is_refused_and_harms_nothing",
        grammar_is_kept,
    ),
    ("p01_waiting_is_event_driven_and_bounded", waiting_works),
    ("p01_the_queue_has_a_bound", queue_is_bounded),
    (
        "p09_outside_the_windows_nothing_is_possible",
        outside_windows,
    ),
    (
        "p09_a_wrong_key_is_a_remote_access_error_and_the_end",
        wrong_key,
    ),
    ("p09_rights_are_kept", rights_are_kept),
    (
        "p09_a_window_over_a_part_reaches_nothing_else",
        part_of_an_extent,
    ),
    ("p09_the_flush_key_writes_nothing", flush_key_writes_nothing),
    ("b07_who_reads_may_flush", who_reads_may_flush),
    (
        "p10_scattered_extents_are_one_range_of_addresses",
        scattered_extents,
    ),
    ("p16_a_token_works_once", token_works_once),
    (
        "p16_windows_are_worthless_on_another_connection",
        other_connection,
    ),
    ("b01_an_atomic_write_is_seen_whole", atomic_write_is_whole),
    ("b03_after_invalidate_no_byte_lands", fence_under_fire),
    (
        "b03_an_invalidated_expectation_never_connects",
        fence_before_connect,
    ),
    (
        "p04_the_end_of_a_connection_is_seen_on_both_sides",
        end_is_seen,
    ),
];

/// Runs every case, each with a harness of its own, and says which. `PMU_CONTRACT_ONLY` in the environment picks those whose names contain it.
pub fn run_all(mut make: impl FnMut(&str) -> Box<dyn Harness>) {
    let only = std::env::var("PMU_CONTRACT_ONLY").unwrap_or_default();
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        let begun = Instant::now();
        let harness = make(name);
        case(harness.as_ref());
        harness.unit().shut_down();
        eprintln!("contract {name}: ok ({} ms)", begun.elapsed().as_millis());
    }
}

/// A connection with windows over the whole region and 8 MiB of attached memory.
struct Peer {
    id: ConnectionId,
    connection: Box<dyn Connection>,
    memory: Arc<LocalMemory>,
    attached: AttachedMemory,
    windows: Vec<AccessWindow>,
}

fn expose(harness: &dyn Harness) {
    let extents = vec![
        ExposedExtent {
            address: REGION_ADDRESS,
            pool_offset: 5 << 20,
            length: FIRST_BYTES,
        },
        ExposedExtent {
            address: REGION_ADDRESS + FIRST_BYTES,
            pool_offset: 1 << 20,
            length: SECOND_BYTES,
        },
    ];
    let region = ExposedRegion {
        address: REGION_ADDRESS,
        pool: Arc::clone(harness.pool()),
        extents,
    };
    harness.unit().expose(&region).expect("expose");
    harness
        .unit()
        .expose(&region)
        .expect("exposing again is nothing");
}

fn connect(harness: &dyn Harness, access: WindowAccess) -> Peer {
    expose(harness);
    let token = ConnectToken::random().unwrap();
    let unit = harness.unit();
    let id = unit
        .expect(token, harness.method(), PATIENCE)
        .expect("expect");
    let connection = harness.connect(token).expect("connect");
    unit.wait_connected(id, PATIENCE).expect("connected");
    let windows = unit
        .bind(
            id,
            REGION_ADDRESS,
            REGION_ADDRESS,
            FIRST_BYTES + SECOND_BYTES,
            access,
        )
        .expect("bind");
    let mut peer = with_memory(id, connection);
    peer.connection.set_windows(&windows).unwrap();
    peer.windows = windows;
    peer
}

fn with_memory(id: ConnectionId, mut connection: Box<dyn Connection>) -> Peer {
    let memory = Arc::new(LocalMemory::allocate(8 << 20).unwrap());
    let attached = connection.attach(Arc::clone(&memory)).expect("attach");
    Peer {
        id,
        connection,
        memory,
        attached,
        windows: Vec::new(),
    }
}

impl Peer {
    fn slice(&self, offset: usize, length: usize) -> LocalSlice {
        LocalSlice {
            memory: self.attached,
            offset,
            length,
        }
    }

    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + PATIENCE;
        let mut one = [Completion {
            tag: 0,
            status: CompletionStatus::Success,
        }];
        while Instant::now() < deadline {
            if self.connection.poll(&mut one).expect("poll") == 1 {
                return one[0];
            }
            self.connection
                .wait(Duration::from_millis(100))
                .expect("wait");
        }
        panic!("no completion in {PATIENCE:?}");
    }

    fn run(&mut self, chain: &Chain) -> CompletionStatus {
        self.connection.post(77, chain).expect("post");
        let completion = self.next();
        assert_eq!(completion.tag, 77);
        completion.status
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> CompletionStatus {
        self.memory.write_at(0, bytes).unwrap();
        let mut chain = Chain::default();
        chain
            .write(address, self.slice(0, bytes.len()))
            .flush(address, bytes.len() as u64);
        self.run(&chain)
    }

    fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>, CompletionStatus> {
        let at = 4 << 20;
        self.memory.zero(at, length as u64).unwrap();
        let mut chain = Chain::default();
        chain.read(address, self.slice(at as usize, length));
        match self.run(&chain) {
            CompletionStatus::Success => {
                let mut bytes = vec![0; length];
                self.memory.read_at(at, &mut bytes).unwrap();
                Ok(bytes)
            }
            status => Err(status),
        }
    }
}

/// Bytes that differ at every place and for every seed.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

fn written_is_read_back(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let largest = (3 << 20) / harness.slowness();
    for (seed, length) in [1, 7, 8, 64, 4095, 4096, 65_537, 300_001, largest]
        .into_iter()
        .enumerate()
    {
        let bytes = pattern(seed as u64, length);
        let address = REGION_ADDRESS + 13 * seed as u64;
        assert_eq!(peer.write(address, &bytes), CompletionStatus::Success);
        assert!(
            peer.read(address, length).unwrap() == bytes,
            "length {length}"
        );
    }
}

fn commit_is_one_chain(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let before = peer.connection.counters();
    peer.memory.write_at(0, b"hello pmem").unwrap();
    let mut chain = Chain::with_capacity(4);
    let at = REGION_ADDRESS + 8192;
    chain
        .write(at, peer.slice(0, 10))
        .flush(at, 10)
        .atomic_write(REGION_ADDRESS, 42)
        .flush(REGION_ADDRESS, 8);
    assert_eq!(peer.run(&chain), CompletionStatus::Success);
    let after = peer.connection.counters();
    assert_eq!(after.chains - before.chains, 1);
    // Persist by the server is an exchange of messages: the completion of ours, and the unit's answer.
    let by_message = peer.connection.provider() == Provider::Verbs
        && harness.method() == PersistenceMethod::ServerPersist;
    let completions = if by_message { 2 } else { 1 };
    assert_eq!(
        after.completions - before.completions,
        completions,
        "one completion for the whole chain"
    );
    assert_eq!(
        after.doorbells - before.doorbells,
        1,
        "one doorbell for the whole chain"
    );
    assert_eq!(peer.read(at, 10).unwrap(), b"hello pmem");
    assert_eq!(peer.read(REGION_ADDRESS, 8).unwrap(), 42u64.to_le_bytes());
}

fn chains_complete_in_order(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let count = 300 / harness.slowness() as u64 + 20;
    let (mut posted, mut reaped) = (0, 0);
    let mut chain = Chain::with_capacity(4);
    while reaped < count {
        while posted < count {
            chain.clear();
            let slot = (posted % 64) * 64;
            if posted % 3 == 2 {
                chain.read(REGION_ADDRESS + slot, peer.slice(1 << 20, 64));
            } else {
                chain.write(REGION_ADDRESS + 4096 + slot, peer.slice(slot as usize, 64));
                chain
                    .flush(REGION_ADDRESS + 4096 + slot, 64)
                    .atomic_write(REGION_ADDRESS, posted);
            }
            match peer.connection.post(1000 + posted, &chain) {
                Ok(()) => posted += 1,
                Err(FabricError::QueueFull) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let completion = peer.next();
        assert_eq!(
            completion,
            Completion {
                tag: 1000 + reaped,
                status: CompletionStatus::Success
            }
        );
        reaped += 1;
    }
    assert_eq!(peer.connection.in_flight(), 0);
}

fn grammar_is_kept(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let slice = peer.slice(0, 8);
    let refused = |build: fn(&mut Chain, LocalSlice)| {
        let mut chain = Chain::default();
        build(&mut chain, slice);
        chain
    };
    let chains = [
        refused(|_, _| {}),
        refused(|chain, _| {
            chain.atomic_write(REGION_ADDRESS + 4, 1);
        }),
        refused(|chain, slice| {
            chain.flush(REGION_ADDRESS, 8).write(REGION_ADDRESS, slice);
        }),
        refused(|chain, slice| {
            chain
                .read(REGION_ADDRESS, slice)
                .write(REGION_ADDRESS, slice);
        }),
    ];
    for chain in &chains {
        let result = peer.connection.post(1, chain);
        assert!(
            matches!(result, Err(FabricError::InvalidChain { .. })),
            "{result:?}"
        );
    }
    let mut chain = Chain::default();
    chain.write(REGION_ADDRESS, peer.slice(8 << 20, 1));
    assert!(matches!(
        peer.connection.post(1, &chain),
        Err(FabricError::OutsideMemory { .. })
    ));
    chain.clear();
    chain.write(REGION_ADDRESS, peer.slice(usize::MAX, 2));
    assert!(matches!(
        peer.connection.post(1, &chain),
        Err(FabricError::OutsideMemory { .. })
    ));
    assert_eq!(peer.connection.in_flight(), 0);
    assert_eq!(
        peer.write(REGION_ADDRESS, b"still fine"),
        CompletionStatus::Success
    );
}

fn waiting_works(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let begun = Instant::now();
    peer.connection.wait(Duration::from_millis(30)).unwrap();
    assert!(
        begun.elapsed() >= Duration::from_millis(25),
        "nothing to wait for, so the time must pass"
    );
    let mut chain = Chain::default();
    chain.write(REGION_ADDRESS, peer.slice(0, 64));
    peer.connection.post(5, &chain).unwrap();
    let mut one = [Completion {
        tag: 0,
        status: CompletionStatus::Flushed,
    }];
    let begun = Instant::now();
    while peer.connection.poll(&mut one).unwrap() == 0 {
        peer.connection.wait(PATIENCE).unwrap();
        assert!(begun.elapsed() < PATIENCE, "wait slept over a completion");
    }
    assert_eq!(
        one[0],
        Completion {
            tag: 5,
            status: CompletionStatus::Success
        }
    );
}

fn queue_is_bounded(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let bound = peer.connection.limits().chains_in_flight_max;
    let mut chain = Chain::default();
    chain.write(REGION_ADDRESS, peer.slice(0, 8));
    let mut posted = 0;
    while posted <= bound {
        match peer.connection.post(posted as u64, &chain) {
            Ok(()) => posted += 1,
            Err(FabricError::QueueFull) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(posted, bound);
    for tag in 0..posted {
        assert_eq!(
            peer.next(),
            Completion {
                tag: tag as u64,
                status: CompletionStatus::Success
            }
        );
    }
    assert_eq!(
        peer.write(REGION_ADDRESS, b"goes on"),
        CompletionStatus::Success
    );
}

fn outside_windows(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let end = REGION_ADDRESS + FIRST_BYTES + SECOND_BYTES;
    for address in [REGION_ADDRESS - 1, end - 7, end, 0, u64::MAX - 3] {
        let mut chain = Chain::default();
        chain.write(address, peer.slice(0, 8));
        let result = peer.connection.post(1, &chain);
        assert!(
            matches!(result, Err(FabricError::OutsideWindows { .. })),
            "{address:#x}: {result:?}"
        );
    }
    // A caller that lies to itself about its windows is stopped by the unit.
    let last = *peer.windows.last().unwrap();
    peer.connection
        .set_windows(&[AccessWindow {
            length: last.length + 4096,
            ..last
        }])
        .unwrap();
    let mut chain = Chain::default();
    chain.write(last.address + last.length, peer.slice(0, 8));
    assert_eq!(peer.run(&chain), CompletionStatus::RemoteAccess);
}

fn wrong_key(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    assert_eq!(
        peer.write(REGION_ADDRESS, b"before!!"),
        CompletionStatus::Success
    );
    let mut forged = peer.windows.clone();
    forged[0].access_key ^= 0x0100_0000;
    peer.connection.set_windows(&forged).unwrap();
    let mut chain = Chain::default();
    peer.memory.write_at(0, b"forged!!").unwrap();
    chain.write(REGION_ADDRESS, peer.slice(0, 8));
    peer.connection.post(1, &chain).unwrap();
    // A chain behind it never counts.
    let mut behind = Chain::default();
    behind.write(REGION_ADDRESS + FIRST_BYTES, peer.slice(0, 8));
    let posted = peer.connection.post(2, &behind).is_ok();
    assert_eq!(
        peer.next(),
        Completion {
            tag: 1,
            status: CompletionStatus::RemoteAccess
        }
    );
    if posted {
        assert_eq!(
            peer.next(),
            Completion {
                tag: 2,
                status: CompletionStatus::Flushed
            }
        );
    }
    assert_eq!(peer.connection.dead(), Some(CompletionStatus::RemoteAccess));
    assert!(matches!(
        peer.connection.post(3, &chain),
        Err(FabricError::Dead(CompletionStatus::RemoteAccess))
    ));
    let mut reader = connect(harness, READ);
    assert_eq!(reader.read(REGION_ADDRESS, 8).unwrap(), b"before!!");
    assert_eq!(
        reader.read(REGION_ADDRESS + FIRST_BYTES, 8).unwrap(),
        [0; 8]
    );
}

fn rights_are_kept(harness: &dyn Harness) {
    let mut reader = connect(harness, READ);
    assert!(reader.read(REGION_ADDRESS, 64).is_ok());
    assert_eq!(
        reader.write(REGION_ADDRESS, b"no right"),
        CompletionStatus::RemoteAccess
    );
    let mut reader = connect(harness, READ);
    let mut chain = Chain::default();
    chain.atomic_write(REGION_ADDRESS, 1);
    assert_eq!(reader.run(&chain), CompletionStatus::RemoteAccess);
    let mut writer = connect(
        harness,
        WindowAccess {
            read: false,
            write: true,
        },
    );
    assert_eq!(
        writer.write(REGION_ADDRESS, b"writes"),
        CompletionStatus::Success
    );
    if harness.method() != PersistenceMethod::ReadAfterWrite {
        // (Read-after-write gives every writer the right to read, as its flush is a read.)
        assert_eq!(
            writer.read(REGION_ADDRESS, 6),
            Err(CompletionStatus::RemoteAccess)
        );
    }
}

fn part_of_an_extent(harness: &dyn Harness) {
    // As a backup has it: one page to write, in the middle of what it may only read.
    const PAGE: u64 = 4096;
    for (forged, at) in [(0, REGION_ADDRESS), (2, REGION_ADDRESS + 2 * PAGE)] {
        expose(harness);
        let (unit, token) = (harness.unit(), ConnectToken::random().unwrap());
        let id = unit.expect(token, harness.method(), PATIENCE).unwrap();
        let mut peer = with_memory(id, harness.connect(token).unwrap());
        unit.wait_connected(id, PATIENCE).unwrap();
        let bind = |page: u64, access| {
            unit.bind(
                id,
                REGION_ADDRESS,
                REGION_ADDRESS + page * PAGE,
                PAGE,
                access,
            )
            .unwrap()[0]
        };
        let windows = [bind(0, READ), bind(1, BOTH), bind(2, READ)];
        peer.connection.set_windows(&windows).unwrap();
        assert_eq!(
            peer.write(REGION_ADDRESS + PAGE, b"the page"),
            CompletionStatus::Success
        );
        assert!(peer.read(at, 8).is_ok());
        // The key of the page that may be written, used for its neighbours.
        let mut lie = windows;
        lie[forged].access_key = windows[1].access_key;
        peer.connection.set_windows(&lie).unwrap();
        peer.memory.write_at(0, b"forged").unwrap();
        let mut chain = Chain::default();
        chain.write(at, peer.slice(0, 6));
        assert_eq!(peer.run(&chain), CompletionStatus::RemoteAccess);
        let mut reader = connect(harness, READ);
        assert_eq!(reader.read(at, 6).unwrap(), [0; 6]);
    }
}

fn flush_key_writes_nothing(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    let mut forged = peer.windows.clone();
    forged[0].access_key = forged[0].flush_key;
    peer.connection.set_windows(&forged).unwrap();
    peer.memory.write_at(0, b"by flush").unwrap();
    let mut chain = Chain::default();
    chain.write(REGION_ADDRESS, peer.slice(0, 8));
    assert_eq!(peer.run(&chain), CompletionStatus::RemoteAccess);
    let mut reader = connect(harness, READ);
    assert_eq!(reader.read(REGION_ADDRESS, 8).unwrap(), [0; 8]);
}

fn who_reads_may_flush(harness: &dyn Harness) {
    let mut writer = connect(harness, BOTH);
    assert_eq!(
        writer.write(REGION_ADDRESS, b"visible"),
        CompletionStatus::Success
    );
    let mut reader = connect(harness, READ);
    assert_eq!(reader.read(REGION_ADDRESS, 7).unwrap(), b"visible");
    let mut chain = Chain::default();
    chain.flush(REGION_ADDRESS, 4096);
    assert_eq!(reader.run(&chain), CompletionStatus::Success);
    // It is still one that writes nothing.
    reader.memory.write_at(0, b"written").unwrap();
    let mut chain = Chain::default();
    chain.write(REGION_ADDRESS, reader.slice(0, 7));
    assert_eq!(reader.run(&chain), CompletionStatus::RemoteAccess);
    assert_eq!(writer.read(REGION_ADDRESS, 7).unwrap(), b"visible");
}

fn scattered_extents(harness: &dyn Harness) {
    let mut peer = connect(harness, BOTH);
    assert_eq!(peer.windows.len(), 2, "a window for each extent");
    let bytes = pattern(9, 10_000);
    let address = REGION_ADDRESS + FIRST_BYTES - 5_000;
    assert_eq!(peer.write(address, &bytes), CompletionStatus::Success);
    assert_eq!(peer.read(address, bytes.len()).unwrap(), bytes);
    let mut at_place = vec![0; 5_000];
    harness
        .pool()
        .read_at((5 << 20) + FIRST_BYTES - 5_000, &mut at_place)
        .unwrap();
    assert_eq!(
        at_place,
        bytes[..5_000],
        "the first half lies at the end of the first extent"
    );
    harness.pool().read_at(1 << 20, &mut at_place).unwrap();
    assert_eq!(
        at_place,
        bytes[5_000..],
        "the second half lies at the start of the second"
    );
}

fn token_works_once(harness: &dyn Harness) {
    let token = ConnectToken::random().unwrap();
    assert!(harness.connect(token).is_err(), "a token nobody expects");
    let id = harness
        .unit()
        .expect(token, harness.method(), PATIENCE)
        .unwrap();
    let _first = harness.connect(token).expect("the first time");
    harness.unit().wait_connected(id, PATIENCE).unwrap();
    assert!(harness.connect(token).is_err(), "the second time");
    let late = ConnectToken::random().unwrap();
    let id = harness
        .unit()
        .expect(late, harness.method(), Duration::from_millis(1))
        .unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(harness.connect(late).is_err(), "too late");
    assert!(
        harness
            .unit()
            .wait_connected(id, Duration::from_millis(10))
            .is_err()
    );
}

fn other_connection(harness: &dyn Harness) {
    let mut rightful = connect(harness, BOTH);
    let mut thief = connect(harness, READ);
    thief.connection.set_windows(&rightful.windows).unwrap();
    assert_eq!(
        thief.write(REGION_ADDRESS, b"stolen"),
        CompletionStatus::RemoteAccess
    );
    assert_eq!(rightful.read(REGION_ADDRESS, 6).unwrap(), [0; 6]);
}

fn atomic_write_is_whole(harness: &dyn Harness) {
    let mut writer = connect(harness, BOTH);
    let mut reader = connect(harness, READ);
    let rounds = 400 / harness.slowness() as u64 + 20;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut chain = Chain::default();
            for round in 0..rounds {
                chain.clear();
                let value = if round % 2 == 0 { u64::MAX } else { 0 };
                chain
                    .atomic_write(REGION_ADDRESS + 64, value)
                    .flush(REGION_ADDRESS + 64, 8);
                assert_eq!(writer.run(&chain), CompletionStatus::Success);
            }
            stop.store(true, Ordering::Release);
        });
        while !stop.load(Ordering::Acquire) {
            let seen = reader.read(REGION_ADDRESS + 64, 8).unwrap();
            assert!(
                seen == [0; 8] || seen == [0xff; 8],
                "a torn value: {seen:?}"
            );
        }
    });
}

fn fence_under_fire(harness: &dyn Harness) {
    let mut old = connect(harness, BOTH);
    let id = old.id;
    let written = AtomicU64::new(0);
    let (old, last_status) = std::thread::scope(|scope| {
        let fire = scope.spawn(|| {
            let length = (1 << 20) / harness.slowness().min(8);
            let mut chain = Chain::default();
            loop {
                let round = written.fetch_add(1, Ordering::AcqRel) + 1;
                old.memory
                    .write_at(0, &vec![round as u8 | 1; length])
                    .unwrap();
                chain.clear();
                chain.write(REGION_ADDRESS + 4096, old.slice(0, length));
                chain
                    .flush(REGION_ADDRESS + 4096, length as u64)
                    .atomic_write(REGION_ADDRESS, round);
                let status = old.run(&chain);
                if status != CompletionStatus::Success {
                    return (old, status);
                }
            }
        });
        while written.load(Ordering::Acquire) < 4 {
            std::thread::yield_now();
        }
        harness.unit().invalidate(id).expect("invalidate");
        let picture = |into: &mut Vec<u8>| harness.pool().read_at(0, into).unwrap();
        let mut at_fence = vec![0; POOL_BYTES as usize];
        let mut later = vec![0; POOL_BYTES as usize];
        picture(&mut at_fence);
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(20));
            picture(&mut later);
            assert!(at_fence == later, "a byte landed after the fence");
        }
        fire.join().expect("the writer's thread")
    });
    assert_eq!(
        last_status,
        CompletionStatus::RemoteAccess,
        "the fenced writer sees a remote access error"
    );
    assert_eq!(old.connection.dead(), Some(CompletionStatus::RemoteAccess));
    harness.unit().invalidate(id).expect("twice is nothing");
    let mut next = connect(harness, BOTH);
    assert_eq!(
        next.write(REGION_ADDRESS, b"the next writer"),
        CompletionStatus::Success
    );
}

fn fence_before_connect(harness: &dyn Harness) {
    let token = ConnectToken::random().unwrap();
    let id = harness
        .unit()
        .expect(token, harness.method(), PATIENCE)
        .unwrap();
    harness.unit().invalidate(id).unwrap();
    assert!(harness.connect(token).is_err());
    assert!(matches!(
        harness.unit().wait_connected(id, PATIENCE),
        Err(FabricError::NoSuchConnection)
    ));
}

fn end_is_seen(harness: &dyn Harness) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    harness.unit().observe(Box::new(move |event| {
        let FabricEvent::Disconnected { connection, .. } = event;
        seen.lock().push(connection);
    }));
    let wait_for = |id| {
        let deadline = Instant::now() + PATIENCE;
        while !events.lock().contains(&id) {
            assert!(
                Instant::now() < deadline,
                "the unit never saw the end of {id:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let peer = connect(harness, BOTH);
    let id = peer.id;
    drop(peer);
    wait_for(id);
    let mut peer = connect(harness, BOTH);
    harness.unit().close(peer.id);
    wait_for(peer.id);
    let mut chain = Chain::default();
    chain.write(REGION_ADDRESS, peer.slice(0, 8));
    if peer.connection.post(1, &chain).is_ok() {
        assert_ne!(peer.next().status, CompletionStatus::Success);
    }
    assert!(peer.connection.dead().is_some());
}
