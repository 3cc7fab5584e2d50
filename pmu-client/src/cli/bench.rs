//! `bench`: how fast this connection is, by itself and nothing else.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use pmu_format::{Label, Mode, record_length_bytes};
use serde::Serialize;

use crate::cli::arguments::{Bench, BenchMode};
use crate::cli::output::{Grid, confirm};
use crate::cli::values::{bytes_text, duration_text};
use crate::cli::{CliError, Context, exit};
use crate::error::{ClientError, Result};
use crate::unit::Unit;

const SET_BYTES_DEFAULT: u64 = 1 << 20;
const RECORD_BYTES_DEFAULT: u64 = 256;

/// One measurement.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    size_bytes: u64,
    count: u64,
    /// Of each one, where they were measured apart.
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    max_us: Option<f64>,
    per_second: f64,
    mib_per_second: f64,
}

impl Row {
    fn new(
        what: &'static str,
        size_bytes: u64,
        count: u64,
        total: Duration,
        mut each: Vec<Duration>,
    ) -> Self {
        each.sort_unstable();
        let at = |share: f64| {
            let index = ((each.len() as f64 * share) as usize).min(each.len().saturating_sub(1));
            each.get(index).map(|duration| duration.as_secs_f64() * 1e6)
        };
        let per_second = count as f64 / total.as_secs_f64().max(1e-9);
        Self {
            what,
            size_bytes,
            count,
            p50_us: at(0.5),
            p99_us: at(0.99),
            max_us: at(1.0),
            per_second,
            mib_per_second: per_second * size_bytes as f64 / f64::from(1 << 20),
        }
    }
}

#[derive(Serialize)]
struct BenchOutput<'a> {
    region: &'a str,
    unit: &'a str,
    provider: &'static str,
    persistence: &'static str,
    durable: bool,
    rows: Vec<Row>,
}

pub(super) fn run(context: &Context<'_>, arguments: &Bench) -> Result<u8, CliError> {
    let region = arguments.region.as_str();
    confirm(
        arguments.yes,
        &format!("Write into region {region} (sets that it keeps are replaced)?"),
    )?;
    let unit = context.connect()?;
    let out = match unit.describe(region)?.mode {
        Mode::Overwrite => sets(context, &unit, arguments)?,
        Mode::Append => log(context, &unit, arguments)?,
    };
    let mut grid = Grid::new(&["", "SIZE", "COUNT", "P50", "P99", "MAX", "PER S", "MIB/S"]);
    for row in &out.rows {
        let us = |value: Option<f64>| {
            value.map_or("-".to_owned(), |us| {
                duration_text(Duration::from_secs_f64(us / 1e6))
            })
        };
        grid.row(&[
            row.what.to_owned(),
            bytes_text(row.size_bytes),
            row.count.to_string(),
            us(row.p50_us),
            us(row.p99_us),
            us(row.max_us),
            format!("{:.0}", row.per_second),
            format!("{:.1}", row.mib_per_second),
        ]);
    }
    let state = if out.durable {
        "durable"
    } else {
        "not durable"
    };
    let text = format!(
        "{region}: {} by {} over {}, {state}\n{}",
        out.unit,
        out.persistence,
        out.provider,
        grid.text()
    );
    context.output.report(false, &out, &text)?;
    Ok(exit::DONE)
}

/// Calls `work` so many times, each measured.
fn measure(
    context: &Context<'_>,
    what: &'static str,
    (size, count): (u64, u32),
    mut work: impl FnMut() -> Result<()>,
) -> Result<Row, CliError> {
    let mut each = Vec::with_capacity(count as usize);
    work()?;
    let begun = Instant::now();
    for _ in 0..count {
        context.interrupt.check()?;
        let one = Instant::now();
        work()?;
        each.push(one.elapsed());
    }
    Ok(Row::new(what, size, count.into(), begun.elapsed(), each))
}

fn sets<'a>(
    context: &Context<'_>,
    unit: &'a Unit,
    arguments: &'a Bench,
) -> Result<BenchOutput<'a>, CliError> {
    let mut primary = unit.open_sets_primary(&arguments.region, &context.options())?;
    let limit_bytes = primary.capacity_bytes();
    let size = arguments.size.unwrap_or(SET_BYTES_DEFAULT.min(limit_bytes));
    if size > limit_bytes {
        let region = arguments.region.clone();
        return Err(ClientError::TooLarge {
            region,
            bytes: size,
            limit_bytes,
        }
        .into());
    }
    let label = Label::new("pmu bench").unwrap_or_default();
    let length =
        usize::try_from(size).map_err(|_| CliError::Usage("--size is too large".into()))?;
    let sized = (size, arguments.count);
    let mut rows = Vec::new();
    if arguments.mode != BenchMode::Bandwidth {
        let payload = vec![0x5a; length];
        rows.push(measure(context, "commit", sized, || {
            primary.commit(&[IoSlice::new(&payload)], label).map(drop)
        })?);
    }
    if arguments.mode != BenchMode::Latency {
        let buffer = primary.allocate_registered(length)?;
        rows.push(measure(
            context,
            "commit from registered memory",
            sized,
            || {
                primary
                    .commit_registered(&[buffer.whole()], label)
                    .map(drop)
            },
        )?);
    }
    Ok(BenchOutput {
        region: &arguments.region,
        unit: unit.name(),
        provider: primary.provider().name(),
        persistence: primary.unit().persistence.name(),
        durable: primary.unit().persistence.is_durable(),
        rows,
    })
}

fn log<'a>(
    context: &Context<'_>,
    unit: &'a Unit,
    arguments: &'a Bench,
) -> Result<BenchOutput<'a>, CliError> {
    let mut log = unit.open_log_primary(&arguments.region, &context.options())?;
    let size = arguments.size.unwrap_or(RECORD_BYTES_DEFAULT);
    let limit_bytes = u64::from(log.record_bytes_max());
    let region = || arguments.region.clone();
    let length = u32::try_from(size).ok().filter(|_| size <= limit_bytes);
    let Some(length) = length else {
        return Err(ClientError::TooLarge {
            region: region(),
            bytes: size,
            limit_bytes,
        }
        .into());
    };
    let runs = if arguments.mode == BenchMode::Both {
        2
    } else {
        1
    };
    let needed_bytes = (u64::from(arguments.count) + 1) * runs * record_length_bytes(length);
    let free_bytes = log.refresh_free()?;
    if needed_bytes > free_bytes {
        return Err(ClientError::Full {
            region: region(),
            needed_bytes,
            free_bytes,
        }
        .into());
    }
    let record = vec![0x5a; length as usize];
    let mut rows = Vec::new();
    if arguments.mode != BenchMode::Bandwidth {
        rows.push(measure(context, "append", (size, arguments.count), || {
            log.append(&record).map(drop)
        })?);
    }
    if arguments.mode != BenchMode::Latency {
        let begun = Instant::now();
        for _ in 0..arguments.count {
            context.interrupt.check()?;
            log.submit(&record)?;
        }
        log.flush()?;
        rows.push(Row::new(
            "submit and flush",
            size,
            arguments.count.into(),
            begun.elapsed(),
            Vec::new(),
        ));
    }
    Ok(BenchOutput {
        region: &arguments.region,
        unit: unit.name(),
        provider: log.provider().name(),
        persistence: log.unit().persistence.name(),
        durable: log.unit().persistence.is_durable(),
        rows,
    })
}
