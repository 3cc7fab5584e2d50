//! In the lab: one-sided operations over verbs against perftest on the same device in the same boot.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_fabric::verbs::{VerbsUnit, VerbsUnitOptions, connect};
use pmu_fabric::{
    AttachedMemory, Chain, Completion, CompletionStatus, ConnectToken, Connection, ExposedExtent,
    ExposedRegion, FabricError, LocalSlice, PersistenceMethod, UnitFabric, WindowAccess,
};
use pmu_pmem::{LocalMemory, LocalOptions, Medium, PoolMemory, PoolSpec};

use crate::fabric::Way;
use crate::measure::Failure;
use crate::peers::free_port;

const ADDRESS: u64 = 0x7000_0000_0000;
const WAIT: Duration = Duration::from_secs(60);
const REGION_BYTES: u64 = 16 << 20;
/// As many as perftest keeps in flight by default.
const IN_FLIGHT: usize = 128;

fn variable(name: &str) -> Result<String, Failure> {
    std::env::var(name).map_err(|_| format!("{name} is not set: verbs.* runs in the lab (scripts/lab run -- scripts/bench --only verbs)").into())
}

/// A unit on devdax in this process (the NIC does its work), and a connection to it.
pub(crate) struct Bed {
    unit: VerbsUnit,
    connection: Box<dyn Connection>,
    attached: AttachedMemory,
}

impl Bed {
    pub(crate) fn new(size: usize) -> Result<Self, Failure> {
        let unit = VerbsUnit::listen(
            &format!("{}:0", variable("PMU_LAB_ADDR0")?),
            VerbsUnitOptions::default(),
        )?;
        let pool = Arc::new(PoolMemory::open(&PoolSpec::new(
            Medium::Devdax,
            variable("PMU_LAB_DAX0")?,
        ))?);
        let extents = vec![ExposedExtent {
            address: ADDRESS,
            pool_offset: 0,
            length: REGION_BYTES,
        }];
        unit.expose(&ExposedRegion {
            address: ADDRESS,
            pool,
            extents,
        })?;
        let (token, method) = (ConnectToken::random()?, PersistenceMethod::NativeFlush);
        let id = unit.expect(token, method, WAIT)?;
        let mut connection = connect(&unit.address(), token, method, WAIT)?;
        unit.wait_connected(id, WAIT)?;
        connection.set_windows(&unit.bind(
            id,
            ADDRESS,
            ADDRESS,
            REGION_BYTES,
            WindowAccess {
                read: true,
                write: true,
            },
        )?)?;
        let options = LocalOptions {
            prefault: true,
            ..LocalOptions::default()
        };
        let attached = connection.attach(Arc::new(LocalMemory::allocate_with(size, options)?))?;
        Ok(Self {
            unit,
            connection: Box::new(connection),
            attached,
        })
    }

    fn slice(&self, length: usize) -> LocalSlice {
        LocalSlice {
            memory: self.attached,
            offset: 0,
            length,
        }
    }

    /// Moves pieces with many in flight, polling; MiB/s.
    pub(crate) fn bandwidth(
        &mut self,
        way: Way,
        size: usize,
        count: usize,
    ) -> Result<f64, Failure> {
        let mut chain = Chain::with_capacity(1);
        match way {
            Way::Write => chain.write(ADDRESS, self.slice(size)),
            Way::Read => chain.read(ADDRESS, self.slice(size)),
        };
        let mut completions = [Completion {
            tag: 0,
            status: CompletionStatus::Success,
        }; 64];
        let (mut posted, mut done) = (0, 0);
        let begun = Instant::now();
        while done < count {
            while posted < count && posted - done < IN_FLIGHT {
                match self.connection.post(0, &chain) {
                    Ok(()) => posted += 1,
                    Err(FabricError::QueueFull) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            let reaped = self.connection.poll(&mut completions)?;
            check(&completions[..reaped])?;
            done += reaped;
        }
        Ok((size * count) as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64())
    }

    /// One 64-byte operation after the other, each from post to completion, polling; microseconds for one.
    pub(crate) fn latency_us(&mut self, durable: bool, count: usize) -> Result<f64, Failure> {
        let at = ADDRESS + 4096;
        let mut chain = Chain::with_capacity(4);
        chain.write(at, self.slice(64));
        if durable {
            chain
                .flush(at, 64)
                .atomic_write(ADDRESS, 1)
                .flush(ADDRESS, 8);
        }
        let mut one = [Completion {
            tag: 0,
            status: CompletionStatus::Success,
        }];
        let begun = Instant::now();
        for _ in 0..count {
            self.connection.post(0, &chain)?;
            while self.connection.poll(&mut one)? == 0 {}
            check(&one)?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6 / count as f64)
    }

    /// Work requests, doorbells and completions of one durable chain.
    pub(crate) fn durable_counts(&mut self) -> Result<String, Failure> {
        let before = self.connection.counters();
        self.latency_us(true, 1)?;
        let after = self.connection.counters();
        Ok(format!(
            "one durable 64 B append: {} work requests, {} doorbell, {} completion",
            after.work_requests - before.work_requests,
            after.doorbells - before.doorbells,
            after.completions - before.completions
        ))
    }
}

fn check(completions: &[Completion]) -> Result<(), Failure> {
    match completions
        .iter()
        .find(|one| one.status != CompletionStatus::Success)
    {
        Some(bad) => Err(format!("a chain ended with {:?}", bad.status).into()),
        None => Ok(()),
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.unit.shut_down();
    }
}

/// Runs `ib_write_bw` or `ib_read_bw` with server and client on the first device; (MiB/s on average, microseconds for one message).
pub(crate) fn perftest(
    way: Way,
    size: usize,
    count: usize,
    one_in_flight: bool,
) -> Result<(f64, f64), Failure> {
    let program = if way == Way::Write {
        "ib_write_bw"
    } else {
        "ib_read_bw"
    };
    let port = free_port()?.to_string();
    let (size, count) = (size.to_string(), count.max(5).to_string());
    let mut arguments = vec!["-d", "rxe0", "-F", "-p", &port, "-s", &size, "-n", &count];
    if one_in_flight {
        arguments.extend(["--tx-depth", "1"]);
    }
    let mut server = Command::new(program)
        .args(&arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{program}: {error} (Debian: perftest)"))?;
    let address = variable("PMU_LAB_ADDR0")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let figures = loop {
        std::thread::sleep(Duration::from_millis(300));
        let output = Command::new(program)
            .args(&arguments)
            .arg(&address)
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(figures) = parse(&text, &size) {
            break Ok(figures);
        }
        if Instant::now() > deadline || server.try_wait()?.is_some() {
            break Err(format!(
                "{program} gave no figures:\n{text}{}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    };
    let _ = server.kill();
    let _ = server.wait();
    Ok(figures?)
}

/// The line of figures: size, iterations, peak MiB/s, average MiB/s, million messages a second.
fn parse(text: &str, size: &str) -> Option<(f64, f64)> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.len() < 5 || fields[0] != size {
            return None;
        }
        let (average, rate): (f64, f64) = (fields[3].parse().ok()?, fields[4].parse().ok()?);
        Some((average, 1.0 / rate))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b10_perftest_is_read() {
        let text = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n 65536      100              12.50              12.00  \t\t   0.000192\n";
        let (bandwidth, us) = parse(text, "65536").unwrap();
        assert!((bandwidth - 12.0).abs() < 1e-9 && (us - 5208.33).abs() < 0.1);
        assert!(parse("Couldn't connect", "65536").is_none());
    }
}
