//! A set that is written piece by piece.

use std::io::{self, Write};

use crate::error::Result;
use crate::receipt::Receipt;
use crate::sets::SetPrimary;

/// A set in progress: write its payload, then [`Self::finish`]. Dropped before, it is abandoned, and the earlier sets stay what they were.
///
/// Writing blocks only while all staging memory is on its way to the unit.
#[derive(Debug)]
pub struct Put<'a> {
    primary: &'a mut SetPrimary,
}

impl<'a> Put<'a> {
    pub(super) fn new(primary: &'a mut SetPrimary) -> Self {
        Self { primary }
    }

    /// Payload bytes taken so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.primary.taken()
    }

    /// Takes the next bytes of the payload: as [`Write::write_all`], with this crate's error.
    ///
    /// # Errors
    /// [`crate::ClientError::TooLarge`] if they are more than were announced, or than the region takes; [`crate::ClientError::ConnectionLost`],
    /// [`crate::ClientError::Fenced`], [`crate::ClientError::TimedOut`]. The set is abandoned then.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.primary.feed(bytes)
    }

    /// Commits the set and returns when it is durable.
    ///
    /// # Errors
    /// As [`SetPrimary::commit`]; [`crate::ClientError::Invalid`] if fewer bytes were written than announced.
    pub fn finish(self) -> Result<Receipt> {
        self.primary.finish_set()
    }

    /// Gives the set up, as dropping it does.
    pub fn abandon(self) {}
}

impl Write for Put<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.primary.feed(bytes)?;
        Ok(bytes.len())
    }

    /// Makes nothing durable: only [`Put::finish`] does.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Put<'_> {
    fn drop(&mut self) {
        // Nothing to give up after `finish`.
        self.primary.abandon_set();
    }
}
