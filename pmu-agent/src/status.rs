//! How an agent is: for people, as JSON, as metrics.

use std::time::Instant;

use metrics::gauge;
use pmu_client::agent::SnapshotReport;
use serde::{Deserialize, Serialize};

use crate::decide::{Machine, Standing};

/// What the threads know, each its part.
#[derive(Debug, Default)]
pub struct Shared {
    /// When a beat was seen last.
    pub beat_at: Option<Instant>,
    /// Number of the newest committed set.
    pub newest_set: u64,
    /// Number of the set that this standby holds.
    pub held_set: u64,
    /// Records behind it that this standby holds.
    pub tail_records: u64,
    /// Their bytes.
    pub tail_bytes: u64,
    /// This standby has come to the log's end.
    pub caught_up: bool,
    /// Bytes of the log that were not read when it was looked at last.
    pub lag_bytes: u64,
    /// Why the regions are not followed.
    pub follow_error: Option<String>,
    /// Of the last takeover.
    pub fence_us: Option<u64>,
    /// Of the last takeover.
    pub recovery_us: Option<u64>,
    /// Of the last snapshot.
    pub snapshot: Option<SnapshotReport>,
    /// Process id of the program.
    pub pid: Option<u32>,
    /// When the peer was heard last, and what it said.
    pub peer: Option<(Instant, Standing, u64)>,
    /// Takeovers by this agent.
    pub takeovers: u64,
    /// The last events, in words.
    pub events: Vec<String>,
}

/// How an agent is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its principal.
    pub name: String,
    /// What it tells its peer.
    pub role: Standing,
    /// What it is doing, in a word.
    pub phase: String,
    /// The epoch that it leads in or has seen; over several units the term.
    pub epoch: u64,
    /// Process id of its program.
    pub pid: Option<u32>,
    /// Committed sets that a standby doesn't hold yet.
    pub lag_sets: u64,
    /// Bytes of the log that a standby has not read yet, as it looked last.
    pub lag_bytes: u64,
    /// It has read all that there is.
    pub caught_up: bool,
    /// Number of the newest set that it knows of.
    pub newest_set: u64,
    /// Records that would be handed over behind the set.
    pub tail_records: u64,
    /// Since the last beat that was seen.
    pub since_beat_ms: Option<u64>,
    /// Since the peer was heard.
    pub since_peer_ms: Option<u64>,
    /// How the peer stands.
    pub peer: Option<Standing>,
    /// The last snapshot.
    pub snapshot: Option<SnapshotReport>,
    /// The last takeover's fences, in microseconds.
    pub fence_us: Option<u64>,
    /// The last takeover's recovery, in microseconds.
    pub recovery_us: Option<u64>,
    /// How often this agent took over.
    pub takeovers: u64,
    /// Why the regions are not followed, if they aren't.
    pub follow_error: Option<String>,
    /// The last events.
    pub events: Vec<String>,
}

fn since_ms(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Status {
    /// Of a machine and what its threads know.
    #[must_use]
    pub fn of(name: &str, machine: &Machine, shared: &Shared) -> Self {
        let phase = format!("{:?}", machine.phase());
        let phase = phase.split([' ', '{']).next().unwrap_or_default();
        Self {
            name: name.to_owned(),
            role: machine.standing(),
            phase: phase.to_lowercase(),
            epoch: machine.epoch(),
            pid: shared.pid,
            lag_sets: match machine.standing() {
                standing if standing.leads() => 0,
                _ => shared.newest_set.saturating_sub(shared.held_set),
            },
            lag_bytes: shared.lag_bytes,
            caught_up: shared.caught_up,
            newest_set: shared.newest_set,
            tail_records: shared.tail_records,
            since_beat_ms: shared.beat_at.map(since_ms),
            since_peer_ms: shared.peer.map(|(at, ..)| since_ms(at)),
            peer: shared.peer.map(|(_, standing, _)| standing),
            snapshot: shared.snapshot.clone(),
            fence_us: shared.fence_us,
            recovery_us: shared.recovery_us,
            takeovers: shared.takeovers,
            follow_error: shared.follow_error.clone(),
            events: shared.events.clone(),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let number = |value: Option<u64>, unit: &str| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value} {unit}"))
        };
        let peer = self
            .peer
            .map_or_else(|| "-".to_owned(), |peer| peer.to_string());
        let snapshot = self.snapshot.as_ref().map_or_else(
            || "-".to_owned(),
            |last| match &last.error {
                Some(error) => format!("failed: {error}"),
                None => format!(
                    "set {}, {} bytes, pause {} us, {} us to its receipt",
                    last.set, last.bytes, last.pause_us, last.took_us
                ),
            },
        );
        let mut text = format!(
            "agent            {}\nrole             {} ({})\nepoch            {}\nprogram          {}\nlag              {} sets, {} bytes{}\nlast snapshot    {snapshot}\nheartbeat        {} ago\npeer             {peer}, heard {} ago\nlast takeover    fence {}, recovery {}",
            self.name,
            self.role,
            self.phase,
            self.epoch,
            self.pid
                .map_or_else(|| "-".to_owned(), |pid| format!("process {pid}")),
            self.lag_sets,
            self.lag_bytes,
            if self.caught_up { ", caught up" } else { "" },
            number(self.since_beat_ms, "ms"),
            number(self.since_peer_ms, "ms"),
            number(self.fence_us, "us"),
            number(self.recovery_us, "us"),
        );
        if let Some(error) = &self.follow_error {
            text.push_str("\nnot following    ");
            text.push_str(error);
        }
        for event in self.events.iter().rev().take(5).rev() {
            text.push_str("\n  ");
            text.push_str(event);
        }
        text
    }

    /// Shows the same as metrics. Does nothing without a recorder.
    pub fn show(&self) {
        let leads = self.role.leads();
        gauge!("pmu_agent_primary").set(if leads { 1.0 } else { 0.0 });
        gauge!("pmu_agent_epoch").set(self.epoch as f64);
        gauge!("pmu_agent_lag_sets").set(self.lag_sets as f64);
        gauge!("pmu_agent_lag_bytes").set(self.lag_bytes as f64);
        gauge!("pmu_agent_tail_records").set(self.tail_records as f64);
        gauge!("pmu_agent_takeovers").set(self.takeovers as f64);
        if let Some(since) = self.since_beat_ms {
            gauge!("pmu_agent_since_beat_seconds").set(since as f64 / 1e3);
        }
        if let Some(since) = self.since_peer_ms {
            gauge!("pmu_agent_since_peer_seconds").set(since as f64 / 1e3);
        }
        if let Some(last) = &self.snapshot {
            gauge!("pmu_agent_snapshot_pause_seconds").set(last.pause_us as f64 / 1e6);
            gauge!("pmu_agent_snapshot_failed").set(f64::from(u8::from(last.error.is_some())));
        }
        if let Some(fence) = self.fence_us {
            gauge!("pmu_agent_fence_seconds").set(fence as f64 / 1e6);
        }
    }
}
