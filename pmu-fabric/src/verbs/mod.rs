//! The provider for RDMA devices: any that libibverbs knows, soft-RoCE included.
//!
//! The initiator posts WRITE, READ, FLUSH and ATOMIC WRITE; the unit's NIC executes them. The unit's processor binds and invalidates
//! windows, and takes part in the data path only with [`PersistenceMethod::ServerPersist`].
//!
//! How a chain's flushes and atomic writes are posted depends on the connection's method:
//!
//! | method | `Flush` | `AtomicWrite` |
//! |---|---|---|
//! | native-flush | FLUSH, persistent, with the flush key | ATOMIC WRITE |
//! | read-after-write | READ of the range's last byte | 8-byte WRITE (or ATOMIC WRITE) that waits for the READ (fence) |
//! | server-persist | part of one SEND; the unit writes back and answers | part of the same SEND |
//! | volatile | nothing | ATOMIC WRITE, or an 8-byte WRITE |

mod connection;
mod device;
mod memory;
mod message;
mod persist_service;
mod request;
mod unit;

use std::sync::{Arc, OnceLock};

use pmu_verbs::Verbs;

use crate::error::FabricError;
#[cfg(doc)]
use crate::persistence::PersistenceMethod;
use crate::persistence::Provider;

pub use connection::{VerbsConnection, connect};
pub use unit::{VerbsUnit, VerbsUnitOptions};

/// Bytes of one WRITE or READ work request; longer ones are split. (rxe takes 8 MiB.)
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// Work requests that may be posted and not completed on one connection.
const SEND_REQUESTS_MAX: u32 = 1024;
/// Chains in flight on one connection.
const CHAINS_IN_FLIGHT_MAX: usize = 128;
/// Work requests of one chain.
const REQUESTS_PER_CHAIN_MAX: usize = 256;
/// Completions taken from the queue at once.
const COMPLETIONS_AT_ONCE: usize = 32;

/// libibverbs and librdmacm, opened on first use.
pub(crate) fn library() -> Result<Arc<Verbs>, FabricError> {
    static LOADED: OnceLock<Result<Arc<Verbs>, String>> = OnceLock::new();
    LOADED
        .get_or_init(|| Verbs::load().map_err(|error| error.to_string()))
        .clone()
        .map_err(|reason| FabricError::Unavailable {
            provider: Provider::Verbs,
            reason,
        })
}

/// Says whether this machine can use verbs at all.
///
/// # Errors
/// [`FabricError::Unavailable`]: the libraries are not installed, or there is no RDMA device.
pub fn check_available() -> Result<(), FabricError> {
    let verbs = library()?;
    if pmu_verbs::Device::list(&verbs)?.is_empty() {
        let reason = "this machine has no RDMA device".into();
        return Err(FabricError::Unavailable {
            provider: Provider::Verbs,
            reason,
        });
    }
    Ok(())
}
