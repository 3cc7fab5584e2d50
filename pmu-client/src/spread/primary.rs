//! The primary of a spread region.

use std::io::IoSlice;
use std::sync::Arc;

use pmu_core::spread::{Quorum, TooFewUnits};
use pmu_fabric::Counters;
use pmu_format::{Epoch, Label, SHARE_HEADER_BYTES, SHARE_OFFSET, SetNumber, ShareHeader};
use pmu_proto::v1::SessionRole;
use pmu_stripe::{Code, Group, GroupIndex, Placement, UnitIndex};

use crate::error::{Attempt, ClientError, Result};
use crate::options::OpenOptions;
use crate::receipt::{Receipt, Stored, UnitProof};
use crate::sets::SetSink;
use crate::sets::primary::SetPrimary;
use crate::sets::primary::member::{OpenedMember, PreparedShare};
use crate::spread::{MissingUnit, Spread, SpreadFence, SpreadRead, missing, too_few};

/// Stores checkpoints on all units of a spread region that can be reached, and goes on while units fail.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block; a unit that makes no progress for
/// [`crate::Timeouts::stall`] is given up.
#[derive(Debug)]
pub struct SpreadPrimary {
    spread: Spread,
    options: OpenOptions,
    members: Vec<std::result::Result<SetPrimary, MissingUnit>>,
    code: Code,
    /// The number of the last set that was committed, or that may have been by a predecessor.
    newest: SetNumber,
    /// Tells the shares of this primary, and of each new try, from all others.
    writer: [u8; 16],
    parity: Vec<Vec<u8>>,
    gathered: Vec<u8>,
    proofs: Arc<[UnitProof]>,
    ended: bool,
}

/// What a take-over did.
#[derive(Debug)]
#[non_exhaustive]
pub struct SpreadTakeover {
    /// The new primary.
    pub primary: SpreadPrimary,
    /// The set that was recovered; none where the region never held one.
    pub recovered: Option<SpreadRead>,
    /// What the fence did.
    pub fence: SpreadFence,
}

impl Spread {
    /// Opens the region as its primary, on all units that answer.
    ///
    /// # Errors
    /// [`ClientError::WriterExists`] (fence it first, or use [`Self::take_over`]); [`ClientError::TooFewUnits`]; as
    /// [`crate::Unit::open_sets_primary`].
    pub fn open_primary(self, options: &OpenOptions) -> Result<SpreadPrimary> {
        let opened = self.on_each_unit(|unit| {
            OpenedMember::look(unit.open_member(&self.name, SessionRole::Primary, options)?)
        });
        let mut members = Vec::with_capacity(opened.len());
        for opened in opened {
            members.push(match opened {
                Ok(opened) => Ok(opened),
                Err(failed) => Err(failed.or_grant()?),
            });
        }
        let published: Vec<_> = members
            .iter()
            .filter_map(|member| member.as_ref().ok().map(|member| member.published))
            .collect();
        let absent = || members.iter().filter_map(|member| member.as_ref().err());
        let enough = |what: TooFewUnits| self.too_few(what, absent());
        self.quorum.check_commit(published.len()).map_err(enough)?;
        let newest = self.quorum.newest(&published).map_err(enough)?;
        let newest = Quorum::begin_behind(newest)
            .ok_or_else(|| ClientError::Invalid("no set number is left".into()))?;
        let members = self.membership.members.iter().zip(members);
        let members = members
            .map(|(member, opened)| {
                opened.and_then(|opened| {
                    opened
                        .start(newest)
                        .map_err(|error| missing(member, &error))
                })
            })
            .collect();
        SpreadPrimary::new(self, *options, members, newest)
    }

    /// Takes the region over from a primary that has failed: fences it, reads the newest set into `sink`, and becomes the primary.
    ///
    /// # Errors
    /// As [`Self::fence`], [`Self::open_primary`] and [`crate::SpreadReader::read`].
    pub fn take_over(
        self,
        options: &OpenOptions,
        sink: &mut impl SetSink,
    ) -> Result<SpreadTakeover> {
        let fence = self.fence()?;
        let mut reader = self.open_reader(options)?;
        let recovered = match reader.read(crate::SetChoice::Newest, sink) {
            Ok(read) => Some(read),
            Err(ClientError::NoSuchSet { .. }) => None,
            Err(error) => return Err(error),
        };
        drop(reader);
        Ok(SpreadTakeover {
            primary: self.open_primary(options)?,
            recovered,
            fence,
        })
    }
}

impl SpreadPrimary {
    fn new(
        spread: Spread,
        options: OpenOptions,
        members: Vec<std::result::Result<SetPrimary, MissingUnit>>,
        newest: SetNumber,
    ) -> Result<Self> {
        let layout = spread.layout;
        let subsegment_bytes = spread.membership.subsegment_bytes as usize;
        let mut primary = Self {
            code: Code::new(layout),
            parity: vec![vec![0; subsegment_bytes]; layout.redundant_shards()],
            gathered: Vec::new(),
            writer: random()?,
            proofs: Arc::from([]),
            ended: false,
            spread,
            options,
            members,
            newest,
        };
        primary.check_commit()?;
        primary.collect_proofs();
        Ok(primary)
    }

    /// Stores one set on all units that work, and returns when it is durable on each that the receipt names: at least as many as the
    /// region demands.
    ///
    /// # Errors
    /// [`ClientError::TooLarge`]: nothing was written. [`ClientError::TooFewUnits`]: the set was not stored, the earlier ones are there.
    /// [`ClientError::Fenced`]: another primary took over. [`ClientError::UnknownOutcome`]: it may have been stored; recover.
    pub fn commit(&mut self, payload: &[IoSlice<'_>], label: Label) -> Result<Receipt> {
        let bytes = payload.iter().map(|slice| slice.len() as u64).sum();
        let placement = self.start_set(bytes, label)?;
        let mut source = Source::new(payload);
        let mut gathered = std::mem::take(&mut self.gathered);
        let fed = placement.groups().try_for_each(|group| {
            let bytes = (group.segment.end - group.segment.start) as usize;
            let data = source.take(bytes, &mut gathered);
            self.feed_group(&placement, &group, data)
        });
        self.gathered = gathered;
        if let Err(error) = fed {
            return Err(self.give_set_up(error));
        }
        self.finish_set(bytes)
    }

    /// Begins a set of `bytes` bytes that is written piece by piece. Holds no more of it than one redundancy group.
    ///
    /// # Errors
    /// As [`Self::commit`] before anything is written.
    pub fn begin(&mut self, bytes: u64, label: Label) -> Result<SpreadPut<'_>> {
        let placement = self.start_set(bytes, label)?;
        let mut collected = std::mem::take(&mut self.gathered);
        collected.clear();
        Ok(SpreadPut {
            primary: Some(self),
            placement,
            bytes,
            group: GroupIndex(0),
            collected,
        })
    }

    /// Begins a share on every member.
    fn start_set(&mut self, bytes: u64, label: Label) -> Result<Placement> {
        if self.ended {
            let region = self.spread.name.as_ref().into();
            return Err(ClientError::Ended { region });
        }
        let capacity = self.spread.capacity_bytes();
        if bytes > capacity {
            return Err(ClientError::TooLarge {
                region: self.spread.name.as_ref().into(),
                bytes,
                limit_bytes: capacity,
            });
        }
        let placement = Placement::new(
            self.spread.layout,
            bytes,
            self.spread.membership.subsegment_bytes,
        )
        .map_err(|error| ClientError::Invalid(error.to_string()))?;
        match self.start_shares(&placement, bytes, label) {
            Ok(()) => Ok(placement),
            Err(error) => Err(self.give_set_up(error)),
        }
    }

    fn start_shares(&mut self, placement: &Placement, bytes: u64, label: Label) -> Result<()> {
        let number = self
            .newest
            .checked_add(1)
            .ok_or_else(|| ClientError::Invalid("no set number is left".into()))?;
        for index in 0..self.members.len() {
            let header = self.share_header(index, number, bytes);
            let share_bytes = SHARE_OFFSET + placement.unit_len(UnitIndex(index));
            self.with(index, |member| {
                member.begin_share(share_bytes, label)?;
                let mut page = [0; SHARE_OFFSET as usize];
                page[..SHARE_HEADER_BYTES].copy_from_slice(&header.encode());
                member.feed_share(&page)
            })?;
        }
        Ok(())
    }

    fn finish_set(&mut self, bytes: u64) -> Result<Receipt> {
        match self.prepare() {
            Ok(prepared) => self.publish(&prepared, bytes),
            Err(error) => Err(self.give_set_up(error)),
        }
    }

    /// Nothing of the set in progress is published; the earlier ones were never touched.
    fn give_set_up(&mut self, error: ClientError) -> ClientError {
        for member in self.members.iter_mut().flatten() {
            member.drop_share();
        }
        self.ended |= error.is_fenced();
        // The number is used again: nobody may take shares of this try for those of the next.
        match random() {
            Ok(writer) => self.writer = writer,
            Err(_) => self.ended = true,
        }
        error
    }

    /// Ends all shares; each is durable on its unit when this returns, and none is published.
    fn prepare(&mut self) -> Result<Vec<Option<PreparedShare>>> {
        let mut prepared: Vec<_> = (0..self.members.len())
            .map(|index| self.with(index, SetPrimary::prepare_share))
            .collect::<Result<_>>()?;
        for (index, share) in prepared.iter_mut().enumerate() {
            if let Some(posted) = share {
                let done = self.with(index, |member| member.wait_prepared(posted))?;
                if done.is_none() {
                    *share = None;
                }
            }
        }
        self.check_commit()?;
        Ok(prepared)
    }

    /// Encodes one group and gives each member its shard.
    fn feed_group(&mut self, placement: &Placement, group: &Group, data: &[u8]) -> Result<()> {
        let begin = group.segment.start;
        let mut shards: [&[u8]; pmu_stripe::UNITS_MAX] = [&[]; pmu_stripe::UNITS_MAX];
        let mut parity = std::mem::take(&mut self.parity);
        let data_shards = self.spread.layout.data_shards();
        for (slot, shard) in shards.iter_mut().zip(placement.shards(group)) {
            if !shard.redundant {
                let range =
                    (shard.segment.start - begin) as usize..(shard.segment.end - begin) as usize;
                *slot = &data[range];
            }
        }
        let length = group.shard_len as usize;
        let encoded = {
            let mut outputs: Vec<&mut [u8]> = parity
                .iter_mut()
                .map(|shard| &mut shard[..length])
                .collect();
            self.code.encode(&shards[..data_shards], &mut outputs)
        };
        let mut result = encoded.map_err(|error| ClientError::Invalid(error.to_string()));
        for shard in placement.shards(group) {
            let bytes = match shard.shard.0.checked_sub(data_shards) {
                Some(redundant) => &parity[redundant][..length],
                None => shards[shard.shard.0],
            };
            result = result.and_then(|()| {
                self.with(shard.unit.0, |member| member.feed_share(bytes))
                    .map(drop)
            });
        }
        self.parity = parity;
        result
    }

    /// Publishes on every member that is prepared.
    fn publish(&mut self, prepared: &[Option<PreparedShare>], bytes: u64) -> Result<Receipt> {
        let number = SetNumber(self.newest.get() + 1);
        let mut posted = Vec::with_capacity(prepared.len());
        for (index, share) in prepared.iter().enumerate() {
            posted.push(match share {
                Some(share) => self.with_published(index, |member| member.publish_share(share)),
                None => None,
            });
        }
        for (index, posted) in posted.into_iter().enumerate() {
            if let Some(posted) = posted {
                self.with_published(index, |member| member.wait_published(posted));
            }
        }
        if let Err(cause) = self.check_commit() {
            self.ended = true;
            return Err(ClientError::UnknownOutcome {
                region: self.spread.name.as_ref().into(),
                attempt: Attempt::Set(number),
                cause: Box::new(cause),
            });
        }
        self.newest = number;
        self.collect_proofs();
        let first = self.members.iter().flatten().next();
        let first = first.ok_or_else(|| ClientError::Protocol("no member is left".into()))?;
        Ok(Receipt {
            region: Arc::clone(&self.spread.name),
            stored: Stored::Set(number),
            epoch: first.epoch(),
            bytes,
            units: Arc::clone(&self.proofs),
            provider: first.provider(),
        })
    }

    /// Does something with a member that works. If it fails, the member is given up; a fence is an error for all.
    fn with<T>(
        &mut self,
        index: usize,
        work: impl FnOnce(&mut SetPrimary) -> Result<T>,
    ) -> Result<Option<T>> {
        let Ok(member) = &mut self.members[index] else {
            return Ok(None);
        };
        match work(member) {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is_fenced() => Err(error),
            Err(error) => {
                self.give_up(index, &error);
                self.check_commit()?;
                Ok(None)
            }
        }
    }

    /// The same while publishing: from there on nothing ends early.
    fn with_published<T>(
        &mut self,
        index: usize,
        work: impl FnOnce(&mut SetPrimary) -> Result<T>,
    ) -> Option<T> {
        let member = self.members[index].as_mut().ok()?;
        match work(member) {
            Ok(done) => Some(done),
            Err(error) => {
                self.give_up(index, &error);
                None
            }
        }
    }

    fn give_up(&mut self, index: usize, error: &ClientError) {
        let member = &self.spread.membership.members[index];
        tracing::warn!(unit = %member.unit, region = %self.spread.name, %error, "a unit is given up");
        self.members[index] = Err(missing(member, error));
    }

    /// Connects again to units that were missing or given up. Each takes part in the next commit: from then on it holds the newest set.
    /// Gives how many came back.
    ///
    /// # Errors
    /// None but those that no unit can make good: [`ClientError::NoGrant`], [`ClientError::WriterExists`] (another primary took over).
    pub fn rejoin(&mut self) -> Result<usize> {
        let mut back = 0;
        for index in 0..self.members.len() {
            if self.members[index].is_ok() {
                continue;
            }
            let member = &self.spread.membership.members[index];
            let opened = self.spread.connect(member).and_then(|unit| {
                let region =
                    unit.open_member(&self.spread.name, SessionRole::Primary, &self.options);
                let started = region.and_then(OpenedMember::look).and_then(|opened| {
                    if opened.published > self.newest {
                        return Err(ClientError::Protocol(
                            "it holds a newer set than this primary has committed".into(),
                        ));
                    }
                    opened.start(self.newest)
                });
                started.map_err(|error| missing(member, &error))
            });
            back += usize::from(opened.is_ok());
            self.members[index] = opened;
        }
        self.collect_proofs();
        Ok(back)
    }

    fn share_header(&self, index: usize, number: SetNumber, bytes: u64) -> ShareHeader {
        let membership = &self.spread.membership;
        let epoch = self.members[index]
            .as_ref()
            .map_or(Epoch(0), SetPrimary::epoch);
        ShareHeader {
            id: membership.id,
            generation: membership.generation,
            number,
            writer: self.writer,
            epoch,
            segment_bytes: bytes,
            segment_checksum: 0,
            layout: membership.layout,
            own_index: index as u8,
            subsegment_bytes: membership.subsegment_bytes,
        }
    }

    fn check_commit(&self) -> Result<()> {
        let alive = self.members.iter().flatten().count();
        self.spread
            .quorum
            .check_commit(alive)
            .map_err(|what| too_few(&self.spread.name, what, self.missing()))
    }

    fn collect_proofs(&mut self) {
        let alive = self.members.iter().flatten().count();
        if alive != self.proofs.len() {
            let proofs = self.members.iter().flatten();
            self.proofs = proofs.map(|member| member.unit().clone()).collect();
        }
    }

    /// The number of the last set that was committed, by this primary or before it; it may have left one out.
    #[must_use]
    pub const fn newest(&self) -> SetNumber {
        self.newest
    }

    /// The region.
    #[must_use]
    pub const fn spread(&self) -> &Spread {
        &self.spread
    }

    /// What the connections to the units that take part have done so far, together. One that is made anew begins at nothing.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let members = self.members.iter().flatten();
        members.map(SetPrimary::counters).sum()
    }

    /// The units that don't take part, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.members
            .iter()
            .filter_map(|member| member.as_ref().err())
    }
}

/// A set that is being written. Dropped before [`Self::finish`], it is given up, and the earlier sets are there.
#[derive(Debug)]
pub struct SpreadPut<'a> {
    /// None once it is given up.
    primary: Option<&'a mut SpreadPrimary>,
    placement: Placement,
    bytes: u64,
    group: GroupIndex,
    /// Bytes of the group that is not complete yet.
    collected: Vec<u8>,
}

impl SpreadPut<'_> {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// As [`SpreadPrimary::commit`]; [`ClientError::TooLarge`] beyond the length that was named. The set is given up then.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.write_groups(bytes);
        match (result, self.primary.take()) {
            (Ok(()), primary) => {
                self.primary = primary;
                Ok(())
            }
            (Err(error), Some(primary)) => Err(primary.give_set_up(error)),
            (Err(error), None) => Err(error),
        }
    }

    fn write_groups(&mut self, mut bytes: &[u8]) -> Result<()> {
        let Some(primary) = &mut self.primary else {
            return Err(ClientError::Invalid("the set was given up".into()));
        };
        while !bytes.is_empty() {
            let Some(group) = self.placement.group(self.group) else {
                return Err(ClientError::TooLarge {
                    region: primary.spread.name.as_ref().into(),
                    bytes: self.bytes.saturating_add(bytes.len() as u64),
                    limit_bytes: self.bytes,
                });
            };
            let length = (group.segment.end - group.segment.start) as usize;
            if self.collected.is_empty() && bytes.len() >= length {
                let (now, later) = bytes.split_at(length);
                primary.feed_group(&self.placement, &group, now)?;
                bytes = later;
            } else {
                let (now, later) = bytes.split_at(bytes.len().min(length - self.collected.len()));
                self.collected.extend_from_slice(now);
                bytes = later;
                if self.collected.len() < length {
                    break;
                }
                primary.feed_group(&self.placement, &group, &self.collected)?;
                self.collected.clear();
            }
            self.group.0 += 1;
        }
        Ok(())
    }

    /// Ends the set, and returns when it is durable.
    ///
    /// # Errors
    /// As [`SpreadPrimary::commit`]; [`ClientError::Invalid`] if fewer bytes were written than were named.
    pub fn finish(mut self) -> Result<Receipt> {
        let Some(primary) = self.primary.take() else {
            return Err(ClientError::Invalid("the set was given up".into()));
        };
        primary.gathered = std::mem::take(&mut self.collected);
        if self.group.0 < self.placement.group_count() {
            let error = ClientError::Invalid(format!(
                "fewer bytes were written than the {} that were named",
                self.bytes
            ));
            return Err(primary.give_set_up(error));
        }
        primary.finish_set(self.bytes)
    }
}

impl Drop for SpreadPut<'_> {
    fn drop(&mut self) {
        if let Some(primary) = self.primary.take() {
            primary.give_set_up(ClientError::Invalid("given up".into()));
        }
    }
}

fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ClientError::Invalid(error.to_string()))?;
    Ok(bytes)
}

/// The payload's bytes in order.
struct Source<'a> {
    slices: &'a [IoSlice<'a>],
    /// How many bytes of the first slice are taken.
    taken: usize,
}

impl<'a> Source<'a> {
    const fn new(slices: &'a [IoSlice<'a>]) -> Self {
        Self { slices, taken: 0 }
    }

    /// The next bytes: where they lie if that is in one piece, else gathered. There are as many.
    fn take<'b>(&mut self, count: usize, gathered: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        self.skip_empty();
        if let Some(first) = self.slices.first()
            && let Some(piece) = first.get(self.taken..self.taken + count)
        {
            self.taken += count;
            return piece;
        }
        gathered.clear();
        while gathered.len() < count {
            self.skip_empty();
            let Some(first) = self.slices.first() else {
                break;
            };
            let left = &first[self.taken..];
            let now = left.len().min(count - gathered.len());
            gathered.extend_from_slice(&left[..now]);
            self.taken += now;
        }
        gathered
    }

    fn skip_empty(&mut self) {
        while let Some(first) = self.slices.first()
            && self.taken == first.len()
        {
            self.slices = &self.slices[1..];
            self.taken = 0;
        }
    }
}
