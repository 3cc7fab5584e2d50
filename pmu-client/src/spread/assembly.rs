//! Puts a set together from its shares: as many of each group as it takes, data before redundancy, from the units that answer in time.

use std::io;
use std::time::Duration;

use pmu_core::commit::SetState;
use pmu_format::{CHUNK_BYTES, Label, SetNumber, ShareTrailer};
use pmu_stripe::{
    Code, Group, GroupIndex, Placement, Reconstruct, Shard, ShardIndex, ShardSet, UnitIndex,
};

use crate::error::ClientError;
use crate::sets::{SetInfo, SetSink};
use crate::spread::Reach;
use crate::spread::share::{PIECE_BYTES_MAX, Ready, ShareReader};
use crate::spread::window::Windows;

/// Groups that are asked for ahead of the one that is put together, at most.
const GROUPS_AHEAD_MAX: u64 = 64;

/// A member whose share can be used, or why not.
pub(super) type Seat<'a> = std::result::Result<&'a mut ShareReader, String>;

/// Why it ended.
#[derive(Debug)]
pub(super) enum Stop {
    /// Too few members are left.
    TooFew(pmu_core::spread::TooFewUnits),
    /// The sink, or a division that can't be.
    Sink(io::Error),
}

/// See the module.
pub(super) struct Assembly<'a, 'b> {
    pub(super) quorum: pmu_core::spread::Quorum,
    pub(super) placement: Placement,
    pub(super) code: Code,
    /// A unit that sends nothing for so long is done without, if others suffice.
    pub(super) hedge: Duration,
    pub(super) seats: &'b mut [Seat<'a>],
    /// How to compute what is missing, for each way of lacking it.
    pub(super) plans: Vec<(ShardSet, Reconstruct)>,
    /// Shards of the group at hand that have no place in the sink.
    pub(super) shards: Vec<Vec<u8>>,
    pub(super) reconstructed: bool,
}

impl Assembly<'_, '_> {
    /// Reads everything, in order.
    pub(super) fn run(
        &mut self,
        number: SetNumber,
        trailer: &ShareTrailer,
        reach: &dyn Reach,
        sink: &mut impl SetSink,
    ) -> std::result::Result<(), Stop> {
        let info = SetInfo {
            number,
            epoch: trailer.epoch,
            bytes: trailer.segment_bytes,
            committed_ns: 0,
            label: Label::default(),
            state: SetState::Committed,
        };
        sink.begin(&info).map_err(Stop::Sink)?;
        Windows::new(reach).run(self, sink)
    }

    /// Reads one group.
    pub(super) fn group(
        &mut self,
        group: &Group,
        sink: &mut impl SetSink,
    ) -> std::result::Result<(), Stop> {
        let chosen = self.choose(group)?;
        // Small shards lie many in a chunk: no need to look for the next chunk with each of them.
        if group
            .group
            .0
            .is_multiple_of((CHUNK_BYTES / group.shard_len).max(1))
        {
            self.ask_ahead(group.group.0);
        }
        let data = ShardSet::first(self.placement.layout().data_shards());
        if chosen == data {
            self.hand_through(group, sink)
        } else {
            self.compute(group, group.segment.start, sink)
        }
    }

    pub(super) fn do_without(&mut self, failed: Failed) {
        let (UnitIndex(unit), reason) = failed;
        tracing::warn!(unit, reason, "a share is not used any more");
        self.seats[unit] = Err(reason);
    }

    /// The shards to read: data where its unit can be used, else redundancy. A shard without bytes is there anyhow.
    pub(super) fn choose(&self, group: &Group) -> std::result::Result<ShardSet, Stop> {
        let needed = self.placement.layout().data_shards();
        let mut chosen = ShardSet::EMPTY;
        let mut usable = 0;
        for shard in self.placement.shards(group) {
            if self.seats[shard.unit.0].is_ok() || shard.len == 0 {
                usable += 1;
                if chosen.len() < needed {
                    chosen = chosen.with(shard.shard);
                }
            }
        }
        self.quorum.check_read(usable).map_err(Stop::TooFew)?;
        Ok(chosen)
    }

    pub(super) fn ask_ahead(&mut self, from: u64) {
        let to = from.saturating_add(GROUPS_AHEAD_MAX);
        let mut full = vec![false; self.seats.len()];
        for index in from..to.min(self.placement.group_count()) {
            let Some(group) = self.placement.group(GroupIndex(index)) else {
                return;
            };
            let Ok(chosen) = self.choose(&group) else {
                return;
            };
            for shard in self.placement.shards(&group) {
                let UnitIndex(unit) = shard.unit;
                if full[unit] || !chosen.contains(shard.shard) {
                    continue;
                }
                if let Ok(seat) = &mut self.seats[unit] {
                    // An error is met again where the bytes are needed.
                    let range = shard.offset..shard.offset + shard.len;
                    full[unit] = !matches!(seat.ask(range), Ok(true));
                }
            }
            if full
                .iter()
                .zip(self.seats.iter())
                .all(|(full, seat)| *full || seat.is_err())
            {
                return;
            }
        }
    }

    /// All data is there: straight to its place.
    fn hand_through(
        &mut self,
        group: &Group,
        sink: &mut impl SetSink,
    ) -> std::result::Result<(), Stop> {
        let data_shards = self.placement.layout().data_shards();
        for shard in self.placement.shards(group).take(data_shards) {
            let mut done = 0;
            while done < shard.len {
                let now = (shard.len - done).min(PIECE_BYTES_MAX);
                if let Err(failed) = self.pass_on(&shard, done, now as usize, sink)? {
                    // What the sink has of this group so far is right.
                    self.do_without(failed);
                    return self.compute(group, shard.segment.start + done, sink);
                }
                done += now;
            }
        }
        Ok(())
    }

    /// One piece of a data shard into the sink.
    fn pass_on(
        &mut self,
        shard: &Shard,
        done: u64,
        length: usize,
        sink: &mut impl SetSink,
    ) -> std::result::Result<Outcome, Stop> {
        let at = shard.segment.start + done;
        if let Some(place) = sink.place(at, length) {
            return Ok(self.take(shard, done, place));
        }
        let mut bytes = std::mem::take(&mut self.shards[0]);
        bytes.resize(length, 0);
        let taken = self.take(shard, done, &mut bytes);
        let given = match taken {
            Ok(()) => sink.chunk(at, &bytes),
            Err(_) => Ok(()),
        };
        self.shards[0] = bytes;
        given.map_err(Stop::Sink)?;
        Ok(taken)
    }

    /// Reads what a group takes, computes what data is missing, and hands out its bytes from `from` on.
    pub(super) fn compute(
        &mut self,
        group: &Group,
        from: u64,
        sink: &mut impl SetSink,
    ) -> std::result::Result<(), Stop> {
        loop {
            let chosen = self.choose(group)?;
            match self.gather(group, chosen) {
                Err(failed) => self.do_without(failed),
                Ok(()) => {
                    self.fill_in(group, chosen)?;
                    return self.hand_out(group, from, sink).map_err(Stop::Sink);
                }
            }
        }
    }

    /// Reads the chosen shards of a group.
    pub(super) fn gather(&mut self, group: &Group, chosen: ShardSet) -> Outcome {
        let shards: Vec<Shard> = self.placement.shards(group).collect();
        for shard in shards {
            let ShardIndex(index) = shard.shard;
            let mut bytes = std::mem::take(&mut self.shards[index]);
            let mut taken = Ok(());
            if chosen.contains(shard.shard) {
                bytes.resize(shard.len as usize, 0);
                let mut done = 0;
                while done < shard.len && taken.is_ok() {
                    let now = (shard.len - done).min(PIECE_BYTES_MAX) as usize;
                    let place = &mut bytes[done as usize..done as usize + now];
                    taken = self.take(&shard, done, place);
                    done += now as u64;
                }
            } else {
                bytes.clear();
            }
            self.shards[index] = bytes;
            taken?;
        }
        Ok(())
    }

    /// A piece of one shard. The error names the unit that can't be used.
    fn take(&mut self, shard: &Shard, done: u64, bytes: &mut [u8]) -> Outcome {
        let UnitIndex(unit) = shard.unit;
        let hedge = self.patience();
        let Ok(seat) = &mut self.seats[unit] else {
            return Err((shard.unit, "it is not read".to_owned()));
        };
        let taken = piece(seat, shard.offset + done, bytes, hedge);
        taken.map_err(|fault| (shard.unit, fault.reason))
    }

    /// How long to wait for a unit that sends nothing, where the others would do.
    pub(super) fn patience(&self) -> Option<Duration> {
        let usable = self.seats.iter().filter(|seat| seat.is_ok()).count();
        (usable > self.placement.layout().data_shards()).then_some(self.hedge)
    }

    /// Computes the data shards that were not read.
    fn fill_in(&mut self, group: &Group, present: ShardSet) -> std::result::Result<(), Stop> {
        let data_shards = self.placement.layout().data_shards();
        let wanted = ShardSet::first(data_shards).without(present);
        self.reconstruct(group, present, wanted)
    }

    /// Computes shards from those that were read.
    pub(super) fn reconstruct(
        &mut self,
        group: &Group,
        present: ShardSet,
        wanted: ShardSet,
    ) -> std::result::Result<(), Stop> {
        let failed = |error: String| Stop::Sink(io::Error::other(error));
        if wanted.is_empty() {
            return Ok(());
        }
        let plan = self.plan(present, wanted)?;
        for shard in self.placement.shards(group) {
            if wanted.contains(shard.shard) {
                self.shards[shard.shard.0].resize(shard.len as usize, 0);
            }
        }
        let (mut sources, mut targets): (Vec<&[u8]>, Vec<&mut [u8]>) = Default::default();
        for (index, shard) in self.shards.iter_mut().enumerate() {
            if wanted.contains(ShardIndex(index)) {
                targets.push(shard);
            } else if plan.sources().contains(ShardIndex(index)) {
                sources.push(shard);
            }
        }
        plan.apply(&sources, &mut targets)
            .map_err(|error| failed(error.to_string()))
    }

    /// How to compute shards from those that are present.
    pub(super) fn plan(
        &mut self,
        present: ShardSet,
        wanted: ShardSet,
    ) -> std::result::Result<Reconstruct, Stop> {
        self.reconstructed = true;
        let mut known = self.plans.iter();
        if let Some((_, plan)) =
            known.find(|(from, plan)| *from == present && plan.targets() == wanted)
        {
            return Ok(*plan);
        }
        let plan = Reconstruct::of(&self.code, present, wanted)
            .map_err(|error| Stop::Sink(io::Error::other(error.to_string())))?;
        self.plans.push((present, plan));
        Ok(plan)
    }

    /// Gives the group's bytes from `from` on to the sink.
    fn hand_out(&self, group: &Group, from: u64, sink: &mut impl SetSink) -> io::Result<()> {
        let data_shards = self.placement.layout().data_shards();
        for shard in self.placement.shards(group).take(data_shards) {
            let begin = shard.segment.start.max(from);
            if shard.len == 0 || begin >= shard.segment.end {
                continue;
            }
            let bytes = &self.shards[shard.shard.0][(begin - shard.segment.start) as usize..];
            match sink.place(begin, bytes.len()) {
                Some(place) => place.copy_from_slice(bytes),
                None => sink.chunk(begin, bytes)?,
            }
        }
        Ok(())
    }
}

/// The unit that can't be used any more, and why.
type Failed = (UnitIndex, String);
type Outcome = std::result::Result<(), Failed>;

/// Why a piece of a share can't be had.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) reason: String,
    /// What stands there is not what was written; others may be.
    pub(super) is_damage: bool,
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        Self {
            reason: error.to_string(),
            is_damage: error.is_damage(),
        }
    }
}

/// Reads a piece of a share; the error says why its unit can't be used, also where nothing came for the time of the hedge.
pub(super) fn piece(
    seat: &mut ShareReader,
    offset: u64,
    bytes: &mut [u8],
    hedge: Option<Duration>,
) -> std::result::Result<(), Fault> {
    let range = offset..offset + bytes.len() as u64;
    let patience = hedge.unwrap_or_else(|| seat.stall());
    match seat.ready(range, patience)? {
        Ready::Yes => Ok(seat.take(offset, bytes)?),
        Ready::NotFor(waited) if hedge.is_some() => Err(Fault {
            reason: format!("it sent nothing for {} ms", waited.as_millis()),
            is_damage: false,
        }),
        Ready::NotFor(waited) => Err(Fault::from(ClientError::TimedOut {
            what: "reading a share",
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        })),
    }
}
