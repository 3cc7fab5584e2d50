//! A simulated data connection, as the real client drives it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pmu_fabric::connection::WindowMap;
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, Connection, Counters,
    FabricError, Limits, LocalSlice, Op, PersistenceMethod, Provider,
};
use pmu_pmem::LocalMemory;

use crate::state::Wait;
use crate::wire::{Far, WireChain, WireOp};
use crate::world::World;

/// See the module.
pub(crate) struct SimConnection {
    world: Arc<World>,
    process: usize,
    wire: usize,
    limits: Limits,
    windows: WindowMap,
    memories: Vec<Arc<LocalMemory>>,
    counters: Counters,
    nothing: Arc<File>,
}

impl SimConnection {
    pub(crate) fn new(world: Arc<World>, process: usize, wire: usize, limits: Limits) -> Self {
        let nothing = Arc::clone(&world.nothing);
        Self {
            world,
            process,
            wire,
            limits,
            windows: WindowMap::default(),
            memories: Vec::new(),
            counters: Counters::default(),
            nothing,
        }
    }

    fn check_memory(&self, slice: &LocalSlice) -> Result<(), FabricError> {
        let memory = self.memories.get(slice.memory.index() as usize);
        let capacity = memory.map_or(0, |memory| memory.len() as usize);
        match slice.offset.checked_add(slice.length) {
            Some(end) if end <= capacity => Ok(()),
            _ => Err(FabricError::OutsideMemory {
                offset: slice.offset,
                length: slice.length,
                capacity,
            }),
        }
    }

    fn wire_ops(&self, chain: &Chain) -> Result<Vec<WireOp>, FabricError> {
        let mut ops = Vec::with_capacity(chain.ops().len());
        for op in chain.ops() {
            let (address, length) = match op {
                Op::Write { remote, local } | Op::Read { remote, local } => {
                    self.check_memory(local)?;
                    (*remote, local.length as u64)
                }
                Op::Flush { remote, length } => (*remote, *length),
                Op::AtomicWrite { remote, .. } => (*remote, 8),
            };
            self.windows
                .split(address, length, |window, at, length, done| {
                    ops.push(WireOp::new(op, window, at, length, done));
                })?;
        }
        if ops.len() > self.limits.ops_per_chain_max {
            return Err(FabricError::InvalidChain {
                reason: "more operations than fit",
            });
        }
        Ok(ops)
    }
}

impl Connection for SimConnection {
    fn provider(&self) -> Provider {
        Provider::Verbs
    }

    fn persistence(&self) -> PersistenceMethod {
        PersistenceMethod::NativeFlush
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn set_windows(&mut self, windows: &[AccessWindow]) -> Result<(), FabricError> {
        self.windows.set(windows)
    }

    fn attach(&mut self, memory: Arc<LocalMemory>) -> Result<AttachedMemory, FabricError> {
        self.world.state().wires[self.wire]
            .memories
            .push(Arc::clone(&memory));
        self.memories.push(memory);
        Ok(AttachedMemory::new(self.memories.len() as u32 - 1))
    }

    fn post(&mut self, tag: u64, chain: &Chain) -> Result<(), FabricError> {
        chain.validate()?;
        let ops = self.wire_ops(chain)?;
        let mut state = self.world.state();
        let wire = &mut state.wires[self.wire];
        if let Some(status) = wire.dead {
            return Err(FabricError::Dead(status));
        }
        if wire.in_flight() >= self.limits.chains_in_flight_max {
            return Err(FabricError::QueueFull);
        }
        self.counters.chains += 1;
        self.counters.work_requests += ops.len() as u64;
        let status = (wire.far == Far::Refused).then_some(CompletionStatus::Flushed);
        wire.queue.push_back(WireChain { tag, ops, status });
        note!(
            state,
            "{} posts chain {tag} to {}: {}",
            state.who(self.wire),
            state.units[state.wires[self.wire].unit].name,
            words(chain)
        );
        let yields = state.random.chance(1, 2);
        drop(state);
        if yields {
            self.world.yield_turn(self.process);
        }
        Ok(())
    }

    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError> {
        let mut state = self.world.state();
        let waiting = &mut state.wires[self.wire].completions;
        let count = waiting.len().min(completions.len());
        for (slot, completion) in completions.iter_mut().zip(waiting.drain(..count)) {
            *slot = completion;
        }
        self.counters.completions += count as u64;
        Ok(count)
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), FabricError> {
        self.world
            .wait(self.process, Wait::Wire(self.wire), Some(timeout));
        Ok(())
    }

    fn arm(&mut self) -> Result<bool, FabricError> {
        Ok(self.world.state().has_come(Wait::Wire(self.wire)))
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.nothing.as_fd()
    }

    fn dead(&self) -> Option<CompletionStatus> {
        self.world.state().wires[self.wire].dead
    }

    fn in_flight(&self) -> usize {
        self.world.state().wires[self.wire].in_flight()
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn now(&self) -> Instant {
        self.world.now(self.process)
    }

    fn date(&self) -> SystemTime {
        self.world.date(self.process)
    }

    fn pause(&self, how_long: Duration) {
        self.world.wait(self.process, Wait::Time, Some(how_long));
    }
}

impl Drop for SimConnection {
    fn drop(&mut self) {
        self.world.state().close_wire(self.wire);
    }
}

/// A chain in a line of the trace.
fn words(chain: &Chain) -> String {
    let mut text = String::new();
    for op in chain.ops() {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(match op {
            Op::Write { .. } => "WRITE",
            Op::Read { .. } => "READ",
            Op::Flush { .. } => "FLUSH",
            Op::AtomicWrite { .. } => "ATOMIC WRITE",
        });
    }
    text
}
