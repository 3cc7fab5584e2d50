//! A handle of an attached region can't be made from numbers.

use pmu_verbs::AttachedRegion;

fn misuse() -> AttachedRegion {
    AttachedRegion { tag: 1, slot: 0, lkey: 7, start: 0, length: u64::MAX }
}

fn main() {}
