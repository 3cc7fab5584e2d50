//! The staging memory of one session: volatile memory that the program writes with one-sided writes, and this side reads.

use std::sync::Arc;
use std::time::Duration;

use pmu_fabric::{
    AccessWindow, ConnectToken, ConnectionId, ExposedExtent, ExposedRegion, FabricError,
    PersistenceMethod, UnitFabric, WindowAccess,
};
use pmu_pmem::{CreateOptions, PoolMemory, PoolSpec};
use pmu_proto::v1::Reason;

use crate::control::reasons::Refusal;

/// The program writes, and reads nothing back.
pub(super) const WRITE_ONLY: WindowAccess = WindowAccess {
    read: false,
    write: true,
};

/// See the module. Bytes in it may change at any time: they are copied out before they are looked at.
pub(super) struct Staging {
    address: u64,
    length: u64,
    memory: Arc<PoolMemory>,
}

impl Staging {
    /// `length` bytes, a multiple of 4096, that will be seen at `address`.
    pub(super) fn create(address: u64, length: u64) -> Result<Self, Refusal> {
        let options = CreateOptions {
            len: Some(length),
            ..CreateOptions::default()
        };
        let memory = PoolMemory::create(&PoolSpec::memory(), options)?;
        Ok(Self {
            address,
            length,
            memory: Arc::new(memory),
        })
    }

    /// Copies a piece out of the ring. The caller has checked that it doesn't cross the end.
    pub(super) fn copy_out(&self, position: u64, piece: &mut [u8]) -> Result<(), Refusal> {
        self.memory
            .read_at(position % self.length, piece)
            .map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))
    }

    /// Registers the memory with a listener, and expects one data connection there.
    pub(super) fn offer<'a>(
        &self,
        fabric: &'a dyn UnitFabric,
        within: Duration,
    ) -> Result<Offer<'a>, Refusal> {
        let methods = fabric.persistence_methods(&self.memory);
        let method = methods.last().copied().ok_or_else(|| {
            let message = format!("{} can't serve staging memory", fabric.provider());
            Refusal::new(Reason::NoProvider, message)
        })?;
        fabric.expose(&ExposedRegion {
            address: self.address,
            pool: Arc::clone(&self.memory),
            extents: vec![ExposedExtent {
                address: self.address,
                pool_offset: 0,
                length: self.length,
            }],
        })?;
        let mut offer = Offer {
            fabric,
            address: self.address,
            length: self.length,
            connection: None,
            token: ConnectToken::random()?,
            method,
        };
        offer.connection = Some(fabric.expect(offer.token, method, within)?);
        Ok(offer)
    }
}

/// A data connection into staging memory, expected or made. Dropped, it is cut and the memory is taken back.
pub(super) struct Offer<'a> {
    fabric: &'a dyn UnitFabric,
    address: u64,
    length: u64,
    connection: Option<ConnectionId>,
    pub(super) token: ConnectToken,
    pub(super) method: PersistenceMethod,
}

impl Offer<'_> {
    /// Waits for the connection and gives it a window on all of the memory.
    pub(super) fn bind(&self, within: Duration) -> Result<AccessWindow, Refusal> {
        let connection = self.connection.ok_or(FabricError::NoSuchConnection)?;
        self.fabric.wait_connected(connection, within)?;
        let windows = self.fabric.bind(
            connection,
            self.address,
            self.address,
            self.length,
            WRITE_ONLY,
        )?;
        match windows.as_slice() {
            [window] => Ok(*window),
            _ => Err(Refusal::new(Reason::Fabric, "one window was expected")),
        }
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection {
            if let Err(error) = self.fabric.invalidate(connection) {
                // The memory stays registered, and nobody else ever gets it.
                tracing::error!(%error, "a window on staging memory could not be taken away");
                self.fabric.close(connection);
                return;
            }
            self.fabric.close(connection);
        }
        if let Err(error) = self.fabric.withdraw(self.address) {
            tracing::error!(%error, "staging memory could not be taken back");
        }
    }
}
