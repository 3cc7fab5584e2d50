//! Memory of this process alone, that can be registered with a NIC and received into.

use std::num::NonZeroUsize;
use std::ops::Deref;

use nix::sys::mman::MmapAdvise;

use crate::error::{AccessError, PmemError, Result};
use crate::mapping::{Mapping, page_bytes};

/// How local memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LocalOptions {
    /// Ask the kernel for huge pages (a hint).
    pub huge_pages: bool,
    /// Have all pages found now, so that the first use of the memory meets no page fault.
    pub prefault: bool,
}

/// Volatile memory of this process, with the accessors of [`Mapping`].
///
/// **Sharing it with a device.** Behind an `Arc` every thread and device may read and write it
/// through [`Mapping`]'s accessors and [`Mapping::as_ptr`]. Whoever gives the address to a device
/// (or to another thread's posted work) holds a clone of the `Arc` until that is over: then
/// `Arc::get_mut` gives no `&mut`, and plain slices ([`Self::bytes_mut`]) can't exist while a
/// device may write. That is ownership, not a promise.
#[derive(Debug)]
pub struct LocalMemory {
    mapping: Mapping,
}

impl LocalMemory {
    /// Allocates `len` zeroed bytes, beginning at a page. The pages come with their first use.
    ///
    /// # Errors
    /// [`PmemError::NoMemory`]; also for a length of 0.
    pub fn allocate(len: usize) -> Result<Self> {
        Self::allocate_with(len, LocalOptions::default())
    }

    /// As [`Self::allocate`], with options. With `prefault` it blocks until all pages are there.
    ///
    /// # Errors
    /// [`PmemError::NoMemory`]; also for a length of 0.
    pub fn allocate_with(len: usize, options: LocalOptions) -> Result<Self> {
        let refuse = |source: nix::Error| PmemError::NoMemory {
            len_bytes: len as u64,
            source: source.into(),
        };
        let mapped_len = len
            .checked_next_multiple_of(page_bytes())
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| refuse(nix::Error::EINVAL))?;
        let mapping = Mapping::map_anonymous(len, mapped_len).map_err(refuse)?;
        if options.huge_pages {
            // A hint: a kernel without huge pages serves small ones.
            let _ = mapping.advise(MmapAdvise::MADV_HUGEPAGE);
        }
        if options.prefault {
            mapping.populate(0, len as u64)?;
        }
        Ok(Self { mapping })
    }

    /// Takes over bytes of the program: no copy. Their alignment stays what it is.
    #[must_use]
    pub fn adopt(bytes: impl Into<Box<[u8]>>) -> Self {
        Self {
            mapping: Mapping::adopt(bytes.into()),
        }
    }

    /// Gives the bytes back: the very ones where they were adopted, a copy where they were
    /// allocated.
    #[must_use]
    pub fn into_bytes(self) -> Box<[u8]> {
        self.mapping.into_box()
    }

    /// Whether there are no bytes (possible for adopted ones only).
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.mapping.len() == 0
    }

    /// All the bytes, as a plain slice. Possible only while nothing else holds the memory.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.mapping.len();
        // The whole range always lies inside.
        self.mapping.bytes_mut(0, len).unwrap_or_default()
    }

    /// `len` bytes from `offset` on, as a plain slice. Possible only while nothing else holds the
    /// memory.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn bytes_mut(&mut self, offset: u64, len: u64) -> Result<&mut [u8], AccessError> {
        self.mapping.bytes_mut(offset, len)
    }

    /// Calls `change` with `len` bytes from `offset` on, and returns what it returns.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`]; `change` was not called.
    pub fn with_mut<T>(
        &mut self,
        offset: u64,
        len: u64,
        change: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, AccessError> {
        self.mapping.bytes_mut(offset, len).map(change)
    }
}

impl Deref for LocalMemory {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}
