//! What can go wrong with a global storage.

use crate::error::ClientError;

/// Why a global storage did not do what was asked. None of them holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The configuration can't be used.
    #[error("global storage: {0}")]
    Config(String),
    /// It doesn't know us, or doesn't believe us.
    #[error("{store} does not accept the credentials: {reason}")]
    NotAuthenticated {
        /// Its URL.
        store: String,
        /// What it said.
        reason: String,
    },
    /// It knows us, and refuses.
    #[error("{store} refuses {what}: {reason}")]
    Refused {
        /// Its URL.
        store: String,
        /// Which object, or what was asked.
        what: String,
        /// What it said.
        reason: String,
    },
    /// The bucket is not there.
    #[error("{store}: there is no such bucket")]
    NoBucket {
        /// Its URL.
        store: String,
    },
    /// The object is not there.
    #[error("{store} has no {object}")]
    NotFound {
        /// Its URL.
        store: String,
        /// Which.
        object: String,
    },
    /// No answer, or none in time, or an error of its own, as often as was tried.
    #[error("{store} can't be used now ({what}): {reason}")]
    Unavailable {
        /// Its URL.
        store: String,
        /// Which object, or what was asked.
        what: String,
        /// What happened.
        reason: String,
    },
    /// What was read is not what was stored.
    #[error("{store}: {object} is damaged: {what}")]
    Damaged {
        /// Its URL.
        store: String,
        /// Which.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// The source of what is to be stored.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Asked to end.
    #[error("interrupted")]
    Interrupted,
}

/// Result of this module's fallible functions.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    pub(super) fn of(store: &str, what: &str, error: object_store::Error) -> Self {
        use object_store::Error;
        let (store, what) = (store.to_owned(), what.to_owned());
        let text = text_of(&error);
        let code = between(&text, "<Code>", "</Code>");
        let reason = match (code, between(&text, "<Message>", "</Message>")) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            _ => text.chars().take(REASON_CHARACTERS_MAX).collect(),
        };
        // Which kind of error the crate makes of an answer depends on the request; what the service says doesn't.
        match (code, error) {
            (Some("NoSuchBucket"), _) => Self::NoBucket { store },
            (
                Some(
                    "SignatureDoesNotMatch"
                    | "InvalidAccessKeyId"
                    | "InvalidToken"
                    | "ExpiredToken",
                ),
                _,
            )
            | (_, Error::Unauthenticated { .. }) => Self::NotAuthenticated { store, reason },
            (Some("AccessDenied" | "AllAccessDisabled"), _)
            | (_, Error::PermissionDenied { .. }) => Self::Refused {
                store,
                what,
                reason,
            },
            (_, Error::NotFound { .. }) => Self::NotFound {
                store,
                object: what,
            },
            (_, Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. }) => {
                Self::Config(reason)
            }
            _ => Self::Unavailable {
                store,
                what,
                reason,
            },
        }
    }

    /// True if it answered, and has no such object.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::Config(_) => "correct the configuration",
            Self::NotAuthenticated { .. } => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file that the key credentials names"
            }
            Self::Refused { .. } => "have the right granted at the store",
            Self::NoBucket { .. } => "make the bucket, or correct the URL",
            Self::NotFound { .. } => "list what there is (pmu store list)",
            Self::Unavailable { .. } => "check the store and the way to it; then try again",
            Self::Damaged { .. } => {
                "fetch it from the units, or another set or copy; then store it again"
            }
            Self::Client(error) => error.advice(),
            Self::Interrupted => return None,
        })
    }
}

/// So much of an answer is repeated at most.
const REASON_CHARACTERS_MAX: usize = 600;

/// What stands between two tags.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(found, _)| found)
}

/// What an error and its causes say, in one line without control characters.
fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    let plain = |character: char| match character.is_control() {
        true => ' ',
        false => character,
    };
    text.chars().map(plain).collect()
}
