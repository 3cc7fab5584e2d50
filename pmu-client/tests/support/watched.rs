//! A connection that counts the bytes whose reading was asked for.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "a part of a test")]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pmu_client::{FenceReport, Mode, OpenOptions, Parts, ReachedUnit, RegionInfo, Result};
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, Connection, Counters,
    FabricError, Limits, Op, PersistenceMethod, Provider,
};
use pmu_pmem::LocalMemory;
use pmu_proto::v1::SessionRole;

/// A unit whose connections are watched.
pub struct WatchedUnit {
    pub unit: Box<dyn ReachedUnit>,
    /// Bytes of all reads of at least `bytes_min` that were posted.
    pub asked: Arc<AtomicU64>,
    pub bytes_min: u64,
}

struct Watched {
    inner: Box<dyn Connection>,
    asked: Arc<AtomicU64>,
    bytes_min: u64,
}

impl ReachedUnit for WatchedUnit {
    fn name(&self) -> &str {
        self.unit.name()
    }

    fn describe(&self, region: &str) -> Result<RegionInfo> {
        self.unit.describe(region)
    }

    fn fence(&self, region: &str) -> Result<FenceReport> {
        self.unit.fence(region)
    }

    fn open(
        &self,
        region: &str,
        role: SessionRole,
        mode: Mode,
        options: &OpenOptions,
    ) -> Result<Parts> {
        let parts = self.unit.open(region, role, mode, options)?;
        Ok(Parts {
            connection: Box::new(Watched {
                inner: parts.connection,
                asked: Arc::clone(&self.asked),
                bytes_min: self.bytes_min,
            }),
            ..parts
        })
    }

    fn open_log_backup(&self, region: &str, clear: bool, options: &OpenOptions) -> Result<Parts> {
        self.unit.open_log_backup(region, clear, options)
    }
}

impl Connection for Watched {
    fn provider(&self) -> Provider {
        self.inner.provider()
    }
    fn persistence(&self) -> PersistenceMethod {
        self.inner.persistence()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn set_windows(&mut self, windows: &[AccessWindow]) -> std::result::Result<(), FabricError> {
        self.inner.set_windows(windows)
    }
    fn attach(
        &mut self,
        memory: Arc<LocalMemory>,
    ) -> std::result::Result<AttachedMemory, FabricError> {
        self.inner.attach(memory)
    }
    fn post(&mut self, tag: u64, chain: &Chain) -> std::result::Result<(), FabricError> {
        self.inner.post(tag, chain)?;
        for op in chain.ops() {
            if let Op::Read { local, .. } = op
                && local.length as u64 >= self.bytes_min
            {
                self.asked.fetch_add(local.length as u64, Ordering::SeqCst);
            }
        }
        Ok(())
    }
    fn poll(&mut self, completions: &mut [Completion]) -> std::result::Result<usize, FabricError> {
        self.inner.poll(completions)
    }
    fn wait(&mut self, timeout: Duration) -> std::result::Result<(), FabricError> {
        self.inner.wait(timeout)
    }
    fn arm(&mut self) -> std::result::Result<bool, FabricError> {
        self.inner.arm()
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.inner.event_fd()
    }
    fn dead(&self) -> Option<CompletionStatus> {
        self.inner.dead()
    }
    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}
