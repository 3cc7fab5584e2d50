//! Holds a notice in several ways, for the tests. `victim NOTICE MODE MIB`; it says `held` when it does.
#![allow(clippy::print_stdout, reason = "the tests listen to it")]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use pmu_notice::Holder;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [notice, mode, mib] = arguments.as_slice() else {
        eprintln!("victim NOTICE MODE MIB");
        return ExitCode::from(2);
    };
    match run(notice, mode, mib.parse().unwrap_or(0)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("victim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(what: &str) -> Result<()> {
    println!("{what}");
    Ok(std::io::stdout().flush()?)
}

fn run(notice: &str, mode: &str, mib: usize) -> Result<ExitCode> {
    // Every page is touched, and the kernel has to free it.
    let memory = vec![1_u8; mib << 20];
    let holder = Holder::take(Path::new(notice))?;
    match mode {
        "exec" => {
            return Err(exec(notice).into());
        }
        "exec-from-a-thread" => {
            let notice = notice.to_owned();
            let done = std::thread::spawn(move || exec(&notice).to_string()).join();
            return Err(done.unwrap_or_default().into());
        }
        "exit" => {
            say("held")?;
            std::process::exit(0);
        }
        "code" => {
            say("held")?;
            std::process::exit(3);
        }
        "drop" => drop(holder),
        "fork" => {
            fork_and_die(holder);
        }
        _ => std::mem::forget(holder),
    }
    say("held")?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        std::hint::black_box(&memory);
    }
}

fn exec(notice: &str) -> std::io::Error {
    match std::env::current_exe() {
        Ok(path) => Command::new(path).args([notice, "sleep", "1"]).exec(),
        Err(error) => error,
    }
}

/// A child drops what is its parent's, and is killed.
fn fork_and_die(holder: Holder) {
    // SAFETY: the child calls nothing but a drop that does nothing in it, and its own end.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(holder);
        // SAFETY: ends this child, and touches nothing.
        unsafe { libc::raise(libc::SIGKILL) };
    } else {
        std::mem::forget(holder);
        // SAFETY: no result is asked for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
}
