//! The service `Admin`: what a manager asks of a unit.

use std::time::Instant;

use pmu_format::{PrincipalName, RegionName};
use pmu_proto::v1::admin_server::Admin;
use pmu_proto::v1::{
    CreateRegionRequest, CreateRegionResponse, DeleteRegionRequest, DeleteRegionResponse,
    FenceRegionRequest, FenceRegionResponse, InitializeRequest, InitializeResponse,
    LendRightsRequest, LendRightsResponse, ListRegionsRequest, ListRegionsResponse,
    RevokeGrantRequest, RevokeGrantResponse, SetGrantRequest, SetGrantResponse,
    SetMembershipRequest, SetMembershipResponse, ShowRegionRequest, ShowRegionResponse,
    StatusRequest, StatusResponse, VerifyPoolRequest, VerifyPoolResponse,
};
use tokio_stream::Iter;
use tonic::{Request, Response, Status};
use tracing::info_span;

use super::reasons::Refusal;
use super::{Control, convert};

/// Findings are few: they are all there before the first is sent.
type Findings = Iter<std::vec::IntoIter<Result<VerifyPoolResponse, Status>>>;

#[tonic::async_trait]
impl Admin for Control {
    type VerifyPoolStream = Findings;

    async fn initialize(
        &self,
        request: Request<InitializeRequest>,
    ) -> Result<Response<InitializeResponse>, Status> {
        let caller = self.any_manager(&request)?;
        let span = info_span!("initialize", principal = %caller.name);
        self.run(span, |state| state.initialize()).await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let caller = self.any_manager(&request)?;
        let span = info_span!("status", principal = %caller.name);
        self.run(span, |state| Ok(state.status())).await
    }

    async fn create_region(
        &self,
        request: Request<CreateRegionRequest>,
    ) -> Result<Response<CreateRegionResponse>, Status> {
        let caller = self.manager(&request)?;
        let request = request.into_inner();
        let region = RegionName::new(&request.name).map_err(Refusal::from)?;
        let span = info_span!("create_region", principal = %caller.name, %region);
        self.run(span, move |state| state.create_region(region, &request))
            .await
    }

    async fn list_regions(
        &self,
        request: Request<ListRegionsRequest>,
    ) -> Result<Response<ListRegionsResponse>, Status> {
        let caller = self.manager(&request)?;
        let span = info_span!("list_regions", principal = %caller.name);
        self.run(span, |state| Ok(state.list_regions())).await
    }

    async fn show_region(
        &self,
        request: Request<ShowRegionRequest>,
    ) -> Result<Response<ShowRegionResponse>, Status> {
        let caller = self.manager(&request)?;
        let region = RegionName::new(&request.get_ref().region).map_err(Refusal::from)?;
        let span = info_span!("show_region", principal = %caller.name, %region);
        self.run(span, move |state| state.show_region(&region))
            .await
    }

    async fn set_grant(
        &self,
        request: Request<SetGrantRequest>,
    ) -> Result<Response<SetGrantResponse>, Status> {
        let caller = self.manager(&request)?;
        let request = request.into_inner();
        let region = RegionName::new(&request.region).map_err(Refusal::from)?;
        let grant = convert::requested_grant(&request.grant.unwrap_or_default())?;
        let span =
            info_span!("set_grant", principal = %caller.name, %region, grantee = %grant.principal);
        self.run(span, move |state| {
            let windows_invalidated = state.set_grant(&region, grant)?;
            Ok(SetGrantResponse {
                windows_invalidated,
            })
        })
        .await
    }

    async fn revoke_grant(
        &self,
        request: Request<RevokeGrantRequest>,
    ) -> Result<Response<RevokeGrantResponse>, Status> {
        let caller = self.manager(&request)?;
        let request = request.into_inner();
        let region = RegionName::new(&request.region).map_err(Refusal::from)?;
        let grantee = PrincipalName::new(&request.principal).map_err(Refusal::from)?;
        let span = info_span!("revoke_grant", principal = %caller.name, %region, %grantee);
        self.run(span, move |state| {
            let windows_invalidated = state.revoke_grant(&region, &grantee)?;
            Ok(RevokeGrantResponse {
                windows_invalidated,
            })
        })
        .await
    }

    async fn lend_rights(
        &self,
        request: Request<LendRightsRequest>,
    ) -> Result<Response<LendRightsResponse>, Status> {
        let arrived = Instant::now();
        let caller = self.manager(&request)?;
        let request = request.into_inner();
        let region = RegionName::new(&request.region).map_err(Refusal::from)?;
        let span = info_span!("lend_rights", principal = %caller.name, %region);
        self.run(span, move |state| {
            state.lend_rights(&caller.name, &region, &request, arrived)
        })
        .await
    }

    async fn fence_region(
        &self,
        request: Request<FenceRegionRequest>,
    ) -> Result<Response<FenceRegionResponse>, Status> {
        let arrived = Instant::now();
        let caller = self.manager(&request)?;
        let region = RegionName::new(&request.get_ref().region).map_err(Refusal::from)?;
        let span = info_span!("fence", principal = %caller.name, %region);
        self.run(span, move |state| state.fence(&region, arrived))
            .await
    }

    async fn set_membership(
        &self,
        request: Request<SetMembershipRequest>,
    ) -> Result<Response<SetMembershipResponse>, Status> {
        let arrived = Instant::now();
        let caller = self.manager(&request)?;
        let region = RegionName::new(&request.get_ref().region).map_err(Refusal::from)?;
        let span = info_span!("set_membership", principal = %caller.name, %region);
        let request = request.into_inner();
        self.run(span, move |state| {
            state.set_membership(&region, &request, arrived)
        })
        .await
    }

    async fn delete_region(
        &self,
        request: Request<DeleteRegionRequest>,
    ) -> Result<Response<DeleteRegionResponse>, Status> {
        let caller = self.manager(&request)?;
        let region = RegionName::new(&request.get_ref().region).map_err(Refusal::from)?;
        let force = request.get_ref().force;
        let span = info_span!("delete_region", principal = %caller.name, %region, force);
        self.run(span, move |state| state.delete_region(&region, force))
            .await
    }

    async fn verify_pool(
        &self,
        request: Request<VerifyPoolRequest>,
    ) -> Result<Response<Self::VerifyPoolStream>, Status> {
        let caller = self.manager(&request)?;
        let pool = request.into_inner().pool;
        let span = info_span!("verify_pool", principal = %caller.name);
        let steps = self
            .run(span, move |state| state.verify_pools(&pool))
            .await?
            .into_inner();
        let steps: Vec<_> = steps.into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(steps)))
    }
}
