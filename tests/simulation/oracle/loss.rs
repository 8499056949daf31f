//! Every acknowledged QoS 1 or 2 message reaches every session whose subscription surely existed all the
//! time of the publish, unless a shed counter accounts for it. QoS 0 the same, if no connection was cut.

use super::{Oracle, Verdict};

/// What the counters of a cluster can explain.
#[derive(Clone, Copy, Default, Debug)]
pub struct Explained {
    /// Losses of QoS 1 and 2 in sessions that live.
    pub reliable: u64,
    /// Losses of QoS 0 on connections that were never cut.
    pub unreliable: u64,
    /// Losses of groups.
    pub groups: u64,
    /// Losses of retained values.
    pub retained: u64,
}

impl Oracle {
    /// The final account of a cluster.
    pub fn check_loss(&self, cluster: usize, explained: Explained) -> Verdict {
        let (mut reliable, mut unreliable) = (Vec::new(), Vec::new());
        for (number, publish) in self.publishes.iter().filter(|(_, p)| p.cluster == cluster && !p.will && !p.delete) {
            let Some(over_us) = publish.over_us() else { continue };
            for (at, session) in self.epochs.iter().enumerate().filter(|(_, e)| e.lives() && e.cluster == cluster) {
                let sure = session.matching(&publish.topic).filter(|s| {
                    let own = s.wanted.no_local && publish.publisher == session.client;
                    !s.shared && !own && s.certain(publish.sent_us, over_us)
                });
                let qos = sure.map(|s| publish.qos.min(s.wanted.qos)).max();
                if session.got.contains_key(&number) {
                    continue;
                }
                match qos {
                    Some(1..) => reliable.push((number, at)),
                    Some(0) if session.connected_since(publish.sent_us) => unreliable.push((number, at)),
                    _ => {}
                }
            }
        }
        for (what, lost, most) in
            [("QoS 1 and 2", &reliable, explained.reliable), ("QoS 0", &unreliable, explained.unreliable)]
        {
            if lost.len() as u64 > most {
                let (number, at) = lost[0];
                let client = self.epochs[at].client;
                let which = self.publishes.describe(number);
                let n = lost.len();
                return Err(format!(
                    "{n} deliveries of {what} are lost, sheds explain {most}: client {client} {which}"
                ));
            }
        }
        Ok(())
    }
}
