//! ISA-L, opened at run time: the library that encoding and rebuilding are compared with. The one module of this crate with unsafe code.
#![allow(unsafe_code, reason = "a C library is called")]

use std::ffi::c_int;

use libloading::Library;

use crate::measure::Failure;

const FILE: &str = "libisal.so.2";
const PACKAGE: &str = "libisal2";
/// Bytes of the tables for each coefficient.
const TABLE_BYTES: usize = 32;

type Cauchy = unsafe extern "C" fn(*mut u8, c_int, c_int);
type Invert = unsafe extern "C" fn(*mut u8, *mut u8, c_int) -> c_int;
type InitTables = unsafe extern "C" fn(c_int, c_int, *mut u8, *mut u8);
type EncodeData =
    unsafe extern "C" fn(c_int, c_int, c_int, *mut u8, *mut *mut u8, *mut *mut u8) -> ();

/// The opened library. Its functions choose the instructions of this processor by themselves.
pub(crate) struct Isal {
    cauchy: Cauchy,
    invert: Invert,
    init_tables: InitTables,
    encode_data: EncodeData,
    /// Keeps the functions loaded.
    _library: Library,
}

/// What computes products of a matrix of coefficients with shards.
pub(crate) struct Tables<'a> {
    isal: &'a Isal,
    sources: usize,
    outputs: usize,
    tables: Vec<u8>,
}

impl Isal {
    /// Opens the library.
    ///
    /// # Errors
    /// It isn't installed.
    pub(crate) fn load() -> Result<Self, Failure> {
        let missing = |error| format!("{FILE}: {error} (Debian: apt-get install {PACKAGE})");
        // SAFETY: ISA-L has no initialisers with a precondition, and the types of the functions are those of its erasure_code.h.
        unsafe {
            let library = Library::new(FILE).map_err(missing)?;
            Ok(Self {
                cauchy: *library.get(b"gf_gen_cauchy1_matrix\0").map_err(missing)?,
                invert: *library.get(b"gf_invert_matrix\0").map_err(missing)?,
                init_tables: *library.get(b"ec_init_tables\0").map_err(missing)?,
                encode_data: *library.get(b"ec_encode_data\0").map_err(missing)?,
                _library: library,
            })
        }
    }

    /// The matrix of a code: the identity, and a row of a Cauchy matrix for each redundant shard. `data` coefficients a row.
    pub(crate) fn cauchy(&self, data: usize, redundant: usize) -> Vec<u8> {
        let rows = data + redundant;
        let mut matrix = vec![0; rows * data];
        // SAFETY: it writes rows × data bytes: those of the vector.
        unsafe { (self.cauchy)(matrix.as_mut_ptr(), rows as c_int, data as c_int) };
        matrix
    }

    /// The inverse of a square matrix of that order; none if it has none.
    ///
    /// # Panics
    /// The matrix is not of that order.
    pub(crate) fn inverse(&self, matrix: &[u8], order: usize) -> Option<Vec<u8>> {
        assert_eq!(matrix.len(), order * order);
        let mut matrix = matrix.to_vec();
        let mut inverse = vec![0; order * order];
        // SAFETY: it reads and writes order × order bytes of both: those of the vectors.
        let failed =
            unsafe { (self.invert)(matrix.as_mut_ptr(), inverse.as_mut_ptr(), order as c_int) };
        (failed == 0).then_some(inverse)
    }

    /// Gets ready for rows of coefficients, `sources` in each.
    ///
    /// # Panics
    /// They are no whole rows.
    pub(crate) fn tables(&self, coefficients: &[u8], sources: usize) -> Tables<'_> {
        assert!(sources > 0 && coefficients.len().is_multiple_of(sources));
        let outputs = coefficients.len() / sources;
        let mut coefficients = coefficients.to_vec();
        let mut tables = vec![0; TABLE_BYTES * coefficients.len()];
        // SAFETY: it reads sources × outputs coefficients and writes 32 bytes for each: the vectors are that long.
        unsafe {
            (self.init_tables)(
                sources as c_int,
                outputs as c_int,
                coefficients.as_mut_ptr(),
                tables.as_mut_ptr(),
            );
        }
        Tables {
            isal: self,
            sources,
            outputs,
            tables,
        }
    }
}

impl Tables<'_> {
    /// Computes all outputs from the sources.
    ///
    /// # Panics
    /// Another number of either than there are coefficients for, or not all of one length.
    pub(crate) fn multiply(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        assert_eq!((sources.len(), outputs.len()), (self.sources, self.outputs));
        let length = sources[0].len();
        assert!(sources.iter().all(|source| source.len() == length));
        assert!(outputs.iter().all(|output| output.len() == length));
        let mut from: Vec<_> = sources
            .iter()
            .map(|source| source.as_ptr().cast_mut())
            .collect();
        let mut to: Vec<_> = outputs
            .iter_mut()
            .map(|output| output.as_mut_ptr())
            .collect();
        // It reads the tables too, though it takes them as mutable.
        let tables = self.tables.as_ptr().cast_mut();
        // SAFETY: it reads `length` bytes of each source and writes as many of each output: all are that long, and the outputs are borrowed
        // mutably. The tables are those of as many sources and outputs; sources and tables are only read.
        unsafe {
            (self.isal.encode_data)(
                length as c_int,
                self.sources as c_int,
                self.outputs as c_int,
                tables,
                from.as_mut_ptr(),
                to.as_mut_ptr(),
            );
        }
    }
}
