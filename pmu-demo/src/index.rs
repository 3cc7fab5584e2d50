//! The inverted index: for each word the documents that hold it, and how often. What the demonstration must not lose.

use std::hash::RandomState;

use allocator_api2::alloc::{Allocator, Global};
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec as VecIn;
use hashbrown::HashMap;

use crate::error::{DemoError, Result};
use crate::varint::{Cursor, put};

const MAGIC: &[u8] = b"PMUINDEX";

/// The index over the first documents of a list, in the memory of an allocator.
pub struct Index<A: Allocator + Clone = Global> {
    documents: u32,
    words: HashMap<Box<[u8], A>, Postings<A>, RandomState, A>,
}

/// Where a word occurs: pairs of (distance from the former document, count), encoded as they come.
struct Postings<A: Allocator> {
    /// The last document, plus one; 0 for none.
    next_document: u32,
    encoded: VecIn<u8, A>,
}

impl Default for Index {
    fn default() -> Self {
        Self::new_in(Global)
    }
}

impl<A: Allocator + Clone> std::fmt::Debug for Index<A> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Index")
            .field("documents", &self.documents)
            .field("words", &self.words.len())
            .finish()
    }
}

impl<A: Allocator + Clone> Index<A> {
    /// An empty one.
    #[must_use]
    pub fn new_in(allocator: A) -> Self {
        Self {
            documents: 0,
            words: HashMap::with_hasher_in(RandomState::new(), allocator),
        }
    }

    /// How many documents it holds: always the first ones of the list.
    #[must_use]
    pub fn documents(&self) -> u32 {
        self.documents
    }

    /// How many different words it holds.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// Adds the next document. One that it holds already changes nothing: a log may begin before a state ends.
    ///
    /// # Errors
    /// [`DemoError::Malformed`] if a document in between is missing. Nothing is changed then.
    pub fn add(&mut self, document: u32, words: &[(&[u8], u32)]) -> Result<()> {
        if document < self.documents {
            return Ok(());
        }
        if document > self.documents || document == u32::MAX {
            let problem = "a document before it is missing";
            return Err(DemoError::Malformed {
                what: "record",
                problem,
            });
        }
        for (word, count) in words {
            match self.words.get_mut(*word) {
                Some(postings) => postings.add(document, *count),
                None => {
                    let allocator = self.words.allocator().clone();
                    let mut postings = Postings {
                        next_document: 0,
                        encoded: VecIn::new_in(allocator.clone()),
                    };
                    postings.add(document, *count);
                    self.words.insert(boxed(word, allocator), postings);
                }
            }
        }
        self.documents = document + 1;
        Ok(())
    }

    /// The one form that this content has, in bytes: words in the order of their bytes.
    ///
    /// Magic; then numbers (see `varint`): documents, words; for each word its length, its bytes, the last document that
    /// holds it plus one, the length of its postings, its postings.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(MAGIC);
        put(out, self.documents);
        put(out, self.words.len() as u32);
        let mut words: Vec<_> = self.words.iter().collect();
        words.sort_unstable_by(|(one, _), (other, _)| one[..].cmp(&other[..]));
        for (word, postings) in words {
            put(out, word.len() as u32);
            out.extend_from_slice(word);
            put(out, postings.next_document);
            put(out, postings.encoded.len() as u32);
            out.extend_from_slice(&postings.encoded);
        }
    }
}

impl Index {
    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`DemoError::Malformed`]: the bytes came from elsewhere.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(bytes, "state");
        if cursor.bytes(MAGIC.len() as u32)? != MAGIC {
            return Err(cursor.malformed("does not begin like one"));
        }
        let documents = cursor.number()?;
        let words_count = cursor.number()?;
        // A word takes some bytes: a wrong count can't make us allocate more than there is.
        let room = (words_count as usize).min(bytes.len());
        let mut words = HashMap::with_capacity_and_hasher_in(room, RandomState::new(), Global);
        for _ in 0..words_count {
            let length = cursor.number()?;
            let word = cursor.bytes(length)?;
            let next_document = cursor.number()?;
            if next_document > documents {
                return Err(cursor.malformed("a word is in a document behind the last"));
            }
            let length = cursor.number()?;
            let mut encoded = VecIn::new_in(Global);
            encoded.extend_from_slice(cursor.bytes(length)?);
            let postings = Postings {
                next_document,
                encoded,
            };
            words.insert(boxed(word, Global), postings);
        }
        if !cursor.is_empty() || words.len() != words_count as usize {
            return Err(cursor.malformed("its count of words is wrong"));
        }
        Ok(Self { documents, words })
    }
}

fn boxed<A: Allocator>(word: &[u8], allocator: A) -> Box<[u8], A> {
    let mut bytes = VecIn::with_capacity_in(word.len(), allocator);
    bytes.extend_from_slice(word);
    bytes.into_boxed_slice()
}

impl<A: Allocator> Postings<A> {
    fn add(&mut self, document: u32, count: u32) {
        put(&mut self.encoded, document - self.next_document);
        put(&mut self.encoded, count);
        self.next_document = document + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &[(&[u8], u32)] = &[(b"fn", 3), (b"impl", 1)];
    const SECOND: &[(&[u8], u32)] = &[(b"fn", 1), (b"use", 200)];
    const THIRD: &[(&[u8], u32)] = &[(b"impl", 7)];

    fn encoded(index: &Index) -> Vec<u8> {
        let mut bytes = b"old".to_vec();
        index.encode(&mut bytes);
        bytes
    }

    #[test]
    fn an_index_that_was_stored_halfway_ends_the_same() {
        let mut straight = Index::default();
        for (number, words) in [FIRST, SECOND, THIRD].into_iter().enumerate() {
            straight.add(number as u32, words).unwrap();
        }
        for stored_at in 0..=3 {
            let mut index = Index::default();
            for (number, words) in [FIRST, SECOND, THIRD].into_iter().enumerate() {
                if number == stored_at {
                    index = Index::decode(&encoded(&index)).unwrap();
                }
                index.add(number as u32, words).unwrap();
            }
            assert_eq!(encoded(&index), encoded(&straight), "stored at {stored_at}");
        }
        assert_eq!((straight.documents(), straight.words()), (3, 3));
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut index = Index::default();
        index.add(0, FIRST).unwrap();
        index.add(1, SECOND).unwrap();
        let expected = b"PMUINDEX\x02\x03\x02fn\x02\x04\x00\x03\x00\x01\x04impl\x01\x02\x00\x01\x03use\x02\x03\x01\xc8\x01";
        assert_eq!(encoded(&index), expected);
    }

    #[test]
    fn known_documents_change_nothing_and_gaps_are_refused() {
        let mut index = Index::default();
        index.add(0, FIRST).unwrap();
        let before = encoded(&index);
        index.add(0, SECOND).unwrap();
        assert!(index.add(2, THIRD).is_err());
        assert_eq!(encoded(&index), before);
    }

    #[test]
    fn every_cut_is_refused() {
        let mut index = Index::default();
        index.add(0, FIRST).unwrap();
        let bytes = encoded(&index);
        for length in 0..bytes.len() {
            assert!(Index::decode(&bytes[..length]).is_err(), "{length}");
        }
    }
}
