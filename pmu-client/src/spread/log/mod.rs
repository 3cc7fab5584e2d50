//! Logs over several units.
//!
//! Each member has a log of its own, and a record of the spread log is one record at the same position in each of them: a header
//! that names the record ([`pmu_format::RecordShare`]), and the member's shard. Nothing rotates: data shards lie on the first members, so that
//! a healthy reader reads no redundancy. Records are appended in two steps, as sets are committed (`pmu_core::spread`).

mod backup;
mod catch_up;
mod fill;
mod kept;
mod out;
mod primary;
mod scrub;
mod seat;
mod shards;

pub use backup::SpreadLogBackup;
pub(super) use fill::{Extent, LogTarget, Sources, fill};
pub use primary::{SpreadLogPrimary, SpreadLogTakeover};
pub(super) use scrub::scrub;

use pmu_core::spread::{Newest, Stand};
use pmu_format::{CursorPair, LogPosition};

use std::time::Duration;

use crate::error::Result;
use crate::spread::Spread;
use seat::Seat;
use shards::{Names, ShardReader};

impl Spread {
    fn names(&self) -> Names<'_> {
        Names {
            region: &self.name,
            membership: &self.membership,
        }
    }

    fn log_reader(&self, hedge: Duration) -> ShardReader {
        ShardReader::new(&self.membership, self.layout, self.quorum, hedge)
    }

    /// This region without its connections: enough to connect to a member later.
    pub(super) fn apart(&self) -> Self {
        Self {
            name: std::sync::Arc::clone(&self.name),
            membership: std::sync::Arc::clone(&self.membership),
            layout: self.layout,
            quorum: self.quorum,
            mode: self.mode,
            sets_kept: self.sets_kept,
            share_capacity_bytes: self.share_capacity_bytes,
            reach: std::sync::Arc::clone(&self.reach),
            units: Vec::new(),
            untold: Vec::new(),
            epochs: std::sync::Arc::clone(&self.epochs),
        }
    }

    /// What the members that were looked at say: what is committed, and up to where it was cleared. Each member's log counts as far as that
    /// allows.
    fn judge(&self, seats: &mut [Seat]) -> Result<(Newest, LogPosition)> {
        let absent = |seats: &[Seat]| -> Vec<_> {
            let missing = seats.iter().filter_map(|seat| seat.as_ref().err());
            missing.cloned().collect()
        };
        let stands = seats.iter().flatten().map(|seat| &seat.stand);
        let newest = self.quorum.newest(stands);
        let looks = seats.iter().map(|seat| match seat {
            Ok(seat) => Ok(&seat.stand),
            Err(missing) => Err(missing),
        });
        let mut newest = newest.map_err(|what| self.too_few_votes(what, looks))?;
        let cursor = self.quorum.cursor(said(seats));
        let cursor = cursor.map_err(|what| self.too_few(what, &absent(seats)))?;
        // All up to there was read and cleared by somebody, whatever became of the tails.
        newest.advance(cursor.get());
        newest.cleared = cursor.get();
        for seat in seats.iter_mut().flatten() {
            seat.judge(&newest);
        }
        Ok((newest, cursor))
    }
}

/// What each member that was looked at says.
fn said(seats: &[Seat]) -> impl Iterator<Item = (&Stand, &CursorPair)> + Clone {
    let seats = seats.iter().flatten();
    seats.map(|seat| (&seat.stand, &seat.cursor))
}
