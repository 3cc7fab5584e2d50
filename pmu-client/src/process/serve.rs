//! One restore: CRIU asks for files, and gets them from memory.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;

use super::ProcessError;
use super::criu::{Criu, Folder, Running};
use super::streamer::{Direction, Streamer, listen};

/// Bytes that a pipe holds, if the kernel lets us.
const PIPE_BYTES: usize = 1 << 20;
/// How often an idle restore is looked away from.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// The same once CRIU has all its files, and will end.
const ENDING: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
const LOG: &str = "restore.log";
const PID_FILE: &str = "pid";

/// Where the files of a restore come from.
pub(super) trait Source {
    /// The pieces of a file, in order; none if there is no such file.
    fn open(&self, name: &str) -> Option<Vec<&[u8]>>;
}

/// A file on its way to CRIU.
struct Outgoing<'a> {
    pipe: OwnedFd,
    /// What is left, the last piece first.
    pieces: Vec<&'a [u8]>,
}

impl Outgoing<'_> {
    /// Writes as much as the pipe takes. True when CRIU has it all, or wants no more.
    fn advance(&mut self) -> Result<bool, ProcessError> {
        while let Some(piece) = self.pieces.last_mut() {
            if piece.is_empty() {
                self.pieces.pop();
                continue;
            }
            match rustix::io::write(&self.pipe, piece) {
                Ok(count) => *piece = &piece[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::PIPE) => return Ok(true),
                Err(error) => return Err(ProcessError::io("serve an image")(error.into())),
            }
        }
        Ok(true)
    }
}

/// Restores the process, and returns its number. It goes on beside this program, as a child of process 1 or of the nearest reaper.
pub(super) fn restore(
    criu: &Criu,
    source: &dyn Source,
    options: &[OsString],
    interrupted: &dyn Fn() -> bool,
) -> Result<u32, ProcessError> {
    let folder = Folder::create(None)?;
    let listener = listen(&folder, Direction::Serve)?;
    let path = folder.path().as_os_str();
    let mut arguments: Vec<OsString> = [
        "restore",
        "--stream",
        "--restore-detached",
        "--log-file",
        LOG,
        "--pidfile",
        PID_FILE,
        "--images-dir",
    ]
    .map(OsString::from)
    .into();
    arguments.extend([path.to_owned(), "--work-dir".into(), path.to_owned()]);
    arguments.extend_from_slice(options);
    // What is restored keeps nothing of ours open.
    let mut command = criu.command(&arguments);
    let said = fs::File::create(folder.join("said"))
        .map_err(ProcessError::io("make a file for CRIU's words"))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said);
    let child = command.spawn().map_err(|source| criu.missing(source))?;
    let mut running = Running::new(child, "restart the process");
    let mut server = Server {
        pipes: Vec::new(),
        streamer: None,
        listener: Some(listener),
        source,
    };
    let status = loop {
        server.step()?;
        if let Some(status) = running.ended()? {
            break status;
        }
        if interrupted() {
            // It may have all that it needs: then the process runs, and that is what is told.
            drop(server);
            let status = running.wait()?;
            if !status.success() {
                return Err(ProcessError::Interrupted);
            }
            break status;
        }
    };
    if !status.success() {
        let said = fs::read_to_string(folder.join("said")).unwrap_or_default();
        return Err(running.refused(status, folder.words(LOG, &said)));
    }
    let pid = fs::read_to_string(folder.join(PID_FILE)).unwrap_or_default();
    pid.trim()
        .parse()
        .map_err(|_| ProcessError::Protocol("it doesn't say the process's number".into()))
}

/// Left early, its pipes close, and CRIU gives up.
struct Server<'a> {
    pipes: Vec<Outgoing<'a>>,
    streamer: Option<Streamer>,
    listener: Option<UnixListener>,
    source: &'a dyn Source,
}

impl Server<'_> {
    fn step(&mut self) -> Result<(), ProcessError> {
        let (socket, pipes) = self.wait()?;
        if socket {
            self.hear()?;
        }
        for (index, ready) in pipes.into_iter().enumerate().rev() {
            if ready && self.pipes[index].advance()? {
                self.pipes.remove(index);
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<(bool, Vec<bool>), ProcessError> {
        let socket = match (&self.streamer, &self.listener) {
            (Some(streamer), _) => Some(streamer.socket.as_fd()),
            (None, listener) => listener.as_ref().map(AsFd::as_fd),
        };
        let socket = socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN));
        let has_socket = socket.is_some();
        let pipes = self.pipes.iter();
        let pipes = pipes.map(|out| PollFd::new(&out.pipe, PollFlags::OUT));
        let mut polled: Vec<_> = socket.into_iter().chain(pipes).collect();
        let patience = if has_socket { &TICK } else { &ENDING };
        match poll(&mut polled, Some(patience)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(ProcessError::io("wait for CRIU")(error.into())),
        }
        let mut events = polled.iter().map(|polled| !polled.revents().is_empty());
        let socket = has_socket && events.next().unwrap_or(false);
        Ok((socket, events.collect()))
    }

    fn hear(&mut self) -> Result<(), ProcessError> {
        let Some(streamer) = &mut self.streamer else {
            if let Some(listener) = &self.listener {
                self.streamer = Streamer::accept(listener)?;
            }
            return Ok(());
        };
        let Some(name) = streamer.request()? else {
            self.streamer = None;
            self.listener = None;
            return Ok(());
        };
        let pieces = self.source.open(&name);
        tracing::debug!(file = name, found = pieces.is_some(), "CRIU asks");
        streamer.reply(pieces.is_some())?;
        let Some(mut pieces) = pieces else {
            return Ok(());
        };
        let pipe = streamer.pipe()?;
        let _ = fcntl_setpipe_size(&pipe, PIPE_BYTES);
        // Several files may be open at a time: none may hold up the others.
        fcntl_setfl(&pipe, OFlags::NONBLOCK | OFlags::WRONLY)
            .map_err(|error| ProcessError::io("serve an image")(error.into()))?;
        pieces.reverse();
        self.pipes.push(Outgoing { pipe, pieces });
        Ok(())
    }
}
