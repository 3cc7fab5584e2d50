//! Memory of pools, mapped and made durable; and local memory with the same accessors.
//!
//! This room never interprets what lies in a pool. It is one of the rooms where unsafe code is
//! allowed: callers see a memory that a NIC and other threads may change at any time, through
//! accessors that are safe to call from any thread.
//!
//! *Written* is what [`Mapping::write_at`] or a NIC stored; *visible* is what
//! [`Mapping::store_u64_release`] published to others; *durable* is what [`PoolMemory::persist`]
//! returned `Ok` for, on a medium for which [`Medium::is_durable`] holds.

mod copy;
mod cpu;
mod error;
mod lend;
mod local;
mod mapping;
mod open;
mod persist;
mod pool;
mod probe;
mod range;
mod socket;
mod spec;
mod write_calls;

pub use cpu::WriteBack;
pub use error::{AccessError, PmemError, Result};
pub use lend::Lender;
pub use local::{LocalMemory, LocalOptions};
pub use mapping::Mapping;
pub use open::CreateOptions;
pub use persist::{PersistMethod, Persistence};
pub use pool::PoolMemory;
pub use socket::{PIECES_MAX, ReceivePiece, SendPiece, receive_pieces, send_pieces};
pub use spec::{Medium, PoolSpec};
