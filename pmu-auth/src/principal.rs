//! Who a certificate names.

use std::fmt;
use std::str::FromStr;

use pmu_format::PrincipalName;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::error::AuthError;
use crate::problem::CertificateProblem;

/// What stands before the role in the subject's organizational unit.
const ROLE_PREFIX: &str = "pmu:";

/// What a principal is. Set by the authority in the subject's organizational unit (`pmu:manager`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Initialises units, creates and deletes regions.
    Manager,
    /// Opens regions, as far as their grants allow.
    Client,
    /// A unit: the only role whose certificate is good for a server.
    Unit,
}

impl Role {
    /// All roles, in the order in which help texts name them.
    pub const ALL: [Self; 3] = [Self::Manager, Self::Client, Self::Unit];

    /// The role's name, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Client => "client",
            Self::Unit => "unit",
        }
    }

    /// The organizational unit of a subject with this role.
    pub(crate) fn organizational_unit(self) -> String {
        format!("{ROLE_PREFIX}{}", self.as_str())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| "a role is manager, client or unit".to_owned())
    }
}

/// Who a certificate names, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The subject's common name.
    pub name: PrincipalName,
    /// From the subject's organizational unit.
    pub role: Role,
}

impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.name, self.role)
    }
}

impl Principal {
    /// The principal that an end-entity certificate names. Checks no signature: the certificate must be one that the TLS
    /// handshake has verified.
    ///
    /// # Errors
    /// [`CertificateProblem::Malformed`] unless the subject has exactly one common name, which is a
    /// [`PrincipalName`], and exactly one role.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, CertificateProblem> {
        Ok(Facts::from_certificate(certificate)?.principal)
    }

    /// The principal whose certificate a gRPC request came with, on a server made with [`crate::incoming`].
    ///
    /// # Errors
    /// [`AuthError::NoCertificate`] if the connection has no certificate; [`AuthError::Certificate`] if it names no
    /// principal.
    pub fn from_request<T>(request: &tonic::Request<T>) -> Result<Self, AuthError> {
        let certificates = request.peer_certs().ok_or(AuthError::NoCertificate)?;
        let first = certificates.first().ok_or(AuthError::NoCertificate)?;
        Self::from_certificate(first).map_err(|problem| AuthError::Certificate {
            origin: "peer".to_owned(),
            problem,
        })
    }
}

/// What is read from a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) principal: Principal,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl Facts {
    pub(crate) fn from_certificate(
        certificate: &CertificateDer<'_>,
    ) -> Result<Self, CertificateProblem> {
        let (rest, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| CertificateProblem::malformed(format!("not X.509: {error}")))?;
        if !rest.is_empty() {
            return Err(CertificateProblem::malformed("bytes behind its end"));
        }
        let subject = parsed.subject();
        let name = only(subject.iter_common_name(), "common name")?;
        let name = PrincipalName::new(name)
            .map_err(|error| CertificateProblem::malformed(format!("common name: {error}")))?;
        Ok(Self {
            principal: Principal {
                name,
                role: role(subject)?,
            },
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
        })
    }
}

fn role(subject: &X509Name<'_>) -> Result<Role, CertificateProblem> {
    let unit = only(subject.iter_organizational_unit(), "organizational unit")?;
    unit.strip_prefix(ROLE_PREFIX)
        .and_then(|role| role.parse().ok())
        .ok_or_else(|| {
            CertificateProblem::malformed(format!(
                "organizational unit \"{}\" is no role",
                unit.escape_default()
            ))
        })
}

/// A second common name or role could be read differently by somebody else: it makes the certificate void.
fn only<'a>(
    mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
    what: &str,
) -> Result<&'a str, CertificateProblem> {
    let first = values
        .next()
        .ok_or_else(|| CertificateProblem::malformed(format!("the subject has no {what}")))?;
    if values.next().is_some() {
        return Err(CertificateProblem::malformed(format!(
            "the subject has more than one {what}"
        )));
    }
    first
        .as_str()
        .map_err(|_| CertificateProblem::malformed(format!("the subject's {what} is not text")))
}
