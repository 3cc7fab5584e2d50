//! The way to the units of a spread region: the network, or a simulator's.

use pmu_auth::Identity;
use pmu_format::{Member, Mode};
use pmu_proto::v1::SessionRole;

use crate::error::{ClientError, Result};
use crate::options::{ConnectOptions, OpenOptions};
use crate::region::{Parts, RegionInfo};
use crate::unit::{FenceReport, Purpose, Unit};

/// The way to the units of a spread region. [`Network`] is the one of programs; a simulator puts its own in its place.
pub trait Reach: Send + Sync {
    /// Connects to a member's control service, and makes sure that it is the member.
    ///
    /// # Errors
    /// As [`Unit::connect`].
    fn unit(&self, member: &Member) -> Result<Box<dyn ReachedUnit>>;

    /// Calls `work` with 0 to `count` - 1, all at one time where that helps, and returns when each has ended.
    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync));

    /// Does something beside the caller, who goes on meanwhile: on a thread of its own. A simulator may do it before it returns.
    fn beside(&self, work: Box<dyn FnOnce() + Send>) {
        let spawned = std::thread::Builder::new()
            .name("pmu-rejoin".into())
            .spawn(work);
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to connect to a missing unit");
        }
    }

    /// The time by which attempts to connect again are spaced.
    fn now(&self) -> std::time::Instant {
        std::time::Instant::now()
    }

    /// How many threads of one program are worth starting for what one can do as well, at least 1.
    fn threads(&self) -> usize {
        1
    }

    /// Bytes of a set that are read at one time, at least one group: many enough that no unit waits for the others.
    fn window_bytes(&self) -> u64 {
        32 << 20
    }

    /// Lets some time pass.
    fn pause(&self, time: std::time::Duration) {
        std::thread::sleep(time);
    }

    /// 16 random bytes that nobody else has.
    ///
    /// # Errors
    /// The system has no randomness.
    fn random(&self) -> Result<[u8; 16]>;
}

/// A unit's control service, as far as spread regions need it.
pub trait ReachedUnit: Send + Sync {
    /// The unit's name.
    fn name(&self) -> &str;

    /// What the unit tells of a region.
    ///
    /// # Errors
    /// As [`Unit::describe`].
    fn describe(&self, region: &str) -> Result<RegionInfo>;

    /// Takes the right to write from whoever has it.
    ///
    /// # Errors
    /// As [`Unit::fence`].
    fn fence(&self, region: &str) -> Result<FenceReport>;

    /// Opens its member of the region. A backup of a log may clear it.
    ///
    /// # Errors
    /// As [`Unit::open_sets_primary`].
    fn open(
        &self,
        region: &str,
        role: SessionRole,
        mode: Mode,
        options: &OpenOptions,
    ) -> Result<Parts>;

    /// Opens its member of a log for reading, with or without the right to clear it: one backup at a time has that.
    ///
    /// # Errors
    /// As [`Unit::open_log_backup`].
    fn open_log_backup(&self, region: &str, clear: bool, options: &OpenOptions) -> Result<Parts>;
}

/// Units on the network.
#[derive(Debug, Clone)]
pub struct Network {
    identity: Identity,
    options: ConnectOptions,
}

impl Network {
    /// Units are reached as `identity`. `options.unit_name` is not used: each must be the one that the membership names.
    #[must_use]
    pub fn new(identity: &Identity, options: &ConnectOptions) -> Self {
        Self {
            identity: identity.clone(),
            options: options.clone(),
        }
    }
}

impl Reach for Network {
    fn unit(&self, member: &Member) -> Result<Box<dyn ReachedUnit>> {
        let options = ConnectOptions {
            unit_name: Some(member.unit.to_string()),
            ..self.options.clone()
        };
        let unit = Unit::connect(&member.address, &self.identity, &options)?;
        Ok(Box::new(unit))
    }

    fn at_once(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for index in 0..count {
                scope.spawn(move || work(index));
            }
        });
    }

    fn threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }

    fn random(&self) -> Result<[u8; 16]> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| ClientError::Invalid(error.to_string()))?;
        Ok(bytes)
    }
}

impl ReachedUnit for Unit {
    fn name(&self) -> &str {
        self.name()
    }

    fn describe(&self, region: &str) -> Result<RegionInfo> {
        self.describe(region)
    }

    fn fence(&self, region: &str) -> Result<FenceReport> {
        self.fence(region)
    }

    fn open(
        &self,
        region: &str,
        role: SessionRole,
        mode: Mode,
        options: &OpenOptions,
    ) -> Result<Parts> {
        let purpose = Purpose {
            role,
            clear: role == SessionRole::Backup && mode == Mode::Append,
            mode,
            member: true,
        };
        self.open_parts(region, purpose, options)
    }

    fn open_log_backup(&self, region: &str, clear: bool, options: &OpenOptions) -> Result<Parts> {
        let purpose = Purpose {
            role: SessionRole::Backup,
            clear,
            mode: Mode::Append,
            member: true,
        };
        self.open_parts(region, purpose, options)
    }
}
