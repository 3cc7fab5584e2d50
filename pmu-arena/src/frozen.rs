//! A frozen image, taken page by page while the program runs on.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::arena::Inner;
use crate::bits::Pages;
use crate::error::{ArenaError, Result};
use crate::fork::Keeper;
use crate::options::Method;
use crate::watch::Watch;

/// What freezing took, and what happened since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How it was frozen: [`Method::Protect`] or [`Method::Fork`].
    pub method: Method,
    /// Number of the image, from 1 on in the order of freezing.
    pub generation: u64,
    /// The image on which this one builds; none for a full one.
    pub base: Option<u64>,
    /// From asking everybody to stop until they could go on.
    pub pause: Duration,
    /// How much of the pause went until all guards were dropped.
    pub waited_for_writers: Duration,
    /// What was done before, while the program ran.
    pub before_pause: Duration,
    /// Rounds before the pause.
    pub rounds: u32,
    /// Pages that were protected in these; a page that was written again counts again.
    pub pages_in_rounds: usize,
    /// Pages that were protected in the pause.
    pub pages_in_pause: usize,
    /// Pages in the image.
    pub pages: usize,
    /// Pages whose frozen contents were copied aside, as they were written before they were taken.
    /// Not known (0) with [`Method::Fork`], where the kernel does that.
    pub copied_aside: usize,
    /// Writes that waited since no room was left to copy aside.
    pub waits: usize,
    /// Writes that waited since their page was just being taken.
    pub met_reader: usize,
}

impl Report {
    pub(crate) const fn new(method: Method) -> Self {
        Self {
            method,
            generation: 0,
            base: None,
            pause: Duration::ZERO,
            waited_for_writers: Duration::ZERO,
            before_pause: Duration::ZERO,
            rounds: 0,
            pages_in_rounds: 0,
            pages_in_pause: 0,
            pages: 0,
            copied_aside: 0,
            waits: 0,
            met_reader: 0,
        }
    }

    /// Whether the image needs no other one.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.base.is_none()
    }
}

/// Adjacent pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page.
    pub first_page: usize,
    /// How many pages.
    pub pages: usize,
}

/// The contents of an arena at the point of freezing: of a full image all pages that were ever
/// touched, otherwise those that changed since the image it builds on.
///
/// It is taken in order of the pages with [`Self::take`], by one thread, which must not write to
/// the arena: it may be the one that its own write would wait for. Whoever writes to a page that
/// isn't taken yet goes on once the page is copied aside, or waits where the bound of
/// [`crate::ArenaOptions::aside_bytes_max`] is reached.
///
/// [`Self::finish`] says that all that was taken is kept, so that the next image may build on it.
/// Dropping it instead ends it: what it held counts as changed for the next one.
#[derive(Debug)]
pub struct Frozen {
    inner: Arc<Inner>,
    source: Source,
    report: Report,
    finished: bool,
    /// Whether everything was taken.
    exhausted: bool,
}

/// Where the frozen pages are.
#[derive(Debug)]
pub(crate) enum Source {
    /// In the arena, or aside.
    Protected(Arc<Watch>),
    /// In a forked process.
    Forked {
        keeper: Keeper,
        pages: Pages,
        cursor: usize,
    },
}

impl Source {
    pub(crate) const fn forked(keeper: Keeper, pages: Pages) -> Self {
        Self::Forked {
            keeper,
            pages,
            cursor: 0,
        }
    }
}

impl Frozen {
    pub(crate) const fn new(inner: Arc<Inner>, source: Source, report: Report) -> Self {
        Self {
            inner,
            source,
            report,
            finished: false,
            exhausted: false,
        }
    }

    /// Copies the next adjacent pages into `buffer`, as many as there are and fit; none when all
    /// are taken. The buffer is the caller's from then on: no lock is held and nobody waits while
    /// it is sent.
    ///
    /// # Errors
    /// [`ArenaError::BadOptions`] for a buffer shorter than a page; [`ArenaError::Lost`];
    /// [`ArenaError::Io`] where a forked process can't be read. The image is then of no use.
    pub fn take(&mut self, buffer: &mut [u8]) -> Result<Option<Run>> {
        let page_bytes = self.inner.memory().page_bytes();
        if buffer.len() < page_bytes {
            return Err(ArenaError::BadOptions {
                reason: "the buffer is shorter than a page",
            });
        }
        let mut run: Option<Range<usize>> = None;
        loop {
            let done = run.as_ref().map_or(0, Range::len);
            let rest = &mut buffer[done * page_bytes..];
            if rest.len() < page_bytes {
                break;
            }
            let at = run.as_ref().map(|run| run.end);
            match self.take_piece(rest, at)? {
                None => break,
                Some(piece) => run = Some(run.map_or(piece.start, |run| run.start)..piece.end),
            }
        }
        self.exhausted = run.is_none();
        Ok(run.map(|run| Run {
            first_page: run.start,
            pages: run.len(),
        }))
    }

    fn take_piece(&mut self, target: &mut [u8], at: Option<usize>) -> Result<Option<Range<usize>>> {
        match &mut self.source {
            Source::Protected(watch) => watch.take(target, at),
            Source::Forked {
                keeper,
                pages,
                cursor,
            } => {
                let memory = self.inner.memory();
                let len_max = target.len() / memory.page_bytes();
                let Some(run) = pages.next_run(*cursor, len_max) else {
                    return Ok(None);
                };
                if at.is_some_and(|at| at != run.start) {
                    return Ok(None);
                }
                let target = &mut target[..run.len() * memory.page_bytes()];
                keeper.read(&memory.addresses(&run), target)?;
                *cursor = run.end;
                Ok(Some(run))
            }
        }
    }

    /// The pages of the image that are not taken yet, in the order in which [`Self::take`] gives
    /// them: each run as long as possible.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        match &self.source {
            Source::Protected(watch) => watch.image_runs(|run| runs.push(run)),
            Source::Forked { pages, cursor, .. } => pages.runs(*cursor, |run| runs.push(run)),
        }
        let named = runs.into_iter().map(|run: Range<usize>| Run {
            first_page: run.start,
            pages: run.len(),
        });
        named.collect()
    }

    /// What it took, and what has happened until now.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = self.report;
        if let Source::Protected(watch) = &self.source {
            let counts = watch.counts();
            report.copied_aside = counts.copied_aside;
            report.waits = counts.waits;
            report.met_reader = counts.met_reader;
        }
        report
    }

    /// Ends the image: what was taken is kept, and the next one may build on it.
    ///
    /// # Errors
    /// [`ArenaError::BadOptions`] unless [`Self::take`] has said that there is nothing more; the
    /// image then counts as dropped.
    pub fn finish(mut self) -> Result<Report> {
        if !self.exhausted {
            return Err(ArenaError::BadOptions {
                reason: "not all pages of the image were taken",
            });
        }
        self.finished = true;
        Ok(self.report())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Source::Protected(watch) = &self.source {
            watch.end(self.finished);
        }
        self.inner
            .ended(self.finished.then_some(self.report.generation));
    }
}
