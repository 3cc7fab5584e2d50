//! Rows of the report: a figure, its limit, and the ratio of the two, from alternating runs.

use std::io::{self, Write};

use serde::Serialize;

/// One figure beside its limit.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Name of the benchmark.
    pub name: String,
    /// Size of one operation.
    pub size_bytes: u64,
    /// Median of the figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it is compared with.
    pub limit_name: String,
    /// Median of the limit.
    pub limit_value: f64,
    /// Median of the ratios of the pairs; 1.0 is at the limit, more is better. For times it is limit / value.
    pub ratio: f64,
    /// Number of pairs.
    pub runs: usize,
    /// What else was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rates: the ratio is value / limit.
    Rate,
    /// Times: the ratio is limit / value.
    Time,
}

/// What a benchmark is called and measured in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label {
    /// Name of the benchmark.
    pub name: &'static str,
    /// Size of one operation.
    pub size_bytes: u64,
    /// Unit of the figure.
    pub unit: &'static str,
    /// What the limit is.
    pub limit_name: &'static str,
    /// Rate or time.
    pub kind: Kind,
}

/// An error of a benchmark: it ends the run.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The middle of the values (the mean of the two middle ones).
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Measures figure and limit in turn, `runs` times each after one warm-up of both; every other pair begins with the limit.
///
/// # Errors
/// What either measurement says.
pub(crate) fn alternate(
    label: Label,
    runs: usize,
    mut value: impl FnMut() -> Result<f64, Failure>,
    mut limit: impl FnMut() -> Result<f64, Failure>,
) -> Result<Row, Failure> {
    value()?;
    limit()?;
    let (mut values, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let (one, other) = if run % 2 == 0 {
            let one = value()?;
            (one, limit()?)
        } else {
            let other = limit()?;
            (value()?, other)
        };
        values.push(one);
        limits.push(other);
        ratios.push(match label.kind {
            Kind::Rate => one / other,
            Kind::Time => other / one,
        });
    }
    Ok(Row {
        name: label.name.to_owned(),
        size_bytes: label.size_bytes,
        value: median(&values),
        unit: label.unit,
        limit_name: label.limit_name.to_owned(),
        limit_value: median(&limits),
        ratio: median(&ratios),
        runs,
        note: None,
    })
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".into(),
        b if b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

/// Prints the head of the table.
///
/// # Errors
/// Writing fails.
pub(crate) fn print_head(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<32} {:>8} {:>12} {:<8} {:>12}  {:>6}  {:<4} limit",
        "name", "size", "value", "", "limit", "ratio", "runs"
    )
}

/// Prints one row of the table.
///
/// # Errors
/// Writing fails.
pub(crate) fn print_row(out: &mut impl Write, row: &Row) -> io::Result<()> {
    writeln!(
        out,
        "{:<32} {:>8} {:>12.1} {:<8} {:>12.1}  {:>6.2}  {:<4} {}",
        row.name,
        size(row.size_bytes),
        row.value,
        row.unit,
        row.limit_value,
        row.ratio,
        row.runs,
        row.limit_name
    )?;
    if let Some(note) = &row.note {
        writeln!(out, "{:<32} {note}", "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b10_ratios_are_of_pairs_and_medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let label = Label {
            name: "x",
            size_bytes: 1,
            unit: "us",
            limit_name: "y",
            kind: Kind::Time,
        };
        let row = alternate(label, 3, || Ok(2.0), || Ok(1.0)).unwrap();
        assert!((row.ratio - 0.5).abs() < 1e-9);
        let row = alternate(
            Label {
                kind: Kind::Rate,
                ..label
            },
            3,
            || Ok(2.0),
            || Ok(1.0),
        )
        .unwrap();
        assert!((row.ratio - 2.0).abs() < 1e-9);
    }
}
