//! What must be true, told from what clients sent and heard, without any code of the broker. One file per
//! invariant; the world calls in as things happen, and once more when everything is quiet.

pub mod acknowledged;
pub mod arrival;
pub mod continuity;
pub mod crash;
pub mod crossing;
pub mod duplicates;
pub mod groups;
pub mod loss;
pub mod order;
pub mod publishes;
pub mod refusals;
pub mod retained;
pub mod subscriptions;
pub mod tables;
pub mod wanted;
pub mod wills;

use publishes::Publishes;
use refusals::Refusal;
use subscriptions::Epoch;
use wills::Wills;

/// Why a run failed; one sentence.
pub type Verdict = Result<(), String>;

/// Everything that clients know.
#[derive(Default)]
pub struct Oracle {
    /// Every publish.
    pub publishes: Publishes,
    /// Every session, from its CONNACK to its end.
    pub epochs: Vec<Epoch>,
    /// Every will.
    pub wills: Wills,
    /// A wire between clusters broke, so what crosses may come twice.
    pub wires_cut: bool,
    /// The broker may refuse what it cannot keep, and close connections for it.
    pub refusing: bool,
    /// When it did, or could have.
    pub refusals: Vec<Refusal>,
    /// When the node of each cluster died.
    pub crashes: Vec<(usize, u64)>,
}

impl Oracle {
    /// A session begins.
    pub fn begin_epoch(&mut self, client: usize, cluster: usize) -> usize {
        self.epochs.push(Epoch::new(client, cluster));
        self.epochs.len() - 1
    }

    /// A session is surely over.
    pub fn end_epoch(&mut self, epoch: usize, now_us: u64) {
        if !self.epochs[epoch].ended {
            self.epochs[epoch].ended = true;
            self.epochs[epoch].ended_us = now_us;
        }
    }

    /// A session's connection ended: what was asked for and not answered stays unknown.
    pub fn connection_ended(&mut self, epoch: usize, now_us: u64) {
        self.epochs[epoch].connection_ended(now_us);
    }

    /// Something sent later on the same connection was answered, so this was read.
    pub fn proved(&mut self, number: u64, now_us: u64) {
        let publish = self.publishes.at(number);
        // Nobody hears that a retained value of QoS 0 is not stored, because the log of its owner takes no more.
        let stores = publish.qos == 0 && publish.retain && !publish.delete;
        let shed = stores && self.refused(publish.cluster, publish.sent_us, now_us);
        let publish = self.publishes.at_mut(number);
        if !publish.shaken && !shed {
            publish.proved_us.get_or_insert(now_us);
        }
    }

    /// PUBACK or PUBREC came.
    pub fn acknowledged(&mut self, number: u64, now_us: u64) {
        let publish = self.publishes.at_mut(number);
        if !publish.forgotten {
            publish.acknowledged_us.get_or_insert(now_us);
        }
    }
}

/// Does `topic` match `filter`? The specification's rules, level by level.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}
