//! From a document's bytes to its words and how often each occurs.

use std::collections::HashMap;

/// Shorter runs say nothing, longer ones are data.
const WORD_BYTES_MIN: usize = 2;
const WORD_BYTES_MAX: usize = 40;

/// Words with their counts.
pub type Counted<'a> = Vec<(&'a [u8], u32)>;

/// Lowers the letters of `text`, and returns its words with their counts, in the order of their bytes.
///
/// A word is a longest run of ASCII letters, digits and `_`, of 2 to 40 bytes. Everything else separates.
pub fn count(text: &mut [u8]) -> Counted<'_> {
    text.make_ascii_lowercase();
    let mut counts: HashMap<&[u8], u32> = HashMap::new();
    let is_separator = |byte: &u8| !(byte.is_ascii_alphanumeric() || *byte == b'_');
    for word in text.split(is_separator) {
        if (WORD_BYTES_MIN..=WORD_BYTES_MAX).contains(&word.len()) {
            *counts.entry(word).or_insert(0) += 1;
        }
    }
    let mut counts: Counted<'_> = counts.into_iter().collect();
    counts.sort_unstable();
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Vec<(String, u32)> {
        let mut bytes = text.as_bytes().to_vec();
        let counts = count(&mut bytes);
        counts
            .into_iter()
            .map(|(word, n)| (String::from_utf8(word.to_vec()).unwrap(), n))
            .collect()
    }

    #[test]
    fn words_are_lowered_counted_and_sorted() {
        let expected = [("as_ref", 2), ("impl", 1), ("u8", 1)].map(|(w, n)| (w.to_owned(), n));
        assert_eq!(
            counted("impl<T> AS_REF for u8: as_ref"),
            [
                expected[0].clone(),
                ("for".to_owned(), 1),
                expected[1].clone(),
                expected[2].clone(),
            ]
        );
    }

    #[test]
    fn one_letter_and_endless_runs_are_no_words() {
        assert_eq!(counted("a b c"), []);
        assert_eq!(counted(&"x".repeat(41)), []);
        assert_eq!(counted(&"x".repeat(40)).len(), 1);
        assert_eq!(counted("größe"), [("gr".to_owned(), 1)]);
        assert_eq!(counted(""), []);
    }
}
