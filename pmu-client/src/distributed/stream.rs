//! The way to a distributor over a network: a gRPC stream behind calls that block, and the fabric.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use pmu_fabric::{ConnectToken, Connection, FabricError, PersistenceMethod, Provider};
use pmu_proto::v1::distributor_client::DistributorClient;
use pmu_proto::v1::{DistributeRequest, DistributeResponse};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::READY_MAX;
use super::way::{Heard, Over, Request, Way};
use super::wire::NO_DISTRIBUTOR;
use crate::control::Control;
use crate::error::{ClientError, Result};
use crate::options::ProviderChoice;
use crate::provider;

/// Messages that wait on either side: word of as many pieces as may be announced that they were taken, and that their records are durable;
/// of the few groups of records that were under way before; and the few others.
const MESSAGES_MAX: usize = 2 * READY_MAX + 64;
/// How long the end of a session may take before it is left to the distributor.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a message waits for its turn.
const SAY_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Stream {
    control: Control,
    requests: Option<mpsc::Sender<DistributeRequest>>,
    answers: Receiver<Result<DistributeResponse, Status>>,
}

impl Stream {
    pub(super) fn begin(control: Control) -> Result<Self> {
        let (requests, outgoing) = mpsc::channel(MESSAGES_MAX);
        let (incoming, answers) = sync_channel(MESSAGES_MAX);
        control.spawn(|channel| carry(channel, outgoing, incoming))?;
        Ok(Self {
            control,
            requests: Some(requests),
            answers,
        })
    }
}

impl Way for Stream {
    fn address(&self) -> &str {
        self.control.address()
    }

    fn say(&self, step: Request) -> std::result::Result<(), Over> {
        let mut request = DistributeRequest { step: Some(step) };
        let requests = self.requests.as_ref().ok_or(Over)?;
        let until = Instant::now() + SAY_TIMEOUT;
        loop {
            request = match requests.try_send(request) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(request)) if Instant::now() < until => request,
                Err(_) => return Err(Over),
            };
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn hear(&self, timeout: Duration) -> Heard {
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => heard(answer),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End(None),
        }
    }

    fn hear_now(&self) -> Heard {
        match self.answers.try_recv() {
            Ok(answer) => heard(answer),
            Err(TryRecvError::Empty) => Heard::Nothing,
            Err(TryRecvError::Disconnected) => Heard::End(None),
        }
    }

    fn refused(&self, status: Option<&Status>, region: &str) -> ClientError {
        let unit = self.control.address().to_owned();
        match status {
            Some(status) if status.code() == Code::Unimplemented => ClientError::Refused {
                unit,
                reason: NO_DISTRIBUTOR,
                message: "it is not configured to distribute: its configuration has no section [distributor]"
                    .into(),
            },
            Some(status) => self.control.refused(status, region),
            None => ClientError::Unreachable {
                unit,
                reason: "it ended the stream".into(),
            },
        }
    }

    fn close(&mut self) {
        if self.requests.take().is_none() {
            return;
        }
        let until = Instant::now() + CLOSE_TIMEOUT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.hear(left) {
                Heard::Answer(_) => {}
                Heard::End(_) => return,
                Heard::Nothing => {
                    tracing::debug!("the distributor has not confirmed the end of the session");
                    return;
                }
            }
        }
    }

    fn providers(&self, choice: ProviderChoice) -> Vec<Provider> {
        provider::candidates(choice, self.control.host(), self.control.port())
    }

    fn connect(
        &self,
        provider: Provider,
        address: &str,
        token: ConnectToken,
        persistence: PersistenceMethod,
        timeout: Duration,
    ) -> std::result::Result<Box<dyn Connection>, FabricError> {
        provider::connect(provider, address, token, persistence, timeout)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

fn heard(answer: Result<DistributeResponse, Status>) -> Heard {
    match answer {
        Ok(DistributeResponse { step: Some(step) }) => Heard::Answer(Box::new(step)),
        Ok(DistributeResponse { step: None }) => Heard::End(Some(Status::unknown(
            "an answer of a kind that is not known",
        ))),
        Err(status) => Heard::End(Some(status)),
    }
}

async fn carry(
    channel: Channel,
    outgoing: mpsc::Receiver<DistributeRequest>,
    incoming: SyncSender<Result<DistributeResponse, Status>>,
) {
    let mut client = DistributorClient::new(channel);
    let mut answers = match client.distribute(ReceiverStream::new(outgoing)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => {
            // Nobody may listen any more.
            let _ = incoming.try_send(Err(status));
            return;
        }
    };
    loop {
        let said = match answers.message().await {
            Ok(Some(answer)) => incoming.try_send(Ok(answer)),
            Ok(None) => return,
            Err(status) => incoming.try_send(Err(status)),
        };
        if said.is_err() {
            // The handle is gone, or the distributor says more than it was asked.
            return;
        }
    }
}
