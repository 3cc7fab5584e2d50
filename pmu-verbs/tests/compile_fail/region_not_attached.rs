//! Work names memory by elements of attached regions, not by regions.

use std::sync::Arc;

use pmu_verbs::{MemoryRegion, QueuePair, WrFlags};

fn misuse(queue_pair: &mut QueuePair, region: Arc<MemoryRegion>) {
    let mut batch = queue_pair.start();
    let _ = batch.write(1, WrFlags::SIGNALED, 2, 3, &[region]);
}

fn main() {}
