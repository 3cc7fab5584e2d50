//! The initiator's side: what a primary or a backup drives.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pmu_pmem::LocalMemory;

use crate::chain::Chain;
use crate::error::{CompletionStatus, FabricError};
use crate::persistence::{PersistenceMethod, Provider};

/// Access information for a range of virtual addresses. Worthless on any other connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AccessWindow {
    /// First virtual address.
    pub address: u64,
    /// Number of bytes.
    pub length: u64,
    /// Key for writes, reads and atomic writes.
    pub access_key: u32,
    /// Key for flushes; it can write nothing. 0 where the method needs none.
    pub flush_key: u32,
}

impl std::fmt::Debug for AccessWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are secrets of the connection: they never reach a log.
        write!(f, "AccessWindow({:#x}+{})", self.address, self.length)
    }
}

/// Handle of local memory attached to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedMemory(pub(crate) u32);

impl AttachedMemory {
    /// The handle of the memory with this index, counted by the connection: for providers.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Its index.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// The end of one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// What the caller gave to [`Connection::post`].
    pub tag: u64,
    /// How it ended.
    pub status: CompletionStatus,
}

/// Bounds of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Chains in flight at one time.
    pub chains_in_flight_max: usize,
    /// Operations in one chain, after splitting at window borders.
    pub ops_per_chain_max: usize,
}

/// Counts since the connection was made. They don't depend on the noise of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chains posted: doorbells rung for the caller's work.
    pub chains: u64,
    /// Work requests (verbs) or operations (soft) posted.
    pub work_requests: u64,
    /// Completions reaped from the completion queue (verbs) or answers read (soft).
    pub completions: u64,
    /// Doorbells (verbs: posts; soft: send system calls).
    pub doorbells: u64,
    /// Payload bytes written.
    pub bytes_written: u64,
    /// Payload bytes read.
    pub bytes_read: u64,
}

/// Of several connections.
impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            chains: sum.chains + one.chains,
            work_requests: sum.work_requests + one.work_requests,
            completions: sum.completions + one.completions,
            doorbells: sum.doorbells + one.doorbells,
            bytes_written: sum.bytes_written + one.bytes_written,
            bytes_read: sum.bytes_read + one.bytes_read,
        })
    }
}

/// One data connection (a queue pair). One thread drives it at a time; it may move between threads.
///
/// Nothing blocks but [`Connection::wait`]. After start-up nothing allocates.
pub trait Connection: Send {
    /// Which provider this is.
    fn provider(&self) -> Provider;

    /// The method by which `Flush` makes bytes durable here.
    fn persistence(&self) -> PersistenceMethod;

    /// Bounds of this connection.
    fn limits(&self) -> Limits;

    /// Takes over the access information that the unit bound to this connection. Windows are sorted by address by the callee.
    ///
    /// # Errors
    /// [`FabricError::Protocol`] if windows overlap or wrap.
    fn set_windows(&mut self, windows: &[AccessWindow]) -> Result<(), FabricError>;

    /// Registers local memory for use in chains. It stays registered (and alive) until the connection is dropped.
    ///
    /// # Errors
    /// The device refuses the registration.
    fn attach(&mut self, memory: Arc<LocalMemory>) -> Result<AttachedMemory, FabricError>;

    /// Posts a chain; it completes once, with `tag`. Bytes of its writes must stay unchanged until then.
    ///
    /// # Errors
    /// [`FabricError::QueueFull`]: poll first. [`FabricError::InvalidChain`], [`FabricError::OutsideWindows`],
    /// [`FabricError::OutsideMemory`]: nothing was posted. [`FabricError::Dead`]: the connection has ended.
    fn post(&mut self, tag: u64, chain: &Chain) -> Result<(), FabricError>;

    /// Reaps completions without blocking, in the order of posting; returns how many.
    ///
    /// # Errors
    /// A broken device. A dead connection is not an error here: the chains in flight complete with their status, and then 0 is returned.
    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError>;

    /// Blocks until [`Connection::poll`] probably has something, or the time is over. With nothing in flight it waits for the end of the connection.
    ///
    /// # Errors
    /// A broken device.
    fn wait(&mut self, timeout: Duration) -> Result<(), FabricError>;

    /// Prepares for sleeping on [`Connection::event_fd`] in a reactor: true means that poll must be called first.
    ///
    /// # Errors
    /// A broken device.
    fn arm(&mut self) -> Result<bool, FabricError>;

    /// Becomes readable when completions may have arrived, after [`Connection::arm`].
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// Why the connection is dead, if it is.
    fn dead(&self) -> Option<CompletionStatus>;

    /// Chains posted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// Counts since the connection was made.
    fn counters(&self) -> Counters;

    /// The clock that bounds waits. A simulator has its own.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// The clock that dates what is stored. A simulator has its own.
    fn date(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Sleeps for so long, and looks at nothing. A simulator lets its own time pass.
    fn pause(&self, how_long: Duration) {
        std::thread::sleep(how_long);
    }
}

/// Windows sorted by address, and the splitting of ranges at their borders: for providers.
#[derive(Debug, Default)]
pub struct WindowMap {
    windows: Vec<AccessWindow>,
}

impl WindowMap {
    /// Takes the windows of a connection in place of those before.
    ///
    /// # Errors
    /// [`FabricError::Protocol`] if windows overlap or wrap.
    pub fn set(&mut self, windows: &[AccessWindow]) -> Result<(), FabricError> {
        let mut sorted = windows.to_vec();
        sorted.sort_by_key(|window| window.address);
        let mut end = 0u64;
        for window in &sorted {
            let next = window.address.checked_add(window.length);
            match next {
                Some(next) if window.address >= end && window.length > 0 => end = next,
                _ => {
                    return Err(FabricError::Protocol(
                        "access windows overlap or wrap".into(),
                    ));
                }
            }
        }
        self.windows = sorted;
        Ok(())
    }

    /// Calls `each` with (window, address, length, bytes before it) for the pieces of a range, in order.
    ///
    /// # Errors
    /// [`FabricError::OutsideWindows`]: some of the pieces may have been seen.
    pub fn split(
        &self,
        address: u64,
        length: u64,
        mut each: impl FnMut(&AccessWindow, u64, u64, u64),
    ) -> Result<(), FabricError> {
        let outside = FabricError::OutsideWindows { address, length };
        let mut index = self
            .windows
            .partition_point(|window| window.address + window.length <= address);
        let mut done = 0u64;
        while done < length {
            let Some(at) = address.checked_add(done) else {
                return Err(outside);
            };
            match self.windows.get(index) {
                Some(window) if window.address <= at => {
                    let piece = (window.address + window.length - at).min(length - done);
                    each(window, at, piece, done);
                    done += piece;
                    index += 1;
                }
                _ => return Err(outside),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(address: u64, length: u64) -> AccessWindow {
        AccessWindow {
            address,
            length,
            access_key: address as u32,
            flush_key: 0,
        }
    }

    #[test]
    fn p10_ranges_are_split_at_the_borders_of_extents() {
        let mut map = WindowMap::default();
        map.set(&[window(200, 100), window(100, 100), window(400, 10)])
            .unwrap();
        let mut pieces = Vec::new();
        map.split(150, 120, |w, at, length, done| {
            pieces.push((w.access_key, at, length, done));
        })
        .unwrap();
        assert_eq!(pieces, [(100, 150, 50, 0), (200, 200, 70, 50)]);
        for (address, length) in [
            (99, 1),
            (300, 1),
            (290, 20),
            (405, 6),
            (u64::MAX, 2),
            (0, 1),
        ] {
            assert!(
                map.split(address, length, |_, _, _, _| {}).is_err(),
                "{address}+{length}"
            );
        }
        map.split(409, 1, |_, _, _, _| {}).unwrap();
    }

    #[test]
    fn p15_overlapping_or_wrapping_windows_are_refused() {
        let mut map = WindowMap::default();
        assert!(map.set(&[window(0, 10), window(9, 10)]).is_err());
        assert!(map.set(&[window(u64::MAX, 2)]).is_err());
        assert!(map.set(&[window(5, 0)]).is_err());
    }

    #[test]
    fn p16_keys_never_reach_a_log() {
        let text = format!(
            "{:?}",
            AccessWindow {
                address: 1,
                length: 2,
                access_key: 0xdead_beef,
                flush_key: 0xabad_cafe
            }
        );
        assert_eq!(text, "AccessWindow(0x1+2)");
    }
}
