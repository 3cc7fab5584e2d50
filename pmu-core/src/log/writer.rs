//! Appends records.

use std::collections::VecDeque;

use pmu_format::{
    CursorPair, Epoch, LOG_TAIL_OFFSET, LogGeometry, LogPosition, POSITION_MAX, Pieces,
    RECORD_HEADER_BYTES, RecordHeader, RegionId, RegionPiece, record_length_bytes,
    record_payload_checksum,
};

use crate::WordWrite;

/// Why a record was not placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// A record has at least one byte.
    #[error("a record of no bytes")]
    Empty,
    /// The record would not even fit an empty ring.
    #[error("a payload of {payload_bytes} bytes, the ring takes {payload_max_bytes}")]
    TooLarge {
        /// How long the payload is.
        payload_bytes: u64,
        /// The longest that fits.
        payload_max_bytes: u32,
    },
    /// The record must wait until the backup has cleared.
    #[error("needs {needed_bytes} bytes of the ring, {free_bytes} are free")]
    Full {
        /// How many bytes of the ring it takes.
        needed_bytes: u64,
        /// How many are free.
        free_bytes: u64,
    },
    /// Positions or sequence numbers have run out.
    #[error("no log position is left")]
    Exhausted,
    /// A chain failed, so that nobody knows what was published. Open the log again.
    #[error("the log is in doubt: open it again")]
    InDoubt,
}

/// Why nothing can be published now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The last record says that its batch goes on.
    #[error("the batch is not at its end")]
    BatchOpen,
    /// As many publishes are in flight as the writer was built for.
    #[error("{publishes_max} publishes are in flight")]
    TooManyInFlight {
        /// How many may be.
        publishes_max: usize,
    },
    /// A chain failed, so that nobody knows what was published. Open the log again.
    #[error("the log is in doubt: open it again")]
    InDoubt,
}

/// A completion that belongs to no publish, or to one that is not the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("publish {found:?} is not the oldest in flight")]
pub struct UnknownPublish {
    /// The one that was reported.
    pub found: PublishId,
}

/// A cursor that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// The cursor went back.
    #[error("the cursor went back from {former} to {found}")]
    Backwards {
        /// Where it was.
        former: LogPosition,
        /// Where it is said to be.
        found: LogPosition,
    },
    /// The cursor is behind all that was ever published.
    #[error("the cursor is at {found}, the log ends at {tail}")]
    BehindTail {
        /// Where it is said to be.
        found: LogPosition,
        /// The end of the log.
        tail: LogPosition,
    },
}

/// What an observed cursor led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CursorSeen {
    /// So many bytes of the ring are free now.
    Free {
        /// How many.
        free_bytes: u64,
    },
    /// The words differ: a clear is under way. Nothing was freed; look again.
    Unsettled,
}

/// Whether a batch ends with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Batch {
    /// It does: the record may be published.
    Ends,
    /// The next record belongs to it: a recovery takes either both or neither.
    Continues,
}

/// What a record says about its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// How long it is in bytes, from 1.
    pub length_bytes: u64,
    /// Its checksum: see [`pmu_format::record_payload_digest`].
    pub checksum: u64,
}

impl Payload {
    /// Of a payload that lies in one piece.
    #[must_use]
    pub fn of(region: &RegionId, payload: &[u8]) -> Self {
        Self {
            length_bytes: payload.len() as u64,
            checksum: record_payload_checksum(region, payload),
        }
    }
}

/// Where a log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// The end of the log: the first record goes here.
    pub tail: LogPosition,
    /// Up to where the backup has cleared.
    pub cursor: LogPosition,
}

/// Where a record goes. Header, payload and padding follow each other in the ring, so that they can
/// be written apart or as one buffer.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The record's position.
    pub position: LogPosition,
    /// Its sequence number.
    pub sequence: u64,
    /// The header's bytes.
    pub header: [u8; RECORD_HEADER_BYTES],
    /// Where the header goes.
    pub header_pieces: Pieces,
    /// Where the payload goes.
    pub payload_pieces: Pieces,
    /// Where up to 7 zeros go; of length 0 where none are needed.
    pub padding: RegionPiece,
    /// Header, payload and padding as one range.
    pub record_pieces: Pieces,
    /// The position behind the record.
    pub end: LogPosition,
}

/// Names a publish until it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId(pub u64);

/// The rest of an append, in the order in which the chain carries it out; the records' writes come
/// before it, on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishPlan {
    /// What to report as completed.
    pub id: PublishId,
    /// First: FLUSH of the records.
    pub flush: Pieces,
    /// The position behind the last record that it publishes.
    pub end: LogPosition,
    /// Second: ATOMIC WRITE of the tail, which says that.
    pub tail: WordWrite,
    /// Third: FLUSH of the tail.
    pub flush_tail: RegionPiece,
    /// How many records it publishes.
    pub records: u64,
}

/// What a completed publish acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The position behind the last acknowledged record.
    pub tail: LogPosition,
    /// How many records this publish acknowledged.
    pub records: u64,
    /// The sequence number of the last of them.
    pub sequence: u64,
    /// The epoch they were written in.
    pub epoch: Epoch,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    id: PublishId,
    tail: LogPosition,
    records: u64,
    sequence: u64,
}

/// Appends records to one log, for one epoch.
///
/// `reserve` each record of a batch, write it where the placement says, `publish`, and report
/// `completed` when the chain has. Several publishes may be in flight on one connection, which
/// carries chains out in the order in which they were posted. Nothing is allocated after
/// construction.
#[derive(Debug)]
pub struct LogWriter {
    geometry: LogGeometry,
    epoch: Epoch,
    cursor: LogPosition,
    /// Behind the last acknowledged, published and reserved record.
    acknowledged: LogPosition,
    published: LogPosition,
    reserved: LogPosition,
    /// Of the last published and the last reserved record.
    sequence_published: u64,
    sequence: u64,
    batch: Batch,
    publishes_max: usize,
    next_id: u64,
    in_flight: VecDeque<InFlight>,
    in_doubt: bool,
}

impl LogWriter {
    /// A writer that goes on at `start`, as a recovery found it and after its
    /// [`LogOpening`](crate::log::LogOpening) for this `epoch` has completed. At most
    /// `publishes_max` (from 1) publishes are in flight at a time.
    #[must_use]
    pub fn new(geometry: LogGeometry, epoch: Epoch, start: LogStart, publishes_max: usize) -> Self {
        Self {
            geometry,
            epoch,
            cursor: start.cursor.min(start.tail),
            acknowledged: start.tail,
            published: start.tail,
            reserved: start.tail,
            sequence_published: 0,
            sequence: 0,
            batch: Batch::Ends,
            publishes_max: publishes_max.max(1),
            next_id: 0,
            in_flight: VecDeque::with_capacity(publishes_max.max(1)),
            in_doubt: false,
        }
    }

    /// Places the next record and encodes its header.
    ///
    /// # Errors
    /// [`AppendError`]; nothing was placed then.
    pub fn reserve(&mut self, payload: Payload, batch: Batch) -> Result<Placement, AppendError> {
        if self.in_doubt {
            return Err(AppendError::InDoubt);
        }
        let payload_max_bytes = self.geometry.payload_max_bytes();
        let payload_bytes = payload.length_bytes;
        let length = u32::try_from(payload_bytes)
            .ok()
            .filter(|n| *n <= payload_max_bytes);
        let Some(length) = length else {
            return Err(AppendError::TooLarge {
                payload_bytes,
                payload_max_bytes,
            });
        };
        if length == 0 {
            return Err(AppendError::Empty);
        }
        let (needed_bytes, free_bytes) = (record_length_bytes(length), self.free_bytes());
        if needed_bytes > free_bytes {
            return Err(AppendError::Full {
                needed_bytes,
                free_bytes,
            });
        }
        let position = self.reserved;
        let end = position
            .checked_add(needed_bytes)
            .filter(|end| *end <= POSITION_MAX)
            .ok_or(AppendError::Exhausted)?;
        let sequence = self.sequence.checked_add(1).ok_or(AppendError::Exhausted)?;
        let header = RecordHeader {
            continues: batch == Batch::Continues,
            position,
            sequence,
            epoch: self.epoch,
            payload_bytes: length,
            payload_checksum: payload.checksum,
        };
        (self.reserved, self.sequence, self.batch) = (end, sequence, batch);
        Ok(self.placement(&header, end))
    }

    fn placement(&self, header: &RecordHeader, end: LogPosition) -> Placement {
        let header_bytes = RECORD_HEADER_BYTES as u64;
        let payload_bytes = u64::from(header.payload_bytes);
        // Both sums lie within the record, whose end was computed with a check.
        let payload = LogPosition(header.position.get() + header_bytes);
        let padding = LogPosition(payload.get() + payload_bytes);
        Placement {
            position: header.position,
            sequence: header.sequence,
            header: header.encode(),
            header_pieces: self.geometry.pieces(header.position, header_bytes),
            payload_pieces: self.geometry.pieces(payload, payload_bytes),
            // Never cut by the ring's end, which is a multiple of 8.
            padding: self
                .geometry
                .pieces(padding, end.get() - padding.get())
                .first,
            record_pieces: self.geometry.pieces(header.position, header.record_bytes()),
            end,
        }
    }

    /// The plan that publishes everything reserved since the last one; `None` where there is
    /// nothing.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was changed then.
    pub fn publish(&mut self) -> Result<Option<PublishPlan>, PublishError> {
        if self.in_doubt {
            return Err(PublishError::InDoubt);
        }
        if self.reserved == self.published {
            return Ok(None);
        }
        if self.batch == Batch::Continues {
            return Err(PublishError::BatchOpen);
        }
        if self.in_flight.len() >= self.publishes_max {
            return Err(PublishError::TooManyInFlight {
                publishes_max: self.publishes_max,
            });
        }
        let id = PublishId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        let records = self.sequence - self.sequence_published;
        let length_bytes = self.reserved.get() - self.published.get();
        let flush = self.geometry.pieces(self.published, length_bytes);
        let tail = WordWrite {
            offset: LOG_TAIL_OFFSET,
            value: self.reserved.tail_word(),
        };
        let sequence = self.sequence;
        self.in_flight.push_back(InFlight {
            id,
            tail: self.reserved,
            records,
            sequence,
        });
        (self.published, self.sequence_published) = (self.reserved, sequence);
        Ok(Some(PublishPlan {
            id,
            flush,
            end: self.reserved,
            tail,
            flush_tail: tail.flush_range(),
            records,
        }))
    }

    /// The chain of a publish has completed: its records are durable and acknowledged. Chains
    /// complete in the order in which they were posted.
    ///
    /// # Errors
    /// [`UnknownPublish`] for any but the oldest in flight.
    pub fn completed(&mut self, id: PublishId) -> Result<Acknowledged, UnknownPublish> {
        match self.in_flight.front() {
            Some(oldest) if oldest.id == id && !self.in_doubt => {}
            _ => return Err(UnknownPublish { found: id }),
        }
        let Some(InFlight {
            tail,
            records,
            sequence,
            ..
        }) = self.in_flight.pop_front()
        else {
            return Err(UnknownPublish { found: id });
        };
        self.acknowledged = tail;
        Ok(Acknowledged {
            tail,
            records,
            sequence,
            epoch: self.epoch,
        })
    }

    /// Takes the cursor page's words as they were just read, and frees what the backup has cleared.
    ///
    /// # Errors
    /// [`CursorError`] for a cursor that can't be; nothing was freed then.
    pub fn cursor_observed(&mut self, pair: CursorPair) -> Result<CursorSeen, CursorError> {
        // Only where both words agree is the cursor certain to be durable: see `ClearPlan`.
        let Some(found) = pair.agreed() else {
            return Ok(CursorSeen::Unsettled);
        };
        if found < self.cursor {
            return Err(CursorError::Backwards {
                former: self.cursor,
                found,
            });
        }
        if found > self.published {
            return Err(CursorError::BehindTail {
                found,
                tail: self.published,
            });
        }
        self.cursor = found;
        Ok(CursorSeen::Free {
            free_bytes: self.free_bytes(),
        })
    }

    /// Takes back everything reserved since the last publish. Only before any byte of it was
    /// posted: what was written behind the tail can't be told from what was meant.
    pub fn take_back(&mut self) {
        (self.reserved, self.sequence) = (self.published, self.sequence_published);
        self.batch = Batch::Ends;
    }

    /// A chain has failed, or records were posted that will not be published: the writer refuses
    /// everything from now on.
    pub fn fail(&mut self) {
        self.in_doubt = true;
    }

    /// How many bytes of the ring are free.
    #[must_use]
    pub const fn free_bytes(&self) -> u64 {
        self.geometry.ring_bytes() - (self.reserved.get() - self.cursor.get())
    }

    /// Up to where the backup has cleared, as far as it was observed.
    #[must_use]
    pub const fn cursor(&self) -> LogPosition {
        self.cursor
    }

    /// The position behind the last acknowledged record.
    #[must_use]
    pub const fn acknowledged(&self) -> LogPosition {
        self.acknowledged
    }

    /// How many publishes are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The epoch that this writer writes in.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The division of the region.
    #[must_use]
    pub const fn geometry(&self) -> &LogGeometry {
        &self.geometry
    }
}
