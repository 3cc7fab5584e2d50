//! One member of a log over several units: what it knows, and its bytes, read through a window over the log.

use pmu_core::spread::{Newest, Stand, StandError, TermOpening};
use pmu_fabric::Chain;
use pmu_format::{
    CursorPair, Epoch, LOG_CURSOR_OFFSET, LogGeometry, LogPosition, Mode, PAGE_BYTES,
    PAGE_PAIR_BYTES, RegionId, SpreadId,
};

use crate::error::{ClientError, Result};
use crate::region::{Parts, Region};
use crate::spread::{MissingUnit, TermDesk};
use crate::staging::Registered;

/// Bytes of the log read at a time.
pub(super) const READ_BYTES: u64 = 1 << 20;
/// How often the pages are read before a member counts as damaged: each time a primary changed its term meanwhile.
const LOOKS_MAX: u32 = 8;

/// A member that can be used, or why not.
pub(super) type Seat = std::result::Result<LogSeat, MissingUnit>;

/// See the module.
pub(super) struct LogSeat {
    pub(super) region: Region,
    pub(super) geometry: LogGeometry,
    /// What it knew when it was looked at last.
    pub(super) stand: Stand,
    /// The last look, whether it was believed or not, and its term word.
    looked: Option<(u64, std::result::Result<Stand, StandError>)>,
    pub(super) cursor: CursorPair,
    /// Up to here its own log counts.
    pub(super) own_to: u64,
    /// Up to here it may hold records: also those that it has prepared and not published. Each share names its term, and in one term a position
    /// is written once: what is there and whole is right.
    pub(super) valid_to: u64,
    /// Up to here it is not read: its log was found damaged, or not to be there.
    pub(super) doubted_to: u64,
    desk: TermDesk,
    pages: Registered,
    memory: Registered,
    chain: Chain,
    /// Bytes of the log from `begin` on.
    window: Vec<u8>,
    begin: u64,
}

impl std::fmt::Debug for LogSeat {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LogSeat")
            .field("region", &self.region)
            .field("stand", &self.stand)
            .finish_non_exhaustive()
    }
}

impl LogSeat {
    pub(super) fn open(parts: Parts, id: SpreadId) -> Result<Self> {
        let mut region = Region::new(parts)?;
        let geometry = crate::log::geometry_of(&region.info)?;
        let mut desk = TermDesk::new(&mut region)?;
        let stand = desk.stand(&mut region, id)?;
        let pages = Registered::allocate(&mut region.link, 2 * PAGE_BYTES as usize)?;
        // No more than there is to read.
        let read_bytes = READ_BYTES.min(geometry.ring_bytes());
        let memory = Registered::allocate(&mut region.link, read_bytes as usize)?;
        let mut seat = Self {
            region,
            geometry,
            looked: None,
            stand,
            cursor: CursorPair::new(LogPosition(0)),
            own_to: 0,
            valid_to: 0,
            doubted_to: 0,
            desk,
            pages,
            memory,
            chain: Chain::with_capacity(4),
            window: Vec::new(),
            begin: 0,
        };
        let posted = seat.post_look()?;
        seat.take_look(posted, id)?;
        Ok(seat)
    }

    /// The region that was opened, and the epoch of the grant.
    pub(super) fn grant(&self) -> (RegionId, Epoch) {
        (self.region.info.id, self.region.epoch)
    }

    /// Asks for the publish page, and for the cursor.
    pub(super) fn post_look(&mut self) -> Result<u64> {
        let page = PAGE_BYTES as usize;
        self.chain.clear();
        let address = self.region.address(Stand::request().offset.get());
        self.chain.read(address, self.pages.slice(0, page));
        let pair = self.pages.slice(page, PAGE_PAIR_BYTES as usize);
        let address = self.region.address(LOG_CURSOR_OFFSET.get());
        self.chain.read(address, pair);
        self.post()
    }

    /// Takes what [`Self::post_look`] asked for, and looks again where that says something new: a look is torn, and a term could be taken
    /// for that of an end which a later one has published.
    pub(super) fn take_look(&mut self, mut posted: u64, id: SpreadId) -> Result<()> {
        let mut page = [0; PAGE_BYTES as usize];
        let mut before_last = None;
        for _ in 0..LOOKS_MAX {
            self.wait(posted)?;
            self.pages.get(0, &mut page)?;
            let now = (
                Stand::term_word(&page),
                Stand::read(&page, id, Mode::Append),
            );
            let last = self.looked.replace(now.clone());
            // Two that say the same say what was so between them; and between two looks with one term there was no other.
            if let Some((term, stand)) = last {
                if (term, &stand) == (now.0, &now.1) || before_last == Some(now.0) {
                    self.stand = stand.map_err(|error| self.damaged(error.to_string()))?;
                    return self.take_cursor();
                }
                before_last = Some(term);
            }
            posted = self.post_look()?;
        }
        Err(self.damaged("its term changes all the time".to_owned()))
    }

    /// Asks for the cursor alone.
    pub(super) fn post_cursor(&mut self) -> Result<u64> {
        let pair = (PAGE_BYTES as usize, PAGE_PAIR_BYTES as usize);
        let address = self.region.address(LOG_CURSOR_OFFSET.get());
        self.chain.clear();
        self.chain.read(address, self.pages.slice(pair.0, pair.1));
        self.post()
    }

    /// Takes the cursor that was asked for and has come.
    pub(super) fn take_cursor(&mut self) -> Result<()> {
        let mut pair = [0; PAGE_PAIR_BYTES as usize];
        self.pages.get(PAGE_BYTES as usize, &mut pair)?;
        self.cursor = CursorPair::decode(&pair).map_err(|error| self.damaged(error.to_string()))?;
        Ok(())
    }

    pub(super) fn propose(&mut self, opening: &TermOpening) -> Result<()> {
        self.desk.propose(&mut self.region, opening)
    }

    fn post(&mut self) -> Result<u64> {
        let posted = self.region.link.post(&self.chain);
        posted
            .map(|posted| posted.last)
            .map_err(|error| self.region.error(error))
    }

    pub(super) fn wait(&mut self, posted: u64) -> Result<()> {
        let done = self.region.link.wait_for(posted);
        done.map_err(|error| self.region.error(error))
    }

    /// Carries out a chain of words and flushes.
    pub(super) fn post_chain(&mut self, fill: impl FnOnce(&mut Chain, u64)) -> Result<u64> {
        self.chain.clear();
        fill(&mut self.chain, self.region.info.address.get());
        self.post()
    }

    pub(super) fn damaged(&self, what: String) -> ClientError {
        ClientError::Damaged {
            region: self.region.name(),
            what,
        }
    }

    /// The bytes of a range of the log, if the window holds them.
    pub(super) fn bytes(&self, position: u64, length: u64) -> Option<&[u8]> {
        let begin = usize::try_from(position.checked_sub(self.begin)?).ok()?;
        let end = begin.checked_add(usize::try_from(length).ok()?)?;
        self.window.get(begin..end)
    }

    /// How far its log counts, now that it is known what is committed.
    pub(super) fn judge(&mut self, newest: &Newest) {
        // What lay behind the end of its own log may have been written since.
        let kept = self.own_to.saturating_sub(self.begin);
        self.window
            .truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        self.doubted_to = 0;
        let (term, published) = (self.stand.term(), self.stand.published);
        self.own_to = newest.valid_to(term, published);
        // What it has prepared in its term stands up to where the next one began, if it is there.
        self.valid_to = newest.valid_to(term, u64::MAX);
    }

    /// It has everything up to `end`.
    pub(super) fn is_up(&mut self, end: u64) {
        (self.own_to, self.valid_to, self.doubted_to) = (end, end, 0);
        self.forget();
    }

    /// What the window holds may have been overwritten.
    pub(super) fn forget(&mut self) {
        self.window.clear();
        self.begin = 0;
    }

    /// Gets ready to hold the log from `position` on; what is there of it stays.
    pub(super) fn move_to(&mut self, position: u64) {
        if (self.begin..=self.end()).contains(&position) {
            self.window.drain(..(position - self.begin) as usize);
        } else {
            self.window.clear();
        }
        self.begin = position;
    }

    /// Up to where the window reaches.
    pub(super) fn end(&self) -> u64 {
        self.begin + self.window.len() as u64
    }

    /// Asks for what follows in the window, up to `end`, [`READ_BYTES`] at most.
    pub(super) fn post_read(&mut self, end: u64) -> Result<(u64, usize)> {
        let from = self.end();
        let most = READ_BYTES.min(self.geometry.ring_bytes());
        let length = end.saturating_sub(from).min(most);
        let mut done = 0;
        self.chain.clear();
        for piece in self.geometry.pieces(LogPosition(from), length).iter() {
            let address = self.region.address(piece.offset.get());
            let part = piece.length_bytes as usize;
            self.chain.read(address, self.memory.slice(done, part));
            done += part;
        }
        Ok((self.post()?, done))
    }

    /// Takes what [`Self::post_read`] asked for and has come.
    pub(super) fn take_read(&mut self, length: usize) -> Result<()> {
        let from = self.window.len();
        if self.window.try_reserve(length).is_err() {
            let text = format!("no memory for {length} bytes of a record");
            return Err(ClientError::Invalid(text));
        }
        self.window.resize(from + length, 0);
        self.memory.get(0, &mut self.window[from..])
    }
}
