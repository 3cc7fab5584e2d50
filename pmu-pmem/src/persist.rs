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
    /// The kernel writes the pages of the ranges back: sync_file_range and msync. For file systems
    /// that write in place.
    FilePages,
    /// The kernel writes all of the file's dirty pages back: fdatasync.
    WholeFile,
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
    /// How bytes become durable on `medium`, on this processor; `in_place` says of a file that its
    /// file system overwrites blocks where they are.
    ///
    /// # Errors
    /// [`PmemError::NoWriteBack`] for a DAX medium on a processor without a known instruction.
    pub(crate) fn of(medium: Medium, in_place: bool) -> Result<Self> {
        let method = match medium {
            Medium::Devdax | Medium::Fsdax => {
                PersistMethod::CacheLines(WriteBack::detect().ok_or(PmemError::NoWriteBack)?)
            }
            Medium::File if in_place => PersistMethod::FilePages,
            Medium::File => PersistMethod::WholeFile,
            Medium::Hugetlbfs | Medium::Memory => PersistMethod::None,
        };
        Ok(Self { medium, method })
    }

    /// Whether bytes can be made to survive a power cut.
    #[must_use]
    pub const fn is_durable(&self) -> bool {
        self.medium.is_durable()
    }

    /// The word for the method: `clwb`, `clflushopt`, `clflush`, `msync`, `fdatasync`, or `none`.
    #[must_use]
    pub const fn method_name(&self) -> &'static str {
        match self.method {
            PersistMethod::CacheLines(instruction) => instruction.name(),
            PersistMethod::FilePages => "msync",
            PersistMethod::WholeFile => "fdatasync",
            PersistMethod::None => "none",
        }
    }
}

/// The first failure of a pool's write-back. It sticks: Linux marks pages clean that it failed to
/// write, so a second try would succeed without the bytes ever having reached the medium.
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
        self.persist_through(ranges, |ranges| match self.method {
            PersistMethod::FilePages => sync_file_pages(self.mapping, self.file, ranges),
            _ => nix::unistd::fdatasync(self.file),
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
            PersistMethod::FilePages | PersistMethod::WholeFile => page_bytes(),
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
                PersistMethod::FilePages | PersistMethod::WholeFile => {
                    if !merged.is_empty() {
                        sync_file(merged).map_err(|errno| self.failed(errno))?;
                    }
                }
                PersistMethod::None => {}
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
            PersistMethod::FilePages | PersistMethod::WholeFile => {
                // A failure is a hint not taken: a write error that the write-back meets is
                // remembered by the kernel and told by the next persist.
                let _ = write_out(self.file, range, libc::SYNC_FILE_RANGE_WRITE);
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
        // SAFETY: the range was checked against the mapping; `instruction` came from
        // `WriteBack::detect`.
        unsafe {
            let start = mapping.as_ptr().add(range.offset as usize);
            instruction.lines(start, range.len as usize);
        }
    }
}

/// Has the kernel write pages of the file back, and waits for the device to say that they are
/// durable.
///
/// An msync of each range would flush the device's cache once per range: 53 ms for 16 far pages
/// where this takes 6-8. An fdatasync flushes once, but waits for every dirty page of the file, so
/// one commit pays for the streams of all others (p90 152 ms for a page beside one stream, against
/// 4 ms). So all ranges but the last are written out and waited for, with no flush; then msync of
/// the last writes it, commits what metadata the file has, and flushes the device once, for all of
/// them. That is right only where blocks are overwritten in place (ext4, XFS): elsewhere the way to
/// a new block is metadata of its range, and the whole file is synced. (`examples/persist_cost.rs`
/// measures all of them.)
fn sync_file_pages(mapping: &Mapping, file: &File, ranges: &[ByteRange]) -> Result<(), Errno> {
    let Some((last, others)) = ranges.split_last() else {
        return Ok(());
    };
    const WRITE_AND_WAIT: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    for range in others {
        write_out(file, *range, libc::SYNC_FILE_RANGE_WRITE)?;
    }
    for range in others {
        write_out(file, *range, WRITE_AND_WAIT)?;
    }
    // SAFETY: the range was checked against the mapping and begins at a page; msync changes no
    // bytes.
    unsafe {
        let start = mapping.as_ptr().add(last.offset as usize);
        let start = std::ptr::NonNull::new(start).ok_or(Errno::EFAULT)?;
        mman::msync(start.cast(), last.len as usize, MsFlags::MS_SYNC)
    }
}

fn write_out(file: &File, range: ByteRange, flags: u32) -> Result<(), Errno> {
    // SAFETY: touches no memory of ours; the descriptor is open.
    let result = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            range.offset as i64,
            range.len as i64,
            flags,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::num::NonZeroUsize;

    struct Fixture {
        mapping: Mapping,
        file: File,
        failure: Failure,
        method: PersistMethod,
    }

    impl Fixture {
        fn new(method: PersistMethod) -> Self {
            let mapping = Mapping::map_anonymous(1 << 20, NonZeroUsize::new(1 << 20).unwrap());
            let file = tempfile::tempfile().unwrap();
            Self {
                mapping: mapping.unwrap(),
                file,
                failure: Failure::default(),
                method,
            }
        }

        fn persister(&self) -> Persister<'_> {
            Persister {
                mapping: &self.mapping,
                file: &self.file,
                path: Path::new("pool"),
                method: self.method,
                failure: &self.failure,
            }
        }
    }

    #[test]
    fn ranges_of_a_file_are_merged_to_pages() {
        let fixture = Fixture::new(PersistMethod::FilePages);
        let seen = RefCell::new(Vec::new());
        let see = |ranges: &[ByteRange]| {
            seen.borrow_mut().push(ranges.to_vec());
            Ok(())
        };
        let asked = [8200..8201, 0..8, 4096..4104, 5..5];
        fixture.persister().persist_through(&asked, see).unwrap();
        assert_eq!(*seen.borrow(), [[ByteRange::new(0, 12288)]]);
        fixture.persister().persist_through(&[], see).unwrap();
        fixture
            .persister()
            .persist_through(&[7..7, 4096..4096], see)
            .unwrap();
        assert_eq!(seen.borrow().len(), 1, "nothing to write is not written");
    }

    #[test]
    fn more_ranges_than_fit_are_all_persisted() {
        let fixture = Fixture::new(PersistMethod::FilePages);
        let asked: Vec<_> = (0..150u64)
            .map(|page| page * 4096..page * 4096 + 1)
            .collect();
        let total = RefCell::new(0);
        let see = |ranges: &[ByteRange]| {
            *total.borrow_mut() += ranges.iter().map(|range| range.len).sum::<u64>();
            Ok(())
        };
        fixture.persister().persist_through(&asked, see).unwrap();
        assert_eq!(*total.borrow(), 150 * 4096);
    }

    #[test]
    fn after_a_failure_the_pool_has_failed_for_good() {
        let fixture = Fixture::new(PersistMethod::FilePages);
        let error = fixture
            .persister()
            .persist_through(std::slice::from_ref(&(0..8)), |_| Err(Errno::EIO))
            .unwrap_err();
        assert!(matches!(error, PmemError::Persist { .. }), "{error}");
        // The kernel would say yes to a second try, having dropped the pages.
        let again = fixture
            .persister()
            .persist_through(std::slice::from_ref(&(0..8)), |_| Ok(()));
        let error = again.unwrap_err();
        assert!(
            matches!(
                error,
                PmemError::PoolFailed {
                    errno: libc::EIO,
                    ..
                }
            ),
            "{error}"
        );
        assert!(fixture.persister().persist(&[]).is_err());
        assert_eq!(fixture.failure.errno(), Some(libc::EIO));
    }

    #[test]
    fn a_range_outside_is_refused_before_anything_is_done() {
        let fixture = Fixture::new(PersistMethod::FilePages);
        for outside in [0..(1 << 20) + 1, (1 << 20) + 1..(1 << 20) + 1, 0..u64::MAX] {
            let error = fixture
                .persister()
                .persist_through(&[0..8, outside.clone()], |_| panic!("wrote back"))
                .unwrap_err();
            assert!(
                matches!(error, PmemError::Access(_)),
                "{outside:?}: {error}"
            );
        }
        let reversed = std::ops::Range { start: 8, end: 0 };
        let reversed = fixture.persister().persist(std::slice::from_ref(&reversed));
        assert!(reversed.is_err());
        assert_eq!(
            fixture.failure.errno(),
            None,
            "a wrong argument is no failure of the pool"
        );
    }

    #[test]
    fn cache_lines_are_written_back_where_the_processor_can() {
        let Some(best) = WriteBack::detect() else {
            println!("SKIPPED LOUDLY: no write-back instruction on this processor");
            return;
        };
        let fixture = Fixture::new(PersistMethod::CacheLines(best));
        fixture.mapping.write_at(100, &[7; 300]).unwrap();
        fixture.persister().start(&(100..400));
        fixture.persister().start(&(0..u64::MAX));
        fixture
            .persister()
            .persist(&[100..400, 1000..1000, 0..1 << 20])
            .unwrap();
        let mut bytes = [0; 300];
        fixture.mapping.read_at(100, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 300]);
    }
}
