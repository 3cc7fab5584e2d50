//! What can be wrong with a certificate, in an administrator's words.

use std::fmt;

use rustls::{AlertDescription, CertificateError};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::principal::Role;

/// Why a certificate was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// None was presented.
    Missing,
    /// Another authority signed it, or nobody did.
    WrongAuthority,
    /// Its time is over. `None`: the peer did not say since when.
    Expired {
        /// The last second of its validity.
        not_after: Option<OffsetDateTime>,
    },
    /// Its time has not begun, or a clock is wrong.
    NotYetValid {
        /// The first second of its validity.
        not_before: Option<OffsetDateTime>,
    },
    /// The authority has revoked it.
    Revoked,
    /// It was given to another role than this takes.
    WrongRole {
        /// What would be accepted.
        expected: &'static str,
        /// The certificate's role, if it has one.
        found: Option<Role>,
    },
    /// It was issued for other hosts than the one connected to.
    WrongHost {
        /// The host connected to.
        expected: String,
        /// The hosts in the certificate.
        presented: Vec<String>,
    },
    /// It belongs to a unit of another name.
    WrongName {
        /// The name asked for.
        expected: String,
        /// The certificate's common name.
        found: String,
    },
    /// It can't be read, or names no principal.
    Malformed {
        /// What is wrong with it.
        detail: String,
    },
    /// Anything else.
    Other {
        /// As the TLS library says it.
        detail: String,
    },
}

impl CertificateProblem {
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed {
            detail: detail.into(),
        }
    }

    /// What our side found wrong with the peer's certificate; none for an error that is about something else.
    pub fn from_verifier(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::NoCertificatesPresented => Some(Self::Missing),
            rustls::Error::InvalidCertificate(error) => Some(Self::from_certificate_error(error)),
            rustls::Error::PeerMisbehaved(_) | rustls::Error::InvalidMessage(_) => None,
            _ => None,
        }
    }

    fn from_certificate_error(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired => Self::Expired { not_after: None },
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired {
                not_after: instant(not_after.as_secs()),
            },
            CertificateError::NotValidYet => Self::NotYetValid { not_before: None },
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid {
                not_before: instant(not_before.as_secs()),
            },
            CertificateError::Revoked => Self::Revoked,
            // A foreign authority with the same name as ours shows as a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::WrongAuthority
            }
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::WrongHost {
                expected: expected.to_str().into_owned(),
                presented: presented.iter().map(|name| plain_host(name)).collect(),
            },
            CertificateError::BadEncoding => Self::malformed("not X.509"),
            CertificateError::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(problem) => problem.clone(),
                None => Self::Other {
                    detail: other.to_string(),
                },
            },
            other => Self::Other {
                detail: other.to_string(),
            },
        }
    }

    /// What the peer says of our certificate.
    pub(crate) fn from_alert(alert: AlertDescription) -> Option<Self> {
        Some(match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                Self::Missing
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => Self::WrongAuthority,
            AlertDescription::CertificateExpired => Self::Expired { not_after: None },
            AlertDescription::CertificateRevoked => Self::Revoked,
            AlertDescription::UnsupportedCertificate | AlertDescription::AccessDenied => {
                Self::WrongRole {
                    expected: "manager or client",
                    found: None,
                }
            }
            AlertDescription::BadCertificate => Self::malformed("the peer can't read it"),
            AlertDescription::CertificateUnknown => Self::Other {
                detail: "the peer does not say why".to_owned(),
            },
            _ => return None,
        })
    }

    /// The form in which a verifier hands it through the TLS library.
    pub(crate) fn into_rustls(self) -> rustls::Error {
        CertificateError::Other(rustls::OtherError(std::sync::Arc::new(self))).into()
    }
}

/// webpki names hosts like `DnsName("a.example")` and `IpAddress(127.0.0.1)`.
fn plain_host(debug: &str) -> String {
    let inner = debug
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(debug).trim_matches('"').to_owned()
}

fn instant(seconds: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
}

/// A time for people, to the second.
pub(crate) fn time_text(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    time.to_offset(time::UtcOffset::UTC)
        .format(&format)
        .unwrap_or_else(|_| time.to_string())
}

impl std::error::Error for CertificateProblem {}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(formatter, "no certificate was presented"),
            Self::WrongAuthority => {
                write!(formatter, "the certificate was signed by another authority")
            }
            Self::Expired {
                not_after: Some(time),
            } => {
                write!(formatter, "the certificate expired at {}", time_text(*time))
            }
            Self::Expired { not_after: None } => write!(formatter, "the certificate has expired"),
            Self::NotYetValid {
                not_before: Some(time),
            } => write!(
                formatter,
                "the certificate is not valid before {}; is a clock wrong?",
                time_text(*time)
            ),
            Self::NotYetValid { not_before: None } => {
                write!(
                    formatter,
                    "the certificate is not valid yet; is a clock wrong?"
                )
            }
            Self::Revoked => write!(formatter, "the authority has revoked the certificate"),
            Self::WrongRole {
                expected,
                found: Some(found),
            } => {
                write!(
                    formatter,
                    "the certificate has the role {found}, this takes {expected}"
                )
            }
            Self::WrongRole {
                expected,
                found: None,
            } => {
                write!(
                    formatter,
                    "the certificate has another role than {expected}"
                )
            }
            Self::WrongHost {
                expected,
                presented,
            } if presented.is_empty() => {
                write!(
                    formatter,
                    "the certificate is for no host, so not for {expected}"
                )
            }
            Self::WrongHost {
                expected,
                presented,
            } => write!(
                formatter,
                "the certificate is for {}, not for {expected}",
                presented.join(", ")
            ),
            Self::WrongName { expected, found } => {
                write!(
                    formatter,
                    "the certificate belongs to {found}, not to {expected}"
                )
            }
            Self::Malformed { detail } => {
                write!(formatter, "the certificate names no principal: {detail}")
            }
            Self::Other { detail } => write!(formatter, "the certificate is refused: {detail}"),
        }
    }
}
