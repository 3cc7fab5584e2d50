//! `pmu-demo run`: everything that a person would have to do, in order, and what came of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use pmu_client::snapshot::capacity_bytes_for;

use crate::arena;
use crate::child::{self, Output};
use crate::cli::{BackupMode, PoolChoice, RunArguments, Transport};
use crate::corpus::Corpus;
use crate::error::{DemoError, Result};
use crate::event::{Event, Totals};
use crate::failover;
use crate::failure::Failure;
use crate::report::{Backup, RunReport, leaders, pauses, table, takeovers};
use crate::run::{Choice, Plan, carry_out};
use crate::seed::{Random, random_u64};
use crate::site::{FULL_EVERY, Setup, Site, Sizes};
use crate::tools::{Tools, arguments};

/// So that a run takes a few seconds.
const DOCUMENTS_DEFAULT: u32 = 6_000;
/// The lab emulates its processor.
const DOCUMENTS_DEFAULT_LAB: u32 = 150;
/// A run has about as many sets.
const SETS: u64 = 10;
/// How often a run may be tried whose primary was done too early.
const TRIES: u32 = 5;
/// What a record takes in the log beside its payload, at most.
const RECORD_OVERHEAD_BYTES: u64 = 56;

/// Runs the demonstration.
///
/// # Errors
/// [`DemoError`]; failed runs are an exit status instead.
pub fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let folder = Folder::make(arguments)?;
    let result = run_in(arguments, &folder);
    while child::all_are_killed() {
        // A signal ends us, from another thread: what failed because of it is no news.
        std::thread::park();
    }
    result
}

fn run_in(arguments: &RunArguments, folder: &Folder) -> Result<ExitCode> {
    end_with_signals(folder.path.clone(), folder.temporary)?;
    let timeout = Duration::from_secs(arguments.timeout.into());
    let logs = folder.path.join("logs");
    let tools = Tools::find(logs, timeout, arguments.verbose)?;
    arguments.units_to_kill().map_err(DemoError::Unusable)?;
    let pools = pools(arguments, &folder.path)?;
    let (plan, sizes) = prepare(arguments, tools, &folder.path)?;
    let setup = Setup {
        layout: arguments.layout,
        transport: plan.transport,
        pools,
        sizes,
    };
    let mut site = Site::set_up(&plan.tools, &folder.path, &setup)?;
    eprintln!("{}", told(&setup));
    let reports = all_runs(arguments, &plan, &mut site);
    let reports = reports.inspect_err(|_| folder.keep())?;
    site.stop()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", summary(&plan, &reports)).map_err(DemoError::system("print the table"))?;
    let good = reports.iter().all(RunReport::is_good);
    if !good || arguments.keep || !folder.temporary {
        folder.keep();
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What was set up, in one line.
fn told(setup: &Setup) -> String {
    let transport = setup.transport.name();
    let Some(pool) = setup.pools.first() else {
        return String::new();
    };
    let path = pool.path.as_deref().unwrap_or(Path::new("anonymous"));
    let place = format!("pool {} on {}", path.display(), pool.medium);
    match setup.pools.len() {
        1 => format!("unit: certificates made, {place}, unlocked; data goes over {transport}"),
        units => format!(
            "{units} units ({}): certificates made, first {place}, unlocked; data goes over {transport}",
            setup.layout
        ),
    }
}

/// Lists the documents, and makes the answer without any unit.
fn prepare(arguments: &RunArguments, tools: Tools, folder: &Path) -> Result<(Plan, Sizes)> {
    let sources = sources(arguments)?;
    let documents = arguments.documents.unwrap_or(if in_lab() {
        DOCUMENTS_DEFAULT_LAB
    } else {
        DOCUMENTS_DEFAULT
    });
    let corpus = Corpus::scan(&sources, documents as usize)?;
    if corpus.len() < 2 {
        return Err(DemoError::Unusable(
            "one document is too few: name another folder of sources with --sources".into(),
        ));
    }
    let list = folder.join("documents.json");
    corpus.save(&list)?;
    let mib = corpus.bytes() as f64 / f64::from(1 << 20);
    eprintln!(
        "documents: {} files, {mib:.1} MiB, below {}",
        corpus.len(),
        sources.display()
    );
    let answer = folder.join("reference.index");
    let (totals, state_bytes, words) = reference(&tools, &list, &answer)?;
    let seconds = totals.run_ns as f64 / 1e9;
    eprintln!(
        "uninterrupted run: {words} words, an index of {state_bytes} bytes, in {seconds:.1} s"
    );
    let log_bytes = totals.record_bytes + RECORD_OVERHEAD_BYTES * totals.records;
    let set_every_bytes = log_bytes / SETS + 1;
    // A new set when three quarters are taken at the latest, and room for the longest record.
    let log_region_bytes = 4 * set_every_bytes + (2 << 20);
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => random_u64()?,
    };
    eprintln!("seed: {seed}");
    let (layout, transport) = (arguments.layout, arguments.transport);
    let (zombie, failover) = (arguments.zombie, arguments.failover);
    if failover {
        tools.need("pmu-agent")?;
    }
    let folder = folder.to_owned();
    // Under the agents the state is an arena.
    let arena_bytes = arena::bytes_for(words, state_bytes);
    let (state_bytes, sets_kept) = match failover {
        true => (capacity_bytes_for(arena_bytes), FULL_EVERY.get()),
        false => (state_bytes + 4096, 2),
    };
    let plan = Plan {
        tools,
        corpus,
        list,
        answer,
        folder,
        set_every_bytes,
        arena_bytes,
        layout,
        transport,
        zombie,
        failover,
        seed,
    };
    Ok((
        plan,
        Sizes {
            log_bytes: log_region_bytes,
            state_bytes,
            sets_kept,
        },
    ))
}

fn reference(tools: &Tools, list: &Path, result: &Path) -> Result<(Totals, u64, u64)> {
    let arguments = arguments!["reference", "--list", list, "--result", result];
    let mut child = tools.start("pmu-demo", &arguments, "reference", Output::Piped, &[])?;
    let mut finished = None;
    if let Some(mut output) = child.output() {
        while let Some(event) = Event::receive(&mut output)? {
            if let Event::Finished {
                totals,
                state_bytes,
                words,
            } = event
            {
                finished = Some((totals, state_bytes, words));
            }
        }
    }
    child.wait_for_success(tools.timeout())?;
    finished.ok_or_else(|| child.failed("reported nothing"))
}

fn all_runs(arguments: &RunArguments, plan: &Plan, site: &mut Site) -> Result<Vec<RunReport>> {
    let mut json = match &arguments.json {
        Some(path) => Some(File::create(path).map_err(DemoError::file("create", path))?),
        None => None,
    };
    let mut random = Random::new(plan.seed);
    let mut reports = Vec::new();
    for run in 1..=arguments.runs {
        let backup = match arguments.backup {
            BackupMode::Warm => Backup::Warm,
            BackupMode::Cold => Backup::Cold,
            BackupMode::Alternate if run % 2 == 1 => Backup::Warm,
            BackupMode::Alternate => Backup::Cold,
        };
        let kill = arguments.units_to_kill().map_err(DemoError::Unusable)?;
        let backup = if arguments.failover {
            Backup::Warm
        } else {
            backup
        };
        let report = one_run(plan, site, (run, backup, kill), &mut random)?;
        eprintln!("{}", report.line());
        if let (Some(file), Some(path)) = (&mut json, &arguments.json) {
            let mut line = serde_json::to_vec(&report)
                .map_err(|e| DemoError::file("write", path)(e.into()))?;
            line.push(b'\n');
            file.write_all(&line)
                .map_err(DemoError::file("write", path))?;
        }
        reports.push(report);
    }
    Ok(reports)
}

fn one_run(
    plan: &Plan,
    site: &mut Site,
    (run, backup, kill): (u32, Backup, usize),
    random: &mut Random,
) -> Result<RunReport> {
    let (earliest, latest) = Failure::bounds();
    for _ in 0..TRIES {
        let choice = Choice {
            run,
            backup,
            share: random.between(earliest, latest),
            units: random.some_of(plan.layout.units(), kill),
        };
        let report = match plan.failover {
            true => failover::carry_out(plan, site, &choice)?,
            false => Some(carry_out(plan, site, choice)?),
        };
        if let Some(report) = report {
            return Ok(report);
        }
        eprintln!("run {run}: the program was taken for a hung one before it failed; once more");
    }
    Err(DemoError::Unusable(format!(
        "the program was taken for a hung one before it failed, {TRIES} times: this machine has too much else to do"
    )))
}

fn summary(plan: &Plan, reports: &[RunReport]) -> String {
    let mut text = table(reports);
    for line in [Backup::Warm, Backup::Cold]
        .into_iter()
        .filter_map(|kind| takeovers(reports, kind))
    {
        text.push('\n');
        text.push_str(&line);
    }
    if let Some(line) = pauses(reports) {
        text.push('\n');
        text.push_str(&line);
    }
    if let Some(report) = reports.first() {
        let durable = if report.durable {
            "durable"
        } else {
            "NOT durable"
        };
        text.push_str(&format!(
            "\nReceipts: {durable} by {} over {}. Seed {}.",
            report.persistence, report.transport, plan.seed
        ));
    }
    let stopped: Vec<_> = reports
        .iter()
        .filter_map(|report| report.zombie_stopped_by.as_deref())
        .collect();
    if let Some(first) = stopped.first() {
        text.push_str(&format!(
            "\nThe old primary went on {} times and was stopped each time: {first}",
            stopped.len()
        ));
    }
    let zombies_missed = reports
        .iter()
        .filter(|report| report.zombie && report.zombie_stopped_by.is_none())
        .count();
    if zombies_missed > 0 {
        text.push_str(&format!(
            "\nFAILED: the old primary was not stopped in {zombies_missed} runs."
        ));
    }
    text.push('\n');
    text.push_str(&leaders(reports));
    let lost: u64 = reports.iter().map(|report| report.lost_acknowledged).sum();
    let different = reports.iter().filter(|report| !report.identical).count();
    text.push_str(&format!(
        "\n{} runs, {lost} acknowledged records lost, {different} answers differ from the uninterrupted run.",
        reports.len()
    ));
    text
}

fn in_lab() -> bool {
    std::env::var_os("PMU_LAB").is_some_and(|value| value == "1")
}

fn sources(arguments: &RunArguments) -> Result<PathBuf> {
    if let Some(sources) = &arguments.sources {
        return Ok(sources.clone());
    }
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    home.map(|home| home.join("registry/src")).ok_or_else(|| {
        DemoError::Unusable("there is no home directory: name a folder with --sources".into())
    })
}

/// One pool for each unit.
fn pools(arguments: &RunArguments, folder: &Path) -> Result<Vec<PoolChoice>> {
    let units = arguments.layout.units();
    (1..=units)
        .map(|number| match &arguments.pool {
            Some(pool) => Ok(numbered(pool, number, units)),
            None => default_pool(arguments.transport, folder, number),
        })
        .collect()
}

/// Of several units each has a file of its own: the number is appended. A device's path must say where the number goes, as `%`.
fn numbered(pool: &PoolChoice, number: usize, units: usize) -> PoolChoice {
    let path = pool.path.as_ref().map(|path| {
        let text = path.to_string_lossy();
        match (units, text.contains('%')) {
            (1, _) => path.clone(),
            (_, true) => text.replace('%', &(number - 1).to_string()).into(),
            (_, false) => format!("{text}.{number}").into(),
        }
    });
    PoolChoice {
        medium: pool.medium.clone(),
        path,
    }
}

fn default_pool(transport: Transport, folder: &Path, number: usize) -> Result<PoolChoice> {
    if transport != Transport::Verbs {
        return Ok(PoolChoice {
            medium: "file".into(),
            path: Some(folder.join(format!("pool-{number}"))),
        });
    }
    let variable = format!("PMU_LAB_DAX{}", number - 1);
    let device = std::env::var_os(&variable).ok_or_else(|| {
        DemoError::Unusable(format!(
            "--transport verbs: name the units' memory, as in --pool devdax:/dev/dax%.0 ({variable} is not set)"
        ))
    })?;
    Ok(PoolChoice {
        medium: "devdax".into(),
        path: Some(device.into()),
    })
}

/// Where everything is kept while the demonstration runs.
struct Folder {
    path: PathBuf,
    temporary: bool,
    kept: std::cell::Cell<bool>,
}

impl Folder {
    fn make(arguments: &RunArguments) -> Result<Self> {
        let (path, temporary) = match &arguments.dir {
            Some(path) => {
                fs::create_dir_all(path).map_err(DemoError::file("create", path))?;
                (
                    fs::canonicalize(path).map_err(DemoError::file("find", path))?,
                    false,
                )
            }
            None => {
                let folder = tempfile::Builder::new().prefix("pmu-demo.").tempdir();
                (
                    folder
                        .map_err(DemoError::system("create a temporary folder"))?
                        .keep(),
                    true,
                )
            }
        };
        let folder = Self {
            path,
            temporary,
            kept: std::cell::Cell::new(false),
        };
        let logs = folder.path.join("logs");
        if folder.path.join("manager").exists() {
            let path = folder.path.display();
            return Err(DemoError::Unusable(format!(
                "{path} holds an earlier demonstration: name another --dir"
            )));
        }
        fs::create_dir_all(&logs).map_err(DemoError::file("create", &logs))?;
        Ok(folder)
    }

    fn keep(&self) {
        if !child::all_are_killed() && !self.kept.replace(true) {
            eprintln!("files are kept in {}", self.path.display());
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary && !self.kept.get() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Ctrl-C and its like: kills all children, removes the temporary folder, and ends.
fn end_with_signals(folder: PathBuf, temporary: bool) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(DemoError::system("prepare for signals"))?;
    let streams = {
        let _inside = runtime.enter();
        [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ]
        .map(signal)
    };
    let [interrupt, terminate, hang_up] = streams;
    let failed = DemoError::system;
    let mut interrupt = interrupt.map_err(failed("prepare for signals"))?;
    let mut terminate = terminate.map_err(failed("prepare for signals"))?;
    let mut hang_up = hang_up.map_err(failed("prepare for signals"))?;
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
                _ = hang_up.recv() => 1,
            }
        });
        child::kill_all();
        if temporary {
            let _ = fs::remove_dir_all(&folder);
        }
        std::process::exit(128 + number);
    });
    Ok(())
}
