//! A bounded ring of registered memory through which bytes pass on their way to a unit.

use std::collections::VecDeque;
use std::sync::Arc;

use pmu_fabric::{AttachedMemory, LocalSlice};
use pmu_format::Digest;
use pmu_pmem::{LocalMemory, LocalOptions};

use crate::error::{ClientError, Result};
use crate::link::Link;

/// How much is copied and digested at a time.
const DIGEST_PIECE_BYTES: usize = 16 << 10;

/// Registered memory that one connection reads from or writes to.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) memory: Arc<LocalMemory>,
    pub(crate) attached: AttachedMemory,
}

impl Registered {
    /// Allocates `bytes`, all of them present, and attaches them.
    pub(crate) fn allocate(link: &mut Link, bytes: usize) -> Result<Self> {
        let options = LocalOptions {
            huge_pages: bytes >= 2 << 20,
            prefault: true,
        };
        let memory = LocalMemory::allocate_with(bytes, options)
            .map_err(|error| ClientError::Fabric(error.into()))?;
        let memory = Arc::new(memory);
        let attached = link
            .attach(Arc::clone(&memory))
            .map_err(ClientError::Fabric)?;
        Ok(Self { memory, attached })
    }

    pub(crate) fn slice(&self, offset: usize, length: usize) -> LocalSlice {
        LocalSlice {
            memory: self.attached,
            offset,
            length,
        }
    }

    /// Copies bytes in. The caller's arithmetic keeps the range inside.
    pub(crate) fn put(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory.write_at(offset as u64, bytes).map_err(outside)
    }

    /// Copies bytes out, and gives the CRC-64/NVME of what came out: computed piece by piece while they are in the cache.
    pub(crate) fn get_digested(&self, mut offset: usize, bytes: &mut [u8]) -> Result<u64> {
        let mut digest = Digest::new();
        for piece in bytes.chunks_mut(DIGEST_PIECE_BYTES) {
            self.get(offset, piece)?;
            digest.update(piece);
            offset += piece.len();
        }
        Ok(digest.finish())
    }

    /// Copies bytes out.
    pub(crate) fn get(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.memory.read_at(offset as u64, bytes).map_err(outside)
    }
}

fn outside(error: pmu_pmem::AccessError) -> ClientError {
    ClientError::Fabric(pmu_fabric::FabricError::Memory(error.into()))
}

/// First in, first out: what was taken first is posted first, completes first and is free first.
#[derive(Debug)]
pub(crate) struct StagingRing {
    registered: Registered,
    capacity: u64,
    /// Everything before `free` is free again; everything before `taken` was taken. Both only grow.
    taken: u64,
    free: u64,
    /// (number of the chain, end of what it carries).
    in_flight: VecDeque<(u64, u64)>,
}

impl StagingRing {
    pub(crate) fn new(registered: Registered, capacity: usize, chains_max: usize) -> Self {
        Self {
            registered,
            capacity: capacity as u64,
            taken: 0,
            free: 0,
            in_flight: VecDeque::with_capacity(chains_max + 1),
        }
    }

    pub(crate) fn registered(&self) -> &Registered {
        &self.registered
    }

    /// How many bytes one could ever take at a time.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Takes what is free and contiguous here and now, `most` bytes at most: (offset, length). Length 0 means that nothing is free.
    pub(crate) fn take_some(&mut self, most: usize) -> (usize, usize) {
        let at = self.taken % self.capacity;
        let free = self.capacity - (self.taken - self.free);
        let length = (self.capacity - at).min(free).min(most as u64);
        self.taken += length;
        (at as usize, length as usize)
    }

    /// Takes a contiguous range; its offset, or none while there is no room. Where all is free, there is room for the whole capacity.
    pub(crate) fn take(&mut self, length: usize) -> Option<usize> {
        if self.taken == self.free {
            self.taken = self.taken.next_multiple_of(self.capacity);
            self.free = self.taken;
        }
        let at = self.taken % self.capacity;
        let length = length as u64;
        let skipped = if at + length > self.capacity {
            self.capacity - at
        } else {
            0
        };
        if self.taken - self.free + skipped + length > self.capacity {
            return None;
        }
        let offset = (at + skipped) % self.capacity;
        self.taken += skipped + length;
        Some(offset as usize)
    }

    /// Everything taken and not yet in flight goes with the chain of this number.
    pub(crate) fn posted(&mut self, serial: u64) {
        match self.in_flight.back_mut() {
            Some(last) if last.0 == serial => last.1 = self.taken,
            _ => self.in_flight.push_back((serial, self.taken)),
        }
    }

    /// Frees what chains up to this number carried.
    pub(crate) fn release(&mut self, succeeded: u64) {
        while let Some(&(serial, end)) = self.in_flight.front() {
            if serial > succeeded {
                return;
            }
            self.free = self.free.max(end);
            self.in_flight.pop_front();
        }
    }

    /// The chain whose completion frees something.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.in_flight.front().map(|front| front.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_ring_has_room_for_its_whole_capacity() {
        let memory = Arc::new(LocalMemory::allocate(4096).unwrap());
        let registered = Registered {
            memory,
            attached: AttachedMemory::new(0),
        };
        let mut ring = StagingRing::new(registered, 4096, 4);
        assert_eq!(ring.take(8), Some(0));
        assert_eq!(ring.take(4096), None, "8 bytes are on their way");
        ring.posted(1);
        ring.release(1);
        assert_eq!(ring.take(4096), Some(0));
        ring.posted(2);
        assert_eq!(ring.take(1), None);
        ring.release(2);
        assert_eq!(ring.take_some(5000), (0, 4096));
    }
}
