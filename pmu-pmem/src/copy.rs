//! Copies from and to memory that others change at the same time.
//!
//! A NIC, another process or another thread may write the bytes while we read them. For ordinary
//! Rust loads (and `ptr::copy`) that is a data race, which is undefined behaviour, whatever is done
//! with the bytes later. So the copies are inline assembly: the compiler
//! knows nothing about their memory but that it may have changed, and what the processor does with
//! a race is defined: each byte comes out as some value that was stored there. Nobody may expect
//! more than bytes: a word that is to be seen whole goes through the 8-byte atomics instead.
//!
//! Order: an x86 string instruction may store its own bytes in any order, but a later store is seen
//! after all of them (Intel SDM volume 3, 11.2.4 "Fast-String Operation and Out-of-Order Stores").
//! So data written with [`copy`] and then published with a releasing store of a word is seen in
//! that order.
//!
//! Speed: where the target lies a few bytes further in its page than the source in its own (every
//! large allocation of the C library begins 16 bytes behind a page), a string instruction takes each
//! load for one of the bytes just stored, and is four times slower. Moves through registers aren't.

/// Bytes that are moved in one turn.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Copies `len` bytes. The ranges may overlap; then any mixture of old and new bytes may come out.
///
/// # Safety
/// `source` is valid for reading and `target` for writing `len` bytes (mapped, with those rights)
/// for the length of the call. No Rust reference to any byte of a range that is being written
/// exists. Concurrent change of the bytes is allowed.
pub(crate) unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller promises both ranges, and the lines are a part of them. The direction flag
    // is clear by the calling convention.
    unsafe {
        let (mut source, mut target) = (source, target);
        let in_lines = len - len % LINE_BYTES;
        if in_lines > 0 {
            std::arch::asm!(
                "2:",
                "movups {first}, [{source}]",
                "movups {second}, [{source} + 16]",
                "movups {third}, [{source} + 32]",
                "movups {fourth}, [{source} + 48]",
                "movups [{target}], {first}",
                "movups [{target} + 16], {second}",
                "movups [{target} + 32], {third}",
                "movups [{target} + 48], {fourth}",
                "add {source}, 64",
                "add {target}, 64",
                "sub {left}, 64",
                "jnz 2b",
                source = inout(reg) source,
                target = inout(reg) target,
                left = inout(reg) in_lines => _,
                first = out(xmm_reg) _,
                second = out(xmm_reg) _,
                third = out(xmm_reg) _,
                fourth = out(xmm_reg) _,
                options(nostack),
            );
        }
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len - in_lines => _,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p03_every_length_at_every_offset_and_nothing_beside_it() {
        let source: Vec<u8> = (0..512u32).map(|index| (index * 7 + 1) as u8).collect();
        for length in (0..=200).chain([256, 320, 333]) {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (16, 3), (63, 64), (5, 77)] {
                let mut target = vec![0xee; 512];
                let mut expected = target.clone();
                expected[to..to + length].copy_from_slice(&source[from..from + length]);
                // SAFETY: both ranges lie inside of vectors of this function.
                unsafe {
                    copy(
                        source.as_ptr().add(from),
                        target.as_mut_ptr().add(to),
                        length,
                    );
                };
                assert!(target == expected, "{length} from {from} to {to}");
            }
        }
    }
}
