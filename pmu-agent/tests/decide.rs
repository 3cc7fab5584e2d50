//! The machine in a world made up from a seed: two agents, their programs, a region that knows epochs, and everything that can go wrong between them.
//! A failure names its seed; `PMU_SEED=N cargo test -p pmu-agent --test decide` runs that one alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

use pmu_agent::decide::{Action, Ending, Event, Machine, Phase, Refusal, Settings, Standing};

const STEP_MS: u64 = 10;
const SILENCE_MS: u64 = 200;
const LEASE_MS: u64 = 1000;
const FAULTS_UNTIL_MS: u64 = 20_000;
const END_MS: u64 = 40_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

fn settings() -> Settings {
    Settings {
        silence_ms: SILENCE_MS,
        start_timeout_ms: 2000,
        start_attempts: 3,
        start_pause_ms: 100,
        stop_timeout_ms: 500,
        grace_ms: 1000,
        ..Settings::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Starting { ready_at: u64 },
    Open { epoch: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Program {
    work: Work,
    hangs: bool,
    /// It was told to end.
    told: bool,
    /// Nobody knows how it ends.
    adopted: bool,
    /// What it was handed.
    handed: Recovered,
}

/// What a takeover read: everything that was acknowledged when its fence stood.
#[derive(Debug, Clone, Copy, Default)]
struct Recovered {
    epoch: u64,
    commits: u64,
}

struct Agent {
    machine: Machine,
    program: Option<Program>,
    /// Events that are under way, with the time at which they arrive.
    mail: Vec<(u64, Event)>,
    /// Not running until then; its clock runs on.
    paused_until: u64,
    /// Cut off from the units until then, its program too.
    cut_until: u64,
    was_cut: Option<bool>,
    takeovers: u32,
    recovered: Option<Recovered>,
    /// A program that runs on, of an agent that is no more: in this epoch.
    orphan: Option<u64>,
}

struct World {
    random: Random,
    now: u64,
    epoch: u64,
    writer: Option<usize>,
    agents: [Agent; 2],
    link_cut_until: u64,
    /// Which program committed last, in which epoch, and when.
    committed: Option<(usize, u64, u64)>,
    beats: u64,
    beats_seen: [u64; 2],
    /// That were acknowledged, by whomever.
    commits: u64,
    seed: u64,
    settings: Settings,
    /// Who holds the lease, and until when.
    lease: Option<(usize, u64)>,
}

impl Agent {
    fn new(machine: Machine) -> Self {
        Self {
            machine,
            program: None,
            mail: Vec::new(),
            paused_until: 0,
            cut_until: 0,
            was_cut: None,
            takeovers: 0,
            recovered: None,
            orphan: None,
        }
    }
}

impl World {
    fn new(seed: u64, both_primary: bool) -> Self {
        Self::with(settings(), seed, both_primary)
    }

    fn with(settings: Settings, seed: u64, both_primary: bool) -> Self {
        let second = match both_primary {
            true => Machine::primary(settings.clone(), 0),
            false => Machine::standby(settings.clone(), 0),
        };
        Self {
            random: Random(seed),
            now: 0,
            epoch: 0,
            writer: None,
            agents: [
                Agent::new(Machine::primary(settings.clone(), 0)),
                Agent::new(second),
            ],
            link_cut_until: 0,
            committed: None,
            beats: 0,
            beats_seen: [0; 2],
            commits: 0,
            seed,
            settings,
            lease: None,
        }
    }

    fn give(&mut self, which: usize, event: Event) {
        let now = self.now;
        let actions = self.agents[which].machine.step(now, event);
        for action in actions {
            self.act(which, action);
        }
    }

    fn later(&mut self, which: usize, event: Event, at_most: u64) {
        let at = self.now + 1 + self.random.below(at_most);
        self.agents[which].mail.push((at, event));
    }

    fn is_cut(&self, which: usize) -> bool {
        self.now < self.agents[which].cut_until
    }

    fn act(&mut self, which: usize, action: Action) {
        match action {
            Action::TakeOver { unless_held } => self.take_over(which, unless_held),
            Action::Start => {
                // Nothing is ever started but behind a fence of our own.
                let handed = self.agents[which].recovered.expect("no fence of its own");
                assert!(
                    self.agents[which].program.is_none(),
                    "seed {}: two programs",
                    self.seed
                );
                // The ends of earlier ones are told apart by their serial numbers.
                let of_earlier =
                    |event: &Event| matches!(event, Event::Dying | Event::Exited { .. });
                self.agents[which]
                    .mail
                    .retain(|(_, event)| !of_earlier(event));
                // Often longer than the others would be silent.
                let ready_at = self.now + 20 + self.random.below(5 * SILENCE_MS);
                self.agents[which].program = Some(Program {
                    work: Work::Starting { ready_at },
                    hangs: false,
                    told: false,
                    adopted: false,
                    handed,
                });
            }
            Action::Kill => self.end_program(which, false),
            Action::Order(Ending::Stop) => {
                if let Some(program) = &mut self.agents[which].program {
                    program.told = true;
                }
            }
            Action::LookForLeader { own_up_to } => {
                let other = self.writer.is_some_and(|writer| writer != which)
                    || (own_up_to > 0 && self.epoch > own_up_to);
                self.later(which, Event::Leader { other }, 20);
            }
            Action::Acquire => self.acquire(which),
            Action::Release => self.lease = self.lease.filter(|(holder, _)| *holder != which),
            Action::AskYield if self.now >= self.link_cut_until => {
                self.later(1 - which, Event::Yield, 20);
            }
            Action::Exit { .. } => panic!("seed {}: nobody was told to end", self.seed),
            _ => {}
        }
    }

    fn acquire(&mut self, which: usize) {
        let held = self.lease.is_none_or(|(holder, _)| holder == which);
        if held {
            self.lease = Some((which, self.now + LEASE_MS));
        }
        self.later(which, Event::Lease { held }, if held { 20 } else { 500 });
    }

    /// Whoever holds it renews it, unless it isn't running.
    fn keep_the_lease(&mut self) {
        let Some((holder, until)) = self.lease else {
            return;
        };
        if self.now >= self.agents[holder].paused_until {
            self.lease = Some((holder, self.now + LEASE_MS));
        } else if self.now >= until {
            self.lease = None;
            self.later(holder, Event::Lease { held: false }, 20);
        }
    }

    fn take_over(&mut self, which: usize, unless_held: bool) {
        let event = if self.is_cut(which) {
            Event::NotTakenOver {
                reason: Refusal::Units,
            }
        } else if unless_held && self.writer.is_some() {
            Event::NotTakenOver {
                reason: Refusal::Held,
            }
        } else {
            self.epoch += 1;
            self.writer = None;
            self.agents[which].takeovers += 1;
            self.agents[which].recovered = Some(Recovered {
                epoch: self.epoch,
                commits: self.commits,
            });
            Event::TakenOver { epoch: self.epoch }
        };
        self.later(which, event, 50);
    }

    fn end_program(&mut self, which: usize, clean: bool) {
        if let Some(program) = self.agents[which].program.take() {
            let clean = clean && !program.adopted;
            if self.writer == Some(which) {
                self.writer = None;
            }
            // Its memory may be large: then its end is long in coming, but told before.
            let slow = !clean && self.random.one_in(2);
            if slow {
                self.later(which, Event::Dying, 5);
            }
            let at_most = if slow { 1500 } else { 5 };
            self.later(which, Event::Exited { clean }, at_most);
        }
    }

    fn programs_work(&mut self, which: usize) {
        let Some(program) = self.agents[which].program else {
            return;
        };
        if program.hangs {
            return;
        }
        if program.told {
            self.end_program(which, true);
            return;
        }
        if self.is_cut(which) {
            return;
        }
        match program.work {
            Work::Starting { ready_at } if self.now < ready_at => {}
            Work::Starting { .. } if self.writer.is_some() => self.end_program(which, false),
            // The units refuse who goes on from another fence than the last.
            Work::Starting { .. } if self.epoch != program.handed.epoch => {
                self.end_program(which, false);
            }
            Work::Starting { .. } => {
                let (knows, all, seed) = (program.handed.commits, self.commits, self.seed);
                assert_eq!(knows, all, "seed {seed}: it leads without knowing all");
                self.epoch += 1;
                self.writer = Some(which);
                let epoch = self.epoch;
                if let Some(program) = &mut self.agents[which].program {
                    program.work = Work::Open { epoch };
                }
                self.later(which, Event::Ready { epoch, held: true }, 5);
            }
            Work::Open { epoch } if epoch == self.epoch => self.commit(which, epoch),
            Work::Open { .. } => {
                self.later(which, Event::Fenced, 5);
                self.end_program(which, false);
            }
        }
    }

    fn commit(&mut self, which: usize, epoch: u64) {
        self.beats += 1;
        self.commits += 1;
        if let Some((other, before, _)) = self.committed {
            let seed = self.seed;
            assert!(before < epoch || other == which, "seed {seed}: two leaders");
            assert!(before <= epoch, "seed {seed}: an older epoch commits");
        }
        self.committed = Some((which, epoch, self.now));
    }

    fn orphan_works(&mut self, which: usize) {
        match self.agents[which].orphan {
            Some(_) if self.is_cut(which) => {}
            Some(epoch) if epoch == self.epoch => self.commit(which, epoch),
            _ => self.agents[which].orphan = None,
        }
    }

    fn deliver(&mut self, which: usize) {
        if self.now < self.agents[which].paused_until {
            return;
        }
        let cut = self.is_cut(which);
        if self.agents[which].was_cut != Some(cut) {
            self.agents[which].was_cut = Some(cut);
            self.give(which, Event::Units { reachable: !cut });
        }
        if !cut && self.beats_seen[which] != self.beats {
            self.beats_seen[which] = self.beats;
            self.give(which, Event::Beat);
        }
        let now = self.now;
        let mail = std::mem::take(&mut self.agents[which].mail);
        // In any order.
        let (due, rest): (Vec<_>, Vec<_>) = mail.into_iter().partition(|(at, _)| *at <= now);
        self.agents[which].mail.extend(rest);
        for (_, event) in due {
            self.give(which, event);
        }
        self.give(which, Event::Tick);
        if self.now >= self.link_cut_until && (self.now / STEP_MS).is_multiple_of(4) {
            let machine = &self.agents[which].machine;
            let (standing, epoch) = (machine.standing(), machine.epoch());
            self.later(1 - which, Event::Peer { standing, epoch }, 30);
        }
    }

    fn something_fails(&mut self) {
        let which = self.random.below(2) as usize;
        let how_long = 50 + self.random.below(3000);
        let until = self.now + how_long;
        match self.random.below(6) {
            0 => self.end_program(which, false),
            1 => {
                if let Some(program) = &mut self.agents[which].program {
                    program.hangs = true;
                }
            }
            2 => self.link_cut_until = until,
            3 => self.agents[which].cut_until = until,
            4 => self.agents[which].paused_until = until,
            _ => self.give(which, Event::Promote { force: false }),
        }
    }

    /// The computer fails and comes back: its agent stands by, and knows of nothing.
    fn fail_and_come_back(&mut self, which: usize) {
        self.fail_and_begin(which, Machine::standby(self.settings.clone(), self.now));
    }

    fn fail_and_begin(&mut self, which: usize, machine: Machine) {
        if self.writer == Some(which) {
            self.writer = None;
        }
        self.begin_anew(which, machine);
    }

    fn begin_anew(&mut self, which: usize, machine: Machine) {
        let takeovers = self.agents[which].takeovers;
        self.agents[which] = Agent::new(machine);
        self.agents[which].takeovers = takeovers;
        self.agents[which].paused_until = self.now + self.random.below(3 * SILENCE_MS);
        self.beats_seen[which] = self.beats;
    }

    /// The agent alone fails and comes back. It adopts its program, or knows of nothing while that runs on.
    fn agent_fails(&mut self, which: usize, adopts: bool) {
        let program = self.agents[which].program;
        let open = match program.map(|program| program.work) {
            Some(Work::Open { epoch }) => Some(epoch),
            _ => None,
        };
        match open {
            Some(_) if adopts => {
                self.begin_anew(which, Machine::adopting(self.settings.clone(), 0, self.now));
                self.agents[which].program = program.map(|program| Program {
                    adopted: true,
                    ..program
                });
            }
            _ => {
                let orphan = open.or(self.agents[which].orphan);
                self.begin_anew(which, Machine::standby(self.settings.clone(), self.now));
                self.agents[which].orphan = orphan;
            }
        }
    }

    fn some_agent_fails(&mut self, which: usize) {
        match self.random.below(4) {
            0 => self.fail_and_come_back(which),
            1 => self.agent_fails(which, true),
            2 => self.agent_fails(which, false),
            _ => {
                let machine = Machine::primary(self.settings.clone(), self.now);
                self.fail_and_begin(which, machine);
                // Its first order was taken from it with its first step.
                self.give(which, Event::Tick);
            }
        }
    }

    fn somebody_orders(&mut self, which: usize) {
        let event = match self.random.below(3) {
            0 => Event::Demote,
            1 => Event::Promote { force: true },
            _ => Event::Promote { force: false },
        };
        self.give(which, event);
    }

    fn is_working(&self) -> bool {
        self.committed.is_some_and(|(.., at)| at + 100 > self.now)
    }

    fn run_until(&mut self, until: u64) {
        while self.now < until {
            self.step();
        }
    }

    /// One leads, and the other has seen it for long.
    fn is_well(&self) -> bool {
        let phases = [0, 1].map(|which: usize| self.agents[which].machine.phase());
        let pair = matches!(
            phases,
            [Phase::Primary, Phase::Standby] | [Phase::Standby, Phase::Primary]
        );
        pair && self.is_working()
    }

    fn step(&mut self) {
        self.now += STEP_MS;
        self.keep_the_lease();
        for which in 0..2 {
            self.programs_work(which);
            self.orphan_works(which);
        }
        for which in 0..2 {
            self.deliver(which);
        }
    }

    fn describe(&self) -> String {
        let agents = self.agents.iter().map(|agent| {
            format!(
                "{:?} {} epoch {} program {:?}",
                agent.machine.phase(),
                agent.machine.standing(),
                agent.machine.epoch(),
                agent.program
            )
        });
        let agents: Vec<_> = agents.collect();
        format!(
            "seed {}: epoch {}, writer {:?}, committed {:?}; {}",
            self.seed,
            self.epoch,
            self.writer,
            self.committed,
            agents.join("; ")
        )
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("PMU_SEED") {
        Ok(seed) => vec![seed.parse().expect("PMU_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

#[test]
fn s05_somebody_leads_again_after_whatever_failed_and_never_two() {
    let mut takeovers = 0;
    for seed in seeds(1000) {
        let mut world = World::new(seed, seed % 4 == 0);
        while world.now < END_MS {
            world.step();
            if world.now < FAULTS_UNTIL_MS && world.now > 1000 && world.random.one_in(120) {
                world.something_fails();
            }
        }
        let working = world.committed.is_some_and(|(.., at)| at + 100 > END_MS);
        assert!(working, "nobody works: {}", world.describe());
        let leaders = world
            .agents
            .iter()
            .filter(|agent| agent.machine.phase() == Phase::Primary);
        assert_eq!(leaders.count(), 1, "{}", world.describe());
        takeovers += world
            .agents
            .iter()
            .map(|agent| agent.takeovers)
            .sum::<u32>();
    }
    // The world is not so kind that nothing ever happened.
    assert!(
        takeovers > 1000 || std::env::var("PMU_SEED").is_ok(),
        "{takeovers} takeovers"
    );
}

#[test]
fn s05_a_computer_that_fails_and_is_back_at_once_has_failed() {
    for seed in seeds(300) {
        let mut world = World::new(seed, false);
        let fails_at = 2000 + seed % 1000;
        while world.now < 8000 {
            world.step();
            if world.now / STEP_MS == fails_at / STEP_MS {
                world.fail_and_come_back(0);
            }
        }
        let working = world
            .committed
            .is_some_and(|(who, _, at)| who == 1 && at + 100 > 8000);
        assert!(working, "nobody works: {}", world.describe());
        assert_eq!(
            world.agents[0].machine.phase(),
            Phase::Standby,
            "seed {seed}"
        );
    }
}

#[test]
fn s05_somebody_leads_again_whichever_agents_begin_anew_and_whoever_orders_what() {
    let (mut promoted, mut count) = (0, 0);
    for seed in seeds(1000) {
        let needs_lease = seed % 3 == 0;
        let settings = Settings {
            needs_lease,
            ..settings()
        };
        let mut world = World::with(settings, seed, seed % 4 == 0);
        while world.now < FAULTS_UNTIL_MS {
            world.step();
            let which = world.random.below(2) as usize;
            match world.random.below(800) {
                _ if world.now < 1000 => {}
                0..4 => world.something_fails(),
                4..6 => world.some_agent_fails(which),
                6 => world.somebody_orders(which),
                _ => {}
            }
        }
        world.run_until(30_000);
        count += 1;
        if !world.is_working() {
            // It was demoted, or nobody has seen one lead: whoever is told to leads.
            promoted += 1;
            let which = (seed % 2) as usize;
            world.give(which, Event::Promote { force: false });
            world.run_until(END_MS);
        }
        assert!(world.is_working(), "nobody works: {}", world.describe());
        let epoch = world.epoch;
        let leaders = world.agents.iter().filter(|agent| {
            let work = agent.program.map(|program| program.work);
            let leads = agent.machine.phase() == Phase::Primary;
            (leads && work == Some(Work::Open { epoch })) || agent.orphan == Some(epoch)
        });
        assert_eq!(leaders.count(), 1, "{}", world.describe());
    }
    assert!(
        (1..count).contains(&promoted) || count == 1,
        "{promoted} of {count}"
    );
}

#[test]
fn s05_an_agent_that_begins_anew_in_whatever_way_leaves_a_pair_that_leads() {
    for seed in seeds(500) {
        let needs_lease = seed % 3 == 0;
        let settings = Settings {
            needs_lease,
            ..settings()
        };
        let mut world = World::with(settings, seed, false);
        let mut well_since = 0;
        while world.now < FAULTS_UNTIL_MS {
            world.step();
            if !world.is_well() {
                well_since = world.now;
            } else if world.now - well_since > 1000 && world.random.one_in(30) {
                let which = world.random.below(2) as usize;
                world.some_agent_fails(which);
            }
        }
        world.run_until(END_MS - 10_000);
        assert!(world.is_working(), "nobody works: {}", world.describe());
    }
}

#[test]
fn s10_whatever_happens_after_a_demotion_nobody_leads_before_somebody_is_told_to() {
    for seed in seeds(500) {
        let mut world = World::new(seed, false);
        world.run_until(2000);
        assert!(world.is_well(), "{}", world.describe());
        world.give(0, Event::Demote);
        world.run_until(2100);
        while world.now < 10_000 {
            world.step();
            let which = world.random.below(2) as usize;
            let until = world.now + world.random.below(3000);
            match world.random.below(400) {
                0 => world.link_cut_until = until,
                1 => world.agents[which].cut_until = until,
                2 => world.agents[which].paused_until = until,
                3 => world.fail_and_come_back(which),
                _ => {}
            }
        }
        let takeovers = [world.agents[0].takeovers, world.agents[1].takeovers];
        assert_eq!(takeovers, [1, 0], "{}", world.describe());
        world.run_until(14_000);
        let which = (seed % 2) as usize;
        world.give(which, Event::Promote { force: false });
        world.run_until(18_000);
        assert!(world.is_well(), "{}", world.describe());
        // The demotion is over: whoever leads now is relieved as ever.
        world.fail_and_come_back(which);
        world.run_until(22_000);
        assert!(world.is_working(), "nobody works: {}", world.describe());
    }
}

#[test]
fn s05_without_a_failure_nobody_takes_over() {
    for seed in seeds(200) {
        let mut world = World::new(seed, false);
        while world.now < 10_000 {
            world.step();
            // The standby's own pauses, and an unplugged link, are no failures of the primary.
            if world.random.one_in(200) {
                world.agents[1].paused_until = world.now + world.random.below(3000);
            }
            if world.random.one_in(200) {
                world.link_cut_until = world.now + world.random.below(3000);
            }
        }
        let takeovers = [world.agents[0].takeovers, world.agents[1].takeovers];
        assert_eq!(takeovers, [1, 0], "{}", world.describe());
    }
}

#[test]
fn s05_of_two_that_begin_as_primary_one_leads_and_the_other_stands_by() {
    for seed in seeds(500) {
        let mut world = World::new(seed, true);
        while world.now < 8000 {
            world.step();
        }
        let phases = [0, 1].map(|which: usize| world.agents[which].machine.phase());
        let one = matches!(
            phases,
            [Phase::Primary, Phase::Standby] | [Phase::Standby, Phase::Primary]
        );
        assert!(one, "{}", world.describe());
    }
}

fn say(machine: &mut Machine, now: u64, standing: Standing) -> Vec<Action> {
    machine.step(now, Event::Peer { standing, epoch: 3 })
}

fn takes_over(actions: &[Action]) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, Action::TakeOver { .. }))
}

fn looks_for_leader(actions: &[Action]) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, Action::LookForLeader { .. }))
}

fn standby() -> Machine {
    let mut machine = Machine::standby(settings(), 0);
    machine.step(0, Event::Units { reachable: true });
    say(&mut machine, 0, Standing::Primary);
    machine.step(10, Event::Beat);
    machine
}

fn leader() -> Machine {
    let mut machine = Machine::primary(settings(), 0);
    machine.step(0, Event::Units { reachable: true });
    machine.step(10, Event::TakenOver { epoch: 1 });
    machine.step(
        20,
        Event::Ready {
            epoch: 2,
            held: true,
        },
    );
    assert_eq!(machine.phase(), Phase::Primary);
    machine
}

#[test]
fn s05_a_dying_program_is_told_at_once_and_its_end_is_waited_for() {
    let mut machine = leader();
    machine.step(30, Event::Dying);
    assert_eq!(machine.standing(), Standing::Dead);
    // Nobody relieves us, and its memory is being freed all the time.
    for now in (40..10_000).step_by(20) {
        assert!(!takes_over(&machine.tick(now)), "{now}");
    }
    let actions = machine.step(10_000, Event::Exited { clean: false });
    assert!(takes_over(&actions), "{actions:?}");
}

#[test]
fn s05_a_word_of_dying_counts_only_while_the_program_works() {
    let mut machine = Machine::primary(settings(), 0);
    machine.step(10, Event::TakenOver { epoch: 1 });
    assert_eq!(machine.step(20, Event::Dying), []);
    assert!(matches!(machine.phase(), Phase::Starting { .. }));
    let mut machine = leader();
    machine.step(30, Event::Stop);
    machine.step(40, Event::Dying);
    assert!(matches!(machine.phase(), Phase::Stopping { .. }));
}

#[test]
fn s05_an_agents_word_is_enough_at_once() {
    let mut machine = standby();
    assert!(takes_over(&say(&mut machine, 20, Standing::Dead)));
}

#[test]
fn s05_a_silent_agent_is_no_failure_while_the_beat_goes_on() {
    let mut machine = standby();
    for now in (20..5000).step_by(20) {
        assert!(!takes_over(&machine.step(now, Event::Beat)), "{now}");
    }
    let mut at = None;
    for now in (5000..6000).step_by(20) {
        if takes_over(&machine.tick(now)) {
            at = Some(now);
            break;
        }
    }
    assert!(
        at.is_some_and(|at| (5000 + SILENCE_MS - 40..5000 + SILENCE_MS + 40).contains(&at)),
        "{at:?}"
    );
}

#[test]
fn s05_a_stopped_beat_counts_after_three_times_as_long_whatever_the_agent_says() {
    let mut machine = standby();
    let mut at = None;
    for now in (20..2000).step_by(20) {
        if takes_over(&say(&mut machine, now, Standing::Primary)) {
            at = Some(now);
            break;
        }
    }
    assert!(
        at.is_some_and(|at| (3 * SILENCE_MS..3 * SILENCE_MS + 60).contains(&at)),
        "{at:?}"
    );
}

#[test]
fn s05_nothing_is_known_while_the_units_are_out_of_sight() {
    let mut machine = standby();
    machine.step(20, Event::Units { reachable: false });
    for now in (40..20_000).step_by(20) {
        assert!(!takes_over(&machine.tick(now)), "{now}");
    }
    machine.step(20_000, Event::Units { reachable: true });
    assert!(!takes_over(&machine.tick(20_020)));
    let mut later = (20_040..20_400).step_by(20);
    assert!(later.any(|now| takes_over(&machine.tick(now))));
}

#[test]
fn s05_a_second_instance_that_starts_slowly_is_left_alone() {
    let mut machine = Machine::adopting(settings(), 3, 0);
    machine.step(10, Event::Units { reachable: true });
    for now in (20..1000).step_by(20) {
        machine.step(now, Event::Beat);
    }
    machine.step(1000, Event::Exited { clean: false });
    let starting = |epoch| Event::Peer {
        standing: Standing::Starting,
        epoch,
    };
    for now in (1020..2900).step_by(20) {
        assert!(!takes_over(&machine.step(now, starting(5))), "{now}");
    }
    // It works, and has not beaten yet.
    let works = Event::Peer {
        standing: Standing::Primary,
        epoch: 6,
    };
    assert!(!takes_over(&machine.step(2900, works)));
    assert_eq!(machine.epoch(), 6);
    assert_eq!(machine.standing(), Standing::Standby);
}

#[test]
fn s05_where_one_has_given_up_the_other_tries() {
    let mut machine = Machine::adopting(settings(), 3, 0);
    machine.step(10, Event::Exited { clean: false });
    machine.step(
        20,
        Event::Peer {
            standing: Standing::Starting,
            epoch: 5,
        },
    );
    let gave_up = Event::Peer {
        standing: Standing::GivenUp,
        epoch: 5,
    };
    assert!(takes_over(&machine.step(100, gave_up)));
}

#[test]
fn s05_a_clock_that_jumps_kills_nobody() {
    let mut machine = standby();
    for jump in [50_000_u64, 0, 3, 100_000, 99_000, 1_000_000] {
        assert!(!takes_over(&machine.tick(jump)), "{jump}");
    }
}

#[test]
fn s05_work_that_is_done_is_not_taken_over() {
    let mut machine = standby();
    say(&mut machine, 20, Standing::Finished);
    for now in (40..20_000).step_by(20) {
        assert!(!takes_over(&machine.tick(now)), "{now}");
    }
}

#[test]
fn s05_work_that_is_done_stays_done_when_its_agent_begins_anew() {
    let mut machine = standby();
    say(&mut machine, 20, Standing::Finished);
    machine.step(40, Event::Beat);
    for now in (5000..20_000).step_by(20) {
        let actions = say(&mut machine, now, Standing::Standby);
        assert!(!takes_over(&actions), "{now}");
    }
    // It is given more to do.
    say(&mut machine, 20_000, Standing::Starting);
    say(&mut machine, 20_020, Standing::Primary);
    assert!(takes_over(&say(&mut machine, 20_040, Standing::Dead)));
}

#[test]
fn s05_an_agent_that_is_back_with_nothing_counts_as_failed_when_no_beat_is_seen() {
    let mut machine = standby();
    say(&mut machine, 20, Standing::Standby);
    // Its program runs on without it.
    for now in (40..10_000).step_by(40) {
        machine.step(now, Event::Beat);
        assert!(!takes_over(&say(&mut machine, now, Standing::Standby)));
    }
    let mut now = 10_000;
    while !takes_over(&say(&mut machine, now, Standing::Standby)) {
        assert!(now < 10_000 + 2 * SILENCE_MS, "never");
        now += 20;
    }
    assert!(now >= 10_000 - 40 + SILENCE_MS, "too soon: {now}");
}

#[test]
fn s10_after_a_demotion_nobody_leads_before_somebody_is_told_to() {
    let mut machine = leader();
    machine.step(30, Event::Demote);
    machine.step(40, Event::Exited { clean: true });
    assert_eq!(machine.phase(), Phase::Standby);
    assert_eq!(machine.standing(), Standing::Demoted);
    let mut other = standby();
    for now in (50..20_000).step_by(20) {
        assert!(!takes_over(&say(&mut machine, now, Standing::Standby)));
        assert!(!takes_over(&say(&mut other, now, Standing::Demoted)));
    }
    // Nor when the demoted one begins anew.
    for now in (20_000..40_000).step_by(20) {
        assert!(!takes_over(&say(&mut other, now, Standing::Standby)));
    }
    assert!(takes_over(
        &machine.step(40_000, Event::Promote { force: false })
    ));
    assert!(takes_over(
        &other.step(40_000, Event::Promote { force: false })
    ));
}

#[test]
fn s05_a_program_that_ends_well_was_fenced_if_somebody_else_leads() {
    for other in [true, false] {
        let mut machine = leader();
        let actions = machine.step(30, Event::Exited { clean: true });
        assert!(
            actions.contains(&Action::LookForLeader { own_up_to: 2 }),
            "{actions:?}"
        );
        assert_eq!(machine.standing(), Standing::Primary);
        let actions = machine.step(40, Event::Leader { other });
        assert_eq!(
            actions.contains(&Action::Exit { code: 0 }),
            !other,
            "{actions:?}"
        );
        let phase = if other { Phase::Standby } else { Phase::Ended };
        assert_eq!(machine.phase(), phase);
    }
}

#[test]
fn s05_a_start_that_takes_long_is_told_once_and_left_alone() {
    let mut machine = standby();
    let mut told = 0;
    for now in (20..60_000).step_by(20) {
        let actions = say(&mut machine, now, Standing::Starting);
        assert!(!takes_over(&actions), "{now}");
        told += format!("{actions:?}")
            .matches("takes over or starts")
            .count();
    }
    assert_eq!(told, 1);
}

#[test]
fn s10_a_move_asks_first_and_takes_over_when_the_peer_has_stopped() {
    let mut machine = standby();
    let actions = machine.step(20, Event::Promote { force: false });
    assert_eq!(actions, [Action::AskYield]);
    assert!(!takes_over(&say(&mut machine, 40, Standing::Primary)));
    assert!(takes_over(&say(&mut machine, 60, Standing::Yielded)));
}

fn take_over_of(actions: &[Action]) -> Option<bool> {
    actions.iter().find_map(|action| match action {
        Action::TakeOver { unless_held } => Some(*unless_held),
        _ => None,
    })
}

#[test]
fn s10_a_move_goes_on_when_the_peer_has_no_program_any_more() {
    for (standing, unless_held) in [
        (Standing::Dead, Some(false)),
        (Standing::GivenUp, Some(false)),
        (Standing::Demoted, Some(false)),
        // Its agent began anew, and the program may run on.
        (Standing::Standby, Some(true)),
        (Standing::Finished, None),
    ] {
        let mut machine = standby();
        machine.step(20, Event::Promote { force: false });
        let actions = say(&mut machine, 40, standing);
        assert_eq!(take_over_of(&actions), unless_held, "{standing}");
        if unless_held.is_none() {
            assert_eq!(machine.phase(), Phase::Standby);
            for now in (5000..10_000).step_by(20) {
                assert!(!takes_over(&say(&mut machine, now, Standing::Standby)));
            }
        }
    }
}

#[test]
fn s10_whoever_ends_on_purpose_may_take_long_and_is_not_taken_over() {
    for (order, end, standing) in [
        (Event::Stop, Standing::Finished, Phase::Ended),
        (Event::Demote, Standing::Demoted, Phase::Standby),
    ] {
        let mut machine = leader();
        let mut other = standby();
        machine.step(20, order);
        // A long last commit: no beats.
        for now in (40..400).step_by(20) {
            machine.tick(now);
            assert_eq!(machine.standing(), Standing::Ending);
            let actions = say(&mut other, 10 * now, machine.standing());
            assert!(!takes_over(&actions), "{now}");
            // Or some, which are nobody's.
            if now > 200 {
                other.step(10 * now, Event::Beat);
            }
        }
        machine.step(400, Event::Exited { clean: true });
        assert_eq!((machine.phase(), machine.standing()), (standing, end));
        // Nor if its agent says no more, or begins anew.
        for now in (4000..20_000).step_by(20) {
            assert!(!takes_over(&other.tick(now)), "{now}");
        }
        for now in (20_000..30_000).step_by(20) {
            let actions = say(&mut other, now, Standing::Standby);
            assert!(!takes_over(&actions), "{now}");
        }
    }
    // In a move the other one takes over if it fails meanwhile.
    let mut machine = leader();
    machine.step(30, Event::Yield);
    assert_eq!(machine.standing(), Standing::Primary);
    // Whoever is promoted meanwhile waits for the end.
    let mut other = standby();
    say(&mut other, 20, Standing::Ending);
    let actions = other.step(40, Event::Promote { force: false });
    assert!(!takes_over(&actions) && matches!(other.phase(), Phase::Moving { .. }));
    assert!(!takes_over(&say(&mut other, 60, Standing::Ending)));
    assert!(takes_over(&say(&mut other, 80, Standing::Demoted)));
}

#[test]
fn s10_a_demotion_counts_where_the_program_has_ended_already() {
    let mut machine = leader();
    machine.step(30, Event::Exited { clean: false });
    assert_eq!(machine.standing(), Standing::Dead);
    machine.step(40, Event::Demote);
    assert_eq!(machine.standing(), Standing::Demoted);
    for now in (50..20_000).step_by(20) {
        assert!(!takes_over(&say(&mut machine, now, Standing::Standby)));
    }
}

#[test]
fn s10_beats_that_were_under_way_at_a_demotion_are_nobodys() {
    // The peer's, and then its agent ends.
    let mut other = standby();
    say(&mut other, 20, Standing::Demoted);
    other.step(40, Event::Beat);
    for now in (60..20_000).step_by(20) {
        assert!(!takes_over(&other.tick(now)), "{now}");
    }
    // Our own, and we were stopped before they were seen.
    let mut machine = leader();
    machine.step(30, Event::Demote);
    machine.step(40, Event::Exited { clean: true });
    machine.step(5000, Event::Beat);
    for now in (5020..20_000).step_by(20) {
        let actions = say(&mut machine, now, Standing::Standby);
        assert!(!takes_over(&actions), "{now}");
    }
    assert_eq!(machine.standing(), Standing::Demoted);
}

#[test]
fn s10_a_demotion_is_over_when_the_peer_leads_though_nobody_knows_its_epoch() {
    let no_beats = Settings {
        beats: false,
        ..settings()
    };
    let mut machine = Machine::primary(no_beats, 0);
    machine.step(10, Event::TakenOver { epoch: 0 });
    machine.step(
        20,
        Event::Ready {
            epoch: 0,
            held: false,
        },
    );
    machine.step(30, Event::Demote);
    machine.step(40, Event::Exited { clean: true });
    let leads = Event::Peer {
        standing: Standing::Primary,
        epoch: 0,
    };
    machine.step(60, leads);
    assert_eq!(machine.standing(), Standing::Standby);
    let mut now = 60;
    while !takes_over(&machine.tick(now)) {
        assert!(now < 10_000, "never");
        now += 20;
    }
}

#[test]
fn s05_who_was_to_take_only_what_nobody_holds_takes_no_more_later() {
    // It begins before its computer has a way to anybody.
    let mut machine = Machine::primary(settings(), 0);
    let mut actions = machine.tick(0);
    let mut tried = 0;
    for now in (20..20_000).step_by(20) {
        if let Some(unless_held) = take_over_of(&actions) {
            tried += 1;
            assert!(unless_held, "{now}");
            let reason = Refusal::Units;
            actions = machine.step(now, Event::NotTakenOver { reason });
        } else {
            actions = machine.tick(now);
        }
    }
    assert!(tried > 3, "{tried}");
    // One that has led was allowed more: the units may not know yet that its program has ended.
    let mut machine = leader();
    machine.step(30, Event::Exited { clean: false });
    let actions = machine.step(5000, Event::Tick);
    assert_eq!(take_over_of(&actions), None, "our own pause");
    let mut later = (5020..8000).step_by(20).map(|now| machine.tick(now));
    let taken = later.find_map(|actions| take_over_of(&actions));
    assert_eq!(taken, Some(false));
}

#[test]
fn s05_who_was_fenced_while_it_starts_leaves_it_to_the_peer() {
    let ahead = Event::Peer {
        standing: Standing::Starting,
        epoch: 6,
    };
    let ended = Event::Exited { clean: false };
    let nobody = Event::Leader { other: false };
    // While it was starting, or between two attempts: its next one would fence the peer.
    for events in [
        [ahead.clone(), ended.clone(), nobody.clone()],
        [ended, nobody, ahead],
    ] {
        let mut machine = standby();
        say(&mut machine, 20, Standing::Dead);
        machine.step(30, Event::TakenOver { epoch: 5 });
        for (event, now) in events.into_iter().zip([40, 50, 60]) {
            assert!(!takes_over(&machine.step(now, event)));
        }
        for now in (80..1000).step_by(20) {
            let actions = machine.step(
                now,
                Event::Peer {
                    standing: Standing::Starting,
                    epoch: 6,
                },
            );
            assert!(!takes_over(&actions), "{now}");
        }
        assert_eq!(machine.phase(), Phase::Standby);
    }
}

#[test]
fn s05_a_program_whose_state_is_too_old_by_now_is_ended_and_not_led_by() {
    let fenced_later = |standing| Event::Peer { standing, epoch: 7 };
    let starting = |epoch| {
        let mut machine = standby();
        say(&mut machine, 20, Standing::Dead);
        let actions = machine.step(30, Event::TakenOver { epoch });
        (machine, actions)
    };
    // The peer took over while our program loads, and says so in whichever way.
    for standing in [Standing::Starting, Standing::Primary] {
        let (mut machine, _) = starting(5);
        let actions = machine.step(40, fenced_later(standing));
        assert!(actions.contains(&Action::Kill), "{actions:?}");
        assert_eq!(machine.phase(), Phase::Standby);
        machine.step(50, Event::Exited { clean: false });
        // It leads, and fails: what follows begins with a fence.
        assert!(takes_over(&say(&mut machine, 60, Standing::Dead)));
    }
    // It did while we were recovering.
    let mut machine = standby();
    say(&mut machine, 20, Standing::Dead);
    machine.step(30, fenced_later(Standing::Primary));
    let actions = machine.step(40, Event::TakenOver { epoch: 5 });
    assert!(!actions.contains(&Action::Start), "{actions:?}");
    assert_eq!(machine.phase(), Phase::Standby);
    // What was said before our own fence is no reason.
    let mut machine = standby();
    say(&mut machine, 20, Standing::Dead);
    machine.step(30, fenced_later(Standing::Primary));
    let actions = machine.step(40, Event::TakenOver { epoch: 8 });
    assert!(actions.contains(&Action::Start), "{actions:?}");
    let actions = machine.step(50, fenced_later(Standing::Primary));
    assert!(!actions.contains(&Action::Kill), "{actions:?}");
}

#[test]
fn s05_a_program_that_opened_behind_somebody_else_does_not_lead() {
    let opened = |epoch, held| {
        let mut machine = standby();
        say(&mut machine, 20, Standing::Dead);
        machine.step(30, Event::TakenOver { epoch: 5 });
        let actions = machine.step(40, Event::Ready { epoch, held });
        (machine, actions)
    };
    let (machine, _) = opened(6, false);
    assert_eq!(machine.phase(), Phase::Primary);
    // It opened more than once, and each time the units saw to it that nobody came between.
    let (machine, _) = opened(9, true);
    assert_eq!(machine.phase(), Phase::Primary);
    let (mut machine, actions) = opened(9, false);
    assert!(actions.contains(&Action::Kill), "{actions:?}");
    assert!(matches!(machine.phase(), Phase::Starting { .. }));
    let actions = machine.step(50, Event::Exited { clean: false });
    // Its own opening is nobody else's.
    let look = Action::LookForLeader { own_up_to: 9 };
    assert!(actions.contains(&look), "{actions:?}");
    machine.step(60, Event::Leader { other: false });
    let mut later = (80..1000).step_by(20).map(|now| machine.tick(now));
    assert!(later.any(|actions| takes_over(&actions)), "it fences anew");
}

#[test]
fn s05_a_program_that_does_not_start_is_tried_again_and_then_given_up_loudly() {
    let mut machine = standby();
    assert!(takes_over(&say(&mut machine, 20, Standing::Dead)));
    let (mut now, mut starts, mut recoveries) = (30, 0, 1);
    let mut actions = machine.step(now, Event::TakenOver { epoch: 5 });
    while machine.phase() != Phase::GivenUp {
        assert!(now < 10_000);
        now += 20;
        if actions.contains(&Action::Start) {
            starts += 1;
            actions = machine.step(now, Event::Exited { clean: false });
        } else if takes_over(&actions) {
            // Each attempt begins with what the regions hold then: the one before may have stored something.
            recoveries += 1;
            actions = machine.step(now, Event::TakenOver { epoch: 5 });
        } else if looks_for_leader(&actions) {
            actions = machine.step(now, Event::Leader { other: false });
        } else {
            actions = machine.tick(now);
        }
    }
    assert_eq!((starts, recoveries), (3, 3));
    assert!(format!("{actions:?}").contains("GIVEN UP"), "{actions:?}");
    assert_eq!(machine.standing(), Standing::GivenUp);
    // Somebody has mended it.
    assert!(takes_over(
        &machine.step(now + 20, Event::Promote { force: false })
    ));
}

#[test]
fn s05_a_takeover_that_the_units_refuse_is_tried_again() {
    let mut machine = standby();
    assert!(takes_over(&say(&mut machine, 20, Standing::Dead)));
    machine.step(
        30,
        Event::NotTakenOver {
            reason: Refusal::Units,
        },
    );
    // A fence may stand: the other agent hears that nobody leads.
    assert_eq!(machine.standing(), Standing::Dead);
    let mut now = 30;
    while !takes_over(&say(&mut machine, now, Standing::Standby)) {
        assert!(now < 10_000, "never again");
        now += 20;
    }
}

#[test]
fn s05_where_nobody_beats_the_silence_of_the_agent_is_enough() {
    let mut machine = Machine::standby(
        Settings {
            beats: false,
            ..settings()
        },
        0,
    );
    assert!(!takes_over(&say(&mut machine, 10, Standing::Primary)));
    let mut now = 10;
    while !takes_over(&machine.tick(now)) {
        assert!(now < 10_000, "never");
        now += 20;
    }
}

fn leader_with(settings: Settings) -> Machine {
    let needs_lease = settings.needs_lease;
    let mut machine = Machine::primary(settings, 0);
    machine.step(0, Event::Units { reachable: true });
    if needs_lease {
        machine.step(5, Event::Lease { held: true });
    }
    machine.step(10, Event::TakenOver { epoch: 1 });
    let ready = Event::Ready {
        epoch: 2,
        held: true,
    };
    machine.step(20, ready);
    assert_eq!(machine.phase(), Phase::Primary);
    machine
}

fn with_lease() -> Settings {
    Settings {
        needs_lease: true,
        ..settings()
    }
}

/// When each of some actions came, with a tick in each 20 ms.
fn when(machine: &mut Machine, from: u64, to: u64, wanted: &Action) -> Vec<u64> {
    let mut times = Vec::new();
    for now in (from..to).step_by(20) {
        times.extend(
            machine
                .tick(now)
                .iter()
                .filter(|act| *act == wanted)
                .map(|_| now),
        );
    }
    times
}

#[test]
fn s05_a_leader_that_hangs_and_is_left_alone_gives_its_lease_back_once() {
    let mut machine = leader_with(Settings {
        kills_hung: false,
        ..with_lease()
    });
    machine.step(30, Event::Beat);
    let given = when(&mut machine, 40, 10_000, &Action::Release);
    assert!(given.len() == 1 && given[0] < 3 * SILENCE_MS, "{given:?}");
    assert_eq!(machine.standing(), Standing::Dead);
    // It goes on, and nobody has relieved it.
    let actions = machine.step(10_000, Event::Beat);
    assert!(actions.contains(&Action::Acquire), "{actions:?}");
    assert_eq!(machine.standing(), Standing::Primary);
    let again = when(&mut machine, 10_020, 10_200, &Action::Acquire);
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn s05_a_leader_out_of_sight_of_the_units_gives_its_lease_back_until_it_is_seen_to_work() {
    let mut machine = leader_with(with_lease());
    machine.step(30, Event::Beat);
    machine.step(40, Event::Units { reachable: false });
    let given = when(&mut machine, 60, 10_000, &Action::Release);
    let expected = 3 * SILENCE_MS..3 * SILENCE_MS + 60;
    assert!(
        given.len() == 1 && expected.contains(&given[0]),
        "{given:?}"
    );
    // The program may live: it is not called hung.
    assert_eq!(machine.standing(), Standing::Primary);
    let actions = machine.step(10_000, Event::Units { reachable: true });
    assert!(!actions.contains(&Action::Acquire), "{actions:?}");
    let actions = machine.step(10_020, Event::Beat);
    assert!(actions.contains(&Action::Acquire), "{actions:?}");
}

#[test]
fn s05_with_leases_too_somebody_leads_again_when_the_leader_hangs_or_is_cut_off() {
    for seed in seeds(200) {
        let settings = Settings {
            kills_hung: seed % 2 == 0,
            ..with_lease()
        };
        let mut world = World::with(settings, seed, false);
        world.run_until(2000);
        assert!(world.is_well(), "{}", world.describe());
        if seed % 3 == 0 {
            world.agents[0].cut_until = END_MS;
        } else if let Some(program) = &mut world.agents[0].program {
            program.hangs = true;
        }
        world.run_until(12_000);
        assert!(world.is_working(), "nobody works: {}", world.describe());
        assert_eq!(world.committed.unwrap().0, 1, "{}", world.describe());
    }
}

#[test]
fn s05_between_two_tries_for_a_lease_there_is_rest_and_who_promotes_is_heard() {
    let mut machine = Machine::standby(with_lease(), 0);
    say(&mut machine, 10, Standing::Primary);
    let (mut tries, mut rests, mut actions) = (0, 0, say(&mut machine, 20, Standing::Dead));
    for now in (40..10_000).step_by(20) {
        if actions.contains(&Action::Acquire) {
            tries += 1;
            let lease = Event::Lease { held: false };
            actions = machine.step(now, lease);
            rests += u32::from(machine.phase() == Phase::Standby);
        } else {
            actions = say(&mut machine, now, Standing::Dead);
        }
    }
    let most = u32::try_from(10_000 / SILENCE_MS).unwrap();
    assert!(
        tries > 10 && tries <= most && rests == tries,
        "{tries}, {rests}"
    );
    // Whoever is told to lead while it waits takes what it is told to take.
    let mut machine = Machine::primary(with_lease(), 0);
    let waiting = |unless_held| Phase::Acquiring { unless_held };
    machine.step(20, Event::Promote { force: false });
    assert_eq!(machine.phase(), waiting(true));
    machine.step(40, Event::Promote { force: true });
    assert_eq!(machine.phase(), waiting(false));
    let actions = machine.step(60, Event::Lease { held: true });
    assert_eq!(take_over_of(&actions), Some(false));
}

#[test]
fn s05_who_begins_as_primary_waits_for_an_etcd_that_comes_late() {
    // After a power cut: neither has seen anybody lead.
    let mut machine = Machine::primary(with_lease(), 0);
    let mut actions = machine.tick(0);
    machine.step(5, Event::Units { reachable: true });
    let mut tries = 0;
    for now in (20..20_000).step_by(20) {
        if actions.contains(&Action::Acquire) {
            tries += 1;
            let lease = Event::Lease { held: false };
            actions = machine.step(now, lease);
        } else {
            actions = say(&mut machine, now, Standing::Standby);
        }
        assert!(!takes_over(&actions), "{now}");
    }
    assert!(tries > 5, "{tries}");
    let mut now = 20_000;
    while !actions.contains(&Action::Acquire) {
        assert!(now < 30_000, "never again");
        now += 20;
        actions = say(&mut machine, now, Standing::Standby);
    }
    // Still no more than what nobody holds.
    let actions = machine.step(now + 20, Event::Lease { held: true });
    assert_eq!(take_over_of(&actions), Some(true));
    // One that stands by, or was promoted, asks no more by itself.
    for mut machine in [
        Machine::standby(with_lease(), 0),
        Machine::primary(with_lease(), 0),
    ] {
        machine.step(10, Event::Promote { force: false });
        machine.step(20, Event::Lease { held: false });
        let again = when(&mut machine, 40, 20_000, &Action::Acquire);
        assert!(again.is_empty(), "{again:?}");
    }
}

#[test]
fn s05_a_fenced_program_that_ends_slowly_is_killed_before_the_next_one_starts() {
    let fenced = || {
        let mut machine = leader();
        machine.step(30, Event::Fenced);
        assert_eq!(machine.phase(), Phase::Standby);
        say(&mut machine, 40, Standing::Primary);
        machine
    };
    let start = |machine: &mut Machine| {
        assert!(takes_over(&say(machine, 60, Standing::Dead)));
        let actions = machine.step(70, Event::TakenOver { epoch: 5 });
        let place = |wanted| actions.iter().position(|action| *action == wanted);
        (place(Action::Kill), place(Action::Start))
    };
    let (killed, started) = start(&mut fenced());
    assert!(
        killed.is_some() && killed < started,
        "{killed:?} {started:?}"
    );
    // One that has ended meanwhile needs no kill.
    let mut machine = fenced();
    machine.step(50, Event::Exited { clean: true });
    let (killed, started) = start(&mut machine);
    assert!(killed.is_none() && started.is_some());
    // Who is told to end takes it along.
    let mut machine = fenced();
    let actions = machine.step(50, Event::Stop);
    assert_eq!(actions, [Action::Order(Ending::Stop)]);
    assert!(!actions.contains(&Action::Exit { code: 0 }));
    let actions = machine.step(60, Event::Exited { clean: false });
    assert!(actions.contains(&Action::Exit { code: 0 }), "{actions:?}");
}

#[test]
fn s05_a_program_that_starts_or_ends_too_slowly_is_killed_once() {
    let mut machine = standby();
    say(&mut machine, 20, Standing::Dead);
    machine.step(30, Event::TakenOver { epoch: 5 });
    let kills = when(&mut machine, 40, 5000, &Action::Kill);
    assert!(kills.len() == 1 && kills[0] >= 2000, "{kills:?}");
    let mut machine = leader();
    machine.step(30, Event::Stop);
    let kills = when(&mut machine, 40, 5000, &Action::Kill);
    assert!(kills.len() == 1 && kills[0] >= 500, "{kills:?}");
}

#[test]
fn s05_who_waited_for_its_lease_looks_again_before_it_takes_over() {
    let waiting = || {
        let mut machine = Machine::standby(with_lease(), 0);
        machine.step(0, Event::Units { reachable: true });
        say(&mut machine, 0, Standing::Primary);
        machine.step(10, Event::Beat);
        let acquires = when(&mut machine, 20, 500, &Action::Acquire);
        assert_eq!(acquires.len(), 1, "{acquires:?}");
        machine
    };
    let got = |machine: &mut Machine, now| machine.step(now, Event::Lease { held: true });
    // It was cut off, and is back: a leader that works.
    let mut machine = waiting();
    for now in (500..2000).step_by(20) {
        machine.step(now, Event::Beat);
        say(&mut machine, now, Standing::Primary);
    }
    let actions = got(&mut machine, 2000);
    assert!(
        !takes_over(&actions) && actions.contains(&Action::Release),
        "{actions:?}"
    );
    assert_eq!(machine.phase(), Phase::Standby);
    // When it fails then, that is a failure.
    let acquires = when(&mut machine, 2020, 4000, &Action::Acquire);
    assert_eq!(acquires.len(), 1, "{acquires:?}");
    // It stays away; a person wants it so.
    let mut machine = waiting();
    when(&mut machine, 500, 2000, &Action::Acquire);
    assert!(takes_over(&got(&mut machine, 2000)));
    let mut machine = waiting();
    machine.step(500, Event::Beat);
    say(&mut machine, 500, Standing::Primary);
    machine.step(510, Event::Promote { force: true });
    assert!(takes_over(&got(&mut machine, 520)));
}

#[test]
fn s05_a_pause_of_the_computer_is_no_fault_of_the_program_that_starts_or_ends() {
    let starting = || {
        let mut machine = standby();
        say(&mut machine, 20, Standing::Dead);
        machine.step(30, Event::TakenOver { epoch: 5 });
        machine
    };
    let told = |event| {
        let mut machine = leader();
        machine.step(30, event);
        machine
    };
    for mut machine in [
        starting(),
        told(Event::Stop),
        told(Event::Demote),
        told(Event::Yield),
    ] {
        let phase = format!("{:?}", machine.phase());
        for now in [50_000, 50_100, 90_000] {
            let actions = machine.tick(now);
            assert!(!actions.contains(&Action::Kill), "{phase}: {actions:?}");
        }
        // Its time is its own all the same.
        let kills = when(&mut machine, 90_020, 95_000, &Action::Kill);
        assert_eq!(kills.len(), 1, "{phase}");
    }
    // A move is not given up either.
    let mut machine = standby();
    machine.step(20, Event::Promote { force: false });
    machine.tick(50_000);
    assert!(matches!(machine.phase(), Phase::Moving { .. }));
}

#[test]
fn s04_snapshots_are_caused_at_an_interval_and_one_at_a_time() {
    let mut machine = Machine::adopting(
        Settings {
            snapshot_every_ms: Some(100),
            ..settings()
        },
        1,
        0,
    );
    let mut asked = Vec::new();
    for now in (10..1000).step_by(10) {
        let event = match now {
            300 => Event::SnapshotDone { id: 1 },
            _ => Event::Tick,
        };
        for action in machine.step(now, event) {
            if let Action::Snapshot { id } = action {
                asked.push((now, id));
            }
        }
    }
    // The second one had waited for the first.
    assert_eq!(asked, [(100, 1), (300, 2)]);
}
