//! Threads that are used again: a schedule has some programs, and there are thousands of schedules.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Threads {
    free: Arc<Mutex<Vec<Sender<Job>>>>,
}

impl Threads {
    /// Runs a job in a thread that has nothing else to do.
    pub(crate) fn run(&self, job: Job) {
        let mut job = job;
        loop {
            let free = self.free.lock().pop();
            let Some(thread) = free else {
                break;
            };
            match thread.send(job) {
                Ok(()) => return,
                Err(returned) => job = returned.0,
            }
        }
        let free = Arc::downgrade(&self.free);
        std::thread::spawn(move || {
            job();
            // It ends when nobody can give it anything any more.
            while let Some(all) = free.upgrade() {
                let (sender, receiver) = channel::<Job>();
                all.lock().push(sender);
                drop(all);
                match receiver.recv() {
                    Ok(next) => next(),
                    Err(_) => return,
                }
            }
        });
    }
}
