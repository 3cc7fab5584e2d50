//! Rights that a manager has on a region for the time of its work. Units lend them for a short time, and end them by themselves when
//! nobody renews them: a manager that is killed leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use pmu_format::Rights;
use pmu_proto::v1;
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinSet};

use crate::connect::Connection;
use crate::error::ManagerError;

/// For how long a unit lends them.
const LENT_FOR: Duration = Duration::from_secs(30);
/// How often they are renewed. A unit that restarts meanwhile lends them anew.
const RENEW_EVERY: Duration = Duration::from_secs(6);

/// The loans of one piece of work, renewed until [`Loans::end`].
#[derive(Clone, Debug)]
pub struct Loans {
    region: Arc<str>,
    timeout: Duration,
    lent: Arc<Mutex<Vec<(Connection, Rights)>>>,
    renewal: AbortHandle,
}

impl Loans {
    /// None yet. Must be called within a runtime.
    #[must_use]
    pub fn begin(region: &str, timeout: Duration) -> Self {
        let region: Arc<str> = region.into();
        let lent: Arc<Mutex<Vec<(Connection, Rights)>>> = Arc::default();
        let (renewed, name) = (Arc::clone(&lent), Arc::clone(&region));
        let renewal = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                let lent = renewed.lock().await.clone();
                let mut asked = JoinSet::new();
                // One that does not answer holds up no other.
                for (connection, rights) in lent {
                    let name = Arc::clone(&name);
                    asked.spawn(async move {
                        // Whether it is still needed shows where it is used.
                        let _ = ask(&connection, &name, rights, LENT_FOR, timeout).await;
                    });
                }
                while asked.join_next().await.is_some() {}
            }
        });
        Self {
            region,
            timeout,
            lent,
            renewal: renewal.abort_handle(),
        }
    }

    /// Has a unit lend rights to whoever the connection is of.
    ///
    /// # Errors
    /// Those of [`Connection::call`].
    pub async fn lend(&self, connection: Connection, rights: Rights) -> Result<(), ManagerError> {
        ask(&connection, &self.region, rights, LENT_FOR, self.timeout).await?;
        self.lent.lock().await.push((connection, rights));
        Ok(())
    }

    /// Gives everything back. Where a unit doesn't answer, it ends by itself.
    pub async fn end(&self) {
        self.renewal.abort();
        for (connection, _) in self.lent.lock().await.drain(..) {
            let nothing = Rights::empty();
            let given = ask(
                &connection,
                &self.region,
                nothing,
                Duration::ZERO,
                self.timeout,
            )
            .await;
            if let Err(error) = given {
                tracing::debug!(
                    unit = connection.unit(),
                    error = error.text(),
                    "rights end by themselves"
                );
            }
        }
    }
}

async fn ask(
    connection: &Connection,
    region: &str,
    rights: Rights,
    time: Duration,
    timeout: Duration,
) -> Result<(), ManagerError> {
    let request = v1::LendRightsRequest {
        region: region.to_owned(),
        rights: rights.bits(),
        for_ms: u32::try_from(time.as_millis()).unwrap_or(u32::MAX),
    };
    let call = connection.call(request, timeout, |mut client, request| async move {
        client.lend_rights(request).await
    });
    call.await.map(drop)
}
