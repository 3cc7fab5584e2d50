//! A program of this distributor: its messages over gRPC, its staging memory in the host's fabrics, its rights by the host.

use std::thread;
use std::time::{Duration, Instant};

use pmu_client::distributed::wire::{failure, failure_to_wire};
use pmu_client::{ClientError, ConnectOptions, GoingOn, OpenOptions, Spread};
use pmu_distributor::{Heard, Over, Program, Session};
use pmu_format::{PrincipalName, RegionName};
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::failure::Kind;
use pmu_proto::v1::{self, DistributeResponse, Failure, Reason};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tonic::Status;

use super::staging::{Offer, Staging, WRITE_ONLY};
use super::{Admitted, AtWork, Distributor};
use crate::control::convert;
use crate::control::reasons::Refusal;
use crate::metrics;
use crate::state::Listener;

/// For whom which region is distributed.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) principal: PrincipalName,
    pub(super) region: RegionName,
}

/// What becomes of the program's messages, and where answers go.
pub(super) struct Messages {
    pub(super) requests: mpsc::Receiver<Step>,
    pub(super) answers: mpsc::Sender<Result<DistributeResponse, Status>>,
}

/// Runs a session to its end. Blocks.
pub(super) fn run(
    distributor: &Distributor,
    client: &Client,
    admitted: &Admitted,
    messages: Messages,
    open: &v1::DistributeOpen,
) {
    let Client { principal, region } = client;
    let span = tracing::info_span!("distribute", %principal, %region);
    let _entered = span.entered();
    let mut program = RemoteProgram {
        distributor,
        client,
        messages,
        staging: None,
        offer: None,
    };
    let mut at_work = AtWork::begin(distributor, client);
    let mut going_on = None;
    let opened = open_region(distributor, region, admitted, open, &mut going_on);
    let session = Session::new(&mut program, region.as_str(), going_on);
    match opened {
        Ok(mut work) => {
            tracing::info!("distribution begins");
            at_work.enter();
            session.serve(work.as_mut(), distributor.host.name());
            drop(work);
            at_work.leave();
            tracing::info!("distribution ends");
        }
        Err(error) => {
            tracing::info!(%error, "the region can't be distributed");
            session.refuse(opening_failure(distributor, region, &error));
        }
    }
    program.let_go();
    drop(at_work);
    // Only now the program hears that the session is over: the region is free.
    drop(program);
}

fn open_region(
    distributor: &Distributor,
    region: &RegionName,
    admitted: &Admitted,
    open: &v1::DistributeOpen,
    going_on: &mut Option<GoingOn>,
) -> Result<Box<dyn pmu_distributor::Work>, ClientError> {
    pmu_distributor::open(open, OpenOptions::new(), going_on, |within| {
        let connect = ConnectOptions::with_timeout(within);
        let seeds: Vec<_> = admitted.seeds.iter().map(String::as_str).collect();
        let spread = Spread::find(&seeds, region.as_str(), &distributor.identity, &connect)?;
        let (found, name) = (spread.membership(), distributor.host.name());
        let is_member = || {
            found
                .members
                .iter()
                .any(|member| member.unit.as_str() == name)
        };
        if admitted.id.is_some_and(|id| id != found.id || !is_member()) {
            return Err(ClientError::NoGrant {
                region: region.to_string(),
                reason: format!(
                    "unit {name} is no member of the region of this name any more; use another one"
                ),
            });
        }
        Ok(spread)
    })
}

/// Who holds the region is a principal of the units': the program is told for whom.
fn opening_failure(distributor: &Distributor, region: &RegionName, error: &ClientError) -> Failure {
    let mut failure = failure_to_wire(error);
    if let ClientError::WriterExists { .. } = error
        && let Some(holder) = distributor.holder(region)
    {
        let name = distributor.host.name();
        failure
            .text
            .push_str(&format!("; {name} distributes it for {holder}"));
    }
    failure
}

/// See the module.
struct RemoteProgram<'a> {
    offer: Option<Offer<'a>>,
    staging: Option<Staging>,
    distributor: &'a Distributor,
    client: &'a Client,
    messages: Messages,
}

impl<'a> RemoteProgram<'a> {
    /// Closes the data connection, and gives the staging memory back.
    fn let_go(&mut self) {
        self.offer = None;
        self.staging = None;
    }

    fn refusal(&self, refusal: &Refusal) -> Box<Failure> {
        let kind = match refusal.reason {
            Reason::NoGrant => Kind::NoGrant,
            Reason::NoProvider => Kind::NoProvider,
            _ => Kind::Refused,
        };
        let region = self.client.region.as_str();
        Box::new(Failure {
            reason: pmu_proto::reason::name(refusal.reason).to_owned(),
            ..failure(kind, region, refusal.message.as_str())
        })
    }

    fn try_attach(
        &mut self,
        attach: &v1::DistributeAttach,
    ) -> Result<v1::DistributeStaging, Refusal> {
        let distributor = self.distributor;
        let provider = convert::requested_provider(attach.provider)?;
        let fits = |listener: &&'a Listener| {
            provider.is_none_or(|provider| listener.fabric.provider() == provider)
        };
        let listener = distributor.host.listeners().iter().find(fits);
        let listener = listener
            .ok_or_else(|| Refusal::new(Reason::NoProvider, "the distributor does not offer it"))?;
        let staging = match &mut self.staging {
            Some(staging) => staging,
            none => none.insert(Staging::create(
                distributor.take_address(),
                distributor.staging_bytes,
            )?),
        };
        let limits = distributor.host.limits();
        let offer = staging.offer(listener.fabric.as_ref(), limits.connect_within())?;
        let answer = v1::DistributeStaging {
            connect_token: offer.token.0.to_vec(),
            token_valid_ms: limits.connect_within_ms,
            address: Some(v1::DataAddress {
                provider: convert::provider(listener.fabric.provider()).into(),
                address: listener.address.clone(),
            }),
            persistence: convert::persistence(offer.method).into(),
            ..v1::DistributeStaging::default()
        };
        self.offer = Some(offer);
        Ok(answer)
    }
}

impl Program for RemoteProgram<'_> {
    fn hear(&mut self) -> Option<Step> {
        self.messages.requests.blocking_recv()
    }

    fn hear_now(&mut self) -> Heard {
        match self.messages.requests.try_recv() {
            Ok(step) => Heard::Step(Box::new(step)),
            Err(TryRecvError::Empty) => Heard::Nothing,
            Err(TryRecvError::Disconnected) => Heard::End,
        }
    }

    fn tell(&mut self, answer: Answer) -> Result<(), Over> {
        let answer = DistributeResponse { step: Some(answer) };
        let sent = self.messages.answers.blocking_send(Ok(answer));
        sent.map_err(|_| Over)
    }

    /// A grant may have been taken away, or the process told to stop.
    fn check_admitted(&self) -> Result<(), Box<Failure>> {
        let Client { principal, region } = self.client;
        let admitted = self.distributor.host.admit(principal, region);
        admitted.map(drop).map_err(|refusal| self.refusal(&refusal))
    }

    fn attach(
        &mut self,
        attach: &v1::DistributeAttach,
    ) -> Result<v1::DistributeStaging, Box<Failure>> {
        drop(self.offer.take());
        let offered = self.try_attach(attach);
        offered.map_err(|refusal| self.refusal(&refusal))
    }

    fn connected(&mut self) -> Option<Result<v1::DistributeWindow, Box<Failure>>> {
        let offer = self.offer.as_ref()?;
        let bound = offer.bind(self.distributor.host.limits().connect_within());
        let bound = bound.map(|window| v1::DistributeWindow {
            window: Some(convert::window(&window, WRITE_ONLY)),
        });
        Some(bound.map_err(|refusal| self.refusal(&refusal)))
    }

    fn staging_bytes(&self) -> u64 {
        self.distributor.staging_bytes
    }

    fn copy_out(&self, position: u64, piece: &mut [u8]) -> Result<(), Box<Failure>> {
        let copied = match &self.staging {
            Some(staging) => staging.copy_out(position, piece),
            None => Err(Refusal::new(Reason::Fabric, "no staging memory")),
        };
        copied.map_err(|refusal| self.refusal(&refusal))
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn pause(&self, how_long: Duration) {
        thread::sleep(how_long);
    }

    fn count_set(&self, bytes: u64) {
        metrics::count_distributed(bytes);
    }

    fn count_records(&self, records: u64, bytes: u64) {
        metrics::count_distributed_records(records, bytes);
    }
}
