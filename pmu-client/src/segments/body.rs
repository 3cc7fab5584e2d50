//! The body of a prefix: a log in which the contents of segments stand one behind the other.
//!
//! Contents are never changed, and count once the index says where they are. The log is cleared from its beginning; what is still in use there
//! is written again at its end first.

use std::io::Read;

use pmu_format::LogPosition;

use super::error::{Result, SegmentError};
use super::format::{
    BodyId, ContentHash, HeldBy, Part, Place, decode_part, encode_part, record_bytes,
};
use super::index::{Catalog, mark_at};
use super::logs::{Reader, Way, Writer};
use crate::error::ClientError;
use crate::receipt::Receipt;
use crate::spread::MissingUnit;

/// Bytes of contents in a record, at most.
const DATA_BYTES: usize = 256 << 10;
/// Bytes of contents read at a time.
const READ_BYTES: usize = 1 << 20;
/// What a record takes beside its bytes, at most.
const RECORD_OVERHEAD_BYTES: u64 = 512;

/// Contents that were stored.
#[derive(Debug, Clone)]
pub(super) struct StoredBody {
    pub(super) hash: ContentHash,
    pub(super) bytes: u64,
    pub(super) place: Place,
    pub(super) receipt: Receipt,
}

/// The one writer of a body.
pub(super) struct BodyWriter {
    way: Way,
    region: String,
    writer: Writer,
    /// So many units hold contents at least: else they are not stored.
    replicas: usize,
    record: Vec<u8>,
    data: Vec<u8>,
}

impl BodyWriter {
    /// Opens the region as its primary.
    ///
    /// # Errors
    /// [`ClientError::WriterExists`]: another watcher has it; [`SegmentError::TooFewReplicas`].
    pub(super) fn open(way: &Way, region: &str, replicas: usize) -> Result<Self> {
        let writer = Writer::open(way, region)?;
        let units = writer.units();
        if units < replicas {
            return Err(SegmentError::TooFewReplicas {
                region: region.to_owned(),
                units,
                replicas,
            });
        }
        let most = writer.record_bytes_max();
        let data_bytes = DATA_BYTES.min(most.saturating_sub(record_bytes(0)));
        if data_bytes == 0 {
            return Err(SegmentError::Invalid(format!(
                "region {region} is too small for any segment"
            )));
        }
        Ok(Self {
            way: way.clone(),
            region: region.to_owned(),
            writer,
            replicas,
            record: Vec::with_capacity(record_bytes(data_bytes)),
            data: vec![0; data_bytes],
        })
    }

    pub(super) fn units(&self) -> usize {
        self.writer.units()
    }

    pub(super) fn missing(&self) -> Vec<MissingUnit> {
        self.writer.missing()
    }

    /// Stores contents, on as many units as was asked for. What is returned is durable as its receipt says, and found by nobody before the index says where it is.
    pub(super) fn store(
        &mut self,
        name: &str,
        source: &mut dyn Read,
        stop: &dyn Fn() -> bool,
    ) -> Result<StoredBody> {
        let id = new_id()?;
        let from = self.submit(&id, Part::Begin { name })?;
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let mut data = std::mem::take(&mut self.data);
        let copied = self.copy(&id, source, &mut data, &mut hasher, &mut bytes, stop);
        self.data = data;
        copied?;
        let hash = hasher.finalize();
        let end = Part::End {
            bytes,
            hash: *hash.as_bytes(),
        };
        let last = self.submit(&id, end)?;
        let receipt = self.writer.flush()?;
        let units = receipt.units.len();
        if units < self.replicas {
            return Err(SegmentError::TooFewReplicas {
                region: self.region.clone(),
                units,
                replicas: self.replicas,
            });
        }
        let held = receipt.units.iter().map(|unit| HeldBy {
            unit: unit.name.to_string(),
            method: unit.persistence.name().to_owned(),
        });
        let place = Place {
            region: self.region.clone(),
            from: from.get(),
            last: last.get(),
            to: self.writer.end().get(),
            id: id_text(&id),
            units: held.collect(),
        };
        Ok(StoredBody {
            hash: hash.into(),
            bytes,
            place,
            receipt,
        })
    }

    fn copy(
        &mut self,
        id: &BodyId,
        source: &mut dyn Read,
        data: &mut [u8],
        hasher: &mut blake3::Hasher,
        bytes: &mut u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        loop {
            if stop() {
                return Err(SegmentError::Interrupted);
            }
            let count = read_full(source, data).map_err(ClientError::io("read the segment"))?;
            if count == 0 {
                return Ok(());
            }
            hasher.update(&data[..count]);
            *bytes += count as u64;
            self.submit(id, Part::Data(&data[..count]))?;
        }
    }

    fn submit(&mut self, id: &BodyId, part: Part<'_>) -> Result<LogPosition> {
        encode_part(id, part, &mut self.record);
        Ok(self.writer.submit(&self.record)?.position())
    }

    /// Bytes of each unit's ring that contents of this length take, at most.
    fn needed_bytes(&self, bytes: u64) -> u64 {
        let records = bytes.div_ceil(self.data.len() as u64) + 3;
        bytes.div_ceil(self.writer.data_shards()) + records * RECORD_OVERHEAD_BYTES
    }

    /// What must be free before contents of this length are stored: room for them, and for the longest that may have to be moved later. Without
    /// that, contents in use at the beginning of the log could keep what is unused behind them from being cleared.
    fn free_bytes_min(&self, bytes: u64, catalog: &Catalog) -> u64 {
        let live = catalog.live_in(&self.region);
        let longest = live.iter().map(|(_, length, _)| *length).max();
        let longest = longest.unwrap_or(0).max(bytes);
        self.needed_bytes(bytes) + self.needed_bytes(longest)
    }

    /// Whether contents of this length have room without clearing.
    pub(super) fn has_room(&mut self, bytes: u64, catalog: &Catalog) -> Result<bool> {
        Ok(self.writer.refresh_free()? >= self.free_bytes_min(bytes, catalog))
    }

    /// Clears what nobody names, and writes what is in its way again at the end. `moved` is told where that lies now, before it is cleared where
    /// it was.
    ///
    /// # Errors
    /// [`SegmentError::NoRoom`]: what is in use leaves too little.
    pub(super) fn make_room(
        &mut self,
        bytes: u64,
        catalog: &Catalog,
        moved: &mut dyn FnMut(&StoredBody) -> Result<()>,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let needed_bytes = self.free_bytes_min(bytes, catalog);
        let mut live = catalog.live_in(&self.region);
        let mut reader = Reader::open(&self.way, &self.region, true)?;
        let used: u64 = live.iter().map(|(_, _, place)| place.to - place.from).sum();
        let mut begin = reader.begin()?;
        let all = self.writer.end().get() - begin;
        let mut free_bytes = self.writer.refresh_free()?;
        let can_be_free = free_bytes + all.saturating_sub(used);
        if can_be_free < needed_bytes {
            return Err(self.no_room(needed_bytes, can_be_free));
        }
        live.reverse();
        let mut moves = live.len();
        loop {
            let first = live.last().map(|(_, _, place)| place.from);
            let first = first.unwrap_or(self.writer.end().get());
            // What lies before a record that is known need not be read to find its end.
            let known = catalog.record_before(&self.region, first);
            self.clear(&mut reader, begin.max(known.unwrap_or(begin)), first)?;
            begin = begin.max(first);
            free_bytes = self.writer.refresh_free()?;
            if free_bytes >= needed_bytes {
                return Ok(());
            }
            let oldest = live.pop().filter(|_| moves > 0);
            let Some((hash, length, place)) = oldest else {
                return Err(self.no_room(needed_bytes, free_bytes));
            };
            if free_bytes < self.needed_bytes(length) {
                return Err(self.no_room(self.needed_bytes(length), free_bytes));
            }
            let again = self.store_again(hash, length, &place, stop)?;
            moved(&again)?;
            moves -= 1;
            live.insert(0, (hash, length, again.place));
        }
    }

    fn no_room(&self, needed_bytes: u64, free_bytes: u64) -> SegmentError {
        SegmentError::NoRoom {
            region: self.region.clone(),
            needed_bytes,
            free_bytes,
        }
    }

    /// Writes contents again at the end of the log.
    fn store_again(
        &mut self,
        hash: ContentHash,
        bytes: u64,
        place: &Place,
        stop: &dyn Fn() -> bool,
    ) -> Result<StoredBody> {
        let mut contents = Contents::open(&self.way, place, hash, bytes)?;
        let name = hash.to_string();
        let again = self.store(&name, &mut Pull::new(&mut contents), stop)?;
        if (again.hash, again.bytes) != (hash, bytes) {
            return Err(SegmentError::Damaged {
                name,
                what: "its bytes changed on the way".into(),
            });
        }
        Ok(again)
    }

    fn clear(&mut self, reader: &mut Reader, from: u64, to: u64) -> Result<()> {
        if let Some(mark) = mark_at(reader, from, to)? {
            reader.clear(mark)?;
        }
        Ok(())
    }
}

/// Contents that are being read from the units. Verified as a whole once [`Self::next`] has said that there is no more.
pub(super) struct Contents {
    reader: Reader,
    region: String,
    id: BodyId,
    to: u64,
    hash: ContentHash,
    bytes: u64,
    hasher: blake3::Hasher,
    read: u64,
    ended: bool,
}

impl Contents {
    pub(super) fn open(way: &Way, place: &Place, hash: ContentHash, bytes: u64) -> Result<Self> {
        let id = id_of(&place.id).ok_or_else(|| SegmentError::Index {
            region: place.region.clone(),
            what: format!("\"{}\" names no contents", place.id),
        })?;
        let mut reader = Reader::open(way, &place.region, false)?;
        reader.seek(place.from)?;
        Ok(Self {
            reader,
            region: place.region.clone(),
            id,
            to: place.to,
            hash,
            bytes,
            hasher: blake3::Hasher::new(),
            read: 0,
            ended: false,
        })
    }

    /// The next bytes, put into `out`; false at the end.
    ///
    /// # Errors
    /// [`SegmentError::Damaged`]; what the units say.
    pub(super) fn next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        while out.is_empty() && !self.ended {
            self.read_some(out)?;
        }
        Ok(!out.is_empty())
    }

    fn read_some(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let records = self.reader.read_unread(READ_BYTES)?;
        if records.len() == 0 {
            self.reader.check_certain(&self.region)?;
            return Err(damaged(&self.hash, "the log ends within it"));
        }
        for record in records {
            if record.record.position.get() >= self.to {
                return Err(damaged(&self.hash, "its end is missing"));
            }
            let (id, part) =
                decode_part(record.payload).map_err(|what| damaged(&self.hash, what))?;
            if id != self.id {
                continue;
            }
            match part {
                Part::Begin { .. } => {}
                Part::Data(bytes) => {
                    self.hasher.update(bytes);
                    self.read += bytes.len() as u64;
                    out.extend_from_slice(bytes);
                }
                Part::End { bytes, hash } => {
                    self.ended = true;
                    let whole = ContentHash(*self.hasher.finalize().as_bytes());
                    let said = (ContentHash(hash), bytes);
                    if (whole, self.read) != (self.hash, self.bytes) || said != (whole, self.read) {
                        return Err(damaged(&self.hash, "its checksum does not hold"));
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn damaged(hash: &ContentHash, what: &str) -> SegmentError {
    SegmentError::Damaged {
        name: format!("with the contents {}", hash.short()),
        what: what.to_owned(),
    }
}

/// Contents as something to read from.
struct Pull<'a> {
    contents: &'a mut Contents,
    buffer: Vec<u8>,
    taken: usize,
}

impl<'a> Pull<'a> {
    fn new(contents: &'a mut Contents) -> Self {
        Self {
            contents,
            buffer: Vec::new(),
            taken: 0,
        }
    }
}

impl Read for Pull<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.taken == self.buffer.len() {
            self.taken = 0;
            let more = self.contents.next(&mut self.buffer);
            if !more.map_err(std::io::Error::other)? {
                return Ok(0);
            }
        }
        let count = out.len().min(self.buffer.len() - self.taken);
        out[..count].copy_from_slice(&self.buffer[self.taken..][..count]);
        self.taken += count;
        Ok(count)
    }
}

/// Fills the buffer, but for the end.
pub(super) fn read_full(source: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn new_id() -> Result<BodyId> {
    let mut id = BodyId::default();
    getrandom::fill(&mut id)
        .map_err(|error| SegmentError::Invalid(format!("no random bytes: {error}")))?;
    Ok(id)
}

fn id_text(id: &BodyId) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

fn id_of(text: &str) -> Option<BodyId> {
    let number = u128::from_str_radix(text, 16).ok()?;
    (text.len() == 32).then_some(number.to_be_bytes())
}
