//! The protection table of one connection, checked in software: by the soft provider for every operation, by the verbs provider
//! for what the unit's processor does on a peer's behalf.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};
use pmu_pmem::PoolMemory;

use crate::connection::AccessWindow;
use crate::error::FabricError;
use crate::unit::{ExposedRegion, WindowAccess};

/// A window as the unit knows it.
#[derive(Debug, Clone)]
pub struct BoundWindow {
    /// What the peer was given.
    pub given: AccessWindow,
    /// What it may do.
    pub access: WindowAccess,
    /// Where the bytes are.
    pub pool: Arc<PoolMemory>,
    /// Offset of the window's first byte in the pool.
    pub pool_offset: u64,
}

/// What an operation wants to do with a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// READ.
    Read,
    /// WRITE or ATOMIC WRITE.
    Write,
    /// FLUSH.
    Flush,
}

/// Windows of one connection behind a gate: whoever moves bytes holds the gate open for one bounded step,
/// and whoever invalidates waits for that step and then finds nobody inside.
#[derive(Debug, Default)]
pub struct WindowGate {
    windows: RwLock<Vec<BoundWindow>>,
}

impl WindowGate {
    /// Holds the gate open. Keep it for one bounded, non-blocking step only.
    pub fn enter(&self) -> OpenGate<'_> {
        OpenGate {
            windows: self.windows.read(),
        }
    }

    /// Adds windows.
    ///
    /// # Errors
    /// [`FabricError::Protocol`] if they overlap one that is there.
    pub fn add(&self, new: Vec<BoundWindow>) -> Result<(), FabricError> {
        let mut windows = self.windows.write();
        for window in new {
            let (start, end) = (
                window.given.address,
                window.given.address + window.given.length,
            );
            let index = windows.partition_point(|other| other.given.address < start);
            let clear_before = index == 0 || {
                let before = &windows[index - 1].given;
                before.address + before.length <= start
            };
            let clear_after = windows
                .get(index)
                .is_none_or(|after| end <= after.given.address);
            if !(clear_before && clear_after) {
                return Err(FabricError::Protocol(
                    "windows of one connection overlap".into(),
                ));
            }
            windows.insert(index, window);
        }
        Ok(())
    }

    /// Takes all windows away. When it returns nobody is inside the gate, and nobody finds a window behind it.
    pub fn invalidate(&self) {
        self.windows.write().clear();
    }
}

/// The gate while it is held open.
pub struct OpenGate<'a> {
    windows: RwLockReadGuard<'a, Vec<BoundWindow>>,
}

impl OpenGate<'_> {
    /// Finds the window that allows this, and the pool offset of `address`. `None` is a remote access error.
    pub fn check(
        &self,
        key: u32,
        address: u64,
        length: u64,
        intent: Intent,
    ) -> Option<(&Arc<PoolMemory>, u64)> {
        let index = self
            .windows
            .partition_point(|window| window.given.address <= address);
        let window = self.windows.get(index.checked_sub(1)?)?;
        let inside = address.checked_add(length)? <= window.given.address + window.given.length;
        let allowed = match intent {
            Intent::Read => window.access.read && key == window.given.access_key,
            Intent::Write => window.access.write && key == window.given.access_key,
            // It changes nothing but when bytes that are there become durable.
            Intent::Flush => key == window.given.flush_key,
        };
        (inside && allowed).then(|| {
            (
                &window.pool,
                window.pool_offset + (address - window.given.address),
            )
        })
    }
}

/// Cuts `address..address+length` of a region into its extents: (address, pool offset, length) each.
///
/// # Errors
/// [`FabricError::OutsideWindows`] if the range leaves the region.
pub fn extents_of(
    region: &ExposedRegion,
    address: u64,
    length: u64,
) -> Result<Vec<crate::unit::ExposedExtent>, FabricError> {
    let outside = FabricError::OutsideWindows { address, length };
    let Some(end) = address.checked_add(length) else {
        return Err(outside);
    };
    let mut pieces = Vec::new();
    let mut covered = 0;
    for extent in &region.extents {
        let (start, stop) = (
            address.max(extent.address),
            end.min(extent.address + extent.length),
        );
        if start < stop {
            covered += stop - start;
            pieces.push(crate::unit::ExposedExtent {
                address: start,
                pool_offset: extent.pool_offset + (start - extent.address),
                length: stop - start,
            });
        }
    }
    if covered == length && length > 0 {
        Ok(pieces)
    } else {
        Err(outside)
    }
}
