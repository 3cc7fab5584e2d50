//! What an agent decides: when a primary is dead, who takes over, what is tried again. Events and time come in, actions go out; there is
//! no clock, thread, socket or process in here.
//!
//! Safety doesn't rest on any of it: two agents that both believe in themselves fence each other at the units, and the later fence stands.
//! What is decided here is that it happens soon after a failure, and not without one.

use std::fmt;

mod lead;
mod stand_by;

/// Milliseconds of a clock that never goes back.
pub type Millis = u64;

/// Bounds of the waits, all in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A beat, or a peer, that was not heard for so long is silent.
    pub silence_ms: Millis,
    /// The program beats. Else only its agent tells of it.
    pub beats: bool,
    /// A program that hangs is killed by its own agent. Else that only says so.
    pub kills_hung: bool,
    /// How long a program may take until it is ready.
    pub start_timeout_ms: Millis,
    /// How often a program is started before the agent gives up.
    pub start_attempts: u32,
    /// Between two attempts.
    pub start_pause_ms: Millis,
    /// How long a program that was told to end may take.
    pub stop_timeout_ms: Millis,
    /// Between two snapshots that the agent causes; none where it causes none.
    pub snapshot_every_ms: Option<Millis>,
    /// Failed health commands in a row that count as a hang.
    pub health_failures_max: u32,
    /// After its own program's end: how long the others have to take over before this agent does so itself.
    pub grace_ms: Millis,
    /// A lease must be held before anything is taken over.
    pub needs_lease: bool,
    /// It takes over by itself. Else only when it is told to, as by a cluster manager.
    pub automatic: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            silence_ms: 1000,
            beats: true,
            kills_hung: true,
            start_timeout_ms: 30_000,
            start_attempts: 3,
            start_pause_ms: 1000,
            stop_timeout_ms: 30_000,
            snapshot_every_ms: None,
            health_failures_max: 3,
            grace_ms: 5000,
            needs_lease: false,
            automatic: true,
        }
    }
}

/// What one agent tells another of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It stands by.
    Standby,
    /// It is taking over, or its program starts.
    Starting,
    /// Its program works.
    Primary,
    /// Its program was told to end on purpose, and is still at it: nobody shall take over.
    Ending,
    /// Its program, which worked, has ended or hangs; nobody leads that it knows of.
    Dead,
    /// It has stopped its program for a planned move.
    Yielded,
    /// Its program has done its work, or was stopped on purpose: nobody shall take over.
    Finished,
    /// It couldn't start its program.
    GivenUp,
    /// Its program was stopped on purpose, and nobody is to lead before somebody is told to.
    Demoted,
}

impl Standing {
    /// Its program works, and be it at its end.
    #[must_use]
    pub const fn leads(self) -> bool {
        matches!(self, Self::Primary | Self::Ending)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Standby => "standby",
            Self::Starting => "starting",
            Self::Primary => "primary",
            Self::Ending => "ending",
            Self::Dead => "dead",
            Self::Yielded => "yielded",
            Self::Finished => "finished",
            Self::GivenUp => "given up",
            Self::Demoted => "demoted",
        })
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time has passed. Comes several times in each silence.
    Tick,
    /// The region's beat has changed.
    Beat,
    /// The units can be read, or not any more.
    Units {
        /// Whether.
        reachable: bool,
    },
    /// A peer tells how it stands.
    Peer {
        /// How.
        standing: Standing,
        /// The epoch that it leads in, or has seen last.
        epoch: u64,
    },
    /// The program says that it works, or an adopted one was found working.
    Ready {
        /// The epoch in which it writes; 0 if it doesn't say.
        epoch: u64,
        /// The units have seen to it that nobody came between our fence and its opening.
        held: bool,
    },
    /// The program is being killed, or fails. Its end is still to come: until then it has its memory, its ports and its files.
    Dying,
    /// The program has ended.
    Exited {
        /// With exit code 0.
        clean: bool,
    },
    /// The program could not be started at all.
    StartFailed,
    /// The program says that another primary has taken over.
    Fenced,
    /// The health command has succeeded or failed.
    Health {
        /// Whether.
        good: bool,
    },
    /// A snapshot that was ordered is done, well or not.
    SnapshotDone {
        /// Of the order.
        id: u64,
    },
    /// The fence stands and the state is recovered.
    TakenOver {
        /// The region's epoch now.
        epoch: u64,
    },
    /// It could not be taken over.
    NotTakenOver {
        /// Why.
        reason: Refusal,
    },
    /// Who holds the region, as the units say.
    Leader {
        /// Somebody else does.
        other: bool,
    },
    /// The lease is ours, or not.
    Lease {
        /// Whether.
        held: bool,
    },
    /// A person wants this agent to lead.
    Promote {
        /// Without asking the one that leads now.
        force: bool,
    },
    /// A peer that is to lead asks this agent to stop its program.
    Yield,
    /// A person, or a cluster manager, wants this agent to stop its program and to stand by.
    Demote,
    /// A person, or the service manager, wants program and agent to end.
    Stop,
}

/// Why nothing was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Somebody else holds the region, or was faster.
    Held,
    /// Too few units answer, or they refuse.
    Units,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fence, recover, and report.
    TakeOver {
        /// Only if no primary holds the region.
        unless_held: bool,
    },
    /// Start the program with what was recovered.
    Start,
    /// Kill the program.
    Kill,
    /// Tell the program to end.
    Order(Ending),
    /// Ask the program for a snapshot.
    Snapshot {
        /// To be reported with it.
        id: u64,
    },
    /// Follow the primary's regions.
    Follow,
    /// Ask the peer that leads to stop its program.
    AskYield,
    /// Ask the units who holds the region.
    LookForLeader {
        /// A higher epoch is somebody else's; 0 where that can't be said.
        own_up_to: u64,
    },
    /// Get the lease, or find out that it is not to be had.
    Acquire,
    /// Give the lease back.
    Release,
    /// Tell people.
    Say(Level, String),
    /// End this agent.
    Exit {
        /// Its exit code.
        code: u8,
    },
}

/// How the program is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By its socket, or with SIGTERM where it has none.
    Stop,
}

/// How loud something is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it goes.
    Info,
    /// Something is not as it should be.
    Warning,
    /// Somebody must look.
    Error,
}

/// What it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Stands by.
    Standby,
    /// Waits for the lease.
    Acquiring {
        /// Only take over what nobody holds.
        unless_held: bool,
    },
    /// Waits for the peer that leads to stop its program.
    Moving {
        /// Since when.
        since: Millis,
    },
    /// Fences and recovers.
    TakingOver,
    /// The program starts.
    Starting {
        /// Since when.
        since: Millis,
    },
    /// The program ended before it was ready: the units are asked whether somebody else leads.
    Asking,
    /// The program is started again at this time.
    Pausing {
        /// When.
        until: Millis,
    },
    /// The program works.
    Primary,
    /// The program has ended well: the units are asked whether it was done, or fenced.
    Closing,
    /// The program was told to end, for a move.
    Yielding {
        /// Since when.
        since: Millis,
        /// A peer is to lead. Else nobody, until somebody is told to.
        to_peer: bool,
    },
    /// The program was told to end, and the agent with it.
    Stopping {
        /// Since when.
        since: Millis,
    },
    /// The program couldn't be started.
    GivenUp,
    /// All is over.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    phase: Phase,
    now: Millis,
    /// When it was called last.
    called: Millis,
    /// A program of ours may run: until its end is an event.
    has_program: bool,
    /// It took too long, and was killed for that.
    killed: bool,
    epoch: u64,
    /// The program itself has told its epoch.
    epoch_told: bool,
    /// That of our last fence; 0 where it isn't known, as over several units.
    fenced_in: u64,
    attempts: u32,
    /// When a beat was seen last, and whether ever.
    beat_at: Millis,
    beat_seen: bool,
    units_reachable: bool,
    /// When a peer was heard last, and what it said.
    peer_at: Millis,
    peer: Option<(Standing, u64)>,
    /// Since when it says that.
    peer_since: Millis,
    /// A primary was seen at work since this agent stands by.
    primary_seen: bool,
    /// What to tell of a program of ours that is gone, while nobody else leads.
    left: Option<Standing>,
    left_at: Millis,
    /// Our program hangs, and that was said.
    hung: bool,
    health_failures: u32,
    snapshot_id: u64,
    snapshot_asked: Option<Millis>,
    snapshot_at: Millis,
    /// After a takeover that failed the next one is not before this.
    not_before: Millis,
    /// The last takeover was to take only what nobody holds: so is one that follows because it failed.
    unless_held: bool,
    /// The lease was given back because no beat was seen of our program, which may work on; and whether one was seen since.
    lease_left: bool,
    beaten_since: bool,
    /// It was started to lead if nobody else does, and nobody has led yet, neither it nor another.
    begins: bool,
    /// This takeover is its own idea, for a failure that was seen.
    by_itself: bool,
    /// Said already, not to be said again in this phase.
    said_unseen: bool,
    actions: Vec<Action>,
}

impl Machine {
    /// An agent that stands by from the beginning.
    #[must_use]
    pub fn standby(settings: Settings, now: Millis) -> Self {
        let mut machine = Self::new(settings, now);
        machine.stand_by();
        machine
    }

    /// An agent that leads if nobody else does.
    #[must_use]
    pub fn primary(settings: Settings, now: Millis) -> Self {
        let mut machine = Self::new(settings, now);
        machine.begin_take_over(true);
        machine.begins = true;
        machine
    }

    /// An agent that finds its program at work in an epoch.
    #[must_use]
    pub fn adopting(settings: Settings, epoch: u64, now: Millis) -> Self {
        let mut machine = Self::new(settings, now);
        machine.has_program = true;
        machine.lead(epoch);
        if machine.settings.needs_lease {
            machine.act(Action::Acquire);
        }
        machine
    }

    fn new(settings: Settings, now: Millis) -> Self {
        Self {
            settings,
            phase: Phase::Standby,
            now,
            called: now,
            has_program: false,
            killed: false,
            epoch: 0,
            epoch_told: false,
            fenced_in: 0,
            attempts: 0,
            beat_at: now,
            beat_seen: false,
            units_reachable: false,
            peer_at: now,
            peer: None,
            peer_since: now,
            primary_seen: false,
            left: None,
            left_at: now,
            hung: false,
            health_failures: 0,
            snapshot_id: 0,
            snapshot_asked: None,
            snapshot_at: now,
            not_before: 0,
            unless_held: false,
            lease_left: false,
            beaten_since: false,
            begins: false,
            by_itself: false,
            said_unseen: false,
            actions: Vec::new(),
        }
    }

    /// What it is doing.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The epoch that it leads in, or has seen last; 0 for none.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What to tell peers.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.phase {
            Phase::Standby | Phase::Moving { .. } | Phase::Acquiring { .. } => {
                self.left.unwrap_or(Standing::Standby)
            }
            Phase::TakingOver | Phase::Starting { .. } | Phase::Asking | Phase::Pausing { .. } => {
                Standing::Starting
            }
            Phase::Primary if self.hung => Standing::Dead,
            Phase::Primary | Phase::Closing => Standing::Primary,
            // The peer waits for it, and takes over if it fails.
            Phase::Yielding { to_peer: true, .. } => Standing::Primary,
            Phase::Yielding { .. } | Phase::Stopping { .. } => Standing::Ending,
            Phase::GivenUp => Standing::GivenUp,
            Phase::Ended => Standing::Finished,
        }
    }

    /// Takes an event at a time, and gives what to do, in this order. Time that seems to go back stands still.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        self.pass_time(now);
        match event {
            Event::Tick => {}
            Event::Beat => self.beat_seen(),
            Event::Units { reachable } => self.units(reachable),
            Event::Peer { standing, epoch } => self.heard(standing, epoch),
            Event::Ready { epoch, held } => self.ready(epoch, held),
            Event::Dying => self.dying(),
            Event::Exited { clean } => self.exited(clean),
            Event::StartFailed => self.exited(false),
            Event::Fenced => self.fenced(),
            Event::Health { good } => self.health(good),
            Event::SnapshotDone { id } => self.snapshot_done(id),
            Event::TakenOver { epoch } => self.taken_over(epoch),
            Event::NotTakenOver { reason } => self.not_taken_over(reason),
            Event::Leader { other } => self.leader(other),
            Event::Lease { held } => self.lease(held),
            Event::Promote { force } => self.promote(force),
            Event::Yield => self.yield_to_peer(),
            Event::Demote => self.demote(),
            Event::Stop => self.stop(),
        }
        self.look_at_the_clock();
        std::mem::take(&mut self.actions)
    }

    /// Time in which this agent itself was not running says nothing of others: it is left out of every silence.
    fn pass_time(&mut self, now: Millis) {
        self.now = self.now.max(now);
        let gap = self.now - self.called;
        self.called = self.now;
        if gap > self.settings.silence_ms / 2 {
            self.beat_at = (self.beat_at + gap).min(self.now);
            self.peer_at = (self.peer_at + gap).min(self.now);
            self.peer_since = (self.peer_since + gap).min(self.now);
            self.left_at = (self.left_at + gap).min(self.now);
            // Nor of what our own program was told to do: on a computer that stood still, it stood still as well.
            if let Phase::Moving { since }
            | Phase::Starting { since }
            | Phase::Yielding { since, .. }
            | Phase::Stopping { since } = &mut self.phase
            {
                *since = (*since + gap).min(self.now);
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        match self.phase {
            Phase::Standby => self.judge_the_primary(),
            Phase::Moving { since } => self.judge_the_move(since),
            Phase::Starting { since } => self.judge_the_start(since),
            Phase::Pausing { until } if self.now >= until => self.start_again(),
            Phase::Primary => self.judge_our_program(),
            Phase::Yielding { since, .. } | Phase::Stopping { since } => self.judge_the_end(since),
            _ => {}
        }
    }

    fn beat_seen(&mut self) {
        self.beat_at = self.now;
        (self.beat_seen, self.beaten_since) = (true, true);
        // Our own program's beats have ended with it: somebody else leads.
        let own = self.has_program || self.now - self.left_at < self.settings.silence_ms;
        if self.left.is_some() && !own {
            self.left = None;
        }
        // So have those of a peer that was stopped on purpose, and until then they say nothing.
        let ends = matches!(self.peer, Some((Standing::Ending, _)));
        let just_now = self.now - self.peer_since < self.settings.silence_ms;
        let stopped = ends || (self.peer_was_stopped() && just_now);
        if self.phase == Phase::Standby && self.left.is_none() && !stopped {
            self.primary_seen = true;
        }
    }

    /// While the units can't be read, nothing is known of beats.
    fn units(&mut self, reachable: bool) {
        if reachable && !self.units_reachable {
            self.beat_at = self.now;
        }
        if reachable != self.units_reachable {
            let (level, what) = match reachable {
                true => (Level::Info, "the units answer"),
                false => (
                    Level::Warning,
                    "the units don't answer: beats can't be seen",
                ),
            };
            self.say(level, what);
        }
        self.units_reachable = reachable;
    }

    /// How long a beat that was seen may be away; the first one may take as long as a start.
    fn beat_patience(&self) -> Millis {
        let twice = 2 * self.settings.silence_ms;
        match self.beat_seen {
            true => twice,
            false => twice.max(self.settings.start_timeout_ms),
        }
    }

    fn beat_is_silent_for(&self, silence: Millis) -> bool {
        self.units_reachable && self.now - self.beat_at >= silence
    }

    fn peer_is_silent(&self) -> bool {
        self.now - self.peer_at >= self.settings.silence_ms
    }

    /// On purpose, the last that was heard of it.
    fn peer_was_stopped(&self) -> bool {
        let said = self.peer.map(|(standing, _)| standing);
        matches!(
            said,
            Some(Standing::Ending | Standing::Demoted | Standing::Finished)
        )
    }

    /// The same, where the epoch of our fence is known: what was said before it is not taken for something behind it.
    fn peer_fenced_after_us(&self) -> bool {
        self.fenced_in > 0 && self.peer_is_ahead()
    }

    /// It has fenced after us: it says so, with the epoch of its fence.
    fn peer_is_ahead(&self) -> bool {
        let said = self.peer.filter(|_| !self.peer_is_silent());
        said.is_some_and(|(standing, epoch)| {
            (standing.leads() || standing == Standing::Starting) && epoch > self.epoch
        })
    }

    fn say(&mut self, level: Level, what: impl Into<String>) {
        self.actions.push(Action::Say(level, what.into()));
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}
