//! What one member knows of terms and of what is committed, and how it takes a new term.

use pmu_core::WordWrite;
use pmu_core::spread::{Stand, StandError, TermOpening};
use pmu_fabric::Chain;
use pmu_format::{PAGE_BYTES, SpreadId, TERM_RECORD_BYTES};

use crate::error::{ClientError, Result};
use crate::region::Region;
use crate::staging::Registered;

/// How often the page is read before a member counts as damaged: each time a primary changed it meanwhile.
const LOOKS_MAX: u32 = 8;

/// A page of registered memory for it.
#[derive(Debug)]
pub(crate) struct TermDesk {
    page: Registered,
    chain: Chain,
}

impl TermDesk {
    pub(crate) fn new(region: &mut Region) -> Result<Self> {
        Ok(Self {
            page: Registered::allocate(&mut region.link, PAGE_BYTES as usize)?,
            chain: Chain::with_capacity(4),
        })
    }

    /// What the member knows.
    pub(crate) fn stand(&mut self, region: &mut Region, id: SpreadId) -> Result<Stand> {
        let mode = region.info.mode;
        self.look(region, |page| Stand::read(page, id, mode))
    }

    /// The same, and all of it durable: what was only visible, with a primary that died before its flush, could be gone again after a loss
    /// of power.
    pub(crate) fn durable_stand(&mut self, region: &mut Region, id: SpreadId) -> Result<Stand> {
        let stand = self.stand(region, id)?;
        #[cfg(feature = "planted-bugs")]
        if pmu_format::planted::is_planted(pmu_format::planted::Bug::TrustVisible) {
            return Ok(stand);
        }
        self.flush_page(region)?;
        Ok(stand)
    }

    fn flush_page(&mut self, region: &mut Region) -> Result<()> {
        self.chain.clear();
        let page = Stand::request();
        self.chain
            .flush(region.address(page.offset.get()), page.length_bytes);
        self.carry_out(region)
    }

    /// The same of a member that is to be given what it lacks: its record may be damaged.
    pub(crate) fn stand_to_fill(&mut self, region: &mut Region, id: SpreadId) -> Result<Stand> {
        let mode = region.info.mode;
        self.look(region, |page| Stand::read_to_fill(page, id, mode))
    }

    fn look(
        &mut self,
        region: &mut Region,
        read: impl Fn(&[u8]) -> std::result::Result<Stand, StandError>,
    ) -> Result<Stand> {
        let mut page = [0; PAGE_BYTES as usize];
        // The last look, and the term word of the one before it.
        let mut last: Option<(u64, std::result::Result<Stand, StandError>)> = None;
        let mut before_last = None;
        for _ in 0..LOOKS_MAX {
            self.read(region, &mut page)?;
            let (term, stand) = (Stand::term_word(&page), read(&page));
            if let Some((last_term, last_stand)) = last.take() {
                // A look is torn. Two that say the same say what was so between them; and between two looks with one term there was no other.
                if (last_term == term && last_stand == stand) || before_last == Some(term) {
                    return last_stand.map_err(|error| damaged(region, error.to_string()));
                }
                before_last = Some(last_term);
            }
            last = Some((term, stand));
        }
        Err(damaged(region, "its term changes all the time".to_owned()))
    }

    fn read(&mut self, region: &mut Region, page: &mut [u8]) -> Result<()> {
        self.chain.clear();
        let address = region.address(Stand::request().offset.get());
        self.chain.read(address, self.page.slice(0, page.len()));
        self.carry_out(region)?;
        self.page.get(0, page)
    }

    /// Makes the proposal durable. It takes the place of the record before the one that stands: the term word that names that one is made
    /// durable first, as its primary may have died before it flushed it, and a loss of power would bring the term before back, without a record.
    pub(crate) fn propose(&mut self, region: &mut Region, opening: &TermOpening) -> Result<()> {
        self.flush_page(region)?;
        self.page.put(0, &opening.record)?;
        self.chain.clear();
        let address = region.address(opening.record_offset.get());
        self.chain
            .write(address, self.page.slice(0, TERM_RECORD_BYTES));
        let flush = opening.flush_record;
        self.chain
            .flush(region.address(flush.offset.get()), flush.length_bytes);
        self.carry_out(region)
    }

    /// Takes the proposed term, durably. Enough members have the proposal.
    pub(crate) fn establish(&mut self, region: &mut Region, opening: &TermOpening) -> Result<()> {
        self.chain.clear();
        for word in opening.lowered.iter().chain([&opening.term]) {
            self.add_word(region, word);
        }
        self.carry_out(region)
    }

    /// Writes one word, durably.
    pub(crate) fn write_word(&mut self, region: &mut Region, word: &WordWrite) -> Result<()> {
        self.chain.clear();
        self.add_word(region, word);
        self.carry_out(region)
    }

    fn add_word(&mut self, region: &Region, word: &WordWrite) {
        self.chain
            .atomic_write(region.address(word.offset.get()), word.value);
        let range = word.flush_range();
        self.chain
            .flush(region.address(range.offset.get()), range.length_bytes);
    }

    fn carry_out(&mut self, region: &mut Region) -> Result<()> {
        let posted = region.link.post(&self.chain);
        let posted = posted.map_err(|error| region.error(error))?;
        let done = region.link.wait_for(posted.last);
        done.map_err(|error| region.error(error))
    }
}

fn damaged(region: &Region, what: String) -> ClientError {
    ClientError::Damaged {
        region: region.name(),
        what,
    }
}
