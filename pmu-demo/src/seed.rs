//! Randomness that can be replayed: everything comes from one number, which is printed.

use crate::error::{DemoError, Result};

/// A number that nobody can know before.
///
/// # Errors
/// [`DemoError::Unusable`] if the system has none.
pub fn random_u64() -> Result<u64> {
    getrandom::u64().map_err(|error| DemoError::Unusable(format!("no randomness: {error}")))
}

/// A sequence of numbers from a seed (SplitMix64, Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number between `low` and `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        low + unit * (high - low)
    }

    /// `count` different numbers below `limit`, rising.
    pub fn some_of(&mut self, limit: usize, count: usize) -> Vec<usize> {
        let mut left: Vec<usize> = (0..limit).collect();
        for _ in count..limit {
            let index = self.next_u64() as usize % left.len();
            left.remove(index);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_drawn_and_each_once() {
        let mut random = Random::new(3);
        let mut seen = [0; 6];
        for _ in 0..600 {
            let drawn = random.some_of(6, 2);
            assert!(drawn.len() == 2 && drawn[0] < drawn[1]);
            drawn.iter().for_each(|index| seen[*index] += 1);
        }
        assert!(
            seen.iter().all(|count| (140..260).contains(count)),
            "{seen:?}"
        );
        assert_eq!(random.some_of(3, 3), [0, 1, 2]);
        assert_eq!(random.some_of(3, 0), [0; 0]);
    }

    #[test]
    fn a_seed_repeats_itself_and_stays_in_its_range() {
        let draw = |seed| -> Vec<f64> {
            let mut random = Random::new(seed);
            (0..1000).map(|_| random.between(0.1, 0.9)).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|value| (0.1..0.9).contains(value)));
        let mean = draw(7).iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
