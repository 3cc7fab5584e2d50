//! The agent's Unix socket: for its program, and for the commands of people.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use pmu_client::agent::{FromProgram, LINE_BYTES_MAX, Order};
use serde::Deserialize;

use crate::error::{AgentError, Result};
use crate::input::{Command, Input, Reply};
use crate::program::{Running, thread, vital_thread};

/// Connections at one time.
const CONNECTIONS_MAX: usize = 16;
/// How long an order may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);

/// The way to the programs that are connected, with the process ids that the kernel gives: an old one that woke up may be among them, and one
/// that has connected again.
#[derive(Debug, Clone, Default)]
pub struct Door {
    programs: Arc<Mutex<BTreeMap<Visit, (u32, UnixStream)>>>,
}

/// Which connection, in the order in which they came.
type Visit = u64;

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Said {
    Program(FromProgram),
    Person(Command),
}

impl Door {
    /// Listens at a path, which no living agent may hold. Only this user gets in.
    ///
    /// # Errors
    /// [`AgentError::Refused`] if another agent listens there; [`AgentError::System`].
    pub fn open(path: &Path, inputs: &Sender<Input>) -> Result<Self> {
        let shown = path.display();
        if UnixStream::connect(path).is_ok() {
            return Err(AgentError::Refused(format!(
                "another agent listens at {shown}"
            )));
        }
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).map_err(AgentError::system(format!("listen at {shown}")))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(AgentError::system(format!("protect {shown}")))?;
        let door = Self::default();
        let (serving, told) = (door.clone(), inputs.clone());
        vital_thread("door", inputs, move || serving.accept(&listener, &told))?;
        Ok(door)
    }

    fn accept(&self, listener: &UnixListener, inputs: &Sender<Input>) {
        let open = Arc::new(AtomicUsize::new(0));
        for (visit, stream) in (0..).zip(listener.incoming()) {
            let Ok(stream) = stream else {
                // No descriptors left, most likely: they come back.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (door, inputs, open) = (self.clone(), inputs.clone(), Arc::clone(&open));
            let left = Arc::clone(&open);
            let served = thread("visitor", move || {
                door.serve(visit, &stream, &inputs);
                open.fetch_sub(1, Ordering::AcqRel);
            });
            if served.is_err() {
                left.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn serve(&self, visit: Visit, stream: &UnixStream, inputs: &Sender<Input>) {
        let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
            return;
        };
        let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
        self.hear(stream, (visit, pid), inputs);
        self.programs.lock().remove(&visit);
    }

    fn hear(&self, stream: &UnixStream, (visit, pid): (Visit, u32), inputs: &Sender<Input>) {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = lines
                .by_ref()
                .take(LINE_BYTES_MAX as u64)
                .read_until(b'\n', &mut line);
            if !matches!(read, Ok(count) if count > 0) {
                return;
            }
            if line.last() != Some(&b'\n') {
                if line.len() >= LINE_BYTES_MAX {
                    let what = format!("a line has at most {LINE_BYTES_MAX} bytes");
                    write_line(stream, &Reply::new(false, what));
                }
                return;
            }
            match serde_json::from_slice(&line) {
                Ok(Said::Program(said)) => {
                    if matches!(said, FromProgram::Ready { .. }) {
                        self.remember(visit, pid, stream);
                    }
                    let _ = inputs.send(Input::Program { pid, said });
                }
                Ok(Said::Person(command)) => {
                    let (reply, answer) = channel();
                    let _ = inputs.send(Input::Command(command, reply));
                    let reply = answer
                        .recv()
                        .unwrap_or_else(|_| Reply::new(false, "the agent has ended"));
                    if !write_line(stream, &reply) {
                        return;
                    }
                }
                Err(error) => {
                    let reply = Reply::new(false, format!("not understood: {error}"));
                    write_line(stream, &reply);
                    return;
                }
            }
        }
    }

    fn remember(&self, visit: Visit, pid: u32, stream: &UnixStream) {
        let stream = stream.try_clone();
        let stream = stream.and_then(|stream| {
            stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
            Ok(stream)
        });
        if let Ok(stream) = stream {
            self.programs.lock().insert(visit, (pid, stream));
        }
    }

    /// Gives the program an order; false if it doesn't listen.
    #[must_use]
    pub fn order(&self, program: &Running, order: Order) -> bool {
        let programs = self.programs.lock();
        // The newest first: who has connected again listens there.
        let mut ours = programs.values().rev();
        ours.any(|(pid, stream)| program.owns(*pid) && write_line(stream, &order))
    }
}

fn write_line(mut stream: &UnixStream, what: &impl serde::Serialize) -> bool {
    let Ok(mut line) = serde_json::to_vec(what) else {
        return false;
    };
    line.push(b'\n');
    stream.write_all(&line).is_ok()
}

/// Asks a running agent, and waits for its answer.
///
/// # Errors
/// [`AgentError::System`]: no agent listens there, or it went away.
pub fn ask(path: &Path, command: Command) -> Result<Reply> {
    let action = || format!("ask the agent at {}", path.display());
    let stream = UnixStream::connect(path).map_err(AgentError::system(action()))?;
    if !write_line(&stream, &command) {
        return Err(AgentError::Refused(format!("{}: it went away", action())));
    }
    let mut line = String::new();
    BufReader::new(&stream)
        .take(1 << 20)
        .read_line(&mut line)
        .map_err(AgentError::system(action()))?;
    serde_json::from_str(&line)
        .map_err(|error| AgentError::Refused(format!("{}: {error}", action())))
}
