//! A unit as the place of a distributor.

use pmu_format::{Membership, PrincipalName, RegionName};
use pmu_proto::v1::Reason;

use super::{Admitted, Host};
use crate::config::Limits;
use crate::control::reasons::Refusal;
use crate::opening::writing_right;
use crate::state::{Listener, UnitState, no_grant};

impl Host for UnitState {
    fn name(&self) -> &str {
        self.unit_name()
    }

    fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Whoever may write on this unit's own member.
    fn admit(&self, principal: &PrincipalName, name: &RegionName) -> Result<Admitted, Refusal> {
        self.check_serving()?;
        let region = self.region(name)?;
        let entry = self.entry(&region, &region.desk())?;
        let right = writing_right(entry.mode);
        if !self.rights_of(&entry, principal)?.contains(right) {
            return Err(no_grant(&entry, principal, &format!("the right {right}")));
        }
        let refuse =
            |what: String| Refusal::new(Reason::BadRequest, format!("region {name} {what}"));
        if entry.attributes.is_empty() {
            return Err(refuse("is not spread over several units".into()));
        }
        let membership = Membership::decode(&entry.attributes)
            .map_err(|error| refuse(format!("has no readable members: {error}")))?;
        let members = membership.members.iter();
        if !members
            .clone()
            .any(|member| member.unit.as_str() == self.unit_name())
        {
            // Its grants are those of the time when it was one: they may have been taken away since.
            let message = format!(
                "unit {} is no member of region {name} any more; use another one",
                self.unit_name()
            );
            return Err(Refusal::new(Reason::NoGrant, message));
        }
        Ok(Admitted {
            seeds: members.map(|member| member.address.clone()).collect(),
            id: Some(membership.id),
        })
    }
}
