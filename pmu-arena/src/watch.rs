//! Watching an arena's pages: which were written, and what a frozen image still needs of them.
//!
//! **What always holds** (under the lock of [`State`]): a page that may be written is in
//! `unprotected`; a page of an image that the reader has not taken and that has no copy aside is
//! protected. So whoever copies such a page copies what was frozen.
//!
//! Nothing here ever writes to the arena: that could wait for the very thread that serves the
//! writes.

use std::io;
use std::ops::Range;
// Not those of parking_lot: a lock of the program's may lie in the arena, and be one of these. Its
// word is then written, and the write served, in the middle of parking_lot's own work.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::mman::MmapAdvise;

use crate::aside::{Aside, AsideCopy};
use crate::bits::Pages;
use crate::error::{ArenaError, Result};
use crate::memory::Memory;
use crate::options::ServedBy;
use crate::scan;
use crate::uffd::Userfaultfd;

/// Protected pages between written ones are protected once more with them, rather than calling the
/// kernel once more.
const GAP_PAGES_MAX: usize = 32;
/// Pages that the reader takes at a time: a writer that meets it waits for as many.
pub(crate) const PIECE_PAGES: usize = 32;

/// How long a writer that serves itself waits at most before it makes its write again. Signals that
/// came meanwhile are handled then.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How many arenas this program has released.
static RELEASED: AtomicU64 = AtomicU64::new(0);

/// How many arenas were released until now: a write that met the protection of one may still come
/// to the handler.
pub(crate) fn released() -> u64 {
    RELEASED.load(Ordering::Acquire)
}

/// What is known of the pages.
#[derive(Debug)]
struct State {
    /// Those that may be written without being noticed.
    unprotected: Pages,
    /// Written since the last image that was finished was frozen.
    changed: Pages,
    /// Ever touched.
    touched: Pages,
    /// Whether everything was protected once.
    watched: bool,
    image: Option<Image>,
    aside: Aside,
    /// Writes that wait for the reader.
    waiting: Vec<usize>,
}

/// An image that is being taken.
#[derive(Debug)]
struct Image {
    pages: Pages,
    /// What had changed when it was frozen, where that isn't `pages`.
    changed: Option<Pages>,
    /// Pages below are taken.
    cursor: usize,
    /// Pages from `cursor` up to here are being copied.
    taking: usize,
    counts: Counts,
}

/// Why a write waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    /// The page is just being taken.
    Reader,
    /// No room is left to copy it aside.
    Room,
}

/// What happened to an image's pages while it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) copied_aside: usize,
    pub(crate) waits: usize,
    pub(crate) met_reader: usize,
}

/// An arena's memory under watch.
#[derive(Debug)]
pub(crate) struct Watch {
    // Before the memory: closed first.
    uffd: Userfaultfd,
    memory: Memory,
    /// Pages that are served together.
    grain_pages: usize,
    state: Mutex<State>,
    /// Writers that serve themselves and wait for the reader look again.
    look_again: Condvar,
    lost: AtomicBool,
    /// Lost, and all protection taken away.
    released: AtomicBool,
}

/// What a freeze needs and has made ready before the pause.
#[derive(Debug)]
pub(crate) struct Prepared {
    none: Pages,
    /// For a full image: what was ever touched.
    all: Option<Pages>,
}

impl Watch {
    /// Puts a mapping under watch; nothing is protected yet. Gives the mapping back if that isn't
    /// possible.
    pub(crate) fn new(
        memory: Memory,
        aside_bytes_max: usize,
        grain_pages: usize,
        served_by: ServedBy,
    ) -> std::result::Result<Self, (Memory, ArenaError)> {
        let pages = memory.pages();
        let begin = || {
            let uffd = Userfaultfd::open(served_by)?;
            can_scan(&memory)?;
            uffd.register(&memory.addresses(&(0..pages)))
                .map_err(|source| ArenaError::NotWatchable { source })?;
            let slots = aside_bytes_max / memory.page_bytes();
            Ok((uffd, Aside::new(slots, pages, memory.page_bytes())?))
        };
        match begin() {
            Err(error) => Err((memory, error)),
            Ok((uffd, aside)) => Ok(Self {
                uffd,
                memory,
                grain_pages: grain_pages.max(1),
                state: Mutex::new(State {
                    unprotected: Pages::none(pages),
                    changed: Pages::none(pages),
                    touched: Pages::none(pages),
                    watched: false,
                    image: None,
                    aside,
                    waiting: Vec::new(),
                }),
                look_again: Condvar::new(),
                lost: AtomicBool::new(false),
                released: AtomicBool::new(false),
            }),
        }
    }

    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) const fn uffd(&self) -> &Userfaultfd {
        &self.uffd
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Refuses once the watch is lost.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_lost() {
            return Err(ArenaError::Lost);
        }
        Ok(())
    }

    /// Gives up: all pages may be written, nobody waits, and nothing can be frozen or taken.
    pub(crate) fn lose(&self, error: &io::Error) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "arena is not watched any more: no image can be made");
        }
        self.release_all();
    }

    fn release_all(&self) {
        let all = self.memory.addresses(&(0..self.memory.pages()));
        if let Err(error) = self.uffd.unregister(&all) {
            tracing::error!(%error, "release an arena");
        }
        // In this order: who finds it released counts it as well.
        RELEASED.fetch_add(1, Ordering::AcqRel);
        self.released.store(true, Ordering::Release);
    }

    /// Ends the watch of an arena that is dropped: all pages may be written from now on, also while
    /// a handler of a write still holds the watch, or a process that is just started the descriptor.
    pub(crate) fn retire(&self) {
        // In a forked process the pages are its parent's, which goes on; and a lock may be held by
        // a thread of the parent's.
        if self.uffd.is_of_this_process() {
            let _state = self.state();
            self.lost.store(true, Ordering::Release);
            self.release_all();
        }
    }

    /// Whether no page is protected any more.
    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// Serves writes to protected pages.
    pub(crate) fn serve(&self, addresses: &[u64]) {
        let mut state = self.state();
        for &address in addresses {
            let page = self.memory.page_of(address);
            if page < self.memory.pages() {
                self.serve_page(&mut state, page, true);
            }
        }
    }

    /// Serves a write to a protected page in the thread that makes it: it is to be made again then.
    /// False if it will be noticed again, as it waits for the reader still. `first` says that
    /// this isn't such a write.
    pub(crate) fn serve_here(&self, address: u64, first: bool) -> bool {
        let page = self.memory.page_of(address);
        let mut state = self.state();
        if self.is_lost() || self.let_write(&mut state, page, first) {
            return true;
        }
        let until = Instant::now() + LOOK_AGAIN;
        while let Some(rest) = until.checked_duration_since(Instant::now()) {
            let waited = self.look_again.wait_timeout(state, rest);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            // The watch may be lost in between, which nobody tells.
            if self.is_lost() || self.let_write(&mut state, page, false) {
                return true;
            }
        }
        false
    }

    /// Lets a page be written, or remembers that somebody waits for it.
    fn serve_page(&self, state: &mut State, page: usize, first: bool) {
        if !self.let_write(state, page, first) {
            state.waiting.push(page);
        }
    }

    /// Lets a page be written, and its grain with it; false while the image needs them.
    fn let_write(&self, state: &mut State, page: usize, first: bool) -> bool {
        let mut pages = self.grain(page);
        let mut kept = self.keep(state, &pages);
        if kept.is_err() && pages.len() > 1 {
            // Not all of it now; perhaps the page alone.
            pages = page..page + 1;
            kept = self.keep(state, &pages);
        }
        if let Err(obstacle) = kept {
            if let Some(image) = &mut state.image {
                match obstacle {
                    Obstacle::Reader => image.counts.met_reader += usize::from(first),
                    Obstacle::Room => image.counts.waits += usize::from(first),
                }
            }
            return false;
        }
        state.unprotected.add_range(pages.clone());
        state.changed.add_range(pages.clone());
        state.touched.add_range(pages.clone());
        if let Err(error) = self.uffd.release(&self.memory.addresses(&pages)) {
            self.lose(&error);
        }
        true
    }

    /// The pages that are served together with this one.
    fn grain(&self, page: usize) -> Range<usize> {
        let start = page / self.grain_pages * self.grain_pages;
        start..(start + self.grain_pages).min(self.memory.pages())
    }

    /// Copies aside what the image still needs of these pages: all of it, or nothing.
    fn keep(&self, state: &mut State, pages: &Range<usize>) -> std::result::Result<(), Obstacle> {
        let State { image, aside, .. } = state;
        let Some(image) = image else {
            return Ok(());
        };
        let needed = |page: &usize| image.needs(*page) && !aside.has(*page);
        let taking = image.taking;
        if pages.clone().filter(needed).any(|page| page < taking) {
            return Err(Obstacle::Reader);
        }
        if pages.clone().filter(needed).count() > aside.room() {
            return Err(Obstacle::Room);
        }
        for page in pages.clone() {
            if image.needs(page) && !aside.has(page) {
                // SAFETY: the image needs the page and has no copy, so it is protected; only
                // `serve_page` lets it be written, under the lock that we hold.
                if unsafe { !aside.keep(&self.memory, page) } {
                    return Err(Obstacle::Room);
                }
                image.counts.copied_aside += 1;
            }
        }
        Ok(())
    }

    /// Protects everything for the first time, and finds what was touched until then.
    pub(crate) fn begin(&self) -> Result<()> {
        if self.state().watched {
            return Ok(());
        }
        // Untouched memory then shows the zero page, so that it can be protected and told from
        // what was touched.
        self.memory
            .advise(MmapAdvise::MADV_POPULATE_READ)
            .map_err(|error| ArenaError::io("find the arena's pages", error))?;
        let all = self.memory.addresses(&(0..self.memory.pages()));
        self.uffd
            .protect(&all)
            .map_err(|error| ArenaError::io("protect the arena", error))?;
        let mut found = Pages::none(self.memory.pages());
        scan::touched(&all, |part| found.add_range(self.pages_of(&part)))
            .map_err(|error| ArenaError::io("find touched pages", error))?;
        let mut state = self.state();
        state.touched.add_all(&found);
        state.changed.add_all(&found);
        state.watched = true;
        Ok(())
    }

    fn pages_of(&self, addresses: &Range<u64>) -> Range<usize> {
        self.memory.page_of(addresses.start)..self.memory.page_of(addresses.end)
    }

    /// Protects what was written since the last time, while the program runs. Returns how many
    /// pages those were.
    pub(crate) fn round(&self) -> Result<usize> {
        let mut written = Pages::none(self.memory.pages());
        std::mem::swap(&mut self.state().unprotected, &mut written);
        // A page of these may be written, served and so in `unprotected` again before or after its
        // turn comes here; that it is then protected as well costs one more message.
        self.protect(&written)
    }

    fn protect(&self, pages: &Pages) -> Result<usize> {
        let mut failure = None;
        pages.spans(GAP_PAGES_MAX, |span| {
            if failure.is_none() {
                failure = self.uffd.protect(&self.memory.addresses(&span)).err();
            }
        });
        match failure {
            None => Ok(pages.count()),
            Some(error) => {
                self.lose(&error);
                Err(ArenaError::io("protect pages", error))
            }
        }
    }

    /// How many pages are left to protect.
    pub(crate) fn left(&self) -> usize {
        self.state().unprotected.count()
    }

    /// Makes ready what [`Self::freeze`] needs, after the last round.
    pub(crate) fn prepare(&self, full: bool) -> Prepared {
        Prepared {
            none: Pages::none(self.memory.pages()),
            all: full.then(|| self.state().touched.clone()),
        }
    }

    /// The point of freezing: protects the rest and begins an image. No write is served meanwhile,
    /// so that a thread which meets a protected page goes no further before the point.
    pub(crate) fn freeze(&self, prepared: Prepared) -> Result<usize> {
        self.check()?;
        let Prepared { none, all } = prepared;
        let mut state = self.state();
        let pages_in_pause = self.protect(&state.unprotected)?;
        let changed = std::mem::replace(&mut state.changed, none);
        let (pages, changed) = match all {
            None => (changed, None),
            Some(mut all) => {
                // What was touched since `prepare` was written and is in `unprotected`.
                all.add_all(&state.unprotected);
                (all, Some(changed))
            }
        };
        state.unprotected.clear();
        state.image = Some(Image {
            pages,
            changed,
            cursor: 0,
            taking: 0,
            counts: Counts::default(),
        });
        Ok(pages_in_pause)
    }

    /// Pages of the image.
    pub(crate) fn image_pages(&self) -> usize {
        let state = self.state();
        state.image.as_ref().map_or(0, |image| image.pages.count())
    }

    /// Visits the runs of the image's pages that are not taken yet.
    pub(crate) fn image_runs(&self, visit: impl FnMut(Range<usize>)) {
        // Nobody but its reader, who asks, moves the cursor or ends the image.
        let taken = {
            let state = self.state();
            let image = state.image.as_ref();
            image.map(|image| (image.pages.clone(), image.cursor))
        };
        if let Some((pages, cursor)) = taken {
            pages.runs(cursor, visit);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state();
        state
            .image
            .as_ref()
            .map_or_else(Counts::default, |image| image.counts)
    }

    /// Takes the next adjacent pages, at most [`PIECE_PAGES`], into `target`; with `at`, only if
    /// they begin there. The lock is not held while bytes are copied.
    pub(crate) fn take(
        &self,
        target: &mut [u8],
        at: Option<usize>,
    ) -> Result<Option<Range<usize>>> {
        self.check()?;
        let page_bytes = self.memory.page_bytes();
        let len_max = (target.len() / page_bytes).min(PIECE_PAGES);
        let mut copies = [None; PIECE_PAGES];
        let Some(run) = self.begin_taking(len_max, at, &mut copies) else {
            return Ok(None);
        };
        let target = &mut target[..run.len() * page_bytes];
        for (index, bytes) in target.chunks_exact_mut(page_bytes).enumerate() {
            match copies[index] {
                // SAFETY: the pool forgets a copy in `end_taking` alone, or when the image ends,
                // which its only reader does; a chunk is a page.
                Some(copy) => unsafe { AsideCopy::read(copy, bytes) },
                // SAFETY: a page of the image with no copy is protected, and being between
                // `cursor` and `taking` stays so until `end_taking`.
                None => unsafe { self.memory.copy_pages(run.start + index, bytes) },
            }
        }
        self.end_taking(&run);
        self.check()?;
        Ok(Some(run))
    }

    fn begin_taking(
        &self,
        len_max: usize,
        at: Option<usize>,
        copies: &mut [Option<AsideCopy>; PIECE_PAGES],
    ) -> Option<Range<usize>> {
        let mut state = self.state();
        let State { image, aside, .. } = &mut *state;
        let image = image.as_mut()?;
        let run = image.pages.next_run(image.cursor, len_max)?;
        if at.is_some_and(|at| at != run.start) {
            return None;
        }
        image.cursor = run.start;
        image.taking = run.end;
        for (copy, page) in copies.iter_mut().zip(run.clone()) {
            *copy = aside.copy_of(page);
        }
        Some(run)
    }

    fn end_taking(&self, run: &Range<usize>) {
        let mut state = self.state();
        run.clone().for_each(|page| state.aside.forget(page));
        if let Some(image) = &mut state.image {
            image.cursor = run.end;
            image.taking = run.end;
        }
        self.serve_waiting(&mut state);
    }

    /// Ends the image. What it held counts as changed again unless it is stored.
    pub(crate) fn end(&self, stored: bool) -> Counts {
        let mut state = self.state();
        let Some(image) = state.image.take() else {
            return Counts::default();
        };
        let mut page = image.cursor;
        while let Some(next) = image.pages.next(page) {
            state.aside.forget(next);
            page = next + 1;
        }
        if !stored {
            let changed = image.changed.as_ref().unwrap_or(&image.pages);
            state.changed.add_all(changed);
        }
        self.serve_waiting(&mut state);
        image.counts
    }

    fn serve_waiting(&self, state: &mut MutexGuard<'_, State>) {
        for page in std::mem::take(&mut state.waiting) {
            self.serve_page(state, page, false);
        }
        self.look_again.notify_all();
    }
}

impl Image {
    /// Whether the page's frozen contents are still to be taken.
    fn needs(&self, page: usize) -> bool {
        page >= self.cursor && self.pages.has(page)
    }
}

/// Whether this kernel says which pages were touched.
fn can_scan(memory: &Memory) -> Result<()> {
    scan::touched(&memory.addresses(&(0..1)), |_| ()).map_err(|source| ArenaError::NotPossible {
        action: "scan the page map",
        source,
    })
}
