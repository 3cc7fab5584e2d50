//! Accepting authenticated connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::{Stream, wrappers::ReceiverStream};

use crate::problem::CertificateProblem;

/// How long a peer may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at a time; connections beyond wait in the listener's queue.
const HANDSHAKES_MAX: usize = 256;
/// Pause after the system refused to accept, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections whose peers have proved who they are: give it to tonic's `serve_with_incoming`.
///
/// Ends when it is dropped; the listener closes soon after.
#[derive(Debug)]
pub struct Incoming {
    accepted: ReceiverStream<io::Result<TlsStream<TcpStream>>>,
}

impl Stream for Incoming {
    type Item = io::Result<TlsStream<TcpStream>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.accepted).poll_next(context)
    }
}

/// Accepts connections, with the settings of [`crate::server_tls`]. Handshakes run beside each other, so that a slow
/// peer holds up nobody; a refused peer is logged with the reason, as a warning. Takes a tokio runtime.
pub fn incoming(listener: TcpListener, settings: Arc<ServerConfig>) -> Incoming {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept(listener, TlsAcceptor::from(settings), sender));
    Incoming {
        accepted: ReceiverStream::new(receiver),
    }
}

type Sender = mpsc::Sender<io::Result<TlsStream<TcpStream>>>;

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, sender: Sender) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = sender.closed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let handshake = handshake(
                    acceptor.clone(),
                    stream,
                    peer.to_string(),
                    sender.clone(),
                    permit,
                );
                tokio::spawn(handshake);
            }
            Err(error) => {
                tracing::warn!(%error, "accept a control connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: String,
    sender: Sender,
    permit: OwnedSemaphorePermit,
) {
    // Small messages that somebody waits for.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(peer, %error, "set TCP_NODELAY");
    }
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            drop(permit);
            // Nobody listens any more: the unit is stopping.
            let _ = sender.send(Ok(stream)).await;
        }
        Ok(Err(error)) => {
            let reason = refusal(&error);
            // Anybody can connect and say nonsense, as often as the network allows: only what has to do with certificates is news.
            if reason.contains("certificate") {
                tracing::warn!(peer, reason, "control connection refused");
            } else {
                tracing::debug!(peer, reason, "control connection refused");
            }
        }
        Err(_) => tracing::debug!(peer, "control connection refused: no handshake in time"),
    }
}

/// Why a handshake failed, for the log.
fn refusal(error: &io::Error) -> String {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner.and_then(CertificateProblem::from_verifier) {
        Some(problem) => problem.to_string(),
        None => error.to_string(),
    }
}
