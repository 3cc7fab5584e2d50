//! Follows a directory, and makes segments of the files that a program has stored in it.
//!
//! A file is taken when it was closed after writing, or came by a rename or link; when nothing has changed it for a while; when nobody has it
//! open for writing; and if it is the same after it was read as before. The first says that the program is done, the others that it is true.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Segments;
use super::error::{Result, SegmentError};
use super::glob::{EXCLUDED_DEFAULT, is_like};
use super::names::SegmentName;
use super::notices::{Notice, Notices};
use super::writer::{Outcome, SegmentWriter};
use super::writers::{FileId, being_written};
use crate::error::ClientError;

/// The longest sleep: so often Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(100);
/// The pause before a file that is being written is looked at again, and before units that are away are called again: first, and longest.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long another watcher of the same body is waited for when units were lost: the unit may not have seen yet that we are gone.
const WRITER_PATIENCE: Duration = Duration::from_secs(60);
/// The deepest directory that is looked into.
const DEPTH_MAX: usize = 64;

/// How a directory is watched.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WatchOptions {
    /// How long nothing may have changed a file before it is taken. Longer than the step of the file system's clock (some milliseconds; two
    /// seconds on FAT).
    pub settle: Duration,
    /// How often all files are looked at, whatever was told.
    pub rescan: Duration,
    /// Patterns of names of files and directories that are no segments.
    pub excluded: Vec<String>,
    /// Units that each segment must lie on at least.
    pub replicas: usize,
    /// What this computer is called in the index.
    pub node: String,
    /// Look once at what there is, and end when all of it is a segment or can't be one.
    pub once: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(100),
            rescan: Duration::from_secs(60),
            excluded: EXCLUDED_DEFAULT.map(str::to_owned).to_vec(),
            replicas: 2,
            node: Segments::this_node(),
            once: false,
        }
    }
}

/// What a watcher has to tell.
#[derive(Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// The directory is followed. How many files there are.
    Watching {
        /// Files that may be segments.
        files: usize,
        /// Units that each segment lies on.
        units: usize,
    },
    /// Something became of a file.
    File(SegmentName, Outcome),
    /// A file that can have no name.
    Nameless(PathBuf, SegmentError),
    /// The units can't be used now; the files wait.
    Waiting(SegmentError),
    /// They can again.
    Resumed,
}

/// Follows `directory` until `stop` says so (or, with [`WatchOptions::once`], until all is done), and hands each event to `tell`. Blocks. Files
/// are opened for reading alone, and never changed.
///
/// # Errors
/// [`SegmentError::Interrupted`] when stopped; [`ClientError::Fenced`], [`ClientError::WriterExists`]: another watcher has the body;
/// [`SegmentError::TooFewReplicas`]; [`SegmentError::File`]: the directory can't be followed; what can't be mended by waiting. While units are
/// away it waits for them, but at the beginning and with [`WatchOptions::once`].
pub fn watch(
    segments: &Segments,
    directory: &Path,
    options: &WatchOptions,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(WatchEvent),
) -> Result<()> {
    let directory = fs::canonicalize(directory)
        .map_err(|error| SegmentError::file("watch", directory, error))?;
    // First, so that nothing falls between looking and listening.
    let notices = Notices::new(&directory)?;
    let writer = segments.open_writer(&options.node, options.replicas)?;
    let mut watcher = Watcher {
        segments,
        options,
        stop,
        notices,
        pending: BTreeMap::new(),
        nameless: HashSet::new(),
        refused: HashSet::new(),
        rescan_at: Instant::now() + options.rescan,
        units: writer.units(),
        writer: Some(writer),
        retry_at: Instant::now(),
        retry_pause: RETRY_MIN,
        held_since: None,
        directory,
    };
    watcher.run(tell)
}

/// A file that is to be looked at.
#[derive(Debug, Clone, Copy)]
struct Pending {
    at: Instant,
    pause: Duration,
}

struct Watcher<'a> {
    segments: &'a Segments,
    options: &'a WatchOptions,
    stop: &'a dyn Fn() -> bool,
    directory: PathBuf,
    notices: Notices,
    pending: BTreeMap<PathBuf, Pending>,
    /// Told of once.
    nameless: HashSet<PathBuf>,
    refused: HashSet<(SegmentName, FileId, i64, i64)>,
    rescan_at: Instant,
    units: usize,
    writer: Option<SegmentWriter>,
    retry_at: Instant,
    retry_pause: Duration,
    held_since: Option<Instant>,
}

impl Watcher<'_> {
    fn run(&mut self, tell: &mut dyn FnMut(WatchEvent)) -> Result<()> {
        self.look_again(tell)?;
        let (files, units) = (self.pending.len(), self.units);
        tell(WatchEvent::Watching { files, units });
        loop {
            self.check_stop()?;
            if self.options.once && self.pending.is_empty() {
                return Ok(());
            }
            for notice in self.notices.wait(self.pause())? {
                self.note(notice, tell)?;
            }
            if Instant::now() >= self.rescan_at {
                self.look_again(tell)?;
            }
            let taken = self.take_due(tell);
            self.tell_outcomes(tell);
            if let Err(error) = taken {
                self.lose(error, tell)?;
            }
        }
    }

    fn check_stop(&self) -> Result<()> {
        match (self.stop)() {
            true => Err(SegmentError::Interrupted),
            false => Ok(()),
        }
    }

    /// How long there is nothing to do.
    fn pause(&self) -> Duration {
        let next = self.pending.values().map(|pending| pending.at).min();
        let next = next.unwrap_or(self.rescan_at).max(self.retry_at);
        next.saturating_duration_since(Instant::now()).min(TICK)
    }

    fn note(&mut self, notice: Notice, tell: &mut dyn FnMut(WatchEvent)) -> Result<()> {
        match notice {
            Notice::Stored(path) => self.expect(path, self.options.settle),
            Notice::Created(path) => {
                // A link to a file that is complete is told in no other way.
                let metadata = fs::symlink_metadata(self.directory.join(&path));
                if metadata.is_ok_and(|metadata| metadata.nlink() > 1) {
                    self.expect(path, self.options.settle);
                }
            }
            Notice::Changed(path) => {
                if let Some(pending) = self.pending.get_mut(&path) {
                    pending.at = Instant::now() + self.options.settle;
                }
            }
            Notice::Gone(path) => drop(self.pending.remove(&path)),
            Notice::LookAgain => self.look_again(tell)?,
            Notice::Ended => {
                let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
                return Err(SegmentError::file("watch", &self.directory, gone));
            }
        }
        Ok(())
    }

    fn expect(&mut self, path: PathBuf, after: Duration) {
        if self.is_excluded(&path) {
            return;
        }
        let at = Instant::now() + after;
        let pause = RETRY_MIN;
        self.pending.insert(path, Pending { at, pause });
    }

    fn is_excluded(&self, path: &Path) -> bool {
        let mut names = path.iter().map(|name| name.as_bytes());
        names.any(|name| {
            let mut patterns = self.options.excluded.iter();
            patterns.any(|pattern| is_like(pattern.as_bytes(), name))
        })
    }

    /// Looks at all files, and sees to it that all directories are followed.
    fn look_again(&mut self, tell: &mut dyn FnMut(WatchEvent)) -> Result<()> {
        self.rescan_at = Instant::now() + self.options.rescan;
        let mut found = Vec::new();
        self.look_into(Path::new(""), 0, &mut found, tell)?;
        for path in found {
            if !self.pending.contains_key(&path) {
                self.expect(path, self.options.settle);
            }
        }
        Ok(())
    }

    fn look_into(
        &mut self,
        below: &Path,
        depth: usize,
        found: &mut Vec<PathBuf>,
        tell: &mut dyn FnMut(WatchEvent),
    ) -> Result<()> {
        let path = self.directory.join(below);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(SegmentError::file("list", &path, error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                if self.nameless.insert(below.to_owned()) {
                    let error = SegmentError::file("list", &path, error);
                    tell(WatchEvent::Nameless(below.to_owned(), error));
                }
                return Ok(());
            }
        };
        for entry in entries.flatten() {
            let path = below.join(entry.file_name());
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if self.is_excluded(&path) {
                continue;
            }
            if kind.is_dir() && depth < DEPTH_MAX {
                self.notices.add(&path)?;
                self.look_into(&path, depth + 1, found, tell)?;
            } else if kind.is_file() {
                found.push(path);
            }
        }
        Ok(())
    }

    /// Takes all files whose time has come.
    fn take_due(&mut self, tell: &mut dyn FnMut(WatchEvent)) -> Result<()> {
        let now = Instant::now();
        let due = self.pending.iter().filter(|(_, pending)| pending.at <= now);
        let due: Vec<_> = due.map(|(path, _)| path.clone()).collect();
        if due.is_empty() || now < self.retry_at {
            return Ok(());
        }
        self.open_writer(tell)?;
        if let Some(writer) = &mut self.writer {
            // Somebody may have dropped a name, or claimed one.
            writer.refresh()?;
        }
        let ids = self.ids(&due);
        let written = being_written(&ids.values().copied().collect());
        for path in due {
            self.check_stop()?;
            let name = match SegmentName::of_path(&path) {
                Ok(name) => name,
                Err(error) => {
                    self.pending.remove(&path);
                    if self.nameless.insert(path.clone()) {
                        tell(WatchEvent::Nameless(path, error.into()));
                    }
                    continue;
                }
            };
            if ids.get(&path).is_some_and(|id| written.contains(id)) {
                self.later(&path);
                continue;
            }
            if let Some(writer) = &mut self.writer {
                writer.take(&name, &self.directory.join(&path), self.stop)?;
            }
            self.tell_outcomes(tell);
        }
        match &mut self.writer {
            Some(writer) => writer.finish(self.stop),
            None => Ok(()),
        }
    }

    fn ids(&self, paths: &[PathBuf]) -> BTreeMap<PathBuf, FileId> {
        let known = paths.iter().filter_map(|path| {
            let metadata = fs::symlink_metadata(self.directory.join(path)).ok()?;
            Some((path.clone(), (metadata.dev(), metadata.ino())))
        });
        known.collect()
    }

    /// A file is looked at again after a pause, which grows.
    fn later(&mut self, path: &Path) {
        if let Some(pending) = self.pending.get_mut(path) {
            pending.at = Instant::now() + pending.pause;
            pending.pause = (pending.pause * 2).min(RETRY_MAX);
        }
    }

    fn tell_outcomes(&mut self, tell: &mut dyn FnMut(WatchEvent)) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        for (name, outcome) in writer.outcomes() {
            let path = name.to_path();
            match &outcome {
                Outcome::Changed => {
                    self.later(&path);
                    continue;
                }
                Outcome::Known | Outcome::Gone => {
                    self.pending.remove(&path);
                    continue;
                }
                Outcome::Replicated(..) => drop(self.pending.remove(&path)),
                Outcome::Refused(_) | Outcome::Unreadable(_) => {
                    self.pending.remove(&path);
                    // Once for each state of the file, however often all files are looked at.
                    let metadata = fs::symlink_metadata(self.directory.join(&path));
                    let state = metadata.map_or(((0, 0), 0, 0), |found| {
                        (
                            (found.dev(), found.ino()),
                            found.ctime(),
                            found.ctime_nsec(),
                        )
                    });
                    let state = (name.clone(), state.0, state.1, state.2);
                    if !self.refused.insert(state) {
                        continue;
                    }
                }
            }
            tell(WatchEvent::File(name, outcome));
        }
    }

    fn open_writer(&mut self, tell: &mut dyn FnMut(WatchEvent)) -> Result<()> {
        if self.writer.is_some() {
            return Ok(());
        }
        let options = self.options;
        self.writer = Some(self.segments.open_writer(&options.node, options.replicas)?);
        self.retry_pause = RETRY_MIN;
        self.held_since = None;
        tell(WatchEvent::Resumed);
        Ok(())
    }

    /// After an error of the units: what waiting mends is waited for.
    fn lose(&mut self, error: SegmentError, tell: &mut dyn FnMut(WatchEvent)) -> Result<()> {
        if self.options.once || !self.may_pass(&error) {
            return Err(error);
        }
        self.writer = None;
        self.retry_at = Instant::now() + self.retry_pause;
        self.retry_pause = (self.retry_pause * 2).min(RETRY_MAX);
        tell(WatchEvent::Waiting(error));
        Ok(())
    }

    fn may_pass(&mut self, error: &SegmentError) -> bool {
        match error {
            SegmentError::Client(ClientError::WriterExists { .. }) => {
                let since = *self.held_since.get_or_insert_with(Instant::now);
                since.elapsed() < WRITER_PATIENCE
            }
            SegmentError::Client(error) if error.is_fenced() => false,
            SegmentError::Client(
                ClientError::Unreachable { .. }
                | ClientError::Locked { .. }
                | ClientError::ConnectionLost { .. }
                | ClientError::NoProvider { .. }
                | ClientError::TooFewUnits { .. }
                | ClientError::TimedOut { .. }
                | ClientError::UnknownOutcome { .. }
                | ClientError::MembersChanged { .. }
                | ClientError::Ended { .. }
                | ClientError::Full { .. },
            )
            | SegmentError::NoRoom { .. }
            | SegmentError::IndexFull { .. } => true,
            // While a unit is away; a layout that is too narrow was refused at the beginning.
            SegmentError::TooFewReplicas { .. } => true,
            _ => false,
        }
    }
}
