//! Which sets a region holds.

use pmu_format::{
    Epoch, FormatError, Label, RegionId, SetGeometry, SetHeader, SetNumber, SlotIndex,
};

/// How much a set can be relied on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetState {
    /// Published, and one of the sets kept. Its payload was not read unless it was recovered.
    Committed,
    /// Newer than the published one, and whole: its receipt was lost, or was never given. Only
    /// certain to stay once [`SetOpening`](crate::commit::SetOpening) has completed.
    DurableUnacknowledged,
    /// Newer than the published one, and not known to be whole: being written, or cut short.
    BeingWritten,
    /// Older than the sets kept: its slot may be written at any time.
    BeingOverwritten,
    /// Its chunk table or payload is not what was written.
    Damaged(FormatError),
}

/// A set whose header is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSet {
    /// Its number.
    pub number: SetNumber,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The length of its payload in bytes.
    pub payload_bytes: u64,
    /// When it was committed, in nanoseconds since 1970, by its writer's clock.
    pub committed_nanoseconds: u64,
    /// What the program wanted to find again.
    pub label: Label,
    /// Where it is.
    pub slot: SlotIndex,
    /// How much it can be relied on.
    pub state: SetState,
}

/// Something that whoever is responsible for the data should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// The header of a set that should be there can't be read.
    #[error("slot {slot}, where set {expected} should be: {error}")]
    HeaderDamaged {
        /// The slot.
        slot: SlotIndex,
        /// The set that should be in it.
        expected: SetNumber,
        /// What is wrong.
        error: FormatError,
    },
    /// The slot of a set that should be there was never written. A member of a spread region may have missed the set.
    #[error("slot {slot} is empty, where set {expected} should be")]
    SlotEmpty {
        /// The slot.
        slot: SlotIndex,
        /// The set that should be in it.
        expected: SetNumber,
    },
    /// The slot of a set that should be kept holds an older one.
    #[error("slot {slot} holds set {found}, where set {expected} should be")]
    SetMissing {
        /// The slot.
        slot: SlotIndex,
        /// The set that should be in it.
        expected: SetNumber,
        /// The set in it.
        found: SetNumber,
    },
    /// The chunk table or a chunk of a set is not what was written.
    #[error("set {number}{}: {error}", .chunk.map_or(String::new(), |chunk| format!(", chunk {chunk}")))]
    SetDamaged {
        /// The set.
        number: SetNumber,
        /// The chunk, `None` for the chunk table.
        chunk: Option<u32>,
        /// What is wrong.
        error: FormatError,
    },
    /// The publish word is not what was written: which set was published is not known.
    #[error("{error}")]
    PublishDamaged {
        /// What is wrong.
        error: FormatError,
    },
    /// Sets are newer than the publish word says, by more than the one that may be in progress.
    #[error("the publish word says {published}, and set {newest} is there")]
    PublishBehind {
        /// What the publish word says.
        published: SetNumber,
        /// The newest set.
        newest: SetNumber,
    },
    /// The published set could not be used, and an older one was taken.
    #[error("recovered set {taken} in place of set {published}, which was published")]
    FellBack {
        /// What the publish word says.
        published: SetNumber,
        /// The set that was taken.
        taken: SetNumber,
    },
    /// A live writer overwrote the set while it was read.
    #[error("set {number} was overwritten while it was read")]
    Overtaken {
        /// The set.
        number: SetNumber,
    },
}

impl Finding {
    /// Whether this set is what can't be read.
    #[must_use]
    pub fn is_of(&self, set: SetNumber) -> bool {
        match self {
            Self::SetDamaged { number, .. } => *number == set,
            Self::HeaderDamaged { expected, .. } | Self::SlotEmpty { expected, .. } => {
                *expected == set
            }
            _ => false,
        }
    }
}

/// All slots, as their headers say.
#[derive(Debug)]
pub(super) struct Catalog {
    /// The publish word as it was read.
    pub(super) word: u64,
    /// What it says; 0 where it is damaged.
    pub(super) published: SetNumber,
    /// The newest first.
    pub(super) sets: Vec<FoundSet>,
    pub(super) headers: Vec<Option<SetHeader>>,
    pub(super) findings: Vec<Finding>,
}

impl Catalog {
    pub(super) fn new(geometry: &SetGeometry) -> Self {
        let slots = geometry.slot_count() as usize;
        Self {
            word: 0,
            published: SetNumber(0),
            sets: Vec::with_capacity(slots),
            headers: vec![None; slots],
            findings: Vec::new(),
        }
    }

    /// Forgets what was read; what was found wrong before stays.
    pub(super) fn restart(&mut self) {
        self.sets.clear();
        self.headers.fill(None);
    }

    /// Takes the publish word.
    pub(super) fn word_read(&mut self, word: u64) {
        self.word = word;
        match SetNumber::of_publish_word(word) {
            Ok(published) => self.published = published,
            Err(error) => {
                self.published = SetNumber(0);
                self.note(Finding::PublishDamaged { error });
            }
        }
    }

    /// Whether the publish word says nothing.
    pub(super) fn is_word_damaged(&self) -> bool {
        SetNumber::of_publish_word(self.word).is_err()
    }

    /// Takes the bytes of one slot's header.
    pub(super) fn header_read(
        &mut self,
        geometry: &SetGeometry,
        region: &RegionId,
        slot: SlotIndex,
        bytes: &[u8],
    ) {
        let expected = self.kept_in(geometry, slot);
        match SetHeader::decode(bytes, region, geometry, slot) {
            Ok(header) => {
                self.headers[slot.0 as usize] = Some(header);
                if let Some(expected) = expected.filter(|expected| header.number < *expected) {
                    let found = header.number;
                    self.note(Finding::SetMissing {
                        slot,
                        expected,
                        found,
                    });
                }
                let state = self.state_of(geometry, header.number);
                self.sets.push(FoundSet {
                    number: header.number,
                    epoch: header.epoch,
                    payload_bytes: header.payload_bytes,
                    committed_nanoseconds: header.committed_nanoseconds,
                    label: header.label,
                    slot,
                    state,
                });
            }
            // Only where a set should be is a header without sense worth a word: any other slot is
            // empty, or being written.
            Err(error) => {
                if let Some(expected) = expected {
                    self.note(if bytes.iter().all(|byte| *byte == 0) {
                        Finding::SlotEmpty { slot, expected }
                    } else {
                        Finding::HeaderDamaged {
                            slot,
                            expected,
                            error,
                        }
                    });
                }
            }
        }
    }

    /// All headers are read: the newest first.
    pub(super) fn complete(&mut self) {
        self.sets
            .sort_unstable_by_key(|set| core::cmp::Reverse(set.number));
        let newest = self.sets.first().map_or(SetNumber(0), |set| set.number);
        let is_behind = newest.get() > self.published.get().saturating_add(1);
        if is_behind && !self.is_word_damaged() {
            self.note(Finding::PublishBehind {
                published: self.published,
                newest,
            });
        }
    }

    /// A finding, once.
    pub(super) fn note(&mut self, finding: Finding) {
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    pub(super) fn set_state(&mut self, number: SetNumber, state: SetState) {
        if let Some(set) = self.sets.iter_mut().find(|set| set.number == number) {
            set.state = state;
        }
    }

    /// Which of the sets kept should be in a slot, if any.
    fn kept_in(&self, geometry: &SetGeometry, slot: SlotIndex) -> Option<SetNumber> {
        let kept = u64::from(geometry.sets_kept()).min(self.published.get());
        (0..kept)
            .map(|behind| SetNumber(self.published.get() - behind))
            .find(|number| geometry.slot_of(*number) == slot)
    }

    fn state_of(&self, geometry: &SetGeometry, number: SetNumber) -> SetState {
        let kept = u64::from(geometry.sets_kept());
        if number > self.published {
            SetState::BeingWritten
        } else if number.get().saturating_add(kept) > self.published.get() {
            SetState::Committed
        } else {
            SetState::BeingOverwritten
        }
    }
}
