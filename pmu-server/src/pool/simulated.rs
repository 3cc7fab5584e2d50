//! A medium that loses what was not persisted: at the persist that it is told, power is cut, and of
//! the 8-byte words written since they were last persisted each survives or not.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use pmu_format::Medium;
use pmu_pmem::PmemError;

use super::medium::PoolMedium;

const WORD_BYTES: u64 = 8;

/// Which of the unpersisted words survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survivors {
    None,
    All,
    /// Each with even chances, by this seed.
    Some(u64),
}

#[derive(Debug)]
pub(super) struct SimulatedMedium {
    medium: Medium,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What loads see.
    visible: Vec<u8>,
    /// What a power cut leaves.
    durable: Vec<u8>,
    /// Indices of words that may differ between the two.
    unpersisted: BTreeSet<u64>,
    persists: u64,
    cut: Option<(u64, Survivors)>,
    is_off: bool,
}

impl SimulatedMedium {
    pub(super) fn new(medium: Medium, image: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            medium,
            state: Mutex::new(State {
                visible: image.clone(),
                durable: image,
                unpersisted: BTreeSet::new(),
                persists: 0,
                cut: None,
                is_off: false,
            }),
        })
    }

    /// Cuts the power instead of the persist of this number, counted from the next one as 0.
    pub(super) fn cut_at(&self, persist: u64, survivors: Survivors) {
        let mut state = self.state.lock();
        state.cut = Some((state.persists + persist, survivors));
    }

    pub(super) fn persists(&self) -> u64 {
        self.state.lock().persists
    }

    pub(super) fn is_off(&self) -> bool {
        self.state.lock().is_off
    }

    /// Cuts the power now; what is found afterwards.
    pub(super) fn durable_image(&self, survivors: Survivors) -> Vec<u8> {
        let mut state = self.state.lock();
        if !state.is_off {
            state.cut_power(survivors);
        }
        state.durable.clone()
    }

    /// Changes bytes behind everybody's back, durably.
    pub(super) fn damage(&self, offset: u64, mask: u8) {
        let mut state = self.state.lock();
        state.visible[offset as usize] ^= mask;
        state.durable[offset as usize] ^= mask;
    }

    pub(super) fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        self.state.lock().visible[range.start as usize..range.end as usize].to_vec()
    }
}

impl State {
    fn cut_power(&mut self, survivors: Survivors) {
        let mut random = match survivors {
            Survivors::Some(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            Survivors::None | Survivors::All => 1,
        };
        for word in std::mem::take(&mut self.unpersisted) {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let survives = match survivors {
                Survivors::None => false,
                Survivors::All => true,
                Survivors::Some(_) => random & (1 << 20) != 0,
            };
            if survives {
                self.make_durable(word);
            }
        }
        self.is_off = true;
    }

    fn make_durable(&mut self, word: u64) {
        let begin = (word * WORD_BYTES) as usize;
        let end = (begin + WORD_BYTES as usize).min(self.visible.len());
        self.durable[begin..end].copy_from_slice(&self.visible[begin..end]);
    }

    fn touch(&mut self, range: Range<u64>) {
        self.unpersisted
            .extend(range.start / WORD_BYTES..range.end.div_ceil(WORD_BYTES));
    }

    fn check(&self, offset: u64, length_bytes: u64) -> Result<Range<usize>, PmemError> {
        let memory_len = self.visible.len() as u64;
        match offset.checked_add(length_bytes) {
            Some(end) if end <= memory_len => Ok(offset as usize..end as usize),
            _ => Err(pmu_pmem::AccessError::OutOfBounds {
                offset,
                len: length_bytes,
                memory_len,
            }
            .into()),
        }
    }
}

fn off() -> PmemError {
    PmemError::PoolFailed {
        path: "simulated".into(),
        errno: 5,
    }
}

impl PoolMedium for SimulatedMedium {
    fn place(&self) -> String {
        "simulated".to_owned()
    }

    fn length_bytes(&self) -> u64 {
        self.state.lock().visible.len() as u64
    }

    fn medium(&self) -> Medium {
        self.medium
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PmemError> {
        let state = self.state.lock();
        let range = state.check(offset, bytes.len() as u64)?;
        bytes.copy_from_slice(&state.visible[range]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), PmemError> {
        let mut state = self.state.lock();
        let range = state.check(offset, bytes.len() as u64)?;
        state.visible[range].copy_from_slice(bytes);
        state.touch(offset..offset + bytes.len() as u64);
        Ok(())
    }

    fn zero(&self, offset: u64, length_bytes: u64) -> Result<(), PmemError> {
        let mut state = self.state.lock();
        let range = state.check(offset, length_bytes)?;
        state.visible[range].fill(0);
        state.touch(offset..offset + length_bytes);
        Ok(())
    }

    fn start_write_back(&self, _range: Range<u64>) {}

    fn persist(&self, ranges: &[Range<u64>]) -> Result<(), PmemError> {
        let mut state = self.state.lock();
        if state.is_off {
            return Err(off());
        }
        let number = state.persists;
        state.persists += 1;
        if let Some((_, survivors)) = state.cut.filter(|(cut, _)| *cut == number) {
            state.cut_power(survivors);
            return Err(off());
        }
        for range in ranges {
            state.check(range.start, range.end - range.start)?;
            let words = range.start / WORD_BYTES..range.end.div_ceil(WORD_BYTES);
            let kept: Vec<u64> = state.unpersisted.range(words).copied().collect();
            for word in kept {
                state.unpersisted.remove(&word);
                state.make_durable(word);
            }
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), PmemError> {
        Ok(())
    }
}
