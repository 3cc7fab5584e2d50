//! Who may use one region: drives the decisions of [`pmu_core::fence`] to their end, one event after the other. What the
//! decisions ask of pool and fabric is done through [`World`].

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use pmu_core::fence::{Action, FenceId, Opener, RefuseReason, RevokeId, SessionId, WriterTable};
use pmu_format::{Epoch, Mode, PrincipalName, RegionName, Rights};
use pmu_proto::v1::{Reason, SessionRole};

use crate::control::reasons::Refusal;
use crate::session::End;

/// What decisions ask for. Both calls may block.
pub(crate) trait World {
    /// Makes the region's epoch durable.
    fn persist_epoch(&mut self, epoch: Epoch) -> Result<(), Refusal>;
    /// Takes every window of the session away and ends it. When this returns `Ok`, no byte of it lands.
    fn invalidate(&mut self, session: u64, end: End) -> Result<(), Refusal>;
}

/// Who wants to open the region.
pub(crate) struct Candidate<'a> {
    /// Its session, never used before.
    pub(crate) session: u64,
    pub(crate) principal: &'a PrincipalName,
    /// What the region's grants allow it.
    pub(crate) allowed: Rights,
    pub(crate) role: SessionRole,
    pub(crate) wants_clear: bool,
    /// Of a primary: the epoch behind which its state was recovered.
    pub(crate) goes_on_from: Option<Epoch>,
}

/// What a session was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) epoch: Epoch,
    pub(crate) rights: Rights,
}

/// The sessions of one region, as far as windows go.
pub(crate) struct Writers {
    region: RegionName,
    table: WriterTable,
    /// Sessions whose windows could not be taken away: tried again before anything else is done.
    unconfirmed: BTreeMap<SessionId, End>,
    next_request: u64,
}

/// What came out of driving the decisions until nothing was left to do.
#[derive(Default)]
struct Outcome {
    granted: BTreeMap<SessionId, Granted>,
    refused: BTreeMap<SessionId, RefuseReason>,
    fenced: Option<Epoch>,
    fence_failed: bool,
    revoked: bool,
    /// The last failure of pool or fabric.
    failure: Option<Refusal>,
}

impl Writers {
    /// Nobody has the region open: after a start no window exists.
    pub(crate) fn new(region: &RegionName, mode: Mode, epoch: Epoch) -> Self {
        Self {
            region: region.clone(),
            table: WriterTable::new(mode, epoch),
            unconfirmed: BTreeMap::new(),
            next_request: 1,
        }
    }

    /// Opens the region. A primary's epoch is durable, and no older writer has a window, when this returns `Ok`.
    ///
    /// # Errors
    /// `NO_GRANT`, `WRITER_EXISTS`, `STALE_EPOCH`, `BAD_REQUEST`, `TOO_MANY_SESSIONS`; `MEDIUM` if the epoch could not be made durable;
    /// `FABRIC` while windows of a former writer can't be taken away.
    pub(crate) fn open(
        &mut self,
        candidate: &Candidate<'_>,
        world: &mut impl World,
    ) -> Result<Granted, Refusal> {
        let session = SessionId(candidate.session);
        let opener = Opener {
            session,
            principal: candidate.principal.clone(),
            allowed: candidate.allowed,
            now_nanoseconds: now_nanoseconds(),
            goes_on_from: candidate.goes_on_from,
        };
        match candidate.role {
            SessionRole::Primary => self.table.open_primary(opener),
            SessionRole::Backup => self.table.open_backup(opener, candidate.wants_clear),
            SessionRole::Reader => self.table.open_reader(opener),
            SessionRole::Unspecified => {
                return Err(Refusal::new(Reason::BadRequest, "a session needs a role"));
            }
        }
        let outcome = self.drive(End::Closed, world);
        if let Some(granted) = outcome.granted.get(&session) {
            return Ok(*granted);
        }
        if let Some(reason) = outcome.refused.get(&session) {
            return Err(self.refusal(candidate.principal, reason, outcome.failure));
        }
        // It waits for a former writer's windows to go: nobody waits here, the caller tries again.
        self.table.closed(session);
        let again = self.drive(End::Closed, world);
        Err(outcome
            .failure
            .or(again.failure)
            .unwrap_or_else(|| self.still_closed()))
    }

    /// Ends a session: closed by its owner, disconnected, or taken away from it.
    ///
    /// # Errors
    /// `FABRIC`: its windows may still be valid. The region stays closed to writers if it was one.
    pub(crate) fn closed(
        &mut self,
        session: u64,
        end: End,
        world: &mut impl World,
    ) -> Result<(), Refusal> {
        self.table.closed(SessionId(session));
        let outcome = self.drive(end, world);
        match outcome.failure {
            Some(failure) if self.unconfirmed.contains_key(&SessionId(session)) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Raises the epoch, durably, and takes the windows of every older writer away; also those with which its principal
    /// clears, unless it is the caller's own.
    ///
    /// # Errors
    /// `MEDIUM`: the epoch isn't durable (windows were taken away all the same). `FABRIC`: a window could not be taken
    /// away; the region stays closed to writers until a later call succeeds.
    pub(crate) fn fence(
        &mut self,
        caller: Option<&PrincipalName>,
        world: &mut impl World,
    ) -> Result<Epoch, Refusal> {
        let fence = FenceId(self.request());
        self.table.fence(fence, caller);
        let outcome = self.drive(End::Fenced, world);
        match (outcome.fenced, outcome.fence_failed, outcome.failure) {
            (Some(epoch), false, _) => Ok(epoch),
            (_, _, Some(failure)) => Err(failure),
            (None, true, None) => Err(Refusal::new(
                Reason::Medium,
                "no epoch is left for this region",
            )),
            _ => Err(self.still_closed()),
        }
    }

    /// Takes away every window of a principal.
    ///
    /// # Errors
    /// `FABRIC`: a window may still be valid.
    pub(crate) fn revoke(
        &mut self,
        principal: &PrincipalName,
        world: &mut impl World,
    ) -> Result<(), Refusal> {
        let revoke = RevokeId(self.request());
        self.table.revoke(revoke, principal);
        let outcome = self.drive(End::Revoked, world);
        match (outcome.revoked, outcome.failure) {
            (true, _) => Ok(()),
            (false, Some(failure)) => Err(failure),
            (false, None) => Err(self.still_closed()),
        }
    }

    /// Whether the session may be given windows now.
    pub(crate) fn may_bind(&self, session: u64) -> bool {
        !self.unconfirmed.contains_key(&SessionId(session))
    }

    /// The principal of the primary; empty: there is none.
    pub(crate) fn primary_name(&self) -> String {
        let holder = self.table.primary();
        holder
            .map(|holder| holder.principal.to_string())
            .unwrap_or_default()
    }

    fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    /// Carries out what the table asks for until it asks for nothing.
    fn drive(&mut self, end: End, world: &mut impl World) -> Outcome {
        let mut outcome = Outcome::default();
        for (session, end) in std::mem::take(&mut self.unconfirmed) {
            self.invalidate(session, end, world, &mut outcome);
        }
        while let Some(action) = self.table.poll_action() {
            match action {
                Action::PersistEpoch { epoch, ticket } => match world.persist_epoch(epoch) {
                    Ok(()) => self.table.table_persisted(ticket),
                    Err(refusal) => {
                        outcome.failure = Some(refusal);
                        self.table.table_persist_failed(ticket);
                    }
                },
                Action::InvalidateWindows { session } => {
                    self.invalidate(session, end, world, &mut outcome);
                }
                Action::Grant {
                    session,
                    epoch,
                    rights,
                } => {
                    outcome.granted.insert(session, Granted { epoch, rights });
                }
                Action::Refuse { session, reason } => {
                    outcome.refused.insert(session, reason);
                }
                Action::FenceDone { epoch, .. } => outcome.fenced = Some(epoch),
                Action::FenceFailed { .. } => outcome.fence_failed = true,
                Action::RevokeDone { .. } => outcome.revoked = true,
                other => {
                    tracing::error!(?other, "a decision that this unit does not know");
                    outcome.failure =
                        Some(Refusal::new(Reason::Fabric, "the unit could not decide"));
                }
            }
        }
        outcome
    }

    fn invalidate(
        &mut self,
        session: SessionId,
        end: End,
        world: &mut impl World,
        outcome: &mut Outcome,
    ) {
        match world.invalidate(session.0, end) {
            Ok(()) => {
                self.table.windows_invalidated(session);
                // Nobody hears of it again: its place in the table is free.
                self.table.closed(session);
            }
            Err(refusal) => {
                tracing::error!(region = %self.region, session = session.0, %refusal, "windows could not be taken away");
                self.unconfirmed.insert(session, end);
                outcome.failure = Some(refusal);
            }
        }
    }

    fn still_closed(&self) -> Refusal {
        let message = format!(
            "region {} is closed to writers: windows of a former one could not be taken away; end that program or restart \
             the unit, then fence again",
            self.region
        );
        Refusal::new(Reason::Fabric, message)
    }

    fn refusal(
        &self,
        principal: &PrincipalName,
        reason: &RefuseReason,
        failure: Option<Refusal>,
    ) -> Refusal {
        let region = &self.region;
        let refuse =
            |with, what: &str| Refusal::new(with, format!("region {region}: {reason}{what}"));
        match reason {
            RefuseReason::NotAllowed { missing } => Refusal::new(
                Reason::NoGrant,
                format!(
                    "{principal} does not have the right {missing} on region {region}: a manager can grant it"
                ),
            ),
            RefuseReason::Primary { .. } => refuse(
                Reason::WriterExists,
                "; if it is dead, fence the region first",
            ),
            RefuseReason::Clearing { .. } => refuse(
                Reason::ClearingExists,
                "; end that program first, revoke its grant, or open without clearing",
            ),
            RefuseReason::NotALog => refuse(Reason::BadRequest, ""),
            RefuseReason::TooManySessions => refuse(Reason::TooManySessions, "; close some"),
            RefuseReason::Fenced => refuse(Reason::StaleEpoch, "; open it again"),
            RefuseReason::Superseded { .. } => refuse(
                Reason::StaleEpoch,
                ": somebody fenced or opened it since; recover from it anew",
            ),
            RefuseReason::Revoked => refuse(Reason::NoGrant, ""),
            RefuseReason::PersistFailed => failure.unwrap_or_else(|| refuse(Reason::Medium, "")),
            _ => refuse(Reason::Fabric, ""),
        }
    }
}

fn now_nanoseconds() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Model {
        durable: u64,
        medium_fails: bool,
        fabric_fails: bool,
        ended: Vec<(u64, End)>,
    }

    impl World for Model {
        fn persist_epoch(&mut self, epoch: Epoch) -> Result<(), Refusal> {
            if self.medium_fails {
                return Err(Refusal::new(Reason::Medium, "medium"));
            }
            self.durable = epoch.get();
            Ok(())
        }

        fn invalidate(&mut self, session: u64, end: End) -> Result<(), Refusal> {
            if self.fabric_fails {
                return Err(Refusal::new(Reason::Fabric, "fabric"));
            }
            self.ended.push((session, end));
            Ok(())
        }
    }

    fn open(
        writers: &mut Writers,
        world: &mut Model,
        session: u64,
        role: SessionRole,
    ) -> Result<Granted, Refusal> {
        let principal = PrincipalName::new(&format!("p{session}")).unwrap();
        let candidate = Candidate {
            session,
            principal: &principal,
            allowed: Rights::all(),
            role,
            wants_clear: role == SessionRole::Backup,
            goes_on_from: None,
        };
        writers.open(&candidate, world)
    }

    fn writers() -> (Writers, Model) {
        (
            Writers::new(&RegionName::new("r").unwrap(), Mode::Append, Epoch(7)),
            Model::default(),
        )
    }

    #[test]
    fn b03_a_fence_is_done_when_every_window_is_gone() {
        let (mut writers, mut world) = writers();
        let first = open(&mut writers, &mut world, 1, SessionRole::Primary).unwrap();
        assert_eq!((first.epoch, world.durable), (Epoch(8), 8));
        let second = open(&mut writers, &mut world, 2, SessionRole::Primary).unwrap_err();
        assert_eq!(second.reason, Reason::WriterExists);
        assert!(second.message.contains("p1"), "{second}");
        assert_eq!(writers.primary_name(), "p1");

        world.fabric_fails = true;
        assert_eq!(
            writers.fence(None, &mut world).unwrap_err().reason,
            Reason::Fabric
        );
        assert!(!writers.may_bind(1));
        for session in [3, 4] {
            let refused =
                open(&mut writers, &mut world, session, SessionRole::Primary).unwrap_err();
            assert_eq!(refused.reason, Reason::Fabric, "closed to writers");
        }
        // Readers are not concerned.
        open(&mut writers, &mut world, 5, SessionRole::Reader).unwrap();

        world.fabric_fails = false;
        assert_eq!(writers.fence(None, &mut world).unwrap(), Epoch(9));
        assert_eq!(world.ended, [(1, End::Fenced)]);
        let next = open(&mut writers, &mut world, 6, SessionRole::Primary).unwrap();
        assert_eq!((next.epoch, world.durable), (Epoch(10), 10));
    }

    #[test]
    fn b03_without_a_durable_epoch_there_is_no_grant_and_no_fence() {
        let (mut writers, mut world) = writers();
        world.medium_fails = true;
        assert_eq!(
            open(&mut writers, &mut world, 1, SessionRole::Primary)
                .unwrap_err()
                .reason,
            Reason::Medium
        );
        assert_eq!(
            writers.fence(None, &mut world).unwrap_err().reason,
            Reason::Medium
        );
        world.medium_fails = false;
        assert!(
            open(&mut writers, &mut world, 2, SessionRole::Primary)
                .unwrap()
                .epoch
                > Epoch(7)
        );
    }

    #[test]
    fn p13_one_backup_clears_at_a_time_and_sessions_end() {
        let (mut writers, mut world) = writers();
        open(&mut writers, &mut world, 1, SessionRole::Backup).unwrap();
        let refused = open(&mut writers, &mut world, 2, SessionRole::Backup).unwrap_err();
        assert_eq!(refused.reason, Reason::ClearingExists);
        assert!(refused.message.contains("p1"), "{refused}");
        writers.closed(1, End::Disconnected, &mut world).unwrap();
        open(&mut writers, &mut world, 2, SessionRole::Backup).unwrap();
        writers
            .revoke(&PrincipalName::new("p2").unwrap(), &mut world)
            .unwrap();
        assert_eq!(world.ended, [(1, End::Disconnected), (2, End::Revoked)]);
        open(&mut writers, &mut world, 3, SessionRole::Backup).unwrap();
    }
}
