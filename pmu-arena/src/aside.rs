//! Copies of pages that were written before the reader had taken them.

use nix::sys::mman::MmapAdvise;

use crate::error::Result;
use crate::memory::Memory;

/// A bounded pool of pages. Memory is used as it is first needed, and then kept.
#[derive(Debug)]
pub(crate) struct Aside {
    /// None where the bound is 0.
    memory: Option<Memory>,
    free: Vec<u32>,
    /// Slots from here on were never used.
    fresh: u32,
    slots: u32,
    /// For each page of the arena its slot plus one, or 0.
    slot_of: Vec<u32>,
    page_bytes: usize,
}

impl Aside {
    /// A pool of at most `slots` pages, for an arena of `pages` pages.
    pub(crate) fn new(slots: usize, pages: usize, page_bytes: usize) -> Result<Self> {
        let slots = u32::try_from(slots.min(pages)).unwrap_or(u32::MAX - 1);
        let memory = (slots > 0)
            .then(|| Memory::map(slots as usize * page_bytes, None))
            .transpose()?;
        if let Some(memory) = &memory {
            // A hint.
            let _ = memory.advise(MmapAdvise::MADV_HUGEPAGE);
        }
        Ok(Self {
            memory,
            free: Vec::new(),
            fresh: 0,
            slots,
            slot_of: vec![0; pages],
            page_bytes,
        })
    }

    /// How many more pages fit.
    pub(crate) fn room(&self) -> usize {
        self.free.len() + (self.slots - self.fresh) as usize
    }

    pub(crate) fn has(&self, page: usize) -> bool {
        self.slot_of[page] != 0
    }

    /// Copies a page of `arena` here; false if there is no room.
    ///
    /// # Safety
    /// As for [`Memory::copy_pages`], for this page.
    pub(crate) unsafe fn keep(&mut self, arena: &Memory, page: usize) -> bool {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.fresh < self.slots => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return false,
        };
        let (start, page_bytes) = (slot as usize * self.page_bytes, self.page_bytes);
        let Some(memory) = &mut self.memory else {
            return false;
        };
        // SAFETY: the pool is behind `&mut self`. A reader that copies another slot's bytes
        // without the lock doesn't meet this one's, which is nobody's until `slot_of` names it.
        let target = unsafe {
            let at = memory.start().as_ptr().add(start);
            std::slice::from_raw_parts_mut(at, page_bytes)
        };
        // SAFETY: the caller's promise.
        unsafe { arena.copy_pages(page, target) };
        self.slot_of[page] = slot + 1;
        true
    }

    /// The address of a page's copy, if it has one. The bytes stay until [`Self::forget`].
    pub(crate) fn copy_of(&self, page: usize) -> Option<AsideCopy> {
        let slot = self.slot_of[page].checked_sub(1)? as usize;
        let memory = self.memory.as_ref()?;
        // SAFETY: the slot lies inside the pool.
        let start = unsafe { memory.start().as_ptr().add(slot * self.page_bytes) };
        Some(AsideCopy(start))
    }

    /// Frees a page's copy, if it has one.
    pub(crate) fn forget(&mut self, page: usize) {
        if let Some(slot) = std::mem::take(&mut self.slot_of[page]).checked_sub(1) {
            self.free.push(slot);
        }
    }
}

/// Where a copy lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AsideCopy(*const u8);

impl AsideCopy {
    /// Copies the page out.
    ///
    /// # Safety
    /// The pool lives, and doesn't forget the page before this returns; `target` is a page long.
    pub(crate) unsafe fn read(self, target: &mut [u8]) {
        // SAFETY: the caller's promise: a whole slot, written by nobody while it is in use.
        unsafe {
            std::ptr::copy_nonoverlapping(self.0, target.as_mut_ptr(), target.len());
        }
    }
}
