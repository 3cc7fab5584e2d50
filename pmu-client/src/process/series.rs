//! A region as a series of checkpoints of processes: one unit's, or one that is spread over several.

use pmu_format::Label;

use super::container::ImageSink;
use crate::error::Result;
use crate::receipt::Receipt;
use crate::sets::{Put, SetPrimary};
use crate::spread::{SpreadPrimary, SpreadPut};

/// A set in the making that can be made durable.
pub trait ImageSet: ImageSink {
    /// Commits the set and returns when it is durable.
    ///
    /// # Errors
    /// As [`Put::finish`].
    fn finish(self) -> Result<Receipt>;
}

impl ImageSet for Put<'_> {
    fn finish(self) -> Result<Receipt> {
        Put::finish(self)
    }
}

impl ImageSet for SpreadPut<'_> {
    fn finish(self) -> Result<Receipt> {
        SpreadPut::finish(self)
    }
}

/// The primary of a region in overwrite mode, of either kind.
pub trait Series {
    /// A set in the making.
    type Set<'a>: ImageSet
    where
        Self: 'a;

    /// Begins a set of any length up to the region's capacity.
    ///
    /// # Errors
    /// As [`SetPrimary::begin`].
    fn begin(&mut self, label: Label) -> Result<Self::Set<'_>>;

    /// The newest committed set, 0 for none.
    fn newest(&self) -> u64;

    /// Sets that are kept beside the one being written.
    fn sets_kept(&self) -> u32;

    /// Names the region for good, on whatever unit.
    fn key(&self) -> String;
}

impl Series for SetPrimary {
    type Set<'a> = Put<'a>;

    fn begin(&mut self, label: Label) -> Result<Put<'_>> {
        Self::begin(self, None, label)
    }

    fn newest(&self) -> u64 {
        Self::newest(self).get()
    }

    fn sets_kept(&self) -> u32 {
        self.region().sets_kept
    }

    fn key(&self) -> String {
        format!("region {:?}", self.region().id)
    }
}

impl Series for SpreadPrimary {
    type Set<'a> = SpreadPut<'a>;

    fn begin(&mut self, label: Label) -> Result<SpreadPut<'_>> {
        Self::begin(self, None, label)
    }

    fn newest(&self) -> u64 {
        Self::newest(self).get()
    }

    fn sets_kept(&self) -> u32 {
        self.spread().sets_kept()
    }

    fn key(&self) -> String {
        format!("spread {:?}", self.spread().membership().id)
    }
}
