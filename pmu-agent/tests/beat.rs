//! The heartbeat in the region itself: who may beat, and who sees it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use std::io::IoSlice;
use std::time::{Duration, Instant};

use pmu_client::{Label, Mode, OpenOptions};
use support::{Pool, Site};

fn site() -> Site {
    let mut site = Site::new(Pool::File, 32 << 20);
    site.log("log", 1 << 20);
    site.sets("state", 2, 1 << 20);
    site
}

#[test]
fn s05_beats_are_seen_and_a_fenced_primary_beats_no_more() {
    let site = site();
    let (app, backup) = (site.client("app"), site.client("backup"));
    let options = OpenOptions::new();
    let mut log = app.open_log_primary("log", &options).unwrap();
    let mut watch = backup.watch_beats("log", Mode::Append, &options).unwrap();
    assert_eq!(watch.look().unwrap().beat, None);
    for expected in 1..=3 {
        log.beat().unwrap();
        // Behind a record everything before it has landed.
        log.append(b"record").unwrap();
        let seen = watch.look().unwrap();
        let beat = seen.beat.unwrap();
        assert_eq!(
            (beat.count, u64::from(beat.epoch_low)),
            (expected, log.epoch().get())
        );
        assert_eq!((seen.changes, seen.units), (u64::from(expected), 1));
    }
    backup.fence("log").unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let error = loop {
        match log.beat() {
            Err(error) => break error,
            Ok(()) => assert!(Instant::now() < deadline, "it beats on"),
        }
    };
    assert!(error.is_fenced(), "{error}");
    assert_eq!(watch.look().unwrap().changes, 3);
    // The next one begins from 1, and is another beat all the same.
    let mut next = backup.open_log_primary("log", &options).unwrap();
    next.beat().unwrap();
    next.append(b"record").unwrap();
    let seen = watch.look().unwrap();
    assert_eq!((seen.beat.unwrap().count, seen.changes), (1, 4));
}

#[test]
fn s05_beats_in_a_region_of_sets_change_nothing_of_the_sets() {
    let site = site();
    let (app, backup) = (site.client("app"), site.client("backup"));
    let options = OpenOptions::new();
    let mut sets = app.open_sets_primary("state", &options).unwrap();
    let mut watch = backup
        .watch_beats("state", Mode::Overwrite, &options)
        .unwrap();
    for number in 1..=5 {
        sets.beat().unwrap();
        sets.commit(&[IoSlice::new(&[number; 10_000])], Label::default())
            .unwrap();
    }
    assert_eq!(watch.look().unwrap().beat.unwrap().count, 5);
    drop(sets);
    let mut reader = backup.open_sets_backup("state", &options).unwrap();
    let (read, bytes) = reader.read_to_vec(pmu_client::SetChoice::Newest).unwrap();
    assert_eq!((read.set.number.get(), bytes), (5, vec![5; 10_000]));
    assert!(read.findings.is_empty());
}
