//! One-sided operations with flush and protection: register, protect, connect, post chains, complete.
//! It never knows what a checkpoint is, and never retries: policy belongs to the callers.
//!
//! Two providers give the same contract, written down as a test suite in [`contract`]:
//!
//! * [`verbs`]: any RDMA device, through libibverbs opened at run time. The unit's processor takes no part.
//! * [`soft`]: TCP and Unix sockets. The unit's own threads check each operation against the protection table and copy.
//!
//! # The contract
//!
//! A [`Chain`] is a list of one-sided operations that is posted with one doorbell and completed once.
//!
//! 1. Operations of a chain take effect in the order of the list.
//! 2. `Flush` returns (that is: the next operation starts) when the bytes of its range that were written before it are durable,
//!    by the connection's [`PersistenceMethod`]. On a volatile pool it does nothing, and the method says so.
//! 3. `AtomicWrite` stores 8 aligned bytes in one piece; a reader sees the old or the new value.
//! 4. Chains of one connection complete in the order of posting, and an atomic write takes effect only after every flush posted before it
//!    on that connection. No other order holds between chains in flight, and none between connections.
//! 5. An operation outside a window, with a wrong key, or without the right completes with
//!    [`CompletionStatus::RemoteAccess`]; the connection is dead after it and the chains behind it complete as [`CompletionStatus::Flushed`].
//! 6. When [`UnitFabric::invalidate`] has returned, no byte of the connection lands any more.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod chain;
pub mod connection;
#[cfg(feature = "contract")]
pub mod contract;
pub mod error;
mod group_commit;
pub mod persistence;
pub mod protection;
pub mod rarely;
pub mod soft;
pub mod unit;
pub mod verbs;

pub use chain::{Chain, LocalSlice, Op};
pub use connection::{AccessWindow, AttachedMemory, Completion, Connection, Counters, Limits};
pub use error::{CompletionStatus, FabricError};
pub use persistence::{PersistenceMethod, Provider};
pub use unit::{
    ConnectToken, ConnectionId, ExposedExtent, ExposedRegion, FabricEvent, UnitFabric, WindowAccess,
};
