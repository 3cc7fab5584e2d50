//! How the right to write is taken back: fences, grants, deletion. Every call here answers only when nothing lands any
//! more that should not.

use std::time::{Duration, Instant};

use pmu_format::{Grant, PrincipalName, RegionName, Rights};
use pmu_proto::v1::{DeleteRegionResponse, FenceRegionResponse, Reason};

use crate::control::reasons::Refusal;
use crate::metrics;
use crate::opening::writing_right;
use crate::session::{End, Session};
use crate::state::{Desk, Region, UnitState, no_grant};

impl UnitState {
    /// A fence for a principal that manages the region, or that could be its next primary.
    pub(crate) fn fence_as_client(
        &self,
        principal: &PrincipalName,
        name: &RegionName,
        arrived: Instant,
    ) -> Result<FenceRegionResponse, Refusal> {
        let region = self.region(name)?;
        let mut desk = region.desk();
        let entry = self.entry(&region, &desk)?;
        let needed = writing_right(entry.mode) | Rights::MANAGE;
        if !self.rights_of(&entry, principal)?.intersects(needed) {
            return Err(no_grant(
                &entry,
                principal,
                &format!("one of the rights {needed}"),
            ));
        }
        self.fence_held(&region, &mut desk, Some(principal), arrived)
    }

    /// Raises the epoch, durably, and invalidates the windows of every older writer; answers when no byte of them lands.
    ///
    /// # Errors
    /// `NO_SUCH_REGION`; `MEDIUM`: the epoch isn't durable; `FABRIC`: a window could not be invalidated, and the region
    /// stays closed to writers until a fence succeeds.
    pub(crate) fn fence(
        &self,
        name: &RegionName,
        arrived: Instant,
    ) -> Result<FenceRegionResponse, Refusal> {
        let region = self.region(name)?;
        let mut desk = region.desk();
        self.entry(&region, &desk)?;
        self.fence_held(&region, &mut desk, None, arrived)
    }

    pub(crate) fn fence_held(
        &self,
        region: &Region,
        desk: &mut Desk,
        caller: Option<&PrincipalName>,
        arrived: Instant,
    ) -> Result<FenceRegionResponse, Refusal> {
        let mut hands = self.hands(region);
        let epoch = desk.writers.fence(caller, &mut hands)?.get();
        let took = arrived.elapsed();
        let (windows_invalidated, sessions_closed) = (hands.windows, hands.sessions);
        metrics::count_fence(took);
        tracing::info!(region = %region.name, epoch, windows_invalidated, sessions_closed, took_us = micros(took), "region fenced");
        Ok(FenceRegionResponse {
            epoch,
            windows_invalidated,
            sessions_closed,
            took_us: micros(took),
        })
    }

    /// Gives a principal exactly these rights, durably, and ends its sessions that use one it has lost. Returns how many
    /// windows were invalidated.
    pub(crate) fn set_grant(&self, name: &RegionName, grant: Grant) -> Result<u32, Refusal> {
        let region = self.region(name)?;
        let mut desk = region.desk();
        let mut grants = self.entry(&region, &desk)?.grants;
        let (principal, rights) = (grant.principal.clone(), grant.rights);
        match grants.iter_mut().find(|known| known.principal == principal) {
            Some(known) => known.rights = rights,
            None => grants.push(grant),
        }
        self.pools[region.pool].set_grants(region.id, grants)?;
        tracing::info!(%rights, "grant set");
        let has = rights | self.loans.rights_of(region.id, &principal);
        let unfounded = |session: &Session| {
            session.principal == principal && !has.contains(session.rights_needed())
        };
        self.end_sessions(&region, &mut desk, End::Revoked, unfounded)
            .map(|(_, windows)| windows)
    }

    /// Takes all rights from a principal, durably, and ends its sessions on the region. Returns how many windows were
    /// invalidated.
    pub(crate) fn revoke_grant(
        &self,
        name: &RegionName,
        principal: &PrincipalName,
    ) -> Result<u32, Refusal> {
        let region = self.region(name)?;
        let mut desk = region.desk();
        let mut grants = self.entry(&region, &desk)?.grants;
        let before = grants.len();
        grants.retain(|grant| grant.principal != *principal);
        let had_loan = self.loans.end(region.id, principal);
        let had_grant = grants.len() < before;
        let durable = match had_grant {
            true => self.pools[region.pool].set_grants(region.id, grants),
            false => Ok(()),
        };
        // Even where the medium failed. And without a grant too: an earlier revocation may have failed to take windows away,
        // and is finished here.
        let mut hands = self.hands(&region);
        desk.writers.revoke(principal, &mut hands)?;
        durable?;
        if !had_grant && !had_loan && hands.sessions == 0 {
            let message = format!("{principal} has no grant on region {name}");
            return Err(Refusal::new(Reason::NoSuchGrant, message));
        }
        tracing::info!(windows = hands.windows, "grant revoked");
        Ok(hands.windows)
    }

    /// Ends the sessions of a region that `chosen` picks, all that can be ended; returns how many, and how many windows
    /// they had.
    pub(crate) fn end_sessions(
        &self,
        region: &Region,
        desk: &mut Desk,
        end: End,
        chosen: impl Fn(&Session) -> bool,
    ) -> Result<(u32, u32), Refusal> {
        let mut hands = self.hands(region);
        let mut failed = None;
        for session in self
            .sessions
            .live(Some(region.id))
            .iter()
            .filter(|session| chosen(session))
        {
            if let Err(refusal) = desk.writers.closed(session.id, end, &mut hands) {
                failed = Some(refusal);
            }
        }
        failed.map_or(Ok((hands.sessions, hands.windows)), Err)
    }

    fn check_unused(&self, region: &Region) -> Result<(), Refusal> {
        let sessions = self.sessions.live(Some(region.id));
        let Some(first) = sessions.first() else {
            return Ok(());
        };
        let message = format!(
            "region {} is open: {} session(s), one of them of {} as {:?}; end them, or force the deletion",
            region.name,
            sessions.len(),
            first.principal,
            first.role
        );
        Err(Refusal::new(Reason::InUse, message))
    }

    /// Closes the region's sessions, takes its access information back, erases its bytes and frees its extents.
    ///
    /// # Errors
    /// `IN_USE`: a session has the region open, and `force` is not set.
    pub(crate) fn delete_region(
        &self,
        name: &RegionName,
        force: bool,
    ) -> Result<DeleteRegionResponse, Refusal> {
        let region = self.region(name)?;
        let mut desk = region.desk();
        let entry = self.entry(&region, &desk)?;
        if !force {
            self.check_unused(&region)?;
        }
        let (sessions_closed, _) = self.end_sessions(&region, &mut desk, End::Deleted, |_| true)?;
        for (listener, exposed) in self.listeners.iter().zip(&mut desk.exposed) {
            if *exposed {
                listener.fabric.withdraw(entry.base.get())?;
                *exposed = false;
            }
        }
        // From here on nobody gets it, even if the erasing fails: the pool goes on with it when it is opened again.
        desk.deleted = true;
        self.regions.write().remove(name);
        drop(desk);
        self.pools[region.pool].delete(region.id)?;
        tracing::info!(
            sessions_closed,
            freed_bytes = entry.length_bytes,
            "region deleted"
        );
        Ok(DeleteRegionResponse {
            sessions_closed,
            freed_bytes: entry.length_bytes,
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
