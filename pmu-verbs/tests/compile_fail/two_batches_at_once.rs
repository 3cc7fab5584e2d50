//! A queue pair has one batch at a time.

use pmu_verbs::QueuePair;

fn misuse(queue_pair: &mut QueuePair) {
    let first = queue_pair.start();
    let second = queue_pair.start();
    let _ = first.post();
    let _ = second.post();
}

fn main() {}
