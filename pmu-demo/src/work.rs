//! The work of whoever is primary: documents into the index, each one's record into the log, the whole index into a set now and then.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::Path;
use std::time::{Duration, Instant};

use allocator_api2::alloc::Allocator;
use pmu_client::agent::{Order, Program, SnapshotReport};
use pmu_client::snapshot::{PendingSnapshot, SnapshotResult, Snapshots};
use pmu_client::{ClientError, Receipt, Ticket};
use pmu_format::{Label, LogPosition};

use crate::cli::WorkArguments;
use crate::clock::now_ns;
use crate::corpus::Corpus;
use crate::error::{DemoError, Result};
use crate::event::{Event, Proof, Totals};
use crate::index::Index;
use crate::leaders::{Commit, What};
use crate::store::{Follower, Log, Place, Sets};
use crate::{record, reference, words};

/// With so many times the usual distance between sets uncleared, the next record waits for a set: the log has room for one distance more.
const DISTANCE_MAX: u64 = 3;
/// How much of the log is read at a time where it is only read to be cleared.
const READ_BYTES: usize = 256 << 10;
/// How often it is looked for the word to do the last document.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The way to the regions.
///
/// # Errors
/// [`DemoError::Unusable`] for a bad identity.
pub fn place(arguments: &WorkArguments) -> Result<Place> {
    Place::new(&arguments.units, &arguments.identity, arguments.transport)
}

/// Where the work stands, and both regions open for writing.
pub struct Position<'a, A: Allocator + Clone> {
    /// The index over the documents that are done.
    pub index: &'a mut Index<A>,
    /// The log.
    pub log: Log,
    /// What makes sets.
    pub keeper: Keeper,
    /// When the fence stood behind which the state was recovered.
    pub fenced_ns: Option<u64>,
    /// When both were open.
    pub opened_ns: u64,
    /// Whoever clears the log behind each set. `None`: somebody else does.
    pub cleaner: Option<Cleaner>,
    /// Everything in the log before this is cleared, or will be without us.
    pub cleared: LogPosition,
}

/// How the index gets into sets.
pub enum Keeper {
    /// In its one form, while the program waits.
    Sets(Sets, Vec<u8>),
    /// As a snapshot of the arena that it lies in, while the program runs on.
    Snapshots(Box<Snapshots>, Option<Pending>),
}

/// A snapshot that is on its way.
pub struct Pending {
    pending: PendingSnapshot,
    begun: Begun,
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy)]
struct Begun {
    /// Which order it answers, if any.
    order: Option<u64>,
    covered: LogPosition,
    documents: u32,
    at_ns: u64,
}

/// A record that was given to the library.
#[derive(Debug, Clone, Copy)]
struct Submitted {
    ticket: Ticket,
    /// Before it was.
    begun_ns: u64,
}

/// Clears the own log behind a set: there is no backup that would.
pub enum Cleaner {
    /// Not needed yet; opening takes time that a takeover does not have.
    Later(Box<Place>),
    /// Open.
    Open(Follower),
}

impl Cleaner {
    /// Clears records before a position. False: a region has one clearing session at a time, and somebody else has it still.
    ///
    /// Never beyond the position: what is behind it may be records of a new primary, whose sets we know nothing of.
    fn clear_to(&mut self, covered: LogPosition) -> Result<bool, ClientError> {
        if let Self::Later(place) = self {
            match place.open_follower() {
                Ok(backup) => *self = Self::Open(backup),
                Err(ClientError::WriterExists { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let Self::Open(backup) = self else {
            return Ok(false);
        };
        let mut mark = None;
        while backup.position() < covered {
            let records = backup.read_unread(READ_BYTES)?;
            if records.len() == 0 {
                break;
            }
            let marks = records.map(|found| found.record.mark);
            mark = marks
                .filter(|mark| mark.position() <= covered)
                .last()
                .or(mark);
        }
        if let Some(mark) = mark {
            backup.clear(mark)?;
        }
        Ok(true)
    }
}

/// Time spent in the client library, and what was stored.
#[derive(Debug)]
struct Meter {
    totals: Totals,
    begun_ns: u64,
}

impl Meter {
    fn measure<T>(
        &mut self,
        action: &'static str,
        call: impl FnOnce() -> Result<T, ClientError>,
    ) -> Result<T> {
        let begun_ns = now_ns();
        let result = call();
        self.totals.client_ns += now_ns() - begun_ns;
        result.map_err(DemoError::client(action))
    }

    fn totals(&mut self) -> Totals {
        self.totals.run_ns = now_ns() - self.begun_ns;
        self.totals
    }
}

/// The work under way.
struct Worker<'a, A: Allocator + Clone> {
    at: Position<'a, A>,
    set_every_bytes: u64,
    /// The end of the log at the last set.
    set_at: LogPosition,
    /// Records without a receipt, in the order of the log.
    pending: VecDeque<Submitted>,
    acknowledged: u32,
    meter: Meter,
    /// Of sets that the agent ordered: what it has still to hear.
    reports: Vec<SnapshotReport>,
    /// Over several units the receipts of snapshots name the epoch of one of them, which says nothing of the others.
    is_spread: bool,
}

/// Does the rest of the documents from a position, and writes the index to the result file.
///
/// # Errors
/// [`DemoError`]; see [`DemoError::fenced`] for whether another primary has taken over.
pub fn finish<A: Allocator + Clone>(
    arguments: &WorkArguments,
    corpus: &Corpus,
    at: Position<'_, A>,
) -> Result<()> {
    finish_under(arguments, corpus, at, None)
}

/// The same under an agent: beats, makes a set when that wants one, and ends early when it says so.
///
/// # Errors
/// As [`finish`].
pub fn finish_under<A: Allocator + Clone>(
    arguments: &WorkArguments,
    corpus: &Corpus,
    at: Position<'_, A>,
    mut agent: Option<&mut Program>,
) -> Result<()> {
    let begun_ns = now_ns();
    Event::Opened {
        at_ns: at.opened_ns,
        pid: std::process::id(),
        epoch: at.log.epoch().get(),
        fenced_ns: at.fenced_ns,
        documents: at.index.documents(),
    }
    .send()?;
    let mut worker = Worker {
        acknowledged: at.index.documents(),
        set_at: at.cleared,
        at,
        set_every_bytes: arguments.set_every_bytes,
        pending: VecDeque::new(),
        meter: Meter {
            totals: Totals::default(),
            begun_ns,
        },
        reports: Vec::new(),
        is_spread: arguments.units.len() > 1,
    };
    let (mut text, mut encoded) = (Vec::new(), Vec::new());
    let first = worker.at.index.documents();
    for document in first..corpus.len() {
        if document + 1 == corpus.len()
            && let Some(word) = &arguments.last_after
            && worker.wait_for(word, agent.as_deref_mut())?
        {
            return Ok(());
        }
        corpus.read(document, &mut text)?;
        let words = words::count(&mut text);
        record::encode(document, &words, &mut encoded);
        worker.append(&encoded)?;
        worker.at.index.add(document, &words)?;
        if document == first {
            worker.first_receipt()?;
        }
        worker.acknowledge()?;
        if worker.since(worker.set_at) >= worker.set_every_bytes {
            worker.begin_set(None)?;
        }
        if let Some(agent) = &mut agent
            && worker.serve(agent)?
        {
            return Ok(());
        }
    }
    worker.store_set()?;
    reference::finish(
        worker.at.index,
        &arguments.result,
        worker.meter.totals(),
        begun_ns,
    )
}

impl<A: Allocator + Clone> Worker<'_, A> {
    /// How far the log has grown since a position.
    fn since(&self, position: LogPosition) -> u64 {
        self.at.log.submitted().get().saturating_sub(position.get())
    }

    /// Sends a record on its way: not durable yet.
    fn append(&mut self, encoded: &[u8]) -> Result<()> {
        let uncleared = self.since(self.at.cleared);
        if uncleared > 0 && uncleared + encoded.len() as u64 > DISTANCE_MAX * self.set_every_bytes {
            self.store_set()?;
        }
        let log = &mut self.at.log;
        let begun_ns = now_ns();
        let ticket = self
            .meter
            .measure("append a record", || log.submit(encoded))?;
        self.pending.push_back(Submitted { ticket, begun_ns });
        Ok(())
    }

    /// Waits until there is a file, and serves the agent meanwhile. True if the program is to end.
    fn wait_for(&mut self, word: &Path, mut agent: Option<&mut Program>) -> Result<bool> {
        if word.exists() {
            return Ok(false);
        }
        let log = &mut self.at.log;
        self.meter.measure("wait for receipts", || log.flush())?;
        self.acknowledge()?;
        Event::Waiting.send()?;
        while !word.exists() {
            if let Some(agent) = &mut agent
                && self.serve(agent)?
            {
                return Ok(true);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(false)
    }

    /// Waits for the receipt of the first record, and reports what it proves.
    fn first_receipt(&mut self) -> Result<()> {
        let Some(Submitted { ticket, .. }) = self.pending.front().copied() else {
            return Ok(());
        };
        let log = &mut self.at.log;
        let receipt = self
            .meter
            .measure("wait for a receipt", || log.wait(ticket))?;
        let at_ns = now_ns();
        Event::Proved {
            proof: proof(&receipt),
        }
        .send()?;
        Event::Resumed { at_ns }.send()
    }

    /// Takes the receipts of all records that are durable by now, and reports them.
    fn acknowledge(&mut self) -> Result<()> {
        let log = &mut self.at.log;
        self.meter
            .measure("look for receipts", || log.poll_completions())?;
        // Over several units records bear the writer's term; else each receipt says its epoch.
        let term = self.is_spread.then(|| self.at.log.epoch().get());
        let mut commits = Vec::new();
        while let Some(Submitted { ticket, begun_ns }) = self.pending.front().copied() {
            let log = &mut self.at.log;
            if !log.is_durable(ticket) {
                break;
            }
            let receipt = self.meter.measure("take a receipt", || log.wait(ticket))?;
            self.pending.pop_front();
            commits.push(Commit {
                what: What::Record,
                epoch: term.or(Some(receipt.epoch.get())),
                from: ticket.position().get(),
                to: ticket.end().get(),
                begun_ns,
                told_ns: now_ns(),
            });
            self.acknowledged += 1;
            self.meter.totals.records += 1;
            self.meter.totals.record_bytes += receipt.bytes;
        }
        if commits.is_empty() {
            return Ok(());
        }
        let totals = self.meter.totals();
        Event::Acknowledged {
            documents: self.acknowledged,
            totals,
            commits,
        }
        .send()
    }

    /// Beats, and does what the agent orders. True if the program is to end.
    fn serve(&mut self, agent: &mut Program) -> Result<bool> {
        if agent.beat_is_due() {
            let log = &mut self.at.log;
            self.meter.measure("beat", || log.beat())?;
        }
        self.look_for_snapshot()?;
        let ends = match agent.order() {
            Some(Order::Snapshot { id }) => {
                self.begin_set(Some(id))?;
                false
            }
            Some(Order::Stop) => {
                self.store_set()?;
                true
            }
            _ => false,
        };
        self.reports
            .drain(..)
            .for_each(|report| agent.done(&report));
        Ok(ends)
    }

    /// Stores the whole index as a set, and returns when it is stored.
    fn store_set(&mut self) -> Result<()> {
        self.begin_set(None)?;
        self.wait_for_snapshot()
    }

    /// Stores the whole index as a set, or begins to: then the program runs on meanwhile. The records that it holds are durable first, so
    /// that no set is ever ahead of the log.
    fn begin_set(&mut self, order: Option<u64>) -> Result<()> {
        self.wait_for_snapshot()?;
        let log = &mut self.at.log;
        self.meter.measure("wait for receipts", || log.flush())?;
        self.acknowledge()?;
        let covered = self.at.log.submitted();
        let documents = self.at.index.documents();
        self.set_at = covered;
        let at_ns = now_ns();
        let begun = Begun {
            order,
            covered,
            documents,
            at_ns,
        };
        match &mut self.at.keeper {
            Keeper::Snapshots(snapshots, pending) => {
                let frozen = snapshots.begin_covering(covered);
                *pending = Some(Pending {
                    pending: frozen.map_err(DemoError::snapshot("freeze the index"))?,
                    begun,
                });
                Ok(())
            }
            Keeper::Sets(sets, state) => {
                let since = Instant::now();
                self.at.index.encode(state);
                let label = label(documents, covered)?;
                let receipt = self.meter.measure("commit a set", || {
                    sets.commit(&[IoSlice::new(state)], label)
                })?;
                let took = since.elapsed();
                let epoch = Some(sets.epoch().get());
                let report = order.map(|id| report(id, &receipt, took, took));
                self.reports.extend(report);
                self.stored(begun, &receipt, epoch)
            }
        }
    }

    /// Whether a snapshot has arrived by now.
    fn look_for_snapshot(&mut self) -> Result<()> {
        let Keeper::Snapshots(_, pending) = &mut self.at.keeper else {
            return Ok(());
        };
        let Some(under_way) = pending else {
            return Ok(());
        };
        let begun = under_way.begun;
        match under_way.pending.poll() {
            Some(found) => {
                *pending = None;
                self.arrived(begun, found)
            }
            None => Ok(()),
        }
    }

    /// Waits for the one that is on its way, if there is one.
    fn wait_for_snapshot(&mut self) -> Result<()> {
        let Keeper::Snapshots(_, pending) = &mut self.at.keeper else {
            return Ok(());
        };
        let Some(Pending { pending, begun }) = pending.take() else {
            return Ok(());
        };
        let begun_ns = now_ns();
        let found = pending.wait();
        self.meter.totals.client_ns += now_ns() - begun_ns;
        self.arrived(begun, found)
    }

    fn arrived(
        &mut self,
        of: Begun,
        found: SnapshotResult<pmu_client::snapshot::SnapshotReport>,
    ) -> Result<()> {
        let found = found.map_err(DemoError::snapshot("store a snapshot"))?;
        let (pause, took) = (found.pause(), found.durable_after);
        let report = of.order.map(|id| report(id, &found.receipt, pause, took));
        self.reports.extend(report);
        Event::Snapshot {
            pause_us: pause.as_micros() as u64,
            bytes: found.bytes,
        }
        .send()?;
        let epoch = (!self.is_spread).then_some(found.receipt.epoch.get());
        self.stored(of, &found.receipt, epoch)
    }

    /// A set with everything before a position of the log is stored.
    fn stored(&mut self, of: Begun, receipt: &Receipt, epoch: Option<u64>) -> Result<()> {
        let number = receipt.set().map_or(0, |set| set.get());
        let commit = Commit {
            what: What::Set,
            epoch,
            from: number,
            to: number + 1,
            begun_ns: of.at_ns,
            told_ns: now_ns(),
        };
        self.meter.totals.sets += 1;
        self.meter.totals.set_bytes += receipt.bytes;
        let covered = of.covered;
        let cleared = match &mut self.at.cleaner {
            Some(cleaner) => self
                .meter
                .measure("clear the log behind a set", || cleaner.clear_to(covered))?,
            None => true,
        };
        if cleared {
            self.at.cleared = covered;
        }
        let totals = self.meter.totals();
        Event::Committed {
            documents: of.documents,
            totals,
            commit,
        }
        .send()
    }
}

/// What the agent hears of a set that it has ordered.
fn report(id: u64, receipt: &Receipt, pause: Duration, took: Duration) -> SnapshotReport {
    SnapshotReport {
        id,
        set: receipt.set().map_or(0, |set| set.get()),
        bytes: receipt.bytes,
        pause_us: pause.as_micros() as u64,
        took_us: took.as_micros() as u64,
        durable: receipt.is_durable(),
        error: None,
    }
}

/// What a receipt proves, in its own words.
fn proof(receipt: &Receipt) -> Proof {
    let mut methods: Vec<&str> = receipt
        .units
        .iter()
        .map(|unit| unit.persistence.name())
        .collect();
    methods.sort_unstable();
    methods.dedup();
    Proof {
        persistence: methods.join(", "),
        provider: receipt.provider.name().to_owned(),
        durable: receipt.is_durable(),
    }
}

/// Says in a set which documents it holds, and which of the log's records it makes superfluous.
fn label(documents: u32, covered: LogPosition) -> Result<Label> {
    Label::new(&format!("{documents} @{covered}"))
        .map_err(|error| DemoError::Unusable(format!("label: {error}")))
}
