//! Gives the same bytes to all members of a mirror: copied into memory that all their connections share, and taken into a checksum, once.

use std::sync::Arc;

use pmu_format::{CHUNK_BYTES, Digest};
use pmu_pmem::{LocalMemory, LocalOptions};

use crate::error::{ClientError, Result};
use crate::sets::primary::SetPrimary;
use crate::sets::primary::shared::SharedChunk;

/// As much as a member's own staging memory: chunks are used again in the order in which they were filled.
const SHARED_BYTES: u64 = 4 << 20;
/// Bytes that are taken into the checksum and copied while they are in the nearest cache.
const STEP_BYTES: usize = 16 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Copies {
    memory: Arc<LocalMemory>,
    /// Bytes that were filled in so far; only grows.
    filled: u64,
}

impl Copies {
    pub(super) fn new() -> Result<Self> {
        let options = LocalOptions {
            huge_pages: true,
            prefault: true,
        };
        let memory = LocalMemory::allocate_with(SHARED_BYTES as usize, options)
            .map_err(|error| ClientError::Fabric(error.into()))?;
        Ok(Self {
            memory: Arc::new(memory),
            filled: 0,
        })
    }

    /// Gets a member ready, once.
    pub(super) fn attach(&self, member: &mut SetPrimary) -> Result<()> {
        member.attach_shared(&self.memory)
    }

    /// Everything before this must have left the shared memory before the next chunk is filled in.
    pub(super) const fn room_behind(&self) -> u64 {
        (self.filled + CHUNK_BYTES).saturating_sub(SHARED_BYTES)
    }

    /// Fills a whole chunk in. All members that work have made room.
    pub(super) fn fill(&mut self, chunk: &[u8]) -> Result<SharedChunk> {
        let offset = self.filled % SHARED_BYTES;
        let mut digest = Digest::new();
        let mut at = offset;
        for step in chunk.chunks(STEP_BYTES) {
            digest.update(step);
            self.memory
                .write_at(at, step)
                .map_err(|error| ClientError::Invalid(error.to_string()))?;
            at += step.len() as u64;
        }
        let position = self.filled;
        self.filled += CHUNK_BYTES;
        Ok(SharedChunk {
            position,
            offset: offset as usize,
            checksum: digest.finish(),
        })
    }
}
