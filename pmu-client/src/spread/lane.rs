//! Writes the shares of a set to all members at one time: each takes its own shards from the payload and encodes its own redundancy, so
//! that encoding overlaps with sending, and no member waits for another.

use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use pmu_core::spread::Quorum;
use pmu_stripe::{Code, Group, Placement, Reconstruct, Shard, ShardIndex, ShardSet, UnitIndex};

use crate::error::{ClientError, Result};
use crate::sets::primary::SetPrimary;
use crate::spread::source::Source;
use crate::spread::{MissingUnit, Reach};

/// Bytes of each shard that are encoded, and then sent, while they are in the cache.
const ENCODE_BYTES: usize = 64 << 10;

/// What one member needs for its part; kept from set to set.
#[derive(Debug, Default)]
struct Lane {
    gathered: Vec<u8>,
    redundant: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// How to compute each redundant shard by itself.
    plans: Vec<Reconstruct>,
    data: ShardSet,
}

/// What all have in common.
struct Task<'a> {
    placement: &'a Placement,
    payload: &'a [IoSlice<'a>],
    plans: &'a [Reconstruct],
    data: ShardSet,
    quorum: Quorum,
    members: usize,
    failed: AtomicUsize,
}

impl Lanes {
    pub(super) fn new(code: &Code) -> Result<Self> {
        let layout = code.layout();
        let data = ShardSet::first(layout.data_shards());
        let redundant = layout.data_shards()..layout.units();
        let plans = redundant.map(|index| {
            let wanted = ShardSet::EMPTY.with(ShardIndex(index));
            Reconstruct::of(code, data, wanted)
                .map_err(|error| ClientError::Invalid(error.to_string()))
        });
        Ok(Self {
            lanes: (0..layout.units()).map(|_| Lane::default()).collect(),
            plans: plans.collect::<Result<_>>()?,
            data,
        })
    }

    /// Gives every member that works its shards; says which ones failed. Ends early where too few are left to commit.
    /// No more threads than processors: each takes the groups in order, for some members.
    pub(super) fn feed(
        &mut self,
        reach: &dyn Reach,
        quorum: Quorum,
        members: &mut [std::result::Result<SetPrimary, MissingUnit>],
        placement: &Placement,
        payload: &[IoSlice<'_>],
    ) -> Vec<(usize, ClientError)> {
        let task = Task {
            placement,
            payload,
            plans: &self.plans,
            data: self.data,
            quorum,
            members: members.iter().flatten().count(),
            failed: AtomicUsize::new(0),
        };
        let mut works: Vec<_> = members
            .iter_mut()
            .zip(&mut self.lanes)
            .enumerate()
            .filter_map(|(index, (member, lane))| {
                Some(Work {
                    member: member.as_mut().ok()?,
                    lane,
                    unit: UnitIndex(index),
                    failed: None,
                })
            })
            .collect();
        let share = works.len().div_ceil(reach.threads().max(1)).max(1);
        let threads: Vec<_> = works.chunks_mut(share).map(Mutex::new).collect();
        reach.at_once(threads.len(), &|index| {
            task.feed(&mut threads[index].lock());
        });
        drop(threads);
        let failed = works.into_iter();
        failed
            .filter_map(|work| Some((work.unit.0, work.failed?)))
            .collect()
    }
}

/// A member, and its part.
struct Work<'a> {
    member: &'a mut SetPrimary,
    lane: &'a mut Lane,
    unit: UnitIndex,
    failed: Option<ClientError>,
}

impl Task<'_> {
    /// Gives some members their shards of all groups.
    fn feed(&self, works: &mut [Work<'_>]) {
        let mut source = Source::new(self.payload);
        for group in self.placement.groups() {
            for work in works.iter_mut() {
                if work.failed.is_some() {
                    continue;
                }
                if let Err(error) = work.feed(self, &group, source.clone()) {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    work.failed = Some(error);
                }
            }
            if self.is_lost() {
                return;
            }
            source.skip((group.segment.end - group.segment.start) as usize);
        }
    }

    fn is_lost(&self) -> bool {
        let failed = self.failed.load(Ordering::Relaxed);
        self.quorum.check_commit(self.members - failed).is_err()
    }
}

impl Work<'_> {
    /// Takes the member's shard of a group, whose bytes come next from `source`.
    fn feed(&mut self, task: &Task<'_>, group: &Group, mut source: Source<'_>) -> Result<()> {
        let Some(shard) = task.placement.shard_at(self.unit, group.group) else {
            return Ok(());
        };
        let Lane {
            gathered,
            redundant,
        } = &mut *self.lane;
        if shard.redundant {
            let bytes = (group.segment.end - group.segment.start) as usize;
            let data = source.take(bytes, gathered);
            return encode(self.member, group, &shard, data, task, redundant);
        }
        source.skip((shard.segment.start - group.segment.start) as usize);
        self.member
            .feed_share(source.take(shard.len as usize, gathered))
    }
}

/// Computes a redundant shard of a group piece by piece, and gives it to its member.
fn encode(
    member: &mut SetPrimary,
    group: &Group,
    shard: &Shard,
    data: &[u8],
    task: &Task<'_>,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let plan = &task.plans[shard.shard.0 - task.data.len()];
    let mut shards: [&[u8]; pmu_stripe::UNITS_MAX] = [&[]; pmu_stripe::UNITS_MAX];
    for (slot, shard) in shards.iter_mut().zip(task.placement.shards(group)) {
        if !shard.redundant {
            let begin = (shard.segment.start - group.segment.start) as usize;
            *slot = &data[begin..begin + shard.len as usize];
        }
    }
    buffer.resize(ENCODE_BYTES, 0);
    let length = shard.len as usize;
    for begin in (0..length).step_by(ENCODE_BYTES) {
        let end = (begin + ENCODE_BYTES).min(length);
        let mut parts = shards;
        for part in &mut parts[..task.data.len()] {
            *part = &part[begin.min(part.len())..end.min(part.len())];
        }
        let target = &mut buffer[..end - begin];
        if !is_stale(group) {
            plan.apply(&parts[..task.data.len()], &mut [target])
                .map_err(|error| ClientError::Invalid(error.to_string()))?;
        }
        member.feed_share(&buffer[..end - begin])?;
    }
    Ok(())
}

/// A bug that the simulator plants: the redundancy of the group before is sent again.
pub(super) fn is_stale(group: &Group) -> bool {
    #[cfg(feature = "planted-bugs")]
    return group.group.0 > 0
        && pmu_format::planted::is_planted(pmu_format::planted::Bug::StaleParity);
    #[cfg(not(feature = "planted-bugs"))]
    {
        let _ = group;
        false
    }
}
