//! The unit's state, as both services see it: pools, regions, listeners, sessions, and whether it is locked.
//!
//! Everything here may block, and is called from threads that may. Whoever changes who may touch a region (opens, binds,
//! fences, revokes, deletes) holds that region's desk, so that these things happen one after the other; the lock of a
//! desk is taken before that of the session table, never after it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard, RwLock};
use pmu_fabric::{Provider, UnitFabric};
use pmu_format::{Epoch, PrincipalName, RegionEntry, RegionId, RegionName, RegionState};
use pmu_proto::v1::{Reason, SessionRole};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::Config;
use crate::control::reasons::Refusal;
use crate::loans::Loans;
use crate::metrics::{self, Health, Observed};
use crate::pools::UnitPool;
use crate::scrub::Scrubs;
use crate::session::{End, Session, Sessions, Stage};
use crate::writers::{World, Writers};

/// Requests that wait for a data connection at one time, each on a thread of its own. The others wait for their turn.
const WAITERS_MAX: usize = 128;

/// One data listener.
pub(crate) struct Listener {
    pub(crate) fabric: Box<dyn UnitFabric>,
    /// What clients are told to connect to.
    pub(crate) address: String,
}

/// A region that is in use. What must be remembered of it is in its pool; here is what lasts as long as the process.
pub(crate) struct Region {
    pub(crate) id: RegionId,
    pub(crate) name: RegionName,
    /// Index of its pool.
    pub(crate) pool: usize,
    desk: Mutex<Desk>,
}

/// What is changed only by whoever holds the region.
pub(crate) struct Desk {
    /// Who may write.
    pub(crate) writers: Writers,
    /// For each listener, whether the region's access information is registered with it.
    pub(crate) exposed: Vec<bool>,
    /// The region is being deleted: nobody gets it any more.
    pub(crate) deleted: bool,
}

impl Region {
    /// Waits until nobody else holds the region.
    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock()
    }
}

/// The state of one unit.
pub(crate) struct UnitState {
    pub(crate) config: Config,
    pub(crate) started: Instant,
    pub(crate) pools: Vec<UnitPool>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) sessions: Sessions,
    /// Absent: the unit doesn't scrub by itself.
    pub(crate) scrubs: Option<Scrubs>,
    pub(crate) loans: Loans,
    /// Empty while the unit is locked.
    pub(crate) regions: RwLock<HashMap<RegionName, Arc<Region>>>,
    /// Held while the set of regions changes, so that names are unique over all pools.
    pub(crate) changing_regions: Mutex<()>,
    locked: AtomicBool,
    stopping: AtomicBool,
    waiters: Semaphore,
}

impl UnitState {
    pub(crate) fn new(
        config: Config,
        pools: Vec<UnitPool>,
        listeners: Vec<Listener>,
        scrubs: Option<Scrubs>,
    ) -> Self {
        Self {
            sessions: Sessions::new(&config.limits),
            scrubs,
            config,
            started: Instant::now(),
            loans: Loans::default(),
            pools,
            listeners,
            regions: RwLock::default(),
            changing_regions: Mutex::new(()),
            locked: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            waiters: Semaphore::new(WAITERS_MAX),
        }
    }

    pub(crate) fn unit_name(&self) -> &str {
        &self.config.unit.name
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    pub(crate) fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }

    /// From now on every request is refused.
    pub(crate) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waiters.close();
    }

    /// Whether requests are served at all.
    ///
    /// # Errors
    /// `STOPPING`; `LOCKED` until a manager has initialised the unit.
    pub(crate) fn check_serving(&self) -> Result<(), Refusal> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(stopping());
        }
        if self.is_locked() {
            let message = format!(
                "unit {} is locked: a manager must initialise it first",
                self.unit_name()
            );
            return Err(Refusal::new(Reason::Locked, message));
        }
        Ok(())
    }

    /// Waits for a turn to wait for a data connection.
    ///
    /// # Errors
    /// `STOPPING`.
    pub(crate) async fn turn_to_wait(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.waiters.acquire().await.map_err(|_| stopping())
    }

    /// Finds a region in use.
    ///
    /// # Errors
    /// `NO_SUCH_REGION`; `BEING_ERASED`.
    pub(crate) fn region(&self, name: &RegionName) -> Result<Arc<Region>, Refusal> {
        if let Some(region) = self.regions.read().get(name) {
            return Ok(Arc::clone(region));
        }
        let erasing =
            |entry: &RegionEntry| entry.name == *name && entry.state == RegionState::Erasing;
        if self
            .pools
            .iter()
            .any(|pool| pool.entries().iter().any(erasing))
        {
            return Err(being_erased(name));
        }
        Err(no_such_region(name))
    }

    /// What the pool says of a region, while the caller holds it.
    ///
    /// # Errors
    /// `NO_SUCH_REGION` or `BEING_ERASED` if it was deleted while the caller waited for it.
    pub(crate) fn entry(&self, region: &Region, desk: &Desk) -> Result<RegionEntry, Refusal> {
        if desk.deleted {
            return Err(being_erased(&region.name));
        }
        match self.pools[region.pool].entry(region.id) {
            Some(entry) if entry.state == RegionState::Active => Ok(entry),
            Some(_) => Err(being_erased(&region.name)),
            None => Err(no_such_region(&region.name)),
        }
    }

    /// A new region, or one found in a pool at Initialize.
    pub(crate) fn region_of(&self, pool: usize, entry: &RegionEntry) -> Region {
        let desk = Desk {
            writers: Writers::new(&entry.name, entry.mode, entry.epoch),
            exposed: vec![false; self.listeners.len()],
            deleted: false,
        };
        Region {
            id: entry.id,
            name: entry.name.clone(),
            pool,
            desk: Mutex::new(desk),
        }
    }

    /// Regions whose virtual addresses lie where another's do, or whose names are the same: both must name one region of
    /// the unit. `entries` are those of all pools, with the pool's index.
    pub(crate) fn check_distinct(&self, entries: &[(usize, RegionEntry)]) -> Result<(), Refusal> {
        let mut names: HashMap<&RegionName, usize> = HashMap::new();
        for (pool, entry) in entries {
            if let Some(other) = names.insert(&entry.name, *pool) {
                let (one, other) = (&self.pools[*pool].name, &self.pools[other].name);
                let message = format!(
                    "region {} is in pool {one} and in pool {other}: serve them by two units",
                    entry.name
                );
                return Err(Refusal::new(Reason::NameTaken, message));
            }
        }
        let mut ranges: Vec<_> = entries
            .iter()
            .map(|(_, entry)| (entry.base.get(), entry.length_bytes, &entry.name))
            .collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            if let [(base, length, name), (next, _, other)] = pair
                && base.saturating_add(*length) > *next
            {
                let message = format!(
                    "regions {name} and {other} of two pools have the same virtual addresses: serve them by two units"
                );
                return Err(Refusal::new(Reason::Medium, message));
            }
        }
        Ok(())
    }
}

/// Carries out what is decided for one region, and counts what it took away.
pub(crate) struct Hands<'a> {
    state: &'a UnitState,
    region: &'a Region,
    /// Sessions that ended.
    pub(crate) sessions: u32,
    /// Windows that were invalidated with them.
    pub(crate) windows: u32,
}

impl UnitState {
    pub(crate) fn hands<'a>(&'a self, region: &'a Region) -> Hands<'a> {
        Hands {
            state: self,
            region,
            sessions: 0,
            windows: 0,
        }
    }
}

impl World for Hands<'_> {
    fn persist_epoch(&mut self, epoch: Epoch) -> Result<(), Refusal> {
        self.state.pools[self.region.pool].set_epoch(self.region.id, epoch)
    }

    fn invalidate(&mut self, id: u64, end: End) -> Result<(), Refusal> {
        let Some(session) = self.state.sessions.get(id) else {
            // It was never handed out, so that it has no connection.
            return Ok(());
        };
        let fabric = &self.state.listeners[session.data.listener].fabric;
        if let Err(error) = fabric.invalidate(session.data.connection) {
            let message = format!(
                "the windows of session {id} of {} on region {} could not be taken away ({error}): whoever writes next is \
                 not let in; end that program or restart the unit, then try again",
                session.principal, session.region_name
            );
            return Err(Refusal::new(Reason::Fabric, message));
        }
        if self.state.sessions.end(id, end, Instant::now()).is_some() {
            self.sessions += 1;
            self.windows += if session.stage == Stage::Active {
                session.windows
            } else {
                0
            };
            tracing::info!(session = id, principal = %session.principal, region = %session.region_name, ?end, "session ended");
        }
        // Whoever is fenced or revoked shall see a remote access error at its next operation, not just a lost connection;
        // its connection is cut when the session is forgotten.
        if !matches!(end, End::Fenced | End::Revoked) {
            fabric.close(session.data.connection);
        }
        Ok(())
    }
}

impl Observed for UnitState {
    fn health(&self) -> Health {
        let failed: Vec<&str> = self
            .pools
            .iter()
            .filter(|pool| pool.has_failed())
            .map(|pool| pool.name.as_str())
            .collect();
        if !failed.is_empty() {
            return Health {
                serving: false,
                text: format!("failed: pool {}", failed.join(", ")),
            };
        }
        if self.stopping.load(Ordering::Acquire) {
            return Health {
                serving: false,
                text: "stopping".into(),
            };
        }
        let text = if self.is_locked() {
            "locked"
        } else {
            "unlocked"
        };
        Health {
            serving: true,
            text: text.into(),
        }
    }

    fn refresh(&self) {
        let live = self.sessions.live(None);
        for role in [
            SessionRole::Primary,
            SessionRole::Backup,
            SessionRole::Reader,
        ] {
            metrics::set_sessions(
                role,
                live.iter().filter(|session| session.role == role).count(),
            );
        }
        for provider in [Provider::SoftTcp, Provider::SoftUnix, Provider::Verbs] {
            let active =
                |session: &&Session| session.provider == provider && session.stage == Stage::Active;
            metrics::set_data_connections(provider, live.iter().filter(active).count());
        }
        for pool in &self.pools {
            metrics::set_pool(
                &pool.name,
                pool.space().free_bytes,
                pool.length_bytes(),
                pool.has_failed(),
            );
        }
        if let Some(scrubs) = &self.scrubs {
            scrubs.set_metrics();
        }
        metrics::set_unit(
            self.is_locked(),
            self.pools.iter().map(|pool| pool.region_count()).sum(),
        );
    }
}

pub(crate) fn no_grant(entry: &RegionEntry, principal: &PrincipalName, what: &str) -> Refusal {
    let message = format!(
        "{principal} does not have {what} on region {}: a manager can grant it",
        entry.name
    );
    Refusal::new(Reason::NoGrant, message)
}

fn no_such_region(name: &RegionName) -> Refusal {
    Refusal::new(
        Reason::NoSuchRegion,
        format!("there is no region {name} in this unit"),
    )
}

fn being_erased(name: &RegionName) -> Refusal {
    Refusal::new(
        Reason::BeingErased,
        format!("region {name} was deleted and is being erased"),
    )
}

fn stopping() -> Refusal {
    Refusal::new(
        Reason::Stopping,
        "the unit is stopping: try another one, or later",
    )
}
