//! Records that are not acknowledged yet: should the members change, they are written again.

use std::collections::VecDeque;

use pmu_format::LogPosition;

/// One record.
#[derive(Debug, Clone, Copy)]
struct One {
    length: usize,
    continues: bool,
    end: LogPosition,
}

/// See the module. Keeps its memory from record to record.
#[derive(Debug)]
pub(super) struct Kept {
    bytes: VecDeque<u8>,
    records: VecDeque<One>,
    /// Where the first of them stands.
    begin: LogPosition,
}

impl Kept {
    pub(super) const fn new(begin: LogPosition) -> Self {
        Self {
            bytes: VecDeque::new(),
            records: VecDeque::new(),
            begin,
        }
    }

    pub(super) fn push(&mut self, record: &[u8], continues: bool, end: LogPosition) {
        self.bytes.extend(record);
        self.records.push_back(One {
            length: record.len(),
            continues,
            end,
        });
    }

    /// What ends there or before is acknowledged.
    pub(super) fn drop_to(&mut self, position: LogPosition) {
        while let Some(first) = self.records.front().filter(|first| first.end <= position) {
            self.bytes.drain(..first.length);
            self.begin = first.end;
            self.records.pop_front();
        }
        if self.records.is_empty() {
            self.begin = self.begin.max(position);
        }
    }

    /// What ends behind it was not taken.
    pub(super) fn cut_to(&mut self, position: LogPosition) {
        while let Some(last) = self.records.back().filter(|last| last.end > position) {
            let length = self.bytes.len() - last.length;
            self.bytes.truncate(length);
            self.records.pop_back();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Where the first record stands; behind the last one if there is none.
    pub(super) const fn begin(&self) -> LogPosition {
        self.begin
    }

    /// Calls `write` with the records of each batch, in order, until it fails.
    pub(super) fn each_batch<E>(
        &mut self,
        mut write: impl FnMut(&[&[u8]]) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes: &[u8] = self.bytes.make_contiguous();
        let mut batch = Vec::new();
        let mut at = 0;
        for record in &self.records {
            batch.push(&bytes[at..at + record.length]);
            at += record.length;
            if !record.continues {
                write(&batch)?;
                batch.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(kept: &mut Kept) -> Vec<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        let done: Result<(), ()> = kept.each_batch(|batch| {
            all.push(batch.iter().map(|record| record.to_vec()).collect());
            Ok(())
        });
        done.unwrap();
        all
    }

    #[test]
    fn d04_what_is_not_acknowledged_is_kept_batch_by_batch() {
        let mut kept = Kept::new(LogPosition(0));
        kept.push(b"one", false, LogPosition(64));
        kept.push(b"two", true, LogPosition(128));
        kept.push(b"three", false, LogPosition(192));
        kept.push(b"four", false, LogPosition(256));
        kept.drop_to(LogPosition(64));
        kept.cut_to(LogPosition(192));
        assert_eq!(kept.begin(), LogPosition(64));
        let expected = vec![vec![b"two".to_vec(), b"three".to_vec()]];
        assert_eq!(batches(&mut kept), expected);
        kept.drop_to(LogPosition(192));
        assert!(batches(&mut kept).is_empty() && kept.bytes.is_empty());
        assert_eq!(kept.begin(), LogPosition(192));
    }
}
