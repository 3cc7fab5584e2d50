//! A distributor in a process of its own: the command `pmu-server distribute`. It has no pool, and needs no unlocking.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics_exporter_prometheus::PrometheusHandle;
use pmu_format::{PrincipalName, RegionName};
use pmu_proto::v1::Reason;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Server;

use super::{Admitted, Distributor, DistributorService, Host};
use crate::config::{Config, Limits, Place};
use crate::control::limited;
use crate::control::reasons::{Refusal, with_causes};
use crate::metrics::{self, Health, Observed};
use crate::state::Listener;
use crate::unit::{KEEP_ALIVE, StartError, bind, blocking, listen, own_identity};

/// A running process of its own. Dropping it stops nothing: call [`Process::stop`].
pub struct Process {
    state: Arc<State>,
    distributor: Arc<Distributor>,
    control_address: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Process({} at {})",
            self.state.name(),
            self.control_address
        )
    }
}

struct State {
    config: Config,
    listeners: Vec<Listener>,
    stopping: AtomicBool,
}

impl Process {
    /// Starts distributing, within the current tokio runtime. When it returns, programs are served. The metrics listener shows what
    /// `recorder` has recorded.
    ///
    /// # Errors
    /// Any [`StartError`]; nothing stays open then.
    pub async fn start(
        config: Config,
        recorder: Option<PrometheusHandle>,
    ) -> Result<Self, StartError> {
        let mut problems = config.problems();
        if config.place() != Place::Process {
            problems.push("distributor.units: a process of its own needs them".into());
        }
        if !problems.is_empty() {
            return Err(StartError::Config(problems));
        }
        let section = config.unit.clone();
        let tls = blocking(move || {
            pmu_auth::server_tls(&own_identity(&section)?).map_err(StartError::Identity)
        })
        .await?;
        let (control, control_address) = bind("control.listen", config.control.listen).await?;
        let metrics_listener = match &config.metrics {
            Some(section) => Some(bind("metrics.listen", section.listen).await?),
            None => None,
        };
        let (stop, stopped) = watch::channel(false);
        let told = stopped.clone();
        let (state, distributor) = blocking(move || assemble(config, told)).await?;
        let mut tasks = JoinSet::new();
        if let Some((listener, _)) = metrics_listener {
            let observed = Arc::clone(&state) as Arc<dyn Observed>;
            let stopped = stopped.clone();
            tasks.spawn(metrics::serve(listener, observed, recorder, stopped));
        }
        let limits = &state.config.limits;
        let incoming = limited(
            pmu_auth::incoming(control, tls),
            limits.control_connections_max,
        );
        let serving = Server::builder()
            .concurrency_limit_per_connection(limits.control_requests_max as usize)
            .max_concurrent_streams(limits.control_requests_max)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_service(DistributorService::serve(Arc::clone(&distributor)))
            .serve_with_incoming_shutdown(incoming, until(stopped));
        tracing::info!(name = state.name(), %control_address, "distributor started");
        Ok(Self {
            state,
            distributor,
            control_address,
            stop,
            server: tokio::spawn(serving),
            tasks,
        })
    }

    /// Where programs connect to.
    #[must_use]
    pub fn control_address(&self) -> SocketAddr {
        self.control_address
    }

    /// Returns when it has stopped serving by itself, which only a failure makes it do.
    pub async fn failed(&mut self) -> String {
        match (&mut self.server).await {
            Ok(Ok(())) => "the control service ended".into(),
            Ok(Err(error)) => with_causes(&error),
            Err(error) => error.to_string(),
        }
    }

    /// Stops cleanly: sessions end, sets in progress are given up, and their regions are let go.
    pub async fn stop(mut self) {
        let within = self.state.config.limits.stop_within();
        self.state.stopping.store(true, Ordering::Release);
        self.stop.send_replace(true);
        if !self.server.is_finished()
            && tokio::time::timeout(within, &mut self.server)
                .await
                .is_err()
        {
            tracing::warn!("control connections are cut: their sessions did not end in time");
            self.server.abort();
        }
        self.distributor.wait_idle(within).await;
        for listener in &self.state.listeners {
            listener.fabric.shut_down();
        }
        self.tasks.shutdown().await;
        tracing::info!(name = self.state.name(), "distributor stopped");
    }
}

/// Opens listeners and reads the identity. Blocks.
fn assemble(
    config: Config,
    stopped: watch::Receiver<bool>,
) -> Result<(Arc<State>, Arc<Distributor>), StartError> {
    let sections = config.data.iter().enumerate();
    let listeners: Result<Vec<_>, _> = sections.map(|(index, data)| listen(index, data)).collect();
    let section = config.distributor.clone();
    let section = section.ok_or_else(|| StartError::Config(vec!["distributor: missing".into()]))?;
    let state = Arc::new(State {
        config,
        listeners: listeners?,
        stopping: AtomicBool::new(false),
    });
    let host = Arc::clone(&state) as Arc<dyn Host>;
    Ok((state, Distributor::new(&section, host, stopped)?))
}

async fn until(mut stopped: watch::Receiver<bool>) {
    if stopped.wait_for(|stop| *stop).await.is_err() {
        // The handle is gone: nobody can stop it any more but the process's end.
        std::future::pending::<()>().await;
    }
}

impl Host for State {
    fn name(&self) -> &str {
        &self.config.unit.name
    }

    fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Whoever the configuration names.
    fn admit(&self, principal: &PrincipalName, region: &RegionName) -> Result<Admitted, Refusal> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Refusal::new(
                Reason::Stopping,
                "the distributor is stopping",
            ));
        }
        let Some(section) = &self.config.distributor else {
            return Err(Refusal::new(Reason::NoSuchRegion, "nothing is distributed"));
        };
        let known = section
            .region
            .iter()
            .find(|one| one.name == region.as_str());
        let known = known.ok_or_else(|| {
            let message = format!(
                "region {region} is not among those that {} distributes",
                self.name()
            );
            Refusal::new(Reason::NoSuchRegion, message)
        })?;
        if !known.principals.iter().any(|one| one == principal.as_str()) {
            let message = format!(
                "{principal} is not among those for whom {} distributes region {region}: its configuration can name it",
                self.name()
            );
            return Err(Refusal::new(Reason::NoGrant, message));
        }
        Ok(Admitted {
            seeds: section.units.clone(),
            id: None,
        })
    }
}

impl Observed for State {
    fn health(&self) -> Health {
        let stopping = self.stopping.load(Ordering::Acquire);
        Health {
            serving: !stopping,
            text: if stopping { "stopping" } else { "distributing" }.into(),
        }
    }

    fn refresh(&self) {
        metrics::set_processor_time();
    }
}
