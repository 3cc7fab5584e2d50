//! Reads records in order, beside a live writer or after its death.

use pmu_format::{
    CursorPair, Digest, Epoch, FormatError, LOG_CURSOR_OFFSET, LOG_TAIL_OFFSET, LogGeometry,
    LogPosition, LogPublishWords, PAGE_PAIR_BYTES, RECORD_HEADER_BYTES, RecordHeader, RegionId,
    RegionPiece, record_payload_checksum, record_payload_digest,
};

use crate::log::window::Window;
use crate::log::{ClearPlan, LogRecovered, clear_plan};
use crate::{FeedError, ReadRequest};

/// The smallest window of a reader.
pub const WINDOW_MIN_BYTES: usize = 4096;
/// The window of a reader unless somebody says otherwise.
pub const WINDOW_DEFAULT_BYTES: usize = 256 * 1024;

const HEADER_BYTES: u64 = RECORD_HEADER_BYTES as u64;

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
    region: RegionId,
    end: LogPosition,
}

impl RecordMark {
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
    /// [`LogReader::refresh`].
    CaughtUp {
        /// The end of the log.
        position: LogPosition,
    },
    /// The log ends here (recovery mode).
    End,
}

/// A payload that is read piece by piece.
#[derive(Clone, Copy, Debug)]
struct Stream {
    header: RecordHeader,
    fed_bytes: u64,
    digest: Digest,
}

#[derive(Clone, Debug)]
enum State {
    PublishWords,
    CursorWords,
    /// The cursor's words differ: which of the two leads to a record?
    Probe {
        pair: CursorPair,
        second: bool,
    },
    /// At a record that may be handed out.
    Scan,
    /// A large record that is being handed out.
    Large {
        stream: Stream,
        announced: bool,
    },
    /// Behind the tail: is there a whole batch?
    LookAhead {
        at: LogPosition,
        predecessor: Option<RecordHeader>,
        stream: Option<Stream>,
    },
    /// A record looks wrong: has somebody cleared it meanwhile?
    CheckCursor {
        error: LogError,
    },
    CaughtUp,
    End,
    Failed(LogError),
}

/// What `advance` found, without borrowing.
enum Next {
    Again,
    Read(ReadRequest),
    Record(RecordHeader),
    LargeRecord(RecordHeader),
    ReadPayload(ReadRequest, u64),
    LargeRecordWhole(RecordHeader),
    CaughtUp,
    End,
}

/// Reads a log from its cursor on.
///
/// [`poll`](Self::poll) says what to do; where that is a read, read and [`feed`](Self::feed). One
/// read is under way at a time. Nothing is allocated after construction.
#[derive(Debug)]
pub struct LogReader {
    geometry: LogGeometry,
    region: RegionId,
    mode: LogMode,
    state: State,
    window: Window,
    started: bool,
    words: LogPublishWords,
    cursor: LogPosition,
    cursor_disagreed: bool,
    /// The next record to hand out, and what it must follow.
    position: LogPosition,
    predecessor: Option<RecordHeader>,
    /// Up to where records may be handed out.
    limit: LogPosition,
    records: u64,
    unacknowledged_records: u64,
}

impl LogReader {
    /// A reader of `region`, with a window of `window_bytes` (at least [`WINDOW_MIN_BYTES`]):
    /// records that fit it are handed out from it, longer ones are read in pieces.
    #[must_use]
    pub fn new(
        geometry: LogGeometry,
        region: RegionId,
        mode: LogMode,
        window_bytes: usize,
    ) -> Self {
        Self {
            geometry,
            region,
            mode,
            state: State::PublishWords,
            window: Window::new(window_bytes.max(WINDOW_MIN_BYTES)),
            started: false,
            words: LogPublishWords::default(),
            cursor: LogPosition(0),
            cursor_disagreed: false,
            position: LogPosition(0),
            predecessor: None,
            limit: LogPosition(0),
            records: 0,
            unacknowledged_records: 0,
        }
    }

    /// What to do next. The same until a read was fed; a record is handed out once.
    ///
    /// # Errors
    /// [`LogError`], again and again: the log can't be read on.
    pub fn poll(&mut self) -> Result<LogStep<'_>, LogError> {
        let next = loop {
            match self.advance()? {
                Next::Again => {}
                next => break next,
            }
        };
        Ok(match next {
            Next::Read(request) => LogStep::Read(request),
            Next::Record(header) => {
                let begin = LogPosition(header.position.get() + HEADER_BYTES);
                let payload = self.window.bytes(begin, header.payload_bytes.into());
                LogStep::Record {
                    record: self.record(&header),
                    payload: payload.unwrap_or(&[]),
                }
            }
            Next::LargeRecord(header) => LogStep::LargeRecord(self.record(&header)),
            Next::ReadPayload(request, payload_offset) => LogStep::ReadPayload {
                request,
                payload_offset,
            },
            Next::LargeRecordWhole(header) => LogStep::LargeRecordWhole(self.record(&header)),
            Next::CaughtUp => LogStep::CaughtUp {
                position: self.position,
            },
            // `Again` never leaves the loop.
            Next::End | Next::Again => LogStep::End,
        })
    }

    /// Takes the bytes of the read that [`poll`](Self::poll) asked for last.
    ///
    /// # Errors
    /// [`FeedError`]; the reader is unchanged then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), FeedError> {
        let needed_bytes = self.wanted().ok_or(FeedError::Unexpected)?.length_bytes;
        let found_bytes = bytes.len() as u64;
        if found_bytes != needed_bytes {
            return Err(FeedError::Length {
                found_bytes,
                needed_bytes,
            });
        }
        match &mut self.state {
            State::PublishWords => match LogPublishWords::decode(bytes) {
                Ok(words) => self.words_read(words),
                Err(error) => self.state = State::Failed(LogError::Tail(error)),
            },
            State::CursorWords => match CursorPair::decode(bytes) {
                Ok(pair) => self.cursor_read(pair),
                Err(_) => return Err(FeedError::Unexpected),
            },
            State::CheckCursor { error } => {
                let cursor = CursorPair::decode(bytes)
                    .ok()
                    .and_then(|pair| pair.agreed());
                let position = self.position;
                let lapped = cursor.filter(|cursor| *cursor > position);
                self.state = State::Failed(match lapped {
                    Some(cursor) => LogError::Lapped { position, cursor },
                    None => error.clone(),
                });
            }
            State::Large { stream, .. }
            | State::LookAhead {
                stream: Some(stream),
                ..
            } => {
                stream.digest.update(bytes);
                stream.fed_bytes += found_bytes;
            }
            _ => self.window.feed(bytes)?,
        }
        Ok(())
    }

    /// After [`LogStep::CaughtUp`]: look at the tail again. Nothing in any other state.
    pub fn refresh(&mut self) {
        if matches!(self.state, State::CaughtUp) {
            self.state = State::PublishWords;
        }
    }

    /// The plan that clears up to a record that was read, with it. `Clear` rights are needed to
    /// carry it out; when it has completed, the clear is durable.
    ///
    /// # Errors
    /// [`ClearError`].
    pub fn clear(&mut self, mark: RecordMark) -> Result<ClearPlan, ClearError> {
        if mark.region != self.region {
            return Err(ClearError::OtherRegion);
        }
        if mark.end <= self.cursor {
            return Err(ClearError::Already {
                cursor: self.cursor,
            });
        }
        if mark.end > self.words.tail {
            return Err(ClearError::NotPublished {
                tail: self.words.tail,
            });
        }
        self.cursor = mark.end;
        Ok(clear_plan(mark.end))
    }

    /// What the recovery found: `None` in live mode and before its end, and where not even the
    /// cursor can be believed.
    #[must_use]
    pub fn recovered(&self) -> Option<LogRecovered> {
        let damage = match &self.state {
            State::End => None,
            State::Failed(error) if self.started => Some(error.clone()),
            _ => return None,
        };
        (self.mode == LogMode::Recovery).then_some(LogRecovered {
            cursor: self.cursor,
            cursor_disagreed: self.cursor_disagreed,
            tail: self.words.tail,
            end: self.position,
            epoch: self.words.epoch,
            records: self.records,
            unacknowledged_records: self.unacknowledged_records,
            damage,
            geometry: self.geometry,
        })
    }

    /// The position of the next record to hand out.
    #[must_use]
    pub const fn position(&self) -> LogPosition {
        self.position
    }

    /// The tail as it was read last.
    #[must_use]
    pub const fn tail(&self) -> LogPosition {
        self.words.tail
    }

    fn record(&self, header: &RecordHeader) -> Record {
        let end = LogPosition(header.position.get() + header.record_bytes());
        Record {
            position: header.position,
            epoch: header.epoch,
            sequence: header.sequence,
            payload_bytes: header.payload_bytes,
            continues: header.continues,
            published: end <= self.words.tail,
            mark: RecordMark {
                region: self.region,
                end,
            },
        }
    }

    /// The read that the present state waits for.
    fn wanted(&self) -> Option<ReadRequest> {
        let page = |offset| {
            Some(ReadRequest {
                offset,
                length_bytes: PAGE_PAIR_BYTES,
            })
        };
        match &self.state {
            State::PublishWords => page(LOG_TAIL_OFFSET),
            State::CursorWords | State::CheckCursor { .. } => page(LOG_CURSOR_OFFSET),
            State::Large { stream, .. }
            | State::LookAhead {
                stream: Some(stream),
                ..
            } => self.stream_request(stream),
            State::Probe { .. } | State::Scan | State::LookAhead { .. } => self.window.missing(),
            State::CaughtUp | State::End | State::Failed(_) => None,
        }
    }

    fn stream_request(&self, stream: &Stream) -> Option<ReadRequest> {
        let left_bytes = u64::from(stream.header.payload_bytes) - stream.fed_bytes;
        let begin = stream.header.position.get() + HEADER_BYTES + stream.fed_bytes;
        let length_bytes = left_bytes.min(self.window.length_bytes());
        let RegionPiece {
            offset,
            length_bytes,
        } = self.geometry.pieces(LogPosition(begin), length_bytes).first;
        (length_bytes > 0).then_some(ReadRequest {
            offset,
            length_bytes,
        })
    }

    fn advance(&mut self) -> Result<Next, LogError> {
        match self.state.clone() {
            State::Failed(error) => return Err(error),
            State::CaughtUp => return Ok(Next::CaughtUp),
            State::End => return Ok(Next::End),
            State::PublishWords | State::CursorWords | State::CheckCursor { .. } => {}
            State::Probe { pair, second } => self.probe(pair, second),
            State::Scan => return Ok(self.scan()),
            State::Large { stream, announced } => return Ok(self.large(stream, announced)),
            State::LookAhead {
                at,
                predecessor,
                stream,
            } => {
                self.look_ahead(at, predecessor, stream);
            }
        }
        Ok(self.wanted().map_or(Next::Again, Next::Read))
    }

    fn words_read(&mut self, words: LogPublishWords) {
        self.words = words;
        if !self.started {
            self.state = State::CursorWords;
            return;
        }
        // A tail that went back (a power failure undid what was only visible) is no reason to hand
        // out anything again: what was read had been durable before it was visible.
        self.limit = words.tail.max(self.position);
        self.window.clear();
        self.state = State::Scan;
    }

    fn cursor_read(&mut self, pair: CursorPair) {
        match pair.agreed() {
            Some(cursor) => self.start(cursor),
            None => {
                self.cursor_disagreed = true;
                self.state = State::Probe {
                    pair,
                    second: false,
                };
            }
        }
    }

    fn start(&mut self, cursor: LogPosition) {
        self.started = true;
        (self.cursor, self.position) = (cursor, cursor);
        // A cursor behind the tail was durable before the tail was; all up to it has been read.
        self.limit = self.words.tail.max(cursor);
        self.state = State::Scan;
    }

    /// Takes the cursor that leads to a record or to the tail: the first word before the second,
    /// because the room before it may have been given to the writer already.
    fn probe(&mut self, pair: CursorPair, second: bool) {
        let word = if second {
            pair.inverse_word()
        } else {
            pair.cursor_word()
        };
        let leads = match word {
            None => Some(false),
            Some(word) if word == self.words.tail => Some(true),
            Some(word) => match self.window.bytes(word, HEADER_BYTES) {
                Some(bytes) => Some(self.is_record(word, bytes)),
                None => {
                    if self.window.missing().is_none() {
                        self.window.fill(&self.geometry, word, HEADER_BYTES);
                    }
                    None
                }
            },
        };
        match (leads, word) {
            (None, _) => {}
            (Some(true), Some(word)) => {
                self.window.clear();
                self.start(word);
            }
            _ if second => {
                let CursorPair { cursor, inverse } = pair;
                self.state = State::Failed(LogError::Cursor { cursor, inverse });
            }
            _ => {
                self.window.clear();
                self.state = State::Probe { pair, second: true };
            }
        }
    }

    fn is_record(&self, position: LogPosition, bytes: &[u8]) -> bool {
        RecordHeader::decode(bytes, position, &self.geometry)
            .is_ok_and(|header| position < self.words.tail || header.epoch == self.words.epoch)
    }

    /// Up to where the ring can hold anything.
    fn ring_end(&self) -> u64 {
        self.cursor.get().saturating_add(self.geometry.ring_bytes())
    }

    /// Whether `length_bytes` at `position` are in the window; starts to fill it where not.
    fn have(&mut self, position: LogPosition, length_bytes: u64, limit: u64) -> bool {
        if self.window.bytes(position, length_bytes).is_some() {
            return true;
        }
        if self.window.missing().is_none() {
            let room_bytes = limit.min(self.ring_end()).saturating_sub(position.get());
            self.window
                .fill(&self.geometry, position, room_bytes.max(length_bytes));
        }
        false
    }

    fn scan(&mut self) -> Next {
        if self.position >= self.limit {
            self.at_limit();
            return Next::Again;
        }
        let limit = self.limit.get();
        let end = self.position.get().saturating_add(HEADER_BYTES);
        if end > limit || end > self.ring_end() {
            let (needed_bytes, found_bytes) = (HEADER_BYTES, end.min(limit));
            let structure = pmu_format::Structure::RecordHeader;
            return self.damaged(FormatError::TooShort {
                structure,
                found_bytes,
                needed_bytes,
            });
        }
        if !self.have(self.position, HEADER_BYTES, limit) {
            return self.wanted().map_or(Next::Again, Next::Read);
        }
        let bytes = self
            .window
            .bytes(self.position, HEADER_BYTES)
            .unwrap_or(&[]);
        let header = match RecordHeader::decode(bytes, self.position, &self.geometry) {
            Ok(header) => header,
            Err(error) => return self.damaged(error),
        };
        if let Some(error) = self.misplaced(&header) {
            return self.suspect(error);
        }
        if header.record_bytes() > self.window.length_bytes() {
            let digest = record_payload_digest(&self.region);
            let stream = Stream {
                header,
                fed_bytes: 0,
                digest,
            };
            self.state = State::Large {
                stream,
                announced: false,
            };
            return Next::Again;
        }
        if !self.have(self.position, header.record_bytes(), limit) {
            return self.wanted().map_or(Next::Again, Next::Read);
        }
        let computed = self.payload_checksum(&header);
        if let Err(error) = header.verify_payload_checksum(computed) {
            return self.damaged(error);
        }
        self.step_over(&header);
        Next::Record(header)
    }

    fn payload_checksum(&self, header: &RecordHeader) -> u64 {
        let begin = LogPosition(header.position.get() + HEADER_BYTES);
        let payload = self
            .window
            .bytes(begin, header.payload_bytes.into())
            .unwrap_or(&[]);
        record_payload_checksum(&self.region, payload)
    }

    /// What is wrong with a sound record at this place.
    fn misplaced(&self, header: &RecordHeader) -> Option<LogError> {
        let RecordHeader {
            position,
            epoch,
            sequence,
            ..
        } = *header;
        if self
            .predecessor
            .is_some_and(|predecessor| !header.follows(&predecessor))
        {
            return Some(LogError::OutOfOrder {
                position,
                epoch,
                sequence,
            });
        }
        let end = LogPosition(position.get() + header.record_bytes());
        let tail = self.limit;
        (end > tail || end.get() > self.ring_end()).then_some(LogError::OverTail {
            position,
            end,
            tail,
        })
    }

    fn damaged(&mut self, error: FormatError) -> Next {
        let (position, tail) = (self.position, self.words.tail);
        self.suspect(LogError::Damaged {
            position,
            tail,
            error,
        })
    }

    fn suspect(&mut self, error: LogError) -> Next {
        self.state = State::CheckCursor { error };
        Next::Again
    }

    fn step_over(&mut self, header: &RecordHeader) {
        self.position = LogPosition(header.position.get() + header.record_bytes());
        self.predecessor = Some(*header);
        self.records += 1;
        if self.position > self.words.tail {
            self.unacknowledged_records += 1;
        }
        self.state = State::Scan;
    }

    fn at_limit(&mut self) {
        self.state = match self.mode {
            LogMode::Live => State::CaughtUp,
            LogMode::Recovery => {
                let (at, predecessor) = (self.position, self.predecessor);
                State::LookAhead {
                    at,
                    predecessor,
                    stream: None,
                }
            }
        };
    }

    fn large(&mut self, stream: Stream, announced: bool) -> Next {
        if !announced {
            self.state = State::Large {
                stream,
                announced: true,
            };
            return Next::LargeRecord(stream.header);
        }
        if let Some(request) = self.stream_request(&stream) {
            return Next::ReadPayload(request, stream.fed_bytes);
        }
        if let Err(error) = stream
            .header
            .verify_payload_checksum(stream.digest.finish())
        {
            return self.damaged(error);
        }
        self.step_over(&stream.header);
        Next::LargeRecordWhole(stream.header)
    }

    /// Goes through the records behind the tail until a batch is whole, which may then be handed
    /// out, or until one is not, which ends the log.
    fn look_ahead(
        &mut self,
        at: LogPosition,
        predecessor: Option<RecordHeader>,
        stream: Option<Stream>,
    ) {
        if let Some(stream) = stream {
            if self.stream_request(&stream).is_some() {
                return;
            }
            let header = stream.header;
            let whole = header
                .verify_payload_checksum(stream.digest.finish())
                .is_ok();
            self.looked_at(&header, whole);
            return;
        }
        let ring_end = self.ring_end();
        if at.get().saturating_add(HEADER_BYTES) > ring_end {
            self.state = State::End;
            return;
        }
        if !self.have(at, HEADER_BYTES, ring_end) {
            return;
        }
        let bytes = self.window.bytes(at, HEADER_BYTES).unwrap_or(&[]);
        let header = RecordHeader::decode(bytes, at, &self.geometry)
            .ok()
            .filter(|header| {
                header.epoch == self.words.epoch
                    && predecessor.is_none_or(|predecessor| header.follows(&predecessor))
                    && at.get().saturating_add(header.record_bytes()) <= ring_end
            });
        let Some(header) = header else {
            self.state = State::End;
            return;
        };
        if header.record_bytes() > self.window.length_bytes() {
            let digest = record_payload_digest(&self.region);
            let stream = Some(Stream {
                header,
                fed_bytes: 0,
                digest,
            });
            self.state = State::LookAhead {
                at,
                predecessor,
                stream,
            };
        } else if self.have(at, header.record_bytes(), ring_end) {
            let computed = self.payload_checksum(&header);
            self.looked_at(&header, header.verify_payload_checksum(computed).is_ok());
        }
    }

    fn looked_at(&mut self, header: &RecordHeader, whole: bool) {
        let end = LogPosition(header.position.get() + header.record_bytes());
        self.state = if !whole {
            State::End
        } else if header.continues {
            State::LookAhead {
                at: end,
                predecessor: Some(*header),
                stream: None,
            }
        } else {
            self.limit = end;
            State::Scan
        };
    }
}
