//! Benchmarks: every figure as a ratio to a limit measured in the same run, alternating, medians.
#![deny(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports"
)]

mod code;
mod disk;
mod durable;
mod fabric;
mod failover;
mod measure;
mod peers;
mod process;
mod site;
mod snapshot;
mod snapshot_region;
mod spread;
mod stream;
mod verbs;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::durable::{Log, Sets};
use crate::fabric::{Bed, Way};
use crate::measure::{Failure, Kind, Label, Row, alternate, print_head, print_row};
use crate::peers::ceph;
use crate::peers::etcd::Etcd;
use crate::peers::redis::Redis;
use crate::site::Site;
use crate::spread::memory::Set;
use crate::spread::plain::{self, Direction};
use crate::stream::Socket;

/// Measures the appliance against the limits of this machine.
#[derive(Debug, Parser)]
#[command(name = "pmu-bench", version)]
struct Options {
    /// Only the benchmarks whose names begin so.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    only: String,
    /// List the names and end.
    #[arg(long)]
    list: bool,
    /// Write one JSON object a line to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also run what a user would pick today, beside us (Debian's redis-server and etcd-server).
    #[arg(long)]
    peers: bool,
    /// Pairs of runs for each figure.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// A checkpoint of 128 MiB in the place of 1 GiB where the figure allows it (spread.distributor, snapshot.second, .cold, .busy).
    #[arg(long)]
    quick: bool,
    /// Folder for files and sockets; it decides which file system is measured.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// What this program does where it starts itself.
    #[command(subcommand)]
    part: Option<Part>,
}

/// Parts of a measurement that need a process of their own.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Part {
    /// The other end of a plain stream.
    Stream {
        /// Which way bytes go.
        direction: Direction,
        /// Bytes of a turn.
        length: usize,
    },
    /// A client that writes one set piece by piece.
    WriteSet(Set),
    /// A program that two agents run.
    FailoverProgram(failover::Counter),
}

type Benchmark = (&'static str, fn(&Options) -> Result<Vec<Row>, Failure>);

/// Those of this machine; `peer.*` runs with --peers or when asked for by name, `verbs.*` in the lab.
const BENCHMARKS: &[Benchmark] = &[
    ("soft.write_bw", |options| {
        soft_bandwidth(options, Way::Write)
    }),
    ("soft.read_bw", |options| soft_bandwidth(options, Way::Read)),
    ("soft.append_lat", append_latency),
    ("soft.append_rate", append_rate),
    ("soft.checkpoint", checkpoint),
    ("code.encode.4+1", |options| {
        code::encode("code.encode.4+1", "erasure:4+1", options.runs())
    }),
    ("code.encode.4+2", |options| {
        code::encode("code.encode.4+2", "erasure:4+2", options.runs())
    }),
    ("code.encode.10+4", |options| {
        code::encode("code.encode.10+4", "erasure:10+4", options.runs())
    }),
    ("code.rebuild.4+2", |options| {
        code::rebuild("code.rebuild.4+2", "erasure:4+2", options.runs())
    }),
    ("code.rebuild.10+4", |options| {
        code::rebuild("code.rebuild.10+4", "erasure:10+4", options.runs())
    }),
    ("code.xor.3+1", |options| {
        code::exclusive_or("code.xor.3+1", "parity:3+1", options.runs())
    }),
    ("spread.write.parity:3+1", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::write("spread.write.parity:3+1", "parity:3+1", dir, runs)
    }),
    ("spread.write.erasure:4+2", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::write("spread.write.erasure:4+2", "erasure:4+2", dir, runs)
    }),
    ("spread.wire.parity:3+1", |options| {
        spread::wire("spread.wire.parity:3+1", "parity:3+1", &options.dir)
    }),
    ("spread.read.parity:3+1", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::read("spread.read.parity:3+1", "parity:3+1", dir, runs)
    }),
    ("spread.read.erasure:4+2", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::read("spread.read.erasure:4+2", "erasure:4+2", dir, runs)
    }),
    ("spread.read_degraded.parity:3+1", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::read_degraded("spread.read_degraded.parity:3+1", "parity:3+1", dir, runs)
    }),
    ("spread.rebuild.parity:3+1", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::rebuild::rebuild("spread.rebuild.parity:3+1", "parity:3+1", dir, runs)
    }),
    ("spread.rebuild.mirror:3", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::rebuild::rebuild("spread.rebuild.mirror:3", "mirror:3", dir, runs)
    }),
    ("spread.client_memory", |options| {
        spread::client_memory("spread.client_memory", "parity:3+1", &options.dir)
    }),
    ("spread.distributor", |options| {
        let (dir, runs) = (&options.dir, options.runs());
        spread::distributor::beside("parity:3+1", dir, runs, options.quick)
    }),
    ("failover.warm", |options| {
        failover::warm(&options.dir, options.runs())
    }),
    ("failover.fence", |options| {
        failover::fences(&options.dir, options.runs())
    }),
    ("snapshot.pause", |options| snapshot::pause(options.runs())),
    ("snapshot.touch", |options| snapshot::touch(options.runs())),
    ("snapshot.second", |options| {
        snapshot_region::second(&options.dir, options.runs(), options.quick)
    }),
    ("snapshot.cold", |options| {
        snapshot_region::cold(&options.dir, options.runs(), options.quick)
    }),
    ("snapshot.busy", |options| {
        snapshot_region::busy(&options.dir, options.runs(), options.quick)
    }),
    ("peer.ceph.erasure:2+1", |options| {
        ceph::beside(&ceph::ERASURE, &options.dir, options.runs())
    }),
    ("peer.ceph.mirror:3", |options| {
        ceph::beside(&ceph::MIRROR, &options.dir, options.runs())
    }),
    ("peer.redis", against_redis),
    ("peer.etcd", against_etcd),
    ("verbs.write_bw", |options| {
        verbs_bandwidth(options, Way::Write)
    }),
    ("verbs.read_bw", |options| {
        verbs_bandwidth(options, Way::Read)
    }),
    ("verbs.write_lat", |options| verbs_latency(options, false)),
    ("verbs.durable_lat", |options| verbs_latency(options, true)),
];

impl Options {
    fn runs(&self) -> usize {
        usize::from(self.runs)
    }

    fn wants(&self, name: &str) -> bool {
        let asked =
            name.starts_with(&self.only) || (self.only.starts_with(name) && !self.only.is_empty());
        let room = name.split('.').next().unwrap_or(name);
        let by_name = self.only.starts_with(room);
        asked
            && match room {
                "peer" => self.peers || by_name,
                "verbs" => by_name || std::env::var_os("PMU_LAB").is_some(),
                _ => true,
            }
    }
}

fn soft_bandwidth(options: &Options, way: Way) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let mut rows = Vec::new();
    for socket in [Socket::Unix, Socket::Tcp] {
        for (size, count) in [
            (4 << 10, 16384),
            (64 << 10, 4096),
            (1 << 20, 512),
            (64 << 20, 12),
        ] {
            let name = match (way, socket) {
                (Way::Write, Socket::Unix) => "soft.write_bw",
                (Way::Write, Socket::Tcp) => "soft.write_bw.tcp",
                (Way::Read, Socket::Unix) => "soft.read_bw",
                (Way::Read, Socket::Tcp) => "soft.read_bw.tcp",
            };
            let limit_name = if socket == Socket::Unix {
                "plain Unix stream"
            } else {
                "plain TCP stream"
            };
            let label = Label {
                name,
                size_bytes: size as u64,
                unit: "MiB/s",
                limit_name,
                kind: Kind::Rate,
            };
            let mut bed = Bed::new(socket, folder.path(), size)?;
            rows.push(alternate(
                label,
                options.runs(),
                || bed.bandwidth(way, size, count),
                || stream::bandwidth(socket, size, count),
            )?);
        }
    }
    Ok(rows)
}

const POOL_BYTES: u64 = 1 << 30;
const RECORD_SIZES: [usize; 3] = [64, 256, 4096];

/// How many records of a size make a run of some hundred milliseconds with one in flight.
const ONE_IN_FLIGHT: usize = 500;

fn pipelined_count(size: usize) -> usize {
    (64 << 20) / (size + 192)
}

fn append_latency(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let site = Site::start(folder.path(), POOL_BYTES)?;
    let mut log = Log::create(&site, "log")?;
    let mut rows = Vec::new();
    for size in RECORD_SIZES {
        let label = Label {
            name: "soft.append_lat",
            size_bytes: size as u64,
            unit: "us",
            limit_name: "append + fdatasync",
            kind: Kind::Time,
        };
        let record = vec![7; size];
        rows.push(alternate(
            label,
            options.runs(),
            || log.append_us(&record, ONE_IN_FLIGHT),
            || disk::append_us(folder.path(), size, ONE_IN_FLIGHT),
        )?);
    }
    Ok(rows)
}

fn append_rate(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let site = Site::start(folder.path(), POOL_BYTES)?;
    let mut log = Log::create(&site, "log")?;
    let mut rows = Vec::new();
    for size in RECORD_SIZES {
        let label = Label {
            name: "soft.append_rate",
            size_bytes: size as u64,
            unit: "1/s",
            limit_name: "append + fdatasync, one by one",
            kind: Kind::Rate,
        };
        let record = vec![7; size];
        rows.push(alternate(
            label,
            options.runs(),
            || log.append_rate(&record, pipelined_count(size)),
            || disk::append_us(folder.path(), size, ONE_IN_FLIGHT).map(|us| 1e6 / us),
        )?);
    }
    Ok(rows)
}

fn checkpoint(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let site = Site::start(folder.path(), POOL_BYTES)?;
    let mut rows = Vec::new();
    for (name, size) in [("one", 1 << 20), ("large", 64 << 20)] {
        let mut sets = Sets::create(&site, name, size)?;
        let label = Label {
            name: "soft.checkpoint",
            size_bytes: size as u64,
            unit: "ms",
            limit_name: "file write + fdatasync",
            kind: Kind::Time,
        };
        let mut row = alternate(
            label,
            options.runs(),
            || sets.commit_ms(),
            || disk::write_ms(folder.path(), size),
        )?;
        row.note = Some(sets.cpu_note());
        rows.push(row);
    }
    Ok(rows)
}

fn against_redis(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let site = Site::start(folder.path(), POOL_BYTES)?;
    let mut redis = Redis::start(folder.path())?;
    let mut log = Log::create(&site, "log")?;
    let runs = options.runs();
    let mut rows = Vec::new();
    let label = |name, size: usize, unit, limit_name, kind| Label {
        name,
        size_bytes: size as u64,
        unit,
        limit_name,
        kind,
    };
    for size in [256, 4096] {
        let record = vec![7; size];
        let one = label(
            "peer.redis.record",
            size,
            "us",
            "Redis SET, appendfsync always, one in flight",
            Kind::Time,
        );
        rows.push(alternate(
            one,
            runs,
            || log.append_us(&record, ONE_IN_FLIGHT),
            || redis.records_us(&record, ONE_IN_FLIGHT),
        )?);
        let many = label(
            "peer.redis.record_rate",
            size,
            "1/s",
            "Redis SET, one in flight",
            Kind::Rate,
        );
        let count = pipelined_count(size);
        rows.push(alternate(
            many,
            runs,
            || log.append_rate(&record, count),
            || redis.records_us(&record, ONE_IN_FLIGHT).map(|us| 1e6 / us),
        )?);
        let both = label(
            "peer.redis.record_pipelined",
            size,
            "1/s",
            "Redis SET, 1000 in flight",
            Kind::Rate,
        );
        rows.push(alternate(
            both,
            runs,
            || log.append_rate(&record, count),
            || redis.pipelined_rate(&record, count / 4, 1000),
        )?);
    }
    let mut buffer = Vec::new();
    for (name, size) in [("one", 1 << 20), ("large", 64 << 20)] {
        let mut sets = Sets::create(&site, name, size)?;
        let payload = sets.payload().to_vec();
        let write = label(
            "peer.redis.blob_write",
            size,
            "ms",
            "Redis SET, appendfsync always",
            Kind::Time,
        );
        rows.push(alternate(
            write,
            runs,
            || sets.commit_ms(),
            || redis.blob_write_ms(&payload),
        )?);
        let read = label("peer.redis.blob_read", size, "ms", "Redis GET", Kind::Time);
        rows.push(alternate(
            read,
            runs,
            || sets.read_ms(),
            || redis.blob_read_ms(&payload, &mut buffer),
        )?);
    }
    Ok(rows)
}

fn against_etcd(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let site = Site::start(folder.path(), POOL_BYTES)?;
    let mut etcd = Etcd::start(folder.path())?;
    let mut log = Log::create(&site, "log")?;
    let mut rows = Vec::new();
    for size in [256, 4096] {
        let record = vec![7; size];
        let label = Label {
            name: "peer.etcd.record",
            size_bytes: size as u64,
            unit: "us",
            limit_name: "etcd put, one in flight",
            kind: Kind::Time,
        };
        rows.push(alternate(
            label,
            options.runs(),
            || log.append_us(&record, ONE_IN_FLIGHT),
            || etcd.records_us(&record, ONE_IN_FLIGHT),
        )?);
    }
    Ok(rows)
}

fn verbs_bandwidth(options: &Options, way: Way) -> Result<Vec<Row>, Failure> {
    let (name, limit_name) = match way {
        Way::Write => ("verbs.write_bw", "ib_write_bw"),
        Way::Read => ("verbs.read_bw", "ib_read_bw"),
    };
    let mut rows = Vec::new();
    for (size, count) in [(64 << 10, 400), (1 << 20, 25), (4 << 20, 7)] {
        let label = Label {
            name,
            size_bytes: size as u64,
            unit: "MiB/s",
            limit_name,
            kind: Kind::Rate,
        };
        let mut bed = verbs::Bed::new(size)?;
        rows.push(alternate(
            label,
            options.runs(),
            || bed.bandwidth(way, size, count),
            || verbs::perftest(way, size, count, false).map(|(bandwidth, _)| bandwidth),
        )?);
    }
    Ok(rows)
}

/// Operations of one measurement of latency in the lab.
const LATENCY_COUNT: usize = 1000;
/// So many times more pairs than of other figures: on emulated processors one measurement differs from the next by half.
const LATENCY_PAIRS: usize = 3;

fn verbs_latency(options: &Options, durable: bool) -> Result<Vec<Row>, Failure> {
    let name = if durable {
        "verbs.durable_lat"
    } else {
        "verbs.write_lat"
    };
    let limit_name = "ib_write_bw -s 64 --tx-depth 1, per message";
    let label = Label {
        name,
        size_bytes: 64,
        unit: "us",
        limit_name,
        kind: Kind::Time,
    };
    let mut bed = verbs::Bed::new(4096)?;
    let mut row = alternate(
        label,
        options.runs() * LATENCY_PAIRS,
        || bed.latency_us(durable, LATENCY_COUNT),
        || verbs::perftest(Way::Write, 64, LATENCY_COUNT, true).map(|(_, us)| us),
    )?;
    if durable {
        row.note = Some(bed.durable_counts()?);
    }
    Ok(vec![row])
}

fn run(options: &Options) -> Result<(), Failure> {
    match &options.part {
        Some(Part::Stream { direction, length }) => return plain::serve(*direction, *length),
        Some(Part::FailoverProgram(program)) => return failover::counter(program),
        Some(Part::WriteSet(set)) => {
            println!("{}", spread::memory::write(set)?);
            return Ok(());
        }
        None => {}
    }
    let chosen: Vec<&Benchmark> = BENCHMARKS
        .iter()
        .filter(|(name, _)| options.list || options.wants(name))
        .collect();
    if options.list {
        for (name, _) in chosen {
            println!("{name}");
        }
        return Ok(());
    }
    if chosen.is_empty() {
        return Err(format!(
            "no benchmark begins with {:?}; --list shows them",
            options.only
        )
        .into());
    }
    let mut json = options.json.as_ref().map(File::create).transpose()?;
    let mut out = io::stdout().lock();
    print_head(&mut out)?;
    for (_, benchmark) in chosen {
        for row in benchmark(options)?
            .into_iter()
            .filter(|row| row.name.starts_with(&options.only))
        {
            print_row(&mut out, &row)?;
            if let Some(file) = &mut json {
                serde_json::to_writer(&mut *file, &row)?;
                file.write_all(b"\n")?;
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pmu-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
