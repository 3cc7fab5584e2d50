//! Ceph with its data in memory. It isn't run beside us: the figures were measured before, on the same kind of machine.

use std::path::Path;

use crate::measure::{Failure, Kind, Label, Row, alternate};
use crate::spread::SET_BYTES;
use crate::spread::bed::Bed;

const LIMIT: &str = "Ceph, data in memory, measured before on such a machine";

/// A pool of Ceph beside the layout that tolerates as much, and what it reached with 1 GiB.
pub(crate) struct Pool {
    /// The layout.
    pub(crate) layout: &'static str,
    /// Name of the benchmark of writing, and MiB/s.
    pub(crate) write: (&'static str, f64),
    /// The same of reading.
    pub(crate) read: (&'static str, f64),
}

/// Erasure-coded, 2+1.
pub(crate) const ERASURE: Pool = Pool {
    layout: "erasure:2+1",
    write: ("peer.ceph.erasure:2+1.write", 775.0),
    read: ("peer.ceph.erasure:2+1.read", 996.0),
};

/// Three copies.
pub(crate) const MIRROR: Pool = Pool {
    layout: "mirror:3",
    write: ("peer.ceph.mirror:3.write", 687.0),
    read: ("peer.ceph.mirror:3.read", 2654.0),
};

/// Writes and reads a checkpoint.
///
/// # Errors
/// As [`crate::spread::write()`].
pub(crate) fn beside(pool: &Pool, dir: &Path, runs: usize) -> Result<Vec<Row>, Failure> {
    let mut bed = Bed::start(dir, pool.layout.parse()?, SET_BYTES)?;
    bed.warm_up()?;
    bed.note();
    let write = measure(pool.write, runs, &mut bed, Bed::commit_ms)?;
    let read = measure(pool.read, runs, &mut bed, |bed| bed.read_ms(false))?;
    Ok(vec![write, read])
}

fn measure(
    (name, limit): (&'static str, f64),
    runs: usize,
    bed: &mut Bed,
    work_ms: impl Fn(&mut Bed) -> Result<f64, Failure>,
) -> Result<Row, Failure> {
    let label = Label {
        name,
        size_bytes: SET_BYTES as u64,
        unit: "MiB/s",
        limit_name: LIMIT,
        kind: Kind::Rate,
    };
    let work = || work_ms(bed).map(|ms| bed.rate(ms));
    let mut row = alternate(label, runs, work, || Ok(limit))?;
    row.note = Some(format!("not in the same run; {}", bed.note()));
    Ok(row)
}
