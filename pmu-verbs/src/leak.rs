//! A count of what could not be given back.

use std::sync::atomic::{AtomicU64, Ordering};

static LEAKED: AtomicU64 = AtomicU64::new(0);

pub(crate) fn count() {
    LEAKED.fetch_add(1, Ordering::Relaxed);
}

/// How many objects the library refused to destroy since the process started. Each still holds its
/// device resources; a memory region among them also keeps its memory mapped, because the device
/// may still reach it. Anything but 0 is worth a line in the log.
pub fn leaked_objects() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}
