//! Writes one set after another.

use core::ops::Range;

use pmu_format::{
    CHUNK_CHECKSUM_BYTES, COUNT_MAX, Epoch, Label, RegionId, RegionOffset, RegionPiece,
    SET_HEADER_BYTES, SetGeometry, SetHeader, SetNumber, SlotIndex, chunk_count, crc64_nvme,
    put_chunk_checksum,
};

use crate::WordWrite;
use crate::commit::flush_ranges;

/// Why no set can be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// The payload is longer than the region's capacity.
    #[error("a payload of {payload_bytes} bytes, the region takes {capacity_bytes}")]
    TooLarge {
        /// How long the payload is.
        payload_bytes: u64,
        /// How long it may be.
        capacity_bytes: u64,
    },
    /// Another set is in progress: finish or abandon it first.
    #[error("set {number} is in progress")]
    InProgress {
        /// Which one.
        number: SetNumber,
    },
    /// The last set was abandoned after its commit was handed out, so that nobody knows whether it
    /// was published. Recover, and build a new writer.
    #[error("set {number} is in doubt: recover before the next set")]
    InDoubt {
        /// Which one.
        number: SetNumber,
    },
    /// The slot of the next set holds one of the sets kept. Cannot come up with a geometry and a
    /// number that belong together; refused all the same.
    #[error("slot {slot} holds set {kept}, which is kept")]
    SlotKept {
        /// The slot.
        slot: SlotIndex,
        /// The set in it.
        kept: SetNumber,
    },
    /// The numbers have run out.
    #[error("no set number is left")]
    NumbersExhausted,
}

/// Why a chunk's checksum was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// No set is in progress, or its commit was handed out already.
    #[error("no set is being written")]
    NotWriting,
    /// The set has no such chunk.
    #[error("chunk {index}, the set has {chunk_count}")]
    Unknown {
        /// Which chunk.
        index: u32,
        /// How many there are.
        chunk_count: u32,
    },
    /// The chunk was reported before.
    #[error("chunk {index} was written before")]
    Twice {
        /// Which chunk.
        index: u32,
    },
}

/// Why a set can't be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FinishError {
    /// No set is in progress, or its commit was handed out already.
    #[error("no set is being written")]
    NotWriting,
    /// Chunks are missing.
    #[error("{written} of {chunk_count} chunks are written")]
    Incomplete {
        /// How many were reported.
        written: u32,
        /// How many there are.
        chunk_count: u32,
    },
}

/// No commit was handed out that could have completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no commit is under way")]
pub struct NotFinished;

/// Where a set is going to be written. Plain numbers: valid until the set is committed or
/// abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetPlan {
    /// The set's number.
    pub number: SetNumber,
    /// Its slot.
    pub slot: SlotIndex,
    /// The length of its payload.
    pub payload_bytes: u64,
    /// Where the payload begins in the region.
    pub payload_offset: RegionOffset,
    /// How many chunks it has.
    pub chunk_count: u32,
}

/// A chunk's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Which bytes of the payload.
    pub payload_range: Range<u64>,
    /// Where they go in the region.
    pub offset: RegionOffset,
}

impl SetPlan {
    /// Where chunk `index` goes; `None` for a chunk that the set doesn't have.
    #[must_use]
    pub fn chunk(&self, index: u32) -> Option<ChunkPlace> {
        let payload_range = SetGeometry::chunk_range(self.payload_bytes, index)?;
        let offset = self.payload_offset.checked_add(payload_range.start)?;
        Some(ChunkPlace {
            payload_range,
            offset,
        })
    }
}

/// The rest of a commit, in the order in which the chain carries it out. The payload's writes come
/// before all of it, on the same connection.
#[derive(Clone, Copy, Debug)]
pub struct CommitPlan<'writer> {
    /// First: the chunk table, to be written at `table_offset`. Empty for an empty payload.
    pub table: &'writer [u8],
    /// Where the table goes.
    pub table_offset: RegionOffset,
    /// Second: the header, to be written at `header_offset`.
    pub header: [u8; SET_HEADER_BYTES],
    /// Where the header goes.
    pub header_offset: RegionOffset,
    /// Third: FLUSH of these ranges; one of length 0 is none.
    pub flush: [RegionPiece; 2],
    /// Fourth: ATOMIC WRITE of the set's number.
    pub publish: WordWrite,
    /// Fifth: FLUSH of the publish word.
    pub flush_publish: RegionPiece,
}

impl CommitPlan<'_> {
    /// The ranges to flush before publishing.
    pub fn flush_ranges(&self) -> impl Iterator<Item = RegionPiece> + use<> {
        self.flush
            .into_iter()
            .filter(|range| range.length_bytes > 0)
    }
}

/// What a receipt says about a committed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommittedSet {
    /// The set's number.
    pub number: SetNumber,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The length of its payload in bytes.
    pub payload_bytes: u64,
}

/// What abandoning a set left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// No set was in progress.
    Nothing,
    /// Nothing of the set can be believed by anybody: its number is used again.
    Clean,
    /// The commit was handed out, and may have been published: the writer refuses further sets.
    InDoubt,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    Writing {
        plan: SetPlan,
        label: Label,
        written: u32,
    },
    Committing {
        plan: SetPlan,
    },
    InDoubt {
        number: SetNumber,
    },
}

/// Writes the sets of one region, one at a time, for one epoch.
///
/// `begin`, then write each chunk where the plan says and report its checksum, in any order;
/// `finish` gives the rest of the chain; `committed` when the chain has completed. Nothing is
/// allocated after construction.
#[derive(Debug)]
pub struct SetWriter {
    geometry: SetGeometry,
    region: RegionId,
    epoch: Epoch,
    newest: SetNumber,
    state: State,
    table: Vec<u8>,
    written: Vec<bool>,
}

impl SetWriter {
    /// A writer that goes on behind set `newest` (0 for a region without sets), which must be the
    /// one of [`SetOpening::newest`](crate::commit::SetOpening::newest) after that plan has
    /// completed. `epoch` is the one that the unit granted.
    ///
    /// Allocates the chunk table of a full payload.
    #[must_use]
    pub fn new(geometry: SetGeometry, region: RegionId, epoch: Epoch, newest: SetNumber) -> Self {
        let chunks = chunk_count(geometry.capacity_bytes()).unwrap_or(u32::MAX) as usize;
        Self {
            geometry,
            region,
            epoch,
            newest,
            state: State::Idle,
            table: vec![0; chunks * CHUNK_CHECKSUM_BYTES as usize],
            written: vec![false; chunks],
        }
    }

    /// Begins the next set, with a payload of `payload_bytes` (0 is a payload too).
    ///
    /// # Errors
    /// [`BeginError`]; the writer is unchanged then.
    pub fn begin(&mut self, payload_bytes: u64, label: Label) -> Result<SetPlan, BeginError> {
        match self.state {
            State::Idle => {}
            State::Writing { plan, .. } | State::Committing { plan } => {
                return Err(BeginError::InProgress {
                    number: plan.number,
                });
            }
            State::InDoubt { number } => return Err(BeginError::InDoubt { number }),
        }
        let capacity_bytes = self.geometry.capacity_bytes();
        if payload_bytes > capacity_bytes {
            return Err(BeginError::TooLarge {
                payload_bytes,
                capacity_bytes,
            });
        }
        let number = self
            .newest
            .checked_add(1)
            .filter(|number| number.get() <= COUNT_MAX)
            .ok_or(BeginError::NumbersExhausted)?;
        let slot = self.geometry.slot_of(number);
        self.check_slot(slot)?;
        let chunk_count = chunk_count(payload_bytes).unwrap_or(u32::MAX);
        let payload_offset = self.geometry.payload_offset(slot);
        let plan = SetPlan {
            number,
            slot,
            payload_bytes,
            payload_offset,
            chunk_count,
        };
        self.written[..chunk_count as usize].fill(false);
        self.state = State::Writing {
            plan,
            label,
            written: 0,
        };
        Ok(plan)
    }

    /// The sets kept are the `sets_kept` newest numbers; none of them may live in `slot`.
    fn check_slot(&self, slot: SlotIndex) -> Result<(), BeginError> {
        #[cfg(feature = "planted-bugs")]
        if pmu_format::planted::is_planted(pmu_format::planted::Bug::ReuseSlot) {
            return Ok(());
        }
        let kept = u64::from(self.geometry.sets_kept()).min(self.newest.get());
        for behind in 0..kept {
            let kept = SetNumber(self.newest.get() - behind);
            if self.geometry.slot_of(kept) == slot {
                return Err(BeginError::SlotKept { slot, kept });
            }
        }
        Ok(())
    }

    /// Takes the CRC-64/NVME of chunk `index`, as it was or will be written. Any order.
    ///
    /// # Errors
    /// [`ChunkError`]; the writer is unchanged then.
    pub fn chunk_written(&mut self, index: u32, checksum: u64) -> Result<(), ChunkError> {
        let State::Writing { plan, written, .. } = &mut self.state else {
            return Err(ChunkError::NotWriting);
        };
        let chunk_count = plan.chunk_count;
        let unknown = ChunkError::Unknown { index, chunk_count };
        if index >= chunk_count {
            return Err(unknown);
        }
        let seen = self.written.get_mut(index as usize).ok_or(unknown)?;
        if *seen {
            return Err(ChunkError::Twice { index });
        }
        if !put_chunk_checksum(&mut self.table, index, checksum) {
            return Err(unknown);
        }
        *seen = true;
        *written += 1;
        Ok(())
    }

    /// Ends the set, and gives the rest of the chain. `now_nanoseconds` since 1970 goes into the
    /// header. Nothing is durable before the chain has completed.
    ///
    /// # Errors
    /// [`FinishError`]; the writer is unchanged then.
    pub fn finish(&mut self, now_nanoseconds: u64) -> Result<CommitPlan<'_>, FinishError> {
        let State::Writing {
            plan,
            label,
            written,
        } = self.state
        else {
            return Err(FinishError::NotWriting);
        };
        let chunk_count = plan.chunk_count;
        if written != chunk_count {
            return Err(FinishError::Incomplete {
                written,
                chunk_count,
            });
        }
        self.state = State::Committing { plan };
        let table = &self.table[..chunk_count as usize * CHUNK_CHECKSUM_BYTES as usize];
        let header = SetHeader {
            number: plan.number,
            epoch: self.epoch,
            payload_bytes: plan.payload_bytes,
            chunk_table_checksum: crc64_nvme(table),
            committed_nanoseconds: now_nanoseconds,
            label,
        };
        let publish = WordWrite {
            offset: self.geometry.publish_offset(),
            value: plan.number.publish_word(),
        };
        Ok(CommitPlan {
            table,
            table_offset: self.geometry.chunk_table_offset(plan.slot),
            header: header.encode(&self.region),
            header_offset: self.geometry.header_offset(plan.slot),
            flush: flush_ranges(
                &self.geometry,
                plan.slot,
                table.len() as u64,
                plan.payload_bytes,
            ),
            publish,
            flush_publish: publish.flush_range(),
        })
    }

    /// The chain has completed: the set is committed. Gives what the receipt says.
    ///
    /// # Errors
    /// [`NotFinished`] where no commit was handed out.
    pub fn committed(&mut self) -> Result<CommittedSet, NotFinished> {
        let State::Committing { plan } = self.state else {
            return Err(NotFinished);
        };
        self.newest = plan.number;
        self.state = State::Idle;
        Ok(CommittedSet {
            number: plan.number,
            epoch: self.epoch,
            payload_bytes: plan.payload_bytes,
        })
    }

    /// Gives up the set in progress. The last committed set was never touched. Before `finish` its
    /// number is used again; after it nobody knows whether the set was published, and only a
    /// recovery can tell: see [`Abandoned`].
    pub fn abandon(&mut self) -> Abandoned {
        match self.state {
            State::Idle => Abandoned::Nothing,
            State::Writing { .. } => {
                self.state = State::Idle;
                Abandoned::Clean
            }
            State::Committing { plan } => {
                self.state = State::InDoubt {
                    number: plan.number,
                };
                Abandoned::InDoubt
            }
            State::InDoubt { .. } => Abandoned::InDoubt,
        }
    }

    /// Gives up a set whose commit was handed out, but of whose chain nothing from the publishing on
    /// was posted. Its number is used again: whoever makes several such sets go together must tell
    /// them apart by more than that.
    ///
    /// # Errors
    /// [`NotFinished`] where no commit was handed out.
    pub fn abandon_unpublished(&mut self) -> Result<(), NotFinished> {
        let State::Committing { .. } = self.state else {
            return Err(NotFinished);
        };
        self.state = State::Idle;
        Ok(())
    }

    /// The number of the newest set that this writer knows to be committed, 0 for none.
    #[must_use]
    pub const fn newest(&self) -> SetNumber {
        self.newest
    }

    /// The epoch that this writer writes in.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The division of the region.
    #[must_use]
    pub const fn geometry(&self) -> &SetGeometry {
        &self.geometry
    }
}
