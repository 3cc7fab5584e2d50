//! Pages of a snapshot on their way to where they belong.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use pmu_arena::{Arena, ArenaOptions, Restoring};
use pmu_format::{SetNumber, SnapshotHeader};

use crate::sets::{FileSink, SetInfo, SetSink};
use crate::snapshot::error::SnapshotError;
use crate::snapshot::head::Collected;

/// Where the pages of a chain go, the full snapshot's first.
pub(super) trait PageTarget {
    /// A chain begins, as its full snapshot describes it: whatever came before is forgotten, and all is zero.
    fn begin(&mut self, header: &SnapshotHeader) -> Result<(), SnapshotError>;
    /// The memory of the bytes at `offset` of the arena, where it can be written to directly.
    fn place(&mut self, offset: u64, length: usize) -> Option<&mut [u8]>;
    /// Puts the bytes at `offset` of the arena.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// A snapshot's set, read into a file whole and verified.
pub(super) struct SetFile<F> {
    pub(super) file: FileSink<F>,
    pub(super) bytes: u64,
}

impl<F: io::Write + io::Seek> SetSink for SetFile<F> {
    fn begin(&mut self, set: &SetInfo) -> io::Result<()> {
        self.bytes = set.bytes;
        self.file.begin(set)
    }

    fn chunk(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.chunk(offset, bytes)
    }
}

/// An arena that is being restored.
pub(super) struct ArenaTarget<'a> {
    pub(super) options: &'a ArenaOptions,
    /// Where it lay is of no importance.
    pub(super) anywhere: bool,
    pub(super) restoring: Option<Restoring>,
}

impl PageTarget for ArenaTarget<'_> {
    fn begin(&mut self, header: &SnapshotHeader) -> Result<(), SnapshotError> {
        // Two at one address don't go.
        self.restoring = None;
        let mut options = self.options.clone();
        options.len_bytes = usize::try_from(header.arena_bytes).unwrap_or(usize::MAX);
        options.heap = header.has_heap;
        if !self.anywhere || header.has_heap {
            options.address = usize::try_from(header.arena_address).ok();
        }
        let restoring = Arena::restore(&options)?;
        if restoring.page_bytes() as u64 != u64::from(header.page_bytes) {
            return Err(SnapshotError::Client(crate::ClientError::Invalid(format!(
                "the snapshot has pages of {} bytes, this machine of {}",
                header.page_bytes,
                restoring.page_bytes()
            ))));
        }
        self.restoring = Some(restoring);
        Ok(())
    }

    fn place(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        self.restoring.as_mut()?.bytes_mut(offset, length).ok()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let place = self.place(offset, bytes.len());
        place
            .ok_or_else(|| io::Error::other("pages outside of the arena"))?
            .copy_from_slice(bytes);
        Ok(())
    }
}

/// A file as long as the arena.
pub(super) struct FileTarget<'a> {
    pub(super) file: &'a File,
    pub(super) on_bytes: &'a mut dyn FnMut(u64) -> io::Result<()>,
}

impl PageTarget for FileTarget<'_> {
    fn begin(&mut self, header: &SnapshotHeader) -> Result<(), SnapshotError> {
        let emptied = self
            .file
            .set_len(0)
            .and_then(|()| self.file.set_len(header.arena_bytes));
        emptied.map_err(|source| {
            SnapshotError::Client(crate::ClientError::Io {
                action: "write the image",
                source,
            })
        })
    }

    fn place(&mut self, _: u64, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (self.on_bytes)(bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }
}

/// One set of a chain on its way to a target.
pub(super) struct SnapshotSink<'a, T> {
    target: &'a mut T,
    /// The set before in the chain, and what its header said.
    base: Option<(SetNumber, SnapshotHeader)>,
    collected: Collected,
    /// What is wrong with header or table.
    pub(super) broken: Option<String>,
    /// What became of the target.
    pub(super) failure: Option<SnapshotError>,
}

impl<'a, T: PageTarget> SnapshotSink<'a, T> {
    pub(super) fn new(target: &'a mut T, base: Option<(SetNumber, SnapshotHeader)>) -> Self {
        Self {
            target,
            base,
            collected: Collected::default(),
            broken: None,
            failure: None,
        }
    }

    /// Takes a whole payload from a file that it was read into. The header, once all of it is where it belongs; none for one that ends before.
    ///
    /// # Errors
    /// Those of the files; else what is in `broken` or `failure`.
    pub(super) fn take_file(
        &mut self,
        payload: &File,
        bytes: u64,
    ) -> io::Result<Option<SnapshotHeader>> {
        const PIECE_BYTES: u64 = 1 << 20;
        self.collected.begin(bytes);
        let mut piece = vec![0; bytes.min(PIECE_BYTES) as usize];
        let mut offset = 0;
        while offset < bytes {
            let piece = &mut piece[..(bytes - offset).min(PIECE_BYTES) as usize];
            payload.read_exact_at(piece, offset)?;
            self.chunk(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(self.header())
    }

    /// The header, once the whole set was read.
    pub(super) fn header(&self) -> Option<SnapshotHeader> {
        self.collected.pages_offset()?;
        self.collected.header().copied()
    }

    fn broken(&mut self, what: String) -> io::Error {
        self.broken = Some(what.clone());
        io::Error::other(what)
    }

    /// Takes what stands before the pages; how many bytes that were.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.collected.pages_offset().is_some() {
            return Ok(0);
        }
        let knew = self.collected.header().is_some();
        let taken = self.collected.take(bytes);
        let taken = taken.map_err(|error| self.broken(error.to_string()))?;
        if let (false, Some(header)) = (knew, self.collected.header().copied()) {
            self.check_link(&header)?;
        }
        Ok(taken)
    }

    fn check_link(&mut self, header: &SnapshotHeader) -> io::Result<()> {
        match &self.base {
            Some((set, base)) if header.builds_on(base, *set) => Ok(()),
            Some((set, _)) => {
                let what = format!("it does not build on set {set}, as its label says");
                Err(self.broken(what))
            }
            None if header.kind.base().is_some() => {
                let what = "it is not full, as its label says".to_owned();
                Err(self.broken(what))
            }
            None => self.target.begin(header).map_err(|error| {
                let text = error.to_string();
                self.failure = Some(error);
                io::Error::other(text)
            }),
        }
    }
}

impl<T: PageTarget> SetSink for SnapshotSink<'_, T> {
    fn begin(&mut self, set: &SetInfo) -> io::Result<()> {
        self.collected.begin(set.bytes);
        if set.bytes == 0 {
            return Err(self.broken("it has no bytes".to_owned()));
        }
        Ok(())
    }

    fn place(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        if offset < self.collected.pages_offset()? {
            return None;
        }
        let (at, together) = self.collected.place(offset)?;
        if together < length as u64 {
            return None;
        }
        self.target.place(at, length)
    }

    fn chunk(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = self.take_head(bytes)?;
        while done < bytes.len() {
            let Some((at, together)) = self.collected.place(offset + done as u64) else {
                return Err(self.broken("bytes behind its pages".to_owned()));
            };
            let count = (bytes.len() - done).min(usize::try_from(together).unwrap_or(usize::MAX));
            self.target.write(at, &bytes[done..done + count])?;
            done += count;
        }
        Ok(())
    }
}
