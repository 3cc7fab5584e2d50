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
//! Speed: a string instruction takes whole lines of the target without reading them first, and is a
//! quarter faster with long ranges. But where the target lies a few bytes further in its page than
//! the source in its own (every large allocation of the C library begins 16 bytes behind a page),
//! some processors take each load for one of the bytes just stored, and it is four times slower.
//! Moves through registers aren't: they are used there, and for short ranges.

/// Bytes that are moved in one turn.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Ranges of at least this length are moved by a string instruction.
#[cfg(target_arch = "x86_64")]
const STRING_BYTES_MIN: usize = 4096;

/// From so far ahead of the source, within their pages, the target is out of the way of its loads.
#[cfg(target_arch = "x86_64")]
const STRING_LEAD_MIN: usize = 1024;

/// Bytes of a page, by which processors compare addresses of loads and stores.
#[cfg(target_arch = "x86_64")]
const PAGE_BYTES: usize = 4096;

/// How many of so many bytes are moved through registers, in whole lines; the rest is moved by a
/// string instruction.
#[cfg(target_arch = "x86_64")]
fn bytes_in_lines(source: *const u8, target: *mut u8, len: usize) -> usize {
    let lead = (target as usize).wrapping_sub(source as usize) % PAGE_BYTES;
    if len >= STRING_BYTES_MIN && (lead == 0 || lead >= STRING_LEAD_MIN) {
        return 0;
    }
    len - len % LINE_BYTES
}

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
        let in_lines = bytes_in_lines(source, target, len);
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
    fn p03_long_ranges_come_whole_however_they_lie_to_each_other() {
        let source: Vec<u8> = (0..20_000u32).map(|index| (index * 7 + 1) as u8).collect();
        for length in [4095, 4096, 4097, 9000] {
            for lead in [0, 1, 16, 64, 1023, 1024, 1025, 2048, 4080, 4095] {
                let mut target = vec![0xee; 20_000];
                let mut expected = target.clone();
                // As far into its page as the source, and by `lead` further.
                let apart = (source.as_ptr() as usize).wrapping_sub(target.as_ptr() as usize);
                let to = apart.wrapping_add(lead) % 4096;
                expected[to..to + length].copy_from_slice(&source[..length]);
                // SAFETY: both ranges lie inside of vectors of this function.
                unsafe { copy(source.as_ptr(), target.as_mut_ptr().add(to), length) };
                assert!(target == expected, "{length} bytes, {lead} ahead");
            }
        }
    }

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
