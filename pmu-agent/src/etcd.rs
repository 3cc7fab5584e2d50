//! Leases of an etcd cluster, through its JSON [`gateway`]. The lease decides who may try; the units' fence is what makes it safe.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::config::Election;
use crate::decide::Event;
use crate::error::{AgentError, Result};
use crate::input::Input;

pub mod gateway;

use gateway::Gateway;

/// Between two attempts to get a key that somebody else holds.
const RETRY: Duration = Duration::from_millis(200);

/// What the thread is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Get the lease; answer when it is got, or when it can't be for longer than an old one lives.
    Acquire,
    /// Give it back.
    Release,
}

/// A cluster, by its endpoints.
pub struct Cluster {
    gateway: Gateway,
    election: Election,
    name: String,
}

/// A lease that holds the key.
#[derive(Debug)]
struct Lease {
    id: String,
    renewed: Instant,
}

impl Cluster {
    /// Reads the files that the configuration names; nothing is connected. `name` is what is written under the key. Blocks.
    ///
    /// # Errors
    /// [`AgentError::Refused`], naming the key of the configuration.
    pub fn new(election: &Election, name: &str) -> Result<Self> {
        Ok(Self {
            gateway: Gateway::new(election)?,
            election: election.clone(),
            name: name.to_owned(),
        })
    }

    /// The lease if it could be had; none if somebody else has it.
    fn try_acquire(&self) -> Result<Option<Lease>> {
        let renewed = Instant::now();
        let ttl = self.election.ttl_s.to_string();
        let granted = self
            .gateway
            .post("/v3/lease/grant", &json!({ "TTL": ttl }))?;
        let Some(id) = granted["ID"].as_str() else {
            return Err(AgentError::Refused(format!(
                "etcd granted no lease: {granted}"
            )));
        };
        let lease = Lease {
            id: id.to_owned(),
            renewed,
        };
        let key = STANDARD.encode(&self.election.key);
        let value = STANDARD.encode(&self.name);
        // Nobody has it, or an earlier life of this agent.
        for compare in [
            json!({ "key": key, "target": "CREATE", "create_revision": "0" }),
            json!({ "key": key, "target": "VALUE", "value": value }),
        ] {
            let put = json!({ "key": key, "value": value, "lease": lease.id });
            let body = json!({ "compare": [compare], "success": [{ "request_put": put }] });
            let answer = self.gateway.post("/v3/kv/txn", &body)?;
            if answer["succeeded"].as_bool() == Some(true) {
                return Ok(Some(lease));
            }
        }
        self.release(&lease);
        Ok(None)
    }

    /// False: it has run out.
    fn renew(&self, lease: &mut Lease) -> Result<bool> {
        let at = Instant::now();
        let answer = self
            .gateway
            .post("/v3/lease/keepalive", &json!({ "ID": lease.id }))?;
        let ttl = answer["result"]["TTL"].as_str();
        let alive = ttl.is_some_and(|ttl| ttl != "0");
        if alive {
            lease.renewed = at;
        }
        Ok(alive)
    }

    fn release(&self, lease: &Lease) {
        if let Err(error) = self
            .gateway
            .post("/v3/lease/revoke", &json!({ "ID": lease.id }))
        {
            tracing::warn!(%error, "the lease is not given back: it runs out by itself");
        }
    }

    /// Works until nobody gives orders any more.
    pub fn run(self, orders: &Receiver<Order>, inputs: &Sender<Input>) {
        let send = |held| inputs.send(Input::Event(Event::Lease { held })).is_ok();
        let ttl = Duration::from_secs(self.election.ttl_s.into());
        let mut lease: Option<Lease> = None;
        let mut wanted = false;
        loop {
            match orders.recv_timeout(ttl / 3) {
                Ok(Order::Acquire) => {
                    wanted = true;
                    lease = self.acquire(lease.take(), ttl);
                    send(lease.is_some());
                }
                Ok(Order::Release) => {
                    wanted = false;
                    if let Some(lease) = lease.take() {
                        self.release(&lease);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if lease.as_mut().is_some_and(|lease| !self.keep(lease, ttl)) {
                        lease = None;
                        send(false);
                    } else if wanted && lease.is_none() {
                        // One that was lost, of a program that goes on.
                        lease = self.try_acquire().unwrap_or(None);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn keep(&self, lease: &mut Lease, ttl: Duration) -> bool {
        match self.renew(lease) {
            Ok(alive) => alive,
            Err(error) => {
                tracing::warn!(%error, "the lease is not renewed");
                lease.renewed.elapsed() < ttl
            }
        }
    }

    fn acquire(&self, had: Option<Lease>, ttl: Duration) -> Option<Lease> {
        if let Some(mut lease) = had
            && self.renew(&mut lease).unwrap_or(false)
        {
            return Some(lease);
        }
        let deadline = Instant::now() + ttl + ttl / 2;
        let mut said = false;
        loop {
            match self.try_acquire() {
                Ok(Some(lease)) => return Some(lease),
                Ok(None) => {}
                Err(error) if said => tracing::debug!(%error, "no lease"),
                Err(error) => {
                    tracing::error!(%error, "etcd gives no lease: nothing is taken over without one");
                    said = true;
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(RETRY);
        }
    }
}
