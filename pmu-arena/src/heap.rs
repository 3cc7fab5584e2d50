//! An allocator whose own state lies in the arena, so that an image holds it too.

use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use allocator_api2::alloc::{AllocError, Allocator};
use parking_lot::RawMutex;
use parking_lot::lock_api::RawMutex as _;

use crate::error::{ArenaError, Result};
use crate::memory::Memory;

/// Blocks of up to 32 TiB, in constant time.
type Blocks = rlsf::Tlsf<'static, u64, u32, 40, 32>;

const MAGIC: u64 = u64::from_le_bytes(*b"pmuarena");
/// Of the structures below and of the allocator's.
const VERSION: u32 = 1;
const NO_ROOT: u64 = u64::MAX;

/// What lies on the control page, before the arena's start: in no image.
#[repr(C)]
pub(crate) struct Control {
    lock: RawMutex,
}

/// What lies at the arena's start.
#[repr(C)]
struct Head {
    magic: u64,
    version: u32,
    blocks_bytes: u32,
    address: u64,
    len: u64,
    root_offset: AtomicU64,
    root_bytes: AtomicU64,
    root_align: AtomicU64,
    blocks: UnsafeCell<MaybeUninit<Blocks>>,
}

/// The smallest arena with a heap.
pub(crate) const HEAP_BYTES_MIN: usize = size_of::<Head>() + 4096;

/// A handle of the allocator that lives in an arena.
///
/// It is one pointer, stays valid where the arena is restored at the same address, and may
/// therefore itself lie in the arena, as the allocator of a collection does. Allocating and freeing
/// take constant time and a lock that a freeze takes too: the allocator's state in an image is
/// always whole. All threads may use it. It blocks for other threads' calls, and during a pause.
#[derive(Clone, Copy)]
pub struct Heap<'a> {
    head: NonNull<Head>,
    control: NonNull<Control>,
    arena: PhantomData<&'a Memory>,
}

// SAFETY: what changes is changed under the lock, or atomic.
unsafe impl Send for Heap<'_> {}
// SAFETY: as above.
unsafe impl Sync for Heap<'_> {}

impl Heap<'_> {
    /// Makes the allocator of a new, zeroed mapping.
    ///
    /// # Safety
    /// Nobody else uses the memory, which is zeroed, has a control page, and is at least
    /// [`HEAP_BYTES_MIN`] long.
    pub(crate) unsafe fn make(memory: &Memory, control: NonNull<u8>) {
        let start = memory.start();
        let heap = Heap::at(start, control);
        let head = Head {
            magic: MAGIC,
            version: VERSION,
            blocks_bytes: size_of::<Blocks>() as u32,
            address: start.as_ptr().addr() as u64,
            len: memory.len() as u64,
            root_offset: AtomicU64::new(NO_ROOT),
            root_bytes: AtomicU64::new(0),
            root_align: AtomicU64::new(0),
            blocks: UnsafeCell::new(MaybeUninit::new(Blocks::new())),
        };
        let used = size_of::<Head>();
        // SAFETY: the memory is ours alone and long enough; both starts are page-aligned. What
        // follows the head lives as long as the head that names it.
        unsafe {
            heap.control.write(Control {
                lock: RawMutex::INIT,
            });
            heap.head.write(head);
            let rest = NonNull::slice_from_raw_parts(start.add(used), memory.len() - used);
            heap.blocks().insert_free_block_ptr(rest);
        }
    }

    /// Takes over the allocator of a restored image.
    ///
    /// # Errors
    /// [`ArenaError::BadImage`]: none there, or of another version, address or length.
    ///
    /// # Safety
    /// Nobody else uses the memory, which has a control page and holds an image that this program,
    /// built the same way, made.
    pub(crate) unsafe fn take_over(memory: &Memory, control: NonNull<u8>) -> Result<()> {
        let heap = Heap::at(memory.start(), control);
        // SAFETY: the memory is long enough for a head, of which any bytes are a valid value, as
        // `blocks` may be uninitialised.
        let head = unsafe { heap.head.as_ref() };
        let wrong = |reason| Err(ArenaError::BadImage { reason });
        if head.magic != MAGIC {
            return wrong("no heap");
        }
        if head.version != VERSION || head.blocks_bytes as usize != size_of::<Blocks>() {
            return wrong("another version");
        }
        if head.address != memory.start().as_ptr().addr() as u64 {
            return wrong("another address");
        }
        if head.len != memory.len() as u64 {
            return wrong("another length");
        }
        // SAFETY: the control page is ours alone.
        unsafe {
            heap.control.write(Control {
                lock: RawMutex::INIT,
            });
        }
        Ok(())
    }

    /// The handle of the allocator at `start`.
    pub(crate) const fn at(start: NonNull<u8>, control: NonNull<u8>) -> Self {
        Heap {
            head: start.cast(),
            control: control.cast(),
            arena: PhantomData,
        }
    }

    fn head(&self) -> &Head {
        // SAFETY: made before any handle is given out, and there while the arena is borrowed.
        unsafe { self.head.as_ref() }
    }

    /// The allocator itself.
    ///
    /// # Safety
    /// The caller holds the lock, or is alone, and keeps no two of these.
    #[allow(clippy::mut_from_ref, reason = "the lock makes it exclusive")]
    unsafe fn blocks(&self) -> &mut Blocks {
        // SAFETY: `make` or the restored image initialised it; exclusive, as the caller promises.
        unsafe { (*self.head().blocks.get()).assume_init_mut() }
    }

    /// Keeps everybody from allocating until the guard is dropped.
    pub(crate) fn hold(&self) -> HeapHeld<'_> {
        // SAFETY: as for `head`.
        let control = unsafe { self.control.as_ref() };
        control.lock.lock();
        HeapHeld { control }
    }

    /// Remembers where the program's root lies, for a second instance to find: a value of type `T`
    /// in this arena. It replaces an earlier one.
    ///
    /// # Errors
    /// [`ArenaError::OutOfBounds`]: it doesn't lie in the arena.
    pub fn set_root<T>(&self, root: NonNull<T>) -> Result<()> {
        let head = self.head();
        let start = self.head.as_ptr().addr();
        let offset = root.as_ptr().addr().wrapping_sub(start);
        let inside = offset
            .checked_add(size_of::<T>())
            .is_some_and(|end| offset >= size_of::<Head>() && end as u64 <= head.len);
        if !inside {
            return Err(ArenaError::OutOfBounds {
                offset,
                len: size_of::<T>(),
                arena_len: head.len as usize,
            });
        }
        let _held = self.hold();
        head.root_bytes
            .store(size_of::<T>() as u64, Ordering::Relaxed);
        head.root_align
            .store(align_of::<T>() as u64, Ordering::Relaxed);
        head.root_offset.store(offset as u64, Ordering::Release);
        Ok(())
    }

    /// Where the root lies; none if there is none, or if it isn't of the size and alignment of
    /// `T`. Looking through the pointer is for the caller to justify: the type has to be the one
    /// that was stored, by the same build of the program.
    #[must_use]
    pub fn root<T>(&self) -> Option<NonNull<T>> {
        let head = self.head();
        let offset = head.root_offset.load(Ordering::Acquire);
        let fits = offset != NO_ROOT
            && offset < head.len
            && head.root_bytes.load(Ordering::Relaxed) == size_of::<T>() as u64
            && head.root_align.load(Ordering::Relaxed) == align_of::<T>() as u64;
        // SAFETY: the offset lies inside of the arena.
        fits.then(|| unsafe { self.head.cast::<u8>().add(offset as usize).cast() })
    }
}

/// Nobody allocates while it lives.
pub(crate) struct HeapHeld<'a> {
    control: &'a Control,
}

impl Drop for HeapHeld<'_> {
    fn drop(&mut self) {
        // SAFETY: this value stands for the lock being held by this thread.
        unsafe { self.control.lock.unlock() };
    }
}

// SAFETY: blocks stay where they are until they are freed, and the arena can't be dropped while it
// is borrowed; copies of the handle are the same allocator.
unsafe impl Allocator for Heap<'_> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            let dangling = NonNull::without_provenance(
                std::num::NonZero::new(layout.align()).ok_or(AllocError)?,
            );
            return Ok(NonNull::slice_from_raw_parts(dangling, 0));
        }
        let _held = self.hold();
        // SAFETY: the lock is held.
        let start = unsafe { self.blocks() }
            .allocate(layout)
            .ok_or(AllocError)?;
        Ok(NonNull::slice_from_raw_parts(start, layout.size()))
    }

    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
            return;
        }
        let _held = self.hold();
        // SAFETY: the lock is held, and the block came from `allocate` with this layout.
        unsafe { self.blocks().deallocate(start, layout.align()) };
    }
}

impl fmt::Debug for Heap<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Heap")
            .field("start", &self.head)
            .finish_non_exhaustive()
    }
}
