//! Several units on memory pools, each in a process of its own, and a region spread over them; ended with this value.

use std::fs;
use std::path::{Path, PathBuf};

use pmu_client::{ConnectOptions, Identity, Layout, Spread};

use crate::measure::Failure;
use crate::process::{CLIENT, UnitProcess, found_site, output, run};

/// The region's name.
pub(crate) const REGION: &str = "state";
/// Sets kept; there is room for one more, which is being written.
const SETS_KEPT: u64 = 2;
/// What a pool needs beside the sets.
const POOL_MORE_BYTES: u64 = 16 << 20;

/// Running units, unlocked, with one spread region.
pub(crate) struct Units {
    processes: Vec<Option<UnitProcess>>,
    names: Vec<String>,
    /// What each has as its pool.
    pool: String,
    /// Units that were ever started.
    started: usize,
    folder: PathBuf,
}

impl Units {
    /// Starts as many units as the layout has, with a region for sets of up to `capacity_bytes`. Memory is touched when it is written.
    ///
    /// # Errors
    /// This machine has not enough free memory; what a program says.
    pub(crate) fn start(
        folder: &Path,
        layout: Layout,
        capacity_bytes: u64,
    ) -> Result<Self, Failure> {
        found_site(folder)?;
        let share = capacity_bytes.div_ceil(layout.data_shards() as u64);
        let pool_bytes =
            ((SETS_KEPT + 1) * (share + share / 64) + POOL_MORE_BYTES).next_multiple_of(1 << 20);
        check_memory(pool_bytes * layout.units() as u64 + 2 * capacity_bytes)?;
        let pool = format!("medium = \"memory\"\nsize = \"{}MiB\"", pool_bytes >> 20);
        let names: Vec<_> = (1..=layout.units())
            .map(|index| format!("unit-{index}"))
            .collect();
        let mut processes = Vec::new();
        for name in &names {
            processes.push(Some(UnitProcess::start(folder, name, &pool)?.0));
        }
        let (capacity, sets) = (capacity_bytes.to_string(), SETS_KEPT.to_string());
        let (layout, units) = (layout.to_string(), names.join(","));
        let grant = format!("{CLIENT}:read,write");
        #[rustfmt::skip]
        run("pmm", folder, &[
            "region", "create", REGION, "--layout", &layout, "--units", &units, "--mode", "overwrite",
            "--capacity", &capacity, "--sets", &sets, "--need", "volatile", "--grant", &grant,
        ])?;
        Ok(Self {
            processes,
            started: names.len(),
            names,
            pool,
            folder: folder.to_owned(),
        })
    }

    /// The control services of those that run.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        let running = self.processes.iter().flatten();
        running.map(|process| process.control.as_str()).collect()
    }

    /// The folder of the client's identity.
    pub(crate) fn identity(&self) -> PathBuf {
        self.folder.join(CLIENT)
    }

    /// The region, as a program finds it through any unit that runs.
    pub(crate) fn find(&self) -> Result<Spread, Failure> {
        find(&self.identity(), &self.addresses())
    }

    /// The same for any region.
    pub(crate) fn find_region(&self, name: &str) -> Result<Spread, Failure> {
        let identity = Identity::load(&self.identity())?;
        let options = ConnectOptions::default();
        Ok(Spread::find(&self.addresses(), name, &identity, &options)?)
    }

    /// Makes a log over all units, with members of this length; there is room for a short one.
    pub(crate) fn create_log(&self, name: &str, bytes: u64) -> Result<(), Failure> {
        let layout = self.find()?.layout().to_string();
        let units: Vec<_> = (1..=self.processes.len())
            .map(|index| format!("unit-{index}"))
            .collect();
        let (units, size) = (units.join(","), bytes.to_string());
        let grant = format!("{CLIENT}:read,append,clear");
        #[rustfmt::skip]
        run("pmm", &self.folder, &[
            "region", "create", name, "--layout", &layout, "--units", &units, "--mode", "append",
            "--size", &size, "--need", "volatile", "--grant", &grant,
        ])?;
        Ok(())
    }

    /// Ends a unit with SIGKILL; what it held is lost.
    pub(crate) fn kill(&mut self, index: usize) {
        self.processes[index] = None;
    }

    /// Kills the next of the units in turn, and starts one that is to take its place: which, and both as `OLD=NEW`.
    pub(crate) fn begin_replacing(&mut self) -> Result<String, Failure> {
        let index = self.started % self.names.len();
        self.started += 1;
        self.processes[index] = None;
        let name = format!("unit-{}", self.started);
        let process = UnitProcess::start(&self.folder, &name, &self.pool)?.0;
        self.processes[index] = Some(process);
        let old = std::mem::replace(&mut self.names[index], name);
        Ok(format!("{old}={}", self.names[index]))
    }

    /// Rebuilds what `OLD=NEW` says; the bytes that were read of the others.
    pub(crate) fn replace(&self, replacement: &str) -> Result<u64, Failure> {
        let arguments = [
            "region",
            "rebuild",
            REGION,
            "--replace",
            replacement,
            "--yes",
            "--json",
        ];
        let report: serde_json::Value =
            serde_json::from_slice(&output("pmm", &self.folder, &arguments)?)?;
        let read = report["bytes_read"].as_u64();
        read.ok_or_else(|| format!("no bytes_read in {report}").into())
    }

    /// Processor time that the units have used, in seconds.
    pub(crate) fn cpu_s(&self) -> Result<f64, Failure> {
        self.processes
            .iter()
            .flatten()
            .map(UnitProcess::cpu_s)
            .sum()
    }
}

/// The spread region of units at these addresses.
pub(crate) fn find(identity: &Path, addresses: &[&str]) -> Result<Spread, Failure> {
    let identity = Identity::load(identity)?;
    let options = ConnectOptions::default();
    Ok(Spread::find(addresses, REGION, &identity, &options)?)
}

fn check_memory(needed_bytes: u64) -> Result<(), Failure> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let available = kib.ok_or("/proc/meminfo: no MemAvailable")? << 10;
    if available >= needed_bytes {
        return Ok(());
    }
    let (needed, there) = (needed_bytes >> 20, available >> 20);
    Err(format!("{needed} MiB of memory are needed, {there} MiB are available").into())
}
