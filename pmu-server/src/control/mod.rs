//! The control service: gRPC over mutual TLS. Reads requests, asks who sent them, hands them to the unit's state on a
//! thread that may block, and turns refusals into statuses. It decides nothing but who may call at all.

mod admin;
pub(crate) mod convert;
pub mod reasons;
mod session;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pmu_auth::{Principal, Role};
use pmu_proto::v1::Reason;
use pmu_proto::v1::admin_server::AdminServer;
use pmu_proto::v1::session_server::SessionServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};
use tracing::Span;

use crate::state::UnitState;
use reasons::Refusal;

/// The largest message that is read from a peer. Region attributes (4096 bytes) and grants are the longest things that one
/// may hold.
const REQUEST_BYTES_MAX: usize = 256 << 10;
/// The largest message that is sent. A list of regions with their attributes is the longest.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Both services of one unit.
#[derive(Clone)]
pub(crate) struct Control {
    state: Arc<UnitState>,
}

impl Control {
    pub(crate) fn new(state: Arc<UnitState>) -> Self {
        Self { state }
    }

    pub(crate) fn admin(&self) -> AdminServer<Self> {
        AdminServer::new(self.clone())
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(RESPONSE_BYTES_MAX)
    }

    pub(crate) fn session(&self) -> SessionServer<Self> {
        SessionServer::new(self.clone())
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// A manager, whether the unit is locked or not.
    fn any_manager<T>(&self, request: &Request<T>) -> Result<Principal, Refusal> {
        let principal = principal(request)?;
        if principal.role != Role::Manager {
            let message =
                format!("{principal} may not administer the unit; use a manager's certificate");
            return Err(Refusal::new(Reason::WrongRole, message));
        }
        Ok(principal)
    }

    /// A manager of a unit that serves.
    fn manager<T>(&self, request: &Request<T>) -> Result<Principal, Refusal> {
        let principal = self.any_manager(request)?;
        self.state.check_serving()?;
        Ok(principal)
    }

    /// A client or manager, whether the unit is locked or not.
    fn any_caller<T>(&self, request: &Request<T>) -> Result<Principal, Refusal> {
        let principal = principal(request)?;
        if principal.role == Role::Unit {
            let message = format!("{principal} may not open regions; use a client's certificate");
            return Err(Refusal::new(Reason::WrongRole, message));
        }
        Ok(principal)
    }

    /// A client or manager of a unit that serves.
    fn caller<T>(&self, request: &Request<T>) -> Result<Principal, Refusal> {
        let principal = self.any_caller(request)?;
        self.state.check_serving()?;
        Ok(principal)
    }

    /// Runs `work` where it may block. It runs to its end even if the caller has gone.
    async fn run<T, F>(&self, span: Span, work: F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: FnOnce(&UnitState) -> Result<T, Refusal> + Send + 'static,
    {
        let state = Arc::clone(&self.state);
        let done = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            work(&state).map_err(Status::from)
        });
        match done.await {
            Ok(answer) => answer.map(Response::new),
            // Only a panic, which is a bug of ours; its message is in the log and no business of the peer.
            Err(_) => Err(Status::internal(
                "the unit failed on this request; its log says more",
            )),
        }
    }
}

pub(crate) fn principal<T>(request: &Request<T>) -> Result<Principal, Refusal> {
    Principal::from_request(request).map_err(|error| {
        Refusal::new(
            Reason::NoPrincipal,
            format!("{error}; connect with a certificate that the site's authority issued"),
        )
    })
}

/// A control connection that counts against the limit for as long as it is there.
pub(crate) struct Counted<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

/// At most `connections_max` of the connections that come in; more are closed at once.
pub(crate) fn limited<S, I>(
    incoming: I,
    connections_max: u32,
) -> impl Stream<Item = io::Result<Counted<S>>>
where
    I: Stream<Item = io::Result<S>>,
{
    let room = Arc::new(Semaphore::new(connections_max as usize));
    incoming.filter_map(move |accepted| match accepted {
        Ok(stream) => match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => Some(Ok(Counted {
                stream,
                _permit: permit,
            })),
            Err(_) => {
                tracing::warn!(
                    connections_max,
                    "control connection closed: limits.control_connections_max is reached"
                );
                None
            }
        },
        Err(error) => Some(Err(error)),
    })
}

impl<S: Connected> Connected for Counted<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
