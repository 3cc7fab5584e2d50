//! What a snapshot came to.

use std::fmt;
use std::time::Duration;

use pmu_arena::Report;
use pmu_format::SnapshotKind;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::receipt::Receipt;

/// A snapshot that is stored: what it took, and the receipt of its set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotReport {
    /// Proves that it is stored, and how.
    pub receipt: Receipt,
    /// Full, or what it builds on.
    pub kind: SnapshotKind,
    /// How the memory was frozen: the pause, the method, pages copied aside.
    pub image: Report,
    /// Bytes of its pages.
    pub page_bytes: u64,
    /// Bytes of its set: pages, and what says which they are.
    pub bytes: u64,
    /// From the call until the memory was frozen and the caller could go on.
    pub frozen_after: Duration,
    /// From the call until it was durable.
    pub durable_after: Duration,
}

impl SnapshotReport {
    /// For how long nobody could write to the arena.
    #[must_use]
    pub const fn pause(&self) -> Duration {
        self.image.pause
    }

    /// Whether it needs no other one.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.kind == SnapshotKind::Full
    }
}

impl fmt::Display for SnapshotReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.base() {
            None => formatter.write_str("full snapshot")?,
            Some(base) => write!(formatter, "snapshot on set {}", base.set)?,
        }
        write!(
            formatter,
            " by {}: paused {:.2?}, {} pages ({} copied aside), in {:.1?}: {}",
            self.image.method.name(),
            self.image.pause,
            self.image.pages,
            self.image.copied_aside,
            self.durable_after,
            self.receipt
        )
    }
}

impl Serialize for SnapshotReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut fields = serializer.serialize_struct("SnapshotReport", 10)?;
        fields.serialize_field("full", &self.is_full())?;
        fields.serialize_field("builds_on", &self.kind.base().map(|base| base.set.get()))?;
        fields.serialize_field("method", self.image.method.name())?;
        fields.serialize_field("pause_us", &micros(self.image.pause))?;
        fields.serialize_field("pages", &self.image.pages)?;
        fields.serialize_field("copied_aside", &self.image.copied_aside)?;
        fields.serialize_field("bytes", &self.bytes)?;
        fields.serialize_field("frozen_after_us", &micros(self.frozen_after))?;
        fields.serialize_field("durable_after_us", &micros(self.durable_after))?;
        fields.serialize_field("receipt", &self.receipt)?;
        fields.end()
    }
}
