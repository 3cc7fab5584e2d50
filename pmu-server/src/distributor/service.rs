//! The service `Distributor`: who may have sets distributed, and the way of the small messages between a stream and its session's thread.

use std::sync::Arc;
use std::thread;

use pmu_auth::{Principal, Role};
use pmu_format::RegionName;
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distributor_server::{Distributor as Service, DistributorServer};
use pmu_proto::v1::{DistributeOpen, DistributeRequest, DistributeResponse, Mode, Reason};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Distributor;
use super::program::{self, Client, Messages};
use crate::control::principal;
use crate::control::reasons::Refusal;

/// Messages that wait on either side of a session. A program announces fewer pieces than that.
const MESSAGES_MAX: usize = 512;
/// The longest message of a program.
const REQUEST_BYTES_MAX: usize = 4096;

/// See the module.
#[derive(Clone)]
pub(crate) struct DistributorService {
    distributor: Arc<Distributor>,
}

impl DistributorService {
    pub(crate) fn serve(distributor: Arc<Distributor>) -> DistributorServer<Self> {
        DistributorServer::new(Self { distributor }).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Principal, Refusal> {
        let principal = principal(request)?;
        if principal.role == Role::Unit {
            let message = format!("{principal} may not store sets; use a client's certificate");
            return Err(Refusal::new(Reason::WrongRole, message));
        }
        Ok(principal)
    }

    /// The first message, which must not be long in coming.
    async fn first(
        &self,
        requests: &mut Streaming<DistributeRequest>,
    ) -> Result<(DistributeOpen, RegionName), Status> {
        let within = self.distributor.host.limits().connect_within();
        let first = tokio::time::timeout(within, requests.message()).await;
        let Ok(Some(DistributeRequest {
            step: Some(Step::Open(open)),
        })) = first.unwrap_or(Ok(None))
        else {
            return Err(bad("a session begins with the message Open").into());
        };
        if !matches!(open.mode(), Mode::Overwrite | Mode::Append) {
            return Err(bad("a mode that is not known").into());
        }
        let region = RegionName::new(&open.region).map_err(Refusal::from)?;
        Ok((open, region))
    }
}

fn bad(what: &str) -> Refusal {
    Refusal::new(Reason::BadRequest, what)
}

#[tonic::async_trait]
impl Service for DistributorService {
    type DistributeStream = ReceiverStream<Result<DistributeResponse, Status>>;

    async fn distribute(
        &self,
        request: Request<Streaming<DistributeRequest>>,
    ) -> Result<Response<Self::DistributeStream>, Status> {
        let caller = self.caller(&request)?;
        let mut incoming = request.into_inner();
        let (open, region) = self.first(&mut incoming).await?;
        let client = Client {
            principal: caller.name,
            region,
        };
        let (distributor, asking) = (Arc::clone(&self.distributor), client.clone());
        let admitted = tokio::task::spawn_blocking(move || {
            distributor.host.admit(&asking.principal, &asking.region)
        });
        let admitted = admitted
            .await
            .map_err(|_| Status::internal("the distributor failed; its log says more"))??;
        // Whoever may not have anything distributed takes no room from those who may.
        let turn = self.distributor.turn(&client.principal)?;
        let (requests, queue) = mpsc::channel(MESSAGES_MAX);
        let (answers, outgoing) = mpsc::channel(MESSAGES_MAX);
        let messages = Messages {
            requests: queue,
            answers,
        };
        let distributor = Arc::clone(&self.distributor);
        // It blocks, and for as long as the program lives: no thread of the runtime's.
        thread::Builder::new()
            .name("pmu-distribute".into())
            .spawn(move || {
                program::run(&distributor, &client, &admitted, messages, &open);
                drop(turn);
            })
            .map_err(|error| Status::internal(format!("start a thread: {error}")))?;
        tokio::spawn(pass_on(
            incoming,
            requests,
            self.distributor.stopped.clone(),
        ));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// Hands messages to the session until the program, the session or this process ends.
async fn pass_on(
    mut incoming: Streaming<DistributeRequest>,
    requests: mpsc::Sender<Step>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            () = requests.closed() => return,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        let step = match message {
            Ok(Some(DistributeRequest { step: Some(step) })) => step,
            Ok(Some(_)) => {
                tracing::warn!("a message that this version doesn't know ends the session");
                return;
            }
            Ok(None) | Err(_) => return,
        };
        tokio::select! {
            sent = requests.send(step) => {
                if sent.is_err() {
                    return;
                }
            }
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}
