//! What is on its way out: bytes copied into staging memory (or lying in registered memory) and not yet posted.
//!
//! Neighbouring bytes become one operation. Nothing here allocates after the start.

use pmu_fabric::{Chain, LocalSlice};

use crate::link::{Link, LinkError, Posted};
use crate::staging::{Registered, StagingRing};

/// Ranges gathered in one chain at most; more are posted as a chain of their own.
const SEGMENTS_MAX: usize = 48;

/// Bytes that lie together on both sides.
#[derive(Debug, Clone, Copy)]
struct Segment {
    remote: u64,
    local: LocalSlice,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    ring: StagingRing,
    segments: Vec<Segment>,
    bytes: u64,
    chain: Chain,
}

impl Outbox {
    pub(crate) fn new(registered: Registered, capacity: usize, link: &Link) -> Self {
        let limits = link.connection().limits();
        Self {
            ring: StagingRing::new(registered, capacity, limits.chains_in_flight_max),
            segments: Vec::with_capacity(SEGMENTS_MAX),
            bytes: 0,
            chain: Chain::with_capacity(SEGMENTS_MAX + 8),
        }
    }

    /// Bytes gathered and not yet posted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if no further range can be gathered before a post.
    pub(crate) fn is_full(&self) -> bool {
        self.segments.len() >= SEGMENTS_MAX
    }

    /// Copies bytes that are meant for `remote` into staging memory, as many as there is room for now; says how many.
    pub(crate) fn stage(&mut self, link: &Link, remote: u64, bytes: &[u8]) -> crate::Result<usize> {
        self.ring.release(link.succeeded());
        let mut done = 0;
        while done < bytes.len() && !self.is_full() {
            let (offset, length) = self.ring.take_some(bytes.len() - done);
            if length == 0 {
                break;
            }
            self.ring
                .registered()
                .put(offset, &bytes[done..done + length])?;
            let local = self.ring.registered().slice(offset, length);
            self.gather(remote + done as u64, local);
            done += length;
        }
        Ok(done)
    }

    /// Gathers bytes that lie in registered memory already.
    pub(crate) fn gather(&mut self, remote: u64, local: LocalSlice) {
        self.bytes += local.length as u64;
        if let Some(last) = self.segments.last_mut()
            && last.local.memory == local.memory
            && last.local.offset + last.local.length == local.offset
            && last.remote + last.local.length as u64 == remote
        {
            last.local.length += local.length;
            return;
        }
        self.segments.push(Segment { remote, local });
    }

    /// Posts what was gathered as the writes of one chain, with what `rest` adds behind them.
    pub(crate) fn post(
        &mut self,
        link: &mut Link,
        rest: impl FnOnce(&mut Chain),
    ) -> Result<Posted, LinkError> {
        self.chain.clear();
        for segment in &self.segments {
            self.chain.write(segment.remote, segment.local);
        }
        rest(&mut self.chain);
        self.segments.clear();
        self.bytes = 0;
        let posted = link.post(&self.chain)?;
        self.ring.release(link.succeeded());
        self.ring.posted(posted.last);
        Ok(posted)
    }

    /// Blocks until some staging memory is free again. What was gathered must have been posted.
    pub(crate) fn wait_for_room(&mut self, link: &mut Link) -> Result<(), LinkError> {
        link.poll()?;
        self.ring.release(link.succeeded());
        if let Some(oldest) = self.ring.oldest() {
            link.wait_for(oldest)?;
            self.ring.release(link.succeeded());
        }
        link.check()
    }

    /// Forgets what was gathered. Its staging memory is free again when everything posted so far has completed.
    pub(crate) fn abandon(&mut self, link: &Link) {
        self.segments.clear();
        self.bytes = 0;
        self.ring.posted(link.posted());
    }
}
