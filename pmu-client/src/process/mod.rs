//! Unmodified programs: checkpointed into a region by CRIU, and restarted from it.
//!
//! CRIU does what only it can do: it stops a process tree, takes its memory, registers, descriptors and the rest, and makes a process of
//! them again. This module moves CRIU's images into a set while they are made, and out of it again, with no copy on a disk.
//!
//! [`checkpoint`] and [`restart`] block until they are done. CRIU needs root, or the capability `CAP_CHECKPOINT_RESTORE` and more; what it
//! refuses, it says itself ([`ProcessError::Refused`]).

mod capture;
mod chain;
mod container;
mod criu;
mod pagemap;
mod series;
mod serve;
mod streamer;
mod track;
mod tracked;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use capture::Dumped;
pub use chain::SavedProcess;
use container::Writer;
pub use container::{About, ImageError, ImageSink, Parent};
pub use criu::{CRIU_VARIABLE, Criu};
use pmu_format::Label;
pub use series::{ImageSet, Series};
use track::{Tracked, may_build};
use tracked::{Before, Rounds};

use crate::error::ClientError;
use crate::receipt::Receipt;

/// What can go wrong with a process. The sets that were committed before are untouched in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// CRIU can't be started.
    #[error("CRIU can't be started as {}", program.display())]
    CriuMissing {
        /// The program that was tried.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This version doesn't stream images.
    #[error("CRIU {version} is too old: 3.15 or newer is needed")]
    CriuTooOld {
        /// The version that was found.
        version: String,
    },
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoProcess {
        /// The number.
        pid: u32,
    },
    /// CRIU refused. A program that was to be checkpointed goes on, and nothing was stored.
    #[error("CRIU could not {action} ({status}). It says: {words}")]
    Refused {
        /// What it was to do.
        action: &'static str,
        /// How it ended.
        status: String,
        /// The last errors of its log.
        words: String,
    },
    /// The set is stored, and then CRIU could not end the program: it may be there still.
    #[error("the set is stored, but the program may still run: CRIU could not end it: {words}")]
    Stored {
        /// The proof for the set.
        receipt: Box<Receipt>,
        /// The last errors of CRIU's log.
        words: String,
    },
    /// CRIU doesn't end though nobody takes its images any more.
    #[error("CRIU, process {pid}, doesn't end: the program may be stopped until it does")]
    Stuck {
        /// CRIU's process.
        pid: u32,
    },
    /// CRIU said what it never says.
    #[error("CRIU said what can't be understood: {0}")]
    Protocol(String),
    /// What was read is no process, or damaged.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// A set builds on another, and that is gone or damaged: older sets may be whole.
    #[error("it builds on set {parent}, and that can't be had: {why}")]
    BrokenChain {
        /// The set that is missing.
        parent: u64,
        /// Why.
        why: String,
    },
    /// The region.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// This machine.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The caller wanted no more. A program that was to be checkpointed goes on.
    #[error("interrupted")]
    Interrupted,
}

impl ProcessError {
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// What to do about it, in a sentence.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::CriuMissing { .. } | Self::CriuTooOld { .. } => {
                "install CRIU 4.1 (package criu of Debian 13), or name it with --criu or PMU_CRIU"
            }
            Self::Refused { words, .. } if words.contains("Can't fork for") => {
                "its process number is in use: end that process, or restart it on another machine"
            }
            Self::Refused { words, .. } if words.contains("--shell-job") => {
                "it belongs to a terminal's session: checkpoint it with --shell-job"
            }
            Self::Refused { words, .. } if words.contains("outside of its pid namespace") => {
                "its session began outside of this container: start it in one of its own (setsid)"
            }
            Self::Refused { words, .. } if words.contains("tcp-established") => {
                "it has connections: checkpoint it with --tcp-established"
            }
            Self::Refused { words, .. } if words.contains("file-locks") => {
                "it holds locks of files: checkpoint it with --file-locks"
            }
            Self::Refused { words, .. } if words.contains("--track-mem") => {
                "this kernel can't track what is written: checkpoint it without --track-mem and --pre-dump"
            }
            Self::BrokenChain { .. } => {
                "an older set may be whole: list them with sets, and restart one with --set"
            }
            Self::Client(error) => error.advice(),
            _ => return None,
        })
    }
}

/// Most rounds of memory before a checkpoint.
pub const PRE_DUMPS_MAX: u32 = 16;

/// How a process is to be checkpointed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CheckpointOptions {
    /// Let the kernel track what it writes, so that the next checkpoint takes only that: with this set, an incremental one where the last
    /// set of the region is of this process and was tracked, else a whole one.
    pub track_mem: bool,
    /// Rounds in which the memory is taken while it runs on, so that it is stopped for what changed since the last one. At most
    /// [`PRE_DUMPS_MAX`]. Needs tracking too.
    pub pre_dumps: u32,
    /// Let it go on. Otherwise it ends, but only once its set is durable.
    pub leave_running: bool,
    /// It belongs to a terminal's session, and will be restarted in another.
    pub shell_job: bool,
    /// Take its TCP connections along; they come back only with the same addresses.
    pub tcp_established: bool,
    /// Take its locks of files along.
    pub file_locks: bool,
    /// Take Unix sockets along whose other end is outside.
    pub external_unix: bool,
    /// More options for CRIU, for the dump and for the restore.
    pub criu_options: Vec<String>,
}

impl CheckpointOptions {
    /// What CRIU needs to know for the dump and for the restore.
    fn both(&self) -> Vec<String> {
        let flags = [
            (self.shell_job, "--shell-job"),
            (self.tcp_established, "--tcp-established"),
            (self.file_locks, "--file-locks"),
            (self.external_unix, "--ext-unix-sk"),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set);
        let flags = flags.map(|(_, flag)| (*flag).to_owned());
        flags.chain(self.criu_options.iter().cloned()).collect()
    }
}

/// A checkpoint that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpointed {
    /// The proof.
    pub receipt: Receipt,
    /// What was taken.
    pub about: About,
    /// CRIU's files.
    pub files: u32,
    /// Bytes of all of them.
    pub bytes: u64,
    /// How long the program was stopped, by CRIU's clock. None where it doesn't say, or the program has ended.
    pub stopped: Option<Duration>,
    /// Pages of memory in the set.
    pub pages_written: u64,
    /// Pages that had not changed, and lie in an earlier set.
    pub pages_unchanged: u64,
    /// From beginning to end.
    pub took: Duration,
}

/// A process before it is checkpointed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pid: u32,
    command: String,
}

impl Subject {
    /// Looks at a process.
    ///
    /// # Errors
    /// [`ProcessError::NoProcess`].
    pub fn find(pid: u32) -> Result<Self, ProcessError> {
        let command = fs::read_to_string(format!("/proc/{pid}/comm"));
        let command = command.map_err(|_| ProcessError::NoProcess { pid })?;
        let command = command.trim_end().to_owned();
        Ok(Self { pid, command })
    }

    /// What to find its sets by: its name.
    #[must_use]
    pub fn label(&self) -> Label {
        let plain = |c: char| c.is_ascii_graphic().then_some(c);
        let name: String = self.command.chars().filter_map(plain).take(23).collect();
        Label::new(&format!("process:{name}")).unwrap_or_default()
    }
}

/// Checkpoints a process, with its children, into a set of a region.
///
/// The program is stopped meanwhile. It is ended only when its set is durable; whatever fails before, also this process by SIGKILL, it goes
/// on as it was. With [`CheckpointOptions::leave_running`] it goes on as soon as its images are read. Blocks; `interrupted` is asked every
/// 50 ms or more often.
///
/// # Errors
/// [`ProcessError::Refused`] with CRIU's words; [`ProcessError::Client`] for the region; [`ProcessError::Interrupted`].
/// [`ProcessError::Stored`] alone says that the set is stored.
pub fn checkpoint<S: Series>(
    criu: &Criu,
    subject: &Subject,
    options: &CheckpointOptions,
    series: &mut S,
    label: Label,
    interrupted: &dyn Fn() -> bool,
) -> Result<Checkpointed, ProcessError> {
    let begun = Instant::now();
    let plan = Plan::make(criu, subject, options, series)?;
    let mut set = series.begin(label)?;
    let mut writer = Writer::begin(&mut set, &plan.about)?;
    let (dumped, before) = plan.take(criu, options, &mut writer, interrupted)?;
    let (files, bytes) = writer.done()?;
    let (receipt, stats) = if options.leave_running {
        let stats = dumped.release()?;
        (set.finish()?, stats)
    } else {
        let receipt = set.finish()?;
        let stats = dumped.release().map_err(|error| ProcessError::Stored {
            receipt: Box::new(receipt.clone()),
            words: error.to_string(),
        })?;
        (receipt, stats)
    };
    plan.remember(&receipt, before, options.leave_running);
    let stopped = stats.filter(|_| options.leave_running);
    let stats = stats.unwrap_or_default();
    Ok(Checkpointed {
        receipt,
        about: plan.about,
        files,
        bytes,
        stopped: stopped.map(|stats| stats.frozen),
        pages_written: stats.pages_written,
        pages_unchanged: stats.pages_skipped,
        took: begun.elapsed(),
    })
}

/// What a checkpoint is to be, and on what it builds.
struct Plan {
    about: About,
    tracked: Option<Tracked>,
    series: String,
    /// Where the chain begins, if it isn't this set.
    root: Option<u64>,
    before: Option<Before>,
}

impl Plan {
    fn make(
        criu: &Criu,
        subject: &Subject,
        options: &CheckpointOptions,
        series: &impl Series,
    ) -> Result<Self, ProcessError> {
        if options.pre_dumps > PRE_DUMPS_MAX {
            let what = format!("at most {PRE_DUMPS_MAX} rounds of memory");
            return Err(ClientError::Invalid(what).into());
        }
        let mut plan = Self {
            about: about(criu, subject, options)?,
            tracked: None,
            series: series.key(),
            root: None,
            before: None,
        };
        if options.track_mem {
            plan.tracked = Some(Tracked::find(subject.pid)?);
        }
        // Any dump that tracks, and any that doesn't, may begin the tracking anew: nothing that is remembered holds after this.
        let last = Tracked::find(subject.pid)?.take()?;
        let last = last.filter(|last| {
            options.track_mem
                && last.series == plan.series
                && last.parent.set == series.newest()
                && may_build(last.root, series.newest(), series.sets_kept())
        });
        if let Some(last) = last {
            plan.about.parent = Some(last.parent);
            plan.root = Some(last.root);
            plan.before = Some(last.before);
        }
        Ok(plan)
    }

    /// Has CRIU take everything, up to the point where the program is stopped and its images are in the writer.
    fn take(
        &self,
        criu: &Criu,
        options: &CheckpointOptions,
        writer: &mut Writer<'_>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(Dumped, Option<Before>), ProcessError> {
        let pid = self.about.pid;
        let mut flags: Vec<OsString> = self.about.options.iter().map(OsString::from).collect();
        if options.leave_running {
            flags.push("--leave-running".into());
        }
        if self.tracked.is_none() && options.pre_dumps == 0 {
            let dumped = capture::stream(criu, pid, &flags, writer, interrupted)?;
            return Ok((dumped, None));
        }
        let rounds = Rounds {
            criu,
            pid,
            options: &flags,
            interrupted,
        };
        let mut before = self.before.clone();
        for round in 0..options.pre_dumps {
            let prefix = round_prefix(round, options.pre_dumps);
            before = Some(rounds.pre_dump(&prefix, before.as_ref(), writer)?);
        }
        let (dumped, now) = rounds.dump(before.as_ref(), writer)?;
        Ok((dumped, Some(now)))
    }

    /// The next checkpoint may build on this one. Where it can't be remembered, the next one is a whole one.
    fn remember(&self, receipt: &Receipt, before: Option<Before>, left_running: bool) {
        let (Some(tracked), Some(before), Some(set)) = (&self.tracked, before, receipt.set())
        else {
            return;
        };
        if !left_running {
            return;
        }
        let parent = Parent {
            set: set.get(),
            id: self.about.id.clone(),
        };
        let root = self.root.unwrap_or(set.get());
        if let Err(error) = tracked.remember(self.series.clone(), parent, root, before) {
            tracing::warn!(%error, "the next checkpoint will be a whole one");
        }
    }
}

/// Where the files of a round of memory are. The last round is the dump itself.
fn round_prefix(round: u32, pre_dumps: u32) -> String {
    if round == pre_dumps {
        return String::new();
    }
    format!("pre-{}/", round + 1)
}

fn about(
    criu: &Criu,
    subject: &Subject,
    options: &CheckpointOptions,
) -> Result<About, ProcessError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| ProcessError::io("draw a number")(io::Error::other(error)))?;
    Ok(About {
        id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
        criu: criu.version().to_owned(),
        pid: subject.pid,
        command: subject.command.clone(),
        options: options.both(),
        pre_dumps: options.pre_dumps,
        parent: None,
    })
}

/// Restarts a process where its checkpoint was taken, with the numbers of processes that it had. Returns its number when it runs. It goes on
/// when this process ends.
///
/// Files that it had open must be there as they were; CRIU checks that. Blocks; `interrupted` is asked every 50 ms or more often.
///
/// # Errors
/// [`ProcessError::Refused`] with CRIU's words: then nothing of it runs. [`ProcessError::Images`]; [`ProcessError::Interrupted`].
pub fn restart(
    criu: &Criu,
    saved: &SavedProcess,
    interrupted: &dyn Fn() -> bool,
) -> Result<u32, ProcessError> {
    let options: Vec<OsString> = saved.about().options.iter().map(OsString::from).collect();
    serve::restore(criu, &saved.served()?, &options, interrupted)
}
