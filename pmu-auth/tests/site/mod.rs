//! What the tests share: an authority, identities, and a unit that only answers Ping.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pmu_auth::{
    AuthError, Authority, Identity, Principal, PrincipalName, Role, UnitAddress, Validity,
};
use pmu_proto::v1;
use pmu_proto::v1::session_server::{Session, SessionServer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

pub const TIMEOUT: Duration = Duration::from_secs(5);

pub fn name(name: &str) -> PrincipalName {
    PrincipalName::new(name).unwrap()
}

/// An authority in a directory that goes away with it.
pub struct Site {
    pub directory: TempDir,
    pub authority: Authority,
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), &name("site")).unwrap();
        Self {
            directory,
            authority,
        }
    }

    pub fn identity(&self, principal: &str, role: Role) -> Identity {
        self.identity_with(principal, role, Validity::days(1))
    }

    pub fn identity_with(&self, principal: &str, role: Role, validity: Validity) -> Identity {
        let hosts: &[_] = match role {
            Role::Unit => &["127.0.0.1".parse().unwrap()],
            _ => &[],
        };
        self.authority
            .issue(&name(principal), role, hosts, validity)
            .unwrap()
    }

    pub fn path(&self, directory: &str) -> std::path::PathBuf {
        self.directory.path().join(directory)
    }
}

/// Was valid, from ten to five days ago.
pub fn expired() -> Validity {
    let now = OffsetDateTime::now_utc();
    Validity {
        not_before: now - time::Duration::days(10),
        not_after: now - time::Duration::days(5),
    }
}

/// Will be valid, in five days.
pub fn future() -> Validity {
    let now = OffsetDateTime::now_utc();
    Validity {
        not_before: now + time::Duration::days(5),
        not_after: now + time::Duration::days(9),
    }
}

/// The certificates and the key in an identity directory, for those who break the rules with them.
pub fn raw(directory: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(directory.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).unwrap();
    (chain.map(|certificate| certificate.unwrap()).collect(), key)
}

/// Runs a unit that answers Ping with the name of whoever asks.
pub async fn serve(settings: Arc<ServerConfig>) -> UnitAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let incoming = pmu_auth::incoming(listener, settings);
    let server = tonic::transport::Server::builder()
        .add_service(SessionServer::new(Echo))
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    address
}

/// Connects as a program would, and asks the unit whom it sees.
pub async fn ask(
    address: &UnitAddress,
    identity: &Identity,
    unit: Option<&str>,
) -> Result<String, AuthError> {
    let unit = unit.map(name);
    let channel = pmu_auth::connect(address, identity, unit.as_ref(), TIMEOUT).await?;
    let mut client = v1::session_client::SessionClient::new(channel);
    Ok(client
        .ping(v1::PingRequest {})
        .await
        .unwrap()
        .into_inner()
        .unit)
}

struct Echo;

#[tonic::async_trait]
impl Session for Echo {
    async fn ping(
        &self,
        request: Request<v1::PingRequest>,
    ) -> Result<Response<v1::PingResponse>, Status> {
        let principal = Principal::from_request(&request).unwrap();
        let unit = principal.to_string();
        Ok(Response::new(v1::PingResponse {
            unit,
            ..Default::default()
        }))
    }

    async fn open_region(
        &self,
        _: Request<v1::OpenRegionRequest>,
    ) -> Result<Response<v1::OpenRegionResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn activate(
        &self,
        _: Request<v1::ActivateRequest>,
    ) -> Result<Response<v1::ActivateResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn close_session(
        &self,
        _: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn fence_region(
        &self,
        _: Request<v1::FenceRegionRequest>,
    ) -> Result<Response<v1::FenceRegionResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn describe_region(
        &self,
        _: Request<v1::DescribeRegionRequest>,
    ) -> Result<Response<v1::DescribeRegionResponse>, Status> {
        Err(Status::unimplemented("test"))
    }
}
