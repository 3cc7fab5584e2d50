//! Regions without a control service: the unit's half of the soft fabric, windows bound by hand, and connections with faults in them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pmu_client::{Parts, RegionInfo, SessionControl, Timeouts};
use pmu_fabric::soft::{SoftUnit, connect};
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, ConnectToken, Connection,
    ConnectionId, Counters, ExposedExtent, ExposedRegion, FabricError, Limits, Op,
    PersistenceMethod, Provider, UnitFabric, WindowAccess,
};
use pmu_format::{Epoch, Mode, RegionId, SetGeometry, VirtualAddress};
use pmu_pmem::{CreateOptions, LocalMemory, PoolMemory, PoolSpec};

const ADDRESS: u64 = 0x5000_0000_0000;

/// One region in a memory pool behind a soft listener.
pub struct RawRegion {
    pub fabric: SoftUnit,
    pub pool: Arc<PoolMemory>,
    pub info: RegionInfo,
    pub epoch: Arc<AtomicU64>,
    exposed: ExposedRegion,
}

struct Epochs(Arc<AtomicU64>);

impl SessionControl for Epochs {
    fn epoch_now(&self) -> Option<Epoch> {
        Some(Epoch(self.0.load(Ordering::SeqCst)))
    }

    fn close(&self) {}
}

impl RawRegion {
    pub fn sets(sets_kept: u32, capacity_bytes: u64) -> Self {
        let length = SetGeometry::region_bytes_for(capacity_bytes, sets_kept).unwrap();
        let length = length.next_multiple_of(64 << 10);
        let mut raw = Self::new(Mode::Overwrite, length, 1);
        raw.info.sets_kept = sets_kept;
        raw.info.capacity_bytes = capacity_bytes;
        raw
    }

    pub fn log(length: u64) -> Self {
        Self::new(Mode::Append, length, 1)
    }

    /// Lies in as many extents, which stand in the pool in reverse order.
    pub fn new(mode: Mode, length: u64, extents: u64) -> Self {
        let pool = PoolMemory::create(
            &PoolSpec::memory(),
            CreateOptions {
                len: Some(length),
                ..CreateOptions::default()
            },
        )
        .unwrap();
        let pool = Arc::new(pool);
        let extent = length / extents;
        let exposed = ExposedRegion {
            address: ADDRESS,
            pool: Arc::clone(&pool),
            extents: (0..extents)
                .map(|index| ExposedExtent {
                    address: ADDRESS + index * extent,
                    pool_offset: (extents - 1 - index) * extent,
                    length: extent,
                })
                .collect(),
        };
        let fabric = SoftUnit::listen_tcp("127.0.0.1:0").unwrap();
        fabric.expose(&exposed).unwrap();
        let info = RegionInfo::new(
            "raw",
            RegionId([7; 16]),
            mode,
            VirtualAddress(ADDRESS),
            length,
        );
        Self {
            fabric,
            pool,
            info,
            epoch: Arc::new(AtomicU64::new(0)),
            exposed,
        }
    }

    pub fn connect(&self) -> (ConnectionId, Box<dyn Connection>, Vec<AccessWindow>) {
        let token = ConnectToken::random().unwrap();
        let method = PersistenceMethod::Volatile;
        let id = self.fabric.expect(token, method, super::PATIENCE).unwrap();
        let address = self.fabric.address();
        let connection =
            connect(Provider::SoftTcp, &address, token, method, super::PATIENCE).unwrap();
        self.fabric.wait_connected(id, super::PATIENCE).unwrap();
        let access = WindowAccess {
            read: true,
            write: true,
        };
        let length = self.info.length_bytes;
        let windows = self
            .fabric
            .bind(id, self.exposed.address, ADDRESS, length, access)
            .unwrap();
        (id, Box::new(connection), windows)
    }

    /// A session with a new epoch, over whatever `wrap` makes of the connection.
    pub fn parts(&self, wrap: impl FnOnce(Box<dyn Connection>) -> Box<dyn Connection>) -> Parts {
        let (_, connection, windows) = self.connect();
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        Parts {
            connection: wrap(connection),
            windows,
            info: self.info.clone(),
            epoch: Epoch(epoch),
            unit: "raw".into(),
            control: Box::new(Epochs(Arc::clone(&self.epoch))),
            timeouts: Timeouts::default(),
            staging_bytes: 2 << 20,
        }
    }

    pub fn plain(&self) -> Parts {
        self.parts(|connection| connection)
    }
}

/// What happens at a fault point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operations before it take effect, it and everything behind it don't, and nobody hears of it.
    CutBefore,
    /// The whole chain takes effect, and its answer is lost.
    LoseAnswer,
}

/// Counts operations, and cuts the connection at one of them.
pub struct Faulty {
    inner: Box<dyn Connection>,
    fault: Fault,
    /// Operations until the fault.
    left: u64,
    count: Arc<AtomicU64>,
    /// Tag of the chain that met the fault: it and all behind it are lost.
    lost_from: Option<u64>,
    lost: Vec<u64>,
}

impl Faulty {
    /// Cuts at operation number `at` (from 0); counts operations in `count`.
    pub fn new(inner: Box<dyn Connection>, fault: Fault, at: u64, count: Arc<AtomicU64>) -> Self {
        Self {
            inner,
            fault,
            left: at,
            count,
            lost_from: None,
            lost: Vec::new(),
        }
    }

    /// Until what was let through has taken effect.
    fn drain(&mut self) {
        let mut completions = [Completion {
            tag: 0,
            status: CompletionStatus::Flushed,
        }; 16];
        while self.inner.in_flight() > 0 && self.inner.dead().is_none() {
            self.inner.wait(Duration::from_millis(100)).unwrap();
            let count = self.inner.poll(&mut completions).unwrap();
            // What completes now would have been heard of, had it been polled before: all of it is lost.
            self.lost
                .extend(completions[..count].iter().map(|completion| completion.tag));
        }
    }
}

impl Connection for Faulty {
    fn provider(&self) -> Provider {
        self.inner.provider()
    }
    fn persistence(&self) -> PersistenceMethod {
        self.inner.persistence()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn set_windows(&mut self, windows: &[AccessWindow]) -> Result<(), FabricError> {
        self.inner.set_windows(windows)
    }
    fn attach(&mut self, memory: Arc<LocalMemory>) -> Result<AttachedMemory, FabricError> {
        self.inner.attach(memory)
    }

    fn post(&mut self, tag: u64, chain: &Chain) -> Result<(), FabricError> {
        if self.lost_from.is_some() {
            return Err(FabricError::Dead(CompletionStatus::ConnectionLost));
        }
        let ops = chain.ops().len() as u64;
        self.count.fetch_add(ops, Ordering::SeqCst);
        if ops <= self.left {
            self.left -= ops;
            return self.inner.post(tag, chain);
        }
        let through = match self.fault {
            Fault::CutBefore => self.left as usize,
            Fault::LoseAnswer => chain.ops().len(),
        };
        let mut part = Chain::default();
        for op in &chain.ops()[..through] {
            match *op {
                Op::Write { remote, local } => part.write(remote, local),
                Op::Read { remote, local } => part.read(remote, local),
                Op::Flush { remote, length } => part.flush(remote, length),
                Op::AtomicWrite { remote, value } => part.atomic_write(remote, value),
            };
        }
        if through > 0 {
            self.inner.post(tag, &part)?;
        }
        self.lost_from = Some(tag);
        self.drain();
        if !self.lost.contains(&tag) {
            self.lost.push(tag);
        }
        self.lost.sort_unstable();
        Ok(())
    }

    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError> {
        if self.lost_from.is_none() {
            return self.inner.poll(completions);
        }
        let count = self.lost.len().min(completions.len());
        for (slot, tag) in completions.iter_mut().zip(self.lost.drain(..count)) {
            *slot = Completion {
                tag,
                status: CompletionStatus::ConnectionLost,
            };
        }
        Ok(count)
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), FabricError> {
        if self.lost_from.is_some() {
            Ok(())
        } else {
            self.inner.wait(timeout)
        }
    }
    fn arm(&mut self) -> Result<bool, FabricError> {
        self.inner.arm()
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.inner.event_fd()
    }
    fn dead(&self) -> Option<CompletionStatus> {
        self.lost_from
            .map(|_| CompletionStatus::ConnectionLost)
            .or(self.inner.dead())
    }
    fn in_flight(&self) -> usize {
        self.lost.len()
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}
