//! Where the payload of a set goes when it is read.

use std::io::{self, Seek, SeekFrom, Write};

use crate::sets::SetInfo;

/// Takes the payload of a set, chunk by chunk in order; each chunk has passed its checksum before it comes here.
///
/// What came may be believed only when the reading call has returned the set: a later chunk may be damaged, and then another set begins.
pub trait SetSink {
    /// A set begins: forget what came before.
    ///
    /// # Errors
    /// What the destination says, also when it can't begin anew.
    fn begin(&mut self, set: &SetInfo) -> io::Result<()>;

    /// Where to put the next `length` bytes, which begin at `offset` of the payload, without a copy in between: they are put there before
    /// they are verified. None: they come through [`Self::chunk`].
    fn place(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        let _ = (offset, length);
        None
    }

    /// The bytes of the payload at `offset`. Not called for bytes that [`Self::place`] found a place for.
    ///
    /// # Errors
    /// What the destination says.
    fn chunk(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// The vector is made as long as the set, and keeps its allocation from set to set.
impl SetSink for Vec<u8> {
    fn begin(&mut self, set: &SetInfo) -> io::Result<()> {
        let length = usize::try_from(set.bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let more = length.saturating_sub(self.len());
        self.try_reserve_exact(more)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        // Bytes that are there already will be overwritten: zeroing them would only take time.
        self.resize(length, 0);
        Ok(())
    }

    fn place(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        self.get_mut(offset..offset.checked_add(length)?)
    }

    fn chunk(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::other("every chunk has a place in a vector"))
    }
}

impl<S: SetSink + ?Sized> SetSink for &mut S {
    fn begin(&mut self, set: &SetInfo) -> io::Result<()> {
        (**self).begin(set)
    }

    fn place(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        (**self).place(offset, length)
    }

    fn chunk(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).chunk(offset, bytes)
    }
}

/// Reads for the checksums alone.
impl SetSink for () {
    fn begin(&mut self, _: &SetInfo) -> io::Result<()> {
        Ok(())
    }

    fn chunk(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// A destination that can't go back, such as a pipe: a second set can't begin once bytes of a first have gone.
#[derive(Debug)]
pub struct StreamSink<W> {
    writer: W,
    written: u64,
}

impl<W: Write> StreamSink<W> {
    /// Writes to `writer`.
    pub const fn new(writer: W) -> Self {
        Self { writer, written: 0 }
    }

    /// Bytes that have gone.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// The writer again.
    pub fn into_inner(self) -> W {
        self.writer
    }
}

impl<W: Write> SetSink for StreamSink<W> {
    fn begin(&mut self, set: &SetInfo) -> io::Result<()> {
        if self.written > 0 {
            let text = format!(
                "a damaged set was given out in part already; set {} could be read instead",
                set.number
            );
            return Err(io::Error::other(text));
        }
        Ok(())
    }

    fn chunk(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// A destination that can begin anew, such as a file.
#[derive(Debug)]
pub struct FileSink<F> {
    file: F,
}

impl<F: Write + Seek> FileSink<F> {
    /// Writes to `file` from its beginning. What the file held beyond the set's length stays: cut it to length afterwards.
    pub const fn new(file: F) -> Self {
        Self { file }
    }

    /// The file again.
    pub fn into_inner(self) -> F {
        self.file
    }
}

impl<F: Write + Seek> SetSink for FileSink<F> {
    fn begin(&mut self, _: &SetInfo) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0)).map(drop)
    }

    fn chunk(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
}
