//! Pages of regions that are spread over several units.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Grid, NOTHING, Page, count, exact_size, facts, or_nothing, plain, section, size};
use crate::report::{
    Changed, Created, DeleteReport, FenceReport, GrantChange, PlacementReport, ShardReport,
    SpreadChange, SpreadReport,
};

impl Page for Created {
    fn page(&self) -> String {
        match self {
            Self::One(region) => region.page(),
            Self::Spread(spread) => spread.page(),
        }
    }
}

impl Page for SpreadReport {
    fn page(&self) -> String {
        let (room, part) = match self.ring_bytes {
            Some(ring) => (
                ("ring", exact_size(ring)),
                ("subsegment", NOTHING.to_owned()),
            ),
            None => (
                ("capacity", exact_size(self.capacity_bytes)),
                ("subsegment", size(self.subsegment_bytes)),
            ),
        };
        let mut page = facts([
            ("region", self.region.clone()),
            ("layout", self.layout.clone()),
            ("min units", self.units_min.to_string()),
            ("generation", self.generation.to_string()),
            room,
            part,
            ("spread id", self.spread_id.clone()),
        ]);
        let mut grid = Grid::new(&["UNIT", "ADDRESS", "STATE", "EPOCH", "WRITER"]);
        for member in &self.members {
            grid.row([
                member.unit.clone(),
                member.address.clone(),
                member.state.to_owned(),
                or_nothing(member.epoch),
                or_nothing(member.writer.clone()),
            ]);
        }
        section(&mut page, "Members", &grid.right(&[3]).page());
        for member in &self.members {
            if let Some(error) = &member.error {
                let _ = writeln!(page, "{}: {}", plain(&member.unit), plain(error));
            }
        }
        page
    }
}

/// A column for each unit, a row for each group.
pub(super) fn placement(units: &[PlacementReport]) -> String {
    let mut header = vec!["GROUP"];
    header.extend(units.iter().map(|unit| &*unit.unit));
    let mut grid = Grid::new(&header);
    let shards = || units.iter().flat_map(|unit| &unit.shards);
    let groups = shards().map(|shard| shard.group + 1).max().unwrap_or(0);
    for group in 0..groups {
        let mut cells = vec![group.to_string()];
        for unit in units {
            let shard = unit.shards.iter().find(|shard| shard.group == group);
            cells.push(shard.map_or_else(|| NOTHING.to_owned(), shard_text));
        }
        grid.cells(&cells);
    }
    grid.page()
}

fn shard_text(shard: &ShardReport) -> String {
    match (shard.kind, &*shard.subsegments) {
        ("parity", [one]) => format!("P({one})"),
        ("parity", [first, .., last]) => format!("P({first}-{last})"),
        (_, [one]) => one.to_string(),
        _ => NOTHING.to_owned(),
    }
}

/// One line of what was done on one unit.
trait Line {
    fn line(&self) -> String;
}

impl Line for FenceReport {
    fn line(&self) -> String {
        self.page().trim_end().to_owned()
    }
}

impl Line for DeleteReport {
    fn line(&self) -> String {
        self.page().trim_end().to_owned()
    }
}

impl Line for GrantChange {
    fn line(&self) -> String {
        let grants = self.grants.iter().map(|grant| match &*grant.rights {
            [] => format!("{} none", plain(&grant.principal)),
            rights => format!("{} {}", plain(&grant.principal), rights.join(",")),
        });
        let grants: Vec<_> = grants.collect();
        let windows = count(self.windows_invalidated, "window");
        format!("{}; {windows} void", grants.join("; "))
    }
}

impl<T: Page + Line + Serialize> Page for Changed<T> {
    fn page(&self) -> String {
        match self {
            Self::One(report) => report.page(),
            Self::Spread(change) => change.page(),
        }
    }
}

impl<T: Line + Serialize> Page for SpreadChange<T> {
    fn page(&self) -> String {
        let mut grid = Grid::new(&["UNIT", "STATE", "WHAT"]);
        for member in &self.members {
            let what = match (&member.report, &member.error) {
                (_, Some(error)) => error.clone(),
                (Some(report), None) => report.line(),
                (None, None) => NOTHING.to_owned(),
            };
            grid.row([member.unit.clone(), member.state.to_owned(), what]);
        }
        let mut page = grid.page();
        let members = self.members.len();
        let _ = write!(page, "{}: done on {} of {members}", self.region, self.done);
        page.push_str(&match (self.effective, self.needed) {
            (Some(effective), Some(needed)) => {
                format!(", {needed} needed; effective: {effective}\n")
            }
            _ => "\n".to_owned(),
        });
        page
    }
}
