//! What a recovery of a log found, and how a new primary takes the log over.

use pmu_format::{
    Epoch, LOG_CURSOR_OFFSET, LOG_EPOCH_OFFSET, LOG_TAIL_OFFSET, LogGeometry, LogPosition,
    PAGE_PAIR_BYTES, Pieces, RegionPiece,
};

use crate::WordWrite;
use crate::log::{LogError, LogStart};

/// What a [`LogReader`](crate::log::LogReader) in recovery mode found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecovered {
    /// Up to where the backup had cleared: the first record stands here.
    pub cursor: LogPosition,
    /// Whether the cursor's two words differed: a clear was cut short, or one word is damaged.
    pub cursor_disagreed: bool,
    /// What the tail word said.
    pub tail: LogPosition,
    /// The end of the log: behind the tail by what was durable without a receipt.
    pub end: LogPosition,
    /// The epoch of the writer that published.
    pub epoch: Epoch,
    /// How many records there are.
    pub records: u64,
    /// How many of them stand behind the tail.
    pub unacknowledged_records: u64,
    /// Why the log ends before the tail, where it does: acknowledged records are lost.
    pub damage: Option<LogError>,
    pub(super) geometry: LogGeometry,
}

/// How a new primary takes over a log before its first record: one chain, in the order of the
/// fields. When it has completed, everything recovered is durable and published, and nothing that
/// the former writer left behind the tail can be taken for the continuation.
///
/// The tail is durable before the epoch changes: otherwise a power failure in between could leave
/// the new epoch with the old tail, and what stood behind it would be nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOpening {
    /// First: FLUSH of records that were behind the tail; they may be visible without being
    /// durable. Of length 0 where there are none.
    pub flush_records: Pieces,
    /// Second: FLUSH of the cursor, whose last change may be visible without being durable.
    pub flush_cursor: RegionPiece,
    /// Third: ATOMIC WRITE of the tail.
    pub tail: WordWrite,
    /// Fourth: FLUSH of the tail.
    pub flush_tail: RegionPiece,
    /// Fifth: ATOMIC WRITE of the new epoch.
    pub epoch: WordWrite,
    /// Sixth: FLUSH of the epoch.
    pub flush_epoch: RegionPiece,
    /// What [`LogWriter::new`](crate::log::LogWriter::new) takes.
    pub start: LogStart,
}

impl LogRecovered {
    /// How a primary with the granted `epoch` takes the log over.
    ///
    /// # Errors
    /// The damage, where there is some: going on would give up acknowledged records for good. Who
    /// means that calls [`opening_with_loss`](Self::opening_with_loss).
    pub fn opening(&self, epoch: Epoch) -> Result<LogOpening, LogError> {
        match &self.damage {
            Some(damage) => Err(damage.clone()),
            None => Ok(self.opening_with_loss(epoch)),
        }
    }

    /// The same where the log is damaged: it goes on where the damage begins, and what stood behind
    /// it is given up.
    #[must_use]
    pub fn opening_with_loss(&self, epoch: Epoch) -> LogOpening {
        let tail = WordWrite {
            offset: LOG_TAIL_OFFSET,
            value: self.end.tail_word(),
        };
        let word = WordWrite {
            offset: LOG_EPOCH_OFFSET,
            value: epoch.get(),
        };
        let behind_bytes = self.end.get().saturating_sub(self.tail.get());
        LogOpening {
            flush_records: self.geometry.pieces(self.tail.min(self.end), behind_bytes),
            flush_cursor: RegionPiece {
                offset: LOG_CURSOR_OFFSET,
                length_bytes: PAGE_PAIR_BYTES,
            },
            tail,
            flush_tail: tail.flush_range(),
            epoch: word,
            flush_epoch: word.flush_range(),
            start: LogStart {
                tail: self.end,
                cursor: self.cursor,
            },
        }
    }
}
