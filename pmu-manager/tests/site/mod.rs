//! A site with real units in this process, some of which die, and `pmm` as a process of its own.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by tests, each of which uses a part"
)]

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pmu_server::cli::InitArguments;
use pmu_server::config::{ByteSize, Config};
use pmu_server::distributor::process::Process;
use pmu_server::scrub::clock::{Clock, SystemClock};
use pmu_server::unit::{Unit as Server, UnitHandle};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A site with unlocked units, unit-1 and so on, a manager (alice) and no client.
pub struct Site {
    directory: TempDir,
    runtime: Runtime,
    servers: Vec<Option<UnitHandle>>,
    addresses: Vec<String>,
    /// The clock of the scrubs of every unit that starts from now on, and the keys of its section `[scrub]`.
    scrub: Option<(Arc<dyn Clock>, String)>,
}

impl Site {
    /// Four units of 4 MiB.
    pub fn new() -> Self {
        Self::with(4, 4 << 20)
    }

    pub fn with(count: usize, pool_bytes: u64) -> Self {
        Self::with_scrub(count, pool_bytes, None)
    }

    /// Units that scrub by such a clock, with such keys, as the client `scrubber`.
    pub fn with_scrub(
        count: usize,
        pool_bytes: u64,
        scrub: Option<(Arc<dyn Clock>, &str)>,
    ) -> Self {
        let mut site = Self {
            directory: tempfile::tempdir().unwrap(),
            runtime: Runtime::new().unwrap(),
            servers: Vec::new(),
            addresses: Vec::new(),
            scrub: None,
        };
        site.ok("ca init");
        site.ok("ca issue alice --role manager --out HOME/identity");
        if let Some((clock, keys)) = scrub {
            site.ok("ca issue scrubber --role client --out HOME/scrubber");
            let identity = site.path("scrubber");
            site.scrub = Some((clock, format!("identity = {identity:?}\n{keys}")));
        }
        for number in 1..=count {
            site.make(&format!("unit-{number}"), pool_bytes);
        }
        site
    }

    /// Makes one more unit.
    pub fn make(&mut self, name: &str, pool_bytes: u64) {
        self.ok(&format!(
            "ca issue {name} --role unit --host 127.0.0.1 --out HOME/{name}"
        ));
        let pool = self.path(&format!("pool-{name}"));
        let arguments = InitArguments {
            pool,
            medium: pmu_format::Medium::File,
            size: Some(ByteSize(pool_bytes)),
            table_size: ByteSize(64 << 10),
            force: false,
        };
        pmu_server::pools::init(&arguments, &mut |_, _| {}).unwrap();
        self.servers.push(None);
        self.addresses.push("127.0.0.1:0".to_owned());
        let number = self.servers.len();
        self.start(number);
        self.ok(&format!("unit add {name} {}", self.addresses[number - 1]));
        self.ok(&format!("unit unlock {name}"));
    }

    fn start(&mut self, number: usize) {
        let name = format!("unit-{number}");
        let config = format!(
            "[unit]\nname = {name:?}\nidentity = {:?}\n[control]\nlisten = {:?}\n\
             [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:0\"\n\
             [[pool]]\nname = \"main\"\nmedium = \"file\"\npath = {:?}\n",
            self.path(&name),
            self.addresses[number - 1],
            self.pool(number),
        );
        let (clock, scrub) = match &self.scrub {
            Some((clock, keys)) => {
                let state = self.path(&format!("scrub-{number}.json"));
                let section = format!("[scrub]\nstate = {state:?}\n{keys}\n");
                (Arc::clone(clock), section)
            }
            None => (Arc::new(SystemClock::default()) as _, String::new()),
        };
        let config = Config::parse(&(config + &scrub)).unwrap();
        let server = self.serve(&config, &clock);
        self.addresses[number - 1] = server.control_address().to_string();
        self.servers[number - 1] = Some(server);
    }

    /// A unit's port may have been taken by somebody else's connection while it was down: that is over soon.
    fn serve(&self, config: &Config, clock: &Arc<dyn Clock>) -> UnitHandle {
        for _ in 0..300 {
            let clock = Arc::clone(clock);
            let start = Server::start_with_clock(config.clone(), None, clock);
            match self.runtime.block_on(start) {
                Ok(server) => return server,
                Err(error) if error.to_string().contains("address is in use") => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("its address is in use for too long")
    }

    /// A distributor with the certificate of a unit of this name; in the list of units.
    pub fn distributor(&self, name: &str) -> Process {
        self.ok(&format!(
            "ca issue {name} --role unit --host 127.0.0.1 --out HOME/{name}"
        ));
        self.ok(&format!(
            "ca issue {name}-acts --role client --out HOME/{name}-acts"
        ));
        let config = format!(
            "[unit]\nname = {name:?}\nidentity = {:?}\n[control]\nlisten = \"127.0.0.1:0\"\n\
             [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:0\"\n\
             [distributor]\nidentity = {:?}\nunits = {:?}\n\
             [[distributor.region]]\nname = \"job\"\nprincipals = [\"trainer\"]\n",
            self.path(name),
            self.path(&format!("{name}-acts")),
            self.addresses,
        );
        let start = Process::start(Config::parse(&config).unwrap(), None);
        let process = self.runtime.block_on(start).unwrap();
        self.ok(&format!("unit add {name} {}", process.control_address()));
        process
    }

    /// Ends a distributor.
    pub fn end(&self, process: Process) {
        self.runtime.block_on(process.stop());
    }

    /// Starts a unit again where it was, and unlocks it.
    pub fn back(&mut self, number: usize) {
        self.start(number);
        self.ok(&format!("unit unlock unit-{number}"));
    }

    pub fn address(&self, number: usize) -> &str {
        &self.addresses[number - 1]
    }

    pub fn pool(&self, number: usize) -> PathBuf {
        self.path(&format!("pool-unit-{number}"))
    }

    /// Stops the unit of this number, from 1.
    pub fn kill(&mut self, number: usize) {
        let server = self.servers[number - 1].take().unwrap();
        self.runtime.block_on(server.stop());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn run(&self, line: &str) -> Output {
        let line = line.replace("HOME", self.directory.path().to_str().unwrap());
        Command::new(env!("CARGO_BIN_EXE_pmm"))
            .args(line.split_whitespace())
            .env("PMU_HOME", self.directory.path())
            .env_remove("PMM_IDENTITY")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Begins a command, whose output nobody reads until its end.
    pub fn begin(&self, line: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_pmm"))
            .args(line.split_whitespace())
            .env("PMU_HOME", self.directory.path())
            .env_remove("PMM_IDENTITY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code and the report.
    pub fn json(&self, line: &str) -> (i32, Value) {
        let output = self.run(&format!("--json {line}"));
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{line}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), report)
    }

    pub fn fails(&self, line: &str, exit: i32) -> String {
        let output = self.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{line}: {errors}");
        errors
    }

    pub fn states(report: &Value) -> Vec<&str> {
        let members = report["members"].as_array().unwrap().iter();
        members
            .map(|member| member["state"].as_str().unwrap())
            .collect()
    }

    /// The units that have regions of this name.
    pub fn holders(&self, region: &str) -> Vec<String> {
        let (_, list) = self.json("region list");
        let regions = list["regions"].as_array().unwrap().iter();
        regions
            .filter(|found| found["region"] == region)
            .map(|found| found["unit"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for server in self.servers.drain(..).flatten() {
            self.runtime.block_on(server.stop());
        }
    }
}
