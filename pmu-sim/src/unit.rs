//! A simulated unit: one region in memory that a power cut tears, an epoch that outlives it, and the unit's own decision of who may write.

use std::collections::BTreeMap;
use std::sync::Arc;

use pmu_client::{ClientError, RegionInfo};
use pmu_core::fence::{Action, FenceId, Opener, RefuseReason, SessionId, WriterTable};
use pmu_core::spread::{ChangeRefused, check_change};
use pmu_fabric::AccessWindow;
use pmu_format::{Epoch, LOG_RING_OFFSET, Membership, PAGE_BYTES, PrincipalName, Rights};
use pmu_proto::v1::SessionRole;

use crate::medium::Medium;
use crate::state::State;
use crate::wire::{Far, Kind, Wire};

/// What a session may touch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) access: AccessWindow,
    pub(crate) writes: bool,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Opened,
    Active,
    /// Its windows are gone; true: by a fence.
    Ended(bool),
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) wire: usize,
    /// Whose it is.
    pub(crate) process: usize,
    pub(crate) role: SessionRole,
    pub(crate) rights: Rights,
    pub(crate) epoch: Epoch,
    pub(crate) stage: Stage,
    pub(crate) windows: Vec<Window>,
}

/// What a program asks of a unit's control service.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Describe,
    Open {
        role: SessionRole,
        clears: bool,
        goes_on_from: Option<Epoch>,
    },
    Activate {
        session: u64,
    },
    Fence,
    Close {
        session: u64,
    },
    /// Makes a member's region, which holds nothing.
    CreateMember(Box<RegionInfo>),
    /// Replaces the membership that is kept, if it is of the expected generation, and ends all sessions.
    SetMembership {
        expected: u64,
        next: Arc<Membership>,
    },
    /// Not asked by anybody: the unit notices that a data connection has ended.
    Disconnected {
        session: u64,
    },
}

impl Call {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Open { .. } => "open",
            Self::Activate { .. } => "activate",
            Self::Fence => "fence",
            Self::Close { .. } => "close",
            Self::CreateMember(_) => "create a member",
            Self::SetMembership { .. } => "change the members",
            Self::Disconnected { .. } => "disconnected",
        }
    }
}

/// What a unit answers.
#[derive(Debug)]
pub(crate) enum Reply {
    Described(Box<RegionInfo>),
    Opened {
        session: u64,
        wire: usize,
        epoch: Epoch,
    },
    Active {
        windows: Vec<AccessWindow>,
        info: Box<RegionInfo>,
    },
    Fenced {
        epoch: Epoch,
        windows: u32,
        sessions: u32,
    },
    Failed(Box<ClientError>),
    /// It is done, durably.
    Done,
    Nothing,
}

/// A call that the unit is at, one decision after the other.
#[derive(Debug)]
pub(crate) struct Work {
    /// Who waits for the answer, if anybody.
    pub(crate) request: Option<usize>,
    process: usize,
    call: Call,
    /// The session that an opening is about.
    session: u64,
    granted: Option<(Epoch, Rights)>,
    refused: Option<RefuseReason>,
    fenced: Option<Epoch>,
    windows: u32,
    sessions: u32,
    /// The session of an opening that waited was closed again.
    withdrawn: bool,
    /// A change of members has ended all sessions.
    ended: bool,
}

impl Work {
    pub(crate) const fn call_name(&self) -> &'static str {
        self.call.name()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) name: Arc<str>,
    pub(crate) is_on: bool,
    /// False: it has no region yet, or none any more.
    pub(crate) has_region: bool,
    /// It never comes back.
    pub(crate) is_destroyed: bool,
    /// Not before this step it comes back; none: only at the end.
    pub(crate) on_at: Option<u64>,
    /// Everything but the epoch, which is the one below.
    pub(crate) info: RegionInfo,
    pub(crate) medium: Medium,
    /// Durable.
    pub(crate) epoch: Epoch,
    pub(crate) writers: WriterTable,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) work: Option<Work>,
    /// Where extents begin and end, as offsets in the region: a window never reaches over one.
    pub(crate) extents: Vec<u64>,
    /// What the last completed fence raised the epoch to: nothing older may write.
    pub(crate) fenced: Epoch,
    /// The newest epoch that was granted: the next is higher, whatever happens to the power.
    pub(crate) granted: Epoch,
    pub(crate) weight: u64,
}

impl Unit {
    pub(crate) fn new(name: &str, info: RegionInfo, extents: Vec<u64>, weight: u64) -> Self {
        Self {
            name: name.into(),
            is_on: true,
            has_region: true,
            is_destroyed: false,
            on_at: None,
            medium: Medium::new(info.length_bytes),
            epoch: info.epoch,
            writers: WriterTable::new(info.mode, info.epoch),
            sessions: BTreeMap::new(),
            work: None,
            extents,
            fenced: Epoch(0),
            granted: info.epoch,
            weight,
            info,
        }
    }

    /// One without a region, which has room for one of `length_bytes`.
    pub(crate) fn blank(name: &str, info: RegionInfo, weight: u64) -> Self {
        let mut unit = Self::new(name, info, Vec::new(), weight);
        unit.has_region = false;
        unit
    }

    fn described(&self) -> RegionInfo {
        let mut info = self.info.clone();
        info.epoch = self.epoch;
        let primary = |session: &&Session| {
            session.role == SessionRole::Primary && !matches!(session.stage, Stage::Ended(_))
        };
        let writer = self.sessions.values().find(primary);
        info.writer = writer
            .and_then(|session| principal(session.process))
            .map(|principal| principal.to_string());
        info
    }

    /// Its region is deleted, and everything in it.
    pub(crate) fn erase(&mut self) {
        self.lose_power();
        self.is_on = true;
        self.has_region = false;
        self.epoch = Epoch(0);
        self.fenced = Epoch(0);
        self.granted = Epoch(0);
        self.medium = Medium::new(self.info.length_bytes);
        self.writers = WriterTable::new(self.info.mode, self.epoch);
    }

    /// As the real unit answers.
    fn check_change(&self, next: &Membership, expected: u64) -> Result<(), ClientError> {
        let refused = match &self.info.membership {
            Some(found) => check_change(found, next, expected),
            None => Err(ChangeRefused::Foreign),
        };
        refused.map_err(|refused| ClientError::Refused {
            unit: self.name.as_ref().into(),
            reason: match refused {
                ChangeRefused::WrongGeneration { .. } => "WRONG_GENERATION",
                _ => "BAD_REQUEST",
            },
            message: refused.to_string(),
        })
    }

    /// Power is gone: what was in memory only is gone with it.
    pub(crate) fn lose_power(&mut self) {
        self.is_on = false;
        self.sessions.clear();
        self.work = None;
    }

    /// The generation of the members that it knows; none where it is no member.
    pub(crate) fn generation(&self) -> Option<u64> {
        let membership = self.info.membership.as_ref()?;
        self.has_region.then_some(membership.generation)
    }

    /// Power is back: no window exists, the epoch is what the medium says.
    pub(crate) fn start(&mut self) {
        self.is_on = true;
        self.on_at = None;
        self.writers = WriterTable::new(self.info.mode, self.epoch);
    }

    /// The window through which a session may do this, or none.
    pub(crate) fn window(
        &self,
        session: u64,
        key: u32,
        kind: Kind,
        range: &std::ops::Range<u64>,
    ) -> Option<&Session> {
        let session = self.sessions.get(&session)?;
        let allows = |window: &&Window| {
            let key_fits = match kind {
                Kind::Flush => window.access.flush_key == key,
                _ => window.access.access_key == key,
            };
            let rights_fit = window.writes || matches!(kind, Kind::Read | Kind::Flush);
            key_fits
                && rights_fit
                && window.access.address <= range.start
                && range.end <= window.access.address + window.access.length
        };
        session.windows.iter().find(allows).map(|_| session)
    }

    /// Offset, length and access of what a session may touch, by role and rights, as the real unit gives them out.
    fn window_ranges(&self, role: SessionRole, rights: Rights) -> Vec<(u64, u64, bool)> {
        let all = self.info.length_bytes;
        match role {
            SessionRole::Primary => vec![(0, all, true)],
            SessionRole::Backup if rights.contains(Rights::CLEAR) => {
                let ring = LOG_RING_OFFSET.get().min(all);
                vec![
                    (0, PAGE_BYTES, false),
                    (PAGE_BYTES, ring - PAGE_BYTES, true),
                    (ring, all - ring, false),
                ]
            }
            _ => vec![(0, all, false)],
        }
    }
}

impl State {
    /// Begins a call at a unit that is on and not at another one.
    pub(crate) fn begin_work(
        &mut self,
        unit: usize,
        request: Option<usize>,
        process: usize,
        call: Call,
    ) {
        let mut work = Work {
            request,
            process,
            call: call.clone(),
            session: 0,
            granted: None,
            refused: None,
            fenced: None,
            windows: 0,
            sessions: 0,
            withdrawn: false,
            ended: false,
        };
        if let Some(error) = self.no_region(unit, &call) {
            return self.answer(request, Reply::Failed(Box::new(error)));
        }
        match call {
            Call::Describe => {
                let info = self.units[unit].described();
                return self.answer(request, Reply::Described(Box::new(info)));
            }
            Call::Activate { session } => {
                let reply = self.activate(unit, session);
                return self.answer(request, reply);
            }
            Call::Open {
                role,
                clears,
                goes_on_from,
            } => {
                work.session = self.next_session;
                self.next_session += 1;
                self.open(unit, process, work.session, (role, clears), goes_on_from);
            }
            Call::Fence => {
                let caller = principal(process);
                let fence = FenceId(self.next_session);
                self.next_session += 1;
                self.units[unit].writers.fence(fence, caller.as_ref());
            }
            Call::Close { session } | Call::Disconnected { session } => {
                self.units[unit].writers.closed(SessionId(session));
            }
            Call::CreateMember(info) => {
                let reply = self.create_member(unit, *info);
                return self.answer(request, reply);
            }
            Call::SetMembership { expected, next } => {
                if let Err(error) = self.units[unit].check_change(&next, expected) {
                    return self.answer(request, Reply::Failed(Box::new(error)));
                }
                let fence = FenceId(self.next_session);
                self.next_session += 1;
                self.units[unit].writers.fence(fence, None);
            }
        }
        self.units[unit].work = Some(work);
    }

    fn open(
        &mut self,
        unit: usize,
        process: usize,
        session: u64,
        (role, clears): (SessionRole, bool),
        goes_on_from: Option<Epoch>,
    ) {
        let Some(principal) = principal(process) else {
            return;
        };
        let opener = Opener {
            session: SessionId(session),
            principal,
            allowed: Rights::all(),
            now_nanoseconds: self.now_ns,
            goes_on_from,
        };
        let writers = &mut self.units[unit].writers;
        match role {
            SessionRole::Primary => writers.open_primary(opener),
            SessionRole::Backup => writers.open_backup(opener, clears),
            _ => writers.open_reader(opener),
        }
    }

    /// Carries out the next of the unit's decisions; data goes on in between, and power may be cut.
    pub(crate) fn work_on(&mut self, unit: usize) {
        let Some(mut work) = self.units[unit].work.take() else {
            return;
        };
        let Some(action) = self.units[unit].writers.poll_action() else {
            return self.finish_work(unit, work);
        };
        match action {
            Action::PersistEpoch { epoch, ticket } => {
                note!(
                    self,
                    "{} makes epoch {epoch} durable",
                    self.units[unit].name
                );
                let target = &mut self.units[unit];
                target.epoch = target.epoch.max(epoch);
                target.writers.table_persisted(ticket);
            }
            Action::InvalidateWindows { session } => self.invalidate(unit, session.0, &mut work),
            Action::Grant {
                session,
                epoch,
                rights,
            } if session.0 == work.session => {
                self.check_grant(unit, &work, epoch);
                work.granted = Some((epoch, rights));
            }
            Action::Refuse { session, reason } if session.0 == work.session => {
                work.refused = Some(reason);
            }
            Action::FenceDone { epoch, .. } => {
                note!(
                    self,
                    "{} has fenced up to epoch {epoch}",
                    self.units[unit].name
                );
                self.units[unit].fenced = epoch;
                work.fenced = Some(epoch);
            }
            // Of sessions that nobody waits for.
            _ => {}
        }
        self.units[unit].work = Some(work);
    }

    fn invalidate(&mut self, unit: usize, session: u64, work: &mut Work) {
        let fenced = matches!(work.call, Call::Fence | Call::SetMembership { .. });
        note!(
            self,
            "{} takes the windows of session {session} away",
            self.units[unit].name
        );
        let target = &mut self.units[unit];
        target.writers.windows_invalidated(SessionId(session));
        target.writers.closed(SessionId(session));
        let Some(found) = target.sessions.get_mut(&session) else {
            return;
        };
        work.sessions += 1;
        work.windows += found.windows.len() as u32;
        found.windows.clear();
        found.stage = Stage::Ended(fenced);
        let wire = found.wire;
        if !fenced {
            // Whoever is fenced learns it from its next operation; others lose the connection.
            target.sessions.remove(&session);
            self.wires[wire].far = Far::Gone;
        }
    }

    /// What must hold whenever somebody may write from now on.
    fn check_grant(&mut self, unit: usize, work: &Work, epoch: Epoch) {
        if !matches!(
            work.call,
            Call::Open {
                role: SessionRole::Primary,
                ..
            }
        ) {
            return;
        }
        let target = &self.units[unit];
        let other = target
            .sessions
            .values()
            .find(|session| session.role == SessionRole::Primary && !session.windows.is_empty());
        let broken = if let Some(other) = other {
            Some(format!("session {} can still write", other.id))
        } else if target.epoch < epoch {
            Some(format!(
                "epoch {epoch} is granted and epoch {} durable",
                target.epoch
            ))
        } else if epoch <= target.granted {
            Some(format!("epoch {epoch} was granted before"))
        } else {
            None
        };
        if let Some(broken) = broken {
            let name = Arc::clone(&target.name);
            self.violate(format!("{name} grants a primary, but {broken}"));
        }
        self.units[unit].granted = epoch;
    }

    fn finish_work(&mut self, unit: usize, mut work: Work) {
        let reply = match work.call {
            Call::Open { role, .. } => match (work.granted, work.refused.take()) {
                (Some((epoch, rights)), _) => self.opened(unit, &work, role, rights, epoch),
                (None, Some(reason)) => Reply::Failed(Box::new(self.refusal(unit, &reason))),
                // It waits for a former writer: nobody waits here, the caller tries again.
                (None, None) if !work.withdrawn => {
                    work.withdrawn = true;
                    self.units[unit].writers.closed(SessionId(work.session));
                    self.units[unit].work = Some(work);
                    return;
                }
                (None, None) => Reply::Failed(Box::new(self.closed_to_writers(unit))),
            },
            Call::Fence => match work.fenced {
                Some(epoch) => Reply::Fenced {
                    epoch,
                    windows: work.windows,
                    sessions: work.sessions,
                },
                None => Reply::Failed(Box::new(self.closed_to_writers(unit))),
            },
            Call::Close { session } | Call::Disconnected { session } => {
                self.forget_session(unit, session);
                Reply::Nothing
            }
            Call::SetMembership { .. } if work.fenced.is_none() => {
                Reply::Failed(Box::new(self.closed_to_writers(unit)))
            }
            Call::SetMembership { .. } if !work.ended => {
                work.ended = true;
                return self.end_sessions(unit, work);
            }
            Call::SetMembership { ref next, .. } => self.keep_membership(unit, next),
            Call::Describe | Call::Activate { .. } | Call::CreateMember(_) => Reply::Nothing,
        };
        self.answer(work.request, reply);
    }

    /// Ends the sessions that a fence leaves alone, and goes on with the work.
    fn end_sessions(&mut self, unit: usize, work: Work) {
        let target = &mut self.units[unit];
        for session in target.sessions.values_mut() {
            if !matches!(session.stage, Stage::Ended(_)) {
                session.windows.clear();
                session.stage = Stage::Ended(true);
                target.writers.closed(SessionId(session.id));
            }
        }
        target.work = Some(work);
    }

    fn keep_membership(&mut self, unit: usize, next: &Arc<Membership>) -> Reply {
        note!(
            self,
            "{} knows the members of generation {}",
            self.units[unit].name,
            next.generation
        );
        self.units[unit].info.membership = Some(Arc::clone(next));
        self.totals.changes += 1;
        Reply::Done
    }

    fn create_member(&mut self, unit: usize, info: RegionInfo) -> Reply {
        let target = &mut self.units[unit];
        if target.has_region {
            return Reply::Failed(Box::new(ClientError::Refused {
                unit: target.name.as_ref().into(),
                reason: "NAME_TAKEN",
                message: format!("there is a region {} already", info.name),
            }));
        }
        target.medium = Medium::new(info.length_bytes);
        target.info = info;
        target.has_region = true;
        note!(self, "{} has a new region", self.units[unit].name);
        Reply::Done
    }

    /// Of a unit that has no region.
    fn no_region(&self, unit: usize, call: &Call) -> Option<ClientError> {
        let target = &self.units[unit];
        let needs = !matches!(
            call,
            Call::CreateMember(_) | Call::Close { .. } | Call::Disconnected { .. }
        );
        (needs && !target.has_region).then(|| ClientError::NoSuchRegion {
            unit: target.name.as_ref().into(),
            region: target.info.name.as_ref().into(),
        })
    }

    /// The owner is gone: nothing is left of the session.
    fn forget_session(&mut self, unit: usize, session: u64) {
        if let Some(gone) = self.units[unit].sessions.remove(&session) {
            self.wires[gone.wire].far = Far::Gone;
        }
    }

    fn opened(
        &mut self,
        unit: usize,
        work: &Work,
        role: SessionRole,
        rights: Rights,
        epoch: Epoch,
    ) -> Reply {
        let weight = self.random.pick(&[1, 4, 16]) * self.units[unit].weight;
        let wire = self.wires.len();
        self.wires
            .push(Wire::new(work.process, unit, work.session, weight));
        let session = Session {
            id: work.session,
            wire,
            process: work.process,
            role,
            rights,
            epoch,
            stage: Stage::Opened,
            windows: Vec::new(),
        };
        note!(
            self,
            "{} opens session {} in epoch {epoch} as {role:?}",
            self.units[unit].name,
            work.session
        );
        self.units[unit].sessions.insert(work.session, session);
        Reply::Opened {
            session: work.session,
            wire,
            epoch,
        }
    }

    fn activate(&mut self, unit: usize, id: u64) -> Reply {
        let target = &self.units[unit];
        let Some(session) = target.sessions.get(&id) else {
            return Reply::Failed(Box::new(ClientError::Refused {
                unit: target.name.as_ref().into(),
                reason: "NO_SUCH_SESSION",
                message: format!("there is no session {id}"),
            }));
        };
        if session.stage != Stage::Opened {
            return Reply::Failed(Box::new(ClientError::Fenced {
                region: target.info.name.as_ref().into(),
                epoch: target.epoch,
                own_epoch: session.epoch,
            }));
        }
        let mut windows = Vec::new();
        for (offset, length, writes) in target.window_ranges(session.role, session.rights) {
            for (from, to) in cut(offset, offset + length, &target.extents) {
                let key = self.next_key;
                self.next_key += 2;
                windows.push(Window {
                    access: AccessWindow {
                        address: target.info.address.get() + from,
                        length: to - from,
                        access_key: key,
                        flush_key: key + 1,
                    },
                    writes,
                });
            }
        }
        let info = Box::new(target.described());
        let given = windows.iter().map(|window| window.access).collect();
        if let Some(session) = self.units[unit].sessions.get_mut(&id) {
            session.stage = Stage::Active;
            session.windows = windows;
        }
        Reply::Active {
            windows: given,
            info,
        }
    }

    fn refusal(&self, unit: usize, reason: &RefuseReason) -> ClientError {
        let target = &self.units[unit];
        let region = target.info.name.as_ref().to_owned();
        let text = format!("region {region}: {reason}");
        match reason {
            RefuseReason::Primary { .. } => ClientError::WriterExists {
                region,
                reason: text,
            },
            RefuseReason::Clearing { .. } => ClientError::ClearingExists {
                region,
                reason: text,
            },
            RefuseReason::Superseded { now, from } => ClientError::Fenced {
                region,
                epoch: *now,
                own_epoch: *from,
            },
            RefuseReason::Fenced => ClientError::Refused {
                unit: target.name.as_ref().into(),
                reason: "STALE_EPOCH",
                message: text,
            },
            _ => self.closed_to_writers(unit),
        }
    }

    fn closed_to_writers(&self, unit: usize) -> ClientError {
        ClientError::Refused {
            unit: self.units[unit].name.as_ref().into(),
            reason: "FABRIC",
            message: "the region is closed to writers".into(),
        }
    }
}

/// Every process is a principal of its own.
pub(crate) fn principal(process: usize) -> Option<PrincipalName> {
    PrincipalName::new(&format!("p{process}")).ok()
}

/// Cuts a range at borders, which are sorted.
fn cut(from: u64, to: u64, borders: &[u64]) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    let mut at = from;
    for border in borders
        .iter()
        .copied()
        .filter(|border| from < *border && *border < to)
    {
        pieces.push((at, border));
        at = border;
    }
    pieces.push((at, to));
    pieces
}
