//! A unit is lost, and another takes its place: its share is computed from those of the others.

use std::path::Path;
use std::thread;
use std::time::Instant;

use pmu_client::Layout;

use super::bed::Bed;
use super::plain::{Direction, Plain};
use super::{SET_BYTES, time};
use crate::measure::{Failure, Row, alternate};

/// The rebuild, beside moving as many bytes plainly: the surviving shares from as many processes as are read, and one share to another.
///
/// # Errors
/// As [`super::write()`]; bytes of survivors were read more than once.
pub(crate) fn rebuild(
    name: &'static str,
    layout: &str,
    dir: &Path,
    runs: usize,
) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let mut bed = Bed::start(dir, layout, SET_BYTES)?;
    bed.commit_ms()?;
    let readers = layout.units_to_read();
    let share = SET_BYTES / layout.data_shards();
    let mut from = Plain::start(Direction::In, readers, share)?;
    let mut to = Plain::start(Direction::Out, 1, share)?;
    let (mut received, sent) = (vec![1; readers * share], vec![1; share]);
    let mut read = Vec::new();
    let mut row = alternate(
        time(
            name,
            "the surviving shares plainly from as many processes, and one share to another",
        ),
        runs,
        || {
            let (ms, bytes_read) = bed.rebuild_ms()?;
            read.push(bytes_read as f64 / (readers * share) as f64);
            Ok(ms)
        },
        || plainly_ms(&mut from, &mut to, &mut received, &sent),
    )?;
    let most = read.iter().copied().fold(0.0, f64::max);
    if most > 1.01 {
        return Err(format!("each surviving byte was read {most:.3} times").into());
    }
    row.note = Some(format!(
        "memory, not durable; each surviving byte was read {most:.4} times, checksums and headers included; pmm's start included; {}",
        bed.rebuild_note()
    ));
    Ok(vec![row])
}

fn plainly_ms(
    from: &mut Plain,
    to: &mut Plain,
    received: &mut [u8],
    sent: &[u8],
) -> Result<f64, Failure> {
    let begun = Instant::now();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            to.send_ms(sent)
                .map(drop)
                .map_err(|error| error.to_string())
        });
        from.receive_ms(received)?;
        let sending = sending.join().map_err(|_| "a stream's thread panicked")?;
        sending.map_err(Failure::from)
    })?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}
