//! Tells of a process's death before the kernel has freed its memory, which takes a quarter of a second for each GiB.
//! It never decides that a process is dead by the notice alone: [`dying()`] asks the kernel.
//!
//! A process descriptor becomes readable when the last thread has gone, and with it the memory. Long before that, a dying thread goes
//! through its *robust list*: in each futex that it holds the kernel sets `FUTEX_OWNER_DIED`, and wakes a waiter. So
//! 1. the watcher makes a [`Notice`]: a word in a memory file, which the program inherits;
//! 2. the program [holds](Holder) that word in a thread that does nothing else;
//! 3. the watcher sleeps on the word until its holder has died, and then asks whether the whole process is dying.
//!
//! Sources: futex(2), get_robust_list(2), and `Documentation/locking/robust-futex-ABI.rst` of the kernel.

mod dying;
mod error;
mod holder;
mod notice;
mod word;

pub use dying::{Death, dying};
pub use error::{NoticeError, Result};
pub use holder::Holder;
pub use notice::{Notice, Outcome};
