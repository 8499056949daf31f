//! When the logs of a cluster refused something, or could have: what trouble with disks permits, it permits only then.

use super::Oracle;

/// A time in which a shard's log did not take everything, or something was refused because of it.
pub struct Refusal {
    cluster: usize,
    from_us: u64,
    /// `u64::MAX`: it goes on.
    to_us: u64,
}

impl Oracle {
    /// A shard of a cluster refuses from now on; gives the number for [`Oracle::refusal_ends`].
    pub fn refusal_begins(&mut self, cluster: usize, from_us: u64) -> usize {
        self.refusals.push(Refusal { cluster, from_us, to_us: u64::MAX });
        self.refusals.len() - 1
    }

    /// It does so no longer.
    pub fn refusal_ends(&mut self, refusal: usize, now_us: u64) {
        self.refusals[refusal].to_us = now_us;
    }

    /// Was something refused between these times, both included?
    pub fn refused(&self, cluster: usize, from_us: u64, to_us: u64) -> bool {
        self.refusals.iter().any(|r| r.cluster == cluster && r.from_us <= to_us && r.to_us >= from_us)
    }
}
