//! The unit's side: expose regions, expect connections, bind and invalidate windows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pmu_pmem::PoolMemory;

use crate::connection::AccessWindow;
use crate::error::FabricError;
use crate::persistence::{PersistenceMethod, Provider};

/// Proof that the bearer was authenticated over the control channel. Used once, for one connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectToken(pub [u8; 32]);

impl fmt::Debug for ConnectToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectToken(secret)")
    }
}

impl ConnectToken {
    /// A random token.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn random() -> Result<Self, FabricError> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).map_err(|error| FabricError::Io {
            context: "draw a connect token",
            source: error.into(),
        })?;
        Ok(Self(bytes))
    }
}

/// Names a connection (expected or made) within one unit fabric. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One extent: virtual addresses that lie together in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExposedExtent {
    /// First virtual address.
    pub address: u64,
    /// Offset of its first byte in the pool.
    pub pool_offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// A region as the fabric sees it: an identity, memory, and its translation.
#[derive(Debug, Clone)]
pub struct ExposedRegion {
    /// Virtual base address: names the region within the unit.
    pub address: u64,
    /// The pool it lies in.
    pub pool: Arc<PoolMemory>,
    /// Its extents in order of virtual address, dense.
    pub extents: Vec<ExposedExtent>,
}

/// What a window lets its holder do. Flush is always allowed: who reads may have to know that what was read stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowAccess {
    /// READ.
    pub read: bool,
    /// WRITE and ATOMIC WRITE.
    pub write: bool,
}

/// What happened on the data side.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FabricEvent {
    /// The connection has ended, and its windows are gone with it: no byte of it lands any more.
    Disconnected {
        /// Which.
        connection: ConnectionId,
        /// Why, for the log.
        reason: String,
    },
}

/// Called from the fabric's own threads; must not block.
pub type Observer = Box<dyn Fn(FabricEvent) + Send + Sync>;

/// The unit's half of a provider. Safe to call from any thread. Calls may block for the time of a few work requests, unless said otherwise.
pub trait UnitFabric: Send + Sync {
    /// Which provider this is.
    fn provider(&self) -> Provider;

    /// Where initiators connect to: `host:port`, or a path.
    fn address(&self) -> String;

    /// The methods that this provider can honour for a pool, strongest first. None where it can't serve the pool at all (verbs and an
    /// ordinary file). [`PersistenceMethod::ReadAfterWrite`] is listed where the device could do it: whoever offers it must strike it
    /// unless the unit attests that inbound writes reach the medium.
    fn persistence_methods(&self, pool: &PoolMemory) -> Vec<PersistenceMethod>;

    /// Sets who is told of events. Called once, before the first connection.
    fn observe(&self, observer: Observer);

    /// Registers a region's extents (verbs: with the NIC). Idempotent.
    ///
    /// # Errors
    /// The device refuses the registration.
    fn expose(&self, region: &ExposedRegion) -> Result<(), FabricError>;

    /// Takes a region back. Windows on it must have been invalidated.
    ///
    /// # Errors
    /// The device refuses.
    fn withdraw(&self, region_address: u64) -> Result<(), FabricError>;

    /// Lets one connection with this token come in, within `within`.
    ///
    /// # Errors
    /// [`FabricError::UnfitPersistence`] if the method can't be honoured here.
    fn expect(
        &self,
        token: ConnectToken,
        method: PersistenceMethod,
        within: Duration,
    ) -> Result<ConnectionId, FabricError>;

    /// Blocks until the connection is made.
    ///
    /// # Errors
    /// [`FabricError::TimedOut`]; [`FabricError::NoSuchConnection`] when it has ended or its time is over.
    fn wait_connected(
        &self,
        connection: ConnectionId,
        timeout: Duration,
    ) -> Result<(), FabricError>;

    /// Binds windows over `address..address+length` of an exposed region to this connection, one for each extent that the range touches.
    ///
    /// # Errors
    /// No such connection or region; range outside the region; the device refuses.
    fn bind(
        &self,
        connection: ConnectionId,
        region_address: u64,
        address: u64,
        length: u64,
        access: WindowAccess,
    ) -> Result<Vec<AccessWindow>, FabricError>;

    /// Invalidates every window of the connection. When this returns `Ok`, no byte of that connection lands any more, and no atomic
    /// write of it takes effect: its next operation completes as [`crate::CompletionStatus::RemoteAccess`], and then it is dead.
    /// A connection that has already ended is `Ok`; one not yet made is forgotten.
    ///
    /// # Errors
    /// The device failed: nothing may be assumed; the caller must not grant the region to anybody.
    fn invalidate(&self, connection: ConnectionId) -> Result<(), FabricError>;

    /// Invalidates and ends the connection at once; its owner sees [`crate::CompletionStatus::ConnectionLost`]. Does not block.
    fn close(&self, connection: ConnectionId);

    /// Stops listening and ends every connection.
    fn shut_down(&self);
}
