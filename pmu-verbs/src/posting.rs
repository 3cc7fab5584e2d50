//! The two ways to hand work to a device: the extended interface (`ibv_qp_ex`) and lists for
//! `ibv_post_send`. Both take requests one by one and ring one doorbell.

use std::ptr::{NonNull, null_mut};

use crate::error::{VerbsError, check};
use crate::queue_pair::Operations;
use crate::sys::inline;
use crate::sys::verbs::*;

/// Most elements of one work request: a bound on what stands on the stack while posting.
pub(crate) const SGE_MAX: usize = 16;

/// A request, checked and in the device's terms.
#[derive(Clone, Copy)]
pub(crate) enum Request {
    Write {
        rkey: u32,
        address: u64,
    },
    Read {
        rkey: u32,
        address: u64,
    },
    Send,
    Bind {
        window: *mut ibv_mw,
        rkey: u32,
        info: ibv_mw_bind_info,
    },
    Invalidate {
        rkey: u32,
    },
    Flush {
        rkey: u32,
        address: u64,
        length: usize,
        placement: u8,
        level: u8,
    },
    AtomicWrite {
        rkey: u32,
        address: u64,
        value: u64,
    },
}

/// The local side of a request.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    None,
    Elements(&'a [ibv_sge]),
    Inline(&'a [u8]),
}

pub(crate) enum Poster {
    Extended(Extended),
    Classic(Classic),
}

impl Poster {
    pub(crate) fn start(&mut self) {
        match self {
            Self::Extended(extended) => extended.start(),
            Self::Classic(classic) => classic.posted = 0,
        }
    }

    /// Adds a request.
    ///
    /// # Safety
    /// Between `start` and `complete` or `abort`. The queue pair accepts the operation. The
    /// objects behind the pointers in `request` live until `complete` or `abort`, and until then
    /// nobody else uses the window. `payload` has at
    /// most as many elements or bytes as the queue pair was made for, and a classic poster has
    /// room for one more.
    #[inline]
    pub(crate) unsafe fn push(
        &mut self,
        wr_id: u64,
        flags: u32,
        request: Request,
        payload: Payload<'_>,
    ) {
        match self {
            // SAFETY: the caller's promises are the same.
            Self::Extended(extended) => unsafe { extended.push(wr_id, flags, request, payload) },
            Self::Classic(classic) => classic.push(wr_id, flags, request, payload),
        }
    }

    /// Rings the doorbell.
    ///
    /// # Safety
    /// After `start`; `queue_pair` is live and the one that this was made for; all objects that
    /// were named are alive.
    pub(crate) unsafe fn complete(&mut self, queue_pair: *mut ibv_qp) -> Result<(), VerbsError> {
        match self {
            Self::Extended(extended) => extended.complete(),
            // SAFETY: the caller's promises are the same.
            Self::Classic(classic) => unsafe { classic.complete(queue_pair) },
        }
    }

    pub(crate) fn abort(&mut self) {
        match self {
            Self::Extended(extended) => extended.abort(),
            Self::Classic(classic) => classic.posted = 0,
        }
    }
}

type Start = unsafe extern "C" fn(*mut ibv_qp_ex);
type Complete = unsafe extern "C" fn(*mut ibv_qp_ex) -> i32;
type Remote = unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64);
type Bind = unsafe extern "C" fn(*mut ibv_qp_ex, *mut ibv_mw, u32, *const ibv_mw_bind_info);
type Invalidate = unsafe extern "C" fn(*mut ibv_qp_ex, u32);
type SetInline = unsafe extern "C" fn(*mut ibv_qp_ex, *mut core::ffi::c_void, usize);
type SetElement = unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32);
type SetElements = unsafe extern "C" fn(*mut ibv_qp_ex, usize, *const ibv_sge);
type AtomicWrite = unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, *const core::ffi::c_void);
type Flush = unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, usize, u8, u8);

/// The extended interface. The functions are read once: `wr_flush` and `wr_atomic_write` lie
/// beyond the end of what older libraries allocate, so they are read only if the queue pair was
/// accepted with these operations.
pub(crate) struct Extended {
    raw: NonNull<ibv_qp_ex>,
    start: Start,
    complete: Complete,
    abort: Start,
    set_inline: Option<SetInline>,
    set_element: Option<SetElement>,
    set_elements: Option<SetElements>,
    write: Option<Remote>,
    read: Option<Remote>,
    send: Option<Start>,
    bind: Option<Bind>,
    invalidate: Option<Invalidate>,
    flush: Option<Flush>,
    atomic_write: Option<AtomicWrite>,
}

impl Extended {
    /// # Safety
    /// `raw` is live for as long as this is used, and was made with `accepted`.
    pub(crate) unsafe fn new(
        raw: NonNull<ibv_qp_ex>,
        accepted: Operations,
    ) -> Result<Self, VerbsError> {
        let table = raw.as_ptr();
        let missing = VerbsError::Unsupported {
            what: "the extended posting interface",
            by: "provider",
        };
        // SAFETY: the queue pair is live. Each field is read by its own address, never through a
        // reference to the whole structure; the fields up to wr_abort exist in every library that
        // makes an `ibv_qp_ex`, the last two in those that accepted the operation.
        let extended = unsafe {
            Self {
                raw,
                start: (&raw const (*table).wr_start).read().ok_or(missing)?,
                complete: (&raw const (*table).wr_complete).read().ok_or(missing)?,
                abort: (&raw const (*table).wr_abort).read().ok_or(missing)?,
                set_inline: (&raw const (*table).wr_set_inline_data).read(),
                set_element: (&raw const (*table).wr_set_sge).read(),
                set_elements: (&raw const (*table).wr_set_sge_list).read(),
                write: (&raw const (*table).wr_rdma_write).read(),
                read: (&raw const (*table).wr_rdma_read).read(),
                send: (&raw const (*table).wr_send).read(),
                bind: (&raw const (*table).wr_bind_mw).read(),
                invalidate: (&raw const (*table).wr_local_inv).read(),
                flush: match accepted.contains(Operations::FLUSH) {
                    true => (&raw const (*table).wr_flush).read(),
                    false => None,
                },
                atomic_write: match accepted.contains(Operations::ATOMIC_WRITE) {
                    true => (&raw const (*table).wr_atomic_write).read(),
                    false => None,
                },
            }
        };
        match extended.has_all(accepted) {
            true => Ok(extended),
            false => Err(missing),
        }
    }

    fn has_all(&self, accepted: Operations) -> bool {
        let present = [
            (Operations::WRITE, self.write.is_some()),
            (Operations::READ, self.read.is_some()),
            (Operations::SEND, self.send.is_some()),
            (Operations::BIND_WINDOW, self.bind.is_some()),
            (Operations::LOCAL_INVALIDATE, self.invalidate.is_some()),
            (Operations::FLUSH, self.flush.is_some()),
            (Operations::ATOMIC_WRITE, self.atomic_write.is_some()),
        ];
        let moves = Operations::WRITE | Operations::READ | Operations::SEND;
        let setters = self.set_element.is_some() && self.set_elements.is_some();
        present
            .iter()
            .all(|(operation, there)| *there || !accepted.contains(*operation))
            && (setters || !accepted.intersects(moves))
    }

    fn start(&mut self) {
        // SAFETY: the queue pair is live, and no posting is under way on it: the posting guard is
        // the only caller, borrows the queue pair, and aborts one that was left open.
        unsafe { (self.start)(self.raw.as_ptr()) };
    }

    fn complete(&mut self) -> Result<(), VerbsError> {
        // SAFETY: the queue pair is live and posting is under way.
        let result = unsafe { (self.complete)(self.raw.as_ptr()) };
        check("ibv_wr_complete", result).map_err(|error| error.with_hint(full_hint(result)))
    }

    fn abort(&mut self) {
        // SAFETY: the queue pair is live and posting is under way.
        unsafe { (self.abort)(self.raw.as_ptr()) };
    }

    /// # Safety
    /// As [`Poster::push`].
    #[inline]
    unsafe fn push(&mut self, wr_id: u64, flags: u32, request: Request, payload: Payload<'_>) {
        let table = self.raw.as_ptr();
        let flags = match payload {
            Payload::Inline(_) => flags | IBV_SEND_INLINE,
            _ => flags,
        };
        // SAFETY: the queue pair is live and posting is under way; the two fields are the way to
        // pass these values. Every function that is called is there, because the queue pair
        // accepted the operation (`has_all`); the values are copied before the calls return.
        unsafe {
            (&raw mut (*table).wr_id).write(wr_id);
            (&raw mut (*table).wr_flags).write(flags);
            match request {
                Request::Write { rkey, address } => call(self.write, |f| f(table, rkey, address)),
                Request::Read { rkey, address } => call(self.read, |f| f(table, rkey, address)),
                Request::Send => call(self.send, |f| f(table)),
                Request::Bind { window, rkey, info } => {
                    call(self.bind, |f| f(table, window, rkey, &raw const info));
                    note_key(window, rkey);
                }
                Request::Invalidate { rkey } => call(self.invalidate, |f| f(table, rkey)),
                Request::Flush {
                    rkey,
                    address,
                    length,
                    placement,
                    level,
                } => {
                    call(self.flush, |f| {
                        f(table, rkey, address, length, placement, level);
                    });
                }
                Request::AtomicWrite {
                    rkey,
                    address,
                    value,
                } => {
                    let bytes = (&raw const value).cast();
                    call(self.atomic_write, |f| f(table, rkey, address, bytes));
                }
            }
            match payload {
                Payload::None => {}
                Payload::Elements(&[ibv_sge { addr, length, lkey }]) => {
                    call(self.set_element, |f| f(table, lkey, addr, length));
                }
                Payload::Elements(list) => {
                    call(self.set_elements, |f| f(table, list.len(), list.as_ptr()));
                }
                Payload::Inline(bytes) => call(self.set_inline, |f| {
                    f(table, bytes.as_ptr().cast_mut().cast(), bytes.len());
                }),
            }
        }
    }

    /// Whether bytes can be put into a request itself.
    pub(crate) fn has_inline(&self) -> bool {
        self.set_inline.is_some()
    }
}

/// Calls a function of the table that is known to be there.
#[inline]
fn call<F: Copy>(function: Option<F>, with: impl FnOnce(F)) {
    debug_assert!(
        function.is_some(),
        "the operation was checked against what was accepted"
    );
    if let Some(function) = function {
        with(function);
    }
}

/// Lists for `ibv_post_send`, made once: as many requests as the send queue takes, each with room
/// for its elements and its inline bytes.
pub(crate) struct Classic {
    requests: Box<[ibv_send_wr]>,
    elements: Box<[ibv_sge]>,
    elements_each: usize,
    inline: Box<[u8]>,
    inline_each: usize,
    posted: usize,
}

// SAFETY: the pointers in the lists are written and used within `complete` alone (or name windows
// that the guard borrows); between batches they mean nothing.
unsafe impl Send for Classic {}
// SAFETY: everything that touches the lists takes `&mut self`.
unsafe impl Sync for Classic {}
// SAFETY: the table is used through `&mut self` alone, and the library's functions aren't bound to
// a thread between batches.
unsafe impl Send for Extended {}
// SAFETY: as above.
unsafe impl Sync for Extended {}

impl Classic {
    pub(crate) fn new(requests: u32, elements_each: u32, inline_each: u32) -> Self {
        let (count, elements_each, inline_each) = (
            requests as usize,
            elements_each.max(1) as usize,
            inline_each as usize,
        );
        Self {
            requests: vec![ibv_send_wr::default(); count].into_boxed_slice(),
            elements: vec![ibv_sge::default(); count * elements_each].into_boxed_slice(),
            elements_each,
            inline: vec![0; count * inline_each].into_boxed_slice(),
            inline_each,
            posted: 0,
        }
    }

    fn push(&mut self, wr_id: u64, flags: u32, request: Request, payload: Payload<'_>) {
        let index = self.posted;
        let elements =
            &mut self.elements[index * self.elements_each..(index + 1) * self.elements_each];
        let mut raw = ibv_send_wr {
            wr_id,
            send_flags: flags,
            ..Default::default()
        };
        match payload {
            Payload::None => {}
            Payload::Elements(list) => {
                elements[..list.len()].copy_from_slice(list);
                raw.num_sge = list.len() as i32;
            }
            Payload::Inline(bytes) => {
                // ibv_post_send reads the bytes when the doorbell rings, which is after the
                // caller's borrow of them ends: keep a copy until then.
                let copy = &mut self.inline[index * self.inline_each..][..bytes.len()];
                copy.copy_from_slice(bytes);
                elements[0] = ibv_sge {
                    addr: copy.as_ptr().addr() as u64,
                    length: bytes.len() as u32,
                    lkey: 0,
                };
                raw.num_sge = i32::from(!bytes.is_empty());
                raw.send_flags |= IBV_SEND_INLINE;
            }
        }
        match request {
            Request::Write { rkey, address } => {
                raw.opcode = IBV_WR_RDMA_WRITE;
                raw.wr.rdma = remote(rkey, address);
            }
            Request::Read { rkey, address } => {
                raw.opcode = IBV_WR_RDMA_READ;
                raw.wr.rdma = remote(rkey, address);
            }
            Request::Send => raw.opcode = IBV_WR_SEND,
            Request::Bind { window, rkey, info } => {
                raw.opcode = IBV_WR_BIND_MW;
                raw.__bindgen_anon_2.bind_mw = ibv_send_wr__bindgen_ty_4__bindgen_ty_1 {
                    mw: window,
                    rkey,
                    bind_info: info,
                };
            }
            Request::Invalidate { rkey } => {
                raw.opcode = IBV_WR_LOCAL_INV;
                raw.__bindgen_anon_1.invalidate_rkey = rkey;
            }
            // Never accepted by a queue pair of this kind: the structure has no place for them.
            Request::Flush { .. } | Request::AtomicWrite { .. } => return,
        }
        self.requests[index] = raw;
        self.posted += 1;
    }

    /// # Safety
    /// As [`Poster::complete`].
    unsafe fn complete(&mut self, queue_pair: *mut ibv_qp) -> Result<(), VerbsError> {
        let count = std::mem::take(&mut self.posted);
        let elements = self.elements.as_mut_ptr();
        let requests = self.requests.as_mut_ptr();
        for index in 0..count {
            // SAFETY: `index` is below the length of `requests`, and `elements` has
            // `elements_each` for each of them.
            unsafe {
                let request = &raw mut *requests.add(index);
                (*request).sg_list = elements.add(index * self.elements_each);
                (*request).next = if index + 1 < count {
                    requests.add(index + 1)
                } else {
                    null_mut()
                };
            }
        }
        let mut bad: *mut ibv_send_wr = null_mut();
        // SAFETY: the queue pair is live; the list is well formed, as just linked, ends after
        // `count` requests, and everything that it names is alive by the caller's promise.
        let result = unsafe { inline::ibv_post_send(queue_pair, requests, &raw mut bad) };
        if result == 0 {
            for request in &self.requests[..count] {
                if request.opcode == IBV_WR_BIND_MW {
                    // SAFETY: the opcode says which variant was written; the window is alive and
                    // nobody else uses it, by the caller's promise.
                    unsafe {
                        let bind = request.__bindgen_anon_2.bind_mw;
                        note_key(bind.mw, bind.rkey);
                    }
                }
            }
            return Ok(());
        }
        let errno = if result < 0 {
            crate::error::last_errno()
        } else {
            result
        };
        let offset = bad.addr().wrapping_sub(requests.addr()) / size_of::<ibv_send_wr>();
        match if bad.is_null() { 0 } else { offset.min(count) } {
            0 => Err(VerbsError::call("ibv_post_send", errno).with_hint(full_hint(errno))),
            posted => {
                let posted = posted as u32;
                Err(VerbsError::PostedInPart {
                    verb: "ibv_post_send",
                    errno,
                    posted,
                })
            }
        }
    }
}

/// Writes the key of a binding that was handed over into the C structure of its window, from where
/// the provider takes it for the next binding. For type 2 windows that is the program's duty.
///
/// # Safety
/// The window is live, and nobody else uses it now.
unsafe fn note_key(window: *mut ibv_mw, rkey: u32) {
    // SAFETY: the caller's promise.
    unsafe { (*window).rkey = rkey };
}

fn remote(rkey: u32, address: u64) -> ibv_send_wr__bindgen_ty_2__bindgen_ty_1 {
    ibv_send_wr__bindgen_ty_2__bindgen_ty_1 {
        remote_addr: address,
        rkey,
    }
}

const fn full_hint(errno: i32) -> &'static str {
    match errno {
        libc::ENOMEM | libc::ENOSPC => "the send queue is full: poll completions first",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_requests_keep_a_copy_of_inline_bytes() {
        let mut classic = Classic::new(4, 2, 8);
        let flags = IBV_SEND_SIGNALED;
        classic.push(7, flags, Request::Send, Payload::Inline(b"abc"));
        let raw = &classic.requests[0];
        assert_eq!((raw.wr_id, raw.opcode, raw.num_sge), (7, IBV_WR_SEND, 1));
        assert_eq!(raw.send_flags, IBV_SEND_SIGNALED | IBV_SEND_INLINE);
        assert_eq!(&classic.inline[..3], b"abc");
        assert_eq!(
            classic.elements[0].addr,
            classic.inline.as_ptr().addr() as u64
        );
    }

    #[test]
    fn classic_requests_stand_beside_each_other() {
        let mut classic = Classic::new(4, 2, 0);
        let elements = [ibv_sge {
            addr: 1,
            length: 2,
            lkey: 3,
        }; 2];
        for wr_id in 0..4 {
            let request = Request::Write {
                rkey: 9,
                address: 64,
            };
            classic.push(wr_id, 0, request, Payload::Elements(&elements));
        }
        assert_eq!(classic.posted, 4);
        assert!(classic.requests.iter().all(|raw| raw.num_sge == 2));
        assert!(classic.elements.iter().all(|element| element.lkey == 3));
    }
}
