//! What a run has touched. Printed at the end; a run of full length fails if one is zero.

use std::collections::BTreeMap;

/// Counters by name.
#[derive(Clone, Default)]
pub struct Coverage {
    counts: BTreeMap<&'static str, u64>,
}

/// What a run of full length must have touched: counters of the broker, and of the simulation.
pub const REQUIRED: &[&str] = &[
    "hops_sent",
    "connections_handed_over",
    "hand_overs_with_late_bytes",
    "batches_staged",
    "reads_paused",
    "subacks_waited",
    "acks_waited",
    "takeovers_in_qos2",
    "retained_queries_during_publishes",
    "retained_replayed",
    "retained_skipped",
    "group_deliveries",
    "group_returned",
    "wills_published",
    "wills_cancelled",
    "session_resumed",
    "session_discarded",
    "session_expired",
    "duplicates_suppressed",
    "shed_queue_full",
    "shed_slow_subscriber",
    "shed_too_large",
    "shed_session_ended",
    "shed_retained_full",
    "network_cuts",
    "wire_cuts",
    "link_sent",
    "link_received",
    "crossings_over_cuts",
    "nothing_crossed_unwanted",
];

/// The same with crashes.
pub const REQUIRED_OF_DISKS: &[&str] = &[
    "kills",
    "power_losses",
    "crashes_in_recovery",
    "crashes_of_a_move",
    "crashes_in_checkpoints",
    "restarts_with_other_shards",
    "torn_tails_cut",
    "checkpoints_complete",
    "session_restored",
    "publishes_repeated",
    "gated_output",
    "cut_before_pubrec",
    "cut_before_pubrel",
    "cut_before_pubcomp",
    "cut_after_pubrel",
];

/// The same with disks that fail.
pub const REQUIRED_OF_TROUBLE: &[&str] = &[
    "disk_failures",
    "detachments",
    "resyncs",
    "crashes_while_detached",
    "tight_logs",
    "publishes_refused_by_log",
    "turned_away",
    "log_waits_refused",
    "shed_log_full",
];

/// Also worth seeing.
const SHOWN: &[&str] = &["turns", "operations", "messages_received", "messages_sent", "takeovers", "shed_no_member"];

impl Coverage {
    /// Adds to one.
    pub fn one(&mut self, name: &'static str, n: u64) {
        *self.counts.entry(name).or_default() += n;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Coverage) {
        for (name, n) in &other.counts {
            self.one(name, *n);
        }
    }

    /// Names that must not be zero and are.
    pub fn missing(&self, required: &[&'static str]) -> Vec<&'static str> {
        required.iter().copied().filter(|name| self.counts.get(name).is_none_or(|n| *n == 0)).collect()
    }

    /// One line per counter.
    pub fn print(&self) {
        for name in REQUIRED.iter().chain(REQUIRED_OF_DISKS).chain(REQUIRED_OF_TROUBLE).chain(SHOWN) {
            let count = self.counts.get(name).copied().unwrap_or(0);
            if count > 0 {
                println!("  {name:<36} {count:>10}");
            }
        }
    }
}
