//! A region can't be detached between naming it and posting.

use pmu_verbs::{AttachedRegion, QueuePair, WrFlags};

fn misuse(queue_pair: &mut QueuePair, region: AttachedRegion) {
    let mut batch = queue_pair.start();
    let element = region.sge(0, 8).unwrap();
    let _ = batch.write(1, WrFlags::SIGNALED, 2, 3, &[element]);
    let _ = queue_pair.detach(region);
    let _ = batch.post();
}

fn main() {}
