//! A window whose binding isn't posted yet can't go.

use pmu_verbs::{MemoryWindow, QueuePair, WindowBinding, WrFlags};

fn misuse(queue_pair: &mut QueuePair, mut window: MemoryWindow, binding: WindowBinding<'static>) {
    let rkey = window.next_rkey();
    let mut batch = queue_pair.start();
    let _ = batch.bind_window(1, WrFlags::SIGNALED, &mut window, rkey, &binding);
    drop(window);
    let _ = batch.post();
}

fn main() {}
