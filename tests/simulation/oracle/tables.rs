//! When everybody has left, every table is empty again.

use broker::Gauges;

use super::Verdict;

/// Checks one shard at the very end.
pub fn check_empty(shard: &str, gauges: Gauges, queued: u64) -> Verdict {
    if gauges == Gauges::default() && queued == 0 {
        return Ok(());
    }
    Err(format!("{shard}: everybody has left, but there is {gauges:?}, {queued} queued"))
}
