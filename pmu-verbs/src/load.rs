//! libibverbs and librdmacm, opened when they are wanted and not before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Context;
use crate::sys::rdma_cm::RdmacmLibrary;
use crate::sys::verbs::IbverbsLibrary;

const IBVERBS: Library<'_> = Library {
    file: "libibverbs.so.1",
    package: "libibverbs1",
};
const RDMACM: Library<'_> = Library {
    file: "librdmacm.so.1",
    package: "librdmacm1",
};

/// Both libraries, opened. Everything else in this crate starts here and keeps this alive.
pub struct Verbs {
    pub(crate) ibv: IbverbsLibrary,
    pub(crate) cm: RdmacmLibrary,
    /// The contexts that librdmacm opened, by their address: one for each device, for the life of
    /// the process. librdmacm closes a context only after the device is unplugged *and* nobody
    /// holds it, and offers no way to hold one that doesn't leak when it is repeated.
    pub(crate) managed_contexts: Mutex<HashMap<usize, Arc<Context>>>,
}

/// Why the libraries can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A library isn't installed, or can't be opened.
    #[error("{library} can't be opened: install the Debian package {package}")]
    NotFound {
        /// File name of the library.
        library: String,
        /// Debian package that has it.
        package: &'static str,
        /// What the dynamic linker said.
        source: libloading::Error,
    },
    /// A library is there, but older than this crate needs (rdma-core 44).
    #[error("{library} is too old: the Debian package {package} must be of rdma-core 44 or newer")]
    SymbolMissing {
        /// File name of the library.
        library: String,
        /// Debian package that has it.
        package: &'static str,
        /// What the dynamic linker said; it names the symbol.
        source: libloading::Error,
    },
}

struct Library<'a> {
    file: &'a str,
    package: &'static str,
}

impl Library<'_> {
    fn explain(&self, source: libloading::Error) -> LoadError {
        let (library, package) = (self.file.to_owned(), self.package);
        match source {
            libloading::Error::DlSym { .. } | libloading::Error::DlSymUnknown => {
                LoadError::SymbolMissing {
                    library,
                    package,
                    source,
                }
            }
            _ => LoadError::NotFound {
                library,
                package,
                source,
            },
        }
    }
}

impl Verbs {
    /// Opens `libibverbs.so.1` and `librdmacm.so.1`, once in a process; later calls give the same
    /// handle. They are never closed again: providers register themselves for the process's life.
    ///
    /// Blocks while files are read. Any thread may call it.
    ///
    /// # Errors
    /// [`LoadError::NotFound`] where a library isn't installed, [`LoadError::SymbolMissing`] where
    /// it is older than rdma-core 44. A later call tries again.
    pub fn load() -> Result<Arc<Self>, LoadError> {
        static LOADED: Mutex<Option<Arc<Verbs>>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verbs) = &*loaded {
            return Ok(Arc::clone(verbs));
        }
        // SAFETY: the two names are those of rdma-core's libraries, whose initialisers have no
        // precondition and whose declarations are those in `sys`.
        let verbs = Arc::new(unsafe { Self::open(&IBVERBS, &RDMACM) }?);
        Ok(Arc::clone(loaded.insert(verbs)))
    }

    /// # Safety
    /// The files are rdma-core's libraries, or aren't there.
    unsafe fn open(ibverbs: &Library<'_>, rdmacm: &Library<'_>) -> Result<Self, LoadError> {
        // SAFETY: the caller promises that the file, if it is there, is libibverbs.
        let ibv = unsafe { IbverbsLibrary::new(ibverbs.file) };
        // SAFETY: the caller promises that the file, if it is there, is librdmacm.
        let cm = unsafe { RdmacmLibrary::new(rdmacm.file) };
        Ok(Self {
            ibv: ibv.map_err(|error| ibverbs.explain(error))?,
            cm: cm.map_err(|error| rdmacm.explain(error))?,
            managed_contexts: Mutex::new(HashMap::new()),
        })
    }
}

impl std::fmt::Debug for Verbs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Verbs").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_its_package() {
        let bogus = Library {
            file: "libibverbs-not-there.so.9",
            package: "libibverbs1",
        };
        // SAFETY: no such file exists.
        let error = unsafe { Verbs::open(&bogus, &bogus) }.expect_err("must not open");
        assert!(matches!(error, LoadError::NotFound { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("libibverbs-not-there.so.9") && text.contains("libibverbs1"));
    }

    #[test]
    fn a_library_without_the_symbols_is_told_apart() {
        let other = Library {
            file: "libc.so.6",
            package: "libibverbs1",
        };
        // SAFETY: the C library is loaded already; it has none of the symbols, so none is called.
        let error = unsafe { Verbs::open(&other, &other) }.expect_err("must not open");
        let LoadError::SymbolMissing { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains("ibv_"), "{source}");
    }
}
