//! How an arena is made, and which processors serve it.

use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::{ArenaError, Result};

/// How the contents are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Method {
    /// [`Self::Protect`] where this kernel lets the program, otherwise [`Self::Fork`]; see
    /// [`crate::Arena::fallback_reason`].
    #[default]
    Auto,
    /// Pages are write-protected with userfaultfd; the first write to one is noticed.
    Protect,
    /// A forked process keeps the frozen contents. Every image is a full one, and the pause grows
    /// with the memory of the whole program.
    Fork,
}

impl Method {
    /// In a word, for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Protect => "protect",
            Self::Fork => "fork",
        }
    }
}

impl FromStr for Method {
    type Err = ArenaError;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Auto, Self::Protect, Self::Fork]
            .into_iter()
            .find(|method| method.name() == text)
            .ok_or(ArenaError::BadOptions {
                reason: "the method is none of auto, protect, fork",
            })
    }
}

/// Who deals with the first write to a protected page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ServedBy {
    /// A thread of the arena's, for which the writer waits: two switches between threads, and where they are on different processors of a
    /// virtual machine two wake-ups of a processor. [`ArenaOptions::cpus`] keeps it on the writer's.
    #[default]
    Thread,
    /// The writer itself, in a handler of SIGBUS: nobody is woken. In turn
    /// - system calls can't write to protected pages: read(2) or recv(2) into the arena fails with EFAULT, now or after a freeze;
    /// - no thread that writes to the arena blocks SIGBUS, and the program installs no handler of its own for it later (one that was there
    ///   before still gets what isn't ours, on the stack of the thread);
    /// - no stack lies in the arena, and one from which it is written has some KiB left for the handler;
    /// - handlers of other signals may write to the arena, but not where they interrupt a thread that makes, freezes or drops an arena or
    ///   takes an image: such a thread blocks their signals.
    Signal,
}

/// Which processors a thread may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Cpus {
    /// As the thread that starts it.
    #[default]
    Inherited,
    /// These alone.
    Only(Vec<usize>),
    /// Those of the thread that starts it, without these.
    Except(Vec<usize>),
}

impl Cpus {
    /// Has the calling thread use these processors alone from now on.
    ///
    /// # Errors
    /// [`ArenaError::BadOptions`] if none is left; [`ArenaError::Io`] if the kernel refuses, as it
    /// does for processors that there are not.
    pub fn pin_this_thread(&self) -> Result<()> {
        let refuse = |error| ArenaError::io("choose processors", error);
        let mut set = CpuSet::new();
        match self {
            Self::Inherited => return Ok(()),
            Self::Only(cpus) => {
                for &cpu in cpus {
                    set.set(cpu).map_err(refuse)?;
                }
            }
            Self::Except(cpus) => {
                set = sched_getaffinity(Pid::from_raw(0)).map_err(refuse)?;
                for &cpu in cpus {
                    set.unset(cpu).map_err(refuse)?;
                }
            }
        }
        if set == CpuSet::new() {
            return Err(ArenaError::BadOptions {
                reason: "no processor is left",
            });
        }
        sched_setaffinity(Pid::from_raw(0), &set).map_err(refuse)
    }
}

/// How an arena is made. [`Self::new`] has what most programs want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArenaOptions {
    /// Bytes of the arena: a multiple of 2 MiB, unless the program registers a mapping of its own.
    pub len_bytes: usize,
    /// Where it has to lie (a multiple of 2 MiB); none lets the kernel choose. A second instance
    /// asks for the address that the first one had, so that pointers stay valid.
    pub address: Option<usize>,
    /// Ask the kernel for huge pages (a hint). They are split where single pages are written after
    /// a freeze.
    pub huge_pages: bool,
    /// Have all pages found when the arena is made.
    pub prefault: bool,
    /// Whether an allocator lives in the arena; without, the bytes are the program's to lay out.
    pub heap: bool,
    /// How contents are frozen.
    pub method: Method,
    /// The most bytes that are held aside for one image; then writers wait for the reader. Memory
    /// is used as it is needed, and kept.
    pub aside_bytes_max: usize,
    /// Adjacent pages that the first write to one of them makes writable together, and changed: a
    /// power of two up to 512. 1 has images hold just what changed, for a few microseconds with
    /// the first write to each page. More is for programs that write most pages between two
    /// images: 512 costs them a few microseconds for 2 MiB, and leaves huge pages whole.
    pub grain_pages: usize,
    /// The most rounds of protecting pages before the pause.
    pub rounds_max: u32,
    /// So few written pages may be left for the pause.
    pub pages_left_max: usize,
    /// Who serves writes to protected pages.
    pub served_by: ServedBy,
    /// Processors of the thread that serves the arena, where one does. The one that the program writes from is the best: the writer has to
    /// wait for that thread in any case.
    pub cpus: Cpus,
}

impl ArenaOptions {
    /// `len_bytes` anywhere, with huge pages and a heap, and up to a quarter of them held aside.
    #[must_use]
    pub const fn new(len_bytes: usize) -> Self {
        Self {
            len_bytes,
            address: None,
            huge_pages: true,
            prefault: false,
            heap: true,
            method: Method::Auto,
            aside_bytes_max: len_bytes / 4,
            grain_pages: 1,
            rounds_max: 4,
            pages_left_max: 64,
            served_by: ServedBy::Thread,
            cpus: Cpus::Inherited,
        }
    }

    /// The same without an allocator: the bytes are the program's to lay out.
    #[must_use]
    pub const fn plain(len_bytes: usize) -> Self {
        let mut options = Self::new(len_bytes);
        options.heap = false;
        options
    }
}
