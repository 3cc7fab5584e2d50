//! `store`: move segments and sets into a global storage, list and verify what it has; and sets from there for `get`.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::arguments::Get;
use crate::cli::output::Grid;
use crate::cli::segments::way;
use crate::cli::target::Target;
use crate::cli::values::{bytes_text, duration_text, time_text};
use crate::cli::{CliError, Context, exit};
use crate::control::chain;
use crate::error::ClientError;
use crate::store::{
    Kind, Manifest, MoveEvent, MoveReport, MoverConfig, Object, Store, StoreError, move_once,
};

/// The longest nap between two rounds: so often Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(100);

/// What `store` does.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum StoreCommand {
    /// Load segments and sets from the units into the global storage, as the configuration says; again and again, or --once.
    Move(Move),
    /// List what the global storage has.
    List(Configured),
    /// Read all that the global storage has, and verify it.
    Verify(Configured),
}

/// Arguments of `store move`.
#[derive(Debug, Args)]
pub struct Move {
    /// What to move, and where to.
    #[command(flatten)]
    pub configured: Configured,
    /// One round.
    #[arg(long)]
    pub once: bool,
}

/// Which global storage.
#[derive(Debug, Args)]
pub struct Configured {
    /// The configuration (TOML).
    #[arg(long, value_name = "FILE", env = "PMU_STORE")]
    pub config: PathBuf,
}

/// Runs one of them.
pub(super) fn run(context: &Context<'_>, command: &StoreCommand) -> Result<u8, CliError> {
    match command {
        StoreCommand::Move(arguments) => move_all(context, arguments),
        StoreCommand::List(arguments) => list(context, arguments),
        StoreCommand::Verify(arguments) => verify(context, arguments),
    }
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event<'a> {
    Stored {
        kind: Kind,
        of: &'a str,
        name: &'a str,
        bytes: u64,
    },
    Unloaded {
        of: &'a str,
        name: &'a str,
    },
    Removed {
        of: &'a str,
        name: &'a str,
    },
    Failed {
        what: &'a str,
        error: &'a str,
    },
    Round {
        #[serde(flatten)]
        report: &'a MoveReport,
    },
}

fn move_all(context: &Context<'_>, arguments: &Move) -> Result<u8, CliError> {
    let config = MoverConfig::load(&arguments.configured.config)?;
    let store = Store::open(&config.store)?;
    let way = way(context)?;
    let stop = || context.interrupt.is_set();
    loop {
        let mut failed = None;
        let mut tell = |event: MoveEvent| {
            if let Err(error) = tell(context, &event) {
                failed.get_or_insert(error);
            }
        };
        let round = move_once(&config, &store, &way, &stop, &mut tell);
        if let Some(error) = failed {
            return Err(error);
        }
        match round {
            Ok(report) => {
                let text = round_text(&report);
                if arguments.once || report != MoveReport::default() {
                    let event = Event::Round { report: &report };
                    context.output.report(false, &event, &text)?;
                }
                if arguments.once {
                    return Ok(match report.failed {
                        0 => exit::DONE,
                        _ => exit::FAILED,
                    });
                }
            }
            Err(error) if may_pass(&error) && !arguments.once => {
                let error = chain(&error);
                let what = "round";
                let event = Event::Failed {
                    what,
                    error: &error,
                };
                context
                    .output
                    .report(false, &event, &format!("waiting: {error}"))?;
            }
            Err(error) => return Err(error.into()),
        }
        let until = Instant::now() + config.interval;
        while Instant::now() < until {
            context.interrupt.check()?;
            std::thread::sleep(TICK);
        }
    }
}

fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { .. })
}

fn round_text(report: &MoveReport) -> String {
    format!(
        "{} stored ({}), {} unloaded, {} removed, {} failed",
        report.stored,
        bytes_text(report.bytes),
        report.unloaded,
        report.removed,
        report.failed
    )
}

fn tell(context: &Context<'_>, event: &MoveEvent) -> Result<(), CliError> {
    let (event, text) = match event {
        MoveEvent::Stored(kind, of, name, bytes) => (
            Event::Stored {
                kind: *kind,
                of,
                name,
                bytes: *bytes,
            },
            format!("{of}: {name} stored, {bytes} bytes"),
        ),
        MoveEvent::Unloaded(of, name) => (
            Event::Unloaded { of, name },
            format!("{of}: {name} verified in the storage, units need not hold it any more"),
        ),
        MoveEvent::Removed(of, name) => (
            Event::Removed { of, name },
            format!("{of}: {name} removed from the storage"),
        ),
        MoveEvent::Failed(what, error) => (
            Event::Failed { what, error },
            format!("{what}: failed: {error}"),
        ),
    };
    context.output.report(false, &event, &text)
}

#[derive(Serialize)]
struct Listed<'a> {
    kind: Kind,
    of: &'a str,
    name: &'a str,
    bytes: u64,
    hash: String,
    stored_ns: u64,
    parts: usize,
}

impl<'a> Listed<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        Self {
            kind: manifest.kind,
            of: &manifest.space,
            name: &manifest.name,
            bytes: manifest.bytes,
            hash: manifest.hash.to_string(),
            stored_ns: manifest.stored_ns,
            parts: manifest.parts.len(),
        }
    }
}

#[derive(Serialize)]
struct ListOutput<'a> {
    store: &'a str,
    objects: Vec<Listed<'a>>,
    damaged: Vec<String>,
}

/// All objects, and what is wrong with those that are none.
fn objects(store: &Store) -> Result<(Vec<Object>, Vec<String>), CliError> {
    let (mut objects, mut damaged) = (Vec::new(), Vec::new());
    for kind in [Kind::Segment, Kind::Set] {
        for found in store.list(kind, None)? {
            match found {
                Ok(object) => objects.push(object),
                Err(error @ StoreError::Damaged { .. }) => damaged.push(error.to_string()),
                // Removed since it was listed.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok((objects, damaged))
}

fn list(context: &Context<'_>, arguments: &Configured) -> Result<u8, CliError> {
    let config = MoverConfig::load(&arguments.config)?;
    let store = Store::open(&config.store)?;
    let (objects, damaged) = objects(&store)?;
    let mut grid = Grid::new(&["KIND", "OF", "NAME", "SIZE", "STORED", "CONTENTS"]);
    for Object { manifest, .. } in &objects {
        let kind = match manifest.kind {
            Kind::Segment => "segment",
            Kind::Set => "set",
        };
        grid.row(&[
            kind.to_owned(),
            manifest.space.clone(),
            manifest.name.clone(),
            bytes_text(manifest.bytes),
            time_text(manifest.stored_ns),
            manifest.hash.short(),
        ]);
    }
    let mut text = match objects.is_empty() {
        true => format!("{}: nothing", store.url()),
        false => grid.text(),
    };
    for what in &damaged {
        text.push_str(&format!("\nfound: {what}"));
    }
    let listed = objects.iter().map(|object| Listed::of(&object.manifest));
    let is_damaged = !damaged.is_empty();
    let output = ListOutput {
        store: store.url(),
        objects: listed.collect(),
        damaged,
    };
    context.output.report(false, &output, &text)?;
    Ok(code(is_damaged))
}

const fn code(is_damaged: bool) -> u8 {
    if is_damaged {
        exit::DAMAGED
    } else {
        exit::DONE
    }
}

#[derive(Serialize)]
struct VerifyOutput<'a> {
    store: &'a str,
    objects: usize,
    bytes: u64,
    damaged: Vec<String>,
}

fn verify(context: &Context<'_>, arguments: &Configured) -> Result<u8, CliError> {
    let config = MoverConfig::load(&arguments.config)?;
    let store = Store::open(&config.store)?;
    let (objects, mut damaged) = objects(&store)?;
    let total = objects.iter().map(|object| object.manifest.bytes).sum();
    let bar = context.output.progress(Some(total));
    for object in &objects {
        let read = store.read(object, &mut |part| {
            bar.inc(part.len() as u64);
            context.interrupt.check()
        });
        match read {
            Ok(()) => {}
            Err(CliError::Store(error @ StoreError::Damaged { .. })) => {
                damaged.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    bar.finish_and_clear();
    let mut text = format!("{} objects, {} read", objects.len(), bytes_text(total));
    for what in &damaged {
        text.push_str(&format!("\nfound: {what}"));
    }
    let is_damaged = !damaged.is_empty();
    let output = VerifyOutput {
        store: store.url(),
        objects: objects.len(),
        bytes: total,
        damaged,
    };
    context.output.report(false, &output, &text)?;
    Ok(code(is_damaged))
}

#[derive(Serialize)]
struct GetOutput<'a> {
    region: &'a str,
    #[serde(flatten)]
    set: &'a crate::store::SetFacts,
    bytes: u64,
    store: &'a str,
    units_said: &'a str,
    seconds: f64,
}

/// Whether `get` goes on to the global storage: no unit has the set.
pub(super) const fn may_have(error: &CliError) -> bool {
    let CliError::Client(error) = error else {
        return false;
    };
    error.is_unreachable()
        || error.is_damage()
        || matches!(
            error,
            ClientError::NoSuchSet { .. }
                | ClientError::NoSuchRegion { .. }
                | ClientError::TimedOut { .. }
        )
}

/// Fetches a set from the global storage, after the units have said why they don't have it.
pub(super) fn get(
    context: &Context<'_>,
    store: &Store,
    arguments: &Get,
    said: &CliError,
) -> Result<u8, CliError> {
    let begun = Instant::now();
    let region = arguments.region.as_str();
    let object = match arguments.set {
        Some(number) => {
            let name = crate::store::set_name(number.get());
            store.find(&Kind::Set, region, &name)?
        }
        None => newest(store, region)?,
    };
    let Some(set) = &object.manifest.set else {
        return Err(CliError::Usage(format!(
            "{} is no set",
            object.manifest.name
        )));
    };
    let mut target = Target::open(&arguments.output)?;
    let bytes = object.manifest.bytes;
    let bar = context.output.progress(Some(bytes));
    let mut writer = target.writer();
    store.read(&object, &mut |part| {
        context.interrupt.check()?;
        bar.inc(part.len() as u64);
        writer.write_all(part).map_err(CliError::output)
    })?;
    writer.flush().map_err(CliError::output)?;
    drop(writer);
    bar.finish_and_clear();
    let beside_payload = target.is_standard();
    target.complete(Some(bytes))?;
    let said = chain(said);
    let text = format!(
        "{region}: set {}, {bytes} bytes, epoch {}, {}, from {} in {}\nnot from the units: {said}",
        set.number,
        set.epoch,
        time_text(set.committed_ns),
        store.url(),
        duration_text(begun.elapsed()),
    );
    let output = GetOutput {
        region,
        set,
        bytes,
        store: store.url(),
        units_said: &said,
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.output.report(beside_payload, &output, &text)?;
    Ok(exit::DONE)
}

/// The newest set of a region that the storage has.
fn newest(store: &Store, region: &str) -> Result<Object, CliError> {
    let mut newest: Option<Object> = None;
    let time = |object: &Object| object.manifest.set.as_ref().map(|set| set.committed_ns);
    for object in store.list(Kind::Set, Some(region))? {
        match object {
            Ok(object)
                if newest
                    .as_ref()
                    .is_none_or(|found| time(&object) > time(found)) =>
            {
                newest = Some(object);
            }
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    newest.ok_or_else(|| {
        CliError::Store(StoreError::NotFound {
            store: store.url().to_owned(),
            object: format!("set of region {region}"),
        })
    })
}
