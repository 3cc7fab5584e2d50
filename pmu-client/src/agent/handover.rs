//! What a program is handed that goes on with another's work: the newest set and the records behind it, as files.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pmu_format::LogPosition;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{ClientError, Result};
use crate::snapshot::{ArenaOptions, ArenaShape, Restoring, SnapshotResult};

/// The environment variables of a program that an agent runs.
pub mod names {
    /// Path of the agent's socket.
    pub const SOCKET: &str = "PMU_AGENT_SOCKET";
    /// How often to beat, in milliseconds.
    pub const BEAT_MS: &str = "PMU_AGENT_BEAT_MS";
    /// What the regions were recovered behind: `REGION@UNIT=EPOCH` for each region, and each unit that was fenced, apart by spaces. Opening as
    /// primary is refused as fenced where the unit has another epoch. See [`crate::agent`].
    pub const EPOCHS: &str = "PMU_AGENT_EPOCHS";
    /// When the fence stood behind which all of it was recovered, in nanoseconds of the machine's monotonic clock.
    pub const FENCED_NS: &str = "PMU_AGENT_FENCED_NS";
    /// The file that the library holds as long as the program lives ([`pmu_notice`]).
    pub const NOTICE: &str = "PMU_AGENT_NOTICE";
    /// `primary`, or `rehearsal`: then nothing that is written counts, and the regions are not to be opened.
    pub const ROLE: &str = "PMU_AGENT_ROLE";
    /// The file with the newest set's payload; not set where there is no set.
    pub const STATE: &str = "PMU_AGENT_STATE";
    /// That set's number.
    pub const STATE_SET: &str = "PMU_AGENT_STATE_SET";
    /// That set's label.
    pub const STATE_LABEL: &str = "PMU_AGENT_STATE_LABEL";
    /// Where the arena lay whose image the state is: address and length in bytes, and `heap` or `plain`, apart by spaces. Not set where the
    /// state is a set as the program committed it.
    pub const STATE_ARENA: &str = "PMU_AGENT_STATE_ARENA";
    /// The file with the log's records that were not cleared; not set where there is no log.
    pub const TAIL: &str = "PMU_AGENT_TAIL";
}

/// When the fence stood behind which what was handed over was recovered, in nanoseconds of this machine's monotonic clock. None without an agent.
#[must_use]
pub fn fenced_ns() -> Option<u64> {
    std::env::var(names::FENCED_NS).ok()?.parse().ok()
}

/// The longest record that is read from a tail file.
const RECORD_BYTES_MAX: u64 = u32::MAX as u64;

/// What the agent hands to a program that it starts.
///
/// The records begin where the log was cleared: a program passes over those that its set holds already. It then opens its regions as
/// primary, as ever: what it was handed counts once it has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handover {
    /// The newest set's payload; of a program that stores snapshots of an arena the arena itself, put together from all its sets.
    pub state: Option<PathBuf>,
    /// Where that arena lay; none where the state is a payload.
    pub arena: Option<ArenaShape>,
    /// That set's number, 0 for none.
    pub set: u64,
    /// That set's label, empty for none.
    pub label: String,
    /// The records.
    pub tail: Option<PathBuf>,
    /// The program runs from a copy, beside a live primary: it must not open the regions for writing.
    pub is_rehearsal: bool,
}

impl Handover {
    /// What the environment says; none where nothing is handed over: the program begins as ever.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a number that is none.
    pub fn from_environment() -> Result<Option<Self>> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (state, tail) = (path(names::STATE), path(names::TAIL));
        if state.is_none() && tail.is_none() {
            return Ok(None);
        }
        let set = match std::env::var(names::STATE_SET) {
            Ok(text) => text
                .parse()
                .map_err(|_| ClientError::Invalid(format!("{}: {text}", names::STATE_SET)))?,
            Err(_) => 0,
        };
        let arena = std::env::var(names::STATE_ARENA).ok();
        let arena = arena.map(|text| {
            let invalid = || ClientError::Invalid(format!("{}: {text}", names::STATE_ARENA));
            decode_arena(&text).ok_or_else(invalid)
        });
        Ok(Some(Self {
            state,
            arena: arena.transpose()?,
            set,
            label: std::env::var(names::STATE_LABEL).unwrap_or_default(),
            tail,
            is_rehearsal: std::env::var(names::ROLE).is_ok_and(|role| role == "rehearsal"),
        }))
    }

    /// Gives the files back: they lie in memory, and take up room there as long as this process has them open. For a program that has read
    /// them and runs on; their paths open nothing afterwards. Files that a person has put in their places stay as they are.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn release(self) -> Result<()> {
        for path in [self.state, self.tail].into_iter().flatten() {
            release(&path).map_err(|source| io("give a file back", source))?;
        }
        Ok(())
    }

    /// Reads the whole set into memory; none where there is no set. Blocks for a copy in memory.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn read_state(&self) -> Result<Option<Vec<u8>>> {
        let Some(path) = &self.state else {
            return Ok(None);
        };
        let bytes = std::fs::read(path).map_err(|source| io("read the set handed over", source))?;
        Ok(Some(bytes))
    }

    /// Puts the arena handed over back into memory; none where there is no set. Blocks for a copy in memory. [`Restoring::seal_plain`] or
    /// [`Restoring::seal`] makes an arena of it.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] where the newest set is no snapshot of an arena; others as [`ArenaShape::restore`].
    pub fn restore_arena(&self, options: &ArenaOptions) -> SnapshotResult<Option<Restoring>> {
        let Some(path) = &self.state else {
            return Ok(None);
        };
        let Some(arena) = &self.arena else {
            let what = format!("set {} is no snapshot of an arena", self.set);
            return Err(ClientError::Invalid(what).into());
        };
        let file = File::open(path).map_err(|source| io("read the set handed over", source))?;
        arena.restore(&file, options).map(Some)
    }

    /// Hands each record, with its position, to a visitor, in the order of the log; says how many there were.
    ///
    /// # Errors
    /// [`ClientError::Io`]; [`ClientError::Invalid`] for a file that is cut short; what the visitor returns.
    pub fn visit_records(
        &self,
        visit: impl FnMut(LogPosition, &[u8]) -> Result<()>,
    ) -> Result<u64> {
        match &self.tail {
            Some(path) => visit_file(path, visit),
            None => Ok(0),
        }
    }
}

/// A file in memory that ends with its last descriptor. Its name shows in `/proc`, with `pmu-` before it.
///
/// # Errors
/// [`ClientError::Io`]: no memory, or no descriptors.
pub fn memory_file(name: &str) -> Result<File> {
    let file = memfd_create(format!("pmu-{name}"), MemfdFlags::CLOEXEC);
    let file = file.map_err(|error| io("make a file in memory", error.into()))?;
    Ok(File::from(file))
}

/// Closes an inherited file in memory of the agent's. One that was closed already, or whose number is another file's by now, is left alone.
fn release(path: &Path) -> std::io::Result<()> {
    let number = path.strip_prefix("/proc/self/fd").ok();
    let number = number.and_then(|number| number.to_str()?.parse::<i32>().ok());
    let target = std::fs::read_link(path).unwrap_or_default();
    match number {
        Some(number) if target.as_os_str().as_bytes().starts_with(b"/memfd:pmu-") => {
            nix::unistd::close(number).map_err(Into::into)
        }
        _ => Ok(()),
    }
}

/// What [`names::STATE_ARENA`] is set to.
#[must_use]
pub fn encode_arena(arena: &ArenaShape) -> String {
    let kind = if arena.has_heap { "heap" } else { "plain" };
    format!("{} {} {kind}", arena.address, arena.bytes)
}

fn decode_arena(text: &str) -> Option<ArenaShape> {
    let mut words = text.split(' ');
    let (address, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let has_heap = match words.next()? {
        "heap" => true,
        "plain" => false,
        _ => return None,
    };
    words.next().is_none().then_some(ArenaShape {
        address,
        bytes,
        has_heap,
    })
}

fn visit_file(path: &Path, mut visit: impl FnMut(LogPosition, &[u8]) -> Result<()>) -> Result<u64> {
    const ACTION: &str = "read the records handed over";
    let file = File::open(path).map_err(|source| io(ACTION, source))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut record = Vec::new();
    let mut count = 0;
    loop {
        let mut head = [0; HEAD_BYTES];
        let got = file
            .by_ref()
            .take(HEAD_BYTES as u64)
            .read(&mut head[..])
            .map_err(|source| io(ACTION, source))?;
        if got == 0 {
            return Ok(count);
        }
        file.read_exact(&mut head[got..])
            .map_err(|source| io(ACTION, source))?;
        let (position, length) = decode_head(head);
        if length > RECORD_BYTES_MAX {
            let path = path.display();
            return Err(ClientError::Invalid(format!(
                "{path}: a record of {length} bytes"
            )));
        }
        record.clear();
        let read = file.by_ref().take(length).read_to_end(&mut record);
        if read.map_err(|source| io(ACTION, source))? as u64 != length {
            let path = path.display();
            return Err(ClientError::Invalid(format!(
                "{path} ends in the middle of a record"
            )));
        }
        visit(LogPosition(position), &record)?;
        count += 1;
    }
}

/// Before each record: its position and its length, both as u64, little-endian.
const HEAD_BYTES: usize = 16;

fn decode_head(head: [u8; HEAD_BYTES]) -> (u64, u64) {
    let (mut position, mut length) = ([0; 8], [0; 8]);
    position.copy_from_slice(&head[..8]);
    length.copy_from_slice(&head[8..]);
    (u64::from_le_bytes(position), u64::from_le_bytes(length))
}

fn io(action: &'static str, source: std::io::Error) -> ClientError {
    ClientError::Io { action, source }
}

/// Writes records as [`Handover::visit_records`] reads them.
#[derive(Debug)]
pub struct TailWriter<W> {
    file: W,
    bytes: u64,
}

impl<W: Write> TailWriter<W> {
    /// Into a file.
    pub const fn new(file: W) -> Self {
        Self { file, bytes: 0 }
    }

    /// Goes on with a file that has so many bytes, and stands at its end.
    pub const fn resume(file: W, bytes: u64) -> Self {
        Self { file, bytes }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn add(&mut self, position: LogPosition, record: &[u8]) -> Result<()> {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&position.get().to_le_bytes());
        head[8..].copy_from_slice(&(record.len() as u64).to_le_bytes());
        self.file
            .write_all(&head)
            .and_then(|()| self.file.write_all(record))
            .map_err(|source| io("write a record to hand over", source))?;
        self.bytes += (HEAD_BYTES + record.len()) as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file.
    pub const fn file_mut(&mut self) -> &mut W {
        &mut self.file
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn s10_where_an_arena_lay_is_said_and_understood() {
        for (has_heap, text) in [
            (true, "140000000000000 8192 heap"),
            (false, "140000000000000 8192 plain"),
        ] {
            let arena = ArenaShape {
                address: 140_000_000_000_000,
                bytes: 8192,
                has_heap,
            };
            assert_eq!(encode_arena(&arena), text);
            assert_eq!(decode_arena(text), Some(arena));
        }
        for text in [
            "",
            "1",
            "1 2",
            "1 2 3",
            "1 2 heap ",
            "-1 2 heap",
            "1 2 heap x",
        ] {
            assert_eq!(decode_arena(text), None, "{text:?}");
        }
    }

    fn handed(state: PathBuf) -> Handover {
        Handover {
            state: Some(state),
            arena: None,
            set: 1,
            label: String::new(),
            tail: None,
            is_rehearsal: false,
        }
    }

    #[test]
    fn s10_a_file_that_is_given_back_is_closed_and_no_other_one() {
        let number = memory_file("test").unwrap().into_raw_fd();
        let path = PathBuf::from(format!("/proc/self/fd/{number}"));
        let handover = handed(path.clone());
        handover.clone().release().unwrap();
        let found = std::fs::read_link(&path).unwrap_or_default();
        assert!(!found.starts_with("/memfd:pmu-test"), "{found:?}");
        // Whatever has the number by now stays.
        let mut file = tempfile::tempfile().unwrap();
        let theirs = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        handed(theirs).release().unwrap();
        handover.release().unwrap();
        file.write_all(b"still open").unwrap();
        // Nor is a file of a person's closed or removed.
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("state");
        std::fs::write(&kept, b"state").unwrap();
        handed(kept.clone()).release().unwrap();
        assert!(kept.exists());
    }

    #[test]
    fn p14_records_are_read_as_they_were_written_and_a_cut_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tail");
        let mut writer = TailWriter::new(Vec::new());
        let records: [(u64, &[u8]); 3] = [(8, b"one"), (64, &[7; 300_000]), (400_000, b"3")];
        for (position, record) in records {
            writer.add(LogPosition(position), record).unwrap();
        }
        let bytes = writer.file_mut().clone();
        assert_eq!(bytes.len() as u64, writer.bytes());
        std::fs::write(&path, &bytes).unwrap();
        let handover = Handover {
            state: None,
            arena: None,
            set: 0,
            label: String::new(),
            tail: Some(path.clone()),
            is_rehearsal: false,
        };
        let mut seen = Vec::new();
        let visit = |position: LogPosition, record: &[u8]| {
            seen.push((position.get(), record.to_vec()));
            Ok(())
        };
        assert_eq!(handover.visit_records(visit).unwrap(), 3);
        let expected: Vec<_> = records.iter().map(|(at, r)| (*at, r.to_vec())).collect();
        assert_eq!(seen, expected);
        for length in [1, 15, 17, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(handover.visit_records(|_, _| Ok(())).is_err(), "{length}");
        }
    }
}
