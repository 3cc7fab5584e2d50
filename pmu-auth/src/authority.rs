//! A site's certificate authority: a directory with a key that signs certificates.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pmu_format::PrincipalName;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, DnsName};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::error::AuthError;
use crate::files;
use crate::identity::{CA_FILE, Identity, Parts, REVOKED_FILE, certificates, content, provider};
use crate::principal::{Facts, Role};

const AUTHORITY_KEY_FILE: &str = "ca-key.pem";
/// Copies of all certificates issued, so that they can be revoked by name.
const ISSUED_DIRECTORY: &str = "issued";
const AUTHORITY_VALIDITY_DAYS: i64 = 3650;
/// Clocks of a site may differ by as much.
const CLOCK_SKEW: Duration = Duration::minutes(5);
const SERIAL_LEN_BYTES: usize = 16;
/// The object identifier of the attribute serialNumber of a subject: X.520, 6.2.9.
const SUBJECT_SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// A host that a unit's certificate is for: a DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(SanType);

impl FromStr for HostName {
    type Err = AuthError;

    fn from_str(text: &str) -> Result<Self, AuthError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(SanType::IpAddress(address)));
        }
        let invalid = || AuthError::Invalid {
            detail: format!(
                "\"{}\" is neither a DNS name nor an IP address",
                text.escape_default()
            ),
        };
        DnsName::try_from(text).map_err(|_| invalid())?;
        Ok(Self(SanType::DnsName(
            text.try_into().map_err(|_| invalid())?,
        )))
    }
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: OffsetDateTime,
    /// Last second.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// From now on, for so many days. Begins five minutes ago, for clocks that differ.
    pub fn days(days: u32) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            not_before: now - CLOCK_SKEW,
            not_after: now + Duration::days(i64::from(days)),
        }
    }
}

/// A site's certificate authority.
///
/// On disk: a directory with `ca.pem`, `ca-key.pem` (0600), `issued/` and, once something was revoked, `revoked.pem`.
pub struct Authority {
    directory: PathBuf,
    authority_pem: String,
    not_after: OffsetDateTime,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Authority({})", self.directory.display())
    }
}

impl Authority {
    /// Makes a new authority in a directory, which is created if need be; durable when it returns. Blocks.
    ///
    /// # Errors
    /// [`AuthError::Exists`] if there is one already, before anything is written; [`AuthError::Write`];
    /// [`AuthError::Issue`].
    pub fn create(directory: &Path, name: &PrincipalName) -> Result<Self, AuthError> {
        let authority_path = directory.join(CA_FILE);
        let key_path = directory.join(AUTHORITY_KEY_FILE);
        files::refuse_existing([&*authority_path, &*key_path])?;

        let issue = |source| AuthError::Issue {
            context: "make the authority's certificate",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        let validity = Validity {
            not_after: OffsetDateTime::now_utc() + Duration::days(AUTHORITY_VALIDITY_DAYS),
            ..Validity::days(0)
        };
        let mut params = params(validity)?;
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, "pmu:authority");
        // Lists of revoked certificates are matched to their authority by its subject: no two may have the same.
        let serial = params
            .serial_number
            .as_ref()
            .map(|serial| hex(&serial.to_bytes()));
        params.distinguished_name.push(
            DnType::CustomDnType(SUBJECT_SERIAL_NUMBER.to_vec()),
            serial.unwrap_or_default(),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(issue)?;

        files::create_directory(directory)?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        files::create(&key_path, files::SECRET, key_pem.as_bytes())?;
        files::create(&authority_path, files::PUBLIC, certificate.pem().as_bytes())?;
        Self::open(directory)
    }

    /// Opens the authority in a directory. Blocks.
    ///
    /// # Errors
    /// [`AuthError::Read`], [`AuthError::KeyExposed`] if others than the owner can read its key, and
    /// [`AuthError::Content`] if the files are not an authority's.
    pub fn open(directory: &Path) -> Result<Self, AuthError> {
        let key_path = directory.join(AUTHORITY_KEY_FILE);
        let authority_path = directory.join(CA_FILE);
        let key_pem = files::read_secret(&key_path)?;
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| content(&key_path, format!("no private key: {error}")))?;
        let authority_pem = files::read(&authority_path)?;
        let certificate = certificates(&authority_pem, &authority_path)?
            .into_iter()
            .next()
            .ok_or_else(|| content(&authority_path, "no certificate in it"))?;
        let not_after = check_authority(&certificate, &key)
            .map_err(|detail| content(&authority_path, detail))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| content(&authority_path, error.to_string()))?;
        Ok(Self {
            directory: directory.to_owned(),
            authority_pem,
            not_after,
            issuer,
        })
    }

    /// Makes a key and a certificate. A unit's certificate is for its own name (where that is a DNS name) and for
    /// `hosts`; other roles have no hosts. Keeps a copy of the certificate; the key is in the answer alone. Blocks.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for hosts with another role than unit, and for a validity that ends before it begins or
    /// outlives the authority; [`AuthError::Issue`]; [`AuthError::Write`].
    pub fn issue(
        &self,
        name: &PrincipalName,
        role: Role,
        hosts: &[HostName],
        validity: Validity,
    ) -> Result<Identity, AuthError> {
        self.check_request(role, hosts, validity)?;
        let issue = |source| AuthError::Issue {
            context: "make a certificate",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        let mut params = params(validity)?;
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, role.organizational_unit());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::Unit => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Manager | Role::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        if role == Role::Unit {
            params.subject_alt_names = alternative_names(name, hosts);
        }
        let serial = params.serial_number.clone();
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        let certificate_pem = certificate.pem();
        self.keep(name, serial.as_ref(), &certificate_pem)?;

        let parts = Parts {
            authority_pem: self.authority_pem.clone(),
            certificate_pem,
            key_pem: Zeroizing::new(key.serialize_pem()),
            revoked_pem: self.revoked_pem()?,
        };
        Identity::from_parts(parts, name.to_string(), &self.directory)
    }

    /// Revokes every certificate ever issued to a name, and renews the list in `revoked.pem`. It takes effect on a unit
    /// when the file lies in the unit's identity directory. Returns how many certificates are newly revoked. Blocks.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if none was issued to the name; [`AuthError::Read`], [`AuthError::Content`],
    /// [`AuthError::Write`], [`AuthError::Issue`].
    pub fn revoke(&self, name: &PrincipalName) -> Result<usize, AuthError> {
        let serials = self.issued_serials(name)?;
        if serials.is_empty() {
            let detail = format!("no certificate was issued to {name} by this authority");
            return Err(AuthError::Invalid { detail });
        }
        let (number, mut revoked) = self.revoked_list()?;
        let before = revoked.len();
        let now = OffsetDateTime::now_utc();
        for serial in serials {
            if !revoked.iter().any(|known| known.serial_number == serial) {
                revoked.push(RevokedCertParams {
                    serial_number: serial,
                    revocation_time: now,
                    reason_code: None,
                    invalidity_date: None,
                });
            }
        }
        let added = revoked.len() - before;
        let params = CertificateRevocationListParams {
            this_update: now - CLOCK_SKEW,
            next_update: self.not_after,
            crl_number: SerialNumber::from(number + 1),
            issuing_distribution_point: None,
            revoked_certs: revoked,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issue = |source| AuthError::Issue {
            context: "sign the revocation list",
            source,
        };
        let pem = params
            .signed_by(&self.issuer)
            .and_then(|list| list.pem())
            .map_err(issue)?;
        files::replace(&self.revoked_path(), files::PUBLIC, pem.as_bytes())?;
        Ok(added)
    }

    /// Where the revocation list is, once something was revoked: copy it into the identity directories of the units.
    pub fn revoked_path(&self) -> PathBuf {
        self.directory.join(REVOKED_FILE)
    }

    fn check_request(
        &self,
        role: Role,
        hosts: &[HostName],
        validity: Validity,
    ) -> Result<(), AuthError> {
        let invalid = |detail: String| Err(AuthError::Invalid { detail });
        if role != Role::Unit && !hosts.is_empty() {
            return invalid(format!("hosts are for units; a {role} has none"));
        }
        if validity.not_after <= validity.not_before {
            return invalid("the certificate would end before it begins".to_owned());
        }
        if validity.not_after > self.not_after {
            let end = crate::problem::time_text(self.not_after);
            return invalid(format!(
                "the certificate would outlive its authority, which ends at {end}"
            ));
        }
        Ok(())
    }

    fn keep(
        &self,
        name: &PrincipalName,
        serial: Option<&SerialNumber>,
        pem: &str,
    ) -> Result<(), AuthError> {
        let directory = self.directory.join(ISSUED_DIRECTORY);
        files::create_directory(&directory)?;
        let serial = serial.map_or_else(String::new, |serial| hex(&serial.to_bytes()));
        files::create(
            &directory.join(format!("{name}+{serial}.pem")),
            files::PUBLIC,
            pem.as_bytes(),
        )
    }

    /// Serial numbers of the certificates in `issued/` whose subject is `name`.
    fn issued_serials(&self, name: &PrincipalName) -> Result<Vec<SerialNumber>, AuthError> {
        let directory = self.directory.join(ISSUED_DIRECTORY);
        let read = |source| AuthError::Read {
            path: directory.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(read(error)),
        };
        let mut serials = Vec::new();
        for entry in entries {
            let path = entry.map_err(read)?.path();
            let Some(file) = path.file_name().and_then(|file| file.to_str()) else {
                continue;
            };
            if file
                .split_once('+')
                .is_none_or(|(owner, _)| owner != name.as_str())
            {
                continue;
            }
            for certificate in certificates(&files::read(&path)?, &path)? {
                let facts = Facts::from_certificate(&certificate)
                    .map_err(|problem| content(&path, problem.to_string()))?;
                if facts.principal.name == *name {
                    serials.push(serial(&certificate).map_err(|detail| content(&path, detail))?);
                }
            }
        }
        Ok(serials)
    }

    fn revoked_pem(&self) -> Result<Option<String>, AuthError> {
        let path = self.revoked_path();
        if path.exists() {
            files::read(&path).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Number and entries of the list so far; 0 and none if there is none.
    fn revoked_list(&self) -> Result<(u64, Vec<RevokedCertParams>), AuthError> {
        use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
        let Some(pem) = self.revoked_pem()? else {
            return Ok((0, Vec::new()));
        };
        let path = self.revoked_path();
        let damaged = |detail: String| content(&path, detail);
        let list = CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| damaged(format!("no revocation list: {error}")))?;
        let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(&list)
            .map_err(|error| damaged(format!("no revocation list: {error}")))?;
        let number = list
            .crl_number()
            .and_then(|number| u64::try_from(number).ok())
            .unwrap_or(0);
        let entries = list
            .iter_revoked_certificates()
            .map(|entry| RevokedCertParams {
                serial_number: SerialNumber::from(entry.raw_serial().to_vec()),
                revocation_time: entry.revocation_date.to_datetime(),
                reason_code: None,
                invalidity_date: None,
            });
        Ok((number, entries.collect()))
    }
}

fn params(validity: Validity) -> Result<CertificateParams, AuthError> {
    let mut serial = [0; SERIAL_LEN_BYTES];
    provider()
        .secure_random
        .fill(&mut serial)
        .map_err(|_| AuthError::Settings {
            origin: "the authority".to_owned(),
            source: rustls::Error::FailedToGetRandomBytes,
        })?;
    // Positive and of constant length, in one DER encoding: RFC 5280, 4.1.2.2.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    Ok(params)
}

fn alternative_names(name: &PrincipalName, hosts: &[HostName]) -> Vec<SanType> {
    let own = name.as_str().parse::<HostName>().ok();
    let mut names: Vec<SanType> = Vec::new();
    for host in own.iter().chain(hosts) {
        if !names.contains(&host.0) {
            names.push(host.0.clone());
        }
    }
    names
}

/// The end of the authority's validity, if it is one and has this key.
fn check_authority(
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
) -> Result<OffsetDateTime, String> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|error| format!("not X.509: {error}"))?;
    if !parsed.is_ca() {
        return Err("the certificate is no authority's".to_owned());
    }
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(format!(
            "the certificate is not that of {AUTHORITY_KEY_FILE}"
        ));
    }
    Ok(parsed.validity().not_after.to_datetime())
}

fn serial(certificate: &CertificateDer<'_>) -> Result<SerialNumber, String> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|error| format!("not X.509: {error}"))?;
    Ok(SerialNumber::from(parsed.raw_serial().to_vec()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
