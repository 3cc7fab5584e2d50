//! The thread that has the regions: follows them as a standby, clears behind sets, fences and recovers for a takeover.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_client::agent::UnitEpoch;
use pmu_client::snapshot::{SnapshotError, SnapshotImage};
use pmu_client::{ClientError, LogPosition};
use rustix::time::{ClockId, clock_gettime};

use crate::config::{Clear, Config};
use crate::copy::{Handed, HeldSet, Journal, covered};
use crate::decide::{Event, Refusal};
use crate::error::{AgentError, Result};
use crate::input::Input;
use crate::place::{Fenced, Follower, Found, Place, Sets, Way};
use crate::status::Shared;

/// How much of the log is read at a time.
const READ_BYTES: usize = 1 << 20;
/// Between two attempts to reach the units.
const RETRY: Duration = Duration::from_millis(300);
/// Between two attempts to get the right to clear.
const CLEAR_RETRY: Duration = Duration::from_secs(2);

/// What the thread is told.
pub enum Order {
    /// Follow as a standby.
    Follow,
    /// Our program leads: follow to clear, and for nothing else.
    Lead,
    /// Fence, recover, hand over.
    TakeOver {
        /// Only if no primary holds the regions.
        unless_held: bool,
    },
    /// Who holds the regions?
    LookForLeader {
        /// As in [`crate::decide::Action::LookForLeader`].
        own_up_to: u64,
    },
    /// Copy what there is, and leave everybody alone.
    Copy(Sender<Result<Handed>>),
}

/// What it does between orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Idle,
    Following,
    Leading,
}

/// See the module.
pub struct Worker {
    place: Place,
    config: Arc<Config>,
    orders: Receiver<Order>,
    inputs: Sender<Input>,
    status: Arc<Mutex<Shared>>,
    mode: Mode,
    pending: Option<Order>,
    held: Option<HeldSet>,
    /// Of a program that stores snapshots of an arena: what was put together of them.
    image: SnapshotImage,
    /// The newest set that was tried to be read: one that is damaged is not read over and over.
    tried: u64,
    /// Of which regions all that is: others of the same names may take their places.
    regions: Vec<[u8; 16]>,
}

/// The regions as they were found.
struct Ways {
    log: Option<Way>,
    sets: Option<Way>,
}

/// What is open of them.
struct Open<'a> {
    ways: &'a Ways,
    log: Option<Follower>,
    sets: Option<Sets<'a>>,
    journal: Journal,
    may_clear: bool,
    clear_tried: Option<Instant>,
    sets_looked: Option<Instant>,
}

impl Worker {
    /// Everything it needs. Nothing is connected before [`Self::run`].
    #[must_use]
    pub fn new(
        place: Place,
        config: Arc<Config>,
        orders: Receiver<Order>,
        inputs: Sender<Input>,
        status: Arc<Mutex<Shared>>,
    ) -> Self {
        Self {
            place,
            config,
            orders,
            inputs,
            status,
            mode: Mode::Idle,
            pending: None,
            held: None,
            image: SnapshotImage::new(),
            tried: 0,
            regions: Vec::new(),
        }
    }

    /// Works until nobody gives orders any more.
    pub fn run(mut self) {
        let mut said = String::new();
        loop {
            match self.session() {
                Ok(()) => return,
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        tracing::warn!(%error, "the regions can't be followed; trying again");
                        said = text;
                    }
                    self.refuse_pending(error);
                }
            }
            self.status.lock().follow_error = Some(said.clone());
            if self.pending.is_none() {
                match self.orders.recv_timeout(RETRY) {
                    Ok(order) => self.pending = Some(order),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// An order that could not be carried out is answered, and not kept.
    fn refuse_pending(&mut self, error: AgentError) {
        match self.pending.take() {
            Some(Order::TakeOver { .. }) => {
                tracing::error!(%error, "the takeover has failed");
                let reason = match error {
                    AgentError::Held { .. } => Refusal::Held,
                    _ => Refusal::Units,
                };
                self.mode = Mode::Following;
                self.send(Event::NotTakenOver { reason });
            }
            // Nobody is known to lead.
            Some(Order::LookForLeader { .. }) => self.send(Event::Leader { other: false }),
            Some(Order::Copy(reply)) => drop(reply.send(Err(error))),
            Some(Order::Follow) => self.mode = Mode::Following,
            Some(Order::Lead) => self.mode = Mode::Leading,
            None => {}
        }
    }

    fn send(&self, event: Event) {
        let _ = self.inputs.send(Input::Event(event));
    }

    /// Connects, and works until an error.
    fn session(&mut self) -> Result<()> {
        let find = |name: &Option<String>| {
            let found = name.as_ref().map(|name| self.place.find(name));
            found
                .transpose()
                .map_err(AgentError::client("find the regions"))
        };
        let ways = Ways {
            log: find(&self.config.regions.log)?,
            sets: find(&self.config.regions.sets)?,
        };
        let mut regions = Vec::new();
        for way in ways.each() {
            let identity = way.identity();
            regions.push(identity.map_err(AgentError::client("find the regions"))?);
        }
        if regions != self.regions {
            self.hold_nothing();
            self.regions = regions;
        }
        let mut open = Open::new(&ways)?;
        self.status.lock().follow_error = None;
        loop {
            if self.pending.is_some() {
                self.carry_out(&mut open)?;
            }
            let busy = match self.mode {
                Mode::Idle => false,
                Mode::Following if !self.config.follow.warm => false,
                Mode::Following => self.follow(&mut open)?,
                Mode::Leading => self.clear_behind(&mut open)?,
            };
            let pause = match (busy, self.mode) {
                (true, _) => Duration::ZERO,
                (false, Mode::Following) => Duration::from_millis(self.config.follow.every_ms),
                (false, _) => Duration::from_millis(50),
            };
            match self.orders.recv_timeout(pause) {
                Ok(order) => self.pending = Some(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// The order is gone when it is done; after an error it is still pending.
    fn carry_out(&mut self, open: &mut Open<'_>) -> Result<()> {
        match &self.pending {
            Some(Order::Follow) => self.change_to(Mode::Following, open)?,
            Some(Order::Lead) => self.change_to(Mode::Leading, open)?,
            Some(Order::TakeOver { unless_held }) => {
                let (handed, epoch) = self.take_over(*unless_held, open)?;
                self.mode = Mode::Idle;
                let _ = self.inputs.send(Input::Recovered(handed));
                self.send(Event::TakenOver { epoch });
                // It is done, whatever comes now.
                self.pending = None;
                // What was handed over stays with the program, as it is; a later takeover begins from the regions. The program starts meanwhile.
                self.image = SnapshotImage::new();
                return open.close(true);
            }
            Some(Order::LookForLeader { own_up_to }) => {
                let other = self.another_leads(*own_up_to, open)?;
                self.send(Event::Leader { other });
            }
            Some(Order::Copy(reply)) => {
                let copied = self.copy(open)?;
                let _ = reply.send(Ok(copied));
            }
            None => {}
        }
        self.pending = None;
        Ok(())
    }

    fn change_to(&mut self, mode: Mode, open: &mut Open<'_>) -> Result<()> {
        if self.mode != mode {
            open.close(mode == Mode::Following)?;
        }
        if mode == Mode::Leading {
            self.hold_nothing();
        }
        self.mode = mode;
        Ok(())
    }

    /// One round of a standby's work. True if there was something new.
    fn follow(&mut self, open: &mut Open<'_>) -> Result<bool> {
        let clears = self.config.follow.clear == Clear::BehindSets;
        open.open_log(&self.place, clears)?;
        let busy = open.read_log()?;
        open.forget_cleared()?;
        let every = Duration::from_millis(self.config.follow.sets_every_ms);
        // While the log never pauses, sets are looked at less often.
        if open.sets_are_due(if busy { 10 * every } else { every }) {
            self.follow_sets(open)?;
        }
        let mut status = self.status.lock();
        status.tail_records = open.journal.records();
        status.tail_bytes = open.journal.bytes();
        status.caught_up = !busy;
        status.lag_bytes = open.log.as_ref().map_or(0, Follower::lag_bytes);
        Ok(busy)
    }

    fn follow_sets(&mut self, open: &mut Open<'_>) -> Result<()> {
        open.open_sets(&self.place)?;
        let Some(sets) = &mut open.sets else {
            return Ok(());
        };
        let newest = sets.newest(open.ways.sets_name());
        let newest = newest
            .map_err(AgentError::client("list the sets"))?
            .published;
        let number = newest.as_ref().map_or(0, |newest| newest.number);
        self.status.lock().newest_set = number;
        if let Some(newest) = newest
            && number > self.held_number().max(self.tried)
        {
            // What can't be read to its end may have been changed in place.
            self.held = None;
            self.held = hold(&mut self.image, sets, open.ways, &newest, false)?;
            self.tried = number;
            self.status.lock().held_set = self.held_number();
        }
        if let Some(position) = self.held.as_ref().and_then(HeldSet::covers) {
            open.forget_and_clear(position)?;
        }
        Ok(())
    }

    fn hold_nothing(&mut self) {
        (self.held, self.tried) = (None, 0);
        self.image = SnapshotImage::new();
        self.status.lock().held_set = 0;
    }

    fn held_number(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.set.number)
    }

    /// One round of what a leader's agent does for the log. True if there was something new.
    fn clear_behind(&mut self, open: &mut Open<'_>) -> Result<bool> {
        let both = open.ways.log.is_some() && open.ways.sets.is_some();
        if self.config.follow.clear != Clear::BehindSets || !both {
            return Ok(false);
        }
        if !open.may_clear && !open.get_the_right_to_clear(&self.place)? {
            return Ok(false);
        }
        let busy = open.read_log()?;
        open.forget_cleared()?;
        let every = Duration::from_millis(self.config.follow.sets_every_ms);
        if open.sets_are_due(every) {
            open.open_sets(&self.place)?;
            if let Some(sets) = &mut open.sets {
                let newest = sets.newest(open.ways.sets_name());
                let newest = newest
                    .map_err(AgentError::client("list the sets"))?
                    .published;
                if let Some(position) = newest.and_then(|newest| covered(&newest.label)) {
                    open.forget_and_clear(position)?;
                }
            }
        }
        Ok(busy)
    }

    /// Whether somebody else does; the epoch that counts is the first region's.
    fn another_leads(&self, own_up_to: u64, open: &Open<'_>) -> Result<bool> {
        let own = self.place.principal();
        let (mut other, mut epoch) = (false, None);
        for way in open.ways.each() {
            let holder = way.holder();
            let holder = holder.map_err(AgentError::client("ask who holds the region"))?;
            other |= holder.writer.is_some_and(|writer| writer != own);
            epoch.get_or_insert(holder.epoch);
        }
        let epoch = epoch.unwrap_or(0);
        Ok(other || (own_up_to > 0 && epoch > own_up_to))
    }

    fn take_over(&mut self, unless_held: bool, open: &mut Open<'_>) -> Result<(Handed, u64)> {
        let begun = Instant::now();
        if unless_held {
            open.ways.check_unheld()?;
        }
        let (epoch, mut epochs) = Self::fence(open.ways)?;
        let (fenced, fenced_ns) = (begun.elapsed(), monotonic_ns());
        self.settle(open.ways, &mut epochs)?;
        let held_before = open.journal.records();
        let state = self.recover(open)?;
        let mut handed = open.hand_over(state)?;
        (handed.epochs, handed.fenced_ns) = (epochs, Some(fenced_ns));
        let (all, tail) = (begun.elapsed(), open.journal.records());
        let set = handed.state.as_ref().map_or(0, |held| held.set.number);
        tracing::info!(
            epoch,
            fence_us = fenced.as_micros() as u64,
            recovery_us = (all - fenced).as_micros() as u64,
            set,
            tail_records = tail,
            read_before = held_before,
            "taken over"
        );
        let mut status = self.status.lock();
        status.fence_us = Some(fenced.as_micros() as u64);
        status.recovery_us = Some((all - fenced).as_micros() as u64);
        Ok((handed, epoch))
    }

    /// The epoch that counts, and those of all regions and units that the program is to go on from.
    fn fence(ways: &Ways) -> Result<(u64, Vec<UnitEpoch>)> {
        let (mut epoch, mut epochs) = (0, Vec::new());
        for fenced in ways.fence() {
            let fenced = fenced.map_err(AgentError::client("fence"))?;
            // The first one is the one whose beat counts, and whose epoch the program names.
            epoch = if epoch == 0 { fenced.epoch } else { epoch };
            tracing::info!(
                epoch = fenced.epoch,
                unit_us = fenced.took.as_micros() as u64,
                round_trip_us = fenced.round_trip.as_micros() as u64,
                "fenced"
            );
            epochs.extend(fenced.epochs);
        }
        Ok((epoch, epochs))
    }

    /// Whoever fenced and wrote between fence and settling is in what is read from here on: the epochs behind the settling count.
    fn settle(&self, ways: &Ways, epochs: &mut Vec<UnitEpoch>) -> Result<()> {
        let Some(way) = &ways.log else {
            return Ok(());
        };
        let settled = way.settle_log(self.place.options());
        let settled = settled.map_err(AgentError::client("settle the end of the log"))?;
        if let Some(settled) = settled {
            epochs.retain(|fenced| fenced.region != way.name());
            epochs.extend(settled);
        }
        Ok(())
    }

    /// Everything behind what is held already. The fence stands: nothing changes any more but by a later fence.
    fn recover(&mut self, open: &mut Open<'_>) -> Result<Option<HeldSet>> {
        let cleared = self.recover_log(open)?;
        open.open_sets(&self.place)?;
        if let Some(sets) = &mut open.sets {
            let newest = sets.newest(open.ways.sets_name());
            let newest = newest.map_err(AgentError::client("list the sets"))?;
            let newest = newest.to_recover();
            if let Some(newest) = newest.filter(|newest| newest.number > self.held_number()) {
                let read = hold(&mut self.image, sets, open.ways, &newest, true)?;
                let number = read.as_ref().map_or(0, |read| read.set.number);
                // One that was never whole may have a header.
                if number > self.held_number() {
                    self.held = read;
                }
            }
        }
        if let Some(cleared) = cleared {
            self.check_covered(cleared)?;
            // Another may have cleared what was read before.
            open.journal.forget_before(cleared)?;
        }
        Ok(self.held.clone())
    }

    /// Up to where the log was cleared.
    fn recover_log(&self, open: &mut Open<'_>) -> Result<Option<LogPosition>> {
        open.open_log(&self.place, false)?;
        let (Some(log), Some(region)) = (&mut open.log, &self.config.regions.log) else {
            return Ok(None);
        };
        let journal = &mut open.journal;
        let recovered = log.recover(|found| journal.add(&found));
        let recovered = recovered.map_err(AgentError::client("recover the log"))?;
        match recovered.damage {
            Some(damage) => Err(AgentError::Incomplete {
                region: region.clone(),
                what: format!("acknowledged records can't be read: {damage}"),
            }),
            None => Ok(Some(recovered.cursor)),
        }
    }

    /// Refuses where records were cleared that nothing holds: a newer set held them, and is gone or damaged.
    fn check_covered(&self, cleared: LogPosition) -> Result<()> {
        let Some(region) = &self.config.regions.sets else {
            return Ok(());
        };
        let what = match &self.held {
            Some(held) => uncovered(held, cleared),
            None => self.lost(cleared),
        };
        what.map_or(Ok(()), |what| {
            let region = region.clone();
            Err(AgentError::Incomplete { region, what })
        })
    }

    /// What is lost where no set is held. Who clears for reasons of his own needs none.
    fn lost(&self, cleared: LogPosition) -> Option<String> {
        let behind_sets = self.config.follow.clear == Clear::BehindSets;
        (behind_sets && cleared.get() > 0)
            .then(|| format!("no set can be read, and the log is cleared up to {cleared}"))
    }

    /// What a takeover would hand over now, without a fence: from handles of its own.
    fn copy(&self, open: &Open<'_>) -> Result<Handed> {
        let mut apart = Open::new(open.ways)?;
        // The log first: what is cleared meanwhile is in a set that is newer still. The other way round records between the two could be missing.
        apart.open_log(&self.place, false)?;
        // To the end as it is found once: a busy primary is always ahead.
        let mut more = apart.read_log()?;
        let end = apart.log.as_ref().map(Follower::end);
        while more && apart.log.as_ref().map(Follower::position) < end {
            more = apart.read_log()?;
        }
        apart.open_sets(&self.place)?;
        let mut state = None;
        if let Some(sets) = &mut apart.sets {
            let newest = sets.newest(open.ways.sets_name());
            let newest = newest.map_err(AgentError::client("list the sets"))?;
            if let Some(newest) = newest.published {
                state = hold(&mut SnapshotImage::new(), sets, open.ways, &newest, false)?;
            }
        }
        apart.hand_over(state)
    }
}

/// The clock that all processes of a machine share.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let [seconds, rest] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + rest
}

/// What is lost between a set and what is left of the log.
fn uncovered(held: &HeldSet, cleared: LogPosition) -> Option<String> {
    let covered = held.covers().filter(|covered| *covered < cleared)?;
    let number = held.set.number;
    Some(format!(
        "the newest set that can be read, {number}, holds the log up to {covered}, which is cleared up to {cleared}"
    ))
}

/// Reads the newest set; snapshots of an arena are put together in `image`.
fn hold(
    image: &mut SnapshotImage,
    sets: &mut Sets<'_>,
    ways: &Ways,
    newest: &Found,
    recovering: bool,
) -> Result<Option<HeldSet>> {
    if !newest.is_snapshot() {
        let read = HeldSet::read(sets, recovering)?;
        // An older one than was listed, which alone makes no state.
        return Ok(read.filter(|read| !read.set.is_snapshot()));
    }
    match sets.catch_up(ways.sets_name(), image) {
        // One that was never published.
        Err(SnapshotError::NoSuchSnapshot { .. }) => Ok(None),
        caught => {
            caught.map_err(AgentError::snapshot("put the newest snapshot together"))?;
            let held = HeldSet::of_image(image);
            if let Some(held) = held.as_ref().filter(|held| held.set.number < newest.number) {
                tracing::warn!(
                    newest = newest.number,
                    held = held.set.number,
                    "the newest snapshot can't be put together: an older one is held"
                );
            }
            Ok(held)
        }
    }
}

impl Ways {
    fn each(&self) -> impl Iterator<Item = &Way> {
        self.log.iter().chain(&self.sets)
    }

    /// All at the same time; in the order of [`Self::each`].
    fn fence(&self) -> Vec<std::result::Result<Fenced, ClientError>> {
        std::thread::scope(|scope| {
            let sets = self.sets.as_ref().map(|sets| scope.spawn(|| sets.fence()));
            let log = self.log.as_ref().map(Way::fence);
            let panicked = |_| Err(ClientError::Invalid("the fence has panicked".into()));
            let sets = sets.map(|sets| sets.join().unwrap_or_else(panicked));
            log.into_iter().chain(sets).collect()
        })
    }

    fn sets_name(&self) -> &str {
        self.sets.as_ref().map_or("", Way::name)
    }

    fn check_unheld(&self) -> Result<()> {
        for way in self.each() {
            let holder = way.holder();
            let holder = holder.map_err(AgentError::client("ask who holds the region"))?;
            if let Some(by) = holder.writer {
                let region = way.name().to_owned();
                return Err(AgentError::Held { region, by });
            }
        }
        Ok(())
    }
}

impl<'a> Open<'a> {
    /// Nothing is open yet.
    fn new(ways: &'a Ways) -> Result<Self> {
        Ok(Self {
            ways,
            log: None,
            sets: None,
            journal: Journal::new(true)?,
            may_clear: false,
            clear_tried: None,
            sets_looked: None,
        })
    }

    fn close(&mut self, keeps: bool) -> Result<()> {
        (self.log, self.sets) = (None, None);
        self.may_clear = false;
        self.journal = Journal::new(keeps)?;
        Ok(())
    }

    /// One backup at a time may clear: where another does, we don't.
    fn open_log(&mut self, place: &Place, clear: bool) -> Result<()> {
        let (None, Some(way)) = (&self.log, &self.ways.log) else {
            return Ok(());
        };
        // Over several units another who clears makes them look missing.
        let clearing = clear
            .then(|| way.follow_log(true, place.options()))
            .and_then(Result::ok)
            .filter(Follower::has_all_units);
        self.may_clear = clearing.is_some();
        let opened = match clearing {
            Some(log) => Ok(log),
            None => way.follow_log(false, place.options()),
        };
        self.log = Some(opened.map_err(AgentError::client("open the log to read"))?);
        Ok(())
    }

    fn get_the_right_to_clear(&mut self, place: &Place) -> Result<bool> {
        if self
            .clear_tried
            .is_some_and(|tried| tried.elapsed() < CLEAR_RETRY)
        {
            return Ok(false);
        }
        self.clear_tried = Some(Instant::now());
        self.log = None;
        self.journal = Journal::new(false)?;
        self.open_log(place, true)?;
        if !self.may_clear {
            self.log = None;
        }
        Ok(self.may_clear)
    }

    fn open_sets(&mut self, place: &Place) -> Result<()> {
        if let (None, Some(way)) = (&self.sets, &self.ways.sets) {
            let opened = way.read_sets(place.options());
            self.sets = Some(opened.map_err(AgentError::client("open the sets to read"))?);
        }
        Ok(())
    }

    fn read_log(&mut self) -> Result<bool> {
        let Some(log) = &mut self.log else {
            return Ok(false);
        };
        let records = log.read_unread(READ_BYTES);
        let records = records.map_err(AgentError::client("follow the log"))?;
        let some = records.len() > 0;
        for found in records {
            let added = self.journal.add(&found);
            added.map_err(AgentError::client("keep a record"))?;
        }
        Ok(some)
    }

    /// Where others clear, for reasons of their own, memory is bounded by the log's room. No takeover hands over what was cleared.
    fn forget_cleared(&mut self) -> Result<()> {
        if let Some(log) = &self.log {
            self.journal.forget_before(log.cleared_at_least())?;
        }
        Ok(())
    }

    fn sets_are_due(&mut self, every: Duration) -> bool {
        let due = self
            .sets_looked
            .is_none_or(|looked| looked.elapsed() >= every);
        if due {
            self.sets_looked = Some(Instant::now());
        }
        due
    }

    /// What a committed set holds need not be kept in the log.
    fn forget_and_clear(&mut self, position: LogPosition) -> Result<()> {
        let mark = self.journal.forget_before(position)?;
        if let (Some(mark), Some(log), true) = (mark, &mut self.log, self.may_clear) {
            log.clear(mark)
                .map_err(AgentError::client("clear the log"))?;
        }
        Ok(())
    }

    fn hand_over(&mut self, state: Option<HeldSet>) -> Result<Handed> {
        if let Some(position) = state.as_ref().and_then(HeldSet::covers) {
            self.journal.forget_before(position)?;
        }
        let tail = match self.ways.log {
            Some(_) => {
                let file = self.journal.file()?;
                Some((Arc::new(file), self.journal.records()))
            }
            None => None,
        };
        Ok(Handed {
            state,
            tail,
            epochs: Vec::new(),
            fenced_ns: None,
        })
    }
}
