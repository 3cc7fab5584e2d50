//! `put`, `get`, `sets`, and `recover` in overwrite mode.

use std::time::Instant;

use serde::Serialize;

use crate::cli::arguments::{Get, Put, Recover};
use crate::cli::output::Grid;
use crate::cli::source::Source;
use crate::cli::target::{Target, TargetSink};
use crate::cli::values::{bytes_text, duration_text, time_text};
use crate::cli::{CliError, Context, exit};
use crate::error::{ClientError, Result};
use crate::receipt::Receipt;
use crate::sets::{SetChoice, SetInfo, SetRead, SetReader};
use crate::unit::Unit;

#[derive(Serialize)]
struct PutOutput<'a> {
    #[serde(flatten)]
    receipt: &'a Receipt,
    label: String,
    seconds: f64,
}

pub(super) fn put(context: &Context<'_>, unit: &Unit, arguments: &Put) -> Result<u8, CliError> {
    let source = Source::open(&arguments.file, &context.interrupt)?;
    let begun = Instant::now();
    let mut primary = unit.open_sets_primary(&arguments.region, &context.options())?;
    context
        .output
        .remark(&format!("{} over {}", arguments.region, primary.provider()));
    let limit_bytes = primary.capacity_bytes();
    if let Some(bytes) = source.length.filter(|length| *length > limit_bytes) {
        return Err(ClientError::TooLarge {
            region: arguments.region.clone(),
            bytes,
            limit_bytes,
        }
        .into());
    }
    let bar = context.output.progress(source.length);
    // Open-ended even for a file, which may change its length meanwhile. Left early, it is abandoned.
    let mut put = primary.begin(None, arguments.label)?;
    source.drain(|bytes| {
        put.write_bytes(bytes)?;
        bar.inc(bytes.len() as u64);
        Ok(())
    })?;
    let receipt = put.finish()?;
    bar.finish_and_clear();
    let (label, seconds) = (arguments.label.to_string(), begun.elapsed().as_secs_f64());
    let text = format!("{receipt} in {}", duration_text(begun.elapsed()));
    context.output.report(
        false,
        &PutOutput {
            receipt: &receipt,
            label,
            seconds,
        },
        &text,
    )?;
    Ok(exit::DONE)
}

#[derive(Serialize)]
struct ReadOutput<'a> {
    region: &'a str,
    #[serde(flatten)]
    set: &'a SetInfo,
    findings: Vec<String>,
    seconds: f64,
}

pub(super) fn get(context: &Context<'_>, unit: &Unit, arguments: &Get) -> Result<u8, CliError> {
    let mut reader = unit.open_sets_reader(&arguments.region, &context.options())?;
    let choice = arguments.set.map_or(SetChoice::Newest, SetChoice::Number);
    let target = Target::open(&arguments.output)?;
    fetch(context, &mut reader, target, |reader, sink| {
        reader.read(choice, sink)
    })
}

pub(super) fn recover(
    context: &Context<'_>,
    unit: &Unit,
    arguments: &Recover,
) -> Result<u8, CliError> {
    let mut reader = unit.open_sets_backup(&arguments.region, &context.options())?;
    let target = Target::open(&arguments.output)?;
    fetch(context, &mut reader, target, |reader, sink| {
        reader.recover(sink)
    })
}

fn fetch(
    context: &Context<'_>,
    reader: &mut SetReader,
    mut target: Target,
    read: impl FnOnce(&mut SetReader, &mut TargetSink<'_>) -> Result<SetRead>,
) -> Result<u8, CliError> {
    context.output.remark(&format!(
        "{} over {}",
        reader.region().name,
        reader.provider()
    ));
    let begun = Instant::now();
    let bar = context.output.progress(Some(0));
    let interrupt = &context.interrupt;
    let mut sink = TargetSink {
        target: &mut target,
        bar: &bar,
        interrupt,
        written: 0,
    };
    let result = read(reader, &mut sink);
    bar.finish_and_clear();
    let read = match result {
        Err(ClientError::Io { .. }) if interrupt.is_set() => return Err(CliError::Interrupted),
        Err(ClientError::Io { source, .. }) => return Err(CliError::output(source)),
        other => other?,
    };
    let beside_payload = target.is_standard();
    if beside_payload {
        std::io::Write::flush(&mut std::io::stdout()).map_err(CliError::output)?;
    }
    target.complete(Some(read.set.bytes))?;
    let region = &*reader.region().name;
    let findings: Vec<_> = read.findings.iter().map(ToString::to_string).collect();
    let mut text = format!("{region}: {}", line(&read.set));
    for finding in &findings {
        text.push_str("\nfound: ");
        text.push_str(finding);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let out = ReadOutput {
        region,
        set: &read.set,
        findings,
        seconds,
    };
    // Beside payload only those see it who asked, or whom it must not escape.
    if !beside_payload || context.output.json || context.output.verbose || read.fell_back() {
        context.output.report(beside_payload, &out, &text)?;
    }
    Ok(if read.fell_back() {
        exit::DAMAGED
    } else {
        exit::DONE
    })
}

fn line(set: &SetInfo) -> String {
    let label = set.label.to_string();
    let label = if label.is_empty() {
        label
    } else {
        format!(", label {label}")
    };
    format!(
        "set {}, {} bytes, epoch {}, {}, {}{label}",
        set.number,
        set.bytes,
        set.epoch,
        time_text(set.committed_ns),
        set.state_word()
    )
}

#[derive(Serialize)]
struct ListOutput<'a> {
    region: &'a str,
    published: u64,
    sets_kept: u32,
    capacity_bytes: u64,
    sets: &'a [SetInfo],
    findings: Vec<String>,
}

pub(super) fn list(context: &Context<'_>, unit: &Unit, region: &str) -> Result<u8, CliError> {
    let mut reader = unit.open_sets_reader(region, &context.options())?;
    let catalog = reader.sets()?;
    let mut grid = Grid::new(&["SET", "SIZE", "EPOCH", "COMMITTED", "STATE", "LABEL"]);
    for set in &catalog.sets {
        grid.row(&[
            set.number.to_string(),
            bytes_text(set.bytes),
            set.epoch.to_string(),
            time_text(set.committed_ns),
            set.state_word().to_owned(),
            set.label.to_string(),
        ]);
    }
    let findings: Vec<_> = catalog.findings.iter().map(ToString::to_string).collect();
    let mut text = if catalog.sets.is_empty() {
        format!("{region}: no sets")
    } else {
        grid.text()
    };
    for finding in &findings {
        text.push_str("\nfound: ");
        text.push_str(finding);
    }
    let info = reader.region();
    let out = ListOutput {
        region,
        published: catalog.published.get(),
        sets_kept: info.sets_kept,
        capacity_bytes: info.capacity_bytes,
        sets: &catalog.sets,
        findings,
    };
    context.output.report(false, &out, &text)?;
    Ok(if catalog.findings.is_empty() {
        exit::DONE
    } else {
        exit::DAMAGED
    })
}
