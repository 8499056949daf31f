//! Links: only what the other cluster wanted crosses, once, and never back; what was offered while the
//! routes stood arrives at least once, also when wires break meanwhile.

use super::{Oracle, Verdict, matches, publishes::Publish, subscriptions::Epoch};
use crate::links::LINKED;

/// May this publish be received in another cluster?
pub fn may_cross(publish: &Publish) -> bool {
    matches(LINKED, &publish.topic)
}

/// Copies beyond the first that broken wires may cause: each resends at most what was unacknowledged.
pub const COPIES_OVER_CUTS: u32 = 1_000;

impl Oracle {
    /// Sessions of other clusters that surely want a topic.
    fn remote_followers<'a>(&'a self, publish: &'a Publish) -> impl Iterator<Item = &'a Epoch> {
        self.epochs.iter().filter(move |session| {
            let wants = session.matching(&publish.topic).any(|s| !s.shared && s.certain(publish.sent_us, u64::MAX));
            !session.ended && session.cluster != publish.cluster && wants
        })
    }

    /// Nobody of another cluster can have subscribed to this topic.
    pub fn unwanted_abroad(&self, cluster: usize, topic: &str) -> bool {
        let abroad = self.epochs.iter().filter(|session| !session.ended && session.cluster != cluster);
        abroad.flat_map(|session| session.matching(topic)).all(|s| s.left_us.is_some())
    }

    /// These were published while both links stood and nobody came or went.
    pub fn check_crossed(&self, numbers: &[u64], sheds: u64) -> Verdict {
        let mut lost = 0;
        for number in numbers {
            let publish = self.publishes.at(*number);
            for session in self.remote_followers(publish) {
                lost += u64::from(!session.got.contains_key(number));
                if lost > sheds {
                    let (client, which) = (session.client, self.publishes.describe(*number));
                    return Err(format!("client {client} of another cluster never received {which}"));
                }
            }
        }
        Ok(())
    }
}
