//! A manager of spread regions, for tests.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests, each of which uses a part"
)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pmu_client::rebuild::{
    Administer, NewMember, RebuildOptions, Rebuilt, Replacement, rebuild, replace,
};
use pmu_client::scrub::Scrubbed;
use pmu_client::{ClientError, ConnectOptions, Network, OpenOptions, RegionInfo, Unit};
use pmu_format::{Member, Membership, Mode};
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::{self};

use crate::support::{APPEND, CLEAR, PATIENCE, READ, WRITE, name};
use crate::units::{Units, unit};

/// A manager, who may die before a call or before its answer.
pub struct Boss<'a> {
    pub units: &'a Units,
    region: &'static str,
    calls: AtomicUsize,
    /// At which call, and whether before its answer (or before itself).
    pub dies_at: Option<(usize, bool)>,
    pub rate_bytes_per_s: Option<u64>,
}

impl<'a> Boss<'a> {
    pub fn new(units: &'a Units, region: &'static str) -> Self {
        Self {
            units,
            region,
            calls: AtomicUsize::new(0),
            dies_at: None,
            rate_bytes_per_s: None,
        }
    }

    fn index(&self, member: &Member) -> usize {
        (0..)
            .find(|index| unit(*index) == member.unit.as_str())
            .unwrap()
    }

    fn around(&self, call: impl FnOnce() -> Result<(), ClientError>) -> Result<(), ClientError> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        match self.dies_at {
            Some((at, true)) if at == number => {
                call()?;
                return Err(ClientError::Interrupted);
            }
            Some((at, _)) if at <= number => return Err(ClientError::Interrupted),
            _ => {}
        }
        call()
    }

    pub fn info(&self, seeds: &[usize]) -> RegionInfo {
        let identity = self.units.identity("boss", pmu_auth::Role::Manager);
        let described = seeds.iter().find_map(|seed| {
            let address = self.units.addresses.get(*seed)?;
            let unit = Unit::connect(address, &identity, &ConnectOptions::default()).ok()?;
            unit.describe(self.region).ok()
        });
        described.unwrap()
    }

    pub fn network(&self) -> Arc<Network> {
        let identity = self.units.identity("boss", pmu_auth::Role::Manager);
        let options = ConnectOptions::with_timeout(PATIENCE);
        Arc::new(Network::new(&identity, &options))
    }

    pub fn member(&self, index: usize) -> Member {
        Member {
            unit: name(&unit(index)),
            address: self.units.addresses[index].clone(),
        }
    }

    pub fn replacement(&self, old: usize, new: usize) -> Replacement {
        Replacement {
            old: unit(old),
            old_address: Some(self.units.addresses[old].clone()),
            new: self.member(new),
            old_is_lost: false,
        }
    }

    pub fn replace(&self, old: usize, new: usize) -> Result<Rebuilt, ClientError> {
        self.replace_as(&self.replacement(old, new), &mut |_| {
            ControlFlow::Continue(())
        })
    }

    pub fn replace_as(
        &self,
        replacement: &Replacement,
        on_progress: &mut pmu_client::OnProgress<'_>,
    ) -> Result<Rebuilt, ClientError> {
        let mut on_progress = |progress: &_| on_progress(progress);
        let options = RebuildOptions {
            open: OpenOptions::new(),
            rate_bytes_per_s: self.rate_bytes_per_s,
            on_progress: &mut on_progress,
        };
        let info = self.info(&[0, 1, 2, 3, 4]);
        replace(&info, self.network(), self, replacement, options)
    }

    pub fn rebuild(&self, unit: Option<&str>) -> Result<Rebuilt, ClientError> {
        let mut on_progress = |_: &_| ControlFlow::Continue(());
        let options = RebuildOptions {
            open: OpenOptions::new(),
            rate_bytes_per_s: self.rate_bytes_per_s,
            on_progress: &mut on_progress,
        };
        let info = self.info(&[0, 1, 2, 3, 4]);
        rebuild(&info, self.network(), self, unit, options)
    }
}

impl Boss<'_> {
    pub fn scrub(&self, repair: bool) -> Scrubbed {
        let mut on_progress = |_: &_| ControlFlow::Continue(());
        let options = RebuildOptions {
            open: OpenOptions::new(),
            rate_bytes_per_s: self.rate_bytes_per_s,
            on_progress: &mut on_progress,
        };
        let info = self.info(&[0, 1, 2, 3, 4]);
        pmu_client::scrub::scrub(&info, self.network(), self, repair, options).unwrap()
    }
}

fn refusal(status: &tonic::Status) -> ClientError {
    let reason = pmu_proto::reason::of(status).map_or("", pmu_proto::reason::name);
    ClientError::Refused {
        unit: "of the test".into(),
        reason,
        message: status.message().into(),
    }
}

impl Administer for Boss<'_> {
    fn create_member(&self, member: &Member, new: &NewMember<'_>) -> Result<(), ClientError> {
        let is_log = new.mode == Mode::Append;
        let rights = match is_log {
            true => READ | APPEND | CLEAR,
            false => READ | WRITE,
        };
        let grant = |principal: &str| v1::Grant {
            principal: principal.into(),
            rights,
        };
        let request = v1::CreateRegionRequest {
            name: new.region.into(),
            mode: match is_log {
                true => v1::Mode::Append,
                false => v1::Mode::Overwrite,
            }
            .into(),
            need: v1::Need::Durable.into(),
            sets_kept: new.sets_kept,
            room: Some(match is_log {
                true => Room::SizeBytes(new.length_bytes),
                false => Room::CapacityBytes(new.capacity_bytes),
            }),
            grants: vec![grant("app"), grant("backup"), grant("boss")],
            attributes: new.membership.encode().unwrap(),
            ..Default::default()
        };
        self.around(|| {
            let created = self
                .units
                .admin(self.index(member), |mut admin| async move {
                    admin.create_region(request).await
                });
            created.map(drop).map_err(|status| refusal(&status))
        })
    }

    fn set_membership(
        &self,
        member: &Member,
        region: &str,
        expected: u64,
        membership: &Membership,
    ) -> Result<(), ClientError> {
        let request = v1::SetMembershipRequest {
            region: region.into(),
            expected_generation: expected,
            attributes: membership.encode().unwrap(),
        };
        self.around(|| {
            let set = self
                .units
                .admin(self.index(member), |mut admin| async move {
                    admin.set_membership(request).await
                });
            set.map(drop).map_err(|status| refusal(&status))
        })
    }
}
