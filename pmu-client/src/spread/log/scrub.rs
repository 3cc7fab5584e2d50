//! Reads all that the members hold of a log, and holds it against its checksums and its redundancy.

use pmu_format::LogPosition;

use super::fill::Sources;
use super::shards::FoundRecord;
use crate::error::Result;
use crate::spread::copy::Course;
use crate::spread::scrub::{Mismatch, Scrubbed};

/// Progress is told each time that so many bytes were read.
const STEP_BYTES: u64 = 4 << 20;
/// So many damaged records of a unit are named.
const DAMAGE_TOLD_MAX: usize = 1000;

/// What a member has of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Has {
    /// The member can't be read.
    Missing,
    /// Its log ends before.
    Lacks,
    Damaged(String),
    Whole(FoundRecord),
}

/// Reads every record from the cursor to the end of the log, from each member that answers. What a live primary overwrites meanwhile was
/// cleared, and is no damage.
///
/// # Errors
/// [`crate::ClientError::TooFewUnits`]: it can't be told where the log begins and ends. [`crate::ClientError::Interrupted`].
pub(in crate::spread) fn scrub(
    sources: &mut Sources,
    found: &mut Scrubbed,
    course: &mut Course<'_, '_>,
) -> Result<()> {
    let mut position = sources.cursor;
    let end = sources.end();
    let mut scrub = Scrub {
        lagging: vec![false; found.units.len()],
        untold_bytes: 0,
    };
    found.records = Some(0);
    course.progress.bytes_total = (end - position) * found.units.len() as u64;
    while position < end.min(sources.end()) {
        let all = scrub.look_at(sources, position)?;
        if all.iter().any(|has| !matches!(has, Has::Whole(_))) {
            // It may have been cleared, and its room used again.
            sources.look()?;
            if sources.cursor > position {
                position = sources.cursor;
                continue;
            }
            if position >= sources.end() {
                // The unit that had published it is gone meanwhile, and the others never did.
                break;
            }
        }
        let Some(next) = scrub.judge(sources, &all, position, found) else {
            if all.contains(&Has::Missing) {
                // It may be on a unit that doesn't answer, and so what comes behind it.
                found.groups_incomplete += 1;
            } else {
                let what = format!("the record at {position} is on no unit whole");
                found.log_damage = Some(what);
            }
            break;
        };
        position = next;
        scrub.tell(course, position, STEP_BYTES)?;
    }
    scrub.tell(course, position, 0)
}

struct Scrub {
    /// Members whose log ends too early.
    lagging: Vec<bool>,
    untold_bytes: u64,
}

impl Scrub {
    fn tell(&mut self, course: &mut Course<'_, '_>, position: u64, step: u64) -> Result<()> {
        if self.untold_bytes < step {
            return Ok(());
        }
        course.progress.position = LogPosition(position);
        course.advance(std::mem::take(&mut self.untold_bytes))
    }

    /// What each member has at `position`.
    fn look_at(&mut self, sources: &mut Sources, position: u64) -> Result<Vec<Has>> {
        for index in 0..self.lagging.len() {
            let behind = |sources: &Sources| {
                let seat = sources.seats[index].as_ref();
                seat.is_ok_and(|seat| seat.own_to <= position)
            };
            // A live primary tells one member after the other.
            if !self.lagging[index] && behind(sources) {
                self.lagging[index] = sources.lags(index)? && behind(sources);
            }
        }
        let limit = sources.newest.committed;
        let names = sources.spread.names();
        let seats = &mut sources.seats;
        sources.reader.fetch_heads(seats, &names, position, limit);
        let mut all = Vec::with_capacity(seats.len());
        for index in 0..seats.len() {
            let behind = match &seats[index] {
                Err(_) => {
                    all.push(Has::Missing);
                    continue;
                }
                Ok(seat) => seat.own_to <= position,
            };
            let range = (position, limit);
            let reader = &sources.reader;
            all.push(
                match reader.read_own(seats, &names, &sources.newest, index, range) {
                    _ if seats[index].is_err() => Has::Missing,
                    Ok(found) => Has::Whole(found),
                    Err(_) if behind => Has::Lacks,
                    Err(what) => Has::Damaged(what),
                },
            );
        }
        Ok(all)
    }

    /// Takes note of a record; where the next one begins, if any member can tell.
    fn judge(
        &mut self,
        sources: &mut Sources,
        all: &[Has],
        position: u64,
        found: &mut Scrubbed,
    ) -> Option<u64> {
        let whole = all.iter().filter_map(|has| match has {
            Has::Whole(found) => Some(*found),
            _ => None,
        });
        let first = whole
            .clone()
            .max_by_key(|found| (found.share.term, found.share.sequence));
        for (unit, has) in found.units.iter_mut().zip(all) {
            match has {
                Has::Missing => {}
                Has::Lacks => unit.records_lacking += 1,
                Has::Damaged(what) => note(&mut unit.damage, position, what),
                Has::Whole(one) => {
                    unit.records += 1;
                    unit.bytes += one.end - position;
                    self.untold_bytes += one.end - position;
                }
            }
        }
        let first = first?;
        *found.records.get_or_insert(0) += 1;
        let strangers = whole.clone().any(|one| {
            !one.share.goes_with(&first.share)
                || (one.end, one.continues) != (first.end, first.continues)
        });
        let names = sources.spread.names();
        let checked = if strangers {
            Err("its shares belong to several records".to_owned())
        } else if whole.count() < all.len() {
            found.groups_incomplete += 1;
            return Some(first.end);
        } else {
            sources.reader.verify(&sources.seats, &names, &first)
        };
        found.groups += 1;
        if let Err(what) = checked {
            found.mismatches.push(Mismatch {
                set: 0,
                group: 0,
                position: Some(position),
                what,
            });
        }
        Some(first.end)
    }
}

fn note(damage: &mut Vec<String>, position: u64, what: &str) {
    match damage.len() {
        0..DAMAGE_TOLD_MAX => damage.push(format!("the record at {position}: {what}")),
        DAMAGE_TOLD_MAX => damage.push("more, which are not named".to_owned()),
        _ => {}
    }
}
