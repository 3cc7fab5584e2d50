//! Writing sets: one after the other, each committed with one chain behind its payload.

pub(crate) mod fill;
pub(crate) mod member;
pub(crate) mod shared;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pmu_core::commit::{BeginError, CommitPlan, Goal, SetOpening, SetPlan, SetRecovery, SetWriter};
use pmu_fabric::{Chain, Counters};
use pmu_format::{
    CHUNK_BYTES, Digest, Epoch, Label, Mode, PAGE_BYTES, RegionPiece, SetGeometry, SetNumber,
};
use pmu_pmem::{LocalMemory, LocalOptions};
use pmu_proto::v1::SessionRole;

use crate::error::{Attempt, ClientError, Result};
use crate::link::{LinkError, Posted};
use crate::options::OpenOptions;
use crate::outbox::Outbox;
use crate::receipt::{Receipt, Stored, UnitProof};
use crate::region::{Parts, Region, RegionInfo};
use crate::sets::buffer::{RegisteredBuffer, RegisteredSlice};
use crate::sets::fetch::Fetcher;
use crate::sets::put::Put;
use crate::sets::reader::{SetRead, outcome};
use crate::sets::{SetSink, geometry_of};
use crate::staging::Registered;
use crate::unit::{FenceReport, Purpose, Unit};

/// Payload is posted, with its flush, whenever so much of it is ready, while the program prepares the next.
const POST_BYTES: u64 = 1 << 20;
/// Bytes are taken into the checksum and then copied in steps of this size, so that the second pass finds them in the nearest cache.
const STEP_BYTES: usize = 16 << 10;

/// The one writer of a region in overwrite mode.
///
/// [`Self::commit`] stores a whole checkpoint and returns when it is durable; the `sets_kept` newest sets stay readable, whatever happens in
/// between. Nothing is allocated for a set but when the connection is made (and what errors need).
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block, without any progress at most for
/// [`crate::Timeouts::stall`]. After an error of the connection the handle is at its end: open the region again.
pub struct SetPrimary {
    region: Region,
    writer: SetWriter,
    outbox: Outbox,
    /// A page for the header, and the chunk table behind it.
    metadata: Registered,
    /// For reading registered memory through the cache.
    scratch: Vec<u8>,
    set: Progress,
    /// Checksums of a set whose length isn't known in advance.
    checksums: Vec<u64>,
    id: u64,
}

impl std::fmt::Debug for SetPrimary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SetPrimary")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// How far the set in progress is.
#[derive(Debug, Clone, Copy)]
struct Progress {
    plan: Option<SetPlan>,
    label: Label,
    /// Whether the plan's length is the capacity only because nobody knows the real one yet.
    open_ended: bool,
    taken: u64,
    /// Payload bytes from the beginning that were posted together with their flush.
    flushed: u64,
    digest: Digest,
}

/// What taking over a region in overwrite mode came to.
#[derive(Debug)]
#[non_exhaustive]
pub struct SetTakeover {
    /// The new primary.
    pub primary: SetPrimary,
    /// The set that was recovered; none where the region never held one.
    pub recovered: Option<SetRead>,
    /// What the fence did.
    pub fence: FenceReport,
    /// From the beginning of the fence until the primary could commit, reading the set included.
    pub took: Duration,
}

impl Unit {
    /// Opens a region in overwrite mode as its primary: takes the right to write, and an epoch of its own. A set that its predecessor
    /// wrote whole without learning of it is adopted first.
    ///
    /// # Errors
    /// [`ClientError::WriterExists`] (fence it first, or use [`Self::take_over_sets`]), [`ClientError::NoSuchRegion`],
    /// [`ClientError::NoGrant`], [`ClientError::WrongMode`], [`ClientError::UnfitPersistence`], [`ClientError::NoProvider`], and what every
    /// request may meet.
    pub fn open_sets_primary(&self, region: &str, options: &OpenOptions) -> Result<SetPrimary> {
        let purpose = Purpose {
            role: SessionRole::Primary,
            clear: false,
            mode: Mode::Overwrite,
            member: false,
        };
        let mut region = self.open(region, purpose, options)?;
        let mut fetcher = Fetcher::new(&mut region)?;
        let (primary, _) = SetPrimary::recovering(region, &mut fetcher, Goal::Opening, &mut ())?;
        Ok(primary)
    }

    /// Takes a region over from a primary that has failed: fences it, reads the newest set that is whole into `sink`, and becomes the
    /// primary, in this order.
    ///
    /// # Errors
    /// As [`Self::fence`] and [`Self::open_sets_primary`]; [`ClientError::Damaged`] if sets were committed and none can be read.
    pub fn take_over_sets(
        &self,
        region: &str,
        options: &OpenOptions,
        sink: &mut impl SetSink,
    ) -> Result<SetTakeover> {
        let begun = Instant::now();
        let fence = self.fence(region)?;
        let purpose = Purpose {
            role: SessionRole::Primary,
            clear: false,
            mode: Mode::Overwrite,
            member: false,
        };
        let mut opened = self.open(region, purpose, &options.going_on_from_nothing())?;
        let mut fetcher = Fetcher::new(&mut opened)?;
        let (primary, recovered) =
            SetPrimary::recovering(opened, &mut fetcher, Goal::Newest, sink)?;
        Ok(SetTakeover {
            primary,
            recovered,
            fence,
            took: begun.elapsed(),
        })
    }
}

impl SetPrimary {
    /// Over a connection that is there already: for simulators and tests.
    ///
    /// # Errors
    /// As [`Unit::open_sets_primary`], but for what the unit would say.
    pub fn over(parts: Parts) -> Result<Self> {
        let mut region = Region::new(parts)?;
        let mut fetcher = Fetcher::new(&mut region)?;
        Ok(Self::recovering(region, &mut fetcher, Goal::Opening, &mut ())?.0)
    }

    fn recovering(
        mut region: Region,
        fetcher: &mut Fetcher,
        goal: Goal,
        sink: &mut impl SetSink,
    ) -> Result<(Self, Option<SetRead>)> {
        let geometry = geometry_of(&region.info)?;
        let mut recovery = [SetRecovery::new(geometry, region.info.id, goal)];
        fetcher.run(&mut region, &mut recovery, std::slice::from_mut(sink))?;
        let [recovery] = recovery;
        let read = match goal {
            Goal::Newest => match outcome(&region, goal, &recovery) {
                Ok(read) => Some(read),
                Err(ClientError::NoSuchSet { .. }) => None,
                Err(error) => return Err(error),
            },
            _ => None,
        };
        let opening = recovery
            .opening()
            .ok_or_else(|| ClientError::Protocol("the recovery of the sets has no end".into()))?;
        Ok((Self::start(region, geometry, &opening)?, read))
    }

    /// Makes what was found durable and published, and gets ready for the first set.
    fn start(mut region: Region, geometry: SetGeometry, opening: &SetOpening) -> Result<Self> {
        let staging_bytes = region.staging_bytes;
        let staging = Registered::allocate(&mut region.link, staging_bytes)?;
        let metadata_bytes = (PAGE_BYTES + geometry.chunk_table_area_bytes()) as usize;
        let metadata = Registered::allocate(&mut region.link, metadata_bytes)?;
        let mut outbox = Outbox::new(staging, staging_bytes, &region.link);
        if opening.publish.is_some() || opening.newest.get() > 0 {
            let base = region.info.address.get();
            let posted = outbox
                .post(&mut region.link, |chain| {
                    flush(chain, base, opening.flush.into_iter());
                    if let Some(publish) = opening.publish {
                        chain.atomic_write(base + publish.offset.get(), publish.value);
                    }
                    flush(chain, base, std::iter::once(opening.flush_publish));
                })
                .map_err(|error| region.error(error))?;
            region
                .link
                .wait_for(posted.last)
                .map_err(|error| region.error(error))?;
        }
        let writer = SetWriter::new(geometry, region.info.id, region.epoch, opening.newest);
        let chunks = geometry.capacity_bytes().div_ceil(CHUNK_BYTES) as usize;
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Ok(Self {
            region,
            writer,
            outbox,
            metadata,
            scratch: vec![0; STEP_BYTES],
            set: Progress {
                plan: None,
                label: Label::default(),
                open_ended: false,
                taken: 0,
                flushed: 0,
                digest: Digest::new(),
            },
            checksums: Vec::with_capacity(chunks),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Stores one set, gathered from several slices, and returns when it is durable by the connection's persistence method.
    ///
    /// # Errors
    /// [`ClientError::TooLarge`]: nothing was written. [`ClientError::ConnectionLost`], [`ClientError::Fenced`]: the set was not stored.
    /// [`ClientError::UnknownOutcome`]: it may have been. [`ClientError::MediumFailed`]. Earlier sets are there in any case.
    pub fn commit(&mut self, payload: &[IoSlice<'_>], label: Label) -> Result<Receipt> {
        let length = payload.iter().map(|slice| slice.len() as u64).sum();
        self.start_set(Some(length), label)?;
        for slice in payload {
            self.feed(slice)?;
        }
        self.finish_set()
    }

    /// As [`Self::commit`], straight from registered memory: no byte is copied on this side, only read once for its checksum.
    ///
    /// # Errors
    /// As [`Self::commit`]; [`ClientError::Invalid`] for a buffer of another primary.
    pub fn commit_registered(
        &mut self,
        payload: &[RegisteredSlice<'_>],
        label: Label,
    ) -> Result<Receipt> {
        if payload.iter().any(|slice| slice.owner() != self.id) {
            return Err(ClientError::Invalid(
                "the buffer is registered with another primary".into(),
            ));
        }
        let length = payload.iter().map(|slice| slice.len() as u64).sum();
        self.start_set(Some(length), label)?;
        for slice in payload {
            self.feed_registered(slice)?;
        }
        self.finish_set()
    }

    /// Begins a set that is written piece by piece. Without a length it may become as long as the region's capacity.
    ///
    /// # Errors
    /// As [`Self::commit`] before anything is written.
    pub fn begin(&mut self, length: Option<u64>, label: Label) -> Result<Put<'_>> {
        self.start_set(length, label)?;
        Ok(Put::new(self))
    }

    /// Allocates zeroed memory that is registered with this connection, as long as that lives.
    ///
    /// # Errors
    /// [`ClientError::Fabric`]: no memory, or the device refuses.
    pub fn allocate_registered(&mut self, bytes: usize) -> Result<RegisteredBuffer> {
        let options = LocalOptions {
            huge_pages: true,
            prefault: true,
        };
        let memory = LocalMemory::allocate_with(bytes, options)
            .map_err(|error| ClientError::Fabric(error.into()))?;
        self.register(Arc::new(memory))
    }

    /// Registers memory that the program has already.
    ///
    /// # Errors
    /// [`ClientError::Fabric`]: the device refuses.
    pub fn register(&mut self, memory: Arc<LocalMemory>) -> Result<RegisteredBuffer> {
        let attached = self
            .region
            .link
            .attach(Arc::clone(&memory))
            .map_err(ClientError::Fabric)?;
        Ok(RegisteredBuffer::new(memory, attached, self.id))
    }

    /// Says to whoever watches that this program lives: an ATOMIC WRITE of the region's beat, at most one at a time on its way. To be called
    /// from where the program does its work, a few times in each interval that the watcher knows: not from a thread that would go on beating
    /// while the program hangs. Doesn't wait, allocates nothing, and makes nothing durable.
    ///
    /// # Errors
    /// [`ClientError::Fenced`], [`ClientError::ConnectionLost`].
    pub fn beat(&mut self) -> Result<()> {
        self.region.beat()
    }

    pub(crate) fn region_mut(&mut self) -> &mut Region {
        &mut self.region
    }

    /// The number of the newest committed set that this primary knows of, 0 for none.
    #[must_use]
    pub fn newest(&self) -> SetNumber {
        self.writer.newest()
    }

    /// The epoch in which this primary writes.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.region.epoch
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &RegionInfo {
        &self.region.info
    }

    /// The longest payload of a set.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.writer.geometry().capacity_bytes()
    }

    /// The unit, and how its connection makes bytes durable.
    #[must_use]
    pub fn unit(&self) -> &UnitProof {
        &self.region.proof()[0]
    }

    /// Which way the bytes go.
    #[must_use]
    pub fn provider(&self) -> pmu_fabric::Provider {
        self.region.provider()
    }

    /// What this connection has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.region.link.counters()
    }

    fn start_set(&mut self, length: Option<u64>, label: Label) -> Result<()> {
        if self.region.link.is_dead() {
            return Err(self.region.ended());
        }
        let planned = length.unwrap_or(self.capacity_bytes());
        let plan = self
            .writer
            .begin(planned, label)
            .map_err(|error| self.refused(error))?;
        self.checksums.clear();
        self.set = Progress {
            plan: Some(plan),
            label,
            open_ended: length.is_none(),
            taken: 0,
            flushed: 0,
            digest: Digest::new(),
        };
        Ok(())
    }

    fn refused(&self, error: BeginError) -> ClientError {
        let region = self.region.name();
        match error {
            BeginError::TooLarge {
                payload_bytes,
                capacity_bytes,
            } => ClientError::TooLarge {
                region,
                bytes: payload_bytes,
                limit_bytes: capacity_bytes,
            },
            BeginError::InDoubt { .. } => self.region.ended(),
            other => ClientError::Invalid(other.to_string()),
        }
    }

    fn plan(&self) -> Result<SetPlan> {
        self.set
            .plan
            .ok_or_else(|| ClientError::Invalid("no set is in progress".into()))
    }

    /// How many bytes of the set were taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.set.taken
    }

    /// Takes the next bytes of the payload.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.feed_steps(bytes);
        if result.is_err() {
            self.abandon_set();
        }
        result
    }

    fn feed_steps(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.check_room(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let step = (self.chunk_left() as usize)
                .min(bytes.len())
                .min(STEP_BYTES);
            let (now, later) = bytes.split_at(step);
            self.set.digest.update(now);
            let mut rest = now;
            while !rest.is_empty() {
                let remote = self.next_address()?;
                let count = self.outbox.stage(&self.region.link, remote, rest)?;
                self.set.taken += count as u64;
                rest = &rest[count..];
                if !rest.is_empty() {
                    self.make_room()?;
                }
            }
            self.chunk_done()?;
            self.post_if_ready()?;
            bytes = later;
        }
        Ok(())
    }

    fn feed_registered(&mut self, slice: &RegisteredSlice<'_>) -> Result<()> {
        let result = self.feed_registered_steps(slice);
        if result.is_err() {
            self.abandon_set();
        }
        result
    }

    fn feed_registered_steps(&mut self, slice: &RegisteredSlice<'_>) -> Result<()> {
        let mut done = 0;
        while done < slice.length {
            let step = (self.chunk_left() as usize).min(slice.length - done);
            let remote = self.next_address()?;
            let digest = &mut self.set.digest;
            slice
                .memory()
                .for_each_piece(
                    (slice.offset + done) as u64,
                    step as u64,
                    &mut self.scratch,
                    |piece| {
                        digest.update(piece);
                    },
                )
                .map_err(|error| ClientError::Invalid(error.to_string()))?;
            let local = pmu_fabric::LocalSlice {
                memory: slice.attached(),
                offset: slice.offset + done,
                length: step,
            };
            self.outbox.gather(remote, local);
            self.set.taken += step as u64;
            done += step;
            self.chunk_done()?;
            if self.outbox.is_full() {
                self.post_payload()?;
            }
            self.post_if_ready()?;
        }
        Ok(())
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        let plan = self.plan()?;
        if bytes <= plan.payload_bytes - self.set.taken {
            return Ok(());
        }
        Err(ClientError::TooLarge {
            region: self.region.name(),
            bytes: self.set.taken.saturating_add(bytes),
            limit_bytes: plan.payload_bytes,
        })
    }

    fn chunk_left(&self) -> u64 {
        CHUNK_BYTES - self.set.taken % CHUNK_BYTES
    }

    fn next_address(&self) -> Result<u64> {
        Ok(self
            .region
            .address(self.plan()?.payload_offset.get() + self.set.taken))
    }

    /// If the bytes taken so far end a chunk, its checksum is complete.
    fn chunk_done(&mut self) -> Result<()> {
        let plan = self.plan()?;
        if self.set.taken.is_multiple_of(CHUNK_BYTES) || self.set.taken == plan.payload_bytes {
            let checksum = self.set.digest.finish();
            self.end_chunk(checksum)?;
        }
        Ok(())
    }

    fn end_chunk(&mut self, checksum: u64) -> Result<()> {
        self.set.digest = Digest::new();
        if self.set.open_ended {
            self.checksums.push(checksum);
            return Ok(());
        }
        let index = (self.set.taken - 1) / CHUNK_BYTES;
        self.writer
            .chunk_written(index as u32, checksum)
            .map_err(|error| ClientError::Invalid(error.to_string()))
    }

    /// Write-behind: what is ready goes out with its flush, while there is more to come.
    fn post_if_ready(&mut self) -> Result<()> {
        let plan = self.plan()?;
        if self.outbox.bytes() >= POST_BYTES && self.set.taken < plan.payload_bytes {
            self.post_payload()?;
        }
        Ok(())
    }

    fn post_payload(&mut self) -> Result<()> {
        if self.outbox.bytes() == 0 {
            return Ok(());
        }
        let plan = self.plan()?;
        let address = self
            .region
            .address(plan.payload_offset.get() + self.set.flushed);
        let length = self.set.taken - self.set.flushed;
        self.outbox
            .post(&mut self.region.link, |chain| {
                chain.flush(address, length);
            })
            .map_err(|error| self.region.error(error))?;
        self.set.flushed = self.set.taken;
        Ok(())
    }

    fn make_room(&mut self) -> Result<()> {
        self.post_payload()?;
        self.outbox
            .wait_for_room(&mut self.region.link)
            .map_err(|error| self.region.error(error))
    }

    /// Posts the rest and waits until the set is committed.
    pub(super) fn finish_set(&mut self) -> Result<Receipt> {
        let result = self.finish_steps();
        if result.is_err() {
            self.abandon_set();
        }
        result
    }

    fn finish_steps(&mut self) -> Result<Receipt> {
        if self.set.open_ended {
            self.settle_length()?;
        }
        let plan = self.plan()?;
        if self.set.taken != plan.payload_bytes {
            let (taken, planned) = (self.set.taken, plan.payload_bytes);
            return Err(ClientError::Invalid(format!(
                "{taken} of {planned} bytes were written"
            )));
        }
        let before = self.region.link.posted();
        let attempt = Attempt::Set(plan.number);
        let posted = match self.post_commit(&plan)? {
            Ok(posted) => posted,
            Err(error) if self.region.link.posted() == before => {
                return Err(self.region.error(error));
            }
            Err(error) => {
                return Err(self.region.error_of(error, attempt));
            }
        };
        if let Err(error) = self.region.link.wait_for(posted.last) {
            return Err(self.region.error_of(error, attempt));
        }
        let committed = self
            .writer
            .committed()
            .map_err(|error| ClientError::Invalid(error.to_string()))?;
        self.set.plan = None;
        Ok(self
            .region
            .receipt(Stored::Set(committed.number), committed.payload_bytes))
    }

    /// Posts what is left of the payload, the chunk table, the header and the publishing of the set as one chain.
    fn post_commit(&mut self, plan: &SetPlan) -> Result<std::result::Result<Posted, LinkError>> {
        let base = self.region.info.address.get();
        let flushed = flushed_range(plan, self.set.flushed);
        let commit = self
            .writer
            .finish(self.region.date_ns())
            .map_err(|error| ClientError::Invalid(error.to_string()))?;
        self.metadata.put(0, &commit.header)?;
        self.metadata.put(PAGE_BYTES as usize, commit.table)?;
        let CommitPlan {
            table_offset,
            header_offset,
            publish,
            flush_publish,
            ..
        } = commit;
        let table = self.metadata.slice(PAGE_BYTES as usize, commit.table.len());
        let header = self.metadata.slice(0, commit.header.len());
        let ranges = commit
            .flush_ranges()
            .flat_map(move |range| without(range, flushed));
        Ok(self.outbox.post(&mut self.region.link, |chain| {
            chain.write(base + table_offset.get(), table);
            chain.write(base + header_offset.get(), header);
            #[cfg(feature = "planted-bugs")]
            if pmu_format::planted::is_planted(pmu_format::planted::Bug::CommitBeforeData) {
                chain.atomic_write(base + publish.offset.get(), publish.value);
            }
            flush(chain, base, ranges);
            chain.atomic_write(base + publish.offset.get(), publish.value);
            flush(chain, base, std::iter::once(flush_publish));
        }))
    }

    /// The length of an open-ended set is known now. Nothing of it was finished, so that its number and slot are free to be planned again;
    /// the payload stands where it stands for every length.
    fn settle_length(&mut self) -> Result<()> {
        let planned = self.plan()?;
        if !self.set.taken.is_multiple_of(CHUNK_BYTES) && self.set.taken < planned.payload_bytes {
            let checksum = self.set.digest.finish();
            self.end_chunk(checksum)?;
        }
        self.writer.abandon();
        let plan = self
            .writer
            .begin(self.set.taken, self.set.label)
            .map_err(|error| self.refused(error))?;
        if (plan.number, plan.payload_offset) != (planned.number, planned.payload_offset) {
            return Err(ClientError::Invalid("the set's place has changed".into()));
        }
        for (index, checksum) in self.checksums.iter().enumerate() {
            self.writer
                .chunk_written(index as u32, *checksum)
                .map_err(|error| ClientError::Invalid(error.to_string()))?;
        }
        self.set.plan = Some(plan);
        self.set.open_ended = false;
        Ok(())
    }

    /// Gives the set in progress up. Earlier sets were never touched.
    pub(super) fn abandon_set(&mut self) {
        if self.set.plan.take().is_some() {
            self.writer.abandon();
            self.outbox.abandon(&self.region.link);
        }
    }
}

fn flush(chain: &mut Chain, base: u64, ranges: impl Iterator<Item = RegionPiece>) {
    for range in ranges {
        chain.flush(base + range.offset.get(), range.length_bytes);
    }
}

/// The part of the payload whose flush was posted before, on the same connection: publishing waits for that flush anyway.
fn flushed_range(plan: &SetPlan, flushed: u64) -> (u64, u64) {
    let begin = plan.payload_offset.get();
    (begin, begin + flushed)
}

/// A range without what was flushed: what is before and what is behind.
fn without(range: RegionPiece, flushed: (u64, u64)) -> impl Iterator<Item = RegionPiece> {
    let (begin, end) = (range.offset.get(), range.offset.get() + range.length_bytes);
    let (cut_begin, cut_end) = (flushed.0.clamp(begin, end), flushed.1.clamp(begin, end));
    let pieces = if cut_begin < cut_end {
        [(begin, cut_begin), (cut_end, end)]
    } else {
        [(begin, end), (end, end)]
    };
    pieces
        .into_iter()
        .filter(|piece| piece.0 < piece.1)
        .map(|piece| RegionPiece {
            offset: pmu_format::RegionOffset(piece.0),
            length_bytes: piece.1 - piece.0,
        })
}
