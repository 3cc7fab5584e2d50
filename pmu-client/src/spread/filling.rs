//! What a rebuild reads, and the member that it works on: of a region of sets, or of a log.

use std::collections::BTreeMap;

use pmu_format::{Membership, Mode, SetNumber};

use crate::error::{ClientError, Result};
use crate::options::OpenOptions;
use crate::region::Parts;
use crate::sets::primary::member::OpenedMember;
use crate::spread::Spread;
use crate::spread::copy::{Course, Pass, Target, kept, pass};
use crate::spread::log::{self, Extent, LogTarget, Sources};
use crate::spread::reader::SpreadReader;
use crate::spread::rebuild::RebuiltUnit;
use crate::spread::share::ShareReader;

/// Passes over the kept sets before the members are changed, and after it, at most: a live primary commits meanwhile, and what it commits
/// after the last one it writes to the new member too, once it has taken it in.
const PASSES_MAX: u32 = 4;

/// The members that are read.
pub(super) enum Reading<'a> {
    Sets(Box<SpreadReader<'a>>),
    Log(Box<Sources>),
}

impl<'a> Reading<'a> {
    /// Opens all that answer.
    pub(super) fn open(spread: &'a Spread, options: &OpenOptions) -> Result<Self> {
        Ok(match spread.mode {
            Mode::Overwrite => Self::Sets(Box::new(spread.open_reader(options)?)),
            Mode::Append => Self::Log(Box::new(Sources::open(
                spread,
                options,
                options.timeouts.hedge,
            )?)),
        })
    }

    /// Reads another unit in the place of a member, if it can be read: the one that was there before.
    pub(super) fn put_in_place(&mut self, index: usize, old: Parts) {
        let put = match self {
            Self::Sets(reader) => ShareReader::open(old).map(|old| reader.members[index] = Ok(old)),
            Self::Log(sources) => sources.put_in_place(index, old),
        };
        if let Err(error) = put {
            tracing::warn!(%error, "the unit that leaves can't be read");
        }
    }

    /// As many units must be read as a take-over has: of a log. What counts of a set lies on enough of any that decide.
    pub(super) fn demand(&mut self, answering_min: usize) -> Result<()> {
        match self {
            Self::Sets(_) => Ok(()),
            Self::Log(sources) => sources.demand(answering_min),
        }
    }

    /// A member is worked on. What a log's member has is looked at by who works on it.
    pub(super) fn spare(&mut self, index: usize) {
        if let Self::Log(sources) = self {
            sources.leave_unread(index);
        }
    }

    /// Bytes that were read of all members.
    pub(super) fn bytes_read(&self) -> u64 {
        match self {
            Self::Sets(reader) => reader.bytes_read(),
            Self::Log(sources) => sources.bytes_read(),
        }
    }

    /// Whether a member lacks something, or knows of an earlier term only. What it has is not read but for its beginning and end.
    pub(super) fn lags(&mut self, index: usize) -> Result<bool> {
        match self {
            Self::Sets(reader) => lags(reader, index),
            Self::Log(sources) => sources.lags(index),
        }
    }
}

/// The member that is worked on. Nobody else writes it as long as this lasts.
pub(super) enum Filling {
    Sets(Box<(Target, Pass)>),
    Log(Box<LogTarget>),
}

impl Filling {
    /// `writer` is the member opened as its primary, `checker` as a backup.
    pub(super) fn of_sets(
        writer: Parts,
        checker: Parts,
        index: usize,
        membership: &Membership,
    ) -> Result<Self> {
        let id = membership.id;
        let target = Target {
            index,
            writer: OpenedMember::look_to_fill(writer, id)?.fill(id)?,
            checker: ShareReader::open(checker)?,
            given: BTreeMap::new(),
        };
        Ok(Self::Sets(Box::new((target, Pass::default()))))
    }

    /// `writer` is the member opened as its primary.
    pub(super) fn of_log(writer: Parts, index: usize, membership: &Membership) -> Result<Self> {
        LogTarget::open(writer, index, membership).map(|target| Self::Log(Box::new(target)))
    }

    /// Gives it what it lacks, until there is nothing left, or a primary is as fast as this. What it was given is durable.
    pub(super) fn fill(
        &mut self,
        reading: &mut Reading<'_>,
        extent: Extent,
        course: &mut Course<'_, '_>,
        given: &mut RebuiltUnit,
    ) -> Result<()> {
        match (self, reading) {
            (Self::Sets(sets), Reading::Sets(reader)) => {
                let (target, last) = &mut **sets;
                *last = fill_sets(reader, target, course, given)?;
                Ok(())
            }
            (Self::Log(target), Reading::Log(sources)) => {
                log::fill(sources, target, extent, course, given)
            }
            _ => Err(other_mode()),
        }
    }

    /// From now on it votes.
    pub(super) fn take_part(&mut self, generation: u64, reading: &Reading<'_>) -> Result<()> {
        match (self, reading) {
            (Self::Sets(sets), Reading::Sets(_)) => {
                let (target, last) = &mut **sets;
                target.writer.take_part(generation, &last.newest, last.held)
            }
            (Self::Log(target), Reading::Log(sources)) => target.take_part(generation, sources),
            _ => Err(other_mode()),
        }
    }
}

fn other_mode() -> ClientError {
    ClientError::Protocol("the mode of a region has changed".into())
}

/// Passes over the kept sets until there is nothing left that the target lacks.
fn fill_sets(
    reader: &mut SpreadReader<'_>,
    target: &mut Target,
    course: &mut Course<'_, '_>,
    given: &mut RebuiltUnit,
) -> Result<Pass> {
    let mut last = Pass::default();
    for _ in 0..PASSES_MAX {
        last = pass(reader, target, course)?;
        given.sets += last.sets;
        given.bytes += last.bytes;
        if last.sets == 0 && !last.is_overtaken {
            break;
        }
    }
    given.newest_set = last.held.get();
    Ok(last)
}

/// Whether a member lacks the share of a kept set, or knows of an earlier term only. What it has is not read but for its beginning and end.
fn lags(reader: &mut SpreadReader<'_>, index: usize) -> Result<bool> {
    let newest = reader.newest()?;
    let id = reader.spread.membership.id;
    let Ok(own) = &mut reader.members[index] else {
        return Ok(true);
    };
    if own.stand(id)?.term() < newest.term() {
        return Ok(true);
    }
    for number in kept(&newest, reader.spread.sets_kept) {
        let Some(term) = newest.term_of(number) else {
            continue;
        };
        // A share that was cut short may have a header and an end.
        let may_lack = reader.members[index]
            .as_ref()
            .is_ok_and(|own| own.may_lack(number));
        match reader.choose(SetNumber(number), term) {
            Ok(chosen) if may_lack || chosen.seats[index].is_err() => return Ok(true),
            Ok(_) | Err(ClientError::NoSuchSet { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
