//! One dump: CRIU runs, its files go into the set as they come, and the program is ended only when that is asked for and the set is durable.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::fcntl_setpipe_size;

use super::ProcessError;
use super::container::{FRAME_BYTES_MAX, FileId, Writer};
use super::criu::{Criu, DumpStats, Folder, Running};
use super::streamer::{Direction, Streamer, listen};

/// What the hook says when the images are complete. Not a line of CRIU's.
pub(super) const COMPLETE: &str = "pmu-images-are-complete";
/// Bytes that a pipe holds, if the kernel lets us.
const PIPE_BYTES: usize = 1 << 20;
/// How often an idle dump is looked away from.
pub(super) const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// Longest that CRIU's standard error is kept.
const SAID_BYTES_MAX: usize = 16 << 10;
/// The log's name in the folder.
const LOG: &str = "dump.log";

/// A file on its way.
struct Incoming {
    pipe: OwnedFd,
    file: FileId,
}

/// A CRIU that dumps, up to the point where its images are complete and the program is still stopped. Dropped, the program goes on.
pub(super) struct Dumped {
    running: Running,
    verdict: Option<ChildStdin>,
    errors: Errors,
    folder: Folder,
    /// CRIU takes its end for the end of the dump.
    streamer: Option<Streamer>,
}

impl Dumped {
    /// Starts CRIU.
    pub(super) fn start(
        criu: &Criu,
        folder: Folder,
        arguments: &[OsString],
        output: Stdio,
    ) -> Result<Self, ProcessError> {
        let mut command = criu.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| criu.missing(source))?;
        let (verdict, stream) = (child.stdin.take(), child.stderr.take());
        let said = String::new();
        let dumped = Self {
            running: Running::new(child, "checkpoint the process"),
            verdict,
            errors: Errors { stream, said },
            folder,
            streamer: None,
        };
        if let Some(stream) = &dumped.errors.stream {
            fcntl_setfl(stream, OFlags::NONBLOCK)
                .map_err(|error| ProcessError::io("listen to CRIU")(error.into()))?;
        }
        Ok(dumped)
    }

    /// Its standard error, for waiting.
    pub(super) fn errors(&self) -> Option<BorrowedFd<'_>> {
        self.errors.stream.as_ref().map(AsFd::as_fd)
    }

    /// Takes what it says; true once the images are complete.
    pub(super) fn hear(&mut self) -> bool {
        self.errors.drain()
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An error if CRIU has ended.
    pub(super) fn check(&mut self) -> Result<(), ProcessError> {
        match self.running.ended()? {
            Some(status) => Err(self.refused(status)),
            None => Ok(()),
        }
    }

    /// Waits for its end, and says why it failed if it did.
    pub(super) fn finish(&mut self) -> Result<(), ProcessError> {
        let status = self.running.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(self.refused(status))
    }

    fn refused(&mut self, status: ExitStatus) -> ProcessError {
        self.errors.drain();
        let words = self.folder.words(LOG, &self.errors.said);
        self.running.refused(status, words)
    }

    /// Lets CRIU end the program, or let it go on, as it was told at the start. Returns how long it was stopped.
    pub(super) fn release(mut self) -> Result<Option<DumpStats>, ProcessError> {
        if let Some(mut verdict) = self.verdict.take() {
            // CRIU's own end says more than a broken pipe.
            let _ = verdict.write_all(b"stored\n");
        }
        self.finish()?;
        Ok(DumpStats::read(&self.folder))
    }
}

impl Drop for Dumped {
    fn drop(&mut self) {
        // Before its end is waited for: this is what lets the program go on.
        self.verdict = None;
        self.streamer = None;
    }
}

/// CRIU's standard error, on which the hook speaks too.
struct Errors {
    stream: Option<ChildStderr>,
    said: String,
}

impl Errors {
    /// Takes what is there; true if the hook has said that the images are complete.
    fn drain(&mut self) -> bool {
        let mut bytes = [0; 4096];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut bytes) {
                Ok(0) => self.stream = None,
                Ok(count) => self
                    .said
                    .push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if self.said.len() > SAID_BYTES_MAX {
            let cut = self.said.len() - SAID_BYTES_MAX;
            let cut = self.said.ceil_char_boundary(cut);
            self.said.drain(..cut);
        }
        self.said.lines().any(|line| line == COMPLETE)
    }
}

/// CRIU's options for every dump.
pub(super) fn arguments(
    action: &str,
    pid: u32,
    folder: &Folder,
    more: &[OsString],
) -> Vec<OsString> {
    let path = folder.path().as_os_str();
    let pid = pid.to_string();
    let fixed: [&std::ffi::OsStr; 9] = [
        action.as_ref(),
        "--tree".as_ref(),
        pid.as_ref(),
        "--images-dir".as_ref(),
        path,
        "--work-dir".as_ref(),
        path,
        "--log-file".as_ref(),
        LOG.as_ref(),
    ];
    let fixed = fixed.into_iter().map(std::ffi::OsStr::to_owned);
    fixed.chain(more.iter().cloned()).collect()
}

/// Runs one streamed dump up to the point where all images are in the writer, and the program is still stopped.
pub(super) fn stream(
    criu: &Criu,
    pid: u32,
    options: &[OsString],
    writer: &mut Writer<'_>,
    interrupted: &dyn Fn() -> bool,
) -> Result<Dumped, ProcessError> {
    let folder = Folder::create(None)?;
    let listener = listen(&folder, Direction::Capture)?;
    let hook = folder.hook(COMPLETE)?;
    let mut more = vec![
        "--stream".into(),
        "--action-script".into(),
        hook.into_os_string(),
    ];
    more.extend_from_slice(options);
    let arguments = arguments("dump", pid, &folder, &more);
    let mut capture = Capture {
        listener: Some(listener),
        streamer: None,
        pipes: Vec::new(),
        buffer: vec![0; FRAME_BYTES_MAX],
        complete: false,
        dumped: Dumped::start(criu, folder, &arguments, Stdio::null())?,
    };
    while !capture.step(writer)? {
        if interrupted() {
            return Err(ProcessError::Interrupted);
        }
    }
    let mut dumped = capture.dumped;
    dumped.streamer = capture.streamer;
    Ok(dumped)
}

/// Left early, its pipes close: CRIU fails then, and lets the program go on.
struct Capture {
    pipes: Vec<Incoming>,
    streamer: Option<Streamer>,
    listener: Option<UnixListener>,
    buffer: Vec<u8>,
    /// The hook has spoken: no further request comes.
    complete: bool,
    dumped: Dumped,
}

impl Capture {
    /// Waits for something, and takes it in. True when everything is there.
    fn step(&mut self, writer: &mut Writer<'_>) -> Result<bool, ProcessError> {
        let ready = self.wait(&TICK)?;
        let (fixed, pipes) = ready.split_at(2);
        if fixed[0] {
            self.hear(writer)?;
        }
        self.drain(pipes, writer)?;
        if fixed[1] && self.dumped.hear() {
            self.complete = true;
        }
        if self.complete {
            // Requests that were made before the hook spoke are there by now.
            while self.streamer.is_some() && self.wait(&AT_ONCE)?[0] {
                self.hear(writer)?;
            }
            return Ok(self.pipes.is_empty());
        }
        self.dumped.check()?;
        Ok(false)
    }

    /// What is ready: the socket, CRIU's standard error, then each pipe.
    fn wait(&self, patience: &Timespec) -> Result<Vec<bool>, ProcessError> {
        let socket = match (&self.streamer, &self.listener) {
            (Some(streamer), _) => Some(streamer.socket.as_fd()),
            (None, listener) => listener.as_ref().map(AsFd::as_fd),
        };
        let errors = self.dumped.errors();
        let pipes = self
            .pipes
            .iter()
            .map(|incoming| Some(incoming.pipe.as_fd()));
        let all: Vec<_> = [socket, errors].into_iter().chain(pipes).collect();
        let mut polled: Vec<_> = all
            .iter()
            .flatten()
            .map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
            .collect();
        match poll(&mut polled, Some(patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ProcessError::io("wait for CRIU")(error.into())),
        }
        let mut events = polled.iter().map(|polled| !polled.revents().is_empty());
        let ready = all
            .iter()
            .map(|slot| slot.is_some() && events.next().unwrap_or(false));
        Ok(ready.collect())
    }

    /// The socket has something.
    fn hear(&mut self, writer: &mut Writer<'_>) -> Result<(), ProcessError> {
        let Some(streamer) = &mut self.streamer else {
            if let Some(listener) = &self.listener {
                self.streamer = Streamer::accept(listener)?;
            }
            return Ok(());
        };
        let Some(name) = streamer.request()? else {
            // CRIU has closed it; its end tells why.
            self.streamer = None;
            self.listener = None;
            return Ok(());
        };
        let pipe = streamer.pipe()?;
        // Only speed depends on it.
        let _ = fcntl_setpipe_size(&pipe, PIPE_BYTES);
        let file = writer.file(&name)?;
        self.pipes.push(Incoming { pipe, file });
        Ok(())
    }

    /// Takes one piece from each pipe that is ready.
    fn drain(&mut self, ready: &[bool], writer: &mut Writer<'_>) -> Result<(), ProcessError> {
        let mut ended = Vec::new();
        for (index, incoming) in self.pipes.iter().enumerate() {
            if !ready.get(index).copied().unwrap_or(false) {
                continue;
            }
            let count = loop {
                match rustix::io::read(&incoming.pipe, &mut self.buffer) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other,
                }
            };
            match count.map_err(|error| ProcessError::io("read an image")(error.into()))? {
                0 => {
                    writer.end(incoming.file)?;
                    ended.push(index);
                }
                count => writer.data(incoming.file, &self.buffer[..count])?,
            }
        }
        for index in ended.into_iter().rev() {
            self.pipes.remove(index);
        }
        Ok(())
    }
}
