//! Pages of regions that are spread over several units.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Grid, NOTHING, Page, count, exact_size, facts, or_nothing, plain, section, size};
use crate::report::{
    Changed, Created, DeleteReport, FenceReport, GrantChange, MissingReport, PlacementReport,
    RebuildReport, ScrubReport, ShardReport, SpreadChange, SpreadReport, SpreadVerifyReport,
    Verified,
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
            ("active", self.active_text()),
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

impl SpreadReport {
    fn active_text(&self) -> String {
        let active = format!("{} of {} units", self.active, self.members.len());
        if self.too_few_to.is_empty() {
            return active;
        }
        format!("{active}: too few to {}", self.too_few_to.join(", to "))
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

fn given_lines(page: &mut String, given: &[pmu_client::rebuild::RebuiltUnit]) {
    for unit in given {
        let bytes = exact_size(unit.bytes);
        let name = plain(&unit.unit);
        let _ = match unit.log_end {
            Some(end) => {
                let records = count(unit.records.unwrap_or(0), "record");
                writeln!(
                    page,
                    "{name}: given {records}, {bytes}; it holds the log up to {end} now"
                )
            }
            None => {
                let (sets, newest) = (count(unit.sets, "set"), unit.newest_set);
                writeln!(
                    page,
                    "{name}: given {sets}, {bytes}; it holds set {newest} now"
                )
            }
        };
    }
}

pub(super) fn missing_lines(page: &mut String, missing: &[MissingReport]) {
    for missing in missing {
        let _ = writeln!(page, "{}: {}", plain(&missing.unit), plain(&missing.reason));
    }
}

impl Page for RebuildReport {
    fn page(&self) -> String {
        let mut page = String::new();
        given_lines(&mut page, &self.units);
        missing_lines(&mut page, &self.missing);
        match self.old_deleted {
            Some(true) => page.push_str("the region is deleted on the unit that was replaced\n"),
            Some(false) => {
                page.push_str("the region could not be deleted on the unit that was replaced\n");
            }
            None => {}
        }
        let what = if self.units.is_empty() {
            "nothing was lacking"
        } else {
            "done"
        };
        let _ = writeln!(
            page,
            "{}: {what}, generation {}",
            self.region, self.generation
        );
        page
    }
}

impl Page for ScrubReport {
    fn page(&self) -> String {
        let is_log = self.records.is_some();
        let checked = if is_log { "RECORDS" } else { "CHUNKS" };
        let mut grid = Grid::new(&["UNIT", checked, "READ", "DAMAGED", "LACKING"]);
        for unit in &self.units {
            let (checked, lacking) = match is_log {
                true => (unit.records, unit.records_lacking),
                false => (unit.chunks, unit.lacking.len() as u64),
            };
            grid.row([
                unit.unit.clone(),
                checked.to_string(),
                size(unit.bytes),
                unit.damage.len().to_string(),
                lacking.to_string(),
            ]);
        }
        let mut page = grid.right(&[1, 2, 3, 4]).page();
        if let Some(damage) = &self.log_damage {
            let _ = writeln!(page, "{}: {}", plain(&self.region), plain(damage));
        }
        for unit in &self.units {
            for damage in &unit.damage {
                let _ = writeln!(page, "{}: {}", plain(&unit.unit), plain(damage));
            }
        }
        for mismatch in &self.mismatches {
            let (set, group) = (mismatch.set, mismatch.group);
            let what = plain(&mismatch.what);
            let _ = match mismatch.position {
                Some(position) => writeln!(page, "record at {position}: {what}"),
                None => writeln!(page, "set {set}, group {group}: {what}"),
            };
        }
        given_lines(&mut page, &self.repaired);
        missing_lines(&mut page, &self.missing);
        let verdict = match (self.damaged, self.is_repaired) {
            (false, _) => "no damage found",
            (true, true) => "damage found and repaired",
            (true, false) => "DAMAGE FOUND",
        };
        let checked = match self.records {
            Some(records) => format!("{records} records"),
            None => format!("{}, {} groups", count(self.sets, "set"), self.groups),
        };
        let _ = writeln!(page, "{}: {checked} checked; {verdict}", self.region);
        page
    }
}

impl Page for Verified {
    fn page(&self) -> String {
        match self {
            Self::One(report) => report.page(),
            Self::Spread(report) => report.page(),
        }
    }
}

impl Page for SpreadVerifyReport {
    fn page(&self) -> String {
        let mut page = String::new();
        for unit in &self.units {
            let name = plain(&unit.unit);
            let _ = match &unit.error {
                Some(error) => writeln!(page, "{name}: tables not checked: {}", plain(error)),
                None => writeln!(
                    page,
                    "{name}: {} checked",
                    count(unit.structures_checked, "structure")
                ),
            };
            if !unit.findings.is_empty() {
                page.push_str(&super::findings(&unit.findings));
            }
        }
        match (&self.contents, &self.contents_note) {
            (Some(contents), _) => page.push_str(&contents.page()),
            (None, note) => {
                let why = note.as_deref().unwrap_or("no reason given");
                let _ = writeln!(
                    page,
                    "{}: contents not checked: {}",
                    self.region,
                    plain(why)
                );
            }
        }
        page.push_str(match self.damaged {
            true => "DAMAGE FOUND\n",
            false => "no damage found in what was checked\n",
        });
        page
    }
}
