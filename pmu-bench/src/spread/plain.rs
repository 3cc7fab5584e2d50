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
use crate::process::child_cpu_s;
use crate::spread::used::Used;

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
    used: Used,
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
            used: Used::default(),
        })
    }

    /// One turn: all bytes out of `buffer`, each peer's from another part of it, until each has said that it has them; milliseconds.
    ///
    /// # Errors
    /// A process ended.
    pub(crate) fn send_ms(&mut self, buffer: &[u8]) -> Result<f64, Failure> {
        debug_assert_eq!(self.direction, Direction::Out);
        let length = self.length;
        let part = |index: usize| {
            let start = (index * length) % (buffer.len() - length + 1);
            &buffer[start..start + length]
        };
        let parts: Vec<_> = (0..self.peers.len()).map(part).collect();
        self.turn_ms(buffer.len(), parts, Peer::send)
    }

    /// One turn: all bytes into `buffer`, one peer's behind the other's; milliseconds.
    ///
    /// # Errors
    /// A process ended.
    pub(crate) fn receive_ms(&mut self, buffer: &mut [u8]) -> Result<f64, Failure> {
        debug_assert_eq!(self.direction, Direction::In);
        let bytes = buffer.len();
        let parts = buffer.chunks_mut(self.length).collect();
        self.turn_ms(bytes, parts, Peer::receive)
    }

    /// Gives each peer its part, in a thread of its own; milliseconds until all are through.
    fn turn_ms<P: Send>(
        &mut self,
        bytes: usize,
        parts: Vec<P>,
        work: fn(&Peer, P) -> io::Result<()>,
    ) -> Result<f64, Failure> {
        let Self { peers, used, .. } = self;
        let cpu_s = || peers.iter().map(|peer| child_cpu_s(&peer.child)).sum();
        used.during(bytes, cpu_s, || {
            let begun = Instant::now();
            thread::scope(|scope| {
                let peers = peers.iter().zip(parts);
                let threads: Vec<_> = peers
                    .map(|(peer, part)| scope.spawn(move || work(peer, part)))
                    .collect();
                threads.into_iter().try_for_each(|thread| {
                    thread
                        .join()
                        .map_err(|_| "a stream's thread panicked")?
                        .map_err(Failure::from)
                })
            })?;
            Ok(begun.elapsed().as_secs_f64() * 1e3)
        })
    }

    /// Processor time since the last note.
    pub(crate) fn note(&mut self) -> String {
        self.used.take("plainly", "others")
    }
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
        let mut peer = Self { child, stream };
        // Its buffer is there.
        peer.stream.read_exact(&mut [0])?;
        Ok(peer)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = &self.stream;
        for step in bytes.chunks(STEP_BYTES) {
            stream.write_all(step)?;
        }
        stream.read_exact(&mut [0])
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut stream = &self.stream;
        stream.write_all(&[1])?;
        let mut steps = bytes.chunks_mut(STEP_BYTES);
        steps.try_for_each(|step| stream.read_exact(step))
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
    stream.write_all(&[1])?;
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
