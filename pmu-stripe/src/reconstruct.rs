//! Missing shards from others of their group: [`Reconstruct`].

use thiserror::Error;

use crate::code::{COEFFICIENTS_MAX, Code, ShapeError, add_run, check_count};
use crate::field::{ORDER_MAX, Square, invert, multiply_row};
use crate::kernel::{Kernel, Mode, Rows};
use crate::layout::UNITS_MAX;
use crate::placement::ShardIndex;
use crate::shard_set::ShardSet;

/// How to compute missing shards of a group, data or redundant, from K others. Made once for what is
/// missing, then applied to any number of groups, or to pieces of them.
///
/// With G the matrix of the code (the identity above the coefficients of [`Code`]), S its rows of
/// the K sources and T its rows of the targets: targets = T × S⁻¹ × sources.
#[derive(Clone, Copy, Debug)]
pub struct Reconstruct {
    kernel: Kernel,
    sources: ShardSet,
    targets: ShardSet,
    /// The first of the shards that hold redundancy.
    data_shards: usize,
    /// A row of K for each target: T × S⁻¹.
    coefficients: [u8; COEFFICIENTS_MAX],
}

impl Reconstruct {
    /// Plans to compute all shards that are not `present`. Of more than K present ones the K lowest
    /// are read, so data before redundancy. Nothing is computed yet; with K = 32 planning takes some
    /// ten microseconds.
    pub fn new(code: &Code, present: ShardSet) -> Result<Reconstruct, ReconstructError> {
        Reconstruct::of(code, present, code.shards().without(present))
    }

    /// Plans to compute just the shards `wanted`, none of which is present, as [`Self::new`] does
    /// for all that are missing.
    pub fn of(
        code: &Code,
        present: ShardSet,
        wanted: ShardSet,
    ) -> Result<Reconstruct, ReconstructError> {
        let (shards, data_shards) = (code.layout().units(), code.layout().data_shards());
        let unknown = present
            .without(code.shards())
            .iter()
            .chain(wanted.without(code.shards()).iter())
            .next();
        if let Some(shard) = unknown {
            return Err(ReconstructError::NoSuchShard { shard, shards });
        }
        let both = present.intersection(wanted);
        if !both.is_empty() {
            return Err(ReconstructError::NotMissing { shards: both });
        }
        if present.len() < data_shards {
            return Err(ReconstructError::TooManyMissing {
                missing: code.shards().without(present),
                tolerated: code.layout().tolerated_losses(),
                present: present.len(),
                needed: data_shards,
            });
        }
        let sources = present.lowest(data_shards);
        let coefficients = coefficients(code, sources, wanted);
        Ok(Reconstruct {
            kernel: code.kernel(),
            sources,
            targets: wanted,
            data_shards,
            coefficients,
        })
    }

    /// The K shards that are read.
    pub fn sources(&self) -> ShardSet {
        self.sources
    }

    /// The shards that are computed, 0 to M of them.
    pub fn targets(&self) -> ShardSet {
        self.targets
    }

    /// Computes the targets from the sources, both in the order of their numbers. What the targets
    /// held is overwritten.
    ///
    /// Each target is as long as it is stored. A data shard among the sources that is shorter counts
    /// as padded with zeros; a redundant shard is never shorter than a target, and an error if it
    /// is. Instead of whole shards all slices may be the parts of them at the same offsets.
    pub fn apply(&self, sources: &[&[u8]], targets: &mut [&mut [u8]]) -> Result<(), ShapeError> {
        check_count(self.sources.len(), sources.len())?;
        check_count(self.targets.len(), targets.len())?;
        let needed = targets.iter().map(|target| target.len()).max().unwrap_or(0);
        for (shard, source) in self.sources.iter().zip(sources) {
            if shard.0 >= self.data_shards && source.len() < needed {
                return Err(ShapeError::TooShort {
                    len: source.len(),
                    needed,
                });
            }
        }
        let rows = Rows {
            coefficients: &self.coefficients,
            columns: self.sources.len(),
        };
        self.kernel.combine(rows, sources, targets, Mode::Set);
        Ok(())
    }

    /// Adds one run of bytes of one source to the targets, so that they can be computed while
    /// sources arrive, in any order. Zero the targets before; when each byte of the sources was
    /// added once, the result is that of [`Self::apply`]. `bytes` lie at `offset` of shard `source`;
    /// what of them lies beyond a target's end adds nothing to it.
    pub fn add(
        &self,
        source: ShardIndex,
        offset: usize,
        bytes: &[u8],
        targets: &mut [&mut [u8]],
    ) -> Result<(), ShapeError> {
        if !self.sources.contains(source) {
            return Err(ShapeError::NotASource {
                shard: source,
                sources: self.sources,
            });
        }
        check_count(self.targets.len(), targets.len())?;
        let (columns, column) = (self.sources.len(), self.sources.rank(source));
        for (row, target) in targets.iter_mut().enumerate() {
            let len = bytes.len().min(target.len().saturating_sub(offset));
            if len > 0 {
                let coefficient = [self.coefficients[row * columns + column]];
                add_run(
                    self.kernel,
                    &coefficient,
                    offset,
                    &bytes[..len],
                    &mut [target],
                )?;
            }
        }
        Ok(())
    }
}

/// T × S⁻¹, a row of K for each target.
fn coefficients(code: &Code, sources: ShardSet, targets: ShardSet) -> [u8; COEFFICIENTS_MAX] {
    let order = code.layout().data_shards();
    let mut matrix: Square = [[0; ORDER_MAX]; ORDER_MAX];
    for (row, source) in matrix.iter_mut().zip(sources.iter()) {
        *row = code.row(source);
    }
    // A square part of a Cauchy matrix has an inverse, and so have K rows of the identity above one;
    // of a single row of ones likewise.
    let Some(inverted) = invert(&matrix, order) else {
        unreachable!("K shards of a group determine the others");
    };
    let mut coefficients = [0; COEFFICIENTS_MAX];
    for (row, target) in coefficients.chunks_exact_mut(order).zip(targets.iter()) {
        let product = multiply_row(&code.row(target), &inverted);
        row.copy_from_slice(&product[..order]);
    }
    coefficients
}

const _: () = assert!(ORDER_MAX == UNITS_MAX);

/// Why shards can't be computed from the present ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReconstructError {
    /// More shards are missing than the layout tolerates.
    #[error(
        "{} shards are missing ({missing}), the layout tolerates {tolerated}: {present} present, {needed} needed",
        missing.len()
    )]
    TooManyMissing {
        /// Which are missing.
        missing: ShardSet,
        /// M.
        tolerated: usize,
        /// How many are present.
        present: usize,
        /// K.
        needed: usize,
    },
    /// A shard that is wanted is present.
    #[error("shards {shards} are both present and wanted")]
    NotMissing {
        /// Those that are both.
        shards: ShardSet,
    },
    /// The layout has fewer shards.
    #[error("shard {shard} of a layout with {shards}")]
    NoSuchShard {
        /// The lowest that doesn't exist.
        shard: ShardIndex,
        /// N.
        shards: usize,
    },
}
