//! What a manager does with the unit as a whole: unlock it, make regions, look at it, verify its pools.

use std::sync::Arc;

use pmu_format::{
    Grant, Mode, Need, PrincipalName, RegionEntry, RegionId, RegionName, RegionState,
};
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::{
    CreateRegionRequest, CreateRegionResponse, InitializeResponse, ListRegionsResponse, Pool,
    ProviderStatus, Reason, RegionSummary, SessionStatus, ShowRegionResponse, StatusResponse,
    VerifyPoolResponse,
};

use crate::control::convert;
use crate::control::reasons::Refusal;
use crate::pool::{NewRegion, RegionSize};
use crate::pools::UnitPool;
use crate::session::{Session, Stage};
use crate::state::{Region, UnitState};

/// Grants in one request.
const GRANTS_MAX: usize = 1024;

impl UnitState {
    /// Gives the unit its address context: the protection and translation tables, from the pools' region tables. Then it
    /// is unlocked. Doing it again changes nothing.
    pub(crate) fn initialize(&self) -> Result<InitializeResponse, Refusal> {
        let _changing = self.changing_regions.lock();
        let was_initialized = !self.is_locked();
        if !was_initialized {
            let entries = self.entries();
            self.check_distinct(&entries)?;
            let mut regions = self.regions.write();
            for (pool, entry) in entries
                .iter()
                .filter(|(_, entry)| entry.state == RegionState::Active)
            {
                regions.insert(entry.name.clone(), Arc::new(self.region_of(*pool, entry)));
            }
            drop(regions);
            self.unlock();
            tracing::info!(unit = self.unit_name(), "unit initialised and unlocked");
        }
        Ok(InitializeResponse {
            was_initialized,
            pools: self.pools.iter().map(pool_status).collect(),
            regions: count(self.regions.read().len()),
        })
    }

    /// The region tables of all pools.
    fn entries(&self) -> Vec<(usize, RegionEntry)> {
        let pools = self.pools.iter().enumerate();
        pools
            .flat_map(|(index, pool)| pool.entries().into_iter().map(move |entry| (index, entry)))
            .collect()
    }

    pub(crate) fn status(&self) -> StatusResponse {
        let locked = self.is_locked();
        let providers = self.listeners.iter().map(|listener| {
            let mut methods: Vec<_> = self
                .pools
                .iter()
                .flat_map(|pool| pool.methods(listener.fabric.as_ref()))
                .collect();
            methods.sort_unstable();
            methods.dedup();
            ProviderStatus {
                provider: convert::provider(listener.fabric.provider()).into(),
                addresses: vec![listener.address.clone()],
                persistence_methods: methods
                    .into_iter()
                    .map(|method| convert::persistence(method).into())
                    .collect(),
            }
        });
        StatusResponse {
            unit: self.unit_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            locked,
            providers: providers.collect(),
            pools: if locked {
                Vec::new()
            } else {
                self.pools.iter().map(pool_status).collect()
            },
            sessions: if locked {
                Vec::new()
            } else {
                self.sessions
                    .live(None)
                    .iter()
                    .map(session_status)
                    .collect()
            },
            uptime_s: self.started.elapsed().as_secs(),
            scrubbing: self.scrubs.as_ref().filter(|_| !locked).map(|scrubs| {
                let entries = self.entries().into_iter().map(|(_, entry)| entry);
                scrubs.show_all(&entries.collect::<Vec<_>>())
            }),
        }
    }

    /// Makes a region; it is durable when this returns.
    pub(crate) fn create_region(
        &self,
        name: RegionName,
        request: &CreateRegionRequest,
    ) -> Result<CreateRegionResponse, Refusal> {
        let new = new_region(name, request)?;
        let _changing = self.changing_regions.lock();
        if let Some((pool, _)) = self
            .entries()
            .iter()
            .find(|(_, entry)| entry.name == new.name)
        {
            let message = format!(
                "region {} is there already, in pool {}",
                new.name, self.pools[*pool].name
            );
            return Err(Refusal::new(Reason::NameTaken, message));
        }
        let (index, entry) = self.create_in_some_pool(&request.pool, &new)?;
        let created = Arc::new(self.region_of(index, &entry));
        self.regions.write().insert(entry.name.clone(), created);
        tracing::info!(pool = self.pools[index].name, length_bytes = entry.length_bytes, mode = %entry.mode, "region created");
        Ok(CreateRegionResponse {
            region: Some(convert::descriptor(&entry)),
            pool: self.pools[index].name.clone(),
        })
    }

    /// In the pool asked for; or in the first one that satisfies the need and has the room.
    fn create_in_some_pool(
        &self,
        asked: &str,
        new: &NewRegion,
    ) -> Result<(usize, RegionEntry), Refusal> {
        let fits = |pool: &UnitPool| new.need == Need::VolatileAllowed || pool.is_durable();
        let mut refused = None;
        let mut known = false;
        for (index, pool) in self.pools.iter().enumerate() {
            if !asked.is_empty() && pool.name != asked {
                continue;
            }
            known = true;
            if !fits(pool) {
                refused.get_or_insert_with(|| {
                    let message = format!(
                        "region {} needs to be durable, and pool {} is volatile ({})",
                        new.name, pool.name, pool.medium
                    );
                    Refusal::new(Reason::VolatilePool, message)
                });
                continue;
            }
            match pool
                .create(new)
                .and_then(|entry| self.keep_if_distinct(index, entry))
            {
                Ok(entry) => return Ok((index, entry)),
                Err(refusal) => refused = Some(refusal),
            }
        }
        match refused {
            Some(refusal) if known => Err(refusal),
            _ => Err(self.no_such_pool(asked)),
        }
    }

    /// Virtual addresses name a region within the unit. Pools choose theirs by their random ids, so that two of them can
    /// choose the same, if hardly ever.
    fn keep_if_distinct(&self, pool: usize, entry: RegionEntry) -> Result<RegionEntry, Refusal> {
        if let Err(refusal) = self.check_distinct(&self.entries()) {
            self.pools[pool].delete(entry.id)?;
            return Err(refusal);
        }
        Ok(entry)
    }

    fn no_such_pool(&self, name: &str) -> Refusal {
        let known: Vec<&str> = self.pools.iter().map(|pool| pool.name.as_str()).collect();
        let message = format!(
            "there is no pool {:?} in this unit; there are {}",
            name.escape_debug().to_string(),
            known.join(", ")
        );
        Refusal::new(Reason::NoSuchPool, message)
    }

    pub(crate) fn list_regions(&self) -> ListRegionsResponse {
        let mut regions: Vec<RegionSummary> = self
            .entries()
            .iter()
            .map(|(pool, entry)| RegionSummary {
                region: Some(convert::descriptor(entry)),
                pool: self.pools[*pool].name.clone(),
                writer: self.writer_of(&entry.name, entry.id),
                sessions: count(self.sessions.live(Some(entry.id)).len()),
            })
            .collect();
        regions.sort_by(|one, other| {
            let name =
                |summary: &RegionSummary| summary.region.as_ref().map(|region| region.name.clone());
            name(one).cmp(&name(other))
        });
        ListRegionsResponse { regions }
    }

    fn writer_of(&self, name: &RegionName, id: RegionId) -> String {
        let region: Option<Arc<Region>> = self
            .regions
            .read()
            .get(name)
            .filter(|region| region.id == id)
            .cloned();
        region
            .map(|region| region.desk().writers.primary_name())
            .unwrap_or_default()
    }

    pub(crate) fn show_region(&self, name: &RegionName) -> Result<ShowRegionResponse, Refusal> {
        let region = self.region(name)?;
        let desk = region.desk();
        let entry = self.entry(&region, &desk)?;
        let pool = &self.pools[region.pool].name;
        Ok(ShowRegionResponse {
            region: Some(convert::descriptor(&entry)),
            pool: pool.clone(),
            extents: entry
                .extents
                .iter()
                .map(|extent| convert::extent(pool, extent))
                .collect(),
            grants: entry.grants.iter().map(convert::grant).collect(),
            writer: desk.writers.primary_name(),
            sessions: self
                .sessions
                .live(Some(entry.id))
                .iter()
                .map(session_status)
                .collect(),
            scrub: self.scrubs.as_ref().and_then(|scrubs| scrubs.show(&entry)),
        })
    }

    /// Checks the pools on their medium; empty: all.
    pub(crate) fn verify_pools(&self, name: &str) -> Result<Vec<VerifyPoolResponse>, Refusal> {
        let chosen: Vec<&UnitPool> = self
            .pools
            .iter()
            .filter(|pool| name.is_empty() || pool.name == name)
            .collect();
        if chosen.is_empty() {
            return Err(self.no_such_pool(name));
        }
        crate::pools::verify(&chosen)
    }
}

fn new_region(name: RegionName, request: &CreateRegionRequest) -> Result<NewRegion, Refusal> {
    let bad = |message: String| Refusal::new(Reason::BadRequest, message);
    let mode = convert::requested_mode(request.mode)?;
    match mode {
        Mode::Overwrite if request.sets_kept == 0 => {
            return Err(bad("overwrite mode keeps at least one set".into()));
        }
        Mode::Append if request.sets_kept != 0 => {
            return Err(bad("append mode keeps no sets: sets_kept must be 0".into()));
        }
        _ => {}
    }
    let size = match request.room {
        Some(Room::CapacityBytes(_)) if mode == Mode::Append => {
            return Err(bad(
                "append mode has no sets: give the size of the region, not a capacity".into(),
            ));
        }
        Some(Room::CapacityBytes(bytes)) => RegionSize::SetCapacity(bytes),
        Some(Room::SizeBytes(bytes)) => RegionSize::Region(bytes),
        None => {
            return Err(bad(
                "a region needs a size, or in overwrite mode a capacity".into(),
            ));
        }
    };
    if request.grants.len() > GRANTS_MAX {
        return Err(bad(format!(
            "{} grants in one request; at most {GRANTS_MAX}",
            request.grants.len()
        )));
    }
    let grants: Vec<Grant> = request
        .grants
        .iter()
        .map(convert::requested_grant)
        .collect::<Result<_, _>>()?;
    let mut names: Vec<&PrincipalName> = grants.iter().map(|grant| &grant.principal).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(bad(format!("{} stands in two grants", pair[0])));
    }
    Ok(NewRegion {
        name,
        mode,
        need: convert::requested_need(request.need)?,
        sets_kept: request.sets_kept,
        size,
        grants,
        attributes: request.attributes.clone(),
    })
}

fn pool_status(pool: &UnitPool) -> Pool {
    let space = pool.space();
    Pool {
        name: pool.name.clone(),
        pool_id: pool.id().as_bytes().to_vec(),
        medium: convert::medium(pool.medium).into(),
        durable: pool.is_durable(),
        length_bytes: pool.length_bytes(),
        free_bytes: space.free_bytes,
        largest_free_bytes: space.largest_free_bytes,
        granule_bytes: pmu_format::GRANULE_BYTES,
        regions: count(pool.region_count()),
        generation: pool.generation(),
    }
}

fn session_status(session: &Session) -> SessionStatus {
    SessionStatus {
        session_id: session.id,
        region: session.region_name.to_string(),
        principal: session.principal.to_string(),
        role: session.role.into(),
        provider: convert::provider(session.provider).into(),
        persistence: convert::persistence(session.persistence).into(),
        active: session.stage == Stage::Active,
        epoch: session.epoch.get(),
        age_s: session.opened.elapsed().as_secs(),
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
