//! What goes over the socket: fixed little-endian structures, bytes in, values out.
//!
//! ```text
//! initiator → unit   hello    48 bytes  magic, version, connect token
//! unit → initiator   welcome  32 bytes  magic, version, status, limits
//! initiator → unit   request  24 bytes + 32 × operations + payload of the writes in their order
//! unit → initiator   answer   24 bytes + payload of the reads in their order
//! ```

use crate::error::CompletionStatus;
use crate::unit::ConnectToken;

/// Version of this protocol; both sides must have the same.
pub const VERSION: u32 = 1;
/// Operations in one request.
pub const OPS_MAX: usize = 128;
/// Requests in flight on one connection.
pub const CHAINS_IN_FLIGHT_MAX: usize = 1024;
/// Payload of one request, or of one answer.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 30;

pub(crate) const HELLO_BYTES: usize = 48;
pub(crate) const WELCOME_BYTES: usize = 32;
/// What a request, and an answer, begins with.
pub const HEADER_BYTES: usize = 24;
/// Each operation of a request.
pub const OP_BYTES: usize = 32;

const MAGIC: u64 = u64::from_le_bytes(*b"PMUSOFT1");
const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"PMRQ");
const ANSWER_MAGIC: u32 = u32::from_le_bytes(*b"PMAN");

/// Why bytes from the peer are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not this protocol at all.
    #[error("wrong magic number: the peer does not speak the soft fabric protocol")]
    Magic,
    /// Another version.
    #[error("the peer speaks version {0} of the soft fabric protocol, this side version {VERSION}")]
    Version(u32),
    /// A count beyond its bound.
    #[error("a count or length is out of bounds")]
    Bounds,
    /// An unknown kind of operation or status.
    #[error("unknown code {0}")]
    Code(u32),
    /// Operations in an order that the grammar of chains doesn't allow.
    #[error("operations stand in a forbidden order")]
    Order,
}

/// First bytes from the initiator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The proof of authentication.
    pub token: ConnectToken,
}

/// The unit's answer to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// True if the token was good.
    pub accepted: bool,
    /// See [`CHAINS_IN_FLIGHT_MAX`].
    pub chains_in_flight_max: u32,
    /// See [`OPS_MAX`].
    pub ops_max: u32,
}

/// Head of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Number of operations, 1 to [`OPS_MAX`].
    pub ops: u16,
    /// Counts up by one from request to request.
    pub serial: u64,
    /// Bytes that the writes carry.
    pub payload: u64,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OpKind {
    /// Bytes follow in the payload.
    Write = 1,
    /// Bytes come back in the answer.
    Read = 2,
    /// Make durable.
    Flush = 3,
    /// Store `value`.
    AtomicWrite = 4,
}

/// One operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireOp {
    /// What to do.
    pub kind: OpKind,
    /// Access key, or flush key for flushes.
    pub key: u32,
    /// Virtual address.
    pub address: u64,
    /// Number of bytes (8 for an atomic write).
    pub length: u64,
    /// Value of an atomic write.
    pub value: u64,
}

/// Head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// How the chain ended.
    pub status: CompletionStatus,
    /// Serial of the request.
    pub serial: u64,
    /// Bytes that the reads bring.
    pub payload: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    (u64::from(u32_at(bytes, at + 4)) << 32) | u64::from(u32_at(bytes, at))
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..].copy_from_slice(&self.token.0);
        out
    }

    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        check_opening(bytes)?;
        let mut token = [0; 32];
        token.copy_from_slice(&bytes[16..]);
        Ok(Self {
            token: ConnectToken(token),
        })
    }
}

fn check_opening(bytes: &[u8]) -> Result<(), WireError> {
    if u64_at(bytes, 0) != MAGIC {
        return Err(WireError::Magic);
    }
    match u32_at(bytes, 8) {
        VERSION => Ok(()),
        other => Err(WireError::Version(other)),
    }
}

impl Welcome {
    pub(crate) fn encode(&self) -> [u8; WELCOME_BYTES] {
        let mut out = [0; WELCOME_BYTES];
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&u32::from(!self.accepted).to_le_bytes());
        out[16..20].copy_from_slice(&self.chains_in_flight_max.to_le_bytes());
        out[20..24].copy_from_slice(&self.ops_max.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, WireError> {
        check_opening(bytes)?;
        let accepted = match u32_at(bytes, 12) {
            0 => true,
            1 => false,
            other => return Err(WireError::Code(other)),
        };
        let (chains, ops) = (u32_at(bytes, 16), u32_at(bytes, 20));
        if accepted && (chains == 0 || ops == 0) {
            return Err(WireError::Bounds);
        }
        Ok(Self {
            accepted,
            chains_in_flight_max: chains,
            ops_max: ops,
        })
    }
}

impl Request {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&self.ops.to_le_bytes());
        out[8..16].copy_from_slice(&self.serial.to_le_bytes());
        out[16..].copy_from_slice(&self.payload.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        if u32_at(bytes, 0) != REQUEST_MAGIC {
            return Err(WireError::Magic);
        }
        let request = Self {
            ops: u16_at(bytes, 4),
            serial: u64_at(bytes, 8),
            payload: u64_at(bytes, 16),
        };
        let ops_fit = (1..=OPS_MAX).contains(&usize::from(request.ops));
        if ops_fit && request.payload <= PAYLOAD_BYTES_MAX {
            Ok(request)
        } else {
            Err(WireError::Bounds)
        }
    }
}

impl WireOp {
    pub(crate) fn encode(&self) -> [u8; OP_BYTES] {
        let mut out = [0; OP_BYTES];
        out[0] = self.kind as u8;
        out[4..8].copy_from_slice(&self.key.to_le_bytes());
        out[8..16].copy_from_slice(&self.address.to_le_bytes());
        out[16..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..].copy_from_slice(&self.value.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; OP_BYTES]) -> Result<Self, WireError> {
        let kind = match bytes[0] {
            1 => OpKind::Write,
            2 => OpKind::Read,
            3 => OpKind::Flush,
            4 => OpKind::AtomicWrite,
            other => return Err(WireError::Code(u32::from(other))),
        };
        let op = Self {
            kind,
            key: u32_at(bytes, 4),
            address: u64_at(bytes, 8),
            length: u64_at(bytes, 16),
            value: u64_at(bytes, 24),
        };
        let fits = op.length > 0 && op.address.checked_add(op.length).is_some();
        let atomic_fits =
            kind != OpKind::AtomicWrite || (op.length == 8 && op.address.is_multiple_of(8));
        if fits && atomic_fits {
            Ok(op)
        } else {
            Err(WireError::Bounds)
        }
    }
}

/// Decodes a request's operations into `ops` (cleared first) and checks the grammar and the sum of the payload.
///
/// # Errors
/// Whatever doesn't hold; `bytes` may be anything.
pub fn decode_ops(request: &Request, bytes: &[u8], ops: &mut Vec<WireOp>) -> Result<(), WireError> {
    ops.clear();
    let (mut written, mut read) = (0u64, 0u64);
    let (chunks, rest) = bytes.as_chunks::<OP_BYTES>();
    if !rest.is_empty() || chunks.len() != usize::from(request.ops) {
        return Err(WireError::Bounds);
    }
    for chunk in chunks {
        let op = WireOp::decode(chunk)?;
        let before = ops.last().map(|op: &WireOp| op.kind);
        let allowed = match op.kind {
            OpKind::Read => matches!(before, None | Some(OpKind::Read)),
            OpKind::Write => matches!(before, None | Some(OpKind::Write)),
            OpKind::Flush | OpKind::AtomicWrite => before != Some(OpKind::Read),
        };
        if !allowed {
            return Err(WireError::Order);
        }
        match op.kind {
            OpKind::Write => written = written.checked_add(op.length).ok_or(WireError::Bounds)?,
            OpKind::Read => read = read.checked_add(op.length).ok_or(WireError::Bounds)?,
            OpKind::Flush | OpKind::AtomicWrite => {}
        }
        ops.push(op);
    }
    if written == request.payload && read <= PAYLOAD_BYTES_MAX {
        Ok(())
    } else {
        Err(WireError::Bounds)
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let status: u16 = match self.status {
            CompletionStatus::Success => 0,
            CompletionStatus::RemoteAccess => 1,
            CompletionStatus::PersistFailed => 2,
            CompletionStatus::Flushed => 3,
            CompletionStatus::ConnectionLost => 4,
        };
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&ANSWER_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&status.to_le_bytes());
        out[8..16].copy_from_slice(&self.serial.to_le_bytes());
        out[16..].copy_from_slice(&self.payload.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        if u32_at(bytes, 0) != ANSWER_MAGIC {
            return Err(WireError::Magic);
        }
        let status = match u16_at(bytes, 4) {
            0 => CompletionStatus::Success,
            1 => CompletionStatus::RemoteAccess,
            2 => CompletionStatus::PersistFailed,
            3 => CompletionStatus::Flushed,
            4 => CompletionStatus::ConnectionLost,
            other => return Err(WireError::Code(u32::from(other))),
        };
        let answer = Self {
            status,
            serial: u64_at(bytes, 8),
            payload: u64_at(bytes, 16),
        };
        if answer.payload <= PAYLOAD_BYTES_MAX {
            Ok(answer)
        } else {
            Err(WireError::Bounds)
        }
    }
}

/// Decodes arbitrary bytes as everything that a peer may send; for fuzzing. Must never panic.
#[doc(hidden)]
pub fn fuzz_decode(data: &[u8]) {
    let mut ops = Vec::new();
    if let Some((bytes, _)) = data.split_first_chunk::<HELLO_BYTES>() {
        let _ =
            Hello::decode(bytes).map(|hello| assert_eq!(Hello::decode(&hello.encode()), Ok(hello)));
    }
    if let Some((bytes, _)) = data.split_first_chunk::<WELCOME_BYTES>() {
        let _ = Welcome::decode(bytes);
    }
    if let Some((bytes, rest)) = data.split_first_chunk::<HEADER_BYTES>() {
        let _ = Answer::decode(bytes)
            .map(|answer| assert_eq!(Answer::decode(&answer.encode()), Ok(answer)));
        if let Ok(request) = Request::decode(bytes) {
            let _ = decode_ops(&request, rest, &mut ops);
            let wanted = usize::from(request.ops) * OP_BYTES;
            let _ = decode_ops(&request, &rest[..rest.len().min(wanted)], &mut ops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn op(kind: OpKind, length: u64) -> WireOp {
        WireOp {
            kind,
            key: 7,
            address: 4096,
            length,
            value: 0,
        }
    }

    fn decode(ops: &[WireOp], payload: u64) -> Result<(), WireError> {
        let bytes: Vec<u8> = ops.iter().flat_map(WireOp::encode).collect();
        let request = Request {
            ops: ops.len() as u16,
            serial: 1,
            payload,
        };
        assert_eq!(Request::decode(&request.encode()), Ok(request));
        decode_ops(&request, &bytes, &mut Vec::new())
    }

    #[test]
    fn p01_requests_keep_the_grammar_of_chains() {
        use OpKind::{AtomicWrite, Flush, Read, Write};
        assert_eq!(
            decode(
                &[op(Write, 5), op(Flush, 5), op(AtomicWrite, 8), op(Flush, 8)],
                5
            ),
            Ok(())
        );
        assert_eq!(decode(&[op(Read, 5), op(Read, 6)], 0), Ok(()));
        assert_eq!(
            decode(&[op(Flush, 5), op(Write, 5)], 5),
            Err(WireError::Order)
        );
        assert_eq!(
            decode(&[op(Read, 5), op(Write, 5)], 5),
            Err(WireError::Order)
        );
        assert_eq!(
            decode(&[op(Read, 5), op(Flush, 5)], 0),
            Err(WireError::Order)
        );
        assert_eq!(decode(&[op(Write, 5)], 4), Err(WireError::Bounds));
        assert_eq!(decode(&[op(Write, 0)], 0), Err(WireError::Bounds));
        assert_eq!(decode(&[op(AtomicWrite, 4)], 0), Err(WireError::Bounds));
    }

    #[test]
    fn p08_another_version_is_refused_by_number() {
        let mut bytes = Hello {
            token: ConnectToken([3; 32]),
        }
        .encode();
        bytes[8] = 9;
        assert_eq!(Hello::decode(&bytes), Err(WireError::Version(9)));
        bytes[0] = 0;
        assert_eq!(Hello::decode(&bytes), Err(WireError::Magic));
    }

    proptest! {
        #[test]
        fn p17_no_bytes_from_the_network_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..512)) {
            fuzz_decode(&data);
        }

        #[test]
        fn p01_operations_read_back(key: u32, address in 0u64..1 << 60, length in 1u64..1 << 40) {
            let op = WireOp { kind: OpKind::Write, key, address, length, value: 3 };
            prop_assert_eq!(WireOp::decode(&op.encode()), Ok(op));
        }
    }
}
