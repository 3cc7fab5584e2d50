//! What the kernel says of a process that may be dying.

use std::time::Duration;

/// How often, and after what pauses, the first thread's memory is looked for.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_micros(50);

/// How a process is dying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// By this signal.
    Signal(u8),
    /// With this exit code, which isn't 0.
    Code(u8),
}

impl std::fmt::Display for Death {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Signal(signal) => write!(formatter, "signal {signal}"),
            Self::Code(code) => write!(formatter, "exit code {code}"),
        }
    }
}

/// How the whole process is dying; none while it lives, where that can't be told, and where it ends with exit code 0.
///
/// Whoever asks must know that the id still is that process's: a child that nobody has waited for, say. Blocks for at most a millisecond.
#[must_use]
pub fn dying(pid: u32) -> Option<Death> {
    // A reader of `stat` holds the process's memory for that moment. If all threads left it meanwhile, the reader would have to free it, which
    // is what nobody wants to wait for. The link to the program is gone as soon as the first thread has left the memory, and holds nothing.
    for _ in 0..LOOKS {
        if std::fs::read_link(format!("/proc/{pid}/exe")).is_err() {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    death_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 52, as wait(2) has it. It is set as soon as the process as a whole is to end, before any of its threads runs again; for one that is
/// only stopped it names the signal that did it. 0 where we may not know.
fn death_in(stat: &str) -> Option<Death> {
    const FIELD: usize = 52;
    /// The name in brackets is the second field, and may hold anything.
    const BEHIND_NAME: usize = 3;
    let (_, fields) = stat.rsplit_once(')')?;
    let field = fields.split_ascii_whitespace().nth(FIELD - BEHIND_NAME)?;
    let code: i32 = field.parse().ok()?;
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    match (code & 0x7f, code >> 8) {
        (0, 0) => None,
        (0, code) => u8::try_from(code).ok().map(Death::Code),
        (signal, _) if stops.contains(&signal) => None,
        (signal, _) => u8::try_from(signal).ok().map(Death::Signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(code: i32) -> String {
        let between: String = (4..52).map(|field| format!("{field} ")).collect();
        format!("1234 (a) b) R {between}{code}\n")
    }

    #[test]
    fn s05_the_code_of_an_end_is_read_as_wait_has_it() {
        for (code, expected) in [
            (0, None),
            (9, Some(Death::Signal(9))),
            (11 | 0x80, Some(Death::Signal(11))),
            (3 << 8, Some(Death::Code(3))),
            (19, None),
            (20, None),
        ] {
            assert_eq!(death_in(&stat(code)), expected, "{code}");
        }
        for text in ["", "1 (a) R 3", "1 a R", ")"] {
            assert_eq!(death_in(text), None, "{text}");
        }
        assert_eq!(dying(std::process::id()), None);
    }
}
