//! The redundancy of a group: [`Code`].

use thiserror::Error;

use crate::field::{ORDER_MAX, Row, inverse};
use crate::kernel::{Kernel, Mode, Rows};
use crate::layout::{Layout, LayoutKind, UNITS_MAX};
use crate::placement::ShardIndex;
use crate::shard_set::ShardSet;

/// The most coefficients: K×M is largest for 16+16.
pub(crate) const COEFFICIENTS_MAX: usize = (UNITS_MAX / 2) * (UNITS_MAX / 2);

/// How much of each redundant shard [`Code::verify`] computes at a time.
const VERIFY_BLOCK_LEN: usize = 2048;

/// How many redundant shards [`Code::verify`] computes at a time.
const VERIFY_OUTPUTS: usize = crate::kernel::PASS_OUTPUTS_MAX;

/// The code of a layout: computes the redundant shards of a group from its data shards.
///
/// Redundant shard `i` (K to N-1) is the sum over all data shards `j` of `c(i, j)` × shard `j` in
/// GF(2^8) with the polynomial 0x11d, where
///
/// * `mirror` and `parity`: `c(i, j) = 1`, so a copy and the exclusive or;
/// * `erasure`: `c(i, j) = 1/(i ⊕ j)`, a Cauchy matrix, of which every square part can be inverted
///   (Blömer et al., "An XOR-Based Erasure-Resilient Coding Scheme", ICSI TR-95-048, 1995; Plank
///   and Xu, NCA 2006). The bytes are those of ISA-L with `gf_gen_cauchy1_matrix`.
///
/// Making one costs a few hundred operations and no memory; it can be copied and shared freely.
/// Nothing here allocates or blocks.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    layout: Layout,
    kernel: Kernel,
    /// A row of K for each redundant shard.
    coefficients: [u8; COEFFICIENTS_MAX],
}

impl Code {
    /// The code of the layout, computed with the fastest kernel of this processor.
    pub fn new(layout: Layout) -> Code {
        Code::with_kernel(layout, Kernel::best())
    }

    /// The code of the layout, computed with that kernel.
    pub fn with_kernel(layout: Layout, kernel: Kernel) -> Code {
        let mut code = Code {
            layout,
            kernel,
            coefficients: [0; COEFFICIENTS_MAX],
        };
        let data_shards = layout.data_shards();
        for row in data_shards..layout.units() {
            for column in 0..data_shards {
                code.coefficients[(row - data_shards) * data_shards + column] = match layout.kind()
                {
                    LayoutKind::Erasure => inverse((row ^ column) as u8),
                    _ => 1,
                };
            }
        }
        code
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The kernel.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Computes the redundant shards of a group.
    ///
    /// `data` has K slices, in order; one that is shorter than the redundant shards counts as
    /// padded with zeros. `redundant` has M slices, in order, all of one length, which is at least
    /// that of the longest data shard. What they held is overwritten. Any part of a group that lies
    /// at the same offsets of all its shards can be encoded by itself.
    pub fn encode(&self, data: &[&[u8]], redundant: &mut [&mut [u8]]) -> Result<(), ShapeError> {
        let len = self.check(data, redundant.iter().map(|shard| shard.len()))?;
        if len > 0 {
            self.kernel.combine(self.rows(), data, redundant, Mode::Set);
        }
        Ok(())
    }

    /// Adds one run of bytes of one data shard to the redundant shards, so that they can be computed
    /// while the data passes by, in any order.
    ///
    /// `redundant` as for [`Self::encode`]; zero them before a group's first bytes. `bytes` lie at
    /// `offset` of data shard `data`. When each byte of the data shards was added once, the result
    /// is that of [`Self::encode`]. Adding `old ⊕ new` turns the redundancy of the old bytes into
    /// that of the new.
    pub fn add(
        &self,
        data: ShardIndex,
        offset: usize,
        bytes: &[u8],
        redundant: &mut [&mut [u8]],
    ) -> Result<(), ShapeError> {
        let (data_shards, redundant_shards) =
            (self.layout.data_shards(), self.layout.redundant_shards());
        if data.0 >= data_shards {
            return Err(ShapeError::NoSuchShard {
                shard: data,
                shards: data_shards,
            });
        }
        check_count(redundant_shards, redundant.len())?;
        let mut column = [0; UNITS_MAX];
        for (row, coefficient) in column.iter_mut().enumerate().take(redundant_shards) {
            *coefficient = self.coefficients[row * data_shards + data.0];
        }
        add_run(
            self.kernel,
            &column[..redundant_shards],
            offset,
            bytes,
            redundant,
        )
    }

    /// Whether the redundant shards are those of the data shards.
    ///
    /// Both as for [`Self::encode`]. An error if one differs: the first difference that is found,
    /// not always the lowest; or if the slices are no group.
    pub fn verify(&self, data: &[&[u8]], redundant: &[&[u8]]) -> Result<(), VerifyError> {
        let len = self.check(data, redundant.iter().map(|shard| shard.len()))?;
        let data_shards = self.layout.data_shards();
        let mut computed = [[0; VERIFY_BLOCK_LEN]; VERIFY_OUTPUTS];
        for start in (0..len).step_by(VERIFY_BLOCK_LEN) {
            let end = len.min(start + VERIFY_BLOCK_LEN);
            let mut blocks: [&[u8]; UNITS_MAX] = [&[]; UNITS_MAX];
            for (block, shard) in blocks.iter_mut().zip(data) {
                *block = &shard[start.min(shard.len())..end.min(shard.len())];
            }
            for (pass, expected) in redundant.chunks(VERIFY_OUTPUTS).enumerate() {
                let first = pass * VERIFY_OUTPUTS;
                let rows = Rows {
                    coefficients: &self.coefficients[first * data_shards..],
                    columns: data_shards,
                };
                let mut outputs = computed.each_mut().map(|output| &mut output[..end - start]);
                let outputs = &mut outputs[..expected.len()];
                self.kernel
                    .combine(rows, &blocks[..data_shards], outputs, Mode::Set);
                for (index, (output, expected)) in outputs.iter().zip(expected).enumerate() {
                    if let Some(at) = first_difference(output, &expected[start..end]) {
                        return Err(VerifyError::Mismatch {
                            shard: ShardIndex(data_shards + first + index),
                            offset: start + at,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// All shards of a group.
    pub fn shards(&self) -> ShardSet {
        ShardSet::first(self.layout.units())
    }

    /// What each data shard is multiplied by in that shard, whichever kind it is: a data shard is
    /// once itself. The shard is one of the layout's.
    pub(crate) fn row(&self, shard: ShardIndex) -> Row {
        let data_shards = self.layout.data_shards();
        let mut row = [0; ORDER_MAX];
        match shard.0.checked_sub(data_shards) {
            Some(index) => row[..data_shards]
                .copy_from_slice(&self.coefficients[index * data_shards..][..data_shards]),
            None => row[shard.0] = 1,
        }
        row
    }

    fn rows(&self) -> Rows<'_> {
        Rows {
            coefficients: &self.coefficients,
            columns: self.layout.data_shards(),
        }
    }

    /// Checks the slices of a group, and gives the length of its redundant shards.
    fn check(
        &self,
        data: &[&[u8]],
        mut redundant: impl ExactSizeIterator<Item = usize>,
    ) -> Result<usize, ShapeError> {
        check_count(self.layout.data_shards(), data.len())?;
        check_count(self.layout.redundant_shards(), redundant.len())?;
        let Some(len) = redundant.next() else {
            return Ok(0);
        };
        if let Some(other) = redundant.find(|other| *other != len) {
            return Err(ShapeError::LengthsDiffer { len, other });
        }
        match data.iter().map(|shard| shard.len()).max() {
            Some(longest) if longest > len => Err(ShapeError::TooShort {
                len,
                needed: longest,
            }),
            _ => Ok(len),
        }
    }
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    // Comparing whole slices first is many times faster, and they are nearly always equal.
    if left == right {
        return None;
    }
    left.iter()
        .zip(right)
        .position(|(left, right)| left != right)
}

pub(crate) fn check_count(expected: usize, given: usize) -> Result<(), ShapeError> {
    if expected == given {
        Ok(())
    } else {
        Err(ShapeError::Count { expected, given })
    }
}

/// `outputs[i][offset..] += column[i] × bytes`.
pub(crate) fn add_run(
    kernel: Kernel,
    column: &[u8],
    offset: usize,
    bytes: &[u8],
    outputs: &mut [&mut [u8]],
) -> Result<(), ShapeError> {
    let needed = offset.saturating_add(bytes.len());
    if let Some(short) = outputs.iter().find(|output| output.len() < needed) {
        return Err(ShapeError::TooShort {
            len: short.len(),
            needed,
        });
    }
    let count = outputs.len();
    let mut runs: [&mut [u8]; UNITS_MAX] = core::array::from_fn(|_| Default::default());
    for (run, output) in runs.iter_mut().zip(outputs.iter_mut()) {
        *run = &mut output[offset..needed];
    }
    let rows = Rows {
        coefficients: column,
        columns: 1,
    };
    kernel.combine(rows, &[bytes], &mut runs[..count], Mode::Add);
    Ok(())
}

/// Why slices are not the shards that they should be: a mistake of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// Another number of slices than the layout or plan has shards.
    #[error("{given} shards where {expected} belong")]
    Count {
        /// How many belong there.
        expected: usize,
        /// How many were given.
        given: usize,
    },
    /// The redundant shards differ in length.
    #[error("redundant shards of {len} and of {other} bytes in one group")]
    LengthsDiffer {
        /// The length of the first.
        len: usize,
        /// A different one.
        other: usize,
    },
    /// A shard has fewer bytes than must be read from it or written to it.
    #[error("a shard of {len} bytes where {needed} are needed")]
    TooShort {
        /// The shard's length.
        len: usize,
        /// The least that fits.
        needed: usize,
    },
    /// The number is beyond the layout's shards, or of the wrong kind.
    #[error("shard {shard} where only shards below {shards} belong")]
    NoSuchShard {
        /// The number.
        shard: ShardIndex,
        /// How many there are.
        shards: usize,
    },
    /// The plan doesn't read that shard.
    #[error("shard {shard} is not a source of this plan, those are {sources}")]
    NotASource {
        /// The number.
        shard: ShardIndex,
        /// What the plan reads.
        sources: ShardSet,
    },
}

/// Why a group doesn't verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A redundant shard isn't that of the data. Which of the shards is wrong isn't known from that.
    #[error("redundant shard {shard} differs from what the data give at byte {offset}")]
    Mismatch {
        /// The redundant shard.
        shard: ShardIndex,
        /// Where in it.
        offset: usize,
    },
    /// The slices are no group of the layout.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}
