//! A program as an agent runs one: it counts, each number is a record, and a snapshot is the count with some ballast.
//! `counter UNIT IDENTITY DIRECTORY BALLAST_BYTES`; regions `log` and `state`. Each record bears its number, the epoch and the process.
//!
//! What was acknowledged is written to `DIRECTORY/acknowledged`, with the times of the monotonic clock: before the library was asked, and when it
//! had answered. Lines: `start EPOCH COUNT PROCESS OPENED_NS FENCED_NS`, `record EPOCH RECEIPTS_EPOCH NUMBER FROM TO BEGUN_NS TOLD_NS`, `fenced EPOCH COUNT`,
//! `set EPOCH SETS_EPOCH NUMBER BEGUN_NS TOLD_NS`.
//!
//! For tests: the first one waits so many milliseconds before it opens its regions as `DIRECTORY/load` says, and removes that; one that was fenced stays for a minute while `DIRECTORY/linger` exists; it holds so many MiB more as `DIRECTORY/memory` says, hangs while `DIRECTORY/hang` exists, and fails at its start while `DIRECTORY/broken` does.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::fs::{File, OpenOptions as FileOptions};
use std::io::{IoSlice, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pmu_client::agent::{Handover, Order, Program, SnapshotReport};
use pmu_client::{
    ClientError, ConnectOptions, Identity, Label, LogPrimary, OpenOptions, SetPrimary, Unit,
};
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Between two records, so that a test can look on.
const PACE: Duration = Duration::from_micros(500);

/// A record: number, epoch and process, and nothing behind them.
const RECORD_BYTES: usize = 64;

struct Counter {
    count: u64,
    log: LogPrimary,
    sets: SetPrimary,
    state: Vec<u8>,
    acknowledged: File,
    directory: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [unit, identity, directory, ballast] = arguments.as_slice() else {
        eprintln!("counter UNIT IDENTITY DIRECTORY BALLAST_BYTES");
        return ExitCode::from(2);
    };
    let done = ballast
        .parse()
        .map_err(Into::into)
        .and_then(|ballast| run(unit, identity.as_ref(), directory.as_ref(), ballast));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("counter: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The count that was handed over: of the newest set, and of the records behind it, of which none may be missing.
fn handed_over() -> Result<u64> {
    let Some(handover) = Handover::from_environment()? else {
        return Ok(0);
    };
    let mut count = 0;
    if let Some(state) = handover.read_state()? {
        count = state
            .first_chunk()
            .map_or(0, |first| u64::from_le_bytes(*first));
    }
    let in_set = count;
    let mut epoch = 0;
    handover.visit_records(|position, record| {
        let [number, of, process] = [0, 8, 16].map(|at| u64_at(record, at));
        if of < epoch {
            let what = format!(
                "two leaders: the record at {position}, of process {process}, has epoch {of} behind one of epoch {epoch}"
            );
            return Err(ClientError::Invalid(what));
        }
        epoch = of;
        if number > count + 1 {
            let what = format!("record {number} comes behind {count}: some are missing");
            return Err(ClientError::Invalid(what));
        }
        count = count.max(number);
        Ok(())
    })?;
    println!(
        "counter: handed over: {in_set} in set {}, {count} with the records",
        handover.set
    );
    Ok(count)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn run(unit: &str, identity: &Path, directory: &Path, ballast: usize) -> Result<()> {
    if directory.join("broken").exists() {
        return Err("broken, as the test wants it".into());
    }
    let count = handed_over()?;
    if std::env::var("PMU_AGENT_ROLE").is_ok_and(|role| role == "rehearsal") {
        std::fs::write(directory.join("rehearsed"), count.to_string())?;
        return Ok(());
    }
    let load = directory.join("load");
    if let Ok(milliseconds) = std::fs::read_to_string(&load) {
        std::fs::remove_file(load)?;
        std::thread::sleep(Duration::from_millis(milliseconds.parse()?));
    }
    let mib = std::fs::read_to_string(directory.join("memory")).unwrap_or_default();
    let memory = vec![1_u8; mib.parse::<usize>().unwrap_or(0) << 20];
    let mut agent = Program::from_environment();
    let identity = Identity::load(identity)?;
    let unit = Unit::connect(unit, &identity, &ConnectOptions::default())?;
    let options = OpenOptions::new();
    let log = unit.open_log_primary("log", &options)?;
    let sets = unit.open_sets_primary("state", &options)?;
    let opened_ns = now_ns();
    let file = directory.join("acknowledged");
    let mut counter = Counter {
        count,
        log,
        sets,
        state: vec![0; ballast.max(8)],
        acknowledged: FileOptions::new().create(true).append(true).open(file)?,
        directory: directory.to_owned(),
    };
    let epoch = counter.log.epoch();
    let process = std::process::id();
    let fenced_ns = pmu_client::agent::fenced_ns().unwrap_or(0);
    counter.note(&format!(
        "start {epoch} {count} {process} {opened_ns} {fenced_ns}"
    ))?;
    if let Some(agent) = &mut agent {
        agent.ready(epoch);
    }
    let done = counter.work(agent.as_mut());
    std::hint::black_box(&memory);
    if let (Err(error), Some(agent)) = (&done, &mut agent)
        && let Some(client) = error.downcast_ref::<ClientError>()
        && client.is_fenced()
    {
        counter.note(&format!("fenced {epoch} {}", counter.count))?;
        agent.fenced(&client.to_string());
        let begun = Instant::now();
        while directory.join("linger").exists() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    done
}

impl Counter {
    fn note(&mut self, line: &str) -> Result<()> {
        // One call: a killed process leaves whole lines.
        self.acknowledged
            .write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }

    fn work(&mut self, mut agent: Option<&mut Program>) -> Result<()> {
        loop {
            while self.directory.join("hang").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.append()?;
            std::thread::sleep(PACE);
            let Some(agent) = &mut agent else { continue };
            if agent.beat_is_due() {
                self.log.beat()?;
            }
            match agent.order() {
                Some(Order::Snapshot { id }) => {
                    let report = self.snapshot(id)?;
                    agent.done(&report);
                }
                Some(Order::Stop) => {
                    self.snapshot(0)?;
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    fn append(&mut self) -> Result<()> {
        let epoch = self.log.epoch();
        let mut record = [0; RECORD_BYTES];
        let number = self.count + 1;
        for (at, value) in [
            (0, number),
            (8, epoch.get()),
            (16, std::process::id().into()),
        ] {
            record[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let begun_ns = now_ns();
        let ticket = self.log.submit(&record)?;
        let receipt = self.log.wait(ticket)?;
        let (told_ns, told_epoch) = (now_ns(), receipt.epoch);
        self.count = number;
        let (from, to) = (ticket.position(), ticket.end());
        self.note(&format!(
            "record {epoch} {told_epoch} {number} {from} {to} {begun_ns} {told_ns}"
        ))
    }

    fn snapshot(&mut self, id: u64) -> Result<SnapshotReport> {
        let begun = Instant::now();
        self.state[..8].copy_from_slice(&self.count.to_le_bytes());
        let label = Label::new(&format!("{} @{}", self.count, self.log.submitted()))?;
        let begun_ns = now_ns();
        let receipt = self.sets.commit(&[IoSlice::new(&self.state)], label)?;
        let (told_ns, number) = (now_ns(), receipt.set().map_or(0, |set| set.get()));
        let (epoch, sets_epoch) = (self.log.epoch(), receipt.epoch);
        self.note(&format!(
            "set {epoch} {sets_epoch} {number} {begun_ns} {told_ns}"
        ))?;
        let took_us = u64::try_from(begun.elapsed().as_micros())?;
        Ok(SnapshotReport {
            id,
            set: number,
            bytes: receipt.bytes,
            pause_us: took_us,
            took_us,
            durable: receipt.is_durable(),
            error: None,
        })
    }
}
