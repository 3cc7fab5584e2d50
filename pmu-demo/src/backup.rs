//! The backup: follows the primary, or comes when that is dead; takes over, and does the rest of the work.
//!
//! Warm, it is the replica of what it has cleared: that is in its memory, and from the primary's next set on in the unit too. One
//! failure loses nothing. Who must outlive the failure of primary and backup at one time clears only behind sets, as the primary
//! itself does where the backup is cold.

use std::time::Duration;

use allocator_api2::alloc::Global;
use pmu_client::{ClientError, LogPosition, LogRecord};

use crate::cli::BackupArguments;
use crate::clock::now_ns;
use crate::corpus::Corpus;
use crate::error::{DemoError, Result};
use crate::event::Event;
use crate::index::Index;
use crate::record;
use crate::store::{Follower, Log, Place, Sets};
use crate::watch::Watch;
use crate::work::{Cleaner, Keeper, Position, finish, place};

/// How much of the log is read at a time.
const READ_BYTES: usize = 256 << 10;
/// How long to wait for more where nothing is unread. The end of the primary is noticed at once all the same.
const IDLE: Duration = Duration::from_millis(5);
/// What is read is cleared when it is so much of the usual distance between sets; the log has room for several distances.
const CLEAR_SHARE: u64 = 4;

/// Waits for the end of the primary, takes over, and works.
///
/// # Errors
/// [`DemoError`].
pub fn run(arguments: &BackupArguments) -> Result<()> {
    let work = &arguments.work;
    let corpus = Corpus::load(&work.list)?;
    let place = place(work)?;
    let mut index = Index::default();
    let follower = if arguments.warm {
        let watch = match arguments.watch_pid {
            Some(id) => Watch::process(id)?,
            None => Watch::standard_input()?,
        };
        let follower = place.open_follower();
        let mut follower = follower.map_err(DemoError::client("open the log to read"))?;
        follow(
            &mut follower,
            &mut index,
            &watch,
            work.set_every_bytes / CLEAR_SHARE,
        )?;
        Some(follower)
    } else {
        None
    };
    Event::Detected { at_ns: now_ns() }.send()?;
    let at = take_over(place, &mut index, follower)?;
    finish(work, &corpus, at)
}

/// Keeps the index at the log's end and clears what it has taken in, until the primary is gone.
fn follow(
    follower: &mut Follower,
    index: &mut Index,
    watch: &Watch,
    clear_bytes: u64,
) -> Result<()> {
    let mut uncleared_bytes = 0;
    let mut following = false;
    loop {
        let records = follower
            .read_unread(READ_BYTES)
            .map_err(DemoError::client("follow the log"))?;
        let idle = records.len() == 0;
        for found in records {
            add(index, &found)?;
            uncleared_bytes += found.payload.len() as u64;
        }
        if !following {
            following = true;
            Event::Following.send()?;
        }
        if watch.happened(if idle { IDLE } else { Duration::ZERO })? {
            return Ok(());
        }
        if uncleared_bytes > clear_bytes {
            follower
                .clear_handed_out()
                .map_err(DemoError::client("clear the log"))?;
            uncleared_bytes = 0;
        }
    }
}

fn add(index: &mut Index, found: &LogRecord<'_>) -> Result<()> {
    let (document, words) = record::decode(found.payload)?;
    index.add(document, &words)
}

/// Fences both regions, makes the state whole, and opens both for writing.
fn take_over(
    place: Place,
    index: &mut Index,
    follower: Option<Follower>,
) -> Result<Position<'_, Global>> {
    // Taking a region over fences it in any case. Here both are fenced before anything else, so that the time is known.
    let took_us = place.fence().map_err(DemoError::client("fence"))?;
    let at_ns = now_ns();
    Event::Fenced { at_ns, took_us }.send()?;
    let fenced_ns = Some(at_ns);
    let sets = open_sets(&place, index, follower.is_some())?;
    let set_documents = if follower.is_some() {
        0
    } else {
        index.documents()
    };
    let (log, cleared, tail_records, tail_bytes) = open_log(&place, index)?;
    let cleaner = match follower {
        Some(follower) => Cleaner::Open(follower),
        None => Cleaner::Later(Box::new(place)),
    };
    let (at_ns, documents) = (now_ns(), index.documents());
    Event::Recovered {
        at_ns,
        documents,
        set_documents,
        tail_records,
        tail_bytes,
    }
    .send()?;
    Ok(Position {
        index,
        log,
        fenced_ns,
        opened_ns: at_ns,
        keeper: Keeper::Sets(sets, Vec::new()),
        cleaner: Some(cleaner),
        cleared,
    })
}

/// A backup that followed has the state already; another takes the newest set.
fn open_sets(place: &Place, index: &mut Index, followed: bool) -> Result<Sets> {
    if followed {
        return place
            .open_sets()
            .map_err(DemoError::client("open the sets"));
    }
    let taken = place.take_over_sets();
    let (sets, state) = taken.map_err(DemoError::client("take the sets over"))?;
    if let Some(state) = state {
        *index = Index::decode(&state)?;
    }
    Ok(sets)
}

/// Takes the log over, and adds to the index what that does not hold yet: up to where it was cleared, how many records, and their bytes.
fn open_log(place: &Place, index: &mut Index) -> Result<(Log, LogPosition, u64, u64)> {
    let (mut tail_records, mut tail_bytes) = (0, 0);
    let mut refused = None;
    let taken = place.take_over_log(|found| {
        let before = index.documents();
        if let Err(error) = add(index, &found) {
            refused = Some(error);
            return Err(ClientError::Invalid("a record is not ours".into()));
        }
        if index.documents() > before {
            tail_records += 1;
            tail_bytes += found.payload.len() as u64;
        }
        Ok(())
    });
    if let Some(error) = refused {
        return Err(error);
    }
    let (log, cleared) = taken.map_err(DemoError::client("take the log over"))?;
    Ok((log, cleared, tail_records, tail_bytes))
}
