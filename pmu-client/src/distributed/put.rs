//! A set on its way through a distributor.

use super::sets::Distributed;
use crate::error::{ClientError, Result};
use crate::receipt::Receipt;

/// A set that is being written. Dropped before [`Self::finish`], it is given up, and the earlier sets are there.
#[derive(Debug)]
pub struct DistributedPut<'a> {
    /// None once it is given up.
    primary: Option<&'a mut Distributed>,
    /// The length that was named.
    bytes: Option<u64>,
    /// The longest that it may become.
    most: u64,
}

impl<'a> DistributedPut<'a> {
    pub(super) fn new(primary: &'a mut Distributed, bytes: Option<u64>, most: u64) -> Self {
        Self {
            primary: Some(primary),
            bytes,
            most,
        }
    }
}

impl DistributedPut<'_> {
    /// Writes the next bytes. Blocks while the staging memory is full.
    ///
    /// # Errors
    /// As [`Distributed::commit`]; [`ClientError::TooLarge`] beyond the length that was named. The set is given up then.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(primary) = self.primary.take() else {
            return Err(given_up());
        };
        let all = primary.written().saturating_add(bytes.len() as u64);
        let done = if all > self.most {
            Err(primary.too_large(all, self.most))
        } else {
            primary.write(bytes)
        };
        match done {
            Ok(()) => {
                self.primary = Some(primary);
                Ok(())
            }
            Err(error) => {
                primary.abandon_put();
                Err(error)
            }
        }
    }

    /// Ends the set, and returns when it is durable on each unit that the receipt names.
    ///
    /// # Errors
    /// As [`Distributed::commit`]; [`ClientError::Invalid`] if fewer bytes were written than were named.
    /// [`ClientError::UnknownOutcome`] if the distributor was lost after it was told to publish.
    pub fn finish(mut self) -> Result<Receipt> {
        let Some(primary) = self.primary.take() else {
            return Err(given_up());
        };
        let written = primary.written();
        let done = match self.bytes.filter(|named| written < *named) {
            Some(named) => Err(ClientError::Invalid(format!(
                "{written} of {named} bytes were written"
            ))),
            None => primary.finish_put(),
        };
        done.inspect_err(|_| primary.abandon_put())
    }
}

impl Drop for DistributedPut<'_> {
    fn drop(&mut self) {
        if let Some(primary) = self.primary.take() {
            primary.abandon_put();
        }
    }
}

fn given_up() -> ClientError {
    ClientError::Invalid("the set was given up".into())
}
