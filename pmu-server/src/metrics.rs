//! What the unit counts, and the HTTP listener that shows it: `/metrics` and `/healthz`.
//!
//! The names below are the whole list; `docs/operations.md` explains them. Without a recorder (in tests that run a unit
//! in-process) counting does nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use pmu_fabric::Provider;
use pmu_proto::v1::{Reason, SessionRole};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Sessions by `role`.
pub const SESSIONS: &str = "pmu_sessions";
/// Regions in all pools.
pub const REGIONS: &str = "pmu_regions";
/// Bytes in which regions could be made, by `pool`.
pub const POOL_FREE: &str = "pmu_pool_free_bytes";
/// Length by `pool`.
pub const POOL_LENGTH: &str = "pmu_pool_length_bytes";
/// Fences.
pub const FENCES: &str = "pmu_fences_total";
/// From the arrival of a fence to the last invalidation.
pub const FENCE_DURATION: &str = "pmu_fence_duration_seconds";
/// Refused requests by `reason`.
pub const REFUSED: &str = "pmu_refused_requests_total";
/// Data connections by `provider`.
pub const DATA_CONNECTIONS: &str = "pmu_data_connections";
/// Processor time that the unit has used, user and system.
pub const CPU_SECONDS: &str = "pmu_cpu_seconds";
/// 1 while the unit is locked.
pub const LOCKED: &str = "pmu_locked";
/// Sets that were distributed.
pub const DISTRIBUTED_SETS: &str = "pmu_distributed_sets_total";
/// Records that were given to units for programs.
pub const DISTRIBUTED_RECORDS: &str = "pmu_distributed_records_total";
/// Bytes of sets and records that were distributed.
pub const DISTRIBUTED_BYTES: &str = "pmu_distributed_bytes_total";
/// Programs whose sets or records are distributed now.
pub const DISTRIBUTOR_SESSIONS: &str = "pmu_distributor_sessions";
/// Bytes that scrubs of this unit have read.
pub const SCRUBBED_BYTES: &str = "pmu_scrubbed_bytes_total";
/// Scrubs of regions by `result`: sound, damaged, repaired, failed.
pub const SCRUBS: &str = "pmu_scrubs_total";
/// Damage that scrubs found, by `state`: damaged (all), repaired, unreadable (members).
pub const SCRUB_FINDINGS: &str = "pmu_scrub_findings_total";
/// 1 while a region is scrubbed.
pub const SCRUB_RUNNING: &str = "pmu_scrub_running";
/// Since the last scrub of the region that has waited longest.
pub const SCRUB_OLDEST: &str = "pmu_scrub_oldest_seconds";
/// 1 while the pool by `pool` has failed.
pub const POOL_FAILED: &str = "pmu_pool_failed";

/// HTTP connections at one time; for one more the oldest is closed.
const CONNECTIONS_MAX: usize = 32;
/// How long a peer may take to send its request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// How long one connection may stay.
const CONNECTION_WITHIN: Duration = Duration::from_secs(60);
/// How often the recorder tidies its histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What `/healthz` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// False: 503.
    pub serving: bool,
    /// For people and for scripts: `locked`, `unlocked`, or what has failed.
    pub text: String,
}

/// Whom the listener asks when somebody looks.
pub trait Observed: Send + Sync {
    /// The unit's health. Doesn't block.
    fn health(&self) -> Health;
    /// Sets the gauges to what is true now. Doesn't block for longer than a lock is held.
    fn refresh(&self);
}

/// Starts counting for the whole process; called by `main` alone.
///
/// # Errors
/// A recorder was installed before.
pub fn set_up() -> Result<PrometheusHandle, BuildError> {
    let buckets = [
        0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5,
        1.0, 5.0,
    ];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(FENCE_DURATION.into()), &buckets)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    metrics::describe_gauge!(SESSIONS, "Sessions by role");
    metrics::describe_gauge!(REGIONS, "Regions in all pools");
    metrics::describe_gauge!(POOL_FREE, "Bytes in which regions could be made");
    metrics::describe_gauge!(POOL_LENGTH, "Length of the pool");
    metrics::describe_gauge!(POOL_FAILED, "1 while the pool has failed");
    metrics::describe_counter!(FENCES, "Fences");
    metrics::describe_histogram!(
        FENCE_DURATION,
        "From the arrival of a fence to the last invalidation"
    );
    metrics::describe_counter!(REFUSED, "Refused requests by reason");
    metrics::describe_gauge!(DATA_CONNECTIONS, "Data connections by provider");
    metrics::describe_gauge!(
        CPU_SECONDS,
        "Processor time that the unit has used, user and system"
    );
    metrics::describe_counter!(DISTRIBUTED_SETS, "Sets that were distributed");
    metrics::describe_counter!(DISTRIBUTED_RECORDS, "Records that were distributed");
    metrics::describe_counter!(
        DISTRIBUTED_BYTES,
        "Bytes of sets and records that were distributed"
    );
    metrics::describe_gauge!(
        DISTRIBUTOR_SESSIONS,
        "Programs whose sets or records are distributed now"
    );
    metrics::describe_counter!(SCRUBBED_BYTES, "Bytes that scrubs have read");
    metrics::describe_counter!(SCRUBS, "Scrubs of regions by result");
    metrics::describe_counter!(
        SCRUB_FINDINGS,
        "Damage that scrubs found, by what became of it"
    );
    metrics::describe_gauge!(SCRUB_RUNNING, "1 while a region is scrubbed");
    metrics::describe_gauge!(
        SCRUB_OLDEST,
        "Since the last scrub of the region that has waited longest"
    );
    metrics::describe_gauge!(LOCKED, "1 while the unit is locked");
}

/// Counts a refusal.
pub fn count_refusal(reason: Reason) {
    metrics::counter!(REFUSED, "reason" => pmu_proto::reason::name(reason)).increment(1);
}

/// Counts a fence and how long it took.
pub fn count_fence(took: Duration) {
    metrics::counter!(FENCES).increment(1);
    metrics::histogram!(FENCE_DURATION).record(took.as_secs_f64());
}

/// Counts a set that was distributed.
pub fn count_distributed(bytes: u64) {
    metrics::counter!(DISTRIBUTED_SETS).increment(1);
    metrics::counter!(DISTRIBUTED_BYTES).increment(bytes);
}

/// Counts bytes that a scrub has read.
pub fn count_scrubbed(bytes: u64) {
    metrics::counter!(SCRUBBED_BYTES).increment(bytes);
}

/// Counts the scrub of a region: sound, damaged, repaired, failed.
pub fn count_scrub(result: &'static str) {
    metrics::counter!(SCRUBS, "result" => result).increment(1);
}

/// Counts what a scrub found: what was damaged, how much of it was repaired, and members that could not be read.
pub fn count_damage(damaged: u64, repaired: u64, unreadable: u64) {
    for (state, count) in [
        ("damaged", damaged),
        ("repaired", repaired),
        ("unreadable", unreadable),
    ] {
        metrics::counter!(SCRUB_FINDINGS, "state" => state).increment(count);
    }
}

/// Sets whether a region is scrubbed, and how long the one has waited that was not for the longest time.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn set_scrubs(is_running: bool, oldest_s: u64) {
    metrics::gauge!(SCRUB_RUNNING).set(f64::from(u8::from(is_running)));
    metrics::gauge!(SCRUB_OLDEST).set(oldest_s as f64);
}

/// Counts records that were given to units for a program.
pub fn count_distributed_records(records: u64, bytes: u64) {
    metrics::counter!(DISTRIBUTED_RECORDS).increment(records);
    metrics::counter!(DISTRIBUTED_BYTES).increment(bytes);
}

/// Sets the number of programs whose sets or records are distributed.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; far fewer than 2^52"
)]
pub fn set_distributor_sessions(count: usize) {
    metrics::gauge!(DISTRIBUTOR_SESSIONS).set(count as f64);
}

/// Sets the number of sessions in a role.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; far fewer than 2^52"
)]
pub fn set_sessions(role: SessionRole, count: usize) {
    let role = match role {
        SessionRole::Primary => "primary",
        SessionRole::Backup => "backup",
        SessionRole::Reader => "reader",
        SessionRole::Unspecified => return,
    };
    metrics::gauge!(SESSIONS, "role" => role).set(count as f64);
}

/// Sets the number of data connections of a provider.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; far fewer than 2^52"
)]
pub fn set_data_connections(provider: Provider, count: usize) {
    metrics::gauge!(DATA_CONNECTIONS, "provider" => provider.name()).set(count as f64);
}

/// Sets what is known of a pool.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn set_pool(name: &str, free_bytes: u64, length_bytes: u64, failed: bool) {
    metrics::gauge!(POOL_FREE, "pool" => name.to_owned()).set(free_bytes as f64);
    metrics::gauge!(POOL_LENGTH, "pool" => name.to_owned()).set(length_bytes as f64);
    metrics::gauge!(POOL_FAILED, "pool" => name.to_owned()).set(f64::from(u8::from(failed)));
}

/// Sets what is known of the unit as a whole.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; far fewer than 2^52"
)]
pub fn set_unit(locked: bool, regions: usize) {
    metrics::gauge!(LOCKED).set(f64::from(u8::from(locked)));
    metrics::gauge!(REGIONS).set(regions as f64);
    set_processor_time();
}

/// Sets the processor time that this process has used.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn set_processor_time() {
    if let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID) {
        metrics::gauge!(CPU_SECONDS).set(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9);
    }
}

/// Serves `/metrics` (if there is a recorder) and `/healthz` until `stop` becomes true.
pub async fn serve(
    listener: TcpListener,
    observed: Arc<dyn Observed>,
    recorder: Option<PrometheusHandle>,
    mut stop: watch::Receiver<bool>,
) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection for metrics failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = upkeep.tick() => {
                if let Some(recorder) = &recorder {
                    recorder.run_upkeep();
                }
                continue;
            }
            () = async { drop(stop.wait_for(|stop| *stop).await) } => return,
        };
        // Not the newest: whoever looks whether the unit is alive must get through beside those who say nothing.
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let (observed, recorder) = (Arc::clone(&observed), recorder.clone());
        let served = tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (observed, recorder) = (Arc::clone(&observed), recorder.clone());
                // Looking may wait for a lock that is held while something becomes durable.
                tokio::task::spawn_blocking(move || {
                    answer(&request, observed.as_ref(), recorder.as_ref())
                })
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .serve_connection(TokioIo::new(socket), service);
            // A peer that breaks off or is slow is no concern of anybody's.
            let _ = tokio::time::timeout(CONNECTION_WITHIN, connection).await;
        });
        open.push_back(served.abort_handle());
    }
}

fn answer(
    request: &Request<Incoming>,
    observed: &dyn Observed,
    recorder: Option<&PrometheusHandle>,
) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path(), recorder) {
        (&Method::GET | &Method::HEAD, "/metrics", Some(recorder)) => {
            observed.refresh();
            (StatusCode::OK, recorder.render())
        }
        (&Method::GET | &Method::HEAD, "/healthz", _) => {
            let health = observed.health();
            let status = if health.serving {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            (status, format!("{}\n", health.text))
        }
        _ => (
            StatusCode::NOT_FOUND,
            "there are /metrics and /healthz\n".into(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}
