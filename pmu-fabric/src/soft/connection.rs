//! The initiator's side of a soft connection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_pmem::{Lender, LocalMemory, SendPiece};

use super::socket::{Socket, receive_exactly};
use super::wire::{
    Answer, CHAINS_IN_FLIGHT_MAX, HEADER_BYTES, Hello, OP_BYTES, OPS_MAX, OpKind,
    PAYLOAD_BYTES_MAX, Request, WELCOME_BYTES, Welcome, WireOp,
};
use crate::chain::{Chain, LocalSlice, Op};
use crate::connection::{
    AccessWindow, AttachedMemory, Completion, Connection, Counters, Limits, WindowMap,
};
use crate::error::{CompletionStatus, FabricError};
use crate::persistence::{PersistenceMethod, Provider};
use crate::unit::ConnectToken;

/// Bytes read at once when heads of answers are expected.
const RECEIVE_BYTES: usize = 64 << 10;
/// Pieces handed to one send system call.
const PIECES_MAX: usize = 60;
/// Payload of at least this length is sent without a copy.
const LENT_BYTES_MIN: usize = 32 << 10;

/// What waits to be sent: heads lie in `heads`, payload stays in the caller's memory.
#[derive(Debug, Clone, Copy)]
enum Segment {
    Head { length: usize },
    Memory(LocalSlice),
}

impl Segment {
    fn is_long(&self) -> bool {
        matches!(self, Self::Memory(slice) if slice.length >= LENT_BYTES_MIN)
    }
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    tag: u64,
    reads: u32,
    read_bytes: u64,
}

/// A soft connection; see [`Connection`] for the contract.
pub struct SoftConnection {
    socket: Socket,
    provider: Provider,
    persistence: PersistenceMethod,
    limits: Limits,
    windows: WindowMap,
    memories: Vec<Arc<LocalMemory>>,
    segments: VecDeque<Segment>,
    /// Sends long payload without a copy; none where there can't be one.
    lender: Option<Lender>,
    heads: Vec<u8>,
    heads_sent: usize,
    wire_ops: Vec<(WireOp, Option<LocalSlice>)>,
    in_flight: VecDeque<InFlight>,
    reads: VecDeque<LocalSlice>,
    next_serial: u64,
    next_answer: u64,
    inbox: Box<[u8]>,
    inbox_start: usize,
    inbox_end: usize,
    answer: Option<Answer>,
    dead: Option<CompletionStatus>,
    counters: Counters,
}

/// Connects to a unit's soft listener and proves with `token` who connects. Blocks at most `timeout`.
///
/// # Errors
/// [`FabricError::Io`]: nobody listens there, or the connection broke. [`FabricError::Refused`]: the token is not (or no longer) known.
/// [`FabricError::Protocol`]: something else listens there.
pub fn connect(
    provider: Provider,
    address: &str,
    token: ConnectToken,
    persistence: PersistenceMethod,
    timeout: Duration,
) -> Result<SoftConnection, FabricError> {
    let deadline = Instant::now() + timeout;
    let socket = match provider {
        Provider::SoftTcp => Socket::connect_tcp(address, timeout)?,
        Provider::SoftUnix => Socket::connect_unix(address)?,
        Provider::Verbs => {
            return Err(FabricError::Unavailable {
                provider,
                reason: "not a soft provider".into(),
            });
        }
    };
    socket
        .send_all(&Hello { token }.encode(), deadline)
        .map_err(FabricError::io("send the connect token"))?;
    let mut bytes = [0; WELCOME_BYTES];
    receive_exactly(&socket, &mut bytes, deadline)
        .map_err(FabricError::io("wait for the unit's welcome"))?;
    let welcome =
        Welcome::decode(&bytes).map_err(|error| FabricError::Protocol(error.to_string()))?;
    if !welcome.accepted {
        return Err(FabricError::Refused {
            reason: "the connect token is unknown, used or too old".into(),
        });
    }
    let limits = Limits {
        chains_in_flight_max: CHAINS_IN_FLIGHT_MAX.min(welcome.chains_in_flight_max as usize),
        ops_per_chain_max: OPS_MAX.min(welcome.ops_max as usize),
    };
    Ok(SoftConnection::new(socket, provider, persistence, limits))
}

impl SoftConnection {
    fn new(
        socket: Socket,
        provider: Provider,
        persistence: PersistenceMethod,
        limits: Limits,
    ) -> Self {
        Self {
            socket,
            provider,
            persistence,
            limits,
            windows: WindowMap::default(),
            memories: Vec::with_capacity(16),
            segments: VecDeque::with_capacity(limits.chains_in_flight_max * 2),
            lender: match provider {
                Provider::SoftUnix => Lender::new().ok(),
                _ => None,
            },
            heads: Vec::with_capacity(64 << 10),
            heads_sent: 0,
            wire_ops: Vec::with_capacity(limits.ops_per_chain_max),
            in_flight: VecDeque::with_capacity(limits.chains_in_flight_max),
            reads: VecDeque::with_capacity(limits.chains_in_flight_max),
            next_serial: 0,
            next_answer: 0,
            inbox: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            inbox_start: 0,
            inbox_end: 0,
            answer: None,
            dead: None,
            counters: Counters::default(),
        }
    }

    /// Translates a chain into wire operations, split at window borders, in `self.wire_ops`.
    fn translate(&mut self, chain: &Chain) -> Result<(), FabricError> {
        self.wire_ops.clear();
        let wire_ops = &mut self.wire_ops;
        for op in chain.ops() {
            match *op {
                Op::Write { remote, local } | Op::Read { remote, local } => {
                    let memory = self.memories.get(local.memory.0 as usize);
                    let capacity = memory.map_or(0, |memory| memory.len() as usize);
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
                    let kind = if matches!(op, Op::Write { .. }) {
                        OpKind::Write
                    } else {
                        OpKind::Read
                    };
                    self.windows.split(
                        remote,
                        local.length as u64,
                        |window, address, length, done| {
                            let wire = WireOp {
                                kind,
                                key: window.access_key,
                                address,
                                length,
                                value: 0,
                            };
                            let piece = LocalSlice {
                                offset: local.offset + done as usize,
                                length: length as usize,
                                ..local
                            };
                            wire_ops.push((wire, Some(piece)));
                        },
                    )?;
                }
                Op::Flush { remote, length } => {
                    self.windows
                        .split(remote, length, |window, address, length, _| {
                            let wire = WireOp {
                                kind: OpKind::Flush,
                                key: window.flush_key,
                                address,
                                length,
                                value: 0,
                            };
                            wire_ops.push((wire, None));
                        })?;
                }
                Op::AtomicWrite { remote, value } => {
                    self.windows
                        .split(remote, 8, |window, address, length, _| {
                            let wire = WireOp {
                                kind: OpKind::AtomicWrite,
                                key: window.access_key,
                                address,
                                length,
                                value,
                            };
                            wire_ops.push((wire, None));
                        })?;
                }
            }
        }
        if self.wire_ops.len() > self.limits.ops_per_chain_max {
            return Err(FabricError::InvalidChain {
                reason: "more operations than the connection's limit",
            });
        }
        Ok(())
    }

    fn enqueue(&mut self, tag: u64) {
        let (mut written, mut reads, mut read_bytes) = (0, 0, 0);
        let head_length = HEADER_BYTES + self.wire_ops.len() * OP_BYTES;
        let head_at = self.heads.len();
        self.heads.resize(head_at + HEADER_BYTES, 0);
        self.segments.push_back(Segment::Head {
            length: head_length,
        });
        for (wire, local) in &self.wire_ops {
            self.heads.extend_from_slice(&wire.encode());
            match (wire.kind, local) {
                (OpKind::Write, Some(slice)) => {
                    written += wire.length;
                    self.segments.push_back(Segment::Memory(*slice));
                }
                (OpKind::Read, Some(slice)) => {
                    reads += 1;
                    read_bytes += wire.length;
                    self.reads.push_back(*slice);
                }
                _ => {}
            }
        }
        let request = Request {
            ops: self.wire_ops.len() as u16,
            serial: self.next_serial,
            payload: written,
        };
        self.heads[head_at..head_at + HEADER_BYTES].copy_from_slice(&request.encode());
        self.in_flight.push_back(InFlight {
            tag,
            reads,
            read_bytes,
        });
        self.next_serial += 1;
        self.counters.chains += 1;
        self.counters.work_requests += self.wire_ops.len() as u64;
        self.counters.bytes_written += written;
        self.counters.bytes_read += read_bytes;
    }

    /// Sends what the socket takes now.
    fn push_out(&mut self) -> io::Result<()> {
        while !self.segments.is_empty() {
            let sent = if self.is_lending() {
                self.lend_out()
            } else {
                self.copy_out()
            };
            let sent = match sent {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.counters.doorbells += 1;
            self.consume(sent);
        }
        Ok(())
    }

    /// Whether what comes next goes without a copy: a long piece, or the rest of what was lent.
    fn is_lending(&self) -> bool {
        let Some(lender) = &self.lender else {
            return false;
        };
        lender.is_busy() || self.segments.front().is_some_and(Segment::is_long)
    }

    /// Payload at the front, without a copy: the caller leaves it alone until its chain has completed.
    fn lend_out(&mut self) -> io::Result<usize> {
        let mut pieces = [SendPiece::Bytes(&[]); PIECES_MAX];
        let mut count = 0;
        for (piece, segment) in pieces.iter_mut().zip(&self.segments) {
            let Segment::Memory(slice) = *segment else {
                break;
            };
            let memory = &self.memories[slice.memory.0 as usize];
            *piece = SendPiece::Memory(memory, slice.offset as u64, slice.length);
            count += 1;
        }
        let Some(lender) = &mut self.lender else {
            return Ok(0);
        };
        match lender.send(self.socket.as_fd(), &pieces[..count]) {
            // Memory that can't be lent, such as a device's: it is copied from now on.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock && !lender.is_busy() => {
                self.lender = None;
                Ok(0)
            }
            result => result,
        }
    }

    fn copy_out(&self) -> io::Result<usize> {
        let mut pieces = [SendPiece::Bytes(&[]); PIECES_MAX];
        let mut count = 0;
        let mut head_at = self.heads_sent;
        for (piece, segment) in pieces.iter_mut().zip(&self.segments) {
            *piece = match *segment {
                Segment::Head { length } => {
                    head_at += length;
                    SendPiece::Bytes(&self.heads[head_at - length..head_at])
                }
                Segment::Memory(_) if segment.is_long() && self.lender.is_some() => break,
                Segment::Memory(slice) => SendPiece::Memory(
                    &self.memories[slice.memory.0 as usize],
                    slice.offset as u64,
                    slice.length,
                ),
            };
            count += 1;
        }
        self.socket.send_pieces(&pieces[..count])
    }

    fn consume(&mut self, mut sent: usize) {
        while sent > 0 {
            let Some(front) = self.segments.front_mut() else {
                return;
            };
            let length = match front {
                Segment::Head { length } => {
                    self.heads_sent += sent.min(*length);
                    length
                }
                Segment::Memory(slice) => {
                    slice.offset += sent.min(slice.length);
                    &mut slice.length
                }
            };
            let part = sent.min(*length);
            *length -= part;
            sent -= part;
            if *length == 0 {
                self.segments.pop_front();
            }
        }
        if self.heads_sent == self.heads.len() {
            self.heads.clear();
            self.heads_sent = 0;
        } else if self.heads_sent > 32 << 10 {
            self.heads.drain(..self.heads_sent);
            self.heads_sent = 0;
        }
    }

    /// Reads the next answer completely, or as far as there are bytes. True when an answer is complete.
    fn pull_answer(&mut self) -> Result<Option<Answer>, Broken> {
        let answer = match self.answer {
            Some(answer) => answer,
            None => {
                let Some(answer) = self.pull_head()? else {
                    return Ok(None);
                };
                self.check_answer(&answer)?;
                self.answer = Some(answer);
                answer
            }
        };
        if answer.payload > 0 && !self.pull_payload()? {
            return Ok(None);
        }
        self.answer = None;
        Ok(Some(answer))
    }

    fn pull_head(&mut self) -> Result<Option<Answer>, Broken> {
        loop {
            let there = &self.inbox[self.inbox_start..self.inbox_end];
            if let Some((head, _)) = there.split_first_chunk::<HEADER_BYTES>() {
                let answer = Answer::decode(head).map_err(|_| Broken)?;
                self.inbox_start += HEADER_BYTES;
                return Ok(Some(answer));
            }
            let length = there.len();
            self.inbox.copy_within(self.inbox_start..self.inbox_end, 0);
            (self.inbox_start, self.inbox_end) = (0, length);
            // With reads in flight, payload follows: read little, so that most of it goes straight to its place.
            let room = if self.reads.is_empty() {
                self.inbox.len()
            } else {
                length + 4096
            };
            match self.socket.receive(&mut self.inbox[length..room]) {
                Ok(0) => return Err(Broken),
                Ok(count) => self.inbox_end += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Broken),
            }
        }
    }

    fn check_answer(&self, answer: &Answer) -> Result<(), Broken> {
        let Some(expected) = self.in_flight.front() else {
            return Err(Broken);
        };
        let payload = if answer.status == CompletionStatus::Success {
            expected.read_bytes
        } else {
            0
        };
        if answer.serial == self.next_answer && answer.payload == payload {
            Ok(())
        } else {
            Err(Broken)
        }
    }

    /// Moves payload of the answer at hand into the reads at the front; true when all of it is there.
    fn pull_payload(&mut self) -> Result<bool, Broken> {
        let Some(head) = self.in_flight.front_mut() else {
            return Err(Broken);
        };
        while head.reads > 0 {
            let Some(slice) = self.reads.front_mut() else {
                return Err(Broken);
            };
            let memory = &self.memories[slice.memory.0 as usize];
            let there = self.inbox_end - self.inbox_start;
            let count = if there > 0 {
                let count = there.min(slice.length);
                memory
                    .write_at(
                        slice.offset as u64,
                        &self.inbox[self.inbox_start..self.inbox_start + count],
                    )
                    .map_err(|_| Broken)?;
                self.inbox_start += count;
                count
            } else {
                match self
                    .socket
                    .receive_into(memory, slice.offset as u64, slice.length)
                {
                    Ok(0) => return Err(Broken),
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(_) => return Err(Broken),
                }
            };
            slice.offset += count;
            slice.length -= count;
            if slice.length == 0 {
                self.reads.pop_front();
                head.reads -= 1;
            }
        }
        Ok(true)
    }

    fn die(&mut self, status: CompletionStatus) {
        if self.dead.is_none() {
            self.dead = Some(status);
            self.segments.clear();
            self.reads.clear();
            self.answer = None;
            self.socket.shut_down();
        }
    }

    /// Completes what was in flight when the connection died: the first chain with the cause unless it was told already.
    fn flush_dead(&mut self, completions: &mut [Completion]) -> usize {
        let mut count = 0;
        while count < completions.len()
            && let Some(head) = self.in_flight.pop_front()
        {
            let status = match self.dead {
                Some(CompletionStatus::ConnectionLost) => CompletionStatus::ConnectionLost,
                _ => CompletionStatus::Flushed,
            };
            completions[count] = Completion {
                tag: head.tag,
                status,
            };
            count += 1;
        }
        count
    }
}

/// The connection broke, or the peer talks nonsense: both end it.
struct Broken;

impl Connection for SoftConnection {
    fn provider(&self) -> Provider {
        self.provider
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
        self.memories.push(memory);
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
        if chain.payload_bytes() > PAYLOAD_BYTES_MAX {
            return Err(FabricError::InvalidChain {
                reason: "more than 1 GiB in one chain",
            });
        }
        self.translate(chain)?;
        self.enqueue(tag);
        if self.push_out().is_err() {
            self.die(CompletionStatus::ConnectionLost);
        }
        Ok(())
    }

    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError> {
        let mut count = 0;
        // A unit that ends the connection says why before it closes: read the answers even if sending has failed.
        let send_failed = self.dead.is_none() && self.push_out().is_err();
        while self.dead.is_none() && count < completions.len() && !self.in_flight.is_empty() {
            match self.pull_answer() {
                Ok(Some(answer)) => {
                    let Some(head) = self.in_flight.pop_front() else {
                        break;
                    };
                    self.next_answer += 1;
                    self.counters.completions += 1;
                    completions[count] = Completion {
                        tag: head.tag,
                        status: answer.status,
                    };
                    count += 1;
                    if answer.status != CompletionStatus::Success {
                        self.die(answer.status);
                    }
                }
                Ok(None) => break,
                Err(Broken) => self.die(CompletionStatus::ConnectionLost),
            }
        }
        if send_failed && count == 0 {
            self.die(CompletionStatus::ConnectionLost);
        }
        if self.dead.is_some() {
            count += self.flush_dead(&mut completions[count..]);
        }
        Ok(count)
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), FabricError> {
        if self.arm()? {
            return Ok(());
        }
        self.socket
            .wait(true, !self.segments.is_empty(), Some(timeout))
            .map(|_| ())
            .map_err(FabricError::io("wait for the socket"))?;
        if self.in_flight.is_empty() && self.dead.is_none() && self.socket.peer_is_gone() {
            self.die(CompletionStatus::ConnectionLost);
        }
        Ok(())
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        let head_is_there = self.inbox_end - self.inbox_start >= HEADER_BYTES;
        Ok(self.dead.is_some() || (head_is_there && self.answer.is_none()))
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
