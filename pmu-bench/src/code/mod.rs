//! The erasure code beside ISA-L, and the exclusive or beside `memcpy`: same data, same memory, one process, in turn.

mod isal;

use std::hint::black_box;
use std::time::Instant;

use pmu_stripe::{Code, Layout, LayoutKind, Reconstruct, ShardIndex, ShardSet};

use crate::code::isal::{Isal, Tables};
use crate::measure::{Failure, Kind, Label, Row, alternate};

/// Lengths of the shards: one group stays in a second-level cache, or it doesn't.
const SHARD_BYTES: [usize; 2] = [64 << 10, 1 << 20];
/// Bytes of data that one measurement takes: some ten milliseconds.
const DATA_BYTES: usize = 128 << 20;
/// So many times more pairs than of other figures: they are short.
const PAIRS: usize = 8;
/// The shard that is rebuilt.
const LOST: ShardIndex = ShardIndex(1);

const ISAL: &str = "ISA-L, the same code and data";

/// A group of shards, one after the other in memory as those of a checkpoint are, and what is computed of it.
struct Shards {
    layout: Layout,
    length: usize,
    data: Vec<u8>,
    redundant: Vec<u8>,
    target: Vec<u8>,
}

impl Shards {
    fn new(layout: Layout, length: usize) -> Self {
        let data = layout.data_shards() * length;
        Self {
            layout,
            length,
            data: (0..data)
                .map(|index| (index * 31 + index / 253) as u8)
                .collect(),
            redundant: vec![1; layout.redundant_shards() * length],
            target: vec![1; length],
        }
    }

    /// The data and the redundant shards.
    fn split(&mut self) -> (Vec<&[u8]>, Vec<&mut [u8]>) {
        let data = black_box(&self.data).chunks(self.length).collect();
        (data, self.redundant.chunks_mut(self.length).collect())
    }

    /// The first K shards without the lost one, and where that goes to.
    fn survivors(&mut self) -> (Vec<&[u8]>, &mut [u8]) {
        let data = black_box(&self.data).chunks(self.length);
        let all = data.chain(self.redundant.chunks(self.length)).enumerate();
        let others = all.filter(|(index, _)| *index != LOST.0);
        let others = others.map(|(_, shard)| shard);
        (
            others.take(self.layout.data_shards()).collect(),
            &mut self.target,
        )
    }

    /// MiB of input a second of what computes one group; it may take its shards anew each time.
    fn rate(
        &mut self,
        mut group: impl FnMut(&mut Self) -> Result<(), Failure>,
    ) -> Result<f64, Failure> {
        let times = DATA_BYTES / self.data.len() + 1;
        let begun = Instant::now();
        for _ in 0..times {
            group(self)?;
            black_box((&mut self.redundant, &mut self.target));
        }
        let mib = (times * self.data.len()) as f64 / f64::from(1 << 20);
        Ok(mib / begun.elapsed().as_secs_f64())
    }

    /// What is computed is cleared, so that it can be told who computed it.
    fn clear(&mut self) {
        self.redundant.fill(0);
        self.target.fill(0);
    }
}

fn label(name: &'static str, size: usize, limit_name: &'static str) -> Label {
    Label {
        name,
        size_bytes: size as u64,
        unit: "MiB/s",
        limit_name,
        kind: Kind::Rate,
    }
}

fn note(code: &Code) -> Option<String> {
    Some(format!(
        "kernel {}, shards of the size",
        code.kernel().name()
    ))
}

/// Encoding, in MiB of data a second.
///
/// # Errors
/// No ISA-L; both compute other bytes.
pub(crate) fn encode(name: &'static str, layout: &str, runs: usize) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let (code, isal) = (Code::new(layout), Isal::load()?);
    let (data, redundant) = (layout.data_shards(), layout.redundant_shards());
    let tables = isal.tables(&isal.cauchy(data, redundant)[data * data..], data);
    let ours = |shards: &mut Shards| {
        let (data, mut redundant) = shards.split();
        Ok(code.encode(&data, &mut redundant)?)
    };
    let theirs = |shards: &mut Shards| {
        let (data, mut redundant) = shards.split();
        tables.multiply(&data, &mut redundant);
        Ok(())
    };
    both(label(name, 0, ISAL), &code, runs, ours, theirs)
}

/// Rebuilding one lost data shard, in MiB of what is read a second.
///
/// # Errors
/// As [`encode`].
pub(crate) fn rebuild(name: &'static str, layout: &str, runs: usize) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let (code, isal) = (Code::new(layout), Isal::load()?);
    let tables = decoder(&isal, layout)?;
    let lost = ShardSet::EMPTY.with(LOST);
    let plan = Reconstruct::of(&code, code.shards().without(lost), lost)?;
    let ours = |shards: &mut Shards| {
        let (sources, target) = shards.survivors();
        Ok(plan.apply(&sources, &mut [target])?)
    };
    let theirs = |shards: &mut Shards| {
        let (sources, target) = shards.survivors();
        tables.multiply(&sources, &mut [target]);
        Ok(())
    };
    both(label(name, 0, ISAL), &code, runs, ours, theirs)
}

/// What computes the lost shard from the first K others.
fn decoder(isal: &Isal, layout: Layout) -> Result<Tables<'_>, Failure> {
    let data = layout.data_shards();
    let matrix = isal.cauchy(data, layout.redundant_shards());
    let rows = matrix.chunks(data).enumerate();
    let survivors = rows.filter(|(row, _)| *row != LOST.0).take(data);
    let survivors: Vec<u8> = survivors.flat_map(|(_, row)| row).copied().collect();
    let inverse = isal
        .inverse(&survivors, data)
        .ok_or("ISA-L inverts no part of its matrix")?;
    Ok(isal.tables(&inverse[LOST.0 * data..][..data], data))
}

/// The parity of three shards, in MiB of data a second, beside copying them.
///
/// # Errors
/// None that is expected.
pub(crate) fn exclusive_or(
    name: &'static str,
    layout: &str,
    runs: usize,
) -> Result<Vec<Row>, Failure> {
    let layout: Layout = layout.parse()?;
    let code = Code::new(layout);
    let mut rows = Vec::new();
    for length in SHARD_BYTES {
        let mut shards = Shards::new(layout, length);
        let mut copied = vec![1; shards.data.len()];
        let shards = std::cell::RefCell::new(&mut shards);
        let mut row = alternate(
            label(name, length, "memcpy of the data"),
            runs * PAIRS,
            || {
                shards.borrow_mut().rate(|shards| {
                    let (data, mut redundant) = shards.split();
                    Ok(code.encode(&data, &mut redundant)?)
                })
            },
            || {
                shards.borrow_mut().rate(|shards| {
                    copied.copy_from_slice(black_box(&shards.data));
                    black_box(&mut copied);
                    Ok(())
                })
            },
        )?;
        row.note = note(&code);
        rows.push(row);
    }
    Ok(rows)
}

/// Measures both ways to compute the same, after a look whether it is.
fn both(
    mut label: Label,
    code: &Code,
    runs: usize,
    ours: impl Fn(&mut Shards) -> Result<(), Failure>,
    theirs: impl Fn(&mut Shards) -> Result<(), Failure>,
) -> Result<Vec<Row>, Failure> {
    debug_assert_eq!(code.layout().kind(), LayoutKind::Erasure);
    let mut rows = Vec::new();
    for length in SHARD_BYTES {
        let mut shards = Shards::new(code.layout(), length);
        shards.clear();
        ours(&mut shards)?;
        let expected = (shards.redundant.clone(), shards.target.clone());
        shards.clear();
        theirs(&mut shards)?;
        if (&shards.redundant, &shards.target) != (&expected.0, &expected.1) {
            return Err("ISA-L computes other bytes".into());
        }
        label.size_bytes = length as u64;
        let shards = std::cell::RefCell::new(shards);
        let mut row = alternate(
            label,
            runs * PAIRS,
            || shards.borrow_mut().rate(&ours),
            || shards.borrow_mut().rate(&theirs),
        )?;
        row.note = note(code);
        rows.push(row);
    }
    Ok(rows)
}
