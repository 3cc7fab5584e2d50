//! Carries out the reads that recoveries ask for: several sets, and several chunks of each, in flight at one time.

use std::collections::VecDeque;

use pmu_core::commit::{ChunkOutcome, ChunkRead, SetRecovery};
use pmu_core::{FeedError, ReadRequest};
use pmu_fabric::Chain;
use pmu_format::CHUNK_BYTES;

use crate::error::{ClientError, Result};
use crate::region::Region;
use crate::sets::{SetInfo, SetSink};
use crate::staging::{Registered, StagingRing};

/// Reads in flight at most.
const READS_MAX: usize = 64;

#[derive(Debug)]
enum What {
    Metadata(ReadRequest),
    Chunk(ChunkRead),
}

impl What {
    fn request(&self) -> &ReadRequest {
        match self {
            Self::Metadata(request) => request,
            Self::Chunk(chunk) => &chunk.request,
        }
    }
}

#[derive(Debug)]
struct Outstanding {
    serial: u64,
    /// Which of the recoveries asked.
    who: usize,
    what: What,
    /// Where in the staging memory it goes.
    offset: usize,
}

/// A read that is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Posted {
    /// The number of its chain.
    pub(crate) serial: u64,
    /// Where in the staging memory it goes.
    offset: usize,
}

/// See the module. Keeps its memory from one run to the next.
#[derive(Debug)]
pub(crate) struct Fetcher {
    ring: StagingRing,
    chain: Chain,
    scratch: Vec<u8>,
    queue: VecDeque<Outstanding>,
    /// Asked for, and not posted yet for want of staging memory.
    held: Option<(usize, What)>,
}

impl Fetcher {
    pub(crate) fn new(region: &mut Region) -> Result<Self> {
        let bytes = region.staging_bytes;
        let registered = Registered::allocate(&mut region.link, bytes)?;
        Ok(Self {
            ring: StagingRing::new(registered, bytes, READS_MAX),
            chain: Chain::with_capacity(1),
            scratch: vec![0; CHUNK_BYTES as usize],
            queue: VecDeque::with_capacity(READS_MAX),
            held: None,
        })
    }

    /// Drives every recovery to its end. The payload of each goes to the sink of the same index.
    pub(crate) fn run<S: SetSink>(
        &mut self,
        region: &mut Region,
        recoveries: &mut [SetRecovery],
        sinks: &mut [S],
    ) -> Result<()> {
        let result = self.drive(region, recoveries, sinks);
        // After an error reads may still be under way: their staging memory stays theirs, their bytes nobody's.
        self.held = None;
        self.queue.clear();
        self.ring.posted(region.link.posted());
        self.ring.release(region.link.succeeded());
        result
    }

    fn drive<S: SetSink>(
        &mut self,
        region: &mut Region,
        recoveries: &mut [SetRecovery],
        sinks: &mut [S],
    ) -> Result<()> {
        loop {
            self.fill(region, recoveries, sinks)?;
            let Some(next) = self.queue.pop_front() else {
                break;
            };
            region
                .link
                .wait_for(next.serial)
                .map_err(|error| region.error(error))?;
            self.take(&next, recoveries, sinks)?;
            self.ring.release(next.serial);
        }
        for (recovery, sink) in recoveries.iter().zip(sinks.iter_mut()) {
            // A set of no bytes has no chunk with which it could have begun.
            if let Some(set) = recovery.recovered().filter(|set| set.payload_bytes == 0) {
                sink.begin(&SetInfo::of(set))
                    .map_err(ClientError::io("hand out the set"))?;
            }
        }
        Ok(())
    }

    /// Reads what a recovery wants to know before the payload: the list of sets, and the candidate's chunk table.
    pub(crate) fn look(&mut self, region: &mut Region, recovery: &mut SetRecovery) -> Result<()> {
        let mut asked = VecDeque::new();
        let mut held = None;
        loop {
            while let Some(request) = held.take().or_else(|| recovery.next_read()) {
                let Some(read) = self.post(region, request)? else {
                    held = Some(request);
                    break;
                };
                asked.push_back((request, read));
            }
            let Some((request, read)) = asked.pop_front() else {
                return Ok(());
            };
            self.wait(region, read)?;
            let length = request.length_bytes as usize;
            if self.scratch.len() < length {
                self.scratch.resize(length, 0);
            }
            let bytes = &mut self.scratch[..length];
            self.ring.registered().get(read.offset, bytes)?;
            self.ring.release(read.serial);
            expected(recovery.feed(request, bytes))?;
        }
    }

    /// Posts one read; none while there is no room.
    pub(crate) fn post(
        &mut self,
        region: &mut Region,
        request: ReadRequest,
    ) -> Result<Option<Posted>> {
        let length = request.length_bytes as usize;
        if length > self.ring.capacity() {
            return Err(too_small());
        }
        let Some(offset) = self.ring.take(length) else {
            return Ok(None);
        };
        let address = region.address(request.offset.get());
        self.chain.clear();
        self.chain
            .read(address, self.ring.registered().slice(offset, length));
        let posted = region.link.post(&self.chain);
        let serial = posted.map_err(|error| region.error(error))?.last;
        self.ring.posted(serial);
        Ok(Some(Posted { serial, offset }))
    }

    /// Blocks until it is there.
    fn wait(&mut self, region: &mut Region, read: Posted) -> Result<()> {
        let done = region.link.wait_for(read.serial);
        done.map_err(|error| region.error(error))
    }

    /// Copies out what has come, and frees its place and that of all before it; gives the CRC-64/NVME of the bytes.
    pub(crate) fn take_out(&mut self, read: Posted, bytes: &mut [u8]) -> Result<u64> {
        let computed = self.ring.registered().get_digested(read.offset, bytes)?;
        self.ring.release(read.serial);
        Ok(computed)
    }

    /// Frees the place of what has come, and that of all before it.
    pub(crate) fn release(&mut self, read: Posted) {
        self.ring.release(read.serial);
    }

    /// Nobody wants what is under way any more.
    pub(crate) fn forget(&mut self, region: &Region) {
        self.ring.posted(region.link.posted());
        self.ring.release(region.link.succeeded());
    }

    /// Posts reads as long as somebody asks and there is room, each recovery in turn.
    fn fill<S: SetSink>(
        &mut self,
        region: &mut Region,
        recoveries: &mut [SetRecovery],
        sinks: &mut [S],
    ) -> Result<()> {
        let mut idle = 0;
        let mut turn = 0;
        while idle < recoveries.len() && self.queue.len() < READS_MAX {
            if self.held.is_none() {
                let who = turn % recoveries.len();
                turn += 1;
                self.held = ask(&mut recoveries[who], &mut sinks[who])?.map(|what| (who, what));
            }
            let Some((_, what)) = &self.held else {
                idle += 1;
                continue;
            };
            idle = 0;
            let request = *what.request();
            let Some(Posted { serial, offset }) = self.post(region, request)? else {
                return Ok(());
            };
            if let Some((who, what)) = self.held.take() {
                self.queue.push_back(Outstanding {
                    serial,
                    who,
                    what,
                    offset,
                });
            }
        }
        Ok(())
    }

    /// Gives what was read to the recovery that asked, and a chunk that holds to the sink.
    fn take<S: SetSink>(
        &mut self,
        read: &Outstanding,
        recoveries: &mut [SetRecovery],
        sinks: &mut [S],
    ) -> Result<()> {
        let recovery = &mut recoveries[read.who];
        let length = read.what.request().length_bytes as usize;
        match &read.what {
            What::Metadata(request) => {
                if self.scratch.len() < length {
                    self.scratch.resize(length, 0);
                }
                let bytes = &mut self.scratch[..length];
                self.ring.registered().get(read.offset, bytes)?;
                expected(recovery.feed(*request, bytes))?;
            }
            What::Chunk(chunk) => {
                let offset = chunk.payload_range.start;
                let sink = &mut sinks[read.who];
                let registered = self.ring.registered();
                let direct = match sink.place(offset, length) {
                    Some(place) => {
                        let computed = registered.get_digested(read.offset, place)?;
                        expected(recovery.verify_checksum(chunk, computed))?;
                        true
                    }
                    None => false,
                };
                if direct {
                    return Ok(());
                }
                let bytes = &mut self.scratch[..length];
                let computed = registered.get_digested(read.offset, bytes)?;
                let outcome = expected(recovery.verify_checksum(chunk, computed))?;
                if matches!(outcome, Some(ChunkOutcome::Taken | ChunkOutcome::Whole)) {
                    sink.chunk(offset, bytes)
                        .map_err(ClientError::io("hand out the set"))?;
                }
            }
        }
        Ok(())
    }
}

fn too_small() -> ClientError {
    ClientError::Invalid("the staging memory is too small for a read".into())
}

/// What a recovery wants to read next. A candidate's first chunk begins a set.
fn ask<S: SetSink>(recovery: &mut SetRecovery, sink: &mut S) -> Result<Option<What>> {
    if let Some(request) = recovery.next_read() {
        return Ok(Some(What::Metadata(request)));
    }
    let Some(chunk) = recovery.next_chunk() else {
        return Ok(None);
    };
    if chunk.index == 0
        && let Some(candidate) = recovery.candidate()
    {
        sink.begin(&SetInfo::of(candidate))
            .map_err(ClientError::io("hand out the set"))?;
    }
    Ok(Some(What::Chunk(chunk)))
}

/// Bytes that nobody waits for any more (their candidate was given up meanwhile) are nothing wrong.
fn expected<T>(fed: Result<T, FeedError>) -> Result<Option<T>> {
    match fed {
        Ok(taken) => Ok(Some(taken)),
        Err(FeedError::Unexpected) => Ok(None),
        Err(error) => Err(ClientError::Protocol(error.to_string())),
    }
}
