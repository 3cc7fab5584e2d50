//! The link between two agents: TLS 1.3 with both principals' certificates, and one JSON object a line.
//!
//! Each agent listens, and each connects to the other: whoever connects is told at once of every change, and in each interval that there is none.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pmu_auth::{Identity, PeerTls, peer_tls};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ConnectionCommon, ServerConnection, StreamOwned};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::decide::{Event, Standing};
use crate::error::{AgentError, Result};
use crate::input::Input;
use crate::program::{thread, vital_thread};
use crate::status::Shared;

/// The protocol's name in TLS.
const PROTOCOL: &[u8] = b"pmu-agent/1";
/// The longest line.
const LINE_BYTES_MAX: u64 = 4096;
/// Connections at one time: a peer has one, and another for a request.
const CONNECTIONS_MAX: usize = 8;
/// The longest wait for a connection; then for all of TLS, and then for the first line.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    /// Tell me how you stand, now and from now on.
    Watch,
    /// Stop your program: I am to lead.
    Yield,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    standing: Standing,
    epoch: u64,
}

/// What this agent tells.
#[derive(Debug)]
pub struct Board {
    told: Mutex<Told>,
    changed: Condvar,
}

impl Board {
    /// With what is told first.
    #[must_use]
    pub const fn new(standing: Standing) -> Self {
        Self {
            told: Mutex::new(Told { standing, epoch: 0 }),
            changed: Condvar::new(),
        }
    }

    /// Tells something, at once if it is new.
    pub fn tell(&self, standing: Standing, epoch: u64) {
        let now = Told { standing, epoch };
        let mut told = self.told.lock();
        if *told != now {
            *told = now;
            self.changed.notify_all();
        }
    }

    fn next(&self, known: Option<Told>, interval: Duration) -> Told {
        let mut told = self.told.lock();
        if known == Some(*told) {
            self.changed.wait_for(&mut told, interval);
        }
        *told
    }
}

/// The link with the one peer.
#[derive(Clone)]
pub struct Link {
    tls: PeerTls,
    peer: String,
    interval: Duration,
    silence: Duration,
}

impl Link {
    /// Listens, and connects to the peer. None where the configuration names no peer.
    ///
    /// # Errors
    /// [`AgentError::Auth`], [`AgentError::System`]: the address can't be listened at.
    pub fn open(
        config: &Config,
        board: &Arc<Board>,
        inputs: &Sender<Input>,
        status: &Arc<Mutex<Shared>>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Option<Self>> {
        let (Some(peer), Some(listen)) = (&config.peer, config.listen) else {
            return Ok(None);
        };
        let identity = Identity::load(&config.identity)?;
        let name = peer.name.parse();
        let name = name.map_err(|error| AgentError::Refused(format!("peer.name: {error}")))?;
        let interval = Duration::from_millis(config.watch.interval_ms);
        let link = Self {
            tls: peer_tls(&identity, &[name], PROTOCOL)?,
            peer: peer.address.clone(),
            interval,
            silence: interval * config.watch.intervals,
        };
        let listener =
            TcpListener::bind(listen).map_err(AgentError::system(format!("listen at {listen}")))?;
        let (serving, told, sending) = (link.clone(), Arc::clone(board), inputs.clone());
        vital_thread("link", inputs, move || {
            serving.accept(&listener, &told, &sending);
        })?;
        let (watching, heard) = (link.clone(), inputs.clone());
        let (status, stop) = (Arc::clone(status), Arc::clone(stop));
        vital_thread("peer", inputs, move || {
            watching.watch(&heard, &status, &stop);
        })?;
        Ok(Some(link))
    }

    fn accept(&self, listener: &TcpListener, board: &Arc<Board>, inputs: &Sender<Input>) {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (link, board, inputs) = (self.clone(), Arc::clone(board), inputs.clone());
            let (open, left) = (Arc::clone(&open), Arc::clone(&open));
            let served = thread("told", move || {
                if let Err(error) = link.serve(stream, &board, &inputs) {
                    tracing::debug!(%error, "a peer's connection has ended");
                }
                open.fetch_sub(1, Ordering::AcqRel);
            });
            if served.is_err() {
                left.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn serve(&self, stream: TcpStream, board: &Board, inputs: &Sender<Input>) -> Result<()> {
        let action = || AgentError::system("serve a peer");
        self.prepare(&stream).map_err(action())?;
        let connection = ServerConnection::new(Arc::clone(&self.tls.server));
        let mut connection = connection.map_err(|e| AgentError::Refused(e.to_string()))?;
        shake_hands(&mut connection, &stream, self.patience()).map_err(action())?;
        let mut lines = BufReader::new(StreamOwned::new(connection, stream));
        let ask = read_line(&mut lines).map_err(action())?;
        let ask = serde_json::from_str(&ask);
        match ask.map_err(|error| AgentError::Refused(error.to_string()))? {
            Ask::Yield => {
                let _ = inputs.send(Input::Event(Event::Yield));
                write_line(lines.get_mut(), &board.next(None, self.interval)).map_err(action())
            }
            Ask::Watch => {
                let mut known = None;
                loop {
                    let told = board.next(known, self.interval);
                    write_line(lines.get_mut(), &told).map_err(action())?;
                    known = Some(told);
                }
            }
        }
    }

    fn prepare(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.silence))?;
        stream.set_read_timeout(Some(self.patience()))
    }

    fn patience(&self) -> Duration {
        self.silence.max(CONNECT_TIMEOUT)
    }

    /// Listens to the peer, again and again.
    fn watch(&self, inputs: &Sender<Input>, status: &Mutex<Shared>, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            if let Err(error) = self.listen(inputs, status, stop) {
                tracing::debug!(%error, peer = self.peer, "the peer is not heard");
            }
            std::thread::sleep(self.interval);
        }
    }

    fn listen(
        &self,
        inputs: &Sender<Input>,
        status: &Mutex<Shared>,
        stop: &AtomicBool,
    ) -> Result<()> {
        let action = || AgentError::system(format!("listen to the peer at {}", self.peer));
        let mut lines = self.ask(Ask::Watch)?;
        let timeout = Some(self.silence);
        lines
            .get_mut()
            .sock
            .set_read_timeout(timeout)
            .map_err(action())?;
        while !stop.load(Ordering::Acquire) {
            let line = read_line(&mut lines).map_err(action())?;
            let told: Told = serde_json::from_str(&line)
                .map_err(|error| AgentError::Refused(error.to_string()))?;
            let Told { standing, epoch } = told;
            status.lock().peer = Some((Instant::now(), standing, epoch));
            if inputs
                .send(Input::Event(Event::Peer { standing, epoch }))
                .is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn ask(&self, ask: Ask) -> Result<BufReader<StreamOwned<ClientConnection, TcpStream>>> {
        let action = || AgentError::system(format!("connect to the peer at {}", self.peer));
        let address = self.peer.to_socket_addrs().map_err(action())?.next();
        let address = address.ok_or_else(|| {
            AgentError::Refused(format!("the peer's address {} is none", self.peer))
        })?;
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(action())?;
        self.prepare(&stream).map_err(action())?;
        // Certificates name principals; what host they are on is all the same.
        let name = ServerName::from(address.ip());
        let connection = ClientConnection::new(Arc::clone(&self.tls.client), name);
        let mut connection = connection.map_err(|e| AgentError::Refused(e.to_string()))?;
        shake_hands(&mut connection, &stream, self.patience()).map_err(action())?;
        let mut stream = StreamOwned::new(connection, stream);
        write_line(&mut stream, &ask).map_err(action())?;
        Ok(BufReader::new(stream))
    }

    /// Asks the peer to stop its program. What comes of it is told as ever.
    ///
    /// # Errors
    /// It can't be reached.
    pub fn ask_to_yield(&self) -> Result<()> {
        let mut lines = self.ask(Ask::Yield)?;
        let answer = read_line(&mut lines);
        answer
            .map(drop)
            .map_err(AgentError::system("hear the peer's answer"))
    }
}

/// TLS from its first byte to its last: who sends one byte at a time has no longer than others. Restores the stream's timeout.
fn shake_hands<D>(
    connection: &mut ConnectionCommon<D>,
    mut stream: &TcpStream,
    patience: Duration,
) -> std::io::Result<()> {
    let begun = Instant::now();
    let before = stream.read_timeout()?;
    while connection.is_handshaking() {
        while connection.wants_write() {
            connection.write_tls(&mut stream)?;
        }
        if !connection.is_handshaking() {
            break;
        }
        let left = patience.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        if connection.read_tls(&mut stream)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let processed = connection.process_new_packets();
        if let Err(error) = processed {
            // The peer hears why, if it listens.
            let _ = connection.write_tls(&mut stream);
            return Err(std::io::Error::other(error));
        }
    }
    while connection.wants_write() {
        connection.write_tls(&mut stream)?;
    }
    stream.set_read_timeout(before)
}

fn read_line(lines: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    let read = lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)?;
    if read == 0 || !line.ends_with('\n') {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

fn write_line(stream: &mut impl Write, what: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(what).map_err(std::io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.flush()
}
