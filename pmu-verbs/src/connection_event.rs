//! What the connection manager reports.

use std::fmt;

use crate::connection_manager::CmId;
use crate::sys::rdma_cm::*;

/// Something that happened to a connection, acknowledged already.
#[derive(Debug)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To whom. For [`EventKind::ConnectRequest`] a new identifier, which is this event's own: it
    /// is refused and destroyed if it is dropped.
    pub id: CmId,
    /// For [`EventKind::ConnectRequest`], the identifier that listens.
    pub listen_id: Option<CmId>,
    /// 0, or why it failed: a negative errno, or for [`EventKind::Rejected`] the reason in the
    /// InfiniBand specification's numbers (28: by the peer's program, 8: nobody listens).
    pub status: i32,
    /// What the peer sent along.
    pub private_data: PrivateData,
    /// How many READs, FLUSHes and atomic operations the peer will serve at once.
    pub responder_resources: u8,
    /// How many of them the peer will have outstanding at once.
    pub initiator_depth: u8,
}

/// Bytes that a peer sent with a connection's set-up, copied. The transport pads them with zeros
/// to a fixed length, so put the length into the data.
#[derive(Clone)]
pub struct PrivateData {
    bytes: [u8; Self::MAX_BYTES],
    len: u8,
}

impl PrivateData {
    /// The most that arrives on any transport.
    pub const MAX_BYTES: usize = u8::MAX as usize;

    /// # Safety
    /// `parameters.private_data` is null or points to `private_data_len` readable bytes.
    pub(crate) unsafe fn copy_from(parameters: &rdma_conn_param) -> Self {
        let mut data = Self {
            bytes: [0; Self::MAX_BYTES],
            len: 0,
        };
        if !parameters.private_data.is_null() {
            data.len = parameters.private_data_len;
            // SAFETY: the caller promises that many bytes; the array has room for any u8.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    parameters.private_data.cast::<u8>(),
                    data.bytes.as_mut_ptr(),
                    usize::from(data.len),
                );
            }
        }
        data
    }

    /// The bytes, with the transport's padding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PrivateData({} bytes)", self.len)
    }
}

/// What an [`Event`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The address is bound to a device.
    AddressResolved,
    /// There is no device for the address.
    AddressError,
    /// The way to the peer is known.
    RouteResolved,
    /// There is no way to the peer.
    RouteError,
    /// A peer wants to connect.
    ConnectRequest,
    /// The peer agreed, and this side has no queue pair on the identifier.
    ConnectResponse,
    /// The connection could not be set up.
    ConnectError,
    /// The peer doesn't answer.
    Unreachable,
    /// The peer refused, or nobody listens.
    Rejected,
    /// The connection is up.
    Established,
    /// The connection is over.
    Disconnected,
    /// The device is being removed: destroy everything on it.
    DeviceRemoval,
    /// The address of the device changed.
    AddressChange,
    /// The queue pair's number may be used again.
    TimewaitExit,
    /// A number that this version doesn't know.
    Unknown(u32),
}

impl EventKind {
    pub(crate) const fn from_raw(raw: rdma_cm_event_type) -> Self {
        match raw {
            RDMA_CM_EVENT_ADDR_RESOLVED => Self::AddressResolved,
            RDMA_CM_EVENT_ADDR_ERROR => Self::AddressError,
            RDMA_CM_EVENT_ROUTE_RESOLVED => Self::RouteResolved,
            RDMA_CM_EVENT_ROUTE_ERROR => Self::RouteError,
            RDMA_CM_EVENT_CONNECT_REQUEST => Self::ConnectRequest,
            RDMA_CM_EVENT_CONNECT_RESPONSE => Self::ConnectResponse,
            RDMA_CM_EVENT_CONNECT_ERROR => Self::ConnectError,
            RDMA_CM_EVENT_UNREACHABLE => Self::Unreachable,
            RDMA_CM_EVENT_REJECTED => Self::Rejected,
            RDMA_CM_EVENT_ESTABLISHED => Self::Established,
            RDMA_CM_EVENT_DISCONNECTED => Self::Disconnected,
            RDMA_CM_EVENT_DEVICE_REMOVAL => Self::DeviceRemoval,
            RDMA_CM_EVENT_ADDR_CHANGE => Self::AddressChange,
            RDMA_CM_EVENT_TIMEWAIT_EXIT => Self::TimewaitExit,
            other => Self::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_events_stay_numbers() {
        assert_eq!(EventKind::from_raw(9), EventKind::Established);
        assert_eq!(EventKind::from_raw(77), EventKind::Unknown(77));
    }

    #[test]
    fn private_data_is_copied_with_its_length() {
        let source = *b"hello";
        let parameters = rdma_conn_param {
            private_data: source.as_ptr().cast(),
            private_data_len: 5,
            ..Default::default()
        };
        // SAFETY: the parameters point to five bytes.
        let data = unsafe { PrivateData::copy_from(&parameters) };
        assert_eq!(data.as_bytes(), b"hello");
        // SAFETY: the pointer is null.
        let none = unsafe { PrivateData::copy_from(&rdma_conn_param::default()) };
        assert!(none.as_bytes().is_empty());
    }
}
