//! What both sides need of a device: a protection domain for all connections on it, and what it can do.

use std::sync::Arc;

use parking_lot::Mutex;
use pmu_verbs::{Context, DeviceAttributes, ProtectionDomain};

use crate::error::{CompletionStatus, FabricError};

/// An RDMA device in use. One for each, for the life of the process.
#[derive(Clone)]
pub(super) struct Device {
    pub(super) context: Arc<Context>,
    pub(super) domain: Arc<ProtectionDomain>,
    pub(super) attributes: Arc<DeviceAttributes>,
}

static DEVICES: Mutex<Vec<Device>> = Mutex::new(Vec::new());

impl Device {
    pub(super) fn of(context: Arc<Context>) -> Result<Self, FabricError> {
        let mut devices = DEVICES.lock();
        if let Some(known) = devices
            .iter()
            .find(|device| Arc::ptr_eq(&device.context, &context))
        {
            return Ok(known.clone());
        }
        let attributes = Arc::new(context.attributes()?);
        let domain = ProtectionDomain::allocate(&context)?;
        let device = Self {
            context,
            domain,
            attributes,
        };
        devices.push(device.clone());
        Ok(device)
    }
}

/// What a failed work request means for its chain.
pub(super) fn chain_status(status: pmu_verbs::Status) -> CompletionStatus {
    use pmu_verbs::Status;
    match status {
        Status::Success => CompletionStatus::Success,
        Status::RemoteAccess | Status::RemoteInvalidRequest => CompletionStatus::RemoteAccess,
        Status::RemoteOperation => CompletionStatus::PersistFailed,
        _ => CompletionStatus::ConnectionLost,
    }
}
