//! Distributors: the real session of one, and the real client, over simulated streams and staging memory.

use std::time::{Duration, Instant};

use pmu_client::distributed::wire::{failure, failure_to_wire};
use pmu_client::distributed::{self, Answer, Request, Way};
use pmu_client::{ClientError, ProviderChoice, Spread};
use pmu_distributor::{Heard, Over, Program, Session};
use pmu_fabric::{ConnectToken, Connection, FabricError, PersistenceMethod, Provider};
use pmu_proto::v1::failure::Kind;
use pmu_proto::v1::{self, Failure};
use tonic::Status;

use crate::context::Context;
use crate::scenario::spread::options;
use crate::state::Wait;
use crate::stream::{End, Ending, Letter};

/// How long the end of a session may take before it is left to the distributor.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A silence after which whoever waits for letters looks again whether it is killed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const REGION: &str = "sim";
pub(crate) const ADDRESS: &str = "distributor";

/// Finds a region, as somebody's.
type Find = dyn Fn(&Context) -> Result<Spread, ClientError>;

/// Begins a session with a distributor, which finds the region with `find`: in a unit that is on, or in a process of its own.
///
/// # Errors
/// [`ClientError::Unreachable`].
pub(crate) fn reach(
    context: &Context,
    find: impl Fn(&Context) -> Result<Spread, ClientError> + Send + 'static,
) -> Result<Box<dyn Way>, ClientError> {
    let home = home(context);
    let is_on = context.with(|state| home.is_none_or(|unit| state.units[unit].is_on));
    if !is_on || !context.goes_on() {
        return Err(ClientError::Unreachable {
            unit: ADDRESS.to_owned(),
            reason: "no route to host".into(),
        });
    }
    let stream = context.with(|state| state.open_stream(context.id()));
    let far = End { stream, side: 1 };
    let process = context.spawn("distributor", move |context| serve(context, far, &find));
    context.with(|state| {
        state.streams[stream].ends[1] = process;
        state.processes[process].lives_in = home;
        state.distributors.push(process);
        state.totals.distributed += 1;
    });
    Ok(Box::new(SimWay {
        context: context.clone(),
        end: End { stream, side: 0 },
    }))
}

/// Where the next distributor lives: in a unit that is on, or in a process of its own.
fn home(context: &Context) -> Option<usize> {
    context.with(|state| {
        let units = state.units_proper() as u64;
        let unit = state.random.below(2 * units) as usize;
        (unit < units as usize && state.units[unit].is_on).then_some(unit)
    })
}

/// Draws how much staging memory distributors have, and adds it behind the units.
pub(crate) fn add_staging(context: &Context) {
    context.with(|state| {
        let bytes = state.random.pick(&[4096, 4096, 8192, 16_384]);
        state.add_staging(bytes);
    });
}

/// Blocks until every distributor has ended: their programs are gone.
pub(crate) fn join_all(context: &Context) {
    let distributors = context.with(|state| std::mem::take(&mut state.distributors));
    for distributor in distributors {
        context.join(distributor);
    }
}

/// A distributor's session, from its beginning to its end.
fn serve(context: &Context, end: End, find: &Find) {
    context.doing("distribute");
    let mut program = SimProgram {
        context: context.clone(),
        end,
        session: None,
    };
    if let Some(Request::Open(open)) = program.hear() {
        let mut going_on = None;
        let opened =
            pmu_distributor::open(&open, options(context), &mut going_on, |_| find(context));
        let session = Session::new(&mut program, REGION, going_on);
        match opened {
            Ok(mut work) => session.serve(work.as_mut(), ADDRESS),
            Err(error) => {
                context.note(|| format!("can't open the region: {error}"));
                session.refuse(failure_to_wire(&error));
            }
        }
    }
    program.let_go();
    context.with(|state| state.leave_stream(end, Ending::Ordered));
}

/// The program, as its distributor sees it.
struct SimProgram {
    context: Context,
    end: End,
    /// Of the data connection that is expected or made.
    session: Option<u64>,
}

impl SimProgram {
    fn let_go(&mut self) {
        if let Some(session) = self.session.take() {
            self.context.with(|state| state.withdraw_data(session));
        }
    }

    fn refused(&self, what: &str) -> Box<Failure> {
        Box::new(failure(Kind::Refused, REGION, what))
    }
}

impl Program for SimProgram {
    fn hear(&mut self) -> Option<Request> {
        loop {
            match self.hear_now() {
                Heard::Step(step) => return Some(*step),
                Heard::End => return None,
                Heard::Nothing => self.context.wait(Wait::Mail(self.end), LOOK_AGAIN),
            }
        }
    }

    fn hear_now(&mut self) -> Heard {
        if !self.context.goes_on() {
            return Heard::End;
        }
        match self.context.with(|state| state.receive(self.end)) {
            Some(Some(Letter::Request(request))) => Heard::Step(request),
            Some(_) => Heard::End,
            None => Heard::Nothing,
        }
    }

    fn tell(&mut self, answer: Answer) -> Result<(), Over> {
        let letter = Letter::Answer(Box::new(answer));
        let sent =
            self.context.goes_on() && self.context.with(|state| state.send(self.end, letter));
        self.context.yield_turn();
        if sent { Ok(()) } else { Err(Over) }
    }

    fn check_admitted(&self) -> Result<(), Box<Failure>> {
        if self.context.goes_on() {
            return Ok(());
        }
        Err(self.refused("the distributor stops"))
    }

    fn attach(
        &mut self,
        _attach: &v1::DistributeAttach,
    ) -> Result<v1::DistributeStaging, Box<Failure>> {
        self.let_go();
        let me = self.context.id();
        let goes_on = self.context.goes_on();
        let session = self
            .context
            .with(|state| goes_on.then(|| state.expect_data(me)));
        let session = session.flatten();
        self.session = session;
        let session = session.ok_or_else(|| self.refused("no staging memory is left"))?;
        let mut token = [0; 32];
        token[..8].copy_from_slice(&session.to_le_bytes());
        Ok(v1::DistributeStaging {
            connect_token: token.to_vec(),
            token_valid_ms: 1000,
            address: Some(v1::DataAddress {
                provider: v1::Provider::Verbs.into(),
                address: ADDRESS.to_owned(),
            }),
            persistence: v1::PersistenceMethod::NativeFlush.into(),
            ..v1::DistributeStaging::default()
        })
    }

    fn connected(&mut self) -> Option<Result<v1::DistributeWindow, Box<Failure>>> {
        let session = self.session?;
        let bound = self.context.with(|state| state.bind_data(session));
        let bound = bound.map(|window| v1::DistributeWindow {
            window: Some(v1::Window {
                virtual_address: window.address,
                length_bytes: window.length,
                access_key: window.access_key,
                flush_key: Some(window.flush_key),
                ..v1::Window::default()
            }),
        });
        Some(bound.ok_or_else(|| self.refused("there is no data connection")))
    }

    fn staging_bytes(&self) -> u64 {
        self.context.with(|state| state.staging_part_bytes())
    }

    fn copy_out(&self, position: u64, piece: &mut [u8]) -> Result<(), Box<Failure>> {
        let session = self.session.unwrap_or_default();
        let copied = self
            .context
            .with(|state| state.copy_staging(session, position, piece));
        if copied && self.context.goes_on() {
            return Ok(());
        }
        Err(self.refused("there is no staging memory"))
    }

    fn now(&self) -> Instant {
        self.context.now()
    }

    fn pause(&self, how_long: Duration) {
        self.context.sleep(how_long);
    }

    fn count_set(&self, _bytes: u64) {
        self.context.count(|totals| totals.distributed_sets += 1);
    }

    fn count_records(&self, records: u64, _bytes: u64) {
        self.context
            .count(|totals| totals.distributed_records += records);
    }
}

/// The way to a distributor, as its program sees it.
struct SimWay {
    context: Context,
    end: End,
}

impl Way for SimWay {
    fn address(&self) -> &str {
        ADDRESS
    }

    fn say(&self, step: Request) -> Result<(), distributed::Over> {
        let letter = Letter::Request(Box::new(step));
        let sent =
            !self.context.is_killed() && self.context.with(|state| state.send(self.end, letter));
        if sent { Ok(()) } else { Err(distributed::Over) }
    }

    fn hear(&self, timeout: Duration) -> distributed::Heard {
        match self.hear_now() {
            distributed::Heard::Nothing => {
                self.context.wait(Wait::Mail(self.end), timeout);
                self.hear_now()
            }
            heard => heard,
        }
    }

    fn hear_now(&self) -> distributed::Heard {
        if self.context.is_killed() {
            return distributed::Heard::End(None);
        }
        match self.context.with(|state| state.receive(self.end)) {
            Some(Some(Letter::Answer(answer))) => distributed::Heard::Answer(answer),
            Some(_) => distributed::Heard::End(None),
            None => distributed::Heard::Nothing,
        }
    }

    fn refused(&self, _status: Option<&Status>, _region: &str) -> ClientError {
        ClientError::Unreachable {
            unit: ADDRESS.to_owned(),
            reason: "it ended the stream".into(),
        }
    }

    fn close(&mut self) {
        self.context.with(|state| state.close_stream(self.end));
        let until = self.now() + CLOSE_TIMEOUT;
        while let distributed::Heard::Answer(_) =
            self.hear(until.saturating_duration_since(self.now()))
        {}
    }

    fn providers(&self, _choice: ProviderChoice) -> Vec<Provider> {
        vec![Provider::Verbs]
    }

    fn connect(
        &self,
        _provider: Provider,
        _address: &str,
        token: ConnectToken,
        _persistence: PersistenceMethod,
        _timeout: Duration,
    ) -> Result<Box<dyn Connection>, FabricError> {
        let mut session = [0; 8];
        session.copy_from_slice(&token.0[..8]);
        let me = self.context.id();
        let wire = self
            .context
            .with(|state| state.connect_data(me, u64::from_le_bytes(session)));
        match wire {
            Some(wire) if !self.context.is_killed() => Ok(self.context.connection(wire)),
            _ => Err(FabricError::NoSuchConnection),
        }
    }

    fn now(&self) -> Instant {
        self.context.now()
    }
}

impl Drop for SimWay {
    fn drop(&mut self) {
        self.context
            .with(|state| state.leave_stream(self.end, Ending::Ordered));
    }
}
