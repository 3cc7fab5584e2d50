//! Memory of the program that is registered with a connection, so that sets are written from it without a copy.

use std::ops::Range;
use std::sync::Arc;

use pmu_fabric::AttachedMemory;
use pmu_pmem::LocalMemory;

use crate::error::{ClientError, Result};

/// Memory from which a [`crate::SetPrimary`] writes sets with no copy in between. Keep the program's state in it.
///
/// Others (threads, devices) may hold the memory too and change it at any time. Bytes that change during a commit make a set whose
/// checksums don't hold: recovery will say so and take an older one. So stop the writers for the time of the call.
#[derive(Debug, Clone)]
pub struct RegisteredBuffer {
    memory: Arc<LocalMemory>,
    attached: AttachedMemory,
    owner: u64,
}

impl RegisteredBuffer {
    pub(super) fn new(memory: Arc<LocalMemory>, attached: AttachedMemory, owner: u64) -> Self {
        Self {
            memory,
            attached,
            owner,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len() as usize
    }

    /// True if it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// The memory itself.
    #[must_use]
    pub fn memory(&self) -> &Arc<LocalMemory> {
        &self.memory
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a range outside.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory
            .write_at(offset as u64, bytes)
            .map_err(|error| ClientError::Invalid(error.to_string()))
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a range outside.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.memory
            .read_at(offset as u64, bytes)
            .map_err(|error| ClientError::Invalid(error.to_string()))
    }

    /// A part of it, to be committed.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a range outside.
    pub fn slice(&self, range: Range<usize>) -> Result<RegisteredSlice<'_>> {
        if range.start > range.end || range.end > self.len() {
            let length = self.len();
            return Err(ClientError::Invalid(format!(
                "range {range:?} of a buffer of {length} bytes"
            )));
        }
        Ok(RegisteredSlice {
            buffer: self,
            offset: range.start,
            length: range.end - range.start,
        })
    }

    /// All of it.
    #[must_use]
    pub fn whole(&self) -> RegisteredSlice<'_> {
        RegisteredSlice {
            buffer: self,
            offset: 0,
            length: self.len(),
        }
    }
}

/// A part of a [`RegisteredBuffer`].
#[derive(Debug, Clone, Copy)]
pub struct RegisteredSlice<'a> {
    buffer: &'a RegisteredBuffer,
    pub(super) offset: usize,
    pub(super) length: usize,
}

impl RegisteredSlice<'_> {
    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// True if it holds no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn memory(&self) -> &LocalMemory {
        &self.buffer.memory
    }

    pub(super) fn attached(&self) -> AttachedMemory {
        self.buffer.attached
    }

    pub(super) fn owner(&self) -> u64 {
        self.buffer.owner
    }
}
