//! Repeats of one event: the first few of a second are said, the others counted, and their number is said when the
//! second is over. Used by whoever writes lines about what others cause, in both processes.
//! Always true: at most [`KEYS_MAX`] keys are remembered; while all of them are of this second, other keys are not said.

use alloc::{collections::BTreeMap, vec::Vec};

/// Events of one key that are said in a second.
pub const SAID_MAX: u32 = 10;
/// Keys that are remembered at the same time.
pub const KEYS_MAX: usize = 256;
const WINDOW_US: u64 = 1_000_000;

#[derive(Clone, Copy)]
struct Window {
    start_us: u64,
    said: u32,
    suppressed: u64,
}

/// What was said of each key in its present second. A key names a place in the code and the reason that it gives.
pub struct Repeats<K> {
    windows: BTreeMap<K, Window>,
    due_us: u64,
}

impl<K: Ord + Copy> Default for Repeats<K> {
    fn default() -> Repeats<K> {
        Repeats { windows: BTreeMap::new(), due_us: u64::MAX }
    }
}

impl<K: Ord + Copy> Repeats<K> {
    /// May this one be said? If not, it is counted. `now_us`: monotonic microseconds.
    pub fn allows(&mut self, key: K, now_us: u64) -> bool {
        if self.windows.len() >= KEYS_MAX && !self.windows.contains_key(&key) {
            self.windows
                .retain(|_, window| window.suppressed > 0 || now_us.saturating_sub(window.start_us) < WINDOW_US);
            if self.windows.len() >= KEYS_MAX {
                return false;
            }
        }
        let fresh = Window { start_us: now_us, said: 0, suppressed: 0 };
        let window = self.windows.entry(key).or_insert(fresh);
        if now_us.saturating_sub(window.start_us) >= WINDOW_US {
            *window = Window { suppressed: window.suppressed, ..fresh };
        }
        if window.said < SAID_MAX {
            window.said += 1;
            return true;
        }
        window.suppressed += 1;
        self.due_us = self.due_us.min(window.start_us + WINDOW_US);
        false
    }

    /// When [`Repeats::over`] has something to tell; `u64::MAX`: nothing is suppressed.
    pub fn due_us(&self) -> u64 {
        self.due_us
    }

    /// Keys whose second is over, and how many of each were not said in it.
    pub fn over(&mut self, now_us: u64) -> Vec<(K, u64)> {
        if now_us < self.due_us {
            return Vec::new();
        }
        let mut told = Vec::new();
        self.due_us = u64::MAX;
        let due_us = &mut self.due_us;
        self.windows.retain(|key, window| {
            let end_us = window.start_us + WINDOW_US;
            if now_us < end_us {
                if window.suppressed > 0 {
                    *due_us = (*due_us).min(end_us);
                }
                return true;
            }
            if window.suppressed > 0 {
                told.push((*key, window.suppressed));
            }
            false
        });
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_second_are_said_and_the_number_of_the_others_after_it() {
        let mut repeats = Repeats::default();
        let said = (0..SAID_MAX + 5).filter(|_| repeats.allows('a', 7)).count();
        assert_eq!(said, SAID_MAX as usize);
        assert!(repeats.allows('b', 7), "another key has a count of its own");
        assert_eq!(repeats.due_us(), 7 + WINDOW_US);
        assert!(repeats.over(6 + WINDOW_US).is_empty());
        assert_eq!(repeats.over(7 + WINDOW_US), [('a', 5)]);
        assert_eq!((repeats.over(u64::MAX), repeats.due_us()), (Vec::new(), u64::MAX), "it is said once");
        assert!(repeats.allows('a', 8 + WINDOW_US));
    }

    #[test]
    fn keys_are_bounded_and_old_ones_make_room() {
        let mut repeats = Repeats::default();
        assert!((0..KEYS_MAX).all(|key| repeats.allows(key, 0)));
        assert!(!repeats.allows(KEYS_MAX, 1), "all of them are of this second");
        assert!(repeats.allows(KEYS_MAX, WINDOW_US));
    }
}
