//! Leading: our program starts, works, hangs, ends.

use super::{Action, Ending, Level, Machine, Millis, Phase, Standing};

/// A snapshot of which nothing is heard for so long is given up, or for ten intervals where these are longer.
const SNAPSHOT_PATIENCE_MS: Millis = 60_000;

impl Machine {
    pub(super) fn start(&mut self) {
        self.attempts += 1;
        // One that was fenced may still be at its end: it has the ports and files that the next one needs.
        if self.has_program {
            self.say(
                Level::Warning,
                "the earlier program is still there: killing it",
            );
            self.act(Action::Kill);
        }
        (self.has_program, self.killed, self.epoch_told) = (true, false, false);
        self.phase = Phase::Starting { since: self.now };
        self.act(Action::Start);
    }

    /// From the regions once more: an instance that was not ready may have stored something, and somebody else may have come and gone.
    pub(super) fn start_again(&mut self) {
        // Not from a peer that was told to take over meanwhile.
        if self.peer_is_ahead() {
            self.follow_another("another instance leads: standing by");
            return;
        }
        let attempts = self.attempts;
        self.begin_take_over(false);
        self.attempts = attempts;
    }

    pub(super) fn ready(&mut self, epoch: u64, held: bool) {
        self.epoch_told = epoch > 0;
        match self.phase {
            Phase::Starting { .. } if !held && self.came_late(epoch) => {
                let fence = self.fenced_in;
                let what = format!(
                    "the program leads in epoch {epoch}, our fence was {fence}: somebody came between, and what it was handed is too old; \
                     ending it"
                );
                self.say(Level::Error, what);
                // Its end is an event; what follows begins from the regions.
                self.epoch = self.epoch.max(epoch);
                self.act(Action::Kill);
            }
            Phase::Starting { .. } => self.lead(epoch),
            Phase::Primary => {
                self.epoch = self.epoch.max(epoch);
                // It has a new connection: what it said over the old one may be lost.
                self.snapshot_asked = None;
            }
            _ => {}
        }
    }

    /// Opening raises the epoch by one: if it was raised more often, others fenced or opened the region since our fence.
    fn came_late(&self, epoch: u64) -> bool {
        self.fenced_in > 0 && epoch > self.fenced_in + 1
    }

    pub(super) fn lead(&mut self, epoch: u64) {
        self.phase = Phase::Primary;
        self.epoch = self.epoch.max(epoch);
        self.attempts = 0;
        self.left = None;
        (self.hung, self.lease_left) = (false, false);
        self.health_failures = 0;
        (self.snapshot_asked, self.snapshot_at) = (None, self.now);
        self.beat_at = self.now;
        self.beat_seen = false;
        let epoch = self.epoch;
        self.say(Level::Info, format!("primary in epoch {epoch}"));
    }

    /// The others may take over at once: they fence first, so what is still on its way from this one counts no more. We ourselves wait for its end.
    pub(super) fn dying(&mut self) {
        if self.phase == Phase::Primary {
            self.say(Level::Error, "the program is dying");
            self.leave(Standing::Dead);
        }
    }

    pub(super) fn exited(&mut self, clean: bool) {
        self.has_program = false;
        match self.phase {
            Phase::Starting { .. } => {
                self.phase = Phase::Asking;
                self.look_for_leader();
            }
            Phase::Primary if clean => {
                self.phase = Phase::Closing;
                self.look_for_leader();
            }
            Phase::Primary => {
                self.say(Level::Error, "the program has ended");
                self.leave(Standing::Dead);
            }
            Phase::Yielding { to_peer: true, .. } => self.leave(Standing::Yielded),
            Phase::Yielding { .. } => {
                self.say(Level::Info, "demoted: standing by");
                self.leave(Standing::Demoted);
            }
            Phase::Stopping { .. } => self.end(0),
            _ => {}
        }
    }

    /// Stands by after a program of ours, and tells what became of it until somebody leads.
    fn leave(&mut self, what: Standing) {
        self.stand_by();
        self.left = Some(what);
        self.left_at = self.now;
    }

    fn end(&mut self, code: u8) {
        self.phase = Phase::Ended;
        if self.settings.needs_lease {
            self.act(Action::Release);
        }
        self.act(Action::Exit { code });
    }

    /// It will end by itself; if it doesn't, it can harm nobody.
    pub(super) fn fenced(&mut self) {
        if self.phase != Phase::Primary {
            return;
        }
        self.say(
            Level::Warning,
            "our program was fenced: somebody else leads",
        );
        self.stand_by();
        self.primary_seen = true;
    }

    /// Our program may have opened the region without having said so: that raises the epoch by one.
    fn look_for_leader(&mut self) {
        let own_up_to = match self.epoch {
            0 => 0,
            epoch if self.epoch_told => epoch,
            epoch => epoch + 1,
        };
        self.act(Action::LookForLeader { own_up_to });
    }

    /// A program that ended before it was ready may have met a faster one, and one that ended well may have been fenced.
    pub(super) fn leader(&mut self, other: bool) {
        // The units may not have answered, or the peer's program has not opened its regions yet.
        let other = other || self.peer_is_ahead();
        match self.phase {
            Phase::Asking => self.not_ready(other),
            Phase::Closing if other => {
                self.follow_another(
                    "our program has ended: it was fenced, and somebody else leads",
                );
            }
            Phase::Closing => {
                self.say(Level::Info, "the program has done its work");
                self.end(0);
            }
            _ => {}
        }
    }

    fn not_ready(&mut self, other: bool) {
        if other {
            self.follow_another("another instance leads: standing by");
            return;
        }
        let (done, all) = (self.attempts, self.settings.start_attempts);
        if done < all {
            let what = format!("the program did not start (attempt {done} of {all}): trying again");
            self.say(Level::Error, what);
            self.phase = Phase::Pausing {
                until: self.now + self.settings.start_pause_ms,
            };
            return;
        }
        let what = format!(
            "GIVEN UP: the program did not start in {all} attempts. Everything that was recovered is kept; mend it, then promote"
        );
        self.say(Level::Error, what);
        self.phase = Phase::GivenUp;
    }

    pub(super) fn follow_another(&mut self, why: &str) {
        self.say(Level::Warning, why);
        self.stand_by();
        self.primary_seen = true;
    }

    pub(super) fn judge_the_start(&mut self, since: Millis) {
        let late = self.now - since >= self.settings.start_timeout_ms;
        if late && self.has_program && !self.killed {
            let after = self.settings.start_timeout_ms;
            self.say(
                Level::Error,
                format!("the program is not ready after {after} ms"),
            );
            // Its end is an event, and goes on from there.
            self.killed = true;
            self.act(Action::Kill);
        }
    }

    pub(super) fn health(&mut self, good: bool) {
        if self.phase != Phase::Primary {
            return;
        }
        self.health_failures = if good { 0 } else { self.health_failures + 1 };
        if self.health_failures >= self.settings.health_failures_max {
            self.hangs("its health command fails");
        }
    }

    pub(super) fn judge_our_program(&mut self) {
        // Twice the silence: a pause is no hang.
        if self.settings.beats && self.beat_is_silent_for(self.beat_patience()) {
            self.hangs(match self.beat_seen {
                true => "its beat has stopped",
                false => {
                    "it has not beaten yet; regions.beat = \"none\" is for one that never does"
                }
            });
        } else if self.hung && self.health_failures == 0 {
            self.hung = false;
            self.say(Level::Warning, "the program goes on");
        }
        self.judge_the_lease();
        self.snapshot_if_due();
    }

    /// Whoever has the lease keeps the others from taking over. So it is held only as long as our program seems to work: not for one that hangs
    /// and is left alone, nor out of sight of the units, where nobody can tell.
    fn judge_the_lease(&mut self) {
        if !self.settings.needs_lease {
            return;
        }
        let (beats, silence) = (self.settings.beats, self.settings.silence_ms);
        // Whether the units can be seen or not.
        let unseen = beats && self.now - self.beat_at >= self.beat_patience() + silence;
        let left_alone = self.hung && !self.settings.kills_hung;
        if !self.lease_left && (unseen || left_alone) {
            let what = "our program is not seen to work: giving the lease back, so that the other agent may take over";
            self.say(Level::Warning, what);
            (self.lease_left, self.beaten_since) = (true, false);
            self.act(Action::Release);
        } else if self.lease_left && !self.hung && (!beats || self.beaten_since) {
            self.say(Level::Info, "our program works: asking for the lease again");
            self.lease_left = false;
            self.act(Action::Acquire);
        }
    }

    fn hangs(&mut self, why: &str) {
        if self.hung {
            return;
        }
        self.hung = true;
        self.say(Level::Error, format!("the program hangs: {why}"));
        if self.settings.kills_hung {
            self.act(Action::Kill);
        }
    }

    fn snapshot_if_due(&mut self) {
        let Some(every) = self.settings.snapshot_every_ms else {
            return;
        };
        let patience = SNAPSHOT_PATIENCE_MS.max(10 * every);
        if let Some(asked) = self.snapshot_asked
            && self.now - asked >= patience
        {
            self.say(
                Level::Warning,
                format!("nothing was heard of a snapshot for {patience} ms: asking for another"),
            );
            self.snapshot_asked = None;
        }
        if self.snapshot_asked.is_some() || self.now - self.snapshot_at < every || self.hung {
            return;
        }
        self.snapshot_id += 1;
        self.snapshot_asked = Some(self.now);
        self.snapshot_at = self.now;
        let id = self.snapshot_id;
        self.act(Action::Snapshot { id });
    }

    pub(super) fn snapshot_done(&mut self, id: u64) {
        if id == self.snapshot_id {
            self.snapshot_asked = None;
        }
    }

    pub(super) fn yield_to_peer(&mut self) {
        if self.phase == Phase::Primary {
            self.say(Level::Info, "the peer is to lead: stopping the program");
            self.phase = Phase::Yielding {
                since: self.now,
                to_peer: true,
            };
            self.act(Action::Order(Ending::Stop));
        }
    }

    pub(super) fn demote(&mut self) {
        self.begins = false;
        match self.phase {
            Phase::Primary => {
                self.say(Level::Info, "demoted: stopping the program");
                self.phase = Phase::Yielding {
                    since: self.now,
                    to_peer: false,
                };
                self.act(Action::Order(Ending::Stop));
            }
            Phase::GivenUp => self.leave(Standing::Demoted),
            // Its program has ended, and was to be relieved.
            Phase::Standby if self.left.is_some() => self.left = Some(Standing::Demoted),
            Phase::Standby => {}
            _ => self.say(
                Level::Warning,
                "not demoted: it is neither primary nor standby now",
            ),
        }
    }

    pub(super) fn stop(&mut self) {
        match self.phase {
            Phase::Stopping { .. } => self.act(Action::Kill),
            _ if self.has_program => {
                self.killed = false;
                self.phase = Phase::Stopping { since: self.now };
                self.act(Action::Order(Ending::Stop));
            }
            _ => self.end(0),
        }
    }

    pub(super) fn judge_the_end(&mut self, since: Millis) {
        let late = self.now - since >= self.settings.stop_timeout_ms;
        if late && self.has_program && !self.killed {
            self.say(Level::Error, "the program doesn't end: killing it");
            self.killed = true;
            self.act(Action::Kill);
        }
    }
}
