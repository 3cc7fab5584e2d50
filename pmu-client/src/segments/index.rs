//! The index of a prefix: a log of operations, which all watchers of the prefix share, and what follows from it.
//!
//! A region has one primary at a time. Whoever changes the index is its primary for that moment, has read all of it, and so knows that a name
//! which it claims is free.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use pmu_core::log::RecordMark;
use pmu_format::{RECORD_ALIGNMENT_BYTES, RECORD_HEADER_BYTES, RECORD_SHARE_BYTES};

use super::error::{Result, SegmentError};
use super::format::{ContentHash, Named, Operation, Place, decode_operation, encode_operation};
use super::logs::{Reader, Way, Writer};
use super::names::SegmentName;
use crate::error::ClientError;

/// Bytes of operations read at a time.
const READ_BYTES: usize = 1 << 20;
/// Operations appended as one: they fit the staging memory.
const BATCH_OPERATIONS: usize = 256;
/// So many operations more than are needed are left lying before the index is written anew.
const SLACK_OPERATIONS: usize = 256;
/// What an operation takes beside its bytes, at most: headers, and what is rounded up.
const OPERATION_OVERHEAD_BYTES: u64 =
    (RECORD_HEADER_BYTES + RECORD_SHARE_BYTES) as u64 + 2 * RECORD_ALIGNMENT_BYTES;
/// Part of the ring that only drops may use: without it a full index could not be emptied.
const RESERVE_SHARE: u64 = 16;
/// The pause before the index is tried again while somebody else changes it.
const HELD_PAUSE: Duration = Duration::from_millis(20);

/// Contents: where they are.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) bytes: u64,
    pub(super) place: Option<Place>,
    /// How many names stand for it.
    pub(super) names: usize,
}

/// What an index says.
#[derive(Debug, Default, Clone)]
pub(super) struct Catalog {
    pub(super) names: BTreeMap<SegmentName, Named>,
    pub(super) bodies: HashMap<ContentHash, Body>,
    /// Which global storage has a copy of a segment too.
    pub(super) stores: BTreeMap<SegmentName, String>,
    /// Operations that were replayed.
    replayed: usize,
}

impl Catalog {
    pub(super) fn apply(&mut self, operation: Operation) {
        self.replayed += 1;
        match operation {
            Operation::Body { hash, bytes, place } => {
                let body = self.bodies.entry(hash).or_insert(Body {
                    bytes,
                    place: None,
                    names: 0,
                });
                // An empty one only makes the contents known: what says that no unit has them may be in the next batch, which never came.
                body.place = Some(place).filter(|place| !place.region.is_empty());
            }
            Operation::Name(named) => {
                let store = self.forget(&named.name, named.hash);
                if let Some(store) = store {
                    self.stores.insert(named.name.clone(), store);
                }
                if let Some(body) = self.bodies.get_mut(&named.hash) {
                    body.names += 1;
                }
                self.names.insert(named.name.clone(), named);
            }
            Operation::Drop { name } => drop(self.forget(&name, None)),
            Operation::Stored { name, store } => {
                if self.names.contains_key(&name) {
                    self.stores.insert(name, store);
                }
            }
            Operation::Unloaded { hash } => {
                if let Some(body) = self.bodies.get_mut(&hash) {
                    body.place = None;
                }
            }
        }
    }

    /// Takes a name away; gives which global storage has its contents if the name is to stand for the same ones again.
    fn forget(
        &mut self,
        name: &SegmentName,
        again: impl Into<Option<ContentHash>>,
    ) -> Option<String> {
        let store = self.stores.remove(name);
        let old = self.names.remove(name)?;
        if let Some(body) = self.bodies.get_mut(&old.hash) {
            body.names = body.names.saturating_sub(1);
        }
        store.filter(|_| again.into() == Some(old.hash))
    }

    /// The shortest sequence of operations that says the same.
    fn operations(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        for (hash, body) in self.bodies.iter().filter(|(_, body)| body.names > 0) {
            let (hash, bytes) = (*hash, body.bytes);
            // Contents that no unit has any more are introduced by an empty place, which the next operation takes back.
            let place = body.place.clone().unwrap_or_else(Place::nowhere);
            operations.push(Operation::Body { hash, bytes, place });
            if body.place.is_none() {
                operations.push(Operation::Unloaded { hash });
            }
        }
        operations.extend(self.names.values().cloned().map(Operation::Name));
        let stores = self.stores.iter();
        operations.extend(stores.map(|(name, store)| Operation::Stored {
            name: name.clone(),
            store: store.clone(),
        }));
        operations
    }

    /// Where contents that somebody names lie in a region, from the oldest on.
    pub(super) fn live_in(&self, region: &str) -> Vec<(ContentHash, u64, Place)> {
        let named = self.bodies.iter().filter(|(_, body)| body.names > 0);
        let placed = named.filter_map(|(hash, body)| {
            let place = body.place.clone()?;
            (place.region == region).then_some((*hash, body.bytes, place))
        });
        let mut live: Vec<_> = placed.collect();
        live.sort_by_key(|(_, _, place)| place.from);
        live
    }

    /// The position of the last record of contents that end at or before a position: all that is known of them, in use or not.
    pub(super) fn record_before(&self, region: &str, position: u64) -> Option<u64> {
        let places = self.bodies.values().filter_map(|body| body.place.as_ref());
        let before = places.filter(|place| place.region == region && place.to <= position);
        before.map(|place| place.last).max()
    }

    /// Contents that units hold and somebody names.
    pub(super) fn held(&self, hash: &ContentHash) -> Option<&Body> {
        let body = self.bodies.get(hash)?;
        (body.names > 0 && body.place.is_some()).then_some(body)
    }

    /// Whether contents of this length are held: only then it is worth while to look whether they are the same.
    pub(super) fn has_length(&self, bytes: u64) -> bool {
        self.bodies
            .values()
            .any(|body| body.bytes == bytes && body.names > 0 && body.place.is_some())
    }
}

impl Place {
    fn nowhere() -> Self {
        Self {
            region: String::new(),
            from: 0,
            last: 0,
            to: 0,
            id: String::new(),
            units: Vec::new(),
        }
    }
}

/// Reads an index, and follows it.
pub(super) struct IndexReader {
    way: Way,
    region: String,
    reader: Reader,
    pub(super) catalog: Catalog,
}

impl IndexReader {
    pub(super) fn open(way: &Way, region: &str) -> Result<Self> {
        let reader = Reader::open(way, region, false)?;
        let mut index = Self {
            way: way.clone(),
            region: region.to_owned(),
            reader,
            catalog: Catalog::default(),
        };
        index.read_on()?;
        Ok(index)
    }

    /// Units that the index lies on.
    pub(super) fn units(&self) -> usize {
        self.reader.units()
    }

    /// Takes in what has been appended since.
    pub(super) fn refresh(&mut self) -> Result<()> {
        match self.read_on() {
            // Somebody has written the index anew, or the connection was lost.
            Err(SegmentError::Client(_)) => {
                *self = Self::open(&self.way.clone(), &self.region.clone())?;
                Ok(())
            }
            done => done,
        }
    }

    fn read_on(&mut self) -> Result<()> {
        loop {
            let records = self.reader.read_unread(READ_BYTES)?;
            if records.len() == 0 {
                return Ok(self.reader.check_certain(&self.region)?);
            }
            for record in records {
                let operation = decode_operation(record.payload).map_err(|what| {
                    let position = record.record.position;
                    SegmentError::Index {
                        region: self.region.clone(),
                        what: format!("the record at {position}: {what}"),
                    }
                })?;
                self.catalog.apply(operation);
            }
        }
    }
}

/// Changes an index. While it exists nobody else does.
pub(super) struct IndexWriter {
    writer: Writer,
    index: IndexReader,
}

impl IndexWriter {
    /// Becomes the index's primary, and reads it. While somebody else is, waits for `patience` at most.
    ///
    /// # Errors
    /// [`ClientError::WriterExists`] after that; [`SegmentError::Interrupted`].
    pub(super) fn open(
        way: &Way,
        region: &str,
        patience: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let until = Instant::now() + patience;
        let writer = loop {
            match Writer::open(way, region) {
                Err(ClientError::WriterExists { .. }) if Instant::now() < until => {
                    std::thread::sleep(HELD_PAUSE);
                }
                other => break other?,
            }
            if stop() {
                return Err(SegmentError::Interrupted);
            }
        };
        let index = IndexReader::open(way, region)?;
        Ok(Self { writer, index })
    }

    /// What the index says, with all that was committed here.
    pub(super) fn catalog(&self) -> &Catalog {
        &self.index.catalog
    }

    /// Appends operations. True if all receipts said durable; else the region's medium only has them.
    ///
    /// # Errors
    /// [`SegmentError::IndexFull`]: there are as many segments as the index may have. Some of the operations may stand, in their order.
    pub(super) fn commit(&mut self, operations: &[Operation]) -> Result<bool> {
        let mut durable = true;
        for batch in operations.chunks(BATCH_OPERATIONS) {
            durable &= self.commit_batch(batch)?;
        }
        self.index.refresh()?;
        let needed = self.catalog().names.len() * 3;
        if self.catalog().replayed > 2 * needed + SLACK_OPERATIONS {
            self.write_anew()?;
        }
        Ok(durable)
    }

    /// As much of it as there is room for.
    fn commit_batch(&mut self, batch: &[Operation]) -> Result<bool> {
        match self.see_to_room(batch) {
            Ok(()) => self.append(batch),
            Err(refused @ SegmentError::IndexFull { .. }) => {
                let (first, rest) = halves(batch).ok_or(refused)?;
                Ok(self.commit_batch(first)? & self.commit_batch(rest)?)
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps as much room free as all that is still needed takes: else it could not be written anew, and nothing be cleared.
    fn see_to_room(&mut self, batch: &[Operation]) -> Result<()> {
        let ring_bytes = self.index.reader.ring_bytes();
        let only_drops = batch
            .iter()
            .all(|operation| matches!(operation, Operation::Drop { .. }));
        let bytes = self.bytes_of(batch)?;
        // What is added takes room now, and once more when the index is written anew.
        let wanted = if only_drops {
            bytes
        } else {
            2 * bytes + ring_bytes / RESERVE_SHARE
        };
        let free_bytes = self.writer.refresh_free()?;
        // What is needed is no longer than all that is there.
        let used = ring_bytes.saturating_sub(free_bytes);
        if free_bytes >= used + wanted {
            return Ok(());
        }
        self.index.refresh()?;
        let needed = self.needed_bytes()?;
        if free_bytes >= needed + wanted {
            return Ok(());
        }
        // Where nothing is superfluous it would be as long as before: who is refused comes again.
        if free_bytes >= needed && used > needed {
            self.write_anew()?;
            if self.writer.refresh_free()? >= self.needed_bytes()? + wanted {
                return Ok(());
            }
        }
        if only_drops {
            return Ok(());
        }
        Err(SegmentError::IndexFull {
            region: self.index.region.clone(),
            segments: self.catalog().names.len(),
        })
    }

    fn needed_bytes(&self) -> Result<u64> {
        self.bytes_of(&self.catalog().operations())
    }

    /// What operations take of each unit's ring, at most.
    fn bytes_of(&self, operations: &[Operation]) -> Result<u64> {
        let shards = self.writer.data_shards();
        let mut bytes = 0;
        for operation in operations {
            let encoded = encode_operation(operation).map_err(SegmentError::Invalid)?;
            bytes += (encoded.len() as u64).div_ceil(shards) + OPERATION_OVERHEAD_BYTES;
        }
        Ok(bytes)
    }

    fn append(&mut self, operations: &[Operation]) -> Result<bool> {
        let encoded: Vec<_> = operations
            .iter()
            .map(encode_operation)
            .collect::<Result<_, _>>()
            .map_err(SegmentError::Invalid)?;
        let records: Vec<_> = encoded.iter().map(Vec::as_slice).collect();
        let receipt = self.writer.append_batch(&records)?;
        Ok(receipt.is_durable())
    }

    /// Appends what is still needed, and clears all before. Wherever this breaks off, the index says the same.
    fn write_anew(&mut self) -> Result<()> {
        self.index.refresh()?;
        let operations = self.index.catalog.operations();
        let region = self.index.region.clone();
        let mut old = Reader::open(&self.index.way, &region, true)?;
        let before = self.writer.end().get();
        for batch in operations.chunks(BATCH_OPERATIONS) {
            self.append(batch)?;
        }
        let begin = old.begin()?;
        if let Some(mark) = mark_at(&mut old, begin, before)? {
            old.clear(mark)?;
        }
        self.writer.refresh_free()?;
        self.index = IndexReader::open(&self.index.way.clone(), &region)?;
        Ok(())
    }
}

/// Two parts of operations, about as long. A name stays with its contents: those alone would only take up room.
fn halves(batch: &[Operation]) -> Option<(&[Operation], &[Operation])> {
    let middle = batch.len() / 2;
    let apart = |at: &usize| {
        let pair = batch.get(at.wrapping_sub(1)).zip(batch.get(*at));
        pair.is_some_and(|pair| !matches!(pair, (Operation::Body { .. }, Operation::Name(_))))
    };
    let at = [middle, middle + 1].into_iter().find(apart)?;
    Some(batch.split_at(at))
}

/// Reads from one end of a record to another, or the last one before it: what to clear up to.
pub(super) fn mark_at(reader: &mut Reader, from: u64, position: u64) -> Result<Option<RecordMark>> {
    let mut mark = None;
    reader.seek(from)?;
    while reader.position().get() < position {
        let records = reader.read_unread(READ_BYTES)?;
        if records.len() == 0 {
            break;
        }
        for record in records {
            if record.record.mark.position().get() <= position {
                mark = Some(record.record.mark);
            }
        }
    }
    Ok(mark)
}
