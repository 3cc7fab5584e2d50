//! What a pool lies on, and how a person writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::PmemError;

/// What the bytes of a pool lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Medium {
    /// A character device of persistent memory, `/dev/daxX.Y`. Durable through cache-line
    /// write-back.
    Devdax,
    /// A file on a file system mounted with `dax`. Durable through cache-line write-back.
    Fsdax,
    /// A file on hugetlbfs. **Volatile**.
    Hugetlbfs,
    /// Anonymous memory (memfd), or a file on tmpfs. **Volatile**.
    Memory,
    /// A file on an ordinary file system. Durable through the kernel's write-back.
    File,
}

impl Medium {
    /// Whether bytes can be made to survive a power cut on this medium.
    ///
    /// A medium that keeps its bytes over the end of the process alone (tmpfs, hugetlbfs) is not.
    #[must_use]
    pub const fn is_durable(self) -> bool {
        matches!(self, Self::Devdax | Self::Fsdax | Self::File)
    }

    /// Whether loads and stores go to the persistent memory itself, with no copy kept by the
    /// kernel.
    #[must_use]
    pub const fn is_dax(self) -> bool {
        matches!(self, Self::Devdax | Self::Fsdax)
    }

    /// The word for it in specifications and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Devdax => "devdax",
            Self::Fsdax => "fsdax",
            Self::Hugetlbfs => "hugetlbfs",
            Self::Memory => "memory",
            Self::File => "file",
        }
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Where a pool is: `devdax:PATH`, `fsdax:PATH`, `hugetlbfs:PATH`, `file:PATH`, `memory:PATH` (a
/// file on tmpfs), or `memory` alone (a memfd, gone with the process).
///
/// The medium is always named, never guessed, and `open` and `create` refuse a path that is on
/// another one: nobody is told "durable" because a path happened to look like it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolSpec {
    medium: Medium,
    path: Option<PathBuf>,
}

impl PoolSpec {
    /// A pool on `medium` at `path`.
    #[must_use]
    pub fn new(medium: Medium, path: impl Into<PathBuf>) -> Self {
        Self {
            medium,
            path: Some(path.into()),
        }
    }

    /// A volatile pool in a memfd. It can be created and never opened again.
    #[must_use]
    pub const fn memory() -> Self {
        Self {
            medium: Medium::Memory,
            path: None,
        }
    }

    /// What the pool lies on.
    #[must_use]
    pub const fn medium(&self) -> Medium {
        self.medium
    }

    /// The file or device; none for a memfd.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The path for messages.
    pub(crate) fn display_path(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| PathBuf::from("memory"))
    }
}

impl fmt::Display for PoolSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(formatter, "{}:{}", self.medium, path.display()),
            None => write!(formatter, "{}", self.medium),
        }
    }
}

impl FromStr for PoolSpec {
    type Err = PmemError;

    fn from_str(text: &str) -> Result<Self, PmemError> {
        let refuse = |reason| PmemError::BadSpec {
            text: text.to_owned(),
            reason,
        };
        if text == Medium::Memory.name() {
            return Ok(Self::memory());
        }
        let Some((medium, path)) = text.split_once(':') else {
            return Err(refuse("expected MEDIUM:PATH, or memory"));
        };
        let medium = match medium {
            "devdax" => Medium::Devdax,
            "fsdax" => Medium::Fsdax,
            "hugetlbfs" => Medium::Hugetlbfs,
            "memory" => Medium::Memory,
            "file" => Medium::File,
            _ => {
                return Err(refuse(
                    "the medium is devdax, fsdax, hugetlbfs, file or memory",
                ));
            }
        };
        if path.is_empty() || path.contains('\0') {
            return Err(refuse("the path is empty, or holds a zero byte"));
        }
        Ok(Self::new(medium, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_read_back_as_written() {
        for text in [
            "devdax:/dev/dax0.0",
            "fsdax:/mnt/p",
            "hugetlbfs:/h/p",
            "file:a:b",
            "memory",
        ] {
            assert_eq!(text.parse::<PoolSpec>().unwrap().to_string(), text);
        }
        assert_eq!(
            "memory:/dev/shm/p".parse::<PoolSpec>().unwrap().medium(),
            Medium::Memory
        );
    }

    #[test]
    fn odd_specifications_are_refused() {
        for text in [
            "",
            "file",
            "file:",
            "disk:/x",
            "/dev/dax0.0",
            "FILE:/x",
            "file:a\0b",
        ] {
            let error = text.parse::<PoolSpec>().unwrap_err();
            assert!(
                matches!(error, PmemError::BadSpec { .. }),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn only_three_media_are_durable() {
        assert!(Medium::Devdax.is_durable() && Medium::Fsdax.is_durable());
        assert!(Medium::File.is_durable());
        assert!(!Medium::Memory.is_durable() && !Medium::Hugetlbfs.is_durable());
    }
}
