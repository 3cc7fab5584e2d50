//! Sets of pages, in which few are found fast among many.

use std::ops::Range;

/// A set of page numbers below a fixed bound. A summary has one bit for each word of 64 pages, so
/// that walking costs as much as there are pages in the set, not as there could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pages {
    words: Vec<u64>,
    summary: Vec<u64>,
    bound: usize,
}

impl Pages {
    /// The empty set of pages below `bound`.
    pub(crate) fn none(bound: usize) -> Self {
        let words = bound.div_ceil(64);
        Self {
            words: vec![0; words],
            summary: vec![0; words.div_ceil(64)],
            bound,
        }
    }

    pub(crate) fn has(&self, page: usize) -> bool {
        self.words
            .get(page / 64)
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// Adds a page; one beyond the bound is nobody's.
    pub(crate) fn add(&mut self, page: usize) {
        if page < self.bound {
            self.words[page / 64] |= 1 << (page % 64);
            self.summary[page / 4096] |= 1 << (page / 64 % 64);
        }
    }

    pub(crate) fn add_range(&mut self, range: Range<usize>) {
        let end = range.end.min(self.bound);
        let mut page = range.start;
        while page < end {
            if page.is_multiple_of(64) && end - page >= 64 {
                self.words[page / 64] = u64::MAX;
                self.summary[page / 4096] |= 1 << (page / 64 % 64);
                page += 64;
            } else {
                self.add(page);
                page += 1;
            }
        }
    }

    /// Adds all pages of another set.
    pub(crate) fn add_all(&mut self, other: &Self) {
        for (index, word) in other.nonzero_words() {
            self.words[index] |= word;
            self.summary[index / 64] |= 1 << (index % 64);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.nonzero_words()
            .map(|(_, word)| word.count_ones() as usize)
            .sum()
    }

    /// Takes everything out.
    pub(crate) fn clear(&mut self) {
        for (at, summary) in self.summary.iter_mut().enumerate() {
            let mut rest = std::mem::take(summary);
            while rest != 0 {
                self.words[at * 64 + rest.trailing_zeros() as usize] = 0;
                rest &= rest - 1;
            }
        }
    }

    /// The first page of the set from `page` on.
    pub(crate) fn next(&self, page: usize) -> Option<usize> {
        let word = self.words.get(page / 64)?;
        let here = word & (u64::MAX << (page % 64));
        if here != 0 {
            return Some(page / 64 * 64 + here.trailing_zeros() as usize);
        }
        let from = page / 64 + 1;
        let (index, word) = self.nonzero_words_from(from).next()?;
        Some(index * 64 + word.trailing_zeros() as usize)
    }

    /// The first run of adjacent pages of the set from `page` on, cut at `len_max` pages.
    pub(crate) fn next_run(&self, page: usize, len_max: usize) -> Option<Range<usize>> {
        let start = self.next(page)?;
        let mut end = start + 1;
        while end - start < len_max && self.has(end) {
            // Whole words at a time where the run is long.
            let whole = end.is_multiple_of(64) && self.words[end / 64] == u64::MAX;
            end += if whole { 64 } else { 1 };
        }
        Some(start..end.min(start.saturating_add(len_max)))
    }

    /// Ranges that cover the set, each beginning and ending with a page of it; between two pages of
    /// one range at most `gap_max` are not in the set.
    pub(crate) fn spans(&self, gap_max: usize, mut visit: impl FnMut(Range<usize>)) {
        let mut open: Option<Range<usize>> = None;
        for (index, word) in self.nonzero_words() {
            let mut rest = word;
            while rest != 0 {
                let page = index * 64 + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                match &mut open {
                    Some(span) if page - span.end <= gap_max => span.end = page + 1,
                    _ => {
                        if let Some(span) = open.replace(page..page + 1) {
                            visit(span);
                        }
                    }
                }
            }
        }
        if let Some(span) = open {
            visit(span);
        }
    }

    /// The runs of adjacent pages of the set from `page` on.
    pub(crate) fn runs(&self, page: usize, mut visit: impl FnMut(Range<usize>)) {
        let mut at = page;
        while let Some(run) = self.next_run(at, usize::MAX) {
            at = run.end;
            visit(run);
        }
    }

    fn nonzero_words(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.nonzero_words_from(0)
    }

    fn nonzero_words_from(&self, from: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.summary
            .iter()
            .enumerate()
            .skip(from / 64)
            .flat_map(move |(at, &summary)| {
                let mut rest = if at == from / 64 {
                    summary & (u64::MAX << (from % 64))
                } else {
                    summary
                };
                std::iter::from_fn(move || {
                    let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                    rest &= rest - 1;
                    Some(at * 64 + bit)
                })
            })
            .map(|index| (index, self.words[index]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BOUND: usize = 20_000;

    fn of(pages: &BTreeSet<usize>) -> Pages {
        let mut set = Pages::none(BOUND);
        pages.iter().for_each(|&page| set.add(page));
        set
    }

    proptest! {
        #[test]
        fn s06_a_set_of_pages_is_what_was_added(
            pages in prop::collection::btree_set(0..BOUND, 0..300),
            more in prop::collection::btree_set(0..BOUND, 0..300),
            gap in 0..200_usize,
            range in (0..BOUND, 0..500_usize),
        ) {
            let mut set = of(&pages);
            prop_assert_eq!(set.count(), pages.len());
            let mut at = 0;
            let mut found = BTreeSet::new();
            while let Some(page) = set.next(at) {
                found.insert(page);
                at = page + 1;
            }
            prop_assert_eq!(&found, &pages);
            let mut covered = BTreeSet::new();
            set.spans(gap, |span| {
                assert!(pages.contains(&span.start) && pages.contains(&(span.end - 1)));
                covered.extend(span.filter(|page| pages.contains(page)));
            });
            prop_assert_eq!(&covered, &pages);
            let mut exact = 0;
            set.spans(0, |span| exact += span.len());
            prop_assert_eq!(exact, pages.len());
            set.add_all(&of(&more));
            let mut both: BTreeSet<usize> = pages.union(&more).copied().collect();
            prop_assert_eq!(&set, &of(&both));
            set.add_range(range.0..range.0 + range.1);
            both.extend((range.0..range.0 + range.1).filter(|&page| page < BOUND));
            prop_assert_eq!(&set, &of(&both));
            set.clear();
            prop_assert_eq!(set, Pages::none(BOUND));
        }
    }

    #[test]
    fn s06_runs_end_where_the_set_or_the_length_does() {
        let mut set = Pages::none(300);
        set.add_range(60..70);
        set.add(299);
        set.add(300);
        assert_eq!(set.next_run(0, 100), Some(60..70));
        assert_eq!(set.next_run(62, 3), Some(62..65));
        assert_eq!(set.next_run(70, 100), Some(299..300));
        assert_eq!(set.next_run(300, 100), None);
        set.add_range(64..256);
        assert_eq!(set.next_run(0, usize::MAX), Some(60..256));
        assert_eq!(set.next_run(0, 80), Some(60..140));
        let mut runs = Vec::new();
        set.runs(61, |run| runs.push(run));
        assert_eq!(runs, [61..256, 299..300]);
    }
}
