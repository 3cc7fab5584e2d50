//! The time that scrubbing goes by, and the sign to stop.

use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

/// The time that scrubbing goes by. Tests have their own.
pub trait Clock: Send + Sync {
    /// The date.
    fn date(&self) -> SystemTime;

    /// Time since some moment, which never goes back.
    fn elapsed(&self) -> Duration;

    /// Blocks until the time is over or `stop` is given: between two reads, to keep a rate.
    fn pause(&self, time: Duration, stop: &Stop);

    /// The same where nothing is to be done before.
    fn idle(&self, time: Duration, stop: &Stop) {
        self.pause(time, stop);
    }
}

/// The system's time.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn date(&self) -> SystemTime {
        SystemTime::now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn pause(&self, time: Duration, stop: &Stop) {
        stop.wait(time);
    }
}

/// The sign to stop. It is given once.
#[derive(Debug, Default)]
pub struct Stop {
    given: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Whether it was given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        *self.given.lock()
    }

    /// Gives it, and wakes whoever waits.
    pub fn give(&self) {
        *self.given.lock() = true;
        self.changed.notify_all();
    }

    /// Blocks until it is given, or the time is over.
    pub fn wait(&self, time: Duration) {
        let mut given = self.given.lock();
        let until = Instant::now() + time;
        while !*given && !self.changed.wait_until(&mut given, until).timed_out() {}
    }
}

/// Keeps a rate: what was read is paid for before more is.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_s: u64,
    /// When what was read so far is paid for, by [`Clock::elapsed`].
    free_at: Duration,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: bytes_per_s.max(1),
            free_at: Duration::ZERO,
        }
    }

    /// Blocks until `bytes` more may be read; false if the sign to stop was given.
    pub(crate) fn take(&mut self, bytes: u64, clock: &dyn Clock, stop: &Stop) -> bool {
        let now = clock.elapsed();
        let wait = self.free_at.saturating_sub(now);
        if !wait.is_zero() {
            clock.pause(wait, stop);
        }
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.free_at = self.free_at.max(now).saturating_add(cost);
        !stop.is_given()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes where somebody pauses, and where bytes are copied.
    #[derive(Default)]
    struct Fake(Mutex<Duration>);

    impl Clock for Fake {
        fn date(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + self.elapsed()
        }

        fn elapsed(&self) -> Duration {
            *self.0.lock()
        }

        fn pause(&self, time: Duration, _: &Stop) {
            *self.0.lock() += time;
        }
    }

    #[test]
    fn b07_no_more_is_read_than_the_rate_allows_at_any_time() {
        let (clock, stop) = (Fake::default(), Stop::default());
        let (rate, step) = (1_000_000, 300_000);
        let mut pace = Pace::new(rate);
        let mut read = 0;
        for index in 0..100 {
            assert!(pace.take(step, &clock, &stop));
            read += step;
            let allowed = (clock.elapsed().as_secs_f64() * rate as f64) as u64 + step;
            assert!(read <= allowed, "{read} of {allowed}");
            // What was not used of an idle time is not made up for.
            if index % 10 == 9 {
                clock.pause(Duration::from_secs(20), &stop);
            }
        }
        // Nor is it slower than it may be.
        assert!(clock.elapsed() <= Duration::from_secs(30 + 10 * 20));
    }

    #[test]
    fn b07_the_sign_to_stop_ends_a_pause_at_once() {
        let stop = std::sync::Arc::new(Stop::default());
        let giver = std::sync::Arc::clone(&stop);
        let clock = SystemClock::default();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(move || giver.give());
            clock.pause(Duration::from_secs(600), &stop);
        });
        assert!(stop.is_given() && begun.elapsed() < Duration::from_secs(60));
        assert!(!Pace::new(1).take(1, &clock, &stop));
    }
}
