//! Overwrite mode against a real unit in this process, over TLS and both soft providers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by a panic"
)]

mod support;

use std::io::{IoSlice, Write};

use pmu_client::{
    ClientError, FileSink, Label, OpenOptions, PersistenceChoice, PersistenceMethod, Provider,
    SetChoice, SetNumber, SetPrimary, Unit,
};
use support::{Pool, Site, over, pattern};

const MIB: u64 = 1 << 20;

fn primary(unit: &Unit, region: &str) -> SetPrimary {
    unit.open_sets_primary(region, &OpenOptions::new()).unwrap()
}

#[test]
fn p05_n_sets_are_kept() {
    let mut site = Site::new(Pool::Memory, 64 * MIB);
    site.sets("r", 3, 3 * MIB);
    let unit = site.client("app");
    let mut writer = primary(&unit, "r");
    let lengths = [0, 1, 4096, 262_144, 262_145, 2_000_000, 3 * MIB as usize];
    for (index, length) in lengths.iter().enumerate() {
        let payload = pattern(*length, index as u64);
        let (first, second) = payload.split_at(length / 3);
        let label = Label::new(&format!("step {index}")).unwrap();
        let receipt = writer
            .commit(&[IoSlice::new(first), IoSlice::new(second)], label)
            .unwrap();
        assert_eq!(receipt.set(), Some(SetNumber(index as u64 + 1)));
        assert_eq!(receipt.bytes, *length as u64);
    }
    let mut reader = site
        .client("backup")
        .open_sets_backup("r", &OpenOptions::new())
        .unwrap();
    let catalog = reader.sets().unwrap();
    assert_eq!(catalog.published, SetNumber(7));
    assert!(catalog.findings.is_empty(), "{:?}", catalog.findings);
    let committed: Vec<_> = catalog
        .sets
        .iter()
        .filter(|set| set.state_word() == "committed")
        .collect();
    assert_eq!(
        committed
            .iter()
            .map(|set| set.number.get())
            .collect::<Vec<_>>(),
        [7, 6, 5]
    );
    assert_eq!(committed[0].label.to_string(), "step 6");
    for set in committed {
        let (read, bytes) = reader.read_to_vec(SetChoice::Number(set.number)).unwrap();
        assert_eq!(read.set.number, set.number);
        let index = set.number.get() as usize - 1;
        assert!(
            bytes == pattern(lengths[index], index as u64),
            "set {}",
            set.number
        );
    }
    let gone = reader
        .read_to_vec(SetChoice::Number(SetNumber(2)))
        .unwrap_err();
    assert!(matches!(gone, ClientError::NoSuchSet { .. }), "{gone}");
}

#[test]
fn p06_several_sets_at_one_time() {
    let mut site = Site::new(Pool::Memory, 64 * MIB);
    site.sets("r", 4, 2 * MIB);
    let unit = site.client("app");
    let mut writer = primary(&unit, "r");
    for number in 1..=4_u64 {
        let payload = pattern(2 * MIB as usize - number as usize, number);
        writer
            .commit(&[IoSlice::new(&payload)], Label::default())
            .unwrap();
    }
    for provider in [Provider::SoftTcp, Provider::SoftUnix] {
        let mut reader = unit.open_sets_reader("r", &over(provider)).unwrap();
        let numbers = [4, 1, 3, 2, 9].map(SetNumber);
        let mut sinks = vec![Vec::new(); 5];
        let read = reader.read_sets(&numbers, &mut sinks).unwrap();
        for (index, number) in numbers.iter().take(4).enumerate() {
            assert_eq!(read[index].as_ref().unwrap().set.number, *number);
            let expected = pattern(2 * MIB as usize - number.get() as usize, number.get());
            assert!(sinks[index] == expected, "set {number}");
        }
        assert!(matches!(read[4], Err(ClientError::NoSuchSet { .. })));
    }
}

#[test]
fn p07_primary_needs_no_backup() {
    let mut site = Site::new(Pool::Memory, 32 * MIB);
    site.sets("r", 1, MIB);
    let unit = site.client("app");
    let mut writer = primary(&unit, "r");
    for number in 1..=100_u64 {
        writer
            .commit(&[IoSlice::new(&number.to_le_bytes())], Label::default())
            .unwrap();
    }
    // A reader that stands in the middle of everything hinders nobody.
    let mut reader = unit.open_sets_backup("r", &OpenOptions::new()).unwrap();
    assert_eq!(reader.sets().unwrap().published, SetNumber(100));
    writer
        .commit(&[IoSlice::new(b"last")], Label::default())
        .unwrap();
    let (_, bytes) = reader.read_to_vec(SetChoice::Newest).unwrap();
    assert_eq!(bytes, b"last");
}

#[test]
fn p11_the_newest_replaces_the_last_across_primaries_and_restarts() {
    let mut site = Site::new(Pool::File, 32 * MIB);
    site.sets("r", 2, MIB);
    for round in 1..=3_u64 {
        let unit = site.client("app");
        let mut writer = primary(&unit, "r");
        assert_eq!(writer.newest(), SetNumber(2 * (round - 1)));
        for _ in 0..2 {
            let payload = pattern(700_000, round);
            let receipt = writer
                .commit(&[IoSlice::new(&payload)], Label::default())
                .unwrap();
            assert!(receipt.is_durable());
        }
        drop(writer);
        site.stop();
        site.start(0);
        site.unlock();
        let unit = site.client("backup");
        let mut reader = unit.open_sets_backup("r", &OpenOptions::new()).unwrap();
        let (read, bytes) = reader.read_to_vec(SetChoice::Newest).unwrap();
        assert_eq!(read.set.number, SetNumber(2 * round));
        assert!(bytes == pattern(700_000, round));
    }
}

#[test]
fn p11_a_small_commit_is_one_chain_and_one_completion() {
    let mut site = Site::new(Pool::File, 64 * MIB);
    site.sets("r", 1, 9 * MIB);
    let mut writer = primary(&site.client("app"), "r");
    let payload = pattern(9 * MIB as usize, 1);
    let mut count = |length: usize| {
        let before = writer.counters();
        let slice = IoSlice::new(&payload[..length]);
        writer.commit(&[slice], Label::default()).unwrap();
        let after = writer.counters();
        let chains = after.chains - before.chains;
        assert_eq!(after.completions - before.completions, chains);
        (chains, after.work_requests - before.work_requests)
    };
    count(1);
    // Writes of payload, chunk table and header; flush; atomic write; flush.
    assert_eq!(count(100), (1, 6));
    assert_eq!(count(MIB as usize), (1, 6));
    // No payload and no table: header, flush, atomic write, flush.
    assert_eq!(count(0), (1, 4));
    // Eight times a MiB with its flush while the next is prepared; then the last, with the rest.
    let (chains, work_requests) = count(9 * MIB as usize);
    assert_eq!(chains, 9);
    assert!(work_requests <= 8 * 3 + 8, "{work_requests} work requests");
}

#[test]
fn p11_streaming_with_and_without_a_length() {
    let mut site = Site::new(Pool::Memory, 128 * MIB);
    site.sets("r", 1, 9 * MIB);
    let unit = site.client("app");
    let mut writer = primary(&unit, "r");
    let mut reader = unit.open_sets_reader("r", &OpenOptions::new()).unwrap();
    let everything = pattern(9 * MIB as usize, 5);
    for length in [
        0,
        1,
        262_144,
        262_145,
        3 * MIB as usize,
        9 * MIB as usize - 1,
        9 * MIB as usize,
    ] {
        for known in [Some(length as u64), None] {
            let mut put = writer.begin(known, Label::new("stream").unwrap()).unwrap();
            for part in everything[..length].chunks(100_003) {
                put.write_all(part).unwrap();
            }
            assert_eq!(put.written(), length as u64);
            let receipt = put.finish().unwrap();
            let (read, bytes) = reader.read_to_vec(SetChoice::Newest).unwrap();
            assert_eq!(Some(read.set.number), receipt.set());
            assert_eq!(read.set.label.to_string(), "stream");
            assert!(bytes == everything[..length], "{length} {known:?}");
        }
    }
    // Dropped, or with too few or too many bytes: abandoned, and the number is used again.
    let before = writer.newest();
    let mut put = writer.begin(None, Label::default()).unwrap();
    put.write_all(&everything[..5_000_000]).unwrap();
    drop(put);
    let mut put = writer.begin(Some(10), Label::default()).unwrap();
    put.write_all(b"short").unwrap();
    assert!(matches!(put.finish(), Err(ClientError::Invalid(_))));
    let mut put = writer.begin(Some(3), Label::default()).unwrap();
    assert!(matches!(
        put.write_bytes(b"long"),
        Err(ClientError::TooLarge { .. })
    ));
    drop(put);
    let mut put = writer.begin(None, Label::default()).unwrap();
    put.write_all(&everything).unwrap();
    assert!(matches!(
        put.write_bytes(b"x"),
        Err(ClientError::TooLarge { .. })
    ));
    drop(put);
    let too_large = writer.commit(
        &[IoSlice::new(&everything), IoSlice::new(b"x")],
        Label::default(),
    );
    assert!(
        matches!(too_large, Err(ClientError::TooLarge { limit_bytes, .. }) if limit_bytes == 9 * MIB)
    );
    let receipt = writer
        .commit(&[IoSlice::new(b"after all")], Label::default())
        .unwrap();
    assert_eq!(receipt.set(), Some(SetNumber(before.get() + 1)));
    assert_eq!(
        reader.read_to_vec(SetChoice::Newest).unwrap().1,
        b"after all"
    );
}

#[test]
fn p11_registered_memory_is_committed_without_a_copy() {
    let mut site = Site::new(Pool::Memory, 128 * MIB);
    site.sets("r", 1, 9 * MIB);
    let unit = site.client("app");
    let mut writer = primary(&unit, "r");
    let mut reader = unit.open_sets_reader("r", &OpenOptions::new()).unwrap();
    let state = pattern(6 * MIB as usize + 77, 9);
    let buffer = writer.allocate_registered(state.len()).unwrap();
    buffer.write_at(0, &state).unwrap();
    let receipt = writer
        .commit_registered(&[buffer.whole()], Label::default())
        .unwrap();
    assert_eq!(receipt.bytes, state.len() as u64);
    assert!(reader.read_to_vec(SetChoice::Newest).unwrap().1 == state);
    // Gathered, out of order and with odd lengths.
    let (one, two) = (
        buffer.slice(5..1_000_000).unwrap(),
        buffer.slice(0..3).unwrap(),
    );
    writer
        .commit_registered(&[one, two, one], Label::default())
        .unwrap();
    let expected = [&state[5..1_000_000], &state[..3], &state[5..1_000_000]].concat();
    assert!(reader.read_to_vec(SetChoice::Newest).unwrap().1 == expected);
    assert!(buffer.slice(3..state.len() + 1).is_err());

    site.sets("other", 1, MIB);
    let mut other = primary(&unit, "other");
    let foreign = other.commit_registered(&[two], Label::default());
    assert!(matches!(foreign, Err(ClientError::Invalid(_))));
}

#[test]
fn b01_the_receipt_names_the_unit_and_the_method() {
    for (pool, method) in [
        (Pool::Memory, PersistenceMethod::Volatile),
        (Pool::File, PersistenceMethod::ServerPersist),
    ] {
        let mut site = Site::new(pool, 32 * MIB);
        site.sets("r", 1, MIB);
        let unit = site.client("app");
        for provider in [Provider::SoftTcp, Provider::SoftUnix] {
            let mut writer = unit.open_sets_primary("r", &over(provider)).unwrap();
            let receipt = writer
                .commit(&[IoSlice::new(b"x")], Label::default())
                .unwrap();
            assert_eq!(receipt.provider, provider);
            assert_eq!(&*receipt.units[0].name, "unit-1");
            assert_eq!(receipt.units[0].persistence, method);
            assert_eq!(receipt.epoch, writer.epoch());
            assert_eq!(receipt.is_durable(), pool == Pool::File);
        }
        let forced = OpenOptions::new()
            .persistence(PersistenceChoice::Forced(PersistenceMethod::NativeFlush));
        let unfit = unit.open_sets_primary("r", &forced).unwrap_err();
        assert!(
            matches!(unfit, ClientError::UnfitPersistence { .. }),
            "{unfit}"
        );
    }
}

#[test]
fn b01_auto_takes_the_unix_socket_of_a_local_unit() {
    let mut site = Site::new(Pool::Memory, 32 * MIB);
    site.sets("r", 1, MIB);
    let writer = primary(&site.client("app"), "r");
    assert_eq!(writer.provider(), Provider::SoftUnix);
}

#[test]
fn p15_refusals_have_names() {
    let mut site = Site::new(Pool::Memory, 32 * MIB);
    site.sets("r", 1, MIB);
    site.log("log", MIB);
    let (app, stranger) = (site.client("app"), site.client("stranger"));
    let options = OpenOptions::new();
    let error = app.open_sets_primary("nowhere", &options).unwrap_err();
    assert!(matches!(error, ClientError::NoSuchRegion { .. }), "{error}");
    let error = stranger.open_sets_primary("r", &options).unwrap_err();
    assert!(matches!(error, ClientError::NoGrant { .. }), "{error}");
    let error = app.open_sets_primary("log", &options).unwrap_err();
    assert!(matches!(error, ClientError::WrongMode { .. }), "{error}");
    let error = app.open_sets_primary("no such name", &options).unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
    let holder = primary(&app, "r");
    let error = app.open_sets_primary("r", &options).unwrap_err();
    assert!(matches!(error, ClientError::WriterExists { .. }), "{error}");
    let info = app.describe("r").unwrap();
    assert_eq!(info.writer.as_deref(), Some("app"));
    assert_eq!(info.epoch, holder.epoch());
    drop(holder);
    primary(&app, "r");
}

#[test]
fn b03_a_fenced_primary_is_told_so() {
    let mut site = Site::new(Pool::Memory, 32 * MIB);
    site.sets("r", 2, MIB);
    let unit = site.client("app");
    let mut old = primary(&unit, "r");
    old.commit(&[IoSlice::new(b"one")], Label::default())
        .unwrap();
    let mut state = Vec::new();
    let mut takeover = site
        .client("backup")
        .take_over_sets("r", &OpenOptions::new(), &mut state)
        .unwrap();
    assert_eq!(state, b"one");
    assert_eq!(
        takeover.recovered.as_ref().unwrap().set.number,
        SetNumber(1)
    );
    assert!(takeover.fence.epoch > old.epoch());
    let error = old
        .commit(&[IoSlice::new(b"late")], Label::default())
        .unwrap_err();
    assert!(error.is_fenced(), "{error}");
    let again = old
        .commit(&[IoSlice::new(b"later")], Label::default())
        .unwrap_err();
    assert!(again.is_fenced(), "{again}");
    let receipt = takeover
        .primary
        .commit(&[IoSlice::new(b"two")], Label::default())
        .unwrap();
    assert_eq!(receipt.set(), Some(SetNumber(2)));
    let mut reader = unit.open_sets_reader("r", &OpenOptions::new()).unwrap();
    assert_eq!(reader.read_to_vec(SetChoice::Newest).unwrap().1, b"two");
}

#[test]
fn p11_a_unit_that_dies_in_the_middle_of_a_put() {
    let mut site = Site::new(Pool::File, 64 * MIB);
    site.sets("r", 1, 8 * MIB);
    let unit = site.client("app");
    let mut writer = primary(&unit, "r");
    let first = pattern(5 * MIB as usize, 1);
    writer
        .commit(&[IoSlice::new(&first)], Label::default())
        .unwrap();
    let mut put = writer.begin(None, Label::default()).unwrap();
    put.write_all(&first[..3 * MIB as usize]).unwrap();
    site.stop();
    let lost = put
        .write_bytes(&first[..5 * MIB as usize])
        .and_then(|()| put.finish().map(drop));
    let lost = lost.unwrap_err();
    assert!(matches!(lost, ClientError::ConnectionLost { .. }), "{lost}");
    drop(writer);
    site.start(0);
    site.unlock();
    let unit = site.client("app");
    let mut writer = primary(&unit, "r");
    assert_eq!(writer.newest(), SetNumber(1));
    let mut reader = unit.open_sets_reader("r", &OpenOptions::new()).unwrap();
    assert!(reader.read_to_vec(SetChoice::Newest).unwrap().1 == first);
    writer
        .commit(&[IoSlice::new(b"on")], Label::default())
        .unwrap();
}

#[test]
fn p04_a_set_goes_to_files_and_pipes() {
    let mut site = Site::new(Pool::Memory, 32 * MIB);
    site.sets("r", 1, 3 * MIB);
    let unit = site.client("app");
    let payload = pattern(2_345_678, 3);
    primary(&unit, "r")
        .commit(&[IoSlice::new(&payload)], Label::default())
        .unwrap();
    let mut reader = unit.open_sets_reader("r", &OpenOptions::new()).unwrap();
    let path = site.path("set");
    reader
        .read(
            SetChoice::Newest,
            &mut FileSink::new(std::fs::File::create(&path).unwrap()),
        )
        .unwrap();
    assert!(std::fs::read(&path).unwrap() == payload);
    let mut pipe = Vec::new();
    reader.read_to_writer(SetChoice::Newest, &mut pipe).unwrap();
    assert!(pipe == payload);
    reader.read(SetChoice::Newest, &mut ()).unwrap();
}
