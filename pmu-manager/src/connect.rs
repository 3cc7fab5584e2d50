//! Connections to units, as a manager.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pmu_auth::{AuthError, Identity};
use pmu_proto::v1::admin_client::AdminClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::cli::Common;
use crate::config::{Home, Unit};
use crate::error::ManagerError;

/// Who the manager is.
///
/// # Errors
/// [`ManagerError::NoIdentity`] if there is none; [`ManagerError::Auth`] if it can't be used.
pub fn identity(home: &Home, common: &Common) -> Result<Arc<Identity>, ManagerError> {
    let directory = Identity::directory(
        common.identity.as_deref(),
        pmu_auth::MANAGER_IDENTITY_VARIABLE,
        &home.identity(),
    );
    match Identity::load(&directory) {
        Ok(identity) => Ok(Arc::new(identity)),
        Err(source @ AuthError::Read { .. }) => Err(ManagerError::NoIdentity { directory, source }),
        Err(error) => Err(error.into()),
    }
}

/// An authenticated connection to one unit.
#[derive(Clone, Debug)]
pub struct Connection {
    unit: String,
    client: AdminClient<Channel>,
}

impl Connection {
    /// Connects to a unit of the list; its certificate must have its name there.
    ///
    /// # Errors
    /// [`ManagerError::Auth`] says which side refused the other, and why.
    pub async fn open(
        unit: &Unit,
        identity: &Identity,
        timeout: Duration,
    ) -> Result<Self, ManagerError> {
        let channel = pmu_auth::connect(&unit.address, identity, Some(&unit.name), timeout).await?;
        Ok(Self {
            unit: unit.name.to_string(),
            client: AdminClient::new(channel),
        })
    }

    /// The unit's name.
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Asks the unit, and waits for its answer no longer than `timeout`.
    ///
    /// # Errors
    /// [`ManagerError::Refused`], [`ManagerError::TimedOut`].
    pub async fn call<Q, A, F>(
        &self,
        request: Q,
        timeout: Duration,
        method: impl FnOnce(AdminClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, ManagerError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(request);
        // The unit learns when nobody waits any more.
        request.set_timeout(timeout);
        let answer = tokio::time::timeout(timeout, method(self.client.clone(), request)).await;
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(ManagerError::from_status(&self.unit, status)),
            Err(_) => Err(ManagerError::TimedOut {
                unit: self.unit.clone(),
                after_ms: timeout.as_millis(),
            }),
        }
    }

    /// An answer without what every answer of its kind has.
    pub fn nonsense(&self, detail: &'static str) -> ManagerError {
        ManagerError::Answer {
            unit: self.unit.clone(),
            detail,
        }
    }
}
