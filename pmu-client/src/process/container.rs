//! Many image files in one set: a stream of frames, each with its checksum, in the order in which the bytes came.
//!
//! `docs/format.md` has the layout. Nothing here trusts what it reads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pmu_format::Digest;
use serde::{Deserialize, Serialize};

use crate::error::{ClientError, Result};
use crate::process::PRE_DUMPS_MAX;
use crate::sets::Put;
use crate::spread::SpreadPut;

/// What a set with images of a process begins with. The last character is the version.
const MAGIC: [u8; 8] = *b"PMUCRIU1";
const HEADER_BYTES: usize = 24;
/// Longest payload of a frame.
pub(super) const FRAME_BYTES_MAX: usize = 1 << 20;
const NAME_BYTES_MAX: usize = 255;
/// Most files in a set.
const FILES_MAX: u32 = 1 << 20;

const ABOUT: u32 = 1;
const FILE: u32 = 2;
const DATA: u32 = 3;
const END: u32 = 4;
const DONE: u32 = 5;

/// Where the bytes of a set go while they are made.
pub trait ImageSink {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// As [`Put::write_bytes`].
    fn put(&mut self, bytes: &[u8]) -> Result<()>;
}

impl ImageSink for Put<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_bytes(bytes)
    }
}

impl ImageSink for SpreadPut<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_bytes(bytes)
    }
}

impl ImageSink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// On what set an incremental one builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its number in the same region.
    pub set: u64,
    /// Its [`About::id`].
    pub id: String,
}

/// What a set says about the process in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// 32 hexadecimal digits, drawn for this checkpoint.
    pub id: String,
    /// Version of the CRIU that made the images.
    pub criu: String,
    /// The process's number, which it gets again.
    pub pid: u32,
    /// Its name, as in `/proc/PID/comm`.
    pub command: String,
    /// CRIU's options for the dump that the restore needs as well.
    pub options: Vec<String>,
    /// Rounds of memory that were taken while the process ran on.
    #[serde(default)]
    pub pre_dumps: u32,
    /// The set that holds the pages which had not changed; none for a whole one.
    #[serde(default)]
    pub parent: Option<Parent>,
}

/// Why bytes are not the images of a process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It begins otherwise.
    #[error("it holds no process that was checkpointed")]
    Foreign,
    /// A frame that can't be one.
    #[error("damaged at byte {at}: {what}")]
    Damaged {
        /// Where the frame begins.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// It ends before it is complete.
    #[error("it ends after {bytes} bytes, in the middle")]
    CutShort {
        /// Its length.
        bytes: usize,
    },
    /// A file that must be there isn't.
    #[error("the file {name} is missing")]
    Missing {
        /// Which.
        name: String,
    },
    /// The pages of a process don't fit together.
    #[error("{name}: {what}")]
    Pages {
        /// The file.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// A file that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u32);

/// Writes frames into a set.
pub(super) struct Writer<'a> {
    sink: &'a mut dyn ImageSink,
    lengths: Vec<u64>,
    names: BTreeSet<String>,
    open: u32,
    bytes: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn begin(sink: &'a mut dyn ImageSink, about: &About) -> Result<Self> {
        let text = serde_json::to_vec(about)
            .map_err(|error| ClientError::Invalid(format!("describe the process: {error}")))?;
        let mut writer = Self {
            sink,
            lengths: Vec::new(),
            names: BTreeSet::new(),
            open: 0,
            bytes: MAGIC.len() as u64,
        };
        writer.sink.put(&MAGIC)?;
        writer.frame(ABOUT, 0, &text)?;
        Ok(writer)
    }

    /// Begins a file. Several may be open at a time.
    pub(super) fn file(&mut self, name: &str) -> Result<FileId> {
        let id = self.lengths.len() as u32;
        if !is_name(name) || id >= FILES_MAX || !self.names.insert(name.to_owned()) {
            let what = format!("an image file can't be called {name:?}, or not again");
            return Err(ClientError::Invalid(what));
        }
        self.frame(FILE, id, name.as_bytes())?;
        self.lengths.push(0);
        self.open += 1;
        Ok(FileId(id))
    }

    /// The next bytes of a file.
    pub(super) fn data(&mut self, file: FileId, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(FRAME_BYTES_MAX) {
            self.frame(DATA, file.0, piece)?;
        }
        if let Some(length) = self.lengths.get_mut(file.0 as usize) {
            *length += bytes.len() as u64;
        }
        Ok(())
    }

    pub(super) fn end(&mut self, file: FileId) -> Result<()> {
        let length = self.lengths.get(file.0 as usize).copied().unwrap_or(0);
        self.open = self.open.saturating_sub(1);
        self.frame(END, file.0, &length.to_le_bytes())
    }

    /// A whole file.
    pub(super) fn whole(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.file(name)?;
        self.data(file, bytes)?;
        self.end(file)
    }

    /// Ends the stream; returns the number of files, and the bytes of all of it.
    pub(super) fn done(mut self) -> Result<(u32, u64)> {
        if self.open > 0 {
            return Err(ClientError::Invalid(format!(
                "{} image files have no end",
                self.open
            )));
        }
        let files = self.lengths.len() as u32;
        self.frame(DONE, 0, &u64::from(files).to_le_bytes())?;
        Ok((files, self.bytes))
    }

    fn frame(&mut self, kind: u32, file: u32, payload: &[u8]) -> Result<()> {
        let header = header(kind, file, payload);
        self.bytes += (header.len() + payload.len()) as u64;
        self.sink.put(&header)?;
        self.sink.put(payload)
    }
}

fn header(kind: u32, file: u32, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[4..8].copy_from_slice(&file.to_le_bytes());
    header[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    let checksum = checksum(&header[..16], payload);
    header[16..].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn checksum(head: &[u8], payload: &[u8]) -> u64 {
    let mut digest = Digest::new();
    digest.update(head);
    digest.update(payload);
    digest.finish()
}

/// A relative path of plain characters that leads nowhere else.
fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// The files of a set, in memory.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) about: About,
    bytes: Vec<u8>,
    files: BTreeMap<String, Vec<Range<usize>>>,
}

impl Images {
    /// Checks every frame.
    pub(super) fn parse(bytes: Vec<u8>) -> std::result::Result<Self, ImageError> {
        let mut parser = Parser::new(&bytes)?;
        let about = parser.about()?;
        if about.pre_dumps > PRE_DUMPS_MAX {
            return Err(ImageError::Damaged {
                at: 0,
                what: "more rounds of memory than are ever made",
            });
        }
        while parser.step()? {}
        let files = parser.files;
        Ok(Self {
            about,
            bytes,
            files,
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The pieces of a file, in order; none if there is no such file.
    pub(super) fn pieces(&self, name: &str) -> Option<impl Iterator<Item = &[u8]> + Clone> {
        let ranges = self.files.get(name)?;
        Some(ranges.iter().map(|range| &self.bytes[range.clone()]))
    }

    /// A file in one piece.
    pub(super) fn whole(&self, name: &str) -> std::result::Result<Vec<u8>, ImageError> {
        match self.pieces(name) {
            Some(pieces) => Ok(pieces.flatten().copied().collect()),
            None => Err(ImageError::Missing {
                name: name.to_owned(),
            }),
        }
    }

    /// Length of a file.
    pub(super) fn length(&self, name: &str) -> u64 {
        let ranges = self.files.get(name).into_iter().flatten();
        ranges.map(|range| range.len() as u64).sum()
    }
}

struct Frame {
    at: usize,
    kind: u32,
    file: u32,
    payload: Range<usize>,
}

impl Frame {
    fn damaged(&self, what: &'static str) -> ImageError {
        ImageError::Damaged { at: self.at, what }
    }
}

/// Reads one frame after the other.
struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    /// By number: the name while the file is open.
    open: Vec<Option<String>>,
    files: BTreeMap<String, Vec<Range<usize>>>,
}

impl<'a> Parser<'a> {
    fn new(bytes: &'a [u8]) -> std::result::Result<Self, ImageError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(ImageError::Foreign);
        }
        Ok(Self {
            bytes,
            at: MAGIC.len(),
            open: Vec::new(),
            files: BTreeMap::new(),
        })
    }

    fn about(&mut self) -> std::result::Result<About, ImageError> {
        let frame = self.frame()?;
        if frame.kind != ABOUT {
            return Err(frame.damaged("it doesn't say what it is about"));
        }
        serde_json::from_slice(&self.bytes[frame.payload.clone()])
            .map_err(|_| frame.damaged("what it is about can't be read"))
    }

    /// Takes one frame in; false behind the last.
    fn step(&mut self) -> std::result::Result<bool, ImageError> {
        let frame = self.frame()?;
        match frame.kind {
            FILE => self.begin(&frame)?,
            DATA | END => self.go_on(&frame)?,
            DONE => {
                self.finish(&frame)?;
                return Ok(false);
            }
            _ => return Err(frame.damaged("a frame of an unknown kind")),
        }
        Ok(true)
    }

    fn frame(&mut self) -> std::result::Result<Frame, ImageError> {
        let cut = ImageError::CutShort {
            bytes: self.bytes.len(),
        };
        let at = self.at;
        let rest = &self.bytes[at..];
        let Some(head) = rest.first_chunk::<HEADER_BYTES>() else {
            return Err(cut);
        };
        let length = u64_at(head, 8);
        if length > FRAME_BYTES_MAX as u64 {
            let what = "a frame that is too long";
            return Err(ImageError::Damaged { at, what });
        }
        let end = HEADER_BYTES + length as usize;
        let Some(payload) = rest.get(HEADER_BYTES..end) else {
            return Err(cut);
        };
        if checksum(&head[..16], payload) != u64_at(head, 16) {
            let what = "a checksum doesn't match";
            return Err(ImageError::Damaged { at, what });
        }
        self.at = at + end;
        let two = u64_at(head, 0);
        Ok(Frame {
            at,
            kind: two as u32,
            file: (two >> 32) as u32,
            payload: at + HEADER_BYTES..at + end,
        })
    }

    fn begin(&mut self, frame: &Frame) -> std::result::Result<(), ImageError> {
        let name = std::str::from_utf8(&self.bytes[frame.payload.clone()]).unwrap_or("");
        if !is_name(name) {
            return Err(frame.damaged("a file with a name that none has"));
        }
        if frame.file as usize != self.open.len() || frame.file >= FILES_MAX {
            return Err(frame.damaged("a file out of order"));
        }
        if self.files.insert(name.to_owned(), Vec::new()).is_some() {
            return Err(frame.damaged("two files with one name"));
        }
        self.open.push(Some(name.to_owned()));
        Ok(())
    }

    fn go_on(&mut self, frame: &Frame) -> std::result::Result<(), ImageError> {
        let open = self.open.get_mut(frame.file as usize);
        let Some((name, slot)) = open.and_then(|slot| Some((slot.clone()?, slot))) else {
            return Err(frame.damaged("bytes of a file that isn't open"));
        };
        let Some(ranges) = self.files.get_mut(&name) else {
            return Err(frame.damaged("bytes of a file that isn't there"));
        };
        if frame.kind == DATA {
            ranges.push(frame.payload.clone());
            return Ok(());
        }
        let length: u64 = ranges.iter().map(|range| range.len() as u64).sum();
        let said = self.bytes[frame.payload.clone()].first_chunk::<8>();
        if said.map(|said| u64::from_le_bytes(*said)) != Some(length) {
            return Err(frame.damaged("a file of another length"));
        }
        *slot = None;
        Ok(())
    }

    fn finish(&mut self, frame: &Frame) -> std::result::Result<(), ImageError> {
        let said = self.bytes[frame.payload.clone()].first_chunk::<8>();
        if said.map(|said| u64::from_le_bytes(*said)) != Some(self.open.len() as u64) {
            return Err(frame.damaged("another number of files"));
        }
        if self.open.iter().any(Option::is_some) {
            return Err(frame.damaged("a file without an end"));
        }
        if self.at != self.bytes.len() {
            return Err(frame.damaged("bytes behind the end"));
        }
        Ok(())
    }
}

/// Eight bytes of a header; the caller knows that they are there.
fn u64_at(head: &[u8; HEADER_BYTES], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&head[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn about() -> About {
        About {
            id: "00112233445566778899aabbccddeeff".into(),
            criu: "4.1.1".into(),
            pid: 77,
            command: "redis-server".into(),
            ..About::default()
        }
    }

    fn example() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes, &about()).unwrap();
        let one = writer.file("pages-1.img").unwrap();
        let two = writer.file("pre-1/pagemap-77.img").unwrap();
        writer.data(one, b"first ").unwrap();
        writer.data(two, b"map").unwrap();
        writer.data(one, b"second").unwrap();
        writer.end(two).unwrap();
        writer.end(one).unwrap();
        writer.whole("empty.img", b"").unwrap();
        let length = writer.done().unwrap().1;
        assert_eq!(length, bytes.len() as u64);
        bytes
    }

    #[test]
    fn s07_files_that_came_interleaved_come_back() {
        let images = Images::parse(example()).unwrap();
        assert_eq!(images.about, about());
        assert_eq!(images.whole("pages-1.img").unwrap(), b"first second");
        assert_eq!(images.length("pages-1.img"), 12);
        assert_eq!(images.whole("pre-1/pagemap-77.img").unwrap(), b"map");
        assert_eq!(images.whole("empty.img").unwrap(), b"");
        assert!(matches!(
            images.whole("other.img"),
            Err(ImageError::Missing { .. })
        ));
        assert_eq!(images.names().count(), 3);
    }

    /// What version 1 looks like on the medium: a change here is a change of the format.
    #[test]
    fn s07_the_layout_on_the_medium_is_version_1() {
        let bytes = example();
        assert_eq!(bytes.len(), 490);
        assert_eq!(pmu_format::crc64_nvme(&bytes), 0x44f2_b6a1_2427_c708);
        assert!(bytes.starts_with(b"PMUCRIU1\x01\0\0\0\0\0\0\0"));
    }

    #[test]
    fn s07_damage_anywhere_is_found() {
        let good = example();
        for at in 0..good.len() {
            for bit in [0, 3, 7] {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(Images::parse(bad).is_err(), "byte {at}, bit {bit}");
            }
        }
        for length in 0..good.len() {
            assert!(Images::parse(good[..length].to_vec()).is_err(), "{length}");
        }
        let mut longer = good;
        longer.push(0);
        assert!(Images::parse(longer).is_err());
        assert_eq!(
            Images::parse(b"something else".to_vec()).unwrap_err(),
            ImageError::Foreign
        );
    }

    #[test]
    fn s07_names_lead_nowhere_else() {
        for wrong in ["", "/a", "a/", "../a", "a/../b", "a//b", ".", "a b", "ä"] {
            assert!(!is_name(wrong), "{wrong}");
            let mut bytes = Vec::new();
            let mut writer = Writer::begin(&mut bytes, &about()).unwrap();
            assert!(writer.file(wrong).is_err(), "{wrong}");
        }
        assert!(is_name("pre-1/core-77.img"));
    }

    proptest! {
        #[test]
        fn s07_whatever_comes_is_refused_or_read(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(tail);
            prop_assert!(Images::parse(bytes).is_err());
        }

        #[test]
        fn s07_frames_in_any_order_are_refused_or_read(
            frames in prop::collection::vec((0_u32..7, 0_u32..3, prop::collection::vec(any::<u8>(), 0..10)), 0..8),
        ) {
            let mut bytes = Vec::new();
            drop(Writer::begin(&mut bytes, &about()).unwrap());
            for (kind, file, payload) in frames {
                bytes.extend(header(kind, file, &payload));
                bytes.extend(payload);
            }
            // No panic, and nothing without an end.
            prop_assert!(Images::parse(bytes.clone()).is_err() || bytes.len() > 40);
        }
    }
}
