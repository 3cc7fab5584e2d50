//! How much memory a client needs for a set that it writes piece by piece: that of a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use pmu_client::Label;

use crate::measure::Failure;
use crate::site::Site;
use crate::spread::units;

/// The buffer that is written again and again.
const PIECE_BYTES: usize = 64 << 10;

/// What the process is to write.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Folder of the client's identity.
    #[arg(long)]
    identity: PathBuf,
    /// Length of the set.
    #[arg(long)]
    bytes: u64,
    /// Addresses of the units.
    units: Vec<String>,
}

/// Memory in use, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// What the process held when the region was open.
    pub(crate) before: f64,
    /// The most that it held then.
    pub(crate) peak: f64,
}

/// Writes a set of `bytes` in a process of its own.
///
/// # Errors
/// What that process says.
pub(crate) fn measure(identity: &Path, addresses: &[&str], bytes: u64) -> Result<Used, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .arg("write-set")
        .arg("--identity")
        .arg(identity)
        .args(["--bytes", &bytes.to_string()])
        .args(addresses)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(before)), Some(Ok(peak))) => Ok(Used { before, peak }),
        _ => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

/// The process: writes the set, and prints what it held before and at most, in MiB.
///
/// # Errors
/// Of the client library.
pub(crate) fn write(set: &Set) -> Result<String, Failure> {
    let addresses: Vec<_> = set.units.iter().map(String::as_str).collect();
    let spread = units::find(&set.identity, &addresses)?;
    let mut primary = spread.open_primary(&Site::options())?;
    let piece = vec![0x5a; PIECE_BYTES];
    // From here on the peak is counted anew: opening must not hide what writing takes.
    fs::write("/proc/self/clear_refs", "5")?;
    let before = resident("VmRSS:")?;
    let mut put = primary.begin(Some(set.bytes), Label::default())?;
    let mut left = set.bytes;
    while left > 0 {
        let now = left.min(PIECE_BYTES as u64);
        put.write_bytes(&piece[..now as usize])?;
        left -= now;
    }
    put.finish()?;
    Ok(format!("{before} {}", resident("VmHWM:")?))
}

fn resident(field: &str) -> Result<f64, Failure> {
    let text = fs::read_to_string("/proc/self/status")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix("kB"));
    let kib: f64 = value
        .ok_or("/proc/self/status lacks a field")?
        .trim()
        .parse()?;
    Ok(kib / 1024.0)
}
