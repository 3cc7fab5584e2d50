//! An open region: its data connection, and what is known of it. Errors of the fabric get their meaning here.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use pmu_fabric::{AccessWindow, CompletionStatus, Connection, Provider};
use pmu_format::{BEAT_OFFSET, Epoch, Membership, Mode, Need, RegionId, Rights, VirtualAddress};
use pmu_proto::v1;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::beat::Heart;
use crate::error::{Attempt, ClientError, Result};
use crate::link::{Link, LinkError};
use crate::options::Timeouts;
use crate::receipt::{Receipt, Stored, UnitProof};

/// What a principal may know of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionInfo {
    /// Its name, unique in the unit.
    pub name: Arc<str>,
    /// Its id, random and never reused.
    pub id: RegionId,
    /// How it keeps what is written.
    pub mode: Mode,
    /// What it demands of the medium and the way to it.
    pub need: Need,
    /// Base of its virtual addresses.
    pub address: VirtualAddress,
    /// Length in bytes.
    pub length_bytes: u64,
    /// Overwrite mode: sets kept beside the one being written.
    pub sets_kept: u32,
    /// Overwrite mode: the largest payload of a set.
    pub capacity_bytes: u64,
    /// Epoch of the newest primary or fence.
    pub epoch: Epoch,
    /// When it was made, in seconds since 1970.
    pub created_at_s: u64,
    /// Our own rights; empty where the unit wasn't asked.
    pub rights: Rights,
    /// The principal of the primary that holds it now, where the unit was asked and there is one.
    pub writer: Option<String>,
    /// For a region that is a member of one spread over several units: who the others are.
    pub membership: Option<Arc<Membership>>,
    /// When the unit last ended a scrub of it, or heard of one, in seconds since 1970; 0: never, or not asked.
    pub scrubbed_at_s: u64,
    /// The unit scrubs it now.
    pub is_being_scrubbed: bool,
}

impl RegionInfo {
    /// A region as a simulator or test would make one up.
    #[must_use]
    pub fn new(
        name: &str,
        id: RegionId,
        mode: Mode,
        address: VirtualAddress,
        length_bytes: u64,
    ) -> Self {
        Self {
            name: name.into(),
            id,
            mode,
            need: Need::VolatileAllowed,
            address,
            length_bytes,
            sets_kept: 0,
            capacity_bytes: 0,
            epoch: Epoch(0),
            created_at_s: 0,
            rights: Rights::empty(),
            writer: None,
            membership: None,
            scrubbed_at_s: 0,
            is_being_scrubbed: false,
        }
    }

    /// Checks what a unit said.
    pub(crate) fn from_wire(descriptor: &v1::RegionDescriptor) -> Result<Self> {
        let wrong = |what: &str| ClientError::Protocol(format!("region descriptor: {what}"));
        let id: [u8; 16] = descriptor
            .region_id
            .as_slice()
            .try_into()
            .map_err(|_| wrong("region id"))?;
        let mode = match v1::Mode::try_from(descriptor.mode) {
            Ok(v1::Mode::Overwrite) => Mode::Overwrite,
            Ok(v1::Mode::Append) => Mode::Append,
            _ => return Err(wrong("mode")),
        };
        let need = match v1::Need::try_from(descriptor.need) {
            Ok(v1::Need::Durable) => Need::Durable,
            Ok(v1::Need::Volatile) => Need::VolatileAllowed,
            _ => return Err(wrong("need")),
        };
        if descriptor
            .virtual_address
            .checked_add(descriptor.length_bytes)
            .is_none()
        {
            return Err(wrong("addresses wrap"));
        }
        let membership = match descriptor.attributes.as_slice() {
            [] => None,
            bytes => Some(Arc::new(Membership::decode(bytes).map_err(|error| {
                ClientError::Protocol(format!("region {}: {error}", descriptor.name))
            })?)),
        };
        Ok(Self {
            name: descriptor.name.as_str().into(),
            id: RegionId(id),
            mode,
            need,
            address: VirtualAddress(descriptor.virtual_address),
            length_bytes: descriptor.length_bytes,
            sets_kept: descriptor.sets_kept,
            capacity_bytes: descriptor.capacity_bytes,
            epoch: Epoch(descriptor.epoch),
            created_at_s: descriptor.created_at_s,
            rights: Rights::empty(),
            writer: None,
            membership,
            scrubbed_at_s: 0,
            is_being_scrubbed: false,
        })
    }
}

impl Serialize for RegionInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RegionInfo", 11)?;
        fields.serialize_field("name", &*self.name)?;
        fields.serialize_field("id", &self.id.to_string())?;
        fields.serialize_field("mode", self.mode.as_str())?;
        fields.serialize_field("need", self.need.as_str())?;
        fields.serialize_field("length_bytes", &self.length_bytes)?;
        fields.serialize_field("sets_kept", &self.sets_kept)?;
        fields.serialize_field("capacity_bytes", &self.capacity_bytes)?;
        fields.serialize_field("epoch", &self.epoch.get())?;
        fields.serialize_field("created_at_s", &self.created_at_s)?;
        fields.serialize_field("rights", &self.rights.to_string())?;
        fields.serialize_field("writer", &self.writer)?;
        fields.end()
    }
}

/// What an open region needs of whoever gave it out: the unit's control service, or a test.
pub trait SessionControl: Send + Sync {
    /// The region's epoch now, if it can be told within a short time.
    fn epoch_now(&self) -> Option<Epoch>;
    /// The session is over. Must not block for long.
    fn close(&self);
}

/// Everything that makes an open region. Simulators and tests build it by hand; programs get it from [`crate::Unit`].
pub struct Parts {
    /// A fresh data connection.
    pub connection: Box<dyn Connection>,
    /// The windows that were bound to it.
    pub windows: Vec<AccessWindow>,
    /// The region.
    pub info: RegionInfo,
    /// The epoch of this session, for a primary; else the region's.
    pub epoch: Epoch,
    /// The unit's name.
    pub unit: Arc<str>,
    /// Who to ask about the session.
    pub control: Box<dyn SessionControl>,
    /// Bounds of the waits.
    pub timeouts: Timeouts,
    /// How much memory to stage through.
    pub staging_bytes: usize,
}

/// An open region, of any mode and role.
pub(crate) struct Region {
    pub(crate) link: Link,
    pub(crate) info: RegionInfo,
    pub(crate) epoch: Epoch,
    pub(crate) timeouts: Timeouts,
    pub(crate) staging_bytes: usize,
    heart: Heart,
    proof: Arc<[UnitProof]>,
    provider: Provider,
    control: Box<dyn SessionControl>,
    /// The epoch after the connection's death, if the unit could say: asked once.
    epoch_at_end: OnceCell<Option<Epoch>>,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Region")
            .field("name", &self.info.name)
            .field("epoch", &self.epoch)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Region {
    pub(crate) fn new(parts: Parts) -> Result<Self> {
        let persistence = parts.connection.persistence();
        let provider = parts.connection.provider();
        let proof = UnitProof {
            name: parts.unit,
            persistence,
        };
        let link = Link::new(parts.connection, &parts.windows, &parts.timeouts);
        let link = match link {
            Ok(link) => link,
            Err(error) => {
                parts.control.close();
                return Err(ClientError::Fabric(error));
            }
        };
        Ok(Self {
            link,
            info: parts.info,
            epoch: parts.epoch,
            timeouts: parts.timeouts,
            staging_bytes: parts.staging_bytes,
            heart: Heart::new(),
            proof: Arc::new([proof]),
            provider,
            control: parts.control,
            epoch_at_end: OnceCell::new(),
        })
    }

    /// Says that this writer lives; see [`crate::beat`]. Doesn't wait.
    pub(crate) fn beat(&mut self) -> Result<()> {
        let remote = self.address(BEAT_OFFSET.get());
        let beaten = self.heart.beat(&mut self.link, remote, self.epoch);
        beaten.map_err(|error| self.error(error))
    }

    /// The virtual address of a place in the region.
    pub(crate) fn address(&self, offset: u64) -> u64 {
        // The sum of base and length doesn't wrap (checked), and offsets beyond it are in no window.
        self.info.address.get().wrapping_add(offset)
    }

    pub(crate) fn name(&self) -> String {
        self.info.name.as_ref().to_owned()
    }

    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    pub(crate) fn proof(&self) -> &Arc<[UnitProof]> {
        &self.proof
    }

    pub(crate) fn receipt(&self, stored: Stored, bytes: u64) -> Receipt {
        Receipt {
            region: Arc::clone(&self.info.name),
            stored,
            epoch: self.epoch,
            bytes,
            units: Arc::clone(&self.proof),
            provider: self.provider,
        }
    }

    /// What a failure means while nothing had been published yet.
    pub(crate) fn error(&self, error: LinkError) -> ClientError {
        match error {
            LinkError::Fabric(error) => ClientError::Fabric(error),
            LinkError::Stalled { waited } => ClientError::TimedOut {
                what: "a completion from the unit",
                waited_ms: waited.as_millis() as u64,
            },
            LinkError::Failed { status, .. } => self.explain(status),
        }
    }

    /// What a failure means once bytes of what is being stored were posted to the end: nobody knows whether they count. Even where the unit
    /// refused an earlier chain, writes behind it may have landed, and a recovery takes what is whole.
    pub(crate) fn error_of(&self, error: LinkError, attempt: Attempt) -> ClientError {
        ClientError::UnknownOutcome {
            region: self.name(),
            attempt,
            cause: Box::new(self.error(error)),
        }
    }

    /// Why the connection died: a fence looks like a lost connection or a lost right, so the unit is asked.
    fn explain(&self, status: CompletionStatus) -> ClientError {
        let may_be_a_fence = matches!(
            status,
            CompletionStatus::RemoteAccess
                | CompletionStatus::ConnectionLost
                | CompletionStatus::Flushed
        );
        if may_be_a_fence
            && let Some(epoch) = *self.epoch_at_end.get_or_init(|| self.control.epoch_now())
            && epoch > self.epoch
        {
            return ClientError::Fenced {
                region: self.name(),
                epoch,
                own_epoch: self.epoch,
            };
        }
        ClientError::from_status(&self.info.name, status)
    }

    /// For a handle that an earlier error ended: the reason as far as it can still be told.
    pub(crate) fn ended(&self) -> ClientError {
        match self.link.check() {
            Err(error) => self.error(error),
            Ok(()) => ClientError::Ended {
                region: self.name(),
            },
        }
    }

    /// Sleeps until `deadline` at most, in the hope of something to do; false once the deadline is over.
    pub(crate) fn pause(&self, deadline: Instant, pause: Duration) -> bool {
        let left = deadline.saturating_duration_since(self.link.now());
        if left.is_zero() {
            return false;
        }
        self.link.pause(left.min(pause));
        true
    }

    /// The time by the clock that dates what is stored, in nanoseconds since 1970.
    pub(crate) fn date_ns(&self) -> u64 {
        let date = self.link.connection().date();
        let since = date.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.control.close();
    }
}
