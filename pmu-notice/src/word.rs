//! The word in shared memory, and what its values mean.

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{NoticeError, Result};

/// Nobody holds it.
pub(crate) const FREE: u32 = 0;
/// The watcher has gone. No thread has this id: the kernel's limit is 2^22.
pub(crate) const CLOSED: u32 = libc::FUTEX_TID_MASK;
/// Set by the holder, so that the kernel wakes the watcher.
pub(crate) const WAITERS: u32 = libc::FUTEX_WAITERS;
/// Set by the kernel when the holder has died.
pub(crate) const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;

/// Length of the file, and of its mapping.
pub(crate) const FILE_BYTES: usize = 4096;
/// The file can't change its length: whoever maps it never meets a page that isn't there.
pub(crate) const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// The first word of a notice's file, mapped.
#[derive(Debug)]
pub(crate) struct Word {
    mapping: NonNull<AtomicU32>,
}

// SAFETY: the mapping is only reached as an atomic, and it stays until the value is dropped, on whatever thread.
unsafe impl Send for Word {}
// SAFETY: as above: an atomic may be used by any number of threads and processes.
unsafe impl Sync for Word {}

impl Word {
    /// Maps a file that is a notice.
    pub(crate) fn map(file: &File) -> Result<Self> {
        let seals = fcntl_get_seals(file).map_err(|_| NoticeError::NotOne)?;
        let length = fstat(file).map_err(NoticeError::system("look at a notice"))?;
        if !seals.contains(SEALS) || length.st_size != FILE_BYTES as i64 {
            return Err(NoticeError::NotOne);
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses takes nothing from anybody.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                FILE_BYTES,
                protection,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        };
        let address = address.map_err(NoticeError::system("map a notice"))?;
        let mapping = NonNull::new(address.cast()).ok_or(NoticeError::NotOne)?;
        Ok(Self { mapping })
    }

    pub(crate) fn get(&self) -> &AtomicU32 {
        // SAFETY: the mapping begins on a page, is longer than the word, can't lose its page (the file is sealed), and lives as long as `self`.
        unsafe { self.mapping.as_ref() }
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and of this length, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), FILE_BYTES) };
    }
}
