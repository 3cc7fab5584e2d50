//! By way of a distributor in a process of its own, beside straight from the client: a checkpoint, and records.

use std::io::IoSlice;
use std::path::Path;
use std::time::Instant;

use pmu_client::{
    ConnectOptions, Counters, Distributed, DistributedLog, Identity, Label, Layout, SpreadLogBackup,
};
use pmu_fabric::soft::wire::{HEADER_BYTES, OP_BYTES};

use crate::measure::{Failure, Kind, Label as Figure, Row, alternate};
use crate::process::DistributorProcess;
use crate::site::Site;
use crate::spread::SET_BYTES;
use crate::spread::units::{REGION, Units};

/// Length of a checkpoint where there is little time.
const QUICK_SET_BYTES: usize = 128 << 20;
const LOG: &str = "log";
/// Length of the log on each unit: what one run appends fits.
const LOG_BYTES: u64 = 12 << 20;
const RECORD_BYTES: usize = 256;
const RECORDS: usize = 30_000;
/// Records with one in flight.
const ONE_IN_FLIGHT: usize = 500;
const READ_BYTES: usize = 4 << 20;

/// Units, and the distributor.
struct Ground {
    units: Units,
    process: DistributorProcess,
    identity: Identity,
    backup: SpreadLogBackup,
    _folder: tempfile::TempDir,
}

/// What one data connection sent, heads included, beside the payload. The stream of small messages is not counted.
struct Wire {
    payload: u64,
    sent: u64,
}

impl Wire {
    fn count(&mut self, payload: u64, done: Counters) {
        let heads = done.chains * HEADER_BYTES as u64 + done.work_requests * OP_BYTES as u64;
        self.payload += payload;
        self.sent += done.bytes_written + heads;
    }

    fn note(&self) -> String {
        let more = (self.sent as f64 / self.payload as f64 - 1.0) * 100.0;
        format!("the client writes its bytes once, and {more:.3} % more")
    }
}

/// A checkpoint of 1 GiB (128 MiB if `quick`), and records of 256 bytes, pipelined and one by one.
///
/// # Errors
/// Units or the distributor don't start, or fail; too little memory; the client sends more than 1 % above its payload.
pub(crate) fn beside(
    layout: &str,
    dir: &Path,
    runs: usize,
    quick: bool,
) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let bytes = if quick { QUICK_SET_BYTES } else { SET_BYTES };
    let mut ground = Ground::start(dir, layout, bytes)?;
    Ok(vec![
        ground.checkpoint(bytes, runs)?,
        ground.record_rate(runs)?,
        ground.record_latency(runs)?,
    ])
}

impl Ground {
    fn start(dir: &Path, layout: Layout, bytes: usize) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in(dir)?;
        let units = Units::start(folder.path(), layout, bytes as u64)?;
        units.create_log(LOG, LOG_BYTES)?;
        let process = DistributorProcess::start(folder.path(), &units.addresses(), &[REGION, LOG])?;
        let identity = Identity::load(&units.identity())?;
        let backup = units
            .find_region(LOG)?
            .open_log_backup(true, &Site::options())?;
        Ok(Self {
            units,
            process,
            identity,
            backup,
            _folder: folder,
        })
    }

    /// One primary at a time has a region: each is opened before it is timed, and ended behind.
    fn checkpoint(&self, bytes: usize, runs: usize) -> Result<Row, Failure> {
        let payload: Vec<u8> = (0..bytes).map(|index| ((index * 31) >> 3) as u8).collect();
        let mut wire = Wire {
            payload: 0,
            sent: 0,
        };
        let figure = Figure {
            name: "spread.distributor.write",
            size_bytes: bytes as u64,
            unit: "ms",
            limit_name: "straight from the client",
            kind: Kind::Time,
        };
        let mut row = alternate(
            figure,
            runs,
            || {
                let (address, options) = (&self.process.control, Site::options());
                let connect = ConnectOptions::default();
                let mut primary =
                    Distributed::connect(address, REGION, &self.identity, &connect, &options)?;
                let begun = Instant::now();
                let receipt = primary.commit(&[IoSlice::new(&payload)], Label::default())?;
                let ms = begun.elapsed().as_secs_f64() * 1e3;
                wire.count(bytes as u64, primary.counters());
                self.check_units(receipt.units.len())?;
                Ok(ms)
            },
            || {
                let mut primary = self.units.find()?.open_primary(&Site::options())?;
                let begun = Instant::now();
                let receipt = primary.commit(&[IoSlice::new(&payload)], Label::default())?;
                let ms = begun.elapsed().as_secs_f64() * 1e3;
                self.check_units(receipt.units.len())?;
                Ok(ms)
            },
        )?;
        row.note = Some(wire.checked()?);
        Ok(row)
    }

    fn check_units(&self, count: usize) -> Result<(), Failure> {
        match self.units.addresses().len() {
            expected if expected == count => Ok(()),
            expected => Err(format!("stored on {count} of {expected} units").into()),
        }
    }

    fn record_rate(&mut self, runs: usize) -> Result<Row, Failure> {
        let record = [7; RECORD_BYTES];
        let mut wire = Wire {
            payload: 0,
            sent: 0,
        };
        let figure = record_figure("spread.distributor.append_rate", "1/s", Kind::Rate);
        let address = self.process.control.clone();
        let (units, identity) = (&self.units, &self.identity);
        let backup = std::cell::RefCell::new(&mut self.backup);
        let mut row = alternate(
            figure,
            runs,
            || {
                let mut log = open_log(&address, identity)?;
                let begun = Instant::now();
                for _ in 0..RECORDS {
                    log.submit(&record)?;
                }
                log.flush()?;
                let rate = RECORDS as f64 / begun.elapsed().as_secs_f64();
                wire.count((RECORDS * RECORD_BYTES) as u64, log.counters());
                clear(&mut backup.borrow_mut(), RECORDS)?;
                Ok(rate)
            },
            || {
                let mut log = units.find_region(LOG)?.open_log_primary(&Site::options())?;
                let begun = Instant::now();
                for _ in 0..RECORDS {
                    log.submit(&record)?;
                }
                log.flush()?;
                let rate = RECORDS as f64 / begun.elapsed().as_secs_f64();
                clear(&mut backup.borrow_mut(), RECORDS)?;
                Ok(rate)
            },
        )?;
        row.note = Some(wire.checked()?);
        Ok(row)
    }

    fn record_latency(&mut self, runs: usize) -> Result<Row, Failure> {
        let record = [7; RECORD_BYTES];
        let figure = record_figure("spread.distributor.append_lat", "us", Kind::Time);
        let address = self.process.control.clone();
        let (units, identity) = (&self.units, &self.identity);
        let backup = std::cell::RefCell::new(&mut self.backup);
        let each_us = |begun: Instant| begun.elapsed().as_secs_f64() * 1e6 / ONE_IN_FLIGHT as f64;
        alternate(
            figure,
            runs,
            || {
                let mut log = open_log(&address, identity)?;
                let begun = Instant::now();
                for _ in 0..ONE_IN_FLIGHT {
                    log.append(&record)?;
                }
                let us = each_us(begun);
                clear(&mut backup.borrow_mut(), ONE_IN_FLIGHT)?;
                Ok(us)
            },
            || {
                let mut log = units.find_region(LOG)?.open_log_primary(&Site::options())?;
                let begun = Instant::now();
                for _ in 0..ONE_IN_FLIGHT {
                    log.append(&record)?;
                }
                let us = each_us(begun);
                clear(&mut backup.borrow_mut(), ONE_IN_FLIGHT)?;
                Ok(us)
            },
        )
    }
}

impl Wire {
    /// In words, if it is less than 1 % above the payload.
    fn checked(&self) -> Result<String, Failure> {
        let note = self.note();
        if self.sent * 100 < self.payload * 101 {
            return Ok(note);
        }
        Err(format!("too much: {note}").into())
    }
}

fn record_figure(name: &'static str, unit: &'static str, kind: Kind) -> Figure {
    Figure {
        name,
        size_bytes: RECORD_BYTES as u64,
        unit,
        limit_name: "straight from the client",
        kind,
    }
}

fn open_log(address: &str, identity: &Identity) -> Result<DistributedLog, Failure> {
    let (connect, options) = (ConnectOptions::default(), Site::options());
    Ok(DistributedLog::connect(
        address, LOG, identity, &connect, &options,
    )?)
}

/// Gives the ring back, and checks that all records are there.
fn clear(backup: &mut SpreadLogBackup, expected: usize) -> Result<(), Failure> {
    let mut found = 0;
    loop {
        let count = backup.read_unread(READ_BYTES)?.count();
        if count == 0 {
            break;
        }
        found += count;
        backup.clear_handed_out()?;
    }
    if found == expected {
        return Ok(());
    }
    Err(format!("{found} records found, {expected} appended").into())
}
