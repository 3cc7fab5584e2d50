//! Posting work: a guard that collects requests and rings one doorbell.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::VerbsError;
use crate::memory_region::{Access, MemoryRegion, out_of_bounds};
use crate::memory_window::MemoryWindow;
use crate::posting::{Payload, Request, SGE_MAX};
use crate::queue_pair::{Operations, QueuePair};
use crate::sys::verbs::*;

bitflags::bitflags! {
    /// How a work request is done.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct WrFlags: u32 {
        /// Its success makes a completion too; its failure always does.
        const SIGNALED = IBV_SEND_SIGNALED;
        /// It waits for the READs and atomic operations before it.
        const FENCE = IBV_SEND_FENCE;
        /// The peer's receive completion is a solicited one.
        const SOLICITED = IBV_SEND_SOLICITED;
    }
}

bitflags::bitflags! {
    /// How far a FLUSH drives the data.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct FlushType: u8 {
        /// To where every processor and device of the peer sees it.
        const GLOBAL = IBV_FLUSH_GLOBAL as u8;
        /// To where it outlives a loss of power.
        const PERSISTENT = IBV_FLUSH_PERSISTENT as u8;
    }
}

/// Which data a FLUSH is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlushLevel {
    /// The named range.
    Range = IBV_FLUSH_RANGE as u8,
    /// The whole memory region of the key.
    MemoryRegion = IBV_FLUSH_MR as u8,
}

/// A region that a queue pair holds on to: what work on that queue pair names memory by. See
/// [`QueuePair::attach`].
#[derive(Debug, Clone, Copy)]
pub struct AttachedRegion {
    pub(crate) tag: u64,
    pub(crate) slot: u32,
    pub(crate) lkey: u32,
    pub(crate) start: u64,
    pub(crate) length: u64,
}

impl AttachedRegion {
    /// Names `length` bytes from `offset` of the region.
    ///
    /// # Errors
    /// [`VerbsError::OutOfBounds`] where they aren't inside the region, or are none.
    #[inline]
    pub fn sge(&self, offset: u64, length: u32) -> Result<Sge, VerbsError> {
        let end = offset.checked_add(u64::from(length));
        if length == 0 || end.is_none_or(|end| end > self.length) {
            return Err(out_of_bounds(offset, u64::from(length), self.length));
        }
        let raw = ibv_sge {
            addr: self.start + offset,
            length,
            lkey: self.lkey,
        };
        Ok(Sge {
            tag: self.tag,
            slot: self.slot,
            raw,
        })
    }

    /// How many bytes the region has.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// A range of local memory in a work request. Made by [`AttachedRegion::sge`] alone, so it is
/// always inside registered memory.
#[derive(Clone, Copy)]
pub struct Sge {
    pub(crate) tag: u64,
    pub(crate) slot: u32,
    raw: ibv_sge,
}

impl Sge {
    /// How many bytes.
    pub fn length(&self) -> u32 {
        self.raw.length
    }
}

impl std::fmt::Debug for Sge {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Sge")
            .field("address", &format_args!("{:#x}", self.raw.addr))
            .field("length", &self.raw.length)
            .finish_non_exhaustive()
    }
}

/// What a window is to give to whoever has its key.
#[derive(Debug, Clone, Copy)]
pub struct WindowBinding<'a> {
    /// The region, registered with [`Access::WINDOW_BIND`].
    pub region: &'a Arc<MemoryRegion>,
    /// The first byte, as the region names it ([`MemoryRegion::start`] and up).
    pub address: u64,
    /// How many bytes.
    pub length: u64,
    /// The rights: remote ones only. Not more than what the region has, apart from remote rights
    /// that a device may give through a window alone.
    pub access: Access,
}

/// Elements of a request in the device's terms, on the stack.
pub(crate) struct Elements {
    list: [ibv_sge; SGE_MAX],
    count: usize,
}

impl Elements {
    #[inline]
    pub(crate) fn as_slice(&self) -> &[ibv_sge] {
        &self.list[..self.count]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [ibv_sge] {
        &mut self.list[..self.count]
    }

    /// Checks that `sges` are of `queue_pair` and at most `limit`.
    #[inline]
    pub(crate) fn resolve(
        queue_pair: &QueuePair,
        sges: &[Sge],
        limit: u32,
    ) -> Result<Self, VerbsError> {
        if sges.len() > (limit as usize).min(SGE_MAX) {
            return Err(VerbsError::TooMany {
                what: "elements of a work request",
                given: sges.len() as u64,
                limit: u64::from(limit),
            });
        }
        let mut list = [ibv_sge {
            addr: 0,
            length: 0,
            lkey: 0,
        }; SGE_MAX];
        for (element, sge) in list.iter_mut().zip(sges) {
            queue_pair.check_attached(sge)?;
            *element = sge.raw;
        }
        Ok(Self {
            list,
            count: sges.len(),
        })
    }
}

/// Work requests that are being collected for one doorbell. Made by [`QueuePair::start`], which
/// it borrows; what isn't posted is dropped with it.
///
/// A method that returns an error has added nothing; the batch goes on without that request.
///
/// It stays on its thread: a provider may hold a lock of the queue pair while a batch is open.
/// Don't wait for anything between [`QueuePair::start`] and [`Batch::post`]. A batch that is
/// forgotten (`mem::forget`) is abandoned by the next `start`.
pub struct Batch<'q> {
    queue_pair: &'q mut QueuePair,
    requests: u32,
    on_its_thread: PhantomData<*mut ()>,
}

impl<'q> Batch<'q> {
    pub(crate) fn new(queue_pair: &'q mut QueuePair) -> Self {
        queue_pair.open_batch();
        Self {
            queue_pair,
            requests: 0,
            on_its_thread: PhantomData,
        }
    }

    /// How many requests it has.
    pub fn len(&self) -> u32 {
        self.requests
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// RDMA WRITE of local memory to `remote_address` of the peer. No elements: writes nothing.
    ///
    /// # Errors
    /// As [`Batch`] says for each of: operation not accepted, batch full, too many elements, an
    /// element of a region that isn't attached here.
    #[inline]
    pub fn write(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        rkey: u32,
        remote_address: u64,
        sges: &[Sge],
    ) -> Result<(), VerbsError> {
        let request = Request::Write {
            rkey,
            address: remote_address,
        };
        self.with_elements(Operations::WRITE, wr_id, flags, request, sges)
    }

    /// RDMA READ of the peer's memory at `remote_address` into local memory, whose regions must be
    /// registered with [`Access::LOCAL_WRITE`].
    ///
    /// # Errors
    /// As [`Batch::write`].
    #[inline]
    pub fn read(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        rkey: u32,
        remote_address: u64,
        sges: &[Sge],
    ) -> Result<(), VerbsError> {
        let request = Request::Read {
            rkey,
            address: remote_address,
        };
        self.with_elements(Operations::READ, wr_id, flags, request, sges)
    }

    /// SEND of local memory, into a receive request of the peer.
    ///
    /// # Errors
    /// As [`Batch::write`].
    #[inline]
    pub fn send(&mut self, wr_id: u64, flags: WrFlags, sges: &[Sge]) -> Result<(), VerbsError> {
        self.with_elements(Operations::SEND, wr_id, flags, Request::Send, sges)
    }

    /// RDMA WRITE of `bytes`, which are copied now.
    ///
    /// # Errors
    /// As [`Batch::write`], and [`VerbsError::TooMany`] over [`QueuePair::inline_max`].
    #[inline]
    pub fn write_inline(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        rkey: u32,
        remote_address: u64,
        bytes: &[u8],
    ) -> Result<(), VerbsError> {
        let request = Request::Write {
            rkey,
            address: remote_address,
        };
        self.with_inline(Operations::WRITE, wr_id, flags, request, bytes)
    }

    /// SEND of `bytes`, which are copied now.
    ///
    /// # Errors
    /// As [`Batch::write_inline`].
    #[inline]
    pub fn send_inline(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        bytes: &[u8],
    ) -> Result<(), VerbsError> {
        self.with_inline(Operations::SEND, wr_id, flags, Request::Send, bytes)
    }

    /// FLUSH of what was written to `length` bytes of the peer's memory at `remote_address`, by
    /// requests that were posted on this queue pair before. Its completion says that the data is
    /// where `kind` says. `rkey` is of a region registered with the flush rights (on soft-RoCE a
    /// window's key is refused). With [`FlushLevel::MemoryRegion`] address and length are ignored.
    ///
    /// # Errors
    /// As [`Batch::write`]; [`VerbsError::Invalid`] where `kind` is empty.
    // One argument over the limit: they are the fields of the request on the wire.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub fn flush(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        rkey: u32,
        remote_address: u64,
        length: u32,
        kind: FlushType,
        level: FlushLevel,
    ) -> Result<(), VerbsError> {
        if kind.is_empty() {
            return Err(VerbsError::Invalid("a FLUSH of no type"));
        }
        let request = Request::Flush {
            rkey,
            address: remote_address,
            length: length as usize,
            placement: kind.bits(),
            level: level as u8,
        };
        self.push(Operations::FLUSH, wr_id, flags, request, Payload::None)
    }

    /// ATOMIC WRITE of 8 bytes (`value` in this machine's byte order) to `remote_address`, which
    /// must be a multiple of 8. A reader sees the old or the new value, never a mixture, and it is
    /// done after the requests before it.
    ///
    /// # Errors
    /// As [`Batch::write`]; [`VerbsError::Invalid`] where the address isn't aligned.
    #[inline]
    pub fn atomic_write(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        rkey: u32,
        remote_address: u64,
        value: u64,
    ) -> Result<(), VerbsError> {
        if !remote_address.is_multiple_of(8) {
            return Err(VerbsError::Invalid(
                "the address of an ATOMIC WRITE isn't aligned to 8",
            ));
        }
        let request = Request::AtomicWrite {
            rkey,
            address: remote_address,
            value,
        };
        self.push(
            Operations::ATOMIC_WRITE,
            wr_id,
            flags,
            request,
            Payload::None,
        )
    }

    /// Binds `window` to a range of a region under the key `new_rkey`, for this queue pair's peer.
    /// `new_rkey` is from [`MemoryWindow::next_rkey`] or [`MemoryWindow::rkey_with_tag`]. The
    /// window must be unbound: new, or invalidated with the completion of that seen.
    ///
    /// From now on the window holds the region and the queue pair, whether or not the batch is
    /// posted; one whose binding wasn't done can only be dropped. Keep the window: dropping it
    /// unbinds it.
    ///
    /// # Errors
    /// As [`Batch::write`]; [`VerbsError::OutOfBounds`] where the range isn't inside the region;
    /// [`VerbsError::Mixed`] where window, region and queue pair aren't of one domain;
    /// [`VerbsError::Invalid`] where the window is bound, the region isn't registered for windows
    /// or the key isn't one of this window.
    pub fn bind_window(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        window: &'q mut MemoryWindow,
        new_rkey: u32,
        binding: &WindowBinding<'q>,
    ) -> Result<(), VerbsError> {
        let WindowBinding {
            region,
            address,
            length,
            access,
        } = *binding;
        self.check_binding(window, new_rkey, binding)?;
        self.check_room(Operations::BIND_WINDOW)?;
        let info = ibv_mw_bind_info {
            mr: region.raw(),
            addr: address,
            length,
            mw_access_flags: access.bits(),
        };
        window.note_binding(new_rkey, region, self.queue_pair.inner());
        let request = Request::Bind {
            window: window.raw(),
            rkey: new_rkey,
            info,
        };
        self.push(
            Operations::BIND_WINDOW,
            wr_id,
            flags,
            request,
            Payload::None,
        )
    }

    fn check_binding(
        &self,
        window: &MemoryWindow,
        new_rkey: u32,
        binding: &WindowBinding<'_>,
    ) -> Result<(), VerbsError> {
        let WindowBinding {
            region,
            address,
            length,
            ..
        } = *binding;
        let domain = region.protection_domain();
        if !Arc::ptr_eq(domain, window.protection_domain())
            || !Arc::ptr_eq(domain, self.queue_pair.protection_domain())
        {
            return Err(VerbsError::Mixed {
                what: "window, region and queue pair",
                owner: "protection domains",
            });
        }
        if window.is_bound() {
            return Err(VerbsError::Invalid("the memory window is bound"));
        }
        if !region.access().contains(Access::WINDOW_BIND) {
            return Err(VerbsError::Invalid(
                "the region isn't registered for memory windows",
            ));
        }
        if new_rkey & !0xff != window.rkey() & !0xff {
            return Err(VerbsError::Invalid(
                "the key isn't one of this memory window",
            ));
        }
        let offset = address.wrapping_sub(region.start());
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= region.length());
        if address < region.start() || !inside || length == 0 {
            return Err(out_of_bounds(offset, length, region.length()));
        }
        Ok(())
    }

    /// Takes a window's rights away: once this completes with success, no request of the peer under
    /// the window's key is served, and one that is tried breaks the connection. Where it doesn't
    /// succeed (the queue pair was broken already), drop the window.
    ///
    /// # Errors
    /// As [`Batch::write`]; [`VerbsError::Invalid`] where the window isn't bound: soft-RoCE would
    /// bring its kernel down over that.
    pub fn local_invalidate(
        &mut self,
        wr_id: u64,
        flags: WrFlags,
        window: &'q mut MemoryWindow,
    ) -> Result<(), VerbsError> {
        if !window.is_bound() {
            return Err(VerbsError::Invalid("the memory window isn't bound"));
        }
        self.check_room(Operations::LOCAL_INVALIDATE)?;
        window.note_invalidation();
        let request = Request::Invalidate {
            rkey: window.rkey(),
        };
        self.push(
            Operations::LOCAL_INVALIDATE,
            wr_id,
            flags,
            request,
            Payload::None,
        )
    }

    /// Hands all requests to the device with one doorbell, in order. An empty batch does nothing.
    ///
    /// # Errors
    /// [`VerbsError::Call`] with ENOMEM or ENOSPC where the send queue has no room: none was
    /// posted. [`VerbsError::PostedInPart`] where some were (classic posting only). Any other
    /// errno: take the connection for broken.
    pub fn post(self) -> Result<(), VerbsError> {
        if self.requests == 0 {
            // Dropping it abandons it.
            return Ok(());
        }
        self.queue_pair.complete_batch()
    }

    fn check_room(&self, operation: Operations) -> Result<(), VerbsError> {
        if !self.queue_pair.accepted().contains(operation) {
            let what = operation.name();
            return Err(VerbsError::Unsupported {
                what,
                by: "queue pair",
            });
        }
        let limit = self.queue_pair.batch_max();
        if self.requests >= limit {
            return Err(VerbsError::TooMany {
                what: "requests in a batch",
                given: u64::from(self.requests) + 1,
                limit: u64::from(limit),
            });
        }
        Ok(())
    }

    #[inline]
    fn with_elements(
        &mut self,
        operation: Operations,
        wr_id: u64,
        flags: WrFlags,
        request: Request,
        sges: &[Sge],
    ) -> Result<(), VerbsError> {
        let elements = Elements::resolve(self.queue_pair, sges, self.queue_pair.send_sge_max())?;
        let list = elements.as_slice();
        if self.queue_pair.miscounts_elements()
            && list.windows(2).any(|w| w[0].length != w[1].length)
        {
            return Err(VerbsError::Unsupported {
                what: "a request with elements of unequal length",
                by: "provider (soft-RoCE)",
            });
        }
        self.push(operation, wr_id, flags, request, Payload::Elements(list))
    }

    #[inline]
    fn with_inline(
        &mut self,
        operation: Operations,
        wr_id: u64,
        flags: WrFlags,
        request: Request,
        bytes: &[u8],
    ) -> Result<(), VerbsError> {
        let limit = self.queue_pair.inline_max();
        if bytes.len() > limit as usize {
            return Err(VerbsError::TooMany {
                what: "inline bytes",
                given: bytes.len() as u64,
                limit: u64::from(limit),
            });
        }
        self.push(operation, wr_id, flags, request, Payload::Inline(bytes))
    }

    #[inline]
    fn push(
        &mut self,
        operation: Operations,
        wr_id: u64,
        flags: WrFlags,
        request: Request,
        payload: Payload<'_>,
    ) -> Result<(), VerbsError> {
        self.check_room(operation)?;
        // SAFETY: a batch is open, from `new`. The operation is accepted and there is room, as
        // just checked; the payload's size was checked where it was made. The only pointers in a
        // request are those of a binding, whose window and region are borrowed for longer than
        // the batch.
        unsafe { self.queue_pair.push(wr_id, flags.bits(), request, payload) };
        self.requests += 1;
        Ok(())
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // Does nothing after `post`.
        self.queue_pair.abandon_batch();
    }
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: AttachedRegion = AttachedRegion {
        tag: 1,
        slot: 0,
        lkey: 5,
        start: 4096,
        length: 100,
    };

    #[test]
    fn an_element_is_inside_its_region() {
        let sge = REGION.sge(10, 90).unwrap();
        assert_eq!((sge.raw.addr, sge.raw.length, sge.raw.lkey), (4106, 90, 5));
        for (offset, length) in [(0, 101), (100, 1), (u64::MAX, 1), (10, 91), (5, 0)] {
            let error = REGION.sge(offset, length).unwrap_err();
            assert!(matches!(error, VerbsError::OutOfBounds { .. }), "{error}");
        }
    }

    #[test]
    fn flags_are_those_of_the_header() {
        assert_eq!(WrFlags::FENCE.bits(), 1);
        assert_eq!(WrFlags::SIGNALED.bits(), 2);
        assert_eq!(WrFlags::SOLICITED.bits(), 4);
        assert_eq!(
            (FlushType::GLOBAL.bits(), FlushType::PERSISTENT.bits()),
            (1, 2)
        );
        assert_eq!(
            (FlushLevel::Range as u8, FlushLevel::MemoryRegion as u8),
            (0, 1)
        );
    }
}
