//! Reports on a page for people, or as JSON.
//!
//! The page has no colours and no control characters, whatever a unit answers.

mod spread;

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

use comfy_table::{CellAlignment, Table, presets};
use pmu_proto::reason;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::error::ManagerError;
use crate::report::{
    AuthorityReport, DeleteReport, Failure, FenceReport, FindingReport, GrantChange, GrantReport,
    IdentityReport, ManualReport, PoolReport, RegionDetails, RegionList, RegionReport,
    RegionScrubReport, RevocationReport, ScrubbingReport, SessionReport, StatusList, UnitDetails,
    UnitEntry, UnitList, UnlockList, VerifyReport,
};
use crate::values::{ByteSize, duration_text};

/// What stands for nothing.
const NOTHING: &str = "-";

/// A report that can be put on a page for people.
pub trait Page: Serialize {
    /// The page, each line with its end.
    fn page(&self) -> String;
}

/// Where reports and failures go, and in which form.
pub struct Output {
    json: bool,
    reports: Mutex<Box<dyn Write + Send>>,
    failures: Mutex<Box<dyn Write + Send>>,
}

impl Output {
    /// Standard output for reports, standard error for failures.
    pub fn standard(json: bool) -> Self {
        Self::to(json, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// Anywhere else.
    pub fn to(json: bool, reports: Box<dyn Write + Send>, failures: Box<dyn Write + Send>) -> Self {
        Self {
            json,
            reports: Mutex::new(reports),
            failures: Mutex::new(failures),
        }
    }

    /// Writes a report.
    ///
    /// # Errors
    /// [`ManagerError::Output`], unless nobody reads any more.
    pub fn report(&self, report: &impl Page) -> Result<(), ManagerError> {
        if !self.json {
            return self.text(report.page().as_bytes());
        }
        let text = serde_json::to_string_pretty(report).map_err(|error| ManagerError::Output {
            source: error.into(),
        })?;
        self.text(format!("{text}\n").as_bytes())
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// [`ManagerError::Output`], unless nobody reads any more.
    pub fn text(&self, text: &[u8]) -> Result<(), ManagerError> {
        let mut out = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        match out.write_all(text).and_then(|()| out.flush()) {
            Err(source) if source.kind() != ErrorKind::BrokenPipe => {
                Err(ManagerError::Output { source })
            }
            _ => Ok(()),
        }
    }

    /// Says why a command failed.
    pub fn failure(&self, error: &ManagerError) {
        let text = error.text();
        let failure = Failure {
            reason: error.reason().map(reason::name),
            exit_code: error.exit_code(),
            error: text.clone(),
        };
        let line = match serde_json::to_string(&failure) {
            Ok(line) if self.json => line,
            _ => format!("pmm: {}", plain(&text)),
        };
        let mut out = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is left to tell it to.
        let _ = writeln!(out, "{line}");
    }
}

/// Control characters would let a unit, or a file's name, write anywhere on the terminal.
fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let control = character.is_control();
            let escaped = control.then(|| character.escape_default());
            escaped
                .into_iter()
                .flatten()
                .chain((!control).then_some(character))
        })
        .collect()
}

struct Grid(Table);

impl Grid {
    fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if !header.is_empty() {
            table.set_header(header.iter().copied());
        }
        Self(table)
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) -> &mut Self {
        self.cells(&cells)
    }

    fn cells(&mut self, cells: &[String]) -> &mut Self {
        self.0.add_row(cells.iter().map(|cell| plain(cell)));
        self
    }

    /// Numbers stand under each other.
    fn right(mut self, columns: &[usize]) -> Self {
        for index in columns {
            if let Some(column) = self.0.column_mut(*index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    fn page(mut self) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut page = self.0.trim_fmt();
        page.push('\n');
        page
    }
}

/// Lines of `word: value`, the values under each other.
fn facts<const N: usize>(rows: [(&str, String); N]) -> String {
    let mut grid = Grid::new(&[]);
    for (word, value) in rows {
        grid.row([format!("{word}:"), value]);
    }
    grid.page()
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Rounded, and to the byte.
fn exact_size(bytes: u64) -> String {
    if bytes < 1024 {
        size(bytes)
    } else {
        format!("{} ({bytes} bytes)", size(bytes))
    }
}

fn or_nothing<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

fn time_text(seconds: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&format).ok())
        .unwrap_or_else(|| seconds.to_string())
}

fn count(number: impl Into<u64>, one: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {one}s"),
    }
}

fn section(page: &mut String, title: &str, body: &str) {
    let _ = write!(page, "\n{title}\n{body}");
}

impl Page for AuthorityReport {
    fn page(&self) -> String {
        format!(
            "authority {} in {}\nKeep ca-key.pem secret, and a copy of it safe.\n",
            self.name,
            plain(&self.directory)
        )
    }
}

impl Page for IdentityReport {
    fn page(&self) -> String {
        let expiry = time_text(self.expires_at_s);
        format!(
            "{} ({}) in {}, until {expiry}\n",
            self.name,
            self.role,
            plain(&self.directory)
        )
    }
}

impl Page for RevocationReport {
    fn page(&self) -> String {
        format!(
            "{} of {} revoked in {}\nIt takes effect where that file lies in the identity directory of a unit that \
             has started since.\n",
            count(self.revoked as u64, "certificate"),
            self.name,
            plain(&self.list)
        )
    }
}

impl Page for ManualReport {
    fn page(&self) -> String {
        format!(
            "{} in {}\n",
            count(self.pages as u64, "page"),
            plain(&self.directory)
        )
    }
}

impl Page for UnitEntry {
    fn page(&self) -> String {
        format!("{} {}\n", self.unit, self.address)
    }
}

impl Page for UnitList {
    fn page(&self) -> String {
        let mut grid = Grid::new(&["UNIT", "ADDRESS"]);
        for unit in &self.units {
            grid.row([unit.unit.clone(), unit.address.clone()]);
        }
        grid.page()
    }
}

impl Page for StatusList {
    fn page(&self) -> String {
        let mut grid = Grid::new(&[
            "UNIT", "ADDRESS", "STATE", "VERSION", "UP", "REGIONS", "SESSIONS", "FREE", "SIZE",
        ]);
        for unit in &self.units {
            grid.row([
                unit.unit.clone(),
                unit.address.clone(),
                unit.state.to_owned(),
                or_nothing(unit.version.clone()),
                or_nothing(unit.uptime_s.map(duration_text)),
                or_nothing(unit.regions),
                or_nothing(unit.sessions),
                or_nothing(unit.free_bytes.map(size)),
                or_nothing(unit.length_bytes.map(size)),
            ]);
        }
        let mut page = grid.right(&[5, 6, 7, 8]).page();
        for unit in &self.units {
            if let Some(error) = &unit.error {
                let _ = writeln!(page, "{}: {}", unit.unit, plain(error));
            }
        }
        page
    }
}

fn pools(pools: &[PoolReport]) -> String {
    let mut grid = Grid::new(&[
        "POOL", "MEDIUM", "KEEPS", "REGIONS", "FREE", "LARGEST", "SIZE", "ID",
    ]);
    for pool in pools {
        grid.row([
            pool.pool.clone(),
            pool.medium.to_owned(),
            if pool.durable { "durable" } else { "volatile" }.to_owned(),
            pool.regions.to_string(),
            size(pool.free_bytes),
            size(pool.largest_free_bytes),
            size(pool.length_bytes),
            pool.pool_id.clone(),
        ]);
    }
    grid.right(&[3, 4, 5, 6]).page()
}

fn sessions(sessions: &[SessionReport]) -> String {
    if sessions.is_empty() {
        return "none\n".to_owned();
    }
    let mut grid = Grid::new(&[
        "SESSION",
        "REGION",
        "PRINCIPAL",
        "ROLE",
        "PROVIDER",
        "PERSISTENCE",
        "ACTIVE",
        "EPOCH",
        "AGE",
    ]);
    for session in sessions {
        grid.row([
            session.session_id.to_string(),
            session.region.clone(),
            session.principal.clone(),
            session.role.to_owned(),
            session.provider.to_owned(),
            session.persistence.to_owned(),
            if session.active { "yes" } else { "no" }.to_owned(),
            session.epoch.to_string(),
            duration_text(session.age_s),
        ]);
    }
    grid.right(&[0, 7, 8]).page()
}

impl Page for UnitDetails {
    fn page(&self) -> String {
        let mut page = facts([
            ("unit", self.unit.clone()),
            ("address", self.address.clone()),
            (
                "state",
                if self.locked { "locked" } else { "ready" }.to_owned(),
            ),
            ("version", self.version.clone()),
            ("up", duration_text(self.uptime_s)),
        ]);
        if !self.locked {
            section(&mut page, "Pools", &pools(&self.pools));
        }
        let mut grid = Grid::new(&["PROVIDER", "ADDRESS", "PROVES DURABILITY BY"]);
        for provider in &self.providers {
            let methods = provider.persistence_methods.join(", ");
            grid.row([
                provider.provider.to_owned(),
                provider.addresses.join(", "),
                methods,
            ]);
        }
        section(&mut page, "Providers", &grid.page());
        if !self.locked {
            section(&mut page, "Sessions", &sessions(&self.sessions));
        }
        if let Some(scrubbing) = &self.scrubbing {
            section(&mut page, "Scrubs", &scrubs(scrubbing));
        }
        page
    }
}

/// How a unit scrubs by itself, and what became of each region.
fn scrubs(scrubbing: &ScrubbingReport) -> String {
    let repairs = if scrubbing.repairs {
        "repairs"
    } else {
        "repairs nothing"
    };
    let mut page = format!(
        "every {}, at most {} in a second, {repairs}\n",
        duration_text(scrubbing.every_s),
        size(scrubbing.rate_bytes_per_s)
    );
    let mut grid = Grid::new(&[
        "REGION", "LAST", "BY", "READ", "DAMAGED", "REPAIRED", "NEXT",
    ]);
    for scrub in &scrubbing.regions {
        let next = match scrub.running_bytes {
            Some(bytes) => format!("now, {} read", size(bytes)),
            None => date(scrub.due_at_s),
        };
        grid.row([
            scrub.region.clone(),
            or_nothing(scrub.finished_at_s.map(date)),
            or_nothing(scrub.by.clone()),
            size(scrub.bytes),
            scrub.damaged.to_string(),
            scrub.repaired.to_string(),
            next,
        ]);
    }
    page.push_str(&grid.right(&[3, 4, 5]).page());
    for scrub in &scrubbing.regions {
        notes(&mut page, scrub);
    }
    page
}

/// The scrubs of one region.
fn scrub_of(scrub: &RegionScrubReport) -> String {
    let mut page = facts([
        ("last", or_nothing(scrub.finished_at_s.map(date))),
        ("by", or_nothing(scrub.by.clone())),
        ("read", size(scrub.bytes)),
        ("damaged", scrub.damaged.to_string()),
        ("repaired", scrub.repaired.to_string()),
        ("unreadable", scrub.unreadable.to_string()),
        ("now", or_nothing(scrub.running_bytes.map(size))),
        ("next", date(scrub.due_at_s)),
    ]);
    notes(&mut page, scrub);
    page
}

fn notes(page: &mut String, scrub: &RegionScrubReport) {
    for note in scrub.findings.iter().chain(&scrub.failure) {
        let _ = writeln!(page, "{}: {}", plain(&scrub.region), plain(note));
    }
}

fn date(seconds: u64) -> String {
    time_text(i64::try_from(seconds).unwrap_or(i64::MAX))
}

impl Page for UnlockList {
    fn page(&self) -> String {
        let mut page = String::new();
        for unit in &self.units {
            let what = if unit.was_unlocked {
                "was not locked"
            } else {
                "unlocked"
            };
            let _ = writeln!(
                page,
                "{} {what}: {} in {}",
                plain(&unit.unit),
                count(unit.regions, "region"),
                count(unit.pools.len() as u64, "pool")
            );
        }
        page
    }
}

/// What a region has room for.
fn room(region: &RegionReport) -> String {
    match (region.sets_kept, region.capacity_bytes, region.ring_bytes) {
        (Some(sets), Some(capacity), _) => format!("{sets} x {}", size(capacity)),
        (_, _, Some(ring)) => format!("log of {}", size(ring)),
        _ => NOTHING.to_owned(),
    }
}

fn regions(regions: &[RegionReport]) -> String {
    let mut grid = Grid::new(&[
        "REGION", "UNIT", "MODE", "LAYOUT", "SIZE", "HOLDS", "NEED", "EPOCH", "WRITER", "SESSIONS",
        "STATE",
    ]);
    for region in regions {
        grid.row([
            region.region.clone(),
            region.unit.clone(),
            region.mode.to_owned(),
            region.layout.clone(),
            size(region.length_bytes),
            room(region),
            region.need.to_owned(),
            region.epoch.to_string(),
            or_nothing(region.writer.clone()),
            region.sessions.to_string(),
            region.state.to_owned(),
        ]);
    }
    grid.right(&[4, 7, 9]).page()
}

impl Page for RegionReport {
    fn page(&self) -> String {
        regions(std::slice::from_ref(self))
    }
}

impl Page for RegionList {
    fn page(&self) -> String {
        let mut page = regions(&self.regions);
        spread::missing_lines(&mut page, &self.missing);
        page
    }
}

fn grants(grants: &[GrantReport]) -> String {
    if grants.is_empty() {
        return "none\n".to_owned();
    }
    let mut grid = Grid::new(&["PRINCIPAL", "RIGHTS"]);
    for grant in grants {
        let rights = match grant.rights.join(",") {
            none if none.is_empty() => "none".to_owned(),
            rights => rights,
        };
        grid.row([grant.principal.clone(), rights]);
    }
    grid.page()
}

impl Page for RegionDetails {
    fn page(&self) -> String {
        let Some(spread) = &self.spread else {
            return self.on_unit();
        };
        let mut page = spread.page();
        if let Some(units) = &self.placement {
            section(&mut page, "Placement", &spread::placement(units));
        }
        let title = format!("On {}", plain(&self.region.unit));
        section(&mut page, &title, &self.on_unit());
        page
    }
}

impl RegionDetails {
    /// What one unit says.
    fn on_unit(&self) -> String {
        let region = &self.region;
        let mut page = facts([
            ("region", region.region.clone()),
            ("id", region.region_id.clone()),
            ("unit", region.unit.clone()),
            ("pool", or_nothing(region.pool.clone())),
            ("state", region.state.to_owned()),
            ("mode", region.mode.to_owned()),
            ("holds", room(region)),
            ("need", region.need.to_owned()),
            ("address", region.virtual_address.clone()),
            ("length", exact_size(region.length_bytes)),
            ("epoch", region.epoch.to_string()),
            ("writer", or_nothing(region.writer.clone())),
            (
                "created",
                time_text(i64::try_from(region.created_at_s).unwrap_or(i64::MAX)),
            ),
        ]);
        let mut grid = Grid::new(&["POOL", "OFFSET", "LENGTH"]);
        for extent in &self.extents {
            let offset = format!("{:#x}", extent.pool_offset_bytes);
            grid.row([extent.pool.clone(), offset, size(extent.length_bytes)]);
        }
        section(&mut page, "Extents", &grid.right(&[1, 2]).page());
        section(&mut page, "Grants", &grants(&self.grants));
        section(&mut page, "Sessions", &sessions(&self.open_sessions));
        if let Some(scrub) = &self.scrub {
            section(&mut page, "Scrub", &scrub_of(scrub));
        }
        page
    }
}

impl Page for GrantChange {
    fn page(&self) -> String {
        let mut page = grants(&self.grants);
        if self.windows_invalidated > 0 {
            let _ = writeln!(
                page,
                "{} void now",
                count(self.windows_invalidated, "window")
            );
        }
        page
    }
}

impl Page for FenceReport {
    fn page(&self) -> String {
        format!(
            "{} fenced: epoch {}, {} void, {} closed, in {} us\n",
            self.region,
            self.epoch,
            count(self.windows_invalidated, "window"),
            count(self.sessions_closed, "session"),
            self.took_us
        )
    }
}

impl Page for DeleteReport {
    fn page(&self) -> String {
        format!(
            "{} deleted: {} freed, {} closed\n",
            self.region,
            size(self.freed_bytes),
            count(self.sessions_closed, "session")
        )
    }
}

fn findings(findings: &[FindingReport]) -> String {
    let mut grid = Grid::new(&["SEVERITY", "WHERE", "WHAT"]);
    for finding in findings {
        grid.row([
            finding.severity.to_owned(),
            finding.part.clone(),
            finding.detail.clone(),
        ]);
    }
    grid.page()
}

impl Page for VerifyReport {
    fn page(&self) -> String {
        let structures = count(self.structures_checked, "structure");
        let mut page = format!("pool {}: {structures} checked\n", plain(&self.pool));
        match &self.contents {
            Some(contents) => {
                let good = match (contents.sets_good, contents.records_good) {
                    (Some(sets), _) => {
                        let newest = or_nothing(contents.newest_set);
                        format!("{} good, newest {newest}", count(sets, "set"))
                    }
                    (None, records) => format!("{} good", count(records.unwrap_or(0), "record")),
                };
                let read = size(contents.bytes_checked);
                let _ = writeln!(page, "region {}: {good}, {read} checked", self.region);
            }
            None => {
                let why = self.contents_note.as_deref().unwrap_or("no reason given");
                let _ = writeln!(page, "region {}: not checked: {}", self.region, plain(why));
            }
        }
        if !self.findings.is_empty() {
            page.push_str(&findings(&self.findings));
        }
        page.push_str(match (self.damaged, &self.contents) {
            (true, _) => "DAMAGE FOUND\n",
            (false, Some(_)) => "no damage found\n",
            (false, None) => "no damage found in the pool's tables; the region was not checked\n",
        });
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> RegionReport {
        RegionReport {
            unit: "unit-1".to_owned(),
            region: "job-1".to_owned(),
            region_id: "00".repeat(16),
            mode: "overwrite",
            layout: "single".to_owned(),
            state: "active",
            need: "durable",
            virtual_address: "0x100000".to_owned(),
            length_bytes: 196 << 20,
            sets_kept: Some(2),
            capacity_bytes: Some(64 << 20),
            ring_bytes: None,
            epoch: 7,
            created_at_s: 1_700_000_000,
            pool: Some("main".to_owned()),
            writer: None,
            sessions: 0,
        }
    }

    #[test]
    fn a_list_is_aligned_and_has_no_control_characters() {
        let mut nasty = region();
        nasty.writer = Some("a\u{1b}[2Jb\r\n\u{7}".to_owned());
        nasty.region = "a-region-with-a-longer-name".to_owned();
        let page = RegionList {
            regions: vec![region(), nasty],
            missing: Vec::new(),
            exit_code: 0,
        }
        .page();
        assert!(
            !page.chars().any(|c| c.is_control() && c != '\n'),
            "{page:?}"
        );
        let lines: Vec<_> = page.lines().collect();
        assert_eq!(lines.len(), 3, "{page}");
        let column = |line: &str| line.find("unit-1").or(line.find("UNIT"));
        assert_eq!(column(lines[0]), column(lines[1]));
        assert_eq!(column(lines[1]), column(lines[2]));
        assert!(lines[1].starts_with("job-1"), "{page}");
        assert!(lines[1].contains("196 MiB  2 x 64 MiB"), "{page}");
        assert!(lines.iter().all(|line| !line.ends_with(' ')), "{page}");
    }

    #[test]
    fn details_have_their_sections() {
        let details = RegionDetails {
            region: region(),
            extents: vec![],
            grants: vec![],
            open_sessions: vec![],
            scrub: None,
            spread: None,
            placement: None,
        };
        let page = details.page();
        for expected in [
            "created:  2023-11-14 22:13:20 UTC",
            "length:   196 MiB (205520896 bytes)",
            "\nGrants\nnone",
        ] {
            assert!(page.contains(expected), "{expected} in\n{page}");
        }
    }

    #[test]
    fn field_names_are_stable() {
        let names = |value: serde_json::Value| {
            let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            names.sort_unstable();
            names.join(" ")
        };
        let details = RegionDetails {
            region: region(),
            extents: vec![],
            grants: vec![],
            open_sessions: vec![],
            scrub: None,
            spread: None,
            placement: None,
        };
        assert_eq!(
            names(serde_json::to_value(details).unwrap()),
            "capacity_bytes created_at_s epoch extents grants layout length_bytes mode need \
             open_sessions placement pool region region_id ring_bytes scrub sessions \
             sets_kept spread state unit virtual_address writer"
        );
        let failure = Failure {
            error: String::new(),
            reason: None,
            exit_code: 1,
        };
        assert_eq!(
            names(serde_json::to_value(failure).unwrap()),
            "error exit_code reason"
        );
    }
}
