//! A batch borrows its queue pair, which can't go while it is open.

use pmu_verbs::QueuePair;

fn misuse(mut queue_pair: QueuePair) {
    let batch = queue_pair.start();
    drop(queue_pair);
    let _ = batch.post();
}

fn main() {}
