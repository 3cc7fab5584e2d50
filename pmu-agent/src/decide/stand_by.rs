//! Standing by: when is the other one dead?

use super::{Action, Event, Level, Machine, Millis, Phase, Refusal, Standing};

impl Machine {
    /// Follows whoever leads.
    pub(super) fn stand_by(&mut self) {
        self.phase = Phase::Standby;
        self.attempts = 0;
        self.hung = false;
        self.said_unseen = false;
        (self.beat_at, self.peer_at) = (self.now, self.now);
        self.primary_seen = false;
        if self.settings.needs_lease {
            self.act(Action::Release);
        }
        self.act(Action::Follow);
    }

    pub(super) fn heard(&mut self, standing: Standing, epoch: u64) {
        let before = self.peer.replace((standing, epoch));
        self.peer_at = self.now;
        if before.map(|(before, _)| before) != Some(standing) {
            // Beats of an earlier instance say nothing of this one.
            self.beat_at = self.now;
            self.beat_seen = false;
            (self.peer_since, self.said_unseen) = (self.now, false);
            self.say(
                Level::Info,
                format!("the peer is {standing} (epoch {epoch})"),
            );
        }
        match standing {
            Standing::Primary => self.peer_leads(epoch),
            // Nobody is to lead: none can fail.
            Standing::Ending | Standing::Demoted | Standing::Finished => {
                self.primary_seen = false;
            }
            Standing::Starting if self.left.is_some() && epoch > self.epoch => {
                self.left = None;
                self.primary_seen = true;
            }
            _ => {}
        }
        match self.phase {
            Phase::Moving { .. } => self.move_on(standing),
            // What our program was handed is too old by now. The units refuse it, if it asks them; it needn't try.
            Phase::Starting { .. } if self.peer_fenced_after_us() => {
                self.act(Action::Kill);
                self.follow_another("the peer has taken over after us: standing by");
            }
            _ => {}
        }
    }

    /// The peer has no program any more, as it was asked or for a reason of its own.
    fn move_on(&mut self, standing: Standing) {
        // Who began anew knows of nothing: its program may run on.
        let unless_held = standing == Standing::Standby;
        match standing {
            Standing::Primary | Standing::Starting | Standing::Ending => return,
            Standing::Finished => {
                let what = "not moved: the peer's program has done its work, or was stopped";
                self.say(Level::Error, what);
                return self.stand_by();
            }
            Standing::Yielded => {
                self.say(Level::Info, "the peer has stopped its program: taking over");
            }
            _ => self.say(
                Level::Warning,
                format!("the peer is {standing}: taking over"),
            ),
        }
        self.begin_take_over(unless_held);
    }

    fn peer_leads(&mut self, epoch: u64) {
        match self.phase {
            Phase::Standby => {
                (self.primary_seen, self.begins) = (true, false);
                // Over several units epochs are not always known: after a demotion it was promoted.
                let promoted = epoch == self.epoch && self.left == Some(Standing::Demoted);
                if epoch > self.epoch || promoted {
                    self.epoch = epoch;
                    self.left = None;
                    (self.beat_at, self.beat_seen) = (self.now, false);
                }
            }
            Phase::Primary if epoch > self.epoch => {
                let own = self.epoch;
                let what = format!("the peer leads in epoch {epoch}, ours was {own}: standing by");
                self.say(Level::Warning, what);
                if self.settings.kills_hung {
                    self.act(Action::Kill);
                }
                self.stand_by();
            }
            _ => {}
        }
    }

    /// The rule by which a primary counts as dead.
    pub(super) fn judge_the_primary(&mut self) {
        if let Some(why) = self.death() {
            if !self.settings.automatic {
                if !self.said_unseen {
                    self.said_unseen = true;
                    let what = format!("the primary has failed: {why}; waiting to be promoted");
                    self.say(Level::Warning, what);
                }
                return;
            }
            self.say(Level::Warning, format!("the primary has failed: {why}"));
            self.begin_take_over(self.left.is_some() && self.unless_held);
            self.by_itself = true;
            return;
        }
        self.end_what_lingers();
        let unseen = !self.primary_seen && self.left.is_none() && !self.peer_was_stopped();
        if unseen && self.peer_is_silent() && !self.said_unseen {
            self.said_unseen = true;
            let what =
                "no primary was seen since the start, so none has failed; promote starts one";
            self.say(Level::Warning, what);
        }
        self.judge_the_peers_start();
    }

    /// A program of ours that nobody has relieved, and that was fenced or is dying: it is in the way of the next one, for which its end is waited.
    fn end_what_lingers(&mut self) {
        let over = self.left.is_some() && self.now - self.left_at >= self.settings.grace_ms;
        if over && self.has_program && !self.killed {
            self.killed = true;
            self.act(Action::Kill);
        }
    }

    /// A recovery takes as long as it takes: what is behind it is left to people.
    fn judge_the_peers_start(&mut self) {
        let starts = matches!(self.peer, Some((Standing::Starting, _))) && !self.peer_is_silent();
        let since = self.now - self.peer_since;
        if starts && since >= self.settings.start_timeout_ms && !self.said_unseen {
            self.said_unseen = true;
            let what = format!(
                "the peer takes over or starts since {since} ms; promote --force takes over from it"
            );
            self.say(Level::Warning, what);
        }
    }

    fn death(&self) -> Option<&'static str> {
        if self.now < self.not_before {
            return None;
        }
        let silence = self.settings.silence_ms;
        let said = self.peer.filter(|_| !self.peer_is_silent());
        let said = said.map(|(standing, _)| standing);
        if self.left == Some(Standing::Demoted) {
            return None;
        }
        if self.left.is_some() {
            // It was our own program. The others come first, and it must be gone: what it holds on this computer is needed again.
            let over = self.now - self.left_at >= self.settings.grace_ms && !self.has_program;
            let others = said.is_some_and(|said| said.leads() || said == Standing::Starting);
            return (over && !others)
                .then_some("our program has ended, and nobody else has taken over");
        }
        let left_alone = matches!(
            said,
            Some(Standing::Finished | Standing::Starting | Standing::Ending)
        );
        if left_alone || !self.primary_seen {
            return None;
        }
        if matches!(said, Some(Standing::Dead | Standing::GivenUp)) {
            return Some("its agent says so");
        }
        let stopped = !self.settings.beats || self.beat_is_silent_for(silence);
        // Who never beats is not looked for at the units.
        let units_seen = self.units_reachable || !self.settings.beats;
        // Agent and program were lost, and the agent is back: it knows of nothing. Beats count from its first word.
        if said == Some(Standing::Standby) && units_seen {
            let silent = stopped && self.now - self.peer_since >= silence;
            return silent.then_some("its agent stands by, and no beat is seen");
        }
        // One that was starting may still be at it; one whose work was done is no failure.
        let patience = match self.peer {
            Some((Standing::Finished | Standing::Ending, _)) => Millis::MAX,
            Some((Standing::Starting, _)) => self.settings.start_timeout_ms,
            _ => silence,
        };
        let silent = self.now - self.peer_at >= patience;
        if said.is_none() && silent && stopped && units_seen {
            return Some("its agent is silent, and its beat has stopped");
        }
        // Its own agent comes first: that can kill it, and knows more.
        let patience = self.beat_patience() + silence;
        let hangs = self.settings.beats && self.beat_is_silent_for(patience);
        (said == Some(Standing::Primary) && hangs)
            .then_some("its beat has stopped for long, whatever its agent says")
    }

    /// Takes over, with the lease first where one is needed.
    pub(super) fn begin_take_over(&mut self, unless_held: bool) {
        (self.attempts, self.unless_held, self.by_itself) = (0, unless_held, false);
        if self.settings.needs_lease {
            self.phase = Phase::Acquiring { unless_held };
            self.act(Action::Acquire);
            return;
        }
        self.phase = Phase::TakingOver;
        self.act(Action::TakeOver { unless_held });
    }

    pub(super) fn lease(&mut self, held: bool) {
        match (self.phase, held) {
            // It may have taken long, and the one that seemed to have failed has come back meanwhile: with a lease or without, as that is nobody's proof.
            (Phase::Acquiring { .. }, true) if self.by_itself && self.death().is_none() => {
                let what =
                    "the lease is got, and nobody seems to have failed any more: standing by";
                self.say(Level::Warning, what);
                self.stand_by();
                self.primary_seen = true;
            }
            (Phase::Acquiring { unless_held }, true) => {
                self.phase = Phase::TakingOver;
                self.act(Action::TakeOver { unless_held });
            }
            (Phase::Acquiring { .. }, false) => {
                self.say(
                    Level::Warning,
                    "the lease is not to be had now: standing by",
                );
                let seen = self.primary_seen;
                self.stand_by();
                // Whoever holds it must show that it lives.
                self.primary_seen = seen;
                // Who waits for an answer gets one, and etcd some rest.
                self.not_before = self.now + self.settings.silence_ms;
                // It was to lead if nobody does, and nobody has been seen: it asks again, for no more, as etcd may come late.
                if self.begins && self.unless_held && !seen {
                    self.primary_seen = true;
                    (self.left, self.left_at) = (Some(Standing::Dead), self.now);
                }
            }
            (Phase::Primary, false) => {
                let what = "the lease is lost; the program goes on until somebody fences it";
                self.say(Level::Warning, what);
            }
            _ => {}
        }
    }

    pub(super) fn taken_over(&mut self, epoch: u64) {
        if self.phase != Phase::TakingOver {
            return;
        }
        (self.fenced_in, self.epoch) = (epoch, self.epoch.max(epoch));
        (self.left, self.unless_held, self.begins) = (None, false, false);
        if self.peer_fenced_after_us() {
            self.follow_another("the peer has taken over after us: standing by");
            return;
        }
        self.start();
    }

    pub(super) fn not_taken_over(&mut self, reason: Refusal) {
        if self.phase != Phase::TakingOver {
            return;
        }
        let what = match reason {
            Refusal::Held => "somebody else leads: standing by",
            Refusal::Units => "the units don't let us take over: standing by, and trying again",
        };
        self.say(Level::Warning, what);
        self.stand_by();
        // Who failed before has still failed; only the waiting begins anew.
        self.primary_seen = true;
        self.not_before = self.now + self.settings.silence_ms;
        if reason == Refusal::Units {
            // A fence may stand already: whoever led doesn't any more, and the others are told that nobody does.
            (self.left, self.left_at) = (Some(Standing::Dead), self.now);
        }
        if reason == Refusal::Held {
            self.begins = false;
            self.left = None;
        }
    }

    pub(super) fn promote(&mut self, force: bool) {
        self.begins = false;
        match self.phase {
            Phase::Standby if force => self.begin_take_over(false),
            Phase::Standby => {
                let silent = self.peer_is_silent();
                let standing = self.peer.filter(|_| !silent).map(|(standing, _)| standing);
                match standing {
                    Some(Standing::Primary) => {
                        self.phase = Phase::Moving { since: self.now };
                        self.act(Action::AskYield);
                    }
                    // It stops by itself.
                    Some(Standing::Ending) => self.phase = Phase::Moving { since: self.now },
                    Some(Standing::Starting) => self.say(
                        Level::Error,
                        "not promoted: the peer is starting its program; try again, or use force",
                    ),
                    _ => self.begin_take_over(true),
                }
            }
            Phase::GivenUp => self.begin_take_over(false),
            // The lease is waited for already; who uses force is asked no more than that.
            Phase::Acquiring { unless_held } => {
                let unless_held = unless_held && !force;
                (self.unless_held, self.by_itself) = (unless_held, false);
                self.phase = Phase::Acquiring { unless_held };
                self.say(Level::Info, "promoted: waiting for the lease");
            }
            _ => self.say(Level::Warning, "not promoted: this agent leads already"),
        }
    }

    pub(super) fn judge_the_move(&mut self, since: u64) {
        // The other agent kills a program that doesn't end, and that takes it as long.
        if self.now - since >= 2 * self.settings.stop_timeout_ms {
            self.say(
                Level::Error,
                "the move has failed: the peer didn't stop its program",
            );
            self.stand_by();
        } else if self.peer_is_silent() {
            self.say(Level::Error, "the move has failed: the peer is silent");
            self.stand_by();
            self.primary_seen = true;
        }
    }

    /// Asks the machine as if time alone had passed.
    pub fn tick(&mut self, now: Millis) -> Vec<Action> {
        self.step(now, Event::Tick)
    }
}
