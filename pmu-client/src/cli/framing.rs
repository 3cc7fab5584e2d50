//! Telling records apart in a stream of bytes, and putting them back into one.

use std::io::{self, Write};

use crate::cli::arguments::Framing;

/// Why a stream can't be told apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FramingError {
    /// A record is longer than the log takes.
    #[error("a record of {bytes} bytes or more; the log takes {limit}")]
    TooLong { bytes: u64, limit: u64 },
    /// The stream ends within a record.
    #[error("the input ends in the middle of a record: {missing} bytes are missing")]
    CutShort { missing: u64 },
    /// A length of zero.
    #[error("a record of no bytes")]
    Empty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lines,
    Sized(usize),
    Prefixed,
}

/// Cuts a stream into records. Holds one incomplete record at most.
#[derive(Debug)]
pub(super) struct Splitter {
    kind: Kind,
    limit: usize,
    held: Vec<u8>,
    /// Lines that were left out because they were empty.
    pub(super) empty_lines: u64,
}

impl Splitter {
    /// Records have at most `limit` bytes.
    pub(super) fn new(framing: Framing, limit: u32) -> Self {
        let kind = match framing {
            Framing {
                record_size: Some(size),
                ..
            } => Kind::Sized(size as usize),
            Framing {
                length_prefixed: true,
                ..
            } => Kind::Prefixed,
            _ => Kind::Lines,
        };
        Self {
            kind,
            limit: limit as usize,
            held: Vec::new(),
            empty_lines: 0,
        }
    }

    /// Takes bytes, and hands out each record that they complete.
    pub(super) fn feed<E: From<FramingError>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            // How many of these bytes belong to the record in the making, and whether they complete it.
            let (count, whole) = self.belongs(bytes)?;
            let (now, later) = bytes.split_at(count);
            bytes = later;
            if whole && self.held.is_empty() {
                self.hand_out(now, &mut each)?;
                continue;
            }
            self.held.extend_from_slice(now);
            if whole {
                let held = std::mem::take(&mut self.held);
                self.hand_out(&held, &mut each)?;
                self.held = held;
                self.held.clear();
            }
        }
        Ok(())
    }

    /// The stream is at its end.
    pub(super) fn finish<E: From<FramingError>>(
        &mut self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        match self.kind {
            Kind::Prefixed if held == [0; 4] => Err(FramingError::Empty.into()),
            Kind::Prefixed => {
                let missing = (self.prefixed_length(&held).unwrap_or(4) - held.len()) as u64;
                Err(FramingError::CutShort { missing }.into())
            }
            // A last line without its end, or what is left.
            Kind::Lines | Kind::Sized(_) => each(&held),
        }
    }

    fn belongs(&self, bytes: &[u8]) -> Result<(usize, bool), FramingError> {
        let held = self.held.len();
        match self.kind {
            Kind::Lines => {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let length = end.unwrap_or(bytes.len());
                self.check(held + length)?;
                Ok(end.map_or((length, false), |end| (end + 1, true)))
            }
            Kind::Sized(size) => {
                self.check(size)?;
                let count = bytes.len().min(size - held);
                Ok((count, held + count == size))
            }
            Kind::Prefixed => {
                let head = match (held, bytes.len()) {
                    (4.., _) => self.prefixed_length(&self.held),
                    (0, 4..) => self.prefixed_length(bytes),
                    // The length itself first.
                    _ => return Ok((bytes.len().min(4 - held), false)),
                };
                let whole = head.unwrap_or(4);
                if whole == 4 {
                    return Err(FramingError::Empty);
                }
                self.check(whole - 4)?;
                let count = bytes.len().min(whole - held);
                Ok((count, held + count == whole))
            }
        }
    }

    /// Length of a record with its prefix.
    fn prefixed_length(&self, bytes: &[u8]) -> Option<usize> {
        let prefix = bytes.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*prefix) as usize + 4)
    }

    fn check(&self, length: usize) -> Result<(), FramingError> {
        if length <= self.limit {
            return Ok(());
        }
        Err(FramingError::TooLong {
            bytes: length as u64,
            limit: self.limit as u64,
        })
    }

    fn hand_out<E>(
        &mut self,
        whole: &[u8],
        each: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.kind {
            Kind::Lines => {
                let line = whole.strip_suffix(b"\n").unwrap_or(whole);
                if line.is_empty() {
                    self.empty_lines += 1;
                    return Ok(());
                }
                each(line)
            }
            Kind::Sized(_) => each(whole),
            Kind::Prefixed => each(whole.get(4..).unwrap_or(&[])),
        }
    }
}

/// Writes a record so that it can be told apart again.
pub(super) fn join(
    payload: &[u8],
    length_prefixed: bool,
    writer: &mut impl Write,
) -> io::Result<()> {
    if length_prefixed {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        writer.write_all(&length.to_le_bytes())?;
        return writer.write_all(payload);
    }
    writer.write_all(payload)?;
    writer.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINES: Framing = Framing {
        lines: true,
        record_size: None,
        length_prefixed: false,
    };
    const PREFIXED: Framing = Framing {
        lines: false,
        record_size: None,
        length_prefixed: true,
    };

    fn sized(size: u32) -> Framing {
        Framing {
            lines: false,
            record_size: Some(size),
            length_prefixed: false,
        }
    }

    fn split(framing: Framing, stream: &[u8], step: usize) -> Result<Vec<Vec<u8>>, FramingError> {
        let mut splitter = Splitter::new(framing, 100);
        let mut records = Vec::new();
        for part in stream.chunks(step) {
            splitter.feed(part, |record| {
                records.push(record.to_vec());
                Ok::<_, FramingError>(())
            })?;
        }
        splitter.finish(|record| {
            records.push(record.to_vec());
            Ok::<_, FramingError>(())
        })?;
        Ok(records)
    }

    #[test]
    fn lines_and_sizes() {
        for step in 1..12 {
            assert_eq!(
                split(LINES, b"a\n\nbc\nrest", step).unwrap(),
                [&b"a"[..], b"bc", b"rest"]
            );
            assert_eq!(
                split(sized(3), b"abcdefgh", step).unwrap(),
                [&b"abc"[..], b"def", b"gh"]
            );
            assert_eq!(
                split(PREFIXED, b"\x02\0\0\0ab\x01\0\0\0c", step).unwrap(),
                [&b"ab"[..], b"c"]
            );
        }
        assert_eq!(
            split(PREFIXED, b"\x05\0\0\0ab", 2),
            Err(FramingError::CutShort { missing: 3 })
        );
        assert_eq!(
            split(PREFIXED, b"\x05\0", 2),
            Err(FramingError::CutShort { missing: 2 })
        );
        assert_eq!(split(PREFIXED, b"\0\0\0\0", 3), Err(FramingError::Empty));
        let long = [b'x'; 101];
        for framing in [LINES, sized(101)] {
            assert!(matches!(
                split(framing, &long, 7),
                Err(FramingError::TooLong { limit: 100, .. })
            ));
        }
        assert!(matches!(
            split(PREFIXED, b"\xff\xff\xff\xff", 4),
            Err(FramingError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_was_joined_is_split_again(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..100), 0..20),
            step in 1_usize..300,
        ) {
            let mut stream = Vec::new();
            for record in &records {
                join(record, true, &mut stream).unwrap();
            }
            prop_assert_eq!(split(PREFIXED, &stream, step).unwrap(), records);
        }
    }
}
