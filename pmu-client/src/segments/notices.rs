//! What happens below a directory, as inotify tells it.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::error::{Result, SegmentError};

/// Something that happened, to a path relative to the watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// A file that was open for writing was closed, or a file came by a rename.
    Stored(PathBuf),
    /// A file was made: a link, or one that is being written.
    Created(PathBuf),
    /// A file was written to.
    Changed(PathBuf),
    /// A file went.
    Gone(PathBuf),
    /// A directory came, or some of what happened was not told: look at all that is there.
    LookAgain,
    /// The watched directory itself is gone.
    Ended,
}

/// See the module. Watches the directory and all below it; follows no links.
#[derive(Debug)]
pub(super) struct Notices {
    root: PathBuf,
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, PathBuf>,
    root_watch: WatchDescriptor,
}

fn flags() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}

impl Notices {
    pub(super) fn new(root: &Path) -> Result<Self> {
        let failed = |error: Errno| SegmentError::file("watch", root, error.into());
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        let root_watch = inotify.add_watch(root, flags()).map_err(failed)?;
        Ok(Self {
            root: root.to_owned(),
            inotify,
            directories: HashMap::from([(root_watch, PathBuf::new())]),
            root_watch,
        })
    }

    /// Watches a directory, relative to the root. Once is enough; a directory that is gone is no error.
    ///
    /// # Errors
    /// The system allows no more watches (`fs.inotify.max_user_watches`), or not this one.
    pub(super) fn add(&mut self, directory: &Path) -> Result<()> {
        let path = self.root.join(directory);
        match self
            .inotify
            .add_watch(&path, flags() | AddWatchFlags::IN_DONT_FOLLOW)
        {
            Ok(watch) => {
                self.directories.insert(watch, directory.to_owned());
                Ok(())
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            Err(error) => Err(SegmentError::file("watch", &path, error.into())),
        }
    }

    /// Waits until something happens, or for this long.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<Vec<Notice>> {
        let failed = |root: &Path, error: Errno| SegmentError::file("watch", root, error.into());
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut waiting = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(failed(&self.root, error)),
        }
        let mut notices = Vec::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) if events.is_empty() => break,
                Ok(events) => {
                    for event in events {
                        notices.extend(self.translate(event));
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(failed(&self.root, error)),
            }
        }
        Ok(notices)
    }

    fn translate(&mut self, event: InotifyEvent) -> Option<Notice> {
        let mask = event.mask;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Notice::LookAgain);
        }
        let itself =
            AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_UNMOUNT;
        if event.wd == self.root_watch && mask.intersects(itself) {
            return Some(Notice::Ended);
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&event.wd);
            return None;
        }
        let directory = self.directories.get(&event.wd)?;
        let path = directory.join(event.name?);
        let came = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        if mask.contains(AddWatchFlags::IN_ISDIR) {
            // Of one that was moved, the watches below tell old paths: all are looked at anew.
            return mask
                .intersects(came | AddWatchFlags::IN_MOVED_FROM)
                .then_some(Notice::LookAgain);
        }
        if mask.intersects(AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO) {
            return Some(Notice::Stored(path));
        }
        if mask.contains(AddWatchFlags::IN_CREATE) {
            return Some(Notice::Created(path));
        }
        if mask.contains(AddWatchFlags::IN_MODIFY) {
            return Some(Notice::Changed(path));
        }
        Some(Notice::Gone(path))
    }
}
