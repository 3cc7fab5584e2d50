//! userfaultfd(2): write protection of pages, and messages of writes to them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::sys::eventfd::EventFd;

use crate::error::{ArenaError, Result};
use crate::options::ServedBy;

const API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
/// A write to a protected page is a SIGBUS for its thread, and no message.
const FEATURE_SIGBUS: u64 = 1 << 7;
/// Pages that were never touched are protected as others are (kernel 6.4).
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const MODE_WRITE_PROTECT: u64 = 1 << 1;
const PROTECT: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;

/// Messages taken with one call.
const MESSAGES: usize = 32;
const MESSAGE_BYTES: usize = 32;
/// Where a message of a page fault has its address.
const ADDRESS_AT: usize = 16;

/// The layout of `struct uffdio_api`.
#[repr(C)]
struct ApiCall {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// The layout of `struct uffdio_range`.
#[repr(C)]
struct RangeCall {
    start: u64,
    len: u64,
}

/// The layout of `struct uffdio_register`.
#[repr(C)]
struct RegisterCall {
    range: RangeCall,
    mode: u64,
    ioctls: u64,
}

/// The layout of `struct uffdio_writeprotect`.
#[repr(C)]
struct ProtectCall {
    range: RangeCall,
    mode: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, ApiCall);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, RegisterCall);
nix::ioctl_read!(uffdio_unregister, 0xaa, 0x01, RangeCall);
nix::ioctl_readwrite!(uffdio_writeprotect, 0xaa, 0x06, ProtectCall);

const fn range_call(addresses: &Range<u64>) -> RangeCall {
    RangeCall {
        start: addresses.start,
        len: addresses.end - addresses.start,
    }
}

/// A userfaultfd in synchronous write-protect mode.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    file: OwnedFd,
    /// It acts on the memory of this process, also where it is inherited.
    process: u32,
}

impl Userfaultfd {
    /// Opens one. Served by a thread it sees writes of the kernel too, such as those of read(2); by a signal it fails them.
    ///
    /// # Errors
    /// [`ArenaError::NotPossible`].
    pub(crate) fn open(served_by: ServedBy) -> Result<Self> {
        let refuse = |action| move |source| ArenaError::NotPossible { action, source };
        let file = by_call()
            .or_else(|error| by_device().map_err(|_| error))
            .map_err(refuse("open"))?;
        let by_signal = match served_by {
            ServedBy::Thread => 0,
            ServedBy::Signal => FEATURE_SIGBUS,
        };
        let mut call = ApiCall {
            api: API,
            features: FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_UNPOPULATED | by_signal,
            ioctls: 0,
        };
        // SAFETY: the structure is the one of this request, and the kernel keeps no pointer to it.
        unsafe { uffdio_api(file.as_raw_fd(), &mut call) }
            .map_err(|error| refuse("agree on features")(error.into()))?;
        let process = std::process::id();
        Ok(Self { file, process })
    }

    /// Whether this process has opened it.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Has writes to protected pages of the range reported here.
    pub(crate) fn register(&self, addresses: &Range<u64>) -> io::Result<()> {
        let mut call = RegisterCall {
            range: range_call(addresses),
            mode: MODE_WRITE_PROTECT,
            ioctls: 0,
        };
        // SAFETY: as in `open`. Registering changes nothing of the memory itself.
        unsafe { uffdio_register(self.file.as_raw_fd(), &mut call) }?;
        Ok(())
    }

    /// Takes all protection from the range; whoever waits in it goes on.
    pub(crate) fn unregister(&self, addresses: &Range<u64>) -> io::Result<()> {
        let mut call = range_call(addresses);
        // SAFETY: as in `open`.
        unsafe { uffdio_unregister(self.file.as_raw_fd(), &mut call) }?;
        Ok(())
    }

    /// Write-protects a range: when it returns, no processor can write there.
    pub(crate) fn protect(&self, addresses: &Range<u64>) -> io::Result<()> {
        self.write_protect(addresses, PROTECT)
    }

    /// Lets a range be written again; whoever waits for it goes on.
    pub(crate) fn release(&self, addresses: &Range<u64>) -> io::Result<()> {
        self.write_protect(addresses, 0)
    }

    fn write_protect(&self, addresses: &Range<u64>, mode: u64) -> io::Result<()> {
        /// The kernel asks for another try while a mapping changes.
        const TRIES_MAX: u32 = 1000;
        let mut call = ProtectCall {
            range: range_call(addresses),
            mode,
        };
        for _ in 0..TRIES_MAX {
            // SAFETY: as in `open`. A write to a protected page waits for the thread that reads
            // the messages; it changes no byte by itself.
            match unsafe { uffdio_writeprotect(self.file.as_raw_fd(), &mut call) } {
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
        Err(nix::Error::EAGAIN.into())
    }

    /// The addresses of writes that wait, up to [`MESSAGES`] of them; empty if none does.
    pub(crate) fn faults(&self, addresses: &mut Vec<u64>) -> io::Result<()> {
        addresses.clear();
        let mut messages = [0; MESSAGES * MESSAGE_BYTES];
        let count = match nix::unistd::read(&self.file, &mut messages) {
            Ok(count) => count,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for message in messages[..count].chunks_exact(MESSAGE_BYTES) {
            let mut address = [0; 8];
            address.copy_from_slice(&message[ADDRESS_AT..ADDRESS_AT + 8]);
            if message[0] == EVENT_PAGEFAULT {
                addresses.push(u64::from_ne_bytes(address));
            }
        }
        Ok(())
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Needs CAP_SYS_PTRACE or `vm.unprivileged_userfaultfd`.
fn by_call() -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags alone and makes a new descriptor.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    owned(descriptor)
}

/// Needs the right to open the device.
fn by_device() -> io::Result<OwnedFd> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")?;
    let request = nix::request_code_none!(0xaa, 0x00);
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the request of this device that takes flags alone and makes a new descriptor.
    let descriptor = unsafe { libc::ioctl(device.as_raw_fd(), request, flags) };
    owned(descriptor.into())
}

fn owned(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(descriptor) {
        // SAFETY: the kernel has just made it for us; nobody else knows of it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A bell that ends a wait.
pub(crate) fn bell() -> Result<EventFd> {
    EventFd::new().map_err(|error| ArenaError::io("make a bell", error))
}
