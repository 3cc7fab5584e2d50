//! The unit's thread of one connection: receive chains, check, copy, commit, answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pmu_pmem::SendPiece;

use super::socket::Socket;
use super::wire::{
    Answer, HEADER_BYTES, OP_BYTES, OPS_MAX, OpKind, Request, WireError, WireOp, decode_ops,
};
use crate::error::CompletionStatus;
use crate::group_commit::{Batch, Committers, GroupCommit};
use crate::persistence::PersistenceMethod;
use crate::protection::{Intent, WindowGate};

/// Room for heads and for the payload of small chains.
const INBOX_BYTES: usize = 256 << 10;
/// A write longer than this is received straight into the pool once the inbox is empty.
const DIRECT_BYTES_MIN: u64 = 32 << 10;
/// Bytes moved while the gate is held open.
const STEP_BYTES_MAX: u64 = 1 << 20;
/// Chains committed together at most, from one connection.
const BATCH_CHAINS_MAX: usize = 1024;
/// Written bytes after which write-back is started, so that the flush that follows finds less to do.
const WRITE_BACK_BYTES_MIN: u64 = 1 << 20;

/// What the unit's other threads see of a connection.
pub(super) struct Shared {
    pub(super) socket: Socket,
    pub(super) gate: Arc<WindowGate>,
    pub(super) closing: AtomicBool,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("closed by the peer")]
    Closed,
    #[error("closed by the unit")]
    Closing,
    #[error("protocol error: {0}")]
    Wire(#[from] WireError),
    #[error("remote access error answered")]
    RemoteAccess,
    #[error("the medium failed")]
    PersistFailed,
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

pub(super) struct Service {
    shared: Arc<Shared>,
    committers: Arc<Committers>,
    committer: Option<Arc<GroupCommit>>,
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    ops: Vec<WireOp>,
    batch: Option<Batch>,
    outbox: Vec<u8>,
    next_serial: u64,
}

impl Service {
    pub(super) fn new(
        shared: Arc<Shared>,
        committers: Arc<Committers>,
        method: PersistenceMethod,
    ) -> Self {
        let batch = Some(Batch::new(Arc::clone(&shared.gate), method));
        Self {
            shared,
            committers,
            committer: None,
            inbox: vec![0; INBOX_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            ops: Vec::with_capacity(OPS_MAX),
            batch,
            outbox: Vec::with_capacity(64 << 10),
            next_serial: 0,
        }
    }

    /// Serves until the connection ends.
    pub(super) fn run(mut self) -> End {
        let end = loop {
            if let Err(end) = self.serve_one() {
                break end;
            }
        };
        // What was received completely before the end is still carried out and answered, as a NIC would.
        let _ = self.commit().and_then(|()| self.send_outbox());
        if matches!(end, End::RemoteAccess | End::PersistFailed) {
            self.shared.socket.linger_for_peer();
        }
        self.shared.gate.invalidate();
        self.shared.socket.shut_down();
        end
    }

    fn serve_one(&mut self) -> Result<(), End> {
        self.need(HEADER_BYTES)?;
        let Some((head, _)) = self.inbox[self.start..self.end].split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(End::Wire(WireError::Bounds));
        };
        let request = Request::decode(head)?;
        if request.serial != self.next_serial {
            return Err(End::Wire(WireError::Order));
        }
        self.next_serial += 1;
        self.start += HEADER_BYTES;
        let ops_bytes = usize::from(request.ops) * OP_BYTES;
        self.need(ops_bytes)?;
        decode_ops(
            &request,
            &self.inbox[self.start..self.start + ops_bytes],
            &mut self.ops,
        )?;
        self.start += ops_bytes;

        if self.ops[0].kind == OpKind::Read {
            return self.answer_reads(request.serial);
        }
        let writes = self
            .ops
            .iter()
            .take_while(|op| op.kind == OpKind::Write)
            .count();
        for index in 0..writes {
            let op = self.ops[index];
            if self.receive_write(op)? == CompletionStatus::RemoteAccess {
                return self.refuse(request.serial);
            }
        }
        let Some(batch) = &mut self.batch else {
            return Err(End::Closing);
        };
        batch.push(request.serial, &self.ops[writes..]);
        if batch.chains.len() >= BATCH_CHAINS_MAX {
            self.commit()
        } else {
            Ok(())
        }
    }

    /// Makes sure that `count` bytes are in the inbox. Whenever that means to wait, first finishes what was received.
    fn need(&mut self, count: usize) -> Result<(), End> {
        while self.end - self.start < count {
            self.inbox.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.shared.socket.receive(&mut self.inbox[self.end..]) {
                Ok(0) => return Err(End::Closed),
                Ok(received) => self.end += received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_bytes()?,
                Err(error) => return Err(End::Io(error)),
            }
        }
        Ok(())
    }

    fn wait_for_bytes(&mut self) -> Result<(), End> {
        self.commit()?;
        self.send_outbox()?;
        if self.shared.closing.load(Ordering::Acquire) {
            return Err(End::Closing);
        }
        self.shared.socket.wait(true, false, None)?;
        Ok(())
    }

    /// Copies one write's payload into the pool, in steps; the gate is held open for one step at a time.
    fn receive_write(&mut self, op: WireOp) -> Result<CompletionStatus, End> {
        let (mut done, mut written_back) = (0u64, 0u64);
        while done < op.length {
            let there = (self.end - self.start) as u64;
            let left = op.length - done;
            if there == 0 && left < DIRECT_BYTES_MIN {
                self.need(1)?;
                continue;
            }
            let step = left.min(STEP_BYTES_MAX);
            let gate = Arc::clone(&self.shared.gate);
            let open = gate.enter();
            let Some((pool, offset)) = open.check(op.key, op.address + done, step, Intent::Write)
            else {
                return Ok(CompletionStatus::RemoteAccess);
            };
            let op_offset = offset - done;
            if there > 0 {
                let count = there.min(step);
                let bytes = &self.inbox[self.start..self.start + count as usize];
                pool.write_at(offset, bytes).map_err(io::Error::other)?;
                self.start += count as usize;
                done += count;
            } else {
                match self.shared.socket.receive_into(pool, offset, step as usize) {
                    Ok(0) => return Err(End::Closed),
                    Ok(count) => done += count as u64,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        drop(open);
                        self.wait_for_bytes()?;
                        continue;
                    }
                    Err(error) => return Err(End::Io(error)),
                }
            }
            if done - written_back >= WRITE_BACK_BYTES_MIN {
                pool.start_write_back(op_offset + written_back..op_offset + done);
                written_back = done;
            }
        }
        Ok(CompletionStatus::Success)
    }

    fn answer_reads(&mut self, serial: u64) -> Result<(), End> {
        // In order: what was posted before is answered before.
        self.commit()?;
        let ops = std::mem::take(&mut self.ops);
        let result = self.answer_reads_of(serial, &ops);
        self.ops = ops;
        result
    }

    fn answer_reads_of(&mut self, serial: u64, ops: &[WireOp]) -> Result<(), End> {
        let gate = Arc::clone(&self.shared.gate);
        let all_allowed = {
            let open = gate.enter();
            ops.iter().all(|op| {
                open.check(op.key, op.address, op.length, Intent::Read)
                    .is_some()
            })
        };
        if !all_allowed {
            return self.refuse(serial);
        }
        let payload = ops.iter().map(|op| op.length).sum();
        let answer = Answer {
            status: CompletionStatus::Success,
            serial,
            payload,
        };
        self.outbox.extend_from_slice(&answer.encode());
        for op in ops {
            let mut done = 0;
            while done < op.length {
                let step = (op.length - done).min(STEP_BYTES_MAX);
                let open = gate.enter();
                // The answer's head has gone out: a window invalidated meanwhile can only end the connection.
                let Some((pool, offset)) =
                    open.check(op.key, op.address + done, step, Intent::Read)
                else {
                    return Err(End::Closing);
                };
                let pieces = [
                    SendPiece::Bytes(&self.outbox),
                    SendPiece::Memory(pool, offset, step as usize),
                ];
                let sent = match self.shared.socket.send_pieces(&pieces) {
                    Ok(sent) => sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        drop(open);
                        self.shared.socket.wait(false, true, None)?;
                        continue;
                    }
                    Err(error) => return Err(End::Io(error)),
                };
                let from_outbox = sent.min(self.outbox.len());
                self.outbox.drain(..from_outbox);
                done += (sent - from_outbox) as u64;
            }
        }
        Ok(())
    }

    /// Answers with a remote access error, and ends the connection.
    fn refuse(&mut self, serial: u64) -> Result<(), End> {
        self.commit()?;
        let answer = Answer {
            status: CompletionStatus::RemoteAccess,
            serial,
            payload: 0,
        };
        self.outbox.extend_from_slice(&answer.encode());
        self.send_outbox()?;
        Err(End::RemoteAccess)
    }

    /// Carries out the flushes and atomic writes of the chains at hand, together, and queues the answers.
    fn commit(&mut self) -> Result<(), End> {
        let Some(mut batch) = self.batch.take() else {
            return Ok(());
        };
        if batch.chains.is_empty() {
            self.batch = Some(batch);
            return Ok(());
        }
        if !batch.ops.is_empty() {
            batch = match self.find_committer(&batch) {
                Some(committer) => committer.commit(batch),
                None => {
                    // No window allows the first operation: every chain fails on its own check.
                    batch.chains[0].status = CompletionStatus::RemoteAccess;
                    batch
                }
            };
        }
        let mut end = Ok(());
        for chain in &batch.chains {
            let status = if end.is_err() {
                CompletionStatus::Flushed
            } else {
                chain.status
            };
            self.outbox.extend_from_slice(
                &Answer {
                    status,
                    serial: chain.serial,
                    payload: 0,
                }
                .encode(),
            );
            match status {
                CompletionStatus::RemoteAccess => end = Err(End::RemoteAccess),
                CompletionStatus::PersistFailed => end = Err(End::PersistFailed),
                _ => {}
            }
        }
        batch.clear();
        self.batch = Some(batch);
        if end.is_err() {
            self.send_outbox()?;
        }
        end
    }

    /// All windows of a connection lie in one pool: the first window found names it.
    fn find_committer(&mut self, batch: &Batch) -> Option<Arc<GroupCommit>> {
        if self.committer.is_none() {
            let op = batch.ops.first()?;
            let intent = if op.kind == OpKind::Flush {
                Intent::Flush
            } else {
                Intent::Write
            };
            let open = self.shared.gate.enter();
            let (pool, _) = open.check(op.key, op.address, op.length, intent)?;
            self.committer = Some(self.committers.for_pool(pool));
        }
        self.committer.clone()
    }

    fn send_outbox(&mut self) -> Result<(), End> {
        let mut sent = 0;
        while sent < self.outbox.len() {
            match self
                .shared
                .socket
                .send_pieces(&[SendPiece::Bytes(&self.outbox[sent..])])
            {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.shared.closing.load(Ordering::Acquire) {
                        return Err(End::Closing);
                    }
                    self.shared.socket.wait(false, true, None)?;
                }
                Err(error) => return Err(End::Io(error)),
            }
        }
        self.outbox.clear();
        Ok(())
    }
}
