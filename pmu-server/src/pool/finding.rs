//! What opening or verifying a pool found.

use std::fmt;

use pmu_format::CopyName;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// One copy is damaged, the other serves.
    Degraded,
    /// Nothing that could serve is left.
    Damaged,
}

/// Where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// One copy of the superblock, or (with none) both.
    Superblock(Option<CopyName>),
    /// One copy of the region table, or (with none) both.
    Table(Option<CopyName>),
    /// The regions and their extents.
    Translation,
    /// The file or device itself.
    Memory,
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, copy) = match self {
            Self::Superblock(copy) => ("superblock", copy),
            Self::Table(copy) => ("region table", copy),
            Self::Translation => ("regions", &None),
            Self::Memory => ("memory", &None),
        };
        match copy {
            Some(copy) => write!(formatter, "{what}, {copy}"),
            None => formatter.write_str(what),
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub part: Part,
    /// How bad.
    pub severity: Severity,
    /// What, for people.
    pub text: String,
    /// Whether it was put right, durably.
    pub repaired: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repaired = if self.repaired { " (repaired)" } else { "" };
        write!(formatter, "{}: {}{repaired}", self.part, self.text)
    }
}
