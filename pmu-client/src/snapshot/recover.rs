//! Snapshots come back: into an arena of another instance, or into a file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_arena::{Arena, ArenaOptions, Restoring};
use pmu_format::{SetNumber, SnapshotHeader};

use crate::error::ClientError;
use crate::options::OpenOptions;
use crate::snapshot::chain::Listed;
use crate::snapshot::error::{SnapshotError, SnapshotResult};
use crate::snapshot::place::{SnapshotRegion, SnapshotSource, list};
use crate::snapshot::sink::{ArenaTarget, FileTarget, PageTarget, SnapshotSink};
use crate::snapshot::store::Store;
use crate::snapshot::writer::{SnapshotOptions, Snapshots};

/// How often reading begins anew, as sets turn out to be damaged or are overwritten by a live primary.
pub(super) const TRIES_MAX: usize = 64;

/// Into what a snapshot is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// How the arena is made. Its length, whether it has a heap, and its address are the snapshot's.
    pub arena: ArenaOptions,
    /// Let the kernel choose the address: only for an arena without a heap and without pointers into itself.
    pub anywhere: bool,
    /// The snapshot in this set, and no other one; none: the newest whole one.
    pub set: Option<SetNumber>,
}

impl RestoreOptions {
    /// The newest whole snapshot, at the address that it had.
    #[must_use]
    pub const fn new(arena: ArenaOptions) -> Self {
        Self {
            arena,
            anywhere: false,
            set: None,
        }
    }

    /// Lets the kernel choose the address.
    #[must_use]
    pub const fn anywhere(mut self) -> Self {
        self.anywhere = true;
        self
    }

    /// Takes the snapshot in this set.
    #[must_use]
    pub const fn set(mut self, set: SetNumber) -> Self {
        self.set = Some(set);
        self
    }
}

/// A set that could not be used, so that an older snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct SkippedSet {
    /// Its number.
    #[serde(serialize_with = "as_number")]
    pub set: SetNumber,
    /// What is wrong with it.
    pub reason: String,
}

fn as_number<S: serde::Serializer>(set: &SetNumber, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(set.get())
}

/// A snapshot that was fetched, every byte of it verified.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recovered {
    /// The memory. [`Restoring::seal_plain`] or [`Restoring::seal`] makes an arena of it.
    pub restoring: Restoring,
    /// The sets that it was put together from, the full one first. The last one is the snapshot.
    pub chain: Vec<SetNumber>,
    /// Sets that should have been used and could not. Not empty: an older snapshot was taken.
    pub skipped: Vec<SkippedSet>,
    /// When it was frozen by its writer's clock, in nanoseconds since 1970.
    pub frozen_ns: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// A snapshot that was written into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Where the arena was.
    pub arena_address: u64,
    /// Its length, and the file's.
    pub arena_bytes: u64,
    /// As in [`Recovered`].
    pub chain: Vec<SetNumber>,
    /// As in [`Recovered`].
    pub skipped: Vec<SkippedSet>,
    /// As in [`Recovered`].
    pub frozen_ns: u64,
}

/// What taking over came to.
#[non_exhaustive]
pub struct SnapshotTakeover {
    /// The newest whole snapshot; none where the region never held one.
    pub recovered: Option<Recovered>,
    region: SnapshotRegion,
    store: Store,
}

impl std::fmt::Debug for SnapshotTakeover {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SnapshotTakeover")
            .field("recovered", &self.recovered)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl SnapshotTakeover {
    /// Goes on with snapshots, as the primary that it is already. The first one is a full one.
    ///
    /// # Errors
    /// As [`Snapshots::open`], but for what the unit would say.
    pub fn go_on(self, arena: Arc<Arena>, options: &SnapshotOptions) -> SnapshotResult<Snapshots> {
        Snapshots::over(arena, self.region, self.store, options)
    }
}

impl SnapshotRegion {
    /// Fetches a snapshot. It takes no part in writing, and a primary that lives doesn't notice: for rehearsals, and for followers.
    ///
    /// # Errors
    /// [`SnapshotError::NoSuchSnapshot`]; [`SnapshotError::NotWhole`], naming what is wrong; [`SnapshotError::Arena`] where the memory
    /// can't be mapped, as where something lies at its address; [`SnapshotError::Client`]: the region can't be read, or too few of its
    /// units.
    pub fn recover(
        &self,
        restore: &RestoreOptions,
        options: &OpenOptions,
    ) -> SnapshotResult<Recovered> {
        let begun = Instant::now();
        let mut target = ArenaTarget {
            options: &restore.arena,
            anywhere: restore.anywhere,
            restoring: None,
        };
        let fetched = self.with_sets(options, |sets| {
            fetch(self.name(), sets, restore.set, &mut target)
        })?;
        let Some(restoring) = target.restoring else {
            return Err(none_at_all(self.name()));
        };
        Ok(Recovered {
            restoring,
            chain: fetched.chain,
            skipped: fetched.skipped,
            frozen_ns: fetched.header.frozen_ns,
            bytes: fetched.bytes,
            took: begun.elapsed(),
        })
    }

    /// Takes the region over from an instance that has failed: fences it, becomes the primary, and fetches the newest whole snapshot, in
    /// this order. From the fence on, nothing of the old instance lands.
    ///
    /// # Errors
    /// As [`Self::fence`], [`Snapshots::open`] and [`Self::recover`]. A region that never held a set is no error; one that holds sets and
    /// no whole snapshot is.
    pub fn take_over(
        &self,
        restore: &RestoreOptions,
        options: &OpenOptions,
    ) -> SnapshotResult<SnapshotTakeover> {
        self.fence()?;
        let store = self.open_primary(options)?;
        let recovered = match self.recover(restore, options) {
            Ok(recovered) => Some(recovered),
            Err(SnapshotError::NoSuchSnapshot { .. })
                if store.next() == SetNumber(1) && restore.set.is_none() =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        Ok(SnapshotTakeover {
            recovered,
            region: self.clone(),
            store,
        })
    }

    /// Writes a snapshot into a file, as one flat image of the arena: a page that was never touched is a hole. `on_bytes` hears of every
    /// piece, and ends it with an error.
    ///
    /// # Errors
    /// As [`Self::recover`]; what `on_bytes` and the file say as [`ClientError::Io`]. The file is of no use then.
    pub fn export(
        &self,
        set: Option<SetNumber>,
        file: &File,
        options: &OpenOptions,
        on_bytes: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> SnapshotResult<Exported> {
        let mut target = FileTarget { file, on_bytes };
        let fetched = self.with_sets(options, |sets| fetch(self.name(), sets, set, &mut target))?;
        Ok(Exported {
            arena_address: fetched.header.arena_address,
            arena_bytes: fetched.header.arena_bytes,
            chain: fetched.chain,
            skipped: fetched.skipped,
            frozen_ns: fetched.header.frozen_ns,
        })
    }
}

struct Fetched {
    chain: Vec<SetNumber>,
    skipped: Vec<SkippedSet>,
    /// Of the last set of the chain.
    header: SnapshotHeader,
    bytes: u64,
}

/// Reads the chain of one snapshot. Where a set of it can't be used, the newest chain without it is read from the beginning.
fn fetch(
    region: &str,
    sets: &mut impl SnapshotSource,
    wanted: Option<SetNumber>,
    target: &mut impl PageTarget,
) -> SnapshotResult<Fetched> {
    let mut skipped: Vec<SkippedSet> = Vec::new();
    for _ in 0..TRIES_MAX {
        let bad: BTreeSet<_> = skipped.iter().map(|skipped| skipped.set).collect();
        let listed = list(sets)?;
        let chain = match wanted {
            None => choose(region, &listed, &bad, &skipped)?,
            Some(set) => choose_one(region, &listed, set, &skipped)?,
        };
        match read_chain(sets, &chain, target)? {
            Ok((header, bytes)) => {
                // A set that a live primary has overwritten meanwhile is no damage.
                skipped.retain(|skipped| skipped.set >= chain[0]);
                return Ok(Fetched {
                    chain,
                    skipped,
                    header,
                    bytes,
                });
            }
            Err(broken) => skipped.push(broken),
        }
    }
    Err(not_whole(region, &skipped))
}

pub(super) fn choose(
    region: &str,
    listed: &Listed,
    bad: &BTreeSet<SetNumber>,
    skipped: &[SkippedSet],
) -> SnapshotResult<Vec<SetNumber>> {
    if let Some(chain) = listed.newest_whole(bad) {
        return Ok(chain);
    }
    if listed.is_empty() && skipped.is_empty() {
        return Err(none_at_all(region));
    }
    let mut what: Vec<_> = skipped.to_vec();
    for info in listed.infos() {
        if let Err(missing) = listed.chain(info.set) {
            what.push(SkippedSet {
                set: info.set,
                reason: format!("set {missing} of its chain is not there"),
            });
        }
    }
    Err(not_whole(region, &what))
}

fn choose_one(
    region: &str,
    listed: &Listed,
    set: SetNumber,
    skipped: &[SkippedSet],
) -> SnapshotResult<Vec<SetNumber>> {
    if !skipped.is_empty() {
        return Err(not_whole(region, skipped));
    }
    if !listed.has(set) {
        return Err(SnapshotError::NoSuchSnapshot {
            region: region.to_owned(),
            what: format!("snapshot in set {set}"),
        });
    }
    listed.chain(set).map_err(|missing| {
        let reason = format!("set {missing} of its chain is not there");
        not_whole(region, &[SkippedSet { set, reason }])
    })
}

/// The inner error: which set of the chain can't be used.
fn read_chain(
    sets: &mut impl SnapshotSource,
    chain: &[SetNumber],
    target: &mut impl PageTarget,
) -> SnapshotResult<Result<(SnapshotHeader, u64), SkippedSet>> {
    let mut base: Option<(SetNumber, SnapshotHeader)> = None;
    let mut bytes = 0;
    for &set in chain {
        let mut sink = SnapshotSink::new(target, base);
        let read = sets.read_set(set, &mut sink);
        let broken = |reason: String| Ok(Err(SkippedSet { set, reason }));
        if let Some(failure) = sink.failure.take() {
            return Err(failure);
        }
        if let Some(reason) = sink.broken.take() {
            return broken(reason);
        }
        match read {
            Ok(()) => {}
            Err(error @ (ClientError::Damaged { .. } | ClientError::NoSuchSet { .. })) => {
                return broken(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        let Some(header) = sink.header() else {
            return broken("it ends before its pages".to_owned());
        };
        bytes += header.payload_bytes();
        base = Some((set, header));
    }
    match base {
        Some((_, header)) => Ok(Ok((header, bytes))),
        None => Err(ClientError::Protocol("a chain without sets".into()).into()),
    }
}

pub(super) fn none_at_all(region: &str) -> SnapshotError {
    SnapshotError::NoSuchSnapshot {
        region: region.to_owned(),
        what: "snapshot".to_owned(),
    }
}

pub(super) fn not_whole(region: &str, sets: &[SkippedSet]) -> SnapshotError {
    let each = sets
        .iter()
        .map(|skipped| format!("set {}: {}", skipped.set, skipped.reason));
    SnapshotError::NotWhole {
        region: region.to_owned(),
        what: each.collect::<Vec<_>>().join("; "),
    }
}
