//! The program's end of the connection with its agent.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pmu_format::Epoch;
use pmu_notice::Holder;

use super::epochs::Epochs;
use super::handover::names;
use super::wire::{FromProgram, LINE_BYTES_MAX, Order, SnapshotReport};

/// How often a lost agent is looked for.
const RECONNECT: Duration = Duration::from_millis(500);
/// How long a line may take to be written before the agent counts as lost.
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);
/// How often to beat where the agent says nothing of it.
const BEAT_DEFAULT: Duration = Duration::from_millis(50);

/// The connection of a program with the agent that runs it.
///
/// The agent may end and come again: then this connects again, and says what the agent must know. So no call fails, and none blocks for longer
/// than it takes to write a line (at most 0.2 s). One thread uses it at a time; it may move between threads.
///
/// While it lives, a killed program's agent knows of it before the kernel has freed the program's memory: a sleeping thread sees to that. Keep it
/// until the program ends. After a drop, and where the agent hands no notice, the death is seen when the memory is free.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    stream: Option<UnixStream>,
    tried: Instant,
    epoch: Option<Epoch>,
    received: Vec<u8>,
    beat_every: Duration,
    beaten: Option<Instant>,
    /// Nothing reads it: the agent is told when it goes.
    _notice: Option<Holder>,
}

impl Program {
    /// The agent named in the environment; none where there is none.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let path = std::env::var_os(names::SOCKET)?;
        let beat = std::env::var(names::BEAT_MS).ok();
        let beat = beat.and_then(|text| text.parse().ok());
        let beat = beat.map_or(BEAT_DEFAULT, Duration::from_millis);
        let mut program = Self::new(path.as_ref(), beat);
        program._notice = std::env::var_os(names::NOTICE).and_then(|notice| hold(notice.as_ref()));
        Some(program)
    }

    /// The agent that listens on a socket. Nothing is sent before [`Self::ready`].
    #[must_use]
    pub fn new(path: &Path, beat_every: Duration) -> Self {
        Self {
            path: path.to_owned(),
            stream: None,
            tried: Instant::now(),
            epoch: None,
            received: Vec::new(),
            beat_every,
            beaten: None,
            _notice: None,
        }
    }

    /// Says that the regions are open in an epoch, and that the work begins.
    pub fn ready(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
        self.stream = None;
        self.connect();
    }

    /// The next order, if there is one. Doesn't block.
    pub fn order(&mut self) -> Option<Order> {
        if self.stream.is_none() {
            if self.epoch.is_some() && self.tried.elapsed() >= RECONNECT {
                self.connect();
            }
            return None;
        }
        if !self.received.contains(&b'\n') {
            self.receive();
        }
        let end = self.received.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.received.drain(..=end).collect();
        // A word of a later version is not for us.
        serde_json::from_slice(&line).ok()
    }

    /// Reports a snapshot.
    pub fn done(&mut self, report: &SnapshotReport) {
        self.say(&FromProgram::Snapshot(report.clone()));
    }

    /// Says that another primary has taken over; `message` is the error's text.
    pub fn fenced(&mut self, message: &str) {
        let message = message.to_owned();
        self.say(&FromProgram::Fenced { message });
    }

    /// Whether the time has come to beat ([`crate::LogPrimary::beat`]); true at most once in the agent's interval.
    pub fn beat_is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.beaten.is_none_or(|last| now - last >= self.beat_every);
        if due {
            self.beaten = Some(now);
        }
        due
    }

    /// Readable when an order may have come: for programs that sleep. None while the agent is away.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    fn connect(&mut self) {
        self.tried = Instant::now();
        self.received.clear();
        let Some(epoch) = self.epoch else { return };
        let Ok(stream) = UnixStream::connect(&self.path) else {
            return;
        };
        if stream.set_write_timeout(Some(WRITE_TIMEOUT)).is_err() {
            return;
        }
        self.stream = Some(stream);
        self.say(&FromProgram::Ready {
            pid: std::process::id(),
            epoch: epoch.get(),
            held: Epochs::of_process().were_held_to(),
        });
    }

    fn say(&mut self, what: &FromProgram) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let Ok(mut line) = serde_json::to_vec(what) else {
            return;
        };
        line.push(b'\n');
        // The socket blocks while it is written to, and only then.
        let written = stream.set_nonblocking(false);
        if written.and_then(|()| stream.write_all(&line)).is_err() {
            self.lost();
        }
    }

    fn receive(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let mut buffer = [0; 1024];
        let read = stream.set_nonblocking(true);
        match read.and_then(|()| stream.read(&mut buffer)) {
            Ok(0) => self.lost(),
            Ok(count) if self.received.len() + count > LINE_BYTES_MAX => self.lost(),
            Ok(count) => self.received.extend_from_slice(&buffer[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.lost(),
        }
    }

    fn lost(&mut self) {
        self.stream = None;
        self.received.clear();
        tracing::warn!(socket = %self.path.display(), "the agent is away");
    }
}

/// Without it a death is told all the same, but later.
fn hold(notice: &Path) -> Option<Holder> {
    match Holder::take(notice) {
        Ok(holder) => Some(holder),
        Err(error) => {
            tracing::info!(%error, "a kill will be told late");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn next_order(program: &mut Program) -> Order {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(order) = program.order() {
                return order;
            }
            assert!(Instant::now() < deadline, "no order came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn s04_orders_come_and_an_agent_that_comes_again_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut program = Program::new(&path, Duration::from_millis(5));
        program.ready(Epoch(7));
        let (mut agent, _) = listener.accept().unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(agent.try_clone().unwrap());
        lines.read_line(&mut line).unwrap();
        let pid = std::process::id();
        let expected = FromProgram::Ready {
            pid,
            epoch: 7,
            held: false,
        };
        assert_eq!(
            serde_json::from_str::<FromProgram>(&line).unwrap(),
            expected
        );
        agent
            .write_all(b"{\"order\":\"later\"}\n{\"order\":\"snapshot\",\"id\":3}\n{\"order\":")
            .unwrap();
        // The word of a later version is passed over.
        assert_eq!(next_order(&mut program), Order::Snapshot { id: 3 });
        assert_eq!(program.order(), None);
        drop((agent, lines));
        program.tried = Instant::now();
        assert_eq!(program.order(), None);
        std::thread::sleep(RECONNECT);
        assert_eq!(program.order(), None);
        let (agent, _) = listener.accept().unwrap();
        line.clear();
        BufReader::new(agent).read_line(&mut line).unwrap();
        assert_eq!(
            serde_json::from_str::<FromProgram>(&line).unwrap(),
            expected
        );
    }

    #[test]
    fn s05_beats_are_due_once_in_an_interval() {
        let mut program = Program::new(Path::new("/nowhere"), Duration::from_secs(3600));
        assert!(program.beat_is_due());
        assert!(!program.beat_is_due());
    }
}
