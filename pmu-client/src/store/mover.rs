//! The mover: loads segments and sets from the units into a global storage, by policy.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pmu_format::{Mode, SetNumber};
use serde::Serialize;

use super::config::{MoverConfig, SegmentPolicy, SetPolicy};
use super::error::{Result, StoreError};
use super::manifest::{Kind, SetFacts};
use super::upload::Upload;
use super::{Object, Store};
use crate::error::ClientError;
use crate::segments::{Found, Segment, SegmentError, Segments, Way};
use crate::sets::{SetChoice, SetInfo, SetSink};

/// What a round did.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct MoveReport {
    /// Objects that were stored.
    pub stored: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Segments that units need not hold any more.
    pub unloaded: u64,
    /// Sets that were removed from the storage, as there are enough newer ones.
    pub removed: u64,
    /// What could not be moved.
    pub failed: u64,
}

/// What a mover has to tell.
#[derive(Debug)]
#[non_exhaustive]
pub enum MoveEvent {
    /// Stored: kind, space, name, bytes.
    Stored(Kind, String, String, u64),
    /// Verified in the storage, and not held by units any more.
    Unloaded(String, String),
    /// Removed from the storage.
    Removed(String, String),
    /// Could not be moved: which, and why. The next round tries again.
    Failed(String, String),
}

/// Runs one round. What fails is told and counted, and the round goes on with the rest, but for errors of the storage as a whole.
///
/// # Errors
/// [`StoreError::NotAuthenticated`], [`StoreError::NoBucket`], [`StoreError::Unavailable`], [`StoreError::Interrupted`].
pub fn move_once(
    config: &MoverConfig,
    store: &Store,
    way: &Way,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(MoveEvent),
) -> Result<MoveReport> {
    let mut mover = Mover {
        store,
        way,
        stop,
        tell,
        report: MoveReport::default(),
    };
    for policy in &config.segments {
        let moved = mover.move_segments(policy);
        mover.note(&format!("prefix {}", policy.prefix), moved)?;
    }
    for policy in &config.sets {
        let moved = mover.move_sets(policy);
        mover.note(&format!("region {}", policy.region), moved)?;
    }
    Ok(mover.report)
}

struct Mover<'a> {
    store: &'a Store,
    way: &'a Way,
    stop: &'a dyn Fn() -> bool,
    tell: &'a mut dyn FnMut(MoveEvent),
    report: MoveReport,
}

impl Mover<'_> {
    /// An error that concerns one thing is told; one that would come again with each other ends the round.
    fn note(&mut self, what: &str, moved: Result<()>) -> Result<()> {
        match moved {
            Ok(()) => Ok(()),
            Err(
                error @ (StoreError::Interrupted
                | StoreError::NotAuthenticated { .. }
                | StoreError::NoBucket { .. }
                | StoreError::Config(_)
                | StoreError::Unavailable { .. }),
            ) => Err(error),
            Err(error) => {
                self.report.failed += 1;
                let reason = crate::control::chain(&error);
                (self.tell)(MoveEvent::Failed(what.to_owned(), reason));
                Ok(())
            }
        }
    }

    fn check_stop(&self) -> Result<()> {
        match (self.stop)() {
            true => Err(StoreError::Interrupted),
            false => Ok(()),
        }
    }

    fn move_segments(&mut self, policy: &SegmentPolicy) -> Result<()> {
        let segments = Segments::new(self.way.clone(), &policy.prefix).map_err(of_segments)?;
        let all = segments.list().map_err(of_segments)?;
        for segment in due_segments(all, policy, now()) {
            self.check_stop()?;
            let name = format!("segment {}", segment.named.name);
            let moved = self.move_segment(&segments, &segment, policy.unload);
            self.note(&name, moved)?;
        }
        Ok(())
    }

    fn move_segment(&mut self, segments: &Segments, segment: &Segment, unload: bool) -> Result<()> {
        let named = &segment.named;
        let (space, name) = (segments.prefix(), named.name.as_str());
        let object = match self.store.find(&Kind::Segment, space, name) {
            Ok(object) if object.manifest.hash == named.hash => object,
            Ok(_) | Err(StoreError::NotFound { .. } | StoreError::Damaged { .. }) => {
                self.store_segment(segments, segment)?
            }
            Err(error) => return Err(error),
        };
        if unload && segment.place.is_some() {
            // Only what was read back is given up elsewhere.
            self.store.verify(&object)?;
        }
        let unload = unload && segment.place.is_some();
        let mut unloaded = false;
        if unload || segment.store.is_none() {
            unloaded = segments
                .mark_stored(named, self.store.url(), unload, self.stop)
                .map_err(of_segments)?;
        }
        if unloaded {
            self.report.unloaded += 1;
            (self.tell)(MoveEvent::Unloaded(space.to_owned(), name.to_owned()));
        }
        Ok(())
    }

    fn store_segment(&mut self, segments: &Segments, segment: &Segment) -> Result<Object> {
        let named = &segment.named;
        let (space, name) = (segments.prefix(), named.name.as_str());
        let mut upload = self.store.begin(Kind::Segment, space, name, named.bytes)?;
        let stop = self.stop;
        segments
            .read_from_units(segment, &mut |piece| {
                if stop() {
                    return Err(SegmentError::Interrupted);
                }
                Ok(upload.write(piece)?)
            })
            .map_err(of_segments)?;
        let object = upload.finish(Some(named.clone()), None)?;
        self.stored(Kind::Segment, space, name, named.bytes);
        Ok(object)
    }

    fn stored(&mut self, kind: Kind, space: &str, name: &str, bytes: u64) {
        self.report.stored += 1;
        self.report.bytes += bytes;
        let event = MoveEvent::Stored(kind, space.to_owned(), name.to_owned(), bytes);
        (self.tell)(event);
    }

    fn move_sets(&mut self, policy: &SetPolicy) -> Result<()> {
        let region = &*policy.region;
        let found = self.way.find(region)?;
        let mode = found.mode(region)?;
        if mode != Mode::Overwrite {
            return Err(StoreError::Client(ClientError::WrongMode {
                region: region.to_owned(),
                expected: Mode::Overwrite,
                found: mode,
            }));
        }
        let id = region_id(&found, region)?;
        let sets = committed_sets(&found, region, self.way)?;
        let mut due = due_sets(sets, policy, now());
        // What would be removed at once is not stored.
        let surplus = policy
            .keep_stored
            .map_or(0, |kept| due.len().saturating_sub(kept));
        for number in due.split_off(surplus) {
            self.check_stop()?;
            let moved = self.move_set(&found, region, &id, number);
            self.note(&format!("set {number} of region {region}"), moved)?;
        }
        match policy.keep_stored {
            Some(kept) => self.remove_old(region, &id, kept),
            None => Ok(()),
        }
    }

    fn move_set(&mut self, found: &Found, region: &str, id: &str, number: u64) -> Result<()> {
        let name = set_name(number);
        match self.store.find(&Kind::Set, region, &name) {
            Ok(object) if is_of(&object, id) => return Ok(()),
            Ok(_) => {
                let (store, object) = (self.store.url().to_owned(), format!("set {number}"));
                let what =
                    format!("it is of another region that was called {region}: it is not replaced");
                return Err(StoreError::Damaged {
                    store,
                    object,
                    what,
                });
            }
            Err(StoreError::NotFound { .. } | StoreError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut sink = UploadSink {
            store: self.store,
            region,
            name: &name,
            stop: self.stop,
            upload: None,
            failed: None,
        };
        let choice = SetChoice::Number(SetNumber(number));
        let read = match found {
            Found::One(unit) => {
                let reader = unit.open_sets_reader(region, &self.way.open);
                reader.and_then(|mut reader| reader.read(choice, &mut sink).map(|read| read.set))
            }
            Found::Spread(spread) => {
                let reader = spread.open_reader(&self.way.open);
                reader.and_then(|mut reader| reader.read(choice, &mut sink).map(|read| read.set))
            }
        };
        let set = match read {
            Ok(set) => set,
            Err(error) => return Err(sink.failed.take().unwrap_or(error.into())),
        };
        let Some(upload) = sink.upload.take() else {
            return Err(ClientError::Protocol("a set without a beginning".into()).into());
        };
        upload.finish(None, Some(facts_of(&set, id)))?;
        self.stored(Kind::Set, region, &name, set.bytes);
        Ok(())
    }

    /// Removes the oldest sets from the storage but for the newest `kept`, by their numbers: writers' clocks go wrong. Those of other regions
    /// that had the name stay.
    fn remove_old(&mut self, region: &str, id: &str, kept: usize) -> Result<()> {
        let mut objects: Vec<_> = self
            .store
            .list(Kind::Set, Some(region))?
            .into_iter()
            .filter_map(Result::ok)
            .filter(|object| is_of(object, id))
            .collect();
        objects.sort_by_key(|object| object.manifest.set.as_ref().map(|set| set.number));
        let surplus = objects.len().saturating_sub(kept);
        for object in &objects[..surplus] {
            self.check_stop()?;
            self.store.remove(object)?;
            self.report.removed += 1;
            let name = object.manifest.name.clone();
            (self.tell)(MoveEvent::Removed(region.to_owned(), name));
        }
        Ok(())
    }
}

/// A set on its way into the storage.
struct UploadSink<'a> {
    store: &'a Store,
    region: &'a str,
    name: &'a str,
    stop: &'a dyn Fn() -> bool,
    upload: Option<Upload<'a>>,
    failed: Option<StoreError>,
}

impl UploadSink<'_> {
    fn keep<T>(&mut self, done: Result<T>) -> io::Result<T> {
        done.map_err(|error| {
            self.failed = Some(error);
            io::Error::other("store the set")
        })
    }
}

impl SetSink for UploadSink<'_> {
    fn begin(&mut self, set: &SetInfo) -> io::Result<()> {
        // One that was begun before is given up.
        self.upload = None;
        let begun = self
            .store
            .begin(Kind::Set, self.region, self.name, set.bytes);
        self.upload = Some(self.keep(begun)?);
        Ok(())
    }

    fn chunk(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        let written = match (&mut self.upload, (self.stop)()) {
            (_, true) => Err(StoreError::Interrupted),
            (Some(upload), false) => upload.write(bytes),
            (None, false) => Ok(()),
        };
        self.keep(written)
    }
}

fn of_segments(error: SegmentError) -> StoreError {
    match error {
        SegmentError::Client(error) => error.into(),
        SegmentError::Store(error) => error,
        SegmentError::Interrupted => StoreError::Interrupted,
        other => ClientError::Invalid(crate::control::chain(&other)).into(),
    }
}

/// A set's number as a name: in order, too.
pub(crate) fn set_name(number: u64) -> String {
    format!("{number:020}")
}

pub(crate) fn is_of(object: &Object, region_id: &str) -> bool {
    let set = object.manifest.set.as_ref();
    set.is_some_and(|set| set.region_id == region_id)
}

fn facts_of(set: &SetInfo, region_id: &str) -> SetFacts {
    SetFacts {
        number: set.number.get(),
        epoch: set.epoch.get(),
        committed_ns: set.committed_ns,
        label: set.label.to_string(),
        region_id: region_id.to_owned(),
    }
}

fn region_id(found: &Found, region: &str) -> Result<String> {
    Ok(match found {
        Found::One(unit) => unit.describe(region)?.id.to_string(),
        Found::Spread(spread) => {
            let id = u128::from_be_bytes(spread.membership().id.0);
            format!("{id:032x}")
        }
    })
}

/// Number and time of each committed set.
fn committed_sets(found: &Found, region: &str, way: &Way) -> Result<Vec<(u64, u64)>> {
    let sets: Vec<_> = match found {
        Found::One(unit) => {
            let catalog = unit.open_sets_reader(region, &way.open)?.sets()?;
            let sets = catalog.sets.into_iter();
            sets.filter(|set| set.state_word() == "committed")
                .map(|set| (set.number.get(), set.committed_ns))
                .collect()
        }
        Found::Spread(spread) => {
            let sets = spread.open_reader(&way.open)?.sets()?.into_iter();
            sets.filter(|set| set.committed)
                .map(|set| (set.number.get(), set.committed_ns))
                .collect()
        }
    };
    Ok(sets)
}

fn is_older(ns: u64, than: Option<Duration>, now: Duration) -> bool {
    than.is_none_or(|least| now.saturating_sub(Duration::from_nanos(ns)) >= least)
}

/// The segments whose turn it is, the oldest first.
fn due_segments(mut all: Vec<Segment>, policy: &SegmentPolicy, now: Duration) -> Vec<Segment> {
    all.sort_by_key(|segment| segment.named.taken_ns);
    all.truncate(all.len().saturating_sub(policy.keep_newest));
    all.retain(|segment| {
        // What no unit has is there already.
        let unloads = policy.unload && segment.place.is_some();
        let loads = segment.store.is_none() && segment.place.is_some();
        (loads || unloads) && is_older(segment.named.taken_ns, policy.older_than, now)
    });
    all
}

/// The numbers of the sets whose turn it is, the oldest first.
fn due_sets(mut all: Vec<(u64, u64)>, policy: &SetPolicy, now: Duration) -> Vec<u64> {
    all.sort_unstable();
    all.truncate(all.len().saturating_sub(policy.keep_newest));
    let due = all.into_iter().filter(|(number, ns)| {
        let turn = policy.every.is_none_or(|every| number % every == 0);
        turn && is_older(*ns, policy.older_than, now)
    });
    due.map(|(number, _)| number).collect()
}

fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r08_a_policy_chooses_by_age_count_and_number() {
        let all: Vec<_> = (1..=12)
            .map(|number| (number, number * 1_000_000_000))
            .collect();
        let now = Duration::from_secs(13);
        let mut policy = SetPolicy {
            region: "r".into(),
            every: None,
            older_than: None,
            keep_newest: 0,
            keep_stored: None,
        };
        assert_eq!(due_sets(all.clone(), &policy, now).len(), 12);
        policy.every = Some(5);
        assert_eq!(due_sets(all.clone(), &policy, now), [5, 10]);
        policy.older_than = Some(Duration::from_secs(8));
        assert_eq!(due_sets(all.clone(), &policy, now), [5]);
        policy.every = None;
        policy.keep_newest = 9;
        assert_eq!(due_sets(all.clone(), &policy, now), [1, 2, 3]);
        policy.older_than = Some(Duration::from_secs(12));
        assert_eq!(due_sets(all, &policy, now), [1]);
    }
}
