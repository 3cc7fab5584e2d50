//! The C interface: generated declarations, and the parts of it that exist only as inline functions.
//!
//! Nothing here is safe and nothing here decides: every function is what rdma-core's header does.

/// Declarations of `infiniband/verbs.h`.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
pub(crate) mod verbs;

/// Declarations of `rdma/rdma_cma.h`.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
pub(crate) mod rdma_cm;

pub(crate) mod inline;
mod layout;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "the checked-in bindings are for x86_64 Linux: run gen/generate.sh for this platform first"
);
