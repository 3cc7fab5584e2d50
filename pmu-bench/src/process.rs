//! Processes of the appliance: commands that run to their end, and units.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::time::ClockId;
use nix::unistd::Pid;
use pmu_client::{ConnectOptions, Identity, Unit};

use crate::measure::Failure;
use crate::peers::free_port;

const START_WITHIN: Duration = Duration::from_secs(30);

/// The client's name.
pub(crate) const CLIENT: &str = "bench";

/// The folder of `pmm` and `pmu-server`.
pub(crate) fn programs() -> Result<PathBuf, Failure> {
    match std::env::var_os("PMU_BIN_DIR") {
        Some(folder) => Ok(folder.into()),
        None => Ok(std::env::current_exe()?
            .parent()
            .ok_or("no folder of programs")?
            .to_owned()),
    }
}

/// Runs a program to its end.
///
/// # Errors
/// What it says if it fails.
pub(crate) fn run(program: &str, home: &Path, arguments: &[&str]) -> Result<(), Failure> {
    output(program, home, arguments).map(drop)
}

/// The same, and gives what it prints.
///
/// # Errors
/// As [`run()`].
pub(crate) fn output(program: &str, home: &Path, arguments: &[&str]) -> Result<Vec<u8>, Failure> {
    let output = Command::new(programs()?.join(program))
        .args(arguments)
        .env("PMU_HOME", home)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = arguments.join(" ");
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {words}: {reason}").into())
}

/// An authority in `folder`, a manager and the client [`CLIENT`]; `folder` is the manager's home.
pub(crate) fn found_site(folder: &Path) -> Result<(), Failure> {
    run("pmm", folder, &["ca", "init"])?;
    issue(folder, "manager", &["--role", "manager"])?;
    fs::rename(folder.join("manager"), folder.join("identity"))?;
    issue(folder, CLIENT, &["--role", "client"])
}

fn issue(folder: &Path, name: &str, options: &[&str]) -> Result<(), Failure> {
    let out = folder.join(name).to_string_lossy().into_owned();
    let mut arguments = vec!["ca", "issue", name, "--out", &out];
    arguments.extend(options);
    run("pmm", folder, &arguments)
}

/// A unit's process, unlocked; killed with this value.
pub(crate) struct UnitProcess {
    child: Child,
    /// Where its control service listens.
    pub(crate) control: String,
}

impl UnitProcess {
    /// Starts a unit with this `[[pool]]`, and a Unix and a TCP data listener.
    ///
    /// # Errors
    /// What the unit's log says if it doesn't start.
    pub(crate) fn start(folder: &Path, name: &str, pool: &str) -> Result<(Self, Unit), Failure> {
        issue(folder, name, &["--role", "unit", "--host", "127.0.0.1"])?;
        let control = format!("127.0.0.1:{}", free_port()?);
        let data = free_port()?;
        let config = folder.join(format!("{name}.toml"));
        fs::write(
            &config,
            format!(
                "[unit]\nname = \"{name}\"\nidentity = \"{name}\"\n\n[control]\nlisten = \"{control}\"\n\n\
                 [[data]]\nprovider = \"soft-unix\"\npath = \"{name}.sock\"\n\n\
                 [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:{data}\"\n\n\
                 [[pool]]\nname = \"main\"\n{pool}\n"
            ),
        )?;
        let log = folder.join(format!("{name}.log"));
        let child = Command::new(programs()?.join("pmu-server"))
            .args(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let mut process = Self { child, control };
        let unit = process.connect(folder, &log)?;
        run("pmm", folder, &["unit", "add", name, &process.control])?;
        run("pmm", folder, &["unit", "unlock", name])?;
        Ok((process, unit))
    }

    fn connect(&mut self, folder: &Path, log: &Path) -> Result<Unit, Failure> {
        let identity = Identity::load(&folder.join(CLIENT))?;
        let deadline = Instant::now() + START_WITHIN;
        loop {
            match Unit::connect(&self.control, &identity, &ConnectOptions::default()) {
                Ok(unit) => return Ok(unit),
                Err(error) if self.child.try_wait()?.is_some() || Instant::now() > deadline => {
                    let log = fs::read_to_string(log).unwrap_or_default();
                    return Err(format!("the unit does not start: {error}\n{log}").into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Processor time that it has used, in seconds.
    pub(crate) fn cpu_s(&self) -> Result<f64, Failure> {
        child_cpu_s(&self.child)
    }
}

impl Drop for UnitProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A distributor's process, which acts as [`CLIENT`] and for it; killed with this value.
pub(crate) struct DistributorProcess {
    child: Child,
    /// Where its control service listens.
    pub(crate) control: String,
}

impl DistributorProcess {
    /// Starts one for these regions, with a Unix data listener.
    ///
    /// # Errors
    /// What its log says if it doesn't start.
    pub(crate) fn start(folder: &Path, units: &[&str], regions: &[&str]) -> Result<Self, Failure> {
        let name = "distributor";
        issue(folder, name, &["--role", "unit", "--host", "127.0.0.1"])?;
        let control = format!("127.0.0.1:{}", free_port()?);
        let config = folder.join(format!("{name}.toml"));
        let mut text = format!(
            "[unit]\nname = \"{name}\"\nidentity = \"{name}\"\n\n[control]\nlisten = \"{control}\"\n\n\
             [[data]]\nprovider = \"soft-unix\"\npath = \"{name}.sock\"\n\n\
             [distributor]\nidentity = \"{CLIENT}\"\nunits = {units:?}\n"
        );
        for region in regions {
            text += &format!(
                "\n[[distributor.region]]\nname = \"{region}\"\nprincipals = [\"{CLIENT}\"]\n"
            );
        }
        fs::write(&config, text)?;
        let log = folder.join(format!("{name}.log"));
        let child = Command::new(programs()?.join("pmu-server"))
            .args([
                "distribute".as_ref(),
                "--config".as_ref(),
                config.as_os_str(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let mut process = Self { child, control };
        process.wait_until_it_listens(&log)?;
        Ok(process)
    }

    fn wait_until_it_listens(&mut self, log: &Path) -> Result<(), Failure> {
        let deadline = Instant::now() + START_WITHIN;
        while let Err(error) = std::net::TcpStream::connect(&self.control) {
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(log).unwrap_or_default();
                return Err(format!("the distributor does not start: {error}\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for DistributorProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that a process has used, in seconds.
pub(crate) fn child_cpu_s(child: &Child) -> Result<f64, Failure> {
    cpu_s(Pid::from_raw(child.id().cast_signed()))
}

/// Processor time of this process, in seconds.
pub(crate) fn own_cpu_s() -> Result<f64, Failure> {
    cpu_s(Pid::this())
}

/// Processor time of the processes that this one has started and waited for, in seconds, to 10 ms.
pub(crate) fn ended_cpu_s() -> Result<f64, Failure> {
    // proc(5): cutime and cstime, the 14th and 15th field behind the name in parentheses, in hundredths of a second.
    let text = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').ok_or("/proc/self/stat: no name")?;
    let ticks = fields.split_whitespace().skip(13).take(2);
    let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
    Ok(ticks as f64 / 100.0)
}

/// User and system time of all threads, to the nanosecond.
fn cpu_s(pid: Pid) -> Result<f64, Failure> {
    let used = ClockId::pid_cpu_clock_id(pid)?.now()?;
    Ok(used.tv_sec() as f64 + used.tv_nsec() as f64 / 1e9)
}
