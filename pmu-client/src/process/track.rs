//! What this machine remembers between two tracked checkpoints of a process.
//!
//! The kernel tracks what a process writes since the last dump, whoever made that. So what is remembered is taken away before a dump
//! begins and put back when its set is durable: after anything that failed in between, the next set is a whole one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ProcessError;
use super::container::Parent;
use super::tracked::Before;

/// In memory: a process doesn't outlive a boot either.
const FOLDER: &str = "/run/pmu";
/// Most processes between one and the first.
const GENERATIONS_MAX: u32 = 10_000;

/// The last tracked checkpoint of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Track {
    boot: String,
    /// When the process began, in ticks since the boot: its number may be used again.
    started: u64,
    /// The region, for good.
    pub(super) series: String,
    pub(super) parent: Parent,
    /// The whole set that the chain began with.
    pub(super) root: u64,
    pub(super) before: Before,
}

/// A process as `Track` knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tracked {
    pid: u32,
    boot: String,
    started: u64,
}

impl Tracked {
    pub(super) fn find(pid: u32) -> Result<Self, ProcessError> {
        let read = |path: String| fs::read_to_string(path).ok();
        let gone = || ProcessError::NoProcess { pid };
        let boot = read("/proc/sys/kernel/random/boot_id".into()).ok_or_else(gone)?;
        let stat = read(format!("/proc/{pid}/stat")).ok_or_else(gone)?;
        // The name, in parentheses, may hold anything; the start is the twentieth word behind it.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let started = behind.split_whitespace().nth(19);
        let started = started
            .and_then(|word| word.parse().ok())
            .ok_or_else(gone)?;
        Ok(Self {
            pid,
            boot: boot.trim().to_owned(),
            started,
        })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(FOLDER).join(format!("process-{}.json", self.pid))
    }

    /// Takes away what is remembered of this process, if it is of this process. What is remembered of processes above and below it goes too:
    /// their dumps hold this one, or it holds them, and the kernel's tracking begins anew for all that a dump holds.
    pub(super) fn take(&self) -> Result<Option<Track>, ProcessError> {
        self.forget_relatives()?;
        let path = self.path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ProcessError::io("read what was tracked")(error)),
        };
        fs::remove_file(&path).map_err(ProcessError::io("forget what was tracked"))?;
        let track: Option<Track> = serde_json::from_slice(&text).ok();
        Ok(track.filter(|track| track.boot == self.boot && track.started == self.started))
    }

    fn forget_relatives(&self) -> Result<(), ProcessError> {
        let failed = || ProcessError::io("forget what was tracked");
        let entries = match fs::read_dir(FOLDER) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed()(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed())?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let other = name
                .strip_prefix("process-")
                .and_then(|pid| pid.parse().ok());
            let Some(other) = other.filter(|other| *other != self.pid) else {
                continue;
            };
            if (is_above(other, self.pid) || is_above(self.pid, other))
                && let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(failed()(error));
            }
        }
        Ok(())
    }

    /// Remembers a set that is durable now.
    pub(super) fn remember(
        &self,
        series: String,
        parent: Parent,
        root: u64,
        before: Before,
    ) -> Result<(), ProcessError> {
        let track = Track {
            boot: self.boot.clone(),
            started: self.started,
            series,
            parent,
            root,
            before,
        };
        let failed = || ProcessError::io("remember what is tracked");
        let text = serde_json::to_vec(&track).map_err(|error| failed()(error.into()))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(FOLDER)
            .map_err(failed())?;
        let path = self.path();
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(failed())
    }
}

/// Whether a process is a parent of another, or a parent's parent and so on.
fn is_above(upper: u32, lower: u32) -> bool {
    let mut at = lower;
    for _ in 0..GENERATIONS_MAX {
        let Some(parent) = parent_of(at) else {
            return false;
        };
        if parent == upper {
            return true;
        }
        at = parent;
    }
    false
}

/// None for the first process, and for one that isn't there.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind) = stat.rsplit_once(')')?;
    let parent = behind.split_whitespace().nth(1)?.parse().ok()?;
    (parent != 0).then_some(parent)
}

/// Whether a set may build on another: the newest chain must be readable while the next set is written, which takes the place of the oldest
/// of `sets_kept` + 1.
pub(super) fn may_build(root: u64, newest: u64, sets_kept: u32) -> bool {
    let own = newest + 1;
    root > 0 && root <= newest && own - root < u64::from(sets_kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s08_a_chain_never_loses_what_it_builds_on() {
        for kept in 1..9_u32 {
            let mut root = 0;
            let mut whole = 0;
            for own in 1..200_u64 {
                // While this one is written, the place of the oldest is lost.
                let oldest = own.saturating_sub(u64::from(kept));
                assert!(
                    own == 1 || root >= oldest,
                    "kept {kept}, set {own} on {root}"
                );
                if !may_build(root, own - 1, kept) {
                    root = own;
                    whole += 1;
                }
            }
            assert!(
                kept == 1 || whole <= 200 / u64::from(kept) + 1,
                "{kept}: {whole}"
            );
        }
    }

    #[test]
    fn s08_relatives_are_told_from_others() {
        let own = std::process::id();
        let parent = parent_of(own).unwrap();
        assert!(is_above(parent, own));
        assert!(!is_above(own, parent));
        assert!(!is_above(own, own));
        assert!(!is_above(u32::MAX, own));
    }

    #[test]
    fn s08_a_process_is_known_by_its_start() {
        let own = Tracked::find(std::process::id()).unwrap();
        assert_eq!(own, Tracked::find(std::process::id()).unwrap());
        assert!(own.started > 0);
        assert!(matches!(
            Tracked::find(u32::MAX),
            Err(ProcessError::NoProcess { .. })
        ));
    }
}
