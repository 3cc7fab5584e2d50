//! The simulated world and the programs in it: threads of which exactly one has the turn at any time.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};

use crate::state::{RequestStage, State, Status, Wait};
use crate::threads::Threads;
use crate::unit::{Call, Reply};

/// See the module.
pub(crate) struct World {
    state: Mutex<State>,
    /// What the world's clock shows at its beginning.
    base: Instant,
    /// For [`pmu_fabric::Connection::event_fd`], which no simulated program sleeps on.
    pub(crate) nothing: Arc<File>,
}

impl World {
    pub(crate) fn new(state: State, nothing: Arc<File>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
            base: Instant::now(),
            nothing,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Gives the turn away, and returns when `me` has it again.
    pub(crate) fn pass<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        me: usize,
    ) -> MutexGuard<'a, State> {
        let next = state.schedule();
        state.current = next;
        if next != me {
            state.processes[next].turn.notify_one();
            let turn = Arc::clone(&state.processes[me].turn);
            while state.current != me {
                turn.wait(&mut state);
            }
        }
        state
    }

    /// Lets others go on, perhaps.
    pub(crate) fn yield_turn(&self, me: usize) {
        let state = self.state();
        drop(self.pass(state, me));
    }

    /// Blocks until something has come, or a time has passed by the process' own clock.
    pub(crate) fn wait(&self, me: usize, wait: Wait, timeout: Option<Duration>) {
        let mut state = self.state();
        if state.has_come(wait) {
            return;
        }
        let process = &state.processes[me];
        let is_over = process.is_killed && !matches!(wait, Wait::End(_));
        let now_ns = state.now_ns + process.clock_ahead_ns;
        let deadline = timeout.map(|timeout| now_ns.saturating_add(nanoseconds(timeout)));
        if !is_over {
            state.processes[me].status = Status::Waiting(wait, deadline);
        }
        drop(self.pass(state, me));
    }

    /// Asks a unit's control service, and waits for its answer.
    pub(crate) fn call(
        &self,
        me: usize,
        unit: usize,
        call: Call,
        timeout: Duration,
    ) -> Option<Reply> {
        let request = {
            let mut state = self.state();
            if state.processes[me].is_killed {
                return None;
            }
            state.request(me, unit, call)
        };
        self.wait(me, Wait::Answer(request), Some(timeout));
        let mut state = self.state();
        let found = &mut state.requests[request];
        match &mut found.stage {
            RequestStage::Delivered(reply) => reply.take(),
            _ => {
                found.is_abandoned = true;
                None
            }
        }
    }

    /// Tells a unit something without waiting.
    pub(crate) fn tell(&self, me: usize, unit: usize, call: Call) {
        let mut state = self.state();
        if !state.processes[me].is_killed {
            let request = state.request(me, unit, call);
            state.requests[request].is_abandoned = true;
        }
    }

    pub(crate) fn now(&self, me: usize) -> Instant {
        let state = self.state();
        self.base + Duration::from_nanos(state.now_ns + state.processes[me].clock_ahead_ns)
    }

    pub(crate) fn date(&self, me: usize) -> SystemTime {
        let state = self.state();
        // The second of January 2030.
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_542_400);
        let process = &state.processes[me];
        let passed = state.now_ns + process.clock_ahead_ns;
        began + Duration::from_nanos(passed.saturating_add_signed(process.date_off_ns))
    }

    /// Starts a program in a thread; it runs when its turn comes.
    pub(crate) fn start(
        self: &Arc<Self>,
        threads: &Threads,
        name: &str,
        body: impl FnOnce(usize) + Send + 'static,
    ) -> usize {
        let (me, turn) = {
            let mut state = self.state();
            let me = state.add_process(name, false);
            (me, Arc::clone(&state.processes[me].turn))
        };
        let world = Arc::clone(self);
        threads.run(Box::new(move || {
            let mut state = world.state();
            while state.current != me {
                turn.wait(&mut state);
            }
            drop(state);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(me)));
            world.end(me, ended.err());
        }));
        me
    }

    /// A program's thread has come to its end: its connections are closed, and the turn is another's.
    fn end(&self, me: usize, panic: Option<Box<dyn std::any::Any + Send>>) {
        let mut state = self.state();
        if let Some(panic) = panic {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let name = state.processes[me].name.clone();
            let text = text.unwrap_or_else(|| "no message".to_owned());
            state.violate(format!("{name} panicked: {text}"));
        }
        state.processes[me].status = Status::Ended;
        note!(state, "{} ends", state.processes[me].name);
        state.wake(|wait| wait == Wait::End(me));
        let next = state.schedule();
        state.current = next;
        state.processes[next].turn.notify_one();
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
