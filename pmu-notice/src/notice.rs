//! The watcher's end.

use std::fs::File;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::thread::futex;

use crate::error::{NoticeError, Result};
use crate::word::{CLOSED, FILE_BYTES, OWNER_DIED, SEALS, Word};

/// A word that a program may hold as long as it lives, and whose watcher is woken when it is killed.
///
/// Any thread may use it; one waits.
#[derive(Debug)]
pub struct Notice {
    file: File,
    word: Word,
}

/// Why a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The holder has died, and that was believed.
    Died,
    /// [`Notice::close`] was called.
    Closed,
}

impl Notice {
    /// One that nobody holds. Its descriptor is closed on exec: whoever hands it over must clear that flag.
    ///
    /// # Errors
    /// [`NoticeError::Kernel`] before Linux 5.17; [`NoticeError::System`]: no memory, or no descriptors.
    pub fn new() -> Result<Self> {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        if !tells_how_a_process_dies(&release) {
            return Err(NoticeError::Kernel { release });
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("pmu-notice", flags);
        let file = File::from(file.map_err(NoticeError::system("make a notice"))?);
        file.set_len(FILE_BYTES as u64)
            .map_err(NoticeError::system("give a notice its length"))?;
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)
            .map_err(NoticeError::system("seal a notice"))?;
        let word = Word::map(&file)?;
        Ok(Self { file, word })
    }

    /// The file to hand to the program.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Blocks until a holder has died and `believe` says that this counts, or until [`Self::close`].
    ///
    /// A holder may die while its process lives: when it calls exec, or when somebody ends that thread. After a death that was not believed the
    /// wait goes on; a program that holds the word again is watched again.
    ///
    /// # Errors
    /// [`NoticeError::System`]: the kernel refuses to wait.
    pub fn wait(&self, mut believe: impl FnMut() -> bool) -> Result<Outcome> {
        loop {
            let seen = self.word.get().load(Ordering::Acquire);
            if seen == CLOSED {
                return Ok(Outcome::Closed);
            }
            if seen & OWNER_DIED != 0 && believe() {
                return Ok(Outcome::Died);
            }
            match futex::wait(self.word.get(), futex::Flags::empty(), seen, None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(NoticeError::system("wait for a notice")(error)),
            }
        }
    }

    /// Ends every wait. A program that still holds the word isn't watched any more.
    pub fn close(&self) {
        self.word.get().store(CLOSED, Ordering::Release);
        // Nobody may wait, which is no error.
        let _ = futex::wake(self.word.get(), futex::Flags::empty(), u32::MAX >> 1);
    }
}

/// Since 5.17 field 52 of /proc/PID/stat is the code of the whole process's end, and nothing where only a thread ends.
fn tells_how_a_process_dies(release: &str) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
    (number(), number()) >= (Some(5), Some(17))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s05_kernels_that_do_not_tell_are_known() {
        for (release, tells) in [
            ("5.16.20-generic", false),
            ("5.17.0", true),
            ("4.19.0-27-amd64", false),
            ("6.1.0-28-amd64", true),
            ("10.0", true),
            ("strange", false),
        ] {
            assert_eq!(tells_how_a_process_dies(release), tells, "{release}");
        }
    }
}
