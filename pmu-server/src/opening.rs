//! How a session begins and ends: OpenRegion, Activate, CloseSession, the end of a data connection, and time running out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_fabric::{
    ConnectToken, ExposedExtent, ExposedRegion, FabricError, PersistenceMethod, Provider,
    WindowAccess,
};
use pmu_format::{LOG_RING_OFFSET, Mode, Need, PAGE_BYTES, PrincipalName, RegionEntry, Rights};
use pmu_proto::v1::{
    ActivateResponse, DataAddress, DescribeRegionResponse, OpenRegionResponse, Reason, SessionRole,
    Window,
};

use crate::control::convert;
use crate::control::reasons::Refusal;
use crate::pools::UnitPool;
use crate::session::{DataConnection, End, Session, Stage, Wish};
use crate::state::{Desk, Listener, Region, UnitState};
use crate::writers::{Candidate, Granted};

/// How often whoever waits for a data connection looks whether the session is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const READ_ONLY: WindowAccess = WindowAccess {
    read: true,
    write: false,
};
const READ_WRITE: WindowAccess = WindowAccess {
    read: true,
    write: true,
};

impl UnitState {
    /// Makes a session, if the principal's grants, the region's need and the limits allow. A primary gets an epoch of its
    /// own, durable before this returns.
    pub(crate) fn open_region(
        &self,
        principal: &PrincipalName,
        wish: &Wish,
    ) -> Result<OpenRegionResponse, Refusal> {
        let region = self.region(&wish.region)?;
        let mut desk = region.desk();
        let entry = self.entry(&region, &desk)?;
        let allowed = self.rights_of(&entry, principal)?;
        if wish.wants_clear && wish.role != SessionRole::Backup {
            return Err(Refusal::new(Reason::BadRequest, "only a backup can clear"));
        }
        let pool = &self.pools[region.pool];
        let (index, listener) = self.choose_listener(wish.provider)?;
        let persistence = choose_persistence(listener, pool, &entry, wish.persistence)?;
        let windows = windows_at_most(&entry);
        self.sessions.check_room(principal, windows)?;
        self.expose(&region, &entry, &mut desk, index)?;

        let id = random_session_id()?;
        let token = ConnectToken::random()?;
        let candidate = Candidate {
            session: id,
            principal,
            allowed,
            role: wish.role,
            wants_clear: wish.wants_clear,
            goes_on_from: wish.goes_on_from,
        };
        let Granted { epoch, rights } = desk.writers.open(&candidate, &mut self.hands(&region))?;
        let limits = &self.config.limits;
        let now = Instant::now();
        let expected = listener
            .fabric
            .expect(token, persistence, limits.connect_within());
        let added = expected.map_err(Refusal::from).and_then(|connection| {
            let session = Session {
                id,
                principal: principal.clone(),
                region: region.id,
                region_name: region.name.clone(),
                role: wish.role,
                rights,
                provider: listener.fabric.provider(),
                data: DataConnection {
                    listener: index,
                    connection,
                },
                persistence,
                epoch,
                opened: now,
                stage: Stage::Opened,
                windows,
                until: Some(now + limits.activate_within()),
            };
            self.sessions
                .add(session)
                .inspect_err(|_| listener.fabric.close(connection))
        });
        if let Err(refusal) = added {
            // No token was handed out: nobody can write with this epoch.
            desk.writers
                .closed(id, End::Failed, &mut self.hands(&region))?;
            return Err(refusal);
        }
        tracing::info!(session = id, role = ?wish.role, epoch = epoch.get(), %persistence, provider = %listener.fabric.provider(), "session opened");
        Ok(OpenRegionResponse {
            session_id: id,
            connect_token: token.0.to_vec(),
            token_valid_ms: limits.connect_within_ms,
            addresses: vec![DataAddress {
                provider: convert::provider(listener.fabric.provider()).into(),
                address: listener.address.clone(),
            }],
            region: Some(convert::descriptor(&RegionEntry {
                epoch: entry.epoch.max(epoch),
                ..entry
            })),
            persistence: convert::persistence(persistence).into(),
        })
    }

    fn choose_listener(&self, provider: Option<Provider>) -> Result<(usize, &Listener), Refusal> {
        let fits = |listener: &&Listener| {
            provider.is_none_or(|provider| listener.fabric.provider() == provider)
        };
        let mut listeners = self.listeners.iter().enumerate();
        listeners
            .find(|(_, listener)| fits(listener))
            .ok_or_else(|| {
                let offered: Vec<_> = self
                    .listeners
                    .iter()
                    .map(|listener| listener.fabric.provider().name())
                    .collect();
                let wanted = provider.map_or("", Provider::name);
                let message = format!(
                    "the unit does not offer {wanted}; it offers {}",
                    offered.join(", ")
                );
                Refusal::new(Reason::NoProvider, message)
            })
    }

    /// Registers the region's access information with a listener, the first time somebody opens it there (P15). Later
    /// requestors get windows of their own on what is registered.
    fn expose(
        &self,
        region: &Region,
        entry: &RegionEntry,
        desk: &mut Desk,
        listener: usize,
    ) -> Result<(), Refusal> {
        if desk.exposed[listener] {
            return Ok(());
        }
        let exposed = ExposedRegion {
            address: entry.base.get(),
            pool: self.pools[region.pool].memory(),
            extents: exposed_extents(entry),
        };
        self.listeners[listener].fabric.expose(&exposed)?;
        desk.exposed[listener] = true;
        Ok(())
    }

    /// Waits for the session's data connection, then binds windows to it with just the granted rights.
    pub(crate) fn activate(
        &self,
        principal: &PrincipalName,
        id: u64,
        timeout_ms: u32,
    ) -> Result<ActivateResponse, Refusal> {
        let session = self.sessions.begin_activation(principal, id)?;
        let answer = self.connect_and_bind(&session, timeout_ms);
        if answer.is_err() {
            self.sessions.undo_activation(id);
        }
        answer
    }

    fn connect_and_bind(
        &self,
        session: &Session,
        timeout_ms: u32,
    ) -> Result<ActivateResponse, Refusal> {
        let connected = self.wait_connected(session, timeout_ms);
        // A fence or a revocation may have come in between: only who holds the region knows.
        let region = self.region(&session.region_name)?;
        let mut desk = region.desk();
        match self.sessions.get(session.id).map(|session| session.stage) {
            Some(Stage::Activating) if desk.writers.may_bind(session.id) => connected?,
            Some(Stage::Ended(end)) => return Err(end.refusal(session.id)),
            _ => return Err(End::Disconnected.refusal(session.id)),
        }
        let entry = self.entry(&region, &desk)?;
        let bound = self.bind(session, &entry);
        match bound {
            Ok(windows) => {
                let count = u32::try_from(windows.len()).unwrap_or(u32::MAX);
                self.sessions.activated(session.id, count);
                tracing::info!(region = %region.name, role = ?session.role, windows = count, "session active");
                Ok(ActivateResponse {
                    windows,
                    epoch: if session.role == SessionRole::Primary {
                        session.epoch
                    } else {
                        entry.epoch
                    }
                    .get(),
                    rights: session.rights.bits(),
                    persistence: convert::persistence(session.persistence).into(),
                })
            }
            Err(refusal) => {
                // Some windows may be bound: without the others they are of no use.
                desk.writers
                    .closed(session.id, End::Failed, &mut self.hands(&region))?;
                Err(refusal)
            }
        }
    }

    /// Waits for the data connection, for as long as asked and the token is valid; no longer than the session lives.
    fn wait_connected(&self, session: &Session, timeout_ms: u32) -> Result<(), Refusal> {
        let fabric = &self.listeners[session.data.listener].fabric;
        let longest = self.config.limits.connect_within();
        let wait = match timeout_ms {
            0 => longest,
            asked => Duration::from_millis(asked.into()).min(longest),
        };
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match fabric.wait_connected(session.data.connection, left.min(LOOK_AGAIN)) {
                Err(FabricError::TimedOut { what, .. }) => {
                    let stage = self.sessions.get(session.id).map(|session| session.stage);
                    if left <= LOOK_AGAIN || stage != Some(Stage::Activating) {
                        let waited_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                        return Err(FabricError::TimedOut { what, waited_ms }.into());
                    }
                    self.check_serving()?;
                }
                done => return Ok(done?),
            }
        }
    }

    fn bind(&self, session: &Session, entry: &RegionEntry) -> Result<Vec<Window>, Refusal> {
        let fabric = &self.listeners[session.data.listener].fabric;
        let mut windows = Vec::new();
        for (offset, length, access) in window_ranges(entry, session.role, session.rights) {
            let base = entry.base.get();
            let address = base.saturating_add(offset);
            let bound = fabric.bind(session.data.connection, base, address, length, access)?;
            windows.extend(bound.iter().map(|window| convert::window(window, access)));
        }
        windows.sort_by_key(|window| window.virtual_address);
        Ok(windows)
    }

    /// Ends a session for its owner. One that has ended already is no error.
    ///
    /// # Errors
    /// `NO_SUCH_SESSION`; `FABRIC`: its windows may still be valid.
    pub(crate) fn close_session(&self, principal: &PrincipalName, id: u64) -> Result<(), Refusal> {
        let session = self.sessions.of(principal, id)?;
        match self.region_of_session(&session) {
            Some(region) => {
                let mut desk = region.desk();
                desk.writers
                    .closed(id, End::Closed, &mut self.hands(&region))
            }
            // Deleted: its sessions have ended before.
            None => Ok(()),
        }
    }

    fn region_of_session(&self, session: &Session) -> Option<Arc<Region>> {
        let regions = self.regions.read();
        regions
            .get(&session.region_name)
            .filter(|region| region.id == session.region)
            .cloned()
    }

    /// The data connection has ended, and its windows with it.
    pub(crate) fn disconnected(&self, data: DataConnection, reason: &str) {
        let Some(session) = self.sessions.on(data) else {
            return;
        };
        tracing::debug!(session = session.id, reason, "data connection ended");
        self.end_by_itself(&session, End::Disconnected);
        self.sessions
            .end(session.id, End::Disconnected, Instant::now());
    }

    /// Ends loans whose time is over, and sessions that were not activated in time; cuts connections whose sessions ended a while ago.
    pub(crate) fn sweep(&self, now: Instant) {
        self.end_loans(now);
        let (to_end, forgotten) = self.sessions.overdue(now);
        for session in to_end {
            self.end_by_itself(&session, End::Expired);
        }
        for session in forgotten {
            self.listeners[session.data.listener]
                .fabric
                .close(session.data.connection);
        }
    }

    /// Ends a session that nobody asked to end.
    pub(crate) fn end_by_itself(&self, session: &Session, end: End) {
        let Some(region) = self.region_of_session(session) else {
            return;
        };
        let mut desk = region.desk();
        // While this waited for the region, the session may have become active in time.
        let still = match self.sessions.get(session.id) {
            Some(now) => end != End::Expired || now.stage != Stage::Active,
            None => false,
        };
        if still
            && let Err(refusal) = desk
                .writers
                .closed(session.id, end, &mut self.hands(&region))
        {
            tracing::error!(session = session.id, %refusal, ?end, "a session stays, and with it what it holds");
        }
    }

    /// What a principal with any right on the region may know of it.
    pub(crate) fn describe_region(
        &self,
        principal: &PrincipalName,
        name: &pmu_format::RegionName,
    ) -> Result<DescribeRegionResponse, Refusal> {
        let region = self.region(name)?;
        let desk = region.desk();
        let entry = self.entry(&region, &desk)?;
        let rights = self.rights_of(&entry, principal)?;
        let scrubs = self.scrubs.as_ref();
        let (scrubbed_s, scrubbing) = scrubs.map_or((0, false), |scrubs| scrubs.times(&entry.id));
        Ok(DescribeRegionResponse {
            region: Some(convert::descriptor(&entry)),
            rights: rights.bits(),
            writer: desk.writers.primary_name(),
            scrubbed_s,
            scrubbing,
        })
    }
}

/// The right that a primary needs.
pub(crate) fn writing_right(mode: Mode) -> Rights {
    match mode {
        Mode::Overwrite => Rights::WRITE,
        Mode::Append => Rights::APPEND,
    }
}

/// The method asked for, or the strongest, if listener and pool can honour it and it is enough for the region.
fn choose_persistence(
    listener: &Listener,
    pool: &UnitPool,
    entry: &RegionEntry,
    asked: Option<PersistenceMethod>,
) -> Result<PersistenceMethod, Refusal> {
    let durable_needed = entry.need == Need::Durable;
    if durable_needed && !pool.is_durable() {
        let message = format!(
            "region {} needs to be durable, and pool {} is volatile ({})",
            entry.name, pool.name, pool.medium
        );
        return Err(Refusal::new(Reason::VolatilePool, message));
    }
    let offered = pool.methods(listener.fabric.as_ref());
    let honoured = |method: PersistenceMethod| {
        offered.contains(&method) && (method.is_durable() || !durable_needed)
    };
    let refuse = |method: &str, why: &str| {
        let possible: Vec<_> = PersistenceMethod::ALL
            .into_iter()
            .filter(|method| honoured(*method))
            .map(PersistenceMethod::name)
            .collect();
        let possible = if possible.is_empty() {
            "nothing".to_owned()
        } else {
            possible.join(", ")
        };
        let provider = listener.fabric.provider();
        let message = format!(
            "{method} is not possible on region {}: {why}; {provider} on pool {} ({}) can give: {possible}",
            entry.name, pool.name, pool.medium
        );
        Err(Refusal::new(Reason::UnfitPersistence, message))
    };
    match asked {
        None => match PersistenceMethod::ALL
            .into_iter()
            .find(|method| honoured(*method))
        {
            Some(strongest) => Ok(strongest),
            None => refuse("a durable method", "the provider has none for this pool"),
        },
        Some(method) if honoured(method) => Ok(method),
        Some(method) if !method.is_durable() && durable_needed => {
            refuse(method.name(), "the region needs to be durable")
        }
        Some(PersistenceMethod::ReadAfterWrite) if !pool.inbound_writes_reach_medium => refuse(
            "read-after-write",
            "the unit's configuration does not attest that inbound writes reach the medium",
        ),
        Some(method) => refuse(method.name(), "the provider can't do it for this pool"),
    }
}

pub(crate) fn exposed_extents(entry: &RegionEntry) -> Vec<ExposedExtent> {
    let mut address = entry.base.get();
    let extents = entry.extents.iter().map(|extent| {
        let exposed = ExposedExtent {
            address,
            pool_offset: extent.offset.get(),
            length: extent.length_bytes,
        };
        address = address.saturating_add(extent.length_bytes);
        exposed
    });
    extents.collect()
}

/// One for each extent, and up to two more where a backup's cursor page cuts one in three.
fn windows_at_most(entry: &RegionEntry) -> u32 {
    u32::try_from(entry.extents.len())
        .unwrap_or(u32::MAX)
        .saturating_add(2)
}

/// Offset, length and access of what a session may touch, by its role and its rights; windows never overlap.
fn window_ranges(
    entry: &RegionEntry,
    role: SessionRole,
    rights: Rights,
) -> Vec<(u64, u64, WindowAccess)> {
    let all = entry.length_bytes;
    match role {
        SessionRole::Primary => vec![(0, all, READ_WRITE)],
        SessionRole::Backup if rights.contains(Rights::CLEAR) => {
            // Just the page with the cursor can be written.
            let ring = LOG_RING_OFFSET.get().min(all);
            vec![
                (0, PAGE_BYTES, READ_ONLY),
                (PAGE_BYTES, ring - PAGE_BYTES, READ_WRITE),
                (ring, all - ring, READ_ONLY),
            ]
        }
        _ => vec![(0, all, READ_ONLY)],
    }
}

fn random_session_id() -> Result<u64, Refusal> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        Refusal::new(
            Reason::Fabric,
            format!("the system has no randomness: {error}"),
        )
    })?;
    Ok(u64::from_le_bytes(bytes).max(1))
}
