//! Memory windows of type 2: rights over a part of a region, given and taken by work requests.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::VerbsError;
use crate::memory_region::MemoryRegion;
use crate::protection_domain::ProtectionDomain;
use crate::queue_pair::Inner;
use crate::sys::inline;
use crate::sys::verbs::*;

/// A type 2 memory window. It is bound and invalidated by work requests of a queue pair: see
/// [`Batch::bind_window`](crate::Batch::bind_window) and
/// [`Batch::local_invalidate`](crate::Batch::local_invalidate). Dropping it takes its rights away
/// too, at once and whatever state the queue pair is in.
///
/// A bound window needs its region and its queue pair inside the device: a region can't be
/// deregistered under it, and soft-RoCE stands still for 50 s when a queue pair is destroyed under
/// it. So the window holds both until it is dropped, bound again or [released](Self::release). A
/// queue pair that is dropped before that is broken at once, and destroyed when the window lets go.
/// For the same reason allocate a window *after* the queue pair that it is to be bound on: the
/// kernel tidies up after a dead process newest first.
///
/// The window is as wide as it was bound on real devices. Soft-RoCE (Linux 6.12) checks key, rights
/// and queue pair, but lets the peer reach the whole region: where that matters, register a region
/// for each range.
pub struct MemoryWindow {
    raw: NonNull<ibv_mw>,
    /// The key of the last binding that was posted, or the one from allocation.
    rkey: u32,
    /// Whether a binding was posted and no invalidation after it.
    bound: bool,
    /// What the device may need as long as the window may be bound.
    held: Option<(Arc<MemoryRegion>, Arc<Inner>)>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: the window isn't bound to a thread; whatever changes it takes `&mut`.
unsafe impl Send for MemoryWindow {}
// SAFETY: as above; a shared window is only read.
unsafe impl Sync for MemoryWindow {}

impl MemoryWindow {
    /// Allocates a window, bound to nothing.
    ///
    /// # Errors
    /// EOPNOTSUPP where the device has no windows, ENOMEM where it has no more.
    pub fn allocate_type2(domain: &Arc<ProtectionDomain>) -> Result<Self, VerbsError> {
        // SAFETY: the domain is live, and the window keeps it so.
        let raw = unsafe { inline::ibv_alloc_mw(domain.raw(), IBV_MW_TYPE_2) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_mw"))?;
        // SAFETY: the window is live.
        let rkey = unsafe { (*raw.as_ptr()).rkey };
        Ok(Self {
            raw,
            rkey,
            bound: false,
            held: None,
            domain: Arc::clone(domain),
        })
    }

    /// The key of the last binding that was posted. Whether that binding was executed is for the
    /// caller to know, from its completion.
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// A key for the next binding: the last one with its low 8 bits counted up. A peer that had
    /// the last key can guess this one; choose the bits with [`MemoryWindow::rkey_with_tag`] where
    /// that matters.
    pub fn next_rkey(&self) -> u32 {
        inline::ibv_inc_rkey(self.rkey)
    }

    /// A key for the next binding with the low 8 bits that the caller chooses. They should differ
    /// from those of the last binding.
    pub fn rkey_with_tag(&self, tag: u8) -> u32 {
        (self.rkey & !0xff) | u32::from(tag)
    }

    /// Whether a binding was posted and no invalidation after it.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Lets go of the region and the queue pair of a binding whose invalidation has completed with
    /// success.
    ///
    /// # Errors
    /// [`VerbsError::Invalid`] while the window is bound.
    pub fn release(&mut self) -> Result<(), VerbsError> {
        if self.bound {
            return Err(VerbsError::Invalid("the memory window is bound"));
        }
        self.held = None;
        Ok(())
    }

    /// The domain that it belongs to.
    pub fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    pub(crate) fn raw(&self) -> *mut ibv_mw {
        self.raw.as_ptr()
    }

    /// Notes that a binding is being posted, and holds what it needs. What the binding before
    /// needed may go: that one was invalidated.
    pub(crate) fn note_binding(
        &mut self,
        rkey: u32,
        region: &Arc<MemoryRegion>,
        queue_pair: &Arc<Inner>,
    ) {
        self.rkey = rkey;
        self.bound = true;
        self.held = Some((Arc::clone(region), Arc::clone(queue_pair)));
    }

    /// Notes that an invalidation is being posted.
    pub(crate) fn note_invalidation(&mut self) {
        self.bound = false;
    }
}

impl fmt::Debug for MemoryWindow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MemoryWindow")
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        // SAFETY: the window is live, nobody else has it, and it isn't used again. What it holds
        // is let go after this, with the fields.
        let result = unsafe { inline::ibv_dealloc_mw(self.raw()) };
        if result != 0 {
            // Neither region nor queue pair can be destroyed while the window is bound to them:
            // keep them, and the memory with them.
            std::mem::forget(self.held.take());
            crate::leak::count();
        }
    }
}
