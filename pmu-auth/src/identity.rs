//! An identity: one certificate, its key, and the authority that its owner trusts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, crypto::CryptoProvider};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::error::AuthError;
use crate::files;
use crate::principal::{Facts, Principal};
use crate::problem::CertificateProblem;

/// The certificates of the authorities that the identity trusts.
pub const CA_FILE: &str = "ca.pem";
/// The identity's certificate.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// The identity's private key, for its owner alone.
pub const KEY_FILE: &str = "key.pem";
/// The authority's list of revoked certificates. May be absent.
pub const REVOKED_FILE: &str = "revoked.pem";
/// The environment variable that names a program's identity directory.
pub const IDENTITY_VARIABLE: &str = "PMU_IDENTITY";
/// The environment variable that names a manager's: another one, as one shell serves both.
pub const MANAGER_IDENTITY_VARIABLE: &str = "PMM_IDENTITY";

/// A certificate, its private key, and the authorities that its owner trusts.
///
/// On disk: a directory with [`CA_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`], and, where certificates have been
/// revoked, [`REVOKED_FILE`]. Several authorities may stand in the first, for as long as one replaces another.
#[derive(Clone)]
pub struct Identity {
    /// A directory, or who was just issued: what error messages call it.
    origin: String,
    authority_pem: String,
    certificate_pem: String,
    key_pem: Zeroizing<String>,
    revoked_pem: Option<String>,
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    key: Arc<CertifiedKey>,
    facts: Facts,
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Identity({} of {})",
            self.facts.principal, self.origin
        )
    }
}

/// The texts that an identity is made of.
pub(crate) struct Parts {
    pub(crate) authority_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: Zeroizing<String>,
    pub(crate) revoked_pem: Option<String>,
}

impl Identity {
    /// Reads an identity directory. Blocks.
    ///
    /// An expired certificate is read: [`Self::check_time`] judges it.
    ///
    /// # Errors
    /// [`AuthError::Read`], [`AuthError::KeyExposed`] if others than the owner can read the key,
    /// [`AuthError::Content`] or [`AuthError::Certificate`] for files that are not an identity's, and
    /// [`AuthError::Settings`] if key and certificate do not belong together.
    pub fn load(directory: &Path) -> Result<Self, AuthError> {
        // The key first: that others can read it is worth knowing even where the rest is wrong too.
        let key_pem = files::read_secret(&directory.join(KEY_FILE))?;
        let revoked_path = directory.join(REVOKED_FILE);
        let revoked_pem = match files::read(&revoked_path) {
            Ok(text) => Some(text),
            Err(AuthError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        let parts = Parts {
            authority_pem: files::read(&directory.join(CA_FILE))?,
            certificate_pem: files::read(&directory.join(CERTIFICATE_FILE))?,
            key_pem,
            revoked_pem,
        };
        Self::from_parts(parts, directory.display().to_string(), directory)
    }

    /// `directory` is where errors say the parts are.
    pub(crate) fn from_parts(
        parts: Parts,
        origin: String,
        directory: &Path,
    ) -> Result<Self, AuthError> {
        let roots = roots(&parts.authority_pem, &directory.join(CA_FILE))?;
        let certificate_path = directory.join(CERTIFICATE_FILE);
        let chain = certificates(&parts.certificate_pem, &certificate_path)?;
        let facts = match chain.first() {
            Some(first) => {
                Facts::from_certificate(first).map_err(|problem| AuthError::Certificate {
                    origin: certificate_path.display().to_string(),
                    problem,
                })?
            }
            None => return Err(content(&certificate_path, "no certificate in it")),
        };
        let key_path = directory.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_slice(parts.key_pem.as_bytes())
            .map_err(|error| content(&key_path, format!("no private key: {error}")))?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|source| {
            AuthError::Settings {
                origin: origin.clone(),
                source,
            }
        })?;
        let revoked = match &parts.revoked_pem {
            Some(text) => revocation_lists(text, &directory.join(REVOKED_FILE))?,
            None => Vec::new(),
        };
        Ok(Self {
            origin,
            authority_pem: parts.authority_pem,
            certificate_pem: parts.certificate_pem,
            key_pem: parts.key_pem,
            revoked_pem: parts.revoked_pem,
            roots: Arc::new(roots),
            revoked,
            key: Arc::new(key),
            facts,
        })
    }

    /// Writes the identity into a directory, which is created if need be; durable when it returns. Blocks.
    ///
    /// # Errors
    /// [`AuthError::Exists`] if any of the files is there already, before anything is written; [`AuthError::Write`].
    pub fn save(&self, directory: &Path) -> Result<(), AuthError> {
        let path = |file: &str| directory.join(file);
        let (authority, certificate) = (path(CA_FILE), path(CERTIFICATE_FILE));
        let (key, revoked) = (path(KEY_FILE), path(REVOKED_FILE));
        files::refuse_existing([&*authority, &*certificate, &*key, &*revoked])?;
        files::create_directory(directory)?;
        files::create(&key, files::SECRET, self.key_pem.as_bytes())?;
        files::create(&authority, files::PUBLIC, self.authority_pem.as_bytes())?;
        files::create(&certificate, files::PUBLIC, self.certificate_pem.as_bytes())?;
        match &self.revoked_pem {
            Some(text) => files::create(&revoked, files::PUBLIC, text.as_bytes()),
            None => Ok(()),
        }
    }

    /// Who the identity is.
    pub fn principal(&self) -> &Principal {
        &self.facts.principal
    }

    /// The last second of its certificate's validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.facts.not_after
    }

    /// Whether the certificate is valid at `now`.
    ///
    /// # Errors
    /// [`AuthError::Certificate`] with [`CertificateProblem::Expired`] or [`CertificateProblem::NotYetValid`].
    pub fn check_time(&self, now: OffsetDateTime) -> Result<(), AuthError> {
        let problem = if now > self.facts.not_after {
            CertificateProblem::Expired {
                not_after: Some(self.facts.not_after),
            }
        } else if now < self.facts.not_before {
            CertificateProblem::NotYetValid {
                not_before: Some(self.facts.not_before),
            }
        } else {
            return Ok(());
        };
        Err(AuthError::Certificate {
            origin: self.origin.clone(),
            problem,
        })
    }

    /// Where an identity is looked for: what was given, else what the environment's `variable` says ([`IDENTITY_VARIABLE`],
    /// [`MANAGER_IDENTITY_VARIABLE`]), else `default`.
    pub fn directory(given: Option<&Path>, variable: &str, default: &Path) -> PathBuf {
        let from_environment = || {
            std::env::var_os(variable)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        given
            .map(Path::to_owned)
            .or_else(from_environment)
            .unwrap_or_else(|| default.to_owned())
    }

    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    pub(crate) fn revoked(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.revoked.clone()
    }

    pub(crate) fn key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }
}

/// The one provider of cryptography, never the process's default one.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn content(path: &Path, detail: impl Into<String>) -> AuthError {
    AuthError::Content {
        path: path.to_owned(),
        detail: detail.into(),
    }
}

pub(crate) fn certificates(
    pem: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, AuthError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    certificates.map_err(|error| content(path, format!("not PEM: {error}")))
}

pub(crate) fn roots(pem: &str, path: &Path) -> Result<RootCertStore, AuthError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, path)? {
        roots
            .add(certificate)
            .map_err(|error| content(path, format!("no authority: {error}")))?;
    }
    if roots.is_empty() {
        return Err(content(path, "no certificate in it"));
    }
    Ok(roots)
}

fn revocation_lists(
    pem: &str,
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, AuthError> {
    let lists: Result<Vec<_>, _> =
        CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect();
    let lists = lists.map_err(|error| content(path, format!("not PEM: {error}")))?;
    if lists.is_empty() {
        // An emptied file must not silently bring back every revoked certificate.
        return Err(content(path, "no revocation list in it"));
    }
    Ok(lists)
}
