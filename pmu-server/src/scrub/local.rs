//! The unit's own way to a region's bytes: a connection that reads its mapping. The readers of `pmu-client` work over it as over any other.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pmu_client::{Parts, RegionInfo, SessionControl, Timeouts};
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, Connection, Counters,
    ExposedExtent, FabricError, Limits, LocalSlice, Op, PersistenceMethod, Provider,
};
use pmu_format::{Epoch, RegionEntry};
use pmu_pmem::{LocalMemory, PoolMemory};

use super::clock::{Clock, Pace, Stop};

/// Memory that is read into.
const STAGING_BYTES: usize = 2 << 20;
/// How much is read between two looks at the rate and the sign to stop.
const STEP_BYTES: u64 = 256 << 10;

const LIMITS: Limits = Limits {
    chains_in_flight_max: 64,
    ops_per_chain_max: 64,
};

/// What all reads of one scrub share.
pub(crate) struct Reading {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) pace: Mutex<Pace>,
    /// Who is told how many bytes more were read.
    pub(crate) on_read: Box<dyn Fn(u64) + Send + Sync>,
}

/// A region to be read.
pub(crate) struct Source {
    pub(crate) memory: Arc<PoolMemory>,
    pub(crate) extents: Vec<ExposedExtent>,
    pub(crate) entry: RegionEntry,
    pub(crate) unit: Arc<str>,
}

impl Source {
    /// What a reader of `pmu-client` is made of.
    ///
    /// # Errors
    /// [`FabricError::Io`]: no file descriptor is left.
    pub(crate) fn parts(&self, reading: &Arc<Reading>) -> Result<Parts, FabricError> {
        let entry = &self.entry;
        let mut info = RegionInfo::new(
            entry.name.as_str(),
            entry.id,
            entry.mode,
            entry.base,
            entry.length_bytes,
        );
        info.sets_kept = entry.sets_kept;
        info.capacity_bytes = entry.capacity_bytes;
        let nothing = File::open("/dev/null").map_err(|source| FabricError::Io {
            context: "open /dev/null",
            source,
        })?;
        Ok(Parts {
            connection: Box::new(LocalReads {
                memory: Arc::clone(&self.memory),
                extents: self.extents.clone(),
                reading: Arc::clone(reading),
                locals: Vec::new(),
                done: VecDeque::new(),
                dead: None,
                counters: Counters::default(),
                nothing,
            }),
            windows: vec![AccessWindow {
                address: entry.base.get(),
                length: entry.length_bytes,
                access_key: 0,
                flush_key: 0,
            }],
            info,
            epoch: entry.epoch,
            unit: Arc::clone(&self.unit),
            control: Box::new(NoControl),
            timeouts: Timeouts::default(),
            staging_bytes: STAGING_BYTES,
        })
    }
}

/// Nobody was asked for a session: there is none to close.
struct NoControl;

impl SessionControl for NoControl {
    fn epoch_now(&self) -> Option<Epoch> {
        None
    }

    fn close(&self) {}
}

/// Reads, and flushes of what is there. Each is done when `post` returns.
struct LocalReads {
    memory: Arc<PoolMemory>,
    extents: Vec<ExposedExtent>,
    reading: Arc<Reading>,
    locals: Vec<Arc<LocalMemory>>,
    done: VecDeque<Completion>,
    dead: Option<CompletionStatus>,
    counters: Counters,
    nothing: File,
}

impl LocalReads {
    fn read(&self, remote: u64, local: &LocalSlice) -> Result<(), FabricError> {
        let length = local.length as u64;
        let target = self.locals.get(local.memory.index() as usize);
        let target = target.ok_or(FabricError::OutsideWindows {
            address: remote,
            length,
        })?;
        let mut offset = local.offset;
        self.for_each_piece(remote, length, |from, length| {
            self.copy(from, target, offset, length)?;
            offset += length as usize;
            Ok(())
        })
    }

    fn flush(&self, remote: u64, length: u64) -> Result<(), FabricError> {
        self.for_each_piece(remote, length, |from, length| {
            let range = from..from + length;
            self.memory
                .persist(std::slice::from_ref(&range))
                .map_err(FabricError::Memory)
        })
    }

    /// Calls `work` with the place in the pool and the length of each piece of a range.
    fn for_each_piece(
        &self,
        remote: u64,
        length: u64,
        mut work: impl FnMut(u64, u64) -> Result<(), FabricError>,
    ) -> Result<(), FabricError> {
        let (mut address, mut left) = (remote, length);
        while left > 0 {
            let holds = |extent: &&ExposedExtent| {
                (extent.address..extent.address.saturating_add(extent.length)).contains(&address)
            };
            let Some(extent) = self.extents.iter().find(holds) else {
                return Err(FabricError::OutsideWindows {
                    address: remote,
                    length,
                });
            };
            let within = address - extent.address;
            let step = left.min(extent.length - within).min(STEP_BYTES);
            work(extent.pool_offset + within, step)?;
            address += step;
            left -= step;
        }
        Ok(())
    }

    fn copy(
        &self,
        from: u64,
        target: &LocalMemory,
        offset: usize,
        length: u64,
    ) -> Result<(), FabricError> {
        let reading = &self.reading;
        let goes_on = reading
            .pace
            .lock()
            .take(length, reading.clock.as_ref(), &reading.stop);
        if !goes_on {
            return Err(FabricError::Dead(CompletionStatus::ConnectionLost));
        }
        let memory = |error: pmu_pmem::AccessError| FabricError::Memory(error.into());
        // A word that a live primary publishes is read in one piece.
        if length == 8 && from.is_multiple_of(8) {
            let word = self.memory.load_u64_acquire(from).map_err(memory)?;
            let bytes = word.to_le_bytes();
            target.write_at(offset as u64, &bytes).map_err(memory)?;
        } else {
            target
                .copy_from(offset as u64, &self.memory, from, length as usize)
                .map_err(memory)?;
        }
        (reading.on_read)(length);
        Ok(())
    }
}

impl Connection for LocalReads {
    fn provider(&self) -> Provider {
        Provider::SoftUnix
    }

    fn persistence(&self) -> PersistenceMethod {
        PersistenceMethod::Volatile
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn set_windows(&mut self, _: &[AccessWindow]) -> Result<(), FabricError> {
        Ok(())
    }

    fn attach(&mut self, memory: Arc<LocalMemory>) -> Result<AttachedMemory, FabricError> {
        self.locals.push(memory);
        let index = self.locals.len() - 1;
        Ok(AttachedMemory::new(
            u32::try_from(index).unwrap_or(u32::MAX),
        ))
    }

    fn post(&mut self, tag: u64, chain: &Chain) -> Result<(), FabricError> {
        if let Some(status) = self.dead {
            return Err(FabricError::Dead(status));
        }
        if self.done.len() >= LIMITS.chains_in_flight_max {
            return Err(FabricError::QueueFull);
        }
        for op in chain.ops() {
            let done = match op {
                Op::Read { remote, local } => self.read(*remote, local),
                Op::Flush { remote, length } => self.flush(*remote, *length),
                Op::Write { .. } | Op::AtomicWrite { .. } => {
                    let reason = "this connection writes nothing";
                    return Err(FabricError::InvalidChain { reason });
                }
            };
            done.inspect_err(|error| {
                if let FabricError::Dead(status) = error {
                    self.dead = Some(*status);
                }
            })?;
        }
        self.counters.chains += 1;
        self.counters.work_requests += chain.ops().len() as u64;
        self.counters.bytes_read += chain.payload_bytes();
        self.done.push_back(Completion {
            tag,
            status: CompletionStatus::Success,
        });
        Ok(())
    }

    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError> {
        let count = self.done.len().min(completions.len());
        for (slot, completion) in completions.iter_mut().zip(self.done.drain(..count)) {
            *slot = completion;
        }
        self.counters.completions += count as u64;
        Ok(count)
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), FabricError> {
        if self.done.is_empty() {
            self.reading.clock.pause(timeout, &self.reading.stop);
        }
        Ok(())
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        Ok(!self.done.is_empty())
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.nothing.as_fd()
    }

    fn dead(&self) -> Option<CompletionStatus> {
        self.dead
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}
