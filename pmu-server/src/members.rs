//! Changes of who the members of a spread region are, as far as one member is concerned.

use std::time::Instant;

use pmu_core::spread::{ChangeRefused, check_change};
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
        check_change(&found, &next, request.expected_generation)
            .map_err(|refused| refusal(name, &found, refused))?;
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

fn refusal(name: &RegionName, found: &Membership, refused: ChangeRefused) -> Refusal {
    let (reason, what) = match refused {
        ChangeRefused::WrongGeneration { expected, .. } => (
            Reason::WrongGeneration,
            format!(
                "the members are those of generation {} now ({}), and generation {expected} was expected: somebody else has changed them",
                found.generation,
                names(found)
            ),
        ),
        other => (Reason::BadRequest, other.to_string()),
    };
    Refusal::new(reason, format!("region {name}: {what}"))
}

fn names(membership: &Membership) -> String {
    let members = membership.members.iter();
    let names: Vec<_> = members.map(|member| member.unit.as_str()).collect();
    names.join(", ")
}
