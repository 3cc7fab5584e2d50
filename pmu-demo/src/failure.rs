//! When the primary fails: a moment drawn from the seed, somewhere between 10 and 90 % of its run.

use std::time::{Duration, Instant};

/// Bounds of the moment, as shares of the run.
const EARLIEST: f64 = 0.1;
const LATEST: f64 = 0.9;

/// Waits for the moment.
///
/// How long a run takes is not known before; it is estimated when the first tenth of the bytes is acknowledged. The moment is one of
/// time, so that it may lie in the middle of a set too, while no document is acknowledged.
#[derive(Debug)]
pub struct Failure {
    /// Where in the run, between the bounds.
    share: f64,
    begun: Instant,
    due: Option<Instant>,
}

impl Failure {
    /// The moment at `share` of a run that begins now.
    #[must_use]
    pub fn at(share: f64, begun: Instant) -> Self {
        Self {
            share: share.clamp(EARLIEST, LATEST),
            begun,
            due: None,
        }
    }

    /// The bounds between which a share is to be drawn.
    #[must_use]
    pub const fn bounds() -> (f64, f64) {
        (EARLIEST, LATEST)
    }

    /// Takes the share of the work that is acknowledged by `now`.
    pub fn progress(&mut self, done: f64, now: Instant) {
        if done >= LATEST {
            // The estimate was too long: later it could be over.
            self.due = Some(now);
        } else if done >= EARLIEST && self.due.is_none() {
            let whole = now.duration_since(self.begun).div_f64(done);
            self.due = Some((self.begun + whole.mul_f64(self.share)).max(now));
        }
    }

    /// Takes that nothing more is done before the failure.
    pub fn nothing_more(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// How long until the moment; `None` while it is not known.
    #[must_use]
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_is_known_after_a_tenth_and_never_after_nine() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        let mut failure = Failure::at(0.5, begun);
        failure.progress(0.05, after(50));
        assert_eq!(failure.due_in(after(50)), None);
        failure.progress(0.1, after(100));
        assert_eq!(failure.due_in(after(100)), Some(Duration::from_millis(400)));
        // Slower than expected: the moment stays.
        failure.progress(0.2, after(450));
        assert_eq!(failure.due_in(after(450)), Some(Duration::from_millis(50)));
        // Nothing more comes: nothing is waited for.
        failure.nothing_more(after(455));
        assert_eq!(failure.due_in(after(455)), Some(Duration::ZERO));
        // Faster than expected: it comes before the end.
        let mut failure = Failure::at(0.5, begun);
        failure.progress(0.95, after(460));
        assert_eq!(failure.due_in(after(460)), Some(Duration::ZERO));
    }
}
