//! Changes of who the members of a spread region are, as far as one member is concerned.

use std::time::Instant;

use pmu_format::{Membership, RegionName};
use pmu_proto::v1::{Reason, SetMembershipRequest, SetMembershipResponse};

use crate::control::reasons::Refusal;
use crate::session::End;
use crate::state::UnitState;

impl UnitState {
    /// Replaces the membership that the region keeps, if it is of the expected generation. No session outlives it: writers are fenced
    /// first, and readers must look anew who the members are.
    ///
    /// # Errors
    /// `NO_SUCH_REGION`; `BAD_REQUEST`; `WRONG_GENERATION`: nothing was changed; those of [`Self::fence`]: the membership is the old one.
    pub(crate) fn set_membership(
        &self,
        name: &RegionName,
        request: &SetMembershipRequest,
        arrived: Instant,
    ) -> Result<SetMembershipResponse, Refusal> {
        let region = self.region(name)?;
        let mut desk = region.desk();
        let entry = self.entry(&region, &desk)?;
        let found = membership(&entry.attributes, &format!("region {name}"))?;
        let next = membership(&request.attributes, "the new membership")?;
        check_change(name, &found, &next, request.expected_generation)?;
        let fenced = self.fence_held(&region, &mut desk, None, arrived)?;
        let (closed, _) = self.end_sessions(&region, &mut desk, End::Fenced, |_| true)?;
        self.pools[region.pool].set_attributes(region.id, request.attributes.clone())?;
        tracing::info!(region = %name, generation = next.generation, members = names(&next), "members changed");
        Ok(SetMembershipResponse {
            epoch: fenced.epoch,
            sessions_closed: fenced.sessions_closed.saturating_add(closed),
        })
    }
}

fn membership(bytes: &[u8], what: &str) -> Result<Membership, Refusal> {
    Membership::decode(bytes)
        .map_err(|error| Refusal::new(Reason::BadRequest, format!("{what}: {error}")))
}

fn check_change(
    name: &RegionName,
    found: &Membership,
    next: &Membership,
    expected: u64,
) -> Result<(), Refusal> {
    if found.id != next.id {
        let message = format!("region {name} is a part of another spread region");
        return Err(Refusal::new(Reason::BadRequest, message));
    }
    if found.generation != expected {
        let message = format!(
            "region {name}: the members are those of generation {} now ({}), and generation {expected} was expected: somebody \
             else has changed them",
            found.generation,
            names(found)
        );
        return Err(Refusal::new(Reason::WrongGeneration, message));
    }
    if next.generation <= found.generation {
        let message = format!(
            "region {name}: generation {} is not later than {}",
            next.generation, found.generation
        );
        return Err(Refusal::new(Reason::BadRequest, message));
    }
    Ok(())
}

fn names(membership: &Membership) -> String {
    let members = membership.members.iter();
    let names: Vec<_> = members.map(|member| member.unit.as_str()).collect();
    names.join(", ")
}
