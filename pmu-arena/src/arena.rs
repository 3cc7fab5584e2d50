//! Arenas: made, registered or restored; and frozen.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::mman::MmapAdvise;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::error::{ArenaError, Result};
use crate::fork::Keeper;
use crate::frozen::{Frozen, Report, Source};
use crate::heap::{HEAP_BYTES_MIN, Heap};
use crate::memory::{ALIGN_BYTES, Memory, page_bytes};
use crate::options::{ArenaOptions, Method, ServedBy};
use crate::server::Server;
use crate::signal::Listed;
use crate::watch::Watch;

/// Which pages an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All that were ever touched.
    Full,
    /// Those written since the last image that was finished; all, where there is none, or where
    /// the method can't tell.
    Changed,
}

/// Memory whose contents can be frozen while the program runs on.
///
/// **What is consistent.** With [`Self::writing`] around every change that has to be whole, an
/// image holds all changes whose guard was dropped before the point of freezing and none of later
/// ones. Without guards an image is still a consistent cut with [`Method::Protect`]: of each
/// thread's writes it holds those up to some point, and if it holds a write then also every one
/// that was seen before it. With [`Method::Fork`] there is one instant for all threads. The state
/// of the allocator is whole in every image.
///
/// **What isn't seen.** Writes that bypass the page tables: of devices into memory that was
/// registered with them (local RDMA reads and receives, O_DIRECT, fixed buffers of io_uring).
/// The program may read(2) and recv(2) into an arena, but for one that is [`ServedBy::Signal`]. It doesn't unmap, remap or MADV_DONTNEED
/// parts of it.
///
/// All methods may be called from any thread. Nothing here makes anything durable.
#[derive(Debug)]
pub struct Arena {
    inner: Arc<Inner>,
}

/// What an arena and its images share.
#[derive(Debug)]
pub(crate) struct Inner {
    body: Body,
    /// Held shared by those who write, alone by who freezes.
    gate: RwLock<()>,
    heap: bool,
    rounds_max: u32,
    pages_left_max: usize,
    fallback_reason: Option<String>,
    /// An image exists.
    frozen: AtomicBool,
    generation: AtomicU64,
    /// The generation of the last image that was finished.
    finished: Mutex<Option<u64>>,
}

#[derive(Debug)]
enum Body {
    Watched {
        // Ends before the watch.
        _service: Service,
        watch: Arc<Watch>,
    },
    Forked {
        memory: Memory,
    },
}

/// Who serves the writes.
#[derive(Debug)]
enum Service {
    Thread { _server: Server },
    Signal { _listed: Listed },
}

/// While it lives, no image is frozen. Not to be taken twice by one thread: a freeze that waits in
/// between would wait for ever.
#[derive(Debug)]
pub struct Writing<'a> {
    _shared: RwLockReadGuard<'a, ()>,
}

impl Arena {
    /// Maps a new arena, zeroed.
    ///
    /// # Errors
    /// [`ArenaError::BadOptions`]; [`ArenaError::NoMemory`], also where something lies at the
    /// address asked for; [`ArenaError::NotPossible`] where [`Method::Protect`] was asked for and
    /// isn't allowed; [`ArenaError::Io`].
    pub fn create(options: &ArenaOptions) -> Result<Self> {
        let memory = map(options)?;
        if let (true, Some(control)) = (options.heap, memory.control()) {
            // SAFETY: nobody else knows the new mapping, which is zeroed; `map` checked its length.
            unsafe { Heap::make(&memory, control) };
        }
        Self::over(memory, options)
    }

    /// Begins to restore an image: maps memory, zeroed, that the image's pages are put into.
    ///
    /// For pointers into the image to be valid, `options.address` has to be that of the arena that
    /// was frozen ([`Self::address`]); with a heap it must be.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn restore(options: &ArenaOptions) -> Result<Restoring> {
        // Huge pages only once it is filled: where memory is in pieces, the kernel would look for
        // each while the image waits.
        let mut small = options.clone();
        small.huge_pages = false;
        Ok(Restoring {
            memory: map(&small)?,
            options: options.clone(),
        })
    }

    /// Watches a mapping of the program's own. It has no heap, and isn't unmapped in the end;
    /// `len_bytes`, `address`, `heap`, `huge_pages` and `prefault` of `options` are not used.
    ///
    /// # Errors
    /// [`ArenaError::BadOptions`] where start or length are not whole pages;
    /// [`ArenaError::NotWatchable`] where it is not private and anonymous; others as
    /// [`Self::create`].
    ///
    /// # Safety
    /// The range is mapped for reading and writing, private and anonymous, and stays so until the
    /// arena and its images are dropped. No device writes to it.
    pub unsafe fn register(start: NonNull<u8>, len: usize, options: &ArenaOptions) -> Result<Self> {
        let page = page_bytes();
        if len == 0 || !len.is_multiple_of(page) || !start.as_ptr().addr().is_multiple_of(page) {
            return Err(ArenaError::BadOptions {
                reason: "a registered mapping has to be of whole pages",
            });
        }
        let mut options = options.clone();
        options.heap = false;
        Self::over(Memory::adopt(start, len), &options)
    }

    fn over(memory: Memory, options: &ArenaOptions) -> Result<Self> {
        let (body, fallback_reason) = body(memory, options)?;
        let inner = Inner {
            body,
            gate: RwLock::new(()),
            heap: options.heap,
            rounds_max: options.rounds_max,
            pages_left_max: options.pages_left_max,
            fallback_reason,
            frozen: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            finished: Mutex::new(None),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The method in use: [`Method::Protect`] or [`Method::Fork`].
    #[must_use]
    pub fn method(&self) -> Method {
        self.inner.method()
    }

    /// Why [`Method::Auto`] took [`Method::Fork`], where it did.
    #[must_use]
    pub fn fallback_reason(&self) -> Option<&str> {
        self.inner.fallback_reason.as_deref()
    }

    /// The address of the first byte.
    #[must_use]
    pub fn address(&self) -> usize {
        self.as_ptr().addr()
    }

    /// The first byte. Looking through the pointer is for the caller to justify: with a heap, the
    /// bytes belong to those that allocated them.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.memory().start().as_ptr()
    }

    /// Length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an arena is never empty")]
    pub fn len(&self) -> usize {
        self.inner.memory().len()
    }

    /// Whether an allocator lives in it.
    #[must_use]
    pub fn has_heap(&self) -> bool {
        self.inner.heap
    }

    /// Bytes of a page: what images are made of.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.inner.memory().page_bytes()
    }

    /// The allocator; none for an arena that was made without one.
    #[must_use]
    pub fn heap(&self) -> Option<Heap<'_>> {
        self.inner.heap()
    }

    /// Keeps the arena from being frozen until the guard is dropped. Blocks during a pause.
    #[must_use]
    pub fn writing(&self) -> Writing<'_> {
        Writing {
            _shared: self.inner.gate.read(),
        }
    }

    /// Loads the 8-byte word at `offset`, with acquire order.
    ///
    /// # Errors
    /// [`ArenaError::HasHeap`]; [`ArenaError::OutOfBounds`], also for an offset not at a multiple
    /// of 8.
    pub fn load_u64(&self, offset: usize) -> Result<u64> {
        Ok(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Stores the 8-byte word at `offset`, with release order. Blocks where the page belongs to an
    /// image and no room is left to hold its copy.
    ///
    /// # Errors
    /// As [`Self::load_u64`].
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<()> {
        self.word(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    fn word(&self, offset: usize) -> Result<&AtomicU64> {
        let arena_len = self.len();
        if self.inner.heap {
            return Err(ArenaError::HasHeap);
        }
        if !offset.is_multiple_of(8) || offset >= arena_len {
            return Err(ArenaError::OutOfBounds {
                offset,
                len: 8,
                arena_len,
            });
        }
        // SAFETY: inside the mapping and aligned, as its start is; without a heap this crate gives
        // out no references but these, to atomics. Whoever looks through `as_ptr` or registered
        // the mapping answers for that.
        Ok(unsafe { AtomicU64::from_ptr(self.as_ptr().add(offset).cast()) })
    }

    /// Freezes the contents, as an image that is taken while the program runs on.
    ///
    /// With [`Method::Protect`] what was written since the last time is protected in rounds while
    /// the program runs, and the rest in the pause; the pause depends neither on how much that was
    /// nor on the arena's length. Blocks for the rounds, and until all [`Writing`] guards are
    /// dropped. The calling thread must not hold one.
    ///
    /// # Errors
    /// [`ArenaError::Frozen`] while an image exists; [`ArenaError::Lost`]; [`ArenaError::Io`].
    pub fn freeze(&self, scope: Scope) -> Result<Frozen> {
        let inner = &self.inner;
        if inner.frozen.swap(true, Ordering::AcqRel) {
            return Err(ArenaError::Frozen);
        }
        let base = *inner.finished.lock();
        let full = scope == Scope::Full || base.is_none() || inner.method() == Method::Fork;
        let frozen = match &inner.body {
            Body::Watched { watch, .. } => inner.protect(watch, full),
            Body::Forked { memory } => inner.fork(memory),
        };
        match frozen {
            Ok((source, mut report)) => {
                report.generation = inner.generation.fetch_add(1, Ordering::AcqRel) + 1;
                report.base = base.filter(|_| !full);
                Ok(Frozen::new(Arc::clone(inner), source, report))
            }
            Err(error) => {
                inner.frozen.store(false, Ordering::Release);
                Err(error)
            }
        }
    }
}

impl Inner {
    pub(crate) fn memory(&self) -> &Memory {
        match &self.body {
            Body::Watched { watch, .. } => watch.memory(),
            Body::Forked { memory } => memory,
        }
    }

    fn method(&self) -> Method {
        match &self.body {
            Body::Watched { .. } => Method::Protect,
            Body::Forked { .. } => Method::Fork,
        }
    }

    fn heap(&self) -> Option<Heap<'_>> {
        let control = self.memory().control().filter(|_| self.heap)?;
        Some(Heap::at(self.memory().start(), control))
    }

    /// Stops everybody who writes, does `work`, and says how long that took and for how much of it
    /// it waited for guards to be dropped.
    fn pause<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration, Duration)> {
        let heap = self.heap();
        let begun = Instant::now();
        let alone = self.gate.write();
        let held = heap.as_ref().map(Heap::hold);
        let waited = begun.elapsed();
        let done = work();
        drop(held);
        drop(alone);
        Ok((done?, begun.elapsed(), waited))
    }

    fn protect(&self, watch: &Arc<Watch>, full: bool) -> Result<(Source, Report)> {
        watch.check()?;
        let begun = Instant::now();
        watch.begin()?;
        let mut rounds = 0;
        let mut pages_in_rounds = 0;
        while rounds < self.rounds_max && watch.left() > self.pages_left_max {
            pages_in_rounds += watch.round()?;
            rounds += 1;
        }
        let prepared = watch.prepare(full);
        let before = begun.elapsed();
        let (pages_in_pause, pause, waited) = self.pause(|| watch.freeze(prepared))?;
        let report = Report {
            pause,
            waited_for_writers: waited,
            before_pause: before,
            rounds,
            pages_in_rounds,
            pages_in_pause,
            pages: watch.image_pages(),
            ..Report::new(Method::Protect)
        };
        Ok((Source::Protected(Arc::clone(watch)), report))
    }

    fn fork(&self, memory: &Memory) -> Result<(Source, Report)> {
        let (keeper, pause, waited) = self.pause(Keeper::fork)?;
        let pages = keeper.pages(memory)?;
        let report = Report {
            pause,
            waited_for_writers: waited,
            pages: pages.count(),
            ..Report::new(Method::Fork)
        };
        Ok((Source::forked(keeper, pages), report))
    }

    /// An image has ended; with its generation, if it was finished.
    pub(crate) fn ended(&self, finished: Option<u64>) {
        if finished.is_some() {
            *self.finished.lock() = finished;
        }
        self.frozen.store(false, Ordering::Release);
    }
}

/// Memory that an image is put into, used by nobody yet.
#[derive(Debug)]
pub struct Restoring {
    memory: Memory,
    options: ArenaOptions,
}

impl Restoring {
    /// Puts whole pages from page `first_page` on. What is put nowhere is zero. Of a chain of
    /// images the full one comes first, then those that build on it, in their order.
    ///
    /// # Errors
    /// [`ArenaError::OutOfBounds`].
    pub fn write(&mut self, first_page: usize, bytes: &[u8]) -> Result<()> {
        let page_bytes = self.memory.page_bytes();
        if !bytes.len().is_multiple_of(page_bytes) {
            return Err(ArenaError::OutOfBounds {
                offset: first_page.saturating_mul(page_bytes),
                len: bytes.len(),
                arena_len: self.memory.len(),
            });
        }
        let offset = first_page.saturating_mul(page_bytes);
        self.bytes_mut(offset, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// The `len` bytes from byte `offset` on, to be filled in place.
    ///
    /// # Errors
    /// [`ArenaError::OutOfBounds`].
    pub fn bytes_mut(&mut self, offset: usize, len: usize) -> Result<&mut [u8]> {
        let arena_len = self.memory.len();
        if offset.checked_add(len).is_none_or(|end| end > arena_len) {
            return Err(ArenaError::OutOfBounds {
                offset,
                len,
                arena_len,
            });
        }
        // SAFETY: nobody else has the memory before it is sealed.
        let memory = unsafe { self.memory.bytes_mut() };
        Ok(&mut memory[offset..offset + len])
    }

    /// Where the first byte is.
    #[must_use]
    pub fn address(&self) -> usize {
        self.memory.start().as_ptr().addr()
    }

    /// Bytes of a page.
    #[must_use]
    pub const fn page_bytes(&self) -> usize {
        self.memory.page_bytes()
    }

    /// As [`Self::seal`], of memory without a heap: nothing needs to be promised.
    ///
    /// # Errors
    /// [`ArenaError::HasHeap`] where the options ask for a heap; others as [`Arena::create`].
    pub fn seal_plain(self) -> Result<Arena> {
        if self.options.heap {
            return Err(ArenaError::HasHeap);
        }
        advise_huge_pages(&self.memory, &self.options);
        Arena::over(self.memory, &self.options)
    }

    /// Makes an arena of what was put. Its first image is a full one.
    ///
    /// # Errors
    /// [`ArenaError::BadImage`] where the options ask for a heap and the image has none of this
    /// address and length; others as [`Arena::create`].
    ///
    /// # Safety
    /// With a heap, the pages are those of an image that this program, built the same way, made:
    /// the allocator's state and the root are taken for what they are. Without, there is nothing
    /// to promise.
    pub unsafe fn seal(self) -> Result<Arena> {
        if let (true, Some(control)) = (self.options.heap, self.memory.control()) {
            // SAFETY: nobody else has the memory; the caller's promise for the rest.
            unsafe { Heap::take_over(&self.memory, control)? };
        }
        advise_huge_pages(&self.memory, &self.options);
        Arena::over(self.memory, &self.options)
    }
}

/// The longest grain: a huge page of most machines.
const GRAIN_PAGES_MAX: usize = 512;

fn advise_huge_pages(memory: &Memory, options: &ArenaOptions) {
    if options.huge_pages {
        // A hint: a kernel without huge pages serves small ones.
        let _ = memory.advise(MmapAdvise::MADV_HUGEPAGE);
    }
}

fn map(options: &ArenaOptions) -> Result<Memory> {
    let refuse = |reason| Err(ArenaError::BadOptions { reason });
    if options.len_bytes == 0 || !options.len_bytes.is_multiple_of(ALIGN_BYTES) {
        return refuse("the length has to be a multiple of 2 MiB");
    }
    const { assert!(HEAP_BYTES_MIN <= ALIGN_BYTES) };
    if let Some(address) = options.address
        && (address == 0 || !address.is_multiple_of(ALIGN_BYTES))
    {
        return refuse("the address has to be a multiple of 2 MiB");
    }
    let memory = Memory::map(options.len_bytes, options.address)?;
    advise_huge_pages(&memory, options);
    if options.prefault {
        memory
            .advise(MmapAdvise::MADV_POPULATE_WRITE)
            .map_err(|error| ArenaError::io("find the arena's pages", error))?;
    }
    Ok(memory)
}

fn body(memory: Memory, options: &ArenaOptions) -> Result<(Body, Option<String>)> {
    if !options.grain_pages.is_power_of_two() || options.grain_pages > GRAIN_PAGES_MAX {
        return Err(ArenaError::BadOptions {
            reason: "the grain has to be a power of two of pages, up to 512",
        });
    }
    if options.method == Method::Fork {
        return Ok((Body::Forked { memory }, None));
    }
    let (aside, grain, by) = (
        options.aside_bytes_max,
        options.grain_pages,
        options.served_by,
    );
    match Watch::new(memory, aside, grain, by) {
        Ok(watch) => {
            let watch = Arc::new(watch);
            let service = match options.served_by {
                ServedBy::Thread => Service::Thread {
                    _server: Server::start(Arc::clone(&watch), options.cpus.clone())?,
                },
                ServedBy::Signal => Service::Signal {
                    _listed: Listed::new(Arc::clone(&watch))?,
                },
            };
            let body = Body::Watched {
                _service: service,
                watch,
            };
            Ok((body, None))
        }
        Err((memory, error @ ArenaError::NotPossible { .. })) if options.method == Method::Auto => {
            let reason = reason(&error);
            tracing::warn!(reason, "arena is frozen by fork");
            Ok((Body::Forked { memory }, Some(reason)))
        }
        Err((_, error)) => Err(error),
    }
}

fn reason(error: &ArenaError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
