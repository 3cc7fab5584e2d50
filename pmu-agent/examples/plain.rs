//! A program that knows nothing of agents or units: it counts in a file of its own, and begins with the file that it finds in its environment.
//! `plain work DIRECTORY`. What makes its snapshots is a command of its own: `plain store UNIT IDENTITY DIRECTORY` commits the count as a set of `state`.

use std::io::IoSlice;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pmu_client::{ConnectOptions, Identity, Label, OpenOptions, Unit};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["work", directory] => work(directory.as_ref()),
        ["store", unit, identity, directory] => store(unit, identity.as_ref(), directory.as_ref()),
        _ => Err("plain work DIRECTORY | plain store UNIT IDENTITY DIRECTORY".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plain: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(path: &Path) -> Result<u64> {
    Ok(std::fs::read_to_string(path)?.trim().parse()?)
}

fn work(directory: &Path) -> Result<()> {
    let mut count = match std::env::var_os("PMU_AGENT_STATE") {
        Some(state) => number(state.as_ref())?,
        None => 0,
    };
    std::fs::write(directory.join("began"), count.to_string())?;
    loop {
        count += 1;
        let (new, file) = (directory.join("count.new"), directory.join("count"));
        std::fs::write(&new, count.to_string())?;
        std::fs::rename(new, file)?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn store(unit: &str, identity: &Path, directory: &Path) -> Result<()> {
    let identity = Identity::load(identity)?;
    let unit = Unit::connect(unit, &identity, &ConnectOptions::default())?;
    let mut sets = unit.open_sets_primary("state", &OpenOptions::new())?;
    let count = number(&directory.join("count"))?.to_string();
    let receipt = sets.commit(&[IoSlice::new(count.as_bytes())], Label::new("plain")?)?;
    if !receipt.is_durable() {
        return Err("the set is not durable".into());
    }
    std::fs::write(directory.join("stored"), count)?;
    Ok(())
}
