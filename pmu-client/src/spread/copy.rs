//! Gives one member the shares of committed sets that it lacks: its own share computed from those of the others, or taken from the member
//! that it replaces. Each byte that is read of a survivor is read once.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::time::Duration;

use pmu_core::spread::Newest;
use pmu_format::{LogPosition, SetNumber, ShareTrailer};
use pmu_stripe::{Code, Group, Placement, Shard, ShardSet};

use crate::error::{ClientError, Result};
use crate::sets::primary::fill::FilledMember;
use crate::spread::assembly::{Assembly, Stop};
use crate::spread::reader::{Chosen, SpreadReader};
use crate::spread::share::ShareReader;
use crate::spread::{Spread, TRAILER_BYTES, stretch};

/// The longest time in which nobody is asked whether to go on, for the sake of a rate.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// How far a rebuild or scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RebuildProgress {
    /// The set that is worked on; 0 in a log.
    pub set: SetNumber,
    /// Of a log: the record that is worked on.
    pub position: LogPosition,
    /// Bytes done since it began.
    pub bytes_done: u64,
    /// Bytes that are to be done, as far as is known now: a live primary goes on committing.
    pub bytes_total: u64,
}

/// Who is told of progress; [`ControlFlow::Break`] ends the work with [`ClientError::Interrupted`], and what is done stays.
pub type OnProgress<'a> = dyn FnMut(&RebuildProgress) -> ControlFlow<()> + 'a;

/// What a rebuild or scrub is bound by, and what it reports.
pub(super) struct Course<'a, 'b> {
    pub(super) spread_reach: &'a dyn crate::spread::Reach,
    pub(super) rate_bytes_per_s: Option<u64>,
    pub(super) report: &'a mut OnProgress<'b>,
    pub(super) progress: RebuildProgress,
}

impl Course<'_, '_> {
    /// So many bytes more are done.
    pub(super) fn advance(&mut self, bytes: u64) -> Result<()> {
        self.progress.bytes_done += bytes;
        self.progress.bytes_total = self.progress.bytes_total.max(self.progress.bytes_done);
        if let Some(rate) = self.rate_bytes_per_s.filter(|rate| *rate > 0) {
            let mut left = Duration::from_secs_f64(bytes as f64 / rate as f64);
            // Whoever wants it to end does not wait for the rate.
            while left > PAUSE_MAX {
                self.spread_reach.pause(PAUSE_MAX);
                left -= PAUSE_MAX;
                self.tell()?;
            }
            self.spread_reach.pause(left);
        }
        self.tell()
    }

    fn tell(&mut self) -> Result<()> {
        match (self.report)(&self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ClientError::Interrupted),
        }
    }

    /// So many bytes more are to be done, as far as is known now.
    pub(super) fn expect(&mut self, bytes: u64) {
        self.progress.bytes_total = self.progress.bytes_done + bytes;
    }

    pub(super) fn begin(&mut self, set: SetNumber) {
        self.progress.set = set;
    }
}

/// The member that is filled, and a second session that reads what it has.
pub(super) struct Target {
    pub(super) index: usize,
    pub(super) writer: FilledMember,
    pub(super) checker: ShareReader,
    /// What was given to it, durably, since it was opened: nobody else writes it, so that this is not read again.
    pub(super) given: BTreeMap<SetNumber, ShareTrailer>,
}

/// What one pass over the kept sets came to.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// What was committed when it began.
    pub(super) newest: Newest,
    /// Sets that were written, and their bytes.
    pub(super) sets: u32,
    pub(super) bytes: u64,
    /// The newest set that the target holds now.
    pub(super) held: SetNumber,
    /// A primary went on meanwhile, and overwrote a set before it was read.
    pub(super) is_overtaken: bool,
}

/// The numbers of the sets that are kept: one more as long as too few members have published the newest one.
pub(super) fn kept(newest: &Newest, sets_kept: u32) -> RangeInclusive<u64> {
    last_ones(
        newest,
        u64::from(sets_kept) + u64::from(newest.is_unsettled()),
    )
}

/// As [`kept`], and one more where members are missing that may not have published the newest one: that may be overwritten already.
fn kept_perhaps(newest: &Newest, sets_kept: u32) -> RangeInclusive<u64> {
    last_ones(
        newest,
        u64::from(sets_kept) + u64::from(newest.may_be_unsettled()),
    )
}

fn last_ones(newest: &Newest, count: u64) -> RangeInclusive<u64> {
    let first = (newest.committed + 1).saturating_sub(count);
    first.max(1)..=newest.committed
}

fn share_bytes(trailer: &ShareTrailer, spread: &Spread, index: usize) -> Result<u64> {
    let placement = placement(trailer, spread)?;
    Ok(placement.unit_len(pmu_stripe::UnitIndex(index)) + TRAILER_BYTES)
}

pub(super) fn placement(trailer: &ShareTrailer, spread: &Spread) -> Result<Placement> {
    Placement::new(
        spread.layout,
        trailer.segment_bytes,
        trailer.subsegment_bytes,
    )
    .map_err(|error| ClientError::Protocol(error.to_string()))
}

/// Gives the target what it lacks of the sets that are kept now.
///
/// # Errors
/// [`ClientError::TooFewUnits`]: a kept set can't be computed, and which units are missing. [`ClientError::Interrupted`].
pub(super) fn pass(
    reader: &mut SpreadReader<'_>,
    target: &mut Target,
    course: &mut Course<'_, '_>,
) -> Result<Pass> {
    let newest = reader.newest_durable()?;
    let mut pass = Pass {
        newest: newest.clone(),
        ..Pass::default()
    };
    let certain = kept(&newest, reader.spread.sets_kept);
    let mut lacking = Vec::new();
    for number in kept_perhaps(&newest, reader.spread.sets_kept) {
        let number = SetNumber(number);
        match lacks(reader, target, number, &newest) {
            Ok(Some(bytes)) => lacking.push((number, bytes)),
            Ok(None) => pass.held = number,
            Err(error) => {
                gone_or(reader, number, &newest, error)?;
                pass.is_overtaken |= certain.contains(&number.get());
            }
        }
    }
    let bytes: u64 = lacking.iter().map(|(_, bytes)| bytes).sum();
    course.progress.bytes_total = course.progress.bytes_done + bytes;
    for (number, bytes) in lacking {
        course.begin(number);
        let Some(term) = newest.term_of(number.get()) else {
            continue;
        };
        let copied = reader
            .choose(number, term)
            .and_then(|chosen| copy_share(reader, &chosen, target, course));
        match copied {
            Ok(()) => {
                pass.sets += 1;
                pass.bytes += bytes;
                pass.held = pass.held.max(number);
            }
            Err(error) => {
                target.writer.give_up();
                gone_or(reader, number, &newest, error)?;
                pass.is_overtaken |= certain.contains(&number.get());
            }
        }
    }
    Ok(pass)
}

/// A set that is not kept any more, or was taken back with its primary's term, is no loss: a live primary went on since `before` was read.
pub(super) fn gone_or(
    reader: &mut SpreadReader<'_>,
    number: SetNumber,
    before: &Newest,
    error: ClientError,
) -> Result<()> {
    if !matches!(
        error,
        ClientError::TooFewUnits { .. } | ClientError::NoSuchSet { .. }
    ) {
        return Err(error);
    }
    let now = reader.newest()?;
    if still_counts(number, before, &now, reader.spread.sets_kept) {
        return Err(error);
    }
    Ok(())
}

/// Whether a set is kept still, and the same one as before.
pub(super) fn still_counts(
    number: SetNumber,
    before: &Newest,
    now: &Newest,
    sets_kept: u32,
) -> bool {
    let term = now.term_of(number.get());
    kept(now, sets_kept).contains(&number.get()) && term == before.term_of(number.get())
}

/// How many bytes the target's share of a set has if it lacks it; none if it is there and every chunk is right.
fn lacks(
    reader: &mut SpreadReader<'_>,
    target: &mut Target,
    number: SetNumber,
    newest: &Newest,
) -> Result<Option<u64>> {
    let Some(term) = newest.term_of(number.get()) else {
        return Ok(None);
    };
    let chosen = reader.choose(number, term)?;
    let bytes = share_bytes(&chosen.trailer, reader.spread, target.index)?;
    let found = match target.checker.select(number) {
        Ok(found) => found,
        Err(ClientError::Damaged { .. }) => return Ok(Some(bytes)),
        Err(error) => return Err(error),
    };
    let fits = found.filter(|(trailer, set)| {
        trailer.goes_with(&chosen.trailer)
            && usize::from(trailer.own_index) == target.index
            && set.payload_bytes == bytes
    });
    let Some((trailer, _)) = fits else {
        return Ok(Some(bytes));
    };
    if target.given.get(&number) == Some(&trailer) {
        return Ok(None);
    }
    let mut chunk = Vec::new();
    for index in 0..target.checker.chunk_count() {
        match target.checker.check_chunk(index, &mut chunk) {
            Ok(_) => {}
            Err(ClientError::Damaged { .. }) => return Ok(Some(bytes)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Writes the target's share of a set.
pub(super) fn copy_share(
    reader: &mut SpreadReader<'_>,
    chosen: &Chosen,
    target: &mut Target,
    course: &mut Course<'_, '_>,
) -> Result<()> {
    let spread = reader.spread;
    let trailer = &chosen.trailer;
    let placement = placement(trailer, spread)?;
    // A member that missed it may hold another set of this number.
    let mut held = chosen.held.iter().flatten().flatten();
    let set = held.find(|(found, _)| trailer.goes_with(found));
    let (committed_ns, label) = set.map_or_else(Default::default, |(_, set)| {
        (set.committed_nanoseconds, set.label)
    });
    let bytes = share_bytes(trailer, spread, target.index)?;
    target.writer.begin(trailer.number, bytes, label)?;
    let hedge = reader.options.timeouts.hedge;
    let mut seats = reader.take_seats(&chosen.seats);
    let mut assembly = Assembly {
        quorum: spread.quorum,
        placement,
        code: Code::new(spread.layout),
        hedge,
        seats: &mut seats,
        plans: Vec::new(),
        shards: vec![Vec::new(); spread.layout.units()],
        reconstructed: false,
    };
    let reach = spread.reach.as_ref();
    let written = stretch::feed_share(
        reach,
        &mut assembly,
        target.index,
        &mut target.writer,
        course,
    );
    if let Err(stop) = written {
        let reasons: Vec<_> = seats
            .iter()
            .map(|seat| seat.as_ref().err().cloned())
            .collect();
        return Err(match stop {
            Halt::Stop(Stop::TooFew(what)) => spread.too_few(what, &reader.absent(&reasons)),
            Halt::Stop(Stop::Sink(source)) => ClientError::Io {
                action: "compute a share",
                source,
            },
            Halt::Other(error) => error,
        });
    }
    let own = ShareTrailer {
        epoch: target.writer.epoch(),
        own_index: u8::try_from(target.index).unwrap_or(u8::MAX),
        ..*trailer
    };
    target.writer.feed(&own.encode())?;
    target.writer.end(committed_ns)?;
    target.given.insert(trailer.number, own);
    course.advance(TRAILER_BYTES)
}

/// Why copying ended.
pub(super) enum Halt {
    Stop(Stop),
    Other(ClientError),
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<ClientError> for Halt {
    fn from(error: ClientError) -> Self {
        Self::Other(error)
    }
}

/// From K of the others.
pub(super) fn compute(
    assembly: &mut Assembly<'_, '_>,
    group: &Group,
    own: &Shard,
) -> std::result::Result<(), Stop> {
    loop {
        let chosen = assembly.choose(group)?;
        assembly.ask_ahead(group.group.0);
        match assembly.gather(group, chosen) {
            Err(failed) => assembly.do_without(failed),
            Ok(()) => {
                let wanted = ShardSet::EMPTY.with(own.shard);
                return assembly.reconstruct(group, chosen, wanted);
            }
        }
    }
}
