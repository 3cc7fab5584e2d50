//! Overwrite mode: whole checkpoints, the newest few of which are kept.

mod buffer;
pub(crate) mod fetch;
pub(crate) mod primary;
mod put;
mod reader;
mod sink;

use std::sync::Arc;

pub use buffer::{RegisteredBuffer, RegisteredSlice};
use pmu_core::commit::{FoundSet, SetState};
use pmu_format::{Epoch, Label, SetGeometry, SetNumber};
pub use primary::{SetPrimary, SetTakeover};
pub use put::Put;
pub use reader::{SetCatalog, SetChoice, SetRead, SetReader};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
pub use sink::{FileSink, SetSink, StreamSink};

use crate::error::{ClientError, Result};
use crate::region::RegionInfo;

/// No region that this library opens has sets larger than this: it bounds what a unit's word can make it allocate.
pub const SET_CAPACITY_BYTES_MAX: u64 = 16 << 40;

/// What is known of a set without reading its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetInfo {
    /// Its number, from 1.
    pub number: SetNumber,
    /// Epoch of its writer.
    pub epoch: Epoch,
    /// Length of its payload.
    pub bytes: u64,
    /// When it was committed by its writer's clock, in nanoseconds since 1970.
    pub committed_ns: u64,
    /// What the program wanted to find again.
    pub label: Label,
    /// How much it can be relied on.
    pub state: SetState,
}

impl SetInfo {
    pub(crate) fn of(found: &FoundSet) -> Self {
        Self {
            number: found.number,
            epoch: found.epoch,
            bytes: found.payload_bytes,
            committed_ns: found.committed_nanoseconds,
            label: found.label,
            state: found.state.clone(),
        }
    }

    /// The state in one word: `committed`, `unacknowledged` (durable, but its receipt was lost), `being-written`, `being-overwritten`
    /// or `damaged`.
    #[must_use]
    pub const fn state_word(&self) -> &'static str {
        match self.state {
            SetState::Committed => "committed",
            SetState::DurableUnacknowledged => "unacknowledged",
            SetState::BeingWritten => "being-written",
            SetState::BeingOverwritten => "being-overwritten",
            SetState::Damaged(_) => "damaged",
            _ => "unknown",
        }
    }
}

impl Serialize for SetInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("SetInfo", 6)?;
        fields.serialize_field("set", &self.number.get())?;
        fields.serialize_field("epoch", &self.epoch.get())?;
        fields.serialize_field("bytes", &self.bytes)?;
        fields.serialize_field("committed_ns", &self.committed_ns)?;
        fields.serialize_field("label", &self.label.to_string())?;
        fields.serialize_field("state", self.state_word())?;
        fields.end()
    }
}

/// The division of a region, as its unit describes it.
pub(crate) fn geometry_of(info: &RegionInfo) -> Result<SetGeometry> {
    if info.capacity_bytes > SET_CAPACITY_BYTES_MAX {
        return Err(ClientError::Protocol(format!(
            "region {}: a capacity of {} bytes",
            info.name, info.capacity_bytes
        )));
    }
    SetGeometry::new(info.length_bytes, info.capacity_bytes, info.sets_kept)
        .map_err(|error| ClientError::Protocol(format!("region {}: {error}", info.name)))
}

fn no_such_set(region: &Arc<str>, what: String) -> ClientError {
    ClientError::NoSuchSet {
        region: region.as_ref().to_owned(),
        what,
    }
}
