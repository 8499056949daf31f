//! Deadlines of one shard: a lazy wheel of small keys. Arming costs a push, touching costs nothing,
//! because the owner of a key looks at the real deadline when the wheel fires and arms again if it is later.

use alloc::vec::Vec;

/// Granularity: a key fires at most this much late.
pub const TICK_US: u64 = 100_000;
/// Slots of the wheel; later deadlines go round more than once.
const SLOTS: usize = 1024;

/// A wheel of keys `K`.
pub struct Wheel<K> {
    slots: Vec<Vec<(u64, K)>>,
    /// The tick up to which everything has fired.
    done: u64,
    armed: usize,
    /// No armed key is due before this tick.
    earliest: u64,
}

impl<K: Copy> Wheel<K> {
    /// An empty wheel that starts at `now_us`.
    pub fn new(now_us: u64) -> Wheel<K> {
        Wheel { slots: (0..SLOTS).map(|_| Vec::new()).collect(), done: now_us / TICK_US, armed: 0, earliest: u64::MAX }
    }

    /// Fires `key` at or shortly after `at_us`. A key may be armed several times.
    #[inline]
    pub fn arm(&mut self, at_us: u64, key: K) {
        let tick = (at_us.div_ceil(TICK_US)).max(self.done + 1);
        self.slots[tick as usize % SLOTS].push((tick, key));
        self.armed += 1;
        self.earliest = self.earliest.min(tick);
    }

    /// Moves every key that is due at `now_us` to `due`.
    pub fn fire(&mut self, now_us: u64, due: &mut Vec<K>) {
        let now = now_us / TICK_US;
        if now < self.earliest {
            self.done = self.done.max(now);
            return;
        }
        let first = self.done + 1;
        let steps = (now.saturating_sub(self.done)).min(SLOTS as u64);
        for tick in first..first + steps {
            let slot = &mut self.slots[tick as usize % SLOTS];
            let before = slot.len();
            slot.retain(|(at, key)| {
                let fires = *at <= now;
                if fires {
                    due.push(*key);
                }
                !fires
            });
            self.armed -= before - slot.len();
        }
        self.done = self.done.max(now);
        self.earliest = self.search();
    }

    /// When [`Wheel::fire`] should be called next; `u64::MAX` when nothing is armed.
    pub fn deadline_us(&self) -> u64 {
        self.earliest.saturating_mul(TICK_US)
    }

    /// Number of armed keys.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// True when nothing is armed.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// A lower bound that is cheap: the first slot that holds anything, however many rounds away.
    fn search(&self) -> u64 {
        if self.armed == 0 {
            return u64::MAX;
        }
        (self.done + 1..=self.done + SLOTS as u64)
            .find(|tick| !self.slots[*tick as usize % SLOTS].is_empty())
            .unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn every_key_fires_once_not_early_and_at_most_a_tick_late() {
        let mut wheel = Wheel::new(0);
        let deadlines: Vec<u64> = (0..2000u64).map(|i| i * i * 97 % 300_000_000).collect();
        for (i, at) in deadlines.iter().enumerate() {
            wheel.arm(*at, i);
        }
        let mut fired = vec![0u64; deadlines.len()];
        let mut due = vec![];
        while !wheel.is_empty() {
            let now = wheel.deadline_us();
            assert_ne!(now, u64::MAX);
            wheel.fire(now, &mut due);
            for i in due.drain(..) {
                assert_eq!(fired[i], 0);
                fired[i] = now;
            }
        }
        for (at, fired) in deadlines.iter().zip(&fired) {
            assert!(fired >= at && *fired <= at + 2 * TICK_US, "{at} fired at {fired}");
        }
    }

    #[test]
    fn a_long_sleep_fires_everything_that_is_due() {
        let mut wheel = Wheel::new(0);
        wheel.arm(1_000_000, 'a');
        wheel.arm(500_000_000, 'b');
        wheel.arm(900_000_000, 'c');
        let mut due = vec![];
        wheel.fire(600_000_000, &mut due);
        due.sort();
        assert_eq!(due, ['a', 'b']);
        assert_eq!(wheel.len(), 1);
    }
}
