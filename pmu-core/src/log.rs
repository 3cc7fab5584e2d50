//! Records in append mode: writing them, reading them, clearing them, and taking over the log.
//!
//! An append is one chain: records are written; FLUSH; ATOMIC WRITE of the tail; FLUSH. The records
//! are acknowledged when the chain has completed. Readers never look behind the tail, but for a
//! recovery, which also takes whole batches of the publishing epoch that stand there: they were
//! durable, only their receipts were lost.

mod reader;
mod recovery;
mod step;
mod walk;
mod window;
mod writer;

pub use reader::{LogReader, WINDOW_DEFAULT_BYTES, WINDOW_MIN_BYTES};
pub use recovery::{LogOpening, LogRecovered};
pub use step::{ClearError, LogError, LogMode, LogStep, Record, RecordMark};
pub use writer::{
    Acknowledged, AppendError, Batch, CursorError, CursorSeen, LogStart, LogWriter, Payload,
    Placement, PublishError, PublishId, PublishPlan, UnknownPublish,
};

use pmu_format::{
    CursorPair, LOG_CURSOR_INVERSE_OFFSET, LOG_CURSOR_OFFSET, LogPosition, RegionPiece,
};

use crate::WordWrite;

/// How the backup clears what it has read: one chain, in the order of the fields.
///
/// The cursor is durable before its inverse is visible. A writer takes the room back only where
/// both words agree, and therefore never overwrites what a power failure could bring back as
/// unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearPlan {
    /// First: ATOMIC WRITE of the cursor.
    pub cursor: WordWrite,
    /// Second: FLUSH of the cursor.
    pub flush_cursor: RegionPiece,
    /// Third: ATOMIC WRITE of its inverse.
    pub inverse: WordWrite,
    /// Fourth: FLUSH of the inverse. When this has completed, the clear is durable.
    pub flush_inverse: RegionPiece,
}

impl ClearPlan {
    /// The plan that moves the cursor to `position`, which is the end of a record or of the log.
    #[must_use]
    pub const fn to(position: LogPosition) -> Self {
        let pair = CursorPair::new(position);
        let cursor = WordWrite {
            offset: LOG_CURSOR_OFFSET,
            value: pair.cursor,
        };
        let inverse = WordWrite {
            offset: LOG_CURSOR_INVERSE_OFFSET,
            value: pair.inverse,
        };
        Self {
            cursor,
            flush_cursor: cursor.flush_range(),
            inverse,
            flush_inverse: inverse.flush_range(),
        }
    }
}
