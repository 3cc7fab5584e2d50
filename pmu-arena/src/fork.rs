//! A forked process that keeps the contents of all memory as they were, and does nothing else.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::bits::Pages;
use crate::error::{ArenaError, Result};
use crate::memory::Memory;
use crate::scan;

/// The process. It ends with this value, or with the program.
#[derive(Debug)]
pub(crate) struct Keeper {
    process: Pid,
    /// Closed when the program ends, however it does; then the process ends too.
    _alive: OwnedFd,
}

impl Keeper {
    /// Forks. No signal is sent when the process ends, and a program that waits for any child does
    /// not meet it.
    pub(crate) fn fork() -> Result<Self> {
        let (watched, alive) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .map_err(|error| ArenaError::io("make a pipe", error))?;
        let mut signals = SigSet::empty();
        // The new process has no use for the program's handlers.
        pthread_sigmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut signals),
        )
        .map_err(|error| ArenaError::io("hold signals back", error))?;
        // SAFETY: without CLONE_VM the new process has a copy of this one's memory and goes on on
        // the copy of this stack, as fork(2)'s does; it calls only `keep`, which makes bare system
        // calls and never returns, so that locks held by other threads don't matter.
        let process = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        if process == 0 {
            keep(watched.as_raw_fd());
        }
        let error = io::Error::last_os_error();
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
        match i32::try_from(process) {
            Ok(process) if process > 0 => Ok(Self {
                process: Pid::from_raw(process),
                _alive: alive,
            }),
            _ => Err(ArenaError::io("fork", error)),
        }
    }

    /// The pages of the arena that have memory in the frozen process.
    pub(crate) fn pages(&self, memory: &Memory) -> Result<Pages> {
        let mut pages = Pages::none(memory.pages());
        let all = memory.addresses(&(0..memory.pages()));
        scan::present_in(
            self.process.as_raw(),
            &all,
            memory.page_bytes(),
            |address| {
                pages.add(memory.page_of(address));
            },
        )
        .map_err(|source| ArenaError::io("find the forked pages", source))?;
        Ok(pages)
    }

    /// Copies adjacent pages out of the process.
    pub(crate) fn read(&self, addresses: &Range<u64>, target: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < target.len() {
            let remote = RemoteIoVec {
                base: addresses.start as usize + done,
                len: target.len() - done,
            };
            let mut local = [io::IoSliceMut::new(&mut target[done..])];
            match process_vm_readv(self.process, &mut local, &[remote]) {
                Ok(0) => {
                    return Err(ArenaError::io(
                        "read the fork",
                        io::ErrorKind::UnexpectedEof,
                    ));
                }
                Ok(count) => done += count,
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(ArenaError::io("read the fork", error)),
            }
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The number is ours until we have waited for it.
        let _ = kill(self.process, Signal::SIGKILL);
        while waitpid(self.process, Some(WaitPidFlag::__WALL)) == Err(nix::Error::EINTR) {}
    }
}

/// What the new process does: closes what isn't its own, and waits until the program ends.
fn keep(watched: RawFd) -> ! {
    let watched = watched.cast_unsigned();
    let mut byte = 0_u8;
    // SAFETY: bare system calls, on this process's own descriptors and one byte of its stack.
    unsafe {
        if watched > 0 {
            libc::syscall(libc::SYS_close_range, 0, watched - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, watched + 1, u32::MAX, 0);
        loop {
            let count = libc::syscall(libc::SYS_read, watched, &raw mut byte, 1);
            if count >= 0 || *libc::__errno_location() != libc::EINTR {
                libc::syscall(libc::SYS_exit_group, 0);
            }
        }
    }
}
