//! What a program that breaks the rules, or whose bytes are not those that it announced, can do to a distributor: end its own session.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;
#[path = "support/units.rs"]
mod units;

use std::sync::Arc;
use std::time::Duration;

use pmu_auth::Role;
use pmu_client::{LocalMemory, OpenOptions, SetChoice};
use pmu_fabric::soft::{SoftConnection, connect};
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, ConnectToken, Connection,
    LocalSlice, PersistenceMethod, Provider,
};
use pmu_format::crc64_nvme;
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::distributor_client::DistributorClient;
use pmu_proto::v1::failure::Kind;
use pmu_proto::v1::{self, DistributeRequest, DistributeResponse};
use support::{PATIENCE, pattern};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use units::Units;

const RING: u64 = 1 << 20;
const PIECE: u64 = RING / 8;

/// A program that says whatever the test wants.
struct Raw {
    runtime: Runtime,
    requests: mpsc::Sender<DistributeRequest>,
    answers: Streaming<DistributeResponse>,
}

impl Raw {
    fn begin(units: &Units) -> Self {
        Self::open(units, open_request())
    }

    /// The same for the log, and what it was told of that.
    fn begin_log(units: &Units) -> (Self, v1::DistributedLog) {
        let open = v1::DistributeOpen {
            region: "log".into(),
            mode: v1::Mode::Append.into(),
            ..open_request()
        };
        let mut raw = Self::connect(units, open);
        match raw.hear() {
            Some(Answer::Opened(opened)) => (raw, opened.log.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn open(units: &Units, open: v1::DistributeOpen) -> Self {
        let mut raw = Self::connect(units, open);
        assert!(matches!(raw.hear(), Some(Answer::Opened(_))));
        raw
    }

    fn connect(units: &Units, open: v1::DistributeOpen) -> Self {
        let runtime = Runtime::new().unwrap();
        let (requests, outgoing) = mpsc::channel(64);
        let identity = units.identity("app", Role::Client);
        let address = units.addresses[0].parse().unwrap();
        requests.try_send(say(Step::Open(open))).unwrap();
        let answers = runtime.block_on(async {
            let channel = pmu_auth::connect(&address, &identity, None, PATIENCE)
                .await
                .unwrap();
            let mut client = DistributorClient::new(channel);
            let stream = ReceiverStream::new(outgoing);
            client.distribute(stream).await.unwrap().into_inner()
        });
        Self {
            runtime,
            requests,
            answers,
        }
    }

    fn say(&self, step: Step) {
        self.requests.try_send(say(step)).unwrap();
    }

    /// None: the session is over.
    fn hear(&mut self) -> Option<Answer> {
        let message = self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, self.answers.message())
                .await
                .unwrap()
        });
        message.unwrap().map(|answer| answer.step.unwrap())
    }

    fn failure(&mut self) -> Kind {
        loop {
            match self.hear().unwrap() {
                Answer::Failed(failed) => return failed.failure.unwrap().kind(),
                Answer::Taken(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn attach(&mut self) -> Data {
        self.say(Step::Attach(v1::DistributeAttach {
            provider: v1::Provider::SoftUnix.into(),
        }));
        let Some(Answer::Staging(staging)) = self.hear() else {
            panic!("staging memory was expected")
        };
        assert_eq!(
            (staging.length_bytes, u64::from(staging.piece_bytes_max)),
            (RING, PIECE)
        );
        let token = ConnectToken(staging.connect_token.try_into().unwrap());
        let mut connection = connect(
            Provider::SoftUnix,
            &staging.address.unwrap().address,
            token,
            PersistenceMethod::Volatile,
            PATIENCE,
        )
        .unwrap();
        self.say(Step::Connected(v1::DistributeConnected {}));
        let Some(Answer::Window(window)) = self.hear() else {
            panic!("a window was expected")
        };
        let window = window.window.unwrap();
        assert_eq!(window.access, pmu_proto::ACCESS_WRITE);
        let window = AccessWindow {
            address: window.virtual_address,
            length: window.length_bytes,
            access_key: window.access_key,
            flush_key: 0,
        };
        connection.set_windows(&[window]).unwrap();
        let memory = Arc::new(LocalMemory::allocate(RING as usize).unwrap());
        let attached = connection.attach(Arc::clone(&memory)).unwrap();
        Data {
            connection,
            memory,
            attached,
            base: window.address,
        }
    }

    fn start(&self, put: u64) {
        self.say(Step::Begin(v1::DistributeBegin {
            put,
            label: vec![0; 32],
            length_bytes: None,
        }));
    }

    fn ready(&self, put: u64, position: u64, bytes: &[u8], checksum: u64) {
        self.say(Step::Ready(v1::DistributeReady {
            put,
            position,
            length_bytes: bytes.len() as u32,
            checksum,
        }));
    }

    fn finish(&self, put: u64, length_bytes: u64) {
        self.say(Step::Finish(v1::DistributeFinish { put, length_bytes }));
    }

    fn records(&self, position: u64, bytes: &[u8], checksum: u64, records: &[u64]) {
        self.say(Step::Records(v1::DistributeRecords {
            position,
            length_bytes: bytes.len() as u32,
            checksum,
            records: records.to_vec(),
        }));
    }

    fn appended(&mut self) -> v1::DistributeAppended {
        loop {
            match self.hear().unwrap() {
                Answer::Appended(appended) => return appended,
                Answer::Taken(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The failure that ends a session of records, and up to where they were appended.
    fn ended(&mut self) -> (Kind, u64) {
        loop {
            match self.hear().unwrap() {
                Answer::Failed(failed) => {
                    assert!(self.hear().is_none());
                    return (failed.failure.unwrap().kind(), failed.appended_to.unwrap());
                }
                Answer::Taken(_) | Answer::Appended(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn stored(&mut self) -> v1::DistributeReceipt {
        loop {
            match self.hear().unwrap() {
                Answer::Stored(stored) => return stored.receipt.unwrap(),
                Answer::Taken(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn say(step: Step) -> DistributeRequest {
    DistributeRequest { step: Some(step) }
}

fn open_request() -> v1::DistributeOpen {
    v1::DistributeOpen {
        region: "state".into(),
        mode: v1::Mode::Overwrite.into(),
        persistence: 0,
        open_ms: 10_000,
        stall_ms: 10_000,
        goes_on_from: Vec::new(),
    }
}

/// Somebody whom nobody gave a right, and who says nothing.
fn silent_stranger(units: &Units) -> Runtime {
    let runtime = Runtime::new().unwrap();
    let identity = units.identity("stranger", Role::Client);
    let address = units.addresses[0].parse().unwrap();
    let channel = runtime
        .block_on(pmu_auth::connect(&address, &identity, None, PATIENCE))
        .unwrap();
    for _ in 0..8 {
        let mut client = DistributorClient::new(channel.clone());
        runtime.spawn(async move {
            let nothing = tokio_stream::pending::<DistributeRequest>();
            client.distribute(nothing).await.map(drop)
        });
    }
    // Each of them is there.
    std::thread::sleep(Duration::from_millis(300));
    runtime
}

#[test]
fn d08_strangers_who_say_nothing_take_no_room() {
    let mut units = Units::new(3, 16 << 20);
    units.distribute("staging = \"1MiB\"\nsessions_max = 1");
    units.spread("state", "parity:2+1", 2, 1 << 20);
    let strangers = silent_stranger(&units);
    let mut raw = Raw::begin(&units);
    raw.attach();
    drop(strangers);
}

/// What is wrong, and the program that does it.
type Mistake<'a> = (&'a str, &'a dyn Fn(&Raw));

struct Data {
    connection: SoftConnection,
    memory: Arc<LocalMemory>,
    attached: AttachedMemory,
    base: u64,
}

impl Data {
    fn run(&mut self, chain: &Chain) -> CompletionStatus {
        self.connection.post(1, chain).unwrap();
        let mut done = [Completion {
            tag: 0,
            status: CompletionStatus::Flushed,
        }];
        while self.connection.poll(&mut done).unwrap() == 0 {
            self.connection.wait(Duration::from_millis(100)).unwrap();
        }
        done[0].status
    }

    fn local(&self, length: usize) -> LocalSlice {
        LocalSlice {
            memory: self.attached,
            offset: 0,
            length,
        }
    }

    fn write(&mut self, position: u64, bytes: &[u8]) {
        self.memory.write_at(0, bytes).unwrap();
        let mut chain = Chain::with_capacity(1);
        chain.write(self.base + position % RING, self.local(bytes.len()));
        assert_eq!(self.run(&chain), CompletionStatus::Success);
    }
}

fn units() -> Units {
    let mut units = Units::new(3, 16 << 20);
    units.distribute("staging = \"1MiB\"");
    units.spread("state", "parity:2+1", 2, 1 << 20);
    units
}

fn newest(units: &Units) -> Vec<u8> {
    let mut bytes = Vec::new();
    let spread = units.find("backup", "state");
    let mut reader = spread.open_reader(&OpenOptions::new()).unwrap();
    reader.read(SetChoice::Newest, &mut bytes).unwrap();
    bytes
}

#[test]
fn d08_a_damaged_or_torn_piece_is_refused_and_the_last_set_stays() {
    let units = units();
    let mut raw = Raw::begin(&units);
    let mut data = raw.attach();
    let bytes = pattern(100_000, 1);
    data.write(0, &bytes);
    raw.start(1);
    raw.ready(1, 0, &bytes, crc64_nvme(&bytes));
    raw.finish(1, 100_000);
    let receipt = raw.stored();
    assert_eq!((receipt.set, receipt.length_bytes), (1, 100_000));

    // Announced before its second half is written; and with a bit that flipped on the way.
    let other = pattern(100_000, 2);
    let mut flipped = other.clone();
    flipped[77_777] ^= 16;
    for (put, landed) in [(2, &other[..50_000]), (3, &flipped[..])] {
        let position = (put - 1) * 100_000;
        data.write(position, landed);
        raw.start(put);
        raw.ready(put, position, &other, crc64_nvme(&other));
        assert_eq!(raw.failure(), Kind::DamagedPiece);
        // What of it is still on its way changes nothing.
        raw.finish(put, 100_000);
        assert!(newest(&units) == bytes);
    }
    // Written while it is looked for: it is there in time.
    raw.start(4);
    raw.ready(4, 300_000, &other, crc64_nvme(&other));
    data.write(300_000, &other);
    raw.finish(4, 100_000);
    assert_eq!(raw.stored().set, 2);
    assert!(newest(&units) == other);
}

#[test]
fn d08_staging_memory_can_be_written_and_nothing_else() {
    let units = units();
    let mut raw = Raw::begin(&units);
    let mut data = raw.attach();
    let mut chain = Chain::with_capacity(1);
    chain.read(data.base, data.local(8));
    // The window is for writing alone.
    assert_eq!(data.run(&chain), CompletionStatus::RemoteAccess);
    // Another connection gets the memory anew.
    let mut data = raw.attach();
    let bytes = pattern(10, 1);
    data.write(0, &bytes);
    raw.start(1);
    raw.ready(1, 0, &bytes, crc64_nvme(&bytes));
    raw.finish(1, 10);
    assert_eq!(raw.stored().set, 1);
}

#[test]
fn d08_who_breaks_the_protocol_loses_the_session_alone() {
    let units = units();
    let bytes = pattern(1000, 1);
    let whole = crc64_nvme(&bytes);
    let wrong: [Mistake<'_>; 9] = [
        ("a second window", &|raw| {
            raw.say(Step::Connected(v1::DistributeConnected {}));
        }),
        ("piece across the end", &|raw| {
            raw.start(1);
            raw.ready(1, RING - 1, &bytes, whole);
        }),
        ("piece that goes back", &|raw| {
            raw.start(1);
            raw.ready(1, 0, &bytes, whole);
            raw.ready(1, 10, &bytes, whole);
        }),
        ("piece of nothing", &|raw| {
            raw.start(1);
            raw.ready(1, 0, &[], 0);
        }),
        ("piece that is too long", &|raw| {
            raw.start(1);
            raw.ready(1, 0, &vec![0; PIECE as usize + 1], 0);
        }),
        ("position at the end of numbers", &|raw| {
            raw.start(1);
            raw.ready(1, u64::MAX, &bytes, whole);
        }),
        ("length that is not the pieces'", &|raw| {
            raw.start(1);
            raw.finish(1, 5);
        }),
        ("set within a set", &|raw| {
            raw.start(1);
            raw.start(2);
        }),
        ("label of another length", &|raw| {
            raw.say(Step::Begin(v1::DistributeBegin {
                put: 1,
                label: vec![0; 31],
                length_bytes: None,
            }));
        }),
    ];
    for (what, does) in wrong {
        let mut raw = Raw::begin(&units);
        let mut data = raw.attach();
        data.write(0, &bytes);
        does(&raw);
        assert_eq!(raw.failure(), Kind::Protocol, "{what}");
        assert!(raw.hear().is_none(), "{what}");
    }
    // Before there is staging memory.
    let mut raw = Raw::begin(&units);
    raw.start(1);
    assert_eq!(raw.failure(), Kind::Protocol);
    // The next one is served as if nothing had been.
    drop(raw);
    let mut raw = Raw::begin(&units);
    let mut data = raw.attach();
    data.write(0, &bytes);
    raw.start(1);
    raw.ready(1, 0, &bytes, whole);
    raw.finish(1, 1000);
    assert_eq!(raw.stored().set, 1);
}

fn units_with_a_log() -> Units {
    let mut units = Units::new(3, 16 << 20);
    units.distribute("staging = \"1MiB\"");
    units.spread_log("log", "parity:2+1", 2, 1 << 20);
    units
}

fn published(units: &Units) -> Vec<Vec<u8>> {
    let spread = units.find("backup", "log");
    let mut backup = spread.open_log_backup(false, &OpenOptions::new()).unwrap();
    let records = backup.read_unread(1 << 20).unwrap();
    records.map(|record| record.payload.to_vec()).collect()
}

#[test]
fn d08_a_damaged_piece_of_records_ends_the_session_behind_those_that_were_whole() {
    let units = units_with_a_log();
    let (mut raw, log) = Raw::begin_log(&units);
    assert_eq!((log.tail, log.batch_bytes_max), (0, RING));
    let mut data = raw.attach();
    let bytes = pattern(3000, 1);
    data.write(0, &bytes);
    // Two records, and the third one's beginning; it ends in the next piece.
    raw.records(
        0,
        &bytes[..2500],
        crc64_nvme(&bytes[..2500]),
        &[2000, 2000, 2000],
    );
    let first = raw.appended();
    let proof = first.proof.unwrap_or_else(|| log.proof.clone().unwrap());
    assert!(first.to > 0 && proof.units.len() == 3);
    raw.records(
        2500,
        &bytes[2500..2750],
        crc64_nvme(&bytes[2500..2750]),
        &[],
    );
    raw.records(2750, &bytes[2750..], 1, &[]);
    let (kind, appended_to) = raw.ended();
    assert_eq!(kind, Kind::DamagedPiece);
    assert_eq!(appended_to, raw_position(&units));
    let whole = [&bytes[..1000], &bytes[1000..2000]];
    assert_eq!(published(&units), whole);
}

/// The end of the log as the next primary finds it.
fn raw_position(units: &Units) -> u64 {
    Raw::begin_log(units).1.tail
}

#[test]
fn d08_who_breaks_the_protocol_of_records_loses_the_session_alone() {
    let units = units_with_a_log();
    let bytes = pattern(1000, 1);
    let whole = crc64_nvme(&bytes);
    let wrong: [Mistake<'_>; 9] = [
        // Neither may make the distributor hold more than one batch.
        ("bytes behind a record whose batch goes on", &|raw| {
            raw.records(0, &bytes[..1], crc64_nvme(&bytes[..1]), &[3]);
            raw.records(1, &bytes[1..], crc64_nvme(&bytes[1..]), &[]);
        }),
        ("records inside the one before them", &|raw| {
            raw.records(0, &bytes, whole, &[2 * 5000, 3, 3, 3]);
        }),
        ("record of nothing", &|raw| {
            raw.records(0, &bytes, whole, &[0, 2000]);
        }),
        ("record that is too long", &|raw| {
            raw.records(0, &bytes, whole, &[2 * (RING + 1)]);
        }),
        ("batch that is too long", &|raw| {
            raw.records(0, &bytes, whole, &[RING + 1, RING + 1, 2]);
        }),
        ("length at the end of numbers", &|raw| {
            raw.records(0, &bytes, whole, &[u64::MAX, u64::MAX - 1]);
        }),
        ("bytes of no record", &|raw| {
            raw.records(0, &bytes, whole, &[10]);
        }),
        ("too many records", &|raw| {
            raw.records(0, &bytes, whole, &[2; 513]);
        }),
        ("a set", &|raw| raw.start(1)),
    ];
    for (what, does) in wrong {
        let (mut raw, _) = Raw::begin_log(&units);
        let mut data = raw.attach();
        data.write(0, &bytes);
        does(&raw);
        assert_eq!(raw.failure(), Kind::Protocol, "{what}");
        assert!(raw.hear().is_none(), "{what}");
    }
    let before = published(&units).len();
    // One that has no room although the program knew: nothing of it is appended.
    let (mut raw, log) = Raw::begin_log(&units);
    let mut data = raw.attach();
    let record = pattern(PIECE as usize, 1);
    let mut position = 0;
    let pieces = log.free_to / (PIECE / 2) + 2;
    // The ring of staging memory goes round: a piece is written when the one before was taken.
    for _ in 0..pieces.min(RING / PIECE) {
        data.write(position, &record);
        raw.records(position, &record, crc64_nvme(&record), &[2 * PIECE]);
        position += PIECE;
    }
    while position < pieces * PIECE {
        match raw.hear().unwrap() {
            Answer::Taken(_) => {
                data.write(position, &record);
                raw.records(position, &record, crc64_nvme(&record), &[2 * PIECE]);
                position += PIECE;
            }
            Answer::Appended(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let (kind, appended_to) = raw.ended();
    assert_eq!(kind, Kind::Full);
    assert_eq!(appended_to, raw_position(&units));
    assert!(published(&units).len() > before);
}
