//! Kernels for x86-64. Each module has functions for processors with its features: calling them
//! from elsewhere is unsafe, calling them from each other is not.

#![allow(unsafe_code)]

/// Vectors of 32 bytes, for the two kernels that use them.
macro_rules! avx2_vectors {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn zero() -> Vector {
            _mm256_setzero_si256()
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn xor(left: Vector, right: Vector) -> Vector {
            _mm256_xor_si256(left, right)
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn load(bytes: &[u8; CHUNK_LEN]) -> [Vector; 2] {
            let bytes: *const Vector = bytes.as_ptr().cast();
            // SAFETY: the loads need 32 readable bytes each, of any alignment: the array has 64.
            unsafe { [_mm256_loadu_si256(bytes), _mm256_loadu_si256(bytes.add(1))] }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn store(vectors: [Vector; 2], bytes: &mut [u8; CHUNK_LEN]) {
            let bytes: *mut Vector = bytes.as_mut_ptr().cast();
            // SAFETY: the stores need 32 writable bytes each, of any alignment: the array has 64,
            // and it is borrowed mutably.
            unsafe {
                _mm256_storeu_si256(bytes, vectors[0]);
                _mm256_storeu_si256(bytes.add(1), vectors[1]);
            }
        }
    };
}

/// Products by two look-ups in tables of 16 entries. Plank, Greenan, Miller: "Screaming Fast Galois
/// Field Arithmetic Using Intel SIMD Instructions", FAST 2013.
pub(super) mod avx2 {
    use core::arch::x86_64::*;

    use crate::field::NIBBLE_PRODUCTS;

    type Vector = __m256i;
    type Table = &'static [[u8; 16]; 2];
    const CHUNK_LEN: usize = 2 * size_of::<Vector>();

    fn table(coefficient: u8) -> Table {
        &NIBBLE_PRODUCTS[usize::from(coefficient)]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add_products<const P: usize>(
        sums: &mut [[Vector; 2]; P],
        factors: [Vector; 2],
        tables: &[Table; P],
    ) {
        // Both vectors are split before the first table is loaded: eight sums, four halves and two
        // tables just fit into 16 registers.
        let mask = _mm256_set1_epi8(15);
        let [first, second] = factors;
        let [first_lower, second_lower] = [
            _mm256_and_si256(first, mask),
            _mm256_and_si256(second, mask),
        ];
        let [first_upper, second_upper] = [
            _mm256_and_si256(_mm256_srli_epi64::<4>(first), mask),
            _mm256_and_si256(_mm256_srli_epi64::<4>(second), mask),
        ];
        for (sums, [lower, upper]) in sums.iter_mut().zip(tables) {
            let (lower, upper) = (broadcast(lower), broadcast(upper));
            sums[0] = xor(sums[0], _mm256_shuffle_epi8(lower, first_lower));
            sums[1] = xor(sums[1], _mm256_shuffle_epi8(lower, second_lower));
            sums[0] = xor(sums[0], _mm256_shuffle_epi8(upper, first_upper));
            sums[1] = xor(sums[1], _mm256_shuffle_epi8(upper, second_upper));
        }
    }

    /// The same 16 bytes in both halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn broadcast(products: &[u8; 16]) -> Vector {
        // SAFETY: the load needs 16 readable bytes, of any alignment: those of the array.
        _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(products.as_ptr().cast()) })
    }

    avx2_vectors!("avx2");
    kernel_loops!(#[target_feature(enable = "avx2")]);
}

/// Products by GF2P8AFFINEQB, which multiplies bytes by a matrix of bits.
pub(super) mod gfni_avx2 {
    use core::arch::x86_64::*;

    use crate::field::BIT_MATRICES;

    type Vector = __m256i;
    type Table = u64;
    const CHUNK_LEN: usize = 2 * size_of::<Vector>();

    fn table(coefficient: u8) -> Table {
        BIT_MATRICES[usize::from(coefficient)]
    }

    #[target_feature(enable = "avx2,gfni")]
    #[inline]
    fn add_products<const P: usize>(
        sums: &mut [[Vector; 2]; P],
        factors: [Vector; 2],
        tables: &[Table; P],
    ) {
        for (sums, matrix) in sums.iter_mut().zip(tables) {
            let matrix = _mm256_set1_epi64x(matrix.cast_signed());
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = xor(*sum, _mm256_gf2p8affine_epi64_epi8::<0>(factor, matrix));
            }
        }
    }

    avx2_vectors!("avx2,gfni");
    kernel_loops!(#[target_feature(enable = "avx2,gfni")]);
}

/// As [`gfni_avx2`], with vectors twice as long.
pub(super) mod gfni_avx512 {
    use core::arch::x86_64::*;

    use crate::field::BIT_MATRICES;

    type Vector = __m512i;
    type Table = u64;
    const CHUNK_LEN: usize = 2 * size_of::<Vector>();

    fn table(coefficient: u8) -> Table {
        BIT_MATRICES[usize::from(coefficient)]
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]
    #[inline]
    fn add_products<const P: usize>(
        sums: &mut [[Vector; 2]; P],
        factors: [Vector; 2],
        tables: &[Table; P],
    ) {
        for (sums, matrix) in sums.iter_mut().zip(tables) {
            let matrix = _mm512_set1_epi64(matrix.cast_signed());
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = xor(*sum, _mm512_gf2p8affine_epi64_epi8::<0>(factor, matrix));
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]
    #[inline]
    fn zero() -> Vector {
        _mm512_setzero_si512()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]
    #[inline]
    fn xor(left: Vector, right: Vector) -> Vector {
        _mm512_xor_si512(left, right)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]
    #[inline]
    fn load(bytes: &[u8; CHUNK_LEN]) -> [Vector; 2] {
        let bytes: *const Vector = bytes.as_ptr().cast();
        // SAFETY: the loads need 64 readable bytes each, of any alignment: the array has 128.
        unsafe { [_mm512_loadu_si512(bytes), _mm512_loadu_si512(bytes.add(1))] }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]
    #[inline]
    fn store(vectors: [Vector; 2], bytes: &mut [u8; CHUNK_LEN]) {
        let bytes: *mut Vector = bytes.as_mut_ptr().cast();
        // SAFETY: the stores need 64 writable bytes each, of any alignment: the array has 128, and
        // it is borrowed mutably.
        unsafe {
            _mm512_storeu_si512(bytes, vectors[0]);
            _mm512_storeu_si512(bytes.add(1), vectors[1]);
        }
    }

    kernel_loops!(#[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]);
}
