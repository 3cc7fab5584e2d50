//! Writing cache lines back to persistent memory, with the best instruction that the processor has.
//!
//! Caches that survive a power cut (eADR) are not assumed: lines are always written back.

use std::sync::OnceLock;

/// Bytes of a cache line; x86 has had no other since 2000.
pub(crate) const CACHE_LINE_BYTES: usize = 64;

/// How a cache line is written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteBack {
    /// `clwb`: the line may stay in the cache. CPUID leaf 7, EBX bit 24.
    Clwb,
    /// `clflushopt`: the line leaves the cache. CPUID leaf 7, EBX bit 23.
    ClflushOpt,
    /// `clflush`: likewise, one after the other; some 30 times slower.
    Clflush,
}

impl WriteBack {
    /// The best instruction of this processor; none where this program knows none (not x86-64).
    #[must_use]
    pub fn detect() -> Option<Self> {
        static FOUND: OnceLock<Option<WriteBack>> = OnceLock::new();
        *FOUND.get_or_init(Self::ask_processor)
    }

    #[cfg(target_arch = "x86_64")]
    fn ask_processor() -> Option<Self> {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const CLFLUSH_EDX_BIT: u32 = 1 << 19;
        const CLFLUSHOPT_EBX_BIT: u32 = 1 << 23;
        const CLWB_EBX_BIT: u32 = 1 << 24;
        let features = if __cpuid(0).eax >= 7 {
            __cpuid_count(7, 0).ebx
        } else {
            0
        };
        if features & CLWB_EBX_BIT != 0 {
            Some(Self::Clwb)
        } else if features & CLFLUSHOPT_EBX_BIT != 0 {
            Some(Self::ClflushOpt)
        } else if __cpuid(1).edx & CLFLUSH_EDX_BIT != 0 {
            Some(Self::Clflush)
        } else {
            None
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    const fn ask_processor() -> Option<Self> {
        None
    }

    /// The name of the instruction.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clwb => "clwb",
            Self::ClflushOpt => "clflushopt",
            Self::Clflush => "clflush",
        }
    }

    /// Starts the write-back of every line that holds one of `len` bytes at `start`. [`fence`] ends
    /// it.
    ///
    /// # Safety
    /// The bytes are mapped for reading. The processor has this instruction.
    pub(crate) unsafe fn lines(self, start: *const u8, len: usize) {
        if len == 0 {
            return;
        }
        let first = start as usize & !(CACHE_LINE_BYTES - 1);
        let end = start as usize + len;
        // SAFETY: each address lies in a line that holds a mapped byte, and pages are larger than
        // lines, so the line is mapped. The instructions change no value. The processor has them
        // (caller).
        unsafe {
            match self {
                Self::Clwb => each_line(first, end, |line| clwb(line)),
                Self::ClflushOpt => each_line(first, end, |line| clflushopt(line)),
                Self::Clflush => each_line(first, end, |line| clflush(line)),
            }
        }
    }
}

fn each_line(first: usize, end: usize, write_back: impl Fn(usize)) {
    for line in (first..end).step_by(CACHE_LINE_BYTES) {
        write_back(line);
    }
}

/// # Safety
/// The line is mapped; the processor has `clwb`.
#[inline]
unsafe fn clwb(line: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise. Without `nomem`, earlier stores are not moved behind it.
    unsafe {
        std::arch::asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// # Safety
/// The line is mapped; the processor has `clflushopt`.
#[inline]
unsafe fn clflushopt(line: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as for `clwb`.
    unsafe {
        std::arch::asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// # Safety
/// The line is mapped; the processor has `clflush`.
#[inline]
unsafe fn clflush(line: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as for `clwb`.
    unsafe {
        std::arch::asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Waits until every write-back that this thread started has been accepted by the memory
/// controller, whose queues are in the domain that survives a power cut (ADR).
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: sfence is in the base set of x86-64 and touches no memory.
    unsafe {
        std::arch::asm!("sfence", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_back_keeps_the_bytes() {
        let Some(best) = WriteBack::detect() else {
            println!("SKIPPED LOUDLY: this processor has no write-back instruction known here");
            return;
        };
        println!("write-back instruction of this processor: {}", best.name());
        let bytes: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        for (start, len) in [(0, 1), (63, 2), (1, 999), (0, 0), (999, 1)] {
            // SAFETY: inside the vector; detected.
            unsafe { best.lines(bytes[start..].as_ptr(), len) };
            fence();
        }
        assert!(bytes.iter().enumerate().all(|(i, &b)| b == i as u8));
    }

    #[test]
    fn lines_touched_are_those_that_hold_the_bytes() {
        let seen = std::cell::RefCell::new(Vec::new());
        each_line(64, 193, |line| seen.borrow_mut().push(line));
        assert_eq!(*seen.borrow(), [64, 128, 192]);
    }
}
