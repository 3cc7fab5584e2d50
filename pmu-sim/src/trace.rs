//! What happened, step by step: recorded on request only, fingerprinted always.

use std::fmt::Arguments;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;

/// What becomes of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// Nothing: they are not even made.
    Off,
    /// They are kept for [`crate::Outcome::lines`].
    Kept,
    /// They are kept, and printed at once.
    Printed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Trace {
    recording: Recording,
    lines: Vec<String>,
    fingerprint: u64,
}

impl Trace {
    pub(crate) const fn new(recording: Recording) -> Self {
        Self {
            recording,
            lines: Vec::new(),
            fingerprint: 0,
        }
    }

    /// Takes what happened into the fingerprint.
    pub(crate) const fn mark(&mut self, what: u64) {
        self.fingerprint = crate::random::mix(self.fingerprint.rotate_left(7) ^ what);
    }

    pub(crate) const fn is_on(&self) -> bool {
        !matches!(self.recording, Recording::Off)
    }

    pub(crate) fn line(&mut self, step: u64, now_ns: u64, what: Arguments<'_>) {
        let line = format!("{step:6} {:>12.3} us  {what}", now_ns as f64 / 1000.0);
        if self.recording == Recording::Printed {
            // Whoever reads it may have had enough.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        self.lines.push(line);
    }

    pub(crate) const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

/// A hash that is the same in every run.
pub(crate) fn stable_hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
