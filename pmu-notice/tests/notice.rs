//! Real processes that hold a notice, and end in every way.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by a panic")]

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use pmu_notice::{Death, Holder, Notice, NoticeError, Outcome, dying};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// For what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what must not come.
const QUIET: Duration = Duration::from_millis(300);

struct Victim {
    child: Child,
    notice: Arc<Notice>,
    pidfd: OwnedFd,
    outcomes: Receiver<(Outcome, bool)>,
    /// How often a death was asked about.
    asked: Arc<AtomicU32>,
}

fn path_of(notice: &Notice) -> String {
    format!("/proc/self/fd/{}", notice.file().as_raw_fd())
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut watched, Some(&now)).unwrap() > 0
}

impl Victim {
    /// One that holds its notice, and its watcher.
    fn start(mode: &str, mib: usize) -> Self {
        let notice = Arc::new(Notice::new().unwrap());
        fcntl_setfd(notice.file(), FdFlags::empty()).unwrap();
        let program = std::env::current_exe().unwrap();
        let program = program.ancestors().nth(2).unwrap().join("examples/victim");
        assert!(program.exists(), "{} is not built", program.display());
        let mut child = Command::new(program)
            .args([&path_of(&notice), mode, &mib.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        fcntl_setfd(notice.file(), FdFlags::CLOEXEC).unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let (sender, outcomes) = channel();
        let (watched, id, asks) = (Arc::clone(&notice), child.id(), Arc::clone(&asked));
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        std::thread::spawn(move || {
            let outcome = watched.wait(|| {
                asks.fetch_add(1, Ordering::SeqCst);
                dying(id).is_some()
            });
            let _ = sender.send((outcome.unwrap(), has_ended(&descriptor)));
        });
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self {
            child,
            notice,
            pidfd,
            outcomes,
            asked,
        }
    }

    fn kill(&self) {
        pidfd_send_signal(&self.pidfd, Signal::KILL).unwrap();
    }

    fn is_quiet(&self) {
        let said = self.outcomes.recv_timeout(QUIET);
        assert_eq!(said, Err(RecvTimeoutError::Timeout));
    }

    /// The wait ends by being closed, and by nothing before.
    fn ends_quietly(mut self) -> Option<i32> {
        let code = self.child.wait().unwrap().code();
        self.notice.close();
        let (outcome, _) = self.outcomes.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Closed);
        code
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.notice.close();
    }
}

#[test]
fn s05_a_kill_is_told_before_the_memory_is_freed() {
    let victim = Victim::start("sleep", 1024);
    victim.is_quiet();
    victim.kill();
    let (outcome, had_ended) = victim.outcomes.recv_timeout(PATIENCE).unwrap();
    assert_eq!(outcome, Outcome::Died);
    assert!(!had_ended, "its descriptor was readable already");
    assert_eq!(dying(victim.child.id()), Some(Death::Signal(9)));
}

#[test]
fn s05_a_program_that_lets_go_is_not_said_to_have_died() {
    let victim = Victim::start("drop", 1);
    victim.is_quiet();
    // Another may have it now.
    let holder = Holder::take(path_of(&victim.notice).as_ref()).unwrap();
    victim.is_quiet();
    drop(holder);
    victim.kill();
    assert_eq!(victim.ends_quietly(), None);
}

#[test]
fn s05_an_end_with_code_0_is_left_to_the_descriptor() {
    assert_eq!(Victim::start("exit", 256).ends_quietly(), Some(0));
}

#[test]
fn s05_an_end_with_another_code_is_told() {
    let victim = Victim::start("code", 1024);
    let (outcome, had_ended) = victim.outcomes.recv_timeout(PATIENCE).unwrap();
    assert_eq!((outcome, had_ended), (Outcome::Died, false));
    assert_eq!(dying(victim.child.id()), Some(Death::Code(3)));
}

#[test]
fn s05_the_death_of_a_forked_child_is_none() {
    let victim = Victim::start("fork", 256);
    victim.is_quiet();
    assert_eq!(victim.asked.load(Ordering::SeqCst), 0);
    // And the parent's is told as ever: the child's drop has let nothing go.
    victim.kill();
    let (outcome, had_ended) = victim.outcomes.recv_timeout(PATIENCE).unwrap();
    assert_eq!((outcome, had_ended), (Outcome::Died, false));
}

#[test]
fn s05_a_program_that_calls_exec_lives_and_is_watched_again() {
    for mode in ["exec", "exec-from-a-thread"] {
        let victim = Victim::start(mode, 1);
        victim.is_quiet();
        let asked = victim.asked.load(Ordering::SeqCst);
        assert!(asked > 0, "{mode}: the holder's end was not noticed");
        victim.kill();
        let (outcome, _) = victim.outcomes.recv_timeout(PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Died, "{mode}");
    }
}

#[test]
fn s05_a_planted_notice_of_a_living_process_is_not_believed() {
    const OWNER_DIED: u32 = 0x4000_0000;
    for signal in [None, Some(Signal::STOP)] {
        let victim = Victim::start("sleep", 1);
        if let Some(signal) = signal {
            pidfd_send_signal(&victim.pidfd, signal).unwrap();
        }
        let bytes = OWNER_DIED.to_ne_bytes();
        victim.notice.file().write_all_at(&bytes, 0).unwrap();
        let believed = AtomicU32::new(0);
        let (notice, pid) = (Arc::clone(&victim.notice), victim.child.id());
        let outcome = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                notice.wait(|| {
                    believed.fetch_add(1, Ordering::SeqCst);
                    dying(pid).is_some()
                })
            });
            while believed.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            victim.is_quiet();
            notice.close();
            waiting.join().unwrap().unwrap()
        });
        assert_eq!(outcome, Outcome::Closed);
    }
}

#[test]
fn s05_what_is_held_closed_or_no_notice_is_refused() {
    let notice = Notice::new().unwrap();
    let path = path_of(&notice);
    let holder = Holder::take(path.as_ref()).unwrap();
    let held = Holder::take(path.as_ref());
    assert!(matches!(held, Err(NoticeError::Held { thread }) if thread > 0));
    drop(holder);
    drop(Holder::take(path.as_ref()).unwrap());
    notice.close();
    assert!(matches!(
        Holder::take(path.as_ref()),
        Err(NoticeError::Closed)
    ));
    let other = rustix::fs::memfd_create("other", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let other = std::fs::File::from(other);
    other.set_len(4096).unwrap();
    let path = format!("/proc/self/fd/{}", other.as_raw_fd());
    assert!(matches!(
        Holder::take(path.as_ref()),
        Err(NoticeError::NotOne)
    ));
    let missing = Holder::take("/proc/self/fd/99999".as_ref());
    assert!(matches!(missing, Err(NoticeError::System { .. })));
}
