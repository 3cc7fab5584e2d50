//! What a simulated program can do: run, sleep, ask units, and open regions for the real client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_client::{ClientError, FenceReport, Parts, RegionInfo, SessionControl, Timeouts};
use pmu_fabric::{Connection, Limits};
use pmu_format::{Epoch, Membership};
use pmu_proto::v1::SessionRole;

use crate::connection::SimConnection;
use crate::random::Random;
use crate::state::{State, Totals, Wait};
use crate::threads::Threads;
use crate::unit::{Call, Reply};
use crate::world::World;

/// How long a request to a control service may take.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1000);
/// How long a question may take that only explains an error.
const EXPLAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// The longest time without a completion.
const STALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long an append waits for room.
const BACK_PRESSURE: Duration = Duration::from_millis(40);

/// How a region is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) role: SessionRole,
    pub(crate) clears: bool,
    pub(crate) staging_bytes: usize,
    /// Of a primary: unless the unit's region is still at this epoch it is refused.
    pub(crate) goes_on_from: Option<Epoch>,
}

/// One program's view of the world.
#[derive(Clone)]
pub(crate) struct Context {
    world: Arc<World>,
    me: usize,
    threads: Threads,
}

impl Context {
    pub(crate) const fn new(world: Arc<World>, me: usize, threads: Threads) -> Self {
        Self { world, me, threads }
    }

    /// Starts another program.
    pub(crate) fn spawn(&self, name: &str, body: impl FnOnce(&Self) + Send + 'static) -> usize {
        let (world, threads) = (Arc::clone(&self.world), self.threads.clone());
        self.world.start(&self.threads, name, move |me| {
            body(&Self { world, me, threads });
        })
    }

    /// Blocks until a program has ended.
    pub(crate) fn join(&self, process: usize) {
        while !self.world.state().has_come(Wait::End(process)) {
            self.world.wait(self.me, Wait::End(process), None);
        }
    }

    pub(crate) const fn id(&self) -> usize {
        self.me
    }

    /// Waits for something, or a time.
    pub(crate) fn wait(&self, wait: Wait, timeout: Duration) {
        self.world.wait(self.me, wait, Some(timeout));
    }

    /// Lets others go on, perhaps.
    pub(crate) fn yield_turn(&self) {
        self.world.yield_turn(self.me);
    }

    pub(crate) fn sleep(&self, how_long: Duration) {
        self.world.wait(self.me, Wait::Time, Some(how_long));
    }

    pub(crate) fn now(&self) -> Instant {
        self.world.now(self.me)
    }

    /// Does something with everything that is simulated.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.world.state())
    }

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        self.with(|state| draw(&mut state.random))
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut Totals)) {
        self.with(|state| count(&mut state.totals));
    }

    /// Names what this program is at, to tell crash points apart.
    pub(crate) fn doing(&self, what: &'static str) {
        self.with(|state| state.processes[self.me].doing = what);
    }

    /// False once the program is killed, or everybody is to come to an end.
    pub(crate) fn goes_on(&self) -> bool {
        self.with(|state| !state.is_stopping && !state.processes[self.me].is_killed)
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.with(|state| state.processes[self.me].is_killed)
    }

    /// Says what this program does, for the trace.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        self.with(|state| {
            note!(state, "{} {}", state.processes[self.me].name, what());
        });
    }

    /// Something that must not be.
    pub(crate) fn violate(&self, what: String) {
        self.with(|state| {
            let name = state.processes[self.me].name.clone();
            state.violate(format!("{name}: {what}"));
        });
    }

    pub(crate) fn is_violated(&self) -> bool {
        self.with(|state| state.violation.is_some())
    }

    fn unit_name(&self, unit: usize) -> String {
        self.with(|state| state.units[unit].name.as_ref().to_owned())
    }

    fn ask(&self, unit: usize, call: Call, what: &'static str) -> Result<Reply, ClientError> {
        match self.world.call(self.me, unit, call, REQUEST_TIMEOUT) {
            Some(Reply::Failed(error)) => Err(*error),
            Some(reply) => Ok(reply),
            None if self.is_killed() => Err(ClientError::Unreachable {
                unit: self.unit_name(unit),
                reason: "this program has ended".into(),
            }),
            None => Err(ClientError::TimedOut {
                what,
                waited_ms: REQUEST_TIMEOUT.as_millis() as u64,
            }),
        }
    }

    pub(crate) fn describe(&self, unit: usize) -> Result<RegionInfo, ClientError> {
        match self.ask(unit, Call::Describe, "describe the region")? {
            Reply::Described(info) => Ok(*info),
            _ => Err(unexpected()),
        }
    }

    /// Takes the right to write from whoever has it at a unit.
    pub(crate) fn fence(&self, unit: usize) -> Result<FenceReport, ClientError> {
        match self.ask(unit, Call::Fence, "fence the region")? {
            Reply::Fenced {
                epoch,
                windows,
                sessions,
            } => {
                self.count(|totals| totals.fences += 1);
                Ok(FenceReport::new(epoch, windows, sessions))
            }
            _ => Err(unexpected()),
        }
    }

    /// Makes the region of a new member.
    pub(crate) fn create_member(&self, unit: usize, info: RegionInfo) -> Result<(), ClientError> {
        let call = Call::CreateMember(Box::new(info));
        self.ask(unit, call, "create the region").map(drop)
    }

    /// Replaces the membership that a unit keeps.
    pub(crate) fn set_membership(
        &self,
        unit: usize,
        expected: u64,
        next: Arc<Membership>,
    ) -> Result<(), ClientError> {
        let call = Call::SetMembership { expected, next };
        self.ask(unit, call, "change the members").map(drop)
    }

    /// This program's end of a data connection.
    pub(crate) fn connection(&self, wire: usize) -> Box<dyn Connection> {
        let limits = self.draw(|random| Limits {
            chains_in_flight_max: random.pick(&[2, 4, 16, 64]),
            ops_per_chain_max: random.pick(&[3, 4, 8, 64]),
        });
        let world = Arc::clone(&self.world);
        Box::new(SimConnection::new(world, self.me, wire, limits))
    }

    /// Opens the region of a unit: a session, a data connection, and its windows.
    pub(crate) fn open(&self, unit: usize, wish: Wish) -> Result<Parts, ClientError> {
        let call = Call::Open {
            role: wish.role,
            clears: wish.clears,
            goes_on_from: wish.goes_on_from,
        };
        let Reply::Opened {
            session,
            wire,
            epoch,
        } = self.ask(unit, call, "open the region")?
        else {
            return Err(unexpected());
        };
        let connection = self.connection(wire);
        let activate = Call::Activate { session };
        let Reply::Active { windows, info } = self.ask(unit, activate, "open the region")? else {
            return Err(unexpected());
        };
        let epoch = if wish.role == SessionRole::Primary {
            epoch
        } else {
            info.epoch
        };
        Ok(Parts {
            connection,
            windows,
            info: *info,
            epoch,
            unit: self.unit_name(unit).into(),
            control: Box::new(Control {
                world: Arc::clone(&self.world),
                me: self.me,
                unit,
                session,
            }),
            timeouts: timeouts(),
            staging_bytes: wish.staging_bytes,
        })
    }
}

/// Bounds of waits that are small against what a simulated clock may jump.
pub(crate) fn timeouts() -> Timeouts {
    let mut timeouts = Timeouts::default();
    timeouts.stall = STALL_TIMEOUT;
    timeouts.back_pressure = BACK_PRESSURE;
    timeouts.spin = Duration::ZERO;
    timeouts
}

fn unexpected() -> ClientError {
    ClientError::Protocol("an answer to another question".into())
}

/// A session's control service.
struct Control {
    world: Arc<World>,
    me: usize,
    unit: usize,
    session: u64,
}

impl SessionControl for Control {
    fn epoch_now(&self) -> Option<Epoch> {
        match self
            .world
            .call(self.me, self.unit, Call::Describe, EXPLAIN_TIMEOUT)
        {
            Some(Reply::Described(info)) => Some(info.epoch),
            _ => None,
        }
    }

    fn close(&self) {
        self.world.tell(
            self.me,
            self.unit,
            Call::Close {
                session: self.session,
            },
        );
    }
}
