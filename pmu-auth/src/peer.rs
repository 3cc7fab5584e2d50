//! TLS 1.3 between two programs that are both clients of units, such as agents: each shows its client's certificate, and takes none but those
//! of the names that it expects.

use std::sync::Arc;

use pmu_format::PrincipalName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

use crate::error::AuthError;
use crate::identity::{Identity, provider};
use crate::principal::{Principal, Role};
use crate::tls::{accepting, check_role, client_verifier, settings, signatures_by_inner};

/// Both directions of a link between peers.
#[derive(Debug, Clone)]
pub struct PeerTls {
    /// For the one that listens.
    pub server: Arc<ServerConfig>,
    /// For the one that connects. The host's name is not looked at: the certificate's is.
    pub client: Arc<ClientConfig>,
}

/// Settings for links with peers of the given names, speaking `protocol` (by ALPN) and nothing else.
///
/// # Errors
/// [`AuthError::Certificate`] if the identity is no client's; [`AuthError::Settings`].
pub fn peer_tls(
    identity: &Identity,
    peers: &[PrincipalName],
    protocol: &[u8],
) -> Result<PeerTls, AuthError> {
    check_role(identity, &[Role::Client], "client")?;
    let verifier = Arc::new(PeerVerifier {
        inner: client_verifier(identity)?,
        peers: peers.to_vec(),
    });
    let server = accepting(identity, Arc::<PeerVerifier>::clone(&verifier), protocol)?;
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| settings(identity, error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key())));
    client.alpn_protocols = vec![protocol.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    Ok(PeerTls {
        server,
        client: Arc::new(client),
    })
}

/// What webpki checks of a client's certificate, on both sides, and then that the name is one of those expected.
#[derive(Debug)]
struct PeerVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    peers: Vec<PrincipalName>,
}

impl PeerVerifier {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        match Principal::from_certificate(end_entity) {
            Ok(principal)
                if principal.role == Role::Client && self.peers.contains(&principal.name) =>
            {
                Ok(verified)
            }
            Ok(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Err(problem) => Err(problem.into_rustls()),
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_by_inner!();
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now)
    }

    signatures_by_inner!();
}
