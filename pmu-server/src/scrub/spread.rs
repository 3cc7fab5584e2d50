//! Regions that are spread over several units: one of the members scrubs them for all. Each asks the others when that was done last, and the
//! later ones in the order of the members wait a little longer. Two that do it at one time do no harm.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use pmu_client::rebuild::{Administer, NewMember, RebuildOptions};
use pmu_client::scrub::{self, Scrubbed};
use pmu_client::{
    ClientError, ConnectOptions, Network, OpenOptions, Reach, ReachedUnit, RebuildProgress,
    RegionInfo,
};
use pmu_format::{Member, Membership, RegionEntry};

use super::book::Outcome;
use super::clock::{Clock, Stop};
use super::{End, Worker};
use crate::metrics;

/// How long a member may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The network, with the clock and the sign to stop of the scrub.
struct Paced {
    network: Network,
    clock: Arc<dyn Clock>,
    stop: Arc<Stop>,
}

impl Reach for Paced {
    fn unit(&self, member: &Member) -> pmu_client::Result<Box<dyn ReachedUnit>> {
        self.network.unit(member)
    }

    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        self.network.at_once(count, work);
    }

    fn pause(&self, time: Duration) {
        self.clock.pause(time, &self.stop);
    }

    fn random(&self) -> pmu_client::Result<[u8; 16]> {
        self.network.random()
    }
}

/// A unit is no manager: it changes no members.
struct NoManager;

impl NoManager {
    fn refuse() -> pmu_client::Result<()> {
        let what = "a unit that scrubs changes no members".to_owned();
        Err(ClientError::Invalid(what))
    }
}

impl Administer for NoManager {
    fn create_member(&self, _: &Member, _: &NewMember<'_>) -> pmu_client::Result<()> {
        Self::refuse()
    }

    fn set_membership(
        &self,
        _: &Member,
        _: &str,
        _: u64,
        _: &Membership,
    ) -> pmu_client::Result<()> {
        Self::refuse()
    }
}

/// What the members say of the region.
#[derive(Default)]
struct Told {
    /// By the one that knows the latest members.
    info: Option<RegionInfo>,
    /// The newest end of a scrub, in seconds since 1970, and who told of it.
    finished: (u64, String),
    /// Another unit that scrubs it now.
    running: Option<String>,
    /// Why those that said nothing did not.
    silent: Vec<String>,
}

impl Worker {
    pub(super) fn scrub_spread(&self, entry: &RegionEntry) -> End {
        let failed = |why: String, is_expected| End::Failed { why, is_expected };
        let Some(identity) = &self.identity else {
            let why = "it is spread over several units, and [scrub] has no identity to reach them";
            return failed(why.into(), true);
        };
        let membership = match Membership::decode(&entry.attributes) {
            Ok(membership) if membership.generation > 0 => membership,
            Ok(_) => return failed("it is being filled, and no member yet".into(), true),
            Err(error) => return failed(format!("its members: {error}"), false),
        };
        let reach = Arc::new(Paced {
            network: Network::new(identity, &ConnectOptions::with_timeout(ANSWER_WITHIN)),
            clock: Arc::clone(&self.clock),
            stop: Arc::clone(&self.stop),
        });
        let told = self.ask(entry, &membership, reach.as_ref());
        if self.stop.is_given() {
            return End::GivenUp;
        }
        if let Some(end) = self.done_elsewhere(entry, &told) {
            return end;
        }
        let Some(info) = told.info else {
            return failed(told.silent.join("; "), false);
        };
        self.book.begin(&entry.id, self.now_s());
        let (found, bytes) = self.work(&info, reach);
        match found {
            Ok(found) => End::Finished(outcome_of(&found, bytes)),
            Err(_) if self.stop.is_given() => End::GivenUp,
            Err(error) => failed(error.to_string(), matches!(error, ClientError::Invalid(_))),
        }
    }

    fn ask(&self, entry: &RegionEntry, membership: &Membership, reach: &dyn Reach) -> Told {
        let mut told = Told::default();
        for member in &membership.members {
            if self.stop.is_given() {
                break;
            }
            let asked = reach.unit(member);
            let info = match asked.and_then(|unit| unit.describe(entry.name.as_str())) {
                Ok(info) => info,
                Err(error) => {
                    told.silent.push(format!("{}: {error}", member.unit));
                    continue;
                }
            };
            let unit = member.unit.as_str();
            if unit != self.unit.as_ref() {
                if info.is_being_scrubbed {
                    told.running = Some(unit.to_owned());
                }
                if info.scrubbed_at_s > told.finished.0 {
                    told.finished = (info.scrubbed_at_s, unit.to_owned());
                }
            }
            if generation(&info) > told.info.as_ref().map_or(0, generation) {
                told.info = Some(info);
            }
        }
        told
    }

    /// Whether another unit does it now, or has done it since this one knew of it last.
    fn done_elsewhere(&self, entry: &RegionEntry, told: &Told) -> Option<End> {
        let (finished, unit) = &told.finished;
        let finished_s = (*finished).min(self.now_s());
        let own_s = self.book.finished_s(&entry.id);
        if finished_s > own_s {
            let unit = unit.clone();
            return Some(End::FinishedBy { finished_s, unit });
        }
        // One that takes longer than the interval hangs, or says so for ever.
        let is_late = own_s > 0 && self.now_s() > own_s + 2 * self.section.every.0;
        let unit = told.running.as_ref().filter(|_| !is_late)?;
        Some(End::Failed {
            why: format!("{unit} scrubs it now"),
            is_expected: true,
        })
    }

    /// Reads, and repairs; what was found, and how many bytes were done.
    fn work(&self, info: &RegionInfo, reach: Arc<Paced>) -> (pmu_client::Result<Scrubbed>, u64) {
        let (mut bytes, mut last) = (0, 0);
        let mut on_progress = |progress: &RebuildProgress| {
            // Each part of the work counts anew.
            let more = match progress.bytes_done.checked_sub(last) {
                Some(more) => more,
                None => progress.bytes_done,
            };
            last = progress.bytes_done;
            bytes += more;
            self.book.advance(more);
            metrics::count_scrubbed(more);
            match self.stop.is_given() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let options = RebuildOptions {
            open: OpenOptions::new(),
            rate_bytes_per_s: Some(self.section.rate.0.0),
            on_progress: &mut on_progress,
        };
        let found = scrub::scrub(info, reach, &NoManager, self.section.repair, options);
        (found, bytes)
    }
}

fn generation(info: &RegionInfo) -> u64 {
    let membership = info.membership.as_ref();
    membership.map_or(0, |membership| membership.generation)
}

fn outcome_of(found: &Scrubbed, bytes: u64) -> Outcome {
    let mut outcome = Outcome {
        bytes,
        damaged: found.mismatches.len() as u64 + u64::from(found.log_damage.is_some()),
        unreadable: found.missing.len() as u64,
        ..Outcome::default()
    };
    for unit in &found.units {
        let damaged = unit.damage.len() as u64;
        outcome.damaged += damaged;
        if found.repaired.iter().any(|given| given.unit == unit.unit) {
            outcome.repaired += damaged;
        }
        let name = &unit.unit;
        let damage = unit.damage.iter().map(|what| format!("{name}: {what}"));
        let lacking = unit.lacking.iter();
        let lacking = lacking.map(|set| format!("{name}: has no share of set {set}"));
        outcome.findings.extend(damage.chain(lacking));
        if unit.records_lacking > 0 {
            let records = unit.records_lacking;
            outcome
                .findings
                .push(format!("{name}: lacks {records} records"));
        }
    }
    let mismatches = found.mismatches.iter();
    let mismatches = mismatches.map(|wrong| match wrong.position {
        Some(position) => format!("record at {position}: {}", wrong.what),
        None => format!("set {}, group {}: {}", wrong.set, wrong.group, wrong.what),
    });
    outcome
        .findings
        .extend(mismatches.chain(found.log_damage.clone()));
    let missing = found.missing.iter();
    let missing = missing.map(|missing| format!("{}: {}", missing.unit, missing.reason));
    outcome.findings.extend(missing);
    outcome
}
