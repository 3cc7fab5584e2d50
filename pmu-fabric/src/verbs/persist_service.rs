//! The unit's thread of a server-persist connection: takes messages, writes back, answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pmu_pmem::{LocalMemory, PoolMemory};
use pmu_verbs::{
    Access, AttachedRegion, CompletionChannel, CompletionQueue, MemoryRegion, QueuePair,
    VerbsError, WorkCompletion, WrFlags,
};

use super::device::Device;
use super::memory::Local;
use super::message::{MESSAGE_BYTES_MAX, decode_message, encode_reply};
use super::unit::PostingSide;
use super::{CHAINS_IN_FLIGHT_MAX, COMPLETIONS_AT_ONCE};
use crate::error::{CompletionStatus, FabricError};
use crate::group_commit::{Batch, GroupCommit};
use crate::persistence::PersistenceMethod;
use crate::protection::{Intent, WindowGate};
use crate::soft::wire::{OpKind, WireOp};

/// How often the thread looks whether it should end, when nothing comes.
const LOOK_UP: Duration = Duration::from_millis(200);

/// Receive buffers, posted before the connection is accepted.
pub(super) struct Inbox {
    memory: Arc<LocalMemory>,
    region: AttachedRegion,
    queue: Arc<CompletionQueue>,
    channel: Arc<CompletionChannel>,
}

impl Inbox {
    pub(super) fn prepare(
        device: &Device,
        queue_pair: &mut QueuePair,
        queue: Arc<CompletionQueue>,
        channel: Arc<CompletionChannel>,
    ) -> Result<Self, FabricError> {
        let length = CHAINS_IN_FLIGHT_MAX * MESSAGE_BYTES_MAX;
        let memory = Arc::new(LocalMemory::allocate(length)?);
        let registered = Arc::new(Local(Arc::clone(&memory)));
        let region = MemoryRegion::register(
            &device.domain,
            registered,
            0,
            length,
            None,
            Access::LOCAL_WRITE,
        )?;
        let inbox = Self {
            memory,
            region: queue_pair.attach(&region)?,
            queue,
            channel,
        };
        for index in 0..CHAINS_IN_FLIGHT_MAX {
            inbox.post(queue_pair, index)?;
        }
        Ok(inbox)
    }

    fn post(&self, queue_pair: &QueuePair, index: usize) -> Result<(), VerbsError> {
        let sge = self
            .region
            .sge((index * MESSAGE_BYTES_MAX) as u64, MESSAGE_BYTES_MAX as u32)?;
        queue_pair.post_recv(index as u64, &[sge])
    }
}

/// Finds the group commit of a pool.
pub(super) type FindCommitter = Box<dyn Fn(&Arc<PoolMemory>) -> Arc<GroupCommit> + Send>;

pub(super) struct PersistService {
    pub(super) inbox: Inbox,
    pub(super) posting: Arc<PostingSide>,
    pub(super) gate: Arc<WindowGate>,
    pub(super) closing: Arc<AtomicBool>,
    pub(super) find_committer: FindCommitter,
}

impl PersistService {
    /// Serves until the connection ends.
    pub(super) fn run(self) {
        let mut batch = Batch::new(Arc::clone(&self.gate), PersistenceMethod::ServerPersist);
        let mut arrived = [WorkCompletion::default(); COMPLETIONS_AT_ONCE];
        let mut ops = Vec::new();
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        while !self.closing.load(Ordering::Acquire) {
            match self.serve(&mut batch, &mut arrived, &mut ops, &mut bytes) {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "server-persist connection ended");
                    return;
                }
            }
        }
    }

    /// Takes what has arrived, carries it out together, answers; or sleeps for a while.
    fn serve(
        &self,
        batch: &mut Batch,
        arrived: &mut [WorkCompletion],
        ops: &mut Vec<WireOp>,
        bytes: &mut [u8],
    ) -> Result<(), FabricError> {
        let mut count = self.inbox.queue.poll(arrived)?;
        if count == 0 {
            self.inbox.queue.request_notification(false)?;
            count = self.inbox.queue.poll(arrived)?;
        }
        if count == 0 {
            self.inbox.channel.wait_event(Some(LOOK_UP))?;
            while self.inbox.channel.next_event()?.is_some() {}
            return Ok(());
        }
        batch.clear();
        for work in &arrived[..count] {
            if !work.status().is_success() {
                return Err(FabricError::Dead(CompletionStatus::ConnectionLost));
            }
            let index = work.wr_id() as usize;
            let length = (work.byte_len() as usize).min(MESSAGE_BYTES_MAX);
            let message = &mut bytes[..length];
            let outside = |error: pmu_pmem::AccessError| FabricError::Protocol(error.to_string());
            self.inbox
                .memory
                .read_at((index * MESSAGE_BYTES_MAX) as u64, message)
                .map_err(outside)?;
            let serial = decode_message(message, ops)
                .map_err(|error| FabricError::Protocol(error.to_string()))?;
            batch.push(serial, ops);
            self.posting
                .with(|queue_pair| self.inbox.post(queue_pair, index))?;
        }
        let mut done = self.commit(std::mem::take(batch));
        let mut failed = false;
        for chain in &mut done.chains {
            if failed {
                chain.status = CompletionStatus::Flushed;
            }
            failed |= chain.status != CompletionStatus::Success;
            self.posting
                .reply(&encode_reply(chain.serial, chain.status), WrFlags::SIGNALED)?;
        }
        *batch = done;
        if failed {
            Err(FabricError::Dead(CompletionStatus::RemoteAccess))
        } else {
            Ok(())
        }
    }

    fn commit(&self, mut batch: Batch) -> Batch {
        let found = batch.ops.first().and_then(|op| {
            let intent = if op.kind == OpKind::Flush {
                Intent::Flush
            } else {
                Intent::Write
            };
            let open = self.gate.enter();
            open.check(op.key, op.address, op.length, intent)
                .map(|(pool, _)| (self.find_committer)(pool))
        });
        match found {
            Some(committer) => committer.commit(batch),
            None => {
                for chain in &mut batch.chains {
                    chain.status = CompletionStatus::RemoteAccess;
                }
                batch
            }
        }
    }
}
