//! Lanes of many schedules in processes of their own: threads of one process would wait for each other in the kernel, where each connection's
//! memory is mapped and unmapped.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use pmu_sim::{Plan, Summary, run_many};
use serde::{Deserialize, Serialize};

/// A lane says how far it is after so many schedules.
const SAY_EVERY: u64 = 100;

/// What a lane says, one to a line.
#[derive(Serialize, Deserialize)]
enum Line {
    /// So many more schedules are done.
    Done(u64),
    /// The end.
    End(Box<Summary>),
}

/// Of the programs of a lane exactly one runs at any time: the turn is handed over faster on one processor, where the threads of its programs
/// stay with this one.
fn keep_on_one_processor(lane: usize) {
    let own = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(own) else {
        return;
    };
    let usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let usable: Vec<usize> = usable.collect();
    let mut one = CpuSet::new();
    if !usable.is_empty() && one.set(usable[lane % usable.len()]).is_ok() {
        // Where that isn't allowed it is slower.
        let _ = sched_setaffinity(own, &one);
    }
}

/// Runs one lane, the one of this number, and says on standard output how far it is. Ends early when standard input is closed.
pub(crate) fn work(plan: &Plan, lane: usize) -> std::io::Result<()> {
    keep_on_one_processor(lane);
    let is_over: &'static AtomicBool = Box::leak(Box::default());
    thread::spawn(move || {
        // It is closed when nobody waits for this lane any more.
        let _ = std::io::stdin().read(&mut [0]);
        is_over.store(true, Ordering::Relaxed);
    });
    let summary = run_many(plan, |done| {
        let said = if done.is_multiple_of(SAY_EVERY) {
            say(&Line::Done(SAY_EVERY))
        } else {
            Ok(())
        };
        if said.is_err() || is_over.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    say(&Line::End(Box::new(summary)))
}

fn say(line: &Line) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Runs schedules in as many processes as the plan has lanes: this program, with `arguments`. `progress` hears now and then how many are done.
pub(crate) fn run(
    plan: &Plan,
    arguments: &[String],
    progress: impl Fn(u64) + Sync,
) -> std::io::Result<Summary> {
    let begun = Instant::now();
    let program = std::env::current_exe()?;
    let lanes = plan.lanes.max(1) as u64;
    let mut children = Vec::new();
    for lane in 0..lanes {
        let seeds = plan.seeds / lanes + u64::from(lane < plan.seeds % lanes);
        let child = Command::new(&program)
            .args(arguments)
            .arg(format!(
                "--first-seed={}",
                plan.first_seed.wrapping_add(lane)
            ))
            .arg(format!("--seeds={seeds}"))
            .arg(format!("--lane={lane}"))
            .arg(format!("--every={lanes}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        children.push(child?);
    }
    let done = AtomicU64::new(0);
    let more = |count| progress(done.fetch_add(count, Ordering::Relaxed) + count);
    let mut sum = Summary::default();
    thread::scope(|scope| -> std::io::Result<()> {
        let (ended, parts) = std::sync::mpsc::channel();
        let mut open = Vec::new();
        for mut child in children {
            open.push(child.stdin.take());
            let (ended, more) = (ended.clone(), &more);
            // The other end is there until every lane has ended.
            scope.spawn(move || ended.send(follow(child, more)).is_ok());
        }
        drop(ended);
        for part in parts {
            let part = part?;
            sum.schedules += part.schedules;
            sum.failed.extend(part.failed);
            sum.totals.add(&part.totals);
            sum.crash_points.extend(part.crash_points);
            if sum.failed.len() >= plan.failures_max {
                // The others come to their end.
                open.clear();
            }
        }
        Ok(())
    })?;
    sum.failed.sort_by_key(|failed| failed.seed);
    sum.took = begun.elapsed();
    Ok(sum)
}

/// Hears what a lane says until its end.
fn follow(mut child: Child, more: impl Fn(u64)) -> std::io::Result<Summary> {
    let lines = child.stdout.take().map(BufReader::new);
    let mut part = None;
    for line in lines.into_iter().flat_map(BufRead::lines) {
        match serde_json::from_str(&line?)? {
            Line::Done(count) => more(count),
            Line::End(end) => part = Some(*end),
        }
    }
    let status = child.wait()?;
    part.ok_or_else(|| std::io::Error::other(format!("a lane came to no end: {status}")))
}
