//! Protection domains: what may be used together.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::device::Context;
use crate::error::{VerbsError, check};
use crate::sys::verbs::ibv_pd;

/// A protection domain. Regions, windows and queue pairs of one domain may name each other.
#[derive(Debug)]
pub struct ProtectionDomain {
    raw: NonNull<ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: libibverbs' calls on a protection domain are thread-safe; nothing here is thread-bound.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above; a shared domain is only passed to thread-safe calls.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// Allocates a domain on a device.
    ///
    /// # Errors
    /// What the device said, ENOMEM where it has no more.
    pub fn allocate(context: &Arc<Context>) -> Result<Arc<Self>, VerbsError> {
        // SAFETY: `context` is live, and the new domain keeps it so.
        let raw = unsafe { context.verbs().ibv.ibv_alloc_pd(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_pd"))?;
        Ok(Arc::new(Self {
            raw,
            context: Arc::clone(context),
        }))
    }

    /// The device that the domain is on.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn raw(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: everything made from the domain holds an `Arc` of it, so nothing is left; the
        // pointer isn't used again.
        let result = unsafe { self.context.verbs().ibv.ibv_dealloc_pd(self.raw()) };
        if check("ibv_dealloc_pd", result).is_err() {
            crate::leak::count();
        }
    }
}
