//! Everything that is simulated, and the choice of what happens next.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Condvar;
use pmu_fabric::Completion;

use crate::faults::Faults;
use crate::place::Place;
use crate::random::Random;
use crate::staging::Staging;
use crate::stream::{End, Stream};
use crate::trace::{Recording, Trace};
use crate::unit::{Call, Reply, Unit};
use crate::wire::{Far, Kind, Wire};

/// Steps after which a schedule has no end.
const STEPS_MAX: u64 = 200_000;

/// Writes a line of the trace, if anybody wants it.
macro_rules! note {
    ($state:expr, $($format:tt)*) => {
        if $state.trace.is_on() {
            let text = format!($($format)*);
            let (step, now_ns) = ($state.step, $state.now_ns);
            $state.trace.line(step, now_ns, format_args!("{text}"));
        }
    };
}

/// What a process waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A completion, or the end of a connection.
    Wire(usize),
    /// The answer to a request.
    Answer(usize),
    /// A letter, or the end of a stream.
    Mail(End),
    /// Another process' end.
    End(usize),
    /// Nothing but time.
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ready,
    /// Until its own clock shows the second.
    Waiting(Wait, Option<u64>),
    Ended,
}

/// A program: a thread that runs only while it has the turn.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) turn: Arc<Condvar>,
    pub(crate) is_killed: bool,
    /// Stands still until this step.
    pub(crate) hung_until: Option<u64>,
    /// How far its clocks are ahead of the world's.
    pub(crate) clock_ahead_ns: u64,
    pub(crate) date_off_ns: i64,
    /// What it is doing, to tell crash points apart.
    pub(crate) doing: &'static str,
    pub(crate) weight: u64,
    /// The unit that it dies with.
    pub(crate) lives_in: Option<usize>,
    /// The checker's own: nothing happens to it.
    pub(crate) is_spared: bool,
}

/// A call to a control service, on its way, being answered, or answered.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) process: usize,
    pub(crate) unit: usize,
    pub(crate) call: Call,
    pub(crate) stage: RequestStage,
    /// Nobody waits for the answer any more.
    pub(crate) is_abandoned: bool,
}

#[derive(Debug)]
pub(crate) enum RequestStage {
    /// On its way to the unit.
    Sent,
    /// The unit is at it.
    Taken,
    /// The answer is on its way back.
    Answered(Reply),
    /// The answer has come.
    Delivered(Option<Reply>),
    /// Never to be heard of again.
    Lost,
}

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Choices of what happens next.
    pub steps: u64,
    /// Flushes carried out.
    pub flushes: u64,
    /// Writes and reads of which a part happened before the rest.
    pub torn: u64,
    /// Operations that a unit refused, as those of a fenced primary.
    pub refused_operations: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// 8-byte words that a power cut lost.
    pub words_lost: u64,
    /// Programs killed.
    pub kills: u64,
    /// Programs that stood still, and went on later.
    pub hangs: u64,
    /// Connections that broke.
    pub links_cut: u64,
    /// Requests and answers of a control service that were lost.
    pub messages_lost: u64,
    /// Clocks that jumped, and waits that ended before what they waited for.
    pub clock_jumps: u64,
    /// Sets and records acknowledged.
    pub acknowledged: u64,
    /// Stores whose outcome nobody could tell.
    pub unknown: u64,
    /// Stores that were refused for certain.
    pub refused: u64,
    /// Fences that were done.
    pub fences: u64,
    /// Reads and recoveries that were checked.
    pub checked_reads: u64,
    /// Reads beyond the tolerance, that said so.
    pub refused_reads: u64,
    /// Units that learned of other members.
    pub changes: u64,
    /// Schedules in which a change of members was cut short in the middle, so that the region waited for a later call.
    pub changes_half_done: u64,
    /// Primaries that went on with other members.
    pub followed: u64,
    /// Rebuilds that came to their end.
    pub rebuilds: u64,
    /// Rebuilds that were cut short.
    pub rebuilds_cut: u64,
    /// Units that never came back.
    pub destroyed: u64,
    /// Times that a medium failed.
    pub damages: u64,
    /// Scrubs that found damage, and repaired it.
    pub repairs: u64,
    /// Sessions with distributors.
    pub distributed: u64,
    /// Sets that distributors stored.
    pub distributed_sets: u64,
    /// Records that distributors had on their way to the units.
    pub distributed_records: u64,
    /// Times that somebody who reads made durable what was only visible of a publish page.
    pub settled: u64,
}

impl Totals {
    /// Adds up.
    pub fn add(&mut self, other: &Self) {
        let fields = [
            (&mut self.steps, other.steps),
            (&mut self.flushes, other.flushes),
            (&mut self.torn, other.torn),
            (&mut self.refused_operations, other.refused_operations),
            (&mut self.power_cuts, other.power_cuts),
            (&mut self.words_lost, other.words_lost),
            (&mut self.kills, other.kills),
            (&mut self.hangs, other.hangs),
            (&mut self.links_cut, other.links_cut),
            (&mut self.messages_lost, other.messages_lost),
            (&mut self.clock_jumps, other.clock_jumps),
            (&mut self.acknowledged, other.acknowledged),
            (&mut self.unknown, other.unknown),
            (&mut self.refused, other.refused),
            (&mut self.fences, other.fences),
            (&mut self.checked_reads, other.checked_reads),
            (&mut self.refused_reads, other.refused_reads),
            (&mut self.changes, other.changes),
            (&mut self.changes_half_done, other.changes_half_done),
            (&mut self.followed, other.followed),
            (&mut self.rebuilds, other.rebuilds),
            (&mut self.rebuilds_cut, other.rebuilds_cut),
            (&mut self.destroyed, other.destroyed),
            (&mut self.damages, other.damages),
            (&mut self.repairs, other.repairs),
            (&mut self.distributed, other.distributed),
            (&mut self.distributed_sets, other.distributed_sets),
            (&mut self.distributed_records, other.distributed_records),
            (&mut self.settled, other.settled),
        ];
        for (sum, more) in fields {
            *sum += more;
        }
    }
}

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    Run(usize),
    Execute(usize),
    Complete(usize),
    /// The initiator learns that its connection is lost.
    Lose(usize),
    /// The unit learns that a connection is closed.
    Notice(usize),
    /// A request arrives at its unit.
    Arrive(usize),
    Work(usize),
    /// An answer arrives.
    Answer(usize),
    /// A letter arrives, or the end of a stream: at which of its sides.
    Letter(usize, usize),
}

/// See the module.
pub(crate) struct State {
    pub(crate) random: Random,
    pub(crate) step: u64,
    pub(crate) now_ns: u64,
    /// Whose turn it is.
    pub(crate) current: usize,
    pub(crate) processes: Vec<Process>,
    pub(crate) units: Vec<Unit>,
    pub(crate) wires: Vec<Wire>,
    pub(crate) requests: Vec<Request>,
    /// Those that are not delivered, lost or abandoned.
    open_requests: Vec<usize>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) staging: Option<Staging>,
    /// Every distributor that was started.
    pub(crate) distributors: Vec<usize>,
    pub(crate) next_session: u64,
    pub(crate) next_key: u32,
    pub(crate) faults: Faults,
    pub(crate) scenario: &'static str,
    pub(crate) trace: Trace,
    pub(crate) totals: Totals,
    pub(crate) crash_points: BTreeSet<u64>,
    pub(crate) violation: Option<String>,
    pub(crate) is_stopping: bool,
    /// The last operation that was carried out, and where.
    pub(crate) last_done: (Kind, Place),
    pub(crate) scratch: Vec<(usize, usize)>,
    pub(crate) bytes: Vec<u8>,
    events: Vec<(Event, u64)>,
}

impl State {
    pub(crate) fn new(seed: u64, scenario: &'static str, recording: Recording) -> Self {
        let mut random = Random::new(crate::random::mix(seed ^ 0x706d_755f_7369_6d00));
        let faults = Faults::draw(&mut random);
        Self {
            random,
            step: 0,
            now_ns: 0,
            current: 0,
            processes: Vec::new(),
            units: Vec::new(),
            wires: Vec::new(),
            requests: Vec::new(),
            open_requests: Vec::new(),
            streams: Vec::new(),
            staging: None,
            distributors: Vec::new(),
            next_session: 1,
            next_key: 1,
            faults,
            scenario,
            trace: Trace::new(recording),
            totals: Totals::default(),
            crash_points: BTreeSet::new(),
            violation: None,
            is_stopping: false,
            last_done: (Kind::Flush, Place::Publish),
            scratch: Vec::new(),
            bytes: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Something happened that must not. The first one counts; everybody stops.
    pub(crate) fn violate(&mut self, what: String) {
        note!(self, "VIOLATION: {what}");
        if self.violation.is_none() {
            self.violation = Some(what);
        }
        self.faults.stop();
        self.is_stopping = true;
        for process in 0..self.processes.len() {
            self.kill(process);
        }
    }

    /// Adds a program, which runs when its turn comes.
    pub(crate) fn add_process(&mut self, name: &str, is_spared: bool) -> usize {
        let weight = if is_spared {
            4
        } else {
            self.random.pick(&[2, 4, 16])
        };
        self.processes.push(Process {
            name: name.to_owned(),
            status: Status::Ready,
            turn: Arc::new(Condvar::new()),
            is_killed: self.violation.is_some(),
            hung_until: None,
            clock_ahead_ns: 0,
            date_off_ns: 0,
            doing: "",
            weight,
            lives_in: None,
            is_spared,
        });
        self.processes.len() - 1
    }

    /// Lets things happen until it is a program's turn; says whose.
    pub(crate) fn schedule(&mut self) -> usize {
        loop {
            self.step += 1;
            self.totals.steps += 1;
            self.now_ns += self.random.below(4000);
            if self.totals.steps > STEPS_MAX && self.violation.is_none() {
                self.violate("the schedule has no end".into());
            }
            self.strike();
            self.wake_the_timed_out();
            match self.draw_event() {
                Some(Event::Run(process)) => return process,
                Some(event) => self.happen(event),
                None => self.let_time_pass(),
            }
        }
    }

    fn draw_event(&mut self) -> Option<Event> {
        let mut events = std::mem::take(&mut self.events);
        self.collect(&mut events);
        let all = events.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.random.below(all);
        let chosen = events.iter().find(|(_, weight)| {
            let found = drawn < *weight;
            drawn = drawn.wrapping_sub(*weight);
            found
        });
        let chosen = chosen.map(|(event, _)| *event);
        self.events = events;
        self.trace.mark(drawn ^ self.step ^ self.now_ns);
        chosen
    }

    fn collect(&self, events: &mut Vec<(Event, u64)>) {
        events.clear();
        for (index, process) in self.processes.iter().enumerate() {
            if process.status == Status::Ready && process.hung_until.is_none() {
                events.push((Event::Run(index), process.weight));
            }
        }
        for (index, wire) in self.wires.iter().enumerate() {
            let unit_is_on = self.units[wire.unit].is_on;
            if unit_is_on && wire.has_work() {
                events.push((Event::Execute(index), wire.weight));
            }
            if wire.has_answer() {
                events.push((Event::Complete(index), wire.weight));
            }
            let is_lost = wire.far == Far::Gone || !unit_is_on;
            if is_lost && wire.dead.is_none() && !wire.closed && !wire.has_answer() {
                events.push((Event::Lose(index), 1));
            }
            let is_left = wire.closed || wire.dead.is_some();
            if is_left
                && wire.far != Far::Gone
                && unit_is_on
                && self.units[wire.unit].work.is_none()
            {
                events.push((Event::Notice(index), 1));
            }
        }
        for index in &self.open_requests {
            let request = &self.requests[*index];
            let unit = &self.units[request.unit];
            match request.stage {
                RequestStage::Sent if unit.work.is_none() => {
                    events.push((Event::Arrive(*index), 4));
                }
                RequestStage::Answered(_) => events.push((Event::Answer(*index), 4)),
                _ => {}
            }
        }
        for (index, stream) in self.streams.iter().enumerate() {
            for side in stream.pending() {
                events.push((Event::Letter(index, side), 4));
            }
        }
        for (index, unit) in self.units.iter().enumerate() {
            if unit.is_on && unit.work.is_some() {
                events.push((Event::Work(index), 4 * unit.weight));
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Run(_) => {}
            Event::Execute(wire) => self.execute(wire),
            Event::Complete(wire) => self.complete(wire),
            Event::Lose(wire) => self.lose_wire(wire),
            Event::Notice(wire) => {
                let (unit, session, process) = {
                    let wire = &self.wires[wire];
                    (wire.unit, wire.session, wire.process)
                };
                note!(
                    self,
                    "{} sees that {} is gone",
                    self.units[unit].name,
                    self.who(wire)
                );
                if self.is_staging(unit) {
                    self.withdraw_data(session);
                    self.wires[wire].far = Far::Gone;
                    self.wires[wire].queue.clear();
                } else if self.units[unit].sessions.contains_key(&session) {
                    self.begin_work(unit, None, process, Call::Disconnected { session });
                } else {
                    self.wires[wire].far = Far::Gone;
                    self.wires[wire].queue.clear();
                }
            }
            Event::Arrive(request) => self.arrive(request),
            Event::Work(unit) => self.work_on(unit),
            Event::Answer(request) => self.deliver(request),
            Event::Letter(stream, side) => self.deliver_letter(End { stream, side }),
        }
    }

    fn complete(&mut self, wire: usize) {
        let Some(chain) = self.wires[wire].queue.pop_front() else {
            return;
        };
        let status = chain
            .status
            .unwrap_or(pmu_fabric::CompletionStatus::Flushed);
        note!(
            self,
            "{} learns of chain {}: {status:?}",
            self.who(wire),
            chain.tag
        );
        let target = &mut self.wires[wire];
        target.completions.push_back(Completion {
            tag: chain.tag,
            status,
        });
        if status != pmu_fabric::CompletionStatus::Success {
            target.dead = Some(status);
            // Those behind it come at once.
            while let Some(chain) = target.queue.pop_front() {
                let status = pmu_fabric::CompletionStatus::Flushed;
                target.completions.push_back(Completion {
                    tag: chain.tag,
                    status,
                });
            }
        }
        self.wake(|wait| wait == Wait::Wire(wire));
    }

    /// The initiator learns that the connection is lost. What has left it may still arrive.
    pub(crate) fn lose_wire(&mut self, wire: usize) {
        note!(
            self,
            "{} learns that its connection to {} is lost",
            self.who(wire),
            self.units[self.wires[wire].unit].name
        );
        let on_the_way = self.random.below(1 + self.wires[wire].queue.len() as u64) as usize;
        self.wires[wire].lose();
        self.wires[wire].detach(on_the_way);
        self.wake(|wait| wait == Wait::Wire(wire));
    }

    /// The initiator has closed the connection, or has ended. What has left it may still arrive.
    pub(crate) fn close_wire(&mut self, wire: usize) {
        if self.wires[wire].closed {
            return;
        }
        let on_the_way = self.random.below(1 + self.wires[wire].queue.len() as u64) as usize;
        self.wires[wire].detach(on_the_way);
        self.wires[wire].closed = true;
    }

    /// A program begins a call.
    pub(crate) fn request(&mut self, process: usize, unit: usize, call: Call) -> usize {
        note!(
            self,
            "{} asks {} to {}",
            self.processes[process].name,
            self.units[unit].name,
            call.name()
        );
        self.requests.push(Request {
            process,
            unit,
            call,
            stage: RequestStage::Sent,
            is_abandoned: false,
        });
        self.open_requests.push(self.requests.len() - 1);
        self.requests.len() - 1
    }

    fn arrive(&mut self, request: usize) {
        let Request { process, unit, .. } = self.requests[request];
        if !self.units[unit].is_on {
            let reason = "no route to host".to_owned();
            let unit = self.units[unit].name.as_ref().to_owned();
            let error = pmu_client::ClientError::Unreachable { unit, reason };
            return self.answer(Some(request), Reply::Failed(Box::new(error)));
        }
        if self.loses_message() {
            note!(
                self,
                "a request of {} is lost",
                self.processes[process].name
            );
            return self.forget_request(request);
        }
        self.requests[request].stage = RequestStage::Taken;
        let call = self.requests[request].call.clone();
        self.begin_work(unit, Some(request), process, call);
    }

    /// A unit, or the network, has an answer.
    pub(crate) fn answer(&mut self, request: Option<usize>, reply: Reply) {
        if let Some(request) = request {
            self.requests[request].stage = RequestStage::Answered(reply);
        } else if let Reply::Opened { wire, .. } = reply {
            self.close_wire(wire);
        }
    }

    fn deliver(&mut self, request: usize) {
        let lost = self.loses_message();
        let found = &mut self.requests[request];
        let stage = std::mem::replace(&mut found.stage, RequestStage::Lost);
        let RequestStage::Answered(reply) = stage else {
            return;
        };
        if lost || found.is_abandoned {
            if let Reply::Opened { wire, .. } = reply {
                // Nobody will ever use it.
                self.close_wire(wire);
            }
            return self.forget_request(request);
        }
        found.stage = RequestStage::Delivered(Some(reply));
        self.open_requests.retain(|open| *open != request);
        self.wake(|wait| wait == Wait::Answer(request));
    }

    pub(crate) fn forget_request(&mut self, request: usize) {
        self.requests[request].stage = RequestStage::Lost;
        self.open_requests.retain(|open| *open != request);
    }

    /// Whether a process has to wait no longer, for something that has happened already.
    pub(crate) fn has_come(&self, wait: Wait) -> bool {
        match wait {
            Wait::Wire(wire) => {
                let wire = &self.wires[wire];
                !wire.completions.is_empty() || wire.dead.is_some()
            }
            Wait::Answer(request) => {
                matches!(self.requests[request].stage, RequestStage::Delivered(_))
            }
            Wait::Mail(end) => self.has_mail(end),
            Wait::End(process) => self.processes[process].status == Status::Ended,
            Wait::Time => false,
        }
    }

    pub(crate) fn wake(&mut self, waits: impl Fn(Wait) -> bool) {
        for process in &mut self.processes {
            if let Status::Waiting(wait, _) = process.status
                && waits(wait)
            {
                process.status = Status::Ready;
            }
        }
    }

    fn wake_the_timed_out(&mut self) {
        let now_ns = self.now_ns;
        for process in &mut self.processes {
            if let Status::Waiting(_, Some(deadline)) = process.status
                && now_ns + process.clock_ahead_ns >= deadline
            {
                process.status = Status::Ready;
            }
        }
    }

    /// Nothing can happen: the time of the next one who waits, or of a unit or program that is to come back.
    fn let_time_pass(&mut self) {
        let deadlines = self
            .processes
            .iter()
            .filter_map(|process| match process.status {
                Status::Waiting(_, Some(deadline)) if process.hung_until.is_none() => {
                    Some(deadline.saturating_sub(process.clock_ahead_ns))
                }
                _ => None,
            });
        if let Some(next) = deadlines.min() {
            self.now_ns = self.now_ns.max(next);
            return;
        }
        if !self.bring_back() {
            self.violate("nobody can go on".into());
            // The checker waits for programs that wait for each other: it alone goes on.
            self.wake(|_| true);
        }
    }
}
