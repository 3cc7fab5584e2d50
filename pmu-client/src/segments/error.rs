//! What can go wrong with segments.

use std::io;
use std::path::{Path, PathBuf};

use super::names::{SegmentName, SegmentNameError};
use crate::error::ClientError;
use crate::store::StoreError;

/// Why something could not be done with segments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The units, or the way to them.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The global storage.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such name can be.
    #[error(transparent)]
    Name(#[from] SegmentNameError),
    /// The name is that of a segment with other contents.
    #[error(
        "segment {name} is there already with other contents ({there}, here are {here}): names are unique in the cluster"
    )]
    NameTaken {
        /// The name.
        name: SegmentName,
        /// Length and checksum of the segment that has the name.
        there: String,
        /// Those of what was offered.
        here: String,
    },
    /// No segment has the name.
    #[error("there is no segment {name} under the prefix {prefix}")]
    NoSuchSegment {
        /// The name.
        name: SegmentName,
        /// The prefix of the regions.
        prefix: String,
    },
    /// No unit and no global storage that was asked has the contents.
    #[error("segment {name}: {reason}")]
    NowhereHeld {
        /// The name.
        name: SegmentName,
        /// Who was asked, and what each said.
        reason: String,
    },
    /// What was read is not what was stored.
    #[error("segment {name}: damage: {what}")]
    Damaged {
        /// The name, or the checksum of the contents.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The index holds something that this program doesn't know.
    #[error("the index of segments in region {region}: {what}")]
    Index {
        /// The region.
        region: String,
        /// What is wrong.
        what: String,
    },
    /// The region has too few units.
    #[error("region {region} lies on {units} of the {replicas} units that segments are to lie on")]
    TooFewReplicas {
        /// The region.
        region: String,
        /// Units that would hold each segment.
        units: usize,
        /// Units that were asked for.
        replicas: usize,
    },
    /// The contents don't fit, whatever is cleared.
    #[error(
        "region {region} has no room: {needed_bytes} bytes must be free on each unit, {free_bytes} can be"
    )]
    NoRoom {
        /// The region.
        region: String,
        /// What must be free on each unit: room for the segment, and to move the longest one.
        needed_bytes: u64,
        /// What is free on each unit, or can be cleared.
        free_bytes: u64,
    },
    /// The index has no room for one more name: as much as it holds must stay free, so that it can be written anew.
    #[error("the index in region {region} has no room for more than its {segments} segments")]
    IndexFull {
        /// The region.
        region: String,
        /// How many there are.
        segments: usize,
    },
    /// A file or directory of this machine.
    #[error("{action} {}", path.display())]
    File {
        /// As a bare phrase.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file at the destination is there, with other contents.
    #[error("{} is there already with other contents", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The caller's own mistake.
    #[error("{0}")]
    Invalid(String),
    /// Asked to end.
    #[error("interrupted")]
    Interrupted,
}

impl SegmentError {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::Client(error) => error.advice(),
            Self::Store(error) => return error.advice(),
            Self::NameTaken { .. } => {
                "give the file another name, or drop the segment first (pmu segments drop)"
            }
            Self::NoSuchSegment { .. } => "list the segments (pmu segments list)",
            Self::NowhereHeld { .. } => {
                "bring a unit that holds it back, or name the global storage (--store)"
            }
            Self::Damaged { .. } => {
                "scrub the region (pmm region scrub), or fetch it from the global storage (--store)"
            }
            Self::Index { .. } => "check that all programs are of versions that go together",
            Self::TooFewReplicas { .. } => {
                "use a region with a layout over more units (pmm region create --layout mirror:2), or say --replicas 1"
            }
            Self::NoRoom { .. } => {
                "drop segments, load some into the global storage (pmu store move), or have a larger region made"
            }
            Self::IndexFull { .. } => {
                "drop segments, or use another prefix with a larger region for its index"
            }
            Self::Exists { .. } => "remove the file, or say --replace",
            Self::Name(_) | Self::File { .. } | Self::Invalid(_) | Self::Interrupted => {
                return None;
            }
        })
    }
}

/// Result of this module's fallible functions.
pub type Result<T, E = SegmentError> = std::result::Result<T, E>;
