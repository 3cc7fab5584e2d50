//! The one place where memory of `pmu-pmem` is registered with a device of `pmu-verbs`.

use std::ptr::NonNull;
use std::sync::Arc;

use pmu_pmem::{LocalMemory, PoolMemory};
use pmu_verbs::RegisteredMemory;

pub(super) struct Local(pub(super) Arc<LocalMemory>);
pub(super) struct Pool(pub(super) Arc<PoolMemory>);

fn base_of(start: *mut u8) -> NonNull<u8> {
    // A mapping never starts at address 0; the fallback is for the types alone.
    NonNull::new(start).unwrap_or(NonNull::dangling())
}

// SAFETY: `LocalMemory` stays mapped, at one address, as long as the `Arc` lives, and hands out plain references for `&mut self` only,
// which nobody can have while this value holds a clone of the `Arc`.
unsafe impl RegisteredMemory for Local {
    fn base(&self) -> NonNull<u8> {
        base_of(self.0.as_ptr())
    }
    fn length(&self) -> usize {
        self.0.len() as usize
    }
}

// SAFETY: `PoolMemory` stays mapped, at one address, as long as the `Arc` lives, and never hands out references into it.
unsafe impl RegisteredMemory for Pool {
    fn base(&self) -> NonNull<u8> {
        base_of(self.0.as_ptr())
    }
    fn length(&self) -> usize {
        self.0.len() as usize
    }
}
