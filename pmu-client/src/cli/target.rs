//! Where payload goes: standard output, or a file that appears under its name when it is complete.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use crate::cli::CliError;
use crate::cli::source::{Interrupt, refuse_closed};
use crate::sets::{SetInfo, SetSink};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 << 10;

/// See the module.
pub(super) enum Target {
    Standard,
    /// A pipe or a device: written to as it is.
    Special {
        file: File,
    },
    File {
        partial: Partial,
        file: File,
    },
}

impl Target {
    /// `-` is standard output.
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        if path == Path::new("-") {
            refuse_closed(1, "standard output")?;
            return Ok(Self::Standard);
        }
        let failed = |source| CliError::file("write", path, source);
        let found = std::fs::metadata(path).ok();
        if found
            .as_ref()
            .is_some_and(|found| !found.is_file() && !found.is_dir())
        {
            let file = File::options().write(true).open(path).map_err(failed)?;
            return Ok(Self::Special { file });
        }
        // Of a link the file that it names, there or not.
        let target = match std::fs::read_link(path) {
            Ok(link) => match &found {
                Some(_) => std::fs::canonicalize(path).map_err(failed)?,
                None => path.with_file_name("").join(link),
            },
            Err(_) => path.to_owned(),
        };
        let partial = Partial::beside(&target);
        let mut options = File::options();
        options.write(true).create_new(true);
        let file = options.open(&partial.path).map_err(failed)?;
        if let Some(found) = found.filter(std::fs::Metadata::is_file) {
            // Before there is a byte in it.
            file.set_permissions(found.permissions()).map_err(failed)?;
        }
        Ok(Self::File {
            partial: partial.made(),
            file,
        })
    }

    pub(super) const fn is_standard(&self) -> bool {
        matches!(self, Self::Standard)
    }

    /// Makes the file durable and gives it its name.
    pub(super) fn complete(self, length: Option<u64>) -> Result<(), CliError> {
        let (partial, file) = match self {
            Self::File { partial, file } => (partial, file),
            Self::Standard | Self::Special { .. } => return Ok(()),
        };
        let target = partial.target.clone();
        let failed = |source| CliError::file("write", &target, source);
        if let Some(length) = length {
            // A damaged set that was given up may have been longer.
            file.set_len(length).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        partial.rename().map_err(failed)
    }

    /// A writer for small pieces. Flush it.
    pub(super) fn writer(&mut self) -> BufWriter<Box<dyn Write + '_>> {
        let inner: Box<dyn Write + '_> = match self {
            Self::Standard => Box::new(io::stdout().lock()),
            Self::File { file, .. } | Self::Special { file } => Box::new(file),
        };
        BufWriter::with_capacity(BUFFER_BYTES, inner)
    }
}

/// A file that is not complete yet: removed when dropped, unless it was renamed.
pub(super) struct Partial {
    path: PathBuf,
    target: PathBuf,
    remove: bool,
}

impl Partial {
    fn beside(target: &Path) -> Self {
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.partial", std::process::id()));
        Self {
            path: target.with_file_name(name),
            target: target.to_owned(),
            remove: false,
        }
    }

    fn made(mut self) -> Self {
        self.remove = true;
        self
    }

    fn rename(mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.target)?;
        self.remove = false;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "an incomplete file stays");
        }
    }
}

/// A set on its way to a target, with progress and an ear for Ctrl-C.
pub(super) struct TargetSink<'a> {
    pub(super) target: &'a mut Target,
    pub(super) bar: &'a ProgressBar,
    pub(super) interrupt: &'a Interrupt,
    pub(super) written: u64,
}

impl SetSink for TargetSink<'_> {
    fn begin(&mut self, set: &SetInfo) -> io::Result<()> {
        self.bar.set_length(set.bytes);
        self.bar.set_position(0);
        match self.target {
            Target::File { file, .. } => file.seek(SeekFrom::Start(0)).map(drop),
            Target::Standard | Target::Special { .. } if self.written == 0 => Ok(()),
            Target::Standard | Target::Special { .. } => Err(io::Error::other(format!(
                "a part of a set that is damaged, or was overtaken by newer ones, was written already; set {} is good: fetch it with --set, or newest to a file",
                set.number
            ))),
        }
    }

    fn chunk(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        if self.interrupt.is_set() {
            return Err(io::Error::other("interrupted"));
        }
        match self.target {
            Target::File { file, .. } | Target::Special { file } => file.write_all(bytes)?,
            Target::Standard => io::stdout().lock().write_all(bytes)?,
        }
        self.written += bytes.len() as u64;
        self.bar.inc(bytes.len() as u64);
        Ok(())
    }
}
