//! The way to simulated units, for regions that are spread over several.

use std::sync::Arc;
use std::time::Instant;

use pmu_client::{ClientError, FenceReport, OpenOptions, Parts, Reach, ReachedUnit, RegionInfo};
use pmu_format::{Member, Mode};
use pmu_proto::v1::SessionRole;

use crate::context::{Context, Wish};

/// See the module.
pub(crate) struct SimReach(pub(crate) Context);

impl SimReach {
    /// For one program.
    pub(crate) fn of(context: &Context) -> Arc<Self> {
        Arc::new(Self(context.clone()))
    }
}

impl Reach for SimReach {
    fn unit(&self, member: &Member) -> Result<Box<dyn ReachedUnit>, ClientError> {
        let name = member.unit.as_str();
        let found = self
            .0
            .with(|state| state.units.iter().position(|unit| *unit.name == *name));
        match found {
            Some(unit) => Ok(Box::new(SimUnit {
                context: self.0.clone(),
                unit,
                name: name.to_owned(),
            })),
            None => Err(ClientError::Unreachable {
                unit: name.to_owned(),
                reason: "there is no such unit".into(),
            }),
        }
    }

    /// One after the other, in any order.
    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        let mut left: Vec<usize> = (0..count).collect();
        while !left.is_empty() {
            let next = self.0.draw(|random| random.below(left.len() as u64));
            work(left.swap_remove(next as usize));
        }
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
    }
}
