//! Append mode: records that a backup reads, clears and, after a failure, fetches the unread rest of.

mod backup;
mod drive;
pub(crate) mod primary;

pub(crate) use backup::Entry;
pub use backup::{Flow, LogBackup, Records};
pub use drive::{LogRecord, RecoveredLog};
pub use pmu_core::log::{Record, RecordMark};
use pmu_format::LogGeometry;
pub use primary::{LogPrimary, LogTakeover, Ticket};

use crate::error::{ClientError, Result};
use crate::region::RegionInfo;

/// The division of a region, as its unit describes it.
pub(crate) fn geometry_of(info: &RegionInfo) -> Result<LogGeometry> {
    LogGeometry::new(info.length_bytes)
        .map_err(|error| ClientError::Protocol(format!("region {}: {error}", info.name)))
}
