//! One unit on a file pool with its regions, in a folder; ended with this value.

use std::path::{Path, PathBuf};

use pmu_client::{OpenOptions, Provider, ProviderChoice, Unit};

use crate::measure::Failure;
use crate::process::{CLIENT, UnitProcess, found_site, run};

/// A running unit, unlocked, with a connection to its control service.
pub(crate) struct Site {
    process: UnitProcess,
    folder: PathBuf,
    /// The way to its regions.
    pub(crate) unit: Unit,
}

impl Site {
    /// Starts a unit on a file pool in `folder`, with a Unix and a TCP data listener.
    pub(crate) fn start(folder: &Path, pool_bytes: u64) -> Result<Self, Failure> {
        found_site(folder)?;
        let pool = folder.join("pool").to_string_lossy().into_owned();
        let size = pool_bytes.to_string();
        let init = ["init", "--pool", &pool, "--medium", "file", "--size", &size];
        run("pmu-server", folder, &init)?;
        let pool = "medium = \"file\"\npath = \"pool\"";
        let (process, unit) = UnitProcess::start(folder, "unit", pool)?;
        Ok(Self {
            process,
            folder: folder.to_owned(),
            unit,
        })
    }

    /// As [`Self::start`], on a pool in memory, which is not durable.
    pub(crate) fn start_in_memory(folder: &Path, pool_bytes: u64) -> Result<Self, Failure> {
        found_site(folder)?;
        let pool = format!("medium = \"memory\"\nsize = {pool_bytes}");
        let (process, unit) = UnitProcess::start(folder, "unit", &pool)?;
        Ok(Self {
            process,
            folder: folder.to_owned(),
            unit,
        })
    }

    fn pmm(&self, arguments: &[&str]) -> Result<(), Failure> {
        run("pmm", &self.folder, arguments)
    }

    /// Makes a log of this many bytes.
    pub(crate) fn create_log(&self, name: &str, bytes: u64) -> Result<(), Failure> {
        let (grant, size) = (format!("{CLIENT}:read,append,clear"), bytes.to_string());
        self.pmm(&[
            "region", "create", name, "--mode", "append", "--size", &size, "--grant", &grant,
        ])
    }

    /// Makes a region for sets of this many bytes; one is kept.
    pub(crate) fn create_sets(&self, name: &str, capacity_bytes: u64) -> Result<(), Failure> {
        self.create_kept(name, capacity_bytes, 1)
    }

    /// The same with so many sets kept.
    pub(crate) fn create_kept(
        &self,
        name: &str,
        capacity_bytes: u64,
        kept: u32,
    ) -> Result<(), Failure> {
        let kept = kept.to_string();
        let (grant, capacity) = (format!("{CLIENT}:read,write"), capacity_bytes.to_string());
        let arguments = [
            "region",
            "create",
            name,
            "--mode",
            "overwrite",
            "--sets",
            &kept,
            "--capacity",
            &capacity,
            "--grant",
            &grant,
        ];
        self.pmm(&arguments)
    }

    /// Makes a region, by what stands behind `--mode`, for several principals with the same rights.
    pub(crate) fn create_for(
        &self,
        principals: &[&str],
        name: &str,
        mode: &[&str],
        rights: &str,
    ) -> Result<(), Failure> {
        let grants: Vec<String> = principals
            .iter()
            .map(|principal| format!("{principal}:{rights}"))
            .collect();
        let mut arguments = vec!["region", "create", name, "--mode"];
        arguments.extend(mode);
        for grant in &grants {
            arguments.extend(["--grant", grant]);
        }
        self.pmm(&arguments)
    }

    /// Where the unit's control service listens.
    pub(crate) fn control(&self) -> &str {
        &self.process.control
    }

    /// Options for the Unix socket.
    pub(crate) fn options() -> OpenOptions {
        OpenOptions::new().provider(ProviderChoice::Only(Provider::SoftUnix))
    }

    /// Processor time that the unit has used, in seconds.
    pub(crate) fn unit_cpu_s(&self) -> Result<f64, Failure> {
        self.process.cpu_s()
    }
}
