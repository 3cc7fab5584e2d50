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
/// A chunk of every output stays in registers while the same chunk of each source is read once.
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
            let outputs = outputs.map(|output| output.as_chunks_mut::<CHUNK_LEN>());
            let whole = len / CHUNK_LEN;
            for index in 0..whole {
                let mut sums = [[zero(); 2]; P];
                if accumulate {
                    for p in 0..P {
                        sums[p] = load(&outputs[p].0[index]);
                    }
                }
                for (tables, chunks) in tables.iter().zip(chunks) {
                    add_products(&mut sums, load(&chunks[index]), tables);
                }
                for p in 0..P {
                    store(sums[p], &mut outputs[p].0[index]);
                }
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
            for (index, output) in whole.iter_mut().enumerate() {
                let [mut first, mut second] = [zero(), zero()];
                if accumulate {
                    [first, second] = load(output);
                }
                for chunks in chunks {
                    let values = load(&chunks[index]);
                    (first, second) = (xor(first, values[0]), xor(second, values[1]));
                }
                store([first, second], output);
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

        /// Up to a chunk of bytes, and zeros.
        fn padded(bytes: &[u8]) -> [u8; CHUNK_LEN] {
            let mut chunk = [0; CHUNK_LEN];
            chunk[..bytes.len()].copy_from_slice(bytes);
            chunk
        }
    };
}
