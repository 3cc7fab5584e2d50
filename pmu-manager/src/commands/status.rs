//! `pmm status`: how all units are.

use std::sync::Arc;

use pmu_auth::{Identity, PrincipalName};
use pmu_proto::v1;

use super::Context;
use super::unit::ask_status;
use crate::config::Unit;
use crate::connect::Connection;
use crate::error::{ManagerError, exit};
use crate::report::{StatusList, UnitStatus};

/// Asks units one after the other; one that does not answer does not keep the others from being asked.
///
/// # Errors
/// Those of [`Context::chosen`] and [`Context::identity`]: what fails at one unit stands in its line.
pub async fn status(
    context: &Context,
    names: &[PrincipalName],
) -> Result<StatusList, ManagerError> {
    let units = context.chosen(names)?;
    if units.is_empty() {
        return Ok(StatusList { units: Vec::new() });
    }
    let identity = context.identity()?;
    let mut reports = Vec::with_capacity(units.len());
    for unit in &units {
        reports.push(match ask(unit, &identity, context).await {
            Ok(status) => describe(unit, &status),
            Err(error) => failed(unit, &error),
        });
    }
    Ok(StatusList { units: reports })
}

/// The worst of the units' exit codes: a refusal before a unit that can't be reached or is locked.
pub fn exit_code(report: &StatusList) -> u8 {
    let codes = || report.units.iter().map(|unit| unit.exit_code);
    codes()
        .find(|code| *code != exit::DONE && *code != exit::UNAVAILABLE)
        .unwrap_or_else(|| codes().max().unwrap_or(exit::DONE))
}

async fn ask(
    unit: &Unit,
    identity: &Arc<Identity>,
    context: &Context,
) -> Result<v1::StatusResponse, ManagerError> {
    let connection = Connection::open(unit, identity, context.timeout()).await?;
    ask_status(&connection, context).await
}

fn describe(unit: &Unit, status: &v1::StatusResponse) -> UnitStatus {
    let known = |value: u64| (!status.locked).then_some(value);
    let sum = |value: fn(&v1::Pool) -> u64| {
        known(status.pools.iter().map(value).fold(0, u64::saturating_add))
    };
    UnitStatus {
        unit: unit.name.to_string(),
        address: unit.address.to_string(),
        state: if status.locked { "locked" } else { "ready" },
        version: Some(status.version.clone()),
        uptime_s: Some(status.uptime_s),
        sessions: (!status.locked).then_some(status.sessions.len()),
        regions: sum(|pool| pool.regions.into()),
        length_bytes: sum(|pool| pool.length_bytes),
        free_bytes: sum(|pool| pool.free_bytes),
        error: None,
        exit_code: if status.locked {
            exit::UNAVAILABLE
        } else {
            exit::DONE
        },
    }
}

fn failed(unit: &Unit, error: &ManagerError) -> UnitStatus {
    let exit_code = error.exit_code();
    UnitStatus {
        unit: unit.name.to_string(),
        address: unit.address.to_string(),
        state: if exit_code == exit::UNAVAILABLE {
            "unavailable"
        } else {
            "failed"
        },
        version: None,
        uptime_s: None,
        sessions: None,
        regions: None,
        length_bytes: None,
        free_bytes: None,
        error: Some(error.text()),
        exit_code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_unit_decides() {
        let unit = Unit {
            name: PrincipalName::new("u").unwrap(),
            address: "u.example:1".parse().unwrap(),
        };
        let list = |locked: &[bool]| StatusList {
            units: locked
                .iter()
                .map(|locked| {
                    describe(
                        &unit,
                        &v1::StatusResponse {
                            locked: *locked,
                            ..Default::default()
                        },
                    )
                })
                .collect(),
        };
        assert_eq!(exit_code(&list(&[])), 0);
        assert_eq!(exit_code(&list(&[false, false])), 0);
        assert_eq!(exit_code(&list(&[false, true])), 6);
        let mut mixed = list(&[true, false]);
        let detail = String::new();
        mixed
            .units
            .push(failed(&unit, &ManagerError::Usage { detail }));
        assert_eq!(exit_code(&mixed), 2);
    }
}
