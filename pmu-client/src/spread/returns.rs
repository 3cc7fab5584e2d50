//! Attempts to reach missing members again, beside what a primary does.
//!
//! At most one attempt for each missing member is under way. The first begins [`crate::OpenOptions::rejoin`] after the member was missed, each
//! later one after twice the pause, up to [`PAUSE_MAX`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The longest pause between two attempts.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often whoever waits for an attempt looks.
const LOOK: Duration = Duration::from_millis(1);

/// An attempt that is under way, as its two sides share it.
type Shared<T> = Arc<Mutex<Option<T>>>;

/// The side that attempts.
pub(super) struct Attempting<T>(Shared<T>);

impl<T> Attempting<T> {
    /// Whether nobody waits for it any more.
    pub(super) fn is_given_up(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    pub(super) fn done(self, result: T) {
        *self.0.lock() = Some(result);
    }
}

struct Slot<T> {
    /// When the next attempt may begin; none while the member isn't missed.
    due: Option<Instant>,
    pause: Duration,
    under_way: Option<Shared<T>>,
}

/// See the module.
pub(super) struct Returns<T> {
    /// None: nobody is called back.
    first_pause: Option<Duration>,
    slots: Vec<Slot<T>>,
}

impl<T> std::fmt::Debug for Returns<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Returns").finish_non_exhaustive()
    }
}

/// What is to be done about a missing member.
pub(super) enum Next<T> {
    Nothing,
    /// Begin an attempt with this.
    Attempt(Attempting<T>),
    /// One has ended.
    Ended(T),
}

impl<T> Returns<T> {
    pub(super) fn new(members: usize, first_pause: Option<Duration>) -> Self {
        let slot = || Slot {
            due: None,
            pause: first_pause.unwrap_or(PAUSE_MAX),
            under_way: None,
        };
        Self {
            first_pause,
            slots: (0..members).map(|_| slot()).collect(),
        }
    }

    /// A member takes part.
    pub(super) fn is_back(&mut self, member: usize) {
        let slot = &mut self.slots[member];
        slot.due = None;
        slot.under_way = None;
        slot.pause = self.first_pause.unwrap_or(PAUSE_MAX);
    }

    /// Nobody is called back any more; what attempts come to that are under way is given back to the units.
    pub(super) fn stop(&mut self) {
        self.first_pause = None;
        self.slots.iter_mut().for_each(|slot| slot.under_way = None);
    }

    /// Looks after a member that is missing. Doesn't block.
    pub(super) fn next(&mut self, member: usize, now: Instant) -> Next<T> {
        if self.first_pause.is_none() {
            return Next::Nothing;
        }
        let slot = &mut self.slots[member];
        if let Some(result) = slot.take_ended() {
            slot.wait_again(now);
            return result.map_or(Next::Nothing, Next::Ended);
        }
        match slot.due {
            None => slot.due = Some(now + slot.pause),
            Some(due) if due <= now && slot.under_way.is_none() => {
                let shared = Arc::default();
                slot.under_way = Some(Arc::clone(&shared));
                return Next::Attempt(Attempting(shared));
            }
            Some(_) => {}
        }
        Next::Nothing
    }

    /// Waits for the attempt that is under way, if there is one. Its time limits are those of a connection.
    pub(super) fn wait(&mut self, member: usize) -> Option<T> {
        let slot = &mut self.slots[member];
        while slot.under_way.is_some() {
            if let Some(result) = slot.take_ended() {
                return result;
            }
            std::thread::sleep(LOOK);
        }
        None
    }
}

impl<T> Slot<T> {
    /// What an attempt came to that has ended: nothing if its thread has died.
    fn take_ended(&mut self) -> Option<Option<T>> {
        let shared = self.under_way.as_ref()?;
        // In this order: an attempt that has ended has told before.
        let is_alone = Arc::strong_count(shared) == 1;
        let result = shared.lock().take();
        if result.is_none() && !is_alone {
            return None;
        }
        self.under_way = None;
        Some(result)
    }

    fn wait_again(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.due = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(1);

    fn attempt(returns: &mut Returns<u32>, now: Instant) -> Option<Attempting<u32>> {
        match returns.next(0, now) {
            Next::Attempt(attempting) => Some(attempting),
            _ => None,
        }
    }

    #[test]
    fn d07_attempts_come_one_at_a_time_and_ever_more_rarely() {
        let begin = Instant::now();
        let mut returns = Returns::new(1, Some(FIRST));
        let (mut now, mut pauses, mut last) = (begin, Vec::new(), begin);
        while pauses.len() < 8 {
            if let Some(attempting) = attempt(&mut returns, now) {
                pauses.push((now - last).as_secs());
                last = now;
                // However long it takes, there is no second one.
                for later in 1..100 {
                    assert!(attempt(&mut returns, now + later * PAUSE_MAX).is_none());
                }
                assert!(!attempting.is_given_up());
                attempting.done(7);
                assert!(matches!(returns.next(0, now), Next::Ended(7)));
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        returns.is_back(0);
        assert!(attempt(&mut returns, now).is_none());
        assert!(attempt(&mut returns, now + FIRST).is_some());
    }

    #[test]
    fn d07_an_attempt_whose_thread_dies_is_followed_by_another_and_none_is_made_where_nobody_asks()
    {
        let now = Instant::now();
        let mut returns = Returns::new(1, Some(FIRST));
        assert!(attempt(&mut returns, now).is_none());
        drop(attempt(&mut returns, now + FIRST).unwrap());
        assert!(attempt(&mut returns, now + FIRST).is_none());
        let again = attempt(&mut returns, now + 4 * FIRST).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| again.done(9));
            assert_eq!(returns.wait(0), Some(9));
        });
        assert_eq!(returns.wait(0), None);
        let left = attempt(&mut returns, now + 100 * FIRST).unwrap();
        drop(returns);
        assert!(left.is_given_up());
        let mut never = Returns::<u32>::new(1, None);
        assert!((0..100).all(|later| attempt(&mut never, now + later * FIRST).is_none()));
    }
}
