//! The program CRIU: where it is, which version, what it says.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::ProcessError;

/// Names CRIU's program where it is not `criu` in `PATH`.
pub const CRIU_VARIABLE: &str = "PMU_CRIU";
/// The first version that streams images.
const OLDEST: (u32, u32) = (3, 15);
/// Lines of CRIU's log that are shown.
const WORDS_MAX: usize = 6;
/// How much of a log is looked at, from its end.
const LOG_BYTES_MAX: usize = 64 << 10;
/// How long CRIU has to let a process go on once nobody takes its images any more.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// CRIU, found and asked for its version.
#[derive(Debug, Clone)]
pub struct Criu {
    program: PathBuf,
    version: String,
}

impl Criu {
    /// Looks for CRIU: the program named, else that of the variable `PMU_CRIU`, else `criu` in `PATH`. Runs it once.
    ///
    /// # Errors
    /// [`ProcessError::CriuMissing`], [`ProcessError::CriuTooOld`].
    pub fn find(program: Option<&Path>) -> Result<Self, ProcessError> {
        let named = program.map(Path::to_owned);
        let variable = || std::env::var_os(CRIU_VARIABLE).filter(|value| !value.is_empty());
        let program = named
            .or_else(|| variable().map(PathBuf::from))
            .unwrap_or_else(|| "criu".into());
        let missing = |source| ProcessError::CriuMissing {
            program: program.clone(),
            source,
        };
        let output = Command::new(&program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(missing)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = text.lines().find_map(|line| line.strip_prefix("Version: ")) else {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = format!("it doesn't say its version: {}", said.trim());
            return Err(missing(io::Error::other(said)));
        };
        let version = version.trim().to_owned();
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
        let found = (numbers.next().flatten(), numbers.next().flatten());
        match found {
            (Some(major), Some(minor)) if (major, minor) >= OLDEST => {}
            _ => return Err(ProcessError::CriuTooOld { version }),
        }
        Ok(Self { program, version })
    }

    /// Its version, as in `4.1.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A command whose process no Ctrl-C of the terminal reaches: ended in the middle, it could leave a program stopped.
    pub(super) fn command(&self, arguments: &[OsString]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).process_group(0);
        command
    }

    pub(super) fn missing(&self, source: io::Error) -> ProcessError {
        ProcessError::CriuMissing {
            program: self.program.clone(),
            source,
        }
    }
}

/// A private folder for CRIU's socket, log and hook, gone with this value. Images don't come here, but for what a tracked checkpoint
/// says beside memory.
#[derive(Debug)]
pub(super) struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    /// In `base`, else where temporary files go.
    pub(super) fn create(base: Option<&Path>) -> Result<Self, ProcessError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("pmu-criu-");
        let folder = match base {
            Some(base) => builder.tempdir_in(base),
            None => builder.tempdir(),
        };
        let folder = folder.map_err(ProcessError::io("make a folder for CRIU"))?;
        Ok(Self { folder })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The hook that CRIU runs when the images are complete, with the program still stopped: it says the word on CRIU's standard error, and
    /// lets CRIU end the program only if `stored` comes on its standard input. When this process has gone there is an end of file instead.
    pub(super) fn hook(&self, word: &str) -> Result<PathBuf, ProcessError> {
        let path = self.join("hook");
        let text = format!(
            "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] || exit 0\n\
             echo {word} >\"/proc/$PPID/fd/2\" || exit 1\n\
             read -r verdict <\"/proc/$PPID/fd/0\" && [ \"$verdict\" = stored ]\n"
        );
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(ProcessError::io("write CRIU's hook"))?;
        Ok(path)
    }

    /// CRIU's own words about a failure: the last errors of its log, else the last lines, else what came on standard error.
    pub(super) fn words(&self, log: &str, said: &str) -> String {
        let text = fs::read(self.join(log)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_BYTES_MAX)..]);
        for lines in [&*text, said] {
            let errors: Vec<_> = lines
                .lines()
                .filter(|line| line.contains("Error"))
                .collect();
            let all: Vec<_> = lines.lines().filter(|line| !line.is_empty()).collect();
            let chosen = if errors.is_empty() { all } else { errors };
            if !chosen.is_empty() {
                return chosen[chosen.len().saturating_sub(WORDS_MAX)..].join("; ");
            }
        }
        "it says nothing".into()
    }
}

/// A CRIU that runs. Its end is waited for also when this is dropped: a program that it holds must go on.
pub(super) struct Running {
    child: std::process::Child,
    action: &'static str,
}

impl Running {
    pub(super) const fn new(child: std::process::Child, action: &'static str) -> Self {
        Self { child, action }
    }

    /// Its exit status if it has ended.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child
            .try_wait()
            .map_err(ProcessError::io("wait for CRIU"))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ProcessError::Stuck`] after 30 s.
    pub(super) fn wait(&mut self) -> Result<ExitStatus, ProcessError> {
        let begun = Instant::now();
        let mut pause = Duration::from_micros(100);
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if begun.elapsed() > END_PATIENCE {
                return Err(ProcessError::Stuck {
                    pid: self.child.id(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    pub(super) fn refused(&self, status: ExitStatus, words: String) -> ProcessError {
        ProcessError::Refused {
            action: self.action,
            status: status.to_string(),
            words,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            tracing::warn!(%error, "CRIU is left behind");
        }
    }
}

/// How long a dump kept the program stopped, by CRIU's own clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DumpStats {
    pub(super) frozen: Duration,
    pub(super) pages_written: u64,
    pub(super) pages_skipped: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatsEntry {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpEntry>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DumpEntry {
    #[prost(uint32, tag = "2")]
    frozen_time: u32,
    #[prost(uint64, tag = "6")]
    pages_skipped_parent: u64,
    #[prost(uint64, tag = "7")]
    pages_written: u64,
    #[prost(uint64, optional, tag = "13")]
    shpages_skipped_parent: Option<u64>,
    #[prost(uint64, optional, tag = "14")]
    shpages_written: Option<u64>,
}

impl DumpStats {
    /// Reads CRIU's `stats-dump`: two magic numbers, a length, and the message. None where there is none.
    pub(super) fn read(folder: &Folder) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = fs::File::open(folder.join("stats-dump")).ok()?;
        file.take(4096).read_to_end(&mut bytes).ok()?;
        let length = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?) as usize;
        let message = bytes.get(12..)?.get(..length)?;
        let dump = <StatsEntry as prost::Message>::decode(message).ok()?.dump?;
        Some(Self {
            frozen: Duration::from_micros(dump.frozen_time.into()),
            pages_written: dump.pages_written + dump.shpages_written.unwrap_or(0),
            pages_skipped: dump.pages_skipped_parent + dump.shpages_skipped_parent.unwrap_or(0),
        })
    }
}
