//! The limit of durable records: append + fdatasync to a plain file of the same file system.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use crate::measure::Failure;

/// Appends `count` records of `size` bytes, with an fdatasync after each; microseconds for one.
pub(crate) fn append_us(folder: &Path, size: usize, count: usize) -> Result<f64, Failure> {
    let mut file = File::create(folder.join("append.limit"))?;
    let record = vec![0x5a; size];
    let begun = Instant::now();
    for _ in 0..count {
        file.write_all(&record)?;
        file.sync_data()?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / count as f64)
}

/// Overwrites a page of a file, and syncs it; milliseconds.
pub(crate) fn page_ms(folder: &Path) -> Result<f64, Failure> {
    let path = folder.join("page.limit");
    let page = [0x5a; 4096];
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    if file.metadata()?.len() == 0 {
        file.write_all_at(&page, 0)?;
        file.sync_all()?;
    }
    let begun = Instant::now();
    file.write_all_at(&page, 0)?;
    file.sync_data()?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Writes `size` bytes to a file and makes them durable; milliseconds.
pub(crate) fn write_ms(folder: &Path, size: usize) -> Result<f64, Failure> {
    let bytes = vec![0x5a; size];
    let path = folder.join("write.limit");
    let begun = Instant::now();
    let mut file = File::create(&path)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}
