//! The unit's fabric: carries out one operation, or a part of one.

use pmu_fabric::CompletionStatus;
use pmu_proto::v1::SessionRole;

use crate::medium::Words;
use crate::state::State;
use crate::wire::{Kind, Phase, WireOp};

impl State {
    /// Carries out one of the operations that a connection may do now.
    pub(crate) fn execute(&mut self, wire: usize) {
        let mut ready = std::mem::take(&mut self.scratch);
        self.wires[wire].ready(&mut ready);
        let chosen = match ready.len() {
            0 => None,
            _ if self.random.chance(2, 3) => ready.first().copied(),
            count => Some(ready[self.random.below(count as u64) as usize]),
        };
        self.scratch = ready;
        if let Some((chain, op)) = chosen {
            self.execute_op(wire, chain, op);
        }
    }

    fn execute_op(&mut self, wire: usize, chain: usize, index: usize) {
        let unit = self.wires[wire].unit;
        let session = self.wires[wire].session;
        let op = &self.wires[wire].queue[chain].ops[index];
        let (kind, range, key, phase) = (op.kind, op.range(), op.key, op.phase);
        let tag = self.wires[wire].queue[chain].tag;
        let Some(found) = self.units[unit].window(session, key, kind, &range) else {
            note!(
                self,
                "{} refuses {} of {}, chain {tag}",
                self.units[unit].name,
                kind.name(),
                self.who(wire)
            );
            self.totals.refused_operations += 1;
            return self.wires[wire].refuse(chain, CompletionStatus::RemoteAccess);
        };
        let stale = found.role == SessionRole::Primary && found.epoch < self.units[unit].fenced;
        if stale && matches!(kind, Kind::Write | Kind::AtomicWrite(_)) {
            let epoch = found.epoch;
            self.violate(format!("a write of epoch {epoch} landed behind a fence"));
        }
        let offset = range.start - self.units[unit].info.address.get();
        let done = self.carry_out(wire, chain, index, offset);
        note!(
            self,
            "{} {} {} of {}, chain {tag}: {}+{}{}",
            self.units[unit].name,
            if done == Phase::Done {
                "does"
            } else {
                "does a part of"
            },
            kind.name(),
            self.who(wire),
            crate::place::place(&self.units[unit].info, offset),
            range.end - range.start,
            if phase == Phase::Waiting {
                ""
            } else {
                " (the rest)"
            },
        );
        self.last_done = (kind, crate::place::place(&self.units[unit].info, offset));
        let posted = &mut self.wires[wire].queue[chain];
        posted.ops[index].phase = done;
        if posted.ops.iter().all(|op| op.phase == Phase::Done) {
            posted.status = Some(CompletionStatus::Success);
        }
        if matches!(kind, Kind::AtomicWrite(_)) {
            self.strike_behind_publishing(unit);
        }
    }

    fn carry_out(&mut self, wire: usize, chain: usize, index: usize, offset: u64) -> Phase {
        let Self {
            wires,
            units,
            random,
            bytes,
            totals,
            ..
        } = self;
        let wire = &mut wires[wire];
        let unit = &mut units[wire.unit];
        let op: &mut WireOp = &mut wire.queue[chain].ops[index];
        // What lands now: words of a first part, what a first part left, or all.
        let torn = match op.phase {
            Phase::Waiting if op.length > 8 && random.chance(1, 3) => {
                Some(Words::draw(random, &(offset..offset + op.length)))
            }
            _ => None,
        };
        let before = op.phase;
        let takes = |word: u64| match (torn, before) {
            (Some(part), _) => part.contains(word),
            (None, Phase::Torn(part)) => !part.contains(word),
            (None, _) => true,
        };
        match op.kind {
            Kind::Write => {
                bytes.resize(op.length as usize, 0);
                match &op.payload {
                    Some(payload) => bytes.copy_from_slice(payload),
                    None => {
                        // The range was checked when it was posted.
                        let _ = wire.memories[op.memory].read_at(op.local, bytes);
                    }
                }
                unit.medium.write(offset, bytes, takes, random);
            }
            Kind::Read => {
                if !wire.closed {
                    bytes.resize(op.length as usize, 0);
                    let memory = &wire.memories[op.memory];
                    let _ = memory.read_at(op.local, bytes);
                    unit.medium.read(offset, bytes, takes);
                    let _ = memory.write_at(op.local, bytes);
                }
            }
            Kind::Flush => {
                let words = unit.medium.flush(&(offset..offset + op.length));
                let session = unit.sessions.get(&wire.session);
                let reads = session.is_some_and(|session| session.role == SessionRole::Backup);
                totals.settled += u64::from(reads && offset == 0 && words > 0);
                totals.flushes += 1;
                return Phase::Done;
            }
            Kind::AtomicWrite(value) => {
                unit.medium
                    .write(offset, &value.to_le_bytes(), |_| true, random);
                return Phase::Done;
            }
        }
        match torn {
            Some(part) => {
                totals.torn += 1;
                Phase::Torn(part)
            }
            None => Phase::Done,
        }
    }

    /// Who drives a connection, for the trace.
    pub(crate) fn who(&self, wire: usize) -> &str {
        &self.processes[self.wires[wire].process].name
    }
}
