//! Bounds on waiting. Called by everything that waits for another process.
//!
//! Always true: a wait ends with the event or with a panic that says what did not happen and in how long.

use std::time::{Duration, Instant};

/// How long a reaction inside one node may take on a busy two-core machine before it counts as absent.
pub const SHORT: Duration = Duration::from_secs(10);

/// How long something may take that includes a start, a restart with back-off or a reconnect.
pub const LONG: Duration = Duration::from_secs(30);

/// How long something must stay absent before a test believes that it does not come. Used only after an
/// event that the unwanted one would have preceded, so it adds certainty and does not carry the proof.
pub const MOMENT: Duration = Duration::from_millis(150);

/// Pause between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks until `look` yields a value; panics after `bound`, naming `what`.
#[track_caller]
pub fn within<T>(bound: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
    within_or(bound, look).unwrap_or_else(|| panic!("{what}: did not happen within {bound:?}"))
}

/// Looks until `look` yields a value; `None` after `bound`.
pub fn within_or<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let since = Instant::now();
    loop {
        if let Some(value) = look() {
            return Some(value);
        }
        if since.elapsed() >= bound {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks for as long as `duration` and panics as soon as `look` is false, naming `what`.
#[track_caller]
pub fn holds_for(duration: Duration, what: &str, mut look: impl FnMut() -> bool) {
    let since = Instant::now();
    while since.elapsed() < duration {
        assert!(look(), "{what}: ceased to hold after {:?}", since.elapsed());
        std::thread::sleep(LOOK_EVERY);
    }
}
