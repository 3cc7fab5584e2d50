//! Writes to protected pages that their own threads serve, in a handler of SIGBUS.
//!
//! The signal is raised by the very instruction that writes to the arena. So the handler interrupts
//! no allocator but an arena's own and no lock but those that are held while an arena is written to;
//! none of those that it takes itself is.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::error::{ArenaError, Result};
use crate::watch::Watch;

/// The arenas that are served so.
static LISTED: RwLock<Vec<(Range<u64>, Arc<Watch>)>> = RwLock::new(Vec::new());
/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// Held while the handler is installed.
static INSTALLING: Mutex<()> = Mutex::new(());

/// While it lives, the handler knows the arena.
#[derive(Debug)]
pub(crate) struct Listed {
    addresses: Range<u64>,
}

impl Listed {
    /// Installs the handler, with the first arena, and has it know this one.
    ///
    /// # Errors
    /// [`ArenaError::Io`].
    pub(crate) fn new(watch: Arc<Watch>) -> Result<Self> {
        install()?;
        let addresses = watch.memory().addresses(&(0..watch.memory().pages()));
        LISTED.write().push((addresses.clone(), watch));
        Ok(Self { addresses })
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut listed = LISTED.write();
        let place = listed.iter().position(|(at, _)| *at == self.addresses);
        let watch = place.map(|place| listed.swap_remove(place));
        // It may be the last to hold the watch: not under the lock.
        drop(listed);
        drop(watch);
    }
}

fn install() -> Result<()> {
    let _alone = INSTALLING.lock();
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
    // SAFETY: the kernel gives a valid structure; of a bus error that it has found itself that has an address.
    let address = unsafe {
        match (*info).si_code {
            libc::BUS_ADRERR => (*info).si_addr() as u64,
            _ => 0,
        }
    };
    // SAFETY: the thread's own variable.
    let number_of_error = unsafe { *libc::__errno_location() };
    let watch = {
        let listed = LISTED.read();
        let found = listed.iter().find(|(at, _)| at.contains(&address));
        found.map(|(_, watch)| Arc::clone(watch))
    };
    match watch {
        // Whoever writes to an arena keeps it alive: this is never the last to hold it.
        Some(watch) => watch.serve_here(address),
        None => pass_on(number, info, context),
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = number_of_error };
}

/// Does what would have been done without us.
fn pass_on(number: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(before) = BEFORE.get() else {
        return;
    };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the earlier action, which the program had chosen. The instruction is run again, and ends the program.
            unsafe { libc::sigaction(number, before, std::ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed with SA_SIGINFO, and so has this type.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(number, info, context);
        }
        handler => {
            // SAFETY: it was installed without SA_SIGINFO, and so has this type.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(number);
        }
    }
}
