//! Work requests of a chain: what they are while a chain is translated, and how each is posted.

use std::sync::Arc;

use pmu_pmem::LocalMemory;
use pmu_verbs::{AttachedRegion, Batch, FlushLevel, FlushType, VerbsError, WrFlags};

use super::message::MESSAGE_BYTES_MAX;
use crate::chain::LocalSlice;

/// Writes that are not longer go into the work request itself, as far as the device allows: a small record with its header.
pub(super) const INLINE_BYTES_MAX: usize = 256;

/// One work request of a chain that is being translated.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    Write {
        key: u32,
        address: u64,
        local: LocalSlice,
    },
    Read {
        key: u32,
        address: u64,
        local: LocalSlice,
    },
    Flush {
        key: u32,
        address: u64,
        length: u32,
    },
    AtomicWrite {
        key: u32,
        address: u64,
        value: u64,
        fence: bool,
    },
    Message {
        slot: usize,
        length: usize,
    },
}

/// Local memory, and its registration.
pub(super) struct Attached {
    pub(super) region: AttachedRegion,
    pub(super) memory: Arc<LocalMemory>,
}

/// What every request of a chain is posted with.
pub(super) struct Posting<'a> {
    pub(super) serial: u64,
    pub(super) memories: &'a [Attached],
    pub(super) inline_max: usize,
    pub(super) message_region: Option<AttachedRegion>,
    /// Whether there is an ATOMIC WRITE; an aligned WRITE of 8 bytes stands in for it otherwise.
    pub(super) atomic_writes: bool,
}

impl Posting<'_> {
    pub(super) fn post(
        &self,
        batch: &mut Batch<'_>,
        flags: WrFlags,
        request: &Request,
    ) -> Result<(), VerbsError> {
        match *request {
            Request::Write {
                key,
                address,
                local,
            } if local.length == 0 => batch.write(self.serial, flags, key, address, &[]),
            Request::Write {
                key,
                address,
                local,
            } => {
                let Attached { region, memory } = &self.memories[local.memory.0 as usize];
                if local.length <= self.inline_max {
                    // The device needn't fetch it, and its registration needn't be looked up.
                    let mut copy = [0; INLINE_BYTES_MAX];
                    let bytes = &mut copy[..local.length];
                    let inside = memory.read_at(local.offset as u64, bytes);
                    inside.map_err(|_| VerbsError::NotAttached)?;
                    return batch.write_inline(self.serial, flags, key, address, bytes);
                }
                let sge = region.sge(local.offset as u64, local.length as u32)?;
                batch.write(self.serial, flags, key, address, &[sge])
            }
            Request::Read {
                key,
                address,
                local,
                ..
            } => {
                let sge = self.memories[local.memory.0 as usize]
                    .region
                    .sge(local.offset as u64, local.length as u32)?;
                batch.read(self.serial, flags, key, address, &[sge])
            }
            Request::Flush {
                key,
                address,
                length,
            } => batch.flush(
                self.serial,
                flags,
                key,
                address,
                length,
                FlushType::PERSISTENT,
                FlushLevel::Range,
            ),
            Request::AtomicWrite {
                key,
                address,
                value,
                fence,
            } => {
                let flags = if fence { flags | WrFlags::FENCE } else { flags };
                if self.atomic_writes {
                    batch.atomic_write(self.serial, flags, key, address, value.to_le())
                } else {
                    batch.write_inline(self.serial, flags, key, address, &value.to_le_bytes())
                }
            }
            Request::Message { slot, length } => {
                let region = self.message_region.ok_or(VerbsError::NotAttached)?;
                let sge = region.sge((slot * MESSAGE_BYTES_MAX) as u64, length as u32)?;
                batch.send(self.serial, flags, &[sge])
            }
        }
    }
}
