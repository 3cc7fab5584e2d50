//! The mapping below an arena, and copies out of its pages.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};

use crate::error::{ArenaError, Result};

/// Arenas begin at a multiple of this: a huge page.
pub(crate) const ALIGN_BYTES: usize = 2 << 20;

/// Bytes of a page of this machine.
pub(crate) fn page_bytes() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(4096)
}

/// A range of private anonymous memory. What is mapped here has a control page before its start,
/// which belongs to no image.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
    page_bytes: usize,
    /// What is unmapped in the end; none for a mapping of the program's.
    mapped: Option<(NonNull<u8>, usize)>,
}

// SAFETY: the memory belongs to the process, not to a thread.
unsafe impl Send for Memory {}
// SAFETY: this type reads the bytes where the callers of `copy_pages` promise that nobody writes
// them, and changes them where they promise to be alone.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes, zeroed, with a control page before them.
    pub(crate) fn map(len: usize, address: Option<usize>) -> Result<Self> {
        let page_bytes = page_bytes();
        let refuse = |source: nix::Error| ArenaError::NoMemory {
            len_bytes: len,
            address,
            source: source.into(),
        };
        let slack = if address.is_some() { 0 } else { ALIGN_BYTES };
        let total = len
            .checked_add(slack + page_bytes)
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| refuse(nix::Error::EINVAL))?;
        let wanted = address
            .map(|at| {
                at.checked_sub(page_bytes)
                    .and_then(NonZeroUsize::new)
                    .ok_or_else(|| refuse(nix::Error::EINVAL))
            })
            .transpose()?;
        let mut flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        flags.set(MapFlags::MAP_FIXED_NOREPLACE, address.is_some());
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping, and without it the kernel chooses
        // addresses that nothing uses.
        let found =
            unsafe { mman::mmap_anonymous(wanted, total, rights, flags) }.map_err(refuse)?;
        Ok(Self::within(found.cast(), total.get(), len, page_bytes))
    }

    /// The aligned part of a new mapping, with a control page before it; the rest is given back.
    fn within(found: NonNull<u8>, total: usize, len: usize, page_bytes: usize) -> Self {
        let first = found.as_ptr().addr();
        let skip = (first + page_bytes).next_multiple_of(ALIGN_BYTES) - page_bytes - first;
        let mapped_len = page_bytes + len;
        // SAFETY: `skip` is less than ALIGN_BYTES, which the mapping is longer than `mapped_len`
        // where the address was the kernel's choice; where it was asked for it is aligned, and
        // `skip` is 0.
        let mapped = unsafe { found.add(skip) };
        for (offset, extra) in [(0, skip), (skip + mapped_len, total - skip - mapped_len)] {
            if extra > 0 {
                // SAFETY: a part of our own mapping, page-aligned, that nobody knows of.
                let _ = unsafe { mman::munmap(found.add(offset).cast(), extra) };
            }
        }
        Self {
            // SAFETY: the control page lies inside of the mapping.
            start: unsafe { mapped.add(page_bytes) },
            len,
            page_bytes,
            mapped: Some((mapped, mapped_len)),
        }
    }

    /// Takes a mapping of the program's, which stays the program's.
    pub(crate) fn adopt(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            page_bytes: page_bytes(),
            mapped: None,
        }
    }

    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    pub(crate) const fn pages(&self) -> usize {
        self.len / self.page_bytes
    }

    /// The control page, where this type has mapped the memory.
    pub(crate) fn control(&self) -> Option<NonNull<u8>> {
        self.mapped.map(|(control, _)| control)
    }

    /// The addresses of a range of pages.
    pub(crate) fn addresses(&self, pages: &Range<usize>) -> Range<u64> {
        let start = self.start.as_ptr().addr();
        let at = |page: usize| (start + page * self.page_bytes) as u64;
        at(pages.start)..at(pages.end)
    }

    /// The page in which an address lies.
    pub(crate) fn page_of(&self, address: u64) -> usize {
        (address as usize).wrapping_sub(self.start.as_ptr().addr()) / self.page_bytes
    }

    /// Gives the kernel advice on the whole memory.
    pub(crate) fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: the range is mapped while `self` lives, and the kinds of advice that this crate
        // gives (huge pages, populate) leave the contents alone.
        unsafe { mman::madvise(self.start.cast(), self.len, advice) }
    }

    /// Copies whole pages from `first` on into `target`.
    ///
    /// # Safety
    /// Until it returns nobody writes the pages: they are write-protected and stay so, or the
    /// caller owns them.
    pub(crate) unsafe fn copy_pages(&self, first: usize, target: &mut [u8]) {
        let offset = first * self.page_bytes;
        assert!(offset + target.len() <= self.len, "pages of this memory");
        // SAFETY: inside the mapping, as just checked, and unchanged, as the caller promises; the
        // target is a slice of somewhere else, as no reference into the mapping is ours.
        unsafe {
            let source = self.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(source, target.as_mut_ptr(), target.len());
        }
    }

    /// The bytes, for whoever owns the memory alone.
    ///
    /// # Safety
    /// No other pointer or reference is used while the slice lives.
    pub(crate) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped for reading and writing, initialised (zeroes at first), and the caller's
        // alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((start, len)) = self.mapped {
            // SAFETY: our own mapping; all that reach into it borrow the arena, or hold this value.
            let _ = unsafe { mman::munmap(start.cast(), len) };
        }
    }
}
