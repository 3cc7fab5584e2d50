//! What a standby holds of a program's memory: its newest snapshot in a file, kept up to date with just what each further one brings.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use pmu_arena::{Arena, ArenaOptions, Restoring};
use pmu_format::{LogPosition, SetNumber, SnapshotHeader};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::agent::memory_file;
use crate::error::ClientError;
use crate::sets::FileSink;
use crate::snapshot::chain::SnapshotInfo;
use crate::snapshot::error::SnapshotResult;
use crate::snapshot::place::{SnapshotSource, list};
use crate::snapshot::recover::{SkippedSet, TRIES_MAX, choose, not_whole};
use crate::snapshot::sink::{FileTarget, SetFile, SnapshotSink};

/// Where an arena lay, and what of it: a snapshot's own words, for whoever puts it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaShape {
    /// Address of its first byte.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether an allocator lives in it.
    pub has_heap: bool,
}

impl ArenaShape {
    /// Puts a flat image of such an arena back into memory, at the address that it had. Holes in the file stay untouched memory.
    /// `options` says how the arena is made; its length, its address and whether it has a heap are this one's.
    ///
    /// # Errors
    /// [`super::SnapshotError::Arena`] where the memory can't be mapped, as where something lies at its address; [`super::SnapshotError::Client`] where
    /// the file can't be read, or is of another length.
    pub fn restore(&self, image: &File, options: &ArenaOptions) -> SnapshotResult<Restoring> {
        let io = ClientError::io("read the image of an arena");
        let found = image.metadata().map_err(io)?.len();
        if found != self.bytes {
            let bytes = self.bytes;
            return Err(ClientError::Invalid(format!(
                "the image of an arena of {bytes} bytes has {found}"
            ))
            .into());
        }
        let mut options = options.clone();
        options.len_bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        options.address = usize::try_from(self.address).ok();
        options.heap = self.has_heap;
        let mut restoring = Arena::restore(&options)?;
        let mut at = 0;
        while let Some((start, end)) = next_data(image, at)? {
            let place = restoring.bytes_mut(start as usize, (end - start) as usize)?;
            std::os::unix::fs::FileExt::read_exact_at(image, place, start)
                .map_err(ClientError::io("read the image of an arena"))?;
            at = end;
        }
        Ok(restoring)
    }
}

impl From<&SnapshotHeader> for ArenaShape {
    fn from(header: &SnapshotHeader) -> Self {
        Self {
            address: header.arena_address,
            bytes: header.arena_bytes,
            has_heap: header.has_heap,
        }
    }
}

/// The next bytes of a file from `at` on that are no hole.
fn next_data(file: &File, at: u64) -> SnapshotResult<Option<(u64, u64)>> {
    let io = |error: Errno| ClientError::io("read the image of an arena")(error.into());
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => {
            let end = seek(file, SeekFrom::Hole(start)).map_err(io)?;
            Ok(Some((start, end)))
        }
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(io(error).into()),
    }
}

/// The newest snapshot of a region, as a flat image of the arena in a file in memory.
///
/// [`Self::catch_up`] reads what has come since: of a chain just the sets that it doesn't hold. A set is read and verified whole before a
/// byte of it gets into the image. One thread uses it at a time; it may move between threads.
#[derive(Debug, Default)]
pub struct SnapshotImage {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    file: Arc<File>,
    info: SnapshotInfo,
    header: SnapshotHeader,
}

/// Why a chain could not be gone along.
enum Stuck {
    /// A set of it is damaged, gone, or no snapshot.
    Bad(SkippedSet),
    /// The image is of another series.
    Base,
}

impl SnapshotImage {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The set that it holds.
    #[must_use]
    pub fn set(&self) -> Option<SetNumber> {
        self.held.as_ref().map(|held| held.info.set)
    }

    /// What the region's list said of that set.
    #[must_use]
    pub fn info(&self) -> Option<&SnapshotInfo> {
        self.held.as_ref().map(|held| &held.info)
    }

    /// What of a log it holds, if the program said so.
    #[must_use]
    pub fn covered(&self) -> Option<LogPosition> {
        self.held.as_ref()?.info.covered
    }

    /// The image: as long as the arena, with holes where nothing was ever written. A later [`Self::catch_up`] changes it: whoever needs it
    /// as it is drops this first.
    #[must_use]
    pub fn file(&self) -> Option<(Arc<File>, ArenaShape)> {
        let held = self.held.as_ref()?;
        Some((Arc::clone(&held.file), ArenaShape::from(&held.header)))
    }

    /// Reads what the region's newest whole snapshot has more than this image. True if it changed. Blocks for as long as reading takes.
    ///
    /// After an error it holds what it held, or nothing.
    ///
    /// # Errors
    /// [`super::SnapshotError::NoSuchSnapshot`]; [`super::SnapshotError::NotWhole`], naming what is wrong; [`super::SnapshotError::Client`].
    pub fn catch_up(
        &mut self,
        region: &str,
        sets: &mut impl SnapshotSource,
    ) -> SnapshotResult<bool> {
        let mut skipped = Vec::new();
        let mut changed = false;
        for _ in 0..TRIES_MAX {
            let bad: BTreeSet<_> = skipped
                .iter()
                .map(|skipped: &SkippedSet| skipped.set)
                .collect();
            let listed = list(sets)?;
            let chain = choose(region, &listed, &bad, &skipped)?;
            let held = self.set();
            let begin = chain.iter().position(|set| Some(*set) == held);
            let mut stuck = None;
            // What an earlier call left may be of a series that is gone.
            let mut sure = begin.is_none();
            for set in &chain[begin.map_or(0, |held| held + 1)..] {
                let Some(info) = listed.get(*set) else { break };
                if let Err(why) = self.add(info, sets, sure)? {
                    stuck = Some(why);
                    break;
                }
                (changed, sure) = (true, true);
            }
            match stuck {
                None => return Ok(changed),
                Some(Stuck::Bad(set)) => skipped.push(set),
                Some(Stuck::Base) => self.held = None,
            }
        }
        Err(not_whole(region, &skipped))
    }

    /// Adds one set of a chain. `sure`: to what the same chain begins with.
    fn add(
        &mut self,
        info: &SnapshotInfo,
        sets: &mut impl SnapshotSource,
        sure: bool,
    ) -> SnapshotResult<Result<(), Stuck>> {
        let bad = |reason: String| {
            let set = info.set;
            Ok(Err(Stuck::Bad(SkippedSet { set, reason })))
        };
        let mut payload = SetFile {
            file: FileSink::new(memory_file("snapshot")?),
            bytes: 0,
        };
        match sets.read_set(info.set, &mut payload) {
            Ok(()) => {}
            Err(error @ (ClientError::Damaged { .. } | ClientError::NoSuchSet { .. })) => {
                return bad(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        let (bytes, payload) = (payload.bytes, payload.file.into_inner());
        let base = match info.kind.base() {
            Some(_) => self.held.take(),
            None => None,
        };
        let file = match &base {
            Some(held) => Arc::clone(&held.file),
            None => Arc::new(memory_file("snapshot")?),
        };
        let mut target = FileTarget {
            file: &file,
            on_bytes: &mut |_| Ok(()),
        };
        let on = base.as_ref().map(|held| (held.info.set, held.header));
        let mut sink = SnapshotSink::new(&mut target, on);
        let taken = sink.take_file(&payload, bytes);
        if let Some(failure) = sink.failure.take() {
            return Err(failure);
        }
        // Nothing was written yet: what is wrong with header or table is found before the pages.
        let broken = sink.broken.take();
        match (broken, taken) {
            (None, Ok(Some(header))) => {
                let info = info.clone();
                self.held = Some(Held { file, info, header });
                Ok(Ok(()))
            }
            (Some(_), _) if on.is_some() && !sure => Ok(Err(Stuck::Base)),
            (broken, Ok(_)) | (broken @ Some(_), Err(_)) => {
                self.held = base.or(self.held.take());
                bad(broken.unwrap_or_else(|| "it ends before its pages".to_owned()))
            }
            (None, Err(source)) => {
                Err(ClientError::io("write the image of an arena")(source).into())
            }
        }
    }
}
