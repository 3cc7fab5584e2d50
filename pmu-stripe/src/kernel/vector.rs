//! The loops that all kernels share.

/// Defines `multiply` and `exclusive_or` of a kernel in the module where it stands. That module
/// has, each with the same target features:
///
/// * `Vector`: a vector register; `Table`: what multiplies by one coefficient; `CHUNK_LEN`: the
///   length of two vectors;
/// * `table(coefficient) -> Table`;
/// * `zero() -> Vector`, `xor(Vector, Vector) -> Vector`;
/// * `load(&[u8; CHUNK_LEN]) -> [Vector; 2]`, `store([Vector; 2], &mut [u8; CHUNK_LEN])`;
/// * `add_products(&mut [[Vector; 2]; P], [Vector; 2], &[Table; P])`.
///
/// A chunk of every output, or two of a single one, stay in registers while the same chunks of each source are read once.
/// The bytes behind the last whole chunk go through a chunk that is padded with zeros.
macro_rules! kernel_loops {
    ($(#[$features:meta])*) => {
        /// See [`Kernel::multiply`](crate::kernel::Kernel).
        $(#[$features])*
        pub(in crate::kernel) fn multiply<const P: usize>(
            coefficients: &[[u8; P]],
            sources: &[&[u8]],
            outputs: [&mut [u8]; P],
            accumulate: bool,
        ) {
            let len = outputs[0].len();
            let mut tables = [[table(0); P]; crate::kernel::SOURCES_MAX];
            for (tables, coefficients) in tables.iter_mut().zip(coefficients) {
                *tables = coefficients.map(|coefficient| table(coefficient));
            }
            let mut chunks: [&[[u8; CHUNK_LEN]]; crate::kernel::SOURCES_MAX] =
                [&[]; crate::kernel::SOURCES_MAX];
            for (chunks, source) in chunks.iter_mut().zip(sources) {
                *chunks = source[..len].as_chunks().0;
            }
            let (tables, chunks) = (&tables[..sources.len()], &chunks[..sources.len()]);
            let mut outputs = outputs.map(|output| output.as_chunks_mut::<CHUNK_LEN>());
            let whole = len / CHUNK_LEN;
            // With one output there are registers for two chunks of it.
            let pairs = if P == 1 { whole / 2 } else { 0 };
            for pair in 0..pairs {
                run::<P, 2>(tables, chunks, &mut outputs, 2 * pair, accumulate);
            }
            for index in 2 * pairs..whole {
                run::<P, 1>(tables, chunks, &mut outputs, index, accumulate);
            }
            if len % CHUNK_LEN == 0 {
                return;
            }
            let mut sums = [[zero(); 2]; P];
            if accumulate {
                for p in 0..P {
                    sums[p] = load(&padded(outputs[p].1));
                }
            }
            for (tables, source) in tables.iter().zip(sources) {
                let factors = load(&padded(&source[whole * CHUNK_LEN..len]));
                add_products(&mut sums, factors, tables);
            }
            for p in 0..P {
                let mut chunk = [0; CHUNK_LEN];
                store(sums[p], &mut chunk);
                outputs[p].1.copy_from_slice(&chunk[..len % CHUNK_LEN]);
            }
        }

        /// R neighbouring chunks of all outputs, from the one at `first` on. They share the look at each source and its tables.
        $(#[$features])*
        #[inline]
        fn run<const P: usize, const R: usize>(
            tables: &[[Table; P]],
            chunks: &[&[[u8; CHUNK_LEN]]],
            outputs: &mut [(&mut [[u8; CHUNK_LEN]], &mut [u8]); P],
            first: usize,
            accumulate: bool,
        ) {
            let mut sums = [[[zero(); 2]; P]; R];
            if accumulate {
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] = load(&outputs[p].0[first + r]);
                    }
                }
            }
            for (tables, chunks) in tables.iter().zip(chunks) {
                for r in 0..R {
                    add_products(&mut sums[r], load(&chunks[first + r]), tables);
                }
            }
            for r in 0..R {
                for p in 0..P {
                    store(sums[r][p], &mut outputs[p].0[first + r]);
                }
            }
        }

        /// See [`Kernel::exclusive_or`](crate::kernel::Kernel).
        $(#[$features])*
        pub(in crate::kernel) fn exclusive_or(
            sources: &[&[u8]],
            output: &mut [u8],
            accumulate: bool,
        ) {
            let len = output.len();
            let mut chunks: [&[[u8; CHUNK_LEN]]; crate::kernel::SOURCES_MAX] =
                [&[]; crate::kernel::SOURCES_MAX];
            for (chunks, source) in chunks.iter_mut().zip(sources) {
                *chunks = source[..len].as_chunks().0;
            }
            let chunks = &chunks[..sources.len()];
            let (whole, rest) = output.as_chunks_mut::<CHUNK_LEN>();
            let (pairs, single) = whole.as_chunks_mut::<2>();
            for (pair, outputs) in pairs.iter_mut().enumerate() {
                add_run(chunks, outputs, 2 * pair, accumulate);
            }
            for output in single {
                let outputs = core::array::from_mut(output);
                add_run(chunks, outputs, len / CHUNK_LEN - 1, accumulate);
            }
            if !accumulate {
                rest.fill(0);
            }
            for source in sources {
                for (sum, value) in rest.iter_mut().zip(&source[len - len % CHUNK_LEN..len]) {
                    *sum ^= value;
                }
            }
        }

        /// The sums of R neighbouring chunks of the sources, from the one at `first` on.
        $(#[$features])*
        #[inline]
        fn add_run<const R: usize>(
            chunks: &[&[[u8; CHUNK_LEN]]],
            outputs: &mut [[u8; CHUNK_LEN]; R],
            first: usize,
            accumulate: bool,
        ) {
            let mut sums = [[zero(); 2]; R];
            if accumulate {
                for r in 0..R {
                    sums[r] = load(&outputs[r]);
                }
            }
            for chunks in chunks {
                for r in 0..R {
                    let values = load(&chunks[first + r]);
                    sums[r] = [xor(sums[r][0], values[0]), xor(sums[r][1], values[1])];
                }
            }
            for r in 0..R {
                store(sums[r], &mut outputs[r]);
            }
        }

        /// Up to a chunk of bytes, and zeros.
        fn padded(bytes: &[u8]) -> [u8; CHUNK_LEN] {
            let mut chunk = [0; CHUNK_LEN];
            chunk[..bytes.len()].copy_from_slice(bytes);
            chunk
        }
    };
}
