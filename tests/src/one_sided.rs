//! Proves that the unit's processor takes no part: counts what is posted for one durable append, and stores, clears and reads while
//! the unit's process is stopped.

use std::io::IoSlice;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pmu_client::{
    Counters, Label, LogBackup, LogPrimary, PersistenceMethod, Provider, SetChoice, SetPrimary,
    SetReader,
};
use serde::Serialize;

use crate::content;
use crate::failure::{Failure, Result};
use crate::site::Site;

/// What was posted for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Posted {
    /// Work requests.
    pub work_requests: u64,
    /// Completions.
    pub completions: u64,
    /// Doorbells.
    pub doorbells: u64,
}

impl Posted {
    fn between(before: Counters, after: Counters) -> Self {
        Self {
            work_requests: after.work_requests - before.work_requests,
            completions: after.completions - before.completions,
            doorbells: after.doorbells - before.doorbells,
        }
    }
}

/// The unit's processor time over a span of work.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct UnitTime {
    /// Clock ticks in user and kernel mode, all threads.
    pub ticks: u64,
    /// The same in nanoseconds, by the scheduler's account.
    pub nanoseconds: u64,
}

/// The proof.
#[derive(Debug, Clone, Serialize)]
pub struct Proof {
    /// Which way the bytes went.
    pub provider: String,
    /// What made them durable.
    pub method: String,
    /// For one durable append of 64 bytes.
    pub small_append: Posted,
    /// For a batch of eight such records.
    pub batch_of_eight: Posted,
    /// For one committed set of 4096 bytes.
    pub small_commit: Posted,
    /// The unit's time over `appends` and `commits` while it ran.
    pub unit_running: UnitTime,
    /// The same while it was stopped by SIGSTOP.
    pub unit_stopped: UnitTime,
    /// Durable appends in each of the two spans.
    pub appends: u64,
    /// Commits in each of the two spans.
    pub commits: u64,
    /// Records that a backup read one-sided while the unit was stopped.
    pub read_while_stopped: u64,
}

const APPENDS: u64 = 200;
const COMMITS: u64 = 8;

struct Handles {
    log: LogPrimary,
    sets: SetPrimary,
    backup: LogBackup,
    reader: SetReader,
    next: u64,
    seed: u64,
}

/// Does the work. Both regions must be without a primary.
///
/// # Errors
/// [`Failure::Broken`] if the unit's processor took part, more was posted than an append takes, or bytes are not what was written.
pub fn prove(site: &Site, unit_pid: i32) -> Result<Proof> {
    let unit = site.connect()?;
    let options = site.options();
    let open = Failure::client;
    let mut handles = Handles {
        log: unit
            .open_log_primary(&site.log, &options)
            .map_err(open("open the log"))?,
        sets: unit
            .open_sets_primary(&site.sets, &options)
            .map_err(open("open the sets"))?,
        backup: unit
            .open_log_backup(&site.log, true, &options)
            .map_err(open("open the log as backup"))?,
        reader: unit
            .open_sets_backup(&site.sets, &options)
            .map_err(open("open the sets as backup"))?,
        next: 1,
        seed: site.seed,
    };
    handles.read_all()?;
    let small_append = handles.posted_for_log(|log| log.append(&[7; 64]).map(drop))?;
    let record: &[u8] = &[8; 64];
    let batch_of_eight = handles.posted_for_log(|log| log.append_batch(&[record; 8]).map(drop))?;
    let small_commit = handles.posted_for_commit()?;
    handles.skip_unrecognised()?;
    let before = unit_time(unit_pid)?;
    handles.work()?;
    let unit_running = since(before, unit_time(unit_pid)?);
    let stopped = Stopped::stop(unit_pid)?;
    let before = unit_time(unit_pid)?;
    let worked = handles.work();
    let unit_stopped = since(before, unit_time(unit_pid)?);
    drop(stopped);
    let read_while_stopped = worked?;
    let proof = Proof {
        provider: handles.log.provider().to_string(),
        method: handles.log.unit().persistence.name().to_owned(),
        small_append,
        batch_of_eight,
        small_commit,
        unit_running,
        unit_stopped,
        appends: APPENDS,
        commits: COMMITS,
        read_while_stopped,
    };
    let broken = proof.broken(handles.log.provider(), handles.log.unit().persistence);
    handles.verify_afresh(site, &unit)?;
    if broken.is_empty() {
        Ok(proof)
    } else {
        Err(Failure::Broken(broken))
    }
}

impl Proof {
    fn broken(&self, provider: Provider, method: PersistenceMethod) -> Vec<String> {
        let mut broken = Vec::new();
        let stopped = self.unit_stopped;
        if stopped.ticks != 0 || stopped.nanoseconds != 0 {
            broken.push(format!("the stopped unit used its processor: {stopped:?}"));
        }
        let four = Posted {
            work_requests: 4,
            completions: 1,
            doorbells: 1,
        };
        if provider == Provider::Verbs
            && method == PersistenceMethod::NativeFlush
            && self.small_append != four
        {
            broken.push(format!("one durable append took {:?}", self.small_append));
        }
        if provider == Provider::Verbs && self.read_while_stopped != APPENDS {
            broken.push(format!(
                "the backup read {} of {APPENDS} records",
                self.read_while_stopped
            ));
        }
        broken
    }
}

impl Handles {
    fn posted_for_log(
        &mut self,
        work: impl FnOnce(&mut LogPrimary) -> pmu_client::Result<()>,
    ) -> Result<Posted> {
        let before = self.log.counters();
        work(&mut self.log).map_err(Failure::client("append"))?;
        Ok(Posted::between(before, self.log.counters()))
    }

    fn posted_for_commit(&mut self) -> Result<Posted> {
        let before = self.sets.counters();
        self.sets
            .commit(&[IoSlice::new(&[9; 4096])], Label::default())
            .map_err(Failure::client("commit"))?;
        Ok(Posted::between(before, self.sets.counters()))
    }

    /// The backup passes everything that stands in the log.
    fn read_all(&mut self) -> Result<()> {
        while self
            .backup
            .read_unread(1 << 20)
            .map_err(Failure::client("read the log"))?
            .len()
            > 0
        {}
        Ok(())
    }

    /// What was posted for counting is of no seed: clears it away, so that later checks see only what follows from one.
    fn skip_unrecognised(&mut self) -> Result<()> {
        self.read_all()?;
        self.backup
            .clear_handed_out()
            .map_err(Failure::client("clear"))?;
        // Records 1-9 of this epoch were those.
        self.next = 10;
        Ok(())
    }

    /// Appends, commits, reads as backup, and checks each byte that comes back. Returns how many records came.
    fn work(&mut self) -> Result<u64> {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..APPENDS {
            content::record(self.seed, self.log.epoch(), self.next, &mut bytes);
            self.next += 1;
            self.log.append(&bytes).map_err(Failure::client("append"))?;
        }
        let mut read = 0;
        loop {
            let found = self
                .backup
                .read_unread(1 << 20)
                .map_err(Failure::client("read the log"))?;
            if found.len() == 0 {
                break;
            }
            for record in found {
                content::record(
                    self.seed,
                    record.record.epoch,
                    record.record.sequence,
                    &mut expected,
                );
                if expected != record.payload {
                    return Err(Failure::Broken(vec![format!(
                        "record {} is not what was written",
                        record.record.sequence
                    )]));
                }
                read += 1;
            }
        }
        self.backup
            .clear_handed_out()
            .map_err(Failure::client("clear"))?;
        for _ in 0..COMMITS {
            let number = pmu_client::SetNumber(self.sets.newest().get() + 1);
            content::set(
                self.seed,
                self.sets.epoch(),
                number,
                self.sets.capacity_bytes(),
                &mut expected,
            );
            self.sets
                .commit(&[IoSlice::new(&expected)], Label::default())
                .map_err(Failure::client("commit"))?;
            let found = self
                .reader
                .read(SetChoice::Newest, &mut bytes)
                .map_err(Failure::client("read a set"))?;
            if found.set.number != number || bytes != expected {
                return Err(Failure::Broken(vec![format!(
                    "set {number} is not what was written"
                )]));
            }
        }
        Ok(read)
    }

    /// On new connections, with the unit running again: the log is cleared, and the newest set is what it was.
    fn verify_afresh(self, site: &Site, unit: &pmu_client::Unit) -> Result<()> {
        let (newest, epoch, end) = (
            self.sets.newest(),
            self.sets.epoch(),
            self.log.acknowledged(),
        );
        let capacity = self.sets.capacity_bytes();
        drop(self);
        let mut reader = unit
            .open_sets_backup(&site.sets, &site.options())
            .map_err(Failure::client("open the sets again"))?;
        let (read, bytes) = reader
            .read_to_vec(SetChoice::Newest)
            .map_err(Failure::client("read a set"))?;
        let mut expected = Vec::new();
        content::set(site.seed, epoch, newest, capacity, &mut expected);
        let mut broken = Vec::new();
        if read.set.number != newest || bytes != expected {
            broken.push(format!("set {newest} is not what was written"));
        }
        let mut backup = unit
            .open_log_backup(&site.log, false, &site.options())
            .map_err(Failure::client("open the log again"))?;
        let facts = backup
            .recover(|_| Ok(()))
            .map_err(Failure::client("recover the log"))?;
        if facts.end != end || facts.cursor != end || facts.damage.is_some() {
            broken.push(format!(
                "the log should be cleared up to its end {end}: {facts:?}"
            ));
        }
        if broken.is_empty() {
            Ok(())
        } else {
            Err(Failure::Broken(broken))
        }
    }
}

/// A stopped process. It goes on when this is dropped, whatever happened.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: i32) -> Result<Self> {
        let process = Pid::from_raw(pid);
        kill(process, Signal::SIGSTOP)
            .map_err(|error| Failure::Io(format!("stop process {pid}"), error.into()))?;
        let stopped = Self(process);
        for _ in 0..1000 {
            if all_threads_stopped(pid)? {
                return Ok(stopped);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(Failure::Given(format!("process {pid} does not stop")))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Where it is gone there is nothing to wake.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn all_threads_stopped(pid: i32) -> Result<bool> {
    let mut stopped = true;
    for_threads(pid, |folder| {
        let stat = read(&folder.join("stat"))?;
        stopped &= stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('T'));
        Ok(())
    })?;
    Ok(stopped)
}

fn unit_time(pid: i32) -> Result<UnitTime> {
    let stat = read(Path::new(&format!("/proc/{pid}/stat")))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    // proc(5): utime and stime are the fields 14 and 15; the state is 3 and comes first here.
    let (Some(user), Some(kernel)) = (field(11), field(12)) else {
        return Err(Failure::Given(format!("/proc/{pid}/stat makes no sense")));
    };
    let mut nanoseconds = 0;
    for_threads(pid, |folder| {
        let text = read(&folder.join("schedstat"))?;
        nanoseconds += text
            .split_whitespace()
            .next()
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0);
        Ok(())
    })?;
    Ok(UnitTime {
        ticks: user + kernel,
        nanoseconds,
    })
}

fn since(before: UnitTime, after: UnitTime) -> UnitTime {
    UnitTime {
        ticks: after.ticks - before.ticks,
        nanoseconds: after.nanoseconds.saturating_sub(before.nanoseconds),
    }
}

fn for_threads(pid: i32, mut each: impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let folder = format!("/proc/{pid}/task");
    for entry in std::fs::read_dir(&folder).map_err(Failure::io(format!("list {folder}")))? {
        each(&entry.map_err(Failure::io(format!("list {folder}")))?.path())?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Failure::io(format!("read {}", path.display())))
}
