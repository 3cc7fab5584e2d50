//! Carries out the reads that a log's reader asks for.

use pmu_core::ReadRequest;
use pmu_core::log::{LogError, LogReader, LogRecovered, LogStep, Record};
use pmu_fabric::Chain;
use pmu_format::{Epoch, LogPosition};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::error::{ClientError, Result};
use crate::region::Region;
use crate::staging::Registered;

/// Bytes read at a time: enough to be fast, and so few that an opening or a takeover doesn't wait for memory.
const READ_BYTES_MAX: usize = 1 << 20;
/// The longest record that a reader makes room for: what a unit's word can make it allocate.
const RECORD_BYTES_MAX: usize = u32::MAX as usize;

/// A record with its payload.
#[derive(Debug, Clone, Copy)]
pub struct LogRecord<'a> {
    /// What is known of it, with the mark to clear it by.
    pub record: Record,
    /// Its payload, verified.
    pub payload: &'a [u8],
}

/// What a recovery of a log found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveredLog {
    /// Up to here the backup had cleared.
    pub cursor: LogPosition,
    /// What the tail said.
    pub tail: LogPosition,
    /// The end of the log.
    pub end: LogPosition,
    /// Epoch of the last writer.
    pub epoch: Epoch,
    /// Records between cursor and end.
    pub records: u64,
    /// Those of them that were durable, but whose receipt was lost.
    pub unacknowledged_records: u64,
    /// True if a clear had been cut short.
    pub cursor_disagreed: bool,
    /// Why the log ends before its tail, if it does: acknowledged records are lost.
    pub damage: Option<String>,
}

impl RecoveredLog {
    pub(super) fn of(found: &LogRecovered) -> Self {
        Self {
            cursor: found.cursor,
            tail: found.tail,
            end: found.end,
            epoch: found.epoch,
            records: found.records,
            unacknowledged_records: found.unacknowledged_records,
            cursor_disagreed: found.cursor_disagreed,
            damage: found
                .damage
                .as_ref()
                .map(|error| crate::control::chain(error)),
        }
    }
}

impl Serialize for RecoveredLog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RecoveredLog", 8)?;
        fields.serialize_field("cursor", &self.cursor.get())?;
        fields.serialize_field("tail", &self.tail.get())?;
        fields.serialize_field("end", &self.end.get())?;
        fields.serialize_field("epoch", &self.epoch.get())?;
        fields.serialize_field("records", &self.records)?;
        fields.serialize_field("unacknowledged_records", &self.unacknowledged_records)?;
        fields.serialize_field("cursor_disagreed", &self.cursor_disagreed)?;
        fields.serialize_field("damage", &self.damage)?;
        fields.end()
    }
}

/// Why the driving of a reader paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// All published records were handed out.
    CaughtUp,
    /// The end of the log (recovery).
    End,
    /// The visitor has enough for now.
    Enough,
}

/// Why it stopped for good.
#[derive(Debug)]
pub(super) enum Stop {
    Log(LogError),
    Client(ClientError),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// Memory to read a log through; kept from one call to the next.
#[derive(Debug)]
pub(super) struct LogDriver {
    registered: Registered,
    bytes: usize,
    chain: Chain,
    scratch: Vec<u8>,
    /// The payload of a record that is longer than the reader's window.
    large: Vec<u8>,
}

impl LogDriver {
    pub(super) fn new(region: &mut Region) -> Result<Self> {
        // No more than there is to read.
        let region_bytes = usize::try_from(region.info.length_bytes).unwrap_or(READ_BYTES_MAX);
        let bytes = region_bytes.min(READ_BYTES_MAX);
        let registered = Registered::allocate(&mut region.link, bytes)?;
        Ok(Self {
            registered,
            bytes,
            chain: Chain::with_capacity(1),
            scratch: Vec::new(),
            large: Vec::new(),
        })
    }

    /// How large a reader's window may be to be filled with one read.
    pub(super) const fn window_bytes(&self) -> usize {
        self.bytes
    }

    /// Reads on, and hands each record to the visitor until that returns false.
    pub(super) fn run(
        &mut self,
        region: &mut Region,
        reader: &mut LogReader,
        mut visit: impl FnMut(LogRecord<'_>) -> Result<bool>,
    ) -> Result<Pause, Stop> {
        loop {
            match reader.poll().map_err(Stop::Log)? {
                LogStep::Read(request) => {
                    let bytes = self.read(region, request)?;
                    feed(reader, bytes)?;
                }
                LogStep::Record { record, payload } => {
                    if !visit(LogRecord { record, payload })? {
                        return Ok(Pause::Enough);
                    }
                }
                LogStep::LargeRecord(record) => self.make_room(record.payload_bytes as usize)?,
                LogStep::ReadPayload {
                    request,
                    payload_offset,
                } => {
                    let bytes = self.read(region, request)?;
                    feed(reader, bytes)?;
                    self.keep(payload_offset, request.length_bytes)?;
                }
                LogStep::LargeRecordWhole(record) => {
                    if !visit(LogRecord {
                        record,
                        payload: &self.large,
                    })? {
                        return Ok(Pause::Enough);
                    }
                }
                LogStep::CaughtUp { .. } => return Ok(Pause::CaughtUp),
                LogStep::End => return Ok(Pause::End),
                _ => {
                    return Err(
                        ClientError::Protocol("an unknown step of the reader".into()).into(),
                    );
                }
            }
        }
    }

    /// Reads a range and gives a copy that nobody changes any more.
    pub(super) fn read(&mut self, region: &mut Region, request: ReadRequest) -> Result<&[u8]> {
        let length = usize::try_from(request.length_bytes).unwrap_or(usize::MAX);
        if length > self.bytes {
            return Err(ClientError::Invalid(
                "the staging memory is too small for a read".into(),
            ));
        }
        self.chain.clear();
        self.chain.read(
            region.address(request.offset.get()),
            self.registered.slice(0, length),
        );
        let posted = region
            .link
            .post(&self.chain)
            .map_err(|error| region.error(error))?;
        region
            .link
            .wait_for(posted.last)
            .map_err(|error| region.error(error))?;
        if self.scratch.len() < length {
            self.scratch.resize(length, 0);
        }
        let bytes = &mut self.scratch[..length];
        self.registered.get(0, bytes)?;
        Ok(bytes)
    }

    fn make_room(&mut self, length: usize) -> Result<()> {
        self.large.clear();
        if length > RECORD_BYTES_MAX || self.large.try_reserve_exact(length).is_err() {
            return Err(ClientError::Invalid(format!(
                "no memory for a record of {length} bytes"
            )));
        }
        self.large.resize(length, 0);
        Ok(())
    }

    /// Puts what was just read to its place in the large record.
    fn keep(&mut self, offset: u64, length: u64) -> Result<()> {
        let (offset, length) = (offset as usize, length as usize);
        let place = self.large.get_mut(offset..offset + length);
        let place =
            place.ok_or_else(|| ClientError::Protocol("a piece outside its record".into()))?;
        place.copy_from_slice(&self.scratch[..length]);
        Ok(())
    }
}

fn feed(reader: &mut LogReader, bytes: &[u8]) -> Result<()> {
    reader
        .feed(bytes)
        .map_err(|error| ClientError::Protocol(error.to_string()))
}

/// What a log that can't be read on means for the caller.
pub(super) fn stopped(region: &Region, stop: Stop) -> ClientError {
    match stop {
        Stop::Client(error) => error,
        Stop::Log(error) => ClientError::Damaged {
            region: region.name(),
            what: crate::control::chain(&error),
        },
    }
}
