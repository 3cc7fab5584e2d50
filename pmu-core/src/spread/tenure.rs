//! Whether a primary may take a member back that it was without for a while: somebody may have fenced it in between.
//!
//! A fence holds when it stands on [`Quorum::units_to_decide`](crate::spread::Quorum::units_to_decide) members at one moment. From then on a
//! primary that was open before has fewer members than a commit takes, as long as it takes none of those back. So it takes a member back
//!
//! * whose epoch is the next one after its own: a fence, or anybody else's opening, would have raised it once more; or
//! * if, *after* that member was granted, enough others to commit are found to be held still. Then no fence can have held before the
//!   grant, and each that holds later takes that member away again.

use pmu_format::{Epoch, RegionId};

/// What a primary knows of its grants on each member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenure {
    members: Vec<Held>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    /// The last grant that counts, on a region that may have been replaced by another of its name.
    own: Option<(RegionId, Epoch)>,
    /// A higher epoch that was seen there, and is somebody else's.
    raised: Option<Epoch>,
}

impl Tenure {
    /// A primary that holds none of so many members yet.
    #[must_use]
    pub fn new(members: usize) -> Self {
        Self {
            members: vec![Held::default(); members],
        }
    }

    /// The primary takes part in a member with this grant: its first one, or one that [`Self::is_unbroken`] or enough others vouch for.
    pub fn hold(&mut self, member: usize, region: RegionId, epoch: Epoch) {
        if let Some(held) = self.members.get_mut(member) {
            held.own = Some((region, epoch));
            held.raised = None;
        }
    }

    /// Somebody else has raised a member's epoch, by a fence or an opening of its own.
    pub fn raised(&mut self, member: usize, epoch: Epoch) {
        if let Some(held) = self.members.get_mut(member) {
            held.raised = Some(epoch);
        }
    }

    /// Whether nobody can have fenced or opened a member between the last grant that counts and this one. False for a member that was never
    /// held, and where an answer was lost.
    #[must_use]
    pub fn is_unbroken(&self, member: usize, region: RegionId, epoch: Epoch) -> bool {
        let own = self.members.get(member).and_then(|held| held.own);
        own.is_some_and(|(own_region, own)| {
            own_region == region && own.get().checked_add(1) == Some(epoch.get())
        })
    }

    /// The last grant that counts.
    #[must_use]
    pub fn epoch(&self, member: usize) -> Option<Epoch> {
        let own = self.members.get(member).and_then(|held| held.own);
        own.map(|(_, epoch)| epoch)
    }

    /// The members that somebody else has raised since, one after the other: the epoch that was seen, and the own one.
    pub fn lost(&self) -> impl Iterator<Item = (usize, Epoch, Epoch)> {
        let members = self.members.iter().enumerate();
        members.filter_map(|(index, held)| Some((index, held.raised?, held.own?.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::Quorum;

    const ID: RegionId = RegionId([1; 16]);

    #[test]
    fn b03_a_member_is_unbroken_only_with_the_next_epoch_of_the_same_region() {
        let mut tenure = Tenure::new(2);
        assert!(!tenure.is_unbroken(0, ID, Epoch(1)));
        tenure.hold(0, ID, Epoch(4));
        for (epoch, expected) in [(3, false), (4, false), (5, true), (6, false)] {
            assert_eq!(tenure.is_unbroken(0, ID, Epoch(epoch)), expected);
        }
        assert!(!tenure.is_unbroken(0, RegionId([2; 16]), Epoch(5)));
        assert!(!tenure.is_unbroken(1, ID, Epoch(1)) && !tenure.is_unbroken(9, ID, Epoch(1)));
        tenure.raised(0, Epoch(6));
        tenure.raised(1, Epoch(2));
        assert_eq!(tenure.lost().collect::<Vec<_>>(), [(0, Epoch(6), Epoch(4))]);
        tenure.hold(0, ID, Epoch(7));
        assert_eq!(
            (tenure.lost().count(), tenure.epoch(0)),
            (0, Some(Epoch(7)))
        );
    }

    /// Numbers that follow each other in no way one could see.
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound
        }
    }

    /// One primary, the units' epochs, and a fence that goes member by member, with everything else in between.
    struct World {
        quorum: Quorum,
        epochs: Vec<u64>,
        /// The primary's grant where it is valid still.
        held: Vec<Option<u64>>,
        /// The members that the primary counts.
        counted: Vec<bool>,
        tenure: Tenure,
        /// What the fence set, where it has been.
        set: Vec<Option<u64>>,
        holds: bool,
    }

    impl World {
        fn new(members: usize, units_min: usize, draw: &mut Draw) -> Self {
            let mut world = Self {
                quorum: Quorum::new(members, units_min, 1),
                epochs: vec![5; members],
                held: vec![None; members],
                counted: vec![false; members],
                tenure: Tenure::new(members),
                set: vec![None; members],
                holds: false,
            };
            let first = draw.below(members);
            for index in 0..units_min + draw.below(members - units_min + 1) {
                let member = (first + index) % members;
                world.grant(member);
                world.count(member);
            }
            world
        }

        fn grant(&mut self, member: usize) {
            self.epochs[member] += 1;
            self.held[member] = Some(self.epochs[member]);
        }

        fn count(&mut self, member: usize) {
            self.counted[member] = true;
            self.tenure.hold(member, ID, Epoch(self.epochs[member]));
        }

        fn is_held(&self, member: usize) -> bool {
            self.counted[member] && self.held[member].is_some()
        }

        fn alive(&self) -> usize {
            (0..self.epochs.len())
                .filter(|member| self.is_held(*member))
                .count()
        }

        fn rejoin(&mut self, member: usize, answered: bool) {
            self.grant(member);
            if !answered {
                self.held[member] = None;
                return;
            }
            let unbroken = self
                .tenure
                .is_unbroken(member, ID, Epoch(self.epochs[member]));
            if unbroken || self.quorum.check_commit(self.alive()).is_ok() {
                self.count(member);
            }
        }

        fn fence(&mut self, member: usize) {
            self.epochs[member] += 1;
            self.held[member] = None;
            self.set[member] = Some(self.epochs[member]);
        }

        /// The fence looks again whether all is as it left it.
        fn look(&mut self) {
            let steady = |member: &usize| self.set[*member] == Some(self.epochs[*member]);
            let steady = (0..self.epochs.len()).filter(steady).count();
            self.holds |= self.quorum.check_fence(steady).is_ok();
        }

        fn step(&mut self, draw: &mut Draw) {
            let member = draw.below(self.epochs.len());
            match draw.below(6) {
                0 => self.fence(member),
                1 => self.look(),
                // A unit restarts, or a connection breaks.
                2 => self.held[member] = None,
                _ if !self.is_held(member) => {
                    self.counted[member] = false;
                    self.rejoin(member, draw.below(4) > 0);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn b03_behind_a_fence_that_holds_an_old_primary_never_has_enough_members() {
        let (mut fences, mut returns) = (0, 0);
        for seed in 0..20_000 {
            let mut draw = Draw(seed);
            let members = 1 + draw.below(5);
            let units_min = 1 + draw.below(members);
            let mut world = World::new(members, units_min, &mut draw);
            for _ in 0..60 {
                let before = world.alive();
                world.step(&mut draw);
                returns += usize::from(world.alive() > before);
                let enough = world.quorum.check_commit(world.alive()).is_ok();
                assert!(!(world.holds && enough), "seed {seed}");
            }
            fences += usize::from(world.holds);
        }
        assert!(fences > 5000 && returns > 50_000, "{fences}, {returns}");
    }
}
