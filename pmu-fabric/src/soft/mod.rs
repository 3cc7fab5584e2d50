//! The provider for machines without an RDMA device: TCP and Unix sockets.
//!
//! The initiator sends bytes straight from its local memory; the unit's thread for the connection checks each operation against
//! the connection's windows and receives straight into the pool. Flushes of chains that arrive together are shared (group commit).

mod connection;
mod service;
mod socket;
mod unit;
pub mod wire;

pub use connection::{SoftConnection, connect};
pub use unit::SoftUnit;
