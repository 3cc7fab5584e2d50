//! Media that fail: words of a unit's region that are not what was written.
//!
//! The publish word and the term word are never lost here, only changed: a word of zero says that nothing was published (docs/simulation.md).

use std::ops::Range;

use pmu_format::{
    PAGE_BYTES, RegionOffset, SET_HEADER_BYTES, SetGeometry, TERM_RECORD_BYTES,
    TERM_RECORD_OFFSETS, TERM_WORD_OFFSET,
};

use crate::medium::WORD_BYTES;
use crate::state::State;

/// What a failure leaves of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// One bit is another.
    Bit,
    /// It is gone, and reads as nothing.
    Lost,
    /// It is anything.
    Scrambled,
}

impl State {
    /// Something of a unit's region fails: a bit, a word, a cache line or a page.
    pub(crate) fn damage(&mut self, unit: usize) {
        let Some(place) = self.draw_place(unit) else {
            return;
        };
        let mut harm = self
            .random
            .pick(&[Harm::Bit, Harm::Bit, Harm::Lost, Harm::Scrambled]);
        if place.end - place.start == WORD_BYTES && harm == Harm::Lost {
            harm = Harm::Bit;
        }
        let length = match harm {
            Harm::Bit => 1,
            _ => self.random.pick(&[1, WORD_BYTES, 64, PAGE_BYTES]),
        };
        let begin = self.random.between(place.start, place.end - 1) / WORD_BYTES * WORD_BYTES;
        let range = begin..(begin + length).min(place.end);
        note!(
            self,
            "the medium of {} fails: {harm:?} at {begin}+{} ({})",
            self.units[unit].name,
            range.end - range.start,
            crate::place::place(&self.units[unit].info, begin)
        );
        let Self { units, random, .. } = self;
        units[unit].medium.damage(&range, |word| match harm {
            Harm::Bit => word ^ (1 << random.below(64)),
            Harm::Lost => 0,
            Harm::Scrambled => random.bits(),
        });
        self.totals.damages += 1;
    }

    /// The publish word, the term word, a term record, or the header, chunk table or payload of a slot.
    fn draw_place(&mut self, unit: usize) -> Option<Range<u64>> {
        let Self { units, random, .. } = self;
        let info = &units[unit].info;
        let geometry =
            SetGeometry::new(info.length_bytes, info.capacity_bytes, info.sets_kept).ok()?;
        let slots = u64::from(geometry.slot_count());
        let slot = PAGE_BYTES + random.below(slots) * geometry.slot_bytes();
        let table = slot + PAGE_BYTES;
        let payload = table + geometry.chunk_table_area_bytes();
        let (begin, length) = match random.below(8) {
            6 => (geometry.publish_offset().get(), WORD_BYTES),
            7 => (TERM_WORD_OFFSET.get(), WORD_BYTES),
            0 => {
                let RegionOffset(begin) = random.pick(&TERM_RECORD_OFFSETS);
                (begin, TERM_RECORD_BYTES as u64)
            }
            1 => (slot, SET_HEADER_BYTES as u64),
            2 => (table, 2 * WORD_BYTES),
            // Most of a slot is not in use.
            _ => (
                payload,
                random.pick(&[100.min(info.capacity_bytes), info.capacity_bytes]),
            ),
        };
        Some(begin..begin + length)
    }
}
