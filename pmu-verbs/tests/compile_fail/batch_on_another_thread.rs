//! A batch may hold a lock of the provider, so it stays on its thread.

use pmu_verbs::QueuePair;

fn misuse(queue_pair: &'static mut QueuePair) {
    let batch = queue_pair.start();
    std::thread::spawn(move || batch.post());
}

fn main() {}
