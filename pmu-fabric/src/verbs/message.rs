//! What travels beside the one-sided operations: the private data of a connection request, and the messages of server-persist.

use crate::error::CompletionStatus;
use crate::persistence::PersistenceMethod;
use crate::soft::wire::{OP_BYTES, OpKind, WireError, WireOp};
use crate::unit::ConnectToken;

const HELLO_MAGIC: u64 = u64::from_le_bytes(*b"PMUVERB1");
const VERSION: u32 = 1;
/// Fits into the 56 bytes that a connection request may carry.
pub(super) const HELLO_BYTES: usize = 48;
/// Flushes and atomic writes in one message.
pub(super) const MESSAGE_OPS_MAX: usize = 64;
pub(super) const MESSAGE_HEAD_BYTES: usize = 16;
pub(super) const MESSAGE_BYTES_MAX: usize = MESSAGE_HEAD_BYTES + MESSAGE_OPS_MAX * OP_BYTES;
pub(super) const REPLY_BYTES: usize = 16;

/// Private data of a connection request.
pub(super) fn encode_hello(token: ConnectToken, method: PersistenceMethod) -> [u8; HELLO_BYTES] {
    let mut out = [0; HELLO_BYTES];
    out[..8].copy_from_slice(&HELLO_MAGIC.to_le_bytes());
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12] = method as u8;
    out[16..].copy_from_slice(&token.0);
    out
}

/// The token of a connection request; the transport may have padded it.
pub(super) fn decode_hello(bytes: &[u8]) -> Result<ConnectToken, WireError> {
    let hello = bytes
        .first_chunk::<HELLO_BYTES>()
        .ok_or(WireError::Bounds)?;
    if hello[..8] != HELLO_MAGIC.to_le_bytes() {
        return Err(WireError::Magic);
    }
    match u32::from_le_bytes([hello[8], hello[9], hello[10], hello[11]]) {
        VERSION => {}
        other => return Err(WireError::Version(other)),
    }
    let mut token = [0; 32];
    token.copy_from_slice(&hello[16..]);
    Ok(ConnectToken(token))
}

/// Head of a server-persist message: serial and number of operations.
pub(super) fn encode_head(serial: u64, ops: usize) -> [u8; MESSAGE_HEAD_BYTES] {
    let mut out = [0; MESSAGE_HEAD_BYTES];
    out[..8].copy_from_slice(&serial.to_le_bytes());
    out[8..].copy_from_slice(&(ops as u64).to_le_bytes());
    out
}

/// Decodes a server-persist message into `ops`; gives the serial.
pub(super) fn decode_message(bytes: &[u8], ops: &mut Vec<WireOp>) -> Result<u64, WireError> {
    ops.clear();
    let (head, rest) = bytes
        .split_first_chunk::<MESSAGE_HEAD_BYTES>()
        .ok_or(WireError::Bounds)?;
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        c0,
        c1,
        c2,
        c3,
        c4,
        c5,
        c6,
        c7,
    ] = *head;
    let serial = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
    let (chunks, tail) = rest.as_chunks::<OP_BYTES>();
    if !tail.is_empty() || chunks.len() as u64 != count || chunks.len() > MESSAGE_OPS_MAX {
        return Err(WireError::Bounds);
    }
    for chunk in chunks {
        let op = WireOp::decode(chunk)?;
        if !matches!(op.kind, OpKind::Flush | OpKind::AtomicWrite) {
            return Err(WireError::Order);
        }
        ops.push(op);
    }
    Ok(serial)
}

pub(super) fn encode_reply(serial: u64, status: CompletionStatus) -> [u8; REPLY_BYTES] {
    let code: u64 = match status {
        CompletionStatus::Success => 0,
        CompletionStatus::RemoteAccess => 1,
        CompletionStatus::PersistFailed => 2,
        CompletionStatus::Flushed => 3,
        CompletionStatus::ConnectionLost => 4,
    };
    let mut out = [0; REPLY_BYTES];
    out[..8].copy_from_slice(&serial.to_le_bytes());
    out[8..].copy_from_slice(&code.to_le_bytes());
    out
}

pub(super) fn decode_reply(
    bytes: &[u8; REPLY_BYTES],
) -> Result<(u64, CompletionStatus), WireError> {
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        c0,
        c1,
        c2,
        c3,
        c4,
        c5,
        c6,
        c7,
    ] = *bytes;
    let status = match u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]) {
        0 => CompletionStatus::Success,
        1 => CompletionStatus::RemoteAccess,
        2 => CompletionStatus::PersistFailed,
        3 => CompletionStatus::Flushed,
        4 => CompletionStatus::ConnectionLost,
        other => return Err(WireError::Code(other as u32)),
    };
    Ok((u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn p16_the_token_fits_and_reads_back_behind_padding() {
        let hello = encode_hello(ConnectToken([9; 32]), PersistenceMethod::Volatile);
        let mut padded = [0; 56];
        padded[..HELLO_BYTES].copy_from_slice(&hello);
        assert_eq!(decode_hello(&padded), Ok(ConnectToken([9; 32])));
        padded[8] = 2;
        assert_eq!(decode_hello(&padded), Err(WireError::Version(2)));
        assert!(decode_hello(&hello[1..]).is_err());
    }

    proptest! {
        #[test]
        fn p17_no_message_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_hello(&bytes);
            let _ = decode_message(&bytes, &mut Vec::new());
            if let Some(reply) = bytes.first_chunk() {
                let _ = decode_reply(reply).map(|(serial, status)| assert_eq!(&encode_reply(serial, status), reply));
            }
        }
    }
}
