//! What the witness says while it writes: one JSON object on a line for each receipt, as soon as it has it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use pmu_client::{Receipt, Stored};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Line {
    /// A region was opened by a primary.
    Opened {
        /// Its name.
        region: String,
        /// The primary's epoch.
        epoch: u64,
        /// The method by which its connection makes bytes durable.
        method: String,
        /// Which way the bytes go.
        provider: String,
    },
    /// Receipt for records that lie between two positions.
    Log {
        /// Where the first begins.
        from: u64,
        /// Where the last ends.
        to: u64,
        /// Their writer's epoch.
        epoch: u64,
        /// The first one's number in its epoch.
        sequence: u64,
        /// How many.
        records: u64,
        /// Their payload bytes.
        bytes: u64,
        /// The sum of the CRC-64/NVME of each payload.
        crc: u64,
        /// The proof's method.
        method: String,
    },
    /// Receipt for a set.
    Set {
        /// Its number.
        number: u64,
        /// Its writer's epoch.
        epoch: u64,
        /// Its payload bytes.
        bytes: u64,
        /// CRC-64/NVME of its payload.
        crc: u64,
        /// The proof's method.
        method: String,
    },
    /// The backup is about to clear up to here: from now on that may be gone.
    Clearing {
        /// The position.
        to: u64,
    },
    /// It has cleared, durably.
    Cleared {
        /// The position.
        to: u64,
    },
    /// A backup took both regions over and is their primary now.
    TookOver {
        /// Its epoch of the log.
        epoch: u64,
        /// From the beginning of the fence until the log's unread records were there.
        unread_after_us: u64,
        /// From the beginning of the first fence until both regions could be written.
        took_us: u64,
        /// Records that it had read and cleared or kept while the primary lived.
        followed: usize,
        /// Records that it had not read when the primary failed.
        unread: usize,
        /// The newest set.
        newest_set: u64,
    },
    /// The writer ended.
    Ended {
        /// Of which region.
        region: String,
        /// Whether it was fenced.
        fenced: bool,
        /// What it was told.
        reason: String,
    },
}

/// Records of one receipt, as the one who wrote them knows them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Written {
    /// The first one's number.
    pub sequence: u64,
    /// How many.
    pub records: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Sum of the checksums.
    pub crc: u64,
}

impl Line {
    /// The line for a receipt of records.
    #[must_use]
    pub fn log(receipt: &Receipt, written: Written) -> Self {
        let (from, to) = match receipt.stored {
            Stored::Log { from, to } => (from.get(), to.get()),
            Stored::Set(_) => (0, 0),
        };
        Self::Log {
            from,
            to,
            epoch: receipt.epoch.get(),
            sequence: written.sequence,
            records: written.records,
            bytes: written.bytes,
            crc: written.crc,
            method: method_of(receipt),
        }
    }

    /// The line for a receipt of a set.
    #[must_use]
    pub fn set(receipt: &Receipt, crc: u64) -> Self {
        Self::Set {
            number: receipt.set().map_or(0, |number| number.get()),
            epoch: receipt.epoch.get(),
            bytes: receipt.bytes,
            crc,
            method: method_of(receipt),
        }
    }

    /// True for a receipt.
    #[must_use]
    pub const fn is_receipt(&self) -> bool {
        matches!(self, Self::Log { .. } | Self::Set { .. })
    }
}

fn method_of(receipt: &Receipt) -> String {
    receipt
        .units
        .iter()
        .map(|unit| unit.persistence.name())
        .collect::<Vec<_>>()
        .join("+")
}

/// Prints lines in the order in which they were said, without holding up who says them for longer than it takes to
/// queue one. What was not printed when the power went is a receipt that nobody has seen.
#[derive(Debug)]
pub struct Printer {
    thread: JoinHandle<io::Result<()>>,
}

/// Says lines; cheap to clone.
#[derive(Debug, Clone)]
pub struct Speaker(Sender<Line>);

impl Speaker {
    /// Says a line. Lost if the printer has ended, which [`Printer::finish`] tells.
    pub fn say(&self, line: Line) {
        drop(self.0.send(line));
    }
}

impl Printer {
    /// Prints to `output` from a thread of its own.
    #[must_use]
    pub fn start(output: impl Write + Send + 'static) -> (Self, Speaker) {
        let (speaker, lines) = mpsc::channel();
        let thread = std::thread::spawn(move || print(output, &lines));
        (Self { thread }, Speaker(speaker))
    }

    /// Waits until everything is printed; all speakers must be gone.
    ///
    /// # Errors
    /// [`Failure::Io`] of the output.
    pub fn finish(self) -> Result<()> {
        let ended = self
            .thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the printer died")));
        ended.map_err(Failure::io("print receipts"))
    }
}

fn print(mut output: impl Write, lines: &Receiver<Line>) -> io::Result<()> {
    let mut text = Vec::new();
    while let Ok(first) = lines.recv() {
        text.clear();
        for line in std::iter::once(first).chain(lines.try_iter()) {
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        // One write for all that has gathered: a shared folder of a guest is slow.
        output.write_all(&text)?;
        output.flush()?;
    }
    Ok(())
}

/// Reads what witnesses printed, file by file. A last line that was cut short is left out.
///
/// # Errors
/// [`Failure::Io`]; [`Failure::Given`] for a line in the middle that is none.
pub fn read(files: &[impl AsRef<Path>]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for path in files {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = File::open(path).map_err(Failure::io(format!("open {name}")))?;
        read_one(BufReader::new(file), &name, &mut lines)?;
    }
    Ok(lines)
}

fn read_one(mut reader: impl BufRead, name: &str, lines: &mut Vec<Line>) -> Result<()> {
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let count = reader
            .read_until(b'\n', &mut text)
            .map_err(Failure::io(format!("read {name}")))?;
        // Only a line feed makes a line: without one it was cut short.
        if count == 0 || text.pop() != Some(b'\n') {
            break;
        }
        let line = serde_json::from_slice(&text)
            .map_err(|error| Failure::Given(format!("{name}: line {number}: {error}")))?;
        lines.push(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_left_out_and_no_other() {
        let mut text = Vec::new();
        for to in [8, 16] {
            serde_json::to_writer(&mut text, &Line::Cleared { to }).unwrap();
            text.push(b'\n');
        }
        let mut lines = Vec::new();
        read_one(&text[..], "x", &mut lines).unwrap();
        assert_eq!(lines, [Line::Cleared { to: 8 }, Line::Cleared { to: 16 }]);
        for length in 0..text.len() {
            let mut lines = Vec::new();
            read_one(&text[..length], "x", &mut lines).unwrap();
            assert_eq!(
                lines.len(),
                usize::from(length >= text.len() / 2),
                "{length}"
            );
        }
        text[3] = b'?';
        assert!(read_one(&text[..], "x", &mut Vec::new()).is_err());
    }
}
