//! What CRIU speaks with `--stream`: requests over a Unix socket in the images' folder, each followed by a pipe that carries one file.
//!
//! The messages are those of CRIU's `images/img-streamer.proto`, each behind its length in four bytes.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use prost::Message;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::ProcessError;
use super::criu::Folder;

/// Longest message: a file's name.
const MESSAGE_BYTES_MAX: u32 = 4096;
/// Longest path that fits into a socket's address, its end included.
const SOCKET_PATH_BYTES_MAX: usize = 107;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, required, tag = "1")]
    filename: String,
}

#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(bool, required, tag = "1")]
    exists: bool,
}

/// Which way the files go. CRIU looks for another socket for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Capture,
    Serve,
}

/// Listens in the folder, for one connection.
pub(super) fn listen(folder: &Folder, direction: Direction) -> Result<UnixListener, ProcessError> {
    let path = folder.join(match direction {
        Direction::Capture => "streamer-capture.sock",
        Direction::Serve => "streamer-serve.sock",
    });
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let error = io::Error::other("the path for temporary files is too long: set TMPDIR");
        return Err(ProcessError::io("make CRIU's socket")(error));
    }
    let listener = UnixListener::bind(path).map_err(ProcessError::io("make CRIU's socket"))?;
    listener
        .set_nonblocking(true)
        .map_err(ProcessError::io("make CRIU's socket"))?;
    Ok(listener)
}

/// The connection with CRIU. Reading blocks for the rest of a message that has begun.
pub(super) struct Streamer {
    pub(super) socket: UnixStream,
}

impl Streamer {
    /// Takes the connection; none if nobody has connected yet.
    pub(super) fn accept(listener: &UnixListener) -> Result<Option<Self>, ProcessError> {
        match listener.accept() {
            Ok((socket, _)) => {
                socket
                    .set_nonblocking(false)
                    .map_err(ProcessError::io("take CRIU's connection"))?;
                Ok(Some(Self { socket }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(ProcessError::io("take CRIU's connection")(error)),
        }
    }

    /// The name of the next file; none at the end.
    pub(super) fn request(&mut self) -> Result<Option<String>, ProcessError> {
        let mut length = [0; 4];
        match self.socket.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(ProcessError::io("hear CRIU")(error)),
        }
        let length = u32::from_le_bytes(length);
        if length > MESSAGE_BYTES_MAX {
            return Err(ProcessError::Protocol(format!(
                "a request of {length} bytes"
            )));
        }
        let mut message = vec![0; length as usize];
        self.socket
            .read_exact(&mut message)
            .map_err(ProcessError::io("hear CRIU"))?;
        let request = Request::decode(&*message)
            .map_err(|error| ProcessError::Protocol(format!("a request: {error}")))?;
        Ok(Some(request.filename))
    }

    /// Says whether the file that was asked for exists. Only when files are served.
    pub(super) fn reply(&mut self, exists: bool) -> Result<(), ProcessError> {
        let message = Reply { exists }.encode_to_vec();
        let mut bytes = (message.len() as u32).to_le_bytes().to_vec();
        bytes.extend(message);
        self.socket
            .write_all(&bytes)
            .map_err(ProcessError::io("answer CRIU"))
    }

    /// The pipe that follows a request.
    pub(super) fn pipe(&mut self) -> Result<OwnedFd, ProcessError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(|error| ProcessError::io("take a pipe of CRIU")(error.into()))?;
        let mut pipes = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let pipe = pipes.next();
        pipe.ok_or_else(|| ProcessError::Protocol("a request without a pipe".into()))
    }
}
