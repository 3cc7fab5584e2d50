//! Reads a run of groups from all units at one time, each shard straight to its place.

use std::io;
use std::ops::Range;
use std::time::Duration;

use parking_lot::Mutex;
use pmu_format::CHUNK_BYTES;
use pmu_stripe::{Group, GroupIndex, Reconstruct, Shard, ShardSet, UnitIndex};

use crate::sets::SetSink;
use crate::spread::Reach;
use crate::spread::assembly::{Assembly, Fault, Seat, Stop, piece};
use crate::spread::share::{PIECE_BYTES_MAX, ShareReader};

/// A shard of the window, and the place of its bytes.
pub(super) struct Cell<'p> {
    pub(super) shard: Shard,
    pub(super) place: &'p mut [u8],
    /// It is read; else it is to be computed.
    pub(super) chosen: bool,
    pub(super) there: bool,
}

/// What one unit is to give.
#[derive(Default)]
pub(super) struct Lane<'p> {
    pub(super) cells: Vec<Cell<'p>>,
    /// Where in its share those lie that are read, and those of the next window.
    pub(super) ranges: Vec<Range<u64>>,
    /// Nobody else has these bytes: they are waited for, and damage in some is no reason to leave the others.
    pub(super) alone: bool,
    /// The next of the cells, how many ranges were read, and the chunk of the last one.
    next: usize,
    taken: usize,
    chunk: Option<u64>,
    pub(super) failed: Option<String>,
}

/// A group, the shards of it that are read, and how to compute the others.
struct Row<'p> {
    group: Group,
    chosen: ShardSet,
    cells: Vec<Cell<'p>>,
}

/// See the module. Keeps its memory from window to window.
pub(super) struct Windows<'r> {
    reach: &'r dyn Reach,
    /// Redundant shards of the window, where there are such to read.
    redundant: Vec<u8>,
}

impl<'r> Windows<'r> {
    pub(super) fn new(reach: &'r dyn Reach) -> Self {
        Self {
            reach,
            redundant: Vec::new(),
        }
    }

    /// Reads all groups, in order, window by window; one by one where the sink has no place for them.
    pub(super) fn run(
        &mut self,
        assembly: &mut Assembly<'_, '_>,
        sink: &mut impl SetSink,
    ) -> Result<(), Stop> {
        let count = assembly.placement.group_count();
        let first = assembly.placement.group(GroupIndex(0));
        let group_bytes = first.map_or(1, |group| group.segment.end);
        let step = (self.reach.window_bytes() / group_bytes).max(1);
        let mut begin = 0;
        while begin < count {
            let end = (begin + step).min(count);
            let groups = |range: Range<u64>| range.map(GroupIndex);
            let placement = assembly.placement;
            let now: Vec<Group> = groups(begin..end)
                .filter_map(|index| placement.group(index))
                .collect();
            let next: Vec<Group> = groups(end..(end + step).min(count))
                .filter_map(|index| placement.group(index))
                .collect();
            self.window(assembly, &now, &next, sink)?;
            begin = end;
        }
        Ok(())
    }

    fn window(
        &mut self,
        assembly: &mut Assembly<'_, '_>,
        now: &[Group],
        next: &[Group],
        sink: &mut impl SetSink,
    ) -> Result<(), Stop> {
        let (Some(first), Some(last)) = (now.first(), now.last()) else {
            return Ok(());
        };
        let (begin, end) = (first.segment.start, last.segment.end);
        let Some(place) = sink.place(begin, (end - begin) as usize) else {
            return now.iter().try_for_each(|group| assembly.group(group, sink));
        };
        let left = self.fill(assembly, now, next, place)?;
        // Whose unit failed on the way is not read any more: the others suffice, or it ends here.
        left.iter()
            .try_for_each(|group| assembly.compute(group, group.segment.start, sink))
    }

    /// Reads and computes what can be; gives the groups that lack something.
    fn fill(
        &mut self,
        assembly: &mut Assembly<'_, '_>,
        now: &[Group],
        next: &[Group],
        place: &mut [u8],
    ) -> Result<Vec<Group>, Stop> {
        let mut rows = Vec::with_capacity(now.len());
        for group in now {
            rows.push(Row {
                group: group.clone(),
                chosen: assembly.choose(group)?,
                cells: Vec::new(),
            });
        }
        self.make_room(assembly, &rows);
        let mut lanes = deal(assembly, &rows, place, &mut self.redundant);
        for group in next {
            // An error is met again when its turn comes.
            if let Ok(chosen) = assembly.choose(group) {
                look_ahead(assembly, group, chosen, &mut lanes);
            }
        }
        let hedge = assembly.patience();
        read(self.reach, assembly.seats, hedge, now, &mut lanes);
        collect(assembly, &mut rows, lanes);
        Self::compute(self.reach, assembly, rows)
    }

    fn make_room(&mut self, assembly: &Assembly<'_, '_>, rows: &[Row<'_>]) {
        let chosen = rows.iter().flat_map(|row| {
            let shards = assembly.placement.shards(&row.group);
            shards.filter(|shard| shard.redundant && row.chosen.contains(shard.shard))
        });
        let bytes = chosen.map(|shard| shard.len as usize).sum();
        if self.redundant.len() < bytes {
            self.redundant.resize(bytes, 0);
        }
    }

    /// Computes what was not read, several groups at the same time.
    fn compute(
        reach: &dyn Reach,
        assembly: &mut Assembly<'_, '_>,
        rows: Vec<Row<'_>>,
    ) -> Result<Vec<Group>, Stop> {
        let data = ShardSet::first(assembly.placement.layout().data_shards());
        let (mut left, mut work) = (Vec::new(), Vec::new());
        for row in rows {
            let lacking = data.without(row.chosen);
            if row.cells.iter().any(|cell| cell.chosen && !cell.there) {
                left.push(row.group);
            } else if !lacking.is_empty() {
                work.push(Mutex::new((assembly.plan(row.chosen, lacking)?, row)));
            }
        }
        let failed = Mutex::new(None);
        let lanes = reach.threads().max(1).min(work.len());
        reach.at_once(lanes, &|lane| {
            for job in work.iter().skip(lane).step_by(lanes) {
                let (plan, row) = &mut *job.lock();
                if let Err(error) = row.compute(plan) {
                    *failed.lock() = Some(error);
                }
            }
        });
        match failed.into_inner() {
            Some(error) => Err(Stop::Sink(error)),
            None => Ok(left),
        }
    }
}

/// Each thread reads of its own units, in the order of the groups: of all at the same time there are no more than processors, so that
/// bytes come in large pieces and nobody is woken for every small one.
fn read(
    reach: &dyn Reach,
    seats: &mut [Seat<'_>],
    hedge: Option<Duration>,
    groups: &[Group],
    lanes: &mut [Lane<'_>],
) {
    let mut work: Vec<_> = seats
        .iter_mut()
        .zip(lanes)
        .filter(|(_, lane)| !lane.cells.is_empty())
        .filter_map(|(seat, lane)| Some((seat.as_mut().ok()?, lane)))
        .collect();
    let share = work.len().div_ceil(reach.threads().max(1)).max(1);
    let work: Vec<_> = work.chunks_mut(share).map(Mutex::new).collect();
    reach.at_once(work.len(), &|index| {
        let mut seats = work[index].lock();
        for group in groups {
            for (seat, lane) in seats.iter_mut() {
                lane.read(seat, group.group, hedge);
            }
        }
    });
}

/// The same in the caller's thread: of so few bytes that another one would only take them out of its cache.
pub(super) fn read_in_turn(
    seats: &mut [Seat<'_>],
    hedge: Option<Duration>,
    groups: &[GroupIndex],
    lanes: &mut [Lane<'_>],
) {
    for group in groups {
        for (seat, lane) in seats.iter_mut().zip(lanes.iter_mut()) {
            if let Ok(seat) = seat {
                lane.read(seat, *group, hedge);
            }
        }
    }
}

impl Lane<'_> {
    /// Reads its shard of a group, if one is wanted that was not read yet.
    fn read(&mut self, seat: &mut ShareReader, group: GroupIndex, hedge: Option<Duration>) {
        let Some(cell) = self.cells.get_mut(self.next) else {
            return;
        };
        if cell.shard.group != group || self.failed.is_some() {
            return;
        }
        self.next += 1;
        if cell.there || !cell.chosen {
            return;
        }
        // Small shards lie many in a chunk: no need to look for the next one with each of them.
        let chunk = cell.shard.offset / CHUNK_BYTES;
        if self.chunk.replace(chunk) != Some(chunk) {
            ask(seat, self.ranges.get(self.taken..).unwrap_or_default());
        }
        self.taken += 1;
        let hedge = hedge.filter(|_| !self.alone);
        match cell.read(seat, hedge) {
            Ok(()) => cell.there = true,
            Err(fault) if self.alone && fault.is_damage => {}
            Err(fault) => self.failed = Some(fault.reason),
        }
    }
}

impl Cell<'_> {
    fn read(&mut self, seat: &mut ShareReader, hedge: Option<Duration>) -> Result<(), Fault> {
        let mut offset = self.shard.offset;
        for part in self.place.chunks_mut(PIECE_BYTES_MAX as usize) {
            piece(seat, offset, part, hedge)?;
            offset += part.len() as u64;
        }
        Ok(())
    }
}

/// Asks for as many as there is room for. An error is met again where the bytes are needed.
fn ask(seat: &mut ShareReader, ranges: &[Range<u64>]) {
    for range in ranges {
        if !matches!(seat.ask(range.clone()), Ok(true)) {
            return;
        }
    }
}

impl Row<'_> {
    fn compute(&mut self, plan: &Reconstruct) -> io::Result<()> {
        self.cells.sort_unstable_by_key(|cell| cell.shard.shard.0);
        let (mut sources, mut targets): (Vec<&[u8]>, Vec<&mut [u8]>) = Default::default();
        for cell in &mut self.cells {
            if cell.chosen {
                sources.push(cell.place);
            } else {
                targets.push(cell.place);
            }
        }
        plan.apply(&sources, &mut targets).map_err(io::Error::other)
    }
}

/// Gives each unit its shards: data at its place in the set, redundancy one behind the other.
fn deal<'p>(
    assembly: &Assembly<'_, '_>,
    rows: &[Row<'_>],
    mut data: &'p mut [u8],
    mut redundant: &'p mut [u8],
) -> Vec<Lane<'p>> {
    let lanes = assembly.seats.iter().map(|_| Lane::default());
    let mut lanes: Vec<Lane<'_>> = lanes.collect();
    for row in rows {
        for shard in assembly.placement.shards(&row.group) {
            let chosen = row.chosen.contains(shard.shard);
            if shard.redundant && !chosen {
                continue;
            }
            let source = if shard.redundant {
                &mut redundant
            } else {
                &mut data
            };
            let (place, rest) = std::mem::take(source).split_at_mut(shard.len as usize);
            *source = rest;
            lanes[shard.unit.0].cells.push(Cell {
                there: shard.len == 0,
                shard,
                place,
                chosen,
            });
        }
        look_ahead(assembly, &row.group, row.chosen, &mut lanes);
    }
    lanes
}

fn look_ahead(
    assembly: &Assembly<'_, '_>,
    group: &Group,
    chosen: ShardSet,
    lanes: &mut [Lane<'_>],
) {
    for shard in assembly.placement.shards(group) {
        if chosen.contains(shard.shard) && shard.len > 0 {
            let range = shard.offset..shard.offset + shard.len;
            lanes[shard.unit.0].ranges.push(range);
        }
    }
}

/// Gives the shards back to their groups, and takes leave of units that failed.
fn collect<'p>(assembly: &mut Assembly<'_, '_>, rows: &mut [Row<'p>], lanes: Vec<Lane<'p>>) {
    let first = rows.first().map_or(0, |row| row.group.group.0);
    for (unit, lane) in lanes.into_iter().enumerate() {
        for cell in lane.cells {
            let row = (cell.shard.group.0 - first) as usize;
            rows[row].cells.push(cell);
        }
        if let Some(reason) = lane.failed {
            assembly.do_without((UnitIndex(unit), reason));
        }
    }
}
