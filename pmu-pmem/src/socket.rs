//! Moving bytes between sockets and memories with no copy in between.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::mapping::Mapping;

/// The most pieces that one call takes.
pub const PIECES_MAX: usize = 64;

/// What goes out: plain bytes, or a range of a memory.
#[derive(Debug, Clone, Copy)]
pub enum SendPiece<'a> {
    /// Plain bytes.
    Bytes(&'a [u8]),
    /// Memory, offset, length in bytes.
    Memory(&'a Mapping, u64, usize),
}

/// Where received bytes go: plain bytes, or a range of a memory.
#[derive(Debug)]
pub enum ReceivePiece<'a> {
    /// Plain bytes.
    Bytes(&'a mut [u8]),
    /// Memory, offset, length in bytes.
    Memory(&'a Mapping, u64, usize),
}

const NO_BYTES: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Sends the pieces, one after the other, with one `sendmsg` and no SIGPIPE. Allocates nothing.
///
/// `flags` are those of sendmsg(2); not MSG_ZEROCOPY, as the borrowed bytes are free again on
/// return. Blocks as the socket does; a call that a signal interrupted is made again. Returns how
/// many bytes went, which may be fewer than all.
///
/// # Errors
/// What the kernel says; `InvalidInput` for more than [`PIECES_MAX`] pieces, a range outside of its
/// memory, or MSG_ZEROCOPY.
pub fn send_pieces(
    socket: BorrowedFd<'_>,
    pieces: &[SendPiece<'_>],
    flags: i32,
) -> io::Result<usize> {
    if flags & libc::MSG_ZEROCOPY != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "MSG_ZEROCOPY is not possible here",
        ));
    }
    let mut vector = [NO_BYTES; PIECES_MAX];
    if pieces.len() > PIECES_MAX {
        return Err(too_many());
    }
    for (entry, piece) in vector.iter_mut().zip(pieces) {
        *entry = match *piece {
            SendPiece::Bytes(bytes) => libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            SendPiece::Memory(memory, offset, len) => memory.iovec(offset, len)?,
        };
    }
    let message = message(&mut vector, pieces.len());
    loop {
        // SAFETY: the message names `pieces.len()` entries of `vector`, each a range that its
        // borrow (for the length of this call) keeps readable. The kernel only reads them, and is
        // done on return as zero-copy is excluded.
        let count =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags | libc::MSG_NOSIGNAL) };
        if let Some(result) = outcome(count) {
            return result;
        }
    }
}

/// Receives into the pieces, one after the other, with one `recvmsg`. Allocates nothing; makes
/// nothing durable.
///
/// `flags` are those of recvmsg(2). Blocks as the socket does; a call that a signal interrupted is
/// made again. Returns how many bytes came, which may be fewer than there is room for; 0 means that
/// the other end closed (or there was no room).
///
/// # Errors
/// What the kernel says; `InvalidInput` for more than [`PIECES_MAX`] pieces or a range outside of
/// its memory.
pub fn receive_pieces(
    socket: BorrowedFd<'_>,
    pieces: &mut [ReceivePiece<'_>],
    flags: i32,
) -> io::Result<usize> {
    let mut vector = [NO_BYTES; PIECES_MAX];
    if pieces.len() > PIECES_MAX {
        return Err(too_many());
    }
    for (entry, piece) in vector.iter_mut().zip(pieces.iter_mut()) {
        *entry = match piece {
            ReceivePiece::Bytes(bytes) => libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            },
            ReceivePiece::Memory(memory, offset, len) => memory.iovec(*offset, *len)?,
        };
    }
    let mut message = message(&mut vector, pieces.len());
    loop {
        // SAFETY: the message names `pieces.len()` entries of `vector`, each a range that its
        // borrow keeps writable: exclusively borrowed bytes, or memory that tolerates concurrent
        // writing.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
        if let Some(result) = outcome(count) {
            return result;
        }
    }
}

fn message(vector: &mut [libc::iovec; PIECES_MAX], count: usize) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no name, no vector, no control bytes.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vector.as_mut_ptr();
    message.msg_iovlen = count as _;
    message
}

fn too_many() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "more pieces than one call takes",
    )
}

/// What a socket call came to; none if it is to be made again.
pub(crate) fn outcome(count: isize) -> Option<io::Result<usize>> {
    if let Ok(count) = usize::try_from(count) {
        return Some(Ok(count));
    }
    let error = io::Error::last_os_error();
    (error.kind() != io::ErrorKind::Interrupted).then_some(Err(error))
}
