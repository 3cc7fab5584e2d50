//! A set that is written piece by piece.

use pmu_stripe::{GroupIndex, Placement};

use crate::error::{ClientError, Result};
use crate::receipt::Receipt;
use crate::spread::SpreadPrimary;

/// A set that is being written. Dropped before [`Self::finish`], it is given up, and the earlier sets are there.
#[derive(Debug)]
pub struct SpreadPut<'a> {
    /// None once it is given up.
    primary: Option<&'a mut SpreadPrimary>,
    /// Of the longest set that it may become.
    placement: Placement,
    /// The length that was named.
    bytes: Option<u64>,
    written: u64,
    group: GroupIndex,
    /// Bytes of the group that is not complete yet.
    collected: Vec<u8>,
}

impl<'a> SpreadPut<'a> {
    pub(super) fn new(
        primary: &'a mut SpreadPrimary,
        placement: Placement,
        bytes: Option<u64>,
        mut collected: Vec<u8>,
    ) -> Self {
        collected.clear();
        Self {
            primary: Some(primary),
            placement,
            bytes,
            written: 0,
            group: GroupIndex(0),
            collected,
        }
    }
}

impl SpreadPut<'_> {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// As [`SpreadPrimary::commit`]; [`ClientError::TooLarge`] beyond the length that was named. The set is given up then.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.write_groups(bytes);
        match (result, self.primary.take()) {
            (Ok(()), primary) => {
                self.primary = primary;
                Ok(())
            }
            (Err(error), Some(primary)) => Err(primary.give_set_up(error)),
            (Err(error), None) => Err(error),
        }
    }

    fn write_groups(&mut self, mut bytes: &[u8]) -> Result<()> {
        let Some(primary) = &mut self.primary else {
            return Err(ClientError::Invalid("the set was given up".into()));
        };
        while !bytes.is_empty() {
            let Some(group) = self.placement.group(self.group) else {
                return Err(ClientError::TooLarge {
                    region: primary.spread().name().to_owned(),
                    bytes: self.written.saturating_add(bytes.len() as u64),
                    limit_bytes: self.placement.segment_len(),
                });
            };
            let length = (group.segment.end - group.segment.start) as usize;
            if self.collected.is_empty() && bytes.len() >= length {
                let (now, later) = bytes.split_at(length);
                self.written += length as u64;
                primary.feed_group(&self.placement, &group, now)?;
                bytes = later;
            } else {
                let (now, later) = bytes.split_at(bytes.len().min(length - self.collected.len()));
                self.collected.extend_from_slice(now);
                self.written += now.len() as u64;
                bytes = later;
                if self.collected.len() < length {
                    break;
                }
                primary.feed_group(&self.placement, &group, &self.collected)?;
                self.collected.clear();
            }
            self.group.0 += 1;
        }
        Ok(())
    }

    /// Ends the set, and returns when it is durable.
    ///
    /// # Errors
    /// As [`SpreadPrimary::commit`]; [`ClientError::Invalid`] if fewer bytes were written than were named.
    pub fn finish(mut self) -> Result<Receipt> {
        let Some(primary) = self.primary.take() else {
            return Err(ClientError::Invalid("the set was given up".into()));
        };
        let rest = std::mem::take(&mut self.collected);
        if let Some(named) = self.bytes.filter(|named| self.written < *named) {
            let written = self.written;
            let error = ClientError::Invalid(format!("{written} of {named} bytes were written"));
            return Err(primary.give_set_up(error));
        }
        primary.finish_open(self.group, rest, self.written)
    }
}

impl Drop for SpreadPut<'_> {
    fn drop(&mut self) {
        if let Some(primary) = self.primary.take() {
            primary.give_set_up(ClientError::Invalid("given up".into()));
        }
    }
}
