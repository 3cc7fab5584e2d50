//! The limit of spread regions: the same bytes moved plainly, to or from as many processes, in parallel over Unix streams.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use clap::ValueEnum;
use nix::sys::socket::{setsockopt, sockopt};

use crate::measure::Failure;

/// Bytes of one system call at most.
const STEP_BYTES: usize = 1 << 20;
/// As the soft transport asks for; the kernel caps it.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Which way the bytes go, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Direction {
    /// To the processes.
    Out,
    /// From them.
    In,
}

/// One process at the other end.
struct Peer {
    child: Child,
    stream: UnixStream,
}

/// The processes; they end with this value.
pub(crate) struct Plain {
    peers: Vec<Peer>,
    direction: Direction,
    length: usize,
}

impl Plain {
    /// Starts `count` processes of which each moves `length` bytes a turn, from or to a buffer of its own that is there already.
    ///
    /// # Errors
    /// The processes don't start.
    pub(crate) fn start(
        direction: Direction,
        count: usize,
        length: usize,
    ) -> Result<Self, Failure> {
        let peers = (0..count).map(|_| Peer::start(direction, length));
        Ok(Self {
            peers: peers.collect::<Result<_, Failure>>()?,
            direction,
            length,
        })
    }

    /// One turn: all bytes out of `buffer`, each peer's from another part of it, until each has said that it has them; milliseconds.
    ///
    /// # Errors
    /// A process ended.
    pub(crate) fn send_ms(&mut self, buffer: &[u8]) -> Result<f64, Failure> {
        debug_assert_eq!(self.direction, Direction::Out);
        let length = self.length;
        let parts = (0..self.peers.len()).map(|index| {
            let start = (index * length) % (buffer.len() - length + 1);
            &buffer[start..start + length]
        });
        let begun = Instant::now();
        thread::scope(|scope| {
            let peers = self.peers.iter_mut().zip(parts);
            let threads = peers.map(|(peer, part)| scope.spawn(move || peer.send(part)));
            join(threads.collect())
        })?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// One turn: all bytes into `buffer`, one peer's behind the other's; milliseconds.
    ///
    /// # Errors
    /// A process ended.
    pub(crate) fn receive_ms(&mut self, buffer: &mut [u8]) -> Result<f64, Failure> {
        debug_assert_eq!(self.direction, Direction::In);
        let begun = Instant::now();
        thread::scope(|scope| {
            let peers = self.peers.iter_mut().zip(buffer.chunks_mut(self.length));
            let threads = peers.map(|(peer, part)| scope.spawn(move || peer.receive(part)));
            join(threads.collect())
        })?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

fn join(threads: Vec<thread::ScopedJoinHandle<'_, io::Result<()>>>) -> Result<(), Failure> {
    for thread in threads {
        thread.join().map_err(|_| "a stream's thread panicked")??;
    }
    Ok(())
}

impl Peer {
    fn start(direction: Direction, length: usize) -> Result<Self, Failure> {
        let (stream, far) = UnixStream::pair()?;
        for end in [&stream, &far] {
            let _ = setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
        }
        let direction = direction.to_possible_value().ok_or("no name")?;
        let child = Command::new(std::env::current_exe()?)
            .args(["stream", direction.get_name(), &length.to_string()])
            .stdin(Stdio::from(OwnedFd::from(far)))
            .spawn()?;
        Ok(Self { child, stream })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        for step in bytes.chunks(STEP_BYTES) {
            self.stream.write_all(step)?;
        }
        self.stream.read_exact(&mut [0])
    }

    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.write_all(&[1])?;
        bytes
            .chunks_mut(STEP_BYTES)
            .try_for_each(|step| self.stream.read_exact(step))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process at the other end: moves `length` bytes a turn over its standard input until that ends.
///
/// # Errors
/// The socket fails.
pub(crate) fn serve(direction: Direction, length: usize) -> Result<(), Failure> {
    let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut buffer = vec![1u8; length];
    loop {
        if direction == Direction::In {
            if stream.read(&mut [0])? == 0 {
                return Ok(());
            }
            buffer
                .chunks(STEP_BYTES)
                .try_for_each(|step| stream.write_all(step))?;
            continue;
        }
        for step in buffer.chunks_mut(STEP_BYTES) {
            match stream.read_exact(step) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            }
        }
        stream.write_all(&[1])?;
    }
}
