//! The same handles for asynchronous programs: each runs on a thread of its own and answers with futures of no particular runtime.
//!
//! ```no_run
//! # async fn example(primary: pmu_client::LogPrimary) -> pmu_client::Result<()> {
//! let log = pmu_client::asynchronous::Log::new(primary)?;
//! let (first, second) = (log.append(*b"one"), log.append(*b"two"));
//! println!("{}", second.await?);
//! println!("{}", first.await?);
//! # Ok(())
//! # }
//! ```
//!
//! Programs with a reactor of their own need no thread: see [`crate::LogPrimary::event_fd`].

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::task::{Context, Poll, Waker};
use std::thread;

use parking_lot::{Condvar, Mutex};
use pmu_format::Label;

use crate::error::{ClientError, Result};
use crate::log::{LogPrimary, Ticket};
use crate::receipt::Receipt;
use crate::sets::SetPrimary;

enum Slot<T> {
    Waiting(Option<Waker>),
    Done(Result<T>),
    Taken,
}

struct Shared<T> {
    slot: Mutex<Slot<T>>,
    done: Condvar,
}

/// An answer on its way: a future, which may be awaited, polled, dropped (the work is done all the same), or waited for.
#[must_use = "a future does nothing visible unless it is awaited"]
pub struct Pending<T> {
    shared: Arc<Shared<T>>,
}

/// The other end: gives an error if it is dropped without an answer.
struct Completer<T> {
    shared: Arc<Shared<T>>,
    region: Arc<str>,
}

fn pending<T>(region: &Arc<str>) -> (Completer<T>, Pending<T>) {
    let shared = Arc::new(Shared {
        slot: Mutex::new(Slot::Waiting(None)),
        done: Condvar::new(),
    });
    let completer = Completer {
        shared: Arc::clone(&shared),
        region: Arc::clone(region),
    };
    (completer, Pending { shared })
}

impl<T> Completer<T> {
    fn complete(self, answer: Result<T>) {
        self.put(answer);
    }

    fn put(&self, answer: Result<T>) {
        let mut slot = self.shared.slot.lock();
        if let Slot::Waiting(waker) = &mut *slot {
            let waker = waker.take();
            *slot = Slot::Done(answer);
            drop(slot);
            self.shared.done.notify_all();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        self.put(Err(ClientError::Ended {
            region: self.region.as_ref().to_owned(),
        }));
    }
}

impl<T> Pending<T> {
    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// Those of the blocking call that it stands for.
    pub fn wait(self) -> Result<T> {
        let mut slot = self.shared.slot.lock();
        loop {
            match std::mem::replace(&mut *slot, Slot::Taken) {
                Slot::Done(answer) => return answer,
                waiting @ Slot::Waiting(_) => *slot = waiting,
                Slot::Taken => {
                    return Err(ClientError::Invalid("the answer was taken already".into()));
                }
            }
            self.shared.done.wait(&mut slot);
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.shared.slot.lock();
        match std::mem::replace(&mut *slot, Slot::Taken) {
            Slot::Done(answer) => Poll::Ready(answer),
            Slot::Waiting(_) => {
                *slot = Slot::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            Slot::Taken => Poll::Ready(Err(ClientError::Invalid(
                "the answer was taken already".into(),
            ))),
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(ClientError::io("start a thread for the region"))
}

/// Ends the thread when the handle goes: everything asked for before is still done.
struct Worker<J> {
    jobs: Option<Sender<J>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl<J> Worker<J> {
    fn send(&self, job: J) {
        if let Some(jobs) = &self.jobs {
            // Without a receiver the job is dropped, and its completer answers.
            let _ = jobs.send(job);
        }
    }
}

impl<J> Drop for Worker<J> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a region panicked");
        }
    }
}

enum LogJob {
    Append(Vec<u8>, Completer<Receipt>),
    Batch(Vec<Vec<u8>>, Completer<Receipt>),
    Flush(Completer<Receipt>),
}

/// A [`LogPrimary`] on a thread of its own. Calls never block; records are appended in the order of the calls, and those that come while
/// others are on their way go out together.
///
/// What waits in the queue is bounded by the program alone: await receipts. Dropping it finishes what was asked for, which blocks.
pub struct Log {
    worker: Worker<LogJob>,
    region: Arc<str>,
}

impl Log {
    /// Moves the primary to a new thread.
    ///
    /// # Errors
    /// [`ClientError::Io`]: no thread.
    pub fn new(primary: LogPrimary) -> Result<Self> {
        let region = Arc::clone(&primary.region().name);
        let (sender, receiver) = mpsc::channel();
        let thread = spawn("pmu-log", move || run_log(primary, &receiver))?;
        Ok(Self {
            worker: Worker {
                jobs: Some(sender),
                thread: Some(thread),
            },
            region,
        })
    }

    /// See [`LogPrimary::append`].
    pub fn append(&self, record: impl Into<Vec<u8>>) -> Pending<Receipt> {
        let (completer, pending) = pending(&self.region);
        self.worker.send(LogJob::Append(record.into(), completer));
        pending
    }

    /// See [`LogPrimary::append_batch`].
    pub fn append_batch(&self, records: Vec<Vec<u8>>) -> Pending<Receipt> {
        let (completer, pending) = pending(&self.region);
        self.worker.send(LogJob::Batch(records, completer));
        pending
    }

    /// See [`LogPrimary::flush`].
    pub fn flush(&self) -> Pending<Receipt> {
        let (completer, pending) = pending(&self.region);
        self.worker.send(LogJob::Flush(completer));
        pending
    }
}

fn run_log(mut primary: LogPrimary, jobs: &Receiver<LogJob>) {
    let mut waiting: VecDeque<(Ticket, Completer<Receipt>)> = VecDeque::new();
    loop {
        let next = if waiting.is_empty() {
            jobs.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            jobs.try_recv()
        };
        match next {
            Ok(LogJob::Append(record, completer)) => match primary.submit(&record) {
                Ok(ticket) => waiting.push_back((ticket, completer)),
                Err(error) => completer.complete(Err(error)),
            },
            Ok(LogJob::Batch(records, completer)) => {
                let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
                match primary.submit_batch(&slices) {
                    Ok(ticket) => waiting.push_back((ticket, completer)),
                    Err(error) => completer.complete(Err(error)),
                }
            }
            Ok(LogJob::Flush(completer)) => completer.complete(primary.flush()),
            Err(TryRecvError::Empty) => {
                if let Some((ticket, completer)) = waiting.pop_front() {
                    completer.complete(primary.wait(ticket));
                }
            }
            Err(TryRecvError::Disconnected) => break,
        }
        answer_durable(&mut primary, &mut waiting);
    }
    for (ticket, completer) in waiting {
        completer.complete(primary.wait(ticket));
    }
}

fn answer_durable(primary: &mut LogPrimary, waiting: &mut VecDeque<(Ticket, Completer<Receipt>)>) {
    while waiting
        .front()
        .is_some_and(|(ticket, _)| primary.is_durable(*ticket))
    {
        if let Some((ticket, completer)) = waiting.pop_front() {
            completer.complete(primary.wait(ticket));
        }
    }
}

type SetJob = (Vec<u8>, Label, Completer<(Receipt, Vec<u8>)>);

/// A [`SetPrimary`] on a thread of its own. Calls never block; sets are committed in the order of the calls.
pub struct Sets {
    worker: Worker<SetJob>,
    region: Arc<str>,
}

impl Sets {
    /// Moves the primary to a new thread.
    ///
    /// # Errors
    /// [`ClientError::Io`]: no thread.
    pub fn new(mut primary: SetPrimary) -> Result<Self> {
        let region = Arc::clone(&primary.region().name);
        let (sender, receiver) = mpsc::channel::<SetJob>();
        let thread = spawn("pmu-sets", move || {
            for (payload, label, completer) in receiver {
                let receipt = primary.commit(&[std::io::IoSlice::new(&payload)], label);
                completer.complete(receipt.map(|receipt| (receipt, payload)));
            }
        })?;
        Ok(Self {
            worker: Worker {
                jobs: Some(sender),
                thread: Some(thread),
            },
            region,
        })
    }

    /// See [`SetPrimary::commit`]. The payload comes back with the receipt, to be used again.
    pub fn commit(&self, payload: Vec<u8>, label: Label) -> Pending<(Receipt, Vec<u8>)> {
        let (completer, pending) = pending(&self.region);
        self.worker.send((payload, label, completer));
        pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_never_comes_is_an_error() {
        let (completer, pending) = pending::<u32>(&Arc::from("r"));
        drop(completer);
        assert!(matches!(pending.wait(), Err(ClientError::Ended { .. })));
    }

    #[test]
    fn an_answer_wakes_who_waits() {
        let (completer, mut pending) = pending::<u32>(&Arc::from("r"));
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut pending).poll(&mut context).is_pending());
        let other = thread::spawn(move || completer.complete(Ok(7)));
        assert_eq!(pending.wait().unwrap(), 7);
        other.join().unwrap();
    }
}
