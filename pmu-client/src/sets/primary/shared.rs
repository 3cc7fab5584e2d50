//! Chunks that lie in memory which the connections of several members share.

use std::sync::Arc;

use pmu_format::CHUNK_BYTES;
use pmu_pmem::LocalMemory;

use super::SetPrimary;
use crate::error::{ClientError, Result};
use crate::outbox::Held;

/// A whole chunk of a share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedChunk {
    /// Its place in the order in which the shared memory is filled, in bytes.
    pub(crate) position: u64,
    /// Where it lies in the shared memory.
    pub(crate) offset: usize,
    /// Its CRC-64/NVME.
    pub(crate) checksum: u64,
}

impl SetPrimary {
    /// Registers the memory with this connection, if that is not done yet.
    pub(crate) fn attach_shared(&mut self, memory: &Arc<LocalMemory>) -> Result<()> {
        if !self.outbox.has_shared() {
            let attached = self.region.link.attach(Arc::clone(memory));
            let attached = attached.map_err(ClientError::Fabric)?;
            self.outbox.share(attached, &self.region.link);
        }
        Ok(())
    }

    /// Blocks until nothing of the shared memory before `position` is on its way.
    pub(crate) fn wait_shared(&mut self, position: u64) -> Result<()> {
        loop {
            match self.outbox.holds_before(&self.region.link, position) {
                None => return Ok(()),
                Some(Held::Gathered) => self.post_payload()?,
                Some(Held::Posted(serial)) => {
                    let done = self.region.link.wait_for(serial);
                    done.map_err(|error| self.region.error(error))?;
                }
            }
        }
    }

    /// Takes a whole chunk of the share; the bytes before it were whole chunks.
    pub(crate) fn feed_shared(&mut self, chunk: &SharedChunk) -> Result<()> {
        self.check_room(CHUNK_BYTES)?;
        if self.outbox.is_full() {
            self.post_payload()?;
        }
        let remote = self.next_address()?;
        self.outbox
            .gather_shared(remote, chunk.offset, CHUNK_BYTES as usize, chunk.position);
        self.set.taken += CHUNK_BYTES;
        self.end_chunk(chunk.checksum)?;
        self.post_if_ready()
    }
}
