//! What goes wrong, and when: some kinds in each schedule, at rates of its own.

use crate::random::{Random, mix};
use crate::state::{State, Status};
use crate::trace::stable_hash;
use crate::wire::Phase;

/// Steps in which a schedule's faults are spread out.
const RATE_STEPS: u64 = 100_000;
/// A program's clock jumps ahead by so much at most.
const CLOCK_JUMP_NS_MAX: u64 = 3_000_000_000;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    PowerCut,
    Kill,
    Hang,
    LinkCut,
    ClockJump,
    Timeout,
}

const KINDS: [Fault; 6] = [
    Fault::PowerCut,
    Fault::Kill,
    Fault::Hang,
    Fault::LinkCut,
    Fault::ClockJump,
    Fault::Timeout,
];

/// See the module.
#[derive(Debug)]
pub(crate) struct Faults {
    /// For each kind, how often in [`RATE_STEPS`] steps.
    rates: [u64; KINDS.len()],
    all: u64,
    /// How many of a thousand messages are lost.
    lost_messages: u64,
    /// How many more faults there may be.
    left: u64,
}

impl Faults {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let mut rates = [0; KINDS.len()];
        for rate in &mut rates {
            if random.chance(1, 2) {
                *rate = random.pick(&[50, 150, 400, 1000]);
            }
        }
        let lost_messages = if random.chance(1, 3) {
            random.pick(&[10, 50, 150])
        } else {
            0
        };
        // Some schedules go without any.
        let left = if random.chance(1, 12) {
            0
        } else {
            random.between(1, 10)
        };
        Self {
            rates,
            all: rates.iter().sum(),
            lost_messages,
            left,
        }
    }

    const fn cuts_power(&self) -> bool {
        self.rates[0] > 0
    }

    /// From now on nothing goes wrong any more.
    pub(crate) const fn stop(&mut self) {
        self.left = 0;
    }
}

impl State {
    /// Perhaps something goes wrong.
    pub(crate) fn strike(&mut self) {
        self.bring_back_in_time();
        if self.faults.left == 0 {
            return;
        }
        let mut drawn = self.random.below(RATE_STEPS);
        if drawn >= self.faults.all {
            return;
        }
        let hit = KINDS.iter().zip(self.faults.rates).find(|(_, rate)| {
            let found = drawn < *rate;
            drawn = drawn.wrapping_sub(*rate);
            found
        });
        if let Some((fault, _)) = hit {
            self.faults.left -= 1;
            match *fault {
                Fault::PowerCut => self.cut_some_power(),
                Fault::Kill => self.kill_some(),
                Fault::Hang => self.hang_some(),
                Fault::LinkCut => self.cut_some_link(),
                Fault::ClockJump => self.jump_some_clock(),
                Fault::Timeout => self.time_out_some(),
            }
        }
    }

    /// Something was published and is not flushed: the moment at which a wrong order shows.
    pub(crate) fn strike_behind_publishing(&mut self, unit: usize) {
        if self.faults.left > 0 && self.faults.cuts_power() && self.random.chance(1, 50) {
            self.faults.left -= 1;
            self.reach_crash_point(Fault::PowerCut, None, Some(unit));
            let away = self.random.pick(&[20, 100, 400]);
            self.cut_power(unit, Some(away));
        }
    }

    pub(crate) fn loses_message(&mut self) -> bool {
        if self.faults.left == 0 || !self.random.chance(self.faults.lost_messages, 1000) {
            return false;
        }
        self.faults.left -= 1;
        self.totals.messages_lost += 1;
        true
    }

    fn some_victim(&mut self) -> Option<usize> {
        let can = |index: &usize| {
            let process = &self.processes[*index];
            !process.is_spared
                && !process.is_killed
                && process.hung_until.is_none()
                && process.status != Status::Ended
        };
        let victims: Vec<usize> = (0..self.processes.len()).filter(can).collect();
        (!victims.is_empty()).then(|| self.random.pick(&victims))
    }

    fn kill_some(&mut self) {
        if let Some(victim) = self.some_victim() {
            self.reach_crash_point(Fault::Kill, Some(victim), None);
            self.totals.kills += 1;
            self.kill(victim);
        }
    }

    /// Ends a program where it is: its connections are closed, and every call it makes fails.
    pub(crate) fn kill(&mut self, victim: usize) {
        let process = &mut self.processes[victim];
        if process.is_killed || process.is_spared {
            return;
        }
        process.is_killed = true;
        process.hung_until = None;
        if process.status != Status::Ended {
            process.status = Status::Ready;
        }
        note!(self, "{} is killed", self.processes[victim].name);
        for wire in 0..self.wires.len() {
            if self.wires[wire].process == victim && !self.wires[wire].closed {
                self.wires[wire].lose();
                self.close_wire(wire);
            }
        }
        for request in &mut self.requests {
            request.is_abandoned |= request.process == victim;
        }
        self.leave_streams_of(victim);
        self.withdraw_data_of(victim);
    }

    fn hang_some(&mut self) {
        if let Some(victim) = self.some_victim() {
            self.reach_crash_point(Fault::Hang, Some(victim), None);
            self.totals.hangs += 1;
            let until = self.step + self.random.pick(&[40, 200, 1000, 100_000]);
            self.processes[victim].hung_until = Some(until);
            note!(self, "{} hangs", self.processes[victim].name);
        }
    }

    fn cut_some_power(&mut self) {
        let on: Vec<usize> = (0..self.units.len())
            .filter(|unit| self.units[*unit].is_on && !self.is_staging(*unit))
            .collect();
        if on.is_empty() {
            return;
        }
        let first = self.random.pick(&on);
        // One blow may hit several.
        let all = on.len() > 1 && self.random.chance(1, 4);
        for unit in on {
            if unit == first || (all && self.random.chance(1, 2)) {
                self.reach_crash_point(Fault::PowerCut, None, Some(unit));
                let away = self.random.pick(&[20, 100, 400, 2000, 100_000]);
                self.cut_power(unit, Some(away));
            }
        }
    }

    /// Cuts a unit's power; it comes back after so many steps, or not before the end.
    pub(crate) fn cut_power(&mut self, unit: usize, away_steps: Option<u64>) {
        self.totals.power_cuts += 1;
        let Self { units, random, .. } = self;
        let (survived, lost) = units[unit].medium.cut(random);
        self.totals.words_lost += lost;
        note!(
            self,
            "{} loses its power: of its unflushed words {survived} survive and {lost} are lost",
            self.units[unit].name
        );
        let request = self.units[unit].work.as_ref().and_then(|work| work.request);
        if let Some(request) = request {
            self.forget_request(request);
        }
        for process in 0..self.processes.len() {
            if self.processes[process].lives_in == Some(unit) {
                self.kill(process);
            }
        }
        self.units[unit].lose_power();
        self.units[unit].on_at = away_steps.map(|steps| self.step + steps);
        for wire in 0..self.wires.len() {
            if self.wires[wire].unit == unit {
                self.wires[wire].far = crate::wire::Far::Gone;
                // What was answered may be on its way; the rest never was carried out.
                let answered = self.wires[wire]
                    .queue
                    .iter()
                    .take_while(|chain| chain.status.is_some())
                    .count();
                let sent = self.random.below(answered as u64 + 1) as usize;
                self.forget_behind(wire, sent);
            }
        }
    }

    /// A unit is gone for good.
    pub(crate) fn destroy(&mut self, unit: usize) {
        self.cut_power(unit, None);
        self.units[unit].is_destroyed = true;
        self.totals.destroyed += 1;
        note!(self, "{} is destroyed", self.units[unit].name);
    }

    /// A manager deletes a unit's region, with force.
    pub(crate) fn erase(&mut self, unit: usize) {
        self.cut_power(unit, None);
        self.units[unit].erase();
        note!(self, "the region of {} is deleted", self.units[unit].name);
    }

    /// Of a connection's chains only the first `kept` are answered: of the others nobody hears before it is lost.
    fn forget_behind(&mut self, wire: usize, kept: usize) {
        for chain in self.wires[wire].queue.iter_mut().skip(kept) {
            chain.status = None;
        }
    }

    fn cut_some_link(&mut self) {
        let alive = |index: &usize| {
            let wire = &self.wires[*index];
            wire.dead.is_none() && !wire.closed && !self.processes[wire.process].is_spared
        };
        let alive: Vec<usize> = (0..self.wires.len()).filter(alive).collect();
        let whole = |index: &usize| {
            let stream = &self.streams[*index];
            stream.is_whole() && !self.processes[stream.ends[0]].is_spared
        };
        let streams: Vec<usize> = (0..self.streams.len()).filter(whole).collect();
        if alive.is_empty() && streams.is_empty() {
            return;
        }
        let drawn = self.random.below((alive.len() + streams.len()) as u64) as usize;
        self.totals.links_cut += 1;
        let Some(wire) = alive.get(drawn).copied() else {
            let stream = streams[drawn - alive.len()];
            let program = self.streams[stream].ends[0];
            self.reach_crash_point(Fault::LinkCut, Some(program), None);
            return self.break_stream(stream);
        };
        self.reach_crash_point(
            Fault::LinkCut,
            Some(self.wires[wire].process),
            Some(self.wires[wire].unit),
        );
        self.lose_wire(wire);
    }

    fn jump_some_clock(&mut self) {
        if let Some(victim) = self.some_victim() {
            self.totals.clock_jumps += 1;
            let ahead = self.random.below(CLOCK_JUMP_NS_MAX);
            let date = self.random.below(2 * CLOCK_JUMP_NS_MAX) as i64 - CLOCK_JUMP_NS_MAX as i64;
            let process = &mut self.processes[victim];
            process.clock_ahead_ns += ahead;
            process.date_off_ns += 1000 * date;
            note!(
                self,
                "the clock of {} jumps ahead by {} ms",
                self.processes[victim].name,
                ahead / 1_000_000
            );
        }
    }

    /// Everything is so slow that somebody waits too long.
    fn time_out_some(&mut self) {
        let deadlines = self
            .processes
            .iter()
            .filter_map(|process| match process.status {
                Status::Waiting(_, Some(deadline)) if !process.is_spared => {
                    Some(deadline.saturating_sub(process.clock_ahead_ns))
                }
                _ => None,
            });
        if let Some(next) = deadlines.min() {
            self.totals.clock_jumps += 1;
            self.now_ns = self.now_ns.max(next);
            note!(self, "nothing happens for a long time");
        }
    }

    /// Notes where something was struck: the same point in another schedule counts once.
    fn reach_crash_point(&mut self, fault: Fault, process: Option<usize>, unit: Option<usize>) {
        let role = |process: usize| {
            let process = &self.processes[process];
            (
                process
                    .name
                    .trim_end_matches(|last: char| last.is_ascii_digit()),
                process.doing,
            )
        };
        let mut queues = Vec::new();
        for wire in &self.wires {
            if process.is_some_and(|process| process != wire.process)
                || unit.is_some_and(|unit| unit != wire.unit)
            {
                continue;
            }
            let info = &self.units[wire.unit].info;
            let mut pending = Vec::new();
            for op in wire.queue.iter().flat_map(|chain| &chain.ops) {
                let part = match op.phase {
                    Phase::Waiting => 0,
                    Phase::Torn(_) => 1,
                    Phase::Done => 2,
                };
                let place = crate::place::place(info, op.address - info.address.get());
                let what = (op.kind.name(), place, part);
                if pending.last() != Some(&what) {
                    pending.push(what);
                }
            }
            if !pending.is_empty() {
                queues.push((role(wire.process), pending));
            }
        }
        queues.sort();
        let work = unit
            .and_then(|unit| self.units[unit].work.as_ref())
            .map(|work| work.call_name());
        let victim = process.map(role);
        let last = (self.last_done.0.name(), self.last_done.1);
        let point = stable_hash(&(self.scenario, fault, victim, last, work, queues));
        self.crash_points.insert(mix(point));
    }

    fn bring_back_in_time(&mut self) {
        for unit in 0..self.units.len() {
            if self.units[unit].on_at.is_some_and(|at| at <= self.step) {
                self.start_unit(unit);
            }
        }
        for process in &mut self.processes {
            if process.hung_until.is_some_and(|until| until <= self.step) {
                process.hung_until = None;
            }
        }
    }

    pub(crate) fn start_unit(&mut self, unit: usize) {
        if !self.units[unit].is_on && !self.units[unit].is_destroyed {
            note!(
                self,
                "{} is back, in epoch {}",
                self.units[unit].name,
                self.units[unit].epoch
            );
            self.units[unit].start();
        }
    }

    /// Brings the next one back that is to come; false if there is none.
    pub(crate) fn bring_back(&mut self) -> bool {
        let hung = self
            .processes
            .iter()
            .filter_map(|process| process.hung_until);
        let off = self.units.iter().filter_map(|unit| unit.on_at);
        match hung.chain(off).min() {
            Some(step) => {
                self.step = self.step.max(step);
                true
            }
            None => false,
        }
    }
}
