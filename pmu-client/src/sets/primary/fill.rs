//! A member of a spread region that is given shares which others have: of sets that were committed long ago, under their own numbers.

use pmu_core::commit::SetWriter;
use pmu_core::spread::{Newest, Stand};
use pmu_format::{Label, RegionPiece, SetNumber, SpreadId};

use super::SetPrimary;
use super::member::OpenedMember;
use crate::error::{ClientError, Result};
use crate::spread::TermDesk;

/// A member that is being filled. Nothing that it is given counts before [`Self::take_part`]: it publishes nothing, so that a half-filled
/// one has no vote (or, where it had one before, still says what it said).
pub(crate) struct FilledMember {
    primary: SetPrimary,
    desk: TermDesk,
    id: SpreadId,
}

impl OpenedMember {
    /// Gets ready to write any set.
    pub(crate) fn fill(self, id: SpreadId) -> Result<FilledMember> {
        let opening = pmu_core::commit::SetOpening {
            flush: [RegionPiece::default(); 2],
            publish: None,
            flush_publish: RegionPiece::default(),
            newest: SetNumber(0),
        };
        let Self {
            region,
            geometry,
            desk,
            ..
        } = self;
        let primary = SetPrimary::start(region, geometry, &opening)?;
        Ok(FilledMember { primary, desk, id })
    }
}

impl FilledMember {
    /// Begins the share of a set.
    pub(crate) fn begin(&mut self, number: SetNumber, bytes: u64, label: Label) -> Result<()> {
        let behind = number
            .get()
            .checked_sub(1)
            .ok_or_else(|| ClientError::Invalid("there is no set 0".into()))?;
        let geometry = *self.primary.writer.geometry();
        let region = &self.primary.region;
        let writer = SetWriter::new(geometry, region.info.id, region.epoch, SetNumber(behind));
        self.primary.writer = writer;
        self.primary.begin_share(Some(bytes), label)
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.primary.feed_share(bytes)
    }

    /// Ends the share: it is durable when this returns, with the time at which the set was committed.
    pub(crate) fn end(&mut self, committed_ns: u64) -> Result<()> {
        let share = self.primary.prepare_share_of(committed_ns)?;
        self.primary.wait_prepared(&share)?;
        self.primary.drop_share();
        Ok(())
    }

    /// Gives the share in progress up.
    pub(crate) fn give_up(&mut self) {
        self.primary.drop_share();
    }

    /// The epoch in which it is written.
    pub(crate) fn epoch(&self) -> pmu_format::Epoch {
        self.primary.epoch()
    }

    /// From now on it votes: it takes the term in force, and publishes the newest set that it holds. The term comes first: a member that has
    /// published something and knows of no term is taken for a damaged one.
    pub(crate) fn take_part(
        &mut self,
        generation: u64,
        newest: &Newest,
        held: SetNumber,
    ) -> Result<()> {
        let stand = self.stand()?;
        if newest.term().0 > 0 {
            let opening = stand.opening_filled(self.id, generation, newest, held);
            self.desk.propose(&mut self.primary.region, &opening)?;
            self.desk.establish(&mut self.primary.region, &opening)?;
            self.publish(held)?;
        } else if let Some(mended) = stand.mended() {
            self.desk.write_word(&mut self.primary.region, &mended)?;
        }
        if let Some(reserved) = newest.reservation() {
            let stand = self.stand()?;
            let opening = stand.opening_filled(self.id, generation, &reserved, held);
            self.desk.propose(&mut self.primary.region, &opening)?;
        }
        Ok(())
    }

    fn stand(&mut self) -> Result<Stand> {
        self.desk.stand_to_fill(&mut self.primary.region, self.id)
    }

    fn publish(&mut self, held: SetNumber) -> Result<()> {
        let stand = self.stand()?;
        if stand.published >= held.get() {
            return Ok(());
        }
        let word = stand.publish_word(held.get());
        self.desk.write_word(&mut self.primary.region, &word)
    }
}
