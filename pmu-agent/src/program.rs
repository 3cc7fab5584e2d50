//! The program: started or adopted, watched through a process descriptor, signalled, killed.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use pmu_client::agent::{encode_arena, encode_epochs, names};
use pmu_notice::{Notice, Outcome, dying};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::config::Config;
use crate::copy::{Handed, path_for_child};
use crate::error::{AgentError, Result};
use crate::input::Input;

/// What the program is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To lead.
    Primary,
    /// To show that it could, from a copy.
    Rehearsal,
}

/// A program that runs, or did.
#[derive(Debug)]
pub struct Running {
    descriptor: OwnedFd,
    pid: Pid,
    /// It leads a process group of its own.
    is_leader: bool,
}

impl Running {
    /// Starts the program; its end comes as an input with this serial number. A violent end is told before that, as soon as it has begun, if
    /// the program holds the notice that it is handed.
    ///
    /// # Errors
    /// [`AgentError::System`]: nothing was started.
    pub fn start(
        config: &Config,
        handed: &Handed,
        serial: u64,
        inputs: &Sender<Input>,
    ) -> Result<Self> {
        let notice = notice();
        let child = spawn(config, handed, Role::Primary, notice.as_deref())?;
        let pid = child.pid();
        let descriptor = descriptor_of(pid)?;
        let watched = descriptor_of(pid)?;
        if let Some(notice) = notice.clone() {
            let inputs = inputs.clone();
            let watching = thread("notice", move || {
                tell_of_dying(&notice, pid, serial, &inputs);
            });
            if let Err(error) = watching {
                tracing::warn!(%error, "a kill will be told late");
            }
        }
        let inputs = inputs.clone();
        thread("program", move || {
            wait(&watched);
            if let Some(notice) = notice {
                notice.close();
            }
            // What it has started, and left behind: that could be the very one that leads. It isn't reaped yet, so the group's id is its own.
            let _ = kill_process_group(pid, Signal::KILL);
            let (clean, how) = match child.end() {
                Ok(status) => (status.success(), status.to_string()),
                Err(error) => (false, error.to_string()),
            };
            let _ = inputs.send(Input::Exited { serial, clean, how });
        })?;
        Ok(Self {
            descriptor,
            pid,
            is_leader: true,
        })
    }

    /// Takes a process that runs already. How it ends can't be told: only that it does.
    ///
    /// # Errors
    /// [`AgentError::System`]: there is none, or it belongs to somebody else.
    pub fn adopt(id: u32, serial: u64, inputs: &Sender<Input>) -> Result<Self> {
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| AgentError::Refused(format!("{id} is no process id")))?;
        let descriptor = descriptor_of(pid)?;
        let watched = descriptor_of(pid)?;
        let inputs = inputs.clone();
        thread("program", move || {
            wait(&watched);
            let how = "an adopted process: its exit code is not known".to_owned();
            let clean = false;
            let _ = inputs.send(Input::Exited { serial, clean, how });
        })?;
        Ok(Self {
            descriptor,
            pid,
            is_leader: false,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether a process is this program, or one that it has started.
    #[must_use]
    pub fn owns(&self, pid: u32) -> bool {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| {
            pid == self.pid
                || (self.is_leader && rustix::process::getpgid(Some(pid)) == Ok(self.pid))
        })
    }

    /// Kills it, and what it has started. One that has ended already is no error.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Whether it ends in time. Blocks until then.
    #[must_use]
    pub fn has_ended_within(&self, timeout: Duration) -> bool {
        has_ended_within(&self.descriptor, timeout)
    }

    /// Asks it to end, and what it has started: a wrapper that doesn't exec passes nothing on.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        // The descriptor can't mean another process; the group is ours as long as its leader lives. Who reaps that kills the group before.
        if !self.is_leader {
            let _ = pidfd_send_signal(&self.descriptor, signal);
        } else if !self.has_ended_within(Duration::ZERO) {
            let _ = kill_process_group(self.pid, signal);
        }
    }
}

/// A child that leads a process group. Unless somebody has waited for its end it is killed, with what it has started.
struct Started {
    child: Child,
    ended: bool,
}

impl Started {
    fn of(mut command: Command) -> std::io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let started = Self {
            child,
            ended: false,
        };
        unprotect(started.pid(), oom_score_adjust());
        Ok(started)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// How it has ended. Blocks until then.
    fn end(mut self) -> std::io::Result<ExitStatus> {
        self.ended = true;
        self.child.wait()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.ended {
            // Not waited for: its id is its own.
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Where there is none, the process descriptor alone tells.
fn notice() -> Option<Arc<Notice>> {
    match Notice::new() {
        Ok(notice) => Some(Arc::new(notice)),
        Err(error) => {
            tracing::warn!(%error, "a kill will be told late");
            None
        }
    }
}

/// Until the program is dying, or gone. The process is a child that was not waited for, or has just been: its id is its own.
fn tell_of_dying(notice: &Notice, pid: Pid, serial: u64, inputs: &Sender<Input>) {
    let mut death = None;
    let outcome = notice.wait(|| {
        death = dying(pid.as_raw_nonzero().get().unsigned_abs());
        death.is_some()
    });
    match (outcome, death) {
        (Ok(Outcome::Died), Some(death)) => {
            let how = death.to_string();
            let _ = inputs.send(Input::Dying { serial, how });
        }
        (Ok(_), _) => {}
        (Err(error), _) => tracing::warn!(%error, "a kill will be told late"),
    }
}

fn descriptor_of(pid: Pid) -> Result<OwnedFd> {
    let action = format!("watch process {}", pid.as_raw_nonzero());
    pidfd_open(pid, PidfdFlags::empty()).map_err(AgentError::system(action))
}

/// Until the process has ended.
fn wait(descriptor: &OwnedFd) {
    loop {
        let mut watched = [PollFd::new(descriptor, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(ready) if ready > 0 => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the program can't be watched");
                return;
            }
        }
    }
}

fn has_ended_within(descriptor: &OwnedFd, timeout: Duration) -> bool {
    let limit = rustix::event::Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let mut watched = [PollFd::new(descriptor, PollFlags::IN)];
    poll(&mut watched, Some(&limit)).is_ok_and(|ready| ready > 0)
}

/// A thread with a name.
///
/// # Errors
/// The system has none.
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new()
        .name(format!("pmu-{name}"))
        .spawn(work);
    spawned
        .map(drop)
        .map_err(AgentError::system("start a thread"))
}

/// A thread without which the agent is none: should it panic, the agent ends, and the program runs on. The peer then hears silence, as after
/// any other death of an agent.
///
/// # Errors
/// The system has none.
pub fn vital_thread(
    name: &'static str,
    inputs: &Sender<Input>,
    work: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let alarm = Alarm {
        name,
        inputs: inputs.clone(),
    };
    thread(name, move || {
        let _alarm = alarm;
        work();
    })
}

struct Alarm {
    name: &'static str,
    inputs: Sender<Input>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.inputs.send(Input::Lost { thread: self.name });
        }
    }
}

fn spawn(config: &Config, handed: &Handed, role: Role, notice: Option<&Notice>) -> Result<Started> {
    let Some((name, arguments)) = config.program.command.split_first() else {
        return Err(AgentError::Refused("program.command is empty".into()));
    };
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    if let Some(directory) = &config.program.directory {
        command.current_dir(directory);
    }
    set_environment(&mut command, config, handed, role);
    // The files are inherited while this process is started. Another one that is started at the same time gets them too, and ignores them.
    if let Some(notice) = notice {
        command.env(names::NOTICE, path_for_child(notice.file()));
    }
    inheritable(handed, notice, true)?;
    let started = Started::of(command);
    inheritable(handed, notice, false)?;
    started.map_err(AgentError::system(format!("start {name}")))
}

/// How much less likely than others the kernel is to kill this process where memory is short, as it was told; 0 where that can't be read.
fn oom_score_adjust() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// An agent may be protected from the kernel where memory is short. Its program, and its commands, which inherit that, are not to be: they are what needs
/// the memory, and a program is relieved. What they start inherits it from there.
fn unprotect(pid: Pid, own: i32) {
    if own >= 0 {
        return;
    }
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    if let Err(error) = std::fs::write(path, "0") {
        tracing::warn!(%error, "a child keeps the agent's oom_score_adj of {own}");
    }
}

fn set_environment(command: &mut Command, config: &Config, handed: &Handed, role: Role) {
    for variable in [
        names::STATE,
        names::STATE_SET,
        names::STATE_LABEL,
        names::STATE_ARENA,
        names::TAIL,
        names::SOCKET,
        names::NOTICE,
        names::EPOCHS,
        names::FENCED_NS,
    ] {
        command.env_remove(variable);
    }
    match role {
        Role::Primary => command
            .env(names::ROLE, "primary")
            .env(names::SOCKET, &config.socket),
        Role::Rehearsal => command.env(names::ROLE, "rehearsal"),
    };
    command.env(
        names::BEAT_MS,
        (config.watch.interval_ms / 2).max(1).to_string(),
    );
    if role == Role::Primary && !handed.epochs.is_empty() {
        command.env(names::EPOCHS, encode_epochs(&handed.epochs));
    }
    if let (Role::Primary, Some(fenced_ns)) = (role, handed.fenced_ns) {
        command.env(names::FENCED_NS, fenced_ns.to_string());
    }
    if handed.is_empty() {
        return;
    }
    if let Some(state) = &handed.state {
        command
            .env(names::STATE, path_for_child(&state.file))
            .env(names::STATE_SET, state.set.number.to_string())
            .env(names::STATE_LABEL, &state.set.label);
        if let Some(arena) = &state.arena {
            command.env(names::STATE_ARENA, encode_arena(arena));
        }
    }
    if let Some((tail, _)) = &handed.tail {
        command.env(names::TAIL, path_for_child(tail));
    }
}

fn inheritable(handed: &Handed, notice: Option<&Notice>, is: bool) -> Result<()> {
    let flags = if is {
        FdFlags::empty()
    } else {
        FdFlags::CLOEXEC
    };
    let state = handed.state.as_ref().map(|state| &state.file);
    let tail = handed.tail.as_ref().map(|(tail, _)| tail);
    let files = state.into_iter().chain(tail).map(AsRef::as_ref);
    for file in files.chain(notice.map(Notice::file)) {
        fcntl_setfd(file, flags).map_err(AgentError::system("hand a file over"))?;
    }
    Ok(())
}

/// Runs the program from a copy until it ends; in words what came of it. Blocks.
///
/// # Errors
/// It failed, or didn't end in time and was killed.
pub fn rehearse(config: &Config, handed: &Handed, timeout: Duration) -> Result<String> {
    if handed.is_empty() {
        return Err(AgentError::Refused(
            "nothing is stored yet that could be rehearsed with".into(),
        ));
    }
    let begun = Instant::now();
    let child = spawn(config, handed, Role::Rehearsal, None)?;
    let status = wait_within(child, timeout)?;
    let took = begun.elapsed().as_millis();
    let set = handed.state.as_ref().map_or(0, |state| state.set.number);
    let records = handed.tail.as_ref().map_or(0, |(_, records)| *records);
    let what = format!("set {set} and {records} records");
    match status {
        Some(status) if status.success() => Ok(format!("the program ran from {what} in {took} ms")),
        Some(status) => Err(AgentError::Refused(format!(
            "the program failed on {what}: {status}"
        ))),
        None => Err(AgentError::Refused(format!(
            "the program did not end on {what} in {took} ms"
        ))),
    }
}

/// Runs a command of the configuration; true if it succeeds in time.
#[must_use]
pub fn succeeds(command: &[String], timeout: Duration) -> bool {
    let Some((name, arguments)) = command.split_first() else {
        return false;
    };
    let mut prepared = Command::new(name);
    prepared
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    match Started::of(prepared) {
        Ok(child) => wait_within(child, timeout)
            .is_ok_and(|status| status.is_some_and(|status| status.success())),
        Err(error) => {
            tracing::error!(%error, command = name, "the command can't be run");
            false
        }
    }
}

/// The exit status; none after the timeout: then it is killed.
fn wait_within(child: Started, timeout: Duration) -> Result<Option<ExitStatus>> {
    let descriptor = descriptor_of(child.pid())?;
    if !has_ended_within(&descriptor, timeout) {
        return Ok(None);
    }
    let status = child
        .end()
        .map_err(AgentError::system("wait for a command"))?;
    Ok(Some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s05_a_program_is_not_protected_from_the_kernel_as_its_agent_is() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let child = Started::of(command).unwrap();
        let path = format!("/proc/{}/oom_score_adj", child.pid().as_raw_nonzero());
        let score = || {
            let text = std::fs::read_to_string(&path).unwrap();
            text.trim().parse::<i32>().unwrap()
        };
        // Whoever is not protected has nothing to give up, and a person's choice stays.
        std::fs::write(&path, "300").unwrap();
        unprotect(child.pid(), 0);
        assert_eq!(score(), 300);
        unprotect(child.pid(), -500);
        assert_eq!(score(), 0);
    }
}
