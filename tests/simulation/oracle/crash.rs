//! What a crash of a node allows: what was acknowledged is still true afterwards, what was not may be or not.

use super::Oracle;
use crate::net::Net;

impl Oracle {
    /// The node of a cluster died. `kept`: everything acknowledged has to be there again.
    pub fn crashed(&mut self, cluster: usize, kept: bool, now_us: u64, net: &Net) {
        self.crashes.push((cluster, now_us));
        for number in 0..self.publishes.len() {
            let publish = self.publishes.at_mut(number);
            if publish.cluster != cluster {
                continue;
            }
            if !kept || publish.acknowledged_us.is_none() {
                publish.shaken = true;
                publish.proved_us = None;
            }
            if !kept {
                publish.forgotten = true;
                publish.acknowledged_us = None;
            }
            if publish.will {
                let qos = publish.qos;
                self.wills.node_crashed(number, kept, qos, net);
            }
        }
    }
}
