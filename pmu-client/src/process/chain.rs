//! What CRIU is served: the files of one set, with its memory put together from all the sets and rounds that it builds on.

use std::collections::BTreeMap;

use super::container::{About, ImageError, Images};
use super::pagemap::{Layer, merge};
use super::serve::Source;
use super::{ProcessError, round_prefix};

/// Most sets that one builds on. A region keeps fewer.
const CHAIN_MAX: usize = 1024;

/// A process that was checkpointed, read from a region into memory and verified.
#[derive(Debug)]
pub struct SavedProcess {
    /// The newest first.
    sets: Vec<Images>,
}

impl SavedProcess {
    /// Takes the payload of a set, and fetches those of the sets that it builds on, by number.
    ///
    /// # Errors
    /// [`ProcessError::Images`]: it is something else, or damaged. [`ProcessError::BrokenChain`]: a set that it builds on is gone.
    /// What `fetch` returns.
    pub fn load(
        payload: Vec<u8>,
        mut fetch: impl FnMut(u64) -> Result<Vec<u8>, ProcessError>,
    ) -> Result<Self, ProcessError> {
        let mut sets = vec![Images::parse(payload)?];
        while let Some(parent) = sets.last().and_then(|images| images.about.parent.clone()) {
            let broken = |why: String| ProcessError::BrokenChain {
                parent: parent.set,
                why,
            };
            if sets.len() >= CHAIN_MAX {
                return Err(broken("the chain has no end".into()));
            }
            let payload = fetch(parent.set).map_err(|error| match error {
                ProcessError::Client(error) => broken(error.to_string()),
                error => error,
            })?;
            let images = Images::parse(payload).map_err(|error| broken(error.to_string()))?;
            if images.about.id != parent.id {
                return Err(broken("it is another checkpoint".into()));
            }
            sets.push(images);
        }
        Ok(Self { sets })
    }

    /// What it says about itself.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.sets[0].about
    }

    /// How many sets it is put together from.
    #[must_use]
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// CRIU's files in its own set, by name, with their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        let images = &self.sets[0];
        images.names().map(|name| (name, images.length(name)))
    }

    /// Puts the files together that CRIU will ask for.
    pub(super) fn served(&self) -> Result<Served<'_>, ImageError> {
        // The newest first: of each set the dump itself, then its rounds of memory from the last to the first.
        let layers: Vec<Layer<'_>> = self
            .sets
            .iter()
            .flat_map(|images| {
                let pre_dumps = images.about.pre_dumps;
                let rounds = (0..=pre_dumps).rev();
                rounds.map(move |round| Layer::new(images, round_prefix(round, pre_dumps)))
            })
            .collect();
        let top = &self.sets[0];
        let mut served = Served::default();
        for name in top.names().filter(|name| !name.contains('/')) {
            if let Some(pieces) = top.pieces(name) {
                served
                    .files
                    .entry(name.to_owned())
                    .or_insert_with(|| pieces.map(Piece::Read).collect());
            }
        }
        if layers.len() == 1 {
            return Ok(served);
        }
        for name in top.names().filter(|name| is_pagemap(name)) {
            if let Some(merged) = merge(&layers, name)? {
                let pages = format!("pages-{}.img", merged.map.pages_id);
                let pieces = merged.pages.into_iter().map(Piece::Read).collect();
                served.files.insert(pages, pieces);
                served
                    .files
                    .insert(name.to_owned(), vec![Piece::Made(merged.map.encode())]);
            }
        }
        Ok(served)
    }
}

fn is_pagemap(name: &str) -> bool {
    name.starts_with("pagemap-") && name.ends_with(".img")
}

/// Bytes of a file.
#[derive(Debug)]
enum Piece<'a> {
    Read(&'a [u8]),
    Made(Vec<u8>),
}

/// See [`SavedProcess::served`].
#[derive(Debug, Default)]
pub(super) struct Served<'a> {
    files: BTreeMap<String, Vec<Piece<'a>>>,
}

impl Source for Served<'_> {
    fn open(&self, name: &str) -> Option<Vec<&[u8]>> {
        let pieces = self.files.get(name)?.iter();
        let pieces = pieces.map(|piece| match piece {
            Piece::Read(bytes) => bytes,
            Piece::Made(bytes) => bytes.as_slice(),
        });
        Some(pieces.collect())
    }
}
