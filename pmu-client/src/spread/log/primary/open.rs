//! How a log over several units is opened as its primary, and taken over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_core::log::{LogStart, LogWriter};
use pmu_core::spread::{Newest, Tenure, TermOpening};
use pmu_format::{Epoch, LogGeometry, LogPosition, Mode, Term};
use pmu_proto::v1::SessionRole;
use pmu_stripe::Code;

use super::{SpreadLogPrimary, check_alive, record_of};
use crate::error::{ClientError, Result};
use crate::log::primary::PUBLISHES_IN_FLIGHT_MAX;
use crate::log::{LogRecord, RecoveredLog};
use crate::options::OpenOptions;
use crate::spread::log::catch_up::{Goal, Helpers, Shards, bring_up};
use crate::spread::log::kept::Kept;
use crate::spread::log::out::Out;
use crate::spread::log::seat::{LogSeat, Seat};
use crate::spread::log::shards::ShardReader;
use crate::spread::returns::Returns;
use crate::spread::{Spread, SpreadFence, missing};

/// What taking over a log came to.
#[derive(Debug)]
#[non_exhaustive]
pub struct SpreadLogTakeover {
    /// The new primary.
    pub primary: SpreadLogPrimary,
    /// What was recovered.
    pub recovered: RecoveredLog,
    /// What the fence did.
    pub fence: SpreadFence,
    /// From the beginning of the fence until all unread records were handed out.
    pub recovered_after: Duration,
    /// From the beginning of the fence until the new primary could append.
    pub took: Duration,
}

/// What an opening found and decided.
pub(super) struct Opened {
    newest: Newest,
    cursor: LogPosition,
}

impl Spread {
    /// Opens a log as its primary, on all units that answer. Units that missed records get those, and no others.
    ///
    /// # Errors
    /// [`ClientError::WriterExists`] (fence it first, or use [`Self::take_over_log`]); [`ClientError::Fenced`] ([`Self::going_on_from`]);
    /// [`ClientError::TooFewUnits`]; [`ClientError::WrongMode`]; as [`crate::Unit::open_log_primary`].
    pub fn open_log_primary(self, options: &OpenOptions) -> Result<SpreadLogPrimary> {
        SpreadLogPrimary::open(self, options).map(|(primary, _)| primary)
    }

    /// Takes a log over from a primary that has failed: fences it, becomes the primary, and hands every unread record to the visitor, to the
    /// end of the committed log. Records that the old primary had prepared and not published are gone: nobody had a receipt for them.
    ///
    /// # Errors
    /// As [`Self::fence`] and [`Self::open_log_primary`]; [`ClientError::Damaged`] where a record can't be put together; what the visitor
    /// returns.
    pub fn take_over_log(
        self,
        options: &OpenOptions,
        mut visit: impl FnMut(LogRecord<'_>) -> Result<()>,
    ) -> Result<SpreadLogTakeover> {
        let begun = Instant::now();
        let fence = self.fence()?;
        // The primary first: once its term is established, nothing else of the old one is ever visible.
        let (mut primary, opened) = SpreadLogPrimary::open(self, options)?;
        let took = begun.elapsed();
        let recovered = primary.hand_out(&opened, &mut visit)?;
        Ok(SpreadLogTakeover {
            primary,
            recovered,
            fence,
            recovered_after: begun.elapsed(),
            took,
        })
    }

    /// Opens all members that answer: enough to commit. A member that somebody else writes is one that is worked on, if it is not one too
    /// many.
    fn open_seats(&self, options: &OpenOptions, own: Option<Term>) -> Result<Vec<Seat>> {
        let id = self.membership.id;
        let opened = self.on_each_unit(|unit| {
            let options = self.opening(unit.name(), options, own)?;
            let parts = unit.open(&self.name, SessionRole::Primary, Mode::Append, &options)?;
            self.check_opened(&parts)?;
            if own.is_none() {
                self.goes_on_with(unit.name(), parts.epoch);
            }
            LogSeat::open(parts, id)
        });
        let (mut seats, mut held) = (Vec::with_capacity(opened.len()), None);
        for opened in opened {
            seats.push(match opened {
                Ok(seat) => Ok(seat),
                Err(failed) => Err(failed.or_held(&mut held, self.goes_on(own))?),
            });
        }
        check_alive(self, &seats).map_err(|few| held.unwrap_or(few))?;
        Ok(seats)
    }

    /// Proposes a term on all members at the same time.
    fn propose_log(&self, seats: &mut [Seat], newest: &Newest) -> Vec<Option<TermOpening>> {
        let shared: Vec<_> = seats.iter_mut().map(Mutex::new).collect();
        self.on_each(|member, index| {
            let mut guard = shared[index].lock();
            let seat = guard.as_mut().ok()?;
            let opening = self.log_opening(seat, newest);
            match seat.propose(&opening) {
                Ok(()) => Some(opening),
                Err(error) => {
                    **guard = Err(missing(member, &error));
                    None
                }
            }
        })
    }

    pub(super) fn log_opening(&self, seat: &LogSeat, newest: &Newest) -> TermOpening {
        let membership = &self.membership;
        seat.stand
            .opening(membership.id, membership.generation, newest, 0)
    }
}

impl SpreadLogPrimary {
    fn open(spread: Spread, options: &OpenOptions) -> Result<(Self, Opened)> {
        let name = Arc::clone(&spread.name);
        let opened = Self::open_behind(spread, options, None)?;
        opened.ok_or_else(|| ClientError::Protocol(format!("region {name} has no term")))
    }

    /// The same behind a term of its own; none if a later one is known.
    pub(super) fn open_behind(
        spread: Spread,
        options: &OpenOptions,
        own: Option<Term>,
    ) -> Result<Option<(Self, Opened)>> {
        spread.check_mode(Mode::Append)?;
        let mut seats = spread.open_seats(options, own)?;
        let highest = seats.iter().flatten().map(|seat| seat.stand.highest);
        if own.is_some_and(|own| highest.max() > Some(own)) {
            return Ok(None);
        }
        // Only now it is known that nobody has led in between.
        for (index, seat) in seats.iter().enumerate() {
            if let Ok(seat) = seat {
                spread.goes_on_with_member(index, seat.grant().1);
            }
        }
        let (newest, cursor) = spread.judge(&mut seats)?;
        let newest = newest
            .next_term()
            .ok_or_else(|| ClientError::Invalid("no term is left".into()))?;
        let openings = spread.propose_log(&mut seats, &newest);
        check_alive(&spread, &seats)?;
        // Should this be the first term and its primary die at once: blank members have no vote.
        let proposed = spread.quorum.check_decide(seats.iter().flatten().count());
        let absent = seats.iter().filter_map(|seat| seat.as_ref().err());
        proposed.map_err(|what| spread.too_few(what, absent))?;
        let mut reader = spread.log_reader(options.timeouts.stall);
        let mut shards = Shards::new(Code::new(spread.layout));
        let mut outs = Vec::with_capacity(seats.len());
        for (index, opening) in openings.iter().enumerate() {
            let Some(opening) = opening.as_ref().filter(|_| seats[index].is_ok()) else {
                outs.push(None);
                continue;
            };
            let goal = Goal {
                newest: &newest,
                cursor,
            };
            let mut helpers = Helpers {
                names: &spread.names(),
                reader: &mut reader,
                shards: &mut shards,
            };
            let up = bring_up(&mut seats, index, &mut helpers, &goal, opening);
            outs.push(match up {
                Ok(out) => Some(out),
                Err(error) => {
                    spread.names().give_up(&mut seats, index, &error);
                    None
                }
            });
        }
        let opened = Opened { newest, cursor };
        let primary = Self::start(spread, options, (seats, outs), (reader, shards), &opened)?;
        Ok(Some((primary, opened)))
    }

    fn start(
        spread: Spread,
        options: &OpenOptions,
        (seats, mut outs): (Vec<Seat>, Vec<Option<Out>>),
        (reader, shards): (ShardReader, Shards),
        opened: &Opened,
    ) -> Result<Self> {
        check_alive(&spread, &seats)?;
        // A source of another member's records may have failed after its own turn.
        for (out, seat) in outs.iter_mut().zip(&seats) {
            out.take_if(|_| seat.is_err());
        }
        let geometry = LogGeometry::new(spread.share_capacity_bytes)
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        let tail = opened.newest.position();
        let start = LogStart {
            tail,
            cursor: opened.cursor,
        };
        let term = Epoch(opened.newest.term().0);
        let members = seats.len();
        let mut tenure = Tenure::new(members);
        for (index, seat) in seats.iter().enumerate() {
            if let Ok(seat) = seat {
                let (region, epoch) = seat.grant();
                tenure.hold(index, region, epoch);
            }
        }
        let mut primary = Self {
            writer: LogWriter::new(geometry, term, start, PUBLISHES_IN_FLIGHT_MAX),
            kept: Kept::new(tail),
            newest: opened.newest.clone(),
            spread,
            options: *options,
            seats,
            outs,
            reader,
            shards,
            groups: VecDeque::with_capacity(PUBLISHES_IN_FLIGHT_MAX),
            submitted: tail,
            flushed: tail,
            bytes_since_flush: 0,
            gathering_from: tail,
            submitted_unseen: 0,
            prepared: tail.get(),
            tail_sent: tail.get(),
            proofs: Arc::from([]),
            tenure,
            returns: Returns::new(members, options.rejoin),
            recruit: None,
            ended: false,
        };
        primary.collect_proofs();
        Ok(primary)
    }

    /// Hands out everything that was not cleared.
    fn hand_out(
        &mut self,
        opened: &Opened,
        visit: &mut impl FnMut(LogRecord<'_>) -> Result<()>,
    ) -> Result<RecoveredLog> {
        let end = opened.newest.committed;
        let mut position = opened.cursor.get();
        let mut records = 0;
        while position < end {
            let names = self.spread.names();
            let found = self
                .reader
                .read(&mut self.seats, &names, &opened.newest, position, end)?;
            visit(LogRecord {
                record: record_of(&self.spread, &found, true),
                payload: &self.reader.record,
            })?;
            records += 1;
            position = found.end;
        }
        for (out, seat) in self.outs.iter_mut().zip(&mut self.seats) {
            out.take_if(|_| seat.is_err());
            if let Ok(seat) = seat {
                seat.is_up(end);
            }
        }
        check_alive(&self.spread, &self.seats)?;
        self.collect_proofs();
        let tail = LogPosition(end);
        Ok(RecoveredLog {
            cursor: opened.cursor,
            tail,
            end: tail,
            epoch: Epoch(self.newest.term().0),
            records,
            unacknowledged_records: 0,
            cursor_disagreed: false,
            damage: None,
        })
    }
}
