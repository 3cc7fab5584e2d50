//! Group commit: the flushes of chains that arrive together are done together.
//!
//! One connection leads at a time. Whoever finds nobody leading takes everything that was handed in, by any connection, and carries out
//! its flushes and atomic writes phase by phase; whoever comes while one leads hands in and sleeps until its batch is done.
//! So the rate of durable appends is bound by bytes and not by one fdatasync each, and an append alone costs no hand-over.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use pmu_pmem::PoolMemory;

use crate::error::{CompletionStatus, FabricError};
use crate::persistence::PersistenceMethod;
use crate::protection::{Intent, WindowGate};
use crate::soft::wire::{OpKind, WireOp};

/// The flushes and atomic writes at the end of one chain whose writes have been done.
#[derive(Debug, Clone)]
pub(crate) struct TailWork {
    pub(crate) serial: u64,
    /// Where its operations lie in the batch.
    pub(crate) ops: Range<usize>,
    pub(crate) status: CompletionStatus,
}

/// Chains of one connection, in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) gate: Option<Arc<WindowGate>>,
    pub(crate) volatile: bool,
    pub(crate) ops: Vec<WireOp>,
    pub(crate) chains: Vec<TailWork>,
}

impl Batch {
    pub(crate) fn new(gate: Arc<WindowGate>, method: PersistenceMethod) -> Self {
        Self {
            gate: Some(gate),
            volatile: method == PersistenceMethod::Volatile,
            ops: Vec::with_capacity(1024),
            chains: Vec::with_capacity(256),
        }
    }

    pub(crate) fn push(&mut self, serial: u64, tail: &[WireOp]) {
        let start = self.ops.len();
        self.ops.extend_from_slice(tail);
        self.chains.push(TailWork {
            serial,
            ops: start..self.ops.len(),
            status: CompletionStatus::Success,
        });
    }

    pub(crate) fn clear(&mut self) {
        self.ops.clear();
        self.chains.clear();
    }
}

#[derive(Debug, Default)]
struct Shared {
    leading: bool,
    next_ticket: u64,
    waiting: Vec<(u64, Batch)>,
    done: Vec<(u64, Batch)>,
}

/// The group commit of one pool.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    pool: Arc<PoolMemory>,
    shared: Mutex<Shared>,
    changed: Condvar,
    /// The leader's working space; only the leader takes it.
    ranges: Mutex<Vec<Range<u64>>>,
}

impl GroupCommit {
    pub(crate) fn new(pool: Arc<PoolMemory>) -> Self {
        Self {
            pool,
            shared: Mutex::default(),
            changed: Condvar::new(),
            ranges: Mutex::default(),
        }
    }

    /// Carries the batch out and gives it back with each chain's status. Blocks until it is done.
    pub(crate) fn commit(&self, batch: Batch) -> Batch {
        let mut shared = self.shared.lock();
        let ticket = shared.next_ticket;
        shared.next_ticket += 1;
        shared.waiting.push((ticket, batch));
        loop {
            if let Some(at) = shared.done.iter().position(|(done, _)| *done == ticket) {
                return shared.done.swap_remove(at).1;
            }
            if shared.leading {
                self.changed.wait(&mut shared);
                continue;
            }
            shared.leading = true;
            let mut group = std::mem::take(&mut shared.waiting);
            drop(shared);
            self.carry_out(&mut group);
            shared = self.shared.lock();
            shared.leading = false;
            shared.done.append(&mut group);
            if shared.waiting.is_empty() {
                shared.waiting = group;
            }
            self.changed.notify_all();
        }
    }

    /// Alternates: all the flushes that stand next in any chain, as one; then all the atomic writes up to the next flush.
    fn carry_out(&self, group: &mut [(u64, Batch)]) {
        let mut ranges = self.ranges.lock();
        loop {
            ranges.clear();
            for (_, batch) in group.iter_mut() {
                collect_flushes(batch, &mut ranges);
            }
            let persisted = ranges.is_empty() || self.pool.persist(&ranges).is_ok();
            let mut more = false;
            for (_, batch) in group.iter_mut() {
                more |= publish(batch, persisted);
            }
            if !more {
                return;
            }
        }
    }
}

/// Takes the flushes that stand next in each chain out of the batch and into `ranges`.
fn collect_flushes(batch: &mut Batch, ranges: &mut Vec<Range<u64>>) {
    let Some(gate) = &batch.gate else { return };
    let open = gate.enter();
    let mut failed = false;
    for chain in &mut batch.chains {
        if failed || chain.status != CompletionStatus::Success {
            chain.status = if failed {
                CompletionStatus::Flushed
            } else {
                chain.status
            };
            failed = true;
            continue;
        }
        while let Some(op) = batch.ops[chain.ops.clone()]
            .first()
            .filter(|op| op.kind == OpKind::Flush)
        {
            match open.check(op.key, op.address, op.length, Intent::Flush) {
                Some((_, offset)) if !batch.volatile => {
                    add_range(ranges, offset..offset + op.length);
                }
                Some(_) => {}
                None => {
                    chain.status = CompletionStatus::RemoteAccess;
                    failed = true;
                    break;
                }
            }
            chain.ops.start += 1;
        }
    }
}

/// Bytes between two ranges that are flushed along rather than told apart: a page is written whole anyway.
const GAP_BYTES_MAX: u64 = 4096;

/// Adds a range, as part of the last one where they nearly touch: records of a log follow each other.
fn add_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.start <= range.start && range.start <= last.end + GAP_BYTES_MAX => {
            last.end = last.end.max(range.end);
        }
        _ => ranges.push(range),
    }
}

/// Carries out the atomic writes that stand next; true if any chain still has work.
fn publish(batch: &mut Batch, persisted: bool) -> bool {
    let Some(gate) = &batch.gate else {
        return false;
    };
    let open = gate.enter();
    let (mut more, mut failed) = (false, false);
    for chain in &mut batch.chains {
        if !persisted && chain.status == CompletionStatus::Success {
            chain.status = CompletionStatus::PersistFailed;
        }
        if failed || chain.status != CompletionStatus::Success {
            chain.status = if failed {
                CompletionStatus::Flushed
            } else {
                chain.status
            };
            failed = true;
            continue;
        }
        while let Some(op) = batch.ops[chain.ops.clone()]
            .first()
            .filter(|op| op.kind == OpKind::AtomicWrite)
        {
            let stored = open
                .check(op.key, op.address, op.length, Intent::Write)
                .is_some_and(|(pool, offset)| pool.store_u64_release(offset, op.value).is_ok());
            if !stored {
                chain.status = CompletionStatus::RemoteAccess;
                failed = true;
                break;
            }
            chain.ops.start += 1;
        }
        more |= chain.status == CompletionStatus::Success && !chain.ops.is_empty();
    }
    more
}

/// The group commits of a unit, one for each pool.
#[derive(Debug, Default)]
pub(crate) struct Committers {
    known: Mutex<Vec<(Arc<PoolMemory>, Arc<GroupCommit>)>>,
}

impl Committers {
    /// The one of this pool; made on first use.
    pub(crate) fn for_pool(&self, pool: &Arc<PoolMemory>) -> Arc<GroupCommit> {
        let mut known = self.known.lock();
        if let Some((_, committer)) = known.iter().find(|(other, _)| Arc::ptr_eq(other, pool)) {
            return Arc::clone(committer);
        }
        let committer = Arc::new(GroupCommit::new(Arc::clone(pool)));
        known.push((Arc::clone(pool), Arc::clone(&committer)));
        committer
    }
}

/// A random key that is not zero.
pub(crate) fn random_key() -> Result<u32, FabricError> {
    let mut bytes = [0; 4];
    loop {
        getrandom::fill(&mut bytes).map_err(|error| FabricError::Io {
            context: "draw an access key",
            source: error.into(),
        })?;
        let key = u32::from_le_bytes(bytes);
        if key != 0 {
            return Ok(key);
        }
    }
}
