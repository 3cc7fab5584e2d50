//! TLS towards a service that isn't ours, such as etcd: the authority that signed its certificate, and a client's certificate that it takes.
//! None of them says anything of principals: those are in identities alone.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::error::AuthError;
use crate::files;
use crate::identity::{certificates, content, provider, roots};
use crate::problem::CertificateProblem;

/// What to speak TLS with: every file of it was read and checked.
pub struct ServiceTls {
    /// Who may have signed the service's certificate; one at least.
    pub authorities: Vec<CertificateDer<'static>>,
    /// What to show to a service that asks for it.
    pub client: Option<ServiceClient>,
    /// Has the cipher suites of TLS 1.3, and no others: nothing older is offered.
    pub provider: Arc<CryptoProvider>,
}

/// A client's certificate for a service. It has no text of its own: none for a log to show the key in.
pub struct ServiceClient {
    /// The certificate, and those between it and its authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key, PEM.
    pub key_pem: Zeroizing<String>,
}

/// Reads the certificates of the authorities (`ca`), PEM. Blocks.
///
/// # Errors
/// [`AuthError::Read`]; [`AuthError::Content`] if there is none in it, or something that is none.
pub fn service_tls(ca: &Path) -> Result<ServiceTls, AuthError> {
    let pem = files::read(ca)?;
    roots(&pem, ca)?;
    let mut provider = CryptoProvider::clone(&provider());
    provider
        .cipher_suites
        .retain(|suite| suite.version() == &TLS13);
    Ok(ServiceTls {
        authorities: certificates(&pem, ca)?,
        client: None,
        provider: Arc::new(provider),
    })
}

impl ServiceTls {
    /// Adds a client's certificate and its key, both PEM. Blocks.
    ///
    /// # Errors
    /// [`AuthError::Read`]; [`AuthError::KeyExposed`] if others than the owner can read the key; [`AuthError::Content`];
    /// [`AuthError::Certificate`] if the certificate's time is over or has not begun; [`AuthError::Settings`] if the two do not belong
    /// together.
    pub fn with_client(mut self, certificate: &Path, key: &Path) -> Result<Self, AuthError> {
        let key_pem = files::read_secret(key)?;
        let chain = certificates(&files::read(certificate)?, certificate)?;
        let Some(first) = chain.first() else {
            return Err(content(certificate, "no certificate in it"));
        };
        check_time(first, certificate)?;
        let private = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| content(key, format!("no private key: {error}")))?;
        CertifiedKey::from_der(chain.clone(), private, &self.provider).map_err(|source| {
            AuthError::Settings {
                origin: format!("{} and {}", certificate.display(), key.display()),
                source,
            }
        })?;
        self.client = Some(ServiceClient { chain, key_pem });
        Ok(self)
    }
}

/// Reads a password: the first line of a file, without what ends it. Blocks.
///
/// # Errors
/// [`AuthError::Read`]; [`AuthError::KeyExposed`] if others than the owner can read it; [`AuthError::Content`] for an empty first line, or
/// anything behind it.
pub fn service_password(path: &Path) -> Result<Zeroizing<String>, AuthError> {
    let text = files::read_secret(path)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\r']) {
        return Err(content(path, "one line with the password is wanted"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

fn check_time(certificate: &CertificateDer<'_>, path: &Path) -> Result<(), AuthError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| content(path, format!("not X.509: {error}")))?;
    let (from, to) = (parsed.validity().not_before, parsed.validity().not_after);
    let (from, to) = (from.to_datetime(), to.to_datetime());
    let now = OffsetDateTime::now_utc();
    let problem = if now > to {
        let not_after = Some(to);
        CertificateProblem::Expired { not_after }
    } else if now < from {
        let not_before = Some(from);
        CertificateProblem::NotYetValid { not_before }
    } else {
        return Ok(());
    };
    Err(AuthError::Certificate {
        origin: path.display().to_string(),
        problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    #[test]
    fn s05_nothing_older_than_tls_1_3_is_offered_to_a_service() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("ca");
        Authority::create(&home, &"site".parse().unwrap()).unwrap();
        let tls = service_tls(&home.join(crate::CA_FILE)).unwrap();
        assert_eq!(tls.authorities.len(), 1);
        let suites = &tls.provider.cipher_suites;
        assert!(!suites.is_empty());
        assert!(suites.iter().all(|suite| suite.version() == &TLS13));
    }
}
