//! `put`, `get`, `sets`, `recover` and `fence` for regions that are spread over several units.

use std::time::Instant;

use serde::Serialize;

use crate::cli::arguments::{Get, Put, Recover};
use crate::cli::output::Grid;
use crate::cli::source::Source;
use crate::cli::target::{Target, TargetSink};
use crate::cli::values::{duration_text, time_text};
use crate::cli::{CliError, Context, exit};
use crate::error::ClientError;
use crate::receipt::Receipt;
use crate::sets::{SetChoice, SetInfo};
use crate::spread::{MissingUnit, Spread};

#[derive(Serialize)]
pub(super) struct Missing<'a> {
    unit: &'a str,
    reason: &'a str,
}

pub(super) fn missing_of<'a>(
    missing: impl IntoIterator<Item = &'a MissingUnit>,
) -> Vec<Missing<'a>> {
    let missing = missing.into_iter();
    missing
        .map(|missing| Missing {
            unit: &missing.unit,
            reason: &missing.reason,
        })
        .collect()
}

pub(super) fn add_missing(text: &mut String, missing: &[Missing<'_>]) {
    for missing in missing {
        text.push_str(&format!("\nwithout {}: {}", missing.unit, missing.reason));
    }
}

#[derive(Serialize)]
struct PutOutput<'a> {
    #[serde(flatten)]
    receipt: &'a Receipt,
    layout: String,
    units_of: usize,
    missing: Vec<Missing<'a>>,
    label: String,
    seconds: f64,
}

pub(super) fn put(context: &Context<'_>, spread: Spread, arguments: &Put) -> Result<u8, CliError> {
    let source = Source::open(&arguments.file, &context.interrupt)?;
    let begun = Instant::now();
    let (layout, units_of) = (spread.layout(), spread.layout().units());
    let mut primary = spread.open_primary(&context.options())?;
    let bar = context.output.progress(source.length);
    let mut put = primary.begin(source.length, arguments.label)?;
    source.drain(|bytes| {
        put.write_bytes(bytes)?;
        bar.inc(bytes.len() as u64);
        Ok(())
    })?;
    let receipt = put.finish()?;
    bar.finish_and_clear();
    let missing = missing_of(primary.missing());
    let mut text = format!(
        "{receipt}: {} of {units_of} units ({layout}) in {}",
        receipt.units.len(),
        duration_text(begun.elapsed())
    );
    add_missing(&mut text, &missing);
    let output = PutOutput {
        receipt: &receipt,
        layout: layout.to_string(),
        units_of,
        missing,
        label: arguments.label.to_string(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.output.report(false, &output, &text)?;
    Ok(exit::DONE)
}

#[derive(Serialize)]
struct ReadOutput<'a> {
    region: &'a str,
    #[serde(flatten)]
    set: &'a SetInfo,
    units: &'a [String],
    missing: Vec<Missing<'a>>,
    reconstructed: bool,
    seconds: f64,
}

pub(super) fn get(context: &Context<'_>, spread: &Spread, arguments: &Get) -> Result<u8, CliError> {
    let choice = arguments.set.map_or(SetChoice::Newest, SetChoice::Number);
    fetch(context, spread, choice, Target::open(&arguments.output)?)
}

pub(super) fn recover(
    context: &Context<'_>,
    spread: &Spread,
    arguments: &Recover,
) -> Result<u8, CliError> {
    let target = Target::open(&arguments.output)?;
    fetch(context, spread, SetChoice::Newest, target)
}

fn fetch(
    context: &Context<'_>,
    spread: &Spread,
    choice: SetChoice,
    mut target: Target,
) -> Result<u8, CliError> {
    let begun = Instant::now();
    let bar = context.output.progress(Some(0));
    let mut sink = TargetSink {
        target: &mut target,
        bar: &bar,
        interrupt: &context.interrupt,
        written: 0,
    };
    let mut reader = spread.open_reader(&context.options())?;
    let result = reader.read(choice, &mut sink);
    bar.finish_and_clear();
    let read = match result {
        Err(ClientError::Io { .. }) if context.interrupt.is_set() => {
            return Err(CliError::Interrupted);
        }
        Err(ClientError::Io { source, .. }) => return Err(CliError::output(source)),
        other => other?,
    };
    let beside_payload = target.is_standard();
    if beside_payload {
        std::io::Write::flush(&mut std::io::stdout()).map_err(CliError::output)?;
    }
    target.complete(Some(read.set.bytes))?;
    let missing = missing_of(&read.missing);
    let mut text = format!(
        "{}: set {}, {} bytes, {}, from {} of {} units ({}){}",
        spread.name(),
        read.set.number,
        read.set.bytes,
        time_text(read.set.committed_ns),
        read.units.len(),
        spread.layout().units(),
        spread.layout(),
        if read.reconstructed {
            ", reconstructed"
        } else {
            ""
        }
    );
    add_missing(&mut text, &missing);
    if !beside_payload || context.output.json || context.output.verbose || !missing.is_empty() {
        let output = ReadOutput {
            region: spread.name(),
            set: &read.set,
            units: &read.units,
            missing,
            reconstructed: read.reconstructed,
            seconds: begun.elapsed().as_secs_f64(),
        };
        context.output.report(beside_payload, &output, &text)?;
    }
    Ok(exit::DONE)
}

#[derive(Serialize)]
struct ListOutput<'a> {
    region: &'a str,
    layout: String,
    capacity_bytes: u64,
    sets: &'a [crate::spread::SpreadSet],
    missing: Vec<Missing<'a>>,
}

pub(super) fn list(context: &Context<'_>, spread: &Spread) -> Result<u8, CliError> {
    let mut reader = spread.open_reader(&context.options())?;
    let sets = reader.sets()?;
    let mut grid = Grid::new(&["SET", "UNITS", "COMMITTED", "STATE", "LABEL"]);
    for set in &sets {
        grid.row(&[
            set.number.to_string(),
            format!("{}/{}", set.units.len(), spread.layout().units()),
            time_text(set.committed_ns),
            if set.committed {
                "committed"
            } else {
                "being-written"
            }
            .to_owned(),
            set.label.clone(),
        ]);
    }
    let mut text = if sets.is_empty() {
        format!("{}: no sets", spread.name())
    } else {
        grid.text()
    };
    let missing = missing_of(reader.missing());
    add_missing(&mut text, &missing);
    let output = ListOutput {
        region: spread.name(),
        layout: spread.layout().to_string(),
        capacity_bytes: spread.capacity_bytes(),
        sets: &sets,
        missing,
    };
    context.output.report(false, &output, &text)?;
    Ok(exit::DONE)
}

#[derive(Serialize)]
struct FenceOutput<'a> {
    region: &'a str,
    fenced: Vec<FencedUnit<'a>>,
    missing: Vec<Missing<'a>>,
}

#[derive(Serialize)]
struct FencedUnit<'a> {
    unit: &'a str,
    epoch: u64,
    sessions_closed: u32,
    windows_invalidated: u32,
    took_us: u128,
}

pub(super) fn fence(context: &Context<'_>, spread: &Spread) -> Result<u8, CliError> {
    let report = spread.fence()?;
    let missing = missing_of(&report.missing);
    let mut text = format!(
        "{}: fenced on {} of {} units",
        spread.name(),
        report.fenced.len(),
        spread.layout().units()
    );
    let fenced: Vec<_> = report
        .fenced
        .iter()
        .map(|(unit, report)| FencedUnit {
            unit,
            epoch: report.epoch.get(),
            sessions_closed: report.sessions_closed,
            windows_invalidated: report.windows_invalidated,
            took_us: report.took.as_micros(),
        })
        .collect();
    for unit in &fenced {
        text.push_str(&format!(
            "\n{}: epoch {}, {} sessions closed, {} us",
            unit.unit, unit.epoch, unit.sessions_closed, unit.took_us
        ));
    }
    add_missing(&mut text, &missing);
    let output = FenceOutput {
        region: spread.name(),
        fenced,
        missing,
    };
    context.output.report(false, &output, &text)?;
    Ok(exit::DONE)
}
