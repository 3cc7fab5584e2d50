//! Copies from and to memory that others change at the same time.
//!
//! A NIC, another process or another thread may write the bytes while we read them. For ordinary
//! Rust loads (and `ptr::copy`) that is a data race, which is undefined behaviour, whatever is done
//! with the bytes later. So the copies are single instructions of inline assembly: the compiler
//! knows nothing about their memory but that it may have changed, and what the processor does with
//! a race is defined: each byte comes out as some value that was stored there. Nobody may expect
//! more than bytes: a word that is to be seen whole goes through the 8-byte atomics instead.
//!
//! Order: an x86 string instruction may store its own bytes in any order, but a later store is seen
//! after all of them (Intel SDM volume 3, 11.2.4 "Fast-String Operation and Out-of-Order Stores").
//! So data written with [`copy`] and then published with a releasing store of a word is seen in
//! that order.

/// Copies `len` bytes. The ranges may overlap; then any mixture of old and new bytes may come out.
///
/// # Safety
/// `source` is valid for reading and `target` for writing `len` bytes (mapped, with those rights)
/// for the length of the call. No Rust reference to any byte of a range that is being written
/// exists. Concurrent change of the bytes is allowed.
pub(crate) unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller promises both ranges. The direction flag is clear by the calling
    // convention.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for index in 0..len {
        use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
        // SAFETY: inside both ranges; atomic accesses of one byte don't race.
        unsafe {
            let byte = AtomicU8::from_ptr(source.add(index).cast_mut()).load(Relaxed);
            AtomicU8::from_ptr(target.add(index)).store(byte, Relaxed);
        }
    }
}

/// Sets `len` bytes to zero.
///
/// # Safety
/// As for the target of [`copy`].
pub(crate) unsafe fn zero(target: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller promises the range. The direction flag is clear by the calling convention.
    unsafe {
        std::arch::asm!(
            "rep stosb",
            inout("rcx") len => _,
            inout("rdi") target => _,
            in("al") 0u8,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for index in 0..len {
        use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
        // SAFETY: inside the range; atomic accesses of one byte don't race.
        unsafe { AtomicU8::from_ptr(target.add(index)).store(0, Relaxed) };
    }
}
