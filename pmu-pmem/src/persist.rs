//! How bytes of a pool become durable.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{self, MsFlags};

use crate::cpu::{self, CACHE_LINE_BYTES, WriteBack};
use crate::error::{AccessError, PmemError, Result};
use crate::mapping::{Mapping, page_bytes};
use crate::range::{ByteRange, coalesce};
use crate::spec::Medium;

/// Ranges that are merged at a time, on the stack: persisting allocates nothing.
const RANGES_AT_A_TIME: usize = 64;

/// How bytes of a pool become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PersistMethod {
    /// Cache lines are written back by this instruction, then sfence.
    CacheLines(WriteBack),
    /// The kernel writes the file's pages back: msync, or fdatasync.
    FileSync,
    /// Not at all: the medium is volatile.
    None,
}

/// What can be said of a pool's durability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// What the pool lies on.
    pub medium: Medium,
    /// How bytes become durable on it.
    pub method: PersistMethod,
}

impl Persistence {
    /// How bytes become durable on `medium`, on this processor.
    ///
    /// # Errors
    /// [`PmemError::NoWriteBack`] for a DAX medium on a processor without a known instruction.
    pub(crate) fn of(medium: Medium) -> Result<Self> {
        let method = match medium {
            Medium::Devdax | Medium::Fsdax => {
                PersistMethod::CacheLines(WriteBack::detect().ok_or(PmemError::NoWriteBack)?)
            }
            Medium::File => PersistMethod::FileSync,
            Medium::Hugetlbfs | Medium::Memory => PersistMethod::None,
        };
        Ok(Self { medium, method })
    }

    /// Whether bytes can be made to survive a power cut.
    #[must_use]
    pub const fn is_durable(&self) -> bool {
        self.medium.is_durable()
    }

    /// The word for the method: `clwb`, `clflushopt`, `clflush`, `msync`, or `none`.
    #[must_use]
    pub const fn method_name(&self) -> &'static str {
        match self.method {
            PersistMethod::CacheLines(instruction) => instruction.name(),
            PersistMethod::FileSync => "msync",
            PersistMethod::None => "none",
        }
    }
}

/// The first failure of a pool's write-back. It sticks: Linux marks pages clean that it failed to write, so
/// a second try would succeed without the bytes ever having reached the medium.
#[derive(Debug, Default)]
pub(crate) struct Failure(AtomicI32);

impl Failure {
    pub(crate) fn errno(&self) -> Option<i32> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            errno => Some(errno),
        }
    }

    fn set(&self, errno: Errno) {
        // Only the first one counts.
        let _ = self
            .0
            .compare_exchange(0, errno as i32, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// All that a persist needs to know.
pub(crate) struct Persister<'a> {
    pub(crate) mapping: &'a Mapping,
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    pub(crate) method: PersistMethod,
    pub(crate) failure: &'a Failure,
}

impl Persister<'_> {
    /// See [`crate::PoolMemory::persist`].
    pub(crate) fn persist(&self, ranges: &[Range<u64>]) -> Result<()> {
        self.persist_through(ranges, |ranges| {
            sync_file_ranges(self.mapping, self.file, ranges)
        })
    }

    /// As [`Self::persist`], with the file's write-back given (tests make it fail).
    fn persist_through(
        &self,
        ranges: &[Range<u64>],
        sync_file: impl Fn(&[ByteRange]) -> Result<(), Errno>,
    ) -> Result<()> {
        self.refuse_after_failure()?;
        for range in ranges {
            checked(range, self.mapping.len())?;
        }
        let grain = match self.method {
            PersistMethod::FileSync => page_bytes(),
            PersistMethod::CacheLines(_) | PersistMethod::None => CACHE_LINE_BYTES,
        } as u64;
        for part in ranges.chunks(RANGES_AT_A_TIME) {
            let mut merged = [ByteRange::default(); RANGES_AT_A_TIME];
            for (entry, range) in merged.iter_mut().zip(part) {
                *entry = checked(range, self.mapping.len())?;
            }
            let count = coalesce(&mut merged[..part.len()], grain, self.mapping.len());
            let merged = &merged[..count];
            match self.method {
                PersistMethod::CacheLines(instruction) => {
                    write_back_lines(self.mapping, instruction, merged);
                }
                PersistMethod::FileSync if !merged.is_empty() => {
                    sync_file(merged).map_err(|errno| self.failed(errno))?;
                }
                PersistMethod::FileSync | PersistMethod::None => {}
            }
        }
        cpu::fence();
        Ok(())
    }

    fn refuse_after_failure(&self) -> Result<()> {
        match self.failure.errno() {
            None => Ok(()),
            Some(errno) => Err(PmemError::PoolFailed {
                path: self.path.to_owned(),
                errno,
            }),
        }
    }

    fn failed(&self, errno: Errno) -> PmemError {
        self.failure.set(errno);
        PmemError::Persist {
            path: self.path.to_owned(),
            source: errno.into(),
        }
    }

    /// See [`crate::PoolMemory::start_write_back`].
    pub(crate) fn start(&self, range: &Range<u64>) {
        let Ok(range) = checked(range, self.mapping.len()) else {
            return;
        };
        match self.method {
            PersistMethod::CacheLines(instruction) => {
                write_back_lines(self.mapping, instruction, &[range]);
            }
            PersistMethod::FileSync => {
                // SAFETY: touches no memory of ours; the descriptor is open. A failure is a hint not taken: a write error
                // met by the write-back itself is remembered by the kernel and told by the next persist.
                unsafe {
                    libc::sync_file_range(
                        self.file.as_raw_fd(),
                        range.offset as i64,
                        range.len as i64,
                        libc::SYNC_FILE_RANGE_WRITE,
                    );
                }
            }
            PersistMethod::None => {}
        }
    }
}

/// A range inside the memory, as offset and length.
fn checked(range: &Range<u64>, memory_len: u64) -> Result<ByteRange, AccessError> {
    let len = range.end.checked_sub(range.start);
    match len {
        Some(len) if range.end <= memory_len => Ok(ByteRange::new(range.start, len)),
        _ => Err(AccessError::OutOfBounds {
            offset: range.start,
            len: len.unwrap_or(0),
            memory_len,
        }),
    }
}

/// Starts the write-back of ranges that lie inside the mapping.
fn write_back_lines(mapping: &Mapping, instruction: WriteBack, ranges: &[ByteRange]) {
    for range in ranges {
        // SAFETY: the range was checked against the mapping; `instruction` came from `WriteBack::detect`.
        unsafe {
            let start = mapping.as_ptr().add(range.offset as usize);
            instruction.lines(start, range.len as usize);
        }
    }
}

/// Has the kernel write whole pages of the file back, and waits for the device to say that they are durable.
fn sync_file_ranges(mapping: &Mapping, file: &File, ranges: &[ByteRange]) -> Result<(), Errno> {
    if let [range] = ranges {
        return sync_mapped(mapping, *range);
    }
    nix::unistd::fdatasync(file)
}

fn sync_mapped(mapping: &Mapping, range: ByteRange) -> Result<(), Errno> {
    // SAFETY: the range was checked against the mapping and begins at a page; msync changes no bytes.
    unsafe {
        let start = mapping.as_ptr().add(range.offset as usize);
        let start = std::ptr::NonNull::new(start).ok_or(Errno::EFAULT)?;
        mman::msync(start.cast(), range.len as usize, MsFlags::MS_SYNC)
    }
}
