//! Where the bytes of a segment lie, for every layout.

#![allow(clippy::unwrap_used)]

use pmu_stripe::{
    GroupIndex, Layout, Placement, PlacementError, SEGMENT_LEN_MAX, SUBSEGMENT_LEN_MAX, ShardIndex,
    UnitIndex,
};
use proptest::prelude::*;

fn placement(layout: &str, segment_len: u64, subsegment_len: u64) -> Placement {
    Placement::new(layout.parse().unwrap(), segment_len, subsegment_len).unwrap()
}

/// The rows of each unit, as subsegment numbers and ranges of them.
fn columns(placement: &Placement) -> Vec<Vec<String>> {
    let column = |unit| {
        let rows = (0..placement.group_count()).map(GroupIndex);
        let shards = rows.map(|row| placement.shard_at(UnitIndex(unit), row).unwrap());
        shards
            .map(|shard| {
                let first = shard.segment.start / placement.subsegment_len();
                let last = (shard.segment.end - 1) / placement.subsegment_len();
                if shard.redundant {
                    format!("P({first}-{last})")
                } else {
                    first.to_string()
                }
            })
            .collect()
    };
    (0..placement.layout().units()).map(column).collect()
}

#[test]
fn d05_nine_subsegments_over_four_units_are_figure_three() {
    let placement = placement("parity:3+1", 9 * 4096, 4096);
    assert_eq!(
        columns(&placement),
        [
            ["0", "P(3-5)", "8"],
            ["1", "3", "P(6-8)"],
            ["2", "4", "6"],
            ["P(0-2)", "5", "7"],
        ]
    );
    for unit in 0..4 {
        assert_eq!(placement.unit_len(UnitIndex(unit)), 3 * 4096);
    }
    assert_eq!(placement.stored_len(), 12 * 4096);
}

#[test]
fn d05_two_redundant_shards_rotate_like_one() {
    assert_eq!(
        columns(&placement("erasure:3+2", 9 * 64, 64)),
        [
            ["0", "P(3-5)", "P(6-8)"],
            ["1", "3", "P(6-8)"],
            ["2", "4", "6"],
            ["P(0-2)", "5", "7"],
            ["P(0-2)", "P(3-5)", "8"],
        ]
    );
}

#[test]
fn d03_a_stripe_without_parity_stores_each_byte_once() {
    let placement = placement("stripe:3", 6 * 100, 100);
    assert_eq!(columns(&placement), [["0", "5"], ["1", "3"], ["2", "4"]]);
    assert_eq!(placement.stored_len(), placement.segment_len());
}

#[test]
fn d06_every_unit_of_a_mirror_holds_the_whole_segment_in_order() {
    for layout in ["single", "mirror:2", "mirror:3", "mirror:32"] {
        let placement = placement(layout, 100_001, 4096);
        let units = placement.layout().units();
        for unit in (0..units).map(UnitIndex) {
            assert_eq!(placement.unit_len(unit), 100_001);
            for row in 0..placement.group_count() {
                let shard = placement.shard_at(unit, GroupIndex(row)).unwrap();
                assert_eq!(shard.segment, shard.offset..shard.offset + shard.len);
            }
        }
        assert_eq!(placement.stored_len(), 100_001 * units as u64);
    }
}

#[test]
fn d05_an_empty_segment_has_no_groups() {
    let placement = placement("erasure:4+2", 0, 4096);
    assert_eq!((placement.group_count(), placement.stored_len()), (0, 0));
    assert_eq!(
        (placement.unit_len(UnitIndex(0)), placement.unit_len_max()),
        (0, 0)
    );
    assert_eq!(placement.groups().count(), 0);
    assert_eq!(placement.pieces(0..0).unwrap().count(), 0);
    assert_eq!(placement.shard_at(UnitIndex(0), GroupIndex(0)), None);
}

#[test]
fn d05_the_last_group_is_spread_over_all_units_with_shorter_shards() {
    let placement = placement("parity:3+1", 3 * 4096 + 1000, 4096);
    let group = placement.group(GroupIndex(1)).unwrap();
    assert_eq!(group.shard_len, 384);
    let lens: Vec<u64> = placement.shards(&group).map(|shard| shard.len).collect();
    assert_eq!(lens, [384, 384, 232, 384]);
    assert_eq!(placement.stored_len(), 4 * 4096 + 1000 + 384);
}

#[test]
fn d05_a_single_byte_is_stored_with_one_byte_of_each_redundant_shard() {
    let placement = placement("erasure:10+4", 1, 1 << 20);
    let group = placement.group(GroupIndex(0)).unwrap();
    let lens: Vec<u64> = placement.shards(&group).map(|shard| shard.len).collect();
    assert_eq!(lens, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(placement.stored_len(), 5);
}

#[test]
fn d05_lengths_beyond_the_limits_and_places_that_do_not_exist_are_refused() {
    let layout: Layout = "parity:4+1".parse().unwrap();
    let new = |segment_len, subsegment_len| Placement::new(layout, segment_len, subsegment_len);
    assert_eq!(
        new(1, 0),
        Err(PlacementError::SubsegmentLength { subsegment_len: 0 })
    );
    assert!(new(1, SUBSEGMENT_LEN_MAX + 1).is_err());
    let segment_len = SEGMENT_LEN_MAX + 1;
    assert_eq!(
        new(segment_len, 64),
        Err(PlacementError::SegmentTooLong { segment_len })
    );
    let placement = new(1000, 64).unwrap();
    assert!(placement.pieces(0..1001).is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
    let reversed = 2..1;
    assert!(placement.pieces(reversed).is_err());
    assert_eq!(placement.shard(GroupIndex(0), ShardIndex(5)), None);
    assert_eq!(placement.shard(GroupIndex(4), ShardIndex(0)), None);
    assert_eq!(placement.shard_at(UnitIndex(5), GroupIndex(0)), None);
    assert_eq!(placement.unit_len(UnitIndex(5)), 0);
}

#[test]
fn d05_the_largest_segment_overflows_nothing() {
    for layout in [
        "single",
        "mirror:32",
        "stripe:32",
        "erasure:31+1",
        "erasure:1+31",
    ] {
        for subsegment_len in [1, 63, 1 << 20, SUBSEGMENT_LEN_MAX] {
            let placement = placement(layout, SEGMENT_LEN_MAX, subsegment_len);
            let units = placement.layout().units();
            let lens = (0..units).map(|unit| placement.unit_len(UnitIndex(unit)));
            assert_eq!(lens.sum::<u64>(), placement.stored_len());
            let last = SEGMENT_LEN_MAX - 1..SEGMENT_LEN_MAX;
            assert_eq!(placement.pieces(last).unwrap().count(), 1);
        }
    }
}

fn any_layout() -> impl Strategy<Value = Layout> {
    prop_oneof![
        Just(Layout::SINGLE),
        (2usize..=32).prop_map(|units| Layout::mirror(units).unwrap()),
        (2usize..=32).prop_map(|units| Layout::stripe(units).unwrap()),
        (1usize..=31).prop_map(|data| Layout::parity(data).unwrap()),
        (1usize..=31, 1usize..=31).prop_filter_map("at most 32 units", |(data, redundant)| {
            Layout::erasure(data, redundant).ok()
        }),
    ]
}

fn any_placement() -> impl Strategy<Value = Placement> {
    let subsegment_len = prop_oneof![1u64..200, Just(64), Just(128), Just(4096)];
    (any_layout(), subsegment_len, 0u64..10, 0.0..1.0f64).prop_map(
        |(layout, subsegment_len, groups, part)| {
            let group_len = subsegment_len * layout.data_shards() as u64;
            let rest = (group_len as f64 * part) as u64;
            Placement::new(layout, groups * group_len + rest, subsegment_len).unwrap()
        },
    )
}

proptest! {
    #[test]
    fn d05_no_two_shards_share_a_place_and_no_unit_has_a_hole(placement in any_placement()) {
        let mut ends = vec![0; placement.layout().units()];
        for group in placement.groups() {
            for shard in placement.shards(&group) {
                prop_assert_eq!(placement.shard_at(shard.unit, group.group), Some(shard.clone()));
                prop_assert_eq!(placement.shard(group.group, shard.shard), Some(shard.clone()));
                // An earlier row is never short, so the end of one is the start of the next.
                prop_assert_eq!(ends[shard.unit.0], shard.offset);
                ends[shard.unit.0] = shard.offset + shard.len;
                prop_assert!(shard.len <= group.shard_len);
            }
        }
        for (unit, end) in ends.iter().enumerate() {
            prop_assert_eq!(placement.unit_len(UnitIndex(unit)), *end);
        }
        prop_assert_eq!(placement.unit_len_max(), ends.iter().copied().max().unwrap());
        prop_assert_eq!(placement.stored_len(), ends.iter().sum::<u64>());
    }

    #[test]
    fn d02_the_data_shards_are_the_segment_in_order(placement in any_placement()) {
        let mut end = 0;
        for group in placement.groups() {
            prop_assert_eq!(group.segment.start, end);
            for shard in placement.shards(&group).filter(|shard| !shard.redundant) {
                prop_assert_eq!(shard.segment.start, end);
                prop_assert_eq!(shard.segment.end - shard.segment.start, shard.len);
                end = shard.segment.end;
            }
            prop_assert_eq!(group.segment.end, end);
        }
        prop_assert_eq!(end, placement.segment_len());
    }

    #[test]
    fn d02_the_pieces_of_a_range_are_that_range_where_its_shards_lie(
        placement in any_placement(), start in 0.0..1.0f64, len in 0.0..1.0f64,
    ) {
        let start = (placement.segment_len() as f64 * start) as u64;
        let end = start + ((placement.segment_len() - start) as f64 * len) as u64;
        let mut at = start;
        for piece in placement.pieces(start..end).unwrap() {
            let shard = placement.shard(piece.group, piece.shard).unwrap();
            prop_assert!(!shard.redundant && piece.len > 0);
            prop_assert_eq!(piece.segment_offset, at);
            prop_assert_eq!(shard.segment.start + piece.shard_offset, at);
            prop_assert_eq!((piece.unit, piece.offset), (shard.unit, shard.offset + piece.shard_offset));
            prop_assert!(piece.shard_offset + piece.len <= shard.len);
            at += piece.len;
        }
        prop_assert_eq!(at, end);
    }

    #[test]
    fn d05_the_units_store_the_least_that_the_layout_needs(
        layout in any_layout(), subsegment_len in 64u64..1 << 22, segment_len in 0u64..1 << 28,
    ) {
        let placement = Placement::new(layout, segment_len, subsegment_len).unwrap();
        let ratio = layout.expansion();
        let (numerator, denominator) = (u64::from(ratio.numerator), u64::from(ratio.denominator));
        let least = (segment_len * numerator).div_ceil(denominator);
        let stored = placement.stored_len();
        prop_assert!(stored >= least);
        prop_assert!(stored <= least + 65 * layout.redundant_shards() as u64);
        if segment_len >= 1 << 20 {
            prop_assert!((stored - least) * 500 < least);
        }
        if segment_len % (subsegment_len * layout.data_shards() as u64) == 0 {
            prop_assert_eq!(stored * denominator, segment_len * numerator);
        }
    }

    #[test]
    fn d02_the_largest_segment_that_fits_a_unit_is_found(
        layout in any_layout(), unit_len in 0u64..100_000, subsegment_len in 1u64..5000,
    ) {
        let longest = Placement::segment_len_max(layout, unit_len, subsegment_len).unwrap();
        let needed = |len| Placement::new(layout, len, subsegment_len).unwrap().unit_len_max();
        prop_assert!(needed(longest) <= unit_len);
        prop_assert!(needed(longest + 1) > unit_len);
    }
}
