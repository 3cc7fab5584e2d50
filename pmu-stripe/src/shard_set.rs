//! Which shards of a group: [`ShardSet`].

use core::fmt;

use crate::layout::UNITS_MAX;
use crate::placement::ShardIndex;

/// A set of shards of one group, each below [`UNITS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ShardSet(u32);

impl ShardSet {
    /// No shard.
    pub const EMPTY: ShardSet = ShardSet(0);

    /// The shards from 0 to `count` - 1. Of a count beyond [`UNITS_MAX`] as of [`UNITS_MAX`].
    pub const fn first(count: usize) -> ShardSet {
        if count >= UNITS_MAX {
            ShardSet(u32::MAX)
        } else {
            ShardSet((1 << count) - 1)
        }
    }

    /// Whether the shard is in it.
    pub const fn contains(self, shard: ShardIndex) -> bool {
        shard.0 < UNITS_MAX && (self.0 >> shard.0) & 1 == 1
    }

    /// The set with that shard too.
    ///
    /// # Panics
    /// From shard [`UNITS_MAX`] on, which no layout has.
    #[must_use]
    pub const fn with(self, shard: ShardIndex) -> ShardSet {
        assert!(shard.0 < UNITS_MAX, "no layout has that shard");
        ShardSet(self.0 | 1 << shard.0)
    }

    /// The set without the shards of the other.
    #[must_use]
    pub const fn without(self, other: ShardSet) -> ShardSet {
        ShardSet(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: ShardSet) -> ShardSet {
        ShardSet(self.0 & other.0)
    }

    /// How many shards are in it.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether no shard is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The shards, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = ShardIndex> {
        (0..UNITS_MAX)
            .map(ShardIndex)
            .filter(move |shard| self.contains(*shard))
    }

    /// The `count` lowest shards.
    pub(crate) fn lowest(self, count: usize) -> ShardSet {
        self.iter().take(count).collect()
    }

    /// How many shards of the set come before that one.
    pub(crate) fn rank(self, shard: ShardIndex) -> usize {
        self.intersection(ShardSet::first(shard.0)).len()
    }
}

/// # Panics
/// As [`ShardSet::with`].
impl FromIterator<ShardIndex> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardIndex>>(shards: I) -> ShardSet {
        shards.into_iter().fold(ShardSet::EMPTY, ShardSet::with)
    }
}

/// The numbers with commas between them.
impl fmt::Display for ShardSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, shard) in self.iter().enumerate() {
            write!(formatter, "{}{shard}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
