//! Completion queues, and the channels that wake up who waits for them.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Duration;

use crate::device::{Context, set_nonblocking};
use crate::error::{VerbsError, check, last_errno};
use crate::sys::inline;
use crate::sys::verbs::*;
use crate::work_completion::WorkCompletion;

/// A file that becomes readable when a completion queue that belongs to it has asked for
/// notification and got a completion.
pub struct CompletionChannel {
    raw: NonNull<ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: the channel is a file; reading events from it is thread-safe.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    /// Makes a channel whose reads never block.
    ///
    /// # Errors
    /// What the kernel said, EMFILE where the process has too many files open.
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, VerbsError> {
        // SAFETY: the context is open and is kept so by the channel.
        let raw = unsafe { context.verbs().ibv.ibv_create_comp_channel(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_create_comp_channel"))?;
        let channel = Arc::new(Self {
            raw,
            context: Arc::clone(context),
        });
        set_nonblocking(channel.as_fd())?;
        Ok(channel)
    }

    /// Takes the next notification and acknowledges it; `None` if there is none now. Never blocks.
    /// The identity says which queue to poll: compare it with [`CompletionQueue::identity`]. One
    /// request for notification gives one notification.
    ///
    /// # Errors
    /// EIO where the device is gone.
    pub fn next_event(&self) -> Result<Option<CompletionQueueIdentity>, VerbsError> {
        let (mut queue, mut token) = (null_mut(), null_mut());
        let library = &self.context.verbs().ibv;
        // SAFETY: the channel is live; both results are written before a 0 is returned.
        let result =
            unsafe { library.ibv_get_cq_event(self.raw.as_ptr(), &raw mut queue, &raw mut token) };
        if result != 0 {
            let errno = last_errno();
            return match errno {
                libc::EAGAIN | libc::EINTR => Ok(None),
                _ => Err(VerbsError::call("ibv_get_cq_event", errno)),
            };
        }
        // SAFETY: the event just came for this queue; its owner cannot finish destroying it before
        // the event is acknowledged, which is done here once.
        unsafe { library.ibv_ack_cq_events(queue, 1) };
        Ok(Some(CompletionQueueIdentity(queue.addr())))
    }

    /// As [`CompletionChannel::next_event`], waiting at most `timeout` (forever where `None`).
    ///
    /// # Errors
    /// As there, and what `poll` said.
    pub fn wait_event(
        &self,
        timeout: Option<Duration>,
    ) -> Result<Option<CompletionQueueIdentity>, VerbsError> {
        if let Some(event) = self.next_event()? {
            return Ok(Some(event));
        }
        wait_readable(self.as_fd(), timeout)?;
        self.next_event()
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's file is open until the channel is destroyed, which `self` prevents.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

impl fmt::Debug for CompletionChannel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("CompletionChannel")
            .field(&self.as_fd().as_raw_fd())
            .finish()
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: the queues on the channel held an `Arc` of it, so none is left.
        let result = unsafe {
            self.context
                .verbs()
                .ibv
                .ibv_destroy_comp_channel(self.raw.as_ptr())
        };
        if result != 0 {
            crate::leak::count();
        }
    }
}

/// Waits until `file` is readable or the time is up; interruption by a signal counts as the latter.
pub(crate) fn wait_readable(
    file: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> Result<(), VerbsError> {
    let mut entry = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout_ms = timeout.map_or(-1, |timeout| {
        // Up, so that a wait of less than a millisecond isn't a busy loop.
        i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    // SAFETY: `entry` is one writable pollfd.
    if unsafe { libc::poll(&raw mut entry, 1, timeout_ms) } < 0 {
        let errno = last_errno();
        if errno != libc::EINTR {
            return Err(VerbsError::call("poll", errno));
        }
    }
    Ok(())
}

/// Which completion queue: equal for the same living queue, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompletionQueueIdentity(usize);

/// A completion queue. Several queue pairs may share one.
pub struct CompletionQueue {
    raw: NonNull<ibv_cq>,
    context: Arc<Context>,
    channel: Option<Arc<CompletionChannel>>,
}

// SAFETY: libibverbs' calls on a completion queue are thread-safe.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above; polling from several threads gives each completion to one of them.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// Makes a queue of at least `depth` entries. It must have room for every completion that can
    /// be outstanding: a queue that overruns breaks all queue pairs on it.
    ///
    /// # Errors
    /// EINVAL where `depth` is 0 or over the device's limit. [`VerbsError::Mixed`] where the
    /// channel is of another device.
    pub fn new(
        context: &Arc<Context>,
        depth: u32,
        channel: Option<Arc<CompletionChannel>>,
    ) -> Result<Arc<Self>, VerbsError> {
        if channel
            .as_ref()
            .is_some_and(|channel| !Arc::ptr_eq(&channel.context, context))
        {
            return Err(VerbsError::Mixed {
                what: "queue and channel",
                owner: "devices",
            });
        }
        let depth =
            i32::try_from(depth).map_err(|_| VerbsError::call("ibv_create_cq", libc::EINVAL))?;
        let raw_channel = channel
            .as_ref()
            .map_or(null_mut(), |channel| channel.raw.as_ptr());
        // SAFETY: context and channel are live, of one device, and are kept so by the queue.
        let raw = unsafe {
            context
                .verbs()
                .ibv
                .ibv_create_cq(context.raw(), depth, null_mut(), raw_channel, 0)
        };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_create_cq"))?;
        Ok(Arc::new(Self {
            raw,
            context: Arc::clone(context),
            channel,
        }))
    }

    /// Takes completions, at most as many as fit, into the front of `completions`; says how many.
    /// Doesn't block, doesn't allocate.
    ///
    /// # Errors
    /// What the provider said; the queue is then broken.
    #[inline]
    pub fn poll(&self, completions: &mut [WorkCompletion]) -> Result<usize, VerbsError> {
        let room = i32::try_from(completions.len()).unwrap_or(i32::MAX);
        // SAFETY: the queue is live. `WorkCompletion` is a transparent `ibv_wc`, which is valid
        // for every pattern of bits, and the slice has at least `room` of them.
        let polled =
            unsafe { inline::ibv_poll_cq(self.raw(), room, completions.as_mut_ptr().cast()) };
        usize::try_from(polled).map_err(|_| VerbsError::call("ibv_poll_cq", polled.wrapping_neg()))
    }

    /// Asks for one notification on the channel at the next completion (or, if so told, at the
    /// next solicited or failed one). Poll once more afterwards: a completion that came between
    /// the last poll and the request isn't notified.
    ///
    /// # Errors
    /// What the provider said; [`VerbsError::Invalid`] where the queue has no channel.
    pub fn request_notification(&self, solicited_only: bool) -> Result<(), VerbsError> {
        if self.channel.is_none() {
            return Err(VerbsError::Invalid("the completion queue has no channel"));
        }
        // SAFETY: the queue is live.
        let result = unsafe { inline::ibv_req_notify_cq(self.raw(), i32::from(solicited_only)) };
        check("ibv_req_notify_cq", result)
    }

    /// What [`CompletionChannel::next_event`] calls this queue.
    pub fn identity(&self) -> CompletionQueueIdentity {
        CompletionQueueIdentity(self.raw.as_ptr().addr())
    }

    /// Entries that there are, at least as many as were asked for.
    pub fn depth(&self) -> u32 {
        // SAFETY: the queue is live, and nothing here resizes it.
        unsafe { (*self.raw()).cqe }.max(0).cast_unsigned()
    }

    /// The channel on which it notifies, if any.
    pub fn channel(&self) -> Option<&Arc<CompletionChannel>> {
        self.channel.as_ref()
    }

    /// The device that the queue is on.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn raw(&self) -> *mut ibv_cq {
        self.raw.as_ptr()
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CompletionQueue")
            .field("depth", &self.depth())
            .finish()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: the queue pairs on it held an `Arc` of it, so none is left. The call waits until
        // another thread that is between taking and acknowledging a notification has done so.
        let result = unsafe { self.context.verbs().ibv.ibv_destroy_cq(self.raw()) };
        if result != 0 {
            crate::leak::count();
        }
    }
}
