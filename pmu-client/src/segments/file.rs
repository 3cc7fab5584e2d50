//! A file of this machine that may become a segment: what is known of it, and whether it held still.

use std::fs::{File, Metadata};
use std::io::{Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use super::body::read_full;
use super::error::{Result, SegmentError};
use super::format::{ContentHash, Origin};
use super::writers::FileId;

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// What is known of a file without reading it. If all of it is as it was, nobody has changed the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) id: FileId,
    pub(super) bytes: u64,
    pub(super) mode: u32,
    pub(super) modified_ns: i64,
    pub(super) changed_ns: i64,
}

const NS: i64 = 1_000_000_000;

/// Seconds and nanoseconds since 1970, as nanoseconds: from 1678 to 2262, and the nearest of them for other times.
fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(NS).saturating_add(rest)
}

impl Facts {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            id: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            mode: metadata.permissions().mode() & 0o7777,
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the contents are those that the other facts were told of: a link or a rename changes `changed_ns` alone.
    pub(super) fn same_contents(&self, other: &Self) -> bool {
        (self.id, self.bytes, self.modified_ns) == (other.id, other.bytes, other.modified_ns)
    }

    pub(super) fn origin(&self, node: &str) -> Origin {
        Origin {
            node: node.to_owned(),
            device: self.id.0,
            inode: self.id.1,
            changed_ns: self.changed_ns,
        }
    }
}

/// A regular file that was opened for reading.
#[derive(Debug)]
pub(super) struct Candidate {
    path: PathBuf,
    pub(super) file: File,
    pub(super) facts: Facts,
}

impl Candidate {
    /// Opens a file; none if it is gone, or is no regular file.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        // Without waiting for a writer, should it be a pipe.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits())
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(SegmentError::file("open", path, error)),
        };
        let metadata = file
            .metadata()
            .map_err(|error| SegmentError::file("look at", path, error))?;
        if !metadata.is_file() {
            return Ok(None);
        }
        Ok(Some(Self {
            path: path.to_owned(),
            facts: Facts::of(&metadata),
            file,
        }))
    }

    /// Whether the file is still what it was when it was opened, and still there.
    pub(super) fn held_still(&self) -> Result<bool> {
        let failed = |error| SegmentError::file("look at", &self.path, error);
        let open = self.file.metadata().map_err(failed)?;
        let named = match std::fs::symlink_metadata(&self.path) {
            Ok(named) => named,
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        Ok(Facts::of(&open).same_contents(&self.facts) && Facts::of(&named).id == self.facts.id)
    }

    /// The checksum of the contents.
    pub(super) fn hash(&mut self, stop: &dyn Fn() -> bool) -> Result<(ContentHash, u64)> {
        let failed = |error| SegmentError::file("read", &self.path, error);
        let mut buffer = vec![0; READ_BYTES];
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        loop {
            if stop() {
                return Err(SegmentError::Interrupted);
            }
            let count = read_full(&mut self.file, &mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            bytes += count as u64;
        }
        self.file.rewind().map_err(failed)?;
        Ok((hasher.finalize().into(), bytes))
    }
}

impl Read for Candidate {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(buffer)
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    let gone = [
        nix::libc::ENOENT,
        nix::libc::ENOTDIR,
        nix::libc::ELOOP,
        nix::libc::ENXIO,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| gone.contains(&code))
}

/// Now, in nanoseconds since 1970.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
