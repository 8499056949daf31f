//! The time that a turn sees: read once by the shell, passed to everything pure.

use serde::{Deserialize, Serialize};

/// One reading of both clocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct Now {
    /// Monotonic: keep-alive, retries and time-outs. Its zero is arbitrary.
    pub mono_us: u64,
    /// Wall clock since the Unix epoch: what must mean the same after a restart or on another node.
    pub wall_ms: u64,
}

impl Now {
    /// The wall time in milliseconds of a moment in monotonic microseconds; `u64::MAX`, which is never, stays.
    pub fn wall_of_us(self, at_us: u64) -> u64 {
        match at_us {
            u64::MAX => u64::MAX,
            at_us if at_us >= self.mono_us => self.wall_ms.saturating_add((at_us - self.mono_us) / 1000),
            at_us => self.wall_ms.saturating_sub((self.mono_us - at_us) / 1000).max(1),
        }
    }

    /// The monotonic moment of a wall time; what is past is now, `u64::MAX` stays.
    pub fn mono_of_ms(self, at_ms: u64) -> u64 {
        match at_ms {
            u64::MAX => u64::MAX,
            at_ms => self.mono_us.saturating_add(at_ms.saturating_sub(self.wall_ms).saturating_mul(1000)),
        }
    }
}
