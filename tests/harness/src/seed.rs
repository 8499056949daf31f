//! Chance that can be repeated, and how much of it: a generator from a printed seed, and amounts that a long
//! run raises. Called by tests that draw moments, places and orders.
//!
//! Always true: a test that drew says its seed when it fails, and the same seed draws the same again. What
//! other processes do meanwhile is not drawn: the same seed is the same kind of run, not the same run.

use std::time::UNIX_EPOCH;

/// The variable that gives the seed of a run back.
const VARIABLE: &str = "RINGMQ_TEST_SEED";

/// A seeded generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The generator of this run of `test`; prints the seed, which the runner shows when the test fails.
    pub fn of(test: &str) -> Self {
        let asked = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
        let seed = asked.unwrap_or_else(|| {
            let nanoseconds = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64;
            nanoseconds ^ u64::from(std::process::id()) << 40
        });
        eprintln!("{test}: seed {seed} ({VARIABLE}={seed} draws the same again)");
        // Tests that share a seed must not draw the same numbers.
        Self(seed ^ xxhash_rust::xxh3::xxh3_64(test.as_bytes()))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`; 0 for 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.any()) * u128::from(n)) >> 64) as u64
    }

    /// A number between both, inclusive.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How much a test does: `usual`, or what the variable asks for in a long run.
#[track_caller]
pub fn amount(variable: &str, usual: u64) -> u64 {
    match std::env::var(variable) {
        Err(_) => usual,
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} must be a number; got {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_within_its_bounds() {
        let (mut one, mut two) = (Rng::new(7), Rng::new(7));
        for _ in 0..1000 {
            let drawn = one.between(3, 5);
            assert_eq!(drawn, two.between(3, 5));
            assert!((3..=5).contains(&drawn));
        }
        assert_ne!(Rng::new(7).any(), Rng::new(8).any());
        assert_eq!(Rng::new(7).below(0), 0);
    }
}
