//! What can go wrong between a file of a certificate and an authenticated connection.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::problem::CertificateProblem;

/// Why there is no identity, or no authenticated connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// A file can't be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory can't be written.
    #[error("write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that would have been overwritten.
    #[error("{} exists, and is not overwritten", path.display())]
    Exists {
        /// Which one.
        path: PathBuf,
    },
    /// A private key that others can read.
    #[error(
        "{} can be read by others (mode {mode:04o}): chmod 600 it, and issue a new one if others may have read it",
        path.display()
    )]
    KeyExposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that does not hold what it should.
    #[error("{}: {detail}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A certificate of ours is not good.
    #[error("certificate of {origin}: {problem}")]
    Certificate {
        /// Where it came from: a path or `peer`.
        origin: String,
        /// What is wrong with it.
        problem: CertificateProblem,
    },
    /// A request that came without a certificate.
    #[error("no certificate was presented")]
    NoCertificate,
    /// The authority could not make a certificate.
    #[error("{context}")]
    Issue {
        /// What was being made.
        context: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// What was asked for can't be put into a certificate.
    #[error("{detail}")]
    Invalid {
        /// What is wrong with it.
        detail: String,
    },
    /// Keys and certificates that TLS can't use.
    #[error("TLS settings of {origin}")]
    Settings {
        /// Whose.
        origin: String,
        /// Why.
        source: rustls::Error,
    },
    /// A unit's address that can't be one.
    #[error("\"{address}\" is no address: {detail}")]
    Address {
        /// What was given, escaped.
        address: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// Nobody answers.
    #[error("{address} can't be reached")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("{address} did not answer within {:.1} s", after.as_secs_f32())]
    TimedOut {
        /// Where.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The other side is not the unit that it should be.
    #[error("{address} is not the unit it should be: {problem}")]
    NotTheUnit {
        /// Where.
        address: String,
        /// What is wrong with its certificate.
        problem: CertificateProblem,
    },
    /// The unit does not accept our certificate.
    #[error("{address} refuses this identity: {problem}")]
    Refused {
        /// Where.
        address: String,
        /// What is wrong with our certificate.
        problem: CertificateProblem,
    },
    /// The TLS handshake failed for another reason than a certificate.
    #[error("{address}: TLS handshake: {detail}")]
    Handshake {
        /// Where.
        address: String,
        /// As the TLS library says it.
        detail: String,
    },
}

impl AuthError {
    /// Nobody was reached, as opposed to: somebody refused, or was refused.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. })
    }

    /// A certificate, of either side, is the reason.
    pub fn problem(&self) -> Option<&CertificateProblem> {
        match self {
            Self::Certificate { problem, .. }
            | Self::NotTheUnit { problem, .. }
            | Self::Refused { problem, .. } => Some(problem),
            _ => None,
        }
    }
}
