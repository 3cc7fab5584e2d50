//! What a completion says.

use std::fmt;

use crate::sys::verbs::*;

/// One completion, as the device wrote it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct WorkCompletion(ibv_wc);

impl Default for WorkCompletion {
    /// An empty one, to be polled into: `wr_id` 0, success, nothing moved.
    fn default() -> Self {
        Self(ibv_wc::default())
    }
}

impl WorkCompletion {
    /// The number that the request was posted with.
    #[inline]
    pub fn wr_id(&self) -> u64 {
        self.0.wr_id
    }

    /// How it went. Where it isn't success, only [`WorkCompletion::wr_id`],
    /// [`WorkCompletion::queue_pair_number`] and [`WorkCompletion::vendor_error`] mean anything.
    #[inline]
    pub fn status(&self) -> Status {
        Status::from_raw(self.0.status)
    }

    /// What kind of request it was.
    #[inline]
    pub fn opcode(&self) -> Opcode {
        Opcode::from_raw(self.0.opcode)
    }

    /// Bytes that were received, read or written by the peer; what it says for writes is the
    /// provider's choice.
    #[inline]
    pub fn byte_len(&self) -> u32 {
        self.0.byte_len
    }

    /// The queue pair that the request was posted on.
    #[inline]
    pub fn queue_pair_number(&self) -> u32 {
        self.0.qp_num
    }

    /// The vendor's own code of an error.
    #[inline]
    pub fn vendor_error(&self) -> u32 {
        self.0.vendor_err
    }

    /// Which other fields are valid.
    #[inline]
    pub fn flags(&self) -> WcFlags {
        WcFlags::from_bits_retain(self.0.wc_flags)
    }

    /// The number that came with a received message, in host byte order.
    #[inline]
    pub fn immediate(&self) -> Option<u32> {
        // SAFETY: both variants of the union are a u32.
        let raw = unsafe { self.0.__bindgen_anon_1.imm_data };
        self.flags()
            .contains(WcFlags::WITH_IMMEDIATE)
            .then(|| u32::from_be(raw))
    }
}

impl fmt::Debug for WorkCompletion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WorkCompletion")
            .field("wr_id", &self.wr_id())
            .field("status", &self.status())
            .field("opcode", &self.opcode())
            .field("byte_len", &self.byte_len())
            .field("queue_pair_number", &self.queue_pair_number())
            .field("vendor_error", &self.vendor_error())
            .finish_non_exhaustive()
    }
}

bitflags::bitflags! {
    /// Which fields of a [`WorkCompletion`] are valid.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct WcFlags: u32 {
        /// A global route header precedes the data (datagrams only).
        const GLOBAL_ROUTE = IBV_WC_GRH;
        /// [`WorkCompletion::immediate`] is there.
        const WITH_IMMEDIATE = IBV_WC_WITH_IMM;
        /// The peer invalidated a key of ours.
        const WITH_INVALIDATE = IBV_WC_WITH_INV;
        const _ = !0;
    }
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// It was done.
    Success,
    /// The message was longer than the receive buffer, or a length is wrong.
    LocalLength,
    /// The queue pair couldn't do it.
    LocalQueuePair,
    /// A local key doesn't allow it or is gone.
    LocalProtection,
    /// It was never done: the queue pair had broken before.
    Flushed,
    /// A window couldn't be bound.
    WindowBind,
    /// The peer's answer made no sense.
    BadResponse,
    /// The peer touched local memory that it may not (receive side).
    LocalAccess,
    /// The peer doesn't take such a request.
    RemoteInvalidRequest,
    /// The peer's key doesn't allow it, is revoked or doesn't cover the range.
    RemoteAccess,
    /// The peer couldn't do it.
    RemoteOperation,
    /// The peer didn't answer.
    RetryExceeded,
    /// The peer has no receive buffer.
    ReceiverNotReady,
    /// The peer aborted.
    RemoteAbort,
    /// The device broke.
    Fatal,
    /// An answer took too long.
    ResponseTimeout,
    /// Something else.
    General,
    /// A number that this version doesn't know, or that has no meaning for reliable connections.
    Unknown(u32),
}

impl Status {
    /// Whether the request was done.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Success)
    }

    const fn from_raw(raw: ibv_wc_status) -> Self {
        match raw {
            IBV_WC_SUCCESS => Self::Success,
            IBV_WC_LOC_LEN_ERR => Self::LocalLength,
            IBV_WC_LOC_QP_OP_ERR => Self::LocalQueuePair,
            IBV_WC_LOC_PROT_ERR => Self::LocalProtection,
            IBV_WC_WR_FLUSH_ERR => Self::Flushed,
            IBV_WC_MW_BIND_ERR => Self::WindowBind,
            IBV_WC_BAD_RESP_ERR => Self::BadResponse,
            IBV_WC_LOC_ACCESS_ERR => Self::LocalAccess,
            IBV_WC_REM_INV_REQ_ERR => Self::RemoteInvalidRequest,
            IBV_WC_REM_ACCESS_ERR => Self::RemoteAccess,
            IBV_WC_REM_OP_ERR => Self::RemoteOperation,
            IBV_WC_RETRY_EXC_ERR => Self::RetryExceeded,
            IBV_WC_RNR_RETRY_EXC_ERR => Self::ReceiverNotReady,
            IBV_WC_REM_ABORT_ERR => Self::RemoteAbort,
            IBV_WC_FATAL_ERR => Self::Fatal,
            IBV_WC_RESP_TIMEOUT_ERR => Self::ResponseTimeout,
            IBV_WC_GENERAL_ERR => Self::General,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Success => "done",
            Self::LocalLength => "local length error",
            Self::LocalQueuePair => "local queue pair error",
            Self::LocalProtection => "local protection error: the key is gone or too weak",
            Self::Flushed => "not done: the queue pair had broken before",
            Self::WindowBind => "the memory window could not be bound",
            Self::BadResponse => "bad response of the peer",
            Self::LocalAccess => "local access error",
            Self::RemoteInvalidRequest => "the peer does not take this request",
            Self::RemoteAccess => "remote access error: the key is wrong, revoked or too narrow",
            Self::RemoteOperation => "the peer could not do it",
            Self::RetryExceeded => "the peer does not answer",
            Self::ReceiverNotReady => "the peer has no receive buffer",
            Self::RemoteAbort => "the peer aborted",
            Self::Fatal => "the device broke",
            Self::ResponseTimeout => "an answer took too long",
            Self::General => "general error",
            Self::Unknown(raw) => return write!(formatter, "completion status {raw}"),
        };
        formatter.write_str(text)
    }
}

/// What kind of request a completion is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Opcode {
    /// SEND.
    Send,
    /// RDMA WRITE.
    Write,
    /// RDMA READ.
    Read,
    /// Compare and swap.
    CompareSwap,
    /// Fetch and add.
    FetchAdd,
    /// Window binding.
    BindWindow,
    /// Local invalidation.
    LocalInvalidate,
    /// FLUSH.
    Flush,
    /// ATOMIC WRITE.
    AtomicWrite,
    /// A message arrived.
    Receive,
    /// A WRITE with a number arrived.
    ReceiveWithImmediate,
    /// A number that this version doesn't know.
    Unknown(u32),
}

impl Opcode {
    const fn from_raw(raw: ibv_wc_opcode) -> Self {
        match raw {
            IBV_WC_SEND => Self::Send,
            IBV_WC_RDMA_WRITE => Self::Write,
            IBV_WC_RDMA_READ => Self::Read,
            IBV_WC_COMP_SWAP => Self::CompareSwap,
            IBV_WC_FETCH_ADD => Self::FetchAdd,
            IBV_WC_BIND_MW => Self::BindWindow,
            IBV_WC_LOCAL_INV => Self::LocalInvalidate,
            IBV_WC_FLUSH => Self::Flush,
            IBV_WC_ATOMIC_WRITE => Self::AtomicWrite,
            IBV_WC_RECV => Self::Receive,
            IBV_WC_RECV_RDMA_WITH_IMM => Self::ReceiveWithImmediate,
            other => Self::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_number_is_a_status() {
        for raw in 0..=40 {
            let status = Status::from_raw(raw);
            assert_eq!(status.is_success(), raw == 0);
            assert!(!status.to_string().is_empty());
        }
        assert_eq!(Status::from_raw(10), Status::RemoteAccess);
        assert_eq!(Status::from_raw(5), Status::Flushed);
        assert_eq!(Status::from_raw(u32::MAX), Status::Unknown(u32::MAX));
    }

    #[test]
    fn every_opcode_number_is_an_opcode() {
        assert_eq!(Opcode::from_raw(8), Opcode::Flush);
        assert_eq!(Opcode::from_raw(9), Opcode::AtomicWrite);
        assert_eq!(Opcode::from_raw(128), Opcode::Receive);
        assert_eq!(Opcode::from_raw(4711), Opcode::Unknown(4711));
    }

    #[test]
    fn a_completion_has_the_layout_of_the_c_structure() {
        assert_eq!(size_of::<WorkCompletion>(), size_of::<ibv_wc>());
        assert_eq!(WorkCompletion::default().immediate(), None);
    }
}
