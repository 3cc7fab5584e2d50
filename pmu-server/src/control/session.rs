//! The service `Session`: how a program gets from its certificate to windows on a region.

use std::time::Instant;

use pmu_format::{Epoch, RegionName};
use pmu_proto::v1::session_server::Session;
use pmu_proto::v1::{
    ActivateRequest, ActivateResponse, CloseSessionRequest, CloseSessionResponse,
    DescribeRegionRequest, DescribeRegionResponse, FenceRegionRequest, FenceRegionResponse,
    OpenRegionRequest, OpenRegionResponse, PingRequest, PingResponse,
};
use tonic::{Request, Response, Status};
use tracing::info_span;

use super::reasons::Refusal;
use super::{Control, convert};
use crate::session::Wish;

#[tonic::async_trait]
impl Session for Control {
    async fn open_region(
        &self,
        request: Request<OpenRegionRequest>,
    ) -> Result<Response<OpenRegionResponse>, Status> {
        let caller = self.caller(&request)?;
        let wish = wish(request.get_ref())?;
        let span = info_span!("open_region", principal = %caller.name, region = %wish.region);
        self.run(span, move |state| state.open_region(&caller.name, &wish))
            .await
    }

    async fn activate(
        &self,
        request: Request<ActivateRequest>,
    ) -> Result<Response<ActivateResponse>, Status> {
        let caller = self.caller(&request)?;
        let ActivateRequest {
            session_id,
            timeout_ms,
        } = request.into_inner();
        let span = info_span!("activate", principal = %caller.name, session = session_id);
        // Whoever waits for a data connection holds a thread; more than that wait here, without one.
        let _turn = self.state.turn_to_wait().await?;
        self.run(span, move |state| {
            state.activate(&caller.name, session_id, timeout_ms)
        })
        .await
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let caller = self.caller(&request)?;
        let session_id = request.get_ref().session_id;
        let span = info_span!("close_session", principal = %caller.name, session = session_id);
        self.run(span, move |state| {
            state
                .close_session(&caller.name, session_id)
                .map(|()| CloseSessionResponse {})
        })
        .await
    }

    async fn fence_region(
        &self,
        request: Request<FenceRegionRequest>,
    ) -> Result<Response<FenceRegionResponse>, Status> {
        let arrived = Instant::now();
        let caller = self.caller(&request)?;
        let region = RegionName::new(&request.get_ref().region).map_err(Refusal::from)?;
        let span = info_span!("fence", principal = %caller.name, %region);
        self.run(span, move |state| {
            state.fence_as_client(&caller.name, &region, arrived)
        })
        .await
    }

    async fn describe_region(
        &self,
        request: Request<DescribeRegionRequest>,
    ) -> Result<Response<DescribeRegionResponse>, Status> {
        let caller = self.caller(&request)?;
        let region = RegionName::new(&request.get_ref().region).map_err(Refusal::from)?;
        let span = info_span!("describe_region", principal = %caller.name, %region);
        self.run(span, move |state| {
            state.describe_region(&caller.name, &region)
        })
        .await
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        self.any_caller(&request)?;
        Ok(Response::new(PingResponse {
            unit: self.state.unit_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            locked: self.state.is_locked(),
        }))
    }
}

fn wish(request: &OpenRegionRequest) -> Result<Wish, Refusal> {
    Ok(Wish {
        region: RegionName::new(&request.region)?,
        role: convert::requested_role(request.role)?,
        wants_clear: request.wants_clear,
        provider: convert::requested_provider(request.provider)?,
        persistence: convert::requested_persistence(request.persistence)?,
        goes_on_from: request.goes_on_from.map(Epoch),
    })
}
