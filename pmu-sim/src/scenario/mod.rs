//! What is run and checked: each scenario is a set of programs, and what must hold of what they see.

mod content;
mod log;
mod managing;
mod medium;
mod rebuild;
mod sets;
pub(crate) mod spread;
mod spread_log;
mod turns;

use crate::context::Context;
use crate::random::mix;

/// A set of programs and what must hold.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    pub(crate) run: fn(&Context),
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "sets",
        about: "sets in one unit: primaries, those who take over, and readers",
        run: sets::run,
    },
    Scenario {
        name: "log",
        about: "a log in one unit: primaries, those who take over, and backups that read and clear",
        run: log::run,
    },
    Scenario {
        name: "spread",
        about: "sets over two to four units in every layout: units die and return, primaries are fenced on a part of them",
        run: spread::run,
    },
    Scenario {
        name: "spread-log",
        about: "a log over two to four units: the same, with backups that read and clear",
        run: spread_log::run,
    },
    Scenario {
        name: "rebuild",
        about: "sets over two to four units whose members change: managers replace, rebuild and scrub, and die at it",
        run: rebuild::run,
    },
    Scenario {
        name: "rebuild-log",
        about: "a log over two to four units whose members change: a manager replaces, rebuilds and scrubs, and dies at it",
        run: spread_log::run_rebuild,
    },
    Scenario {
        name: "distributor",
        about: "as spread or rebuild, and most primaries have their sets distributed: by a unit, or by a process of its own",
        run: spread::run_distributed,
    },
    Scenario {
        name: "distributor-log",
        about: "as spread-log or rebuild-log, and most primaries have their records distributed",
        run: spread_log::run_distributed,
    },
    Scenario {
        name: "medium",
        about: "sets over two to four units whose media fail: bits, words, lines and pages are not what was written",
        run: medium::run,
    },
];

impl Scenario {
    /// All of them.
    #[must_use]
    pub const fn all() -> &'static [Self] {
        SCENARIOS
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// The one that a seed chooses.
    pub(crate) fn of_seed(seed: u64) -> &'static Self {
        &SCENARIOS[(mix(seed ^ 0x7363_656e) % SCENARIOS.len() as u64) as usize]
    }
}
