//! One document's part of the index, as a record of the log.
//!
//! Numbers (see `varint`): the document, its words; for each word its length, its bytes, its count.

use crate::error::Result;
use crate::varint::{Cursor, put};
use crate::words::Counted;

/// Writes a record into `out`, in place of what it held.
pub fn encode(document: u32, words: &[(&[u8], u32)], out: &mut Vec<u8>) {
    out.clear();
    put(out, document);
    put(out, words.len() as u32);
    for (word, count) in words {
        put(out, word.len() as u32);
        out.extend_from_slice(word);
        put(out, *count);
    }
}

/// Reads the document's number, and its words in the order in which they were written.
///
/// # Errors
/// [`DemoError::Malformed`](crate::DemoError::Malformed): the bytes came from elsewhere.
pub fn decode(bytes: &[u8]) -> Result<(u32, Counted<'_>)> {
    let mut cursor = Cursor::new(bytes, "record");
    let document = cursor.number()?;
    let words_count = cursor.number()?;
    let mut words = Counted::new();
    for _ in 0..words_count {
        let length = cursor.number()?;
        let word = cursor.bytes(length)?;
        words.push((word, cursor.number()?));
    }
    if !cursor.is_empty() {
        return Err(cursor.malformed("goes on behind its end"));
    }
    Ok((document, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back() {
        let words: [(&[u8], u32); 3] = [(b"as_ref", 2), (b"impl", 300), (b"u8", 1)];
        let mut bytes = b"old".to_vec();
        encode(70_000, &words, &mut bytes);
        assert_eq!(decode(&bytes).unwrap(), (70_000, words.to_vec()));
        encode(0, &[], &mut bytes);
        assert_eq!(decode(&bytes).unwrap(), (0, vec![]));
    }

    #[test]
    fn every_cut_and_every_tail_is_refused() {
        let words: [(&[u8], u32); 2] = [(b"fn", 9), (b"struct", 1)];
        let mut bytes = Vec::new();
        encode(5, &words, &mut bytes);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
        bytes.push(0);
        assert!(decode(&bytes).is_err());
    }
}
