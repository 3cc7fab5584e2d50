//! The ring of staging memory on the distributor's side: what of it is free, and how it is cut into pieces.

use pmu_format::Digest;

/// What is announced at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Of the chain that carries it.
    pub(super) serial: u64,
    /// Of its first byte, counted from the session's first.
    pub(super) position: u64,
    pub(super) length: u32,
    pub(super) checksum: u64,
}

impl Piece {
    pub(super) const fn end(&self) -> u64 {
        self.position + self.length as u64
    }
}

/// See the module. Positions count the session's bytes and only grow, but for what is forgotten.
#[derive(Debug)]
pub(super) struct Ring {
    base: u64,
    length: u64,
    piece_max: u32,
    /// Everything before was taken.
    free: u64,
    /// Where the next byte goes.
    next: u64,
    piece: u32,
    digest: Digest,
}

impl Ring {
    /// `length` bytes at the address `base`, neither of which wraps.
    pub(super) fn new(base: u64, length: u64, piece_max: u32) -> Self {
        Self {
            base,
            length,
            piece_max,
            free: 0,
            next: 0,
            piece: 0,
            digest: Digest::new(),
        }
    }

    /// Where the next byte goes.
    pub(super) const fn address(&self) -> u64 {
        self.base + self.next % self.length
    }

    /// Bytes that may be added to the piece now. A piece doesn't cross the ring's end.
    pub(super) fn room(&self) -> u64 {
        let free = self.length - (self.next - self.free);
        let to_end = self.length - self.next % self.length;
        let in_piece = u64::from(self.piece_max - self.piece);
        free.min(to_end).min(in_piece)
    }

    /// Takes bytes into the piece: at most as many as there is room for.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.next += bytes.len() as u64;
        self.piece += bytes.len() as u32;
    }

    pub(super) const fn piece_is_full(&self) -> bool {
        self.piece >= self.piece_max || self.next.is_multiple_of(self.length)
    }

    /// Ends the piece; none if it is empty.
    pub(super) fn end_piece(&mut self) -> Option<Piece> {
        if self.piece == 0 {
            return None;
        }
        let piece = Piece {
            serial: 0,
            position: self.next - u64::from(self.piece),
            length: self.piece,
            checksum: self.digest.finish(),
        };
        self.begin_piece();
        Some(piece)
    }

    fn begin_piece(&mut self) {
        self.piece = 0;
        self.digest = Digest::new();
    }

    /// Everything before `position` is free; false if that can't be.
    pub(super) const fn free(&mut self, position: u64) -> bool {
        if position < self.free || position > self.next {
            return false;
        }
        self.free = position;
        true
    }

    /// Goes back to the end of what was announced; none: all of that was taken.
    pub(super) fn forget_from(&mut self, announced: Option<u64>) {
        self.next = announced.unwrap_or(self.free);
        self.begin_piece();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d08_pieces_never_cross_the_end_of_the_ring_nor_what_was_not_taken() {
        let mut ring = Ring::new(1000, 10, 4);
        let mut pieces = Vec::new();
        for wanted in [4, 4, 2] {
            assert_eq!(ring.room(), wanted);
            ring.add(&[7; 4][..wanted as usize]);
            assert!(ring.piece_is_full());
            pieces.push(ring.end_piece().unwrap());
        }
        assert_eq!((ring.room(), ring.end_piece()), (0, None));
        assert_eq!((pieces[2].position, pieces[2].end()), (8, 10));
        assert_ne!(pieces[1].checksum, pieces[2].checksum);
        assert_eq!(pieces[0].checksum, pieces[1].checksum);
        assert!(!ring.free(11));
        assert!(ring.free(4) && !ring.free(3));
        assert_eq!((ring.room(), ring.address()), (4, 1000));
        ring.add(&[1, 2]);
        ring.forget_from(Some(10));
        assert_eq!((ring.room(), ring.address()), (4, 1000));
        assert!(ring.free(10));
        ring.add(&[1]);
        ring.forget_from(None);
        assert_eq!((ring.room(), ring.end_piece()), (4, None));
    }
}
