//! Gives a member its share of a set stretch by stretch. A stretch is as short as a processor's cache: what is read is checked, computed with and
//! sent on while it is there. Meanwhile the units send what comes next, which was asked for before, and the member takes what was sent.
//! Memory: one stretch, and what is on its way, whatever the length of the set.

use std::io;
use std::ops::Range;

use pmu_format::PAGE_BYTES;
use pmu_stripe::{Group, GroupIndex, Reconstruct, Shard, ShardSet, UnitIndex};

use crate::error::Result;
use crate::sets::primary::fill::FilledMember;
use crate::spread::Reach;
use crate::spread::assembly::{Assembly, Stop};
use crate::spread::copy::{Course, Halt, compute};
use crate::spread::window::{Cell, Lane, read_in_turn};

/// Bytes of the set in a stretch, at least one group: with what is computed of them, they stay in a processor's own cache.
const STRETCH_BYTES: u64 = 1 << 20;
/// How much of a second's bytes is asked for ahead where there is a rate, as a divisor.
const STRETCHES_PER_S: u64 = 5;

/// One group of a stretch, of which the member has a shard.
struct Step {
    group: Group,
    own: Shard,
    /// How to compute the member's own one from them; none if that is what is read.
    plan: Option<Reconstruct>,
    /// Where those that were read lie in the stretch, in the order of their numbers.
    places: Vec<(Shard, Range<usize>)>,
    /// Some could not be read.
    lacks: bool,
    /// The own shard where it was computed by itself.
    computed: Option<Vec<u8>>,
}

/// Groups that are read at one time, and their bytes.
#[derive(Default)]
struct Stretch {
    steps: Vec<Step>,
    /// From the first page on that begins in it: copies between beginnings of pages are the fastest.
    bytes: Vec<u8>,
    begin: usize,
    /// The own shard of the group at hand.
    own: Vec<u8>,
}

/// Reads what the share of a member takes, computes it and feeds it to `writer`, in order. All but its trailer.
pub(super) fn feed_share(
    reach: &dyn Reach,
    assembly: &mut Assembly<'_, '_>,
    index: usize,
    writer: &mut FilledMember,
    course: &mut Course<'_, '_>,
) -> std::result::Result<(), Halt> {
    let count = assembly.placement.group_count();
    let (length, ahead) = lengths(reach, assembly, course);
    let range = |begin: u64, length: u64| begin..begin.saturating_add(length).min(count);
    let mut stretch = Stretch::default();
    let mut groups = range(0, length);
    while !groups.is_empty() {
        stretch.plan(assembly, groups.clone(), index)?;
        stretch.read(assembly, range(groups.end, ahead), index);
        stretch.complete(assembly, index)?;
        course.advance(stretch.feed(writer)?)?;
        groups = range(groups.end, length);
    }
    Ok(())
}

/// How many groups make a stretch, and how many more are asked for while one is worked on: half of a window, of which each unit sends as much as
/// there is room for. At least one of each; with a rate no more than it gives in a fraction of a second.
fn lengths(reach: &dyn Reach, assembly: &Assembly<'_, '_>, course: &Course<'_, '_>) -> (u64, u64) {
    let Some(group) = assembly.placement.group(GroupIndex(0)) else {
        return (1, 1);
    };
    let group_bytes = group.segment.end.max(1);
    let rate = course.rate_bytes_per_s.filter(|rate| *rate > 0);
    let by_rate = rate.map_or(u64::MAX, |rate| rate / STRETCHES_PER_S / group.shard_len);
    let ahead = (reach.window_bytes() / 2 / group_bytes).min(by_rate).max(1);
    ((STRETCH_BYTES / group_bytes).clamp(1, ahead), ahead)
}

impl Stretch {
    /// What is to be read for these groups. The member's own share, of the one that had its place before or of itself, goes before that
    /// of others: it is shorter.
    fn plan(
        &mut self,
        assembly: &mut Assembly<'_, '_>,
        groups: Range<u64>,
        index: usize,
    ) -> std::result::Result<(), Stop> {
        self.steps.clear();
        let mut used = 0;
        for group in groups {
            let Some(group) = assembly.placement.group(GroupIndex(group)) else {
                break;
            };
            let Some((own, chosen)) = wanted(assembly, &group, index)? else {
                continue;
            };
            let is_own = chosen.contains(own.shard);
            let target = ShardSet::EMPTY.with(own.shard);
            let plan = (!is_own).then(|| assembly.plan(chosen, target));
            let mut places = Vec::with_capacity(chosen.len());
            for shard in assembly.placement.shards(&group) {
                if chosen.contains(shard.shard) {
                    let end = used + shard.len as usize;
                    places.push((shard, used..end));
                    used = end;
                }
            }
            self.steps.push(Step {
                group,
                own,
                plan: plan.transpose()?,
                places,
                lacks: false,
                computed: None,
            });
        }
        let needed = used + PAGE_BYTES as usize;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        let begin = self.bytes.as_ptr().align_offset(PAGE_BYTES as usize);
        self.begin = begin.min(PAGE_BYTES as usize);
        Ok(())
    }

    /// Reads what was planned. Who fails is not read any more, and groups that lack something say so.
    fn read(&mut self, assembly: &mut Assembly<'_, '_>, behind: Range<u64>, index: usize) {
        let groups: Vec<GroupIndex> = self.steps.iter().map(|step| step.group.group).collect();
        let mut lanes = self.deal(assembly.seats.len());
        lanes[index].alone = true;
        for group in behind {
            look_ahead(assembly, GroupIndex(group), index, &mut lanes);
        }
        let hedge = assembly.patience();
        read_in_turn(assembly.seats, hedge, &groups, &mut lanes);
        let mut lacking = Vec::new();
        for (unit, lane) in lanes.into_iter().enumerate() {
            let cells = lane.cells.iter().filter(|cell| !cell.there);
            lacking.extend(cells.map(|cell| cell.shard.group));
            if let Some(reason) = lane.failed {
                assembly.do_without((UnitIndex(unit), reason));
            }
        }
        for step in &mut self.steps {
            step.lacks = lacking.contains(&step.group.group);
        }
    }

    /// Gives each unit the places of its shards.
    fn deal(&mut self, units: usize) -> Vec<Lane<'_>> {
        let mut lanes: Vec<Lane<'_>> = (0..units).map(|_| Lane::default()).collect();
        let mut free = &mut self.bytes[self.begin..];
        for (shard, _) in self.steps.iter().flat_map(|step| &step.places) {
            let (place, rest) = std::mem::take(&mut free).split_at_mut(shard.len as usize);
            free = rest;
            let lane = &mut lanes[shard.unit.0];
            if shard.len > 0 {
                lane.ranges.push(shard.offset..shard.offset + shard.len);
            }
            lane.cells.push(Cell {
                there: shard.len == 0,
                shard: shard.clone(),
                place,
                chosen: true,
            });
        }
        lanes
    }

    /// Computes, one by one, the groups of which something could not be read: from whoever is left.
    fn complete(
        &mut self,
        assembly: &mut Assembly<'_, '_>,
        index: usize,
    ) -> std::result::Result<(), Stop> {
        for step in self.steps.iter_mut().filter(|step| step.lacks) {
            let away = Err("its own share is not whole".to_owned());
            // What is damaged here may be right further on.
            let seat = std::mem::replace(&mut assembly.seats[index], away);
            let computed = compute(assembly, &step.group, &step.own);
            assembly.seats[index] = seat;
            computed?;
            step.computed = Some(assembly.shards[step.own.shard.0].clone());
        }
        Ok(())
    }

    /// Computes the member's shards and gives them to its writer; says how many bytes they are.
    fn feed(&mut self, writer: &mut FilledMember) -> Result<u64> {
        let mut bytes = 0;
        let there = &self.bytes[self.begin..];
        for step in &self.steps {
            let read = |range: &Range<usize>| &there[range.clone()];
            match (&step.computed, &step.plan) {
                (Some(computed), _) => writer.feed(computed)?,
                (None, None) => {
                    let own = step.places.first().map(|(_, range)| read(range));
                    writer.feed(own.unwrap_or_default())?;
                }
                (None, Some(plan)) => {
                    let sources = step.places.iter();
                    let sources = sources.filter(|(shard, _)| plan.sources().contains(shard.shard));
                    let sources: Vec<&[u8]> = sources.map(|(_, range)| read(range)).collect();
                    self.own.resize(step.own.len as usize, 0);
                    plan.apply(&sources, &mut [&mut self.own])
                        .map_err(|error| crate::ClientError::Io {
                            action: "compute a share",
                            source: io::Error::other(error),
                        })?;
                    writer.feed(&self.own)?;
                }
            }
            bytes += step.own.len;
        }
        Ok(bytes)
    }
}

/// The member's shard of a group, and the shards to read for it; none if it has no byte of the group.
fn wanted(
    assembly: &Assembly<'_, '_>,
    group: &Group,
    index: usize,
) -> std::result::Result<Option<(Shard, ShardSet)>, Stop> {
    let mut shards = assembly.placement.shards(group);
    let own = shards.find(|shard| shard.unit.0 == index && shard.len > 0);
    let Some(own) = own else {
        return Ok(None);
    };
    let chosen = match &assembly.seats[index] {
        Ok(_) => ShardSet::EMPTY.with(own.shard),
        Err(_) => assembly.choose(group)?,
    };
    Ok(Some((own, chosen)))
}

/// What units are asked for while the next stretch is not begun yet.
fn look_ahead(
    assembly: &Assembly<'_, '_>,
    group: GroupIndex,
    index: usize,
    lanes: &mut [Lane<'_>],
) {
    let Some(group) = assembly.placement.group(group) else {
        return;
    };
    // An error is met again when its turn comes.
    let Ok(Some((_, chosen))) = wanted(assembly, &group, index) else {
        return;
    };
    for shard in assembly.placement.shards(&group) {
        if chosen.contains(shard.shard) && shard.len > 0 {
            lanes[shard.unit.0]
                .ranges
                .push(shard.offset..shard.offset + shard.len);
        }
    }
}
