//! TLS 1.3 settings: certificates on both sides, checked for signature, time, revocation, host and role.

use std::sync::Arc;

use pmu_format::PrincipalName;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

use crate::error::AuthError;
use crate::identity::{Identity, provider};
use crate::principal::{Principal, Role};
use crate::problem::CertificateProblem;

/// gRPC's protocol, the only one spoken.
const ALPN_HTTP2: &[u8] = b"h2";

/// What a unit accepts connections with: TLS 1.3 only, and a certificate of a manager or client is required.
///
/// # Errors
/// [`AuthError::Certificate`] if the identity is no unit's; [`AuthError::Settings`].
pub fn server_tls(identity: &Identity) -> Result<Arc<ServerConfig>, AuthError> {
    check_role(identity, &[Role::Unit], "unit")?;
    let inner = client_verifier(identity)?;
    accepting(identity, Arc::new(PeerVerifier { inner }), ALPN_HTTP2)
}

/// Refuses an identity whose role is none of these.
pub(crate) fn check_role(
    identity: &Identity,
    roles: &[Role],
    expected: &'static str,
) -> Result<(), AuthError> {
    let found = identity.principal().role;
    if roles.contains(&found) {
        return Ok(());
    }
    Err(AuthError::Certificate {
        origin: identity.origin().to_owned(),
        problem: CertificateProblem::WrongRole {
            expected,
            found: Some(found),
        },
    })
}

/// What webpki checks of a client's certificate: signature, time, revocation.
pub(crate) fn client_verifier(
    identity: &Identity,
) -> Result<Arc<dyn ClientCertVerifier>, AuthError> {
    WebPkiClientVerifier::builder_with_provider(identity.roots(), provider())
        .with_crls(identity.revoked())
        // While one authority replaces another, only one of them may have a list.
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| settings(identity, Error::General(error.to_string())))
}

/// Accepts TLS 1.3 alone, speaking `protocol` alone, from whom the verifier lets in.
pub(crate) fn accepting(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
    protocol: &[u8],
) -> Result<Arc<ServerConfig>, AuthError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| settings(identity, error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key())));
    config.alpn_protocols = vec![protocol.to_vec()];
    // A resumed session would skip the checks of time and revocation.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

pub(crate) fn settings(identity: &Identity, source: Error) -> AuthError {
    AuthError::Settings {
        origin: identity.origin().to_owned(),
        source,
    }
}

/// What a manager or client connects to a unit with: TLS 1.3 only, and the server's certificate must have the role unit
/// and, if `unit` is given, that name.
///
/// # Errors
/// [`AuthError::Certificate`] if the identity is a unit's; [`AuthError::Settings`].
pub fn client_tls(
    identity: &Identity,
    unit: Option<&PrincipalName>,
) -> Result<Arc<ClientConfig>, AuthError> {
    check_role(
        identity,
        &[Role::Manager, Role::Client],
        "manager or client",
    )?;
    let verifier = WebPkiServerVerifier::builder_with_provider(identity.roots(), provider())
        .with_crls(identity.revoked())
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| settings(identity, Error::General(error.to_string())))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| settings(identity, error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(UnitVerifier {
            inner: verifier,
            unit: unit.cloned(),
        }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key())));
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Of a verifier that checks more than webpki does: signatures are for the one inside.
macro_rules! signatures_by_inner {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.inner
                .verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.inner
                .verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.inner.supported_verify_schemes()
        }
    };
}
pub(crate) use signatures_by_inner;

/// What webpki checks, and then that the server is a unit, of the right name.
#[derive(Debug)]
struct UnitVerifier {
    inner: Arc<WebPkiServerVerifier>,
    unit: Option<PrincipalName>,
}

impl ServerCertVerifier for UnitVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| name_the_role(error, end_entity, "unit"))?;
        let principal =
            Principal::from_certificate(end_entity).map_err(CertificateProblem::into_rustls)?;
        if principal.role != Role::Unit {
            let found = Some(principal.role);
            return Err(CertificateProblem::WrongRole {
                expected: "unit",
                found,
            }
            .into_rustls());
        }
        match &self.unit {
            Some(expected) if *expected != principal.name => Err(CertificateProblem::WrongName {
                expected: expected.to_string(),
                found: principal.name.to_string(),
            }
            .into_rustls()),
            _ => Ok(verified),
        }
    }

    signatures_by_inner!();
}

/// What webpki checks, and then that the certificate names a manager or client.
#[derive(Debug)]
struct PeerVerifier {
    inner: Arc<dyn ClientCertVerifier>,
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
        // The error goes to the peer as an alert, so that it must stay the one that has a telling alert.
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        match Principal::from_certificate(end_entity) {
            Ok(Principal {
                role: Role::Manager | Role::Client,
                ..
            }) => Ok(verified),
            Ok(_) => Err(CertificateError::InvalidPurpose.into()),
            Err(problem) => Err(problem.into_rustls()),
        }
    }

    signatures_by_inner!();
}

/// webpki speaks of purposes; what an administrator has given is a role.
fn name_the_role(error: Error, end_entity: &CertificateDer<'_>, expected: &'static str) -> Error {
    match error {
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => {
            let found = Principal::from_certificate(end_entity)
                .ok()
                .map(|found| found.role);
            CertificateProblem::WrongRole { expected, found }.into_rustls()
        }
        other => other,
    }
}
