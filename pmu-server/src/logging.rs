//! Log lines to standard error, as text or JSON. Set up once, by `main` alone.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{LogFormat, LogSection};

/// Starts logging for the whole process.
///
/// # Errors
/// A filter that can't be read, or logging that was set up before.
pub fn set_up(section: &LogSection) -> io::Result<()> {
    let filter = EnvFilter::try_new(&section.filter).map_err(io::Error::other)?;
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    match section.format {
        LogFormat::Text => {
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            lines
                .with_ansi(colours)
                .try_init()
                .map_err(io::Error::other)
        }
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .try_init()
            .map_err(io::Error::other),
    }
}
