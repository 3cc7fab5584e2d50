//! The primary that writes until it is stopped, with a backup beside it that clears.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pmu_client::{ClientError, Label, LogBackup, LogPrimary, RecordMark, SetPrimary, Unit};
use pmu_format::crc64_nvme;

use crate::content::{self, Random};
use crate::failure::{Failure, Result};
use crate::receipts::{Line, Printer, Speaker, Written};
use crate::site::Site;

/// Records that are submitted before the first of them is waited for.
const PIPELINE: u64 = 24;
/// Records of one batch.
const BATCH: u64 = 6;

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Steps of the log's writer; each is a record, a batch or a pipeline. None: until the end.
    pub steps: Option<u64>,
    /// Sets. None: until the end.
    pub sets: Option<u64>,
    /// Whether a backup clears what it has read.
    pub clear: bool,
}

/// Writes, and prints receipts to standard output.
///
/// # Errors
/// The first that a writer or the backup met; it is printed as [`Line::Ended`] too.
pub fn run(site: &Site, limits: Limits) -> Result<()> {
    let unit = site.connect()?;
    let (printer, speaker) = Printer::start(std::io::stdout());
    let ended = write_both(&unit, site, limits, &speaker);
    drop(speaker);
    printer.finish()?;
    ended
}

fn write_both(unit: &Unit, site: &Site, limits: Limits, speaker: &Speaker) -> Result<()> {
    let options = site.options();
    let log = unit
        .open_log_primary(&site.log, &options)
        .map_err(Failure::client("open the log"))?;
    let sets = unit
        .open_sets_primary(&site.sets, &options)
        .map_err(Failure::client("open the sets"))?;
    for (region, epoch, proof, provider) in [
        (&site.log, log.epoch(), log.unit(), log.provider()),
        (&site.sets, sets.epoch(), sets.unit(), sets.provider()),
    ] {
        speaker.say(Line::Opened {
            region: region.clone(),
            epoch: epoch.get(),
            method: proof.persistence.name().to_owned(),
            provider: provider.to_string(),
        });
    }
    with_clearer(unit, site, limits, speaker, || {
        std::thread::scope(|scope| {
            let log_writer = scope.spawn(|| {
                told(
                    &site.log,
                    speaker,
                    write_log(log, site.seed, limits, speaker),
                )
            });
            let set_writer = scope.spawn(|| {
                told(
                    &site.sets,
                    speaker,
                    write_sets(sets, site.seed, limits, speaker),
                )
            });
            let results = [joined(log_writer.join()), joined(set_writer.join())];
            results.into_iter().collect()
        })
    })
}

/// Writes while a backup clears the log, if the limits ask for one.
pub(crate) fn with_clearer(
    unit: &Unit,
    site: &Site,
    limits: Limits,
    speaker: &Speaker,
    write: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if !limits.clear {
        return write();
    }
    let writers_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clearer = scope.spawn(|| {
            let backup = unit
                .open_log_backup(&site.log, true, &site.options())
                .map_err(Failure::client("open the log as backup"))?;
            clear(backup, site.seed, &writers_ended, speaker)
        });
        let written = write();
        writers_ended.store(true, Ordering::Release);
        written.and(joined(clearer.join()))
    })
}

fn joined(result: std::thread::Result<Result<()>>) -> Result<()> {
    result.unwrap_or_else(|_| Err(Failure::Given("a thread of the witness panicked".into())))
}

fn told(region: &str, speaker: &Speaker, ended: Result<()>) -> Result<()> {
    if let Err(error) = &ended {
        let fenced = matches!(error, Failure::Client(_, error) if error.is_fenced());
        speaker.say(Line::Ended {
            region: region.to_owned(),
            fenced,
            reason: error.to_string(),
        });
    }
    ended
}

/// Makes records and counts them.
#[derive(Debug)]
pub(crate) struct Records {
    seed: u64,
    next: u64,
    buffers: Vec<Vec<u8>>,
}

impl Records {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            next: 1,
            buffers: Vec::new(),
        }
    }

    /// The next `count` records, and what their receipt must say.
    pub(crate) fn make(&mut self, log: &LogPrimary, count: u64) -> (&[Vec<u8>], Written) {
        let mut written = Written {
            sequence: self.next,
            ..Written::default()
        };
        self.buffers
            .resize_with(self.buffers.len().max(count as usize), Vec::new);
        let buffers = &mut self.buffers[..count as usize];
        for buffer in buffers.iter_mut() {
            content::record(self.seed, log.epoch(), self.next, buffer);
            self.next += 1;
            written.records += 1;
            written.bytes += buffer.len() as u64;
            written.crc = written.crc.wrapping_add(crc64_nvme(buffer));
        }
        (buffers, written)
    }
}

/// One record after the other, batches, and many in flight at once.
pub(crate) fn write_log(
    mut log: LogPrimary,
    seed: u64,
    limits: Limits,
    speaker: &Speaker,
) -> Result<()> {
    let failed = |error: ClientError| Failure::Client("append", error);
    let mut records = Records::new(seed);
    let mut random = Random::new(&[seed, 3, log.epoch().get()]);
    let mut steps = 0;
    while limits.steps.is_none_or(|limit| steps < limit) {
        steps += 1;
        match random.below(8) {
            0..3 => {
                let (made, written) = records.make(&log, 1);
                let receipt = log.append(&made[0]).map_err(failed)?;
                speaker.say(Line::log(&receipt, written));
            }
            3..5 => {
                let (made, written) = records.make(&log, 2 + random.below(BATCH - 1));
                let slices: Vec<_> = made.iter().map(Vec::as_slice).collect();
                let receipt = log.append_batch(&slices).map_err(failed)?;
                speaker.say(Line::log(&receipt, written));
            }
            _ => pipeline(
                &mut log,
                &mut records,
                2 + random.below(PIPELINE - 1),
                speaker,
            )
            .map_err(failed)?,
        }
    }
    Ok(())
}

/// Receipts come while later records are on their way.
fn pipeline(
    log: &mut LogPrimary,
    records: &mut Records,
    count: u64,
    speaker: &Speaker,
) -> Result<(), ClientError> {
    let mut tickets = std::collections::VecDeque::new();
    for _ in 0..count {
        let (made, written) = records.make(log, 1);
        tickets.push_back((log.submit(&made[0])?, written));
        while let Some((ticket, written)) = tickets.front().copied()
            && log.is_durable(ticket)
        {
            let receipt = log.wait(ticket)?;
            speaker.say(Line::log(&receipt, written));
            tickets.pop_front();
        }
    }
    for (ticket, written) in tickets {
        let receipt = log.wait(ticket)?;
        speaker.say(Line::log(&receipt, written));
    }
    Ok(())
}

/// One set after the other.
pub(crate) fn write_sets(
    mut sets: SetPrimary,
    seed: u64,
    limits: Limits,
    speaker: &Speaker,
) -> Result<()> {
    let mut bytes = Vec::new();
    let mut count = 0;
    while limits.sets.is_none_or(|limit| count < limit) {
        count += 1;
        let number = pmu_client::SetNumber(sets.newest().get() + 1);
        content::set(
            seed,
            sets.epoch(),
            number,
            sets.capacity_bytes(),
            &mut bytes,
        );
        let receipt = sets
            .commit(&[IoSlice::new(&bytes)], Label::default())
            .map_err(Failure::client("commit"))?;
        if receipt.set() != Some(number) {
            return Err(Failure::Broken(vec![format!(
                "set {number} was committed as {:?}",
                receipt.set()
            )]));
        }
        speaker.say(Line::set(&receipt, crc64_nvme(&bytes)));
    }
    Ok(())
}

/// Follows the log, checks what it reads, and clears it whenever half of the ring is full.
fn clear(
    mut backup: LogBackup,
    seed: u64,
    writers_ended: &AtomicBool,
    speaker: &Speaker,
) -> Result<()> {
    let half = backup.region().length_bytes / 2;
    let mut cleared = backup.position().get();
    let mut last: Option<RecordMark> = None;
    while !writers_ended.load(Ordering::Acquire) {
        let unread = backup
            .read_unread(1 << 20)
            .map_err(Failure::client("read the log as backup"))?;
        let mut idle = true;
        for found in unread {
            idle = false;
            let record = found.record;
            if !is_genuine(seed, &found) {
                let what = format!("the backup read what nobody wrote at {}", record.position);
                return Err(Failure::Broken(vec![what]));
            }
            last = Some(record.mark);
        }
        match last {
            Some(mark) if mark.position().get() - cleared > half => {
                let to = mark.position().get();
                speaker.say(Line::Clearing { to });
                // The intention must be on record before the deed, also where the way there is slow.
                std::thread::sleep(Duration::from_millis(250));
                backup.clear(mark).map_err(Failure::client("clear"))?;
                speaker.say(Line::Cleared { to });
                cleared = to;
            }
            _ if idle => std::thread::sleep(Duration::from_millis(5)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a record holds exactly what a writer of this seed writes under its epoch and number.
pub(crate) fn is_genuine(seed: u64, found: &pmu_client::LogRecord<'_>) -> bool {
    let mut expected = Vec::new();
    content::record(
        seed,
        found.record.epoch,
        found.record.sequence,
        &mut expected,
    );
    expected == found.payload
}
