//! The unit's side: registers extents, accepts connections with a token, binds and invalidates windows.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use pmu_pmem::PoolMemory;
use pmu_verbs::{
    Access, CmId, CompletionChannel, CompletionQueue, ConnectionParameters, Event, EventChannel,
    EventKind, MemoryRegion, MemoryWindow, Operations, QueuePair, QueuePairConfig, VerbsError,
    WindowBinding, WorkCompletion, WrFlags,
};

use super::device::Device;
use super::memory::Pool;
use super::message::decode_hello;
use super::persist_service::{Inbox, PersistService};
use super::{CHAINS_IN_FLIGHT_MAX, library};
use crate::connection::AccessWindow;
use crate::error::FabricError;
use crate::group_commit::{Committers, random_key};
use crate::persistence::{PersistenceMethod, Provider};
use crate::protection::{BoundWindow, WindowGate, extents_of};
use crate::unit::{
    ConnectToken, ConnectionId, ExposedExtent, ExposedRegion, FabricEvent, Observer, UnitFabric,
    WindowAccess,
};

/// How long a window operation of the unit's own queue pair may take: it never leaves the NIC.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at a completion queue of the control path.
const LOOK_AGAIN: Duration = Duration::from_micros(50);
/// Soft-RoCE checks a packet's key and then copies it; another packet's invalidation can complete between the two.
/// A packet is copied in microseconds, so after this time none is under way.
const SOFT_ROCE_SETTLES: Duration = Duration::from_millis(2);
/// Connection requests that wait in the kernel.
const BACKLOG: u32 = 64;
/// Most requests of the unit on one connection's queue pair at a time.
const UNIT_REQUESTS_MAX: u32 = 128;

/// Rights of a registration that windows are bound to; it has no use of its own, as its key is never given out.
const WINDOW_RIGHTS: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_READ)
    .union(Access::WINDOW_BIND);
/// 4.096 us times 2 to this power: how long a request of either side waits for its acknowledgement before it is sent again (about 1 s).
/// With seven retries a silent peer counts as gone after some 9 s.
pub(super) const ACK_TIMEOUT_EXPONENT: u8 = 18;

/// Settings of a verbs listener.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerbsUnitOptions {
    /// Don't offer native FLUSH even where the device has it.
    pub without_flush: bool,
}

/// A connection's queue pair as the unit posts on it, and the queue where that completes.
pub(super) struct PostingSide {
    inner: Mutex<Posting>,
}

struct Posting {
    queue_pair: Option<QueuePair>,
    queue: Arc<CompletionQueue>,
    outstanding: u32,
}

impl PostingSide {
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&QueuePair) -> Result<T, VerbsError>,
    ) -> Result<T, FabricError> {
        match &self.inner.lock().queue_pair {
            Some(queue_pair) => Ok(work(queue_pair)?),
            None => Err(FabricError::NoSuchConnection),
        }
    }

    /// Sends an answer, and reaps the completions of earlier ones.
    pub(super) fn reply(&self, bytes: &[u8], flags: WrFlags) -> Result<(), FabricError> {
        let mut posting = self.inner.lock();
        let deadline = Instant::now() + WINDOW_TIMEOUT;
        while posting.outstanding >= UNIT_REQUESTS_MAX / 2 {
            posting.reap_one(deadline)?;
        }
        let Posting {
            queue_pair: Some(queue_pair),
            outstanding,
            ..
        } = &mut *posting
        else {
            return Err(FabricError::NoSuchConnection);
        };
        let mut batch = queue_pair.start();
        batch.send_inline(0, flags, bytes)?;
        batch.post()?;
        *outstanding += 1;
        Ok(())
    }
}

impl Posting {
    fn reap_one(&mut self, deadline: Instant) -> Result<(), FabricError> {
        let mut one = [WorkCompletion::default()];
        loop {
            if self.queue.poll(&mut one)? == 1 {
                self.outstanding = self.outstanding.saturating_sub(1);
                return match one[0].status() {
                    status if status.is_success() => Ok(()),
                    status => Err(FabricError::Protocol(format!(
                        "a work request of the unit failed: {status}"
                    ))),
                };
            }
            if Instant::now() > deadline {
                return Err(FabricError::TimedOut {
                    what: "a work request of the unit",
                    waited_ms: WINDOW_TIMEOUT.as_millis() as u64,
                });
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn settle(&mut self) -> Result<(), FabricError> {
        let deadline = Instant::now() + WINDOW_TIMEOUT;
        while self.outstanding > 0 {
            self.reap_one(deadline)?;
        }
        Ok(())
    }
}

struct Made {
    id: CmId,
    method: PersistenceMethod,
    posting: Arc<PostingSide>,
    gate: Arc<WindowGate>,
    windows: Mutex<Vec<MemoryWindow>>,
    closing: Arc<AtomicBool>,
    established: AtomicBool,
}

enum Entry {
    Expected {
        token: ConnectToken,
        method: PersistenceMethod,
        until: Instant,
    },
    Made(Arc<Made>),
}

/// Registrations of one extent: one that windows are bound to, and one that can only be flushed.
struct Registered {
    address: u64,
    access: Arc<MemoryRegion>,
    flush: Option<Arc<MemoryRegion>>,
}

struct Region {
    exposed: ExposedRegion,
    extents: Vec<Registered>,
}

struct Inner {
    address: SocketAddr,
    device: Device,
    options: VerbsUnitOptions,
    regions: RwLock<HashMap<u64, Region>>,
    connections: Mutex<HashMap<ConnectionId, Entry>>,
    changed: Condvar,
    committers: Committers,
    observer: OnceLock<Observer>,
    next_connection: AtomicU64,
    stopping: AtomicBool,
}

/// The unit's half of the verbs provider: one listener on one RDMA device. See [`UnitFabric`] for the contract.
pub struct VerbsUnit {
    inner: Arc<Inner>,
    events: Mutex<Option<thread::JoinHandle<()>>>,
}

impl VerbsUnit {
    /// Listens on an address of an RDMA device (`host:port`; port 0 takes a free one).
    ///
    /// # Errors
    /// [`FabricError::Unavailable`]: no libraries, or the address isn't one of an RDMA device. [`FabricError::Verbs`]: address in use, limits.
    pub fn listen(address: &str, options: VerbsUnitOptions) -> Result<Self, FabricError> {
        let verbs = library()?;
        let wanted = address
            .to_socket_addrs()
            .map_err(FabricError::io("resolve the data address"))?
            .next()
            .ok_or_else(|| FabricError::Protocol(format!("{address} has no address")))?;
        let events = EventChannel::new(&verbs)?;
        let listener = CmId::new(&events)?;
        listener.bind_addr(wanted)?;
        let context = listener.context().map_err(|_| FabricError::Unavailable {
            provider: Provider::Verbs,
            reason: format!(
                "{address} is not the address of one RDMA device (a wildcard isn't possible)"
            ),
        })?;
        listener.listen(BACKLOG)?;
        let bound = listener.local_addr().unwrap_or(wanted);
        let inner = Arc::new(Inner {
            address: bound,
            device: Device::of(context)?,
            options,
            regions: RwLock::default(),
            connections: Mutex::default(),
            changed: Condvar::new(),
            committers: Committers::default(),
            observer: OnceLock::new(),
            next_connection: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&inner);
        let handle = thread::Builder::new()
            .name("verbs-events".into())
            .spawn(move || event_loop(&for_thread, &events, &listener))
            .map_err(FabricError::io(
                "start the thread of the connection manager",
            ))?;
        Ok(Self {
            inner,
            events: Mutex::new(Some(handle)),
        })
    }
}

fn event_loop(inner: &Arc<Inner>, events: &EventChannel, _listener: &CmId) {
    while !inner.stopping.load(Ordering::Acquire) {
        match events.wait_event(Some(Duration::from_millis(100))) {
            Ok(None) => {}
            Ok(Some(event)) => inner.handle(event),
            Err(error) => {
                tracing::error!(%error, "the connection manager's events failed");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Inner {
    fn handle(self: &Arc<Self>, event: Event) {
        match event.kind {
            EventKind::ConnectRequest => self.connection_request(event),
            EventKind::Established => {
                if let Some((_, made)) = self.find(&event.id) {
                    made.established.store(true, Ordering::Release);
                    self.changed.notify_all();
                }
            }
            EventKind::Disconnected
            | EventKind::ConnectError
            | EventKind::Unreachable
            | EventKind::DeviceRemoval => {
                if let Some((connection, made)) = self.find(&event.id) {
                    self.end(connection, &made, &format!("{:?}", event.kind));
                }
            }
            _ => {}
        }
    }

    fn find(&self, id: &CmId) -> Option<(ConnectionId, Arc<Made>)> {
        self.connections
            .lock()
            .iter()
            .find_map(|(connection, entry)| match entry {
                Entry::Made(made) if made.id.identity() == id.identity() => {
                    Some((*connection, Arc::clone(made)))
                }
                _ => None,
            })
    }

    /// The connection is over: its queue pair and windows go, and whoever observes is told.
    fn end(&self, connection: ConnectionId, made: &Arc<Made>, reason: &str) {
        self.break_down(made);
        self.connections.lock().remove(&connection);
        self.changed.notify_all();
        if let Some(observer) = self.observer.get() {
            observer(FabricEvent::Disconnected {
                connection,
                reason: reason.to_owned(),
            });
        }
    }

    /// Breaks and destroys the queue pair: afterwards no byte of the peer can land. A bound window holds on to its queue pair inside
    /// the device (soft-RoCE then waits 50 s before it destroys it), so the windows go first.
    fn break_down(&self, made: &Made) {
        made.closing.store(true, Ordering::Release);
        made.gate.invalidate();
        let _ = made.posting.with(QueuePair::to_error);
        let _ = made.id.disconnect();
        made.windows.lock().clear();
        let queue_pair = made.posting.inner.lock().queue_pair.take();
        drop(queue_pair);
    }

    fn connection_request(self: &Arc<Self>, event: Event) {
        let token = match decode_hello(event.private_data.as_bytes()) {
            Ok(token) => token,
            Err(error) => {
                tracing::warn!(%error, "a connection request was refused");
                let _ = event.id.reject(b"protocol");
                return;
            }
        };
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
        });
        let Some((connection, method)) = found else {
            drop(connections);
            tracing::warn!("a connection request with an unknown token was refused");
            let _ = event.id.reject(b"token");
            return;
        };
        match self.accept(&event.id, method) {
            Ok(made) => {
                connections.insert(connection, Entry::Made(made));
            }
            Err(error) => {
                connections.remove(&connection);
                drop(connections);
                tracing::error!(%error, "a data connection could not be set up");
                let _ = event.id.reject(b"setup");
            }
        }
    }

    fn accept(
        self: &Arc<Self>,
        id: &CmId,
        method: PersistenceMethod,
    ) -> Result<Arc<Made>, FabricError> {
        let context = &self.device.context;
        let by_message = method == PersistenceMethod::ServerPersist;
        let receives = if by_message {
            CHAINS_IN_FLIGHT_MAX as u32
        } else {
            1
        };
        let channel = CompletionChannel::new(context)?;
        let send_queue = CompletionQueue::new(context, UNIT_REQUESTS_MAX, None)?;
        let receive_queue = CompletionQueue::new(context, receives, Some(Arc::clone(&channel)))?;
        let operations = Operations::BIND_WINDOW | Operations::LOCAL_INVALIDATE | Operations::SEND;
        let config = QueuePairConfig {
            max_send_wr: UNIT_REQUESTS_MAX,
            max_recv_wr: receives,
            required: Operations::BIND_WINDOW | Operations::LOCAL_INVALIDATE,
            operations,
            ..QueuePairConfig::new(&self.device.domain, &send_queue, &receive_queue)
        };
        let mut queue_pair = QueuePair::create_on(id, &config)?;
        let inbox = by_message
            .then(|| {
                Inbox::prepare(
                    &self.device,
                    &mut queue_pair,
                    Arc::clone(&receive_queue),
                    channel,
                )
            })
            .transpose()?;
        let posting = Posting {
            queue_pair: Some(queue_pair),
            queue: send_queue,
            outstanding: 0,
        };
        let made = Arc::new(Made {
            id: id.clone(),
            method,
            posting: Arc::new(PostingSide {
                inner: Mutex::new(posting),
            }),
            gate: Arc::new(WindowGate::default()),
            windows: Mutex::default(),
            closing: Arc::new(AtomicBool::new(false)),
            established: AtomicBool::new(false),
        });
        if let Some(inbox) = inbox {
            self.start_persist_service(inbox, &made)?;
        }
        id.set_ack_timeout(ACK_TIMEOUT_EXPONENT)?;
        id.accept(&ConnectionParameters::default())?;
        Ok(made)
    }

    fn start_persist_service(
        self: &Arc<Self>,
        inbox: Inbox,
        made: &Made,
    ) -> Result<(), FabricError> {
        let finder = Arc::clone(self);
        let service = PersistService {
            inbox,
            posting: Arc::clone(&made.posting),
            gate: Arc::clone(&made.gate),
            closing: Arc::clone(&made.closing),
            find_committer: Box::new(move |pool| finder.committers.for_pool(pool)),
        };
        thread::Builder::new()
            .name("verbs-persist".into())
            .spawn(move || service.run())
            .map(|_| ())
            .map_err(FabricError::io("start a server-persist thread"))
    }

    fn made(&self, connection: ConnectionId) -> Result<Arc<Made>, FabricError> {
        match self.connections.lock().get(&connection) {
            Some(Entry::Made(made)) => Ok(Arc::clone(made)),
            _ => Err(FabricError::NoSuchConnection),
        }
    }

    fn offers_flush(&self, pool: &PoolMemory) -> bool {
        let attributes = &self.device.attributes;
        let mapped_directly = matches!(
            pool.medium(),
            pmu_pmem::Medium::Devdax | pmu_pmem::Medium::Fsdax
        );
        mapped_directly
            && !self.options.without_flush
            && attributes.flush_persistent()
            && attributes.atomic_write()
    }

    /// The registration to which a window over `piece` of an extent is bound: the extent's, or one of its own for a part of it.
    /// Soft-RoCE lets a window's key reach all of the registration (it checks key, rights and queue pair, but not the window's range),
    /// so a registration never covers more than the window may.
    fn registration_of(
        &self,
        region: &Region,
        extent: &Registered,
        piece: &ExposedExtent,
    ) -> Result<Arc<MemoryRegion>, FabricError> {
        if extent.access.start() == piece.address && extent.access.length() == piece.length {
            return Ok(Arc::clone(&extent.access));
        }
        let memory = Arc::new(Pool(Arc::clone(&region.exposed.pool)));
        let (offset, length) = (piece.pool_offset as usize, piece.length as usize);
        let (domain, start) = (&self.device.domain, Some(piece.address));
        Ok(MemoryRegion::register(
            domain,
            memory,
            offset,
            length,
            start,
            WINDOW_RIGHTS,
        )?)
    }

    fn register(&self, region: &ExposedRegion) -> Result<Vec<Registered>, FabricError> {
        let memory = Arc::new(Pool(Arc::clone(&region.pool)));
        let mut registered = Vec::with_capacity(region.extents.len());
        for extent in &region.extents {
            let (offset, length, address) = (
                extent.pool_offset as usize,
                extent.length as usize,
                extent.address,
            );
            let register = |access| {
                MemoryRegion::register(
                    &self.device.domain,
                    memory.clone(),
                    offset,
                    length,
                    Some(address),
                    access,
                )
            };
            let flush = if self.offers_flush(&region.pool) {
                Some(register(Access::FLUSH_GLOBAL | Access::FLUSH_PERSISTENT)?)
            } else {
                None
            };
            registered.push(Registered {
                address,
                access: register(WINDOW_RIGHTS)?,
                flush,
            });
        }
        Ok(registered)
    }
}

/// Binds one window on the connection's own queue pair and waits for it.
fn bind_window(
    made: &Made,
    region: &Arc<MemoryRegion>,
    address: u64,
    length: u64,
    access: Access,
) -> Result<(MemoryWindow, u32), FabricError> {
    let mut posting = made.posting.inner.lock();
    posting.settle()?;
    let Posting {
        queue_pair: Some(queue_pair),
        outstanding,
        ..
    } = &mut *posting
    else {
        return Err(FabricError::NoSuchConnection);
    };
    let mut window = MemoryWindow::allocate_type2(queue_pair.protection_domain())?;
    // The low byte must differ from that of the last binding.
    let mut tag = random_key()? as u8;
    if tag == window.rkey() as u8 {
        tag = tag.wrapping_add(1);
    }
    let key = window.rkey_with_tag(tag);
    let mut batch = queue_pair.start();
    let binding = WindowBinding {
        region,
        address,
        length,
        access,
    };
    batch.bind_window(1, WrFlags::SIGNALED, &mut window, key, &binding)?;
    batch.post()?;
    *outstanding += 1;
    posting.settle()?;
    drop(posting);
    Ok((window, key))
}

impl UnitFabric for VerbsUnit {
    fn provider(&self) -> Provider {
        Provider::Verbs
    }

    fn address(&self) -> String {
        self.inner.address.to_string()
    }

    fn persistence_methods(&self, pool: &PoolMemory) -> Vec<PersistenceMethod> {
        use pmu_pmem::Medium;
        let mut methods = Vec::new();
        match pool.medium() {
            Medium::Devdax | Medium::Fsdax => {
                if self.inner.offers_flush(pool) {
                    methods.push(PersistenceMethod::NativeFlush);
                }
                methods.push(PersistenceMethod::ReadAfterWrite);
                methods.push(PersistenceMethod::ServerPersist);
            }
            // A NIC can't pin the pages of an ordinary file for long.
            Medium::File => {}
            _ => methods.push(PersistenceMethod::Volatile),
        }
        methods
    }

    fn observe(&self, observer: Observer) {
        if self.inner.observer.set(observer).is_err() {
            tracing::error!("the fabric's observer was set twice; the first one stays");
        }
    }

    fn expose(&self, region: &ExposedRegion) -> Result<(), FabricError> {
        let mut regions = self.inner.regions.write();
        if regions.contains_key(&region.address) {
            return Ok(());
        }
        let extents = self.inner.register(region)?;
        regions.insert(
            region.address,
            Region {
                exposed: region.clone(),
                extents,
            },
        );
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
        let attributes = &self.inner.device.attributes;
        let has_flush = attributes.flush_persistent()
            && attributes.atomic_write()
            && !self.inner.options.without_flush;
        if method == PersistenceMethod::NativeFlush && !has_flush {
            let reason = format!(
                "the unit's device {} has no FLUSH",
                self.inner.device.context.device_name()
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
                Some(Entry::Made(made)) if made.established.load(Ordering::Acquire) => {
                    return Ok(());
                }
                Some(Entry::Made(_)) => {}
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
        let made = self.inner.made(connection)?;
        let regions = self.inner.regions.read();
        let region = regions.get(&region_address).ok_or_else(|| {
            FabricError::Protocol(format!("no region is exposed at {region_address:#x}"))
        })?;
        let mut rights = Access::empty();
        rights.set(Access::REMOTE_WRITE, access.write);
        // Read-after-write proves with a READ of what was written.
        let reads =
            access.read || (access.write && made.method == PersistenceMethod::ReadAfterWrite);
        rights.set(Access::REMOTE_READ, reads);
        let mut given = Vec::new();
        for piece in extents_of(&region.exposed, address, length)? {
            let index = region
                .extents
                .partition_point(|extent| extent.address <= piece.address);
            let extent = &region.extents[index.saturating_sub(1)];
            let registered = self.inner.registration_of(region, extent, &piece)?;
            let (window, access_key) =
                bind_window(&made, &registered, piece.address, piece.length, rights)?;
            made.windows.lock().push(window);
            let flush_key = match made.method {
                PersistenceMethod::NativeFlush => {
                    extent.flush.as_ref().map_or(0, |region| region.rkey())
                }
                _ => random_key()?,
            };
            let window = AccessWindow {
                address: piece.address,
                length: piece.length,
                access_key,
                flush_key,
            };
            let pool = Arc::clone(&region.exposed.pool);
            made.gate.add(vec![BoundWindow {
                given: window,
                access,
                pool,
                pool_offset: piece.pool_offset,
            }])?;
            given.push(window);
        }
        Ok(given)
    }

    fn invalidate(&self, connection: ConnectionId) -> Result<(), FabricError> {
        let made = {
            let mut connections = self.inner.connections.lock();
            match connections.get(&connection) {
                Some(Entry::Made(made)) => Arc::clone(made),
                _ => {
                    connections.remove(&connection);
                    self.inner.changed.notify_all();
                    return Ok(());
                }
            }
        };
        made.gate.invalidate();
        let mut windows = std::mem::take(&mut *made.windows.lock());
        if invalidate_windows(&made, &mut windows).is_err() {
            // The queue pair is broken, by the peer's end or by a refused request: without it nothing can land either.
            self.inner.break_down(&made);
        }
        drop(windows);
        if self.inner.device.attributes.soft_roce() {
            thread::sleep(SOFT_ROCE_SETTLES);
        }
        Ok(())
    }

    fn close(&self, connection: ConnectionId) {
        match self.inner.made(connection) {
            Ok(made) => self.inner.end(connection, &made, "closed by the unit"),
            Err(_) => {
                self.inner.connections.lock().remove(&connection);
            }
        }
    }

    fn shut_down(&self) {
        if self.inner.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(handle) = self.events.lock().take() {
            let _ = handle.join();
        }
        let all: Vec<ConnectionId> = self.inner.connections.lock().keys().copied().collect();
        for connection in all {
            self.close(connection);
        }
        self.inner.regions.write().clear();
    }
}

/// Invalidates on the connection's own queue pair and waits until each is done.
fn invalidate_windows(made: &Made, windows: &mut [MemoryWindow]) -> Result<(), FabricError> {
    for some in windows.chunks_mut(UNIT_REQUESTS_MAX as usize / 2) {
        let mut posting = made.posting.inner.lock();
        posting.settle()?;
        let Posting {
            queue_pair: Some(queue_pair),
            outstanding,
            ..
        } = &mut *posting
        else {
            return Ok(());
        };
        let requests = some.len() as u32;
        let mut batch = queue_pair.start();
        for window in some {
            batch.local_invalidate(2, WrFlags::SIGNALED, window)?;
        }
        batch.post()?;
        *outstanding += requests;
        posting.settle()?;
    }
    Ok(())
}

impl Drop for VerbsUnit {
    fn drop(&mut self) {
        self.shut_down();
    }
}
