//! Why a command failed, and the exit code that goes with it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use pmu_auth::{AuthError, auth_error_in};
use pmu_proto::{reason, v1::Reason};
use tonic::{Code, Status};

/// The exit codes of `pmm`, as its help documents them.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed; the message says why.
    pub const FAILED: u8 = 1;
    /// The arguments can't be used.
    pub const USAGE: u8 = 2;
    /// Not authenticated, or not authorised.
    pub const NOT_AUTHORISED: u8 = 3;
    /// The unit, region, pool or grant does not exist.
    pub const NOT_FOUND: u8 = 4;
    /// `verify` found damage.
    pub const DAMAGED: u8 = 5;
    /// A unit is locked or can't be reached.
    pub const UNAVAILABLE: u8 = 6;
    /// Ended by Ctrl-C, as shells count it.
    pub const INTERRUPTED: u8 = 130;
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// Arguments that only the list of units, or the absence of a terminal, shows to be wrong.
    #[error("{detail}")]
    Usage {
        /// What is wrong, and what would be right.
        detail: String,
    },
    /// A unit that is not in the list.
    #[error("no unit is called {unit}; known: {known}. `pmm unit add` adds one")]
    NoSuchUnit {
        /// The name asked for.
        unit: String,
        /// The names in the list.
        known: String,
    },
    /// A region that no unit has.
    #[error("no unit has a region {region} (`pmm region list` shows all)")]
    NoSuchRegion {
        /// The name asked for.
        region: String,
    },
    /// A file of the configuration can't be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the configuration that makes no sense.
    #[error("{}: {detail}", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// There is no identity to work with.
    #[error(
        "no identity in {}: have one issued (`pmm ca issue`), and name its directory with --identity or PMM_IDENTITY",
        directory.display()
    )]
    NoIdentity {
        /// Where it was looked for.
        directory: PathBuf,
        /// Why it could not be read.
        source: AuthError,
    },
    /// A certificate, an authority or a connection failed.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A unit refused, or failed.
    #[error("unit {unit}: {}", refusal_text(status))]
    Refused {
        /// Which unit.
        unit: String,
        /// What it said.
        status: Box<Status>,
    },
    /// A unit did not answer in time.
    #[error(
        "unit {unit} did not answer within {after_ms} ms; what was asked may have happened all the same"
    )]
    TimedOut {
        /// Which unit.
        unit: String,
        /// How long it was waited for.
        after_ms: u128,
    },
    /// A unit answered what no unit should.
    #[error("unit {unit} answers nonsense: {detail}")]
    Answer {
        /// Which unit.
        unit: String,
        /// What is wrong with the answer.
        detail: &'static str,
    },
    /// A spread region could not be created on one of its units, and so is created on none.
    #[error(
        "region {region} can't be created on unit {unit}{}",
        left_text(left_on)
    )]
    NotCreated {
        /// The region.
        region: String,
        /// The first of the units that failed.
        unit: String,
        /// The units from which it could not be taken again.
        left_on: Vec<String>,
        /// Why it failed.
        source: Box<ManagerError>,
    },
    /// Ctrl-C ended a rebuild or scrub.
    #[error(
        "region {region}: interrupted {done}; what was written stays whole, and the next call goes on"
    )]
    Interrupted {
        /// The region.
        region: String,
        /// How far it was.
        done: String,
    },
    /// A rebuild or scrub failed.
    #[error("{source} ({})", source.advice())]
    Client {
        /// Why.
        source: Box<pmu_client::ClientError>,
    },
    /// There are no random numbers.
    #[error("draw a random id")]
    Random {
        /// Why.
        source: getrandom::Error,
    },
    /// The output can't be written.
    #[error("write output")]
    Output {
        /// Why.
        source: io::Error,
    },
    /// The runtime did not start.
    #[error("start")]
    Start {
        /// Why.
        source: io::Error,
    },
}

/// What a person can do about a refusal goes with it.
fn refusal_text(status: &Status) -> String {
    let message = status.message();
    match reason::of(status) {
        Some(Reason::Locked) => format!("{message} (`pmm unit unlock` unlocks it)"),
        Some(Reason::WriterExists) => format!("{message} (`pmm region fence` takes it away)"),
        Some(reason) => format!("{message} ({})", reason::name(reason)),
        None if status.code() == Code::Unimplemented => format!(
            "it does not know this request: it is of another version than pmm {}, or no unit",
            env!("CARGO_PKG_VERSION")
        ),
        None if message.is_empty() => format!("{:?}", status.code()),
        None => message.to_owned(),
    }
}

fn left_text(left_on: &[String]) -> String {
    if left_on.is_empty() {
        return ", and so on none".to_owned();
    }
    format!(
        "; it may be left on {}: `pmm region delete --unit` deletes it",
        left_on.join(", ")
    )
}

impl ManagerError {
    /// What a failed call to a unit means.
    pub fn from_status(unit: &str, status: Status) -> Self {
        Self::Refused {
            unit: unit.to_owned(),
            status: Box::new(status),
        }
    }

    /// The reason that the unit gave.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { status, .. } => reason::of(status),
            Self::NotCreated { source, .. } => source.reason(),
            _ => None,
        }
    }

    /// One of [`exit`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => exit::USAGE,
            Self::NoSuchUnit { .. } | Self::NoSuchRegion { .. } => exit::NOT_FOUND,
            Self::NoIdentity { .. } => exit::NOT_AUTHORISED,
            Self::TimedOut { .. } => exit::UNAVAILABLE,
            Self::Auth(error) => auth_exit_code(error),
            Self::Refused { status, .. } => status_exit_code(status),
            Self::Client { source } => client_exit_code(source),
            Self::Interrupted { .. } => exit::INTERRUPTED,
            Self::NotCreated { source, .. } => source.exit_code(),
            Self::File { .. }
            | Self::Config { .. }
            | Self::Answer { .. }
            | Self::Random { .. }
            | Self::Output { .. }
            | Self::Start { .. } => exit::FAILED,
        }
    }

    /// The message with all its causes.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(source) = next {
            let cause = source.to_string();
            // Some repeat their cause in their own message.
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
            next = source.source();
        }
        text
    }
}

fn client_exit_code(error: &pmu_client::ClientError) -> u8 {
    use pmu_client::ClientError;
    match error {
        ClientError::NoGrant { .. } | ClientError::NotAuthenticated { .. } => exit::NOT_AUTHORISED,
        ClientError::NoSuchRegion { .. } => exit::NOT_FOUND,
        ClientError::Damaged { .. } => exit::DAMAGED,
        error if error.is_unreachable() => exit::UNAVAILABLE,
        _ => exit::FAILED,
    }
}

fn auth_exit_code(error: &AuthError) -> u8 {
    match error {
        AuthError::Unreachable { .. } | AuthError::TimedOut { .. } => exit::UNAVAILABLE,
        AuthError::Certificate { .. }
        | AuthError::NotTheUnit { .. }
        | AuthError::Refused { .. }
        | AuthError::Handshake { .. }
        | AuthError::KeyExposed { .. }
        | AuthError::NoCertificate
        | AuthError::Settings { .. } => exit::NOT_AUTHORISED,
        _ => exit::FAILED,
    }
}

fn status_exit_code(status: &Status) -> u8 {
    if let Some(reason) = reason::of(status) {
        return match reason {
            Reason::Locked | Reason::Stopping => exit::UNAVAILABLE,
            Reason::NoGrant | Reason::WrongRole | Reason::NoPrincipal => exit::NOT_AUTHORISED,
            Reason::NoSuchRegion
            | Reason::NoSuchPool
            | Reason::NoSuchGrant
            | Reason::NoSuchSession => exit::NOT_FOUND,
            _ => exit::FAILED,
        };
    }
    if let Some(error) = auth_error_in(status) {
        return auth_exit_code(error);
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => exit::UNAVAILABLE,
        Code::Unauthenticated | Code::PermissionDenied => exit::NOT_AUTHORISED,
        Code::NotFound => exit::NOT_FOUND,
        _ => exit::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_exit_codes() {
        let code =
            |reason| ManagerError::from_status("u", reason::status(reason, "no")).exit_code();
        assert_eq!(code(Reason::Locked), 6);
        assert_eq!(code(Reason::WrongRole), 3);
        assert_eq!(code(Reason::NoSuchRegion), 4);
        assert_eq!(code(Reason::PoolFull), 1);
        let plain = ManagerError::from_status("u", Status::unavailable("gone"));
        assert_eq!(plain.exit_code(), 6);
        assert_eq!(plain.text(), "unit u: gone");
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let locked = ManagerError::from_status("u", reason::status(Reason::Locked, "locked"));
        assert!(
            locked.text().contains("pmm unit unlock"),
            "{}",
            locked.text()
        );
        assert_eq!(locked.reason(), Some(Reason::Locked));
    }
}
