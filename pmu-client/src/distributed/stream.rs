//! The stream of small messages to a distributor, behind calls that block.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use pmu_proto::v1::distributor_client::DistributorClient;
use pmu_proto::v1::{DistributeRequest, DistributeResponse};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::READY_MAX;
use super::wire::NO_DISTRIBUTOR;
use crate::control::Control;
use crate::error::{ClientError, Result};

pub(super) use pmu_proto::v1::distribute_request::Step as Request;
pub(super) use pmu_proto::v1::distribute_response::Step as Answer;

/// Messages that wait on either side: word of as many pieces as may be announced that they were taken, and that their records are durable;
/// of the few groups of records that were under way before; and the few others.
const MESSAGES_MAX: usize = 2 * READY_MAX + 64;
/// How long the end of a session may take before it is left to the distributor.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a message waits for its turn.
const SAY_TIMEOUT: Duration = Duration::from_secs(10);

/// What came within the time.
#[derive(Debug)]
pub(super) enum Heard {
    Answer(Box<Answer>),
    Nothing,
    /// The stream is over; with a status unless the distributor ended it in order.
    End(Option<Status>),
}

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

    pub(super) const fn control(&self) -> &Control {
        &self.control
    }

    /// There is room for all pieces that may be under way. Waits a while only for a program that begins and gives up hundreds of sets.
    ///
    /// # Errors
    /// The stream is over; [`Self::hear`] says why.
    pub(super) fn say(&self, step: Request) -> std::result::Result<(), ()> {
        let mut request = DistributeRequest { step: Some(step) };
        let requests = self.requests.as_ref().ok_or(())?;
        let until = Instant::now() + SAY_TIMEOUT;
        loop {
            request = match requests.try_send(request) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(request)) if Instant::now() < until => request,
                Err(_) => return Err(()),
            };
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next answer, within `timeout`.
    pub(super) fn hear(&self, timeout: Duration) -> Heard {
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => heard(answer),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End(None),
        }
    }

    /// The next answer, if it is there.
    pub(super) fn hear_now(&self) -> Heard {
        match self.answers.try_recv() {
            Ok(answer) => heard(answer),
            Err(TryRecvError::Empty) => Heard::Nothing,
            Err(TryRecvError::Disconnected) => Heard::End(None),
        }
    }

    /// What a stream's end means before anything was under way.
    pub(super) fn refused(&self, status: Option<&Status>, region: &str) -> ClientError {
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

    /// Ends the session and waits a short while until the distributor has let the region go.
    pub(super) fn close(&mut self) {
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
