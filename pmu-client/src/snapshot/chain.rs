//! Which sets make whole chains: pure functions over what a region lists.

use std::collections::{BTreeMap, BTreeSet};

use pmu_format::{LogPosition, SetNumber, SnapshotKind};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// A snapshot as a region lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// The set that holds it.
    pub set: SetNumber,
    /// Bytes of that set; over several units, those of all its shares.
    pub bytes: u64,
    /// When it was committed by its writer's clock, in nanoseconds since 1970.
    pub committed_ns: u64,
    /// Full, or what it builds on.
    pub kind: SnapshotKind,
    /// It holds what a log has before this position, if the program said so: see [`super::Snapshots::begin_covering`].
    pub covered: Option<LogPosition>,
    /// Whether every set of its chain is listed. None of them was read.
    pub is_whole: bool,
}

impl Serialize for SnapshotInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let base = self.kind.base();
        let mut fields = serializer.serialize_struct("SnapshotInfo", 8)?;
        fields.serialize_field("set", &self.set.get())?;
        fields.serialize_field("bytes", &self.bytes)?;
        fields.serialize_field("committed_ns", &self.committed_ns)?;
        fields.serialize_field("full", &base.is_none())?;
        fields.serialize_field("builds_on", &base.map(|base| base.set.get()))?;
        fields.serialize_field("root", &base.map(|base| base.root.get()))?;
        fields.serialize_field("log_to", &self.covered.map(LogPosition::get))?;
        fields.serialize_field("whole", &self.is_whole)?;
        fields.end()
    }
}

/// Snapshots that are committed, by their sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listed {
    found: BTreeMap<SetNumber, SnapshotInfo>,
}

impl Listed {
    /// Takes in a committed set.
    pub(super) fn add(&mut self, set: SetNumber, bytes: u64, committed_ns: u64, label: &str) {
        let Some((kind, covered)) = SnapshotKind::of_label(label) else {
            return;
        };
        let info = SnapshotInfo {
            set,
            bytes,
            committed_ns,
            kind,
            covered,
            is_whole: false,
        };
        self.found.insert(set, info);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn has(&self, set: SetNumber) -> bool {
        self.found.contains_key(&set)
    }

    pub(super) fn get(&self, set: SetNumber) -> Option<&SnapshotInfo> {
        self.found.get(&set)
    }

    /// The sets that lead to the one given, the full one first; the number that is missing or makes no sense otherwise.
    pub(super) fn chain(&self, tip: SetNumber) -> Result<Vec<SetNumber>, SetNumber> {
        let mut chain = Vec::new();
        let mut at = tip;
        loop {
            let info = self.found.get(&at).ok_or(at)?;
            chain.push(at);
            match info.kind.base() {
                None => break,
                Some(base) if base.set < at => at = base.set,
                Some(_) => return Err(at),
            }
        }
        chain.reverse();
        Ok(chain)
    }

    /// The newest snapshot whose chain has all its sets, and none of `bad`; its chain.
    pub(super) fn newest_whole(&self, bad: &BTreeSet<SetNumber>) -> Option<Vec<SetNumber>> {
        let tips = self.found.keys().rev();
        tips.filter_map(|tip| self.chain(*tip).ok())
            .find(|chain| chain.iter().all(|set| !bad.contains(set)))
    }

    /// What a person wants to see, the newest first.
    pub(super) fn infos(&self) -> Vec<SnapshotInfo> {
        let newest_first = self.found.values().rev();
        newest_first
            .map(|info| SnapshotInfo {
                is_whole: self.chain(info.set).is_ok(),
                ..info.clone()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(sets: &[(u64, &str)]) -> Listed {
        let mut listed = Listed::default();
        for (number, label) in sets {
            listed.add(SetNumber(*number), 1, 2, label);
        }
        listed
    }

    fn newest(listed: &Listed, bad: &[u64]) -> Option<Vec<u64>> {
        let bad = bad.iter().copied().map(SetNumber).collect();
        let chain = listed.newest_whole(&bad)?;
        Some(chain.iter().map(|set| set.get()).collect())
    }

    #[test]
    fn s08_the_newest_whole_chain_is_found_and_broken_ones_are_not() {
        let sets = [
            (5, "snap on 4 of 3"),
            (6, "snap full"),
            (7, "step 7"),
            (8, "snap on 6 of 6 @512"),
            (9, "snap on 8 of 6"),
        ];
        let listed = listed(&sets);
        assert_eq!(newest(&listed, &[]), Some(vec![6, 8, 9]));
        assert_eq!(newest(&listed, &[9]), Some(vec![6, 8]));
        assert_eq!(newest(&listed, &[8]), Some(vec![6]));
        assert_eq!(newest(&listed, &[6]), None, "set 4 is gone");
        assert_eq!(listed.chain(SetNumber(5)), Err(SetNumber(4)));
        let whole: Vec<_> = listed
            .infos()
            .iter()
            .map(|info| (info.set.get(), info.is_whole))
            .collect();
        assert_eq!(whole, [(9, true), (8, true), (6, true), (5, false)]);
    }

    #[test]
    fn s08_labels_that_lead_nowhere_end() {
        let cyclic = listed(&[
            (3, "snap on 3 of 3"),
            (4, "snap on 9 of 3"),
            (9, "snap on 4 of 4"),
        ]);
        assert_eq!(newest(&cyclic, &[]), None);
        assert_eq!(cyclic.chain(SetNumber(3)), Err(SetNumber(3)));
        assert_eq!(cyclic.chain(SetNumber(9)), Err(SetNumber(4)));
    }
}
