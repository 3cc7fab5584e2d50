//! Writing a page-cached file by write calls, beside its mapping.
//!
//! Each write-back leaves the file's pages write-protected, so the first store into each of them
//! faults and has the file system prepare it. With ext4, 64 MiB took 180-280 ms so to be written
//! and made durable, and 26-44 ms by pwrite and fdatasync (`examples/persist_cost.rs`). Both see
//! the same pages of the kernel's cache, so loads and the word accessors keep using the mapping.
//! (For DAX and for memory there is no such cost, and stores go straight to where the bytes stay.)

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// From this length on, a write call is made. Below it, its own cost counts.
pub(crate) const WRITE_CALL_BYTES_MIN: usize = 1024;

/// Bytes that are received at a time before they go on by a write call: they stay in the cache
/// meanwhile.
const BOUNCE_BYTES: usize = 256 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

thread_local! {
    /// Allocated at a thread's first receive, and kept.
    static BOUNCE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file under a mapping.
#[derive(Debug)]
pub(crate) struct WriteCalls(File);

impl WriteCalls {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        file.try_clone().map(Self)
    }

    /// Writes `len` bytes to `offset` and returns how many were written: fewer after an error,
    /// where the rest is for the caller to store through the mapping.
    ///
    /// # Safety
    /// `source` is mapped for reading `len` bytes for the length of the call. Concurrent change of
    /// the bytes is allowed: only the kernel looks at them.
    pub(crate) unsafe fn write(&self, offset: u64, source: *const u8, len: usize) -> usize {
        let mut done = 0;
        while done < len {
            // SAFETY: the rest of the caller's range; `done` is below `len`.
            let count = unsafe {
                let rest = source.add(done).cast();
                let offset = (offset + done as u64) as i64;
                libc::pwrite(self.0.as_raw_fd(), rest, len - done, offset)
            };
            match crate::socket::outcome(count) {
                None => {}
                Some(Ok(count)) if count > 0 => done += count,
                Some(_) => break,
            }
        }
        done
    }

    /// Writes `len` zeros to `offset`, and returns as [`Self::write`].
    pub(crate) fn zero(&self, offset: u64, len: usize) -> usize {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(ZEROS.len());
            // SAFETY: `step` bytes of a static.
            let count = unsafe { self.write(offset + done as u64, ZEROS.as_ptr(), step) };
            done += count;
            if count < step {
                break;
            }
        }
        done
    }

    /// Receives up to `len` bytes from a socket, and hands them to `store`. Returns how many.
    pub(crate) fn receive(
        socket: BorrowedFd<'_>,
        len: usize,
        flags: i32,
        store: impl FnOnce(&[u8]),
    ) -> io::Result<usize> {
        BOUNCE.with_borrow_mut(|bounce| {
            bounce.resize(BOUNCE_BYTES, 0);
            let room = &mut bounce[..len.min(BOUNCE_BYTES)];
            let count = loop {
                // SAFETY: `room` is ours alone and as long as said.
                let count = unsafe {
                    libc::recv(
                        socket.as_raw_fd(),
                        room.as_mut_ptr().cast(),
                        room.len(),
                        flags,
                    )
                };
                if let Some(result) = crate::socket::outcome(count) {
                    break result?;
                }
            };
            // With MSG_TRUNC a datagram's whole length is told, of which `room` has a part.
            store(&room[..count.min(room.len())]);
            Ok(count)
        })
    }
}
