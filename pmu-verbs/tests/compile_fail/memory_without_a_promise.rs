//! Memory becomes registrable by an unsafe promise alone.

use std::ptr::NonNull;

use pmu_verbs::RegisteredMemory;

struct Stack([u8; 64]);

impl RegisteredMemory for Stack {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&self.0).cast()
    }
    fn length(&self) -> usize {
        64
    }
}

fn main() {}
