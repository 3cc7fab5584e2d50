//! Connections by address: librdmacm's identifiers and their events.
//!
//! librdmacm isn't careful about threads: taking an event moves the queue pair of the identifier
//! that the event is about, while another thread may be destroying that queue pair. So every call
//! on a channel or on an identifier of it takes the channel's lock. All of these calls are of
//! connection set-up and end; none blocks, because the channel's file never does. Moving data
//! takes no lock.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::completion_queue::wait_readable;
use crate::connection_event::{Event, EventKind, PrivateData};
use crate::device::{Context, set_nonblocking};
use crate::error::{VerbsError, check, last_errno};
use crate::load::Verbs;
use crate::socket_address::{from_raw, to_raw};
use crate::sys::rdma_cm::*;
use crate::sys::verbs::*;

/// Where the events of a set of identifiers arrive.
#[derive(Clone)]
pub struct EventChannel {
    inner: Arc<ChannelInner>,
}

struct ChannelInner {
    raw: NonNull<rdma_event_channel>,
    verbs: Arc<Verbs>,
    /// The identifiers that are alive, by address. The lock is that of the module's first lines.
    ids: Mutex<Ids>,
}

type Ids = HashMap<usize, Weak<IdInner>>;

// SAFETY: the channel's file may be used from any thread; librdmacm's calls are made under `ids`.
unsafe impl Send for ChannelInner {}
// SAFETY: as above.
unsafe impl Sync for ChannelInner {}

impl ChannelInner {
    fn lock(&self) -> MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        // SAFETY: the identifiers on the channel held an `Arc` of it, so none is left.
        unsafe { self.verbs.cm.rdma_destroy_event_channel(self.raw.as_ptr()) };
    }
}

impl EventChannel {
    /// Opens a channel. Its reads never block.
    ///
    /// # Errors
    /// ENOENT or ENODEV where the kernel has no RDMA connection manager (`modprobe rdma_ucm`),
    /// EACCES where the process may not open it.
    pub fn new(verbs: &Arc<Verbs>) -> Result<Self, VerbsError> {
        // SAFETY: the call has no precondition.
        let raw = unsafe { verbs.cm.rdma_create_event_channel() };
        let raw = NonNull::new(raw).ok_or_else(|| {
            VerbsError::last("rdma_create_event_channel")
                .with_hint("is the kernel module rdma_ucm in, and may this process use RDMA?")
        })?;
        let (verbs, ids) = (Arc::clone(verbs), Mutex::new(HashMap::new()));
        let channel = Self {
            inner: Arc::new(ChannelInner { raw, verbs, ids }),
        };
        set_nonblocking(channel.as_fd())?;
        Ok(channel)
    }

    /// Takes the next event and acknowledges it; `None` if there is none now. Never blocks.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn next_event(&self) -> Result<Option<Event>, VerbsError> {
        loop {
            let mut ids = self.inner.lock();
            let mut raw = null_mut();
            let library = &self.inner.verbs.cm;
            // SAFETY: the channel is live; `raw` is written before a 0 is returned.
            let result =
                unsafe { library.rdma_get_cm_event(self.inner.raw.as_ptr(), &raw mut raw) };
            let Some(raw) = NonNull::new(raw).filter(|_| result == 0) else {
                let errno = last_errno();
                return match errno {
                    libc::EAGAIN | libc::EINTR => Ok(None),
                    _ => Err(VerbsError::call("rdma_get_cm_event", errno)),
                };
            };
            // SAFETY: the event is fresh, and the channel's lock is held.
            let event = unsafe { self.convert(&mut ids, raw) };
            // SAFETY: the event is acknowledged once, after all of it that is used was copied.
            unsafe { library.rdma_ack_cm_event(raw.as_ptr()) };
            // An event may hold the last hold on an identifier, whose end takes the lock.
            drop(ids);
            // `None`: of an identifier that is being destroyed; nobody waits for it.
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// As [`EventChannel::next_event`], waiting at most `timeout` (forever where `None`). A signal
    /// ends the wait early.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait_event(&self, timeout: Option<Duration>) -> Result<Option<Event>, VerbsError> {
        if let Some(event) = self.next_event()? {
            return Ok(Some(event));
        }
        wait_readable(self.as_fd(), timeout)?;
        self.next_event()
    }

    /// # Safety
    /// `raw` is an event of this channel that isn't acknowledged; `ids` is this channel's.
    unsafe fn convert(&self, ids: &mut Ids, raw: NonNull<rdma_cm_event>) -> Option<Event> {
        let raw = raw.as_ptr();
        // SAFETY: the event is valid until it is acknowledged. Identifiers here are for
        // connections (RDMA_PS_TCP), whose events have the `conn` variant, zeroed where they say
        // nothing; its private data, if any, lies in the event.
        let (kind, status, parameters, id, listen_id) = unsafe {
            (
                (*raw).event,
                (*raw).status,
                (*raw).param.conn,
                (*raw).id,
                (*raw).listen_id,
            )
        };
        let kind = EventKind::from_raw(kind);
        let known = |raw: *mut rdma_cm_id| -> Option<CmId> {
            ids.get(&raw.addr())
                .and_then(Weak::upgrade)
                .map(|inner| CmId { inner })
        };
        let (id, listen_id) = match kind {
            EventKind::ConnectRequest => {
                let id = NonNull::new(id)?;
                let listen_id = known(listen_id);
                (self.adopt(ids, id), listen_id)
            }
            _ => (known(id)?, None),
        };
        Some(Event {
            kind,
            id,
            listen_id,
            status,
            // SAFETY: as above.
            private_data: unsafe { PrivateData::copy_from(&parameters) },
            responder_resources: parameters.responder_resources,
            initiator_depth: parameters.initiator_depth,
        })
    }

    /// Takes the ownership of an identifier that librdmacm made.
    fn adopt(&self, ids: &mut Ids, raw: NonNull<rdma_cm_id>) -> CmId {
        let inner = Arc::new(IdInner {
            raw,
            channel: Arc::clone(&self.inner),
        });
        ids.insert(raw.as_ptr().addr(), Arc::downgrade(&inner));
        CmId { inner }
    }
}

impl AsFd for EventChannel {
    /// Readable when [`EventChannel::next_event`] may have one.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the file is open until the channel is destroyed, which `self` prevents.
        unsafe { BorrowedFd::borrow_raw((*self.inner.raw.as_ptr()).fd) }
    }
}

impl fmt::Debug for EventChannel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("EventChannel")
            .field(&self.as_fd().as_raw_fd())
            .finish()
    }
}

/// One end of a connection, or a listener. Clones are the same identifier; when the last one and
/// the queue pair on it are gone, it is destroyed, and the connection with it.
#[derive(Clone)]
pub struct CmId {
    inner: Arc<IdInner>,
}

struct IdInner {
    raw: NonNull<rdma_cm_id>,
    channel: Arc<ChannelInner>,
}

// SAFETY: every use of the identifier is under the channel's lock.
unsafe impl Send for IdInner {}
// SAFETY: as above.
unsafe impl Sync for IdInner {}

impl Drop for IdInner {
    fn drop(&mut self) {
        let mut ids = self.channel.lock();
        ids.remove(&self.raw.as_ptr().addr());
        // SAFETY: nobody else has the identifier, and a queue pair on it would hold an `Arc` of
        // it, so there is none. All events that were taken are acknowledged (each within one hold
        // of the lock), so the call doesn't wait.
        let result = unsafe { self.channel.verbs.cm.rdma_destroy_id(self.raw.as_ptr()) };
        if result != 0 {
            crate::leak::count();
        }
    }
}

/// How a connection is to be.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionParameters<'a> {
    /// Sent to the peer; at most [`CmId::CONNECT_DATA_MAX`] or [`CmId::ACCEPT_DATA_MAX`] bytes.
    pub private_data: &'a [u8],
    /// How many READs, FLUSHes and atomic operations of the peer are served at once. With 0 the
    /// peer can do none of them.
    pub responder_resources: u8,
    /// How many READs, FLUSHes and atomic operations this side has outstanding at once. With 0 it
    /// can do none of them.
    pub initiator_depth: u8,
    /// How often a request is sent again before the peer counts as gone, 0 to 7.
    pub retry_count: u8,
    /// How often a SEND is tried while the peer has no receive request, 0 to 6; 7 is for ever.
    pub rnr_retry_count: u8,
}

impl ConnectionParameters<'_> {
    /// For `responder_resources` and `initiator_depth`: as many as the device can, and for an
    /// accepting side no more than the peer asked for.
    pub const AS_MANY_AS_POSSIBLE: u8 = u8::MAX;
}

impl Default for ConnectionParameters<'_> {
    /// No private data; reads, flushes and atomics as many as possible both ways; 7 retries, and
    /// for ever where the receiver isn't ready.
    fn default() -> Self {
        Self {
            private_data: &[],
            responder_resources: Self::AS_MANY_AS_POSSIBLE,
            initiator_depth: Self::AS_MANY_AS_POSSIBLE,
            retry_count: 7,
            rnr_retry_count: 7,
        }
    }
}

impl CmId {
    /// Most bytes of private data with [`CmId::connect`].
    pub const CONNECT_DATA_MAX: usize = 56;
    /// Most bytes of private data with [`CmId::accept`].
    pub const ACCEPT_DATA_MAX: usize = 196;
    /// Most bytes of private data with [`CmId::reject`].
    pub const REJECT_DATA_MAX: usize = 148;

    /// Makes an identifier for a reliable connection.
    ///
    /// # Errors
    /// ENODEV where the machine has no RDMA device.
    pub fn new(channel: &EventChannel) -> Result<Self, VerbsError> {
        let mut ids = channel.inner.lock();
        let mut raw = null_mut();
        // SAFETY: the channel is live and is kept so by the identifier; `raw` is writable.
        let result = unsafe {
            channel.inner.verbs.cm.rdma_create_id(
                channel.inner.raw.as_ptr(),
                &raw mut raw,
                null_mut(),
                RDMA_PS_TCP,
            )
        };
        check("rdma_create_id", result)?;
        let raw = NonNull::new(raw).ok_or(VerbsError::call("rdma_create_id", libc::ENOMEM))?;
        Ok(channel.adopt(&mut ids, raw))
    }

    /// Calls librdmacm under the lock.
    fn call(
        &self,
        verb: &'static str,
        function: impl FnOnce(&RdmacmLibrary, *mut rdma_cm_id) -> i32,
    ) -> Result<(), VerbsError> {
        let _lock = self.inner.channel.lock();
        check(
            verb,
            function(&self.inner.channel.verbs.cm, self.inner.raw.as_ptr()),
        )
    }

    /// Gives it a local address. A wildcard address is of every device; port 0 picks one.
    ///
    /// # Errors
    /// EADDRINUSE; ENODEV or EADDRNOTAVAIL where no RDMA device has the address.
    pub fn bind_addr(&self, address: SocketAddr) -> Result<(), VerbsError> {
        let mut address = to_raw(address);
        self.call("rdma_bind_addr", |library, id| {
            // SAFETY: the identifier is live; the address is complete, as its family says, and is
            // copied before the call returns.
            unsafe { library.rdma_bind_addr(id, &raw mut address.any) }
        })
        .map_err(|error| match error.errno() {
            Some(libc::ENODEV | libc::EADDRNOTAVAIL) => {
                error.with_hint("no RDMA device has this address")
            }
            _ => error,
        })
    }

    /// Starts to listen; connection requests arrive as [`EventKind::ConnectRequest`]. `backlog`
    /// of them wait in the kernel at most.
    ///
    /// # Errors
    /// EADDRINUSE.
    pub fn listen(&self, backlog: u32) -> Result<(), VerbsError> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        // SAFETY: the identifier is live.
        self.call("rdma_listen", |library, id| unsafe {
            library.rdma_listen(id, backlog)
        })
    }

    /// Looks for the device by which `destination` is reached. Ends with
    /// [`EventKind::AddressResolved`] or [`EventKind::AddressError`]; the identifier then has a
    /// context.
    ///
    /// # Errors
    /// What can be said at once, such as ENETUNREACH.
    pub fn resolve_addr(
        &self,
        source: Option<SocketAddr>,
        destination: SocketAddr,
        timeout: Duration,
    ) -> Result<(), VerbsError> {
        let mut source = source.map(to_raw);
        let mut destination = to_raw(destination);
        let timeout_ms = milliseconds(timeout);
        self.call("rdma_resolve_addr", |library, id| {
            let source = source
                .as_mut()
                .map_or(null_mut(), |source| &raw mut source.any);
            // SAFETY: the identifier is live; the addresses are complete, as their families say,
            // and are copied before the call returns; the source may be null.
            unsafe { library.rdma_resolve_addr(id, source, &raw mut destination.any, timeout_ms) }
        })
    }

    /// Looks for the way to the peer. Ends with [`EventKind::RouteResolved`] or
    /// [`EventKind::RouteError`].
    ///
    /// # Errors
    /// EINVAL before the address is resolved.
    pub fn resolve_route(&self, timeout: Duration) -> Result<(), VerbsError> {
        let timeout_ms = milliseconds(timeout);
        self.call("rdma_resolve_route", |library, id| {
            // SAFETY: the identifier is live.
            unsafe { library.rdma_resolve_route(id, timeout_ms) }
        })
    }

    /// Sets how long a request waits for the peer's answer before it is sent again: 4.096 µs times 2
    /// to the power of `exponent`, 0 to 31 (0 is for ever). A silent peer counts as gone after about
    /// that times the retries; the kernel's own choice makes that half a minute on RoCE. To be set
    /// before [`CmId::connect`] or [`CmId::accept`], for this side's requests.
    ///
    /// # Errors
    /// [`VerbsError::Invalid`] over 31; ENOSYS from kernels that can't (before 5.1).
    pub fn set_ack_timeout(&self, exponent: u8) -> Result<(), VerbsError> {
        let mut value = exponent;
        // Five bits on the wire; the kernel takes any number.
        if exponent > 31 {
            return Err(VerbsError::Invalid(
                "an exponent of the acknowledgement timeout over 31",
            ));
        }
        self.call("rdma_set_option", |library, id| {
            // SAFETY: the identifier is live; this option is a u8, which is copied before the call
            // returns.
            unsafe {
                library.rdma_set_option(
                    id,
                    RDMA_OPTION_ID.cast_signed(),
                    RDMA_OPTION_ID_ACK_TIMEOUT.cast_signed(),
                    (&raw mut value).cast(),
                    1,
                )
            }
        })
    }

    /// Asks the peer for a connection of the queue pair on this identifier. Ends with
    /// [`EventKind::Established`], [`EventKind::Rejected`], [`EventKind::Unreachable`] or
    /// [`EventKind::ConnectError`].
    ///
    /// # Errors
    /// [`VerbsError::TooMany`] for the private data; [`VerbsError::Invalid`] where there is no
    /// queue pair; EINVAL where the device can't serve as many reads, or the route isn't resolved.
    pub fn connect(&self, parameters: &ConnectionParameters<'_>) -> Result<(), VerbsError> {
        let mut raw = connection_parameters(parameters, Self::CONNECT_DATA_MAX)?;
        self.with_queue_pair("rdma_connect", |library, id| {
            // SAFETY: the identifier is live and has a queue pair; the parameters and their
            // private data are copied before the call returns.
            unsafe { library.rdma_connect(id, &raw mut raw) }
        })
    }

    /// Agrees to a connection request, for the queue pair on this identifier. Ends with
    /// [`EventKind::Established`], or [`EventKind::ConnectError`] where the peer went away.
    ///
    /// # Errors
    /// As [`CmId::connect`].
    pub fn accept(&self, parameters: &ConnectionParameters<'_>) -> Result<(), VerbsError> {
        let mut raw = connection_parameters(parameters, Self::ACCEPT_DATA_MAX)?;
        self.with_queue_pair("rdma_accept", |library, id| {
            // SAFETY: as in `connect`.
            unsafe { library.rdma_accept(id, &raw mut raw) }
        })
    }

    /// Refuses a connection request, with bytes that say why.
    ///
    /// # Errors
    /// [`VerbsError::TooMany`] for the private data; EINVAL where there is no request.
    pub fn reject(&self, private_data: &[u8]) -> Result<(), VerbsError> {
        let len = data_len(private_data, Self::REJECT_DATA_MAX)?;
        self.call("rdma_reject", |library, id| {
            // SAFETY: the identifier is live; the bytes are copied before the call returns.
            unsafe { library.rdma_reject(id, private_data.as_ptr().cast(), len) }
        })
    }

    /// Ends the connection: this side's queue pair breaks now. The peer gets
    /// [`EventKind::Disconnected`] and must disconnect (or drop its identifier) in turn, which
    /// breaks its queue pair; this side then gets [`EventKind::Disconnected`] too, or after some
    /// seconds without an answer.
    ///
    /// # Errors
    /// [`VerbsError::Invalid`] or EINVAL where there is no connection.
    pub fn disconnect(&self) -> Result<(), VerbsError> {
        let _lock = self.inner.channel.lock();
        let id = self.inner.raw.as_ptr();
        // SAFETY: the identifier is live, and the lock keeps librdmacm from writing to it.
        if unsafe { (*id).verbs }.is_null() {
            return Err(VerbsError::Invalid(
                "the identifier isn't bound to a device yet",
            ));
        }
        // SAFETY: the identifier is live and bound to a device, whose kind the library looks at.
        check("rdma_disconnect", unsafe {
            self.inner.channel.verbs.cm.rdma_disconnect(id)
        })
    }

    /// The device that the identifier is bound to. All identifiers on one device, of whatever
    /// channel, give the same `Arc` (`Arc::ptr_eq`), so that they can share a protection domain.
    ///
    /// # Errors
    /// [`VerbsError::Invalid`] where it isn't bound to a device: its address isn't resolved, or
    /// it listens on a wildcard address.
    pub fn context(&self) -> Result<Arc<Context>, VerbsError> {
        let _lock = self.inner.channel.lock();
        // SAFETY: the identifier is live, and the lock keeps librdmacm from writing to it.
        let raw = unsafe { (*self.inner.raw.as_ptr()).verbs };
        let raw = NonNull::new(raw).ok_or(VerbsError::Invalid(
            "the identifier isn't bound to a device yet",
        ))?;
        // SAFETY: the context is that of this identifier, which is alive during this call.
        unsafe { Context::managed(&self.inner.channel.verbs, raw) }
    }

    /// The port of the device, from 1; 0 where it isn't bound to one.
    pub fn port(&self) -> u8 {
        let _lock = self.inner.channel.lock();
        // SAFETY: the identifier is live, and the lock keeps librdmacm from writing to it.
        unsafe { (*self.inner.raw.as_ptr()).port_num }
    }

    /// Its own address, where it has one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address(0)
    }

    /// The peer's address, where there is a peer.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.address(size_of::<libc::sockaddr_storage>())
    }

    /// `rdma_addr` starts with two unions, each as large as a `sockaddr_storage`: source, then
    /// destination.
    fn address(&self, offset: usize) -> Option<SocketAddr> {
        let _lock = self.inner.channel.lock();
        // SAFETY: the identifier is live, and the lock keeps librdmacm from writing to it; both
        // unions lie inside the address and are as large as any family's structure.
        unsafe {
            let address = &raw const (*self.inner.raw.as_ptr()).route.addr;
            from_raw(address.byte_add(offset).cast())
        }
    }

    /// Which identifier: equal for clones of one, and for nothing else that is alive.
    pub fn identity(&self) -> usize {
        self.inner.raw.as_ptr().addr()
    }

    fn with_queue_pair(
        &self,
        verb: &'static str,
        function: impl FnOnce(&RdmacmLibrary, *mut rdma_cm_id) -> i32,
    ) -> Result<(), VerbsError> {
        let _lock = self.inner.channel.lock();
        let id = self.inner.raw.as_ptr();
        // SAFETY: the identifier is live, and the lock keeps librdmacm from writing to it.
        if unsafe { (*id).qp }.is_null() {
            return Err(VerbsError::Invalid("the identifier has no queue pair"));
        }
        check(verb, function(&self.inner.channel.verbs.cm, id))
    }

    /// # Safety
    /// The objects that `attributes` names are live, on this identifier's device, and outlive the
    /// queue pair. The caller destroys it with [`CmId::destroy_queue_pair`].
    pub(crate) unsafe fn create_queue_pair(
        &self,
        attributes: &mut ibv_qp_init_attr_ex,
    ) -> Result<NonNull<ibv_qp>, VerbsError> {
        let _lock = self.inner.channel.lock();
        let id = self.inner.raw.as_ptr();
        // SAFETY: the identifier is live; the rest is the caller's promise.
        let result = unsafe {
            self.inner
                .channel
                .verbs
                .cm
                .rdma_create_qp_ex(id, attributes)
        };
        check("rdma_create_qp_ex", result)?;
        // SAFETY: the identifier is live, and the lock is held.
        NonNull::new(unsafe { (*id).qp }).ok_or(VerbsError::call("rdma_create_qp_ex", libc::EINVAL))
    }

    /// # Safety
    /// There is a queue pair on the identifier, and nobody uses it now or later.
    pub(crate) unsafe fn destroy_queue_pair(&self) {
        let _lock = self.inner.channel.lock();
        // SAFETY: the identifier is live; the rest is the caller's promise.
        unsafe {
            self.inner
                .channel
                .verbs
                .cm
                .rdma_destroy_qp(self.inner.raw.as_ptr());
        };
    }
}

impl fmt::Debug for CmId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CmId")
            .field("local", &self.local_addr())
            .field("peer", &self.peer_addr())
            .finish()
    }
}

impl PartialEq for CmId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for CmId {}

fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}

fn data_len(private_data: &[u8], limit: usize) -> Result<u8, VerbsError> {
    let (given, limit) = (private_data.len() as u64, limit as u64);
    u8::try_from(given)
        .ok()
        .filter(|_| given <= limit)
        .ok_or(VerbsError::TooMany {
            what: "bytes of private data",
            given,
            limit,
        })
}

fn connection_parameters(
    parameters: &ConnectionParameters<'_>,
    data_max: usize,
) -> Result<rdma_conn_param, VerbsError> {
    Ok(rdma_conn_param {
        private_data: parameters.private_data.as_ptr().cast(),
        private_data_len: data_len(parameters.private_data, data_max)?,
        responder_resources: parameters.responder_resources,
        initiator_depth: parameters.initiator_depth,
        retry_count: parameters.retry_count.min(7),
        rnr_retry_count: parameters.rnr_retry_count.min(7),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_allow_reads_and_flushes() {
        let parameters = ConnectionParameters::default();
        let raw = connection_parameters(&parameters, CmId::CONNECT_DATA_MAX).unwrap();
        assert_eq!((raw.responder_resources, raw.initiator_depth), (255, 255));
        assert_eq!((raw.retry_count, raw.rnr_retry_count), (7, 7));
        assert_eq!(raw.private_data_len, 0);
    }

    #[test]
    fn private_data_has_a_limit() {
        for (len, fits) in [(56, true), (57, false), (300, false)] {
            let data = vec![1; len];
            let parameters = ConnectionParameters {
                private_data: &data,
                ..Default::default()
            };
            let raw = connection_parameters(&parameters, CmId::CONNECT_DATA_MAX);
            assert_eq!(raw.is_ok(), fits, "{len}");
        }
    }
}
