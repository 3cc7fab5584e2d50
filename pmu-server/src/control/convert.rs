//! Between the words of the protocol and those of the other rooms. Nothing from the network is believed here.

use pmu_fabric::{AccessWindow, PersistenceMethod, Provider, WindowAccess};
use pmu_format::{
    Extent, Grant, Medium, Mode, Need, PrincipalName, RegionEntry, RegionState, Rights,
};
use pmu_proto::v1::{self, Reason};

use super::reasons::Refusal;

pub(crate) fn provider(provider: Provider) -> v1::Provider {
    match provider {
        Provider::SoftTcp => v1::Provider::SoftTcp,
        Provider::SoftUnix => v1::Provider::SoftUnix,
        Provider::Verbs => v1::Provider::Verbs,
    }
}

/// `None`: whichever the unit prefers.
pub(crate) fn requested_provider(number: i32) -> Result<Option<Provider>, Refusal> {
    match v1::Provider::try_from(number) {
        Ok(v1::Provider::Unspecified) => Ok(None),
        Ok(v1::Provider::SoftTcp) => Ok(Some(Provider::SoftTcp)),
        Ok(v1::Provider::SoftUnix) => Ok(Some(Provider::SoftUnix)),
        Ok(v1::Provider::Verbs) => Ok(Some(Provider::Verbs)),
        Err(_) => Err(unknown("provider", number)),
    }
}

pub(crate) fn persistence(method: PersistenceMethod) -> v1::PersistenceMethod {
    match method {
        PersistenceMethod::NativeFlush => v1::PersistenceMethod::NativeFlush,
        PersistenceMethod::ReadAfterWrite => v1::PersistenceMethod::ReadAfterWrite,
        PersistenceMethod::ServerPersist => v1::PersistenceMethod::ServerPersist,
        PersistenceMethod::Volatile => v1::PersistenceMethod::Volatile,
    }
}

/// `None`: the strongest.
pub(crate) fn requested_persistence(number: i32) -> Result<Option<PersistenceMethod>, Refusal> {
    match v1::PersistenceMethod::try_from(number) {
        Ok(v1::PersistenceMethod::Unspecified) => Ok(None),
        Ok(v1::PersistenceMethod::NativeFlush) => Ok(Some(PersistenceMethod::NativeFlush)),
        Ok(v1::PersistenceMethod::ReadAfterWrite) => Ok(Some(PersistenceMethod::ReadAfterWrite)),
        Ok(v1::PersistenceMethod::ServerPersist) => Ok(Some(PersistenceMethod::ServerPersist)),
        Ok(v1::PersistenceMethod::Volatile) => Ok(Some(PersistenceMethod::Volatile)),
        Err(_) => Err(unknown("persistence method", number)),
    }
}

pub(crate) fn requested_role(number: i32) -> Result<v1::SessionRole, Refusal> {
    match v1::SessionRole::try_from(number) {
        Ok(v1::SessionRole::Unspecified) => Err(Refusal::new(
            Reason::BadRequest,
            "a session needs a role: primary, backup or reader",
        )),
        Ok(role) => Ok(role),
        Err(_) => Err(unknown("session role", number)),
    }
}

pub(crate) fn requested_mode(number: i32) -> Result<Mode, Refusal> {
    match v1::Mode::try_from(number) {
        Ok(v1::Mode::Overwrite) => Ok(Mode::Overwrite),
        Ok(v1::Mode::Append) => Ok(Mode::Append),
        Ok(v1::Mode::Unspecified) => Err(Refusal::new(
            Reason::BadRequest,
            "a region needs a mode: overwrite or append",
        )),
        Err(_) => Err(unknown("mode", number)),
    }
}

/// A region that says nothing needs to be durable.
pub(crate) fn requested_need(number: i32) -> Result<Need, Refusal> {
    match v1::Need::try_from(number) {
        Ok(v1::Need::Durable | v1::Need::Unspecified) => Ok(Need::Durable),
        Ok(v1::Need::Volatile) => Ok(Need::VolatileAllowed),
        Err(_) => Err(unknown("need", number)),
    }
}

pub(crate) fn requested_grant(grant: &v1::Grant) -> Result<Grant, Refusal> {
    let principal = PrincipalName::new(&grant.principal)?;
    let rights = Rights::from_bits(grant.rights).ok_or_else(|| {
        Refusal::new(
            Reason::BadRequest,
            format!("rights {:#x} have unknown bits", grant.rights),
        )
    })?;
    if rights.is_empty() {
        let message = format!(
            "a grant needs at least one right; to take all from {principal}, revoke the grant"
        );
        return Err(Refusal::new(Reason::BadRequest, message));
    }
    Ok(Grant { principal, rights })
}

fn unknown(what: &str, number: i32) -> Refusal {
    Refusal::new(
        Reason::BadRequest,
        format!("{what} {number} is not known to this version"),
    )
}

pub(crate) fn grant(grant: &Grant) -> v1::Grant {
    v1::Grant {
        principal: grant.principal.to_string(),
        rights: grant.rights.bits(),
    }
}

pub(crate) fn extent(pool: &str, extent: &Extent) -> v1::Extent {
    v1::Extent {
        pool: pool.to_owned(),
        pool_offset_bytes: extent.offset.get(),
        length_bytes: extent.length_bytes,
    }
}

pub(crate) fn medium(medium: Medium) -> v1::Medium {
    match medium {
        Medium::Devdax => v1::Medium::Devdax,
        Medium::Fsdax => v1::Medium::Fsdax,
        Medium::Hugetlbfs => v1::Medium::Hugetlbfs,
        Medium::Memory => v1::Medium::Memory,
        Medium::File => v1::Medium::File,
    }
}

pub(crate) fn descriptor(entry: &RegionEntry) -> v1::RegionDescriptor {
    v1::RegionDescriptor {
        region_id: entry.id.as_bytes().to_vec(),
        name: entry.name.to_string(),
        mode: match entry.mode {
            Mode::Overwrite => v1::Mode::Overwrite,
            Mode::Append => v1::Mode::Append,
        }
        .into(),
        state: match entry.state {
            RegionState::Active => v1::RegionState::Active,
            RegionState::Erasing => v1::RegionState::Erasing,
        }
        .into(),
        need: match entry.need {
            Need::Durable => v1::Need::Durable,
            Need::VolatileAllowed => v1::Need::Volatile,
        }
        .into(),
        virtual_address: entry.base.get(),
        length_bytes: entry.length_bytes,
        sets_kept: entry.sets_kept,
        capacity_bytes: entry.capacity_bytes,
        epoch: entry.epoch.get(),
        created_at_s: entry.created_seconds,
        attributes: entry.attributes.clone(),
    }
}

pub(crate) fn window(window: &AccessWindow, access: WindowAccess) -> v1::Window {
    let mut bits = 0;
    if access.read {
        bits |= pmu_proto::ACCESS_READ;
    }
    if access.write {
        bits |= pmu_proto::ACCESS_WRITE;
    }
    v1::Window {
        virtual_address: window.address,
        length_bytes: window.length,
        access: bits,
        access_key: window.access_key,
        flush_key: (window.flush_key != 0).then_some(window.flush_key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_are_bad_requests() {
        for refusal in [
            requested_provider(99).unwrap_err(),
            requested_persistence(-1).unwrap_err(),
            requested_role(0).unwrap_err(),
            requested_role(77).unwrap_err(),
            requested_mode(0).unwrap_err(),
            requested_need(9).unwrap_err(),
            requested_grant(&v1::Grant {
                principal: "p".into(),
                rights: 1 << 20,
            })
            .unwrap_err(),
            requested_grant(&v1::Grant {
                principal: "p".into(),
                rights: 0,
            })
            .unwrap_err(),
        ] {
            assert_eq!(refusal.reason, Reason::BadRequest, "{refusal}");
        }
        let refusal = requested_grant(&v1::Grant {
            principal: "\u{1b}[31m".into(),
            rights: 1,
        })
        .unwrap_err();
        assert_eq!(refusal.reason, Reason::BadName);
    }
}
