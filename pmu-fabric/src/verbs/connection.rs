//! The initiator's side of a verbs connection.

use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pmu_pmem::LocalMemory;
use pmu_verbs::{
    Access, CmId, CompletionChannel, CompletionQueue, ConnectionParameters, EventChannel,
    EventKind, MemoryRegion, Operations, QueuePair, QueuePairConfig, Status, VerbsError,
    WorkCompletion, WrFlags,
};

use super::device::{Device, chain_status};
use super::memory::Local;
use super::message::{
    MESSAGE_BYTES_MAX, MESSAGE_OPS_MAX, REPLY_BYTES, decode_reply, encode_head, encode_hello,
};
use super::request::{Attached, INLINE_BYTES_MAX, Posting, Request};
use super::unit::ACK_TIMEOUT_EXPONENT;
use super::{
    CHAINS_IN_FLIGHT_MAX, COMPLETIONS_AT_ONCE, REQUEST_BYTES_MAX, REQUESTS_PER_CHAIN_MAX,
    SEND_REQUESTS_MAX, library,
};
use crate::chain::{Chain, LocalSlice, Op};
use crate::connection::{
    AccessWindow, AttachedMemory, Completion, Connection, Counters, Limits, WindowMap,
};
use crate::error::{CompletionStatus, FabricError};
use crate::persistence::{PersistenceMethod, Provider};
use crate::soft::wire::{OP_BYTES, OpKind, WireOp};
use crate::unit::ConnectToken;

/// How long `wait` polls before it sleeps: longer than a round trip on a real network, short beside a context switch.
const SPIN: Duration = Duration::from_micros(30);
/// What every device should allow.
const INLINE_BYTES_FEW: u32 = 64;
/// Marks receive requests among the numbers of work requests.
const RECEIVE: u64 = 1 << 63;

#[derive(Debug, Clone, Copy)]
struct InFlight {
    serial: u64,
    tag: u64,
    requests: u32,
    sent: bool,
    reply_due: bool,
    status: CompletionStatus,
}

/// A verbs connection; see [`Connection`] for the contract.
pub struct VerbsConnection {
    // Dropped in this order: the queue pair before what it uses.
    queue_pair: QueuePair,
    id: CmId,
    events: EventChannel,
    queue: Arc<CompletionQueue>,
    channel: Arc<CompletionChannel>,
    device: Device,
    persistence: PersistenceMethod,
    limits: Limits,
    windows: WindowMap,
    memories: Vec<Attached>,
    scratch: AttachedMemory,
    messages: Option<Messages>,
    requests: Vec<Request>,
    in_flight: VecDeque<InFlight>,
    requests_in_flight: u32,
    requests_max: u32,
    next_serial: u64,
    stash: [WorkCompletion; COMPLETIONS_AT_ONCE],
    stash_range: std::ops::Range<usize>,
    dead: Option<CompletionStatus>,
    counters: Counters,
}

/// Local memory of the server-persist messages: a slot for each chain in flight, and receive buffers for the answers.
struct Messages {
    memory: Arc<LocalMemory>,
    attached: AttachedMemory,
    receive_offset: usize,
}

/// Connects to a unit's verbs listener and proves with `token` who connects. Blocks at most `timeout` for each step of the set-up.
///
/// # Errors
/// [`FabricError::Unavailable`]: no libraries, no device. [`FabricError::UnfitPersistence`]: this side's device lacks FLUSH or ATOMIC WRITE.
/// [`FabricError::Refused`]: the token is not (or no longer) known, or nobody listens. [`FabricError::Verbs`].
pub fn connect(
    address: &str,
    token: ConnectToken,
    persistence: PersistenceMethod,
    timeout: Duration,
) -> Result<VerbsConnection, FabricError> {
    let verbs = library()?;
    let destination = resolve(address)?;
    let events = EventChannel::new(&verbs)?;
    let id = CmId::new(&events)?;
    id.resolve_addr(None, destination, timeout)?;
    expect_event(
        &events,
        EventKind::AddressResolved,
        "the address of the unit",
        timeout,
    )?;
    id.resolve_route(timeout)?;
    expect_event(
        &events,
        EventKind::RouteResolved,
        "the route to the unit",
        timeout,
    )?;
    let device = Device::of(id.context()?)?;
    let channel = CompletionChannel::new(&device.context)?;
    let depth = SEND_REQUESTS_MAX.min(device.attributes.max_qp_wr());
    let receives = if persistence == PersistenceMethod::ServerPersist {
        CHAINS_IN_FLIGHT_MAX as u32
    } else {
        1
    };
    let queue = CompletionQueue::new(
        &device.context,
        depth + receives,
        Some(Arc::clone(&channel)),
    )?;
    let config = QueuePairConfig {
        max_send_wr: depth,
        max_recv_wr: receives,
        required: required(persistence),
        max_inline_data: INLINE_BYTES_MAX as u32,
        ..QueuePairConfig::new(&device.domain, &queue, &queue)
    };
    let queue_pair = create_queue_pair(&id, config).map_err(|error| match error {
        VerbsError::Unsupported { .. } if persistence == PersistenceMethod::NativeFlush => {
            let reason =
                "this side's RDMA device or its library has no FLUSH and ATOMIC WRITE".into();
            FabricError::UnfitPersistence {
                method: persistence,
                reason,
            }
        }
        other => other.into(),
    })?;
    let connection = VerbsConnection::new(
        queue_pair,
        id,
        events,
        queue,
        channel,
        device,
        persistence,
        depth,
    )?;
    let hello = encode_hello(token, persistence);
    connection.id.set_ack_timeout(ACK_TIMEOUT_EXPONENT)?;
    connection.id.connect(&ConnectionParameters {
        private_data: &hello,
        ..ConnectionParameters::default()
    })?;
    expect_event(
        &connection.events,
        EventKind::Established,
        "the unit's answer",
        timeout,
    )?;
    Ok(connection)
}

fn required(method: PersistenceMethod) -> Operations {
    let plain = Operations::WRITE | Operations::READ;
    match method {
        PersistenceMethod::NativeFlush => plain | Operations::FLUSH | Operations::ATOMIC_WRITE,
        PersistenceMethod::ServerPersist => plain | Operations::SEND,
        _ => plain,
    }
}

/// With as much inline as wanted, or where the device doesn't have that, with little.
fn create_queue_pair(id: &CmId, mut config: QueuePairConfig) -> Result<QueuePair, VerbsError> {
    match QueuePair::create_on(id, &config) {
        Err(VerbsError::Call { .. }) if config.max_inline_data > INLINE_BYTES_FEW => {
            config.max_inline_data = INLINE_BYTES_FEW;
            QueuePair::create_on(id, &config)
        }
        created => created,
    }
}

fn resolve(address: &str) -> Result<SocketAddr, FabricError> {
    address
        .to_socket_addrs()
        .map_err(FabricError::io("resolve the unit's data address"))?
        .next()
        .ok_or_else(|| FabricError::Protocol(format!("{address} has no address")))
}

fn expect_event(
    events: &EventChannel,
    wanted: EventKind,
    what: &'static str,
    timeout: Duration,
) -> Result<(), FabricError> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FabricError::TimedOut {
                what,
                waited_ms: timeout.as_millis() as u64,
            });
        }
        let Some(event) = events.wait_event(Some(left))? else {
            continue;
        };
        return match event.kind {
            kind if kind == wanted => Ok(()),
            EventKind::Rejected if event.status == 28 => Err(FabricError::Refused {
                reason: "the connect token is unknown, used or too old".into(),
            }),
            EventKind::Rejected => Err(FabricError::Refused {
                reason: "nobody listens there".into(),
            }),
            kind => Err(FabricError::Refused {
                reason: format!(
                    "{kind:?} (status {}) while waiting for {what}",
                    event.status
                ),
            }),
        };
    }
}

impl VerbsConnection {
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one value, made in order"
    )]
    fn new(
        queue_pair: QueuePair,
        id: CmId,
        events: EventChannel,
        queue: Arc<CompletionQueue>,
        channel: Arc<CompletionChannel>,
        device: Device,
        persistence: PersistenceMethod,
        requests_max: u32,
    ) -> Result<Self, FabricError> {
        let limits = Limits {
            chains_in_flight_max: CHAINS_IN_FLIGHT_MAX.min(requests_max as usize),
            ops_per_chain_max: REQUESTS_PER_CHAIN_MAX.min(requests_max as usize),
        };
        let mut connection = Self {
            queue_pair,
            id,
            events,
            queue,
            channel,
            device,
            persistence,
            limits,
            windows: WindowMap::default(),
            memories: Vec::with_capacity(16),
            scratch: AttachedMemory(0),
            messages: None,
            requests: Vec::with_capacity(REQUESTS_PER_CHAIN_MAX + 1),
            in_flight: VecDeque::with_capacity(CHAINS_IN_FLIGHT_MAX),
            requests_in_flight: 0,
            requests_max,
            next_serial: 0,
            stash: [WorkCompletion::default(); COMPLETIONS_AT_ONCE],
            stash_range: 0..0,
            dead: None,
            counters: Counters::default(),
        };
        connection.scratch = connection.attach(Arc::new(LocalMemory::allocate(4096)?))?;
        if persistence == PersistenceMethod::ServerPersist {
            connection.prepare_messages()?;
        }
        Ok(connection)
    }

    fn prepare_messages(&mut self) -> Result<(), FabricError> {
        let receive_offset = CHAINS_IN_FLIGHT_MAX * MESSAGE_BYTES_MAX;
        let memory = Arc::new(LocalMemory::allocate(
            receive_offset + CHAINS_IN_FLIGHT_MAX * REPLY_BYTES,
        )?);
        let attached = self.attach(Arc::clone(&memory))?;
        self.messages = Some(Messages {
            memory,
            attached,
            receive_offset,
        });
        for index in 0..CHAINS_IN_FLIGHT_MAX {
            self.post_receive(index)?;
        }
        Ok(())
    }

    fn post_receive(&mut self, index: usize) -> Result<(), FabricError> {
        let Some(messages) = &self.messages else {
            return Ok(());
        };
        let region = self.memories[messages.attached.0 as usize].region;
        let offset = messages.receive_offset + index * REPLY_BYTES;
        let sge = region.sge(offset as u64, REPLY_BYTES as u32)?;
        Ok(self.queue_pair.post_recv(RECEIVE | index as u64, &[sge])?)
    }

    /// Translates a chain into work requests, split at window borders and at the largest request, in `self.requests`.
    fn translate(&mut self, chain: &Chain) -> Result<bool, FabricError> {
        self.requests.clear();
        let by_message = self.persistence == PersistenceMethod::ServerPersist
            && chain
                .ops()
                .iter()
                .any(|op| matches!(op, Op::Flush { .. } | Op::AtomicWrite { .. }));
        for op in chain.ops() {
            match *op {
                Op::Write { remote, local } => self.translate_transfer(remote, local, true)?,
                Op::Read { remote, local } => self.translate_transfer(remote, local, false)?,
                _ if by_message => {}
                Op::Flush { remote, length } => self.translate_flush(remote, length)?,
                Op::AtomicWrite { remote, value } => self.translate_atomic_write(remote, value)?,
            }
        }
        if by_message {
            self.translate_message(chain)?;
        }
        if self.requests.is_empty() {
            // A flush alone on volatile memory: an empty write completes the chain.
            self.translate_nothing(chain)?;
        }
        if self.requests.len() > self.limits.ops_per_chain_max {
            return Err(FabricError::InvalidChain {
                reason: "more work requests than the connection's limit",
            });
        }
        Ok(by_message)
    }

    fn translate_transfer(
        &mut self,
        remote: u64,
        local: LocalSlice,
        write: bool,
    ) -> Result<(), FabricError> {
        let capacity = self
            .memories
            .get(local.memory.0 as usize)
            .map_or(0, |attached| attached.memory.len() as usize);
        if local
            .offset
            .checked_add(local.length)
            .is_none_or(|end| end > capacity)
        {
            return Err(FabricError::OutsideMemory {
                offset: local.offset,
                length: local.length,
                capacity,
            });
        }
        let requests = &mut self.requests;
        self.windows.split(
            remote,
            local.length as u64,
            |window, address, length, done| {
                let mut at = 0;
                while at < length && requests.len() <= REQUESTS_PER_CHAIN_MAX {
                    let piece = (length - at).min(REQUEST_BYTES_MAX);
                    let slice = LocalSlice {
                        offset: local.offset + (done + at) as usize,
                        length: piece as usize,
                        ..local
                    };
                    let (key, address) = (window.access_key, address + at);
                    requests.push(if write {
                        Request::Write {
                            key,
                            address,
                            local: slice,
                        }
                    } else {
                        Request::Read {
                            key,
                            address,
                            local: slice,
                        }
                    });
                    at += piece;
                }
            },
        )
    }

    fn translate_flush(&mut self, remote: u64, length: u64) -> Result<(), FabricError> {
        let (requests, method, scratch) = (&mut self.requests, self.persistence, self.scratch);
        self.windows
            .split(remote, length, |window, address, length, _| match method {
                PersistenceMethod::NativeFlush => {
                    let mut at = 0;
                    while at < length {
                        let piece = (length - at).min(1 << 30);
                        requests.push(Request::Flush {
                            key: window.flush_key,
                            address: address + at,
                            length: piece as u32,
                        });
                        at += piece;
                    }
                }
                PersistenceMethod::ReadAfterWrite => requests.push(Request::Read {
                    key: window.access_key,
                    address: address + length - 1,
                    local: LocalSlice {
                        memory: scratch,
                        offset: 0,
                        length: 1,
                    },
                }),
                PersistenceMethod::ServerPersist | PersistenceMethod::Volatile => {}
            })
    }

    fn translate_atomic_write(&mut self, remote: u64, value: u64) -> Result<(), FabricError> {
        // A WRITE may overtake a READ that was posted before it, unless it waits.
        let fence = self.persistence == PersistenceMethod::ReadAfterWrite;
        let requests = &mut self.requests;
        self.windows.split(remote, 8, |window, address, _, _| {
            requests.push(Request::AtomicWrite {
                key: window.access_key,
                address,
                value,
                fence,
            });
        })
    }

    /// Puts the chain's flushes and atomic writes into the message slot of its serial.
    fn translate_message(&mut self, chain: &Chain) -> Result<(), FabricError> {
        let Some(messages) = &self.messages else {
            return Ok(());
        };
        let slot = (self.next_serial % CHAINS_IN_FLIGHT_MAX as u64) as usize;
        let mut ops = [0u8; MESSAGE_OPS_MAX * OP_BYTES];
        let mut count = 0;
        let mut add = |op: WireOp| {
            if count < MESSAGE_OPS_MAX {
                ops[count * OP_BYTES..(count + 1) * OP_BYTES].copy_from_slice(&op.encode());
            }
            count += 1;
        };
        for op in chain.ops() {
            match *op {
                Op::Flush { remote, length } => {
                    self.windows
                        .split(remote, length, |window, address, length, _| {
                            add(WireOp {
                                kind: OpKind::Flush,
                                key: window.flush_key,
                                address,
                                length,
                                value: 0,
                            });
                        })?;
                }
                Op::AtomicWrite { remote, value } => {
                    self.windows
                        .split(remote, 8, |window, address, length, _| {
                            add(WireOp {
                                kind: OpKind::AtomicWrite,
                                key: window.access_key,
                                address,
                                length,
                                value,
                            });
                        })?;
                }
                _ => {}
            }
        }
        if count > MESSAGE_OPS_MAX {
            return Err(FabricError::InvalidChain {
                reason: "more flushes and atomic writes than one message holds",
            });
        }
        let at = (slot * MESSAGE_BYTES_MAX) as u64;
        let head = encode_head(self.next_serial, count);
        let inside = |_| FabricError::Protocol("message slot outside its memory".into());
        messages.memory.write_at(at, &head).map_err(inside)?;
        messages
            .memory
            .write_at(at + head.len() as u64, &ops[..count * OP_BYTES])
            .map_err(inside)?;
        self.requests.push(Request::Message {
            slot,
            length: head.len() + count * OP_BYTES,
        });
        Ok(())
    }

    fn translate_nothing(&mut self, chain: &Chain) -> Result<(), FabricError> {
        let Some(Op::Flush { remote, .. }) = chain.ops().first().copied() else {
            return Ok(());
        };
        let requests = &mut self.requests;
        let local = LocalSlice {
            memory: self.scratch,
            offset: 0,
            length: 0,
        };
        self.windows.split(remote, 1, |window, address, _, _| {
            requests.push(Request::Write {
                key: window.access_key,
                address,
                local,
            });
        })
    }

    fn post_requests(&mut self, serial: u64) -> Result<(), VerbsError> {
        let posting = Posting {
            serial,
            memories: &self.memories,
            inline_max: (self.queue_pair.inline_max() as usize).min(INLINE_BYTES_MAX),
            message_region: self
                .messages
                .as_ref()
                .map(|messages| self.memories[messages.attached.0 as usize].region),
            atomic_writes: self
                .queue_pair
                .accepted()
                .contains(Operations::ATOMIC_WRITE),
        };
        let last = self.requests.len() - 1;
        let mut batch = self.queue_pair.start();
        for (index, request) in self.requests.iter().enumerate() {
            let flags = if index == last {
                WrFlags::SIGNALED
            } else {
                WrFlags::empty()
            };
            posting.post(&mut batch, flags, request)?;
        }
        batch.post()
    }

    /// Takes completions from the queue into the stash; true if there are any.
    fn fill_stash(&mut self) -> Result<bool, FabricError> {
        if self.stash_range.is_empty() {
            let count = self.queue.poll(&mut self.stash)?;
            self.stash_range = 0..count;
            self.counters.completions += count as u64;
        }
        Ok(!self.stash_range.is_empty())
    }

    fn take_in(&mut self, work: &WorkCompletion) -> Result<(), FabricError> {
        if work.wr_id() & RECEIVE != 0 {
            return self.take_in_reply(work);
        }
        let serial = work.wr_id();
        if work.status().is_success() {
            if let Some(chain) = self
                .in_flight
                .iter_mut()
                .find(|chain| chain.serial == serial)
            {
                chain.sent = true;
            }
            return Ok(());
        }
        self.fail(serial, work.status());
        Ok(())
    }

    fn take_in_reply(&mut self, work: &WorkCompletion) -> Result<(), FabricError> {
        if !work.status().is_success() {
            return Ok(());
        }
        let index = (work.wr_id() & !RECEIVE) as usize;
        let mut bytes = [0; REPLY_BYTES];
        if let Some(messages) = &self.messages {
            let at = (messages.receive_offset + index * REPLY_BYTES) as u64;
            messages
                .memory
                .read_at(at, &mut bytes)
                .map_err(|error| FabricError::Protocol(error.to_string()))?;
        }
        self.post_receive(index)?;
        let (serial, status) =
            decode_reply(&bytes).map_err(|error| FabricError::Protocol(error.to_string()))?;
        if let Some(chain) = self
            .in_flight
            .iter_mut()
            .find(|chain| chain.serial == serial)
        {
            chain.reply_due = false;
            chain.status = status;
            if status != CompletionStatus::Success {
                self.dead.get_or_insert(status);
                let _ = self.queue_pair.to_error();
            }
        }
        Ok(())
    }

    /// A work request failed: its chain failed so, and what is behind it is flushed.
    fn fail(&mut self, serial: u64, status: Status) {
        if self.dead.is_some() {
            return;
        }
        let cause = chain_status(status);
        self.dead = Some(cause);
        for chain in &mut self.in_flight {
            if chain.serial == serial {
                chain.status = cause;
            } else if chain.serial > serial {
                chain.status = CompletionStatus::Flushed;
            }
        }
        let _ = self.queue_pair.to_error();
    }

    fn watch_connection(&mut self) -> Result<(), FabricError> {
        while let Some(event) = self.events.next_event()? {
            if matches!(
                event.kind,
                EventKind::Disconnected | EventKind::DeviceRemoval
            ) && self.dead.is_none()
            {
                self.dead = Some(CompletionStatus::ConnectionLost);
                let _ = self.id.disconnect();
                let _ = self.queue_pair.to_error();
            }
        }
        Ok(())
    }

    /// Gives out chains at the front that are over. On a dead connection all are, and none that wasn't complete succeeds.
    fn reap(&mut self, completions: &mut [Completion]) -> usize {
        let mut count = 0;
        while count < completions.len()
            && let Some(front) = self.in_flight.front()
        {
            let complete = front.sent && !front.reply_due;
            let status = match (complete, self.dead) {
                (true, _) => front.status,
                (false, Some(CompletionStatus::ConnectionLost))
                    if front.status == CompletionStatus::Success =>
                {
                    CompletionStatus::ConnectionLost
                }
                (false, Some(_)) if front.status == CompletionStatus::Success => {
                    CompletionStatus::Flushed
                }
                (false, Some(_)) => front.status,
                (false, None) => break,
            };
            completions[count] = Completion {
                tag: front.tag,
                status,
            };
            self.requests_in_flight -= front.requests;
            self.in_flight.pop_front();
            count += 1;
        }
        count
    }
}

impl Connection for VerbsConnection {
    fn provider(&self) -> Provider {
        Provider::Verbs
    }

    fn persistence(&self) -> PersistenceMethod {
        self.persistence
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn set_windows(&mut self, windows: &[AccessWindow]) -> Result<(), FabricError> {
        self.windows.set(windows)
    }

    fn attach(&mut self, memory: Arc<LocalMemory>) -> Result<AttachedMemory, FabricError> {
        let length = memory.len() as usize;
        let registered = MemoryRegion::register(
            &self.device.domain,
            Arc::new(Local(Arc::clone(&memory))),
            0,
            length,
            None,
            Access::LOCAL_WRITE,
        )?;
        let region = self.queue_pair.attach(&registered)?;
        self.memories.push(Attached { region, memory });
        Ok(AttachedMemory((self.memories.len() - 1) as u32))
    }

    fn post(&mut self, tag: u64, chain: &Chain) -> Result<(), FabricError> {
        if let Some(status) = self.dead {
            return Err(FabricError::Dead(status));
        }
        if self.in_flight.len() >= self.limits.chains_in_flight_max {
            return Err(FabricError::QueueFull);
        }
        chain.validate()?;
        let by_message = self.translate(chain)?;
        let requests = self.requests.len() as u32;
        if self.requests_in_flight + requests > self.requests_max {
            return Err(FabricError::QueueFull);
        }
        let serial = self.next_serial;
        self.post_requests(serial)?;
        self.next_serial += 1;
        self.requests_in_flight += requests;
        self.in_flight.push_back(InFlight {
            serial,
            tag,
            requests,
            sent: false,
            reply_due: by_message,
            status: CompletionStatus::Success,
        });
        self.counters.chains += 1;
        self.counters.doorbells += 1;
        self.counters.work_requests += u64::from(requests);
        let is_read = matches!(chain.ops().first(), Some(Op::Read { .. }));
        let counter = if is_read {
            &mut self.counters.bytes_read
        } else {
            &mut self.counters.bytes_written
        };
        *counter += chain.payload_bytes();
        Ok(())
    }

    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError> {
        while self.fill_stash()? {
            while let Some(index) = self.stash_range.next() {
                let work = self.stash[index];
                self.take_in(&work)?;
            }
        }
        Ok(self.reap(completions))
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), FabricError> {
        let spin_until = Instant::now() + SPIN.min(timeout);
        while Instant::now() < spin_until {
            if self.dead.is_some() || self.fill_stash()? {
                return Ok(());
            }
        }
        if self.arm()? {
            return Ok(());
        }
        let timeout =
            PollTimeout::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        let mut files = [
            PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut files, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                return Err(FabricError::Io {
                    context: "wait for completions",
                    source: error.into(),
                });
            }
        }
        while self.channel.next_event()?.is_some() {}
        self.fill_stash()?;
        self.watch_connection()
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        self.queue.request_notification(false)?;
        let there = self.fill_stash()?;
        if !there {
            self.watch_connection()?;
        }
        Ok(there || self.dead.is_some())
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn dead(&self) -> Option<CompletionStatus> {
        self.dead
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for VerbsConnection {
    fn drop(&mut self) {
        // Says goodbye, so that the unit needn't find out; it may be gone already.
        let _ = self.id.disconnect();
    }
}
