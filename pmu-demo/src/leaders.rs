//! Were there ever two leaders? Judged by what real instances were told, when, and by what lies in the log.
//!
//! A leader is an instance whose commits succeed. It leads no longer when the fence stands behind which the next one began, or where none is
//! known, when that one has opened the regions: from then on nothing that the old one begins may succeed, and what had succeeded the next one knows. A commit that it had begun before may: its receipt is then seen late. All times are those of one machine's
//! monotonic clock.
//!
//! This file knows nothing else of the crate: the tests of the agents include it, and judge by the same rules.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A record of the log; its place is a range of positions.
    Record,
    /// A set; its place is its number.
    Set,
}

/// A commit that an instance was told had succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Of what.
    pub what: What,
    /// The epoch in which it was committed; none where the client library does not say it, as of snapshots over several units.
    pub epoch: Option<u64>,
    /// Where it begins.
    pub from: u64,
    /// Behind its end.
    pub to: u64,
    /// Before the library was asked.
    pub begun_ns: u64,
    /// When it had answered.
    pub told_ns: u64,
}

/// One process that opened the regions for writing.
#[derive(Debug, Clone)]
pub struct Instance {
    /// For people.
    pub name: String,
    /// In which it writes to the log; over several units the term.
    pub epoch: u64,
    /// When the fence stood behind which its state was recovered; none where it has begun without one.
    pub fenced_ns: Option<u64>,
    /// When the last of the regions was open.
    pub opened_ns: u64,
    /// How many records its state held when it began, from the very first of the log, cleared or not.
    pub began_with: u64,
    /// What it was told, in that order.
    pub commits: Vec<Commit>,
}

/// A record as a reader found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its position.
    pub from: u64,
    /// Behind its end.
    pub to: u64,
    /// Of its writer.
    pub epoch: u64,
}

/// What a reader found in the log, in as many readings as there were.
#[derive(Debug, Clone, Default)]
pub struct Log {
    records: BTreeMap<u64, Found>,
    /// The same place, read twice, with different records.
    changed: Option<[Found; 2]>,
}

/// What was checked, where all was well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Instances that led: that were told of a commit.
    pub led: usize,
    /// Commits that they were told of.
    pub commits: u64,
    /// Records that were found in the log.
    pub records: u64,
    /// The shortest time from the begin of a leader's last commit to the opening by the next one. None where one led.
    pub apart_ns: Option<u64>,
}

/// Checks that nobody led beside anybody else.
///
/// The instances may come in any order: their epochs say who came later. An instance that opened the regions and committed nothing ends the
/// time of those before it all the same.
///
/// # Errors
/// The first violation that is found, in a sentence with both instances, what they committed, and when.
pub fn check(instances: &[Instance], log: &Log) -> Result<Verdict, String> {
    let mut turns: Vec<&Instance> = instances.iter().collect();
    turns.sort_by_key(|instance| instance.epoch);
    let mut apart_ns: Option<u64> = None;
    for (index, newer) in turns.iter().enumerate() {
        check_one(newer)?;
        for older in &turns[..index] {
            let apart = check_turn(older, newer)?;
            apart_ns = [apart_ns, apart].into_iter().flatten().min();
        }
    }
    check_log(&turns, log)?;
    Ok(Verdict {
        led: turns.iter().filter(|one| !one.commits.is_empty()).count(),
        commits: turns.iter().map(|one| one.commits.len() as u64).sum(),
        records: log.records.len() as u64,
        apart_ns,
    })
}

impl Log {
    /// Takes in a record.
    pub fn saw(&mut self, found: Found) {
        if let Some(before) = self.records.insert(found.from, found)
            && before != found
        {
            self.changed.get_or_insert([before, found]);
        }
    }

    /// Records that overlap a range of positions.
    fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = &Found> {
        // They don't overlap each other: of those that begin before the range only the last can reach into it.
        let before = self.records.range(..from).next_back();
        let before = before.into_iter().filter(move |(_, found)| found.to > from);
        let within = self.records.range(from..to);
        before.chain(within).map(|(_, found)| found)
    }
}

impl Commit {
    fn place(&self) -> String {
        match self.what {
            What::Record => format!("the record at {}..{}", self.from, self.to),
            What::Set => format!("set {}", self.from),
        }
    }

    fn times(&self) -> String {
        format!(
            "begun at {}, told at {}",
            seconds(self.begun_ns),
            seconds(self.told_ns)
        )
    }
}

impl Instance {
    /// From when on none of those before it may begin anything that succeeds; and in words.
    fn began_at(&self) -> (u64, &'static str) {
        match self.fenced_ns {
            Some(fenced_ns) => (fenced_ns, "had fenced"),
            None => (self.opened_ns, "had opened"),
        }
    }

    /// How many records its state holds, as far as it was told that they were committed.
    fn knows(&self) -> u64 {
        self.began_with + self.of(What::Record).count() as u64
    }

    fn named(&self) -> String {
        format!("{} (epoch {})", self.name, self.epoch)
    }

    fn of(&self, what: What) -> impl Iterator<Item = &Commit> {
        self.commits
            .iter()
            .filter(move |commit| commit.what == what)
    }
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09} s", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// What one instance was told makes sense by itself: its epoch in every record, and everything behind what came before.
fn check_one(instance: &Instance) -> Result<(), String> {
    if instance.fenced_ns > Some(instance.opened_ns) {
        return Err(format!(
            "{} opened the regions at {}, before its fence stood",
            instance.named(),
            seconds(instance.opened_ns)
        ));
    }
    for what in [What::Record, What::Set] {
        let mut before: Option<&Commit> = None;
        for commit in instance.of(what) {
            if what == What::Record && commit.epoch != Some(instance.epoch) {
                return Err(format!(
                    "{} was told that {} was committed in epoch {:?} ({})",
                    instance.named(),
                    commit.place(),
                    commit.epoch,
                    commit.times()
                ));
            }
            if let Some(before) = before
                && (before.to > commit.from || before.epoch > commit.epoch)
            {
                return Err(format!(
                    "{} was told of {} in epoch {:?} ({}) after {} in epoch {:?} ({})",
                    instance.named(),
                    commit.place(),
                    commit.epoch,
                    commit.times(),
                    before.place(),
                    before.epoch,
                    before.times()
                ));
            }
            before = Some(commit);
        }
    }
    Ok(())
}

/// The older one's commits were all begun before the newer one had fenced (or opened) the regions, lie before the newer one's, and are known to that.
/// How long before its opening.
fn check_turn(older: &Instance, newer: &Instance) -> Result<Option<u64>, String> {
    let both = || format!("{} and {}", older.named(), newer.named());
    if older.epoch == newer.epoch {
        return Err(format!(
            "two leaders: {} share an epoch; they opened the regions at {} and at {}",
            both(),
            seconds(older.opened_ns),
            seconds(newer.opened_ns)
        ));
    }
    let last = older.commits.iter().max_by_key(|commit| commit.begun_ns);
    let (from_ns, had) = newer.began_at();
    if let Some(last) = last
        && last.begun_ns >= from_ns
    {
        let first = newer.commits.iter().min_by_key(|commit| commit.told_ns);
        let first = first.map_or_else(
            || "it has committed nothing yet".to_owned(),
            |first| format!("its first commit is {}, {}", first.place(), first.times()),
        );
        return Err(format!(
            "two leaders: {} committed {} ({}), and {} {had} the regions at {}; {first}",
            older.named(),
            last.place(),
            last.times(),
            newer.named(),
            seconds(from_ns)
        ));
    }
    if newer.began_with < older.knows() {
        return Err(format!(
            "acknowledged records are lost: {} was told of {} of them, began with {} and so knew {}, and {} began with {}",
            older.named(),
            older.of(What::Record).count(),
            older.began_with,
            older.knows(),
            newer.named(),
            newer.began_with
        ));
    }
    for what in [What::Record, What::Set] {
        let last = older.of(what).max_by_key(|commit| commit.to);
        let first = newer.of(what).min_by_key(|commit| commit.from);
        let (Some(last), Some(first)) = (last, first) else {
            continue;
        };
        let same_epoch = first.epoch.is_some() && last.epoch >= first.epoch;
        if last.to > first.from || same_epoch {
            return Err(format!(
                "two leaders: of {} the older committed {} in epoch {:?} ({}), and the newer {} in epoch {:?} ({})",
                both(),
                last.place(),
                last.epoch,
                last.times(),
                first.place(),
                first.epoch,
                first.times()
            ));
        }
    }
    Ok(last.map(|last| newer.opened_ns - last.begun_ns))
}

/// Epochs never decrease along the log, all of them are those of known instances, and each record that somebody was told of is his.
fn check_log(turns: &[&Instance], log: &Log) -> Result<(), String> {
    let who = |epoch: u64| {
        let found = turns.iter().find(|instance| instance.epoch == epoch);
        found.map(|instance| instance.named())
    };
    let whose = |found: &Found| {
        let who =
            who(found.epoch).unwrap_or_else(|| format!("nobody known (epoch {})", found.epoch));
        format!("a record of {who} at {}..{}", found.from, found.to)
    };
    if let Some([before, after]) = &log.changed {
        return Err(format!(
            "two leaders: the log had {}, and later {} in its place",
            whose(before),
            whose(after)
        ));
    }
    let mut before: Option<&Found> = None;
    for found in log.records.values() {
        if let Some(before) = before
            && (before.epoch > found.epoch || before.to > found.from)
        {
            return Err(format!(
                "two leaders: the log has {}, and behind its begin {}",
                whose(before),
                whose(found)
            ));
        }
        if who(found.epoch).is_none() {
            return Err(format!(
                "a leader that nobody knows of: the log has {}",
                whose(found)
            ));
        }
        before = Some(found);
    }
    for instance in turns {
        for commit in instance.of(What::Record) {
            // What is passed over at the end of the ring belongs to the place of a record.
            let is_it = |found: &Found| {
                found.epoch == instance.epoch && found.from >= commit.from && found.to <= commit.to
            };
            let other = log
                .overlapping(commit.from, commit.to)
                .find(|found| !is_it(found));
            if let Some(other) = other {
                return Err(format!(
                    "two leaders: {} was told of {} ({}), and the log has {}",
                    instance.named(),
                    commit.place(),
                    commit.times(),
                    whose(other)
                ));
            }
        }
    }
    Ok(())
}
