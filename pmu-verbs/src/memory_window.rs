//! Memory windows of type 2: rights over a part of a region, given and taken by work requests.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::VerbsError;
use crate::memory_region::MemoryRegion;
use crate::protection_domain::ProtectionDomain;
use crate::sys::inline;
use crate::sys::verbs::*;

/// A type 2 memory window. It is bound and invalidated by work requests of a queue pair: see
/// [`Batch::bind_window`](crate::Batch::bind_window) and
/// [`Batch::local_invalidate`](crate::Batch::local_invalidate).
///
/// A bound window holds on to its region and, inside the device, to the queue pair that it was
/// bound on. Invalidate or drop it before that queue pair is destroyed; a reset of the queue pair
/// doesn't unbind it.
pub struct MemoryWindow {
    raw: NonNull<ibv_mw>,
    /// The key of the last binding that was posted, or the one from allocation.
    rkey: AtomicU32,
    /// Keeps the region registered for as long as the device may need it: a region with a window
    /// can't be deregistered. Taken when a binding is posted and never on the data path.
    bound: Mutex<Option<Arc<MemoryRegion>>>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs' calls that take a window are thread-safe, and only read it.
unsafe impl Send for MemoryWindow {}
// SAFETY: as above; what changes here is behind a mutex or atomic.
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
        let rkey = AtomicU32::new(unsafe { (*raw.as_ptr()).rkey });
        Ok(Self {
            raw,
            rkey,
            bound: Mutex::new(None),
            domain: Arc::clone(domain),
        })
    }

    /// The key of the last binding that was posted. Whether that binding was executed and is still
    /// valid is for the caller to know, from completions.
    pub fn rkey(&self) -> u32 {
        self.rkey.load(Ordering::Acquire)
    }

    /// A key for the next binding: the last one with its low 8 bits counted up. A peer that had
    /// the last key can guess this one; choose the bits with [`MemoryWindow::rkey_with_tag`] where
    /// that matters.
    pub fn next_rkey(&self) -> u32 {
        inline::ibv_inc_rkey(self.rkey())
    }

    /// A key for the next binding with the low 8 bits that the caller chooses. They must differ
    /// from those of the last binding.
    pub fn rkey_with_tag(&self, tag: u8) -> u32 {
        (self.rkey() & !0xff) | u32::from(tag)
    }

    /// The domain that it belongs to.
    pub fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    pub(crate) fn raw(&self) -> *mut ibv_mw {
        self.raw.as_ptr()
    }

    /// Notes that a binding was posted, and keeps its region.
    pub(crate) fn note_binding(&self, rkey: u32, region: &Arc<MemoryRegion>) {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        self.rkey.store(rkey, Ordering::Release);
        // The region of the previous binding may go: a window can't be bound again before that
        // binding was invalidated.
        *bound = Some(Arc::clone(region));
    }
}

impl fmt::Debug for MemoryWindow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MemoryWindow")
            .finish_non_exhaustive()
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        // SAFETY: the window is live, nobody else has it, and it isn't used again. Its region is
        // let go after this, with the fields.
        let result = unsafe { inline::ibv_dealloc_mw(self.raw()) };
        if result != 0 {
            // The region can't be deregistered while the window is bound to it: keep it, so that
            // its memory is kept.
            let bound = self.bound.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(bound.take());
            crate::leak::count();
        }
    }
}
