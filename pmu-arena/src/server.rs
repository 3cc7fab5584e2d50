//! The thread that serves writes to protected pages.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::error::{ArenaError, Result};
use crate::options::Cpus;
use crate::uffd::bell;
use crate::watch::Watch;

/// Ends and joins its thread when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the thread on the processors that it may use.
    pub(crate) fn start(watch: Arc<Watch>, cpus: Cpus) -> Result<Self> {
        let stop = Arc::new(bell()?);
        let (ready, started) = mpsc::channel();
        let heard = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("arena".to_owned())
            .spawn(move || {
                let pinned = cpus.pin_this_thread();
                let go_on = pinned.is_ok();
                let _ = ready.send(pinned);
                if go_on {
                    run(&watch, &heard);
                }
            })
            .map_err(|source| ArenaError::io("start a thread", source))?;
        let server = Self {
            stop,
            thread: Some(thread),
        };
        started.recv().unwrap_or(Err(ArenaError::Lost))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then the thread hears it all the same.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Nobody may wait for the thread for ever: when it ends as asked the watch ends too, otherwise it
/// is lost.
struct LoseUnlessTold<'a>(&'a Watch, bool);

impl Drop for LoseUnlessTold<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.retire();
        } else {
            let reason = "the thread that serves the arena has ended";
            self.0.lose(&std::io::Error::other(reason));
        }
    }
}

fn run(watch: &Watch, stop: &EventFd) {
    let mut end = LoseUnlessTold(watch, false);
    let mut addresses = Vec::new();
    loop {
        if let Err(error) = watch.uffd().faults(&mut addresses) {
            watch.lose(&error);
            return;
        }
        if !addresses.is_empty() {
            watch.serve(&addresses);
        } else if !wait(watch, stop) {
            end.1 = true;
            return;
        }
    }
}

/// Waits for a write; false if the thread is to end.
fn wait(watch: &Watch, stop: &EventFd) -> bool {
    let mut wakers = [
        PollFd::new(watch.uffd().as_fd(), PollFlags::POLLIN),
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
    ];
    // A call that a signal interrupts finds nothing, and is made again.
    let _ = poll(&mut wakers, PollTimeout::NONE);
    wakers[1].any() != Some(true)
}
