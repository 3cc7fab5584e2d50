//! Walks over records that are not handed out yet: from the lower to the higher of two cursor words
//! that differ, and behind the tail.

use pmu_format::{CursorPair, LogPosition, RecordHeader, record_payload_digest};

use crate::log::LogError;
use crate::log::reader::{HEADER_BYTES, LogReader, State, Stream};

/// A walk over records that are not handed out (yet).
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    at: LogPosition,
    predecessor: Option<RecordHeader>,
    /// The record at `at`, where it is longer than the window.
    pub(super) stream: Option<Stream>,
}

impl Walk {
    pub(super) const fn new(at: LogPosition, predecessor: Option<RecordHeader>) -> Self {
        Self {
            at,
            predecessor,
            stream: None,
        }
    }
}

/// What a step of a walk came to.
enum Walked {
    /// Something must be read first.
    Wait(Walk),
    /// The record is whole; behind it the walk goes on.
    Whole { continues: bool, next: Walk },
    /// There is no whole record that continues the walk.
    Broken,
}

/// The cursor's words where they differ, as positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Differing {
    pair: CursorPair,
    lower: Option<LogPosition>,
    higher: LogPosition,
}

impl LogReader {
    pub(super) fn cursor_read(&mut self, pair: CursorPair) {
        if let Some(cursor) = pair.agreed() {
            self.start(cursor);
            return;
        }
        self.cursor_disagreed = true;
        // A word that is no position counts as lower than any.
        let (first, second) = (pair.cursor_word(), pair.inverse_word());
        self.state = match first.max(second) {
            Some(higher) => {
                let lower = first.min(second);
                self.cursor = lower.unwrap_or(higher);
                State::ProbeHigher(Differing {
                    pair,
                    lower,
                    higher,
                })
            }
            None => State::Failed(unreadable(pair)),
        };
    }

    /// Where the words differ, a clear was cut short or one of them is damaged. Handing out what was
    /// cleared does less harm than leaving out what was not, so the lower one counts if everything
    /// from it to the higher one is still there. Where it is not, it was cleared, and the writer has
    /// used the room.
    pub(super) fn probe_higher(&mut self, words: Differing) {
        let Some(leads) = self.leads(words.higher) else {
            return;
        };
        self.window.clear();
        match (leads, words.lower) {
            (true, Some(lower)) => self.state = State::Between(words, Walk::new(lower, None)),
            (true, None) => self.start(words.higher),
            (false, _) => self.state = State::ProbeLower(words),
        }
    }

    pub(super) fn probe_lower(&mut self, words: Differing) {
        let Differing {
            pair,
            lower,
            higher,
        } = words;
        if let Some(lower) = lower {
            match self.leads(lower) {
                None => return,
                Some(true) => return self.start(lower),
                Some(false) => {}
            }
        }
        // A cursor behind the tail with nothing behind it is the end of an empty log: all that was
        // acknowledged lies before the tail, and was cleared.
        let behind_bytes = higher.get().saturating_sub(self.words.tail.get());
        let empty = pair.cursor_word() == Some(higher)
            && behind_bytes > 0
            && behind_bytes <= self.geometry.ring_bytes();
        if empty {
            self.start(higher);
        } else {
            self.state = State::Failed(unreadable(pair));
        }
    }

    pub(super) fn between(&mut self, words: Differing, walk: Walk) {
        if walk.at >= words.higher {
            // Where the walk misses the higher one, the lower one leads astray.
            let exact = walk.at == words.higher;
            self.start(words.lower.filter(|_| exact).unwrap_or(words.higher));
            return;
        }
        match self.walk(walk) {
            Walked::Wait(walk) => self.state = State::Between(words, walk),
            Walked::Whole { next, .. } => self.state = State::Between(words, next),
            Walked::Broken => self.start(words.higher),
        }
    }

    /// Whether a record or the log's end is at `position`; `None` until it is read.
    fn leads(&mut self, position: LogPosition) -> Option<bool> {
        if position == self.words.tail {
            return Some(true);
        }
        if self.window.bytes(position, HEADER_BYTES).is_none() && self.window.missing().is_none() {
            self.window.fill(&self.geometry, position, HEADER_BYTES);
        }
        let bytes = self.window.bytes(position, HEADER_BYTES)?;
        let header = RecordHeader::decode(bytes, position, &self.geometry);
        Some(
            header
                .is_ok_and(|header| position < self.words.tail || header.epoch == self.words.epoch),
        )
    }

    /// Goes through the records behind the tail until a batch is whole, which may then be handed
    /// out, or until one is not, which ends the log.
    pub(super) fn look_ahead(&mut self, walk: Walk) {
        self.state = match self.walk(walk) {
            Walked::Wait(walk) => State::LookAhead(walk),
            Walked::Broken => State::End,
            Walked::Whole {
                continues: true,
                next,
            } => State::LookAhead(next),
            Walked::Whole {
                continues: false,
                next,
            } => {
                self.limit = next.at;
                State::Scan
            }
        };
    }

    /// Checks the record that a walk is at, payload and all. Behind the tail it must be of the
    /// publishing epoch.
    fn walk(&mut self, walk: Walk) -> Walked {
        if let Some(stream) = walk.stream {
            if self.stream_request(&stream).is_some() {
                return Walked::Wait(walk);
            }
            return checked(&stream.header, stream.digest.finish());
        }
        let (at, ring_end) = (walk.at, self.ring_end());
        if at.get().saturating_add(HEADER_BYTES) > ring_end {
            return Walked::Broken;
        }
        if !self.have(at, HEADER_BYTES, ring_end) {
            return Walked::Wait(walk);
        }
        let bytes = self.window.bytes(at, HEADER_BYTES).unwrap_or(&[]);
        let header = RecordHeader::decode(bytes, at, &self.geometry)
            .ok()
            .filter(|header| {
                (at < self.words.tail || header.epoch == self.words.epoch)
                    && walk
                        .predecessor
                        .is_none_or(|predecessor| header.follows(&predecessor))
                    && at.get().saturating_add(header.record_bytes()) <= ring_end
            });
        let Some(header) = header else {
            return Walked::Broken;
        };
        if header.record_bytes() > self.window.length_bytes() {
            let digest = record_payload_digest(&self.region);
            let stream = Some(Stream {
                header,
                fed_bytes: 0,
                digest,
            });
            return Walked::Wait(Walk { stream, ..walk });
        }
        if !self.have(at, header.record_bytes(), ring_end) {
            return Walked::Wait(walk);
        }
        checked(&header, self.payload_checksum(&header))
    }
}

fn checked(header: &RecordHeader, computed: u64) -> Walked {
    // The decoder has checked that the end fits 64 bits.
    let end = LogPosition(header.position.get() + header.record_bytes());
    match header.verify_payload_checksum(computed) {
        Ok(()) => Walked::Whole {
            continues: header.continues,
            next: Walk::new(end, Some(*header)),
        },
        Err(_) => Walked::Broken,
    }
}

fn unreadable(pair: CursorPair) -> LogError {
    let CursorPair { cursor, inverse } = pair;
    LogError::Cursor { cursor, inverse }
}
