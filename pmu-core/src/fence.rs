//! Who may write to a region: the unit's decision.
//!
//! At most one session writes. Each opening as primary gets an epoch of its own, which is durable
//! in the region table before the grant. A fence raises the epoch, makes it durable, and takes away
//! every window with which an older epoch could write; it is done only when all of that is
//! confirmed, and only then the next writer is granted.
//!
//! No grant to a writer can come before that: the one function that makes it takes a `Quiet`, and
//! the one function that makes a `Quiet` looks at all sessions.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pmu_format::{Epoch, Mode, PrincipalName, Rights};

/// The most sessions that a region has at a time.
pub const SESSIONS_MAX: usize = 4096;

macro_rules! id {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }
    };
}

id! {
    /// Names a session: one connection on which one principal opened the region once. Chosen by the
    /// caller, never used again.
    SessionId
}

id! {
    /// Names one change of the region table until it is durable.
    Ticket
}

id! {
    /// Names one request to fence. Chosen by the caller.
    FenceId
}

id! {
    /// Names one request to revoke. Chosen by the caller.
    RevokeId
}

/// Who opens the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    /// The session, unknown so far.
    pub session: SessionId,
    /// The authenticated principal.
    pub principal: PrincipalName,
    /// What the region's grants allow the principal.
    pub allowed: Rights,
    /// When, in nanoseconds since 1970: only to be shown.
    pub now_nanoseconds: u64,
    /// Of a primary that goes on with what was recovered: the epoch in which that was so, its fence's. `None`: it takes the region as it
    /// is. Nobody else looks at it.
    pub goes_on_from: Option<Epoch>,
}

/// The session that holds what only one can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which session.
    pub session: SessionId,
    /// Whose.
    pub principal: PrincipalName,
    /// The epoch that it was granted, `None` while it waits.
    pub epoch: Option<Epoch>,
    /// Since when, in nanoseconds since 1970.
    pub since_nanoseconds: u64,
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "session {} of {}", self.session, self.principal)?;
        match self.epoch {
            Some(epoch) => write!(formatter, " in epoch {epoch}"),
            None => formatter.write_str(", which waits for its grant"),
        }
    }
}

/// Why a session is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefuseReason {
    /// The session opened the region before.
    #[error("the session has the region open")]
    AlreadyOpen,
    /// As many sessions as can be are open.
    #[error("{SESSIONS_MAX} sessions have the region open")]
    TooManySessions,
    /// The principal may not.
    #[error("the principal lacks the rights: {missing}")]
    NotAllowed {
        /// What it lacks.
        missing: Rights,
    },
    /// Another session writes, or is about to. Fence it first if it is dead.
    #[error("the region has a primary: {holder}")]
    Primary {
        /// Which one.
        holder: Holder,
    },
    /// Another session clears.
    #[error("the region has a clearing backup: {holder}")]
    Clearing {
        /// Which one.
        holder: Holder,
    },
    /// Only a log can be cleared.
    #[error("the region is no log, nothing can be cleared")]
    NotALog,
    /// A fence came before the grant.
    #[error("the region was fenced before the grant")]
    Fenced,
    /// Somebody fenced or opened the region since the opener's state was recovered: it lacks what was stored meanwhile.
    #[error("the region is at epoch {now}, and the opener goes on from epoch {from}")]
    Superseded {
        /// The highest epoch that was given out.
        now: Epoch,
        /// What the opener said.
        from: Epoch,
    },
    /// The principal's rights were revoked before the grant.
    #[error("the rights were revoked before the grant")]
    Revoked,
    /// The epoch could not be made durable.
    #[error("the epoch could not be made durable")]
    PersistFailed,
    /// No epoch is left.
    #[error("no epoch is left")]
    EpochsExhausted,
}

/// What the unit has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Make this epoch durable in the region's entry, then report
    /// [`table_persisted`](WriterTable::table_persisted) or
    /// [`table_persist_failed`](WriterTable::table_persist_failed).
    PersistEpoch {
        /// The epoch.
        epoch: Epoch,
        /// What to report.
        ticket: Ticket,
    },
    /// Take away every window of the session, so that not one byte of what it has posted lands any
    /// more; then report [`windows_invalidated`](WriterTable::windows_invalidated).
    InvalidateWindows {
        /// The session.
        session: SessionId,
    },
    /// Bind windows with these rights to the session's connection and tell it the epoch.
    Grant {
        /// The session.
        session: SessionId,
        /// Its own where it is a primary, otherwise the present one.
        epoch: Epoch,
        /// The rights.
        rights: Rights,
    },
    /// Tell the session that it doesn't get the region. The table has forgotten it, unless it was
    /// open before.
    Refuse {
        /// The session.
        session: SessionId,
        /// Why.
        reason: RefuseReason,
    },
    /// The fence is done: nothing of an older epoch can land.
    FenceDone {
        /// Which request.
        fence: FenceId,
        /// The epoch that it raised the region to.
        epoch: Epoch,
    },
    /// The fence could not be made durable. Windows were taken away all the same; fence again.
    FenceFailed {
        /// Which request.
        fence: FenceId,
    },
    /// No window of the principal is left.
    RevokeDone {
        /// Which request.
        revoke: RevokeId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Primary,
    Backup { clears: bool },
    Reader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A primary that waits until no other writer is left.
    Waiting,
    /// A primary whose epoch is being made durable.
    Persisting { epoch: Epoch, ticket: Ticket },
    /// Has its windows.
    Granted { epoch: Epoch },
    /// Its windows are being taken away.
    Invalidating { epoch: Epoch, closed: bool },
    /// Its windows are gone, its connection may still be there.
    Dead,
}

#[derive(Clone, Debug)]
struct Session {
    principal: PrincipalName,
    role: Role,
    stage: Stage,
    since_nanoseconds: u64,
}

impl Session {
    /// The epoch of its windows, while it may have some.
    fn window_epoch(&self) -> Option<Epoch> {
        match self.stage {
            Stage::Granted { epoch } | Stage::Invalidating { epoch, .. } => Some(epoch),
            Stage::Waiting | Stage::Persisting { .. } | Stage::Dead => None,
        }
    }

    fn holder(&self, session: SessionId) -> Holder {
        Holder {
            session,
            principal: self.principal.clone(),
            epoch: self.window_epoch(),
            since_nanoseconds: self.since_nanoseconds,
        }
    }
}

#[derive(Clone, Debug)]
struct Fence {
    epoch: Epoch,
    ticket: Ticket,
    persisted: bool,
    requests: Vec<FenceId>,
    /// Clearing sessions that it ends, and whose windows are not confirmed to be gone.
    clearing: BTreeSet<SessionId>,
}

/// Proof that no session has a window with which it could write.
struct Quiet(());

/// The sessions of one region, and which of them may write.
///
/// Tell it what happens; then carry out what [`poll_action`](Self::poll_action) gives, in order,
/// until there is nothing. Every action that asks for a report must be answered by one, at any
/// later time. Reports about what the table has forgotten are ignored.
#[derive(Clone, Debug)]
pub struct WriterTable {
    mode: Mode,
    /// The highest epoch that was ever given out, durable or not.
    issued: Epoch,
    /// The highest epoch that is known to be durable.
    persisted: Epoch,
    next_ticket: u64,
    sessions: BTreeMap<SessionId, Session>,
    fence: Option<Fence>,
    revokes: Vec<(RevokeId, BTreeSet<SessionId>)>,
    actions: VecDeque<Action>,
}

impl WriterTable {
    /// A table for a region in `mode`, whose entry says `epoch`. No session is open: after a
    /// restart no window exists.
    #[must_use]
    pub fn new(mode: Mode, epoch: Epoch) -> Self {
        Self {
            mode,
            issued: epoch,
            persisted: epoch,
            next_ticket: 1,
            sessions: BTreeMap::new(),
            fence: None,
            revokes: Vec::new(),
            actions: VecDeque::new(),
        }
    }

    /// A session wants to write. Who may write may read what is there, which a primary must do
    /// before its first write. It is granted after its own epoch is durable; it waits while a fence
    /// or the end of the former primary is being confirmed; it is refused where there is another
    /// primary, or one that waits already.
    ///
    /// One that goes on from an epoch is refused unless the region's is still that one, whether or not there is another primary: in one
    /// step with its place as the one who opens, so nobody gets an epoch between this look and its own.
    pub fn open_primary(&mut self, opener: Opener) {
        let write = match self.mode {
            Mode::Overwrite => Rights::WRITE,
            Mode::Append => Rights::APPEND,
        };
        let live = |session: &Session| {
            session.role == Role::Primary
                && !matches!(session.stage, Stage::Dead | Stage::Invalidating { .. })
        };
        if !self.admit(&opener, write) {
            return;
        }
        // What was given out counts, durable or not: a fence that failed to be durable has ended somebody all the same.
        let now = self.issued;
        if let Some(from) = opener.goes_on_from.filter(|from| *from != now) {
            self.refuse(opener.session, RefuseReason::Superseded { now, from });
            return;
        }
        let holder = self.sessions.iter().find(|(_, session)| live(session));
        if let Some(holder) = holder.map(|(id, session)| session.holder(*id)) {
            self.refuse(opener.session, RefuseReason::Primary { holder });
            return;
        }
        self.insert(opener, Role::Primary, Stage::Waiting);
        self.progress();
    }

    /// A session wants to read what the primary stores, and with `wants_clear` to clear it. One
    /// session clears at a time.
    pub fn open_backup(&mut self, opener: Opener, wants_clear: bool) {
        let clear = if wants_clear {
            Rights::CLEAR
        } else {
            Rights::empty()
        };
        if !self.admit(&opener, Rights::READ | clear) {
            return;
        }
        if wants_clear && self.mode != Mode::Append {
            self.refuse(opener.session, RefuseReason::NotALog);
            return;
        }
        let clears = |session: &Session| {
            session.role == (Role::Backup { clears: true }) && session.stage != Stage::Dead
        };
        let holder = self
            .sessions
            .iter()
            .find(|(_, session)| wants_clear && clears(session));
        if let Some(holder) = holder.map(|(id, session)| session.holder(*id)) {
            self.refuse(opener.session, RefuseReason::Clearing { holder });
            return;
        }
        self.grant_reading(
            opener,
            Role::Backup {
                clears: wants_clear,
            },
            Rights::READ | clear,
        );
    }

    /// A session wants to read.
    pub fn open_reader(&mut self, opener: Opener) {
        if self.admit(&opener, Rights::READ) {
            self.grant_reading(opener, Role::Reader, Rights::READ);
        }
    }

    /// The session's connection is gone, or it gave the region back. Its windows are taken away all
    /// the same before anybody follows it.
    pub fn closed(&mut self, session: SessionId) {
        let Some(found) = self.sessions.get_mut(&session) else {
            return;
        };
        match found.stage {
            Stage::Waiting | Stage::Persisting { .. } | Stage::Dead => {
                self.sessions.remove(&session);
            }
            Stage::Granted { epoch } => {
                found.stage = Stage::Invalidating {
                    epoch,
                    closed: true,
                };
                self.actions
                    .push_back(Action::InvalidateWindows { session });
            }
            Stage::Invalidating { epoch, .. } => {
                found.stage = Stage::Invalidating {
                    epoch,
                    closed: true,
                };
            }
        }
        self.progress();
    }

    /// Somebody is to take over: no writer of today may write any more.
    ///
    /// Sessions that opened as primary and were not granted yet are refused. A fence during a fence
    /// joins it, and leaves sessions alone that opened after the first: they wait. Windows with
    /// which one can only read stay. So do windows with which one clears, but for those of a
    /// principal whose primary is fenced here: a program that hangs must not keep its heir from
    /// clearing. `caller` fences; its own clearing sessions stay in any case.
    pub fn fence(&mut self, fence: FenceId, caller: Option<&PrincipalName>) {
        if let Some(present) = &mut self.fence {
            present.requests.push(fence);
            return;
        }
        let Some(epoch) = self.next_epoch() else {
            self.actions.push_back(Action::FenceFailed { fence });
            return;
        };
        let ticket = self.persist(epoch);
        let requests = vec![fence];
        self.fence = Some(Fence {
            epoch,
            ticket,
            persisted: false,
            requests,
            clearing: BTreeSet::new(),
        });
        let failed: BTreeSet<PrincipalName> = self
            .sessions
            .values()
            .filter(|session| session.role == Role::Primary && session.stage != Stage::Dead)
            .map(|session| session.principal.clone())
            .filter(|principal| Some(principal) != caller)
            .collect();
        self.end_sessions(RefuseReason::Fenced, |session| {
            session.role == Role::Primary
        });
        let clearing = self.end_sessions(RefuseReason::Fenced, |session| {
            session.role == (Role::Backup { clears: true }) && failed.contains(&session.principal)
        });
        if let Some(fence) = &mut self.fence {
            fence.clearing = clearing;
        }
        self.progress();
    }

    /// A principal has lost its rights: its windows are taken away, whatever they are for, and its
    /// sessions that wait are refused.
    pub fn revoke(&mut self, revoke: RevokeId, principal: &PrincipalName) {
        let ended = self.end_sessions(RefuseReason::Revoked, |session| {
            session.principal == *principal
        });
        self.revokes.push((revoke, ended));
        self.progress();
    }

    /// The change of the region table is durable.
    pub fn table_persisted(&mut self, ticket: Ticket) {
        if let Some(fence) = self.fence.as_mut().filter(|fence| fence.ticket == ticket) {
            fence.persisted = true;
            self.persisted = self.persisted.max(fence.epoch);
        } else if let Some((session, epoch)) = self.persisting(ticket) {
            self.persisted = self.persisted.max(epoch);
            match self.quiet() {
                Some(quiet) => self.grant_writing(session, epoch, &quiet),
                // Nobody can have become a writer while this one was the only one to open.
                None => self.refuse(session, RefuseReason::Fenced),
            }
        }
        self.progress();
    }

    /// The change of the region table could not be made durable.
    pub fn table_persist_failed(&mut self, ticket: Ticket) {
        if self
            .fence
            .as_ref()
            .is_some_and(|fence| fence.ticket == ticket)
        {
            let requests = self
                .fence
                .take()
                .map_or_else(Vec::new, |fence| fence.requests);
            let failed = requests
                .into_iter()
                .map(|fence| Action::FenceFailed { fence });
            self.actions.extend(failed);
        } else if let Some((session, _)) = self.persisting(ticket) {
            self.refuse(session, RefuseReason::PersistFailed);
        }
        self.progress();
    }

    /// No window of the session is left, and nothing that it posted can land any more.
    pub fn windows_invalidated(&mut self, session: SessionId) {
        let Some(found) = self.sessions.get_mut(&session) else {
            return;
        };
        let Stage::Invalidating { closed, .. } = found.stage else {
            return;
        };
        found.stage = Stage::Dead;
        if closed {
            self.sessions.remove(&session);
        }
        for (_, waiting) in &mut self.revokes {
            waiting.remove(&session);
        }
        if let Some(fence) = &mut self.fence {
            fence.clearing.remove(&session);
        }
        self.progress();
    }

    /// The next thing to do, `None` until something happens.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The session that writes, or is about to.
    #[must_use]
    pub fn primary(&self) -> Option<Holder> {
        let primary = |session: &Session| {
            session.role == Role::Primary
                && !matches!(session.stage, Stage::Dead | Stage::Invalidating { .. })
        };
        let found = self.sessions.iter().find(|(_, session)| primary(session));
        found.map(|(id, session)| session.holder(*id))
    }

    /// The highest epoch that is known to be durable.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.persisted
    }

    /// How many sessions there are.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Whether a fence is under way.
    #[must_use]
    pub const fn is_fencing(&self) -> bool {
        self.fence.is_some()
    }

    fn admit(&mut self, opener: &Opener, needed: Rights) -> bool {
        let missing = needed.difference(opener.allowed);
        let reason = if self.sessions.contains_key(&opener.session) {
            // Must not end the session that is open: no call of `refuse`.
            let (session, reason) = (opener.session, RefuseReason::AlreadyOpen);
            self.actions.push_back(Action::Refuse { session, reason });
            return false;
        } else if self.sessions.len() >= SESSIONS_MAX {
            RefuseReason::TooManySessions
        } else if !missing.is_empty() {
            RefuseReason::NotAllowed { missing }
        } else {
            return true;
        };
        self.refuse(opener.session, reason);
        false
    }

    fn insert(&mut self, opener: Opener, role: Role, stage: Stage) {
        let Opener {
            session,
            principal,
            now_nanoseconds,
            ..
        } = opener;
        let since_nanoseconds = now_nanoseconds;
        self.sessions.insert(
            session,
            Session {
                principal,
                role,
                stage,
                since_nanoseconds,
            },
        );
    }

    fn refuse(&mut self, session: SessionId, reason: RefuseReason) {
        self.sessions.remove(&session);
        self.actions.push_back(Action::Refuse { session, reason });
    }

    fn grant_reading(&mut self, opener: Opener, role: Role, rights: Rights) {
        let (session, epoch) = (opener.session, self.persisted);
        self.insert(opener, role, Stage::Granted { epoch });
        self.actions.push_back(Action::Grant {
            session,
            epoch,
            rights,
        });
    }

    fn grant_writing(&mut self, session: SessionId, epoch: Epoch, _proof: &Quiet) {
        let rights = match self.mode {
            Mode::Overwrite => Rights::READ | Rights::WRITE,
            Mode::Append => Rights::READ | Rights::APPEND,
        };
        if let Some(found) = self.sessions.get_mut(&session) {
            found.stage = Stage::Granted { epoch };
            self.actions.push_back(Action::Grant {
                session,
                epoch,
                rights,
            });
        }
    }

    /// Proof that nobody can write, where that is so.
    fn quiet(&self) -> Option<Quiet> {
        let may_write =
            |session: &Session| session.role == Role::Primary && session.window_epoch().is_some();
        (self.fence.is_none() && !self.sessions.values().any(may_write)).then_some(Quiet(()))
    }

    fn next_epoch(&mut self) -> Option<Epoch> {
        self.issued = self.issued.checked_add(1)?;
        Some(self.issued)
    }

    fn persist(&mut self, epoch: Epoch) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.actions
            .push_back(Action::PersistEpoch { epoch, ticket });
        ticket
    }

    fn persisting(&self, wanted: Ticket) -> Option<(SessionId, Epoch)> {
        self.sessions
            .iter()
            .find_map(|(id, session)| match session.stage {
                Stage::Persisting { epoch, ticket } if ticket == wanted => Some((*id, epoch)),
                _ => None,
            })
    }

    /// Ends the sessions that `ends` names: refuses who waits, takes windows away from who has
    /// some. Gives those whose windows are not confirmed to be gone.
    fn end_sessions(
        &mut self,
        reason: RefuseReason,
        ends: impl Fn(&Session) -> bool,
    ) -> BTreeSet<SessionId> {
        let mut refused = Vec::new();
        let mut unconfirmed = BTreeSet::new();
        for (id, session) in self
            .sessions
            .iter_mut()
            .filter(|(_, session)| ends(session))
        {
            match session.stage {
                Stage::Waiting | Stage::Persisting { .. } => refused.push(*id),
                Stage::Granted { epoch } => {
                    session.stage = Stage::Invalidating {
                        epoch,
                        closed: false,
                    };
                    self.actions
                        .push_back(Action::InvalidateWindows { session: *id });
                    unconfirmed.insert(*id);
                }
                Stage::Invalidating { .. } => {
                    unconfirmed.insert(*id);
                }
                Stage::Dead => {}
            }
        }
        for session in refused {
            self.refuse(session, reason.clone());
        }
        unconfirmed
    }

    /// Takes every step that nothing holds up any more.
    fn progress(&mut self) {
        let done = |(_, waiting): &mut (RevokeId, BTreeSet<SessionId>)| waiting.is_empty();
        let revoked = self.revokes.extract_if(.., done).map(|(revoke, _)| revoke);
        self.actions
            .extend(revoked.map(|revoke| Action::RevokeDone { revoke }));
        let older = |session: &Session, fence: &Fence| {
            session.role == Role::Primary
                && session
                    .window_epoch()
                    .is_some_and(|epoch| epoch < fence.epoch)
        };
        let fenced = self.fence.as_ref().is_some_and(|fence| {
            fence.persisted
                && fence.clearing.is_empty()
                && !self.sessions.values().any(|session| older(session, fence))
        });
        if fenced
            && let Some(Fence {
                epoch, requests, ..
            }) = self.fence.take()
        {
            let all = requests
                .into_iter()
                .map(|fence| Action::FenceDone { fence, epoch });
            self.actions.extend(all);
        }
        let waiting = self
            .sessions
            .iter()
            .find(|(_, session)| session.stage == Stage::Waiting);
        let waiting = waiting.map(|(id, _)| *id);
        let (Some(session), Some(_quiet)) = (waiting, self.quiet()) else {
            return;
        };
        let Some(epoch) = self.next_epoch() else {
            self.refuse(session, RefuseReason::EpochsExhausted);
            return;
        };
        let ticket = self.persist(epoch);
        if let Some(found) = self.sessions.get_mut(&session) {
            found.stage = Stage::Persisting { epoch, ticket };
        }
    }
}
