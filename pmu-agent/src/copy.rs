//! What a standby holds: the newest set and the records behind it, in memory files that a program can be handed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use pmu_client::agent::{TailWriter, UnitEpoch, memory_file};
use pmu_client::snapshot::{ArenaShape, SnapshotImage};
use pmu_client::{FileSink, LogPosition, LogRecord, RecordMark};

use crate::error::{AgentError, Result};
use crate::place::{Found, Sets};

/// The journal is written anew when so much of it is superfluous, and more than is not.
const REWRITE_BYTES_MIN: u64 = 1 << 20;

fn file_for(name: &str) -> Result<File> {
    memory_file(name).map_err(AgentError::client("make a file in memory"))
}

/// A set that was read.
#[derive(Debug, Clone)]
pub struct HeldSet {
    /// Which one.
    pub set: Found,
    /// Its payload; of snapshots of an arena the arena.
    pub file: Arc<File>,
    /// Where that arena lay; none where the file is a payload.
    pub arena: Option<ArenaShape>,
}

impl HeldSet {
    /// Reads the newest set; none where there is none.
    ///
    /// # Errors
    /// As [`Sets::read`].
    pub fn read(sets: &mut Sets<'_>, recovering: bool) -> Result<Option<Self>> {
        let mut sink = FileSink::new(file_for("agent-state")?);
        let read = sets.read(recovering, &mut sink);
        let found = read.map_err(AgentError::client("read the newest set"))?;
        let file = sink.into_inner();
        let Some(set) = found else {
            return Ok(None);
        };
        // A damaged newer one may have been longer.
        file.set_len(set.bytes)
            .map_err(AgentError::system("cut a file in memory to length"))?;
        let file = Arc::new(file);
        Ok(Some(Self {
            set,
            file,
            arena: None,
        }))
    }

    /// What an image holds; none where it is empty.
    #[must_use]
    pub fn of_image(image: &SnapshotImage) -> Option<Self> {
        let (file, arena) = image.file()?;
        let info = image.info()?;
        let label = info.kind.label(info.covered);
        let label = label.map(|label| label.to_string());
        Some(Self {
            set: Found {
                number: info.set.get(),
                bytes: arena.bytes,
                label: label.unwrap_or_default(),
            },
            file,
            arena: Some(arena),
        })
    }

    /// Records before this are in the set, if its label says so: `@POSITION` at its end.
    #[must_use]
    pub fn covers(&self) -> Option<LogPosition> {
        covered(&self.set.label)
    }
}

/// What a label says of the log: `@POSITION` at its end.
#[must_use]
pub fn covered(label: &str) -> Option<LogPosition> {
    let (_, position) = label.rsplit_once('@')?;
    position.parse().ok().map(LogPosition)
}

/// Where a record lies in the journal, and how to clear it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    position: LogPosition,
    offset: u64,
    mark: RecordMark,
}

/// Records that were read and not yet covered by a set.
#[derive(Debug)]
pub struct Journal {
    writer: TailWriter<File>,
    entries: VecDeque<Entry>,
    /// Keeps payloads. Else only where records end, to clear them.
    keeps: bool,
}

impl Journal {
    /// An empty one. With `keeps` it keeps payloads.
    ///
    /// # Errors
    /// No memory.
    pub fn new(keeps: bool) -> Result<Self> {
        Ok(Self {
            writer: TailWriter::new(file_for("agent-tail")?),
            entries: VecDeque::new(),
            keeps,
        })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// No memory.
    pub fn add(&mut self, found: &LogRecord<'_>) -> pmu_client::Result<()> {
        let offset = self.writer.bytes();
        let position = found.record.position;
        if self.keeps {
            self.writer.add(position, found.payload)?;
        }
        let mark = found.record.mark;
        self.entries.push_back(Entry {
            position,
            offset,
            mark,
        });
        Ok(())
    }

    /// How many records it holds.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Its bytes, those not yet given back included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.writer.bytes()
    }

    /// Forgets the records before a position; the mark by which to clear them, if there are any.
    ///
    /// # Errors
    /// No memory.
    pub fn forget_before(&mut self, position: LogPosition) -> Result<Option<RecordMark>> {
        let mut last = None;
        while let Some(entry) = self.entries.front()
            && entry.position < position
        {
            last = Some(entry.mark);
            self.entries.pop_front();
        }
        let begin = self.begin();
        let kept = self.writer.bytes() - begin;
        if self.keeps && begin > REWRITE_BYTES_MIN.max(kept) {
            self.rewrite()?;
        }
        Ok(last)
    }

    fn begin(&self) -> u64 {
        let first = self.entries.front();
        first.map_or(self.writer.bytes(), |entry| entry.offset)
    }

    fn rewrite(&mut self) -> Result<()> {
        let action = || AgentError::system::<std::io::Error>("write the journal anew");
        let begin = self.begin();
        let mut old = self.writer.file_mut().try_clone().map_err(action())?;
        old.seek(SeekFrom::Start(begin)).map_err(action())?;
        let mut file = file_for("agent-tail")?;
        let copied = std::io::copy(&mut old, &mut file).map_err(action())?;
        self.writer = TailWriter::resume(file, copied);
        for entry in &mut self.entries {
            entry.offset -= begin;
        }
        Ok(())
    }

    /// The records as a file to hand over.
    ///
    /// # Errors
    /// No memory.
    pub fn file(&mut self) -> Result<File> {
        if self.begin() > 0 {
            self.rewrite()?;
        }
        let file = self.writer.file_mut().try_clone();
        file.map_err(AgentError::system("hand the journal over"))
    }
}

/// What a program is started with. Kept until another takes its place.
#[derive(Debug, Clone, Default)]
pub struct Handed {
    /// The newest set.
    pub state: Option<HeldSet>,
    /// The records that were not cleared, and how many.
    pub tail: Option<(Arc<File>, u64)>,
    /// Of all regions and units, behind the fence: what the program is to go on from. None for a copy.
    pub epochs: Vec<UnitEpoch>,
    /// When that stood, on the machine's monotonic clock.
    pub fenced_ns: Option<u64>,
}

impl Handed {
    /// Nothing was ever stored: the program begins as ever.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.is_none() && self.tail.as_ref().is_none_or(|(_, records)| *records == 0)
    }
}

/// The path by which a child that inherits the descriptor opens the file.
#[must_use]
pub fn path_for_child(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p14_labels_say_what_they_cover() {
        assert_eq!(covered("120 @4096"), Some(LogPosition(4096)));
        for label in ["", "120", "@", "a@b", "@1 "] {
            assert_eq!(covered(label), None, "{label}");
        }
    }
}
