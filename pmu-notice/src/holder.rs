//! The program's end.

use std::fs::File;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::error::{NoticeError, Result};
use crate::word::{CLOSED, FREE, OWNER_DIED, WAITERS, Word};

/// Enough for a thread that sleeps.
const STACK_BYTES: usize = 64 << 10;

/// `struct robust_list` of linux/futex.h.
#[repr(C)]
struct RobustList {
    next: *const RobustList,
}

/// `struct robust_list_head` of linux/futex.h.
#[repr(C)]
struct RobustListHead {
    list: RobustList,
    futex_offset: libc::c_long,
    list_op_pending: *const RobustList,
}

/// A robust list of one entry, which stands for the word. Both lie in our own memory: in the word's file others could change them.
#[repr(C)]
struct List {
    head: RobustListHead,
    entry: RobustList,
}

/// Holds a [notice](crate::Notice) until it is dropped, or until the process dies: then its watcher is told.
///
/// A thread of its own sleeps for that. It takes no signals. A child that this process forks holds nothing, and neither its end nor a drop in it
/// tells the watcher anything; a program that calls exec may hold the notice again.
#[derive(Debug)]
pub struct Holder {
    word: Arc<Word>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where the thread runs, and what it wrote into the word.
    process: u32,
    held: u32,
}

impl Holder {
    /// Takes the notice that is this file. Blocks until its thread runs.
    ///
    /// # Errors
    /// [`NoticeError::NotOne`], [`NoticeError::Held`], [`NoticeError::Closed`]; [`NoticeError::System`]: the file can't be opened, or the kernel
    /// takes no robust list.
    pub fn take(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(NoticeError::system("open the notice"))?;
        let word = Arc::new(Word::map(&file)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (taken, answer) = channel();
        let (kept, stopped) = (Arc::clone(&word), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("pmu-notice".into())
            .stack_size(STACK_BYTES)
            .spawn(move || keep(&kept, &stopped, &taken))
            .map_err(NoticeError::system("start a thread"))?;
        let held = answer.recv().unwrap_or(Err(NoticeError::NotOne))?;
        Ok(Self {
            word,
            stop,
            thread: Some(thread),
            process: std::process::id(),
            held,
        })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // In a forked child the thread doesn't exist, and the word is still the parent's.
        if self.process != std::process::id() {
            return;
        }
        let (free, order) = (FREE, Ordering::AcqRel);
        let _ = self
            .word
            .get()
            .compare_exchange(self.held, free, order, Ordering::Acquire);
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// The thread: registers the word, takes it, and sleeps.
fn keep(word: &Word, stop: &AtomicBool, taken: &Sender<Result<u32>>) {
    block_signals();
    let list = match Registered::new(word) {
        Ok(list) => list,
        Err(error) => {
            let _ = taken.send(Err(error));
            return;
        }
    };
    // Registered first: from the moment of taking on a death is told.
    let held = take(word);
    let is_held = held.is_ok();
    let _ = taken.send(held);
    while is_held && !stop.load(Ordering::Acquire) {
        std::thread::park();
    }
    drop(list);
}

/// From nobody, or from one that has died: an earlier program before its exec.
fn take(word: &Word) -> Result<u32> {
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    let held = thread.unsigned_abs() | WAITERS;
    let free = |value: u32| value == FREE || (value != CLOSED && value & OWNER_DIED != 0);
    let order = (Ordering::AcqRel, Ordering::Acquire);
    let taken = word
        .get()
        .fetch_update(order.0, order.1, |value| free(value).then_some(held));
    match taken {
        Ok(_) => Ok(held),
        Err(CLOSED) => Err(NoticeError::Closed),
        Err(value) => Err(NoticeError::Held {
            thread: value & libc::FUTEX_TID_MASK,
        }),
    }
}

/// This thread's robust list is ours; the C library's own comes back on drop.
struct Registered {
    list: *mut List,
    before: *mut libc::c_void,
}

impl Registered {
    fn new(word: &Word) -> Result<Self> {
        let (mut before, mut length) = (ptr::null_mut::<libc::c_void>(), 0_usize);
        // SAFETY: 0 is this thread; both results are written to variables that live through the call.
        let got = unsafe {
            libc::syscall(
                libc::SYS_get_robust_list,
                0,
                &raw mut before,
                &raw mut length,
            )
        };
        if got != 0 {
            return Err(last_error("get the robust list"));
        }
        let list = Box::into_raw(Box::new(List {
            head: RobustListHead {
                list: RobustList { next: ptr::null() },
                futex_offset: 0,
                list_op_pending: ptr::null(),
            },
            entry: RobustList { next: ptr::null() },
        }));
        // SAFETY: `list` was just made, and nobody else knows it.
        unsafe {
            (*list).head.list.next = &raw const (*list).entry;
            (*list).entry.next = &raw const (*list).head.list;
            let entry = (&raw const (*list).entry).addr();
            (*list).head.futex_offset = ptr::from_ref(word.get())
                .addr()
                .wrapping_sub(entry)
                .cast_signed() as libc::c_long;
        }
        let registered = Self { list, before };
        registered.set(list.cast())?;
        Ok(registered)
    }

    fn set(&self, head: *mut libc::c_void) -> Result<()> {
        // SAFETY: the kernel reads the list when this thread ends. Ours is freed only after the former one is set again, by this same thread, and
        // the word that it leads to is mapped as long as the thread's function runs. The former one is the C library's, which keeps it as long as the
        // thread; nothing in this thread takes a robust mutex of the C library meanwhile.
        let set =
            unsafe { libc::syscall(libc::SYS_set_robust_list, head, size_of::<RobustListHead>()) };
        match set {
            0 => Ok(()),
            _ => Err(last_error("set the robust list")),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Where that fails, the list must stay.
        if self.set(self.before).is_ok() {
            // SAFETY: made by `Box::into_raw`, and the kernel doesn't know it any more.
            drop(unsafe { Box::from_raw(self.list) });
        }
    }
}

/// Signals are for the program's own threads.
fn block_signals() {
    // SAFETY: a set of signals may be all zeros, and is filled before it is used; the calls touch this thread alone.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut());
    }
}

fn last_error(action: &'static str) -> NoticeError {
    NoticeError::system(action)(std::io::Error::last_os_error())
}
