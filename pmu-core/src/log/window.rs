//! A bounded buffer over a range of the log, filled by one read or, where the ring ends in between,
//! by two.

use pmu_format::{LogGeometry, LogPosition, Pieces, RegionPiece};

use crate::{FeedError, ReadRequest};

/// What of the log is in memory.
#[derive(Debug)]
pub(super) struct Window {
    buffer: Vec<u8>,
    begin: LogPosition,
    valid_bytes: usize,
    /// What is still to be read behind the valid bytes.
    missing: [RegionPiece; 2],
}

impl Window {
    pub(super) fn new(length_bytes: usize) -> Self {
        Self {
            buffer: vec![0; length_bytes],
            begin: LogPosition(0),
            valid_bytes: 0,
            missing: [RegionPiece::default(); 2],
        }
    }

    pub(super) fn length_bytes(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// The bytes of a range of the log, `None` where not all of them are here.
    pub(super) fn bytes(&self, position: LogPosition, length_bytes: u64) -> Option<&[u8]> {
        let begin = position.get().checked_sub(self.begin.get())?;
        let end = begin.checked_add(length_bytes)?;
        let valid = self.buffer.get(..self.valid_bytes)?;
        valid.get(usize::try_from(begin).ok()?..usize::try_from(end).ok()?)
    }

    /// Forgets everything and asks for the log from `position` on, as much as fits.
    pub(super) fn fill(
        &mut self,
        geometry: &LogGeometry,
        position: LogPosition,
        length_bytes: u64,
    ) {
        let Pieces { first, second } =
            geometry.pieces(position, length_bytes.min(self.length_bytes()));
        (self.begin, self.valid_bytes, self.missing) = (position, 0, [first, second]);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        (self.valid_bytes, self.missing) = (0, [RegionPiece::default(); 2]);
    }

    /// What is to be read next.
    pub(super) fn missing(&self) -> Option<ReadRequest> {
        let piece = self.missing.iter().find(|piece| piece.length_bytes > 0)?;
        Some(ReadRequest {
            offset: piece.offset,
            length_bytes: piece.length_bytes,
        })
    }

    /// Takes what was read for [`missing`](Self::missing).
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), FeedError> {
        let piece = self.missing.iter_mut().find(|piece| piece.length_bytes > 0);
        let piece = piece.ok_or(FeedError::Unexpected)?;
        let end = self.valid_bytes + bytes.len();
        let room = self
            .buffer
            .get_mut(self.valid_bytes..end)
            .ok_or(FeedError::Unexpected)?;
        room.copy_from_slice(bytes);
        piece.length_bytes = 0;
        self.valid_bytes = end;
        Ok(())
    }
}
