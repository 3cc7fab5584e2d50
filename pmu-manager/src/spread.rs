//! What follows from a region's membership: room, quorums, placement. Nothing here asks a unit.

use pmu_client::Quorum;
use pmu_format::{MEMBERSHIP_MAGIC, Membership, SHARE_TRAILER_BYTES};
use pmu_stripe::{Group, Layout, Placement, PlacementError, Shard, UnitIndex};

use crate::report::{PlacementReport, ShardReport};

/// What a region that is not spread has for a layout.
pub const NOT_SPREAD: &str = "single";

/// The room that each member needs for the longest share of a segment of up to `capacity_bytes`, trailer included.
///
/// # Errors
/// [`PlacementError`]: no such segment or subsegments.
pub fn member_capacity_bytes(
    layout: Layout,
    capacity_bytes: u64,
    subsegment_bytes: u64,
) -> Result<u64, PlacementError> {
    let placement = Placement::new(layout, capacity_bytes, subsegment_bytes)?;
    Ok(SHARE_TRAILER_BYTES as u64 + placement.unit_len_max())
}

/// The longest segment whose shares have room in members of `member_bytes`.
///
/// # Errors
/// [`PlacementError`]: no such subsegments.
pub fn capacity_bytes(
    layout: Layout,
    member_bytes: u64,
    subsegment_bytes: u64,
) -> Result<u64, PlacementError> {
    let share_bytes = member_bytes.saturating_sub(SHARE_TRAILER_BYTES as u64);
    Placement::segment_len_max(layout, share_bytes, subsegment_bytes)
}

/// The fewest units that commit unless told otherwise: more than half, so that no two writers commit beside each other,
/// and as many as reading needs. Without redundancy all of them.
pub fn units_min_default(layout: Layout) -> u8 {
    let (units, to_read) = (layout.units(), layout.units_to_read());
    let least = match layout.redundant_shards() {
        0 => units,
        _ => to_read.max(units / 2 + 1),
    };
    // At most UNITS_MAX.
    u8::try_from(least).unwrap_or(u8::MAX)
}

/// How many members must be fenced so that too few are left for a commit.
pub fn fences_needed(layout: Layout, units_min: u8) -> usize {
    Quorum::new(layout.units(), units_min.into(), layout.data_shards()).units_to_decide()
}

/// A region's attributes as a layout: that of its membership, [`NOT_SPREAD`] without one, `unknown` for a membership that
/// this version can't read.
pub fn layout_text(attributes: &[u8]) -> String {
    if !attributes.starts_with(&MEMBERSHIP_MAGIC.to_le_bytes()) {
        return NOT_SPREAD.to_owned();
    }
    let membership = Membership::decode(attributes).ok();
    membership
        .and_then(|membership| Layout::from_bytes(membership.layout).ok())
        .map_or_else(|| "unknown".to_owned(), |layout| layout.to_string())
}

/// What lies on which unit, of the first `groups_max` groups.
pub fn placement_report(
    placement: &Placement,
    units: &[String],
    groups_max: u64,
) -> Vec<PlacementReport> {
    let groups = groups_max.min(placement.group_count());
    let groups: Vec<Group> = placement
        .groups()
        .take(usize::try_from(groups).unwrap_or(usize::MAX))
        .collect();
    let unit_report = |(index, unit): (usize, &String)| PlacementReport {
        unit: unit.clone(),
        index,
        shards: groups
            .iter()
            .filter_map(|group| placement.shard_at(UnitIndex(index), group.group))
            .filter(|shard| shard.len > 0)
            .map(|shard| shard_report(placement, &shard))
            .collect(),
    };
    units.iter().enumerate().map(unit_report).collect()
}

fn shard_report(placement: &Placement, shard: &Shard) -> ShardReport {
    let data_shards = placement.layout().data_shards() as u64;
    let first = shard.group.0 * data_shards;
    let subsegments = if shard.redundant {
        let group = placement.group(shard.group);
        let held = group.map_or(0, |group| {
            let data = placement.shards(&group);
            data.filter(|data| !data.redundant && data.len > 0).count() as u64
        });
        (first..first + held).collect()
    } else {
        vec![first + shard.shard.0 as u64]
    };
    ShardReport {
        group: shard.group.0,
        row: shard.group.0,
        kind: if shard.redundant { "parity" } else { "data" },
        subsegments,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d05_figure_three_lies_where_it_should() {
        let layout: Layout = "parity:3+1".parse().unwrap();
        let member = member_capacity_bytes(layout, 9 * 64, 64).unwrap();
        assert_eq!(member, SHARE_TRAILER_BYTES as u64 + 3 * 64);
        assert_eq!(capacity_bytes(layout, member, 64), Ok(9 * 64));
        let placement = Placement::new(layout, 9 * 64, 64).unwrap();
        let units: Vec<_> = ["a", "b", "c", "d"].map(str::to_owned).into();
        let text = |unit: &PlacementReport| {
            let shards = unit.shards.iter();
            let shards = shards.map(|shard| format!("{} {:?}", shard.kind, shard.subsegments));
            shards.collect::<Vec<_>>().join(", ")
        };
        let report = placement_report(&placement, &units, 16);
        let texts: Vec<_> = report.iter().map(text).collect();
        assert_eq!(
            texts,
            [
                "data [0], parity [3, 4, 5], data [8]",
                "data [1], data [3], parity [6, 7, 8]",
                "data [2], data [4], data [6]",
                "parity [0, 1, 2], data [5], data [7]",
            ]
        );
        assert_eq!(placement_report(&placement, &units, 2)[0].shards.len(), 2);
    }

    #[test]
    fn d06_quorums_never_let_two_writers_commit() {
        for (layout, expected) in [
            ("single", 1),
            ("stripe:4", 4),
            ("mirror:2", 2),
            ("mirror:3", 2),
            ("parity:3+1", 3),
            ("erasure:2+4", 4),
        ] {
            let layout: Layout = layout.parse().unwrap();
            let least = units_min_default(layout);
            assert_eq!(least, expected, "{layout}");
            let left = layout.units() - fences_needed(layout, least);
            assert_eq!(left + 1, usize::from(least), "{layout}");
        }
    }

    #[test]
    fn d01_attributes_name_the_layout() {
        assert_eq!(layout_text(b""), "single");
        assert_eq!(layout_text(b"anything"), "single");
        assert_eq!(layout_text(b"PMUMEMB1 and more"), "unknown");
    }
}
