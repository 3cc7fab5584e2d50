//! `pmm region`: regions of a unit.

use std::time::Duration;

use pmu_auth::PrincipalName;
use pmu_format::{Mode, Need};
use pmu_proto::v1;
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::verify_pool_response::Step;

use super::Context;
use super::spread::{self, Act, Sought, on_each};
use crate::cli::{
    RegionArgument, RegionCreateArguments, RegionDeleteArguments, RegionGrantArguments,
    RegionRevokeArguments, RegionShowArguments,
};
use crate::confirm::{Ask, confirm};
use crate::connect::Connection;
use crate::error::{ManagerError, exit};
use crate::report::{
    Changed, DeleteReport, FenceReport, FindingReport, GrantChange, GrantReport, MissingReport,
    RegionDetails, RegionList, RegionReport, VerifyReport,
};
use crate::values::GrantArgument;
use crate::verify;

/// `region create`
///
/// # Errors
/// Those of [`Context::connect`] and [`Connection::call`].
pub async fn create(
    context: &Context,
    create: &RegionCreateArguments,
) -> Result<RegionReport, ManagerError> {
    let connection = context.connect(create.on.unit.as_ref()).await?;
    let room = match (create.capacity, create.size) {
        (Some(capacity), _) => Some(Room::CapacityBytes(capacity.0)),
        (None, size) => size.map(|size| Room::SizeBytes(size.0)),
    };
    let request = create_request(create, room, Vec::new());
    create_on(&connection, context.timeout_long(), request).await
}

/// What a unit is asked to create; room and attributes are a member's own if the region is spread.
pub(super) fn create_request(
    create: &RegionCreateArguments,
    room: Option<Room>,
    attributes: Vec<u8>,
) -> v1::CreateRegionRequest {
    v1::CreateRegionRequest {
        name: create.name.to_string(),
        mode: match create.mode {
            Mode::Overwrite => v1::Mode::Overwrite,
            Mode::Append => v1::Mode::Append,
        }
        .into(),
        sets_kept: create.sets_kept(),
        room,
        need: match create.need {
            Need::Durable => v1::Need::Durable,
            Need::VolatileAllowed => v1::Need::Volatile,
        }
        .into(),
        grants: create.grants.iter().map(grant_message).collect(),
        pool: create.pool.clone().unwrap_or_default(),
        attributes,
    }
}

pub(super) async fn create_on(
    connection: &Connection,
    timeout: Duration,
    request: v1::CreateRegionRequest,
) -> Result<RegionReport, ManagerError> {
    let attributes = request.attributes.clone();
    let answer = connection
        .call(request, timeout, |mut client, request| async move {
            client.create_region(request).await
        })
        .await?;
    let region = answer
        .region
        .ok_or_else(|| connection.nonsense("no region"))?;
    // A unit that dropped them would have made a region of its own in place of a member.
    if region.attributes != attributes {
        return Err(connection.nonsense("the region has other attributes than were asked for"));
    }
    Ok(RegionReport::new(
        connection.unit(),
        region,
        Some(answer.pool).filter(|pool| !pool.is_empty()),
        String::new(),
        0,
    ))
}

fn grant_message(grant: &GrantArgument) -> v1::Grant {
    v1::Grant {
        principal: grant.principal.to_string(),
        rights: grant.rights.bits(),
    }
}

/// `region list`. Units that don't answer keep nobody from being asked.
///
/// # Errors
/// Those of [`crate::config::Units::choose`] and [`Context::identity`]; the unit's, if it is the only one. What fails at one of several
/// stands in the list.
pub async fn list(
    context: &Context,
    unit: Option<&PrincipalName>,
) -> Result<RegionList, ManagerError> {
    let units = match unit {
        Some(unit) => vec![context.units.choose(Some(unit))?.clone()],
        None => context.chosen(&[])?,
    };
    let mut list = RegionList {
        regions: Vec::new(),
        missing: Vec::new(),
        exit_code: exit::DONE,
    };
    if units.is_empty() {
        return Ok(list);
    }
    let (identity, timeout) = (context.identity()?, context.timeout());
    let answers = on_each(units.clone(), |unit| {
        let identity = identity.clone();
        async move {
            let connection = Connection::open(&unit, &identity, timeout).await?;
            list_on(&connection, timeout).await
        }
    })
    .await;
    for (unit, answer) in units.iter().zip(answers) {
        match answer {
            Ok(regions) => list.regions.extend(regions),
            Err(error) if units.len() == 1 => return Err(error),
            Err(error) => {
                // A refusal says more than a unit that can't be reached.
                if matches!(list.exit_code, exit::DONE | exit::UNAVAILABLE) {
                    list.exit_code = error.exit_code();
                }
                list.missing.push(MissingReport {
                    unit: unit.name.to_string(),
                    reason: error.text(),
                });
            }
        }
    }
    Ok(list)
}

async fn list_on(
    connection: &Connection,
    timeout: Duration,
) -> Result<Vec<RegionReport>, ManagerError> {
    let answer = connection
        .call(
            v1::ListRegionsRequest {},
            timeout,
            |mut client, request| async move { client.list_regions(request).await },
        )
        .await?;
    let mut regions = Vec::with_capacity(answer.regions.len());
    for summary in answer.regions {
        let region = summary
            .region
            .ok_or_else(|| connection.nonsense("no region"))?;
        let (pool, writer) = (Some(summary.pool), summary.writer);
        regions.push(RegionReport::new(
            connection.unit(),
            region,
            pool,
            writer,
            summary.sessions,
        ));
    }
    Ok(regions)
}

pub(super) async fn ask_show(
    connection: &Connection,
    timeout: Duration,
    region: &str,
) -> Result<v1::ShowRegionResponse, ManagerError> {
    let request = v1::ShowRegionRequest {
        region: region.to_owned(),
    };
    connection
        .call(request, timeout, |mut client, request| async move {
            client.show_region(request).await
        })
        .await
}

/// `region show`
///
/// # Errors
/// Those of [`spread::seek`]; [`ManagerError::Usage`] if a placement is asked for where there is none.
pub async fn show(
    context: &Context,
    show: &RegionShowArguments,
) -> Result<RegionDetails, ManagerError> {
    match spread::seek(context, &show.name, show.on.unit.as_ref()).await? {
        Sought::One { unit, .. } if show.placement => Err(ManagerError::Usage {
            detail: format!(
                "region {} of unit {} is not spread: it has no placement",
                show.name, unit.name
            ),
        }),
        Sought::One { unit, shown } => details(unit.name.as_str(), *shown),
        Sought::Spread(spread) => {
            let (unit, shown) = spread.first_shown(show.on.unit.as_ref())?;
            let mut details = details(unit, shown.clone())?;
            details.scrub = spread.newest_scrub().map(Into::into);
            let report = spread.report();
            if show.placement && report.ring_bytes.is_some() {
                return Err(ManagerError::Usage {
                    detail: format!(
                        "region {} is a log: part N of each record lies on unit N, redundancy on the last ones",
                        show.name
                    ),
                });
            }
            if show.placement {
                details.placement = Some(spread.placement(report.capacity_bytes, show.groups)?);
            }
            details.spread = Some(report);
            Ok(details)
        }
    }
}

fn details(unit: &str, shown: v1::ShowRegionResponse) -> Result<RegionDetails, ManagerError> {
    let region = shown.region.ok_or_else(|| ManagerError::Answer {
        unit: unit.to_owned(),
        detail: "no region",
    })?;
    let sessions = u32::try_from(shown.sessions.len()).unwrap_or(u32::MAX);
    let (pool, writer) = (Some(shown.pool), shown.writer);
    Ok(RegionDetails {
        region: RegionReport::new(unit, region, pool, writer, sessions),
        extents: shown.extents.into_iter().map(Into::into).collect(),
        grants: shown.grants.into_iter().map(Into::into).collect(),
        open_sessions: shown.sessions.into_iter().map(Into::into).collect(),
        scrub: shown.scrub.map(Into::into),
        spread: None,
        placement: None,
    })
}

/// `region grant`. The grants are set one after the other; the ones before a refused one stay.
///
/// # Errors
/// Those of [`spread::target`], [`Context::connect`] and [`Connection::call`].
pub async fn grant(
    context: &Context,
    grant: &RegionGrantArguments,
) -> Result<Changed<GrantChange>, ManagerError> {
    let timeout = context.timeout();
    let (name, grants) = (grant.name.to_string(), grant.grants.clone());
    let work = move |connection: Connection| {
        let (name, grants) = (name.clone(), grants.clone());
        async move { grant_on(&connection, timeout, name, &grants).await }
    };
    spread::target(context, &grant.name, grant.on.unit.as_ref())
        .await?
        .change(context, Act::Grant, work)
        .await
}

async fn grant_on(
    connection: &Connection,
    timeout: Duration,
    region: String,
    grants: &[GrantArgument],
) -> Result<GrantChange, ManagerError> {
    let mut change = GrantChange {
        unit: connection.unit().to_owned(),
        region,
        grants: Vec::new(),
        windows_invalidated: 0,
    };
    for grant in grants {
        let message = grant_message(grant);
        let request = v1::SetGrantRequest {
            region: change.region.clone(),
            grant: Some(message.clone()),
        };
        let answer = connection
            .call(request, timeout, |mut client, request| async move {
                client.set_grant(request).await
            })
            .await?;
        change.windows_invalidated = change
            .windows_invalidated
            .saturating_add(answer.windows_invalidated);
        change.grants.push(message.into());
    }
    Ok(change)
}

/// `region revoke`
///
/// # Errors
/// Those of [`spread::target`], [`Context::connect`] and [`Connection::call`].
pub async fn revoke(
    context: &Context,
    revoke: &RegionRevokeArguments,
) -> Result<Changed<GrantChange>, ManagerError> {
    let timeout = context.timeout();
    let request = v1::RevokeGrantRequest {
        region: revoke.name.to_string(),
        principal: revoke.principal.to_string(),
    };
    let work = move |connection: Connection| {
        let request = request.clone();
        async move { revoke_on(&connection, timeout, request).await }
    };
    spread::target(context, &revoke.name, revoke.on.unit.as_ref())
        .await?
        .change(context, Act::Grant, work)
        .await
}

async fn revoke_on(
    connection: &Connection,
    timeout: Duration,
    request: v1::RevokeGrantRequest,
) -> Result<GrantChange, ManagerError> {
    let (region, principal) = (request.region.clone(), request.principal.clone());
    let answer = connection
        .call(request, timeout, |mut client, request| async move {
            client.revoke_grant(request).await
        })
        .await?;
    Ok(GrantChange {
        unit: connection.unit().to_owned(),
        region,
        grants: vec![GrantReport {
            principal,
            rights: Vec::new(),
        }],
        windows_invalidated: answer.windows_invalidated,
    })
}

/// `region fence`
///
/// # Errors
/// [`ManagerError::Usage`] if it is not confirmed; those of [`spread::target`], [`Context::connect`] and
/// [`Connection::call`].
pub async fn fence(
    context: &Context,
    fence: &RegionArgument,
    ask: &(dyn Ask + Sync),
) -> Result<Changed<FenceReport>, ManagerError> {
    let target = spread::target(context, &fence.name, fence.on.unit.as_ref()).await?;
    let question = format!(
        "Fence region {} of {}? Whoever writes it can't go on.",
        fence.name,
        target.units_text()
    );
    confirm(ask, context.common.yes, &question)?;
    let (timeout, name) = (context.timeout(), fence.name.to_string());
    let work = move |connection: Connection| {
        let name = name.clone();
        async move { fence_on(&connection, timeout, name).await }
    };
    target.change(context, Act::Fence, work).await
}

async fn fence_on(
    connection: &Connection,
    timeout: Duration,
    region: String,
) -> Result<FenceReport, ManagerError> {
    let request = v1::FenceRegionRequest {
        region: region.clone(),
    };
    let answer = connection
        .call(request, timeout, |mut client, request| async move {
            client.fence_region(request).await
        })
        .await?;
    Ok(FenceReport {
        unit: connection.unit().to_owned(),
        region,
        epoch: answer.epoch,
        windows_invalidated: answer.windows_invalidated,
        sessions_closed: answer.sessions_closed,
        took_us: answer.took_us,
    })
}

/// `region delete`
///
/// # Errors
/// [`ManagerError::Usage`] if it is not confirmed; those of [`spread::target`], [`Context::connect`] and
/// [`Connection::call`].
pub async fn delete(
    context: &Context,
    delete: &RegionDeleteArguments,
    ask: &(dyn Ask + Sync),
) -> Result<Changed<DeleteReport>, ManagerError> {
    let target = spread::target(context, &delete.name, delete.on.unit.as_ref()).await?;
    let question = format!(
        "Delete region {} of {} and all that is in it?",
        delete.name,
        target.units_text()
    );
    confirm(ask, context.common.yes, &question)?;
    let (timeout, force, name) = (
        context.timeout_long(),
        delete.force,
        delete.name.to_string(),
    );
    let work = move |connection: Connection| {
        let name = name.clone();
        async move { delete_on(&connection, timeout, name, force).await }
    };
    target.change(context, Act::Delete, work).await
}

pub(super) async fn delete_on(
    connection: &Connection,
    timeout: Duration,
    region: String,
    force: bool,
) -> Result<DeleteReport, ManagerError> {
    let request = v1::DeleteRegionRequest {
        region: region.clone(),
        force,
    };
    let answer = connection
        .call(request, timeout, |mut client, request| async move {
            client.delete_region(request).await
        })
        .await?;
    Ok(DeleteReport {
        unit: connection.unit().to_owned(),
        region,
        sessions_closed: answer.sessions_closed,
        freed_bytes: answer.freed_bytes,
    })
}

/// `region verify`: the tables of the region's pool, then what is in the region.
///
/// # Errors
/// Those of [`Context::connect`] and [`Connection::call`]. Damage is no error: it stands in the report.
pub async fn verify(
    context: &Context,
    verify: &RegionArgument,
) -> Result<VerifyReport, ManagerError> {
    let connection = context.connect(verify.on.unit.as_ref()).await?;
    let shown = ask_show(&connection, context.timeout(), verify.name.as_str()).await?;
    let (structures_checked, mut findings) = verify_pool(&connection, context, &shown.pool).await?;
    let region = shown
        .region
        .ok_or_else(|| connection.nonsense("no region"))?;
    let mode = u8::try_from(region.mode)
        .ok()
        .and_then(Mode::from_number)
        .ok_or_else(|| connection.nonsense("a region of a mode that this version does not know"))?;
    let contents = verify::contents(verify::Task {
        unit: context.units.choose(verify.on.unit.as_ref())?.clone(),
        identity: context.identity()?.as_ref().clone(),
        region: verify.name.to_string(),
        mode,
        timeout: context.timeout(),
    })
    .await;
    findings.extend(contents.findings);
    // What this version does not know is damage rather than nothing.
    let damaged = findings.iter().any(|finding| finding.severity != "note");
    let (contents, contents_note, exit_code) = match contents.checked {
        Ok(contents) => (Some(contents), None, exit::DONE),
        Err(unchecked) => (None, Some(unchecked.why), unchecked.exit_code),
    };
    Ok(VerifyReport {
        unit: connection.unit().to_owned(),
        region: verify.name.to_string(),
        pool: shown.pool,
        structures_checked,
        contents,
        contents_note,
        findings,
        damaged,
        exit_code: if damaged { exit::DAMAGED } else { exit_code },
    })
}

/// How many structures were checked, and what was found.
pub(super) async fn verify_pool(
    connection: &Connection,
    context: &Context,
    pool: &str,
) -> Result<(u32, Vec<FindingReport>), ManagerError> {
    let timeout = context.timeout_long();
    let request = v1::VerifyPoolRequest {
        pool: pool.to_owned(),
    };
    let mut steps = connection
        .call(request, timeout, |mut client, request| async move {
            client.verify_pool(request).await
        })
        .await?;
    let mut findings = Vec::new();
    let mut summary = None;
    let read = async {
        while let Some(step) = steps.message().await? {
            match step.step {
                Some(Step::Finding(finding)) => findings.push(finding.into()),
                Some(Step::Summary(found)) => summary = Some(found),
                None => {}
            }
        }
        Ok(())
    };
    match tokio::time::timeout(timeout, read).await {
        Ok(Ok(())) => {}
        Ok(Err(status)) => return Err(ManagerError::from_status(connection.unit(), status)),
        Err(_) => {
            let (unit, after_ms) = (connection.unit().to_owned(), timeout.as_millis());
            return Err(ManagerError::TimedOut { unit, after_ms });
        }
    }
    // Without it the check was cut short: nothing found is not nothing wrong.
    let summary = summary.ok_or_else(|| connection.nonsense("verify ended without its summary"))?;
    Ok((summary.structures_checked, findings))
}
