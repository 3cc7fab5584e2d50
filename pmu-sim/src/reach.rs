//! The way to simulated units, for regions that are spread over several.

use std::sync::Arc;
use std::time::Instant;

use pmu_client::rebuild::{Administer, NewMember};
use pmu_client::{ClientError, FenceReport, OpenOptions, Parts, Reach, ReachedUnit, RegionInfo};
use pmu_format::{Member, Membership, Mode, RegionId, SetGeometry};
use pmu_proto::v1::SessionRole;

use crate::context::{Context, Wish};

/// See the module.
pub(crate) struct SimReach(pub(crate) Context);

impl SimReach {
    /// For one program.
    pub(crate) fn of(context: &Context) -> Arc<Self> {
        Arc::new(Self(context.clone()))
    }

    fn index_of(&self, member: &Member) -> Result<usize, ClientError> {
        let name = member.unit.as_str();
        let found = self
            .0
            .with(|state| state.units.iter().position(|unit| *unit.name == *name));
        found.ok_or_else(|| ClientError::Unreachable {
            unit: name.to_owned(),
            reason: "there is no such unit".into(),
        })
    }
}

impl Administer for SimReach {
    /// As the real unit lays a member's region out.
    fn create_member(&self, member: &Member, new: &NewMember<'_>) -> Result<(), ClientError> {
        let unit = self.index_of(member)?;
        let length = match new.mode {
            Mode::Append => new.length_bytes,
            Mode::Overwrite => SetGeometry::region_bytes_for(new.capacity_bytes, new.sets_kept)
                .map_err(|error| ClientError::Invalid(error.to_string()))?,
        };
        let mut info = self.0.with(|state| {
            let id = RegionId(
                state
                    .random
                    .bits()
                    .to_le_bytes()
                    .repeat(2)
                    .try_into()
                    .unwrap_or([0; 16]),
            );
            let address = state.units[unit].info.address;
            RegionInfo::new(
                new.region,
                id,
                new.mode,
                address,
                length.next_multiple_of(4096),
            )
        });
        info.need = new.need;
        info.sets_kept = new.sets_kept;
        info.capacity_bytes = new.capacity_bytes;
        info.membership = Some(Arc::new(new.membership.clone()));
        self.0.create_member(unit, info)
    }

    fn set_membership(
        &self,
        member: &Member,
        _region: &str,
        expected: u64,
        membership: &Membership,
    ) -> Result<(), ClientError> {
        let unit = self.index_of(member)?;
        self.0
            .set_membership(unit, expected, Arc::new(membership.clone()))
    }
}

impl Reach for SimReach {
    fn unit(&self, member: &Member) -> Result<Box<dyn ReachedUnit>, ClientError> {
        Ok(Box::new(SimUnit {
            context: self.0.clone(),
            unit: self.index_of(member)?,
            name: member.unit.to_string(),
        }))
    }

    fn pause(&self, time: std::time::Duration) {
        self.0.sleep(time);
    }

    /// One after the other, in any order.
    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        let mut left: Vec<usize> = (0..count).collect();
        while !left.is_empty() {
            let next = self.0.draw(|random| random.below(left.len() as u64));
            work(left.swap_remove(next as usize));
        }
    }

    /// One group or all: sets are small here.
    fn window_bytes(&self) -> u64 {
        self.0.draw(|random| random.pick(&[0, 32 << 20]))
    }

    /// Before it returns: the program has one turn, and goes on with it.
    fn beside(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn random(&self) -> Result<[u8; 16], ClientError> {
        let (first, second) = self.0.draw(|random| (random.bits(), random.bits()));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&second.to_le_bytes());
        Ok(bytes)
    }
}

struct SimUnit {
    context: Context,
    unit: usize,
    name: String,
}

impl ReachedUnit for SimUnit {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self, _region: &str) -> Result<RegionInfo, ClientError> {
        self.context.describe(self.unit)
    }

    fn fence(&self, _region: &str) -> Result<FenceReport, ClientError> {
        self.context.fence(self.unit)
    }

    fn open(
        &self,
        _region: &str,
        role: SessionRole,
        mode: Mode,
        options: &OpenOptions,
    ) -> Result<Parts, ClientError> {
        let clears = role == SessionRole::Backup && mode == Mode::Append;
        self.context.open(self.unit, wish(role, clears, options))
    }

    fn open_log_backup(
        &self,
        _region: &str,
        clear: bool,
        options: &OpenOptions,
    ) -> Result<Parts, ClientError> {
        let wish = wish(SessionRole::Backup, clear, options);
        self.context.open(self.unit, wish)
    }
}

const fn wish(role: SessionRole, clears: bool, options: &OpenOptions) -> Wish {
    Wish {
        role,
        clears,
        staging_bytes: options.staging_bytes,
        goes_on_from: options.goes_on_from,
    }
}
