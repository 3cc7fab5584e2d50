//! An element can't be made from numbers.

use pmu_verbs::Sge;

fn misuse(other: Sge) -> Sge {
    Sge { tag: 1, slot: 0, ..other }
}

fn main() {}
