//! `pmm region`: regions of a unit.

use pmu_auth::PrincipalName;
use pmu_format::{Mode, Need};
use pmu_proto::v1;
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::verify_pool_response::Step;

use super::Context;
use crate::cli::{
    RegionArgument, RegionCreateArguments, RegionDeleteArguments, RegionGrantArguments,
    RegionRevokeArguments,
};
use crate::confirm::{Ask, confirm};
use crate::connect::Connection;
use crate::error::{ManagerError, exit};
use crate::report::{
    DeleteReport, FenceReport, FindingReport, GrantChange, GrantReport, RegionDetails, RegionList,
    RegionReport, VerifyReport,
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
    let request = v1::CreateRegionRequest {
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
        attributes: Vec::new(),
    };
    let answer = connection
        .call(
            request,
            context.timeout_long(),
            |mut client, request| async move { client.create_region(request).await },
        )
        .await?;
    let region = answer
        .region
        .ok_or_else(|| connection.nonsense("no region"))?;
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

/// `region list`
///
/// # Errors
/// Those of [`Connection::open`] and [`Connection::call`], of the first unit that fails.
pub async fn list(
    context: &Context,
    unit: Option<&PrincipalName>,
) -> Result<RegionList, ManagerError> {
    let units = match unit {
        Some(unit) => vec![context.units.choose(Some(unit))?.clone()],
        None => context.chosen(&[])?,
    };
    let mut regions = Vec::new();
    if units.is_empty() {
        return Ok(RegionList { regions });
    }
    let identity = context.identity()?;
    for unit in &units {
        let connection = Connection::open(unit, &identity, context.timeout()).await?;
        let answer = connection
            .call(
                v1::ListRegionsRequest {},
                context.timeout(),
                |mut client, request| async move { client.list_regions(request).await },
            )
            .await?;
        for summary in answer.regions {
            let region = summary
                .region
                .ok_or_else(|| connection.nonsense("no region"))?;
            let (pool, writer) = (Some(summary.pool), summary.writer);
            let report =
                RegionReport::new(connection.unit(), region, pool, writer, summary.sessions);
            regions.push(report);
        }
    }
    Ok(RegionList { regions })
}

async fn ask_show(
    connection: &Connection,
    context: &Context,
    region: &str,
) -> Result<v1::ShowRegionResponse, ManagerError> {
    let request = v1::ShowRegionRequest {
        region: region.to_owned(),
    };
    connection
        .call(
            request,
            context.timeout(),
            |mut client, request| async move { client.show_region(request).await },
        )
        .await
}

/// `region show`
///
/// # Errors
/// Those of [`Context::connect`] and [`Connection::call`].
pub async fn show(context: &Context, show: &RegionArgument) -> Result<RegionDetails, ManagerError> {
    let connection = context.connect(show.on.unit.as_ref()).await?;
    let answer = ask_show(&connection, context, show.name.as_str()).await?;
    let region = answer
        .region
        .ok_or_else(|| connection.nonsense("no region"))?;
    let sessions = u32::try_from(answer.sessions.len()).unwrap_or(u32::MAX);
    let (pool, writer) = (Some(answer.pool), answer.writer);
    Ok(RegionDetails {
        region: RegionReport::new(connection.unit(), region, pool, writer, sessions),
        extents: answer.extents.into_iter().map(Into::into).collect(),
        grants: answer.grants.into_iter().map(Into::into).collect(),
        open_sessions: answer.sessions.into_iter().map(Into::into).collect(),
    })
}

/// `region grant`. The grants are set one after the other; the ones before a refused one stay.
///
/// # Errors
/// Those of [`Context::connect`] and [`Connection::call`].
pub async fn grant(
    context: &Context,
    grant: &RegionGrantArguments,
) -> Result<GrantChange, ManagerError> {
    let connection = context.connect(grant.on.unit.as_ref()).await?;
    let mut change = GrantChange {
        unit: connection.unit().to_owned(),
        region: grant.name.to_string(),
        grants: Vec::new(),
        windows_invalidated: 0,
    };
    for grant in &grant.grants {
        let message = grant_message(grant);
        let request = v1::SetGrantRequest {
            region: change.region.clone(),
            grant: Some(message.clone()),
        };
        let answer = connection
            .call(
                request,
                context.timeout(),
                |mut client, request| async move { client.set_grant(request).await },
            )
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
/// Those of [`Context::connect`] and [`Connection::call`].
pub async fn revoke(
    context: &Context,
    revoke: &RegionRevokeArguments,
) -> Result<GrantChange, ManagerError> {
    let connection = context.connect(revoke.on.unit.as_ref()).await?;
    let request = v1::RevokeGrantRequest {
        region: revoke.name.to_string(),
        principal: revoke.principal.to_string(),
    };
    let answer = connection
        .call(
            request,
            context.timeout(),
            |mut client, request| async move { client.revoke_grant(request).await },
        )
        .await?;
    Ok(GrantChange {
        unit: connection.unit().to_owned(),
        region: revoke.name.to_string(),
        grants: vec![GrantReport {
            principal: revoke.principal.to_string(),
            rights: Vec::new(),
        }],
        windows_invalidated: answer.windows_invalidated,
    })
}

/// `region fence`
///
/// # Errors
/// [`ManagerError::Usage`] if it is not confirmed; those of [`Context::connect`] and [`Connection::call`].
pub async fn fence(
    context: &Context,
    fence: &RegionArgument,
    ask: &(dyn Ask + Sync),
) -> Result<FenceReport, ManagerError> {
    let unit = &context.units.choose(fence.on.unit.as_ref())?.name;
    let question = format!(
        "Fence region {} of unit {unit}? Whoever writes it can't go on.",
        fence.name
    );
    confirm(ask, context.common.yes, &question)?;
    let connection = context.connect(Some(unit)).await?;
    let request = v1::FenceRegionRequest {
        region: fence.name.to_string(),
    };
    let answer = connection
        .call(
            request,
            context.timeout(),
            |mut client, request| async move { client.fence_region(request).await },
        )
        .await?;
    Ok(FenceReport {
        unit: connection.unit().to_owned(),
        region: fence.name.to_string(),
        epoch: answer.epoch,
        windows_invalidated: answer.windows_invalidated,
        sessions_closed: answer.sessions_closed,
        took_us: answer.took_us,
    })
}

/// `region delete`
///
/// # Errors
/// [`ManagerError::Usage`] if it is not confirmed; those of [`Context::connect`] and [`Connection::call`].
pub async fn delete(
    context: &Context,
    delete: &RegionDeleteArguments,
    ask: &(dyn Ask + Sync),
) -> Result<DeleteReport, ManagerError> {
    let unit = &context.units.choose(delete.on.unit.as_ref())?.name;
    let question = format!(
        "Delete region {} of unit {unit} and all that is in it?",
        delete.name
    );
    confirm(ask, context.common.yes, &question)?;
    let connection = context.connect(Some(unit)).await?;
    let request = v1::DeleteRegionRequest {
        region: delete.name.to_string(),
        force: delete.force,
    };
    let answer = connection
        .call(
            request,
            context.timeout_long(),
            |mut client, request| async move { client.delete_region(request).await },
        )
        .await?;
    Ok(DeleteReport {
        unit: connection.unit().to_owned(),
        region: delete.name.to_string(),
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
    let shown = ask_show(&connection, context, verify.name.as_str()).await?;
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
async fn verify_pool(
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
