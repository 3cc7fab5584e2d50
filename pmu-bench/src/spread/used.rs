//! Processor time of both sides for each GiB of a checkpoint.

use crate::measure::Failure;
use crate::process::own_cpu_s;

/// Bytes of checkpoints, and the processor time that they took.
#[derive(Default)]
pub(crate) struct Used {
    gib: f64,
    own_s: f64,
    others_s: f64,
}

impl Used {
    /// Adds what some work on `bytes` bytes of a checkpoint takes; `others_s` says what the other processes have used.
    ///
    /// # Errors
    /// Those of the work; a process is gone.
    pub(crate) fn during<T>(
        &mut self,
        bytes: usize,
        others_s: impl Fn() -> Result<f64, Failure>,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.during_of(bytes, own_cpu_s, others_s, work)
    }

    /// The same where another process than this one does the work; `own_s` says what it has used.
    ///
    /// # Errors
    /// As [`Self::during`].
    pub(crate) fn during_of<T>(
        &mut self,
        bytes: usize,
        own_s: impl Fn() -> Result<f64, Failure>,
        others_s: impl Fn() -> Result<f64, Failure>,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (own, others) = (own_s()?, others_s()?);
        let done = work()?;
        self.gib += bytes as f64 / f64::from(1 << 30);
        self.own_s += own_s()? - own;
        self.others_s += others_s()? - others;
        Ok(done)
    }

    /// In words, since the last time.
    pub(crate) fn take(&mut self, own: &str, others: &str) -> String {
        let used = std::mem::take(self);
        let (own_s, others_s) = (used.own_s / used.gib, used.others_s / used.gib);
        format!("{own} {own_s:.2} s, {others} together {others_s:.2} s")
    }
}
