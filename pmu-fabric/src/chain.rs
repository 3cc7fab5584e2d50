//! Chains: what is posted with one doorbell.

use crate::connection::AttachedMemory;
use crate::error::FabricError;

/// A range of local memory that was attached to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalSlice {
    /// The attached memory.
    pub memory: AttachedMemory,
    /// Offset of the first byte in it.
    pub offset: usize,
    /// Number of bytes.
    pub length: usize,
}

/// One one-sided operation. Remote addresses are virtual addresses of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Copies local bytes to the unit.
    Write {
        /// Virtual address of the first byte.
        remote: u64,
        /// What is written.
        local: LocalSlice,
    },
    /// Copies bytes of the unit into local memory.
    Read {
        /// Virtual address of the first byte.
        remote: u64,
        /// Where they go.
        local: LocalSlice,
    },
    /// Makes a range durable.
    Flush {
        /// Virtual address of the first byte.
        remote: u64,
        /// Number of bytes, at least 1.
        length: u64,
    },
    /// Stores 8 bytes in one piece, in little-endian order.
    AtomicWrite {
        /// Virtual address, a multiple of 8.
        remote: u64,
        /// The value.
        value: u64,
    },
}

/// A list of operations, built once and reused: clearing it keeps its memory.
///
/// The grammar is `Read+` or `Write* (Flush | AtomicWrite)*`: what carries bytes comes first, so that a provider can stream it.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    ops: Vec<Op>,
    bytes: u64,
}

impl Chain {
    /// An empty chain with room for `ops` operations.
    pub fn with_capacity(ops: usize) -> Self {
        Self {
            ops: Vec::with_capacity(ops),
            bytes: 0,
        }
    }

    /// The operations in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Bytes that its writes or reads carry.
    pub fn payload_bytes(&self) -> u64 {
        self.bytes
    }

    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Forgets the operations and keeps the memory.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.bytes = 0;
    }

    /// Adds a write. Empty slices add nothing.
    pub fn write(&mut self, remote: u64, local: LocalSlice) -> &mut Self {
        if local.length > 0 {
            self.bytes += local.length as u64;
            self.ops.push(Op::Write { remote, local });
        }
        self
    }

    /// Adds a read. Empty slices add nothing.
    pub fn read(&mut self, remote: u64, local: LocalSlice) -> &mut Self {
        if local.length > 0 {
            self.bytes += local.length as u64;
            self.ops.push(Op::Read { remote, local });
        }
        self
    }

    /// Adds a flush. Empty ranges add nothing.
    pub fn flush(&mut self, remote: u64, length: u64) -> &mut Self {
        if length > 0 {
            self.ops.push(Op::Flush { remote, length });
        }
        self
    }

    /// Adds an atomic write.
    pub fn atomic_write(&mut self, remote: u64, value: u64) -> &mut Self {
        self.ops.push(Op::AtomicWrite { remote, value });
        self
    }

    /// Checks the grammar.
    ///
    /// # Errors
    /// [`FabricError::InvalidChain`] says which operation stands where it may not.
    pub fn validate(&self) -> Result<(), FabricError> {
        let invalid = |reason: &'static str| Err(FabricError::InvalidChain { reason });
        let (mut reads, mut writes, mut tail) = (false, false, false);
        for op in &self.ops {
            match op {
                Op::Read { .. } if writes || tail => {
                    return invalid("a read follows another kind of operation");
                }
                Op::Read { .. } => reads = true,
                _ if reads => return invalid("another kind of operation follows a read"),
                Op::Write { .. } if tail => {
                    return invalid("a write follows a flush or an atomic write");
                }
                Op::Write { .. } => writes = true,
                Op::Flush { .. } => tail = true,
                Op::AtomicWrite { remote, .. } if remote % 8 != 0 => {
                    return invalid("an atomic write's address is not a multiple of 8");
                }
                Op::AtomicWrite { .. } => tail = true,
            }
        }
        if self.ops.is_empty() {
            invalid("the chain is empty")
        } else {
            Ok(())
        }
    }
}
