//! A site of one or several units: certificates, pools, units and regions, made with the commands `pmm` and `pmu-server`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::TcpListener;
use std::num::NonZeroU32;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pmu_stripe::Layout;
use rustix::process::Signal;

use crate::child::{Child, Output};
use crate::cli::{PoolChoice, Transport};
use crate::error::{DemoError, Result};
use crate::seed::random_u64;
use crate::tools::{Tools, arguments};

/// The log's region.
pub const LOG_REGION: &str = "index-log";
/// The region of the sets.
pub const STATE_REGION: &str = "index-state";

const MANAGER: &str = "manager";
const PRIMARY: &str = "indexer-primary";
const BACKUP: &str = "indexer-backup";
const ONLOOKER: &str = "onlooker";
/// How often the unit is looked at while it starts.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The address of this host for others on it.
const LOCAL: &str = "127.0.0.1";

/// Of snapshots of an arena so manieth is a full one: the region keeps as many sets.
pub const FULL_EVERY: NonZeroU32 = NonZeroU32::new(4).unwrap();

/// What the site must have room for.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Length of the log's region.
    pub log_bytes: u64,
    /// The longest set.
    pub state_bytes: u64,
    /// How many sets are kept.
    pub sets_kept: u32,
}

impl Sizes {
    /// A pool: log, kept sets and the one being written, tables, and what is lost to rounding.
    fn pool_bytes(self) -> u64 {
        let sets = u64::from(self.sets_kept) + 1;
        (self.log_bytes + sets * (self.state_bytes + (1 << 20)) + (8 << 20))
            .next_multiple_of(1 << 20)
    }
}

/// What all units have in common.
#[derive(Debug)]
pub struct Setup {
    /// How the regions are spread; decides how many units there are.
    pub layout: Layout,
    /// Which way the data goes.
    pub transport: Transport,
    /// One for each unit.
    pub pools: Vec<PoolChoice>,
    /// What they must have room for.
    pub sizes: Sizes,
}

/// One unit.
#[derive(Debug)]
struct UnitProcess {
    name: String,
    config: PathBuf,
    /// None while it is dead.
    process: Option<Child>,
}

/// Running units and how to reach them.
#[derive(Debug)]
pub struct Site {
    tools: Tools,
    home: PathBuf,
    folder: PathBuf,
    units: Vec<UnitProcess>,
    /// The units' control addresses.
    pub addresses: Vec<String>,
    layout: Layout,
    sizes: Sizes,
    volatile: bool,
}

impl Site {
    /// Makes certificates and pools, starts the units, unlocks them.
    ///
    /// # Errors
    /// Whatever the commands say.
    pub fn set_up(tools: &Tools, folder: &Path, setup: &Setup) -> Result<Self> {
        let home = folder.join("manager");
        let names: Vec<String> = (1..=setup.layout.units())
            .map(|number| format!("unit-{number}"))
            .collect();
        issue_certificates(tools, folder, &home, &names)?;
        let volatile = |pool: &PoolChoice| matches!(pool.medium.as_str(), "memory" | "hugetlbfs");
        let mut site = Self {
            tools: tools.clone(),
            home,
            folder: folder.to_owned(),
            units: Vec::new(),
            addresses: Vec::new(),
            layout: setup.layout,
            sizes: setup.sizes,
            volatile: setup.pools.iter().any(volatile),
        };
        for (name, pool) in names.into_iter().zip(&setup.pools) {
            make_pool(tools, pool, setup.sizes)?;
            let address = format!("{LOCAL}:{}", free_port()?);
            let config = folder.join(format!("{name}.toml"));
            let text = unit_config(folder, &name, &address, setup.transport, pool, setup.sizes)?;
            fs::write(&config, text).map_err(DemoError::file("write", &config))?;
            site.manage(arguments!["unit", "add", &name, &address])?;
            site.addresses.push(address);
            site.units.push(UnitProcess {
                name,
                config,
                process: None,
            });
        }
        site.start_dead_units()?;
        Ok(site)
    }

    /// Starts and unlocks every unit that is not running. A unit with volatile memory has forgotten everything.
    ///
    /// # Errors
    /// What the units say.
    pub fn start_dead_units(&mut self) -> Result<()> {
        for index in 0..self.units.len() {
            let unit = &mut self.units[index];
            if unit.process.is_none() {
                unit.process = Some(start_unit(&self.tools, &unit.name, &unit.config)?);
                let name = unit.name.clone();
                self.manage(arguments!["unit", "unlock", name])?;
            }
        }
        Ok(())
    }

    /// Kills units, by their places.
    pub fn kill_units(&mut self, places: &[usize]) {
        for place in places {
            // Dropped, it is killed.
            self.units[*place].process = None;
        }
    }

    /// A unit's name.
    #[must_use]
    pub fn unit_name(&self, place: usize) -> &str {
        &self.units[place].name
    }

    fn is_spread(&self) -> bool {
        self.units.len() > 1
    }

    fn manage(&self, command: Vec<OsString>) -> Result<()> {
        manage(&self.tools, &self.home, command)
    }

    /// Makes both regions, empty.
    ///
    /// # Errors
    /// What `pmm region create` says.
    pub fn create_regions(&self) -> Result<()> {
        let size = self.sizes.log_bytes.to_string();
        let log = arguments![LOG_REGION, "--mode", "append", "--size", size];
        self.create_region(log, "read,append,clear")?;
        let capacity = self.sizes.state_bytes.to_string();
        let state = arguments![
            STATE_REGION,
            "--mode",
            "overwrite",
            "--sets",
            self.sizes.sets_kept.to_string(),
            "--capacity",
            capacity
        ];
        self.create_region(state, "read,write")
    }

    /// Both programs get the same rights. The manager may not read what it manages, unless somebody lets it: here, to check it.
    fn create_region(&self, what: Vec<OsString>, rights: &str) -> Result<()> {
        let mut command = arguments!["region", "create"];
        command.extend(what);
        if self.is_spread() {
            let units: Vec<&str> = self.units.iter().map(|unit| unit.name.as_str()).collect();
            let units = units.join(",");
            let layout = self.layout.to_string();
            command.extend(arguments!["--layout", layout, "--units", units]);
        }
        command.extend(arguments![
            "--need",
            if self.volatile { "volatile" } else { "durable" }
        ]);
        for (principal, rights) in [
            (PRIMARY, rights),
            (BACKUP, rights),
            (MANAGER, "read"),
            (ONLOOKER, "read"),
        ] {
            command.extend(arguments!["--grant", format!("{principal}:{rights}")]);
        }
        self.manage(command)
    }

    /// Has the manager check both regions and their pools' tables.
    ///
    /// # Errors
    /// [`DemoError::Process`] if something is damaged.
    pub fn verify_regions(&self) -> Result<()> {
        self.manage(arguments!["region", "verify", LOG_REGION])?;
        self.manage(arguments!["region", "verify", STATE_REGION])
    }

    /// Deletes both regions, so that the next run begins with empty ones.
    ///
    /// # Errors
    /// What `pmm region delete` says.
    pub fn delete_regions(&self) -> Result<()> {
        self.manage(arguments![
            "region", "delete", "--yes", "--force", LOG_REGION
        ])?;
        self.manage(arguments![
            "region",
            "delete",
            "--yes",
            "--force",
            STATE_REGION
        ])
    }

    /// The primary's identity.
    #[must_use]
    pub fn primary_identity(&self) -> PathBuf {
        self.folder.join(PRIMARY)
    }

    /// The backup's identity.
    #[must_use]
    pub fn backup_identity(&self) -> PathBuf {
        self.folder.join(BACKUP)
    }

    /// The identity of whoever looks on at the log, and may do nothing else.
    #[must_use]
    pub fn onlooker_identity(&self) -> PathBuf {
        self.folder.join(ONLOOKER)
    }

    /// The principals of both programs: of the one that begins, and of the other.
    pub const PRINCIPALS: [&str; 2] = [PRIMARY, BACKUP];

    /// Why a unit ended that nobody killed, if one did.
    ///
    /// # Errors
    /// [`DemoError::Process`] if one ended.
    pub fn check_units(&mut self) -> Result<()> {
        for unit in self
            .units
            .iter_mut()
            .filter_map(|unit| unit.process.as_mut())
        {
            if let Some(status) = unit.ended()? {
                return Err(unit.failed(&format!("ended: {status}")));
            }
        }
        Ok(())
    }

    /// Stops the units, as a service manager would.
    ///
    /// # Errors
    /// [`DemoError::Process`] if one does not end well.
    pub fn stop(mut self) -> Result<()> {
        for unit in self
            .units
            .iter_mut()
            .filter_map(|unit| unit.process.as_mut())
        {
            unit.signal(Signal::TERM);
        }
        for unit in self
            .units
            .iter_mut()
            .filter_map(|unit| unit.process.as_mut())
        {
            unit.wait_for_success(self.tools.timeout())?;
        }
        Ok(())
    }
}

fn manage(tools: &Tools, home: &Path, command: Vec<OsString>) -> Result<()> {
    let mut arguments = arguments!["--home", home];
    arguments.extend(command);
    tools.run("pmm", &arguments)
}

/// An authority, the manager's identity in its place, one identity for each unit and one for each program.
fn issue_certificates(tools: &Tools, folder: &Path, home: &Path, units: &[String]) -> Result<()> {
    manage(tools, home, arguments!["ca", "init"])?;
    for (name, role, out) in [
        (MANAGER, "manager", home.join("identity")),
        (PRIMARY, "client", folder.join(PRIMARY)),
        (BACKUP, "client", folder.join(BACKUP)),
        (ONLOOKER, "client", folder.join(ONLOOKER)),
    ] {
        manage(
            tools,
            home,
            arguments!["ca", "issue", name, "--role", role, "--out", out],
        )?;
    }
    for unit in units {
        let out = folder.join(unit);
        manage(
            tools,
            home,
            arguments![
                "ca", "issue", unit, "--role", "unit", "--host", LOCAL, "--out", out
            ],
        )?;
    }
    Ok(())
}

fn make_pool(tools: &Tools, pool: &PoolChoice, sizes: Sizes) -> Result<()> {
    let Some(path) = &pool.path else {
        return Ok(());
    };
    let mut command = arguments!["init", "--pool", path, "--medium", &pool.medium, "--force"];
    if pool.medium != "devdax" {
        command.extend(arguments!["--size", sizes.pool_bytes().to_string()]);
    }
    tools.run("pmu-server", &command)
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    TcpListener::bind((LOCAL, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(DemoError::system("find a free port"))
}

fn unit_config(
    folder: &Path,
    name: &str,
    address: &str,
    transport: Transport,
    pool: &PoolChoice,
    sizes: Sizes,
) -> Result<String> {
    let data = match transport {
        Transport::SoftUnix => format!("path = {:?}", folder.join(format!("{name}.socket"))),
        Transport::SoftTcp => format!("listen = \"{LOCAL}:{}\"", free_port()?),
        Transport::Verbs => format!("listen = \"{}:{}\"", rdma_address()?, free_port()?),
    };
    let place = match &pool.path {
        Some(path) => format!("path = {path:?}"),
        None => format!("size = {}", sizes.pool_bytes()),
    };
    let (identity, provider, medium) = (folder.join(name), transport.name(), &pool.medium);
    Ok(format!(
        "[unit]\nname = \"{name}\"\nidentity = {identity:?}\n\n\
         [control]\nlisten = \"{address}\"\n\n\
         [[data]]\nprovider = \"{provider}\"\n{data}\n\n\
         [[pool]]\nname = \"main\"\nmedium = \"{medium}\"\n{place}\n"
    ))
}

fn rdma_address() -> Result<String> {
    std::env::var("PMU_LAB_ADDR0").map_err(|_| {
        DemoError::Unusable(
            "--transport verbs: say in PMU_LAB_ADDR0 which IPv4 address the RDMA device has (scripts/lab run -- \
             scripts/demo --transport verbs does)"
                .into(),
        )
    })
}

/// Starts the unit, and waits until it says that it serves, as a service manager would.
fn start_unit(tools: &Tools, unit_name: &str, config: &Path) -> Result<Child> {
    // Random: process ids of two containers may be the same, and the name is the network's.
    let name = format!("pmu-demo-{:016x}", random_u64()?);
    let unit_says = SocketAddr::from_abstract_name(&name)
        .and_then(|address| UnixDatagram::bind_addr(&address))
        .and_then(|socket| socket.set_read_timeout(Some(LOOK_AGAIN)).map(|()| socket))
        .map_err(DemoError::system("listen for the unit"))?;
    let socket = format!("@{name}");
    let arguments = arguments!["run", "--config", config];
    let environment = [("NOTIFY_SOCKET", OsStr::new(&socket))];
    let mut unit = tools.start(
        "pmu-server",
        &arguments,
        unit_name,
        Output::Logged,
        &environment,
    )?;
    let deadline = Instant::now() + tools.timeout();
    let mut said = [0; 64];
    loop {
        if let Ok(length) = unit_says.recv(&mut said)
            && said[..length].starts_with(b"READY=1")
        {
            return Ok(unit);
        }
        if let Some(status) = unit.ended()? {
            return Err(unit.failed(&format!("does not start: {status}")));
        }
        if Instant::now() >= deadline {
            return Err(unit.failed("is not ready in time"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_what_was_chosen() {
        let sizes = Sizes {
            log_bytes: 1 << 20,
            state_bytes: 1 << 20,
            sets_kept: 2,
        };
        let file: PoolChoice = "file:/tmp/a \"pool\"".parse().unwrap();
        let folder = Path::new("/tmp/x");
        let text = unit_config(
            folder,
            "unit-1",
            "127.0.0.1:1",
            Transport::SoftUnix,
            &file,
            sizes,
        )
        .unwrap();
        assert!(text.contains("path = \"/tmp/x/unit-1.socket\""), "{text}");
        assert!(text.contains("path = \"/tmp/a \\\"pool\\\"\""), "{text}");
        let memory: PoolChoice = "memory".parse().unwrap();
        let text = unit_config(
            folder,
            "unit-1",
            "127.0.0.1:1",
            Transport::SoftTcp,
            &memory,
            sizes,
        )
        .unwrap();
        assert!(text.contains("medium = \"memory\"\nsize = "), "{text}");
    }
}
