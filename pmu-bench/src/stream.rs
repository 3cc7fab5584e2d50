//! The limit of the soft transport: a plain stream of the same sizes over the same kind of socket.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use crate::measure::Failure;

/// Which socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// TCP over loopback.
    Tcp,
    /// A Unix socket pair.
    Unix,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

type Ends = (Box<dyn Stream>, Box<dyn Stream>);

fn pair(socket: Socket) -> Result<Ends, Failure> {
    match socket {
        Socket::Unix => {
            let (one, other) = UnixStream::pair()?;
            for end in [&one, &other] {
                // As the soft transport asks for; the kernel caps it.
                let _ = nix::sys::socket::setsockopt(
                    end,
                    nix::sys::socket::sockopt::SndBuf,
                    &(4 << 20),
                );
            }
            Ok((Box::new(one), Box::new(other)))
        }
        Socket::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let one = TcpStream::connect(listener.local_addr()?)?;
            let (other, _) = listener.accept()?;
            one.set_nodelay(true)?;
            other.set_nodelay(true)?;
            Ok((Box::new(one), Box::new(other)))
        }
    }
}

/// Streams `count` messages of `size` bytes one way, and one byte back at the end; MiB/s.
///
/// Sender and receiver use one buffer of the message's size each, as a checkpoint and its region would.
///
/// # Errors
/// Sockets fail.
pub(crate) fn bandwidth(socket: Socket, size: usize, count: usize) -> Result<f64, Failure> {
    let (mut near, mut far) = pair(socket)?;
    let receiver = thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = vec![1u8; size];
        for _ in 0..count {
            far.read_exact(&mut buffer)?;
        }
        far.write_all(&[1])
    });
    let buffer = vec![1u8; size];
    let begun = Instant::now();
    for _ in 0..count {
        near.write_all(&buffer)?;
    }
    near.read_exact(&mut [0])?;
    let seconds = begun.elapsed().as_secs_f64();
    receiver.join().map_err(|_| "the receiver panicked")??;
    Ok((size * count) as f64 / f64::from(1 << 20) / seconds)
}
