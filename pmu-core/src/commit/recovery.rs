//! Finds the set to recover, and proves that it is whole.

use core::ops::Range;

use pmu_format::{
    CHUNK_CHECKSUM_BYTES, FormatError, RegionId, RegionOffset, RegionPiece, SET_HEADER_BYTES,
    SetGeometry, SetHeader, SetNumber, SlotIndex, Structure, chunk_checksum_at, chunk_count,
    crc64_nvme,
};

use crate::commit::catalog::{Catalog, Finding, FoundSet, SetState};
use crate::commit::flush_ranges;
use crate::{FeedError, ReadRequest, WordWrite};

/// How often a recovery begins anew because a live writer overwrote what was read.
pub const RESTARTS_MAX: u32 = 8;

/// How much of a chunk table is read at a time.
const TABLE_READ_MAX_BYTES: u64 = 1024 * 1024;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The list of sets alone: headers are read, payloads are not.
    List,
    /// What an opening as primary must know: sets newer than the published one are read, and
    /// adopted where they are whole. The unit must have fenced the former writer.
    Opening,
    /// The newest set that is whole, newer than the published one or not; older ones only with a
    /// [`Finding::FellBack`]. The unit must have fenced the former writer.
    Newest,
    /// The published set; older ones only with a [`Finding::FellBack`]. For readers beside a live
    /// writer.
    Committed,
    /// This set and no other.
    Number(SetNumber),
}

/// A chunk of the candidate's payload that is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRead {
    /// Which chunk.
    pub index: u32,
    /// Which bytes of the payload it is.
    pub payload_range: Range<u64>,
    /// Where it is to be read from.
    pub request: ReadRequest,
    attempt: u32,
}

/// What a chunk's bytes led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkOutcome {
    /// The chunk is what was written; others are still to come.
    Taken,
    /// This was the last one: the candidate is whole, and recovered.
    Whole,
    /// The chunk is not what was written: this candidate is given up. Go on with
    /// [`SetRecovery::next_read`]; another candidate may come.
    Rejected,
}

/// What a new primary does before its first set, in the order of the fields, as one chain. When it
/// has completed, everything that the recovery found is durable and published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetOpening {
    /// First: FLUSH of the newest set, which may be visible without being durable; a range of
    /// length 0 is none.
    pub flush: [RegionPiece; 2],
    /// Second: ATOMIC WRITE of the newest set's number, where the word doesn't say it yet.
    pub publish: Option<WordWrite>,
    /// Third: FLUSH of the publish word.
    pub flush_publish: RegionPiece,
    /// What [`SetWriter::new`](crate::commit::SetWriter::new) takes.
    pub newest: SetNumber,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Publish {
        asked: bool,
    },
    Headers {
        asked: u32,
        fed: u32,
    },
    /// Something in the catalog looks wrong: has a live writer moved on meanwhile?
    CheckCatalog {
        asked: bool,
    },
    Table {
        asked_bytes: u64,
        fed_bytes: u64,
    },
    Payload {
        asked: u32,
        verified: u32,
    },
    /// The candidate looks wrong: has a live writer overwritten it meanwhile?
    CheckCandidate {
        asked: bool,
        chunk: Option<u32>,
        error: FormatError,
    },
    Done,
}

/// Lists the sets of a region and finds the one to recover.
///
/// Drive it so: while [`next_read`](Self::next_read) gives requests, read them (several at a time if
/// you like) and [`feed`](Self::feed) each. When it gives none, [`candidate`](Self::candidate) says
/// which payload is to be read: for each [`next_chunk`](Self::next_chunk), read it to where it
/// belongs in your own buffer and pass it through [`verify_chunk`](Self::verify_chunk). Where there
/// is neither a request nor a candidate, it [`is_done`](Self::is_done).
///
/// Nothing in the buffer may be believed before [`recovered`](Self::recovered) names the set.
/// Nothing is allocated after construction but findings.
#[derive(Debug)]
pub struct SetRecovery {
    geometry: SetGeometry,
    region: RegionId,
    goal: Goal,
    phase: Phase,
    catalog: Catalog,
    findings_before: usize,
    restarts: u32,
    attempt: u32,
    /// Which of the catalog's sets is being tried.
    trying: usize,
    table: Vec<u8>,
    seen: Vec<bool>,
    recovered: Option<SetNumber>,
}

impl SetRecovery {
    /// A recovery of `region`. Allocates the chunk table of a full payload.
    #[must_use]
    pub fn new(geometry: SetGeometry, region: RegionId, goal: Goal) -> Self {
        let chunks = chunk_count(geometry.capacity_bytes()).unwrap_or(u32::MAX) as usize;
        Self {
            geometry,
            region,
            goal,
            phase: Phase::Publish { asked: false },
            catalog: Catalog::new(&geometry),
            findings_before: 0,
            restarts: 0,
            attempt: 0,
            trying: 0,
            table: vec![0; chunks * CHUNK_CHECKSUM_BYTES as usize],
            seen: vec![false; chunks],
            recovered: None,
        }
    }

    /// The next range to read, `None` where nothing is to be asked for right now.
    pub fn next_read(&mut self) -> Option<ReadRequest> {
        match &mut self.phase {
            Phase::Publish { asked }
            | Phase::CheckCatalog { asked }
            | Phase::CheckCandidate { asked, .. } => {
                let first = !core::mem::replace(asked, true);
                first.then(|| word_request(&self.geometry))
            }
            Phase::Headers { asked, .. } => {
                let slot = SlotIndex(*asked);
                if slot.0 >= self.geometry.slot_count() {
                    return None;
                }
                *asked += 1;
                Some(header_request(&self.geometry, slot))
            }
            Phase::Table { asked_bytes, .. } => {
                let begin = *asked_bytes;
                let header = self.candidate_header()?;
                let request = table_request(&self.geometry, &header, begin)?;
                self.phase = match self.phase {
                    Phase::Table {
                        asked_bytes,
                        fed_bytes,
                    } => Phase::Table {
                        asked_bytes: asked_bytes + request.length_bytes,
                        fed_bytes,
                    },
                    ref other => other.clone(),
                };
                Some(request)
            }
            Phase::Payload { .. } | Phase::Done => None,
        }
    }

    /// Takes the bytes that were read for `request`.
    ///
    /// # Errors
    /// [`FeedError`]; the recovery is unchanged then.
    pub fn feed(&mut self, request: ReadRequest, bytes: &[u8]) -> Result<(), FeedError> {
        let (found_bytes, needed_bytes) = (bytes.len() as u64, request.length_bytes);
        if found_bytes != needed_bytes {
            return Err(FeedError::Length {
                found_bytes,
                needed_bytes,
            });
        }
        match self.phase.clone() {
            Phase::Publish { asked: true } => {
                self.catalog.word_read(word(bytes));
                self.phase = Phase::Headers { asked: 0, fed: 0 };
            }
            Phase::Headers { asked, fed } => {
                let slot = (0..asked)
                    .map(SlotIndex)
                    .find(|slot| header_request(&self.geometry, *slot) == request)
                    .ok_or(FeedError::Unexpected)?;
                self.catalog
                    .header_read(&self.geometry, &self.region, slot, bytes);
                self.phase = Phase::Headers {
                    asked,
                    fed: fed + 1,
                };
                if fed + 1 == self.geometry.slot_count() {
                    self.catalog_read();
                }
            }
            Phase::CheckCatalog { asked: true } => {
                if self.may_restart() && word(bytes) != self.catalog.word {
                    self.catalog.findings.truncate(self.findings_before);
                    self.restart();
                } else {
                    self.try_from(0);
                }
            }
            Phase::Table {
                asked_bytes,
                fed_bytes,
            } => {
                self.feed_table(request, bytes, asked_bytes, fed_bytes)?;
            }
            Phase::CheckCandidate {
                asked: true,
                chunk,
                error,
            } => {
                let published = SetNumber::of_publish_word(word(bytes));
                self.candidate_checked(published.unwrap_or_default(), chunk, error);
            }
            _ => return Err(FeedError::Unexpected),
        }
        Ok(())
    }

    /// The set whose payload is to be read now.
    #[must_use]
    pub fn candidate(&self) -> Option<&FoundSet> {
        match self.phase {
            Phase::Payload { .. } => self.catalog.sets.get(self.trying),
            _ => None,
        }
    }

    /// The next chunk of the candidate to read, `None` where all were asked for.
    pub fn next_chunk(&mut self) -> Option<ChunkRead> {
        let attempt = self.attempt;
        let (payload_bytes, slot) = self
            .candidate()
            .map(|candidate| (candidate.payload_bytes, candidate.slot))?;
        let Phase::Payload { asked, .. } = &mut self.phase else {
            return None;
        };
        let index = *asked;
        let payload_range = SetGeometry::chunk_range(payload_bytes, index)?;
        *asked += 1;
        let offset = self
            .geometry
            .payload_offset(slot)
            .checked_add(payload_range.start)?;
        let length_bytes = payload_range.end - payload_range.start;
        let request = ReadRequest {
            offset,
            length_bytes,
        };
        Some(ChunkRead {
            index,
            payload_range,
            request,
            attempt,
        })
    }

    /// Takes a chunk's bytes, wherever the caller has put them.
    ///
    /// # Errors
    /// [`FeedError`] for a chunk that nobody waits for, or of another length.
    pub fn verify_chunk(
        &mut self,
        chunk: &ChunkRead,
        bytes: &[u8],
    ) -> Result<ChunkOutcome, FeedError> {
        let (found_bytes, needed_bytes) = (bytes.len() as u64, chunk.request.length_bytes);
        if found_bytes != needed_bytes {
            return Err(FeedError::Length {
                found_bytes,
                needed_bytes,
            });
        }
        self.verify_checksum(chunk, crc64_nvme(bytes))
    }

    /// The same with the chunk's CRC-64/NVME, for a copy loop that computes it on the way.
    ///
    /// # Errors
    /// [`FeedError::Unexpected`] for a chunk that nobody waits for.
    pub fn verify_checksum(
        &mut self,
        chunk: &ChunkRead,
        computed: u64,
    ) -> Result<ChunkOutcome, FeedError> {
        let count = self
            .candidate()
            .and_then(|set| chunk_count(set.payload_bytes));
        let count = count.ok_or(FeedError::Unexpected)?;
        let Phase::Payload { asked, verified } = &mut self.phase else {
            return Err(FeedError::Unexpected);
        };
        let seen = self
            .seen
            .get_mut(chunk.index as usize)
            .ok_or(FeedError::Unexpected)?;
        if chunk.attempt != self.attempt || chunk.index >= *asked || *seen {
            return Err(FeedError::Unexpected);
        }
        let stored = chunk_checksum_at(&self.table, chunk.index).ok_or(FeedError::Unexpected)?;
        if computed != stored {
            let (structure, what) = (Structure::Chunk, "payload");
            let error = FormatError::Checksum {
                structure,
                what,
                computed,
                stored,
            };
            self.reject(Some(chunk.index), error);
            return Ok(ChunkOutcome::Rejected);
        }
        *seen = true;
        *verified += 1;
        if *verified < count {
            return Ok(ChunkOutcome::Taken);
        }
        self.accept();
        Ok(ChunkOutcome::Whole)
    }

    /// Whether there is nothing left to read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// The set that was read and proved whole, `None` before the end or where there is none.
    #[must_use]
    pub fn recovered(&self) -> Option<&FoundSet> {
        let number = self.recovered?;
        self.catalog.sets.iter().find(|set| set.number == number)
    }

    /// The number in the publish word, 0 for none, or where it is damaged ([`Finding::PublishDamaged`]).
    #[must_use]
    pub fn published(&self) -> SetNumber {
        self.catalog.published
    }

    /// All sets with a sound header, the newest first.
    #[must_use]
    pub fn sets(&self) -> &[FoundSet] {
        &self.catalog.sets
    }

    /// What was found wrong.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.catalog.findings
    }

    /// What a new primary does before its first set. `None` before the end, and for goals that
    /// don't look at sets newer than the published one.
    #[must_use]
    pub fn opening(&self) -> Option<SetOpening> {
        if !self.is_done() || !matches!(self.goal, Goal::Opening | Goal::Newest) {
            return None;
        }
        // What is being written was not whole, and its number is used again. A damaged set keeps
        // its number: it was published once.
        let newest = self
            .catalog
            .sets
            .iter()
            .find(|set| set.state != SetState::BeingWritten);
        let number = newest.map_or(self.catalog.published, |set| set.number);
        let offset = self.geometry.publish_offset();
        let publish = WordWrite {
            offset,
            value: number.publish_word(),
        };
        let flush = newest.map_or([RegionPiece::default(); 2], |set| {
            let chunks = u64::from(chunk_count(set.payload_bytes).unwrap_or(0));
            let table_bytes = chunks * CHUNK_CHECKSUM_BYTES;
            flush_ranges(&self.geometry, set.slot, table_bytes, set.payload_bytes)
        });
        Some(SetOpening {
            flush,
            publish: (publish.value != self.catalog.word).then_some(publish),
            flush_publish: publish.flush_range(),
            newest: number,
        })
    }

    /// The candidate, whose header and chunk table are sound, for reading its chunks in any order.
    #[must_use]
    pub fn into_view(mut self) -> Option<SetView> {
        let set = self.candidate()?.clone();
        let chunks = chunk_count(set.payload_bytes)? as usize;
        self.table.truncate(chunks * CHUNK_CHECKSUM_BYTES as usize);
        Some(SetView {
            payload_offset: self.geometry.payload_offset(set.slot),
            table: self.table,
            set,
        })
    }

    fn catalog_read(&mut self) {
        self.catalog.complete();
        let suspicious = self.catalog.findings.len() > self.findings_before;
        if suspicious {
            self.phase = Phase::CheckCatalog { asked: false };
        } else {
            self.try_from(0);
        }
    }

    fn may_restart(&self) -> bool {
        self.restarts < RESTARTS_MAX
    }

    fn restart(&mut self) {
        self.restarts += 1;
        self.catalog.restart();
        self.findings_before = self.catalog.findings.len();
        self.phase = Phase::Publish { asked: false };
    }

    /// Goes on with the next candidate from `index` in the catalog, or ends.
    fn try_from(&mut self, index: usize) {
        let published = self.catalog.published;
        let goal = self.goal;
        let wanted = |set: &FoundSet| match goal {
            Goal::List => false,
            Goal::Opening => set.number > published,
            Goal::Newest => true,
            Goal::Committed => set.number <= published,
            Goal::Number(number) => set.number == number,
        };
        let found = self.catalog.sets.iter().skip(index).position(wanted);
        let Some(found) = found else {
            self.phase = Phase::Done;
            return;
        };
        self.trying = index + found;
        self.attempt = self.attempt.wrapping_add(1);
        self.seen.fill(false);
        self.phase = Phase::Table {
            asked_bytes: 0,
            fed_bytes: 0,
        };
        if self
            .candidate_header()
            .is_some_and(|header| header.chunk_count() == 0)
        {
            self.table_read();
        }
    }

    fn candidate_header(&self) -> Option<SetHeader> {
        let set = self.catalog.sets.get(self.trying)?;
        *self.catalog.headers.get(set.slot.0 as usize)?
    }

    fn feed_table(
        &mut self,
        request: ReadRequest,
        bytes: &[u8],
        asked_bytes: u64,
        fed_bytes: u64,
    ) -> Result<(), FeedError> {
        let header = self.candidate_header().ok_or(FeedError::Unexpected)?;
        let slot = self.geometry.slot_of(header.number);
        let begin = request
            .offset
            .get()
            .checked_sub(self.geometry.chunk_table_offset(slot).get());
        let begin = begin
            .filter(|begin| *begin < asked_bytes)
            .ok_or(FeedError::Unexpected)?;
        let end = begin + bytes.len() as u64;
        let room = self.table.get_mut(begin as usize..end as usize);
        room.ok_or(FeedError::Unexpected)?.copy_from_slice(bytes);
        let fed_bytes = fed_bytes + bytes.len() as u64;
        self.phase = Phase::Table {
            asked_bytes,
            fed_bytes,
        };
        if fed_bytes == header.chunk_table_bytes() {
            self.table_read();
        }
        Ok(())
    }

    fn table_read(&mut self) {
        let Some(header) = self.candidate_header() else {
            return;
        };
        match header.verify_chunk_table(&self.table) {
            Ok(_) if header.chunk_count() == 0 => self.accept(),
            Ok(_) => {
                self.phase = Phase::Payload {
                    asked: 0,
                    verified: 0,
                }
            }
            Err(error) => self.reject(None, error),
        }
    }

    fn reject(&mut self, chunk: Option<u32>, error: FormatError) {
        self.phase = Phase::CheckCandidate {
            asked: false,
            chunk,
            error,
        };
    }

    /// The candidate is not whole, and the publish word says `published` now.
    fn candidate_checked(&mut self, published: SetNumber, chunk: Option<u32>, error: FormatError) {
        let Some(set) = self.catalog.sets.get(self.trying) else {
            return;
        };
        let (number, state) = (set.number, set.state.clone());
        // A writer begins with the slot of this set as soon as it has published so many others.
        let kept = u64::from(self.geometry.sets_kept());
        let moved_on = published > self.catalog.published;
        let overtaken = moved_on && published.get() >= number.get().saturating_add(kept);
        if overtaken {
            self.catalog.note(Finding::Overtaken { number });
            self.catalog.set_state(number, SetState::BeingOverwritten);
            if self.may_restart() && !matches!(self.goal, Goal::Number(_)) {
                self.restart();
                return;
            }
        } else if state == SetState::Committed {
            self.catalog.note(Finding::SetDamaged {
                number,
                chunk,
                error: error.clone(),
            });
            self.catalog.set_state(number, SetState::Damaged(error));
        }
        self.try_from(self.trying + 1);
    }

    fn accept(&mut self) {
        let Some(set) = self.catalog.sets.get_mut(self.trying) else {
            return;
        };
        let number = set.number;
        if set.state == SetState::BeingWritten {
            set.state = SetState::DurableUnacknowledged;
        }
        self.recovered = Some(number);
        self.phase = Phase::Done;
        let published = self.catalog.published;
        if number < published && matches!(self.goal, Goal::Newest | Goal::Committed) {
            self.catalog.note(Finding::FellBack {
                published,
                taken: number,
            });
        }
    }
}

/// A set whose header and chunk table are known and sound: its chunks may be read in any order.
#[derive(Clone, Debug)]
pub struct SetView {
    set: FoundSet,
    table: Vec<u8>,
    payload_offset: RegionOffset,
}

impl SetView {
    /// The set.
    #[must_use]
    pub const fn set(&self) -> &FoundSet {
        &self.set
    }

    /// Which bytes of the payload a chunk is, and where they are to be read from; `None` for a chunk that the set doesn't have.
    #[must_use]
    pub fn chunk(&self, index: u32) -> Option<(Range<u64>, ReadRequest)> {
        let range = SetGeometry::chunk_range(self.set.payload_bytes, index)?;
        let request = ReadRequest {
            offset: self.payload_offset.checked_add(range.start)?,
            length_bytes: range.end - range.start,
        };
        Some((range, request))
    }

    /// Whether bytes with this CRC-64/NVME are those of a chunk.
    ///
    /// # Errors
    /// [`FormatError::Checksum`].
    pub fn verify(&self, index: u32, computed: u64) -> Result<(), FormatError> {
        let stored = chunk_checksum_at(&self.table, index).unwrap_or(!computed);
        if computed == stored {
            return Ok(());
        }
        Err(FormatError::Checksum {
            structure: Structure::Chunk,
            what: "payload",
            computed,
            stored,
        })
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0_u8; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

fn word_request(geometry: &SetGeometry) -> ReadRequest {
    ReadRequest {
        offset: geometry.publish_offset(),
        length_bytes: 8,
    }
}

fn header_request(geometry: &SetGeometry, slot: SlotIndex) -> ReadRequest {
    let offset = geometry.header_offset(slot);
    ReadRequest {
        offset,
        length_bytes: SET_HEADER_BYTES as u64,
    }
}

fn table_request(geometry: &SetGeometry, header: &SetHeader, begin: u64) -> Option<ReadRequest> {
    let left_bytes = header
        .chunk_table_bytes()
        .checked_sub(begin)
        .filter(|left| *left > 0)?;
    let offset = geometry.chunk_table_offset(geometry.slot_of(header.number));
    let length_bytes = left_bytes.min(TABLE_READ_MAX_BYTES);
    Some(ReadRequest {
        offset: offset.checked_add(begin)?,
        length_bytes,
    })
}
