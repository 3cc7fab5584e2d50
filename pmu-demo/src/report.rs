//! What a run came to: an object for programs, a line of a table for people.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::history::Leading;

/// What the backup did before the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backup {
    /// It followed the log.
    Warm,
    /// It was started afterwards.
    Cold,
}

impl Backup {
    const fn word(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// Parts of the time from the failure to resumed work, in milliseconds; they add up.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct TakeoverParts {
    /// Until the backup knew.
    pub detected_ms: f64,
    /// Then, until nothing of the old primary could land any more.
    pub fenced_ms: f64,
    /// Then, until the state was whole and the regions were open for writing.
    pub recovered_ms: f64,
    /// Then, until the first new document had its receipt.
    pub resumed_ms: f64,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// Which one, from 1.
    pub run: u32,
    /// The seed of the invocation.
    pub seed: u64,
    /// The final index is, byte for byte, that of the uninterrupted run.
    pub identical: bool,
    /// Records whose receipts the primary saw.
    pub acknowledged: u64,
    /// Those of them that the backup did not recover.
    pub lost_acknowledged: u64,
    /// Records that the backup recovered though their receipts were never seen: durable, but not acknowledged.
    pub recovered_unacknowledged: u64,
    /// Who led, and whether that was ever more than one at a time.
    pub leading: Leading,
    /// Share of the primary's time spent in calls of the client library: appends, sets, waits for receipts.
    pub checkpoint_share: f64,
    /// From the failure to the first new document with a receipt.
    pub takeover_ms: f64,
    /// Its parts.
    pub takeover: TakeoverParts,
    /// The unit's own time for both fences.
    pub fence_us: u64,
    /// The persistence method that the receipts name.
    pub persistence: String,
    /// Whether it outlives a loss of power.
    pub durable: bool,
    /// Which way the bytes went, by the receipts.
    pub transport: String,
    /// How the regions were spread over units.
    pub layout: String,
    /// Units that were killed with the primary.
    pub units_killed: Vec<String>,
    /// What the backup did before.
    pub backup: Backup,
    /// The primary was stopped and woken up again, not killed.
    pub zombie: bool,
    /// Then: what the library told it when it went on writing.
    pub zombie_stopped_by: Option<String>,
    /// How many documents there are.
    pub documents: u32,
    /// How many had receipts at the failure.
    pub failed_after_documents: u32,
    /// Records appended, by both: one for each document.
    pub records: u64,
    /// Sets committed, by both.
    pub sets: u64,
    /// Payload bytes stored, by both.
    pub bytes: u64,
    /// Documents that came out of a set in the takeover.
    pub set_documents: u32,
    /// Records fetched after the fence.
    pub unread_tail_records: u64,
    /// Their payload bytes.
    pub unread_tail_bytes: u64,
    /// Two agents did the takeover, with nobody else's hand in it.
    pub failover: bool,
    /// How long the program did nothing else for each snapshot that its agent caused, in microseconds, by both.
    pub snapshot_pauses_us: Vec<u64>,
    /// The primary's time until the failure.
    pub primary_ms: f64,
    /// The whole run, regions included.
    pub run_ms: f64,
}

impl RunReport {
    /// Nothing was lost, the answer is right, one led after the other, and a zombie was stopped.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.identical
            && self.lost_acknowledged == 0
            && self.leading.is_good()
            && self.zombie == self.zombie_stopped_by.is_some()
    }

    /// One line, while more runs follow.
    #[must_use]
    pub fn line(&self) -> String {
        let backup = self.backup.word();
        let event = if self.zombie { "stopped" } else { "killed" };
        let event = match self.units_killed.as_slice() {
            [] => event.to_owned(),
            units => format!("{event} with {}", units.join(" and ")),
        };
        let identical = if self.identical {
            "identical"
        } else {
            "NOT IDENTICAL"
        };
        format!(
            "run {}: {event} after {} of {} documents; {backup} backup resumed in {:.1} ms; {} acknowledged records \
             lost; answer {identical}; {}",
            self.run,
            self.failed_after_documents,
            self.documents,
            self.takeover_ms,
            self.lost_acknowledged,
            self.leading.text()
        )
    }
}

/// For how long snapshots stopped the program, in one line; none where there were none.
#[must_use]
pub fn pauses(reports: &[RunReport]) -> Option<String> {
    let pauses = reports.iter().flat_map(|report| &report.snapshot_pauses_us);
    let mut pauses: Vec<u64> = pauses.copied().collect();
    pauses.sort_unstable();
    let (middle, most) = (pauses.get(pauses.len() / 2)?, pauses.last()?);
    Some(format!(
        "Snapshots of the running program: {}, pause {middle} us (median), {most} us at most.",
        pauses.len()
    ))
}

/// How many instances led in all runs, and that they did so in turn, or where they did not.
#[must_use]
pub fn leaders(reports: &[RunReport]) -> String {
    let good = || reports.iter().map(|report| &report.leading);
    let bad: Vec<String> = reports
        .iter()
        .filter(|report| !report.leading.is_good())
        .map(|report| format!("FAILED: run {}: {}", report.run, report.leading.text()))
        .collect();
    if !bad.is_empty() {
        return bad.join("\n");
    }
    let led: usize = good().map(|leading| leading.instances).sum();
    let commits: u64 = good().map(|leading| leading.commits).sum();
    let records: u64 = good().map(|leading| leading.log_records).sum();
    let apart = good().filter_map(|leading| leading.apart_ms);
    let apart = apart.min_by(f64::total_cmp).unwrap_or_default();
    format!(
        "Leaders: {led} instances led, never two at a time: each had begun its last commit at least {apart:.1} ms before \
         the next one had the regions open. {commits} acknowledged commits and {records} records of the log say so."
    )
}

/// All runs as a table.
#[must_use]
pub fn table(reports: &[RunReport]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "run",
        "backup",
        "records",
        "sets",
        "MiB",
        "in checkpoints",
        "failure to work",
        "lost",
        "answer",
    ]);
    for report in reports {
        table.add_row([
            report.run.to_string(),
            report.backup.word().to_owned(),
            report.records.to_string(),
            report.sets.to_string(),
            format!("{:.1}", report.bytes as f64 / f64::from(1 << 20)),
            format!("{:.1} %", 100.0 * report.checkpoint_share),
            format!("{:.1} ms", report.takeover_ms),
            report.lost_acknowledged.to_string(),
            if report.identical {
                "identical"
            } else {
                "DIFFERS"
            }
            .to_owned(),
        ]);
    }
    for number in [0, 2, 3, 4, 5, 6, 7] {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// What the takeovers of one kind of backup were made of, in medians. `None` where there were none.
#[must_use]
pub fn takeovers(reports: &[RunReport], backup: Backup) -> Option<String> {
    let of_kind = || reports.iter().filter(move |report| report.backup == backup);
    let median = |value: fn(&RunReport) -> f64| {
        let mut values: Vec<f64> = of_kind().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let whole = median(|report| report.takeover_ms)?;
    let part = |value| median(value).unwrap_or_default();
    Some(format!(
        "{} backup: {whole:.1} ms from failure to work (detect {:.1}, fence {:.1}, recover {:.1}, resume {:.1}; the unit \
         itself fenced in {:.0} us)",
        backup.word(),
        part(|report| report.takeover.detected_ms),
        part(|report| report.takeover.fenced_ms),
        part(|report| report.takeover.recovered_ms),
        part(|report| report.takeover.resumed_ms),
        part(|report| report.fence_us as f64),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> RunReport {
        RunReport {
            failover: false,
            snapshot_pauses_us: Vec::new(),
            run: 1,
            seed: 7,
            identical: true,
            acknowledged: 40,
            lost_acknowledged: 0,
            recovered_unacknowledged: 1,
            leading: Leading {
                instances: 2,
                commits: 110,
                log_records: 90,
                apart_ms: Some(31.5),
                violation: None,
            },
            checkpoint_share: 0.125,
            takeover_ms: 12.5,
            takeover: TakeoverParts::default(),
            fence_us: 90,
            persistence: "server-persist".into(),
            durable: true,
            transport: "soft-unix".into(),
            layout: "single".into(),
            units_killed: Vec::new(),
            backup: Backup::Warm,
            zombie: false,
            zombie_stopped_by: None,
            documents: 100,
            failed_after_documents: 40,
            records: 100,
            sets: 9,
            bytes: 3 << 20,
            set_documents: 0,
            unread_tail_records: 2,
            unread_tail_bytes: 300,
            primary_ms: 50.0,
            run_ms: 200.0,
        }
    }

    #[test]
    fn losses_differences_and_zombies_that_write_are_failures() {
        assert!(report().is_good());
        assert!(
            !RunReport {
                lost_acknowledged: 1,
                ..report()
            }
            .is_good()
        );
        assert!(
            !RunReport {
                identical: false,
                ..report()
            }
            .is_good()
        );
        assert!(
            !RunReport {
                zombie: true,
                ..report()
            }
            .is_good()
        );
        let stopped = Some("fenced".to_owned());
        assert!(
            RunReport {
                zombie: true,
                zombie_stopped_by: stopped,
                ..report()
            }
            .is_good()
        );
    }

    #[test]
    fn p14_two_leaders_or_none_that_were_seen_are_failures() {
        let leading = report().leading;
        let two = Leading {
            violation: Some("two leaders: a and b".into()),
            ..Leading::default()
        };
        let alone = Leading {
            instances: 1,
            apart_ms: None,
            ..leading.clone()
        };
        let unread = Leading {
            log_records: 0,
            ..leading
        };
        for (leading, word) in [
            (two, "two leaders: a and b"),
            (alone, "NOT CHECKED: 1 "),
            (unread, "NOT CHECKED: 2 "),
        ] {
            let failed = RunReport {
                leading,
                ..report()
            };
            assert!(!failed.is_good(), "{word}");
            assert!(failed.line().contains(word), "{}", failed.line());
            let summary = leaders(&[report(), failed]);
            assert!(summary.contains("FAILED: run 1") && summary.contains(word));
        }
        let summary = leaders(&[report(), report()]);
        assert!(summary.contains("4 instances led, never two"), "{summary}");
        assert!(summary.contains("31.5 ms"), "{summary}");
    }

    #[test]
    fn programs_find_what_was_promised() {
        let object = serde_json::to_value(report()).unwrap();
        for key in [
            "identical",
            "lost_acknowledged",
            "acknowledged",
            "leading",
            "checkpoint_share",
            "takeover_ms",
            "persistence",
            "transport",
        ] {
            assert!(
                object.get(key).is_some_and(|value| !value.is_null()),
                "{key}"
            );
        }
        assert_eq!(object["backup"], "warm");
    }

    #[test]
    fn people_see_what_matters() {
        let lost = RunReport {
            run: 2,
            lost_acknowledged: 3,
            identical: false,
            ..report()
        };
        let text = table(&[report(), lost.clone()]);
        for word in ["12.5 %", "12.5 ms", "identical", "DIFFERS", "3.0"] {
            assert!(text.contains(word), "{word} is missing:\n{text}");
        }
        assert!(lost.line().contains("NOT IDENTICAL"));
        assert!(
            takeovers(&[report()], Backup::Warm)
                .unwrap()
                .contains("12.5 ms")
        );
        assert_eq!(takeovers(&[report()], Backup::Cold), None);
    }
}
