//! Assembles a unit from its configuration, runs it, and stops it cleanly. Usable in-process: logging, signals and the
//! metrics recorder belong to `main`.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::PrometheusHandle;
use pmu_auth::{AuthError, Identity, Role};
use pmu_fabric::soft::SoftUnit;
use pmu_fabric::verbs::{VerbsUnit, VerbsUnitOptions};
use pmu_fabric::{FabricError, FabricEvent, Provider, UnitFabric};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Server;

use crate::config::{Config, DataSection, Place, UnitSection};
use crate::control::reasons::with_causes;
use crate::control::{Control, limited};
use crate::distributor::{Distributor, DistributorService, Host};
use crate::metrics::{self, Health, Observed};
use crate::pool::PoolError;
use crate::pools::UnitPool;
use crate::scrub::clock::{Clock, SystemClock};
use crate::scrub::{Scrubber, Scrubs};
use crate::session::{DataConnection, End};
use crate::state::{Listener, UnitState};

/// How often sessions are looked at whose time may be over.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// How often an idle control connection is probed, and how long the answer may take.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A certificate that ends within this many seconds is worth a warning: 14 days.
const EXPIRES_SOON_S: i64 = 14 * 24 * 3600;

/// Why a unit did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What the configuration says can't work.
    #[error("configuration: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The identity can't be used.
    #[error("unit.identity: {0}")]
    Identity(#[source] AuthError),
    /// The unit's certificate is over.
    #[error("unit.identity: the certificate ended at {not_after}: issue a new one")]
    Expired {
        /// When.
        not_after: String,
    },
    /// The identity is another one's.
    #[error(
        "unit.identity: the certificate is {certified}'s, of the role {role}, and unit.name is {name}: peers would refuse the \
         unit under that name; issue a certificate of the role unit for {name}, or correct the configuration"
    )]
    OtherIdentity {
        /// The name in the configuration.
        name: String,
        /// The name in the certificate.
        certified: String,
        /// The role in the certificate.
        role: String,
    },
    /// An address can't be listened on.
    #[error("{key}: can't listen on {address}: {reason}")]
    Listen {
        /// The key of the configuration.
        key: String,
        /// The address or path.
        address: String,
        /// Why not.
        reason: String,
    },
    /// A pool can't be opened.
    #[error("{key}: {source}")]
    Pool {
        /// The key of the configuration.
        key: String,
        /// Why not.
        source: PoolError,
    },
    /// The distributor's own identity can't be used.
    #[error("distributor.identity: {0}")]
    Distributor(String),
    /// The identity to scrub spread regions with can't be used.
    #[error("scrub.identity: {0}")]
    Scrub(String),
    /// A thread of the unit died.
    #[error("the start was cut short: {0}")]
    CutShort(String),
}

/// A running unit. Dropping it stops nothing: call [`UnitHandle::stop`].
pub struct UnitHandle {
    state: Arc<UnitState>,
    distributor: Option<Arc<Distributor>>,
    control_address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    scrubber: Option<Scrubber>,
    stop: watch::Sender<bool>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for UnitHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "UnitHandle({} at {})",
            self.state.unit_name(),
            self.control_address
        )
    }
}

/// The way into this crate: see [`Unit::start`].
#[derive(Debug, Clone, Copy)]
pub struct Unit;

impl Unit {
    /// Starts a unit, locked, within the current tokio runtime. When it returns, the unit serves.
    ///
    /// # Errors
    /// Any [`StartError`]; nothing stays open then.
    pub async fn start(config: Config) -> Result<UnitHandle, StartError> {
        Self::start_with_metrics(config, None).await
    }

    /// As [`Unit::start`]; the metrics listener shows what `recorder` has recorded, and `/healthz` alone without one.
    ///
    /// # Errors
    /// As [`Unit::start`].
    pub async fn start_with_metrics(
        config: Config,
        recorder: Option<PrometheusHandle>,
    ) -> Result<UnitHandle, StartError> {
        Self::start_with_clock(config, recorder, Arc::new(SystemClock::default())).await
    }

    /// As [`Unit::start_with_metrics`]; scrubs go by `clock`.
    ///
    /// # Errors
    /// As [`Unit::start`].
    pub async fn start_with_clock(
        config: Config,
        recorder: Option<PrometheusHandle>,
        clock: Arc<dyn Clock>,
    ) -> Result<UnitHandle, StartError> {
        let mut problems = config.problems();
        if config.place() != Place::Unit {
            problems.push(
                "distributor.units: it is a process of its own: pmu-server distribute".into(),
            );
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
        let (state, distributor, scrubber, events) = blocking(move || {
            let (state, events) = assemble(config, clock)?;
            let host = Arc::clone(&state) as Arc<dyn Host>;
            let distributor = match &state.config.distributor {
                Some(section) => Some(Distributor::new(section, host, told)?),
                None => None,
            };
            let scrubber = Scrubber::start(&state)?;
            Ok((state, distributor, scrubber, events))
        })
        .await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_connections(Arc::clone(&state), events));
        tasks.spawn(sweep(Arc::clone(&state), stopped.clone()));
        let metrics_address = metrics_listener.as_ref().map(|(_, address)| *address);
        if let Some((listener, _)) = metrics_listener {
            let observed = Arc::clone(&state) as Arc<dyn Observed>;
            tasks.spawn(metrics::serve(
                listener,
                observed,
                recorder,
                stopped.clone(),
            ));
        }
        let incoming = limited(
            pmu_auth::incoming(control, tls),
            state.config.limits.control_connections_max,
        );
        let server = tokio::spawn(serve(
            Arc::clone(&state),
            distributor.clone(),
            incoming,
            stopped,
        ));
        tracing::info!(
            unit = state.unit_name(), %control_address, metrics_address = metrics_address.map(tracing::field::display), pools = state.pools.len(),
            data = ?data_addresses(&state), "unit started, locked until a manager initialises it"
        );
        Ok(UnitHandle {
            state,
            distributor,
            control_address,
            metrics_address,
            scrubber,
            stop,
            server,
            tasks,
        })
    }
}

impl UnitHandle {
    /// Where the control service listens.
    #[must_use]
    pub fn control_address(&self) -> SocketAddr {
        self.control_address
    }

    /// Where metrics and health are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where data connections come in, in the order of the configuration.
    #[must_use]
    pub fn data_addresses(&self) -> Vec<(Provider, String)> {
        data_addresses(&self.state)
    }

    /// What `/healthz` says.
    #[must_use]
    pub fn health(&self) -> Health {
        self.state.health()
    }

    /// Returns when the unit has stopped serving by itself, which only a failure makes it do.
    pub async fn failed(&mut self) -> String {
        match (&mut self.server).await {
            Ok(Ok(())) => "the control service ended".into(),
            Ok(Err(error)) => with_causes(&error),
            Err(error) => error.to_string(),
        }
    }

    /// Stops cleanly: no new requests, requests at work end, then sessions and data connections, then the pools are
    /// closed. What was durable stays so; nothing else needs to be written.
    pub async fn stop(self) {
        let Self {
            state,
            distributor,
            scrubber,
            stop,
            mut server,
            mut tasks,
            ..
        } = self;
        let within = state.config.limits.stop_within();
        let unit = state.unit_name().to_owned();
        let memories: Vec<_> = state
            .pools
            .iter()
            .map(|pool| Arc::downgrade(&pool.memory()))
            .collect();
        state.begin_stop();
        stop.send_replace(true);
        if let Some(scrubber) = scrubber {
            scrubber.stop().await;
        }
        if !server.is_finished() && tokio::time::timeout(within, &mut server).await.is_err() {
            tracing::warn!(
                within_ms = within.as_millis(),
                "control connections are cut: their requests did not end in time"
            );
            server.abort();
        }
        if let Some(distributor) = distributor {
            distributor.wait_idle(within).await;
        }
        if let Err(error) = tokio::task::spawn_blocking(move || state.close_everything()).await {
            tracing::error!(%error, "closing the unit failed");
        }
        tasks.shutdown().await;
        // Threads of data connections and requests that outlived their caller hold the pools a moment longer.
        let until = Instant::now() + within;
        while memories.iter().any(|memory| memory.strong_count() > 0) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tracing::info!(unit, "unit stopped");
    }
}

impl UnitState {
    fn close_everything(&self) {
        for session in self.sessions.live(None) {
            self.end_by_itself(&session, End::Failed);
        }
        for listener in &self.listeners {
            listener.fabric.shut_down();
        }
    }
}

pub(crate) async fn blocking<T, F>(work: F) -> Result<T, StartError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StartError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StartError::CutShort(error.to_string())),
    }
}

/// Reads the identity that is served under, and checks it. Blocks.
pub(crate) fn own_identity(section: &UnitSection) -> Result<Identity, StartError> {
    let identity = Identity::load(&section.identity).map_err(StartError::Identity)?;
    check_principal(&identity, &section.name)?;
    check_validity(&identity)?;
    Ok(identity)
}

/// Reads an identity of the role client, with which the unit acts at other units. Blocks.
///
/// # Errors
/// Why it can't be used.
pub(crate) fn client_identity(directory: &Path) -> Result<Identity, String> {
    let identity = Identity::load(directory).map_err(|error| error.to_string())?;
    let principal = identity.principal();
    match principal.role {
        Role::Client => Ok(identity),
        _ => Err(format!(
            "the certificate is of {principal}: issue one of the role client"
        )),
    }
}

/// Peers hold the certificate against the name that they know the unit by.
fn check_principal(identity: &Identity, name: &str) -> Result<(), StartError> {
    let principal = identity.principal();
    if principal.role == Role::Unit && principal.name.as_str() == name {
        return Ok(());
    }
    Err(StartError::OtherIdentity {
        name: name.to_owned(),
        certified: principal.name.to_string(),
        role: principal.role.to_string(),
    })
}

/// A unit whose certificate is over would run, and every peer would refuse it.
fn check_validity(identity: &Identity) -> Result<(), StartError> {
    let end = identity.not_after();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let left_s = end.unix_timestamp().saturating_sub_unsigned(now.as_secs());
    match left_s {
        ..0 => Err(StartError::Expired {
            not_after: end.to_string(),
        }),
        0..EXPIRES_SOON_S => {
            tracing::warn!(not_after = %end, "the unit's certificate ends soon: issue a new one and restart the unit");
            Ok(())
        }
        _ => Ok(()),
    }
}

pub(crate) async fn bind(
    key: &str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error: io::Error| listen_error(key, &address.to_string(), &error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn listen_error(key: &str, address: &str, error: &io::Error) -> StartError {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the address is in use; is the unit running already?".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address".to_owned()
        }
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    StartError::Listen {
        key: key.to_owned(),
        address: address.to_owned(),
        reason,
    }
}

type Events = mpsc::UnboundedReceiver<(usize, FabricEvent)>;

/// Opens listeners and pools. Blocks.
fn assemble(config: Config, clock: Arc<dyn Clock>) -> Result<(Arc<UnitState>, Events), StartError> {
    let section = config.scrub.as_ref();
    let scrubs = section.map(|section| Scrubs::open(section, &config.unit.name, clock));
    let scrubs = scrubs.transpose()?;
    // One event for each connection, and those are limited.
    let (sender, events) = mpsc::unbounded_channel();
    let mut listeners = Vec::new();
    for (index, section) in config.data.iter().enumerate() {
        let listener = listen(index, section)?;
        let sender = sender.clone();
        listener.fabric.observe(Box::new(move |event| {
            // Nobody listens any more when the unit stops.
            let _ = sender.send((index, event));
        }));
        listeners.push(listener);
    }
    let mut pools = Vec::new();
    for (index, section) in config.pool.iter().enumerate() {
        let key = format!("pool[{index}] ({})", section.name);
        pools.push(UnitPool::open(section).map_err(|source| StartError::Pool { key, source })?);
    }
    let state = UnitState::new(config, pools, listeners, scrubs);
    Ok((Arc::new(state), events))
}

pub(crate) fn listen(index: usize, section: &DataSection) -> Result<Listener, StartError> {
    let key = format!(
        "data[{index}].{}",
        if section.provider == Provider::SoftUnix {
            "path"
        } else {
            "listen"
        }
    );
    let path = section.path.as_ref().map(|path| path.display().to_string());
    let address = section
        .listen
        .map(|address| address.to_string())
        .or(path)
        .unwrap_or_default();
    let fabric: Result<Box<dyn UnitFabric>, FabricError> = match section.provider {
        Provider::SoftTcp => SoftUnit::listen_tcp(&address).map(|unit| Box::new(unit) as _),
        Provider::SoftUnix => SoftUnit::listen_unix(&address).map(|unit| Box::new(unit) as _),
        Provider::Verbs => {
            let options = VerbsUnitOptions {
                without_flush: !section.native_flush,
            };
            VerbsUnit::listen(&address, options).map(|unit| Box::new(unit) as _)
        }
    };
    let fabric = fabric.map_err(|error| match &error {
        FabricError::Io { source, .. } => listen_error(&key, &address, source),
        _ => StartError::Listen {
            key: key.clone(),
            address: address.clone(),
            reason: with_causes(&error),
        },
    })?;
    let bound = fabric.address();
    let address = match (&section.advertise, bound.rsplit_once(':')) {
        (Some(host), Some((_, port))) if host.contains(':') && !host.starts_with('[') => {
            format!("[{host}]:{port}")
        }
        (Some(host), Some((_, port))) => format!("{host}:{port}"),
        _ => bound,
    };
    Ok(Listener { fabric, address })
}

fn data_addresses(state: &UnitState) -> Vec<(Provider, String)> {
    state
        .listeners
        .iter()
        .map(|listener| (listener.fabric.provider(), listener.address.clone()))
        .collect()
}

async fn serve<S, I>(
    state: Arc<UnitState>,
    distributor: Option<Arc<Distributor>>,
    incoming: S,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error>
where
    S: tokio_stream::Stream<Item = io::Result<I>>,
    I: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected
        + Unpin
        + Send
        + 'static,
    I::ConnectInfo: Clone + Send + Sync + 'static,
{
    let requests_max = state.config.limits.control_requests_max;
    let control = Control::new(state);
    Server::builder()
        .concurrency_limit_per_connection(requests_max as usize)
        .max_concurrent_streams(requests_max)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(control.admin())
        .add_service(control.session())
        .add_optional_service(distributor.map(DistributorService::serve))
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the handle is gone: then nobody can stop the unit any more but the process's end.
            if stopped.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .await
}

/// Ends the sessions of data connections that have ended.
async fn watch_connections(state: Arc<UnitState>, mut events: Events) {
    while let Some((listener, event)) = events.recv().await {
        if let FabricEvent::Disconnected { connection, reason } = event {
            let state = Arc::clone(&state);
            let data = DataConnection {
                listener,
                connection,
            };
            // Not waited for: one region that is busy must not hold up the others.
            tokio::task::spawn_blocking(move || state.disconnected(data, &reason));
        }
    }
}

async fn sweep(state: Arc<UnitState>, stopped: watch::Receiver<bool>) {
    let mut interval = tokio::time::interval(SWEEP_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*stopped.borrow() {
        interval.tick().await;
        let state = Arc::clone(&state);
        if let Err(error) = tokio::task::spawn_blocking(move || state.sweep(Instant::now())).await {
            tracing::error!(%error, "looking for overdue sessions failed");
        }
    }
}
