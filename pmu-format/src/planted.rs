//! Bugs that are planted on purpose, one at a time: the test of the simulator (`docs/simulation.md`). Feature `planted-bugs`, for tests alone;
//! as long as none is chosen nothing is changed.

use core::sync::atomic::{AtomicU8, Ordering};

/// A bug to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// A set is published without the flush of its bytes.
    DropFlush = 1,
    /// A set is published before the flush of its bytes.
    CommitBeforeData,
    /// There is one slot less than it takes: that of a set which is kept is written anew.
    ReuseSlot,
    /// What a member published counts whatever its term.
    SkipEpochCheck,
    /// Parity of a group is that of the group before it.
    StaleParity,
    /// A unit that takes another's place votes with what was committed before the members were changed.
    StaleRebuild,
    /// A scrub or rebuild takes what is published for settled, durable or not.
    TrustVisible,
    /// Publish word and term word are believed whatever their check bits say.
    TrustWords,
    /// A log's new member takes the term without the records that came after it was filled.
    StaleLogRebuild,
    /// A distributor acknowledges records that it has given to the units, durable or not.
    AcknowledgeEarly,
    /// A distributor publishes a set that its program gave up.
    PublishAbandoned,
}

impl Bug {
    /// All of them, by their names.
    pub const ALL: [(&'static str, Self); 11] = [
        ("drop-flush", Self::DropFlush),
        ("commit-before-data", Self::CommitBeforeData),
        ("reuse-slot", Self::ReuseSlot),
        ("skip-epoch-check", Self::SkipEpochCheck),
        ("stale-parity", Self::StaleParity),
        ("stale-rebuild", Self::StaleRebuild),
        ("trust-visible", Self::TrustVisible),
        ("trust-words", Self::TrustWords),
        ("stale-log-rebuild", Self::StaleLogRebuild),
        ("acknowledge-early", Self::AcknowledgeEarly),
        ("publish-abandoned", Self::PublishAbandoned),
    ];
}

/// Of the whole process.
static PLANTED: AtomicU8 = AtomicU8::new(0);

/// Plants a bug in this process, in place of the one before; `None` for none.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), Ordering::SeqCst);
}

/// Whether this bug is planted.
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as u8
}
