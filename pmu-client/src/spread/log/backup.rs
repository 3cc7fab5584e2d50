//! Reading a log over several units beside its live primary, clearing what was read, and fetching the unread rest after the primary's end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pmu_core::log::{ClearPlan, RecordMark};
use pmu_core::spread::Newest;
use pmu_fabric::Counters;
use pmu_format::{Epoch, LogPosition, Mode};

use super::out::{add_flush, add_word};
use super::primary::{record_of, sum_counters};
use super::said;
use super::seat::{LogSeat, Seat};
use super::shards::ShardReader;
use crate::error::{Attempt, ClientError, Result};
use crate::log::{Entry, Flow, LogRecord, Records, RecoveredLog};
use crate::options::OpenOptions;
use crate::spread::change::{Followed, may_be_a_change};
use crate::spread::{MissingUnit, Spread, missing};

/// The reader of a log over several units, and the one who clears it.
///
/// It reads data shards alone while all units answer; what missing, damaged or slow units held is computed from the others. Beside a live
/// primary it hands out only records that no take-over can undo. Each record is handed out once by a handle; what was not cleared is handed
/// out again by the next one. A record's epoch is its writer's term.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block as those of [`crate::LogBackup`]; a unit that sends nothing for
/// [`crate::Timeouts::hedge`] is done without where the others suffice. Memory: a window over the log for each unit, and the longest record.
pub struct SpreadLogBackup {
    spread: Spread,
    options: OpenOptions,
    may_clear: bool,
    seats: Vec<Seat>,
    reader: ShardReader,
    newest: Newest,
    /// Up to here records may be handed out.
    limit: LogPosition,
    /// The next record to be handed out.
    position: LogPosition,
    /// Up to here the log is known to be cleared: on so many members that no later reader misses it.
    cleared: LogPosition,
    /// Up to here somebody has cleared it on any member: nobody moves a cursor back.
    cursor: LogPosition,
    handed_out: Option<RecordMark>,
    entries: Vec<Entry>,
    payloads: Vec<u8>,
}

impl std::fmt::Debug for SpreadLogBackup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SpreadLogBackup")
            .field("spread", &self.spread)
            .field("position", &self.position)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Spread {
    /// Opens a log as its backup, on all units that answer: takes the right to read, and with `clear` that to clear.
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]: it can't be told where the log begins and ends; [`ClientError::WrongMode`]; as
    /// [`crate::Unit::open_log_backup`].
    pub fn open_log_backup(&self, clear: bool, options: &OpenOptions) -> Result<SpreadLogBackup> {
        let mut seats = self.open_to_read(clear, options)?;
        let (newest, cursor) = self.judge(&mut seats)?;
        let stands = seats.iter().flatten().map(|seat| &seat.stand);
        let limit = self.quorum.stable(stands).max(cursor);
        Ok(SpreadLogBackup {
            cleared: self.quorum.freed(said(&seats)),
            cursor,
            reader: self.log_reader(options.timeouts.hedge),
            spread: self.apart(),
            options: *options,
            may_clear: clear,
            seats,
            newest,
            limit,
            position: cursor,
            handed_out: None,
            entries: Vec::new(),
            payloads: Vec::new(),
        })
    }

    /// Opens the members that answer for reading; with `clear` for clearing, too.
    pub(super) fn open_to_read(&self, clear: bool, options: &OpenOptions) -> Result<Vec<Seat>> {
        self.check_mode(Mode::Append)?;
        let opened = self.on_each_unit(|unit| {
            let parts = unit.open_log_backup(&self.name, clear, options)?;
            self.check_opened(&parts)?;
            LogSeat::open(parts, self.membership.id)
        });
        let seats = opened.into_iter();
        seats
            .map(|opened| match opened {
                Ok(seat) => Ok(Ok(seat)),
                Err(failed) => Ok(Err(failed.or_grant()?)),
            })
            .collect()
    }
}

impl SpreadLogBackup {
    /// The region.
    #[must_use]
    pub const fn spread(&self) -> &Spread {
        &self.spread
    }

    /// The units that can't be read, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.seats.iter().filter_map(|seat| seat.as_ref().err())
    }

    /// Which way the bytes come, from the first unit that answers.
    #[must_use]
    pub fn provider(&self) -> Option<pmu_fabric::Provider> {
        let first = self.seats.iter().flatten().next();
        first.map(|seat| seat.region.provider())
    }

    /// What the connections to the units have done so far, all together. Those of units that were given up are not counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        sum_counters(&self.seats)
    }

    /// How many records were computed from redundancy so far.
    #[must_use]
    pub const fn reconstructed(&self) -> u64 {
        self.reader.reconstructed
    }

    /// The position of the next record to be handed out.
    #[must_use]
    pub const fn position(&self) -> LogPosition {
        self.position
    }

    /// As [`crate::LogBackup::ring_bytes`]: positions are those of the members' logs.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        self.spread.member_ring_bytes()
    }

    /// Up to where records could be handed out when the log was last looked at.
    #[must_use]
    pub const fn tail(&self) -> LogPosition {
        self.limit
    }

    /// The end of what any unit has published, when the log was last looked at. What lies between [`Self::tail`] and here was told by too few
    /// units to be certain beside a live primary, as others are missing: [`Self::recover`] hands it out.
    #[must_use]
    pub const fn published(&self) -> LogPosition {
        self.newest.position()
    }

    /// The mark of the last record that was handed out.
    #[must_use]
    pub const fn last_mark(&self) -> Option<RecordMark> {
        self.handed_out
    }

    /// Reads records that this handle has not handed out yet: as many as there are, or until their bytes reach `max_bytes` (one at least).
    /// None left means that all were read for now that are certain: with units missing there may be more, up to [`Self::published`].
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]; [`ClientError::Damaged`], naming the record. What was handed out before is good, and so are records before
    /// it in this batch, which come first.
    pub fn read_unread(&mut self, max_bytes: usize) -> Result<Records<'_>> {
        let mut read = self.read_batch(max_bytes);
        if let Err(error) = read {
            self.go_on_after(error)?;
            read = self.read_batch(max_bytes);
        }
        read.map(|()| Records::new(&self.entries, &self.payloads))
    }

    fn read_batch(&mut self, max_bytes: usize) -> Result<()> {
        self.entries.clear();
        self.payloads.clear();
        if self.position >= self.limit {
            self.look()?;
        }
        while self.position < self.limit
            && (self.entries.is_empty() || self.payloads.len() < max_bytes)
        {
            match self.read_one(self.limit) {
                Ok(()) => {}
                Err(error) if self.entries.is_empty() => return Err(error),
                // It is reported by the next call.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Reads one record into our own memory.
    fn read_one(&mut self, limit: LogPosition) -> Result<()> {
        let found = self.find(limit)?;
        let begin = self.payloads.len();
        self.payloads.extend_from_slice(&self.reader.record);
        self.entries.push(Entry {
            record: found,
            payload: begin..self.payloads.len(),
        });
        Ok(())
    }

    fn find(&mut self, limit: LogPosition) -> Result<crate::log::Record> {
        let names = self.spread.names();
        let (position, limit) = (self.position.get(), limit.get());
        let found = self
            .reader
            .read(&mut self.seats, &names, &self.newest, position, limit);
        match found {
            Ok(found) => {
                let record = record_of(&self.spread, &found, found.end <= self.limit.get());
                self.position = LogPosition(found.end);
                self.handed_out = Some(record.mark);
                Ok(record)
            }
            Err(error @ ClientError::Damaged { .. }) => Err(self.or_lapped(error)),
            Err(error) => Err(error),
        }
    }

    /// A record that can't be read may have been cleared by somebody else, and its room used again.
    fn or_lapped(&mut self, error: ClientError) -> ClientError {
        let position = self.position;
        match self.look() {
            Ok(cursor) if cursor > position => ClientError::Damaged {
                region: self.spread.name.as_ref().into(),
                what: format!(
                    "the record at {position} was cleared up to {cursor} by somebody else"
                ),
            },
            _ => error,
        }
    }

    /// Looks at all members again: how far the log goes now. The cursor.
    fn look(&mut self) -> Result<LogPosition> {
        let id = self.spread.membership.id;
        let mut posted = Vec::with_capacity(self.seats.len());
        for index in 0..self.seats.len() {
            posted.push(self.with(index, LogSeat::post_look));
        }
        let quorum = self.spread.quorum;
        let enough = quorum
            .units_to_decide()
            .max(self.spread.layout.data_shards());
        for (index, posted) in self.wait_for(&posted, enough) {
            self.with(index, |seat| seat.take_look(posted, id));
        }
        let (newest, cursor) = self.spread.judge(&mut self.seats)?;
        let stands = self.seats.iter().flatten().map(|seat| &seat.stand);
        // What no take-over can undo stays so, whoever answers now.
        let stable = self.spread.quorum.stable(stands);
        self.limit = self.limit.max(stable).max(cursor);
        self.newest = newest;
        self.cursor = self.cursor.max(cursor);
        Ok(cursor)
    }

    /// Waits for what was posted to each member. Once `enough` have answered, one that takes longer than the others and
    /// [`crate::Timeouts::hedge`] is missing from then on. Who has answered, with what was posted.
    fn wait_for(&mut self, posted: &[Option<u64>], enough: usize) -> Vec<(usize, u64)> {
        let hedge = self.options.timeouts.hedge;
        let (mut done, mut slow) = (Vec::with_capacity(posted.len()), Vec::new());
        for (index, posted) in posted.iter().enumerate() {
            let Some(posted) = *posted else { continue };
            let answered = self.with(index, |seat| {
                let link = &mut seat.region.link;
                let waited = link.wait_at_most(posted, hedge);
                waited.map_err(|error| seat.region.error(error))
            });
            match answered {
                Some(true) => done.push((index, posted)),
                Some(false) => slow.push((index, posted)),
                None => {}
            }
        }
        for (index, posted) in slow {
            let late = done.len() >= enough;
            let answered = self.with(index, |seat| match late {
                true => Err(ClientError::TimedOut {
                    what: "an answer from a unit that others can stand in for",
                    waited_ms: hedge.as_millis() as u64,
                }),
                false => seat.wait(posted),
            });
            done.extend(answered.map(|()| (index, posted)));
        }
        done
    }

    /// Does something with a member that answers; one that fails is missing from then on.
    fn with<T>(&mut self, index: usize, work: impl FnOnce(&mut LogSeat) -> Result<T>) -> Option<T> {
        let seat = self.seats[index].as_mut().ok()?;
        match work(seat) {
            Ok(done) => Some(done),
            Err(error) => {
                self.spread.names().give_up(&mut self.seats, index, &error);
                None
            }
        }
    }

    /// Goes to a record whose position the caller has kept ([`crate::Ticket::position`]): it is handed out next, whether it was before or not.
    ///
    /// # Errors
    /// As [`Self::read_unread`]. Where no record begins, or where it was cleared since, that fails with [`ClientError::Damaged`].
    pub fn seek(&mut self, position: LogPosition) -> Result<()> {
        if position >= self.limit {
            self.look_anew()?;
        }
        self.position = position;
        self.handed_out = None;
        Ok(())
    }

    /// Clears everything up to and with a record that was handed out: the primary may use its room again. Durable when this returns, on at
    /// least as many units as a commit takes, so that no later reader misses it. What is cleared already stays so.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a mark of another region, a record that is not published yet, or a handle without the right to clear;
    /// [`ClientError::TooFewUnits`], [`ClientError::UnknownOutcome`]: it may have been cleared, and may be cleared again.
    pub fn clear(&mut self, mark: RecordMark) -> Result<()> {
        let invalid = |text: &str| Err(ClientError::Invalid(text.to_owned()));
        if !self.may_clear {
            return invalid("the log was opened without the right to clear");
        }
        if !mark.is_of_spread(self.spread.membership.id) {
            return invalid("a mark of another region");
        }
        if mark.position() <= self.cleared {
            return Ok(());
        }
        if mark.position() > self.limit {
            self.look_anew()?;
        }
        if mark.position() > self.limit {
            return invalid("the record is behind the tail: open the log as primary first");
        }
        if let Err(error) = self.clear_to(mark.position()) {
            // It can be done twice.
            self.go_on_after(error)?;
            if mark.position() <= self.cleared {
                return Ok(());
            }
            self.clear_to(mark.position())?;
        }
        Ok(())
    }

    fn clear_to(&mut self, position: LogPosition) -> Result<()> {
        let position = position.max(self.cursor);
        // Whatever becomes of this: it may have been done somewhere.
        self.cursor = position;
        let cleared = self.move_cursors(position);
        let enough = self.spread.quorum.check_commit(cleared);
        match enough.map_err(|what| self.spread.too_few(what, self.missing())) {
            Ok(()) => {
                self.cleared = position;
                Ok(())
            }
            Err(few) if cleared == 0 => Err(few),
            Err(few) => Err(ClientError::UnknownOutcome {
                region: self.spread.name.as_ref().into(),
                attempt: Attempt::Clear(position),
                cause: Box::new(few),
            }),
        }
    }

    /// Looks at all members, and at the new ones if they were changed.
    fn look_anew(&mut self) -> Result<LogPosition> {
        match self.look() {
            Ok(cursor) => Ok(cursor),
            Err(error) => {
                self.go_on_after(error)?;
                self.look()
            }
        }
    }

    /// Goes on after an error if that came of a change of the members: their sessions have ended, and others are there now.
    ///
    /// # Errors
    /// The error, where it did not.
    fn go_on_after(&mut self, error: ClientError) -> Result<()> {
        if !may_be_a_change(&error) {
            return Err(error);
        }
        let spread = self.spread.apart();
        let followed =
            spread.follow_change(self.options.timeouts.stall, |later| self.open_anew(&later));
        match followed {
            Ok(Followed::Opened(())) => Ok(()),
            Ok(Followed::No) | Err(ClientError::TooFewUnits { .. }) => Err(error),
            Err(other) => Err(other),
        }
    }

    fn open_anew(&mut self, later: &Spread) -> Result<()> {
        let error = ClientError::MembersChanged {
            region: self.spread.name.as_ref().into(),
        };
        // Its own sessions are in its way.
        for (member, seat) in self.spread.membership.members.iter().zip(&mut self.seats) {
            *seat = Err(missing(member, &error));
        }
        let mut seats = later.open_to_read(self.may_clear, &self.options)?;
        let (newest, cursor) = later.judge(&mut seats)?;
        let stable = later
            .quorum
            .stable(seats.iter().flatten().map(|seat| &seat.stand));
        self.limit = self.limit.max(stable).max(cursor);
        // Without its sessions it had no right to clear: somebody else may have cleared more. That stays so, and is not handed out again.
        self.cleared = self.cleared.max(later.quorum.freed(said(&seats)));
        self.cursor = self.cursor.max(cursor);
        self.position = self.position.max(cursor);
        (self.seats, self.newest) = (seats, newest);
        self.reader = later.log_reader(self.options.timeouts.hedge);
        self.spread = later.apart();
        Ok(())
    }

    /// Moves the cursors of all members that answer; on how many that is durable.
    fn move_cursors(&mut self, position: LogPosition) -> usize {
        let plan = ClearPlan::to(position);
        let mut posted = Vec::with_capacity(self.seats.len());
        for index in 0..self.seats.len() {
            posted.push(self.with(index, |seat| {
                seat.post_chain(|chain, base| {
                    chain.atomic_write(base + plan.cursor.offset.get(), plan.cursor.value);
                    add_flush(chain, base, plan.flush_cursor);
                    add_word(chain, base, plan.inverse);
                })
            }));
        }
        self.wait_for(&posted, self.spread.quorum.units_min()).len()
    }

    /// Clears everything that this handle has handed out; the position up to which the log is cleared.
    ///
    /// # Errors
    /// As [`Self::clear`].
    pub fn clear_handed_out(&mut self) -> Result<LogPosition> {
        if let Some(mark) = self.handed_out {
            self.clear(mark)?;
        }
        self.end_begun_clear()
    }

    /// Somebody has cleared the log up to some record on too few members: it is cleared up to there on the others, too, if this handle may.
    /// The position up to which the log is cleared. What this handle has handed out stays.
    ///
    /// # Errors
    /// As [`Self::clear`].
    pub fn end_begun_clear(&mut self) -> Result<LogPosition> {
        if self.may_clear && self.cleared < self.cursor {
            self.clear_to(self.cursor)?;
        }
        Ok(self.cleared)
    }

    /// Hands out records as they come, looking again every `interval`, until `stop` is set or the visitor says so.
    ///
    /// # Errors
    /// As [`Self::read_unread`] and, where the visitor asks for it, [`Self::clear`].
    pub fn follow(
        &mut self,
        interval: Duration,
        max_bytes: usize,
        stop: &AtomicBool,
        mut visit: impl FnMut(Records<'_>) -> Flow,
    ) -> Result<()> {
        while !stop.load(Ordering::Acquire) {
            let records = self.read_unread(max_bytes)?;
            if records.len() == 0 {
                self.sleep_unless(stop, interval);
                continue;
            }
            match visit(records) {
                Flow::Continue => {}
                Flow::Clear => drop(self.clear_handed_out()?),
                Flow::Stop => return Ok(()),
            }
        }
        Ok(())
    }

    fn sleep_unless(&self, stop: &AtomicBool, interval: Duration) {
        let Some(seat) = self.seats.iter().flatten().next() else {
            return;
        };
        let until = seat.region.link.now() + interval;
        // Short naps, so that a long interval doesn't delay the end.
        let nap = Duration::from_millis(20);
        while !stop.load(Ordering::Acquire) && seat.region.pause(until, nap) {}
    }

    /// After the primary was fenced: hands out every record that this handle has not handed out yet, to the end of what any unit has published.
    /// What no other unit knows of counts for good once a new primary has opened the log (see [`Spread::take_over_log`]). The answer's
    /// `records` are those handed out now.
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]; what the visitor returns. Damage is no error here but part of the answer, as everything before it is good.
    pub fn recover(
        &mut self,
        mut visit: impl FnMut(LogRecord<'_>) -> Result<()>,
    ) -> Result<RecoveredLog> {
        let cursor = self.look_anew()?;
        let tail = self.newest.position();
        let mut found = RecoveredLog {
            cursor,
            tail,
            end: self.position,
            epoch: Epoch(self.newest.term().0),
            records: 0,
            unacknowledged_records: 0,
            cursor_disagreed: self.cursors_disagree(),
            damage: None,
        };
        while self.position < tail {
            let before = (self.position, self.handed_out);
            match self.find(tail) {
                Ok(record) => {
                    let payload = &self.reader.record;
                    if let Err(error) = visit(LogRecord { record, payload }) {
                        (self.position, self.handed_out) = before;
                        return Err(error);
                    }
                    found.records += 1;
                    found.end = self.position;
                }
                Err(ClientError::Damaged { what, .. }) => {
                    found.damage = Some(what);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn cursors_disagree(&self) -> bool {
        let mut seats = self.seats.iter().flatten();
        seats.any(|seat| seat.cursor.agreed().is_none())
    }

    /// Connects again to units that are missing, and moves their cursors to where the log is cleared, if this handle may. Gives how many came
    /// back.
    ///
    /// # Errors
    /// As [`Self::read_unread`]. What keeps a unit from coming back is no error, but its reason in [`Self::missing`].
    pub fn rejoin(&mut self) -> Result<usize> {
        let mut back = 0;
        for index in 0..self.seats.len() {
            if self.seats[index].is_ok() {
                continue;
            }
            self.seats[index] = self.join(index);
            back += usize::from(self.seats[index].is_ok());
        }
        if back > 0 {
            self.look()?;
            if self.may_clear && self.cursor > LogPosition(0) {
                self.move_cursors(self.cursor);
            }
        }
        Ok(back)
    }

    fn join(&self, index: usize) -> Seat {
        let member = &self.spread.membership.members[index];
        let unit = self.spread.connect(member)?;
        unit.open_log_backup(&self.spread.name, self.may_clear, &self.options)
            .and_then(|parts| {
                self.spread.check_opened(&parts)?;
                LogSeat::open(parts, self.spread.membership.id)
            })
            .map_err(|error| missing(member, &error))
    }
}
