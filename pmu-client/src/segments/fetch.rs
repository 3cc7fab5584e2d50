//! Fetches a segment into a local directory, from any of the units that hold it or from the global storage.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::{Result, SegmentError};
use super::file::Candidate;
use super::names::SegmentName;
use super::{Named, Segment, Segments};
use crate::error::ClientError;
use crate::store::{Kind, Store};

/// How often a segment that is moved while it is read is looked for anew.
const MOVES_MAX: u32 = 4;

/// How a segment is fetched.
#[derive(Debug, Default)]
pub struct FetchOptions<'a> {
    /// Replace a file of this name that has other contents.
    pub replace: bool,
    /// Where to look when no unit has it.
    pub store: Option<&'a Store>,
}

/// Where a segment came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// Units, of this region.
    Units(String),
    /// A global storage.
    Store(String),
    /// The file was there already, with the same contents.
    Here,
}

/// What was fetched.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct Fetched {
    /// The segment.
    pub name: SegmentName,
    /// Where it lies now.
    pub path: PathBuf,
    /// How many bytes.
    pub bytes: u64,
    /// From where.
    pub source: Source,
    /// Why not from the units, where it came from the global storage.
    pub units_said: Option<String>,
}

impl Segments {
    /// Fetches a segment into a directory, under its name. The file appears when it is complete, verified and durable on the local medium;
    /// directories above it are made. `stop` ends it at the next piece; `progress` is told how many bytes came.
    ///
    /// # Errors
    /// [`SegmentError::NoSuchSegment`]; [`SegmentError::Exists`]; [`SegmentError::NowhereHeld`]; [`SegmentError::File`], as when the disk is
    /// full; [`SegmentError::Interrupted`]. Nothing incomplete stays.
    pub fn fetch(
        &self,
        name: &SegmentName,
        into: &Path,
        options: &FetchOptions<'_>,
        stop: &dyn Fn() -> bool,
        progress: &dyn Fn(u64),
    ) -> Result<Fetched> {
        if !into.is_dir() {
            let error = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(SegmentError::file("use", into, error));
        }
        let path = into.join(name.to_path());
        let found = match self.find(name) {
            Ok(segment) => Ok(segment),
            Err(error) if options.store.is_some() && others_may_have_it(&error) => Err(error),
            Err(error) => return Err(error),
        };
        if let Ok(segment) = &found
            && self.is_here(&segment.named, &path, options.replace, stop)?
        {
            return Ok(self.fetched(&segment.named, path, Source::Here, None));
        }
        let reason = match found {
            Ok(segment) => {
                match self.fetch_from_units(&segment, into, &path, options, stop, progress) {
                    Ok(source) => return Ok(self.fetched(&segment.named, path, source, None)),
                    Err(error) if others_may_have_it(&error) => error,
                    Err(error) => return Err(error),
                }
            }
            Err(error) => error,
        };
        self.fetch_from_store(name, into, path, reason, options, stop, progress)
    }

    fn fetch_from_units(
        &self,
        segment: &Segment,
        into: &Path,
        path: &Path,
        options: &FetchOptions<'_>,
        stop: &dyn Fn() -> bool,
        progress: &dyn Fn(u64),
    ) -> Result<Source> {
        let mut segment = segment.clone();
        for _ in 0..MOVES_MAX {
            let mut target = Target::open(into, path)?;
            let mut sink = |piece: &[u8]| target.write(piece, stop, progress);
            match self.read_from_units(&segment, &mut sink) {
                Ok(()) => {
                    target.complete(&segment.named, options.replace)?;
                    let region = segment.place.map(|place| place.region);
                    return Ok(Source::Units(region.unwrap_or_default()));
                }
                Err(error) if is_damage(&error) => {
                    // It may have been moved meanwhile, and its room used again.
                    let now = self.find(&segment.named.name)?;
                    if now.place == segment.place {
                        return Err(error);
                    }
                    segment = now;
                }
                Err(error) => return Err(error),
            }
        }
        Err(SegmentError::NowhereHeld {
            name: segment.named.name,
            reason: "it is moved again and again".into(),
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn fetch_from_store(
        &self,
        name: &SegmentName,
        into: &Path,
        path: PathBuf,
        reason: SegmentError,
        options: &FetchOptions<'_>,
        stop: &dyn Fn() -> bool,
        progress: &dyn Fn(u64),
    ) -> Result<Fetched> {
        let Some(store) = options.store else {
            return Err(reason);
        };
        let said = crate::control::chain(&reason);
        let object = match store.find(&Kind::Segment, &self.prefix, name.as_str()) {
            Ok(object) => object,
            Err(error) if error.is_not_found() => {
                return Err(match reason {
                    none @ SegmentError::NoSuchSegment { .. } => none,
                    _ => SegmentError::NowhereHeld {
                        name: name.clone(),
                        reason: format!("{said}; and {error}"),
                    },
                });
            }
            Err(error) => {
                return Err(SegmentError::NowhereHeld {
                    name: name.clone(),
                    reason: format!("{said}; {}", crate::control::chain(&error)),
                });
            }
        };
        let named = object.named().ok_or_else(|| SegmentError::Damaged {
            name: name.to_string(),
            what: "the manifest in the global storage says nothing of a segment".into(),
        })?;
        if self.is_here(&named, &path, options.replace, stop)? {
            return Ok(self.fetched(&named, path, Source::Here, None));
        }
        let mut target = Target::open(into, &path)?;
        store.read(&object, &mut |piece| target.write(piece, stop, progress))?;
        target.complete(&named, options.replace)?;
        let source = Source::Store(store.url().to_owned());
        Ok(self.fetched(&named, path, source, Some(said)))
    }

    fn fetched(
        &self,
        named: &Named,
        path: PathBuf,
        source: Source,
        said: Option<String>,
    ) -> Fetched {
        Fetched {
            name: named.name.clone(),
            path,
            bytes: named.bytes,
            source,
            units_said: said,
        }
    }

    /// Whether the file is there already, with the same contents.
    fn is_here(
        &self,
        named: &Named,
        path: &Path,
        replace: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let there = fs::symlink_metadata(path);
        if there.is_err() {
            return Ok(false);
        }
        let same = match Candidate::open(path)? {
            Some(mut file) if file.facts.bytes == named.bytes => {
                file.hash(stop)? == (named.hash, named.bytes)
            }
            _ => false,
        };
        if !same && (!replace || there.is_ok_and(|there| there.is_dir())) {
            return Err(SegmentError::Exists {
                path: path.to_owned(),
            });
        }
        Ok(same)
    }
}

fn is_damage(error: &SegmentError) -> bool {
    match error {
        SegmentError::Damaged { .. } => true,
        SegmentError::Client(error) => error.is_damage(),
        _ => false,
    }
}

/// Whether a global storage may have what the units would not give.
fn others_may_have_it(error: &SegmentError) -> bool {
    match error {
        SegmentError::NowhereHeld { .. }
        | SegmentError::NoSuchSegment { .. }
        | SegmentError::Damaged { .. } => true,
        SegmentError::Client(error) => {
            error.is_unreachable()
                || error.is_damage()
                || matches!(
                    error,
                    ClientError::TimedOut { .. } | ClientError::NoSuchRegion { .. }
                )
        }
        _ => false,
    }
}

/// A file that is being fetched; gone when dropped, unless it was completed.
struct Target {
    into: PathBuf,
    path: PathBuf,
    partial: PathBuf,
    file: File,
    completed: bool,
}

impl Target {
    fn open(into: &Path, path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|error| SegmentError::file("make the directory", parent, error))?;
        }
        let mut name = std::ffi::OsString::from(".");
        // Names may be as long as the file system allows: this one is not made of theirs.
        name.push(format!("pmu-{}-{:x}.partial", std::process::id(), unique()));
        let partial = path.with_file_name(name);
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&partial)
            .map_err(|error| SegmentError::file("write", &partial, error))?;
        Ok(Self {
            into: into.to_owned(),
            path: path.to_owned(),
            partial,
            file,
            completed: false,
        })
    }

    fn write(
        &mut self,
        piece: &[u8],
        stop: &dyn Fn() -> bool,
        progress: &dyn Fn(u64),
    ) -> Result<()> {
        if stop() {
            return Err(SegmentError::Interrupted);
        }
        self.file
            .write_all(piece)
            .map_err(|error| SegmentError::file("write", &self.path, error))?;
        progress(piece.len() as u64);
        Ok(())
    }

    /// Makes it durable, gives it its name, and makes that durable.
    fn complete(mut self, named: &Named, replace: bool) -> Result<()> {
        let failed = |error| SegmentError::file("write", &self.path, error);
        let since = u64::try_from(named.modified_ns).unwrap_or(0);
        let modified: SystemTime = UNIX_EPOCH + Duration::from_nanos(since);
        self.file.set_modified(modified).map_err(failed)?;
        // Rights of others are none of a copy's business; set-user-id least of all.
        let mode = named.mode & 0o777;
        self.file
            .set_permissions(fs::Permissions::from_mode(mode))
            .map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        if replace {
            fs::rename(&self.partial, &self.path).map_err(failed)?;
            self.completed = true;
        } else {
            // A link doesn't replace what came meanwhile; the partial name goes when this is dropped.
            fs::hard_link(&self.partial, &self.path).map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => SegmentError::Exists {
                    path: self.path.clone(),
                },
                _ => failed(error),
            })?;
        }
        // Its own directory, and those above it that may have been made for it.
        for directory in self.path.ancestors().skip(1) {
            let opened = File::open(directory).map_err(failed)?;
            opened.sync_all().map_err(failed)?;
            if directory == self.into {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.completed
            && let Err(error) = fs::remove_file(&self.partial)
        {
            tracing::warn!(%error, path = %self.partial.display(), "an incomplete file stays");
        }
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
