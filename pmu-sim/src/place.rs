//! What lies where in a region, in words: for the trace and to tell crash points apart.

use pmu_client::RegionInfo;
use pmu_format::{LOG_EPOCH_OFFSET, LOG_RING_OFFSET, Mode, PAGE_BYTES, RegionOffset, SetGeometry};

/// A part of a region that the protocol gives a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Publish,
    Epoch,
    Cursor,
    Ring,
    Header(u32),
    Table(u32),
    Payload(u32),
    Staging,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Publish => formatter.write_str("publish word"),
            Self::Epoch => formatter.write_str("epoch word"),
            Self::Cursor => formatter.write_str("cursor"),
            Self::Ring => formatter.write_str("ring"),
            Self::Header(slot) => write!(formatter, "header of slot {slot}"),
            Self::Table(slot) => write!(formatter, "chunk table of slot {slot}"),
            Self::Payload(slot) => write!(formatter, "payload of slot {slot}"),
            Self::Staging => formatter.write_str("staging memory"),
        }
    }
}

/// What lies at an offset.
pub(crate) fn place(info: &RegionInfo, offset: u64) -> Place {
    if &*info.name == crate::staging::NAME {
        return Place::Staging;
    }
    if info.mode == Mode::Append {
        return match offset {
            0..64 => Place::Publish,
            at if at < PAGE_BYTES && at >= LOG_EPOCH_OFFSET.get() => Place::Epoch,
            at if at < LOG_RING_OFFSET.get() => Place::Cursor,
            _ => Place::Ring,
        };
    }
    let geometry = SetGeometry::new(info.length_bytes, info.capacity_bytes, info.sets_kept);
    let (Ok(geometry), true) = (geometry, offset >= PAGE_BYTES) else {
        return Place::Publish;
    };
    let slot = ((offset - PAGE_BYTES) / geometry.slot_bytes()) as u32;
    let inner = RegionOffset((offset - PAGE_BYTES) % geometry.slot_bytes());
    if inner.get() < PAGE_BYTES {
        Place::Header(slot)
    } else if inner.get() < PAGE_BYTES + geometry.chunk_table_area_bytes() {
        Place::Table(slot)
    } else {
        Place::Payload(slot)
    }
}
