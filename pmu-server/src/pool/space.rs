//! Which granules are free, and which of them a new region gets.

use pmu_format::{Extent, GRANULE_BYTES, PoolOffset, Superblock};

/// How much room a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes of all extents that there could be.
    pub total_bytes: u64,
    /// Bytes that no region holds, and that none that is just being made will hold.
    pub free_bytes: u64,
    /// The longest free range: a region up to this length has one extent.
    pub largest_free_bytes: u64,
    /// Bytes of the region table that are in use.
    pub table_used_bytes: u64,
    /// Bytes of one copy of the region table.
    pub table_bytes: u64,
}

/// The ranges between the used extents, in order. The used ones lie inside the pool and don't
/// overlap.
pub(super) fn free_extents(
    superblock: &Superblock,
    used: impl Iterator<Item = Extent>,
) -> Vec<Extent> {
    let mut used: Vec<Extent> = used.collect();
    used.sort_unstable_by_key(|extent| extent.offset);
    let mut free = Vec::new();
    let mut begin = superblock.data_offset().get();
    let end = superblock.data_end().get();
    for extent in used {
        push(&mut free, begin, extent.offset.get());
        begin = begin.max(extent.offset.get().saturating_add(extent.length_bytes));
    }
    push(&mut free, begin, end);
    free
}

fn push(free: &mut Vec<Extent>, begin: u64, end: u64) {
    if end > begin {
        free.push(Extent {
            offset: PoolOffset(begin),
            length_bytes: end - begin,
        });
    }
}

/// The extents for `length_bytes`, a multiple of the granule: the first free range that holds them
/// all, otherwise pieces of the free ranges from the lowest on. None where not enough is free.
pub(super) fn first_fit(free: &[Extent], length_bytes: u64) -> Option<Vec<Extent>> {
    debug_assert!(length_bytes.is_multiple_of(GRANULE_BYTES));
    if let Some(whole) = free
        .iter()
        .find(|extent| extent.length_bytes >= length_bytes)
    {
        return Some(vec![Extent {
            offset: whole.offset,
            length_bytes,
        }]);
    }
    let mut missing_bytes = length_bytes;
    let mut chosen = Vec::new();
    for extent in free {
        let taken_bytes = extent.length_bytes.min(missing_bytes);
        chosen.push(Extent {
            offset: extent.offset,
            length_bytes: taken_bytes,
        });
        missing_bytes -= taken_bytes;
        if missing_bytes == 0 {
            return Some(chosen);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use pmu_format::{Medium, PoolId};
    use proptest::prelude::*;

    const GRANULES: u64 = 40;

    fn superblock() -> Superblock {
        let data = 3 * GRANULE_BYTES;
        let length = data + GRANULES * GRANULE_BYTES + 5000;
        Superblock::new(PoolId([1; 16]), length, GRANULE_BYTES, 0, Medium::Memory).unwrap()
    }

    fn extent(granule: u64, granules: u64) -> Extent {
        let begin = superblock().data_offset().get();
        let offset = PoolOffset(begin + granule * GRANULE_BYTES);
        Extent {
            offset,
            length_bytes: granules * GRANULE_BYTES,
        }
    }

    #[test]
    fn a_whole_range_is_preferred_to_scattered_ones() {
        let used = [extent(2, 1), extent(5, 1), extent(10, 30)];
        let free = free_extents(&superblock(), used.into_iter());
        assert_eq!(free, [extent(0, 2), extent(3, 2), extent(6, 4)]);
        assert_eq!(
            first_fit(&free, 3 * GRANULE_BYTES),
            Some(vec![extent(6, 3)])
        );
        assert_eq!(
            first_fit(&free, 5 * GRANULE_BYTES),
            Some(vec![extent(0, 2), extent(3, 2), extent(6, 1)])
        );
        assert_eq!(first_fit(&free, 9 * GRANULE_BYTES), None);
    }

    proptest! {
        #[test]
        fn what_is_given_out_was_free_and_is_long_enough(
            used in prop::collection::btree_set(0..GRANULES, 0..GRANULES as usize),
            wanted in 1..GRANULES,
        ) {
            let pieces = used.iter().rev().map(|&granule| extent(granule, 1));
            let free = free_extents(&superblock(), pieces);
            let chosen = first_fit(&free, wanted * GRANULE_BYTES);
            let free_granules = GRANULES - used.len() as u64;
            prop_assert_eq!(chosen.is_some(), free_granules >= wanted);
            let mut seen = std::collections::BTreeSet::new();
            for piece in chosen.into_iter().flatten() {
                let first = (piece.offset.get() - superblock().data_offset().get()) / GRANULE_BYTES;
                for granule in first..first + piece.length_bytes / GRANULE_BYTES {
                    prop_assert!(granule < GRANULES && !used.contains(&granule));
                    prop_assert!(seen.insert(granule));
                }
            }
            prop_assert!(seen.is_empty() || seen.len() as u64 == wanted);
        }
    }
}
