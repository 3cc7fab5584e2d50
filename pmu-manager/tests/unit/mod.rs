//! A unit that answers what a test needs, and keeps nothing beside a lock and its regions' names. Behaviour of real
//! units is tested elsewhere, on real units.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use pmu_auth::{Principal, Role};
use pmu_proto::reason;
use pmu_proto::v1::admin_server::{Admin, AdminServer};
use pmu_proto::v1::{self, Reason};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// What a test looks at.
#[derive(Default)]
pub struct State {
    pub unlocked: bool,
    pub regions: BTreeMap<String, v1::CreateRegionRequest>,
    /// Answers to the next VerifyPool.
    pub findings: Vec<v1::VerifyPoolResponse>,
}

#[derive(Clone, Default)]
pub struct FakeUnit(pub Arc<Mutex<State>>);

impl FakeUnit {
    /// Serves on a runtime of its own until the process ends; returns the address.
    pub fn serve(&self, identity: &pmu_auth::Identity) -> String {
        let settings = pmu_auth::server_tls(identity).unwrap();
        let service = AdminServer::new(self.clone());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            tokio::runtime::Runtime::new()
                .unwrap()
                .block_on(async move {
                    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                    sender
                        .send(listener.local_addr().unwrap().to_string())
                        .unwrap();
                    tonic::transport::Server::builder()
                        .add_service(service)
                        .serve_with_incoming(pmu_auth::incoming(listener, settings))
                        .await
                        .unwrap();
                });
        });
        receiver.recv().unwrap()
    }

    fn admit<T>(
        &self,
        request: &Request<T>,
        locked_too: bool,
    ) -> Result<std::sync::MutexGuard<'_, State>, Status> {
        let principal = Principal::from_request(request)
            .map_err(|error| reason::status(Reason::NoPrincipal, error.to_string()))?;
        if principal.role != Role::Manager {
            return Err(reason::status(
                Reason::WrongRole,
                format!("{principal} is no manager"),
            ));
        }
        let state = self.0.lock().unwrap();
        if !state.unlocked && !locked_too {
            return Err(reason::status(Reason::Locked, "locked"));
        }
        Ok(state)
    }
}

fn region<'a>(state: &'a State, name: &str) -> Result<&'a v1::CreateRegionRequest, Status> {
    let missing = || reason::status(Reason::NoSuchRegion, format!("no region {name}"));
    state.regions.get(name).ok_or_else(missing)
}

fn descriptor(request: &v1::CreateRegionRequest) -> v1::RegionDescriptor {
    v1::RegionDescriptor {
        region_id: vec![0xab; 16],
        name: request.name.clone(),
        mode: request.mode,
        state: v1::RegionState::Active.into(),
        need: request.need,
        virtual_address: 0x1_0000_0000,
        length_bytes: 1 << 20,
        sets_kept: request.sets_kept,
        capacity_bytes: 4096,
        epoch: 3,
        created_at_s: 1_700_000_000,
        attributes: Vec::new(),
    }
}

fn pool() -> v1::Pool {
    v1::Pool {
        name: "main".to_owned(),
        pool_id: vec![0xcd; 16],
        medium: v1::Medium::Fsdax.into(),
        durable: true,
        length_bytes: 1 << 30,
        free_bytes: 1 << 29,
        largest_free_bytes: 1 << 28,
        granule_bytes: 65_536,
        regions: 1,
        generation: 9,
    }
}

#[tonic::async_trait]
impl Admin for FakeUnit {
    type VerifyPoolStream =
        Pin<Box<dyn Stream<Item = Result<v1::VerifyPoolResponse, Status>> + Send>>;

    async fn initialize(
        &self,
        request: Request<v1::InitializeRequest>,
    ) -> Result<Response<v1::InitializeResponse>, Status> {
        let mut state = self.admit(&request, true)?;
        let was_initialized = std::mem::replace(&mut state.unlocked, true);
        let regions = state.regions.len() as u32;
        Ok(Response::new(v1::InitializeResponse {
            was_initialized,
            pools: vec![pool()],
            regions,
        }))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let state = self.admit(&request, true)?;
        let pools = if state.unlocked {
            vec![pool()]
        } else {
            Vec::new()
        };
        Ok(Response::new(v1::StatusResponse {
            unit: "unit-1".to_owned(),
            version: "0.1.0".to_owned(),
            locked: !state.unlocked,
            pools,
            providers: vec![v1::ProviderStatus {
                provider: v1::Provider::SoftTcp.into(),
                addresses: vec!["127.0.0.1:7401".to_owned()],
                persistence_methods: vec![v1::PersistenceMethod::NativeFlush.into()],
            }],
            sessions: Vec::new(),
            uptime_s: 61,
            scrubbing: None,
        }))
    }

    async fn create_region(
        &self,
        request: Request<v1::CreateRegionRequest>,
    ) -> Result<Response<v1::CreateRegionResponse>, Status> {
        let mut state = self.admit(&request, false)?;
        let request = request.into_inner();
        if state.regions.contains_key(&request.name) {
            return Err(reason::status(
                Reason::NameTaken,
                format!("{} exists", request.name),
            ));
        }
        let region = Some(descriptor(&request));
        let pool = "main".to_owned();
        state.regions.insert(request.name.clone(), request);
        Ok(Response::new(v1::CreateRegionResponse { region, pool }))
    }

    async fn list_regions(
        &self,
        request: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        let state = self.admit(&request, false)?;
        let regions = state.regions.values().map(|region| v1::RegionSummary {
            region: Some(descriptor(region)),
            pool: "main".to_owned(),
            writer: String::new(),
            sessions: 0,
        });
        Ok(Response::new(v1::ListRegionsResponse {
            regions: regions.collect(),
        }))
    }

    async fn show_region(
        &self,
        request: Request<v1::ShowRegionRequest>,
    ) -> Result<Response<v1::ShowRegionResponse>, Status> {
        let state = self.admit(&request, false)?;
        let region = region(&state, &request.get_ref().region)?;
        let extent = v1::Extent {
            pool: "main".to_owned(),
            pool_offset_bytes: 65_536,
            length_bytes: 1 << 20,
        };
        Ok(Response::new(v1::ShowRegionResponse {
            region: Some(descriptor(region)),
            pool: "main".to_owned(),
            extents: vec![extent],
            grants: region.grants.clone(),
            writer: "trainer-7".to_owned(),
            sessions: Vec::new(),
            scrub: None,
        }))
    }

    async fn set_grant(
        &self,
        request: Request<v1::SetGrantRequest>,
    ) -> Result<Response<v1::SetGrantResponse>, Status> {
        let mut state = self.admit(&request, false)?;
        let request = request.into_inner();
        let grant = request.grant.unwrap();
        region(&state, &request.region)?;
        let region = state.regions.get_mut(&request.region).unwrap();
        region
            .grants
            .retain(|known| known.principal != grant.principal);
        region.grants.push(grant);
        Ok(Response::new(v1::SetGrantResponse {
            windows_invalidated: 1,
        }))
    }

    async fn lend_rights(
        &self,
        request: Request<v1::LendRightsRequest>,
    ) -> Result<Response<v1::LendRightsResponse>, Status> {
        let state = self.admit(&request, false)?;
        region(&state, &request.get_ref().region)?;
        Ok(Response::new(v1::LendRightsResponse {}))
    }

    async fn revoke_grant(
        &self,
        request: Request<v1::RevokeGrantRequest>,
    ) -> Result<Response<v1::RevokeGrantResponse>, Status> {
        let mut state = self.admit(&request, false)?;
        let request = request.into_inner();
        let known = region(&state, &request.region)?;
        if !known
            .grants
            .iter()
            .any(|grant| grant.principal == request.principal)
        {
            return Err(reason::status(Reason::NoSuchGrant, "no such grant"));
        }
        let region = state.regions.get_mut(&request.region).unwrap();
        region
            .grants
            .retain(|known| known.principal != request.principal);
        Ok(Response::new(v1::RevokeGrantResponse {
            windows_invalidated: 2,
        }))
    }

    async fn fence_region(
        &self,
        request: Request<v1::FenceRegionRequest>,
    ) -> Result<Response<v1::FenceRegionResponse>, Status> {
        let state = self.admit(&request, false)?;
        region(&state, &request.get_ref().region)?;
        Ok(Response::new(v1::FenceRegionResponse {
            epoch: 4,
            windows_invalidated: 1,
            sessions_closed: 1,
            took_us: 77,
        }))
    }

    async fn set_membership(
        &self,
        request: Request<v1::SetMembershipRequest>,
    ) -> Result<Response<v1::SetMembershipResponse>, Status> {
        let _state = self.admit(&request, false)?;
        Err(reason::status(Reason::BadRequest, "not spread"))
    }

    async fn delete_region(
        &self,
        request: Request<v1::DeleteRegionRequest>,
    ) -> Result<Response<v1::DeleteRegionResponse>, Status> {
        let mut state = self.admit(&request, false)?;
        region(&state, &request.get_ref().region)?;
        state.regions.remove(&request.get_ref().region);
        Ok(Response::new(v1::DeleteRegionResponse {
            sessions_closed: 0,
            freed_bytes: 1 << 20,
        }))
    }

    async fn verify_pool(
        &self,
        request: Request<v1::VerifyPoolRequest>,
    ) -> Result<Response<Self::VerifyPoolStream>, Status> {
        let mut state = self.admit(&request, false)?;
        let steps = std::mem::take(&mut state.findings).into_iter().map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(
            steps.collect::<Vec<_>>(),
        ))))
    }
}
