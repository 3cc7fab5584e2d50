//! What a connection has posted and the unit has not answered yet, and in which order the unit may carry it out.
//!
//! The order is the weakest that the fabric's contract allows: writes of a connection land in any order and word by word; a flush waits for
//! the writes before it, an atomic write for everything before it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use pmu_fabric::{AccessWindow, Completion, CompletionStatus, Op};
use pmu_pmem::LocalMemory;

use crate::medium::Words;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Write,
    Read,
    Flush,
    AtomicWrite(u64),
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Write => "WRITE",
            Self::Read => "READ",
            Self::Flush => "FLUSH",
            Self::AtomicWrite(_) => "ATOMIC WRITE",
        }
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Waiting,
    /// These words have landed, the others have not.
    Torn(Words),
    Done,
}

/// One operation within one window.
#[derive(Clone, Debug)]
pub(crate) struct WireOp {
    pub(crate) kind: Kind,
    pub(crate) address: u64,
    pub(crate) length: u64,
    pub(crate) key: u32,
    /// Which of the connection's memories, and where in it.
    pub(crate) memory: usize,
    pub(crate) local: u64,
    pub(crate) phase: Phase,
    /// The bytes to write, once the initiator may be gone.
    pub(crate) payload: Option<Box<[u8]>>,
}

impl WireOp {
    /// The piece of `op` at `address`, `done` bytes behind its beginning, within a window.
    pub(crate) fn new(
        op: &Op,
        window: &AccessWindow,
        address: u64,
        length: u64,
        done: u64,
    ) -> Self {
        let (kind, local) = match *op {
            Op::Write { local, .. } => (Kind::Write, Some(local)),
            Op::Read { local, .. } => (Kind::Read, Some(local)),
            Op::Flush { .. } => (Kind::Flush, None),
            Op::AtomicWrite { value, .. } => (Kind::AtomicWrite(value), None),
        };
        let (memory, local) = local.map_or((0, 0), |local| {
            (local.memory.index() as usize, local.offset as u64 + done)
        });
        Self {
            kind,
            address,
            length,
            key: if kind == Kind::Flush {
                window.flush_key
            } else {
                window.access_key
            },
            memory,
            local,
            phase: Phase::Waiting,
            payload: None,
        }
    }

    pub(crate) const fn range(&self) -> Range<u64> {
        self.address..self.address + self.length
    }

    fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Whether this operation must wait for an earlier one that is not done.
    fn waits_for(&self, earlier: &Self) -> bool {
        let touches = self.address < earlier.address + earlier.length
            && earlier.address < self.address + self.length;
        let changes = matches!(earlier.kind, Kind::Write | Kind::AtomicWrite(_));
        match self.kind {
            Kind::Write | Kind::Read => changes && touches,
            Kind::Flush => changes && touches,
            Kind::AtomicWrite(_) => true,
        }
    }
}

/// A chain under way.
#[derive(Debug)]
pub(crate) struct WireChain {
    pub(crate) tag: u64,
    pub(crate) ops: Vec<WireOp>,
    /// How it ended, once it has.
    pub(crate) status: Option<CompletionStatus>,
}

/// The unit's half of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Far {
    /// Carries out what comes.
    Serving,
    /// Refused an operation, and carries out nothing any more.
    Refused,
    /// Gone: closed, or the unit lost its power.
    Gone,
}

/// One data connection, both ends and what is between them.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) process: usize,
    pub(crate) unit: usize,
    pub(crate) session: u64,
    pub(crate) far: Far,
    /// How the initiator knows it ended.
    pub(crate) dead: Option<CompletionStatus>,
    /// The initiator has closed it; the unit may not know.
    pub(crate) closed: bool,
    pub(crate) memories: Vec<Arc<LocalMemory>>,
    pub(crate) queue: VecDeque<WireChain>,
    pub(crate) completions: VecDeque<Completion>,
    /// How often its turn comes, against others.
    pub(crate) weight: u64,
}

impl Wire {
    pub(crate) fn new(process: usize, unit: usize, session: u64, weight: u64) -> Self {
        Self {
            process,
            unit,
            session,
            far: Far::Serving,
            dead: None,
            closed: false,
            memories: Vec::new(),
            queue: VecDeque::new(),
            completions: VecDeque::new(),
            weight,
        }
    }

    /// Chains posted and not reaped.
    pub(crate) fn in_flight(&self) -> usize {
        let queued = if self.dead.is_some() {
            0
        } else {
            self.queue.len()
        };
        queued + self.completions.len()
    }

    /// Operations that may be carried out now, as (chain, operation).
    pub(crate) fn ready(&self, into: &mut Vec<(usize, usize)>) {
        into.clear();
        let mut earlier: Vec<&WireOp> = Vec::new();
        for (chain_index, chain) in self.queue.iter().enumerate() {
            if chain.status.is_some() {
                continue;
            }
            for (index, op) in chain.ops.iter().enumerate() {
                if op.is_done() {
                    continue;
                }
                // Within a chain the order of the list holds, but that writes may land in any order.
                let behind = &chain.ops[..index];
                let held = match op.kind {
                    Kind::Write | Kind::Read => false,
                    Kind::Flush | Kind::AtomicWrite(_) => behind.iter().any(|op| !op.is_done()),
                };
                if !held && !earlier.iter().any(|before| op.waits_for(before)) {
                    into.push((chain_index, index));
                }
                earlier.push(op);
            }
        }
    }

    /// Whether the unit has something to do.
    pub(crate) fn has_work(&self) -> bool {
        self.far == Far::Serving && self.queue.iter().any(|chain| chain.status.is_none())
    }

    /// Whether a completion can go to the initiator.
    pub(crate) fn has_answer(&self) -> bool {
        !self.closed
            && self.dead.is_none()
            && self
                .queue
                .front()
                .is_some_and(|chain| chain.status.is_some())
    }

    /// Ends every chain that is not ended, beginning with the one at `from`, which ends so; the others count as not executed.
    pub(crate) fn refuse(&mut self, from: usize, status: CompletionStatus) {
        self.far = Far::Refused;
        for (index, chain) in self.queue.iter_mut().enumerate() {
            if index == from {
                chain.status = Some(status);
            } else if index > from {
                chain.status = Some(CompletionStatus::Flushed);
            }
        }
    }

    /// The initiator learns that the connection is lost: everything not answered ends so.
    pub(crate) fn lose(&mut self) {
        if self.dead.is_some() {
            return;
        }
        self.dead = Some(CompletionStatus::ConnectionLost);
        for chain in &self.queue {
            self.completions.push_back(Completion {
                tag: chain.tag,
                status: CompletionStatus::ConnectionLost,
            });
        }
    }

    /// What is under way goes on without the initiator: its bytes are what they are now. Chains behind the first `keep` never left.
    pub(crate) fn detach(&mut self, keep: usize) {
        self.queue.truncate(keep);
        for op in self.queue.iter_mut().flat_map(|chain| &mut chain.ops) {
            if op.kind == Kind::Write && !op.is_done() && op.payload.is_none() {
                let mut bytes = vec![0; op.length as usize];
                if self.memories[op.memory]
                    .read_at(op.local, &mut bytes)
                    .is_ok()
                {
                    op.payload = Some(bytes.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: Kind, address: u64, length: u64) -> WireOp {
        WireOp {
            kind,
            address,
            length,
            key: 1,
            memory: 0,
            local: 0,
            phase: Phase::Waiting,
            payload: None,
        }
    }

    fn wire(chains: Vec<Vec<WireOp>>) -> Wire {
        let mut wire = Wire::new(0, 0, 1, 1);
        for (tag, ops) in chains.into_iter().enumerate() {
            wire.queue.push_back(WireChain {
                tag: tag as u64,
                ops,
                status: None,
            });
        }
        wire
    }

    #[test]
    fn b05_an_atomic_write_waits_for_everything_posted_before_it() {
        let mut wire = wire(vec![
            vec![op(Kind::Write, 100, 50), op(Kind::Flush, 100, 50)],
            vec![
                op(Kind::Write, 300, 8),
                op(Kind::AtomicWrite(7), 0, 8),
                op(Kind::Flush, 0, 8),
            ],
        ]);
        let mut ready = Vec::new();
        wire.ready(&mut ready);
        assert_eq!(ready, [(0, 0), (1, 0)]);
        wire.queue[1].ops[0].phase = Phase::Done;
        wire.ready(&mut ready);
        assert_eq!(ready, [(0, 0)], "the flush before it has not returned");
        wire.queue[0].ops[0].phase = Phase::Done;
        wire.queue[0].ops[1].phase = Phase::Done;
        wire.ready(&mut ready);
        assert_eq!(ready, [(1, 1)]);
    }

    #[test]
    fn b05_writes_to_one_place_land_in_the_order_of_posting() {
        let wire = wire(vec![
            vec![op(Kind::Write, 100, 50)],
            vec![op(Kind::Write, 149, 8)],
        ]);
        let mut ready = Vec::new();
        wire.ready(&mut ready);
        assert_eq!(ready, [(0, 0)]);
    }
}
