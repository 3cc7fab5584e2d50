//! Segments: files that an unmodified program stores in a local directory, replicated to units and fetched on any other computer.
//!
//! A **prefix** is a name space of segments. It has two kinds of regions, both in append mode, which a manager makes:
//!
//! * `PREFIX.index`, which all watchers of the prefix share: a log of operations that says which names there are and where their contents lie;
//! * one **body** for each watcher (`PREFIX.body`, unless it is given another): a log of contents.
//!
//! Units know no segment. A segment exists when the index says so, and the index says so only behind the receipt of its contents. Names are
//! unique because the index has one primary at a time, and nobody adds a name to it who hasn't read all of it as its primary.
//!
//! See `docs/segments.md` for how it is used, and `docs/format.md` for what lies in the logs.

mod body;
mod error;
mod fetch;
mod file;
mod format;
mod glob;
mod index;
mod logs;
mod names;
mod notices;
mod watch;
mod writer;
mod writers;

use std::path::Path;

pub use error::{Result, SegmentError};
pub use fetch::{FetchOptions, Fetched, Source};
pub use format::{ContentHash, HeldBy, Named, Origin, Place};
pub use glob::EXCLUDED_DEFAULT;
use index::{IndexReader, IndexWriter};
pub(crate) use logs::Found;
pub use logs::Way;
pub use names::{SEGMENT_NAME_BYTES_MAX, SegmentName, SegmentNameError};
use pmu_format::RegionName;
pub use watch::{WatchEvent, WatchOptions, watch};
pub use writer::{Outcome, Replicated, SegmentWriter};

/// The prefix unless somebody says otherwise.
pub const PREFIX_DEFAULT: &str = "segments";

/// A segment, as the index knows it.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct Segment {
    /// Its name, and what is known of the file.
    #[serde(flatten)]
    pub named: Named,
    /// Where the units have it; none where they don't.
    pub place: Option<Place>,
    /// The global storage that has it too.
    pub store: Option<String>,
}

/// The segments of a prefix. Cheap to clone; any thread. Connects anew for each call; calls block, each wait for the time limits of the [`Way`].
#[derive(Debug, Clone)]
pub struct Segments {
    way: Way,
    prefix: String,
    body: String,
}

impl Segments {
    /// The segments under a prefix. Connects to nothing yet.
    ///
    /// # Errors
    /// [`SegmentError::Invalid`]: `PREFIX.index` is no name of a region.
    pub fn new(way: Way, prefix: &str) -> Result<Self> {
        let mut way = way;
        // Who writes here makes room by himself, and nobody else would.
        way.open.timeouts.back_pressure = std::time::Duration::ZERO;
        let segments = Self {
            way,
            body: format!("{prefix}.body"),
            prefix: prefix.to_owned(),
        };
        let valid = RegionName::new(&segments.index_region());
        valid.map_err(|error| SegmentError::Invalid(error.to_string()))?;
        Ok(segments)
    }

    /// The same, written through another body than `PREFIX.body`: each watcher needs its own.
    #[must_use]
    pub fn with_body(mut self, region: &str) -> Self {
        region.clone_into(&mut self.body);
        self
    }

    /// The prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn index_region(&self) -> String {
        format!("{}.index", self.prefix)
    }

    /// How the units are reached.
    #[must_use]
    pub const fn way(&self) -> &Way {
        &self.way
    }

    fn index(&self) -> Result<IndexReader> {
        IndexReader::open(&self.way, &self.index_region())
    }

    /// All segments, by name.
    ///
    /// # Errors
    /// What the units say; [`SegmentError::Index`].
    pub fn list(&self) -> Result<Vec<Segment>> {
        let catalog = self.index()?.catalog;
        let segments = catalog.names.values().map(|named| {
            let body = catalog.bodies.get(&named.hash);
            Segment {
                named: named.clone(),
                place: body.and_then(|body| body.place.clone()),
                store: catalog.stores.get(&named.name).cloned(),
            }
        });
        Ok(segments.collect())
    }

    /// One segment.
    ///
    /// # Errors
    /// [`SegmentError::NoSuchSegment`]; as [`Self::list`].
    pub fn find(&self, name: &SegmentName) -> Result<Segment> {
        let mut segments = self.list()?.into_iter();
        segments
            .find(|segment| segment.named.name == *name)
            .ok_or_else(|| self.no_such(name))
    }

    fn no_such(&self, name: &SegmentName) -> SegmentError {
        SegmentError::NoSuchSegment {
            name: name.clone(),
            prefix: self.prefix.clone(),
        }
    }

    /// Drops segments, all or none: their names are free when this returns. The room of their contents is used again by the next watcher that
    /// needs some. What a global storage has stays there.
    ///
    /// # Errors
    /// [`SegmentError::NoSuchSegment`]; [`crate::ClientError::WriterExists`] if somebody holds the index for too long; what the units say.
    pub fn drop_segments(&self, names: &[SegmentName], stop: &dyn Fn() -> bool) -> Result<()> {
        self.change(stop, |catalog| {
            let there = |name: &&SegmentName| catalog.names.contains_key(*name);
            if let Some(missing) = names.iter().find(|name| !there(name)) {
                return Err(self.no_such(missing));
            }
            let names = names.iter().cloned();
            Ok(names.map(|name| format::Operation::Drop { name }).collect())
        })
    }

    /// Says that a global storage has a segment, and with `unload` that units need not hold its contents any more: they are given up once
    /// there is a copy of every segment that has them. Whether they were.
    ///
    /// # Errors
    /// As [`Self::drop_segments`].
    pub(crate) fn mark_stored(
        &self,
        named: &Named,
        store: &str,
        unload: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let mut unloaded = false;
        self.change(stop, |catalog| {
            let hash = named.hash;
            let same = |other: &Named| other.hash == hash;
            if !catalog.names.get(&named.name).is_some_and(same) {
                // Dropped meanwhile.
                return Ok(Vec::new());
            }
            let (name, store) = (named.name.clone(), store.to_owned());
            let mut operations = vec![format::Operation::Stored { name, store }];
            let mut others = catalog.names.values().filter(|other| same(other));
            unloaded = unload
                && others.all(|other| {
                    other.name == named.name || catalog.stores.contains_key(&other.name)
                });
            if unloaded {
                operations.push(format::Operation::Unloaded { hash });
            }
            Ok(operations)
        })?;
        Ok(unloaded)
    }

    fn change(
        &self,
        stop: &dyn Fn() -> bool,
        plan: impl FnOnce(&index::Catalog) -> Result<Vec<format::Operation>>,
    ) -> Result<()> {
        let region = self.index_region();
        let mut index = IndexWriter::open(&self.way, &region, writer::INDEX_PATIENCE, stop)?;
        let operations = plan(index.catalog())?;
        index.commit(&operations).map(drop)
    }

    /// Opens the body as its one writer, for files of the computer `node`. Segments lie on `replicas` units at least, or are none.
    ///
    /// # Errors
    /// [`SegmentError::TooFewReplicas`]; [`crate::ClientError::WriterExists`]: another watcher has the body; what the units say.
    pub fn open_writer(&self, node: &str, replicas: usize) -> Result<SegmentWriter> {
        SegmentWriter::open(self, node, replicas)
    }

    /// Fetches the contents of a segment from the units, piece by piece; whole and verified when this returns.
    ///
    /// # Errors
    /// What the units and the sink say; [`SegmentError::Damaged`].
    pub(crate) fn read_from_units(
        &self,
        segment: &Segment,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let Some(place) = &segment.place else {
            return Err(SegmentError::NowhereHeld {
                name: segment.named.name.clone(),
                reason: "no unit has it any more".into(),
            });
        };
        let (hash, bytes) = (segment.named.hash, segment.named.bytes);
        let mut contents = body::Contents::open(&self.way, place, hash, bytes)?;
        let mut piece = Vec::new();
        while contents.next(&mut piece)? {
            sink(&piece)?;
        }
        Ok(())
    }

    /// The name that this computer is known by in the index, unless somebody says otherwise: its host name.
    #[must_use]
    pub fn this_node() -> String {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    }

    /// The name of a file below a directory.
    ///
    /// # Errors
    /// [`SegmentNameError`].
    pub fn name_of(path: &Path) -> Result<SegmentName> {
        Ok(SegmentName::of_path(path)?)
    }
}
