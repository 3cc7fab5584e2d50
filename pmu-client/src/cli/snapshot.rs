//! `snapshot list` and `snapshot export`.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};
use pmu_format::SetNumber;
use serde::Serialize;

use crate::cli::arguments::region_name;
use crate::cli::output::Grid;
use crate::cli::target::Target;
use crate::cli::values::{bytes_text, time_text};
use crate::cli::{CliError, Context, exit};
use crate::error::ClientError;
use crate::snapshot::{Exported, SkippedSet, SnapshotError, SnapshotInfo, SnapshotRegion};

/// Snapshots of running programs.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Snapshot {
    /// List the snapshots that a region holds, and on what each builds.
    List(List),
    /// Put a snapshot together into one flat image of the program's memory. Every chunk is verified.
    Export(Export),
}

/// Arguments of `snapshot list`.
#[derive(Debug, Args)]
pub struct List {
    /// The region.
    #[arg(long, value_name = "REGION", value_parser = region_name)]
    pub region: String,
}

/// Arguments of `snapshot export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The region.
    #[arg(long, value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// The file. It appears when it is complete and verified; memory that was never touched is a hole in it.
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// The snapshot in the set of this number [default: the newest whole one; an older one where that is damaged, and then it says so].
    #[arg(long, value_name = "N")]
    pub set: Option<SetNumber>,
}

pub(super) fn run(context: &Context<'_>, command: &Snapshot) -> Result<u8, CliError> {
    match command {
        Snapshot::List(arguments) => list(context, &arguments.region),
        Snapshot::Export(arguments) => export(context, arguments),
    }
}

fn find(context: &Context<'_>, region: &str) -> Result<SnapshotRegion, CliError> {
    let units: Vec<&str> = context.addresses().collect();
    if units.is_empty() {
        // It says what is missing.
        context.connect()?;
    }
    let identity = context.identity()?;
    Ok(SnapshotRegion::find(
        &units,
        region,
        identity,
        &context.connect_options(),
    )?)
}

#[derive(Serialize)]
struct ListOutput<'a> {
    region: &'a str,
    snapshots: &'a [SnapshotInfo],
}

fn list(context: &Context<'_>, name: &str) -> Result<u8, CliError> {
    let region = find(context, name)?;
    let snapshots = region.snapshots(&context.options())?;
    let mut grid = Grid::new(&["SET", "SIZE", "COMMITTED", "KIND", "CHAIN"]);
    for info in &snapshots {
        let kind = match info.kind.base() {
            None => "full".to_owned(),
            Some(base) => format!("on {} of {}", base.set, base.root),
        };
        grid.row(&[
            info.set.to_string(),
            bytes_text(info.bytes),
            time_text(info.committed_ns),
            kind,
            if info.is_whole {
                "whole"
            } else {
                "overwritten"
            }
            .to_owned(),
        ]);
    }
    let text = if snapshots.is_empty() {
        format!("{name}: no snapshots")
    } else {
        grid.text()
    };
    let output = ListOutput {
        region: name,
        snapshots: &snapshots,
    };
    context.output.report(false, &output, &text)?;
    Ok(exit::DONE)
}

#[derive(Serialize)]
struct ExportOutput<'a> {
    region: &'a str,
    set: u64,
    chain: Vec<u64>,
    skipped: &'a [SkippedSet],
    arena_address: u64,
    arena_bytes: u64,
    frozen_ns: u64,
    seconds: f64,
}

fn export(context: &Context<'_>, arguments: &Export) -> Result<u8, CliError> {
    let region = find(context, &arguments.region)?;
    let target = Target::open(&arguments.out)?;
    let Target::File { file, .. } = &target else {
        return Err(CliError::Usage(
            "a snapshot is put together in a file, not in a pipe or device".to_owned(),
        ));
    };
    let begun = Instant::now();
    let bar = context.output.progress(None);
    let mut on_bytes = |bytes| {
        bar.inc(bytes);
        if context.interrupt.is_set() {
            return Err(io::Error::other("interrupted"));
        }
        Ok(())
    };
    let exported = region.export(arguments.set, file, &context.options(), &mut on_bytes);
    bar.finish_and_clear();
    let exported = match exported {
        Err(_) if context.interrupt.is_set() => return Err(CliError::Interrupted),
        Err(SnapshotError::Client(ClientError::Io { source, .. })) => {
            return Err(CliError::file("write", &arguments.out, source));
        }
        exported => exported?,
    };
    target.complete(Some(exported.arena_bytes))?;
    say(context, arguments, &exported, begun.elapsed().as_secs_f64())
}

fn say(
    context: &Context<'_>,
    arguments: &Export,
    exported: &Exported,
    seconds: f64,
) -> Result<u8, CliError> {
    let chain: Vec<u64> = exported.chain.iter().map(|set| set.get()).collect();
    let set = chain.last().copied().unwrap_or_default();
    let mut text = format!(
        "{}: set {set}, {} of memory at {:#x}, frozen {}, from {} set{}",
        arguments.region,
        bytes_text(exported.arena_bytes),
        exported.arena_address,
        time_text(exported.frozen_ns),
        chain.len(),
        if chain.len() == 1 { "" } else { "s" },
    );
    for skipped in &exported.skipped {
        text.push_str(&format!("\nfound: set {}: {}", skipped.set, skipped.reason));
    }
    let output = ExportOutput {
        region: &arguments.region,
        set,
        chain,
        skipped: &exported.skipped,
        arena_address: exported.arena_address,
        arena_bytes: exported.arena_bytes,
        frozen_ns: exported.frozen_ns,
        seconds,
    };
    context.output.report(false, &output, &text)?;
    Ok(if exported.skipped.is_empty() {
        exit::DONE
    } else {
        exit::DAMAGED
    })
}
