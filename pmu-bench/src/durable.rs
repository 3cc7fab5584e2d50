//! Durable records and checkpoints through the client library and a unit of its own process.

use std::io::IoSlice;
use std::time::Instant;

use pmu_client::{Label, LogBackup, LogPrimary, SetChoice, SetPrimary, SetReader};

use crate::measure::Failure;
use crate::process::own_cpu_s;
use crate::site::Site;

/// Bytes of the ring: what one run appends fits.
const RING_BYTES: u64 = 192 << 20;

/// A log: its primary, and the backup that clears it between runs.
pub(crate) struct Log {
    primary: LogPrimary,
    backup: LogBackup,
}

impl Log {
    pub(crate) fn create(site: &Site, name: &str) -> Result<Self, Failure> {
        site.create_log(name, RING_BYTES)?;
        let primary = site.unit.open_log_primary(name, &Site::options())?;
        let backup = site.unit.open_log_backup(name, true, &Site::options())?;
        Ok(Self { primary, backup })
    }

    /// Gives the ring back, and checks that all records are there.
    fn clear(&mut self, expected: usize) -> Result<(), Failure> {
        let mut found = 0;
        loop {
            let count = self.backup.read_unread(4 << 20)?.count();
            if count == 0 {
                break;
            }
            found += count;
        }
        self.backup.clear_handed_out()?;
        self.primary.refresh_free()?;
        if found == expected {
            Ok(())
        } else {
            Err(format!("{found} records found, {expected} appended").into())
        }
    }

    /// Appends records with one in flight; microseconds for one.
    pub(crate) fn append_us(&mut self, record: &[u8], count: usize) -> Result<f64, Failure> {
        let begun = Instant::now();
        for _ in 0..count {
            self.primary.append(record)?;
        }
        let us = begun.elapsed().as_secs_f64() * 1e6 / count as f64;
        self.clear(count)?;
        Ok(us)
    }

    /// Appends records, pipelined, until the last is durable; records per second.
    pub(crate) fn append_rate(&mut self, record: &[u8], count: usize) -> Result<f64, Failure> {
        let begun = Instant::now();
        for _ in 0..count {
            self.primary.submit(record)?;
        }
        self.primary.flush()?;
        let rate = count as f64 / begun.elapsed().as_secs_f64();
        self.clear(count)?;
        Ok(rate)
    }
}

/// A region of sets: its primary and a reader.
pub(crate) struct Sets<'a> {
    site: &'a Site,
    primary: SetPrimary,
    reader: SetReader,
    payload: Vec<u8>,
    read: Vec<u8>,
    /// Bytes and processor time of all commits so far: ours, the unit's.
    totals: (f64, f64, f64),
}

impl<'a> Sets<'a> {
    pub(crate) fn create(site: &'a Site, name: &str, bytes: usize) -> Result<Self, Failure> {
        site.create_sets(name, bytes as u64)?;
        let primary = site.unit.open_sets_primary(name, &Site::options())?;
        let reader = site.unit.open_sets_reader(name, &Site::options())?;
        let payload = (0..bytes).map(|index| ((index * 31) >> 3) as u8).collect();
        Ok(Self {
            site,
            primary,
            reader,
            payload,
            read: Vec::with_capacity(bytes),
            totals: (0.0, 0.0, 0.0),
        })
    }

    /// The bytes of each set.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Commits one set; milliseconds until it is durable.
    pub(crate) fn commit_ms(&mut self) -> Result<f64, Failure> {
        let (own, unit) = (own_cpu_s()?, self.site.unit_cpu_s()?);
        let begun = Instant::now();
        let receipt = self
            .primary
            .commit(&[IoSlice::new(&self.payload)], Label::default())?;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        if !receipt.is_durable() {
            return Err("the receipt does not say durable".into());
        }
        self.totals.0 += self.payload.len() as f64 / f64::from(1 << 30);
        self.totals.1 += own_cpu_s()? - own;
        self.totals.2 += self.site.unit_cpu_s()? - unit;
        Ok(ms)
    }

    /// Reads the newest set and compares; milliseconds for the reading (every chunk's checksum included).
    pub(crate) fn read_ms(&mut self) -> Result<f64, Failure> {
        self.read.clear();
        let begun = Instant::now();
        self.reader.read(SetChoice::Newest, &mut self.read)?;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        if self.read == self.payload {
            Ok(ms)
        } else {
            Err("read other bytes than were committed".into())
        }
    }

    /// Processor time for each GiB committed.
    pub(crate) fn cpu_note(&self) -> String {
        let (gib, own, unit) = self.totals;
        format!(
            "CPU for each GiB committed: client {:.2} s, unit {:.2} s",
            own / gib,
            unit / gib
        )
    }
}
