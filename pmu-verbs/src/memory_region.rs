//! Memory that a device may reach.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{VerbsError, last_errno};
use crate::protection_domain::ProtectionDomain;
use crate::sys::inline;
use crate::sys::verbs::*;

bitflags::bitflags! {
    /// What a device may do to a memory region or through a memory window.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// The device writes for this process: receive, and the target of a READ. Required with
        /// [`Access::REMOTE_WRITE`] and [`Access::REMOTE_ATOMIC`] on a region.
        const LOCAL_WRITE = IBV_ACCESS_LOCAL_WRITE;
        /// A peer that has the rkey may WRITE, and ATOMIC WRITE.
        const REMOTE_WRITE = IBV_ACCESS_REMOTE_WRITE;
        /// A peer that has the rkey may READ.
        const REMOTE_READ = IBV_ACCESS_REMOTE_READ;
        /// A peer that has the rkey may compare-and-swap and fetch-and-add.
        const REMOTE_ATOMIC = IBV_ACCESS_REMOTE_ATOMIC;
        /// Memory windows may be bound to the region.
        const WINDOW_BIND = IBV_ACCESS_MW_BIND;
        /// Pages are faulted in on demand instead of pinned (where the device can).
        const ON_DEMAND = IBV_ACCESS_ON_DEMAND;
        /// The memory is of huge pages, which saves the device's translation entries.
        const HUGE_PAGES = IBV_ACCESS_HUGETLB;
        /// A peer that has the rkey may FLUSH to global visibility.
        const FLUSH_GLOBAL = IBV_ACCESS_FLUSH_GLOBAL;
        /// A peer that has the rkey may FLUSH to persistence.
        const FLUSH_PERSISTENT = IBV_ACCESS_FLUSH_PERSISTENT;
    }
}

/// Memory that may be registered with a device.
///
/// # Safety
/// For as long as the value lives:
/// - `base()` and `length()` give the same answers, and all `length()` bytes at `base()` stay
///   mapped and readable (writable too where a region is registered with
///   [`Access::LOCAL_WRITE`]); nobody unmaps, remaps or truncates them;
/// - no Rust reference (`&` or `&mut`) to any of these bytes exists while a region over them is
///   registered: the device and the peers read and write them at any time. Use raw pointers,
///   volatile copies or atomics.
pub unsafe trait RegisteredMemory: Send + Sync {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;
    /// How many bytes.
    fn length(&self) -> usize;
}

/// A registered range of memory. It keeps the memory and the protection domain alive; when it is
/// dropped, the device loses the range before the memory is let go.
pub struct MemoryRegion {
    raw: NonNull<ibv_mr>,
    start: u64,
    length: u64,
    access: Access,
    domain: Arc<ProtectionDomain>,
    memory: Arc<dyn RegisteredMemory>,
}

// SAFETY: the region is immutable after registration; deregistration happens once, at the end.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Registers `length` bytes of `memory` from `offset`, for `access`.
    ///
    /// Peers and work requests name the bytes by addresses that start at `iova`, or at the bytes'
    /// own address where `iova` is `None`. `iova` must have the same offset within a page as the
    /// bytes.
    ///
    /// Pins the pages (unless on demand), so it blocks for about as long as touching them all.
    ///
    /// # Errors
    /// [`VerbsError::OutOfBounds`] where the range is empty or not inside `memory`. EINVAL for
    /// [`Access::FLUSH_PERSISTENT`] on memory that isn't persistent memory or on a device without
    /// FLUSH. ENOMEM or EPERM over the limit of locked memory. EOPNOTSUPP or EFAULT for memory
    /// that can't be pinned (a file on a file system, fsdax too).
    pub fn register(
        domain: &Arc<ProtectionDomain>,
        memory: Arc<dyn RegisteredMemory>,
        offset: usize,
        length: usize,
        iova: Option<u64>,
        access: Access,
    ) -> Result<Arc<Self>, VerbsError> {
        let available = memory.length();
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= available);
        if !inside || length == 0 {
            return Err(out_of_bounds(
                offset as u64,
                length as u64,
                available as u64,
            ));
        }
        if !Access::all().contains(access) {
            return Err(VerbsError::Invalid("unknown bits in the access flags"));
        }
        // SAFETY: `offset` is inside the memory, as just checked.
        let address = unsafe { memory.base().add(offset) };
        let start = iova.unwrap_or(address.as_ptr().addr() as u64);
        if start.checked_add(length as u64).is_none() {
            return Err(VerbsError::Invalid("the iova range wraps around"));
        }
        let library = &domain.context().verbs().ibv;
        // SAFETY: the domain is live and is kept so by the region. `RegisteredMemory` promises
        // stable mapped bytes without references to them for as long as `memory` lives, which is
        // at least until the region is deregistered: see `drop`.
        let raw = unsafe {
            inline::register(
                library,
                domain.raw(),
                address.as_ptr(),
                length,
                iova,
                access.bits(),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| refusal(iova.is_some(), access))?;
        let domain = Arc::clone(domain);
        Ok(Arc::new(Self {
            raw,
            start,
            length: length as u64,
            access,
            domain,
            memory,
        }))
    }

    /// The key by which this process's work requests name the region.
    pub fn lkey(&self) -> u32 {
        // SAFETY: the region is live, and its keys never change.
        unsafe { (*self.raw()).lkey }
    }

    /// The key by which a peer names the region.
    pub fn rkey(&self) -> u32 {
        // SAFETY: the region is live, and its keys never change.
        unsafe { (*self.raw()).rkey }
    }

    /// The address by which the first byte is named: the iova, or the byte's own address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// How many bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What it was registered for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The domain that it belongs to.
    pub fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// The memory that it covers a part of.
    pub fn memory(&self) -> &Arc<dyn RegisteredMemory> {
        &self.memory
    }

    pub(crate) fn raw(&self) -> *mut ibv_mr {
        self.raw.as_ptr()
    }
}

fn refusal(with_iova: bool, access: Access) -> VerbsError {
    let verb = if with_iova {
        "ibv_reg_mr_iova"
    } else {
        "ibv_reg_mr"
    };
    let errno = last_errno();
    VerbsError::call(verb, errno).with_hint(hint(errno, access))
}

const fn hint(errno: i32, access: Access) -> &'static str {
    match errno {
        libc::EINVAL if access.contains(Access::FLUSH_PERSISTENT) => {
            "FLUSH_PERSISTENT needs a device with FLUSH and persistent memory (a devdax device); \
             this memory isn't that"
        }
        libc::EINVAL if access.contains(Access::FLUSH_GLOBAL) => "the device has no FLUSH",
        libc::EINVAL
            if access.intersects(Access::REMOTE_WRITE.union(Access::REMOTE_ATOMIC))
                && !access.contains(Access::LOCAL_WRITE) =>
        {
            "REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE too"
        }
        libc::EPERM => "the limit of locked memory (ulimit -l, LimitMEMLOCK=) is reached",
        libc::EOPNOTSUPP | libc::EFAULT => {
            "this memory can't be pinned: use devdax, hugetlbfs, memfd or anonymous memory, not \
             a file on a file system"
        }
        _ => "",
    }
}

pub(crate) const fn out_of_bounds(offset: u64, length: u64, available: u64) -> VerbsError {
    VerbsError::OutOfBounds {
        offset,
        length,
        available,
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys stay out of logs: who knows an rkey may use it.
        formatter
            .debug_struct("MemoryRegion")
            .field("start", &format_args!("{:#x}", self.start))
            .field("length", &self.length)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        let library = &self.domain.context().verbs().ibv;
        // SAFETY: the region is live, nobody else has it, and it isn't used again. When the call
        // succeeds, the device has no way to the memory any more, whatever work is in flight:
        // that work completes with a protection error.
        let result = unsafe { library.ibv_dereg_mr(self.raw()) };
        if result != 0 {
            // The device may still reach the memory, so it must stay mapped for good.
            std::mem::forget(Arc::clone(&self.memory));
            crate::leak::count();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_bits_are_those_of_the_header() {
        assert_eq!(Access::LOCAL_WRITE.bits(), 1);
        assert_eq!(Access::WINDOW_BIND.bits(), 16);
        assert_eq!(Access::FLUSH_GLOBAL.bits(), 256);
        assert_eq!(Access::FLUSH_PERSISTENT.bits(), 512);
        assert!(!Access::all().contains(Access::from_bits_retain(IBV_ACCESS_ZERO_BASED)));
    }

    #[test]
    fn refusals_are_explained() {
        let persistent = Access::LOCAL_WRITE | Access::FLUSH_PERSISTENT;
        assert!(hint(libc::EINVAL, persistent).contains("persistent memory"));
        assert!(hint(libc::EINVAL, Access::REMOTE_WRITE).contains("LOCAL_WRITE"));
        assert!(hint(libc::EPERM, Access::LOCAL_WRITE).contains("ulimit"));
        assert!(hint(libc::EOPNOTSUPP, Access::LOCAL_WRITE).contains("pinned"));
        assert_eq!(hint(libc::EIO, Access::LOCAL_WRITE), "");
    }
}
