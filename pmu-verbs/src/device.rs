//! RDMA devices: finding them, opening them, and what they can do.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use crate::error::{VerbsError, check};
use crate::load::Verbs;
use crate::sys::inline;
use crate::sys::verbs::*;

/// Capability bits of the kernel's `device_cap_flags_ex` that verbs.h has no names for.
const CAP_FLUSH_GLOBAL: u64 = 1 << 38;
const CAP_FLUSH_PERSISTENT: u64 = 1 << 39;
const CAP_ATOMIC_WRITE: u64 = 1 << 40;

/// The vendor number by which the kernel's soft-RoCE driver goes.
const SOFT_ROCE_VENDOR_ID: u32 = 0x00ff_ffff;

/// A device that was there when the list was taken; not opened.
#[derive(Clone)]
pub struct Device {
    raw: NonNull<ibv_device>,
    list: Arc<List>,
}

/// The array that libibverbs gave, which keeps the devices in it valid.
struct List {
    verbs: Arc<Verbs>,
    raw: NonNull<*mut ibv_device>,
}

// SAFETY: the array and its devices are only read until it is freed, once, by the last owner.
unsafe impl Send for List {}
// SAFETY: as above.
unsafe impl Sync for List {}
// SAFETY: a device is immutable while its list lives, and it holds the list.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the array came from ibv_get_device_list and every `Device` in it is gone.
        // Devices that were opened stay valid for their contexts by libibverbs' own count.
        unsafe { self.verbs.ibv.ibv_free_device_list(self.raw.as_ptr()) };
    }
}

impl Device {
    /// The RDMA devices of this machine, in libibverbs' order. An empty list where the kernel has
    /// none or where no provider library fits them (Debian package ibverbs-providers).
    ///
    /// Reads sysfs; call it outside of the data path.
    ///
    /// # Errors
    /// ENOSYS where the kernel has no RDMA support at all (`modprobe ib_uverbs`).
    pub fn list(verbs: &Arc<Verbs>) -> Result<Vec<Self>, VerbsError> {
        let mut count = 0;
        // SAFETY: `count` is a writable int.
        let raw = unsafe { verbs.ibv.ibv_get_device_list(&raw mut count) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            VerbsError::last("ibv_get_device_list").with_hint("is the kernel module ib_uverbs in?")
        })?;
        let list = Arc::new(List {
            verbs: Arc::clone(verbs),
            raw,
        });
        let count = usize::try_from(count).unwrap_or(0);
        let devices = (0..count).filter_map(|index| {
            // SAFETY: the array has `count` elements and lives in `list`.
            let raw = unsafe { *list.raw.as_ptr().add(index) };
            NonNull::new(raw).map(|raw| Self {
                raw,
                list: Arc::clone(&list),
            })
        });
        Ok(devices.collect())
    }

    /// The kernel's name of the device, such as `mlx5_0`.
    pub fn name(&self) -> String {
        // SAFETY: the device is valid while its list is held.
        unsafe { device_name(&self.list.verbs, self.raw.as_ptr()) }
    }

    /// The node's globally unique identifier, in host byte order.
    pub fn guid(&self) -> u64 {
        // SAFETY: the device is valid while its list is held.
        u64::from_be(unsafe { self.list.verbs.ibv.ibv_get_device_guid(self.raw.as_ptr()) })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Device").field(&self.name()).finish()
    }
}

/// # Safety
/// `device` is valid.
unsafe fn device_name(verbs: &Verbs, device: *mut ibv_device) -> String {
    // SAFETY: the caller promises a valid device.
    let name = unsafe { verbs.ibv.ibv_get_device_name(device) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: the name is a terminated string inside the device.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}

/// An open device. Domains, queues and channels are made on it and keep it open.
pub struct Context {
    raw: NonNull<ibv_context>,
    verbs: Arc<Verbs>,
    /// False for the contexts of librdmacm, which closes them itself.
    close: bool,
}

// SAFETY: libibverbs' calls on a context are thread-safe.
unsafe impl Send for Context {}
// SAFETY: as above; the fields read here without a call (op table, fds) never change.
unsafe impl Sync for Context {}

impl Context {
    /// Opens a device. An identifier of the connection manager brings its own context instead:
    /// [`CmId::context`](crate::CmId::context).
    ///
    /// # Errors
    /// EACCES or EPERM where the process may not open `/dev/infiniband/uverbs*`.
    pub fn open(device: &Device) -> Result<Arc<Self>, VerbsError> {
        let verbs = &device.list.verbs;
        // SAFETY: the device is valid while its list is held.
        let raw = unsafe { verbs.ibv.ibv_open_device(device.raw.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_open_device"))?;
        let context = Self {
            raw,
            verbs: Arc::clone(verbs),
            close: true,
        };
        set_nonblocking(context.async_fd())?;
        Ok(Arc::new(context))
    }

    /// The one `Context` for a context that librdmacm opened.
    ///
    /// # Safety
    /// `raw` is the context of an identifier that is alive during this call.
    pub(crate) unsafe fn managed(
        verbs: &Arc<Verbs>,
        raw: NonNull<ibv_context>,
    ) -> Result<Arc<Self>, VerbsError> {
        let mut known = verbs
            .managed_contexts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = raw.as_ptr().addr();
        if let Some(context) = known.get(&key) {
            return Ok(Arc::clone(context));
        }
        // SAFETY: a null count is allowed. The call takes a hold on every device that librdmacm
        // has open; it is kept for the life of the process, so `raw`, which is open now because
        // its identifier is, stays open.
        let held = unsafe { verbs.cm.rdma_get_devices(std::ptr::null_mut()) };
        if held.is_null() {
            return Err(VerbsError::last("rdma_get_devices"));
        }
        let mut index = 0;
        // SAFETY: the array ends with a null pointer, at which the loop stops.
        while let Some(held) = NonNull::new(unsafe { *held.add(index) }) {
            if held == raw {
                let context = Arc::new(Self {
                    raw,
                    verbs: Arc::clone(verbs),
                    close: false,
                });
                set_nonblocking(context.async_fd())?;
                known.insert(key, Arc::clone(&context));
                return Ok(context);
            }
            index += 1;
        }
        Err(VerbsError::call("rdma_get_devices", libc::ENODEV))
    }

    /// The kernel's name of the device.
    pub fn device_name(&self) -> String {
        // SAFETY: an open context points to its valid device.
        unsafe { device_name(&self.verbs, (*self.raw()).device) }
    }

    /// The device's globally unique identifier, in host byte order: the same for every context on
    /// one device.
    pub fn device_guid(&self) -> u64 {
        // SAFETY: an open context points to its valid device.
        u64::from_be(unsafe { self.verbs.ibv.ibv_get_device_guid((*self.raw()).device) })
    }

    /// What the device can do. Asks the driver; keep the answer.
    ///
    /// # Errors
    /// What the driver said.
    pub fn attributes(&self) -> Result<DeviceAttributes, VerbsError> {
        let mut raw = ibv_device_attr_ex::default();
        // SAFETY: the context is open; `raw` is a writable structure.
        let result =
            unsafe { inline::ibv_query_device_ex(&self.verbs.ibv, self.raw(), &raw mut raw) };
        check("ibv_query_device_ex", result)?;
        Ok(DeviceAttributes { raw })
    }

    /// The state of a port. Ports count from 1.
    ///
    /// # Errors
    /// EINVAL where there is no such port.
    pub fn port(&self, port: u8) -> Result<PortAttributes, VerbsError> {
        let mut raw = ibv_port_attr::default();
        // SAFETY: the context is open; `raw` is a writable structure.
        let result =
            unsafe { inline::ibv_query_port(&self.verbs.ibv, self.raw(), port, &raw mut raw) };
        check("ibv_query_port", result)?;
        Ok(PortAttributes {
            state: PortState::from_raw(raw.state),
            active_mtu_bytes: mtu_bytes(raw.active_mtu),
            link_layer: LinkLayer::from_raw(raw.link_layer),
            gid_table_len: raw.gid_tbl_len.max(0).cast_unsigned(),
            lid: raw.lid,
            message_len_max: raw.max_msg_sz,
        })
    }

    /// The addresses of a port: every entry of its table that isn't empty.
    ///
    /// # Errors
    /// EINVAL where there is no such port.
    pub fn gids(&self, port: u8) -> Result<Vec<GidEntry>, VerbsError> {
        let table_len = self.port(port)?.gid_table_len;
        let mut entries = Vec::new();
        for index in 0..table_len.min(u32::from(u8::MAX)) {
            let mut raw = ibv_gid::default();
            // SAFETY: the context is open; `raw` is a writable structure.
            let result = unsafe {
                self.verbs
                    .ibv
                    .ibv_query_gid(self.raw(), port, index.cast_signed(), &raw mut raw)
            };
            // SAFETY: both variants of the union are plain bytes, which were initialised above.
            let gid = Gid(unsafe { raw.raw });
            // An unused entry of a RoCE table reads as an error or as zeros.
            if result == 0 && gid != Gid::default() {
                entries.push(GidEntry {
                    index: index as u8,
                    gid,
                });
            }
        }
        Ok(entries)
    }

    /// Takes the next asynchronous event of the device and acknowledges it; `None` if there is
    /// none now. Never blocks; poll [`Context::as_fd`] for readability to wait.
    ///
    /// # Errors
    /// EIO where the device is gone.
    pub fn next_async_event(&self) -> Result<Option<AsyncEvent>, VerbsError> {
        let mut raw = ibv_async_event {
            element: ibv_async_event__bindgen_ty_1 { port_num: 0 },
            event_type: 0,
        };
        // SAFETY: the context is open; `raw` is a writable structure.
        let result = unsafe { self.verbs.ibv.ibv_get_async_event(self.raw(), &raw mut raw) };
        if result != 0 {
            let error = VerbsError::last("ibv_get_async_event");
            return match error.errno() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        let kind = AsyncEventKind::from_raw(raw.event_type);
        let mut event = AsyncEvent {
            kind,
            queue_pair_number: None,
            port: None,
        };
        if kind.is_of_queue_pair() {
            // SAFETY: for these events the element is a queue pair, which its owner cannot destroy
            // before the event is acknowledged; its number never changes.
            event.queue_pair_number = Some(unsafe { (*raw.element.qp).qp_num });
        } else if kind.is_of_port() {
            // SAFETY: for these events the element is a port number.
            event.port = u8::try_from(unsafe { raw.element.port_num }).ok();
        }
        // SAFETY: the event was just read and is acknowledged once.
        unsafe { self.verbs.ibv.ibv_ack_async_event(&raw mut raw) };
        Ok(Some(event))
    }

    pub(crate) fn raw(&self) -> *mut ibv_context {
        self.raw.as_ptr()
    }

    pub(crate) fn verbs(&self) -> &Arc<Verbs> {
        &self.verbs
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: an open context has its event file open, for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw((*self.raw()).async_fd) }
    }
}

impl AsFd for Context {
    /// The file of asynchronous events: readable when [`Context::next_async_event`] has one.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.async_fd()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Context")
            .field(&self.device_name())
            .finish()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.close {
            // SAFETY: this crate opened the context, and everything made on it held an `Arc` of
            // it, so nothing is left.
            let result = unsafe { self.verbs.ibv.ibv_close_device(self.raw()) };
            if result != 0 {
                crate::leak::count();
            }
        }
    }
}

/// Makes reads of `file` return at once.
pub(crate) fn set_nonblocking(file: BorrowedFd<'_>) -> Result<(), VerbsError> {
    // SAFETY: F_GETFL and F_SETFL on an open file take and give integers only.
    let result = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    check("fcntl", result)
}

/// What a device can do, and how much of it.
#[derive(Clone, Copy)]
pub struct DeviceAttributes {
    raw: ibv_device_attr_ex,
}

impl DeviceAttributes {
    /// Whether FLUSH with placement "global visibility" can be registered and executed.
    pub fn flush_global(&self) -> bool {
        self.has(CAP_FLUSH_GLOBAL)
    }

    /// Whether FLUSH with placement "persistence" can be registered and executed.
    pub fn flush_persistent(&self) -> bool {
        self.has(CAP_FLUSH_PERSISTENT)
    }

    /// Whether the 8-byte ATOMIC WRITE can be executed.
    pub fn atomic_write(&self) -> bool {
        self.has(CAP_ATOMIC_WRITE)
    }

    /// Whether type 2 memory windows (2A or 2B) can be bound.
    pub fn memory_window_type_2(&self) -> bool {
        self.has(u64::from(
            IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B,
        ))
    }

    /// Whether this is the kernel's soft-RoCE driver (rxe).
    pub fn soft_roce(&self) -> bool {
        self.raw.orig_attr.vendor_id == SOFT_ROCE_VENDOR_ID
    }

    /// All capability bits, as the kernel's `device_cap_flags_ex`.
    pub fn capability_bits(&self) -> u64 {
        self.raw.device_cap_flags_ex | u64::from(self.raw.orig_attr.device_cap_flags)
    }

    fn has(&self, any_of: u64) -> bool {
        self.capability_bits() & any_of != 0
    }

    /// Firmware version, as the device writes it.
    pub fn firmware_version(&self) -> String {
        let bytes: Vec<u8> = self
            .raw
            .orig_attr
            .fw_ver
            .iter()
            .map(|c| c.cast_unsigned())
            .collect();
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or(&[]);
        String::from_utf8_lossy(text).into_owned()
    }

    /// Most work requests in one queue of a queue pair.
    pub fn max_qp_wr(&self) -> u32 {
        count(self.raw.orig_attr.max_qp_wr)
    }

    /// Most elements in one work request.
    pub fn max_sge(&self) -> u32 {
        count(self.raw.orig_attr.max_sge)
    }

    /// Bytes of the largest memory region.
    pub fn max_mr_size(&self) -> u64 {
        self.raw.orig_attr.max_mr_size
    }

    /// Most memory regions.
    pub fn max_mr(&self) -> u32 {
        count(self.raw.orig_attr.max_mr)
    }

    /// Most memory windows.
    pub fn max_mw(&self) -> u32 {
        count(self.raw.orig_attr.max_mw)
    }

    /// Most queue pairs.
    pub fn max_qp(&self) -> u32 {
        count(self.raw.orig_attr.max_qp)
    }

    /// Most entries of a completion queue.
    pub fn max_cqe(&self) -> u32 {
        count(self.raw.orig_attr.max_cqe)
    }

    /// Most reads, flushes and atomic operations that a queue pair serves at once.
    pub fn max_qp_rd_atom(&self) -> u32 {
        count(self.raw.orig_attr.max_qp_rd_atom)
    }

    /// Most reads, flushes and atomic operations that a queue pair has outstanding at once.
    pub fn max_qp_init_rd_atom(&self) -> u32 {
        count(self.raw.orig_attr.max_qp_init_rd_atom)
    }

    /// How many ports the device has.
    pub fn port_count(&self) -> u8 {
        self.raw.orig_attr.phys_port_cnt
    }
}

impl fmt::Debug for DeviceAttributes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DeviceAttributes")
            .field(
                "capability_bits",
                &format_args!("{:#x}", self.capability_bits()),
            )
            .field("max_qp_wr", &self.max_qp_wr())
            .field("max_sge", &self.max_sge())
            .field("max_mr_size", &self.max_mr_size())
            .field("max_mw", &self.max_mw())
            .field("max_qp_rd_atom", &self.max_qp_rd_atom())
            .finish_non_exhaustive()
    }
}

/// A limit that C holds in an `int`; a negative one means none was given.
fn count(raw: i32) -> u32 {
    raw.max(0).cast_unsigned()
}

/// The state of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortAttributes {
    /// Whether traffic can flow.
    pub state: PortState,
    /// Bytes of the largest packet now; 0 where the library's number is unknown.
    pub active_mtu_bytes: u32,
    /// What carries the traffic.
    pub link_layer: LinkLayer,
    /// Entries of the address table, empty ones too.
    pub gid_table_len: u32,
    /// Local identifier (InfiniBand only).
    pub lid: u16,
    /// Bytes of the largest message.
    pub message_len_max: u32,
}

/// Whether a port can carry traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortState {
    /// No link.
    Down,
    /// A link, not configured yet.
    Initialising,
    /// Configured, waiting to be activated.
    Armed,
    /// Traffic flows.
    Active,
    /// A number that this version doesn't know.
    Unknown(u32),
}

impl PortState {
    const fn from_raw(raw: ibv_port_state) -> Self {
        match raw {
            IBV_PORT_DOWN => Self::Down,
            IBV_PORT_INIT => Self::Initialising,
            IBV_PORT_ARMED => Self::Armed,
            IBV_PORT_ACTIVE => Self::Active,
            other => Self::Unknown(other),
        }
    }
}

/// What carries a port's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkLayer {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet: RoCE or iWARP.
    Ethernet,
    /// A number that this version doesn't know, or none was given.
    Unknown(u8),
}

impl LinkLayer {
    const fn from_raw(raw: u8) -> Self {
        match raw as u32 {
            IBV_LINK_LAYER_INFINIBAND => Self::InfiniBand,
            IBV_LINK_LAYER_ETHERNET => Self::Ethernet,
            _ => Self::Unknown(raw),
        }
    }
}

const fn mtu_bytes(raw: ibv_mtu) -> u32 {
    match raw {
        IBV_MTU_256..=IBV_MTU_4096 => 128 << raw,
        _ => 0,
    }
}

/// A port's address: for RoCE, an IPv6 address or an IPv4 address mapped into one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The address as an IP address, with IPv4 taken out of its mapping.
    pub fn to_ip(self) -> std::net::IpAddr {
        std::net::Ipv6Addr::from(self.0).to_canonical()
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", std::net::Ipv6Addr::from(self.0))
    }
}

/// An entry of a port's address table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GidEntry {
    /// Its place in the table, which is how work names it.
    pub index: u8,
    /// The address.
    pub gid: Gid,
}

/// Something that happened to a device, a port or a queue pair outside of any work request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AsyncEvent {
    /// What happened.
    pub kind: AsyncEventKind,
    /// To which queue pair, for the events that are of one.
    pub queue_pair_number: Option<u32>,
    /// To which port, for the events that are of one.
    pub port: Option<u8>,
}

/// What an [`AsyncEvent`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsyncEventKind {
    /// A completion queue overran or broke.
    CompletionQueueError,
    /// A queue pair broke and can't say so in a completion.
    QueuePairFatal,
    /// A request of the peer was malformed.
    QueuePairRequestError,
    /// A request of the peer touched what it may not.
    QueuePairAccessError,
    /// The first packet of the peer arrived before the connection was reported.
    CommunicationEstablished,
    /// The last receive request of a broken queue pair was used.
    LastRequestReached,
    /// The device broke.
    DeviceFatal,
    /// A port became active.
    PortActive,
    /// A port lost its link.
    PortError,
    /// A port's address table changed.
    GidChange,
    /// Another of verbs.h's events, or one that this version doesn't know.
    Other(u32),
}

impl AsyncEventKind {
    const fn from_raw(raw: ibv_event_type) -> Self {
        match raw {
            IBV_EVENT_CQ_ERR => Self::CompletionQueueError,
            IBV_EVENT_QP_FATAL => Self::QueuePairFatal,
            IBV_EVENT_QP_REQ_ERR => Self::QueuePairRequestError,
            IBV_EVENT_QP_ACCESS_ERR => Self::QueuePairAccessError,
            IBV_EVENT_COMM_EST => Self::CommunicationEstablished,
            IBV_EVENT_QP_LAST_WQE_REACHED => Self::LastRequestReached,
            IBV_EVENT_DEVICE_FATAL => Self::DeviceFatal,
            IBV_EVENT_PORT_ACTIVE => Self::PortActive,
            IBV_EVENT_PORT_ERR => Self::PortError,
            IBV_EVENT_GID_CHANGE => Self::GidChange,
            other => Self::Other(other),
        }
    }

    const fn is_of_queue_pair(self) -> bool {
        matches!(
            self,
            Self::QueuePairFatal
                | Self::QueuePairRequestError
                | Self::QueuePairAccessError
                | Self::CommunicationEstablished
                | Self::LastRequestReached
        )
    }

    const fn is_of_port(self) -> bool {
        matches!(self, Self::PortActive | Self::PortError | Self::GidChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_stay_numbers() {
        assert_eq!(PortState::from_raw(77), PortState::Unknown(77));
        assert_eq!(LinkLayer::from_raw(9), LinkLayer::Unknown(9));
        assert_eq!(AsyncEventKind::from_raw(99), AsyncEventKind::Other(99));
        assert_eq!(mtu_bytes(IBV_MTU_4096), 4096);
        assert_eq!(mtu_bytes(IBV_MTU_256), 256);
        assert_eq!(mtu_bytes(0), 0);
        assert_eq!(mtu_bytes(40), 0);
    }

    #[test]
    fn capabilities_are_read_from_the_extended_bits() {
        // What soft-RoCE of Linux 6.12 reports.
        let mut raw = ibv_device_attr_ex {
            device_cap_flags_ex: 0x1c0_0122_3c76,
            ..zeroed()
        };
        raw.orig_attr.device_cap_flags = 0x0122_3c76;
        let attributes = DeviceAttributes { raw };
        assert!(attributes.flush_global() && attributes.flush_persistent());
        assert!(attributes.atomic_write() && attributes.memory_window_type_2());
        let none = DeviceAttributes { raw: zeroed() };
        assert!(!none.flush_global() && !none.flush_persistent());
        assert!(!none.atomic_write() && !none.memory_window_type_2());
    }

    fn zeroed() -> ibv_device_attr_ex {
        ibv_device_attr_ex::default()
    }

    #[test]
    fn mapped_addresses_read_as_ipv4() {
        let mut raw = [0; 16];
        raw[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 2, 15]);
        assert_eq!(Gid(raw).to_ip().to_string(), "10.0.2.15");
    }
}
