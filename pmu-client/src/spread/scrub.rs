//! Scrubs a spread region: reads every share of every kept set (or record), holds each chunk against its checksum and the redundancy of each
//! group against its data, and gives members anew what is damaged.

use std::collections::BTreeSet;
use std::sync::Arc;

use pmu_format::{Mode, SetNumber};
use pmu_stripe::{Code, Group, Placement, UnitIndex};

use crate::error::{ClientError, Result};
use crate::region::RegionInfo;
use crate::spread::copy::{Course, gone_or, kept, placement, still_counts};
use crate::spread::log::Sources;
use crate::spread::reader::{Chosen, SpreadReader};
use crate::spread::rebuild::{Administer, RebuildOptions, RebuiltUnit, Work};
use crate::spread::{MissingUnit, Reach, Spread};

/// What a scrub found, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scrubbed {
    /// Sets that were read.
    pub sets: u32,
    /// Of a log: records that were read. Each is a redundancy group.
    pub records: Option<u64>,
    /// Of a log: from where on it can't be followed, as no unit has the record that stands there.
    pub log_damage: Option<String>,
    /// Redundancy groups whose redundancy was held against their data.
    pub groups: u64,
    /// Groups of which it could not be, for a shard was missing or damaged.
    pub groups_incomplete: u64,
    /// The members, in the order of their indices.
    pub units: Vec<ScrubbedUnit>,
    /// Groups whose redundancy doesn't belong to their data although all checksums are right: nobody can say which of both is wrong, and so
    /// nothing of them is repaired.
    pub mismatches: Vec<Mismatch>,
    /// What units were given anew.
    pub repaired: Vec<RebuiltUnit>,
    /// Units that could not be read, or be given anew what they lack.
    pub missing: Vec<MissingUnit>,
}

impl Scrubbed {
    /// Whether something was found that is not as it was written.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let damaged = |unit: &ScrubbedUnit| !unit.damage.is_empty();
        let lost = !self.mismatches.is_empty() || self.log_damage.is_some();
        lost || self.units.iter().any(damaged)
    }

    /// Whether everything that was found damaged or lacking is right now.
    #[must_use]
    pub fn is_repaired(&self) -> bool {
        let given = |name: &str| self.repaired.iter().any(|repaired| repaired.unit == name);
        let mut needing = self.units.iter().filter(|unit| unit.needs_something());
        let lost = !self.mismatches.is_empty() || self.log_damage.is_some();
        !lost && needing.all(|unit| given(&unit.unit))
    }
}

/// What one member holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ScrubbedUnit {
    /// The unit.
    pub unit: String,
    /// Chunks that were held against their checksums.
    pub chunks: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is damaged: which set and chunk, and how.
    pub damage: Vec<String>,
    /// Sets of which it has no share, or a part of one: it was away, or cut off, when they were written.
    pub lacking: Vec<u64>,
    /// Of a log: records whose share was held against its checksums.
    #[serde(skip_serializing_if = "is_zero")]
    pub records: u64,
    /// Of a log: records behind the end of its own.
    #[serde(skip_serializing_if = "is_zero")]
    pub records_lacking: u64,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl ScrubbedUnit {
    fn needs_something(&self) -> bool {
        !self.damage.is_empty() || !self.lacking.is_empty() || self.records_lacking > 0
    }
}

/// A group whose redundancy doesn't belong to its data.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Mismatch {
    /// The set; 0 in a log.
    pub set: u64,
    /// The group; 0 in a log.
    pub group: u64,
    /// Of a log: where the record stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// What differs.
    pub what: String,
}

/// Reads everything that the members hold of the kept sets, or of a log that was not cleared, and repairs it where `repair` says so. A live primary goes on meanwhile: what
/// it has overwritten is no damage.
///
/// # Errors
/// [`ClientError::TooFewUnits`]: it can't be told which sets count. [`ClientError::Interrupted`]. Damage is no error: it stands in the
/// result, also where there is too much of it to be repaired.
pub fn scrub(
    info: &RegionInfo,
    reach: Arc<dyn Reach>,
    admin: &dyn Administer,
    repair: bool,
    options: RebuildOptions<'_>,
) -> Result<Scrubbed> {
    let open = options.open;
    let mut work = Work::new(info, reach, admin, options);
    let spread = work.look()?;
    let members = spread.membership.members.iter();
    let mut found = Scrubbed {
        units: members
            .map(|member| ScrubbedUnit {
                unit: member.unit.to_string(),
                ..ScrubbedUnit::default()
            })
            .collect(),
        ..Scrubbed::default()
    };
    match spread.mode {
        Mode::Overwrite => {
            let mut reader = spread.open_reader(&open)?;
            read_terms(&mut reader, &mut found);
            read_all(&mut reader, &mut found, &mut work.course())?;
            found.missing = reader.missing().cloned().collect();
        }
        Mode::Append => {
            let mut sources = Sources::open(&spread, &open, open.timeouts.stall)?;
            super::log::scrub(&mut sources, &mut found, &mut work.course())?;
            found.missing = sources.missing().cloned().collect();
        }
    }
    if repair {
        repair_all(&mut work, &spread, &mut found)?;
    }
    Ok(found)
}

fn repair_all(work: &mut Work<'_, '_>, spread: &Spread, found: &mut Scrubbed) -> Result<()> {
    for index in 0..found.units.len() {
        let unit = &found.units[index];
        let is_torn = !unit.damage.is_empty() || !unit.lacking.is_empty();
        let Some(reached) = spread.units[index].as_ref().ok() else {
            continue;
        };
        if !unit.needs_something() {
            continue;
        }
        match work.repair(spread, index, reached.as_ref(), is_torn) {
            Ok(given) => found.repaired.extend(given),
            Err(ClientError::Interrupted) => return Err(ClientError::Interrupted),
            Err(error) => {
                let member = &spread.membership.members[index];
                found.missing.push(super::missing(member, &error));
            }
        }
    }
    Ok(())
}

/// A member whose term record is damaged has no vote, and can be given it anew.
fn read_terms(reader: &mut SpreadReader<'_>, found: &mut Scrubbed) {
    let id = reader.spread.membership.id;
    for (member, unit) in reader.members.iter_mut().zip(&mut found.units) {
        if let Ok(member) = member
            && let Err(ClientError::Damaged { what, .. }) = member.stand(id)
        {
            unit.damage.push(what);
        }
    }
}

fn read_all(
    reader: &mut SpreadReader<'_>,
    found: &mut Scrubbed,
    course: &mut Course<'_, '_>,
) -> Result<()> {
    let newest = reader.newest_durable()?;
    let numbers = kept(&newest, reader.spread.sets_kept);
    let last = *numbers.end();
    for number in numbers {
        let Some(term) = newest.term_of(number) else {
            continue;
        };
        let sets_left = last - number + 1;
        let number = SetNumber(number);
        course.begin(number);
        let mut now = found.clone();
        let read = reader.choose(number, term).and_then(|chosen| {
            course.expect(sets_left * bytes_of(&chosen, reader)?);
            read_set(reader, &chosen, &mut now, course)
        });
        if let Err(error) = read {
            gone_or(reader, number, &newest, error)?;
            continue;
        }
        // What a live primary has overwritten meanwhile says nothing.
        let later = reader.newest()?;
        if still_counts(number, &newest, &later, reader.spread.sets_kept) {
            *found = now;
            found.sets += 1;
        }
    }
    Ok(())
}

/// What the members that have their share of a set hold of it.
fn bytes_of(chosen: &Chosen, reader: &SpreadReader<'_>) -> Result<u64> {
    let placement = placement(&chosen.trailer, reader.spread)?;
    let seats = chosen.seats.iter().zip(&reader.members).enumerate();
    let held = seats.filter(|(_, (seat, member))| seat.is_ok() && member.is_ok());
    Ok(held
        .map(|(index, _)| placement.unit_len(UnitIndex(index)))
        .sum())
}

fn read_set(
    reader: &mut SpreadReader<'_>,
    chosen: &Chosen,
    found: &mut Scrubbed,
    course: &mut Course<'_, '_>,
) -> Result<()> {
    let spread = reader.spread;
    let number = chosen.trailer.number.get();
    let placement = placement(&chosen.trailer, spread)?;
    let code = Code::new(spread.layout);
    let mut damaged: Vec<BTreeSet<String>> = vec![BTreeSet::new(); chosen.seats.len()];
    for (index, seat) in chosen.seats.iter().enumerate() {
        let unit = &mut found.units[index];
        match (seat, &chosen.held[index], &mut reader.members[index]) {
            (_, _, Err(_)) => {}
            (Err(_), Err(damage), Ok(_)) => {
                damaged[index].insert(damage.clone());
            }
            (Err(_), Ok(_), Ok(_)) => unit.lacking.push(number),
            (Ok(_), _, Ok(member)) => unit.chunks += u64::from(member.chunk_count()),
        }
    }
    let mut shards = vec![Vec::new(); spread.layout.units()];
    for group in placement.groups() {
        let whole = read_group(
            reader,
            chosen,
            &placement,
            &group,
            &mut shards,
            &mut damaged,
            found,
            course,
        )?;
        if !whole {
            found.groups_incomplete += 1;
            continue;
        }
        found.groups += 1;
        let slices: Vec<&[u8]> = shards.iter().map(Vec::as_slice).collect();
        let (data, redundant) = slices.split_at(spread.layout.data_shards());
        if let Err(error) = code.verify(data, redundant) {
            found.mismatches.push(Mismatch {
                set: number,
                group: group.group.0,
                position: None,
                what: error.to_string(),
            });
        }
    }
    for (index, damaged) in damaged.into_iter().enumerate() {
        let unit = &mut found.units[index];
        let may_lack = reader.members[index]
            .as_ref()
            .is_ok_and(|member| member.may_lack(number));
        if may_lack && !damaged.is_empty() {
            unit.lacking.push(number);
        } else {
            unit.damage.extend(damaged);
        }
    }
    Ok(())
}

/// Reads all shards of a group; false if one can't be had.
#[allow(
    clippy::too_many_arguments,
    reason = "one loop, whose state is the caller's"
)]
fn read_group(
    reader: &mut SpreadReader<'_>,
    chosen: &Chosen,
    placement: &Placement,
    group: &Group,
    shards: &mut [Vec<u8>],
    damaged: &mut [BTreeSet<String>],
    found: &mut Scrubbed,
    course: &mut Course<'_, '_>,
) -> Result<bool> {
    let mut whole = true;
    for shard in placement.shards(group) {
        let index = shard.unit.0;
        let (Ok(_), Ok(member)) = (&chosen.seats[index], &mut reader.members[index]) else {
            whole &= shard.len == 0;
            shards[shard.shard.0].clear();
            continue;
        };
        let bytes = &mut shards[shard.shard.0];
        match member.read_all(shard.offset, shard.len, bytes) {
            Ok(()) => {}
            Err(ClientError::Damaged { what, .. }) => {
                whole = false;
                damaged[index].insert(what);
                let rest = member.damaged_chunks(shard.offset, shard.len)?;
                damaged[index].extend(rest);
            }
            Err(error) => {
                whole = false;
                let own = &reader.spread.membership.members[index];
                reader.members[index] = Err(super::missing(own, &error));
            }
        }
        found.units[index].bytes += shard.len;
        course.advance(shard.len)?;
    }
    Ok(whole)
}
