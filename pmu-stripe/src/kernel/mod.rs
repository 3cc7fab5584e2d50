//! Products of matrices of coefficients with shards, with the fastest instructions that the
//! processor has. The only module of this crate with unsafe code, and that only where an
//! instruction needs it: reading and writing vectors, and calls of functions for one kind of
//! processor.

use core::fmt;
use std::sync::OnceLock;

use crate::field::multiply;
use crate::layout::UNITS_MAX;

#[macro_use]
mod vector;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

/// The most sources of one combination.
pub(crate) const SOURCES_MAX: usize = UNITS_MAX;

/// How many outputs are computed in one pass over the sources: as many as leave room for the
/// tables in 16 vector registers.
pub(crate) const PASS_OUTPUTS_MAX: usize = 4;

/// How many sources are read in one pass if there is more than one output. Shards start a power of
/// two apart, so that the same offset of all of them falls into one set of a first-level cache; with
/// the outputs that is as many lines as a set of 8 holds. Reading ten sources at a time makes 10+4
/// a third slower, although the outputs are read and written less often.
const PASS_SOURCES_MAX: usize = 4;

/// How much of each shard is combined before the next sources or outputs are looked at: with four of
/// each that stays in a second-level cache, and is long enough for prefetching.
const BLOCK_LEN: usize = 16 << 10;

/// The instructions that a [`Kernel`] uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelName {
    /// 64-bit words; every processor.
    Portable,
    /// x86-64 with AVX2: products by table look-up (VPSHUFB), 32 bytes at a time.
    Avx2,
    /// x86-64 with AVX2 and GFNI: products by GF2P8AFFINEQB, 32 bytes at a time.
    GfniAvx2,
    /// x86-64 with AVX-512 (F, BW, VL) and GFNI, 64 bytes at a time.
    GfniAvx512,
}

impl KernelName {
    /// All of them, each usually faster than the one before.
    pub const ALL: [KernelName; 4] = [
        KernelName::Portable,
        KernelName::Avx2,
        KernelName::GfniAvx2,
        KernelName::GfniAvx512,
    ];

    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            KernelName::Portable => true,
            KernelName::Avx2 => is_x86_feature_detected!("avx2"),
            KernelName::GfniAvx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni")
            }
            KernelName::GfniAvx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("gfni")
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        return matches!(self, KernelName::Portable);
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            KernelName::Portable => "portable",
            KernelName::Avx2 => "avx2",
            KernelName::GfniAvx2 => "gfni-avx2",
            KernelName::GfniAvx512 => "gfni-avx512",
        })
    }
}

/// The code that computes products. All kernels give the same bytes.
///
/// A value exists only if this processor has the instructions: that is what the unsafe calls rest
/// on, so nothing outside of this module can make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(KernelName);

impl Kernel {
    /// The fastest for this processor. The standard library asks the processor once and remembers.
    pub fn best() -> Kernel {
        Kernel::available()
            .last()
            .unwrap_or(Kernel(KernelName::Portable))
    }

    /// All that this processor has, the fastest last.
    pub fn available() -> impl Iterator<Item = Kernel> {
        KernelName::ALL.into_iter().filter_map(Kernel::named)
    }

    /// The kernel of that name, if this processor has it, and if it computes right here: an emulator may have an
    /// instruction, and do something else with it.
    pub fn named(name: KernelName) -> Option<Kernel> {
        static SOUND: [OnceLock<bool>; KernelName::ALL.len()] =
            [const { OnceLock::new() }; KernelName::ALL.len()];
        let sound = || *SOUND[name as usize].get_or_init(|| Kernel(name).is_sound());
        (name.is_available() && sound()).then_some(Kernel(name))
    }

    /// Every byte times some coefficients, against the field's own multiplication. Some microseconds, once.
    fn is_sound(self) -> bool {
        let bytes: [u8; 256] = core::array::from_fn(|value| value as u8);
        [0x00, 0x01, 0x02, 0x1d, 0x8e, 0xff]
            .into_iter()
            .all(|coefficient| {
                let mut products = [0x5a; 256];
                self.multiply::<1>(&[[coefficient]], &[&bytes], [&mut products], false);
                bytes
                    .iter()
                    .zip(&products)
                    .all(|(byte, product)| *product == multiply(coefficient, *byte))
            })
    }

    /// Its name.
    pub fn name(self) -> KernelName {
        self.0
    }

    /// `outputs[p] = Σ coefficients[s][p] × sources[s]`, or that added to what `outputs` held. All
    /// outputs are equally long, and no source is shorter.
    #[cfg_attr(target_arch = "x86_64", allow(unsafe_code))]
    fn multiply<const P: usize>(
        self,
        coefficients: &[[u8; P]],
        sources: &[&[u8]],
        outputs: [&mut [u8]; P],
        accumulate: bool,
    ) {
        match self.0 {
            KernelName::Portable => {
                portable::multiply(coefficients, sources, outputs, accumulate);
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the callees need the features in their names. `Kernel::named` alone makes a
            // kernel of that name, and only after it found those features.
            name => unsafe {
                match name {
                    KernelName::GfniAvx512 => {
                        x86::gfni_avx512::multiply(coefficients, sources, outputs, accumulate);
                    }
                    KernelName::GfniAvx2 => {
                        x86::gfni_avx2::multiply(coefficients, sources, outputs, accumulate);
                    }
                    KernelName::Avx2 | KernelName::Portable => {
                        x86::avx2::multiply(coefficients, sources, outputs, accumulate);
                    }
                }
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("no such kernel on this processor"),
        }
    }

    /// Like [`Self::multiply`] with one output and all coefficients 1.
    #[cfg_attr(target_arch = "x86_64", allow(unsafe_code))]
    fn exclusive_or(self, sources: &[&[u8]], output: &mut [u8], accumulate: bool) {
        match self.0 {
            KernelName::Portable => portable::exclusive_or(sources, output, accumulate),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `multiply`.
            name => unsafe {
                match name {
                    KernelName::GfniAvx512 => {
                        x86::gfni_avx512::exclusive_or(sources, output, accumulate);
                    }
                    KernelName::GfniAvx2 => {
                        x86::gfni_avx2::exclusive_or(sources, output, accumulate);
                    }
                    KernelName::Avx2 | KernelName::Portable => {
                        x86::avx2::exclusive_or(sources, output, accumulate);
                    }
                }
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("no such kernel on this processor"),
        }
    }
}

/// Whether the outputs are set, or what is computed is added to what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Set,
    Add,
}

/// A matrix of coefficients: one row of `columns` for each output.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) coefficients: &'a [u8],
    pub(crate) columns: usize,
}

impl<'a> Rows<'a> {
    /// The matrix from that row and column on.
    fn part(self, row: usize, column: usize) -> Rows<'a> {
        Rows {
            coefficients: &self.coefficients[row * self.columns + column..],
            ..self
        }
    }

    fn get(&self, row: usize, column: usize) -> u8 {
        self.coefficients[row * self.columns + column]
    }
}

impl Kernel {
    /// `outputs[row] = Σ rows[row][column] × sources[column]`, byte by byte. A source that is
    /// shorter than an output counts as padded with zeros, a longer one is read up to the output's
    /// length. One to [`SOURCES_MAX`] sources.
    pub(crate) fn combine(
        self,
        rows: Rows<'_>,
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
        mode: Mode,
    ) {
        debug_assert!(sources.len() <= SOURCES_MAX && sources.len() == rows.columns);
        let len = outputs.iter().map(|output| output.len()).max().unwrap_or(0);
        let pass_sources = if outputs.len() == 1 {
            SOURCES_MAX
        } else {
            PASS_SOURCES_MAX
        };
        let one_pass = sources.len() <= pass_sources && outputs.len() <= PASS_OUTPUTS_MAX;
        let block_len = if one_pass { len.max(1) } else { BLOCK_LEN };
        for start in (0..len).step_by(block_len) {
            for first in (0..sources.len()).step_by(pass_sources) {
                let sources = &sources[first..sources.len().min(first + pass_sources)];
                let mode = if first == 0 { mode } else { Mode::Add };
                for (index, outputs) in outputs.chunks_mut(PASS_OUTPUTS_MAX).enumerate() {
                    let rows = rows.part(index * PASS_OUTPUTS_MAX, first);
                    self.combine_block(rows, sources, outputs, (start, block_len, mode));
                }
            }
        }
    }

    /// One block of up to [`PASS_OUTPUTS_MAX`] outputs.
    fn combine_block(
        self,
        rows: Rows<'_>,
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
        (start, block_len, mode): (usize, usize, Mode),
    ) {
        // Outputs differ in length only at the end of a segment: there one at a time is enough.
        let len = outputs[0].len();
        if outputs.iter().any(|output| output.len() != len) {
            for (index, output) in outputs.chunks_mut(1).enumerate() {
                self.combine_block(
                    rows.part(index, 0),
                    sources,
                    output,
                    (start, block_len, mode),
                );
            }
            return;
        }
        let range = (start.min(len), len.min(start + block_len));
        match outputs {
            [a] => self.pass(rows, sources, [a], range, mode),
            [a, b] => self.pass(rows, sources, [a, b], range, mode),
            [a, b, c] => self.pass(rows, sources, [a, b, c], range, mode),
            [a, b, c, d] => self.pass(rows, sources, [a, b, c, d], range, mode),
            _ => unreachable!("chunks of at most {PASS_OUTPUTS_MAX}"),
        }
    }

    /// Computes a range of equally long outputs in runs within which each source has either all
    /// bytes or none.
    fn pass<const P: usize>(
        self,
        rows: Rows<'_>,
        sources: &[&[u8]],
        mut outputs: [&mut [u8]; P],
        (mut start, end): (usize, usize),
        mode: Mode,
    ) {
        while start < end {
            let mut run_end = end;
            let mut active: [&[u8]; SOURCES_MAX] = [&[]; SOURCES_MAX];
            let mut coefficients = [[0; P]; SOURCES_MAX];
            let mut count = 0;
            for (column, source) in sources.iter().enumerate() {
                if source.len() > start {
                    run_end = run_end.min(source.len());
                    active[count] = &source[start..];
                    coefficients[count] = core::array::from_fn(|p| rows.get(p, column));
                    count += 1;
                }
            }
            let (active, coefficients) = (&active[..count], &coefficients[..count]);
            let outputs = outputs.each_mut().map(|output| &mut output[start..run_end]);
            let accumulate = mode == Mode::Add;
            if coefficients
                .iter()
                .flatten()
                .all(|coefficient| *coefficient == 1)
            {
                for output in outputs {
                    self.exclusive_or(active, output, accumulate);
                }
            } else {
                self.multiply(coefficients, active, outputs, accumulate);
            }
            start = run_end;
        }
    }
}
