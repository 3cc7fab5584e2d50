//! A program as an agent runs one: it counts, each number is a record, and a snapshot is the count with some ballast.
//! `counter UNIT IDENTITY DIRECTORY BALLAST_BYTES`; regions `log` and `state`. What was acknowledged is written to `DIRECTORY/acknowledged`.
//!
//! For tests: it holds so many MiB more as `DIRECTORY/memory` says, hangs while `DIRECTORY/hang` exists, and fails at its start while `DIRECTORY/broken` does.
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

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Between two records, so that a test can look on.
const PACE: Duration = Duration::from_micros(500);

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
    handover.visit_records(|_, record| {
        let number = record
            .first_chunk()
            .map_or(0, |first| u64::from_le_bytes(*first));
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

fn run(unit: &str, identity: &Path, directory: &Path, ballast: usize) -> Result<()> {
    if directory.join("broken").exists() {
        return Err("broken, as the test wants it".into());
    }
    let count = handed_over()?;
    if std::env::var("PMU_AGENT_ROLE").is_ok_and(|role| role == "rehearsal") {
        std::fs::write(directory.join("rehearsed"), count.to_string())?;
        return Ok(());
    }
    let mib = std::fs::read_to_string(directory.join("memory")).unwrap_or_default();
    let memory = vec![1_u8; mib.parse::<usize>().unwrap_or(0) << 20];
    let mut agent = Program::from_environment();
    let identity = Identity::load(identity)?;
    let unit = Unit::connect(unit, &identity, &ConnectOptions::default())?;
    let options = OpenOptions::new();
    let log = unit.open_log_primary("log", &options)?;
    let sets = unit.open_sets_primary("state", &options)?;
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
    counter.note(&format!("start {epoch} {count}"))?;
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
            let mut record = [0; 64];
            record[..8].copy_from_slice(&(self.count + 1).to_le_bytes());
            self.log.append(&record)?;
            self.count += 1;
            self.note(&format!("{} {}", self.log.epoch(), self.count))?;
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

    fn snapshot(&mut self, id: u64) -> Result<SnapshotReport> {
        let begun = Instant::now();
        self.state[..8].copy_from_slice(&self.count.to_le_bytes());
        let label = Label::new(&format!("{} @{}", self.count, self.log.submitted()))?;
        let receipt = self.sets.commit(&[IoSlice::new(&self.state)], label)?;
        let took_us = u64::try_from(begun.elapsed().as_micros())?;
        Ok(SnapshotReport {
            id,
            set: receipt.set().map_or(0, |set| set.get()),
            bytes: receipt.bytes,
            pause_us: took_us,
            took_us,
            durable: receipt.is_durable(),
            error: None,
        })
    }
}
