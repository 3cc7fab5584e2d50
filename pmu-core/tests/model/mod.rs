//! A model of a unit's memory: what is written is visible at once, and durable when it was flushed.
//! When the power goes, each 8-byte word that was not flushed keeps its durable value or one that
//! was written since. A client can die in the middle of a write, without the power going.

// Each test file uses a part of this; helpers of tests fail like tests.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout
)]

use std::collections::BTreeMap;
use std::ops::Range;

use pmu_core::{ReadRequest, WordWrite};
use pmu_format::{RegionId, RegionOffset, RegionPiece};

pub(crate) const REGION: RegionId = RegionId(*b"a region to test");

/// A small generator (SplitMix64), so that a seed means the same everywhere and for ever.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// What happens at the step that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The client dies; part of the step was carried out; the power stays.
    Client,
    /// The power goes; words that were not flushed are kept or lost one by one.
    Power,
    /// The power goes; nothing that was not flushed is kept.
    PowerLosesAll,
    /// The power goes; everything written is kept, but for a part of the last step.
    PowerKeepsAll,
}

pub(crate) const FAILURES: [Failure; 4] = [
    Failure::Client,
    Failure::Power,
    Failure::PowerLosesAll,
    Failure::PowerKeepsAll,
];

/// The client is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dead;

/// Writes no longer than this keep each value between two flushes, longer ones the last alone.
const HISTORY_MAX_BYTES: usize = 128;

#[derive(Clone, Debug)]
pub(crate) struct Memory {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges of words that may differ.
    dirty: Vec<Range<usize>>,
    /// Former values of words that were written and not flushed since.
    history: BTreeMap<usize, Vec<[u8; 8]>>,
    pub(crate) random: Random,
    pub(crate) steps: u64,
    /// Which step fails, and how.
    pub(crate) failure: Option<(u64, Failure)>,
}

impl Memory {
    pub(crate) fn new(length: u64, seed: u64) -> Self {
        Self {
            visible: vec![0; length as usize],
            durable: vec![0; length as usize],
            dirty: Vec::new(),
            history: BTreeMap::new(),
            random: Random(seed),
            steps: 0,
            failure: None,
        }
    }

    pub(crate) fn read(&self, request: ReadRequest) -> &[u8] {
        let begin = request.offset.get() as usize;
        &self.visible[begin..begin + request.length_bytes as usize]
    }

    pub(crate) fn write(&mut self, offset: RegionOffset, bytes: &[u8]) -> Result<(), Dead> {
        let (begin, length) = (offset.get() as usize, bytes.len());
        assert!(
            begin + length <= self.visible.len(),
            "a write leaves the region"
        );
        let fails = self.fails();
        let words = begin / 8..(begin + length).div_ceil(8);
        self.dirty.push(words.clone());
        for word in words {
            // The step that fails is carried out for some of its words only.
            if fails.is_some() && self.random.chance(2) {
                continue;
            }
            if length <= HISTORY_MAX_BYTES {
                let former = self.word(word);
                self.history.entry(word).or_default().push(former);
            }
            let (from, to) = ((word * 8).max(begin), (word * 8 + 8).min(begin + length));
            self.visible[from..to].copy_from_slice(&bytes[from - begin..to - begin]);
        }
        self.end_step(fails)
    }

    pub(crate) fn write_word(&mut self, word: WordWrite) -> Result<(), Dead> {
        self.write(word.offset, &word.value.to_le_bytes())
    }

    pub(crate) fn flush(&mut self, range: RegionPiece) -> Result<(), Dead> {
        if range.length_bytes == 0 {
            return Ok(());
        }
        let fails = self.fails();
        let begin = range.offset.get() as usize / 8;
        let end = (range.offset.get() + range.length_bytes).div_ceil(8) as usize;
        for word in begin..end {
            if fails.is_none() || self.random.chance(2) {
                self.durable[word * 8..word * 8 + 8]
                    .copy_from_slice(&self.visible[word * 8..word * 8 + 8]);
                self.history.remove(&word);
            }
        }
        if fails.is_none() {
            self.dirty
                .retain(|words| words.start < begin || words.end > end);
        }
        self.end_step(fails)
    }

    /// The power goes now.
    pub(crate) fn lose_power(&mut self, failure: Failure) {
        for word in std::mem::take(&mut self.dirty).into_iter().flatten() {
            let (durable, visible) = (self.durable_word(word), self.word(word));
            let former = self.history.remove(&word).unwrap_or_default();
            let kept = match failure {
                Failure::PowerLosesAll => durable,
                Failure::PowerKeepsAll => visible,
                _ => match self.random.below(former.len() as u64 + 2) {
                    0 => durable,
                    1 => visible,
                    choice => former[choice as usize - 2],
                },
            };
            self.visible[word * 8..word * 8 + 8].copy_from_slice(&kept);
            self.durable[word * 8..word * 8 + 8].copy_from_slice(&kept);
        }
    }

    /// Damages one bit, durably.
    pub(crate) fn flip(&mut self, offset: u64, bit: u64) {
        self.visible[offset as usize] ^= 1 << bit;
        self.durable[offset as usize] ^= 1 << bit;
    }

    fn word(&self, word: usize) -> [u8; 8] {
        self.visible[word * 8..word * 8 + 8]
            .try_into()
            .expect("eight bytes")
    }

    fn durable_word(&self, word: usize) -> [u8; 8] {
        self.durable[word * 8..word * 8 + 8]
            .try_into()
            .expect("eight bytes")
    }

    fn fails(&mut self) -> Option<Failure> {
        let step = self.steps;
        self.steps += 1;
        self.failure
            .filter(|(at, _)| *at == step)
            .map(|(_, failure)| failure)
    }

    fn end_step(&mut self, fails: Option<Failure>) -> Result<(), Dead> {
        match fails {
            None => return Ok(()),
            Some(Failure::Client) => {}
            Some(failure) => self.lose_power(failure),
        }
        Err(Dead)
    }
}

/// The number in an environment variable, so that a failure can be replayed.
pub(crate) fn number_from(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => otherwise,
    }
}
