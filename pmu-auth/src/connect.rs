//! Connecting to a unit.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pmu_format::PrincipalName;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::error::AuthError;
use crate::identity::Identity;
use crate::problem::CertificateProblem;
use crate::tls::client_tls;

/// How often an idle connection is probed, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where a unit's control service listens: `host:port`, `192.0.2.7:port` or `[2001:db8::7]:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitAddress {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
}

impl UnitAddress {
    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for UnitAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for UnitAddress {
    type Err = AuthError;

    fn from_str(text: &str) -> Result<Self, AuthError> {
        let error = |detail| AuthError::Address {
            address: text.escape_default().to_string(),
            detail,
        };
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| error("no port: host:port"))?;
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| error("the port is a number from 1 to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .ok_or_else(|| error("] is missing"))?,
            None if host.contains(':') => return Err(error("an IPv6 address goes in [ ]")),
            None => host,
        };
        let server_name = ServerName::try_from(host.to_owned())
            .map_err(|_| error("the host is neither a DNS name nor an IP address"))?;
        Ok(Self {
            host: host.to_owned(),
            port,
            server_name,
        })
    }
}

/// Connects to a unit, within `timeout`, and returns when both sides have accepted each other's certificates.
///
/// The channel connects again by itself when the connection breaks; [`auth_error_in`] finds in the error of a later call
/// what this would have returned.
///
/// # Errors
/// [`AuthError::Certificate`] if our own certificate is not valid now; [`AuthError::Unreachable`],
/// [`AuthError::TimedOut`]; [`AuthError::NotTheUnit`] if the server's certificate is not accepted;
/// [`AuthError::Refused`] if ours is not; [`AuthError::Handshake`].
pub async fn connect(
    address: &UnitAddress,
    identity: &Identity,
    unit: Option<&PrincipalName>,
    timeout: Duration,
) -> Result<Channel, AuthError> {
    identity.check_time(OffsetDateTime::now_utc())?;
    let connector = Connector {
        tls: client_tls(identity, unit)?,
        address: Arc::new(address.clone()),
        own_not_after: identity.facts().not_after,
        timeout,
    };
    // Plain http for tonic, because the connector does the TLS.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| AuthError::Address {
            address: address.to_string(),
            detail: "not usable in a URI",
        })?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            take_auth_error(Box::new(error)).unwrap_or_else(|error| AuthError::Handshake {
                address: address.to_string(),
                detail: chain_text(&*error),
            })
        })
}

/// The reason why a call failed before it reached the unit, if there is one in the error's chain of sources.
pub fn auth_error_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a AuthError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<Shared>() {
            return Some(&found.0);
        }
        next = error.source();
    }
    None
}

/// What the connector returns: it is found again behind the layers of tonic, and can be taken out.
#[derive(Debug, Clone)]
struct Shared(Arc<AuthError>);

impl fmt::Display for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Error for Shared {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

fn take_auth_error(
    error: Box<dyn Error + Send + Sync>,
) -> Result<AuthError, Box<dyn Error + Send + Sync>> {
    let shared = {
        let mut next: Option<&(dyn Error + 'static)> = Some(&*error);
        loop {
            match next {
                None => break None,
                Some(error) => match error.downcast_ref::<Shared>() {
                    Some(found) => break Some(found.clone()),
                    None => next = error.source(),
                },
            }
        }
    };
    match shared {
        Some(shared) => {
            drop(error);
            Arc::try_unwrap(shared.0).map_err(|shared| Shared(shared).into())
        }
        None => Err(error),
    }
}

fn chain_text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// Makes the connections of one channel.
#[derive(Clone)]
struct Connector {
    tls: Arc<ClientConfig>,
    address: Arc<UnitAddress>,
    own_not_after: OffsetDateTime,
    timeout: Duration,
}

type Connected = TokioIo<BufReader<TlsStream<TcpStream>>>;

impl Service<Uri> for Connector {
    type Response = Connected;
    type Error = Shared;
    type Future = Pin<Box<dyn Future<Output = Result<Connected, Shared>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Shared>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let attempt = tokio::time::timeout(connector.timeout, connector.connect()).await;
            let result = attempt.unwrap_or_else(|_| {
                Err(AuthError::TimedOut {
                    address: connector.address.to_string(),
                    after: connector.timeout,
                })
            });
            result.map_err(|error| Shared(Arc::new(error)))
        })
    }
}

impl Connector {
    async fn connect(&self) -> Result<Connected, AuthError> {
        let address = &self.address;
        let unreachable = |source| AuthError::Unreachable {
            address: address.to_string(),
            source,
        };
        let stream = TcpStream::connect((address.host(), address.port()))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(address.server_name.clone(), stream)
            .await
            .map_err(|error| self.explain(error))?;
        let mut stream = BufReader::new(stream);
        // In TLS 1.3 a client has finished before the server has judged its certificate. An HTTP/2 server speaks at
        // once, and only if it has accepted us: wait for its first bytes, and leave them where they are.
        match stream.fill_buf().await {
            Ok([]) => Err(AuthError::Handshake {
                address: address.to_string(),
                detail: "the unit closed the connection".to_owned(),
            }),
            Ok(_) => Ok(TokioIo::new(stream)),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn explain(&self, error: io::Error) -> AuthError {
        let address = self.address.to_string();
        let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        else {
            return AuthError::Unreachable {
                address,
                source: error,
            };
        };
        if let rustls::Error::AlertReceived(alert) = tls {
            return match CertificateProblem::from_alert(*alert) {
                Some(CertificateProblem::Expired { .. }) => AuthError::Refused {
                    address,
                    problem: self.own_time_problem(),
                },
                Some(problem) => AuthError::Refused { address, problem },
                None => AuthError::Handshake {
                    address,
                    detail: tls.to_string(),
                },
            };
        }
        match CertificateProblem::from_verifier(tls) {
            Some(problem) => AuthError::NotTheUnit { address, problem },
            None => AuthError::Handshake {
                address,
                detail: tls.to_string(),
            },
        }
    }

    /// The alert does not say when our certificate expired; we know.
    fn own_time_problem(&self) -> CertificateProblem {
        if OffsetDateTime::now_utc() > self.own_not_after {
            CertificateProblem::Expired {
                not_after: Some(self.own_not_after),
            }
        } else {
            // By our clock it is valid: one of both clocks is wrong.
            CertificateProblem::Other {
                detail: "the unit holds it for expired or not valid yet; is a clock wrong?"
                    .to_owned(),
            }
        }
    }
}
