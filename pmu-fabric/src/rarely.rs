//! Log lines that anybody on the network can cause: not more than one a second.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const PAUSE: Duration = Duration::from_secs(1);

/// Says when it is time for a line, and counts those that were left out.
#[derive(Debug, Default)]
pub struct Rarely(Mutex<(Option<Instant>, u64)>);

impl Rarely {
    /// How many lines were left out since the last one, if it is time for another.
    pub fn now(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let (last, suppressed) = *state;
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            state.1 += 1;
            return None;
        }
        *state = (Some(Instant::now()), 0);
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_and_the_count_of_the_others() {
        let rarely = Rarely::default();
        assert_eq!(rarely.now(), Some(0));
        assert_eq!((rarely.now(), rarely.now()), (None, None));
        rarely.0.lock().0 = Instant::now().checked_sub(PAUSE);
        assert_eq!(rarely.now(), Some(2));
    }
}
