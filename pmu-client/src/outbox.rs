//! What is on its way out: bytes copied into staging memory (or lying in registered memory) and not yet posted.
//!
//! Neighbouring bytes become one operation. Nothing here allocates after the start.

use std::collections::VecDeque;

use pmu_fabric::{AttachedMemory, Chain, LocalSlice};

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

/// Where bytes of shared memory are held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// They were gathered, and not posted yet.
    Gathered,
    /// They are on their way, with the chain of this number.
    Posted(u64),
}

/// Memory that other connections send from too. Positions in the order of its use only grow.
#[derive(Debug)]
struct Shared {
    attached: AttachedMemory,
    /// The first position that was gathered and not posted.
    gathered: Option<u64>,
    /// (number of the chain, first position that it carries).
    in_flight: VecDeque<(u64, u64)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    ring: StagingRing,
    shared: Option<Shared>,
    segments: Vec<Segment>,
    bytes: u64,
    chain: Chain,
}

impl Outbox {
    pub(crate) fn new(registered: Registered, capacity: usize, link: &Link) -> Self {
        let limits = link.connection().limits();
        Self {
            ring: StagingRing::new(registered, capacity, limits.chains_in_flight_max),
            shared: None,
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
        self.shared_posted(posted.last);
        Ok(posted)
    }

    /// Sends from this memory too from now on.
    pub(crate) fn share(&mut self, attached: AttachedMemory, link: &Link) {
        let chains_max = link.connection().limits().chains_in_flight_max;
        self.shared = Some(Shared {
            attached,
            gathered: None,
            in_flight: VecDeque::with_capacity(chains_max + 1),
        });
    }

    /// True after [`Self::share`].
    pub(crate) fn has_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Gathers bytes of the shared memory, which stand at `position` in the order of its use.
    pub(crate) fn gather_shared(
        &mut self,
        remote: u64,
        offset: usize,
        length: usize,
        position: u64,
    ) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        shared.gathered.get_or_insert(position);
        let local = LocalSlice {
            memory: shared.attached,
            offset,
            length,
        };
        self.gather(remote, local);
    }

    /// What holds bytes of the shared memory before `position`.
    pub(crate) fn holds_before(&mut self, link: &Link, position: u64) -> Option<Held> {
        let shared = self.shared.as_mut()?;
        while let Some((serial, begin)) = shared.in_flight.front().copied() {
            if serial > link.succeeded() {
                return (begin < position).then_some(Held::Posted(serial));
            }
            shared.in_flight.pop_front();
        }
        let held = shared.gathered.is_some_and(|begin| begin < position);
        held.then_some(Held::Gathered)
    }

    fn shared_posted(&mut self, serial: u64) {
        if let Some(shared) = &mut self.shared
            && let Some(begin) = shared.gathered.take()
        {
            shared.in_flight.push_back((serial, begin));
        }
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
        self.shared_posted(link.posted());
    }
}
