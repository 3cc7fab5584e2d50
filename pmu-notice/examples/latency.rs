//! How long after SIGKILL a notice is believed, and how long after it the process descriptor is readable: `latency [MIB...]`.
//! Needs the example `victim` beside it.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use pmu_notice::{Notice, dying};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const RUNS: usize = 11;

fn main() -> Result<()> {
    let mut sizes: Vec<usize> = std::env::args().skip(1).flat_map(|s| s.parse()).collect();
    if sizes.is_empty() {
        sizes = vec![1, 256, 1024];
    }
    for mib in sizes {
        let mut times = (0..RUNS).map(|_| kill(mib)).collect::<Result<Vec<_>>>()?;
        let mut median = |part: fn(&(f64, f64)) -> f64| {
            times.sort_by(|a, b| part(a).total_cmp(&part(b)));
            part(&times[RUNS / 2])
        };
        let (notice, descriptor) = (median(|t| t.0), median(|t| t.1));
        println!("{mib:6} MiB: notice {notice:.2} ms, process descriptor {descriptor:.1} ms");
    }
    Ok(())
}

/// Milliseconds from the kill to the notice, and to the end.
fn kill(mib: usize) -> Result<(f64, f64)> {
    let notice = Arc::new(Notice::new()?);
    let path = format!("/proc/self/fd/{}", notice.file().as_raw_fd());
    fcntl_setfd(notice.file(), FdFlags::empty())?;
    let mut child = Command::new(std::env::current_exe()?.with_file_name("victim"))
        .args([&path, "sleep", &mib.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let out = child.stdout.take().ok_or("no output")?;
    BufReader::new(out).read_line(&mut line)?;
    let descriptor = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let (watched, id) = (Arc::clone(&notice), child.id());
    let waiting = std::thread::spawn(move || {
        let _ = watched.wait(|| dying(id).is_some());
        Instant::now()
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    let begun = Instant::now();
    pidfd_send_signal(&descriptor, Signal::KILL)?;
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut polled, None)?;
    let ended = begun.elapsed();
    let noticed = waiting
        .join()
        .map_err(|_| "the waiting thread has panicked")?;
    child.wait()?;
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    Ok((ms(noticed - begun), ms(ended)))
}
