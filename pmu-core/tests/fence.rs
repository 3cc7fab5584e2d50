//! Who may write: each rule by itself, and any order of events.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};

use pmu_core::fence::*;
use pmu_format::{Epoch, Mode, PrincipalName, Rights};
use proptest::prelude::*;

fn principal(name: &str) -> PrincipalName {
    PrincipalName::new(name).unwrap()
}

fn opener(session: u64, name: &str) -> Opener {
    Opener {
        session: SessionId(session),
        principal: principal(name),
        allowed: Rights::READ | Rights::APPEND | Rights::CLEAR,
        now_nanoseconds: session * 10,
        goes_on_from: None,
    }
}

fn heir(session: u64, name: &str, from: u64) -> Opener {
    Opener {
        goes_on_from: Some(Epoch(from)),
        ..opener(session, name)
    }
}

fn actions(table: &mut WriterTable) -> Vec<Action> {
    std::iter::from_fn(|| table.poll_action()).collect()
}

fn log_table() -> WriterTable {
    WriterTable::new(Mode::Append, Epoch(7))
}

fn persist(epoch: u64, ticket: u64) -> Action {
    Action::PersistEpoch {
        epoch: Epoch(epoch),
        ticket: Ticket(ticket),
    }
}

fn grant(session: u64, epoch: u64, rights: Rights) -> Action {
    Action::Grant {
        session: SessionId(session),
        epoch: Epoch(epoch),
        rights,
    }
}

fn refuse(session: u64, reason: RefuseReason) -> Action {
    Action::Refuse {
        session: SessionId(session),
        reason,
    }
}

fn invalidate(session: u64) -> Action {
    Action::InvalidateWindows {
        session: SessionId(session),
    }
}

fn done(fence: u64, epoch: u64) -> Action {
    Action::FenceDone {
        fence: FenceId(fence),
        epoch: Epoch(epoch),
    }
}

const WRITER: Rights = Rights::READ.union(Rights::APPEND);

/// A table with session 1 of "old" as primary in epoch 8.
fn with_primary() -> WriterTable {
    let mut table = log_table();
    table.open_primary(opener(1, "old"));
    assert_eq!(actions(&mut table), [persist(8, 1)]);
    table.table_persisted(Ticket(1));
    assert_eq!(actions(&mut table), [grant(1, 8, WRITER)]);
    table
}

#[test]
fn p15_a_primary_gets_an_epoch_of_its_own_and_only_when_it_is_durable() {
    let mut table = with_primary();
    assert_eq!(table.epoch(), Epoch(8));
    table.closed(SessionId(1));
    assert_eq!(actions(&mut table), [invalidate(1)]);
    // The next one waits until the windows are gone.
    table.open_primary(opener(2, "new"));
    assert_eq!(actions(&mut table), []);
    table.windows_invalidated(SessionId(1));
    assert_eq!(actions(&mut table), [persist(9, 2)]);
    table.table_persisted(Ticket(2));
    assert_eq!(actions(&mut table), [grant(2, 9, WRITER)]);
    assert_eq!(table.session_count(), 1);
}

#[test]
fn p15_a_second_primary_is_refused_and_told_who_holds_the_region() {
    let mut table = with_primary();
    table.open_primary(opener(2, "new"));
    let holder = Holder {
        session: SessionId(1),
        principal: principal("old"),
        epoch: Some(Epoch(8)),
        since_nanoseconds: 10,
    };
    let reason = RefuseReason::Primary { holder };
    let text = reason.to_string();
    assert_eq!(
        text,
        "the region has a primary: session 1 of old in epoch 8"
    );
    assert_eq!(actions(&mut table), [refuse(2, reason)]);
    table.open_primary(opener(1, "old"));
    assert_eq!(actions(&mut table), [refuse(1, RefuseReason::AlreadyOpen)]);
    assert_eq!(table.primary().unwrap().session, SessionId(1));
}

fn superseded(session: u64, now: u64, from: u64) -> Action {
    let (now, from) = (Epoch(now), Epoch(from));
    refuse(session, RefuseReason::Superseded { now, from })
}

#[test]
fn s05_who_goes_on_from_a_fence_is_refused_once_another_has_fenced_or_opened() {
    let mut table = log_table();
    table.fence(FenceId(1), None);
    table.table_persisted(Ticket(1));
    assert_eq!(actions(&mut table), [persist(8, 1), done(1, 8)]);
    // The other fences later, opens, and is gone: nobody holds the region.
    table.fence(FenceId(2), None);
    table.open_primary(heir(3, "b", 8));
    assert_eq!(actions(&mut table), [persist(9, 2), superseded(3, 9, 8)]);
    table.table_persisted(Ticket(2));
    table.open_primary(heir(4, "b", 9));
    table.table_persisted(Ticket(3));
    let granted = [done(2, 9), persist(10, 3), grant(4, 10, WRITER)];
    assert_eq!(actions(&mut table), granted);
    // Neither beside it nor behind it.
    table.open_primary(heir(5, "a", 8));
    assert_eq!(actions(&mut table), [superseded(5, 10, 8)]);
    table.closed(SessionId(4));
    table.windows_invalidated(SessionId(4));
    table.open_primary(heir(6, "a", 8));
    let text = "the region is at epoch 10, and the opener goes on from epoch 8";
    let reason = RefuseReason::Superseded {
        now: Epoch(10),
        from: Epoch(8),
    };
    assert_eq!(reason.to_string(), text);
    assert_eq!(actions(&mut table), [invalidate(4), refuse(6, reason)]);
    // An epoch that was never durable may have ended somebody: it counts, too.
    table.open_primary(opener(7, "a"));
    table.table_persist_failed(Ticket(4));
    table.open_primary(heir(8, "b", 10));
    let refused = refuse(7, RefuseReason::PersistFailed);
    assert_eq!(
        actions(&mut table),
        [persist(11, 4), refused, superseded(8, 11, 10)]
    );
    // Readers are not concerned.
    table.open_backup(heir(9, "b", 1), true);
    assert!(matches!(actions(&mut table)[..], [Action::Grant { .. }]));
}

#[test]
fn b03_a_fence_is_done_when_the_epoch_is_durable_and_every_window_is_gone() {
    for persisted_first in [true, false] {
        let mut table = with_primary();
        table.fence(FenceId(70), None);
        assert_eq!(actions(&mut table), [persist(9, 2), invalidate(1)]);
        table.open_primary(opener(2, "new"));
        if persisted_first {
            table.table_persisted(Ticket(2));
        } else {
            table.windows_invalidated(SessionId(1));
        }
        assert_eq!(actions(&mut table), []);
        assert!(table.is_fencing());
        if persisted_first {
            table.windows_invalidated(SessionId(1));
        } else {
            table.table_persisted(Ticket(2));
        }
        // Only now the waiting one gets its own epoch.
        assert_eq!(actions(&mut table), [done(70, 9), persist(10, 3)]);
        table.table_persisted(Ticket(3));
        assert_eq!(actions(&mut table), [grant(2, 10, WRITER)]);
        // The fenced session can neither write nor open again.
        table.open_primary(opener(1, "old"));
        assert_eq!(actions(&mut table), [refuse(1, RefuseReason::AlreadyOpen)]);
    }
}

#[test]
fn b03_a_fence_during_a_fence_joins_it() {
    let mut table = with_primary();
    table.fence(FenceId(1), None);
    table.open_primary(opener(2, "first"));
    table.fence(FenceId(2), None);
    table.open_primary(opener(3, "second"));
    let seen = actions(&mut table);
    assert_eq!(seen[..2], [persist(9, 2), invalidate(1)]);
    let waits = matches!(
        &seen[2],
        Action::Refuse { session: SessionId(3), reason: RefuseReason::Primary { holder } }
            if holder.session == SessionId(2) && holder.epoch.is_none()
    );
    assert!(waits && seen.len() == 3, "{seen:?}");
    table.windows_invalidated(SessionId(1));
    table.table_persisted(Ticket(2));
    assert_eq!(
        actions(&mut table),
        [done(1, 9), done(2, 9), persist(10, 3)]
    );
}

#[test]
fn b03_a_fence_refuses_who_opened_before_it_and_was_not_granted() {
    let mut table = log_table();
    table.open_primary(opener(1, "old"));
    table.fence(FenceId(1), None);
    let expected = [
        persist(8, 1),
        persist(9, 2),
        refuse(1, RefuseReason::Fenced),
    ];
    assert_eq!(actions(&mut table), expected);
    // The epoch of the refused one becoming durable grants nothing.
    table.table_persisted(Ticket(1));
    assert_eq!(actions(&mut table), []);
    table.table_persisted(Ticket(2));
    assert_eq!(actions(&mut table), [done(1, 9)]);
    assert_eq!((table.epoch(), table.session_count()), (Epoch(9), 0));
}

#[test]
fn b03_an_epoch_that_cannot_be_made_durable_grants_and_fences_nothing() {
    let mut table = log_table();
    table.open_primary(opener(1, "old"));
    table.table_persist_failed(Ticket(1));
    let failed = refuse(1, RefuseReason::PersistFailed);
    assert_eq!(actions(&mut table), [persist(8, 1), failed]);
    table.open_primary(opener(2, "old"));
    table.table_persisted(Ticket(2));
    // No epoch is given out twice, durable or not.
    assert_eq!(actions(&mut table), [persist(9, 2), grant(2, 9, WRITER)]);
    table.fence(FenceId(5), None);
    table.table_persist_failed(Ticket(3));
    let failed = Action::FenceFailed { fence: FenceId(5) };
    assert_eq!(actions(&mut table), [persist(10, 3), invalidate(2), failed]);
    // The windows are still being taken away, and nobody writes before that.
    table.open_primary(opener(3, "new"));
    assert_eq!(actions(&mut table), []);
    table.windows_invalidated(SessionId(2));
    assert_eq!(actions(&mut table), [persist(11, 4)]);
    let mut last = WriterTable::new(Mode::Append, Epoch(u64::MAX));
    last.open_primary(opener(1, "old"));
    last.fence(FenceId(1), None);
    let none = refuse(1, RefuseReason::EpochsExhausted);
    assert_eq!(
        actions(&mut last),
        [none, Action::FenceFailed { fence: FenceId(1) }]
    );
}

#[test]
fn b03_a_fence_ends_the_clearing_of_whom_it_fences_but_not_the_callers_own() {
    for (caller, ends) in [(None, true), (Some("backup"), true), (Some("old"), false)] {
        let mut table = with_primary();
        table.open_backup(opener(2, "old"), true);
        table.open_backup(opener(3, "old"), false);
        table.table_persisted(Ticket(1));
        actions(&mut table);
        let caller = caller.map(principal);
        table.fence(FenceId(1), caller.as_ref());
        table.table_persisted(Ticket(2));
        table.windows_invalidated(SessionId(1));
        let seen = actions(&mut table);
        if ends {
            // Not before its last window is gone: it could still move the cursor.
            assert_eq!(seen, [persist(9, 2), invalidate(1), invalidate(2)]);
            table.windows_invalidated(SessionId(2));
            assert_eq!(actions(&mut table), [done(1, 9)]);
            table.open_backup(opener(4, "backup"), true);
            assert_eq!(
                actions(&mut table),
                [grant(4, 9, Rights::READ | Rights::CLEAR)]
            );
        } else {
            assert_eq!(seen, [persist(9, 2), invalidate(1), done(1, 9)]);
            table.open_backup(opener(4, "backup"), true);
            let [Action::Refuse { reason, .. }] = &actions(&mut table)[..] else {
                panic!("a second one clears");
            };
            assert!(matches!(reason, RefuseReason::Clearing { .. }), "{reason}");
        }
    }
}

#[test]
fn p13_one_backup_clears_at_a_time_and_any_number_reads() {
    let mut table = with_primary();
    table.open_backup(opener(2, "backup"), true);
    table.open_backup(opener(3, "backup"), false);
    table.open_reader(opener(4, "reader"));
    table.open_backup(opener(5, "other"), true);
    let seen = actions(&mut table);
    assert_eq!(
        seen[..3],
        [
            grant(2, 8, Rights::READ | Rights::CLEAR),
            grant(3, 8, Rights::READ),
            grant(4, 8, Rights::READ)
        ]
    );
    let refused = matches!(
        &seen[3],
        Action::Refuse { session: SessionId(5), reason: RefuseReason::Clearing { holder } }
            if holder.session == SessionId(2)
    );
    assert!(refused, "{seen:?}");
    // A fence for the takeover leaves those who read and clear alone.
    table.fence(FenceId(1), None);
    assert_eq!(actions(&mut table), [persist(9, 2), invalidate(1)]);
    table.closed(SessionId(2));
    table.windows_invalidated(SessionId(2));
    table.open_backup(opener(6, "other"), true);
    let expected = [invalidate(2), grant(6, 8, Rights::READ | Rights::CLEAR)];
    assert_eq!(actions(&mut table), expected);
    let mut sets = WriterTable::new(Mode::Overwrite, Epoch(0));
    sets.open_backup(opener(1, "backup"), true);
    assert_eq!(actions(&mut sets), [refuse(1, RefuseReason::NotALog)]);
}

#[test]
fn p17_rights_decide_and_can_be_revoked() {
    let mut table = log_table();
    let open = |allowed| Opener {
        allowed,
        ..opener(1, "someone")
    };
    table.open_primary(open(Rights::READ));
    let missing = Rights::APPEND;
    assert_eq!(
        actions(&mut table),
        [refuse(1, RefuseReason::NotAllowed { missing })]
    );
    table.open_backup(open(Rights::READ), true);
    let missing = Rights::CLEAR;
    assert_eq!(
        actions(&mut table),
        [refuse(1, RefuseReason::NotAllowed { missing })]
    );
    table.open_reader(open(Rights::APPEND));
    let missing = Rights::READ;
    assert_eq!(
        actions(&mut table),
        [refuse(1, RefuseReason::NotAllowed { missing })]
    );

    let mut table = with_primary();
    table.open_reader(opener(2, "old"));
    table.open_reader(opener(3, "other"));
    table.revoke(RevokeId(9), &principal("old"));
    let granted = [grant(2, 8, Rights::READ), grant(3, 8, Rights::READ)];
    let seen = actions(&mut table);
    assert_eq!(seen[..2], granted);
    assert_eq!(seen[2..], [invalidate(1), invalidate(2)]);
    table.windows_invalidated(SessionId(2));
    assert_eq!(actions(&mut table), []);
    table.closed(SessionId(1));
    table.windows_invalidated(SessionId(1));
    assert_eq!(
        actions(&mut table),
        [Action::RevokeDone {
            revoke: RevokeId(9)
        }]
    );
    table.revoke(RevokeId(10), &principal("nobody"));
    assert_eq!(
        actions(&mut table),
        [Action::RevokeDone {
            revoke: RevokeId(10)
        }]
    );
}

#[test]
fn p15_sessions_have_a_named_bound() {
    let mut table = log_table();
    for session in 0..=SESSIONS_MAX as u64 {
        table.open_reader(opener(session, "reader"));
    }
    let last = actions(&mut table).pop().unwrap();
    assert_eq!(
        last,
        refuse(SESSIONS_MAX as u64, RefuseReason::TooManySessions)
    );
}

/// Looks at every event and action, and asserts what must always hold.
#[derive(Default)]
struct Checker {
    /// Sessions that opened and have no answer yet, as primary or not.
    unanswered: BTreeMap<SessionId, bool>,
    /// Windows with which one can write, and the epoch of each.
    writers: BTreeMap<SessionId, Epoch>,
    clearing: BTreeSet<SessionId>,
    /// Who has to be confirmed.
    invalidating: BTreeSet<SessionId>,
    tickets: BTreeMap<Ticket, Epoch>,
    durable: BTreeSet<Epoch>,
    highest: u64,
    fences: BTreeSet<FenceId>,
    revokes: BTreeSet<RevokeId>,
    open: BTreeSet<SessionId>,
    /// Those that go on from an epoch.
    heirs: BTreeMap<SessionId, Epoch>,
}

impl Checker {
    fn see(&mut self, action: &Action) {
        match action {
            Action::PersistEpoch { epoch, ticket } => {
                assert!(epoch.get() > self.highest, "an epoch is given out twice");
                self.highest = epoch.get();
                assert!(self.tickets.insert(*ticket, *epoch).is_none());
            }
            Action::InvalidateWindows { session } => {
                assert!(self.invalidating.insert(*session));
            }
            Action::Grant {
                session,
                epoch,
                rights,
            } => {
                let primary = self.unanswered.remove(session).expect("nobody asked");
                self.open.insert(*session);
                if primary {
                    assert!(self.writers.is_empty(), "two can write");
                    assert!(self.durable.contains(epoch), "the epoch is not durable");
                    if let Some(from) = self.heirs.get(session) {
                        assert_eq!(epoch.get(), from.get() + 1, "somebody came between");
                    }
                    self.writers.insert(*session, *epoch);
                }
                if rights.contains(Rights::CLEAR) {
                    assert!(self.clearing.is_empty(), "two can clear");
                    self.clearing.insert(*session);
                }
            }
            Action::Refuse { session, reason } => {
                let asked = self.unanswered.remove(session).is_some();
                assert!(asked || *reason == RefuseReason::AlreadyOpen);
            }
            Action::FenceDone { fence, epoch } => {
                assert!(self.fences.remove(fence), "nobody asked");
                assert!(self.durable.contains(epoch), "the fence is not durable");
                assert!(
                    self.writers.values().all(|writer| writer > epoch),
                    "one can write"
                );
            }
            Action::FenceFailed { fence } => assert!(self.fences.remove(fence)),
            Action::RevokeDone { revoke } => assert!(self.revokes.remove(revoke)),
            other => panic!("unknown action {other:?}"),
        }
    }

    fn confirm(&mut self, table: &mut WriterTable, session: SessionId) {
        if self.invalidating.remove(&session) {
            self.writers.remove(&session);
            self.clearing.remove(&session);
            table.windows_invalidated(session);
        }
    }

    fn persist(&mut self, table: &mut WriterTable, ticket: Ticket, fails: bool) {
        if let Some(epoch) = self.tickets.remove(&ticket) {
            if fails {
                table.table_persist_failed(ticket);
            } else {
                self.durable.insert(epoch);
                table.table_persisted(ticket);
            }
        }
    }

    fn drain(&mut self, table: &mut WriterTable) {
        for action in actions(table) {
            self.see(&action);
        }
    }

    /// One random event.
    fn event(&mut self, table: &mut WriterTable, kind: u8, pick: u64, next: &mut u64) {
        let name = ["a", "b", "c"][pick as usize % 3];
        let at = |length: usize| pick as usize % length.max(1);
        *next += 1;
        let mut opener = opener(*next, name);
        match kind {
            0..=2 => {
                if kind == 2 {
                    // Now and then the right one.
                    let from = Epoch(table.epoch().get().saturating_sub(pick / 3 % 2));
                    opener.goes_on_from = Some(from);
                    self.heirs.insert(opener.session, from);
                }
                self.unanswered.insert(opener.session, true);
                table.open_primary(opener);
            }
            3 => {
                self.unanswered.insert(opener.session, false);
                table.open_backup(opener, pick.is_multiple_of(2));
            }
            4 => {
                self.unanswered.insert(opener.session, false);
                table.open_reader(opener);
            }
            5 | 6 => {
                let known: Vec<_> = self.open.iter().chain(self.unanswered.keys()).collect();
                if let Some(session) = known.get(at(known.len())).copied().copied() {
                    // A session that is gone needs no answer.
                    self.unanswered.remove(&session);
                    self.open.remove(&session);
                    table.closed(session);
                }
            }
            7 => {
                self.fences.insert(FenceId(*next));
                table.fence(FenceId(*next), None);
            }
            8 => {
                self.revokes.insert(RevokeId(*next));
                table.revoke(RevokeId(*next), &principal(name));
            }
            9..=12 => {
                let tickets: Vec<_> = self.tickets.keys().copied().collect();
                if let Some(ticket) = tickets.get(at(tickets.len())) {
                    self.persist(table, *ticket, pick.is_multiple_of(7));
                }
            }
            _ => {
                let sessions: Vec<_> = self.invalidating.iter().copied().collect();
                if let Some(session) = sessions.get(at(sessions.len())) {
                    self.confirm(table, *session);
                }
            }
        }
        self.drain(table);
    }

    /// When all that was asked for is reported, everybody has an answer.
    fn settle(&mut self, table: &mut WriterTable) {
        while !self.tickets.is_empty() || !self.invalidating.is_empty() {
            for ticket in self.tickets.keys().copied().collect::<Vec<_>>() {
                self.persist(table, ticket, false);
            }
            for session in self.invalidating.iter().copied().collect::<Vec<_>>() {
                self.confirm(table, session);
            }
            self.drain(table);
        }
        assert!(
            self.unanswered.is_empty(),
            "without an answer: {:?}",
            self.unanswered
        );
        assert!(self.fences.is_empty() && self.revokes.is_empty() && !table.is_fencing());
        assert!(self.writers.len() <= 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn b03_in_any_order_of_events_one_writes_and_a_fence_keeps_its_word(
        events in prop::collection::vec((0_u8..17, any::<u64>()), 0..120),
    ) {
        let mut table = WriterTable::new(Mode::Append, Epoch(0));
        let (mut checker, mut next) = (Checker::default(), 0);
        for (kind, pick) in events {
            checker.event(&mut table, kind, pick, &mut next);
        }
        checker.settle(&mut table);
    }
}
