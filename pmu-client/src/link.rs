//! A data connection as the executor sees it: posts chains, cuts those that are too long, reaps completions, waits with a bound.
//! It decides nothing about what chains mean.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, Connection, Counters,
    FabricError, LocalSlice, Op,
};
use pmu_pmem::LocalMemory;

use crate::options::Timeouts;

/// Payload bytes of one posted chain at most.
const CHAIN_PAYLOAD_BYTES_MAX: u64 = 256 << 20;
/// Completions reaped at a time.
const COMPLETIONS_AT_ONCE: usize = 64;

/// Where a chain stands in the order of posting: the chains (more than one if it was cut) that carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Posted {
    /// Number of the first, from 1.
    pub(crate) first: u64,
    /// Number of the last.
    pub(crate) last: u64,
}

/// Why a chain didn't succeed.
#[derive(Debug)]
pub(crate) enum LinkError {
    /// A chain has failed, and so does everything behind it.
    Failed { status: CompletionStatus },
    /// No completion for too long.
    Stalled { waited: Duration },
    /// The caller's or the machine's fault; nothing was posted.
    Fabric(FabricError),
}

impl From<FabricError> for LinkError {
    fn from(error: FabricError) -> Self {
        Self::Fabric(error)
    }
}

/// See the module.
pub(crate) struct Link {
    connection: Box<dyn Connection>,
    /// (first address, end) of each window, sorted.
    windows: Vec<(u64, u64)>,
    posted: u64,
    succeeded: u64,
    failure: Option<CompletionStatus>,
    stall: Duration,
    spin: Duration,
    progress_at: Instant,
    part: Chain,
    reaped: [Completion; COMPLETIONS_AT_ONCE],
}

impl std::fmt::Debug for Link {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Link")
            .field("posted", &self.posted)
            .field("succeeded", &self.succeeded)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Takes over a connection that nothing was posted on yet, and gives it its windows.
    pub(crate) fn new(
        mut connection: Box<dyn Connection>,
        windows: &[AccessWindow],
        timeouts: &Timeouts,
    ) -> Result<Self, FabricError> {
        connection.set_windows(windows)?;
        let mut borders: Vec<_> = windows
            .iter()
            .map(|window| (window.address, window.address.saturating_add(window.length)))
            .collect();
        borders.sort_unstable();
        let progress_at = connection.now();
        let part = Chain::with_capacity(connection.limits().ops_per_chain_max);
        let nothing = Completion {
            tag: 0,
            status: CompletionStatus::Flushed,
        };
        Ok(Self {
            connection,
            windows: borders,
            posted: 0,
            succeeded: 0,
            failure: None,
            stall: timeouts.stall,
            spin: timeouts.spin,
            progress_at,
            part,
            reaped: [nothing; COMPLETIONS_AT_ONCE],
        })
    }

    /// The clock that bounds waits.
    pub(crate) fn now(&self) -> Instant {
        self.connection.now()
    }

    /// Sleeps on that clock.
    pub(crate) fn pause(&self, how_long: Duration) {
        self.connection.pause(how_long);
    }

    pub(crate) fn connection(&self) -> &dyn Connection {
        &*self.connection
    }

    pub(crate) fn counters(&self) -> Counters {
        self.connection.counters()
    }

    pub(crate) fn attach(
        &mut self,
        memory: Arc<LocalMemory>,
    ) -> Result<AttachedMemory, FabricError> {
        self.connection.attach(memory)
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.connection.event_fd()
    }

    /// Prepares for sleeping on the event file descriptor; true if [`Self::poll`] must come first.
    pub(crate) fn arm(&mut self) -> Result<bool, LinkError> {
        Ok(self.connection.arm()?)
    }

    /// How many chains were posted.
    pub(crate) fn posted(&self) -> u64 {
        self.posted
    }

    /// The number of the newest chain up to which all have succeeded.
    pub(crate) fn succeeded(&self) -> u64 {
        self.succeeded
    }

    /// True once a chain has failed, or the connection is dead: no chain will succeed any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.failure.is_some() || self.connection.dead().is_some()
    }

    /// The error of the first failed chain, if one failed.
    pub(crate) fn check(&self) -> Result<(), LinkError> {
        match self.failure {
            Some(status) => Err(LinkError::Failed { status }),
            None => Ok(()),
        }
    }

    /// Posts a chain, in as many parts as the limits of the connection demand. Waits for completions only while the queue is full.
    pub(crate) fn post(&mut self, chain: &Chain) -> Result<Posted, LinkError> {
        let first = self.posted + 1;
        if self.fits(chain) {
            self.post_part(chain)?;
        } else {
            self.post_in_parts(chain)?;
        }
        Ok(Posted {
            first,
            last: self.posted,
        })
    }

    fn fits(&self, chain: &Chain) -> bool {
        let ops_max = self.connection.limits().ops_per_chain_max;
        let pieces: usize = match self.windows.len() {
            1 => chain.ops().len(),
            _ => chain.ops().iter().map(|op| self.pieces(op)).sum(),
        };
        pieces <= ops_max && chain.payload_bytes() <= CHAIN_PAYLOAD_BYTES_MAX
    }

    /// Into how many operations the windows' borders cut this one.
    fn pieces(&self, op: &Op) -> usize {
        let (address, length) = range_of(op);
        let end = address.saturating_add(length);
        let first = self.windows.partition_point(|window| window.1 <= address);
        self.windows[first..]
            .iter()
            .take_while(|window| window.0 < end)
            .count()
            .max(1)
    }

    fn post_in_parts(&mut self, chain: &Chain) -> Result<(), LinkError> {
        let mut part = std::mem::take(&mut self.part);
        let result = self.post_ops(chain, &mut part);
        part.clear();
        self.part = part;
        result
    }

    /// A chain that is cut anywhere is still one of the grammar, and means the same: chains of a connection complete in order, and
    /// an atomic write waits for every flush posted before it.
    fn post_ops(&mut self, chain: &Chain, part: &mut Chain) -> Result<(), LinkError> {
        let ops_max = self.connection.limits().ops_per_chain_max.max(1);
        let mut used = 0;
        for op in chain.ops() {
            let mut rest = Some(*op);
            while let Some(op) = rest.take() {
                let room_ops = ops_max - used;
                let room_bytes = CHAIN_PAYLOAD_BYTES_MAX.saturating_sub(part.payload_bytes());
                let (now, later) = self.cut(op, room_ops, room_bytes);
                if let Some(now) = now {
                    used += self.pieces(&now);
                    push(part, now);
                }
                rest = later;
                if rest.is_some() {
                    self.post_part(part)?;
                    part.clear();
                    used = 0;
                }
            }
        }
        if part.is_empty() {
            Ok(())
        } else {
            self.post_part(part)
        }
    }

    /// What of an operation fits, and what is left for the next chain.
    fn cut(&self, op: Op, room_ops: usize, room_bytes: u64) -> (Option<Op>, Option<Op>) {
        let (address, length) = range_of(&op);
        let payload = matches!(op, Op::Write { .. } | Op::Read { .. });
        if room_ops == 0 || (payload && room_bytes == 0) {
            return (None, Some(op));
        }
        let mut fitting = if payload {
            length.min(room_bytes)
        } else {
            length
        };
        let first = self.windows.partition_point(|window| window.1 <= address);
        if let Some(window) = self.windows[first..].get(room_ops - 1) {
            fitting = fitting.min(window.1.saturating_sub(address));
        }
        if fitting >= length || matches!(op, Op::AtomicWrite { .. }) {
            return (Some(op), None);
        }
        (
            Some(sub(op, 0, fitting)),
            Some(sub(op, fitting, length - fitting)),
        )
    }

    fn post_part(&mut self, chain: &Chain) -> Result<(), LinkError> {
        loop {
            self.check()?;
            if self.posted == self.succeeded {
                self.progress_at = self.now();
            }
            match self.connection.post(self.posted + 1, chain) {
                Ok(()) => {
                    self.posted += 1;
                    return Ok(());
                }
                Err(FabricError::QueueFull) => self.wait_for(self.succeeded + 1)?,
                Err(FabricError::Dead(status)) => {
                    self.poll()?;
                    self.check()?;
                    // Nothing of ours was in flight: the connection died by itself, and this chain was never posted.
                    self.failure = Some(status);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the connection has ended, looking if nothing is under way that would tell.
    pub(crate) fn check_idle(&mut self) -> Result<(), LinkError> {
        if self.posted == self.succeeded && self.connection.dead().is_none() {
            self.connection.wait(Duration::ZERO)?;
        }
        self.check()?;
        match self.connection.dead() {
            Some(status) => Err(LinkError::Failed { status }),
            None => Ok(()),
        }
    }

    /// Reaps what has completed, without blocking.
    pub(crate) fn poll(&mut self) -> Result<(), LinkError> {
        loop {
            let count = self.connection.poll(&mut self.reaped)?;
            for completion in &self.reaped[..count] {
                match completion.status {
                    _ if self.failure.is_some() => {}
                    CompletionStatus::Success => self.succeeded = completion.tag,
                    status => self.failure = Some(status),
                }
            }
            if count > 0 {
                self.progress_at = self.now();
            }
            if count < self.reaped.len() {
                return Ok(());
            }
        }
    }

    /// Blocks until all chains up to this number have succeeded.
    ///
    /// Looks on for a short while before it sleeps: a round trip is over sooner than a sleeping thread is awake again. Others that want the
    /// processor get it in between.
    pub(crate) fn wait_for(&mut self, serial: u64) -> Result<(), LinkError> {
        let look_until = self.now() + self.spin;
        loop {
            self.poll()?;
            if self.succeeded >= serial {
                return Ok(());
            }
            self.check()?;
            if !self.spin.is_zero() && self.now() < look_until {
                std::thread::yield_now();
            } else {
                self.sleep(self.stall)?;
            }
        }
    }

    /// The same for `patience` at most; false if that is over.
    pub(crate) fn wait_at_most(
        &mut self,
        serial: u64,
        patience: Duration,
    ) -> Result<bool, LinkError> {
        let until = self.now() + patience;
        loop {
            self.poll()?;
            if self.succeeded >= serial {
                return Ok(true);
            }
            self.check()?;
            let left = until.saturating_duration_since(self.now());
            if left.is_zero() {
                return Ok(false);
            }
            self.sleep(left)?;
        }
    }

    /// Blocks until something may have completed, `timeout` is over, or nothing has completed for too long.
    pub(crate) fn sleep(&mut self, timeout: Duration) -> Result<(), LinkError> {
        let waited = self.now().saturating_duration_since(self.progress_at);
        let Some(left) = self
            .stall
            .checked_sub(waited)
            .filter(|left| !left.is_zero())
        else {
            return Err(LinkError::Stalled { waited });
        };
        Ok(self.connection.wait(left.min(timeout))?)
    }
}

fn range_of(op: &Op) -> (u64, u64) {
    match *op {
        Op::Write { remote, local } | Op::Read { remote, local } => (remote, local.length as u64),
        Op::Flush { remote, length } => (remote, length),
        Op::AtomicWrite { remote, .. } => (remote, 8),
    }
}

fn sub(op: Op, offset: u64, length: u64) -> Op {
    let part = |local: LocalSlice| LocalSlice {
        offset: local.offset + offset as usize,
        length: length as usize,
        ..local
    };
    match op {
        Op::Write { remote, local } => Op::Write {
            remote: remote + offset,
            local: part(local),
        },
        Op::Read { remote, local } => Op::Read {
            remote: remote + offset,
            local: part(local),
        },
        Op::Flush { remote, .. } => Op::Flush {
            remote: remote + offset,
            length,
        },
        atomic @ Op::AtomicWrite { .. } => atomic,
    }
}

fn push(chain: &mut Chain, op: Op) {
    match op {
        Op::Write { remote, local } => chain.write(remote, local),
        Op::Read { remote, local } => chain.read(remote, local),
        Op::Flush { remote, length } => chain.flush(remote, length),
        Op::AtomicWrite { remote, value } => chain.atomic_write(remote, value),
    };
}
