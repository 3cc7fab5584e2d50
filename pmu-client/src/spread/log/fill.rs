//! Gives one member of a log the records that it lacks: its shards, taken from the member that it replaces or computed from those of the others.
//! Each byte that is read of a survivor is read once.
//!
//! A record lands at the position, and with the term, that it has on the others. What the member holds already is checked by what it says itself:
//! in one term a position is written once, so what is there, whole, and of the term that was in force there is right.

use std::time::Duration;

use pmu_core::WordWrite;
use pmu_core::spread::{Newest, TooFewUnits};
use pmu_format::{
    LOG_EPOCH_OFFSET, LOG_TAIL_OFFSET, LogPosition, Membership, RecordShare, SpreadId,
};
use pmu_stripe::Code;

use super::catch_up::Shards;
use super::out::{Out, Place, add_word};
use super::seat::{LogSeat, Seat};
use super::shards::{FoundRecord, ShardReader, shard_of};
use crate::error::{ClientError, Result};
use crate::options::OpenOptions;
use crate::region::Parts;
use crate::spread::copy::Course;
use crate::spread::rebuild::RebuiltUnit;
use crate::spread::{MissingUnit, Spread};

/// Records are made durable, and progress is told, each time that so many bytes are done.
const STEP_BYTES: u64 = 4 << 20;
/// Steps whose bytes are under way at one time.
const STEPS_IN_FLIGHT: usize = 2;
/// Passes to the end of the log, at most: a live primary appends meanwhile.
const PASSES_MAX: u32 = 4;

/// The members of a log, as they are read for another one.
pub(in crate::spread) struct Sources {
    pub(super) spread: Spread,
    pub(super) seats: Vec<Seat>,
    pub(super) reader: ShardReader,
    shards: Shards,
    pub(super) newest: Newest,
    pub(super) cursor: u64,
    /// A member whose word counts and whose bytes do not: it is the one that is worked on.
    unread: Option<usize>,
    /// With fewer nothing is decided.
    answering_min: usize,
}

impl Sources {
    /// Opens all members that answer. One that sends nothing for `patience` is done without, where the others suffice.
    pub(in crate::spread) fn open(
        spread: &Spread,
        options: &OpenOptions,
        patience: Duration,
    ) -> Result<Self> {
        let mut seats = spread.open_to_read(false, options)?;
        let (newest, cursor) = spread.judge(&mut seats)?;
        Ok(Self {
            reader: spread.log_reader(patience),
            shards: Shards::new(Code::new(spread.layout)),
            spread: spread.apart(),
            seats,
            newest,
            cursor: cursor.get(),
            unread: None,
            answering_min: 0,
        })
    }

    /// Reads another unit in the place of a member: the one that was there before.
    pub(in crate::spread) fn put_in_place(&mut self, index: usize, parts: Parts) -> Result<()> {
        let seat = LogSeat::open(parts, self.spread.membership.id)?;
        self.seats[index] = Ok(seat);
        self.judge()
    }

    /// Doesn't read a member any more, though its vote counts.
    pub(in crate::spread) fn leave_unread(&mut self, index: usize) {
        self.unread = Some(index);
        self.mark_unread();
    }

    fn mark_unread(&mut self) {
        if let Some(Ok(seat)) = self.unread.map(|index| &mut self.seats[index]) {
            seat.doubted_to = u64::MAX;
        }
    }

    /// From now on so many members must answer: as many as a take-over has. Records that backups were handed out may lie on so few that a
    /// smaller number misses them.
    pub(in crate::spread) fn demand(&mut self, answering_min: usize) -> Result<()> {
        self.answering_min = answering_min;
        self.judge()
    }

    fn judge(&mut self) -> Result<()> {
        let reached = self.seats.iter().flatten().count();
        if reached < self.answering_min {
            let what = TooFewUnits {
                reached,
                members: self.seats.len(),
                needed: self.answering_min,
                purpose: "change the members",
            };
            return Err(self.spread.too_few(what, self.missing()));
        }
        let (newest, cursor) = self.spread.judge(&mut self.seats)?;
        (self.newest, self.cursor) = (newest, cursor.get());
        self.mark_unread();
        Ok(())
    }

    /// The members that can't be read.
    pub(in crate::spread) fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.seats.iter().filter_map(|seat| seat.as_ref().err())
    }

    /// Bytes that were read of all members.
    pub(in crate::spread) fn bytes_read(&self) -> u64 {
        super::primary::sum_counters(&self.seats).bytes_read
    }

    /// The end of the committed log, when it was looked at last.
    pub(in crate::spread) const fn end(&self) -> u64 {
        self.newest.committed
    }

    /// Looks at all members again: what is committed now, and what was cleared.
    pub(in crate::spread) fn look(&mut self) -> Result<()> {
        let id = self.spread.membership.id;
        let mut posted = Vec::with_capacity(self.seats.len());
        for index in 0..self.seats.len() {
            posted.push(self.with(index, LogSeat::post_look));
        }
        for (index, posted) in posted.into_iter().enumerate() {
            if let Some(posted) = posted {
                self.with(index, |seat| seat.take_look(posted, id));
            }
        }
        self.judge()
    }

    fn with<T>(&mut self, index: usize, work: impl FnOnce(&mut LogSeat) -> Result<T>) -> Option<T> {
        let done = work(self.seats[index].as_mut().ok()?);
        done.map_err(|error| self.spread.names().give_up(&mut self.seats, index, &error))
            .ok()
    }

    /// Whether a member knows of an earlier term than the others, or its log ends earlier. A live primary's member may be told of the end of
    /// the log a little later than others.
    pub(in crate::spread) fn lags(&mut self, index: usize) -> Result<bool> {
        let end = self.end();
        for look in 0..LOOKS_MAX {
            if look > 0 {
                self.spread.reach.pause(PAUSE);
                self.look()?;
            }
            let Ok(seat) = &self.seats[index] else {
                return Ok(true);
            };
            if seat.stand.term() < self.newest.term() {
                return Ok(true);
            }
            if seat.own_to.max(self.cursor) >= end {
                return Ok(false);
            }
            if self.newest.committed == end && look > LOOKS_IDLE {
                // Nobody appends.
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// A record that can't be read any more may have been cleared meanwhile, or undone by a take-over: from where on the log is to be read
    /// then.
    pub(super) fn or_cleared(&mut self, position: u64, error: ClientError) -> Result<u64> {
        if !matches!(
            error,
            ClientError::TooFewUnits { .. } | ClientError::Damaged { .. }
        ) {
            return Err(error);
        }
        let term = self.newest.term();
        self.look()?;
        if self.cursor > position || self.newest.term() != term {
            return Ok(self.newest.valid_to(term, position).max(self.cursor));
        }
        Err(error)
    }

    /// Gives the target the record at a position; where the next one begins.
    fn give(&mut self, target: &mut LogTarget, position: u64) -> Result<u64> {
        let index = target.index;
        let names = self.spread.names();
        let end = self.newest.committed;
        let is_there = |seat: &LogSeat| seat.own_to > position && seat.doubted_to <= position;
        let own = match &self.seats[index] {
            Ok(seat) if is_there(seat) => {
                let (seats, range) = (&mut self.seats, (position, end));
                let own = self
                    .reader
                    .read_own(seats, &names, &self.newest, index, range);
                own.ok()
            }
            _ => None,
        };
        let found = match own {
            Some(found) => found,
            None => self
                .reader
                .read(&mut self.seats, &names, &self.newest, position, end)?,
        };
        let shard_bytes = found.share.shard_bytes();
        let shard = if own.is_some() {
            shard_of(&self.seats[index], position, shard_bytes)
        } else {
            let record = &self.reader.record;
            if index >= self.spread.layout.data_shards() {
                self.shards.encode(record, shard_bytes as usize)?;
            }
            self.shards.of(record, index, shard_bytes as usize)
        };
        target.place(&found, shard)?;
        Ok(found.end)
    }
}

/// How often it is looked whether a member is told of the end of the log, and how long is waited in between; without anybody who appends,
/// only [`LOOKS_IDLE`] times.
const LOOKS_MAX: u32 = 40;
const LOOKS_IDLE: u32 = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// The member that is given what it lacks. Nobody else writes it as long as this lasts.
pub(in crate::spread) struct LogTarget {
    index: usize,
    /// Of all members this one alone.
    seats: Vec<Seat>,
    out: Out,
    /// From here on it is not made durable yet.
    pending: Option<u64>,
    /// Up to here it is.
    done: u64,
    /// From here on it has what counts, up to there; none before anything was looked at.
    begin: Option<u64>,
    /// The term that was in force when it came so far.
    term: pmu_format::Term,
}

impl LogTarget {
    /// `parts` is the member, opened as its primary.
    pub(in crate::spread) fn open(
        parts: Parts,
        index: usize,
        membership: &Membership,
    ) -> Result<Self> {
        let mut seat = LogSeat::open(parts, membership.id)?;
        let out = Out::new(&mut seat, 0)?;
        let members = membership.members.iter();
        let mut seats: Vec<Seat> = members
            .map(|member| {
                Err(MissingUnit {
                    unit: member.unit.as_str().into(),
                    reason: "it is not the one that is worked on".to_owned(),
                })
            })
            .collect();
        seats[index] = Ok(seat);
        Ok(Self {
            index,
            seats,
            out,
            pending: None,
            done: 0,
            begin: None,
            term: pmu_format::Term(0),
        })
    }

    fn seat(&mut self) -> Result<&mut LogSeat> {
        own(&mut self.seats, self.index)
    }

    /// Where its own record at `position` ends, if it has the right one.
    fn holds(&mut self, sources: &Sources, position: u64) -> Option<u64> {
        let newest = &sources.newest;
        newest.term_of(position.saturating_add(1))?;
        let (names, range) = (sources.spread.names(), (position, newest.committed));
        let seats = &mut self.seats;
        let found = sources
            .reader
            .read_own(seats, &names, newest, self.index, range);
        found.ok().map(|found| found.end)
    }

    fn place(&mut self, found: &FoundRecord, shard: &[u8]) -> Result<()> {
        let place = Place {
            position: LogPosition(found.position),
            continues: found.continues,
        };
        let share = RecordShare {
            own_index: self.index as u8,
            ..found.share
        };
        let seat = own(&mut self.seats, self.index)?;
        self.out.place(seat, place, &share, shard)
    }

    /// What stands up to `end` is on its way to be durable.
    fn send(&mut self, end: u64) -> Result<()> {
        let Some(from) = self.pending.take().filter(|from| *from < end) else {
            return Ok(());
        };
        let seat = own(&mut self.seats, self.index)?;
        let pieces = seat.geometry.pieces(LogPosition(from), end - from);
        self.out.send(seat, Some((pieces, end)), None)?;
        while self.out.in_flight() > STEPS_IN_FLIGHT {
            self.out.wait_oldest(seat)?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let seat = own(&mut self.seats, self.index)?;
        while self.out.is_busy() {
            self.out.wait_oldest(seat)?;
        }
        Ok(())
    }

    fn look(&mut self, id: SpreadId) -> Result<()> {
        let seat = self.seat()?;
        let posted = seat.post_look()?;
        seat.take_look(posted, id)
    }

    /// From now on it votes. It has the records, durably. The term comes before the tail: a member that has published something and knows of no
    /// term is taken for a damaged one; and its term's record says where the log ends, too.
    pub(in crate::spread) fn take_part(
        &mut self,
        generation: u64,
        sources: &Sources,
    ) -> Result<()> {
        let (id, newest) = (sources.spread.membership.id, &sources.newest);
        if newest.term().0 > 0 {
            self.look(id)?;
            let seat = self.seat()?;
            let opening = seat.stand.opening(id, generation, newest, 0);
            seat.propose(&opening)?;
            let epoch = seat.region.epoch.get();
            let words = [
                (LOG_TAIL_OFFSET, newest.position().tail_word()),
                (LOG_EPOCH_OFFSET, epoch),
            ];
            let words = words.map(|(offset, value)| WordWrite { offset, value });
            let posted = seat.post_chain(|chain, base| {
                let first = opening.lowered.into_iter().chain([opening.term]);
                first
                    .chain(words)
                    .for_each(|word| add_word(chain, base, word));
            })?;
            seat.wait(posted)?;
        }
        if let Some(reserved) = newest.reservation() {
            self.look(id)?;
            let seat = self.seat()?;
            let opening = seat.stand.opening(id, generation, &reserved, 0);
            seat.propose(&opening)?;
        }
        Ok(())
    }
}

fn own(seats: &mut [Seat], index: usize) -> Result<&mut LogSeat> {
    seats[index]
        .as_mut()
        .map_err(|missing| ClientError::ConnectionLost {
            region: missing.unit.to_string(),
            reason: missing.reason.clone(),
        })
}

/// Which records of the target are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::spread) enum Extent {
    /// All that were not cleared: some may be damaged.
    Whole,
    /// All that were not cleared, up to the first one that is not there: it is new, and an earlier try may have come so far.
    New,
    /// Those behind the end of its own log, up to the first one that is not there: it was away.
    Missed,
}

/// Gives the target what it lacks, up to the end of the committed log. What it has then is durable.
///
/// # Errors
/// [`ClientError::TooFewUnits`], [`ClientError::Damaged`]: a record can't be put together. [`ClientError::Interrupted`]. The target's own.
pub(in crate::spread) fn fill(
    sources: &mut Sources,
    target: &mut LogTarget,
    extent: Extent,
    course: &mut Course<'_, '_>,
    given: &mut RebuiltUnit,
) -> Result<()> {
    let mut is_broken = false;
    let begun = target.done > 0;
    if !begun && extent == Extent::Missed {
        let (term, published) = (target.seat()?.stand.term(), target.seat()?.stand.published);
        target.done = sources.newest.valid_to(term, published);
        target.term = sources.newest.term();
        target.begin = Some(0);
    }
    for pass in 0..PASSES_MAX {
        if pass > 0 {
            sources.look()?;
        }
        // What the last take-over has undone is to be copied anew.
        let kept = sources.newest.valid_to(target.term, target.done);
        let mut from = kept.max(sources.cursor);
        // A clear that too few units had is not seen any more: what was left out for it counts again.
        let is_uncleared = target.begin.is_some_and(|begin| sources.cursor < begin);
        if is_uncleared {
            (from, is_broken) = (sources.cursor, false);
        }
        if is_uncleared || target.begin.is_none() || from > target.done {
            target.begin = Some(from);
        }
        if pass > 0 && from == sources.end() {
            break;
        }
        let mut walk = Walk {
            position: from,
            told: from,
            is_broken,
            extent,
        };
        course.progress.bytes_total = course.progress.bytes_done + sources.end() - from;
        walk.go_to_the_end(sources, target, course, given)?;
        is_broken = walk.is_broken;
        (target.done, target.term) = (walk.position, sources.newest.term());
    }
    target.wait()?;
    given.log_end = Some(target.done);
    Ok(())
}

/// One pass.
struct Walk {
    position: u64,
    /// Up to here progress was told.
    told: u64,
    /// What the target holds broke off.
    is_broken: bool,
    extent: Extent,
}

impl Walk {
    fn go_to_the_end(
        &mut self,
        sources: &mut Sources,
        target: &mut LogTarget,
        course: &mut Course<'_, '_>,
        given: &mut RebuiltUnit,
    ) -> Result<()> {
        target.ready(&sources.newest)?;
        while self.position < sources.end() {
            target.pending.get_or_insert(self.position);
            match self.one(sources, target, given) {
                Ok(next) => self.position = next,
                Err(error) => {
                    target.send(self.position)?;
                    let before = self.position;
                    self.position = sources.or_cleared(before, error)?;
                    if self.position > before {
                        target.begin = Some(self.position);
                    }
                    self.told = self.position;
                    target.ready(&sources.newest)?;
                }
            }
            if self.position.saturating_sub(self.told) >= STEP_BYTES {
                self.tell(target, course)?;
            }
        }
        self.tell(target, course)
    }

    fn tell(&mut self, target: &mut LogTarget, course: &mut Course<'_, '_>) -> Result<()> {
        target.send(self.position)?;
        course.progress.position = LogPosition(self.position);
        let bytes = self.position.saturating_sub(self.told);
        self.told = self.position;
        if bytes == 0 {
            return Ok(());
        }
        course.advance(bytes)
    }

    /// Where the next record begins.
    fn one(
        &mut self,
        sources: &mut Sources,
        target: &mut LogTarget,
        given: &mut RebuiltUnit,
    ) -> Result<u64> {
        if !self.is_broken {
            if let Some(next) = target.holds(sources, self.position) {
                return Ok(next);
            }
            target.seat()?;
            self.is_broken = self.extent != Extent::Whole;
        }
        let next = sources.give(target, self.position)?;
        given.bytes += next - self.position;
        *given.records.get_or_insert(0) += 1;
        Ok(next)
    }
}

impl LogTarget {
    /// Gets ready to be looked at: whatever is there is checked.
    fn ready(&mut self, newest: &Newest) -> Result<()> {
        let seat = self.seat()?;
        seat.forget();
        (seat.own_to, seat.valid_to, seat.doubted_to) = (newest.committed, newest.committed, 0);
        Ok(())
    }
}
