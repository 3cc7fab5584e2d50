//! `pmm unit`: the list of units, and units as a whole.

use pmu_auth::PrincipalName;
use pmu_proto::v1;

use super::Context;
use crate::cli::UnitAddArguments;
use crate::config::Unit;
use crate::connect::Connection;
use crate::error::ManagerError;
use crate::report::{UnitDetails, UnitEntry, UnitList, UnlockList, UnlockReport};

fn entry(unit: &Unit) -> UnitEntry {
    UnitEntry {
        unit: unit.name.to_string(),
        address: unit.address.to_string(),
    }
}

/// `unit add`
///
/// # Errors
/// Those of [`crate::config::Units::add`].
pub fn add(context: &mut Context, add: &UnitAddArguments) -> Result<UnitEntry, ManagerError> {
    let unit = Unit {
        name: add.name.clone(),
        address: add.address.clone(),
    };
    context.units.add(unit.clone(), add.replace)?;
    Ok(entry(&unit))
}

/// `unit remove`
///
/// # Errors
/// Those of [`crate::config::Units::remove`].
pub fn remove(context: &mut Context, name: &PrincipalName) -> Result<UnitEntry, ManagerError> {
    context.units.remove(name).map(|unit| entry(&unit))
}

/// `unit list`
pub fn list(context: &Context) -> UnitList {
    UnitList {
        units: context.units.iter().map(entry).collect(),
    }
}

/// What a unit says of itself.
///
/// # Errors
/// Those of [`Connection::call`].
pub async fn ask_status(
    connection: &Connection,
    context: &Context,
) -> Result<v1::StatusResponse, ManagerError> {
    connection
        .call(
            v1::StatusRequest {},
            context.timeout(),
            |mut client, request| async move { client.status(request).await },
        )
        .await
}

/// `unit show`
///
/// # Errors
/// Those of [`Context::connect`] and [`Connection::call`].
pub async fn show(context: &Context, name: &PrincipalName) -> Result<UnitDetails, ManagerError> {
    let address = context.units.choose(Some(name))?.address.to_string();
    let connection = context.connect(Some(name)).await?;
    let status = ask_status(&connection, context).await?;
    Ok(UnitDetails {
        unit: connection.unit().to_owned(),
        address,
        version: status.version,
        locked: status.locked,
        uptime_s: status.uptime_s,
        pools: status.pools.into_iter().map(Into::into).collect(),
        providers: status.providers.into_iter().map(Into::into).collect(),
        sessions: status.sessions.into_iter().map(Into::into).collect(),
        scrubbing: status.scrubbing.map(Into::into),
    })
}

/// `unit unlock`. Goes on to the next unit only if the one before is unlocked.
///
/// # Errors
/// Those of [`Context::connect`] and [`Connection::call`].
pub async fn unlock(
    context: &Context,
    names: &[PrincipalName],
) -> Result<UnlockList, ManagerError> {
    // A name that is not in the list is found before the first unit is unlocked.
    let units = context.chosen(names)?;
    let identity = context.identity()?;
    let mut reports = Vec::with_capacity(units.len());
    for unit in &units {
        let connection = Connection::open(unit, &identity, context.timeout()).await?;
        let answer = connection
            .call(
                v1::InitializeRequest {},
                context.timeout_long(),
                |mut client, request| async move { client.initialize(request).await },
            )
            .await?;
        reports.push(UnlockReport {
            unit: unit.name.to_string(),
            was_unlocked: answer.was_initialized,
            regions: answer.regions,
            pools: answer.pools.into_iter().map(Into::into).collect(),
        });
    }
    Ok(UnlockList { units: reports })
}
