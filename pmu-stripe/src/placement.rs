//! Where each byte of a segment lies: [`Placement`].
//!
//! A *segment* (the bytes of one checkpoint) is cut into *subsegments* of one size, and these into
//! *redundancy groups* of K. A group has K data shards, which are its subsegments, and M redundant
//! shards, numbered K to N-1. Group `g` lies in row `g` of every unit, and its shard `s` on unit
//!
//! ```text
//! unit(g, s) = (g + s) mod N        offset(g, s) = g × subsegment length
//! ```
//!
//! so the redundant shards, and with them the load of small changes, rotate over the units. Nine
//! subsegments in groups of three over four units:
//!
//! ```text
//!          unit 0    unit 1    unit 2    unit 3
//! row 0    0         1         2         P(0-2)
//! row 1    P(3-5)    3         4         5
//! row 2    8         P(6-8)    6         7
//! ```
//!
//! # The last group
//! Whatever remains behind the whole groups, `r` bytes, is one more group, over all units, with
//! shorter shards: `s = min(subsegment length, ⌈r/K⌉ rounded up to 64)`. Data shard `i` holds the
//! bytes `i×s` to `(i+1)×s` of the rest as far as there are such bytes, so only the last of the
//! shards that hold any may be shorter than `s`, and shards behind it are empty. Redundant shards
//! are as long as data shard 0; the code takes shorter shards as padded with zeros, and padding is
//! never stored. Beyond `(K+M)/K` of its length a segment so takes less than 65×M bytes: under
//! 0.2 % from 1 MiB on.

use core::fmt;
use core::ops::Range;

use thiserror::Error;

use crate::layout::Layout;

/// The longest segment.
pub const SEGMENT_LEN_MAX: u64 = 1 << 56;

/// The longest subsegment.
pub const SUBSEGMENT_LEN_MAX: u64 = 1 << 40;

/// Shards of the last group are multiples of this where the subsegment is: one cache line, so that
/// a shard's end shares no line with another's start.
pub const SHARD_ALIGN: u64 = 64;

macro_rules! index {
    ($(#[$documentation:meta])* $name:ident($number:ty)) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }
    };
}

index! {
    /// A unit of the layout, from 0 to N-1, in the order in which the set's members are listed.
    UnitIndex(usize)
}

index! {
    /// A shard of a group: 0 to K-1 hold data, K to N-1 redundancy.
    ShardIndex(usize)
}

index! {
    /// A redundancy group of a segment, and the row of every unit that it lies in, from 0.
    GroupIndex(u64)
}

/// Where one shard lies, and what of the segment it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    /// Its group.
    pub group: GroupIndex,
    /// Its number in the group.
    pub shard: ShardIndex,
    /// The unit that holds it.
    pub unit: UnitIndex,
    /// Where it starts in the unit's member region, in bytes.
    pub offset: u64,
    /// How many bytes are stored, 0 to the group's [`Group::shard_len`].
    pub len: u64,
    /// The bytes of the segment that it holds; for a redundant shard all those of its group.
    pub segment: Range<u64>,
    /// Whether it holds redundancy.
    pub redundant: bool,
}

/// One redundancy group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Its number.
    pub group: GroupIndex,
    /// The bytes of the segment that it protects, never empty.
    pub segment: Range<u64>,
    /// The length of its longest data shard and of each redundant shard, in bytes: 1 to the
    /// subsegment's length.
    pub shard_len: u64,
    /// By how many bytes of the segment its data shards start apart.
    stride: u64,
}

/// A run of a segment's bytes that lies in one piece on one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The group that protects it.
    pub group: GroupIndex,
    /// The data shard that holds it.
    pub shard: ShardIndex,
    /// The unit that holds it.
    pub unit: UnitIndex,
    /// Where it starts in the unit's member region, in bytes.
    pub offset: u64,
    /// Where it starts in its shard, in bytes.
    pub shard_offset: u64,
    /// Where it starts in the segment, in bytes.
    pub segment_offset: u64,
    /// How long it is, in bytes, never 0.
    pub len: u64,
}

/// Where each byte of one segment lies in the member regions of a layout's units. A few numbers;
/// everything is computed when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    layout: Layout,
    segment_len: u64,
    subsegment_len: u64,
}

impl Placement {
    /// Places `segment_len` bytes (0 to [`SEGMENT_LEN_MAX`]) in subsegments of `subsegment_len`
    /// bytes (1 to [`SUBSEGMENT_LEN_MAX`]). Neither needs to divide anything; shards are aligned in
    /// the member regions if the subsegment's length is a multiple of [`SHARD_ALIGN`].
    pub fn new(
        layout: Layout,
        segment_len: u64,
        subsegment_len: u64,
    ) -> Result<Placement, PlacementError> {
        if segment_len > SEGMENT_LEN_MAX {
            return Err(PlacementError::SegmentTooLong { segment_len });
        }
        if subsegment_len == 0 || subsegment_len > SUBSEGMENT_LEN_MAX {
            return Err(PlacementError::SubsegmentLength { subsegment_len });
        }
        Ok(Placement {
            layout,
            segment_len,
            subsegment_len,
        })
    }

    /// The longest segment of which no unit stores more than `unit_len` bytes, at most
    /// [`SEGMENT_LEN_MAX`]. `subsegment_len` as in [`Self::new`].
    pub fn segment_len_max(
        layout: Layout,
        unit_len: u64,
        subsegment_len: u64,
    ) -> Result<u64, PlacementError> {
        Placement::new(layout, 0, subsegment_len)?;
        let data_shards = layout.data_shards() as u64;
        let rest = unit_len % subsegment_len;
        let rest_aligned = rest - rest % SHARD_ALIGN;
        // Less than a line of data shard 0 is possible only while the others are empty.
        let rest_data = if rest_aligned == 0 {
            rest
        } else {
            (rest_aligned * data_shards).max(rest)
        };
        let whole = (unit_len - rest).saturating_mul(data_shards);
        Ok(whole.saturating_add(rest_data).min(SEGMENT_LEN_MAX))
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The segment's length in bytes.
    pub fn segment_len(&self) -> u64 {
        self.segment_len
    }

    /// The subsegments' length in bytes.
    pub fn subsegment_len(&self) -> u64 {
        self.subsegment_len
    }

    /// How many groups there are; none if the segment is empty.
    pub fn group_count(&self) -> u64 {
        self.segment_len.div_ceil(self.group_len())
    }

    /// The group of that number, or none if there are fewer.
    pub fn group(&self, group: GroupIndex) -> Option<Group> {
        if group.0 >= self.group_count() {
            return None;
        }
        let start = group.0 * self.group_len();
        let len = self.group_len().min(self.segment_len - start);
        let stride = if len == self.group_len() {
            self.subsegment_len
        } else {
            let even = len.div_ceil(self.layout.data_shards() as u64);
            even.next_multiple_of(SHARD_ALIGN).min(self.subsegment_len)
        };
        Some(Group {
            group,
            segment: start..start + len,
            shard_len: stride.min(len),
            stride,
        })
    }

    /// All groups in order.
    pub fn groups(&self) -> impl Iterator<Item = Group> + use<> {
        let placement = *self;
        (0..placement.group_count()).filter_map(move |group| placement.group(GroupIndex(group)))
    }

    /// The shard of that number in that group, or none if there is no such group or shard. A data
    /// shard of the last group may be empty.
    pub fn shard(&self, group: GroupIndex, shard: ShardIndex) -> Option<Shard> {
        let group = self.group(group)?;
        (shard.0 < self.layout.units()).then(|| self.shard_of(&group, shard))
    }

    /// The shards of a group of this placement, in the order of their numbers.
    pub fn shards(&self, group: &Group) -> impl Iterator<Item = Shard> + use<> {
        let (placement, group) = (*self, group.clone());
        (0..self.layout.units()).map(move |shard| placement.shard_of(&group, ShardIndex(shard)))
    }

    /// What lies in row `row` of a unit: the shard of group `row` that this unit holds. None if
    /// there is no such unit or row.
    pub fn shard_at(&self, unit: UnitIndex, row: GroupIndex) -> Option<Shard> {
        let units = self.layout.units();
        if unit.0 >= units {
            return None;
        }
        let shard = (unit.0 + units - rotation(row, units)) % units;
        self.shard(row, ShardIndex(shard))
    }

    /// How many bytes a unit stores, from offset 0 of its member region on and without holes. 0 for
    /// a unit that the layout doesn't have.
    pub fn unit_len(&self, unit: UnitIndex) -> u64 {
        match self.group_count() {
            0 => 0,
            groups => self
                .shard_at(unit, GroupIndex(groups - 1))
                .map_or(0, |last| last.offset + last.len),
        }
    }

    /// The most that one unit stores, in bytes.
    pub fn unit_len_max(&self) -> u64 {
        match self.group_count() {
            0 => 0,
            groups => self
                .shard(GroupIndex(groups - 1), ShardIndex(0))
                .map_or(0, |last| last.offset + last.len),
        }
    }

    /// How many bytes all units store: the segment's and those of M redundant shards of each group.
    pub fn stored_len(&self) -> u64 {
        let whole = self.segment_len / self.group_len();
        let last = self
            .group(GroupIndex(whole))
            .map_or(0, |group| group.shard_len);
        let redundant_len = whole * self.subsegment_len + last;
        self.segment_len + redundant_len * self.layout.redundant_shards() as u64
    }

    /// Where the bytes `range` of the segment lie, in order. A piece never crosses a subsegment. An
    /// error if the range ends before it starts or beyond the segment.
    pub fn pieces(&self, range: Range<u64>) -> Result<Pieces, PlacementError> {
        if range.start > range.end || range.end > self.segment_len {
            return Err(PlacementError::OutOfRange {
                start: range.start,
                end: range.end,
                segment_len: self.segment_len,
            });
        }
        Ok(Pieces {
            placement: *self,
            range,
        })
    }

    fn group_len(&self) -> u64 {
        self.subsegment_len * self.layout.data_shards() as u64
    }

    fn shard_of(&self, group: &Group, shard: ShardIndex) -> Shard {
        let units = self.layout.units();
        let redundant = shard.0 >= self.layout.data_shards();
        let (segment, len) = if redundant {
            (group.segment.clone(), group.shard_len)
        } else {
            let at = |shard: usize| {
                group
                    .segment
                    .end
                    .min(group.segment.start + shard as u64 * group.stride)
            };
            let segment = at(shard.0)..at(shard.0 + 1);
            let len = segment.end - segment.start;
            (segment, len)
        };
        Shard {
            group: group.group,
            shard,
            unit: UnitIndex((rotation(group.group, units) + shard.0) % units),
            offset: group.group.0 * self.subsegment_len,
            len,
            segment,
            redundant,
        }
    }
}

fn rotation(group: GroupIndex, units: usize) -> usize {
    (group.0 % units as u64) as usize
}

/// The pieces of a range, in order: see [`Placement::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces {
    placement: Placement,
    range: Range<u64>,
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.range.is_empty() {
            return None;
        }
        let start = self.range.start;
        let group = self
            .placement
            .group(GroupIndex(start / self.placement.group_len()))?;
        let shard = ShardIndex(((start - group.segment.start) / group.stride) as usize);
        let shard = self.placement.shard_of(&group, shard);
        let end = self.range.end.min(shard.segment.end);
        self.range.start = end;
        let shard_offset = start - shard.segment.start;
        Some(Piece {
            group: shard.group,
            shard: shard.shard,
            unit: shard.unit,
            offset: shard.offset + shard_offset,
            shard_offset,
            segment_offset: start,
            len: end - start,
        })
    }
}

impl core::iter::FusedIterator for Pieces {}

/// Why there is no such placement or range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// Longer than [`SEGMENT_LEN_MAX`].
    #[error("segment of {segment_len} bytes: at most {SEGMENT_LEN_MAX} are possible")]
    SegmentTooLong {
        /// What was asked for.
        segment_len: u64,
    },
    /// Zero, or longer than [`SUBSEGMENT_LEN_MAX`].
    #[error("subsegments of {subsegment_len} bytes: 1 to {SUBSEGMENT_LEN_MAX} are possible")]
    SubsegmentLength {
        /// What was asked for.
        subsegment_len: u64,
    },
    /// Not a range of the segment.
    #[error("bytes {start} to {end} of a segment of {segment_len}")]
    OutOfRange {
        /// The range's start.
        start: u64,
        /// The range's end.
        end: u64,
        /// The segment's length.
        segment_len: u64,
    },
}
