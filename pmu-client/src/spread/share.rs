//! One member's share of a set, read chunk by chunk in rising order, a few ahead; each chunk is checked before it is used.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use pmu_core::commit::{Finding, FoundSet, Goal, SetRecovery, SetView};
use pmu_core::spread::Stand;
use pmu_format::{CHUNK_BYTES, FormatError, SetGeometry, SetNumber, ShareTrailer, SpreadId};

use crate::error::{ClientError, Result};
use crate::region::{Parts, Region};
use crate::sets::fetch::{Fetcher, Posted};
use crate::sets::geometry_of;
use crate::spread::{TRAILER_BYTES, TermDesk};

/// The longest range that can be waited for: with the chunks around it, it fits the least staging memory.
pub(super) const PIECE_BYTES_MAX: u64 = 1 << 20;

/// A chunk that is under way.
#[derive(Debug, Clone, Copy)]
struct Asked {
    index: u32,
    read: Posted,
}

/// See the module.
pub(super) struct ShareReader {
    region: Region,
    geometry: SetGeometry,
    fetcher: Fetcher,
    desk: TermDesk,
    /// What it said when it was asked last.
    stand: Option<Stand>,
    view: Option<SetView>,
    /// Whether it holds the set that was asked for last can't be told: a share lies there, and not whole.
    is_unclear: bool,
    asked: VecDeque<Asked>,
    /// The last chunk that was needed in part, checked: its index, and its bytes.
    kept: Option<u32>,
    chunk: Vec<u8>,
}

/// How much of a range of the share is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    Yes,
    /// No byte has come for so long.
    NotFor(Duration),
}

impl ShareReader {
    pub(super) fn open(parts: Parts) -> Result<Self> {
        let mut region = Region::new(parts)?;
        let geometry = geometry_of(&region.info)?;
        Ok(Self {
            fetcher: Fetcher::new(&mut region)?,
            desk: TermDesk::new(&mut region)?,
            stand: None,
            geometry,
            region,
            view: None,
            is_unclear: false,
            asked: VecDeque::new(),
            kept: None,
            chunk: Vec::new(),
        })
    }

    /// Bytes that were read of this member.
    pub(super) fn bytes_read(&self) -> u64 {
        self.region.link.counters().bytes_read
    }

    pub(super) fn stand(&mut self, id: SpreadId) -> Result<Stand> {
        let stand = self.desk.stand(&mut self.region, id)?;
        self.stand = Some(stand.clone());
        Ok(stand)
    }

    /// As [`Self::stand`], durable.
    pub(super) fn durable_stand(&mut self, id: SpreadId) -> Result<Stand> {
        let stand = self.desk.durable_stand(&mut self.region, id)?;
        self.stand = Some(stand.clone());
        Ok(stand)
    }

    /// Whether the member may have no share of this set, or a part of one, though its medium is good.
    pub(super) fn may_lack(&self, number: u64) -> bool {
        self.stand
            .as_ref()
            .is_some_and(|stand| stand.may_lack(number))
    }

    /// The sets that this member holds shares of.
    pub(super) fn list(&mut self) -> Result<Vec<FoundSet>> {
        let mut recovery = self.recovery(Goal::List);
        self.fetcher.look(&mut self.region, &mut recovery)?;
        Ok(recovery.sets().to_vec())
    }

    /// How many chunks the selected share has, its trailer included.
    pub(super) fn chunk_count(&self) -> u32 {
        let view = self.view.as_ref();
        let set = view.map(SetView::set);
        set.and_then(|set| pmu_format::chunk_count(set.payload_bytes))
            .unwrap_or(0)
    }

    /// Reads a shard of the selected share, and waits for it as long as there is progress.
    pub(super) fn read_all(&mut self, offset: u64, length: u64, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize(length as usize, 0);
        let mut done = 0;
        while done < length {
            let now = (length - done).min(PIECE_BYTES_MAX);
            let range = offset + done..offset + done + now;
            self.wait_ready(range)?;
            self.take(
                offset + done,
                &mut bytes[done as usize..(done + now) as usize],
            )?;
            done += now;
        }
        Ok(())
    }

    /// What is wrong with the chunks of a range, one after the other.
    pub(super) fn damaged_chunks(&mut self, offset: u64, length: u64) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut bytes = Vec::new();
        for index in Self::chunks_of(&(offset..offset + length)) {
            match self.check_chunk(index, &mut bytes) {
                Ok(_) => {}
                Err(ClientError::Damaged { what, .. }) => found.push(what),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn wait_ready(&mut self, range: Range<u64>) -> Result<()> {
        match self.ready(range, self.region.timeouts.stall)? {
            Ready::Yes => Ok(()),
            Ready::NotFor(waited) => Err(ClientError::TimedOut {
                what: "reading a share",
                waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Reads one chunk of the selected share, checks it, and gives its length. Chunks are read in rising order.
    pub(super) fn check_chunk(&mut self, index: u32, bytes: &mut Vec<u8>) -> Result<u64> {
        let view = self.view.as_ref();
        let Some((range, _)) = view.and_then(|view| view.chunk(index)) else {
            return Err(self.damaged("its share is cut short".to_owned()));
        };
        let ahead = range.end..range.end.saturating_add(PIECE_BYTES_MAX);
        let end = view
            .map(|view| view.set().payload_bytes)
            .unwrap_or(range.end);
        let length = range.end - range.start;
        bytes.resize(length as usize, 0);
        self.wait_ready(range.clone())?;
        self.ask(ahead.start..ahead.end.min(end))?;
        self.take(range.start, bytes)?;
        Ok(length)
    }

    /// The longest time without any progress.
    pub(super) fn stall(&self) -> Duration {
        self.region.timeouts.stall
    }

    fn recovery(&self, goal: Goal) -> SetRecovery {
        SetRecovery::new(self.geometry, self.region.info.id, goal)
    }

    /// Whether the member that said last that it doesn't hold a set may yet have prepared its last try.
    pub(super) const fn is_unclear(&self) -> bool {
        self.is_unclear
    }

    /// Gets ready to read the share of a set, and gives what stands behind it; `None` if this member doesn't hold it.
    pub(super) fn select(&mut self, number: SetNumber) -> Result<Option<(ShareTrailer, FoundSet)>> {
        self.forget();
        self.view = None;
        self.is_unclear = false;
        let mut recovery = self.recovery(Goal::Number(number));
        self.fetcher.look(&mut self.region, &mut recovery)?;
        // A member that missed sets has other findings too: its publish word is behind.
        let mut findings = recovery.findings().iter();
        let damage = findings
            .find(|finding| finding.is_of(number) && !matches!(finding, Finding::SlotEmpty { .. }))
            .map(ToString::to_string);
        let is_published = recovery.published() >= number;
        let Some(view) = recovery.into_view() else {
            return damage.map_or(Ok(None), |what| Err(self.damaged(what)));
        };
        let set = view.set().clone();
        self.view = Some(view);
        match self.trailer(&set) {
            Ok(trailer) => Ok(Some((trailer, set))),
            // The slot of an earlier try that was never published, and a later try has begun to write into it: nothing there counts. It
            // looks the same where the medium has damaged the last try.
            Err(ClientError::Damaged { .. }) if !is_published => {
                self.forget();
                self.view = None;
                self.is_unclear = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What stands behind the selected share.
    fn trailer(&mut self, set: &FoundSet) -> Result<ShareTrailer> {
        let share_bytes = set.payload_bytes.checked_sub(TRAILER_BYTES);
        let share_bytes =
            share_bytes.ok_or_else(|| self.damaged("its set is no share".to_owned()))?;
        let mut bytes = [0; TRAILER_BYTES as usize];
        self.read(share_bytes, &mut bytes)?;
        let trailer = ShareTrailer::decode(&bytes);
        trailer.map_err(|error| self.damaged(error.to_string()))
    }

    fn damaged(&self, what: String) -> ClientError {
        ClientError::Damaged {
            region: self.region.name(),
            what,
        }
    }

    /// Reads a piece of the share, and waits for it.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let range = offset..offset + bytes.len() as u64;
        while let Ready::NotFor(_) = self.ready(range.clone(), self.region.timeouts.stall)? {}
        self.take(offset, bytes)
    }

    fn chunks_of(range: &Range<u64>) -> Range<u32> {
        if range.is_empty() {
            return 0..0;
        }
        let index = |byte: u64| u32::try_from(byte / CHUNK_BYTES).unwrap_or(u32::MAX);
        index(range.start)..index(range.end - 1).saturating_add(1)
    }

    /// Asks for a range of the share, as far as there is room and it was not asked for yet; false if there was none. Ranges rise;
    /// one that lies before what was asked for makes it begin anew.
    pub(super) fn ask(&mut self, range: Range<u64>) -> Result<bool> {
        let chunks = Self::chunks_of(&range);
        let known = |asked: &VecDeque<Asked>, index| asked.iter().any(|asked| asked.index == index);
        for index in chunks {
            if self.kept == Some(index) || known(&self.asked, index) {
                continue;
            }
            if self.asked.back().is_some_and(|last| last.index > index) {
                self.forget();
            }
            let chunk = self.view.as_ref().and_then(|view| view.chunk(index));
            let (_, request) =
                chunk.ok_or_else(|| self.damaged("its share is cut short".to_owned()))?;
            match self.fetcher.post(&mut self.region, request)? {
                Some(read) => self.asked.push_back(Asked { index, read }),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether a range of the share ([`PIECE_BYTES_MAX`] at most) is there. Waits for it until nothing has come for `patience`.
    pub(super) fn ready(&mut self, range: Range<u64>, patience: Duration) -> Result<Ready> {
        let chunks = Self::chunks_of(&range);
        let Some(last) = chunks
            .clone()
            .last()
            .filter(|_| self.kept != Some(chunks.start))
        else {
            return Ok(Ready::Yes);
        };
        loop {
            let before = self.region.link.succeeded();
            self.drop_done(chunks.start);
            let all = self.ask(range.clone())?;
            let asked = self.asked.iter().rev().find(|asked| asked.index <= last);
            let serial = asked.map_or(self.region.link.posted(), |asked| asked.read.serial);
            if self.wait(serial, patience)? {
                if all {
                    return Ok(Ready::Yes);
                }
                // The room was held by what nobody wants any more.
                if self.asked.is_empty() {
                    self.forget();
                }
            } else if self.region.link.succeeded() == before {
                return Ok(Ready::NotFor(patience));
            }
        }
    }

    /// Frees the room of chunks before `first` that have come.
    fn drop_done(&mut self, first: u32) {
        while let Some(asked) = self.asked.front().copied()
            && asked.index < first
            && asked.read.serial <= self.region.link.succeeded()
        {
            self.asked.pop_front();
            self.fetcher.release(asked.read);
        }
    }

    fn wait(&mut self, serial: u64, patience: Duration) -> Result<bool> {
        let done = self.region.link.wait_at_most(serial, patience);
        done.map_err(|error| self.region.error(error))
    }

    /// Copies a range of the share out, checked. It is there, or it is waited for.
    ///
    /// # Errors
    /// [`ClientError::Damaged`]: a chunk is not what was written, or was overwritten meanwhile.
    pub(super) fn take(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let range = offset..offset + bytes.len() as u64;
        for index in Self::chunks_of(&range) {
            let begin = u64::from(index) * CHUNK_BYTES;
            let view = self.view.as_ref();
            let Some((chunk, _)) = view.and_then(|view| view.chunk(index)) else {
                return Err(self.damaged("its share is cut short".to_owned()));
            };
            let wanted = chunk.start.max(range.start)..chunk.end.min(range.end);
            let place =
                &mut bytes[(wanted.start - offset) as usize..(wanted.end - offset) as usize];
            if self.kept != Some(index) && wanted == chunk {
                let computed = self.fetch(index, place)?;
                self.check(index, computed)?;
                continue;
            }
            if self.kept != Some(index) {
                let mut held = std::mem::take(&mut self.chunk);
                held.resize((chunk.end - chunk.start) as usize, 0);
                let fetched = self.fetch(index, &mut held);
                self.chunk = held;
                self.kept = None;
                self.check(index, fetched?)?;
                self.kept = Some(index);
            }
            let inside = (wanted.start - begin) as usize..(wanted.end - begin) as usize;
            place.copy_from_slice(&self.chunk[inside]);
        }
        Ok(())
    }

    fn check(&self, index: u32, computed: u64) -> Result<()> {
        let Some(view) = &self.view else {
            return Err(self.damaged("no share was chosen".to_owned()));
        };
        view.verify(index, computed).map_err(|error: FormatError| {
            let number = view.set().number;
            self.damaged(format!("set {number}, chunk {index} of its share: {error}"))
        })
    }

    /// The bytes of one chunk, and their checksum; chunks before it are given up.
    fn fetch(&mut self, index: u32, bytes: &mut [u8]) -> Result<u64> {
        if !self.asked.iter().any(|asked| asked.index == index) {
            let begin = u64::from(index) * CHUNK_BYTES;
            self.ask(begin..begin + bytes.len() as u64)?;
        }
        while let Some(asked) = self.asked.pop_front() {
            if asked.index == index {
                let done = self.region.link.wait_for(asked.read.serial);
                done.map_err(|error| self.region.error(error))?;
                return self.fetcher.take_out(asked.read, bytes);
            }
        }
        Err(self.damaged(format!("chunk {index} of its share can't be read")))
    }

    /// What is under way is of no use.
    pub(super) fn forget(&mut self) {
        self.asked.clear();
        self.kept = None;
        self.fetcher.forget(&self.region);
    }
}
