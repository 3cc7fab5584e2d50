//! Sending memory through a socket without copying it: its pages are lent to the kernel.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::socket::{PIECES_MAX, SendPiece, outcome};

/// Bytes that are lent at a time; the largest pipe that anybody may have.
const PIPE_BYTES: i32 = 1 << 20;

/// The pipe through which pages go to one socket. See [`Lender::send`].
#[derive(Debug)]
pub struct Lender {
    output: OwnedFd,
    input: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
}

impl Lender {
    /// Makes the pipe: two descriptors.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: the kernel writes two descriptors into the array.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both are open and nobody else's.
        let (output, input) =
            unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: it takes a number. A smaller pipe is only slower.
        unsafe { libc::fcntl(input.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        Ok(Self {
            output,
            input,
            held: 0,
        })
    }

    /// Sends ranges of memories, one after the other, over a stream socket: as many bytes as the socket takes now. Says how many.
    /// The kernel keeps no copy of them: **the other end gets what they hold when it receives them**, so they stay as they are until it is
    /// known to have them. Where not all went, the next call must begin with the first byte that didn't go. Allocates nothing; raises
    /// SIGPIPE where the program doesn't ignore it.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` for a range outside of its memory, and for plain bytes: their borrow ends with the call.
    pub fn send(&mut self, socket: BorrowedFd<'_>, pieces: &[SendPiece<'_>]) -> io::Result<usize> {
        if self.held == 0 {
            self.held = self.lend(pieces)?;
        }
        let mut sent = 0;
        while self.held > 0 {
            match self.pass_on(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.held -= count;
                    sent += count;
                }
                Err(error) if sent > 0 && error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// True while bytes of an earlier call haven't gone.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.held > 0
    }

    fn lend(&self, pieces: &[SendPiece<'_>]) -> io::Result<usize> {
        let mut vector = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; PIECES_MAX];
        let count = pieces.len().min(PIECES_MAX);
        for (entry, piece) in vector.iter_mut().zip(pieces) {
            let SendPiece::Memory(memory, offset, len) = *piece else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            *entry = memory.iovec(offset, len)?;
        }
        loop {
            // SAFETY: the first `count` entries are ranges that their borrows keep mapped during the call. The kernel takes references to
            // the pages, which live as long as it needs them; it only reads them, and memories tolerate that at any time.
            let lent = unsafe {
                libc::vmsplice(
                    self.input.as_raw_fd(),
                    vector.as_ptr(),
                    count,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            if let Some(result) = outcome(lent) {
                return result;
            }
        }
    }

    fn pass_on(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        loop {
            // SAFETY: both descriptors are open; without offsets nothing is read or written but what goes through them.
            let passed = unsafe {
                libc::splice(
                    self.output.as_raw_fd(),
                    std::ptr::null_mut(),
                    socket.as_raw_fd(),
                    std::ptr::null_mut(),
                    self.held,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            if let Some(result) = outcome(passed) {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::LocalMemory;

    fn filled(length: usize, seed: u64) -> LocalMemory {
        let bytes: Vec<u8> = (0..length as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 11) as u8)
            .collect();
        let memory = LocalMemory::allocate(length).unwrap();
        memory.write_at(0, &bytes).unwrap();
        memory
    }

    fn bytes(memory: &LocalMemory, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read_at(offset, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn p03_what_is_lent_arrives_in_order_though_the_socket_takes_it_in_parts() {
        let (to, mut from) = UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        let (first, second) = (filled(3 << 20, 1), filled(1 << 20, 2));
        let ranges = [(&first, 777, 2_500_001), (&second, 0, 1 << 20)];
        let wanted: Vec<u8> = ranges
            .iter()
            .flat_map(|(memory, offset, length)| bytes(memory, *offset, *length))
            .collect();
        let total = wanted.len();
        let reader = std::thread::spawn(move || {
            let mut found = vec![0; total];
            from.read_exact(&mut found).unwrap();
            found
        });
        let mut lender = Lender::new().unwrap();
        let mut done = 0;
        while done < total {
            let mut before = 0;
            let mut pieces = Vec::new();
            for (memory, offset, length) in ranges {
                let skipped = done.saturating_sub(before).min(length);
                before += length;
                if skipped < length {
                    let rest = offset + skipped as u64;
                    pieces.push(SendPiece::Memory(memory, rest, length - skipped));
                }
            }
            match lender.send(to.as_fd(), &pieces) {
                Ok(sent) => done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(!lender.is_busy());
        assert!(reader.join().unwrap() == wanted);
    }

    #[test]
    fn p15_ranges_outside_and_plain_bytes_are_refused_and_nothing_goes() {
        let (to, mut from) = UnixStream::pair().unwrap();
        let memory = filled(4096, 3);
        let mut lender = Lender::new().unwrap();
        for piece in [
            SendPiece::Memory(&memory, 1, 4096),
            SendPiece::Bytes(b"mine"),
        ] {
            let error = lender.send(to.as_fd(), &[piece]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        drop(to);
        let mut found = Vec::new();
        from.read_to_end(&mut found).unwrap();
        assert!(found.is_empty());
    }

    #[test]
    fn p08_a_peer_that_is_gone_is_an_error() {
        let (to, from) = UnixStream::pair().unwrap();
        drop(from);
        let memory = filled(64 << 10, 4);
        let mut lender = Lender::new().unwrap();
        let piece = SendPiece::Memory(&memory, 0, 64 << 10);
        let error = lender.send(to.as_fd(), &[piece]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
