//! A running agent: one loop that takes what comes, asks the machine, and does what that says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_client::agent::{FromProgram, Order as ProgramOrder, SnapshotReport};

use crate::beats;
use crate::config::Config;
use crate::copy::Handed;
use crate::decide::{Action, Event, Level, Machine, Millis, Phase};
use crate::door::Door;
use crate::error::{AgentError, Result};
use crate::follow::{Order, Worker};
use crate::input::{Command, Input, Reply};
use crate::link::{Board, Link};
use crate::place::Place;
use crate::program::{Running, rehearse, succeeds, thread, vital_thread};
use crate::status::{Shared, Status};

/// Events kept for `status`.
const EVENTS_MAX: usize = 50;
/// How long the last word to the peer may take.
const LINGER: Duration = Duration::from_millis(50);
/// How long an earlier program's end is waited for, once it is killed, before the next one is started: the kernel frees some GiB meanwhile.
const OLD_PROGRAM_WAIT: Duration = Duration::from_secs(2);
/// Between two updates of metrics.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// How an agent begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// It leads if nobody else does.
    Primary,
    /// It stands by.
    Standby,
    /// It takes the process that runs already.
    Adopting(u32),
}

/// The ways to the threads.
struct Ways {
    inputs: Sender<Input>,
    regions: Sender<Order>,
    door: Door,
    link: Option<Link>,
    board: Arc<Board>,
    #[cfg(feature = "etcd")]
    lease: Option<Sender<crate::etcd::Order>>,
}

/// A person who waits until the agent leads, or stands by.
struct Waiting {
    reply: Sender<Reply>,
    to_lead: bool,
    /// The machine has left the phase in which it was asked.
    begun: bool,
}

struct Agent {
    config: Arc<Config>,
    name: String,
    machine: Machine,
    begun: Instant,
    ways: Ways,
    status: Arc<Mutex<Shared>>,
    handed: Handed,
    program: Option<Running>,
    /// Counts programs: the end of an earlier one means nothing.
    serial: u64,
    /// The program works, so that its health is looked at.
    working: Arc<AtomicBool>,
    /// Who waits for a promotion or demotion.
    waiting: Option<Waiting>,
    last_said: String,
    shown: Instant,
    exit: Option<u8>,
}

/// Runs an agent until it ends; its exit code. SIGTERM and SIGINT end program and agent.
///
/// # Errors
/// [`AgentError`]: what can't be opened at the start. Later failures are dealt with, and said.
pub fn run(config: Config, beginning: Beginning) -> Result<u8> {
    let config = Arc::new(config);
    let place = Place::new(&config)?;
    let name = place.principal();
    config.check_peer_of(&name).map_err(AgentError::Refused)?;
    // Its files are read before anything is opened.
    #[cfg(feature = "etcd")]
    let cluster = match &config.election {
        Some(election) => Some(crate::etcd::Cluster::new(election, &name)?),
        None => None,
    };
    let status = Arc::new(Mutex::new(Shared::default()));
    let (inputs, received) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    listen_to_signals(&inputs)?;
    let door = Door::open(&config.socket, &inputs)?;
    let settings = config.settings();
    let mut program = None;
    let machine = match beginning {
        Beginning::Primary => Machine::primary(settings, 0),
        Beginning::Standby => Machine::standby(settings, 0),
        Beginning::Adopting(pid) => {
            program = Some(Running::adopt(pid, 0, &inputs)?);
            status.lock().pid = Some(pid);
            Machine::adopting(settings, 0, 0)
        }
    };
    let board = Arc::new(Board::new(machine.standing()));
    let link = Link::open(&config, &board, &inputs, &status, &stop)?;
    let (regions, orders) = channel();
    let worker = Worker::new(
        place.clone(),
        Arc::clone(&config),
        orders,
        inputs.clone(),
        Arc::clone(&status),
    );
    vital_thread("regions", &inputs, move || worker.run())?;
    let (watched, sent, shared, ended) = (
        Arc::clone(&config),
        inputs.clone(),
        Arc::clone(&status),
        Arc::clone(&stop),
    );
    vital_thread("beats", &inputs, move || {
        beats::run(&place, &watched, &sent, &shared, &ended);
    })?;
    let ways = Ways {
        #[cfg(feature = "etcd")]
        lease: lease_thread(cluster, &inputs)?,
        inputs,
        regions,
        door,
        link,
        board,
    };
    let mut agent = Agent {
        config,
        name,
        machine,
        begun: Instant::now(),
        ways,
        status,
        handed: Handed::default(),
        program,
        serial: 0,
        working: Arc::new(AtomicBool::new(false)),
        waiting: None,
        last_said: String::new(),
        shown: Instant::now(),
        exit: None,
    };
    agent.watch_health()?;
    // One that adopts leads from the beginning.
    agent.phase_changed(agent.machine.phase());
    let code = agent.work(&received);
    // The peer hears that all is done before we are silent.
    agent
        .ways
        .board
        .tell(agent.machine.standing(), agent.machine.epoch());
    std::thread::sleep(LINGER);
    stop.store(true, Ordering::Release);
    let _ = std::fs::remove_file(&agent.config.socket);
    Ok(code)
}

#[cfg(feature = "etcd")]
fn lease_thread(
    cluster: Option<crate::etcd::Cluster>,
    inputs: &Sender<Input>,
) -> Result<Option<Sender<crate::etcd::Order>>> {
    let Some(cluster) = cluster else {
        return Ok(None);
    };
    let (sender, orders) = channel();
    let told = inputs.clone();
    vital_thread("lease", inputs, move || cluster.run(&orders, &told))?;
    Ok(Some(sender))
}

fn listen_to_signals(inputs: &Sender<Input>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let action = || AgentError::system("prepare for signals");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(action())?;
    let inside = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(action())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(action())?;
    drop(inside);
    let told = inputs.clone();
    vital_thread("signals", inputs, move || {
        loop {
            runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            if told.send(Input::Event(Event::Stop)).is_err() {
                return;
            }
        }
    })
}

impl Agent {
    fn now(&self) -> Millis {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn work(&mut self, received: &Receiver<Input>) -> u8 {
        let silence = self.config.settings().silence_ms;
        let tick = Duration::from_millis((silence / 16).clamp(1, 100));
        self.step(Event::Tick);
        loop {
            match received.recv_timeout(tick) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => self.step(Event::Tick),
                // Not while we hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return 1,
            }
            if let Some(code) = self.exit {
                return code;
            }
            if self.shown.elapsed() >= SHOW_EVERY {
                self.shown = Instant::now();
                self.status_now().show();
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.step(event),
            Input::Recovered(handed) => {
                self.handed = handed;
                self.status.lock().takeovers += 1;
            }
            Input::Program { pid, said } => self.program_said(pid, said),
            Input::Snapshot(report) => self.snapshot_done(report),
            Input::Dying { serial, how } => {
                if serial == self.serial && self.program.is_some() {
                    tracing::info!(how, "the program is dying");
                    self.step(Event::Dying);
                }
            }
            Input::Exited { serial, clean, how } => {
                if serial != self.serial {
                    return;
                }
                tracing::info!(how, "the program has ended");
                self.program = None;
                self.status.lock().pid = None;
                self.step(Event::Exited { clean });
            }
            Input::Lost { thread } => {
                let what = format!(
                    "the agent's thread {thread} has failed: the agent ends, and leaves its program alone"
                );
                self.say(Level::Error, what);
                self.exit = Some(1);
            }
            Input::Command(command, reply) => self.command(command, reply),
        }
    }

    fn program_said(&mut self, pid: u32, said: FromProgram) {
        if !self
            .program
            .as_ref()
            .is_some_and(|program| program.owns(pid))
        {
            tracing::warn!(pid, ?said, "said by a process that is not our program now");
            return;
        }
        match said {
            FromProgram::Ready { epoch, held, .. } => self.step(Event::Ready { epoch, held }),
            FromProgram::Snapshot(report) => self.snapshot_done(report),
            FromProgram::Fenced { message } => {
                tracing::warn!(message, "the program says that it is fenced");
                self.step(Event::Fenced);
            }
            // A later version's word.
            _ => {}
        }
    }

    fn snapshot_done(&mut self, report: SnapshotReport) {
        match &report.error {
            Some(error) => tracing::error!(id = report.id, error, "the snapshot has failed"),
            None => tracing::info!(
                id = report.id,
                set = report.set,
                bytes = report.bytes,
                pause_us = report.pause_us,
                took_us = report.took_us,
                durable = report.durable,
                "snapshot"
            ),
        }
        let id = report.id;
        self.status.lock().snapshot = Some(report);
        self.step(Event::SnapshotDone { id });
    }

    fn step(&mut self, event: Event) {
        let before = self.machine.phase();
        for action in self.machine.step(self.now(), event) {
            self.act(action);
        }
        let after = self.machine.phase();
        let board = (self.machine.standing(), self.machine.epoch());
        self.ways.board.tell(board.0, board.1);
        if before != after {
            tracing::debug!(?before, ?after, "phase");
            self.phase_changed(after);
        }
        self.answer_waiting();
    }

    fn phase_changed(&mut self, after: Phase) {
        self.working
            .store(after == Phase::Primary, Ordering::Release);
        if after == Phase::Primary {
            self.handed = Handed::default();
            let _ = self.ways.regions.send(Order::Lead);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::TakeOver { unless_held } => self.order(Order::TakeOver { unless_held }),
            Action::Follow => self.order(Order::Follow),
            Action::LookForLeader { own_up_to } => self.order(Order::LookForLeader { own_up_to }),
            Action::Start => self.start(),
            Action::Kill => {
                if let Some(program) = &self.program {
                    program.kill();
                }
            }
            Action::Order(_) => self.order_to_stop(),
            Action::Snapshot { id } => self.snapshot(id),
            Action::AskYield => self.ask_yield(),
            Action::Acquire => self.lease(true),
            Action::Release => self.lease(false),
            Action::Say(level, what) => self.say(level, what),
            Action::Exit { code } => self.exit = Some(code),
        }
    }

    fn order(&self, order: Order) {
        let _ = self.ways.regions.send(order);
    }

    fn say(&mut self, level: Level, what: String) {
        match level {
            Level::Info => tracing::info!("{what}"),
            Level::Warning => tracing::warn!("{what}"),
            Level::Error => tracing::error!("{what}"),
        }
        let mut status = self.status.lock();
        if status.events.len() >= EVENTS_MAX {
            status.events.remove(0);
        }
        let after_s = self.begun.elapsed().as_secs_f64();
        status.events.push(format!("{after_s:.3} s: {what}"));
        drop(status);
        self.last_said = what;
    }

    fn start(&mut self) {
        self.serial += 1;
        if let Some(old) = self.program.take() {
            old.kill();
            if !old.has_ended_within(OLD_PROGRAM_WAIT) {
                tracing::error!(
                    pid = old.id(),
                    "the earlier program was killed, and has not ended yet: the next one is started all the same"
                );
            }
        }
        match Running::start(&self.config, &self.handed, self.serial, &self.ways.inputs) {
            Ok(program) => {
                self.status.lock().pid = Some(program.id());
                tracing::info!(pid = program.id(), "the program is started");
                self.program = Some(program);
                if !self.config.program.speaks && self.config.program.health.is_none() {
                    self.step(Event::Ready {
                        epoch: 0,
                        held: false,
                    });
                }
            }
            Err(error) => {
                tracing::error!(%error, "the program can't be started");
                self.step(Event::StartFailed);
            }
        }
    }

    fn order_to_stop(&mut self) {
        if let Some(program) = &self.program
            && !self.ways.door.order(program, ProgramOrder::Stop)
        {
            program.terminate();
        }
    }

    fn snapshot(&mut self, id: u64) {
        let command = self.config.snapshot.as_ref();
        let Some(command) = command.and_then(|snapshot| snapshot.command.clone()) else {
            let program = self.program.as_ref();
            let order = ProgramOrder::Snapshot { id };
            if !program.is_some_and(|program| self.ways.door.order(program, order)) {
                let error = Some("the program doesn't listen".to_owned());
                let report = SnapshotReport {
                    id,
                    error,
                    ..SnapshotReport::default()
                };
                let _ = self.ways.inputs.send(Input::Snapshot(report));
            }
            return;
        };
        let inputs = self.ways.inputs.clone();
        let timeout = Duration::from_millis(self.config.program.stop_timeout_ms);
        let started = thread("snapshot", move || {
            let begun = Instant::now();
            let good = succeeds(&command, timeout);
            let report = SnapshotReport {
                id,
                took_us: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
                error: (!good).then(|| "the snapshot command failed".to_owned()),
                ..SnapshotReport::default()
            };
            let _ = inputs.send(Input::Snapshot(report));
        });
        if let Err(error) = started {
            tracing::error!(%error, "no snapshot");
        }
    }

    fn ask_yield(&self) {
        let Some(link) = self.ways.link.clone() else {
            return;
        };
        let asked = thread("yield", move || {
            if let Err(error) = link.ask_to_yield() {
                tracing::error!(%error, "the peer can't be asked");
            }
        });
        if let Err(error) = asked {
            tracing::error!(%error, "the peer can't be asked");
        }
    }

    #[cfg(feature = "etcd")]
    fn lease(&self, acquire: bool) {
        use crate::etcd::Order;
        if let Some(lease) = &self.ways.lease {
            let order = if acquire {
                Order::Acquire
            } else {
                Order::Release
            };
            let _ = lease.send(order);
        }
    }

    /// A configuration that needs one was refused.
    #[cfg(not(feature = "etcd"))]
    #[allow(clippy::unused_self)]
    fn lease(&self, _acquire: bool) {}

    /// A thread that runs the health command while the program works, or starts and doesn't speak.
    fn watch_health(&self) -> Result<()> {
        let Some(command) = self.config.program.health.clone() else {
            return Ok(());
        };
        let every = Duration::from_millis(self.config.program.health_every_ms);
        let speaks = self.config.program.speaks;
        let (inputs, working) = (self.ways.inputs.clone(), Arc::clone(&self.working));
        let status = Arc::clone(&self.status);
        vital_thread("health", &self.ways.inputs, move || {
            loop {
                std::thread::sleep(every);
                let works = working.load(Ordering::Acquire);
                let starts = !speaks && status.lock().pid.is_some();
                if !works && !starts {
                    continue;
                }
                let good = succeeds(&command, every.max(Duration::from_secs(1)));
                let event = match (works, good) {
                    (true, good) => Event::Health { good },
                    (false, true) => Event::Ready {
                        epoch: 0,
                        held: false,
                    },
                    (false, false) => continue,
                };
                if inputs.send(Input::Event(event)).is_err() {
                    return;
                }
            }
        })
    }

    fn status_now(&self) -> Status {
        Status::of(&self.name, &self.machine, &self.status.lock())
    }

    fn command(&mut self, command: Command, reply: Sender<Reply>) {
        match command {
            Command::Status => {
                let mut answer = Reply::new(true, "");
                answer.status = Some(Box::new(self.status_now()));
                let _ = reply.send(answer);
            }
            Command::Stop => {
                let _ = reply.send(Reply::new(
                    true,
                    "the program is told to end, and the agent ends with it",
                ));
                self.step(Event::Stop);
            }
            Command::Promote { force } => {
                self.wait(reply, true);
                self.step(Event::Promote { force });
            }
            Command::Demote => {
                self.wait(reply, false);
                self.step(Event::Demote);
            }
            Command::Rehearse => self.rehearse(reply),
        }
    }

    fn wait(&mut self, reply: Sender<Reply>, to_lead: bool) {
        let waiting = Waiting {
            reply,
            to_lead,
            begun: false,
        };
        self.last_said.clear();
        if let Some(before) = self.waiting.replace(waiting) {
            let _ = before
                .reply
                .send(Reply::new(false, "asked again by somebody else"));
        }
    }

    /// Whoever waits is answered when the machine has come to rest.
    fn answer_waiting(&mut self) {
        let Some(mut waiting) = self.waiting.take() else {
            return;
        };
        let epoch = self.machine.epoch();
        let answer = match (self.machine.phase(), waiting.to_lead) {
            (Phase::Primary, true) if waiting.begun => {
                Reply::new(true, format!("primary in epoch {epoch}"))
            }
            (Phase::Standby, false) => Reply::new(true, "standing by"),
            (Phase::Standby | Phase::GivenUp | Phase::Primary | Phase::Ended, _) => {
                Reply::new(false, self.last_said.clone())
            }
            _ => {
                waiting.begun = true;
                self.waiting = Some(waiting);
                return;
            }
        };
        let _ = waiting.reply.send(answer);
    }

    fn rehearse(&self, reply: Sender<Reply>) {
        let (asked, copied) = channel();
        self.order(Order::Copy(asked));
        let config = Arc::clone(&self.config);
        let started = thread("rehearsal", move || {
            let timeout = Duration::from_millis(config.program.start_timeout_ms);
            let handed = copied
                .recv()
                .unwrap_or_else(|_| Err(AgentError::Refused("the regions can't be read".into())));
            let answer = handed.and_then(|handed| rehearse(&config, &handed, timeout));
            let answer = match answer {
                Ok(message) => Reply::new(true, message),
                Err(error) => Reply::new(false, error.to_string()),
            };
            let _ = reply.send(answer);
        });
        if let Err(error) = started {
            tracing::error!(%error, "no rehearsal");
        }
    }
}
