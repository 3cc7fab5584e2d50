//! A spread region over raw regions, and a program that dies at any of its operations, on all its connections at once.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "a part of a test")]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pmu_client::{
    ClientError, FenceReport, Layout, Mode, OpenOptions, Parts, Reach, ReachedUnit, RegionInfo,
    Result, Spread,
};
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, Connection, Counters,
    FabricError, Limits, Op, PersistenceMethod, Provider,
};
use pmu_format::{Member, Membership, SpreadId};
use pmu_pmem::LocalMemory;
use pmu_proto::v1::SessionRole;

use crate::support::name;
use crate::support::raw::RawRegion;

/// The operations that a program still has before it dies.
#[derive(Clone)]
pub struct Life {
    left: Arc<AtomicU64>,
    used: Arc<AtomicU64>,
}

impl Life {
    pub fn of(operations: u64) -> Self {
        Self {
            left: Arc::new(AtomicU64::new(operations)),
            used: Arc::new(AtomicU64::new(0)),
        }
    }

    /// From now on it has so many operations.
    pub fn ends_in(&self, operations: u64) {
        self.left.store(operations, Ordering::SeqCst);
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// How many of so many operations still happen.
    fn spend(&self, wanted: u64) -> u64 {
        self.used.fetch_add(wanted, Ordering::SeqCst);
        let left = self.left.load(Ordering::SeqCst);
        let spent = left.min(wanted);
        let rest = if spent < wanted { 0 } else { left - spent };
        self.left.store(rest, Ordering::SeqCst);
        spent
    }
}

/// A connection of a mortal program.
struct Mortal {
    inner: Box<dyn Connection>,
    life: Life,
    dead: bool,
    lost: Vec<u64>,
    units: Arc<RawUnits>,
    index: usize,
    /// Posted while the unit was frozen: never heard of again.
    swallowed: usize,
}

impl Mortal {
    fn is_frozen(&self) -> bool {
        self.units.frozen.load(Ordering::SeqCst) >> self.index & 1 == 1
    }
}

impl Connection for Mortal {
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
        if self.dead {
            return Err(FabricError::Dead(CompletionStatus::ConnectionLost));
        }
        if self.is_frozen() || self.swallowed > 0 {
            self.swallowed += 1;
            return Ok(());
        }
        let wanted = chain.ops().len();
        let through = self.life.spend(wanted as u64) as usize;
        if through == wanted {
            return self.inner.post(tag, chain);
        }
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
        self.dead = true;
        // What was let through takes effect; nobody hears of it.
        let mut completions = [Completion {
            tag: 0,
            status: CompletionStatus::Flushed,
        }; 16];
        while self.inner.in_flight() > 0 && self.inner.dead().is_none() {
            self.inner.wait(Duration::from_millis(100)).unwrap();
            let count = self.inner.poll(&mut completions).unwrap();
            self.lost
                .extend(completions[..count].iter().map(|completion| completion.tag));
        }
        if !self.lost.contains(&tag) {
            self.lost.push(tag);
        }
        self.lost.sort_unstable();
        Ok(())
    }

    fn poll(&mut self, completions: &mut [Completion]) -> Result<usize, FabricError> {
        if !self.dead {
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
        if self.dead {
            Ok(())
        } else if self.swallowed > 0 {
            std::thread::sleep(timeout);
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
        self.dead
            .then_some(CompletionStatus::ConnectionLost)
            .or(self.inner.dead())
    }
    fn in_flight(&self) -> usize {
        self.lost.len() + self.swallowed
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// The units, each with one raw region.
pub struct RawUnits {
    pub regions: Vec<RawRegion>,
    membership: Membership,
    /// Units that can't be reached now, as bits.
    pub away: AtomicU32,
    /// Units that take everything and answer nothing from now on, as bits.
    pub frozen: AtomicU32,
}

impl RawUnits {
    pub fn logs(layout: &str, units_min: u8, length: u64) -> Arc<Self> {
        let layout: Layout = layout.parse().unwrap();
        let members = (0..layout.units()).map(|index| Member {
            unit: name(&format!("raw-{index}")),
            address: "nowhere:1".to_owned(),
        });
        Arc::new(Self {
            regions: (0..layout.units())
                .map(|_| RawRegion::log(length))
                .collect(),
            membership: Membership {
                id: SpreadId([5; 16]),
                generation: 1,
                layout: layout.to_bytes(),
                units_min,
                own_index: 0,
                subsegment_bytes: 4096,
                members: members.collect(),
            },
            away: AtomicU32::new(0),
            frozen: AtomicU32::new(0),
        })
    }

    fn info(&self, index: usize) -> RegionInfo {
        let mut info = self.regions[index].info.clone();
        info.membership = Some(Arc::new(Membership {
            own_index: index as u8,
            ..self.membership.clone()
        }));
        info
    }

    /// The region as a program with this life sees it.
    pub fn find(self: &Arc<Self>, life: &Life) -> Spread {
        let reach = RawReach {
            units: Arc::clone(self),
            life: life.clone(),
        };
        Spread::over(&self.info(0), Arc::new(reach)).unwrap()
    }
}

struct RawReach {
    units: Arc<RawUnits>,
    life: Life,
}

struct RawUnit {
    units: Arc<RawUnits>,
    life: Life,
    index: usize,
    name: String,
}

impl Reach for RawReach {
    fn unit(&self, member: &Member) -> Result<Box<dyn ReachedUnit>> {
        let index = self.units.membership.members.iter();
        let index = index.clone().position(|other| other == member).unwrap();
        if self.units.away.load(Ordering::SeqCst) >> index & 1 == 1 {
            return Err(ClientError::Unreachable {
                unit: member.unit.to_string(),
                reason: "it is away".to_owned(),
            });
        }
        Ok(Box::new(RawUnit {
            units: Arc::clone(&self.units),
            life: self.life.clone(),
            index,
            name: member.unit.to_string(),
        }))
    }

    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(work);
    }

    fn random(&self) -> Result<[u8; 16]> {
        Ok([3; 16])
    }
}

impl ReachedUnit for RawUnit {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self, _region: &str) -> Result<RegionInfo> {
        Ok(self.units.info(self.index))
    }

    /// The old primary is dead here: only its epoch is over.
    fn fence(&self, region: &str) -> Result<FenceReport> {
        Err(ClientError::Invalid(format!("{region} has no fence")))
    }

    fn open(
        &self,
        _region: &str,
        _role: SessionRole,
        _mode: Mode,
        options: &OpenOptions,
    ) -> Result<Parts> {
        let (life, units, index) = (self.life.clone(), Arc::clone(&self.units), self.index);
        let mut parts = self.units.regions[self.index].parts(|inner| {
            Box::new(Mortal {
                inner,
                life,
                dead: false,
                lost: Vec::new(),
                units,
                index,
                swallowed: 0,
            })
        });
        parts.timeouts = options.timeouts;
        parts.info = self.units.info(self.index);
        parts.unit = self.name.as_str().into();
        Ok(parts)
    }

    fn open_log_backup(&self, region: &str, _clear: bool, options: &OpenOptions) -> Result<Parts> {
        self.open(region, SessionRole::Backup, Mode::Append, options)
    }
}
