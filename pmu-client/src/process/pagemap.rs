//! CRIU's `pagemap` images: which pages of a process lie in its `pages` image, and which lie with an earlier dump.

use std::collections::BTreeMap;

use prost::Message;

use super::container::{ImageError, Images};

/// Bytes of a page; CRIU counts in these here.
pub(super) const PAGE_BYTES: u64 = 4096;
/// The pages lie with an earlier dump.
pub(super) const IN_PARENT: u32 = 1;
/// The pages lie in this dump.
pub(super) const PRESENT: u32 = 4;

/// What CRIU's images begin with, and what those of this kind go on with.
const COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) address: u64,
    pub(super) pages: u64,
    pub(super) flags: u32,
}

impl Run {
    const fn end(&self) -> u64 {
        self.address + self.pages * PAGE_BYTES
    }
}

/// One `pagemap` image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pagemap {
    pub(super) pages_id: u32,
    /// By address, none over another.
    pub(super) runs: Vec<Run>,
}

impl Pagemap {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(COMMON_MAGIC.to_le_bytes());
        bytes.extend(PAGEMAP_MAGIC.to_le_bytes());
        let head = Head {
            pages_id: self.pages_id,
        };
        put(&mut bytes, &head);
        for run in &self.runs {
            let mut left = run.pages;
            while left > 0 {
                let pages = left.min(u64::from(u32::MAX));
                let entry = Entry {
                    vaddr: run.address + (run.pages - left) * PAGE_BYTES,
                    nr_pages: pages as u32,
                    in_parent: None,
                    flags: Some(run.flags),
                };
                put(&mut bytes, &entry);
                left -= pages;
            }
        }
        bytes
    }

    pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let wrong = |what| ImageError::Pages {
            name: name.to_owned(),
            what,
        };
        let magic = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if magic(0) != Some(COMMON_MAGIC) || magic(4) != Some(PAGEMAP_MAGIC) {
            return Err(wrong("it is no pagemap"));
        }
        let mut rest = &bytes[8..];
        let head: Head = take(&mut rest).ok_or_else(|| wrong("its head can't be read"))?;
        let mut runs: Vec<Run> = Vec::new();
        while !rest.is_empty() {
            let entry: Entry = take(&mut rest).ok_or_else(|| wrong("an entry can't be read"))?;
            let old = if entry.in_parent == Some(true) {
                IN_PARENT
            } else {
                PRESENT
            };
            let run = Run {
                address: entry.vaddr,
                pages: entry.nr_pages.into(),
                flags: entry.flags.unwrap_or(old),
            };
            let before = runs.last().map_or(0, Run::end);
            let is_sound = run.address.is_multiple_of(PAGE_BYTES)
                && run.address >= before
                && run.address.checked_add(run.pages * PAGE_BYTES).is_some();
            if !is_sound {
                return Err(wrong("an entry can't be where it is"));
            }
            runs.push(run);
        }
        Ok(Self {
            pages_id: head.pages_id,
            runs,
        })
    }
}

fn put(bytes: &mut Vec<u8>, message: &impl Message) {
    let message = message.encode_to_vec();
    bytes.extend((message.len() as u32).to_le_bytes());
    bytes.extend(message);
}

fn take<M: Message + Default>(rest: &mut &[u8]) -> Option<M> {
    let length = u32::from_le_bytes(*rest.first_chunk()?) as usize;
    let message = M::decode(rest.get(4..)?.get(..length)?).ok()?;
    *rest = &rest[4 + length..];
    Some(message)
}

/// The images of one dump in a chain: a set, or a round of memory in it.
pub(super) struct Layer<'a> {
    images: &'a Images,
    prefix: String,
}

impl<'a> Layer<'a> {
    /// The files of a set that are behind a prefix.
    pub(super) const fn new(images: &'a Images, prefix: String) -> Self {
        Self { images, prefix }
    }

    fn pagemap(&self, name: &str) -> Result<Option<Known<'a>>, ImageError> {
        let full = format!("{}{name}", self.prefix);
        if self.images.pieces(&full).is_none() {
            return Ok(None);
        }
        let map = Pagemap::decode(&full, &self.images.whole(&full)?)?;
        let pages = format!("{}pages-{}.img", self.prefix, map.pages_id);
        let pieces = self.images.pieces(&pages);
        let mut at = 0;
        let mut known = BTreeMap::new();
        for piece in pieces.into_iter().flatten() {
            known.insert(at, piece);
            at += piece.len() as u64;
        }
        let mut offset = 0;
        let mut offsets = Vec::with_capacity(map.runs.len());
        for run in &map.runs {
            offsets.push(offset);
            if run.flags & PRESENT != 0 {
                offset += run.pages * PAGE_BYTES;
            }
        }
        if offset != at {
            let what = "its pages are of another number";
            return Err(ImageError::Pages { name: full, what });
        }
        Ok(Some(Known {
            name: full,
            map,
            offsets,
            pieces: known,
        }))
    }
}

/// A pagemap with the bytes of its pages.
struct Known<'a> {
    name: String,
    map: Pagemap,
    /// Where each run begins in the pages image.
    offsets: Vec<u64>,
    pieces: BTreeMap<u64, &'a [u8]>,
}

impl<'a> Known<'a> {
    /// The bytes of the pages image from an offset.
    fn bytes(&self, offset: u64, length: u64, out: &mut Vec<&'a [u8]>) {
        let (mut offset, end) = (offset, offset + length);
        while offset < end {
            let Some((at, piece)) = self.pieces.range(..=offset).next_back() else {
                return;
            };
            let from = (offset - at) as usize;
            let to = piece.len().min((end - at) as usize);
            if from >= to {
                return;
            }
            out.push(&piece[from..to]);
            offset = at + to as u64;
        }
    }

    /// The run that holds the page at an address.
    fn find(&self, address: u64) -> Option<usize> {
        let index = self
            .map
            .runs
            .partition_point(|run| run.address <= address)
            .checked_sub(1)?;
        (address < self.map.runs[index].end()).then_some(index)
    }
}

/// The memory of one process put together from a chain.
#[derive(Debug)]
pub(super) struct Merged<'a> {
    pub(super) map: Pagemap,
    /// The pages, in the order of the map.
    pub(super) pages: Vec<&'a [u8]>,
}

/// Puts a pagemap of the newest layer together with what lies below it. The newest layer comes first. None if it has no such pagemap.
pub(super) fn merge<'a>(
    layers: &[Layer<'a>],
    name: &str,
) -> Result<Option<Merged<'a>>, ImageError> {
    let known: Vec<_> = layers
        .iter()
        .map(|layer| layer.pagemap(name))
        .collect::<Result<_, _>>()?;
    let Some(Some(top)) = known.first() else {
        return Ok(None);
    };
    let mut merged = Merged {
        map: Pagemap {
            pages_id: top.map.pages_id,
            runs: Vec::new(),
        },
        pages: Vec::new(),
    };
    for run in &top.map.runs {
        resolve(&known, 0, *run, run.flags, &mut merged)?;
    }
    Ok(Some(merged))
}

/// Adds the pages of a run from the first layer, at or below a depth, that has them.
fn resolve<'a>(
    known: &[Option<Known<'a>>],
    depth: usize,
    run: Run,
    flags: u32,
    merged: &mut Merged<'a>,
) -> Result<(), ImageError> {
    let Some(Some(layer)) = known.get(depth) else {
        let name = known.iter().flatten().next().map(|top| top.name.clone());
        return Err(ImageError::Pages {
            name: name.unwrap_or_default(),
            what: "pages lie in an earlier dump, and aren't there",
        });
    };
    let missing = || ImageError::Pages {
        name: layer.name.clone(),
        what: "pages that a later dump builds on aren't there",
    };
    let (mut address, end) = (run.address, run.end());
    while address < end {
        let index = layer.find(address).ok_or_else(missing)?;
        let (found, offset) = (layer.map.runs[index], layer.offsets[index]);
        let upto = end.min(found.end());
        let part = Run {
            address,
            pages: (upto - address) / PAGE_BYTES,
            flags: (flags & !IN_PARENT) | PRESENT,
        };
        if found.flags & PRESENT != 0 {
            let from = offset + (address - found.address);
            layer.bytes(from, upto - address, &mut merged.pages);
            merged.map.runs.push(part);
        } else if found.flags & IN_PARENT != 0 {
            resolve(known, depth + 1, part, flags, merged)?;
        } else {
            return Err(missing());
        }
        address = upto;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::process::container::{About, Writer};

    const NAME: &str = "pagemap-7.img";

    /// What a dump says of each page: not mapped, in an earlier one, or here with this byte in it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Page {
        Nothing,
        Earlier,
        Here(u8),
    }

    /// A set with one dump, its pages in frames of a size that fits nothing.
    fn set(pages: &[Page]) -> Images {
        let mut runs: Vec<Run> = Vec::new();
        let mut bytes = Vec::new();
        for (number, page) in pages.iter().enumerate() {
            let flags = match page {
                Page::Nothing => continue,
                Page::Earlier => IN_PARENT,
                Page::Here(byte) => {
                    bytes.extend([*byte; PAGE_BYTES as usize]);
                    PRESENT
                }
            };
            let address = (number as u64 + 16) * PAGE_BYTES;
            match runs.last_mut() {
                Some(run) if run.end() == address && run.flags == flags => run.pages += 1,
                _ => runs.push(Run {
                    address,
                    pages: 1,
                    flags,
                }),
            }
        }
        let mut out = Vec::new();
        let mut writer = Writer::begin(&mut out, &About::default()).unwrap();
        let file = writer.file("pages-3.img").unwrap();
        for piece in bytes.chunks(5000) {
            writer.data(file, piece).unwrap();
        }
        writer.end(file).unwrap();
        let map = Pagemap { pages_id: 3, runs };
        assert_eq!(Pagemap::decode(NAME, &map.encode()).unwrap(), map);
        writer.whole(NAME, &map.encode()).unwrap();
        writer.done().unwrap();
        Images::parse(out).unwrap()
    }

    /// The byte in each page, by number.
    fn contents(merged: &Merged<'_>) -> Vec<(u64, u8)> {
        let bytes: Vec<u8> = merged.pages.concat();
        let mut pages = bytes.chunks(PAGE_BYTES as usize);
        let mut found = Vec::new();
        for run in &merged.map.runs {
            assert_eq!(run.flags, PRESENT);
            for number in 0..run.pages {
                let page = pages.next().unwrap();
                assert!(page.iter().all(|byte| *byte == page[0]));
                found.push((run.address / PAGE_BYTES - 16 + number, page[0]));
            }
        }
        assert!(pages.next().is_none());
        found
    }

    fn merged(sets: &[Images]) -> Result<Vec<(u64, u8)>, ImageError> {
        let layers: Vec<_> = sets
            .iter()
            .map(|set| Layer::new(set, String::new()))
            .collect();
        Ok(contents(&merge(&layers, NAME)?.unwrap()))
    }

    #[test]
    fn s08_pages_come_from_the_newest_that_has_them() {
        use Page::{Earlier, Here, Nothing};
        let oldest = set(&[Here(1), Here(2), Here(3), Here(4)]);
        let middle = set(&[Earlier, Here(12), Earlier, Earlier]);
        let newest = set(&[Earlier, Earlier, Here(23), Nothing]);
        let chain = [newest, middle, oldest];
        assert_eq!(merged(&chain).unwrap(), [(0, 1), (1, 12), (2, 23)]);
        // A link is missing.
        assert!(matches!(merged(&chain[..2]), Err(ImageError::Pages { .. })));
        // A page that nobody has.
        let hole = [set(&[Earlier]), set(&[Nothing, Here(1)])];
        assert!(matches!(merged(&hole), Err(ImageError::Pages { .. })));
    }

    #[test]
    fn s08_a_pagemap_that_cannot_be_is_refused() {
        let run = |address, pages| Run {
            address,
            pages,
            flags: PRESENT,
        };
        for runs in [
            vec![run(1, 1)],
            vec![run(PAGE_BYTES * 4, 2), run(PAGE_BYTES * 5, 1)],
            vec![run(u64::MAX - PAGE_BYTES + 1, 3)],
        ] {
            let map = Pagemap { pages_id: 1, runs };
            assert!(Pagemap::decode(NAME, &map.encode()).is_err(), "{map:?}");
        }
        assert!(Pagemap::decode(NAME, b"").is_err());
        let good = Pagemap {
            pages_id: 1,
            runs: vec![run(PAGE_BYTES, 1)],
        };
        let good = good.encode();
        for length in 0..good.len() {
            // Cut behind the head, it is a pagemap without entries.
            let cut = Pagemap::decode(NAME, &good[..length]);
            assert!(cut.is_err() || cut.unwrap().runs.is_empty(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn s08_any_chain_is_what_was_written_last(
            writes in prop::collection::vec(prop::collection::vec(prop::option::of(any::<u8>()), 24), 1..5),
        ) {
            let mut state: Vec<Option<u8>> = vec![None; 24];
            let mut sets = Vec::new();
            for write in writes {
                let pages: Vec<_> = state.iter_mut().zip(&write).map(|(state, write)| match (*state, write) {
                    (_, Some(byte)) => {
                        *state = Some(*byte);
                        Page::Here(*byte)
                    }
                    (Some(_), None) => Page::Earlier,
                    (None, None) => Page::Nothing,
                }).collect();
                sets.insert(0, set(&pages));
            }
            let expected: Vec<_> = state.iter().enumerate().filter_map(|(number, byte)| Some((number as u64, (*byte)?))).collect();
            prop_assert_eq!(merged(&sets).unwrap(), expected);
        }

        #[test]
        fn s08_any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut image = COMMON_MAGIC.to_le_bytes().to_vec();
            image.extend(PAGEMAP_MAGIC.to_le_bytes());
            image.extend(bytes);
            let _ = Pagemap::decode(NAME, &image);
        }
    }
}
