//! Acknowledged means delivered, kept, or shed under a counter: no mailbox still carries the message when
//! its PUBACK or PUBREC is heard, and a retained value is in its owner's store.

use super::{Oracle, Verdict, groups::of_groups, publishes::Publishes};
use crate::mailbox::Grid;

impl Oracle {
    /// A publish was acknowledged. `held`: the payload that the store has for its topic. `kept`: there is a log.
    pub fn check_acknowledged(&self, number: u64, grid: &Grid, held: Option<Vec<u8>>, kept: bool) -> Verdict {
        let publish = self.publishes.at(number);
        let which = || self.publishes.describe(number);
        if publish.resent > 0 {
            // What was sent before may be on its way to a shard that wants it no longer.
            return Ok(());
        }
        if !publish.retain {
            // Frames of retained publishes also travel as answers to queries.
            if kept && publish.qos == 2 && of_groups(&publish.topic) {
                // The owner of the group has it in its log until a member has.
                return Ok(());
            }
            let carried = grid.carries(Publishes::token(number).as_bytes());
            return if carried { Err(format!("acknowledged while still in a mailbox: {}", which())) } else { Ok(()) };
        }
        if !publish.topic.starts_with("r/") {
            return Ok(());
        }
        let newer = self.publishes.iter().any(|(n, p)| n > number && p.topic == publish.topic);
        let resent = self.publishes.iter().any(|(_, p)| p.topic == publish.topic && p.resent > 0);
        let same = match publish.delete {
            true => held.is_none(),
            false => held.as_ref() == Some(&self.publishes.payload(number)),
        };
        if same || newer || resent {
            return Ok(());
        }
        let held = held.and_then(|payload| self.publishes.read(&payload));
        Err(format!("acknowledged, but the store holds {held:?}: {}", which()))
    }
}
