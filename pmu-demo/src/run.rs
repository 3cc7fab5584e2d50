//! One failure from its preparation to the comparison of the answers.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use pmu_stripe::Layout;
use rustix::process::Signal;

use crate::child::{Child, Output};
use crate::cli::Transport;
use crate::clock::{ms_between, now_ns};
use crate::corpus::Corpus;
use crate::error::{DemoError, Result};
use crate::event::{Event, Proof, Totals};
use crate::failure::Failure;
use crate::history::{History, Leading, Onlooker};
use crate::report::{Backup, RunReport, TakeoverParts};
use crate::site::Site;
use crate::store::Place;
use crate::tools::{Tools, arguments};

/// What all runs of an invocation have in common.
#[derive(Debug)]
pub struct Plan {
    /// The commands.
    pub tools: Tools,
    /// The documents.
    pub corpus: Corpus,
    /// The list of the documents, as a file.
    pub list: PathBuf,
    /// The index of the uninterrupted run.
    pub answer: PathBuf,
    /// Where files of runs go.
    pub folder: PathBuf,
    /// A set is committed whenever the log has grown by so many bytes.
    pub set_every_bytes: u64,
    /// Memory for the index of a program that agents run.
    pub arena_bytes: u64,
    /// How the regions are spread over units.
    pub layout: Layout,
    /// Which way the data goes.
    pub transport: Transport,
    /// Stop the primary instead of killing it.
    pub zombie: bool,
    /// Leave everything to two agents.
    pub failover: bool,
    /// The seed of the invocation.
    pub seed: u64,
}

/// What distinguishes a run from others.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Which one, from 1.
    pub run: u32,
    /// What the backup does before the failure.
    pub backup: Backup,
    /// The moment of the failure, as a share of the run.
    pub share: f64,
    /// The places of the units that are killed with the primary.
    pub units: Vec<usize>,
}

/// In the order of the history's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Primary,
    Backup,
}

/// An event, the end of the stream, or what is wrong with it.
type Said = (Source, Result<Option<Event>>);

/// What became known of the primary.
#[derive(Debug, Default)]
struct PrimarySeen {
    acknowledged: u32,
    totals: Totals,
    proof: Option<Proof>,
    stopped_by: Option<String>,
    waiting: bool,
    finished: bool,
    ended: bool,
}

/// What became known of the backup. Times are those of the monotonic clock.
#[derive(Debug, Default)]
struct BackupSeen {
    detected_ns: u64,
    fenced_ns: u64,
    fence_us: u64,
    recovered_ns: u64,
    resumed_ns: u64,
    documents: u32,
    set_documents: u32,
    tail_records: u64,
    tail_bytes: u64,
    totals: Totals,
    following: bool,
    finished: bool,
    ended: bool,
}

/// A run under way.
struct Run<'a> {
    plan: &'a Plan,
    site: &'a mut Site,
    choice: Choice,
    result: PathBuf,
    /// The word to do the last document: a file.
    last_after: PathBuf,
    sender: Sender<Said>,
    said: Receiver<Said>,
    primary: Child,
    backup: Option<Child>,
    primary_seen: PrimarySeen,
    backup_seen: BackupSeen,
    history: History,
    /// The primary was killed or stopped.
    failing: bool,
    /// When silence becomes an error.
    deadline: Instant,
}

/// Carries out one run.
///
/// # Errors
/// [`DemoError::Process`] for whoever failed, with its last words.
pub fn carry_out(plan: &Plan, site: &mut Site, choice: Choice) -> Result<RunReport> {
    let begun_ns = now_ns();
    site.create_regions()?;
    let result = plan.folder.join(format!("run-{}.index", choice.run));
    let (sender, said) = channel();
    let last_after = plan.word_for_the_last(choice.run)?;
    let onlooker = plan.look_on(site)?;
    let arguments = primary_arguments(plan, site, &choice, (&result, &last_after));
    let log = format!("run-{}-primary", choice.run);
    let mut primary = plan
        .tools
        .start("pmu-demo", &arguments, &log, Output::Piped, &[])?;
    listen(&mut primary, Source::Primary, &sender);
    let mut run = Run {
        plan,
        site,
        choice,
        result,
        last_after,
        sender,
        said,
        primary,
        backup: None,
        primary_seen: PrimarySeen::default(),
        backup_seen: BackupSeen::default(),
        history: History::new(["the primary", "the backup"]),
        failing: false,
        deadline: Instant::now() + plan.tools.timeout(),
    };
    let failed_ns = match run.through() {
        Ok(failed_ns) => failed_ns,
        Err(error) => {
            run.hear_what_is_left();
            return Err(run.history.explain(error, Some(onlooker)));
        }
    };
    let leading = run.history.judge(&onlooker.finish()?);
    let identical = same_bytes(&plan.answer, &run.result)?;
    if identical {
        fs::remove_file(&run.result).map_err(DemoError::file("remove", &run.result))?;
    }
    let report = run.report((begun_ns, failed_ns), identical, leading)?;
    run.end()?;
    Ok(report)
}

impl Plan {
    /// Where the word to do the last document of a run is awaited: not there yet, nor is it left from another try.
    ///
    /// # Errors
    /// [`DemoError::File`] where one can't be removed.
    pub fn word_for_the_last(&self, run: u32) -> Result<PathBuf> {
        let path = self.folder.join(format!("run-{run}.last"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(DemoError::file("remove", &path)(error))
            }
            _ => Ok(path),
        }
    }

    /// Has the log of a run looked on at.
    ///
    /// # Errors
    /// [`DemoError::Unusable`] for a bad identity.
    pub fn look_on(&self, site: &Site) -> Result<Onlooker> {
        let identity = site.onlooker_identity();
        Place::new(&site.addresses, &identity, self.transport).map(Onlooker::start)
    }
}

/// What was seen of both programs of a run. Both count documents from the first one, so that what is held is one range. Times are those of the
/// monotonic clock.
#[derive(Debug)]
pub struct Observed {
    /// The answer is that of the uninterrupted run.
    pub identical: bool,
    /// What the first receipt said.
    pub proof: Proof,
    /// The first program's sums, and the second's.
    pub totals: [Totals; 2],
    /// Who led.
    pub leading: Leading,
    /// Documents that were acknowledged before the failure.
    pub acknowledged: u32,
    /// Documents that the second program began with.
    pub recovered: u32,
    /// How many of them came out of a set.
    pub set_documents: u32,
    /// Records fetched after the fence, and their bytes.
    pub tail: (u64, u64),
    /// What the first program said when it found itself fenced.
    pub stopped_by: Option<String>,
    /// When the run began.
    pub begun_ns: u64,
    /// When the first program was made to fail.
    pub failed_ns: u64,
    /// When the second one had its first receipt.
    pub resumed_ns: u64,
    /// What the time between them went into.
    pub takeover: TakeoverParts,
    /// The units' own time for the fence.
    pub fence_us: u64,
    /// Units that were killed too.
    pub units_killed: Vec<String>,
    /// Of a program that agents run: how long each snapshot stopped it.
    pub pauses_us: Vec<u64>,
}

impl Plan {
    /// What a run was, from what was seen of it. It ends now.
    #[must_use]
    pub fn report(&self, choice: &Choice, seen: Observed) -> RunReport {
        let [before, after] = seen.totals;
        let (acknowledged, recovered) = (u64::from(seen.acknowledged), u64::from(seen.recovered));
        let unacknowledged = recovered.saturating_sub(acknowledged);
        RunReport {
            run: choice.run,
            seed: self.seed,
            identical: seen.identical,
            acknowledged,
            lost_acknowledged: acknowledged.saturating_sub(recovered),
            recovered_unacknowledged: unacknowledged,
            leading: seen.leading,
            checkpoint_share: before.client_ns as f64 / before.run_ns.max(1) as f64,
            takeover_ms: ms_between(seen.failed_ns, seen.resumed_ns),
            takeover: seen.takeover,
            fence_us: seen.fence_us,
            persistence: seen.proof.persistence,
            durable: seen.proof.durable,
            transport: seen.proof.provider,
            layout: self.layout.to_string(),
            units_killed: seen.units_killed,
            backup: choice.backup,
            zombie: self.zombie,
            zombie_stopped_by: seen.stopped_by,
            documents: self.corpus.len(),
            failed_after_documents: seen.acknowledged,
            records: before.records + unacknowledged + after.records,
            sets: before.sets + after.sets,
            bytes: before.record_bytes + before.set_bytes + after.record_bytes + after.set_bytes,
            set_documents: seen.set_documents,
            unread_tail_records: seen.tail.0,
            unread_tail_bytes: seen.tail.1,
            failover: self.failover,
            snapshot_pauses_us: seen.pauses_us,
            primary_ms: before.run_ns as f64 / 1e6,
            run_ms: ms_between(seen.begun_ns, now_ns()),
        }
    }
}

/// Gives the word to do the last document.
///
/// # Errors
/// [`DemoError::File`].
pub fn give_word(path: &Path) -> Result<()> {
    fs::write(path, b"").map_err(DemoError::file("create", path))
}

impl Run<'_> {
    /// From the begin of the primary's work to the end of the backup's. Returns when the primary was made to fail.
    fn through(&mut self) -> Result<u64> {
        if self.choice.backup == Backup::Warm {
            self.start_backup()?;
            self.until(|run| run.backup_seen.following)?;
        }
        let failed_ns = self.until_failure()?;
        self.take_over(failed_ns)?;
        Ok(failed_ns)
    }

    /// Of a run that has failed: who led is still of interest.
    fn hear_what_is_left(&mut self) {
        while let Ok((source, said)) = self.said.try_recv() {
            if let Ok(Some(event)) = said {
                // Why the run has failed is known already.
                let _ = self.history.heard(source as usize, &event);
            }
        }
    }

    /// Lets the primary work until its moment has come, and makes it fail. Returns when that was.
    fn until_failure(&mut self) -> Result<u64> {
        self.primary.tell("go")?;
        let bytes = self.plan.corpus.bytes().max(1) as f64;
        let mut failure = Failure::at(self.choice.share, Instant::now());
        loop {
            let now = Instant::now();
            let done = self
                .plan
                .corpus
                .bytes_before(self.primary_seen.acknowledged);
            failure.progress(done as f64 / bytes, now);
            if self.primary_seen.waiting {
                failure.nothing_more(now);
            }
            match failure.due_in(now) {
                Some(Duration::ZERO) => break,
                due => self.hear(due)?,
            }
            if self.primary_seen.finished {
                return Err(self.primary.failed("did the last document unbidden"));
            }
        }
        let failed_ns = now_ns();
        self.primary.signal(if self.plan.zombie {
            Signal::STOP
        } else {
            Signal::KILL
        });
        self.site.kill_units(&self.choice.units);
        Ok(failed_ns)
    }

    /// Sees the backup through the takeover and to the end of the work, and the primary to its end.
    fn take_over(&mut self, failed_ns: u64) -> Result<()> {
        self.failing = true;
        give_word(&self.last_after)?;
        match &mut self.backup {
            Some(backup) if self.plan.zombie => backup.tell("take over")?,
            Some(_) => {}
            None => self.start_backup()?,
        }
        if self.plan.zombie {
            self.until(|run| run.backup_seen.resumed_ns > failed_ns)?;
            self.primary.signal(Signal::CONT);
        }
        self.until(|run| run.primary_seen.ended)?;
        self.primary.wait(self.plan.tools.timeout())?;
        self.until(|run| run.backup_seen.finished && run.backup_seen.ended)
    }

    fn start_backup(&mut self) -> Result<()> {
        let arguments = backup_arguments(self);
        let log = format!("run-{}-backup", self.choice.run);
        let mut backup = self
            .plan
            .tools
            .start("pmu-demo", &arguments, &log, Output::Piped, &[])?;
        listen(&mut backup, Source::Backup, &self.sender);
        self.backup = Some(backup);
        Ok(())
    }

    /// Hears what is said until `done`.
    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<()> {
        while !done(self) {
            self.hear(None)?;
        }
        Ok(())
    }

    /// Waits for the next event, at most so long.
    fn hear(&mut self, at_most: Option<Duration>) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let heard = self.said.recv_timeout(at_most.unwrap_or(left).min(left));
        if heard.is_ok() {
            self.deadline = Instant::now() + self.plan.tools.timeout();
        }
        match heard {
            Ok((Source::Primary, said)) => self.primary_said(said?),
            Ok((Source::Backup, said)) => self.backup_said(said?),
            Err(RecvTimeoutError::Timeout) if at_most.is_some() && !left.is_zero() => Ok(()),
            Err(_) => {
                self.site.check_units()?;
                let problem = format!("silent for {} s", self.plan.tools.timeout().as_secs());
                Err(match &self.backup {
                    Some(backup) if self.failing => backup.failed(&problem),
                    _ => self.primary.failed(&problem),
                })
            }
        }
    }

    fn primary_said(&mut self, event: Option<Event>) -> Result<()> {
        if let Some(event) = &event {
            self.history.heard(Source::Primary as usize, event)?;
        }
        let seen = &mut self.primary_seen;
        match event {
            Some(Event::Acknowledged {
                documents, totals, ..
            }) => {
                (seen.acknowledged, seen.totals) = (documents, totals);
            }
            Some(Event::Committed { totals, .. }) => seen.totals = totals,
            Some(Event::Proved { proof }) => seen.proof = Some(proof),
            Some(Event::StoppedByFence { message }) => seen.stopped_by = Some(message),
            Some(Event::Waiting) => seen.waiting = true,
            Some(Event::Finished { .. }) => seen.finished = true,
            Some(_) => {}
            None => {
                seen.ended = true;
                // Anybody else's end is a failure of its own, before or after ours.
                let expected = seen.finished || seen.stopped_by.is_some();
                let status = self.primary.wait(self.plan.tools.timeout())?;
                if !expected && std::os::unix::process::ExitStatusExt::signal(&status) != Some(9) {
                    self.site.check_units()?;
                    return Err(self.primary.failed(&status.to_string()));
                }
            }
        }
        Ok(())
    }

    fn backup_said(&mut self, event: Option<Event>) -> Result<()> {
        if let Some(event) = &event {
            self.history.heard(Source::Backup as usize, event)?;
        }
        let seen = &mut self.backup_seen;
        match event {
            Some(Event::Following) => seen.following = true,
            Some(Event::Detected { at_ns }) => seen.detected_ns = at_ns,
            Some(Event::Fenced { at_ns, took_us }) => {
                (seen.fenced_ns, seen.fence_us) = (at_ns, took_us);
            }
            Some(Event::Recovered {
                at_ns,
                documents,
                set_documents,
                tail_records,
                tail_bytes,
            }) => {
                seen.recovered_ns = at_ns;
                (seen.documents, seen.set_documents) = (documents, set_documents);
                (seen.tail_records, seen.tail_bytes) = (tail_records, tail_bytes);
            }
            Some(Event::Resumed { at_ns }) => seen.resumed_ns = at_ns,
            Some(Event::Finished { totals, .. }) => (seen.finished, seen.totals) = (true, totals),
            Some(_) => {}
            None => {
                seen.ended = true;
                let finished = seen.finished;
                let Some(backup) = &mut self.backup else {
                    return Ok(());
                };
                let status = backup.wait(self.plan.tools.timeout())?;
                if !status.success() || !finished {
                    let problem = status.to_string();
                    self.site.check_units()?;
                    return Err(backup.failed(&problem));
                }
            }
        }
        Ok(())
    }

    fn report(
        &self,
        (begun_ns, failed_ns): (u64, u64),
        identical: bool,
        leading: Leading,
    ) -> Result<RunReport> {
        let (primary, backup) = (&self.primary_seen, &self.backup_seen);
        let proof = primary.proof.clone().ok_or_else(|| {
            self.primary
                .failed("was made to fail before its first receipt")
        })?;
        Ok(self.plan.report(
            &self.choice,
            Observed {
                identical,
                proof,
                totals: [primary.totals, backup.totals],
                leading,
                acknowledged: primary.acknowledged,
                recovered: backup.documents,
                set_documents: backup.set_documents,
                tail: (backup.tail_records, backup.tail_bytes),
                stopped_by: primary.stopped_by.clone(),
                begun_ns,
                failed_ns,
                resumed_ns: backup.resumed_ns,
                takeover: TakeoverParts {
                    detected_ms: ms_between(failed_ns, backup.detected_ns),
                    fenced_ms: ms_between(backup.detected_ns, backup.fenced_ns),
                    recovered_ms: ms_between(backup.fenced_ns, backup.recovered_ns),
                    resumed_ms: ms_between(backup.recovered_ns, backup.resumed_ns),
                },
                fence_us: backup.fence_us,
                units_killed: self.killed_names(),
                pauses_us: Vec::new(),
            },
        ))
    }

    fn killed_names(&self) -> Vec<String> {
        let places = self.choice.units.iter();
        places
            .map(|place| self.site.unit_name(*place).to_owned())
            .collect()
    }

    /// Has the units' side checked, and its regions removed.
    fn end(self) -> Result<()> {
        drop((self.primary, self.backup));
        self.site.start_dead_units()?;
        self.site.verify_regions()?;
        self.site.delete_regions()
    }
}

/// Passes on what a child says, from a thread of its own.
fn listen(child: &mut Child, source: Source, to: &Sender<Said>) {
    let (Some(mut output), to) = (child.output(), to.clone()) else {
        return;
    };
    std::thread::spawn(move || {
        loop {
            let said = Event::receive(&mut output);
            let last = !matches!(said, Ok(Some(_)));
            if to.send((source, said)).is_err() || last {
                return;
            }
        }
    });
}

fn work_arguments(
    plan: &Plan,
    site: &Site,
    identity: PathBuf,
    (result, last_after): (&Path, &Path),
) -> Vec<OsString> {
    arguments![
        "--units",
        site.addresses.join(","),
        "--identity",
        identity,
        "--transport",
        plan.transport.name(),
        "--list",
        &plan.list,
        "--result",
        result,
        "--set-every-bytes",
        plan.set_every_bytes.to_string(),
        "--last-after",
        last_after,
    ]
}

fn primary_arguments(
    plan: &Plan,
    site: &Site,
    choice: &Choice,
    files: (&Path, &Path),
) -> Vec<OsString> {
    let mut arguments = arguments!["primary"];
    arguments.extend(work_arguments(plan, site, site.primary_identity(), files));
    if choice.backup == Backup::Cold {
        arguments.push("--clear-behind-sets".into());
    }
    arguments
}

fn backup_arguments(run: &Run<'_>) -> Vec<OsString> {
    let mut arguments = arguments!["backup"];
    let identity = run.site.backup_identity();
    let files = (run.result.as_path(), run.last_after.as_path());
    arguments.extend(work_arguments(run.plan, run.site, identity, files));
    if run.choice.backup == Backup::Warm {
        arguments.push("--warm".into());
        if !run.plan.zombie {
            arguments.extend(arguments!["--watch-pid", run.primary.id().to_string()]);
        }
    }
    arguments
}

pub(crate) fn same_bytes(one: &Path, other: &Path) -> Result<bool> {
    let read = |path: &Path| fs::read(path).map_err(DemoError::file("read", path));
    Ok(read(one)? == read(other)?)
}
