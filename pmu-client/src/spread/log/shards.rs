//! Puts records together from their shares: as many as it takes, data before redundancy, from the members that answer in time.

use std::time::Duration;

use pmu_core::spread::{Newest, Quorum};
use pmu_format::{
    LogPosition, Membership, RECORD_HEADER_BYTES, RECORD_SHARE_BYTES, RecordHeader, RecordShare,
    SpreadId, record_payload_checksum, spread_record_checksum,
};
use pmu_stripe::{Code, Layout, Reconstruct, ShardIndex, ShardSet, UNITS_MAX};

use super::seat::{LogSeat, READ_BYTES, Seat};
use crate::error::{ClientError, Result};
use crate::spread::{MissingUnit, missing, too_few};

const HEADER: u64 = RECORD_HEADER_BYTES as u64;
const SHARE: u64 = RECORD_SHARE_BYTES as u64;

/// A record that was read; its bytes are in [`ShardReader::record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundRecord {
    pub(super) position: u64,
    pub(super) end: u64,
    pub(super) continues: bool,
    pub(super) share: RecordShare,
}

/// The headers of a record on each member.
type Heads = [Option<(RecordHeader, RecordShare)>; UNITS_MAX];

/// How to compute data shards that are missing, from those that are there.
struct Plan {
    present: ShardSet,
    plan: Reconstruct,
}

/// See the module. Keeps its memory from record to record.
pub(super) struct ShardReader {
    id: SpreadId,
    layout: Layout,
    quorum: Quorum,
    code: Code,
    /// A member that sends nothing for so long is done without, where the others suffice.
    hedge: Duration,
    plans: Vec<Plan>,
    lost: Vec<Vec<u8>>,
    /// The bytes of the record that was read last.
    pub(super) record: Vec<u8>,
    /// How many records were computed from redundancy.
    pub(super) reconstructed: u64,
}

impl ShardReader {
    pub(super) fn new(
        membership: &Membership,
        layout: Layout,
        quorum: Quorum,
        hedge: Duration,
    ) -> Self {
        Self {
            id: membership.id,
            layout,
            quorum,
            code: Code::new(layout),
            hedge,
            plans: Vec::new(),
            lost: Vec::new(),
            record: Vec::new(),
            reconstructed: 0,
        }
    }

    /// Reads the record at `position` of a log that ends at `limit`.
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]: too few members hold it; [`ClientError::Damaged`]: enough do, and it is not what was written.
    pub(super) fn read(
        &mut self,
        seats: &mut [Seat],
        names: &Names<'_>,
        newest: &Newest,
        position: u64,
        limit: u64,
    ) -> Result<FoundRecord> {
        let mut damage = None;
        loop {
            let chosen = self.choose(seats, names, position, &damage)?;
            if !self.fetch(seats, names, chosen, position, HEADER + SHARE, limit) {
                continue;
            }
            let (found, bad) = self.heads(seats, newest, chosen, position, limit, &mut damage);
            let first = found.iter().flatten();
            let first = first.max_by_key(|(_, share)| (share.term, share.sequence));
            let Some(&(header, share)) = first else {
                doubt(seats, bad, position, position + 8);
                continue;
            };
            let end = position + header.record_bytes();
            let others = strangers(&found, &header, &share);
            if !bad.is_empty() || !others.is_empty() {
                damage.get_or_insert_with(|| "its shares belong to several records".to_owned());
                doubt(
                    seats,
                    others.iter().fold(bad, ShardSet::with),
                    position,
                    end,
                );
                continue;
            }
            if !self.fetch(seats, names, chosen, position, header.record_bytes(), limit) {
                continue;
            }
            let bad = damaged_payloads(seats, chosen, position, &found);
            if !bad.is_empty() {
                damage = Some("a checksum does not hold".to_owned());
                doubt(seats, bad, position, end);
                continue;
            }
            self.assemble(seats, names, chosen, position, &share)?;
            return Ok(FoundRecord {
                position,
                end,
                continues: header.continues,
                share,
            });
        }
    }

    /// The headers at `position` of the chosen members, and who has none that can count there.
    fn heads(
        &self,
        seats: &[Seat],
        newest: &Newest,
        chosen: ShardSet,
        position: u64,
        limit: u64,
        damage: &mut Option<String>,
    ) -> (Heads, ShardSet) {
        let term = newest.term_of(position.saturating_add(1));
        let mut found: Heads = [None; UNITS_MAX];
        let mut bad = ShardSet::EMPTY;
        for shard in chosen.iter() {
            let Ok(seat) = &seats[shard.0] else {
                bad = bad.with(shard);
                continue;
            };
            match head_of(seat, self.layout, shard.0, position, limit) {
                Ok(head) if term.is_none_or(|term| term == head.1.term) => {
                    found[shard.0] = Some(head);
                }
                other => {
                    bad = bad.with(shard);
                    let text = "its share is of another term".to_owned();
                    *damage = Some(other.err().unwrap_or(text));
                }
            }
        }
        (found, bad)
    }

    /// Whether a member has a record that was just read already, and as it should be.
    pub(super) fn holds(
        &self,
        seats: &mut [Seat],
        names: &Names<'_>,
        index: usize,
        found: &FoundRecord,
    ) -> bool {
        let (position, end) = (found.position, found.end);
        let itself = ShardSet::EMPTY.with(ShardIndex(index));
        if !self.fetch(seats, names, itself, position, end - position, end) {
            return false;
        }
        let mut heads = [None; UNITS_MAX];
        let head = seats[index].as_ref().ok();
        let head = head.and_then(|seat| head_of(seat, self.layout, index, position, end).ok());
        heads[index] = head.filter(|(header, share)| {
            share.goes_with(&found.share)
                && header.continues == found.continues
                && position + header.record_bytes() == end
        });
        heads[index].is_some() && damaged_payloads(seats, itself, position, &heads).is_empty()
    }

    /// What one member alone has at `position`, if it is whole and of the term that it should be; else what is wrong. Its shard is
    /// [`shard_of`].
    pub(super) fn read_own(
        &self,
        seats: &mut [Seat],
        names: &Names<'_>,
        newest: &Newest,
        index: usize,
        (position, limit): (u64, u64),
    ) -> std::result::Result<FoundRecord, String> {
        let itself = ShardSet::EMPTY.with(ShardIndex(index));
        let lost = |seats: &[Seat]| match &seats[index] {
            Err(missing) => missing.reason.clone(),
            Ok(_) => "its bytes can't be read".to_owned(),
        };
        if !self.fetch(seats, names, itself, position, HEADER + SHARE, limit) {
            return Err(lost(seats));
        }
        let mut damage = None;
        let (heads, _) = self.heads(seats, newest, itself, position, limit, &mut damage);
        let Some((header, share)) = heads[index] else {
            return Err(damage.unwrap_or_else(|| lost(seats)));
        };
        let length = header.record_bytes();
        if !self.fetch(seats, names, itself, position, length, limit) {
            return Err(lost(seats));
        }
        if !damaged_payloads(seats, itself, position, &heads).is_empty() {
            return Err("a checksum does not hold".to_owned());
        }
        Ok(FoundRecord {
            position,
            end: position + length,
            continues: header.continues,
            share,
        })
    }

    /// Whether the shards of all members, which are there and whole, make one record: the redundancy belongs to the data, and the data
    /// is what was written. What is not so, otherwise.
    pub(super) fn verify(
        &mut self,
        seats: &[Seat],
        names: &Names<'_>,
        found: &FoundRecord,
    ) -> std::result::Result<(), String> {
        let (position, share) = (found.position, &found.share);
        let mut shards: [&[u8]; UNITS_MAX] = [&[]; UNITS_MAX];
        for (shard, seat) in shards.iter_mut().zip(seats) {
            *shard = shard_of(seat, position, share.shard_bytes());
        }
        let (data, redundant) = shards[..seats.len()].split_at(self.layout.data_shards());
        let checked = self.code.verify(data, redundant);
        checked.map_err(|error| error.to_string())?;
        let data = ShardSet::first(self.layout.data_shards());
        let whole = self.assemble(seats, names, data, position, share);
        whole.map_err(|_| "its shares do not make it".to_owned())
    }

    /// The shards to read: data where its member can be used, else redundancy.
    fn choose(
        &self,
        seats: &[Seat],
        names: &Names<'_>,
        position: u64,
        damage: &Option<String>,
    ) -> Result<ShardSet> {
        let needed = self.layout.data_shards();
        let mut chosen = ShardSet::EMPTY;
        let mut doubted = false;
        for (index, seat) in seats.iter().enumerate() {
            let Ok(seat) = seat else { continue };
            if seat.valid_to <= position {
                continue;
            }
            if seat.doubted_to > position {
                doubted |= seat.own_to > position;
            } else if chosen.len() < needed {
                chosen = chosen.with(ShardIndex(index));
            }
        }
        match self.quorum.check_read(chosen.len()) {
            Ok(()) => Ok(chosen),
            Err(what) if doubted => {
                let reason = damage.as_deref().unwrap_or("a share is damaged");
                Err(ClientError::Damaged {
                    region: names.region.to_owned(),
                    what: format!("the record at {position}: {reason}; {what}"),
                })
            }
            Err(what) => Err(too_few(names.region, what, &names.absent(seats, position))),
        }
    }

    /// Sees to it that the windows of all members hold the beginning of a record.
    pub(super) fn fetch_heads(
        &self,
        seats: &mut [Seat],
        names: &Names<'_>,
        position: u64,
        limit: u64,
    ) {
        let there = |(_, seat): &(usize, &Seat)| {
            let seat = seat.as_ref();
            seat.is_ok_and(|seat| seat.valid_to > position)
        };
        let all = seats.iter().enumerate().filter(there);
        let all = all.map(|(index, _)| ShardIndex(index)).collect();
        self.fetch(seats, names, all, position, HEADER + SHARE, limit);
    }

    /// Sees to it that all chosen members' windows hold a range; false if one of them is missing from now on.
    fn fetch(
        &self,
        seats: &mut [Seat],
        names: &Names<'_>,
        chosen: ShardSet,
        position: u64,
        length: u64,
        limit: u64,
    ) -> bool {
        let end = position.saturating_add(length);
        loop {
            let mut posted = [None; UNITS_MAX];
            let mut asked = false;
            for shard in chosen.iter() {
                let Ok(seat) = &mut seats[shard.0] else {
                    return false;
                };
                if seat.bytes(position, length).is_some() {
                    continue;
                }
                seat.move_to(position);
                asked = true;
                // As much as there is, for the records that follow; never what does not count yet.
                let ahead = position.saturating_add(READ_BYTES);
                let ahead = ahead.min(limit).min(seat.valid_to);
                match seat.post_read(end.max(ahead)) {
                    Ok(read) => posted[shard.0] = Some(read),
                    Err(error) => {
                        names.give_up(seats, shard.0, &error);
                        return false;
                    }
                }
            }
            if !asked {
                return true;
            }
            let mut all = true;
            for shard in chosen.iter() {
                if let Some((serial, length)) = posted[shard.0] {
                    all &= self.await_read(seats, names, shard.0, serial, length, position);
                }
            }
            if !all {
                return false;
            }
        }
    }

    /// Waits for one member's bytes; false if it is done without from now on.
    fn await_read(
        &self,
        seats: &mut [Seat],
        names: &Names<'_>,
        index: usize,
        serial: u64,
        length: usize,
        position: u64,
    ) -> bool {
        let spare = seats
            .iter()
            .flatten()
            .filter(|seat| seat.valid_to > position && seat.doubted_to <= position);
        let others_suffice = spare.count() > self.layout.data_shards();
        let Ok(seat) = &mut seats[index] else {
            return false;
        };
        let done = if others_suffice {
            let done = seat.region.link.wait_at_most(serial, self.hedge);
            done.map_err(|error| seat.region.error(error))
        } else {
            seat.wait(serial).map(|()| true)
        };
        let taken = match done {
            Ok(true) => seat.take_read(length),
            Ok(false) => Err(ClientError::TimedOut {
                what: "bytes of the log from a unit that others can stand in for",
                waited_ms: self.hedge.as_millis() as u64,
            }),
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => true,
            Err(error) => {
                names.give_up(seats, index, &error);
                false
            }
        }
    }

    /// Puts the record together, and checks it as a whole.
    fn assemble(
        &mut self,
        seats: &[Seat],
        names: &Names<'_>,
        chosen: ShardSet,
        position: u64,
        share: &RecordShare,
    ) -> Result<()> {
        let shard_bytes = share.shard_bytes();
        let data = ShardSet::first(self.layout.data_shards());
        let wanted = data.without(chosen);
        if !wanted.is_empty() {
            self.compute(seats, chosen, wanted, position, shard_bytes)?;
            self.reconstructed += 1;
        }
        self.record.clear();
        let mut lost = self.lost.iter();
        for shard in data.iter() {
            let left = share.record_bytes as usize - self.record.len();
            let bytes = if chosen.contains(shard) {
                shard_of(&seats[shard.0], position, shard_bytes)
            } else {
                lost.next().map_or(&[][..], Vec::as_slice)
            };
            let bytes = &bytes[..bytes.len().min(left)];
            self.record.extend_from_slice(bytes);
        }
        let whole = self.record.len() as u64 == share.record_bytes
            && spread_record_checksum(&self.id, &self.record) == share.record_checksum;
        if whole {
            return Ok(());
        }
        Err(ClientError::Damaged {
            region: names.region.to_owned(),
            what: format!("the record at {position}: its shares do not make it"),
        })
    }

    fn compute(
        &mut self,
        seats: &[Seat],
        chosen: ShardSet,
        wanted: ShardSet,
        position: u64,
        shard_bytes: u64,
    ) -> Result<()> {
        let invalid = |error: &dyn std::fmt::Display| ClientError::Protocol(error.to_string());
        if !self.plans.iter().any(|plan| plan.present == chosen) {
            let plan =
                Reconstruct::of(&self.code, chosen, wanted).map_err(|error| invalid(&error))?;
            self.plans.push(Plan {
                present: chosen,
                plan,
            });
        }
        self.lost.resize_with(wanted.len(), Vec::new);
        for lost in &mut self.lost {
            lost.resize(shard_bytes as usize, 0);
        }
        let mut sources: [&[u8]; UNITS_MAX] = [&[]; UNITS_MAX];
        for (source, shard) in sources.iter_mut().zip(chosen.iter()) {
            *source = shard_of(&seats[shard.0], position, shard_bytes);
        }
        let mut targets: [&mut [u8]; UNITS_MAX] = std::array::from_fn(|_| Default::default());
        for (target, lost) in targets.iter_mut().zip(&mut self.lost) {
            *target = lost;
        }
        let plan = self.plans.iter().find(|plan| plan.present == chosen);
        let Some(Plan { plan, .. }) = plan else {
            return Err(invalid(&"no plan"));
        };
        plan.apply(&sources[..chosen.len()], &mut targets[..wanted.len()])
            .map_err(|error| invalid(&error))
    }
}

/// Who the members are, for errors.
pub(super) struct Names<'a> {
    pub(super) region: &'a str,
    pub(super) membership: &'a Membership,
}

impl Names<'_> {
    pub(super) fn give_up(&self, seats: &mut [Seat], index: usize, error: &ClientError) {
        let member = &self.membership.members[index];
        tracing::warn!(unit = %member.unit, region = %self.region, %error, "a unit is given up");
        seats[index] = Err(missing(member, error));
    }

    /// Who can't give the record at `position`, and why.
    pub(super) fn absent(&self, seats: &[Seat], position: u64) -> Vec<MissingUnit> {
        let members = self.membership.members.iter();
        members
            .zip(seats)
            .filter_map(|(member, seat)| match seat {
                Err(missing) => Some(missing.clone()),
                Ok(seat) if seat.own_to <= position => Some(MissingUnit {
                    unit: member.unit.as_str().into(),
                    reason: format!("its log ends at {}", seat.own_to),
                }),
                Ok(_) => None,
            })
            .collect()
    }
}

/// Those whose share does not go with the record that `header` and `share` begin.
fn strangers(found: &Heads, header: &RecordHeader, share: &RecordShare) -> ShardSet {
    let stranger = |(_, head): &(usize, &Option<(RecordHeader, RecordShare)>)| {
        head.as_ref().is_some_and(|(other, own)| {
            !own.goes_with(share)
                || other.payload_bytes != header.payload_bytes
                || other.continues != header.continues
        })
    };
    let strangers = found.iter().enumerate().filter(stranger);
    strangers.map(|(index, _)| ShardIndex(index)).collect()
}

/// The two headers of a member's record.
fn head_of(
    seat: &LogSeat,
    layout: Layout,
    index: usize,
    position: u64,
    limit: u64,
) -> std::result::Result<(RecordHeader, RecordShare), String> {
    let bytes = seat.bytes(position, HEADER + SHARE).unwrap_or_default();
    let header = RecordHeader::decode(bytes, LogPosition(position), &seat.geometry)
        .map_err(|error| error.to_string())?;
    let share = bytes.get(HEADER as usize..).unwrap_or_default();
    let share = RecordShare::decode(share, header.payload_bytes.into())
        .map_err(|error| error.to_string())?;
    if share.layout != layout.to_bytes() || usize::from(share.own_index) != index {
        return Err("its share is another member's".to_owned());
    }
    if position + header.record_bytes() > limit.min(seat.valid_to) {
        return Err("it reaches beyond the log's end".to_owned());
    }
    Ok((header, share))
}

/// Those whose payload is not what was written.
fn damaged_payloads(seats: &[Seat], chosen: ShardSet, position: u64, heads: &Heads) -> ShardSet {
    let sound = |shard: &ShardIndex| {
        let (Ok(seat), Some((header, _))) = (&seats[shard.0], &heads[shard.0]) else {
            return false;
        };
        let payload = seat.bytes(position + HEADER, header.payload_bytes.into());
        let payload = payload.unwrap_or_default();
        let computed = record_payload_checksum(&seat.region.info.id, payload);
        header.verify_payload_checksum(computed).is_ok()
    };
    chosen.iter().filter(|shard| !sound(shard)).collect()
}

/// Members that don't have the record at `position`, or not as it was written: one that has not published it has none of the later ones.
fn doubt(seats: &mut [Seat], bad: ShardSet, position: u64, end: u64) {
    for shard in bad.iter() {
        if let Ok(seat) = &mut seats[shard.0] {
            let end = if seat.own_to > position {
                end
            } else {
                u64::MAX
            };
            seat.doubted_to = seat.doubted_to.max(end);
            seat.forget();
        }
    }
}

pub(super) fn shard_of(seat: &Seat, position: u64, shard_bytes: u64) -> &[u8] {
    let seat = seat.as_ref().ok();
    seat.and_then(|seat| seat.bytes(position + HEADER + SHARE, shard_bytes))
        .unwrap_or_default()
}
