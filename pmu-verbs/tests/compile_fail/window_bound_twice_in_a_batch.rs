//! A window is in one request of a batch at most.

use pmu_verbs::{MemoryWindow, QueuePair, WindowBinding, WrFlags};

fn misuse(queue_pair: &mut QueuePair, window: &mut MemoryWindow, binding: WindowBinding<'static>) {
    let mut batch = queue_pair.start();
    let _ = batch.bind_window(1, WrFlags::SIGNALED, window, 1, &binding);
    let _ = batch.local_invalidate(2, WrFlags::SIGNALED, window);
    let _ = batch.post();
}

fn main() {}
