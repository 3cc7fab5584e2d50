//! The primary of a spread region.

use std::io::IoSlice;
use std::sync::Arc;

use pmu_core::spread::{Newest, Tenure, TermOpening, TooFewUnits};
use pmu_fabric::Counters;
use pmu_format::{CHUNK_BYTES, Epoch, Label, Mode, SetNumber, ShareTrailer, Term};
use pmu_proto::v1::SessionRole;
use pmu_stripe::{Code, Group, GroupIndex, LayoutKind, Placement};

use crate::beat::beat_each;
use crate::error::{Attempt, ClientError, Result};
use crate::options::OpenOptions;
use crate::receipt::{Receipt, Stored, UnitProof};
use crate::sets::SetSink;
use crate::sets::primary::SetPrimary;
use crate::sets::primary::member::{OpenedMember, PreparedShare};
use crate::spread::copies::Copies;
use crate::spread::lane::{Lanes, is_stale};
use crate::spread::put::SpreadPut;
use crate::spread::rejoin::Called;
use crate::spread::returns::Returns;
use crate::spread::source::Source;
use crate::spread::{
    MissingUnit, Spread, SpreadFence, SpreadRead, TRAILER_BYTES, missing, too_few,
};

/// Stores checkpoints on all units of a spread region that can be reached, and goes on while units fail.
///
/// One thread uses it at a time (`&mut`); it may move between threads. Calls block; a unit that makes no progress for
/// [`crate::Timeouts::stall`] is given up.
#[derive(Debug)]
pub struct SpreadPrimary {
    pub(super) spread: Spread,
    pub(super) options: OpenOptions,
    pub(super) members: Vec<std::result::Result<SetPrimary, MissingUnit>>,
    code: Code,
    /// What is committed, and the term of this primary.
    pub(super) newest: Newest,
    writer: [u8; 16],
    /// Counts the tries to commit a set.
    attempt: u64,
    parity: Vec<Vec<u8>>,
    gathered: Vec<u8>,
    /// What each member needs to take its own part of a payload.
    lanes: Lanes,
    /// Of a mirror.
    copies: Option<Copies>,
    proofs: Arc<[UnitProof]>,
    pub(super) ended: bool,
    /// What was granted on each member.
    pub(super) tenure: Tenure,
    pub(super) returns: Returns<Called<OpenedMember>>,
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
    /// [`ClientError::WriterExists`] (fence it first, or use [`Self::take_over`]); [`ClientError::Fenced`] ([`Self::going_on_from`]);
    /// [`ClientError::TooFewUnits`]; as [`crate::Unit::open_sets_primary`].
    pub fn open_primary(self, options: &OpenOptions) -> Result<SpreadPrimary> {
        self.check_mode(Mode::Overwrite)?;
        let name = Arc::clone(&self.name);
        let opened = self.open_behind(options, None)?;
        opened.ok_or_else(|| ClientError::Protocol(format!("region {name} has no term")))
    }

    /// Opens the region anew for the primary of a term; none if a later one is known.
    pub(super) fn open_again(
        self,
        options: &OpenOptions,
        own: Term,
    ) -> Result<Option<SpreadPrimary>> {
        self.open_behind(options, Some(own))
    }

    fn open_behind(
        self,
        options: &OpenOptions,
        own: Option<Term>,
    ) -> Result<Option<SpreadPrimary>> {
        let id = self.membership.id;
        let opened = self.on_each_unit(|unit| {
            let options = self.opening(unit.name(), options, own)?;
            let parts = unit.open(&self.name, SessionRole::Primary, Mode::Overwrite, &options)?;
            self.check_opened(&parts)?;
            if own.is_none() {
                self.goes_on_with(unit.name(), parts.epoch);
            }
            OpenedMember::look(parts, id)
        });
        let mut members = Vec::with_capacity(opened.len());
        let mut held = None;
        for opened in opened {
            members.push(match opened {
                Ok(opened) => Ok(opened),
                Err(failed) => Err(failed.or_held(&mut held, self.goes_on(own))?),
            });
        }
        let newest = self.next_term(&members).map_err(|error| match error {
            ClientError::TooFewUnits { .. } => held.unwrap_or(error),
            error => error,
        })?;
        let highest = members.iter().flatten().map(|opened| opened.stand.highest);
        if own.is_some_and(|own| highest.max() > Some(own)) {
            return Ok(None);
        }
        // Only now it is known that nobody has led in between.
        for (index, opened) in members.iter().enumerate() {
            if let Ok(opened) = opened {
                self.goes_on_with_member(index, opened.grant().1);
            }
        }
        let members = self.take_term(members, &newest)?;
        SpreadPrimary::new(self, *options, members, newest).map(Some)
    }

    /// What is committed, and a term of our own behind it.
    fn next_term(
        &self,
        members: &[std::result::Result<OpenedMember, MissingUnit>],
    ) -> Result<Newest> {
        let looks = members.iter().map(|member| match member {
            Ok(opened) => Ok(&opened.stand),
            Err(missing) => Err(missing),
        });
        let enough = |what: TooFewUnits| self.too_few_votes(what, looks.clone());
        let stands = members.iter().flatten().map(|member| &member.stand);
        self.quorum
            .check_commit(stands.clone().count())
            .map_err(enough)?;
        let newest = self.quorum.newest(stands).map_err(enough)?;
        newest
            .next_term()
            .ok_or_else(|| ClientError::Invalid("no term is left".into()))
    }

    /// Proposes a term on all members, and establishes it once enough have the proposal durable: enough to commit, and enough to decide
    /// should this be the first term and its primary die at once, as blank members have no vote.
    fn take_term(
        &self,
        members: Vec<std::result::Result<OpenedMember, MissingUnit>>,
        newest: &Newest,
    ) -> Result<Vec<std::result::Result<SetPrimary, MissingUnit>>> {
        let all = &self.membership.members;
        let members: Vec<_> = members.into_iter().map(parking_lot::Mutex::new).collect();
        let openings = self.on_each(|member, index| {
            let mut guard = members[index].lock();
            let opened = guard.as_mut().ok()?;
            match self.propose(opened, newest) {
                Ok(opening) => Some(opening),
                Err(error) => {
                    *guard = Err(missing(member, &error));
                    None
                }
            }
        });
        let members = members.into_iter().map(parking_lot::Mutex::into_inner);
        let members: Vec<_> = members.collect();
        let absent = members.iter().filter_map(|member| member.as_ref().err());
        let proposed = members.iter().flatten().count();
        self.quorum
            .check_commit(proposed)
            .and_then(|()| self.quorum.check_decide(proposed))
            .map_err(|what| self.too_few(what, absent))?;
        let members = members.into_iter().zip(openings).zip(all);
        let started = members.map(|((opened, opening), member)| {
            let opened = opened?;
            let started = match opening {
                Some(opening) => opened.start(&opening, newest.set()),
                None => Err(ClientError::Protocol("it has no proposal".into())),
            };
            started.map_err(|error| missing(member, &error))
        });
        Ok(started.collect())
    }

    pub(super) fn propose(
        &self,
        opened: &mut OpenedMember,
        newest: &Newest,
    ) -> Result<TermOpening> {
        let membership = &self.membership;
        let opening =
            opened
                .stand
                .opening(membership.id, membership.generation, newest, self.sets_kept);
        opened.propose(&opening)?;
        Ok(opening)
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
        // The primary first: once its term is established, nothing else of the old one is ever visible.
        let primary = self.open_primary(options)?;
        let mut reader = primary.spread.open_reader(options)?;
        let recovered = match reader.read(crate::SetChoice::Newest, sink) {
            Ok(read) => Some(read),
            Err(ClientError::NoSuchSet { .. }) if primary.newest().get() == 0 => None,
            Err(error) => return Err(error),
        };
        drop(reader);
        Ok(SpreadTakeover {
            primary,
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
        newest: Newest,
    ) -> Result<Self> {
        let layout = spread.layout;
        let subsegment_bytes = spread.membership.subsegment_bytes as usize;
        let code = Code::new(layout);
        let is_mirror = layout.kind() == LayoutKind::Mirror;
        let mut primary = Self {
            lanes: Lanes::new(&code)?,
            copies: is_mirror.then(Copies::new).transpose()?,
            code,
            parity: vec![vec![0; subsegment_bytes]; layout.redundant_shards()],
            gathered: Vec::new(),
            writer: spread.reach.random()?,
            attempt: 0,
            proofs: Arc::from([]),
            ended: false,
            tenure: Tenure::new(members.len()),
            returns: Returns::new(members.len(), options.rejoin),
            spread,
            options,
            members,
            newest,
        };
        for (index, member) in primary.members.iter().enumerate() {
            if let Ok(member) = member {
                let (region, epoch) = member.grant();
                primary.tenure.hold(index, region, epoch);
            }
        }
        primary.check_commit()?;
        primary.collect_proofs();
        Ok(primary)
    }

    /// As [`crate::SetPrimary::beat`], on each unit that works.
    ///
    /// # Errors
    /// As there, where no unit is left to beat on. A unit that fails is left to the next commit.
    pub fn beat(&mut self) -> Result<()> {
        beat_each(
            self.members
                .iter_mut()
                .flatten()
                .map(SetPrimary::region_mut),
        )
    }

    /// Stores one set on all units that work, and returns when it is durable on each that the receipt names: at least as many as the
    /// region demands.
    ///
    /// # Errors
    /// [`ClientError::TooLarge`]: nothing was written. [`ClientError::TooFewUnits`]: the set was not stored, the earlier ones are there.
    /// [`ClientError::Fenced`]: another primary took over. [`ClientError::UnknownOutcome`]: it may have been stored; recover.
    ///
    /// If the members are changed meanwhile, the set is written again, once; the number of the receipt is that of the second time.
    pub fn commit(&mut self, payload: &[IoSlice<'_>], label: Label) -> Result<Receipt> {
        let first = self.next_number();
        match self.commit_once(payload, label) {
            Err(ClientError::MembersChanged { .. }) => {
                let again = self.commit_once(payload, label);
                again.map_err(|error| self.or_stored_before(first, error))
            }
            result => result,
        }
    }

    /// What an error of the second time means where the set may count since the first time.
    fn or_stored_before(&self, first: SetNumber, error: ClientError) -> ClientError {
        if self.newest() < first || error.outcome_is_unknown() {
            return error;
        }
        ClientError::UnknownOutcome {
            region: self.spread.name.as_ref().into(),
            attempt: Attempt::Set(first),
            cause: Box::new(error),
        }
    }

    fn commit_once(&mut self, payload: &[IoSlice<'_>], label: Label) -> Result<Receipt> {
        let bytes = payload.iter().map(|slice| slice.len() as u64).sum();
        let placement = self.start_set(Some(bytes), label)?;
        let fed = self.feed_payload(&placement, payload);
        match fed {
            Ok(()) => self.finish_set(bytes),
            Err(error) => Err(self.give_set_up(error)),
        }
    }

    fn feed_payload(&mut self, placement: &Placement, payload: &[IoSlice<'_>]) -> Result<()> {
        if self.copies.is_none() {
            return self.feed_lanes(placement, payload);
        }
        let mut source = Source::new(payload);
        let mut gathered = std::mem::take(&mut self.gathered);
        let fed = placement.groups().try_for_each(|group| {
            let bytes = (group.segment.end - group.segment.start) as usize;
            let data = source.take(bytes, &mut gathered);
            self.feed_group(placement, &group, data)
        });
        self.gathered = gathered;
        fed
    }

    /// All members at the same time.
    fn feed_lanes(&mut self, placement: &Placement, payload: &[IoSlice<'_>]) -> Result<()> {
        let reach = self.spread.reach.as_ref();
        let quorum = self.spread.quorum;
        let failed = self
            .lanes
            .feed(reach, quorum, &mut self.members, placement, payload);
        let mut result = Ok(());
        for (index, error) in failed {
            let lost = self.lose(index, error);
            result = result.and(lost);
        }
        result
    }

    /// Begins a set that is written piece by piece. Without a length it may become as long as the region's capacity. Holds no more of it
    /// than one redundancy group and the staging memory of each member.
    ///
    /// # Errors
    /// As [`Self::commit`] before anything is written.
    pub fn begin(&mut self, bytes: Option<u64>, label: Label) -> Result<SpreadPut<'_>> {
        let placement = self.start_set(bytes, label)?;
        let collected = std::mem::take(&mut self.gathered);
        Ok(SpreadPut::new(self, placement, bytes, collected))
    }

    /// Begins a share on every member.
    fn start_set(&mut self, bytes: Option<u64>, label: Label) -> Result<Placement> {
        if self.ended {
            let region = self.spread.name.as_ref().into();
            return Err(ClientError::Ended { region });
        }
        let capacity = self.spread.capacity_bytes();
        if let Some(bytes) = bytes.filter(|bytes| *bytes > capacity) {
            return Err(ClientError::TooLarge {
                region: self.spread.name.as_ref().into(),
                bytes,
                limit_bytes: capacity,
            });
        }
        let placement = self.placement(bytes.unwrap_or(capacity))?;
        self.look_for_returns();
        if let Err(error) = self.check_commit() {
            return Err(self.give_set_up(error));
        }
        self.attempt += 1;
        for index in 0..self.members.len() {
            let share = bytes.map(|_| {
                let share = placement.unit_len(pmu_stripe::UnitIndex(index));
                share + TRAILER_BYTES
            });
            let copies = self.copies.take();
            let begun = self.with(index, |member| {
                if let Some(copies) = &copies {
                    copies.attach(member)?;
                }
                member.begin_share(share, label)
            });
            self.copies = copies;
            if let Err(error) = begun {
                return Err(self.give_set_up(error));
            }
        }
        Ok(placement)
    }

    fn placement(&self, bytes: u64) -> Result<Placement> {
        let subsegment_bytes = self.spread.membership.subsegment_bytes;
        Placement::new(self.spread.layout, bytes, subsegment_bytes)
            .map_err(|error| ClientError::Invalid(error.to_string()))
    }

    /// Ends a set whose length is known only now. `rest` is the group that was not complete.
    pub(super) fn finish_open(
        &mut self,
        group: GroupIndex,
        rest: Vec<u8>,
        bytes: u64,
    ) -> Result<Receipt> {
        let fed = self.placement(bytes).and_then(|placement| {
            match placement.group(group).filter(|_| !rest.is_empty()) {
                Some(group) => self.feed_group(&placement, &group, &rest),
                None => Ok(()),
            }
        });
        self.gathered = rest;
        match fed {
            Ok(()) => self.finish_set(bytes),
            Err(error) => Err(self.give_set_up(error)),
        }
    }

    fn finish_set(&mut self, bytes: u64) -> Result<Receipt> {
        match self.prepare(bytes) {
            Ok(prepared) => self.publish(&prepared, bytes),
            Err(error) => Err(self.give_set_up(error)),
        }
    }

    /// Nothing of the set in progress is published; the earlier ones were never touched.
    pub(super) fn give_set_up(&mut self, error: ClientError) -> ClientError {
        for member in self.members.iter_mut().flatten() {
            member.drop_share();
        }
        let error = self.or_changed(error);
        self.ended |= error.is_fenced();
        if self.ended {
            // Its heir shall not find it in its way.
            self.returns.stop();
        }
        error
    }

    /// Ends all shares; each is durable on its unit when this returns, and none is published.
    fn prepare(&mut self, bytes: u64) -> Result<Vec<Option<PreparedShare>>> {
        let mut prepared = Vec::with_capacity(self.members.len());
        for index in 0..self.members.len() {
            let trailer = self.share_trailer(index, bytes).encode();
            prepared.push(self.with(index, |member| {
                member.feed_share(&trailer)?;
                member.prepare_share()
            })?);
        }
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
    pub(super) fn feed_group(
        &mut self,
        placement: &Placement,
        group: &Group,
        data: &[u8],
    ) -> Result<()> {
        if self.copies.is_some() {
            return self.feed_copies(group.segment.start, data);
        }
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
        let encoded = if is_stale(group) {
            Ok(())
        } else {
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

    /// The bytes at `begin` of the set, to every member of a mirror.
    fn feed_copies(&mut self, begin: u64, data: &[u8]) -> Result<()> {
        let chunk_bytes = CHUNK_BYTES as usize;
        let whole = match begin.is_multiple_of(CHUNK_BYTES) {
            true => data.len() - data.len() % chunk_bytes,
            false => 0,
        };
        let (whole, rest) = data.split_at(whole);
        for chunk in whole.chunks_exact(chunk_bytes) {
            self.feed_copies_of_chunk(chunk)?;
        }
        self.with_each(|member| member.feed_share(rest))
    }

    fn feed_copies_of_chunk(&mut self, chunk: &[u8]) -> Result<()> {
        let Some(mut copies) = self.copies.take() else {
            return Ok(());
        };
        let position = copies.room_behind();
        let room = self.with_each(|member| member.wait_shared(position));
        let filled = room.and_then(|()| copies.fill(chunk));
        self.copies = Some(copies);
        let chunk = filled?;
        self.with_each(|member| member.feed_shared(&chunk))
    }

    /// Does something with every member that works. One that fails is given up.
    fn with_each(&mut self, mut work: impl FnMut(&mut SetPrimary) -> Result<()>) -> Result<()> {
        (0..self.members.len()).try_for_each(|index| self.with(index, &mut work).map(drop))
    }

    /// Publishes on every member that is prepared.
    fn publish(&mut self, prepared: &[Option<PreparedShare>], bytes: u64) -> Result<Receipt> {
        let number = self.next_number();
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
            let cause = self.or_changed(cause);
            if matches!(cause, ClientError::MembersChanged { .. }) {
                return Err(cause);
            }
            self.ended = true;
            return Err(ClientError::UnknownOutcome {
                region: self.spread.name.as_ref().into(),
                attempt: Attempt::Set(number),
                cause: Box::new(cause),
            });
        }
        self.newest.advance(number.get());
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

    /// Does something with a member that works. If it fails, the member is given up.
    ///
    /// A fence on fewer members than a take-over fences is no end: somebody took these members away to repair or replace them.
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
            Err(error) => self.lose(index, error).map(|()| None),
        }
    }

    fn lose(&mut self, index: usize, error: ClientError) -> Result<()> {
        self.give_up(index, &error);
        match self.check_commit() {
            Err(_) if error.is_fenced() => Err(error),
            enough => enough,
        }
    }

    /// The same while publishing: from there on nothing ends early.
    pub(super) fn with_published<T>(
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
        if let Some((epoch, _)) = error.fence() {
            self.tenure.raised(index, epoch);
        }
        self.members[index] = Err(missing(member, error));
    }

    fn next_number(&self) -> SetNumber {
        SetNumber(self.newest.committed.saturating_add(1))
    }

    fn share_trailer(&self, index: usize, bytes: u64) -> ShareTrailer {
        let membership = &self.spread.membership;
        let epoch = self.members[index]
            .as_ref()
            .map_or(Epoch(0), SetPrimary::epoch);
        ShareTrailer {
            id: membership.id,
            generation: membership.generation,
            number: self.next_number(),
            term: self.newest.term(),
            writer: self.writer,
            attempt: self.attempt,
            epoch,
            segment_bytes: bytes,
            layout: membership.layout,
            own_index: index as u8,
            subsegment_bytes: membership.subsegment_bytes,
        }
    }

    pub(super) fn check_commit(&self) -> Result<()> {
        let alive = self.members.iter().flatten().count();
        self.spread
            .quorum
            .check_commit(alive)
            .map_err(|what| too_few(&self.spread.name, what, self.missing()))
    }

    pub(super) fn collect_proofs(&mut self) {
        let alive = self.members.iter().flatten().map(SetPrimary::unit);
        // As many others may have taken the place of those that were lost.
        if !alive.eq(self.proofs.iter()) {
            let alive = self.members.iter().flatten().map(SetPrimary::unit);
            self.proofs = alive.cloned().collect();
        }
    }

    /// The number of the last set that was committed, by this primary or before it; 0 for none.
    #[must_use]
    pub const fn newest(&self) -> SetNumber {
        self.newest.set()
    }

    /// The term of this primary: of two primaries the one with the higher term is the later.
    #[must_use]
    pub fn term(&self) -> Term {
        self.newest.term()
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
