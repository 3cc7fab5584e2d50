//! Writes to protected pages that their own threads serve, in a handler of SIGBUS.
//!
//! The signal is raised by the very instruction that writes to the arena. So the handler interrupts
//! no allocator but an arena's own and no lock but those that are held while an arena is written to;
//! none of those that it takes itself is. They are locks of the standard library, which share no
//! state with each other as those of parking_lot do. No other handler runs while it does.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use crate::error::{ArenaError, Result};
use crate::watch::{Watch, released};

/// The arenas that are served so.
static LISTED: RwLock<Vec<(Range<u64>, Arc<Watch>)>> = RwLock::new(Vec::new());
/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// Held while the handler is installed.
static INSTALLING: Mutex<()> = Mutex::new(());

/// What the handler did last in this thread, where the same instruction may come to it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Done,
    /// The write waits for the reader.
    Waits(u64),
    /// No arena was there, or none any more when so many had been released.
    NotOurs(u64, u64),
}

thread_local! {
    // Neither made nor destroyed by code: the handler may use it at any time.
    static LAST: Cell<Last> = const { Cell::new(Last::Done) };
}

/// While it lives, the handler knows the arena.
#[derive(Debug)]
pub(crate) struct Listed {
    watch: Arc<Watch>,
}

impl Listed {
    /// Installs the handler, with the first arena, and has it know this one.
    ///
    /// # Errors
    /// [`ArenaError::Io`].
    pub(crate) fn new(watch: Arc<Watch>) -> Result<Self> {
        install()?;
        let addresses = watch.memory().addresses(&(0..watch.memory().pages()));
        let mut listed = LISTED.write().unwrap_or_else(PoisonError::into_inner);
        listed.push((addresses, Arc::clone(&watch)));
        Ok(Self { watch })
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        // A mapping of the program's own may be written just now.
        self.watch.retire();
        let mut listed = LISTED.write().unwrap_or_else(PoisonError::into_inner);
        let mut listed_are = listed.iter();
        if let Some(place) = listed_are.position(|(_, watch)| Arc::ptr_eq(watch, &self.watch)) {
            listed.swap_remove(place);
        }
    }
}

fn install() -> Result<()> {
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: a zeroed sigaction is the default action with an empty mask.
    let (mut ours, mut before) = unsafe {
        (
            MaybeUninit::<libc::sigaction>::zeroed().assume_init(),
            MaybeUninit::<libc::sigaction>::zeroed().assume_init(),
        )
    };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
    ours.sa_sigaction = handler as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // Another handler that wrote to an arena while this one runs would wait for itself.
    // SAFETY: the calls change the set that they are given.
    unsafe {
        libc::sigfillset(&mut ours.sa_mask);
        for fault in [
            libc::SIGSEGV,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGTRAP,
            libc::SIGABRT,
        ] {
            libc::sigdelset(&mut ours.sa_mask, fault);
        }
    }
    // SAFETY: the call fills the structure that it is given.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(ArenaError::io("look at the handler of SIGBUS", error));
    }
    // The handler needs it from its first moment on.
    let _ = BEFORE.set(before);
    // SAFETY: the handler has the type that SA_SIGINFO asks for, and lives as long as the program.
    if unsafe { libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut()) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(ArenaError::io("handle SIGBUS", error));
    }
    Ok(())
}

extern "C" fn handle(number: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the thread's own variable.
    let number_of_error = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel gives a valid structure; of a bus error that it has found itself that has
    // an address.
    let address = unsafe {
        match (*info).si_code {
            libc::BUS_ADRERR => Some((*info).si_addr() as u64),
            _ => None,
        }
    };
    if !address.is_some_and(serve) {
        pass_on(number, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = number_of_error };
}

/// Whether the instruction is to be run again.
fn serve(address: u64) -> bool {
    let last = LAST.replace(Last::Done);
    let watch = {
        let listed = LISTED.read().unwrap_or_else(PoisonError::into_inner);
        let here =
            |(at, watch): &&(Range<u64>, Arc<Watch>)| at.contains(&address) && !watch.is_released();
        listed.iter().find(here).map(|(_, watch)| Arc::clone(watch))
    };
    if let Some(watch) = watch {
        if !watch.serve_here(address, last != Last::Waits(address)) {
            LAST.set(Last::Waits(address));
        }
        return true;
    }
    // An arena may have been here when the signal was raised. If not, it is raised again.
    let not_ours = Last::NotOurs(address, released());
    if last == not_ours {
        return false;
    }
    LAST.set(not_ours);
    true
}

/// Does what would have been done without us.
fn pass_on(number: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(before) = BEFORE.get() else {
        return;
    };
    // SAFETY: the kernel gives a valid structure.
    let code = unsafe { (*info).si_code };
    // Of the instruction itself: when it is run again, so is the signal.
    let comes_again = (libc::BUS_ADRALN..=libc::BUS_MCEERR_AR).contains(&code);
    match before.sa_sigaction {
        libc::SIG_IGN if !comes_again => {}
        // What the kernel raises for an instruction nobody can ignore.
        libc::SIG_DFL | libc::SIG_IGN => {
            back_to_default(number);
            if !comes_again {
                // SAFETY: it is always possible; the signal is blocked until the handler returns.
                unsafe { libc::raise(number) };
            }
        }
        handler => {
            if before.sa_flags & libc::SA_RESETHAND != 0 {
                back_to_default(number);
            }
            block_as_before(number, before, context);
            call(handler, before.sa_flags, number, info, context);
        }
    }
}

/// The next signal ends the program.
fn back_to_default(number: libc::c_int) {
    // SAFETY: a zeroed sigaction is the default action, which may always be asked for.
    unsafe {
        let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        libc::sigaction(number, &default, std::ptr::null_mut());
    }
}

/// Blocks what the kernel would have blocked while the earlier handler runs.
fn block_as_before(number: libc::c_int, before: &libc::sigaction, context: *mut libc::c_void) {
    let context: *const libc::ucontext_t = context.cast();
    // SAFETY: the kernel gives a valid context, of whose mask it reads as much as there is; the
    // other sets are whole.
    unsafe {
        let interrupted = &raw const (*context).uc_sigmask;
        libc::pthread_sigmask(libc::SIG_SETMASK, interrupted, std::ptr::null_mut());
        let mut more = before.sa_mask;
        if before.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&mut more, number);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &more, std::ptr::null_mut());
    }
}

fn call(
    handler: libc::sighandler_t,
    flags: libc::c_int,
    number: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    if flags & libc::SA_SIGINFO != 0 {
        // SAFETY: it was installed with SA_SIGINFO, and so has this type.
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(handler) };
        handler(number, info, context);
    } else {
        // SAFETY: it was installed without SA_SIGINFO, and so has this type.
        let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
        handler(number);
    }
}
