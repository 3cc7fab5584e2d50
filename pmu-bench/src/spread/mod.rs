//! Checkpoints of 1 GiB spread over real units: time, bytes on the wire, loss of a unit, memory of the client.

pub(crate) mod bed;
pub(crate) mod distributor;
pub(crate) mod memory;
pub(crate) mod plain;
pub(crate) mod rebuild;
mod units;
mod used;

use std::cell::RefCell;
use std::path::Path;

use pmu_client::Layout;
use pmu_fabric::soft::wire::{HEADER_BYTES, OP_BYTES};

use crate::measure::{Failure, Kind, Label, Row, alternate};
use crate::spread::bed::Bed;
use crate::spread::plain::{Direction, Plain};
use crate::spread::units::Units;

/// Length of a checkpoint.
pub(crate) const SET_BYTES: usize = 1 << 30;
/// A small one, to see that memory doesn't depend on the length.
const SMALL_SET_BYTES: usize = 64 << 20;
/// How many redundancy groups a client may hold at a time.
const GROUPS_HELD_MAX: u64 = 16;

const MIB: f64 = (1 << 20) as f64;

fn time(name: &'static str, limit_name: &'static str) -> Label {
    Label {
        name,
        size_bytes: SET_BYTES as u64,
        unit: "ms",
        limit_name,
        kind: Kind::Time,
    }
}

/// A commit, beside moving as many bytes, redundancy included, to as many processes.
///
/// # Errors
/// Units or processes don't start, or fail; too little memory.
pub(crate) fn write(
    name: &'static str,
    layout: &str,
    dir: &Path,
    runs: usize,
) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let mut bed = Bed::start(dir, layout, SET_BYTES)?;
    bed.warm_up()?;
    let share = SET_BYTES / layout.data_shards();
    let plain = Plain::start(Direction::Out, layout.units(), share)?;
    bed.note();
    let (bed, plain) = (RefCell::new(bed), RefCell::new(plain));
    let mut row = alternate(
        time(
            name,
            "as many bytes plainly to as many processes, in parallel",
        ),
        runs,
        || bed.borrow_mut().commit_ms(),
        || plain.borrow_mut().send_ms(&bed.borrow().payload),
    )?;
    row.note = Some(format!(
        "{}; {}",
        bed.into_inner().note(),
        plain.into_inner().note()
    ));
    Ok(vec![row])
}

/// What one commit sends, in MiB, beside the least that the layout needs.
///
/// # Errors
/// As [`write()`].
pub(crate) fn wire(name: &'static str, layout: &str, dir: &Path) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let mut bed = Bed::start(dir, layout, SET_BYTES)?;
    bed.commit_ms()?;
    let before = bed.counters();
    bed.commit_ms()?;
    let after = bed.counters();
    let payload = after.bytes_written - before.bytes_written;
    let chains = after.chains - before.chains;
    let operations = after.work_requests - before.work_requests;
    let heads = chains * HEADER_BYTES as u64 + operations * OP_BYTES as u64;
    let sent = (payload + heads) as f64;
    let least = SET_BYTES as f64 * layout.units() as f64 / layout.data_shards() as f64;
    Ok(vec![Row {
        name: name.to_owned(),
        size_bytes: SET_BYTES as u64,
        value: sent / MIB,
        unit: "MiB",
        limit_name: "(K+M)/K of the payload".to_owned(),
        limit_value: least / MIB,
        ratio: least / sent,
        runs: 1,
        note: Some(format!(
            "{:.3} % more than the least, heads of {chains} chains with {operations} operations included; {} system calls",
            (sent / least - 1.0) * 100.0,
            after.doorbells - before.doorbells
        )),
    }])
}

/// Reading with all units there, beside moving the payload from as many processes.
///
/// # Errors
/// As [`write()`].
pub(crate) fn read(
    name: &'static str,
    layout: &str,
    dir: &Path,
    runs: usize,
) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let mut bed = Bed::start(dir, layout, SET_BYTES)?;
    bed.commit_ms()?;
    let mut plain = Plain::start(
        Direction::In,
        layout.units(),
        SET_BYTES.div_ceil(layout.units()),
    )?;
    let mut buffer = vec![1; SET_BYTES];
    bed.note();
    let mut row = alternate(
        time(
            name,
            "the payload plainly from as many processes, in parallel",
        ),
        runs,
        || bed.read_ms(false),
        || plain.receive_ms(&mut buffer),
    )?;
    row.note = Some(format!("{}; {}", bed.note(), plain.note()));
    Ok(vec![row])
}

/// Reading after a unit was killed, beside reading the same from as many units that all run.
///
/// # Errors
/// As [`write()`].
pub(crate) fn read_degraded(
    name: &'static str,
    layout: &str,
    dir: &Path,
    runs: usize,
) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let mut healthy = Bed::start(dir, layout, SET_BYTES)?;
    healthy.commit_ms()?;
    let mut degraded = Bed::start(dir, layout, SET_BYTES)?;
    degraded.commit_ms()?;
    degraded.lose_a_unit()?;
    degraded.note();
    let mut row = alternate(
        time(name, "the same with all units there"),
        runs,
        || degraded.read_ms(true),
        || healthy.read_ms(false),
    )?;
    row.note = Some(format!("one unit killed; {}", degraded.note()));
    Ok(vec![row])
}

/// How much memory a process of its own takes more for a set that it writes from a small buffer.
///
/// # Errors
/// As [`write()`].
pub(crate) fn client_memory(
    name: &'static str,
    layout: &str,
    dir: &Path,
) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let folder = tempfile::tempdir_in(dir)?;
    let units = Units::start(folder.path(), layout, SET_BYTES as u64)?;
    let subsegment = units.find()?.membership().subsegment_bytes;
    let limit = (GROUPS_HELD_MAX * layout.units() as u64 * subsegment) as f64 / MIB;
    let measure = |bytes| memory::measure(&units.identity(), &units.addresses(), bytes);
    let small = measure(SMALL_SET_BYTES as u64)?;
    let large = measure(SET_BYTES as u64)?;
    let growth = large.peak - large.before;
    Ok(vec![Row {
        name: name.to_owned(),
        size_bytes: SET_BYTES as u64,
        value: growth,
        unit: "MiB",
        limit_name: format!("{GROUPS_HELD_MAX} redundancy groups of {layout}"),
        limit_value: limit,
        // Where nothing grows at all the ratio is that of one KiB.
        ratio: limit / growth.max(1.0 / 1024.0),
        runs: 1,
        note: Some(format!(
            "{:.1} MiB with the region open; growth for {} MiB: {:.1} MiB",
            large.before,
            SMALL_SET_BYTES >> 20,
            small.peak - small.before
        )),
    }])
}
