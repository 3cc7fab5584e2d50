//! Child processes that never outlive us: each is killed when its handle is dropped, by the kernel when we die, and all of them at
//! once by [`kill_all`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::error::{DemoError, Result};

/// How much of a log is shown when a process failed.
const SHOWN_LINES: usize = 12;
/// How often a process is looked at that ought to end.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Those that run now. Locked while one is reaped, so that no id in it ever belongs to a stranger.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Set before all are killed.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether [`kill_all`] was called: then children end, and nothing is wrong with them.
#[must_use]
pub fn all_are_killed() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Kills all children. For a process that is about to end itself.
pub fn kill_all() {
    ENDING.store(true, Ordering::SeqCst);
    for pid in RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        let _ = kill_process(*pid, Signal::KILL);
    }
}

/// The first arguments of every child: it ties itself to us, then becomes the command (see [`tie_and_become`]).
pub const TIED: &str = "tied";

/// Ties this process's life to that of its parent, and becomes another program. Returns only on failure.
pub fn tie_and_become(parent: u32, command: &[OsString]) -> DemoError {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return DemoError::system("ask for a signal at the parent's death")(error);
    }
    // It may have died before we asked.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != i32::try_from(parent).ok() {
        return DemoError::Unusable("the parent is gone".into());
    }
    let Some((program, arguments)) = command.split_first() else {
        return DemoError::Unusable("no command".into());
    };
    DemoError::system("start a program")(Command::new(program).args(arguments).exec())
}

/// Where a child's standard output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// To us: see [`Child::output`].
    Piped,
    /// Into its log.
    Logged,
}

/// A running child process.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: Process,
    pid: Pid,
    log: PathBuf,
    /// Not known to have ended.
    running: bool,
}

impl Child {
    /// Starts `program` in a process group of its own, with a pipe to it and its standard error in `log`.
    ///
    /// # Errors
    /// [`DemoError::File`], [`DemoError::System`].
    pub fn start(
        name: &str,
        program: &Path,
        arguments: &[OsString],
        log: &Path,
        output: Output,
        environment: &[(&str, &OsStr)],
    ) -> Result<Self> {
        let errors = File::create(log).map_err(DemoError::file("create", log))?;
        let output = match output {
            Output::Piped => Stdio::piped(),
            Output::Logged => errors
                .try_clone()
                .map_err(DemoError::file("open", log))?
                .into(),
        };
        let itself = std::env::current_exe().map_err(DemoError::system("find the own program"))?;
        let process = Command::new(itself)
            .args([TIED, &std::process::id().to_string(), "--"])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(DemoError::file("start", program))?;
        let pid = Pid::from_child(&process);
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(pid);
        Ok(Self {
            name: name.to_owned(),
            process,
            pid,
            log: log.to_owned(),
            running: true,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Takes the reading end of its standard output; once.
    pub fn output(&mut self) -> Option<BufReader<ChildStdout>> {
        self.process.stdout.take().map(BufReader::new)
    }

    /// Takes the writing end of its standard input; once. Dropping it closes it.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.process.stdin.take()
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// [`DemoError::System`].
    pub fn tell(&mut self, line: &str) -> Result<()> {
        match self.process.stdin.as_mut() {
            Some(input) => writeln!(input, "{line}").map_err(DemoError::system("tell a process")),
            None => Ok(()),
        }
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.running {
            // It can't be another process: it has not been waited for.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Whether it has ended, without waiting.
    ///
    /// # Errors
    /// [`DemoError::System`].
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        // Under the lock, so that kill_all never meets an id that is free for others already.
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self
            .process
            .try_wait()
            .map_err(DemoError::system("look at a process"))?;
        if status.is_some() {
            self.running = false;
            running.retain(|pid| *pid != self.pid);
        }
        Ok(status)
    }

    /// Waits until it has ended; an error after `timeout`.
    ///
    /// # Errors
    /// [`DemoError::Process`] with the end of its log.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(self.failed(&format!("still runs after {} s", timeout.as_secs())));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until it has ended well; anything else is an error.
    ///
    /// # Errors
    /// [`DemoError::Process`] with the end of its log.
    pub fn wait_for_success(&mut self, timeout: Duration) -> Result<()> {
        let status = self.wait(timeout)?;
        if status.success() {
            Ok(())
        } else {
            Err(self.failed(&status.to_string()))
        }
    }

    /// An error that says what became of this process, in its own last words.
    #[must_use]
    pub fn failed(&self, problem: &str) -> DemoError {
        let log = last_lines(&fs::read_to_string(&self.log).unwrap_or_default());
        DemoError::Process {
            name: self.name.clone(),
            problem: problem.to_owned(),
            log,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.running {
            self.signal(Signal::KILL);
            let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
            running.retain(|pid| *pid != self.pid);
            let _ = self.process.wait();
        }
    }
}

/// The end of a log, for people.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
