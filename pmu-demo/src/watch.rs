//! How the backup learns that the primary is gone.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{DemoError, Result};

/// Something that happens once: the end of a process, or a word on standard input.
///
/// This stands in for an agent: it sees only processes of its own host.
#[derive(Debug)]
pub struct Watch {
    descriptor: Option<OwnedFd>,
}

impl Watch {
    /// The end of a process. One that is not there has ended.
    ///
    /// # Errors
    /// [`DemoError::System`] if the kernel can't watch processes.
    pub fn process(id: u32) -> Result<Self> {
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(DemoError::Unusable(format!("{id} is no process id")));
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Self {
                descriptor: Some(descriptor),
            }),
            Err(rustix::io::Errno::SRCH) => Ok(Self { descriptor: None }),
            Err(error) => Err(DemoError::system("watch a process")(error)),
        }
    }

    /// A line on standard input, or its end.
    ///
    /// # Errors
    /// [`DemoError::System`].
    pub fn standard_input() -> Result<Self> {
        let descriptor =
            rustix::io::dup(std::io::stdin()).map_err(DemoError::system("watch standard input"))?;
        Ok(Self {
            descriptor: Some(descriptor),
        })
    }

    /// Whether it has happened, or does within `timeout`.
    ///
    /// # Errors
    /// [`DemoError::System`].
    pub fn happened(&self, timeout: Duration) -> Result<bool> {
        let Some(descriptor) = &self.descriptor else {
            return Ok(true);
        };
        let mut watched = [PollFd::new(descriptor, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut watched, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(DemoError::system("watch")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut process = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let watch = Watch::process(process.id()).unwrap();
        assert!(!watch.happened(Duration::ZERO).unwrap());
        process.kill().unwrap();
        assert!(watch.happened(Duration::from_secs(10)).unwrap());
        process.wait().unwrap();
        assert!(
            Watch::process(process.id())
                .unwrap()
                .happened(Duration::ZERO)
                .unwrap()
        );
        assert!(Watch::process(0).is_err());
    }
}
