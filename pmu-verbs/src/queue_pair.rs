//! Reliable connected queue pairs: making them, what they hold on to, and receiving.
//!
//! # Why posted work can't outlive its memory
//! The device uses local memory after a post has returned, until the completion. Work therefore
//! names memory by [`AttachedRegion`]s: the queue pair holds an `Arc` of each attached region in a
//! table of its own, and lets go of them only when the device's queue pair is destroyed, or on
//! [`QueuePair::detach`]. Posting looks the handle up in that table (an index and a comparison): no
//! lock, no reference count, no allocation. The memory behind a region is let go only after the
//! region is deregistered, and from then on the device has no way to it; so even a region that is
//! detached too early costs an error completion and never a stray access.

use std::fmt;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::completion_queue::CompletionQueue;
use crate::connection_manager::CmId;
use crate::error::{VerbsError, check};
use crate::memory_region::MemoryRegion;
use crate::posting::{Classic, Extended, Payload, Poster, Request, SGE_MAX};
use crate::protection_domain::ProtectionDomain;
use crate::sys::inline;
use crate::sys::verbs::*;
use crate::work_request::{AttachedRegion, Batch, Elements, Sge};

bitflags::bitflags! {
    /// Kinds of work that a queue pair can be asked to do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Operations: u32 {
        /// RDMA WRITE.
        const WRITE = IBV_QP_EX_WITH_RDMA_WRITE;
        /// RDMA READ.
        const READ = IBV_QP_EX_WITH_RDMA_READ;
        /// SEND.
        const SEND = IBV_QP_EX_WITH_SEND;
        /// Binding of memory windows.
        const BIND_WINDOW = IBV_QP_EX_WITH_BIND_MW;
        /// Local invalidation of keys.
        const LOCAL_INVALIDATE = IBV_QP_EX_WITH_LOCAL_INV;
        /// FLUSH.
        const FLUSH = IBV_QP_EX_WITH_FLUSH;
        /// ATOMIC WRITE.
        const ATOMIC_WRITE = IBV_QP_EX_WITH_ATOMIC_WRITE;
    }
}

impl Operations {
    /// What [`Posting::Classic`] has no place for.
    const EXTENDED_ONLY: Self = Self::FLUSH.union(Self::ATOMIC_WRITE);

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WRITE => "RDMA WRITE",
            Self::READ => "RDMA READ",
            Self::SEND => "SEND",
            Self::BIND_WINDOW => "memory window binding",
            Self::LOCAL_INVALIDATE => "local invalidation",
            Self::FLUSH => "FLUSH",
            Self::ATOMIC_WRITE => "ATOMIC WRITE",
            _ => "a combination of operations",
        }
    }
}

/// How requests are handed to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Posting {
    /// The extended interface where the provider has it, otherwise [`Posting::Classic`].
    Best,
    /// Lists for `ibv_post_send`: no FLUSH, no ATOMIC WRITE.
    Classic,
}

/// What a queue pair is to be.
#[derive(Debug, Clone)]
pub struct QueuePairConfig {
    /// The domain of all memory that it names.
    pub domain: Arc<ProtectionDomain>,
    /// Where completions of posted work go. May be shared, also with `receive_queue`.
    pub send_queue: Arc<CompletionQueue>,
    /// Where completions of receive requests go.
    pub receive_queue: Arc<CompletionQueue>,
    /// Most requests that are posted and not completed; also the most in one batch. 1 and up.
    pub max_send_wr: u32,
    /// Most receive requests that wait.
    pub max_recv_wr: u32,
    /// Most elements of one request, 1 to 16.
    pub max_send_sge: u32,
    /// Most elements of one receive request, 1 to 16.
    pub max_recv_sge: u32,
    /// Most inline bytes of one request.
    pub max_inline_data: u32,
    /// Every request makes a completion, whatever its flags say.
    pub signal_all: bool,
    /// The operations that are wanted. What the provider doesn't have is left out; see
    /// [`QueuePair::accepted`].
    pub operations: Operations,
    /// The operations without which there is to be no queue pair: a part of `operations`.
    pub required: Operations,
    /// How requests are posted.
    pub posting: Posting,
}

impl QueuePairConfig {
    /// A small queue pair that wants every operation and requires none: 64 requests, 16 receive
    /// requests, 1 element, 64 inline bytes.
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        send_queue: &Arc<CompletionQueue>,
        receive_queue: &Arc<CompletionQueue>,
    ) -> Self {
        Self {
            domain: Arc::clone(domain),
            send_queue: Arc::clone(send_queue),
            receive_queue: Arc::clone(receive_queue),
            max_send_wr: 64,
            max_recv_wr: 16,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 64,
            signal_all: false,
            operations: Operations::all(),
            required: Operations::empty(),
            posting: Posting::Best,
        }
    }

    fn check(&self) -> Result<(), VerbsError> {
        let context = self.domain.context();
        if !Arc::ptr_eq(context, self.send_queue.context())
            || !Arc::ptr_eq(context, self.receive_queue.context())
        {
            return Err(VerbsError::Mixed {
                what: "domain and completion queues",
                owner: "devices",
            });
        }
        let limit = SGE_MAX as u32;
        let sges = self.max_send_sge.max(self.max_recv_sge);
        if sges > limit {
            let (given, limit) = (u64::from(sges), u64::from(limit));
            return Err(VerbsError::TooMany {
                what: "elements of a work request",
                given,
                limit,
            });
        }
        if self.max_send_wr == 0 || self.max_send_sge == 0 {
            return Err(VerbsError::Invalid(
                "a queue pair without room for any request",
            ));
        }
        if !self.operations.contains(self.required) {
            return Err(VerbsError::Invalid(
                "operations are required that aren't wanted",
            ));
        }
        Ok(())
    }

    /// What to ask the provider for, best first: everything; everything that older libraries know;
    /// the classic interface.
    fn attempts(&self) -> impl Iterator<Item = Attempt> + '_ {
        let older = self.operations - Operations::EXTENDED_ONLY;
        let all = Attempt {
            operations: self.operations,
            extended: true,
        };
        let extended = Attempt {
            operations: older,
            extended: true,
        };
        let classic = Attempt {
            operations: older,
            extended: false,
        };
        let repeated = older == self.operations;
        [Some(all), (!repeated).then_some(extended), Some(classic)]
            .into_iter()
            .flatten()
            .filter(|attempt| attempt.operations.contains(self.required))
            .filter(|attempt| self.posting == Posting::Best || !attempt.extended)
    }

    fn init_attributes(&self, attempt: Attempt) -> ibv_qp_init_attr_ex {
        let mut raw = ibv_qp_init_attr_ex {
            send_cq: self.send_queue.raw(),
            recv_cq: self.receive_queue.raw(),
            cap: ibv_qp_cap {
                max_send_wr: self.max_send_wr,
                max_recv_wr: self.max_recv_wr,
                max_send_sge: self.max_send_sge,
                max_recv_sge: self.max_recv_sge,
                max_inline_data: self.max_inline_data,
            },
            qp_type: IBV_QPT_RC,
            sq_sig_all: i32::from(self.signal_all),
            comp_mask: IBV_QP_INIT_ATTR_PD,
            pd: self.domain.raw(),
            ..Default::default()
        };
        if attempt.extended {
            raw.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
            raw.send_ops_flags = u64::from(attempt.operations.bits());
        }
        raw
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    operations: Operations,
    extended: bool,
}

/// Who made the device's queue pair, and so how it is destroyed.
enum Maker {
    Plain,
    /// The identifier points to the queue pair, so it must outlive it.
    ConnectionManager(CmId),
}

/// The device's queue pair, and all that must outlive it. The fields after `raw` are dropped after
/// it is destroyed.
pub(crate) struct Inner {
    raw: NonNull<ibv_qp>,
    number: u32,
    maker: Maker,
    domain: Arc<ProtectionDomain>,
    send_queue: Arc<CompletionQueue>,
    receive_queue: Arc<CompletionQueue>,
    /// The regions of a `QueuePair` that is gone while something else holds this.
    kept: Mutex<Vec<Arc<MemoryRegion>>>,
}

// SAFETY: libibverbs' calls on a queue pair are thread-safe.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Inner {
    pub(crate) fn raw(&self) -> *mut ibv_qp {
        self.raw.as_ptr()
    }

    pub(crate) fn modify(&self, raw: &mut ibv_qp_attr, mask: u32) -> Result<(), VerbsError> {
        // SAFETY: the queue pair is live; the attributes named by the mask are initialised.
        let result = unsafe {
            self.domain
                .context()
                .verbs()
                .ibv
                .ibv_modify_qp(self.raw(), raw, mask.cast_signed())
        };
        check("ibv_modify_qp", result)
    }

    fn to_error(&self) -> Result<(), VerbsError> {
        let mut raw = ibv_qp_attr {
            qp_state: IBV_QPS_ERR,
            ..Default::default()
        };
        self.modify(&mut raw, IBV_QP_STATE)
    }

    /// Ends the connection and breaks the queue pair. What refuses is broken already.
    fn break_off(&self) {
        if let Maker::ConnectionManager(id) = &self.maker {
            let _ = id.disconnect();
        }
        let _ = self.to_error();
    }

    fn state(&self) -> Result<QueuePairState, VerbsError> {
        let (mut raw, mut init) = (ibv_qp_attr::default(), ibv_qp_init_attr::default());
        // SAFETY: the queue pair is live; both structures are writable.
        let result = unsafe {
            self.domain.context().verbs().ibv.ibv_query_qp(
                self.raw(),
                &raw mut raw,
                IBV_QP_STATE.cast_signed(),
                &raw mut init,
            )
        };
        check("ibv_query_qp", result)?;
        Ok(QueuePairState::from_raw(raw.qp_state))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        match &self.maker {
            // SAFETY: the queue pair is live, was made on this identifier, nobody else has it, and
            // it isn't used again.
            Maker::ConnectionManager(id) => unsafe { id.destroy_queue_pair() },
            Maker::Plain => {
                // SAFETY: the queue pair is live, nobody else has it, and it isn't used again.
                let result =
                    unsafe { self.domain.context().verbs().ibv.ibv_destroy_qp(self.raw()) };
                if result != 0 {
                    crate::leak::count();
                }
            }
        }
    }
}

/// Where a queue pair is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuePairState {
    /// Just made.
    Reset,
    /// May take receive requests.
    Init,
    /// May answer the peer.
    ReadyToReceive,
    /// May do work.
    ReadyToSend,
    /// Finishing what was posted, taking nothing new to the wire.
    SendQueueDrained,
    /// The send side broke.
    SendQueueError,
    /// Broken: all work completes with [`Status::Flushed`](crate::Status::Flushed).
    Error,
    /// A number that this version doesn't know.
    Unknown(u32),
}

impl QueuePairState {
    const fn from_raw(raw: ibv_qp_state) -> Self {
        match raw {
            IBV_QPS_RESET => Self::Reset,
            IBV_QPS_INIT => Self::Init,
            IBV_QPS_RTR => Self::ReadyToReceive,
            IBV_QPS_RTS => Self::ReadyToSend,
            IBV_QPS_SQD => Self::SendQueueDrained,
            IBV_QPS_SQE => Self::SendQueueError,
            IBV_QPS_ERR => Self::Error,
            other => Self::Unknown(other),
        }
    }
}

struct Slot {
    /// Which attachment; 0 where the slot is free. Never used twice in a process.
    tag: u64,
    region: Option<Arc<MemoryRegion>>,
}

/// A reliable connected queue pair, held by the one who posts on it.
///
/// Posting needs `&mut`, so a queue pair has one owner at a time and posting takes no lock of this
/// crate. Another thread can break it through a [`QueuePairControl`].
pub struct QueuePair {
    poster: Poster,
    batch_open: bool,
    slots: Vec<Slot>,
    accepted: Operations,
    batch_max: u32,
    send_sge_max: u32,
    receive_sge_max: u32,
    inline_max: u32,
    miscounts_elements: bool,
    inner: Arc<Inner>,
}

impl QueuePair {
    /// Makes a queue pair that isn't connected, in the state [`QueuePairState::Reset`].
    ///
    /// # Errors
    /// [`VerbsError::Mixed`], [`VerbsError::TooMany`] or [`VerbsError::Invalid`] where `config`
    /// contradicts itself; [`VerbsError::Unsupported`] where an operation that it requires isn't
    /// offered; EINVAL over a limit of the device, ENOMEM where it has no more.
    pub fn create(config: &QueuePairConfig) -> Result<Self, VerbsError> {
        config.check()?;
        let context = config.domain.context();
        let (raw, attempt, cap) = first_accepted(config, |raw| {
            // SAFETY: the context is open, and the objects that the attributes name are live, on
            // it, and are kept so by the queue pair.
            let queue_pair = unsafe {
                inline::ibv_create_qp_ex(&context.verbs().ibv, context.raw(), &raw mut *raw)
            };
            NonNull::new(queue_pair).ok_or_else(|| VerbsError::last("ibv_create_qp_ex"))
        })?;
        Self::assemble(config, raw, attempt, &cap, Maker::Plain)
    }

    /// Makes the queue pair of an identifier of the connection manager, which moves it through its
    /// states as the connection comes up. Before `connect` or `accept`; one for each identifier.
    /// The domain must be on [`CmId::context`].
    ///
    /// # Errors
    /// As [`QueuePair::create`]; [`VerbsError::Mixed`] where the domain is on another device;
    /// EINVAL where the identifier has a queue pair already.
    pub fn create_on(id: &CmId, config: &QueuePairConfig) -> Result<Self, VerbsError> {
        config.check()?;
        if !Arc::ptr_eq(&id.context()?, config.domain.context()) {
            return Err(VerbsError::Mixed {
                what: "identifier and domain",
                owner: "devices",
            });
        }
        // SAFETY: the objects that the attributes name are live, on the identifier's context, and
        // are kept so by the queue pair.
        let (raw, attempt, cap) =
            first_accepted(config, |raw| unsafe { id.create_queue_pair(raw) })?;
        Self::assemble(
            config,
            raw,
            attempt,
            &cap,
            Maker::ConnectionManager(id.clone()),
        )
    }

    fn assemble(
        config: &QueuePairConfig,
        raw: NonNull<ibv_qp>,
        attempt: Attempt,
        cap: &ibv_qp_cap,
        maker: Maker,
    ) -> Result<Self, VerbsError> {
        // SAFETY: the queue pair is live; its number never changes.
        let number = unsafe { (*raw.as_ptr()).qp_num };
        let inner = Arc::new(Inner {
            raw,
            number,
            maker,
            domain: Arc::clone(&config.domain),
            send_queue: Arc::clone(&config.send_queue),
            receive_queue: Arc::clone(&config.receive_queue),
            kept: Mutex::new(Vec::new()),
        });
        let mut inline_max = cap.max_inline_data;
        let (poster, miscounts_elements) = if attempt.extended {
            let context = config.domain.context();
            // SAFETY: the queue pair is live.
            let table = unsafe { context.verbs().ibv.ibv_qp_to_qp_ex(raw.as_ptr()) };
            let missing = VerbsError::Unsupported {
                what: "the extended posting interface",
                by: "provider",
            };
            let table = NonNull::new(table).ok_or(missing)?;
            // SAFETY: the table is part of the queue pair, which `inner` keeps for as long as the
            // poster is used, and was made with these operations.
            let extended = unsafe { Extended::new(table, attempt.operations) }?;
            if !extended.has_inline() {
                inline_max = 0;
            }
            (
                Poster::Extended(extended),
                context.attributes()?.soft_roce(),
            )
        } else {
            inline_max = inline_max.min(config.max_inline_data);
            let classic = Classic::new(config.max_send_wr, config.max_send_sge, inline_max);
            (Poster::Classic(classic), false)
        };
        Ok(Self {
            poster,
            batch_open: false,
            slots: Vec::new(),
            accepted: attempt.operations,
            batch_max: config.max_send_wr,
            send_sge_max: config.max_send_sge,
            receive_sge_max: config.max_recv_sge,
            inline_max,
            miscounts_elements,
            inner,
        })
    }

    /// The operations that it was accepted with: all that were required, and those of the wanted
    /// ones that the provider has. Only these can be posted.
    pub fn accepted(&self) -> Operations {
        self.accepted
    }

    /// Whether it posts through the extended interface.
    pub fn is_extended(&self) -> bool {
        matches!(self.poster, Poster::Extended(_))
    }

    /// Its number, as completions and the peer name it.
    pub fn number(&self) -> u32 {
        self.inner.number
    }

    /// The domain of the memory that it may name.
    pub fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.inner.domain
    }

    /// Where completions of posted work go.
    pub fn send_queue(&self) -> &Arc<CompletionQueue> {
        &self.inner.send_queue
    }

    /// Where completions of receive requests go.
    pub fn receive_queue(&self) -> &Arc<CompletionQueue> {
        &self.inner.receive_queue
    }

    /// Most requests in one batch.
    pub fn batch_max(&self) -> u32 {
        self.batch_max
    }

    /// Most elements of one request.
    pub fn send_sge_max(&self) -> u32 {
        self.send_sge_max
    }

    /// Most inline bytes of one request.
    pub fn inline_max(&self) -> u32 {
        self.inline_max
    }

    /// Takes a region on, so that work on this queue pair can name its memory. The queue pair
    /// holds the region until it is detached or the queue pair is destroyed. Allocates; not for
    /// the data path.
    ///
    /// # Errors
    /// [`VerbsError::Mixed`] where the region is of another domain.
    pub fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<AttachedRegion, VerbsError> {
        static LAST_TAG: AtomicU64 = AtomicU64::new(0);
        if !Arc::ptr_eq(region.protection_domain(), &self.inner.domain) {
            return Err(VerbsError::Mixed {
                what: "region and queue pair",
                owner: "protection domains",
            });
        }
        let tag = LAST_TAG.fetch_add(1, Ordering::Relaxed) + 1;
        let slot = Slot {
            tag,
            region: Some(Arc::clone(region)),
        };
        let index = match self.slots.iter().position(|slot| slot.tag == 0) {
            Some(free) => {
                self.slots[free] = slot;
                free
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        let slot = u32::try_from(index).map_err(|_| VerbsError::TooMany {
            what: "attached regions",
            given: index as u64,
            limit: u64::from(u32::MAX),
        })?;
        let (lkey, start, length) = (region.lkey(), region.start(), region.length());
        Ok(AttachedRegion {
            tag,
            slot,
            lkey,
            start,
            length,
        })
    }

    /// Lets go of a region; no copy of the handle is good any more.
    ///
    /// Poll the completions of the work that names it first. If the last hold on the region goes
    /// while such work is in flight, that work fails with
    /// [`Status::LocalProtection`](crate::Status::LocalProtection) and the connection is broken;
    /// memory isn't touched.
    ///
    /// # Errors
    /// [`VerbsError::NotAttached`].
    pub fn detach(&mut self, region: AttachedRegion) -> Result<Arc<MemoryRegion>, VerbsError> {
        let slot = self
            .slots
            .get_mut(region.slot as usize)
            .filter(|slot| slot.tag == region.tag);
        let slot = slot.ok_or(VerbsError::NotAttached)?;
        slot.tag = 0;
        slot.region.take().ok_or(VerbsError::NotAttached)
    }

    /// Starts a batch of work requests. Nothing reaches the device before [`Batch::post`].
    #[inline]
    pub fn start(&mut self) -> Batch<'_> {
        Batch::new(self)
    }

    /// Posts one receive request: the next message that arrives goes to `sges`, whose regions must
    /// be registered with [`Access::LOCAL_WRITE`](crate::Access::LOCAL_WRITE). Its completion is
    /// on [`QueuePair::receive_queue`].
    ///
    /// # Errors
    /// [`VerbsError::TooMany`], [`VerbsError::NotAttached`]; ENOMEM where the queue is full.
    pub fn post_recv(&self, wr_id: u64, sges: &[Sge]) -> Result<(), VerbsError> {
        let mut elements = Elements::resolve(self, sges, self.receive_sge_max)?;
        let list = elements.as_mut_slice();
        let mut raw = ibv_recv_wr {
            wr_id,
            next: null_mut(),
            sg_list: list.as_mut_ptr(),
            num_sge: list.len() as i32,
        };
        let mut bad = null_mut();
        // SAFETY: the queue pair is live; the list is one well-formed request, which the provider
        // copies before it returns. The memory that it names is registered, and stays so while
        // the region is attached.
        let result = unsafe { inline::ibv_post_recv(self.inner.raw(), &raw mut raw, &raw mut bad) };
        check("ibv_post_recv", result)
    }

    /// Breaks the queue pair: all work that is posted or will be completes with
    /// [`Status::Flushed`](crate::Status::Flushed), and the peer gets no answer any more.
    ///
    /// # Errors
    /// What the provider said.
    pub fn to_error(&self) -> Result<(), VerbsError> {
        self.inner.to_error()
    }

    /// Asks the device where the queue pair is in its life.
    ///
    /// # Errors
    /// What the provider said.
    pub fn state(&self) -> Result<QueuePairState, VerbsError> {
        self.inner.state()
    }

    /// A handle for another thread.
    pub fn control(&self) -> QueuePairControl {
        QueuePairControl {
            inner: Arc::downgrade(&self.inner),
        }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn miscounts_elements(&self) -> bool {
        self.miscounts_elements
    }

    #[inline]
    pub(crate) fn check_attached(&self, sge: &Sge) -> Result<(), VerbsError> {
        match self.slots.get(sge.slot as usize) {
            Some(slot) if slot.tag == sge.tag => Ok(()),
            _ => Err(VerbsError::NotAttached),
        }
    }

    pub(crate) fn open_batch(&mut self) {
        // A batch that was forgotten is still open in the provider.
        self.abandon_batch();
        self.poster.start();
        self.batch_open = true;
    }

    pub(crate) fn abandon_batch(&mut self) {
        if std::mem::take(&mut self.batch_open) {
            self.poster.abort();
        }
    }

    /// # Safety
    /// A batch is open; otherwise as [`Poster::push`].
    #[inline]
    pub(crate) unsafe fn push(
        &mut self,
        wr_id: u64,
        flags: u32,
        request: Request,
        payload: Payload<'_>,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { self.poster.push(wr_id, flags, request, payload) };
    }

    pub(crate) fn complete_batch(&mut self) -> Result<(), VerbsError> {
        self.batch_open = false;
        // SAFETY: a batch was open; the queue pair is live and the poster's own. Windows and
        // regions of bindings are borrowed for longer than the batch.
        unsafe { self.poster.complete(self.inner.raw()) }
    }
}

/// Tries what `config` asks for, best first, until the provider accepts one.
fn first_accepted(
    config: &QueuePairConfig,
    mut create: impl FnMut(&mut ibv_qp_init_attr_ex) -> Result<NonNull<ibv_qp>, VerbsError>,
) -> Result<(NonNull<ibv_qp>, Attempt, ibv_qp_cap), VerbsError> {
    let mut refusal = VerbsError::Unsupported {
        what: "a required operation",
        by: "way of posting",
    };
    for attempt in config.attempts() {
        let mut raw = config.init_attributes(attempt);
        match create(&mut raw) {
            Ok(queue_pair) => return Ok((queue_pair, attempt, raw.cap)),
            Err(error) => {
                let lacking = error.errno() == Some(libc::EOPNOTSUPP) && attempt.extended;
                let hint = if lacking {
                    "the provider lacks an operation that was asked for"
                } else {
                    ""
                };
                refusal = error.with_hint(hint);
                let unknown = matches!(
                    error.errno(),
                    Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
                );
                if !unknown {
                    break;
                }
            }
        }
    }
    Err(refusal)
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.abandon_batch();
        // Where a window is bound or a control handle is in a call, the device's queue pair lives
        // on until they are done, and the regions with it. The peer must be cut off now.
        if Arc::strong_count(&self.inner) > 1 {
            self.inner.break_off();
        }
        let regions = self.slots.drain(..).filter_map(|slot| slot.region);
        self.inner
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(regions);
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("QueuePair")
            .field("number", &self.number())
            .field("accepted", &self.accepted)
            .field("extended", &self.is_extended())
            .finish_non_exhaustive()
    }
}

/// A way to a queue pair for a thread that doesn't own it. It doesn't keep the queue pair alive.
#[derive(Clone)]
pub struct QueuePairControl {
    inner: Weak<Inner>,
}

impl QueuePairControl {
    fn inner(&self) -> Result<Arc<Inner>, VerbsError> {
        self.inner
            .upgrade()
            .ok_or(VerbsError::Invalid("the queue pair is gone"))
    }

    /// As [`QueuePair::to_error`].
    ///
    /// # Errors
    /// As there; [`VerbsError::Invalid`] where the queue pair is gone.
    pub fn to_error(&self) -> Result<(), VerbsError> {
        self.inner()?.to_error()
    }

    /// As [`QueuePair::state`].
    ///
    /// # Errors
    /// As there; [`VerbsError::Invalid`] where the queue pair is gone.
    pub fn state(&self) -> Result<QueuePairState, VerbsError> {
        self.inner()?.state()
    }
}

impl fmt::Debug for QueuePairControl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.inner.upgrade().map(|inner| inner.number);
        formatter
            .debug_struct("QueuePairControl")
            .field("number", &number)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_header() {
        assert_eq!(Operations::FLUSH.bits(), 1 << 11);
        assert_eq!(Operations::ATOMIC_WRITE.bits(), 1 << 12);
        for operation in Operations::all().iter() {
            assert_ne!(operation.name(), "a combination of operations");
        }
    }

    #[test]
    fn states_that_are_unknown_stay_numbers() {
        assert_eq!(QueuePairState::from_raw(6), QueuePairState::Error);
        assert_eq!(QueuePairState::from_raw(7), QueuePairState::Unknown(7));
    }
}
