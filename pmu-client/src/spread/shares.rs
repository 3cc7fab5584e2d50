//! Shares of one set as streams: each member is read by a thread of its own, a few chunks ahead.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender};

use crate::sets::{SetInfo, SetSink};

/// Chunks that wait for whoever puts the set together, for each member.
pub(super) const CHUNKS_AHEAD: usize = 4;

/// Where a member's thread puts what it reads.
pub(super) struct Sender(pub(super) SyncSender<Vec<u8>>);

impl SetSink for Sender {
    fn begin(&mut self, _: &SetInfo) -> io::Result<()> {
        Ok(())
    }

    fn chunk(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        // Nobody reads on: the set is complete without this member, or can't be completed.
        self.0
            .send(bytes.to_vec())
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A member's share, in order.
pub(super) struct Share {
    receiver: Receiver<Vec<u8>>,
    chunks: VecDeque<Vec<u8>>,
    /// How many bytes of the first chunk are taken.
    taken: usize,
}

/// The share ended before it should: its member is damaged or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CutShort;

impl Share {
    pub(super) const fn new(receiver: Receiver<Vec<u8>>) -> Self {
        Self {
            receiver,
            chunks: VecDeque::new(),
            taken: 0,
        }
    }

    /// Puts the next `count` bytes into `bytes`. Blocks until they are there.
    pub(super) fn take(&mut self, count: usize, bytes: &mut Vec<u8>) -> Result<(), CutShort> {
        bytes.clear();
        while bytes.len() < count {
            let Some(first) = self.chunks.front() else {
                self.chunks
                    .push_back(self.receiver.recv().map_err(|_| CutShort)?);
                continue;
            };
            let left = &first[self.taken..];
            let now = left.len().min(count - bytes.len());
            bytes.extend_from_slice(&left[..now]);
            self.taken += now;
            if self.taken == first.len() {
                self.chunks.pop_front();
                self.taken = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d07_a_share_is_taken_across_its_chunks_and_its_end_is_seen() {
        let (sender, receiver) = std::sync::mpsc::sync_channel(8);
        for chunk in [vec![1, 2, 3], vec![], vec![4], vec![5, 6]] {
            sender.send(chunk).unwrap();
        }
        drop(sender);
        let mut share = Share::new(receiver);
        let mut bytes = Vec::new();
        share.take(4, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        share.take(0, &mut bytes).unwrap();
        assert!(bytes.is_empty());
        assert_eq!(share.take(3, &mut bytes), Err(CutShort));
    }
}
