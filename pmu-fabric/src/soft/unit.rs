//! The unit's side: listener, expected connections, windows.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use pmu_pmem::PoolMemory;

use super::service::{Service, Shared};
use super::socket::{Listener, receive_exactly};
use super::wire::{CHAINS_IN_FLIGHT_MAX, HELLO_BYTES, Hello, OPS_MAX, Welcome};
use crate::connection::AccessWindow;
use crate::error::FabricError;
use crate::group_commit::{Committers, random_key};
use crate::persistence::{PersistenceMethod, Provider};
use crate::protection::{BoundWindow, WindowGate, extents_of};
use crate::rarely::Rarely;
use crate::unit::{
    ConnectToken, ConnectionId, ExposedRegion, FabricEvent, Observer, UnitFabric, WindowAccess,
};

/// How long a peer that connected may take to say its token.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not yet said their token; for one more the oldest is closed.
const STRANGERS_MAX: usize = 128;
/// How long an ending unit waits for its connections' threads: as long as a flush may be at work.
const END_WITHIN: Duration = Duration::from_secs(10);

enum Entry {
    Expected {
        token: ConnectToken,
        method: PersistenceMethod,
        until: Instant,
    },
    Connected(Arc<Shared>),
}

/// The file of a Unix socket: removed at the end, if it is still the one that was made.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &str) -> Result<Self, FabricError> {
        let found = fs::symlink_metadata(path)
            .map_err(FabricError::io("look at the data socket that was made"))?;
        Ok(Self {
            path: path.into(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode)
    }
}

/// Connections that have not said their token yet, the oldest first.
#[derive(Default)]
struct Strangers {
    waiting: VecDeque<(u64, Arc<Shared>)>,
    next: u64,
}

impl Strangers {
    /// Takes one in. Where there are too many, the oldest goes: whoever has a token says it at once.
    fn admit(&mut self, shared: &Arc<Shared>) -> (u64, bool) {
        let full = self.waiting.len() >= STRANGERS_MAX;
        if full && let Some((_, oldest)) = self.waiting.pop_front() {
            oldest.socket.shut_down();
        }
        self.next += 1;
        self.waiting.push_back((self.next, Arc::clone(shared)));
        (self.next, full)
    }

    fn known(&mut self, number: u64) {
        self.waiting.retain(|(waiting, _)| *waiting != number);
    }
}

struct Inner {
    provider: Provider,
    address: String,
    socket_file: Option<SocketFile>,
    regions: RwLock<HashMap<u64, ExposedRegion>>,
    connections: Mutex<HashMap<ConnectionId, Entry>>,
    changed: Condvar,
    committers: Arc<Committers>,
    observer: OnceLock<Observer>,
    next_connection: AtomicU64,
    strangers: Mutex<Strangers>,
    turned_away: Rarely,
    /// Threads that serve a connection.
    serving: Mutex<usize>,
    one_less: Condvar,
    stopping: AtomicBool,
}

/// The unit's half of the soft provider: one listener. See [`UnitFabric`] for the contract.
pub struct SoftUnit {
    inner: Arc<Inner>,
    listener: Arc<Listener>,
    acceptor: Mutex<Option<thread::JoinHandle<()>>>,
}

impl SoftUnit {
    /// Listens on a TCP address (`host:port`; port 0 takes a free one).
    ///
    /// # Errors
    /// [`FabricError::Io`], with the address in use or not of this machine.
    pub fn listen_tcp(address: &str) -> Result<Self, FabricError> {
        let (listener, address) = Listener::tcp(address)?;
        Self::start(Provider::SoftTcp, listener, address, None)
    }

    /// Listens on a Unix socket. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`FabricError::Io`], with the path in use by another process, or not writable.
    pub fn listen_unix(path: &str) -> Result<Self, FabricError> {
        let listener = Listener::unix(path)?;
        Self::start(
            Provider::SoftUnix,
            listener,
            path.to_owned(),
            Some(SocketFile::of(path)?),
        )
    }

    fn start(
        provider: Provider,
        listener: Listener,
        address: String,
        socket_file: Option<SocketFile>,
    ) -> Result<Self, FabricError> {
        let inner = Arc::new(Inner {
            provider,
            address,
            socket_file,
            regions: RwLock::default(),
            connections: Mutex::default(),
            changed: Condvar::new(),
            committers: Arc::default(),
            observer: OnceLock::new(),
            next_connection: AtomicU64::new(1),
            strangers: Mutex::default(),
            turned_away: Rarely::default(),
            serving: Mutex::new(0),
            one_less: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        let listener = Arc::new(listener);
        let (for_thread, listening) = (Arc::clone(&inner), Arc::clone(&listener));
        let acceptor = thread::Builder::new()
            .name(format!("{provider}-accept"))
            .spawn(move || accept_loop(&for_thread, &listening))
            .map_err(FabricError::io("start the accepting thread"))?;
        Ok(Self {
            inner,
            listener,
            acceptor: Mutex::new(Some(acceptor)),
        })
    }
}

fn accept_loop(inner: &Arc<Inner>, listener: &Listener) {
    while !inner.stopping.load(Ordering::Acquire) {
        let socket = match listener.accept() {
            Ok(Some(socket)) => socket,
            Ok(None) => continue,
            Err(_) if inner.stopping.load(Ordering::Acquire) => return,
            Err(error) => {
                tracing::warn!(%error, address = inner.address, "accepting a data connection failed");
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let shared = Arc::new(Shared {
            socket,
            gate: Arc::new(WindowGate::default()),
            closing: AtomicBool::new(false),
        });
        let (number, crowded) = inner.strangers.lock().admit(&shared);
        if crowded && let Some(suppressed) = inner.turned_away.now() {
            tracing::warn!(
                address = inner.address,
                suppressed,
                "too many connections without a token: closed the oldest"
            );
        }
        let for_thread = Arc::clone(inner);
        let spawned = thread::Builder::new()
            .name(format!("{}-data", inner.provider))
            .spawn(move || welcome_and_serve(&for_thread, &shared, number));
        if let Err(error) = spawned {
            inner.strangers.lock().known(number);
            tracing::error!(%error, "no thread for a data connection");
        }
    }
}

fn welcome_and_serve(inner: &Arc<Inner>, shared: &Arc<Shared>, number: u64) {
    let greeted = greet(inner, shared);
    inner.strangers.lock().known(number);
    let (connection, method) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            if let Some(suppressed) = inner.turned_away.now() {
                tracing::warn!(%error, address = inner.address, suppressed, "a data connection was not accepted");
            }
            return;
        }
    };
    let shared = Arc::clone(shared);
    *inner.serving.lock() += 1;
    let committers = Arc::clone(&inner.committers);
    let end = Service::new(shared, committers, method).run();
    inner.connections.lock().remove(&connection);
    inner.changed.notify_all();
    tracing::debug!(connection = connection.0, reason = %end, "data connection ended");
    if let Some(observer) = inner.observer.get() {
        observer(FabricEvent::Disconnected {
            connection,
            reason: end.to_string(),
        });
    }
    *inner.serving.lock() -= 1;
    inner.one_less.notify_all();
}

/// Reads the token and turns the expected connection into a made one.
fn greet(
    inner: &Inner,
    shared: &Arc<Shared>,
) -> Result<(ConnectionId, PersistenceMethod), FabricError> {
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let mut bytes = [0; HELLO_BYTES];
    receive_exactly(&shared.socket, &mut bytes, deadline)
        .map_err(FabricError::io("wait for the connect token"))?;
    let hello = Hello::decode(&bytes).map_err(|error| FabricError::Protocol(error.to_string()))?;
    let found = inner.redeem(hello.token, shared);
    let welcome = Welcome {
        accepted: found.is_some(),
        chains_in_flight_max: CHAINS_IN_FLIGHT_MAX as u32,
        ops_max: OPS_MAX as u32,
    };
    let sent = shared.socket.send_all(&welcome.encode(), deadline);
    match (found, sent) {
        (Some((connection, method)), Ok(())) => {
            inner.changed.notify_all();
            Ok((connection, method))
        }
        (Some((connection, _)), Err(error)) => {
            inner.connections.lock().remove(&connection);
            Err(FabricError::Io {
                context: "send the welcome",
                source: error,
            })
        }
        (None, _) => Err(FabricError::Refused {
            reason: "unknown connect token".into(),
        }),
    }
}

impl Inner {
    fn redeem(
        &self,
        token: ConnectToken,
        shared: &Arc<Shared>,
    ) -> Option<(ConnectionId, PersistenceMethod)> {
        let mut connections = self.connections.lock();
        let now = Instant::now();
        connections
            .retain(|_, entry| !matches!(entry, Entry::Expected { until, .. } if *until < now));
        let found = connections.iter().find_map(|(id, entry)| match entry {
            Entry::Expected {
                token: expected,
                method,
                ..
            } if *expected == token => Some((*id, *method)),
            _ => None,
        })?;
        connections.insert(found.0, Entry::Connected(Arc::clone(shared)));
        Some(found)
    }

    fn connected(&self, connection: ConnectionId) -> Result<Arc<Shared>, FabricError> {
        match self.connections.lock().get(&connection) {
            Some(Entry::Connected(shared)) => Ok(Arc::clone(shared)),
            _ => Err(FabricError::NoSuchConnection),
        }
    }
}

impl UnitFabric for SoftUnit {
    fn provider(&self) -> Provider {
        self.inner.provider
    }

    fn address(&self) -> String {
        self.inner.address.clone()
    }

    fn persistence_methods(&self, pool: &PoolMemory) -> Vec<PersistenceMethod> {
        if pool.medium().is_durable() {
            vec![PersistenceMethod::ServerPersist]
        } else {
            vec![PersistenceMethod::Volatile]
        }
    }

    fn observe(&self, observer: Observer) {
        if self.inner.observer.set(observer).is_err() {
            tracing::error!("the fabric's observer was set twice; the first one stays");
        }
    }

    fn expose(&self, region: &ExposedRegion) -> Result<(), FabricError> {
        self.inner
            .regions
            .write()
            .insert(region.address, region.clone());
        Ok(())
    }

    fn withdraw(&self, region_address: u64) -> Result<(), FabricError> {
        self.inner.regions.write().remove(&region_address);
        Ok(())
    }

    fn expect(
        &self,
        token: ConnectToken,
        method: PersistenceMethod,
        within: Duration,
    ) -> Result<ConnectionId, FabricError> {
        if matches!(
            method,
            PersistenceMethod::NativeFlush | PersistenceMethod::ReadAfterWrite
        ) {
            let reason = format!(
                "{} has no network interface that could do it",
                self.inner.provider
            );
            return Err(FabricError::UnfitPersistence { method, reason });
        }
        let connection = ConnectionId(self.inner.next_connection.fetch_add(1, Ordering::Relaxed));
        let entry = Entry::Expected {
            token,
            method,
            until: Instant::now() + within,
        };
        self.inner.connections.lock().insert(connection, entry);
        Ok(connection)
    }

    fn wait_connected(
        &self,
        connection: ConnectionId,
        timeout: Duration,
    ) -> Result<(), FabricError> {
        let deadline = Instant::now() + timeout;
        let mut connections = self.inner.connections.lock();
        loop {
            match connections.get(&connection) {
                Some(Entry::Connected(_)) => return Ok(()),
                Some(Entry::Expected { until, .. }) if *until >= Instant::now() => {}
                _ => return Err(FabricError::NoSuchConnection),
            }
            if self
                .inner
                .changed
                .wait_until(&mut connections, deadline)
                .timed_out()
            {
                let waited_ms = timeout.as_millis() as u64;
                return Err(FabricError::TimedOut {
                    what: "the data connection",
                    waited_ms,
                });
            }
        }
    }

    fn bind(
        &self,
        connection: ConnectionId,
        region_address: u64,
        address: u64,
        length: u64,
        access: WindowAccess,
    ) -> Result<Vec<AccessWindow>, FabricError> {
        let shared = self.inner.connected(connection)?;
        let regions = self.inner.regions.read();
        let region = regions.get(&region_address).ok_or_else(|| {
            FabricError::Protocol(format!("no region is exposed at {region_address:#x}"))
        })?;
        let mut bound = Vec::new();
        for extent in extents_of(region, address, length)? {
            let given = AccessWindow {
                address: extent.address,
                length: extent.length,
                access_key: random_key()?,
                flush_key: random_key()?,
            };
            let pool = Arc::clone(&region.pool);
            bound.push(BoundWindow {
                given,
                access,
                pool,
                pool_offset: extent.pool_offset,
            });
        }
        let given = bound.iter().map(|window| window.given).collect();
        shared.gate.add(bound)?;
        Ok(given)
    }

    fn invalidate(&self, connection: ConnectionId) -> Result<(), FabricError> {
        let shared = {
            let mut connections = self.inner.connections.lock();
            match connections.get(&connection) {
                Some(Entry::Connected(shared)) => Arc::clone(shared),
                _ => {
                    connections.remove(&connection);
                    self.inner.changed.notify_all();
                    return Ok(());
                }
            }
        };
        shared.gate.invalidate();
        Ok(())
    }

    fn close(&self, connection: ConnectionId) {
        if let Ok(shared) = self.inner.connected(connection) {
            shared.gate.invalidate();
            shared.closing.store(true, Ordering::Release);
            shared.socket.shut_down();
        } else {
            self.inner.connections.lock().remove(&connection);
            self.inner.changed.notify_all();
        }
    }

    fn shut_down(&self) {
        if self.inner.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        self.listener.wake();
        if let Some(acceptor) = self.acceptor.lock().take() {
            let _ = acceptor.join();
        }
        let all: Vec<ConnectionId> = self.inner.connections.lock().keys().copied().collect();
        for connection in all {
            self.close(connection);
        }
        let deadline = Instant::now() + END_WITHIN;
        let mut serving = self.inner.serving.lock();
        while *serving > 0 {
            if self
                .inner
                .one_less
                .wait_until(&mut serving, deadline)
                .timed_out()
            {
                tracing::warn!(threads = *serving, "data connections are still at work");
                break;
            }
        }
        drop(serving);
        if let Some(file) = &self.inner.socket_file
            && file.is_there()
            && let Err(error) = fs::remove_file(&file.path)
        {
            tracing::warn!(%error, path = %file.path.display(), "the socket file stays");
        }
    }
}

impl Drop for SoftUnit {
    fn drop(&mut self) {
        self.shut_down();
    }
}
