//! What is printed: reports for people or as JSON, and progress on a terminal.
#![allow(clippy::print_stdout, reason = "this is the module that prints")]

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::CliError;
use crate::cli::values::plain;

/// Where reports go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) verbose: bool,
}

impl Output {
    /// A report: on standard output, or on standard error where the payload goes to standard output.
    pub(super) fn report(
        self,
        beside_payload: bool,
        value: &impl Serialize,
        text: &str,
    ) -> Result<(), CliError> {
        let line = if self.json {
            serde_json::to_string(value).map_err(|error| CliError::output(error.into()))?
        } else {
            // Each line for itself: line ends are ours, what stands between them may be anybody's.
            text.lines().map(plain).collect::<Vec<_>>().join("\n")
        };
        if beside_payload {
            eprintln!("{line}");
            return Ok(());
        }
        writeln!(io::stdout().lock(), "{line}").map_err(CliError::output)
    }

    /// A remark for people who asked for remarks.
    pub(super) fn remark(self, text: &str) {
        if self.verbose {
            eprintln!("pmu: {}", plain(text));
        }
    }

    /// A progress bar, on a terminal only.
    pub(super) fn progress(self, length: Option<u64>) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let target = ProgressDrawTarget::stderr_with_hz(10);
        let bar = ProgressBar::with_draw_target(length, target);
        let template = match length {
            Some(_) => "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{spinner} {bytes} {bytes_per_sec} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// A table for people.
pub(super) struct Grid(Table);

impl Grid {
    pub(super) fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_header(header.to_vec());
        Self(table)
    }

    pub(super) fn row(&mut self, cells: &[String]) {
        self.0
            .add_row(cells.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    }

    pub(super) fn text(&self) -> String {
        self.0
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Goes on if `yes` was given, or a person at the terminal says so.
pub(super) fn confirm(yes: bool, question: &str) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(CliError::Usage(format!(
            "{question} Without a terminal, say so with --yes"
        )));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(CliError::output)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(CliError::Usage("nothing was done".into()))
}
