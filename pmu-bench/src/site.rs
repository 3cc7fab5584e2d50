//! A unit with its own process, certificates and regions, in a folder; ended with this value.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::time::ClockId;
use nix::unistd::Pid;
use pmu_client::{ConnectOptions, Identity, OpenOptions, Provider, ProviderChoice, Unit};

use crate::measure::Failure;
use crate::peers::free_port;

const NAME: &str = "bench";
const START_WITHIN: Duration = Duration::from_secs(30);

/// A running unit, unlocked, with a connection to its control service.
pub(crate) struct Site {
    child: Child,
    folder: PathBuf,
    programs: PathBuf,
    /// The way to its regions.
    pub(crate) unit: Unit,
}

impl Site {
    /// Starts a unit on a file pool in `folder`, with a Unix and a TCP data listener.
    pub(crate) fn start(folder: &Path, pool_bytes: u64) -> Result<Self, Failure> {
        let programs = programs()?;
        let pmm = |arguments: &[&str]| run(&programs.join("pmm"), folder, arguments);
        pmm(&["ca", "init"])?;
        for (name, role) in [("manager", "manager"), (NAME, "client"), ("unit", "unit")] {
            let out = folder.join(name).to_string_lossy().into_owned();
            let mut arguments = vec!["ca", "issue", name, "--role", role, "--out", &out];
            if role == "unit" {
                arguments.extend(["--host", "127.0.0.1"]);
            }
            pmm(&arguments)?;
        }
        fs::rename(folder.join("manager"), folder.join("identity"))?;
        let pool = folder.join("pool").to_string_lossy().into_owned();
        let size = pool_bytes.to_string();
        run(
            &programs.join("pmu-server"),
            folder,
            &["init", "--pool", &pool, "--medium", "file", "--size", &size],
        )?;
        let control = format!("127.0.0.1:{}", free_port()?);
        let data = free_port()?;
        let config = folder.join("unit.toml");
        fs::write(
            &config,
            format!(
                "[unit]\nname = \"unit\"\nidentity = \"unit\"\n\n[control]\nlisten = \"{control}\"\n\n\
                 [[data]]\nprovider = \"soft-unix\"\npath = \"data.sock\"\n\n\
                 [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:{data}\"\n\n\
                 [[pool]]\nname = \"main\"\nmedium = \"file\"\npath = \"pool\"\n"
            ),
        )?;
        let log = fs::File::create(folder.join("unit.log"))?;
        let mut child = Command::new(programs.join("pmu-server"))
            .args(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let identity = Identity::load(&folder.join(NAME))?;
        let deadline = Instant::now() + START_WITHIN;
        let unit = loop {
            match Unit::connect(&control, &identity, &ConnectOptions::default()) {
                Ok(unit) => break unit,
                Err(error) if child.try_wait()?.is_some() || Instant::now() > deadline => {
                    let log = fs::read_to_string(folder.join("unit.log")).unwrap_or_default();
                    let _ = child.kill();
                    return Err(format!("the unit does not start: {error}\n{log}").into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let site = Self {
            child,
            folder: folder.to_owned(),
            programs,
            unit,
        };
        site.pmm(&["unit", "add", "unit", &control])?;
        site.pmm(&["unit", "unlock", "unit"])?;
        Ok(site)
    }

    fn pmm(&self, arguments: &[&str]) -> Result<(), Failure> {
        run(&self.programs.join("pmm"), &self.folder, arguments)
    }

    /// Makes a log of this many bytes.
    pub(crate) fn create_log(&self, name: &str, bytes: u64) -> Result<(), Failure> {
        let (grant, size) = (format!("{NAME}:read,append,clear"), bytes.to_string());
        self.pmm(&[
            "region", "create", name, "--mode", "append", "--size", &size, "--grant", &grant,
        ])
    }

    /// Makes a region for sets of this many bytes; one is kept.
    pub(crate) fn create_sets(&self, name: &str, capacity_bytes: u64) -> Result<(), Failure> {
        let (grant, capacity) = (format!("{NAME}:read,write"), capacity_bytes.to_string());
        let arguments = [
            "region",
            "create",
            name,
            "--mode",
            "overwrite",
            "--sets",
            "1",
            "--capacity",
            &capacity,
            "--grant",
            &grant,
        ];
        self.pmm(&arguments)
    }

    /// Options for the Unix socket.
    pub(crate) fn options() -> OpenOptions {
        OpenOptions::new().provider(ProviderChoice::Only(Provider::SoftUnix))
    }

    /// Processor time that the unit has used, in seconds.
    pub(crate) fn unit_cpu_s(&self) -> Result<f64, Failure> {
        cpu_s(Pid::from_raw(self.child.id().cast_signed()))
    }
}

/// Processor time of this process, in seconds.
pub(crate) fn own_cpu_s() -> Result<f64, Failure> {
    cpu_s(Pid::this())
}

/// User and system time of all threads, to the nanosecond.
fn cpu_s(pid: Pid) -> Result<f64, Failure> {
    let used = ClockId::pid_cpu_clock_id(pid)?.now()?;
    Ok(used.tv_sec() as f64 + used.tv_nsec() as f64 / 1e9)
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn programs() -> Result<PathBuf, Failure> {
    match std::env::var_os("PMU_BIN_DIR") {
        Some(folder) => Ok(folder.into()),
        None => Ok(std::env::current_exe()?
            .parent()
            .ok_or("no folder of programs")?
            .to_owned()),
    }
}

fn run(program: &Path, home: &Path, arguments: &[&str]) -> Result<(), Failure> {
    let output = Command::new(program)
        .args(arguments)
        .env("PMU_HOME", home)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = arguments.join(" ");
    Err(format!(
        "{} {words}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}
