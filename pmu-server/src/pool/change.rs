//! Changes: regions made, changed and deleted.

use std::ops::Range;
use std::sync::Arc;

use pmu_format::{
    CopyName, Epoch, Extent, FormatError, GRANULE_BYTES, Grant, LogGeometry, Mode, Need,
    RegionEntry, RegionId, RegionName, RegionState, RegionTable, SetGeometry, Structure,
};
use pmu_pmem::PmemError;

use super::error::PoolError;
use super::finding::{Finding, Part, Severity};
use super::init::{random_id, seconds_since_1970};
use super::medium::PoolMedium;
use super::{Pool, copies, space, to_pmem};

/// Extents are zeroed in steps of this many bytes, and the write-back of each begins before the
/// next.
const ZERO_STEP_BYTES: u64 = 8 << 20;

/// What decides how long a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionSize {
    /// Overwrite mode: long enough for sets of this many bytes.
    SetCapacity(u64),
    /// This many bytes, rounded up to granules. In overwrite mode the sets are as long as fits.
    Region(u64),
}

/// A region to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRegion {
    /// Its name, unique in the pool.
    pub name: RegionName,
    /// How it takes data.
    pub mode: Mode,
    /// What it demands of the medium.
    pub need: Need,
    /// Committed sets to keep: 1 to 1024 in overwrite mode, 0 in append mode.
    pub sets_kept: u32,
    /// How long.
    pub size: RegionSize,
    /// Who may do what; each principal once.
    pub grants: Vec<Grant>,
    /// Up to 4096 bytes that mean nothing to the unit.
    pub attributes: Vec<u8>,
}

impl NewRegion {
    /// Length and capacity in bytes.
    fn layout(&self) -> Result<(u64, u64), FormatError> {
        let too_long = |found| FormatError::Field {
            structure: Structure::RegionEntry,
            field: "length",
            found,
            expected: "what 64 bits can place",
        };
        let granules = |bytes: u64| {
            bytes
                .checked_next_multiple_of(GRANULE_BYTES)
                .ok_or_else(|| too_long(bytes))
        };
        match (self.mode, self.size) {
            (Mode::Overwrite, RegionSize::SetCapacity(capacity_bytes)) => {
                let needed = SetGeometry::region_bytes_for(capacity_bytes, self.sets_kept)?;
                Ok((granules(needed)?, capacity_bytes))
            }
            (Mode::Overwrite, RegionSize::Region(bytes)) => {
                let length_bytes = granules(bytes)?;
                let capacity = SetGeometry::capacity_max_bytes(length_bytes, self.sets_kept)?;
                Ok((length_bytes, capacity))
            }
            (Mode::Append, RegionSize::Region(bytes)) => {
                LogGeometry::new(granules(bytes)?)?;
                Ok((granules(bytes)?, 0))
            }
            (Mode::Append, RegionSize::SetCapacity(found)) => Err(FormatError::Field {
                structure: Structure::RegionEntry,
                field: "capacity of a set in append mode",
                found,
                expected: "none",
            }),
        }
    }

    fn entry(&self, id: RegionId, length_bytes: u64, capacity_bytes: u64) -> RegionEntry {
        RegionEntry {
            id,
            name: self.name.clone(),
            mode: self.mode,
            state: RegionState::Active,
            need: self.need,
            sets_kept: self.sets_kept,
            // Given when the region enters the table.
            base: pmu_format::VirtualAddress(0),
            length_bytes,
            capacity_bytes,
            epoch: Epoch(0),
            created_seconds: seconds_since_1970(),
            extents: Vec::new(),
            grants: self.grants.clone(),
            attributes: self.attributes.clone(),
        }
    }
}

/// What belongs to changes that are under way. Its mutex makes changes of the table one after the
/// other.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Regions that are being zeroed before they enter the table.
    reserved: Vec<Reservation>,
    /// Regions that somebody is erasing just now.
    erasing: Vec<RegionId>,
    /// A change failed between its first and its last step: nobody knows what the medium holds.
    has_failed: bool,
    /// From this offset on no region has ever lain, and the memory began as zeros when this process
    /// made it: they are there still. None where that is not known.
    zeros_from: Option<u64>,
}

impl Control {
    /// All of the memory was made just now, of zeros, and no region has lain in it.
    pub(super) fn begins_zeroed(&mut self) {
        self.zeros_from = Some(0);
    }

    /// These extents are used from now on. Gives what of them is to be zeroed.
    fn take_into_use(&mut self, extents: &[Extent]) -> Vec<Extent> {
        let Some(zeros_from) = self.zeros_from else {
            return extents.to_vec();
        };
        let end = |extent: &Extent| extent.offset.get() + extent.length_bytes;
        let used_to = extents.iter().map(end).max().unwrap_or(0);
        self.zeros_from = Some(zeros_from.max(used_to));
        let used_before = extents.iter().map(|extent| Extent {
            length_bytes: end(extent)
                .min(zeros_from)
                .saturating_sub(extent.offset.get()),
            ..*extent
        });
        used_before
            .filter(|extent| extent.length_bytes > 0)
            .collect()
    }
}

#[derive(Debug)]
struct Reservation {
    id: RegionId,
    name: RegionName,
    extents: Vec<Extent>,
}

/// Whether the memory gives less than the region needs.
pub(super) fn needs_more<M: PoolMedium>(memory: &M, need: Need) -> bool {
    need == Need::Durable && !to_pmem(memory.medium()).is_durable()
}

impl<M: PoolMedium> Pool<M> {
    /// Makes a region. On return it is durable (on a durable medium), all its bytes are zero, and
    /// so are they durably.
    ///
    /// Blocks while its extents are zeroed; other changes go on meanwhile. Of memory that this
    /// process made, of zeros, what was never used is not zeroed again. Its virtual addresses
    /// were never used before. Cut short, it leaves nothing: the extents count as used only with the
    /// table that names them.
    ///
    /// # Errors
    /// [`PoolError::NameTaken`], [`PoolError::NeedsDurable`], [`PoolError::NoRoom`],
    /// [`PoolError::BadRegion`], [`PoolError::TableFull`], [`PoolError::AddressesUsedUp`]: nothing
    /// was changed. [`PoolError::Memory`], [`PoolError::Failed`].
    pub fn create(&self, new: &NewRegion) -> Result<RegionEntry, PoolError> {
        let bad = |source| PoolError::BadRegion {
            name: new.name.clone(),
            source,
        };
        if needs_more(&*self.memory, new.need) {
            let medium = self.memory.medium();
            return Err(PoolError::NeedsDurable {
                name: new.name.clone(),
                medium,
            });
        }
        let (length_bytes, capacity_bytes) = new.layout().map_err(bad)?;
        let id = RegionId(random_id()?);
        let mut entry = new.entry(id, length_bytes, capacity_bytes);
        let used_before;
        (entry.extents, used_before) = self.reserve(&entry)?;
        let made = self.erase(&used_before).map_err(PoolError::from);
        let mut control = self.control.lock();
        let result = made.and_then(|()| {
            let table = self.with_region(&mut entry)?;
            self.commit(&mut control, table)
        });
        control.reserved.retain(|reservation| reservation.id != id);
        result.map(|()| entry)
    }

    /// Checks that the region can be made, and holds its name and its extents. Gives them, and what
    /// of them is to be zeroed.
    fn reserve(&self, entry: &RegionEntry) -> Result<(Vec<Extent>, Vec<Extent>), PoolError> {
        let mut control = self.control.lock();
        self.refuse_after_failure(&control)?;
        let table = self.table();
        let reserved = control
            .reserved
            .iter()
            .any(|reservation| reservation.name == entry.name);
        if reserved || table.region_named(&entry.name).is_some() {
            return Err(PoolError::NameTaken {
                name: entry.name.clone(),
            });
        }
        let free = self.free_extents(&control, &table);
        let extents =
            space::first_fit(&free, entry.length_bytes).ok_or_else(|| PoolError::NoRoom {
                name: entry.name.clone(),
                needed_bytes: entry.length_bytes,
                free_bytes: free.iter().map(|extent| extent.length_bytes).sum(),
            })?;
        // Refused now rather than after the zeroing.
        let mut candidate = entry.clone();
        candidate.extents.clone_from(&extents);
        self.image(&self.with_region(&mut candidate)?)?;
        let (id, name) = (entry.id, entry.name.clone());
        control.reserved.push(Reservation {
            id,
            name,
            extents: extents.clone(),
        });
        let used_before = control.take_into_use(&extents);
        Ok((extents, used_before))
    }

    /// The next table: with the region, and virtual addresses for it.
    fn with_region(&self, entry: &mut RegionEntry) -> Result<RegionTable, PoolError> {
        let mut table = self.next_table()?;
        entry.base = table.next_address;
        let end = entry.end().ok_or(PoolError::AddressesUsedUp)?;
        table.next_address = end;
        table.regions.push(entry.clone());
        Ok(table)
    }

    /// Deletes a region: its bytes are durably zero before anybody else gets them, and before this
    /// returns.
    ///
    /// The order: the region is durably marked as being erased, from when on it can't be opened;
    /// `revoke` is called once, and has to take away every window on the region, so that nothing
    /// lands any more; the bytes are erased; the region leaves the table. Cut short, the next
    /// opening of the pool goes on with it. After an error in the erasure, delete may be called
    /// again. Blocks for as long as zeroing takes; other changes go on meanwhile.
    ///
    /// # Errors
    /// [`PoolError::NoSuchRegion`]; [`PoolError::BeingErased`] where another thread is at it;
    /// [`PoolError::Memory`], [`PoolError::Failed`].
    pub fn delete(&self, id: RegionId, revoke: impl FnOnce()) -> Result<(), PoolError> {
        let extents = self.begin_erasure(id)?;
        revoke();
        let erased = self.erase(&extents);
        let mut control = self.control.lock();
        control.erasing.retain(|erasing| *erasing != id);
        erased?;
        let mut table = self.next_table()?;
        table.regions.retain(|region| region.id != id);
        self.commit(&mut control, table)
    }

    fn begin_erasure(&self, id: RegionId) -> Result<Vec<Extent>, PoolError> {
        let mut control = self.control.lock();
        self.refuse_after_failure(&control)?;
        // Two erasures of one region could end so far apart that the later one hits the next owner.
        if control.erasing.contains(&id) {
            return Err(PoolError::BeingErased { id });
        }
        let mut table = self.next_table()?;
        let region = find(&mut table, id)?;
        let extents = region.extents.clone();
        if region.state != RegionState::Erasing {
            region.state = RegionState::Erasing;
            self.commit(&mut control, table)?;
        }
        control.erasing.push(id);
        Ok(extents)
    }

    /// Goes on with erasures that were cut short, before anybody uses the pool.
    pub(super) fn finish_erasures(&self, findings: &mut Vec<Finding>) -> Result<(), PoolError> {
        let table = self.table();
        let erasing = table
            .regions
            .iter()
            .filter(|region| region.state == RegionState::Erasing);
        for region in erasing {
            self.delete(region.id, || ())?;
            findings.push(Finding {
                part: Part::Translation,
                severity: Severity::Note,
                text: format!("the erasure of region {} was cut short", region.name),
                repaired: true,
            });
        }
        Ok(())
    }

    /// Raises a region's epoch by one and returns the new one; durable on return.
    ///
    /// # Errors
    /// [`PoolError::NoSuchRegion`], [`PoolError::BeingErased`], [`PoolError::Memory`],
    /// [`PoolError::Failed`].
    pub fn raise_epoch(&self, id: RegionId) -> Result<Epoch, PoolError> {
        let mut raised = Epoch(0);
        self.change_region(id, |region| {
            // 2^64 epochs are never used up.
            raised = Epoch(region.epoch.get().saturating_add(1));
            region.epoch = raised;
            Ok(())
        })?;
        Ok(raised)
    }

    /// Sets a region's epoch, which never goes back; durable on return. The epoch that it has
    /// already changes nothing.
    ///
    /// # Errors
    /// [`PoolError::EpochTooOld`], and as [`Self::raise_epoch`].
    pub fn set_epoch(&self, id: RegionId, epoch: Epoch) -> Result<(), PoolError> {
        self.change_region(id, |region| {
            if epoch < region.epoch {
                return Err(PoolError::EpochTooOld {
                    id,
                    present: region.epoch,
                    asked: epoch,
                });
            }
            region.epoch = epoch;
            Ok(())
        })
    }

    /// Replaces a region's grants; durable on return. Windows that were given by the old ones are
    /// for the caller to take away.
    ///
    /// # Errors
    /// [`PoolError::BadRegion`] for a principal named twice or a grant of nothing,
    /// [`PoolError::TableFull`], and as [`Self::raise_epoch`].
    pub fn set_grants(&self, id: RegionId, grants: Vec<Grant>) -> Result<(), PoolError> {
        self.change_region(id, |region| {
            region.grants = grants;
            Ok(())
        })
    }

    /// Replaces a region's attributes; durable on return.
    ///
    /// # Errors
    /// [`PoolError::BadRegion`] for more than 4096 bytes, [`PoolError::TableFull`], and as
    /// [`Self::raise_epoch`].
    pub fn set_attributes(&self, id: RegionId, attributes: Vec<u8>) -> Result<(), PoolError> {
        self.change_region(id, |region| {
            region.attributes = attributes;
            Ok(())
        })
    }

    fn change_region(
        &self,
        id: RegionId,
        change: impl FnOnce(&mut RegionEntry) -> Result<(), PoolError>,
    ) -> Result<(), PoolError> {
        let mut control = self.control.lock();
        self.refuse_after_failure(&control)?;
        let mut table = self.next_table()?;
        let region = find(&mut table, id)?;
        if region.state != RegionState::Active {
            return Err(PoolError::BeingErased { id });
        }
        let before = region.clone();
        change(region)?;
        if *region == before {
            return Ok(());
        }
        self.commit(&mut control, table)
    }

    /// A copy of the table, one generation on.
    fn next_table(&self) -> Result<RegionTable, PoolError> {
        let mut table = RegionTable::clone(&self.table());
        let failed = || PoolError::Failed {
            place: self.memory.place(),
        };
        table.generation = table.generation.checked_add(1).ok_or_else(failed)?;
        Ok(table)
    }

    fn image(&self, table: &RegionTable) -> Result<Vec<u8>, PoolError> {
        let needed_bytes = table.encoded_length_bytes() as u64;
        let room_bytes = self.superblock.table_length_bytes();
        if needed_bytes > room_bytes {
            return Err(PoolError::TableFull {
                needed_bytes,
                room_bytes,
            });
        }
        copies::table_image(&self.superblock, table).map_err(|source| {
            // All that can be wrong with a table of ours came with the region that entered or
            // changed last.
            let changed = table.regions.iter().find(|&region| {
                self.table()
                    .region(region.id)
                    .is_none_or(|old| old != region)
            });
            match changed {
                Some(region) => PoolError::BadRegion {
                    name: region.name.clone(),
                    source,
                },
                None => PoolError::BadLayout {
                    place: self.memory.place(),
                    source,
                },
            }
        })
    }

    /// Makes a table durable, copy B before copy A, and only then visible.
    fn commit(&self, control: &mut Control, table: RegionTable) -> Result<(), PoolError> {
        self.refuse_after_failure(control)?;
        let image = self.image(&table)?;
        let present = self.image(&self.table())?;
        let (memory, superblock) = (&*self.memory, &self.superblock);
        // A power cut may take copy B while it is written, so copy A has to hold then: one that
        // went bad unseen since the pool was opened is written anew first.
        let written = copies::rewrite_table(memory, superblock, &present, CopyName::A)
            .and_then(|_| copies::write_table(memory, superblock, &image, CopyName::B))
            .and_then(|()| copies::write_table(memory, superblock, &image, CopyName::A));
        if let Err(error) = written {
            control.has_failed = true;
            return Err(error.into());
        }
        *self.visible.write() = Arc::new(table);
        Ok(())
    }

    fn refuse_after_failure(&self, control: &Control) -> Result<(), PoolError> {
        if control.has_failed {
            return Err(PoolError::Failed {
                place: self.memory.place(),
            });
        }
        Ok(())
    }

    /// See [`Self::repair`].
    pub(super) fn repair_copies(&self, control: &mut Control) -> Result<Vec<Finding>, PoolError> {
        self.refuse_after_failure(control)?;
        let (memory, superblock) = (&*self.memory, &self.superblock);
        let image = self.image(&self.table())?;
        let mut findings = Vec::new();
        let done = (|| {
            for copy in [CopyName::B, CopyName::A] {
                if copies::rewrite_superblock(memory, superblock, copy)? {
                    findings.push(rewritten(Part::Superblock(Some(copy))));
                }
            }
            for copy in [CopyName::B, CopyName::A] {
                if copies::rewrite_table(memory, superblock, &image, copy)? {
                    findings.push(rewritten(Part::Table(Some(copy))));
                }
            }
            Ok::<(), PmemError>(())
        })();
        control.has_failed |= done.is_err();
        done?;
        Ok(findings)
    }

    /// Whether a change failed, so that the pool has to be opened anew. Reads are still those of
    /// the last change that succeeded.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.control.lock().has_failed
    }

    pub(super) fn free_extents(&self, control: &Control, table: &RegionTable) -> Vec<Extent> {
        let reserved = control
            .reserved
            .iter()
            .flat_map(|reservation| &reservation.extents);
        let used = table
            .regions
            .iter()
            .flat_map(|region| &region.extents)
            .chain(reserved);
        space::free_extents(&self.superblock, used.copied())
    }

    /// Zeroes extents; durable on return.
    fn erase(&self, extents: &[Extent]) -> Result<(), PmemError> {
        let mut ranges: Vec<Range<u64>> = Vec::with_capacity(extents.len());
        for extent in extents {
            let end = extent.offset.get() + extent.length_bytes;
            let mut begin = extent.offset.get();
            ranges.push(begin..end);
            while begin < end {
                let step_bytes = (end - begin).min(ZERO_STEP_BYTES);
                self.memory.zero(begin, step_bytes)?;
                self.memory.start_write_back(begin..begin + step_bytes);
                begin += step_bytes;
            }
        }
        self.memory.persist(&ranges)
    }
}

fn find(table: &mut RegionTable, id: RegionId) -> Result<&mut RegionEntry, PoolError> {
    let found = table.regions.iter_mut().find(|region| region.id == id);
    found.ok_or(PoolError::NoSuchRegion { id })
}

fn rewritten(part: Part) -> Finding {
    let text = "differed from the one in use".to_owned();
    Finding {
        part,
        severity: Severity::Degraded,
        text,
        repaired: true,
    }
}
