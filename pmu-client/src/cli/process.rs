//! `checkpoint` and `restart`: unmodified programs.

use std::time::Instant;

use pmu_format::SetNumber;
use serde::Serialize;

use crate::cli::arguments::{Checkpoint, Restart};
use crate::cli::values::{bytes_text, duration_text};
use crate::cli::{CliError, Context, Way, exit};
use crate::process::{
    CheckpointOptions, Checkpointed, Criu, ProcessError, SavedProcess, Subject, checkpoint,
};
use crate::receipt::Receipt;
use crate::sets::{SetChoice, SetInfo};

#[derive(Serialize)]
struct CheckpointOutput<'a> {
    #[serde(flatten)]
    receipt: &'a Receipt,
    id: &'a str,
    /// The set that it builds on.
    parent: Option<u64>,
    pre_dumps: u32,
    pid: u32,
    command: &'a str,
    left_running: bool,
    criu: &'a str,
    files: u32,
    image_bytes: u64,
    pages_written: u64,
    pages_unchanged: u64,
    stopped_us: Option<u128>,
    seconds: f64,
}

pub(super) fn checkpoint_command(
    context: &Context<'_>,
    arguments: &Checkpoint,
) -> Result<u8, CliError> {
    // The program isn't touched before all else is there.
    let criu = Criu::find(arguments.criu.as_deref())?;
    let subject = Subject::find(arguments.pid)?;
    let label = arguments.label.unwrap_or_else(|| subject.label());
    let options = CheckpointOptions {
        track_mem: arguments.track_mem,
        pre_dumps: arguments.pre_dump,
        leave_running: arguments.leave_running,
        shell_job: arguments.shell_job,
        tcp_established: arguments.tcp_established,
        file_locks: arguments.file_locks,
        external_unix: arguments.ext_unix_sk,
        criu_options: arguments.criu_option.clone(),
    };
    let interrupted = || context.interrupt.is_set();
    let done = match context.find(&arguments.region)? {
        Way::One(unit) => {
            let mut primary = unit.open_sets_primary(&arguments.region, &context.options())?;
            checkpoint(&criu, &subject, &options, &mut primary, label, &interrupted)?
        }
        Way::Spread(spread) => {
            let mut primary = spread.open_primary(&context.options())?;
            checkpoint(&criu, &subject, &options, &mut primary, label, &interrupted)?
        }
    };
    say(context, &done, arguments.leave_running)
}

fn say(context: &Context<'_>, done: &Checkpointed, left_running: bool) -> Result<u8, CliError> {
    let about = &done.about;
    let end = match done.stopped {
        Some(stopped) => format!("runs on, after {} stopped", duration_text(stopped)),
        None if left_running => "runs on".to_owned(),
        None => "has ended".to_owned(),
    };
    let builds = match &about.parent {
        Some(parent) => format!(", builds on set {}", parent.set),
        None => String::new(),
    };
    let text = format!(
        "{}{builds}\nprocess {} ({}): {} pages, {} files, {} in {}; it {end}",
        done.receipt,
        about.pid,
        about.command,
        done.pages_written,
        done.files,
        bytes_text(done.bytes),
        duration_text(done.took),
    );
    let out = CheckpointOutput {
        receipt: &done.receipt,
        id: &about.id,
        parent: about.parent.as_ref().map(|parent| parent.set),
        pre_dumps: about.pre_dumps,
        pid: about.pid,
        command: &about.command,
        left_running,
        criu: &about.criu,
        files: done.files,
        image_bytes: done.bytes,
        pages_written: done.pages_written,
        pages_unchanged: done.pages_unchanged,
        stopped_us: done.stopped.map(|stopped| stopped.as_micros()),
        seconds: done.took.as_secs_f64(),
    };
    context.output.report(false, &out, &text)?;
    Ok(exit::DONE)
}

#[derive(Serialize)]
struct RestartOutput<'a> {
    region: &'a str,
    set: u64,
    pid: u32,
    command: &'a str,
    sets_read: usize,
    read_seconds: f64,
    seconds: f64,
}

pub(super) fn restart_command(context: &Context<'_>, arguments: &Restart) -> Result<u8, CliError> {
    let begun = Instant::now();
    let criu = Criu::find(arguments.criu.as_deref())?;
    let choice = arguments.set.map_or(SetChoice::Newest, SetChoice::Number);
    let (set, fell_back, saved) = match context.find(&arguments.region)? {
        Way::One(unit) => {
            let mut reader = unit.open_sets_reader(&arguments.region, &context.options())?;
            load(context, choice, |choice, payload| {
                let read = reader.read(choice, payload)?;
                let fell_back = read.fell_back();
                Ok((read.set, fell_back))
            })?
        }
        Way::Spread(spread) => {
            let mut reader = spread.open_reader(&context.options())?;
            load(context, choice, |choice, payload| {
                Ok((reader.read(choice, payload)?.set, false))
            })?
        }
    };
    let read_seconds = begun.elapsed().as_secs_f64();
    let interrupted = || context.interrupt.is_set();
    let pid = crate::process::restart(&criu, &saved, &interrupted)?;
    let mut text = format!(
        "{}: set {}: process {pid} ({}) goes on, after {}",
        arguments.region,
        set.number,
        saved.about().command,
        duration_text(begun.elapsed()),
    );
    if fell_back {
        text.push_str("\nfound: a newer set is damaged");
    }
    let out = RestartOutput {
        region: &arguments.region,
        set: set.number.get(),
        pid,
        command: &saved.about().command,
        sets_read: saved.sets(),
        read_seconds,
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.output.report(false, &out, &text)?;
    Ok(if fell_back { exit::DAMAGED } else { exit::DONE })
}

/// Reads a set, and those that it builds on.
fn load(
    context: &Context<'_>,
    choice: SetChoice,
    mut read: impl FnMut(SetChoice, &mut Vec<u8>) -> crate::Result<(SetInfo, bool)>,
) -> Result<(SetInfo, bool, SavedProcess), CliError> {
    let mut payload = Vec::new();
    let (set, fell_back) = read(choice, &mut payload)?;
    let saved = SavedProcess::load(payload, |number| {
        if context.interrupt.is_set() {
            return Err(ProcessError::Interrupted);
        }
        let mut payload = Vec::new();
        let number = SetNumber(number);
        read(SetChoice::Number(number), &mut payload)?;
        Ok(payload)
    })?;
    Ok((set, fell_back, saved))
}

/// The exit code for what can go wrong with a process.
pub(super) fn exit_code(error: &ProcessError) -> u8 {
    match error {
        ProcessError::Client(error) => super::client_exit_code(error),
        ProcessError::CriuMissing { .. }
        | ProcessError::CriuTooOld { .. }
        | ProcessError::Refused { .. } => exit::REFUSED,
        ProcessError::NoProcess { .. } => exit::NOT_FOUND,
        ProcessError::Images(_) | ProcessError::BrokenChain { .. } => exit::DAMAGED,
        ProcessError::Interrupted => exit::INTERRUPTED,
        _ => exit::FAILED,
    }
}
