//! Non-blocking stream sockets. Bytes move between them and mapped memory with no copy in between (see `pmu_pmem::Mapping`).

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, setsockopt, shutdown, sockopt};
use pmu_pmem::{Mapping, SendPiece};

use crate::error::FabricError;

/// Asked-for size of the kernel's socket buffers: a pipeline of small chains must not stall on them.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// A peer that answers nothing for this long is gone (TCP_USER_TIMEOUT).
const PEER_SILENT_MS: u32 = 20_000;
/// How long an ending connection waits for the peer to read the last answer.
const LINGER: Duration = Duration::from_millis(1000);

/// A connected, non-blocking stream socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    fn from_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let socket = Self { fd: stream.into() };
        setsockopt(&socket.fd, sockopt::KeepAlive, &true)?;
        setsockopt(&socket.fd, sockopt::TcpKeepIdle, &5)?;
        setsockopt(&socket.fd, sockopt::TcpKeepInterval, &5)?;
        setsockopt(&socket.fd, sockopt::TcpKeepCount, &3)?;
        setsockopt(&socket.fd, sockopt::TcpUserTimeout, &PEER_SILENT_MS)?;
        Ok(socket)
    }

    fn from_unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let socket = Self { fd: stream.into() };
        // The kernel caps these at its own maximum; less is only slower.
        let _ = setsockopt(&socket.fd, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
        let _ = setsockopt(&socket.fd, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
        Ok(socket)
    }

    pub(super) fn connect_tcp(address: &str, timeout: Duration) -> Result<Self, FabricError> {
        let resolve = FabricError::io("resolve the unit's data address");
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        for candidate in address.to_socket_addrs().map_err(resolve)? {
            match TcpStream::connect_timeout(&candidate, timeout) {
                Ok(stream) => {
                    return Self::from_tcp(stream).map_err(FabricError::io("set up the socket"));
                }
                Err(error) => last = error,
            }
        }
        Err(FabricError::Io {
            context: "connect to the unit's data address",
            source: last,
        })
    }

    pub(super) fn connect_unix(path: &str) -> Result<Self, FabricError> {
        let stream = UnixStream::connect(path)
            .map_err(FabricError::io("connect to the unit's data socket"))?;
        Self::from_unix(stream).map_err(FabricError::io("set up the socket"))
    }

    /// Receives what is there, up to the buffer's length; 0 is the end.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(nix::errno::Errno::EINTR) => {}
                result => return result.map_err(Into::into),
            }
        }
    }

    /// As [`Socket::receive`], straight into mapped memory.
    pub(super) fn receive_into(
        &self,
        memory: &Mapping,
        offset: u64,
        length: usize,
    ) -> io::Result<usize> {
        memory.recv_into(self.fd.as_fd(), offset, length, libc::MSG_DONTWAIT)
    }

    /// Sends what the socket takes of the pieces, in order.
    pub(super) fn send_pieces(&self, pieces: &[SendPiece<'_>]) -> io::Result<usize> {
        pmu_pmem::send_pieces(self.fd.as_fd(), pieces, libc::MSG_DONTWAIT)
    }

    /// Waits until the socket is readable or writable, as asked; false if the time ran out.
    pub(super) fn wait(
        &self,
        read: bool,
        write: bool,
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, read);
        events.set(PollFlags::POLLOUT, write);
        let timeout = match timeout {
            None => PollTimeout::NONE,
            // Rounded up: a wait must not end before its time and spin.
            Some(time) => {
                PollTimeout::try_from(time.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            }
        };
        loop {
            match poll(&mut [PollFd::new(self.fd.as_fd(), events)], timeout) {
                Ok(ready) => return Ok(ready > 0),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends all, waiting as needed.
    pub(super) fn send_all(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.send_pieces(&[SendPiece::Bytes(bytes)]) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_until(false, deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_until(&self, read: bool, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.wait(read, !read, Some(left)).map(|_| ())
    }

    /// True if the peer has closed and nothing is left to read.
    pub(super) fn peer_is_gone(&self) -> bool {
        match recv(
            self.fd.as_raw_fd(),
            &mut [0],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK,
        ) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error, nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR),
        }
    }

    /// Ends both directions; other threads waiting on the socket wake.
    pub(super) fn shut_down(&self) {
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
    }

    /// Says that nothing more will be sent, and reads away what the peer still sends for a short while:
    /// closing with unread bytes would reset the connection and could destroy the last answer on its way.
    pub(super) fn linger_for_peer(&self) {
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
        let deadline = Instant::now() + LINGER;
        let mut sink = [0u8; 16 << 10];
        loop {
            match self.receive(&mut sink) {
                Ok(0) => return,
                Ok(_) if Instant::now() < deadline => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.wait_until(true, deadline).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
}

/// Fills the buffer, waiting as needed.
pub(super) fn receive_exactly(
    socket: &Socket,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match socket.receive(&mut buffer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.wait_until(true, deadline)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(super) fn tcp(address: &str) -> Result<(Self, String), FabricError> {
        let listener =
            TcpListener::bind(address).map_err(FabricError::io("listen on the data address"))?;
        let bound = listener
            .local_addr()
            .map_err(FabricError::io("ask for the data address"))?;
        listener
            .set_nonblocking(true)
            .map_err(FabricError::io("set up the listener"))?;
        Ok((Self::Tcp(listener), bound.to_string()))
    }

    pub(super) fn unix(path: &str) -> Result<Self, FabricError> {
        // A regular file refuses connections too: it is none of ours to remove.
        let found = std::fs::symlink_metadata(path);
        if found.is_ok_and(|found| !found.file_type().is_socket()) {
            let taken = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is something at this path that is no socket",
            );
            return Err(FabricError::io("listen on the data socket")(taken));
        }
        // A socket file left by a unit that was killed: nobody answers on it.
        if let Err(error) = UnixStream::connect(path)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            std::fs::remove_file(path).map_err(FabricError::io("replace the stale data socket"))?;
        }
        let listener =
            UnixListener::bind(path).map_err(FabricError::io("listen on the data socket"))?;
        listener
            .set_nonblocking(true)
            .map_err(FabricError::io("set up the listener"))?;
        Ok(Self::Unix(listener))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }

    /// Waits for a connection; `None` after a wake-up without one.
    pub(super) fn accept(&self) -> io::Result<Option<Socket>> {
        match poll(
            &mut [PollFd::new(self.fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        ) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let accepted = match self {
            Self::Tcp(listener) => listener
                .accept()
                .and_then(|(stream, _)| Socket::from_tcp(stream)),
            Self::Unix(listener) => listener
                .accept()
                .and_then(|(stream, _)| Socket::from_unix(stream)),
        };
        match accepted {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Wakes a thread that waits in [`Listener::accept`], for good.
    pub(super) fn wake(&self) {
        let _ = shutdown(self.fd().as_raw_fd(), Shutdown::Both);
    }
}
