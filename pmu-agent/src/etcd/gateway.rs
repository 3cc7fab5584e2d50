//! The JSON gateway of an etcd cluster, over HTTP or TLS: requests, and why one fails, in words that say what to do.

use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use parking_lot::Mutex;
use pmu_auth::{CertificateProblem, ServiceTls, service_password, service_tls};
use rustls::{AlertDescription, Error as TlsError};
use serde_json::{Value, json};
use ureq::http::StatusCode;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use crate::config::Election;
use crate::error::{AgentError, Result};

/// The longest wait for an answer, from the name's look-up and the handshake to its last byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest answer that is read: the right ones are some hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// A cluster's endpoints, and what to say to them.
pub struct Gateway {
    http: ureq::Agent,
    endpoints: Vec<String>,
    /// A client's certificate is shown to whoever asks for one.
    shows_certificate: bool,
    login: Option<Login>,
}

/// A user of etcd's own.
struct Login {
    user: String,
    password: Zeroizing<String>,
    /// What etcd gave for them; it runs out by itself.
    token: Mutex<Option<String>>,
}

/// Whether a login may help: the token has run out, etcd has forgotten it with its restart, or users or roles were changed since it was given, which makes
/// tokens that bear the store's revision too old. Versions of etcd say the last in other words, with code 400.
fn is_of_token(code: StatusCode, message: &str) -> bool {
    const SAID: [&str; 3] = [
        "revision of auth store is old",
        "revision in header is old",
        "invalid auth token",
    ];
    code == StatusCode::UNAUTHORIZED || SAID.iter().any(|said| message.contains(said))
}

/// Why there is no good answer.
enum Failed {
    /// Of one that came.
    Status { code: StatusCode, message: String },
    /// There was none.
    Other(String),
}

impl Gateway {
    /// Reads and checks the files that the configuration names. Nothing is connected. Blocks.
    ///
    /// # Errors
    /// [`AgentError::Refused`], naming the key of the configuration and the file.
    pub fn new(election: &Election) -> Result<Self> {
        let mut config = ureq::Agent::config_builder()
            .timeout_global(Some(REQUEST_TIMEOUT))
            .http_status_as_error(false)
            // Neither a proxy of the environment nor a redirect: a password and a lease are for the endpoints that were named.
            .proxy(None)
            .max_redirects(0);
        let mut shows_certificate = false;
        if let Some(files) = &election.tls {
            let wrong = |key: &'static str| move |error| refused(key, &error);
            let mut tls = service_tls(&files.ca).map_err(wrong("election.tls.ca"))?;
            if let (Some(cert), Some(key)) = (&files.cert, &files.key) {
                let with = tls.with_client(cert, key);
                tls = with.map_err(wrong("election.tls.cert, election.tls.key"))?;
                shows_certificate = true;
            }
            config = config.https_only(true).tls_config(tls_config(&tls)?);
        }
        let login = match (&election.user, &election.password_file) {
            (Some(user), Some(path)) => Some(Login {
                user: user.clone(),
                password: service_password(path)
                    .map_err(|error| refused("election.password_file", &error))?,
                token: Mutex::new(None),
            }),
            _ => None,
        };
        let endpoints = election.etcd.iter();
        Ok(Self {
            http: config.build().into(),
            endpoints: endpoints
                .map(|end| end.trim_end_matches('/').to_owned())
                .collect(),
            shows_certificate,
            login,
        })
    }

    /// Asks one endpoint after the other: the first that answers counts. Blocks for at most a second for each, or three where a user has to log
    /// in anew.
    ///
    /// # Errors
    /// [`AgentError::Refused`], with what each of them said or why there was no answer.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let mut failed = Vec::new();
        for endpoint in &self.endpoints {
            match self.post_as_user(endpoint, path, body) {
                Ok(answer) => return Ok(answer),
                Err(error) => failed.push(format!("etcd at {endpoint}: {}", error.text())),
            }
        }
        Err(AgentError::Refused(failed.join("; ")))
    }

    fn post_as_user(&self, endpoint: &str, path: &str, body: &Value) -> Result<Value, Failed> {
        let Some(login) = &self.login else {
            return self.post_to(endpoint, path, body, None);
        };
        let token = login.token.lock().clone();
        if let Some(token) = token {
            match self.post_to(endpoint, path, body, Some(&token)) {
                Err(Failed::Status { code, message }) if is_of_token(code, &message) => {}
                answer => return answer,
            }
        }
        let asked = json!({ "name": login.user, "password": *login.password });
        let answer = self.post_to(endpoint, "/v3/auth/authenticate", &asked, None);
        let answer = answer.map_err(|error| {
            let user = &login.user;
            Failed::Other(format!(
                "log in as {user} (election.user): {}",
                error.text()
            ))
        })?;
        let Some(token) = answer["token"].as_str() else {
            return Err(Failed::Other("it gave no token for the password".into()));
        };
        *login.token.lock() = Some(token.to_owned());
        self.post_to(endpoint, path, body, Some(token))
    }

    fn post_to(
        &self,
        endpoint: &str,
        path: &str,
        body: &Value,
        token: Option<&str>,
    ) -> Result<Value, Failed> {
        let request = self.http.post(format!("{endpoint}{path}"));
        let mut request = request.header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let sent = request.send(body.to_string());
        let mut answer = sent.map_err(|error| Failed::Other(self.why(&error)))?;
        let code = answer.status();
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = text.read_to_string();
        let text = text.map_err(|error| Failed::Other(self.why(&error)))?;
        let parsed: Result<Value, _> = serde_json::from_str(&text);
        match parsed {
            Ok(answer) if code.is_success() => Ok(answer),
            Ok(answer) => {
                let said = answer["error"].as_str().or(answer["message"].as_str());
                let message = said.unwrap_or_default().to_owned();
                Err(Failed::Status { code, message })
            }
            Err(_) if !code.is_success() => {
                let message = text.chars().take(200).collect::<String>();
                let message = message.trim().to_owned();
                Err(Failed::Status { code, message })
            }
            Err(error) => Err(Failed::Other(format!("its answer is no JSON: {error}"))),
        }
    }

    /// Why there is no answer.
    fn why(&self, error: &ureq::Error) -> String {
        if let Some(tls) = tls_error(error) {
            return self.why_tls(tls);
        }
        match error {
            ureq::Error::Timeout(_) => {
                let seconds = REQUEST_TIMEOUT.as_secs();
                format!("no answer within {seconds} s, connection and handshake included")
            }
            // A certificate is refused behind the handshake of TLS 1.3; whoever writes meanwhile may find the connection reset before it reads why.
            ureq::Error::Io(io)
                if matches!(
                    io.kind(),
                    ErrorKind::ConnectionReset
                        | ErrorKind::BrokenPipe
                        | ErrorKind::UnexpectedEof
                        | ErrorKind::ConnectionAborted
                ) =>
            {
                format!("it has ended the connection: {io}; {}", self.likely())
            }
            other => other.to_string(),
        }
    }

    /// Why a connection is ended without a word, most likely. A certificate is refused behind the handshake of TLS 1.3: whoever writes meanwhile
    /// may find the connection reset before it reads the reason.
    fn likely(&self) -> &'static str {
        let over_tls = |end: &String| end.starts_with("https://");
        match (self.endpoints.iter().any(over_tls), self.shows_certificate) {
            (false, _) => "does it want https://?",
            (true, true) => "does it refuse the certificate of election.tls.cert?",
            (true, false) => "does it want a client's certificate (election.tls.cert)?",
        }
    }

    fn why_tls(&self, error: &TlsError) -> String {
        match error {
            TlsError::InvalidCertificate(_) => match CertificateProblem::from_verifier(error) {
                Some(CertificateProblem::WrongAuthority) => {
                    "its certificate was signed by none of the authorities in election.tls.ca"
                        .into()
                }
                Some(problem) => format!("its certificate is not accepted: {problem}"),
                None => format!("its certificate is not accepted: {error}"),
            },
            TlsError::AlertReceived(AlertDescription::ProtocolVersion) => {
                "it does not speak TLS 1.3, and nothing older is spoken".into()
            }
            TlsError::AlertReceived(alert) if is_of_certificates(*alert) => {
                if self.shows_certificate {
                    format!("it refuses the certificate of election.tls.cert: {alert:?}")
                } else {
                    format!(
                        "it wants a client's certificate, and election.tls.cert names none: {alert:?}"
                    )
                }
            }
            TlsError::InvalidMessage(_) => format!("it does not speak TLS: {error}"),
            other => format!("TLS: {other}"),
        }
    }
}

impl Failed {
    fn text(&self) -> String {
        match self {
            Self::Status { code, message } => format!("{code}: {message}"),
            Self::Other(text) => text.clone(),
        }
    }
}

fn tls_config(tls: &ServiceTls) -> Result<TlsConfig> {
    let owned = |der: &[u8]| Certificate::from_der(der).to_owned();
    let roots: Vec<_> = tls.authorities.iter().map(|der| owned(der)).collect();
    let client = match &tls.client {
        Some(client) => {
            let chain: Vec<_> = client.chain.iter().map(|der| owned(der)).collect();
            let key = PrivateKey::from_pem(client.key_pem.as_bytes());
            let key = key.map_err(|error| refused("election.tls.key", &error))?;
            Some(ClientCert::new_with_certs(&chain, key))
        }
        None => None,
    };
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(client)
        .unversioned_rustls_crypto_provider(tls.provider.clone())
        .build())
}

fn is_of_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}

/// What TLS says lies within what the sockets say.
fn tls_error(error: &ureq::Error) -> Option<&TlsError> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// With all that lies behind it: a file that can't be read says why in its source.
fn refused(key: &str, error: &dyn Error) -> AgentError {
    let mut text = format!("{key}: {error}");
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    AgentError::Refused(text)
}
