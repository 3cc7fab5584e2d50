//! The bytes of a payload in order, from several slices.

use std::io::IoSlice;

/// See the module.
#[derive(Clone)]
pub(super) struct Source<'a> {
    slices: &'a [IoSlice<'a>],
    /// How many bytes of the first slice are taken.
    taken: usize,
}

impl<'a> Source<'a> {
    pub(super) const fn new(slices: &'a [IoSlice<'a>]) -> Self {
        Self { slices, taken: 0 }
    }

    /// The next bytes: where they lie if that is in one piece, else gathered. There are as many.
    pub(super) fn take<'b>(&mut self, count: usize, gathered: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        self.skip_empty();
        if let Some(first) = self.slices.first()
            && let Some(piece) = first.get(self.taken..self.taken + count)
        {
            self.taken += count;
            return piece;
        }
        gathered.clear();
        while gathered.len() < count {
            self.skip_empty();
            let Some(first) = self.slices.first() else {
                break;
            };
            let left = &first[self.taken..];
            let now = left.len().min(count - gathered.len());
            gathered.extend_from_slice(&left[..now]);
            self.taken += now;
        }
        gathered
    }

    /// Passes over the next bytes. There are as many.
    pub(super) fn skip(&mut self, mut count: usize) {
        while count > 0
            && let Some(first) = self.slices.first()
        {
            let now = count.min(first.len() - self.taken);
            self.taken += now;
            count -= now;
            self.skip_empty();
        }
    }

    fn skip_empty(&mut self) {
        while let Some(first) = self.slices.first()
            && self.taken == first.len()
        {
            self.slices = &self.slices[1..];
            self.taken = 0;
        }
    }
}
