//! `segments`: watch a directory, list, fetch and drop.

use std::cell::Cell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use pmu_format::RegionName;
use serde::Serialize;

use crate::cli::output::{Grid, confirm};
use crate::cli::values::{bytes_text, duration, plain, time_text};
use crate::cli::{CliError, Context, exit};
use crate::control::chain;
use crate::receipt::Receipt;
use crate::segments::{
    EXCLUDED_DEFAULT, FetchOptions, Fetched, Outcome, PREFIX_DEFAULT, Replicated, Segment,
    SegmentError, SegmentName, Segments, Source, WatchEvent, WatchOptions, Way, watch as follow,
};
use crate::store::{MoverConfig, Store};

/// What `segments` does.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum SegmentsCommand {
    /// Replicate every file that a program stores in a directory, and those that are there. Files are only read; the program knows nothing of it.
    Watch(Watch),
    /// List the segments.
    List(Prefix),
    /// Fetch segments into a directory, from any of the units that hold them. A file appears when it is complete, verified and on the disk.
    Get(GetSegments),
    /// Drop segments: their names are free again. A copy in a global storage stays.
    Drop(DropSegment),
}

/// Which segments.
#[derive(Debug, Clone, Args)]
pub struct Prefix {
    /// The prefix of the segments' regions: PREFIX.index and PREFIX.body.
    #[arg(long = "region-prefix", value_name = "PREFIX", env = "PMU_REGION_PREFIX", default_value = PREFIX_DEFAULT, value_parser = prefix)]
    pub prefix: String,
}

/// Arguments of `segments watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// The directory, with all below it.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Which segments.
    #[command(flatten)]
    pub prefix: Prefix,
    /// The region that the contents are stored in: each watcher needs its own [default: PREFIX.body].
    #[arg(long, value_name = "REGION", value_parser = region)]
    pub body: Option<String>,
    /// The least number of units that each segment must lie on.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub replicas: u8,
    /// How long nothing may have changed a file before it is taken.
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub settle: Duration,
    /// How often all files are looked at, whatever the system told.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub rescan: Duration,
    /// Names of files and directories that are no segments, with * and ?; any number, in place of the default.
    #[arg(long, value_name = "PATTERN", default_values = EXCLUDED_DEFAULT)]
    pub exclude: Vec<String>,
    /// What this computer is called in the index [default: its host name].
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// End when all that is there now is replicated.
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `segments get`.
#[derive(Debug, Args)]
pub struct GetSegments {
    /// The segments, as they are listed.
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub names: Vec<OsString>,
    /// All segments.
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Which segments.
    #[command(flatten)]
    pub prefix: Prefix,
    /// Where to. Directories below it are made as the names say.
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Replace a file that has other contents.
    #[arg(long)]
    pub replace: bool,
    /// Where to look when no unit has it: the configuration of pmu store.
    #[arg(long, value_name = "FILE", env = "PMU_STORE")]
    pub store: Option<PathBuf>,
}

/// Arguments of `segments drop`.
#[derive(Debug, Args)]
pub struct DropSegment {
    /// The segments, as they are listed.
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<OsString>,
    /// Which segments.
    #[command(flatten)]
    pub prefix: Prefix,
    /// Don't ask.
    #[arg(short, long)]
    pub yes: bool,
}

fn prefix(text: &str) -> Result<String, String> {
    region(&format!("{text}.index")).map(|_| text.to_owned())
}

fn region(text: &str) -> Result<String, String> {
    RegionName::new(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

/// Runs one of them.
pub(super) fn run(context: &Context<'_>, command: &SegmentsCommand) -> Result<u8, CliError> {
    match command {
        SegmentsCommand::Watch(arguments) => watch(context, arguments),
        SegmentsCommand::List(arguments) => list(context, arguments),
        SegmentsCommand::Get(arguments) => get(context, arguments),
        SegmentsCommand::Drop(arguments) => drop_segment(context, arguments),
    }
}

/// How the units are reached.
pub(super) fn way(context: &Context<'_>) -> Result<Way, CliError> {
    let units: Vec<_> = context.addresses().map(str::to_owned).collect();
    if units.is_empty() {
        return Err(CliError::Usage(
            "which unit? --unit HOST:PORT[,HOST:PORT]..., or the variable PMU_UNIT".into(),
        ));
    }
    Ok(Way {
        units,
        identity: context.identity()?,
        connect: context.connect_options(),
        open: context.options(),
    })
}

fn segments(context: &Context<'_>, prefix: &Prefix) -> Result<Segments, CliError> {
    Ok(Segments::new(way(context)?, &prefix.prefix)?)
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event<'a> {
    Watching {
        directory: String,
        files: usize,
        units: usize,
    },
    Replicated {
        name: &'a SegmentName,
        bytes: u64,
        hash: String,
        durable: bool,
        receipt: Option<&'a Receipt>,
    },
    Refused {
        name: String,
        error: String,
    },
    Unreadable {
        name: String,
        error: String,
    },
    Waiting {
        error: String,
    },
    Resumed {},
}

/// What `--once` ends with.
#[derive(Debug, Default)]
struct Tally {
    refused: Cell<usize>,
    unreadable: Cell<usize>,
    told: Cell<bool>,
}

fn watch(context: &Context<'_>, arguments: &Watch) -> Result<u8, CliError> {
    let mut segments = segments(context, &arguments.prefix)?;
    if let Some(body) = &arguments.body {
        segments = segments.with_body(body);
    }
    let options = WatchOptions {
        settle: arguments.settle,
        rescan: arguments.rescan,
        excluded: arguments.exclude.clone(),
        replicas: arguments.replicas.into(),
        node: arguments.node.clone().unwrap_or_else(Segments::this_node),
        once: arguments.once,
    };
    let tally = Tally::default();
    let stop = || context.interrupt.is_set() || tally.told.get();
    let mut failed = None;
    let mut tell = |event: WatchEvent| {
        if let Err(error) = tell(context, arguments, &tally, &event) {
            // Nobody listens any more.
            tally.told.set(true);
            failed.get_or_insert(error);
        }
    };
    let done = follow(&segments, &arguments.directory, &options, &stop, &mut tell);
    if let Some(error) = failed {
        return Err(error);
    }
    done?;
    Ok(match (tally.refused.get(), tally.unreadable.get()) {
        (0, 0) => exit::DONE,
        (0, _) => exit::FAILED,
        _ => exit::TAKEN,
    })
}

fn tell(
    context: &Context<'_>,
    arguments: &Watch,
    tally: &Tally,
    event: &WatchEvent,
) -> Result<(), CliError> {
    let (event, text) = match event {
        WatchEvent::Watching { files, units } => {
            let directory = arguments.directory.display().to_string();
            let text =
                format!("watching {directory}: {files} files, each segment on {units} units");
            let (files, units) = (*files, *units);
            (
                Event::Watching {
                    directory,
                    files,
                    units,
                },
                text,
            )
        }
        WatchEvent::File(name, Outcome::Replicated(replicated)) => {
            let event = Event::Replicated {
                name,
                bytes: replicated.named.bytes,
                hash: replicated.named.hash.to_string(),
                durable: replicated.durable,
                receipt: replicated.receipt.as_ref(),
            };
            (event, replicated_text(name, replicated))
        }
        WatchEvent::File(name, Outcome::Refused(error)) => {
            tally.refused.set(tally.refused.get() + 1);
            let (name, error) = (name.to_string(), chain(error));
            let text = format!("refused: {error}");
            (Event::Refused { name, error }, text)
        }
        WatchEvent::File(name, Outcome::Unreadable(error)) => {
            tally.unreadable.set(tally.unreadable.get() + 1);
            let (name, error) = (name.to_string(), chain(error));
            let text = format!("not read: {error}");
            (Event::Unreadable { name, error }, text)
        }
        WatchEvent::Nameless(path, error) => {
            tally.unreadable.set(tally.unreadable.get() + 1);
            let (name, error) = (path.display().to_string(), chain(error));
            let text = format!("not read: {error}");
            (Event::Unreadable { name, error }, text)
        }
        WatchEvent::Waiting(error) => {
            let error = chain(error);
            let text = format!("waiting: {error}");
            (Event::Waiting { error }, text)
        }
        WatchEvent::Resumed => (Event::Resumed {}, "resumed".to_owned()),
        _ => return Ok(()),
    };
    context.output.report(false, &event, &text)
}

fn replicated_text(name: &SegmentName, replicated: &Replicated) -> String {
    let bytes = replicated.named.bytes;
    let state = match replicated.durable {
        true => "durable",
        false => "stored, not durable",
    };
    let Some(receipt) = &replicated.receipt else {
        return format!("{name}: {bytes} bytes, {state}, the same contents are held already");
    };
    let units = receipt.units.iter();
    let units: Vec<_> = units
        .map(|unit| format!("{} by {}", unit.name, unit.persistence))
        .collect();
    format!("{name}: {bytes} bytes, {state}, on {}", units.join(", "))
}

#[derive(Serialize)]
struct ListOutput<'a> {
    prefix: &'a str,
    segments: &'a [Segment],
}

fn list(context: &Context<'_>, arguments: &Prefix) -> Result<u8, CliError> {
    let segments = segments(context, arguments)?;
    let found = segments.list()?;
    let mut grid = Grid::new(&["NAME", "SIZE", "TAKEN", "FROM", "CONTENTS", "HELD BY"]);
    for segment in &found {
        let units = segment.place.iter().flat_map(|place| &place.units);
        let mut held: Vec<_> = units.map(|unit| unit.unit.clone()).collect();
        held.extend(segment.store.clone());
        grid.row(&[
            segment.named.name.to_string(),
            bytes_text(segment.named.bytes),
            time_text(segment.named.taken_ns),
            segment.named.origin.node.clone(),
            segment.named.hash.short(),
            held.join(" "),
        ]);
    }
    let text = match found.is_empty() {
        true => format!("{}: no segments", segments.prefix()),
        false => grid.text(),
    };
    let output = ListOutput {
        prefix: segments.prefix(),
        segments: &found,
    };
    context.output.report(false, &output, &text)?;
    Ok(exit::DONE)
}

/// Opens the global storage that a configuration names.
pub(super) fn open_store(path: Option<&PathBuf>) -> Result<Option<Store>, CliError> {
    let Some(path) = path else { return Ok(None) };
    let config = MoverConfig::load(path)?;
    Ok(Some(Store::open(&config.store)?))
}

fn typed(names: &[OsString]) -> Result<Vec<SegmentName>, CliError> {
    let names = names.iter().map(|name| SegmentName::typed(name));
    let names: Result<Vec<_>, _> = names.collect();
    Ok(names.map_err(SegmentError::from)?)
}

fn get(context: &Context<'_>, arguments: &GetSegments) -> Result<u8, CliError> {
    let mut names = typed(&arguments.names)?;
    let store = open_store(arguments.store.as_ref())?;
    let segments = segments(context, &arguments.prefix)?;
    if arguments.all {
        let listed = segments.list()?.into_iter();
        names.extend(listed.map(|segment| segment.named.name));
    }
    let options = FetchOptions {
        replace: arguments.replace,
        store: store.as_ref(),
    };
    let stop = || context.interrupt.is_set();
    let bar = context.output.progress(None);
    for name in &names {
        let fetched = segments.fetch(name, &arguments.into, &options, &stop, &|bytes| {
            bar.inc(bytes);
        })?;
        let text = fetched_text(&fetched);
        bar.suspend(|| context.output.report(false, &fetched, &text))?;
    }
    bar.finish_and_clear();
    Ok(exit::DONE)
}

fn fetched_text(fetched: &Fetched) -> String {
    let from = match &fetched.source {
        Source::Units(region) => format!("from region {region}"),
        Source::Store(url) => format!("from {url}"),
        Source::Here => "was there already".to_owned(),
        #[allow(unreachable_patterns)]
        _ => String::new(),
    };
    let mut text = format!(
        "{}: {} bytes, {from}",
        fetched.path.display(),
        fetched.bytes
    );
    if let Some(said) = &fetched.units_said {
        text.push_str(&format!("\nnot from the units: {}", plain(said)));
    }
    text
}

#[derive(Serialize)]
struct DropOutput<'a> {
    prefix: &'a str,
    dropped: &'a [SegmentName],
}

fn drop_segment(context: &Context<'_>, arguments: &DropSegment) -> Result<u8, CliError> {
    let names = typed(&arguments.names)?;
    let segments = segments(context, &arguments.prefix)?;
    let texts: Vec<_> = names.iter().map(SegmentName::as_str).collect();
    let prefix = segments.prefix();
    let question = format!("Drop {} of prefix {prefix}?", texts.join(", "));
    confirm(arguments.yes, &question)?;
    segments.drop_segments(&names, &|| context.interrupt.is_set())?;
    let dropped = &names;
    let output = DropOutput { prefix, dropped };
    let text = format!("dropped: {}", texts.join(", "));
    context.output.report(false, &output, &text)?;
    Ok(exit::DONE)
}
