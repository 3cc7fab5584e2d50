//! Spreads the sets and records of programs over the units of their regions, on behalf of those programs: in a unit, or in a process of its own.
//! What is said in a session and done with its pieces is `pmu_distributor`'s; here are the gRPC service, the staging memory and who may.

pub mod config;
mod host;
pub mod process;
mod program;
mod service;
mod staging;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pmu_auth::Identity;
use pmu_format::{PrincipalName, RegionName, SpreadId};
use pmu_proto::v1::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Limits;
use crate::control::reasons::Refusal;
use crate::metrics;
use crate::state::Listener;
use crate::unit::{StartError, client_identity};
use config::DistributorSection;
use program::Client;

pub(crate) use service::DistributorService;

/// The first virtual address of staging memory: far above those of regions, which are counted up from the beginning.
const FIRST_ADDRESS: u64 = 1 << 62;

/// Where a distributor lives.
pub(crate) trait Host: Send + Sync {
    /// Its name in answers and logs.
    fn name(&self) -> &str;

    /// Where data connections come in.
    fn listeners(&self) -> &[Listener];

    /// Its limits.
    fn limits(&self) -> &Limits;

    /// Whether the principal may have sets of the region distributed now, and where that region is. May block.
    ///
    /// # Errors
    /// `STOPPING`, `LOCKED`, `NO_SUCH_REGION`, `NO_GRANT`, `BAD_REQUEST` for a region that isn't spread.
    fn admit(&self, principal: &PrincipalName, region: &RegionName) -> Result<Admitted, Refusal>;
}

/// A region that may be distributed.
pub(crate) struct Admitted {
    /// Addresses of units that know it.
    seeds: Vec<String>,
    /// Which one it has to be, where the right was given for one and not for a name.
    id: Option<SpreadId>,
}

/// The right to one session, until it is dropped.
struct Turn {
    distributor: Arc<Distributor>,
    principal: PrincipalName,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.distributor.turns.lock();
        if let Some(index) = turns.iter().position(|holder| *holder == self.principal) {
            turns.swap_remove(index);
        }
    }
}

/// A session at work, until it is dropped: also where its thread panics.
struct AtWork<'a> {
    distributor: &'a Distributor,
    client: &'a Client,
    has_region: bool,
}

impl<'a> AtWork<'a> {
    fn begin(distributor: &'a Distributor, client: &'a Client) -> Self {
        distributor.count(true);
        Self {
            distributor,
            client,
            has_region: false,
        }
    }

    fn enter(&mut self) {
        self.has_region = true;
        let Client { principal, region } = self.client;
        self.distributor.enter(region, principal);
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.has_region) {
            let Client { principal, region } = self.client;
            self.distributor.leave(region, principal);
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.leave();
        self.distributor.count(false);
    }
}

/// A distributor: what all its sessions share.
pub(crate) struct Distributor {
    host: Arc<dyn Host>,
    identity: Identity,
    staging_bytes: u64,
    room: Arc<Semaphore>,
    sessions_max: u32,
    next_address: AtomicU64,
    /// Who has a session, once for each.
    turns: Mutex<Vec<PrincipalName>>,
    /// For whom which region is distributed now.
    at_work: Mutex<Vec<(RegionName, PrincipalName)>>,
    running: AtomicUsize,
    stopped: watch::Receiver<bool>,
}

impl Distributor {
    /// Reads the distributor's identity. Blocks.
    ///
    /// # Errors
    /// [`StartError::Distributor`].
    pub(crate) fn new(
        section: &DistributorSection,
        host: Arc<dyn Host>,
        stopped: watch::Receiver<bool>,
    ) -> Result<Arc<Self>, StartError> {
        let identity = client_identity(&section.identity).map_err(StartError::Distributor)?;
        let principal = identity.principal();
        tracing::info!(distributor = host.name(), principal = %principal.name, "sets and records of others are distributed");
        Ok(Arc::new(Self {
            host,
            identity,
            staging_bytes: section.staging.0,
            room: Arc::new(Semaphore::new(section.sessions_max as usize)),
            sessions_max: section.sessions_max,
            next_address: AtomicU64::new(FIRST_ADDRESS),
            turns: Mutex::default(),
            at_work: Mutex::default(),
            running: AtomicUsize::new(0),
            stopped,
        }))
    }

    /// The right to one more session, for a principal that was admitted.
    ///
    /// # Errors
    /// `TOO_MANY_SESSIONS`.
    fn turn(self: &Arc<Self>, principal: &PrincipalName) -> Result<Turn, Refusal> {
        let too_many = |limit: &str, most: u32| {
            let message =
                format!("{limit} ({most}) is reached; try again later, or another distributor");
            Refusal::new(Reason::TooManySessions, message)
        };
        let mut turns = self.turns.lock();
        let own = turns.iter().filter(|holder| *holder == principal).count();
        let most = self.host.limits().sessions_per_principal_max;
        if own >= most as usize {
            return Err(too_many("limits.sessions_per_principal_max", most));
        }
        let permit = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| too_many("distributor.sessions_max", self.sessions_max))?;
        turns.push(principal.clone());
        Ok(Turn {
            distributor: Arc::clone(self),
            principal: principal.clone(),
            _permit: permit,
        })
    }

    /// An address range that no session had before.
    fn take_address(&self) -> u64 {
        let step = self
            .staging_bytes
            .next_multiple_of(pmu_format::GRANULE_BYTES);
        self.next_address.fetch_add(step, Ordering::Relaxed)
    }

    /// For whom a region is distributed here, if it is.
    fn holder(&self, region: &RegionName) -> Option<PrincipalName> {
        let at_work = self.at_work.lock();
        let found = at_work.iter().find(|(name, _)| name == region);
        found.map(|(_, principal)| principal.clone())
    }

    fn enter(&self, region: &RegionName, principal: &PrincipalName) {
        self.at_work
            .lock()
            .push((region.clone(), principal.clone()));
    }

    fn leave(&self, region: &RegionName, principal: &PrincipalName) {
        let mut at_work = self.at_work.lock();
        let found = at_work
            .iter()
            .position(|(name, who)| name == region && who == principal);
        if let Some(index) = found {
            at_work.swap_remove(index);
        }
    }

    fn count(&self, session: bool) {
        let running = if session {
            self.running.fetch_add(1, Ordering::AcqRel) + 1
        } else {
            self.running.fetch_sub(1, Ordering::AcqRel) - 1
        };
        metrics::set_distributor_sessions(running);
    }

    /// Returns when every session has let go of its region and its memory, or `within` is over.
    pub(crate) async fn wait_idle(&self, within: Duration) {
        let until = tokio::time::Instant::now() + within;
        while self.running.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
