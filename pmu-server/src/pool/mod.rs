//! The pool engine: regions, their extents and their virtual addresses, kept durably in the pool
//! itself. It never looks at what programs keep in their regions, and knows nothing of sessions and
//! windows.
//!
//! Every change follows one order, whose steps are each durable before the next begins: new bytes
//! (zeroed extents) → table copy B → table copy A → visible to readers of this process. A power cut
//! anywhere leaves the table before the change or the one after it: either both copies carry it, or
//! the copy that carries a higher generation is whole and counts, or it is damaged and doesn't.

mod change;
mod copies;
mod error;
mod finding;
mod init;
mod medium;
mod space;
mod verify;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use pmu_format::{
    Chosen, CopyName, Extent, OtherCopy, PoolId, RegionEntry, RegionId, RegionName, RegionOffset,
    RegionState, RegionTable, Superblock, VirtualAddress,
};
use pmu_pmem::{PoolMemory, PoolSpec};

pub use change::{NewRegion, RegionSize};
pub use error::PoolError;
pub use finding::{Finding, Part, Severity};
pub use init::InitOptions;
pub use medium::{PoolMedium, from_pmem, to_pmem};
pub use space::Space;
pub use verify::{Report, verify};

use change::Control;

/// A pool that is open.
///
/// All methods may be called from any thread. Reads but [`Self::space`] take a snapshot and never
/// wait for a change to become durable. Changes are made one after the other, but the long part of
/// them (zeroing) runs beside other changes, so that a fence never waits for an erasure.
#[derive(Debug)]
pub struct Pool<M = PoolMemory> {
    memory: Arc<M>,
    superblock: Superblock,
    control: Mutex<Control>,
    visible: RwLock<Arc<RegionTable>>,
    findings: Vec<Finding>,
}

impl Pool<PoolMemory> {
    /// Makes a new, empty pool, and opens it. Durable on return, where the medium is.
    ///
    /// Blocks while a file's zeros are written (`options.progress` tells how far). Two writers of
    /// one place exclude each other by its lock.
    ///
    /// # Errors
    /// [`PoolError::HoldsPool`] or [`pmu_pmem::PmemError::Exists`] where something is there and
    /// `options.force` is not set; [`PoolError::BadLayout`] for a length that holds no pool, or
    /// tables of a wrong length; [`PoolError::Memory`], "no room" among others. After an error
    /// nothing is left that opens as a new pool; an old one that was to be replaced may be lost.
    pub fn init(spec: &PoolSpec, options: InitOptions<'_>) -> Result<Self, PoolError> {
        init::init(spec, options)
    }

    /// Opens a pool, repairs what one copy allows to repair, and finishes erasures that were cut
    /// short.
    ///
    /// What was found is in [`Self::findings`]. Blocks, while erasures are finished for as long as
    /// they take.
    ///
    /// # Errors
    /// [`PoolError::NotAPool`], [`PoolError::Version`], [`PoolError::Damaged`],
    /// [`PoolError::CutShort`], [`PoolError::MediumChanged`]; [`PoolError::Memory`], "in use" and
    /// "wrong medium" among others. Nothing was changed then, unless a repair failed.
    pub fn open(spec: &PoolSpec) -> Result<Self, PoolError> {
        Self::from_memory(Arc::new(PoolMemory::open(spec)?))
    }
}

impl<M: PoolMedium> Pool<M> {
    /// As [`Pool::open`], over memory that is open already.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn from_memory(memory: Arc<M>) -> Result<Self, PoolError> {
        let chosen = copies::read_superblock(&*memory)?;
        let superblock = match chosen {
            Ok(chosen) => chosen,
            Err(source) => return Err(copies::refusal(&*memory, source)?),
        };
        check_place(&*memory, &superblock.value)?;
        let table = match copies::read_table(&*memory, &superblock.value)? {
            Ok(chosen) => chosen,
            Err(source) => return Err(copies::refusal(&*memory, source)?),
        };
        check_durability(&*memory, &table.value)?;
        let mut findings = Vec::new();
        repair_superblock(&*memory, &superblock, &mut findings)?;
        repair_table(&*memory, &superblock.value, &table, &mut findings)?;
        let mut pool = Self::assemble(memory, superblock.value, table.value);
        pool.finish_erasures(&mut findings)?;
        for finding in &findings {
            tracing::warn!(pool = %pool.id(), place = pool.memory.place(), %finding, "found while opening");
        }
        pool.findings = findings;
        Ok(pool)
    }

    fn assemble(memory: Arc<M>, superblock: Superblock, table: RegionTable) -> Self {
        Self {
            memory,
            superblock,
            control: Mutex::default(),
            visible: RwLock::new(Arc::new(table)),
            findings: Vec::new(),
        }
    }

    /// The pool's id.
    #[must_use]
    pub const fn id(&self) -> PoolId {
        self.superblock.pool_id()
    }

    /// What the pool is.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The memory, for registering it with a fabric.
    #[must_use]
    pub const fn memory(&self) -> &Arc<M> {
        &self.memory
    }

    /// Whether the pool's medium keeps its bytes over a power cut.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        to_pmem(self.memory.medium()).is_durable()
    }

    /// What opening found, and put right.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The region table as it is now. Cheap; the snapshot never changes.
    #[must_use]
    pub fn table(&self) -> Arc<RegionTable> {
        Arc::clone(&self.visible.read())
    }

    /// One region, being erased or not.
    ///
    /// # Errors
    /// [`PoolError::NoSuchRegion`].
    pub fn region(&self, id: RegionId) -> Result<RegionEntry, PoolError> {
        self.table()
            .region(id)
            .cloned()
            .ok_or(PoolError::NoSuchRegion { id })
    }

    /// The region of this name, being erased or not.
    #[must_use]
    pub fn region_named(&self, name: &RegionName) -> Option<RegionEntry> {
        self.table().region_named(name).cloned()
    }

    /// Where bytes of a region lie in the pool, in order of address. The whole region, or a part of
    /// it.
    ///
    /// # Errors
    /// [`PoolError::NoSuchRegion`], [`PoolError::BeingErased`]; [`PoolError::OutsideRegion`] where
    /// any of the bytes is not the region's.
    pub fn translate(
        &self,
        id: RegionId,
        address: VirtualAddress,
        length_bytes: u64,
    ) -> Result<Vec<Extent>, PoolError> {
        let table = self.table();
        let region = table.region(id).ok_or(PoolError::NoSuchRegion { id })?;
        if region.state != RegionState::Active {
            return Err(PoolError::BeingErased { id });
        }
        let offset = address.get().checked_sub(region.base.get());
        let inside = offset.filter(|offset| {
            offset
                .checked_add(length_bytes)
                .is_some_and(|end| end <= region.length_bytes)
        });
        match inside {
            Some(offset) => Ok(region
                .translate(RegionOffset(offset), length_bytes)
                .collect()),
            None => Err(PoolError::OutsideRegion {
                id,
                address,
                length_bytes,
            }),
        }
    }

    /// How much room there is.
    #[must_use]
    pub fn space(&self) -> Space {
        let control = self.control.lock();
        let table = self.table();
        let free = self.free_extents(&control, &table);
        Space {
            total_bytes: self.superblock.data_end().get() - self.superblock.data_offset().get(),
            free_bytes: free.iter().map(|extent| extent.length_bytes).sum(),
            largest_free_bytes: free
                .iter()
                .map(|extent| extent.length_bytes)
                .max()
                .unwrap_or(0),
            table_used_bytes: table.encoded_length_bytes() as u64,
            table_bytes: self.superblock.table_length_bytes(),
        }
    }
}

/// Refuses memory that can't be what the superblock was written to.
fn check_place<M: PoolMedium>(memory: &M, superblock: &Superblock) -> Result<(), PoolError> {
    if memory.length_bytes() < superblock.length_bytes() {
        return Err(PoolError::CutShort {
            place: memory.place(),
            expected_bytes: superblock.length_bytes(),
            found_bytes: memory.length_bytes(),
        });
    }
    if memory.medium() != superblock.medium() {
        return Err(PoolError::MediumChanged {
            place: memory.place(),
            recorded: superblock.medium(),
            found: memory.medium(),
        });
    }
    Ok(())
}

/// No table that this engine wrote has a region that needs more than its medium gives.
fn check_durability<M: PoolMedium>(memory: &M, table: &RegionTable) -> Result<(), PoolError> {
    let needing = table
        .regions
        .iter()
        .find(|region| change::needs_more(memory, region.need));
    match needing {
        None => Ok(()),
        Some(region) => Err(PoolError::NeedsDurable {
            name: region.name.clone(),
            medium: memory.medium(),
        }),
    }
}

fn repair_superblock<M: PoolMedium>(
    memory: &M,
    chosen: &Chosen<Superblock>,
    findings: &mut Vec<Finding>,
) -> Result<(), PoolError> {
    let copy = copies::other(chosen.copy);
    if let Some(finding) = repaired(Part::Superblock(Some(copy)), &chosen.other) {
        copies::write_superblock(memory, &chosen.value, copy)?;
        findings.push(finding);
    }
    Ok(())
}

fn repair_table<M: PoolMedium>(
    memory: &M,
    superblock: &Superblock,
    chosen: &Chosen<RegionTable>,
    findings: &mut Vec<Finding>,
) -> Result<(), PoolError> {
    let copy: CopyName = copies::other(chosen.copy);
    if let Some(finding) = repaired(Part::Table(Some(copy)), &chosen.other) {
        let image = copies::table_image(superblock, &chosen.value).map_err(|source| {
            PoolError::BadLayout {
                place: memory.place(),
                source,
            }
        })?;
        copies::write_table(memory, superblock, &image, copy)?;
        findings.push(finding);
    }
    Ok(())
}

fn repaired(part: Part, other: &OtherCopy) -> Option<Finding> {
    let severity = match other {
        OtherCopy::Older { .. } => Severity::Note,
        OtherCopy::Same | OtherCopy::Faulty(_) => Severity::Degraded,
    };
    let text = copies::fault_of(other)?;
    Some(Finding {
        part,
        severity,
        text,
        repaired: true,
    })
}
