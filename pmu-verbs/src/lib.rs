//! libibverbs and librdmacm, opened at run time: their bindings, and a thin safe layer that owns
//! what they make.
//!
//! It decides nothing: no retry, no waiting that the caller didn't ask for, no choice of queue
//! depths or persistence method.
//!
//! # Order of things
//! [`Verbs::load`] opens the libraries. An [`EventChannel`] and its [`CmId`]s find devices and
//! make connections; a [`Context`] is an open device. On it stand a [`ProtectionDomain`],
//! [`CompletionQueue`]s and [`CompletionChannel`]s; in the domain [`MemoryRegion`]s and
//! [`MemoryWindow`]s; over all of them [`QueuePair`]s. Every object holds what it stands on, so
//! they may be dropped in any order.
//!
//! Work is posted in a [`Batch`]: one doorbell for any number of requests. It names local memory by
//! [`AttachedRegion`]s, which the queue pair holds until it is destroyed; [`QueuePair`]'s module
//! says why no memory can go away under the device. Posting and polling allocate nothing and take
//! no lock of this crate.
//!
//! # Soft-RoCE
//! Memory windows are checked by key, rights and queue pair, but not by range: see [`MemoryWindow`].
//! The provider of rdma-core up to at least 56 counts the length of a request with several elements
//! as if all were as long as the first. Such a request is refused here on that device, not sent
//! wrong.
#![deny(clippy::undocumented_unsafe_blocks)]

mod completion_queue;
mod connection_event;
mod connection_manager;
mod device;
mod error;
mod leak;
mod load;
mod memory_region;
mod memory_window;
mod posting;
mod protection_domain;
mod queue_pair;
mod queue_pair_state;
mod socket_address;
mod sys;
mod work_completion;
mod work_request;

pub use completion_queue::{CompletionChannel, CompletionQueue, CompletionQueueIdentity};
pub use connection_event::{Event, EventKind, PrivateData};
pub use connection_manager::{CmId, ConnectionParameters, EventChannel};
pub use device::{
    AsyncEvent, AsyncEventKind, Context, Device, DeviceAttributes, Gid, GidEntry, LinkLayer,
    PortAttributes, PortState,
};
pub use error::VerbsError;
pub use leak::leaked_objects;
pub use load::{LoadError, Verbs};
pub use memory_region::{Access, MemoryRegion, RegisteredMemory};
pub use memory_window::MemoryWindow;
pub use protection_domain::ProtectionDomain;
pub use queue_pair::{
    Operations, Posting, QueuePair, QueuePairConfig, QueuePairControl, QueuePairState,
};
pub use queue_pair_state::PeerQueuePair;
pub use work_completion::{Opcode, Status, WcFlags, WorkCompletion};
pub use work_request::{AttachedRegion, Batch, FlushLevel, FlushType, Sge, WindowBinding, WrFlags};

#[cfg(test)]
mod tests {
    fn crosses_threads<T: Send + Sync>() {}

    #[test]
    fn everything_but_a_batch_crosses_threads() {
        crosses_threads::<crate::Verbs>();
        crosses_threads::<crate::Device>();
        crosses_threads::<crate::Context>();
        crosses_threads::<crate::ProtectionDomain>();
        crosses_threads::<crate::MemoryRegion>();
        crosses_threads::<crate::MemoryWindow>();
        crosses_threads::<crate::CompletionChannel>();
        crosses_threads::<crate::CompletionQueue>();
        crosses_threads::<crate::QueuePair>();
        crosses_threads::<crate::QueuePairControl>();
        crosses_threads::<crate::EventChannel>();
        crosses_threads::<crate::CmId>();
        crosses_threads::<crate::Event>();
        crosses_threads::<crate::VerbsError>();
    }
}
