//! Makes segments of files: contents into the body first, then the name into the index, for some files at a time.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::Segments;
use super::body::{BodyWriter, StoredBody};
use super::error::{Result, SegmentError};
use super::file::{Candidate, now_ns};
use super::format::{ContentHash, Named, Operation};
use super::index::{Catalog, IndexReader, IndexWriter};
use super::names::SegmentName;
use crate::receipt::Receipt;

/// So many names are claimed at a time.
const BATCH_SEGMENTS: usize = 64;
/// So many bytes of contents wait for their names at most.
const BATCH_BYTES: u64 = 256 << 20;
/// How long is waited for somebody else's change of the index.
pub(super) const INDEX_PATIENCE: Duration = Duration::from_secs(30);

/// A segment that was made.
#[derive(Debug)]
#[non_exhaustive]
pub struct Replicated {
    /// It.
    pub named: Named,
    /// The receipt of its contents; none where the same contents were held already.
    pub receipt: Option<Receipt>,
    /// Whether all units have proved both the contents and the name durable.
    pub durable: bool,
}

/// What became of a file.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It is a segment now.
    Replicated(Box<Replicated>),
    /// It was a segment already.
    Known,
    /// It is gone, or no regular file.
    Gone,
    /// It changed while it was read.
    Changed,
    /// Its name is taken by other contents.
    Refused(SegmentError),
    /// It can't be read.
    Unreadable(SegmentError),
}

struct Waiting {
    named: Named,
    stored: Option<StoredBody>,
}

/// The writer of one body. One at a time for each body, any number for an index. Not shared between threads; calls block.
pub struct SegmentWriter {
    segments: Segments,
    node: String,
    body: BodyWriter,
    index: IndexReader,
    waiting: Vec<Waiting>,
    outcomes: Vec<(SegmentName, Outcome)>,
}

impl SegmentWriter {
    pub(super) fn open(segments: &Segments, node: &str, replicas: usize) -> Result<Self> {
        let index = IndexReader::open(&segments.way, &segments.index_region())?;
        if index.units() < replicas {
            return Err(SegmentError::TooFewReplicas {
                region: segments.index_region(),
                units: index.units(),
                replicas,
            });
        }
        Ok(Self {
            segments: segments.clone(),
            node: node.to_owned(),
            body: BodyWriter::open(&segments.way, &segments.body, replicas)?,
            index,
            waiting: Vec::new(),
            outcomes: Vec::new(),
        })
    }

    /// Units that each segment lies on.
    #[must_use]
    pub fn units(&self) -> usize {
        self.body.units()
    }

    /// Units of the body that don't take part, and why.
    #[must_use]
    pub fn missing(&self) -> Vec<crate::MissingUnit> {
        self.body.missing()
    }

    /// Takes in what others have done.
    ///
    /// # Errors
    /// What the units say.
    pub fn refresh(&mut self) -> Result<()> {
        self.index.refresh()
    }

    /// Makes a segment of a file. What becomes of it is told by [`Self::outcomes`], at the latest after [`Self::finish`].
    ///
    /// # Errors
    /// What the units say, and [`SegmentError::NoRoom`]: this file is no segment, and of those before it the ones that no outcome names.
    pub fn take(&mut self, name: &SegmentName, path: &Path, stop: &dyn Fn() -> bool) -> Result<()> {
        match self.look_at(name, path, stop) {
            Ok(Some(outcome)) => self.outcomes.push((name.clone(), outcome)),
            Ok(None) => {}
            Err(error @ SegmentError::File { .. }) => {
                self.outcomes
                    .push((name.clone(), Outcome::Unreadable(error)));
            }
            Err(error @ SegmentError::NameTaken { .. }) => {
                self.outcomes.push((name.clone(), Outcome::Refused(error)));
            }
            Err(error) => return Err(error),
        }
        let bytes: u64 = self.waiting.iter().map(|waiting| waiting.named.bytes).sum();
        if self.waiting.len() >= BATCH_SEGMENTS || bytes >= BATCH_BYTES {
            self.finish(stop)?;
        }
        Ok(())
    }

    /// None: it waits for its name.
    fn look_at(
        &mut self,
        name: &SegmentName,
        path: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Outcome>> {
        let Some(mut file) = Candidate::open(path)? else {
            return Ok(Some(Outcome::Gone));
        };
        let origin = file.facts.origin(&self.node);
        if let Some(named) = self.index.catalog.names.get(name) {
            let same_file = named.origin == origin
                && (named.bytes, named.modified_ns) == (file.facts.bytes, file.facts.modified_ns);
            if same_file {
                return Ok(Some(Outcome::Known));
            }
            let named = named.clone();
            let (hash, bytes) = file.hash(stop)?;
            if !file.held_still()? {
                return Ok(Some(Outcome::Changed));
            }
            check_name(&named, hash, bytes)?;
            return Ok(Some(Outcome::Known));
        }
        let Some(stored) = self.store(name, &mut file, stop)? else {
            return Ok(Some(Outcome::Changed));
        };
        let (hash, bytes, durable, stored) = stored;
        let named = Named {
            name: name.clone(),
            hash,
            bytes,
            mode: file.facts.mode,
            modified_ns: file.facts.modified_ns,
            taken_ns: now_ns(),
            durable,
            origin,
        };
        self.waiting.push(Waiting { named, stored });
        Ok(None)
    }

    /// Sees to it that the units hold the contents; none if the file changed meanwhile.
    #[allow(clippy::type_complexity)]
    fn store(
        &mut self,
        name: &SegmentName,
        file: &mut Candidate,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<(ContentHash, u64, bool, Option<StoredBody>)>> {
        let length = file.facts.bytes;
        if self.may_be_held(length) {
            let (hash, bytes) = file.hash(stop)?;
            if !file.held_still()? {
                return Ok(None);
            }
            if let Some(durable) = self.held(&hash) {
                return Ok(Some((hash, bytes, durable, None)));
            }
        }
        if !self.body.has_room(length, &self.index.catalog)? {
            self.make_room(length, stop)?;
        }
        // What is more by now is a change, and found as one.
        let mut contents = Read::take(&mut *file, length);
        let stored = self.body.store(name.as_str(), &mut contents, stop)?;
        if !file.held_still()? {
            return Ok(None);
        }
        let durable = stored.receipt.is_durable();
        Ok(Some((stored.hash, stored.bytes, durable, Some(stored))))
    }

    fn may_be_held(&self, bytes: u64) -> bool {
        let mut waiting = self.waiting.iter();
        self.index.catalog.has_length(bytes) || waiting.any(|waiting| waiting.named.bytes == bytes)
    }

    /// Whether the units hold these contents, and then whether durably.
    fn held(&self, hash: &ContentHash) -> Option<bool> {
        let waiting = self.waiting.iter().map(|waiting| &waiting.named);
        let held = self.index.catalog.held(hash).is_some();
        let names = self.index.catalog.names.values().filter(|_| held);
        let mut same = waiting.chain(names).filter(|named| named.hash == *hash);
        same.next().map(|named| named.durable)
    }

    fn make_room(&mut self, bytes: u64, stop: &dyn Fn() -> bool) -> Result<()> {
        // What waits for its name would count as unused.
        self.finish(stop)?;
        let (way, region) = (&self.segments.way, self.segments.index_region());
        let mut index = IndexWriter::open(way, &region, INDEX_PATIENCE, stop)?;
        let catalog = index.catalog().clone();
        let mut moved = |stored: &StoredBody| index.commit(&[body_operation(stored)]).map(drop);
        self.body.make_room(bytes, &catalog, &mut moved, stop)?;
        drop(index);
        self.index.refresh()
    }

    /// Claims the names of all that is stored. Those that this returns `Ok` for are segments, durable as their receipts say.
    ///
    /// # Errors
    /// What the units say: those without an outcome are to be taken again.
    pub fn finish(&mut self, stop: &dyn Fn() -> bool) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let (way, region) = (&self.segments.way, self.segments.index_region());
        let mut index = IndexWriter::open(way, &region, INDEX_PATIENCE, stop)?;
        let (mut operations, mut outcomes) = (Vec::new(), Vec::new());
        let mut catalog = index.catalog().clone();
        for Waiting { named, stored } in waiting {
            let name = named.name.clone();
            let Some(outcome) = claim(&mut catalog, named, stored, &mut operations) else {
                // Somebody dropped the contents meanwhile: it comes again.
                outcomes.push((name, Outcome::Changed));
                continue;
            };
            outcomes.push((name, outcome));
        }
        let durable = index.commit(&operations)?;
        drop(index);
        for (_, outcome) in &mut outcomes {
            if let Outcome::Replicated(replicated) = outcome {
                replicated.durable &= durable;
            }
        }
        self.outcomes.extend(outcomes);
        self.index.refresh()
    }

    /// What became of the files since this was asked last.
    pub fn outcomes(&mut self) -> Vec<(SegmentName, Outcome)> {
        std::mem::take(&mut self.outcomes)
    }
}

/// What becomes of a name in an index that nobody else changes now. None: its contents are held no more.
fn claim(
    catalog: &mut Catalog,
    named: Named,
    stored: Option<StoredBody>,
    operations: &mut Vec<Operation>,
) -> Option<Outcome> {
    if let Some(there) = catalog.names.get(&named.name) {
        return Some(match check_name(there, named.hash, named.bytes) {
            Ok(()) => Outcome::Known,
            Err(taken) => Outcome::Refused(taken),
        });
    }
    let mut new = Vec::new();
    match (&stored, catalog.held(&named.hash)) {
        (Some(stored), _) => new.push(body_operation(stored)),
        (None, Some(_)) => {}
        (None, None) => return None,
    }
    new.push(Operation::Name(named.clone()));
    for operation in new {
        catalog.apply(operation.clone());
        operations.push(operation);
    }
    let receipt = stored.map(|stored| stored.receipt);
    let durable = named.durable;
    Some(Outcome::Replicated(Box::new(Replicated {
        named,
        receipt,
        durable,
    })))
}

fn body_operation(stored: &StoredBody) -> Operation {
    Operation::Body {
        hash: stored.hash,
        bytes: stored.bytes,
        place: stored.place.clone(),
    }
}

fn check_name(named: &Named, hash: ContentHash, bytes: u64) -> Result<()> {
    if named.hash == hash {
        return Ok(());
    }
    let text = |bytes: u64, hash: ContentHash| format!("{bytes} bytes, {}", hash.short());
    Err(SegmentError::NameTaken {
        name: named.name.clone(),
        there: text(named.bytes, named.hash),
        here: text(bytes, hash),
    })
}
