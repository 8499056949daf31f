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
