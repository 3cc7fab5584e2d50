//! The control channel to one unit: gRPC over mutual TLS, behind calls that block.
//!
//! A small runtime of one thread lives in here and never shows: callers may be inside an asynchronous runtime of their own or not.

use std::future::Future;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pmu_auth::{AuthError, Identity, PrincipalName, UnitAddress, auth_error_in};
use pmu_proto::reason;
use pmu_proto::v1::session_client::SessionClient;
use pmu_proto::v1::{
    ActivateRequest, ActivateResponse, CloseSessionRequest, DescribeRegionRequest,
    DescribeRegionResponse, FenceRegionRequest, FenceRegionResponse, OpenRegionRequest,
    OpenRegionResponse, PingRequest, PingResponse, Reason,
};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::error::{ClientError, Result};

/// Longest time that giving a session back may take: its end must never hang a program.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time that asking for the reason of a lost connection may take.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module. Safe to call from any thread; every call blocks, at most for its time limit.
pub(crate) struct Control {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    client: SessionClient<Channel>,
    channel: Channel,
    address: UnitAddress,
    unit: String,
    request_timeout: Duration,
}

impl Control {
    pub(crate) fn connect(
        address: &str,
        identity: &Identity,
        unit: Option<&PrincipalName>,
        timeout: Duration,
        request_timeout: Duration,
    ) -> Result<Self> {
        let parsed: UnitAddress = address
            .parse()
            .map_err(|error: AuthError| ClientError::Invalid(chain(&error)))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("pmu-control")
            .enable_all()
            .build()
            .map_err(ClientError::io("start the control thread"))?;
        let (dialled, who, name) = (parsed.clone(), identity.clone(), unit.cloned());
        let connecting =
            async move { pmu_auth::connect(&dialled, &who, name.as_ref(), timeout).await };
        let waited = run(&runtime, timeout, "connect to the unit", connecting);
        let channel = match waited {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                runtime.shutdown_background();
                return Err(not_connected(address, &error));
            }
            Err(error) => {
                runtime.shutdown_background();
                return Err(ClientError::Unreachable {
                    unit: address.into(),
                    reason: error.to_string(),
                });
            }
        };
        Ok(Self {
            runtime: Some(runtime),
            client: SessionClient::new(channel.clone()),
            channel,
            address: parsed,
            unit: address.to_owned(),
            request_timeout,
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.unit
    }

    pub(crate) fn host(&self) -> &str {
        self.address.host()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Runs something that uses the channel beside the calls. It is dropped with this.
    pub(crate) fn spawn<F>(&self, work: impl FnOnce(Channel) -> F) -> Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(runtime) = &self.runtime else {
            return Err(ClientError::Invalid("the control channel is closed".into()));
        };
        runtime.spawn(work(self.channel.clone()));
        Ok(())
    }

    fn call<T, F>(&self, timeout: Duration, what: &'static str, region: &str, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<tonic::Response<T>, Status>> + Send + 'static,
    {
        let Some(runtime) = &self.runtime else {
            return Err(ClientError::Ended {
                region: region.into(),
            });
        };
        match run(runtime, timeout, what, call)? {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.refused(&status, region)),
        }
    }

    pub(crate) fn ping(&self) -> Result<PingResponse> {
        let mut client = self.client.clone();
        self.call(self.request_timeout, "ping the unit", "", async move {
            client.ping(Request::new(PingRequest {})).await
        })
    }

    pub(crate) fn describe(&self, region: &str) -> Result<DescribeRegionResponse> {
        self.describe_within(region, self.request_timeout)
    }

    /// What the region's epoch is now, for an explanation that may not take long.
    pub(crate) fn epoch_soon(&self, region: &str) -> Result<u64> {
        let answer = self.describe_within(region, EXPLAIN_TIMEOUT)?;
        Ok(answer.region.map_or(0, |region| region.epoch))
    }

    fn describe_within(&self, region: &str, timeout: Duration) -> Result<DescribeRegionResponse> {
        let mut client = self.client.clone();
        let request = DescribeRegionRequest {
            region: region.into(),
        };
        self.call(timeout, "describe the region", region, async move {
            client.describe_region(Request::new(request)).await
        })
    }

    pub(crate) fn fence(&self, region: &str) -> Result<FenceRegionResponse> {
        let mut client = self.client.clone();
        let request = FenceRegionRequest {
            region: region.into(),
        };
        self.call(
            self.request_timeout,
            "fence the region",
            region,
            async move { client.fence_region(Request::new(request)).await },
        )
    }

    pub(crate) fn open(
        &self,
        request: OpenRegionRequest,
        timeout: Duration,
    ) -> Result<OpenRegionResponse> {
        let mut client = self.client.clone();
        let region = request.region.clone();
        self.call(timeout, "open the region", &region, async move {
            client.open_region(Request::new(request)).await
        })
    }

    pub(crate) fn activate(
        &self,
        session_id: u64,
        region: &str,
        timeout: Duration,
    ) -> Result<ActivateResponse> {
        let mut client = self.client.clone();
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = ActivateRequest {
            session_id,
            timeout_ms,
        };
        self.call(timeout, "activate the session", region, async move {
            client.activate(Request::new(request)).await
        })
    }

    /// Gives a session back. A unit that is gone has given it back by itself.
    pub(crate) fn close(&self, session_id: u64, region: &str) {
        let mut client = self.client.clone();
        let closed = self.call(CLOSE_TIMEOUT, "close the session", region, async move {
            client
                .close_session(Request::new(CloseSessionRequest { session_id }))
                .await
        });
        if let Err(error) = closed {
            tracing::debug!(%error, region, "the session was not closed: it ends with its connection");
        }
    }

    pub(crate) fn refused(&self, status: &Status, region: &str) -> ClientError {
        let (unit, region, message) = (
            self.unit.clone(),
            region.to_owned(),
            status.message().to_owned(),
        );
        match reason::of(status) {
            Some(Reason::Locked) => ClientError::Locked { unit },
            Some(Reason::NoGrant | Reason::WrongRole) => ClientError::NoGrant {
                region,
                reason: message,
            },
            Some(Reason::NoPrincipal) => ClientError::NotAuthenticated {
                unit,
                reason: message,
            },
            Some(Reason::NoSuchRegion | Reason::BeingErased) => {
                ClientError::NoSuchRegion { unit, region }
            }
            Some(Reason::WriterExists) => ClientError::WriterExists {
                region,
                reason: message,
            },
            Some(Reason::ClearingExists) => ClientError::ClearingExists {
                region,
                reason: message,
            },
            Some(Reason::UnfitPersistence | Reason::VolatilePool) => {
                ClientError::UnfitPersistence {
                    region,
                    reason: message,
                }
            }
            Some(Reason::NoProvider) => ClientError::NoProvider {
                unit,
                reason: message,
            },
            Some(Reason::Medium) => ClientError::MediumFailed { region },
            Some(Reason::Stopping) => ClientError::Unreachable {
                unit,
                reason: message,
            },
            Some(other) => ClientError::Refused {
                unit,
                reason: reason::name(other),
                message,
            },
            None => self.broken(status),
        }
    }

    /// A status that no unit decided: the transport's.
    fn broken(&self, status: &Status) -> ClientError {
        if let Some(error) = auth_error_in(status) {
            return not_connected(&self.unit, error);
        }
        let unit = self.unit.clone();
        match status.code() {
            Code::Unimplemented => ClientError::Protocol(format!(
                "unit {unit} does not know this request: it is of another version than {}, or no unit",
                env!("CARGO_PKG_VERSION")
            )),
            Code::Unauthenticated => ClientError::NotAuthenticated {
                unit,
                reason: status.message().to_owned(),
            },
            _ => ClientError::Unreachable {
                unit,
                reason: chain(status),
            },
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime blocks, which an asynchronous caller's runtime would not allow.
            runtime.shutdown_background();
        }
    }
}

/// Runs a future on the runtime's thread and blocks until it is done, or the time is over.
fn run<T: Send + 'static>(
    runtime: &Runtime,
    timeout: Duration,
    what: &'static str,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let begun = Instant::now();
    let task = runtime.spawn(async move {
        // Nobody waits any more after the time limit.
        let _ = sender.send(future.await);
    });
    receiver.recv_timeout(timeout).map_err(|_| {
        task.abort();
        ClientError::TimedOut {
            what,
            waited_ms: begun.elapsed().as_millis() as u64,
        }
    })
}

fn not_connected(unit: &str, error: &AuthError) -> ClientError {
    let reason = match error {
        // The address is said once.
        AuthError::Unreachable { source, .. } => chain(source),
        error => chain(error),
    };
    let unit = unit.to_owned();
    if error.is_unreachable() {
        ClientError::Unreachable { unit, reason }
    } else {
        ClientError::NotAuthenticated { unit, reason }
    }
}

/// An error with its causes, in one line, without saying anything twice.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text
}
