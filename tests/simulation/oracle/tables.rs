//! When everybody has left, every table is empty again.

use broker::Gauges;

use super::Verdict;

/// Checks one shard at the very end.
/// `linked`: the connections, sessions and interest of links stay.
pub fn check_empty(shard: &str, mut gauges: Gauges, queued: u64, linked: bool) -> Verdict {
    gauges.log_unconfirmed_bytes = 0;
    if linked {
        gauges = Gauges { connections: 0, sessions: 0, subscriptions: 0, interest: 0, ..gauges };
    }
    if gauges == Gauges::default() && queued == 0 {
        return Ok(());
    }
    Err(format!("{shard}: everybody has left, but there is {gauges:?}, {queued} queued"))
}
