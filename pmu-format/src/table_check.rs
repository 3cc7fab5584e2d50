//! Whether a region table says something that can be.

use std::collections::HashSet;

use crate::{
    ATTRIBUTES_BYTES_MAX, Extent, FormatError, GRANULE_BYTES, LogGeometry, Mode, RegionEntry,
    RegionTable, SetGeometry, Structure, Superblock,
};

impl RegionTable {
    /// Checks all that a table must keep: the pool's id; generation from 1; ids, names and
    /// principals unique; lengths, addresses and extents in granules; extents inside the pool,
    /// apart from each other and exactly as long as their region; virtual ranges apart and below
    /// `next_address`; capacity and sets kept fitting the length.
    ///
    /// # Errors
    /// The first thing that is wrong, as a [`FormatError`].
    pub fn validate(&self, superblock: &Superblock) -> Result<(), FormatError> {
        let structure = Structure::RegionTable;
        let wrong = |field, found, expected| {
            Err(FormatError::Field {
                structure,
                field,
                found,
                expected,
            })
        };
        if self.pool_id != superblock.pool_id() {
            // The halves of two different random ids, as numbers, are enough to tell them apart.
            let number = |id: crate::PoolId| crate::bytes::u64_at(id.as_bytes(), 0);
            return Err(FormatError::Mismatch {
                structure,
                field: "pool id (first half)",
                found: number(self.pool_id),
                expected: number(superblock.pool_id()),
            });
        }
        if self.generation == 0 {
            return wrong("generation", 0, "1 or more");
        }
        if !self.next_address.get().is_multiple_of(GRANULE_BYTES) {
            return wrong(
                "next address",
                self.next_address.get(),
                "a multiple of 65536",
            );
        }
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for region in &self.regions {
            if !ids.insert(region.id) {
                return duplicate(structure, "region id", region.id.to_string());
            }
            if !names.insert(&region.name) {
                return duplicate(structure, "region name", region.name.to_string());
            }
            check_region(region, self.next_address.get())?;
        }
        self.check_virtual_ranges()?;
        self.check_extents(superblock)
    }

    fn check_virtual_ranges(&self) -> Result<(), FormatError> {
        let mut ranges: Vec<(u64, u64)> = self
            .regions
            .iter()
            .map(|region| (region.base.get(), region.length_bytes))
            .collect();
        check_apart(&mut ranges, "virtual ranges")
    }

    fn check_extents(&self, superblock: &Superblock) -> Result<(), FormatError> {
        let structure = Structure::RegionTable;
        let (begin, limit) = (superblock.data_offset().get(), superblock.data_end().get());
        let mut ranges = Vec::new();
        for extent in self.regions.iter().flat_map(|region| &region.extents) {
            let (offset, length_bytes) = (extent.offset.get(), extent.length_bytes);
            let inside = offset
                .checked_add(length_bytes)
                .is_some_and(|end| end <= limit);
            if offset < begin || !inside {
                return Err(FormatError::OutOfBounds {
                    structure,
                    what: "extent",
                    offset,
                    length_bytes,
                    limit,
                });
            }
            ranges.push((offset, length_bytes));
        }
        check_apart(&mut ranges, "extents")
    }
}

fn duplicate(structure: Structure, what: &'static str, value: String) -> Result<(), FormatError> {
    Err(FormatError::Duplicate {
        structure,
        what,
        value,
    })
}

/// Whether ranges that don't overflow are apart from each other. Sorts them.
fn check_apart(ranges: &mut [(u64, u64)], what: &'static str) -> Result<(), FormatError> {
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let [(first_offset, length_bytes), (second_offset, _)] = *pair else {
            continue;
        };
        if first_offset.saturating_add(length_bytes) > second_offset {
            let structure = Structure::RegionTable;
            return Err(FormatError::Overlap {
                structure,
                what,
                first_offset,
                second_offset,
            });
        }
    }
    Ok(())
}

fn check_region(region: &RegionEntry, next_address: u64) -> Result<(), FormatError> {
    let structure = Structure::RegionEntry;
    let wrong = |field, found, expected| {
        Err(FormatError::Field {
            structure,
            field,
            found,
            expected,
        })
    };
    if !region.base.get().is_multiple_of(GRANULE_BYTES) {
        return wrong(
            "virtual base address",
            region.base.get(),
            "a multiple of 65536",
        );
    }
    if region.length_bytes == 0 || !region.length_bytes.is_multiple_of(GRANULE_BYTES) {
        return wrong(
            "length",
            region.length_bytes,
            "a multiple of 65536, from 65536",
        );
    }
    if region.end().is_none_or(|end| end.get() > next_address) {
        return Err(FormatError::OutOfBounds {
            structure,
            what: "virtual range",
            offset: region.base.get(),
            length_bytes: region.length_bytes,
            limit: next_address,
        });
    }
    if region.attributes.len() > ATTRIBUTES_BYTES_MAX {
        return wrong(
            "length of the attributes",
            region.attributes.len() as u64,
            "4096 or less",
        );
    }
    let mut principals = HashSet::new();
    for grant in &region.grants {
        if grant.rights.is_empty() {
            return wrong("rights", 0, "at least one right");
        }
        if !principals.insert(&grant.principal) {
            return duplicate(structure, "principal", grant.principal.to_string());
        }
    }
    check_mode(region)?;
    check_extent_sum(region)
}

fn check_mode(region: &RegionEntry) -> Result<(), FormatError> {
    let structure = Structure::RegionEntry;
    match region.mode {
        Mode::Overwrite => {
            SetGeometry::new(region.length_bytes, region.capacity_bytes, region.sets_kept)?;
        }
        Mode::Append => {
            LogGeometry::new(region.length_bytes)?;
            for (field, found) in [
                ("capacity in append mode", region.capacity_bytes),
                ("sets kept in append mode", region.sets_kept.into()),
            ] {
                if found != 0 {
                    return Err(FormatError::Field {
                        structure,
                        field,
                        found,
                        expected: "0",
                    });
                }
            }
        }
    }
    Ok(())
}

fn check_extent_sum(region: &RegionEntry) -> Result<(), FormatError> {
    let structure = Structure::RegionEntry;
    let mut sum_bytes = 0_u64;
    for Extent {
        offset,
        length_bytes,
    } in &region.extents
    {
        for (field, found) in [
            ("offset of an extent", offset.get()),
            ("extent", *length_bytes),
        ] {
            if !found.is_multiple_of(GRANULE_BYTES) || *length_bytes == 0 {
                let expected = "a multiple of 65536, from 65536";
                return Err(FormatError::Field {
                    structure,
                    field,
                    found,
                    expected,
                });
            }
        }
        sum_bytes = sum_bytes.saturating_add(*length_bytes);
    }
    if sum_bytes != region.length_bytes {
        return Err(FormatError::Mismatch {
            structure,
            field: "sum of the extents",
            found: sum_bytes,
            expected: region.length_bytes,
        });
    }
    Ok(())
}
