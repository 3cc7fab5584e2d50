//! Memory, connections and waiting, shared by the tests.

use std::net::{IpAddr, SocketAddr};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pmu_verbs::{
    Access, Batch, CmId, CompletionQueue, ConnectionParameters, Event, EventChannel, EventKind,
    MemoryRegion, MemoryWindow, ProtectionDomain, QueuePair, QueuePairConfig, RegisteredMemory,
    Verbs, VerbsError, WorkCompletion,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const MIB: usize = 1 << 20;

/// What a unit registers persistent memory with.
pub(crate) const POOL: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_READ)
    .union(Access::WINDOW_BIND)
    .union(Access::FLUSH_GLOBAL)
    .union(Access::FLUSH_PERSISTENT);
pub(crate) const FLUSH_ONLY: Access = Access::FLUSH_GLOBAL.union(Access::FLUSH_PERSISTENT);
pub(crate) const READ_WRITE: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);

pub(crate) fn verbs() -> Arc<Verbs> {
    assert_eq!(
        std::env::var("PMU_LAB").as_deref(),
        Ok("1"),
        "this test needs the lab: scripts/lab run -- (this program)"
    );
    Verbs::load().expect("libibverbs and librdmacm")
}

pub(crate) fn lab_ip() -> IpAddr {
    std::env::var("PMU_LAB_ADDR0")
        .expect("PMU_LAB_ADDR0")
        .parse()
        .expect("an address")
}

/// Mapped memory, which nobody refers to but through raw pointers.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory that any thread may reach through raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: the bytes stay mapped until drop, and no reference to them is ever made.
unsafe impl RegisteredMemory for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn length(&self) -> usize {
        self.length
    }
}

impl Mapping {
    fn new(length: usize, flags: i32, fd: i32, offset: usize) -> Arc<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        assert_ne!(
            base,
            libc::MAP_FAILED,
            "{}",
            std::io::Error::last_os_error()
        );
        Arc::new(Self {
            base: NonNull::new(base.cast()).unwrap(),
            length,
        })
    }

    /// Ordinary memory.
    pub(crate) fn ordinary(length: usize) -> Arc<Self> {
        Self::new(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// A piece of the first persistent memory that no other test has, zeroed.
    pub(crate) fn persistent(length: usize) -> Arc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        use std::os::fd::AsRawFd;
        let path = std::env::var("PMU_LAB_DAX0").expect("PMU_LAB_DAX0");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let offset = NEXT.fetch_add(length.next_multiple_of(2 * MIB), Ordering::Relaxed);
        let mapping = Self::new(length, libc::MAP_SHARED, file.as_raw_fd(), offset);
        mapping.write(0, &vec![0; length]);
        mapping
    }

    /// The address of a byte in this process.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        (self.base.as_ptr().addr() + offset) as u64
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: the range is inside the mapping; no reference to it exists.
        unsafe {
            let target = self.base.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }

    pub(crate) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length);
        let mut bytes = vec![0; length];
        // SAFETY: as in `write`.
        unsafe {
            let source = self.base.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), length);
        }
        bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// One side of a connection.
pub(crate) struct End {
    pub(crate) queue_pair: QueuePair,
    pub(crate) queue: Arc<CompletionQueue>,
    pub(crate) domain: Arc<ProtectionDomain>,
    pub(crate) id: CmId,
    pub(crate) channel: EventChannel,
    /// What the other side sent with the set-up.
    pub(crate) greeting: Vec<u8>,
}

impl End {
    pub(crate) fn register(
        &self,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Arc<MemoryRegion>, VerbsError> {
        let memory = Arc::clone(memory);
        let length = memory.length;
        MemoryRegion::register(&self.domain, memory, 0, length, None, access)
    }

    /// Posts what `fill` adds and waits for one completion.
    pub(crate) fn run(
        &mut self,
        fill: impl FnOnce(&mut Batch<'_>) -> Result<(), VerbsError>,
    ) -> WorkCompletion {
        let mut batch = self.queue_pair.start();
        fill(&mut batch).expect("fill the batch");
        batch.post().expect("post");
        one_completion(&self.queue)
    }

    /// Takes a window's rights away.
    pub(crate) fn invalidate(&mut self, window: &mut MemoryWindow) -> WorkCompletion {
        let mut batch = self.queue_pair.start();
        batch
            .local_invalidate(2, pmu_verbs::WrFlags::SIGNALED, window)
            .expect("invalidate");
        batch.post().expect("post");
        one_completion(&self.queue)
    }

    /// Binds a new window over `[address, address + length)` and returns it with its key.
    pub(crate) fn bind(
        &mut self,
        region: &Arc<MemoryRegion>,
        address: u64,
        length: u64,
    ) -> MemoryWindow {
        use pmu_verbs::{WindowBinding, WrFlags};
        let mut window = MemoryWindow::allocate_type2(&self.domain).expect("allocate a window");
        let rkey = window.rkey_with_tag((window.rkey() as u8).wrapping_add(41));
        let binding = WindowBinding {
            region,
            address,
            length,
            access: READ_WRITE,
        };
        let mut batch = self.queue_pair.start();
        batch
            .bind_window(1, WrFlags::SIGNALED, &mut window, rkey, &binding)
            .expect("bind");
        batch.post().expect("post");
        let completion = one_completion(&self.queue);
        assert!(completion.status().is_success(), "{completion:?}");
        assert_eq!(window.rkey(), rkey);
        window
    }
}

/// Waits for an event of a kind, and says what came where another did.
pub(crate) fn expect(channel: &EventChannel, kind: EventKind) -> Event {
    let event = next_event(channel);
    assert_eq!(event.kind, kind, "{event:?}");
    event
}

pub(crate) fn next_event(channel: &EventChannel) -> Event {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(event) = channel
            .wait_event(Some(Duration::from_millis(500)))
            .expect("event")
        {
            return event;
        }
    }
    panic!("no event");
}

/// Polls until there is a completion; panics when there is more than one.
pub(crate) fn one_completion(queue: &CompletionQueue) -> WorkCompletion {
    let mut completions = [WorkCompletion::default(); 4];
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match queue.poll(&mut completions).expect("poll") {
            0 => std::thread::yield_now(),
            1 => return completions[0],
            more => panic!("{more} completions: {completions:?}"),
        }
    }
    panic!("no completion");
}

/// Asserts that nothing completes for a while.
pub(crate) fn no_completion(queue: &CompletionQueue) {
    let mut completions = [WorkCompletion::default(); 1];
    let end = Instant::now() + Duration::from_millis(200);
    while Instant::now() < end {
        assert_eq!(
            queue.poll(&mut completions).expect("poll"),
            0,
            "{completions:?}"
        );
        std::thread::yield_now();
    }
}

/// A listener on a port of its own.
pub(crate) fn listen(verbs: &Arc<Verbs>) -> (EventChannel, CmId, SocketAddr) {
    let channel = EventChannel::new(verbs).expect("event channel");
    let listener = CmId::new(&channel).expect("identifier");
    listener
        .bind_addr(SocketAddr::new(lab_ip(), 0))
        .expect("bind");
    listener.listen(4).expect("listen");
    let address = listener.local_addr().expect("an address");
    (channel, listener, address)
}

/// An identifier that knows its way to `address`.
pub(crate) fn resolve(verbs: &Arc<Verbs>, address: SocketAddr) -> (EventChannel, CmId) {
    let channel = EventChannel::new(verbs).expect("event channel");
    let id = CmId::new(&channel).expect("identifier");
    id.resolve_addr(None, address, PATIENCE)
        .expect("resolve address");
    expect(&channel, EventKind::AddressResolved);
    id.resolve_route(PATIENCE).expect("resolve route");
    expect(&channel, EventKind::RouteResolved);
    (channel, id)
}

pub(crate) type Tune = fn(&mut QueuePairConfig);

/// Domain, queue and queue pair on an identifier.
pub(crate) fn equip(
    id: &CmId,
    tune: Tune,
) -> (Arc<ProtectionDomain>, Arc<CompletionQueue>, QueuePair) {
    let context = id.context().expect("a context");
    let domain = ProtectionDomain::allocate(&context).expect("domain");
    let queue = CompletionQueue::new(&context, 128, None).expect("completion queue");
    let mut config = QueuePairConfig::new(&domain, &queue, &queue);
    config.max_send_sge = 4;
    tune(&mut config);
    let queue_pair = QueuePair::create_on(id, &config).expect("queue pair");
    (domain, queue, queue_pair)
}

/// Two ends of a connection over the connection manager: the client's, the server's.
pub(crate) fn connect(tune: Tune) -> (End, End) {
    let verbs = verbs();
    let (server_channel, _listener, address) = listen(&verbs);
    let (client_channel, client_id) = resolve(&verbs, address);
    let (domain, queue, queue_pair) = equip(&client_id, tune);
    let parameters = ConnectionParameters {
        private_data: b"from client",
        ..Default::default()
    };
    client_id.connect(&parameters).expect("connect");

    let request = expect(&server_channel, EventKind::ConnectRequest);
    let (server_domain, server_queue, server_queue_pair) = equip(&request.id, tune);
    let parameters = ConnectionParameters {
        private_data: b"from server",
        ..Default::default()
    };
    request.id.accept(&parameters).expect("accept");
    let established = expect(&client_channel, EventKind::Established);
    expect(&server_channel, EventKind::Established);

    let client = End {
        queue_pair,
        queue,
        domain,
        id: client_id,
        channel: client_channel,
        greeting: established.private_data.as_bytes().to_vec(),
    };
    let server = End {
        queue_pair: server_queue_pair,
        queue: server_queue,
        domain: server_domain,
        greeting: request.private_data.as_bytes().to_vec(),
        id: request.id,
        channel: server_channel,
    };
    (client, server)
}

pub(crate) fn connect_all() -> (End, End) {
    connect(|config| config.required = config.operations)
}
