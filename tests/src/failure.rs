//! Why the witness could not do its work, or what it has to say against the unit.

use std::io;

use pmu_client::ClientError;

/// Result of this crate's fallible functions.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug)]
pub enum Failure {
    /// A promise was broken: each text says which.
    Broken(Vec<String>),
    /// The client library could not do something.
    Client(&'static str, ClientError),
    /// A file, a process or standard output.
    Io(String, io::Error),
    /// What was given makes no sense.
    Given(String),
}

impl Failure {
    /// For `map_err`: what was being done, as a bare phrase.
    pub fn client(doing: &'static str) -> impl FnOnce(ClientError) -> Self {
        move |error| Self::Client(doing, error)
    }

    /// For `map_err`: what was being done to what.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io(doing.into(), error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(promises) => {
                write!(formatter, "{} broken:", promises.len())?;
                promises
                    .iter()
                    .try_for_each(|promise| write!(formatter, "\n  {promise}"))
            }
            Self::Client(doing, error) => {
                write!(formatter, "{doing}: {error}")?;
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    write!(formatter, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
            Self::Io(doing, error) => write!(formatter, "{doing}: {error}"),
            Self::Given(what) => formatter.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}
