//! Rights that are lent for a time, beside those that are granted. They live in memory alone, and end by themselves: whoever is killed
//! leaves nothing behind.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_format::{PrincipalName, RegionEntry, RegionId, RegionName, Rights};
use pmu_proto::v1::{LendRightsRequest, LendRightsResponse, Reason};

use crate::control::reasons::Refusal;
use crate::session::{End, Session};
use crate::state::{UnitState, no_grant};

/// The longest time for which rights are lent.
const FOR_MAX: Duration = Duration::from_secs(600);
/// Loans at one time.
const LOANS_MAX: usize = 1024;

struct Loan {
    region: RegionId,
    name: RegionName,
    principal: PrincipalName,
    rights: Rights,
    until: Instant,
}

/// All loans of a unit.
#[derive(Default)]
pub(crate) struct Loans(Mutex<Vec<Loan>>);

impl Loans {
    /// What is lent to a principal, for as long as nobody has found that its time is over.
    pub(crate) fn rights_of(&self, region: RegionId, principal: &PrincipalName) -> Rights {
        let loans = self.0.lock();
        let found = loans
            .iter()
            .find(|loan| loan.region == region && loan.principal == *principal);
        found.map_or(Rights::empty(), |loan| loan.rights)
    }

    /// True if there was one.
    pub(crate) fn end(&self, region: RegionId, principal: &PrincipalName) -> bool {
        let mut loans = self.0.lock();
        let before = loans.len();
        loans.retain(|loan| loan.region != region || loan.principal != *principal);
        loans.len() < before
    }

    fn begin(&self, loan: Loan) -> Result<(), Refusal> {
        self.end(loan.region, &loan.principal);
        let mut loans = self.0.lock();
        if loans.len() >= LOANS_MAX {
            let message = format!("rights are lent to {LOANS_MAX} already");
            return Err(Refusal::new(Reason::BadRequest, message));
        }
        loans.push(loan);
        Ok(())
    }

    fn take_overdue(&self, now: Instant) -> Vec<Loan> {
        let mut loans = self.0.lock();
        loans.extract_if(.., |loan| loan.until <= now).collect()
    }
}

impl UnitState {
    /// The rights that a principal has on a region: granted or lent.
    ///
    /// # Errors
    /// `NO_GRANT` if none.
    pub(crate) fn rights_of(
        &self,
        entry: &RegionEntry,
        principal: &PrincipalName,
    ) -> Result<Rights, Refusal> {
        let rights = entry.rights_of(principal) | self.loans.rights_of(entry.id, principal);
        if rights.is_empty() {
            return Err(no_grant(entry, principal, "any right"));
        }
        Ok(rights)
    }

    /// Lends rights, in place of those that were lent before; ends the principal's sessions that use others.
    pub(crate) fn lend_rights(
        &self,
        principal: &PrincipalName,
        name: &RegionName,
        request: &LendRightsRequest,
        now: Instant,
    ) -> Result<LendRightsResponse, Refusal> {
        let bad = |what: String| Refusal::new(Reason::BadRequest, what);
        let rights = Rights::from_bits(request.rights)
            .ok_or_else(|| bad(format!("rights {:#x} have unknown bits", request.rights)))?;
        let time = Duration::from_millis(request.for_ms.into());
        if time > FOR_MAX || (time.is_zero() && !rights.is_empty()) {
            let what = format!("rights are lent for 1 to {} ms", FOR_MAX.as_millis());
            return Err(bad(what));
        }
        let region = self.region(name)?;
        let mut desk = region.desk();
        let entry = self.entry(&region, &desk)?;
        if rights.is_empty() {
            self.loans.end(entry.id, principal);
        } else {
            self.loans.begin(Loan {
                region: entry.id,
                name: name.clone(),
                principal: principal.clone(),
                rights,
                until: now + time,
            })?;
        }
        tracing::info!(%rights, ?time, "rights lent");
        let has = entry.rights_of(principal) | rights;
        let unfounded = |session: &Session| {
            session.principal == *principal && !has.contains(session.rights_needed())
        };
        self.end_sessions(&region, &mut desk, End::Revoked, unfounded)?;
        Ok(LendRightsResponse {})
    }

    /// Ends loans whose time is over, and the sessions that need them.
    pub(crate) fn end_loans(&self, now: Instant) {
        for loan in self.loans.take_overdue(now) {
            let Ok(region) = self.region(&loan.name) else {
                continue;
            };
            let mut desk = region.desk();
            let Ok(entry) = self.entry(&region, &desk) else {
                continue;
            };
            tracing::info!(region = %loan.name, principal = %loan.principal, rights = %loan.rights, "the time of lent rights is over");
            let has =
                entry.rights_of(&loan.principal) | self.loans.rights_of(entry.id, &loan.principal);
            let unfounded = |session: &Session| {
                session.principal == loan.principal && !has.contains(session.rights_needed())
            };
            if let Err(refusal) = self.end_sessions(&region, &mut desk, End::Revoked, unfounded) {
                tracing::error!(region = %loan.name, %refusal, "a session stays whose rights have ended");
            }
        }
    }
}
