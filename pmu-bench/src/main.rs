//! Benchmarks: every figure as a ratio to a limit measured in the same run, alternating, medians.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports")]

mod fabric;
mod measure;
mod stream;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::fabric::{Bed, Way};
use crate::measure::{Failure, Kind, Label, Row, alternate, print_head, print_row};
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
    /// Pairs of runs for each figure.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Folder for files and sockets; it decides which file system is measured.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

type Benchmark = (&'static str, fn(&Options) -> Result<Vec<Row>, Failure>);

const BENCHMARKS: &[Benchmark] = &[
    ("soft.write_bw", |options| soft_bandwidth(options, Way::Write)),
    ("soft.read_bw", |options| soft_bandwidth(options, Way::Read)),
];

fn soft_bandwidth(options: &Options, way: Way) -> Result<Vec<Row>, Failure> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let mut rows = Vec::new();
    for socket in [Socket::Unix, Socket::Tcp] {
        for (size, count) in [(4 << 10, 16384), (64 << 10, 4096), (1 << 20, 512), (64 << 20, 12)] {
            let name = match (way, socket) {
                (Way::Write, Socket::Unix) => "soft.write_bw",
                (Way::Write, Socket::Tcp) => "soft.write_bw.tcp",
                (Way::Read, Socket::Unix) => "soft.read_bw",
                (Way::Read, Socket::Tcp) => "soft.read_bw.tcp",
            };
            let limit_name = if socket == Socket::Unix { "plain Unix stream" } else { "plain TCP stream" };
            let label = Label { name, size_bytes: size as u64, unit: "MiB/s", limit_name, kind: Kind::Rate };
            let mut bed = Bed::new(socket, folder.path(), size)?;
            let runs = usize::from(options.runs);
            rows.push(alternate(
                label,
                runs,
                || bed.bandwidth(way, size, count),
                || stream::bandwidth(socket, size, count),
            )?);
        }
    }
    Ok(rows)
}

fn run(options: &Options) -> Result<(), Failure> {
    let chosen: Vec<&Benchmark> = BENCHMARKS.iter().filter(|(name, _)| name.starts_with(&options.only)).collect();
    if options.list {
        for (name, _) in chosen {
            println!("{name}");
        }
        return Ok(());
    }
    if chosen.is_empty() {
        return Err(format!("no benchmark begins with {:?}; --list shows them", options.only).into());
    }
    let mut json = options.json.as_ref().map(File::create).transpose()?;
    let mut out = io::stdout().lock();
    print_head(&mut out)?;
    for (_, benchmark) in chosen {
        for row in benchmark(options)? {
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
