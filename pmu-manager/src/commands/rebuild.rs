//! `pmm region rebuild` and `pmm region scrub`: the engines of `pmu-client`, with a manager's rights, progress on a terminal, and an end on
//! Ctrl-C that leaves everything to be gone on with.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pmu_auth::Identity;
use pmu_client::rebuild::{self, Administer, NewMember, RebuildOptions, Rebuilt, Replacement};
use pmu_client::scrub::Scrubbed;
use pmu_client::{
    ClientError, ConnectOptions, MissingUnit, Network, OpenOptions, RebuildProgress, RegionInfo,
};
use pmu_format::{Member, Membership, Mode, Need, Rights};
use pmu_proto::v1;
use pmu_proto::v1::create_region_request::Room;
use tokio::runtime::Handle;

use super::spread::{Sought, Spread};
use super::{Context, region};
use crate::cli::{RegionArgument, RegionRebuildArguments, RegionScrubArguments};
use crate::config::Unit;
use crate::connect::Connection;
use crate::error::{ManagerError, exit};
use crate::loans::Loans;
use crate::report::{
    FindingReport, MemberVerifyReport, MissingReport, RebuildReport, ScrubReport,
    SpreadVerifyReport, Verified,
};

/// `region rebuild`
///
/// # Errors
/// Those of [`super::spread::seek`]; [`ManagerError::Usage`] for a region that is not spread; [`ManagerError::Client`].
pub async fn rebuild(
    context: &Context,
    arguments: &RegionRebuildArguments,
) -> Result<RebuildReport, ManagerError> {
    let new = match &arguments.replace {
        Some(replace) => Some(context.units.choose(Some(&replace.new))?.clone()),
        None => None,
    };
    let spread = sought(context, &arguments.name).await?;
    let mut units: Vec<_> = spread.units().cloned().collect();
    let old = arguments.replace.as_ref().and_then(|replace| {
        let known = units.iter().find(|unit| unit.name == replace.old);
        known
            .or_else(|| context.units.iter().find(|unit| unit.name == replace.old))
            .cloned()
    });
    for more in new.iter().chain(&old) {
        if !units.iter().any(|unit| unit.name == more.name) {
            units.push(more.clone());
        }
    }
    let rights = writing(&spread)?;
    let work = Work::begin(context, &arguments.name, &spread, &units, rights).await?;
    let replacement = arguments
        .replace
        .as_ref()
        .zip(new)
        .map(|(replace, new)| Replacement {
            old: replace.old.to_string(),
            old_address: old.as_ref().map(|old| old.address.to_string()),
            new: Member {
                unit: new.name.clone(),
                address: new.address.to_string(),
            },
            old_is_lost: arguments.lost,
        });
    let only = arguments.unit.as_ref().map(ToString::to_string);
    let rate = arguments.rate.map(|rate| rate.0);
    let is_replacement = replacement.is_some();
    let done = work
        .run(
            rate,
            move |info, reach, admin, options| match &replacement {
                Some(replacement) => rebuild::replace(info, reach, admin, replacement, options),
                None => rebuild::rebuild(info, reach, admin, only.as_deref(), options),
            },
        )
        .await;
    work.end().await;
    let done = done?;
    let mut old_deleted = None;
    if let (true, Some(old)) = (arguments.delete_old, old) {
        old_deleted = Some(delete_old(context, &old, arguments.name.as_str()).await);
    }
    let report = rebuild_report(arguments.name.as_str(), done, is_replacement);
    Ok(RebuildReport {
        old_deleted,
        ..report
    })
}

fn rebuild_report(region: &str, done: Rebuilt, is_replacement: bool) -> RebuildReport {
    // Who is replaced is mostly dead; who is to be brought up to date should answer.
    let is_short = !is_replacement && !done.missing.is_empty();
    RebuildReport {
        region: region.to_owned(),
        generation: done.generation,
        units: done.units,
        missing: missing_reports(&done.missing),
        bytes_read: done.bytes_read,
        old_deleted: None,
        exit_code: if is_short {
            exit::UNAVAILABLE
        } else {
            exit::DONE
        },
    }
}

async fn delete_old(context: &Context, old: &Unit, name: &str) -> bool {
    let deleted = async {
        let identity = context.identity()?;
        let connection = Connection::open(old, &identity, context.timeout()).await?;
        region::delete_on(&connection, context.timeout_long(), name.to_owned(), true).await
    };
    deleted.await.is_ok()
}

/// `region scrub`
///
/// # Errors
/// As [`rebuild()`]. Damage is no error: it stands in the report.
pub async fn scrub(
    context: &Context,
    arguments: &RegionScrubArguments,
) -> Result<ScrubReport, ManagerError> {
    let spread = sought(context, &arguments.name).await?;
    let units: Vec<_> = spread.units().cloned().collect();
    let rate = arguments.rate.map(|rate| rate.0);
    let repair = !arguments.no_repair;
    let rights = match repair {
        true => writing(&spread)?,
        false => Rights::READ,
    };
    let work = Work::begin(context, &arguments.name, &spread, &units, rights).await?;
    let done = work
        .run(rate, move |info, reach, admin, options| {
            pmu_client::scrub::scrub(info, reach, admin, repair, options)
        })
        .await;
    work.end().await;
    Ok(scrub_report(arguments.name.as_str(), done?))
}

/// What it takes to write a member.
fn writing(spread: &Spread) -> Result<Rights, ManagerError> {
    let (_, shown) = spread.first_shown(None)?;
    let region = shown.region.as_ref();
    let is_log = region.is_some_and(|region| region.mode() == v1::Mode::Append);
    Ok(writing_of(match is_log {
        true => Mode::Append,
        false => Mode::Overwrite,
    }))
}

fn writing_of(mode: Mode) -> Rights {
    Rights::READ
        | match mode {
            Mode::Overwrite => Rights::WRITE,
            Mode::Append => Rights::APPEND,
        }
}

/// `region verify`: of a region of one unit, or of all members of a spread one.
///
/// # Errors
/// Those of [`super::spread::seek`] and [`region::verify`]. Damage is no error: it stands in the report.
pub async fn verify(
    context: &Context,
    arguments: &RegionArgument,
) -> Result<(Verified, u8), ManagerError> {
    let unit = arguments.on.unit.as_ref();
    let is_one = unit.is_some() || context.units.iter().count() == 1;
    let spread = match is_one {
        true => None,
        false => match super::spread::seek(context, &arguments.name, None).await? {
            Sought::Spread(spread) => Some(spread),
            Sought::One { .. } => None,
        },
    };
    let Some(spread) = spread else {
        let report = region::verify(context, arguments).await?;
        let exit_code = report.exit_code;
        return Ok((Verified::One(report), exit_code));
    };
    let report = verify_spread(context, arguments, &spread).await?;
    let exit_code = report.exit_code;
    Ok((Verified::Spread(report), exit_code))
}

async fn verify_spread(
    context: &Context,
    arguments: &RegionArgument,
    spread: &Spread,
) -> Result<SpreadVerifyReport, ManagerError> {
    let mut units = Vec::new();
    for unit in spread.units() {
        units.push(verify_tables(context, unit, arguments.name.as_str()).await);
    }
    let scrubbing = RegionScrubArguments {
        name: arguments.name.clone(),
        no_repair: true,
        rate: None,
    };
    let (contents, contents_note, mut exit_code) = match scrub(context, &scrubbing).await {
        Ok(report) => {
            let exit_code = report.exit_code;
            (Some(report), None, exit_code)
        }
        Err(error) => (None, Some(error.text()), error.exit_code()),
    };
    let is_damage = |finding: &FindingReport| finding.severity != "note";
    let tables = units.iter().any(|unit| unit.findings.iter().any(is_damage));
    let damaged = tables || contents.as_ref().is_some_and(|contents| contents.damaged);
    if damaged {
        exit_code = exit::DAMAGED;
    } else if exit_code == exit::DONE && units.iter().any(|unit| unit.error.is_some()) {
        exit_code = exit::UNAVAILABLE;
    }
    Ok(SpreadVerifyReport {
        region: arguments.name.to_string(),
        units,
        contents,
        contents_note,
        damaged,
        exit_code,
    })
}

async fn verify_tables(context: &Context, unit: &Unit, name: &str) -> MemberVerifyReport {
    let checked = async {
        let identity = context.identity()?;
        let connection = Connection::open(unit, &identity, context.timeout()).await?;
        let shown = region::ask_show(&connection, context.timeout(), name).await?;
        region::verify_pool(&connection, context, &shown.pool).await
    };
    let (structures_checked, findings, error) = match checked.await {
        Ok((structures, findings)) => (structures, findings, None),
        Err(error) => (0, Vec::new(), Some(error.text())),
    };
    MemberVerifyReport {
        unit: unit.name.to_string(),
        structures_checked,
        findings,
        error,
    }
}

fn scrub_report(region: &str, found: Scrubbed) -> ScrubReport {
    let (damaged, is_repaired) = (found.is_damaged(), found.is_repaired());
    let exit_code = match (damaged, is_repaired) {
        (true, false) => exit::DAMAGED,
        _ if !found.missing.is_empty() => exit::UNAVAILABLE,
        _ => exit::DONE,
    };
    ScrubReport {
        region: region.to_owned(),
        sets: found.sets,
        groups: found.groups,
        groups_incomplete: found.groups_incomplete,
        records: found.records,
        log_damage: found.log_damage,
        missing: missing_reports(&found.missing),
        units: found.units,
        mismatches: found.mismatches,
        repaired: found.repaired,
        damaged,
        is_repaired,
        exit_code,
    }
}

fn missing_reports(missing: &[MissingUnit]) -> Vec<MissingReport> {
    let reports = missing.iter().map(|missing| MissingReport {
        unit: missing.unit.to_string(),
        reason: missing.reason.clone(),
    });
    reports.collect()
}

async fn sought(context: &Context, name: &pmu_format::RegionName) -> Result<Spread, ManagerError> {
    match super::spread::seek(context, name, None).await? {
        Sought::Spread(spread) => Ok(spread),
        Sought::One { unit, .. } => Err(ManagerError::Usage {
            detail: format!(
                "region {name} of unit {} is not spread over several units: there is nothing that it could be rebuilt from",
                unit.name
            ),
        }),
    }
}

/// A rebuild or scrub under way: the manager has rights on the region as long as it lasts.
struct Work {
    name: String,
    identity: Arc<Identity>,
    timeout: Duration,
    timeout_long: Duration,
    loans: Loans,
    /// What a new member is to grant.
    grants: Vec<v1::Grant>,
    /// Units that know the region.
    seeds: Vec<Unit>,
    is_json: bool,
    /// What the work takes.
    temporary: Rights,
}

impl Work {
    /// Gives the manager rights on all units that answer and have a region of this name.
    async fn begin(
        context: &Context,
        name: &pmu_format::RegionName,
        spread: &Spread,
        units: &[Unit],
        temporary: Rights,
    ) -> Result<Self, ManagerError> {
        let identity = context.identity()?;
        let (unit, shown) = spread.first_shown(None)?;
        tracing::debug!(unit, "the grants are those of this unit");
        let mut work = Self {
            name: name.to_string(),
            timeout: context.timeout(),
            timeout_long: context.timeout_long(),
            loans: Loans::begin(name.as_str(), context.timeout()),
            grants: shown.grants.clone(),
            seeds: Vec::new(),
            is_json: context.common.json,
            temporary,
            identity,
        };
        for unit in units {
            if let Err(error) = work.give(unit).await {
                let gone =
                    error.exit_code() == exit::UNAVAILABLE || error.exit_code() == exit::NOT_FOUND;
                if !gone {
                    work.end().await;
                    return Err(error);
                }
            }
        }
        Ok(work)
    }

    async fn give(&mut self, unit: &Unit) -> Result<(), ManagerError> {
        let connection = Connection::open(unit, &self.identity, self.timeout).await?;
        region::ask_show(&connection, self.timeout, &self.name).await?;
        self.loans.lend(connection, self.temporary).await?;
        self.seeds.push(unit.clone());
        Ok(())
    }

    /// Does the work on a thread of its own, which may block. Ctrl-C ends it between two steps.
    async fn run<T: Send + 'static>(
        &self,
        rate: Option<u64>,
        engine: impl FnOnce(
            &RegionInfo,
            Arc<Network>,
            &dyn Administer,
            RebuildOptions<'_>,
        ) -> Result<T, ClientError>
        + Send
        + 'static,
    ) -> Result<T, ManagerError> {
        let options = ConnectOptions::with_timeout(self.timeout);
        let (seeds, name, identity) =
            (self.seeds.clone(), self.name.clone(), self.identity.clone());
        let desk = Desk {
            handle: Handle::current(),
            identity: self.identity.clone(),
            timeout: self.timeout_long,
            grants: self.grants.clone(),
            loans: self.loans.clone(),
        };
        let bar = bar(self.is_json);
        let stop = Arc::new(AtomicBool::new(false));
        let last = Arc::new(Mutex::new(None));
        let (stopped, shown, latest) = (stop.clone(), bar.clone(), last.clone());
        let work = tokio::task::spawn_blocking(move || {
            let info = describe(&seeds, &name, &identity, &options)?;
            let reach = Arc::new(Network::new(&identity, &options));
            let mut on_progress = |progress: &RebuildProgress| {
                shown.set_length(progress.bytes_total);
                shown.set_position(progress.bytes_done);
                shown.set_message(place(progress));
                if let Ok(mut latest) = latest.lock() {
                    *latest = Some(*progress);
                }
                match stopped.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            let options = RebuildOptions {
                open: OpenOptions::new(),
                rate_bytes_per_s: rate,
                on_progress: &mut on_progress,
            };
            engine(&info, reach, &desk, options)
        });
        let signal = tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.store(true, Ordering::Relaxed);
            }
        });
        let done = work.await;
        signal.abort();
        bar.finish_and_clear();
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
            .map_err(|source| match source {
                ClientError::Interrupted => interrupted(&self.name, &last),
                source => ManagerError::Client {
                    source: Box::new(source),
                },
            })
    }

    /// Takes the manager's rights back, on a unit that was given the region meanwhile too.
    async fn end(&self) {
        self.loans.end().await;
    }
}

/// Where it is.
fn place(progress: &RebuildProgress) -> String {
    match progress.position.get() {
        0 => format!("set {}", progress.set),
        position => format!("log to {position}"),
    }
}

fn interrupted(region: &str, last: &Mutex<Option<RebuildProgress>>) -> ManagerError {
    let last = last.lock().ok().and_then(|last| *last);
    let done = last.map_or_else(
        || "before anything was read".to_owned(),
        |last| {
            let done = crate::values::ByteSize(last.bytes_done);
            format!("after {done} ({})", place(&last))
        },
    );
    ManagerError::Interrupted {
        region: region.to_owned(),
        done,
    }
}

/// On a terminal, and not beside JSON.
fn bar(is_json: bool) -> indicatif::ProgressBar {
    let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    let style = indicatif::ProgressStyle::with_template(template)
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    let bar = indicatif::ProgressBar::new(0).with_style(style);
    if is_json {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar
}

fn describe(
    seeds: &[Unit],
    region: &str,
    identity: &Identity,
    options: &ConnectOptions,
) -> Result<RegionInfo, ClientError> {
    let mut last = ClientError::Invalid("no unit answers".to_owned());
    let mut found: Option<RegionInfo> = None;
    for unit in seeds {
        let mut options = options.clone();
        options.unit_name = Some(unit.name.to_string());
        let unit = pmu_client::Unit::connect(&unit.address.to_string(), identity, &options);
        match unit.and_then(|unit| unit.describe(region)) {
            Ok(info) if info.membership.is_some() => {
                let generation = |info: &RegionInfo| {
                    info.membership.as_ref().map_or(0, |found| found.generation)
                };
                if found
                    .as_ref()
                    .is_none_or(|known| generation(known) < generation(&info))
                {
                    found = Some(info);
                }
            }
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    found.ok_or(last)
}

/// What only a manager may do at a unit, for an engine that blocks.
struct Desk {
    handle: Handle,
    identity: Arc<Identity>,
    timeout: Duration,
    grants: Vec<v1::Grant>,
    loans: Loans,
}

impl Desk {
    async fn connect(&self, member: &Member) -> Result<Connection, ManagerError> {
        let unit = Unit {
            name: member.unit.clone(),
            address: member.address.parse()?,
        };
        Connection::open(&unit, &self.identity, self.timeout).await
    }

    fn answer<T>(member: &Member, result: Result<T, ManagerError>) -> Result<(), ClientError> {
        let unit = member.unit.to_string();
        match result {
            Ok(_) => Ok(()),
            Err(ManagerError::Refused { status, .. }) => {
                let Some(reason) = pmu_proto::reason::of(&status) else {
                    let reason = status.message().to_owned();
                    return Err(ClientError::Unreachable { unit, reason });
                };
                Err(ClientError::Refused {
                    unit,
                    reason: pmu_proto::reason::name(reason),
                    message: status.message().to_owned(),
                })
            }
            Err(error) => Err(ClientError::Unreachable {
                unit,
                reason: error.text(),
            }),
        }
    }
}

impl Administer for Desk {
    fn create_member(&self, member: &Member, new: &NewMember<'_>) -> Result<(), ClientError> {
        let attributes = encoded(new.membership)?;
        let request = v1::CreateRegionRequest {
            name: new.region.to_owned(),
            mode: match new.mode {
                Mode::Overwrite => v1::Mode::Overwrite,
                Mode::Append => v1::Mode::Append,
            }
            .into(),
            sets_kept: new.sets_kept,
            room: Some(match new.mode {
                Mode::Overwrite => Room::CapacityBytes(new.capacity_bytes),
                Mode::Append => Room::SizeBytes(new.length_bytes),
            }),
            need: match new.need {
                Need::Durable => v1::Need::Durable,
                Need::VolatileAllowed => v1::Need::Volatile,
            }
            .into(),
            grants: self.grants.clone(),
            attributes,
            ..Default::default()
        };
        let created = self.handle.block_on(async {
            let connection = self.connect(member).await?;
            region::create_on(&connection, self.timeout, request).await?;
            self.loans.lend(connection, writing_of(new.mode)).await
        });
        Self::answer(member, created)
    }

    fn set_membership(
        &self,
        member: &Member,
        region: &str,
        expected: u64,
        membership: &Membership,
    ) -> Result<(), ClientError> {
        let request = v1::SetMembershipRequest {
            region: region.to_owned(),
            expected_generation: expected,
            attributes: encoded(membership)?,
        };
        let set = self.handle.block_on(async {
            let connection = self.connect(member).await?;
            let call = connection.call(request, self.timeout, |mut client, request| async move {
                client.set_membership(request).await
            });
            call.await
        });
        Self::answer(member, set)
    }
}

fn encoded(membership: &Membership) -> Result<Vec<u8>, ClientError> {
    membership
        .encode()
        .map_err(|error| ClientError::Invalid(error.to_string()))
}
