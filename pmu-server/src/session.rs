//! Sessions: who holds what, from OpenRegion to the end. A table and nothing else: it calls neither pool nor fabric, and
//! who may write is decided by [`pmu_core::fence`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_fabric::{ConnectionId, PersistenceMethod, Provider};
use pmu_format::{Epoch, PrincipalName, RegionId, RegionName, Rights};
use pmu_proto::v1::{Reason, SessionRole};

use crate::config::Limits;
use crate::control::reasons::Refusal;

/// What somebody who opens a region asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Which region.
    pub region: RegionName,
    /// What for.
    pub role: SessionRole,
    /// A backup in append mode that will move the cursor.
    pub wants_clear: bool,
    /// `None`: whichever the unit prefers.
    pub provider: Option<Provider>,
    /// `None`: the strongest.
    pub persistence: Option<PersistenceMethod>,
    /// Of a primary: unless the region is still at this epoch it is refused.
    pub goes_on_from: Option<Epoch>,
}

/// A data listener of the unit, by its place in the configuration, and a connection of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DataConnection {
    /// Which listener.
    pub listener: usize,
    /// Which of its connections.
    pub connection: ConnectionId,
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waits for its data connection, or for Activate.
    Opened,
    /// Activate is at work.
    Activating,
    /// Its windows are bound.
    Active,
    /// Its windows are invalid; kept for a while so that its owner learns why.
    Ended(End),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its owner closed it.
    Closed,
    /// Its data connection ended.
    Disconnected,
    /// It was not activated in time.
    Expired,
    /// A fence raised the epoch.
    Fenced,
    /// Its owner lost the right.
    Revoked,
    /// The region was deleted.
    Deleted,
    /// The unit is stopping, or its fabric failed.
    Failed,
}

impl End {
    /// What the owner of a session that ended is told.
    #[must_use]
    pub fn refusal(self, session_id: u64) -> Refusal {
        let (reason, why) = match self {
            Self::Closed => (Reason::NoSuchSession, "was closed"),
            Self::Disconnected => (
                Reason::NotConnected,
                "ended with its data connection; open the region again",
            ),
            Self::Expired => (
                Reason::NotConnected,
                "was not activated in time; open the region again",
            ),
            Self::Fenced => (
                Reason::StaleEpoch,
                "was fenced: another program takes over as primary",
            ),
            Self::Revoked => (Reason::NoGrant, "ended because its right was taken away"),
            Self::Deleted => (Reason::NoSuchRegion, "ended because the region was deleted"),
            Self::Failed => (
                Reason::Fabric,
                "was ended by the unit; open the region again",
            ),
        };
        Refusal::new(reason, format!("session {session_id} {why}"))
    }
}

/// One session.
#[derive(Debug, Clone)]
pub struct Session {
    /// Random, not zero.
    pub id: u64,
    /// Whose.
    pub principal: PrincipalName,
    /// On which region.
    pub region: RegionId,
    /// The region's name, for status and logs.
    pub region_name: RegionName,
    /// What for.
    pub role: SessionRole,
    /// The rights that it uses.
    pub rights: Rights,
    /// How its data goes.
    pub provider: Provider,
    /// Where.
    pub data: DataConnection,
    /// What its flushes prove.
    pub persistence: PersistenceMethod,
    /// The epoch that a primary writes; for others the region's when it was opened.
    pub epoch: Epoch,
    /// When it was opened.
    pub opened: Instant,
    /// How far it is.
    pub stage: Stage,
    /// How many windows it has, or may get.
    pub windows: u32,
    /// When it leaves the table whatever happens: not active by then, or ended for long enough.
    pub until: Option<Instant>,
}

impl Session {
    /// What its principal must be granted for the session to go on. A primary may read though it was not granted that.
    #[must_use]
    pub fn rights_needed(&self) -> Rights {
        match self.role {
            SessionRole::Primary => self.rights - Rights::READ,
            _ => self.rights,
        }
    }

    /// Not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Ended(_))
    }
}

/// How long an ended session is remembered. Its connection, if it is still there, is cut then.
const ENDED_KEPT: Duration = Duration::from_secs(30);

/// All sessions of a unit.
#[derive(Debug)]
pub struct Sessions {
    limits: Limits,
    all: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Session>,
    by_connection: HashMap<DataConnection, u64>,
}

impl Sessions {
    /// None yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            all: Mutex::default(),
        }
    }

    /// Whether one more session with so many windows is within the limits.
    ///
    /// # Errors
    /// `TOO_MANY_SESSIONS`, saying which limit.
    pub fn check_room(&self, principal: &PrincipalName, windows: u32) -> Result<(), Refusal> {
        self.all.lock().check_room(&self.limits, principal, windows)
    }

    /// Adds an opened session.
    ///
    /// # Errors
    /// As [`Sessions::check_room`]: others may have come in between.
    pub fn add(&self, session: Session) -> Result<(), Refusal> {
        let mut table = self.all.lock();
        table.check_room(&self.limits, &session.principal, session.windows)?;
        table.by_connection.insert(session.data, session.id);
        table.by_id.insert(session.id, session);
        Ok(())
    }

    /// The session with this id, if it belongs to `principal`: nobody learns of another's.
    ///
    /// # Errors
    /// `NO_SUCH_SESSION`.
    pub fn of(&self, principal: &PrincipalName, id: u64) -> Result<Session, Refusal> {
        let table = self.all.lock();
        let found = table
            .by_id
            .get(&id)
            .filter(|session| session.principal == *principal);
        found.cloned().ok_or_else(|| no_such(id))
    }

    /// The session with this id.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Session> {
        self.all.lock().by_id.get(&id).cloned()
    }

    /// The session that a data connection belongs to.
    #[must_use]
    pub fn on(&self, data: DataConnection) -> Option<Session> {
        let table = self.all.lock();
        table
            .by_connection
            .get(&data)
            .and_then(|id| table.by_id.get(id))
            .cloned()
    }

    /// Takes the session for one Activate.
    ///
    /// # Errors
    /// `NO_SUCH_SESSION`; `BAD_REQUEST` if it is active, or another Activate is at work; why it ended, if it has.
    pub fn begin_activation(&self, principal: &PrincipalName, id: u64) -> Result<Session, Refusal> {
        let mut table = self.all.lock();
        let session = table
            .by_id
            .get_mut(&id)
            .filter(|session| session.principal == *principal)
            .ok_or_else(|| no_such(id))?;
        match session.stage {
            Stage::Opened => session.stage = Stage::Activating,
            Stage::Ended(end) => return Err(end.refusal(id)),
            Stage::Activating | Stage::Active => {
                let message = format!(
                    "session {id} is active, or being activated; a session is activated once"
                );
                return Err(Refusal::new(Reason::BadRequest, message));
            }
        }
        Ok(session.clone())
    }

    /// Gives up an activation, so that it can be tried again.
    pub fn undo_activation(&self, id: u64) {
        if let Some(session) = self.all.lock().by_id.get_mut(&id)
            && session.stage == Stage::Activating
        {
            session.stage = Stage::Opened;
        }
    }

    /// Marks a session as active. The caller holds the region, so that it can't end in between.
    pub fn activated(&self, id: u64, windows: u32) {
        if let Some(session) = self.all.lock().by_id.get_mut(&id)
            && session.stage == Stage::Activating
        {
            session.stage = Stage::Active;
            session.windows = windows;
            session.until = None;
        }
    }

    /// Ends a session: kept for a while if its owner has something to learn from it, forgotten else. Returns it as it was,
    /// `None` if it had ended before.
    pub fn end(&self, id: u64, end: End, now: Instant) -> Option<Session> {
        let mut table = self.all.lock();
        let session = table.by_id.get_mut(&id)?;
        let before = session.clone();
        let remembered = matches!(
            end,
            End::Fenced | End::Revoked | End::Deleted | End::Expired | End::Failed
        );
        if !before.is_live() {
            if end == End::Disconnected || end == End::Closed {
                table.by_connection.remove(&before.data);
            }
            return None;
        }
        if remembered {
            session.stage = Stage::Ended(end);
            session.until = Some(now + ENDED_KEPT);
        } else {
            table.by_id.remove(&id);
            table.by_connection.remove(&before.data);
        }
        Some(before)
    }

    /// Sessions whose time is over: those to end, and those that ended and are forgotten now.
    pub fn overdue(&self, now: Instant) -> (Vec<Session>, Vec<Session>) {
        let mut table = self.all.lock();
        let overdue = |session: &&Session| session.until.is_some_and(|until| until <= now);
        let all: Vec<Session> = table.by_id.values().filter(overdue).cloned().collect();
        let (to_end, forgotten): (Vec<_>, Vec<_>) = all.into_iter().partition(Session::is_live);
        for session in &forgotten {
            table.by_id.remove(&session.id);
            table.by_connection.remove(&session.data);
        }
        (to_end, forgotten)
    }

    /// The live sessions, oldest first; of one region, if one is given.
    #[must_use]
    pub fn live(&self, region: Option<RegionId>) -> Vec<Session> {
        let table = self.all.lock();
        let wanted = |session: &&Session| {
            session.is_live() && region.is_none_or(|region| session.region == region)
        };
        let mut live: Vec<Session> = table.by_id.values().filter(wanted).cloned().collect();
        live.sort_by_key(|session| session.opened);
        live
    }
}

impl Table {
    fn check_room(
        &self,
        limits: &Limits,
        principal: &PrincipalName,
        windows: u32,
    ) -> Result<(), Refusal> {
        let refuse = |limit: &str, most: u32| {
            let message = format!(
                "the unit's limit is reached (limits.{limit} = {most}); close sessions, or raise it"
            );
            Err(Refusal::new(Reason::TooManySessions, message))
        };
        let live = || self.by_id.values().filter(|session| session.is_live());
        if live().count() >= limits.sessions_max as usize {
            return refuse("sessions_max", limits.sessions_max);
        }
        let own = live()
            .filter(|session| session.principal == *principal)
            .count();
        if own >= limits.sessions_per_principal_max as usize {
            return refuse(
                "sessions_per_principal_max",
                limits.sessions_per_principal_max,
            );
        }
        let bound: u64 = live().map(|session| u64::from(session.windows)).sum();
        if bound + u64::from(windows) > u64::from(limits.windows_max) {
            return refuse("windows_max", limits.windows_max);
        }
        Ok(())
    }
}

fn no_such(id: u64) -> Refusal {
    Refusal::new(
        Reason::NoSuchSession,
        format!("there is no session {id} of this principal; open the region first"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: u64, principal: &str, windows: u32) -> Session {
        Session {
            id,
            principal: PrincipalName::new(principal).unwrap(),
            region: RegionId([1; 16]),
            region_name: RegionName::new("r").unwrap(),
            role: SessionRole::Reader,
            rights: Rights::READ,
            provider: Provider::SoftTcp,
            data: DataConnection {
                listener: 0,
                connection: ConnectionId(id),
            },
            persistence: PersistenceMethod::Volatile,
            epoch: Epoch(0),
            opened: Instant::now(),
            stage: Stage::Opened,
            windows,
            until: Some(Instant::now() + Duration::from_secs(1)),
        }
    }

    fn name(text: &str) -> PrincipalName {
        PrincipalName::new(text).unwrap()
    }

    #[test]
    fn p17_nobody_learns_of_anothers_session() {
        let sessions = Sessions::new(&Limits::default());
        sessions.add(session(7, "alice", 1)).unwrap();
        assert!(sessions.of(&name("alice"), 7).is_ok());
        for (principal, id) in [("bob", 7), ("alice", 8)] {
            let refusal = sessions.begin_activation(&name(principal), id).unwrap_err();
            assert_eq!(refusal.reason, Reason::NoSuchSession);
            assert_eq!(
                sessions.of(&name(principal), id).unwrap_err().reason,
                Reason::NoSuchSession
            );
        }
    }

    #[test]
    fn a_session_is_activated_once() {
        let sessions = Sessions::new(&Limits::default());
        sessions.add(session(7, "alice", 1)).unwrap();
        let alice = name("alice");
        sessions.begin_activation(&alice, 7).unwrap();
        assert_eq!(
            sessions.begin_activation(&alice, 7).unwrap_err().reason,
            Reason::BadRequest
        );
        sessions.undo_activation(7);
        sessions.begin_activation(&alice, 7).unwrap();
        sessions.activated(7, 1);
        assert_eq!(
            sessions.begin_activation(&alice, 7).unwrap_err().reason,
            Reason::BadRequest
        );
        assert!(sessions.end(7, End::Fenced, Instant::now()).is_some());
        assert!(sessions.end(7, End::Disconnected, Instant::now()).is_none());
        assert_eq!(
            sessions.begin_activation(&alice, 7).unwrap_err().reason,
            Reason::StaleEpoch
        );
    }

    #[test]
    fn every_limit_is_named() {
        let limits = Limits {
            sessions_max: 3,
            sessions_per_principal_max: 2,
            windows_max: 10,
            ..Limits::default()
        };
        let sessions = Sessions::new(&limits);
        let refused = |principal: &str, windows| {
            sessions
                .check_room(&name(principal), windows)
                .unwrap_err()
                .message
        };
        sessions.add(session(1, "alice", 4)).unwrap();
        assert!(refused("bob", 7).contains("windows_max"));
        sessions.check_room(&name("bob"), 6).unwrap();
        sessions.add(session(2, "alice", 1)).unwrap();
        assert!(refused("alice", 1).contains("sessions_per_principal_max"));
        sessions.add(session(3, "bob", 1)).unwrap();
        assert!(refused("carol", 1).contains("sessions_max"));
        // Ended sessions don't count.
        sessions.end(1, End::Fenced, Instant::now());
        sessions.check_room(&name("carol"), 1).unwrap();
    }

    #[test]
    fn overdue_sessions_end_and_are_forgotten_later() {
        let sessions = Sessions::new(&Limits::default());
        sessions.add(session(1, "alice", 1)).unwrap();
        let now = Instant::now();
        assert!(sessions.overdue(now).0.is_empty());
        let later = now + Duration::from_secs(2);
        let (to_end, forgotten) = sessions.overdue(later);
        assert_eq!((to_end.len(), forgotten.len()), (1, 0));
        sessions.end(1, End::Expired, later);
        assert!(sessions.live(None).is_empty());
        let (to_end, forgotten) = sessions.overdue(later + ENDED_KEPT);
        assert_eq!((to_end.len(), forgotten.len()), (0, 1));
        assert!(sessions.get(1).is_none());
    }
}
