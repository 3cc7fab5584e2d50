//! Reads records in order, beside a live writer or after its death.

use pmu_format::{
    CursorPair, Digest, FormatError, LOG_CURSOR_OFFSET, LOG_TAIL_OFFSET, LogGeometry, LogPosition,
    LogPublishWords, PAGE_PAIR_BYTES, RECORD_HEADER_BYTES, RecordHeader, RegionId, RegionPiece,
    Structure, record_payload_checksum, record_payload_digest,
};

use crate::log::step::{ClearError, LogError, LogMode, LogStep, Record, RecordMark};
use crate::log::walk::{Differing, Walk};
use crate::log::window::Window;
use crate::log::{ClearPlan, LogRecovered};
use crate::{FeedError, ReadRequest};

/// The smallest window of a reader.
pub const WINDOW_MIN_BYTES: usize = 4096;
/// The window of a reader unless somebody says otherwise.
pub const WINDOW_DEFAULT_BYTES: usize = 256 * 1024;

pub(super) const HEADER_BYTES: u64 = RECORD_HEADER_BYTES as u64;

/// A payload that is read piece by piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub(super) header: RecordHeader,
    pub(super) fed_bytes: u64,
    pub(super) digest: Digest,
}

#[derive(Clone, Debug)]
pub(super) enum State {
    PublishWords,
    CursorWords,
    /// The cursor's words differ: does a record begin at the higher one?
    ProbeHigher(Differing),
    /// It doesn't: does one begin at the lower one?
    ProbeLower(Differing),
    /// It does: is everything from the lower one to it still there?
    Between(Differing, Walk),
    /// At a record that may be handed out.
    Scan,
    /// A large record that is being handed out, and whether it was announced.
    Large(Stream, bool),
    /// Behind the tail: is there a whole batch?
    LookAhead(Walk),
    /// A record looks wrong: has somebody cleared it meanwhile?
    CheckCursor(LogError),
    CaughtUp,
    End,
    Failed(LogError),
}

impl State {
    /// The payload that is being read in pieces.
    const fn stream(&self) -> Option<&Stream> {
        match self {
            Self::Large(stream, _) => Some(stream),
            Self::LookAhead(walk) | Self::Between(_, walk) => walk.stream.as_ref(),
            _ => None,
        }
    }

    const fn stream_mut(&mut self) -> Option<&mut Stream> {
        match self {
            Self::Large(stream, _) => Some(stream),
            Self::LookAhead(walk) | Self::Between(_, walk) => walk.stream.as_mut(),
            _ => None,
        }
    }
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
    pub(super) geometry: LogGeometry,
    pub(super) region: RegionId,
    pub(super) mode: LogMode,
    pub(super) state: State,
    pub(super) window: Window,
    pub(super) started: bool,
    pub(super) words: LogPublishWords,
    pub(super) cursor: LogPosition,
    pub(super) cursor_disagreed: bool,
    /// The next record to hand out, and what it must follow.
    pub(super) position: LogPosition,
    pub(super) predecessor: Option<RecordHeader>,
    /// Up to where records may be handed out.
    pub(super) limit: LogPosition,
    pub(super) records: u64,
    pub(super) unacknowledged_records: u64,
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
        if let Some(stream) = self.state.stream_mut() {
            stream.digest.update(bytes);
            stream.fed_bytes += found_bytes;
            return Ok(());
        }
        match &self.state {
            State::PublishWords => match LogPublishWords::decode(bytes) {
                Ok(words) => self.words_read(words),
                Err(error) => self.state = State::Failed(LogError::Tail(error)),
            },
            State::CursorWords => match CursorPair::decode(bytes) {
                Ok(pair) => self.cursor_read(pair),
                Err(_) => return Err(FeedError::Unexpected),
            },
            State::CheckCursor(error) => {
                let pair = CursorPair::decode(bytes).ok();
                let cursor = pair.and_then(|pair| pair.agreed());
                let position = self.position;
                let lapped = cursor.filter(|cursor| *cursor > position);
                self.state = State::Failed(match lapped {
                    Some(cursor) => LogError::Lapped { position, cursor },
                    None => error.clone(),
                });
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

    /// Whether it has found out where the log begins and ends.
    #[must_use]
    pub const fn is_started(&self) -> bool {
        self.started
    }

    /// Where it began: the cursor as it was found, or what was cleared with this reader since.
    #[must_use]
    pub const fn began_at(&self) -> LogPosition {
        self.cursor
    }

    /// Goes on at a record whose position somebody has kept, in live mode and once it [has started](Self::is_started), else nothing happens.
    /// What stands there is checked as always: where no record begins, the log counts as damaged there; where one was cleared, as lapped.
    pub fn seek(&mut self, position: LogPosition) {
        if !self.started || self.mode != LogMode::Live {
            return;
        }
        self.position = position;
        self.predecessor = None;
        self.window.clear();
        self.state = State::PublishWords;
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
        Ok(ClearPlan::to(mark.end))
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
    pub(super) fn wanted(&self) -> Option<ReadRequest> {
        let length_bytes = PAGE_PAIR_BYTES;
        if let Some(stream) = self.state.stream() {
            return self.stream_request(stream);
        }
        match &self.state {
            State::PublishWords => Some(ReadRequest {
                offset: LOG_TAIL_OFFSET,
                length_bytes,
            }),
            State::CursorWords | State::CheckCursor(_) => Some(ReadRequest {
                offset: LOG_CURSOR_OFFSET,
                length_bytes,
            }),
            State::CaughtUp | State::End | State::Failed(_) => None,
            _ => self.window.missing(),
        }
    }

    pub(super) fn stream_request(&self, stream: &Stream) -> Option<ReadRequest> {
        let left_bytes = u64::from(stream.header.payload_bytes) - stream.fed_bytes;
        let begin = stream.header.position.get() + HEADER_BYTES + stream.fed_bytes;
        let length_bytes = left_bytes.min(self.window.length_bytes());
        let piece = self.geometry.pieces(LogPosition(begin), length_bytes).first;
        let RegionPiece {
            offset,
            length_bytes,
        } = piece;
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
            State::PublishWords | State::CursorWords | State::CheckCursor(_) => {}
            State::ProbeHigher(words) => self.probe_higher(words),
            State::ProbeLower(words) => self.probe_lower(words),
            State::Between(words, walk) => self.between(words, walk),
            State::Scan => return Ok(self.scan()),
            State::Large(stream, announced) => return Ok(self.large(stream, announced)),
            State::LookAhead(walk) => self.look_ahead(walk),
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

    pub(super) fn start(&mut self, cursor: LogPosition) {
        self.started = true;
        self.window.clear();
        (self.cursor, self.position) = (cursor, cursor);
        // A cursor behind the tail was durable before the tail was; all up to it has been read.
        self.limit = self.words.tail.max(cursor);
        self.state = State::Scan;
    }

    /// Up to where the ring can hold anything.
    pub(super) fn ring_end(&self) -> u64 {
        self.cursor.get().saturating_add(self.geometry.ring_bytes())
    }

    /// Whether `length_bytes` at `position` are in the window; starts to fill it where not.
    pub(super) fn have(&mut self, position: LogPosition, length_bytes: u64, limit: u64) -> bool {
        if self.window.bytes(position, length_bytes).is_some() {
            return true;
        }
        if self.window.missing().is_none() {
            let room_bytes = limit.saturating_sub(position.get());
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
        if end > limit {
            let (needed_bytes, found_bytes) = (HEADER_BYTES, end.min(limit));
            let structure = Structure::RecordHeader;
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
            self.state = State::Large(stream, false);
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

    pub(super) fn payload_checksum(&self, header: &RecordHeader) -> u64 {
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
        (end > tail).then_some(LogError::OverTail {
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
        self.state = State::CheckCursor(error);
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
            LogMode::Recovery => State::LookAhead(Walk::new(self.position, self.predecessor)),
        };
    }

    fn large(&mut self, stream: Stream, announced: bool) -> Next {
        if !announced {
            self.state = State::Large(stream, true);
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
}
