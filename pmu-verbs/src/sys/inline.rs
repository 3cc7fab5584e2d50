//! The inline functions of `infiniband/verbs.h`, through the op tables that they go through.
//!
//! Two tables exist. `ibv_context::ops` is as old as the library and always complete, apart from
//! the entries that a provider may leave empty. `verbs_context` lies *before* the `ibv_context` in
//! memory and grows towards lower addresses: an older library has a shorter one, so an entry may be
//! read only after its `sz` field has said that the entry exists.

use core::ffi::{c_int, c_uint};
use core::mem::{offset_of, size_of};
use core::ptr::null_mut;

use super::verbs::*;

/// What `ibv_context::abi_compat` holds when a `verbs_context` lies before the context.
const VERBS_ABI_IS_EXTENDED: usize = usize::MAX;

fn set_errno(errno: c_int) {
    // SAFETY: `__errno_location` has no precondition and returns this thread's errno, which stays
    // valid while the thread runs.
    unsafe { *libc::__errno_location() = errno };
}

/// The `verbs_context` around `context`, if it has the entry at `entry_offset`.
///
/// # Safety
/// `context` is a live context that libibverbs made.
unsafe fn extended_context(
    context: *mut ibv_context,
    entry_offset: usize,
) -> Option<*mut verbs_context> {
    // SAFETY: the caller promises a live context; `abi_compat` is one of its plain fields.
    if unsafe { (*context).abi_compat }.addr() != VERBS_ABI_IS_EXTENDED {
        return None;
    }
    let base = context
        .wrapping_byte_sub(offset_of!(verbs_context, context))
        .cast::<verbs_context>();
    // SAFETY: `abi_compat` says that a verbs_context surrounds the context. `sz` stands directly
    // before the context in every version of it, so it exists however short the older table is.
    // The address is computed without forming a reference to the part that may not exist.
    let table_bytes = unsafe { (&raw const (*base).sz).read() };
    (table_bytes >= size_of::<verbs_context>() - entry_offset).then_some(base)
}

/// Reads one entry of the extended table: `None` if the library or the provider lacks it. To be
/// used where `$context` is known to be live; the entry is read only when the table says that it is
/// long enough to have it.
macro_rules! extended_op {
    ($context:expr, $op:ident) => {
        match extended_context($context, offset_of!(verbs_context, $op)) {
            Some(base) => (&raw const (*base).$op).read(),
            None => None,
        }
    };
}

/// # Safety
/// `context` is live, `attributes` points to a writable `ibv_device_attr_ex`.
pub(crate) unsafe fn ibv_query_device_ex(
    library: &IbverbsLibrary,
    context: *mut ibv_context,
    attributes: *mut ibv_device_attr_ex,
) -> c_int {
    // SAFETY: the caller promises a live context and a writable structure; all-zero is a value of
    // it. The extended call writes at most the size that it is told, the legacy one the first field.
    unsafe {
        if let Some(query) = extended_op!(context, query_device_ex) {
            let size = size_of::<ibv_device_attr_ex>();
            let result = query(context, core::ptr::null(), attributes, size);
            if result != libc::EOPNOTSUPP && result != libc::ENOSYS {
                return result;
            }
        }
        attributes.write(ibv_device_attr_ex::default());
        library.ibv_query_device(context, &raw mut (*attributes).orig_attr)
    }
}

/// # Safety
/// `context` is live, `attributes` points to a writable `ibv_port_attr`.
pub(crate) unsafe fn ibv_query_port(
    library: &IbverbsLibrary,
    context: *mut ibv_context,
    port: u8,
    attributes: *mut ibv_port_attr,
) -> c_int {
    // SAFETY: the caller promises a writable structure, of which all-zero is a value. The legacy
    // call writes a prefix of it, the extended one at most the size that it is told.
    unsafe {
        attributes.write(ibv_port_attr::default());
        match extended_op!(context, query_port) {
            Some(query) => query(context, port, attributes, size_of::<ibv_port_attr>()),
            None => library.ibv_query_port(context, port, attributes.cast()),
        }
    }
}

/// # Safety
/// `context` is live; `attributes` points to an initialised structure whose objects are live and
/// belong to `context`.
pub(crate) unsafe fn ibv_create_qp_ex(
    library: &IbverbsLibrary,
    context: *mut ibv_context,
    attributes: *mut ibv_qp_init_attr_ex,
) -> *mut ibv_qp {
    // SAFETY: the caller's promises are what both functions require. `ibv_qp_init_attr` is a
    // prefix of `ibv_qp_init_attr_ex`; the header itself casts one to the other here.
    unsafe {
        if (*attributes).comp_mask == IBV_QP_INIT_ATTR_PD {
            return library.ibv_create_qp((*attributes).pd, attributes.cast());
        }
        match extended_op!(context, create_qp_ex) {
            Some(create) => create(context, attributes),
            None => {
                set_errno(libc::EOPNOTSUPP);
                null_mut()
            }
        }
    }
}

/// # Safety
/// `pd` is live.
pub(crate) unsafe fn ibv_alloc_mw(pd: *mut ibv_pd, kind: ibv_mw_type) -> *mut ibv_mw {
    // SAFETY: a live protection domain points to its live context; the entry may be empty.
    unsafe {
        match (*(*pd).context).ops.alloc_mw {
            Some(allocate) => allocate(pd, kind),
            None => {
                set_errno(libc::EOPNOTSUPP);
                null_mut()
            }
        }
    }
}

/// # Safety
/// `mw` is live and isn't used afterwards if the result is 0.
pub(crate) unsafe fn ibv_dealloc_mw(mw: *mut ibv_mw) -> c_int {
    // SAFETY: a live window points to its live context.
    unsafe {
        match (*(*mw).context).ops.dealloc_mw {
            Some(deallocate) => deallocate(mw),
            None => libc::EOPNOTSUPP,
        }
    }
}

/// # Safety
/// `cq` is live; `completions` points to `count` writable elements.
#[inline]
pub(crate) unsafe fn ibv_poll_cq(cq: *mut ibv_cq, count: c_int, completions: *mut ibv_wc) -> c_int {
    // SAFETY: a live completion queue points to its live context; the rest is the caller's promise.
    unsafe {
        match (*(*cq).context).ops.poll_cq {
            Some(poll) => poll(cq, count, completions),
            None => -libc::EOPNOTSUPP,
        }
    }
}

/// # Safety
/// `cq` is live.
#[inline]
pub(crate) unsafe fn ibv_req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    // SAFETY: a live completion queue points to its live context.
    unsafe {
        match (*(*cq).context).ops.req_notify_cq {
            Some(request) => request(cq, solicited_only),
            None => libc::EOPNOTSUPP,
        }
    }
}

/// # Safety
/// `qp` is live; `list` is a well-formed list of work requests whose objects are live and whose
/// inline bytes are readable.
#[inline]
pub(crate) unsafe fn ibv_post_send(
    qp: *mut ibv_qp,
    list: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: a live queue pair points to its live context; the rest is the caller's promise.
    unsafe {
        match (*(*qp).context).ops.post_send {
            Some(post) => post(qp, list, bad),
            None => libc::EOPNOTSUPP,
        }
    }
}

/// # Safety
/// `qp` is live; `list` is a well-formed list of receive requests.
#[inline]
pub(crate) unsafe fn ibv_post_recv(
    qp: *mut ibv_qp,
    list: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: a live queue pair points to its live context; the rest is the caller's promise.
    unsafe {
        match (*(*qp).context).ops.post_recv {
            Some(post) => post(qp, list, bad),
            None => libc::EOPNOTSUPP,
        }
    }
}

/// The key that follows `rkey`: its low 8 bits, which the consumer owns, counted up.
pub(crate) const fn ibv_inc_rkey(rkey: u32) -> u32 {
    (rkey & !0xff) | (rkey.wrapping_add(1) & 0xff)
}

/// Registers memory; `iova` is the address by which the network and the work requests name its
/// first byte.
///
/// # Safety
/// `pd` is live; `length` bytes at `address` stay mapped until the region is deregistered, and
/// nothing in this process relies on their contents where `access` lets the device write.
pub(crate) unsafe fn register(
    library: &IbverbsLibrary,
    pd: *mut ibv_pd,
    address: *mut u8,
    length: usize,
    iova: Option<u64>,
    access: c_uint,
) -> *mut ibv_mr {
    // SAFETY: the caller's promises are what registration requires.
    unsafe {
        match iova {
            None => library.ibv_reg_mr(pd, address.cast(), length, access as c_int),
            Some(iova) => {
                library.ibv_reg_mr_iova(pd, address.cast(), length, iova, access as c_int)
            }
        }
    }
}
