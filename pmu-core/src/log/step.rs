//! What a reader hands out, and why it stops.

use pmu_format::{Epoch, FormatError, LogPosition, RegionId, SpreadId};

use crate::ReadRequest;

/// How a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogMode {
    /// Beside a live writer: never behind the tail, and on as the tail moves.
    Live,
    /// After the former writer was fenced: to the end of what can be believed.
    Recovery,
}

/// Why a log can't be read on. What was handed out before remains good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The tail word is no position.
    #[error("the log's tail can't be read")]
    Tail(#[source] FormatError),
    /// Neither word of the cursor page leads to a record or to the tail.
    #[error("the cursor says {cursor:#x}, its inverse {inverse:#x}, and neither leads to a record")]
    Cursor {
        /// The first word.
        cursor: u64,
        /// The second word.
        inverse: u64,
    },
    /// A record that was acknowledged is not what was written.
    #[error("the record at {position} is damaged; the log should go on to {tail}")]
    Damaged {
        /// Where it stands.
        position: LogPosition,
        /// Where the log should end.
        tail: LogPosition,
        /// What is wrong.
        #[source]
        error: FormatError,
    },
    /// A sound record does not continue the one before it.
    #[error("the record at {position} (epoch {epoch}, {sequence}) does not follow its predecessor")]
    OutOfOrder {
        /// Where it stands.
        position: LogPosition,
        /// Its epoch.
        epoch: Epoch,
        /// Its sequence number.
        sequence: u64,
    },
    /// A record reaches over the tail: one of the two is damaged.
    #[error("the record at {position} ends at {end}, behind the tail {tail}")]
    OverTail {
        /// Where it stands.
        position: LogPosition,
        /// Where it ends.
        end: LogPosition,
        /// What the tail word says.
        tail: LogPosition,
    },
    /// Somebody else cleared the record, and the writer has used its room.
    #[error("the record at {position} was cleared up to {cursor} by somebody else")]
    Lapped {
        /// Where it stood.
        position: LogPosition,
        /// Up to where was cleared.
        cursor: LogPosition,
    },
}

/// Why a clear is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClearError {
    /// The mark is another region's.
    #[error("a mark of another region")]
    OtherRegion,
    /// The cursor is there or further already.
    #[error("cleared up to {cursor} before")]
    Already {
        /// Where it is.
        cursor: LogPosition,
    },
    /// The record is not published yet: open the log as primary first.
    #[error("the record is behind the tail {tail}")]
    NotPublished {
        /// What the tail word says.
        tail: LogPosition,
    },
}

/// The end of a record that was read: what can be cleared up to. There is no other way to name a
/// place to clear to, so that the cursor always stands between records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMark {
    pub(super) region: RegionId,
    pub(super) end: LogPosition,
}

impl RecordMark {
    /// The mark of a record of a log that is spread over several units.
    #[must_use]
    pub const fn of_spread(id: SpreadId, end: LogPosition) -> Self {
        Self {
            region: RegionId(id.0),
            end,
        }
    }

    /// Whether it was made by [`Self::of_spread`] for this log.
    #[must_use]
    pub fn is_of_spread(&self, id: SpreadId) -> bool {
        self.region == RegionId(id.0)
    }

    /// The position behind the record.
    #[must_use]
    pub const fn position(&self) -> LogPosition {
        self.end
    }
}

/// A record, apart from its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands in the log.
    pub position: LogPosition,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// Its number within the epoch, from 1.
    pub sequence: u64,
    /// How long its payload is.
    pub payload_bytes: u32,
    /// Whether its batch goes on with the next record.
    pub continues: bool,
    /// Whether the tail stands behind it. In recovery mode a record may be whole without that: it
    /// was durable, only its receipt was lost.
    pub published: bool,
    /// What to clear up to when it is no longer needed.
    pub mark: RecordMark,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogStep<'reader> {
    /// Read this range into any buffer, and feed it.
    Read(ReadRequest),
    /// The next record, with its payload.
    Record {
        /// The record.
        record: Record,
        /// Its payload.
        payload: &'reader [u8],
    },
    /// The next record is longer than the window: make room for its payload. Pieces follow.
    LargeRecord(Record),
    /// Read this range to `payload_offset` in the large record's payload, and feed it. Nothing of
    /// it may be believed before [`LogStep::LargeRecordWhole`].
    ReadPayload {
        /// The range.
        request: ReadRequest,
        /// Where it goes.
        payload_offset: u64,
    },
    /// All pieces of the large record were read, and its checksum holds.
    LargeRecordWhole(Record),
    /// All published records are read (live mode): look again later with
    /// [`LogReader::refresh`](crate::log::LogReader::refresh).
    CaughtUp {
        /// The end of the log.
        position: LogPosition,
    },
    /// The log ends here (recovery mode).
    End,
}
