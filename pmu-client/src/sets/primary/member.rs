//! The same commit in two steps, for a member of a spread region: everything durable first, published when the others have it too.

use pmu_core::WordWrite;
use pmu_core::commit::SetOpening;
use pmu_core::spread::{Stand, TermOpening};
use pmu_format::{Epoch, Label, RegionId, RegionPiece, SetGeometry, SetNumber, SpreadId};

use super::{SetPrimary, flush, flushed_range, without};
use crate::error::{Attempt, ClientError, Result};
use crate::link::Posted;
use crate::region::{Parts, Region};
use crate::sets::geometry_of;
use crate::spread::TermDesk;

/// A member that was opened for writing, and was looked at.
pub(crate) struct OpenedMember {
    pub(super) region: Region,
    pub(super) geometry: SetGeometry,
    pub(super) desk: TermDesk,
    /// What it knows.
    pub(crate) stand: Stand,
}

impl OpenedMember {
    pub(crate) fn look(parts: Parts, id: SpreadId) -> Result<Self> {
        Self::look_by(parts, |desk, region| desk.stand(region, id))
    }

    /// The same of a member that is to be given what it lacks: its term record may be damaged.
    pub(crate) fn look_to_fill(parts: Parts, id: SpreadId) -> Result<Self> {
        Self::look_by(parts, |desk, region| desk.stand_to_fill(region, id))
    }

    fn look_by(
        parts: Parts,
        look: impl FnOnce(&mut TermDesk, &mut Region) -> Result<Stand>,
    ) -> Result<Self> {
        let mut region = Region::new(parts)?;
        let geometry = geometry_of(&region.info)?;
        let mut desk = TermDesk::new(&mut region)?;
        let stand = look(&mut desk, &mut region)?;
        Ok(Self {
            region,
            geometry,
            desk,
            stand,
        })
    }

    /// The region that was opened, and the epoch of the grant.
    pub(crate) fn grant(&self) -> (RegionId, Epoch) {
        (self.region.info.id, self.region.epoch)
    }

    /// Makes a term durable here, without anything counting by it.
    pub(crate) fn propose(&mut self, opening: &TermOpening) -> Result<()> {
        self.desk.propose(&mut self.region, opening)
    }

    /// Takes the term, and gets ready to write behind `newest`, whatever this member holds itself.
    pub(crate) fn start(mut self, opening: &TermOpening, newest: SetNumber) -> Result<SetPrimary> {
        self.desk.establish(&mut self.region, opening)?;
        let word = WordWrite {
            offset: self.geometry.publish_offset(),
            value: 0,
        };
        let opening = SetOpening {
            flush: [RegionPiece::default(); 2],
            publish: None,
            flush_publish: word.flush_range(),
            newest,
        };
        SetPrimary::start(self.region, self.geometry, &opening)
    }
}

/// A share whose last chain is posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PreparedShare {
    posted: Posted,
    publish: WordWrite,
    flush_publish: RegionPiece,
}

impl SetPrimary {
    /// The region that was opened, and the epoch of the grant.
    pub(crate) fn grant(&self) -> (RegionId, Epoch) {
        (self.region.info.id, self.region.epoch)
    }

    /// Asks whether this member is held still, by a read through its windows. No share is in progress.
    pub(crate) fn ask_held(&mut self) -> Result<Posted> {
        let address = self
            .region
            .address(self.writer.geometry().publish_offset().get());
        let word = self.metadata.slice(0, 8);
        let posted = self.outbox.post(&mut self.region.link, |chain| {
            chain.read(address, word);
        });
        posted.map_err(|error| self.region.error(error))
    }

    /// Waits for the answer: it was held when it was asked.
    pub(crate) fn wait_held(&mut self, asked: Posted) -> Result<()> {
        let done = self.region.link.wait_for(asked.last);
        done.map_err(|error| self.region.error(error))
    }

    /// Begins a share; without a length it may become as long as there is room.
    pub(crate) fn begin_share(&mut self, bytes: Option<u64>, label: Label) -> Result<()> {
        self.start_set(bytes, label)
    }

    pub(crate) fn feed_share(&mut self, bytes: &[u8]) -> Result<()> {
        self.feed_steps(bytes)
    }

    /// Posts what is left, table, header and flush. Nothing is published.
    pub(crate) fn prepare_share(&mut self) -> Result<PreparedShare> {
        self.prepare_share_of(self.region.date_ns())
    }

    /// The same for a set that was committed at another time.
    pub(super) fn prepare_share_of(&mut self, committed_ns: u64) -> Result<PreparedShare> {
        if self.set.open_ended {
            self.settle_length()?;
        }
        let plan = self.plan()?;
        if self.set.taken != plan.payload_bytes {
            return Err(ClientError::Invalid("the share is not complete".into()));
        }
        let base = self.region.info.address.get();
        let flushed = flushed_range(&plan, self.set.flushed);
        let commit = self
            .writer
            .finish(committed_ns)
            .map_err(|error| ClientError::Invalid(error.to_string()))?;
        self.metadata.put(0, &commit.header)?;
        let at = pmu_format::PAGE_BYTES as usize;
        self.metadata.put(at, commit.table)?;
        let (publish, flush_publish) = (commit.publish, commit.flush_publish);
        let (table_offset, header_offset) = (commit.table_offset, commit.header_offset);
        let table = self.metadata.slice(at, commit.table.len());
        let header = self.metadata.slice(0, commit.header.len());
        let ranges = commit
            .flush_ranges()
            .flat_map(move |range| without(range, flushed));
        let posted = self
            .outbox
            .post(&mut self.region.link, |chain| {
                chain.write(base + table_offset.get(), table);
                chain.write(base + header_offset.get(), header);
                flush(chain, base, ranges);
            })
            .map_err(|error| self.region.error(error))?;
        Ok(PreparedShare {
            posted,
            publish,
            flush_publish,
        })
    }

    /// Waits until the share is durable.
    pub(crate) fn wait_prepared(&mut self, share: &PreparedShare) -> Result<()> {
        self.region
            .link
            .wait_for(share.posted.last)
            .map_err(|error| self.region.error(error))
    }

    /// Posts the publishing. Every member that takes part must have waited before.
    pub(crate) fn publish_share(&mut self, share: &PreparedShare) -> Result<Posted> {
        let base = self.region.info.address.get();
        let (publish, range) = (share.publish, share.flush_publish);
        self.outbox
            .post(&mut self.region.link, |chain| {
                chain.atomic_write(base + publish.offset.get(), publish.value);
                flush(chain, base, std::iter::once(range));
            })
            .map_err(|error| self.region.error(error))
    }

    /// Waits until the publishing is durable.
    pub(crate) fn wait_published(&mut self, posted: Posted) -> Result<()> {
        let number = self.plan()?.number;
        if let Err(error) = self.region.link.wait_for(posted.last) {
            return Err(self.region.error_of(error, Attempt::Set(number)));
        }
        self.writer
            .committed()
            .map_err(|error| ClientError::Invalid(error.to_string()))?;
        self.set.plan = None;
        Ok(())
    }

    /// Gives up a share of which nothing was published: its number is used again.
    pub(crate) fn drop_share(&mut self) {
        if self.set.plan.take().is_some() {
            if self.writer.abandon_unpublished().is_err() {
                self.writer.abandon();
            }
            self.outbox.abandon(&self.region.link);
        }
    }
}
